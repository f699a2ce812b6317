"""Low-rank approximation of a matrix that is known: the best under two metrics, and a randomized SVD."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import (
    check_count,
    check_finite,
    check_key,
    check_real,
    host_array,
    host_value,
    real_array,
    single_or_double,
)
from lrjax.core.numerics import matmul, or_one, safe_reciprocal, safe_sqrt
from lrjax.core.units import exponent, shifted
from lrjax.linalg import guarded
from lrjax.linalg.svd import attach_derivative, truncated_svd
from lrjax.problems.factors import Factors
from lrjax.sketching.regression import inputs

OVERSAMPLE = 10
POWER_STEPS = 2


def rsvd(
    a: Any, rank: int, *, key: jax.Array, oversample: int = OVERSAMPLE, power_steps: int = POWER_STEPS
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Leading singular triples from a few products with a random block, orthonormalised between any two of them.

    The blocks are kept side by side, not only the last (a block Krylov space instead of subspace iteration), as many as
    fit: as many products, never less accurate. The derivative is that of the exact triples, implicit, first order.
    Where two leading values are equal only the product `u diag(s) v^T` has one, and that is right; so it is for the
    values as long as they differ from each other and from those left out.

    Args:
        a: `(n1, n2)` array, float32 or float64; a sparse matrix of SciPy or `jax.experimental.sparse`; or a pytree with
            `shape`, `apply(x)` for `(n2, b)` and `apply_adjoint(z)` for `(n1, b)`: a sketch of this library, or a
            matrix that is known by its products only.
        rank: triples wanted, at most `min(n1, n2)`.
        key: random key of the first block.
        oversample: columns of the block beyond `rank`.
        power_steps: passes `a a^T` over the block; more for slowly decaying spectra.

    Returns:
        `u (n1, rank)`, `s (rank,)` in descending order, `v (n2, rank)`, in the dtype of `a`.

    Raises:
        ValueError: not a matrix, or not finite, float32 or float64; a rank, an oversampling or a number of steps out of
            range; not one key.

    Cost: `power_steps + 1` products of `a` and at most `2 power_steps + 1` of `a^T` with blocks of `b = rank +
    oversample` columns, and `O((n1 + n2) b^2)` times `(power_steps + 1)^2` for the bases. Do not use it for more than
    about a quarter of all triples, where a dense SVD is faster, nor for small singular values to full relative
    accuracy: those behind a flat part of the spectrum are found to the accuracy of `s[rank]` only.

    Source: Halko, Martinsson and Tropp (2011), algorithm 4.4; Musco and Musco (2015) for keeping all blocks.

    Examples:
        >>> import jax, lrjax as lr
        >>> a = jax.numpy.outer(jax.numpy.arange(50.0), jax.numpy.ones(40))
        >>> u, s, v = lr.rsvd(a, 2, key=jax.random.key(0))
        >>> u.shape, bool(abs(s[0] - jax.numpy.linalg.norm(a)) < 1e-2), bool(s[1] < 1e-2)
        ((50, 2), True, True)
    """
    check_key(key)
    a = inputs.sparse_operator("a", a)
    products, dtype = _operator_products, getattr(a, "dtype", None)
    if not hasattr(a, "apply_adjoint"):
        a = _check_matrix("a", a)
        products, dtype = _array_products, a.dtype
    n1, n2 = a.shape
    rank = _check_rank(rank, (n1, n2))
    oversample = check_count("oversample", oversample, minimum=0)
    power_steps = check_count("power_steps", power_steps, minimum=0)
    if dtype is None:
        leaves = [leaf.dtype for leaf in jax.tree.leaves(a) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
    return _leading(products, a, (n1, n2), rank, key, dtype, oversample, power_steps, turn=True)


def low_rank(
    w: jax.Array,
    rank: int,
    *,
    row_metric: jax.Array | None = None,
    col_metric: jax.Array | None = None,
    key: jax.Array | None = None,
    weights: None = None,
) -> Factors:
    """The matrix `X` of at most the given rank with the least `tr(A (w - X) C (w - X)^T)`.

    With `A = L^T L` and `C = R R^T` that is `||L (w - X) R||_F^2`, and the least value is the sum of the squares of
    the singular values of `L w R` behind the first `rank`. Both metrics are second moments, never square roots of
    them: with inputs `x` of a linear map as rows, `C = x.T @ x / n` makes `X` best on those inputs; a vector of row
    importances `A` makes it best for the rows that matter.

    Metrics may be singular. The best `X` is not unique then. With one metric it is a projection of `w` itself,
    `U U^T w` for `C` and `w V V^T` for `A`, free of any inverse: it acts like `w` where the metric sees nothing. With
    two, one of them is inverted where it is above rounding level, a vector rather than a matrix, else the better
    conditioned one, and `X` vanishes in directions that this metric does not see. Add a multiple of the identity to a
    metric that was estimated from few samples.

    Differentiable in `w`, and in metrics that are not singular, as long as the singular values kept are positive and
    above those dropped; repeated values do not matter otherwise.

    Args:
        w: `(n1, n2)`, float32 or float64.
        rank: at most `min(n1, n2)`.
        row_metric: `A`, a vector `(n1,)` for a diagonal one or `(n1, n1)`, symmetric positive semidefinite.
        col_metric: `C`, `(n2,)` or `(n2, n2)`.
        key: use `rsvd` with this key in place of a dense SVD.
        weights: not taken. Weights of single entries have no closed form; what solves them stands below.

    Returns:
        `Factors` with `rank` columns, not balanced.

    Raises:
        ValueError: shapes or a rank that do not fit, values that are not finite, float32 or float64, a metric that is
            not symmetric, or negative weights. An indefinite matrix is not noticed: its negative part counts as zero.

    Cost: a dense SVD, `O(n1 n2 min(n1, n2))`, or that of `rsvd` with `key`, plus `O(n^3)` for the square root of a
    full metric. Weights of single entries are another problem, without closed form: a `Problem` on the
    operator `Identity` with `weights`.

    Source: Eckart and Young in two metrics; see Golub, Hoffman and Stewart (1987).

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> w = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> lr.low_rank(w, 1).dense().diagonal().tolist()[1:]
        [0.0, 0.0]
        >>> x = lr.low_rank(w, 1, col_metric=jnp.array([1.0, 1.0, 100.0]))
        >>> [round(float(value), 3) for value in x.dense().diagonal()]
        [0.0, 0.0, 1.0]
    """
    if weights is not None:
        raise ValueError(
            "weights of single entries have no closed form: give row_metric and col_metric where they are products of "
            "row and column weights; else solve Problem(operators.Identity(matrix_shape=w.shape), w.ravel(), "
            "weights.ravel()) with AlternatingMinimization"
        )
    w = _check_matrix("w", w)
    n1, n2 = w.shape
    rank = _check_rank(rank, (n1, n2))
    if key is not None:
        check_key(key)
    row_metric = _check_metric("row_metric", row_metric, n1, w.dtype)
    col_metric = _check_metric("col_metric", col_metric, n2, w.dtype)
    return _low_rank(w, row_metric, col_metric, key, rank=rank)


@partial(jax.jit, static_argnames="rank")
def _low_rank(w, row_metric, col_metric, key, *, rank):
    n1, n2 = w.shape
    left, left_inverse, left_condition = _roots(row_metric)
    right, right_inverse, right_condition = _roots(col_metric)
    scaled = _times(right, _times(left, w).T).T
    # Only the subspaces enter: the derivative is asked for outside them, so it exists where values repeat.
    if key is None:
        u, s, vt = jax.lax.stop_gradient(guarded.svd(scaled))
        u, _, v = attach_derivative(_array_products, rank, scaled, (u[:, :rank], s[:rank], vt.T[:, :rank]), False)
    else:
        steps = POWER_STEPS
        u, _, v = _leading(_array_products, scaled, (n1, n2), rank, key, w.dtype, OVERSAMPLE, steps, turn=False)
    # Without metrics too: unlike `u diag(s) v^T` a projection of `w` has a derivative where values repeat.
    by_left = lambda: (_times(left_inverse, u), matmul(w.T, _times(left, u)))
    by_right = lambda: (matmul(w, _times(right, v)), _times(right_inverse, v))
    if row_metric is None:
        one, two = by_left()
    elif col_metric is None or col_metric.ndim < row_metric.ndim:
        one, two = by_right()
    elif col_metric.ndim > row_metric.ndim:
        one, two = by_left()
    else:
        pick = left_condition <= right_condition
        one, two = (jnp.where(pick, a, b) for a, b in zip(by_left(), by_right(), strict=True))
    return Factors(one, two)


def _array_products(a: jax.Array):
    return (lambda v: matmul(a, v)), (lambda u: matmul(a.T, u))


def _operator_products(a: Any):
    return a.apply, a.apply_adjoint


@partial(jax.jit, static_argnames=("products", "shape", "rank", "dtype", "oversample", "power_steps", "turn"))
def _leading(products, a, shape, rank, key, dtype, oversample, power_steps, turn):
    # Constants to autodiff: `attach_derivative` gives them that of exact triples.
    apply, apply_transpose = products(jax.lax.stop_gradient(a))
    spare = min(oversample, min(shape) - rank)
    data = [x for x in jax.tree.leaves(a) if x.dtype == dtype]
    triples = truncated_svd(
        apply, apply_transpose, shape, rank, key, dtype=dtype, data=data, oversample=spare, depth=power_steps
    )
    return attach_derivative(products, rank, a, jax.lax.stop_gradient(triples), turn)


def _times(root: jax.Array | None, a: jax.Array) -> jax.Array:
    """The symmetric square root of a metric times `a`, `(n, q)`."""
    if root is None:
        return a
    return root[:, None] * a if root.ndim == 1 else matmul(root, a)


def _roots(metric: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None, jax.Array | float]:
    """The symmetric square root, its pseudo-inverse, and the condition number of the root."""
    if metric is None:
        return None, None, 1.0
    if metric.ndim == 2:
        return _matrix_roots((metric + metric.T) / 2)
    root = safe_sqrt(metric)
    inverse = safe_reciprocal(root)
    return root, inverse, _condition(root, inverse)


def _condition(root: jax.Array, inverse: jax.Array) -> jax.Array:
    # A constant to autodiff: only which of two forms of one matrix is taken depends on it.
    root, inverse = jax.lax.stop_gradient((root, inverse))
    return jnp.where(jnp.all(inverse > 0), jnp.max(root) * jnp.max(inverse), jnp.inf)


def _root_eigen(metric: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Square roots of the eigenvalues, their reciprocals above rounding level, and the eigenvectors.

    Rounding level is one epsilon of the largest. A cut at `n` of them drops directions that hold part of the answer;
    noise that is kept does no harm, for what is multiplied by its inverse was multiplied by it before.
    """
    values, vectors = guarded.eigh(metric)
    root = jnp.sqrt(jnp.maximum(values, 0))
    kept = values > jnp.finfo(metric.dtype).eps * values[-1]
    return root, safe_reciprocal(root, kept), vectors


@jax.custom_jvp
def _matrix_roots(metric: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    root, inverse, vectors = _root_eigen(metric)
    spread = lambda d: matmul(vectors * d[None], vectors.T)
    return spread(root), spread(inverse), _condition(root, inverse)


@_matrix_roots.defjvp
def _matrix_roots_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    """`S dS + dS S = dC` has a solution where eigenvalues repeat; the derivative of eigenvectors has none."""
    (metric,), (change,) = primals, tangents
    root, inverse, vectors = _root_eigen(metric)
    spread = lambda d: matmul(vectors * d[None], vectors.T)
    pairs = root[:, None] + root[None, :]
    inside = matmul(vectors.T, matmul(change, vectors))
    inside = jnp.where(pairs > 0, inside, 0) / or_one(pairs)
    back = lambda m: matmul(vectors, matmul(m, vectors.T))
    condition = _condition(root, inverse)
    moved = back(inside), back(-inverse[:, None] * inside * inverse[None, :]), jnp.zeros_like(condition)
    return (spread(root), spread(inverse), condition), moved


def _check_matrix(name: str, value: Any) -> jax.Array:
    value = single_or_double(name, real_array(name, value))
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{name} must have shape (n1, n2), neither zero; got {value.shape}")
    check_finite(name, value)
    return value


def _check_rank(rank: Any, shape: tuple[int, int]) -> int:
    if (count := check_count("rank", rank)) > min(shape):
        raise ValueError(f"rank must be at most {min(shape)}, the smaller side of {shape}; got {rank}")
    return count


def _check_metric(name: str, value: Any, n: int, dtype: Any) -> jax.Array | None:
    """The metric in units of its own, which do not matter."""
    if value is None:
        return None
    value = host_array(name, value)
    if jnp.shape(value) not in ((n,), (n, n)):
        raise ValueError(f"{name} must have shape ({n},) or ({n}, {n}); got {jnp.shape(value)}")
    check_real(name, value)
    check_finite(name, value)
    host = host_value(value)
    if host is not None and host.ndim == 1 and (host < 0).any():
        raise ValueError(f"{name} must not be negative; its least value is {host.min()}")
    if host is not None and host.ndim == 2:
        skew = abs(host - host.T).max()
        if skew > 1e-3 * abs(host).max():
            raise ValueError(f"{name} must be symmetric; it differs from its transpose by up to {skew}")
    if isinstance(value, np.ndarray):  # on the host, in its own dtype, whose range may be the wider one
        value = np.ldexp(value, -int(np.frexp(np.abs(value).max())[1]))
    value = jnp.asarray(value, dtype)
    return shifted(value, -exponent(value))
