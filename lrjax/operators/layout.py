"""The layout of a long list of entries: rows cut into chunks, chunks in blocks whose shape hardly depends on the mask.

A program is compiled for shapes, so these follow from the sizes of the matrix and the number of entries, not from which
entries there are: two masks of one size share every compiled solve. A block holds whole rows, in a fixed pseudo-random
order, so that all blocks have about as much in them. Rows longer than a block have blocks of their own.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lrjax.core.pytree import pytree
from lrjax.linalg.segments import Segments, pad_one, take

# Entries in one block. On a CPU its gathered factor rows (10 columns of float64: 1.3 MB) stay near, and the fixed cost
# of a block is small beside its work (half as many entries: a sweep 10 to 20 % slower); on an accelerator a block has
# to fill the device.
BLOCK_ENTRIES = {"cpu": 2**14}
BLOCK_ENTRIES_ELSEWHERE = 2**18
# Rows are laid out one to a chunk if chunks that hold the mean and five standard deviations of a random mask hold the
# longest, and are this full; there is nothing to sum then. Else in chunks of one of these lengths, the first for a mean
# row up to it.
SINGLE_FILL = 0.8
CHUNKS = ((8, 8), (32, 16), (math.inf, 32))


@pytree
class Blocks:
    """Chunks of rows, in blocks that are mapped one at a time.

    Attributes:
        index: `(blocks, chunks, length)` position on the other side of each entry; past the last for padding.
        position: `(blocks, chunks, length)` place of the entry in `y`; `m` for padding.
        slot: `(blocks, chunks)` row of the block that the chunk is part of; past the last for padding. Of long rows
            `(blocks,)`, which of them the block is part of.
    """

    index: jax.Array
    position: jax.Array
    slot: jax.Array


@pytree
class Layout:
    """One orientation of the entries.

    Attributes:
        blocks: of rows that fit one.
        long: of rows that do not, several blocks for each; or `None`.
        place: `(n,)` row -> its place among the slots of all blocks, then the long rows; one past the last for rows
            without entries.
        row: `(slots of all blocks and long rows,)` its inverse; `n` for none.
        fewest: entries of the row with fewest, of those with any.
        used: numbers of the chunks that hold entries, as many as any mask of so many needs: some may hold none.
        slots: rows that a block can hold.
        num_long: places for long rows.
        single: every chunk is one row, the one with its number.
        over: how the blocks are split over devices, `None` for not at all.
    """

    blocks: Blocks
    long: Blocks | None
    place: jax.Array
    row: jax.Array
    fewest: jax.Array
    used: jax.Array
    slots: int = jax.tree.static()
    num_long: int = jax.tree.static()
    single: bool = jax.tree.static()
    over: jax.sharding.NamedSharding | None = jax.tree.static(default=None)

    @property
    def entries_per_slot(self) -> float:
        """Entries of a row at most, on average over a block."""
        _, chunks, length = self.blocks.index.shape
        return chunks * length / self.slots

    def segments(self, slot: jax.Array) -> Segments:
        """The rows of one block."""
        return Segments(row=slot, num_rows=self.slots, single=self.single)

    def chunks(self) -> tuple[jax.Array, jax.Array, Segments]:
        """Index and position of the chunks in use, `(chunks, length)`, and their rows in row order."""
        parts = [self.blocks] if self.long is None else [self.blocks, self.long]
        length = self.blocks.index.shape[-1]
        flat = lambda name: jnp.concatenate([getattr(part, name).reshape(-1, length) for part in parts])
        blocks, chunks = self.blocks.slot.shape
        first = self.slots * jnp.arange(blocks, dtype=jnp.int32)[:, None]
        end = self.row.shape[0]
        row = jnp.append(self.row, jnp.int32(self.num_rows))
        place = jnp.where(self.blocks.slot < self.slots, first + self.blocks.slot, end).reshape(-1)
        if self.long is not None:
            owner = self.long.slot
            long = jnp.where(owner < self.num_long, blocks * self.slots + owner, end)
            place = jnp.concatenate([place, jnp.repeat(long, chunks)])
        index, position, row = (take(x, self.used) for x in (flat("index"), flat("position"), take(row, place)))
        return index, position, Segments(row=row, num_rows=self.num_rows)

    @property
    def num_rows(self) -> int:
        """`n`."""
        return self.place.shape[0]


def used_chunks(parts: list[np.ndarray], m: int, n: int, multiple: int = 1) -> np.ndarray:
    """`Layout.used` for the positions of the entries of `blocks`, and of `long`; a multiple of so many."""
    length = parts[0].shape[-1]
    empty = np.concatenate([part[..., 0].reshape(-1) for part in parts]) == m
    most = min(len(empty), (m + (length - 1) * min(m, n)) // length)
    return np.argsort(empty, kind="stable")[: most + -most % multiple].astype(np.int32)


def _ladder(number: int, start: int = 1, ratio: float = 1.1) -> int:
    """The first of a geometric series of integers that is at least this."""
    step = start
    while step < number:
        step = max(step + 1, math.ceil(step * ratio))
    return step


def _likely_chunks(m: int, n: int, length: int) -> float:
    """Chunks of a random mask, or of rows of all lengths, whichever are more."""
    mean = m / n
    above = lambda x: math.erfc((x - mean) / math.sqrt(2 * mean)) / 2
    of_random = sum(above(j * length + 0.5) for j in range(math.ceil((mean + 8 * math.sqrt(mean)) / length)))
    return max(n * of_random, m / length + n / 2)


def build_layout(
    n: int, order: np.ndarray, counts: np.ndarray, other: np.ndarray, num_other: int, block_entries: int
) -> Layout:
    """Builds one orientation on the host: `order` lists the entries sorted by row, `counts` how many each has."""
    m, mean = len(order), len(order) / n
    length = min(8 * math.ceil((mean + 5 * math.sqrt(mean) + 5) / 8), num_other)
    single = int(counts.max()) <= length <= block_entries and mean >= SINGLE_FILL * length
    if not single:
        length = min(next(size for up_to, size in CHUNKS if mean <= up_to), block_entries)
    likely = n if single else _likely_chunks(m, n, length)
    # All in one block, if it holds them with some to spare.
    spare = 0 if single else 1 + 2 * math.sqrt(n)
    chunks = max(1, min(block_entries // length, math.ceil(likely + spare)))
    if single:
        slots, blocks = chunks, -(-n // chunks)
        place, first, in_long = np.arange(n), np.arange(n), np.zeros(n, bool)
    else:
        slots = min(chunks, 8 * math.ceil(chunks * n / likely / 8))
        needed = -(-counts // length)
        in_long = needed > chunks
        place, first, used = _packed(np.where(in_long, 0, needed), chunks, slots)
        # With room for what blocks of whole rows leave empty.
        blocks = 1 if likely + spare <= chunks else math.ceil(1.05 * likely / chunks) + 1
        blocks = _ladder(used, blocks)
    starts = np.cumsum(counts) - counts
    # Below, `device_put` and not `jnp.asarray`, which compiles a copy for every shape.
    shape = (blocks, chunks, length)
    place = np.where((counts > 0) & ~in_long, place, blocks * slots)

    def filled(shape: tuple, rows: np.ndarray, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entries of `rows` one after the other from `begin` on, in slots of this shape."""
        index, position = np.full(shape, num_other, np.int32), np.full(shape, m, np.int32)
        if len(rows) == n:  # all of them: no list of those that are meant
            entries, sizes = order, counts
        else:
            sizes = counts[rows]
            within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            entries = order[np.repeat(starts[rows], sizes) + within]
        where = np.arange(len(entries)) + np.repeat(begin - (np.cumsum(sizes) - sizes), sizes)
        index.reshape(-1)[where], position.reshape(-1)[where] = other[entries], entries
        return index, position

    short = np.flatnonzero(~in_long) if in_long.any() else np.arange(n)
    index, position = filled(shape, short, first[short] * length)
    if single:
        slot = np.broadcast_to(np.arange(chunks, dtype=np.int32), shape[:2])
    else:
        slot = np.full(blocks * chunks, slots, np.int32)
        sizes = np.where(in_long, 0, -(-counts // length))
        where = np.repeat(first - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        slot[where] = np.repeat(place % slots, sizes)
        slot = slot.reshape(shape[:2])
    positions = [position]
    main = Blocks(index=jax.device_put(index), position=jax.device_put(position), slot=jax.device_put(slot))
    long, num_long = None, 0
    if in_long.any():
        rows = np.flatnonzero(in_long)
        parts = -(-counts[rows] // (chunks * length))
        num_long, total = _ladder(len(rows), ratio=2), _ladder(int(parts.sum()), ratio=1.5)
        begin = (np.cumsum(parts) - parts) * chunks * length
        index, position = filled((total, chunks, length), rows, begin)
        positions.append(position)
        owner = np.full(total, num_long, np.int32)
        owner[: parts.sum()] = np.repeat(np.arange(len(rows)), parts)
        place[rows] = blocks * slots + np.arange(len(rows))
        long = Blocks(index=jax.device_put(index), position=jax.device_put(position), slot=jax.device_put(owner))
    place[counts == 0] = blocks * slots + num_long
    row = np.full(blocks * slots + num_long + 1, n, np.int32)
    row[place[counts > 0]] = np.flatnonzero(counts)
    return Layout(
        blocks=main,
        long=long,
        place=jax.device_put(place.astype(np.int32)),
        row=jax.device_put(row[:-1]),
        fewest=jax.device_put(np.int32(counts[counts > 0].min())),
        used=jax.device_put(used_chunks(positions, m, n)),
        slots=slots,
        num_long=num_long,
        single=single,
    )


def _packed(needed: np.ndarray, chunks: int, slots: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Place among the slots of all blocks and first chunk of each row that needs some, and the number of blocks."""
    place, first = np.zeros(len(needed), np.int64), np.zeros(len(needed), np.int64)
    order = np.random.default_rng(0).permutation(len(needed))
    order = order[needed[order] > 0]
    ends = np.cumsum(needed[order])
    begin, block = 0, 0
    while begin < len(order):
        taken = ends[begin] - needed[order[begin]]
        end = min(int(np.searchsorted(ends, taken + chunks, side="right")), begin + slots)
        rows = order[begin:end]
        place[rows] = block * slots + np.arange(end - begin)
        first[rows] = block * chunks + ends[begin:end] - needed[rows] - taken
        begin, block = end, block + 1
    return place, first, block


def map_rows(
    layout: Layout,
    sums: Callable[..., tuple],
    finish: Callable[..., Any] = lambda _, *sums: sums,
    misfit: Callable[..., jax.Array] | None = None,
    *,
    given: Any = (),
    data: tuple[tuple, tuple] = ((), ()),
    block: Callable[..., Any] | None = None,
) -> tuple[Any, jax.Array]:
    """Sums over the entries of each row, and what is computed of them, block by block.

    Args:
        layout: of the rows.
        sums: from `given`, `Blocks` without its first axis, and the data of its entries: arrays `(chunks, ...)` to sum
            over the chunks of each row.
        finish: from `given` and these sums `(rows, ...)` the result of each row, a pytree of `(rows, ...)`.
        misfit: from `given`, the block, its data and the result of the row of each chunk one number for each chunk.
        given: whatever arrays these need, the same for all rows; they may close over none.
        data: arrays of the shape of the index of `blocks`, and of `long`.
        block: from `given`, the block and its data, in place of `sums`, `finish` and `misfit` for rows that fit one:
            the results of its rows and one number.

    Returns:
        The results in row order, `(n, ...)`, zero for rows without entries, and the sum of the misfits.
    """

    def ordinary(given: Any, part: Blocks, values: tuple) -> tuple[Any, jax.Array]:
        if block is not None:
            return block(given, part, values)
        rows = layout.segments(part.slot)
        found = finish(given, *(rows.gather(x) for x in sums(given, part, values)))
        if misfit is None:
            return found, jnp.zeros(())
        return found, jnp.sum(misfit(given, part, values, rows.spread(found)))

    def filled(given: Any, part: Blocks, values: tuple) -> tuple[Any, jax.Array]:
        if layout.single:
            return ordinary(given, part, values)
        # Blocks at the end may be empty: there are some to spare for other masks.
        shapes = jax.eval_shape(ordinary, given, part, values)
        empty = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.cond(part.slot[0] < layout.slots, lambda: ordinary(given, part, values), empty)

    def work(given: Any, blocks: tuple, long: Any, add: Callable[[jax.Array], jax.Array]) -> tuple:
        rows, total = jax.lax.map(lambda part: filled(given, *part), blocks)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
        total = jnp.sum(total)
        if long is None:
            return rows, None, add(total)
        # One thing after the other: XLA on a CPU otherwise starts loops side by side, each with all threads, and has
        # been seen to hang.
        long, _ = jax.lax.optimization_barrier((long, total))
        parts = jax.lax.map(lambda part: tuple(jnp.sum(x, axis=0) for x in sums(given, *part)), long)
        owner = long[0].slot
        whole = lambda x, owner=owner: jnp.zeros((layout.num_long + 1, *x.shape[1:]), x.dtype).at[owner].add(x)[:-1]
        found = finish(given, *(add(whole(x)) for x in parts))
        if misfit is not None:
            one = lambda part, misfit=misfit: jnp.sum(misfit(given, *part, pad_one(found)[part[0].slot][None]))
            long, _ = jax.lax.optimization_barrier((long, found))
            total = total + jnp.sum(jax.lax.map(one, long))
        return rows, found, add(total)

    blocks = (layout.blocks, data[0])
    long = None if layout.long is None else (layout.long, data[1])
    if layout.over is None:
        rows, found, total = work(given, blocks, long, lambda x: x)
    else:
        (axis,), mesh = layout.over.spec, layout.over.mesh
        split, whole = PartitionSpec(axis), PartitionSpec()
        rows, found, total = jax.shard_map(
            lambda given, blocks, long: work(given, blocks, long, lambda x: jax.lax.psum(x, axis)),
            mesh=mesh,
            in_specs=(whole, split, split),
            out_specs=(split, whole, whole),
            check_vma=False,
        )(given, blocks, long)
        # The only communication of a half step: every device gets what the others computed, once.
        rows = jax.lax.with_sharding_constraint(rows, jax.sharding.NamedSharding(mesh, whole))
    if found is not None:
        rows = jax.tree.map(lambda *x: jnp.concatenate(x), rows, found)
    return jax.tree.map(lambda x: take(pad_one(x), layout.place), rows), total


def in_slots(layout: Layout, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One row of `x` `(n, ...)` for each slot of `blocks`, `(blocks, slots, ...)`, and for each long row."""
    rows = pad_one(x)[layout.row]
    end = rows.shape[0] - layout.num_long
    return rows[:end].reshape(-1, layout.slots, *x.shape[1:]), rows[end:]


def counting_sort(index: np.ndarray, bound: int) -> np.ndarray:
    """The stable sorting permutation of integers below `bound`, in `O(m + bound)`: a sparse matrix's transpose."""
    from scipy import sparse

    m = len(index)
    ones, starts = np.ones(m, np.int8), np.arange(m + 1, dtype=np.int32)
    return sparse.csr_array((ones, index, starts), shape=(m, bound)).tocsc().indices
