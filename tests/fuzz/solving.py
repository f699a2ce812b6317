"""Problems and solvers, the choice of the rank, and completion."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import lrjax as lr

from . import recipes
from .core import KEY, target
from .recipes import (
    Number,
    good_array,
    good_key,
    odd_array,
    odd_choice,
    odd_count,
    odd_flag,
    odd_index,
    odd_key,
    odd_real,
    odd_shape,
)

try:  # under pytest the folder of the tests is on the path, and elsewhere the root
    from cases import CASES, OPERATORS, RANK
except ImportError:
    from tests.cases import CASES, OPERATORS, RANK

_CASES = {case.name: case for case in CASES}
_LOSSES = {"squared": lr.losses.Squared(), "absolute": lr.losses.Absolute(), "huber": lr.losses.Huber(1.0)}
just, pick = st.just, st.sampled_from


@functools.cache
def _operator(name: str, symmetric: bool) -> Any:
    return OPERATORS[name](jax.random.key(3), (7, 7) if symmetric else (7, 5), symmetric, jnp.float32)


@functools.cache
def _clean(name: str, symmetric: bool) -> np.ndarray:
    operator = _operator(name, symmetric)
    truth = lr.synthetic.low_rank(jax.random.key(4), operator.shape, 1 if name.startswith("gain") else RANK)
    return np.asarray(operator.forward(truth.left, truth.left if symmetric else truth.right))


@functools.cache
def _matrix(name: str, symmetric: bool) -> np.ndarray:
    """The operator as a matrix in double precision, to recompute residuals."""
    operator = _operator(name, symmetric)
    basis = jnp.eye(int(np.prod(operator.shape)), dtype=jnp.float32).reshape(-1, *operator.shape)
    return np.asarray(jax.vmap(operator.forward_dense)(basis), np.float64).T


def _measurements(case: str, operator: str, y: Any) -> Any:
    """`y`, or clean measurements of a planted matrix times `y`, if that is a number."""
    return _clean(operator, _CASES[case].symmetric) * np.float32(y) if isinstance(y, float) else y


def _solved(case: str, operator: str, y: Any, key: Any = KEY, weights: Any = None, **kw: Any) -> Any:
    solver = dataclasses.replace(_CASES[case].solver, **kw.pop("fields", {}))
    loss = _LOSSES[kw.pop("loss", "absolute" if _CASES[case].robust else "squared")]
    op = _operator(operator, _CASES[case].symmetric)
    problem = lr.Problem(op, _measurements(case, operator, y), weights, loss)
    kw = {"num_steps": 6, **kw}
    return lr.solve(problem, solver, key, **kw)


def _honest(case: str, operator: str, solution: Any, given: dict) -> list[str]:
    """The residual reported, against one computed from the factors in double precision."""
    y, weights = given["y"], given.get("weights")
    if solution.status.ndim or not recipes.finite(given) or (isinstance(y, recipes.Array) and y.traced):
        return []
    if int(solution.status) not in (lr.status.CONVERGED, lr.status.RUNNING):
        return []
    try:
        y = np.asarray(recipes.build(_measurements(case, operator, recipes.build(y))), np.float64)
        w = np.ones(y.shape) if weights is None else np.asarray(recipes.build(weights), np.float64)
    except (TypeError, ValueError):
        return []
    measured = _operator(operator, _CASES[case].symmetric).measured
    w = w if measured is None else w * np.asarray(measured)
    x = np.asarray(solution.factors.left, np.float64) @ np.asarray(solution.factors.right, np.float64).T
    r = _matrix(operator, _CASES[case].symmetric) @ x.reshape(-1) - y
    size = np.sqrt((w * y**2).sum())
    true = np.sqrt((w * r**2).sum()) / size if size > 0 else None
    seen = float(solution.trace["residual"][-1])
    if true is not None and not abs(true - seen) <= 0.02 * true + 1e-4:
        return [f"the residual reported is {seen:.1e}, the true one {true:.1e}"]
    return []


@st.composite
def _solve_arguments(draw: Any, case: str, operator: str) -> dict[str, Any]:
    """One program is compiled for most of these: a pair of solver and operator is a target of its own."""
    shape = (len(_clean(operator, _CASES[case].symmetric)),)
    given = {"y": draw(pick([1.0, 1.0, 1e-20, 1e20, 1e-15, 1e10])), "key": draw(good_key)}
    odd = {
        "y": st.one_of(odd_array(shape, traced=False), good_array(shape, ("zeros", "ones", "ties"))),
        "traced": _traced(shape),
        "weights": st.one_of(
            odd_array(shape, traced=False), good_array(shape, ("ones", "ties", "zeros", "1e30", "1e-30"))
        ),
        "key": odd_key,
        "num_steps": pick([Number(0), Number(6.0), Number(6, "int64"), Number(True), Number(6, "array"), Number(-1)]),
        "record_every": pick([Number(0), Number(1.0), Number(True), Number(4), Number(1, "int64")]),
        "loss": pick(sorted(_LOSSES)),
        "init": just(Number("start")),
        "truth": odd_array((7, 5), traced=False),
        "fields": _fields(_CASES[case].solver),
    }
    for _ in range(draw(st.integers(0, 2))):
        name = draw(pick(sorted(odd)))
        given[name] = draw(odd[name])
    if "traced" in given:
        given["y"] = given.pop("traced")
    return given


def _weights(shape: tuple[int, ...]) -> st.SearchStrategy:
    return good_array(shape, ("ones", "ties", "zeros", "1e30", "1e-30"))


def _traced(shape: tuple[int, ...]) -> st.SearchStrategy:
    bad = pick([None, *recipes.BAD])
    return st.builds(recipes.Array, just(shape), bad=bad, place=st.integers(0, 60), traced=just(True))


@st.composite
def _fields(draw: Any, solver: Any) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(solver) if f.name not in ("solver", "optimizer")]
    if not names:
        return {}
    name = draw(pick(names))
    if name in ("max_rank", "power_steps", "num_restarts", "inner_steps", "bisections"):
        return {name: draw(st.one_of(odd_count.filter(lambda n: n.value not in (10**6, 2**63)), pick([1, 5])))}
    if isinstance(getattr(solver, name), bool):
        return {name: draw(odd_flag)}
    return {name: draw(odd_choice if isinstance(getattr(solver, name), str) else odd_real)}


def _add(name: str, module: str, strategy: st.SearchStrategy, call: Any, **more: Any) -> None:
    from .core import TARGETS, Target

    TARGETS[name] = Target(name, module, strategy, call, **more)


_WORDS = ("loss", "solver", "max_rank", "symmetric", "SCHEDULE", "every weight", "rank")
_FIELDS = tuple({f.name for case in CASES for f in dataclasses.fields(case.solver)})
_SMALL = {("altmin", "sampled"): 5, ("projections", "mask"): 3}
for _case in CASES:
    for _name in _case.operators:
        _add(
            f"solve_{_case.name}_{_name}",
            "solvers",
            _solve_arguments(_case.name, _name),
            functools.partial(_solved, _case.name, _name),
            names=(*_WORDS, *_FIELDS),
            look=functools.partial(_honest, _case.name, _name),
            examples=_SMALL.get((_case.name, _name), 0),
        )


def _selected(operator: str, y: Any, key: Any, **kw: Any) -> Any:
    kw = {"max_rank": 2, "num_steps": 4, **kw}
    problem = lr.Problem(_operator(operator, False), _measurements("altmin", operator, y), kw.pop("weights", None))
    return lr.select_rank(problem, key, **kw)


target(
    "select_rank",
    "solvers",
    {"operator": pick(["dense", "sampled"]), "y": just(1.0), "key": good_key, "method": pick(["gap", "adaptive"])},
    {
        "y": pick([1e-20, 1e20, recipes.Array((60,)), recipes.Array((60,), bad="inf", traced=True)]),
        "key": odd_key,
        "method": st.one_of(odd_choice, just("holdout")),
        "max_rank": st.one_of(odd_count, st.integers(1, 6)),
        "num_steps": pick([Number(0), Number(4.0), Number(4, "int64"), Number(True)]),
        "holdout": odd_real,
        "tolerance": odd_real,
        "solver": pick([Number("altmin"), Number(None), Number(3)]),
    },
    _selected,
    names=("problem", "solver"),
    examples=2,
)

# --- completion ---

_ROWS, _COLS = [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6], [0, 1, 2, 0, 1, 1, 2, 3, 4, 2, 3, 4]


def _completed(rows: Any, cols: Any, values: Any, shape: Any, **kw: Any) -> Any:
    done = lr.complete(rows, cols, values, shape, **{"num_steps": 4, **kw})
    return done, done.predict([0, 1], [1, 2])


target(
    "complete",
    "complete",
    {
        "rows": just(_ROWS),
        "cols": just(_COLS),
        "values": good_array((12,)),
        "shape": just((7, 5)),
        "rank": just(1),
        "key": good_key,
        "ridge": pick([0.1]),
    },
    {
        "rows": odd_index,
        "cols": odd_index,
        "values": odd_array((12,), traced=False),
        "shape": odd_shape,
        "rank": st.one_of(odd_count, st.integers(2, 5)),
        "key": odd_key,
        "ridge": odd_real,
        "biases": st.one_of(odd_flag, st.booleans()),
        "holdout": st.one_of(odd_real, just(0.3)),
        "early_stopping": odd_flag,
        "ensemble": odd_count.filter(lambda n: n.value not in (10**6, 2**63)),
        "ridge_by_count": odd_flag,
        "nonnegative": odd_flag,
        "weights": st.one_of(odd_array((12,), traced=False), good_array((12,), ("ones", "ties", "zeros"))),
        "duplicates": odd_choice,
        "num_steps": pick([Number(0), Number(4.0), Number(4, "int64"), Number(True)]),
        "solver": pick([Number("altmin"), Number(3)]),
    },
    _completed,
    names=("weight", "biases", "num_measurements", "max_rank"),
    examples=7,
)


@functools.cache
def _small() -> Any:
    values = np.linspace(1, 2, 12).astype(np.float32)
    return lr.complete(_ROWS, _COLS, values, (7, 5), rank=1, key=KEY, ridge=0.1, num_steps=4, ensemble=2)


def _asked(method: str, rows: Any, cols: Any = None, count: Any = None, **kw: Any) -> Any:
    if method == "recommend":
        found, _ = _small().recommend(rows, 2 if count is None else count, **kw)
        return found
    return getattr(_small(), method)(rows, [0, 1, 2] if cols is None else cols)


def _in_range(result: Any, given: dict) -> list[str]:
    """What was answered must be an answer: an index that is none must have been refused."""
    for name in ("rows",) if given["method"] == "recommend" else ("rows", "cols"):
        value = recipes.build(given.get(name))
        array = None if value is None else np.asarray(value)
        if array is not None and array.size and array.dtype.kind not in "iu":
            return [f"{name} of dtype {array.dtype} were taken for indices"]
    return []


target(
    "completion_methods",
    "complete",
    {"method": pick(["predict", "uncertainty", "recommend"]), "rows": just([0, 1, 2])},
    {"rows": odd_index, "cols": odd_index, "count": odd_count, "include_seen": just(True)},
    _asked,
    names=("rows", "cols", "count"),
    look=_in_range,
    examples=6,
)
target(
    "complete_ensemble",
    "complete",
    {
        "values": good_array((7, 5)),
        "mask": st.builds(recipes.Array, just((7, 5)), just("ones"), just("bool")),
        "key": good_key,
        "rank": just(1),
    },
    {
        "values": odd_array((7, 5)),
        "mask": odd_array((7, 5), traced=False),
        "key": odd_key,
        "rank": odd_count,
        "ridge": odd_real,
        "drop": odd_real,
        "num_members": odd_count.filter(lambda n: n.value not in (10**6, 2**63)),
        "nonnegative": odd_flag,
    },
    lambda values, mask, key, **kw: lr.complete_ensemble(values, mask, key, **{"num_members": 2, "num_steps": 2, **kw}),
    names=("max_rank", "weights"),
    examples=2,
)
