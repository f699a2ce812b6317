"""Solvers made of a solver: best iterate, running average, several starts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lrjax import status
from lrjax.core.checks import check_count, check_range
from lrjax.core.pytree import pytree, replace, tree_where
from lrjax.core.units import Units
from lrjax.iteration import loop
from lrjax.iteration.protocol import check_solver_like, in_units, member
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import base


@pytree
class WrappedState:
    """State of a wrapped solver.

    Attributes:
        factors: what the wrapper reports.
        info: scalars describing exactly those factors.
        inner: state of the inner solver, or of all of them.
        extra: what else the wrapper carries.
    """

    factors: Factors
    info: dict[str, jax.Array]
    inner: Any
    extra: Any = None


def _check_inner(problem: Problem, solver: Any) -> None:
    check_solver_like("solver", solver)
    member(solver, "check")(problem)


@pytree
class BestSoFar:
    """Reports the iterate of lowest objective so far: for methods that do not descend monotonically.

    Attributes:
        solver: any solver.
    """

    solver: Any = dataclasses.field(kw_only=False)

    @property
    def max_rank(self) -> int:
        """That of the inner solver."""
        return self.solver.max_rank

    def check(self, problem: Problem) -> None:
        """Checks the inner solver."""
        _check_inner(problem, self.solver)

    def in_units(self, units: Units) -> "BestSoFar | None":
        """The inner solver in those units, if it knows them."""
        inner = in_units(self.solver, units)
        return None if inner is None else replace(self, solver=inner)

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> WrappedState:
        """The inner start."""
        inner = self.solver.init(problem, key, factors)
        return WrappedState(factors=inner.factors, info=inner.info, inner=inner)

    def step(self, problem: Problem, state: WrappedState, key: jax.Array) -> tuple[WrappedState, jax.Array]:
        """One inner step; its result is kept if it is better."""
        inner, code = self.solver.step(problem, state.inner, key)
        better = inner.info["objective"] < state.info["objective"]
        factors, info = tree_where(better, (inner.factors, inner.info), (state.factors, state.info))
        return WrappedState(factors=factors, info=info, inner=inner), code


@pytree
class Averaged:
    """Reports an exponential moving average of the factors, started at the inner start (Polyak and Juditsky 1992).

    Meaningful for gradient-like solvers, whose factors move little per step; not for `AlternatingMinimization`, which
    changes the gauge at every step.

    Attributes:
        solver: any solver.
        decay: weight of the past, in [0, 1); the average reaches back about `1 / (1 - decay)` steps.
    """

    solver: Any = dataclasses.field(kw_only=False)
    decay: float | jax.Array = 0.9

    @property
    def max_rank(self) -> int:
        """That of the inner solver."""
        return self.solver.max_rank

    def check(self, problem: Problem) -> None:
        """Checks the inner solver and `decay`."""
        _check_inner(problem, self.solver)
        check_range("decay", self.decay, low=0, high=1 - 1e-12)

    def in_units(self, units: Units) -> "Averaged | None":
        """The inner solver in those units, if it knows them."""
        inner = in_units(self.solver, units)
        return None if inner is None else replace(self, solver=inner)

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> WrappedState:
        """The inner start."""
        inner = self.solver.init(problem, key, factors)
        info = base.describe(problem, problem.residual(inner.factors))
        return WrappedState(factors=inner.factors, info=info, inner=inner)

    def step(self, problem: Problem, state: WrappedState, key: jax.Array) -> tuple[WrappedState, jax.Array]:
        """One inner step, blended into the average."""
        inner, code = self.solver.step(problem, state.inner, key)
        blend = lambda old, new: self.decay * old + (1 - self.decay) * new
        factors = jax.tree.map(blend, state.factors, inner.factors)
        info = base.describe(problem, problem.residual(factors))
        return WrappedState(factors=factors, info=info, inner=inner), code


@pytree
class Restarted:
    """Runs one solver from `num_restarts` independent starts side by side and reports the best of them.

    The starts differ through the key alone, so use it with random starts. Each start that becomes non-finite or
    finishes is frozen; the whole has finished when the best one has converged or all have stopped.

    Attributes:
        solver: any solver.
        num_restarts: starts.
    """

    solver: Any = dataclasses.field(kw_only=False)
    num_restarts: int = jax.tree.static(default=4)

    @property
    def max_rank(self) -> int:
        """That of the inner solver."""
        return self.solver.max_rank

    def check(self, problem: Problem) -> None:
        """Checks the inner solver and `num_restarts`."""
        _check_inner(problem, self.solver)
        check_count("num_restarts", self.num_restarts)

    def in_units(self, units: Units) -> "Restarted | None":
        """The inner solver in those units, if it knows them."""
        inner = in_units(self.solver, units)
        return None if inner is None else replace(self, solver=inner)

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> WrappedState:
        """Independent inner starts."""
        keys = jax.random.split(key, self.num_restarts)
        inner = jax.vmap(lambda k: self.solver.init(problem, k, factors))(keys)
        return self._best(inner, jnp.full_like(inner.info["objective"], status.RUNNING, jnp.int32))

    def _best(self, inner: Any, codes: jax.Array) -> WrappedState:
        best = jnp.nanargmin(jnp.where(codes == status.NONFINITE, jnp.inf, inner.info["objective"]))
        factors, info = jax.tree.map(lambda x: x[best], (inner.factors, inner.info))
        return WrappedState(factors=factors, info=info, inner=inner, extra=(codes, best))

    def step(self, problem: Problem, state: WrappedState, key: jax.Array) -> tuple[WrappedState, jax.Array]:
        """One step of every start that is still running."""

        def one(inner: Any, code: jax.Array, k: jax.Array) -> tuple[Any, jax.Array]:
            carry = (inner, code, jnp.zeros_like(code))
            step = lambda s, step_key: self.solver.step(problem, s, step_key)
            inner, code, _ = loop.once(loop.guarded(step, k), carry, jnp.int32(0))
            return inner, code

        codes, _ = state.extra
        inner, codes = jax.vmap(one)(state.inner, codes, jax.random.split(key, self.num_restarts))
        new = self._best(inner, codes)
        best_code = codes[new.extra[1]]
        finished = (best_code == status.CONVERGED) | jnp.all(codes != status.RUNNING)
        return new, jnp.where(finished, best_code, status.RUNNING)
