"""Inputs of the benchmarks: made on the host with NumPy from a seed, kept as files that every process reads.

A case is described by a small dictionary, its spec; `make(spec)` turns it into a `Case`, and `load(spec)` does so
through the cache. Specs are what results are filed under, so they hold plain numbers and text only.
"""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

CACHE = Path(os.environ.get("LRJAX_BENCH_CACHE", Path(__file__).parent.parent / ".benchmarks" / "cases"))
HELD_OUT = 100_000


class Case(NamedTuple):
    """One input. Dense cases (robust PCA) hold the matrix in `values` and no indices."""

    spec: dict
    shape: tuple[int, int]
    rank: int
    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    test_rows: np.ndarray  # empty: the error is that of the whole matrix, from the factors below
    test_cols: np.ndarray
    test_values: np.ndarray
    left: np.ndarray  # the truth, or empty where there is none
    right: np.ndarray

    def error(self, left: np.ndarray, right: np.ndarray | None = None) -> float:
        """Held-out error of `left @ right.T`, or of a dense `left`: relative, or as RMSE for ratings."""
        with np.errstate(all="ignore"):
            if not self.test_rows.size:
                left, right, truth = np.asarray(left), right, self.left @ self.right.T
                estimate = left if right is None else left @ np.asarray(right).T
                return float(np.linalg.norm(estimate - truth) / np.linalg.norm(truth))
            square = 0.0
            for at in range(0, self.test_rows.size, 2**18):
                part = slice(at, at + 2**18)
                i, j = self.test_rows[part], self.test_cols[part]
                got = left[i, j] if right is None else np.einsum("mk,mk->m", left[i], right[j])
                square += float(np.sum((got - self.test_values[part]) ** 2, dtype=np.float64))
            scale = 1.0 if self.spec.get("metric") == "rmse" else np.mean(self.test_values.astype(np.float64) ** 2)
            return float(np.sqrt(square / self.test_rows.size / scale))


def make(spec: dict) -> Case:
    """Generates the case; the same spec always gives the same arrays."""
    return {
        "completion": _completion,
        "phase": _phase,
        "rpca": _rpca,
        "ratings": _skewed_ratings,
    }[spec["kind"]](spec)


def load(spec: dict) -> Case:
    """`make`, or the file that an earlier call wrote."""
    text = json.dumps(spec, sort_keys=True)
    path = CACHE / f"{spec['kind']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        case = make(spec)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with partial.open("wb") as file:
            np.savez(file, **{name: getattr(case, name) for name in Case._fields[3:]})
        partial.replace(path)
        return case
    with np.load(path) as file:
        arrays = {name: file[name] for name in Case._fields[3:]}
    return Case(spec, _shape(spec), spec["rank"], **arrays)


def _shape(spec: dict) -> tuple[int, int]:
    return spec.get("n1", spec.get("n")), spec.get("n2", spec.get("n"))


def _rng(spec):
    # Not `default_rng(seed)`: a solver that draws its start from the same seed would start at the truth.
    return np.random.default_rng([73021, spec["seed"]])


def truth(rng, shape, rank, condition):
    """Random factors, singular values evenly spaced in the logarithm, entries of mean square one."""
    values = np.geomspace(1.0, 1.0 / condition, rank)
    values *= np.sqrt(shape[0] * shape[1] / np.sum(values**2))
    left, right = (np.linalg.qr(rng.standard_normal((n, rank)))[0] * np.sqrt(values) for n in shape)
    return left, right


def distinct_entries(rng, shape, count, skew=False):
    """`rows, cols` of distinct entries in random order: uniform, or with popularities like `(i + 1)^-1/2`."""
    n1, n2 = shape
    if count > n1 * n2 * 0.8:
        raise ValueError(f"{count} entries are more than 80 % of {n1} x {n2}")
    draw = (lambda n, m: np.minimum((n * rng.random(m) ** 2).astype(np.int64), n - 1)) if skew else rng.integers
    codes = np.empty(0, np.int64)
    while codes.size < count:
        more = draw(n1, count) * n2 + draw(n2, count) if skew else draw(0, n1 * n2, count)
        codes = np.unique(np.concatenate([codes, more]))
    codes = rng.permutation(codes)[:count]
    return (codes // n2).astype(np.int32), (codes % n2).astype(np.int32)


def entries_of(left, right, rows, cols):
    """Entries of `left @ right.T`, in parts."""
    parts = [np.einsum("mk,mk->m", left[rows[at : at + 2**18]], right[cols[at : at + 2**18]])
             for at in range(0, rows.size, 2**18)]  # fmt: skip
    return np.concatenate(parts)


@functools.cache
def _determined(text):
    import lrjax as lr

    case = load(json.loads(text))
    return not any(side.any() for side in lr.diagnostics.undetermined(case.rows, case.cols, case.shape, case.rank))


def determined(spec: dict) -> bool:
    """Whether the mask of a case can determine a matrix of its rank at all."""
    return _determined(json.dumps(spec, sort_keys=True))


def _completion(spec):
    """Entries of a planted matrix, uniformly at random; noise and outliers in units of the clean entries' size."""
    rng, shape, rank = _rng(spec), _shape(spec), spec["rank"]
    left, right = truth(rng, shape, rank, spec["condition"])
    count = round(spec["oversampling"] * rank * (sum(shape) - rank))
    test = min(HELD_OUT, shape[0] * shape[1] * 3 // 4 - count)
    rows, cols = distinct_entries(rng, shape, count + test)
    clean = entries_of(left, right, rows, cols)
    values = clean[:count] + spec.get("noise", 0.0) * rng.standard_normal(count)
    hit = rng.random(count) < spec.get("outliers", 0.0)
    values = np.where(hit, values + 10 * rng.standard_normal(count), values).astype(spec["dtype"])
    return Case(spec, shape, rank, rows[:count], cols[:count], values, rows[count:], cols[count:], clean[count:],
                left, right)  # fmt: skip


def _phase(spec):
    """As `_completion`, few samples, with at least `rank` entries in every row and column; error of all entries.

    Drawing again until every row and column has that many would not end at low oversampling (10 entries a row on
    average, a thousand rows). So entries are drawn once, and then rows and columns that are short get entries of
    others that have more than they need, at random.
    """
    rng, shape, rank = _rng(spec), _shape(spec), spec["rank"]
    left, right = truth(rng, shape, rank, spec["condition"])
    count = round(spec["oversampling"] * rank * (sum(shape) - rank))
    mask = np.zeros(shape, bool)
    mask[distinct_entries(rng, shape, count)] = True
    fill_short_lines(rng, mask, rank)
    rows, cols = (index.astype(np.int32) for index in np.nonzero(mask))
    values = entries_of(left, right, rows, cols).astype(spec["dtype"])
    none = np.empty(0, np.int32)
    return Case(spec, shape, rank, rows, cols, values, none, none, np.empty(0), left, right)


def fill_short_lines(rng, mask, least):
    """Moves entries of a boolean mask, in place, until every row and column has at least `least`."""
    for _ in range(10_000):
        by_row, by_col = mask.sum(1), mask.sum(0)
        short_rows, short_cols = np.flatnonzero(by_row < least), np.flatnonzero(by_col < least)
        if not short_rows.size and not short_cols.size:
            return
        spare = np.flatnonzero(mask & (by_row > least)[:, None] & (by_col > least)[None, :])
        i = rng.choice(short_rows) if short_rows.size else rng.integers(mask.shape[0])
        free = np.flatnonzero(~mask[i])
        short = np.intersect1d(free, short_cols, assume_unique=True)
        mask[i, rng.choice(short if short.size else free)] = True
        mask.ravel()[rng.choice(spare)] = False
    raise ValueError(f"{mask.sum()} entries are too few for {least} in every row and column of {mask.shape}")


def _rpca(spec):
    """A dense low-rank matrix with gross outliers at random places, up to ten times an entry's size."""
    rng, shape, rank = _rng(spec), _shape(spec), spec["rank"]
    left, right = truth(rng, shape, rank, spec.get("condition", 1.0))
    hit = rng.random(shape) < spec["outliers"]
    y = left @ right.T + np.where(hit, rng.uniform(-10, 10, shape), 0)
    none = np.empty(0, np.int32)
    return Case(spec, shape, rank, none, none, y.astype(spec["dtype"]), none, none, np.empty(0), left, right)


def _skewed_ratings(spec):
    """Synthetic ratings 1..5: skewed popularity, biases, a planted rank-20 part and noise; biases removed.

    The values are what is left after a mean and damped row and column means, the same for every method: the cases
    time and compare the low-rank fit alone. Held-out entries (a tenth) are on the same footing, so their root mean
    square is the error of the biases alone.
    """
    rng, shape = _rng(spec), _shape(spec)
    count = round(spec["entries"] / 0.9)
    rows, cols = distinct_entries(rng, shape, count, skew=True)
    rows, cols = rng.permutation(shape[0])[rows].astype(np.int32), rng.permutation(shape[1])[cols].astype(np.int32)
    left, right = (rng.standard_normal((n, 20)) / 20**0.25 for n in shape)
    values = 3.5 + 0.35 * rng.standard_normal(shape[0])[rows] + 0.45 * rng.standard_normal(shape[1])[cols]
    values += 0.55 * entries_of(left, right, rows, cols) + 0.8 * rng.standard_normal(count)
    values = np.clip(np.rint(values), 1, 5)
    train = slice(0, spec["entries"])
    mean, row_bias, col_bias = biases(rows[train], cols[train], values[train], shape)
    values -= mean + row_bias[rows] + col_bias[cols]
    kept, held = slice(0, spec["entries"]), slice(spec["entries"], None)
    blank = np.empty((0, spec["rank"]))
    return Case(spec, shape, spec["rank"], rows[kept], cols[kept], values[kept].astype(spec["dtype"]), rows[held],
                cols[held], values[held], blank, blank)  # fmt: skip


def biases(rows, cols, values, shape, damping=10.0, sweeps=10):
    """Mean, and row and column means of what it leaves, damped as if `damping` more entries of each were zero."""
    mean = values.mean()
    row_bias, col_bias = np.zeros(shape[0]), np.zeros(shape[1])
    row_count, col_count = (np.bincount(x, minlength=n) + damping for x, n in zip((rows, cols), shape, strict=True))
    for _ in range(sweeps):
        row_bias = np.bincount(rows, values - mean - col_bias[cols], shape[0]) / row_count
        col_bias = np.bincount(cols, values - mean - row_bias[rows], shape[1]) / col_count
    return mean, row_bias, col_bias
