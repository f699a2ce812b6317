"""`complete`: entries of a matrix in, factors and predictions out."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.completion.completion import Completion, predict
from lrjax.completion.entries import counted, merge
from lrjax.completion.fitting import backfitted, refit, stepwise
from lrjax.core.checks import check_choice, check_count, check_flag, check_key, check_range, check_shape
from lrjax.iteration.protocol import Solver, member
from lrjax.iteration.solution import Solution
from lrjax.iteration.solve import solve
from lrjax.operators import SampledEntries
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import AlternatingMinimization


def complete(
    rows: Any,
    cols: Any,
    values: Any,
    shape: tuple[int, int],
    *,
    rank: int,
    key: jax.Array,
    solver: Solver | None = None,
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
            ratings. With your own `solver`, shrunk row and column means are subtracted first.
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
    chosen: Any = _solver_for(
        solver, rank, ridge, ridge_by_count=ridge_by_count, nonnegative=nonnegative, biases=biases
    )
    entries = _Entries(*merge(*counted(rows, cols, values, weights, shape), duplicates))
    key_split, key_solve, key_members = _three_keys(key)
    train, test = _split(entries, _held_out(key_split, len(entries.values), holdout))
    operator, y = SampledEntries.build(train.rows, train.cols, train.values, shape)
    jointly = member(chosen, "biases")
    baseline, offsets = _offsets(train, shape, biases=biases, jointly=jointly, needed=holdout > 0)
    # The entries are sorted already, as the operator has them.
    target = jax.device_put(train.values - _at(offsets, train)) if biases or jointly else y
    problem = Problem(operator, target, None if train.weights is None else jax.device_put(train.weights))
    if default and biases:
        chosen = dataclasses.replace(chosen, bias_value=np.sqrt(_spread(target, train.weights)))
    offsets = jax.device_put(offsets)
    if early_stopping:
        error = lambda factors: float(_rmse(predict(factors, offsets, test.rows, test.cols), test.values))
        solution = stepwise(problem, chosen, key_solve, num_steps, progress, error)
    elif progress:
        solution = stepwise(problem, chosen, key_solve, num_steps, progress)
    else:
        solution = solve(problem, chosen, key_solve, num_steps=num_steps)
    factors, members = solution.factors, None
    if jointly:
        factors, of_rows_and_cols = _split_biases(factors, member(chosen, "bias_value"))
        offsets = (offsets[0], *of_rows_and_cols)
    if ensemble:
        members = refit(problem, chosen, jax.random.split(key_members, ensemble), solution, num_steps)
    return _report(rank, operator, solution, factors, offsets, members, train, test, baseline)


class _Entries(NamedTuple):
    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None


def _solver_for(solver: Any, rank: int, ridge: Any, *, ridge_by_count: bool, nonnegative: bool, biases: bool) -> Any:
    """The solver that was given, or the default one with the settings that are its shorthand."""
    if solver is None:
        plain = ridge == 0 and not nonnegative and not biases
        return AlternatingMinimization(
            max_rank=rank + 2 if biases else rank,
            ridge=float(ridge),
            orthonormalize=plain,
            ridge_by_count=ridge_by_count,
            nonnegative=nonnegative,
            biases=biases,
        )
    if ridge != 0 or ridge_by_count or nonnegative or member(solver, "max_rank") not in (None, rank):
        raise ValueError(
            "give ridge, ridge_by_count and nonnegative to the solver itself, and a solver of "
            f"max_rank={rank}; got ridge={ridge!r}, ridge_by_count={ridge_by_count}, nonnegative={nonnegative} and "
            f"max_rank={member(solver, 'max_rank')}"
        )
    return solver


def _split(entries: _Entries, held: np.ndarray) -> tuple[_Entries, _Entries]:
    """The entries to fit, and those held out."""
    rows, cols, values, weights = entries
    rows, cols = rows.astype(np.int32), cols.astype(np.int32)
    part = lambda where: _Entries(rows[where], cols[where], values[where], None if weights is None else weights[where])
    return part(~held), part(held)


def _offsets(
    train: _Entries, shape: tuple[int, int], *, biases: bool, jointly: bool, needed: bool
) -> tuple[tuple, tuple]:
    """Mean, row and column offsets: as the baseline has them, and those to subtract before the solve."""
    dtype = train.values.dtype
    zero = np.zeros((), dtype), np.zeros(shape[0], dtype), np.zeros(shape[1], dtype)
    baseline = backfitted(*train, shape) if biases or jointly or needed else zero
    # Where the solver fits offsets, only the mean is taken out.
    return baseline, (baseline[0], *zero[1:]) if jointly else baseline if biases else zero


def _at(offsets: tuple, entries: _Entries) -> np.ndarray:
    return offsets[0] + offsets[1][entries.rows] + offsets[2][entries.cols]


def _report(
    rank: int,
    operator: SampledEntries,
    solution: Solution,
    factors: Factors,
    offsets: tuple,
    members: Factors | None,
    train: _Entries,
    test: _Entries,
    baseline: tuple,
) -> Completion:
    fit = predict(factors, offsets, np.append(train.rows, test.rows), np.append(train.cols, test.cols))
    short = lambda index, n: jax.device_put(np.bincount(index, minlength=n) < rank)
    return Completion(
        factors=factors,
        offset=offsets[0],
        row_bias=offsets[1],
        col_bias=offsets[2],
        solution=solution,
        train_rmse=_rmse(fit[: len(train.values)], train.values),
        holdout_rmse=_rmse(fit[len(train.values) :], test.values),
        baseline_rmse=_rmse(_at(baseline, test), test.values),
        rows_short=short(train.rows, operator.shape[0]),
        cols_short=short(train.cols, operator.shape[1]),
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
