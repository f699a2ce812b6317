"""Argument checks: each raises a `ValueError` naming the argument, what was seen and what was expected."""

import dataclasses
import operator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

T = TypeVar("T")
MOST = 2**31 - 1  # what int32 counts to


def check_shape(shape: Any, name: str = "shape") -> tuple[int, int]:
    """Returns `shape` as a pair of positive ints or raises a `ValueError` that names it.

    A tuple, list or array of two integers: what has another order or none (a set, a dictionary) or other entries
    (text, floats, booleans) is a mistake.
    """
    pair = [_integer(n) for n in shape] if isinstance(shape, (tuple, list)) or _is_vector(shape) else []
    if len(pair) != 2 or any(n is None or not 1 <= n <= MOST for n in pair):
        raise ValueError(f"{name} must be two positive integers (rows, columns) below 2^31; got {shape!r}")
    return pair[0], pair[1]  # type: ignore[return-value]


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Returns `value` as an int of at least `minimum` or raises a `ValueError` that names it."""
    if isinstance(value, Tracer):
        raise ValueError(
            f"{name} must be an integer known before tracing; got {value!r}. Make it a static argument "
            "(static_argnames= of jit, static= of lrjax.sweep)"
        )
    count = _integer(value)
    if count is None or count < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}; got {value!r}")
    if count > MOST:
        raise ValueError(f"{name} must be at most 2^31 - 1, what compiled code counts to; got {value!r}")
    return count


def check_flag(name: str, value: Any) -> bool:
    """Returns `value` as a bool or raises a `ValueError` that names it: "no" is true, and a traced one is no switch."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False; got {value!r}")
    return bool(value)


def check_settings(settings: T) -> T:
    """A frozen dataclass with its static counts as ints and its static flags as bools, those inside it too.

    A count that is an array, of NumPy say, could not be hashed, and a flag that is a text would count as true.
    """
    if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
        return settings
    changes = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        new = value
        if field.metadata.get("static") and field.type in (bool, "bool"):
            new = check_flag(field.name, value)
        elif field.metadata.get("static") and isinstance(value, (np.ndarray, np.generic, jax.Array)):
            count = _integer(value)
            new = value if count is None else count
        elif dataclasses.is_dataclass(value):
            new = check_settings(value)
        if new is not value and field.init:
            changes[field.name] = new
    return dataclasses.replace(settings, **changes) if changes else settings


def _integer(value: Any) -> int | None:
    """One integer of whatever kind as an int: Python's, NumPy's, JAX's, arrays of no dimension; else `None`."""
    if isinstance(value, (bool, np.bool_, Tracer)):
        return None
    if isinstance(value, (np.ndarray, jax.Array)):
        return int(value) if value.shape == () and jnp.issubdtype(value.dtype, jnp.integer) else None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _is_vector(value: Any) -> bool:
    return isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, Tracer) and value.ndim == 1


def float_dtype(dtype: Any, *, complex_too: bool = False) -> Any:
    """The dtype asked for, or JAX's default float for `None`.

    Raises:
        ValueError: no dtype, not a floating one, or double precision where JAX's is off, which would give singles.
    """
    kind = "real or complex floating" if complex_too else "real floating"
    try:
        found = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    except TypeError:
        raise ValueError(f"dtype must be {kind}; got {dtype!r}") from None
    if not jnp.issubdtype(found, jnp.inexact if complex_too else jnp.floating):
        raise ValueError(f"dtype must be {kind}; got {found}")
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise ValueError(
            f'dtype {found} needs double precision, which is off: jax.config.update("jax_enable_x64", True)'
        )
    return found


def number(
    name: str, value: Any, dtype: Any, *, low: float | None = None, high: float | None = None, open_low: bool = False
) -> jax.Array:
    """One real number, traced or not, in `dtype`.

    Raises:
        ValueError: naming `name`, for anything else, for what lies outside of the range, and for what `dtype` turns
            from a number into infinity, or from more than nothing into nothing.
    """
    if isinstance(value, (bool, np.bool_)) or value is None or isinstance(value, (str, bytes)):
        raise ValueError(f"{name} must be a real number; got {value!r}")
    array = host_array(name, value)
    if array.shape != () or jnp.issubdtype(array.dtype, jnp.complexfloating) or array.dtype == bool:
        raise ValueError(f"{name} must be a real number; got {array.dtype} of shape {array.shape}")
    check_range(name, value, low=low, high=high, open_low=open_low)
    if isinstance(array, Tracer):
        return array.astype(dtype)
    # Not through JAX, which would warn of a narrower type itself.
    return jax.device_put(_narrowed(name, np.asarray(array), np.dtype(dtype)))


def host_number(
    name: str, value: Any, *, low: float | None = None, high: float | None = None, open_low: bool = False
) -> float:
    """One real number as a Python float, for what is computed outside of traced code.

    Raises:
        ValueError: naming `name`, for anything else, a traced number too, and for what lies outside of the range.
    """
    if value is None or isinstance(value, Tracer):
        raise ValueError(f"{name} must be one number, known outside of jit; got {value!r}")
    check_range(name, value, low=low, high=high, open_low=open_low)
    return float(np.asarray(value))


def check_indices(name: str, value: Any, bound: int) -> Any:
    """`value` as an array of integers in `[0, bound)`; of traced ones the range cannot be looked at.

    Raises:
        ValueError: naming `name`, for floats, booleans, text, and for what lies outside.
    """
    array = host_array(name, value)
    if array.size == 0:
        return np.zeros(array.shape, np.int32)  # an empty list has no type of its own
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers; got {array.dtype} of shape {array.shape}")
    if array.size and (host := host_value(array)) is not None and (host.min() < 0 or host.max() >= bound):
        raise ValueError(f"{name} must lie in [0, {bound}); got values from {host.min()} to {host.max()}")
    return array


def check_real(name: str, array: Any) -> None:
    """Raises a `ValueError` unless `array` holds real floating-point numbers."""
    dtype = host_array(name, array).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be real floating point; got dtype {dtype}. Cast it first if that is meant")


def host_array(name: str, value: Any) -> Any:
    """Whatever holds numbers as an array: JAX arrays (and tracers) as they are, the rest as NumPy in native byte order.

    Lists, data frames, masked arrays without a masked value, foreign byte orders and long doubles (in double
    precision) are taken.

    Raises:
        ValueError: naming `name`, for text, objects, ragged lists, masked values, sparse matrices and `None`.
    """
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, (list, tuple)) and any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
        return jnp.asarray(value)
    seen = type(value).__name__
    if np.ma.isMaskedArray(value):
        if np.ma.getmaskarray(value).any():
            raise ValueError(f"{name} has masked values; fill them, and give them weight zero")
        value = value.data
    if hasattr(value, "toarray") or hasattr(value, "todense"):
        raise ValueError(f"{name} must be a dense array; got the sparse {seen}. Make it dense first (.toarray())")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers; got {seen}: {error}") from None
    if isinstance(getattr(array, "dtype", None), np.dtype) and array.dtype.kind not in "biufc":
        # Types of JAX's own, such as bfloat16, are of kind "V".
        if array.dtype.kind != "V" or array.dtype.names or not jnp.issubdtype(array.dtype, jnp.number):
            raise ValueError(f"{name} must be an array of numbers; got {seen} of dtype {array.dtype}")
    if array.dtype.kind in "fc" and array.dtype.itemsize > (8 if array.dtype.kind == "f" else 16):
        array = _narrowed(name, array, np.float64 if array.dtype.kind == "f" else np.complex128)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _narrowed(name: str, array: np.ndarray, dtype: Any) -> np.ndarray:
    """`array` in a narrower dtype, refused where an integer would change or a float become infinite, or all zero."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(dtype)
    if array.dtype.kind in "iu" and jnp.issubdtype(dtype, jnp.integer):
        if (narrow != array).any():
            largest = max(array.max(), array.min(), key=abs)
            raise ValueError(f"{name} holds values that {np.dtype(dtype)} cannot, such as {largest}")
        return narrow
    if (np.isfinite(array) & ~np.isfinite(narrow)).any():
        raise ValueError(f"{name} holds values that {np.dtype(dtype)} cannot, the largest {np.abs(array).max():.3g}")
    if array.any() and np.abs(narrow).max() < jnp.finfo(dtype).tiny:
        raise ValueError(f"{name} holds values too small for {np.dtype(dtype)}, the largest {np.abs(array).max():.3g}")
    return narrow


def on_host(name: str, value: Any) -> np.ndarray:
    """`host_array` as NumPy, for what is done outside of traced code.

    Raises:
        ValueError: naming `name`, for a traced array too.
    """
    array = host_array(name, value)
    if isinstance(array, Tracer):
        raise ValueError(f"{name} is traced, and this runs on the host: call it outside of jit, vmap and grad")
    return np.asarray(array)


def as_array(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array of numbers or booleans: the one conversion of data from the host.

    NumPy's doubles become single precision unless JAX's double precision is on, as everywhere in JAX.

    Raises:
        ValueError: naming `name`, for what `host_array` refuses, and for values outside the range of the dtype.
    """
    array = host_array(name, value)
    if isinstance(array, jax.Array):
        return array
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    # `jnp.asarray` compiles a copy for every shape, and `device_put` may keep the memory it is given.
    return jax.device_put(np.array(array) if dtype == array.dtype else _narrowed(name, array, dtype))


def real_array(name: str, value: Any) -> jax.Array:
    """`as_array` of real floating-point numbers.

    Raises:
        ValueError: naming `name`, for integers, booleans and complex numbers too.
    """
    array = host_array(name, value)
    check_real(name, array)
    return as_array(name, array)


def single_or_double(name: str, value: Any, *, complex_too: bool = False) -> Any:
    """`value` itself, if its dtype is one that LAPACK computes in."""
    if value.dtype in (jnp.float32, jnp.float64) or (complex_too and value.dtype in (jnp.complex64, jnp.complex128)):
        return value
    seen = jax.dtypes.canonicalize_dtype(value.dtype)
    raise ValueError(f"{name} has dtype {seen}; expected float32 or float64: cast it first")


def check_finite(name: str, array: Any) -> None:
    """Raises a `ValueError` if a concrete `array` holds NaN or infinity; a traced one cannot be looked at."""
    if (host := host_value(array)) is not None and not np.isfinite(host).all():
        bad = int((~np.isfinite(host)).sum())
        raise ValueError(f"{name} must be finite; {bad} of {host.size} values are NaN or infinite")


def host_value(array: Any) -> np.ndarray | None:
    """A concrete array as NumPy, or `None` for one that cannot be looked at.

    Those are traced ones (inside jit even constants meet JAX only as tracers) and those spread over processes.
    """
    if isinstance(array, Tracer):
        return None
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return None
    return np.asarray(array)


def check_key(key: Any) -> None:
    """Raises a `ValueError` unless `key` is one typed random key."""
    if not jnp.issubdtype(getattr(key, "dtype", np.int32), jax.dtypes.prng_key) or key.shape != ():
        seen = f"{getattr(key, 'dtype', type(key).__name__)} of shape {getattr(key, 'shape', None)}"
        raise ValueError(f"key must be one typed key, jax.random.key(seed); got {seen}")


def check_range(
    name: str, value: Any, *, low: float | None = None, high: float | None = None, open_low: bool = False
) -> None:
    """Raises a `ValueError` unless `value` is `None`, traced, or one real number in `[low, high]`."""
    if value is None or isinstance(value, Tracer):
        return
    if isinstance(value, (str, bytes)):
        raise ValueError(f"{name} must be a real number; got {value!r}")
    array = host_value(host_array(name, value))
    if array is not None and (array.shape != () or np.iscomplexobj(array) or array.dtype == bool):
        raise ValueError(f"{name} must be a real number; got {value!r}")
    _check_within(name, array, value, low=low, high=high, open_low=open_low)


def check_elements(
    name: str, array: Any, *, low: float | None = None, high: float | None = None, open_low: bool = False
) -> None:
    """Raises a `ValueError` if an element of a concrete real array lies outside `[low, high]`."""
    _check_within(name, host_value(array), array, low=low, high=high, open_low=open_low)


def _check_within(
    name: str, array: np.ndarray | None, given: Any, *, low: float | None, high: float | None, open_low: bool
) -> None:
    if array is None:
        return
    good = np.isfinite(array)
    if low is not None:
        good &= (array > low) if open_low else (array >= low)
    if high is not None:
        good &= array <= high
    if not good.all():
        left = f"{'(' if open_low else '['}{-np.inf if low is None else low}"
        right = "inf)" if high is None else f"{high}]"
        raise ValueError(f"{name} must be finite and in {left}, {right}; got {given!r}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")
