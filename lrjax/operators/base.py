"""The operator contract, and what follows from `forward` alone."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrjax.core.checks import as_array

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
        entrywise: true if each measurement is one entry of the matrix, so that least squares in one factor falls
            apart into independent rows. Such operators also define `solve_left` and `solve_right`.
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
