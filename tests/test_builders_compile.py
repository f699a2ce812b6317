"""Builders compile few programs, and none for another key or another number."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr

SHAPE, RANK, M = (40, 30), 3, 300
SIZES = {"shape": SHAPE, "rank": RANK}
AT_MOST = 3
rng = np.random.default_rng(0)
FLAT = rng.choice(SHAPE[0] * SHAPE[1], 500, replace=False)
ROWS, COLS = FLAT // SHAPE[1], FLAT % SHAPE[1]


def draw(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


MATRICES, TALL, EYE = draw(50, 8, 6), draw(2000, 20), np.eye(4, dtype=np.float32)


def factors(scale=1.0):
    return lr.Factors(*(jax.device_put(np.float32(scale) * draw(n, RANK)) for n in SHAPE))


def entries():
    return lr.operators.SampledEntries.build(ROWS, COLS, draw(500), SHAPE)


def completion(**more):
    settings = {"rank": 2, "biases": True, "ridge": 1.0, "num_steps": 2, "key": jax.random.key(0)}
    done = lr.complete(ROWS, COLS, draw(500), SHAPE, **settings, **more)
    jax.block_until_ready(done.solution)
    return done


def dense_mask():
    return rng.random(SHAPE) < 0.5


synthetic, operators, metrics, initial = lr.synthetic, lr.operators, lr.metrics, lr.initial


def masked_problem():
    mask, y, weights = jax.device_put((dense_mask(), draw(1200), abs(draw(1200))))
    return lr.Problem(operators.EntryMask(mask), y, weights)


problem_of = lambda: lr.Problem(*entries())
gaussian = lambda: operators.DenseEnsemble(rows=jax.device_put(draw(M, 1200)), matrix_shape=SHAPE)

# Name: what it needs, made before anything is counted, and what is called with a key and a number of `[0.1, 0.3]`.
BUILDERS = {
    "low_rank": (None, lambda _, key, x: synthetic.low_rank(key, SHAPE, RANK, condition_number=1 + x, coherence=x)),
    "corrupt": (
        lambda: jax.device_put(draw(M)),
        lambda y, key, x: synthetic.corrupt(key, y, noise=x, corruption=x, corruption_scale=1 + x),
    ),
    "from_truth": (
        lambda: (gaussian(), factors()),
        lambda given, key, x: synthetic.from_truth(key, *given, noise=x, corruption=x),
    ),
    "matrix_sensing": (
        None,
        lambda _, key, x: synthetic.matrix_sensing(
            key, **SIZES, num_measurements=M, condition_number=1 + x, noise=x, corruption=x
        ),
    ),
    "matrix_completion": (
        None,
        lambda _, key, x: synthetic.matrix_completion(
            key, **SIZES, fraction=x, condition_number=1 + x, coherence=x, noise=x, corruption=x
        ),
    ),
    "matrix_completion skewed": (
        None,
        lambda _, key, x: synthetic.matrix_completion(key, **SIZES, oversampling=1 + x, sampling="skewed", noise=x),
    ),
    "sampled_entries": (factors, lambda given, key, x: synthetic.sampled_entries(key, given, 400, noise=x)),
    "large_completion": (
        None,
        lambda _, key, x: synthetic.large_completion(key, **SIZES, oversampling=2, condition_number=1 + x, noise=x),
    ),
    "gain_calibration": (
        None,
        lambda _, key, x: synthetic.gain_calibration(key, shape=(20, 5), num_blocks=4, radius=x, noise=x),
    ),
    "gain_calibration complex": (
        None,
        lambda _, key, x: synthetic.gain_calibration(
            key, shape=(20, 5), num_blocks=4, radius=x, noise=x, random_phase=True, dtype=jnp.complex64
        ),
    ),
    "DenseEnsemble.gaussian": (
        None,
        lambda _, key, x: operators.DenseEnsemble.gaussian(key, SHAPE, M, scale=x),
    ),
    "DenseEnsemble.from_matrices": (None, lambda _, key, x: operators.DenseEnsemble.from_matrices(MATRICES)),
    "DenseEnsemble.from_matrices symmetric": (
        None,
        lambda _, key, x: operators.DenseEnsemble.from_matrices(draw(9, 1, 1) * EYE, symmetric=True),
    ),
    "EntryMask.from_mask": (None, lambda _, key, x: operators.EntryMask.from_mask(dense_mask())),
    "SampledEntries.build": (None, lambda _, key, x: entries()),
    "GainMeasurements.gaussian": (None, lambda _, key, x: operators.GainMeasurements.gaussian(key, (20, 5), 4)),
    "GainMeasurements.from_matrices": (None, lambda _, key, x: operators.GainMeasurements.from_matrices(MATRICES)),
    "SeededGaussianEnsemble": (None, lambda _, key, x: operators.SeededGaussianEnsemble.create(key, SHAPE, M)),
    "SeededGainMeasurements": (
        None,
        lambda _, key, x: operators.SeededGainMeasurements.create(key, (20, 5), 4),
    ),
    "StructuredGainMeasurements": (
        None,
        lambda _, key, x: operators.StructuredGainMeasurements.create(key, (20, 5), 4),
    ),
    "RankOneMeasurements.gaussian": (None, lambda _, key, x: operators.RankOneMeasurements.gaussian(key, SHAPE, M)),
    "RankOneMeasurements.from_vectors": (
        None,
        lambda _, key, x: operators.RankOneMeasurements.from_vectors(draw(M, 40), draw(M, 30)),
    ),
    "Kronecker": (None, lambda _, key, x: operators.Kronecker.from_matrices([draw(4, 3), draw(5, 2)])),
    "Hankel": (None, lambda _, key, x: operators.Hankel.create(5, 4)),
    "masked": (gaussian, lambda given, key, x: operators.masked(given, rng.random(M) < 0.5)),
    "scaled": (gaussian, lambda given, key, x: operators.scaled(given, x)),
    "stacked": (lambda: (gaussian(), gaussian()), lambda given, key, x: operators.stacked(*given)),
    "summed": (lambda: (gaussian(), gaussian()), lambda given, key, x: operators.summed(*given)),
    "Problem.check": (problem_of, lambda given, key, x: given.check()),
    "Problem.check masked": (masked_problem, lambda given, key, x: given.check()),
    "gain": (problem_of, lambda given, key, x: initial.gain(given, key, symmetric=False)),
    "gain dense": (
        lambda: lr.Problem(gaussian(), jax.device_put(draw(M))),
        lambda given, key, x: initial.gain(given, key, symmetric=False),
    ),
    "spectral": (problem_of, lambda given, key, x: initial.spectral(given, RANK, key, trim=True)),
    "sign_spectral": (problem_of, lambda given, key, x: initial.sign_spectral(given, RANK, key, symmetric=False)),
    "truncated_spectral": (
        problem_of,
        lambda given, key, x: initial.truncated_spectral(given, RANK, key, symmetric=False, keep=5 + x),
    ),
    "small_random": (
        None,
        lambda _, key, x: initial.small_random(key, SHAPE, RANK, scale=x, imbalance=1 + x, dtype=jnp.float32),
    ),
    "relative_error": (lambda: (factors(), factors()), lambda given, key, x: metrics.relative_error(*given)),
    "relative_error dense": (
        lambda: (jax.device_put(draw(*SHAPE)), factors()),
        lambda given, key, x: metrics.relative_error(*given),
    ),
    "success": (lambda: (factors(), factors()), lambda given, key, x: metrics.success(*given, tolerance=x)),
    "rmse": (None, lambda _, key, x: metrics.rmse(draw(M), draw(M))),
    "rmse weighted": (None, lambda _, key, x: metrics.rmse(draw(M), draw(M), abs(draw(M)))),
    "subspace_distance": (None, lambda _, key, x: metrics.subspace_distance(draw(40, 3), draw(40, 2))),
    "support_recovery": (None, lambda _, key, x: metrics.support_recovery(draw(M), draw(M), x)),
    "scaled_error": (None, lambda _, key, x: metrics.scaled_error(draw(M), draw(M))),
    "Completion.predict": (completion, lambda given, key, x: given.predict(ROWS[:20], COLS[:20])),
    "Completion.recommend": (completion, lambda given, key, x: given.recommend(ROWS[:20], 5)),
    "Completion.uncertainty": (
        lambda: completion(ensemble=3),
        lambda given, key, x: given.uncertainty(ROWS[:20], COLS[:20]),
    ),
    "Factors.entries": (factors, lambda given, key, x: given.entries(ROWS, COLS)),
    "Factors.dense": (factors, lambda given, key, x: given.dense()),
    "Factors.matmul": (factors, lambda given, key, x: given.matmul(draw(30))),
    "Factors.norm": (factors, lambda given, key, x: given.norm()),
    "Factors.svd": (factors, lambda given, key, x: given.svd()),
    "Factors.truncate": (factors, lambda given, key, x: given.truncate(2)),
    "Factors.balanced": (factors, lambda given, key, x: given.balanced()),
    "lstsq": (None, lambda _, key, x: lr.lstsq(TALL, draw(2000, 1), key, ridge=x)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_is_few_programs_and_no_more_for_another_key_or_number(name):
    need, call = BUILDERS[name]
    given = need() if need else None
    keys, numbers = [jax.random.key(seed) for seed in range(2)], (0.1, 0.3)
    jax.block_until_ready((given, keys))
    compiled = []

    def listen(event: str, duration_secs: float, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        seen = []
        for key, x in zip(keys, numbers, strict=True):
            jax.block_until_ready(call(given, key, x))
            seen.append(len(compiled))
    finally:
        jax.monitoring.clear_event_listeners()
    assert seen[0] <= AT_MOST
    assert seen[1] == seen[0]
