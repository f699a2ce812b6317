"""What all sketches check and share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import as_array, check_count, check_elements, check_key, real_array


def check_sizes(key: Any, num_rows: Any, num_cols: Any) -> tuple[int, int]:
    """The checked sizes of a sketch drawn from `key`."""
    check_key(key)
    return check_count("num_rows", num_rows), check_count("num_cols", num_cols)


def check_dtype(dtype: Any) -> np.dtype:
    """The dtype of a sketch: the one given, or that of a Python number."""
    dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {dtype}; expected a real floating type")
    return dtype


def as_columns(name: str, value: Any, num_entries: int) -> jax.Array:
    """`value` as `(num_entries, k)`; real or complex."""
    value = as_array(name, value)
    if value.ndim not in (1, 2) or value.shape[0] != num_entries:
        raise ValueError(
            f"{name} has shape {value.shape}; expected ({num_entries},) or ({num_entries}, k) for this sketch"
        )
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        raise ValueError(f"{name} has dtype {value.dtype}; expected a floating or complex type")
    return value if value.ndim == 2 else value[:, None]


def check_scores(name: str, scores: Any) -> jax.Array:
    """A vector of finite numbers of at least zero."""
    scores = real_array(name, scores)
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"{name} has shape {scores.shape}; expected (n,) with n at least 1")
    check_elements(name, scores, low=0)
    return scores


def shaped_like(value: jax.Array, given: Any) -> jax.Array:
    """A vector again if a vector was given."""
    return value.reshape(value.shape[:1] + np.shape(given)[1:])


def over_column_blocks(function, columns: jax.Array, width: int) -> jax.Array:
    """`function` of `(n, c)` blocks of columns, one block at a time, so that only a block is ever copied."""
    count = columns.shape[1] // width
    if columns.shape[1] <= width:
        return function(columns)
    rest = columns[:, count * width :]

    def block(index: jax.Array) -> jax.Array:
        return function(jax.lax.dynamic_slice_in_dim(columns, index * width, width, axis=1))

    blocks = jax.lax.map(block, jnp.arange(count, dtype=jnp.int32))
    whole = jnp.moveaxis(blocks, 0, 1).reshape(blocks.shape[1], count * width)
    return jnp.concatenate([whole, function(rest)], axis=1) if rest.shape[1] else whole
