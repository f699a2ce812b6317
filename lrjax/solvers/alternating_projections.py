"""Alternating projections for robust PCA: a low-rank matrix under sparse gross errors, entries seen densely."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrjax import initial, status
from lrjax.core.checks import check_range
from lrjax.core.draws import drawn
from lrjax.core.numerics import matmul, safe_divide, safe_sqrt
from lrjax.core.pytree import pytree
from lrjax.core.units import Units
from lrjax.linalg import guarded
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import base
from lrjax.step_sizes import measured_quantile

# Residuals looked at to set the threshold: their 35 % quantile is then known to within 2 %.
SAMPLE = 4096
QUANTILE = 0.35
# Entries of the residual worked on at a time: with their masked copy they stay in the cache of a CPU (measured from
# 2^14 to 2^17: a step on 1000 x 1000 takes 6.3, 5.9, 5.3 ms from 2^15 on, 9.4 ms unblocked).
BLOCK_ENTRIES = 2**17
# A row with more of its entries flagged than this (or than 0.25 above the mean) is taken for one not yet fitted.
CROWDED = 0.45
# While nothing has been found, all of the matrix is in the residual and the threshold cannot fall to its errors. What
# exceeds by this factor the norm of a matrix of errors of random sign, as large as the residual, is then no error.
FOUND = 1.1


@pytree
class _Extra:
    """What does not change: the sampled entries, the total weight of each row and column, the typical weight."""

    sample: tuple[jax.Array, jax.Array] | None
    weights: jax.Array | None
    row_total: jax.Array
    col_total: jax.Array
    unit: jax.Array


@pytree
class ProjectionsState:
    """State of alternating projections.

    Attributes:
        factors: the iterate; the right factor has orthonormal columns where the left one is not zero.
        basis: `(n2, max_rank)` orthonormal, the search space of the next half step.
        push: `(n1, max_rank)` change of the left factor in the next half step.
        level: the threshold, but for the factor of a row or column.
        empty: norm of a matrix of random errors as large as the residual, where the threshold can fall no further and
            no column is in use; infinite elsewhere.
        flagged: fraction of the weight above the threshold.
        row_scale: `(n1,)` factor of the threshold in each row, at least one.
        col_scale: the same for columns.
        info: scalars describing the iterate.
        extra: constants of the solve.
    """

    factors: Factors
    basis: jax.Array
    push: jax.Array
    level: jax.Array
    empty: jax.Array
    flagged: jax.Array
    row_scale: jax.Array
    col_scale: jax.Array
    info: dict[str, jax.Array]
    extra: Any


@pytree
class AlternatingProjections:
    """Robust PCA by fitting one factor at a time to the entries whose residual lies below a falling threshold.

    A half step takes the residual `Y - L R^T`, `R` orthonormal, drops the entries above the threshold (they count as
    outliers for now), moves `L` by `n2 / kept_i` times the product of the rest with `R` (row `i` has `kept_i` entries
    left), and sets singular values below the level that such a threshold lets sparse errors reach to zero. Then the
    same from the other side. The threshold falls geometrically, the slower the more is flagged, and not below a
    multiple of a low quantile of the residuals: so neither the fraction nor the size of the outliers nor the noise has
    to be known, surplus columns stay out, and scaling the data changes nothing. A row or column most of which is
    flagged has its threshold raised until it fits.

    `info` adds to `objective` and `residual` (of all entries: these do not vanish under outliers) `clean_residual`,
    the residual of the entries below the threshold relative to the iterate there, which is what convergence is judged
    by; `outlier_fraction`; `threshold`, in the units of `y`; and `rank`, the number of singular values in use.
    The loss enters nothing but `objective`. Thresholds and starts are constants to autodiff: they are quantiles, and a
    small change of them moves no entry across.

    Attributes:
        decay: factor of the threshold per half step without outliers; `decay ** (1 - f) ** 2.5` with a fraction `f`
            flagged. Nearer to one for few or unevenly spread entries.
        first_threshold: of the start, in units of the 35 % quantile of the residuals. Must exceed nearly all entries of
            the matrix sought; each tenfold costs three steps.
        last_threshold: lowest threshold, in the same units at every moment (0.45 standard deviations of Gaussian
            noise).
        rank_threshold: singular values below this multiple of `threshold sqrt(max(n1, n2))` are set to zero.
        tolerance: clean residual at which the solve has converged; default rounding level, or, with noise, when
            the iterate no longer moves. Given, and missed where the iterate no longer moves: status `STALLED`, as
            also where the iterate stays at zero.
        rank: singular values to keep at most (traced), `None` for `max_rank`.
        max_rank: columns of the factors; more than the rank of the matrix is fine.

    Cost per step: four products of `n1 x n2` with `max_rank` columns and two passes over `y`; the residual is formed
    twice, a few rows at a time, and not kept; no singular values of anything larger than `max_rank x max_rank`.

    When not to use it: long lists of sparse entries (`AlternatingMinimization` with the absolute loss,
    `SubgradientMethod`); outliers that themselves have low rank, as whole blocks or stripes of one sign have; fewer
    than a third of the entries observed.

    Source: in the line of Netrapalli, Niranjan, Sanghavi, Anandkumar and Jain, arXiv 1410.7660, and Cai, Cai and Wei,
    arXiv 1711.05519; the rules for threshold and step are ours.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> truth = lr.synthetic.low_rank(key, (60, 40), 2)
        >>> entries = lr.operators.Identity(matrix_shape=(60, 40))
        >>> problem = lr.synthetic.from_truth(key, entries, truth, corruption=0.1)
        >>> solution = lr.solve(problem, lr.AlternatingProjections(max_rank=4), key, num_steps=40)
        >>> bool(lr.metrics.relative_error(solution.factors, truth) < 1e-4)
        True
    """

    decay: float | jax.Array = 0.65
    first_threshold: float | jax.Array = 80.0
    last_threshold: float | jax.Array = 6.5
    rank_threshold: float | jax.Array = 0.7
    tolerance: float | jax.Array | None = None
    rank: int | jax.Array | None = None
    max_rank: int = jax.tree.static(kw_only=False)

    unitless: ClassVar[str] = "right"

    def check(self, problem: Problem) -> None:
        """Raises a `ValueError` that names the bad setting."""
        base.check_rank(self, problem)
        op, (n1, n2) = problem.operator, problem.shape
        if not op.entrywise or op.num_measurements != n1 * n2:
            raise ValueError(
                f"AlternatingProjections needs the dense operators Identity or EntryMask; got {type(op).__name__}. "
                "Use SubgradientMethod, or AlternatingMinimization with the absolute loss"
            )
        check_range("decay", self.decay, low=0, high=1, open_low=True)
        check_range("first_threshold", self.first_threshold, low=0, open_low=True)
        check_range("last_threshold", self.last_threshold, low=0)
        check_range("rank_threshold", self.rank_threshold, low=0)
        check_range("tolerance", self.tolerance, low=0)

    def in_units(self, units: Units) -> "AlternatingProjections":
        """Itself: every setting is relative to the data."""
        return self

    def info_units(self, units: Units) -> dict[str, tuple[jax.Array, ...]]:
        """Units of what `info` adds."""
        return {"threshold": (units.measurement,)}

    def init(self, problem: Problem, key: jax.Array, factors: Factors | None = None) -> ProjectionsState:
        """Zero, with a search space from random products of the clipped data; or given factors."""
        key_sample, key_space = jax.random.split(key)
        (n1, n2), y = problem.shape, problem.observed()
        extra = self._constants(problem, key_sample)
        if factors is None:
            left, right = jnp.zeros((n1, self.max_rank), y.dtype), jnp.zeros((n2, self.max_rank), y.dtype)
        else:
            right, small = guarded.qr(factors.right)
            left = matmul(factors.left, small.T)
        level = jax.lax.stop_gradient(self.first_threshold * self._spread(problem, Factors(left, right), extra))
        if factors is None:
            clipped = problem.weighted(jnp.clip(y, -0.3 * level, 0.3 * level)).reshape(n1, n2)
            probe = drawn(jax.random.normal, key_space, (n1, self.max_rank), y.dtype)
            right = jax.lax.stop_gradient(guarded.qr(matmul(clipped.T, probe))[0])
        used = jnp.full((self.max_rank,), 0 if factors is None else 1, y.dtype)
        scales = jnp.ones_like(extra.row_total), jnp.ones_like(extra.col_total)
        # The threshold of the start is the first one used: no decay yet.
        return self._at(problem, left, right, used, level / self.decay, jnp.zeros_like(level), scales, extra)

    def _constants(self, problem: Problem, key: jax.Array) -> _Extra:
        (n1, n2), y, weights = problem.shape, problem.y, problem.effective_weights()
        if weights is None:
            row_total, col_total = jnp.full((n1,), n2, y.dtype), jnp.full((n2,), n1, y.dtype)
            unit = jnp.ones_like(y[0])
        else:
            row_total, col_total = weights.reshape(n1, n2).sum(1), weights.reshape(n1, n2).sum(0)
            unit = jnp.sum(weights) / jnp.sum((weights > 0).astype(y.dtype))
        sample = None
        if n1 * n2 > 2 * SAMPLE:
            if weights is None or n1 * n2 >= 2**31:
                # Two indices: the place in the flat matrix may exceed an int32.
                key_row, key_col = jax.random.split(key)
                sample = (
                    jax.random.randint(key_row, (SAMPLE,), 0, n1),
                    jax.random.randint(key_col, (SAMPLE,), 0, n2),
                )
            else:
                count = jnp.cumsum((weights > 0).astype(jnp.int32))
                place = jnp.searchsorted(count, jax.random.randint(key, (SAMPLE,), 1, count[-1] + 1))
                sample = place // n2, place % n2
            weights = None if weights is None else weights.reshape(n1, n2)[sample]
        return _Extra(sample=sample, weights=weights, row_total=row_total, col_total=col_total, unit=unit)

    def _spread(self, problem: Problem, factors: Factors, extra: _Extra) -> jax.Array:
        """The low quantile of the absolute residuals, from the sample."""
        if extra.sample is None:
            seen = problem.residual(factors)
        else:
            seen = factors.entries(*extra.sample) - problem.observed().reshape(factors.shape)[extra.sample]
        return measured_quantile(jnp.abs(jax.lax.stop_gradient(seen)), extra.weights, QUANTILE)

    def _push(
        self,
        problem: Problem,
        factors: Factors,
        basis: jax.Array,
        level: jax.Array,
        flagged: jax.Array,
        scale: jax.Array,
        extra: _Extra,
        *,
        rows: bool,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Change of the rows (or columns) over `basis`; new level, flagged fraction and scales; sums of residuals."""
        n1, n2 = problem.shape
        dtype = level.dtype
        # While some row waits to be fitted the threshold nearly stands still: the bulk would leave it behind.
        waiting = jnp.where(jnp.any(scale > 1), 0.25, 1.0).astype(dtype)
        rate = self.decay ** (waiting * (1 - flagged) ** 2.5)
        lowest = self.last_threshold * self._spread(problem, factors, extra)
        resting = lowest >= rate * level
        level = jnp.maximum(rate * level, lowest)
        product, kept, sums = self._pass(problem, factors, basis, level * scale, rows=rows)
        total = extra.row_total if rows else extra.col_total
        # With fewer entries than unknowns a full step would overshoot.
        step = (n2 if rows else n1) / jnp.maximum(kept, self.max_rank * extra.unit)
        crowded = kept < (1 - jnp.maximum(CROWDED, flagged + 0.25)) * total
        scale = jnp.where(crowded, 10 * scale, jnp.maximum(1, 0.7 * scale))
        flagged = 1 - jnp.sum(kept) / jnp.sum(total)
        return -step[:, None] * product, level, flagged, scale, {**sums, "resting": resting}

    def _pass(self, problem: Problem, factors: Factors, basis: jax.Array, limit: jax.Array, *, rows: bool):
        """Product of the clean residual with `basis`, the weight kept in each row (or column), and sums of squares.

        A few rows of the residual at a time, which is formed, cut, multiplied and summed up while it is in cache.
        """
        (n1, n2), k = problem.shape, basis.shape[1]
        y, weights = problem.observed().reshape(n1, n2), problem.effective_weights()
        weights = None if weights is None else weights.reshape(n1, n2)
        size = max(1, min(n1, BLOCK_ENTRIES // n2))

        def block(start: Any, size: int) -> tuple[Any, ...]:
            cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size)
            gap = matmul(cut(factors.left), factors.right.T) - cut(y)
            w = None if weights is None else cut(weights)
            gap = gap if w is None else jnp.where(w > 0, gap, 0)
            inside = jnp.abs(gap) <= (cut(limit)[:, None] if rows else limit[None, :])
            weighted = gap if w is None else w * gap
            clean = jnp.where(inside, weighted, 0)
            on = inside.astype(gap.dtype) if w is None else jnp.where(inside, w, 0)
            if not rows:
                return matmul(clean.T, cut(basis)), jnp.sum(on, axis=0)
            value = problem.loss.value(gap)
            sums = {
                "objective": jnp.sum(value if w is None else w * value),
                "square": jnp.sum(weighted * gap),
                "clean": jnp.sum(clean * clean),
            }
            return matmul(clean, basis), jnp.sum(on, axis=1), sums

        count, rest = n1 // size, n1 % size
        starts = jnp.arange(count) * size
        if rows:
            product, kept, sums = jax.lax.map(lambda start: block(start, size), starts)
            product, kept, sums = product.reshape(-1, k), kept.reshape(-1), jax.tree.map(jnp.sum, sums)
            if rest:
                last, last_kept, more = block(count * size, rest)
                product, kept = jnp.concatenate([product, last]), jnp.concatenate([kept, last_kept])
                sums = jax.tree.map(jnp.add, sums, more)
            return product, kept, sums
        add = lambda total, start: (jax.tree.map(jnp.add, total, block(start, size)), None)
        total, _ = jax.lax.scan(add, block(0, size), starts[1:])
        return *(jax.tree.map(jnp.add, total, block(count * size, rest)) if rest else total), {}

    def _split(self, moved: jax.Array, basis: jax.Array, level: jax.Array, empty: jax.Array, extra: _Extra):
        """`moved @ basis.T` with small singular values dropped: new basis, the other factor, ones for columns used."""
        q, small = guarded.qr(moved)
        u, s, vt = guarded.svd(small)
        n1, n2 = extra.row_total.shape[0], extra.col_total.shape[0]
        density = jnp.sum(extra.row_total) / (float(n1) * n2 * extra.unit)
        # Random sparse errors up to the threshold reach about this norm, after division by the density.
        edge = self.rank_threshold * level * jnp.sqrt(max(n1, n2) / density)
        # One column at a time: once it is fitted the residual shows what else there is.
        first = jnp.arange(s.shape[0]) == 0
        used = ((s > edge) | (first & (s > FOUND * empty))).astype(s.dtype)
        if (mask := initial.column_mask(self.max_rank, self.rank, s.dtype)) is not None:
            used = used * mask
        return matmul(q, u), matmul(basis, vt.T) * (used * s)[None, :], used

    def _at(self, problem, left, basis, used, level, flagged, scales, extra) -> ProjectionsState:
        factors = Factors(left, basis * used[None, :])
        push, level, flagged, row_scale, sums = self._push(
            problem, factors, basis, level, flagged, scales[0], extra, rows=True
        )
        misfit = sums["clean"]
        whole = misfit + jnp.sum(left * left) * jnp.sum(extra.row_total) / (float(left.shape[0]) * basis.shape[0])
        ratio = safe_divide(misfit, whole)
        (n1, n2), total = problem.shape, jnp.sum(extra.row_total)
        spread = jnp.sqrt(jax.lax.stop_gradient(misfit / jnp.maximum((1 - flagged) * total * extra.unit, extra.unit)))
        density = total / (float(n1) * n2 * extra.unit)
        norm = spread * (n1**0.5 + n2**0.5) / jnp.sqrt(density)
        info = {
            "objective": sums["objective"],
            "residual": problem.relative_norm(sums["square"]),
            "clean_residual": safe_sqrt(ratio),
            "outlier_fraction": flagged,
            "threshold": level,
            "rank": jnp.sum(used),
        }
        return ProjectionsState(
            factors=factors,
            basis=basis,
            push=push,
            level=level,
            empty=jnp.where(sums["resting"] & (jnp.sum(used) == 0), norm, jnp.inf),
            flagged=flagged,
            row_scale=row_scale,
            col_scale=scales[1],
            info=info,
            extra=extra,
        )

    def step(self, problem: Problem, state: ProjectionsState, key: jax.Array) -> tuple[ProjectionsState, jax.Array]:
        """Two half steps: the left factor, then the right one."""
        extra, level = state.extra, state.level
        left, right, _ = self._split(state.factors.left + state.push, state.basis, level, state.empty, extra)
        # `right` carries the singular values here, `left` is the basis.
        push, level, flagged, col_scale, _ = self._push(
            problem, Factors(left, right), left, level, state.flagged, state.col_scale, extra, rows=False
        )
        right, left, used = self._split(right + push, left, level, state.empty, extra)
        scales = state.row_scale, col_scale
        new = self._at(problem, left, right, used, level, flagged, scales, extra)
        return new, self._code(state, new)

    def _code(self, old: ProjectionsState, new: ProjectionsState) -> jax.Array:
        code = base.exact_fit(old.info["clean_residual"], new.info["clean_residual"], self.tolerance)
        # A row most of which is flagged is not fitted, however well the others are.
        fitted = jnp.all(new.row_scale <= 1) & jnp.all(new.col_scale <= 1)
        code = jnp.where(fitted, code, status.RUNNING)
        eps = jnp.finfo(new.push.dtype).eps
        still = jnp.sum(new.push**2) <= (8 * eps) ** 2 * jnp.sum(new.factors.left**2)
        still |= jnp.isfinite(old.empty) & jnp.isfinite(new.empty)
        # Without a single column in use nothing was found, unless there was nothing to find.
        found = (new.info["rank"] > 0) | (new.info["residual"] == 0)
        met = fitted & found & (self.tolerance is None)
        at_rest = jnp.where(met, status.CONVERGED, status.STALLED)
        return jnp.where(still & (code == status.RUNNING), at_rest, code)
