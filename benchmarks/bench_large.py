"""Sweeps of alternating minimization on a skewed table of 480,000 x 18,000, from 1 to 100 million entries, rank 32.

`python -m benchmarks --suite large` runs `python -m benchmarks.bench_large FOLDER REPEATS` for every size, one process
each: its peak is that of reading, building and sweeping, not of making the entries.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

SHAPE, RANK = (480_000, 18_000), 32
SIZES = (1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)


def make(folder, count, shape=SHAPE):
    """Distinct entries, popularities like `(i + 1)^-1/2` on both sides, values of mean square one, as `.npy` files."""
    rng, cells = np.random.default_rng(0), shape[0] * shape[1]
    # One bit a cell: the popular ones are drawn many times over.
    taken, found = np.zeros(-(-cells // 8), np.uint8), 0
    while found < count:
        size = min(count - found + count // 10, 20_000_000)
        rows, cols = ((n * rng.random(size) ** 2).astype(np.int64) for n in shape)
        codes = np.unique(rows * shape[1] + cols)
        # `unpackbits` has the first cell of a byte in its highest bit. The bits of one byte are different ones.
        bits, starts = (128 >> (codes % 8)).astype(np.uint8), np.flatnonzero(np.diff(codes // 8, prepend=-1))
        place = codes[starts] // 8
        new = np.add.reduceat(bits, starts) & ~taken[place]
        taken[place] |= new
        found += int(np.bitwise_count(new).sum())
    step = 2**24
    parts = [np.flatnonzero(np.unpackbits(taken[at : at + step])) + 8 * at for at in range(0, len(taken), step)]
    codes = np.concatenate(parts)
    # Sorted codes: every so many of them, not the first.
    codes = codes[np.linspace(0, codes.size - 1, count).astype(np.int64)]
    np.save(folder / "rows.npy", (codes // shape[1]).astype(np.int32))
    np.save(folder / "cols.npy", (codes % shape[1]).astype(np.int32))
    np.save(folder / "values.npy", rng.standard_normal(count, np.float32))


def main():
    folder, repeats = Path(sys.argv[1]), int(sys.argv[2])
    import jax

    import lrjax as lr
    from benchmarks.measure import memory

    rows, cols, values, shape = (np.load(folder / f"{name}.npy") for name in ("rows", "cols", "values", "shape"))
    shape = tuple(int(n) for n in shape)
    begun = time.perf_counter()
    operator, y = lr.operators.SampledEntries.build(rows, cols, values, shape)
    problem = jax.block_until_ready(lr.Problem(operator, y))
    found = {"build": time.perf_counter() - begun}
    del rows, cols, values
    rng = np.random.default_rng(1)
    init = lr.Factors(*(jax.device_put(rng.standard_normal((n, RANK), np.float32)) for n in shape))
    solver = lr.AlternatingMinimization(max_rank=RANK, ridge=1.0, orthonormalize=False)

    def seconds(steps):
        begun = time.perf_counter()
        solution = lr.solve(problem, solver, jax.random.key(0), num_steps=steps, init=init)
        assert np.isfinite(np.asarray(solution.factors.right)).all()
        return time.perf_counter() - begun

    first = seconds(1)
    seconds(2)  # compiled and thrown away
    sweeps = sorted(-seconds(1) + seconds(2) for _ in range(repeats))
    found |= {"first": first, "sweep": sweeps[len(sweeps) // 2], "memory": memory("VmHWM")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
