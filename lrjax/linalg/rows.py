"""Many small symmetric positive definite systems at once: the inner solve of alternating minimization."""

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.factors import matmul

# Up to this size an unrolled elimination with the batch axis last beats a batched LAPACK call three- to fourfold
# on a CPU (measured: 15 against 3.8 million solves a second at k = 5, equal at k = 10) and compiles in 0.2 s.
UNROLL_UP_TO = 8


def solve_rows(gram: jax.Array, rhs: jax.Array) -> jax.Array:
    """Solves `gram[i] @ x[i] = rhs[i]` for symmetric positive definite `gram[i]` by Cholesky.

    Args:
        gram: `(n, k, k)`.
        rhs: `(n, k)`.

    Returns:
        `(n, k)`. Systems that are not positive definite give NaN: regularise first (`guard_ridge`).
    """
    if gram.shape[-1] <= UNROLL_UP_TO:
        return _eliminate(jnp.moveaxis(gram, 0, -1), rhs.T).T
    factor = jnp.linalg.cholesky(gram)
    return jax.scipy.linalg.cho_solve((factor, True), rhs[..., None])[..., 0]


def _eliminate(gram: jax.Array, rhs: jax.Array) -> jax.Array:
    """Right-looking Cholesky with the batch axis last: `gram` is `(k, k, n)`, `rhs` `(k, n)`."""
    columns = []
    while gram.shape[0]:
        inverse_pivot = 1 / jnp.sqrt(gram[:1, 0])
        column, y = gram[1:, 0] * inverse_pivot, rhs[:1] * inverse_pivot
        columns.append((column, y, inverse_pivot))
        gram = gram[1:, 1:] - column[:, None] * column[None, :]
        rhs = rhs[1:] - column * y
    solution = rhs
    for column, y, inverse_pivot in reversed(columns):
        x = (y - jnp.sum(column * solution, axis=0, keepdims=True)) * inverse_pivot
        solution = jnp.concatenate([x, solution])
    return solution


def guard_ridge(gram: jax.Array, count: jax.Array, ridge: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`gram + ridge I`, made safely positive definite.

    Rows with fewer measurements than unknowns are under-determined, and fitting them exactly is what makes
    unregularised alternating minimization blow up: they get a tenth of their mean diagonal, every other row a
    few epsilons of it. Rows without any measurement get the identity and so come out as zero.

    Args:
        gram: `(n, k, k)`.
        count: `(n,)` number of measurements of each row with positive weight.
        ridge: scalar, added as it is.
        mask: `(k,)` ones for the columns in use, or `None`; unused columns get a one on the diagonal.
    """
    k = gram.shape[-1]
    diagonal = jnp.trace(gram, axis1=-2, axis2=-1)
    in_use = jnp.asarray(k, gram.dtype) if mask is None else jnp.sum(mask)
    # 4 k eps: the rounding error of the Gram matrix itself, so the solution moves by no more than it is known to.
    relative = jnp.where(count.astype(gram.dtype) < in_use, 0.1, 4 * k * jnp.finfo(gram.dtype).eps).astype(gram.dtype)
    shift = ridge + relative * diagonal / in_use
    shift = jnp.where(diagonal + ridge > 0, shift, jnp.ones_like(shift))
    eye = jnp.eye(k, dtype=gram.dtype)[None]
    guarded = gram + shift[:, None, None] * eye
    return guarded if mask is None else guarded + jnp.diag(1 - mask)[None]


def masked_gram(weights: jax.Array, factor: jax.Array) -> jax.Array:
    """`G[j] = sum_i weights[i, j] factor[i] factor[i]^T` for dense weights, as one matrix product.

    Args:
        weights: `(n, q)`.
        factor: `(n, k)`.

    Returns:
        `(q, k, k)`. Cost `n q k (k + 1)` flops at matrix-product speed.
    """
    k = factor.shape[1]
    rows, cols = np.triu_indices(k)
    place = np.zeros((k, k), np.int32)
    place[rows, cols] = place[cols, rows] = np.arange(len(rows), dtype=np.int32)
    upper = matmul(weights.T, factor[:, rows] * factor[:, cols])
    return upper[:, place]
