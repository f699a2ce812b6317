"""A Gaussian ensemble that is drawn again at each use instead of being stored."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import check_count, check_flag, check_key, check_shape, float_dtype, number
from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree
from lrjax.operators.base import Operator
from lrjax.operators.dense import draw_gaussian_rows, pack_symmetric, unpack_symmetric


@pytree
class SeededGaussianEnsemble(Operator):
    """`A(X)_i = <A_i, X>` with Gaussian `A_i` regenerated from a key, block by block.

    Forward and adjoint draw the same rows, so memory is one block of `block_size` measurements however many there
    are; the price is drawing `m n1 n2` normals in each application, some ten times the cost of reading them.
    Use `DenseEnsemble` while the ensemble fits in memory.

    Attributes:
        key: the typed random key that is the ensemble.
        scale: standard deviation of an entry.
        matrix_shape: `(n1, n2)`.
        num_measurements: `m`.
        block_size: measurements drawn at a time. It is part of the ensemble: another size gives other matrices.
        symmetric: draw `(G + G^T) / 2`, packed.
        dtype: dtype of the entries.

    Examples:
        >>> import jax, lrjax as lr
        >>> a = lr.operators.SeededGaussianEnsemble.create(jax.random.key(0), (30, 20), num_measurements=5_000)
        >>> a.forward_dense(jax.numpy.ones((30, 20))).shape
        (5000,)
    """

    key: jax.Array
    scale: jax.Array
    matrix_shape: tuple[int, int] = jax.tree.static()
    count: int = jax.tree.static()
    block_size: int = jax.tree.static()
    symmetric: bool = jax.tree.static(default=False)

    @staticmethod
    def create(
        key: jax.Array,
        shape: tuple[int, int],
        num_measurements: int,
        *,
        symmetric: bool = False,
        scale: float | jax.Array = 1.0,
        block_size: int | None = None,
        dtype: Any = None,
    ) -> "SeededGaussianEnsemble":
        """Describes the ensemble; nothing is drawn yet.

        Args:
            key: typed random key (`jax.random.key`).
            shape: `(n1, n2)`.
            num_measurements: `m`.
            symmetric: symmetric matrices `(G + G^T) / 2`.
            scale: standard deviation of an entry.
            block_size: measurements drawn at a time; default about a million numbers' worth.
            dtype: float32 or float64; default JAX's current default.
        """
        n1, n2 = check_shape(shape)
        m = check_count("num_measurements", num_measurements)
        symmetric = check_flag("symmetric", symmetric)
        if symmetric and n1 != n2:
            raise ValueError(f"symmetric=True needs a square shape; got {(n1, n2)}")
        check_key(key)
        size = n1 * (n1 + 1) // 2 if symmetric else n1 * n2
        default = min(m, max(1, 2**20 // size))
        block = default if block_size is None else check_count("block_size", block_size)
        return SeededGaussianEnsemble(
            key=key,
            scale=number("scale", scale, float_dtype(dtype), low=0),
            matrix_shape=(n1, n2),
            count=m,
            block_size=block,
            symmetric=symmetric,
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix_shape

    @property
    def num_measurements(self) -> int:
        return self.count

    @property
    def num_blocks(self) -> int:
        """Blocks drawn in one application; the last may be used in part."""
        return -(-self.count // self.block_size)

    def _block(self, index: jax.Array) -> jax.Array:
        block_key = jax.random.fold_in(self.key, index)
        return draw_gaussian_rows(block_key, self.block_size, self.shape, self.symmetric, self.scale.dtype)

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return self.forward_dense(matmul(left, right.T))

    def forward_dense(self, x: jax.Array) -> jax.Array:
        flat = self.scale * (pack_symmetric(x) if self.symmetric else x.reshape(-1))
        # Checkpointed: reverse mode draws the block again rather than keeping every block for the transpose.
        measure = jax.checkpoint(lambda index: matmul(self._block(index), flat))
        return jax.lax.map(measure, jnp.arange(self.num_blocks)).reshape(-1)[: self.count]

    def adjoint(self, z: jax.Array) -> jax.Array:
        padded = jnp.pad(z * self.scale, (0, self.num_blocks * self.block_size - self.count))
        blocks = padded.reshape(self.num_blocks, self.block_size)
        add = jax.checkpoint(lambda index, weights: matmul(weights, self._block(index)))

        def body(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return total + add(*block), None

        first = add(jnp.asarray(0), blocks[0])
        total, _ = jax.lax.scan(body, first, (jnp.arange(1, self.num_blocks), blocks[1:]))
        return unpack_symmetric(total, self.shape[0]) if self.symmetric else total.reshape(self.shape)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        return matmul(self.adjoint(z), v)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        return matmul(self.adjoint(z).T, u)

    def symmetric_adjoint_matmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        a = self.adjoint(z)
        return 2 * matmul(a, u) if self.symmetric else matmul(a + a.T, u)
