"""`complete`: entries of a matrix in, factors and predictions out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lrjax._checks import check_count, check_key, check_range, check_real, check_shape
from lrjax._pytree import pytree
from lrjax._solve import Solution, iterate, solve
from lrjax.factors import Factors
from lrjax.operators import SampledEntries
from lrjax.problem import Problem
from lrjax.solvers import AlternatingMinimization

# Rows predicted at a time: 2^20 pairs of factor rows of rank 20 are 160 MB of float32.
PREDICT_BLOCK = 2**20


@pytree
class Completion:
    """A completed matrix: `offset + row_bias_i + col_bias_j + (left @ right.T)_ij`.

    Attributes:
        factors: the low-rank part.
        offset: mean of the training values if biases were asked for, else zero.
        row_bias: `(n1,)`, zero without biases.
        col_bias: `(n2,)`, zero without biases.
        solution: the `Solution` of the solve; `solution.check()` tells whether it went well.
        train_rmse: root mean square error on the entries used.
        holdout_rmse: the same on the held-out entries, `nan` if there are none.
        baseline_rmse: held-out error of offset and biases alone (shrunk by 10), `nan` without held-out entries.
        rows_short: `(n1,)` booleans: fewer training entries than the rank, so the row is not determined by the data
            alone (empty ones are predicted by the offset and the column's bias).
        cols_short: `(n2,)`, the same for columns.
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

    def predict(self, rows: Any, cols: Any) -> np.ndarray:
        """Predicted values of the entries `(rows[i], cols[i])`.

        Raises:
            ValueError: `rows` and `cols` differ in shape or leave the matrix.
        """
        rows, cols = np.asarray(rows), np.asarray(cols)
        if rows.shape != cols.shape:
            raise ValueError(f"rows and cols must have one shape; got {rows.shape} and {cols.shape}")
        for name, index, n in (("rows", rows, self.factors.shape[0]), ("cols", cols, self.factors.shape[1])):
            if index.size and not (0 <= index.min() and index.max() < n):
                raise ValueError(f"{name} must lie in [0, {n}); got values from {index.min()} to {index.max()}")
        return _predict(self.factors, (self.offset, self.row_bias, self.col_bias), rows, cols)


@jax.jit
def _block_of_entries(factors, offset, row_bias, col_bias, rows, cols):
    return offset + row_bias[rows] + col_bias[cols] + factors.entries(rows, cols)


def _predict(factors: Factors, biases: tuple[Any, Any, Any], rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    blocks = [
        np.asarray(_block_of_entries(factors, *biases, *part))
        for start in range(0, rows.size, PREDICT_BLOCK)
        for part in [(rows.ravel()[start : start + PREDICT_BLOCK], cols.ravel()[start : start + PREDICT_BLOCK])]
    ]
    return np.concatenate(blocks).reshape(rows.shape) if blocks else np.empty(rows.shape, factors.left.dtype)


def complete(
    rows: Any,
    cols: Any,
    values: Any,
    shape: tuple[int, int],
    *,
    rank: int,
    key: jax.Array,
    solver: Any = None,
    num_steps: int = 100,
    ridge: float = 0.0,
    biases: bool = False,
    holdout: float = 0.0,
    weights: Any = None,
    duplicates: str = "refuse",
    progress: bool = False,
) -> Completion:
    """Completes a low-rank matrix from some of its entries.

    With the defaults this is exact completion: alternating minimization without regularisation, to rounding level. For
    noisy data such as ratings set `ridge` (5 to 20 for ratings of 1 to 5) and `biases=True`.

    Args:
        rows: `(m,)` integer rows, 0-based.
        cols: `(m,)` integer columns, 0-based.
        values: `(m,)` real floating; their dtype is that of the result.
        shape: `(n1, n2)`.
        rank: columns of the factors.
        key: typed random key.
        solver: any solver with `max_rank == rank`; default `AlternatingMinimization`, with a plain ridge on both
            factors if `ridge` is positive. Give `ridge` or `solver`, not both.
        num_steps: steps at most; the solve stops by itself once it has converged.
        ridge: penalty `ridge (||left||_F^2 + ||right||_F^2)`.
        biases: subtract the mean and shrunk row and column means first, and add them back in predictions.
        holdout: fraction of the entries to hold out, to measure `holdout_rmse` and `baseline_rmse`.
        weights: `(m,)` nonnegative weights of the entries; cannot be combined with merged duplicates.
        duplicates: `"refuse"`, `"sum"` or `"mean"` of entries given more than once.
        progress: show a progress bar (runs one compiled step at a time instead of all at once).

    Returns:
        A `Completion`.

    Raises:
        ValueError: bad shapes, indices, values, weights or options; named in the text.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> truth = lr.synthetic.low_rank(key, (60, 50), 2)
        >>> rows, cols, values = lr.synthetic.sampled_entries(key, truth, 1200)
        >>> completion = lr.complete(rows, cols, values, (60, 50), rank=2, key=key)
        >>> bool(lr.metrics.relative_error(completion.factors, truth) < 1e-4)
        True
    """
    check_key(key)
    check_shape(shape)
    check_count("rank", rank)
    check_range("ridge", ridge, low=0)
    check_range("holdout", holdout, low=0, high=0.9)
    if solver is None:
        solver = AlternatingMinimization(max_rank=rank, ridge=float(ridge), orthonormalize=ridge == 0)
    elif ridge != 0 or getattr(solver, "max_rank", rank) != rank:
        raise ValueError(
            f"give ridge to the solver itself, and a solver of max_rank={rank}; got ridge={ridge!r} and "
            f"max_rank={getattr(solver, 'max_rank', None)}"
        )
    rows, cols, values = np.asarray(rows), np.asarray(cols), np.asarray(values)
    check_real("values", values)
    if not (rows.shape == cols.shape == values.shape):
        raise ValueError(f"rows, cols and values must have one length; got {rows.shape}, {cols.shape}, {values.shape}")
    weights = None if weights is None else np.asarray(weights).astype(values.dtype)
    if weights is not None and weights.shape != values.shape:
        raise ValueError(f"weights must have the shape of values, {values.shape}; got {weights.shape}")
    key_split, key_solve = jax.random.split(key)
    held = np.zeros(values.shape, bool)
    if holdout > 0:
        held = np.asarray(jax.random.uniform(key_split, values.shape) < holdout)
    kept = ~held

    operator, y = SampledEntries.build(rows[kept], cols[kept], values[kept], shape, duplicates=duplicates)
    sorted_weights = None
    if weights is not None:
        if operator.num_measurements != int(kept.sum()):
            raise ValueError("weights cannot be combined with merged duplicates; merge them beforehand")
        order = np.lexsort((cols[kept], rows[kept]))
        sorted_weights = jnp.asarray(weights[kept][order])
    baseline = _biases(operator, np.asarray(y), sorted_weights)
    zero = (np.zeros((), y.dtype), np.zeros(shape[0], y.dtype), np.zeros(shape[1], y.dtype))
    offset, row_bias, col_bias = baseline if biases else zero
    host_rows, host_cols = np.asarray(operator.rows), np.asarray(operator.cols)
    target = jnp.asarray(np.asarray(y) - (offset + row_bias[host_rows] + col_bias[host_cols]))
    problem = Problem(operator, target, sorted_weights)
    if progress:
        solution = _with_bar(problem, solver, key_solve, num_steps)
    else:
        solution = solve(problem, solver, key_solve, num_steps=num_steps)

    parts = (jnp.asarray(offset), jnp.asarray(row_bias), jnp.asarray(col_bias))
    fit = _predict(solution.factors, parts, host_rows, host_cols)
    blank = Factors(jnp.zeros((shape[0], 1), y.dtype), jnp.zeros((shape[1], 1), y.dtype))
    return Completion(
        factors=solution.factors,
        offset=parts[0],
        row_bias=parts[1],
        col_bias=parts[2],
        solution=solution,
        train_rmse=_rmse(fit, np.asarray(y)),
        holdout_rmse=_rmse(_predict(solution.factors, parts, rows[held], cols[held]), values[held]),
        baseline_rmse=_rmse(_predict(blank, baseline, rows[held], cols[held]), values[held]),
        rows_short=operator.by_row.count < rank,
        cols_short=operator.by_col.count < rank,
    )


def _rmse(predicted: np.ndarray, values: np.ndarray) -> jax.Array:
    return jnp.asarray(np.sqrt(np.mean((predicted - values) ** 2)) if values.size else np.nan, values.dtype)


def _biases(operator, y, weights, shrinkage: float = 10.0, sweeps: int = 10):
    """Mean, and row and column offsets shrunk as if `shrinkage` more entries of each were zero; by backfitting."""
    rows, cols, (n1, n2) = np.asarray(operator.rows), np.asarray(operator.cols), operator.shape
    w = np.ones_like(y) if weights is None else np.asarray(weights)
    total = float(w.sum()) or 1.0
    offset = float((w * y).sum()) / total
    row_bias, col_bias = np.zeros(n1), np.zeros(n2)
    row_weight = np.bincount(rows, w, n1) + shrinkage
    col_weight = np.bincount(cols, w, n2) + shrinkage
    for _ in range(sweeps):
        row_bias = np.bincount(rows, w * (y - offset - col_bias[cols]), n1) / row_weight
        col_bias = np.bincount(cols, w * (y - offset - row_bias[rows]), n2) / col_weight
    return np.asarray(offset, y.dtype), np.asarray(row_bias, y.dtype), np.asarray(col_bias, y.dtype)


def _with_bar(problem: Problem, solver: Any, key: jax.Array, num_steps: int) -> Solution:
    """`solve` one compiled step at a time, under a progress bar; the same steps with the same keys."""
    rows, solution = [], None
    with tqdm(total=num_steps, desc="completing", unit="step", leave=None) as bar:
        for solution in iterate(problem, solver, key, num_steps=num_steps):
            rows.append(jax.tree.map(np.asarray, solution.trace))
            bar.update(int(solution.num_steps) - bar.n)
            bar.set_postfix(residual=f"{float(rows[-1]['residual'][-1]):.2e}")
    assert solution is not None
    trace = jax.tree.map(lambda *parts: jnp.concatenate([jnp.asarray(p) for p in parts]), *rows)
    return Solution(factors=solution.factors, status=solution.status, num_steps=solution.num_steps, trace=trace)
