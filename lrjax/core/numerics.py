"""Arithmetic that every module needs and that must be right at zero: products, quotients, roots."""

import jax
import jax.numpy as jnp

from lrjax.core.checks import as_array


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Matrix product at full precision: accelerators may otherwise round float32 products to TF32 or bfloat16."""
    # NumPy's arrays in another byte order would find the compiled product of native ones, and be misread.
    return jnp.matmul(as_array("left operand", a), as_array("right operand", b), precision="highest")


def or_one(x: jax.Array) -> jax.Array:
    """`x` where it is positive and one elsewhere: a divisor that is never zero. No slope where it is one."""
    return jnp.where(x > 0, x, 1)


def safe_divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a / b` where `b` is positive and `a` elsewhere. There its slope in `a` is one and in `b` zero."""
    return a / or_one(b)


def safe_sqrt(x: jax.Array) -> jax.Array:
    """The root where `x` is positive and zero elsewhere, with slope zero there instead of infinity."""
    return jnp.where(x > 0, jnp.sqrt(or_one(x)), 0)


def safe_reciprocal(x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
    """`1 / x` where `keep`, by default where `x` is positive, and zero elsewhere, with slope zero there."""
    keep = x > 0 if keep is None else keep
    return jnp.where(keep, 1 / jnp.where(keep, x, 1), 0)
