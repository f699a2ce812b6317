"""What the solvers of tall least squares share: products with `a`, a factor of the normal matrix, the derivative.

All of them minimise `||sqrt(w) (b - a x)||^2 + sum_j ridge_j x_j^2` for each column of `b`; `x` is `(d, q)`, `ridge`
`(d,)`, for columns may come in units of their own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.numerics import matmul, or_one, safe_reciprocal
from lrjax.core.pytree import pytree
from lrjax.linalg import guarded
from lrjax.linalg.krylov import preconditioned_conjugate_gradient

# Directions whose singular value is below this many epsilons of the largest are rounding: they are left out.
RANK_LEVEL = 30
_DERIVATIVE_STEPS = 60


@pytree
class Scaled:
    """`matrix diag(columns)`, the matrix an array or an operator and not copied; `columns` `(d,)` are powers of two."""

    matrix: Any
    columns: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def dtype(self) -> Any:
        """Of its entries."""
        return self.columns.dtype

    def dense(self) -> jax.Array:
        """The matrix itself, for arrays."""
        return self.matrix * self.columns[None, :]

    def apply(self, x: jax.Array) -> jax.Array:
        """`(d, q)` to `(n, q)`."""
        return forward(self.matrix, self.columns[:, None] * x)

    def apply_adjoint(self, r: jax.Array) -> jax.Array:
        """`(n, q)` to `(d, q)`."""
        # Half of the scale before the sums and half after: either alone can take small residuals out of range.
        unit = jnp.min(self.columns)
        return (self.columns / unit)[:, None] * adjoint(self.matrix, unit * r)


def forward(a: Any, x: jax.Array) -> jax.Array:
    """`a x`, `(n, q)`."""
    return matmul(a, x) if isinstance(a, jax.Array) else a.apply(x)


def adjoint(a: Any, r: jax.Array) -> jax.Array:
    """`a^T r`, `(d, q)`."""
    if not isinstance(a, jax.Array):
        return a.apply_adjoint(r)
    if r.shape[1] == 1:  # XLA on a CPU does the same product as a dot up to four times slower
        return jnp.sum(r * a, axis=0)[:, None]
    return matmul(a.T, r)


def weigh(weights: jax.Array | None, r: jax.Array) -> jax.Array:
    """`W r`, of columns `r`."""
    return r if weights is None else weights[:, None] * r


def downhill(a: Any, b: jax.Array, weights: jax.Array | None, ridge: jax.Array, x: jax.Array) -> jax.Array:
    """Half the negative gradient, `a^T W (b - a x) - ridge x`; zero at the solution."""
    return adjoint(a, weigh(weights, b - forward(a, x))) - ridge[:, None] * x


def normal(a: Any, weights: jax.Array | None, ridge: jax.Array, x: jax.Array) -> jax.Array:
    """`(a^T W a + ridge) x`."""
    return adjoint(a, weigh(weights, forward(a, x))) + ridge[:, None] * x


@pytree
class Factor:
    """`H = basis^T diag(sizes^2) basis`, the normal matrix `a^T W a + ridge` or something close to it.

    Attributes:
        basis: `(d, d)`, orthonormal rows.
        sizes: `(d,)`, singular values of `[sqrt(w) a; sqrt(ridge)]`.
        inverse: `(d,)`, their inverses; zero for directions that are left out.
        norm: of `sqrt(w) a` alone: the largest singular value, or the Frobenius norm if a ridge hides that.
    """

    basis: jax.Array
    sizes: jax.Array
    inverse: jax.Array
    norm: jax.Array

    def root(self, y: jax.Array) -> jax.Array:
        """`T y` with `T^T H T = 1`."""
        return matmul(self.basis.T, self.inverse[:, None] * y)

    def root_adjoint(self, g: jax.Array) -> jax.Array:
        """`T^T g`."""
        return self.inverse[:, None] * matmul(self.basis, g)

    def solve(self, g: jax.Array) -> jax.Array:
        """`H^-1 g` over the directions kept."""
        return self.root(self.root_adjoint(g))

    def condition(self) -> jax.Array:
        """Ratio of the largest singular value to the smallest that is kept."""
        kept = jnp.min(jnp.where(self.inverse > 0, self.sizes, jnp.inf))
        return jnp.where(jnp.isfinite(kept), jnp.max(self.sizes) / kept, 1)


def factor_of(r: jax.Array, square: jax.Array) -> Factor:
    """The factor of `r^T r`, with the squared Frobenius norm of the rows of `a` alone."""
    _, sizes, basis = guarded.svd(r)
    return with_inverse(basis, sizes, square)


def with_inverse(basis: jax.Array, sizes: jax.Array, square: jax.Array | float = jnp.inf) -> Factor:
    """The factor of these singular values, with reciprocals of those above rounding."""
    top = jnp.max(sizes)
    keep = sizes > RANK_LEVEL * jnp.finfo(sizes.dtype).eps * top
    inverse = safe_reciprocal(sizes, keep)
    return Factor(basis=basis, sizes=sizes, inverse=inverse, norm=jnp.minimum(top, jnp.sqrt(square)))


def with_ridge(rows: jax.Array, ridge: jax.Array) -> jax.Array:
    """The ridge as further rows."""
    return jnp.concatenate([rows, jnp.diag(jnp.sqrt(ridge))])


def qr_svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`matrix = q @ left @ diag(sigma) @ right`."""
    q, r = guarded.qr(matrix)
    return q, *guarded.svd(r)


def sketched_factor(short: jax.Array, ridge: jax.Array) -> Factor:
    """The factor of a sketch `S sqrt(W) a`, by QR and an SVD, never by its normal matrix."""
    return factor_of(guarded.qr_r(with_ridge(short, ridge)), jnp.sum(short**2))


def backward_error(
    a: Any, b: jax.Array, weights: jax.Array | None, ridge: jax.Array, x: jax.Array, factor: Factor
) -> tuple[jax.Array, jax.Array]:
    """Norms of the residuals, and an estimate of the backward error of each column of `x`, relative to `||a||`.

    The smallest perturbation of `a` that makes `x` the solution is, within a factor `sqrt(2)`,
    `||(H + mu)^-1/2 a^T r|| / ||x||` with `mu = ||r||^2 / ||x||^2` (Karlson and Walden 1997). `H` is the factor here,
    and a ridge is further rows of `a`, except that `||a||` is without it: a large one would hide any error.
    """
    residual = weigh(None if weights is None else jnp.sqrt(weights), b - forward(a, x))
    square = jnp.sum(residual**2, axis=0)
    return jnp.sqrt(square), estimate(square, downhill(a, b, weights, ridge, x), x, ridge, factor)


def estimate(square: jax.Array, down: jax.Array, x: jax.Array, ridge: jax.Array, factor: Factor) -> jax.Array:
    """The backward errors, from squared residuals and half the negative gradient."""
    gradient = matmul(factor.basis, down)
    size = jnp.sum(x**2, axis=0)
    mu = jnp.where(size > 0, square + jnp.sum(ridge[:, None] * x**2, axis=0), 0) / or_one(size)
    # Directions that were left out count as if at the level where they are: a sketch that hid one is found out here.
    top = jnp.max(factor.sizes)
    level = jnp.maximum(factor.sizes, RANK_LEVEL * jnp.finfo(x.dtype).eps * top)
    scale = level[:, None] ** 2 + mu[None, :]
    whitened = jnp.sum(jnp.where(scale > 0, gradient**2 / or_one(scale), 0), axis=0)
    bound = factor.norm * jnp.sqrt(size)
    return jnp.where(bound > 0, jnp.sqrt(whitened) / or_one(bound), 0)


@jax.custom_jvp
def at_minimum(
    a: Any, b: jax.Array, weights: jax.Array | None, ridge: jax.Array, x: jax.Array, factor: Factor
) -> jax.Array:
    """`x`, with the derivatives of the minimiser in `a`, `b`, `weights` and `ridge`; free unless they are asked for.

    `downhill = 0` defines the minimiser, so its derivative is `H^-1` times that of `downhill` at a fixed `x`.
    `factor` preconditions that system: a step or two if it is exact.
    """
    return x


@at_minimum.defjvp
def _derivative(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    a, _, weights, ridge, _, factor = primals
    x, factor = at_minimum(*primals), jax.lax.stop_gradient(factor)
    move = lambda a, b, weights, ridge: downhill(a, b, weights, ridge, x)
    _, push = jax.jvp(move, primals[:4], tangents[:4])
    change, _ = preconditioned_conjugate_gradient(
        lambda v: normal(a, weights, ridge, v),
        push,
        factor.solve,
        num_steps=_DERIVATIVE_STEPS,
        tolerance=float(jnp.finfo(x.dtype).eps),
    )
    return x, change
