"""Sketches of Kronecker products that never form the product."""

import jax
import jax.numpy as jnp

from lrjax.core.checks import as_array, check_count, check_key
from lrjax.core.pytree import pytree
from lrjax.linalg.hadamard import hadamard_transform
from lrjax.sketching.base import as_columns, shaped_like
from lrjax.sketching.transforms import power_above, sign_rows, transformed


@pytree
class TensorSRHT:
    """A sketch of Kronecker products: row `t` is `sqrt(N1 N2 / m) (H D x)_{i_t} (H' D' y)_{j_t}` on `x (x) y`.

    For matrices whose rows are indexed by pairs, `A = A1 (x) A2`, or whose columns are products `x (x) y`: two short
    transforms take the place of one of length `n1 n2`, and the product is never formed. The extension of the
    regression guarantee to tensor products in Song, Ye, Yin and Zhang (2023) asks for such a dense sketch; the row
    counts there are not restated here.

    Attributes:
        signs1: `(n1,)` int8.
        signs2: `(n2,)` int8.
        rows1: `(m,)` int32, drawn with replacement.
        rows2: `(m,)` int32.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> sketch = lr.sketching.TensorSRHT.create(jax.random.key(0), 40, 20, 30)
        >>> x, y = jax.numpy.ones((20, 2)), jax.numpy.ones((30, 3))
        >>> sketch.apply_kronecker(x, y).shape  # S (x (x) y)
        (40, 6)
    """

    signs1: jax.Array
    signs2: jax.Array
    rows1: jax.Array
    rows2: jax.Array

    @staticmethod
    def create(key: jax.Array, num_rows: int, size1: int, size2: int) -> "TensorSRHT":
        """Draws the sketch of shape `(m, n1 n2)`.

        Raises:
            ValueError: a size that is not a positive integer, or not one key.
        """
        check_key(key)
        num_rows = check_count("num_rows", num_rows)
        sizes = check_count("size1", size1), check_count("size2", size2)
        keys = jax.random.split(key, 4)
        signs = [jax.random.rademacher(k, (n,), jnp.int8) for k, n in zip(keys[:2], sizes, strict=True)]
        rows = [
            jax.random.randint(k, (num_rows,), 0, power_above(n), dtype=jnp.int32)
            for k, n in zip(keys[2:], sizes, strict=True)
        ]
        return TensorSRHT(signs1=signs[0], signs2=signs[1], rows1=rows[0], rows2=rows[1])

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n1 n2)`."""
        return self.rows1.shape[-1], self.signs1.shape[-1] * self.signs2.shape[-1]

    def _halves(self, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, y = as_columns("x", x, self.signs1.shape[0]), as_columns("y", y, self.signs2.shape[0])
        one = transformed(self.signs1, x, power_above(x.shape[0]))[self.rows1]
        two = transformed(self.signs2, y, power_above(y.shape[0]))[self.rows2]
        return one * self._scale(), two

    def _scale(self) -> float:
        size = power_above(self.signs1.shape[0]) * power_above(self.signs2.shape[0])
        return (size / self.rows1.shape[0]) ** 0.5

    def apply_kronecker(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """`S (x (x) y)`, `(m, k1 k2)`, for `x` `(n1, k1)` and `y` `(n2, k2)`; `k2` varies fastest."""
        one, two = self._halves(x, y)
        return (one[:, :, None] * two[:, None, :]).reshape(one.shape[0], -1)

    def apply_products(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """`S [x_1 (x) y_1, ..., x_k (x) y_k]`, `(m, k)`, for `x` `(n1, k)` and `y` `(n2, k)`."""
        x, y = as_array("x", x), as_array("y", y)
        if x.shape[1:] != y.shape[1:]:
            raise ValueError(f"x has shape {x.shape} and y has shape {y.shape}; expected as many columns")
        one, two = self._halves(x, y)
        return shaped_like(one * two, x)

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)`, for `a` of `(n1 n2,)` or `(n1 n2, k)`: both transforms in full."""
        return shaped_like(_tensor_apply(self, as_columns("a", a, self.shape[1])), a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n1 n2,)` or `(n1 n2, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        return shaped_like(_tensor_adjoint(self, as_columns("z", z, self.shape[0])), z)


@jax.jit
def _tensor_apply(sketch: TensorSRHT, columns: jax.Array) -> jax.Array:
    n1, n2, k = sketch.signs1.shape[0], sketch.signs2.shape[0], columns.shape[1]
    half = transformed(sketch.signs1, columns.reshape(n1, n2 * k), power_above(n1)).reshape(-1, n2, k)
    half = jnp.swapaxes(half, 0, 1).reshape(n2, -1)
    whole = transformed(sketch.signs2, half, power_above(n2)).reshape(power_above(n2), -1, k)
    return whole[sketch.rows2, sketch.rows1] * sketch._scale()


@jax.jit
def _tensor_adjoint(sketch: TensorSRHT, columns: jax.Array) -> jax.Array:
    n1, n2, k = sketch.signs1.shape[0], sketch.signs2.shape[0], columns.shape[1]
    spread = jnp.zeros((power_above(n2), power_above(n1), k), columns.dtype)
    spread = spread.at[sketch.rows2, sketch.rows1].add(columns * sketch._scale())
    half = sign_rows(sketch.signs2, hadamard_transform(spread.reshape(spread.shape[0], -1))[:n2])
    half = jnp.swapaxes(half.reshape(n2, -1, k), 0, 1).reshape(-1, n2 * k)
    return sign_rows(sketch.signs1, hadamard_transform(half)[:n1]).reshape(n1 * n2, k)
