"""Step-size rules of the subgradient method.

A rule has `reference(y, weights)`, computed once, and `size(observation)`, called at each step. Sizes are in the
units that `SubgradientMethod` documents. `in_units(unit, relative=...)` is the rule for residuals divided by `unit`,
`relative` where `reference` is asked for; a rule without it is given the data as they are.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lrjax.core.numerics import safe_divide
from lrjax.core.pytree import pytree, replace


class Observation(NamedTuple):
    """What a rule may look at.

    Attributes:
        step: int32 number of the step, from 0.
        residual: `(m,)`.
        weights: `(m,)` or `None`.
        reference: what `reference` returned, or one for absolute units; for `Geometric` the first step that suffices.
        unit: step unit, one over the typical size of an entry of the measurement matrices, or one.
        objective: mean weighted absolute residual.
        slope: squared norm of the subgradient of that mean in the factors.
    """

    step: jax.Array
    residual: jax.Array
    weights: jax.Array | None
    reference: jax.Array
    unit: jax.Array
    objective: jax.Array
    slope: jax.Array


@runtime_checkable
class StepRule(Protocol):
    """What a rule must have."""

    def reference(self, y: jax.Array, weights: jax.Array | None) -> jax.Array:
        """What later steps are compared with, computed once."""
        ...

    def size(self, seen: Observation) -> jax.Array:
        """The step."""
        ...


@runtime_checkable
class StepRuleWithUnits(StepRule, Protocol):
    """A rule that can be stated for residuals in other units."""

    def in_units(self, unit: jax.Array, *, relative: bool) -> Any:
        """The rule for residuals divided by `unit`."""
        ...


def as_rule(step_size: Any) -> StepRule:
    """A rule as it is, and a number as the constant rule."""
    return step_size if isinstance(step_size, StepRule) else Constant(value=step_size)


def weighted_mean(values: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Mean of `values` under `weights`."""
    return jnp.mean(values) if weights is None else jnp.sum(weights * values) / jnp.sum(weights)


def measured_quantile(values: jax.Array, weights: jax.Array | None, quantile: float | jax.Array) -> jax.Array:
    """The `quantile` of the values with positive weight (the lower of two neighbours). A sort: `O(m log m)`.

    Raises:
        ValueError: more values than 32 bits can number.
    """
    if values.shape[0] >= 2**31:
        raise ValueError(
            f"a quantile takes less than 2^31 measurements; got {values.shape[0]}. Use another step size or loss, or "
            "AlternatingProjections, which looks at a sample"
        )
    if weights is None:
        count, ordered = jnp.asarray(values.shape[0], values.dtype), jnp.sort(values)
    else:
        on = weights > 0
        count = jnp.sum(on).astype(values.dtype)
        ordered = jnp.sort(jnp.where(on, values, jnp.inf))
    index = jnp.floor(jnp.asarray(quantile, values.dtype) * (count - 1)).astype(jnp.int32)
    return ordered[jnp.clip(index, 0, values.shape[0] - 1)]


def _no_reference(y: jax.Array) -> jax.Array:
    return jnp.ones((), y.dtype)


def _safe_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return safe_divide(a, b)


@pytree
class Constant:
    """The same step always. Stops at an error of the order of the step: for the squared loss, or a first look."""

    value: float | jax.Array = dataclasses.field(kw_only=False)

    def in_units(self, unit: jax.Array, *, relative: bool) -> "Constant":
        """Itself: steps have the units of the solver, not of the data."""
        return self

    def reference(self, y: jax.Array, weights: jax.Array | None) -> jax.Array:
        return _no_reference(y)

    def size(self, seen: Observation) -> jax.Array:
        return self.value * seen.unit


@pytree
class Geometric:
    """`value * decay^t`. Linear convergence if the decay is no faster than the problem allows.

    The total step `value / (1 - decay)` must suffice for a small start to grow: `SubgradientMethod` checks that, and
    sets `value` to one and a half times what is needed, at least 0.3, if it is `None`.
    """

    value: float | jax.Array | None = dataclasses.field(default=None, kw_only=False)
    decay: float | jax.Array = 0.99

    def in_units(self, unit: jax.Array, *, relative: bool) -> "Geometric":
        """Itself: steps have the units of the solver, not of the data."""
        return self

    def reference(self, y: jax.Array, weights: jax.Array | None) -> jax.Array:
        return _no_reference(y)

    def size(self, seen: Observation) -> jax.Array:
        first = seen.reference if self.value is None else self.value
        return first * seen.unit * self.decay ** seen.step.astype(seen.residual.dtype)


@pytree
class Diminishing:
    """`value / (t + 1)^power`: convergence without any knowledge, but sublinear."""

    value: float | jax.Array = dataclasses.field(kw_only=False)
    power: float | jax.Array = 0.5

    def in_units(self, unit: jax.Array, *, relative: bool) -> "Diminishing":
        """Itself: steps have the units of the solver, not of the data."""
        return self

    def reference(self, y: jax.Array, weights: jax.Array | None) -> jax.Array:
        return _no_reference(y)

    def size(self, seen: Observation) -> jax.Array:
        return self.value * seen.unit * (seen.step.astype(seen.residual.dtype) + 1) ** (-self.power)


@pytree
class ResidualNormalized:
    """Proportional to the mean absolute residual: for dense noise, where it settles at the noise level.

    Under gross outliers the mean never falls; use `ResidualQuantile`.
    """

    value: float | jax.Array = dataclasses.field(default=0.3, kw_only=False)

    def in_units(self, unit: jax.Array, *, relative: bool) -> "ResidualNormalized":
        """The rule for residuals divided by `unit`: where they are not compared with `y`, `value` is per unit."""
        return self if relative else replace(self, value=self.value * unit)

    def reference(self, y: jax.Array, weights: jax.Array | None) -> jax.Array:
        return weighted_mean(jnp.abs(y), weights)

    def size(self, seen: Observation) -> jax.Array:
        return self.value * seen.unit * _safe_ratio(seen.objective, seen.reference)


@pytree
class ResidualQuantile:
    """Proportional to a quantile of the absolute residuals: the default under outliers.

    Needs neither the optimum nor the corruption level, as long as the corrupted fraction stays well below
    `1 - quantile`; the quantile then measures the misfit of clean measurements, so the step shrinks in
    proportion to the error and convergence is linear at exact rank. The median (`quantile=0.5`) tolerates less
    than half; the default leaves room for 50 %. A `value` of 0.5 is 50 % faster where measurements are plentiful, and
    oscillates where they are scarce. Costs a sort of the residuals per step.
    """

    value: float | jax.Array = dataclasses.field(default=0.3, kw_only=False)
    quantile: float | jax.Array = 0.35

    def in_units(self, unit: jax.Array, *, relative: bool) -> "ResidualQuantile":
        """The rule for residuals divided by `unit`: where they are not compared with `y`, `value` is per unit."""
        return self if relative else replace(self, value=self.value * unit)

    def reference(self, y: jax.Array, weights: jax.Array | None) -> jax.Array:
        return measured_quantile(jnp.abs(y), weights, self.quantile)

    def size(self, seen: Observation) -> jax.Array:
        level = measured_quantile(jnp.abs(seen.residual), seen.weights, self.quantile)
        return self.value * seen.unit * _safe_ratio(level, seen.reference)


def median_residual(value: float | jax.Array = 0.2) -> ResidualQuantile:
    """`ResidualQuantile` at the median: `value * median |A(X) - y|`."""
    return ResidualQuantile(value=value, quantile=0.5)


@pytree
class Polyak:
    """`(f - optimum) / ||subgradient||^2` (Polyak 1969): the best step where the optimal mean loss is known.

    Attributes:
        optimum: mean absolute residual at the truth, known in simulations only.
    """

    optimum: float | jax.Array = dataclasses.field(kw_only=False)

    def in_units(self, unit: jax.Array, *, relative: bool) -> "Polyak":
        """The rule for residuals divided by `unit`."""
        return Polyak(optimum=self.optimum / unit)

    def reference(self, y: jax.Array, weights: jax.Array | None) -> jax.Array:
        return _no_reference(y)

    def size(self, seen: Observation) -> jax.Array:
        return jnp.maximum(_safe_ratio(seen.objective - self.optimum, seen.slope), 0)
