"""Entries of the matrix as measurements: all of them, those under a dense mask, or a long list."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lrjax._checks import check_count, check_real, check_shape, host_value
from lrjax._pytree import pytree
from lrjax.factors import matmul
from lrjax.linalg.rows import masked_gram
from lrjax.operators.base import Operator


def _dense_arranged(y, weights):
    """`(weights, y, weights * y)` as matrices: what a half step reads, whichever factor it solves for."""
    return weights, y, weights * y


def _dense_least_squares(factor, data, row, *, transpose):
    """Rows `x_j = argmin sum_i w[i, j] (factor_i . x_j - y[i, j])^2 + ridge ||x_j||^2`, and that sum of squares."""
    w, y, wy = (x.T for x in data) if transpose else data
    free, fixed = row.split(factor)
    if fixed is not None:
        y = y - fixed[:, None]
        wy = w * y
    solution = row.solve(masked_gram(w, free), matmul(wy.T, free), jnp.sum(w > 0, axis=0))
    misfit = matmul(free, solution.T) - y
    return row.finish(solution), jnp.sum(w * misfit * misfit)


@pytree
class Identity(Operator):
    """Every entry, row by row: robust PCA, weighted approximation, and the population model of the theory.

    Attributes:
        matrix_shape: `(n1, n2)`; `y` is the `(n1 * n2,)` matrix read row by row.

    Examples:
        >>> import lrjax as lr
        >>> lr.operators.Identity(matrix_shape=(4, 3)).num_measurements
        12
    """

    entrywise: ClassVar[bool] = True
    matrix_shape: tuple[int, int] = jax.tree.static()

    @property
    def shape(self) -> tuple[int, int]:
        return check_shape(self.matrix_shape)

    @property
    def num_measurements(self) -> int:
        return self.shape[0] * self.shape[1]

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return matmul(left, right.T).reshape(-1)

    def forward_dense(self, x: jax.Array) -> jax.Array:
        return x.reshape(-1)

    def adjoint(self, z: jax.Array) -> jax.Array:
        return z.reshape(self.shape)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        return matmul(z.reshape(self.shape), v)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        return matmul(z.reshape(self.shape).T, u)

    def arrange(self, y, weights=None):
        """Measurements and weights as the half steps read them; see `SampledEntries.arrange`."""
        y = y.reshape(self.shape)
        return _dense_arranged(y, jnp.ones_like(y) if weights is None else weights.reshape(self.shape))

    def solve_left(self, right, data, row):
        """Least squares for `left` given `right`; see `SampledEntries.solve_left`."""
        return _dense_least_squares(right, data, row, transpose=True)

    def solve_right(self, left, data, row):
        """Least squares for `right` given `left`."""
        return _dense_least_squares(left, data, row, transpose=False)


@pytree
class EntryMask(Operator):
    """The entries under a dense mask, as `n1 * n2` measurements of which the unmasked are not measured.

    The mask is an ordinary array, so completion problems with different masks share one compile and can be
    vmapped. Work and memory are those of the dense matrix: above a few million entries use `SampledEntries`.

    Attributes:
        mask: `(n1, n2)` booleans, true where the entry is observed. `y` is read row by row, and its values
            outside the mask are never used.

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> a = lr.operators.EntryMask.from_mask(jnp.eye(3))
        >>> a.forward_dense(jnp.full((3, 3), 2.0)).reshape(3, 3).tolist()[0]
        [2.0, 0.0, 0.0]
    """

    entrywise: ClassVar[bool] = True
    mask: jax.Array

    @staticmethod
    def from_mask(mask: Any) -> "EntryMask":
        """Checks and wraps a mask of booleans or of zeros and ones.

        Raises:
            ValueError: not two-dimensional, empty, other values than 0 and 1, or nothing observed.
        """
        mask = jnp.asarray(mask)
        if mask.ndim != 2 or 0 in mask.shape:
            raise ValueError(f"mask must have shape (n1, n2), neither zero; got {mask.shape}")
        if (host := host_value(mask)) is not None:
            if not ((host == 0) | (host == 1)).all():
                raise ValueError("mask must hold only 0 and 1; use Problem.weights for graded weights")
            if not host.any():
                raise ValueError("mask observes no entry: there are no measurements")
        return EntryMask(mask=mask != 0)

    @property
    def shape(self) -> tuple[int, int]:
        return self.mask.shape[0], self.mask.shape[1]

    @property
    def num_measurements(self) -> int:
        return self.mask.shape[0] * self.mask.shape[1]

    @property
    def measured(self) -> jax.Array:
        return self.mask.reshape(-1)

    def _observed(self, x: jax.Array) -> jax.Array:
        return jnp.where(self.mask, x, jnp.zeros_like(x))

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return self.forward_dense(matmul(left, right.T))

    def forward_dense(self, x: jax.Array) -> jax.Array:
        return self._observed(x).reshape(-1)

    def adjoint(self, z: jax.Array) -> jax.Array:
        return self._observed(z.reshape(self.shape))

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        return matmul(self.adjoint(z), v)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        return matmul(self.adjoint(z).T, u)

    def arrange(self, y, weights=None):
        """Measurements and weights as the half steps read them; see `SampledEntries.arrange`."""
        w = self.mask.astype(y.dtype) if weights is None else self._observed(weights.reshape(self.shape))
        return _dense_arranged(self._observed(y.reshape(self.shape)), w)

    def solve_left(self, right, data, row):
        """Least squares for `left` given `right`; see `SampledEntries.solve_left`."""
        return _dense_least_squares(right, data, row, transpose=True)

    def solve_right(self, left, data, row):
        """Least squares for `right` given `left`."""
        return _dense_least_squares(left, data, row, transpose=False)


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
    """

    buckets: tuple[Bucket, ...]
    place: jax.Array
    count: jax.Array


def _bucket_lengths(counts: np.ndarray, overhead: float = 0.02) -> np.ndarray:
    """Row lengths to pad to: the cheapest covering of the counts, where one more bucket costs 2 % of all entries.

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


def _layout(
    n: int, order: np.ndarray, counts: np.ndarray, other: np.ndarray, num_other: int, block_entries: int
) -> Layout:
    """Builds one orientation on the host: `order` lists the entries sorted by row, `counts` how many each has."""
    m = len(order)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    present = np.flatnonzero(counts)
    present = present[np.argsort(counts[present], kind="stable")]
    sizes = counts[present]
    buckets, place, filled, first = [], np.zeros(n, np.int64), 0, 0
    for length in _bucket_lengths(sizes):
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
    place[counts == 0] = filled
    return Layout(
        buckets=tuple(buckets),
        place=jnp.asarray(place.astype(np.int32)),
        count=jnp.asarray(counts.astype(np.int32)),
    )


def _pad_one(x: jax.Array) -> jax.Array:
    """Appends a zero row, which padded positions point at: cheaper than a mask."""
    return jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])


def _map_rows(layout: Layout, block: Callable[..., Any], data: tuple[Any, ...] | None = None) -> Any:
    """Applies `block` to every block of every bucket and returns its results in row order.

    `data` holds, for every bucket, arrays of the shape of its index; `block` then gets their block too.

    The buckets are chained by a data dependence: XLA on a CPU otherwise starts them side by side, each with all
    threads, and has been seen to hang.
    """
    results, token = [], None
    for number, bucket in enumerate(layout.buckets):
        parts = (bucket,) if data is None else (bucket, data[number])
        if token is not None:
            parts, _ = jax.lax.optimization_barrier((parts, token))
        out = jax.lax.map(lambda part: block(*part), parts)
        token = jax.tree.leaves(out)[0][(0,) * jax.tree.leaves(out)[0].ndim]
        results.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out))
    joined = jax.tree.map(lambda *parts: _pad_one(jnp.concatenate(parts)), *results)
    return jax.tree.map(lambda x: x[layout.place], joined)


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

        Returns:
            The operator, and `y`, the values in its order (by row, then column; duplicates merged).

        Raises:
            ValueError: lengths differ, nothing given, index out of range, values not real floating or not finite,
                duplicates that are refused, an unknown option.
        """
        n1, n2 = check_shape(shape)
        rows, cols = _indices("rows", rows, n1), _indices("cols", cols, n2)
        values = np.asarray(values)
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
        check_count("block_entries", block_entries)
        by_col = _counting_sort(cols, n2)
        order = by_col[_counting_sort(rows[by_col], n1)]
        rows, cols, values = rows[order], cols[order], values[order]
        fresh = np.concatenate([[True], (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])])
        if not fresh.all():
            rows, cols, values = _merge(rows, cols, values, fresh, duplicates)
        by_col = _counting_sort(cols, n2)
        operator = SampledEntries(
            rows=jnp.asarray(rows),
            cols=jnp.asarray(cols),
            by_row=_layout(
                n1, np.arange(len(rows), dtype=np.int32), np.bincount(rows, minlength=n1), cols, n2, block_entries
            ),
            by_col=_layout(n2, by_col, np.bincount(cols, minlength=n2), rows, n1, block_entries),
            matrix_shape=(n1, n2),
        )
        return operator, jnp.asarray(values)

    def shard(self, mesh: jax.sharding.Mesh, axis: str) -> "SampledEntries":
        """The same operator with every block of rows split over one axis of a mesh, everything else on all devices.

        A half step then solves the rows of a block on all devices at once and gathers the factor afterwards. Two host
        devices (`jax.config.update("jax_num_cpu_devices", 2)` before anything else) use both cores of a small machine.

        Args:
            mesh: devices; factors and measurements stay replicated over it.
            axis: its axis.

        Returns:
            A new operator. `y` keeps its order.
        """
        # Automatic axes: the compiler places what follows, whatever kind of mesh the caller has.
        mesh = jax.sharding.Mesh(mesh.devices, mesh.axis_names)
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, axis))
        count, m = mesh.shape[axis], self.num_measurements

        def divide(layout: Layout, num_other: int) -> Layout:
            buckets, place, old, new = [], np.asarray(layout.place), 0, 0
            moved = np.full_like(place, sum(b.index.shape[0] * -(-b.index.shape[1] // count) for b in layout.buckets))
            moved *= count
            for bucket in layout.buckets:
                blocks, rows, _ = bucket.index.shape
                more = -rows % count
                pad = lambda x, fill, more=more: np.pad(
                    np.asarray(x), ((0, 0), (0, more), (0, 0)), constant_values=fill
                )
                index, position = pad(bucket.index, num_other), pad(bucket.position, m)
                buckets.append(Bucket(index=jax.device_put(index, split), position=jax.device_put(position, split)))
                here = (place >= old) & (place < old + blocks * rows)
                block, row = np.divmod(place[here] - old, rows)
                moved[here] = new + block * (rows + more) + row
                old, new = old + blocks * rows, new + blocks * (rows + more)
            return Layout(
                buckets=tuple(buckets),
                place=jax.device_put(moved, everywhere),
                count=jax.device_put(layout.count, everywhere),
            )

        n1, n2 = self.matrix_shape
        return SampledEntries(
            rows=jax.device_put(self.rows, everywhere),
            cols=jax.device_put(self.cols, everywhere),
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


def _indices(name: str, values: Any, bound: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not (np.issubdtype(values.dtype, np.integer) or values.size == 0):
        raise ValueError(f"{name} must be a one-dimensional array of integers; got {values.dtype} {values.shape}")
    if values.size and (values.min() < 0 or values.max() >= bound):
        raise ValueError(f"{name} must lie in [0, {bound}); got values from {values.min()} to {values.max()}")
    return values.astype(np.int32)


def _counting_sort(index: np.ndarray, bound: int) -> np.ndarray:
    """The stable sorting permutation of integers below `bound`, in `O(m + bound)`: a sparse matrix's transpose."""
    from scipy import sparse

    m = len(index)
    ones, starts = np.ones(m, np.int8), np.arange(m + 1, dtype=np.int32)
    return sparse.csr_array((ones, index, starts), shape=(m, bound)).tocsc().indices


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
    z, other = _pad_one(z), _pad_one(other)
    block = lambda b: matmul(z[b.position][:, None], other[b.index])[:, 0]
    return _map_rows(layout, block)


def _arrange(layout, y, weights):
    padded = [_pad_one(y)] if weights is None else [_pad_one(y), _pad_one(weights)]
    return tuple(tuple(x[bucket.position] for x in padded) for bucket in layout.buckets)


def _solve(layout, factor, data, row):
    free, fixed = row.split(factor)
    free, fixed = _pad_one(free), None if fixed is None else _pad_one(fixed)

    def block(bucket: Bucket, values: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
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

    solution, square = _map_rows(layout, block, data)
    return row.finish(solution), jnp.sum(square)
