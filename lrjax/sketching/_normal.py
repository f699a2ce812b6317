"""What the solvers of tall least squares share: products with `a`, a factor of the normal matrix, the derivative.

All of them minimise `||sqrt(w) (b - a x)||^2 + ridge ||x||^2` for each column of `b`; `x` is `(d, q)`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax._pytree import pytree
from lrjax.linalg.krylov import preconditioned_conjugate_gradient

# Directions whose singular value is below this many epsilons of the largest are rounding: they are left out.
RANK_LEVEL = 30
_DERIVATIVE_STEPS = 60


def mul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision="highest")


def forward(a: Any, x: jax.Array) -> jax.Array:
    """`a x`, `(n, q)`."""
    return mul(a, x) if isinstance(a, jax.Array) else a.apply(x)


def adjoint(a: Any, r: jax.Array) -> jax.Array:
    """`a^T r`, `(d, q)`."""
    if not isinstance(a, jax.Array):
        return a.apply_adjoint(r)
    if r.shape[1] == 1:  # XLA on a CPU does the same product as a dot up to four times slower
        return jnp.sum(r * a, axis=0)[:, None]
    return mul(a.T, r)


def weigh(weights: jax.Array | None, r: jax.Array) -> jax.Array:
    return r if weights is None else weights[:, None] * r


def downhill(a: Any, b: jax.Array, weights: jax.Array | None, ridge: jax.Array, x: jax.Array) -> jax.Array:
    """Half the negative gradient, `a^T W (b - a x) - ridge x`; zero at the solution."""
    return adjoint(a, weigh(weights, b - forward(a, x))) - ridge * x


def normal(a: Any, weights: jax.Array | None, ridge: jax.Array, x: jax.Array) -> jax.Array:
    """`(a^T W a + ridge) x`."""
    return adjoint(a, weigh(weights, forward(a, x))) + ridge * x


@pytree
class Factor:
    """`H = basis^T diag(sizes^2) basis`, the normal matrix `a^T W a + ridge` or something close to it.

    Attributes:
        basis: `(d, d)`, orthonormal rows.
        sizes: `(d,)`, singular values of `[sqrt(w) a; sqrt(ridge)]`.
        inverse: `(d,)`, their inverses; zero for directions that are left out.
    """

    basis: jax.Array
    sizes: jax.Array
    inverse: jax.Array

    def root(self, y: jax.Array) -> jax.Array:
        """`T y` with `T^T H T = 1`."""
        return mul(self.basis.T, self.inverse[:, None] * y)

    def root_adjoint(self, g: jax.Array) -> jax.Array:
        """`T^T g`."""
        return self.inverse[:, None] * mul(self.basis, g)

    def solve(self, g: jax.Array) -> jax.Array:
        """`H^-1 g` over the directions kept."""
        return self.root(self.root_adjoint(g))

    def condition(self) -> jax.Array:
        """Ratio of the largest singular value to the smallest that is kept."""
        kept = jnp.min(jnp.where(self.inverse > 0, self.sizes, jnp.inf))
        return jnp.where(jnp.isfinite(kept), jnp.max(self.sizes) / kept, 1)


def factor_of(r: jax.Array, ridge: jax.Array | float = 0.0) -> Factor:
    """The factor of `r^T r + ridge` for a square `r`."""
    _, sizes, basis = jnp.linalg.svd(r)
    sizes = jnp.hypot(sizes, jnp.sqrt(jnp.asarray(ridge, r.dtype)))
    return with_inverse(basis, sizes)


def with_inverse(basis: jax.Array, sizes: jax.Array) -> Factor:
    keep = sizes > RANK_LEVEL * jnp.finfo(sizes.dtype).eps * jnp.max(sizes)
    return Factor(basis=basis, sizes=sizes, inverse=jnp.where(keep, 1 / jnp.where(keep, sizes, 1), 0))


def sketched_factor(short: jax.Array, ridge: jax.Array) -> Factor:
    """The factor of a sketch `S sqrt(W) a`, by QR and an SVD, never by its normal matrix."""
    return factor_of(jnp.linalg.qr(short, mode="r"), ridge)


def backward_error(
    a: Any, b: jax.Array, weights: jax.Array | None, ridge: jax.Array, x: jax.Array, factor: Factor
) -> tuple[jax.Array, jax.Array]:
    """Norms of the residuals, and an estimate of the backward error of each column of `x`, relative to `||a||`.

    The smallest perturbation of `a` that makes `x` the solution is, within a factor `sqrt(2)`,
    `||(H + mu)^-1/2 a^T r|| / ||x||` with `mu = ||r||^2 / ||x||^2` (Karlson and Walden 1997). `H` is the factor here.
    """
    residual = weigh(None if weights is None else jnp.sqrt(weights), b - forward(a, x))
    square = jnp.sum(residual**2, axis=0)
    return jnp.sqrt(square), estimate(square, downhill(a, b, weights, ridge, x), x, ridge, factor)


def estimate(square: jax.Array, down: jax.Array, x: jax.Array, ridge: jax.Array, factor: Factor) -> jax.Array:
    """The backward errors, from squared residuals and half the negative gradient."""
    gradient = mul(factor.basis, down)
    size = jnp.sum(x**2, axis=0)
    mu = jnp.where(size > 0, square + ridge * size, 0) / jnp.where(size > 0, size, 1)
    # Directions that were left out count as if at the level where they are: a sketch that hid one is found out here.
    top = jnp.max(factor.sizes)
    level = jnp.maximum(factor.sizes, RANK_LEVEL * jnp.finfo(x.dtype).eps * top)
    scale = level[:, None] ** 2 + mu[None, :]
    whitened = jnp.sum(jnp.where(scale > 0, gradient**2 / jnp.where(scale > 0, scale, 1), 0), axis=0)
    bound = top * jnp.sqrt(size)
    return jnp.where(bound > 0, jnp.sqrt(whitened) / jnp.where(bound > 0, bound, 1), 0)


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
