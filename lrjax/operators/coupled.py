"""Both factors at once on entries: the whitened coupling of row unknowns with column unknowns.

Linearised at `(L, R)`, entry `(i, j)` measures `<dL_i, R_j> + <L_i, dR_j>`. The normal matrix of weighted least squares
with a ridge then has k x k diagonal blocks, one per row and per column, which are Gram matrices, and one block per
entry that couples its row with its column. With Cholesky factors `C_i C_i^T` and `D_j D_j^T` of the diagonal blocks it
becomes `[[I, K], [K^T, I]]`, where `K` has the rank-one block `a_e b_e^T` for entry `e = (i, j)`:
`a_e = sqrt(w_e) C_i^-1 R_j` and `b_e = sqrt(w_e) D_j^-1 L_i`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax._pytree import pytree
from lrjax.factors import matmul
from lrjax.linalg.guarded import cholesky
from lrjax.linalg.rows import masked_gram


def _inverse_roots(gram: jax.Array) -> jax.Array:
    """`C^-1` with `C C^T = gram` for a batch of positive definite matrices `(n, k, k)`."""
    eye = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    return jax.lax.linalg.triangular_solve(cholesky(gram), eye, left_side=True, lower=True)


def _rows(matrices: jax.Array, x: jax.Array, *, transpose: bool = False) -> jax.Array:
    """`matrices[i] @ x[i]` (or the transpose of it) for every row."""
    return jnp.einsum("nji,nj->ni" if transpose else "nij,nj->ni", matrices, x, precision="highest")


@pytree
class DenseCoupling:
    """The coupling of entries under dense weights.

    Attributes:
        weights: `(n1, n2)`.
        left: `(n1, k)` point of linearisation.
        right: `(n2, k)`.
        left_root: `(n1, k, k)`, `C_i^-1`.
        right_root: `(n2, k, k)`, `D_j^-1`.
    """

    weights: jax.Array
    left: jax.Array
    right: jax.Array
    left_root: jax.Array
    right_root: jax.Array

    def apply(self, x: jax.Array) -> jax.Array:
        """`K x`, from whitened column unknowns to whitened row unknowns."""
        image = self.weights * matmul(self.left, _rows(self.right_root, x, transpose=True).T)
        return _rows(self.left_root, matmul(image, self.right))

    def apply_transpose(self, x: jax.Array) -> jax.Array:
        """`K^T x`."""
        image = self.weights * matmul(_rows(self.left_root, x, transpose=True), self.right.T)
        return _rows(self.right_root, matmul(image.T, self.left))

    def whiten_left(self, x: jax.Array) -> jax.Array:
        """`C^-1 x`."""
        return _rows(self.left_root, x)

    def whiten_right(self, x: jax.Array) -> jax.Array:
        """`D^-1 x`."""
        return _rows(self.right_root, x)

    def unwhiten_left(self, x: jax.Array) -> jax.Array:
        """`C^-T x`."""
        return _rows(self.left_root, x, transpose=True)

    def unwhiten_right(self, x: jax.Array) -> jax.Array:
        """`D^-T x`."""
        return _rows(self.right_root, x, transpose=True)


@pytree
class _Side:
    """One orientation of a padded coupling; its rows are in the order of the layout's buckets.

    Attributes:
        blocks: `(rows, k, length)` whitened factor rows of the other side, one array per bucket, zero for padding.
        root: `(rows in all, k, k)`.
        source: `(slots,)` for each slot here the slot of the same entry on the other side.
        place: `(n,)` row -> its place in bucket order; one past the last for rows without entries.
        order: `(rows in all,)` its inverse; `n` for padding.
    """

    blocks: tuple[jax.Array, ...]
    root: jax.Array
    source: jax.Array
    place: jax.Array
    order: jax.Array

    def spread(self, x: jax.Array) -> jax.Array:
        """`(slots,)` inner products of each row of `x` with its blocks."""
        parts, first = [], 0
        for block in self.blocks:
            rows = x[first : first + block.shape[0]]
            first += block.shape[0]
            # Measured on a CPU: columns one by one beat a batched product here, and the reverse holds in `gather`.
            part = sum(block[:, i] * rows[:, i, None] for i in range(block.shape[1]))
            parts.append(jnp.reshape(part, -1))
        return jnp.concatenate(parts)

    def gather(self, values: jax.Array) -> jax.Array:
        """Sums over the slots of each row, `values` given in the slots of the other side."""
        values = values.at[self.source].get(mode="promise_in_bounds")
        parts, first = [], 0
        for block in self.blocks:
            rows, _, length = block.shape
            z = values[first : first + rows * length].reshape(rows, length)
            first += rows * length
            parts.append(jnp.einsum("nkl,nl->nk", block, z, precision="highest"))
        return jnp.concatenate(parts)

    def enter(self, x: jax.Array) -> jax.Array:
        """From row order to bucket order."""
        return jnp.concatenate([x, jnp.zeros_like(x[:1])])[self.order]

    def leave(self, x: jax.Array) -> jax.Array:
        """From bucket order to row order."""
        return jnp.concatenate([x, jnp.zeros_like(x[:1])])[self.place]


@pytree
class PaddedCoupling:
    """The coupling of listed entries, both sides gathered once, so that a product moves one number per entry.

    Attributes:
        by_row: the row side.
        by_col: the column side.
    """

    by_row: _Side
    by_col: _Side

    def apply(self, x: jax.Array) -> jax.Array:
        """`K x`, from whitened column unknowns to whitened row unknowns, both in bucket order."""
        return self.by_row.gather(self.by_col.spread(x))

    def apply_transpose(self, x: jax.Array) -> jax.Array:
        """`K^T x`."""
        return self.by_col.gather(self.by_row.spread(x))

    def whiten_left(self, x: jax.Array) -> jax.Array:
        """`C^-1 x`, into bucket order."""
        return _rows(self.by_row.root, self.by_row.enter(x))

    def whiten_right(self, x: jax.Array) -> jax.Array:
        """`D^-1 x`, into bucket order."""
        return _rows(self.by_col.root, self.by_col.enter(x))

    def unwhiten_left(self, x: jax.Array) -> jax.Array:
        """`C^-T x`, back in row order."""
        return self.by_row.leave(_rows(self.by_row.root, x, transpose=True))

    def unwhiten_right(self, x: jax.Array) -> jax.Array:
        """`D^-T x`, back in row order."""
        return self.by_col.leave(_rows(self.by_col.root, x, transpose=True))


def _eye(k: int, ridge: jax.Array) -> jax.Array:
    return (jnp.reshape(ridge, (1, -1)) * jnp.eye(k, dtype=ridge.dtype))[None]


def coupling(
    op: Any, left: jax.Array, right: jax.Array, weights: jax.Array | None, ridge: jax.Array
) -> "DenseCoupling | PaddedCoupling":
    """The coupling of an entrywise operator at `(left, right)`; weights are zero where nothing was measured."""
    if hasattr(op, "by_row"):
        return padded_coupling(op.by_row, op.by_col, weights, left, right, ridge)
    dense = jnp.ones(op.shape, left.dtype) if weights is None else weights.reshape(op.shape)
    return dense_coupling(dense, left, right, ridge)


def dense_coupling(weights: jax.Array, left: jax.Array, right: jax.Array, ridge: jax.Array) -> DenseCoupling:
    """The coupling at `(left, right)` for `(n1, n2)` weights."""
    n1, k = left.shape
    gram = jnp.concatenate([masked_gram(weights.T, right), masked_gram(weights, left)]) + _eye(k, ridge)
    root = _inverse_roots(gram)
    return DenseCoupling(weights=weights, left=left, right=right, left_root=root[:n1], right_root=root[n1:])


def padded_coupling(
    by_row: Any, by_col: Any, weights: jax.Array | None, left: jax.Array, right: jax.Array, ridge: jax.Array
) -> PaddedCoupling:
    """The coupling at `(left, right)` for two layouts of the same entries and `(m,)` weights."""
    k = left.shape[1]
    root_weight = None if weights is None else jnp.concatenate([jnp.sqrt(weights), jnp.zeros_like(weights[:1])])
    blocks_row, slots_row, gram_row = _gathered(by_row, right, root_weight)
    blocks_col, slots_col, gram_col = _gathered(by_col, left, root_weight)
    # One batch: XLA on a CPU may hang on LAPACK calls that run side by side.
    root = _inverse_roots(jnp.concatenate([gram_row, gram_col]) + _eye(k, ridge))
    root_row, root_col = root[: gram_row.shape[0]], root[gram_row.shape[0] :]
    return PaddedCoupling(
        by_row=_side(by_row, blocks_row, root_row, slots_row, slots_col, left.shape[0]),
        by_col=_side(by_col, blocks_col, root_col, slots_col, slots_row, right.shape[0]),
    )


def _gathered(layout, other, root_weight):
    """Factor rows of the other side in every slot `(rows, k, length)`, flat positions, and Gram matrices."""
    padded = jnp.concatenate([other, jnp.zeros_like(other[:1])])
    blocks, slots, grams = [], [], []
    for bucket in layout.buckets:
        index, position = (x.reshape(-1, x.shape[-1]) for x in (bucket.index, bucket.position))
        block = jnp.swapaxes(padded[index], 1, 2)
        if root_weight is not None:
            block = block * root_weight[position][:, None, :]
        blocks.append(block)
        slots.append(position.reshape(-1))
        grams.append(jnp.einsum("nil,njl->nij", block, block, precision="highest"))
    return blocks, jnp.concatenate(slots), jnp.concatenate(grams)


def _side(layout, blocks, root, slots, other_slots, n):
    whitened, first = [], 0
    for block in blocks:
        part = root[first : first + block.shape[0]]
        first += block.shape[0]
        whitened.append(jnp.einsum("nij,njl->nil", part, block, precision="highest"))
    arange = lambda size: jnp.arange(size, dtype=jnp.int32)
    # Padding has position m on both sides: its slot is any padded one, or zero, and its block is zero.
    m = slots.shape[0] + other_slots.shape[0]
    slot_of_entry = jnp.zeros(m, jnp.int32).at[other_slots].set(arange(other_slots.shape[0]))
    place = layout.place_by_bucket()
    order = jnp.full(first + 1, n, jnp.int32).at[place].set(arange(n))[:first]
    return _Side(blocks=tuple(whitened), root=root, source=slot_of_entry[slots], place=place, order=order)
