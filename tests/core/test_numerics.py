"""Arithmetic at zero: the value and the slope that each function states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.core import numerics

X = jnp.asarray([-1.0, 0.0, 4.0, np.nan])
# Values and slopes at X.
CASES = {
    "or_one": (numerics.or_one, [1, 1, 4, 1], [0, 0, 1, 0]),
    "safe_sqrt": (numerics.safe_sqrt, [0, 0, 2, 0], [0, 0, 0.25, 0]),
    "safe_reciprocal": (numerics.safe_reciprocal, [0, 0, 0.25, 0], [0, 0, -1 / 16, 0]),
    "kept": (lambda x: numerics.safe_reciprocal(x, jnp.abs(x) > 0), [-1, 0, 0.25, 0], [-1, 0, -1 / 16, 0]),
    "over x": (lambda x: numerics.safe_divide(3.0, x), [3, 3, 0.75, 3], [0, 0, -3 / 16, 0]),
    "x over 0": (lambda x: numerics.safe_divide(x, jnp.zeros((), x.dtype)), [-1, 0, 4, np.nan], [1, 1, 1, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_at_zero(name):
    function, values, slopes = CASES[name]
    np.testing.assert_array_equal(function(X), np.asarray(values, np.float32))
    np.testing.assert_array_equal(jax.vmap(jax.grad(function))(X), np.asarray(slopes, np.float32))
    assert function(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16
