"""Exact units: what is very small or very large is divided by a power of two, which rounds nothing."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.pytree import pytree


def exponent(x: jax.Array, axis: Any = None, keepdims: bool = False) -> jax.Array:
    """The int32 `e` with `2^e <= max |x| < 2^(e + 1)`; zero where that maximum is zero or not finite.

    A constant to autodiff: what is divided by a power of two is multiplied by it again.
    """
    top = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=axis, keepdims=keepdims, initial=0)
    known = jnp.isfinite(top) & (top > 0)
    e = jnp.frexp(jnp.where(known, top, 1))[1].astype(jnp.int32) - 1
    # Subnormal numbers are zero to some processors.
    return jnp.maximum(e, jnp.finfo(top.dtype).minexp)


def power(e: jax.Array, dtype: Any) -> jax.Array:
    """`2^e`, exactly, for int32 exponents in the range of normal numbers."""
    info = jnp.finfo(dtype)
    kind = {16: jnp.int16, 32: jnp.int32, 64: jnp.int64}[info.bits]
    bits = e.astype(kind) + jnp.asarray(info.maxexp - 1, kind)
    return jax.lax.bitcast_convert_type(bits << jnp.asarray(info.nmant, kind), jnp.dtype(dtype))


def shifted(x: jax.Array, e: jax.Array) -> jax.Array:
    """`x 2^e`, exactly where that is in range, though `2^e` itself may not be."""
    real = jnp.finfo(x.dtype).dtype
    for i in range(4):
        x = x * power((e + jnp.int32(i)) >> 2, real).astype(x.dtype)
    return x


def beyond(e: jax.Array, dtype: Any) -> jax.Array:
    """Exponents outside the middle eighth of those of `dtype`, where squares of squares are safe; zero for the rest."""
    return jnp.where(jnp.abs(e) > jnp.finfo(dtype).maxexp // 8, e, 0)


def unit_of(x: jax.Array) -> jax.Array:
    """The largest power of two that is at most `max |x|`; one if that is zero or not finite."""
    return power(exponent(x), jnp.finfo(x.dtype).dtype)


def times(x: jax.Array, *factors: jax.Array) -> jax.Array:
    """`x` times one factor after the other: their product alone may lie outside the range of the dtype."""
    for factor in factors:
        x = x * factor
    return x


def root(square: jax.Array) -> jax.Array:
    """The square root, with derivative zero at zero, where it would be infinite; NaN stays."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), square)


def norm(x: jax.Array) -> jax.Array:
    """Frobenius norm, without overflow and underflow; its derivative at zero is zero."""
    unit = unit_of(x)
    return unit * root(jnp.sum((x / unit) ** 2))


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
