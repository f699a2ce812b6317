"""The grid of a sweep: its axes, what tells it from another one, and the labelled arrays that it ends in."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import host_array


class Plan(NamedTuple):
    """The grid, in order: all axes, which of them are static, and their values."""

    values: dict[str, Any]
    static: tuple[str, ...]
    num_trials: int

    @property
    def traced(self) -> tuple[str, ...]:
        """Axes whose values are arguments of a program; the others are compiled in."""
        return tuple(name for name in self.values if name not in self.static)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Their lengths."""
        return tuple(len(self.values[name]) for name in self.traced)

    @property
    def num_lanes(self) -> int:
        """Trials of one static point."""
        return int(np.prod(self.sizes, dtype=np.int64)) * self.num_trials

    def static_points(self) -> list[dict[str, Any]]:
        """One dictionary for each combination of static values."""
        chosen = itertools.product(*(self.values[name] for name in self.static))
        return [dict(zip(self.static, point, strict=True)) for point in chosen]


class Table:
    """The outputs of the trials of one static point, as they come in."""

    def __init__(self, num_lanes: int, outputs: Mapping[str, Any]):
        self.arrays = {name: np.zeros((num_lanes, *one.shape), one.dtype) for name, one in outputs.items()}

    def put(self, start: int, arrays: Mapping[str, np.ndarray]) -> int:
        """Stores a chunk; returns how many trials it had."""
        length = len(next(iter(arrays.values())))
        for name, values in arrays.items():
            if name not in self.arrays or values.shape[1:] != self.arrays[name].shape[1:]:
                raise ValueError(
                    f"the checkpoint has outputs {sorted(arrays)} of one chunk and not of all, {sorted(self.arrays)}"
                )
            if not 0 <= start <= start + length <= len(self.arrays[name]):
                raise ValueError(
                    f"the checkpoint has a chunk of {length} trials from number {start} on, of {len(self.arrays[name])}"
                )
        for name, values in arrays.items():
            self.arrays[name][start : start + length] = values
        return length


def axes(grid: Mapping[str, Sequence[Any]], static: Sequence[str]) -> dict[str, Any]:
    """The axes of a grid, checked: static ones keep their values, others become arrays."""
    if not isinstance(grid, Mapping):
        raise ValueError(f"grid is a {type(grid).__name__}; expected a dictionary from axis names to values")
    if isinstance(static, str):
        raise ValueError(f"static is the text {static!r}; expected a sequence of axis names, such as ({static!r},)")
    if not isinstance(static, (list, tuple)) or not all(isinstance(name, str) for name in static):
        raise ValueError(f"static is {static!r}; expected a tuple or list of axis names")
    if unknown := [name for name in static if name not in grid]:
        raise ValueError(f"static names {unknown[0]!r}; grid has {list(grid)}")
    if len(set(static)) < len(static):
        raise ValueError(f"static names an axis twice: {tuple(static)}")
    axes = {}
    for name, values in grid.items():
        if not isinstance(name, str) or name in ("key", "shared", "trial") or not name.isidentifier():
            raise ValueError(f"grid has an axis {name!r}; expected keyword names other than key, shared and trial")
        if name in static:
            axes[name] = _static_values(name, values)
        else:
            try:
                array = np.asarray(values)
            except ValueError as error:
                raise ValueError(f"grid[{name!r}] is ragged; expected numbers, or the axis in static") from error
            if array.dtype.kind not in "fiubc" or array.ndim != 1:
                raise ValueError(
                    f"grid[{name!r}] has dtype {array.dtype} and shape {array.shape}; expected one-dimensional "
                    "numbers, or the axis in static"
                )
            axes[name] = _held(name, host_array(f"grid[{name!r}]", array))
        if len(axes[name]) == 0:
            raise ValueError(f"grid[{name!r}] is empty; expected at least one value")
    return axes


def _held(name: str, array: np.ndarray) -> np.ndarray:
    """`array`, if the dtype in which JAX traces it tells its values apart: labels are kept as they were given."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    with np.errstate(over="ignore", under="ignore"):
        traced = array.astype(dtype)
    if array.dtype.kind in "fc":
        gone = np.isfinite(array) & ~np.isfinite(traced)
        gone |= (array != 0) & (np.abs(traced) < np.finfo(dtype).tiny)
    else:
        gone = traced != array
    if gone.any():
        raise ValueError(
            f"grid[{name!r}] has the value {array[gone][0]}, which {dtype} cannot hold; name the axis in static, or "
            "turn on jax_enable_x64"
        )
    if len(np.unique(traced)) < len(np.unique(array)):
        raise ValueError(
            f"grid[{name!r}] has values that are one and the same in {dtype}: {array.tolist()}; name the axis in "
            "static, or turn on jax_enable_x64"
        )
    return array


def _static_values(name: str, values: Any) -> list:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"grid[{name!r}] is {values!r}; expected a sequence of values")
    # Arrays become Python numbers, which are hashable and give labels of their own type.
    values = np.asarray(values).tolist() if hasattr(values, "dtype") else list(values)
    for value in values:
        try:
            hash(value)
        except TypeError as error:
            raise ValueError(
                f"grid[{name!r}] has the value {value!r} of type {type(value).__name__}, which is not hashable; "
                "expected hashable values, such as tuples in place of lists"
            ) from error
    return values


def settings(plan: Plan, key: jax.Array, shared: Any, paired: bool, batch_size: Any, device: Any) -> dict:
    """What two runs must have in common to give the same bits, as plain values."""
    leaves, tree = jax.tree.flatten(shared)
    digest = hashlib.sha256(str(tree).encode())
    for leaf in leaves:
        typed = jnp.issubdtype(getattr(leaf, "dtype", np.float64), jax.dtypes.prng_key)
        leaf = np.asarray(jax.random.key_data(leaf) if typed else leaf)
        digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return {
        "format": 1,
        "grid": {name: {"coords": _plain(values), "exact": _exact(values)} for name, values in plan.values.items()},
        "static": list(plan.static),
        "trials": plan.num_trials,
        "key": {"impl": str(jax.random.key_impl(key)), "data": np.asarray(jax.random.key_data(key)).tolist()},
        "shared": digest.hexdigest() if leaves else None,
        "paired": bool(paired),
        "batch_size": batch_size,
        "float64": jax.dtypes.canonicalize_dtype(np.float64) == np.float64,
        "device": f"{device.platform} {device.device_kind}",
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }


def plan_of(settings: dict) -> Plan:
    """The plan that `settings` was made from, its values as plain labels."""
    values = {name: axis["coords"] for name, axis in settings["grid"].items()}
    return Plan(values, tuple(settings["static"]), settings["trials"])


def _plain(values: Any) -> list:
    if isinstance(values, np.ndarray):
        values = [complex(v) if np.iscomplexobj(v) else v.item() for v in values]
    values = [v.item() if isinstance(v, np.generic) else v for v in values]
    return [v if isinstance(v, int | float | str) else str(v) for v in values]


def _exact(values: Any) -> str:
    """Tells any two lists of values apart, arrays by dtype and bytes."""
    if isinstance(values, np.ndarray):
        return f"{values.dtype}:{values.tobytes().hex()}"
    return re.sub(r"0x[0-9a-f]+", "", repr(values))


def _labels(values: list) -> np.ndarray:
    """Numbers beside texts stay numbers."""
    mixed = len({isinstance(value, str) for value in values}) > 1
    return np.array(values, dtype=object) if mixed else np.array(values)


def assembled(plan: Plan, tables: list[dict], settings: dict, attrs: dict) -> Any:
    """Labelled arrays, from one table for each static point."""
    names = tuple(plan.values)
    order = (*plan.static, *plan.traced)
    lengths = [len(plan.values[name]) for name in order]
    variables = {}
    for name, first in tables[0].items():
        shapes = {table[name].shape if name in table else None for table in tables}
        if len(shapes) > 1:
            raise ValueError(f"trial returned {name!r} of different shapes at different static points: {shapes}")
        stacked = np.stack([table[name] for table in tables])
        stacked = stacked.reshape(*lengths, plan.num_trials, *first.shape[1:])
        axes = [order.index(axis) for axis in names]
        stacked = stacked.transpose(*axes, *range(len(axes), stacked.ndim))
        own = tuple(f"{name}_dim_{i}" for i in range(first.ndim - 1))
        variables[name] = ((*names, "trial", *own), stacked)
    coords = {name: _labels(_plain(values)) for name, values in plan.values.items()}
    coords["trial"] = np.arange(plan.num_trials)
    bad = {n: int(np.sum(~np.isfinite(v))) for n, (_, v) in variables.items() if v.dtype.kind in "fc"}
    import xarray  # here, for it takes longer to import than this library

    return xarray.Dataset(variables, coords, {"plan": settings, "num_nonfinite": bad, **attrs})
