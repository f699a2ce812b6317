"""A long list of entries of a large matrix as measurements."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lrjax._checks import as_array, check_choice, check_count, check_indices, check_real, check_shape, on_host
from lrjax._pytree import pytree
from lrjax.factors import matmul
from lrjax.linalg.sketched_rows import solve_rows_sketched
from lrjax.operators.base import Operator
from lrjax.operators.layout import (
    BLOCK_ENTRIES,
    BLOCK_ENTRIES_ELSEWHERE,
    Bucket,
    Layout,
    build_layout,
    counting_sort,
    in_buckets,
    in_row_order,
    map_rows,
    pad_one,
)


@pytree
class SampledEntries(Operator):
    """A list of entries, up to tens of millions, laid out twice: by rows and by columns.

    Built on the host by `build`; the layout (rows of similar length padded together, in blocks that fit the
    cache) makes the half steps of alternating minimization and both adjoint products run over contiguous blocks.
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

    entrywise: ClassVar[bool] = True
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
        pad_to: int | None = None,
    ) -> tuple["SampledEntries", jax.Array]:
        """Sorts and lays out the entries on the host.

        Args:
            rows: `(m,)` integers in `[0, n1)`.
            cols: `(m,)` integers in `[0, n2)`.
            values: `(m,)` real floating, finite; the dtype of the returned measurements.
            shape: `(n1, n2)`.
            duplicates: what to do with an entry given more than once: `"refuse"`, `"sum"` or `"mean"`.
            block_entries: entries worked on at a time; default what fits the cache of a CPU (8192) or fills another
                device (262144).
            pad_to: pad every row and column to this many entries. Masks with equally many entries then have layouts of
                one shape and share one compile, at the price of the padding; by default rows of similar
                length are padded together, which depends on the mask.

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
            block_entries = BLOCK_ENTRIES.get(jax.default_backend(), BLOCK_ENTRIES_ELSEWHERE)
        block_entries = check_count("block_entries", block_entries)
        pad_to = None if pad_to is None else check_count("pad_to", pad_to)
        if pad_to is not None and pad_to < (most := _most(rows, cols, n1, n2)):
            raise ValueError(f"pad_to must be at least the {most} entries of the fullest row or column; got {pad_to}")
        by_col = counting_sort(cols, n2)
        order = by_col[counting_sort(rows[by_col], n1)]
        rows, cols, values = rows[order], cols[order], values[order]
        fresh = np.concatenate([[True], (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])])
        if not fresh.all():
            rows, cols, values = _merge(rows, cols, values, fresh, duplicates)
        by_col = counting_sort(cols, n2)
        operator = SampledEntries(
            rows=jnp.asarray(rows),
            cols=jnp.asarray(cols),
            by_row=build_layout(
                n1,
                np.arange(len(rows), dtype=np.int32),
                np.bincount(rows, minlength=n1),
                cols,
                n2,
                block_entries,
                pad_to,
            ),
            by_col=build_layout(n2, by_col, np.bincount(cols, minlength=n2), rows, n1, block_entries, pad_to),
            matrix_shape=(n1, n2),
        )
        return operator, as_array("values", values)

    def shard(self, mesh: jax.sharding.Mesh, axis: str) -> "SampledEntries":
        """The same operator with every block of rows split over one axis of a mesh, everything else on all devices.

        A half step then solves the rows of a block on all devices at once and gathers the factor afterwards. Two host
        devices (`jax.config.update("jax_num_cpu_devices", 2)` before anything else) use both cores of a small machine.

        Any number of rows goes over any number of devices: what does not divide evenly is padded with empty rows.

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
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, axis))
        count, m = mesh.shape[axis], self.num_measurements

        def put(array: Any, sharding: jax.sharding.NamedSharding) -> jax.Array:
            # Each process fills the devices of its own, on a mesh over many.
            host = np.asarray(array)
            return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

        def divide(layout: Layout, num_other: int) -> Layout:
            """As many rows of every block on each device as one device had before, or fewer."""
            sizes, place = [bucket.index.shape for bucket in layout.buckets], np.asarray(layout.place)
            starts = np.cumsum([0, *(b * r for b, r, _ in sizes)])
            # A bucket is filled from the front, so that its padding can be left out and begun anew.
            used = np.diff(np.searchsorted(np.sort(place), starts)).tolist()
            blocks = [-(-n // (r * count)) for n, (_, r, _) in zip(used, sizes, strict=True)]
            each = [-(-n // (new * count)) for n, new in zip(used, blocks, strict=True)]
            held = sum(new * rows for new, rows in zip(blocks, each, strict=True))
            buckets, moved, first = [], np.full_like(place, count * held), 0
            for bucket, start, n, new, rows in zip(layout.buckets, starts[:-1], used, blocks, each, strict=True):
                shape = (new, count * rows, bucket.index.shape[2])

                def cut(x: jax.Array, fill: int, n=n, shape=shape) -> jax.Array:
                    flat = np.full((shape[0] * shape[1], shape[2]), fill, np.int32)
                    flat[:n] = np.asarray(x).reshape(-1, shape[2])[:n]
                    return put(flat.reshape(shape), split)

                buckets.append(Bucket(index=cut(bucket.index, num_other), position=cut(bucket.position, m)))
                here = (place >= start) & (place < start + n)
                block, within = np.divmod(place[here] - start, count * rows)
                device, row = np.divmod(within, rows)
                moved[here] = device * held + first + block * rows + row
                first += new * rows
            over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))
            return Layout(
                buckets=tuple(buckets), place=put(moved, everywhere), count=put(layout.count, everywhere), over=over
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
        return jnp.sum(left[self.rows] * right[self.cols], axis=1)

    def forward_dense(self, x: jax.Array) -> jax.Array:
        return x[self.rows, self.cols]

    def adjoint(self, z: jax.Array) -> jax.Array:
        return jnp.zeros(self.shape, z.dtype).at[self.rows, self.cols].add(z)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        return _weighted_sum(self.by_row, z, v)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        return _weighted_sum(self.by_col, z, u)

    def arrange(self, y, weights=None):
        """Measurements and weights in the order in which the half steps read them, both ways.

        Loops that solve many half steps with the same data call this once: the gather costs about a third of a sweep.

        Args:
            y: `(m,)`.
            weights: `(m,)`, or `None` for ones.

        Returns:
            What `solve_left` and `solve_right` take; about five times the memory of `y` (ten with weights).
        """
        return _arrange(self.by_row, y, weights), _arrange(self.by_col, y, weights)

    def solve_left(self, right, data, row):
        """`argmin over left of sum_i weights_i (A(left right^T)_i - y_i)^2 + ridge ||left||_F^2`, row by row.

        Args:
            right: `(n2, k)`.
            data: `arrange(y, weights)`.
            row: a `RowProblem`: ridge, columns in use, constraints.

        Returns:
            `left`, `(n1, k)`, and the sum of squares `sum_i weights_i (A(left right^T)_i - y_i)^2`. Rows without
            entries are zero; rows with fewer than `k` are damped, not fitted exactly.

        Cost `m k (k + 1)` multiply-adds for the Gram matrices, `2 m k` for the rest, and `n1 k^3 / 3` for the solves.
        """
        return _solve(self.by_row, right, data[0], row)

    def solve_right(self, left, data, row):
        """The same for `right` given `left`."""
        return _solve(self.by_col, left, data[1], row)


def _most(rows: np.ndarray, cols: np.ndarray, n1: int, n2: int) -> int:
    return int(max(np.bincount(rows, minlength=n1).max(), np.bincount(cols, minlength=n2).max()))


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
    z, other = pad_one(z), pad_one(other)
    block = lambda b: matmul(z[b.position][:, None], other[b.index])[:, 0]
    return in_row_order(layout, map_rows(layout, block))


def _arrange(layout, y, weights):
    padded = [pad_one(y)] if weights is None else [pad_one(y), pad_one(weights)]
    return tuple(tuple(x[bucket.position] for x in padded) for bucket in layout.buckets)


def _solve(layout, factor, data, row):
    free, fixed = row.split(factor)
    free, fixed = pad_one(free), None if fixed is None else pad_one(fixed)
    k, patterns = factor.shape[1], {}
    if row.sketched is not None:
        # The pattern of each length is drawn once, outside the loop over its blocks.
        lengths = {bucket.index.shape[2] for bucket in layout.buckets}
        patterns = {length: found for length in lengths if (found := row.sketched.pattern(length, k)) is not None}
        data = tuple(zip(data, in_buckets(layout, row.split(row.sketched.start)[0]), strict=True))

    def block(bucket: Bucket, values: tuple) -> tuple[jax.Array, jax.Array]:
        if row.sketched is None:
            return exact(bucket, values)
        values, start = values
        if bucket.index.shape[1] not in patterns:
            return exact(bucket, values)
        order, signs = patterns[bucket.index.shape[1]]
        index, (y, *weights) = bucket.index[:, order], (x[:, order] for x in values)
        a = free[index]
        y = y if fixed is None else y - fixed[index]
        w = weights[0] if weights else None
        count = jnp.sum(index < factor.shape[0] if w is None else w > 0, axis=1)
        square = jnp.sum(a * a, axis=2)
        shift = row.shift(jnp.sum(square if w is None else w * square, axis=1), k, count)
        return solve_rows_sketched(a, y, w, shift, row.free_mask(k, a.dtype), signs, start, row.sketched)

    def exact(bucket: Bucket, values: tuple) -> tuple[jax.Array, jax.Array]:
        y, *weights = values
        a = free[bucket.index]
        y = y if fixed is None else y - fixed[bucket.index]
        aw = a * weights[0][..., None] if weights else a
        # Transposed for real, not by index order: that makes the small products a third faster on a CPU.
        transposed = jax.lax.optimization_barrier(jnp.swapaxes(aw, 1, 2))
        gram, rhs = matmul(transposed, a), matmul(transposed, y[..., None])[..., 0]
        on = weights[0] > 0 if weights else bucket.index < factor.shape[0]
        solution = row.solve(gram, rhs, jnp.sum(on, axis=1))
        # While the gathered rows are in cache, what a separate pass over the entries would cost as much as a half step.
        square = (matmul(a, solution[..., None])[..., 0] - y) ** 2
        return solution, jnp.sum(weights[0] * square if weights else square, axis=1)

    solution, square = map_rows(layout, block, data)
    # Padding has no misfit, so the sum needs no row order.
    return row.finish(in_row_order(layout, solution)), jnp.sum(square)
