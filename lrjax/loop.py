"""The one loop: a bounded scan in which a finished lane freezes."""

from typing import Any

import jax
import jax.numpy as jnp

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

    Unbatched, the `cond` makes a finished solve cost nothing; batched, it becomes a select. A step whose result is
    not finite is not taken: the lane keeps its last finite state and gets the code `NONFINITE`.
    """

    def run(carry: tuple, index: jax.Array) -> tuple:
        state, _, taken = carry
        new, code = step(state, jax.random.fold_in(key, index))
        ok = tree_isfinite(new, known=state)
        code = jnp.where(ok, code, status.NONFINITE).astype(taken.dtype)
        return tree_where(ok, new, state), code, taken + ok.astype(taken.dtype)

    def one(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
        live = carry[1] == status.RUNNING
        return jax.lax.cond(live, run, lambda carry, index: carry, carry, index), None

    indices = first + jnp.arange(num_steps, dtype=jnp.int32)
    return jax.lax.scan(one, carry, indices)[0]
