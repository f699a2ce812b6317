"""Arithmetic that every module needs and that must be right at zero: products, quotients, roots."""

import jax
import jax.numpy as jnp

from lrjax.core.checks import as_array


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product at full precision: accelerators may otherwise round float32 products to TF32 or bfloat16."""
    # NumPy's arrays in another byte order would find the compiled product of native ones, and be misread.
    return jnp.matmul(as_array("left operand", a), as_array("right operand", b), precision="highest")
