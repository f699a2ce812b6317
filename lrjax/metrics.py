"""How close an estimate is: gauge-invariant, so signs and rotations of the factors never matter."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import as_array, single_or_double
from lrjax.core.numerics import matmul, or_one
from lrjax.core.units import root, unit_of
from lrjax.linalg import guarded
from lrjax.problems.factors import Factors
from lrjax.problems.factors import relative_error as relative_error


def subspace_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sine of the largest principal angle between the column spaces of `a` and `b`, `||A_perp^T B||_2`.

    Args:
        a: `(n, k)`, full column rank.
        b: `(n, j)` with `j <= k`, full column rank.
    """
    a, b = as_array("a", a), as_array("b", b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[0] or not 0 < b.shape[1] <= a.shape[1]:
        raise ValueError(f"a (n, k) and b (n, j) need one n and 0 < j <= k; got {a.shape} and {b.shape}")
    single_or_double("a", a, complex_too=True)
    single_or_double("b", b, complex_too=True)
    return _subspace_distance(a, b)


@jax.jit
def _subspace_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    qa, qb = guarded.qr(a)[0], guarded.qr(b)[0]
    # The part of B outside A, not sqrt(1 - cos^2): small angles keep all their digits.
    return guarded.spectral_norm(qb - matmul(qa, matmul(qa.T, qb)))


def rmse(predicted: jax.Array, values: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Root mean squared difference, weighted if `weights` are given; at an exact fit its derivative is zero.

    Raises:
        ValueError: shapes that differ.
    """
    predicted, values = _alike(predicted=predicted, values=values)
    if weights is not None:
        weights, _ = _alike(weights=weights, values=values)
    return _rmse(predicted, values, weights)


@jax.jit
def _rmse(predicted: jax.Array, values: jax.Array, weights: jax.Array | None) -> jax.Array:
    difference = predicted - values
    unit = unit_of(difference)
    square = (difference / unit) ** 2
    if weights is None:
        return unit * root(jnp.mean(square))
    weights = weights / unit_of(weights)
    return unit * root(jnp.sum(weights * square) / jnp.sum(weights))


def _alike(**pair: Any) -> list[jax.Array]:
    """Both as arrays, of one shape."""
    arrays = [as_array(name, value) for name, value in pair.items()]
    if arrays[0].shape != arrays[1].shape:
        raise ValueError(f"{' and '.join(pair)} must have one shape; got {arrays[0].shape} and {arrays[1].shape}")
    return arrays


def success(estimate: Factors | jax.Array, truth: Factors | jax.Array, tolerance: float = 1e-4) -> jax.Array:
    """Whether the relative error is at most `tolerance`: the indicator of phase diagrams."""
    return relative_error(estimate, truth) <= tolerance


def support_recovery(estimate: jax.Array, truth: jax.Array, threshold: float | jax.Array = 0.0) -> jax.Array:
    """Fraction of places at which `|estimate| > threshold` agrees with `truth != 0`."""
    estimate, truth = _alike(estimate=estimate, truth=truth)
    return _support_recovery(estimate, truth, threshold)


@jax.jit
def _support_recovery(estimate: jax.Array, truth: jax.Array, threshold: float | jax.Array) -> jax.Array:
    return jnp.mean(((jnp.abs(estimate) > threshold) == (truth != 0)).astype(jnp.result_type(estimate)))


def scaled_error(estimate: jax.Array, truth: jax.Array) -> jax.Array:
    """Relative error after the best scaling, `min_c ||c estimate - truth|| / ||truth||`, `c` real or complex.

    For what is determined up to a factor: gains, inputs, eigenvectors. Never above 1, the value for
    an all-zero estimate.

    Args:
        estimate: real or complex, any shape.
        truth: of the same shape; NaN where it is zero.

    Raises:
        ValueError: the shapes differ.
    """
    return _scaled_error(*_alike(estimate=estimate, truth=truth))


@jax.jit
def _scaled_error(estimate: jax.Array, truth: jax.Array) -> jax.Array:
    # In units of their own: squares of what is very small or large would leave the range of single precision.
    estimate, truth = estimate / unit_of(estimate), truth / unit_of(truth)
    square = jnp.sum(jnp.abs(estimate) ** 2)
    # `vdot` conjugates the first argument.
    product = jnp.vdot(estimate, truth, precision="highest")
    factor = product / or_one(square).astype(product.dtype)
    # The difference itself: one minus the squared cosine would lose half the digits.
    size = lambda x: root(jnp.sum(jnp.abs(x) ** 2))
    return size(factor * estimate - truth) / size(truth)
