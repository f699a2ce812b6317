"""IRLS: one step against dense weighted least squares, recovery where alternating minimization fails, noise, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import operators, synthetic
from lrjax.linalg.svd import attach_derivative

KEY = jax.random.key(0)


def completion(seed, shape, rank, oversampling, *, condition=10.0, noise=0.0, dtype=np.float64, sampled=False):
    """A mask drawn again until every row and column has at least `rank` entries, and the truth."""
    rng = np.random.default_rng(seed)
    size = round(oversampling * rank * (sum(shape) - rank))
    mask = np.zeros(shape, bool)
    while min(mask.sum(0).min(), mask.sum(1).min()) < rank:
        mask = np.zeros(shape, bool)
        mask.flat[rng.choice(mask.size, size, replace=False)] = True
    truth = synthetic.low_rank(jax.random.key(seed), shape, rank, condition_number=condition, dtype=dtype)
    x = np.asarray(truth.dense())
    x = x + noise * np.sqrt(np.mean(x**2)) * rng.standard_normal(shape).astype(dtype)
    if sampled:
        rows, cols = np.nonzero(mask)
        return lr.Problem(*operators.SampledEntries.build(rows, cols, x[rows, cols], shape)), truth
    return lr.Problem(operators.EntryMask.from_mask(mask), jnp.asarray(x).reshape(-1)), truth


def error(problem, truth, solver, num_steps):
    solution = lr.solve(problem, solver, KEY, num_steps=num_steps)
    return float(lr.metrics.relative_error(solution.factors, truth)), solution


def weighted_step(x, epsilon, rank, mask, y):
    """`argmin <Z, W Z>` over `Z` with the entries `y`, with `W` as an explicit matrix on vectorised matrices."""
    u, s, vt = np.linalg.svd(x)
    left, right = np.full(len(u), epsilon), np.full(len(vt), epsilon)
    left[:rank] = right[:rank] = s[:rank]
    # vec by rows: A Z B -> kron(A, B^T).
    inverse = np.kron((u * left) @ u.T, (vt.T * right) @ vt)
    seen = np.flatnonzero(mask)
    z = inverse[:, seen] @ np.linalg.solve(inverse[np.ix_(seen, seen)], y[seen])
    return z.reshape(x.shape)


def test_steps_are_dense_weighted_least_squares():
    shape, rank = (9, 7), 2
    with jax.enable_x64(True):
        problem, _ = completion(1, shape, rank, 1.6)
        mask, y = np.asarray(problem.operator.mask), np.asarray(problem.observed())
        solver = lr.IRLS(max_rank=rank, inner_tolerance=1e-13, smoothing=0.9)
        x = y.reshape(shape)
        epsilon = 0.9 * np.linalg.svd(x)[1][rank]
        state = solver.init(problem, KEY)
        for _ in range(4):
            x = weighted_step(x, epsilon, rank, mask, y)
            u, s, vt = np.linalg.svd(x)
            epsilon = min(epsilon, 0.9 * s[rank])
            state, _ = solver.step(problem, state, KEY)
            expected = (u[:, :rank] * s[:rank]) @ vt[:rank]
            np.testing.assert_allclose(state.factors.dense(), expected, rtol=0, atol=1e-10)
            np.testing.assert_allclose(state.epsilon, epsilon, rtol=1e-9)


@pytest.mark.parametrize(("seed", "condition"), [(0, 10.0), (1, 1e5)])
def test_recovers_at_twice_the_degrees_of_freedom(seed, condition):
    """Oblong, ill-conditioned, few entries: alternating minimization fails here."""
    with jax.enable_x64(True):
        problem, truth = completion(seed, (150, 110), 4, 2.0, condition=condition)
        ours, solution = error(problem, truth, lr.IRLS(max_rank=4), 80)
        assert ours < 1e-12
        assert bool(solution.converged)
        # Smoothing alone does not do it: the loop must not be a single least-squares fit.
        assert int(solution.num_steps) > 5
        plain = lr.AlternatingMinimization(max_rank=4, accelerate=False, start="spectral")
        other, _ = error(problem, truth, plain, 80)
        assert other > 1e-3


def test_the_krylov_branch_recovers_on_a_list_of_entries():
    with jax.enable_x64(True):
        problem, truth = completion(3, (210, 160), 3, 1.7, sampled=True)
        assert error(problem, truth, lr.IRLS(max_rank=3), 80)[0] < 1e-12


def test_rank_one_and_too_many_columns():
    """Columns too many, as a mask in one program: the right rank needs the fewest entries, but each recovers."""
    with jax.enable_x64(True):
        problem, truth = completion(2, (40, 25), 1, 8.0)
        run = lambda rank: lr.solve(problem, lr.IRLS(max_rank=3, rank=rank), KEY, num_steps=120)
        solutions = jax.vmap(run)(jnp.arange(1, 4))
        for lane in range(3):
            factors = jax.tree.map(lambda x, i=lane: x[i], solutions.factors)
            assert not np.any(factors.left[:, lane + 1 :])
            assert float(lr.metrics.relative_error(factors, truth)) < 1e-9, lane
        zero = lr.Factors(jnp.zeros((40, 1)), jnp.zeros((25, 1)))
        assert float(lr.metrics.relative_error(zero, truth)) == pytest.approx(1, rel=1e-15)
        # The right number of columns without a mask takes the same path.
        alone = lr.solve(problem, lr.IRLS(max_rank=1), KEY, num_steps=120)
        assert float(lr.metrics.relative_error(alone.factors, truth)) < 1e-12


def test_noise_stays_small_and_single_precision_reaches_its_level():
    with jax.enable_x64(True):
        problem, truth = completion(4, (120, 90), 3, 4.0, condition=2.0, noise=1e-2)
        dirty, solution = error(problem, truth, lr.IRLS(max_rank=3), 60)
        # The best estimate knows the subspaces: noise times sqrt(degrees of freedom / entries) = 5e-3.
        assert dirty < 1e-2
        assert float(solution.trace["epsilon"][-1]) > 1e-5
    problem, truth = completion(5, (120, 90), 3, 2.5, dtype=np.float32)
    single, solution = error(problem, truth, lr.IRLS(max_rank=3), 60)
    assert solution.factors.left.dtype == jnp.float32
    assert single < 1e-4


def test_singular_triples_get_exact_derivatives_whatever_the_tail():
    """Truncation of a matrix whose tail has equal values, against central differences of a dense SVD."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        u, v = np.linalg.qr(rng.standard_normal((8, 6)))[0], np.linalg.qr(rng.standard_normal((6, 6)))[0]
        x = (u * np.array([2.5, 2.2, 2.0, 1.5, 0.5, 0.5])) @ v.T
        direction = rng.standard_normal(x.shape)

        def truncated(u, s, vt):
            return jnp.sum(jnp.sin((u[:, :3] * s[:3]) @ vt[:3])) + s[3] ** 2

        def along(t):
            m = jnp.asarray(x) + t * direction
            fixed = np.linalg.svd(x)
            triples = jnp.asarray(fixed[0][:, :4]), jnp.asarray(fixed[1][:4]), jnp.asarray(fixed[2][:4].T)
            u, s, v = attach_derivative(lambda m: (lambda a: m @ a, lambda a: m.T @ a), 3, m, triples)
            return truncated(u, s, v.T)

        step = 1e-5
        high, low = (truncated(*np.linalg.svd(x + t * direction)) for t in (step, -step))
        central = float(high - low) / (2 * step)
        assert abs(float(jax.jvp(along, (0.0,), (1.0,))[1]) - central) < 1e-7
        assert abs(float(jax.grad(along)(0.0)) - central) < 1e-7
