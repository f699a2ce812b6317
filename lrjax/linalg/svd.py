"""Leading singular triples of a matrix that is known by its products only."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.draws import drawn
from lrjax.core.numerics import matmul
from lrjax.core.units import exponent, power, shifted
from lrjax.linalg import guarded
from lrjax.linalg.krylov import conjugate_gradient


def truncated_svd(
    apply: Callable[[jax.Array], jax.Array],
    apply_transpose: Callable[[jax.Array], jax.Array],
    shape: tuple[int, int],
    rank: int,
    key: jax.Array,
    *,
    dtype: Any,
    data: Any = (),
    oversample: int = 8,
    depth: int = 4,
    warm: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Top `rank` singular triples by randomized block Krylov iteration (Musco and Musco 2015).

    A block basis finds repeated singular values, where a single-vector Golub-Kahan recurrence breaks down.

    Args:
        apply: `v -> M @ v` for `(n2, b)` blocks.
        apply_transpose: `u -> M.T @ u` for `(n1, b)` blocks.
        shape: `(n1, n2)`.
        rank: triples wanted.
        key: random key of the first block.
        dtype: real dtype of the products.
        data: floats that the products depend on, for `shard_map`, where types say over which devices values vary.
        oversample: columns of the block beyond `rank`.
        depth: times `M M^T` is applied to the first block; more for slowly decaying spectra. As many of the last powers
            as fit into the space are kept side by side; those before are a subspace iteration.
        warm: `(n2, q)` approximate right singular vectors to begin with, `q <= rank + oversample`.

    Returns:
        `u (n1, rank)`, `s (rank,)` in descending order, `v (n2, rank)`; NaN where the products are not finite.

    Cost `depth + 1` products of a block with `M`, at most `2 depth + 1` with `M^T`, and a QR of
    `(depth + 1)(rank + oversample)` columns.
    """
    n1, n2 = shape
    width = min(rank + oversample, n1, n2)
    kept = max(0, min(depth, min(n1, n2) // width - 1))
    # A block that spans the space already has nothing to gain.
    before = depth - kept if width < min(n1, n2) else 0
    start = drawn(jax.random.normal, key, (n2, width), dtype)
    if warm is not None:
        start = jnp.concatenate([warm, start[:, warm.shape[1] :]], axis=1)
    last = before + kept
    limit = jnp.finfo(dtype).maxexp - 2

    def orthonormal(basis: jax.Array) -> jax.Array:
        q = guarded.qr(jnp.moveaxis(basis, 0, 1).reshape(n1, -1))[0]
        return jnp.moveaxis(q.reshape(n1, kept + 1, width), 1, 0)

    # One loop for the powers and for the products with the basis they span, so that each product is compiled once.
    def step(i: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        block, basis, projected = carry

        def another(basis: jax.Array) -> jax.Array:
            # In units of the block: the second product would square those of the matrix.
            unit = jnp.clip(exponent(block), -limit, limit)
            power_of = guarded.qr(apply(power(-unit, block.dtype) * block))[0]
            return jax.lax.dynamic_update_index_in_dim(basis, power_of, jnp.maximum(i - before, 0), 0)

        same = lambda basis: basis
        basis = jax.lax.cond(i <= last, another, same, basis)
        basis = jax.lax.cond(i == last, orthonormal, same, basis)
        place = jnp.where(i < last, jnp.maximum(i - before, 0), i - last)
        block = apply_transpose(jax.lax.dynamic_index_in_dim(basis, place, 0, keepdims=False))
        return block, basis, jax.lax.dynamic_update_index_in_dim(projected, block, place, 0)

    # A zero of the type of the products.
    zero = sum(0 * (x.ravel()[0] != x.ravel()[0]).astype(dtype) for x in (start, *jax.tree.leaves(data)))
    carry = start + zero, *(jnp.zeros((kept + 1, n, width), dtype) + zero for n in shape)
    _, basis, projected = jax.lax.fori_loop(0, last + kept + 1, step, carry)
    q, projected = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in (basis, projected))
    # (Q^T M)^T = M^T Q is tall; its SVD gives that of the projected matrix.
    v, s, ut = guarded.svd(projected)
    return matmul(q, ut.T[:, :rank]), s[:rank], v[:, :rank]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 4))
def attach_derivative(
    products: Callable[[Any], tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]],
    keep: int,
    matrix: Any,
    triples: tuple[jax.Array, jax.Array, jax.Array],
    turn: bool = True,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives computed singular triples the first derivative of exact ones, without forming or factoring the matrix.

    With `M = U S V^T + N`, `N` orthogonal to both subspaces, and a perturbation `dM`: the parts of `dU` and `dV`
    outside the subspaces solve `[S, -N; -N^T, S] [E; F] = [(I - UU^T) dM V; (I - VV^T) dM^T U]`, column by column and
    positive definite as long as `s[keep - 1] > ||N||`, so by conjugate gradients on products; the parts inside are
    the usual ones from `U^T dM V`, and these divide by differences of the leading values. Where two of those are equal
    to rounding, single vectors have no derivative; theirs are then such that the product `U diag(s) V^T` has the right
    one. Repeated values in the tail do not matter. First derivatives only.

    Args:
        products: `matrix -> (v -> M @ v, u -> M.T @ u)`; a function of a module, not a closure over traced values.
        keep: leading vectors wanted, at most `q`.
        matrix: pytree of what `M` is made of.
        triples: `u (n1, q)`, `s (q,)`, `v (n2, q)`, constants.
        turn: whether the vectors turn inside their subspaces. Without, functions of the two subspaces alone have the
            right derivative, also where values repeat, and others do not.

    Returns:
        `u (n1, keep)`, all `s`, `v (n2, keep)`, the values given.
    """
    u, s, v = triples
    return u[:, :keep], s, v[:, :keep]


@attach_derivative.defjvp
def _derivative(products, keep, turn, primals, tangents):
    (matrix, (u, s, v)), (matrix_dot, _) = primals, tangents
    apply, apply_transpose = products(matrix)
    mv = jax.jvp(lambda m: products(m)[0](v), (matrix,), (matrix_dot,))[1]
    mu = jax.jvp(lambda m: products(m)[1](u[:, :keep]), (matrix,), (matrix_dot,))[1]
    s_dot = jnp.sum(u * mv, axis=0)
    u, v, mv, values = u[:, :keep], v[:, :keep], mv[:, :keep], s[None, :keep]
    out_left = lambda x: x - matmul(u, matmul(u.T, x))
    out_right = lambda x: x - matmul(v, matmul(v.T, x))
    n1 = u.shape[0]

    def system(x: jax.Array) -> jax.Array:
        e, f = x[:n1], x[n1:]
        top = values * e - out_left(apply(out_right(f)))
        return jnp.concatenate([top, values * f - out_right(apply_transpose(out_left(e)))])

    rhs = jnp.concatenate([out_left(mv), out_right(mu)])
    eps = float(jnp.finfo(s.dtype).eps)
    moved = conjugate_gradient(system, rhs, jnp.zeros_like(rhs), num_steps=500, tolerance=4 * eps)
    u_dot, v_dot = moved[:n1], moved[n1:]
    if turn:
        # In units of the largest value, whose square may be out of range.
        unit = exponent(s)
        values, core = shifted(values, -unit), shifted(matmul(u.T, mv), -unit)
        # As a product: a difference of squares, fused, is not zero on the diagonal.
        total = values + values.T
        gap = (values - values.T) * total
        apart = jnp.abs(values - values.T) > eps**0.75 * total
        over = lambda a, b, good: jnp.where(good, a, 0) / jnp.where(good, b, 1)
        # Equal values: half of what the product needs to each side, off the diagonal.
        alike = ~apart & (total > 0) & ~jnp.eye(keep, dtype=bool)
        shared = over(core, total, alike)
        turn_left = over(core * values + values.T * core.T, gap, apart) + shared
        turn_right = over(values.T * core + core.T * values, gap, apart) + shared.T
        u_dot, v_dot = u_dot + matmul(u, turn_left), v_dot + matmul(v, turn_right)
    return (u, s, v), (u_dot, s_dot, v_dot)
