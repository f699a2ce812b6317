"""Least squares by iterations that a sketch preconditions: LSQR, iterative sketching, FOSSILS.

`factor` comes from a sketch `S sqrt(W) a` of `m` rows: the singular values of `a T`, `T = basis^T / sizes`, then lie
within `1 / (1 +- sqrt(d / m))`, whatever the condition number of `a`. All start at the sketched solution; a start at
zero is not stable. Each step is one product with `a` and one with `a^T`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.numerics import safe_divide
from lrjax.linalg.krylov import counted_conjugate_gradient
from lrjax.sketching.regression import normal_equations
from lrjax.sketching.regression.normal_equations import Factor

# Of iterative sketching: how small a change of the residual counts as none, per condition number (2311.04362).
_ROUNDING = 0.04


def _norm(x: jax.Array) -> jax.Array:
    """Of each column, `(1, q)`."""
    return jnp.sqrt(jnp.sum(x * x, axis=0, keepdims=True))


def _over(x: jax.Array, size: jax.Array) -> jax.Array:
    return jnp.where(size > 0, safe_divide(x, size), 0)


def lsqr(
    a: Any,
    b: jax.Array,
    weights: jax.Array | None,
    ridge: jax.Array,
    factor: Factor,
    x: jax.Array,
    tolerance: float | jax.Array,
    max_steps: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """LSQR (Paige and Saunders 1982) on `a T`, from `x`: the solution, whether it converged, and the steps taken.

    A column has converged once a step changes its fitted values, the ridge's rows among them, by less than `tolerance`
    of their norm, or of `||b||` in so far as `a` and not the ridge makes them.
    """
    root_weights = None if weights is None else jnp.sqrt(weights)
    damp = jnp.sqrt(ridge)[:, None]

    def apply(y: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = factor.root(y)
        return normal_equations.weigh(root_weights, normal_equations.forward(a, z)), damp * z

    def apply_adjoint(u: tuple[jax.Array, jax.Array]) -> jax.Array:
        return factor.root_adjoint(
            normal_equations.adjoint(a, normal_equations.weigh(root_weights, u[0])) + damp * u[1]
        )

    def normalised(u: tuple) -> tuple[tuple, jax.Array]:
        size = jnp.hypot(_norm(u[0]), _norm(u[1]))
        return tuple(_over(part, size) for part in u), size

    u, beta = normalised((normal_equations.weigh(root_weights, b - normal_equations.forward(a, x)), -damp * x))
    v = apply_adjoint(u)
    alpha = _norm(v)
    v = _over(v, alpha)
    top = jnp.max(factor.sizes)
    least = _norm(normal_equations.weigh(root_weights, b)) * _over(factor.norm, top)
    begun = factor.sizes[:, None] * normal_equations.matmul(factor.basis, x)

    def met(y: jax.Array, change: jax.Array) -> jax.Array:
        return jnp.all(change <= tolerance * jnp.maximum(least, _norm(begun + y)))

    def unfinished(carry: tuple) -> jax.Array:
        y, *_, change, step = carry
        return (step < max_steps) & ~met(y, change)

    def one(carry: tuple) -> tuple:
        y, u, v, w, alpha, phi, rho, _, step = carry
        image = apply(v)
        u, beta = normalised(tuple(new - alpha * old for new, old in zip(image, u, strict=True)))
        v = apply_adjoint(u) - beta * v
        alpha = _norm(v)
        v = _over(v, alpha)
        size = jnp.hypot(rho, beta)
        cosine, sine = _over(rho, size), _over(beta, size)
        change = _over(cosine * phi, size)
        y = y + change * w
        moved = jnp.abs(change) * _norm(w)
        return y, u, v, v - _over(sine * alpha, size) * w, alpha, sine * phi, -cosine * alpha, moved, step + 1

    start = (jnp.zeros_like(x), u, v, v, alpha, beta, alpha, jnp.full_like(least, jnp.inf), jnp.int32(0))
    y, *_, change, steps = jax.lax.while_loop(unfinished, one, start)
    return x + factor.root(y), met(y, change), steps


def iterative_sketching(
    a: Any,
    b: jax.Array,
    weights: jax.Array | None,
    ridge: jax.Array,
    factor: Factor,
    x: jax.Array,
    tolerance: float | jax.Array,
    max_steps: int,
    *,
    sketch_size: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x += alpha H^-1 a^T (b - a x) + beta (x - x_old)`, with `beta = d / m`, `alpha = (1 - d / m)^2`.

    Epperly (2023, arXiv 2311.04362): forward stable with this start. Stops when the residual, the ridge's rows among
    it, changes by less than rounding, `tolerance (||[a; sqrt(ridge)]|| ||x|| + 0.04 condition ||r||)`; the condition is
    `||a||` over the smallest singular value with the ridge, for the ridge carries no rounding of `a`.
    """
    momentum = a.shape[1] / sketch_size
    step_size = (1 - momentum) ** 2
    top, damp = jnp.max(factor.sizes), jnp.sqrt(ridge)[:, None]
    condition = factor.condition() * _over(factor.norm, top)
    root_weights = None if weights is None else jnp.sqrt(weights)

    def unfinished(carry: tuple) -> jax.Array:
        *_, done, step = carry
        return (step < max_steps) & ~done

    def one(carry: tuple) -> tuple:
        x, old, r, _, step = carry
        down = normal_equations.adjoint(a, normal_equations.weigh(root_weights, r)) - ridge[:, None] * x
        new = x + step_size * factor.solve(down) + momentum * (x - old)
        fresh = normal_equations.weigh(root_weights, b - normal_equations.forward(a, new))
        size = jnp.hypot(_norm(fresh), _norm(damp * new))
        level = tolerance * (top * _norm(new) + _ROUNDING * condition * size)
        change = jnp.hypot(_norm(fresh - r), _norm(damp * (new - x)))
        return new, x, fresh, jnp.all(change <= level), step + 1

    r = normal_equations.weigh(root_weights, b - normal_equations.forward(a, x))
    start = (x, x, r, jnp.zeros_like(r[0, 0], bool), jnp.int32(0))
    x, _, _, done, steps = jax.lax.while_loop(unfinished, one, start)
    return x, done, steps


def fossils(
    a: Any,
    b: jax.Array,
    weights: jax.Array | None,
    ridge: jax.Array,
    factor: Factor,
    x: jax.Array,
    tolerance: float | jax.Array,
    max_steps: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two passes of refinement, each a conjugate gradient solve with `T^T a^T a T` to `sqrt(tolerance)`.

    Epperly, Meier and Nakatsukasa (2024, arXiv 2406.03468; their SPIR solves the passes by conjugate gradients, as
    here, their FOSSILS by heavy-ball steps): backward stable, where one pass is only forward stable.
    """
    inner = jnp.sqrt(jnp.asarray(tolerance, x.dtype))

    def matrix(y: jax.Array) -> jax.Array:
        return factor.root_adjoint(normal_equations.normal(a, weights, ridge, factor.root(y)))

    steps, done = jnp.int32(0), jnp.ones((), bool)
    for _ in range(2):
        rhs = factor.root_adjoint(normal_equations.downhill(a, b, weights, ridge, x))
        y, taken = counted_conjugate_gradient(matrix, rhs, num_steps=max_steps, tolerance=inner)
        x, steps, done = x + factor.root(y), steps + taken, done & (taken < max_steps)
    return x, done, steps
