"""Planted problems by key: truths of chosen rank, conditioning and coherence; noise, corruption and sampling.

Everything is traceable: vmap a builder over keys, noise, corruption or condition number.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import losses
from lrjax._checks import (
    check_choice,
    check_count,
    check_flag,
    check_key,
    check_range,
    check_shape,
    float_dtype,
    host_number,
    number,
    real_array,
)
from lrjax._units import norm
from lrjax.factors import Factors
from lrjax.linalg.guarded import qr
from lrjax.operators import DenseEnsemble, EntryMask, GainMeasurements, SampledEntries
from lrjax.operators.base import check_operator
from lrjax.problem import Problem

CORRUPTIONS = ("gaussian", "one_sided", "adversarial_sign")
SAMPLINGS = ("uniform", "skewed")


def low_rank(
    key: jax.Array,
    shape: tuple[int, int],
    rank: int,
    *,
    condition_number: float | jax.Array = 1.0,
    symmetric: bool = False,
    coherence: float | jax.Array = 0.0,
    dtype: Any = None,
) -> Factors:
    """A random matrix of exact rank with largest singular value 1, as balanced factors.

    Args:
        key: random key; both factors get keys of their own.
        shape: `(n1, n2)`.
        rank: at most `min(shape)`.
        condition_number: ratio of the largest to the smallest nonzero singular value; the values are spaced evenly on a
            logarithmic scale. Traceable.
        symmetric: positive semidefinite, `left == right`.
        coherence: in [0, 1). Zero: subspaces of Gaussian matrices, as incoherent as chance allows. Towards one, the
            first rows carry more and more of the mass: row i of the
            Gaussian matrix is scaled by `1 + c/(1-c) n / (i+1)`.
        dtype: float32 or float64; default JAX's current default.

    Raises:
        ValueError: a key, shape, rank, number, flag or dtype that does not fit.
    """
    check_key(key)
    n1, n2 = check_shape(shape)
    r = check_count("rank", rank)
    if r > min(n1, n2):
        raise ValueError(f"rank must be at most min(shape) = {min(n1, n2)}; got {r}")
    if check_flag("symmetric", symmetric) and n1 != n2:
        raise ValueError(f"symmetric=True needs a square shape; got {(n1, n2)}")
    dtype = _factored_dtype(dtype)
    check_range("coherence", coherence, low=0, high=1 - 1e-12)
    c = number("coherence", coherence, dtype)
    condition_number = number("condition_number", condition_number, dtype, low=1)

    def basis(k: jax.Array, n: int) -> jax.Array:
        gaussian = jax.random.normal(k, (n, r), dtype)
        heavy = 1 + c / (1 - c) * n / (1 + jnp.arange(n, dtype=dtype))
        return qr(gaussian * heavy[:, None])[0]

    key_left, key_right = jax.random.split(key)
    exponent = -jnp.linspace(0, 1, r, dtype=dtype) if r > 1 else jnp.zeros(1, dtype)
    root = condition_number ** (exponent / 2)
    left = basis(key_left, n1) * root[None, :]
    return Factors(left, left if symmetric else basis(key_right, n2) * root[None, :])


def _factored_dtype(dtype: Any) -> Any:
    """A dtype that LAPACK knows."""
    found = float_dtype(dtype)
    if found.itemsize < 4:
        raise ValueError(f"dtype must be float32 or float64; got {found}")
    return found


def corrupt(
    key: jax.Array,
    y: jax.Array,
    *,
    noise: float | jax.Array = 0.0,
    corruption: float | jax.Array = 0.0,
    corruption_scale: float | jax.Array = 10.0,
    kind: str = "gaussian",
) -> tuple[jax.Array, jax.Array]:
    """Adds Gaussian noise to `y`, and gross errors to a random subset.

    Args:
        key: random key.
        y: `(m,)` clean measurements.
        noise: standard deviation, in units of the root mean square of `y`.
        corruption: probability with which a measurement is corrupted, independently. Traceable.
        corruption_scale: size of the gross errors, in units of the root mean square of `y`.
        kind: `"gaussian"`: added `N(0, scale^2)`; `"one_sided"`: added `|N(0, scale^2)|`; `"adversarial_sign"`:
            replaced by `-scale * y`, which points the sign-spectral start the wrong way.

    Returns:
        The measurements, and booleans that are true where they were corrupted.

    Raises:
        ValueError: a key, measurements, number or kind that is none.
    """
    check_key(key)
    check_choice("kind", kind, CORRUPTIONS)
    y = real_array("y", y)
    corruption = number("corruption", corruption, y.dtype, low=0, high=1)
    noise = number("noise", noise, y.dtype, low=0)
    scale = number("corruption_scale", corruption_scale, y.dtype, low=0)
    key_noise, key_where, key_size = jax.random.split(key, 3)
    unit = _root_mean_square(y)
    noisy = y + noise * unit * jax.random.normal(key_noise, y.shape, y.dtype)
    where = jax.random.uniform(key_where, y.shape, y.dtype) < corruption
    gross = scale * unit * jax.random.normal(key_size, y.shape, y.dtype)
    if kind == "one_sided":
        gross = jnp.abs(gross)
    bad = -scale * y if kind == "adversarial_sign" else noisy + gross
    return jnp.where(where, bad, noisy), where


def _root_mean_square(x: jax.Array) -> jax.Array:
    """Of real or complex numbers in any units."""
    return norm(jnp.abs(x)) / jnp.sqrt(jnp.asarray(x.size, jnp.finfo(x.dtype).dtype))


def _loss_for(loss: Any, corruption: Any) -> Any:
    """The absolute loss where corruption was asked for, else the squared one."""
    if loss is not None:
        return loss
    return losses.Squared() if corruption is None else losses.Absolute()


def from_truth(
    key: jax.Array,
    operator: Any,
    truth: Factors,
    *,
    noise: float | jax.Array = 0.0,
    corruption: float | jax.Array | None = None,
    corruption_scale: float | jax.Array = 10.0,
    kind: str = "gaussian",
    loss: Any = None,
) -> Problem:
    """Measures `truth` with any operator and spoils the result; see `corrupt`.

    The loss is the absolute one if `corruption` is given (even as zero), else the squared one, unless `loss` says
    otherwise.
    """
    check_operator("operator", operator)
    if not isinstance(truth, Factors) or truth.shape != operator.shape:
        raise ValueError(
            f"truth must be Factors of shape {operator.shape}; got {type(truth).__name__} {getattr(truth, 'shape', '')}"
        )
    clean = operator.forward(truth.left, truth.right)
    fraction = 0.0 if corruption is None else corruption
    y, _ = corrupt(key, clean, noise=noise, corruption=fraction, corruption_scale=corruption_scale, kind=kind)
    return Problem(operator, y, loss=_loss_for(loss, corruption))


def matrix_sensing(
    key: jax.Array,
    *,
    shape: tuple[int, int],
    rank: int,
    num_measurements: int,
    symmetric: bool = False,
    condition_number: float | jax.Array = 1.0,
    noise: float | jax.Array = 0.0,
    corruption: float | jax.Array | None = None,
    corruption_scale: float | jax.Array = 10.0,
    kind: str = "gaussian",
    loss: Any = None,
    dtype: Any = None,
) -> tuple[Problem, Factors]:
    """Standard Gaussian measurements of a planted matrix, with noise and outliers; see `low_rank` and `corrupt`.

    Returns:
        The problem, whose loss is the absolute one if `corruption` is given, and the truth.

    Examples:
        >>> import jax, lrjax as lr
        >>> problem, truth = lr.synthetic.matrix_sensing(jax.random.key(0), shape=(6, 5), rank=2, num_measurements=60)
        >>> problem.y.shape, truth.shape
        ((60,), (6, 5))
    """
    check_key(key)
    dtype = _factored_dtype(dtype)
    key_truth, key_operator, key_noise = jax.random.split(key, 3)
    truth = low_rank(key_truth, shape, rank, condition_number=condition_number, symmetric=symmetric, dtype=dtype)
    operator = DenseEnsemble.gaussian(key_operator, shape, num_measurements, symmetric=symmetric, dtype=dtype)
    problem = from_truth(
        key_noise,
        operator,
        truth,
        noise=noise,
        corruption=corruption,
        corruption_scale=corruption_scale,
        kind=kind,
        loss=loss,
    )
    return problem, truth


def matrix_completion(
    key: jax.Array,
    *,
    shape: tuple[int, int],
    rank: int,
    fraction: float | jax.Array | None = None,
    oversampling: float | jax.Array | None = None,
    sampling: str = "uniform",
    symmetric: bool = False,
    condition_number: float | jax.Array = 1.0,
    coherence: float | jax.Array = 0.0,
    noise: float | jax.Array = 0.0,
    corruption: float | jax.Array | None = None,
    corruption_scale: float | jax.Array = 10.0,
    kind: str = "gaussian",
    loss: Any = None,
    dtype: Any = None,
) -> tuple[Problem, Factors]:
    """Entries of a planted matrix under a random dense mask (`EntryMask`); traceable, for small and vmapped problems.

    Args:
        key: random key.
        shape: `(n1, n2)`.
        rank: rank of the truth.
        fraction: probability with which an entry is observed; give this or `oversampling`.
        oversampling: expected number of entries over degrees of freedom, `r (n1 + n2 - r)`.
        sampling: `"uniform"`, or `"skewed"`: probabilities proportional to `(i+1)^-1/2 (j+1)^-1/2`, capped at one, with
            the same expected number of entries up to the cap (ratings-like).
        symmetric: positive semidefinite truth.
        condition_number: of the truth.
        coherence: of the truth.
        noise: see `corrupt`.
        corruption: see `corrupt`.
        corruption_scale: see `corrupt`.
        kind: see `corrupt`.
        loss: see `from_truth`.
        dtype: float32 or float64; default JAX's current default.
    """
    check_key(key)
    n1, n2 = check_shape(shape)
    dtype = _factored_dtype(dtype)
    check_choice("sampling", sampling, SAMPLINGS)
    rank = check_count("rank", rank)
    p = _sampling_fraction(fraction, oversampling, (n1, n2), rank)
    key_truth, key_mask, key_noise = jax.random.split(key, 3)
    truth = low_rank(
        key_truth,
        shape,
        rank,
        condition_number=condition_number,
        symmetric=symmetric,
        coherence=coherence,
        dtype=dtype,
    )
    density = jnp.full((n1, n2), p, dtype)
    if sampling == "skewed":
        row = (1 + jnp.arange(n1, dtype=dtype)) ** -0.5
        col = (1 + jnp.arange(n2, dtype=dtype)) ** -0.5
        density = density * (row / jnp.mean(row))[:, None] * (col / jnp.mean(col))[None, :]
    mask = jax.random.uniform(key_mask, (n1, n2), dtype) < density
    problem = from_truth(
        key_noise,
        EntryMask(mask=mask),
        truth,
        noise=noise,
        corruption=corruption,
        corruption_scale=corruption_scale,
        kind=kind,
        loss=loss,
    )
    return problem, truth


def _sampling_fraction(fraction: Any, oversampling: Any, shape: tuple[int, int], rank: int) -> Any:
    if (fraction is None) == (oversampling is None):
        raise ValueError(f"give fraction or oversampling, one of them; got {fraction!r} and {oversampling!r}")
    if fraction is None:
        (n1, n2), oversampling = shape, number("oversampling", oversampling, jnp.result_type(float), low=0)
        fraction = oversampling * (rank * (n1 + n2 - rank) / (n1 * n2))
    check_range("fraction of entries observed", fraction, low=0, high=1)
    return fraction


def sampled_entries(
    key: jax.Array,
    truth: Factors,
    num_entries: int,
    *,
    sampling: str = "uniform",
    noise: float = 0.0,
    min_per_line: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct random entries of a large planted matrix, on the host: `rows, cols, values` for `SampledEntries.build`.

    Args:
        key: random key.
        truth: the matrix.
        num_entries: how many entries; at most half of all.
        sampling: `"uniform"`, or `"skewed"` (row and column popularity like `(i+1)^-1/2`).
        noise: standard deviation of added Gaussian noise, in units of the root mean square of the values.
        min_per_line: draw again until every row and every column has this many entries: with fewer than the rank a
            line is not determined. Up to a thousand draws.

    Returns:
        `rows` and `cols`, int32, and `values`, in random order.
    """
    check_key(key)
    if not isinstance(truth, Factors):
        raise ValueError(f"truth must be lrjax.Factors; got {type(truth).__name__}")
    n1, n2 = truth.shape
    count = check_count("num_entries", num_entries)
    min_per_line = check_count("min_per_line", min_per_line, minimum=0)
    check_choice("sampling", sampling, SAMPLINGS)
    noise = host_number("noise", noise, low=0)
    if count > n1 * n2 // 2:
        raise ValueError(f"num_entries must be at most half of the {n1 * n2} entries; got {count}")
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))).tolist())

    def draw(n: int, size: int) -> np.ndarray:
        if sampling == "uniform":
            return rng.integers(0, n, size)
        # Inverse of the distribution function of a density like x^-1/2.
        return np.minimum((n * rng.random(size) ** 2).astype(np.int64), n - 1)

    def draw_codes() -> np.ndarray:
        codes = np.empty(0, np.int64)
        while len(codes) < count:
            more = draw(n1, count) * n2 + draw(n2, count)
            codes = np.sort(np.concatenate([codes, more]))
            codes = codes[np.concatenate([[True], codes[1:] != codes[:-1]])]
        return rng.permutation(codes)[:count]

    def fewest(codes: np.ndarray) -> int:
        per_row, per_col = np.bincount(codes // n2, minlength=n1), np.bincount(codes % n2, minlength=n2)
        return min(per_row.min(), per_col.min())

    codes, tries = draw_codes(), 1
    while min_per_line and fewest(codes) < min_per_line:
        if (tries := tries + 1) > 1000:
            raise ValueError(f"min_per_line={min_per_line} was not met in 1000 draws of {count} entries; draw more")
        codes = draw_codes()
    rows, cols = (codes // n2).astype(np.int32), (codes % n2).astype(np.int32)
    values = np.concatenate(
        [np.asarray(truth.entries(rows[i : i + 2**20], cols[i : i + 2**20])) for i in range(0, count, 2**20)]
    )
    if noise:
        size = noise * float(_root_mean_square(jnp.asarray(values)))
        values = values + np.asarray(size * rng.standard_normal(count), values.dtype)
    return rows, cols, values


def large_completion(
    key: jax.Array,
    *,
    shape: tuple[int, int],
    rank: int,
    oversampling: float,
    condition_number: float = 1.0,
    sampling: str = "uniform",
    noise: float = 0.0,
    dtype: Any = None,
) -> tuple[Problem, Factors]:
    """Entries of a large planted matrix on `SampledEntries`; built on the host, not traceable."""
    check_key(key)
    n1, n2 = check_shape(shape)
    key_truth, key_entries = jax.random.split(key)
    truth = low_rank(key_truth, shape, rank, condition_number=condition_number, dtype=dtype)
    count = round(host_number("oversampling", oversampling, low=0, open_low=True) * rank * (n1 + n2 - rank))
    if not 1 <= count <= n1 * n2 // 2:
        raise ValueError(
            f"oversampling must ask for 1 to {n1 * n2 // 2} entries, half of all; {oversampling} is {count:.3g}"
        )
    rows, cols, values = sampled_entries(key_entries, truth, count, sampling=sampling, noise=noise)
    operator, y = SampledEntries.build(rows, cols, values, shape)
    return Problem(operator, y), truth


def gain_calibration(
    key: jax.Array,
    *,
    shape: tuple[int, int],
    num_blocks: int,
    model: str = "repeated",
    radius: float | jax.Array = 0.5,
    random_phase: bool = False,
    noise: float | jax.Array = 0.0,
    dtype: Any = None,
) -> tuple[Problem, Factors]:
    """Standard Gaussian measurements of Gaussian inputs through unknown gains; see `operators.GainMeasurements`.

    Args:
        key: random key.
        shape: `(m, n)` of one matrix.
        num_blocks: `p`.
        model: `"repeated"`, `"diverse"` or `"snapshots"`.
        radius: gains are uniform in `[1 - radius, 1 + radius]`, then shifted and, where they left that interval,
            shrunk towards one so that their mean is one.
        random_phase: multiply them by independent phases; needs a complex `dtype`.
        noise: standard deviation of the noise, in units of the root mean square of the measurements.
        dtype: floating or complex; default JAX's current default float.

    Returns:
        The problem and the truth, gains in `left`, inputs of unit norm (each of them) one after the other in `right`.
        Complex problems are for `lr.calibrate`; `lr.solve` refuses them.
    """
    check_key(key)
    m, n = check_shape(shape)
    dtype = float_dtype(dtype, complex_too=True)
    real = jnp.finfo(dtype).dtype
    radius, noise = number("radius", radius, real, low=0, high=1), number("noise", noise, real, low=0)
    if check_flag("random_phase", random_phase) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"random_phase=True needs a complex dtype; got {dtype}")
    key_operator, key_gains, key_phases, key_inputs, key_noise = jax.random.split(key, 5)
    operator = GainMeasurements.gaussian(key_operator, shape, num_blocks, model=model, dtype=dtype)
    offset = jax.random.uniform(key_gains, (m,), real, -1, 1)
    offset = offset - jnp.mean(offset)
    gains = 1 + radius * offset / jnp.maximum(1, jnp.max(jnp.abs(offset)))
    gains = gains.astype(dtype)
    if random_phase:
        gains = gains * jnp.exp(2j * jnp.pi * jax.random.uniform(key_phases, (m,), real)).astype(dtype)
    inputs = jax.random.normal(key_inputs, (operator.shape[1] // n, n), dtype)
    inputs = inputs / jnp.linalg.norm(inputs, axis=1, keepdims=True).astype(dtype)
    truth = Factors(gains[:, None], inputs.reshape(-1, 1))
    clean = operator.forward(truth.left, truth.right)
    size = (noise * _root_mean_square(clean)).astype(dtype)
    return Problem(operator, clean + size * jax.random.normal(key_noise, clean.shape, dtype)), truth
