"""The nuclear-norm solver against a dense proximal gradient method in NumPy and against its optimality conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import operators, status, synthetic

KEY = jax.random.key(0)


def reference(op, y, weights, shape, penalty, num_steps=20_000):
    """Minimises `sum w (A(X) - y)^2 / 2 + penalty ||X||_*` with the matrix of `A` and full decompositions."""
    units = np.eye(shape[0] * shape[1]).reshape(-1, *shape)
    a = np.stack([np.asarray(op.forward_dense(jnp.asarray(e))) for e in units], axis=1)
    curvature = np.linalg.norm(a.T @ (weights[:, None] * a), 2)
    x = before = np.zeros(shape)
    t = 1.0
    for _ in range(num_steps):
        t, old = (1 + np.sqrt(1 + 4 * t * t)) / 2, t
        z = x + (old - 1) / t * (x - before)
        slope = (a.T @ (weights * (a @ z.ravel() - y))).reshape(shape)
        u, s, vt = np.linalg.svd(z - slope / curvature, full_matrices=False)
        before, x = x, (u * np.maximum(s - penalty / curvature, 0)) @ vt
        if np.sum((z - x) * (x - before)) > 0:
            t = 1.0
        if np.linalg.norm(x - before) <= 1e-15 * np.linalg.norm(x):
            break
    return x


def draw(kind):
    if kind == "dense":
        problem, truth = synthetic.matrix_sensing(KEY, shape=(12, 9), rank=2, num_measurements=80, noise=0.05)
    else:
        problem, truth = synthetic.matrix_completion(KEY, shape=(30, 20), rank=2, fraction=0.5, noise=0.05)
        if kind == "sampled":
            rows, cols = np.nonzero(np.asarray(problem.operator.mask))
            op, y = operators.SampledEntries.build(
                rows, cols, np.asarray(problem.y).reshape(30, 20)[rows, cols], (30, 20)
            )
            problem = lr.Problem(op, y)
    weights = jax.random.uniform(jax.random.key(3), problem.y.shape, minval=0.5, maxval=1.5)
    return lr.Problem(problem.operator, problem.y, weights), truth


@pytest.mark.parametrize("kind", ["dense", "sampled", pytest.param("mask", marks=pytest.mark.slow)])
def test_is_the_convex_solution(kind):
    """The same matrix as the dense method, the optimality conditions of the nuclear norm, and no way round max_rank."""
    with jax.enable_x64(True):
        problem, _ = draw(kind)
        solve = lambda k: lr.solve(problem, lr.SoftImpute(max_rank=k, penalty=0.05), KEY, num_steps=2000)
        solution = solve(9)
        assert int(solution.status) == status.CONVERGED
        penalty, x = float(solution.trace["penalty"][-1]), np.asarray(solution.factors.dense())
        slope = np.asarray(problem.operator.adjoint(problem.weighted(problem.residual(solution.factors))))
        nuclear = np.linalg.svd(x, compute_uv=False).sum()
        assert abs(float(solution.trace["nuclear_norm"][-1]) - nuclear) <= 1e-12 * nuclear
        # ||A*(w res)||_2 <= lambda, and <A*(w res), X> = -lambda ||X||_*.
        assert np.linalg.norm(slope, 2) <= (1 + 1e-10) * penalty
        assert abs(np.sum(slope * x) + penalty * nuclear) <= 1e-10 * penalty * nuclear
        y, weights = np.asarray(problem.observed()), np.asarray(problem.effective_weights())
        dense = reference(problem.operator, y, weights, x.shape, penalty)
        assert np.linalg.norm(x - dense) <= 1e-9 * np.linalg.norm(dense)
        assert 2 <= int(solution.trace["rank"][-1]) < 9
        capped = np.asarray(solve(1).factors.dense())
        assert np.linalg.norm(capped - dense) > 0.1 * np.linalg.norm(dense)


def test_a_vanishing_penalty_completes_the_matrix():
    """Least nuclear norm recovers the truth from half of the entries; a large penalty is far off, by its bias."""
    with jax.enable_x64(True):
        problem, truth = synthetic.matrix_completion(KEY, shape=(60, 40), rank=2, fraction=0.5)
        penalties = jnp.array([1e-8, 1e-3, 0.3])
        solve = lambda p: lr.solve(problem, lr.SoftImpute(max_rank=6, penalty=p), KEY, num_steps=400, truth=truth)
        errors = np.asarray(jax.vmap(solve)(penalties).trace["relative_error"][:, -1])
        assert errors[0] < 1e-6
        assert 1e-4 < errors[1] < 1e-2
        assert errors[2] > 0.1
