"""`solve` and `iterate`: argument checks, then one jitted core."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import status
from lrjax.core.checks import as_array, check_count, check_key, check_settings, host_value, real_array
from lrjax.core.pytree import cast_floats, tree_where
from lrjax.core.units import Units, times
from lrjax.iteration import loop
from lrjax.iteration.protocol import Solver, check_solver_like, in_units, innermost, member
from lrjax.iteration.solution import Solution
from lrjax.problems.factors import Factors, as_factors, relative_error
from lrjax.problems.problem import Problem

# A solve whose objective ends this many times above that of its start and of the zero matrix has diverged.
RISE = 10.0


def solve(
    problem: Problem,
    solver: Solver,
    key: jax.Array,
    *,
    num_steps: int,
    record_every: int = 1,
    init: Factors | None = None,
    truth: Factors | jax.Array | None = None,
) -> Solution:
    """Runs `solver` on `problem` for at most `num_steps` steps.

    A pure function: jit it, vmap it over keys, problems or solver settings, differentiate it, shard its inputs.

    Args:
        problem: what was measured.
        solver: any solver of this library, or an object with `init(problem, key, factors)` and
            `step(problem, state, key) -> (state, code)`.
        key: typed random key, `jax.random.key(seed)`.
        num_steps: steps at most; a multiple of `record_every`.
        record_every: steps between two rows of the trace.
        init: factors to start from instead of the solver's own start. Their columns must number `max_rank`.
        truth: the matrix sought, as `Factors` or dense, if it is known: adds `"relative_error"` to the trace. The
            solver never sees it.

    Returns:
        A `Solution`. Lack of convergence does not raise; look at `solution.status` or call `solution.check()`.

    Raises:
        ValueError: a bad problem, solver setting, key, step count or start; the text names argument, value and what
            was expected.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> problem, truth = lr.synthetic.matrix_sensing(key, shape=(12, 10), rank=2, num_measurements=200)
        >>> solution = lr.solve(problem, lr.AlternatingMinimization(max_rank=2), key, num_steps=30)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-4)
        True
    """
    problem, solver, init, truth = _prepare(problem, solver, key, init, truth)
    num_steps, record_every = _check_steps(num_steps, record_every)
    return _solve(problem, solver, key, init, truth, num_steps=num_steps, record_every=record_every)


def iterate(
    problem: Problem,
    solver: Solver,
    key: jax.Array,
    *,
    num_steps: int,
    record_every: int = 1,
    init: Factors | None = None,
    truth: Factors | jax.Array | None = None,
) -> Iterator[Solution]:
    """`solve` as a host generator: yields the solution so far at the start and after every `record_every` steps.

    Each yield is one jitted block, the same steps with the same keys as `solve`; the trace of a yielded solution has
    a single row. It ends early once the lane has finished. For progress bars, time limits and early stopping by rules
    you write yourself; not traceable.
    """
    problem, solver, init, truth = _prepare(problem, solver, key, init, truth)
    num_steps, record_every = _check_steps(num_steps, record_every)
    carry, most, solution = _start(problem, solver, key, init, truth)
    yield solution
    for block in range(num_steps // record_every):
        first = jnp.asarray(block * record_every, jnp.int32)
        carry, solution = _block(problem, solver, key, truth, carry, most, first, record_every=record_every)
        yield solution
        if int(carry[1]) != status.RUNNING:
            return


def _check_steps(num_steps: Any, record_every: Any) -> tuple[int, int]:
    num_steps, record_every = check_count("num_steps", num_steps), check_count("record_every", record_every)
    if num_steps % record_every:
        raise ValueError(f"num_steps must be a multiple of record_every; got {num_steps} and {record_every}")
    return num_steps, record_every


def _prepare(problem, solver, key, init, truth):
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a lrjax.Problem; got {type(problem).__name__}")
    problem = _as_arrays(problem)
    problem.check()
    check_solver_like("solver", solver)
    check_key(key)
    dtype, solver = problem.y.dtype, check_settings(solver)
    member(solver, "check")(problem)
    if init is not None:
        init = _check_factors("init", init, problem, dtype)
        expected = member(solver, "max_rank")
        if expected not in (None, init.max_rank):
            raise ValueError(f"init must have max_rank={expected} columns; got {init.max_rank}")
        if member(solver, "symmetric") and init.left is not init.right:
            left, right = host_value(init.left), host_value(init.right)
            if left is not None and right is not None and not np.array_equal(left, right):
                raise ValueError("a symmetric solver needs init with equal left and right factors")
    if truth is not None:
        if not isinstance(truth, Factors):
            truth = as_array("truth", truth)
            if truth.shape != problem.shape:
                raise ValueError(f"truth must be Factors or have shape {problem.shape}; got {truth.shape}")
            truth = as_factors("truth", truth)
        truth = _check_factors("truth", truth, problem, dtype)
    return problem, cast_floats(solver, dtype), init, truth


def _as_arrays(problem: Problem) -> Problem:
    """NumPy or list measurements become arrays; the rest of the problem is left alone."""
    weights = None if problem.weights is None else real_array("weights", problem.weights)
    return Problem(problem.operator, real_array("y", problem.y), weights, problem.loss)


def _check_factors(name: str, factors: Any, problem: Problem, dtype: Any) -> Factors:
    if not isinstance(factors, Factors):
        raise ValueError(f"{name} must be lrjax.Factors; got {type(factors).__name__}")
    factors = Factors(as_array(f"{name}.left", factors.left), as_array(f"{name}.right", factors.right))
    if jnp.iscomplexobj(factors.left) or jnp.iscomplexobj(factors.right):
        raise ValueError(f"{name} must be real; got {factors.left.dtype} and {factors.right.dtype}")
    if factors.left.ndim != 2 or factors.right.ndim != 2 or factors.shape != problem.shape:
        raise ValueError(
            f"{name} must have left (n1, k) and right (n2, k) for a problem of shape {problem.shape}; got "
            f"{factors.left.shape} and {factors.right.shape}"
        )
    if factors.right.shape[1] != factors.max_rank:
        raise ValueError(
            f"{name} must have as many columns left and right; got {factors.left.shape} and {factors.right.shape}"
        )
    return Factors(factors.left.astype(dtype), factors.right.astype(dtype))


def _row(carry: tuple, truth: Factors | None) -> dict[str, jax.Array]:
    state, _, taken = carry
    row = {"step": taken, **state.info}
    return row if truth is None else {**row, "relative_error": relative_error(state.factors, truth)}


def _in_units(problem: Problem, solver: Any) -> tuple[Problem, Any, Units | None]:
    """Problem and solver in units in which the data are about one, so that no square leaves the range of the dtype."""
    problem = Problem(problem.operator, problem.y, problem.weights, cast_floats(problem.loss, problem.y.dtype))
    moved, units = problem.in_units()
    inner = in_units(solver, units)
    if inner is None:
        return problem, solver, None
    return moved, cast_floats(inner, problem.y.dtype), units


def _split(solver: Any, units: Units) -> tuple[jax.Array | int, jax.Array | int]:
    """Units of the left and of the right factor; one of them may have none, because it is orthonormal for example."""
    fixed = member(innermost(solver), "unitless")
    both = units.measurement
    return {"left": (1, both), "right": (both, 1), None: (units.factor, units.factor)}[fixed]


def _begin(problem, solver, units, key, init, truth):
    if init is not None:
        # In shard_map types say what varies over devices: a start that does not, where the data do, would change type.
        init = jax.tree.map(lambda x: x + loop.zero_like(problem.y[0]).astype(x.dtype), init)
        if units is not None:
            left, right = _split(solver, units)
            init = Factors(init.left / left, init.right / right)
    state, code, taken = loop.start(solver.init(problem, jax.random.split(key)[0], init))
    if (measured := problem.effective_weights()) is not None:
        code = jnp.where(jnp.any(measured > 0), code, status.INVALID).astype(code.dtype)
    carry = state, code, taken
    # What no descent ends above: the objective of the start, and that of the zero matrix.
    zero = problem.objective_of(-problem.observed())
    most = jnp.where(zero > 0, jnp.maximum(zero, state.info["objective"]), jnp.inf)
    return carry, _row(carry, _truth_in(units, truth)), jax.lax.stop_gradient(most)


def _truth_in(units: Units | None, truth: Factors | None) -> Factors | None:
    if units is None or truth is None:
        return truth
    return Factors(truth.left / units.factor, truth.right / units.factor)


def _steps(problem, solver, key):
    return loop.guarded(partial(solver.step, problem), jax.random.split(key)[1])


@partial(jax.jit, static_argnames=("num_steps", "record_every"))
def _solve(problem, solver, key, init, truth, *, num_steps, record_every):
    problem, solver, units = _in_units(problem, solver)
    carry, first_row, most = _begin(problem, solver, units, key, init, truth)
    row = partial(_row, truth=_truth_in(units, truth))
    carry, rows = loop.blocks(_steps(problem, solver, key), row, carry, num_steps, record_every)
    trace = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first_row, rows)
    return _solution(solver, units, carry, trace, most)


def _solution(solver: Any, units: Units | None, carry: tuple, trace: dict[str, jax.Array], most: jax.Array) -> Solution:
    """The result in the units of the data."""
    state, code, taken = carry
    factors = state.factors
    # A lane without a finite start has no iterate to return.
    none = code == status.INVALID
    factors = tree_where(none, jax.tree.map(jnp.zeros_like, factors), factors)
    risen = (state.info["objective"] > RISE * most) & (code != status.NONFINITE) & ~none
    code = jnp.where(risen, status.DIVERGED, code).astype(code.dtype)
    if units is not None:
        left, right = _split(solver, units)
        factors = Factors(factors.left * left, factors.right * right)
        known = member(innermost(solver), "info_units")
        given = {"objective": units.objective, **known(units)}
        trace = {name: times(value, *given.get(name, ())) for name, value in trace.items()}
    return Solution(factors=factors, status=code, num_steps=taken, trace=trace)


@jax.jit
def _start(problem, solver, key, init, truth):
    problem, solver, units = _in_units(problem, solver)
    carry, row, most = _begin(problem, solver, units, key, init, truth)
    return carry, most, _solution(solver, units, carry, jax.tree.map(lambda x: x[None], row), most)


@partial(jax.jit, static_argnames=("record_every",))
def _block(problem, solver, key, truth, carry, most, first, *, record_every):
    problem, solver, units = _in_units(problem, solver)
    carry = loop.advance(_steps(problem, solver, key), carry, first, record_every)
    row = jax.tree.map(lambda x: x[None], _row(carry, _truth_in(units, truth)))
    return carry, _solution(solver, units, carry, row, most)
