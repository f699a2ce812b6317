"""Random linear maps S that shorten tall matrices, each with `create`, `apply`, `apply_adjoint`, `shape`.

Both sketches satisfy `E[S^T S] = I`. With `m` rows and a fixed orthonormal `U` of `d` columns, the singular
values of a Gaussian `S U` lie close to `1 +- sqrt(d / m)`; the sparse sign sketch behaves much the same.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax._checks import check_count, check_key
from lrjax._pytree import pytree

# About this many numbers of a Gaussian sketch exist at a time: 4 MB in float32, near the size of a cache.
_BLOCK_ENTRIES = 2**20


def _check_dtype(dtype: Any) -> np.dtype:
    dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {dtype}; expected a real floating type")
    return dtype


def _as_columns(name: str, value: Any, num_entries: int) -> jax.Array:
    value = jnp.asarray(value)
    if value.ndim not in (1, 2) or value.shape[0] != num_entries:
        raise ValueError(
            f"{name} has shape {value.shape}; expected ({num_entries},) or ({num_entries}, k) for this sketch"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {value.dtype}; expected a real floating type")
    return value if value.ndim == 2 else value[:, None]


@pytree
class GaussianSketch:
    """An `m x n` matrix S of independent N(0, 1/m) entries, drawn again from the key whenever it is applied.

    Only the key is stored. `apply` and `apply_adjoint` draw S in blocks of columns of about a million
    numbers, so memory does not grow with `m n`. The draws depend on the key, the sizes and `dtype` alone.

    This is the sketch whose behaviour is known exactly, hence the yardstick. Do not use it for speed: `apply`
    to `(n, k)` costs `m n` normal draws and `2 m n k` operations, more than a QR of the same matrix once `m`
    exceeds `k`. `SparseSignSketch` is the practical one.

    Attributes:
        key: the random key.
        num_rows: `m`, static.
        num_cols: `n`, static.
        block_size: columns drawn at a time, static. Part of what defines S: `create` sets it from the sizes.
        dtype: the type the entries are drawn in, static. They are cast to the type of what S is applied to.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.GaussianSketch.create(jax.random.key(0), 40, 1000)
        >>> sketch.apply(jax.numpy.ones((1000, 3))).shape
        (40, 3)
    """

    key: jax.Array
    num_rows: int = jax.tree.static()
    num_cols: int = jax.tree.static()
    block_size: int = jax.tree.static()
    dtype: np.dtype = jax.tree.static()

    @staticmethod
    def create(key: jax.Array, num_rows: int, num_cols: int, *, dtype: Any = None) -> "GaussianSketch":
        """Makes the sketch.

        Args:
            key: one random key.
            num_rows: `m`, the length of the sketched vectors.
            num_cols: `n`, the length of the vectors to be sketched.
            dtype: real floating type of the draws; JAX's default float if left out.

        Returns:
            A `GaussianSketch` of shape `(m, n)`.

        Raises:
            ValueError: a size that is not a positive integer, a dtype that is not floating, or not one key.
        """
        check_key(key)
        num_rows = check_count("num_rows", num_rows)
        num_cols = check_count("num_cols", num_cols)
        return GaussianSketch(
            key=key,
            num_rows=num_rows,
            num_cols=num_cols,
            block_size=min(num_cols, max(1, _BLOCK_ENTRIES // num_rows)),
            dtype=_check_dtype(dtype),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.num_rows, self.num_cols

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        return _gaussian_apply(self, _as_columns("a", a, self.num_cols)).reshape(self.num_rows, *jnp.shape(a)[1:])

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        return _gaussian_adjoint(self, _as_columns("z", z, self.num_rows)).reshape(self.shape[1], *jnp.shape(z)[1:])


def _gaussian_block(sketch: GaussianSketch, index: Any, dtype: Any) -> jax.Array:
    key = jax.random.fold_in(sketch.key, index)
    return jax.random.normal(key, (sketch.num_rows, sketch.block_size), sketch.dtype).astype(dtype)


# Jitted here so that calls outside jit do not trace and compile their loops anew each time.
@jax.jit
def _gaussian_apply(sketch: GaussianSketch, columns: jax.Array) -> jax.Array:
    size = sketch.block_size
    last = (sketch.num_cols - 1) // size

    def product(index: Any, rows: jax.Array) -> jax.Array:
        block = _gaussian_block(sketch, index, columns.dtype)[:, : rows.shape[0]]
        return jnp.matmul(block, rows, precision="highest")

    def add(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        return total + product(index, jax.lax.dynamic_slice_in_dim(columns, index * size, size)), None

    # The last, perhaps shorter, block starts the sum: no padded copy of a, and a carry typed by the data.
    start = product(last, columns[last * size :])
    total, _ = jax.lax.scan(add, start, jnp.arange(last, dtype=jnp.int32))
    return total * sketch.num_rows**-0.5


@jax.jit
def _gaussian_adjoint(sketch: GaussianSketch, columns: jax.Array) -> jax.Array:
    def rows(index: jax.Array) -> jax.Array:
        return jnp.matmul(_gaussian_block(sketch, index, columns.dtype).T, columns, precision="highest")

    num_blocks = -(-sketch.num_cols // sketch.block_size)
    blocks = jax.lax.map(rows, jnp.arange(num_blocks, dtype=jnp.int32))
    total = blocks.reshape(num_blocks * sketch.block_size, columns.shape[1])[: sketch.num_cols]
    return total * sketch.num_rows**-0.5


@pytree
class SparseSignSketch:
    """An `m x n` matrix S with `s` nonzeros of `+-1/sqrt(s)` in every column, in `s` distinct rows.

    The rows are cut into `s` bands of `m / s` (give or take one) and each column has one nonzero at a uniform
    place in each band: distinct rows come for free, and `E[S^T S] = I` with an exact unit diagonal. This is
    the block construction of Nelson and Nguyen (2013), not `s` rows drawn uniformly from all `m`.

    `apply` to `(n, k)` costs `2 s n k` operations whatever `m` is; storage is `s n` row numbers and values.
    Do not use it where a few rows of the data carry everything and coordinate-wise error matters: columns of
    S overlap in whole nonzeros, and a sketch that sparse has no coordinate-wise guarantee.

    Attributes:
        rows: `(s, n)` int32, the row of each nonzero.
        values: `(s, n)`, each `+-1/sqrt(s)`.
        num_rows: `m`, static.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.SparseSignSketch.create(jax.random.key(0), 40, 1000)
        >>> sketch.apply(jax.numpy.ones((1000, 3))).shape
        (40, 3)
    """

    rows: jax.Array
    values: jax.Array
    num_rows: int = jax.tree.static()

    @staticmethod
    def create(
        key: jax.Array, num_rows: int, num_cols: int, *, num_nonzeros: int = 8, dtype: Any = None
    ) -> "SparseSignSketch":
        """Draws the sketch.

        Args:
            key: one random key.
            num_rows: `m`, the length of the sketched vectors.
            num_cols: `n`, the length of the vectors to be sketched.
            num_nonzeros: `s`, nonzeros per column, at most `m`.
            dtype: real floating type of the values; JAX's default float if left out. The values are cast to
                the type of what S is applied to.

        Returns:
            A `SparseSignSketch` of shape `(m, n)`.

        Raises:
            ValueError: a size that is not a positive integer, more nonzeros than rows, a dtype that is not
                floating, or not one key.
        """
        check_key(key)
        num_rows = check_count("num_rows", num_rows)
        num_cols = check_count("num_cols", num_cols)
        num_nonzeros = check_count("num_nonzeros", num_nonzeros)
        if num_nonzeros > num_rows:
            raise ValueError(f"num_nonzeros is {num_nonzeros}; expected at most num_rows = {num_rows}")
        dtype = _check_dtype(dtype)
        row_key, sign_key = jax.random.split(key)
        edges = _band_edges(num_rows, num_nonzeros)[:, None]
        size = (num_nonzeros, num_cols)
        rows = jax.random.randint(row_key, size, edges[:-1], edges[1:], dtype=jnp.int32)
        values = jax.random.rademacher(sign_key, size, dtype) * num_nonzeros**-0.5
        return SparseSignSketch(rows=rows, values=values, num_rows=num_rows)

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.num_rows, self.rows.shape[-1]

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        return _sparse_apply(self, _as_columns("a", a, self.shape[1])).reshape(self.num_rows, *jnp.shape(a)[1:])

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        return _sparse_adjoint(self, _as_columns("z", z, self.num_rows)).reshape(self.shape[1], *jnp.shape(z)[1:])


@jax.jit
def _sparse_apply(sketch: SparseSignSketch, columns: jax.Array) -> jax.Array:
    edges = _band_edges(sketch.num_rows, sketch.rows.shape[0])
    height = int(np.max(np.diff(edges)))

    def band(places: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows, values = places
        return jax.ops.segment_sum(values[:, None] * columns, rows, height)

    # One band at a time: all at once would hold s copies of a.
    bands = jax.lax.map(band, (sketch.rows - edges[:-1, None], sketch.values.astype(columns.dtype)))
    # Bands differ in height by one at most; the surplus row of the shorter ones is left out.
    return bands[np.arange(height) < np.diff(edges)[:, None]]


@jax.jit
def _sparse_adjoint(sketch: SparseSignSketch, columns: jax.Array) -> jax.Array:
    values = sketch.values.astype(columns.dtype)
    total = values[0, :, None] * columns[sketch.rows[0]]
    for i in range(1, sketch.rows.shape[0]):
        total = total + values[i, :, None] * columns[sketch.rows[i]]
    return total


def _band_edges(num_rows: int, num_nonzeros: int) -> np.ndarray:
    return (np.arange(num_nonzeros + 1, dtype=np.int64) * num_rows // num_nonzeros).astype(np.int32)
