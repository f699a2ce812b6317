"""Subgradient method for robust recovery from a small start."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax import initial, status, step_sizes
from lrjax.core.checks import check_range
from lrjax.core.numerics import or_one
from lrjax.core.pytree import pytree, replace
from lrjax.core.units import Units
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import base
from lrjax.solvers.base import FirstOrderState

# Eigenvalues of the start above this multiple of the noise edge count as signal.
CLEAR_OF_NOISE = 1.2


@pytree
class _Extra:
    reference: jax.Array
    unit: jax.Array
    budget_ok: jax.Array
    step: jax.Array


@pytree
class SubgradientMethod:
    """Subgradient steps on the mean absolute misfit `(1/m) ||A(X) - y||_1`, from a small sign-spectral start.

    `D = A*(sign(A(X) - y)) / m`; symmetric: `U <- U - eta (D + D^T) U` with `X = U U^T`; asymmetric:
    `L <- L - eta D R`, `R <- R - eta D^T L`, both at once. Recovers exactly under gross corruption of up to about
    half of the measurements, without knowing the rank: on general measurements `max_rank` may be anything up to n (on
    entries it must be the rank: nothing there holds surplus columns down). At the exact rank
    convergence is linear; over-specified, the error ends at a floor proportional to `initial_scale`.

    Units, which are constants to autodiff: with `relative=True` (default) a step of size 1 means `1 / g`, `g` the
    root-mean-square gain of one measurement, and residual-driven rules are relative to the same statistic of `y`, so
    that the defaults do not depend on how the data are scaled. `relative=False` takes step and `initial_scale` as they
    are, as papers do (Gaussian measurement matrices with unit entries).

    Attributes:
        step_size: a rule of `lrjax.step_sizes`, or a number for a constant step. Default: `ResidualQuantile()`; on
            entries `Geometric(decay=0.98)`: there residuals are local, and a quantile of them falls while
            some rows still are far off.
        initial_scale: size alpha of the start, relative to the matrix sought; default 1e-5, on entries 1.
        hidden_scale: factor for those directions of the start that are not clear of the noise edge (the spectral norm
            with random signs); default `initial_scale`, so that they start at alpha squared, and one on entries. They
            still grow if they hold signal, in twice the time, but surplus ones no longer set the floor of an
            over-specified solve. One gives the start of the paper.
        tolerance: converged once a step moves the factors by less than this, relatively; default machine epsilon.
        rank: columns in use (traced), `None` for all.
        max_rank: columns of the factors.
        symmetric: `X = U U^T`.
        relative: units, see above.
        unit: what `initial_scale` is measured in, where that is absolute. `lrjax.solve` sets it when it measures in
            units of the data.
        check_budget: refuse geometric schedules whose sum is too small for the start to grow: the lane stops at once
            with status `SCHEDULE_TOO_SHORT` instead of freezing near zero.

    Cost: one forward, one adjoint (two products), and for quantile rules a sort of the residuals, per step.

    When not to use it: without outliers (`ScaledGradientDescent`, `AlternatingMinimization` need fewer steps); on
    badly conditioned matrices its rate suffers.

    Source: Ma and Fattahi, arXiv 2202.08788 (papers key `subgradient_l1`).

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> problem, truth = lr.synthetic.matrix_sensing(
        ...     key, shape=(12, 12), rank=2, num_measurements=480, symmetric=True, corruption=0.2)
        >>> solution = lr.solve(problem, lr.SubgradientMethod(max_rank=12, symmetric=True), key, num_steps=400)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-3)
        True
    """

    step_size: Any = None
    initial_scale: float | jax.Array | None = None
    hidden_scale: float | jax.Array | None = None
    tolerance: float | jax.Array | None = None
    unit: float | jax.Array = 1.0
    rank: int | jax.Array | None = None
    max_rank: int = jax.tree.static(kw_only=False)
    symmetric: bool = jax.tree.static(default=False)
    relative: bool = jax.tree.static(default=True)
    check_budget: bool = jax.tree.static(default=True)

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        base.check_rank(self, problem)
        base.require_absolute("SubgradientMethod", problem)
        check_range("initial_scale", self.initial_scale, low=0, open_low=True)
        check_range("hidden_scale", self.hidden_scale, low=0, high=1)
        check_range("tolerance", self.tolerance, low=0)
        base.check_step_rule(self.step_size)

    def _rule(self, problem: Problem) -> Any:
        if self.step_size is None:
            return step_sizes.Geometric(decay=0.98) if problem.operator.entrywise else step_sizes.ResidualQuantile()
        return step_sizes.as_rule(self.step_size)

    def _scales(self, problem: Problem) -> tuple[jax.Array, jax.Array]:
        """Scales of the clear directions, and of the hidden ones relative to them."""
        entrywise, dtype = problem.operator.entrywise, problem.y.dtype
        alpha = (1.0 if entrywise else 1e-5) if self.initial_scale is None else self.initial_scale
        hidden = (1.0 if entrywise else alpha * self.unit) if self.hidden_scale is None else self.hidden_scale
        return jnp.asarray(alpha, dtype), jnp.asarray(hidden, dtype)

    def in_units(self, units: Units) -> "SubgradientMethod | None":
        """Start and step rule, if they are absolute, and Polyak's optimum in units of the data."""
        rule, known = base.rule_in_units(self.step_size, units, relative=self.relative)
        if not known:
            return None
        if self.relative or self.initial_scale is None:
            return replace(self, step_size=rule)
        return replace(self, step_size=rule, initial_scale=self.initial_scale / units.factor, unit=units.factor)

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> FirstOrderState:
        """The start: `initial_scale` times the factors of the sign-spectral matrix, or given factors."""
        key_start, key_gain = jax.random.split(key)
        alpha, hidden = self._scales(problem)
        weights, y = problem.effective_weights(), problem.observed()
        entry = jnp.sqrt(initial.gain(problem, key_gain, symmetric=self.symmetric) / problem.total_weight())
        start, values, edge = initial.sign_spectral(
            problem, self.max_rank, key_start, symmetric=self.symmetric, rank=self.rank
        )
        rule = self._rule(problem)
        if self.relative:
            # A quarter of |y| lie below 0.32 g ||X||_F for Gaussian measurements; a low quantile feels outliers least.
            norm = step_sizes.measured_quantile(jnp.abs(y), weights, 0.25) / (0.3186 * entry)
            scale = alpha * jax.lax.stop_gradient(jnp.sqrt(norm / entry))
            reference, unit = jax.lax.stop_gradient(rule.reference(y, weights)), 1 / entry
        else:
            scale = alpha
            reference = unit = jnp.ones((), y.dtype)
        clear = values > CLEAR_OF_NOISE * edge
        budget_ok = jnp.asarray(True)
        if isinstance(rule, step_sizes.Geometric):
            weakest = jnp.min(jnp.where(clear, values, values[0]))
            # Nothing grows out of measurements that are all zero.
            weakest = or_one(weakest)
            # The i-th direction grows by exp(2 lambda_i(C) total), or exp(lambda_i total) with untied factors.
            growth = (2 if self.symmetric else 1) * unit * weakest
            needed = jnp.log(1 / (alpha * self.unit)) / growth * (1 - rule.decay)
            reference = jnp.maximum(1.5 * needed, 0.3)
            if factors is None and self.check_budget and rule.value is not None:
                budget_ok = rule.value >= needed
        if factors is None:
            columns = (scale * jnp.where(clear, 1, hidden))[None, :]
            factors = Factors(columns * start.left, columns * start.right)
        extra = _Extra(
            reference=reference,
            unit=unit,
            budget_ok=budget_ok,
            step=jnp.zeros_like(problem.total_weight(), dtype=jnp.int32),
        )
        return self._at(problem, factors, extra, jnp.zeros_like(unit))

    def _at(self, problem: Problem, factors: Factors, extra: _Extra, size: jax.Array) -> FirstOrderState:
        residual = problem.residual(factors)
        info = {**base.describe(problem, residual), "step_size": size}
        return FirstOrderState(factors=factors, residual=residual, info=info, extra=extra)

    def step(self, problem: Problem, state: FirstOrderState, key: jax.Array) -> tuple[FirstOrderState, jax.Array]:
        """One subgradient step."""
        weights, total, factors, extra = (
            problem.effective_weights(),
            problem.total_weight(),
            state.factors,
            state.extra,
        )
        z = problem.weighted(problem.loss.gradient(state.residual)) / total
        if self.symmetric:
            grad_left = grad_right = problem.operator.symmetric_adjoint_matmul(z, factors.left)
            slope = jnp.sum(grad_left**2)
        else:
            grad_left = problem.operator.adjoint_matmul(z, factors.right)
            grad_right = problem.operator.adjoint_rmatmul(z, factors.left)
            slope = jnp.sum(grad_left**2) + jnp.sum(grad_right**2)
        size = self._rule(problem).size(
            step_sizes.Observation(
                step=extra.step,
                residual=state.residual,
                weights=weights,
                reference=extra.reference,
                unit=extra.unit,
                objective=state.info["objective"] / total,
                slope=slope,
            )
        )
        left = factors.left - size * grad_left
        new = Factors(left, left if self.symmetric else factors.right - size * grad_right)
        extent = jnp.sum(factors.left**2) + (0 if self.symmetric else jnp.sum(factors.right**2))
        tolerance = jnp.finfo(left.dtype).eps if self.tolerance is None else self.tolerance
        still = size**2 * slope <= tolerance**2 * extent
        code = jnp.where(still, status.CONVERGED, status.RUNNING)
        code = jnp.where(extra.budget_ok, code, status.SCHEDULE_TOO_SHORT)
        extra = _Extra(reference=extra.reference, unit=extra.unit, budget_ok=extra.budget_ok, step=extra.step + 1)
        return self._at(problem, new, extra, size), code
