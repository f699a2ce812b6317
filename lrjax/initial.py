"""Starting points: spectral, sign-spectral, small random.

Singular vectors have no derivative where singular values repeat, so the spectral parts are constants to autodiff:
the derivative of a solve is taken with its spectral start held fixed.
"""

import functools

import jax
import jax.numpy as jnp

from lrjax.core.draws import drawn
from lrjax.core.numerics import or_one, safe_divide
from lrjax.core.pytree import program
from lrjax.linalg import guarded
from lrjax.linalg.svd import truncated_svd
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.step_sizes import measured_quantile

# Up to this side length one dense SVD costs less than the products of a Krylov method.
DENSE_UP_TO = 128


def column_mask(max_rank: int, rank: jax.Array | int | None, dtype) -> jax.Array | None:
    """`(max_rank,)` ones for the columns in use, or `None` when `rank` is `None` and all are."""
    return None if rank is None else (jnp.arange(max_rank) < rank).astype(dtype)


def keep_columns(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`x` with the columns outside the mask set to zero."""
    return x if mask is None else x * mask[None, :]


def adjoint_svd(problem: Problem, z: jax.Array, rank: int, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Top `rank` singular triples of `A*(z)`: dense if the matrix is small, else by block Krylov products."""
    op, (n1, n2) = problem.operator, problem.shape
    if min(n1, n2) <= max(DENSE_UP_TO, 2 * rank):
        u, s, vt = guarded.svd(op.adjoint(z))
        return u[:, :rank], s[:rank], vt.T[:, :rank]
    return truncated_svd(
        lambda v: op.adjoint_matmul(z, v),
        lambda u: op.adjoint_rmatmul(z, u),
        (n1, n2),
        rank,
        key,
        dtype=z.dtype,
        data=z,
    )


@program("symmetric", "probes")
def gain(problem: Problem, key: jax.Array, *, symmetric: bool, probes: int = 4) -> jax.Array:
    """Mean-square gain `E ||A(X)||_w^2 / ||X||_F^2` over random rank-one sign matrices.

    One for `Identity`, the (weighted) fraction observed for entries, `m` for a standard Gaussian ensemble: the
    constant that a gradient must be divided by to look like that of the population problem.
    """
    n1, n2 = problem.shape
    if problem.operator.entrywise:
        # Every sign matrix has the same energy in every entry: nothing to draw. A unit, so a constant to autodiff.
        return jax.lax.stop_gradient(problem.total_weight() / (float(n1) * n2))
    signs = drawn(jax.random.rademacher, key, (probes, n1 if symmetric else n1 + n2, 1), problem.y.dtype)
    left, right = (signs, signs) if symmetric else (signs[:, :n1], signs[:, n1:])

    def energy(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        image = problem.operator.forward(*pair)
        return jnp.sum(problem.weighted(image * image))

    mean = jnp.mean(jax.lax.map(energy, (left, right))) / (float(n1) * n2)
    return jax.lax.stop_gradient(or_one(mean))


@program("max_rank", "symmetric", "trim")
def spectral(
    problem: Problem,
    max_rank: int,
    key: jax.Array,
    *,
    rank: jax.Array | int | None = None,
    symmetric: bool = False,
    trim: bool = False,
) -> Factors:
    """Leading singular part of `A*(w y)`, scaled to fit `y` best, as balanced factors.

    Args:
        problem: what was measured.
        max_rank: columns of the factors.
        key: random key of the Krylov block.
        rank: columns in use (traced), or `None` for all.
        symmetric: take the positive semidefinite part of the symmetric part and return `left == right`.
        trim: set rows and columns with more than twice the mean number of measurements to zero first (Keshavan,
            Montanari and Oh 2010); only where measurements are entries.

    Cost: one dense SVD for small matrices, else ten block products with the adjoint.
    """
    z = problem.weighted(problem.observed())
    if trim:
        z = z * _light_entries(problem)
    mask = column_mask(max_rank, rank, z.dtype)
    if symmetric:
        left = right = _positive_part(problem, z, max_rank, key)
    else:
        u, s, v = adjoint_svd(problem, z, max_rank, key)
        root = jnp.sqrt(s)[None, :]
        left, right = u * root, v * root
    start = Factors(keep_columns(left, mask), keep_columns(right, mask))
    image = problem.operator.forward(start.left, start.right)
    fit = jnp.sum(problem.weighted(image * problem.observed()))
    energy = jnp.sum(problem.weighted(image * image))
    # The best multiple corrects for gain and for the sampling rate, whatever the operator's normalisation.
    scale = jnp.sqrt(jnp.where((fit > 0) & (energy > 0), safe_divide(fit, energy), 1))
    return jax.lax.stop_gradient(Factors(start.left * scale, start.right * scale))


def orthonormal(factor: jax.Array, mask: jax.Array | None) -> jax.Array:
    """An orthonormal basis of the columns in use, zero elsewhere."""
    if mask is not None:
        # Unused columns are zero and would make QR singular; any independent columns will do.
        filler = drawn(jax.random.normal, jax.random.key(0), factor.shape, factor.dtype)
        factor = jnp.where(mask[None, :] > 0, factor, filler)
    return keep_columns(guarded.qr(factor)[0], mask)


def _light_entries(problem: Problem) -> jax.Array:
    """Zero for entries in rows or columns with more than twice the mean weight, one elsewhere."""
    op, dtype = problem.operator, problem.y.dtype
    weights = problem.weighted(jnp.ones_like(problem.y))
    n1, n2 = problem.shape
    per_row = op.adjoint_matmul(weights, jnp.ones((n2, 1), dtype))[:, 0]
    per_col = op.adjoint_rmatmul(weights, jnp.ones((n1, 1), dtype))[:, 0]
    light_row = (per_row <= 2 * jnp.mean(per_row)).astype(dtype)
    light_col = (per_col <= 2 * jnp.mean(per_col)).astype(dtype)
    return op.forward(light_row[:, None], light_col[:, None])


def _positive_part(problem: Problem, z: jax.Array, max_rank: int, key: jax.Array) -> jax.Array:
    """`B` with `B B^T` the best positive semidefinite rank-`max_rank` approximation of sym(A*(z))."""
    values, vectors = symmetric_eigs(problem, z, max_rank, key)
    return vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :]


def symmetric_eigs(problem: Problem, z: jax.Array, max_rank: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Top `max_rank` eigenpairs of `(A*(z) + A*(z)^T) / 2`, largest first."""
    op, n = problem.operator, problem.shape[0]
    if n <= max(DENSE_UP_TO, 2 * max_rank):
        c = op.adjoint(z)
        values, vectors = guarded.eigh((c + c.T) / 2)
        return values[::-1][:max_rank], vectors[:, ::-1][:, :max_rank]
    apply = lambda v: (op.adjoint_matmul(z, v) + op.adjoint_rmatmul(z, v)) / 2
    # Singular vectors span the eigenvectors of both signs; a Rayleigh quotient tells them apart.
    u, _, _ = truncated_svd(apply, apply, (n, n), min(2 * max_rank, n), key, dtype=z.dtype, data=z)
    values, rotation = guarded.eigh(jnp.matmul(u.T, apply(u), precision="highest"))
    vectors = jnp.matmul(u, rotation, precision="highest")
    return values[::-1][:max_rank], vectors[:, ::-1][:, :max_rank]


def noise_edge(problem: Problem, z: jax.Array, key: jax.Array, *, symmetric: bool) -> jax.Array:
    """Spectral norm of `A*(z)` with the signs of `z` drawn at random: where the noise part of its spectrum ends.

    Random signs destroy the signal and keep everything else, so this needs no model of the operator.
    """
    key_signs, key_svd = jax.random.split(key)
    noise = z * jax.random.rademacher(key_signs, z.shape, z.dtype)
    if symmetric:
        values, _ = symmetric_eigs(problem, noise, 1, key_svd)
        return jnp.abs(values[0])
    return adjoint_svd(problem, noise, 1, key_svd)[1][0]


@program("max_rank", "symmetric")
def sign_spectral(
    problem: Problem,
    max_rank: int,
    key: jax.Array,
    *,
    symmetric: bool,
    rank: jax.Array | int | None = None,
) -> tuple[Factors, jax.Array, jax.Array]:
    """Factors of the sign-spectral matrix `C = A*(w sign(y)) / sum(w)` (core of robust small starts).

    The sign of `y`, not `y`, enters: one huge outlier moves `C` by `O(1/m)`.

    Returns:
        Balanced factors of the rank-`max_rank` (positive semidefinite, if `symmetric`) part of `C`, the
        `max_rank` eigenvalues (singular values if not symmetric), largest first, and the noise edge.

    Source: Ma and Fattahi, arXiv 2202.08788, the initialization of the subgradient method.
    """
    z = problem.weighted(jnp.sign(problem.observed())) / problem.total_weight()
    mask = column_mask(max_rank, rank, z.dtype)
    edge = noise_edge(problem, z, jax.random.fold_in(key, 1), symmetric=symmetric)
    if symmetric:
        values, vectors = symmetric_eigs(problem, z, max_rank, key)
        left = right = keep_columns(vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :], mask)
    else:
        u, values, v = adjoint_svd(problem, z, max_rank, key)
        root = jnp.sqrt(values)[None, :]
        left, right = keep_columns(u * root, mask), keep_columns(v * root, mask)
    return jax.lax.stop_gradient((Factors(left, right), values, edge))


@program("max_rank", "symmetric")
def truncated_spectral(
    problem: Problem,
    max_rank: int,
    key: jax.Array,
    *,
    symmetric: bool,
    rank: jax.Array | int | None = None,
    keep: float = 5.0,
) -> Factors:
    """The spectral start from the measurements that are not conspicuously large, rescaled by quantiles.

    Measurements above `keep` times the 35 % quantile of `|y|` are left out; the scale is set so that the same quantile
    of `|A(X)|` matches. Outliers below that size still count, unlike in `sign_spectral` with its blunter signs.

    Source: Tong, Ma and Chi, arXiv 2010.13364, who drop a known fraction.
    """
    y, weights = problem.observed(), problem.effective_weights()
    typical = measured_quantile(jnp.abs(y), weights, 0.35)
    small = jnp.where(jnp.abs(y) <= keep * typical, problem.weighted(jnp.ones_like(y)), 0)
    trimmed = Problem(problem.operator, jnp.where(small > 0, y, 0), small, problem.loss)
    start = spectral(trimmed, max_rank, key, rank=rank, symmetric=symmetric)
    image = jnp.abs(problem.operator.forward(start.left, start.right))
    reached = measured_quantile(image, weights, 0.35)
    scale = jnp.sqrt(safe_divide(typical, reached))
    scale = jnp.where(reached > 0, scale, 1)
    return jax.lax.stop_gradient(Factors(start.left * scale, start.right * scale))


def small_random(
    key: jax.Array,
    shape: tuple[int, int],
    max_rank: int,
    *,
    scale: float | jax.Array,
    imbalance: float | jax.Array = 1.0,
    symmetric: bool = False,
    rank: jax.Array | int | None = None,
    dtype,
) -> Factors:
    """Independent `N(0, scale^2 / n)` entries; the right factor is drawn at `imbalance * scale`."""
    return _small_random(key, scale, imbalance, rank, tuple(shape), max_rank, symmetric, dtype)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _small_random(key, scale, imbalance, rank, shape, max_rank, symmetric, dtype):
    key_left, key_right = jax.random.split(key)
    mask = column_mask(max_rank, rank, dtype)
    n1, n2 = shape
    left = (
        jnp.asarray(scale, dtype)
        / jnp.sqrt(jnp.asarray(n1, dtype))
        * drawn(jax.random.normal, key_left, (n1, max_rank), dtype)
    )
    left = keep_columns(left, mask)
    if symmetric:
        return Factors(left, left)
    right = drawn(jax.random.normal, key_right, (n2, max_rank), dtype)
    right = right * jnp.asarray(scale * imbalance, dtype) / jnp.sqrt(jnp.asarray(n2, dtype))
    return Factors(left, keep_columns(right, mask))
