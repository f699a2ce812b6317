"""Gradient descent on a matrix of bounded rank and on whatever else the objective depends on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lrjax import status
from lrjax.core.checks import check_count, check_finite, number, real_array
from lrjax.core.numerics import safe_divide
from lrjax.core.pytree import map_floats, pytree
from lrjax.core.result import Result
from lrjax.core.units import exponent, norm, power
from lrjax.iteration import loop
from lrjax.problems.factors import Factors, as_factors, best_rank, difference_norm


@pytree
class RankProjectedResult(Result):
    """What `rank_projected_descent` returns; under vmap every array has the lane axes in front.

    Attributes:
        factors: the last finite iterate, balanced, columns in the order of its singular values.
        free: the last finite value of what is not bound to a rank.
        status: int32 code of `lrjax.status`.
        num_steps: int32, steps taken.
        trace: `"step"` and `"objective"`, a row for each record, row 0 the start. A finished lane repeats its last row.
    """

    factors: Factors
    free: Any
    status: jax.Array
    num_steps: jax.Array
    trace: dict[str, jax.Array]

    @property
    def objective(self) -> jax.Array:
        """Objective of `factors` and `free`."""
        return self.trace["objective"][..., -1]


@pytree
class _State:
    factors: tuple[Factors, Any]
    slope: tuple[jax.Array, Any]
    count: jax.Array
    info: dict[str, jax.Array]


def rank_projected_descent(
    objective: Callable[[jax.Array, Any], jax.Array],
    start: Factors | jax.Array,
    free: Any = None,
    *,
    rank: int,
    step_size: float | jax.Array | Callable[[jax.Array], Any],
    num_steps: int,
    record_every: int = 1,
    tolerance: float | jax.Array | None = None,
) -> RankProjectedResult:
    """Minimises `objective(matrix, free)` over matrices of rank at most `rank` and over `free`.

    A step is one of gradient descent in both at once, after which the matrix is replaced by the best approximation of
    that rank: `X <- P_k(X - t dX)`, `free <- free - t dfree`. The gradient is that of JAX, so the objective may be
    anything differentiable; to bound the joint rank of several matrices, stack them.

    If the objective is `mu` strongly convex, its gradient has the Lipschitz constant `L`, and its minimiser over all
    matrices has that rank already, then a step shortens the distance to it to at most `2 max(|1 - t mu|, |1 - t L|)`
    of what it was: below one for `L < 3 mu` and `1 / (2 mu) < t < 3 / (2 L)`, whatever the start. Otherwise `2 t` times
    the norm of the gradient at the best matrix of that rank adds to this, and the rate is slower where the singular
    values have no gap at the rank. Beyond the condition take `t` up to `1 / L`: the objective then does not rise.

    A pure function: jit it, vmap it over starts, step sizes or data, differentiate it. To compile once for many data
    sets, pass these by `jax.tree_util.Partial(objective, data)` with an `objective(data, matrix, free)` of a module,
    or call it under your own jit; a new closure is a new program.

    Args:
        objective: `(matrix, free) -> scalar`; `matrix` is a dense `(n1, n2)` array.
        start: a dense matrix or `Factors`, replaced by its best approximation of rank `rank`. Its dtype is kept.
        free: a pytree of real arrays that no rank binds, or `None`.
        rank: bound on the rank of the matrix.
        step_size: a number, or a schedule `step -> number` such as those of optax.
        num_steps: steps at most; a multiple of `record_every`.
        record_every: steps between two rows of the trace.
        tolerance: stop when a step moves matrix and free part by at most this, relative to their norm together;
            default fifty times the rounding unit. Short steps look like convergence.

    Returns:
        A `RankProjectedResult`. Nothing raises for lack of convergence; a lane whose next iterate is not finite keeps
        its last one and has the status `NONFINITE`.

    Raises:
        ValueError: a start that is no real finite matrix, a rank that does not fit, a free part, step size, count or
            tolerance out of range, or an objective that is not a real scalar.

    Cost of a step: value and gradient of the objective, and a QR and SVD of the matrix, `O(n1 n2 min(n1, n2))`.

    When not to use it: linear measurements with a squared loss (`lr.solve` works on factors alone), or sides of many
    thousands, where the SVD decides.

    Source: the method of Lee, Lyu and Yao, arXiv 2206.06774, for a general objective.

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> y = 3 + jnp.outer(jnp.arange(5.0), jnp.array([1.0, -1.0, 0.5]))
        >>> objective = lambda x, mean: 0.5 * jnp.sum((x + mean - y) ** 2)
        >>> found = lr.rank_projected_descent(
        ...     objective, 0 * y, jnp.zeros(()), rank=1, step_size=0.1, num_steps=400
        ... )
        >>> bool(abs(found.free - 3) < 1e-2)
        True
    """
    if not callable(objective):
        raise ValueError(f"objective must be a function (matrix, free) -> scalar; got {objective!r}")
    matrix = _as_matrix("start", start)
    rank = check_count("rank", rank)
    if rank > min(matrix.shape):
        raise ValueError(f"rank must be at most {min(matrix.shape)} for a start of shape {matrix.shape}; got {rank}")
    free = jax.tree.map(lambda leaf: real_array("free", leaf), free)
    for leaf in jax.tree.leaves(free):
        check_finite("free", leaf)
    if not callable(step_size):
        step_size = number("step_size", step_size, matrix.dtype, low=0, open_low=True)
    num_steps, record_every = check_count("num_steps", num_steps), check_count("record_every", record_every)
    if num_steps % record_every:
        raise ValueError(f"num_steps must be a multiple of record_every; got {num_steps} and {record_every}")
    tolerance = 50 * float(jnp.finfo(matrix.dtype).eps) if tolerance is None else tolerance
    tolerance = number("tolerance", tolerance, matrix.dtype, low=0)
    # A `Partial` is a pytree: its arrays are arguments of the program, and a plain function is part of it.
    as_argument = lambda f: f if isinstance(f, jax.tree_util.Partial) else jax.tree_util.Partial(f)
    if callable(step_size):
        step_size = as_argument(step_size)
    return _run(
        as_argument(objective),
        matrix,
        free,
        step_size,
        tolerance,
        rank=rank,
        num_steps=num_steps,
        record_every=record_every,
    )


def _as_matrix(name: str, given: Any) -> jax.Array:
    matrix = real_array(name, given.dense() if isinstance(given, Factors) else given)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must be lrjax.Factors or a matrix (n1, n2); got shape {matrix.shape}")
    check_finite(name, matrix)
    return matrix


@partial(jax.jit, static_argnames=("rank", "num_steps", "record_every"))
def _run(objective, matrix, free, step_size, tolerance, *, rank, num_steps, record_every):
    slopes = jax.value_and_grad(lambda x: objective(*x))

    def at(factors: Factors, free: Any, count: jax.Array) -> _State:
        value, slope = slopes((factors.dense(), free))
        return _State(factors=(factors, free), slope=slope, count=count, info={"objective": value})

    def step(state: _State, key: jax.Array) -> tuple[_State, jax.Array]:
        size = step_size(state.count) if callable(step_size) else step_size
        move = lambda x, slope: x - jnp.asarray(size, x.dtype) * slope
        (factors, free), (slope, free_slope) = state.factors, state.slope
        new = at(project(move(factors.dense(), slope), rank), jax.tree.map(move, free, free_slope), state.count + 1)
        return new, jnp.where(_change(state.factors, new.factors) <= tolerance, status.CONVERGED, status.RUNNING)

    # Types and sharding of the carry come from the data.
    value = objective(matrix, free)
    if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise ValueError(f"objective must return a real scalar; got {value!r}")
    zero = loop.zero_like(value)
    free = map_floats(lambda leaf: leaf + zero.astype(leaf.dtype), free)
    carry = loop.start(at(project(matrix + zero.astype(matrix.dtype), rank), free, zero))
    row = lambda carry: {"step": carry[2], **carry[0].info}
    first = row(carry)
    # The loop wants a key for steps that draw; these do not.
    carry, rows = loop.blocks(loop.guarded(step, jax.random.key(0)), row, carry, num_steps, record_every)
    (factors, free), code, taken = carry[0].factors, carry[1], carry[2]
    trace = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rows)
    return RankProjectedResult(factors=factors, free=free, status=code, num_steps=taken, trace=trace)


def project(matrix: jax.Array, rank: int) -> Factors:
    """The best approximation of rank `rank`, as balanced factors.

    By QR along the longer side and an SVD of the rest. Eigenvectors of the Gram matrix would take a half to a quarter
    of the time, and lose as many digits as the condition number of the part kept has.
    """
    # In units of its own: the derivative has squares of singular values.
    unit = power(exponent(matrix) // 2, matrix.dtype)
    matrix = matrix / unit / unit
    if matrix.shape[0] >= matrix.shape[1]:
        found = best_rank(as_factors("matrix", matrix), rank)
        return Factors(found.left * unit, found.right * unit)
    found = best_rank(as_factors("matrix", matrix.T), rank)
    return Factors(found.right * unit, found.left * unit)


def _change(old: tuple[Factors, Any], new: tuple[Factors, Any]) -> jax.Array:
    """Length of the step over that of the new iterate."""
    (factors, free), dtype = new, new[0].left.dtype
    # The factors are balanced: squared singular values are sums of fourth powers of what is in them.
    unit = power(exponent(factors.left), dtype)
    small = lambda x: Factors(x.left / unit, x.right / unit)
    steps = [difference_norm(small(factors), small(old[0])) * unit * unit]
    sizes = [norm(jnp.sum((factors.left / unit) ** 2, axis=0)) * unit * unit]
    for after, before in zip(jax.tree.leaves(free), jax.tree.leaves(old[1]), strict=True):
        steps.append(norm(after - before).astype(dtype))
        sizes.append(norm(after).astype(dtype))
    moved, size = norm(jnp.stack(steps)), norm(jnp.stack(sizes))
    # An overflow is no small step.
    return jnp.where(jnp.isfinite(size), safe_divide(moved, size), jnp.inf)
