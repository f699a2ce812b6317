"""The coordinate-wise guarantee: the law of dense sketches, and where sparse sketches and row samples fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import lrjax as lr
from lrjax.sketching import SRHT, CountSketch, GaussianSketch, PooledSketch, SparseSignSketch

pytestmark = pytest.mark.computes
KEY = jax.random.key(7)
N, D = 4096, 32


def predicted(d, m, size=None):
    """The median ratio for orthonormal `a` and a Gaussian sketch; `size` for draws without replacement from so many."""
    ratio = norm.ppf((1 + 2 ** (-1 / d)) / 2) * np.sqrt(d / (m - d - 1))
    return ratio if size is None else ratio * np.sqrt(1 - m / size)


def instance(kind, d=D, n=N):
    """Orthonormal columns, and residuals orthogonal to them, all of norm one."""
    rng = np.random.default_rng(3)
    if kind == "generic":
        q, _ = np.linalg.qr(rng.standard_normal((n, d + 8)))
        return q[:, :d], q[:, d:]
    a, residual = np.eye(n, d), np.zeros((n, 1))
    if kind == "coherent":
        residual[d : 2 * d] = d**-0.5
    else:
        residual[d] = 1
    return a, residual


def ratios(make, a, residual, trials, key=KEY):
    """`sqrt(d) ||x' - x*||_inf` over sketches and residuals; the exact solution is zero."""
    a, residual = jnp.asarray(a), jnp.asarray(residual)

    @jax.jit
    def run(keys):
        def one(key):
            sketch = make(key)
            x = lr.lstsq(a, residual, key, method="sketch_and_solve", sketch=sketch).x
            return jnp.sqrt(a.shape[1]) * jnp.max(jnp.abs(x), axis=0)

        return jax.lax.map(one, keys)

    return np.asarray(run(jax.random.split(key, trials))).ravel()


def medians(kind, m, d=D, trials=60):
    """Median ratio on generic data; the residuals are correlated through the sketch, so both are drawn."""
    return np.median(ratios(lambda key: kind(key, m, N), *instance("generic", d), trials))


@pytest.mark.parametrize(("d", "m"), [(32, 512), (64, 2048), pytest.param(128, 4096, marks=pytest.mark.slow)])
def test_gaussian_sketches_follow_the_law(d, m, x64):
    assert abs(medians(GaussianSketch.create, m, d, trials=40) / predicted(d, m) - 1) < 0.05


def test_error_falls_like_the_root_of_the_rows(x64):
    m = np.array([256, 512, 1024, 2048])
    found = [medians(GaussianSketch.create, int(rows), trials=20) for rows in m]
    slope = np.polyfit(np.log(m), np.log(found), 1)[0]
    assert -0.65 < slope < -0.45


@pytest.mark.parametrize("m", [512, 2048])
def test_srht_gains_from_draws_without_replacement(m, x64):
    found = medians(SRHT.create, m)
    assert abs(found / predicted(D, m, N) - 1) < 0.06


def test_pooling_of_thirty_two_rows_is_enough(x64):
    few = medians(lambda key, m, n: PooledSketch.create(key, m, n, pool=4), 1024)
    enough = medians(PooledSketch.create, 1024)
    assert abs(enough / predicted(D, 1024) - 1) < 0.05
    assert few > 1.06 * enough


def test_count_sketch_fails_on_coherent_data(x64):
    a, residual = instance("coherent")
    for m in (256, 512):
        hit = ratios(lambda key, m=m: CountSketch.create(key, m, N), a, residual, 100)
        # Whole numbers, but for the rare sketch that loses rank: either no two of the rows that matter meet, or the
        # error is at least one, whatever the number of rows.
        assert np.mean(np.abs(hit - np.round(hit)) < 1e-9) > 0.85
        assert abs(np.median(hit) - 1) < 1e-9
    for kind in (GaussianSketch, SRHT, SparseSignSketch):
        assert np.median(ratios(lambda key, kind=kind: kind.create(key, 1024, N), a, residual, 60)) < 0.6


def test_one_collision_is_the_whole_error(x64):
    a, residual = instance("spike")
    hit = ratios(lambda key: CountSketch.create(key, 256, N), a, residual, 400)
    assert np.all((hit < 1e-9) | (hit > 0.3 * np.sqrt(D)))
    assert abs(np.quantile(hit, 0.95) - np.sqrt(D)) < 1e-9
    assert abs(np.mean(hit > 1) - D / 256) < 5 * np.sqrt(D / 256 / 400)
    assert np.quantile(ratios(lambda key: SRHT.create(key, 1024, N), a, residual, 60), 0.95) < 0.8


def test_counterexample_to_embedding_plus_one_direction(x64):
    """All singular values in [0.9, 1.1] and any fixed direction nearly kept do not bound the error of a coordinate."""
    d, rho, alpha = 200, 1 / 20, 1 / 20
    v = np.random.default_rng(0).standard_normal(d)
    v[0] = 0
    v /= np.linalg.norm(v)
    first = np.eye(d)[0]
    inverse = np.linalg.inv(np.eye(d) + rho * (np.outer(first, v) + np.outer(v, first)))
    error = -first @ inverse @ (alpha * v)
    assert abs(error / (alpha * rho / (1 - rho**2)) - 1) < 1e-12
    assert abs(error - 0.00250626566416040) < 1e-15


def test_gaussians_are_no_substitute_for_random_signs():
    """Two coordinates, `a` their sum and the residual their difference: the error is near `cos(2 t)`, `t` uniform."""
    rng, m, trials = np.random.default_rng(0), 512, 4000
    rows = np.where(rng.random((trials, m)) < 0.5, -1.0, 1.0)  # entries of the Hadamard matrix: (1, +-1)

    def failures(diagonal):
        sum_, difference = (diagonal[:, :1] + sign * diagonal[:, 1:] * rows for sign in (1, -1))
        return np.mean(np.abs(np.sum(sum_ * difference, axis=1) / np.sum(sum_**2, axis=1)) >= 3 / 7)

    found = failures(rng.standard_normal((trials, 2)))
    assert found > 2 - 4 / np.pi * np.arctan(2)  # the bound of the theory, 0.590
    assert abs(found - (1 - 2 / np.pi * np.arcsin(3 / 7))) < 0.03
    assert failures(rng.choice([-1.0, 1.0], (trials, 2))) < 0.01


def test_the_door_keeps_its_promise(x64):
    rng = np.random.default_rng(5)
    a = np.linalg.qr(rng.standard_normal((2**14, 8)))[0] * np.geomspace(1, 0.1, 8)
    b = a @ rng.standard_normal(8) + 0.01 * rng.standard_normal(2**14)
    m = lr.sketching.coordinatewise_sketch_size(8, 0.5, 0.05)
    assert m == 9 + np.ceil(8 * (norm.ppf(1 - 0.05 / 16) / 0.5) ** 2)
    for sketch in ("pooled", "srht", "gaussian"):
        bad = 0
        for key in jax.random.split(KEY, 12):
            result = lr.sketching.coordinatewise_lstsq(a, b, key, epsilon=0.5, delta=0.05, sketch=sketch)
            bad += float(lr.sketching.coordinatewise_ratio(a, b, result.x)) > 0.5
        assert bad <= 3
    exact = np.linalg.lstsq(a, b, rcond=None)[0]
    np.testing.assert_allclose(lr.sketching.coordinatewise_ratio(a, b, exact), 0, atol=1e-10)
    with pytest.raises(ValueError, match="sketch is 'count'; expected one of"):
        lr.sketching.coordinatewise_lstsq(a, b, KEY, epsilon=0.5, sketch="count")
    with pytest.raises(ValueError, match=r"it takes a sketch of .* rows, and a has only"):
        lr.sketching.coordinatewise_lstsq(a, b, KEY, epsilon=0.01)
    with pytest.raises(ValueError, match="delta must"):
        lr.sketching.coordinatewise_lstsq(a, b, KEY, epsilon=0.5, delta=1.5)


def test_row_samples_fail_where_one_block_matters(x64):
    """`d` blocks of equal rows: uniform leverage, and a residual on two rows of one block."""
    a = np.kron(np.eye(D), np.ones((N // D, 1))) / np.sqrt(N // D)
    residual = np.zeros((N, 1))
    residual[0], residual[1] = 0.5**0.5, -(0.5**0.5)
    scores, m = jnp.ones(N), 512
    sampled = ratios(lambda key: lr.sketching.RowSample.create(key, scores, m), a, residual, 300)
    assert np.median(sampled) < 1e-9
    assert np.quantile(sampled, 0.99) > 3
    for make in (SRHT.create, lambda key, m, n: PooledSketch.create(key, m, n, pool=64)):
        dense = ratios(lambda key, make=make: make(key, m, N), a, residual, 300)
        assert np.quantile(dense, 0.99) < 1.2
