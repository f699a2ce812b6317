"""Exact units: what is very small or very large is divided by a power of two, which rounds nothing."""

import jax
import jax.numpy as jnp

from lrjax._pytree import pytree


def exponent(x: jax.Array) -> jax.Array:
    """The int32 `e` with `2^e <= max |x| < 2^(e + 1)`; zero if that is zero or not finite. A constant to autodiff."""
    top = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    known = jnp.isfinite(top) & (top > 0)
    _, power = jnp.frexp(jnp.where(known, top, 1))
    # Subnormal numbers are zero to some processors.
    return jnp.maximum(power.astype(jnp.int32) - 1, jnp.finfo(top.dtype).minexp)


def power(e: jax.Array, dtype) -> jax.Array:
    """`2^e`, exactly."""
    return jnp.ldexp(jnp.ones((), dtype), e)


def unit_of(x: jax.Array) -> jax.Array:
    """The largest power of two that is at most `max |x|`; one if that is zero or not finite."""
    return power(exponent(x), jnp.finfo(x.dtype).dtype)


def times(x: jax.Array, *factors: jax.Array) -> jax.Array:
    """`x` times one factor after the other: their product alone may lie outside the range of the dtype."""
    for factor in factors:
        x = x * factor
    return x


def shift(x: jax.Array, e: jax.Array) -> jax.Array:
    """`x 2^e` for real or complex `x`, exact where the dtype holds it; in steps that it holds themselves."""
    quarter, dtype = e // 4, jnp.finfo(x.dtype).dtype
    factors = [power(quarter, dtype)] * 3 + [power(e - 3 * quarter, dtype)]
    return times(x, *[factor.astype(x.dtype) for factor in factors])


def norm(x: jax.Array) -> jax.Array:
    """Frobenius norm, without overflow and underflow; its derivative at zero is zero."""
    unit = unit_of(x)
    square = jnp.sum((x / unit) ** 2)
    return unit * jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), square)


@pytree
class Units:
    """What a solve measures in: powers of two near the size of the measurements and of the weights.

    Attributes:
        factor: unit of each factor; its square is the unit of the measurements and of the matrix.
        weight: unit of the weights.
        degree: the loss grows like the measurements to this power.
    """

    factor: jax.Array
    weight: jax.Array
    degree: int = jax.tree.static()

    @property
    def measurement(self) -> jax.Array:
        """Unit of the measurements."""
        return self.factor * self.factor

    @property
    def objective(self) -> tuple[jax.Array, ...]:
        """Unit of the objective, as factors of a product."""
        return (self.weight, *[self.measurement] * self.degree)
