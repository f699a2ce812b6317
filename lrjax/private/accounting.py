"""Exact accounting of Gaussian noise, in host arithmetic."""

import math
import sys
from typing import Any

from lrjax.core.checks import host_number


def gaussian_delta(epsilon: float, mu: float) -> float:
    """The least delta for which noise of deviation `sensitivity / mu` is `(epsilon, delta)` private; exact.

    `Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu)`. Several releases of the same data with
    `mu_1, mu_2, ...` are together one with `mu = sqrt(mu_1^2 + mu_2^2 + ...)`.

    Args:
        epsilon: at least zero.
        mu: positive.

    Raises:
        ValueError: a number out of range.

    Cost: host arithmetic. For `epsilon` above a few hundred the first term alone is returned, an upper bound.

    Examples:
        >>> import lrjax as lr
        >>> f"{lr.private.gaussian_delta(1.0, 1 / 3.731):.1e}"
        '1.0e-05'
    """
    epsilon = host_number("epsilon", epsilon, low=0)
    mu = host_number("mu", mu, low=0, open_low=True)
    first = _normal_cdf(mu / 2 - epsilon / mu)
    second = _normal_cdf(-mu / 2 - epsilon / mu)
    return first if epsilon > 500 else max(first - math.exp(epsilon) * second, 0.0)


def gaussian_noise(epsilon: float, delta: float, *, sensitivity: float = 1.0) -> float:
    """The least deviation of Gaussian noise that makes a release of this l2 sensitivity `(epsilon, delta)` private.

    By bisection on the exact condition of `gaussian_delta`, with what that may be off by for rounding on top: the
    noise is rounded up, never down.

    Args:
        epsilon: positive.
        delta: in `(0, 1)`; at least 1e-14, below which the difference of the two terms is rounding.
        sensitivity: how far the release can move in l2 norm between neighbours; positive.

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> import lrjax as lr
        >>> round(lr.private.gaussian_noise(1.0, 1e-5), 3)
        3.731
    """
    epsilon, delta = check_budget(epsilon, delta)
    sensitivity = host_number("sensitivity", sensitivity, low=0, open_low=True)
    # gaussian_delta grows with mu, from zero to one.
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high) < delta:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if _upper_delta(epsilon, middle) <= delta else (low, middle)
    if low == 0:
        raise ValueError(f"epsilon {epsilon} and delta {delta} cannot be met by any finite noise")
    return sensitivity / low


def _upper_delta(epsilon: float, mu: float) -> float:
    """`gaussian_delta` and its rounding: both terms are off by roundings of an argument `z`, `z^2` times as large."""
    wide = mu / 2 + epsilon / mu
    rounding = sys.float_info.epsilon * (2 + wide * wide) * _normal_cdf(mu / 2 - epsilon / mu)
    return gaussian_delta(epsilon, mu) + rounding


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def check_budget(epsilon: Any, delta: Any) -> tuple[float, float]:
    """Raises a `ValueError` for a budget that cannot be met, or not be accounted for in double precision."""
    return host_number("epsilon", epsilon, low=0, high=500, open_low=True), host_number(
        "delta", delta, low=1e-14, high=1 - 1e-14
    )
