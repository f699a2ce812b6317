"""The fits behind `complete`: offsets by backfitting, step by step under a progress bar, refits to parts."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lrjax import status
from lrjax.completion.completion import KEPT, PREDICT_BLOCK
from lrjax.core.pytree import cast_floats
from lrjax.iteration.solution import Solution
from lrjax.iteration.solve import iterate, solve
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem

# Sweeps without a better held-out error after which early stopping gives up.
PATIENCE = 5


def backfitted(rows, cols, y, weights, shape, shrinkage: float = 10.0, sweeps: int = 10):
    """Mean, and row and column offsets shrunk as if `shrinkage` more entries of each were zero; by backfitting."""
    (n1, n2), dtype = shape, y.dtype
    y = y.astype(np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, np.float64)
    total = float(w.sum()) or 1.0
    offset = float((w * y).sum()) / total
    row_bias, col_bias = np.zeros(n1), np.zeros(n2)
    row_weight = np.bincount(rows, w, n1) + shrinkage
    col_weight = np.bincount(cols, w, n2) + shrinkage
    for _ in range(sweeps):
        row_bias = np.bincount(rows, w * (y - offset - col_bias[cols]), n1) / row_weight
        col_bias = np.bincount(cols, w * (y - offset - row_bias[rows]), n2) / col_weight
    return np.asarray(offset, dtype), np.asarray(row_bias, dtype), np.asarray(col_bias, dtype)


def stepwise(problem, solver, key, num_steps, progress, error=None) -> Solution:
    """`solve` one compiled step at a time, the same steps with the same keys, under a progress bar if asked.

    With `error`, a number from factors on the host: returns the step where it was least, and adds it to the trace as
    `"holdout_rmse"`.
    """
    rows, best, best_solution, solution = [], np.inf, None, None
    with tqdm(total=num_steps, desc="compiling", unit="step", leave=None, disable=not progress) as bar:
        for solution in iterate(problem, solver, key, num_steps=num_steps):
            row = jax.tree.map(np.asarray, solution.trace)
            shown = {"residual": f"{float(row['residual'][-1]):.2e}"}
            if error is not None:
                now = error(solution.factors)
                row["holdout_rmse"] = np.asarray([now], row["residual"].dtype)
                shown["holdout_rmse"] = f"{now:.4g}"
                if now < best:
                    best, best_solution = now, solution
            rows.append(row)
            _show(bar, int(solution.num_steps), shown)
            if best_solution is not None and int(solution.num_steps) >= int(best_solution.num_steps) + PATIENCE:
                bar.set_description("stopped early", refresh=False)
                break
        assert solution is not None
        if int(solution.status) == status.CONVERGED:
            bar.set_description("converged", refresh=False)
        bar.total = bar.n  # a bar that ends before its budget is full all the same
        bar.refresh()
    if best_solution is not None:
        solution = best_solution
    trace = jax.tree.map(lambda *parts: jnp.concatenate([jnp.asarray(p) for p in parts]), *rows)
    return Solution(factors=solution.factors, status=solution.status, num_steps=solution.num_steps, trace=trace)


def _show(bar: tqdm, step: int, shown: dict[str, str]) -> None:
    """Moves the bar on; the first step, which is compiled, does not count for its rate."""
    if step == 1 and not bar.disable:
        bar.set_description("completing", refresh=False)
        bar.initial = bar.n = bar.last_print_n = step
        bar.start_t = bar.last_print_t = time.time()
    bar.update(step - bar.n)
    bar.set_postfix(shown)


def refit(problem, solver, keys, solution, num_steps) -> Factors:
    """Factors of one refit per key, each to a random part of the entries, from the solution."""
    steps = max(1, min(num_steps, int(solution.num_steps)))
    # Small problems side by side; large ones one at a time, for their blocks fill the cache already.
    side_by_side = max(1, min(len(keys), PREDICT_BLOCK // problem.y.shape[0]))
    solver = cast_floats(solver, problem.y.dtype)
    return _refits(problem, solver, keys, solution.factors, steps=steps, side_by_side=side_by_side)


@partial(jax.jit, static_argnames=("steps", "side_by_side"))
def _refits(problem, solver, keys, start, *, steps, side_by_side):
    def one(key: jax.Array) -> Factors:
        key_keep, key_solve = jax.random.split(key)
        keep = (jax.random.uniform(key_keep, problem.y.shape) < KEPT).astype(problem.y.dtype)
        part = Problem(problem.operator, problem.y, problem.weighted(keep), problem.loss)
        return solve(part, solver, key_solve, num_steps=steps, record_every=steps, init=start).factors

    return jax.lax.map(one, keys, batch_size=side_by_side)
