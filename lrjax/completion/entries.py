"""Entries of a matrix on the host, before anything is laid out: which of them count, and each of them once."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import check_indices, host_array, on_host, real_array

# Up to here a table may be as empty as it likes: a factor column of 2^24 rows is 64 MB.
ROWS_ALWAYS_FINE = 2**24
# Beyond, this many rows and columns per entry are more likely ids taken for positions than a table.
ROWS_PER_ENTRY = 100
INT32_MAX = np.iinfo(np.int32).max


def check_size(shape: tuple[int, int], count: int) -> None:
    """Raises a `ValueError` for a shape that cannot be indexed, or that is out of proportion to its `count` entries."""
    if max(shape) > INT32_MAX:
        raise ValueError(
            f"shape {shape[0]} x {shape[1]} is too large: at most {INT32_MAX} rows and as many columns are possible"
        )
    if sum(shape) > max(ROWS_ALWAYS_FINE, ROWS_PER_ENTRY * count):
        raise ValueError(
            f"shape {shape[0]} x {shape[1]} is out of proportion to {count} entries: nearly every row or column would "
            "be empty. Number those that occur, as numpy.unique(ids, return_inverse=True) does"
        )


def host_indices(name: str, index: Any, bound: int, *, ndim: int | None = None) -> np.ndarray:
    """`index` on the host as int32 if it holds integers in `[0, bound)`; otherwise a `ValueError` that names it."""
    array = on_host(name, check_indices(name, index, bound))
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must be integers with {ndim} dimension(s); got shape {array.shape}")
    return array.astype(np.int32)


def counted(
    rows: Any, cols: Any, values: Any, weights: Any, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """The entries that count, those of positive weight, as NumPy arrays; values in the dtype that JAX gives them.

    Raises:
        ValueError: naming what is no vector of one length, out of range, not finite or out of proportion.
    """
    rows, cols = (host_indices(name, x, n) for name, x, n in (("rows", rows, shape[0]), ("cols", cols, shape[1])))
    values = np.asarray(real_array("values", values))
    if not (rows.shape == cols.shape == values.shape) or values.ndim != 1:
        raise ValueError(
            f"rows, cols and values must be vectors of one length; got {rows.shape}, {cols.shape}, {values.shape}"
        )
    if weights is not None:
        weights = host_array("weights", weights)
        if weights.shape != values.shape:
            raise ValueError(f"weights must have the shape of values, {values.shape}; got {weights.shape}")
        if jnp.issubdtype(weights.dtype, jnp.complexfloating):
            raise ValueError(f"weights must be real; got dtype {weights.dtype}")
        weights = np.asarray(real_array("weights", weights.astype(jnp.promote_types(weights.dtype, values.dtype))))
        if not np.isfinite(weights).all():
            raise ValueError(f"weights must be finite; {int((~np.isfinite(weights)).sum())} are NaN or infinite")
        if (weights < 0).any():
            raise ValueError(f"weights must not be negative; the smallest is {weights.min()}")
        on = weights > 0
        if len(weights) and not on.any():
            raise ValueError("every weight is zero: there are no entries")
        rows, cols, values, weights = rows[on], cols[on], values[on], weights[on].astype(values.dtype)
    if not len(values):
        raise ValueError("rows, cols and values are empty: there are no entries")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"values must be finite where their weight is positive; {bad} are NaN or infinite")
    check_size(shape, len(values))
    return rows, cols, values, weights


def distinct(rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`order`, which sorts the entries by row and column, and `fresh`, true where a new entry begins in that order."""
    order = np.lexsort((cols, rows))
    rows, cols = rows[order], cols[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])
    return order, fresh


def merge(
    rows: np.ndarray, cols: np.ndarray, values: np.ndarray, weights: np.ndarray | None, duplicates: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Every entry once, sorted by row and column; `duplicates` says what becomes of one given more than once.

    Raises:
        ValueError: duplicates that are refused or have weights, or sums beyond the range of the dtype.
    """
    order, fresh = distinct(rows, cols)
    rows, cols, values = rows[order], cols[order], values[order]
    weights = None if weights is None else weights[order]
    if fresh.all():
        return rows, cols, values, weights
    if duplicates == "refuse":
        where = int(np.flatnonzero(~fresh)[0])
        raise ValueError(
            f"{int((~fresh).sum())} entries are given more than once, the first at row {rows[where]}, column "
            f"{cols[where]}; merge them with duplicates='sum' or 'mean'"
        )
    if weights is not None:
        raise ValueError("weights cannot be combined with merged duplicates; merge them beforehand")
    starts = np.flatnonzero(fresh)
    total = np.add.reduceat(values.astype(np.float64), starts)
    if duplicates == "mean":
        total /= np.diff(np.append(starts, len(rows)))
    with np.errstate(over="ignore"):
        merged = total.astype(values.dtype)
    if not np.isfinite(merged).all():
        raise ValueError(f"duplicates='sum' leaves the range of {values.dtype}; divide values by a power of ten")
    return rows[fresh], cols[fresh], merged, None
