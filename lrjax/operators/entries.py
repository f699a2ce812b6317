"""Entries of the matrix as measurements: all of them, those under a dense mask, or a long list."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lrjax._checks import check_real, check_shape, host_value
from lrjax._pytree import pytree
from lrjax.factors import matmul
from lrjax.linalg.rows import guard_ridge, masked_gram, solve_rows
from lrjax.operators.base import Operator


def _dense_least_squares(factor, y, weights, ridge, mask):
    """Rows `x_j = argmin sum_i weights[i, j] (factor_i . x_j - y[i, j])^2 + ridge ||x_j||^2`, by normal equations."""
    gram = masked_gram(weights, factor)
    rhs = matmul((weights * y).T, factor)
    count = jnp.sum(weights > 0, axis=0)
    return solve_rows(guard_ridge(gram, count, ridge, mask), rhs)


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

    def solve_left(self, right, y, weights, ridge, mask=None):
        """Least squares for `left` given `right`; see `SampledEntries.solve_left`."""
        return self.solve_rows_dense(right, y, weights, ridge, mask, transpose=True)

    def solve_right(self, left, y, weights, ridge, mask=None):
        """Least squares for `right` given `left`."""
        return self.solve_rows_dense(left, y, weights, ridge, mask, transpose=False)

    def solve_rows_dense(self, factor, y, weights, ridge, mask, *, transpose):
        """The half step on dense `(n1, n2)` data; `transpose` solves for the left factor."""
        y = y.reshape(self.shape)
        w = jnp.ones_like(y) if weights is None else weights.reshape(self.shape)
        return _dense_least_squares(factor, y.T if transpose else y, w.T if transpose else w, ridge, mask)


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

    def solve_left(self, right, y, weights, ridge, mask=None):
        """Least squares for `left` given `right`; see `SampledEntries.solve_left`."""
        return self._solve(right, y, weights, ridge, mask, transpose=True)

    def solve_right(self, left, y, weights, ridge, mask=None):
        """Least squares for `right` given `left`."""
        return self._solve(left, y, weights, ridge, mask, transpose=False)

    def _solve(self, factor, y, weights, ridge, mask, *, transpose):
        w = self.mask.astype(y.dtype) if weights is None else self._observed(weights.reshape(self.shape))
        y = self._observed(y.reshape(self.shape))
        return _dense_least_squares(factor, y.T if transpose else y, w.T if transpose else w, ridge, mask)


# Entries in one block of the padded layout. Its gathered factor rows (10 columns of float64: 600 kB) stay in cache.
BLOCK_ENTRIES = 8192


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


def _layout(n: int, order: np.ndarray, counts: np.ndarray, other: np.ndarray, num_other: int) -> Layout:
    """Builds one orientation on the host: `order` lists the entries sorted by row, `counts` how many each has."""
    m = len(order)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
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
        rows = max(1, min(len(members), BLOCK_ENTRIES // int(length)))
        blocks = -(-len(members) // rows)
        slots = np.arange(length)
        inside = slots < counts[members][:, None]
        entry = np.where(inside, order[np.minimum(starts[members][:, None] + slots, m - 1)], m)
        index = np.where(inside, other[np.minimum(entry, m - 1)], num_other)
        padding = ((0, blocks * rows - len(members)), (0, 0))
        shape = (blocks, rows, int(length))
        position = np.pad(entry, padding, constant_values=m).astype(np.int32).reshape(shape)
        index = np.pad(index, padding, constant_values=num_other).astype(np.int32).reshape(shape)
        buckets.append(Bucket(index=jnp.asarray(index), position=jnp.asarray(position)))
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


def _map_rows(layout: Layout, block: Callable[[Bucket], Any]) -> Any:
    """Applies `block` to every block of every bucket and returns its results in row order.

    The buckets are chained by a data dependence: XLA on a CPU otherwise starts them side by side, each with all
    threads, and has been seen to hang.
    """
    results, token = [], None
    for bucket in layout.buckets:
        if token is not None:
            bucket, _ = jax.lax.optimization_barrier((bucket, token))
        out = jax.lax.map(block, bucket)
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
        rows: Any, cols: Any, values: Any, shape: tuple[int, int], *, duplicates: str = "refuse"
    ) -> tuple["SampledEntries", jax.Array]:
        """Sorts and lays out the entries on the host.

        Args:
            rows: `(m,)` integers in `[0, n1)`.
            cols: `(m,)` integers in `[0, n2)`.
            values: `(m,)` real floating, finite; the dtype of the returned measurements.
            shape: `(n1, n2)`.
            duplicates: what to do with an entry given more than once: `"refuse"`, `"sum"` or `"mean"`.

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
        code = rows * n2 + cols
        order = np.argsort(code, kind="stable")
        code, values = code[order], values[order]
        fresh = np.concatenate([[True], code[1:] != code[:-1]])
        if not fresh.all():
            code, values = _merge(code, values, fresh, duplicates, n2)
        rows, cols = code // n2, code % n2
        by_col = np.argsort(cols, kind="stable")
        operator = SampledEntries(
            rows=jnp.asarray(rows.astype(np.int32)),
            cols=jnp.asarray(cols.astype(np.int32)),
            by_row=_layout(n1, np.arange(len(code)), np.bincount(rows, minlength=n1), cols, n2),
            by_col=_layout(n2, by_col, np.bincount(cols, minlength=n2), rows, n1),
            matrix_shape=(n1, n2),
        )
        return operator, jnp.asarray(values)

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

    def solve_left(self, right, y, weights, ridge, mask=None):
        """`argmin over left of sum_i weights_i (A(left right^T)_i - y_i)^2 + ridge ||left||_F^2`, row by row.

        Args:
            right: `(n2, k)`.
            y: `(m,)`.
            weights: `(m,)` or `None` for ones.
            ridge: scalar.
            mask: `(k,)` ones for the columns in use, or `None`.

        Returns:
            `(n1, k)`. Rows without entries are zero; rows with fewer than `k` are damped, not fitted exactly.

        Cost `m k (k + 1)` flops for the Gram matrices and `n1 k^3 / 3` for their Cholesky factors.
        """
        return _solve(self.by_row, right, y, weights, ridge, mask)

    def solve_right(self, left, y, weights, ridge, mask=None):
        """The same for `right` given `left`."""
        return _solve(self.by_col, left, y, weights, ridge, mask)


def _indices(name: str, values: Any, bound: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not (np.issubdtype(values.dtype, np.integer) or values.size == 0):
        raise ValueError(f"{name} must be a one-dimensional array of integers; got {values.dtype} {values.shape}")
    if values.size and (values.min() < 0 or values.max() >= bound):
        raise ValueError(f"{name} must lie in [0, {bound}); got values from {values.min()} to {values.max()}")
    return values.astype(np.int64)


def _merge(code, values, fresh, duplicates, n2):
    if duplicates == "refuse":
        where = int(np.flatnonzero(~fresh)[0])
        raise ValueError(
            f"{int((~fresh).sum())} entries are given more than once, the first at row {code[where] // n2}, column "
            f"{code[where] % n2}; merge them with duplicates='sum' or 'mean'"
        )
    starts = np.flatnonzero(fresh)
    total = np.add.reduceat(values, starts)
    if duplicates == "mean":
        total = total / np.diff(np.append(starts, len(code))).astype(values.dtype)
    return code[fresh], total


def _weighted_sum(layout: Layout, z: jax.Array, other: jax.Array) -> jax.Array:
    z, other = _pad_one(z), _pad_one(other)
    block = lambda b: jnp.sum(z[b.position][..., None] * other[b.index], axis=1)
    return _map_rows(layout, block)


def _solve(layout, factor, y, weights, ridge, mask):
    weighted = _pad_one(y if weights is None else weights * y)
    padded = _pad_one(factor)
    w = None if weights is None else _pad_one(weights)

    def block(b: Bucket) -> tuple[jax.Array, jax.Array, jax.Array]:
        a = padded[b.index]
        aw = a if w is None else a * w[b.position][..., None]
        gram = jnp.einsum("rlj,rlk->rjk", aw, a, precision="highest")
        rhs = jnp.einsum("rlk,rl->rk", a, weighted[b.position], precision="highest")
        used = jnp.sum(w[b.position] > 0, axis=1) if w is not None else jnp.zeros(a.shape[0], jnp.int32)
        return gram, rhs, used.astype(jnp.int32)

    gram, rhs, used = _map_rows(layout, block)
    count = layout.count if weights is None else used
    return solve_rows(guard_ridge(gram, count, ridge, mask), rhs)
