"""One rule: data, weights and penalties in other units change neither the relative result nor the status."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, EVERYWHERE, OPERATORS, Case

import lrjax as lr
from lrjax import losses, status

KEY = jax.random.key(1)
STEPS = 10
# Units are taken out as powers of four, so that each factor gets a power of two: those leave every bit as it is.
EXACT = (-100, -66, 66, 100)
ODD = (-99, 65)
DOUBLE = (-664, 664)


def _ridge(solver, loss, e: int, f: int):
    """A ridge has the units of the objective over those of what it penalises, squared."""
    if not isinstance(solver, lr.AlternatingMinimization):
        return solver
    power = f + e * loss.degree - e * (2 if solver.orthonormalize else 1)
    return dataclasses.replace(solver, ridge=solver.ridge * 2.0**power)


def _solve(problem, solver, e=0, f=0, num_steps=STEPS):
    """The solve with measurements times `2^e` and weights times `2^f`; the factors back in the old units, and more."""
    dtype = problem.y.dtype
    y = jnp.ldexp(problem.y, e)
    weights = None if problem.weights is None else jnp.ldexp(problem.weights, f)
    loss = losses.Huber(problem.loss.delta * 2.0**e) if isinstance(problem.loss, losses.Huber) else problem.loss
    solver = _ridge(solver, loss, e, f)
    solution = lr.solve(lr.Problem(problem.operator, y, weights, loss), solver, KEY, num_steps=num_steps)
    split = getattr(getattr(solver, "solver", solver), "unitless", None)
    left, right = {None: (e // 2, e - e // 2), "left": (0, e), "right": (e, 0)}[split]
    assert solution.factors.left.dtype == dtype
    back = jnp.ldexp(solution.factors.left, -left), jnp.ldexp(solution.factors.right, -right)
    return *map(np.asarray, back), int(solution.status), np.asarray(solution.trace["residual"])


def _same(problem, solver, exponents, odd=(), weights=True):
    reference = _solve(problem, solver)
    assert np.abs(reference[0]).max() > 0
    assert reference[2] in (status.RUNNING, status.CONVERGED)
    for e, f in [(e, 0) for e in exponents] + [(0, f) for f in exponents if weights]:
        for seen, expected in zip(_solve(problem, solver, e, f), reference, strict=True):
            np.testing.assert_array_equal(seen, expected, err_msg=f"measurements 2^{e}, weights 2^{f}")
    for e in odd:
        left, right, _, _ = _solve(problem, solver, e)
        np.testing.assert_allclose(
            left @ right.T,
            reference[0] @ reference[1].T,
            rtol=1e-3,
            atol=1e-3 * np.abs(reference[0] @ reference[1].T).max(),
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_solver(case: Case):
    _same(case.problem(case.home), case.solver, EXACT, ODD)


@pytest.mark.parametrize("operator", [name for name in OPERATORS if name in EVERYWHERE])
def test_every_operator(operator):
    problem = Case("any", lr.ScaledGradientDescent(max_rank=2), "damping").problem(operator)
    _same(problem, lr.ScaledGradientDescent(max_rank=2), (-100, 100))


@pytest.mark.parametrize(
    "loss", [losses.Squared(), losses.Absolute(), losses.Huber(0.1)], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize(
    "solver",
    [lr.AlternatingMinimization(max_rank=2, ridge=0.01), lr.GradientDescent(max_rank=2, step_size=0.1)],
    ids=lambda x: type(x).__name__,
)
def test_every_loss(solver, loss):
    problem = dataclasses.replace(CASES[0].problem("sampled"), loss=loss)
    _same(problem, solver, (-100, 100))


@pytest.mark.parametrize("name", ["altmin", "altmin_l1", "gauss_newton_robust", "irls", "soft_impute", "projections"])
def test_double_precision(name, x64):
    (case,) = (case for case in CASES if case.name == name)
    _same(case.problem(case.home, jnp.float64), case.solver, DOUBLE)


def test_settings_with_units():
    """Steps, scales and penalties that are absolute, given in the units of the data, do what they did."""
    problem = lr.synthetic.matrix_sensing(KEY, shape=(6, 5), rank=2, num_measurements=60)[0]
    e, unit = 40, 2.0**40
    pairs = [
        (
            lr.GradientDescent(max_rank=2, relative=False, step_size=0.2, initial_scale=0.3),
            lr.GradientDescent(max_rank=2, relative=False, step_size=0.2 / unit, initial_scale=0.3 * unit**0.5),
        ),
        (
            lr.SoftImpute(max_rank=4, relative=False, penalty=1.0),
            lr.SoftImpute(max_rank=4, relative=False, penalty=unit),
        ),
    ]
    for plain, scaled in pairs:
        one = lr.solve(problem, plain, KEY, num_steps=5)
        two = lr.solve(dataclasses.replace(problem, y=jnp.ldexp(problem.y, e)), scaled, KEY, num_steps=5)
        np.testing.assert_allclose(jnp.ldexp(two.factors.dense(), -e), one.factors.dense(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(two.trace["objective"] / unit**2, one.trace["objective"], rtol=1e-5)
        assert int(one.status) == int(two.status)
    robust = lr.synthetic.matrix_sensing(KEY, shape=(6, 5), rank=2, num_measurements=60, corruption=0.1)[0]
    optimum = float(jnp.mean(jnp.abs(robust.y))) / 20
    polyak = lr.step_sizes.Polyak
    far = dataclasses.replace(robust, y=jnp.ldexp(robust.y, e))
    for solver in (lr.SubgradientMethod(max_rank=2), lr.ScaledSubgradient(max_rank=2)):
        one = lr.solve(robust, dataclasses.replace(solver, step_size=polyak(optimum=optimum)), KEY, num_steps=5)
        two = lr.solve(far, dataclasses.replace(solver, step_size=polyak(optimum=optimum * unit)), KEY, num_steps=5)
        np.testing.assert_array_equal(jnp.ldexp(two.factors.left, -e // 2), one.factors.left)


def test_biases_in_other_units(x64):
    """The columns of ones stay ones, and the ridge weighs the offsets as it did: an objective of its own units."""
    truth = lr.synthetic.low_rank(KEY, (12, 9), 2, dtype=jnp.float64).dense() + jnp.arange(12.0)[:, None] - 3
    operator = lr.operators.Identity(matrix_shape=(12, 9))
    left, right = (jax.random.normal(k, (n, 4)) for k, n in zip(jax.random.split(KEY), (12, 9), strict=True))
    for unit in (1.0, 64.0):
        problem, ridge = lr.Problem(operator, unit * truth.ravel()), 0.1 * unit
        solver = lr.AlternatingMinimization(max_rank=4, ridge=ridge, biases=True, orthonormalize=False)
        found = lr.solve(problem, solver, KEY, num_steps=2000)
        np.testing.assert_array_equal(found.factors.left[:, -1], 1)
        np.testing.assert_array_equal(found.factors.right[:, -2], 1)

        def objective(factors, problem=problem, ridge=ridge):
            penalty = jnp.sum(factors.left[:, :-1] ** 2) + jnp.sum(factors.right.at[:, -2].set(0) ** 2)
            return 2 * problem.objective(factors) + ridge * penalty

        slope = jax.grad(objective)(found.factors)
        free = jnp.sum(slope.left[:, :-1] ** 2) + jnp.sum(slope.right.at[:, -2].set(0) ** 2)
        other = jax.grad(objective)(lr.Factors(left, right))
        assert free < 1e-10 * jnp.sum(other.left**2)


def test_norms_and_metrics():
    a, b = (lr.synthetic.low_rank(key, (7, 5), 2) for key in jax.random.split(KEY))
    scale = lambda x, e: lr.Factors(jnp.ldexp(x.left, e // 2), jnp.ldexp(x.right, e - e // 2))
    for e in (-100, 100):
        assert lr.metrics.relative_error(scale(a, e), scale(b, e)) == lr.metrics.relative_error(a, b)
        assert scale(a, e).norm() == jnp.ldexp(a.norm(), e)
        assert lr.metrics.relative_error(scale(a, e).dense(), scale(b, e)) == lr.metrics.relative_error(a.dense(), b)
        np.testing.assert_allclose(
            lr.metrics.subspace_distance(jnp.ldexp(a.left, e), b.left), lr.metrics.subspace_distance(a.left, b.left)
        )
        x, y, w = a.left[:, 0], b.left[:, 0], jnp.arange(1.0, 8)
        assert lr.metrics.rmse(jnp.ldexp(x, e), jnp.ldexp(y, e)) == jnp.ldexp(lr.metrics.rmse(x, y), e)
        assert lr.metrics.rmse(x, y, jnp.ldexp(w, e)) == lr.metrics.rmse(x, y, w)
        np.testing.assert_allclose(
            lr.metrics.scaled_error(jnp.ldexp(x, e), jnp.ldexp(y, -e)), lr.metrics.scaled_error(x, y), rtol=1e-5
        )
        problem = CASES[0].problem("dense")
        far = dataclasses.replace(problem, y=jnp.ldexp(problem.y, e), weights=jnp.ldexp(problem.weights, e))
        np.testing.assert_array_equal(
            far.relative_residual(far.residual(scale(a, e)) if e < 0 else jnp.ldexp(jnp.ones(60), e)),
            problem.relative_residual(problem.residual(a) if e < 0 else jnp.ones(60)),
        )
