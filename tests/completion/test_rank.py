"""Rank selection against planted ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr

SHAPE, RANK, MAX_RANK = (60, 40), 3, 6


def _mask(key, noise, condition_number=1.0):
    return lr.synthetic.matrix_completion(
        key, shape=SHAPE, rank=RANK, fraction=0.5, noise=noise, condition_number=condition_number
    )[0]


def _select(problem, method, **settings):
    return lr.select_rank(problem, jax.random.key(7), max_rank=MAX_RANK, method=method, **settings)


@pytest.mark.parametrize("method", ["holdout", "gap", "adaptive"])
def test_entries_of_a_planted_rank(method):
    for seed, noise in enumerate([0.0, 0.01, 0.05]):
        selection = _select(_mask(jax.random.key(seed), noise), method)
        assert int(selection.rank) == RANK, (noise, selection.scores)
        assert selection.scores.shape == (MAX_RANK,)


def test_holdout_sees_what_the_gap_misses():
    problem = _mask(jax.random.key(3), 0.01, condition_number=10.0)
    assert int(_select(problem, "gap").rank) < RANK
    assert int(_select(problem, "holdout").rank) == RANK


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_adaptive_with_few_entries_of_an_ill_conditioned_matrix_in_few_steps(noise):
    """Three entries per degree of freedom and a condition number of 10: a gap of singular values misleads."""
    shape, rank, draws = (70, 50), 3, 12
    fraction = 3 * rank * (sum(shape) - rank) / (shape[0] * shape[1])
    problems = [
        lr.synthetic.matrix_completion(
            jax.random.key(s), shape=shape, rank=rank, fraction=fraction, noise=noise, condition_number=10.0
        )[0]
        for s in range(draws)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *problems)
    keys = jax.random.split(jax.random.key(9), draws)
    found = jax.jit(jax.vmap(lambda p, key: lr.select_rank(p, key, max_rank=8, method="adaptive")))(stacked, keys)
    np.testing.assert_array_equal(found.rank, rank)
    np.testing.assert_allclose(found.scores[:, rank - 1], found.edge, rtol=1e-5)
    # The fit is to everything, in the columns chosen.
    assert found.solution.trace["residual"][:, -1].max() < max(1e-5, noise)
    np.testing.assert_array_equal(jnp.any(found.solution.factors.left != 0, axis=1).sum(1), rank)


@pytest.mark.parametrize("method", ["holdout", "gap", "adaptive"])
def test_rank_one_dense_and_not_square(method):
    key = jax.random.key(0)
    for noise in (0.0, 0.05):
        problem, _ = lr.synthetic.matrix_sensing(key, shape=(14, 9), rank=1, num_measurements=200, noise=noise)
        selection = lr.select_rank(problem, key, max_rank=3, method=method, num_steps=60)
        assert int(selection.rank) == 1, (noise, selection.scores)


def test_listed_entries_and_the_solution():
    key = jax.random.key(1)
    problem, truth = lr.synthetic.large_completion(key, shape=(90, 70), rank=2, oversampling=5.0)
    selection = lr.select_rank(problem, key, max_rank=4)
    assert int(selection.rank) == 2
    # Refitted to all measurements, in two of the four columns; a fit of rank one misses the matrix.
    assert lr.metrics.relative_error(selection.solution.factors, truth) < 1e-4
    assert np.linalg.matrix_rank(np.asarray(selection.solution.factors.dense()), tol=1e-4) == 2
    assert selection.scores[0] > 0.1 > selection.scores[1]
    assert selection.solution.trace["residual"][-1] < 1e-5


def test_unmeasured_values_are_not_used_and_lanes_are_independent():
    problems = [_mask(jax.random.key(seed), 0.01) for seed in (0, 1)]
    spoiled = [lr.Problem(p.operator, jnp.where(p.operator.mask.ravel(), p.y, jnp.nan)) for p in problems]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *spoiled)
    lanes = jax.jit(jax.vmap(lambda p: _select(p, "gap")))(stacked)
    for i, problem in enumerate(problems):
        np.testing.assert_allclose(lanes.scores[i], _select(problem, "gap").scores, rtol=1e-4)


@pytest.mark.slow
def test_holdout_under_vmap():
    problems = [_mask(jax.random.key(seed), 0.01) for seed in (0, 1)]
    lanes = jax.jit(jax.vmap(lambda p: _select(p, "holdout")))(jax.tree.map(lambda *x: jnp.stack(x), *problems))
    assert lanes.rank.tolist() == [RANK, RANK]


def test_bad_settings_are_named():
    key = jax.random.key(0)
    problem = _mask(key, 0.0)
    bad = [
        ("method", dict(max_rank=3, method="cross")),
        ("max_rank", dict(max_rank=41)),
        ("max_rank", dict(max_rank=0)),
        ("holdout", dict(max_rank=3, holdout=0.0)),
        ("tolerance", dict(max_rank=3, tolerance=-1.0)),
        ("num_steps", dict(max_rank=3, num_steps=0)),
        ("solver", dict(max_rank=3, solver=lr.AlternatingMinimization(max_rank=4))),
        ("solver", dict(max_rank=3, method="gap", solver=lr.AlternatingMinimization(max_rank=3))),
    ]
    for name, settings in bad:
        with pytest.raises(ValueError, match=name):
            lr.select_rank(problem, key, **settings)
    with pytest.raises(ValueError, match="problem"):
        lr.select_rank(problem.y, key, max_rank=3)
    with pytest.raises(ValueError, match="key"):
        lr.select_rank(problem, 0, max_rank=3)


@pytest.mark.parametrize("solver", ["x", 3, (1, 2), lr.AlternatingMinimization], ids=repr)
def test_what_is_no_solver_is_refused(solver):
    problem, _ = lr.synthetic.matrix_completion(jax.random.key(0), shape=(12, 10), rank=2, fraction=0.8)
    with pytest.raises(ValueError, match="solver must have a field rank"):
        lr.select_rank(problem, jax.random.key(0), max_rank=3, solver=solver)
