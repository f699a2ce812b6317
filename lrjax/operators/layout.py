"""The padded layout of a long list of entries: rows of similar length together, in blocks that fit the cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lrjax._pytree import pytree

# Entries in one block of the padded layout. On a CPU its gathered factor rows (10 columns of float64: 600 kB) stay in
# cache; on an accelerator a block has to fill the device.
BLOCK_ENTRIES = {"cpu": 2**13}
BLOCK_ENTRIES_ELSEWHERE = 2**18


@pytree
class Bucket:
    """Rows of similar length, padded to one length and cut into blocks that are mapped one at a time.

    Attributes:
        index: `(blocks, rows, length)` position on the other side of each entry; past the last for padding.
        position: `(blocks, rows, length)` place of the entry in `y`; `m` for padding.
    """

    index: jax.Array
    position: jax.Array


@pytree
class Layout:
    """One orientation of the entries: buckets, and where each row came to lie in their concatenation.

    Attributes:
        buckets: padded rows.
        place: `(n,)` row -> place in the concatenated buckets; rows without entries point at an empty one.
        count: `(n,)` entries of each row.
        over: how the rows of every block are split over devices, `None` for not at all. The concatenation then goes
            device by device.
    """

    buckets: tuple[Bucket, ...]
    place: jax.Array
    count: jax.Array
    over: jax.sharding.NamedSharding | None = jax.tree.static(default=None)

    @property
    def num_parts(self) -> int:
        """Devices over which the rows of a block are split."""
        return 1 if self.over is None else self.over.mesh.shape[self.over.spec[0]]

    def place_by_bucket(self) -> jax.Array:
        """`place` in the concatenation bucket by bucket, whether or not the blocks are split."""
        if self.over is None:
            return self.place
        parts, first = [], 0
        for bucket in self.buckets:
            blocks, rows, _ = bucket.index.shape
            numbers = jnp.arange(first, first + blocks * rows, dtype=jnp.int32).reshape(blocks, rows)
            parts.append(_by_part(numbers, self.num_parts))
            first += blocks * rows
        return jnp.append(jnp.concatenate(parts, axis=1), jnp.int32(first))[self.place]


def _bucket_lengths(counts: np.ndarray, overhead: float = 0.03) -> np.ndarray:
    """Row lengths to pad to: the cheapest covering of the counts, where one more bucket costs 3 % of all entries.

    Exact by dynamic programming over at most a hundred candidate lengths.
    """
    top = int(counts.max())
    ratio = np.unique(np.ceil(1.08 ** np.arange(0, np.log(top) / np.log(1.08) + 1)))
    candidates = np.unique(np.minimum(np.ceil(ratio / 4) * 4, -(-top // 4) * 4).astype(int))
    rows_up_to = np.searchsorted(np.sort(counts), candidates, side="right")
    best = [0.0] + [np.inf] * len(candidates)
    previous = [0] * (len(candidates) + 1)
    fixed = overhead * counts.sum()
    for j, length in enumerate(candidates, start=1):
        for i in range(j):
            rows = rows_up_to[j - 1] - (rows_up_to[i - 1] if i else 0)
            cost = best[i] + rows * float(length) + fixed
            if cost < best[j]:
                best[j], previous[j] = cost, i
    lengths, j = [], len(candidates)
    while j:
        lengths.append(candidates[j - 1])
        j = previous[j]
    return np.array(lengths[::-1])


def build_layout(
    n: int,
    order: np.ndarray,
    counts: np.ndarray,
    other: np.ndarray,
    num_other: int,
    block_entries: int,
    pad_to: int | None,
) -> Layout:
    """Builds one orientation on the host: `order` lists the entries sorted by row, `counts` how many each has."""
    m = len(order)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    present = np.flatnonzero(counts) if pad_to is None else np.arange(n)
    present = present[np.argsort(counts[present], kind="stable")]
    sizes = counts[present]
    buckets, place, filled, first = [], np.zeros(n, np.int64), 0, 0
    for length in _bucket_lengths(sizes) if pad_to is None else [pad_to]:
        last = int(np.searchsorted(sizes, length, side="right"))
        members = present[first:last]
        first = last
        if len(members) == 0:
            continue
        rows = max(1, min(len(members), block_entries // int(length)))
        blocks = -(-len(members) // rows)
        slots = np.arange(length, dtype=np.int32)
        inside = slots < counts[members][:, None]
        taken = order[(starts[members][:, None] + slots)[inside]]
        position = np.full((blocks * rows, int(length)), m, np.int32)
        index = np.full((blocks * rows, int(length)), num_other, np.int32)
        position[: len(members)][inside] = taken
        index[: len(members)][inside] = other[taken]
        shape = (blocks, rows, int(length))
        buckets.append(Bucket(index=jnp.asarray(index.reshape(shape)), position=jnp.asarray(position.reshape(shape))))
        place[members] = filled + np.arange(len(members))
        filled += blocks * rows
    if pad_to is None:
        place[counts == 0] = filled
    return Layout(
        buckets=tuple(buckets),
        place=jnp.asarray(place.astype(np.int32)),
        count=jnp.asarray(counts.astype(np.int32)),
    )


def pad_one(x: jax.Array) -> jax.Array:
    """Appends a zero row, which padded positions point at: cheaper than a mask."""
    return jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])


def map_rows(layout: Layout, block: Callable[..., Any], data: tuple[Any, ...] | None = None) -> Any:
    """Applies `block` to every block of every bucket; returns its results by device, `(num_parts, places, ...)`.

    `data` holds, for every bucket, arrays of the shape of its index; `block` then gets their block too.

    The buckets are chained by a data dependence: XLA on a CPU otherwise starts them side by side, each with all
    threads, and has been seen to hang.
    """
    results, token, count = [], None, layout.num_parts
    for number, bucket in enumerate(layout.buckets):
        parts = (bucket,) if data is None else (bucket, data[number])
        if token is not None:
            parts, _ = jax.lax.optimization_barrier((parts, token))
        out = jax.lax.map(lambda part: block(*part), parts)
        first = jax.tree.leaves(out)[0]
        # One number of each row: a single one would have to be sent from the device that holds it.
        token = first[(0, slice(None)) + (0,) * (first.ndim - 2)]
        results.append(jax.tree.map(lambda x: _by_part(x, count), out))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *results)


def _by_part(x: jax.Array, count: int) -> jax.Array:
    """`(blocks, count * rows, ...)` -> `(count, blocks * rows, ...)`: what each device holds, side by side."""
    x = jnp.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)
    return x.reshape(count, -1, *x.shape[3:])


def in_row_order(layout: Layout, x: jax.Array) -> jax.Array:
    """One row for each row of the matrix, from what `map_rows` returned.

    The only communication of a half step: every device gets what the others computed, once.
    """
    if layout.over is not None:
        # The first constraint keeps the compiler from gathering bucket by bucket.
        x = jax.lax.with_sharding_constraint(x, layout.over)
        x = jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(layout.over.mesh, PartitionSpec()))
    return pad_one(x.reshape(-1, *x.shape[2:]))[layout.place]


def in_buckets(layout: Layout, x: jax.Array) -> tuple[jax.Array, ...]:
    """One row of `x` for each row of the layout, `(blocks, rows, k)` for every bucket; the way back from both."""
    count = layout.num_parts
    sizes = [bucket.index.shape[0] * bucket.index.shape[1] // count for bucket in layout.buckets]
    # Rows without entries share the place behind the last bucket.
    placed = jnp.zeros((count * sum(sizes) + 1, *x.shape[1:]), x.dtype).at[layout.place].set(x)
    placed = placed[:-1].reshape(count, sum(sizes), *x.shape[1:])
    parts, first = [], 0
    for bucket, size in zip(layout.buckets, sizes, strict=True):
        blocks, rows, _ = bucket.index.shape
        part = placed[:, first : first + size].reshape(count, blocks, rows // count, *x.shape[1:])
        parts.append(jnp.moveaxis(part, 0, 1).reshape(blocks, rows, *x.shape[1:]))
        first += size
    return tuple(parts)


def counting_sort(index: np.ndarray, bound: int) -> np.ndarray:
    """The stable sorting permutation of integers below `bound`, in `O(m + bound)`: a sparse matrix's transpose."""
    from scipy import sparse

    m = len(index)
    ones, starts = np.ones(m, np.int8), np.arange(m + 1, dtype=np.int32)
    return sparse.csr_array((ones, index, starts), shape=(m, bound)).tocsc().indices
