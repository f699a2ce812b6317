"""The one loop: a bounded scan in which a finished lane freezes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from lrjax import status
from lrjax._pytree import tree_isfinite, tree_where


def zero_like(objective: jax.Array) -> jax.Array:
    """An int32 zero with the sharding of `objective` (also if that is NaN), so that carries stay typed by data."""
    return (objective != objective).astype(jnp.int32) * jnp.int32(0)


def start(state: Any) -> tuple[Any, jax.Array, jax.Array]:
    """The carry `(state, status code, steps taken)` of a fresh lane."""
    zero = zero_like(state.info["objective"])
    code = jnp.where(tree_isfinite(state), zero + status.RUNNING, zero + status.NONFINITE)
    return state, code, zero


def advance(step: Any, carry: tuple, key: jax.Array, first: jax.Array, num_steps: int) -> tuple:
    """Takes `num_steps` steps, numbered from `first`; lanes that are not running stay as they are.

    A step whose result is not finite is not taken: the lane keeps its last finite state and gets the code `NONFINITE`.

    A finished solve costs nothing, and finished lanes of a batch wait for the last one. For that the loop is a
    `while_loop`, which leaves alone what lanes share: a batched `cond` would copy the problem for every lane. It has
    no reverse derivative, so derivatives are those of a scan of guarded steps.
    """

    def run(carry: tuple, index: jax.Array) -> tuple:
        state, _, taken = carry
        new, code = step(state, jax.random.fold_in(key, index))
        ok = tree_isfinite(new, known=state)
        code = jnp.where(ok, code, status.NONFINITE).astype(taken.dtype)
        return tree_where(ok, new, state), code, taken + ok.astype(taken.dtype)

    # What `run` closes over as arguments, which is what a function with its own derivative can be differentiated in.
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(carry, first)
    consts, tree = closed.consts, jax.tree.structure(shapes)

    def converted(carry: tuple, index: jax.Array, *consts: jax.Array) -> tuple:
        flat = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(*jax.tree.leaves((carry, index)))
        return jax.tree.unflatten(tree, flat)

    def scanned(carry: tuple, first: jax.Array, *consts: jax.Array) -> tuple:
        def one(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
            live = carry[1] == status.RUNNING
            return jax.lax.cond(live, lambda c, i: converted(c, i, *consts), lambda c, i: c, carry, index), None

        return jax.lax.scan(one, carry, first + jnp.arange(num_steps, dtype=jnp.int32))[0]

    @jax.custom_jvp
    def block(carry: tuple, first: jax.Array, *consts: jax.Array) -> tuple:
        more = lambda loop: (loop[1] < first + num_steps) & (loop[0][1] == status.RUNNING)
        return jax.lax.while_loop(more, lambda loop: (converted(*loop, *consts), loop[1] + 1), (carry, first))[0]

    block.defjvp(lambda primals, tangents: jax.jvp(scanned, primals, tangents))
    return block(carry, first, *consts)
