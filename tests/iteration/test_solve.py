"""`solve`, `iterate`, wrappers, losses, factors, metrics, planted problems and `complete`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import losses, metrics, operators, status, synthetic

KEY = jax.random.key(3)
GD = lr.GradientDescent(max_rank=1)


@functools.cache
def small(corruption=None):
    return synthetic.matrix_sensing(KEY, shape=(5, 4), rank=1, num_measurements=60, corruption=corruption)


def factors(*arrays):
    return lr.Factors(*(jnp.asarray(a, jnp.float32) for a in arrays))


def test_derivatives_of_batches():
    """A gradient of a vmap is a vmap of gradients, finished lanes or not; and second derivatives are symmetric."""
    problem, truth = small()
    solver = dataclasses.replace(GD, step_size=0.3, tolerance=1e-3)

    def size(y, scale):
        start = lr.Factors(scale * truth.left, truth.right)
        solution = lr.solve(lr.Problem(problem.operator, y), solver, KEY, num_steps=6, record_every=3, init=start)
        return jnp.sum(solution.factors.dense() ** 2), solution.num_steps

    scales, ys = jnp.array([1.0, 1.5]), jnp.stack([problem.y, problem.y])
    every = jax.vmap(size)
    gradient, taken = jax.jit(jax.grad(lambda ys: (every(ys, scales)[0].sum(), every(ys, scales)[1]), has_aux=True))(ys)
    assert taken.tolist() == [1, 6]
    one = jax.jit(jax.grad(jax.checkpoint(lambda y, scale: size(y, scale)[0])))
    lanes = jax.jit(jax.vmap(jax.grad(lambda y, scale: size(y, scale)[0])))(ys, scales)
    for i in range(2):
        np.testing.assert_allclose(gradient[i], one(ys[i], scales[i]), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gradient[i], lanes[i], rtol=1e-4, atol=1e-6)
    a, b = jnp.sin(jnp.arange(60.0)), jnp.cos(jnp.arange(60.0))
    second = jax.jit(lambda v: jax.jvp(lambda y: one(y, 1.5), (problem.y,), (v,))[1])
    assert abs(float(a @ second(b))) > 1e-6
    np.testing.assert_allclose(a @ second(b), b @ second(a), rtol=1e-3)


def test_a_shared_start_in_shard_map():
    """Measurements that vary over devices, from a start that does not: types follow the data."""
    problem, truth = small()
    run = lambda y: lr.solve(lr.Problem(problem.operator, y), GD, KEY, num_steps=3, init=truth).factors.dense()
    mesh, spec = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("trial",)), jax.sharding.PartitionSpec("trial")
    ys = jnp.stack([problem.y, 2 * problem.y])
    split = jax.jit(jax.shard_map(jax.vmap(run), mesh=mesh, in_specs=spec, out_specs=spec))(ys)
    np.testing.assert_allclose(split, jax.vmap(run)(ys), rtol=1e-5, atol=1e-6)


# --- traces ----------------------------------------------------------------------------------------------------------


def test_rows_of_the_trace():
    """Row 0 is the start, the last row is the result, every row in between is what a shorter solve reports."""
    problem, truth = small()
    start = lr.Factors(0.3 * jnp.ones((5, 1)), 0.2 * jnp.ones((4, 1)))
    run = lambda **rest: lr.solve(problem, GD, KEY, init=start, truth=truth, **rest)
    fine, coarse = run(num_steps=8), run(num_steps=8, record_every=4)
    assert fine.trace["step"].tolist() == list(range(9))
    assert coarse.trace["step"].tolist() == [0, 4, 8]
    for name, column in fine.trace.items():
        np.testing.assert_allclose(coarse.trace[name], column[::4], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(fine.trace["objective"][0], problem.objective(start), rtol=1e-5)
    np.testing.assert_allclose(fine.trace["relative_error"][0], metrics.relative_error(start, truth), rtol=1e-5)
    np.testing.assert_allclose(fine.objective, problem.objective(fine.factors), rtol=1e-5)
    np.testing.assert_allclose(fine.trace["relative_error"][-1], metrics.relative_error(fine.factors, truth), rtol=1e-5)
    assert (int(fine.status), int(fine.num_steps), bool(fine.converged)) == (status.RUNNING, 8, False)
    assert fine.check() is fine
    with pytest.raises(status.SolveError, match=r"1 of 1 lanes \(lane 0\): step budget"):
        fine.check(require_convergence=True)


def test_a_finished_lane_repeats_its_last_row():
    """It stops at the step that met the tolerance, between two records too."""
    problem, _ = small()
    solver = dataclasses.replace(GD, tolerance=1e-2)
    run = lambda every: lr.solve(problem, solver, KEY, num_steps=300, record_every=every)
    fine, coarse = run(1), run(100)
    taken = int(fine.num_steps)
    assert 1 < taken < 300
    assert taken % 100
    residual = np.asarray(fine.trace["residual"])
    assert residual[taken] <= 1e-2 < residual[taken - 1]
    assert np.all(residual[taken:] == residual[taken])
    assert fine.trace["step"].tolist() == [*range(taken), *([taken] * (301 - taken))]
    assert bool(fine.converged)
    assert int(coarse.num_steps) == taken
    assert coarse.trace["step"].tolist() == [min(taken, s) for s in (0, 100, 200, 300)]
    np.testing.assert_allclose(coarse.factors.left, fine.factors.left, rtol=1e-5)


def test_iterate_is_solve():
    problem, truth = small()
    solver = dataclasses.replace(GD, tolerance=1e-2)
    rest = dict(num_steps=300, record_every=20, truth=truth)
    whole = lr.solve(problem, solver, KEY, **rest)
    parts = list(lr.iterate(problem, solver, KEY, **rest))
    # It ends with the block in which the lane finishes.
    assert len(parts) == 2 + int(whole.num_steps - 1) // 20 < 16
    for row, part in enumerate(parts):
        for name, column in part.trace.items():
            assert column.shape == (1,)
            np.testing.assert_allclose(column[0], whole.trace[name][row], rtol=1e-5, atol=1e-7, err_msg=name)
    assert int(parts[-1].status) == int(whole.status) == status.CONVERGED
    assert int(parts[-1].num_steps) == int(whole.num_steps)
    np.testing.assert_allclose(parts[-1].factors.left, whole.factors.left, rtol=1e-5)


def test_a_start_that_is_not_finite_is_reported_and_left_alone():
    problem, _ = small()
    start = lr.Factors(jnp.full((5, 1), jnp.nan), jnp.ones((4, 1)))
    solution = lr.solve(problem, GD, KEY, num_steps=5, init=start)
    assert (int(solution.status), int(solution.num_steps)) == (status.INVALID, 0)
    assert solution.trace["step"].tolist() == [0] * 6
    with pytest.raises(status.SolveError, match="not finite"):
        solution.check()
    assert len(list(lr.iterate(problem, GD, KEY, num_steps=5, init=start))) <= 2


@pytest.mark.parametrize(
    "solver",
    [GD, lr.ScaledGradientDescent(max_rank=1), lr.AlternatingMinimization(max_rank=1)],
    ids=lambda s: type(s).__name__,
)
def test_a_start_at_the_answer_converges_at_once(solver):
    """Also with a residual of exactly zero, which LSMR-like code divides by."""
    truth = factors([[1], [0], [2], [0], [0]], [[1], [0], [0], [1]])
    op = operators.Identity(matrix_shape=(5, 4))
    problem = lr.Problem(op, op.forward(truth.left, truth.right))
    solution = lr.solve(problem, solver, KEY, num_steps=4, init=truth)
    assert float(solution.trace["residual"][0]) == 0
    assert bool(solution.converged)
    assert int(solution.num_steps) <= 2
    np.testing.assert_allclose(solution.factors.dense(), truth.dense(), atol=1e-6)


def test_measurements_that_are_all_zero():
    op = operators.Identity(matrix_shape=(5, 4))
    for solver in (GD, lr.ScaledGradientDescent(max_rank=1), lr.AlternatingMinimization(max_rank=1)):
        solution = lr.solve(lr.Problem(op, jnp.zeros(20)), solver, KEY, num_steps=50)
        assert bool(jnp.all(jnp.isfinite(solution.factors.dense()))), solver
        assert float(jnp.max(jnp.abs(solution.factors.dense()))) < 1e-2, solver


def test_check_names_lanes_and_reasons():
    codes = jnp.array([status.RUNNING, status.NONFINITE, status.CONVERGED, status.STALLED] + [status.NONFINITE] * 9)
    solution = lr.Solution(factors=factors(np.ones((1, 1)), np.ones((1, 1))), status=codes, num_steps=codes, trace={})
    with pytest.raises(status.SolveError) as error:
        solution.check()
    text = str(error.value)
    assert "10 of 13 lanes (lane 1, 4, 5, 6, 7, 8, 9, 10, ...): the next iterate was not finite" in text
    assert "1 of 13 lanes (lane 3): no progress" in text
    assert "step budget" not in text


# --- wrappers --------------------------------------------------------------------------------------------------------


def test_best_so_far_is_never_worse_than_any_iterate():
    problem, _ = small(0.2)
    inner = lr.SubgradientMethod(max_rank=1, step_size=0.5)
    run = lambda solver: lr.solve(problem, solver, KEY, num_steps=60)
    plain, best = run(inner), run(lr.BestSoFar(solver=inner))
    objective = np.asarray(plain.trace["objective"])
    assert np.any(np.diff(objective) > 0), "the inner solver must not descend monotonically for this to mean anything"
    np.testing.assert_allclose(best.trace["objective"], np.minimum.accumulate(objective), rtol=1e-4)
    np.testing.assert_allclose(best.objective, problem.objective(best.factors), rtol=1e-4)


def test_averaged_is_the_moving_average_by_hand():
    problem, _ = small()
    inner = [part.factors for part in lr.iterate(problem, GD, KEY, num_steps=6)]
    averaged = lr.solve(problem, lr.Averaged(solver=GD, decay=0.7), KEY, num_steps=6)
    expected = inner[0]
    for one in inner[1:]:
        expected = jax.tree.map(lambda old, new: 0.7 * old + 0.3 * new, expected, one)
    np.testing.assert_allclose(averaged.factors.left, expected.left, rtol=1e-5)
    np.testing.assert_allclose(averaged.factors.right, expected.right, rtol=1e-5)
    np.testing.assert_allclose(averaged.objective, problem.objective(averaged.factors), rtol=1e-4)


@operators.pytree
class Lottery:
    """Each start draws its own constant factors; those below `fails` are not finite after a step."""

    fails: float | jax.Array = -1.0
    max_rank: int = jax.tree.static(default=1)

    def init(self, problem, key, factors=None):
        luck = jax.random.uniform(key)
        return self._at(problem, lr.Factors(luck * jnp.ones((5, 1)), jnp.ones((4, 1))))

    def step(self, problem, state, key):
        luck = state.factors.left[0, 0]
        spoiled = jnp.where(luck < self.fails, jnp.nan, 0)
        new = lr.Factors(state.factors.left + spoiled, state.factors.right)
        return self._at(problem, new), status.RUNNING + 0 * jnp.int32(1)

    def _at(self, problem, factors):
        info = {"objective": problem.objective(factors), "residual": problem.objective(factors)}
        return lr.solvers.wrappers.WrappedState(factors=factors, info=info, inner=None)


def test_restarted_picks_the_best_and_survives_bad_starts():
    op = operators.Identity(matrix_shape=(5, 4))
    problem = lr.Problem(op, jnp.zeros(20))
    run = lambda solver: lr.solve(problem, solver, KEY, num_steps=2)
    best = run(lr.Restarted(solver=Lottery(), num_restarts=6))
    keys = jax.random.split(jax.random.split(KEY)[0], 6)
    draws = np.sort([float(jax.random.uniform(k)) for k in keys])
    # The objective grows with the draw, so the smallest wins ...
    np.testing.assert_allclose(best.factors.left[0, 0], draws[0], rtol=1e-6)
    # ... among those that stay finite.
    some = run(lr.Restarted(solver=Lottery(fails=(draws[2] + draws[3]) / 2), num_restarts=6))
    np.testing.assert_allclose(some.factors.left[0, 0], draws[3], rtol=1e-6)
    some.check()
    none = run(lr.Restarted(solver=Lottery(fails=2.0), num_restarts=6))
    assert int(none.status) == status.NONFINITE
    assert bool(jnp.all(jnp.isfinite(none.factors.left)))


# --- losses, factors, metrics ----------------------------------------------------------------------------------------


def test_losses_against_closed_forms():
    r = jnp.array([-3.0, -0.5, 0.0, 0.2, 4.0])
    same = lambda seen, expected: np.testing.assert_allclose(seen, expected, rtol=1e-6)
    same(losses.Squared().value(r), [4.5, 0.125, 0, 0.02, 8])
    same(losses.Squared().gradient(r), r)
    same(losses.Squared().reweight(r, 0.0), np.ones(5))
    same(losses.Absolute().value(r), [3, 0.5, 0, 0.2, 4])
    same(losses.Absolute().gradient(r), [-1, -1, 0, 1, 1])
    same(losses.Absolute().reweight(r, 0.25), [1 / 3, 2, 4, 4, 0.25])
    same(losses.Huber(0.5).value(r), [0.5 * 3 - 0.125, 0.125, 0, 0.02, 0.5 * 4 - 0.125])
    same(losses.Huber(0.5).gradient(r), [-0.5, -0.5, 0, 0.2, 0.5])
    same(losses.Huber(0.5).reweight(r, 0.0), [1 / 6, 1, 1, 1, 0.125])
    problem = lr.Problem(operators.Identity(matrix_shape=(1, 5)), -r, jnp.array([1.0, 0, 2, 1, 0]), losses.Absolute())
    assert float(problem.objective(factors([[0]], np.zeros((5, 1))))) == pytest.approx(3.2)


def test_factors_against_dense_numpy():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        left, right = rng.standard_normal((6, 5)), rng.standard_normal((4, 5))
        x, f = left @ right.T, lr.Factors(jnp.asarray(left), jnp.asarray(right))
        same = lambda seen, expected: np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-12)
        assert (f.shape, f.max_rank) == ((6, 4), 5)
        same(f.dense(), x)
        same(f.entries([0, 5, 2], [3, 0, 2]), x[[0, 5, 2], [3, 0, 2]])
        same(f.matmul(np.arange(4.0)), x @ np.arange(4.0))
        same(f.matmul(right), x @ right)
        same(f.rmatmul(left), x.T @ left)
        same(f.norm(), np.linalg.norm(x))
        u, s, v = f.svd()
        same(s, np.linalg.svd(x, compute_uv=False))
        same(u * s @ v.T, x)
        same(u.T @ u, np.eye(4))
        same(v.T @ v, np.eye(4))
        uu, ss, vv = np.linalg.svd(x)
        two = f.truncate(2)
        same(two.dense(), uu[:, :2] * ss[:2] @ vv[:2])
        assert two.left.shape == (6, 2)
        balanced = f.balanced()
        assert balanced.left.shape == (6, 5)
        same(balanced.dense(), x)
        same(balanced.left.T @ balanced.left, balanced.right.T @ balanced.right)
        same(jnp.diag(balanced.left.T @ balanced.left), [*ss, 0])


@pytest.mark.parametrize("shape", [(6, 5), (90, 80)], ids=["dense", "qr"])
def test_relative_error_of_nearly_equal_factors(shape):
    """Two factorizations of matrices 1e-14 apart; Gram matrices would stop at 1e-8."""
    with jax.enable_x64(True):
        truth = synthetic.low_rank(KEY, shape, 2, dtype="float64")
        turn = jnp.array([[2.0, 1.0], [0.0, 0.5]])
        turned = lambda f: lr.Factors(f.left @ turn, f.right @ jnp.linalg.inv(turn).T)
        assert float(metrics.relative_error(turned(truth), truth)) <= 1e-15 * 2
        assert float(metrics.relative_error(truth, truth)) <= 1e-15
        bump = jnp.zeros_like(truth.left).at[:, 1].set(truth.left[:, 1])
        for size in (1e-5, 1e-10, 1e-13):
            near = turned(lr.Factors(truth.left + size * bump, truth.right))
            # Both singular values are one, so the bump in one of them is size / sqrt(2).
            assert float(metrics.relative_error(near, truth)) == pytest.approx(size / np.sqrt(2), rel=1e-2)
        assert bool(metrics.success(near, truth))
        assert float(metrics.relative_error(truth.dense(), truth)) <= 1e-15


def test_subspace_distance_of_tiny_angles():
    with jax.enable_x64(True):
        q = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 4)))[0]
        for angle in (1e-12, 1e-5, 0.3, np.pi / 2):
            tilted = np.stack([q[:, 0], np.cos(angle) * q[:, 1] + np.sin(angle) * q[:, 2]], axis=1)
            mixed = tilted @ [[1.0, 2.0], [0.5, -1.0]]
            seen = float(metrics.subspace_distance(jnp.asarray(q[:, :2]), jnp.asarray(mixed)))
            assert seen == pytest.approx(np.sin(angle), rel=1e-3)


def test_other_metrics():
    predicted, values = jnp.array([1.0, 2.0, 5.0]), jnp.array([1.0, 4.0, 1.0])
    assert float(metrics.rmse(predicted, values)) == pytest.approx(np.sqrt(20 / 3))
    assert float(metrics.rmse(predicted, values, jnp.array([1.0, 1.0, 0.0]))) == pytest.approx(np.sqrt(2))
    assert float(metrics.support_recovery(jnp.array([0.0, 2, 0.1]), jnp.array([0.0, 1, 1]), 0.5)) == pytest.approx(
        2 / 3
    )


# --- planted problems ------------------------------------------------------------------------------------------------


def test_low_rank_truths():
    with jax.enable_x64(True):
        truth = synthetic.low_rank(KEY, (9, 7), 3, condition_number=25.0, dtype="float64")
        s = np.linalg.svd(truth.dense(), compute_uv=False)
        np.testing.assert_allclose(s, [1, 0.2, 0.04, 0, 0, 0, 0], atol=1e-14)
        np.testing.assert_allclose(truth.left.T @ truth.left, truth.right.T @ truth.right, atol=1e-14)
        square = synthetic.low_rank(KEY, (7, 7), 2, dtype="float64")
        # Left and right have keys of their own: their subspaces are in general position.
        assert float(metrics.subspace_distance(square.left, square.right)) > 0.3
        tied = synthetic.low_rank(KEY, (7, 7), 2, symmetric=True, condition_number=3.0, dtype="float64")
        np.testing.assert_allclose(np.linalg.eigvalsh(tied.dense())[-2:], [1 / 3, 1], atol=1e-14)
        spread = lambda c: synthetic.low_rank(KEY, (60, 50), 2, coherence=c).left
        leverage = lambda c: float(jnp.max(jnp.sum(spread(c) ** 2, axis=1)))
        assert leverage(0.99) > 3 * leverage(0.0)


def test_corruption_and_noise_have_the_stated_size():
    y = 3 * jax.random.normal(KEY, (40_000,))
    unit = float(jnp.sqrt(jnp.mean(y**2)))
    bad, where = synthetic.corrupt(KEY, y, corruption=0.2, corruption_scale=5.0)
    assert float(jnp.mean(where)) == pytest.approx(0.2, abs=0.01)
    assert bool(jnp.all((bad == y) | where))
    assert float(jnp.std((bad - y)[where])) == pytest.approx(5 * unit, rel=0.05)
    noisy, where = synthetic.corrupt(KEY, y, noise=0.1)
    assert not bool(jnp.any(where))
    assert float(jnp.std(noisy - y)) == pytest.approx(0.1 * unit, rel=0.05)
    one_sided, where = synthetic.corrupt(KEY, y, corruption=0.2, kind="one_sided")
    assert bool(jnp.all((one_sided - y)[where] >= 0))
    flipped, where = synthetic.corrupt(KEY, y, corruption=0.2, kind="adversarial_sign", corruption_scale=2.0)
    np.testing.assert_allclose(flipped[where], -2 * y[where], rtol=1e-6)


def test_builders_can_be_vmapped_over_corruption_and_keys():
    keys, levels = jax.random.split(KEY, 3), jnp.array([0.0, 0.3, 1.0])
    build = lambda key, level: synthetic.matrix_completion(
        key, shape=(30, 20), rank=2, fraction=0.5, corruption=level, condition_number=1 + level
    )
    problems, truths = jax.vmap(build)(keys, levels)
    alone, truth = build(keys[1], levels[1])
    np.testing.assert_allclose(problems.y[1], alone.y, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(problems.operator.mask[1], alone.operator.mask)
    np.testing.assert_allclose(truths.left[1], truth.left, rtol=1e-4, atol=1e-5)
    clean = jax.vmap(lambda f: f.dense())(truths).reshape(3, -1)
    observed = problems.operator.mask.reshape(3, -1)
    wrong = np.mean((np.abs(problems.y - clean) > 1e-5) & observed, axis=1) / np.mean(observed, axis=1)
    np.testing.assert_allclose(wrong, levels, atol=0.1)
    assert isinstance(problems.loss, losses.Absolute)


def test_sampled_entries_are_distinct_and_skewed_when_asked():
    truth = synthetic.low_rank(KEY, (200, 100), 2)
    counts = {}
    for sampling in ("uniform", "skewed"):
        rows, cols, values = synthetic.sampled_entries(KEY, truth, 4000, sampling=sampling)
        assert len(rows) == len(np.unique(rows.astype(np.int64) * 100 + cols)) == 4000
        np.testing.assert_allclose(values, truth.dense()[rows, cols], rtol=1e-4, atol=1e-6)
        counts[sampling] = np.bincount(rows, minlength=200)
    assert counts["skewed"][:20].mean() > 2 * counts["skewed"][100:].mean()
    assert counts["uniform"][:20].mean() < 1.5 * counts["uniform"][100:].mean()
    problem, _ = synthetic.large_completion(KEY, shape=(200, 100), rank=2, oversampling=3.0)
    assert problem.operator.num_measurements == 3 * 2 * 298
    skewed, _ = synthetic.matrix_completion(KEY, shape=(200, 100), rank=1, fraction=0.2, sampling="skewed")
    degrees = np.asarray(skewed.operator.mask).sum(axis=1)
    assert degrees[:20].mean() > 2 * degrees[100:].mean()


# --- complete --------------------------------------------------------------------------------------------------------


@functools.cache
def entries():
    truth = synthetic.low_rank(KEY, (40, 30), 2)
    return truth, *synthetic.sampled_entries(KEY, truth, 600)


def test_complete_recovers():
    truth, rows, cols, values = entries()
    done = lr.complete(rows, cols, values, (40, 30), rank=2, key=KEY)
    assert float(metrics.relative_error(done.factors, truth)) < 1e-5
    assert bool(done.solution.converged)
    assert float(done.train_rmse) < 1e-6
    assert np.isnan(done.holdout_rmse)
    assert np.isnan(done.baseline_rmse)
    np.testing.assert_allclose(done.predict(rows, cols), values, atol=1e-5)
    np.testing.assert_allclose(done.predict([[0, 1]], [[2, 3]]), truth.dense()[[[0, 1]], [[2, 3]]], atol=1e-5)
    worse = lr.complete(rows, cols, values, (40, 30), rank=1, key=KEY, num_steps=20)
    assert float(worse.train_rmse) > 1e-2


def test_the_progress_bar_changes_nothing(capsys):
    _, rows, cols, values = entries()
    run = lambda progress: lr.complete(rows, cols, values, (40, 30), rank=2, key=KEY, num_steps=4, progress=progress)
    plain, barred = run(False), run(True)
    assert "completing" in capsys.readouterr().err
    np.testing.assert_allclose(plain.factors.dense(), barred.factors.dense(), atol=1e-5)
    assert barred.solution.trace["step"].tolist() == plain.solution.trace["step"].tolist() == list(range(5))
    np.testing.assert_allclose(
        plain.solution.trace["residual"], barred.solution.trace["residual"], rtol=1e-3, atol=1e-6
    )


def test_complete_on_ratings():
    """Row and column offsets and noise: biases beat none, held-out entries stay out, cold rows are told."""
    rng = np.random.default_rng(0)
    n1, n2 = 60, 50
    rows, cols = np.nonzero(rng.random((n1, n2)) < 0.6)
    keep = (rows != 7) & (cols != 3)
    rows, cols = rows[keep], cols[keep]
    scores = 3 + rng.standard_normal(n1)[:, None] + rng.standard_normal(n2)[None, :]
    scores += rng.standard_normal(n1)[:, None] * rng.standard_normal(n2)[None, :]
    values = (scores[rows, cols] + 0.1 * rng.standard_normal(len(rows))).astype(np.float32)
    run = lambda **rest: lr.complete(
        rows, cols, values, (n1, n2), rank=1, key=KEY, ridge=1.0, holdout=0.2, num_steps=30, **rest
    )
    with_biases, without = run(biases=True), run()
    assert float(with_biases.holdout_rmse) < 0.7 * float(without.holdout_rmse)
    assert float(with_biases.baseline_rmse) == pytest.approx(float(without.baseline_rmse))
    assert float(with_biases.offset) == pytest.approx(values.mean(), abs=0.2)
    assert not np.any(without.row_bias)
    assert bool(with_biases.rows_short[7])
    assert bool(with_biases.cols_short[3])
    assert int(with_biases.rows_short.sum()) < 5
    # A cold row is predicted by the offset and the column's bias.
    assert float(with_biases.row_bias[7]) == 0
    expected = with_biases.offset + with_biases.col_bias[4]
    np.testing.assert_allclose(with_biases.predict([7], [4])[0], expected, rtol=1e-6)
    # Spoiling exactly the held-out values cannot change the fit, and shows in their error alone.
    held = ~np.isin(rows * n2 + cols, np.asarray(without.seen.rows) * n2 + np.asarray(without.seen.cols))
    assert held.sum() == round(0.2 * len(values))
    spoiled = lr.complete(
        rows,
        cols,
        np.where(held, 1e3, values).astype(np.float32),
        (n1, n2),
        rank=1,
        key=KEY,
        ridge=1.0,
        holdout=0.2,
        num_steps=30,
    )
    np.testing.assert_array_equal(spoiled.factors.left, without.factors.left)
    assert float(spoiled.holdout_rmse) > 500


def test_complete_with_weights_and_duplicates():
    """Weight zero is a dropped entry; a mean of duplicates is the entry given once."""
    truth, rows, cols, values = entries()
    weights = np.where(np.arange(600) < 40, 0, 1)
    junk = np.where(weights > 0, values, 1e6).astype(np.float32)
    run = lambda *given, **rest: lr.complete(*given, (40, 30), rank=2, key=KEY, **rest)
    weighted = run(rows, cols, junk, weights=weights)
    assert float(metrics.relative_error(weighted.factors, truth)) < 1e-5
    twice = np.concatenate([np.arange(600), np.arange(50)])
    merged = run(rows[twice], cols[twice], values[twice], duplicates="mean")
    assert float(metrics.relative_error(merged.factors, truth)) < 1e-5


def ratings(seed=0, shape=(60, 50), noise=0.3):
    """Rank 2 plus offsets plus noise: rows, columns, values, and the matrix without the noise."""
    rng = np.random.default_rng(seed)
    n1, n2 = shape
    clean = 3 + 0.7 * rng.standard_normal((n1, 1)) + 0.5 * rng.standard_normal((1, n2))
    clean = clean + rng.standard_normal((n1, 2)) @ rng.standard_normal((2, n2))
    rows, cols = np.nonzero(rng.random(shape) < 0.5)
    values = (clean[rows, cols] + noise * rng.standard_normal(len(rows))).astype(np.float32)
    return rows, cols, values, clean


def test_biases_are_fitted_together_with_the_factors(x64):
    """Against dense NumPy: block coordinate descent on the same penalised least squares."""
    rows, cols, values, clean = ratings()
    values = values.astype(np.float64)
    ridge, rank, shape = 2.0, 2, clean.shape
    done = lr.complete(rows, cols, values, shape, rank=rank, key=KEY, ridge=ridge, biases=True, num_steps=1000)
    y, mask = np.zeros(shape), np.zeros(shape, bool)
    y[rows, cols], mask[rows, cols] = values - values.mean(), True
    left = np.random.default_rng(1).standard_normal((shape[0], rank))
    ridges = np.diag([ridge] * rank + [ridge / values.std()])
    b, c = np.zeros(shape[0]), np.zeros(shape[1])

    def half(factor, y, mask, offset):
        """Rows `(coefficients, own offset)` given the other factor and the other offset."""
        out = np.zeros((len(y), rank + 1))
        for i, on in enumerate(mask):
            a = np.column_stack([factor[on], np.ones(on.sum())])
            out[i] = np.linalg.solve(a.T @ a + ridges, a.T @ (y[i, on] - offset[on]))
        return out[:, :rank], out[:, rank]

    for _ in range(300):
        right, c = half(left, y.T, mask.T, b)
        left, b = half(right, y, mask, c)
    expected = values.mean() + left @ right.T + b[:, None] + c[None, :]
    grid = np.indices(shape)
    np.testing.assert_allclose(done.predict(*grid), expected, atol=1e-5)
    np.testing.assert_allclose(done.row_bias, b, atol=1e-5)
    assert done.factors.max_rank == rank


def test_uncertainty_is_about_the_error():
    """The ensemble's standard error, over all entries, is within a factor of 1.6 of the actual error."""
    rows, cols, values, clean = ratings(noise=0.3)
    done = lr.complete(rows, cols, values, clean.shape, rank=2, key=KEY, ridge=0.3, biases=True, ensemble=12)
    grid = np.indices(clean.shape)
    error = np.sqrt(np.mean((done.predict(*grid) - clean) ** 2))
    claimed = np.sqrt(np.mean(done.uncertainty(*grid) ** 2))
    assert 1 / 1.6 < claimed / error < 1.6, (claimed, error)
    assert done.members.left.shape[0] == 12
    plain = lr.complete(rows, cols, values, clean.shape, rank=2, key=KEY, num_steps=2)
    with pytest.raises(ValueError, match="ensemble=16"):
        plain.uncertainty([0], [0])


def test_early_stopping_keeps_the_best_step():
    """Rank 8 without a ridge overfits 10 % noise: the held-out error has its minimum early."""
    rows, cols, values, clean = ratings(noise=0.5)
    run = lambda **rest: lr.complete(
        rows, cols, values, clean.shape, rank=8, key=KEY, ridge=0.05, holdout=0.2, num_steps=40, **rest
    )
    stopped, full = run(early_stopping=True), run()
    seen = np.asarray(stopped.solution.trace["holdout_rmse"])
    assert len(seen) < 41
    assert int(stopped.solution.num_steps) == int(np.argmin(seen))
    assert float(stopped.holdout_rmse) == pytest.approx(float(seen.min()), rel=1e-4)
    assert float(stopped.holdout_rmse) <= float(full.holdout_rmse) + 1e-6


def test_recommend_is_the_sorted_dense_prediction():
    rows, cols, values, clean = ratings()
    done = lr.complete(rows, cols, values, clean.shape, rank=2, key=KEY, ridge=1.0, biases=True, num_steps=5)
    dense = done.predict(*np.indices(clean.shape))
    found, scores = done.recommend([3, 0, 3], 4, include_seen=True)
    for row, best, score in zip([3, 0, 3], found, scores, strict=True):
        np.testing.assert_array_equal(best, np.argsort(-dense[row])[:4])
        np.testing.assert_allclose(score, dense[row][best], rtol=1e-5)
    unseen = dense.copy()
    unseen[rows, cols] = -np.inf
    found, scores = done.recommend(np.arange(60), 50)
    for row in range(60):
        left = int(np.isfinite(unseen[row]).sum())
        np.testing.assert_array_equal(found[row][:left], np.argsort(-unseen[row])[:left])
        assert (found[row][left:] == -1).all()
        assert np.isneginf(scores[row][left:]).all()


@pytest.mark.parametrize("operator", ["mask", "sampled"])
def test_nonnegative_factors(operator):
    """A nonnegative truth is found by nonnegative factors; every row is at its constrained optimum."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        left, right = rng.random((30, 2)), rng.random((25, 2))
        mask, dense = rng.random((30, 25)) < 0.7, left @ right.T
        if operator == "mask":
            op, y = lr.operators.EntryMask.from_mask(mask), jnp.asarray(np.where(mask, dense, 0).ravel())
        else:
            op, y = lr.operators.SampledEntries.build(*np.nonzero(mask), dense[mask], mask.shape)
        solver = lr.AlternatingMinimization(max_rank=2, nonnegative=True, orthonormalize=False)
        solution = lr.solve(lr.Problem(op, y), solver, KEY, num_steps=500, record_every=500, truth=jnp.asarray(dense))
        assert float(solution.trace["relative_error"][-1]) < 1e-3
        assert float(jnp.min(solution.factors.left)) >= 0
        assert float(jnp.min(solution.factors.right)) >= 0
        from scipy.optimize import nnls

        right = np.asarray(solution.factors.right)
        for i in (0, 7):
            expected = nnls(right[mask[i]], dense[i, mask[i]])[0]
            np.testing.assert_allclose(solution.factors.left[i], expected, atol=1e-6)
        # Values of both signs: the constraint binds, where the free fit is exact.
        signed = lr.Problem(op, y - y.mean())
        bound = lr.solve(signed, solver, KEY, num_steps=50, record_every=50)
        free = lr.solve(signed, lr.AlternatingMinimization(max_rank=3), KEY, num_steps=50, record_every=50)
        assert float(bound.trace["residual"][-1]) > 0.1
        assert float(free.trace["residual"][-1]) < 1e-6


def test_ridge_by_count_scales_the_ridge_of_each_row():
    with jax.enable_x64(True):
        rows, cols, values, clean = ratings()
        op, y = lr.operators.SampledEntries.build(rows, cols, values.astype(np.float64), clean.shape)
        solver = lr.AlternatingMinimization(max_rank=2, ridge=0.1, ridge_by_count=True, orthonormalize=False)
        solution = lr.solve(lr.Problem(op, y), solver, KEY, num_steps=3, record_every=3)
        right, row = np.asarray(solution.factors.right), rows == 4
        a = right[cols[row]]
        expected = np.linalg.solve(a.T @ a + 0.1 * row.sum() * np.eye(2), a.T @ values[row].astype(float))
        np.testing.assert_allclose(solution.factors.left[4], expected, rtol=1e-9)


@pytest.mark.parametrize("condition_number", [1.0, 100.0])
def test_over_relaxation_saves_steps_and_changes_nothing_else(condition_number):
    """Same limit in at most four fifths of the steps, from the random start, also at condition number 100."""
    with jax.enable_x64(True):
        problem, truth = lr.synthetic.matrix_completion(
            KEY, shape=(120, 100), rank=3, fraction=0.3, condition_number=condition_number, dtype="float64"
        )
        steps = {}
        for accelerate in (True, False):
            solver = lr.AlternatingMinimization(max_rank=3, accelerate=accelerate, tolerance=1e-10)
            solution = lr.solve(problem, solver, KEY, num_steps=200, record_every=200, truth=truth)
            assert float(solution.trace["relative_error"][-1]) < 1e-8
            steps[accelerate] = int(solution.num_steps)
        assert steps[True] <= 0.8 * steps[False], steps


def test_lanes_share_what_they_share():
    """A vmapped solve does not copy the ensemble that all lanes measure with."""
    problem, _ = lr.synthetic.matrix_sensing(
        KEY, shape=(12, 12), rank=1, num_measurements=900, symmetric=True, corruption=0.1
    )
    solver = lr.SubgradientMethod(max_rank=1, symmetric=True)

    def run(operator, y, key):
        return lr.solve(lr.Problem(operator, y, loss=problem.loss), solver, key, num_steps=20).factors.dense()

    lanes = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)))
    ys, keys = jnp.stack([problem.y] * 16), jax.random.split(KEY, 16)
    memory = lanes.lower(problem.operator, ys, keys).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * problem.operator.rows.nbytes


def _results(code):
    """One result of each kind with that status; what else it holds does not matter."""
    for cls in (lr.Solution, lr.LstsqResult, lr.sketching.LpResult, lr.RankProjectedResult, lr.SparseBayesianResult):
        result = object.__new__(cls)
        vars(result)["status"] = jnp.asarray(code, jnp.int32)
        yield result


def test_every_result_is_checked_alike():
    for result in _results([status.CONVERGED, status.RUNNING]):
        assert result.check() is result
        assert result.converged.tolist() == [True, False]
        with pytest.raises(status.SolveError, match=r"1 of 2 lanes \(lane 1\)"):
            result.check(require_convergence=True)
    for result in _results(status.NONFINITE):
        with pytest.raises(status.SolveError, match=r"1 of 1 lanes .* finite"):
            result.check()
