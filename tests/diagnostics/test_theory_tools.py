"""Diagnostics for theory: against closed forms, Gaussian laws and planted rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import diagnostics
from lrjax.diagnostics import identifiability

pytestmark = pytest.mark.computes
KEY = jax.random.key(3)


def test_rip_of_an_isometry_is_zero(x64):
    found = diagnostics.rip(lr.operators.Identity(matrix_shape=(8, 6)), KEY, rank=2)
    assert float(found.scale) == pytest.approx(1)
    assert float(found.constant) < 1e-12


def test_isometry_is_measured_in_the_precision_of_the_operator(x64):
    """A float32 ensemble where JAX's default is float64: under strict promotion the two must not meet."""
    operator = lr.operators.DenseEnsemble.gaussian(KEY, (6, 5), 60, dtype="float32")
    with jax.numpy_dtype_promotion("strict"):
        found = diagnostics.rip(operator, KEY, rank=2, num_directions=5)
        signs = diagnostics.sign_rip(operator, KEY, rank=2, size=np.float64(2), noise=np.zeros(60), num_directions=5)
        seeded = lr.operators.SeededGaussianEnsemble.create(KEY, (6, 5), 60, dtype="float32")
        drawn = diagnostics.rip(seeded, KEY, rank=1, num_directions=5)
    assert found.scale.dtype == signs.scale.dtype == drawn.scale.dtype == jnp.float32
    assert diagnostics.rip(lr.operators.Identity(matrix_shape=(6, 5)), KEY, rank=1).scale.dtype == jnp.float64


def test_rip_of_a_diagonal_map_is_its_spread(x64):
    """Measures the entries of a 2 x 2 matrix, one of them twice as strongly: ratios between 1 and 4."""
    a = np.zeros((4, 2, 2))
    a[np.arange(4), [0, 0, 1, 1], [0, 1, 0, 1]] = [2, 1, 1, 1]
    found = diagnostics.rip(lr.operators.DenseEnsemble.from_matrices(jnp.asarray(a)), KEY, rank=1, num_directions=4000)
    assert float(found.low * found.scale) == pytest.approx(1, abs=0.05)
    assert float(found.high * found.scale) == pytest.approx(4, abs=0.05)


def test_rip_shrinks_like_one_over_root_m(x64):
    """Over random directions ||A(X)||^2 is chi-squared: a deviation of sqrt(2 / m) each."""
    constants = []
    for m in (400, 6400):
        operator = lr.operators.DenseEnsemble.gaussian(KEY, (12, 12), m, dtype="float64")
        constants.append(float(diagnostics.rip(operator, KEY, rank=2, num_directions=300).constant))
    assert constants[0] / constants[1] == pytest.approx(4, rel=0.35)
    assert constants[0] == pytest.approx(3 * np.sqrt(2 / 400), rel=0.4)  # the largest of 300 normal deviations


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_the_sign_rip_scale_is_that_of_the_gaussian_law(x64, fraction):
    """sqrt(2 / pi) (1 - p + p E exp(-s^2 / 2)) with s ~ N(0, 100) at ||X|| = 1."""
    operator = lr.operators.DenseEnsemble.gaussian(KEY, (12, 12), 8000, dtype="float64")
    key_where, key_size = jax.random.split(KEY)
    where = jax.random.uniform(key_where, (8000,)) < fraction
    noise = jnp.where(where, 10 * jax.random.normal(key_size, (8000,)), 0)
    law = np.sqrt(2 / np.pi) * (1 - fraction + fraction / np.sqrt(1 + 100))
    found = diagnostics.sign_rip(operator, KEY, rank=2, noise=noise)
    assert float(found.scale.mean()) == pytest.approx(law, rel=0.02)
    alone = diagnostics.sign_rip(lr.operators.DenseEnsemble.gaussian(KEY, (12, 12), 500, dtype="float64"), KEY, rank=2)
    assert float(found.constant) < 0.35 < float(alone.constant)


def test_the_worst_direction_of_sign_rip_is_a_maximum(x64):
    operator = lr.operators.DenseEnsemble.gaussian(KEY, (5, 4), 60, dtype="float64")
    found = diagnostics.sign_rip(operator, KEY, rank=2, num_directions=1)
    left, right = identifiability._directions(operator, jax.random.split(KEY, 1)[0], 2, False)
    x = left @ right.T
    d = operator.adjoint(jnp.sign(operator.forward(left, right))) / 60 - found.scale[0] * x
    for key in jax.random.split(KEY, 200):
        y = jnp.outer(*jnp.split(jax.random.normal(key, (9,)), [5]))
        assert abs(float(jnp.sum(d * y))) <= float(found.deviation[0] * jnp.linalg.norm(y)) * (1 + 1e-9)


def test_symmetric_directions_are_symmetric():
    left, right = identifiability._directions(lr.operators.Identity(matrix_shape=(6, 6)), KEY, 3, True)
    x = np.asarray(left @ right.T)
    assert np.allclose(x, x.T, atol=1e-6)
    assert np.linalg.norm(x) == pytest.approx(1, rel=1e-5)


def test_coherence_at_both_ends(x64):
    flat = lr.Factors(jnp.ones((8, 1)), jnp.ones((5, 1)))
    assert [float(c) for c in diagnostics.coherence(flat)] == pytest.approx([1, 1])
    spike = jnp.zeros((8, 5)).at[2, 3].set(1.0)
    assert [float(c) for c in diagnostics.coherence(spike, rank=1)] == pytest.approx([8, 5])
    truth = lr.synthetic.low_rank(KEY, (30, 20), 3, dtype="float64")
    assert np.allclose(diagnostics.coherence(truth), diagnostics.coherence(truth.dense(), rank=3), rtol=1e-8)


def test_effective_rank(x64):
    q = jnp.linalg.qr(jax.random.normal(KEY, (7, 3)))[0]
    for kind in ("entropy", "stable"):
        assert float(diagnostics.effective_rank(lr.Factors(q, q), kind=kind)) == pytest.approx(3)
        assert float(diagnostics.effective_rank(jnp.outer(q[:, 0], q[:, 1]), kind=kind)) == pytest.approx(1)
    values = jnp.array([2.0, 1.0, 1.0])
    assert float(diagnostics.effective_rank(jnp.diag(values), kind="stable")) == pytest.approx(1.5)
    assert float(diagnostics.effective_rank(jnp.diag(values))) == pytest.approx(2 * np.sqrt(2))


def test_rates_are_found_between_transient_and_floor():
    rng, t = np.random.default_rng(0), np.arange(400)
    curves = np.stack([0.93**t * (1 + 5 * 0.5**t) + 1e-9 for _ in range(8)]) * np.exp(0.1 * rng.standard_normal((8, 1)))
    curves *= np.exp(0.05 * rng.standard_normal(curves.shape))
    fit = diagnostics.fit_rate(curves)
    assert fit.kind == "linear"
    assert fit.rate == pytest.approx(0.93, rel=2e-3)
    assert fit.interval[0] <= fit.rate <= fit.interval[1]
    assert fit.interval[1] - fit.interval[0] < 0.002
    assert (fit.windows[:, 0] > 5).all()
    slow = diagnostics.fit_rate(1 / (3 + t) ** 2, floor=0.0, start=0.01)
    assert slow.kind == "sublinear"
    assert slow.rate == pytest.approx(2, rel=0.05)
    assert slow.interval is None
    with pytest.raises(ValueError, match="no curve has 5 steps"):
        diagnostics.fit_rate(np.ones((2, 50)))
    with pytest.raises(ValueError, match=r"expected \(trials, T\) and \(T,\)"):
        diagnostics.fit_rate(np.ones((2, 50)), np.arange(49))


def test_rates_of_curves_that_end_badly():
    """A plateau before a NaN stays out of the window, and a step that is repeated counts once."""
    t = np.arange(100)
    falling = np.maximum(0.8**t, 1e-4)
    whole = diagnostics.fit_rate(falling)
    broken = diagnostics.fit_rate(np.where(t < 60, falling, np.nan))
    assert broken.kind == "linear"
    assert broken.windows.tolist() == whole.windows.tolist() == [[11, 30]]
    assert broken.rate == pytest.approx(0.8)
    stopped = diagnostics.fit_rate(np.maximum(0.8**t, 0.8**30), np.minimum(t, 30), kind="linear", floor=0)
    assert stopped.rate == pytest.approx(0.8)
    assert np.isnan(diagnostics.fit_rate(np.stack([falling, np.full(100, np.nan)])).rates).tolist() == [False, True]
    assert diagnostics.fit_rate(0.1 ** np.arange(5), start=1, floor=0).kind == "linear"  # four steps for a power law


BAD_FITS = [
    (lambda: diagnostics.fit_rate([]), "errors has shape"),
    (lambda: diagnostics.fit_rate(np.full(50, np.nan)), "no curve has 5 steps"),
    (lambda: diagnostics.fit_rate(np.ones(9), np.arange(9)[::-1]), "steps must be finite and must not fall"),
    (lambda: diagnostics.fit_rate(np.ones(9), start=np.nan), "start must be finite"),
    (lambda: diagnostics.fit_rate(np.ones(9), floor=-1), "floor must be finite"),
    (lambda: diagnostics.fit_transition([1, np.nan], [1, 2], 3), "levels are .* finite numbers"),
    (lambda: diagnostics.fit_transition([1, 1], [1, 2], 3), "at least two of them different"),
    (lambda: diagnostics.fit_transition([1, 2], [1, np.nan], 3), "successes are"),
    (lambda: diagnostics.fit_transition([1, 2], [1, 2], np.nan), "num_trials is nan"),
    (lambda: diagnostics.fit_transition([1, 2], [0, 0], 0), "num_trials is 0"),
    (lambda: diagnostics.fit_transition([1, 2], [1, 2], [3, 3, 3]), "one for each level"),
]


@pytest.mark.parametrize(("fit", "message"), BAD_FITS)
def test_bad_curves_are_refused(fit, message):
    with pytest.raises(ValueError, match=message):
        fit()


def test_the_transition_is_where_it_was_planted():
    rng, levels = np.random.default_rng(1), np.linspace(1, 4, 13)
    p = 1 / (1 + np.exp(-(levels - 2.2) / 0.15))
    inside = 0
    for _ in range(20):
        fit = diagnostics.fit_transition(levels, rng.binomial(20, p), 20)
        assert fit.midpoint == pytest.approx(2.2, abs=0.15)
        assert fit.width == pytest.approx(2 * np.log(9) * 0.15, rel=0.8)
        inside += fit.interval[0] <= 2.2 <= fit.interval[1]
    assert inside >= 16
    sharp = diagnostics.fit_transition([1, 2, 3, 4], [0, 0, 10, 10], 10)
    assert 2 < sharp.midpoint < 3
    assert 1.9 < sharp.interval[0] < sharp.interval[1] < 3.1
    falling = diagnostics.fit_transition([1, 2, 3, 4], [10, 10, 0, 0], 10)
    assert falling.midpoint == pytest.approx(sharp.midpoint, abs=1e-6)
    assert np.isnan(diagnostics.fit_transition([1, 2, 3], [10, 10, 10], 10).midpoint)
    with pytest.raises(ValueError, match="successes are"):
        diagnostics.fit_transition([1, 2], [3, 11], 10)


def test_refused():
    operator = lr.operators.Identity(matrix_shape=(3, 4))
    with pytest.raises(ValueError, match="rank is 4; expected at most"):
        diagnostics.rip(operator, KEY, rank=4)
    with pytest.raises(ValueError, match="needs a square matrix"):
        diagnostics.rip(operator, KEY, rank=1, symmetric=True)
    with pytest.raises(ValueError, match=r"noise has shape \(3,\)"):
        diagnostics.sign_rip(operator, KEY, rank=1, noise=jnp.zeros(3))
    with pytest.raises(ValueError, match="kind must be one of"):
        diagnostics.effective_rank(jnp.eye(2), kind="x")
    with pytest.raises(ValueError, match="rank is 9"):
        diagnostics.coherence(jnp.eye(2), rank=9)
