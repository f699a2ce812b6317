"""Measurements by rank-one matrices: phase retrieval, quadratic sampling, blind deconvolution."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import check_count, check_finite, check_flag, check_key, check_shape, float_dtype, real_array
from lrjax.core.draws import drawn
from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree
from lrjax.operators.base import Operator


@pytree
class RankOneMeasurements(Operator):
    """`A(X)_i = a_i^T X b_i`, in `O(m (n1 + n2))` memory and `O(m (n1 + n2) k)` work on factors.

    With `a_i = b_i` and symmetric `X = U U^T` the measurement is `||U^T a_i||^2` (quadratic sampling; phase
    retrieval at rank one). That family is not isotropic: `E a a^T <a a^T, X> = 2 X + trace(X) I` for Gaussian `a`.

    Attributes:
        left_vectors: `(m, n1)`, the `a_i`.
        right_vectors: `(m, n2)`, the `b_i`.

    Examples:
        >>> import jax, lrjax as lr
        >>> a = lr.operators.RankOneMeasurements.gaussian(jax.random.key(0), (5, 4), num_measurements=9)
        >>> a.forward_dense(jax.numpy.zeros((5, 4))).shape
        (9,)
    """

    left_vectors: jax.Array
    right_vectors: jax.Array

    @staticmethod
    def from_vectors(left_vectors: Any, right_vectors: Any = None) -> "RankOneMeasurements":
        """Wraps a user's own vectors; `right_vectors=None` means `b_i = a_i`.

        Raises:
            ValueError: not two-dimensional, of different length, not real floating, or not finite.
        """
        a = real_array("left_vectors", left_vectors)
        b = a if right_vectors is None else real_array("right_vectors", right_vectors)
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[0] or 0 in a.shape + b.shape:
            raise ValueError(
                f"left_vectors (m, n1) and right_vectors (m, n2) must share m >= 1; got {a.shape} and {b.shape}"
            )
        for name, array in (("left_vectors", a), ("right_vectors", b)):
            check_finite(name, array)
        return RankOneMeasurements(left_vectors=a, right_vectors=b)

    @staticmethod
    def gaussian(
        key: jax.Array,
        shape: tuple[int, int],
        num_measurements: int,
        *,
        symmetric: bool = False,
        dtype: Any = None,
    ) -> "RankOneMeasurements":
        """Draws standard normal vectors, the same on both sides when `symmetric`."""
        check_key(key)
        n1, n2 = check_shape(shape)
        m = check_count("num_measurements", num_measurements)
        dtype, symmetric = float_dtype(dtype), check_flag("symmetric", symmetric)
        if symmetric and n1 != n2:
            raise ValueError(f"symmetric=True needs a square shape; got {(n1, n2)}")
        a, b = _vectors(key, m, n1, None if symmetric else n2, dtype)
        return RankOneMeasurements(left_vectors=a, right_vectors=b)

    @property
    def shape(self) -> tuple[int, int]:
        return self.left_vectors.shape[1], self.right_vectors.shape[1]

    @property
    def num_measurements(self) -> int:
        return self.left_vectors.shape[0]

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.sum(matmul(self.left_vectors, left) * matmul(self.right_vectors, right), axis=1)

    def forward_dense(self, x: jax.Array) -> jax.Array:
        return jnp.sum(matmul(self.left_vectors, x) * self.right_vectors, axis=1)

    def adjoint(self, z: jax.Array) -> jax.Array:
        return matmul(self.left_vectors.T, z[:, None] * self.right_vectors)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        return matmul(self.left_vectors.T, z[:, None] * matmul(self.right_vectors, v))

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        return matmul(self.right_vectors.T, z[:, None] * matmul(self.left_vectors, u))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _vectors(key: jax.Array, m: int, n1: int, n2: int | None, dtype: Any) -> tuple[jax.Array, jax.Array]:
    key_left, key_right = jax.random.split(key)
    a = drawn(jax.random.normal, key_left, (m, n1), dtype)
    return a, a if n2 is None else drawn(jax.random.normal, key_right, (m, n2), dtype)
