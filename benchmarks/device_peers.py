"""What a user of the device would write with PyTorch or CuPy, where these are installed: `name, call` pairs.

The calls end when the device has: their times are those of the work. Arrays come in as JAX's and are handed over
without a copy.
"""

import importlib.util
import sys

import numpy as np

DEVICE = "cuda"


def _installed(name):
    """The package, or `None` and a line that says why."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except Exception as problem:  # a package for another driver fails in ways of its own
        print(f"{name} does not start: {problem}", file=sys.stderr)
        return None


def _torch():
    torch = _installed("torch")
    return torch if torch is not None and (DEVICE == "cpu" or torch.cuda.is_available()) else None


def _cupy():
    return _installed("cupy")


def _wait(torch):
    if DEVICE != "cpu":
        torch.cuda.synchronize()


def _synchronised(torch, call):
    def run():
        answer = call()
        _wait(torch)
        return _host(answer)

    return run


def _host(answer):
    if isinstance(answer, tuple):
        return tuple(_host(part) for part in answer)
    return answer.cpu().numpy()


def als(rows, cols, values, shape, rank, ridge, slots=2**21):
    """A sweep by batches of rows of similar length: gather, batched products, batched Cholesky."""
    if (torch := _torch()) is None:
        return
    cuda = lambda x: torch.as_tensor(x, device=DEVICE)

    def batches(own, other, n):
        order, count = np.argsort(own, kind="stable"), np.bincount(own, minlength=n)
        begin, octave, made = np.cumsum(count) - count, np.ceil(np.log2(np.maximum(count, 1))), []
        for power in np.unique(octave):
            alike, long = np.flatnonzero(octave == power), int(2**power)
            for members in np.array_split(alike, -(-len(alike) * long // slots)):
                inside = np.arange(long) < count[members][:, None]
                place = order[np.minimum(begin[members][:, None] + np.arange(long), len(own) - 1)]
                y, index = np.where(inside, values[place], 0), other[place].astype(np.int64)
                made.append(tuple(map(cuda, (members, index, y, inside.astype(values.dtype)))))
        return made

    by_row, by_col = batches(rows, cols, shape[0]), batches(cols, rows, shape[1])
    eye = ridge * torch.eye(rank, device=DEVICE, dtype=torch.as_tensor(values[:1]).dtype)
    right = cuda(np.random.default_rng(2).standard_normal((shape[1], rank)).astype(values.dtype))

    def half(parts, other, n):
        factor = torch.zeros((n, rank), device=DEVICE, dtype=other.dtype)
        for members, index, y, inside in parts:
            block = other[index] * inside[..., None]
            gram = block.mT @ block + eye
            found = torch.cholesky_solve((block.mT @ y[..., None]), torch.linalg.cholesky(gram))
            factor[members] = found[..., 0]
        return factor

    def sweep():
        left = half(by_row, right, shape[0])
        return left, half(by_col, left, shape[1])

    def run():
        found = sweep()
        _wait(torch)
        return found

    yield "torch batches", run


def subgradient(problems, size, rank, m, steps, shared, settings):
    """All problems at once, as batched products."""
    if (torch := _torch()) is None:
        return
    step, decay, scale, outliers = settings
    make = torch.Generator(device=DEVICE).manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, device=DEVICE, generator=make)
    a = normal(1 if shared else problems, m, size * size)
    truth = torch.linalg.qr(normal(problems, size, rank))[0]
    y = (a @ (truth @ truth.mT).reshape(problems, -1, 1))[..., 0]
    y = torch.where(torch.rand(problems, m, device=DEVICE, generator=make) < outliers, y + 10 * normal(problems, m), y)
    start = scale * torch.linalg.qr(normal(problems, size, rank))[0]

    def run():
        u = start
        for t in range(steps):
            image = (u @ u.mT).reshape(problems, -1)
            if shared:
                direction = torch.sign(image @ a[0].T - y) @ a[0]
            else:
                direction = (torch.sign((a @ image[..., None])[..., 0] - y)[:, None, :] @ a)[:, 0]
            direction = direction.reshape(problems, size, size) / m
            u = u - step * decay**t * (direction + direction.mT) @ u
        return u

    yield "torch batched", _synchronised(torch, run)


def lstsq(a, b):
    """Householder QR, and the normal equations."""
    if (torch := _torch()) is not None:
        x, y = torch.from_dlpack(a), torch.from_dlpack(b)[:, None]
        yield "torch lstsq (QR)", _synchronised(torch, lambda: torch.linalg.lstsq(x, y).solution[:, 0])
        normal = lambda: torch.cholesky_solve(x.T @ y, torch.linalg.cholesky(x.T @ x))[:, 0]
        yield "torch normal equations", _synchronised(torch, normal)
    if (cupy := _cupy()) is not None:
        p, q = cupy.from_dlpack(a), cupy.from_dlpack(b)

        def qr():
            basis, upper = cupy.linalg.qr(p)
            return cupy.linalg.solve(upper, basis.T @ q).get()

        yield "CuPy QR", qr


def count_sketch(a, m):
    """Drawn and applied: a scattered sum, and a sparse matrix product."""
    n = a.shape[0]
    if (torch := _torch()) is not None:
        x = torch.from_dlpack(a)

        def scattered():
            signs = 2.0 * torch.randint(0, 2, (n, 1), device=DEVICE) - 1
            out = torch.zeros((m, x.shape[1]), device=DEVICE, dtype=x.dtype)
            out.index_add_(0, torch.randint(0, m, (n,), device=DEVICE), signs * x)
            _wait(torch)
            return np.zeros(1)

        yield "torch index_add", scattered
    if (cupy := _cupy()) is not None:
        from cupyx.scipy import sparse

        p = cupy.from_dlpack(a)

        def product():
            signs = (2 * cupy.random.randint(0, 2, n) - 1).astype(p.dtype)
            places = cupy.random.randint(0, m, n), cupy.arange(n)
            sparse.csr_matrix((signs, places), shape=(m, n)) @ p
            cupy.cuda.Device().synchronize()
            return np.zeros(1)

        yield "CuPy sparse product", product


def rsvd(a, rank):
    if (torch := _torch()) is not None:
        x = torch.from_dlpack(a)

        def found():
            u, s, v = torch.svd_lowrank(x, q=rank + 10, niter=2)
            return u[:, :rank].contiguous(), s[:rank], v[:, :rank].contiguous()

        yield "torch svd_lowrank", _synchronised(torch, found)
