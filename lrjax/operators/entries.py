"""Entries of the matrix as measurements, dense: all of them, or those under a mask."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import as_array, check_shape, host_value
from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree
from lrjax.linalg.rows import RowProblem, masked_gram
from lrjax.operators.base import EntrywiseOperator


def _dense_arranged(y, weights):
    """`(weights, y, weights * y)` as matrices: what a half step reads, whichever factor it solves for."""
    return weights, y, weights * y


def _dense_least_squares(factor, data, row, *, transpose):
    """Rows `x_j = argmin sum_i w[i, j] (factor_i . x_j - y[i, j])^2 + ridge ||x_j||^2`, and that sum of squares."""
    w, y, wy = (x.T for x in data) if transpose else data
    free, fixed = row.split(factor)
    if fixed is not None:
        y = y - fixed[:, None]
        wy = w * y
    solution = row.solve(masked_gram(w, free), matmul(wy.T, free), jnp.sum(w > 0, axis=0))
    misfit = matmul(free, solution.T) - y
    return row.finish(solution), jnp.sum(w * misfit * misfit)


@pytree
class Identity(EntrywiseOperator):
    """Every entry, row by row: robust PCA, weighted approximation, and the population model of the theory.

    Attributes:
        matrix_shape: `(n1, n2)`, the one argument; `y` is the `(n1 * n2,)` matrix read row by row.

    Examples:
        >>> import lrjax as lr
        >>> lr.operators.Identity((4, 3)).num_measurements
        12
    """

    matrix_shape: tuple[int, int] = jax.tree.static(kw_only=False)

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

    def arrange(self, y: jax.Array, weights: jax.Array | None = None) -> Any:
        y = y.reshape(self.shape)
        return _dense_arranged(y, jnp.ones_like(y) if weights is None else weights.reshape(self.shape))

    def solve_left(self, right: jax.Array, data: Any, row: RowProblem) -> tuple[jax.Array, jax.Array]:
        return _dense_least_squares(right, data, row, transpose=True)

    def solve_right(self, left: jax.Array, data: Any, row: RowProblem) -> tuple[jax.Array, jax.Array]:
        return _dense_least_squares(left, data, row, transpose=False)


@pytree
class EntryMask(EntrywiseOperator):
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

    mask: jax.Array = dataclasses.field(kw_only=False)

    @staticmethod
    def from_mask(mask: Any) -> "EntryMask":
        """Checks and wraps a mask of booleans or of zeros and ones.

        Raises:
            ValueError: not two-dimensional, empty, other values than 0 and 1, or nothing observed.
        """
        mask = as_array("mask", mask)
        if mask.ndim != 2 or 0 in mask.shape:
            raise ValueError(f"mask must have shape (n1, n2), neither zero; got {mask.shape}")
        if (host := host_value(mask)) is not None:
            if not ((host == 0) | (host == 1)).all():
                raise ValueError("mask must hold only 0 and 1; use Problem.weights for graded weights")
            if not host.any():
                raise ValueError("mask observes no entry: there are no measurements")
        return EntryMask(mask=mask.astype(bool))  # not `!= 0`, which promotes

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

    def arrange(self, y: jax.Array, weights: jax.Array | None = None) -> Any:
        w = self.mask.astype(y.dtype) if weights is None else self._observed(weights.reshape(self.shape))
        return _dense_arranged(self._observed(y.reshape(self.shape)), w)

    def solve_left(self, right: jax.Array, data: Any, row: RowProblem) -> tuple[jax.Array, jax.Array]:
        return _dense_least_squares(right, data, row, transpose=True)

    def solve_right(self, left: jax.Array, data: Any, row: RowProblem) -> tuple[jax.Array, jax.Array]:
        return _dense_least_squares(left, data, row, transpose=False)
