"""Leading singular triples of a matrix that is known by its products only."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lrjax.factors import matmul


def truncated_svd(
    apply: Callable[[jax.Array], jax.Array],
    apply_transpose: Callable[[jax.Array], jax.Array],
    shape: tuple[int, int],
    rank: int,
    key: jax.Array,
    *,
    dtype,
    oversample: int = 8,
    depth: int = 4,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Top `rank` singular triples by randomized block Krylov iteration (Musco and Musco 2015).

    A block basis finds repeated singular values, where a single-vector Golub-Kahan recurrence breaks down.

    Args:
        apply: `v -> M @ v` for `(n2, b)` blocks.
        apply_transpose: `u -> M.T @ u` for `(n1, b)` blocks.
        shape: `(n1, n2)`.
        rank: triples wanted.
        key: random key of the first block.
        dtype: real dtype of the products.
        oversample: columns of the block beyond `rank`.
        depth: powers of `M M^T` kept beside the first block; more for slowly decaying spectra.

    Returns:
        `u (n1, rank)`, `s (rank,)` in descending order, `v (n2, rank)`.

    Cost `2 depth + 2` block products and a QR of `(depth + 1)(rank + oversample)` columns.
    """
    n1, n2 = shape
    width = min(rank + oversample, n1, n2)
    depth = max(0, min(depth, min(n1, n2) // width - 1))
    block = jnp.linalg.qr(apply(jax.random.normal(key, (n2, width), dtype)))[0]

    def power(block: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        block = jnp.linalg.qr(apply(apply_transpose(block)))[0]
        return block, block

    # A scan, not a Python loop: the products are compiled once.
    _, blocks = jax.lax.scan(power, block, None, length=depth)
    basis = jnp.concatenate([block, jnp.moveaxis(blocks, 0, 1).reshape(n1, depth * width)], axis=1)
    q = jnp.linalg.qr(basis)[0]
    # (Q^T M)^T = M^T Q is tall; its SVD gives that of the projected matrix.
    v, s, ut = jnp.linalg.svd(apply_transpose(q), full_matrices=False)
    return matmul(q, ut.T[:, :rank]), s[:rank], v[:, :rank]
