"""The units in which least squares are solved: powers of two for columns, right sides and weights."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax._pytree import pytree
from lrjax._units import beyond, exponent, power, shifted
from lrjax.linalg import guarded
from lrjax.linalg.scaling import column_exponents
from lrjax.sketching import _normal
from lrjax.sketching._normal import Scaled, mul

# Rows that are looked at, per column: all of them only where these say that scaling is called for.
_SAMPLE_ROWS = 4


@pytree
class Units:
    """The problem that is solved has `a diag(2^-columns)`, `b 2^-right` and `w 2^-weights`, all of ordinary size.

    Attributes:
        columns: `(d,)` int32.
        right: `(q,)` int32.
        weights: int32, even.
    """

    columns: jax.Array
    right: jax.Array
    weights: jax.Array

    def matrix(self, a: Any) -> Scaled:
        """`a` in these units, without a copy."""
        return Scaled(matrix=a, columns=power(-self.columns, a.dtype))

    def right_side(self, b: jax.Array) -> jax.Array:
        """`b` `(n, q)` in these units."""
        return b * power(-self.right, b.dtype)[None, :]

    def ridge(self, ridge: jax.Array) -> jax.Array:
        """The ridge of each column, `(d,)`."""
        return shifted(ridge, -2 * self.columns - self.weights)

    def solution(self, x: jax.Array) -> jax.Array:
        """`x` `(d, q)` in the units of the data."""
        return shifted(x, self.right[None, :] - self.columns[:, None])

    def norm(self, norm: jax.Array) -> jax.Array:
        """Norms of residuals `(q,)` in the units of the data."""
        return shifted(norm, self.right + self.weights // 2)


def choose(tops: jax.Array, b: jax.Array, even: jax.Array, ridge: jax.Array) -> Units:
    """Units for columns whose largest entries, with weights divided by `2^even`, are `tops`."""
    columns = column_exponents(tops)
    # A ridge far above the matrix sets the unit: the solution is of its size then.
    over = jnp.max(exponent(ridge) - 2 * columns) - even
    raised = jnp.where(ridge > 0, jnp.maximum(beyond(over, tops.dtype), 0) // 2, 0)
    limit = jnp.finfo(tops.dtype).maxexp - 2
    return Units(
        columns=jnp.minimum(columns + raised, limit), right=jnp.clip(exponent(b, 0), -limit, limit), weights=even
    )


def choose_wide(a: jax.Array, b: jax.Array, weights: jax.Array | None, even: jax.Array, ridge: jax.Array) -> Units:
    """One unit for all columns: the least solution depends on theirs."""
    tops = jnp.broadcast_to(jnp.max(column_tops(a, weights)), a.shape[1:])
    return choose(tops, b, even, ridge)


def weight_exponent(weights: jax.Array) -> jax.Array:
    """An even power of two for the weights."""
    return beyond(exponent(weights), weights.dtype) // 2 * 2


def column_tops(a: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The largest entry of each column of `sqrt(w) a`, `(d,)`.

    A pass over the rows costs up to a sixth of a solve. Where a sample of them shows columns of ordinary size that are
    alike, that is enough to know.
    """
    n, d = a.shape
    root = None if weights is None else jax.lax.stop_gradient(jnp.sqrt(weights))
    a = jax.lax.stop_gradient(a)
    step = max(1, n // (_SAMPLE_ROWS * d))
    of = lambda rows, root: jnp.max(jnp.abs(_normal.weigh(root, rows)), axis=0)
    seen = of(a[::step], None if root is None else root[::step])
    if step == 1:
        return seen
    usual = jnp.all(seen > 0) & jnp.all(column_exponents(seen) == 0)
    return jax.lax.cond(usual, lambda: seen, lambda: of(a, root))


def least_norm(x: jax.Array, basis: jax.Array, inverse: jax.Array, columns: jax.Array) -> jax.Array:
    """`x` `(d, q)`, in units, moved along the directions left out so that it is the least one in the units of the data.

    Nothing to do where all columns have one unit: the directions kept are orthogonal to those left out.
    """
    dropped = inverse == 0
    size = power(jnp.min(columns) - columns, x.dtype)

    def move() -> jax.Array:
        away = jnp.where(dropped[None, :], basis.T, 0)
        length = jnp.sqrt(jnp.sum((size[:, None] * away) ** 2, axis=0))
        away = away / jnp.where(length > 0, length, 1)[None, :]
        left, sigma, right = guarded.svd(size[:, None] * away)
        scale = _normal.with_inverse(right, sigma).inverse
        along = mul(right.T, scale[:, None] * mul(left.T, size[:, None] * x))
        return x - mul(away, along)

    # A constant to autodiff: the least solution is a fixed projection of any other.
    basis, dropped = jax.lax.stop_gradient((basis, dropped))
    return jax.lax.cond(jnp.any(dropped) & jnp.any(size != size[0]), move, lambda: x)
