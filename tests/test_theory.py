"""The theory of the papers as tests: rates, laws and floors that a broken solver would not show.

Each test compares with a number that a derivation gives, or that an independent NumPy prototype measured ("expected"
below); the tolerance is stated beside it. Identifiers such as T3.2 number the rows of the list of such checks:
T1 alternating minimization (arXiv 2302.11068), T2 the subgradient method (arXiv 2202.08788), T3 over-parameterized
gradient descent (arXiv 2310.01769). Where a baseline ought to fail, it is run too, and has to fail.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import status

pytestmark = [pytest.mark.computes, pytest.mark.usefixtures("x64")]


def slope(x, y):
    return np.polyfit(np.asarray(x), np.asarray(y), 1)[0]


def log_rate(errors, high, low):
    """Least-squares slope of the log error per step, over the steps at which the error lies in (low, high)."""
    inside = (errors < high) & (errors > low)
    assert inside.sum() >= 5, f"only {inside.sum()} steps between {low} and {high}"
    return slope(np.flatnonzero(inside), np.log(errors[inside]))


def first_below(errors, level):
    assert errors.min() < level, f"the error never fell below {level}: {errors.min()}"
    return int(np.argmax(errors < level))


# ---------------------------------------------------------------------------------------------------------------------
# T1: alternating minimization; n = 200, rank 4, condition number 3.

FRACTIONS = np.array([0.15, 0.25, 0.4, 0.6])
UPDATE_ERRORS = np.array([1e-2, 1e-4, 1e-6, 1e-8])


@functools.cache
def altmin_runs():
    """Relative errors `(4 fractions, 2 seeds with exact solves and 4 update errors, 41 rows)`."""

    def one(fraction, update_error, key):
        key_problem, key_solve = jax.random.split(key)
        problem, truth = lr.synthetic.matrix_completion(
            key_problem, shape=(200, 200), rank=4, fraction=fraction, condition_number=3.0
        )
        solver = lr.AlternatingMinimization(max_rank=4, start="spectral", update_error=update_error, tolerance=0.0)
        return lr.solve(problem, solver, key_solve, num_steps=40, truth=truth).trace["relative_error"]

    update_errors = jnp.concatenate([jnp.zeros(2), jnp.asarray(UPDATE_ERRORS)])
    keys = jax.random.split(jax.random.key(0), 2)[jnp.array([0, 1, 0, 0, 0, 0])]
    lanes = lambda p: jax.lax.map(lambda lane: one(p, *lane), (update_errors, keys))
    return np.asarray(jax.jit(lambda p: jax.lax.map(lanes, p))(jnp.asarray(FRACTIONS)))


def test_t1_1_contraction_factor_against_sampling_rate():
    # T1.1: error factor per iteration with exact solves, between 1e-2 and 1e-12; expected values +-20 %.
    runs = altmin_runs()[:, :2]
    factors = np.array([np.mean([math.exp(log_rate(e, 1e-2, 1e-12)) for e in lanes]) for lanes in runs])
    np.testing.assert_allclose(factors, [0.572, 0.345, 0.191, 0.087], rtol=0.2)
    assert (np.diff(factors) < 0).all(), factors


def test_t1_2_the_error_floor_is_linear_in_the_update_error():
    # T1.2: floor / e0 in [1.5, 2.5] over six decades of e0 at every sampling rate; log-log slope 1.00 +- 0.01.
    runs = altmin_runs()
    floors = np.exp(np.log(runs[:, 2:, -6:]).mean(axis=-1))
    ratio = floors / UPDATE_ERRORS
    assert ((ratio >= 1.5) & (ratio <= 2.5)).all(), ratio
    slopes = [slope(np.log(UPDATE_ERRORS), np.log(row)) for row in floors]
    np.testing.assert_allclose(slopes, 1.0, atol=0.01)
    # Derived: both half steps add e0 ||X||_2 N / ||N||_2 with a Gaussian n x k matrix N, at right angles.
    spread = math.sqrt(200 * 4) / (math.sqrt(200) + 2)
    norm = np.linalg.norm(3.0 ** -np.linspace(0, 1, 4))
    np.testing.assert_allclose(ratio[-1], math.sqrt(2) * spread / norm, rtol=0.15)
    # The baseline without the error has no such floor: where it is fast enough to end, it ends at rounding level.
    assert runs[1:, :2, -1].max() < 1e-13


def test_t1_3_fresh_samples():
    # T1.3: a fresh sample of density q in each half step; error after 1, 5, 10 iterations within a factor of 3.
    densities = jnp.asarray([0.05, 0.1, 0.2, 0.4])
    operator = lr.operators.Identity(matrix_shape=(200, 200))

    def one(density, key):
        key_truth, key_sample, key_start, key_solve = jax.random.split(key, 4)
        truth = lr.synthetic.low_rank(key_truth, (200, 200), 4, condition_number=3.0)
        y = operator.forward(truth.left, truth.right)
        sample = (jax.random.uniform(key_sample, y.shape) < density).astype(y.dtype)
        start = lr.initial.spectral(lr.Problem(operator, y, weights=sample), 4, key_start)
        solver = lr.AlternatingMinimization(max_rank=4, start="spectral", fresh_fraction=density, tolerance=0.0)
        problem = lr.Problem(operator, y)
        return lr.solve(problem, solver, key_solve, num_steps=10, init=start, truth=truth).trace["relative_error"]

    keys = jax.random.split(jax.random.key(2), 5)[:3]
    lanes = lambda density: jax.lax.map(functools.partial(one, density), keys)
    errors = np.asarray(jax.jit(lambda q: jax.lax.map(lanes, q))(densities))
    at = np.exp(np.log(errors).mean(axis=1))[:, [1, 5, 10]]
    expected = np.array([[0.58, 1.4e-2, 4.9e-5], [0.28, 1.3e-4, 4.0e-9], [5.6e-2, 2.4e-7, np.nan]])
    known = np.isfinite(expected)
    assert (np.abs(np.log(at[1:] / expected))[known] < math.log(3)).all(), at
    assert at[3, 2] < 3e-12  # at its floor
    assert errors[0, :, 10].min() > 0.5  # five samples per unknown are too few


# ---------------------------------------------------------------------------------------------------------------------
# T2: the subgradient method; ||X||_2 = 1, standard Gaussian measurements, outliers N(0, 10^2).

MEDIAN_STEP = lr.step_sizes.ResidualQuantile(value=0.2, quantile=0.5)


def outlier_problem(key, *, n, num_measurements, corruption):
    key_truth, key_operator, key_where, key_size = jax.random.split(key, 4)
    truth = lr.synthetic.low_rank(key_truth, (n, n), 3, symmetric=True)
    operator = lr.operators.DenseEnsemble.gaussian(key_operator, (n, n), num_measurements, symmetric=True)
    clean = operator.forward(truth.left, truth.right)
    where = jax.random.uniform(key_where, clean.shape) < corruption
    y = clean + jnp.where(where, 10 * jax.random.normal(key_size, clean.shape), 0)
    return lr.Problem(operator, y, loss=lr.losses.Absolute()), truth


def paper_subgradient(**settings):
    """The start and the units of the paper."""
    return lr.SubgradientMethod(symmetric=True, relative=False, hidden_scale=1.0, **settings)


def test_t2_1_the_sign_rip_scaling_function():
    # T2.1: <D, X> / ||X||_F against sqrt(2/pi) E exp(-s^2 / (2 ||X||_F^2)), the Gaussian integral; 3 %.
    n, m, norm = 30, 20_000, 2.4
    cases = [("outliers", 0.0), ("outliers", 0.3), ("outliers", 0.5), ("dense", 1.0), ("dense", 5.0)]

    def draw(key):
        key_x, key_a, key_where, key_s = jax.random.split(key, 4)
        x = lr.synthetic.low_rank(key_x, (n, n), 4, symmetric=True)
        left = x.left * jnp.sqrt(norm / x.norm())
        operator = lr.operators.DenseEnsemble.gaussian(key_a, (n, n), m, symmetric=True)
        where, size = jax.random.uniform(key_where, (m,)), jax.random.normal(key_s, (m,))
        values = []
        for kind, level in cases:
            s = jnp.where(where < level, 10 * size, 0) if kind == "outliers" else level * size
            # At X with the zero matrix as the truth, y = s.
            gradient, _ = lr.Problem(operator, s, loss=lr.losses.Absolute()).gradient(lr.Factors(left, left))
            values.append(jnp.sum(gradient * left) / (m * norm))
        return jnp.stack(values)

    measured = np.asarray(jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(jax.random.key(0), 3)))
    shrink = lambda deviation: norm / math.hypot(norm, deviation)  # E exp(-s^2 / (2 norm^2)), s ~ N(0, deviation^2)
    theory = [1 - v + v * shrink(10) if kind == "outliers" else shrink(v) for kind, v in cases]
    np.testing.assert_allclose(measured.mean(axis=0), math.sqrt(2 / math.pi) * np.array(theory), rtol=0.03)


SCALES = np.array([1e-2, 1e-3, 1e-5])


@functools.cache
def over_specified(max_rank):
    """Final `||X - X*||_F` for two problems and three scales, and the spectra of the starts; n=20, r=3, m=937."""

    def one(key, scale):
        problem, truth = outlier_problem(key, n=20, num_measurements=937, corruption=0.2)
        solver = paper_subgradient(max_rank=max_rank, initial_scale=scale, step_size=MEDIAN_STEP)
        solution = lr.solve(problem, solver, jax.random.key(1), num_steps=2500, record_every=2500, truth=truth)
        start = problem.operator.adjoint(jnp.sign(problem.y)) / problem.y.shape[0]
        return solution.trace["relative_error"][-1] * truth.norm(), jnp.linalg.eigvalsh(start)[::-1]

    # Vmap over scales alone keeps one copy of each ensemble.
    lanes = lambda key: jax.vmap(functools.partial(one, key))(jnp.asarray(SCALES))
    keys = jax.random.split(jax.random.key(5), 4)[jnp.array([0, 3])]
    errors, values = jax.jit(lambda keys: jax.lax.map(lanes, keys))(keys)
    return np.asarray(errors), np.asarray(values)[:, 0]


def agnostic_ratios():
    return over_specified(20)[0] / over_specified(6)[0]


def test_t2_2_the_error_does_not_depend_on_the_search_rank():
    # T2.2: final errors at search ranks 20 and 6, ratio in [0.98, 1.02] for small enough starts.
    ratio = agnostic_ratios()[:, 1:]
    assert ((ratio >= 0.98) & (ratio <= 1.02)).all(), ratio


@pytest.mark.xfail(strict=True, reason="measured 1.016 and 1.036 (1.007, 1.022, 1.039 on other problems) at 1e-2")
def test_t2_2_holds_for_a_start_of_one_hundredth():
    # T2.2 at alpha = 1e-2, as the list has it: [0.98, 1.02]. There the surplus columns already follow the 1/t law,
    # whose error grows with their number.
    ratio = agnostic_ratios()[:, 0]
    assert ((ratio >= 0.98) & (ratio <= 1.02)).all(), ratio


def floor_slopes():
    return np.array([slope(np.log(SCALES[1:]), np.log(row[1:])) for row in over_specified(6)[0]])


@pytest.mark.xfail(
    strict=True, reason="measured 0.93 and 1.03 (1.06, 1.11, 1.18 on other problems): it depends on the draw"
)
def test_t2_3_the_floor_has_slope_one_in_the_initial_scale():
    # T2.3 as the list has it: slope of log error against log alpha from 1e-3 to 1e-5 is 1.00 +- 0.05.
    np.testing.assert_allclose(floor_slopes(), 1.0, atol=0.05)


def test_t2_3_the_floor_falls_with_the_initial_scale_as_the_spectrum_of_the_start_says():
    # T2.3, derived: until the weakest signal direction has grown by 1 / alpha, a surplus direction of the start with
    # eigenvalue l_4 grows by alpha^-(l_4 / l_3), so the error left in it is of order alpha^(2 (1 - l_4 / l_3)).
    _, values = over_specified(6)
    predicted = 2 * (1 - values[:, 3] / values[:, 2])
    np.testing.assert_allclose(floor_slopes(), predicted, atol=0.1)
    np.testing.assert_allclose(floor_slopes().mean(), 1.0, atol=0.1)


def test_t2_4_exact_rank_goes_to_machine_precision():
    # T2.4: at the exact rank the median step converges linearly from every scale, to below 1e-12.
    problem, truth = outlier_problem(jax.random.key(0), n=20, num_measurements=937, corruption=0.2)

    def one(scale):
        solver = paper_subgradient(max_rank=3, initial_scale=scale, step_size=MEDIAN_STEP)
        solution = lr.solve(problem, solver, jax.random.key(1), num_steps=2500, record_every=100, truth=truth)
        return solution.trace["relative_error"] * truth.norm(), solution.status

    # Unbatched lanes cost nothing once they have converged.
    errors, codes = jax.jit(lambda s: jax.lax.map(one, s))(jnp.asarray([1e-1, 1e-2, 1e-3, 1e-4, 1e-5]))
    assert errors[:, -1].max() < 1e-12, errors[:, -1]
    assert (codes == status.CONVERGED).all()
    assert errors[:, 1].min() > 1e-10  # ... after more than a hundred steps
    assert over_specified(6)[0].min() > 1e-8  # the over-specified baseline stops at its floor


def test_t2_6_a_schedule_whose_sum_is_too_small_freezes():
    # T2.6: eta_0 = 0.25, rho = 0.985 (sum 16.7) at n = 50 suffices for alpha = 1e-3 at 10, 30 and 50 % outliers, but
    # not for 1e-6 at 30 and 50 % (needed 19.9 and 25.6); at 10 % (needed 16.4) it only just does and recovers in part.
    rule = lr.step_sizes.Geometric(value=0.25, decay=0.985)

    def one(corruption, scale, check_budget):
        problem, truth = outlier_problem(jax.random.key(4), n=50, num_measurements=2000, corruption=corruption)
        solver = paper_subgradient(max_rank=50, initial_scale=scale, step_size=rule, check_budget=check_budget)
        solution = lr.solve(problem, solver, jax.random.key(1), num_steps=400, record_every=400, truth=truth)
        return solution.trace["relative_error"][-1] * truth.norm(), solution.status, solution.num_steps

    def lanes(pairs, check_budget):
        run = jax.jit(lambda pairs: jax.lax.map(lambda pair: one(pair[0], pair[1], check_budget), pairs))
        return jax.tree.map(np.asarray, run(jnp.asarray(pairs)))

    grid = [(p, a) for p in (0.1, 0.3, 0.5) for a in (1e-3, 1e-6)]
    errors, codes, steps = (x.reshape(3, 2) for x in lanes(grid, True))
    assert errors[:, 0].max() < 1e-2, errors  # recovered; ||X||_F = 1.73
    assert (codes[:, 0] == status.RUNNING).all()
    assert (codes[1:, 1] == status.SCHEDULE_TOO_SHORT).all(), codes
    assert (steps[1:, 1] == 1).all(), steps
    assert 0.1 < errors[0, 1] < 1.5
    errors, codes, steps = lanes([(0.3, 1e-6), (0.5, 1e-6)], False)
    np.testing.assert_allclose(errors, [1.72, 1.73], rtol=0.03)  # expected: frozen near zero
    assert (codes == status.RUNNING).all()
    assert (steps == 400).all()


# ---------------------------------------------------------------------------------------------------------------------
# Recovery from any search rank under gross corruption: the library's defaults.


@pytest.mark.parametrize(
    ("n", "corrupted"),
    [(20, [0.1, 0.3, 0.5]), (50, [0.5]), pytest.param(50, [0.1, 0.3], marks=pytest.mark.slow)],
    ids=["n=20", "n=50, half corrupted", "n=50"],
)
def test_full_search_rank_recovers_under_gross_corruption(n, corrupted):
    # m = 20 n r, r = 3, alpha = 1e-5, 10, 30 and 50 % corrupted: relative error 1e-6 well within 1,000 steps.
    def one(corruption, key):
        key_problem, key_solve = jax.random.split(key)
        problem, truth = lr.synthetic.matrix_sensing(
            key_problem, shape=(n, n), rank=3, num_measurements=60 * n, symmetric=True, corruption=corruption
        )
        solver = lr.SubgradientMethod(max_rank=n, symmetric=True, initial_scale=1e-5)
        robust = lr.solve(problem, solver, key_solve, num_steps=400, record_every=400, truth=truth)
        squared = lr.Problem(problem.operator, problem.y, loss=lr.losses.Squared())
        descent = lr.GradientDescent(max_rank=n, symmetric=True)
        plain = lr.solve(squared, descent, key_solve, num_steps=80, record_every=80, truth=truth)
        fit = plain.trace["residual"][-1] / squared.relative_residual(squared.residual(truth))
        return robust.trace["relative_error"][-1], plain.trace["relative_error"][-1], fit

    count = len(corrupted)
    corruptions = jnp.asarray(corrupted + [0.0] * (n == 20))
    keys = jax.random.split(jax.random.key(3), 3)
    # One at a time: an ensemble stays in cache, and on a CPU the batched product does not.
    lanes = lambda corruption: jax.lax.map(functools.partial(one, corruption), keys)
    robust, plain, fit = jax.jit(lambda c: jax.lax.map(lanes, c))(corruptions)
    assert robust[:count].max() <= 1e-6, robust
    assert plain[:count].min() > 0.1, plain
    assert fit[:count].max() < 1, fit  # ... although it did descend: it fits the data better than the truth does
    if n == 20:
        assert plain[count].max() < 0.1, plain  # ... and without outliers gets there


# ---------------------------------------------------------------------------------------------------------------------
# T3: over-parameterized gradient descent in the population model, A*A = I; 50 x 50, singular values 1, 0.9, 0.8.

ETA, SIGMA_R, TRUE_RANK = 0.1, 0.8, 3
VALUES = np.array([1.0, 0.9, SIGMA_R])
NORM = np.linalg.norm(VALUES)


def population(symmetric):
    key_left, key_right = jax.random.split(jax.random.key(7))
    basis = lambda key: jnp.linalg.qr(jax.random.normal(key, (50, TRUE_RANK)))[0]
    left = basis(key_left)
    right = left if symmetric else basis(key_right)
    truth = lr.Factors(left * jnp.sqrt(VALUES), right * jnp.sqrt(VALUES))
    operator = lr.operators.Identity(matrix_shape=(50, 50))
    return lr.Problem(operator, operator.forward(truth.left, truth.right)), truth


def descend(alpha, max_rank, num_steps, *, symmetric=False, record_every=1, tolerance=0.0, **settings):
    """Absolute Frobenius errors, the steps they belong to, and the smallest eigenvalues of both Gram matrices."""
    problem, truth = population(symmetric)
    solver = lr.GradientDescent(
        max_rank=max_rank,
        step_size=ETA,
        relative=False,
        initial_scale=alpha,
        imbalance=1 / 3,
        tolerance=tolerance,
        symmetric=symmetric,
        **settings,
    )
    solution = lr.solve(problem, solver, jax.random.key(0), num_steps=num_steps, record_every=record_every, truth=truth)
    smallest = jnp.stack([jnp.linalg.eigvalsh(f.T @ f)[0] for f in (solution.factors.left, solution.factors.right)])
    return solution.trace["relative_error"] * NORM, solution.trace["step"], smallest


def descend_lanes(alphas, max_rank, num_steps, beta=None, **settings):
    """`descend` for each alpha (and beta), one after the other: a converged lane then costs nothing."""
    if beta is None:
        one = lambda alpha: descend(alpha, max_rank, num_steps, **settings)
        out = jax.jit(lambda a: jax.lax.map(one, a))(jnp.asarray(alphas))
    else:
        one = lambda pair: descend(pair[0], max_rank, num_steps, rebalance=True, rebalance_scale=pair[1], **settings)
        out = jax.jit(lambda a, b: jax.lax.map(one, (a, b)))(jnp.asarray(alphas), jnp.asarray(beta))
    return tuple(np.asarray(x) for x in out)


@functools.cache
def tied_long_run(max_rank):
    """Symmetric descent from alpha = 0.1 for 2e5 steps, an error every 2,000."""
    errors, steps, _ = descend(0.1, max_rank, 200_000, symmetric=True, record_every=2000)
    return np.asarray(errors), np.asarray(steps)


def test_t3_1_tied_factors_at_the_exact_rank_converge_linearly():
    # T3.1: slope of the log error log(1 - eta sigma_r) = -0.0834 per step, at any scale; 5 %.
    errors, _, _ = descend_lanes([0.1, 0.01], 3, 600, symmetric=True)
    rates = [log_rate(e, 1e-2, 1e-12) for e in errors]
    np.testing.assert_allclose(rates, math.log(1 - ETA * SIGMA_R), rtol=0.05)
    assert errors[:, -1].max() < 1e-13


RANKS = [4, 5, pytest.param(10, marks=pytest.mark.slow)]


@pytest.mark.parametrize("max_rank", RANKS)
def test_t3_2_tied_factors_above_the_rank_converge_like_one_over_t(max_rank):
    # T3.2: log-log slope over the last decade of 2e5 steps -1 +- 0.02.
    errors, steps = tied_long_run(max_rank)
    last = steps >= steps[-1] / 10
    np.testing.assert_allclose(slope(np.log(steps[last]), np.log(errors[last])), -1.0, atol=0.02)


@pytest.mark.parametrize("max_rank", RANKS)
def test_t3_3_the_constant_of_the_one_over_t_law(max_rank):
    # T3.3: each of the k - r surplus columns has s^2 = 1 / (2 eta t), so 2 eta T error / sqrt(k - r) lies in
    # [0.97, 1.01].
    errors, steps = tied_long_run(max_rank)
    constant = 2 * ETA * steps[-1] * errors[-1] / math.sqrt(max_rank - TRUE_RANK)
    assert 0.97 <= constant <= 1.01, constant


def test_t3_6_untied_factors_at_the_exact_rank_know_no_scale():
    # T3.6: at the exact rank the rate saturates at log(1 - eta sigma_r) as alpha falls, so the quadratic law of T3.7 is
    # one of over-parameterization. Derived for any alpha: the smaller one of the Gram matrices, which the imbalance of
    # order alpha^2 keeps a little below sigma_r, takes its place. Both to 2 %.
    errors, _, smallest = descend_lanes([0.4, 0.2, 0.1, 0.05], 3, 600)
    rates = [log_rate(e, 1e-6, 1e-12) for e in errors]
    np.testing.assert_allclose(rates, np.log(1 - ETA * smallest.min(axis=1)), rtol=0.02)
    np.testing.assert_allclose(rates[2:], math.log(1 - ETA * SIGMA_R), rtol=0.02)


ALPHAS = np.array([0.4, 0.2, 0.1])


@functools.cache
def untied_runs(max_rank, num_steps, lanes):
    # The tolerance only stops lanes that have arrived.
    errors, _, smallest = descend_lanes(ALPHAS[:lanes], max_rank, num_steps, tolerance=1e-14)
    rates = np.array([log_rate(e, 1e-6, 1e-12) for e in errors])
    return rates, errors, smallest[:, 0]


def test_t3_7_the_rate_is_quadratic_in_the_initial_scale():
    # T3.7: untied factors, k = 5: exponent of the rate in alpha 2.00 +- 0.03 from 0.4 to 0.1.
    rates, errors, _ = untied_runs(5, 40_000, 3)
    assert (rates < 0).all()
    np.testing.assert_allclose(slope(np.log(ALPHAS), np.log(-rates)), 2.0, atol=0.03)
    # Iterations to 1e-13, expected 2162, 8303, 31565: halving alpha costs 3.84 and 3.80 times as many.
    taken = np.array([first_below(e, 1e-13) for e in errors])
    np.testing.assert_allclose(taken[1:] / taken[:-1], [3.84, 3.80], rtol=0.05)
    # The tied baseline of T3.2 is still at 2.5e-5 sqrt(2) after 2e5 steps.
    assert tied_long_run(5)[0][-1] > 1e-5


@pytest.mark.parametrize(("max_rank", "lanes"), [(5, 3), pytest.param(10, 2, marks=pytest.mark.slow)])
def test_t3_8_the_rate_is_the_smallest_eigenvalue_of_the_gram_matrix(max_rank, lanes):
    # T3.8: log-error slope -eta lambda_min(F^T F), F the left factor at the end; 2 % for alpha <= 0.4.
    rates, _, smallest = untied_runs(max_rank, 40_000, lanes)
    np.testing.assert_allclose(rates, -ETA * smallest, rtol=0.02)


REBALANCE_ALPHAS = np.array([0.8, 0.4, 0.2, 0.1, 0.03, 0.01])
BETAS = np.array([0.5, 0.7, 1.0, 1.4])


@functools.cache
def rebalanced_scales(max_rank):
    """Errors for six initial scales at beta = 1."""
    return descend_lanes(REBALANCE_ALPHAS, max_rank, 600, beta=np.ones(len(REBALANCE_ALPHAS)))[0]


def test_t3_11_one_rebalancing_removes_the_dependence_on_the_initial_scale():
    # T3.11: iterations to 1e-13 with beta = 1 over twelve runs, k in {5, 10}: expected 463 to 480, spread below 5 %.
    taken = np.array([[first_below(e, 1e-13) for e in rebalanced_scales(k)] for k in (5, 10)])
    assert taken.max() / taken.min() < 1.05, taken
    np.testing.assert_allclose(taken, 471.5, rtol=0.05)
    # Without it the smallest of those scales that was run takes tens of thousands.
    assert untied_runs(5, 40_000, 3)[1][2][2000] > 1e-4


def test_t3_12_the_rate_after_rebalancing_against_beta():
    # T3.12: eta min(beta^2, sigma_r^2 / beta^2), derived; 5 %.
    errors, _, _ = descend_lanes(np.full(len(BETAS), 0.1), 5, 1500, beta=BETAS)
    rates = [log_rate(e, 1e-6, 1e-11) for e in errors]
    np.testing.assert_allclose(rates, -ETA * np.minimum(BETAS**2, SIGMA_R**2 / BETAS**2), rtol=0.05)
