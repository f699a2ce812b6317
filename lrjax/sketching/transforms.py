"""Sketches by fast orthogonal transforms: every entry of the data reaches every row of the sketch."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import check_count
from lrjax.core.pytree import pytree
from lrjax.linalg.hadamard import hadamard_transform
from lrjax.sketching.base import as_columns, check_dtype, check_sizes, over_column_blocks, shaped_like

# Numbers that are transformed at a time.
_BLOCK_ENTRIES = 2**22


def power_above(size: int) -> int:
    """The first power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def _width(size: int) -> int:
    return max(1, _BLOCK_ENTRIES // size)


def _subset(key: jax.Array, size: int, count: int) -> jax.Array:
    """`count` distinct numbers below `size`, in random order."""
    return jax.random.permutation(key, size)[:count].astype(jnp.int32)


def sign_rows(signs: jax.Array, columns: jax.Array) -> jax.Array:
    """The rows of `columns`, each times its sign (or number)."""
    return signs.astype(columns.dtype)[:, None] * columns


@pytree
class SRHT:
    """Subsampled randomized Hadamard transform: `S = sqrt(N / m) P H D`.

    `D` are random signs, `H` the orthonormal Hadamard matrix of the next power of two `N >= n` (the data padded with
    zeros) and `P` picks `m` of its rows without replacement (Ailon and Chazelle 2006; Sarlos 2006).

    Song, Ye, Yin and Zhang (2023, arXiv 2302.00248) claim the coordinate-wise guarantee of `lstsq` for it with
    `m = O(eps^-2 d log^3(n / delta))` rows. Their proof has an acknowledged gap; `PooledSketch` is the construction
    with a proof. In experiments it is the best of all sketches, by `sqrt(1 - m / N)`.

    `apply` to `(n, k)` goes through blocks of columns, a few of `N` numbers at a time, and costs some
    `100 N k` operations as small matrix products. Do not use it for speed on data that are not coherent: transforming
    costs more than the pass or two of `CountSketch` or `SparseSignSketch`, and often more than solving the problem.

    Attributes:
        signs: `(n,)` int8.
        rows: `(m,)` int32, distinct rows below `N`.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.SRHT.create(jax.random.key(0), 40, 1000)
        >>> sketch.apply(jax.numpy.ones((1000, 3))).shape
        (40, 3)
    """

    signs: jax.Array
    rows: jax.Array

    @staticmethod
    def create(key: jax.Array, num_rows: int, num_cols: int) -> "SRHT":
        """Draws the sketch.

        Args:
            key: one random key.
            num_rows: `m`, at most the next power of two above `n`.
            num_cols: `n`, the length of the vectors to be sketched.

        Raises:
            ValueError: a size that is not a positive integer, `m` above `N`, or not one key.
        """
        num_rows, num_cols = check_sizes(key, num_rows, num_cols)
        size = power_above(num_cols)
        if num_rows > size:
            raise ValueError(f"num_rows is {num_rows}; expected at most {size}, the rows of the padded transform")
        sign_key, row_key = jax.random.split(key)
        signs = jax.random.rademacher(sign_key, (num_cols,), jnp.int8)
        return SRHT(signs=signs, rows=_subset(row_key, size, num_rows))

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.rows.shape[-1], self.signs.shape[-1]

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        return shaped_like(_srht_apply(self, as_columns("a", a, self.shape[1])), a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        return shaped_like(_srht_adjoint(self, as_columns("z", z, self.shape[0])), z)


def transformed(signs: jax.Array, block: jax.Array, size: int) -> jax.Array:
    """The Hadamard transform of the signed rows, padded with zeros to `size`."""
    return hadamard_transform(jnp.pad(sign_rows(signs, block), ((0, size - block.shape[0]), (0, 0))))


@jax.jit
def _srht_apply(sketch: SRHT, columns: jax.Array) -> jax.Array:
    m, size = sketch.shape[0], power_above(sketch.shape[1])
    short = lambda block: transformed(sketch.signs, block, size)[sketch.rows]
    return over_column_blocks(short, columns, _width(size)) * (size / m) ** 0.5


@jax.jit
def _srht_adjoint(sketch: SRHT, columns: jax.Array) -> jax.Array:
    (m, n), size = sketch.shape, power_above(sketch.shape[1])

    def long(block: jax.Array) -> jax.Array:
        spread = jnp.zeros((size, block.shape[1]), block.dtype).at[sketch.rows].set(block)
        return sign_rows(sketch.signs, hadamard_transform(spread)[:n])

    return over_column_blocks(long, columns, _width(size)) * (size / m) ** 0.5


@pytree
class SRDCT:
    """Subsampled randomized cosine transform: `SRHT` with the orthonormal DCT-II in place of the Hadamard matrix.

    Takes any length, so nothing is padded. The transform is an FFT: on a CPU about twice as slow per number as
    the Hadamard transform, so it pays where `n` is just above a power of two. Real data only.

    Attributes:
        signs: `(n,)` int8.
        rows: `(m,)` int32, distinct rows below `n`.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.SRDCT.create(jax.random.key(0), 40, 1000)
        >>> sketch.apply(jax.numpy.ones((1000, 3))).shape
        (40, 3)
    """

    signs: jax.Array
    rows: jax.Array

    @staticmethod
    def create(key: jax.Array, num_rows: int, num_cols: int) -> "SRDCT":
        """Draws the sketch; as `SRHT.create`, with `m` at most `n`."""
        num_rows, num_cols = check_sizes(key, num_rows, num_cols)
        if num_rows > num_cols:
            raise ValueError(f"num_rows is {num_rows}; expected at most {num_cols}, the rows of the transform")
        sign_key, row_key = jax.random.split(key)
        signs = jax.random.rademacher(sign_key, (num_cols,), jnp.int8)
        return SRDCT(signs=signs, rows=_subset(row_key, num_cols, num_rows))

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.rows.shape[-1], self.signs.shape[-1]

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`, real."""
        return shaped_like(_srdct_apply(self, _real("a", as_columns("a", a, self.shape[1]))), a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`, real."""
        return shaped_like(_srdct_adjoint(self, _real("z", as_columns("z", z, self.shape[0]))), z)


def _real(name: str, value: jax.Array) -> jax.Array:
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise ValueError(f"{name} has dtype {value.dtype}; expected a real floating type for the cosine transform")
    return value


@jax.jit
def _srdct_apply(sketch: SRDCT, columns: jax.Array) -> jax.Array:
    m, n = sketch.shape

    def short(block: jax.Array) -> jax.Array:
        return jax.scipy.fft.dct(sign_rows(sketch.signs, block), axis=0, norm="ortho")[sketch.rows]

    return over_column_blocks(short, columns, _width(n)) * (n / m) ** 0.5


@jax.jit
def _srdct_adjoint(sketch: SRDCT, columns: jax.Array) -> jax.Array:
    m, n = sketch.shape

    def long(block: jax.Array) -> jax.Array:
        spread = jnp.zeros((n, block.shape[1]), block.dtype).at[sketch.rows].set(block)
        return sign_rows(sketch.signs, jax.scipy.fft.idct(spread, axis=0, norm="ortho"))

    return over_column_blocks(long, columns, _width(n)) * (n / m) ** 0.5


@pytree
class BlockSRHT:
    """Hadamard transforms of blocks of rows, summed with random signs: `S = sqrt(r / m) sum_i D'_i P H D_i E_i`.

    `E_i` takes the `i`-th block of `r` rows, `D_i` and `D'_i` are random signs, `H` the Hadamard matrix of size `r`
    and `P` one choice of `m` of its rows (Balabanov, Beaupere, Grigori and Lederer 2022). The blocks pass through the
    cache one at a time, so nothing of the size of the data is written, and each may live on its own device.

    Do not use it where coordinate-wise accuracy matters: within a block of coherent rows it is an `SRHT`, but blocks
    meet only through signs.

    Attributes:
        signs: `(blocks, r)` int8, `D`.
        row_signs: `(blocks, m)` int8, `D'`.
        rows: `(m,)` int32.
        num_cols: `n`, static.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.BlockSRHT.create(jax.random.key(0), 40, 1000)
        >>> sketch.apply(jax.numpy.ones((1000, 3))).shape
        (40, 3)
    """

    signs: jax.Array
    row_signs: jax.Array
    rows: jax.Array
    num_cols: int = jax.tree.static()

    @staticmethod
    def create(key: jax.Array, num_rows: int, num_cols: int, *, block_size: int | None = None) -> "BlockSRHT":
        """Draws the sketch.

        Args:
            key: one random key.
            num_rows: `m`, at most `block_size`.
            num_cols: `n`, the length of the vectors to be sketched.
            block_size: `r`, a power of two; the first above `2 m` if left out.

        Raises:
            ValueError: a size that is not a positive integer, `m` above `r`, `r` no power of two, or not one key.
        """
        num_rows, num_cols = check_sizes(key, num_rows, num_cols)
        size = power_above(2 * num_rows) if block_size is None else check_count("block_size", block_size)
        if size & (size - 1) or size < num_rows:
            raise ValueError(f"block_size is {size}; expected a power of two of at least num_rows = {num_rows}")
        blocks = -(-num_cols // size)
        sign_key, out_key, row_key = jax.random.split(key, 3)
        return BlockSRHT(
            signs=jax.random.rademacher(sign_key, (blocks, size), jnp.int8),
            row_signs=jax.random.rademacher(out_key, (blocks, num_rows), jnp.int8),
            rows=_subset(row_key, size, num_rows),
            num_cols=num_cols,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.rows.shape[-1], self.num_cols

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        return shaped_like(_block_srht_apply(self, as_columns("a", a, self.num_cols)), a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        return shaped_like(_block_srht_adjoint(self, as_columns("z", z, self.shape[0])), z)


@jax.jit
def _block_srht_apply(sketch: BlockSRHT, columns: jax.Array) -> jax.Array:
    (blocks, size), m = sketch.signs.shape, sketch.shape[0]
    scale = (size / m) ** 0.5

    def short(rows: jax.Array, index: Any) -> jax.Array:
        rows = transformed(sketch.signs[index, : rows.shape[0]], rows, size)[sketch.rows]
        return sign_rows(sketch.row_signs[index], rows)

    def add(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        return total + short(jax.lax.dynamic_slice_in_dim(columns, index * size, size), index), None

    last = short(columns[(blocks - 1) * size :], blocks - 1)
    if blocks == 1:
        return last * scale
    return jax.lax.scan(add, last, jnp.arange(blocks - 1, dtype=jnp.int32))[0] * scale


@jax.jit
def _block_srht_adjoint(sketch: BlockSRHT, columns: jax.Array) -> jax.Array:
    (blocks, size), m = sketch.signs.shape, sketch.shape[0]

    def long(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        signs, row_signs = one
        spread = jnp.zeros((size, columns.shape[1]), columns.dtype).at[sketch.rows].set(sign_rows(row_signs, columns))
        return sign_rows(signs, hadamard_transform(spread))

    parts = jax.lax.map(long, (sketch.signs, sketch.row_signs))
    return parts.reshape(blocks * size, columns.shape[1])[: sketch.num_cols] * (size / m) ** 0.5


@pytree
class PooledSketch:
    """The balanced Gaussian-pooled sketch: Hadamard transform, permutation, Gaussian weights, sums of `s` each.

    The data, padded to `N = m s` rows, are signed, transformed by the orthonormal Hadamard matrix, permuted, multiplied
    by independent N(0, 1), and every `s` consecutive rows are summed; no further scaling. Given signs and permutation,
    `E[S^T S] = I`, and the rows are independent: this makes the coordinate-wise guarantee of least squares
    provable with `m = O(eps^-2 d log(d / delta))` rows, where the proof for plain `SRHT` (Song, Ye, Yin and
    Zhang 2023) has a gap. The argument is from a 2026 manuscript without peer review; tests hold the prediction.

    Costs as `SRHT`, of size `m s`. Do not use it for speed.

    Attributes:
        signs: `(n,)` int8.
        permutation: `(N,)` int32.
        gaussians: `(N,)`.
        num_rows: `m`, static: a power of two.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.PooledSketch.create(jax.random.key(0), 64, 1000)
        >>> sketch.apply(jax.numpy.ones((1000, 3))).shape
        (64, 3)
    """

    signs: jax.Array
    permutation: jax.Array
    gaussians: jax.Array
    num_rows: int = jax.tree.static()

    @staticmethod
    def create(
        key: jax.Array, num_rows: int, num_cols: int, *, pool: int | None = None, dtype: Any = None
    ) -> "PooledSketch":
        """Draws the sketch.

        Args:
            key: one random key.
            num_rows: `m`, a power of two.
            num_cols: `n`, the length of the vectors to be sketched.
            pool: `s`, rows summed to one, a power of two with `m s >= n`; the smallest such of at least 32 if left
                out. With fewer the error exceeds the prediction.
            dtype: real floating type of the Gaussians; JAX's default float if left out.

        Raises:
            ValueError: a size that is not a positive integer, `m` or `s` not powers of two, `m s < n`, a dtype that is
                not floating, or not one key.
        """
        num_rows, num_cols = check_sizes(key, num_rows, num_cols)
        pool = max(32, power_above(-(-num_cols // num_rows))) if pool is None else check_count("pool", pool)
        if num_rows & (num_rows - 1):
            raise ValueError(f"num_rows is {num_rows}; expected a power of two, such as {power_above(num_rows)}")
        if pool & (pool - 1) or pool * num_rows < num_cols:
            raise ValueError(f"pool is {pool}; expected a power of two of at least n / m = {num_cols / num_rows:g}")
        dtype, size = check_dtype(dtype), pool * num_rows
        sign_key, order_key, normal_key = jax.random.split(key, 3)
        return PooledSketch(
            signs=jax.random.rademacher(sign_key, (num_cols,), jnp.int8),
            permutation=jax.random.permutation(order_key, size).astype(jnp.int32),
            gaussians=jax.random.normal(normal_key, (size,), dtype),
            num_rows=num_rows,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.num_rows, self.signs.shape[-1]

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        return shaped_like(_pooled_apply(self, as_columns("a", a, self.shape[1])), a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        return shaped_like(_pooled_adjoint(self, as_columns("z", z, self.num_rows)), z)


@jax.jit
def _pooled_apply(sketch: PooledSketch, columns: jax.Array) -> jax.Array:
    size = sketch.permutation.shape[0]

    def short(block: jax.Array) -> jax.Array:
        mixed = transformed(sketch.signs, block, size)[sketch.permutation]
        return sign_rows(sketch.gaussians, mixed).reshape(sketch.num_rows, -1, block.shape[1]).sum(axis=1)

    return over_column_blocks(short, columns, _width(size))


@jax.jit
def _pooled_adjoint(sketch: PooledSketch, columns: jax.Array) -> jax.Array:
    size, n = sketch.permutation.shape[0], sketch.shape[1]

    def long(block: jax.Array) -> jax.Array:
        spread = sign_rows(sketch.gaussians, jnp.repeat(block, size // sketch.num_rows, axis=0))
        back = jnp.zeros_like(spread).at[sketch.permutation].set(spread)
        return sign_rows(sketch.signs, hadamard_transform(back)[:n])

    return over_column_blocks(long, columns, _width(size))
