"""`lp_regression`: against SciPy, under every transform, on samples, and at the door."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from lrjax import status
from lrjax.sketching import lewis_weights, lp_regression

KEY = jax.random.key(0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def problem(n, d, *, heavy=True, rank=None, condition=1.0, seed=0):
    rng = np.random.default_rng(seed)
    rank = d if rank is None else rank
    a = rng.normal(size=(n, rank)) * np.geomspace(1, 1 / condition, rank) @ rng.normal(size=(rank, d))
    if heavy:
        a *= (rng.pareto(1.5, size=n) + 0.1)[:, None]
    return a, a @ rng.normal(size=d) + rng.standard_t(2, size=n)


def norm(r, p):
    top = np.max(np.abs(r))
    return top * np.sum(np.abs(r / top) ** p) ** (1 / p)


def reference(a, b, p):
    """The least `||a x - b||_p`: a linear program at p = 1, else BFGS from p = 2, by way of powers between."""
    # In an orthonormal basis: SciPy's tolerances are absolute.
    u, sigma, _ = np.linalg.svd(a, full_matrices=False)
    q = u[:, sigma > 1e-10 * sigma[0]]
    n, d = q.shape
    if p == 1:
        cost = np.concatenate([np.zeros(d), np.ones(2 * n)])
        rows = np.concatenate([q, np.eye(n), -np.eye(n)], axis=1)
        return linprog(cost, A_eq=rows, b_eq=b, bounds=[(None, None)] * d + [(0, None)] * 2 * n).fun
    z = q.T @ b
    for power in [between for between in (4.0, 10.0, 25.0) if between < p] + [p]:
        scale = norm(b - q @ z, power)

        def value(z, power=power, scale=scale):
            r = (b - q @ z) / scale
            return np.sum(np.abs(r) ** power), -q.T @ (power * np.abs(r) ** (power - 1) * np.sign(r)) / scale

        z = minimize(value, z, jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 2000}).x
    return norm(b - q @ z, p)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, 10.0, 50.0])
def test_it_is_the_minimum(p, dtype, x64):
    a, b = (part.astype(dtype) for part in problem(80, 5, heavy=p != 3))
    result = lp_regression(a, b, p)
    result.check(require_convergence=True)
    eps = np.finfo(dtype).eps
    assert float(result.gap) <= eps ** (0.625 if p == 1 else 0.75)
    a, b = a.astype(float), b.astype(float)
    found, best = norm(a @ np.asarray(result.x, float) - b, p), reference(a, b, p)
    np.testing.assert_allclose(result.objective, found, rtol=1e3 * eps)
    # The gap is a bound, and a sharp one.
    assert -1e-8 < found / best - 1 < float(result.gap) + 100 * eps
    assert (result.method, result.scores) == ("full", "none")
    # The least-squares solution is no substitute.
    assert p == 1.5 or norm(a @ np.linalg.lstsq(a, b)[0] - b, p) > 1.02 * found


@pytest.mark.parametrize("p", [1.0, 50.0])
def test_small_residuals_and_many_seeds_in_single_precision(p):
    """Where the residuals are far smaller than `b`, rounding is still relative to them."""
    problems = []
    for seed in range(6):
        a, _ = problem(60, 5, heavy=seed % 2 == 0, seed=seed)
        problems.append((a, a @ np.ones(5) + 10.0 ** -(seed % 3) * np.random.default_rng(seed).normal(size=60)))
    a, b = (np.stack(part).astype(np.float32) for part in zip(*problems, strict=True))
    result = jax.jit(jax.vmap(lambda a, b: lp_regression(a, b, p)))(a, b)
    assert np.all(np.asarray(result.status) != status.RUNNING)
    assert np.all(np.asarray(result.gap) < np.finfo(np.float32).eps ** 0.5)
    if p > 1:
        result.check(require_convergence=True)


def test_a_tolerance_out_of_reach_is_reported_as_such():
    a, b = problem(60, 5)
    result = lp_regression(a.astype(np.float32), b.astype(np.float32), 1.0, tolerance=0.0)
    assert int(result.status) == status.STALLED
    assert int(result.num_steps) < 300
    assert float(result.gap) < 1e-4
    assert norm(a @ np.asarray(result.x, float) - b, 1) < (1 + 1e-5) * reference(a, b, 1.0)


def test_least_squares_in_one_step(x64):
    a, b = problem(60, 4)
    result = lp_regression(a, b, 2.0)
    np.testing.assert_allclose(result.x, np.linalg.lstsq(a, b)[0], rtol=1e-9)
    assert int(result.num_steps) == 1


@pytest.mark.parametrize("p", [1.0, 3.0])
@pytest.mark.parametrize(
    "options",
    [{"rank": 1}, {"rank": 3}, {"condition": 1e6, "heavy": False}],
    ids=["rank 1", "rank 3", "ill-conditioned"],
)
def test_degenerate_matrices(options, p, x64):
    a, b = problem(60, 5, **options)
    result = lp_regression(a, b, p)
    if p > 1:  # at 1 the proof of optimality may take more steps than there are: see the docstring
        result.check(require_convergence=True)
    np.testing.assert_allclose(result.objective, reference(a, b, p), rtol=1e-7)
    if "rank" in options:  # the least solution lies in the row space
        np.testing.assert_allclose(np.linalg.pinv(a) @ (a @ np.asarray(result.x)), result.x, rtol=1e-6)


def test_one_column_is_the_weighted_median(x64):
    rng = np.random.default_rng(0)
    b = rng.normal(size=31)
    result = lp_regression(np.ones((31, 1)), b, 1.0)
    np.testing.assert_allclose(result.x[0], np.median(b), atol=1e-7)
    # and a large power the middle of the range, nearly
    np.testing.assert_allclose(lp_regression(np.ones((31, 1)), b, 200.0).x[0], (b.min() + b.max()) / 2, atol=0.05)


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_exact_fits(p, x64):
    a, b = problem(5, 20, heavy=False)  # wide
    result = lp_regression(a, b, p)
    result.check(require_convergence=True)
    assert result.objective < 1e-11 * np.linalg.norm(b)
    zero = lp_regression(a, 0 * b, p)
    assert np.all(np.asarray(zero.x) == 0)
    assert zero.objective == 0


def test_gross_errors_are_ignored_at_one_and_not_at_two(x64):
    a, _ = problem(200, 6, heavy=False)
    truth = np.arange(6.0)
    b = a @ truth
    b[:50] += 100 * np.random.default_rng(3).normal(size=50)
    np.testing.assert_allclose(lp_regression(a, b, 1.0).x, truth, atol=1e-7)
    assert np.max(np.abs(np.linalg.lstsq(a, b)[0] - truth)) > 0.5


@pytest.mark.parametrize("enable", [False, True], ids=["x32", "x64"])
@pytest.mark.parametrize("p", [1.0, 3.0])
def test_float32(p, enable):
    a, b = problem(80, 5)
    with jax.enable_x64(enable), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        result = lp_regression(a.astype(np.float32), b.astype(np.float32), p)
        assert result.x.dtype == result.objective.dtype == result.gap.dtype == jnp.float32
        assert result.status.dtype == result.num_steps.dtype == jnp.int32
        sampled = lp_regression(a.astype(np.float32), b.astype(np.float32), p, key=KEY, num_rows=50, num_steps=3)
        assert sampled.x.dtype == jnp.float32
    assert norm(a @ np.asarray(result.x, float) - b, p) < (1 + 1e-5) * reference(a, b, p)


def test_jit_and_vmap_agree_with_a_loop(x64):
    problems = [problem(40, 3, seed=seed) for seed in range(3)]
    a, b = (np.stack(part) for part in zip(*problems, strict=True))
    batch = jax.jit(jax.vmap(lambda a, b: lp_regression(a, b, 1.5)))(a, b)
    assert batch.status.shape == (3,)
    for i in range(3):
        one = lp_regression(a[i], b[i], 1.5)
        np.testing.assert_allclose(batch.x[i], one.x, rtol=1e-6)
        assert batch.num_steps[i] == one.num_steps


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0])
def test_derivatives_are_those_of_the_solution(p, x64):
    a, b = problem(30, 3, heavy=False)
    rng = np.random.default_rng(9)
    da, db, c = rng.normal(size=a.shape), rng.normal(size=b.shape), rng.normal(size=3)
    value = lambda t: lp_regression(a + t * da, b + t * db, p).x @ c
    step = 1e-5
    difference = (value(step) - value(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(value)(0.0), difference, rtol=2e-4, atol=1e-6)


def test_the_budget_is_reported_and_nonfinite_lanes_do_not_raise(x64):
    a, b = problem(80, 5)
    short = lp_regression(a, b, 1.0, num_steps=3)
    assert int(short.status) == status.RUNNING
    assert int(short.num_steps) == 3
    # The gap is a bound although nothing has converged.
    full = float(lp_regression(a, b, 1.5).objective)
    early = lp_regression(a, b, 1.5, num_steps=2)
    assert full * (1 - 1e-9) >= float(early.objective) * (1 - float(early.gap)) - 1e-9 or float(early.gap) < 1
    with pytest.raises(status.SolveError, match="1 of 1 lanes"):
        short.check(require_convergence=True)
    bad = jax.jit(lambda a, b: lp_regression(a, b, 1.5))(a, np.where(np.arange(80) == 3, np.nan, b))
    assert int(bad.status) == status.NONFINITE


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_sampled_regression_beats_uniform_rows(p, x64):
    """Three rows alone carry the last direction; with uniform rows it is lost and the answer with it."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2000, 4))
    a[:, 3] = 0
    a[:3, 3] = 100.0
    b = a @ np.ones(4) + rng.normal(size=2000)
    best = float(lp_regression(a, b, p).objective)
    solve = lambda key, scores: lp_regression(a, b, p, key=key, num_rows=200, scores=scores)
    keys = jax.random.split(KEY, 9)
    lewis = [solve(key, "lewis") for key in keys[:3]]
    assert all(best <= float(result.objective) * (1 + 1e-9) for result in lewis)
    assert np.median([result.objective for result in lewis]) < 1.1 * best
    assert (lewis[0].method, lewis[0].scores) == ("sampled", "lewis")
    assert np.median([solve(key, "uniform").objective for key in keys]) > 1.15 * best
    given = solve(keys[0], lewis_weights(np.column_stack([a, b]), p))
    assert given.scores == "given"
    np.testing.assert_allclose(given.x, lewis[0].x, rtol=1e-6)


def test_the_scores_that_ran_are_named(x64):
    a, b = problem(60, 3)
    sampled = lambda p, **options: lp_regression(a, b, p, key=KEY, num_rows=30, num_steps=2, **options).scores
    assert sampled(6.0) == "leverage"
    assert sampled(1.0) == "lewis"
    assert sampled(1.0, scores="root_leverage") == "root_leverage"


A, B = (part.astype(np.float32) for part in problem(12, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lp_regression(A, B, 0.5), "p must be finite and in"),
        (lambda: lp_regression(A, B, np.inf), "p must be finite and in"),
        (lambda: lp_regression(A[0], B, 1.0), r"a has shape \(3,\)"),
        (lambda: lp_regression(A, B[:5], 1.0), r"b is float32 of shape \(5,\); expected float32 of shape \(12,\)"),
        (lambda: lp_regression(A, B.astype(np.float16), 1.0), "b is float16"),
        (lambda: lp_regression(A, B * np.float32(np.nan), 1.0), "b must be finite"),
        (lambda: lp_regression(A, B, 1.0, num_steps=0), "num_steps must be"),
        (lambda: lp_regression(A, B, 1.0, tolerance=-1.0), "tolerance must be"),
        (lambda: lp_regression(A, B, 1.0, key=KEY), "expected num_rows with them"),
        (lambda: lp_regression(A, B, 1.0, scores="lewis"), "expected num_rows with them"),
        (lambda: lp_regression(A, B, 1.0, num_rows=9), "key is None; expected a random key"),
        (lambda: lp_regression(A, B, 1.0, num_rows=9, key=3), "key must be"),
        (lambda: lp_regression(A, B, 1.0, num_rows=13, key=KEY), "num_rows is 13; without replacement at most 12"),
        (lambda: lp_regression(A, B, 1.0, num_rows=9, key=KEY, scores="best"), "scores is 'best'; expected one of"),
        (lambda: lp_regression(A, B, 1.0, num_rows=9, key=KEY, scores=np.ones(5)), r"scores have shape \(5,\)"),
        (lambda: lp_regression(A, B, 4.0, num_rows=9, key=KEY, scores="lewis"), "p is 4.0; expected p < 4"),
        (lambda: lp_regression(A, B, 3.0, num_rows=9, key=KEY, scores="root_leverage"), "p must be finite and in"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
