"""Sweeps of robust sensing problems by `lr.sweep`, beside NumPy loops of the same iterations.

Workload: symmetric l1 sensing, d = 20, rank 3, m = 600, 30 % outliers, 800 geometric subgradient steps; an ensemble of
its own for every problem, or one for all (`--shared`). The NumPy loops, on one core and as two processes at once, are
given their ensembles and starts; ours are drawn in the trial. Run: `python benchmarks/bench_sweep.py
[--problems 1000] [--dtype float64] [--size 20] [--shared] [--naive]`; `--devices 1` keeps JAX on one core as well.
With `--json` the last line is what `python -m benchmarks --suite sweep` stores.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

RANK, STEPS, OUTLIERS = 3, 800, 0.3
STEP, DECAY, SCALE = 0.25, 0.985, 1e-3


def numpy_loop(size, measurements, dtype, problems, seed):
    """Seconds a problem of the iterations as a user would write them."""
    import numpy as np

    rng = np.random.default_rng(seed)
    factor = np.linalg.qr(rng.standard_normal((size, RANK)))[0]
    a = rng.standard_normal((measurements, size, size)).astype(dtype)
    y = np.einsum("mij,ik,jk->m", a, factor, factor)
    wrong = rng.random(measurements) < OUTLIERS
    y = np.where(wrong, y + 10 * np.std(y) * rng.standard_normal(measurements), y).astype(dtype)
    flat, start = a.reshape(measurements, -1), (SCALE * factor).astype(dtype)
    begun = time.perf_counter()
    for _ in range(problems):
        u = start
        for t in range(STEPS):
            residual = flat @ (u @ u.T).ravel() - y
            direction = (np.sign(residual) @ flat).reshape(size, size) / measurements
            u = u - STEP * DECAY**t * (direction + direction.T) @ u
    return (time.perf_counter() - begun) / problems


def workload(size, measurements, steps=STEPS, dtype=None):
    """The trial that `lr.sweep` runs: an ensemble of its own unless one is shared, a truth, gross errors, a solve."""
    import jax

    import lrjax as lr

    rule = lr.step_sizes.Geometric(value=STEP, decay=DECAY)
    solver = lr.SubgradientMethod(
        max_rank=RANK, symmetric=True, relative=False, hidden_scale=1.0, initial_scale=SCALE, step_size=rule
    )

    def trial(key, shared=None):
        truth_key, problem_key = jax.random.split(key)
        operator = shared
        if operator is None:
            operator = lr.operators.DenseEnsemble.gaussian(key, (size, size), measurements, symmetric=True, dtype=dtype)
        truth = lr.synthetic.low_rank(truth_key, (size, size), RANK, symmetric=True, dtype=dtype)
        problem = lr.synthetic.from_truth(problem_key, operator, truth, corruption=OUTLIERS)
        solution = lr.solve(problem, solver, key, num_steps=steps, record_every=steps)
        return {"error": lr.metrics.relative_error(solution.factors, truth)}

    return trial


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--size", type=int, default=20, help="d; measurements are 10 rank d")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--shared", action="store_true", help="one ensemble for all problems")
    parser.add_argument("--naive", action="store_true", help="one vmap over all problems as well")
    parser.add_argument("--devices", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--numpy-problems", type=int, default=10, help="problems per NumPy timing (then scaled)")
    parser.add_argument("--numpy-only", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    given = parser.parse_args()
    size, measurements = given.size, 10 * RANK * given.size
    os.environ.update(OPENBLAS_NUM_THREADS="1", PJRT_NPROC="16", NPROC="16")
    if given.numpy_only is not None:
        print(numpy_loop(size, measurements, given.dtype, given.numpy_problems, given.numpy_only))
        return

    import jax
    import numpy as np

    import lrjax as lr

    jax.config.update("jax_num_cpu_devices", given.devices)
    jax.config.update("jax_enable_x64", given.dtype == "float64")
    trial = workload(size, measurements)
    key = jax.random.key(0)
    ensemble = lr.operators.DenseEnsemble.gaussian(key, (size, size), measurements, symmetric=True)
    shared = ensemble if given.shared else None
    times, errors, attrs = [], None, {}
    for _ in range(given.repeats):
        table = lr.sweep(trial, key, grid={}, num_trials=given.problems, shared=shared, progress=False)
        attrs = table.attrs
        times.append((attrs["seconds"] - attrs["compile_seconds"]) / given.problems)
        errors = np.asarray(table["error"])
    found = {
        "problems": given.problems,
        "size": size,
        "shared": given.shared,
        "batch": attrs["batch_sizes"][0],
        "compile": attrs["compile_seconds"],
        "lrjax": 1000 * statistics.median(times),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "recovered": float(np.mean(errors < 1e-3)),
        "error": float(np.median(errors)),
    }
    if given.naive:
        lanes = jax.jit(jax.vmap(lambda key: trial(key, shared)["error"]))
        keys = jax.random.split(key, given.problems)
        compiled = lanes.lower(keys).compile()
        begun = time.perf_counter()
        jax.block_until_ready(compiled(keys))
        found["naive"] = 1000 * (time.perf_counter() - begun) / given.problems
    alone = [numpy_loop(size, measurements, given.dtype, given.numpy_problems, seed) for seed in range(given.repeats)]
    found["numpy"] = 1000 * statistics.median(alone)
    pair = []
    for repeat in range(given.repeats):
        arguments = [sys.executable, __file__, "--dtype", given.dtype, "--size", str(size)]
        arguments += ["--numpy-problems", str(given.numpy_problems), "--numpy-only"]
        both = [subprocess.Popen([*arguments, str(2 * repeat + i)], stdout=subprocess.PIPE, text=True) for i in (0, 1)]
        pair.append(max(float(process.communicate()[0]) for process in both) / 2)
    found["numpy_two"] = 1000 * statistics.median(pair)

    kind = "one ensemble for all" if given.shared else "an ensemble each"
    print(f"{given.problems} problems of d = {size}, {given.dtype}, {kind}; seconds per 1000, {given.repeats} runs")
    print(f"lrjax {found['lrjax']:.2f} (compile {found['compile']:.1f} s apart, batches of {found['batch']})")
    print(f"NumPy loop, one core {found['numpy']:.2f}, ratio {found['numpy'] / found['lrjax']:.2f}")
    print(f"NumPy, two processes {found['numpy_two']:.2f}, ratio {found['numpy_two'] / found['lrjax']:.2f}")
    if given.naive:
        print(f"one vmap over all {found['naive']:.2f}, ratio {found['naive'] / found['lrjax']:.2f}")
    print(f"median error {found['error']:.1e}, {found['recovered']:.1%} below 1e-3; peak {found['memory']:.0f} MiB")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
