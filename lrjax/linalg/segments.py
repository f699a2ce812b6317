"""Rows that are cut into chunks: sums over the chunks of a row, and the row of each chunk."""

import jax
import jax.numpy as jnp

from lrjax.core.pytree import pytree


def pad_one(x: jax.Array) -> jax.Array:
    """Appends a zero row, which padded positions point at: cheaper than a mask."""
    return jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])


def take(x: jax.Array, index: jax.Array) -> jax.Array:
    """`x[index]` for an index that is in range and not negative, without the kernels that see to the rest."""
    return x.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


@pytree
class Segments:
    """Which row each of some chunks is part of.

    Attributes:
        row: `(chunks,)` in `[0, num_rows]`; `num_rows` for chunks of none.
        num_rows: rows in all.
        single: every chunk is one row, the one with its number.
    """

    row: jax.Array
    num_rows: int = jax.tree.static()
    single: bool = jax.tree.static(default=False)

    def gather(self, chunks: jax.Array) -> jax.Array:
        """Sums of the chunks `(chunks, ...)` over the rows, `(num_rows, ...)`."""
        if self.single:
            return chunks
        zeros = jnp.zeros((self.num_rows, *chunks.shape[1:]), chunks.dtype)
        return zeros.at[self.row].add(chunks, mode="drop", wrap_negative_indices=False)

    def spread(self, rows: jax.Array) -> jax.Array:
        """The row `(num_rows, ...)` of each chunk, `(chunks, ...)`; zero for chunks of none."""
        return rows if self.single else take(pad_one(rows), self.row)
