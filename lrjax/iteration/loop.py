"""The one loop: bounded, and a finished lane freezes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from lrjax import status
from lrjax.core.pytree import tree_isfinite, tree_where


def zero_like(objective: jax.Array) -> jax.Array:
    """An int32 zero with the sharding of `objective` (also if that is NaN), so that carries stay typed by data."""
    return (objective != objective).astype(jnp.int32) * jnp.int32(0)


def start(state: Any) -> tuple[Any, jax.Array, jax.Array]:
    """The carry `(state, status code, steps taken)` of a fresh lane."""
    zero = zero_like(state.info["objective"])
    code = jnp.where(tree_isfinite((state.factors, state.info)), zero + status.RUNNING, zero + status.INVALID)
    return state, code, zero


def guarded(step: Callable, key: jax.Array) -> Callable:
    """`step` as `run(carry, index)`; a step whose result is not finite is not taken: the lane keeps its last state.

    Iterate and scalars are looked at: what else a state holds shows in them, at the latest one step on.
    """

    def run(carry: tuple, index: jax.Array) -> tuple:
        state, _, taken = carry
        new, code = step(state, jax.random.fold_in(key, index))
        ok = tree_isfinite((new.factors, new.info), known=state)
        code = jnp.where(ok, code, status.NONFINITE).astype(taken.dtype)
        return tree_where(ok, new, state), code, taken + ok.astype(taken.dtype)

    return run


def once(run: Callable, carry: tuple, index: jax.Array) -> tuple:
    """One step, if the lane is running."""
    return tree_where(carry[1] == status.RUNNING, run(carry, index), carry)


def advance(run: Callable, carry: tuple, first: jax.Array, num_steps: int) -> tuple:
    """Takes `num_steps` steps, numbered from `first`, or fewer if the lane ends before. No reverse derivative."""
    more = lambda loop: (loop[1] < first + num_steps) & (loop[0][1] == status.RUNNING)
    return jax.lax.while_loop(more, lambda loop: (run(*loop), loop[1] + 1), (carry, first))[0]


def _advance_scan(run: Callable, consts: list, moves: list, carry: tuple, first: jax.Array, num_steps: int) -> tuple:
    """The same steps with a reverse derivative; `moves` says which constants have one."""

    def one(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
        running = carry[1] == status.RUNNING
        # A step of a finished lane may have infinite slopes, so nothing may flow back through it, not even times zero.
        # A `cond` would do, but the derivative of its batched form has no transpose: gradients of a vmap would fail.
        guard = lambda x: tree_where(running, x, jax.lax.stop_gradient(x))
        given = [guard(const) if moved else const for const, moved in zip(consts, moves, strict=True)]
        return tree_where(running, run(given, guard(carry), index), carry), None

    return jax.lax.scan(one, carry, first + jnp.arange(num_steps, dtype=jnp.int32))[0]


def blocks(run: Callable, row: Callable, carry: tuple, num_steps: int, record_every: int) -> tuple:
    """Takes `num_steps` steps; also returns `row(carry)` after every `record_every` of them.

    Finished solves cost nothing, and finished lanes of a batch wait for the last one. The steps are a `while_loop`,
    which leaves alone what the lanes share: a batched `cond` would copy the problem for every lane. A `while_loop`
    has no reverse derivative; a scan of guarded steps, all `num_steps` of them, supplies it.
    """
    firsts = np.arange(0, num_steps, record_every, dtype=np.int32)
    run, run_consts = _hoisted(run, carry, jnp.int32(0))
    row, row_consts = _hoisted(row, carry)

    def by(advance: Callable, carry: tuple, run_consts: list, row_consts: list) -> tuple:
        def block(carry: tuple, first: jax.Array) -> tuple:
            carry = advance(run_consts, carry, first)
            return carry, row(row_consts, carry)

        return jax.lax.scan(block, carry, jnp.asarray(firsts))

    @jax.custom_jvp
    def solve(*args: Any) -> tuple:
        plain = lambda consts, carry, first: advance(lambda c, i: run(consts, c, i), carry, first, record_every)
        return by(plain, *args)

    def derivative(primals: tuple, tangents: tuple) -> tuple:
        # Only in what moves: a zero tangent times the infinite slope of a square root at zero would be NaN.
        values, tree = jax.tree.flatten(primals)
        slopes = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
        moves = [not isinstance(slope, SymbolicZero) for slope in slopes]
        const_moves = tree.unflatten(moves)[1]
        steps = lambda consts, carry, first: _advance_scan(run, consts, const_moves, carry, first, record_every)

        def moved(*given: jax.Array) -> tuple:
            left = iter(given)
            args = tree.unflatten([next(left) if m else v for m, v in zip(moves, values, strict=True)])
            return by(steps, *args)

        pick = lambda leaves: [leaf for leaf, m in zip(leaves, moves, strict=True) if m]
        return jax.jvp(moved, pick(values), pick(slopes))

    solve.defjvp(derivative, symbolic_zeros=True)
    return solve(carry, run_consts, row_consts)


def _hoisted(function: Callable, *args: Any) -> tuple[Callable, list]:
    """`pure, consts` with `pure(consts, *args)` equal to `function(*args)`: what it closes over as an argument."""
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)

    def pure(consts: list, *args: Any) -> Any:
        flat = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), flat)

    return pure, closed.consts
