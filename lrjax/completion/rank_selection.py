"""`select_rank`: how many columns a problem supports, from its measurements."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lrjax import initial, losses
from lrjax.core.checks import check_choice, check_count, check_key, check_range, real_array
from lrjax.core.numerics import or_one
from lrjax.core.pytree import cast_floats, pytree, replace
from lrjax.iteration.protocol import member
from lrjax.iteration.solution import Solution
from lrjax.iteration.solve import solve
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import AlternatingMinimization, GaussNewton, ScaledGradientDescent

METHODS = ("holdout", "gap", "adaptive")
# Held-out losses are summed in this many groups, whose spread gives the standard error of a difference.
GROUPS = 16
# The ridge of the over-specified solve stays: without it noise, or too few measurements, fill the surplus columns. On
# 60 x 40 entries of rank 3, oversampling 2 to 5 and noise up to 5 %, 0.003 did as well as or better than 0.01 and 0.03.
KEPT_RIDGE = {"ridge": 0.003, "decay": 1.0, "ridge_per_residual": 1e3}
# Steps in which a truncation settles: as it is cut, it is off by what the dropped columns did. 0 steps: 3 of 12 draws
# of 60 x 50 entries of rank 2 wrong (oversampling 3, condition number 10, noise 1 %); 3 steps: none.
TRIAL_STEPS = 3


@pytree
class RankSelection:
    """What `select_rank` found.

    Attributes:
        rank: int32, from 1 to `max_rank`.
        scores: `(max_rank,)`: held-out relative errors of ranks 1, 2, ... (square roots of relative losses where the
            loss is not squared); for `"gap"` singular values, largest first.
        edge: what the scores are held against: the held-out error of the rank taken, or for `"gap"` the noise edge.
        solution: fit to all measurements at `rank`, in factors of `max_rank` columns of which the others are zero;
            `None` for `"gap"`.
    """

    rank: jax.Array
    scores: jax.Array
    edge: jax.Array
    solution: Solution | None


def select_rank(
    problem: Problem,
    key: jax.Array,
    *,
    max_rank: int,
    method: str = "holdout",
    solver: Any = None,
    num_steps: int = 100,
    holdout: float | jax.Array = 0.1,
    tolerance: float | jax.Array = 0.05,
) -> RankSelection:
    """Chooses the rank of the matrix behind a problem.

    - `"holdout"` fits every rank from 1 to `max_rank` to most of the measurements and takes the smallest whose error on
      the rest is within `tolerance`, or one standard error, of the best. It judges what is wanted, prediction, and
      works wherever the solver does at the true rank on what is left.
    - `"gap"` counts the singular values of `A*(w y)` above those of the same with random signs. It costs two partial
      SVDs and no solve, but sees only singular values above the *sampling* noise: with a condition number of 10, or
      twice as many entries as degrees of freedom, it finds too few even in exact data, where `"holdout"` finds all.
    - `"adaptive"` fits most of the measurements once, at `max_rank`, truncates to every rank, lets each truncation
      settle for a few steps, and chooses among them as `"holdout"` does; then fits everything from the truncation
      chosen. Two solves and a few steps per rank, so cheaper than `"holdout"` for large `max_rank`.

    Args:
        problem: what was measured. Measurements given twice leak from the held-out part into the other.
        key: typed random key.
        max_rank: largest rank considered.
        method: `"holdout"`, `"gap"` or `"adaptive"`.
        solver: solver with fields `rank` and `max_rank`, the latter equal to `max_rank`; its `rank` is overwritten.
            Default for `"holdout"` `GaussNewton` on entries (with plenty of them `AlternatingMinimization` is cheaper),
            `ScaledGradientDescent` elsewhere, and `AlternatingMinimization` for losses other than the squared one; for
            `"adaptive"` `GaussNewton`, at first with a ridge that stays. Not for `"gap"`.
        num_steps: steps at most of each solve.
        holdout: fraction held out. Not used by `"gap"`.
        tolerance: excess over the least held-out error at which a smaller rank is preferred, relative to that error.
            Not used by `"gap"`.

    Returns:
        A `RankSelection`. Pure; jit and vmap it like `solve`. `rank == max_rank` asks for a larger `max_rank`.

    Raises:
        ValueError: a bad problem, key or setting; the text names it.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> problem, truth = lr.synthetic.matrix_completion(key, shape=(50, 40), rank=3, fraction=0.5, noise=0.02)
        >>> int(lr.select_rank(problem, key, max_rank=6).rank)
        3
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a lrjax.Problem; got {type(problem).__name__}")
    problem = replace(problem, y=real_array("y", problem.y))
    problem.check()
    check_key(key)
    check_choice("method", method, METHODS)
    max_rank, num_steps = check_count("max_rank", max_rank), check_count("num_steps", num_steps)
    if max_rank > min(problem.shape):
        raise ValueError(f"max_rank must be at most min(shape) = {min(problem.shape)}; got {max_rank}")
    check_range("holdout", holdout, low=0, high=0.9, open_low=True)
    check_range("tolerance", tolerance, low=0)
    if method == "gap":
        if solver is not None:
            raise ValueError("method='gap' runs no solver; got one")
        return _gap(problem, key, max_rank=max_rank)
    given = solver
    solver = _default(problem, method, max_rank) if given is None else given
    if not _has_field(solver, "rank") or member(solver, "max_rank") != max_rank:
        raise ValueError(f"solver must have a field rank, and max_rank={max_rank}; got {solver!r}")
    member(solver, "check")(problem)
    solver = replace(solver, rank=None)
    if method == "adaptive":
        first = replace(solver, **KEPT_RIDGE) if given is None else solver
        first, solver, settings = cast_floats((first, solver, (holdout, tolerance)), problem.y.dtype)
        return _adaptive(problem, first, solver, key, *settings, num_steps=num_steps)
    solver, settings = cast_floats((solver, (holdout, tolerance)), problem.y.dtype)
    return _holdout(problem, solver, key, *settings, num_steps=num_steps)


def _has_field(solver: Any, name: str) -> bool:
    known = dataclasses.is_dataclass(solver) and not isinstance(solver, type)
    return known and any(field.name == name for field in dataclasses.fields(solver))


def _default(problem: Problem, method: str, max_rank: int) -> Any:
    squared = isinstance(problem.loss, losses.Squared)
    if method == "holdout" and not squared:
        return AlternatingMinimization(max_rank=max_rank)
    if method == "holdout" and not problem.operator.entrywise:
        return ScaledGradientDescent(max_rank=max_rank)
    # On 102 draws of 60 x 40 entries of rank 3 (oversampling 2 to 4.5, noise up to 5 %, condition number 1 and 10) all
    # ranks held out with it were right; alternating minimization failed on most at 2 and on a few at 3.
    return GaussNewton(max_rank=max_rank)


@partial(jax.jit, static_argnames=("max_rank",))
def _gap(problem: Problem, key: jax.Array, *, max_rank: int) -> RankSelection:
    key_svd, key_edge = jax.random.split(key)
    z = problem.weighted(problem.observed())
    values = initial.adjoint_svd(problem, z, max_rank, key_svd)[1]
    edge = initial.noise_edge(problem, z, key_edge, symmetric=False)
    rank = jnp.maximum(jnp.sum((values > edge).astype(jnp.int32)), 1)
    return RankSelection(rank=rank, scores=values, edge=edge, solution=None)


def _split(problem: Problem, holdout: jax.Array, key: jax.Array):
    """Weights of all measurements and of those to train on, held-out losses of factors, and their sum at zero."""
    y = problem.y
    held = jax.random.uniform(key, y.shape, y.dtype) < holdout
    weights = problem.effective_weights()
    weights = jnp.ones_like(y) if weights is None else weights
    test = Problem(problem.operator, y, jnp.where(held, weights, 0), problem.loss)

    def losses_of(factors: Factors) -> jax.Array:
        return _grouped(test.weighted(problem.loss.value(test.residual(factors))))

    whole = jnp.sum(_grouped(test.weighted(problem.loss.value(-test.observed()))))
    return weights, jnp.where(held, 0, weights), losses_of, whole


@partial(jax.jit, static_argnames=("num_steps",))
def _holdout(problem, solver, key, holdout, tolerance, *, num_steps) -> RankSelection:
    key_held, key_solve = jax.random.split(key)
    max_rank = solver.max_rank
    weights, train, losses_of, whole = _split(problem, holdout, key_held)

    def fit(rank, weights):
        used = Problem(problem.operator, problem.y, weights, problem.loss)
        return solve(used, replace(solver, rank=rank), key_solve, num_steps=num_steps)

    def one(i, carry):
        """Fits rank `i + 1` to what is not held out; in the last round the rank chosen, to everything."""
        losses, _ = carry
        last = i == max_rank
        rank = jnp.where(last, _choose(losses, whole, tolerance)[0], i + 1)
        solution = fit(rank, jnp.where(last, weights, train))
        losses = losses.at[i].set(losses_of(solution.factors), mode="drop")
        return losses, solution

    # One loop for both, so that the solver is compiled once.
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fit, jnp.int32(1), weights))
    losses, solution = jax.lax.fori_loop(0, max_rank + 1, one, (jnp.zeros((max_rank, GROUPS), weights.dtype), empty))
    rank, scores, edge = _choose(losses, whole, tolerance)
    return RankSelection(rank=rank, scores=scores, edge=edge, solution=solution)


@partial(jax.jit, static_argnames=("num_steps",))
def _adaptive(problem, first, solver, key, holdout, tolerance, *, num_steps) -> RankSelection:
    key_held, key_over, key_again = jax.random.split(key, 3)
    max_rank = solver.max_rank
    _, train, losses_of, whole = _split(problem, holdout, key_held)
    used = Problem(problem.operator, problem.y, train, problem.loss)
    over = solve(used, first, key_over, num_steps=num_steps, record_every=num_steps).factors.balanced()

    def cut(rank):
        mask = initial.column_mask(max_rank, rank, whole.dtype)
        return Factors(initial.keep_columns(over.left, mask), initial.keep_columns(over.right, mask))

    def one(rank):
        settled = replace(first, rank=rank)
        again = solve(used, settled, key_over, num_steps=TRIAL_STEPS, record_every=TRIAL_STEPS, init=cut(rank))
        return losses_of(again.factors)

    losses = jax.lax.map(one, jnp.arange(1, max_rank + 1, dtype=jnp.int32))
    rank, scores, edge = _choose(losses, whole, tolerance)
    solution = solve(problem, replace(solver, rank=rank), key_again, num_steps=num_steps, init=cut(rank))
    return RankSelection(rank=rank, scores=scores, edge=edge, solution=solution)


def _grouped(values: jax.Array) -> jax.Array:
    """Sums of every `GROUPS`-th value."""
    return jnp.sum(jnp.pad(values, (0, -values.shape[0] % GROUPS)).reshape(-1, GROUPS), axis=0)


def _choose(losses: jax.Array, whole: jax.Array, tolerance: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rank, relative held-out errors, and the error that was let pass, from the grouped losses of all ranks."""
    whole = or_one(whole)
    total = jnp.sum(losses, axis=1)
    total = jnp.where(jnp.isfinite(total), total, jnp.finfo(total.dtype).max)
    best = jnp.argmin(total)
    # Paired differences: an entry that is hard at one rank is hard at the next.
    spread = jnp.std(losses - losses[best][None, :], axis=1, ddof=1) * GROUPS**0.5
    # Ranks that fit to rounding level are as good as each other.
    exact = jnp.finfo(total.dtype).eps * whole
    within = total <= jnp.maximum((1 + tolerance) ** 2 * total[best], exact)
    within |= total - total[best] <= spread
    chosen = jnp.argmax(within)
    return (chosen + 1).astype(jnp.int32), jnp.sqrt(total / whole), jnp.sqrt(total[chosen] / whole)
