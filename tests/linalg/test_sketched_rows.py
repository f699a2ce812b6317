"""Rows of a factor by sketch-preconditioned conjugate gradients: the exact answer, the law of the sketch, the floor."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax.linalg.rows import RowProblem
from lrjax.linalg.sketched_rows import SketchedRows
from lrjax.operators import SampledEntries
from lrjax.sketching import SparseSignSketch

KEY = jax.random.key(0)
SKETCHED = lr.AlternatingMinimization(max_rank=6, inner="sketched")


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def entries(n1=12, n2=300, k=6, *, condition=1.0, noise=0.1, seed=0):
    """Rows of about 200 entries each, columns of about 8, a right factor of the given condition and measurements."""
    rng = np.random.default_rng(seed)
    rows, cols = np.nonzero(rng.random((n1, n2)) < 0.7)
    right = np.linalg.qr(rng.normal(size=(n2, k)))[0] @ np.linalg.qr(rng.normal(size=(k, k)))[0]
    right = right * np.geomspace(1, 1 / condition, k)
    y = np.sum(rng.normal(size=(n1, k))[rows] * right[cols], axis=1) + noise * rng.normal(size=len(rows))
    op, y = SampledEntries.build(rows, cols, y, (n1, n2))
    return op, y, jnp.asarray(right)


@partial(jax.jit, static_argnames=("steps", "sketched", "unit", "by_count"))
def solve(op, y, right, *, weights=None, steps=100, sketched=True, tolerance=1e-16, **row):
    how = SketchedRows(key=KEY, start=jnp.zeros((12, right.shape[1])), tolerance=tolerance, num_steps=steps)
    row = RowProblem(sketched=how if sketched else None, **row)
    return op.solve_left(right, op.arrange(y, weights), row)


@pytest.mark.parametrize(
    "settings", [{}, {"ridge": 0.3}, {"unit": 2, "by_count": True, "ridge": 0.01}, {"damping": 0.5}]
)
def test_the_exact_answer(settings):
    op, y, right = entries(condition=1e3)
    weights = jnp.asarray(np.random.default_rng(1).uniform(0, 2, len(y)) * (np.arange(len(y)) % 7 > 0))
    settings = {"mask": jnp.array([1.0, 1, 1, 1, 1, 0]), **settings}
    right = right * settings["mask"]
    for w in (None, weights):
        left, square = solve(op, y, right, weights=w, **settings)
        expected, expected_square = solve(op, y, right, weights=w, sketched=False, **settings)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(left, expected, atol=1e-9 * scale)
        np.testing.assert_allclose(square, expected_square, rtol=1e-9)


def test_steps_do_not_depend_on_the_condition():
    # Preconditioned singular values in 1 / (1 +- 1/2): a factor of two per step and no more, whatever the condition.
    for condition in (1.0, 1e4):
        op, y, right = entries(k=20, n2=600, condition=condition)
        far = solve(op, y, right)[0]
        errors = [jnp.linalg.norm((solve(op, y, right, steps=steps)[0] - far) @ right.T) for steps in (1, 9)]
        assert errors[1] < 2 * 0.5**8 * jnp.linalg.norm(far @ right.T), (condition, errors)


def test_rows_without_entries_and_short_rows():
    rows, cols = np.nonzero(
        np.random.default_rng(0).random((12, 300)) < np.where(np.arange(12) % 2, 0.9, 0.04)[:, None]
    )
    keep = rows != 3
    op, y = SampledEntries.build(rows[keep], cols[keep], np.ones(keep.sum()), (12, 300))
    right = jnp.asarray(np.random.default_rng(1).normal(size=(300, 6)))
    left, expected = solve(op, y, right)[0], solve(op, y, right, sketched=False)[0]
    np.testing.assert_allclose(left, expected, atol=1e-10)
    np.testing.assert_array_equal(left[3], 0)


def test_derivatives_are_those_of_the_exact_answer():
    op, y, right = entries(condition=10.0)
    weights = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, len(y)))
    target = jnp.asarray(np.random.default_rng(2).normal(size=(12, 6)))

    def value(sketched, y, right, weights, ridge):
        left, square = solve(op, y, right, weights=weights, ridge=ridge, sketched=sketched)
        return jnp.sum(left * target) + square

    given = (y, right, weights, jnp.asarray(0.1))
    one, two = (jax.jit(jax.grad(lambda *g, s=s: value(s, *g), argnums=(0, 1, 2, 3)))(*given) for s in (True, False))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8 * float(jnp.abs(b).max()))


def completion(dtype=np.float64, kappa=3.0):
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 6)))[0] for n in (160, 150))
    x = (u * np.geomspace(1, 1 / kappa, 6)) @ v.T
    rows, cols = np.nonzero(rng.random(x.shape) < 0.5)
    op, y = SampledEntries.build(rows, cols, x[rows, cols].astype(dtype), x.shape)
    return lr.Problem(op, y), x.astype(dtype)


@pytest.mark.slow
def test_recovery_as_with_exact_half_steps():
    problem, truth = completion()
    run = lambda **how: lr.solve(
        problem, lr.AlternatingMinimization(max_rank=6, **how), KEY, num_steps=40, truth=jnp.asarray(truth)
    )
    exact, sketched = run(), run(inner="sketched", inner_steps=4)
    assert exact.trace["relative_error"][-1] < 1e-13
    assert sketched.trace["relative_error"][-1] < 1e-13
    assert sketched.status == lr.status.CONVERGED
    assert sketched.num_steps <= 1.3 * exact.num_steps
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        problem, _ = completion(np.float32)
        assert lr.solve(problem, SKETCHED, KEY, num_steps=3).factors.left.dtype == jnp.float32


def test_t1_2_loose_inner_solves_set_a_floor_proportional_to_their_tolerance():
    # Robustness of alternating minimization (arXiv 2302.11068), end to end: the error contracts as with exact solves
    # down to a constant times the accuracy of the half steps.
    problem, truth = completion()

    def one(tolerance):
        solver = lr.AlternatingMinimization(max_rank=6, inner="sketched", inner_steps=50, inner_tolerance=tolerance)
        return lr.solve(problem, solver, KEY, num_steps=30, truth=jnp.asarray(truth)).trace["relative_error"]

    tolerances = np.array([1e-2, 1e-4, 1e-6, 1e-8])
    errors = np.asarray(jax.jit(lambda t: jax.lax.map(one, t))(jnp.asarray([*tolerances, 1e-16])))
    floors = errors[:-1, -1]
    assert (floors < 5 * tolerances).all(), floors
    assert (floors > 0.05 * tolerances).all(), floors
    assert abs(np.polyfit(np.log(tolerances), np.log(floors), 1)[0] - 1) < 0.1
    assert errors[-1, -1] < 1e-13
    for floor, error in zip(floors, errors, strict=False):
        above = errors[-1] > 20 * floor
        np.testing.assert_allclose(error[above], errors[-1][above], rtol=0.3)


@pytest.mark.parametrize("rows", [4, 8])
def test_t1_6_singular_values_after_sketched_preconditioning(rows):
    # T1.6: 20000 x 50, condition 1e6; within 1 / (1 +- sqrt(d / rows)) at 10 %. The sketch of the Gram matrix is the
    # library's; T1.5: conjugate gradients then take 32 and 25 steps to 1e-12, +-15 %.
    rng = np.random.default_rng(0)
    a = (np.linalg.qr(rng.normal(size=(20000, 50)))[0] * np.geomspace(1, 1e-6, 50)) @ np.linalg.qr(
        rng.normal(size=(50, 50))
    )[0]
    sketch = SparseSignSketch.create(KEY, rows * 50, 20000, num_nonzeros=8)
    conditioned = np.linalg.solve(np.linalg.qr(np.asarray(sketch.apply(a)), mode="r").T, a.T).T
    s, spread = np.linalg.svd(conditioned, compute_uv=False), rows**-0.5
    np.testing.assert_allclose([s[0], s[-1]], [1 / (1 - spread), 1 / (1 + spread)], rtol=0.1)
    b = rng.normal(size=20000)
    rhs, x, steps = conditioned.T @ b, np.zeros(50), 0
    best = np.linalg.lstsq(conditioned, b, rcond=None)[0]
    r = p = rhs
    while np.linalg.norm(conditioned @ (x - best)) > 1e-12 * np.linalg.norm(conditioned @ best):
        q = conditioned.T @ (conditioned @ p)
        step = r @ r / (p @ q)
        x, new = x + step * p, r - step * q
        p, r, steps = new + new @ new / (r @ r) * p, new, steps + 1
    assert abs(steps / {4: 32, 8: 25}[rows] - 1) < 0.2, steps


def test_the_door():
    problem, _ = completion()
    dense = lr.synthetic.matrix_completion(KEY, shape=(12, 10), rank=2, fraction=0.8)[0]
    for solver, which, message in (
        (SKETCHED, dense, "inner='sketched' needs the operator SampledEntries; got EntryMask"),
        (lr.AlternatingMinimization(max_rank=2, inner_tolerance=0.1), problem, "inner_tolerance belongs to"),
        (
            lr.AlternatingMinimization(max_rank=2, inner="sketched", inner_tolerance=-1.0),
            problem,
            "inner_tolerance .*-1",
        ),
        (
            lr.AlternatingMinimization(max_rank=2, inner="sketched", nonnegative=True, orthonormalize=False),
            problem,
            "nonnegative=True needs inner='exact'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            lr.solve(which, solver, KEY, num_steps=1)
