"""`complete`: entries of a matrix in, factors and predictions out."""

import dataclasses
import functools
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lrjax import status
from lrjax._entries import counted, host_indices, merge
from lrjax._solve import Solution, iterate, solve
from lrjax.core.checks import check_choice, check_count, check_flag, check_key, check_range, check_shape
from lrjax.core.numerics import matmul
from lrjax.core.pytree import cast_floats, pytree
from lrjax.operators import SampledEntries
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import AlternatingMinimization

# Rows predicted at a time: 2^20 pairs of factor rows of rank 20 are 160 MB of float32.
PREDICT_BLOCK = 2**20

# Fraction of the entries that a member of an ensemble is refitted to.
KEPT = 0.8

# Sweeps without a better held-out error after which early stopping gives up.
PATIENCE = 5


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
        return _predict(self.factors, (self.offset, self.row_bias, self.col_bias), rows, cols)

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
        fits = [_predict(jax.tree.map(lambda x, i=i: x[i], members), biases, rows, cols) for i in range(count)]
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


def _predict(factors: Factors, biases: tuple[Any, Any, Any], rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    if rows.size == 0:
        return np.empty(rows.shape, factors.left.dtype)
    # Padded to a power of two, so that few programs serve lists of all lengths.
    block = min(PREDICT_BLOCK, 1 << (rows.size - 1).bit_length())
    padded = lambda x: np.pad(x.ravel(), (0, -x.size % block)).reshape(-1, block)
    parts = [_block_of_entries(factors, *biases, *part) for part in zip(padded(rows), padded(cols), strict=True)]
    return np.concatenate([np.asarray(part) for part in parts])[: rows.size].reshape(rows.shape)


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
    early_stopping: bool = False,
    ensemble: int = 0,
    ridge_by_count: bool = False,
    nonnegative: bool = False,
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
        rank: columns of the factors, at most `min(shape)`; offsets do not count.
        key: typed random key.
        solver: any solver with `max_rank == rank`; default `AlternatingMinimization`, with a plain ridge on both
            factors if `ridge` is positive. Give `ridge` or `solver`, not both.
        num_steps: steps at most; the solve stops by itself once it has converged.
        ridge: penalty `ridge (||left||_F^2 + ||right||_F^2)` beside the sum of squared errors. It has the unit of the
            values: values times `c` need a ridge times `c` for the same answer times `c`.
        biases: fit an offset of every row and column too, jointly with the factors, after the mean is taken out; the
            penalty on an offset `b` is `ridge b^2 / s`, with `s` the standard deviation of the values, about one for
            ratings. With a `solver` of your own, shrunk row and column means are subtracted first.
        holdout: fraction of the entries to hold out, to measure `holdout_rmse` and `baseline_rmse`; at least one.
            Duplicates are merged before.
        early_stopping: return the step with the least held-out error, and stop five steps after it; needs `holdout`.
        ensemble: number of refits to a random 80 % of the entries each, from the solution, in one compiled map; at
            least 2. They give `Completion.uncertainty`, at the cost of as many solves. 0 for none.
        ridge_by_count: multiply the ridge by the number of entries of each row (or column); then 0.05 to 0.2 suits
            ratings of 1 to 5.
        nonnegative: keep both factors nonnegative; not with `biases`.
        weights: `(m,)` nonnegative weights of the entries; those of weight zero are left out, whatever their values.
            Cannot be combined with merged duplicates.
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
    shape, rank, num_steps = check_shape(shape), check_count("rank", rank), check_count("num_steps", num_steps)
    if rank > min(shape):
        raise ValueError(f"rank must be at most min(shape) = {min(shape)}; got {rank}")
    biases, early_stopping = check_flag("biases", biases), check_flag("early_stopping", early_stopping)
    nonnegative, progress = check_flag("nonnegative", nonnegative), check_flag("progress", progress)
    ridge_by_count = check_flag("ridge_by_count", ridge_by_count)
    check_range("ridge", ridge, low=0)
    check_range("holdout", holdout, low=0, high=0.9)
    ensemble = check_count("ensemble", ensemble, minimum=0)
    check_choice("duplicates", duplicates, ("refuse", "sum", "mean"))
    if ensemble == 1:
        raise ValueError("ensemble must be 0 or at least 2 refits, or they have no spread; got 1")
    if early_stopping and holdout == 0:
        raise ValueError("early_stopping=True needs held-out entries; got holdout=0. Try holdout=0.1")
    if nonnegative and biases:
        raise ValueError("nonnegative=True cannot be combined with biases=True: what is left after them has both signs")
    default = solver is None
    if default:
        penalised = ridge != 0 or nonnegative
        solver = AlternatingMinimization(
            max_rank=rank,
            ridge=float(ridge),
            orthonormalize=not penalised,
            ridge_by_count=ridge_by_count,
            nonnegative=nonnegative,
        )
        if biases:
            solver = dataclasses.replace(solver, max_rank=rank + 2, biases=True, orthonormalize=False)
    elif ridge != 0 or ridge_by_count or nonnegative or getattr(solver, "max_rank", rank) != rank:
        raise ValueError(
            "give ridge, ridge_by_count and nonnegative to the solver itself, and a solver of "
            f"max_rank={rank}; got ridge={ridge!r}, ridge_by_count={ridge_by_count}, nonnegative={nonnegative} and "
            f"max_rank={getattr(solver, 'max_rank', None)}"
        )
    rows, cols, values, weights = counted(rows, cols, values, weights, shape)
    rows, cols, values, weights = merge(rows, cols, values, weights, duplicates)
    key_split, key_solve, key_members = _three_keys(key)
    held = _held_out(key_split, len(values), holdout)
    kept = ~held
    operator, y = SampledEntries.build(rows[kept], cols[kept], values[kept], shape)
    # The entries are sorted already, as the operator has them.
    kept_weights = None if weights is None else jax.device_put(weights[kept])
    jointly = getattr(solver, "biases", False)
    host_rows, host_cols, host_y = rows[kept].astype(np.int32), cols[kept].astype(np.int32), np.asarray(y)
    zero = (np.zeros((), y.dtype), np.zeros(shape[0], y.dtype), np.zeros(shape[1], y.dtype))
    baseline = zero
    if biases or jointly or holdout:
        baseline = _biases(host_rows, host_cols, host_y, kept_weights, shape)
    offset, row_bias, col_bias = (baseline[0], *zero[1:]) if jointly else baseline if biases else zero
    target = jax.device_put(host_y - (offset + row_bias[host_rows] + col_bias[host_cols])) if biases or jointly else y
    if default and biases:
        solver = dataclasses.replace(solver, bias_value=np.sqrt(_spread(target, kept_weights)))
    problem = Problem(operator, target, kept_weights)
    parts = jax.device_put((offset, row_bias, col_bias))
    if early_stopping:
        error = lambda factors: float(_rmse(_predict(factors, parts, rows[held], cols[held]), values[held]))
        solution = _stepwise(problem, solver, key_solve, num_steps, progress, error)
    elif progress:
        solution = _stepwise(problem, solver, key_solve, num_steps, progress)
    else:
        solution = solve(problem, solver, key_solve, num_steps=num_steps)
    factors, members = solution.factors, None
    if jointly:
        factors, (row_bias, col_bias) = _split_biases(factors, getattr(solver, "bias_value", 1.0))
        parts = (parts[0], row_bias, col_bias)
    if ensemble:
        members = _refit(problem, solver, jax.random.split(key_members, ensemble), solution, num_steps)
    fit = _predict(factors, parts, np.append(host_rows, rows[held]), np.append(host_cols, cols[held]))
    guess = baseline[0] + baseline[1][rows[held]] + baseline[2][cols[held]]
    short = lambda index, n: jax.device_put(np.bincount(index, minlength=n) < rank)
    return Completion(
        factors=factors,
        offset=parts[0],
        row_bias=parts[1],
        col_bias=parts[2],
        solution=solution,
        train_rmse=_rmse(fit[: len(host_y)], host_y),
        holdout_rmse=_rmse(fit[len(host_y) :], values[held]),
        baseline_rmse=_rmse(guess, values[held]),
        rows_short=short(host_rows, shape[0]),
        cols_short=short(host_cols, shape[1]),
        seen=operator,
        members=members,
    )


@jax.jit
def _three_keys(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    first, second, third = jax.random.split(key, 3)
    return first, second, third


@jax.jit
def _split_biases(factors: Factors, value: Any) -> tuple[Factors, tuple[jax.Array, jax.Array]]:
    """What `AlternatingMinimization(biases=True)` returns, as factors and row and column offsets."""
    left, right = factors.left, factors.right
    value = jnp.asarray(value, left.dtype)
    return Factors(left[..., :-2], right[..., :-2]), (left[..., -2] * value, right[..., -1] * value)


def _spread(values: Any, weights: Any) -> float:
    """Root mean square of values whose mean is zero; one if they are zero."""
    values = np.asarray(values, np.float64)
    return float(np.sqrt(np.average(values**2, weights=weights))) or 1.0


def _held_out(key: jax.Array, count: int, fraction: float) -> np.ndarray:
    """Which of `count` entries are held out: the fraction to the nearest entry, but never none and never all.

    Always as many, so that other splits of a table share the compile.
    """
    held = np.zeros(count, bool)
    if fraction == 0:
        return held
    if count < 2:
        raise ValueError(f"holdout={fraction} needs at least two entries; got {count}")
    number = min(max(round(fraction * count), 1), count - 1)
    draw = np.asarray(_draw(key, count))
    held[np.argpartition(draw, number - 1)[:number]] = True
    return held


@partial(jax.jit, static_argnames="count")
def _draw(key: jax.Array, count: int) -> jax.Array:
    return jax.random.bits(key, (count,))


def _rmse(predicted: np.ndarray, values: np.ndarray) -> jax.Array:
    # Squares of small or large values leave the range of single precision.
    error = predicted.astype(np.float64) - values
    return jax.device_put(np.asarray(np.sqrt(np.mean(error**2)) if values.size else np.nan, values.dtype))


def _biases(rows, cols, y, weights, shape, shrinkage: float = 10.0, sweeps: int = 10):
    """Mean, and row and column offsets shrunk as if `shrinkage` more entries of each were zero; by backfitting."""
    (n1, n2), dtype = shape, y.dtype
    y = y.astype(np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, np.float64)
    total = float(w.sum()) or 1.0
    offset = float((w * y).sum()) / total
    row_bias, col_bias = np.zeros(n1), np.zeros(n2)
    row_weight = np.bincount(rows, w, n1) + shrinkage
    col_weight = np.bincount(cols, w, n2) + shrinkage
    for _ in range(sweeps):
        row_bias = np.bincount(rows, w * (y - offset - col_bias[cols]), n1) / row_weight
        col_bias = np.bincount(cols, w * (y - offset - row_bias[rows]), n2) / col_weight
    return np.asarray(offset, dtype), np.asarray(row_bias, dtype), np.asarray(col_bias, dtype)


def _stepwise(problem, solver, key, num_steps, progress, error=None) -> Solution:
    """`solve` one compiled step at a time, the same steps with the same keys, under a progress bar if asked.

    With `error`, a number from factors on the host: returns the step where it was least, and adds it to the trace as
    `"holdout_rmse"`.
    """
    rows, best, best_solution, solution = [], np.inf, None, None
    with tqdm(total=num_steps, desc="compiling", unit="step", leave=None, disable=not progress) as bar:
        for solution in iterate(problem, solver, key, num_steps=num_steps):
            row = jax.tree.map(np.asarray, solution.trace)
            shown = {"residual": f"{float(row['residual'][-1]):.2e}"}
            if error is not None:
                now = error(solution.factors)
                row["holdout_rmse"] = np.asarray([now], row["residual"].dtype)
                shown["holdout_rmse"] = f"{now:.4g}"
                if now < best:
                    best, best_solution = now, solution
            rows.append(row)
            _show(bar, int(solution.num_steps), shown)
            if best_solution is not None and int(solution.num_steps) >= int(best_solution.num_steps) + PATIENCE:
                bar.set_description("stopped early", refresh=False)
                break
        assert solution is not None
        if int(solution.status) == status.CONVERGED:
            bar.set_description("converged", refresh=False)
        bar.total = bar.n  # a bar that ends before its budget is full all the same
        bar.refresh()
    if best_solution is not None:
        solution = best_solution
    trace = jax.tree.map(lambda *parts: jnp.concatenate([jnp.asarray(p) for p in parts]), *rows)
    return Solution(factors=solution.factors, status=solution.status, num_steps=solution.num_steps, trace=trace)


def _show(bar: tqdm, step: int, shown: dict[str, str]) -> None:
    """Moves the bar on; the first step, which is compiled, does not count for its rate."""
    if step == 1 and not bar.disable:
        bar.set_description("completing", refresh=False)
        bar.initial = bar.n = bar.last_print_n = step
        bar.start_t = bar.last_print_t = time.time()
    bar.update(step - bar.n)
    bar.set_postfix(shown)


def _refit(problem, solver, keys, solution, num_steps) -> Factors:
    """Factors of one refit per key, each to a random part of the entries, from the solution."""
    steps = max(1, min(num_steps, int(solution.num_steps)))
    # Small problems side by side; large ones one at a time, for their blocks fill the cache already.
    side_by_side = max(1, min(len(keys), PREDICT_BLOCK // problem.y.shape[0]))
    solver = cast_floats(solver, problem.y.dtype)
    return _refits(problem, solver, keys, solution.factors, steps=steps, side_by_side=side_by_side)


@partial(jax.jit, static_argnames=("steps", "side_by_side"))
def _refits(problem, solver, keys, start, *, steps, side_by_side):
    def one(key: jax.Array) -> Factors:
        key_keep, key_solve = jax.random.split(key)
        keep = (jax.random.uniform(key_keep, problem.y.shape) < KEPT).astype(problem.y.dtype)
        part = Problem(problem.operator, problem.y, problem.weighted(keep), problem.loss)
        return solve(part, solver, key_solve, num_steps=steps, record_every=steps, init=start).factors

    return jax.lax.map(one, keys, batch_size=side_by_side)
