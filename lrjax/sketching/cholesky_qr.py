"""Least squares through well-conditioned normal equations: a direct method that only multiplies matrices.

One round: with a factor `H ~ basis^T diag(sizes^2) basis` of the normal matrix, form `B = sqrt(W) a basis^T / sizes`,
block by block and never whole, and `B^T B`. If that is well conditioned its normal equations are as good as a QR of
`a`: rows of `B` carry the backward error of a triangular solve. If not, `B^T B` improves the factor, and the
round is repeated. The first factor is either the scaled normal matrix of `a` itself (then this is shifted Cholesky QR,
Fukaya et al. 2020), or comes from a sketch (randomized Cholesky QR: Fan, Guo and Lin 2021; Higgins et al. 2023).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lrjax.sketching import _normal
from lrjax.sketching._normal import Factor, mul

# `B` counts as well conditioned if the condition number of `B^T B` is below this over sqrt(eps): the refinement step
# squares the error that is left, and brings it to rounding level.
ENOUGH = 0.1
MAX_ROUNDS = 5
# Numbers of `a` in a block of rows.
_BLOCK_ENTRIES = 2**18


class Round(NamedTuple):
    """What a round leaves: the factor, the solution before refinement, the condition of `B^T B`, rounds done."""

    factor: Factor
    x: jax.Array
    condition: jax.Array
    rounds: jax.Array


def solve(
    a: jax.Array,
    b: jax.Array,
    weights: jax.Array | None,
    ridge: jax.Array,
    start: Callable[[], Factor] | None,
    threshold: float | None = None,
    max_rounds: int = MAX_ROUNDS,
) -> tuple[jax.Array, Factor, jax.Array, jax.Array, jax.Array]:
    """Solution `(d, q)`, factor, whether it worked, rounds, and whether a sketch was used.

    `start()` is the first factor, from a sketch; `None` starts from the normal matrix, and goes on from it. With a
    threshold that is done for condition numbers of `a` up to it, and the sketch is taken above.
    """
    limit = enough(a.dtype)
    sketched = jnp.zeros((), bool)
    if start is not None and threshold is None:
        first, sketched = _round(a, b, weights, ridge, start(), jnp.int32(0)), ~sketched
    else:
        first = plain = _plain(a, b, weights, ridge)
        if start is not None and threshold is not None:
            sketched = plain.factor.condition() > threshold
            first = jax.lax.cond(sketched, lambda: _round(a, b, weights, ridge, start(), plain.rounds), lambda: plain)
    last = jax.lax.while_loop(
        lambda r: (r.condition > limit) & (r.rounds < max_rounds),
        lambda r: _round(a, b, weights, ridge, r.factor, r.rounds),
        first,
    )
    # One step of refinement: it brings the forward error from some ten times that of a QR to below it.
    x = last.x + last.factor.solve(_normal.downhill(a, b, weights, ridge, last.x))
    return x, last.factor, last.condition <= limit, last.rounds, sketched


def enough(dtype: Any) -> float:
    """The condition number of `B^T B` up to which its equations are solved as they are."""
    return ENOUGH * float(jnp.finfo(dtype).eps) ** -0.5


def _plain(a: jax.Array, b: jax.Array, weights: jax.Array | None, ridge: jax.Array) -> Round:
    """Round zero: the normal equations of `a` itself, its columns scaled to norm one afterwards."""
    product, moment = gram(a, b, weights, None)
    eye = jnp.eye(a.shape[1], dtype=a.dtype)
    factor = _normal.with_inverse(eye, jnp.sqrt(jnp.diagonal(product) + ridge))
    scale = factor.inverse
    return finish(factor, scale[:, None] * product * scale[None, :], scale[:, None] * moment, ridge, jnp.int32(0))


def _round(
    a: jax.Array, b: jax.Array, weights: jax.Array | None, ridge: jax.Array, factor: Factor, rounds: jax.Array
) -> Round:
    return finish(factor, *gram(a, b, weights, factor), ridge, rounds)


def finish(factor: Factor, gram: jax.Array, moment: jax.Array, ridge: jax.Array, rounds: jax.Array) -> Round:
    """The solution of `(gram + ridge / sizes^2) y = moment` in the coordinates of `factor`, and the next factor."""
    # Directions that are left out have zero rows: one on the diagonal keeps them out of the condition number.
    gram = gram + jnp.diag(jnp.where(factor.inverse > 0, ridge * factor.inverse**2, 1))
    values, vectors = jnp.linalg.eigh(gram)
    top = values[-1]
    # Eigenvalues below this are rounding of the sums in `gram`.
    floor = gram.shape[0] * jnp.finfo(gram.dtype).eps * top
    condition = jnp.where(values[0] > 0, top / jnp.where(values[0] > 0, values[0], 1), jnp.inf)
    values = jnp.maximum(values, floor)
    x = factor.root(mul(vectors, mul(vectors.T, moment) / values[:, None]))
    sizes = jnp.where(factor.inverse > 0, factor.sizes, 0)
    new = _normal.factor_of(jnp.sqrt(values)[:, None] * mul(vectors.T, sizes[:, None] * factor.basis))
    return Round(new, x, condition, rounds + 1)


def gram(a: jax.Array, b: jax.Array, weights: jax.Array | None, factor: Factor | None) -> tuple[jax.Array, jax.Array]:
    """`B^T B` and `B^T sqrt(W) b`, over blocks of rows that stay in cache."""
    n, d = a.shape
    size = max(1, min(n, _BLOCK_ENTRIES // d))
    last = (n - 1) // size

    def products(rows: jax.Array, target: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, ...]:
        if factor is not None:
            # In this order: the columns of `rows basis^T` are scaled after their rounding errors were made.
            rows = mul(rows, factor.basis.T) * factor.inverse
        weighted = rows if weight is None else weight[:, None] * rows
        half = d // 2 if d >= 128 else 0  # of a symmetric matrix three quarters are enough
        upper = mul(weighted[:, :half].T, rows)
        lower = mul(weighted[:, half:].T, rows[:, half:])
        return upper, lower, mul(weighted.T, target)

    def block(index: jax.Array) -> tuple:
        cut = lambda value: jax.lax.dynamic_slice_in_dim(value, index * size, size)
        return products(cut(a), cut(b), None if weights is None else cut(weights))

    begin = last * size
    total = products(a[begin:], b[begin:], None if weights is None else weights[begin:])
    step = lambda total, index: (jax.tree.map(jnp.add, total, block(index)), None)
    (upper, lower, moment), _ = jax.lax.scan(step, total, jnp.arange(last, dtype=jnp.int32))
    half = upper.shape[0]
    bottom = jnp.concatenate([upper[:, half:].T, lower], axis=1)
    return jnp.concatenate([upper, bottom], axis=0), moment
