"""Robust PCA by alternating projections, beside the convex reference and beside what fails."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import operators, status, synthetic

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from _baselines import inexact_alm

KEY = jax.random.key(0)


def draw(shape, rank, *, observed=None, condition=3.0, **changes):
    truth = synthetic.low_rank(KEY, shape, rank, condition_number=condition)
    mask = None if observed is None else np.random.default_rng(0).random(shape) < observed
    op = operators.Identity(matrix_shape=shape) if mask is None else operators.EntryMask.from_mask(mask)
    return synthetic.from_truth(jax.random.key(1), op, truth, **changes), truth


def run(problem, truth, max_rank, *, num_steps=60, **settings):
    solver = lr.AlternatingProjections(max_rank=max_rank, **settings)
    return lr.solve(problem, solver, KEY, num_steps=num_steps, truth=truth)


ROWS = [
    # shape, rank, max_rank, observed, and what is drawn
    ((60, 40), 2, 4, None, dict(corruption=0.2)),
    ((200, 150), 3, 3, 0.5, dict(corruption=0.1)),
    pytest.param((100, 300), 1, 2, None, dict(corruption=0.1), marks=pytest.mark.slow),
    pytest.param((1000, 60), 3, 3, None, dict(corruption=0.2), marks=pytest.mark.slow),
    pytest.param((400, 400), 10, 20, None, dict(corruption=0.3, condition=100.0), marks=pytest.mark.slow),
    pytest.param((400, 400), 10, 10, None, dict(corruption=0.3, kind="adversarial_sign"), marks=pytest.mark.slow),
    pytest.param((500, 500), 10, 20, 0.5, dict(corruption=0.3, condition=10.0), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("shape", "rank", "max_rank", "observed", "drawn"), ROWS)
def test_recovers_and_knows_it(shape, rank, max_rank, observed, drawn):
    """From defaults, to rounding: the rank, the fraction of outliers and convergence are reported rightly."""
    with jax.enable_x64(True):
        problem, truth = draw(shape, rank, observed=observed, **drawn)
        solution = run(problem, truth, max_rank)
        assert int(solution.status) == status.CONVERGED
        assert float(solution.trace["relative_error"][-1]) <= 1e-12
        assert float(solution.trace["relative_error"][0]) > 0.9
        assert float(solution.trace["clean_residual"][-1]) <= 1e-13
        assert int(solution.trace["rank"][-1]) == rank
        assert abs(float(solution.trace["outlier_fraction"][-1]) - drawn["corruption"]) < 0.03


def test_agrees_with_the_convex_reference_where_least_squares_fail():
    """The nuclear-norm method in NumPy, both forms; the singular value decomposition of the data is far off."""
    with jax.enable_x64(True):
        problem, truth = draw((60, 40), 2, corruption=0.1)
        x = np.asarray(truth.dense())
        found = np.asarray(run(problem, truth, 4).factors.dense())
        y = np.asarray(problem.y).reshape(x.shape)
        for columns in (None, 20):
            low, _ = inexact_alm(y, columns=columns)
            assert np.linalg.norm(low - found) <= 1e-5 * np.linalg.norm(x)
        u, s, vt = np.linalg.svd(y)
        assert np.linalg.norm((u[:, :2] * s[:2]) @ vt[:2] - x) > np.linalg.norm(x)


def test_the_path_does_not_depend_on_the_unit():
    with jax.enable_x64(True):
        problem, truth = draw((60, 40), 2, corruption=0.1)
        errors = []
        # Powers of two, so that rounding is the same too.
        for unit in (1.0, 2.0**-10, 2.0**10):
            scaled = lr.Problem(problem.operator, unit * problem.y, loss=problem.loss)
            unit_truth = lr.Factors(unit * truth.left, truth.right)
            errors.append(run(scaled, unit_truth, 4, num_steps=20).trace["relative_error"])
        np.testing.assert_allclose(errors[1:], [errors[0]] * 2, rtol=1e-6, atol=1e-15)


def test_noise_ends_at_its_level_and_keeps_surplus_columns_out():
    """Error of the order of the oracle (least squares on the clean entries); a tolerance that is missed is named."""
    with jax.enable_x64(True):
        problem, truth = draw((150, 100), 3, corruption=0.15, noise=0.05)
        solution = run(problem, truth, 6)
        oracle = 0.05 * np.sqrt(3 * (150 + 100 - 3) / (0.85 * 150 * 100))
        assert float(solution.trace["relative_error"][-1]) <= 1.5 * oracle
        assert int(solution.trace["rank"][-1]) == 3
        assert abs(float(solution.trace["outlier_fraction"][-1]) - 0.15) < 0.03
        missed = run(problem, truth, 3, tolerance=1e-10, num_steps=200)
        assert int(missed.status) == status.STALLED
        with pytest.raises(status.SolveError, match="no progress"):
            missed.check()


def test_nothing_is_claimed_where_everything_is_corrupted():
    with jax.enable_x64(True):
        problem, truth = draw((60, 40), 2, corruption=1.0)
        solution = run(problem, truth, 4)
        assert int(solution.status) != status.CONVERGED
        assert float(solution.trace["relative_error"][-1]) > 0.9


def test_rank_is_a_traced_cap():
    """One compile for all ranks; too few cannot fit."""
    with jax.enable_x64(True):
        problem, truth = draw((60, 40), 2, corruption=0.1)
        solver = lambda rank: lr.AlternatingProjections(max_rank=3, rank=rank)
        solve = lambda rank: lr.solve(problem, solver(rank), KEY, num_steps=40, truth=truth)
        batch = jax.vmap(solve)(jnp.arange(1, 4))
        errors = np.asarray(batch.trace["relative_error"][:, -1])
        assert errors[0] > 0.1
        assert errors[1:].max() < 1e-12
        assert not np.any(batch.factors.right[1, :, 2])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("block_entries", [64, 10**6])
def test_a_pass_in_blocks_is_the_dense_one(monkeypatch, weighted, block_entries):
    """Six rows at a time and five left over, or all at once, against NumPy."""
    from lrjax.solvers import alternating_projections as module

    monkeypatch.setattr(module, "BLOCK_ENTRIES", block_entries)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        shape, k = (23, 10), 3
        left, right, y = rng.standard_normal((23, k)), rng.standard_normal((10, k)), rng.standard_normal(shape)
        w = rng.uniform(0.5, 2, shape) * (rng.random(shape) < 0.8) if weighted else np.ones(shape)
        problem = lr.Problem(lr.operators.Identity(matrix_shape=shape), jnp.asarray(y.ravel()))
        if weighted:
            problem = lr.Problem(problem.operator, problem.y, jnp.asarray(w.ravel()))
        solver = lr.AlternatingProjections(max_rank=k)
        factors = lr.Factors(jnp.asarray(left), jnp.asarray(right))
        gap = np.where(w > 0, left @ right.T - y, 0)
        for rows, basis, limit in ((True, right, rng.uniform(1, 3, 23)), (False, left, rng.uniform(1, 3, 10))):
            on = w * (np.abs(gap) <= (limit[:, None] if rows else limit[None, :]))
            product, kept, sums = solver._pass(problem, factors, jnp.asarray(basis), jnp.asarray(limit), rows=rows)
            np.testing.assert_allclose(product, on * gap @ basis if rows else (on * gap).T @ basis, atol=1e-12)
            np.testing.assert_allclose(kept, on.sum(1 if rows else 0), atol=1e-12)
            if rows:
                np.testing.assert_allclose(sums["clean"], np.sum((on * gap) ** 2), rtol=1e-12)
                np.testing.assert_allclose(sums["square"], np.sum(w * gap**2), rtol=1e-12)
                np.testing.assert_allclose(sums["objective"], problem.objective(factors), rtol=1e-12)
