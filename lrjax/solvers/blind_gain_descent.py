"""Blind gain calibration by projected gradient descent with exact line searches."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import losses
from lrjax.core.checks import check_count, check_range, host_value
from lrjax.core.numerics import matmul, or_one
from lrjax.core.pytree import pytree
from lrjax.core.units import Units
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import base
from lrjax.solvers.base import FirstOrderState


@pytree
class BlindGainDescent:
    """Gains `g` and input `x` of `y = A(g x^T)` by descent in both at once; the mean of the gains is one.

    Each step moves `x` along its gradient and `g` along its gradient less the mean of that, each as far as an exact
    line search with the other held says, and projects the gains on those within `radius` of one and with mean
    one. It starts at `g = 1` and the best multiple of `A*(y)^T 1`. The answer is `Factors(g, x)`, of rank one.

    Meant for `operators.GainMeasurements` with Gaussian-like matrices and positive gains; it runs on any operator.

    Attributes:
        radius: largest distance of a gain from one, at most one.
        tolerance: relative residual at which the solve has converged; default rounding level.
        gain_basis: `(m, h)`, orthonormal columns whose span contains the gains and the vector of ones. The steps then
            stay in that span, with mean one; `radius` is not enforced, since a projection on it would leave the span.
        input_basis: `(n, k)`, orthonormal columns whose span contains the input; `n p` rows for inputs of their own.
        bisections: halvings in the search for the shift of that projection.

    Cost per step: three forward and two adjoint products.

    When not to use it: few measurements. It wants about one and a half times as many as unknowns; `lr.calibrate`
    is exact from just as many, for weak noise. Gains with mean zero or random signs.

    Source: Cambareri and Jacques, arXiv 1610.09028. The published start divides `A*(y)^T 1` by the number of
    measurements, which needs matrices of unit variance; here its length is found by a line search.

    Examples:
        >>> import jax, lrjax as lr
        >>> problem, truth = lr.synthetic.gain_calibration(jax.random.key(0), shape=(32, 16), num_blocks=6)
        >>> solution = lr.solve(problem, lr.BlindGainDescent(), jax.random.key(1), num_steps=200)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-4)
        True
    """

    radius: float | jax.Array = 0.99
    tolerance: float | jax.Array | None = None
    gain_basis: Any = None
    input_basis: Any = None
    bisections: int = jax.tree.static(default=60)

    max_rank: ClassVar[int] = 1
    unitless: ClassVar[str] = "left"

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        if not isinstance(problem.loss, losses.Squared):
            raise ValueError(f"BlindGainDescent minimises the squared loss; problem.loss is {problem.loss!r}")
        check_range("radius", self.radius, low=0, high=1, open_low=True)
        check_range("tolerance", self.tolerance, low=0)
        check_count("bisections", self.bisections)
        for name, basis, n in zip(
            ("gain_basis", "input_basis"), (self.gain_basis, self.input_basis), problem.shape, strict=True
        ):
            if basis is not None and (jnp.ndim(basis) != 2 or jnp.shape(basis)[0] != n):
                raise ValueError(f"{name} must have shape ({n}, k), orthonormal columns; got {jnp.shape(basis)}")
            if basis is not None and (host := host_value(basis)) is not None:
                # Catches a wrongly scaled basis; rounding, in any dtype, is far smaller.
                if not np.abs(host.T @ host - np.eye(host.shape[1])).max() < 1e-2:
                    raise ValueError(f"{name} must have orthonormal columns: take numpy.linalg.qr(basis)[0]")
                if name == "gain_basis" and not np.abs(host @ host.sum(axis=0) - 1).max() < 1e-2:
                    raise ValueError("the span of gain_basis must contain the vector of ones")

    def in_units(self, units: Units) -> "BlindGainDescent":
        """Itself: every setting is relative to the data."""
        return self

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> FirstOrderState:
        """Gains of one and the best multiple of the adjoint image; given factors are scaled to mean gain one."""
        if factors is None:
            back = problem.operator.adjoint_rmatmul(problem.weighted(problem.observed()), self._ones(problem))
            back = _within(self.input_basis, back)
            gains = self._ones(problem)
            image = problem.operator.forward(gains, back)
            factors = Factors(gains, back * _ratio(problem, problem.observed(), image))
        else:
            mean = jnp.mean(factors.left)
            scale = jnp.where(mean != 0, mean, 1)
            factors = Factors(self._project(factors.left / scale), factors.right * scale)
        return self._at(problem, factors)

    def _ones(self, problem: Problem) -> jax.Array:
        return jnp.ones((problem.shape[0], 1), problem.y.dtype) + 0 * problem.observed()[0]

    def _project(self, gains: jax.Array) -> jax.Array:
        return project_gains(gains, self.radius, self.bisections) if self.gain_basis is None else gains

    def _at(self, problem: Problem, factors: Factors) -> FirstOrderState:
        residual = problem.residual(factors)
        return FirstOrderState(factors=factors, residual=residual, info=base.describe(problem, residual))

    def step(self, problem: Problem, state: FirstOrderState, key: jax.Array) -> tuple[FirstOrderState, jax.Array]:
        """One step; see `BlindGainDescent`."""
        op, gains, x = problem.operator, state.factors.left, state.factors.right
        z = problem.weighted(state.residual)
        down_x = _within(self.input_basis, op.adjoint_rmatmul(z, gains))
        down_gains = _within(self.gain_basis, op.adjoint_matmul(z, x))
        # The vector of ones is in the span, so what is left after the mean is too.
        down_gains = down_gains - jnp.mean(down_gains)
        size_x = _ratio(problem, state.residual, op.forward(gains, down_x))
        size_gains = _ratio(problem, state.residual, op.forward(down_gains, x))
        moved = Factors(self._project(gains - size_gains * down_gains), x - size_x * down_x)
        new = self._at(problem, moved)
        return new, base.exact_fit(state.info["residual"], new.info["residual"], self.tolerance)


def _within(basis: jax.Array | None, direction: jax.Array) -> jax.Array:
    return direction if basis is None else matmul(basis, matmul(basis.T, direction))


def _ratio(problem: Problem, residual: jax.Array, image: jax.Array) -> jax.Array:
    """Step that makes `residual - step * image` shortest; zero where `image` vanishes."""
    energy = jnp.sum(problem.weighted(image * image))
    return jnp.sum(problem.weighted(residual * image)) / or_one(energy)


def project_gains(gains: jax.Array, radius: float | jax.Array, bisections: int = 60) -> jax.Array:
    """The nearest vector with mean one and every entry within `radius` of one.

    It is `1 + clip(gains - 1 - shift, -radius, radius)`, with the shift at which the mean is one, found by bisection.
    """
    offset = gains - 1
    clipped = lambda shift: jnp.clip(offset - shift, -radius, radius)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        above = jnp.sum(clipped(middle)) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    # The bisection finds which entries are clipped; the derivative comes from the step after it.
    bounds = jax.lax.stop_gradient((jnp.min(offset) - radius, jnp.max(offset) + radius))
    low, high = jax.lax.fori_loop(0, bisections, halve, bounds)
    shift = jax.lax.stop_gradient((low + high) / 2)
    # A Newton step on the piece found: nothing moves any more, and the derivative is that of the exact shift.
    free = jnp.sum((jnp.abs(offset - shift) < radius).astype(gains.dtype))
    return 1 + clipped(shift + jnp.sum(clipped(shift)) / jnp.maximum(free, 1))
