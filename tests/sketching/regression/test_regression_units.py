"""Units do not matter: data, weights and ridge times a power of ten or two change no relative result and no status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import lrjax as lr
from lrjax import status
from lrjax.core import units
from lrjax.linalg.krylov import conjugate_gradient, preconditioned_conjugate_gradient
from lrjax.sketching import (
    RowSample,
    coordinatewise_lstsq,
    coordinatewise_ratio,
    leverage_scores,
    lewis_weights,
    lp_regression,
    lstsq,
    lstsq_blocks,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
A = RNG.normal(size=(300, 5))
B = A @ np.arange(5.0) + RNG.normal(size=300)
WEIGHTS = RNG.uniform(0.5, 2, 300)
METHODS = (
    "direct",
    "normal_equations",
    "cholesky_qr",
    "sketch_and_solve",
    "lsqr",
    "iterative_sketching",
    "fossils",
)
SCALES = {"float32": (1e-30, 1e-20, 1e20, 1e30), "float64": (1e-200, 1e-100, 1e200)}
SOLVE = {
    method: jax.jit(lambda a, b, w, ridge, method=method: lstsq(a, b, KEY, method=method, weights=w, ridge=ridge))
    for method in METHODS
}


def ridge_reference(a, b, w, ridge):
    rows = np.concatenate([np.sqrt(w)[:, None] * a, np.sqrt(ridge) * np.eye(a.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([np.sqrt(w) * b, np.zeros(a.shape[1])]), rcond=None)[0]


def wide_float(x):
    return np.asarray(x).astype(np.longdouble)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [(method, "float32") for method in METHODS] + [("direct", "float64"), ("cholesky_qr", "float64")],
)
def test_least_squares(method, dtype, x64):
    kind, solve = np.dtype(dtype).type, SOLVE[method]
    limits, eps = np.finfo(kind), float(np.finfo(kind).eps)
    b = B[:, None] * [1.0, 1e-3]  # two right sides, each in units of its own
    base = {ridge: solve(kind(A), kind(b), kind(WEIGHTS), kind(ridge)) for ridge in (0.0, 30.0)}
    for ridge, one in base.items():
        assert int(one.status) == status.CONVERGED
        if method != "sketch_and_solve":
            np.testing.assert_allclose(one.x[:, 0], ridge_reference(A, B, WEIGHTS, ridge), rtol=2e3 * eps)
    for s in SCALES[dtype]:
        for sa, sb, sw in ((s, 1, 1), (1, s, 1), (s, s, 1), (1, 1, s)):
            level = wide_float(30) * wide_float(sa) ** 2 * sw
            ridge = 30.0 if limits.tiny < level < limits.max else 0.0
            result = solve(
                (A * sa).astype(kind), (b * sb).astype(kind), kind(WEIGHTS * sw), kind(level if ridge else 0)
            )
            what, expected = f"{sa} {sb} {sw}", base[ridge]
            x = wide_float(result.x) * sa / sb
            np.testing.assert_allclose(x.astype(float), expected.x, rtol=0, atol=1e3 * eps, err_msg=what)
            norm = wide_float(result.residual_norm) / sb / np.sqrt(wide_float(sw))
            np.testing.assert_allclose(norm.astype(float), expected.residual_norm, rtol=1e3 * eps, err_msg=what)
            np.testing.assert_allclose(result.condition, expected.condition, rtol=1e-4, err_msg=what)
            assert int(result.status) == int(expected.status), what
            assert int(result.rank) == 5, what
            assert np.all(np.abs(result.backward_error - expected.backward_error) < 30 * eps), what


@pytest.mark.parametrize("method", METHODS)
def test_columns_in_units_of_their_own(method):
    """Time stamps in milliseconds beside ones: single precision resolves them, if not side by side."""
    rng = np.random.default_rng(1)
    a = np.stack([np.sort(rng.uniform(0, 1e9, 300)), np.ones(300)], axis=1).astype(np.float32)
    b = (a @ [3e-9, 5.0] + 0.1 * rng.normal(size=300)).astype(np.float32)
    size = [1e9, 1.0]
    expected = np.linalg.lstsq(a / size, b.astype(float), rcond=None)[0]
    result = lstsq(a, b, KEY, method=method)
    result.check(require_convergence=True)
    assert int(result.rank) == 2
    assert float(result.condition) < 20
    found = np.asarray(result.x, float) * size
    if method == "sketch_and_solve":
        assert np.linalg.norm(b - a @ (found / size)) < 1.5 * np.linalg.norm(b - a @ (expected / size))
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert float(result.backward_error) < 1e-6


def test_columns_far_apart_and_dependent_have_the_answer_of_least_norm(x64):
    t, u = RNG.normal(size=(2, 40))
    a = np.stack([1e6 * t, u, 3 * u, 0 * u], axis=1)
    b = RNG.normal(size=40)
    expected = np.linalg.lstsq(a, b, rcond=None)[0]
    jacobian = np.linalg.pinv(a)
    for method in ("direct", "cholesky_qr"):
        result = lstsq(a, b, KEY, method=method)
        assert int(result.rank) == 2
        np.testing.assert_allclose(result.x, expected, rtol=1e-9, atol=1e-16)
    np.testing.assert_allclose(jax.jacobian(lambda b: lstsq(a, b, KEY).x)(b), jacobian, rtol=1e-8, atol=1e-16)
    x = lp_regression(a, b, 2.0).x
    np.testing.assert_allclose(x, expected, rtol=1e-8, atol=1e-16)
    np.testing.assert_allclose(leverage_scores(a), np.einsum("ij,ji->i", a, jacobian), rtol=1e-8)


@pytest.mark.parametrize("method", ["lsqr", "iterative_sketching", "fossils", "cholesky_qr", "direct"])
@pytest.mark.parametrize("ridge", [1e4, 1e16, 1e30])
def test_a_large_ridge_is_solved_before_it_is_called_converged(method, ridge, x64):
    result = SOLVE[method](A, B, np.ones(300), ridge)
    assert int(result.status) == status.CONVERGED
    exact = np.linalg.solve(A.T @ A + ridge * np.eye(5), A.T @ B)
    np.testing.assert_allclose(result.x, exact, rtol=1e-12)
    assert float(result.backward_error) < 1e-14


@pytest.mark.parametrize("ridge", [1e4, 1e30])
def test_the_backward_error_sees_past_a_ridge(ridge, x64):
    # Sketched, the answer is some per cent off, and so must the perturbation of `a` be that explains it.
    result = SOLVE["sketch_and_solve"](A, B, np.ones(300), ridge)
    assert float(result.backward_error) > 1e-3


SHAPES = {"row twice": (4, 6), "zero row": (4, 6), "product": (4, 6), "tall": (9, 4)}


@pytest.mark.parametrize("kind", SHAPES)
def test_ranks_are_numpys(kind, x64):
    n, d = SHAPES[kind]
    rng = np.random.default_rng(5)
    a = rng.normal(size=(n, d)) if n < d and kind != "product" else rng.normal(size=(n, 3)) @ rng.normal(size=(3, d))
    if kind == "row twice":
        a[3] = a[2]
    if kind == "zero row":
        a[1] = 0
    b = rng.normal(size=n)  # not in the range
    expected, _, rank, _ = np.linalg.lstsq(a, b, rcond=None)
    result = lstsq(a, b, KEY)
    assert int(result.rank) == rank == 3
    np.testing.assert_allclose(result.x, expected, rtol=1e-10)
    assert float(result.backward_error) < 1e-14
    result.check(require_convergence=True)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_wide_problems(scale):
    a, b = A[:4].astype(np.float32), B[:4].astype(np.float32)
    expected = np.linalg.lstsq(A[:4], B[:4], rcond=None)[0]
    for sa, sb in ((scale, 1), (1, scale), (scale, scale)):
        result = lstsq(np.float32(sa) * a, np.float32(sb) * b, KEY)
        result.check(require_convergence=True)
        x = wide_float(result.x) * sa / sb
        np.testing.assert_allclose(x.astype(float), expected, rtol=1e-4)
        assert float(result.backward_error) < 1e-6


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0])
def test_regression_in_the_p_norm(p):
    a, b = A[:60].astype(np.float32), B[:60].astype(np.float32)
    base = lp_regression(a, b, p)
    base.check(require_convergence=True)
    for scale in (2.0**-100, 2.0**-70, 2.0**70, 2.0**100):
        for sa, sb in ((scale, 1), (1, scale), (scale, scale)):
            result = lp_regression(np.float32(sa) * a, np.float32(sb) * b, p)
            result.check(require_convergence=True)
            # Powers of two: to the last bit.
            np.testing.assert_array_equal(wide_float(result.x) * sa / sb, wide_float(base.x))
            np.testing.assert_array_equal(wide_float(result.objective) / sb, wide_float(base.objective))
            assert (float(result.gap), int(result.num_steps)) == (float(base.gap), int(base.num_steps))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_scores_blocks_and_the_ratio(scale):
    a, b = (np.float32(scale) * part.astype(np.float32) for part in (A, B))
    leverage = np.sum(np.linalg.qr(A)[0] ** 2, axis=1)
    np.testing.assert_allclose(leverage_scores(a), leverage, rtol=1e-4)
    np.testing.assert_allclose(leverage_scores(a, key=KEY), leverage_scores(A.astype(np.float32), key=KEY), rtol=1e-4)
    np.testing.assert_allclose(lewis_weights(a, 2.0), leverage, rtol=1e-3)
    sample = RowSample.create(KEY, scale * leverage.astype(np.float32), 50)
    np.testing.assert_array_equal(sample.indices, RowSample.create(KEY, leverage.astype(np.float32), 50).indices)
    exact = np.linalg.lstsq(A, B, rcond=None)[0]
    result = lstsq_blocks((a, b), KEY, block_rows=120)
    result.check(require_convergence=True)
    np.testing.assert_allclose(result.x, exact, rtol=1e-4)
    np.testing.assert_allclose(result.residual_norm, scale * np.linalg.norm(B - A @ exact), rtol=1e-4)
    assert float(result.backward_error) < 1e-6
    x = exact + 0.1 * np.eye(5)[0]
    residual = np.linalg.norm(B - A @ exact)
    ratio = np.sqrt(5) * 0.1 / (residual * np.linalg.norm(np.linalg.pinv(A), 2))
    np.testing.assert_allclose(coordinatewise_ratio(a, b, np.float32(x)), ratio, rtol=1e-4)


def test_coordinatewise_in_any_unit():
    a, b = A.astype(np.float32), B.astype(np.float32)
    solve = lambda a, b: coordinatewise_lstsq(a, b, KEY, epsilon=2.0, sketch="srht").x
    base = solve(a, b)
    for scale in (2.0**-100, 2.0**100):
        np.testing.assert_allclose(solve(np.float32(scale) * a, np.float32(scale) * b), base, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_singular_values_and_low_rank(scale):
    a = A[:40] @ np.diag([5.0, 4, 3, 2, 1])
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    w = (scale * a).astype(np.float32)
    for power_steps in (0, 3):
        found = lr.rsvd(w, 2, key=KEY, oversample=1 if power_steps else 3, power_steps=power_steps)[1]
        np.testing.assert_allclose(wide_float(found) / scale, s[:2], rtol=1e-2 if power_steps else 1e-5)
    best = (u[:, :2] * s[:2]) @ vt[:2]
    for key in (None, KEY):
        x = wide_float(lr.low_rank(w, 2, key=key).dense()) / scale
        np.testing.assert_allclose(x.astype(float), best, atol=1e-4)
    rows, cols = np.linspace(1, 3, 40), np.diag([1.0, 2, 3, 4, 5])
    expected = lr.low_rank(a.astype(np.float32), 2, row_metric=rows, col_metric=cols).dense()
    for key in (None, KEY):
        x = lr.low_rank(w, 2, row_metric=scale * rows, col_metric=scale * cols, key=key).dense()
        np.testing.assert_allclose((wide_float(x) / scale).astype(float), expected, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_derivative_of_singular_triples(scale):
    a = (scale * np.diag([3.0, 2.0, 1.0])[:, :2] + 0).astype(np.float32)

    def value(a):
        u, s, v = lr.rsvd(a, 1, key=KEY)
        return jnp.sum((u * s) @ v.T)

    slope = jax.grad(value)(a)
    step, exact = 1e-6, np.zeros((3, 2))
    best = lambda a: (lambda u, s, vt: s[0] * np.outer(u[:, 0], vt[0]).sum())(*np.linalg.svd(a, full_matrices=False))
    for i in range(3):
        for j in range(2):
            move = np.zeros((3, 2))
            move[i, j] = step
            clean = np.diag([3.0, 2.0, 1.0])[:, :2]
            exact[i, j] = (best(clean + move) - best(clean - move)) / (2 * step)
    np.testing.assert_allclose(slope, exact, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_conjugate_gradients(scale):
    matrix = np.float32(A[:20].T @ A[:20])
    rhs = (scale * np.arange(1.0, 6.0)).astype(np.float32)
    exact = np.linalg.solve(matrix.astype(float), np.arange(1.0, 6.0))
    apply = lambda x: matrix @ x
    plain = conjugate_gradient(apply, rhs, jnp.zeros(5), num_steps=50, tolerance=1e-6)
    np.testing.assert_allclose(wide_float(plain) / scale, exact, rtol=1e-4)
    helped, _ = preconditioned_conjugate_gradient(apply, rhs, lambda r: r, num_steps=50, tolerance=1e-6)
    np.testing.assert_allclose(wide_float(helped) / scale, exact, rtol=1e-4)


def test_shifts_are_exact_and_leave_no_range_on_the_way(x64):
    for dtype, far in ((np.float32, 240), (np.float64, 2000)):
        x = np.array([1.5, -0.3], dtype)
        for e in (0, 1, -1, 7, 100, -100):
            np.testing.assert_array_equal(units.shifted(jnp.asarray(x), jnp.int32(e)), np.ldexp(x, e))
        large = np.ldexp(x, -far // 2)
        np.testing.assert_array_equal(units.shifted(jnp.asarray(large), jnp.int32(far)), np.ldexp(large, far))
    assert int(units.exponent(jnp.asarray([0.0, -5.0]))) == 2
    assert int(units.exponent(jnp.zeros(3))) == 0
    assert int(units.exponent(jnp.asarray([1.0, np.inf]))) == 0


def test_sparse_matrices_scale_too():
    a = scipy.sparse.random(200, 6, density=0.5, random_state=0, dtype=np.float32, data_rvs=RNG.standard_normal)
    a = scipy.sparse.csr_matrix(a, dtype=np.float32)
    expected = np.linalg.lstsq(a.toarray().astype(float), B[:200], rcond=None)[0]
    for scale in (1.0, 1e-25, 1e25):
        result = lstsq(a * np.float32(scale), (scale * B[:200]).astype(np.float32), KEY)
        result.check(require_convergence=True)
        np.testing.assert_allclose(result.x, expected, rtol=1e-3, atol=1e-5)
