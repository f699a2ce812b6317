"""Products with Kronecker products of matrices, one mode of the tensor after the other."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def mode_products(tensor: jax.Array, matrices: Sequence[jax.Array]) -> jax.Array:
    """`matrices[i]` applied to axis `i` for every `i`: the Kronecker product of them on the flat tensor.

    Args:
        tensor: `(N_1, ..., N_d)`, or with one more axis behind, which is left alone.
        matrices: `d` of them, `(M_i, N_i)`.

    Returns:
        `(M_1, ..., M_d)`, and the axis behind if there was one.

    Cost: the sum over `i` of `M_1 ... M_i N_i ... N_d`; the Kronecker product itself is never formed.
    """
    for matrix in matrices:
        # The first axis is used up and its image goes to the end: after `d` turns all are in place again.
        tensor = jnp.tensordot(tensor, matrix, axes=((0,), (1,)), precision="highest")
    return jnp.moveaxis(tensor, 0, -1) if tensor.ndim > len(matrices) else tensor


def outer(vectors: Sequence[jax.Array]) -> jax.Array:
    """The tensor of products `v_1[i] v_2[j] ...`."""
    product = vectors[0]
    for vector in vectors[1:]:
        product = product[..., None] * jnp.reshape(vector, (1,) * product.ndim + (-1,))
    return product


def contract(tensor: jax.Array, vectors: Sequence[jax.Array], keep: int) -> jax.Array:
    """The sum of `tensor` times the vectors over every axis but `keep`."""
    rows = [vector[None, :] for vector in vectors]
    tensor = jnp.moveaxis(tensor, keep, -1)
    return mode_products(tensor, [*rows[:keep], *rows[keep + 1 :]]).reshape(-1)
