"""The one kind of object in this library: a frozen dataclass that JAX treats as a pytree."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
from jax.core import Tracer

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, eq_default=False, field_specifiers=(jax.tree.static,))
def pytree(cls: type[T]) -> type[T]:
    """Frozen, keyword-only dataclass whose fields are JAX data unless marked `jax.tree.static()`.

    Nothing is validated in `__post_init__`: JAX rebuilds these objects with tracers, `None` or plain
    objects as leaves at every transformation. Builders and `solve` do the checks.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls))


@dataclass_transform(kw_only_default=False, frozen_default=True, eq_default=False, field_specifiers=(jax.tree.static,))
def positional_pytree(cls: type[T]) -> type[T]:
    """`pytree` whose fields may be given by position: for the few nouns where the order is obvious."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


def replace(tree: T, **changes: Any) -> T:
    """A copy of a pytree dataclass with some fields changed."""
    return dataclasses.replace(tree, **changes)  # type: ignore[type-var]


def is_concrete(tree: Any) -> bool:
    """True if no leaf is a tracer, so that values can be looked at on the host."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _select(pick: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        # A select does not take typed keys on every supported version; their data does.
        data = jnp.where(pick, jax.random.key_data(new), jax.random.key_data(old))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(new))
    return jnp.where(pick, new, old)


def tree_where(pick: jax.Array, new: T, old: T) -> T:
    """`new` where the scalar `pick` is true, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: a if a is b else _select(pick, a, b), new, old)


def tree_isfinite(tree: Any, known: Any = None) -> jax.Array:
    """Whether every floating or complex leaf is finite everywhere.

    Leaves that are the very ones of `known`, a tree known to be finite, are not looked at again.
    """
    seen = {id(leaf) for leaf in jax.tree.leaves(known)}
    checks = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if id(leaf) not in seen and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def map_floats(cast: Callable[[Any], jax.Array], tree: T) -> T:
    """Applies `cast` to the floating leaves (Python floats too); integers, keys and booleans stay."""

    def one(leaf: Any) -> Any:
        return cast(leaf) if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating) else leaf

    return jax.tree.map(one, tree)


def cast_floats(tree: T, dtype: Any) -> T:
    """Casts the floating leaves to `dtype`, so that 0.1 and `jnp.float32(0.1)` share one compile."""
    return map_floats(lambda leaf: jnp.asarray(leaf, dtype), tree)
