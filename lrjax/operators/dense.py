"""Ensembles of explicit measurement matrices."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import (
    check_count,
    check_finite,
    check_flag,
    check_key,
    check_shape,
    float_dtype,
    host_value,
    number,
    real_array,
)
from lrjax.core.draws import drawn
from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree
from lrjax.operators.base import Operator

# A dense ensemble above this many bytes is refused: it is nearly always a mistake.
MAX_BYTES = 8 * 2**30


@functools.cache
def _triangle(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the upper triangle in a flat matrix, their weights in an inner product, and the way back.

    NumPy's indices are constants; JAX's would be found again at every step.
    """
    rows, cols = np.triu_indices(n)
    place = np.zeros((n, n), np.int32)
    place[rows, cols] = place[cols, rows] = np.arange(len(rows), dtype=np.int32)
    return (rows * n + cols).astype(np.int32), np.where(rows == cols, 0.5, 1.0), place


def pack_symmetric(x: jax.Array) -> jax.Array:
    """`p` with `<A, x> = packed_rows(A) @ p` for symmetric `A`: the upper triangle of `x + x.T`, diagonal of `x`."""
    upper, weights, _ = _triangle(x.shape[0])
    packed = jnp.asarray(weights, x.dtype) * (x + x.T).reshape(-1)[upper]
    # XLA gathers batches the wrong way round, and would carry that into the product that follows.
    return jax.lax.optimization_barrier(packed)


def unpack_symmetric(p: jax.Array, n: int) -> jax.Array:
    """The symmetric matrix whose upper triangle is `p`; the adjoint of `pack_symmetric` on symmetric matrices."""
    # A gather: XLA writes a scatter one element at a time on a CPU.
    return p[_triangle(n)[2]]


@pytree
class DenseEnsemble(Operator):
    """`A(X)_i = <A_i, X>` with stored matrices `A_i`, the general linear measurement.

    Build it with `from_matrices` or `gaussian`. Memory `m n1 n2` numbers, `m n (n + 1) / 2` for symmetric ones;
    each application reads all of it once. Above a few hundred megabytes prefer `SeededGaussianEnsemble`.

    Attributes:
        rows: `(m, n1 * n2)`, or `(m, n (n + 1) / 2)` upper triangles when `symmetric`.
        matrix_shape: `(n1, n2)`.
        symmetric: whether the `A_i` are symmetric and stored packed.

    Examples:
        >>> import jax, lrjax as lr
        >>> a = lr.operators.DenseEnsemble.gaussian(jax.random.key(0), (4, 3), num_measurements=20)
        >>> a.forward_dense(jax.numpy.ones((4, 3))).shape
        (20,)
    """

    rows: jax.Array
    matrix_shape: tuple[int, int] = jax.tree.static()
    symmetric: bool = jax.tree.static(default=False)

    @staticmethod
    def from_matrices(matrices: Any, *, symmetric: bool = False) -> "DenseEnsemble":
        """Wraps a user's own `(m, n1, n2)` array of measurement matrices.

        Args:
            matrices: real floating, finite.
            symmetric: store the upper triangles only; every `A_i` must then be symmetric (checked).

        Raises:
            ValueError: not three-dimensional, empty, not real floating, not finite, or not symmetric as promised.
        """
        a, symmetric = real_array("matrices", matrices), check_flag("symmetric", symmetric)
        if a.ndim != 3 or 0 in a.shape:
            raise ValueError(f"matrices must have shape (m, n1, n2), none of them zero; got {a.shape}")
        check_finite("matrices", a)
        m, n1, n2 = a.shape
        if not symmetric:
            return DenseEnsemble(rows=a.reshape(m, n1 * n2), matrix_shape=(n1, n2))
        if n1 != n2:
            raise ValueError(f"symmetric=True needs square matrices; got shape {a.shape}")
        if (host := host_value(a)) is not None and not (host == host.swapaxes(1, 2)).all():
            raise ValueError("symmetric=True, but some matrices differ from their transpose; pass (a + a^T) / 2")
        upper = np.triu_indices(n1)
        return DenseEnsemble(rows=_upper(a, *upper), matrix_shape=(n1, n1), symmetric=True)

    @staticmethod
    def gaussian(
        key: jax.Array,
        shape: tuple[int, int],
        num_measurements: int,
        *,
        symmetric: bool = False,
        scale: float | jax.Array = 1.0,
        dtype: Any = None,
    ) -> "DenseEnsemble":
        """Draws `A_i` with independent `N(0, scale^2)` entries; symmetric ones are `(G + G^T) / 2` of such `G`.

        On symmetric `X`, `(G + G^T) / 2` measures exactly what `G` does, at half the memory.

        Args:
            key: random key.
            shape: `(n1, n2)`.
            num_measurements: `m`.
            symmetric: draw symmetric matrices, stored packed.
            scale: standard deviation of an entry; `1 / sqrt(m)` makes the map a near-isometry.
            dtype: float32 or float64; default JAX's current default.

        Raises:
            ValueError: a size, scale or dtype that is none, an oblong shape with `symmetric`, or more than eight
                gibibytes.
        """
        check_key(key)
        n1, n2 = check_shape(shape)
        m = check_count("num_measurements", num_measurements)
        dtype, symmetric = float_dtype(dtype), check_flag("symmetric", symmetric)
        scale = number("scale", scale, dtype, low=0)
        size = n1 * (n1 + 1) // 2 if symmetric else n1 * n2
        if symmetric and n1 != n2:
            raise ValueError(f"symmetric=True needs a square shape; got {(n1, n2)}")
        if (needed := math.prod((m, size)) * dtype.itemsize) > MAX_BYTES:
            raise ValueError(
                f"a dense ensemble of {m} matrices of shape {(n1, n2)} needs {needed / 2**30:.1f} GiB; "
                "use SeededGaussianEnsemble, whose memory does not grow with num_measurements"
            )
        rows = _scaled_rows(key, scale, m, (n1, n2), symmetric)
        return DenseEnsemble(rows=rows, matrix_shape=(n1, n2), symmetric=symmetric)

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix_shape

    @property
    def num_measurements(self) -> int:
        return self.rows.shape[0]

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        # One n1 x n2 product is free beside the m n1 n2 pass over the ensemble.
        return self.forward_dense(matmul(left, right.T))

    def forward_dense(self, x: jax.Array) -> jax.Array:
        return matmul(self.rows, pack_symmetric(x) if self.symmetric else x.reshape(-1))

    def adjoint(self, z: jax.Array) -> jax.Array:
        combined = matmul(z, self.rows)
        if self.symmetric:
            return unpack_symmetric(combined, self.shape[0])
        return combined.reshape(self.shape)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        return matmul(self.adjoint(z), v)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        return matmul(self.adjoint(z).T, u)

    def symmetric_adjoint_matmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        a = self.adjoint(z)
        return 2 * matmul(a, u) if self.symmetric else matmul(a + a.T, u)


@jax.jit
def _upper(a: jax.Array, rows: jax.Array, cols: jax.Array) -> jax.Array:
    return a[:, rows, cols]


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _scaled_rows(key: jax.Array, scale: jax.Array, m: int, shape: tuple[int, int], symmetric: bool) -> jax.Array:
    return draw_gaussian_rows(key, m, shape, symmetric, scale.dtype) * scale


def draw_gaussian_rows(key: jax.Array, m: int, shape: tuple[int, int], symmetric: bool, dtype: Any) -> jax.Array:
    """`(m, n1 n2)` standard normal rows, or the packed upper triangles of `(G + G^T) / 2`."""
    n1, n2 = shape
    if not symmetric:
        return drawn(jax.random.normal, key, (m, n1 * n2), dtype)
    rows, cols = np.triu_indices(n1)
    deviation = jnp.asarray(np.where(rows == cols, 1.0, math.sqrt(0.5)), dtype)
    return drawn(jax.random.normal, key, (m, n1 * (n1 + 1) // 2), dtype) * deviation[None, :]
