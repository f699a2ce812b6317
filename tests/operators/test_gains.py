"""Calibration and blind gains: parameter counts, rates, noise slopes, and baselines that must fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import lrjax as lr
from lrjax import testing
from lrjax.operators import GainMeasurements, SeededGainMeasurements, StructuredGainMeasurements
from lrjax.solvers.blind_gain_descent import project_gains

KEY = jax.random.key(0)
MODELS = ("repeated", "diverse", "snapshots")
WAYS = ("ones", "gaussian", "spectral")


def calibrate(operator, y, way, key=KEY):
    if way == "spectral":
        return lr.calibrate(operator, y, method="spectral")
    return lr.calibrate(operator, y, anchor=way, key=key)


def error_of(found, truth):
    """The larger of the errors of inverse gains and inputs, each after its best scaling."""
    gains = lr.metrics.scaled_error(found.inverse_gains, 1 / truth.left[:, 0])
    return jnp.maximum(gains, lr.metrics.scaled_error(found.inputs.ravel(), truth.right[:, 0]))


def padded(key, model, m, most, counts):
    """A problem of traced `n` and `p`, padded by columns and blocks of zeros to `most`."""
    (largest_n, largest_p), (n, p) = most, counts
    problem, truth = lr.synthetic.gain_calibration(key, shape=(m, largest_n), num_blocks=largest_p, model=model)
    columns, blocks = jnp.arange(largest_n) < n, jnp.arange(largest_p) < p
    matrices = problem.operator.matrices * columns
    inputs = truth.right.reshape(-1, largest_n) * columns
    if model != "snapshots":
        matrices = matrices * blocks[:, None, None]
    if model != "repeated":
        inputs = inputs * blocks[:, None]
    operator = GainMeasurements(matrices=matrices, num_blocks=largest_p, model=model)
    truth = lr.Factors(truth.left, inputs.reshape(-1, 1))
    return operator, operator.forward(truth.left, truth.right), truth


# Most inputs for a number of blocks at m = 32; with one more the unknowns less one outnumber the measurements.
COUNTS = {
    "repeated": ((33, 2), (65, 3), (97, 4)),
    "diverse": ((16, 2), (21, 3), (24, 4)),
    "snapshots": ((16, 2), (21, 3), (24, 4)),
}


@pytest.mark.parametrize("model", MODELS)
def test_calibration_is_exact_down_to_the_parameter_count(model):
    """Row: success from `m p >= m + n - 1`, or `p (m - n) >= m - 1`, and failure with one more input; m = 32.

    All three ways, sizes by zero padding in one program, which also holds that to change nothing.
    """
    with jax.enable_x64(True):

        @jax.jit
        def errors(n, p, key):
            operator, y, truth = padded(key, model, 32, (98, 4) if model == "repeated" else (25, 4), (n, p))
            return jnp.stack([error_of(calibrate(operator, y, way), truth) for way in WAYS])

        for n, p in COUNTS[model]:
            assert (32 * p >= 32 + n - 1) if model == "repeated" else (p * (32 - n) >= 31)
            for seed in range(3):
                enough, less = errors(n, p, jax.random.key(seed)), errors(n + 1, p, jax.random.key(seed))
                assert np.all(enough < 1e-6), (n, p, enough)
                assert np.all(less > 1e-3), (n, p, less)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_calibration_is_dense_least_squares(model, way):
    """With noise, against NumPy: rows `M z` and one constraint, or the smallest singular vector."""
    with jax.enable_x64(True):
        problem, _ = lr.synthetic.gain_calibration(
            KEY, shape=(9, 4), num_blocks=3, model=model, noise=0.1, dtype="complex128", random_phase=True
        )
        dense = np.asarray(problem.operator.linearize_inverse_gain(problem.y).dense())
        size = dense.shape[1]
        if way == "spectral":
            expected = np.linalg.svd(dense)[2][-1].conj()
        else:
            w = np.asarray(jax.random.normal(KEY, (size,), complex)) if way == "gaussian" else np.zeros(size, complex)
            if way == "ones":
                w[:9] = 1 / 9
            gram = dense.conj().T @ dense
            expected = np.linalg.solve(gram, w)
            expected /= np.vdot(w, expected)
        found = calibrate(problem.operator, problem.y, way)
        z = np.concatenate([found.inverse_gains, np.ravel(found.inputs)])
        if way == "spectral":
            assert lr.metrics.scaled_error(z, expected) < 1e-10
        else:
            np.testing.assert_allclose(z, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_the_system_is_its_definition():
    with jax.enable_x64(True):
        for model in MODELS:
            problem, truth = lr.synthetic.gain_calibration(
                KEY, shape=(5, 3), num_blocks=4, model=model, dtype="complex128", random_phase=True
            )
            system = problem.operator.linearize_inverse_gain(problem.y)
            z = np.concatenate([1 / truth.left[:, 0], truth.right[:, 0]])
            r = jax.random.normal(KEY, (20,), complex)
            everything = jax.jit(lambda s, z, r: (s.apply(z), s.dense(), s.apply_adjoint(r)))
            zero, dense, back = (np.asarray(part) for part in everything(system, z, r))
            np.testing.assert_allclose(zero, 0, atol=1e-14)
            assert dense.shape == system.shape
            np.testing.assert_allclose(back, dense.conj().T @ np.asarray(r), atol=1e-13)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("transform", ["fourier", "hadamard"])
def test_the_system_of_structured_gains_is_that_of_their_matrices(transform, model, x64):
    operator = StructuredGainMeasurements.create(KEY, (5, 3), 4, model=model, transform=transform)
    dtype = complex if transform == "fourier" else float
    y, r = (jax.random.normal(jax.random.key(seed), (20,), dtype) for seed in (1, 2))
    system, stored = operator.linearize_inverse_gain(y), operator.stored().linearize_inverse_gain(y)
    dense = np.asarray(stored.dense())
    z = jax.random.normal(KEY, (dense.shape[1],), dtype)
    np.testing.assert_allclose(system.apply(z), dense @ np.asarray(z), atol=1e-12)
    np.testing.assert_allclose(system.apply_adjoint(r), dense.conj().T @ np.asarray(r), atol=1e-12)


def complex_operator(kind, model):
    if kind == "gaussian":
        return GainMeasurements.gaussian(KEY, (5, 3), 4, model=model, dtype="complex128")
    return StructuredGainMeasurements.create(KEY, (5, 3), 4, model=model, transform=kind, rounds=3)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["gaussian", "fourier", "hadamard"])
def test_complex_adjoint(model, kind):
    with jax.enable_x64(True):
        operator = complex_operator(kind, model)
        draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape, complex)
        (n1, n2), m = operator.shape, operator.num_measurements
        left, right, z = draw(1, n1, 2), draw(2, n2, 2), draw(3, m)
        y = operator.forward(left, right)
        np.testing.assert_allclose(operator.forward_dense(left @ right.T), y, atol=1e-13)
        adjoint = operator.adjoint(z)
        np.testing.assert_allclose(jnp.vdot(adjoint, left @ right.T), jnp.vdot(z, y), atol=1e-12)
        np.testing.assert_allclose(operator.adjoint_matmul(z, right), adjoint @ right, atol=1e-13)
        np.testing.assert_allclose(operator.adjoint_rmatmul(z, left), adjoint.T @ left, atol=1e-13)


@pytest.mark.parametrize("shape", [(5, 3), (3, 6), (8, 8), (1, 1)])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("transform", "rounds"), [("fourier", 1), ("fourier", 2), ("hadamard", 1), ("hadamard", 3)])
def test_structured_gains_are_transforms_of_signs(transform, rounds, model, shape):
    """Against the matrices written out with NumPy and SciPy, more rows than columns and the other way round."""
    (m, n), p = shape, 3
    with jax.enable_x64(True):
        operator = StructuredGainMeasurements.create(KEY, shape, p, model=model, transform=transform, rounds=rounds)
        size = operator.size
        whole = scipy.linalg.hadamard(size) if transform == "hadamard" else scipy.linalg.dft(size)
        matrices = whole[:, :n] * np.asarray(operator.signs[0])[:, None]
        for signs in operator.signs[1:]:
            matrices = whole / np.sqrt(size) @ (np.asarray(signs)[:, :, None] * matrices)
        matrices = np.broadcast_to(matrices[:, :m], (p, m, n))
        left = np.random.default_rng(0).standard_normal((m, 2))
        right = np.random.default_rng(1).standard_normal((operator.shape[1], 2))
        inputs = np.broadcast_to(right, (p, n, 2)) if model == "repeated" else right.reshape(p, n, 2)
        expected = np.einsum("pmn,pnk,mk->pm", matrices, inputs, left).ravel()
        np.testing.assert_allclose(operator.forward(left, right), expected, atol=1e-12)
        stored = operator.stored()
        assert stored.shape == operator.shape
        np.testing.assert_allclose(stored.forward(left, right), expected, atol=1e-12)


@pytest.mark.parametrize("transform", ["fourier", "hadamard"])
def test_structured_gains_are_recovered(transform):
    """With twice as many measurements as unknowns, by least squares; the real ones by descent too."""
    with jax.enable_x64(True):
        operator = StructuredGainMeasurements.create(KEY, (32, 28), 4, transform=transform)
        _, truth = lr.synthetic.gain_calibration(jax.random.key(1), shape=(32, 28), num_blocks=1)
        y = operator.forward(truth.left, truth.right)
        assert error_of(lr.calibrate(operator.stored(), y), truth) < 1e-10
        if transform == "hadamard":
            solution = lr.solve(lr.Problem(operator, y), lr.BlindGainDescent(), KEY, num_steps=1000)
            assert lr.metrics.relative_error(solution.factors, truth) < 1e-10


def test_structured_memory_is_that_of_the_signs():
    """A dense product would hold `p m n` numbers; the transform `p N k`."""
    operator = StructuredGainMeasurements.create(KEY, (256, 256), 8)
    compiled = jax.jit(operator.forward).lower(jnp.ones((256, 1)), jnp.ones((256, 1))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * 256 * 4 * 10


@pytest.mark.parametrize("model", MODELS[:2])
def test_seeded_gains_are_the_stored_ones(model):
    operator = SeededGainMeasurements.create(KEY, (5, 3), 4, model=model)
    left, right = jnp.ones((5, 2)), jnp.linspace(0, 1, 2 * operator.shape[1]).reshape(-1, 2)
    stored = operator.stored()
    assert stored.shape == operator.shape
    np.testing.assert_allclose(operator.forward(left, right), stored.forward(left, right), rtol=1e-5)


def test_seeded_memory_does_not_grow_with_the_blocks():
    m, n = 16, 12

    def temporary(p):
        operator = SeededGainMeasurements.create(KEY, (m, n), p)
        left, right = jnp.ones((m, 1)), jnp.ones((n, 1))
        slope = jax.grad(lambda left, y: jnp.sum((operator.forward(left, right) - y) ** 2))
        return jax.jit(slope).lower(left, jnp.ones(m * p)).compile().memory_analysis().temp_size_in_bytes

    # A few numbers for each measurement, against twelve for each that storing would take.
    assert temporary(512) - temporary(64) <= 5 * 4 * m * (512 - 64)


@pytest.mark.parametrize("model", MODELS[:2])
def test_error_follows_the_noise_decibel_by_decibel(model):
    """Row: -40 +- 3 dB at an SNR of 40 dB, -80 +- 3 dB at 80 dB; medians, m = 64."""
    shape, p = ((64, 32), 4) if model == "repeated" else ((64, 24), 8)
    with jax.enable_x64(True):

        @jax.jit
        def error(key, noise):
            problem, truth = lr.synthetic.gain_calibration(key, shape=shape, num_blocks=p, model=model, noise=noise)
            return error_of(lr.calibrate(problem.operator, problem.y), truth)

        for snr in (40, 80):
            errors = [error(jax.random.key(seed), 10 ** (-snr / 20)) for seed in range(5)]
            assert abs(20 * np.log10(np.median(errors)) + snr) < 3


def test_ignoring_the_gains_fails():
    """The baseline: least squares in the input with all gains one, where calibration and descent are exact."""
    with jax.enable_x64(True):
        problem, truth = lr.synthetic.gain_calibration(KEY, shape=(16, 8), num_blocks=6)
        stacked = problem.operator.matrices.reshape(-1, 8)
        ignorant = jnp.linalg.lstsq(stacked, problem.y)[0]
        assert lr.metrics.scaled_error(ignorant, truth.right[:, 0]) > 0.02
        assert error_of(lr.calibrate(problem.operator, problem.y), truth) < 1e-12


def test_scaling_the_measurements_scales_the_inputs():
    """Row: with an anchor on the gains, `y -> c y` multiplies the inputs and leaves the gains."""
    with jax.enable_x64(True):
        problem, _ = lr.synthetic.gain_calibration(KEY, shape=(9, 4), num_blocks=3, noise=0.05)
        one, other = (lr.calibrate(problem.operator, c * problem.y) for c in (1.0, -30.0))
        np.testing.assert_allclose(other.inverse_gains, one.inverse_gains, rtol=1e-10)
        np.testing.assert_allclose(other.inputs, -30 * one.inputs, rtol=1e-10)
        assert abs(jnp.mean(one.inverse_gains) - 1) < 1e-12


def test_a_dead_sensor_gets_gain_zero():
    problem, truth = lr.synthetic.gain_calibration(KEY, shape=(12, 4), num_blocks=4)
    y = problem.y.reshape(4, 12).at[:, 3].set(0).ravel()
    alive = np.arange(12) != 3
    for way in WAYS:
        found = calibrate(problem.operator, y, way)
        # Its rows say that the input is orthogonal to them: the fit is spoiled, not the arithmetic.
        assert np.isfinite(found.gains).all()
        assert found.gains[3] == 0
        matrices = problem.operator.matrices.at[:, 3].set(0)
        found = calibrate(GainMeasurements.from_matrices(matrices), y, way)
        assert found.gains[3] == 0
        assert lr.metrics.scaled_error(found.gains[alive], truth.left[alive, 0]) < 1e-3


def test_calibrate_under_vmap_and_grad():
    with jax.enable_x64(True):
        problem, _ = lr.synthetic.gain_calibration(KEY, shape=(7, 3), num_blocks=3, noise=0.1)
        run = lambda y: lr.calibrate(problem.operator, y).inputs
        batch = problem.y * jnp.array([[1.0], [2.0]]) + 0.01
        np.testing.assert_allclose(jax.vmap(run)(batch), jnp.stack([run(y) for y in batch]), rtol=1e-10)
        testing.check_gradient(lambda y: jnp.sum(run(y) ** 2), problem.y, KEY)


# --- descent ---------------------------------------------------------------------------------------------------------


def descent_errors(key, shape, p, radius, num_steps, tolerance=None):
    problem, truth = lr.synthetic.gain_calibration(key, shape=shape, num_blocks=p, radius=radius)
    solver = lr.BlindGainDescent(radius=radius, tolerance=tolerance)
    solution = lr.solve(problem, solver, key, num_steps=num_steps, record_every=num_steps)
    relative = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
    gains = relative(solution.factors.left, truth.left)
    return jnp.maximum(gains, relative(solution.factors.right, truth.right)), solution.num_steps


def test_a_step_is_the_published_one(x64):
    """Against NumPy: gradients, that of the gains less its mean, an exact line search for each, then the projection."""
    problem, _ = lr.synthetic.gain_calibration(KEY, shape=(6, 4), num_blocks=3, radius=0.5)
    solver = lr.BlindGainDescent(radius=0.3)
    state = solver.init(problem, KEY)
    matrices, y = np.asarray(problem.operator.matrices), np.asarray(problem.y).reshape(3, 6)
    gains, x = np.asarray(state.factors.left)[:, 0], np.asarray(state.factors.right)[:, 0]
    for _ in range(3):
        images = matrices @ x
        residual = gains * images - y
        down_x = np.einsum("pmn,pm->n", matrices, gains * residual)
        down_gains = (images * residual).sum(axis=0)
        down_gains -= down_gains.mean()
        along_x, along_gains = gains * (matrices @ down_x), images * down_gains
        x = x - (along_x * residual).sum() / (along_x**2).sum() * down_x
        moved = gains - (along_gains * residual).sum() / (along_gains**2).sum() * down_gains
        # The shift at which the mean is one.
        low, high = -1.0, 1.0
        for _ in range(80):
            shift = (low + high) / 2
            low, high = (shift, high) if np.clip(moved - 1 - shift, -0.3, 0.3).sum() > 0 else (low, shift)
        gains = 1 + np.clip(moved - 1 - shift, -0.3, 0.3)
        state, _ = solver.step(problem, state, KEY)
        np.testing.assert_allclose(state.factors.left[:, 0], gains, rtol=1e-10)
        np.testing.assert_allclose(state.factors.right[:, 0], x, rtol=1e-10)


def test_descent_converges_linearly_whatever_the_radius():
    """Row: m = n = 64, p = 8: at most 200 iterations to 1e-8, also with gains anywhere between 0 and 2."""
    with jax.enable_x64(True):
        run = jax.jit(lambda key, radius: descent_errors(key, (64, 64), 8, radius, 200))
        for radius in (0.01, 0.99):
            assert run(KEY, radius)[0] < 1e-8


def test_descent_threshold():
    """Row: fails with as many measurements as unknowns, succeeds with 1.5 times as many (radius 0.5, -70 dB)."""
    with jax.enable_x64(True):
        level = 10 ** (-70 / 20)
        for n, p, succeeds in ((32, 2, False), (32, 3, True)):
            run = jax.jit(lambda key, n=n, p=p: descent_errors(key, (32, n), p, 0.5, 3000, 1e-7)[0])
            errors = np.array([run(jax.random.key(seed)) for seed in range(3)])
            assert np.all(errors < level) if succeeds else np.all(errors > level), (n, p, errors)


def test_descent_starts_near_the_input():
    """Row: the start errs by about `sqrt(n / (m p))`, 0.354 here; the line search makes it a little shorter."""
    problem, truth = lr.synthetic.gain_calibration(KEY, shape=(64, 64), num_blocks=8, radius=0.5)
    start = lr.BlindGainDescent().init(problem, KEY).factors
    assert 0.25 < jnp.linalg.norm(start.right - truth.right) < 0.42
    np.testing.assert_array_equal(start.left, 1)


def test_projection_of_gains():
    """The nearest point, by its optimality conditions; and the derivative against differences."""
    with jax.enable_x64(True):
        for radius, seed in ((0.3, 1), (0.99, 2), (5.0, 3)):
            g = 1 + jax.random.normal(jax.random.key(seed), (20, 1))
            x = project_gains(g, radius)
            assert abs(jnp.mean(x) - 1) < 1e-14
            assert jnp.max(jnp.abs(x - 1)) <= radius + 1e-14
            # One shift for all that are free; those at a bound would go beyond it.
            moved, free = g - x, jnp.abs(x - 1) < radius - 1e-12
            shift = moved[free][0] if free.any() else jnp.median(moved)
            np.testing.assert_allclose(moved[free], shift, atol=1e-12)
            assert np.all((x - 1) * (moved - shift) >= -1e-12)
            testing.check_gradient(lambda g, r=radius: jnp.sum(jnp.sin(project_gains(g, r))), g, KEY)


def test_subspaces_need_fewer_measurements():
    """Gains in six dimensions, the input in eight: exact from fewer measurements than sensors and inputs."""
    with jax.enable_x64(True):
        m, n, p, h, k = 64, 96, 1, 6, 8
        keys = jax.random.split(jax.random.key(4), 4)
        smooth = jnp.cos(jnp.pi * (jnp.arange(m)[:, None] + 0.5) * jnp.arange(h) / m)
        gain_basis = smooth / jnp.linalg.norm(smooth, axis=0)
        input_basis = jnp.linalg.qr(jax.random.normal(keys[0], (n, k)))[0]
        gains = 1 + 0.3 * smooth[:, 1:] @ jax.random.normal(keys[1], (h - 1, 1)) / h**0.5
        x = input_basis @ jax.random.normal(keys[2], (k, 1))
        operator = GainMeasurements.gaussian(keys[3], (m, n), p)
        problem = lr.Problem(operator, operator.forward(gains, x))
        known = lr.BlindGainDescent(gain_basis=gain_basis, input_basis=input_basis)
        errors = [
            lr.metrics.relative_error(lr.solve(problem, s, KEY, num_steps=1000).factors, lr.Factors(gains, x))
            for s in (known, lr.BlindGainDescent())
        ]
        assert errors[0] < 1e-8
        assert errors[1] > 0.1


@pytest.mark.parametrize("complex_", [False, True])
def test_scaled_error(complex_):
    """Against NumPy's least squares in the one factor; exact multiples, zeros and orthogonal vectors."""
    rng = np.random.default_rng(0)
    draw = lambda: rng.standard_normal(6) + (1j * rng.standard_normal(6) if complex_ else 0)
    with jax.enable_x64(True):
        a, b = draw(), draw()
        factor = np.linalg.lstsq(a[:, None], b, rcond=None)[0]
        expected = np.linalg.norm(factor * a - b) / np.linalg.norm(b)
        assert abs(lr.metrics.scaled_error(a, b) - expected) < 1e-14
        assert lr.metrics.scaled_error((-2 + (1j if complex_ else 0)) * b, b) < 1e-14
        assert lr.metrics.scaled_error(0 * b, b) == 1
    with pytest.raises(ValueError, match=r"one shape.*\(6,\).*\(5,\)"):
        lr.metrics.scaled_error(a, b[:5])


OPERATOR = GainMeasurements(matrices=jnp.ones((2, 4, 3)), num_blocks=2)
REFUSED = {
    "matrices 2d": (lambda: GainMeasurements.from_matrices(np.ones((3, 3))), r"\(p, m, n\).*\(3, 3\)"),
    "snapshots 3d": (lambda: GainMeasurements.from_matrices(np.ones((2, 3, 3)), num_snapshots=2), r"\(m, n\)"),
    "both": (lambda: GainMeasurements.from_matrices(np.ones((3, 3)), num_snapshots=2, diverse=True), "exclude"),
    "integers": (lambda: GainMeasurements.from_matrices(np.ones((2, 3, 3), int)), "matrices .*int"),
    "model": (lambda: GainMeasurements.gaussian(KEY, (3, 3), 2, model="x"), "model .*'x'"),
    "huge": (lambda: GainMeasurements.gaussian(KEY, (3000, 3000), 1000), "GiB.*SeededGainMeasurements"),
    "seeded snapshots": (lambda: SeededGainMeasurements.create(KEY, (3, 3), 2, model="snapshots"), "model"),
    "operator": (lambda: lr.calibrate(None, jnp.ones(8)), "operator .*NoneType"),
    "y": (lambda: lr.calibrate(OPERATOR, jnp.ones(7)), r"y .*\(8,\).*\(7,\)"),
    "y dtype": (lambda: lr.calibrate(OPERATOR, jnp.ones(8, complex)), "y .*float32.*complex64"),
    "y nan": (lambda: lr.calibrate(OPERATOR, jnp.full(8, jnp.nan)), "y .*finite"),
    "method": (lambda: lr.calibrate(OPERATOR, jnp.ones(8), method="x"), "method .*'x'"),
    "anchor": (lambda: lr.calibrate(OPERATOR, jnp.ones(8), anchor="x"), "anchor .*'x'"),
    "anchor shape": (lambda: lr.calibrate(OPERATOR, jnp.ones(8), anchor=np.ones(5)), r"anchor .*\(4,\).*\(5,\)"),
    "anchor key": (lambda: lr.calibrate(OPERATOR, jnp.ones(8), anchor="gaussian"), "key .*None"),
    "phase": (
        lambda: lr.synthetic.gain_calibration(KEY, shape=(3, 3), num_blocks=2, random_phase=True),
        "random_phase.*complex",
    ),
    "radius": (lambda: descend(radius=1.5), "radius .*1.5"),
    "basis": (lambda: descend(gain_basis=np.ones((3, 1))), r"gain_basis .*\(4, k\).*\(3, 1\)"),
    "basis scaled": (lambda: descend(input_basis=2 * np.eye(3)[:, :1]), "input_basis must have orthonormal columns"),
    "basis without ones": (lambda: descend(gain_basis=np.eye(4)[:, :2]), "gain_basis must contain the vector of ones"),
    "loss": (lambda: descend(loss=lr.losses.Absolute()), "squared loss.*Absolute"),
}


def descend(loss=None, **settings):
    problem = lr.Problem(OPERATOR, jnp.ones(8), loss=loss or lr.losses.Squared())
    return lr.solve(problem, lr.BlindGainDescent(**settings), KEY, num_steps=1)


@pytest.mark.parametrize(("call", "text"), REFUSED.values(), ids=REFUSED)
def test_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_the_scaled_error_has_no_units():
    truth = np.random.default_rng(0).standard_normal(6).astype(np.float32)
    for scale in (1e-30, 1e-22, 1.0, 1e22, 1e30):
        seen = [
            lr.metrics.scaled_error(np.float32(a) * truth, np.float32(b) * truth) for a, b in ((scale, 1), (1, scale))
        ]
        np.testing.assert_allclose(seen, 0, atol=1e-6)
    assert lr.metrics.scaled_error(0 * truth, truth) == 1


@pytest.mark.parametrize("create", [lr.operators.GainMeasurements.gaussian, lr.operators.SeededGainMeasurements.create])
def test_gains_of_whole_numbers_are_refused(create):
    with pytest.raises(ValueError, match="dtype must be real or complex floating; got int32"):
        create(jax.random.key(0), (3, 2), 2, dtype=np.int32)


@pytest.mark.parametrize("noise", [-1.0, np.nan])
def test_the_noise_of_a_synthetic_calibration_is_checked(noise):
    with pytest.raises(ValueError, match="noise must be finite and in"):
        lr.synthetic.gain_calibration(jax.random.key(0), shape=(4, 2), num_blocks=2, noise=noise)
