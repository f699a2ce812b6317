"""What several solvers need: door checks and the rule that says when a fit is exact."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import losses, status
from lrjax._pytree import pytree
from lrjax.factors import Factors
from lrjax.operators.base import check_count as check_count
from lrjax.problem import Problem


def check_rank(solver: Any, problem: Problem) -> None:
    """Raises a `ValueError` unless `1 <= max_rank <= min(shape)` and `1 <= rank <= max_rank`."""
    check_count("max_rank", solver.max_rank)
    if solver.max_rank > min(problem.shape):
        raise ValueError(f"max_rank must be at most min(shape) = {min(problem.shape)}; got {solver.max_rank}")
    if (rank := getattr(solver, "rank", None)) is not None:
        check_range("rank", rank, low=1, high=solver.max_rank)
    if getattr(solver, "symmetric", False) and problem.shape[0] != problem.shape[1]:
        raise ValueError(f"symmetric=True needs a square matrix; the problem has shape {problem.shape}")


def check_range(
    name: str, value: Any, *, low: float | None = None, high: float | None = None, open_low: bool = False
) -> None:
    """Raises a `ValueError` if a concrete number (or any element of an array) lies outside `[low, high]`."""
    if value is None or any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        return
    array = np.asarray(value)
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name} must be a real number; got {value!r}")
    good = np.isfinite(array)
    if low is not None:
        good &= (array > low) if open_low else (array >= low)
    if high is not None:
        good &= array <= high
    if not good.all():
        left = f"{'(' if open_low else '['}{-np.inf if low is None else low}"
        raise ValueError(f"{name} must be finite and in {left}, {np.inf if high is None else high}]; got {value!r}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


def exact_fit(before: jax.Array, after: jax.Array, tolerance: float | jax.Array | None) -> jax.Array:
    """Status code from the relative residual before and after a step.

    With a tolerance: converged once the relative residual is at most that. Without: once it is at rounding level
    (a hundred epsilons) and a step no longer lowers it.
    """
    if tolerance is not None:
        done = after <= tolerance
    else:
        eps = jnp.finfo(after.dtype).eps
        done = (after <= eps) | ((after <= 100 * eps) & (after >= before))
    return jnp.where(done, status.CONVERGED, status.RUNNING)


@pytree
class FirstOrderState:
    """State of a solver that keeps the residual where it stands.

    Attributes:
        factors: the iterate.
        residual: `(m,)` of that iterate.
        info: scalars describing that iterate.
        extra: what else the solver carries.
    """

    factors: Factors
    residual: jax.Array
    info: dict[str, jax.Array]
    extra: Any = None


def describe(problem: Problem, residual: jax.Array) -> dict[str, jax.Array]:
    """The two scalars that every solver reports: `objective` and `residual` (relative, weighted Euclidean)."""
    return {"objective": problem.objective_of(residual), "residual": problem.relative_residual(residual)}


def symmetric_product(problem: Problem, z: jax.Array, u: jax.Array) -> jax.Array:
    """`(A*(z) + A*(z)^T) u`."""
    return problem.operator.adjoint_matmul(z, u) + problem.operator.adjoint_rmatmul(z, u)


def require_squared_or_smooth(solver: str, problem: Problem) -> None:
    """Raises a `ValueError` for the absolute loss, on which a fixed step does not converge."""
    if isinstance(problem.loss, losses.Absolute):
        raise ValueError(
            f"{solver} needs a smooth loss; got {problem.loss!r}. Use losses.Huber(delta), or SubgradientMethod"
        )
