"""`Completion`: what `complete` returns, and what can be asked of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.completion.entries import host_indices
from lrjax.core.checks import check_count, check_flag
from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree
from lrjax.iteration.solution import Solution
from lrjax.operators import SampledEntries
from lrjax.problems.factors import Factors

# Rows predicted at a time: 2^20 pairs of factor rows of rank 20 are 160 MB of float32.
PREDICT_BLOCK = 2**20

# Fraction of the entries that a member of an ensemble is refitted to.
KEPT = 0.8


@pytree
class Completion:
    """A completed matrix: `offset + row_bias_i + col_bias_j + (left @ right.T)_ij`.

    Attributes:
        factors: the low-rank part.
        offset: mean of the training values if biases were asked for, else zero.
        row_bias: `(n1,)`, zero without biases.
        col_bias: `(n2,)`, zero without biases.
        solution: the `Solution` of the solve; `solution.check()` tells whether it went well.
        train_rmse: root mean square error on the entries used. Here and below entries of weight zero do not exist, and
            duplicates are one entry.
        holdout_rmse: the same on the held-out entries, `nan` if there are none.
        baseline_rmse: held-out error of offset and biases alone (shrunk by 10), `nan` without held-out entries.
        rows_short: `(n1,)` booleans: fewer training entries than the rank, so the row is not determined by the data
            alone (empty ones are predicted by the offset and the column's bias).
        cols_short: `(n2,)`, the same for columns.
        seen: the training entries, as the operator of the solve.
        members: factors of the refits of an ensemble (offsets that were fitted jointly included), with a leading
            axis; `None` without one.
    """

    factors: Factors
    offset: jax.Array
    row_bias: jax.Array
    col_bias: jax.Array
    solution: Solution
    train_rmse: jax.Array
    holdout_rmse: jax.Array
    baseline_rmse: jax.Array
    rows_short: jax.Array
    cols_short: jax.Array
    seen: SampledEntries
    members: Factors | None = None

    def predict(self, rows: Any, cols: Any) -> np.ndarray:
        """Predicted values of the entries `(rows[i], cols[i])`.

        Raises:
            ValueError: `rows` and `cols` differ in shape or leave the matrix.
        """
        rows, cols = self._check_entries(rows, cols)
        return predict(self.factors, (self.offset, self.row_bias, self.col_bias), rows, cols)

    def uncertainty(self, rows: Any, cols: Any) -> np.ndarray:
        """Standard error of the predictions of the entries `(rows[i], cols[i])`, from the ensemble.

        What the noise of the sampled entries does to the prediction; neither the noise of a new measurement nor the
        bias of too low a rank or of the ridge is in it.

        Raises:
            ValueError: there is no ensemble, or a bad index.

        Source: the delete-d jackknife (Shao and Wu 1989): refits that keep a fraction `f` of the data vary
        `sqrt((1 - f) / f)` times as much as refits to new data would.
        """
        if self.members is None:
            raise ValueError("uncertainty needs refits: call complete(..., ensemble=16)")
        rows, cols = self._check_entries(rows, cols)
        # Offsets that are the same in every member do not enter a standard deviation.
        biases = jax.tree.map(np.zeros_like, (self.offset, self.row_bias, self.col_bias))
        members = jax.tree.map(np.asarray, self.members)
        count = self.members.left.shape[0]
        fits = [predict(jax.tree.map(lambda x, i=i: x[i], members), biases, rows, cols) for i in range(count)]
        spread = np.std(np.asarray(fits, np.float64), axis=0, ddof=1) * np.sqrt(KEPT / (1 - KEPT))
        return spread.astype(self.factors.left.dtype)

    def recommend(self, rows: Any, count: int, *, include_seen: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The columns with the largest predictions in each of the given rows, without forming the matrix.

        Args:
            rows: `(q,)` rows.
            count: columns per row, at most `n2`.
            include_seen: also recommend entries of the training data.

        Returns:
            `cols (q, count)` and `values (q, count)`, best first; where a row has fewer than `count` unseen columns,
            the rest is column -1 with value `-inf`.

        Raises:
            ValueError: a bad index or count.

        Cost `q n2 k` multiply-adds and a partial sort of each row, a few thousand rows at a time.
        """
        n1, n2 = self.factors.shape
        rows, count = host_indices("rows", rows, n1, ndim=1), check_count("count", count)
        include_seen = check_flag("include_seen", include_seen)
        if count > n2:
            raise ValueError(f"count must be at most the {n2} columns; got {count}")
        if not len(rows):
            return np.empty((0, count), np.int32), np.empty((0, count), self.factors.left.dtype)
        seen_rows, seen_cols = np.asarray(self.seen.rows), np.asarray(self.seen.cols)
        size = max(1, PREDICT_BLOCK // n2)
        found = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            shown = np.ones((len(part), n2), bool)
            if not include_seen:
                # The entries are sorted by row.
                low, high = np.searchsorted(seen_rows, part), np.searchsorted(seen_rows, part, side="right")
                for line, a, b in zip(shown, low, high, strict=True):
                    line[seen_cols[a:b]] = False
            best = _best(self.factors, (self.offset, self.row_bias, self.col_bias), part, shown, count)
            found.append(jax.tree.map(np.asarray, best))
        values, cols = (np.concatenate([f[i] for f in found]) for i in (0, 1))
        return np.where(np.isneginf(values), -1, cols), values

    def _check_entries(self, rows: Any, cols: Any) -> tuple[np.ndarray, np.ndarray]:
        n1, n2 = self.factors.shape
        rows, cols = host_indices("rows", rows, n1), host_indices("cols", cols, n2)
        if rows.shape != cols.shape:
            raise ValueError(f"rows and cols must have one shape; got {rows.shape} and {cols.shape}")
        return rows, cols


@functools.partial(jax.jit, static_argnames="count")
def _best(factors, biases, rows, shown, count):
    offset, row_bias, col_bias = biases
    scores = offset + row_bias[rows][:, None] + col_bias[None, :] + matmul(factors.left[rows], factors.right.T)
    return jax.lax.top_k(jnp.where(shown, scores, -jnp.inf), count)


@jax.jit
def _block_of_entries(factors, offset, row_bias, col_bias, rows, cols):
    return offset + row_bias[rows] + col_bias[cols] + factors.entries(rows, cols)


def predict(factors: Factors, biases: tuple[Any, Any, Any], rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Entries of the factors plus the offsets: the mean, of the rows and of the columns."""
    if rows.size == 0:
        return np.empty(rows.shape, factors.left.dtype)
    # Padded to a power of two, so that few programs serve lists of all lengths.
    block = min(PREDICT_BLOCK, 1 << (rows.size - 1).bit_length())
    padded = lambda x: np.pad(x.ravel(), (0, -x.size % block)).reshape(-1, block)
    parts = [_block_of_entries(factors, *biases, *part) for part in zip(padded(rows), padded(cols), strict=True)]
    return np.concatenate([np.asarray(part) for part in parts])[: rows.size].reshape(rows.shape)
