"""The operator contract, and what follows from `forward` alone."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np


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

    @property
    def shape(self) -> tuple[int, int]:
        """`(n1, n2)`, the shape of the matrices measured."""
        raise NotImplementedError

    @property
    def num_measurements(self) -> int:
        """Length `m` of what `forward` returns."""
        raise NotImplementedError

    @property
    def measured(self) -> jax.Array | None:
        """`(m,)`, true where the operator measures something; `None` if it does so everywhere."""
        return None

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        """`A(left @ right.T)`, shape `(m,)`, from factors `(n1, k)` and `(n2, k)`."""
        raise NotImplementedError

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


def _transpose(linear: Any, shape: tuple[int, int], z: jax.Array) -> jax.Array:
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, z.dtype))(z)[0]


def check_shape(shape: Any) -> tuple[int, int]:
    """Returns `shape` as a pair of positive ints or raises a `ValueError` that names it."""
    try:
        pair = tuple(int(n) for n in shape)
    except (TypeError, ValueError):
        pair = ()
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"shape must be two positive integers (rows, columns); got {shape!r}")
    return pair[0], pair[1]


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Returns `value` as an int of at least `minimum` or raises a `ValueError` that names it."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}; got {value!r}")
    return int(value)


def check_real(name: str, array: Any) -> None:
    """Raises a `ValueError` unless `array` holds real floating-point numbers."""
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be real floating point; got dtype {dtype}. Cast it first if that is meant")


def check_finite(name: str, array: Any) -> None:
    """Raises a `ValueError` if a concrete `array` holds NaN or infinity; a traced one cannot be looked at."""
    if (host := host_value(array)) is not None and not np.isfinite(host).all():
        bad = int((~np.isfinite(host)).sum())
        raise ValueError(f"{name} must be finite; {bad} of {host.size} values are NaN or infinite")


def host_value(array: Any) -> np.ndarray | None:
    """A concrete array as NumPy, or `None` for a traced one; inside jit even constants meet JAX only as tracers."""
    return None if isinstance(array, jax.core.Tracer) else np.asarray(array)
