"""Every solver on every operator: jit, vmap, derivatives, dtypes, traces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Case, pairs

import lrjax as lr
from lrjax import status
from lrjax.iteration import solve
from lrjax.testing import check_solver

KEY = jax.random.key(2)
FIRST = ("dense", "mask", "sampled", "rank_one", "identity")
GAUSS_NEWTON_FIRST = {("gauss_newton", "dense"), ("gauss_newton", "sampled")}
BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_keeps_the_promises_of_a_solver(case: Case):
    """Jit is eager, vmap over keys is a loop, the info is true; from the solver's own start."""
    check_solver(case.solver, case.problem("sampled" if "altmin" in case.name else case.home), KEY, num_steps=3)


def _compiles_long(case: Case, operator: str) -> bool:
    """Each block of the seeded ensemble draws random numbers in every derivative; the combinators delegate."""
    if case.name.startswith("gauss_newton") and (case.name, operator) not in GAUSS_NEWTON_FIRST:
        return True
    return case.name == "restarted" or (operator not in FIRST and case.name != "gd")


@pytest.mark.parametrize(("case", "operator"), pairs(slow=_compiles_long))
def test_vmap_and_derivatives(case: Case, operator: str):
    """In one program: vmap over measurements and a setting is a loop; both derivative modes match differences."""
    with jax.enable_x64(True):
        case = case.absolute
        problem, init = case.problem(operator, jnp.float64), case.start(jnp.float64)
        direction = np.random.default_rng(0).standard_normal(problem.y.shape)
        step = 1e-5

        def along(t):
            moved = lr.Problem(problem.operator, problem.y + t * direction, problem.weights, problem.loss)
            solver = case.with_parameter(0.1 + t)
            factors = lr.solve(moved, solver, KEY, num_steps=2, init=init).factors
            return jnp.sum(jnp.sin(factors.dense()))

        @jax.jit
        def everything(t):
            lanes = jax.vmap(along)(t + step * jnp.arange(-1.0, 2.0))
            alone, forward = jax.jvp(along, (t,), (jnp.ones_like(t),))
            return lanes, alone, forward, jax.grad(along)(t)

        lanes, alone, forward, reverse = (np.asarray(x) for x in everything(jnp.float64(0.0)))
        eps, scale = np.finfo(np.float64).eps, case.shape[0] * case.shape[1]
        assert abs(lanes[1] - alone) <= 1e4 * eps * scale
        central = (lanes[2] - lanes[0]) / (2 * step)
        # Central differences: error t^2 f''' and eps f / t, both below 1e-7 here.
        assert abs(forward - central) <= 1e-6 * (1 + abs(central)), (forward, reverse, central)
        assert abs(forward - reverse) <= 1e-9 * (1 + abs(central)), (forward, reverse, central)
        assert central != 0


@pytest.mark.parametrize(("case", "operator"), pairs())
def test_dtype_is_kept_under_x64_and_strict_promotion(case: Case, operator: str):
    with jax.enable_x64(True):
        problem = case.problem(operator, jnp.float32)
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            run = jax.jit(lambda p: lr.solve(p, case.solver, KEY, num_steps=2))
            solution = jax.eval_shape(run, problem)
    trace = {name: leaf for name, leaf in solution.trace.items() if name != "step"}
    assert {leaf.dtype for leaf in jax.tree.leaves((solution.factors, trace))} == {jnp.dtype("float32")}
    assert solution.status.dtype == solution.num_steps.dtype == jnp.int32


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_trace_serves_all_values(case: Case):
    problem = case.problem(case.home)
    solver = case.with_parameter(0.11)
    lr.solve(problem, solver, KEY, num_steps=2)
    before = solve._solve._cache_size()
    for value in (0.12, np.float64(0.13), jnp.float32(0.14)):
        lr.solve(problem, case.with_parameter(value), jax.random.key(7), num_steps=2)
    assert solve._solve._cache_size() == before


@pytest.mark.parametrize("name", ["gd", "scaled_gd", "subgradient_symmetric", "altmin"])
def test_vmap_over_a_solver_setting_is_a_loop(name: str):
    case = BY_NAME[name]
    problem, values = case.problem("dense"), jnp.array([0.02, 0.05, 0.1])
    run = lambda value: lr.solve(problem, case.with_parameter(value), KEY, num_steps=5).factors.dense()
    np.testing.assert_allclose(jax.vmap(run)(values), jnp.stack([run(v) for v in values]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["subgradient", "altmin_l1"])
@pytest.mark.parametrize("operator", ["dense", "mask"])
def test_vmap_over_corruption_and_problem_keys_is_a_loop(name: str, operator: str):
    case = BY_NAME[name]

    def trial(key, corruption):
        problem = case.draw(operator, key=key, corruption=corruption)
        return lr.solve(problem, case.solver, key, num_steps=4).factors.dense()

    keys, levels = jax.random.split(KEY, 3), jnp.array([0.0, 0.2, 0.4])
    loop = jnp.stack([trial(k, c) for k, c in zip(keys, levels, strict=True)])
    np.testing.assert_allclose(jax.vmap(trial)(keys, levels), loop, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "operator"),
    [(n, op) for n in ("gd", "gd_rebalance", "scaled_gd", "subgradient", "altmin") for op in ("dense", "mask")],
)
def test_masked_rank_is_the_smaller_solve(name: str, operator: str):
    """`rank` in `max_rank` columns, vmapped over ranks, follows the solve with exactly that many columns."""
    case, widest = BY_NAME[name], 4
    with jax.enable_x64(True):
        problem, dtype = case.problem(operator, jnp.float64), jnp.float64
        left = 0.3 * jax.random.normal(jax.random.key(0), (problem.shape[0], widest), dtype)
        right = 0.3 * jax.random.normal(jax.random.key(1), (problem.shape[1], widest), dtype)

        def padded(rank):
            mask = (jnp.arange(widest) < rank).astype(dtype)
            solver = dataclasses.replace(case.solver, max_rank=widest, rank=rank)
            init = lr.Factors(left * mask, right * mask)
            return lr.solve(problem, solver, KEY, num_steps=6, init=init).factors

        batch = jax.vmap(padded)(jnp.arange(1, widest + 1))
        for lane, rank in enumerate(range(1, widest + 1)):
            assert not np.any(batch.left[lane, :, rank:])
            solver = dataclasses.replace(case.solver, max_rank=rank)
            init = lr.Factors(left[:, :rank], right[:, :rank])
            alone = lr.solve(problem, solver, KEY, num_steps=6, init=init).factors.dense()
            np.testing.assert_allclose(batch.left[lane] @ batch.right[lane].T, alone, rtol=0, atol=1e-9)


def test_a_diverging_lane_leaves_the_others_alone():
    case = BY_NAME["gd"]
    problem = case.problem("dense")
    steps = jnp.full(64, 0.1).at[17].set(1e12)
    run = lambda step: lr.solve(problem, case.with_parameter(step), KEY, num_steps=30)
    batch = jax.vmap(run)(steps)
    alone = run(0.1)
    assert int(batch.status[17]) == status.NONFINITE
    assert bool(jnp.all(jnp.isfinite(batch.factors.left)))
    assert bool(jnp.all(jnp.isfinite(batch.trace["objective"])))
    others = np.delete(np.arange(64), 17)
    assert not np.any(np.asarray(batch.status)[others] == status.NONFINITE)
    dense = np.asarray(jax.vmap(lambda f: f.dense())(batch.factors))[others]
    np.testing.assert_allclose(dense, np.broadcast_to(alone.factors.dense(), dense.shape), rtol=0, atol=1e-5)
    with pytest.raises(status.SolveError, match=r"1 of 64 lanes .lane 17.*not finite"):
        batch.check()


@pytest.mark.parametrize(
    ("name", "operator"),
    [(n, op) for n in ("altmin", "gd", "scaled_gd", "subgradient") for op in ("dense", "sampled", "mask")]
    + [("projections", "identity"), ("projections", "mask"), ("svp", "sampled"), ("soft_impute", "mask")],
)
def test_zero_weight_is_not_measured(name: str, operator: str):
    """Junk in measurements of weight zero changes nothing, to the last bit."""
    case = BY_NAME[name]
    problem = case.problem(operator)
    weights = problem.weights.at[:5].set(0)

    def run(y):
        return lr.solve(lr.Problem(problem.operator, y, weights, problem.loss), case.solver, KEY, num_steps=3)

    junk = jnp.array([1e30, -1, jnp.nan, jnp.inf, 7])
    clean, spoiled = run(problem.y.at[:5].set(0)), run(problem.y.at[:5].set(junk))
    np.testing.assert_array_equal(clean.factors.dense(), spoiled.factors.dense())
