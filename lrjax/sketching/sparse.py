"""Sparse random linear maps S: a few nonzeros in every column, so that applying them is a few passes over the data.

Rows of the data are dealt out by a random permutation, about as many to each row of S as to any other. So `S a` is a
sum of gathers of `m` rows each, with nothing to scatter, and the sums stay in cache.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lrjax._checks import check_count
from lrjax._pytree import pytree
from lrjax.sketching._contract import as_columns, check_sizes, shaped_like


def _deal(key: jax.Array, num_cols: int, hands: int) -> tuple[jax.Array, jax.Array]:
    """A random place for each column `(n,)`, all different, and the inverse `(passes, hands)`, `n` where there is none.

    The columns lie in a table of about `sqrt(n)` by `sqrt(n)`; its rows and columns are shifted cyclically, twice each,
    by random amounts: a few operations per column, where a uniform permutation needs a sort. Any two columns end in
    places that are as good as independent.
    """
    width = int(np.ceil(np.sqrt(num_cols)))
    height = -(-num_cols // width)
    keys, sizes = jax.random.split(key, 4), (height, width, height, width)
    one, two, three, four = (
        jax.random.randint(k, (size,), 0, bound, dtype=jnp.int32)
        for k, size, bound in zip(keys, sizes, (width, height, width, height), strict=True)
    )
    u, v = jnp.divmod(jnp.arange(num_cols, dtype=jnp.int32), width)
    v = (v + one[u]) % width
    u = (u + two[v]) % height
    v = (v + three[u]) % width
    u = (u + four[v]) % height
    place = v * height + u
    passes = -(-height * width // hands)
    at = jnp.arange(passes * hands, dtype=jnp.int32)
    v, u = jnp.divmod(jnp.minimum(at, height * width - 1), height)
    u = (u - four[v]) % height
    v = (v - three[u]) % width
    u = (u - two[v]) % height
    v = (v - one[u]) % width
    order = u * width + v
    order = jnp.where((at < height * width) & (order < num_cols), order, num_cols)
    return place, order.reshape(passes, hands)


def _rows_at(columns: jax.Array, index: jax.Array) -> jax.Array:
    return columns.at[index].get(mode="clip")


def _signed(signs: jax.Array, columns: jax.Array) -> jax.Array:
    return signs.astype(columns.dtype)[:, None] * columns


@pytree
class SparseSignSketch:
    """An `m x n` matrix S with `s` nonzeros of `+-1/sqrt(s)` in every column, in `s` distinct rows.

    The rows are cut into `s` bands of `m / s` (give or take one) and each column has one nonzero at a uniform place in
    each band: distinct rows come for free, and `E[S^T S] = I` with an exact unit diagonal. This is the block
    construction of Nelson and Nguyen (2013), not `s` rows drawn uniformly from all `m`. Columns are dealt out by one
    random permutation, `h = floor(m / s)` at a time, and each such pass is shifted cyclically by a random amount in
    each band: two columns meet in a band with probability at most `1 / h`, independently over bands.

    `apply` to `(n, k)` costs `2 s n k` operations whatever `m` is, and reads the data once; storage is `s n` signs.
    Do not use it where a few rows of the data carry everything and coordinate-wise error matters: columns of
    S overlap in whole nonzeros, and a sketch that sparse has no coordinate-wise guarantee.

    Attributes:
        place: `(n,)` int32, the random permutation.
        order: `(passes, h)` int32, its inverse: the columns of each pass; `n` where there is none.
        shifts: `(s, passes)` int32, the cyclic shift of a pass in a band.
        signs: `(s, passes, h)` int8, +-1.
        num_rows: `m`, static.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.SparseSignSketch.create(jax.random.key(0), 40, 1000)
        >>> sketch.apply(jax.numpy.ones((1000, 3))).shape
        (40, 3)
    """

    place: jax.Array
    order: jax.Array
    shifts: jax.Array
    signs: jax.Array
    num_rows: int = jax.tree.static()

    @staticmethod
    def create(key: jax.Array, num_rows: int, num_cols: int, *, num_nonzeros: int = 8) -> "SparseSignSketch":
        """Draws the sketch.

        Args:
            key: one random key.
            num_rows: `m`, the length of the sketched vectors.
            num_cols: `n`, the length of the vectors to be sketched.
            num_nonzeros: `s`, nonzeros per column, at most `m`.

        Returns:
            A `SparseSignSketch` of shape `(m, n)`.

        Raises:
            ValueError: a size that is not a positive integer, more nonzeros than rows, or not one key.
        """
        num_rows, num_cols = check_sizes(key, num_rows, num_cols)
        num_nonzeros = check_count("num_nonzeros", num_nonzeros)
        if num_nonzeros > num_rows:
            raise ValueError(f"num_nonzeros is {num_nonzeros}; expected at most num_rows = {num_rows}")
        deal_key, shift_key, sign_key = jax.random.split(key, 3)
        place, order = _deal(deal_key, num_cols, num_rows // num_nonzeros)
        heights = np.diff(_band_edges(num_rows, num_nonzeros))[:, None]
        shape = (num_nonzeros, order.shape[0])
        shifts = jax.random.randint(shift_key, shape, 0, heights, dtype=jnp.int32)
        signs = jax.random.rademacher(sign_key, (*shape, order.shape[1]), jnp.int8)
        return SparseSignSketch(place=place, order=order, shifts=shifts, signs=signs, num_rows=num_rows)

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.num_rows, self.place.shape[-1]

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        return shaped_like(_sparse_apply(self, as_columns("a", a, self.shape[1])), a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        return shaped_like(_sparse_adjoint(self, as_columns("z", z, self.num_rows)), z)


@jax.jit
def _sparse_apply(sketch: SparseSignSketch, columns: jax.Array) -> jax.Array:
    (bands, _, size), width = sketch.signs.shape, columns.shape[1]
    heights = np.diff(_band_edges(sketch.num_rows, bands))

    def add(total: jax.Array, one: tuple) -> tuple[jax.Array, None]:
        order, shifts, signs = one
        rows = _rows_at(columns, order)
        rows = jnp.where((order < columns.shape[0])[:, None], rows, 0)

        def band(total: jax.Array, one: tuple) -> tuple[jax.Array, None]:
            # A band has room for a whole pass at any shift; what hangs over is folded back at the end.
            i, shift, sign = one
            place = (i, shift, jnp.int32(0))
            old = jax.lax.dynamic_slice(total, place, (1, size, width))
            return jax.lax.dynamic_update_slice(total, old + _signed(sign, rows)[None], place), None

        return jax.lax.scan(band, total, (jnp.arange(bands, dtype=jnp.int32), shifts, signs))

    # Typed by the data, so that shard_map sees one type.
    start = jnp.broadcast_to(0 * columns[:1], (bands, int(heights.max()) + size, width))
    total, _ = jax.lax.scan(add, start, (sketch.order, sketch.shifts.T, jnp.moveaxis(sketch.signs, 0, 1)))
    folded = [band[:h].at[:size].add(band[h : h + size]) for h, band in zip(heights, total, strict=True)]
    return jnp.concatenate(folded) * bands**-0.5


@jax.jit
def _sparse_adjoint(sketch: SparseSignSketch, columns: jax.Array) -> jax.Array:
    rows, values = sparse_sign_entries(sketch)
    total = _signed(values[0], columns[rows[0]])
    for i in range(1, rows.shape[0]):
        total = total + _signed(values[i], columns[rows[i]])
    return total * rows.shape[0] ** -0.5


def sparse_sign_entries(sketch: SparseSignSketch) -> tuple[jax.Array, jax.Array]:
    """Rows and signs of the nonzeros, each `(s, n)`."""
    edges, size = _band_edges(sketch.num_rows, sketch.signs.shape[0]), sketch.order.shape[1]
    turn, seat = sketch.place // size, sketch.place % size
    rows = jnp.asarray(edges[:-1, None]) + (seat[None, :] + sketch.shifts[:, turn]) % np.diff(edges)[:, None]
    return rows, sketch.signs[:, turn, seat]


def _band_edges(num_rows: int, num_nonzeros: int) -> np.ndarray:
    return (np.arange(num_nonzeros + 1, dtype=np.int64) * num_rows // num_nonzeros).astype(np.int32)


@pytree
class CountSketch:
    """An `m x n` matrix S with one nonzero `+-1` in every column: a row of the data goes to one row of the sketch.

    Columns are dealt to the rows of S by a random permutation, about `n / m` to each, rather than independently: two of
    them meet with probability `(n / m - 1) / (n - 1)`, a little less than `1 / m`.

    `apply` to `(n, k)` costs `2 n k` operations and one pass over the data; no sketch is cheaper. Do not use it where
    few rows of the data carry everything: of `d` such rows two meet with probability near `1 - exp(-d^2 / 2m)`, and
    what they carried is mixed up for good. It needs `m` of the order of `d^2` rows for a guarantee (Clarkson and
    Woodruff 2013), and has no coordinate-wise one at all.

    Attributes:
        place: `(n,)` int32, a random permutation; column `i` has its nonzero in row `place[i] % m`.
        order: `(passes, m)` int32, its inverse; `n` where there is none.
        signs: `(passes, m)` int8, +-1.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.CountSketch.create(jax.random.key(0), 40, 1000)
        >>> sketch.apply(jax.numpy.ones((1000, 3))).shape
        (40, 3)
    """

    place: jax.Array
    order: jax.Array
    signs: jax.Array

    @staticmethod
    def create(key: jax.Array, num_rows: int, num_cols: int) -> "CountSketch":
        """Draws the sketch.

        Args:
            key: one random key.
            num_rows: `m`, the length of the sketched vectors.
            num_cols: `n`, the length of the vectors to be sketched.

        Raises:
            ValueError: a size that is not a positive integer, or not one key.
        """
        num_rows, num_cols = check_sizes(key, num_rows, num_cols)
        deal_key, sign_key = jax.random.split(key)
        place, order = _deal(deal_key, num_cols, num_rows)
        return CountSketch(place=place, order=order, signs=jax.random.rademacher(sign_key, order.shape, jnp.int8))

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.order.shape[-1], self.place.shape[-1]

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        return shaped_like(_gathered_sum(self.order, self.signs, as_columns("a", a, self.shape[1])), a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        columns, m = as_columns("z", z, self.shape[0]), self.shape[0]
        return shaped_like(_signed(self.signs.reshape(-1)[self.place], columns[self.place % m]), z)


@jax.jit
def _gathered_sum(order: jax.Array, signs: jax.Array, columns: jax.Array) -> jax.Array:
    """Sum over passes of `signs * columns[order]`; places beyond the last column add nothing."""
    signs = jnp.where(order < columns.shape[0], signs, 0)

    def add(total: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _signed(one[1], _rows_at(columns, one[0])), None

    start = _signed(signs[0], _rows_at(columns, order[0]))
    return jax.lax.scan(add, start, (order[1:], signs[1:]))[0]


@pytree
class VerySparseSketch:
    """An `m x n` matrix S with `t` entries of `+-sqrt(n / (t m))` in every row, at random places.

    The very sparse projection of Li, Hastie and Church (2006) with `t = n / q` entries to a row, their `q = sqrt(n)` by
    default. Each row has exactly `t` draws, with repetition, instead of a binomial number of them.

    `apply` to `(n, k)` costs `2 m t k` operations, less than a pass over the data if `m t < n`: most of its rows are
    then never looked at. Do not use it as a subspace embedding or where single rows matter: it is a projection for
    distances between generic rows (embeddings, nearest neighbours).

    Attributes:
        order: `(t, m)` int32, the columns of the draws.
        signs: `(t, m)` int8, +-1.
        num_cols: `n`, static.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.VerySparseSketch.create(jax.random.key(0), 40, 1000)
        >>> sketch.apply(jax.numpy.ones((1000, 3))).shape
        (40, 3)
    """

    order: jax.Array
    signs: jax.Array
    num_cols: int = jax.tree.static()

    @staticmethod
    def create(key: jax.Array, num_rows: int, num_cols: int, *, draws: int | None = None) -> "VerySparseSketch":
        """Draws the sketch.

        Args:
            key: one random key.
            num_rows: `m`, the length of the sketched vectors.
            num_cols: `n`, the length of the vectors to be sketched.
            draws: `t`, entries of a row of S; `sqrt(n)` rounded up if left out.

        Raises:
            ValueError: a size or number of draws that is not a positive integer, or not one key.
        """
        num_rows, num_cols = check_sizes(key, num_rows, num_cols)
        draws = int(np.ceil(np.sqrt(num_cols))) if draws is None else check_count("draws", draws)
        place_key, sign_key = jax.random.split(key)
        order = jax.random.randint(place_key, (draws, num_rows), 0, num_cols, dtype=jnp.int32)
        signs = jax.random.rademacher(sign_key, order.shape, jnp.int8)
        return VerySparseSketch(order=order, signs=signs, num_cols=num_cols)

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.order.shape[-1], self.num_cols

    @property
    def scale(self) -> float:
        """`sqrt(n / (t m))`, the size of an entry."""
        return float(np.sqrt(self.num_cols / self.order.size))

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        return shaped_like(self.scale * _gathered_sum(self.order, self.signs, as_columns("a", a, self.num_cols)), a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        return shaped_like(self.scale * _scattered(self, as_columns("z", z, self.shape[0])), z)


@jax.jit
def _scattered(sketch: VerySparseSketch, columns: jax.Array) -> jax.Array:
    def add(total: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total.at[one[0]].add(_signed(one[1], columns)), None

    start = jnp.broadcast_to(0 * columns[:1], (sketch.num_cols, columns.shape[1]))
    return jax.lax.scan(add, start, (sketch.order, sketch.signs))[0]
