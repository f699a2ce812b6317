"""Exact recovery by every solver on every operator, each beside a baseline that must fail."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import operators, status, synthetic

KEY = jax.random.key(4)
RANK = 2
SHAPES = {"mask": (40, 30), "sampled": (40, 30), "seeded": (9, 7)}


def shape_for(operator, symmetric):
    """Oblong, unless symmetric; entries need room to be incoherent, drawing an ensemble again takes time."""
    if symmetric:
        return (7, 7) if operator == "seeded" else (16, 16)
    return SHAPES.get(operator, (20, 14))


def measurements(shape, rank, symmetric):
    """Eight per degree of freedom, roughly: `m = 8 r (n1 + n2)`, half of that if symmetric."""
    return 8 * rank * sum(shape) // (2 if symmetric else 1)


def operator(name, shape, rank, symmetric, dtype) -> Any:
    key, m = jax.random.key(8), measurements(shape, rank, symmetric)
    mask = np.random.default_rng(0).random(shape) < 0.5
    match name:
        case "dense":
            return operators.DenseEnsemble.gaussian(key, shape, m, symmetric=symmetric, dtype=dtype)
        case "seeded":
            return operators.SeededGaussianEnsemble.create(
                key, shape, m, symmetric=symmetric, dtype=dtype, block_size=50
            )
        case "rank_one":
            return operators.RankOneMeasurements.gaussian(key, shape, m, symmetric=symmetric, dtype=dtype)
        case "mask":
            return operators.EntryMask.from_mask(mask)
        case "sampled":
            rows, cols = np.nonzero(mask)
            return operators.SampledEntries.build(rows, cols, np.ones(len(rows), dtype), shape)[0]
        case _:
            return operators.Identity(matrix_shape=shape)


@dataclasses.dataclass(frozen=True)
class Row:
    """A solver that must recover, and the steps it gets."""

    solver: Any
    operator: str
    num_steps: int
    rank: int = RANK
    condition: float = 2.0
    corruption: float | None = None
    tolerance: float = 1e-12

    def __str__(self) -> str:
        inner = self.solver
        tied = "_symmetric" if getattr(inner, "symmetric", False) else ""
        spec = f"_k{inner.max_rank}" if inner.max_rank != self.rank else ""
        return f"{type(inner).__name__}{tied}-{self.operator}-r{self.rank}{spec}-kappa{self.condition:g}"

    def problem(self, dtype="float64"):
        symmetric = getattr(self.solver, "symmetric", False)
        shape = shape_for(self.operator, symmetric)
        truth = synthetic.low_rank(
            KEY, shape, self.rank, condition_number=self.condition, symmetric=symmetric, dtype=dtype
        )
        op = operator(self.operator, shape, self.rank, symmetric, dtype)
        return synthetic.from_truth(jax.random.key(1), op, truth, corruption=self.corruption), truth

    def error(self, solver=None, dtype="float64", problem=None, num_steps=None):
        own, truth = self.problem(dtype)
        steps = self.num_steps if num_steps is None else num_steps
        solver = self.solver if solver is None else solver
        solution = lr.solve(
            own if problem is None else problem, solver, KEY, num_steps=steps, record_every=steps, truth=truth
        )
        return np.asarray(solution.trace["relative_error"]), solution


def altmin(operator, **changes):
    settings = dict(num_steps=200, solver=lr.AlternatingMinimization(max_rank=changes.get("rank", RANK)))
    return Row(operator=operator, **(settings | changes))


def gd(operator, symmetric=False, **changes):
    solver = lr.GradientDescent(max_rank=changes.get("rank", RANK), symmetric=symmetric, **changes.pop("solver", {}))
    return Row(operator=operator, solver=solver, **({"num_steps": 2000} | changes))


def scaled(operator, symmetric=False, max_rank=None, **changes):
    rank = max_rank or changes.get("rank", RANK)
    solver = lr.ScaledGradientDescent(max_rank=rank, symmetric=symmetric, **changes.pop("solver", {}))
    return Row(operator=operator, solver=solver, **({"num_steps": 500} | changes))


def svp(operator, **changes):
    settings = dict(num_steps=400, solver=lr.SingularValueProjection(max_rank=changes.get("rank", RANK)))
    return Row(operator=operator, **(settings | changes))


AltMin = lr.AlternatingMinimization
CLEAN = [
    svp("dense"),
    svp("sampled"),
    pytest.param(svp("mask", condition=10.0, num_steps=1000), marks=pytest.mark.slow),
    pytest.param(svp("rank_one", rank=1, condition=1.0), marks=pytest.mark.slow),
    altmin("dense", condition=10.0),
    # The ensemble is drawn again in each conjugate gradient step of each half: long to compile.
    pytest.param(altmin("seeded", rank=1, condition=1.0), marks=pytest.mark.slow),
    altmin("mask", condition=10.0),
    altmin("sampled"),
    altmin("rank_one"),
    altmin("identity", solver=AltMin(max_rank=RANK, start="random")),
    gd("dense"),
    gd("seeded", rank=1, condition=1.0),
    gd("mask"),
    gd("sampled"),
    gd("rank_one"),
    gd("identity", rank=1, condition=1.0),
    gd("identity", symmetric=True),
    scaled("dense", condition=10.0),
    scaled("dense", symmetric=True, max_rank=2 * RANK, num_steps=2000),
    scaled("seeded", rank=1, condition=1.0),
    scaled("mask", rank=1, condition=1.0),
    scaled("sampled", condition=10.0, num_steps=1000),
    scaled("rank_one"),
    scaled("identity", symmetric=True, condition=10.0),
]


@pytest.mark.parametrize("row", CLEAN, ids=str)
def test_recovers_exactly_and_stops_by_itself(row: Row):
    """Relative error 1e-12 in float64; the start is far off and one column less cannot do it."""
    with jax.enable_x64(True):
        errors, solution = row.error()
        assert errors[1] <= row.tolerance, (errors, solution.num_steps)
        # The spectral start of fully observed data is the answer; from anywhere else there is a way to go.
        assert errors[0] > 1e-2 or (row.operator == "identity" and errors[0] < 1e-12)
        # tolerance=None notices the rounding level; only symmetric over-specified runs may still creep.
        assert int(solution.status) == status.CONVERGED, (int(solution.num_steps), solution.trace["residual"])
        solution.check()


@pytest.mark.parametrize("row", [altmin("mask", condition=10.0), gd("dense"), scaled("dense", condition=10.0)], ids=str)
def test_one_column_less_fails(row: Row):
    """The best rank-1 approximation of a rank-2 matrix is its floor: passing above means something."""
    with jax.enable_x64(True):
        small = dataclasses.replace(row.solver, max_rank=RANK - 1)
        errors, _ = row.error(small)
        _, truth = row.problem()
        s = truth.svd()[1]
        assert errors[1] >= 0.999 * float(s[1] / jnp.linalg.norm(s))


FLOAT32 = [
    # One hundred epsilons of residual times the condition of the measurements (at most 3 here): well below 1e-6 ...
    (altmin("dense"), 1e-6),
    (gd("dense"), 1e-6),
    (scaled("dense", condition=10.0), 1e-6),
    # ... but not for half of the entries, where thin rows are worse conditioned, and not for rank-one measurements:
    # their Gram matrix has the trace direction in it, of size n.
    (altmin("sampled"), 3e-6),
    (altmin("rank_one"), 5e-6),
]


@pytest.mark.parametrize(("row", "tolerance"), FLOAT32, ids=str)
def test_recovers_to_rounding_in_float32(row: Row, tolerance):
    errors, _ = row.error(dtype="float32")
    assert errors[1] <= tolerance


# --- gross outliers --------------------------------------------------------------------------------------------------


def subgradient(operator, symmetric=False, max_rank=None, **changes):
    solver = lr.SubgradientMethod(max_rank=max_rank or changes.get("rank", RANK), symmetric=symmetric)
    return Row(operator=operator, solver=solver, **(dict(num_steps=1000, corruption=0.15) | changes))


ROBUST = [
    subgradient("dense"),
    subgradient("dense", symmetric=True),
    pytest.param(subgradient("seeded", symmetric=True, rank=1, condition=1.0, num_steps=500), marks=pytest.mark.slow),
    subgradient("rank_one"),
    subgradient("identity", num_steps=2000, tolerance=1e-10),
    # Over-specified: the error ends at a floor set by the square of the start, not at rounding.
    subgradient("dense", symmetric=True, max_rank=16, num_steps=1000, tolerance=1e-7),
]


@pytest.mark.parametrize("row", ROBUST, ids=str)
def test_recovers_under_outliers(row: Row):
    with jax.enable_x64(True):
        errors, solution = row.error()
        assert errors[1] <= row.tolerance, (errors, int(solution.num_steps))
        assert errors[0] > 0.5


@pytest.mark.parametrize(
    ("max_rank", "symmetric"), [(2, False), pytest.param(4, False, marks=pytest.mark.slow), (4, True)]
)
def test_preconditioning_makes_the_subgradient_method_blind_to_the_condition_number(max_rank, symmetric):
    """Steps to 1e-6 at condition 1, 20 and 100 differ by a fifth; the plain method gets nowhere near at 100."""
    with jax.enable_x64(True):
        shape = (30, 30) if symmetric else (30, 24)

        def run(condition, solver):
            problem, truth = synthetic.matrix_sensing(
                KEY,
                shape=shape,
                rank=2,
                num_measurements=900,
                symmetric=symmetric,
                condition_number=condition,
                corruption=0.15,
            )
            return lr.solve(problem, solver, KEY, num_steps=300, truth=truth).trace["relative_error"]

        scaled = lr.ScaledSubgradient(max_rank=max_rank, symmetric=symmetric)
        errors = np.asarray(jax.vmap(lambda c: run(c, scaled))(jnp.array([1.0, 20.0, 100.0])))
        assert errors[:, -1].max() < 1e-6
        assert errors[:, 0].min() > 0.1
        steps = np.argmax(errors < 1e-6, axis=1)
        assert steps.max() <= 1.2 * steps.min(), steps
        plain = run(100.0, lr.SubgradientMethod(max_rank=max_rank, symmetric=symmetric))
        assert float(plain[-1]) > 1e-3


def test_the_squared_loss_fails_under_outliers():
    """Same problem, same number of steps, squared loss: ten times the typical size on 15 % of the measurements."""
    with jax.enable_x64(True):
        row = ROBUST[0]
        problem, _ = row.problem()
        squared = lr.Problem(problem.operator, problem.y)
        for solver in (AltMin(max_rank=RANK), lr.ScaledGradientDescent(max_rank=RANK)):
            errors, _ = row.error(solver, problem=squared, num_steps=200)
            assert errors[1] > 0.3


def test_completion_under_outliers():
    """Half of the entries of 100 x 80, a tenth of them wrong: the geometric schedule, beside squared loss."""
    with jax.enable_x64(True):
        shape = (100, 80)
        problem, truth = synthetic.matrix_completion(
            KEY, shape=shape, rank=2, fraction=0.5, corruption=0.1, dtype="float64"
        )
        rows, cols = np.nonzero(np.asarray(problem.operator.mask))
        op, y = operators.SampledEntries.build(rows, cols, np.asarray(problem.y).reshape(shape)[rows, cols], shape)
        problem = lr.Problem(op, y, loss=problem.loss)
        solver = lr.SubgradientMethod(max_rank=2)
        solution = lr.solve(problem, solver, KEY, num_steps=2000, record_every=2000, truth=truth)
        assert float(solution.trace["relative_error"][-1]) <= 1e-10
        squared = lr.Problem(problem.operator, problem.y)
        spoiled = lr.solve(squared, AltMin(max_rank=2), KEY, num_steps=50, record_every=50, truth=truth)
        assert float(spoiled.trace["relative_error"][-1]) > 0.3


def test_nothing_is_recovered_from_outliers_alone():
    with jax.enable_x64(True):
        row = subgradient("dense", corruption=1.0, num_steps=300)
        errors, _ = row.error()
        assert errors[1] > 0.5


def test_the_line_search_holds_where_a_fixed_step_diverges():
    """Few entries of 300 x 200: rows with more than their share make the step 0.5 of the theory blow up."""
    with jax.enable_x64(True):
        key = jax.random.key(3)
        problem, truth = synthetic.matrix_completion(
            key, shape=(300, 200), rank=2, oversampling=4.0, condition_number=10.0, dtype="float64"
        )
        run = lambda step_size: lr.solve(
            problem, lr.ScaledGradientDescent(max_rank=2, step_size=step_size), key, num_steps=600, truth=truth
        )
        searched, fixed = run(None), run(0.5)
        assert float(searched.trace["relative_error"][-1]) < 1e-6
        objective = np.asarray(searched.trace["objective"])
        assert np.all(np.diff(objective) <= 1e-12 * objective[0])
        assert not float(fixed.trace["relative_error"][-1]) < 1


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_fixed_damping_is_that_share_of_the_spectral_norm(symmetric):
    """Read off the measurements, whatever the start: one step from a tiny one, against the formula."""
    with jax.enable_x64(True):
        key, shape = jax.random.key(5), (9, 9 if symmetric else 7)
        truth = synthetic.low_rank(key, shape, 2, condition_number=3.0, symmetric=symmetric, dtype="float64")
        truth = lr.Factors(3 * truth.left, truth.right * (3 if symmetric else 1))
        problem = synthetic.from_truth(key, operators.Identity(matrix_shape=shape), truth)
        start = lr.initial.small_random(key, shape, 3, scale=1e-3, symmetric=symmetric, dtype="float64")
        solver = lr.ScaledGradientDescent(
            max_rank=3, symmetric=symmetric, step_size=0.5, damping_rule="fixed", damping=0.2
        )
        solution = lr.solve(problem, solver, key, num_steps=1, init=start)
        left, right, x = np.asarray(start.left), np.asarray(start.right), np.asarray(truth.dense())
        inverse = np.linalg.inv(right.T @ right + 0.2 * np.linalg.norm(x, 2) * np.eye(3))
        expected = left - 0.5 * (left @ right.T - x) @ right @ inverse
        assert np.allclose(solution.factors.left, expected, rtol=1e-9, atol=1e-12)


def test_too_few_measurements_fail():
    """Fewer measurements than degrees of freedom: the fit is exact, the matrix is another one."""
    with jax.enable_x64(True):
        shape = (20, 14)
        truth = synthetic.low_rank(KEY, shape, RANK, dtype="float64")
        op = operators.DenseEnsemble.gaussian(KEY, shape, RANK * (sum(shape) - RANK) // 2, dtype="float64")
        problem = synthetic.from_truth(KEY, op, truth)
        solution = lr.solve(problem, AltMin(max_rank=RANK), KEY, num_steps=200, record_every=200, truth=truth)
        assert float(solution.trace["residual"][-1]) < 1e-6
        assert float(solution.trace["relative_error"][-1]) > 0.3
