"""The traced half of `synthetic`: one program for each builder, of arguments that were checked."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.draws import drawn
from lrjax.core.units import norm
from lrjax.linalg.guarded import qr
from lrjax.operators import DenseEnsemble, EntryMask, GainMeasurements
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem


@partial(jax.jit, static_argnames=("shape", "rank", "symmetric"))
def low_rank(
    key: jax.Array,
    condition_number: jax.Array,
    coherence: jax.Array,
    *,
    shape: tuple[int, int],
    rank: int,
    symmetric: bool,
) -> Factors:
    """See `synthetic.low_rank`; in the dtype of the numbers."""
    (n1, n2), dtype = shape, coherence.dtype

    def basis(k: jax.Array, n: int) -> jax.Array:
        gaussian = drawn(jax.random.normal, k, (n, rank), dtype)
        heavy = 1 + coherence / (1 - coherence) * n / (1 + jnp.arange(n, dtype=dtype))
        return qr(gaussian * heavy[:, None])[0]

    key_left, key_right = jax.random.split(key)
    exponent = -jnp.linspace(0, 1, rank, dtype=dtype) if rank > 1 else jnp.zeros(1, dtype)
    root = condition_number ** (exponent / 2)
    left = basis(key_left, n1) * root[None, :]
    return Factors(left, left if symmetric else basis(key_right, n2) * root[None, :])


@jax.jit
def root_mean_square(x: jax.Array) -> jax.Array:
    """Of real or complex numbers in any units."""
    return norm(jnp.abs(x)) / jnp.sqrt(jnp.asarray(x.size, jnp.finfo(x.dtype).dtype))


@partial(jax.jit, static_argnames=("kind",))
def corrupt(
    key: jax.Array,
    y: jax.Array,
    *,
    noise: jax.Array,
    corruption: jax.Array | None,
    corruption_scale: jax.Array,
    kind: str,
) -> tuple[jax.Array, jax.Array]:
    """See `synthetic.corrupt`; `corruption=None` draws no gross errors."""
    keys = jax.random.split(key, 3)  # of the noise, the places and the sizes
    unit = root_mean_square(y)
    draw = lambda k: drawn(jax.random.normal, k, y.shape, y.dtype)
    if corruption is None:
        return y + noise * unit * draw(keys[0]), jnp.zeros(y.shape, bool)
    # A loop compiles its body once.
    normal, size = jax.lax.map(draw, keys[::2])
    noisy, gross = y + noise * unit * normal, corruption_scale * unit * size
    where = drawn(jax.random.uniform, keys[1], y.shape, y.dtype) < corruption
    if kind == "one_sided":
        gross = jnp.abs(gross)
    bad = -corruption_scale * y if kind == "adversarial_sign" else noisy + gross
    return jnp.where(where, bad, noisy), where


@jax.jit
def forward(operator: Any, truth: Factors) -> jax.Array:
    """What the operator measures of the truth."""
    return operator.forward(truth.left, truth.right)


def _problem(key: jax.Array, operator: Any, truth: Factors, spoiling: dict[str, Any]) -> Problem:
    return Problem(operator, corrupt(key, forward(operator, truth), **spoiling)[0])


@partial(jax.jit, static_argnames=("shape", "rank", "symmetric", "kind", "num_measurements"))
def matrix_sensing(key, numbers, spoiling, *, shape, rank, symmetric, kind, num_measurements):
    """See `synthetic.matrix_sensing`; the loss is left to the caller."""
    key_truth, key_operator, key_noise = jax.random.split(key, 3)
    truth = low_rank(key_truth, *numbers, shape=shape, rank=rank, symmetric=symmetric)
    operator = DenseEnsemble.gaussian(
        key_operator, shape, num_measurements, symmetric=symmetric, dtype=truth.left.dtype
    )
    return _problem(key_noise, operator, truth, {**spoiling, "kind": kind}), truth


@partial(jax.jit, static_argnames=("shape", "rank", "symmetric", "kind", "sampling"))
def matrix_completion(key, numbers, spoiling, fraction, *, shape, rank, symmetric, kind, sampling):
    """See `synthetic.matrix_completion`; the loss is left to the caller."""
    (n1, n2), dtype = shape, fraction.dtype
    key_truth, key_mask, key_noise = jax.random.split(key, 3)
    truth = low_rank(key_truth, *numbers, shape=shape, rank=rank, symmetric=symmetric)
    density = jnp.full((n1, n2), fraction, dtype)
    if sampling == "skewed":
        row = (1 + jnp.arange(n1, dtype=dtype)) ** -0.5
        col = (1 + jnp.arange(n2, dtype=dtype)) ** -0.5
        density = density * (row / jnp.mean(row))[:, None] * (col / jnp.mean(col))[None, :]
    mask = drawn(jax.random.uniform, key_mask, (n1, n2), dtype) < density
    return _problem(key_noise, EntryMask(mask=mask), truth, {**spoiling, "kind": kind}), truth


@partial(jax.jit, static_argnames=("shape", "rank"))
def large_completion(key, numbers, *, shape, rank):
    """The truth, and the seed of the entries."""
    key_truth, key_entries = jax.random.split(key)
    return low_rank(key_truth, *numbers, shape=shape, rank=rank, symmetric=False), seed(key_entries)


@jax.jit
def seed(key: jax.Array) -> jax.Array:
    """For NumPy's generator."""
    return jax.random.bits(key, (4,))


@partial(jax.jit, static_argnames=("shape", "num_blocks", "model", "random_phase", "dtype"))
def gain_calibration(key, radius, noise, *, shape, num_blocks, model, random_phase, dtype):
    """See `synthetic.gain_calibration`."""
    (m, n), real = shape, radius.dtype
    key_operator, key_gains, key_phases, key_inputs, key_noise = jax.random.split(key, 5)
    operator = GainMeasurements.gaussian(key_operator, shape, num_blocks, model=model, dtype=dtype)
    offset = jax.random.uniform(key_gains, (m,), real, -1, 1)
    offset = offset - jnp.mean(offset)
    gains = 1 + radius * offset / jnp.maximum(1, jnp.max(jnp.abs(offset)))
    gains = gains.astype(dtype)
    if random_phase:
        gains = gains * jnp.exp(2j * jnp.pi * jax.random.uniform(key_phases, (m,), real)).astype(dtype)
    inputs = drawn(jax.random.normal, key_inputs, (operator.shape[1] // n, n), dtype)
    inputs = inputs / jnp.linalg.norm(inputs, axis=1, keepdims=True).astype(dtype)
    truth = Factors(gains[:, None], inputs.reshape(-1, 1))
    clean = forward(operator, truth)
    size = (noise * root_mean_square(clean)).astype(dtype)
    return Problem(operator, clean + size * jax.random.normal(key_noise, clean.shape, dtype)), truth
