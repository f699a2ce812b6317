"""The operator contract, and what follows from `forward` alone."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrjax.core.checks import as_array
from lrjax.linalg.rows import RowProblem
from lrjax.operators.coupling import DenseCoupling, ListedCoupling, dense_coupling

# The products of an operator and the arrays that they take.
_PRODUCTS = {
    "forward": ("left", "right"),
    "forward_dense": ("x",),
    "adjoint": ("z",),
    "adjoint_matmul": ("z", "v"),
    "adjoint_rmatmul": ("z", "u"),
    "symmetric_adjoint_matmul": ("z", "u"),
}


def _converting(product: Any, names: tuple[str, ...]) -> Any:
    @functools.wraps(product)
    def convert(self: Any, *arrays: Any, **named: Any) -> jax.Array:
        given = (as_array(name, array) for name, array in zip(names, arrays, strict=False))
        return product(self, *given, *arrays[len(names) :], **{n: as_array(n, array) for n, array in named.items()})

    return convert


class Operator:
    """A linear map from `n1 x n2` matrices to `num_measurements` numbers, as a pytree.

    A new operator is a class decorated with `lrjax.operators.pytree` that defines `shape`, `num_measurements`
    and `forward`; everything else follows by transposing `forward`. Override what can be done faster, and run
    `lrjax.testing.check_adjoint` on the result.

    Attributes:
        entrywise: true for an `EntrywiseOperator`.
    """

    entrywise: ClassVar[bool] = False

    def __init_subclass__(cls, **given: Any) -> None:
        """Arrays from the host go through the one conversion, in operators of a user's own too."""
        super().__init_subclass__(**given)
        for name, arguments in _PRODUCTS.items():
            if name in vars(cls):
                setattr(cls, name, _converting(vars(cls)[name], arguments))

    @property
    def shape(self) -> tuple[int, int]:
        """`(n1, n2)`, the shape of the matrices measured."""
        raise _missing(self, "shape")

    @property
    def num_measurements(self) -> int:
        """Length `m` of what `forward` returns."""
        raise _missing(self, "num_measurements")

    @property
    def measured(self) -> jax.Array | None:
        """`(m,)`, true where the operator measures something; `None` if it does so everywhere."""
        return None

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        """`A(left @ right.T)`, shape `(m,)`, from factors `(n1, k)` and `(n2, k)`."""
        raise _missing(self, "forward")

    def forward_dense(self, x: jax.Array) -> jax.Array:
        """`A(x)` for a dense `(n1, n2)` matrix."""
        return self.forward(x, jnp.eye(self.shape[1], dtype=x.dtype))

    def adjoint(self, z: jax.Array) -> jax.Array:
        """`A*(z)`, the dense `(n1, n2)` matrix with `<A(X), z> = <X, A*(z)>` for every `X`."""
        return _transpose(self.forward_dense, self.shape, z)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        """`A*(z) @ v` for `v` of shape `(n2, k)`, without forming `A*(z)`."""
        return _transpose(lambda left: self.forward(left, v), (self.shape[0], v.shape[1]), z)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        """`A*(z).T @ u` for `u` of shape `(n1, k)`, without forming `A*(z)`."""
        return _transpose(lambda right: self.forward(u, right), (self.shape[1], u.shape[1]), z)

    def symmetric_adjoint_matmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        """`(A*(z) + A*(z).T) @ u` for square matrices: what the gradient in `X = U U^T` needs."""
        return self.adjoint_matmul(z, u) + self.adjoint_rmatmul(z, u)


class EntrywiseOperator(Operator):
    """An operator each of whose measurements is one entry: least squares in one factor is one problem for each row.

    Attributes:
        sketches_rows: whether `solve_left` and `solve_right` take a `RowProblem` with `sketched`.
    """

    entrywise: ClassVar[bool] = True
    sketches_rows: ClassVar[bool] = False

    def arrange(self, y: jax.Array, weights: jax.Array | None = None) -> Any:
        """Measurements `(m,)` and weights `(m,)` (`None` for ones) as the half steps read them, both ways.

        Loops that solve many half steps with the same data call this once.
        """
        raise _missing(self, "arrange")

    def solve_left(self, right: jax.Array, data: Any, row: RowProblem) -> tuple[jax.Array, jax.Array]:
        """`argmin over left of sum_i weights_i (A(left right^T)_i - y_i)^2 + ridge ||left||_F^2`, row by row.

        Args:
            right: `(n2, k)`.
            data: `arrange(y, weights)`.
            row: ridge, columns in use, constraints.

        Returns:
            `left`, `(n1, k)`, and the sum of squares `sum_i weights_i (A(left right^T)_i - y_i)^2`. Rows without
            entries are zero; rows with fewer than `k` are damped, not fitted exactly.
        """
        raise _missing(self, "solve_left")

    def solve_right(self, left: jax.Array, data: Any, row: RowProblem) -> tuple[jax.Array, jax.Array]:
        """The same for `right` given `left`."""
        raise _missing(self, "solve_right")

    def fewest_entries(self) -> jax.Array | None:
        """Entries of the row or column with fewest, of those with any; `None` where that takes a count."""
        return None

    def coupled_parts(self) -> Any:
        """What `couple` reads that is the same at every point, or `None`."""
        return None

    def couple(
        self, left: jax.Array, right: jax.Array, weights: jax.Array | None, ridge: jax.Array, parts: Any
    ) -> DenseCoupling | ListedCoupling:
        """The coupling of both factors at `(left, right)`; weights are zero where nothing was measured."""
        dense = jnp.ones(self.shape, left.dtype) if weights is None else weights.reshape(self.shape)
        return dense_coupling(dense, left, right, ridge)


def _transpose(linear: Any, shape: tuple[int, int], z: jax.Array) -> jax.Array:
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, z.dtype))(z)[0]


def _missing(operator: Operator, name: str) -> NotImplementedError:
    return NotImplementedError(
        f"{type(operator).__name__} has no {name!r} of its own: an operator must define shape, num_measurements and "
        "forward"
    )


def check_operator(name: str, given: Any) -> None:
    """Raises a `ValueError` naming `name` unless `given` is an instance with the three things every operator has."""
    seen = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
    for part in ("shape", "num_measurements", "forward"):
        if isinstance(given, type) or not hasattr(given, part):
            raise ValueError(f"{name} must be a measurement operator (of lrjax.operators, or your own); got {seen}")
