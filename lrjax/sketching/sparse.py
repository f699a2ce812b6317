"""Sparse random linear maps S: a few nonzeros in every column, so that applying them is a few passes over the data.

Rows of the data are dealt out by a random permutation, about as many to each row of S as to any other. So `S a` is a
sum of gathers of `m` rows each, with nothing to scatter. Several gathers are summed at a time: that is what makes it
run near the speed at which the data are read.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import check_count
from lrjax.core.pytree import pytree
from lrjax.sketching.base import as_columns, check_sizes, shaped_like

# Gathers that are summed at a time.
_GATHERS = 8


def _random_signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """int8, +-1: one random bit each."""
    size = int(np.prod(shape))
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None, :]) & 1
    return 1 - 2 * bits.astype(jnp.int8).reshape(-1)[:size].reshape(shape)


def _deal(key: jax.Array, num_cols: int, hands: int) -> tuple[jax.Array, jax.Array]:
    """A random place for each column `(n,)`, all different, and the inverse `(passes, hands)`, `n` where there is none.

    The columns lie in a table of about `sqrt(n)` by `sqrt(n)`; its rows and columns are shifted cyclically, twice each,
    by random amounts: a few operations per column, where a uniform permutation needs a sort. Any two columns end in
    places that are as good as independent.
    """
    width = int(np.ceil(np.sqrt(num_cols)))
    height = -(-num_cols // width)
    # One draw for all; the remainder of 32 bits is uniform up to a relative `sqrt(n) / 2^32`.
    bits = jax.random.bits(key, (2 * (height + width),), jnp.uint32)
    one, two, three, four = (
        (part % bound).astype(jnp.int32)
        for part, bound in zip(
            jnp.split(bits, np.cumsum((height, width, height))), (width, height, width, height), strict=True
        )
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


def _signed(signs: jax.Array, columns: jax.Array) -> jax.Array:
    return signs.astype(columns.dtype)[:, None] * columns


def _in_groups(order: jax.Array) -> jax.Array:
    """The passes `(passes, m)` as `(groups, g, m)`, filled up with passes of `-1`, fewer than there are groups."""
    passes = order.shape[0]
    groups = -(-passes // _GATHERS)
    size = -(-passes // groups)
    filled = jnp.pad(order, ((0, groups * size - passes), (0, 0)), constant_values=-1)
    return filled.reshape(groups, size, -1)


def _sum_of_gathers(order: jax.Array, signs: jax.Array, columns: jax.Array) -> jax.Array:
    """Sum of `signs * columns[order]` over the passes of one group; places before or beyond all columns add nothing."""
    n = columns.shape[0]
    signs = jnp.where((order >= 0) & (order < n), signs, 0)
    order = jnp.clip(order, 0, n - 1)
    one = lambda i: _signed(signs[i], columns.at[order[i]].get(mode="promise_in_bounds"))
    total = one(0)
    for i in range(1, order.shape[0]):
        total = total + one(i)
    return total


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
        signs: `(s, passes, H)` int8, +-1, by place in the band; `H` is the size of the largest band.
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
        # As one line, which XLA compiles faster.
        below = jnp.broadcast_to(jnp.asarray(heights, jnp.int32), shape).reshape(-1)
        shifts = jax.random.randint(shift_key, below.shape, 0, below, dtype=jnp.int32).reshape(shape)
        signs = _random_signs(sign_key, (*shape, int(heights.max())))
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
    (bands, _, top), width = sketch.signs.shape, columns.shape[1]
    heights = np.diff(_band_edges(sketch.num_rows, bands))
    # Which column comes to each place of each band, all at once: in the loop below small operations would add up.
    (passes, size), places = sketch.order.shape, jnp.arange(top, dtype=jnp.int32)
    turned = places[None, None, :] - sketch.shifts.T[:, :, None]
    turned = jnp.where(turned < 0, turned + jnp.asarray(heights)[None, :, None], turned)
    there = (places[None, None, :] < jnp.asarray(heights)[None, :, None]) & (turned < size)
    which = jnp.arange(passes, dtype=jnp.int32)[:, None, None]
    orders = jnp.where(there, sketch.order[which, jnp.minimum(turned, size - 1)], -1)

    def add(total: jax.Array, one: tuple) -> tuple[jax.Array, None]:
        def band(total: jax.Array, one: tuple) -> tuple[jax.Array, None]:
            i, order, signs = one
            return total.at[i].add(_sum_of_gathers(order, signs, columns)), None

        return jax.lax.scan(band, total, (jnp.arange(bands, dtype=jnp.int32), *one))[0], None

    # Typed by the data, so that shard_map sees one type.
    start = jnp.broadcast_to(0 * columns[:1], (bands, top, width))
    orders = _in_groups(orders.reshape(passes, -1))
    signs = jnp.moveaxis(sketch.signs, 0, 1).reshape(passes, -1)
    signs = jnp.pad(signs, ((0, orders.shape[0] * orders.shape[1] - passes), (0, 0)))
    by_band = lambda x: jnp.moveaxis(x.reshape(*orders.shape[:2], bands, top), 2, 1)
    total, _ = jax.lax.scan(add, start, (by_band(orders), by_band(signs)))
    return jnp.concatenate([band[:height] for height, band in zip(heights, total, strict=True)]) * bands**-0.5


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
    place = (seat[None, :] + sketch.shifts[:, turn]) % np.diff(edges)[:, None]
    signs = sketch.signs[jnp.arange(place.shape[0], dtype=jnp.int32)[:, None], turn[None, :], place]
    return jnp.asarray(edges[:-1, None]) + place, signs


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
        return CountSketch(place=place, order=order, signs=_random_signs(sign_key, order.shape))

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
    orders = _in_groups(order)
    signs = jnp.pad(signs, ((0, orders.shape[0] * orders.shape[1] - order.shape[0]), (0, 0))).reshape(orders.shape)

    def add(total: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _sum_of_gathers(*one, columns), None

    return jax.lax.scan(add, _sum_of_gathers(orders[0], signs[0], columns), (orders[1:], signs[1:]))[0]


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
        signs = _random_signs(sign_key, order.shape)
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
