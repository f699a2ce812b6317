"""Soft-impute: least squares with a nuclear-norm penalty, by proximal gradient steps on factors."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrjax import initial, status
from lrjax.core.checks import check_count, check_range
from lrjax.core.draws import drawn
from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree, replace
from lrjax.core.units import Units
from lrjax.linalg import guarded
from lrjax.problems.factors import Factors, difference_norm
from lrjax.problems.problem import Problem
from lrjax.solvers import base


@pytree
class SoftImputeState:
    """State of soft-impute.

    Attributes:
        factors: the iterate, `left @ basis.T` with zero columns of `left` for singular values shrunk to zero.
        previous: the iterate before, for the extrapolation.
        basis: `(n2, max_rank)` orthonormal search space.
        residual: `(m,)` at the iterate.
        previous_residual: at the one before.
        momentum: counter `t` of the extrapolation, one after a restart.
        penalty: current penalty; falls towards the one asked for.
        target: the penalty asked for.
        rate: step size, one over the largest curvature.
        info: scalars describing the iterate.
    """

    factors: Factors
    previous: Factors
    basis: jax.Array
    residual: jax.Array
    previous_residual: jax.Array
    momentum: jax.Array
    penalty: jax.Array
    target: jax.Array
    rate: jax.Array
    info: dict[str, jax.Array]


@pytree
class SoftImpute:
    """Minimises `sum_i w_i loss(A(X)_i - y_i) + penalty ||X||_*`, the convex reference of low-rank recovery.

    `X <- shrink(Z - eta A*(w loss'(A(Z) - y)), eta penalty)` on singular values, `Z` the iterate extrapolated (Beck and
    Teboulle 2009) with a restart when the objective rises (O'Donoghue and Candes 2015). The decomposition is that of
    factors plus `A*` of the residual, by subspace iteration from the step before, so no `n1 x n2` matrix is formed. The
    penalty starts where the solution leaves zero and falls geometrically: each value starts from the solution of
    the one before.

    `info` adds `nuclear_norm`, `penalty` (current), `penalized` (the whole objective) and `rank`.

    Attributes:
        penalty: lambda; with `relative=True` a fraction of the smallest penalty whose solution is zero, the spectral
            norm of the gradient there (differentiable where the largest singular value is simple). As it goes to zero
            the solution tends to the matrix of least nuclear norm that fits.
        decay: factor of the penalty per step on its way down; zero starts at the final one.
        tolerance: converged once a step at the final penalty moves the iterate by at most this, relatively; default
            ten epsilons.
        rank: singular values to keep at most (traced), `None` for `max_rank`.
        max_rank: columns of the factors; the problem is convex only while `info["rank"]` stays below it.
        relative: units of the penalty.
        accelerate: extrapolate.
        power_steps: subspace iterations per step.

    Cost per step: one product of each kind with the adjoint per subspace iteration, one forward product, two QR
    decompositions of `max_rank` columns; at the start a spectral norm, and on measurements that are not entries
    the norm of `A` (products with dense matrices).

    When not to use it: for the matrix itself at low noise: the penalty biases all singular values, and a factored
    solver is exact and much faster.

    Source: Mazumder, Hastie and Tibshirani, J. Mach. Learn. Res. 11 (2010); Toh and Yun, Pac. J. Optim. 6 (2010), for
    acceleration and continuation.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> problem, truth = lr.synthetic.matrix_completion(key, shape=(60, 40), rank=2, fraction=0.7)
        >>> solution = lr.solve(problem, lr.SoftImpute(max_rank=8), key, num_steps=200)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-2)
        True
    """

    penalty: float | jax.Array = 1e-3
    decay: float | jax.Array = 0.8
    tolerance: float | jax.Array | None = None
    rank: int | jax.Array | None = None
    max_rank: int = jax.tree.static(kw_only=False)
    relative: bool = jax.tree.static(default=True)
    accelerate: bool = jax.tree.static(default=True)
    power_steps: int = jax.tree.static(default=1)

    unitless: ClassVar[str] = "right"

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        base.check_rank(self, problem)
        base.require_squared_or_smooth("SoftImpute", problem)
        check_count("power_steps", self.power_steps)
        check_range("penalty", self.penalty, low=0, high=1 if self.relative else None)
        check_range("decay", self.decay, low=0, high=1 - 1e-6)
        check_range("tolerance", self.tolerance, low=0)

    def in_units(self, units: Units) -> "SoftImpute":
        """The penalty, if it is absolute, in units of the objective per unit of the matrix."""
        if self.relative:
            return self
        return replace(self, penalty=self.penalty / units.weight / units.measurement ** (units.degree - 1))

    def info_units(self, units: Units) -> dict[str, tuple[jax.Array, ...]]:
        """Units of what `info` adds."""
        measurement = units.measurement
        penalty = (units.weight, *[measurement] * (units.degree - 1))
        return {"nuclear_norm": (measurement,), "penalty": penalty, "penalized": units.objective}

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> SoftImputeState:
        """Zero, with the leading singular vectors of the gradient there as search space; or given factors."""
        key_top, key_norm = jax.random.split(key)
        (n1, _), y = problem.shape, problem.observed()
        pull = problem.weighted(problem.loss.gradient(-y))
        # Constants to autodiff: where the search begins does not move what it finds. The spectral norm does, if the
        # penalty is relative to it; its derivative is that of `u^T A*(pull) v` with the singular vectors held fixed.
        u, values, basis = jax.lax.stop_gradient(initial.adjoint_svd(problem, pull, self.max_rank, key_top))
        top = jnp.sum(u[:, :1] * problem.operator.adjoint_matmul(pull, basis[:, :1]))
        target = self.penalty * top if self.relative else self.penalty + 0 * top
        start = jnp.maximum(target, values[0] * (1 if factors is None else self.decay))
        penalty = jnp.where(jnp.asarray(self.decay) > 0, start, target)
        if factors is None:
            left = jnp.zeros((n1, self.max_rank), y.dtype)
        else:
            basis, small = guarded.qr(factors.right)
            left = matmul(factors.left, small.T)
        rate = 1 / self._curvature(problem, key_norm)
        one = jnp.ones_like(rate)
        factors = Factors(left, basis)
        residual = problem.residual(factors)
        nuclear = jnp.sum(jnp.linalg.norm(left, axis=0)) if factors is None else jnp.sum(factors.svd()[1])
        used = jnp.sum(jnp.any(left != 0, axis=0)).astype(y.dtype)
        info = self._info(problem, residual, nuclear, penalty, used)
        return SoftImputeState(
            factors=factors,
            previous=factors,
            basis=basis,
            residual=residual,
            previous_residual=residual,
            momentum=one,
            penalty=penalty,
            target=target,
            rate=rate,
            info=info,
        )

    def _curvature(self, problem: Problem, key: jax.Array) -> jax.Array:
        """Largest eigenvalue of `A* diag(w) A`: exact on entries, elsewhere by power iteration."""
        weights, op = problem.effective_weights(), problem.operator
        if op.entrywise:
            return jnp.ones_like(problem.y[0]) if weights is None else jnp.max(weights)

        def power(x: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
            x = op.adjoint(problem.weighted(op.forward_dense(x)))
            norm = jnp.linalg.norm(x)
            return x / norm, norm

        x = drawn(jax.random.normal, key, problem.shape, problem.y.dtype)
        # Thirty steps reach within a few per cent from below. A constant to autodiff: the step size moves the path and
        # not its end.
        return jax.lax.stop_gradient(1.05 * jax.lax.scan(power, x, None, length=30)[1][-1])

    def _info(self, problem, residual, nuclear, penalty, used) -> dict[str, jax.Array]:
        info = base.describe(problem, residual)
        penalized = info["objective"] + penalty * nuclear
        return {**info, "nuclear_norm": nuclear, "penalty": penalty, "penalized": penalized, "rank": used}

    def step(self, problem: Problem, state: SoftImputeState, key: jax.Array) -> tuple[SoftImputeState, jax.Array]:
        """One proximal gradient step."""
        op, basis, dtype = problem.operator, state.basis, state.residual.dtype
        t = (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2
        beta = (state.momentum - 1) / t if self.accelerate else 0 * t
        penalty = jnp.maximum(state.target, jnp.asarray(self.decay, dtype) * state.penalty)
        now, before, rate = state.factors, state.previous, state.rate
        # The residual is affine in X: that of the extrapolated point needs no product.
        z = problem.weighted(
            problem.loss.gradient((1 + beta) * state.residual - beta * state.previous_residual),
        )
        for _ in range(self.power_steps):
            here = (1 + beta) * now.matmul(basis) - beta * before.matmul(basis)
            u = guarded.qr(here - rate * op.adjoint_matmul(z, basis))[0]
            there = (1 + beta) * now.rmatmul(u) - beta * before.rmatmul(u)
            q, small = guarded.qr(there - rate * op.adjoint_rmatmul(z, u))
            w, s, vt = guarded.svd(small)
            basis = matmul(q, w)
        shrunk = jnp.maximum(s - rate * penalty, 0)
        if (mask := initial.column_mask(self.max_rank, self.rank, dtype)) is not None:
            shrunk = shrunk * mask
        used = (shrunk > 0).astype(dtype)
        factors = Factors(matmul(u, vt.T) * shrunk[None, :], basis * used[None, :])
        residual = problem.residual(factors)
        info = self._info(problem, residual, jnp.sum(shrunk), penalty, jnp.sum(used))
        # At one penalty the objective must fall; where the extrapolation made it rise, start it afresh.
        before_now = state.info["objective"] + penalty * state.info["nuclear_norm"]
        t = jnp.where(info["penalized"] > before_now, jnp.ones_like(t), t)
        new = SoftImputeState(
            factors=factors,
            previous=now,
            basis=basis,
            residual=residual,
            previous_residual=state.residual,
            momentum=t,
            penalty=penalty,
            target=state.target,
            rate=rate,
            info=info,
        )
        tolerance = 10 * jnp.finfo(dtype).eps if self.tolerance is None else self.tolerance
        # Of the stopping test alone.
        moved = difference_norm(*jax.lax.stop_gradient((factors, now)))
        size = jnp.linalg.norm(jax.lax.stop_gradient(shrunk))
        # The first step moves nothing where the penalty still holds everything at zero.
        done = (moved <= tolerance * size) & (penalty <= state.target)
        return new, jnp.where(done, status.CONVERGED, status.RUNNING)
