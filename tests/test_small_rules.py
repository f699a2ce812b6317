"""Rules of one line each, which larger tests do not notice when they are broken; and the step rules one by one."""

import ast
import dataclasses
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import initial, losses, metrics, operators, status, step_sizes
from lrjax.completion import rank_selection
from lrjax.core.pytree import tree_isfinite
from lrjax.linalg.krylov import conjugate_gradient
from lrjax.problems.factors import best_rank
from lrjax.sketching import row_sampling
from lrjax.testing import check_adjoint

KEY = jax.random.key(3)

# --- products -----------------------------------------------------------------------------------------------------

PRODUCTS = {"dot", "einsum", "inner", "matmul", "tensordot", "vdot"}


def _hasty(tree):
    """Products that name no precision, and so keep 11 bits of float32 on some accelerators: source and line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield node.lineno, ast.unparse(node)
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr in PRODUCTS and ast.unparse(called.value) == "jnp":
            if not any(word.arg == "precision" for word in node.keywords):
                yield node.lineno, ast.unparse(node)


def test_every_product_asks_for_full_precision():
    on_host = ("host.", "host @", "by_row @", "x @ beta", "x.T @")
    sparse = "self.matrix"  # under `default_matmul_precision`
    package = Path(lr.__file__).parent
    found = [
        (str(path.relative_to(package)), *where)
        for path in sorted(package.rglob("*.py"))
        for where in _hasty(ast.parse(path.read_text()))
    ]
    left = [f for f in found if not f[2].startswith((*on_host, sparse))]
    assert not left


# --- step rules, against a recursion in NumPy ------------------------------------------------------------------------


def _mean(values, weights):
    return (weights * values).sum() / weights.sum()


def _quantile(values, weights, q):
    ordered = np.sort(values[weights > 0])
    return ordered[int(np.floor(q * (len(ordered) - 1)))]


# Size of a step from its number, the residual and the data, in the units of `operators.Identity`.
RULES = {
    "constant": (step_sizes.Constant(value=0.01), lambda t, r, y, w: 0.01),
    "a number": (0.01, lambda t, r, y, w: 0.01),
    "diminishing": (step_sizes.Diminishing(value=0.02, power=0.7), lambda t, r, y, w: 0.02 * (t + 1.0) ** -0.7),
    "geometric": (step_sizes.Geometric(value=0.02, decay=0.9), lambda t, r, y, w: 0.02 * 0.9**t),
    "normalized": (
        step_sizes.ResidualNormalized(value=0.02),
        lambda t, r, y, w: 0.02 * _mean(abs(r), w) / _mean(abs(y), w),
    ),
    "quantile": (
        step_sizes.ResidualQuantile(value=0.02, quantile=0.6),
        lambda t, r, y, w: 0.02 * _quantile(abs(r), w, 0.6) / _quantile(abs(y), w, 0.6),
    ),
    "median": (
        step_sizes.median_residual(value=0.02),
        lambda t, r, y, w: 0.02 * _quantile(abs(r), w, 0.5) / _quantile(abs(y), w, 0.5),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_step_rules_are_the_recursion(name):
    rule, size = RULES[name]
    rng = np.random.default_rng(0)
    n1, n2 = 6, 5
    y, weights = rng.standard_normal(n1 * n2), rng.uniform(0.5, 1.5, n1 * n2)
    weights[3] = 0
    left, right = 0.5 * rng.standard_normal((n1, 2)), 0.5 * rng.standard_normal((n2, 2))
    single = lambda x: jnp.asarray(x, jnp.float32)
    problem = lr.Problem(operators.Identity(matrix_shape=(n1, n2)), single(y), single(weights), losses.Absolute())
    solver = lr.SubgradientMethod(max_rank=2, step_size=rule, check_budget=False)
    solution = lr.solve(problem, solver, KEY, num_steps=5, init=lr.Factors(single(left), single(right)))
    for t in range(5):
        r = (left @ right.T).ravel() - y
        z = (weights * np.sign(r) / weights.sum()).reshape(n1, n2)
        # One entry of the matrix weighs 1 / (n1 n2) in the mean, whose root is the unit of the norm.
        eta = size(t, r, y, weights) * np.sqrt(n1 * n2)
        np.testing.assert_allclose(solution.trace["step_size"][t + 1], eta, rtol=1e-5)
        left, right = left - eta * z @ right, right - eta * z.T @ left
    np.testing.assert_allclose(solution.factors.left, left, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(solution.factors.right, right, rtol=1e-4, atol=1e-6)


# --- classes ---------------------------------------------------------------------------------------------------------


def _classes():
    """Every dataclass of the package that JAX takes apart."""
    for info in pkgutil.walk_packages(lr.__path__, "lrjax."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == info.name:
                yield value


def test_structures_of_different_classes_differ():
    """Where they were equal, `jit` ran a geometric rule's numbers through the program of a diminishing one."""
    seen = {}
    for cls in _classes():
        fields = dataclasses.fields(cls)
        tree = object.__new__(cls)
        vars(tree).update({field.name: "x" if field.metadata.get("static") else 1.0 for field in fields})
        if not jax.tree_util.all_leaves([tree]):  # JAX takes it apart
            kind = sum(not field.metadata.get("static", False) for field in fields), len(fields)
            seen.setdefault(kind, []).append(jax.tree.structure(tree))
    assert max(map(len, seen.values())) > 10
    for structures in seen.values():
        assert all(a != b for i, a in enumerate(structures) for b in structures[:i])


# --- loops and statuses ----------------------------------------------------------------------------------------------


@operators.pytree
class Fixed:
    """A solver whose factors at step `t` are `values[t]` times ones."""

    values: jax.Array
    rank: int | None = None
    max_rank: int = jax.tree.static(default=1)

    def init(self, problem, key, factors=None):
        return self._at(problem, jnp.zeros((), jnp.int32))

    def step(self, problem, state, key):
        return self._at(problem, state.inner + 1), status.RUNNING + 0 * state.inner

    def _at(self, problem, t):
        n1, n2 = problem.shape
        factors = lr.Factors(self.values[t] * jnp.ones((n1, self.max_rank)), jnp.ones((n2, self.max_rank)))
        info = {"objective": problem.objective(factors), "residual": problem.objective(factors)}
        return lr.solvers.wrappers.WrappedState(factors=factors, info=info, inner=t)


@operators.pytree
class Kink:
    """One step from `p` to zero, where the derivatives of a further step are infinite, by the state and by `p`."""

    p: float | jax.Array
    max_rank: int = jax.tree.static(default=1)

    def init(self, problem, key, factors=None):
        return self._at(jnp.asarray(self.p))

    def step(self, problem, state, key):
        x = state.factors.left[0, 0]
        new = x - self.p + 0 * jnp.sqrt(x * self.p)
        return self._at(new), jnp.where(new <= 0, status.CONVERGED, status.RUNNING)

    def _at(self, x):
        factors = lr.Factors(jnp.reshape(x, (1, 1)), jnp.ones((1, 1)))
        return lr.solvers.wrappers.WrappedState(factors=factors, info={"objective": x, "residual": x}, inner=x)


@pytest.mark.parametrize("record_every", [1, 4])
def test_steps_that_a_finished_lane_does_not_take_have_no_slope(record_every):
    problem = lr.Problem(operators.Identity(matrix_shape=(1, 1)), jnp.ones(1))

    def end(p):
        solution = lr.solve(problem, Kink(p=p), KEY, num_steps=4, record_every=record_every)
        return solution.factors.left[0, 0] + p**2

    assert float(jax.grad(end)(1.5)) == 3.0


def test_only_convergence_passes_where_it_is_required():
    for code in range(len(status.MESSAGES)):
        if code == status.CONVERGED:
            status.raise_if_failed(code, require_convergence=True)
        else:
            with pytest.raises(status.SolveError):
                status.raise_if_failed(code, require_convergence=True)
        if code in (status.CONVERGED, status.RUNNING):
            status.raise_if_failed(code)
        else:
            with pytest.raises(status.SolveError):
                status.raise_if_failed(code)


def test_early_stopping_waits_for_five_steps_and_no_longer():
    rows, cols = np.nonzero(np.ones((6, 5)))
    # The error is |value - 1|: the step after four that do not improve on 0.1, and one after five.
    for values, best, taken in (([0, 0.9, 0.5, 0.5, 0.5, 0.5, 1.0, 0.5], 6, 7), ([0, 0.9, *[0.5] * 5, 1.0], 1, 6)):
        solver = Fixed(values=jnp.asarray(values, jnp.float32))
        done = lr.complete(
            rows,
            cols,
            np.ones(30, np.float32),
            (6, 5),
            rank=1,
            key=KEY,
            solver=solver,
            num_steps=7,
            holdout=0.3,
            early_stopping=True,
        )
        assert int(done.solution.num_steps) == best
        assert int(done.solution.trace["step"][-1]) == taken


def test_a_start_that_is_not_finite_is_not_repaired():
    """Also where the first step would lead to finite numbers."""
    problem = lr.Problem(operators.Identity(matrix_shape=(5, 4)), jnp.ones(20))
    solution = lr.solve(problem, Fixed(values=jnp.array([jnp.nan, 1.0, 1.0])), KEY, num_steps=2)
    assert (int(solution.status), int(solution.num_steps)) == (status.INVALID, 0)


def test_one_number_that_is_not_finite_is_enough():
    tree = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.array([1, 2]), "c": jnp.ones(3)}
    assert not bool(tree_isfinite(tree))
    assert bool(tree_isfinite({**tree, "a": jnp.ones(2)}))


@operators.pytree
class Dice:
    """Each factor is a draw from the key that it was handed."""

    max_rank: int = jax.tree.static(default=1)

    def init(self, problem, key, factors=None):
        factors = lr.Factors(jax.random.uniform(key, (1, 1)), jnp.ones((1, 1)))
        info = {"objective": problem.objective(factors), "residual": factors.left[0, 0]}
        return lr.solvers.wrappers.WrappedState(factors=factors, info=info, inner=None)

    def step(self, problem, state, key):
        return self.init(problem, key), status.RUNNING + 0 * jnp.int32(1)


def test_the_start_and_each_step_have_a_key_of_their_own():
    problem = lr.Problem(operators.Identity(matrix_shape=(1, 1)), jnp.ones(1))
    seen = lr.solve(problem, Dice(), KEY, num_steps=3).trace["residual"]
    first, others = jax.random.split(KEY)
    keys = [first, *(jax.random.fold_in(others, t) for t in range(3))]
    np.testing.assert_array_equal(seen, [jax.random.uniform(key, (1, 1))[0, 0] for key in keys])


def test_weights_count_and_what_has_none_is_not_there():
    y, weights = np.array([1.0, np.nan, 3.0, -2.0], np.float32), np.array([2.0, 0.0, 1.0, 0.5], np.float32)
    problem = lr.Problem(operators.Identity(matrix_shape=(2, 2)), jnp.asarray(y), jnp.asarray(weights))
    factors = lr.Factors(jnp.array([[1.0], [2.0]]), jnp.array([[3.0], [4.0]]))
    residual = np.array([3.0 - 1, 0, 6 - 3, 8 + 2])
    np.testing.assert_allclose(problem.residual(factors), residual)
    np.testing.assert_allclose(problem.objective(factors), 0.5 * (weights * residual**2).sum())
    z = (weights * residual).reshape(2, 2)
    left, right = problem.gradient(factors)
    np.testing.assert_allclose(left, z @ [[3.0], [4.0]])
    np.testing.assert_allclose(right, z.T @ [[1.0], [2.0]])
    size = np.sqrt((weights * np.nan_to_num(y) ** 2).sum())
    relative = problem.relative_residual(problem.residual(factors))
    np.testing.assert_allclose(relative, np.sqrt((weights * residual**2).sum()) / size, rtol=1e-6)


def test_descent_is_not_done_while_the_free_part_moves():
    start = lr.Factors(0.1 * jnp.ones((4, 1)), 0.1 * jnp.ones((3, 1)))
    objective = lambda x, free: jnp.sum((x - start.dense()) ** 2) + jnp.sum((free - 1) ** 2)
    found = lr.rank_projected_descent(
        objective, start, jnp.zeros(2), rank=1, step_size=0.1, num_steps=10, tolerance=1e-3
    )
    assert (int(found.status), int(found.num_steps)) == (status.RUNNING, 10)
    np.testing.assert_allclose(found.free, 1 - 0.8**10, rtol=1e-5)


# --- the choice of the rank ------------------------------------------------------------------------------------------


def _chosen(losses):
    return int(rank_selection._choose(jnp.asarray(losses, jnp.float32), jnp.float32(100), jnp.float32(0.05))[0])


def test_the_smallest_rank_that_is_within_the_spread_of_the_best():
    rng = np.random.default_rng(0)
    best = np.full(rank_selection.GROUPS, 1.0)
    uneven = 0.4 * rng.permutation(np.repeat([-1.0, 1.0], rank_selection.GROUPS // 2))
    # 2 above the best in all, beyond the tolerance: (1 + 0.05)^2 of 16 is 17.64.
    above = best + 2 / rank_selection.GROUPS
    assert _chosen([above, best]) == 2  # evenly above it: no chance of the split
    # The sum over 16 groups of a difference that varies by 0.413 has a spread of 4 x 0.413 = 1.65, and of 2.07.
    assert _chosen([above + uneven, best]) == 2
    assert _chosen([above + 1.25 * uneven, best]) == 1
    assert _chosen([best + 1.6 / rank_selection.GROUPS, best]) == 1  # within the tolerance


# --- starts and projections ------------------------------------------------------------------------------------------


def test_the_gain_is_the_energy_of_one_entry():
    """Signs measured by twice the identity have the energy 4 in each entry, whatever the signs."""
    operator = operators.scaled(operators.Identity(matrix_shape=(6, 5)), 2.0)
    problem = lr.Problem(operator, jnp.ones(30))
    assert float(initial.gain(problem, KEY, symmetric=False)) == 4.0


def test_trimming_leaves_out_rows_of_more_than_twice_the_mean():
    rng = np.random.default_rng(0)
    mask = np.zeros((8, 12), bool)
    mask[0] = True  # 12 entries, where the others have 2 and the mean is 3.25
    for i in range(1, 8):
        mask[i, [(2 * i) % 12, (2 * i + 1) % 12]] = True
    x = rng.standard_normal((8, 12))
    problem = lr.Problem(operators.EntryMask.from_mask(mask), jnp.asarray((mask * x).ravel(), jnp.float32))
    start = initial.spectral(problem, 2, KEY, trim=True)
    kept = mask * x
    kept[0] = 0
    u, s, vt = np.linalg.svd(kept)
    best = (u[:, :2] * s[:2]) @ vt[:2]
    fit = (mask * best * x).sum() / (mask * best**2).sum()  # the start is scaled to fit all that was measured
    np.testing.assert_allclose(start.dense(), fit * best, rtol=1e-4, atol=1e-5)


def test_the_derivative_of_the_best_approximation():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        left, right, a, b = (rng.standard_normal(size) for size in ((6, 4), (5, 4), (6, 4), (5, 4)))
        at = lambda t: lr.Factors(jnp.asarray(left + t * a), jnp.asarray(right + t * b))
        slope = jax.jvp(lambda t: best_rank(at(t), 2).dense(), (0.0,), (1.0,))[1]

        def cut(t):
            u, s, vt = np.linalg.svd((left + t * a) @ (right + t * b).T)
            return (u[:, :2] * s[:2]) @ vt[:2]

        np.testing.assert_allclose(slope, (cut(1e-6) - cut(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-7)


def test_momentum_of_soft_impute_is_that_of_fista():
    """All columns are kept, so that the subspaces are the whole space and each step is a proximal one."""
    rng = np.random.default_rng(0)
    y, weights, penalty = rng.standard_normal((6, 5)), rng.uniform(0.2, 1.0, (6, 5)), 0.3
    single = lambda x: jnp.asarray(x.ravel(), jnp.float32)
    problem = lr.Problem(operators.Identity(matrix_shape=(6, 5)), single(y), single(weights))
    solver = lr.SoftImpute(max_rank=5, penalty=penalty, decay=0.0, relative=False)
    solution = lr.solve(problem, solver, KEY, num_steps=6)
    value = lambda x: 0.5 * (weights * (x - y) ** 2).sum() + penalty * np.linalg.svd(x, compute_uv=False).sum()
    now = before = np.zeros((6, 5))
    momentum, rate = 1.0, 1 / weights.max()
    for k in range(6):
        t = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = now + (momentum - 1) / t * (now - before)
        u, s, vt = np.linalg.svd(ahead - rate * weights * (ahead - y), full_matrices=False)
        before, now = now, (u * np.maximum(s - rate * penalty, 0)) @ vt
        momentum = 1.0 if value(now) > value(before) else t
        np.testing.assert_allclose(solution.trace["penalized"][k + 1], value(now), rtol=1e-5)
    np.testing.assert_allclose(solution.factors.dense(), now, rtol=1e-4, atol=1e-5)


def test_the_first_step_of_a_schedule_that_is_long_enough():
    """All signs agree: the one value is 1 / sqrt(n1 n2), and the growth one per unit of step."""
    problem = lr.Problem(operators.Identity(matrix_shape=(20, 15)), jnp.ones(300), None, losses.Absolute())
    for scale, first in ((1.0, 0.3), (1e-5, 1.5 * np.log(1e5) * 0.02)):
        solver = lr.SubgradientMethod(max_rank=2, initial_scale=scale, hidden_scale=scale)
        solution = lr.solve(problem, solver, KEY, num_steps=1)
        np.testing.assert_allclose(solution.trace["step_size"][1], first * np.sqrt(300), rtol=1e-4)


def test_rebalancing_keeps_the_matrix():
    rng = np.random.default_rng(0)
    single = lambda *size: jnp.asarray(rng.standard_normal(size), jnp.float32)
    problem = lr.Problem(operators.Identity(matrix_shape=(6, 5)), single(30))
    start = lr.Factors(3 * single(6, 2), single(5, 2))
    step = lambda **more: (
        lr.solve(problem, lr.GradientDescent(max_rank=2, step_size=0.01, **more), KEY, num_steps=1, init=start).factors
    )
    plain, turned = step(), step(rebalance=True, rebalance_at=100.0, rebalance_scale=0.5)
    np.testing.assert_allclose(turned.dense(), plain.dense(), rtol=1e-4, atol=1e-4)
    gram = np.asarray(turned.left.T @ turned.left)
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(2), atol=1e-4 * gram[0, 0])


def test_conjugate_gradients_end_after_as_many_steps_as_there_are_values():
    values = jnp.array([1.0, 2.0, 3.0, 4.0])
    x = conjugate_gradient(lambda v: values * v, jnp.ones(4), jnp.zeros(4), num_steps=4)
    np.testing.assert_allclose(x, 1 / values, rtol=1e-5)


def test_structured_gains_of_three_rounds_are_adjoint():
    for transform in ("hadamard", "fourier"):
        operator = operators.StructuredGainMeasurements.create(KEY, (7, 5), 3, rounds=3, transform=transform)
        if transform == "hadamard":
            check_adjoint(operator, KEY, rank=1)
        left, right = operator.stored(), operator
        z = jax.random.normal(KEY, (21,)).astype(left.matrices.dtype)
        np.testing.assert_allclose(left.adjoint(z), right.adjoint(z), rtol=1e-4, atol=1e-4)


# --- metrics and samples ---------------------------------------------------------------------------------------------


def test_what_is_at_the_threshold_is_not_in_the_support():
    estimate, truth = jnp.array([0.5, -0.5, 0.6, 0.0]), jnp.array([0.0, 0.0, 1.0, 0.0])
    assert float(metrics.support_recovery(estimate, truth, 0.5)) == 1.0
    assert float(metrics.support_recovery(estimate, truth)) == 0.5  # of the threshold zero, zero itself is outside


def test_a_random_number_stands_for_the_middle_of_its_cell(monkeypatch):
    """A draw of zero stands for numbers up to one rounding: a share below half of that is not drawn by it."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    eps = float(jnp.finfo(jnp.float32).eps)
    draw = lambda share: row_sampling._with_replacement.__wrapped__(KEY, jnp.array([share, 1.0]), 1)[0].tolist()
    assert draw(eps / 4) == [1]
    assert draw(eps) == [0]


def test_root_leverage_scores_are_powers_of_leverages():
    a = np.random.default_rng(0).standard_normal((12, 3))
    leverage = (np.linalg.qr(a)[0] ** 2).sum(axis=1)
    seen = lr.sketching.root_leverage_scores(jnp.asarray(a, jnp.float32), 1.0)
    np.testing.assert_allclose(seen, np.sqrt(leverage), rtol=1e-5)


@pytest.mark.parametrize("method", ["direct", "cholesky_qr"])
def test_a_ridge_against_the_augmented_system(method, x64):
    """At a condition of 1e6, where `cholesky_qr` begins with a sketch; the ridge is that of the middle values."""
    rng = np.random.default_rng(0)
    values = np.array([1.0, 1e-2, 1e-4, 1e-6])
    a = np.linalg.qr(rng.standard_normal((200, 4)))[0] * values @ np.linalg.qr(rng.standard_normal((4, 4)))[0]
    b, ridge = rng.standard_normal(200), 1e-6
    more = {} if method == "direct" else {"sketch": "gaussian"}
    found = lr.lstsq(jnp.asarray(a), jnp.asarray(b), KEY, method=method, ridge=ridge, **more)
    whole = np.concatenate([a, np.sqrt(ridge) * np.eye(4)])
    expected = np.linalg.lstsq(whole, np.concatenate([b, np.zeros(4)]), rcond=None)[0]
    np.testing.assert_allclose(found.x, expected, rtol=1e-8, atol=1e-8 * abs(expected).max())
    rtol = 1e-4 if method == "direct" else 0.1  # of the sketch, where that was good enough
    np.testing.assert_allclose(found.condition, np.sqrt((1 + ridge) / (1e-12 + ridge)), rtol=rtol)


# --- sweeps ----------------------------------------------------------------------------------------------------------


def _sweep(grid, **more):
    trial = lambda key, scale=1.0, kind=0: {"x": scale * jax.random.normal(key)}
    return lr.sweep(trial, KEY, grid=grid, num_trials=2, progress=False, **more)


def test_static_points_draw_from_keys_of_their_own():
    """Point `i` of three is place `3 i` on, whether its axis is static or not."""
    table = _sweep({"kind": ["a", "b"], "scale": [1.0, 2.0, 3.0]}, static=("kind",))
    for i in range(2):
        for j in range(3):
            for t in range(2):
                key = jax.random.fold_in(jax.random.fold_in(KEY, 3 * i + j), t)
                expected = (j + 1) * jax.random.normal(key)
                np.testing.assert_allclose(table["x"].values[i, j, t], expected, rtol=1e-6)


def test_labels_are_the_values_given_to_the_last_bit(tmp_path):
    values = [0.1, 1 / 3, 2.0**53 + 2, 1e-7 + 1e-16]
    for table in (_sweep({"scale": values}, checkpoint=tmp_path), lr.load_sweep(tmp_path)):
        assert table["scale"].values.tolist() == values
    # Half in single precision is half, and yet another axis: its dtype is that of the trial.
    first = tmp_path / "other"
    _sweep({"scale": np.array([0.5, 0.25], np.float32)}, checkpoint=first)
    with pytest.raises(ValueError, match="another sweep: grid"):
        _sweep({"scale": np.array([0.5, 0.25], np.float16)}, checkpoint=first)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Without `fsync` a power cut leaves a whole name on half a file."""
    synced, whole = [], []
    fsync, replace = os.fsync, os.replace
    path_replace = Path.replace

    def recording_fsync(handle):
        synced.append((os.fstat(handle).st_ino, os.fstat(handle).st_size))
        fsync(handle)

    def check(source):
        stat = os.stat(source)
        whole.append((stat.st_ino, stat.st_size) in synced)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b, **kw: (check(a), replace(a, b, **kw))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (check(self), path_replace(self, target))[1])
    _sweep({"scale": [1.0, 2.0]}, checkpoint=tmp_path)
    assert len(whole) >= 2  # the plan and a part
    assert all(whole)


# --- factorizations --------------------------------------------------------------------------------------------------

FACTORIZE = """
import jax, jax.numpy as jnp, numpy as np
from lrjax.linalg import guarded

good = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
spoiled = [good + good.T + 20 * np.eye(6, dtype=np.float32) for _ in range(4)]
spoiled[1][0, 3], spoiled[2][2, 0], spoiled[3][0, 0] = np.inf, -np.inf, np.nan
every = lambda a: (guarded.svd(a), guarded.singular_values(a), guarded.spectral_norm(a), guarded.qr(a),
                   guarded.qr_r(a), guarded.eigh(a), guarded.cholesky(a))
for leaf in jax.tree.leaves(jax.jit(jax.vmap(every))(jnp.stack(spoiled))):
    leaf = np.asarray(leaf).reshape(4, -1)
    assert np.isfinite(leaf[0]).all(), leaf[0]
    # (The triangular factor of a Cholesky decomposition keeps its zeros.)
    assert np.isnan(leaf[1:]).any(axis=1).all() and not np.isinf(leaf).any(), leaf
"""


def test_factorizations_of_what_is_not_finite_return_nan():
    """In a process of its own, for LAPACK's single-precision SVD does not return from some infinities."""
    subprocess.run([sys.executable, "-c", FACTORIZE], check=True, timeout=90)
