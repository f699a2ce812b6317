"""Conjugate gradients, plain and preconditioned, differentiable both ways."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lrjax.core.numerics import or_one, safe_divide
from lrjax.core.units import exponent, shifted


def conjugate_gradient(
    matvec: Callable[[jax.Array], jax.Array],
    rhs: jax.Array,
    start: jax.Array,
    *,
    num_steps: int,
    tolerance: float | jax.Array | None = None,
    rowwise: bool = False,
) -> jax.Array:
    """Solves `matvec(x) = rhs` for a symmetric positive definite `matvec` (Hestenes and Stiefel 1952).

    Args:
        matvec: linear, symmetric positive definite.
        rhs: any shape; `start` and the result have it too.
        start: first guess.
        num_steps: steps at most; exactly that many when `tolerance` is `None`.
        tolerance: stop when `||residual|| <= tolerance * ||rhs||`. The derivative is then that of the exact
            solution (implicit); with `None` the steps themselves are differentiated.
        rowwise: the system is block diagonal over the leading index; each block gets step lengths of
            its own, so that the worst-conditioned row does not hold back the others.

    Returns:
        The last iterate.
    """
    if tolerance is None:
        return _run(matvec, rhs, start, num_steps, jnp.zeros((), rhs.dtype), rowwise, fixed=True)[0]

    def solve(matvec: Callable[[jax.Array], jax.Array], b: jax.Array) -> jax.Array:
        return _run(matvec, b, jax.lax.stop_gradient(start), num_steps, tolerance, rowwise, fixed=False)[0]

    return jax.lax.custom_linear_solve(matvec, rhs, solve, symmetric=True)


def counted_conjugate_gradient(
    matvec: Callable[[jax.Array], jax.Array], rhs: jax.Array, *, num_steps: int, tolerance: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`conjugate_gradient` from zero to a tolerance, and the int32 number of steps it took."""

    def solve(matvec: Callable[[jax.Array], jax.Array], b: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _run(matvec, b, None, num_steps, tolerance, rowwise=False, fixed=False)

    return jax.lax.custom_linear_solve(matvec, rhs, solve, symmetric=True, has_aux=True)


def _run(matvec, rhs, start, num_steps, tolerance, rowwise, fixed):
    # From zero for `None`: without the product that would say so.
    axes = tuple(range(1, rhs.ndim)) if rowwise else tuple(range(rhs.ndim))

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, axis=axes, keepdims=True)

    def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
        # A system solved exactly has zero residual and zero direction: it stays where it is.
        return jnp.where(b > 0, a, 0) / or_one(b)

    def one(carry: tuple) -> tuple:
        x, r, p, rr = carry
        ap = matvec(p)
        alpha = ratio(rr, dot(p, ap))
        x, r = x + alpha * p, r - alpha * ap
        new = dot(r, r)
        return x, r, r + ratio(new, rr) * p, new

    # What is solved for is the correction, in units in which squares of the residual are in range.
    r = rhs if start is None else rhs - matvec(start)
    unit = exponent(jnp.maximum(jnp.abs(rhs), jnp.abs(r)), axes, keepdims=True)
    rhs = shifted(rhs, -unit)
    r = rhs if start is None else shifted(r, -unit)
    carry = (jnp.zeros_like(r), r, r, dot(r, r))
    if fixed:
        carry, _ = jax.lax.scan(lambda c, _: (one(c), None), carry, None, length=num_steps)
        x = shifted(carry[0], unit)
        return x if start is None else start + x, jnp.int32(num_steps)
    goal = jnp.asarray(tolerance, rhs.dtype) ** 2 * dot(rhs, rhs)

    def unfinished(loop: tuple) -> jax.Array:
        (_, _, _, rr), i = loop
        return (i < num_steps) & jnp.any(rr > goal)

    start_loop = (carry, jnp.int32(0))
    (x, _, _, _), taken = jax.lax.while_loop(unfinished, lambda loop: (one(loop[0]), loop[1] + 1), start_loop)
    x = shifted(x, unit)
    return x if start is None else start + x, taken


def preconditioned_conjugate_gradient(
    matvec: Callable[[jax.Array], jax.Array],
    rhs: jax.Array,
    precondition: Callable[[jax.Array], jax.Array],
    *,
    num_steps: int,
    tolerance: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Solves `matvec(x) = rhs` from zero for a symmetric positive definite `matvec`, with a preconditioner.

    To start elsewhere solve for the correction. The derivative is implicit: that of the exact solution, itself
    computed to `tolerance`.

    Args:
        matvec: linear, symmetric positive definite.
        rhs: any shape; the result has it too.
        precondition: symmetric positive definite, close to the inverse of `matvec`; a constant to autodiff.
        num_steps: steps at most.
        tolerance: stop when the residual in the norm of the preconditioner has fallen by this factor.

    Returns:
        The last iterate, and the int32 number of steps.
    """

    def solve(matvec: Callable[[jax.Array], jax.Array], b: jax.Array) -> tuple[jax.Array, jax.Array]:
        unit = exponent(b)
        b = shifted(b, -unit)
        z = precondition(b)
        rz = jnp.vdot(b, z, precision="highest")
        goal = jnp.asarray(tolerance, b.dtype) ** 2 * rz

        def unfinished(carry: tuple) -> jax.Array:
            return (carry[-1] < num_steps) & (carry[3] > goal)

        def one(carry: tuple) -> tuple:
            x, r, p, rz, i = carry
            ap = matvec(p)
            curvature = jnp.vdot(p, ap, precision="highest")
            alpha = jnp.where(curvature > 0, rz, 0) / or_one(curvature)
            x, r = x + alpha * p, r - alpha * ap
            z = precondition(r)
            new = jnp.vdot(r, z, precision="highest")
            return x, r, z + safe_divide(new, rz) * p, new, i + 1

        x, _, _, _, steps = jax.lax.while_loop(unfinished, one, (jnp.zeros_like(b), b, z, rz, jnp.int32(0)))
        return shifted(x, unit), steps

    return jax.lax.custom_linear_solve(matvec, rhs, solve, symmetric=True, has_aux=True)
