"""Units of the columns of a matrix: powers of two that bring them into the middle of the range of their dtype."""

import jax
import jax.numpy as jnp

from lrjax.core.units import beyond, exponent

# Columns are alike if their largest entries differ by less than this power of two.
SPREAD = 10


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
