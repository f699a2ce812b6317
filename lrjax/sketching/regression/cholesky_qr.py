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

from lrjax.core.numerics import matmul, safe_divide
from lrjax.linalg import guarded
from lrjax.sketching.regression import normal_equations
from lrjax.sketching.regression.normal_equations import Factor, Scaled

# `B` counts as well conditioned if the condition number of `B^T B` is below this over sqrt(eps): the refinement step
# squares the error that is left, and brings it to rounding level.
ENOUGH = 0.1
# Up to this condition number of `B^T B` the factor that made `B` is as good as the next one, and no SVD is spent on it.
CLOSE = 4.0
MAX_ROUNDS = 5
# Rows in a block, as numbers of `a` and at least so many: what XLA multiplies fastest on a CPU.
_BLOCK_ENTRIES, _BLOCK_ROWS = 2**17, 1024
# Up to so many columns the plain normal matrix is formed from rows as they lie, in larger blocks.
_NARROW, _NARROW_ENTRIES = 64, 2**19
# Rows per column of `a` that are looked at to guess its condition number.
_SAMPLE_ROWS = 4


class Round(NamedTuple):
    """What a round leaves.

    Attributes:
        factor: the factor that made `B`.
        vectors: eigenvectors of `B^T B`.
        values: its eigenvalues, those at rounding level raised to it.
        better: the factor to go on with.
        x: the solution, before refinement.
        condition: condition number of `B^T B`.
        rounds: rounds done.
    """

    factor: Factor
    vectors: jax.Array
    values: jax.Array
    better: Factor
    x: jax.Array
    condition: jax.Array
    rounds: jax.Array

    def solve(self, g: jax.Array) -> jax.Array:
        """`H^-1 g`."""
        inner = matmul(self.vectors.T, self.factor.root_adjoint(g)) / self.values[:, None]
        return self.factor.root(matmul(self.vectors, inner))


def solve(
    a: Scaled,
    b: jax.Array,
    weights: jax.Array | None,
    ridge: jax.Array,
    start: Callable[[], Factor] | None,
    guess: bool = False,
    max_rounds: int = MAX_ROUNDS,
) -> tuple[jax.Array, Factor, jax.Array, jax.Array, jax.Array]:
    """Solution `(d, q)`, factor, whether it worked, rounds, and whether a sketch was used.

    `start()` is the first factor, from a sketch; `None` starts from the normal matrix, and goes on from it. With
    `guess` a few rows of `a` decide: the sketch is taken if one round from the normal matrix will not do for them. A
    wrong guess costs a round or two, not accuracy.
    """
    limit = enough(a.dtype)
    sketched = jnp.zeros((), bool)
    again = lambda factor, rounds: finish(factor, *gram(a, b, weights, factor), ridge, rounds)
    plain = lambda: finish(None, *gram(a, b, weights, None), ridge, jnp.int32(0))
    if start is None:
        first = plain()
    elif guess:
        sketched = wants_sketch(a, weights, ridge)
        first = jax.lax.cond(sketched, lambda: _before(start(), b), plain)
    else:
        first, sketched = _before(start(), b), ~sketched
    last = jax.lax.while_loop(
        lambda r: (r.condition > limit) & (r.rounds < max_rounds), lambda r: again(r.better, r.rounds), first
    )
    # One step of refinement: it brings the forward error from some ten times that of a QR to below it.
    x = last.x + last.solve(normal_equations.downhill(a, b, weights, ridge, last.x))
    return x, last.better, last.condition <= limit, last.rounds, sketched


def _before(start: Factor, b: jax.Array) -> Round:
    """No round yet, for the loop to do: a first one outside of it would be compiled again."""
    d, none = start.basis.shape[1], jnp.zeros((), start.basis.dtype)
    return Round(
        factor=start,
        vectors=jnp.zeros((d, d), none.dtype),
        values=jnp.zeros(d, none.dtype),
        better=start,
        x=jnp.zeros((d, b.shape[1]), none.dtype),
        condition=none + jnp.inf,
        rounds=jnp.int32(0),
    )


def enough(dtype: Any) -> float:
    """The condition number of `B^T B` up to which its equations are solved as they are."""
    return ENOUGH * float(jnp.finfo(dtype).eps) ** -0.5


def wants_sketch(a: Scaled, weights: jax.Array | None, ridge: jax.Array) -> jax.Array:
    """Whether one round from the normal matrix will not do for a few rows of `a`."""
    return condition_of_sample(a, weights, ridge) > enough(a.dtype)


def condition_of_sample(a: Scaled, weights: jax.Array | None, ridge: jax.Array) -> jax.Array:
    """Condition number of the normal matrix of evenly spaced rows of `a`."""
    n, d = a.shape
    step = max(1, n // (_SAMPLE_ROWS * d))
    rows = a.matrix[::step] * a.columns[None, :]
    weighted = normal_equations.weigh(None if weights is None else weights[::step], rows)
    square = matmul(weighted.T, rows) * step + jnp.diag(ridge)
    values = guarded.eigh(square)[0]
    # Zero, all of it or to rounding, counts as well conditioned or not at all, as in `finish`.
    condition = jnp.where(values[0] > 0, safe_divide(values[-1], values[0]), jnp.inf)
    return jnp.where(values[-1] > 0, condition, 1)


def finish(factor: Factor | None, gram: jax.Array, moment: jax.Array, ridge: jax.Array, rounds: jax.Array) -> Round:
    """A round, from `gram = B^T B` and `moment = B^T sqrt(W) b`; without a factor `B` is `a` itself."""
    one = jnp.ones_like(gram[0])
    used = Factor(basis=jnp.diag(one), sizes=one, inverse=one, norm=one[0]) if factor is None else factor
    square = jnp.sum(used.sizes**2 * jnp.diagonal(gram))
    ridged = jnp.sqrt(ridge)[None, :] * used.inverse[:, None] * used.basis
    # Directions that are left out have zero rows: one on the diagonal keeps them out of the condition number.
    values, vectors = guarded.eigh(gram + matmul(ridged, ridged.T) + jnp.diag((used.inverse == 0).astype(gram.dtype)))
    top = values[-1]
    condition = jnp.where(values[0] > 0, safe_divide(top, values[0]), jnp.inf)
    condition = jnp.where(top > 0, condition, 1)
    # Eigenvalues below this are rounding of the sums in `gram`.
    values = jnp.maximum(values, gram.shape[0] * jnp.finfo(gram.dtype).eps * top)
    values = jnp.where(top > 0, values, 1)
    if factor is None:
        better = normal_equations.with_inverse(vectors.T, jnp.where(top > 0, jnp.sqrt(values), 0), square)
    else:
        sizes = jnp.where(used.inverse > 0, used.sizes, 0)
        product = lambda: jnp.sqrt(values)[:, None] * matmul(vectors.T, sizes[:, None] * used.basis)
        better = jax.lax.cond(condition > CLOSE, lambda: normal_equations.factor_of(product(), square), lambda: factor)
    new = Round(used, vectors, values, better, moment, condition, rounds + 1)
    return new._replace(x=used.root(matmul(vectors, matmul(vectors.T, moment) / values[:, None])))


def gram(a: Scaled, b: jax.Array, weights: jax.Array | None, factor: Factor | None) -> tuple[jax.Array, jax.Array]:
    """`B^T B` and `B^T sqrt(W) b`, over blocks of rows that stay in cache."""
    n, d = a.shape
    lying = factor is None and d <= _NARROW
    size = min(n, _NARROW_ENTRIES // d if lying else max(_BLOCK_ROWS, _BLOCK_ENTRIES // d))
    last = (n - 1) // size

    def products(rows: jax.Array, target: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        if lying:
            weighted = rows if weight is None else rows * weight[:, None]
            moment = matmul(weighted.T, target) if target.shape[1] > 1 else jnp.sum(weighted * target, axis=0)[:, None]
            return matmul(weighted.T, rows), moment
        # B transposed: both products then run along rows, which takes two thirds of the time on a CPU.
        if factor is None:
            flat = jax.lax.optimization_barrier(rows.T)
        else:  # in this order: the rows of B^T are scaled after their rounding errors were made
            flat = matmul(factor.basis, rows.T) * factor.inverse[:, None]
        weighted = flat if weight is None else flat * weight
        # XLA on a CPU takes three times as long for a product with one vector as a dot.
        moment = matmul(weighted, target) if target.shape[1] > 1 else jnp.sum(weighted * target.T, axis=1)[:, None]
        return matmul(weighted, flat.T), moment

    def step(total: tuple[jax.Array, jax.Array], index: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        cut = lambda value: jax.lax.dynamic_slice_in_dim(value, index * size, size)
        more = products(scaled(cut(a.matrix)), cut(b), None if weights is None else cut(weights))
        return (total[0] + more[0], total[1] + more[1]), None

    # Blocks are copied in any case; the units of the columns come with that.
    scaled = lambda rows: rows * a.columns[None, :]
    begin = last * size
    total = products(scaled(a.matrix[begin:]), b[begin:], None if weights is None else weights[begin:])
    return jax.lax.scan(step, total, jnp.arange(last, dtype=jnp.int32))[0]
