"""Row samples, the scores to draw by, and determinantal samples: exact identities and laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from lrjax.sketching import (
    RowSample,
    leverage_scores,
    lewis_weights,
    lp_sensitivities,
    mixed_scores,
    projection_dpp,
    repeated_dpp,
    root_leverage_scores,
    row_sampling,
    volume_rescaled_sample,
)

KEY = jax.random.key(0)
both_ways = pytest.mark.parametrize("replacement", [True, False], ids=["with", "without"])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def some_scores(n, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).exponential(size=n).astype(dtype)


def dense(sample, dtype=np.float32):
    return np.asarray(sample.apply(jnp.eye(sample.num_cols, dtype=dtype)))


# --- the sample ------------------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_it_is_the_matrix_it_says(replacement, p):
    sample = RowSample.create(KEY, some_scores(37), 13, replacement=replacement, p=p)
    s = np.zeros((13, 37))
    s[np.arange(13), sample.indices] = np.asarray(sample.weights) ** (1 / p)
    assert sample.shape == (13, 37)
    np.testing.assert_allclose(dense(sample), s, rtol=1e-6)
    z = np.random.default_rng(1).normal(size=(13, 4)).astype(np.float32)
    np.testing.assert_allclose(sample.apply_adjoint(z), s.T @ z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sample.apply_adjoint(z[:, 0]), s.T @ z[:, 0], rtol=1e-5, atol=1e-5)
    a = np.random.default_rng(2).normal(size=37).astype(np.float32)
    np.testing.assert_allclose(sample.apply(a), s @ a, rtol=1e-5)
    _, pull = jax.vjp(sample.apply, jnp.ones((37, 4)))
    np.testing.assert_allclose(pull(z)[0], sample.apply_adjoint(z), rtol=1e-6)
    # Weights multiply the loss.
    loss = np.sum(np.asarray(sample.weights) * np.abs(a[sample.indices]) ** p)
    np.testing.assert_allclose(np.sum(np.abs(sample.apply(a)) ** p), loss, rtol=1e-5)


@both_ways
def test_jit_and_vmap_agree_with_a_loop(replacement):
    scores = some_scores(100)
    draw = lambda key: RowSample.create(key, scores, 20, replacement=replacement)
    keys = jax.random.split(KEY, 4)
    batch = jax.vmap(draw)(keys)
    for i in range(4):
        one = draw(keys[i])
        np.testing.assert_array_equal(batch.indices[i], one.indices)
        np.testing.assert_allclose(batch.weights[i], one.weights, rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(draw)(keys[0]).indices, batch.indices[0])
    assert np.any(batch.indices[0] != batch.indices[1])


@pytest.mark.parametrize("enable", [False, True], ids=["x32", "x64"])
def test_dtypes(enable):
    with jax.enable_x64(enable), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for replacement in (True, False):
            sample = RowSample.create(KEY, some_scores(30), 7, replacement=replacement)
            assert (sample.indices.dtype, sample.weights.dtype) == (jnp.int32, jnp.float32)
            assert sample.apply(jnp.ones((30, 2), jnp.float32)).dtype == jnp.float32
        a = jnp.asarray(np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32))
        for scores in (
            leverage_scores(a),
            leverage_scores(a, key=KEY),
            root_leverage_scores(a, 1.0),
            lewis_weights(a, 3.0),
            lp_sensitivities(a, 1.5, num_steps=5),
        ):
            assert scores.dtype == jnp.float32
        phi = jnp.linalg.qr(a)[0]
        assert projection_dpp(KEY, phi).dtype == jnp.int32
        assert volume_rescaled_sample(KEY, phi, 9).apply(phi).dtype == jnp.float32
        if enable:
            sample = RowSample.create(KEY, some_scores(30, np.float64), 7)
            assert sample.weights.dtype == jnp.float64
            assert sample.apply_adjoint(jnp.ones(7, jnp.float32)).dtype == jnp.float32


@both_ways
def test_expected_gram_matrix_is_the_identity(replacement):
    """The diagonal of S^T S is what is random: off the diagonal it is zero."""
    n, m, trials = 12, 7, 4000
    scores = some_scores(n) ** 2 + 0.3

    def diagonal(key):
        sample = RowSample.create(key, scores, m, replacement=replacement)
        return sample.apply_adjoint(sample.apply(jnp.ones(n)))

    values = np.asarray(jax.jit(jax.vmap(diagonal))(jax.random.split(KEY, trials)), float)
    assert np.all(np.abs(values.mean(0) - 1) < 5 * values.std(0) / np.sqrt(trials) + 1e-6)


def test_draws_with_replacement_follow_small_probabilities():
    """In float32, where a running sum to one could not tell rows of probability 1e-7 from their neighbours."""
    n, m = 50000, 2_000_000
    scores = np.full(n, 1e-7, np.float32)
    scores[7::10] = 0
    scores[3] = 1 - scores.sum() + scores[3]
    sample = RowSample.create(KEY, scores, m)
    counts = np.bincount(sample.indices, minlength=n)
    assert counts[7::10].sum() == 0
    share = 1 - counts[3] / m
    expected = 1 - scores[3] / scores.sum(dtype=float)
    assert abs(share - expected) < 5 * np.sqrt(expected / m)
    # Both halves of the rare rows get their part.
    rare = np.delete(counts, 3)
    assert abs(rare[: n // 2].sum() - rare[n // 2 :].sum()) < 5 * np.sqrt(rare.sum())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [1, 40, 99])
def test_inclusion_probabilities_are_exact(dtype, m, x64):
    """`q = min(1, alpha s)`, alpha by bisection; in ticks they add up to a whole number, so m rows are hit always."""
    scores = some_scores(100, dtype, seed=3) ** 4
    ticks, certain = row_sampling._inclusion(jnp.asarray(scores), m)
    ticks, certain = np.asarray(ticks).astype(object), np.asarray(certain)
    assert sum(ticks) == (m - certain.sum()) * 2**32
    low, high = -50.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, np.exp(middle) * scores).sum() < m else (low, middle)
    expected = np.minimum(1, np.exp(high) * scores.astype(float))
    chance = np.where(certain, 1.0, (ticks / 2**32).astype(float))
    np.testing.assert_allclose(chance, expected, rtol=20 * np.finfo(dtype).eps, atol=1e-7)


def test_without_replacement_rows_come_once():
    scores = some_scores(1000) ** 3
    draw = jax.jit(lambda key: RowSample.create(key, scores, 400, replacement=False).indices)
    for key in jax.random.split(KEY, 10):
        assert len(set(draw(key).tolist())) == 400
    whole = RowSample.create(KEY, scores, 1000, replacement=False)
    assert sorted(whole.indices.tolist()) == list(range(1000))
    np.testing.assert_array_equal(whole.weights, 1)


def test_bad_scores_do_no_harm_under_a_transform():
    for replacement in (True, False):
        draw = jax.jit(lambda s, r=replacement: RowSample.create(KEY, s, 3, replacement=r).weights)
        assert np.all(np.isnan(draw(jnp.zeros(5))))
        assert np.all(np.isnan(draw(jnp.array([1.0, np.nan, 1, 1, 1]))))
    few = jax.jit(lambda s: RowSample.create(KEY, s, 3, replacement=False))(jnp.array([0.0, 2, 0, 0, 1]))
    assert sorted(few.weights.tolist()) == [0, 1, 1]
    assert {1, 4} <= set(few.indices.tolist())


# --- scores ----------------------------------------------------------------------------------------------------------


def families():
    rng = np.random.default_rng(0)
    gaussian = rng.normal(size=(120, 5))
    heavy = gaussian * (rng.pareto(1.0, size=120) + 0.1)[:, None]
    return {"gaussian": gaussian, "heavy-tailed": heavy, "Vandermonde": np.vander(np.linspace(-1, 1, 120), 5)}


@pytest.mark.parametrize(("n", "d", "rank"), [(60, 5, 5), (60, 5, 3), (5, 9, 5), (40, 1, 1)])
def test_leverage_scores_are_the_diagonal_of_the_projection(n, d, rank, x64):
    rng = np.random.default_rng(1)
    a = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)) * np.geomspace(1, 1e-4, n)[:, None]
    scores = leverage_scores(a)
    np.testing.assert_allclose(scores, np.diag(a @ np.linalg.pinv(a)), atol=1e-8)
    np.testing.assert_allclose(lewis_weights(a, 2.0), scores, atol=1e-8)
    np.testing.assert_allclose(lewis_weights(a, 1.3).sum(), rank, rtol=1e-8)
    np.testing.assert_allclose(root_leverage_scores(a, 1.0), np.sqrt(scores), rtol=1e-6)


def test_estimated_leverage_scores_are_within_their_factor():
    a = np.random.default_rng(2).normal(size=(5000, 12)).astype(np.float32)
    a[:20] *= 100
    for key in jax.random.split(KEY, 2):
        ratio = np.asarray(leverage_scores(a, key=key) / leverage_scores(a))
        assert 0.5 < ratio.min() < ratio.max() < 2


@pytest.mark.parametrize("p", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", families())
def test_lewis_weights_are_the_fixed_point(name, p, x64):
    a = families()[name]
    w = np.asarray(lewis_weights(a, p, num_steps=80))
    np.testing.assert_allclose(w.sum(), 5, rtol=1e-7)
    rows = w[:, None] ** (1 / 2 - 1 / p) * a
    np.testing.assert_allclose(w, np.diag(rows @ np.linalg.pinv(rows)), rtol=1e-6)


@pytest.mark.parametrize(("p", "ratio"), [(1.0, 0.5), (1.5, 0.25), (3.0, 0.5)])
def test_lewis_iteration_contracts_as_it_should(p, ratio, x64):
    a = jnp.asarray(families()["heavy-tailed"])
    logs = [np.log(lewis_weights(a, p, num_steps=k)) for k in (8, 9, 10)]
    steps = [np.linalg.norm(logs[1] - logs[0]), np.linalg.norm(logs[2] - logs[1])]
    assert abs(steps[1] / steps[0] - ratio) < 0.01


def test_lewis_weights_under_vmap_over_p_and_with_empty_rows(x64):
    a = families()["gaussian"].copy()
    a[[3, 17]] = 0
    powers = jnp.array([0.7, 1.0, 3.0])
    batch = jax.vmap(lambda p: lewis_weights(a, p))(powers)
    for p, w in zip(powers.tolist(), batch, strict=True):
        np.testing.assert_allclose(w, lewis_weights(a, p), rtol=1e-10)
        assert w[3] == w[17] == 0


def exact_sensitivity(a, i, p):
    """The share of row i in the best vector, by a linear program (p = 1) or by BFGS."""
    n, d = a.shape
    if p == 1:
        cost = np.concatenate([np.zeros(d), np.ones(n)])
        bounds = [(None, None)] * d + [(0, None)] * n
        rows = np.block([[a, -np.eye(n)], [-a, -np.eye(n)]])
        fit = linprog(cost, A_ub=rows, b_ub=np.zeros(2 * n), A_eq=[[*a[i], *np.zeros(n)]], b_eq=[1], bounds=bounds)
        return 1 / fit.fun
    q, _ = np.linalg.qr(a)
    free = np.linalg.svd(q[i : i + 1])[2][1:].T
    start = q[i] / (q[i] @ q[i])

    def value(z):
        y = q @ (start + free @ z)
        return np.sum(np.abs(y) ** p), free.T @ (q.T @ (p * np.abs(y) ** (p - 1) * np.sign(y)))

    return 1 / minimize(value, np.zeros(d - 1), jac=True, method="BFGS", options={"gtol": 1e-10}).fun


@pytest.mark.parametrize(("p", "rtol"), [(1.0, 1e-3), (1.5, 1e-6), (6.0, 1e-6)])
def test_sensitivities_are_the_largest_shares(p, rtol, x64):
    a = np.random.default_rng(5).standard_t(3, size=(40, 4))
    found = np.asarray(lp_sensitivities(a, p))
    for i in range(0, 40, 4):
        exact = exact_sensitivity(a, i, p)
        assert found[i] <= exact * (1 + 1e-7)  # a lower bound
        assert found[i] >= exact * (1 - rtol)


@pytest.mark.parametrize("name", families())
def test_sensitivities_and_lewis_weights_bound_each_other(name, x64):
    a, d = families()[name], 5
    np.testing.assert_allclose(lp_sensitivities(a, 2.0, num_steps=2), leverage_scores(a), rtol=1e-8)
    for p in (1.0, 3.0):
        sigma = np.asarray(lp_sensitivities(a, p))
        w = np.asarray(lewis_weights(a, p, num_steps=60))
        assert np.all(sigma <= d ** max(0, p / 2 - 1) * w * (1 + 1e-9))
        assert np.all(w <= d ** max(0, 1 - p / 2) * sigma * (1 + 1e-4))
        if p < 2:
            assert sigma.sum() <= d
        else:
            assert d <= sigma.sum() <= d ** (p / 2)


def test_sensitivities_of_degenerate_matrices(x64):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(70, 2)) @ rng.normal(size=(2, 4))
    a[5] = 0
    sigma = np.asarray(lp_sensitivities(a, 3.0))
    assert sigma[5] == 0
    np.testing.assert_allclose(sigma, lp_sensitivities(np.linalg.svd(a)[0][:, :2], 3.0), rtol=1e-6)
    one = rng.normal(size=(9, 1))
    np.testing.assert_allclose(lp_sensitivities(one, 1.0)[:, None], abs(one) / abs(one).sum(), rtol=1e-10)


def test_mixed_scores_add_up():
    one, two = some_scores(9), some_scores(9, seed=1)
    np.testing.assert_allclose(mixed_scores(one, two), one + two)
    np.testing.assert_allclose(mixed_scores(one), one)


# --- claims ----------------------------------------------------------------------------------------------------------


def spiked_rows(n, d):
    """Gaussian, but for few and large rows in three directions; one of them is nowhere else."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n, d))
    a[:5, 0] *= 1e4
    a[5:55, 1] *= 1e3
    a[:, 2] = 0
    a[55:58, 2] = 3 + rng.normal(size=3)
    return a


def distortion(a, scores, m, p, *, replacement=True, trials=9):
    """Median over samples of the worst `| ||S a x||^p / ||a x||^p - 1 |` over axes and random directions."""
    rng = np.random.default_rng(1)
    d = a.shape[1]
    inverse = np.linalg.inv(np.linalg.qr(a)[1])
    spread = inverse @ rng.normal(size=(d, 100))
    x = np.concatenate([np.eye(d), inverse, rng.normal(size=(d, 100)), spread], axis=1)
    images = jnp.asarray(a @ x)
    whole = jnp.sum(jnp.abs(images) ** p, axis=0)

    return float(median_distortion(images, whole, jnp.asarray(scores), jnp.asarray(p), m, replacement, trials))


@partial(jax.jit, static_argnums=(4, 5, 6))
def median_distortion(images, whole, scores, p, m, replacement, trials):
    def worst(key):
        sample = RowSample.create(key, scores, m, replacement=replacement)
        losses = jnp.abs(images[sample.indices]) ** p
        return jnp.max(jnp.abs(sample.weights @ losses / whole - 1))

    return jnp.median(jax.lax.map(worst, jax.random.split(KEY, trials)))


@pytest.mark.parametrize("family", ["spiked", "heavy-tailed"])
def test_lewis_sampling_beats_uniform_where_few_rows_matter(family, x64):
    """Uniform rows fail, with errors of a half or more, where Lewis rows are right within a fifth: for every p."""
    a = spiked_rows(4000, 8)
    if family == "heavy-tailed":
        rng = np.random.default_rng(0)
        a = rng.normal(size=(4000, 8)) * (rng.pareto(1.0, size=4000) + 0.1)[:, None]
    for p in (1.0, 1.5, 2.0, 3.0, 4.0):
        # Lewis weights end below 4; leverage scores there.
        scores = lewis_weights(a, p) if p < 4 else leverage_scores(a)
        few, many = (distortion(a, scores, m, p, replacement=False) for m in (100, 800))
        assert few < 0.5
        assert many < 0.2
        assert many < 0.5 * few
        uniform = distortion(a, jnp.ones(4000), 800, p, replacement=False)
        assert uniform > max(0.5, 7 * many), (p, uniform, many)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_lewis_distortion_falls_with_the_sample(p, x64):
    a = spiked_rows(20000, 8)
    w = lewis_weights(a, p)
    few, many = (distortion(a, w, m, p) for m in (200, 1600))
    assert few < 0.6
    assert 1.8 < few / many < 4.5  # the square root of eight is 2.8
    assert distortion(a, jnp.ones(20000), 1600, p) > 5 * many


# --- determinantal samples -------------------------------------------------------------------------------------------


def legendre(n, m):
    phi = np.polynomial.legendre.legvander(np.linspace(-1, 1, n + 2)[1:-1], m - 1)
    return np.linalg.qr(phi)[0]


def test_dpp_has_the_law_of_squared_determinants(x64):
    phi = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0]
    trials = 20000
    pairs = jax.jit(jax.vmap(lambda key: projection_dpp(key, phi)))(jax.random.split(KEY, trials))
    pairs = np.sort(pairs, axis=1)
    total = 0
    for i in range(5):
        for j in range(i + 1, 5):
            law = np.linalg.det(phi[[i, j]]) ** 2
            total += law
            share = np.mean((pairs[:, 0] == i) & (pairs[:, 1] == j))
            assert abs(share - law) < 4.5 * np.sqrt(law * (1 - law) / trials)
    np.testing.assert_allclose(total, 1)


def test_dpp_inclusion_is_the_leverage_and_no_point_comes_twice():
    phi = legendre(60, 6).astype(np.float32)
    trials = 20000
    draws = np.asarray(jax.jit(jax.vmap(lambda key: projection_dpp(key, phi)))(jax.random.split(KEY, trials)))
    assert np.all(np.diff(np.sort(draws, axis=1), axis=1) > 0)
    law = np.sum(phi.astype(float) ** 2, axis=1)
    share = np.bincount(draws.ravel(), minlength=60) / trials
    assert np.all(np.abs(share - law) < 4 * np.sqrt(law * (1 - law) / trials))


def test_dpp_of_fifty_points_in_float32():
    """Ten copies of each candidate: a point close to one that was drawn must not be drawn again."""
    phi = np.repeat(legendre(80, 50), 10, axis=0).astype(np.float32) / np.sqrt(10, dtype=np.float32)
    draw = jax.jit(lambda key: projection_dpp(key, phi))
    for key in jax.random.split(KEY, 20):
        chosen = np.asarray(draw(key)) // 10
        assert len(set(chosen.tolist())) == 50


def inverse_trace(phi, draw, trials):
    def trace(key):
        rows = draw(key).apply(phi)
        return jnp.trace(jnp.linalg.inv(rows.T @ rows)) / phi.shape[1]

    return np.mean(jax.jit(jax.vmap(trace))(jax.random.split(KEY, trials)))


def test_volume_sampling_has_the_inverse_moment(x64):
    phi = jnp.asarray(legendre(300, 5))
    n, m = 15, 5
    found = inverse_trace(phi, lambda key: volume_rescaled_sample(key, phi, n), 4000)
    assert abs(found / (n / (n - m + 1)) - 1) < 0.1


def test_volume_sampled_fit_is_unbiased_and_the_independent_one_is_not(x64):
    """At n = m + 1, where independent draws are nearly singular now and then."""
    phi = jnp.asarray(legendre(300, 5))
    n, trials = 6, 4000
    t = np.linspace(-1, 1, 300)
    f = jnp.asarray(np.exp(-t) / (1 + 8 * t**2) + 0.3 * np.sign(t))
    best = phi.T @ f
    rest = jnp.linalg.norm(f - phi @ best)
    leverage = jnp.sum(phi**2, axis=1)

    def bias(draw):
        def fit(key):
            sample = draw(key)
            return jnp.linalg.lstsq(sample.apply(phi), sample.apply(f))[0]

        fits = jax.jit(jax.vmap(fit))(jax.random.split(KEY, trials))
        return jnp.linalg.norm(jnp.mean(fits, axis=0) - best) / rest

    unbiased = bias(lambda key: volume_rescaled_sample(key, phi, n))
    independent = bias(lambda key: RowSample.create(key, leverage, n))
    assert unbiased < 0.15
    assert independent > 3 * unbiased


def test_expected_gram_matrix_of_determinantal_samples(x64):
    phi = jnp.asarray(np.linalg.qr(np.random.default_rng(4).standard_t(2, size=(40, 3)))[0])
    trials = 3000
    draws = {
        "volume": lambda key: volume_rescaled_sample(key, phi, 7),
        "repeated": lambda key: repeated_dpp(key, phi, 2),
    }
    for draw in draws.values():
        grams = jax.jit(jax.vmap(lambda key, draw=draw: draw(key).apply(phi)))(jax.random.split(KEY, trials))
        grams = np.einsum("tnk,tnl->tkl", grams, grams)
        error = np.abs(grams.mean(0) - np.eye(3))
        assert np.all(error < 5 * grams.std(0) / np.sqrt(trials))


def test_volume_sample_under_transforms():
    phi = legendre(50, 4).astype(np.float32)
    keys = jax.random.split(KEY, 2)
    draw = lambda key: volume_rescaled_sample(key, phi, 9)
    batch = jax.jit(jax.vmap(draw))(keys)
    one = draw(keys[1])
    np.testing.assert_array_equal(batch.indices[1], one.indices)
    np.testing.assert_allclose(batch.weights[1], one.weights, rtol=1e-5)
    assert one.shape == (9, 50)


# --- at the door -----------------------------------------------------------------------------------------------------

A = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
PHI = np.linalg.qr(A)[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RowSample.create(0, np.ones(4, np.float32), 2), "key must be"),
        (lambda: RowSample.create(KEY, np.ones((4, 1), np.float32), 2), r"scores has shape \(4, 1\)"),
        (lambda: RowSample.create(KEY, np.ones(4, int), 2), "scores must be real floating point; got dtype int"),
        (lambda: RowSample.create(KEY, np.array([1.0, -1.0]), 2), "scores must be finite and in"),
        (lambda: RowSample.create(KEY, np.array([1.0, np.nan]), 2), "scores must be finite and in"),
        (lambda: RowSample.create(KEY, np.zeros(4), 2), "scores are all zero"),
        (lambda: RowSample.create(KEY, np.ones(4), 0), "num_rows must be .*; got 0"),
        (lambda: RowSample.create(KEY, np.array([1.0, 0, 1]), 3, replacement=False), "num_rows is 3; .* at most 2"),
        (lambda: RowSample.create(KEY, np.ones(4), 2, replacement=1), "replacement must be True or False; got 1"),
        (lambda: RowSample.create(KEY, np.ones(4), 2, p=0.0), "p must be finite and in"),
        (lambda: RowSample.create(KEY, np.ones(4), 2).apply(jnp.ones(5)), r"a has shape \(5,\)"),
        (lambda: RowSample.create(KEY, np.ones(4), 2).apply_adjoint(jnp.ones(4)), r"z has shape \(4,\)"),
        (lambda: leverage_scores(A[0]), r"a has shape \(3,\)"),
        (lambda: leverage_scores(A * np.float32(np.inf)), "a must be finite"),
        (lambda: leverage_scores(A, sketch_size=9), "sketch_size is 9; expected None"),
        (lambda: leverage_scores(A, key=KEY, sketch_size=2), "sketch_size must be .* at least 3; got 2"),
        (lambda: root_leverage_scores(A, 2.5), "p must be finite and in"),
        (lambda: lewis_weights(A, 4.0), "p is 4.0; expected p < 4"),
        (lambda: lewis_weights(A, 0.0), "p must be finite and in"),
        (lambda: lewis_weights(A, 1.0, num_steps=0), "num_steps must be"),
        (lambda: lp_sensitivities(A, 0.5), "p must be finite and in"),
        (lambda: lp_sensitivities(np.ones((4001, 2), np.float32), 1.0), "a has 4001 rows; expected at most 4000"),
        (lambda: mixed_scores(), "at least one vector"),
        (lambda: mixed_scores(np.ones(3), np.ones(4)), "expected one shape"),
        (lambda: projection_dpp(KEY, A), "off the identity; expected orthonormal columns"),
        (lambda: projection_dpp(KEY, PHI.T), r"phi has shape \(3, 12\)"),
        (lambda: projection_dpp(3, PHI), "key must be"),
        (lambda: volume_rescaled_sample(KEY, PHI, 2), "num_rows must be .* at least 3; got 2"),
        (lambda: repeated_dpp(KEY, PHI, 0), "num_repeats must be"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
