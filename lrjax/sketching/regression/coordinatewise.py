"""Least squares with a guarantee for every coordinate: how many rows of a sketch it takes, and whether it held."""

import math
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import check_count, host_number, real_array
from lrjax.core.units import exponent, shifted
from lrjax.sketching.regression import direct, inputs, normal_equations
from lrjax.sketching.regression.least_squares import LstsqResult, lstsq


def coordinatewise_sketch_size(num_cols: int, epsilon: float, delta: float) -> int:
    """Rows `m` of a sketch for which all coordinates are right to `epsilon`, with probability `1 - delta`.

    Given a Gaussian sketch and orthonormal `a`, the error `x' - x` is Gaussian with covariance near `||r||^2 / (m - d -
    1)`, so a union bound over coordinates asks for `m = d + 1 + d z^2 / epsilon^2`, with `z` the normal quantile at `1
    - delta / (2 d)`. This is the `O(epsilon^-2 d log(d / delta))` of the theory with the constants of the Gaussian law:
    those of the theorems are not stated.

    Raises:
        ValueError: `epsilon` or `delta` that is not positive, `delta` of 1 or more.
    """
    num_cols = check_count("num_cols", num_cols)
    epsilon = host_number("epsilon", epsilon, low=0, open_low=True)
    delta = host_number("delta", delta, low=0, high=1, open_low=True)
    z = NormalDist().inv_cdf(1 - delta / (2 * num_cols))
    return math.ceil(num_cols + 1 + num_cols * (z / epsilon) ** 2)


def coordinatewise_lstsq(
    a: Any, b: jax.Array, key: jax.Array, *, epsilon: float, delta: float = 0.05, sketch: str = "pooled"
) -> LstsqResult:
    """Sketch-and-solve so that, with probability `1 - delta`, every coordinate is right to
    `epsilon ||a x* - b|| ||pinv(a)|| / sqrt(d)`.

    The target of Song, Ye, Yin and Zhang (2023, arXiv 2302.00248): an error spread evenly over the coordinates, which
    sparse sketches and row samples do not give on coherent data, however many rows they take. The sketch must be dense:
    "pooled" (the construction with a proof, `PooledSketch`), "srht" (better by `sqrt(1 - m / N)` in experiments, but
    the published proof has a gap), "gaussian" or "rademacher". `coordinatewise_sketch_size` chooses the rows;
    `coordinatewise_ratio` tells afterwards what came out.

    Not for speed: the exact answer of `lstsq` costs about as much as a dense sketch. It is the theory made runnable,
    and a guarantee for data that pass by once.

    Raises:
        ValueError: as `lstsq`; a sparse sketch; an `epsilon` for which the sketch would have more rows than `a`.
    """
    dense = ("pooled", "srht", "gaussian", "rademacher")
    if sketch not in dense:
        raise ValueError(f"sketch is {sketch!r}; expected one of {dense}: sparse sketches have no such guarantee")
    a = inputs.check_matrix(a)
    rows = coordinatewise_sketch_size(a.shape[1], epsilon, delta)
    if sketch == "pooled":
        rows = 1 << (rows - 1).bit_length()
    if rows >= a.shape[0]:
        raise ValueError(
            f"epsilon is {epsilon}; it takes a sketch of {rows} rows, and a has only {a.shape[0]}: allow a larger "
            "error, or solve exactly, with lstsq"
        )
    return lstsq(a, b, key, method="sketch_and_solve", sketch=sketch, sketch_size=rows)


def coordinatewise_ratio(a: jax.Array, b: jax.Array, x: jax.Array, exact: jax.Array | None = None) -> jax.Array:
    """`sqrt(d) ||x - x*||_inf / (||a x* - b|| ||pinv(a)||)`, the error that the guarantee bounds by `epsilon`.

    Args:
        a: `(n, d)`, of full column rank.
        b: `(n,)` or `(n, q)`.
        x: `(d,)` or `(d, q)`, the solution to be judged.
        exact: the exact solution; computed by QR if left out, along with `||pinv(a)||`.

    Returns:
        The ratio, a scalar or `(q,)`; infinite where the exact residual is zero and `x` is not exact.
    """
    a, b, x = real_array("a", a), real_array("b", b), real_array("x", x)
    columns = b.reshape(b.shape[0], -1)
    # One unit for all of `a` and one for each column of `b`: the ratio has none.
    unit, right = exponent(a), exponent(columns, 0)[None, :]
    a, columns = shifted(a, -unit), shifted(columns, -right)
    into = lambda x: shifted(x.reshape(a.shape[1], -1), unit - right)
    best, factor = direct.tall(a, columns, None, jnp.zeros_like(a[0]))
    best = best if exact is None else into(real_array("exact", exact))
    miss = jnp.max(jnp.abs(into(x) - best), axis=0)
    residual = jnp.linalg.norm(columns - normal_equations.matmul(a, best), axis=0)
    return (math.sqrt(a.shape[1]) * miss / (residual * jnp.max(factor.inverse))).reshape(b.shape[1:])
