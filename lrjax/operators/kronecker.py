"""Measurements by a Kronecker product of small matrices."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import as_array, check_count, check_finite
from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree
from lrjax.linalg.modes import mode_products
from lrjax.operators.base import Operator


@pytree
class Kronecker(Operator):
    """`A(X) = vec(K_1 X K_2^T)` with Kronecker products `K_1` and `K_2` of small matrices, which are never formed.

    With matrices `A_1, ..., A_d` of shapes `(M_i, N_i)` the unknown is a tensor `(N_1, ..., N_d)`, looked at as the
    `n1 x n2` matrix whose rows run over the first `num_row_modes` axes, the last of them fastest, and whose columns
    run over the others: `K_1` is the Kronecker product of the first matrices, `K_2` of the others. On the flat tensor
    (row-major, as `reshape` has it) the map is `A_1 (x) ... (x) A_d` however the axes are split. `d` is any number;
    with all modes in the rows `X` is a column, and the operator a linear map of vectors.

    Build it with `from_matrices`. Memory: the matrices. A dense `X` costs one mode product after the other, factors of
    `k` columns that of `K_1` and `K_2` on `k` columns, and one product of the two.

    Complex matrices are for `lrjax.sparse_bayesian`, which needs no `Problem`; `adjoint` then is the Hermitian
    adjoint. The solvers of `lrjax.solve` are real.

    Attributes:
        matrices: `d` arrays `(M_i, N_i)`.
        num_row_modes: how many of the modes make up the rows of `X`.

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> a = lr.operators.Kronecker.from_matrices([jnp.ones((2, 3)), jnp.ones((4, 5)), jnp.eye(2)])
        >>> a.shape, a.num_measurements
        ((3, 10), 16)
        >>> float(a.forward_dense(jnp.ones((3, 10)))[0])
        15.0
    """

    matrices: tuple[jax.Array, ...]
    num_row_modes: int = jax.tree.static()

    @staticmethod
    def from_matrices(matrices: Sequence[Any], *, num_row_modes: int = 1) -> "Kronecker":
        """Wraps the matrices of the modes.

        Args:
            matrices: at least one, `(M_i, N_i)`, floating or complex, finite, of one dtype.
            num_row_modes: modes that make up the rows, from one to all; with all of them `X` has one column.

        Raises:
            ValueError: none, not matrices, empty, dtypes that differ or are not floating, not finite, or more row modes
                than modes.
        """
        parts = tuple(as_array(f"matrices[{i}]", a) for i, a in enumerate(matrices))
        if not parts or any(a.ndim != 2 or 0 in a.shape for a in parts):
            shapes = [a.shape for a in parts]
            raise ValueError(f"matrices must be at least one of shape (M_i, N_i), neither zero; got shapes {shapes}")
        dtypes = {a.dtype for a in parts}
        if len(dtypes) > 1 or not jnp.issubdtype(parts[0].dtype, jnp.inexact):
            raise ValueError(f"matrices must share one floating or complex dtype; got {sorted(map(str, dtypes))}")
        for i, a in enumerate(parts):
            check_finite(f"matrices[{i}]", a)
        num_row_modes = check_count("num_row_modes", num_row_modes)
        if num_row_modes > len(parts):
            raise ValueError(f"num_row_modes must be at most {len(parts)}, the number of matrices; got {num_row_modes}")
        return Kronecker(matrices=parts, num_row_modes=num_row_modes)

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """`(N_1, ..., N_d)`, the unknown as a tensor."""
        return tuple(a.shape[1] for a in self.matrices)

    @property
    def measured_shape(self) -> tuple[int, ...]:
        """`(M_1, ..., M_d)`, the measurements as a tensor."""
        return tuple(a.shape[0] for a in self.matrices)

    @property
    def shape(self) -> tuple[int, int]:
        sizes = self.tensor_shape
        return math.prod(sizes[: self.num_row_modes]), math.prod(sizes[self.num_row_modes :])

    @property
    def num_measurements(self) -> int:
        return math.prod(self.measured_shape)

    @property
    def _row_modes(self) -> tuple[jax.Array, ...]:
        return self.matrices[: self.num_row_modes]

    @property
    def _col_modes(self) -> tuple[jax.Array, ...]:
        return self.matrices[self.num_row_modes :]

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return matmul(_on_columns(self._row_modes, left), _on_columns(self._col_modes, right).T).reshape(-1)

    def forward_dense(self, x: jax.Array) -> jax.Array:
        return mode_products(x.reshape(self.tensor_shape), self.matrices).reshape(-1)

    def adjoint(self, z: jax.Array) -> jax.Array:
        return mode_products(z.reshape(self.measured_shape), _adjoints(self.matrices)).reshape(self.shape)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        rows = math.prod(self.measured_shape[: self.num_row_modes])
        seen = _on_columns(self._col_modes, v.conj()).conj()
        return _on_columns(_adjoints(self._row_modes), matmul(z.reshape(rows, -1), seen))

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        rows = math.prod(self.measured_shape[: self.num_row_modes])
        seen = _on_columns(self._row_modes, u.conj()).conj()
        return _on_columns(_adjoints(self._col_modes), matmul(z.reshape(rows, -1).T, seen))


def _adjoints(matrices: tuple[jax.Array, ...]) -> list[jax.Array]:
    return [a.conj().T for a in matrices]


def _on_columns(matrices: Sequence[jax.Array], columns: jax.Array) -> jax.Array:
    """The Kronecker product of the matrices on each of `k` columns; of none, the number one."""
    if not matrices:
        return columns
    k = columns.shape[1]
    tensor = columns.reshape(*(a.shape[1] for a in matrices), k)
    return mode_products(tensor, matrices).reshape(-1, k)
