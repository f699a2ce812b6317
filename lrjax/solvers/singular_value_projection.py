"""Singular value projection: gradient steps, each followed by the best approximation of rank `max_rank`."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from lrjax import initial
from lrjax.core.checks import check_count, check_range
from lrjax.core.numerics import matmul, or_one
from lrjax.core.pytree import pytree
from lrjax.core.units import Units
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import base
from lrjax.solvers.base import FirstOrderState


@pytree
class SingularValueProjection:
    """Iterative hard thresholding of singular values: `X <- P_k(X - eta A*(w (A(X) - y)))`.

    By default the step is the normalised one: exact line search along the gradient projected on the row space of the
    iterate, where `X` stays of rank k. The truncated singular value
    decomposition is that of factors plus sparse (or whatever `A*` is), by subspace iteration from the singular
    vectors of the step before: no matrix of the size of `X` is formed.

    Attributes:
        step_size: fixed eta, relative to one over the gain of the measurements; `None` for the normalised step.
        tolerance: relative residual at which the solve has converged; default rounding level.
        rank: singular values to keep (traced), `None` for `max_rank`.
        max_rank: columns of the factors.
        power_steps: subspace iterations per step.

    Cost per step: a gradient's two products per subspace iteration and one more of each kind for the step size, one
    forward product for that and one for the residual, and QR of `max_rank` columns.

    When not to use it: ill-conditioned matrices (its rate is that of gradient descent on `X`, about one minus the
    fraction observed on entries), or few entries: `AlternatingMinimization` or `ScaledGradientDescent` need fewer.

    Source: Jain, Meka and Dhillon, arXiv 0909.5457; Tanner and Wei, SIAM J. Sci. Comput. 35 (2013), for the step.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> problem, truth = lr.synthetic.matrix_completion(key, shape=(40, 30), rank=2, fraction=0.6)
        >>> solution = lr.solve(problem, lr.SingularValueProjection(max_rank=2), key, num_steps=200)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-4)
        True
    """

    step_size: float | jax.Array | None = None
    tolerance: float | jax.Array | None = None
    rank: int | jax.Array | None = None
    max_rank: int = jax.tree.static(kw_only=False)
    power_steps: int = jax.tree.static(default=1)

    unitless: ClassVar[str] = "right"

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        base.check_rank(self, problem)
        base.require_squared_or_smooth("SingularValueProjection", problem)
        check_count("power_steps", self.power_steps)
        check_range("step_size", self.step_size, low=0, open_low=True)
        check_range("tolerance", self.tolerance, low=0)

    def in_units(self, units: Units) -> "SingularValueProjection":
        """Itself: every setting is relative to the data."""
        return self

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> FirstOrderState:
        """The spectral start, or given factors."""
        key_start, key_gain = jax.random.split(key)
        if factors is None:
            factors = initial.spectral(problem, self.max_rank, key_start, rank=self.rank)
        right = initial.orthonormal(factors.right, initial.column_mask(self.max_rank, self.rank, problem.y.dtype))
        factors = Factors(factors.matmul(right), right)
        gain = initial.gain(problem, key_gain, symmetric=False)
        return self._at(problem, factors, gain)

    def _at(self, problem: Problem, factors: Factors, gain: jax.Array) -> FirstOrderState:
        residual = problem.residual(factors)
        return FirstOrderState(factors=factors, residual=residual, info=base.describe(problem, residual), extra=gain)

    def step(self, problem: Problem, state: FirstOrderState, key: jax.Array) -> tuple[FirstOrderState, jax.Array]:
        """One step; see `SingularValueProjection`."""
        op, (left, basis) = problem.operator, (state.factors.left, state.factors.right)
        z = problem.weighted(problem.loss.gradient(state.residual))
        ascent = op.adjoint_matmul(z, basis)
        if self.step_size is None:
            image = op.forward(ascent, basis)
            energy = jnp.sum(problem.weighted(image * image))
            size = jnp.sum(ascent * ascent) / or_one(energy)
        else:
            size = self.step_size / state.extra
        mask = initial.column_mask(self.max_rank, self.rank, left.dtype)
        # `moved` is (X - size G) times the current basis; more rounds turn the basis towards its singular vectors.
        moved = left - size * ascent
        for _ in range(self.power_steps):
            u = initial.orthonormal(moved, mask)
            back = matmul(basis, matmul(left.T, u)) - size * op.adjoint_rmatmul(z, u)
            v = initial.orthonormal(back, mask)
            moved = matmul(left, matmul(basis.T, v)) - size * op.adjoint_matmul(z, v)
        new = self._at(problem, Factors(initial.keep_columns(moved, mask), v), state.extra)
        return new, base.exact_fit(state.info["residual"], new.info["residual"], self.tolerance)
