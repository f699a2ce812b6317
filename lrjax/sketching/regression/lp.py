"""`lp_regression`: regression in the p-norm, on all rows or on a sample of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import status
from lrjax.core.checks import check_count, check_finite, check_key, check_range, host_number, number, real_array
from lrjax.core.numerics import matmul, or_one, safe_divide
from lrjax.core.pytree import pytree
from lrjax.core.result import Result
from lrjax.core.units import exponent, power, shifted
from lrjax.sketching.base import check_scores
from lrjax.sketching.regression.column_units import least_norm
from lrjax.sketching.row_sampling import (
    RowSample,
    _basis,
    _check_matrix,
    leverage_scores,
    lewis_weights,
    root_leverage_scores,
)

_SCORES = ("auto", "lewis", "leverage", "root_leverage", "uniform")
# Steps tried along each direction, as multiples of Newton's (p > 2) or of the reweighted least squares' (p <= 2).
_TRIALS = np.concatenate([[0.0], 2.0 ** np.arange(-6, 4)])
# The power grows by this factor a step, and the smoothing shrinks by this one.
_GROWTH = 1.2
_FADE = 0.5
# Stalled once the gap has not shrunk by a tenth in so many steps.
_PROGRESS = 0.9
_PATIENCE = 50


@pytree
class LpResult(Result):
    """What `lp_regression` returns.

    Attributes:
        x: `(d,)`, the solution.
        objective: `||a x - b||_p` on all the rows, sampled or not; a scalar.
        gap: how far the objective of the problem that was solved (the sample's, if there is one) may be above
            its least value, relative to itself: an upper bound from the dual problem, up to rounding.
        num_steps: int32, iterations taken.
        status: int32 code of `lrjax.status`; one per problem under `vmap`.
        method: "full" or "sampled"; static.
        scores: the scores that the rows were drawn by, "given" if they were handed in, "none" without a sample;
            static.
    """

    x: jax.Array
    objective: jax.Array
    gap: jax.Array
    num_steps: jax.Array
    status: jax.Array
    method: str = jax.tree.static()
    scores: str = jax.tree.static()


def lp_regression(
    a: jax.Array,
    b: jax.Array,
    p: float,
    *,
    key: jax.Array | None = None,
    num_rows: int | None = None,
    scores: str | jax.Array = "auto",
    num_steps: int = 500,
    tolerance: float | jax.Array | None = None,
) -> LpResult:
    """Minimises `||a x - b||_p`, 1 <= p < infinity, on all the rows or on a random sample of them.

    Iteratively reweighted least squares from the least-squares solution, in an orthonormal basis of the range of
    `a`. Weights are `|r_i|^(p-2)`; along each direction the best of eleven step sizes is taken. For p < 2 the
    weights are smoothed at a level that halves from the largest residual down to rounding. For p > 2 the power
    starts at 2 and grows by a fifth at each step, and the direction is Newton's; without that, large p stalls.
    It stops when the residuals of the step, made into a feasible point of the dual problem, prove the relative
    gap to be small. About `2 n d^2 + 40 n` operations a step, twice that at p = 1; typically 5 steps at p = 3, 10 to 20
    in (1, 2) and around 20 at p = 50. At p = 1, 10 to 25 steps in float32 and 30 to 130 in float64, where now and then
    a small residual that should not vanish is stuck near zero: the gap then stays above the tolerance, at 1e-6 or so.

    With `num_rows`, the rows of `[a b]` are drawn without replacement by their scores and the small problem is
    solved (sketch-and-solve). The answer is then a factor `1 + eps` off with `eps` about `sqrt(d / m)`: not for
    answers that must agree with the full one, and no gain when n is small, for Lewis weights cost as much as
    thirty steps.

    Differentiable with respect to `a` and `b`, by one Newton step from the constant solution: exact at a
    converged one. For p = 1 that is the derivative of the vertex, defined where the solution is unique and has d
    zero residuals. The sample counts as constant.

    Args:
        a: `(n, d)`, float32 or float64. Lack of full rank and n < d are allowed; x is then the least one.
        b: `(n,)`, of the same dtype.
        p: the power of the norm, static.
        key: one random key. With `num_rows` only.
        num_rows: rows to draw; all are used if left out.
        scores: "auto" ("lewis" for p < 4, else "leverage"), "lewis", "leverage", "root_leverage" (p <= 2),
            "uniform", or `(n,)` nonnegative numbers. For p >= 4 leverage scores come without a guarantee: they
            need up to `d^(p/2-1)` times the rows. With `num_rows` only.
        num_steps: most iterations.
        tolerance: of the relative gap; left out, `eps^(3/4)` for p > 1 (2e-12 in float64, 6e-6 in float32) and
            `eps^(5/8)` for p = 1 (2e-10 and 5e-5).

    Returns:
        An `LpResult`, in the dtype of `a`. Its status is `STALLED` if the gap stopped shrinking above the tolerance (by
        less than a tenth in fifty steps), `RUNNING` after `num_steps`, and `NONFINITE` for a solution that is not.

    Raises:
        ValueError: shapes that do not fit, dtypes that differ, non-finite values; p below 1; `num_rows` without a
            key, or the other way round, or above the number of positive scores; unknown scores, or scores that p
            does not allow.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> a = jax.random.normal(jax.random.key(0), (100, 2))
        >>> b = (a @ jax.numpy.array([1.0, 2.0])).at[:30].add(50.0)  # thirty gross errors
        >>> result = lr.sketching.lp_regression(a, b, 1.0)
        >>> [round(float(value), 1) for value in result.x]
        [1.0, 2.0]
    """
    p = host_number("p", p, low=1)
    a, b = _check_matrix("a", a), real_array("b", b)
    if b.shape != a.shape[:1] or a.dtype != b.dtype:
        raise ValueError(f"b is {b.dtype} of shape {b.shape}; expected {a.dtype} of shape {a.shape[:1]}, as a has it")
    check_finite("b", b)
    num_steps = check_count("num_steps", num_steps)
    check_range("tolerance", tolerance, low=0)
    if tolerance is None:
        tolerance = float(jnp.finfo(a.dtype).eps) ** (0.75 if p > 1 else 0.625)
    tolerance = number("tolerance", tolerance, a.dtype)
    if num_rows is None:
        if key is not None or not (isinstance(scores, str) and scores == "auto"):
            raise ValueError("key and scores are for samples; expected num_rows with them, or neither")
        return _solve(a, b, None, tolerance, p, num_steps, "none")
    if key is None:
        raise ValueError("key is None; expected a random key, for num_rows is given")
    check_key(key)
    values, name = _scores_of(a, b, p, scores)
    sample = RowSample.create(key, values, num_rows, replacement=False, p=p)
    return _solve(a, b, sample, tolerance, p, num_steps, name)


def _scores_of(a: jax.Array, b: jax.Array, p: float, scores: Any) -> tuple[jax.Array, str]:
    if not isinstance(scores, str):
        values = check_scores("scores", scores)
        if values.shape != b.shape:
            raise ValueError(f"scores have shape {values.shape}; expected {b.shape}")
        # Constants to autodiff, here and below: the sample does not move with the data.
        return jax.lax.stop_gradient(values.astype(a.dtype)), "given"
    if scores not in _SCORES:
        raise ValueError(f"scores is {scores!r}; expected one of {_SCORES} or an array")
    if scores == "auto":
        scores = "lewis" if p < 4 else "leverage"
    if scores == "uniform":
        return jnp.ones_like(b), scores
    both = jax.lax.stop_gradient(jnp.concatenate([a, b[:, None]], axis=1))
    if scores == "leverage":
        return leverage_scores(both), scores
    return (lewis_weights if scores == "lewis" else root_leverage_scores)(both, p), scores


@functools.partial(jax.jit, static_argnames=("p", "num_steps", "name"))
def _solve(
    a: jax.Array, b: jax.Array, sample: RowSample | None, tolerance: jax.Array, p: float, num_steps: int, name: str
) -> LpResult:
    rows, target = (a, b) if sample is None else (sample.apply(a), sample.apply(b))
    # Constants to autodiff: the derivative is added, by a Newton step.
    fixed = jax.lax.stop_gradient((rows, target))
    found = _basis(fixed[0])
    # All in units: those of the columns, and one for the right side.
    unit, columns = exponent(target), power(-found.columns, a.dtype)[None, :]
    z, gap, steps, code = _minimise(found.basis, shifted(fixed[1], -unit), tolerance, p, num_steps)
    x = matmul(found.right.T, found.inverse * z)
    x = x + _newton_derivative(rows * columns, shifted(target, -unit), x, found, p)
    x = least_norm(x[:, None], found.right, found.inverse, found.columns)[:, 0]
    objective = shifted(_norm(shifted(b, -unit) - matmul(a * columns, x), p), unit)
    x = shifted(x, unit - found.columns)
    finite = jnp.isfinite(objective) & jnp.all(jnp.isfinite(x))
    return LpResult(
        x=x,
        objective=objective,
        gap=gap,
        num_steps=steps,
        status=jnp.where(finite, code, jnp.int32(status.NONFINITE)),
        method="full" if sample is None else "sampled",
        scores=name,
    )


def _norm(r: jax.Array, p: float) -> jax.Array:
    """`||r||_p`, with derivative 0 at r = 0."""
    # A constant to autodiff: it cancels.
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(r)))
    total = jnp.sum(jnp.abs(safe_divide(r, top)) ** p)
    return jnp.where(top > 0, top * jnp.where(top > 0, total, 1) ** (1 / p), jnp.sum(r * 0))


def _weights(r: jax.Array, power: Any, smooth: Any) -> jax.Array:
    """`|r_i|^(p-2)` up to a factor, smoothed at a level relative to the largest residual."""
    top = jnp.max(jnp.abs(r))
    u = safe_divide(r, top)
    return (u**2 + smooth**2) ** ((power - 2) / 2)


def _normal_solve(basis: jax.Array, weights: jax.Array, rhs: jax.Array) -> jax.Array:
    """`(basis^T W basis)^-1 rhs`, with a ridge at rounding level so that missing directions do no harm."""
    gram = matmul(basis.T, weights[:, None] * basis)
    # Where all residuals are zero so are the weights, for p > 2: the smallest number keeps zero over zero at zero.
    info = jnp.finfo(basis.dtype)
    ridge = float(info.eps) * jnp.max(jnp.diagonal(gram)) + float(info.tiny)
    factor = jax.scipy.linalg.cho_factor(gram + ridge * jnp.eye(len(gram), dtype=gram.dtype))
    return jax.scipy.linalg.cho_solve(factor, rhs)


def _bound(basis: jax.Array, r: jax.Array, y: jax.Array) -> jax.Array:
    """A lower bound of `min ||r - basis z||_1`, from a point that is nearly feasible for its dual.

    The entries of `y` that belong to small residuals exceed one, which scaling would make all others pay for. They are
    cut off, and those with room left restore `basis^T y = 0`. What rounding leaves of that, `f`, is paid for: with
    `||r||_1 >= ||r - basis z||_1`, `y.basis z = f.z <= |f| |basis z| <= 2 |f| ||r||_1`.
    """
    y = jnp.clip(y, -1, 1)
    room = 1 - y**2
    y = y - room * matmul(basis, _normal_solve(basis, room, matmul(basis.T, y)))
    left = jnp.linalg.norm(matmul(basis.T, y))
    return (jnp.sum(r * y) - 2 * left * jnp.sum(jnp.abs(r))) / jnp.max(jnp.abs(y))


def _minimise(
    basis: jax.Array, b: jax.Array, tolerance: jax.Array, p: float, num_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`(z, gap, num_steps, status)` of `min ||b - basis z||_p` for orthonormal columns (or zero ones)."""
    unit = float(jnp.finfo(b.dtype).eps)
    trials = jnp.asarray(_TRIALS, b.dtype)
    nothing = 100 * unit * jnp.max(jnp.abs(b))
    start = matmul(basis.T, b)
    # What is fitted from here on is the residual of least squares, so that rounding is relative to it and not to b.
    b = b - matmul(basis, start)

    def step(carry: Any) -> Any:
        z, r, power, smooth, dual, mark, k, _ = carry
        top = jnp.max(jnp.abs(r))
        weights = _weights(r, power, smooth)
        direction = _normal_solve(basis, weights, matmul(basis.T, weights * r))
        move = matmul(basis, direction)
        # Normal equations: basis^T W (r - move) = 0, so this is feasible for the dual, max b.y over basis^T y = 0 and
        # ||y||_q <= 1, once scaled; and b.y = r.y there.
        y = weights * (r - move)
        found = jnp.sum(r * y) / _norm(y, p / (p - 1)) if p > 1 else _bound(basis, r, safe_divide(y, top))
        dual = jnp.where(power == p, jnp.fmax(dual, found), dual)
        sizes = trials / jnp.maximum(power - 1, 1)
        # One pass over the rows for all trials; powers of numbers of at most order one.
        tried = jnp.abs(r[:, None] - move[:, None] * sizes[None]) / or_one(top)
        size = sizes[jnp.argmin(jnp.sum(tried**power, axis=0))]
        z_next = z + size * direction
        r_next = b - matmul(basis, z_next)
        gap = jnp.maximum(1 - dual / _norm(r_next, p), 0)
        finite = jnp.all(jnp.isfinite(r_next))
        done = (gap <= tolerance) | (jnp.max(jnp.abs(r_next)) <= nothing)
        # The gap of the last step with progress, and how long ago that was.
        level, since = mark
        better = (power != p) | (gap < _PROGRESS * level)
        mark = jnp.where(better, gap, level), jnp.where(better, 0, since + 1)
        code = jnp.where(mark[1] >= _PATIENCE, status.STALLED, status.RUNNING)
        code = jnp.where(finite, jnp.where(done, status.CONVERGED, code), status.NONFINITE).astype(jnp.int32)
        z, r = jnp.where(finite, z_next, z), jnp.where(finite, r_next, r)
        smooth = jnp.maximum(_FADE * smooth, unit if p < 2 else 0)
        return z, r, jnp.minimum(_GROWTH * power, p), smooth, dual, mark, k + 1, code

    at_once = jnp.max(jnp.abs(b)) <= nothing
    one = 1 + 0 * jnp.max(jnp.abs(b))
    code = jnp.where(at_once, jnp.int32(status.CONVERGED), jnp.int32(status.RUNNING))
    carry = (0 * start, b, min(p, 2.0) * one, one if p < 2 else 0 * one, 0 * one, (one, 0 * code), 0 * code, code)
    going = lambda carry: (carry[-1] == status.RUNNING) & (carry[-2] < num_steps)
    z, r, _, _, dual, _, k, code = jax.lax.while_loop(going, step, carry)
    # Of an exact fit nothing is left to gain.
    gap = jnp.where(jnp.max(jnp.abs(r)) <= nothing, 0, jnp.maximum(1 - dual / _norm(r, p), 0))
    return start + z, gap, k, code


def _newton_derivative(a: jax.Array, b: jax.Array, x: jax.Array, factors: Any, p: float) -> jax.Array:
    """Zero, with the derivative of the solution: the linearised condition `a^T (|r|^(p-2) r) = 0`, solved for x.

    `dx = M^-1 (a^T W dr + da^T W r / (p - 1))` with `M = a^T W a` and `dr = db - da x`; the weights fade out the
    second term as p tends to 1, where d residuals vanish.
    """
    basis, inverse, right, _ = factors
    # Constants: what is differentiated is one linear step from the solution, which is one itself.
    rows, target = jax.lax.stop_gradient((a, b))
    r = target - matmul(rows, x)
    weights = _weights(r, p, float(jnp.finfo(b.dtype).eps) if p < 2 else 0.0)
    rhs = matmul(rows.T, weights * (b - matmul(a, x)))
    if p > 1:
        rhs = rhs + matmul((a - rows).T, weights * r) / (p - 1)
    rhs = rhs - jax.lax.stop_gradient(rhs)
    # M^-1 through the basis: a = basis diag(1 / inverse) right.
    return matmul(right.T, inverse * _normal_solve(basis, weights, inverse * matmul(right, rhs)))
