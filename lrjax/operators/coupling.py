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

from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree
from lrjax.linalg.guarded import cholesky
from lrjax.linalg.rows import masked_gram
from lrjax.linalg.segments import Segments, pad_one, take


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

    def whitened_adjoints(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`(C^-1 A^T(w z) R, D^-1 A^T(w z)^T L)`."""
        z = self.weights * z.reshape(self.weights.shape)
        return _rows(self.left_root, matmul(z, self.right)), _rows(self.right_root, matmul(z.T, self.left))

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
class Chunks:
    """The chunks of one orientation of listed entries that have some, as the coupling reads them.

    Attributes:
        index: `(chunks, length)` position on the other side of each entry; past the last for padding.
        position: `(chunks, length)` place of the entry in `y`; `m` for padding.
        source: `(slots,)` for each slot here the slot of the same entry on the other side.
        rows: of the chunks.
    """

    index: jax.Array
    position: jax.Array
    source: jax.Array
    rows: Segments


@pytree
class _Side:
    """One orientation of a coupling of listed entries.

    Attributes:
        blocks: `(chunks, k, length)` whitened factor rows of the other side, zero for padding.
        root: `(n, k, k)`.
        chunks: where the entries are.
    """

    blocks: jax.Array
    root: jax.Array
    chunks: Chunks

    def spread(self, x: jax.Array) -> jax.Array:
        """`(slots,)` inner products of each row of `x` with its blocks."""
        # A product, not a sum of columns: XLA would compute that anew for each slot the other side picks, several
        # times slower.
        return jnp.einsum("nkl,nk->nl", self.blocks, self.chunks.rows.spread(x), precision="highest").reshape(-1)

    def gather(self, values: jax.Array) -> jax.Array:
        """Sums over the slots of each row, `values` given in the slots of the other side."""
        values = take(values, self.chunks.source)
        return self.sums(values.reshape(self.blocks.shape[0], -1))

    def sums(self, values: jax.Array) -> jax.Array:
        """Sums over the slots of each row, `values` given in the slots here, `(chunks, length)`."""
        return self.chunks.rows.gather(jnp.einsum("nkl,nl->nk", self.blocks, values, precision="highest"))


@pytree
class ListedCoupling:
    """The coupling of listed entries, both sides gathered once, so that a product moves one number per entry.

    Attributes:
        by_row: the row side.
        by_col: the column side.
        root_weight: `(m + 1,)` square roots of the weights, then zero; `None` for ones.
    """

    by_row: _Side
    by_col: _Side
    root_weight: jax.Array | None

    def whitened_adjoints(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`(C^-1 A^T(w z) R, D^-1 A^T(w z)^T L)`, from the blocks that are there: no more loops over the layout."""
        z = pad_one(z) if self.root_weight is None else self.root_weight * pad_one(z)
        one, two = (side.sums(take(z, side.chunks.position)) for side in (self.by_row, self.by_col))
        return one, two

    def apply(self, x: jax.Array) -> jax.Array:
        """`K x`, from whitened column unknowns to whitened row unknowns."""
        return self.by_row.gather(self.by_col.spread(x))

    def apply_transpose(self, x: jax.Array) -> jax.Array:
        """`K^T x`."""
        return self.by_col.gather(self.by_row.spread(x))

    def whiten_left(self, x: jax.Array) -> jax.Array:
        """`C^-1 x`."""
        return _rows(self.by_row.root, x)

    def whiten_right(self, x: jax.Array) -> jax.Array:
        """`D^-1 x`."""
        return _rows(self.by_col.root, x)

    def unwhiten_left(self, x: jax.Array) -> jax.Array:
        """`C^-T x`."""
        return _rows(self.by_row.root, x, transpose=True)

    def unwhiten_right(self, x: jax.Array) -> jax.Array:
        """`D^-T x`."""
        return _rows(self.by_col.root, x, transpose=True)


def _eye(k: int, ridge: jax.Array) -> jax.Array:
    return (jnp.reshape(ridge, (1, -1)) * jnp.eye(k, dtype=ridge.dtype))[None]


def listed_chunks(by_row: Any, by_col: Any, m: int) -> tuple[Chunks, Chunks]:
    """What a coupling of `m` listed entries reads that is the same at every point: computed once per solve."""
    (index_row, slots_row, rows), (index_col, slots_col, cols) = _used(by_row), _used(by_col)
    return (
        Chunks(index=index_row, position=slots_row, source=_source(slots_row, slots_col, m), rows=rows),
        Chunks(index=index_col, position=slots_col, source=_source(slots_col, slots_row, m), rows=cols),
    )


def dense_coupling(weights: jax.Array, left: jax.Array, right: jax.Array, ridge: jax.Array) -> DenseCoupling:
    """The coupling at `(left, right)` for `(n1, n2)` weights."""
    n1, k = left.shape
    gram = jnp.concatenate([masked_gram(weights.T, right), masked_gram(weights, left)]) + _eye(k, ridge)
    root = _inverse_roots(gram)
    return DenseCoupling(weights=weights, left=left, right=right, left_root=root[:n1], right_root=root[n1:])


def listed_coupling(
    chunks: tuple[Chunks, Chunks], weights: jax.Array | None, left: jax.Array, right: jax.Array, ridge: jax.Array
) -> ListedCoupling:
    """The coupling at `(left, right)` for the chunks of `SampledEntries` and `(m,)` weights."""
    k, n1 = left.shape[1], left.shape[0]
    root_weight = None if weights is None else pad_one(jnp.sqrt(weights))
    blocks = [_gathered(side, other, root_weight) for side, other in zip(chunks, (right, left), strict=True)]
    grams = [side.rows.gather(_gram(block)) for side, block in zip(chunks, blocks, strict=True)]
    # One batch: XLA on a CPU may hang on LAPACK calls that run side by side.
    root = _inverse_roots(jnp.concatenate(grams) + _eye(k, ridge))
    by_row, by_col = (
        _Side(blocks=_whitened(block, side.rows.spread(part)), root=part, chunks=side)
        for side, block, part in zip(chunks, blocks, (root[:n1], root[n1:]), strict=True)
    )
    return ListedCoupling(by_row=by_row, by_col=by_col, root_weight=root_weight)


def _gathered(side, other, root_weight):
    """Factor rows of the other side in every slot, `(chunks, k, length)`."""
    block = jnp.swapaxes(take(pad_one(other), side.index), 1, 2)
    return block if root_weight is None else block * take(root_weight, side.position)[:, None, :]


def _gram(block):
    return jnp.einsum("nil,njl->nij", block, block, precision="highest")


def _whitened(block, root):
    return jnp.einsum("nij,njl->nil", root, block, precision="highest")


def _used(layout):
    """Index, position and rows of the chunks that have entries."""
    index, position, rows = layout.chunks()
    if layout.over is not None:
        split = lambda x: jax.lax.with_sharding_constraint(x, layout.over)
        index, position, rows = split(index), split(position), Segments(row=split(rows.row), num_rows=rows.num_rows)
    return index, position, rows


def _source(slots, other_slots, m):
    # Padding has position m on both sides: its slot is any padded one, and its block is zero.
    count = jnp.arange(other_slots.size, dtype=jnp.int32)
    places = jnp.zeros(m + 1, jnp.int32).at[other_slots.reshape(-1)]
    places = places.set(count, mode="promise_in_bounds", wrap_negative_indices=False)
    return take(places, slots.reshape(-1))
