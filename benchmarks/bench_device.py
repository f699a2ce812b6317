"""One part of the device run: lrjax on an accelerator and on the CPU of the same machine, and what is installed there.

`python -m benchmarks device` runs the parts one after the other, each in a process of its own, and keeps what they
print, one JSON line a result. Where JAX sees no accelerator, a second CPU device stands in for it.
"""

import argparse
import concurrent.futures
import functools
import json
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from benchmarks import device_peers as peers
from benchmarks import workloads
from benchmarks.bench_sweep import DECAY, OUTLIERS, RANK, SCALE, STEP, STEPS, workload
from benchmarks.report import sweep_cost

AGREE = 100  # times the answer's response to changes of one unit in the last place
COMPILERS = max(2, min(12, (os.cpu_count() or 2) - 2))


def devices():
    """The accelerator, and a CPU device beside it."""
    host = jax.devices("cpu")
    card = jax.devices()[0]
    return (host[-1] if card.platform == "cpu" else card), host[0]


def say(case, solver, device, **found):
    found = {name: value.item() if hasattr(value, "item") else value for name, value in found.items()}
    print(json.dumps({"case": case, "solver": solver, "device": device, **found}), flush=True)


def label(device):
    return "device" if device == devices()[0] else "CPU"


def timed(call, repeats):
    """Median seconds of a call, how far the calls are apart, seconds of the first beyond that, and the answer."""
    took = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        answer = jax.block_until_ready(call())
        took.append(time.perf_counter() - begun)
    middle = statistics.median(took[1:])
    return {"seconds": middle, "spread": (max(took[1:]) - min(took[1:])) / middle, "compile": took[0] - middle}, answer


def measure(case, solver, device, call, repeats, check=lambda answer: {}, **found):
    """Times a call and says so; a failure is a result too."""
    try:
        with jax.default_device(device if isinstance(device, jax.Device) else None):
            times, answer = timed(call, repeats)
        places = {place for leaf in jax.tree.leaves(answer) if isinstance(leaf, jax.Array) for place in leaf.devices()}
        if places - {device} and isinstance(device, jax.Device):
            raise RuntimeError(f"it ran on {places}")
        found |= times | check(answer)
    except Exception as problem:
        found |= {"failed": f"{type(problem).__name__}: {problem}"[:300]}
        answer = None
    say(case, solver, label(device) if isinstance(device, jax.Device) else device, **found)
    return answer


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def cut(quick, full, small):
    return small if quick else full


# ------------------------------------------------------------------------------------------------------- what it can do


def limit(quick):
    """Matrix products and copies, the two ceilings that times are compared with."""
    product, copy = jax.jit(functools.partial(jnp.matmul, precision="highest")), jax.jit(lambda a: a + 1)
    for device in devices():
        large = not quick and label(device) == "device"
        n, megabytes = (8192, 4096) if large else cut(quick, (4096, 512), (256, 4))
        for dtype in ("float32", "float64"):
            a = jax.device_put(np.random.default_rng(0).standard_normal((n, n)).astype(dtype), device)
            case = {"kind": "limit", "dtype": dtype}
            measure(case, "matrix product", device, functools.partial(product, a, a), 5, flops=2.0 * n**3)
        a = jax.device_put(np.ones(megabytes * 2**18, np.float32), device)
        case = {"kind": "limit", "dtype": "float32"}
        measure(case, "copy", device, functools.partial(copy, a), 5, bytes=2.0 * a.nbytes)


# ------------------------------------------------------------------------------------------------------------ agreement


def jobs(quick):
    """`name, function, arguments` of everything that has to give the same on both devices."""
    from tests.cases import CASES, LEAST_SQUARES, N1, N2, OPERATORS, SKETCHES

    key, normal = jax.random.key(7), lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape, jnp.float32)
    for case in CASES[:: cut(quick, 1, 15)]:

        def run(problem, init, solver=case.solver):
            return lr.solve(problem, solver, key, num_steps=3, init=init).factors.dense()

        yield f"solver {case.name}", run, (case.problem(case.home), case.start())
    for name in list(OPERATORS)[:: cut(quick, 1, 6)]:

        def products(op, z, left, right):
            found = (
                op.forward(left, right),
                op.forward_dense(jnp.matmul(left, right.T, precision="highest")),
                op.adjoint(z),
            )
            return [*found, op.adjoint_matmul(z, right), op.adjoint_rmatmul(z, left)]

        op = OPERATORS[name](jax.random.key(0), (N1, N2), False, "float32")
        n1, n2 = op.shape
        yield f"operator {name}", products, (op, normal(1, op.num_measurements), normal(2, n1, 2), normal(3, n2, 2))
    a = normal(4, 200, 7)
    for kind in SKETCHES[:: cut(quick, 1, 5)]:
        yield f"sketch {kind.__name__}", lambda a, kind=kind: kind.create(key, 64, 200).apply(a), (a,)
    tensor = lambda a: lr.sketching.TensorSRHT.create(key, 64, 20, 10).apply(a)
    yield "sketch TensorSRHT", tensor, (a,)
    for name, (shape, options) in list(LEAST_SQUARES.items())[:: cut(quick, 1, 4)]:
        for dtype in (jnp.float32, jnp.float64)[: cut(quick, 2, 1)]:
            b = normal(6, shape[0]).astype(dtype)
            fit = lambda a, b, options=options: lr.lstsq(a, b, key, **options).x
            yield f"lstsq {name}", fit, (normal(5, *shape).astype(dtype), b)
    product = functools.partial(jnp.matmul, precision="highest")
    decaying = product((normal(8, 60, 20) * 0.5 ** jnp.arange(20)).astype(jnp.float32), normal(9, 20, 40))

    def triples(a):
        u, s, v = lr.rsvd(a, 5, key=key)
        return s, product(u * s, v.T)

    yield "rsvd", triples, (decaying,)


def agreement(quick):
    """The same programs on both devices; the difference in units of what one unit in the last place does."""
    card, host = devices()
    with jax.default_device(host):
        todo = [(name, jax.jit(run), jax.device_put(given, host)) for name, run, given in jobs(quick)]

    def compiled(job):
        _, run, given = job
        begun, found = time.perf_counter(), []
        for device in (card, host):
            try:
                with jax.default_device(device):
                    found.append(run.lower(*jax.device_put(given, device)).compile())
            except Exception as problem:
                return f"{label(device)}: {type(problem).__name__}: {problem}"[:300], 0.0
        return found, time.perf_counter() - begun

    with concurrent.futures.ThreadPoolExecutor(COMPILERS) as pool:
        for (name, _, given), (programs, took) in zip(todo, pool.map(compiled, todo), strict=True):
            dtype = str(jax.tree.leaves(given)[-1].dtype)
            case = {"kind": "agreement", "of": name, "dtype": dtype}
            if isinstance(programs, str):
                say(case, name, "device", failed=programs)
                continue
            try:
                say(case, name, "device", compile=took, **compare(programs, given, card, host))
            except Exception as problem:
                say(case, name, "device", failed=f"{type(problem).__name__}: {problem}"[:300])


def compare(programs, given, card, host):
    """The answer of the card beside that of the CPU, and the CPU's own response to rounding of the input."""
    rng, flat = np.random.default_rng(0), lambda x: np.concatenate([np.ravel(part) for part in jax.tree.leaves(x)])

    def rounded(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jax.device_put(x * (1 + jnp.finfo(x.dtype).eps * rng.standard_normal(x.shape)).astype(x.dtype), host)

    on_card, on_host = programs
    expected = flat(on_host(*given))
    eps = float(np.finfo(expected.dtype).eps)
    found = flat(on_card(*jax.device_put(given, card)))
    response = max(relative(flat(on_host(*jax.tree.map(rounded, given))), expected) for _ in range(2))
    difference, allowed = relative(found, expected), AGREE * max(eps, response)
    return {"difference": difference, "response": response, "agrees": bool(difference <= allowed)}


# ---------------------------------------------------------------------------------------------------------- alternation


def entries(kind, shape, count):
    """Distinct entries of a random matrix of rank 10, uniform or skewed."""
    rng = np.random.default_rng(0)
    rows, cols = workloads.distinct_entries(rng, shape, count, skew=kind == "skewed")
    left, right = (rng.standard_normal((n, 10)).astype(np.float32) for n in shape)
    return rows, cols, workloads.entries_of(left, right, rows, cols) / np.sqrt(10)


def als(quick):
    """Seconds of one sweep of alternating least squares, both half steps."""
    square = ("uniform", 20_000, 20_000, 2_000_000, 10)
    cases = [(*square, "float32"), (*square, "float64"), ("skewed", 140_000, 27_000, 20_000_000, 32, "float32")]
    for case in cut(quick, cases, [("skewed", 300, 200, 6000, 3, "float32")]):
        one_als(dict(zip(("input", "n1", "n2", "entries", "rank", "dtype"), case, strict=True)))


def one_als(case):
    case = {"kind": "als", **case}
    shape, rank, count = (case["n1"], case["n2"]), case["rank"], case["entries"]
    rows, cols, values = entries(case["input"], shape, count)
    values = values.astype(case["dtype"])
    flops, moved = sweep_cost(case)
    at, predicted = np.random.default_rng(1).integers(0, count, 50_000), {}
    for device in devices():
        here = label(device)
        slow = here == "CPU" and count > 10**7
        few, many, repeats = (1, 2, 1) if slow else (1, 11, 3)
        with jax.default_device(device):
            begun = time.perf_counter()
            op, y = lr.operators.SampledEntries.build(rows, cols, values, shape)
            problem = jax.block_until_ready(lr.Problem(op, y))
            build = time.perf_counter() - begun
            rng = np.random.default_rng(2)
            init = lr.Factors(*(jnp.asarray(rng.standard_normal((n, rank)).astype(case["dtype"])) for n in shape))
            solver = lr.AlternatingMinimization(max_rank=rank, ridge=0.1, orthonormalize=False)
            solve = functools.partial(lr.solve, problem, solver, jax.random.key(0), init=init)
            try:
                short, solution = timed(functools.partial(solve, num_steps=few), repeats)
                long, _ = timed(functools.partial(solve, num_steps=many), repeats)
            except Exception as error:
                say(case, "lrjax", here, failed=f"{type(error).__name__}: {error}"[:300])
                continue
        left, right = np.asarray(solution.factors.left), np.asarray(solution.factors.right)
        predicted[here] = np.einsum("mk,mk->m", left[rows[at]], right[cols[at]])
        difference = relative(predicted["device"], predicted["CPU"]) if len(predicted) == 2 else None
        say(case, "lrjax", here, seconds=(long["seconds"] - short["seconds"]) / (many - few), build=build,
            compile=short["compile"], flops=flops, bytes=moved, difference=difference)  # fmt: skip
        if here == "device":  # before the CPU, which takes longest
            for name, call in peers.als(rows, cols, values, shape, rank, 0.1):
                measure(case, name, "device", call, 3, flops=flops, bytes=moved)


def gauss_newton(quick):
    """Completion from few entries: a whole solve."""
    for shape, rank in cut(quick, [((1000, 800), 5), ((20_000, 20_000), 10)], [((60, 50), 2)]):
        for device in devices():
            one_gauss_newton(shape, rank, device)


def one_gauss_newton(shape, rank, device):
    case = {"kind": "gauss_newton", "n1": shape[0], "n2": shape[1], "rank": rank, "oversampling": 2.0,
            "dtype": "float64"}  # fmt: skip
    with jax.default_device(device):
        make = functools.partial(lr.synthetic.large_completion, oversampling=2.0, dtype=jnp.float64)
        problem, truth = make(jax.random.key(0), shape=shape, rank=rank)
        solver = lr.GaussNewton(max_rank=rank)
        solve = functools.partial(lr.solve, problem, solver, jax.random.key(1), num_steps=30)
        check = lambda s: {"error": float(lr.metrics.relative_error(s.factors, truth)), "steps": int(s.num_steps)}
        measure(case, "lrjax", device, solve, 3 if shape[0] <= 1000 else 1, check)


# --------------------------------------------------------------------------------------------------------------- sweeps


def subgradient(quick):
    """A thousand problems of robust sensing, each with its own ensemble or all with one, by `lr.sweep`."""
    problems, size, steps = cut(quick, (1000, 20, STEPS), (4, 6, 20))
    m = 10 * RANK * size
    trial = workload(size, m, steps, jnp.float32)
    ours, flops = jax.devices("cpu"), problems * steps * 4.0 * m * size * size
    for shared in cut(quick, (False, True), (False,)):
        case = {"kind": "subgradient", "problems": problems, "d": size, "ensembles": "shared" if shared else "own",
                "dtype": "float32"}  # fmt: skip
        card = devices()[0]
        for where in ([card], ours):
            with jax.default_device(where[0]):
                key = jax.random.key(0)
                one = lr.operators.DenseEnsemble.gaussian(key, (size, size), m, symmetric=True, dtype=jnp.float32)
            name = "device" if where[0] is card else "CPU"
            try:
                runs = [lr.sweep(trial, key, grid={}, num_trials=problems, shared=one if shared else None,
                                 devices=where, progress=False) for _ in range(2)]  # fmt: skip
            except Exception as problem:
                say(case, "lrjax", name, failed=f"{type(problem).__name__}: {problem}"[:300])
                continue
            table = runs[-1]
            error = np.asarray(table["error"])
            say(case, "lrjax", name, seconds=table.attrs["seconds"] - table.attrs["compile_seconds"],
                compile=runs[0].attrs["compile_seconds"], batch=table.attrs["batch_sizes"][0], flops=flops,
                recovered=float(np.mean(error < 1e-3)), error=float(np.median(error)))  # fmt: skip
        for name, call in peers.subgradient(problems, size, RANK, m, steps, shared, (STEP, DECAY, SCALE, OUTLIERS)):
            measure(case, name, "device", call, 2, flops=flops)


# ----------------------------------------------------------------------------------------------------------- regression


def tall(n, d, condition, dtype, device):
    """A Gaussian matrix whose columns are scaled and mixed to a condition number, and a right side with noise."""
    with jax.default_device(device):
        make = jax.jit(lambda key, mix: jax.random.normal(key, (n, d), dtype) @ mix)
        mix = np.geomspace(1, 1 / condition, d)[:, None] * np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]
        a = make(jax.random.key(0), jnp.asarray(mix.astype(dtype)))
        noise = jax.random.normal(jax.random.key(1), (n,), dtype)
        b = jnp.matmul(a, jnp.ones(d, dtype), precision="highest") + noise
    return jax.block_until_ready((a, b))


def lstsq(quick):
    """Least squares with many rows, well and badly conditioned."""
    n, d = cut(quick, (2**20, 256), (2**10, 8))
    for dtype, condition in (("float32", 1.0), ("float64", 1.0), ("float64", 1e6))[: cut(quick, 3, 1)]:
        methods = cut(quick, ("auto", "cholesky_qr", "fossils", "direct"), ("auto",))
        one_lstsq({"kind": "lstsq", "n": n, "d": d, "condition": condition, "dtype": dtype}, methods)


def one_lstsq(case, methods):
    n, d, dtype = case["n"], case["d"], case["dtype"]
    card, host = devices()
    a, b = tall(n, d, case["condition"], dtype, card)
    there = jax.device_put((a, b), host)

    @jax.jit
    def remainder(a, b, x):
        """Of the normal equations, relative: what a backward-stable solver makes small."""
        r = b - jnp.matmul(a, x, precision="highest")
        return jnp.linalg.norm(jnp.matmul(a.T, r, precision="highest")) / jnp.linalg.norm(a) / jnp.linalg.norm(r)

    def check(found):
        x = jax.device_put(np.asarray(getattr(found, "x", found)), card)
        return {"remainder": float(remainder(a, b, x)), "method": getattr(found, "method", None)}

    cost = {"flops": 2.0 * n * d * d, "bytes": float(a.nbytes)}
    for method in methods:
        ours = functools.partial(lr.lstsq, a, b, jax.random.key(2), method=method)
        measure(case, f"lrjax {method}", card, ours, 3, check, **cost)
    measure(case, "lrjax auto", host, lambda: lr.lstsq(*there, jax.random.key(2)), 2, check, **cost)
    for name, call in peers.lstsq(a, b):
        measure(case, name, "device", call, 3, check, **cost)


def sketch(quick):
    """Drawing and applying a sketch to a tall matrix, in one program."""
    n, d, m = cut(quick, (2**20, 256, 4096), (2**10, 8, 64))
    card, host = devices()
    a = tall(n, d, 1.0, "float32", card)[0]
    case = {"kind": "sketch", "n": n, "d": d, "rows": m, "dtype": "float32"}
    read = {"bytes": float(a.nbytes)}
    kinds = ("CountSketch", "SparseSignSketch", "BlockSRHT", "SRHT", "PooledSketch")
    for device in (card, host):
        here = jax.device_put(a, device)
        for name in kinds if device is card and not quick else kinds[:1]:
            kind = getattr(lr.sketching, name)
            both = jax.jit(lambda key, a, kind=kind: kind.create(key, m, n).apply(a))
            measure(case, f"lrjax {name}", device, functools.partial(both, jax.random.key(0), here), 5, **read)
    for name, call in peers.count_sketch(a, m):
        measure(case, name, "device", call, 5, **read)


def rsvd(quick):
    """Leading singular triples of a dense matrix; the error beside that of the best approximation."""
    n1, n2, rank = cut(quick, (20_000, 10_000, 50), (60, 40, 4))
    card, host = devices()
    with jax.default_device(card):
        one, two, three = jax.random.split(jax.random.key(0), 3)
        signal = jax.random.normal(one, (n1, 2 * rank)) * 0.9 ** jnp.arange(2 * rank)
        a = jnp.matmul(signal, jax.random.normal(two, (2 * rank, n2)), precision="highest")
        a = jax.block_until_ready((a + 0.01 * jax.random.normal(three, (n1, n2))).astype(jnp.float32))
    case = {"kind": "rsvd", "n1": n1, "n2": n2, "rank": rank, "dtype": "float32"}
    cost = {"flops": 4.0 * 3 * n1 * n2 * (rank + 10), "bytes": 6.0 * a.nbytes}

    @jax.jit
    def error(a, u, s, v):
        rest = a - jnp.matmul(u * s, v.T, precision="highest")
        return jnp.linalg.norm(rest) / jnp.linalg.norm(a)

    outcome = lambda parts: {"error": float(error(a, *jax.device_put(parts, card)))}
    for device in (card, host):
        here = jax.device_put(a, device)
        call = lambda here=here: lr.rsvd(here, rank, key=jax.random.key(1))
        measure(case, "lrjax", device, call, 3, outcome, **cost)
    for name, call in peers.rsvd(a, rank):
        measure(case, name, "device", call, 3, lambda parts: outcome(tuple(np.asarray(p) for p in parts)), **cost)


PARTS = {part.__name__: part for part in (limit, als, gauss_newton, subgradient, lstsq, sketch, rsvd, agreement)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="+", choices=PARTS)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    for part in given.part:
        PARTS[part](given.quick)


if __name__ == "__main__":
    main()
