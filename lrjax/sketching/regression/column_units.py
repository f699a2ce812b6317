"""The units in which least squares are solved: powers of two for columns, right sides and weights."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.numerics import matmul, or_one
from lrjax.core.pytree import pytree
from lrjax.core.units import beyond, exponent, power, shifted
from lrjax.linalg import guarded
from lrjax.linalg.scaling import SPREAD, column_exponents
from lrjax.sketching.regression import normal_equations
from lrjax.sketching.regression.normal_equations import Scaled

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


def choose(
    a: jax.Array, weights: jax.Array | None, b: jax.Array, even: jax.Array, ridge: jax.Array, *, alike: bool = False
) -> Units:
    """Units for the columns of `sqrt(w) a`, with weights divided by `2^even`; `alike`: one for all of them.

    A pass over the rows costs up to a sixth of a solve. Where a sample of them shows columns of ordinary size that are
    alike, that is enough to know.
    """
    n, d = a.shape
    root = None if weights is None else jax.lax.stop_gradient(jnp.sqrt(weights))
    a = jax.lax.stop_gradient(a)
    step = max(1, n // (_SAMPLE_ROWS * d))
    tops = lambda rows, root: jnp.max(jnp.abs(normal_equations.weigh(root, rows)), axis=0)
    seen = tops(a[::step], None if root is None else root[::step])
    limit, most = 2.0 ** (jnp.finfo(a.dtype).maxexp // 8), jnp.finfo(a.dtype).maxexp - 2

    def found() -> jax.Array:
        largest = seen if step == 1 else tops(a, root)
        columns = column_exponents(jnp.broadcast_to(jnp.max(largest), (d,)) if alike else largest)
        # A ridge far above the matrix sets the unit: the solution is of its size then.
        over = jnp.max(exponent(ridge) - 2 * columns) - even
        raised = jnp.where(ridge > 0, jnp.maximum(beyond(over, a.dtype), 0) // 2, 0)
        return jnp.minimum(columns + raised, most)

    # When `found` would give zeros.
    low, high = jnp.min(seen), jnp.max(seen)
    usual = (low * 2**SPREAD > high) & (low * limit > 1) & (high < limit) & (ridge < limit) & (even == 0)
    columns = jax.lax.cond(usual, lambda: jnp.zeros(d, jnp.int32), found)
    return Units(columns=columns, right=jnp.clip(exponent(b, 0), -most, most), weights=even)


def weight_exponent(weights: jax.Array) -> jax.Array:
    """An even power of two for the weights."""
    return beyond(exponent(weights), weights.dtype) // 2 * 2


def least_norm(x: jax.Array, basis: jax.Array, inverse: jax.Array, columns: jax.Array) -> jax.Array:
    """`x` `(d, q)`, in units, moved along the directions left out so that it is the least one in the units of the data.

    Nothing to do where all columns have one unit: the directions kept are orthogonal to those left out.
    """
    dropped = inverse == 0
    size = power(jnp.min(columns) - columns, x.dtype)

    def move() -> jax.Array:
        away = jnp.where(dropped[None, :], basis.T, 0)
        length = jnp.sqrt(jnp.sum((size[:, None] * away) ** 2, axis=0))
        away = away / or_one(length)[None, :]
        left, sigma, right = guarded.svd(size[:, None] * away)
        scale = normal_equations.with_inverse(right, sigma).inverse
        along = matmul(right.T, scale[:, None] * matmul(left.T, size[:, None] * x))
        return x - matmul(away, along)

    # A constant to autodiff: the least solution is a fixed projection of any other.
    basis, dropped = jax.lax.stop_gradient((basis, dropped))
    return jax.lax.cond(jnp.any(dropped) & jnp.any(size != size[0]), move, lambda: x)
