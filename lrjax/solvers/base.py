"""What several solvers need: argument checks and the rule that says when a fit is exact."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import losses, status
from lrjax.core.checks import check_count, check_range
from lrjax.core.numerics import matmul, or_one
from lrjax.core.pytree import pytree
from lrjax.core.units import Units
from lrjax.iteration.protocol import member
from lrjax.linalg import guarded
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.step_sizes import StepRule, StepRuleWithUnits


def check_rank(solver: Any, problem: Problem) -> None:
    """Raises a `ValueError` unless `1 <= max_rank <= min(shape)` and `1 <= rank <= max_rank`."""
    check_count("max_rank", solver.max_rank)
    # Offsets take two columns of the factors, but none of the product.
    offsets = 2 * bool(member(solver, "biases"))
    if solver.max_rank > min(problem.shape) + offsets:
        besides = f" and {offsets} for offsets" if offsets else ""
        raise ValueError(f"max_rank must be at most min(shape) = {min(problem.shape)}{besides}; got {solver.max_rank}")
    if (rank := member(solver, "rank")) is not None:
        check_range("rank", rank, low=1, high=solver.max_rank)
    if member(solver, "symmetric") and problem.shape[0] != problem.shape[1]:
        raise ValueError(f"symmetric=True needs a square matrix; the problem has shape {problem.shape}")


def rule_in_units(rule: Any, units: Units, *, relative: bool) -> tuple[Any, bool]:
    """A step rule, or `None` or a number, in those units, and whether it knows them."""
    if isinstance(rule, StepRuleWithUnits):
        return rule.in_units(units.measurement, relative=relative), True
    return rule, not isinstance(rule, StepRule)


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
    relative = problem.relative_norm(problem.squared_norm(residual))
    return {"objective": problem.objective_of(residual), "residual": relative}


def describe_square(problem: Problem, square: jax.Array) -> dict[str, jax.Array]:
    """`describe` for the squared loss, from the weighted sum of squared residuals."""
    return {"objective": 0.5 * square, "residual": problem.relative_norm(square)}


def precondition(
    gradient: jax.Array,
    other: jax.Array,
    damping: jax.Array,
    mask: jax.Array | None,
    *,
    after: jax.Array | None = None,
) -> jax.Array:
    """`gradient (other^T other + damping I)^-1`, safe for zero and masked columns; not begun before `after` is there.

    Two batched LAPACK calls at once may each hold a thread of XLA's CPU pool and wait for the other's, for ever.
    """
    k = other.shape[1]
    gram = matmul(other.T, other)
    if after is not None:
        gram = gram + 0 * after[:1, :1]
    eps = jnp.finfo(gram.dtype).eps
    mean = jnp.trace(gram) / k
    shift = damping + k * eps * or_one(mean)
    gram = gram + shift * jnp.eye(k, dtype=gram.dtype)
    if mask is not None:
        gram = gram + jnp.diag(1 - mask) * or_one(mean)
    return jax.scipy.linalg.cho_solve((guarded.cholesky(gram), True), gradient.T).T


def check_step_rule(rule: Any) -> None:
    """Raises a `ValueError` unless `rule` is `None`, a positive number or a rule of `lrjax.step_sizes`."""
    if isinstance(rule, (type, str, bytes)) or np.ndim(rule) != 0:
        raise ValueError(f"step_size must be a rule of lrjax.step_sizes or a number; got {rule!r}")
    if not isinstance(rule, StepRule):
        check_range("step_size", rule, low=0, open_low=True)
        return
    for name in ("value", "decay", "quantile", "power", "optimum"):
        high = 1 if name in ("decay", "quantile") else None
        check_range(f"step_size.{name}", getattr(rule, name, None), low=0, high=high)


def require_absolute(solver: str, problem: Problem) -> None:
    """Raises a `ValueError` for any but the absolute loss."""
    if not isinstance(problem.loss, losses.Absolute):
        raise ValueError(
            f"{solver} minimises the absolute loss; problem.loss is {problem.loss!r}. Pass loss=lrjax.losses.Absolute()"
        )


def require_squared_or_smooth(solver: str, problem: Problem) -> None:
    """Raises a `ValueError` for the absolute loss, on which a fixed step does not converge."""
    if isinstance(problem.loss, losses.Absolute):
        raise ValueError(
            f"{solver} needs a smooth loss; got {problem.loss!r}. Use losses.Huber(delta), or SubgradientMethod"
        )
