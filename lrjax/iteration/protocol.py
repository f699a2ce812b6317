"""What a solver is: two methods that it must have, and members that it may have."""

from typing import Any, Protocol

import jax

from lrjax.core.units import Units
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem


class State(Protocol):
    """The iterate of a solver, a pytree; what else a step hands to the next one lies in fields of its own."""

    @property
    def factors(self) -> Any:
        """The iterate. A step that leaves it not finite is not taken."""
        ...

    @property
    def info(self) -> dict[str, jax.Array]:
        """Scalars for the trace, with `"objective"` and `"residual"` among them (`solvers.base.describe`)."""
        ...


class Solver(Protocol):
    """A pytree of settings. Beside the two methods it may have the members in `OPTIONAL`."""

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> State:
        """The state to start from; `factors` if they are given, else a start of the solver's own."""
        ...

    def step(self, problem: Problem, state: Any, key: jax.Array) -> tuple[State, jax.Array]:
        """The next state, and an int32 code of `lrjax.status`."""
        ...


# What a solver may have, and what holds for one that has it not:
OPTIONAL: dict[str, Any] = {
    # check(problem) raises a ValueError that names a bad setting.
    "check": lambda problem: None,
    # in_units(units) is the solver for a problem in those units; None if it wants the data as they are.
    "in_units": lambda units: None,
    # info_units(units) gives the units of what it adds to `info`: a tuple of factors for each name.
    "info_units": lambda units: {},
    # The factor that has no units, "left" or "right", as an orthonormal one has none.
    "unitless": None,
    # Columns of the factors; how many of them are in use; whether left and right are one.
    "max_rank": None,
    "rank": None,
    "symmetric": False,
    # Whether two of the columns hold offsets of rows and columns, and the constant beside them.
    "biases": False,
    "bias_value": 1.0,
    # The solver that a wrapper holds.
    "solver": None,
}


def member(solver: Any, name: str) -> Any:
    """A member that a solver may have, or what holds without it."""
    return getattr(solver, name, OPTIONAL[name])


def innermost(solver: Any) -> Any:
    """The solver inside all wrappers."""
    inside = member(solver, "solver")
    return solver if inside is None else innermost(inside)


def in_units(solver: Any, units: Units) -> Any | None:
    """The solver for a problem in those units; `None` if it wants the data as they are."""
    return member(solver, "in_units")(units)


def check_solver_like(name: str, solver: Any) -> None:
    """Raises a `ValueError` unless it has the two methods."""
    for method in ("init", "step"):
        if not callable(getattr(solver, method, None)) or isinstance(solver, type):
            raise ValueError(f"{name} must be a solver instance with init and step; got {solver!r}")
