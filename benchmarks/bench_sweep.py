"""A sweep of robust sensing problems, one compile, beside a plain NumPy loop of the same iterations on one core.

Workload: symmetric l1 sensing, d = 20, rank 3, m = 600, 30 % outliers, 800 geometric subgradient steps, an ensemble of
its own for every problem. Run: `python benchmarks/bench_sweep.py [--problems 1000] [--dtype float64]`; add
`--devices 1` to keep JAX on one core as well. Prints medians; with `--json` a line of them at the end, which is what
`python -m benchmarks --suite sweep` stores.
"""

import argparse
import json
import os
import statistics
import time

D, RANK, M, STEPS, OUTLIERS = 20, 3, 600, 800, 0.3
STEP, DECAY, SCALE = 0.25, 0.985, 1e-3


def numpy_solve(a, y, start):
    """The same iterations as a user would write them."""
    import numpy as np

    flat, u = a.reshape(M, D * D), start
    for t in range(STEPS):
        residual = flat @ (u @ u.T).ravel() - y
        direction = (np.sign(residual) @ flat).reshape(D, D) / M
        u = u - STEP * DECAY**t * (direction + direction.T) @ u
    return u


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--devices", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--numpy-problems", type=int, default=10, help="problems per NumPy timing (then scaled)")
    parser.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    given = parser.parse_args()
    os.environ.update(OPENBLAS_NUM_THREADS="1", PJRT_NPROC="16", NPROC="16")

    import jax
    import numpy as np

    import lrjax as lr

    jax.config.update("jax_num_cpu_devices", given.devices)
    jax.config.update("jax_enable_x64", given.dtype == "float64")
    rule = lr.step_sizes.Geometric(value=STEP, decay=DECAY)
    solver = lr.SubgradientMethod(
        max_rank=RANK, symmetric=True, relative=False, hidden_scale=1.0, initial_scale=SCALE, step_size=rule
    )

    def trial(key):
        problem, truth = lr.synthetic.matrix_sensing(
            key, shape=(D, D), rank=RANK, num_measurements=M, symmetric=True, corruption=OUTLIERS
        )
        solution = lr.solve(problem, solver, key, num_steps=STEPS, record_every=STEPS)
        return lr.metrics.relative_error(solution.factors, truth)

    mesh = jax.make_mesh((len(jax.devices()),), ("trial",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("trial")
    one_device = lambda keys: jax.lax.map(trial, keys)
    if jax.default_backend() != "cpu":
        one_device = jax.vmap(trial)
    sweep = jax.jit(jax.shard_map(one_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    count = given.problems // len(jax.devices()) * len(jax.devices())
    keys = jax.random.split(jax.random.key(0), count)

    begun = time.perf_counter()
    compiled = sweep.lower(keys).compile()
    print(
        f"lrjax: one compile, {time.perf_counter() - begun:.1f} s, {len(jax.devices())} {jax.devices()[0].device_kind}"
    )
    times, errors = [], None
    for _ in range(given.repeats):
        begun = time.perf_counter()
        errors = np.asarray(compiled(keys))
        times.append(time.perf_counter() - begun)
    ours = statistics.median(times) / count
    print(f"lrjax: {1000 * ours:.2f} s per 1000 problems (runs {', '.join(f'{t:.1f}' for t in times)} s)")
    print(f"       median error {np.median(errors):.1e}, {np.mean(errors < 1e-3):.1%} below 1e-3")

    rng, loop = np.random.default_rng(0), []
    for _ in range(given.repeats):
        factor = np.linalg.qr(rng.standard_normal((D, RANK)))[0]
        a = rng.standard_normal((M, D, D)).astype(given.dtype)
        y = np.einsum("mij,ik,jk->m", a, factor, factor)
        y = np.where(rng.random(M) < OUTLIERS, y + 10 * np.std(y) * rng.standard_normal(M), y).astype(given.dtype)
        start = (SCALE * factor + 0.1 * SCALE * rng.standard_normal((D, RANK))).astype(given.dtype)
        begun = time.perf_counter()
        for _ in range(given.numpy_problems):
            numpy_solve(a, y, start)
        loop.append((time.perf_counter() - begun) / given.numpy_problems)
    theirs = statistics.median(loop)
    print(f"NumPy loop, one core: {1000 * theirs:.2f} s per 1000 problems (ensembles given, not drawn)")
    print(f"ratio: {theirs / ours:.2f}")
    if given.json:
        found = {"problems": count, "lrjax": 1000 * ours, "numpy": 1000 * theirs}
        print(json.dumps(found | {"recovered": float(np.mean(errors < 1e-3)), "error": float(np.median(errors))}))


if __name__ == "__main__":
    main()
