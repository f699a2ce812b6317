"""Checks at the door: each raises a `ValueError` naming the argument, what was seen and what was expected."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_shape(shape: Any) -> tuple[int, int]:
    """Returns `shape` as a pair of positive ints or raises a `ValueError` that names it."""
    try:
        pair = tuple(int(n) for n in shape)
    except (TypeError, ValueError):
        pair = ()
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"shape must be two positive integers (rows, columns); got {shape!r}")
    return pair[0], pair[1]


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Returns `value` as an int of at least `minimum` or raises a `ValueError` that names it."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}; got {value!r}")
    return int(value)


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
    """`array` in a narrower dtype, refused where a finite value would become infinite, or all of it zero."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(dtype)
    tiny = np.finfo(dtype).tiny
    if (np.isfinite(array) & ~np.isfinite(narrow)).any():
        raise ValueError(f"{name} holds values that {np.dtype(dtype)} cannot, the largest {np.abs(array).max():.3g}")
    if array.any() and np.abs(narrow).max() < tiny:
        raise ValueError(f"{name} holds values too small for {np.dtype(dtype)}, the largest {np.abs(array).max():.3g}")
    return narrow


def real_array(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array of real floating-point numbers: the one door for data from the host.

    NumPy's doubles become single precision unless JAX's double precision is on, as everywhere in JAX.

    Raises:
        ValueError: naming `name`, for what `host_array` refuses, for integers, booleans and complex numbers, and for
            values outside the range of the dtype.
    """
    array = host_array(name, value)
    check_real(name, array)
    if isinstance(array, jax.Array):
        return array
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    return jnp.asarray(array if dtype == array.dtype else _narrowed(name, array, dtype))


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
    """Raises a `ValueError` if a concrete number (or any element of an array) lies outside `[low, high]`."""
    if value is None or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
        return
    array = np.asarray(value)
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name} must be a real number; got {value!r}")
    good = np.isfinite(array)
    if low is not None:
        good &= (array > low) if open_low else (array >= low)
    if high is not None:
        good &= array <= high
    if not good.all():
        left = f"{'(' if open_low else '['}{-np.inf if low is None else low}"
        raise ValueError(f"{name} must be finite and in {left}, {np.inf if high is None else high}]; got {value!r}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")
