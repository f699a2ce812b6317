"""How much noise a private release needs, and the baseline that adds it to the matrix itself."""

import math

import jax
import numpy as np
from jax.core import Tracer

from lrjax.core.checks import check_choice, check_count, check_finite, check_key, host_number, real_array
from lrjax.private.accounting import check_budget, gaussian_noise
from lrjax.private.sketch import LowRankSketch, gaussian_like
from lrjax.problems.factors import Factors
from lrjax.sketching import low_rank

NEIGHBOURS = ("oblivious", "any")


def noise_deviations(
    sketch: LowRankSketch,
    *,
    epsilon: float,
    delta: float,
    change: float = 1.0,
    neighbours: str = "oblivious",
    num_releases: int = 1,
) -> tuple[float, float, float]:
    """Deviations of the noise that makes the three sketches together `(epsilon, delta)` private.

    Neighbouring matrices differ by any `E` with `||E||_F <= change`; in a stream with several releases, by such a
    change of a single update. The three sketches share the budget alike, each with `mu / sqrt(3)`. With several
    releases, by `TreeRelease`, an update takes part in `floor(log2(num_releases)) + 1` noisy sums, and the noise grows
    by the root of that.

    Neighbours:

    - "oblivious": neither the data nor what they are compared with depends on the random maps. The sketch of a fixed
      `E` is longer than `E` by more than a factor, found from Chernoff's bound for chi-squared, with a small
      probability only; half of `delta` pays for it.
    - "any": the spectral norms of the maps bound the sensitivity whatever the data. Several times the noise.

    Args:
        sketch: with the maps in use; its contents do not matter. Not traced: runs on the host.
        epsilon: positive.
        delta: in `(0, 1)`.
        change: positive.
        neighbours: as above.
        num_releases: `T`, releases over the whole stream.

    Raises:
        ValueError: a number out of range, an unknown name, or a traced sketch.

    Examples:
        >>> import jax, lrjax as lr
        >>> sketch = lr.private.LowRankSketch.create(jax.random.key(0), (30, 20), size=8)
        >>> one = lr.private.noise_deviations(sketch, epsilon=1.0, delta=1e-5)
        >>> safe = lr.private.noise_deviations(sketch, epsilon=1.0, delta=1e-5, neighbours="any")
        >>> [b > a for a, b in zip(one, safe)]
        [True, True, True]
    """
    epsilon, delta = check_budget(epsilon, delta)
    change = host_number("change", change, low=0, open_low=True)
    check_choice("neighbours", neighbours, NEIGHBOURS)
    levels = check_count("num_releases", num_releases).bit_length()
    if isinstance(sketch.core, Tracer):
        raise ValueError("sketch is traced; noise_deviations runs on the host: call it outside of jit")
    if neighbours == "any":
        norm = lambda a: float(np.linalg.norm(np.asarray(a, float), 2))
        lengths = (norm(sketch.column_map), norm(sketch.row_map), norm(sketch.core_left) * norm(sketch.core_right))
        rest = delta
    else:
        # Four maps, each too long with probability delta / 8.
        size, wide = sketch.columns.shape[-1], sketch.core.shape[-1]
        thin, thick = math.sqrt(_stretch(size, delta / 8)), _stretch(wide, delta / 8)
        lengths, rest = (thin, thin, thick), delta / 2
    unit = gaussian_noise(epsilon, rest) * math.sqrt(3 * levels)
    return unit * change * lengths[0], unit * change * lengths[1], unit * change * lengths[2]


def _stretch(count: int, probability: float) -> float:
    """`1 + a` with `P(||E P||_F^2 > (1 + a) ||E||_F^2) <= probability` for a Gaussian `P` of `count` columns.

    `||E P||^2` is a mean of chi-squared variables over `count`, weighted by the squared singular values of `E`; the
    exponential is convex, so its moments are at most those of a single one, and Chernoff's bound is too.
    """
    bound = 2 * math.log(1 / probability) / count
    low, high = 0.0, 1.0
    while high - math.log1p(high) < bound:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle - math.log1p(middle) < bound else (low, middle)
    return 1 + high


def perturbed_low_rank(
    x: jax.Array, rank: int, key: jax.Array, *, epsilon: float, delta: float, change: float = 1.0
) -> Factors:
    """The best rank-`rank` approximation of `x` plus Gaussian noise: the baseline, `(epsilon, delta)` private.

    Needs the whole matrix in one trusted place, and memory for it; then it is the more accurate one by far. Neighbours
    differ by any `E` with `||E||_F <= change`, and there are no random maps to pay for.

    Args:
        x: `(n1, n2)`.
        rank: at most `min(n1, n2)`.
        key: random key of the noise, secret.
        epsilon: positive.
        delta: in `(0, 1)`.
        change: positive.

    Raises:
        ValueError: arguments out of range.

    Examples:
        >>> import jax, jax.numpy as jnp, lrjax as lr
        >>> x = lr.private.perturbed_low_rank(1e4 * jnp.ones((9, 7)), 1, jax.random.key(0), epsilon=1.0, delta=1e-5)
        >>> bool(abs(x.dense() / 1e4 - 1).max() < 0.01)
        True
    """
    check_key(key)
    x = real_array("x", x)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must have shape (n1, n2), neither zero; got {x.shape}")
    check_finite("x", x)
    change = host_number("change", change, low=0, open_low=True)
    deviation = gaussian_noise(epsilon, delta, sensitivity=change)
    return low_rank(x + gaussian_like(key, deviation, x), rank)
