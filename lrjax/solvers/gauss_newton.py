"""Gauss-Newton: least squares in both factors at once, linearised, with a ridge that fades; and its robust form."""

import jax
import jax.numpy as jnp

from lrjax import initial, losses
from lrjax._checks import check_choice, check_count, check_range
from lrjax._pytree import pytree
from lrjax.factors import Factors, best_rank, matmul
from lrjax.linalg.krylov import counted_conjugate_gradient
from lrjax.operators.coupled import coupling
from lrjax.problem import Problem
from lrjax.solvers import _common
from lrjax.step_sizes import measured_quantile

# The weight alpha of the old product in the right-hand side: minimise ||A(U V'^T + U' V^T) - (y + alpha A(U V^T))||.
ALPHA = {"ridge": 1.0, "setting": 1.0, "averaging": 0.0, "updating": -1.0}
# The ridge is raised by this factor when the residual has not fallen for `patience` steps.
REHEAT = 100.0
DEFAULT_INNER_STEPS = {"ridge": 200}


@pytree
class GaussNewtonState:
    """State of Gauss-Newton.

    Attributes:
        factors: the answer so far: the best balanced truncation of the linearised estimates.
        point: where the next step linearises; its product is not the answer.
        ridge: ridge of the next step, relative to the mean diagonal of the normal matrix.
        gain: mean-square gain of the measurements.
        weights: `(m,)` weights of the next step, zero for flagged measurements; `None` for ones.
        lowest: smallest relative residual since the ridge was last raised.
        waited: int32 steps since then without a smaller one.
        info: scalars describing `factors` and the step that led here.
    """

    factors: Factors
    point: Factors
    ridge: jax.Array
    gain: jax.Array
    weights: jax.Array | None
    lowest: jax.Array
    waited: jax.Array
    info: dict[str, jax.Array]


@pytree
class GaussNewton:
    """Least squares in both factors at once: recovers from few measurements, whatever the condition number.

    One step at `(U, V)`: `min over U', V' of sum_i w_i (A(U V'^T + U' V^T - U V^T)_i - y_i)^2 + mu (||U'||^2 +
    ||V'||^2)` by preconditioned conjugate gradients; on entries one factor is eliminated exactly, row by row. The
    estimate `U V'^T + U' V^T - U V^T` has twice the rank; its best truncation is the answer. The next step linearises
    at `U' V'^T`, balanced. The ridge pulls the factors to zero, so at a fixed `mu` the limit minimises the nuclear-norm
    penalised misfit; `mu` falls by `decay` per step, and is at most `ridge_per_residual` times the relative residual,
    which makes the end superlinear.

    Attributes:
        ridge: first `mu`, relative to the mean diagonal of the normal matrix.
        decay: factor of `mu` per step. Slower decay (0.8 to 0.9) recovers from slightly fewer measurements.
        ridge_per_residual: bound of `mu` per relative residual.
        patience: steps without a smaller residual after which the ridge is raised a hundredfold, a restart from where
            the solve is stuck. 6 is better at condition numbers near 10 and very few measurements, worse at large ones.
        outliers: fraction of the measurements to leave out: after each step those with the largest residuals get
            weight zero in the next. `None` for off. Needs the true fraction, few outliers and the true rank: with too
            many left out the rest is fitted exactly by a wrong matrix, and the solve reports convergence.
        tolerance: relative residual (of the measurements not left out) at which the solve has converged; default
            rounding level.
        inner_tolerance: relative residual of the inner solve; default 1e-4 with the ridge, rounding level without.
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
    `ScaledGradientDescent` is far cheaper; strong noise, since the ridge fades to nothing.

    Source: Zilber and Nadler, arXiv 2106.12933 (the variants and the truncated estimate); arXiv 2505.12919
    for leaving out the largest residuals. The fading ridge on the new factors is this library's own.

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
    patience: int | jax.Array = 20
    outliers: float | jax.Array | None = None
    tolerance: float | jax.Array | None = None
    inner_tolerance: float | jax.Array | None = None
    rank: int | jax.Array | None = None
    max_rank: int = jax.tree.static()
    variant: str = jax.tree.static(default="ridge")
    inner_steps: int | None = jax.tree.static(default=None)

    @property
    def robust(self) -> bool:
        """Whether measurements are left out."""
        return self.outliers is not None

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        _common.check_rank(self, problem)
        check_choice("variant", self.variant, tuple(ALPHA))
        if self.inner_steps is not None:
            check_count("inner_steps", self.inner_steps)
        check_range("ridge", self.ridge, low=0, open_low=True)
        check_range("decay", self.decay, low=0, high=1, open_low=True)
        check_range("ridge_per_residual", self.ridge_per_residual, low=0, open_low=True)
        check_range("patience", self.patience, low=1)
        check_range("outliers", self.outliers, low=0, high=1)
        check_range("tolerance", self.tolerance, low=0)
        check_range("inner_tolerance", self.inner_tolerance, low=0)
        if not self.robust and not isinstance(problem.loss, losses.Squared):
            raise ValueError(
                f"GaussNewton minimises the squared loss; got {problem.loss!r}. Against gross errors set outliers, the "
                "fraction to leave out; the loss is then only reported"
            )

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> GaussNewtonState:
        """The spectral start (of the measurements that are not conspicuously large, if robust), or given factors."""
        key_start, key_gain = jax.random.split(key)
        zero = Factors(*(jnp.zeros((n, 1), problem.y.dtype) for n in problem.shape))
        weights = self._weights(problem, problem.residual(zero))
        used = problem if weights is None else Problem(problem.operator, problem.y, weights, problem.loss)
        if factors is None:
            factors = initial.spectral(used, self.max_rank, key_start, rank=self.rank)
        residual = problem.residual(factors)
        gain = initial.gain(problem, key_gain, symmetric=False)
        ridge = jnp.asarray(self.ridge, problem.y.dtype) + 0 * gain
        weights = self._weights(problem, residual)
        misfit = self._misfit(problem, residual, weights)
        info = self._info(problem, residual, misfit, ridge, 0 * gain)
        return GaussNewtonState(
            factors=factors,
            point=factors,
            ridge=ridge,
            gain=gain,
            weights=weights,
            lowest=misfit,
            waited=(misfit != misfit).astype(jnp.int32),
            info=info,
        )

    def step(self, problem: Problem, state: GaussNewtonState, key: jax.Array) -> tuple[GaussNewtonState, jax.Array]:
        """One linearised least-squares problem."""
        u, v = state.point.left, state.point.right
        alpha = ALPHA[self.variant]
        if self.variant == "ridge":
            du, dv, taken = self._ridge_solve(problem, state)
            # The next point is U' V'^T with equal Gram matrices. Left alone, their difference flips its sign for ever.
            point = best_rank(Factors(u + du, v + dv), self.max_rank)
            estimate = Factors(jnp.concatenate([u, du], axis=1), jnp.concatenate([v + dv, v], axis=1))
        else:
            new_u, new_v, taken = self._minimum_norm(problem, state, alpha)
            estimate = Factors(jnp.concatenate([u, new_u], axis=1), jnp.concatenate([new_v - alpha * v, v], axis=1))
            keep = (1 - alpha) / 2
            point = Factors(keep * u + new_u, keep * v + new_v)
        answer = self._keep(best_rank(estimate, self.max_rank))
        residual = problem.residual(answer)
        weights = self._weights(problem, residual)
        misfit = self._misfit(problem, residual, weights)
        ridge, lowest, waited = self._next_ridge(state, misfit)
        info = self._info(problem, residual, misfit, ridge, taken)
        before = state.info[self._criterion]
        better = misfit < before
        code = _common.exact_fit(before, jnp.minimum(before, misfit), self.tolerance)
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
            weights=weights,
            lowest=lowest,
            waited=waited,
            info=info,
        )
        return new, code

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

    @property
    def _criterion(self) -> str:
        return "inlier_residual" if self.robust else "residual"

    def _keep(self, factors: Factors) -> Factors:
        mask = initial.column_mask(self.max_rank, self.rank, factors.left.dtype)
        return Factors(initial.keep_columns(factors.left, mask), initial.keep_columns(factors.right, mask))

    def _info(self, problem, residual, misfit, ridge, taken):
        info = _common.describe(problem, residual) | {"ridge": ridge, "inner_steps": taken.astype(ridge.dtype)}
        return info | {"inlier_residual": misfit} if self.robust else info

    def _weights(self, problem: Problem, residual: jax.Array) -> jax.Array | None:
        """The problem's weights, zero where the residual marks an outlier."""
        weights = problem.effective_weights()
        if not self.robust:
            return weights
        size = jnp.abs(jax.lax.stop_gradient(residual))
        limit = measured_quantile(size, weights, 1 - jnp.asarray(self.outliers, size.dtype))
        keep = (size <= limit).astype(residual.dtype)
        return keep if weights is None else weights * keep

    def _misfit(self, problem: Problem, residual: jax.Array, weights: jax.Array | None) -> jax.Array:
        """Relative residual of the measurements in use."""
        return Problem(problem.operator, problem.y, weights, problem.loss).relative_residual(residual)

    def _ridge_solve(self, problem: Problem, state: GaussNewtonState) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Changes `(dU, dV)` of the factors, and the inner steps taken.

        Solved for the change, so that rounding errors shrink with it: the right-hand side is minus the gradient of
        `0.5 sum w r^2 + 0.5 mu (||U||^2 + ||V||^2)`.
        """
        op, (u, v), weights = problem.operator, (state.point.left, state.point.right), state.weights
        weigh = (lambda z: z) if weights is None else (lambda z: weights * z)
        size = jnp.sum(u**2) + jnp.sum(v**2)
        ridge = state.ridge * state.gain * jnp.where(size > 0, size, 1) / (2 * self._columns(u.dtype))
        z = weigh(-problem.residual(state.point))
        rhs_u, rhs_v = op.adjoint_matmul(z, v) - ridge * u, op.adjoint_rmatmul(z, u) - ridge * v
        tolerance = 1e-4 if self.inner_tolerance is None else self.inner_tolerance
        steps = self.inner_steps or DEFAULT_INNER_STEPS["ridge"]
        if op.entrywise:
            k = coupling(op, u, v, weights, ridge)
            f, g = k.whiten_left(rhs_u), k.whiten_right(rhs_v)
            # [[I, K], [K^T, I]] (q, x) = (f, g) with q eliminated: half the steps of the whole system.
            x, taken = counted_conjugate_gradient(
                lambda x: x - k.apply_transpose(k.apply(x)),
                g - k.apply_transpose(f),
                num_steps=steps,
                tolerance=tolerance,
            )
            return k.unwhiten_left(f - k.apply(x)), k.unwhiten_right(x), taken
        # In expectation the diagonal blocks of other operators are gain times the Gram matrix of the other factor.
        eye = jnp.eye(self.max_rank, dtype=u.dtype)
        root = lambda other: jnp.linalg.cholesky(state.gain * matmul(other.T, other) + ridge * eye)
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
