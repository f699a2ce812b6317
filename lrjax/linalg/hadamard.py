"""The fast Walsh-Hadamard transform as a few small matrix products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# The transform of 2^q rows is a Kronecker product of small Hadamard matrices, applied one after the other as matrix
# products. Each goes through the data once, so wide factors save memory traffic and narrow ones arithmetic.
_LARGEST = 64


@functools.cache
def _matrix(size: int) -> np.ndarray:
    h = np.ones((1, 1))
    while h.shape[0] < size:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(size)


def factor_sizes(size: int) -> list[int]:
    """Powers of two whose product is `size`, about equal, none above 64."""
    bits = size.bit_length() - 1
    count = max(1, -(-bits // (_LARGEST.bit_length() - 1)))
    return [2 ** (bits // count + (i < bits % count)) for i in range(count)]


def hadamard_transform(x: jax.Array) -> jax.Array:
    """`H x / sqrt(N)` for `x` of shape `(N, k)`, `N` a power of two: orthonormal, symmetric, its own inverse.

    The rows are in natural (Sylvester) order. About `2 N k (f_1 + f_2 + ...)` operations for the factors of `N`, and
    one read and write of the data per factor.

    Raises:
        ValueError: `N` is not a power of two.
    """
    size, width = x.shape
    if size & (size - 1) or size == 0:
        raise ValueError(f"x has {size} rows; expected a power of two: pad with zeros")
    done = 1
    for factor in factor_sizes(size):
        h = jnp.asarray(_matrix(factor), x.dtype)
        x = _apply_factor(h, x.reshape(done, factor, size // (done * factor) * width))
        done *= factor
    return x.reshape(size, width)


def _apply_factor(h: jax.Array, parts: jax.Array) -> jax.Array:
    """`h @ part` for each part: XLA on a CPU runs products one by one at twice the speed of a batch of them."""
    if parts.shape[0] == 1:
        return jnp.matmul(h, parts[0], precision="highest")[None]
    one_by_one = lambda parts: jax.lax.map(lambda part: jnp.matmul(h, part, precision="highest"), parts)
    at_once = lambda parts: jnp.einsum("ij,ajb->aib", h, parts, precision="highest")
    return jax.lax.platform_dependent(parts, cpu=one_by_one, default=at_once)
