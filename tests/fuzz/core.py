"""What a target is, how it is called, and how its answer is judged."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import lrjax as lr

from . import recipes

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Target:
    """One function: how its arguments are drawn, how it is called, and the module it belongs to."""

    name: str
    module: str
    strategy: st.SearchStrategy
    call: Callable[..., Any]
    names: tuple[str, ...] = ()  # what a refusal may name besides the arguments
    look: Callable[[Any, dict], list[str]] | None = None
    examples: int = 3  # in the small share

    def words(self, given: dict[str, Any]) -> list[str]:
        return [*given, *self.names]

    def run(self, given: dict[str, Any]) -> list[str]:
        """Calls the target; returns what is wrong with the answer."""
        values = recipes.build(given)
        traced = sorted(n for n, r in given.items() if isinstance(r, recipes.Array) and r.traced)
        if traced:
            fixed = {name: value for name, value in values.items() if name not in traced}
            label = repr({name: given[name] for name in sorted(fixed)})
            function = traced_call(self.name, tuple(traced), label, _Fixed(fixed, label))
            result = function({name: jnp.asarray(values[name]) for name in traced})
        else:
            result = self.call(**values)
        result = jax.block_until_ready(result)
        problems = [] if not recipes.finite(given) else nonfinite(result, given)
        return problems + (self.look(result, given) if self.look is not None else [])


class _Fixed:
    """Arguments that are not traced, compared by their recipe: a program is compiled once for each."""

    def __init__(self, values: dict, label: str):
        self.values, self.label = values, label

    def __hash__(self) -> int:
        return hash(self.label)

    def __eq__(self, other: Any) -> bool:
        return self.label == other.label


class _Calls(dict):
    def cache_clear(self) -> None:
        self.clear()

    def __call__(self, name: str, traced: tuple[str, ...], label: str, fixed: _Fixed) -> Callable:
        if (name, traced, label) not in self:
            target = TARGETS[name]
            self[name, traced, label] = jax.jit(lambda given: target.call(**fixed.values, **given))
        return self[name, traced, label]


traced_call = _Calls()


def nonfinite(result: Any, given: dict[str, Any]) -> list[str]:
    """NaN and infinities in what claims success; without a status only where the answer is within the range."""
    if isinstance(result, dict | list) or type(result) is tuple:
        inner = result.values() if isinstance(result, dict) else result
        return [problem for one in inner for problem in nonfinite(one, given)]
    if hasattr(result, "solution") and result.solution is not None:
        return nonfinite(result.solution, given)
    code = getattr(result, "status", None)
    if code is not None:
        if not (np.asarray(code) == lr.status.CONVERGED).all():
            return []
        answer = [getattr(result, name) for name in ("x", "factors", "mean", "objective") if hasattr(result, name)]
    else:
        if any(leaf.values in ("1e30", "mixed") for leaf in recipes.parts(given) if isinstance(leaf, recipes.Array)):
            return []
        answer = [result]
    for leaf in jax.tree.leaves(answer):
        if isinstance(leaf, str):
            continue
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not np.isfinite(np.asarray(leaf, complex)).all():
            return [f"{'success' if code is not None else 'a result'} that is not finite, from finite input"]
    return []


TARGETS: dict[str, Target] = {}


def target(name: str, module: str, good: dict, odd: dict, call: Callable, **more: Any) -> None:
    """Adds a target: arguments as a careful caller gives them, and odd ones for some of them."""
    TARGETS[name] = Target(name, module, recipes.arguments(good, odd), call, **more)
