"""CONVERGED only where the stated condition holds, checked without the solver; what a lane that fails returns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import losses, operators, status

KEY = jax.random.key(3)
SHAPE = (14, 11)


def _completion(dtype=jnp.float64, noise=0.05, corruption=None, fraction=0.8, rank=2):
    truth = lr.synthetic.low_rank(KEY, SHAPE, rank, dtype=dtype)
    operator = operators.EntryMask.from_mask(np.random.default_rng(0).random(SHAPE) < fraction)
    return lr.synthetic.from_truth(KEY, operator, truth, noise=noise, corruption=corruption), truth


def _dense(problem, factors):
    """Residual matrix of a completion problem, by NumPy."""
    mask = np.asarray(problem.operator.measured).reshape(SHAPE)
    x = np.asarray(factors.left) @ np.asarray(factors.right).T
    return np.where(mask, x - np.asarray(problem.y).reshape(SHAPE), 0)


@pytest.mark.parametrize(
    ("ridge", "orthonormalize", "max_rank"),
    [(0.0, True, 2), (0.1, True, 2), (0.1, False, 2), (0.1, False, 10), (1e4, True, 2)],
)
def test_alternating_minimization_is_stationary(x64, ridge, orthonormalize, max_rank):
    """Also with more columns than most rows have entries, where the ridge asked for is all that decides."""
    problem, _ = _completion(fraction=0.5 if max_rank == 10 else 0.8)
    solver = lr.AlternatingMinimization(max_rank=max_rank, ridge=ridge, orthonormalize=orthonormalize)
    solution = lr.solve(problem, solver, KEY, num_steps=3000)
    assert int(solution.status) == status.CONVERGED
    z, left, right = _dense(problem, solution.factors), *map(np.asarray, solution.factors.__dict__.values())
    to_left, to_right = z @ right + ridge * left, z.T @ left + (0 if orthonormalize else ridge) * right
    size = np.linalg.norm(problem.y) * np.linalg.norm(right)
    assert np.linalg.norm(to_left) < 1e-8 * size
    if orthonormalize:
        # The right factor moves on the sphere: what counts is the slope across its own columns.
        to_right = to_right - right @ (right.T @ to_right)
        size = np.linalg.norm(problem.y) * np.linalg.norm(left)
    assert np.linalg.norm(to_right) < 1e-6 * size


def test_a_ridge_is_the_ridge(x64):
    """Rows with fewer entries than columns: the value that plain alternating ridge regression reaches."""
    rows, cols, values = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 0, 1, 0]), np.array([3.0, 1, 2, 2, 1, 4])
    ridge, weight = 0.1, np.zeros((3, 3))
    weight[rows, cols] = 1
    y = np.zeros((3, 3))
    y[rows, cols] = values
    objective = lambda u, v: np.sum(weight * (u @ v.T - y) ** 2) + ridge * (np.sum(u**2) + np.sum(v**2))
    u, v = np.random.default_rng(0).normal(size=(2, 3, 3))
    for _ in range(400):
        u = np.stack(
            [
                np.linalg.solve((v * w[:, None]).T @ v + ridge * np.eye(3), v.T @ (w * t))
                for w, t in zip(weight, y, strict=True)
            ]
        )
        v = np.stack(
            [
                np.linalg.solve((u * w[:, None]).T @ u + ridge * np.eye(3), u.T @ (w * t))
                for w, t in zip(weight.T, y.T, strict=True)
            ]
        )
    assert abs(objective(u, v) - 1.3800) < 1e-4
    operator, listed = operators.SampledEntries.build(rows, cols, values, (3, 3))
    solver = lr.AlternatingMinimization(max_rank=3, ridge=ridge, orthonormalize=False)
    solution = lr.solve(lr.Problem(operator, listed), solver, KEY, num_steps=500)
    assert int(solution.status) == status.CONVERGED
    np.testing.assert_allclose(
        objective(*map(np.asarray, (solution.factors.left, solution.factors.right))), objective(u, v), rtol=1e-9
    )


def test_a_damped_row_is_no_stationary_point(x64):
    """Without a ridge rows that are not determined are damped; then standing still is not convergence."""
    problem, _ = _completion(fraction=0.5)
    solution = lr.solve(problem, lr.AlternatingMinimization(max_rank=10), KEY, num_steps=600)
    assert float(solution.trace["residual"][-1]) > 1e-2
    assert int(solution.status) == status.RUNNING


@pytest.mark.parametrize(
    "solver",
    [
        lr.ScaledGradientDescent(max_rank=2),
        lr.GradientDescent(max_rank=2, step_size=0.5),
        lr.SingularValueProjection(max_rank=2),
        lr.GaussNewton(max_rank=2),
        lr.IRLS(max_rank=2),
        lr.AlternatingMinimization(max_rank=2),
    ],
    ids=lambda x: type(x).__name__,
)
def test_an_exact_fit_is_one(x64, solver):
    problem, _ = _completion(noise=0.0)
    for given, level in ((solver, 100 * np.finfo(float).eps), (dataclasses.replace(solver, tolerance=1e-5), 1e-5)):
        solution = lr.solve(problem, given, KEY, num_steps=2000)
        assert int(solution.status) == status.CONVERGED, given
        fit = np.linalg.norm(_dense(problem, solution.factors)) / np.linalg.norm(problem.observed())
        # The fit is computed with rounding errors, too.
        assert fit <= 1.01 * level + 20 * np.finfo(float).eps


def test_soft_impute_is_a_fixed_point(x64):
    """Of the proximal step, with a dense singular value decomposition."""
    problem, _ = _completion()
    penalty = 0.3
    solver = lr.SoftImpute(max_rank=11, penalty=penalty, relative=False)
    solution = lr.solve(problem, solver, KEY, num_steps=5000)
    assert int(solution.status) == status.CONVERGED
    x = np.asarray(solution.factors.dense())
    u, s, vt = np.linalg.svd(x - _dense(problem, solution.factors), full_matrices=False)
    assert np.linalg.norm((u * np.maximum(s - penalty, 0)) @ vt - x) < 1e-9 * np.linalg.norm(x)


def test_irls_stands_still(x64):
    """On noisy entries: where the solve stops is where many more steps, taken whatever the status, end."""
    problem, _ = _completion()
    solver = lr.IRLS(max_rank=2, inner_tolerance=1e-10)
    solution = lr.solve(problem, solver, KEY, num_steps=400)
    assert int(solution.status) == status.CONVERGED
    assert int(solution.num_steps) < 100
    state, step = solver.init(problem, KEY), jax.jit(solver.step)
    for _ in range(200):
        state, _ = step(problem, state, KEY)
    assert float(lr.metrics.relative_error(state.factors, solution.factors)) < 1e-7


@pytest.mark.parametrize("solver", [lr.SubgradientMethod, lr.ScaledSubgradient], ids=lambda x: x.__name__)
def test_a_subgradient_method_stands_still(x64, solver):
    problem, _ = lr.synthetic.matrix_sensing(
        KEY, shape=(8, 6), rank=1, num_measurements=120, corruption=0.1, dtype=jnp.float64
    )
    run = lambda steps: lr.solve(problem, solver(max_rank=1, tolerance=1e-6), KEY, num_steps=steps)
    solution = run(2000)
    assert int(solution.status) == status.CONVERGED
    before = run(int(solution.num_steps) - 1).factors
    moved = jnp.sum((solution.factors.left - before.left) ** 2) + jnp.sum((solution.factors.right - before.right) ** 2)
    assert moved <= 1.01e-12 * (jnp.sum(before.left**2) + jnp.sum(before.right**2))


@pytest.mark.parametrize("shape", [(60, 8), (16, 16), (40, 5), (9, 50)])
def test_robust_pca_of_small_tables(shape):
    """A background seen in few frames: sides below twenty once gave zero, and passed."""
    keys = jax.random.split(KEY, 3)
    background = jnp.outer(1 + jax.random.uniform(keys[0], shape[:1]), jnp.ones(shape[1]))
    wrong = jax.random.uniform(keys[1], shape) < 0.05
    seen = jnp.where(wrong, background + 5 * jax.random.normal(keys[2], shape), background)
    problem = lr.Problem(operators.Identity(matrix_shape=shape), seen.ravel(), None, losses.Absolute())
    solution = lr.solve(problem, lr.AlternatingProjections(max_rank=2), KEY, num_steps=100)
    solution.check(require_convergence=True)
    assert float(lr.metrics.relative_error(solution.factors, background)) < 1e-5


def test_nothing_found_is_not_converged():
    noise = jax.random.normal(KEY, (40, 30))
    problem = lr.Problem(operators.Identity(matrix_shape=(40, 30)), noise.ravel(), None, losses.Absolute())
    solution = lr.solve(problem, lr.AlternatingProjections(max_rank=2), KEY, num_steps=100)
    assert not np.any(solution.factors.left)
    assert int(solution.status) == status.STALLED


@pytest.mark.parametrize(
    "solver",
    [
        lr.AlternatingMinimization(max_rank=2),
        lr.AlternatingProjections(max_rank=2),
        lr.ScaledSubgradient(max_rank=2),
        lr.SubgradientMethod(max_rank=2),
        lr.GaussNewton(max_rank=2),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("value", [0.0, 1e5], ids=["zero", "constant"])
def test_tables_of_one_value(solver, value):
    table = jnp.full((30, 20), value)
    problem = lr.Problem(operators.Identity(matrix_shape=(30, 20)), table.ravel(), None, losses.Absolute())
    solution = lr.solve(problem, solver, KEY, num_steps=100)
    code, error = int(solution.status), float(jnp.linalg.norm(solution.factors.dense() - table))
    assert np.isfinite(error)
    assert code != status.CONVERGED or error <= 1e-4 * 600**0.5 * value
    if value == 0:
        assert (code, error) == (status.CONVERGED, 0.0)


# --- lanes that fail -------------------------------------------------------------------------------------------------


@operators.pytree
class StudentT:
    """A user's loss with a curvature that a fixed step does not know."""

    def value(self, r):
        return 50 * jnp.log1p(r * r)

    def gradient(self, r):
        return 100 * r / (1 + r * r)

    def reweight(self, r, floor):
        return 100 / (1 + r * r)


@operators.pytree
class Ratio:
    """A loss that a change of units leaves alone: its degree is zero."""

    level: jax.Array | float = 1.0

    degree = 0

    def in_units(self, unit):
        return Ratio(level=self.level / unit)

    def value(self, r):
        return jnp.log1p((r / self.level) ** 2)

    def gradient(self, r):
        return 2 * r / (self.level**2 + r**2)

    def reweight(self, r, floor):
        return 2 / (self.level**2 + r**2)


def test_a_loss_of_degree_zero_moves_with_its_data():
    problem, _ = lr.synthetic.matrix_sensing(KEY, shape=(6, 5), rank=1, num_measurements=60)
    problem = dataclasses.replace(problem, y=64 * problem.y, loss=Ratio(level=jnp.float32(64.0)))
    moved, units = problem.in_units()
    assert float(units.factor) > 1
    assert float(moved.objective_of(moved.y)) == float(problem.objective_of(problem.y))


def test_a_large_rise_has_a_status():
    problem, _ = lr.synthetic.matrix_sensing(KEY, shape=(10, 8), rank=2, num_measurements=200)
    problem = dataclasses.replace(problem, loss=StudentT())
    solver = lr.GradientDescent(max_rank=2, step_size=3.0, relative=False)
    solution = lr.solve(problem, solver, KEY, num_steps=60)
    start = float(problem.objective(lr.Factors(jnp.zeros((10, 1)), jnp.zeros((8, 1)))))
    assert float(solution.objective) > 10 * start
    assert int(solution.status) == status.DIVERGED
    with pytest.raises(status.SolveError, match="objective"):
        solution.check()
    *_, last = lr.iterate(problem, solver, KEY, num_steps=60, record_every=20)
    assert int(last.status) == status.DIVERGED


@pytest.mark.parametrize(
    "solver",
    [
        lr.AlternatingMinimization(max_rank=2),
        lr.ScaledGradientDescent(max_rank=2),
        lr.GradientDescent(max_rank=2),
        lr.SoftImpute(max_rank=2),
        lr.SingularValueProjection(max_rank=2),
        lr.GaussNewton(max_rank=2),
        lr.IRLS(max_rank=2),
    ],
    ids=lambda x: type(x).__name__,
)
def test_lanes_with_nothing_to_start_from(solver):
    """One lane in three has an infinity, one no positive weight: zero factors and a code of their own."""
    problem, _ = _completion(jnp.float32)
    m = problem.y.shape[0]
    y = jnp.stack([problem.y, problem.y.at[0].set(jnp.inf), problem.y])
    weights = jnp.ones((3, m)).at[2].set(0)
    run = lambda y, w: lr.solve(lr.Problem(problem.operator, y, w), solver, KEY, num_steps=3)
    batch = jax.jit(jax.vmap(run))(y, weights)
    assert batch.status.tolist()[1:] == [status.INVALID, status.INVALID]
    assert int(batch.status[0]) in (status.RUNNING, status.CONVERGED)
    assert not np.any(batch.factors.left[1:])
    assert not np.any(batch.factors.right[1:])
    alone = run(problem.y, jnp.ones(m))
    np.testing.assert_allclose(
        batch.factors.dense()[0] if batch.factors.left.ndim == 2 else batch.factors.left[0] @ batch.factors.right[0].T,
        alone.factors.dense(),
        rtol=1e-3,
        atol=1e-4,
    )
    with pytest.raises(status.SolveError, match="nothing to start from"):
        batch.check()
