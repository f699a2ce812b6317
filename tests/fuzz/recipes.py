"""Inputs as recipes: small frozen values that print as code, are drawn by hypothesis and built in the worker."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

VALUES = ("normal", "low_rank", "zeros", "ones", "ties", "1e-30", "1e30", "mixed", "subnormal", "1e15", "1e-15")
REAL = ("float32", "float64", "float16", "bfloat16", "longdouble", ">f4")
OTHER = ("int32", "int64", "uint8", "bool", "complex64", "object", "str")
HOLDERS = ("numpy", "jax", "list", "frame", "masked", "masked_some", "sparse", "ragged", "none", "text", "scalar")
BAD = ("nan", "inf", "-inf")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array, or what a caller could hand over in its place."""

    shape: tuple[int, ...]
    values: str = "normal"
    dtype: str = "float32"
    holder: str = "numpy"
    bad: str | None = None
    place: int = 0
    seed: int = 0
    traced: bool = False

    def host(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        x = rng.standard_normal(self.shape)
        if self.values == "low_rank" and len(self.shape) == 2:
            x = np.outer(rng.standard_normal(self.shape[0]), rng.standard_normal(self.shape[1]))
        elif self.values == "zeros":
            x = np.zeros(self.shape)
        elif self.values == "ones":
            x = np.ones(self.shape)
        elif self.values == "ties":
            x = rng.integers(0, 3, self.shape).astype(float)
        elif self.values == "mixed":
            x = x * np.logspace(-30, 30, max(1, x.size)).reshape(self.shape)
        elif self.values == "subnormal":
            x = x * 1e-40
        elif self.values not in ("normal", "low_rank"):
            x = x * float(self.values)
        if self.bad is not None and x.size:
            x.reshape(-1)[self.place % x.size] = float(self.bad)
        return x

    def finite(self) -> bool:
        """Whether the caller handed over finite numbers, in the type they were given in."""
        if self.bad is not None:
            return False
        most = {"float16": 6e4, "float32": 3e38, "bfloat16": 3e38}.get(self.dtype, np.inf)
        x = self.host()
        return x.size == 0 or float(np.abs(x).max()) < most

    def build(self) -> Any:
        x = self.host()
        with np.errstate(all="ignore"):
            if self.dtype == "bfloat16":
                x = np.asarray(jnp.asarray(x, jnp.bfloat16))
            elif self.dtype in ("int32", "int64", "uint8"):
                x = np.nan_to_num(np.clip(x, 0, 100)).astype(self.dtype)
            else:
                x = x.astype(self.dtype)
        return _held(x, self.holder)


def _held(x: np.ndarray, holder: str) -> Any:
    if holder == "jax" and x.dtype.kind in "fiub" and x.dtype.isnative and x.dtype.itemsize <= 8:
        return jnp.asarray(x.astype(np.float32) if x.dtype == np.float64 else x)
    if holder == "list":
        return x.tolist()
    if holder == "frame" and x.ndim == 2:
        import pandas

        return pandas.DataFrame(x)
    if holder == "frame" and x.ndim == 1:
        import pandas

        return pandas.Series(x)
    if holder in ("masked", "masked_some"):
        mask = np.zeros(x.shape, bool)
        if holder == "masked_some" and x.size:
            mask.reshape(-1)[0] = True
        return np.ma.masked_array(x, mask)
    if holder == "sparse" and x.ndim == 2 and x.dtype.kind in "fiu" and x.dtype.itemsize in (4, 8):
        from scipy import sparse

        return sparse.csr_array(x)
    if holder == "ragged":
        return [[1.0], [1.0, 2.0]]
    if holder == "none":
        return None
    if holder == "text":
        return "text"
    if holder == "scalar":
        return 1.0
    return x


@dataclasses.dataclass(frozen=True)
class Number:
    """A scalar of a given kind: Python's, NumPy's or JAX's."""

    value: Any
    kind: str = "python"

    def build(self) -> Any:
        if self.kind == "jax":
            return jnp.asarray(self.value)
        if self.kind == "array":
            return np.array(self.value)
        return self.value if self.kind == "python" else np.dtype(self.kind).type(self.value)


@dataclasses.dataclass(frozen=True)
class Key:
    """A random key, or what people hand over for one."""

    seed: int = 0
    kind: str = "typed"

    def build(self) -> Any:
        if self.kind == "typed":
            return jax.random.key(self.seed)
        if self.kind == "raw":
            return jax.random.PRNGKey(self.seed)
        if self.kind == "two":
            return jax.random.split(jax.random.key(self.seed))
        return {"none": None, "int": self.seed, "array": np.zeros(2, np.uint32), "text": "key"}[self.kind]


def build(recipe: Any) -> Any:
    """The value of a recipe, through dictionaries, lists and tuples."""
    if hasattr(recipe, "build"):
        return recipe.build()
    if isinstance(recipe, dict):
        return {name: build(value) for name, value in recipe.items()}
    if isinstance(recipe, list | tuple):
        return type(recipe)(build(value) for value in recipe)
    return recipe


def parts(recipe: Any) -> list[Any]:
    """All leaves of a recipe."""
    if isinstance(recipe, dict):
        return [leaf for value in recipe.values() for leaf in parts(value)]
    if isinstance(recipe, list | tuple):
        return [leaf for value in recipe for leaf in parts(value)]
    return [recipe]


def finite(recipe: Any) -> bool:
    """Whether no number of the recipe is NaN or infinite, or beyond single precision."""
    for leaf in parts(recipe):
        value = leaf.value if isinstance(leaf, Number) else leaf
        if isinstance(leaf, Array) and not leaf.finite():
            return False
        if isinstance(value, str) and "nan" in value:
            return False
        if isinstance(value, int | float) and not abs(value) < 3e38:
            return False
    return True


# --- strategies: what a careful caller hands over, and what others do ---

seeds = st.integers(0, 3)
_traceable = st.booleans()


def good_array(shape: tuple[int, ...], values: tuple[str, ...] = ("normal", "low_rank", "ties")) -> st.SearchStrategy:
    return st.builds(Array, st.just(shape), st.sampled_from(values), seed=seeds)


def odd_array(shape: tuple[int, ...], *, traced: bool = True) -> st.SearchStrategy:
    """One oddity at a time: of the values, the dtype, the holder, an infinity (also a traced one) or the shape."""
    other = [shape[:-1], (*shape, 1), (*shape[:-1], 0), (*shape[:-1], shape[-1] + 1), ()]
    kinds = [
        st.builds(Array, st.just(shape), st.sampled_from(VALUES), seed=seeds),
        st.builds(Array, st.just(shape), dtype=st.sampled_from(REAL + OTHER), holder=st.sampled_from(HOLDERS[:3])),
        st.builds(Array, st.just(shape), holder=st.sampled_from(HOLDERS)),
        st.builds(Array, st.just(shape), bad=st.sampled_from(BAD), place=st.integers(0, 40)),
        st.builds(Array, st.sampled_from(other)),
    ]
    if traced:
        kinds.append(st.builds(Array, st.just(shape), st.sampled_from(VALUES), traced=st.just(True), seed=seeds))
        kinds.append(
            st.builds(Array, st.just(shape), bad=st.sampled_from(BAD), place=st.integers(0, 40), traced=st.just(True))
        )
    return st.one_of(kinds)


ODD_COUNTS = [
    Number(0), Number(-1), Number(10**6), Number(2**63), Number(True), Number(2.0), Number(1.5), Number("2"),
    Number(None), Number(float("nan")), Number(2, "int64"), Number(2, "uint8"), Number(2, "jax"), Number(2, "array"),
    Number(2.0, "float32"), Number((2,)), Number([2]),
]  # fmt: skip
odd_count = st.sampled_from(ODD_COUNTS)
ODD_REALS = [
    Number(float("nan")), Number(float("inf")), Number(-1.0), Number(1e30), Number(1e-30), Number(1e300), Number(0.0),
    Number("0.1"), Number(None), Number(True), Number(1j), Number((0.1, 0.2)), Number(1, "int64"), Number(0.1, "jax"),
    Number(0.1, "float16"), Number(0.1, "longdouble"), Number(10**400),
]  # fmt: skip
odd_real = st.sampled_from(ODD_REALS)
ODD_CHOICES = [Number("nonsense"), Number(""), Number(None), Number(3), Number(("a", "b")), Number(["a"]), Number({})]
odd_choice = st.sampled_from([*ODD_CHOICES, Array((2,), dtype="str")])
ODD_FLAGS = [Number("no"), Number(2), Number(None), Number(1), Number(float("nan")), Number([]), Number(True, "bool")]
odd_flag = st.sampled_from([*ODD_FLAGS, Array((2,), dtype="bool")])
good_key = st.builds(Key, seeds)
odd_key = st.builds(Key, kind=st.sampled_from(("raw", "two", "none", "int", "array", "text")))
ODD_SHAPES = [
    Number((0, 5)), Number((7,)), Number((7, 5, 1)), Number("75"), Number((7.9, 5)), Number((True, True)), Number(7),
    Number(None), Number((2**31, 5)), Number((-7, 5)), Number([7, 5]), Number((float("nan"), 5)), Number({7: 1, 5: 1}),
    Array((2,), "ones", "int64"), Number((1, 1)), Number((1, 5)),
]  # fmt: skip
odd_shape = st.sampled_from(ODD_SHAPES)
ODD_INDICES = [
    Number([0.5, 1.0, 2.0]), Number([True, False, True]), Number(["0", "1", "2"]), Number([-1, 0, 1]),
    Number([2**40] * 3),
    Number(None), Number([99, 0, 1]), Number([]), Number(1), Number([[0, 1, 2]]), Number([float("nan")] * 3),
    Number("abc"),    Number([0, 1]), Array((3,), "ties", "uint8"), Array((3,), "ties", "int32", "jax"),
    Array((3,), "ties", "int64", "frame"),
]  # fmt: skip
odd_index = st.sampled_from(ODD_INDICES)


def arguments(good: dict[str, st.SearchStrategy], odd: dict[str, st.SearchStrategy], most: int = 2):
    """What a careful caller hands over, with up to `most` arguments replaced by odd ones."""

    @st.composite
    def draw(draw: Any) -> dict[str, Any]:
        given = {name: draw(strategy) for name, strategy in good.items()}
        names = sorted(odd)
        for _ in range(draw(st.integers(0, most))):
            name = draw(st.sampled_from(names))
            given[name] = draw(odd[name])
        return given

    return draw()
