"""Alternating minimization: least squares in one factor, then in the other."""

import jax
import jax.numpy as jnp

from lrjax import initial, losses, status
from lrjax._checks import check_choice, check_count, check_range
from lrjax._pytree import pytree
from lrjax.factors import Factors, matmul
from lrjax.linalg.krylov import conjugate_gradient
from lrjax.problem import Problem
from lrjax.solvers import _common
from lrjax.step_sizes import measured_quantile

STARTS = ("spectral", "random")
INNER = ("exact", "cg")
DEFAULT_CG_STEPS = 5


@pytree
class AltMinState:
    """State of alternating minimization.

    Attributes:
        factors: the iterate; with `orthonormalize` its right factor is orthonormal.
        info: scalars describing that iterate.
    """

    factors: Factors
    info: dict[str, jax.Array]


@pytree
class AlternatingMinimization:
    """Alternating least squares with an orthonormalised factor, on entries or on any other measurements.

    One step: QR of the left factor, `right = argmin sum_i w_i (A(Q right^T)_i - y_i)^2 + ridge ||right||^2`, QR of the
    right factor, the same for the left. On entries every row is a small least-squares problem of its own. Losses other
    than the squared one are minimised by reweighting (`w_i loss'(r_i) / r_i` from the current residual, majorise and
    minimise), so Huber and absolute losses give a robust completion.

    Attributes:
        ridge: added to the normal equations, in the units of a squared measurement matrix entry. With
            `orthonormalize=False` it is the usual penalty on both factors.
        clip: incoherence `mu`: entries of the spectral start above `2 mu sqrt(k / n)` are set to zero before it is
            orthonormalised, as the theory asks (`||U_i|| <= mu sqrt(k / n)`); `None` leaves it alone.
        fresh_fraction: draw a fresh random subset of the measurements, each kept with this probability, for every half
            step: the sample splitting of the theory. `None` uses all measurements always.
        update_error: perturb the result of every half step by a Gaussian matrix of this relative spectral norm, to
            test the robustness theorem; `None` for no error.
        tolerance: relative residual at which the solve has converged; default rounding level.
        rank: columns in use (traced), `None` for all.
        max_rank: columns of the factors.
        start: `"spectral"` (of the signs of `y`, if the loss is not the squared one), or `"random"` (orthonormal),
            which is the better one for condition numbers near 100.
        inner: `"exact"`: batched Cholesky on entries, conjugate gradients to rounding level elsewhere; `"cg"`:
            `inner_steps` warm-started conjugate gradient steps, `O(|Omega| k)` each.
        inner_steps: steps of the `"cg"` inner solve (default 5), or the most for conjugate gradients in `"exact"`
            (default 500).
        trim: zero heavy rows and columns in the spectral start (entries only).
        orthonormalize: QR between half steps. Turn it off only to make `ridge` penalise both factors.

    Cost per step on `|Omega|` entries: `|Omega| k (k + 1)` flops twice for `exact`, `O(|Omega| k)` per `cg` step;
    elsewhere one forward and one adjoint product per conjugate gradient step.

    When not to use it: fewer than about three times as many entries as degrees of freedom (it stalls); gross outliers
    with the squared loss. Rows with fewer entries than `max_rank` cannot be recovered and are damped.

    Source: Jain, Netrapalli and Sanghavi, arXiv 1212.0467; Gu, Song, Yin and Zhang, arXiv 2302.11068 (papers key
    `robust_altmin`), algorithm A1.5.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> problem, truth = lr.synthetic.matrix_completion(key, shape=(40, 30), rank=2, fraction=0.5)
        >>> solution = lr.solve(problem, lr.AlternatingMinimization(max_rank=2), key, num_steps=30)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-4)
        True
    """

    ridge: float | jax.Array = 0.0
    clip: float | jax.Array | None = None
    fresh_fraction: float | jax.Array | None = None
    update_error: float | jax.Array | None = None
    tolerance: float | jax.Array | None = None
    rank: int | jax.Array | None = None
    max_rank: int = jax.tree.static()
    start: str = jax.tree.static(default="spectral")
    inner: str = jax.tree.static(default="exact")
    inner_steps: int | None = jax.tree.static(default=None)
    trim: bool = jax.tree.static(default=False)
    orthonormalize: bool = jax.tree.static(default=True)

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        _common.check_rank(self, problem)
        check_choice("start", self.start, STARTS)
        check_choice("inner", self.inner, INNER)
        if self.inner_steps is not None:
            check_count("inner_steps", self.inner_steps)
        check_range("ridge", self.ridge, low=0)
        check_range("clip", self.clip, low=0, open_low=True)
        check_range("fresh_fraction", self.fresh_fraction, low=0, high=1, open_low=True)
        check_range("update_error", self.update_error, low=0)
        check_range("tolerance", self.tolerance, low=0)
        if self.trim and not problem.operator.entrywise:
            raise ValueError("trim=True is defined for measurements of entries only")
        if self.trim and not isinstance(problem.loss, losses.Squared):
            raise ValueError("trim=True belongs to the squared loss; other losses start from the signs of y")
        if self.start == "random" and (self.trim or self.clip is not None):
            raise ValueError("trim and clip belong to start='spectral'; got start='random'")

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> AltMinState:
        """The spectral or random orthonormal start, or given factors."""
        if factors is None and self.start == "spectral":
            if isinstance(problem.loss, losses.Squared):
                factors = initial.spectral(problem, self.max_rank, key, rank=self.rank, trim=self.trim)
            else:
                # One gross outlier would own the spectrum of A*(y); the signs of y do not feel its size.
                factors = initial.sign_spectral(problem, self.max_rank, key, symmetric=False, rank=self.rank)[0]
            if self.clip is not None:
                n, k = factors.left.shape
                u = factors.svd()[0]
                bound = 2 * self.clip * jnp.sqrt(jnp.asarray(k / n, u.dtype))
                clipped = self._orthonormal(jnp.where(jnp.abs(u) > bound, 0, u))
                # The right factor is solved for in the first half step; until then it fits the clipped left one.
                factors = Factors(clipped, matmul(factors.right, matmul(factors.left.T, clipped)))
                factors = jax.lax.stop_gradient(factors)
        elif factors is None:
            left = initial.small_random(
                key, problem.shape, self.max_rank, scale=1.0, rank=self.rank, dtype=problem.y.dtype
            ).left
            factors = Factors(self._orthonormal(left), jnp.zeros((problem.shape[1], self.max_rank), left.dtype))
        return AltMinState(factors=factors, info=_common.describe(problem, problem.residual(factors)))

    def _mask(self, dtype) -> jax.Array | None:
        return initial.column_mask(self.max_rank, self.rank, dtype)

    def _orthonormal(self, factor: jax.Array) -> jax.Array:
        mask = self._mask(factor.dtype)
        if mask is not None:
            # Unused columns are zero and would make QR singular; anything independent does in their place.
            filler = jax.random.normal(jax.random.key(0), factor.shape, factor.dtype)
            factor = jnp.where(mask[None, :] > 0, factor, filler)
        return initial.keep_columns(jnp.linalg.qr(factor)[0], mask)

    def step(self, problem: Problem, state: AltMinState, key: jax.Array) -> tuple[AltMinState, jax.Array]:
        """Two half steps."""
        key_right, key_left = jax.random.split(key)
        left, right = state.factors.left, state.factors.right
        if self.orthonormalize:
            q, r = self._split(left)
            left, right = q, matmul(right, r.T)
        right = self._half(problem, left, right, key_right, transpose=False)
        if self.orthonormalize:
            q, r = self._split(right)
            left, right = matmul(left, r.T), q
        left = self._half(problem, right, left, key_left, transpose=True)
        factors = Factors(left, right)
        info = _common.describe(problem, problem.residual(factors))
        return AltMinState(factors=factors, info=info), self._code(state.info["residual"], info["residual"])

    def _code(self, before: jax.Array, after: jax.Array) -> jax.Array:
        code = _common.exact_fit(before, after, self.tolerance)
        if self.fresh_fraction is not None or self.update_error is not None:
            return code
        # A half step minimises exactly, so a residual that no longer changes is a stationary point.
        still = jnp.abs(before - after) <= 4 * jnp.finfo(after.dtype).eps * after
        met = self.tolerance is None
        return jnp.where(still & (code == status.RUNNING), status.CONVERGED if met else status.STALLED, code)

    def _split(self, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`q, r` with orthonormal `q` and `q @ r = factor`."""
        q = self._orthonormal(factor)
        return q, matmul(q.T, factor)

    def _weights(self, problem: Problem, factors: Factors, key: jax.Array) -> jax.Array | None:
        weights = problem.effective_weights()
        if not isinstance(problem.loss, losses.Squared):
            residual = problem.residual(factors)
            # Below half the typical clean residual an outlier cannot be told from a good fit yet; as the fit improves
            # the floor falls with it. The low quantile stays clean up to 60 % outliers.
            typical = measured_quantile(jnp.abs(residual), problem.effective_weights(), 0.35)
            scale = jnp.sqrt(jnp.mean(problem.observed() ** 2))
            floor = jnp.maximum(typical / 2, jnp.finfo(scale.dtype).eps * scale)
            weights = problem.weighted(problem.loss.reweight(residual, floor))
        if self.fresh_fraction is not None:
            fresh = jax.random.uniform(key, problem.y.shape, problem.y.dtype) < self.fresh_fraction
            weights = fresh.astype(problem.y.dtype) if weights is None else jnp.where(fresh, weights, 0)
        return weights

    def _half(
        self, problem: Problem, fixed: jax.Array, moving: jax.Array, key: jax.Array, *, transpose: bool
    ) -> jax.Array:
        """Least squares for one factor (`left` if `transpose`) with the other one fixed."""
        key_sample, key_error = jax.random.split(key)
        factors = Factors(moving, fixed) if transpose else Factors(fixed, moving)
        weights, y = self._weights(problem, factors, key_sample), problem.observed()
        op, mask = problem.operator, self._mask(y.dtype)
        ridge = jnp.asarray(self.ridge, y.dtype)
        if self.inner == "exact" and op.entrywise:
            solve = op.solve_left if transpose else op.solve_right
            new = solve(fixed, y, weights, ridge, mask)
        else:
            new = self._conjugate_gradient(op, fixed, moving, y, weights, ridge, transpose)
        new = initial.keep_columns(new, mask)
        if self.update_error is not None:
            noise = initial.keep_columns(jax.random.normal(key_error, new.shape, new.dtype), mask)
            size = jnp.linalg.norm(new, ord=2) / jnp.linalg.norm(noise, ord=2)
            new = new + self.update_error * size * noise
        return new

    def _conjugate_gradient(self, op, fixed, moving, y, weights, ridge, transpose):
        weigh = (lambda z: z) if weights is None else (lambda z: weights * z)
        if transpose:
            forward, adjoint = (lambda x: op.forward(x, fixed)), (lambda z: op.adjoint_matmul(z, fixed))
        else:
            forward, adjoint = (lambda x: op.forward(fixed, x)), (lambda z: op.adjoint_rmatmul(z, fixed))
        rhs = adjoint(weigh(y))
        exact = self.inner == "exact"
        steps = self.inner_steps or (500 if exact else DEFAULT_CG_STEPS)
        return conjugate_gradient(
            lambda x: adjoint(weigh(forward(x))) + ridge * x,
            rhs,
            moving,
            num_steps=steps,
            tolerance=float(2 * jnp.finfo(y.dtype).eps) if exact else None,
            rowwise=op.entrywise,
        )
