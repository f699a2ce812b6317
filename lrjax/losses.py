"""Elementwise losses of a residual: value, (sub)gradient, and the weight of iterative reweighting.

Each loss is a pytree with three elementwise methods of a residual `r = A(X) - y`:
`value(r)`, `gradient(r)` (a subgradient where the loss has a kink) and `reweight(r, floor) = gradient(r) / r`, the
weight of the quadratic that touches the loss at `r` from above (Huber 1964; majorise and minimise). `floor` is the size
below which residuals count as zero; only a loss with a kink at zero needs it.

Two more members say how a loss depends on units, and `solve` measures in units of the data where they are there:
`degree`, the power of the residual with which the loss grows under a change of units, and `in_units(unit)`, the same
loss of residuals divided by `unit`: `value(r) = unit^degree in_units(unit).value(r / unit)`. A loss without them is
given the data as they are.
"""

from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lrjax.core.pytree import positional_pytree


@runtime_checkable
class Loss(Protocol):
    """What a loss must have. All three are elementwise."""

    def value(self, r: jax.Array) -> jax.Array:
        """The loss of residuals `r`."""
        ...

    def gradient(self, r: jax.Array) -> jax.Array:
        """Its slope, a subgradient at a kink."""
        ...

    def reweight(self, r: jax.Array, floor: Any) -> jax.Array:
        """`gradient(r) / r`, with residuals below `floor` taken as that."""
        ...


@runtime_checkable
class LossWithUnits(Loss, Protocol):
    """A loss that says how it depends on the units of the residual."""

    degree: Any

    def in_units(self, unit: jax.Array) -> "Loss":
        """The same loss of residuals divided by `unit`, and by `unit^degree`."""
        ...


@positional_pytree
class Squared:
    """`r^2 / 2`. The right loss for Gaussian noise; one gross outlier spoils it."""

    degree: ClassVar[int] = 2

    def in_units(self, unit: jax.Array) -> "Squared":
        """Itself."""
        return self

    def value(self, r: jax.Array) -> jax.Array:
        """`r^2 / 2`."""
        return 0.5 * r * r

    def gradient(self, r: jax.Array) -> jax.Array:
        """`r`."""
        return r

    def reweight(self, r: jax.Array, floor: float | jax.Array) -> jax.Array:
        """One everywhere."""
        return jnp.ones_like(r)


@positional_pytree
class Absolute:
    """`|r|`. Exact recovery under gross sparse outliers; its subgradient at zero is taken as zero."""

    degree: ClassVar[int] = 1

    def in_units(self, unit: jax.Array) -> "Absolute":
        """Itself."""
        return self

    def value(self, r: jax.Array) -> jax.Array:
        """`|r|`."""
        return jnp.abs(r)

    def gradient(self, r: jax.Array) -> jax.Array:
        """`sign(r)`, zero at zero."""
        return jnp.sign(r)

    def reweight(self, r: jax.Array, floor: float | jax.Array) -> jax.Array:
        """`1 / max(|r|, floor)`."""
        return 1 / jnp.maximum(jnp.abs(r), jnp.asarray(floor, r.dtype))


@positional_pytree
class Huber:
    """`r^2 / 2` up to `|r| = delta`, then `delta |r| - delta^2 / 2` (Huber 1964).

    Attributes:
        delta: where the loss turns linear, in the units of the residual; about 1.3 noise standard deviations.
    """

    delta: float | jax.Array

    degree: ClassVar[int] = 2

    def in_units(self, unit: jax.Array) -> "Huber":
        """The loss with `delta` in that unit."""
        return Huber(self.delta / unit)

    def value(self, r: jax.Array) -> jax.Array:
        """Quadratic inside `delta`, linear outside."""
        clipped = self.gradient(r)
        return clipped * (r - 0.5 * clipped)

    def gradient(self, r: jax.Array) -> jax.Array:
        """`r` clipped to `[-delta, delta]`."""
        delta = jnp.asarray(self.delta, r.dtype)
        return jnp.clip(r, -delta, delta)

    def reweight(self, r: jax.Array, floor: float | jax.Array) -> jax.Array:
        """`min(1, delta / |r|)`."""
        delta = jnp.asarray(self.delta, r.dtype)
        return delta / jnp.maximum(jnp.abs(r), delta)
