"""Least squares by QR and an SVD of the small factor, for tall and wide matrices."""

import jax
import jax.numpy as jnp

from lrjax.core.numerics import matmul, safe_divide, safe_reciprocal
from lrjax.sketching.regression import normal_equations
from lrjax.sketching.regression.normal_equations import Factor


def scale_rows(a: jax.Array, b: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Rows times the roots of their weights: the problem without weights."""
    if weights is None:
        return a, b
    root = safe_sqrt(weights)[:, None]
    return root * a, root * b


def safe_sqrt(value: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0 so that an infinite slope does not turn a zero into NaN."""
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1)), 0 * value)


def tall(a: jax.Array, b: jax.Array, weights: jax.Array | None, ridge: jax.Array) -> tuple[jax.Array, Factor]:
    """`x`, `(d, q)`, and the factor of the normal matrix, for `n >= d` and a ridge `(d,)`."""
    rows, target = scale_rows(a, b, weights)
    q, left, sigma, right = normal_equations.qr_svd(normal_equations.with_ridge(rows, ridge))
    factor = normal_equations.with_inverse(right, sigma, jnp.sum(rows**2))
    x = matmul(right.T, factor.inverse[:, None] * matmul(left.T, matmul(q[: len(rows)].T, target)))
    # Rows of a large ridge leave those of `a` in `q` to rounding; one step of refinement makes up for it.
    step = factor.solve(normal_equations.downhill(rows, target, None, ridge, x))
    return x + jnp.where(jnp.any(ridge > 0), step, 0), factor


def wide(a: jax.Array, b: jax.Array, ridge: jax.Array) -> tuple[jax.Array, Factor]:
    """`x = a^T y`, `(d, q)`, for `n < d` and rows already scaled, with `(a a^T + ridge) y = b`; and the factor of that.

    Differentiable by an exact Newton step in `y` from a constant.
    """
    # Constants to autodiff: all derivatives come from the Newton step, which is zero.
    rows, target, level = jax.lax.stop_gradient((a, b, ridge))
    q, left, sigma, right = normal_equations.qr_svd(rows.T)
    size = jnp.hypot(sigma, jnp.sqrt(level))
    keep = size > normal_equations.RANK_LEVEL * jnp.finfo(a.dtype).eps * jnp.max(sigma)
    inverse = safe_reciprocal(size, keep)
    scores = inverse[:, None] * matmul(right, target)
    y = matmul(right.T, inverse[:, None] * scores)
    x = matmul(q, matmul(left, (sigma * inverse)[:, None] * scores))
    # `a^T y` with the value of x: rounding in y, which may be far larger than x, must not enter.
    primal = x + matmul((a - rows).T, y)
    remainder = b - matmul(a, primal) - ridge * y
    step = jax.lax.custom_linear_solve(
        lambda v: matmul(a, matmul(a.T, v)) + ridge * v,
        remainder,
        # Multiplied in one at a time: their square may underflow.
        lambda _, v: matmul(right.T, inverse[:, None] * (inverse[:, None] * matmul(right, v))),
        symmetric=True,
    )
    exact = primal + matmul(a.T, step)
    return x + exact - jax.lax.stop_gradient(exact), Factor(
        basis=right, sizes=size, inverse=inverse, norm=jnp.max(sigma)
    )


def wide_errors(
    a: jax.Array, b: jax.Array, weights: jax.Array | None, ridge: jax.Array, x: jax.Array, full: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Norms of residuals, and backward errors; `full` is whether the rows are independent."""
    norm = safe_sqrt(jnp.sum(normal_equations.weigh(weights, (b - matmul(a, x)) ** 2), axis=0))
    # Reported, not differentiated.
    rows, target, fit, level = jax.lax.stop_gradient((*scale_rows(a, b, weights), x, ridge))
    # With a ridge the residual is `ridge y`, and with dependent rows it need not vanish; what is left of it in the
    # normal equations counts.
    normal = (level > 0) | ~full
    ridges = jnp.broadcast_to(level, rows.shape[1:])
    miss = jnp.where(normal, jnp.linalg.norm(normal_equations.downhill(rows, target, None, ridges, fit), axis=0), norm)
    size = jnp.linalg.norm(rows) * jnp.linalg.norm(fit, axis=0) + jnp.linalg.norm(target, axis=0)
    size = jnp.where(normal, size * jnp.linalg.norm(rows), size)
    return norm, jax.lax.stop_gradient(jnp.where(size > 0, safe_divide(miss, size), 0))
