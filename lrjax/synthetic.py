"""Planted problems by key: truths of chosen rank, conditioning and coherence; noise, corruption and sampling.

Everything is traceable: vmap a builder over keys, noise, corruption or condition number.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrjax import losses
from lrjax.core.checks import (
    as_array,
    check_choice,
    check_count,
    check_flag,
    check_key,
    check_range,
    check_real,
    check_shape,
    float_dtype,
    host_number,
    number,
    real_array,
)
from lrjax.core.pytree import replace
from lrjax.operators import SampledEntries
from lrjax.operators.base import check_operator
from lrjax.operators.gains import MODELS
from lrjax.problems import planted
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem

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
    sizes = _sizes(shape, rank, symmetric)
    return planted.low_rank(key, *_numbers(_factored_dtype(dtype), condition_number, coherence), **sizes)


def _sizes(shape: Any, rank: Any, symmetric: Any) -> dict[str, Any]:
    """What is static of a planted matrix."""
    (n1, n2), rank, symmetric = check_shape(shape), check_count("rank", rank), check_flag("symmetric", symmetric)
    if rank > min(n1, n2):
        raise ValueError(f"rank must be at most min(shape) = {min(n1, n2)}; got {rank}")
    if symmetric and n1 != n2:
        raise ValueError(f"symmetric=True needs a square shape; got {(n1, n2)}")
    return {"shape": (n1, n2), "rank": rank, "symmetric": symmetric}


def _numbers(dtype: Any, condition_number: Any, coherence: Any = 0.0) -> tuple[jax.Array, jax.Array]:
    """What is traced of it."""
    check_range("coherence", coherence, low=0, high=1 - 1e-12)
    return number("condition_number", condition_number, dtype, low=1), number("coherence", coherence, dtype)


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
    if corruption is None:
        raise ValueError("corruption must be a real number; got None")
    return planted.corrupt(key, y, **_spoiling(y.dtype, noise, corruption, corruption_scale), kind=kind)


def _spoiling(dtype: Any, noise: Any, corruption: Any, scale: Any) -> dict[str, Any]:
    """The numbers of `corrupt`; corruption may be `None`."""
    return {
        "noise": number("noise", noise, dtype, low=0),
        "corruption": None if corruption is None else number("corruption", corruption, dtype, low=0, high=1),
        "corruption_scale": number("corruption_scale", scale, dtype, low=0),
    }


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
    check_key(key)
    check_choice("kind", kind, CORRUPTIONS)
    y = planted.forward(operator, truth)
    check_real("y", y)
    y, _ = planted.corrupt(key, y, **_spoiling(y.dtype, noise, corruption, corruption_scale), kind=kind)
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
    check_choice("kind", kind, CORRUPTIONS)
    dtype = _factored_dtype(dtype)
    problem, truth = planted.matrix_sensing(
        key,
        _numbers(dtype, condition_number),
        _spoiling(dtype, noise, corruption, corruption_scale),
        **_sizes(shape, rank, symmetric),
        kind=kind,
        num_measurements=check_count("num_measurements", num_measurements),
    )
    return replace(problem, loss=_loss_for(loss, corruption)), truth


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
    check_choice("kind", kind, CORRUPTIONS)
    check_choice("sampling", sampling, SAMPLINGS)
    sizes, dtype = _sizes(shape, rank, symmetric), _factored_dtype(dtype)
    observed = _sampling_fraction(fraction, oversampling, sizes["shape"], sizes["rank"])
    problem, truth = planted.matrix_completion(
        key,
        _numbers(dtype, condition_number, coherence),
        _spoiling(dtype, noise, corruption, corruption_scale),
        number("fraction of entries observed", observed, dtype),
        **sizes,
        kind=kind,
        sampling=sampling,
    )
    return replace(problem, loss=_loss_for(loss, corruption)), truth


def _sampling_fraction(fraction: Any, oversampling: Any, shape: tuple[int, int], rank: int) -> Any:
    if (fraction is None) == (oversampling is None):
        raise ValueError(f"give fraction or oversampling, one of them; got {fraction!r} and {oversampling!r}")
    if fraction is None:
        (n1, n2), oversampling = shape, number("oversampling", oversampling, jnp.result_type(float), low=0)
        known = oversampling if isinstance(oversampling, Tracer) else float(oversampling)
        fraction = known * (rank * (n1 + n2 - rank) / (n1 * n2))
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
    return _sampled(planted.seed(key), truth, count, sampling, noise, min_per_line)


def _sampled(
    seed: jax.Array, truth: Factors, count: int, sampling: str, noise: float, min_per_line: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (n1, n2), rng = truth.shape, np.random.default_rng(np.asarray(seed).tolist())

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
    # The last part overlaps the one before it: parts of one size share one program.
    size = min(count, 2**20)
    values = np.empty(count, jnp.result_type(truth.left, truth.right))
    for start in range(0, count, size):
        part = slice(min(start, count - size), start + size)
        values[part] = truth.entries(rows[part], cols[part])
    if noise:
        size = noise * float(planted.root_mean_square(as_array("values", values)))
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
    check_choice("sampling", sampling, SAMPLINGS)
    noise = host_number("noise", noise, low=0)
    sizes = _sizes(shape, rank, False)
    (n1, n2), rank = sizes["shape"], sizes["rank"]
    count = round(host_number("oversampling", oversampling, low=0, open_low=True) * rank * (n1 + n2 - rank))
    if not 1 <= count <= n1 * n2 // 2:
        raise ValueError(
            f"oversampling must ask for 1 to {n1 * n2 // 2} entries, half of all; {oversampling} is {count:.3g}"
        )
    numbers = _numbers(_factored_dtype(dtype), condition_number)
    truth, seed = planted.large_completion(key, numbers, shape=(n1, n2), rank=rank)
    operator, y = SampledEntries.build(*_sampled(seed, truth, count, sampling, noise), (n1, n2))
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
    dtype = float_dtype(dtype, complex_too=True)
    real = jnp.finfo(dtype).dtype
    radius, noise = number("radius", radius, real, low=0, high=1), number("noise", noise, real, low=0)
    check_choice("model", model, MODELS)
    if (random_phase := check_flag("random_phase", random_phase)) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"random_phase=True needs a complex dtype; got {dtype}")
    return planted.gain_calibration(
        key,
        radius,
        noise,
        shape=check_shape(shape),
        num_blocks=check_count("num_blocks", num_blocks),
        model=model,
        random_phase=random_phase,
        dtype=dtype,
    )
