"""`solve` and `iterate`: checks at the door, one jitted core behind it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import loop, status
from lrjax._checks import as_array, check_count, check_key, check_settings, host_value, real_array
from lrjax._pytree import cast_floats, pytree
from lrjax.factors import Factors, as_factors, relative_error
from lrjax.problem import Problem


@pytree
class Solution:
    """What a solve returns; under vmap every array has the lane axes in front.

    Attributes:
        factors: the last finite iterate (or the best one, for `BestSoFar`).
        status: int32 code, see `lrjax.status`.
        num_steps: int32 steps taken before the lane finished or the budget ran out.
        trace: one row per record along the last axis, row 0 the start: `"step"`, `"objective"`, `"residual"` (relative,
            weighted Euclidean), what else the solver reports, and `"relative_error"` if a truth was given. A finished
            lane repeats its last row; `"step"` then stops growing.
    """

    factors: Factors
    status: jax.Array
    num_steps: jax.Array
    trace: dict[str, jax.Array]

    @property
    def converged(self) -> jax.Array:
        """Whether the lane met its tolerance."""
        return self.status == status.CONVERGED

    @property
    def objective(self) -> jax.Array:
        """Objective of `factors`."""
        return self.trace["objective"][..., -1]

    def check(self, *, require_convergence: bool = False) -> "Solution":
        """Raises `lrjax.status.SolveError` on the host if a lane failed; returns the solution otherwise.

        Args:
            require_convergence: also count lanes that merely used up their steps as failed.
        """
        status.raise_if_failed(self.status, require_convergence=require_convergence)
        return self


def solve(
    problem: Problem,
    solver: Any,
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
        A `Solution`. Lack of convergence does not raise: look at `solution.status` or call `solution.check()`.

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
    solver: Any,
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
    of your own; not traceable.
    """
    problem, solver, init, truth = _prepare(problem, solver, key, init, truth)
    num_steps, record_every = _check_steps(num_steps, record_every)
    carry, row = _start(problem, solver, key, init, truth)
    yield _solution(carry, jax.tree.map(lambda x: x[None], row))
    for block in range(num_steps // record_every):
        first = jnp.asarray(block * record_every, jnp.int32)
        carry, row = _block(problem, solver, key, truth, carry, first, record_every=record_every)
        yield _solution(carry, jax.tree.map(lambda x: x[None], row))
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
    for name in ("init", "step"):
        if not callable(getattr(solver, name, None)) or isinstance(solver, type):
            raise ValueError(f"solver must be a solver instance with init and step; got {solver!r}")
    check_key(key)
    dtype, solver = problem.y.dtype, check_settings(solver)
    if hasattr(solver, "check"):
        solver.check(problem)
    if init is not None:
        init = _check_factors("init", init, problem, dtype)
        expected = getattr(solver, "max_rank", init.max_rank)
        if init.max_rank != expected:
            raise ValueError(f"init must have max_rank={expected} columns; got {init.max_rank}")
        if getattr(solver, "symmetric", False) and init.left is not init.right:
            left, right = host_value(init.left), host_value(init.right)
            if left is not None and right is not None and not np.array_equal(left, right):
                raise ValueError("a symmetric solver needs init with equal left and right factors")
    if truth is not None:
        if not isinstance(truth, Factors):
            if jnp.shape(truth) != problem.shape:
                raise ValueError(f"truth must be Factors or have shape {problem.shape}; got {jnp.shape(truth)}")
            truth = as_factors(truth)
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


def _solution(carry: tuple, trace: dict[str, jax.Array]) -> Solution:
    state, code, taken = carry
    return Solution(factors=state.factors, status=code, num_steps=taken, trace=trace)


def _begin(problem, solver, key, init, truth):
    problem = _canonical(problem)
    if init is not None:
        # In shard_map types say what varies over devices: a start that does not, where the data do, would change type.
        init = jax.tree.map(lambda x: x + loop.zero_like(problem.y[0]).astype(x.dtype), init)
    carry = loop.start(solver.init(problem, jax.random.split(key)[0], init))
    return carry, _row(carry, truth)


def _canonical(problem: Problem) -> Problem:
    return Problem(problem.operator, problem.y, problem.weights, cast_floats(problem.loss, problem.y.dtype))


def _steps(problem, solver, key):
    return loop.guarded(partial(solver.step, _canonical(problem)), jax.random.split(key)[1])


@partial(jax.jit, static_argnames=("num_steps", "record_every"))
def _solve(problem, solver, key, init, truth, *, num_steps, record_every):
    carry, first_row = _begin(problem, solver, key, init, truth)

    row = partial(_row, truth=truth)
    carry, rows = loop.blocks(_steps(problem, solver, key), row, carry, num_steps, record_every)
    trace = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first_row, rows)
    return _solution(carry, trace)


_start = jax.jit(_begin)


@partial(jax.jit, static_argnames=("record_every",))
def _block(problem, solver, key, truth, carry, first, *, record_every):
    carry = loop.advance(_steps(problem, solver, key), carry, first, record_every)
    return carry, _row(carry, truth)
