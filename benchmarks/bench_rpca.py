"""Robust PCA of 1,000 x 1,000, rank 10, 10 % gross outliers to 1e-6, beside an augmented Lagrangian method in NumPy.

Run: `OPENBLAS_NUM_THREADS=1 python benchmarks/bench_rpca.py [--condition-number 1] [--corruption 0.1] [--max-rank 10]`.
Prints processor and wall seconds (compile apart), steps and errors of both; the NumPy method with warm subspaces of 20
columns, and with `--full` also with full singular value decompositions.
"""

import argparse
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=10)
    parser.add_argument("--max-rank", type=int, default=None)
    parser.add_argument("--corruption", type=float, default=0.1)
    parser.add_argument("--condition-number", type=float, default=1.0)
    parser.add_argument("--goal", type=float, default=1e-6)
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()

    import jax
    import numpy as np
    from _baselines import inexact_alm

    import lrjax as lr

    jax.config.update("jax_enable_x64", True)
    key_truth, key_errors, key = jax.random.split(jax.random.key(0), 3)
    shape = (given.n, given.n)
    truth = lr.synthetic.low_rank(key_truth, shape, given.rank, condition_number=given.condition_number)
    operator = lr.operators.Identity(matrix_shape=shape)
    problem = lr.synthetic.from_truth(key_errors, operator, truth, corruption=given.corruption)
    solver = lr.AlternatingProjections(max_rank=given.max_rank or given.rank)
    errors = np.asarray(lr.solve(problem, solver, key, num_steps=60, truth=truth).trace["relative_error"])
    if errors.min() > given.goal:
        raise SystemExit(f"not reached: error {errors.min():.1e}")
    steps = int(np.argmax(errors <= given.goal))

    def clock(call):
        processor, wall = time.process_time(), time.perf_counter()
        result = call()
        return result, time.process_time() - processor, time.perf_counter() - wall

    def ours():
        return jax.block_until_ready(lr.solve(problem, solver, key, num_steps=steps, record_every=steps, truth=truth))

    solution, _, first = clock(ours)
    solution, processor, wall = min((clock(ours) for _ in range(5)), key=lambda run: run[1])
    error = float(solution.trace["relative_error"][-1])
    print(f"lrjax: {processor:.3f} processor s, {wall:.3f} s, {steps} steps, error {error:.1e}, compile {first:.1f} s")
    y, x = np.asarray(problem.y).reshape(shape), np.asarray(truth.dense())
    variants = [("NumPy, 20 warm columns", 20)] + ([("NumPy, full SVD", None)] if given.full else [])
    for name, columns in variants:
        (low, taken), seconds, wall = clock(lambda columns=columns: inexact_alm(y, columns=columns))
        error = np.linalg.norm(low - x) / np.linalg.norm(x)
        ratio = seconds / processor
        print(
            f"{name}: {seconds:.3f} processor s, {wall:.3f} s, {taken} steps, error {error:.1e}: {ratio:.1f} times ours"
        )


if __name__ == "__main__":
    main()
