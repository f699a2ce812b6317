"""Powers of two that bring numbers into the middle of the range of their dtype: exact, and constant to autodiff.

Squares of numbers below 1e-19 or above 1e19 leave the range of single precision. Norms, normal matrices and stopping
tests square; so data come in units of a power of two, and what is found is turned back into theirs.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Columns are alike if their largest entries differ by less than this power of two.
SPREAD = 10


def exponent(x: jax.Array, axis: Any = None, keepdims: bool = False) -> jax.Array:
    """The int32 `e` with `2^e <= max |x| < 2^(e + 1)`; zero where that maximum is zero or not finite."""
    # A constant to autodiff: what is multiplied by a power of two is divided by it again.
    top = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=axis, keepdims=keepdims, initial=0)
    good = (top > 0) & jnp.isfinite(top)
    return jnp.where(good, jnp.frexp(jnp.where(good, top, 1))[1] - 1, 0).astype(jnp.int32)


def beyond(e: jax.Array, dtype: Any) -> jax.Array:
    """Exponents outside the middle eighth of those of `dtype`, where squares of squares are safe; zero for the rest."""
    return jnp.where(jnp.abs(e) > jnp.finfo(dtype).maxexp // 8, e, 0)


def power(e: jax.Array, dtype: Any) -> jax.Array:
    """`2^e`, exactly, for int32 exponents in the range of normal numbers."""
    info = jnp.finfo(dtype)
    kind = {16: jnp.int16, 32: jnp.int32, 64: jnp.int64}[info.bits]
    bits = e.astype(kind) + jnp.asarray(info.maxexp - 1, kind)
    return jax.lax.bitcast_convert_type(bits << jnp.asarray(info.nmant, kind), jnp.dtype(dtype))


def column_exponents(tops: jax.Array) -> jax.Array:
    """Exponents to divide the columns of a matrix by, whose largest entries are `tops` `(d,)`.

    Where they lie far apart each column gets its own (time stamps in milliseconds beside ones would otherwise hide the
    ones), else all the same; that is zero where squares are in range, and then nothing is scaled.
    """
    own = exponent(tops, axis=())
    there = tops > 0
    top = jnp.max(jnp.where(there, own, -(2**20)))
    low = jnp.min(jnp.where(there, own, 2**20))
    top = jnp.where(jnp.any(there), top, 0)
    own = jnp.where((top - low > SPREAD) & there, own, jnp.where(top - low > SPREAD, top, beyond(top, tops.dtype)))
    # Powers, their inverses and the ratios of two are normal numbers.
    limit = jnp.finfo(tops.dtype).maxexp - 2
    return jnp.clip(jnp.maximum(own, top - limit), -limit, limit)


def shifted(x: jax.Array, e: jax.Array) -> jax.Array:
    """`x 2^e`, exactly where that is in range, though `2^e` itself may not be."""
    for i in range(4):
        x = x * power((e + jnp.int32(i)) >> 2, x.dtype)
    return x
