"""Operators made of operators."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import as_array, check_finite, host_value, real_array
from lrjax.core.pytree import pytree
from lrjax.operators.base import Operator, check_operator


@pytree
class Scaled(Operator):
    """`factor * A(X)`; see `scaled`."""

    operator: Any
    factor: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        return self.operator.shape

    @property
    def num_measurements(self) -> int:
        return self.operator.num_measurements

    @property
    def measured(self) -> jax.Array | None:
        return self.operator.measured

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return self.factor * self.operator.forward(left, right)

    def forward_dense(self, x: jax.Array) -> jax.Array:
        return self.factor * self.operator.forward_dense(x)

    def adjoint(self, z: jax.Array) -> jax.Array:
        return self.operator.adjoint(self.factor * z)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        return self.operator.adjoint_matmul(self.factor * z, v)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        return self.operator.adjoint_rmatmul(self.factor * z, u)


@pytree
class Masked(Operator):
    """`A` with some measurements switched off; see `masked`."""

    operator: Any
    mask: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        return self.operator.shape

    @property
    def num_measurements(self) -> int:
        return self.operator.num_measurements

    @property
    def measured(self) -> jax.Array:
        inner = self.operator.measured
        return self.mask if inner is None else self._keep(inner)

    def _keep(self, z: jax.Array) -> jax.Array:
        return jnp.where(self.mask, z, jnp.zeros_like(z))

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return self._keep(self.operator.forward(left, right))

    def forward_dense(self, x: jax.Array) -> jax.Array:
        return self._keep(self.operator.forward_dense(x))

    def adjoint(self, z: jax.Array) -> jax.Array:
        return self.operator.adjoint(self._keep(z))

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        return self.operator.adjoint_matmul(self._keep(z), v)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        return self.operator.adjoint_rmatmul(self._keep(z), u)


@pytree
class Stacked(Operator):
    """The measurements of several operators, one after the other; see `stacked`."""

    operators: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.operators[0].shape

    @property
    def num_measurements(self) -> int:
        return sum(op.num_measurements for op in self.operators)

    @property
    def measured(self) -> jax.Array | None:
        parts = [op.measured for op in self.operators]
        known = [part for part in parts if part is not None]
        if not known:
            return None
        ones = lambda op: jnp.ones(op.num_measurements, bool)
        pairs = zip(self.operators, parts, strict=True)
        return jnp.concatenate([ones(op) if part is None else part != 0 for op, part in pairs])

    def _split(self, z: jax.Array) -> list[tuple[Any, jax.Array]]:
        pieces, start = [], 0
        for op in self.operators:
            pieces.append((op, z[start : start + op.num_measurements]))
            start += op.num_measurements
        return pieces

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.concatenate([op.forward(left, right) for op in self.operators])

    def forward_dense(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([op.forward_dense(x) for op in self.operators])

    def adjoint(self, z: jax.Array) -> jax.Array:
        return sum((op.adjoint(part) for op, part in self._split(z)), jnp.zeros(self.shape, z.dtype))

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        start = jnp.zeros((self.shape[0], v.shape[1]), z.dtype)
        return sum((op.adjoint_matmul(part, v) for op, part in self._split(z)), start)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        start = jnp.zeros((self.shape[1], u.shape[1]), z.dtype)
        return sum((op.adjoint_rmatmul(part, u) for op, part in self._split(z)), start)


@pytree
class Summed(Operator):
    """`A_1(X) + A_2(X) + ...`; see `summed`."""

    operators: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.operators[0].shape

    @property
    def num_measurements(self) -> int:
        return self.operators[0].num_measurements

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        first, *others = (op.forward(left, right) for op in self.operators)
        return functools.reduce(jnp.add, others, first)

    def forward_dense(self, x: jax.Array) -> jax.Array:
        first, *others = (op.forward_dense(x) for op in self.operators)
        return functools.reduce(jnp.add, others, first)

    def adjoint(self, z: jax.Array) -> jax.Array:
        first, *others = (op.adjoint(z) for op in self.operators)
        return functools.reduce(jnp.add, others, first)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        first, *others = (op.adjoint_matmul(z, v) for op in self.operators)
        return functools.reduce(jnp.add, others, first)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        first, *others = (op.adjoint_rmatmul(z, u) for op in self.operators)
        return functools.reduce(jnp.add, others, first)


def scaled(operator: Any, factor: Any) -> Scaled:
    """`factor * A`: `factor` is a scalar, or one number per measurement (a calibration gain).

    Raises:
        ValueError: no operator, or a `factor` that is not real floating or finite, or of the wrong shape.
    """
    check_operator("operator", operator)
    factor = real_array("factor", factor)
    check_finite("factor", factor)
    if factor.shape not in ((), (operator.num_measurements,)):
        raise ValueError(f"factor must be a scalar or have shape ({operator.num_measurements},); got {factor.shape}")
    return Scaled(operator=operator, factor=factor)


def masked(operator: Any, mask: Any) -> Masked:
    """`A` with measurements switched off where `mask` is false; switched-off ones count as not measured.

    Args:
        operator: any operator.
        mask: `(m,)` booleans, or numbers that are 0 or 1.

    Raises:
        ValueError: no operator, wrong shape, or values other than 0 and 1.
    """
    check_operator("operator", operator)
    mask = as_array("mask", mask)
    if mask.shape != (operator.num_measurements,):
        raise ValueError(f"mask must have shape ({operator.num_measurements},); got {mask.shape}")
    if mask.dtype != bool:
        if (host := host_value(mask)) is not None and not ((host == 0) | (host == 1)).all():
            raise ValueError("mask must hold only 0 and 1; use Problem.weights for graded weights")
    return Masked(operator=operator, mask=mask != 0)


def _check_group(name: str, operators: tuple[Any, ...]) -> None:
    if not operators:
        raise ValueError(f"{name} needs at least one operator; got none")
    for i, op in enumerate(operators):
        check_operator(f"{name}: argument {i}", op)
    shapes = [op.shape for op in operators]
    if len(set(shapes)) > 1:
        raise ValueError(f"{name} needs operators on matrices of one shape; got {shapes}")


def stacked(*operators: Any) -> Stacked:
    """All measurements of all `operators`, concatenated in order: several instruments, one matrix."""
    _check_group("stacked", operators)
    return Stacked(operators=tuple(operators))


def summed(*operators: Any) -> Summed:
    """The sum of operators with as many measurements each: overlapping instruments that add up.

    Raises:
        ValueError: shapes or numbers of measurements differ, or one has unmeasured entries (their sum has no
            meaning; mask the sum instead).
    """
    _check_group("summed", operators)
    counts = [op.num_measurements for op in operators]
    if len(set(counts)) > 1:
        raise ValueError(f"summed needs operators with equally many measurements; got {counts}")
    if any(op.measured is not None for op in operators):
        raise ValueError("summed takes operators that measure everywhere; apply `masked` to the sum instead")
    return Summed(operators=tuple(operators))
