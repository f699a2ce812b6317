"""`lstsq`: against NumPy, under every transform, at the door, and against the law of the Gaussian sketch."""

import functools
import itertools
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from cases import LEAST_SQUARES
from jax.experimental.sparse import BCOO, BCSR, CSR

from lrjax import status
from lrjax.sketching import CountSketch, LstsqResult, SparseSignSketch, lstsq, lstsq_blocks
from lrjax.sketching.regression import least_squares

KEY = jax.random.key(0)
SKETCHED = {"method": "sketch_and_solve"}


def problem(n, d, *, condition=10.0, rank=None, rhs=(), seed=0):
    """A matrix with geometric singular values from 1 to 1/condition, and a right side not in its range."""
    rng = np.random.default_rng(seed)
    rank = min(n, d) if rank is None else rank
    u, _ = np.linalg.qr(rng.normal(size=(n, rank)))
    v, _ = np.linalg.qr(rng.normal(size=(d, rank)))
    return (u * np.geomspace(1, 1 / condition, rank)) @ v.T, rng.normal(size=(n, *rhs))


def numpy_ridge(a, b, weights=None, ridge=0.0):
    root = np.ones(len(b)) if weights is None else np.sqrt(weights)
    d = a.shape[1]
    rows = np.concatenate([root[:, None] * a, np.sqrt(ridge) * np.eye(d)])
    target = np.concatenate([(root * b.T).T, np.zeros((d, *b.shape[1:]))])
    return np.linalg.lstsq(rows, target, rcond=None)[0]


def relative(x, reference):
    return np.linalg.norm(np.asarray(x) - reference) / np.linalg.norm(reference)


SHAPES = {
    "tall": (60, 7, {}),
    "square": (9, 9, {}),
    "wide": (7, 30, {}),
    "one column": (20, 1, {}),
    "one row": (1, 20, {}),
    "rank-deficient": (40, 8, {"rank": 5}),
    "rank-deficient wide": (8, 40, {"rank": 5}),
    "ill-conditioned": (60, 7, {"condition": 1e6}),
    "ill-conditioned wide": (7, 60, {"condition": 1e6}),
    "many right sides": (60, 7, {"rhs": (3,)}),
    "many right sides, wide": (7, 30, {"rhs": (3,)}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_direct_is_numpy(name, x64):
    n, d, options = SHAPES[name]
    a, b = problem(n, d, **options)
    result = lstsq(a, b, KEY)
    result.check(require_convergence=True)
    reference = np.linalg.lstsq(a, b, rcond=None)[0]
    assert result.x.shape == reference.shape
    # The condition number bounds the error of both; the residual is of order one, hence its square.
    condition = options.get("condition", 10.0)
    assert relative(result.x, reference) < 100 * np.finfo(float).eps * condition**2
    residual = np.linalg.norm(b - a @ reference, axis=0)
    np.testing.assert_allclose(result.residual_norm, residual, rtol=1e-8, atol=1e-9)
    assert result.method == "direct"
    assert bool(result.converged)
    assert int(result.num_steps) == 0


def test_ill_conditioned_wide_problem_is_still_interpolated(x64):
    a, b = problem(7, 60, condition=1e10)
    # The normal equations of the second kind lose this (5e-5 and worse); a backward stable answer does not.
    assert lstsq(a, b, KEY).residual_norm < 1e-16 * 1e10 * 100 * np.linalg.norm(b)


@pytest.mark.parametrize(("n", "d"), [(60, 7), (7, 30)])
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_float32_scales_do_not_matter(n, d, scale):
    a, b = problem(n, d)
    a = (scale * a).astype(np.float32)
    result = lstsq(a, b.astype(np.float32), KEY)
    reference = np.linalg.lstsq(a.astype(float), b, rcond=None)[0]
    assert relative(scale * np.asarray(result.x, float), scale * reference) < 1e-4
    assert result.x.dtype == jnp.float32


def test_zero_matrix_gives_zero():
    for shape in [(6, 3), (3, 6)]:
        result = lstsq(np.zeros(shape, np.float32), np.ones(shape[0], np.float32), KEY)
        np.testing.assert_array_equal(result.x, 0)
        np.testing.assert_allclose(result.residual_norm, np.sqrt(shape[0]), rtol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(60, 7), (9, 9), (7, 30)])
@pytest.mark.parametrize("rhs", [(), (2,)])
def test_weights_and_ridge_are_the_augmented_system(n, d, rhs, x64):
    a, b = problem(n, d, rhs=rhs)
    weights = np.random.default_rng(1).uniform(0.1, 3, size=n)
    for used, ridge in [(weights, 0.0), (None, 0.3), (weights, 0.3)]:
        result = lstsq(a, b, KEY, weights=used, ridge=ridge)
        reference = numpy_ridge(a, b, used, ridge)
        assert relative(result.x, reference) < 1e-11
        squares = (b - a @ reference).T ** 2 * (1 if used is None else weights)
        np.testing.assert_allclose(result.residual_norm, np.sqrt(squares.sum(-1)), rtol=1e-8, atol=1e-10)
    assert relative(lstsq(a, b, KEY).x, numpy_ridge(a, b, weights, 0.3)) > 1e-2


@pytest.mark.parametrize(("n", "d"), [(60, 7), (7, 30)])
def test_weight_zero_removes_the_row(n, d, x64):
    a, b = problem(n, d)
    weights = np.arange(n) % 3 > 0
    removed = np.linalg.lstsq(a[weights], b[weights], rcond=None)[0]
    assert relative(lstsq(a, b, KEY, weights=weights).x, removed) < 1e-11


def test_ridge_restores_a_rank_deficient_problem(x64):
    a, b = problem(40, 8, rank=5)
    for ridge in (1e-3, 1.0):
        assert relative(lstsq(a, b, KEY, ridge=ridge).x, numpy_ridge(a, b, ridge=ridge)) < 1e-10


@pytest.mark.parametrize("sketch", ["sparse_sign", "gaussian"])
def test_sketch_and_solve_solves_the_sketched_problem(sketch, x64):
    a, b = problem(3000, 6, rhs=(2,))
    weights = np.random.default_rng(1).uniform(0.1, 3, size=3000)
    result = lstsq(a, b, KEY, weights=weights, sketch=sketch, sketch_size=600, **SKETCHED)
    result.check(require_convergence=True)
    assert result.method == "sketch_and_solve"
    reference = numpy_ridge(a, b, weights)
    root = np.sqrt(weights)[:, None]
    best = np.linalg.norm(root * (b - a @ reference), axis=0)
    np.testing.assert_allclose(result.residual_norm, np.linalg.norm(root * (b - a @ result.x), axis=0), rtol=1e-12)
    # On average (residual/best)^2 - 1 = d / (m - d - 1) = 0.010; its spread is of the same size.
    excess = (np.asarray(result.residual_norm) / best) ** 2 - 1
    assert np.all((excess > 1e-5) & (excess < 0.04))


@pytest.mark.parametrize("sketch", [None, "gaussian"])
def test_sketch_and_solve_is_exact_where_the_fit_is(sketch, x64):
    a, _ = problem(300, 6)
    b = a @ np.arange(1.0, 7.0)
    assert relative(lstsq(a, b, KEY, sketch=sketch, **SKETCHED).x, np.arange(1.0, 7.0)) < 1e-12


def test_smallest_sketch_is_allowed():
    a, b = (value.astype(np.float32) for value in problem(12, 3))
    lstsq(a, b, KEY, sketch_size=3, **SKETCHED).check(require_convergence=True)


@pytest.mark.parametrize("sketch", ["sparse_sign", "gaussian"])
def test_sketched_ridge_is_not_sketched(sketch, x64):
    a, _ = problem(300, 6)
    x = lstsq(a, np.ones(300), KEY, ridge=1e8, sketch=sketch, sketch_size=200, **SKETCHED).x
    # With a huge ridge x = (S a)^T (S b) / ridge, whose mean over S is a^T b / ridge.
    assert np.linalg.norm(1e8 * np.asarray(x) - a.T @ np.ones(300)) < 5 * np.sqrt(6 * 300 / 200)


def median_ratio(d, m, n=4096, sketches=50, rhs=16):
    # Residuals orthogonal to each other give independent errors under one Gaussian sketch, given S a: 800
    # trials (a standard error of 0.8 %) for the draws of 50.
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(n, d + rhs)))
    a, residual = basis[:, :d], basis[:, d:]
    best = np.random.default_rng(1).normal(size=(d, rhs))
    a, b = np.float32(a), np.float32(a @ best + residual)

    @jax.jit
    def solutions(keys):
        return jax.lax.map(lambda key: lstsq(a, b, key, sketch="gaussian", sketch_size=m, **SKETCHED).x, keys)

    errors = np.max(np.abs(solutions(jax.random.split(jax.random.key(1), sketches)) - best), axis=1)
    return np.sqrt(d) * np.median(errors)


@pytest.mark.computes
@pytest.mark.parametrize(("d", "m"), [(32, 512), (32, 1024)])
def test_gaussian_sketch_error_follows_its_law(d, m):
    # For orthonormal a: sqrt(d) ||x' - x||_inf / ||residual||, median over sketches.
    z = statistics.NormalDist().inv_cdf((1 + 2 ** (-1 / d)) / 2)
    assert abs(median_ratio(d, m) / (z * np.sqrt(d / (m - d - 1))) - 1) < 0.04


METHODS = LEAST_SQUARES
SLOW = ("sketched gaussian", "lsqr", "iterative_sketching")  # to compile; the others cover their parts
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in METHODS]


def case(name, rhs=(), seed=0):
    (n, d), options = METHODS[name]
    a, b = problem(n, d, rhs=rhs, seed=seed)
    return a, b, functools.partial(lstsq, **options)


@pytest.mark.parametrize("name", NAMES)
def test_jit_is_eager_and_vmap_is_a_loop(name):
    cases = [case(name, seed=seed) for seed in range(3)]
    a = np.stack([c[0] for c in cases]).astype(np.float32)
    b = np.stack([c[1] for c in cases]).astype(np.float32)
    solve = cases[0][2]
    keys, ridges = jax.random.split(KEY, 3), np.float32([0.0, 0.1, 2.0])

    def run(a, b, key, ridge):
        return solve(a, b, key, ridge=ridge)

    loop = [run(*arguments) for arguments in zip(a, b, keys, ridges, strict=True)]
    batched = jax.vmap(run)(a, b, keys, ridges)
    assert batched.status.shape == (3,)
    for i, one in enumerate(loop):
        np.testing.assert_allclose(batched.x[i], one.x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batched.residual_norm[i], one.residual_norm, rtol=1e-4, atol=1e-5)
    jitted = jax.jit(run)(a[0], b[0], keys[0], ridges[0])
    np.testing.assert_allclose(jitted.x, loop[0].x, rtol=1e-5, atol=1e-6)
    assert isinstance(jitted, LstsqResult)
    assert jitted.method == loop[0].method


@pytest.mark.parametrize("name", ["tall", "sketched"])
def test_right_sides_are_solved_each(name, x64):
    a, b, solve = case(name, rhs=(3,))
    together = solve(a, b, KEY, ridge=0.1)
    for j in range(3):
        alone = solve(a, b[:, j], KEY, ridge=0.1)
        assert relative(together.x[:, j], alone.x) < 1e-12
        np.testing.assert_allclose(together.residual_norm[j], alone.residual_norm, rtol=1e-12)


def differentiable(name, rhs=(2,)):
    """`x` as a function of (a, b, weights, ridge), a point, and a direction to leave it in."""
    a, b, solve = case(name, rhs=rhs)
    rng = np.random.default_rng(2)
    point = (a, b, rng.uniform(0.5, 2, size=len(a)), np.array(0.2))
    direction = tuple(rng.normal(size=p.shape) for p in point)

    def x(a, b, weights, ridge):
        return solve(a, b, KEY, weights=weights, ridge=ridge).x

    return x, point, direction


def moved(point, direction, step):
    return tuple(p + step * v for p, v in zip(point, direction, strict=True))


@pytest.mark.parametrize(
    ("name", "ridge"),
    [("tall", 0.2), ("tall", 0.0), ("wide", 0.2), ("wide", 0.0), ("sketched", 0.2), ("cholesky_qr", 0.0)]
    + [pytest.param(name, 0.2, marks=pytest.mark.slow) for name in ("cholesky_qr", "fossils")],
)
def test_first_derivatives_are_finite_differences(name, ridge, x64):
    x, point, direction = differentiable(name)
    if ridge == 0:  # no negative ridge to difference with; see the next test
        point, direction = (*point[:3], np.array(0.0)), (*direction[:3], np.array(0.0))
    step = 1e-6
    difference = (x(*moved(point, direction, step)) - x(*moved(point, direction, -step))) / (2 * step)
    _, tangent = jax.jvp(x, point, direction)
    assert relative(tangent, np.asarray(difference)) < 1e-6
    _, pull = jax.vjp(x, *point)
    probe = np.random.default_rng(3).normal(size=tangent.shape)
    forward = np.vdot(probe, tangent)
    backward = sum(np.vdot(g, v) for g, v in zip(pull(probe), direction, strict=True))
    np.testing.assert_allclose(backward, forward, rtol=1e-9)


@pytest.mark.parametrize("name", ["tall", "wide"])
def test_derivative_in_the_ridge_at_zero(name, x64):
    a, b, solve = case(name)
    slope = jax.jacobian(lambda ridge: solve(a, b, KEY, ridge=ridge).x)(0.0)
    pseudo = np.linalg.pinv(a)
    assert relative(slope, -pseudo @ pseudo.T @ (pseudo @ b)) < 1e-10


@pytest.mark.parametrize("name", ["tall", "wide"])
def test_second_derivatives_are_finite_differences(name, x64):
    x, point, direction = differentiable(name, rhs=())
    gradient = jax.jit(jax.grad(lambda *point: jnp.sum(jnp.sin(x(*point))), argnums=(0, 1, 2, 3)))
    step = 1e-6
    _, tangent = jax.jvp(gradient, point, direction)
    plus, minus = gradient(*moved(point, direction, step)), gradient(*moved(point, direction, -step))
    for t, p, m in zip(tangent, plus, minus, strict=True):
        assert relative(t, np.asarray(p - m) / (2 * step)) < 1e-6


def test_derivative_in_a_zero_weight(x64):
    a, b, solve = case("tall")
    weights = np.ones(len(b))
    weights[3] = 0.0
    slope = jax.jacobian(lambda w: solve(a, b, KEY, weights=w).x)(weights)[:, 3]
    x = np.linalg.lstsq(np.sqrt(weights)[:, None] * a, np.sqrt(weights) * b, rcond=None)[0]
    gram = a.T @ (weights[:, None] * a)
    assert relative(slope, np.linalg.solve(gram, a[3] * (b[3] - a[3] @ x))) < 1e-10
    a, b, solve = case("wide")
    weights = np.ones(len(b)) - np.eye(len(b))[1]
    gradient = jax.grad(lambda w: solve(a, b, KEY, weights=w).x.sum())(weights)
    assert np.all(np.isfinite(gradient))
    assert gradient[1] == 0


def test_derivatives_stay_finite_where_they_could_not(x64):
    a, b = problem(40, 8, rank=5)
    pseudo = np.linalg.pinv(a)
    assert relative(jax.jacobian(lambda b: lstsq(a, b, KEY).x)(b), pseudo) < 1e-10
    for gradient in jax.grad(lambda a, r: lstsq(a, b, KEY, ridge=r).x.sum(), argnums=(0, 1))(a, 0.0):
        assert np.all(np.isfinite(gradient))
    # An exact fit: the norm of a zero residual has no derivative, and must not give NaN.
    exact = jax.grad(lambda b: lstsq(np.eye(4), b, KEY).residual_norm)(np.arange(4.0))
    np.testing.assert_array_equal(exact, 0)


def test_dtype_is_preserved_under_strict_promotion():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for name in ("tall", "wide", "sketched"):
            a, b, solve = case(name)
            a, b = a.astype(np.float32), b.astype(np.float32)
            weights = np.ones(len(b))  # float64, and not what decides

            def x(b, a=a, solve=solve, weights=weights):
                return solve(a, b, KEY, weights=weights, ridge=0.1)

            result, tangent = jax.jvp(x, (b,), (b,))
            assert result.x.dtype == result.residual_norm.dtype == tangent.x.dtype == jnp.float32
            assert result.status.dtype == result.num_steps.dtype == jnp.int32
        assert lstsq(*problem(60, 7), KEY).x.dtype == jnp.float64


def test_one_compile_serves_every_ridge():
    a, b = problem(23, 3)  # a shape of its own, so that no other test has compiled it
    a, b = a.astype(np.float32), b.astype(np.float32)
    before = least_squares._solve._cache_size()
    xs = [lstsq(a, b, KEY, ridge=ridge).x for ridge in (0.1, 1, np.float64(2.0), jnp.float32(3.0))]
    assert least_squares._solve._cache_size() == before + 1
    assert all(np.linalg.norm(x - y) > 1e-3 for x, y in itertools.pairwise(xs))


A, B = (value.astype(np.float32) for value in problem(12, 3))


def spoiled(array, value):
    array = array.copy()
    array.flat[1] = value
    return array


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "qr"}, r"method is 'qr'; expected one of \('auto', 'direct', 'normal_equations', 'cholesky_qr'"),
        ({"sketch": "gaussian"}, "sketch is 'gaussian'; expected None, for the method 'direct'"),
        ({"sketch_size": 9, "method": "direct"}, "sketch_size is 9; expected None, for the method 'direct'"),
        ({"tolerance": 1e-3}, "tolerance is 0.001; expected None, for the method 'direct'"),
        (
            {"max_steps": 100, **SKETCHED},
            "max_steps is 100; expected None, for the method 'sketch_and_solve'",
        ),
        ({"tolerance": 0.0, **SKETCHED}, "tolerance is 0.0; expected None"),
        ({"sketch": "fast", **SKETCHED}, "sketch is 'fast'; expected one of"),
        (
            {"sketch": np.ones((4, 12)), **SKETCHED},
            r"sketch is a ndarray of shape \(4, 12\); expected a name or a sketch",
        ),
        ({"sketch": CountSketch.create(KEY, 8, 11), **SKETCHED}, r"of shape \(8, 11\); .* a sketch \(m, 12\), m >= 3"),
        ({"sketch": CountSketch.create(KEY, 8, 12), "sketch_size": 8, **SKETCHED}, "sketch_size is 8; expected None"),
        ({"method": "fossils", "max_steps": 0}, "max_steps must be an integer of at least 1; got 0"),
        ({"method": "lsqr", "tolerance": -1.0}, "tolerance has the least value -1.0"),
        ({"method": "cholesky_qr", "tolerance": 1e-3}, "tolerance is 0.001; expected None"),
        ({"a": A[:2], "b": B[:2], "method": "lsqr"}, r"a has shape \(2, 3\); expected n >= d"),
        ({"sketch_size": 2, **SKETCHED}, "sketch_size must be an integer of at least 3; got 2"),
        ({"sketch_size": 9.0, **SKETCHED}, "sketch_size must be an integer.*; got 9.0"),
        ({"a": A[:2], "b": B[:2], **SKETCHED}, r"a has shape \(2, 3\); expected n >= d"),
        ({"key": 0}, "key must be one typed key.*; got int"),
        ({"key": jax.random.split(KEY, 12)}, r"key must be one typed key.*; got key<fry> of shape \(12,\)"),
        ({"a": A[:, 0]}, r"a has shape \(12,\) and b has shape \(12,\)"),
        ({"b": B[:-1]}, r"a has shape \(12, 3\) and b has shape \(11,\)"),
        ({"b": B[:, None, None]}, r"b has shape \(12, 1, 1\)"),
        ({"a": A[:0], "b": B[:0]}, r"a has shape \(0, 3\) .* no size zero"),
        ({"a": A[:, :0]}, r"a has shape \(12, 0\)"),
        ({"b": np.zeros((12, 0), np.float32)}, r"b has shape \(12, 0\)"),
        ({"a": np.ones((12, 3), int)}, "a has dtype int32; expected float32 or float64"),
        ({"b": B.astype(np.complex64)}, "b has dtype complex64; expected float32 or float64"),
        ({"a": A.astype(np.float16)}, "a has dtype float16; expected float32 or float64"),
        ({"a": spoiled(A, np.nan)}, "a holds NaN or infinite values"),
        ({"b": spoiled(B, np.inf)}, "b holds NaN or infinite values"),
        ({"weights": np.ones(3)}, r"weights has shape \(3,\); expected \(12,\)"),
        (
            {"weights": spoiled(np.ones(12), -1)},
            "weights has the least value -1.0; expected finite values of at",
        ),
        ({"weights": spoiled(np.ones(12), np.nan)}, "weights has the least value nan"),
        ({"weights": spoiled(np.ones(12), np.inf)}, "weights .* expected finite values"),
        ({"weights": np.ones(12, np.complex64)}, "weights has dtype complex64"),
        ({"ridge": -0.1}, "ridge has the least value -0.1"),
        ({"ridge": np.nan}, "ridge has the least value nan"),
        ({"ridge": np.ones(2)}, r"ridge has shape \(2,\); expected \(\)"),
        ({"ridge": 1j}, "ridge has dtype complex64"),
    ],
    ids=str,
)
def test_the_door_refuses(changes, message):
    arguments = {"a": A, "b": B, "key": KEY, **changes}
    with pytest.raises(ValueError, match=message):
        lstsq(arguments.pop("a"), arguments.pop("b"), arguments.pop("key"), **arguments)


def test_the_door_refuses_two_dtypes(x64):
    with pytest.raises(ValueError, match="a has dtype float32 and b has dtype float64"):
        lstsq(A, B.astype(float), KEY)


def test_constants_of_a_traced_function_are_looked_at():
    bad = jnp.asarray(spoiled(A, np.nan))
    with pytest.raises(ValueError, match="a holds NaN"):
        jax.jit(lambda b: lstsq(bad, b, KEY).x)(B)
    good = jnp.asarray(A)
    np.testing.assert_allclose(jax.jit(lambda b: lstsq(good, b, KEY).x)(B), lstsq(A, B, KEY).x, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, SKETCHED], ids=["direct", "sketched"])
def test_traced_nan_is_a_status_of_its_own_problem(options):
    b = np.stack([B, spoiled(B, np.nan), B])
    result = jax.jit(jax.vmap(lambda b: lstsq(A, b, KEY, **options)))(b)
    np.testing.assert_array_equal(result.status, [status.CONVERGED, status.NONFINITE, status.CONVERGED])
    np.testing.assert_array_equal(result.converged, [True, False, True])
    assert np.all(np.isfinite(result.x[0]))
    with pytest.raises(status.SolveError, match=r"1 of 3 lanes \(lane 1\): the solution or its residual is"):
        result.check(require_convergence=True)
    jax.tree.map(lambda leaf: leaf[::2], result).check(require_convergence=True)


# ------------------------------------------------------------------------------------ as accurate as a QR, on any input


def planted(n, d, condition, size, seed=0):
    """A problem of given condition number whose residual has norm `size`, and its solution."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((n, d)))
    v, _ = np.linalg.qr(rng.standard_normal((d, d)))
    x = rng.standard_normal(d)
    x /= np.linalg.norm(x)
    residual = rng.standard_normal(n)
    residual -= u @ (u.T @ residual)
    a = (u * np.geomspace(1, 1 / condition, d)) @ v.T
    return a, a @ x + size * residual / np.linalg.norm(residual), x


def backward(a, b, x):
    """The estimate of Karlson and Walden with the exact singular values."""
    _, s, vt = np.linalg.svd(a, full_matrices=False)
    r = b - a @ x
    g = vt @ (a.T @ r)
    return np.sqrt(np.sum(g**2 / (s**2 + (r @ r) / (x @ x)))) / np.linalg.norm(x) / s[0]


ACCURATE = {
    "auto": {},
    "cholesky_qr": {"method": "cholesky_qr", "sketch": "sparse_sign"},
    "fossils": {"method": "fossils"},
}


@pytest.mark.parametrize("name", ACCURATE)
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6, 1e10, 1e14])
def test_as_accurate_as_qr(name, condition, x64):
    for size in (1e-12, 1e-3, 1.0):
        a, b, _ = planted(2000, 20, condition, size)
        q, r = np.linalg.qr(a)
        reference = scipy.linalg.solve_triangular(r, q.T @ b)
        result = lstsq(a, b, KEY, **ACCURATE[name])
        result.check(require_convergence=True)
        eps = np.finfo(float).eps
        # Directions within 30 eps of the largest may be left out, which is a perturbation of that size.
        level = 30 if condition > 1e13 else 4
        assert backward(a, b, np.asarray(result.x)) < level * max(backward(a, b, reference), eps)
        # The conditioning of least squares: condition, and its square times the residual (Wedin).
        bound = eps * (condition + condition**2 * size)
        if bound < 0.01:
            assert relative(result.x, reference) < 100 * bound
        np.testing.assert_allclose(result.residual_norm, np.linalg.norm(b - a @ reference), rtol=1e-7, atol=1e-14)
        assert float(result.backward_error) < level * eps
        assert condition > 1e13 or 0.3 < float(result.condition) / condition < 3
        assert int(result.rank) >= (19 if condition > 1e13 else 20)


def test_auto_says_what_it_did(x64):
    steps = {}
    for condition in (10.0, 1e6, 1e11):
        a, b, _ = planted(2000, 20, condition, 1.0)
        result = lstsq(a, b, KEY)
        assert result.method == "cholesky_qr"
        steps[condition] = int(result.num_steps), bool(result.sketched)
    assert steps == {10.0: (1, False), 1e6: (1, True), 1e11: (1, True)}
    assert lstsq(a[:60], b[:60], KEY).method == "direct"


def test_normal_equations_say_when_they_fail(x64):
    a, b, _ = planted(2000, 20, 1e6, 1.0)
    result = lstsq(a, b, KEY, method="normal_equations")
    assert int(result.status) == status.STALLED
    with pytest.raises(status.SolveError, match=r"too ill-conditioned .* use method 'cholesky_qr'"):
        result.check(require_convergence=True)
    lstsq(*planted(2000, 20, 100.0, 1.0)[:2], KEY, method="normal_equations").check(require_convergence=True)


def test_forward_stable_methods_are_not_backward_stable(x64):
    """What LSQR and iterative sketching are known to lack, beside what they reach."""
    a, b, _ = planted(2000, 20, 1e6, 1.0)
    reference = np.linalg.lstsq(a, b, rcond=None)[0]
    for method in ("lsqr", "iterative_sketching"):
        result = lstsq(a, b, KEY, method=method)
        result.check(require_convergence=True)
        assert relative(result.x, reference) < 1e-4  # condition^2 eps
        assert float(result.backward_error) > 1e-14
        assert int(result.num_steps) < 40
    assert int(lstsq(a, b, KEY, method="lsqr", max_steps=3).status) == status.RUNNING


def test_coherent_rows_and_scales_do_not_matter(x64):
    rng = np.random.default_rng(0)
    a = 1e-3 * rng.standard_normal((3000, 10))
    a[:30] = 1e3 * rng.standard_normal((30, 10))
    a[:, 3] *= 1e3
    b = rng.standard_normal(3000)
    reference = np.linalg.lstsq(a, b, rcond=1e-20)[0]
    for options in ({}, {"method": "cholesky_qr", "sketch": "count", "sketch_size": 400}, {"method": "fossils"}):
        result = lstsq(a, b, KEY, **options)
        result.check(require_convergence=True)
        assert relative(result.x * np.linalg.norm(a, axis=0), reference * np.linalg.norm(a, axis=0)) < 1e-9


@pytest.mark.parametrize(
    "options", [{"method": "cholesky_qr"}, {"method": "cholesky_qr", "sketch": "srht"}, {"method": "fossils"}]
)
def test_rank_deficient_problems_have_the_answer_of_least_norm(options, x64):
    a, b = problem(2000, 8, rank=5)
    result = lstsq(a, b, KEY, **options)
    result.check(require_convergence=True)
    assert int(result.rank) == 5
    assert relative(result.x, np.linalg.lstsq(a, b, rcond=1e-10)[0]) < 1e-10
    zero = lstsq(0 * a, b, KEY, **options)
    np.testing.assert_array_equal(zero.x, 0)


def test_weights_and_ridge_of_the_fast_methods(x64):
    a, b = problem(900, 7, rhs=(2,))
    weights = np.random.default_rng(1).uniform(0.1, 3, size=900)
    for method in ("cholesky_qr", "lsqr", "iterative_sketching", "fossils"):
        for ridge in (0.0, 0.3):  # a new value compiles nothing
            result = lstsq(a, b, KEY, method=method, weights=weights, ridge=ridge)
            assert relative(result.x, numpy_ridge(a, b, weights, ridge)) < 1e-11
            assert np.all(np.asarray(result.backward_error) < 1e-14)


def test_operators_and_sparse_matrices(x64):
    a, b = problem(400, 6, rhs=(2,))
    a[np.abs(a) < 0.03] = 0
    reference = np.linalg.lstsq(a, b, rcond=None)[0]
    sparse = BCOO.fromdense(jnp.asarray(a))
    for method in ("auto", "lsqr", "sketch_and_solve"):
        result = lstsq(sparse, b, KEY, method=method)
        assert result.method == ("fossils" if method == "auto" else method)
        if method != "sketch_and_solve":
            assert relative(result.x, reference) < 1e-12
    np.testing.assert_allclose(
        lstsq(sparse, b, KEY, method="sketch_and_solve").x, lstsq(a, b, KEY, method="sketch_and_solve").x, rtol=1e-9
    )
    gradient = jax.grad(lambda b: lstsq(sparse, b, KEY).x.sum())(b)
    np.testing.assert_allclose(gradient, np.linalg.pinv(a).T @ np.ones((6, 2)), atol=1e-10)
    with pytest.raises(ValueError, match="method is 'cholesky_qr' and a is an operator; expected an array"):
        lstsq(sparse, b, KEY, method="cholesky_qr")


def test_what_people_hold_their_matrices_in(x64):
    a, b = problem(400, 6)
    a[np.abs(a) < 0.03] = 0
    reference = np.linalg.lstsq(a, b, rcond=None)[0]
    csr = scipy.sparse.csr_matrix(a)
    single = BCOO.fromdense(jnp.asarray(a))
    for matrix in (
        csr,
        csr.tocsc(),
        scipy.sparse.coo_array(csr),
        BCSR.from_bcoo(single),
        CSR.fromdense(jnp.asarray(a)),
    ):
        result = lstsq(matrix, b.tolist(), KEY)
        assert result.method == "fossils"
        assert relative(result.x, reference) < 1e-11
    pandas = pytest.importorskip("pandas")
    for matrix in (pandas.DataFrame(a), a.tolist(), a.astype(">f8")):
        assert relative(lstsq(matrix, pandas.Series(b), KEY, weights=np.ones(400).tolist()).x, reference) < 1e-11


HANGS = """
import jax, jax.numpy as jnp, lrjax as lr
key = jax.random.key(0)
a = jnp.ones((6, 3)).at[0, 0].set(jnp.inf) + jnp.arange(18.0).reshape(6, 3)
for name, call in enumerate((
    lambda a: lr.lstsq(a, a[:, 1], key).x,
    lambda a: lr.lstsq(a.T, a[:3, 1], key).x,
    lambda a: lr.lstsq(a, a[:, 1], key, method="sketch_and_solve").x,
    lambda a: lr.rsvd(a, 2, key=key)[1],
    lambda a: lr.low_rank(a, 2).left,
    lambda a: lr.low_rank(jnp.ones((6, 3)), 2, row_metric=a @ a.T).left,
    lambda a: lr.sketching.leverage_scores(a),
    lambda a: lr.sketching.lp_regression(a, a[:, 1], 1.5).x,
    lambda a: lr.ho_kalman(jnp.roll(jnp.ravel(a), 1)[:, None, None], 2).a,
    lambda a: lr.private.LowRankSketch.create(key, (6, 3), size=2).add(a).low_rank(2).left,
)):
    assert not jnp.all(jnp.isfinite(jax.jit(call)(a))), name
assert int(jax.jit(lambda a: lr.lstsq(a, a[:, 1], key).status)(a)) == lr.status.NONFINITE
print("returned")
"""


def test_a_traced_infinity_comes_back():
    """In a process of its own: the fault was a loop in LAPACK that only a kill ends."""
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=300, check=False)
    assert "returned" in done.stdout, done.stderr[-2000:]


def test_strict_ranks_and_no_warnings_from_inside():
    a, b = problem(60, 4)  # float64 without x64: converted without a word
    with jax.numpy_rank_promotion("raise"):
        for method in ("lsqr", "iterative_sketching"):
            result = lstsq(a, b, KEY, method=method, weights=np.ones(60), ridge=0.1)
            assert relative(result.x, numpy_ridge(a, b, ridge=0.1)) < 1e-4


def test_any_sketch_will_do(x64):
    a, b = problem(500, 5)
    reference = np.linalg.lstsq(a, b, rcond=None)[0]
    for sketch in ("count", "srdct", "block_srht", "pooled", SparseSignSketch.create(KEY, 100, 500)):
        assert relative(lstsq(a, b, KEY, method="cholesky_qr", sketch=sketch).x, reference) < 1e-12


def test_fast_methods_do_not_copy_the_matrix(x64):
    n, d = 2**15, 64
    a, b = jax.ShapeDtypeStruct((n, d), np.float64), jax.ShapeDtypeStruct((n,), np.float64)
    for method in ("cholesky_qr", "sketch_and_solve", "fossils"):
        run = jax.jit(lambda a, b, key, method=method: lstsq(a, b, key, method=method).x)
        memory = run.lower(a, b, jax.random.key(0)).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.6 * n * d * 8, method


# --------------------------------------------------------------------------------------------------- blocks of rows


def test_blocks_of_rows_are_the_whole(x64):
    a, b, _ = planted(3000, 12, 1e8, 1e-3)
    cuts = [0, 700, 1400, 2100, 2990, 3000]
    blocks = lambda: ((a[i:j], b[i:j]) for i, j in itertools.pairwise(cuts))
    result = lstsq_blocks(blocks, KEY)
    result.check(require_convergence=True)
    reference = np.linalg.lstsq(a, b, rcond=1e-20)[0]
    assert backward(a, b, np.asarray(result.x)) < 1e-15
    assert relative(result.x, reference) < 1e-2
    np.testing.assert_allclose(result.residual_norm, 1e-3, rtol=1e-6)
    assert result.x.shape == (12,)
    ridge = lstsq_blocks(blocks, KEY, ridge=0.1)
    assert relative(ridge.x, numpy_ridge(a, b, ridge=0.1)) < 1e-10
    # One pass, from an iterator: a little worse than optimal, and it says that it does not know by how much.
    once = lstsq_blocks(blocks(), KEY, method="sketch_and_solve")
    assert np.isnan(once.residual_norm)
    assert np.linalg.norm(b - a @ once.x) < 1.05 * np.linalg.norm(b - a @ reference)


def test_blocks_of_a_memory_mapped_file(tmp_path, x64):
    a, b, _ = planted(3000, 12, 1e8, 1e-3)
    for name, part in (("a", a), ("b", b)):
        np.save(tmp_path / f"{name}.npy", part)
    held = tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "ab")
    result = lstsq_blocks(held, KEY, block_rows=750)
    result.check(require_convergence=True)
    assert backward(a, b, np.asarray(result.x)) < 1e-15
    pairs = [(a[i : i + 750], b[i : i + 750]) for i in range(0, 3000, 750)]
    np.testing.assert_array_equal(lstsq_blocks(pairs, KEY).x, result.x)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((A, B[:5]), r"a has shape \(12, 3\) and b has shape \(5,\)"),
        (iter([(A, B)]), r"blocks is an iterator .*Give the function that makes it \(f, not f\(\)\)"),
        (lambda: iter([]), "blocks yielded nothing"),
        (lambda: [(A, B), (A[:, :2], B)], r"block 1 has a of shape \(12, 2\)"),
        (lambda: [(A, B[:5])], r"block 0 has a of shape \(12, 3\), float32, and b of shape \(5,\)"),
        (lambda: [(spoiled(A, np.nan), B)], "a of block 0 holds NaN"),
    ],
    ids=["pair", "iterator", "none", "columns", "rows", "not finite"],
)
def test_blocks_that_do_not_fit_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        lstsq_blocks(blocks, KEY)


def test_a_sketch_that_hides_a_direction_is_found_out(x64):
    a, b, _ = planted(400, 6, 10.0, 1.0)
    blind = np.zeros(400)
    a[:, 5], blind[:2] = 0, 1
    a[0, 5], b[0] = 1.0, 50.0  # one row alone carries the last column, and the sketch below does not look at it

    class Blind:
        shape = (40, 400)

        def apply(self, x):
            return SparseSignSketch.create(KEY, 40, 400).apply(
                jnp.where((blind > 0).reshape(-1, *[1] * (x.ndim - 1)), 0, x)
            )

        apply_adjoint = None

    jax.tree_util.register_static(Blind)
    result = lstsq(a, b, KEY, method="cholesky_qr", sketch=Blind())
    assert int(result.rank) == 5
    assert float(result.backward_error) > 1e-3
    assert int(result.status) == status.STALLED
    lstsq(a, b, KEY, method="cholesky_qr", sketch="sparse_sign").check(require_convergence=True)


def test_rows_that_the_guess_does_not_see(x64):
    """Whether the few rows that "auto" guesses from miss the heavy ones, or are the heavy ones: the answer of a QR."""
    rng = np.random.default_rng(0)
    g, b = rng.standard_normal((8000, 20)), rng.standard_normal(8000)
    for rows, sizes in ((np.array([7, 11]), [1e8, 1e7]), (np.arange(0, 8000, 100), 1e7)):
        a = g.copy()
        a[rows] *= np.reshape(sizes, (-1, 1))
        result = lstsq(jnp.asarray(a), jnp.asarray(b), KEY)
        assert int(result.status) == status.CONVERGED
        q, r = np.linalg.qr(a)
        np.testing.assert_allclose(result.x, np.linalg.solve(r, q.T @ b), rtol=1e-6, atol=1e-9)
        assert float(result.backward_error) < 1e-14
