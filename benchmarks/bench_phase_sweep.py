"""A phase transition of 10,000 robust solves in one `lr.sweep`: killed twice, resumed, compared bit for bit.

Workload: symmetric l1 sensing, d = 20, rank 3, an ensemble of its own for every solve, 400 geometric subgradient steps;
ten shares of outliers times ten numbers of measurements (60 to 600, by weights) times `--trials`. Beside it the same
iterations as a NumPy loop (`--numpy-problems` of them at each number of measurements, the rest extrapolated) and one
vmap over `--lanes` solves (extrapolated too: all at once would need their ensembles at once). Run:
`python benchmarks/bench_phase_sweep.py [--trials 100] [--out FOLDER]`; figures are seconds for all solves, compilation
apart for ours.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE, RANK, MOST, STEPS = 20, 3, 600, 400
STEP, DECAY, SCALE = 0.25, 0.97, 1e-3
OUTLIERS = [0.05 * i for i in range(10)]
MEASUREMENTS = list(range(60, MOST + 1, 60))


def trial_function():
    import jax
    import jax.numpy as jnp

    import lrjax as lr

    rule = lr.step_sizes.Geometric(value=STEP, decay=DECAY)
    solver = lr.SubgradientMethod(
        max_rank=RANK, symmetric=True, relative=False, hidden_scale=1.0, initial_scale=SCALE, step_size=rule
    )

    def trial(key, corruption, num_measurements):
        truth_key, problem_key = jax.random.split(key)
        operator = lr.operators.DenseEnsemble.gaussian(key, (SIZE, SIZE), MOST, symmetric=True)
        truth = lr.synthetic.low_rank(truth_key, (SIZE, SIZE), RANK, symmetric=True)
        problem = lr.synthetic.from_truth(problem_key, operator, truth, corruption=corruption)
        weights = (jnp.arange(MOST) < num_measurements).astype(problem.y.dtype)
        problem = lr.Problem(operator, problem.y, weights, problem.loss)
        solution = lr.solve(problem, solver, key, num_steps=STEPS, record_every=STEPS)
        return {"error": lr.metrics.relative_error(solution.factors, truth)}

    return trial


def sweep(folder, trials):
    """The whole sweep in this process, into `folder`; prints its seconds."""
    import jax

    import lrjax as lr

    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    jax.config.update("jax_enable_x64", True)
    grid = {"corruption": OUTLIERS, "num_measurements": MEASUREMENTS}
    table = lr.sweep(trial_function(), jax.random.key(0), grid=grid, num_trials=trials, checkpoint=folder)
    print(json.dumps({name: table.attrs[name] for name in ("seconds", "compile_seconds", "batch_sizes")}))


def naive(lanes):
    """Seconds a solve of one vmap over `lanes` of them."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    trial = trial_function()
    run = jax.jit(jax.vmap(lambda key, p, m: trial(key, p, m)["error"]))
    index = jnp.arange(lanes)
    p, m = jnp.asarray(OUTLIERS)[index % 10], jnp.asarray(MEASUREMENTS)[index // 10 % 10]
    keys = jax.random.split(jax.random.key(0), lanes)
    compiled = run.lower(keys, p, m).compile()
    begun = time.perf_counter()
    jax.block_until_ready(compiled(keys, p, m))
    print((time.perf_counter() - begun) / lanes)


def numpy_loop(problems):
    """Seconds a solve, of `problems` at each number of measurements, as a user would write them."""
    import numpy as np

    rng, spent = np.random.default_rng(0), 0.0
    for m in MEASUREMENTS:
        for _ in range(problems):
            factor = np.linalg.qr(rng.standard_normal((SIZE, RANK)))[0]
            begun = time.perf_counter()
            a = rng.standard_normal((m, SIZE * SIZE))
            y = a @ (factor @ factor.T).ravel()
            wrong = rng.random(m) < 0.2
            y = np.where(wrong, y + 10 * np.std(y) * rng.standard_normal(m), y)
            u = SCALE * factor
            for t in range(STEPS):
                residual = a @ (u @ u.T).ravel() - y
                direction = (np.sign(residual) @ a).reshape(SIZE, SIZE) / m
                u = u - STEP * DECAY**t * (direction + direction.T) @ u
            spent += time.perf_counter() - begun
    return spent / (problems * len(MEASUREMENTS))


def child(*arguments, **options):
    return subprocess.Popen([sys.executable, __file__, *map(str, arguments)], text=True, **options)


def answer(process):
    out = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{process.args} ended with {process.returncode}")
    return json.loads(out.splitlines()[-1])


def killed_twice(folder, trials):
    """Runs the sweep, kills it when a third and two thirds are on the disk, and lets the third run end."""
    from lrjax.sweeps.checkpoint import read_parts

    count = lambda: sum(len(next(iter(a.values()))) for _, chunks in read_parts(folder, 0) for a in chunks.values())
    for share in (1 / 3, 2 / 3):
        process = child("--run", folder, "--trials", trials, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (Path(folder, "plan.json").exists() and count() >= share * trials * 100):
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed with {count()} of {100 * trials} solves on the disk", flush=True)
    return answer(child("--run", folder, "--trials", trials, stdout=subprocess.PIPE))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100, help="at each of the 100 points")
    parser.add_argument("--numpy-problems", type=int, default=3, help="at each number of measurements")
    parser.add_argument("--lanes", type=int, default=1000, help="of the one vmap")
    parser.add_argument("--out", type=Path, default=None, help="folder for phase_sweep.json")
    parser.add_argument("--run", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--naive", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.update(OPENBLAS_NUM_THREADS="1", PJRT_NPROC="16", NPROC="16")
    if given.run:
        return sweep(given.run, given.trials)
    if given.naive:
        return naive(given.lanes)

    import numpy as np

    import lrjax as lr

    solves = 100 * given.trials
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as broken:
        found = answer(child("--run", whole, "--trials", given.trials, stdout=subprocess.PIPE))
        resumed = killed_twice(broken, given.trials)
        tables = [np.asarray(lr.load_sweep(folder)["error"].values) for folder in (whole, broken)]
    found |= {
        "solves": solves,
        "seconds": found["seconds"] - found["compile_seconds"],
        "last_run": resumed["seconds"],
        "bits_equal": bool(tables[0].tobytes() == tables[1].tobytes()),
        "recovered": np.mean(tables[0] < 1e-3, axis=2).tolist(),
        "numpy": solves * numpy_loop(given.numpy_problems),
        "numpy_measured": 10 * given.numpy_problems,
        "naive": solves * answer(child("--naive", "--lanes", given.lanes, stdout=subprocess.PIPE)),
        "naive_measured": given.lanes,
    }
    print(f"{solves} solves, killed twice and resumed: {'the same bits' if found['bits_equal'] else 'DIFFERENT BITS'}")
    print(f"lrjax {found['seconds']:.0f} s and {found['compile_seconds']:.1f} s of compiling")
    print(
        f"NumPy loop {found['numpy']:.0f} s (from {found['numpy_measured']}): {found['numpy'] / found['seconds']:.1f}x"
    )
    print(f"one vmap {found['naive']:.0f} s (from {given.lanes} lanes): {found['naive'] / found['seconds']:.1f}x")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "phase_sweep.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
