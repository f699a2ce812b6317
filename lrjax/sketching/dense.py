"""Dense random linear maps S that shorten tall matrices, each with `create`, `apply`, `apply_adjoint`, `shape`.

All sketches of the package satisfy `E[S^T S] = I`. With `m` rows and a fixed orthonormal `U` of `d` columns, the
singular values of a Gaussian `S U` lie close to `1 +- sqrt(d / m)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.pytree import pytree
from lrjax.sketching.base import as_columns, check_dtype, check_sizes, shaped_like

# About this many numbers of a dense sketch exist at a time: 4 MB in float32, near the size of a cache.
_BLOCK_ENTRIES = 2**20


def _block_size(num_rows: int, num_cols: int) -> int:
    return min(num_cols, max(1, _BLOCK_ENTRIES // num_rows))


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
        num_rows, num_cols = check_sizes(key, num_rows, num_cols)
        return GaussianSketch(
            key=key,
            num_rows=num_rows,
            num_cols=num_cols,
            block_size=_block_size(num_rows, num_cols),
            dtype=check_dtype(dtype),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.num_rows, self.num_cols

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        return shaped_like(_dense_apply(self, as_columns("a", a, self.num_cols)), a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        return shaped_like(_dense_adjoint(self, as_columns("z", z, self.num_rows)), z)


@pytree
class RademacherSketch:
    """An `m x n` matrix S of independent signs `+-1/sqrt(m)`, drawn again from the key whenever it is applied.

    Behaves like `GaussianSketch`, and its entries are cheaper to draw; the product costs the same `2 m n k`. Not for
    speed either.

    Attributes:
        key: the random key.
        num_rows: `m`, static.
        num_cols: `n`, static.
        block_size: columns drawn at a time, static; set by `create`.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.RademacherSketch.create(jax.random.key(0), 40, 1000)
        >>> sketch.apply(jax.numpy.ones((1000, 3))).shape
        (40, 3)
    """

    key: jax.Array
    num_rows: int = jax.tree.static()
    num_cols: int = jax.tree.static()
    block_size: int = jax.tree.static()

    @staticmethod
    def create(key: jax.Array, num_rows: int, num_cols: int) -> "RademacherSketch":
        """Makes the sketch; arguments and errors as `GaussianSketch.create`."""
        num_rows, num_cols = check_sizes(key, num_rows, num_cols)
        return RademacherSketch(
            key=key, num_rows=num_rows, num_cols=num_cols, block_size=_block_size(num_rows, num_cols)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.num_rows, self.num_cols

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        return shaped_like(_dense_apply(self, as_columns("a", a, self.num_cols)), a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        return shaped_like(_dense_adjoint(self, as_columns("z", z, self.num_rows)), z)


def _block(sketch: GaussianSketch | RademacherSketch, index: Any, dtype: Any) -> jax.Array:
    key = jax.random.fold_in(sketch.key, index)
    shape = (sketch.num_rows, sketch.block_size)
    if isinstance(sketch, RademacherSketch):
        return jax.random.rademacher(key, shape, jnp.int8).astype(dtype)
    return jax.random.normal(key, shape, sketch.dtype).astype(dtype)


# Jitted here so that calls outside jit do not trace and compile their loops anew each time.
@jax.jit
def _dense_apply(sketch: GaussianSketch | RademacherSketch, columns: jax.Array) -> jax.Array:
    size = sketch.block_size
    last = (sketch.num_cols - 1) // size

    def product(index: Any, rows: jax.Array) -> jax.Array:
        block = _block(sketch, index, columns.dtype)[:, : rows.shape[0]]
        return jnp.matmul(block, rows, precision="highest")

    def add(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        return total + product(index, jax.lax.dynamic_slice_in_dim(columns, index * size, size)), None

    # The last, perhaps shorter, block starts the sum: no padded copy of a, and a carry typed by the data.
    start = product(last, columns[last * size :])
    total, _ = jax.lax.scan(add, start, jnp.arange(last, dtype=jnp.int32))
    return total * sketch.num_rows**-0.5


@jax.jit
def _dense_adjoint(sketch: GaussianSketch | RademacherSketch, columns: jax.Array) -> jax.Array:
    def rows(index: jax.Array) -> jax.Array:
        return jnp.matmul(_block(sketch, index, columns.dtype).T, columns, precision="highest")

    num_blocks = -(-sketch.num_cols // sketch.block_size)
    blocks = jax.lax.map(rows, jnp.arange(num_blocks, dtype=jnp.int32))
    total = blocks.reshape(num_blocks * sketch.block_size, columns.shape[1])[: sketch.num_cols]
    return total * sketch.num_rows**-0.5
