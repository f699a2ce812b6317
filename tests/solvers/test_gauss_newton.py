"""Gauss-Newton against dense least squares, and where alternating minimization fails."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import operators, status, synthetic
from lrjax.operators.coupling import dense_coupling

KEY = jax.random.key(3)


def truncated(x, rank):
    u, s, vt = np.linalg.svd(x)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def jacobian(op, u, v):
    """Columns: entries of U', then of V'."""
    n1, k = u.shape
    unit_u = np.eye(n1 * k).reshape(-1, n1, k)
    unit_v = np.eye(v.shape[0] * k).reshape(-1, v.shape[0], k)
    columns = [op.forward_dense(jnp.asarray(e @ v.T)) for e in unit_u]
    columns += [op.forward_dense(jnp.asarray(u @ e.T)) for e in unit_v]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("variant", ["ridge", "setting", "averaging", "updating"])
def test_one_step_is_the_dense_least_squares_solution(variant):
    """Weighted, oblong, on listed entries: the first answer is the truncated estimate of a dense solve."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        shape, k = (7, 5), 2
        rows, cols = np.nonzero(rng.random(shape) < 0.9)
        op, y = operators.SampledEntries.build(rows, cols, rng.standard_normal(len(rows)), shape)
        w = jnp.asarray(rng.uniform(0.5, 1.5, len(rows)))
        u, v = rng.standard_normal((7, k)), rng.standard_normal((5, k))
        # Best-so-far: the start must be worse than the first answer.
        start = lr.Factors(jnp.asarray(5 * u), jnp.asarray(5 * v))
        u, v = 5 * u, 5 * v
        solver = lr.GaussNewton(max_rank=k, variant=variant, inner_tolerance=1e-14)
        solution = lr.solve(lr.Problem(op, y, w), solver, KEY, num_steps=1, init=start)
        alpha = {"ridge": 1.0, "setting": 1.0, "averaging": 0.0, "updating": -1.0}[variant]
        j, root = jacobian(op, u, v), np.sqrt(np.asarray(w))[:, None]
        target = root[:, 0] * (np.asarray(y) + alpha * np.asarray(op.forward_dense(jnp.asarray(u @ v.T))))
        if variant == "ridge":
            ridge = 0.1 * (np.sum(w) / 35) * (np.sum(u**2) + np.sum(v**2)) / (2 * k)
            j_w = root * j
            new = np.linalg.solve(j_w.T @ j_w + ridge * np.eye(j.shape[1]), j_w.T @ target)
        else:
            new = np.linalg.lstsq(root * j, target, rcond=1e-10)[0]
        new_u, new_v = new[:14].reshape(7, k), new[14:].reshape(5, k)
        expected = truncated(u @ new_v.T + new_u @ v.T - alpha * u @ v.T, k)
        np.testing.assert_allclose(solution.factors.dense(), expected, rtol=0, atol=1e-8)


def entries(shape, rank, oversampling, condition, seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    truth = synthetic.low_rank(keys[0], shape, rank, condition_number=condition, dtype="float64")
    count = round(oversampling * rank * (sum(shape) - rank))
    rows, cols, values = synthetic.sampled_entries(keys[1], truth, count, min_per_line=rank)
    op, y = operators.SampledEntries.build(rows, cols, values, shape)
    return lr.Problem(op, y), truth


def corrupted(shape, rank, oversampling, condition, seed, corruption):
    """Gross errors on random entries, as a dense mask: all masks of a shape share one compile.

    Where they suffice, every line has more measurements than the rank, or it could not show an error.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    truth = synthetic.low_rank(keys[0], shape, rank, condition_number=condition, dtype="float64")
    count = round(oversampling * rank * (sum(shape) - rank))
    least = 2 * rank + 1 if oversampling > 2 else 1
    rows, cols, values = synthetic.sampled_entries(keys[1], truth, count, min_per_line=least)
    values, bad = synthetic.corrupt(keys[2], jnp.asarray(values), corruption=corruption)
    mask, y = np.zeros(shape, bool), np.zeros(shape)
    mask[rows, cols], y[rows, cols] = True, values
    op = operators.EntryMask.from_mask(mask)
    return lr.Problem(op, jnp.asarray(y.ravel()), loss=lr.losses.Absolute()), truth, float(jnp.mean(bad))


def error(problem, truth, solver, num_steps):
    solution = lr.solve(problem, solver, KEY, num_steps=num_steps, record_every=num_steps)
    return float(lr.metrics.relative_error(solution.factors, truth)), solution


def test_recovers_from_twice_the_degrees_of_freedom_where_alternating_minimization_fails():
    with jax.enable_x64(True):
        problem, truth = entries((130, 110), 3, 2.0, 1e3, 0)
        found, solution = error(problem, truth, lr.GaussNewton(max_rank=3), 80)
        assert found < 1e-11
        assert int(solution.status) == status.CONVERGED
        assert error(problem, truth, lr.AlternatingMinimization(max_rank=3), 100)[0] > 1e-2


@pytest.mark.parametrize(("rank", "max_rank", "oversampling"), [(1, 1, 3.0), (2, 4, 6.0)])
@pytest.mark.slow
def test_rank_one_and_over_specified_rank(rank, max_rank, oversampling):
    with jax.enable_x64(True):
        problem, truth = entries((60, 50), rank, oversampling, 10.0, 1)
        assert error(problem, truth, lr.GaussNewton(max_rank=max_rank), 100)[0] < 1e-9


def test_converges_superlinearly_on_dense_measurements():
    with jax.enable_x64(True):
        problem, truth = synthetic.matrix_sensing(
            KEY, shape=(14, 10), rank=2, num_measurements=200, condition_number=100.0, dtype="float64"
        )
        solution = lr.solve(problem, lr.GaussNewton(max_rank=2), KEY, num_steps=30, truth=truth)
        errors = np.asarray(solution.trace["relative_error"])
        assert errors[-1] < 1e-12
        assert solution.converged
        assert int(solution.num_steps) <= 25


@pytest.mark.parametrize("max_rank", [2, 4])
def test_absolute_loss_undoes_outliers_at_the_rank_and_at_twice_the_rank(max_rank):
    """A tenth of gross errors at three times the degrees of freedom, neither rank nor fraction known."""
    with jax.enable_x64(True):
        problem, truth, fraction = corrupted((100, 80), 2, 3.0, 10.0, 2, 0.1)
        found, solution = error(problem, truth, lr.GaussNewton(max_rank=max_rank), 50)
        assert found < 1e-11
        assert int(solution.status) == status.CONVERGED
        np.testing.assert_allclose(solution.trace["outlier_fraction"][-1], fraction, atol=0.005)
        squared = dataclasses.replace(problem, loss=lr.losses.Squared())
        assert error(squared, truth, lr.GaussNewton(max_rank=max_rank, inner_steps=20), 50)[0] > 1e-1


@pytest.mark.slow
@pytest.mark.parametrize("max_rank", [5, 10])
@pytest.mark.parametrize(("oversampling", "corruption"), [(3.0, 0.05), (3.0, 0.1), (4.0, 0.2)])
@pytest.mark.parametrize("seed", [3, 4])
def test_absolute_loss_on_larger_matrices(max_rank, oversampling, corruption, seed):
    with jax.enable_x64(True):
        problem, truth, _ = corrupted((320, 280), 5, oversampling, 10.0, seed, corruption)
        found, solution = error(problem, truth, lr.GaussNewton(max_rank=max_rank), 60)
        assert found < 1e-11
        assert int(solution.status) == status.CONVERGED


@pytest.mark.parametrize(("oversampling", "corruption"), [(1.3, 0.1), (3.0, 0.5)])
def test_absolute_loss_does_not_call_a_wrong_matrix_converged(oversampling, corruption):
    """Too few measurements, and too many errors: more columns can fit a large part of them exactly."""
    with jax.enable_x64(True):
        problem, truth, _ = corrupted((60, 50), 2, oversampling, 10.0, 5, corruption)
        found, solution = error(problem, truth, lr.GaussNewton(max_rank=4), 60)
        assert found > 1e-3
        assert int(solution.status) != status.CONVERGED


def test_absolute_loss_goes_on_while_rows_turn_right():
    """The bulk is exact: converged, unless the step before had more outliers."""
    with jax.enable_x64(True):
        problem, _, _ = corrupted((60, 50), 2, 4.0, 2.0, 1, 0.1)
        solver = lr.GaussNewton(max_rank=2)
        state, step = solver.init(problem, KEY), jax.jit(solver.step)
        for _ in range(40):
            state, code = step(problem, state, KEY)
        assert int(code) == status.CONVERGED
        more = {**state.info, "outlier_fraction": state.info["outlier_fraction"] + 0.01}
        assert int(step(problem, dataclasses.replace(state, info=more), KEY)[1]) == status.RUNNING


def test_absolute_loss_scale_settles_at_the_noise():
    """Noise and outliers together: the error is near that of the fit that knows the outliers and the rank."""
    with jax.enable_x64(True):
        problem, truth, _ = corrupted((100, 80), 2, 5.0, 3.0, 6, 0.1)
        size = float(jnp.sqrt(jnp.mean(truth.dense() ** 2)))
        noise = 1e-3 * size * jax.random.normal(KEY, problem.y.shape, problem.y.dtype)
        clean = problem.operator.measured & (jnp.abs(problem.residual(truth)) < 1e-9 * size)
        noisy = dataclasses.replace(problem, y=problem.y + noise)
        found, solution = error(noisy, truth, lr.GaussNewton(max_rank=4), 40)
        assert 0.5 < float(solution.trace["scale"][-1]) / (1e-3 * size) < 3
        oracle = lr.Problem(problem.operator, noisy.y, clean.astype(noise.dtype))
        assert found < 2 * error(oracle, truth, lr.GaussNewton(max_rank=2, inner_steps=50), 20)[0]


def _full_row(shape):
    mask = np.random.default_rng(5).random(shape) < 0.2
    mask[3], mask[7] = True, False
    return mask


MASKS = {
    "a full row, an empty one": lambda: _full_row((40, 90)),
    "an empty column, a full one": lambda: _full_row((40, 90)).T,
    "one row": lambda: np.arange(60)[None, :] % 3 != 1,
    "one column": lambda: np.arange(60)[:, None] % 3 != 1,
    "one entry": lambda: np.arange(12).reshape(3, 4) == 5,
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("block_entries", [None, 16])
@pytest.mark.parametrize("mask", MASKS)
def test_the_coupling_of_listed_entries_is_the_dense_one(mask, block_entries, weighted):
    """Rows of any length, longer than a block too, against products with the dense weights."""
    mask = MASKS[mask]()
    rng, k = np.random.default_rng(0), 3
    (n1, n2), (rows, cols) = mask.shape, np.nonzero(mask)
    with jax.enable_x64(True):
        build = functools.partial(operators.SampledEntries.build, block_entries=block_entries)
        op, z = build(rows, cols, rng.standard_normal(len(rows)), (n1, n2))
        weights = rng.random(len(rows)) * (np.arange(len(rows)) % 4 > 0) if weighted else None
        left, right, ridge = rng.standard_normal((n1, k)), rng.standard_normal((n2, k)), jnp.full(k, 0.1)
        weights = None if weights is None else jnp.asarray(weights)

        @jax.jit
        def listed(left, right):
            found = op.couple(left, right, weights, ridge, op.coupled_parts())
            return found.apply(right), found.apply_transpose(left), found.whitened_adjoints(z)

        dense_weights, dense_z = np.zeros((2, n1, n2))
        dense_weights[rows, cols], dense_z[rows, cols] = (1 if weights is None else weights), z
        expected = dense_coupling(jnp.asarray(dense_weights), jnp.asarray(left), jnp.asarray(right), ridge)
        parts = expected.apply(right), expected.apply_transpose(left), expected.whitened_adjoints(jnp.asarray(dense_z))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), listed(left, right), parts)
