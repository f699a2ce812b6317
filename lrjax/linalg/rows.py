"""Many small symmetric positive definite systems at once: the inner solve of alternating minimization."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree

# Size up to which one stage of elimination is as fast as two (on a CPU, 64 systems at a time: 0.5 microseconds a system
# at k = 10 in float64; at k = 20 in float32 2.3 in two stages, against 3.9 by halving the matrix with small products).
ONE_STAGE_UP_TO = 16


def solve_rows(gram: jax.Array, rhs: jax.Array) -> jax.Array:
    """Solves `gram[i] @ x[i] = rhs[i]` for symmetric positive definite `gram[i]`.

    Args:
        gram: `(n, k, k)`.
        rhs: `(n, k)`.

    Returns:
        `(n, k)`. Systems that are not positive definite give NaN or garbage; regularise first (`guard_ridge`).

    Elimination in plain array operations: LAPACK calls inside a mapped block have been seen to hang on a CPU. The
    derivative is that of the solution, not of the steps.
    """
    solve = lambda _, b: eliminate(gram, b[..., None])[..., 0]
    product = lambda x: matmul(gram, x[..., None])[..., 0]
    return jax.lax.custom_linear_solve(product, rhs, solve, symmetric=True)


def eliminate(gram: jax.Array, rhs: jax.Array) -> jax.Array:
    """`solve_rows` for many right-hand sides `(n, k, q)`, without its derivative.

    Gaussian elimination with the batch axis last, so that every step is one long vector operation. Without pivoting:
    positive definite systems need none. Large systems in two stages, so that the second works on what is left.
    """
    k = gram.shape[-1]
    # (row, column, batch): the matrix beside the right-hand sides.
    rest = jnp.moveaxis(jnp.concatenate([gram, rhs], axis=-1), 0, -1)
    stages = (k,) if k <= ONE_STAGE_UP_TO else (k // 2, k - k // 2)
    uppers = []
    for size in stages:
        below = jnp.arange(len(rest))

        def step(i: jax.Array, m: jax.Array, below: jax.Array = below) -> jax.Array:
            multiple = jnp.where((below > i)[:, None], m[:, i] / m[i, i][None, :], 0)
            return m - multiple[:, None] * m[i][None, :]

        rest = jax.lax.fori_loop(0, size, step, rest)
        uppers.append(rest[:size])
        rest = rest[size:, size:]
    solution: Any = None
    for upper in reversed(uppers):
        size = len(upper)
        right = upper[:, size:]
        if solution is not None:
            later = len(solution)
            right = right[:, later:] - jnp.sum(right[:, :later, None] * solution[None], axis=1)

        def substitute(step: jax.Array, x: jax.Array, upper: jax.Array = upper, right: jax.Array = right) -> jax.Array:
            i = len(upper) - 1 - step
            # What is not solved for yet is zero in x.
            known = jnp.sum(upper[i, : len(upper)][:, None] * x, axis=0)
            return jax.lax.dynamic_update_index_in_dim(x, (right[i] - known) / upper[i, i][None, :], i, 0)

        part = jax.lax.fori_loop(0, size, substitute, jnp.zeros_like(right))
        solution = part if solution is None else jnp.concatenate([part, solution])
    return jnp.moveaxis(solution, -1, 0)


def solve_rows_nonnegative(gram: jax.Array, rhs: jax.Array, num_sweeps: int = 30) -> jax.Array:
    """`argmin over x >= 0 of x . gram x / 2 - rhs . x` for every row, by cyclic coordinate descent.

    Starts from the positive part of the unconstrained solution; every coordinate is minimised exactly in turn.

    Args:
        gram: `(n, k, k)`, positive definite.
        rhs: `(n, k)`.
        num_sweeps: passes over the coordinates, `n k^2` multiply-adds each.
    """
    columns, target = jnp.moveaxis(gram, 0, -1), rhs.T
    k = gram.shape[-1]

    def coordinate(step: jax.Array, x: jax.Array) -> jax.Array:
        i = step % k
        better = x[i] + (target[i] - jnp.sum(columns[i] * x, axis=0)) / columns[i, i]
        return x.at[i].set(jnp.maximum(better, 0))

    return jax.lax.fori_loop(0, num_sweeps * k, coordinate, jnp.maximum(solve_rows(gram, rhs), 0).T).T


def guard_ridge(
    gram: jax.Array,
    count: jax.Array,
    ridge: jax.Array,
    mask: jax.Array | None,
    damping: jax.Array | float = 0.0,
    apart: int | None = None,
) -> jax.Array:
    """`gram + ridge I`, made safely positive definite.

    Without a ridge rows with fewer measurements than unknowns are under-determined, and fitting them exactly is what
    makes unregularised alternating minimization blow up: they get a tenth of their mean diagonal, every other row a
    few epsilons of it. Rows without any measurement get the identity and so come out as zero.

    Args:
        gram: `(n, k, k)`.
        count: `(n,)` number of measurements of each row with positive weight.
        ridge: scalar or `(n,)`, added as it is.
        mask: `(k,)` ones for the columns in use, or `None`; unused columns get a one on the diagonal.
        damping: further ridge, relative to the mean diagonal.
        apart: a column of other units, whose diagonal counts for itself alone.
    """
    k = gram.shape[-1]
    eye = jnp.eye(k, dtype=gram.dtype)[None]
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    own, others = None, mask
    if apart is not None:
        own, diagonal = diagonal[:, apart], diagonal.at[:, apart].set(0)
        others = (jnp.ones(k, gram.dtype) if mask is None else mask).at[apart].set(0)
    shift = guard_shift(jnp.sum(diagonal, axis=1), k, count, ridge, others, damping)[:, None]
    if own is not None:
        own = guard_shift(own, 1, count, ridge, jnp.ones(1, gram.dtype), damping)
        shift = jnp.where(jnp.arange(k) == apart, own[:, None], shift)
    guarded = gram + shift[:, :, None] * eye
    return guarded if mask is None else guarded + jnp.diag(1 - mask)[None]


def guard_shift(
    diagonal: jax.Array,
    k: int,
    count: jax.Array,
    ridge: jax.Array,
    mask: jax.Array | None,
    damping: jax.Array | float,
) -> jax.Array:
    """What `guard_ridge` adds to the diagonals, from their sums `(n,)`."""
    in_use = jnp.asarray(k, diagonal.dtype) if mask is None else jnp.sum(mask)
    # Four epsilons: no more than the rounding error of the Gram matrix, which is the floor of what can be recovered.
    few = under_determined(count, in_use, ridge)
    relative = jnp.where(few, 0.1, 4 * jnp.finfo(diagonal.dtype).eps).astype(diagonal.dtype)
    shift = ridge + (relative + damping) * diagonal / in_use
    return jnp.where(diagonal + ridge > 0, shift, jnp.ones_like(shift))


def under_determined(count: jax.Array, columns: jax.Array, ridge: jax.Array) -> jax.Array:
    """Rows with fewer measurements than columns and no ridge that would decide: those that the guard damps.

    A ridge that was asked for decides, however small: more of it would move the minimiser.
    """
    return (count.astype(columns.dtype) < columns) & (ridge == 0)


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


@pytree
class RowProblem:
    """How one row of a factor is fitted, apart from the measurements.

    Attributes:
        ridge: scalar penalty on the squared norm of the row.
        mask: `(k,)` ones for the columns in use, or `None`.
        by_count: multiply the penalty by the number of measurements of the row.
        nonnegative: no entry of the row may be negative.
        damping: further ridge, relative to the mean diagonal of the row's normal matrix.
        unit: a column whose coefficient is fixed at `unit_value`: what it holds, times that, is subtracted from the
            measurements.
        unit_value: that coefficient.
        apart: a column in other units than the rest, that of an offset.
        sketched: solve rows with enough measurements by way of a sketch, on operators that can.
    """

    ridge: jax.Array | float = 0.0
    mask: jax.Array | None = None
    damping: jax.Array | float = 0.0
    sketched: Any = None
    unit_value: jax.Array | float = 1.0
    unit: int | None = jax.tree.static(default=None)
    apart: int | None = jax.tree.static(default=None)
    by_count: bool = jax.tree.static(default=False)
    nonnegative: bool = jax.tree.static(default=False)

    def solve(self, gram: jax.Array, rhs: jax.Array, count: jax.Array) -> jax.Array:
        """Free coefficients `(n, k)` of the rows from Gram matrices, right-hand sides and measurement counts `(n,)`."""
        solve = solve_rows_nonnegative if self.nonnegative else solve_rows
        ridge, mask = self._ridge(count, gram.dtype), self.free_mask(gram.shape[-1], gram.dtype)
        return solve(guard_ridge(gram, count, ridge, mask, self.damping, self.apart), rhs)

    def shift(self, diagonal: jax.Array, k: int, count: jax.Array) -> jax.Array:
        """What `solve` adds to the diagonals of the Gram matrices, from their sums `(n,)`."""
        mask = self.free_mask(k, diagonal.dtype)
        return guard_shift(diagonal, k, count, self._ridge(count, diagonal.dtype), mask, self.damping)

    def free_mask(self, k: int, dtype: Any) -> jax.Array | None:
        """`(k,)` ones for the columns with free coefficients, or `None` if all are."""
        if self.unit is None:
            return self.mask
        free = jnp.ones(k, dtype).at[self.unit].set(0)
        return free if self.mask is None else self.mask * free

    def _ridge(self, count: jax.Array, dtype: Any) -> jax.Array:
        ridge = jnp.asarray(self.ridge, dtype)
        return ridge * count.astype(dtype) if self.by_count else ridge

    def split(self, factor: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The columns of a factor with free coefficients (the fixed one zeroed), and the fixed one `(n,)`, if any."""
        if self.unit is None:
            return factor, None
        return factor.at[:, self.unit].set(0), self.unit_value * factor[:, self.unit]

    def finish(self, solution: jax.Array) -> jax.Array:
        """The rows with the fixed coefficient put in."""
        return solution if self.unit is None else solution.at[:, self.unit].set(self.unit_value)
