"""What does not go through `solve` gives the same answer in any units that its dtype holds, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import operators

KEY = jax.random.key(0)
# Powers of two near 1e-30 and 1e30: exact.
POWERS = [-100, 100]


def gains(model="repeated"):
    problem, _ = lr.synthetic.gain_calibration(KEY, shape=(8, 3), num_blocks=4, model=model, noise=0.05)
    return problem.operator, problem.y


def two_to(e):
    return jnp.float32(2.0**e)


@pytest.mark.parametrize("method", ["lstsq", "spectral"])
@pytest.mark.parametrize("model", ["repeated", "snapshots"])
def test_calibrate(method, model):
    operator, y = gains(model)
    found = lr.calibrate(operator, y, method=method)
    for e in POWERS:
        scaled = lr.calibrate(operator, y * two_to(e), method=method)
        assert np.array_equal(scaled.inverse_gains, found.inverse_gains)
        assert np.array_equal(scaled.inputs, found.inputs * two_to(e))
        # Measurements and matrices together: the inputs are the same.
        both = operators.GainMeasurements.from_matrices(
            operator.matrices * two_to(e), **({"num_snapshots": 4} if model == "snapshots" else {})
        )
        scaled = lr.calibrate(both, y * two_to(e), method=method)
        assert np.array_equal(scaled.inputs, found.inputs)
        assert np.array_equal(scaled.inverse_gains, found.inverse_gains)


def test_calibrate_with_an_anchor_of_any_length():
    operator, y = gains()
    anchor = jax.random.normal(KEY, (11,))
    found = lr.calibrate(operator, y, anchor=anchor)
    assert np.isclose(anchor[:8] @ found.inverse_gains + anchor[8:] @ found.inputs, 1, rtol=1e-4)
    for e in (-60, 60):
        scaled = lr.calibrate(operator, y, anchor=anchor * two_to(e))
        assert np.array_equal(scaled.inputs * two_to(e), found.inputs)


@pytest.mark.parametrize("learn", [True, False])
def test_sparse_bayesian(learn):
    a = operators.Kronecker.from_matrices([jax.random.normal(k, (5, 6)) for k in jax.random.split(KEY)])
    x = jnp.zeros((6, 6)).at[2, 3].set(1.0).at[2, 5].set(-2.0)
    y = a.forward_dense(x) + 0.01 * jax.random.normal(KEY, (25,))
    run = lambda a, y, noise: lr.sparse_bayesian(a, y, noise_variance=None if learn else noise, num_steps=20)
    found = run(a, y, 1e-4)
    assert np.abs(found.mean - x).max() < 0.05
    for e in POWERS:
        if not learn and abs(e) > 50:
            continue  # a variance that the dtype does not hold
        scaled = run(a, y * two_to(e), 1e-4 * 4.0**e if not learn else None)
        assert np.array_equal(scaled.mean, found.mean * two_to(e))
        assert scaled.status == found.status
        assert scaled.num_steps == found.num_steps
        small = operators.Kronecker.from_matrices([a.matrices[0] * two_to(e), a.matrices[1]])
        scaled = run(small, y * two_to(e), 1e-4 * 4.0**e)
        assert np.array_equal(scaled.mean, found.mean)
        assert np.array_equal(scaled.variance, found.variance)
    # The cost is that of the data as they are.
    units = run(a, y * 8, 64e-4)
    assert np.allclose(units.cost - found.cost, 25 * np.log(64), rtol=1e-4)
    assert np.allclose(units.variance, found.variance * 64)
    assert np.allclose(np.multiply.outer(*units.scales), np.multiply.outer(*found.scales) * 64)
    assert np.isclose(units.noise_variance, found.noise_variance * 64)


@pytest.mark.parametrize("e", POWERS)
def test_a_small_matrix_is_not_one_at_rest(e):
    """Squares of steps and sizes underflowed, and nothing divided by nothing counted as converged."""
    y = jax.random.normal(KEY, (6, 5)) * two_to(e)
    # A Huber-like objective in units of the data: its gradient has the size of the data whatever that is.
    pull = jax.tree_util.Partial(_pull, y)
    found = lr.rank_projected_descent(pull, 0 * y, rank=2, step_size=0.25, num_steps=200)
    u, s, vt = np.linalg.svd(np.asarray(y, np.float64))
    best = (u[:, :2] * s[:2]) @ vt[:2]
    assert int(found.num_steps) > 5
    assert np.linalg.norm(np.asarray(found.factors.dense(), np.float64) - best) < 1e-3 * np.linalg.norm(best)
    assert found.converged


@jax.custom_jvp
def _pull(y, x, free):
    return jnp.zeros((), y.dtype)


@_pull.defjvp
def _pull_jvp(primals, tangents):
    y, x, _ = primals
    # Half of the squared distance has the gradient `x - y`, but no value that the dtype could hold.
    return jnp.zeros((), y.dtype), jnp.sum((x - y) * tangents[1])


def test_supervised_dictionary_refuses_units_that_its_objective_cannot_have():
    features = jax.random.normal(KEY, (30, 4))
    labels = np.asarray(features[:, 0] > 0.2)
    for e in (-100, 100):
        with pytest.raises(ValueError, match=r"features must have squares that float32 holds.*Divide"):
            lr.supervised_dictionary(features * two_to(e), labels, rank=2)


@pytest.mark.parametrize("e", POWERS)
def test_diagnostics_and_synthetic(e):
    operator = operators.DenseEnsemble.gaussian(KEY, (6, 5), 40)
    scaled = operators.scaled(operator, two_to(e))
    one, other = (lr.diagnostics.rip(op, KEY, rank=1, num_directions=5) for op in (operator, scaled))
    assert np.array_equal(one.constant, other.constant)
    x = lr.synthetic.low_rank(KEY, (6, 5), 2, condition_number=3.0)
    large = lr.Factors(x.left * two_to(e // 2), x.right * two_to(e - e // 2))
    for kind in ("entropy", "stable"):
        assert np.isclose(lr.diagnostics.effective_rank(x, kind=kind), lr.diagnostics.effective_rank(large, kind=kind))
    assert np.allclose(lr.diagnostics.coherence(x)[0], lr.diagnostics.coherence(large)[0], rtol=1e-5)
    y = jax.random.normal(KEY, (9,))
    clean, _ = lr.synthetic.corrupt(KEY, y, noise=0.1, corruption=0.3)
    assert np.array_equal(lr.synthetic.corrupt(KEY, y * two_to(e), noise=0.1, corruption=0.3)[0], clean * two_to(e))
    values = lr.synthetic.sampled_entries(KEY, x, 12, noise=0.1)[2]
    assert np.allclose(lr.synthetic.sampled_entries(KEY, large, 12, noise=0.1)[2], values * two_to(e), rtol=1e-5)


def test_simulate():
    one = jnp.ones((1, 1))
    system = lr.StateSpace(a=0.5 * one, b=one, c=one, d=0 * one)
    inputs = jax.random.normal(KEY, (3, 4, 1))
    found = system.simulate(inputs, KEY, state_noise=0.1, output_noise=0.1)
    for e in POWERS:
        noise = 0.1 * 2.0**e
        scaled = system.simulate(inputs * two_to(e), KEY, state_noise=noise, output_noise=noise)
        assert np.allclose(scaled, found * two_to(e), rtol=1e-6)
