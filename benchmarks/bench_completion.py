"""Exact completion of n = 20,000, rank 10, 5x oversampling (2 million entries) to 1e-6 on held-out entries, by phases.

Run: `python benchmarks/bench_completion.py [--dtype float64] [--condition-number 1] [--start spectral]`. Prints host
build, compile and run times apart, time per sweep (median), sweeps, and peak memory of the process.
"""

import argparse
import resource
import statistics
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--rank", type=int, default=10)
    parser.add_argument("--oversampling", type=float, default=5.0)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--condition-number", type=float, default=1.0)
    parser.add_argument("--start", choices=("spectral", "random"), default="spectral")
    parser.add_argument("--goal", type=float, default=1e-6)
    given = parser.parse_args()

    import jax
    import jax.numpy as jnp
    import numpy as np

    import lrjax as lr

    jax.config.update("jax_enable_x64", given.dtype == "float64")
    n, rank, held_out = given.n, given.rank, 100_000
    key_truth, key_entries, key_solve = jax.random.split(jax.random.key(0), 3)
    truth = lr.synthetic.low_rank(key_truth, (n, n), rank, condition_number=given.condition_number)
    count = round(given.oversampling * rank * (2 * n - rank))
    rows, cols, values = lr.synthetic.sampled_entries(key_entries, truth, count + held_out)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    clock = time.perf_counter()
    operator, y = lr.operators.SampledEntries.build(rows[:count], cols[:count], values[:count], (n, n))
    jax.block_until_ready(operator)
    build = time.perf_counter() - clock

    problem = lr.Problem(operator, y)
    solver = lr.AlternatingMinimization(max_rank=rank, start=given.start)
    test = tuple(x[count:] for x in (rows, cols, values))
    scale = np.sqrt(np.mean(test[2] ** 2))
    error = jax.jit(lambda f: jnp.sqrt(jnp.mean((f.entries(test[0], test[1]) - test[2]) ** 2)) / scale)

    def run():
        """Seconds of the start, of every sweep, and the error reached."""
        steps, clock = [], time.perf_counter()
        for solution in lr.iterate(problem, solver, key_solve, num_steps=100):
            jax.block_until_ready(solution.factors)
            steps.append(time.perf_counter() - clock)
            reached = float(error(solution.factors))
            if reached <= given.goal:
                break
            clock = time.perf_counter()
        return steps, reached, solution

    cold, _, _ = run()
    warm, reached, solution = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{count:,} entries, n = {n:,}, rank {rank}, {given.dtype}, condition {given.condition_number:g}")
    print(f"host build    {build:7.2f} s")
    print(f"compile       {cold[0] + cold[1] - warm[0] - warm[1]:7.2f} s")
    print(f"start         {warm[0]:7.2f} s")
    sweep = statistics.median(warm[1:])
    print(f"sweeps        {sum(warm[1:]):7.2f} s: {len(warm) - 1}, median {sweep:.3f} s")
    print(f"held-out relative error {reached:.1e}, status {lr.status.message(int(solution.status)).split(';')[0]}")
    print(f"peak memory {peak / 2**20:.2f} GiB (before the build {before / 2**20:.2f} GiB)")


if __name__ == "__main__":
    main()
