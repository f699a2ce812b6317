"""Descent under a rank bound and the supervised dictionary, against formulas written out in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrjax as lr
from lrjax import status, testing
from lrjax.models import supervised_dictionary as sd

KEY = jax.random.key(0)
FORMS = sd.FORMS


def draw(seed=0, n=40, p=7, q=2, classes=2):
    """Features, labels and covariates with a column of ones."""
    rng = np.random.default_rng(seed)
    x, covariates = rng.standard_normal((n, p)), np.c_[np.ones(n), rng.standard_normal((n, q - 1))]
    return x, rng.integers(0, classes, n), covariates


def data_of(x, y, covariates, xi, nu):
    return sd._Data(*(jnp.asarray(part) for part in (x, y, covariates, xi, nu, 1.0)))


def by_hand(form, x, y, covariates, xi, nu, stacked, gamma):
    """Objective and gradients of two classes, as published: features in columns, nothing of JAX."""
    x, covariates = x.T, covariates.T
    if form == "filter":
        a, b = stacked[:, :1], stacked[:, 1:]
        logits = a.T @ x + gamma.T @ covariates
    else:
        a, b = stacked[:1], stacked[1:]
        logits = a + gamma.T @ covariates
    error = 1 / (1 + np.exp(-logits)) - y[None]
    value = np.sum(np.log1p(np.exp(logits)) - y * logits) + xi * np.sum((x - b) ** 2)
    value += nu / 2 * (np.sum(a**2) + np.sum(gamma**2))
    slope_a = (x @ error.T if form == "filter" else error) + nu * a
    slope = np.concatenate([slope_a, 2 * xi * (b - x)], axis=1 if form == "filter" else 0)
    return value, slope, covariates @ error.T + nu * gamma


def truncated(x, rank):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def stacked_shape(form, x):
    n, p = x.shape
    return (p, 1 + n) if form == "filter" else (1 + p, n)


OBJECTIVES = {"filter": sd._filter, "feature": sd._feature}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("x64")
def test_gradients_and_a_step_are_the_published_ones(form):
    x, y, covariates = draw()
    rng = np.random.default_rng(1)
    z, gamma = rng.standard_normal(stacked_shape(form, x)), rng.standard_normal((2, 1))
    value, slope, gamma_slope = by_hand(form, x, y, covariates, 0.7, 0.3, z, gamma)
    objective = jax.tree_util.Partial(OBJECTIVES[form], data_of(x, y, covariates, 0.7, 0.3))
    seen, slopes = jax.value_and_grad(objective, argnums=(0, 1))(jnp.asarray(z), jnp.asarray(gamma))
    np.testing.assert_allclose(seen, value, rtol=1e-13)
    np.testing.assert_allclose(slopes[0], slope, atol=1e-12)
    np.testing.assert_allclose(slopes[1], gamma_slope, atol=1e-12)
    start = truncated(z, 3)
    _, slope, gamma_slope = by_hand(form, x, y, covariates, 0.7, 0.3, start, gamma)
    found = lr.rank_projected_descent(objective, z, gamma, rank=3, step_size=0.05, num_steps=1)
    np.testing.assert_allclose(found.factors.dense(), truncated(start - 0.05 * slope, 3), atol=1e-12)
    np.testing.assert_allclose(found.free, gamma - 0.05 * gamma_slope, atol=1e-13)
    after = by_hand(form, x, y, covariates, 0.7, 0.3, np.asarray(found.factors.dense()), np.asarray(found.free))[0]
    np.testing.assert_allclose(found.objective, after, rtol=1e-13)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("x64")
def test_the_parts_returned_are_those_of_the_stack(form):
    """Whatever the scale: the objective, from the parts alone, is the one of the trace, and a result starts a solve."""
    x, y, covariates = draw(2)
    for scale in (1.0, None):
        fit = functools.partial(
            lr.supervised_dictionary, x, y, covariates, rank=2, form=form, reconstruction=0.7, ridge=0.3, scale=scale
        )
        found = fit(num_steps=20)
        w, h, beta, gamma = (np.asarray(part) for part in (found.dictionary, found.codes, found.beta, found.gamma))
        assert np.isclose(np.linalg.norm(w), 1)
        stacked = np.concatenate([beta.T, h]) @ w.T if form == "filter" else h @ np.concatenate([beta.T, w]).T
        value = by_hand(form, x, y, covariates, 0.7, 0.3, stacked.T, gamma)[0]
        np.testing.assert_allclose(found.descent.objective, value, rtol=1e-12)
        again = fit(num_steps=1, init=(w, h, beta, gamma))
        np.testing.assert_allclose(again.descent.trace["objective"][0], value, rtol=1e-12)
        new = draw(3)
        seen = w @ beta if form == "filter" else np.linalg.lstsq(w, new[0].T)[0].T @ beta
        logits = new[0] @ seen if form == "filter" else seen
        logits = logits + new[2] @ gamma
        np.testing.assert_allclose(found.logits(new[0], new[2]), logits, atol=1e-10)
        np.testing.assert_array_equal(found.predict(new[0], new[2]), logits[:, 0] > 0)


@pytest.mark.usefixtures("x64")
def test_more_classes_and_huge_logits():
    x, y, covariates = draw(4, classes=3)
    logits = np.random.default_rng(5).standard_normal((40, 2))
    scores = np.c_[np.zeros(40), logits]
    expected = -np.log(np.exp(scores)[np.arange(40), y] / np.exp(scores).sum(axis=1))
    np.testing.assert_allclose(sd._logistic(jnp.asarray(logits), jnp.asarray(y)), expected, rtol=1e-12)
    for kinds in (1, 2):
        huge = jnp.full((2, kinds), 1e6).at[1].set(-1e6)
        losses = jax.value_and_grad(lambda a: jnp.sum(sd._logistic(a, jnp.array([0, 0]))))(huge)
        assert all(bool(jnp.isfinite(part).all()) for part in losses)
    x = x + 2 * np.eye(7)[y]
    for form in FORMS:
        found = lr.supervised_dictionary(x, y, covariates, rank=3, form=form, num_classes=3, num_steps=100)
        assert found.beta.shape == (3, 2)
        assert np.diff(found.descent.trace["objective"]).max() <= 1e-9
        share = float((found.predict(x, covariates) == y).mean())
        assert share > 0.65, (form, share)


def planted(squared_norm, nu, xi, seed=6):
    """p = 30, n = 200, rank 3, noise; `[X, X']` scaled: `L = squared_norm / 4 + nu`, `mu = nu` for `2 xi` between."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 30)) + 0.3 * rng.standard_normal((200, 30))
    covariates, y = rng.standard_normal((200, 2)), rng.integers(0, 2, 200)
    scale = np.sqrt(squared_norm) / np.linalg.norm(np.c_[x, covariates], 2)
    data = data_of(scale * x, y, scale * covariates, xi, nu)
    return jax.tree_util.Partial(sd._filter, data)


def starts(seed=7, count=3, size=1.0):
    rng = np.random.default_rng(seed)
    return size * jnp.asarray(rng.standard_normal((count, 30, 201))), jnp.asarray(rng.standard_normal((count, 2, 1)))


@pytest.mark.usefixtures("x64")
def test_the_rate_is_below_the_bound_and_the_start_does_not_matter():
    """`L / mu = 1.28`: a NumPy prototype had factors 0.495, 0.222 and 0.456, bounds being 0.98, 0.437 and 0.98."""
    most, least = 2.56, 2.0
    objective, (z, gamma) = planted(4 * (most - least), least, least / 2), starts()
    run = jax.vmap(
        lambda z, gamma, size, num_steps=60: lr.rank_projected_descent(
            objective, z, gamma, rank=3, step_size=size, num_steps=num_steps, tolerance=0.0
        ),
        in_axes=(0, 0, None),
    )
    seen = {}
    for size in (1.02 / (2 * least), 1 / most, 1.49 / most):
        bound = 2 * max(abs(1 - size * least), abs(1 - size * most))
        result = run(z, gamma, size)
        end, end_value = result.factors.dense(), result.objective.min()
        assert np.ptp(result.objective) < 1e-10
        np.testing.assert_allclose(end[1:], np.broadcast_to(end[0], end[1:].shape), atol=1e-9)
        # Gaps of the objective are squares of distances; the last five steps before rounding.
        gaps = np.asarray(result.trace["objective"] - end_value)
        last = [np.flatnonzero(gap > 1e-10)[-1] for gap in gaps]
        seen[round(size, 3)] = (
            np.median([(gap[k] / gap[k - 5]) ** 0.1 for gap, k in zip(gaps, last, strict=True)]),
            bound,
        )
        assert seen[round(size, 3)][0] < bound
    print(f"\n{seen}")
    factors = [pair[0] for pair in seen.values()]
    np.testing.assert_allclose(factors, [0.495, 0.222, 0.456], rtol=0.2)


@pytest.mark.usefixtures("x64")
def test_beyond_the_condition_a_long_step_ends_higher():
    """`L / mu = 12`: a step in the interval's place for `mu` alone, 1.02 / (2 mu), is too long for `L`."""
    most, least = 24.0, 2.0
    objective, (z, gamma) = planted(4 * (most - least), least, least / 2), starts()
    run = lambda size: jax.vmap(
        lambda z, gamma: lr.rank_projected_descent(objective, z, gamma, rank=3, step_size=size, num_steps=400)
    )(z, gamma)
    good, bad = run(1.49 / most), run(1.02 / (2 * least))
    print(f"\n{good.objective}, {bad.objective}")
    assert np.ptp(good.objective) < 1e-10
    assert (bad.objective > 1.5 * good.objective).all()


@pytest.mark.usefixtures("x64")
def test_the_default_step_is_that_of_the_formula():
    x, y, covariates = draw(8)
    for form in FORMS:
        block = np.linalg.norm(np.c_[x, covariates], 2) ** 2
        block = block if form == "filter" else 1 + np.linalg.norm(covariates, 2) ** 2
        data = data_of(x, y, covariates, 0.7, 0.3)
        most = max(block / 4 + 0.3, 1.4)
        size = sd._prepare(data, None, form=form, kinds=1, balance=False)[1]
        np.testing.assert_allclose(size, 1 / most, rtol=1e-12)
        data = data_of(x, y, covariates, 500.0, 1000.0)
        size = sd._prepare(data, None, form=form, kinds=1, balance=False)[1]
        np.testing.assert_allclose(size, 2 / (block / 4 + 2000), rtol=1e-12)
        scaled, size = sd._prepare(data_of(x, y, covariates, 0.7, 0.3), None, form=form, kinds=1, balance=True)[:2]
        np.testing.assert_allclose(scaled.scale**2, (block / 4 + 0.3) / 1.4, rtol=1e-12)
        np.testing.assert_allclose(size, 1 / 1.4, rtol=1e-12)


def fit(x, y, xi, form="filter", **rest):
    return lr.supervised_dictionary(x, y, rank=2, form=form, reconstruction=xi, num_steps=12, record_every=3, **rest)


@pytest.mark.usefixtures("x64")
def test_codes_of_new_samples_are_least_squares_on_the_dictionary():
    x, y, _ = draw(10, n=12, p=5)
    found, new = fit(x, y, 1.0, form="feature"), np.random.default_rng(11).standard_normal((4, 5))
    w = np.asarray(found.dictionary)
    codes = np.linalg.lstsq(w, new.T, rcond=None)[0].T
    np.testing.assert_allclose(found.encode(new), codes, atol=1e-10)
    logits = codes @ np.asarray(found.beta) + np.asarray(found.gamma)
    np.testing.assert_allclose(found.logits(new), logits, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("x64")
def test_jit_vmap_and_dtype(form):
    x, y, _ = draw(9, n=12, p=5)
    weights = jnp.array([0.3, 1.0])
    run = functools.partial(fit, form=form)
    one_by_one = [run(x, y, xi) for xi in weights]
    batched = jax.jit(jax.vmap(run, in_axes=(None, None, 0)))(x, y, weights)
    for lane, alone in enumerate(one_by_one):
        # By the product: the signs of singular vectors are free.
        both = batched.descent.factors.dense()[lane], alone.descent.factors.dense()
        np.testing.assert_allclose(*both, atol=1e-10)
        np.testing.assert_allclose(batched.descent.objective[lane], alone.descent.objective, rtol=1e-12)
        assert batched.descent.num_steps[lane] == alone.descent.num_steps
    assert alone.descent.trace["step"].tolist() == [0, 3, 6, 9, 12]
    small = run(x.astype(np.float32), y, 1.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(small)} == {np.dtype(np.float32), np.dtype(np.int32)}
    np.testing.assert_allclose(small.descent.objective, one_by_one[1].descent.objective, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_the_derivative_is_that_of_the_steps():
    target = jnp.asarray(np.random.default_rng(14).standard_normal((4, 3)))

    def end(weight):
        objective = lambda x, free: jnp.sum((x - weight * target) ** 2) + jnp.sum((free - jnp.sin(weight) * x[0]) ** 2)
        found = lr.rank_projected_descent(objective, target, jnp.ones(3), rank=1, step_size=0.1, num_steps=4)
        return jnp.sum(found.factors.dense() ** 3) + jnp.sum(found.free**2)

    testing.check_gradient(end, jnp.asarray(1.3), KEY)


def test_one_trace_for_a_shape():
    traces = []

    def objective(target, matrix, free):
        traces.append(1)
        return jnp.sum((matrix + free - target) ** 2)

    rng = np.random.default_rng(10)
    counts = []
    for size in (0.1, 0.2, jnp.float32(0.3)):
        target = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
        bound = jax.tree_util.Partial(objective, target)
        lr.rank_projected_descent(bound, target, jnp.float32(0), rank=1, step_size=size, num_steps=3)
        counts.append(len(traces))
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.usefixtures("x64")
def test_lanes_freeze_diverge_and_converge():
    rng = np.random.default_rng(11)
    target = jnp.asarray(rng.standard_normal((6, 5)))
    objective = lambda x, free: 0.5 * jnp.sum((x - target) ** 2) + 0.5 * jnp.sum((free["y"] - 1) ** 2)
    run = lambda size: lr.rank_projected_descent(
        objective, jnp.ones((6, 5)), {"y": jnp.zeros(3)}, rank=2, step_size=size, num_steps=1000
    )
    sizes = jnp.array([0.5, 1e-5, 5.0])
    both = jax.vmap(run)(sizes)
    assert both.status.tolist() == [status.CONVERGED, status.RUNNING, status.NONFINITE]
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(both))
    assert both.num_steps[0] < 1000
    assert both.num_steps[2] < 1000
    with pytest.raises(status.SolveError, match="1 of 3 lanes"):
        both.check()
    for lane, size in enumerate(sizes):
        alone = run(size)
        assert alone.num_steps == both.num_steps[lane]
        np.testing.assert_allclose(alone.objective, both.objective[lane], rtol=1e-8)
    assert bool(run(0.5).check(require_convergence=True).converged)
    # What is left is what rank two cannot hold.
    tail = np.linalg.svd(target, compute_uv=False)[2:]
    np.testing.assert_allclose(both.objective[0], 0.5 * np.sum(tail**2), rtol=1e-10)
    np.testing.assert_allclose(both.free["y"][0], 1, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_schedules_starts_as_factors_and_no_free_part():
    rng = np.random.default_rng(12)
    target = jnp.asarray(rng.standard_normal((4, 3)))
    objective = lambda x, free: 0.5 * jnp.sum((x - target) ** 2)
    start = lr.Factors(jnp.ones((4, 2)), jnp.ones((3, 2)))
    schedule = optax.exponential_decay(0.5, 1, 0.5)
    found = lr.rank_projected_descent(objective, start, rank=1, step_size=schedule, num_steps=3)
    x = truncated(np.asarray(start.dense()), 1)
    for size in (0.5, 0.25, 0.125):
        x = truncated(x - size * (x - np.asarray(target)), 1)
    np.testing.assert_allclose(found.factors.dense(), x, atol=1e-12)
    assert found.free is None
    wide = lr.rank_projected_descent(
        lambda x, _: objective(x.T, None), start.dense().T, rank=1, step_size=0.5, num_steps=3
    )
    tall = lr.rank_projected_descent(objective, start, rank=1, step_size=0.5, num_steps=3)
    np.testing.assert_allclose(wide.factors.dense().T, tall.factors.dense(), atol=1e-12)


def test_strict_promotion():
    x, y, covariates = draw(13)
    x = jnp.asarray(x, jnp.float32)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for form in FORMS:
            found = lr.supervised_dictionary(x, y, covariates.astype(np.float32), rank=2, form=form, num_steps=2)
            assert found.predict(x, covariates.astype(np.float32)).dtype == np.int32


X, Y, _ = draw()
START = np.ones((3, 2))
SQUARE = lambda x, free: jnp.sum(x * x)
descend = lambda objective=SQUARE, start=START, free=None, **rest: lr.rank_projected_descent(
    objective, start, free, **{"rank": 1, "step_size": 0.1, "num_steps": 2, **rest}
)
learn = lambda x=X, y=Y, covariates=None, **rest: lr.supervised_dictionary(x, y, covariates, **{"rank": 2, **rest})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: descend(objective=3), "objective must be a function"),
        (lambda: descend(objective=lambda x, free: x), "objective must return a real scalar"),
        (lambda: descend(start=np.ones(3)), r"start must be lrjax.Factors or a matrix \(n1, n2\); got shape \(3,\)"),
        (lambda: descend(start=np.ones((3, 2), int)), "start must be real floating"),
        (lambda: descend(start=np.full((3, 2), np.nan)), "start must be finite"),
        (lambda: descend(rank=3), "rank must be at most 2"),
        (lambda: descend(free={"a": 1}), "free must be real floating"),
        (lambda: descend(free=np.inf), "free must be finite"),
        (lambda: descend(step_size=-1.0), "step_size must be finite and in"),
        (lambda: descend(num_steps=0), "num_steps must be an integer of at least 1"),
        (lambda: descend(num_steps=3, record_every=2), "num_steps must be a multiple of record_every; got 3 and 2"),
        (lambda: descend(tolerance=-1), "tolerance must be finite"),
        (lambda: learn(x=X[0]), r"features must have shape \(n, p\)"),
        (lambda: learn(x=X * np.nan), "features must be finite"),
        (lambda: learn(y=Y[:-1]), r"labels must be integers of shape \(40,\)"),
        (lambda: learn(y=Y * 1.0), "labels must be integers"),
        (lambda: learn(y=Y + 1), r"labels must be from 0 to 1; got \[1 2\]"),
        (lambda: learn(covariates=X[:3]), r"covariates must have shape \(40, q\)"),
        (lambda: learn(covariates=1j * X), "covariates must be real"),
        (lambda: learn(form="both"), "form must be one of"),
        (lambda: learn(rank=8), "rank must be at most 7"),
        (lambda: learn(reconstruction=-1), "reconstruction must be finite"),
        (lambda: learn(ridge=-1), "ridge must be finite"),
        (lambda: learn(scale=0), "scale must be finite"),
        (lambda: learn(num_classes=1), "num_classes must be an integer of at least 2"),
        (lambda: learn(init=(X, X)), "init must be"),
        (lambda: learn(num_steps=1).predict(X[:, 1:]), r"features must have shape \(m, 7\)"),
        (lambda: learn(num_steps=1).predict(X, X), "covariates must have 1 columns"),
    ],
)
def test_the_door(call, message):
    with pytest.raises(ValueError, match=message):
        call()
