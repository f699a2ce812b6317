"""Preconditioned factored gradient descent: a rate that does not depend on the condition number."""

import jax
import jax.numpy as jnp

from lrjax import initial
from lrjax.core.checks import check_choice, check_range
from lrjax.core.numerics import safe_divide, safe_sqrt
from lrjax.core.pytree import pytree
from lrjax.core.units import Units
from lrjax.losses import Squared
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import base
from lrjax.solvers.base import FirstOrderState

DAMPINGS = ("residual", "fixed", "none")
FIXED_STEP = 0.5
# Halvings tried of the step that would be best if the fit were linear in it.
_HALVINGS = 12


@pytree
class _Extra:
    gain: jax.Array
    size: jax.Array


@pytree
class ScaledGradientDescent:
    """Gradient descent with each factor's gradient multiplied by the inverse Gram matrix of the other.

    With `G = A*(w loss'(A(X) - y)) / gain`: `L <- L - eta G R (R^T R + lambda I)^-1`, `R <- R - eta G^T L (L^T L +
    lambda I)^-1`, both at once; symmetric `U <- U - eta (G + G^T)/2 U (U^T U + lambda I)^-1`.

    Damping: `"none"` is for the exact rank; `"fixed"`, `lambda = damping * ||X||_2` with the norm read off the
    measurements (that of the rank-one spectral start, whatever the start), reaches a floor set by the start when
    over-specified; `"residual"` (default), `lambda = damping * ||A(X) - y|| / sqrt(gain)`, is linear to machine
    precision in both cases.

    Attributes:
        step_size: eta. Default, for the squared loss: the best of a line search over twelve sizes along the direction;
            for others 0.5, which suits the spectral start. A number gives the method of the theory.
        damping: factor of the damping rule.
        tolerance: relative residual at which the solve has converged; default rounding level.
        rank: columns in use (traced), `None` for all.
        max_rank: columns of the factors.
        symmetric: `X = U U^T`.
        damping_rule: `"residual"`, `"fixed"` or `"none"`.

    Cost: that of a gradient step and two k x k Cholesky solves, `O((n1 + n2) k^2)`; the line search evaluates the
    measurements of two more matrices, of rank 2k and k.

    When not to use it: a fixed step on entries sampled sparsely and unevenly, which diverges on heavy rows; few
    entries (`GaussNewton`, `AlternatingMinimization`); outliers with the squared loss.

    Source: Tong, Ma and Chi, arXiv 2005.08898; Zhang, Fattahi and Zhang, arXiv 2504.09708, for the damping.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> problem, truth = lr.synthetic.matrix_sensing(
        ...     key, shape=(10, 8), rank=2, num_measurements=200, condition_number=50.0)
        >>> solution = lr.solve(problem, lr.ScaledGradientDescent(max_rank=2), key, num_steps=200)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-4)
        True
    """

    step_size: float | jax.Array | None = None
    damping: float | jax.Array = 0.1
    tolerance: float | jax.Array | None = None
    rank: int | jax.Array | None = None
    max_rank: int = jax.tree.static(kw_only=False)
    symmetric: bool = jax.tree.static(default=False)
    damping_rule: str = jax.tree.static(default="residual")

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        base.check_rank(self, problem)
        base.require_squared_or_smooth("ScaledGradientDescent", problem)
        check_choice("damping_rule", self.damping_rule, DAMPINGS)
        check_range("step_size", self.step_size, low=0, open_low=True)
        check_range("damping", self.damping, low=0)
        check_range("tolerance", self.tolerance, low=0)

    def in_units(self, units: Units) -> "ScaledGradientDescent":
        """Itself: every setting is relative to the data."""
        return self

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> FirstOrderState:
        """The spectral start, or given factors."""
        key_start, key_gain = jax.random.split(key)
        if factors is None:
            factors = initial.spectral(problem, self.max_rank, key_start, rank=self.rank, symmetric=self.symmetric)
        gain = initial.gain(problem, key_gain, symmetric=self.symmetric)
        size = jnp.zeros_like(gain)
        if self.damping_rule == "fixed":
            top = initial.spectral(problem, 1, key_start, symmetric=self.symmetric)
            size = jnp.sqrt(jnp.sum(top.left**2) * jnp.sum(top.right**2))
        extra = _Extra(gain=gain, size=size)
        return self._at(problem, factors, extra)

    def _at(self, problem: Problem, factors: Factors, extra: _Extra) -> FirstOrderState:
        residual = problem.residual(factors)
        return FirstOrderState(factors=factors, residual=residual, info=base.describe(problem, residual), extra=extra)

    def _damping(self, problem: Problem, state: FirstOrderState) -> jax.Array:
        if self.damping_rule == "residual":
            # ||A(X) - y|| / sqrt(gain) estimates ||X - X*||_F. Its square root has no derivative at an exact fit.
            square = jnp.sum(problem.weighted(state.residual**2)) / state.extra.gain
            norm = safe_sqrt(square)
            return self.damping * norm
        return self.damping * state.extra.size

    def _precondition(self, gradient: jax.Array, other: jax.Array, damping: jax.Array, after=None) -> jax.Array:
        mask = initial.column_mask(self.max_rank, self.rank, other.dtype)
        return base.precondition(gradient, other, damping, mask, after=after)

    def step(self, problem: Problem, state: FirstOrderState, key: jax.Array) -> tuple[FirstOrderState, jax.Array]:
        """One preconditioned step."""
        factors = state.factors
        z = problem.weighted(problem.loss.gradient(state.residual)) / state.extra.gain
        damping = self._damping(problem, state)
        if self.symmetric:
            gradient = problem.operator.symmetric_adjoint_matmul(z, factors.left) / 2
            left = self._precondition(gradient, factors.left, damping)
            direction = Factors(left, left)
        else:
            to_left = problem.operator.adjoint_matmul(z, factors.right)
            to_right = problem.operator.adjoint_rmatmul(z, factors.left)
            left = self._precondition(to_left, factors.right, damping)
            direction = Factors(left, self._precondition(to_right, factors.left, damping, after=left))
        size = self._size(problem, state, direction)
        new = Factors(factors.left - size * direction.left, factors.right - size * direction.right)
        new_state = self._at(problem, new, state.extra)
        return new_state, base.exact_fit(state.info["residual"], new_state.info["residual"], self.tolerance)

    def _size(self, problem: Problem, state: FirstOrderState, direction: Factors) -> jax.Array | float:
        if self.step_size is not None:
            return self.step_size
        if not isinstance(problem.loss, Squared):
            return FIXED_STEP
        # The residual at size eta is r - eta s + eta^2 t, and the objective a quartic in eta.
        factors, join = state.factors, lambda a, b: jnp.concatenate([a, b], axis=1)
        s = problem.operator.forward(join(direction.left, factors.left), join(factors.right, direction.right))
        t = problem.operator.forward(direction.left, direction.right)
        dot = lambda u, v: jnp.sum(problem.weighted(u * v))
        rs, rt, ss, st, tt = dot(state.residual, s), dot(state.residual, t), dot(s, s), dot(s, t), dot(t, t)
        best = safe_divide(rs, ss)
        sizes = best * 0.5 ** jnp.arange(_HALVINGS, dtype=best.dtype)
        change = sizes * (-2 * rs + sizes * (ss + 2 * rt + sizes * (-2 * st + sizes * tt)))
        return sizes[jnp.argmin(change)]
