"""A long list of entries of a large matrix as measurements."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import as_array, check_choice, check_count, check_indices, check_real, check_shape, on_host
from lrjax.core.numerics import matmul
from lrjax.core.pytree import cast_floats, pytree, replace
from lrjax.linalg.rows import RowProblem
from lrjax.linalg.segments import pad_one, take
from lrjax.linalg.sketched_rows import solve_rows_sketched
from lrjax.operators.base import EntrywiseOperator
from lrjax.operators.coupling import Chunks, ListedCoupling, listed_chunks, listed_coupling
from lrjax.operators.layout import (
    BLOCK_ENTRIES,
    BLOCK_ENTRIES_ELSEWHERE,
    Blocks,
    Layout,
    build_layout,
    counting_sort,
    in_slots,
    map_rows,
    used_chunks,
)

# Products at the entries, so many at a time: the gathered rows of 10 million entries at rank 32 would be 2.4 GB, and in
# blocks they take a third of the time.
FORWARD_BLOCK = 2**16


@pytree
class SampledEntries(EntrywiseOperator):
    """A list of entries, up to tens of millions, laid out twice: by rows and by columns.

    Built on the host by `build`; the layout (rows cut into chunks, in blocks that fit the cache) makes the half steps
    of alternating minimization and both adjoint products run over contiguous blocks. Its shapes hardly depend on the
    mask: operators of one size and number of entries nearly always share one compiled program.
    For small problems whose mask changes inside a transformation use `EntryMask`.

    Attributes:
        rows: `(m,)` row of each entry, sorted.
        cols: `(m,)` column of each entry.
        by_row: layout for sums over each row.
        by_col: layout for sums over each column.
        matrix_shape: `(n1, n2)`.

    Examples:
        >>> import numpy as np, lrjax as lr
        >>> a, y = lr.operators.SampledEntries.build([2, 0], [1, 1], np.array([5.0, 7.0]), (3, 2))
        >>> a.rows.tolist(), y.tolist()
        ([0, 2], [7.0, 5.0])
    """

    sketches_rows: ClassVar[bool] = True
    rows: jax.Array
    cols: jax.Array
    by_row: Layout
    by_col: Layout
    matrix_shape: tuple[int, int] = jax.tree.static()

    @staticmethod
    def build(
        rows: Any,
        cols: Any,
        values: Any,
        shape: tuple[int, int],
        *,
        duplicates: str = "refuse",
        block_entries: int | None = None,
    ) -> tuple["SampledEntries", jax.Array]:
        """Sorts and lays out the entries on the host.

        Args:
            rows: `(m,)` integers in `[0, n1)`.
            cols: `(m,)` integers in `[0, n2)`.
            values: `(m,)` real floating, finite; the dtype of the returned measurements.
            shape: `(n1, n2)`.
            duplicates: what to do with an entry given more than once: `"refuse"`, `"sum"` or `"mean"`.
            block_entries: entries worked on at a time; default what fits the cache of a CPU (16384) or fills another
                device (262144).

        Returns:
            The operator, and `y`, the values in its order (by row, then column; duplicates merged).

        Raises:
            ValueError: lengths differ, nothing given, index out of range, values not real floating or not finite,
                duplicates that are refused, an unknown option.
        """
        n1, n2 = check_shape(shape)
        rows, cols = _indices("rows", rows, n1), _indices("cols", cols, n2)
        values = on_host("values", values)
        check_real("values", values)
        if not (rows.shape == cols.shape == values.shape):
            raise ValueError(
                f"rows, cols and values must have one length; got {rows.shape}, {cols.shape}, {values.shape}"
            )
        if len(values) == 0:
            raise ValueError("rows, cols and values are empty: there are no measurements")
        if not np.isfinite(values).all():
            raise ValueError(f"values must be finite; {int((~np.isfinite(values)).sum())} are NaN or infinite")
        if duplicates not in ("refuse", "sum", "mean"):
            raise ValueError(f"duplicates must be 'refuse', 'sum' or 'mean'; got {duplicates!r}")
        if block_entries is None:
            # Where the arrays will lie, which need not be the default backend.
            (device,) = jax.device_put(np.zeros(0)).devices()
            block_entries = BLOCK_ENTRIES.get(device.platform, BLOCK_ENTRIES_ELSEWHERE)
        block_entries = check_count("block_entries", block_entries)
        by_col = counting_sort(cols, n2)
        order = by_col[counting_sort(rows[by_col], n1)]
        rows, cols, values = rows[order], cols[order], values[order]
        fresh = np.concatenate([[True], (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])])
        if not fresh.all():
            rows, cols, values = _merge(rows, cols, values, fresh, duplicates)
        by_col = counting_sort(cols, n2)
        operator = SampledEntries(
            rows=jax.device_put(rows),
            cols=jax.device_put(cols),
            by_row=build_layout(
                n1, np.arange(len(rows), dtype=np.int32), np.bincount(rows, minlength=n1), cols, n2, block_entries
            ),
            by_col=build_layout(n2, by_col, np.bincount(cols, minlength=n2), rows, n1, block_entries),
            matrix_shape=(n1, n2),
        )
        return operator, as_array("values", values)

    def shard(self, mesh: jax.sharding.Mesh, axis: str) -> "SampledEntries":
        """The same operator with its blocks split over one axis of a mesh, everything else on all devices.

        A half step then solves as many blocks on each device and gathers the factor afterwards. Two host
        devices (`jax.config.update("jax_num_cpu_devices", 2)` before anything else) use both cores of a small machine.

        Any number of rows goes over any number of devices: what does not divide evenly is padded with empty blocks.

        Args:
            mesh: devices, also those of other processes; factors and measurements stay replicated over it.
            axis: its axis; over the others everything is replicated.

        Returns:
            A new operator. `y` keeps its order.

        Raises:
            ValueError: `mesh` is no mesh of devices or lacks the axis, or the operator is split already.
        """
        if not isinstance(mesh, jax.sharding.Mesh):
            raise ValueError(f"mesh must be a jax.sharding.Mesh; got {type(mesh).__name__}")
        check_choice("axis", axis, mesh.axis_names)
        if self.by_row.over is not None:
            raise ValueError("mesh was chosen before: these entries are split already; shard what `build` returned")
        # Automatic axes: the compiler places what follows, whatever kind of mesh the caller has.
        mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))
        count, m = mesh.shape[axis], self.num_measurements

        def put(array: Any, sharding: jax.sharding.NamedSharding) -> jax.Array:
            # Each process fills its own devices, on a mesh over many.
            host = np.asarray(array)
            return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

        def padded(x: Any, more: int, fill: int) -> np.ndarray:
            return np.pad(np.asarray(x), ((0, more), *[(0, 0)] * (x.ndim - 1)), constant_values=fill)

        def spread(part: Blocks, num_other: int, no_row: int, more: int) -> Blocks:
            """The blocks, and so many empty ones behind them."""
            return Blocks(
                index=put(padded(part.index, more, num_other), split),
                position=put(padded(part.position, more, m), split),
                slot=put(padded(part.slot, more, no_row), split),
            )

        def divide(layout: Layout, num_other: int) -> Layout:
            """As many blocks on each device."""
            blocks, long = layout.blocks.index.shape[0], layout.long
            more, end = -blocks % count, blocks * layout.slots
            place, row = np.asarray(layout.place), np.asarray(layout.row)
            place = np.where(place >= end, place + more * layout.slots, place)
            row = np.insert(row, [end] * (more * layout.slots), layout.num_rows)
            positions = [padded(layout.blocks.position, more, m)]
            if long is not None:
                more_long = -long.index.shape[0] % count
                positions.append(padded(long.position, more_long, m))
                long = spread(long, num_other, layout.num_long, more_long)
            return replace(
                layout,
                blocks=spread(layout.blocks, num_other, layout.slots, more),
                long=long,
                place=put(place, everywhere),
                row=put(row, everywhere),
                fewest=put(layout.fewest, everywhere),
                used=put(used_chunks(positions, m, layout.num_rows, count), everywhere),
                over=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis)),
            )

        n1, n2 = self.matrix_shape
        return SampledEntries(
            rows=put(self.rows, everywhere),
            cols=put(self.cols, everywhere),
            by_row=divide(self.by_row, n2),
            by_col=divide(self.by_col, n1),
            matrix_shape=self.matrix_shape,
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix_shape

    @property
    def num_measurements(self) -> int:
        return self.rows.shape[0]

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        if self.num_measurements <= 4 * FORWARD_BLOCK:
            return jnp.sum(take(left, self.rows) * take(right, self.cols), axis=1)
        one = lambda entry: jnp.sum(take(left, entry[0]) * take(right, entry[1]))
        return jax.lax.map(one, (self.rows, self.cols), batch_size=FORWARD_BLOCK)

    def forward_dense(self, x: jax.Array) -> jax.Array:
        return x[self.rows, self.cols]

    def adjoint(self, z: jax.Array) -> jax.Array:
        return jnp.zeros(self.shape, z.dtype).at[self.rows, self.cols].add(z)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        return _weighted_sum(self.by_row, z, v)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        return _weighted_sum(self.by_col, z, u)

    def arrange(self, y: jax.Array, weights: jax.Array | None = None) -> Any:
        """Measurements and weights in the order in which the half steps read them, both ways.

        The gather costs about a third of a sweep, and its result about five times the memory of `y` (ten with weights).
        """
        return _arrange(self.by_row, y, weights), _arrange(self.by_col, y, weights)

    def solve_left(self, right: jax.Array, data: Any, row: RowProblem) -> tuple[jax.Array, jax.Array]:
        """See `EntrywiseOperator.solve_left`.

        Cost `m k (k + 1)` multiply-adds for the Gram matrices, `2 m k` for the rest, and `n1 k^3 / 3` for the solves.
        """
        return _solve(self.by_row, right, data[0], row)

    def solve_right(self, left: jax.Array, data: Any, row: RowProblem) -> tuple[jax.Array, jax.Array]:
        return _solve(self.by_col, left, data[1], row)

    def fewest_entries(self) -> jax.Array:
        return jnp.minimum(self.by_row.fewest, self.by_col.fewest)

    def coupled_parts(self) -> tuple[Chunks, Chunks]:
        return listed_chunks(self.by_row, self.by_col, self.num_measurements)

    def couple(
        self, left: jax.Array, right: jax.Array, weights: jax.Array | None, ridge: jax.Array, parts: Any
    ) -> ListedCoupling:
        return listed_coupling(parts, weights, left, right, ridge)


def _indices(name: str, values: Any, bound: int) -> np.ndarray:
    values = on_host(name, check_indices(name, values, bound))
    if values.ndim != 1:
        raise ValueError(f"{name} must be a one-dimensional array of integers; got {values.dtype} {values.shape}")
    return values.astype(np.int32)


def _merge(rows, cols, values, fresh, duplicates):
    if duplicates == "refuse":
        where = int(np.flatnonzero(~fresh)[0])
        raise ValueError(
            f"{int((~fresh).sum())} entries are given more than once, the first at row {rows[where]}, column "
            f"{cols[where]}; merge them with duplicates='sum' or 'mean'"
        )
    starts = np.flatnonzero(fresh)
    total = np.add.reduceat(values, starts)
    if duplicates == "mean":
        total = total / np.diff(np.append(starts, len(rows))).astype(values.dtype)
    return rows[fresh], cols[fresh], total


def _weighted_sum(layout: Layout, z: jax.Array, other: jax.Array) -> jax.Array:
    def sums(given: tuple[jax.Array, jax.Array], part: Blocks, _: tuple) -> tuple[jax.Array]:
        z, other = given
        return (matmul(take(z, part.position)[:, None], take(other, part.index))[:, 0],)

    return map_rows(layout, sums, given=(pad_one(z), pad_one(other)))[0][0]


def _arrange(layout: Layout, y: jax.Array, weights: jax.Array | None) -> tuple[tuple, tuple]:
    padded = [pad_one(y)] if weights is None else [pad_one(y), pad_one(weights)]
    both = (layout.blocks, layout.long)
    first, second = (() if part is None else tuple(take(x, part.position) for x in padded) for part in both)
    return first, second


def _solve(layout: Layout, factor: jax.Array, data: tuple[tuple, tuple], row: Any) -> tuple[jax.Array, jax.Array]:
    free, fixed = row.split(factor)
    n, k = factor.shape
    sketch = None
    if row.sketched is not None and row.sketched.worth(layout.entries_per_slot, k):
        _, chunks, length = layout.blocks.index.shape
        sketch = row.sketched.pattern(chunks, length, k)
        start, _ = in_slots(layout, row.split(row.sketched.start)[0])
        data = ((*data[0], start), data[1])
    given = cast_floats((pad_one(free), None if fixed is None else pad_one(fixed), row, sketch), factor.dtype)

    def entries(given: tuple, index: jax.Array, values: tuple) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        free, fixed, *_ = given
        y, *weights = values
        return take(free, index), y if fixed is None else y - take(fixed, index), weights[0] if weights else None

    # Those of positive weight count. As floats: a sum of integers takes several times as long to compile.
    counted = lambda index, w: jnp.sum((index < n if w is None else w > 0).astype(jnp.float32), axis=1)

    def sums(given: tuple, part: Blocks, values: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        a, y, w = entries(given, part.index, values)
        # Transposed for real, not by index order: that makes the small products a third faster on a CPU.
        transposed = jax.lax.optimization_barrier(jnp.swapaxes(a if w is None else a * w[..., None], 1, 2))
        return matmul(transposed, a), matmul(transposed, y[..., None])[..., 0], counted(part.index, w)

    def finish(given: tuple, gram: jax.Array, rhs: jax.Array, count: jax.Array) -> jax.Array:
        return given[2].solve(gram, rhs, count)

    def misfit(given: tuple, part: Blocks, values: tuple, mine: jax.Array) -> jax.Array:
        # While the gathered rows are in cache, what a separate pass over the entries would cost as much as a half step.
        a, y, w = entries(given, part.index, values)
        square = (matmul(a, mine[..., None])[..., 0] - y) ** 2
        return jnp.sum(square if w is None else w * square, axis=1)

    def block(given: tuple, part: Blocks, values: tuple) -> tuple[jax.Array, jax.Array]:
        (*_, row, (order, sketch)), (*data, start) = given, values
        index = part.index[:, order]
        a, y, w = entries(given, index, tuple(x[:, order] for x in data))
        rows, square = layout.segments(part.slot), jnp.sum(a * a, axis=2)
        diagonal = rows.gather(jnp.sum(square if w is None else w * square, axis=1))
        shift = row.shift(diagonal, k, rows.gather(counted(index, w)))
        x, left = solve_rows_sketched(a, y, w, rows, shift, row.free_mask(k, a.dtype), sketch, start, row.sketched)
        return x, jnp.sum(left)

    way = block if sketch is not None else None
    solution, square = map_rows(layout, sums, finish, misfit, given=given, data=data, block=way)
    return row.finish(solution), square
