"""Alternating minimization: least squares in one factor, then in the other."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax import initial, losses, status
from lrjax.core.checks import check_choice, check_count, check_range
from lrjax.core.draws import drawn
from lrjax.core.numerics import matmul, or_one, safe_sqrt
from lrjax.core.pytree import pytree, replace
from lrjax.core.units import Units
from lrjax.linalg import guarded
from lrjax.linalg.krylov import conjugate_gradient
from lrjax.linalg.rows import RowProblem, under_determined
from lrjax.linalg.sketched_rows import SketchedRows
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import base
from lrjax.step_sizes import measured_quantile

STARTS = ("random", "spectral")
INNER = ("exact", "cg", "sketched")
DEFAULT_CG_STEPS = 5
# From the previous factor: each step halves the error of the half step, more or less.
DEFAULT_SKETCHED_STEPS = 6

# A residual that is known to rounding tells a stationary point to the root of that: moves of so many roots of epsilon.
SETTLED = 0.5
# Bounds the over-relaxation factor by 1.47: far from the solution the rate says little about the best one.
LARGEST_MU_SQUARED = 0.9


@pytree
class AltMinState:
    """State of alternating minimization.

    Attributes:
        factors: the iterate; with `orthonormalize` its right factor is orthonormal.
        info: scalars describing that iterate.
        data: the measurements as the half steps on entries read them, if they are the same in every step.
        relaxed: the left factor from which the next step starts: the iterate's, or one extrapolated beyond it.
        move: norm by which the last half step moved its factor.
        guarded: whether some row or column has too few measurements, and no ridge, so that the guard damps it.
        relaxation: over-relaxation factor of the next step, 1 for none.
        damping: of the next step, relative to the mean diagonal of the normal matrices.
    """

    factors: Factors
    info: dict[str, jax.Array]
    data: Any = None
    relaxed: jax.Array
    move: jax.Array
    guarded: jax.Array
    relaxation: jax.Array
    damping: jax.Array


@pytree
class AlternatingMinimization:
    """Alternating least squares with an orthonormalised factor, on entries or on any other measurements.

    One step: QR of the left factor, `right = argmin sum_i w_i (A(Q right^T)_i - y_i)^2 + ridge ||right||^2`, QR of the
    right factor, the same for the left. On entries every row is its own small least-squares problem. Losses other
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
        start: `"random"`: an orthonormal left factor, which works up to the largest condition numbers; `"spectral"`:
            the leading part of `A*(y)` (of the signs of `y`, if the loss is not the squared one), as in the theory. It
            saves a few steps and needs fewer entries where all singular values are alike, and stalls where they are
            not: directions below the noise of `A*(y)` point at rows with many entries.
        inner: `"exact"`: batched elimination on entries, conjugate gradients to rounding level elsewhere; `"cg"`:
            `inner_steps` warm-started conjugate gradient steps, `O(|Omega| k)` each; `"sketched"`: the same for each
            row on its own, preconditioned by a sketch of it, so that a step halves the error however
            ill-conditioned the row is, and until `inner_tolerance` is met; `SampledEntries` only. Rows with fewer
            than `8 max_rank` entries are solved for exactly. On a CPU its time grows less with the columns than that
            of `"exact"` (like their power 0.9 against 1.4, 16 to 128 of them, 32,000 entries a row), but it was no
            faster at 128 either: it is there for the theory and for very high ranks.
        inner_steps: steps of the `"cg"` inner solve (default 5), or the most for conjugate gradients in `"exact"`
            (default 500) and `"sketched"` (default 6).
        inner_tolerance: of `"sketched"`: a row is solved when what is left to change in its fitted measurements is
            below this fraction of them; default rounding level. A loose one sets the floor of the solve.
        trim: zero heavy rows and columns in the spectral start (entries only).
        accelerate: over-relax the half steps by a factor that adapts to the observed rate (about half the steps, at no
            cost), and, on entries, damp those that move the factors a lot (rows with few entries would blow up). Has
            no effect on losses other than the squared one, nor with `fresh_fraction`, `update_error` or `nonnegative`.
        orthonormalize: QR between half steps. Turn it off only to make `ridge` penalise both factors.
        ridge_by_count: multiply the ridge of each row by its number of measurements (Zhou et al. 2008), so that rows
            with many are not favoured; on entries.
        nonnegative: keep both factors nonnegative, each row by coordinate descent; on entries, with
            `orthonormalize=False`.
        biases: fit an offset of every row and column together with the rest: the last two columns of the factors are
            then `(row offsets, ones)` on the left and `(ones, column offsets)` on the right, and count in `max_rank`;
            on entries, with `orthonormalize=False`.
        bias_value: what stands in those columns of ones. A ridge weighs the offsets times its inverse square.

    Cost per step on `|Omega|` entries: `|Omega| k (k + 1)` flops twice for `exact`, `O(|Omega| k)` per `cg` step;
    elsewhere one forward and one adjoint product per conjugate gradient step.

    When not to use it: fewer than about three times as many entries as degrees of freedom (it stalls); gross outliers
    with the squared loss. Rows with fewer entries than `max_rank` cannot be recovered without a ridge and are damped by
    a tenth of their mean diagonal; such a solve converges only by its residual, never because it stands still.

    Source: Jain, Netrapalli and Sanghavi, arXiv 1212.0467; Gu, Song, Yin and Zhang, arXiv 2302.11068 (papers key
    `robust_altmin`), algorithm A1.5. Over-relaxation: Young, 1954; the damping is this library's own.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> problem, truth = lr.synthetic.matrix_completion(key, shape=(40, 30), rank=2, fraction=0.5)
        >>> solution = lr.solve(problem, lr.AlternatingMinimization(max_rank=2), key, num_steps=30)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-4)
        True
    """

    ridge: float | jax.Array = 0.0
    inner_tolerance: float | jax.Array | None = None
    clip: float | jax.Array | None = None
    fresh_fraction: float | jax.Array | None = None
    update_error: float | jax.Array | None = None
    tolerance: float | jax.Array | None = None
    bias_value: float | jax.Array = 1.0
    rank: int | jax.Array | None = None
    max_rank: int = jax.tree.static(kw_only=False)
    start: str = jax.tree.static(default="random")
    inner: str = jax.tree.static(default="exact")
    inner_steps: int | None = jax.tree.static(default=None)
    trim: bool = jax.tree.static(default=False)
    accelerate: bool = jax.tree.static(default=True)
    orthonormalize: bool = jax.tree.static(default=True)
    ridge_by_count: bool = jax.tree.static(default=False)
    nonnegative: bool = jax.tree.static(default=False)
    biases: bool = jax.tree.static(default=False)

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        base.check_rank(self, problem)
        check_choice("start", self.start, STARTS)
        check_choice("inner", self.inner, INNER)
        if self.inner_steps is not None:
            check_count("inner_steps", self.inner_steps)
        check_range("inner_tolerance", self.inner_tolerance, low=0)
        if self.inner_tolerance is not None and self.inner != "sketched":
            raise ValueError(f"inner_tolerance belongs to inner='sketched'; got inner={self.inner!r}")
        if self.inner == "sketched" and not (problem.operator.entrywise and problem.operator.sketches_rows):
            raise ValueError(
                f"inner='sketched' needs the operator SampledEntries; got {type(problem.operator).__name__}. "
                "Use inner='exact' or 'cg'"
            )
        if self.inner == "sketched" and self.nonnegative:
            raise ValueError("nonnegative=True needs inner='exact'; got inner='sketched'")
        check_range("ridge", self.ridge, low=0)
        check_range("clip", self.clip, low=0, open_low=True)
        check_range("fresh_fraction", self.fresh_fraction, low=0, high=1, open_low=True)
        check_range("update_error", self.update_error, low=0)
        check_range("tolerance", self.tolerance, low=0)
        check_range("bias_value", self.bias_value, low=0, open_low=True)
        if self.trim and not problem.operator.entrywise:
            raise ValueError("trim=True is defined for measurements of entries only")
        if self.trim and not isinstance(problem.loss, losses.Squared):
            raise ValueError("trim=True belongs to the squared loss; other losses start from the signs of y")
        by_rows = [name for name in ("ridge_by_count", "nonnegative", "biases") if getattr(self, name)]
        if by_rows and not self._by_rows(problem):
            raise ValueError(
                f"{' and '.join(by_rows)} need measurements of entries and inner='exact' or 'sketched'; got "
                f"{type(problem.operator).__name__} and inner={self.inner!r}"
            )
        if (self.nonnegative or self.biases) and (self.orthonormalize or self.start == "spectral"):
            raise ValueError("nonnegative and biases need orthonormalize=False and start='random'")
        if self.biases and (self.nonnegative or self.rank is not None or self.max_rank < 3):
            raise ValueError(
                "biases=True takes two of the columns: it needs max_rank of at least 3, rank=None and "
                f"nonnegative=False; got max_rank={self.max_rank}, rank={self.rank} and nonnegative={self.nonnegative}"
            )
        if self.start != "spectral" and (self.trim or self.clip is not None):
            raise ValueError(f"trim and clip belong to start='spectral'; got start={self.start!r}")

    @property
    def unitless(self) -> str | None:
        """The right factor, where it is orthonormal."""
        return "right" if self.orthonormalize else None

    def in_units(self, units: Units) -> "AlternatingMinimization":
        """The ridge in the units of the objective over those of what it penalises."""
        # One factor in the units of the matrix, squared; or both in their common unit, squared.
        power = 2 if self.orthonormalize else 1
        ridge = self.ridge / units.weight * units.measurement ** (power - units.degree if units.degree else 0)
        return replace(self, ridge=ridge, bias_value=self.bias_value / units.factor)

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> AltMinState:
        """The random or spectral start, or given factors."""
        damped = factors is None and self.start == "random"
        if factors is None and self.start == "spectral":
            factors = self._spectral(problem, key)
        elif factors is None:
            factors = self._random(problem, key)
        fixed_data = self._by_rows(problem) and not self._reweighted(problem)
        data = problem.operator.arrange(problem.observed(), problem.weights) if fixed_data else None
        # The product of a random start is zero: its right factor is still to be solved for.
        residual = -problem.observed() if damped else problem.residual(factors)
        info = base.describe(problem, residual)
        zero = 0 * info["objective"]
        return AltMinState(
            factors=factors,
            info=info,
            data=data,
            relaxed=factors.left,
            move=zero,
            guarded=self._guarded(problem) | (zero != zero),
            relaxation=zero + 1,
            damping=zero + (1.0 if damped and self._adapts(problem) else 0.0),
        )

    def _adapts(self, problem: Problem) -> bool:
        """Whether steps are over-relaxed and damped: not where the theory or a constraint wants them plain."""
        plain = self._reweighted(problem) or self.nonnegative or self.update_error is not None
        return self.accelerate and not plain

    def _guarded(self, problem: Problem) -> jax.Array:
        """Whether a half step minimises something else in some row: see `guard_ridge`."""
        if not self._by_rows(problem):
            return jnp.asarray(False)
        weights, (n1, n2), dtype = problem.effective_weights(), problem.shape, problem.y.dtype
        count = problem.operator.fewest_entries() if weights is None else None
        if count is None:
            on = jnp.ones_like(problem.y) if weights is None else (weights > 0).astype(dtype)
            per_row = problem.operator.adjoint_matmul(on, jnp.ones((n2, 1), dtype))
            per_col = problem.operator.adjoint_rmatmul(on, jnp.ones((n1, 1), dtype))
            count = jnp.round(jnp.concatenate([per_row, per_col])[:, 0])
        columns = jnp.asarray(self.max_rank if self.rank is None else self.rank, dtype) - (1 if self.biases else 0)
        return jnp.any(under_determined(count, columns, jnp.asarray(self.ridge, dtype)) & (count > 0))

    def _random(self, problem: Problem, key: jax.Array) -> Factors:
        (n1, n2), k, dtype = problem.shape, self.max_rank, problem.y.dtype
        # Folded, so that a truth drawn with the same key cannot be the start.
        left = drawn(jax.random.normal, jax.random.fold_in(key, 1), (n1, k), dtype)
        left = initial.keep_columns(left, self._mask(dtype))
        # With `orthonormalize` the first step makes it that.
        if not self.orthonormalize:
            # Under a ridge the scale matters: products of such rows are as large as the measurements.
            y = problem.observed()
            square = jnp.sum(problem.weighted(y * y)) / problem.total_weight() / k
            left = left * jnp.sqrt(jnp.sqrt(or_one(square)))
        left, right = jnp.abs(left) if self.nonnegative else left, jnp.zeros((n2, k), dtype)
        if self.biases:
            left = left.at[:, -2].set(0).at[:, -1].set(self.bias_value)
            right = right.at[:, -2].set(self.bias_value)
        return Factors(left, right)

    def _spectral(self, problem: Problem, key: jax.Array) -> Factors:
        if isinstance(problem.loss, losses.Squared):
            factors = initial.spectral(problem, self.max_rank, key, rank=self.rank, trim=self.trim)
        else:
            # One gross outlier would own the spectrum of A*(y); the signs of y do not feel its size.
            factors = initial.sign_spectral(problem, self.max_rank, key, symmetric=False, rank=self.rank)[0]
        if self.clip is None:
            return factors
        n, k = factors.left.shape
        u = factors.svd()[0]
        bound = 2 * self.clip * jnp.sqrt(jnp.asarray(k / n, u.dtype))
        clipped = initial.orthonormal(jnp.where(jnp.abs(u) > bound, 0, u), self._mask(u.dtype))
        # The right factor is solved for in the first half step; until then it fits the clipped left one.
        return jax.lax.stop_gradient(Factors(clipped, matmul(factors.right, matmul(factors.left.T, clipped))))

    def _by_rows(self, problem: Problem) -> bool:
        """Whether a half step splits into one small least-squares problem per row."""
        return self.inner != "cg" and problem.operator.entrywise

    def _reweighted(self, problem: Problem) -> bool:
        """Whether the weights change from step to step."""
        return not isinstance(problem.loss, losses.Squared) or self.fresh_fraction is not None

    def _mask(self, dtype) -> jax.Array | None:
        return initial.column_mask(self.max_rank, self.rank, dtype)

    def step(self, problem: Problem, state: AltMinState, key: jax.Array) -> tuple[AltMinState, jax.Array]:
        """Two half steps."""
        key_right, key_left = jax.random.split(key)
        left, right, omega = state.relaxed, state.factors.right, state.relaxation
        if self.orthonormalize:
            q, r = self._split(left)
            left, right = q, matmul(right, r.T)
        new, _ = self._half(problem, state, left, right, key_right, transpose=False)
        right = right + omega * (new - right)
        if self.orthonormalize:
            q, r = self._split(right)
            left, right = matmul(left, r.T), q
        new, square = self._half(problem, state, right, left, key_left, transpose=True)
        factors = Factors(new, right)
        if square is not None and state.data is not None and self.update_error is None:
            info = base.describe_square(problem, square)
        else:
            info = base.describe(problem, problem.residual(factors))
        change = new - left
        square_move = jnp.sum(change * change)
        move = safe_sqrt(square_move)
        size = jnp.sum(left * left)
        damping = jnp.zeros_like(move)
        if self._adapts(problem) and self.orthonormalize:
            # Measured over 0.1 to 3 and powers 1 to 3 of the move and of the residual: this one loses fewest problems.
            damping = (jnp.minimum(square_move, size) / or_one(size)) ** 1.5
        before, after, damped = state.info["residual"], info["residual"], state.damping
        state = AltMinState(
            factors=factors,
            info=info,
            data=state.data,
            relaxed=left + omega * change,
            move=move,
            guarded=state.guarded,
            relaxation=self._relaxation(problem, omega, state.move, move, after <= before),
            damping=damping,
        )
        settled = ~state.guarded & (square_move <= SETTLED**2 * jnp.finfo(move.dtype).eps * size)
        return state, self._code(before, after, damped, settled)

    def _relaxation(self, problem: Problem, omega, before, after, improved) -> jax.Array:
        """The over-relaxation factor of the next step, from the rate at which this one contracted the moves.

        Near a solution the half steps are block Gauss-Seidel for two blocks. There a step with factor `omega`
        contracts by the `rate` with `(rate + omega - 1)^2 = rate omega^2 mu^2`, and `2 / (1 + sqrt(1 - mu^2))` is
        the best factor (Young 1954). Nine tenths of the way there keeps the rate readable.
        """
        if not self._adapts(problem):
            return omega
        known = improved & (before > 0) & (after > 0)
        rate = jnp.clip(after / jnp.where(known, before, 1), jnp.maximum(omega - 1, jnp.finfo(after.dtype).eps), 1)
        mu_squared = jnp.minimum((rate + omega - 1) ** 2 / (rate * omega**2), LARGEST_MU_SQUARED)
        best = 2 / (1 + jnp.sqrt(1 - mu_squared))
        return jnp.where(known, 1 + 0.9 * (best - 1), 1)

    def _code(self, before: jax.Array, after: jax.Array, damped: jax.Array, settled: jax.Array) -> jax.Array:
        code = base.exact_fit(before, after, self.tolerance)
        if self.fresh_fraction is not None or self.update_error is not None:
            return code
        # A half step minimises exactly, so where neither residual nor factors change the point is stationary. Under a
        # large ridge the residual alone says nothing.
        eps = jnp.finfo(after.dtype).eps
        still = (jnp.abs(before - after) <= 4 * eps * after) & (damped <= eps) & settled
        met = self.tolerance is None
        return jnp.where(still & (code == status.RUNNING), status.CONVERGED if met else status.STALLED, code)

    def _split(self, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`q, r` with orthonormal `q` and `q @ r = factor`."""
        q = initial.orthonormal(factor, self._mask(factor.dtype))
        return q, matmul(q.T, factor)

    def _weights(self, problem: Problem, factors: Factors, key: jax.Array) -> jax.Array | None:
        weights = problem.effective_weights()
        if not isinstance(problem.loss, losses.Squared):
            residual = problem.residual(factors)
            # Below half the typical clean residual an outlier cannot be told from a good fit yet; as the fit improves
            # the floor falls with it. The low quantile stays clean up to 60 % outliers.
            typical = measured_quantile(jnp.abs(residual), problem.effective_weights(), 0.35)
            scale = jnp.sqrt(jnp.mean(problem.observed() ** 2))
            floor = jnp.maximum(typical / 2, jnp.finfo(scale.dtype).eps * or_one(scale))
            weights = problem.weighted(problem.loss.reweight(residual, floor))
        if self.fresh_fraction is not None:
            fresh = jax.random.uniform(key, problem.y.shape, problem.y.dtype) < self.fresh_fraction
            weights = fresh.astype(problem.y.dtype) if weights is None else jnp.where(fresh, weights, 0)
        return weights

    def _half(
        self,
        problem: Problem,
        state: AltMinState,
        fixed: jax.Array,
        moving: jax.Array,
        key: jax.Array,
        *,
        transpose: bool,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Least squares for one factor (`left` if `transpose`) with the other fixed, and the misfit if it came free."""
        key_sample, key_error = jax.random.split(key)
        op, mask = problem.operator, self._mask(fixed.dtype)
        weights = square = None
        data = state.data
        if data is None:
            factors = Factors(moving, fixed) if transpose else Factors(fixed, moving)
            weights = self._weights(problem, factors, key_sample)
        if self._by_rows(problem):
            solve = op.solve_left if transpose else op.solve_right
            data = op.arrange(problem.observed(), weights) if data is None else data
            unit = None if not self.biases else self.max_rank - (1 if transpose else 2)
            row = RowProblem(
                ridge=self.ridge,
                mask=mask,
                by_count=self.ridge_by_count,
                nonnegative=self.nonnegative,
                damping=state.damping,
                sketched=self._sketched(moving, key_sample) if self.inner == "sketched" else None,
                unit_value=self.bias_value,
                unit=unit,
                apart=None if unit is None else self.max_rank - (2 if transpose else 1),
            )
            new, square = solve(fixed, data, row)
        else:
            ridge = jnp.asarray(self.ridge, fixed.dtype)
            new = self._conjugate_gradient(op, fixed, moving, problem.observed(), weights, ridge, transpose)
        new = initial.keep_columns(new, mask)
        if self.update_error is not None:
            noise = initial.keep_columns(drawn(jax.random.normal, key_error, new.shape, new.dtype), mask)
            size = guarded.spectral_norm(new) / guarded.spectral_norm(noise)
            new = new + self.update_error * size * noise
        return new, square

    def _sketched(self, start: jax.Array, key: jax.Array) -> SketchedRows:
        rounding = float(2 * jnp.finfo(start.dtype).eps)
        return SketchedRows(
            # The fresh samples are drawn with the key itself.
            key=jax.random.fold_in(key, 1),
            start=start,
            tolerance=rounding if self.inner_tolerance is None else self.inner_tolerance,
            num_steps=self.inner_steps or DEFAULT_SKETCHED_STEPS,
        )

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
