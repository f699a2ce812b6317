"""Gauss-Newton: least squares in both factors at once, linearised, with a ridge that fades; and its robust form."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lrjax import initial, losses, status
from lrjax.core.checks import check_choice, check_count, check_range
from lrjax.core.numerics import matmul, or_one, safe_divide, safe_sqrt
from lrjax.core.pytree import pytree
from lrjax.core.units import Units
from lrjax.linalg import guarded
from lrjax.linalg.krylov import counted_conjugate_gradient
from lrjax.problems.factors import Factors, best_rank
from lrjax.problems.problem import Problem
from lrjax.solvers import base
from lrjax.step_sizes import measured_quantile

# The weight alpha of the old product in the right-hand side: minimise ||A(U V'^T + U' V^T) - (y + alpha A(U V^T))||.
ALPHA = {"ridge": 1.0, "setting": 1.0, "averaging": 0.0, "updating": -1.0}
# The ridge is raised by this factor when the residual has not fallen for `patience` steps.
REHEAT = 100.0
DEFAULT_INNER_STEPS = {"ridge": 200}

# Absolute loss. A measurement has weight (1 + (r / scale)^2)^-SOFTNESS. Below 0.5 gross errors keep pulling at any
# scale; far above it, parts of the matrix that are not fitted yet are taken for errors.
SOFTNESS = 0.65
# The first scale is this quantile of the measurements. It then falls by `decay` per step, or at once to FAST times the
# 35 % quantile of the residuals, but not below SLOW times that, 1.4 standard deviations of Gaussian noise, nor by more
# than LEAST in one step, since a few rows with few measurements come last.
FIRST, QUANTILE, FAST, SLOW, LEAST = 0.8, 0.35, 20.0, 3.0, 0.3
# Nor below this many epsilons of the fitted values: at rounding level good measurements would lose their weight.
ROUNDING = 1e4
# A column whose singular value falls below this fraction of the edge is set back to there: at zero it would stay.
FLOOR = 0.05
# A fit counts only if this many times more measurements agree than a matrix of its rank has degrees of freedom.
MARGIN = 1.1


@pytree
class GaussNewtonState:
    """State of Gauss-Newton.

    Attributes:
        factors: the answer so far: the best balanced truncation of the linearised estimates.
        point: where the next step linearises; its product is not the answer.
        ridge: ridge of the next step, relative to the mean diagonal of the normal matrix.
        gain: mean-square gain of the measurements.
        weights: `(m,)` weights of the next step, `None` for ones.
        scale: absolute loss: residuals above it lose weight; zero otherwise.
        lowest: smallest relative residual since the ridge was last raised.
        waited: int32 steps since then without a smaller one.
        info: scalars describing `factors` and the step that led here.
        chunks: listed entries as the linearised problems read them.
    """

    factors: Factors
    point: Factors
    ridge: jax.Array
    gain: jax.Array
    weights: jax.Array | None
    scale: jax.Array
    lowest: jax.Array
    waited: jax.Array
    info: dict[str, jax.Array]
    chunks: Any = None


@pytree
class GaussNewton:
    """Least squares in both factors at once: recovers from few measurements, whatever the condition number.

    One step at `(U, V)`: `min over U', V' of sum_i w_i (A(U V'^T + U' V^T - U V^T)_i - y_i)^2 + mu (||U'||^2 +
    ||V'||^2)` by preconditioned conjugate gradients; on entries one factor is eliminated exactly, row by row. The
    estimate `U V'^T + U' V^T - U V^T` has twice the rank; its best truncation is the answer. The next step linearises
    at `U' V'^T`, balanced. The ridge pulls the factors to zero, so at a fixed `mu` the limit minimises the nuclear-norm
    penalised misfit; `mu` falls by `decay` per step, and is at most `ridge_per_residual` times the relative residual,
    which makes the end superlinear.

    With the absolute loss gross errors are found on the way, and neither their number nor the rank has to be known.
    Measurement `i` gets the weight `(1 + (r_i / s)^2)^-0.65`, so that `sum |r_i|^0.7` is minimised as the scale `s`
    falls. The ridge falls with it: column `i` gets `lam min(1, e / sigma_i)`, where `lam` is the spectral norm that
    errors of random sign and of size `s` would reach, and `e` what that means for a singular value of the matrix. So
    rank and errors are told apart together: surplus columns stay at the edge, the others are freed of the ridge. `info`
    then adds `scale`; `outlier_fraction`, the measurements whose residual exceeds it; and `clean_residual`, that of the
    others relative to the answer there, by which convergence is judged. If those are hardly more than the degrees of
    freedom of the answer, they fit by themselves and prove nothing: status `STALLED`.

    Attributes:
        ridge: first `mu`, relative to the mean diagonal of the normal matrix.
        decay: factor of `mu` per step. Slower decay (0.8 to 0.9) recovers from slightly fewer measurements.
        ridge_per_residual: bound of `mu` per relative residual.
        edge: absolute loss: multiple of the ridge `lam` above. Works between 0.7 and 1.5 at a tenth of gross errors.
        patience: steps without a smaller residual after which the ridge is raised a hundredfold, a restart from where
            the solve is stuck. 6 is better at condition numbers near 10 and very few measurements, worse at large ones.
        tolerance: relative residual (absolute loss: `clean_residual`) at which the solve has converged; default
            rounding level.
        inner_tolerance: relative residual of the inner solve; default 1e-4 with the ridge, 1e-2 with the absolute
            loss, rounding level without ridge.
        rank: columns in use (traced), `None` for all.
        max_rank: columns of the factors.
        variant: `"ridge"`, or the minimum-norm solution without any ridge, by conjugate gradients from zero:
            `"setting"`, `(U, V) <- (U', V')`; `"averaging"`, the mean of old and new; `"updating"`, the minimum-norm
            update. They are slow, there for comparison, and have no reverse
            derivative, since their normal matrix is singular.
        inner_steps: conjugate gradient steps at most; default 200 with the ridge, 2000 without.

    Cost per step: up to `inner_steps` conjugate gradient steps. On listed entries each moves one number per entry and
    takes `8 |Omega| k` flops; elsewhere one forward and two adjoint products.

    When not to use it: many measurements and a good condition number, where a step of `AlternatingMinimization` or
    `ScaledGradientDescent` is far cheaper; strong noise and the squared loss, since the ridge fades to nothing.

    Source: Zilber and Nadler, arXiv 2106.12933 (the variants and the truncated estimate). The fading ridge, and the
    joint path of ridge and weights under the absolute loss, are this library's own.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> problem, truth = lr.synthetic.matrix_completion(key, shape=(40, 30), rank=2, oversampling=2.5)
        >>> solution = lr.solve(problem, lr.GaussNewton(max_rank=2), key, num_steps=40)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-4)
        True
    """

    ridge: float | jax.Array = 0.1
    decay: float | jax.Array = 0.75
    ridge_per_residual: float | jax.Array = 0.05
    edge: float | jax.Array = 1.0
    patience: int | jax.Array = 20
    tolerance: float | jax.Array | None = None
    inner_tolerance: float | jax.Array | None = None
    rank: int | jax.Array | None = None
    max_rank: int = jax.tree.static(kw_only=False)
    variant: str = jax.tree.static(default="ridge")
    inner_steps: int | None = jax.tree.static(default=None)

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        base.check_rank(self, problem)
        check_choice("variant", self.variant, tuple(ALPHA))
        if self.inner_steps is not None:
            check_count("inner_steps", self.inner_steps)
        check_range("ridge", self.ridge, low=0, open_low=True)
        check_range("decay", self.decay, low=0, high=1, open_low=True)
        check_range("ridge_per_residual", self.ridge_per_residual, low=0, open_low=True)
        check_range("edge", self.edge, low=0, open_low=True)
        check_range("patience", self.patience, low=1)
        check_range("tolerance", self.tolerance, low=0)
        check_range("inner_tolerance", self.inner_tolerance, low=0)
        if not isinstance(problem.loss, losses.Squared | losses.Absolute):
            raise ValueError(
                f"GaussNewton takes the loss Squared() or Absolute(); got {problem.loss!r}. With Absolute() it finds "
                "the scale of the residuals itself"
            )
        if _robust(problem) and self.variant != "ridge":
            raise ValueError(f"variant must be 'ridge' with the absolute loss; got {self.variant!r}")

    def in_units(self, units: Units) -> "GaussNewton":
        """Itself: every setting is relative to the data."""
        return self

    def info_units(self, units: Units) -> dict[str, tuple[jax.Array, ...]]:
        """Units of what `info` adds: those of the absolute loss, whose degree is one."""
        absolute = {"scale": (units.measurement,), "ridge": (units.weight, units.measurement)}
        return absolute if units.degree == 1 else {}

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> GaussNewtonState:
        """The spectral start (absolute loss: of the measurements by weight), or given factors."""
        key_start, key_gain = jax.random.split(key)
        op = problem.operator
        zero = Factors(*(jnp.zeros((n, 1), problem.y.dtype) for n in problem.shape))
        residual = problem.residual(zero if factors is None else factors)
        scale = jnp.zeros_like(problem.y[0])
        if _robust(problem):
            scale = measured_quantile(jnp.abs(residual), problem.effective_weights(), FIRST)
        weights = _weights(problem, residual, scale)
        if factors is None:
            used = Problem(problem.operator, problem.y, weights, problem.loss)
            factors = initial.spectral(used, self.max_rank, key_start, rank=self.rank)
            residual = problem.residual(factors)
        gain = initial.gain(problem, key_gain, symmetric=False)
        ridge = jnp.asarray(self.ridge, problem.y.dtype) + 0 * gain
        misfit = problem.relative_norm(problem.squared_norm(residual))
        return GaussNewtonState(
            factors=factors,
            point=factors,
            ridge=ridge,
            gain=gain,
            weights=weights,
            scale=scale,
            lowest=misfit,
            waited=(misfit != misfit).astype(jnp.int32),
            info=self._info(problem, factors, residual, scale, ridge, 0 * gain),
            chunks=op.coupled_parts() if op.entrywise and self.variant == "ridge" else None,
        )

    def step(self, problem: Problem, state: GaussNewtonState, key: jax.Array) -> tuple[GaussNewtonState, jax.Array]:
        """One linearised least-squares problem."""
        if _robust(problem):
            return self._robust_step(problem, state)
        u, v = state.point.left, state.point.right
        alpha = ALPHA[self.variant]
        if self.variant == "ridge":
            du, dv, taken = self._ridge_solve(problem, state, self._ridge(state))
            join = lambda a, b: jnp.concatenate([a, b], axis=1)
            moved = Factors(join(u + du, jnp.zeros_like(u)), join(v + dv, jnp.zeros_like(v)))
            estimate = Factors(join(u, du), join(v + dv, v))
            # The next point is U' V'^T with equal Gram matrices. Left alone, their difference flips its sign for ever.
            # As wide as the estimate, so that one program truncates both.
            both = jax.tree.map(lambda a, b: jnp.stack([a, b]), moved, estimate)
            both = jax.vmap(lambda factors: best_rank(factors, self.max_rank))(both)
            point, answer = (Factors(both.left[i], both.right[i]) for i in (0, 1))
        else:
            new_u, new_v, taken = self._minimum_norm(problem, state, alpha)
            estimate = Factors(jnp.concatenate([u, new_u], axis=1), jnp.concatenate([new_v - alpha * v, v], axis=1))
            keep = (1 - alpha) / 2
            point, answer = Factors(keep * u + new_u, keep * v + new_v), best_rank(estimate, self.max_rank)
        answer = self._keep(answer)
        residual = problem.residual(answer)
        misfit = problem.relative_norm(problem.squared_norm(residual))
        ridge, lowest, waited = self._next_ridge(state, misfit)
        info = self._info(problem, answer, residual, state.scale, ridge, taken)
        before = state.info["residual"]
        better = misfit < before
        code = base.exact_fit(before, jnp.minimum(before, misfit), self.tolerance)
        of_step = ("ridge", "inner_steps")
        info = {
            name: value if name in of_step else jnp.where(better, value, state.info[name])
            for name, value in info.items()
        }
        factors = jax.tree.map(lambda a, b: jnp.where(better, a, b), answer, state.factors)
        new = GaussNewtonState(
            factors=factors,
            point=self._keep(point),
            ridge=ridge,
            gain=state.gain,
            weights=state.weights,
            scale=state.scale,
            lowest=lowest,
            waited=waited,
            info=info,
            chunks=state.chunks,
        )
        return new, code

    def _robust_step(self, problem: Problem, state: GaussNewtonState) -> tuple[GaussNewtonState, jax.Array]:
        """One step of the absolute loss: a reweighted solve, then a smaller scale."""
        (u, v), dtype = (state.point.left, state.point.right), problem.y.dtype
        tiny, eps = jnp.finfo(dtype).tiny, jnp.finfo(dtype).eps
        level, lam = self._edge(problem, state)
        values = jnp.sum(u * u, axis=0)
        top = jnp.max(values)
        penalty = lam * jnp.minimum(1, level / jnp.maximum(values, tiny))
        penalty = jnp.maximum(penalty, 4 * self.max_rank * eps * state.gain * or_one(top))
        du, dv, taken = self._ridge_solve(problem, state, penalty)
        answer = self._keep(best_rank(Factors(u + du, v + dv), self.max_rank))
        residual = problem.residual(answer)
        low = measured_quantile(jnp.abs(residual), problem.effective_weights(), QUANTILE)
        scale = jnp.minimum(self.decay * state.scale, jnp.maximum(FAST * low, LEAST * state.scale))
        size = jnp.sum(problem.weighted((residual + problem.observed()) ** 2)) / problem.total_weight()
        scale = jnp.maximum(scale, ROUNDING * eps * jnp.sqrt(or_one(size)))
        scale = jnp.maximum(scale, jnp.minimum(state.scale, SLOW * low))
        new = GaussNewtonState(
            factors=answer,
            point=answer,
            ridge=lam,
            gain=state.gain,
            weights=_weights(problem, residual, scale),
            scale=scale,
            lowest=state.lowest,
            waited=state.waited,
            info=self._info(problem, answer, residual, scale, lam, taken),
            chunks=state.chunks,
        )
        level, _ = self._edge(problem, new)
        values = jnp.sum(answer.left * answer.left, axis=0)
        present = values > tiny
        grow = jnp.sqrt(jnp.maximum(1, FLOOR * level / jnp.where(present, values, 1)))
        grow = jnp.where(present, grow, 1)[None, :]
        new = dataclasses.replace(new, point=Factors(answer.left * grow, answer.right * grow))
        before, after = state.info["clean_residual"], new.info["clean_residual"]
        # Down there surplus columns are still at the edge: rounding level is a little higher.
        code = base.exact_fit(before, after, float(1000 * eps) if self.tolerance is None else self.tolerance)
        # Some rows may be right later than the bulk. The margin is what a sum of shares rounds by.
        growing = new.info["outlier_fraction"] < state.info["outlier_fraction"] - 4 * eps
        code = jnp.where(growing, status.RUNNING, code)
        # More columns than this are only noise of the fit.
        rank = jnp.sum(values > jnp.maximum(level, 100 * eps * jnp.max(values))).astype(dtype)
        freedom = rank * (sum(problem.shape) - rank)
        agree = (1 - new.info["outlier_fraction"]) * _count(problem)
        proved = agree > MARGIN * freedom
        return new, jnp.where((code == status.CONVERGED) & ~proved, status.STALLED, code)

    def _edge(self, problem: Problem, state: GaussNewtonState) -> tuple[jax.Array, jax.Array]:
        """What errors of the present scale and random sign reach: as a singular value of the matrix; the ridge."""
        total = problem.total_weight()
        n1, n2 = problem.shape
        width = (jnp.sqrt(jnp.asarray(n1, total.dtype)) + jnp.sqrt(jnp.asarray(n2, total.dtype))) / 2
        lam = self.edge * state.scale * width * jnp.sqrt(state.gain * total / _count(problem))
        # Of the weight in use: with less of it the matrix is pulled less, too.
        share = 1.0 if state.weights is None else jnp.sum(state.weights) / total
        return lam / state.gain, share * lam

    def _next_ridge(self, state: GaussNewtonState, misfit: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The ridge of the next step; it is raised again when the residual has long not fallen."""
        ridge = jnp.minimum(self.decay * state.ridge, self.ridge_per_residual * misfit)
        ridge = jnp.maximum(ridge, 4 * self.max_rank * jnp.finfo(ridge.dtype).eps)
        fell = misfit < 0.99 * state.lowest
        waited = jnp.where(fell, 0, state.waited + 1).astype(state.waited.dtype)
        again = waited >= self.patience
        raised = jnp.minimum(REHEAT * state.ridge, self.ridge)
        return (
            jnp.where(again, raised, ridge),
            jnp.where(again, jnp.finfo(misfit.dtype).max, jnp.minimum(state.lowest, misfit)),
            jnp.where(again, 0, waited),
        )

    def _ridge(self, state: GaussNewtonState) -> jax.Array:
        u, v = state.point.left, state.point.right
        size = jnp.sum(u**2) + jnp.sum(v**2)
        return state.ridge * state.gain * or_one(size) / (2 * self._columns(u.dtype))

    def _keep(self, factors: Factors) -> Factors:
        mask = initial.column_mask(self.max_rank, self.rank, factors.left.dtype)
        return Factors(initial.keep_columns(factors.left, mask), initial.keep_columns(factors.right, mask))

    def _info(self, problem, factors, residual, scale, ridge, taken):
        info = base.describe(problem, residual) | {"ridge": ridge, "inner_steps": taken.astype(ridge.dtype)}
        if not _robust(problem):
            return info
        inside = problem.weighted((jnp.abs(residual) <= scale).astype(residual.dtype))
        fitted = residual + problem.observed()
        misfit, whole = jnp.sum(inside * residual**2), jnp.sum(inside * fitted**2)
        ratio = safe_divide(misfit, whole)
        return info | {
            "scale": scale,
            "outlier_fraction": jnp.maximum(0, 1 - jnp.sum(inside) / problem.total_weight()),
            "clean_residual": safe_sqrt(ratio),
        }

    def _ridge_solve(
        self, problem: Problem, state: GaussNewtonState, ridge: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Changes `(dU, dV)` of the factors, and the inner steps taken.

        Solved for the change, so that rounding errors shrink with it: the right-hand side is minus the gradient of
        `0.5 sum w r^2 + 0.5 mu (||U||^2 + ||V||^2)`. The ridge `mu` is a number, or one per column.
        """
        op, (u, v), weights = problem.operator, (state.point.left, state.point.right), state.weights
        weigh = (lambda z: z) if weights is None else (lambda z: weights * z)
        ridge = jnp.reshape(ridge, (1, -1))
        z = -problem.residual(state.point)
        default = 1e-2 if _robust(problem) else 1e-4
        tolerance = default if self.inner_tolerance is None else self.inner_tolerance
        steps = self.inner_steps or DEFAULT_INNER_STEPS["ridge"]
        if op.entrywise:
            k = op.couple(u, v, weights, ridge, state.chunks)
            f, g = k.whitened_adjoints(z)
            f, g = f - k.whiten_left(ridge * u), g - k.whiten_right(ridge * v)
            # [[I, K], [K^T, I]] (q, x) = (f, g) with q eliminated: half the steps of the whole system.
            x, taken = counted_conjugate_gradient(
                lambda x: x - k.apply_transpose(k.apply(x)),
                g - k.apply_transpose(f),
                num_steps=steps,
                tolerance=tolerance,
            )
            return k.unwhiten_left(f - k.apply(x)), k.unwhiten_right(x), taken
        z = weigh(z)
        rhs_u, rhs_v = op.adjoint_matmul(z, v) - ridge * u, op.adjoint_rmatmul(z, u) - ridge * v
        # In expectation the diagonal blocks of other operators are gain times the Gram matrix of the other factor.
        eye = jnp.eye(self.max_rank, dtype=u.dtype)
        root = lambda other: guarded.cholesky(state.gain * matmul(other.T, other) + ridge * eye)
        whiten = lambda root, x: jax.scipy.linalg.solve_triangular(root, x.T, lower=True).T
        unwhiten = lambda root, x: jax.scipy.linalg.solve_triangular(root, x.T, lower=True, trans=1).T
        root_u, root_v, n1 = root(v), root(u), u.shape[0]

        def normal(x: jax.Array) -> jax.Array:
            du, dv = unwhiten(root_u, x[:n1]), unwhiten(root_v, x[n1:])
            to_u, to_v = self._normal(op, weigh, u, v, du, dv)
            return jnp.concatenate([whiten(root_u, to_u + ridge * du), whiten(root_v, to_v + ridge * dv)])

        rhs = jnp.concatenate([whiten(root_u, rhs_u), whiten(root_v, rhs_v)])
        x, taken = counted_conjugate_gradient(normal, rhs, num_steps=steps, tolerance=tolerance)
        return unwhiten(root_u, x[:n1]), unwhiten(root_v, x[n1:]), taken

    def _minimum_norm(self, problem, state, alpha):
        """New factors of smallest norm: conjugate gradients on the normal equations from zero stay in their range."""
        op, (u, v), weights = problem.operator, (state.point.left, state.point.right), state.weights
        weigh = (lambda z: z) if weights is None else (lambda z: weights * z)
        target = weigh(problem.observed() + alpha * op.forward(u, v))
        rhs = jnp.concatenate([op.adjoint_matmul(target, v), op.adjoint_rmatmul(target, u)])
        n1 = u.shape[0]
        tolerance = float(10 * jnp.finfo(u.dtype).eps) if self.inner_tolerance is None else self.inner_tolerance
        x, taken = counted_conjugate_gradient(
            lambda x: jnp.concatenate(self._normal(op, weigh, u, v, x[:n1], x[n1:])),
            rhs,
            num_steps=self.inner_steps or 2000,
            tolerance=tolerance,
        )
        return x[:n1], x[n1:], taken

    def _normal(self, op, weigh, u, v, du, dv):
        """`J^T W J (du, dv)` for `J (du, dv) = A(u dv^T + du v^T)`."""
        image = weigh(op.forward(jnp.concatenate([u, du], axis=1), jnp.concatenate([dv, v], axis=1)))
        return op.adjoint_matmul(image, v), op.adjoint_rmatmul(image, u)

    def _columns(self, dtype) -> jax.Array:
        return jnp.asarray(self.max_rank if self.rank is None else self.rank, dtype)


def _robust(problem: Problem) -> bool:
    return isinstance(problem.loss, losses.Absolute)


def _count(problem: Problem) -> jax.Array:
    """Number of measurements with positive weight."""
    weights = problem.effective_weights()
    if weights is None:
        return jnp.full_like(problem.y[0], problem.y.shape[0])
    return jnp.sum(weights > 0).astype(problem.y.dtype)


def _weights(problem: Problem, residual: jax.Array, scale: jax.Array) -> jax.Array | None:
    """The problem's weights, under the absolute loss less for large residuals."""
    if not _robust(problem):
        return problem.effective_weights()
    scale = jnp.maximum(scale, jnp.finfo(residual.dtype).tiny ** 0.25)
    return problem.weighted((1 + (residual / scale) ** 2) ** -SOFTNESS)
