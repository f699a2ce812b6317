"""Least squares and sketches beside LAPACK and SciPy, on the same arrays, in one process, repeats taken in turn.

`python benchmarks/bench_regression.py [--cores 1] [--quick]` prints one JSON line for each solver on each case. All
times are of calls that have been compiled; the first call minus that is given apart.
"""

import argparse
import json
import os
import sys
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("solvers", "sketches"), default=None)
    given = parser.parse_args()
    # Before NumPy and JAX count the cores.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: given.cores]))
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(given.cores)
    os.environ["JAX_ENABLE_X64"] = "true"
    if given.only != "sketches":
        solvers(given)
    if given.only != "solvers":
        sketches(given)


def say(case, solver, **found):
    print(json.dumps({"case": case, "solver": solver, **found}), flush=True)


def timed(calls, repeats):
    """Medians of wall seconds per call, the calls taken in turn; and the first call of each.

    LAPACK inside a JAX program gets one thread: more of them spin against XLA's. NumPy and SciPy get all.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    first, times, answers = {}, {name: [] for name in calls}, {}
    for repeat in range(-1, repeats):
        for name, call in calls.items():
            with threadpool_limits(1 if name.startswith("lrjax") else None):
                time.sleep(0.2)  # threads of the library before spin for a while after their work
                begun = time.perf_counter()
                answers[name] = call()
                took = time.perf_counter() - begun
            first.setdefault(name, took)
            if repeat >= 0:
                times[name].append(took)
    return {name: float(np.median(took)) for name, took in times.items()}, first, answers


def matrix(kind, n, d, rng):
    """A tall matrix: Gaussian, with a few rows that carry almost everything, or of a given condition number."""
    import numpy as np

    a = rng.standard_normal((n, d))
    if kind == "coherent":
        a[:20] *= 1e3
    elif kind.startswith("condition"):
        a = (a * np.geomspace(1, 1 / float(kind.split()[1]), d)) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    return a


def solvers(given):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import scipy.linalg

    import lrjax as lr

    key = jax.random.key(0)
    shapes = ((2**12, 32),) if given.quick else ((2**17, 256), (2**20, 64))
    for n, d in shapes:
        for kind in ("gaussian", "coherent", "condition 1e6", "condition 1e10", "condition 1e14"):
            rng = np.random.default_rng(0)
            a = matrix(kind, n, d, rng)
            b = a @ rng.standard_normal(d) + rng.standard_normal(n)
            device = jnp.asarray(a), jnp.asarray(b)

            def ours(method, device=device, **options):
                return lambda: jax.block_until_ready(lr.lstsq(*device, key, method=method, **options))

            def qr(a=a, b=b):
                q, r = scipy.linalg.qr(a, mode="economic", check_finite=False)
                return scipy.linalg.solve_triangular(r, q.T @ b)

            calls = {
                "NumPy lstsq (gelsd)": lambda a=a, b=b: np.linalg.lstsq(a, b, rcond=np.finfo(float).eps)[0],
                "SciPy QR": qr,
                "NumPy normal equations": lambda a=a, b=b: np.linalg.solve(a.T @ a, a.T @ b),
                "lrjax auto": ours("auto"),
                "lrjax cholesky_qr, sketched": ours("cholesky_qr", sketch="sparse_sign"),
                "lrjax fossils": ours("fossils"),
                "lrjax lsqr": ours("lsqr"),
                "lrjax iterative_sketching": ours("iterative_sketching"),
                "lrjax sketch_and_solve": ours("sketch_and_solve"),
                "lrjax direct": ours("direct"),
            }
            hard = kind.split()[-1] in ("1e10", "1e14")  # accuracy only
            repeats = 1 if given.quick or hard else given.repeats
            times, first, answers = timed(calls, repeats)
            truth = answers["SciPy QR"]
            sizes, right = np.linalg.svd(scipy.linalg.qr(a, mode="r", check_finite=False)[0][:d])[1:]
            for name, answer in answers.items():
                x = np.asarray(getattr(answer, "x", answer))
                residual = b - a @ x
                gradient = right @ (a.T @ residual)
                mu = (residual @ residual) / (x @ x)
                error = np.sqrt(np.sum(gradient**2 / (sizes**2 + mu))) / np.linalg.norm(x) / sizes[0]
                more = {}
                if hasattr(answer, "method"):
                    more = {"steps": int(answer.num_steps), "sketched": bool(answer.sketched),
                            "status": int(answer.status), "compile": first[name] - times[name]}  # fmt: skip
                say({"kind": "regression", "n": n, "d": d, "input": kind, "cores": given.cores}, name,
                    seconds=times[name], residual=float(np.linalg.norm(residual)), backward=float(error),
                    difference=float(np.linalg.norm(x - truth) / np.linalg.norm(truth)),
                    **more)  # fmt: skip


def sketches(given):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import scipy.linalg

    import lrjax as lr
    from lrjax.linalg.hadamard import hadamard_transform

    n, d, m = (2**12, 32, 256) if given.quick else (2**17, 256, 4096)
    for dtype in ("float64", "float32"):
        host = np.random.default_rng(0).standard_normal((n, d)).astype(dtype)
        a = jnp.asarray(host)
        case = {"kind": "sketch", "n": n, "d": d, "rows": m, "dtype": dtype, "cores": given.cores}
        read = jax.jit(lambda a: jnp.sum(a, axis=0))
        calls = {
            "read of a": lambda a=a, read=read: jax.block_until_ready(read(a)),
            "SciPy CountSketch": lambda h=host: scipy.linalg.clarkson_woodruff_transform(h, m, rng=0),
        }
        makers = {
            "CountSketch": lr.sketching.CountSketch,
            "SparseSignSketch, 8 nonzeros": lr.sketching.SparseSignSketch,
            "BlockSRHT": lr.sketching.BlockSRHT,
            "SRHT": lr.sketching.SRHT,
            "SRDCT": lr.sketching.SRDCT,
            "PooledSketch": lr.sketching.PooledSketch,
        }
        for name, maker in makers.items():
            # Drawn and applied in one program, as SciPy does.
            both = jax.jit(lambda key, a, maker=maker: maker.create(key, m, n).apply(a))
            calls[f"lrjax {name}"] = lambda a=a, both=both: jax.block_until_ready(both(jax.random.key(0), a))
        transform = jax.jit(hadamard_transform)
        calls["lrjax Hadamard transform"] = lambda a=a, transform=transform: jax.block_until_ready(transform(a))
        times, first, _ = timed(calls, 1 if given.quick else given.repeats)
        for name, took in times.items():
            say(case, name, seconds=took, gigabytes_per_second=1e-9 * host.nbytes / took,
                share_of_read=times["read of a"] / took, compile=first[name] - took)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
