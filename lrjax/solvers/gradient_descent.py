"""Factored gradient descent, plain and over-parameterized, with the one-step rebalancing."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lrjax import initial, losses
from lrjax.core.checks import check_choice, check_range
from lrjax.core.numerics import matmul, or_one
from lrjax.core.pytree import pytree, replace
from lrjax.core.units import Units
from lrjax.linalg import guarded
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import base
from lrjax.solvers.base import FirstOrderState

STARTS = ("small_random", "spectral")
DEFAULT_STEP = 0.25


@pytree
class _Extra:
    unit: jax.Array
    gain: jax.Array
    optimizer_state: Any
    rebalanced: jax.Array


@pytree
class GradientDescent:
    """Gradient descent on both factors at once, any rank, any smooth loss, any optax transformation.

    With `G = A*(w loss'(A(X) - y)) / gain`: asymmetric `L <- L - eta G R`, `R <- R - eta G^T L` (simultaneous, no
    balancing penalty); symmetric `U <- U - eta (G + G^T)/2 U`, the convention of the theory.

    Symmetric over-parameterized descent (`max_rank` above the true rank) converges only like 1/t; the asymmetric one
    linearly at a rate proportional to the square of the imbalance of the start; `rebalance=True` changes the
    factorization once, `L <- beta P`, `R <- R Q S / beta` with `L = P S Q^T`, which leaves `X` as it is and makes
    the rate `eta min(beta^2, sigma_r^2 / beta^2)`, independent of the initial scale.

    Units, which are constants to autodiff: with `relative=True` (default) `step_size` is in units of `1 / ||X||_2`
    and `initial_scale` and `rebalance_scale` in units of `sqrt(||X||_2)`, with `||X||_2` estimated from `A*(y)`;
    `relative=False` takes them as they are. Gradients are divided by the operator's mean-square gain in both cases (one
    for `Identity`).

    Attributes:
        step_size: eta, default 0.25; leave unset when `optimizer` is given.
        initial_scale: alpha; entries of the start are `N(0, alpha^2 / n)`.
        imbalance: scale of the right factor's start relative to the left one's.
        rebalance_at: relative residual at which the factors are rebalanced.
        rebalance_scale: beta; default `sqrt(sigma_r)`, the best one, with r read off the largest gap.
        tolerance: relative residual at which the solve has converged; default rounding level.
        rank: columns in use (traced), `None` for all.
        max_rank: columns of the factors.
        symmetric: `X = U U^T`.
        start: `"small_random"` or `"spectral"`.
        rebalance: whether to rebalance once (asymmetric only).
        relative: units, see above.
        optimizer: an `optax.GradientTransformation` instead of the plain step; build it once per process. It is fed
            gradient and factors in the units above, and started afresh after a rebalancing.

    Cost: one forward and two adjoint products a step; the rebalancing one thin SVD, under vmap at every step.

    When not to use it: ill-conditioned problems (`ScaledGradientDescent` does not slow down with the condition
    number), outliers with the squared loss (`SubgradientMethod`).

    Source: Xiong, Ding and Du, arXiv 2310.01769 (papers key `overparameterized_gd`), algorithms A3.1 to A3.3.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> problem, truth = lr.synthetic.matrix_sensing(key, shape=(10, 8), rank=1, num_measurements=150)
        >>> solution = lr.solve(problem, lr.GradientDescent(max_rank=1), key, num_steps=300)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-3)
        True
    """

    step_size: float | jax.Array | None = None
    initial_scale: float | jax.Array = 0.1
    imbalance: float | jax.Array = 1.0
    rebalance_at: float | jax.Array = 0.03
    rebalance_scale: float | jax.Array | None = None
    tolerance: float | jax.Array | None = None
    rank: int | jax.Array | None = None
    max_rank: int = jax.tree.static(kw_only=False)
    symmetric: bool = jax.tree.static(default=False)
    start: str = jax.tree.static(default="small_random")
    rebalance: bool = jax.tree.static(default=False)
    relative: bool = jax.tree.static(default=True)
    optimizer: optax.GradientTransformation | None = jax.tree.static(default=None)

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        base.check_rank(self, problem)
        check_choice("start", self.start, STARTS)
        if self.optimizer is not None and self.step_size is not None:
            raise ValueError(f"step_size and optimizer exclude each other; got step_size={self.step_size!r}")
        if self.optimizer is not None and not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise ValueError(f"optimizer must be an optax.GradientTransformation; got {self.optimizer!r}")
        for name in ("step_size", "initial_scale", "imbalance", "rebalance_at", "rebalance_scale"):
            check_range(name, getattr(self, name), low=0, open_low=True)
        check_range("tolerance", self.tolerance, low=0)
        if self.rebalance and self.symmetric:
            raise ValueError("rebalance=True needs two factors; tied ones (symmetric=True) cannot be rebalanced")

    def in_units(self, units: Units) -> "GradientDescent | None":
        """Step and scales, if they are absolute, in units of the data; an optimizer then wants the data as they are."""
        if self.relative:
            return self
        if self.optimizer is not None:
            return None
        step = DEFAULT_STEP if self.step_size is None else self.step_size
        beta = self.rebalance_scale
        return replace(
            self,
            step_size=step * units.measurement ** max(units.degree - 1, 0),
            initial_scale=self.initial_scale / units.factor,
            rebalance_scale=None if beta is None else beta / units.factor,
        )

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> FirstOrderState:
        """The small random or spectral start, or given factors."""
        key_start, key_gain, key_unit = jax.random.split(key, 3)
        gain = initial.gain(problem, key_gain, symmetric=self.symmetric)
        unit = jnp.ones_like(gain)
        if self.relative:
            z = problem.weighted(problem.observed())
            _, top, _ = initial.adjoint_svd(problem, z, 1, key_unit)
            # A unit, and a constant to autodiff like all of them.
            top = jax.lax.stop_gradient(top[0] / gain)
            unit = or_one(top)
        if factors is None and self.start == "spectral":
            factors = initial.spectral(problem, self.max_rank, key_start, rank=self.rank, symmetric=self.symmetric)
        elif factors is None:
            factors = initial.small_random(
                key_start,
                problem.shape,
                self.max_rank,
                scale=self.initial_scale * jnp.sqrt(unit),
                imbalance=self.imbalance,
                symmetric=self.symmetric,
                rank=self.rank,
                dtype=problem.y.dtype,
            )
        optimizer_state = self._fresh(factors, unit)
        extra = _Extra(
            unit=unit, gain=gain, optimizer_state=optimizer_state, rebalanced=jnp.zeros_like(gain, dtype=bool)
        )
        return self._at(problem, factors, extra)

    def _parameters(self, factors: Factors) -> Any:
        return factors.left if self.symmetric else (factors.left, factors.right)

    def _fresh(self, factors: Factors, unit: jax.Array) -> Any:
        if self.optimizer is None:
            return None
        return self.optimizer.init(_times(self._parameters(factors), 1 / jnp.sqrt(unit)))

    def _at(self, problem: Problem, factors: Factors, extra: _Extra) -> FirstOrderState:
        residual = problem.residual(factors)
        return FirstOrderState(factors=factors, residual=residual, info=base.describe(problem, residual), extra=extra)

    def step(self, problem: Problem, state: FirstOrderState, key: jax.Array) -> tuple[FirstOrderState, jax.Array]:
        """One step, and the rebalancing once it is due."""
        factors, extra = state.factors, state.extra
        # The gradient of the absolute loss has no units: a step of its own size is relative already.
        loss = problem.loss
        alike = not isinstance(loss, losses.LossWithUnits) or loss.degree == 2
        unit = extra.unit if alike else jnp.ones_like(extra.unit)
        z = problem.weighted(problem.loss.gradient(state.residual)) / (extra.gain * unit)
        if self.symmetric:
            gradient = problem.operator.symmetric_adjoint_matmul(z, factors.left) / 2
        else:
            gradient = (
                problem.operator.adjoint_matmul(z, factors.right),
                problem.operator.adjoint_rmatmul(z, factors.left),
            )
        parameters, optimizer_state = self._parameters(factors), extra.optimizer_state
        if self.optimizer is None:
            eta = DEFAULT_STEP if self.step_size is None else self.step_size
            parameters = jax.tree.map(lambda p, g: p - eta * g, parameters, gradient)
        else:
            root = jnp.sqrt(extra.unit)
            given = _times((gradient, parameters), 1 / root)
            updates, optimizer_state = self.optimizer.update(given[0], optimizer_state, given[1])
            parameters = jax.tree.map(jnp.add, parameters, _times(updates, root))
        new = Factors(parameters, parameters) if self.symmetric else Factors(*parameters)
        extra = _Extra(unit=extra.unit, gain=extra.gain, optimizer_state=optimizer_state, rebalanced=extra.rebalanced)
        state_new = self._at(problem, new, extra)
        if self.rebalance:
            state_new = self._rebalance_once(state_new)
        return state_new, base.exact_fit(state.info["residual"], state_new.info["residual"], self.tolerance)

    def _rebalance_once(self, state: FirstOrderState) -> FirstOrderState:
        due = ~state.extra.rebalanced & (state.info["residual"] <= self.rebalance_at)
        # X does not change, so residual and info stay true.
        return jax.lax.cond(due, self._rebalanced, lambda state: state, state)

    def _rebalanced(self, state: FirstOrderState) -> FirstOrderState:
        left, right = state.factors.left, state.factors.right
        p, s, qt = guarded.svd(left)
        mask = initial.column_mask(self.max_rank, self.rank, left.dtype)
        if self.rebalance_scale is None:
            beta = jnp.sqrt(_smallest_signal(state.factors.svd()[1]))
        else:
            beta = self.rebalance_scale * jnp.sqrt(state.extra.unit)
        new_left = initial.keep_columns(beta * p, mask)
        factors = Factors(new_left, matmul(right, qt.T) * (s / beta)[None, :])
        extra = _Extra(
            unit=state.extra.unit,
            gain=state.extra.gain,
            # Momentum of the old coordinates would push the new ones the wrong way.
            optimizer_state=self._fresh(factors, state.extra.unit),
            rebalanced=jnp.ones_like(state.extra.rebalanced),
        )
        return FirstOrderState(factors=factors, residual=state.residual, info=state.info, extra=extra)


def _times(tree: Any, factor: jax.Array) -> Any:
    return jax.tree.map(lambda x: x * factor, tree)


def _smallest_signal(s: jax.Array) -> jax.Array:
    """The singular value before the largest relative gap; the last one if there is a single value."""
    if s.shape[0] == 1:
        return s[0]
    floor = jnp.finfo(s.dtype).eps * s[0]
    ratio = jnp.maximum(s[:-1], floor) / jnp.maximum(s[1:], floor)
    # At the exact rank there is no gap to find: a ratio below ten is conditioning, not the end of the signal.
    return jnp.where(jnp.max(ratio) > 10, s[jnp.argmax(ratio)], s[-1])
