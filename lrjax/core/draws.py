"""Random numbers that compile fast."""

import math
from collections.abc import Callable
from typing import Any

import jax


def drawn(draw: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """`draw(key, shape, dtype)`, the same numbers, drawn as one line.

    A generator over three axes takes XLA three times as long to compile.
    """
    return draw(key, (math.prod(shape),), dtype).reshape(shape)
