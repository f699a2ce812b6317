"""Tests that notice: the library is broken in one place at a time, and the tests that mirror the place must fail.

`python -m tests.breakages [--only TEXT] [--jobs 2] [--limit 150]` copies the tree, breaks the copy, runs the tests
named beside each breakage, and says which were noticed. A breakage whose line has changed is stale: write it again. One
that survives wants a test. It exits with 1 if any survived, is stale or ran out of time.

Not collected by pytest: it takes an hour or so.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("lrjax", "tests", "benchmarks", "papers", "examples", "pyproject.toml", "README.md")
NOTICED, SURVIVED, STALE, UNDECIDED = "noticed", "SURVIVED", "STALE", "UNDECIDED"


@dataclasses.dataclass(frozen=True)
class Breakage:
    """`old`, which stands exactly once in `file`, becomes `new`; `tests` with `-k words` must fail."""

    file: str
    old: str
    new: str
    tests: str
    words: str = ""


SMALL, SOLVE, LSTSQ, OPS, ROWS = ("small_rules", "solve", "least_squares", "operators", "row_sampling")
_TABLE = [
    # --- loops, statuses, the solve ---
    ("iteration/loop.py", "running = carry[1] == status.RUNNING", "running = carry[1] >= status.RUNNING",
     SMALL, "no_slope"),
    ("iteration/loop.py", "jax.lax.stop_gradient(x))\n        given", "x)\n        given", SMALL, "no_slope"),
    ("iteration/loop.py", "(loop[1] < first + num_steps)", "(loop[1] <= first + num_steps)",
     SOLVE, "rows_of_the_trace"),
    ("iteration/loop.py", "jnp.where(ok, code, status.NONFINITE)", "jnp.where(ok, code, status.RUNNING)", "transforms",
     "diverging"),
    ("iteration/loop.py", "status.RUNNING, zero + status.INVALID)", "status.RUNNING, zero + status.RUNNING)", SMALL,
     "not_repaired"),
    ("status.py", "{CONVERGED} if require_convergence", "{CONVERGED, STALLED} if require_convergence", SMALL,
     "only_conv"),
    ("core/numerics.py", "return jnp.where(x > 0, jnp.sqrt(or_one(x)), 0)", "return jnp.sqrt(x)", "numerics", ""),
    ("core/numerics.py", "keep = x > 0 if keep is None else keep", "keep = x > 0", "numerics", ""),
    ("core/pytree.py", "jnp.all(jnp.stack(checks))", "jnp.any(jnp.stack(checks))", SMALL, "is_enough"),
    ("iteration/solve.py",
     'row = {"step": taken, **state.info}', 'row = {"step": taken + 1, **state.info}', SOLVE, "rows_of"),
    ("iteration/solve.py", "jax.random.split(key)[1])", "jax.random.split(key)[0])", SMALL, "key_of_their_own"),
    ("problems/problem.py", "return self.y if weights is None else jnp.where(weights > 0, self.y, 0)", "return self.y",
     "transforms", "zero_weight and altmin-sampled"),
    ("problems/problem.py", "residual if weights is None else jnp.where(weights > 0, residual, 0)", "residual", SMALL,
     "weights_count"),
    ("problems/problem.py", "return values if weights is None else weights * values", "return values",
     SMALL, "weights_count"),
    ("losses.py", "return clipped * (r - 0.5 * clipped)", "return clipped * (r - clipped)", SOLVE, "losses"),
    ("losses.py", "return delta / jnp.maximum(jnp.abs(r), delta)", "return delta / jnp.abs(r)", SOLVE, "losses"),
    # --- step rules and starts ---
    ("step_sizes.py", "+ 1) ** (-self.power)", "+ 2) ** (-self.power)", SMALL, "diminishing"),
    ("step_sizes.py", "self.value * seen.unit * _safe_ratio(seen.objective, seen.reference)",
     "self.value * seen.unit * seen.objective", SMALL, "normalized"),
    ("step_sizes.py", "return self.value * seen.unit\n", "return self.value + 0 * seen.unit\n", SMALL, "constant"),
    ("step_sizes.py", "* (count - 1)).astype(jnp.int32)", "* count).astype(jnp.int32)", SMALL, "quantile or median"),
    ("step_sizes.py", "ordered = jnp.sort(jnp.where(on, values, jnp.inf))", "ordered = jnp.sort(values)", SMALL,
     "quantile or median"),
    ("initial.py", "jnp.mean(jax.lax.map(energy, (left, right))) / (float(n1) * n2)",
     "jnp.mean(jax.lax.map(energy, (left, right))) / float(n1)", SMALL, "gain_is"),
    ("initial.py", "(jnp.arange(max_rank) < rank)", "(jnp.arange(max_rank) <= rank)", "transforms",
     "masked_rank and gd"),
    ("initial.py", "light_row = (per_row <= 2 * jnp.mean(per_row))", "light_row = (per_row >= 2 * jnp.mean(per_row))",
     SMALL, "trimming"),
    # --- factors and metrics ---
    ("problems/factors.py", "gap = (kept[None, :] - dropped[:, None]) * (kept[None, :] + dropped[:, None])",
     "gap = (kept[None, :] - dropped[:, None]) * kept[None, :]", SMALL, "best_approximation"),
    ("problems/factors.py", "left = jnp.concatenate([a.left, -b.left], axis=1)",
     "left = jnp.concatenate([a.left, b.left], axis=1)", SOLVE, "relative_error"),
    ("problems/factors.py", "matmul(left, matmul(right.T, _columns(", "matmul(left, 2 * matmul(right.T, _columns(",
     SOLVE,
     "factors_against"),
    ("metrics.py", "(jnp.abs(estimate) > threshold)", "(jnp.abs(estimate) >= threshold)", SMALL, "threshold"),
    ("metrics.py", "jnp.sum(weights * square) / jnp.sum(weights)", "jnp.mean(weights * square)", SOLVE,
     "other_metrics"),
    ("metrics.py", "qb - matmul(qa, matmul(qa.T, qb))", "qb + matmul(qa, matmul(qa.T, qb))", SOLVE, "subspace"),
    # --- solvers ---
    ("solvers/alternating_minimization.py", "relaxed=left + omega * change,", "relaxed=left - omega * change,", SOLVE,
     "over_relaxation"),
    ("solvers/alternating_minimization.py", "1 + 0.9 * (best - 1)", "1 + 1.5 * (best - 1)", SOLVE, "over_relaxation"),
    ("solvers/alternating_minimization.py", "fresh = jax.random.uniform(key, problem.y.shape, problem.y.dtype) < self",
     "fresh = jax.random.uniform(jax.random.key(0), problem.y.shape, problem.y.dtype) < self", "theory", "t1_3"),
    ("solvers/gauss_newton.py",
     "ridge = jnp.reshape(ridge, (1, -1))\n        z = -problem.residual(state.point)",
     "ridge = jnp.reshape(ridge, (1, -1))\n        z = problem.residual(state.point)", "gauss_newton",
     "one_step"),
    ("solvers/gauss_newton.py", "code = jnp.where(growing, status.RUNNING, code)", "", "gauss_newton", "absolute"),
    ("solvers/irls.py",
     "inner = 1 / (1 / outer[:, None] * (1 / outer)[None, :] + 1 / outer[:, None] + 1 / outer[None, :])",
     "inner = 1 / (1 / outer[:, None] * (1 / outer)[None, :] + 1 / outer[:, None])", "irls", "dense_weighted"),
    ("solvers/soft_impute.py", "shrunk = jnp.maximum(s - rate * penalty, 0)", "shrunk = jnp.maximum(s - penalty, 0)",
     "soft_impute", "convex"),
    ("solvers/soft_impute.py", "t = (1 + jnp.sqrt(1 + 4 * state.momentum**2)) / 2", "t = 1 + state.momentum", SMALL,
     "momentum"),
    ("solvers/scaled_gradient_descent.py", "change = sizes * (-2 * rs + sizes", "change = sizes * (2 * rs + sizes",
     "recovery", "line_search"),
    ("solvers/scaled_subgradient.py", "damping = self.damping * error", "damping = 100 * self.damping * error",
     "recovery",
     "preconditioning and True"),
    ("solvers/subgradient.py", "reference = jnp.maximum(1.5 * needed, 0.3)", "reference = 0.05 * needed", SMALL,
     "first_step"),
    ("solvers/subgradient.py", "budget_ok = rule.value >= needed", "budget_ok = rule.value >= 0", "theory", "t2_6"),
    ("solvers/gradient_descent.py", "Factors(new_left, matmul(right, qt.T) * (s / beta)[None, :])",
     "Factors(new_left, matmul(right, qt.T) * s[None, :])", SMALL, "rebalancing"),
    ("solvers/singular_value_projection.py", "size = jnp.sum(ascent * ascent) / or_one(energy)",
     "size = 3 * jnp.sum(ascent * ascent) / or_one(energy)", "recovery",
     "exactly_and_stops and SingularValueProjection"),
    ("solvers/blind_gain_descent.py", "down_gains = down_gains - jnp.mean(down_gains)", "", "gains", "published"),
    ("solvers/blind_gain_descent.py", "offset - shift, -radius, radius)", "offset - shift, -2 * radius, radius)",
     "gains", "projection_of_gains"),
    ("solvers/alternating_projections.py", "at_rest = jnp.where(met, status.CONVERGED, status.STALLED)",
     "at_rest = status.CONVERGED", "robust_pca", "nothing_is_claimed"),
    ("solvers/alternating_projections.py", "inside = jnp.abs(gap) <= (cut(limit)",
     "inside = jnp.abs(gap) >= (cut(limit)", "robust_pca", "blocks"),
    ("solvers/wrappers.py", 'better = inner.info["objective"] < state.info["objective"]',
     'better = inner.info["objective"] > state.info["objective"]', SOLVE, "best_so_far"),
    ("solvers/wrappers.py", "self.decay * old + (1 - self.decay) * new", "(1 - self.decay) * old + self.decay * new",
     SOLVE, "averaged"),
    ("solvers/base.py", "shift = damping + k * eps", "shift = k * eps", "recovery", "fixed_damping"),
    # --- linear algebra ---
    ("linalg/rows.py", "relative = jnp.where(few, 0.1, ", "relative = jnp.where(few, 10.0, ", OPS, "half_steps"),
    ("linalg/rows.py", "multiple = jnp.where((below > i)", "multiple = jnp.where((below >= i)", OPS, "half_steps_are"),
    ("linalg/rows.py", "right = right[:, later:] - jnp.sum(", "right = right[:, later:] + jnp.sum(", OPS,
     "half_steps_are"),
    ("linalg/segments.py", "zeros.at[self.row].add(", "zeros.at[self.row].set(", OPS, "rows_of_every_length"),
    ("linalg/rows.py", "return x.at[i].set(jnp.maximum(better, 0))", "return x.at[i].set(better)", SOLVE,
     "nonnegative"),
    ("linalg/rows.py", "return ridge * count.astype(dtype) if self.by_count else ridge", "return ridge", SOLVE,
     "by_count"),
    ("linalg/sketched_rows.py", "curvature = size(ap) + shift * dot(p, p)", "curvature = size(ap)",
     "sketched_rows", "exact_answer"),
    ("linalg/krylov.py", "return x, r, r + ratio(new, rr) * p, new", "return x, r, r, new", SMALL, "conjugate"),
    ("linalg/svd.py", "turn_left = over(core * values + values.T * core.T, gap, apart)",
     "turn_left = over(core * values - values.T * core.T, gap, apart)", "irls", "derivatives"),
    ("linalg/modes.py", "rows = [vector[None, :] for vector in vectors]",
     "rows = [vector[None, ::-1] for vector in vectors]", "sparse_bayesian", "never_raises"),
    ("linalg/hadamard.py", "[h, -h]", "[h, h]", "sketching", "sylvester"),
    ("linalg/guarded.py", "a + jax.lax.stop_gradient(jnp.sum(0 * a, axis=(-2, -1), keepdims=True))", "a", SMALL,
     "not_finite"),
    # --- operators ---
    ("operators/dense.py", "np.where(rows == cols, 0.5, 1.0)", "np.where(rows == cols, 1.0, 1.0)", OPS,
     "adjoint and dense"),
    ("operators/dense.py", "math.sqrt(0.5)), dtype)", "1.0), dtype)", OPS, "stated_law"),
    ("operators/entries.py", "misfit = matmul(free, solution.T) - y", "misfit = matmul(free, solution.T) + y", OPS,
     "half_steps_are"),
    ("operators/sampled_entries.py", "index < n if w is None else w > 0", "index < n if w is None else w >= 0", OPS,
     "half_steps_are"),
    ("operators/sampled_entries.py", "total = total / np.diff(", "total = total * np.diff(", OPS, "duplicates_merge"),
    ("operators/layout.py", "place[counts == 0] = blocks * slots + num_long", "pass", OPS,
     "adjoint and sampled or layout or half_steps_are or rows_of_every_length"),
    ("operators/layout.py", "ends[begin:end] - needed[rows] - taken", "ends[begin:end] - needed[rows]", OPS,
     "rows_of_every_length"),
    ("operators/layout.py", "np.repeat(np.arange(len(rows)), parts)", "np.repeat(np.arange(len(rows))[::-1], parts)",
     OPS, "rows_of_every_length"),
    ("operators/layout.py", "total = total + jnp.sum(jax.lax.map(one, long))", "pass", OPS, "rows_of_every_length"),
    ("operators/seeded.py", "block_key = jax.random.fold_in(self.key, index)", "block_key = self.key", OPS, "seeded"),
    ("operators/rank_one.py", "z[:, None] * matmul(self.right_vectors, v))", "matmul(self.right_vectors, v))", OPS,
     "adjoint and rank_one"),
    ("operators/combinators.py", "return self.operator.adjoint(self._keep(z))", "return self.operator.adjoint(z)", OPS,
     "explicit or adjoint and masked"),
    ("operators/combinators.py", "known = [part for part in parts if part is not None]", "known = parts[:1]", OPS,
     "what_is_measured"),
    ("operators/hankel.py", 'product = _products("fpm,fmk->fpk", self._transform(self._blocks(z)), seen)',
     'product = _products("fpm,fmk->fpk", self._transform(self._blocks(z)), seen.conj())', OPS, "adjoint and hankel"),
    ("operators/kronecker.py", "[a.conj().T for a in matrices]", "[a.T for a in matrices]", OPS, "hermitian"),
    ("operators/gains.py", "gains = jnp.sum((self.y.conj() * r)", "gains = jnp.sum((self.y * r)", "gains",
     "system_is_its_definition or calibration_is_dense"),
    ("operators/structured_gains.py", "for signs in reversed(later):", "for signs in later:", SMALL, "three_rounds"),
    ("operators/coupling.py", "take(values, self.chunks.source)", "take(values, self.chunks.source[::-1])",
     "gauss_newton", "one_step"),
    # --- sketching ---
    ("sketching/regression/direct.py", "size = jnp.hypot(sigma, jnp.sqrt(level))", "size = jnp.hypot(sigma, level)",
     LSTSQ,
     "finite_differences and wide"),
    ("sketching/regression/normal_equations.py", "scale = level[:, None] ** 2 + mu[None, :]",
     "scale = level[:, None] ** 2",
     LSTSQ,
     "backward or accurate"),
    ("sketching/regression/normal_equations.py", "weigh(weights, b - forward(a, x))) - ridge[:, None] * x",
     "weigh(weights, b - forward(a, x)))",
     LSTSQ, "weights_and_ridge_of"),
    ("sketching/regression/iterative.py", "sine * phi, -cosine * alpha", "sine * phi, cosine * alpha",
     LSTSQ, "forward_stable"),
    ("sketching/regression/iterative.py", "momentum = a.shape[1] / sketch_size", "momentum = 0.95",
     LSTSQ, "forward_stable"),
    ("sketching/regression/cholesky_qr.py", "jnp.sqrt(ridge)[None, :] * used.inverse[:, None]",
     "ridge[None, :] * used.inverse[:, None]", SMALL, "augmented_system"),
    ("sketching/regression/streaming.py", "down, square = -level[:, None] * x, ", "down, square = 0 * x, ", LSTSQ,
     "blocks_of_rows"),
    ("sketching/row_sampling.py", "scores.dtype) + unit / 2", "scores.dtype)", SMALL, "middle"),
    ("sketching/row_sampling.py", "heap[1] / (num_rows * scores[indices])", "heap[1] / scores[indices]", ROWS, "gram"),
    ("sketching/row_sampling.py", "(before + ticks[order] < before) | certain[order]",
     "(before + ticks[order] < before)", ROWS, "once or inclusion"),
    ("sketching/row_sampling.py", "return leverage_scores(a, key=key) ** (p / 2)",
     "return leverage_scores(a, key=key) ** p", SMALL, "root_leverage"),
    ("sketching/dpp.py", "left = jnp.where(column[None] >= k, rows, 0)", "left = jnp.where(column[None] > k, rows, 0)",
     ROWS, "dpp"),
    ("sketching/regression/lp.py", "y = y - room * matmul(", "y = y + room * matmul(", "lp_regression", "minimum"),
    ("sketching/regression/lp.py", "matmul((a - rows).T, weights * r) / (p - 1)",
     "matmul((a - rows).T, weights * r)", "lp_regression", "derivatives"),
    ("sketching/approximation.py", "moved = back(inside), back(-inverse[:, None]",
     "moved = back(inside), back(inverse[:, None]", "low_rank", "gradients"),
    ("sketching/products.py", "1 - jax.random.uniform(key, (num_samples,), p.dtype)",
     "1 - jax.random.uniform(key, (1,), p.dtype)", "sampled_matmul", "unbiased"),
    ("sketching/regression/coordinatewise.py", "num_cols * (z / epsilon) ** 2", "(z / epsilon) ** 2",
     "coordinatewise", "promise"),
    ("sketching/dense.py", "jax.random.fold_in(sketch.key, index)", "sketch.key", "sketching",
     "independent_normals"),
    ("sketching/sparse.py", "return 1 - 2 * bits.astype(jnp.int8)", "return 1 - bits.astype(jnp.int8)", "sketching",
     "SparseSign and gram or one_sign"),
    ("sketching/tensor.py", "return (size / self.rows1.shape[0]) ** 0.5", "return size / self.rows1.shape[0]",
     "sketching", "never_forms"),
    ("sketching/transforms.py", "over_column_blocks(short, columns, _width(size)) * (size / m) ** 0.5",
     "over_column_blocks(short, columns, _width(size)) * (m / size) ** 0.5", "sketching", "SRHT and one_matrix"),
    ("sketching/transforms.py", "return sign_rows(sketch.row_signs[index], rows)", "return rows", "sketching",
     "BlockSRHT"),
    # --- sweeps ---
    ("sweeps/sweep.py", "jnp.uint32(combo * (plan.num_lanes // plan.num_trials))", "jnp.uint32(combo)", SMALL,
     "keys_of_their_own"),
    ("sweeps/sweep.py", "index // plan.num_trials, index % plan.num_trials", "index // plan.num_trials, index", "sweep",
     "loop_gives"),
    ("sweeps/sweep.py", "digest.update(np.asarray(jax.random.key_data(const) if typed else const).tobytes())", "pass",
     "sweep", "changed_constant"),
    ("sweeps/plan.py", 'return f"{values.dtype}:{values.tobytes().hex()}"', 'return "same"', SMALL, "last_bit"),
    ("sweeps/plan.py", "else v.item() for v in values]", "else round(v.item(), 6) for v in values]", SMALL, "last_bit"),
    ("sweeps/checkpoint.py", "os.fsync(file.fileno())", "pass", SMALL, "on_the_disk"),
    ("sweeps/plan.py", "axes = [order.index(axis) for axis in names]", "axes = list(range(len(order)))", "sweep", ""),
    # --- completion, rank, files ---
    ("completion/fitting.py", "PATIENCE = 5", "PATIENCE = 1", SMALL, "five_steps"),
    ("completion/completion.py", "np.sqrt(KEPT / (1 - KEPT))", "np.sqrt((1 - KEPT) / KEPT)", SOLVE, "uncertainty"),
    ("completion/rank_selection.py", "axis=1, ddof=1) * GROUPS**0.5", "axis=1, ddof=1)", SMALL, "spread"),
    ("completion/rank_selection.py", "jax.lax.map(one, jnp.arange(1, max_rank + 1,",
     "jax.lax.map(one, jnp.arange(max_rank,", "rank",
     "few_steps"),
    ("cli/tables.py", "off = first != second", "off = first >= 0", "tables", "matrix_market"),
    ("cli/tables.py", "rows.append(row - 1)", "rows.append(row)", "tables", "matrix_market"),
    ("completion/ensemble.py", "(jax.random.uniform(key_keep, values.shape) >= drop)",
     "(jax.random.uniform(key_keep, values.shape) < drop)", "ensemble", "spread or hidden"),
    ("core/checks.py", "or count < minimum", "or count <= minimum", "validation", "unusual or refused"),
    # --- units, ridges, statuses, derivatives ---
    ("linalg/rows.py", "< columns) & (ridge == 0)", "< columns)", "statuses", "a_ridge_is"),
    ("iteration/solve.py", "RISE * most)", "1e30 * most)", "statuses", "large_rise"),
    ("solvers/alternating_minimization.py", "ridge = self.ridge / units.weight *", "ridge = self.ridge *", "units",
     "every_solver and altmin_plain"),
    ("solvers/alternating_projections.py", "(first & (s > FOUND * empty))", "(first & (s > 1e3 * empty))", "statuses",
     "small_tables"),
    ("solvers/soft_impute.py", "target = self.penalty * top if", "target = self.penalty * values[0] if", "derivatives",
     "soft_impute"),
    ("problems/factors.py", "slope_right = matmul(q_right, matmul(unit.T, r_left))", "slope_right = 0 * factors.right",
     "derivatives", "factors and plain"),
    ("core/units.py", "return (self.weight, *[self.measurement] * self.degree)", "return (self.weight,)", "units",
     "settings_with"),
    # --- neighbours ---
    ("models/calibration.py", 'jnp.vdot(w, v, precision="highest")) / weight', 'jnp.vdot(w, v, precision="highest"))',
     "gains", "calibration_is_dense"),
    ("models/sparse_bayesian.py", "misfit = jnp.sum((noise * inverse) ** 2 * _square(turned))",
     "misfit = jnp.sum(noise * inverse * _square(turned))", "sparse_bayesian", "dense_formula"),
    ("models/state_space.py", "found = lstsq(inputs[:, ::-1]", "found = lstsq(inputs[:, :]", "state_space",
     "markov_parameters"),
    ("models/state_space.py", "b=root[:, None] * v[:m].T", "b=v[:m].T", "state_space", "without_noise"),
    ("models/supervised_dictionary.py", "+ 0.5 * data.ridge * ridge", "+ data.ridge * ridge", "supervised_dictionary",
     "published"),
    ("models/rank_projected.py", "steps.append(norm(after - before)", "steps.append(norm(0 * after)",
     SMALL, "free_part"),
    ("private/noise.py", "math.sqrt(3 * levels)", "math.sqrt(levels)", "private", "compose"),
    ("private/accounting.py", "return gaussian_delta(epsilon, mu) + rounding", "return gaussian_delta(epsilon, mu)",
     "private", "rounded_up"),
    ("private/sketch.py", "kept = values > level * values[0]", "kept = values > 0 * level", "private", "formula"),
    ("private/tree.py", "jnp.where(level < closing, old, 0)", "jnp.where(level < closing - 1, old, 0)", "private",
     "prefix"),
    ("private/tree.py", "jax.random.fold_in(self.key, time), 3)", "self.key, 3)", "private", "prefix or compose"),
    ("problems/planted.py", "exponent = -jnp.linspace(0, 1, rank, dtype=dtype)",
     "exponent = -2 * jnp.linspace(0, 1, rank, dtype=dtype)", SOLVE, "low_rank_truths"),
    ("problems/planted.py", "< corruption\n", "<= 2 * corruption\n", SOLVE, "stated_size"),
    ("diagnostics/identifiability.py", "short = alive[side] & (count < rank)",
     "short = alive[side] & (count <= rank)", "diagnostics",
     "jacobian"),
    ("diagnostics/identifiability.py", "basis.shape[0] / rank * jnp.max(", "jnp.max(", "theory_tools", "coherence"),
    ("diagnostics/fits.py", "ended = np.flatnonzero(curve[first:] <= 10 * least)",
     "ended = np.flatnonzero(curve[first:] <= least)", "theory_tools", "rates"),
    ("diagnostics/fits.py", "centre - spread * beta[0] / slope", "centre + spread * beta[0] / slope", "theory_tools",
     "planted"),
    ("plot.py", "np.quantile(lanes, (0.1, 0.5, 0.9), axis=0)", "np.quantile(lanes, (0.0, 0.5, 1.0), axis=0)", "plot",
     "band"),
    ("plot.py", "2 * centres[0] - middle[0]", "centres[0]", "plot", "cell"),
    ("datasets.py", "rows, cols = np.divmod(kept, table.shape[1])", "rows, cols = np.divmod(kept, table.shape[0])",
     "datasets", "elevation_ratings"),
    ("testing.py", "assert order > 1.9, ", "assert order > 0.5, ", OPS, "check_gradient_can_fail"),
]  # fmt: skip
BREAKAGES = [Breakage(f"lrjax/{file}", *rest) for file, *rest in _TABLE]


def command(one: Breakage) -> list[str]:
    names = [f"test_{name.strip()}.py" for name in one.tests.split(" or ")]
    files = [str(path.relative_to(ROOT)) for name in names for path in (ROOT / "tests").rglob(name)]
    words = ["-k", one.words] if one.words else []
    return [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "--no-header",
        *files,
        *words,
    ]


def run(one: Breakage, limit: float) -> tuple[str, float, str]:
    """Breaks a copy and runs the tests: the verdict, the seconds, and the last line of pytest."""
    begun = time.monotonic()
    text = (ROOT / one.file).read_text()
    if text.count(one.old) != 1:
        return STALE, 0.0, f"the snippet stands {text.count(one.old)} times in {one.file}"
    with tempfile.TemporaryDirectory(prefix="lrjax-breakage-") as folder:
        for name in COPIED:
            source, target = ROOT / name, Path(folder) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        (Path(folder) / one.file).write_text(text.replace(one.old, one.new))
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(
            command(one),
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said = process.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return UNDECIDED, time.monotonic() - begun, f"not done in {limit:g} s"
    last = said.strip().splitlines()[-1] if said.strip() else ""
    failed = next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), last)
    # Only a failing test notices; a selection without a test (5) or an error of pytest's own says nothing.
    verdict = {0: SURVIVED, 1: NOTICED}.get(process.returncode, UNDECIDED)
    return verdict, time.monotonic() - begun, failed[:140] if verdict == NOTICED else last[:140]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="breakages whose file, snippet or number is this")
    parser.add_argument("--first", type=int, default=0, help="the number of the first breakage")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=150, help="seconds for the tests of one breakage")
    parser.add_argument("--stale", action="store_true", help="only say which snippets no longer stand in their files")
    given = parser.parse_args()
    chosen = [
        (i, one)
        for i, one in list(enumerate(BREAKAGES))[given.first :]
        if given.only == "" or str(i) in given.only.split(",") or given.only in one.file + " " + one.old
    ]
    if given.stale:
        stale = [(i, one) for i, one in chosen if (ROOT / one.file).read_text().count(one.old) != 1]
        for i, one in stale:
            print(f"{i}: {one.file}: {one.old!r}")
        print(f"{len(stale)} of {len(chosen)} are stale")
        return 1 if stale else 0
    verdicts: dict[str, list[int]] = {}
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        running = {pool.submit(run, one, given.limit): (i, one) for i, one in chosen}
        for future in concurrent.futures.as_completed(running):
            i, one = running[future]
            verdict, seconds, said = future.result()
            verdicts.setdefault(verdict, []).append(i)
            print(
                f"{verdict:9} {i:3} {seconds:5.0f} s  {one.file}: {one.old[:60]!r}\n               {said}", flush=True
            )
    print("; ".join(f"{len(numbers)} {verdict}" for verdict, numbers in verdicts.items()))
    for verdict in (SURVIVED, STALE, UNDECIDED):
        if verdict in verdicts:
            print(f"{verdict}: {sorted(verdicts[verdict])}")
    return 0 if set(verdicts) <= {NOTICED} else 1


if __name__ == "__main__":
    sys.exit(main())
