"""The one kind of object in this library: a frozen dataclass that JAX treats as a pytree."""

import dataclasses
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrjax import status
from lrjax.core.checks import host_value

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass_transform(kw_only_default=True, frozen_default=True, eq_default=False, field_specifiers=(jax.tree.static,))
def pytree(cls: type[T]) -> type[T]:
    """Frozen, keyword-only dataclass whose fields are JAX data unless marked `jax.tree.static()`.

    Nothing is validated in `__post_init__`: JAX rebuilds these objects with tracers, `None` or plain
    objects as leaves at every transformation. Builders and `solve` do the checks.
    """
    return _registered(dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)(cls))


@dataclass_transform(kw_only_default=False, frozen_default=True, eq_default=False, field_specifiers=(jax.tree.static,))
def positional_pytree(cls: type[T]) -> type[T]:
    """`pytree` whose fields may be given by position: for the few nouns where the order is obvious."""
    return _registered(dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls))


def _registered(cls: type[T]) -> type[T]:
    """Registers by functions: `jax.tree_util.register_dataclass` (jax 0.10 to 0.11) does not compare the classes.

    There structures of different classes with as many fields are equal, so that `jit` now and then, where their hashes
    meet in its table, runs the program of the one on the numbers of the other.
    """
    if cls.__repr__ is object.__repr__:
        cls.__repr__ = _repr  # type: ignore[method-assign]
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static = tuple(field.name for field in fields if field.metadata.get("static", False))
    data = tuple(field.name for field in fields if field.name not in static)
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in data)

    children_of, settings_of = _values(data), _values(static)

    def flatten(tree: T) -> tuple[tuple, tuple]:
        values = vars(tree)
        return children_of(values), settings_of(values)

    def flatten_with_keys(tree: T) -> tuple[tuple, tuple]:
        children, settings = flatten(tree)
        return tuple(zip(keys, children, strict=True)), settings

    def unflatten(settings: tuple, children: Iterable[Any]) -> T:
        tree = object.__new__(cls)
        values = vars(tree)
        values.update(zip(data, children, strict=True))
        values.update(zip(static, settings, strict=True))
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _values(names: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple]:
    """A function that takes the values of `names` from a dictionary: it runs at every call of a jitted function."""
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda values: tuple(values[name] for name in names)


def _repr(tree: Any) -> str:
    """Type and shape of arrays, the values of numbers and settings: a notebook prints what it is given."""
    return _short(tree, depth=2)


def _short(value: Any, depth: int) -> str:
    if isinstance(value, (jax.Array, np.ndarray)):
        return _short_array(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value).__repr__ is _repr:
        if depth == 0:
            return f"{type(value).__name__}(...)"
        parts = ((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value) if field.repr)
        inside = ", ".join(f"{name}={_status(name, x) or _short(x, depth - 1)}" for name, x in parts)
        return f"{type(value).__name__}({inside})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_short(x, depth - 1)}" for key, x in value.items()) + "}"
    if isinstance(value, (tuple, list)) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value)):
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)


def _short_array(array: Any) -> str:
    host = host_value(array) if array.ndim == 0 and not _is_key(array) else None
    if host is not None:
        return f"{host:.6g}" if np.issubdtype(host.dtype, np.floating) else str(host)
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _status(name: str, value: Any) -> str | None:
    """The name of a status, which says more than its number."""
    if name != "status" or jnp.ndim(value) or (code := host_value(value)) is None:
        return None
    return next((word for word, number in vars(status).items() if word.isupper() and number == int(code)), None)


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def replace(tree: T, **changes: Any) -> T:
    """A copy of a pytree dataclass with some fields changed."""
    return dataclasses.replace(tree, **changes)  # type: ignore[type-var]


def program(*static: str) -> Callable[[F], F]:
    """`jax.jit` with arguments that are static; the signature stays known to type checkers."""
    return lambda function: jax.jit(function, static_argnames=static)  # type: ignore[return-value]


def is_concrete(tree: Any) -> bool:
    """True if no leaf is a tracer, so that values can be looked at on the host."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _select(pick: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    if _is_key(new):
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
    # The largest is NaN where one is: this compiles several times faster than a test of every element.
    checks = [
        jnp.isfinite(jnp.max(jnp.abs(leaf), initial=0))
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
