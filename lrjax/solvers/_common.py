"""What several solvers need: door checks and the rule that says when a fit is exact."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax import losses, status
from lrjax._checks import check_count, check_range
from lrjax._pytree import pytree
from lrjax.factors import Factors
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


def describe_square(problem: Problem, square: jax.Array) -> dict[str, jax.Array]:
    """`describe` for the squared loss, from the weighted sum of squared residuals."""
    return {"objective": 0.5 * square, "residual": problem.relative_norm(square)}


def symmetric_product(problem: Problem, z: jax.Array, u: jax.Array) -> jax.Array:
    """`(A*(z) + A*(z)^T) u`."""
    return problem.operator.adjoint_matmul(z, u) + problem.operator.adjoint_rmatmul(z, u)


def require_squared_or_smooth(solver: str, problem: Problem) -> None:
    """Raises a `ValueError` for the absolute loss, on which a fixed step does not converge."""
    if isinstance(problem.loss, losses.Absolute):
        raise ValueError(
            f"{solver} needs a smooth loss; got {problem.loss!r}. Use losses.Huber(delta), or SubgradientMethod"
        )
