"""Laws fitted to what solves and sweeps return, with intervals from the trials. NumPy only."""

from typing import Any, NamedTuple

import numpy as np

from lrjax.core.checks import check_choice, host_number, on_host

_RESAMPLES = 1000
_LEAST_STEPS = 5
# Successes and failures added at each level.
_PRIOR = 0.1
# Above, not every count is a float.
_MOST_TRIALS = 2**53


class RateFit(NamedTuple):
    """What `fit_rate` found.

    Attributes:
        kind: `"linear"`, error like `rate^t`, or `"sublinear"`, error like `t^-rate`.
        rate: median over trials.
        interval: 95 % bootstrap interval of that median; `None` for fewer than three trials.
        rates: `(trials,)`, NaN where the window was too short.
        windows: `(trials, 2)`, first and last step used.
        residual: root mean square misfit of the natural log of the error, median over trials.
    """

    kind: str
    rate: float
    interval: tuple[float, float] | None
    rates: np.ndarray
    windows: np.ndarray
    residual: float


def fit_rate(
    errors: Any, steps: Any = None, *, kind: str = "auto", start: float = 0.1, floor: float | None = None
) -> RateFit:
    """The rate of convergence of error curves, over a window that is chosen by rule.

    The window of a curve runs from the first step at which the error is below `start` times its first value to the
    last before it comes within a factor of ten of `floor`, which is the smallest finite error of the curve, or rounding
    level of the first value if that is more. This drops the last decade of a curve still falling, and the plateau of
    one that has stalled. Within it, a straight line is fitted to the log of the error by least squares, against `t`
    (linear) or `log t` (sublinear).

    Args:
        errors: `(trials, steps)`, or `(steps,)` for one trial; positive.
        steps: `(steps,)` the step of each column, such as `solution.trace["step"]`; default 0, 1, 2, ...
        kind: `"linear"`, `"sublinear"`, or `"auto"`: whichever leaves the smaller misfit on the median.
        start: share of the first error at which the window starts.
        floor: the error below which nothing counts; default by the rule above.

    Raises:
        ValueError: bad shapes, steps that fall, `start` outside of `(0, 1]`, or windows shorter than five steps in all
            trials.

    Examples:
        >>> import numpy as np, lrjax as lr
        >>> t = np.arange(200)
        >>> fit = lr.diagnostics.fit_rate(0.9**t + 1e-12)
        >>> fit.kind, round(fit.rate, 3)
        ('linear', 0.9)
        >>> slow = lr.diagnostics.fit_rate(1 / (1 + t), kind="sublinear", start=0.05, floor=0)
        >>> abs(slow.rate - 1) < 0.05
        True
    """
    check_choice("kind", kind, ("auto", "linear", "sublinear"))
    curves = np.atleast_2d(_real("errors", errors))
    steps = np.arange(curves.shape[-1]) if steps is None else _real("steps", steps)
    if curves.ndim != 2 or steps.shape != curves.shape[1:] or not steps.size:
        raise ValueError(f"errors has shape {np.shape(errors)} and steps {steps.shape}; expected (trials, T) and (T,)")
    if not (np.isfinite(steps).all() and (np.diff(steps) >= 0).all()):
        raise ValueError("steps must be finite and must not fall")
    start = host_number("start", start, low=0, high=1, open_low=True)
    floor = None if floor is None else host_number("floor", floor, low=0)
    kinds = ("linear", "sublinear") if kind == "auto" else (kind,)
    fits = [fit for fit in (_fit(curves, steps, which, start, floor) for which in kinds) if fit is not None]
    if not fits:
        raise ValueError(
            f"no curve has {_LEAST_STEPS} steps between {start:g} of its first error and ten times its floor; run "
            "longer, record more often, or set start and floor"
        )
    return min(fits, key=lambda fit: fit.residual)


def _real(name: str, values: Any) -> np.ndarray:
    array = on_host(name, values)
    if np.iscomplexobj(array):
        raise ValueError(f"{name} must be real; got dtype {array.dtype}")
    return array.astype(np.float64)


def _fit(curves: np.ndarray, steps: np.ndarray, kind: str, start: float, floor: float | None) -> RateFit | None:
    rates, windows, misfits = [], [], []
    for curve in curves:
        smallest = np.min(curve, initial=np.inf, where=np.isfinite(curve))
        least = max(smallest, 100 * np.finfo(np.float64).eps * curve[0]) if floor is None else floor
        begun = np.flatnonzero(curve <= start * curve[0])
        first = int(begun[0]) if begun.size else len(curve)
        ended = np.flatnonzero(curve[first:] <= 10 * least)
        last = first + int(ended[0]) if ended.size else len(curve)
        use = np.arange(first, last)
        use = use[(curve[use] > 0) & np.isfinite(curve[use]) & ((kind == "linear") | (steps[use] > 0))]
        use = use[np.diff(steps[use], prepend=-np.inf) > 0]  # the trace of a finished lane repeats its last step
        windows.append((steps[use[0]], steps[use[-1]]) if use.size else (-1, -1))
        if use.size < _LEAST_STEPS:
            rates.append(np.nan)
            continue
        x = steps[use] if kind == "linear" else np.log(steps[use])
        line = np.polyfit(x, np.log(curve[use]), 1)
        misfits.append(np.sqrt(np.mean((np.polyval(line, x) - np.log(curve[use])) ** 2)))
        rates.append(np.exp(line[0]) if kind == "linear" else -line[0])
    rates = np.array(rates)
    good = rates[np.isfinite(rates)]
    if not good.size:
        return None
    return RateFit(kind, float(np.median(good)), _interval(good), rates, np.array(windows), float(np.median(misfits)))


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    if values.size < 3:
        return None
    draws = np.random.default_rng(0).choice(values, (_RESAMPLES, values.size))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(low), float(high)


class TransitionFit(NamedTuple):
    """What `fit_transition` found.

    Attributes:
        midpoint: level at which half of the trials succeed; NaN if all levels are on one side of it.
        interval: 95 % interval of the midpoint, by a bootstrap of the trials.
        width: distance from 10 % to 90 % success.
    """

    midpoint: float
    interval: tuple[float, float]
    width: float


def fit_transition(levels: Any, successes: Any, num_trials: Any) -> TransitionFit:
    """Where success turns into failure along one axis: the 50 % point of a logistic curve.

    The curve is the one of greatest likelihood, with a tenth of a success and of a failure added at each level (a weak
    prior, which keeps the slope finite when no level is mixed). The interval redraws the successes of each level from
    a binomial distribution, at the rate seen with half a success and half a failure added.

    Args:
        levels: `(L,)`, at least two of them; take logs first if the axis is logarithmic.
        successes: `(L,)`, successes at each level.
        num_trials: `(L,)` or one number.

    Returns:
        `TransitionFit`; the midpoint is NaN if the curve does not cross one half within the levels.

    Raises:
        ValueError: shapes that do not match, levels that are all the same or not finite, or counts outside of
            `[0, num_trials]`.

    Examples:
        >>> import lrjax as lr
        >>> fit = lr.diagnostics.fit_transition([1, 2, 3, 4, 5], [0, 1, 10, 19, 20], 20)
        >>> round(fit.midpoint, 2)
        3.0
    """
    levels, successes, trials = _real("levels", levels), _real("successes", successes), _real("num_trials", num_trials)
    if levels.ndim != 1 or levels.size < 2 or successes.shape != levels.shape:
        raise ValueError(f"levels has shape {levels.shape} and successes {successes.shape}; expected (L,) alike, L > 1")
    if not np.isfinite(levels).all() or levels.min() == levels.max():
        raise ValueError(f"levels are {levels.tolist()}; expected finite numbers, at least two of them different")
    if trials.shape not in ((), levels.shape) or not ((trials >= 1) & (trials <= _MOST_TRIALS)).all():
        raise ValueError(f"num_trials is {trials.tolist()}; expected a count from 1 to 2^53, or one for each level")
    trials = np.broadcast_to(trials, levels.shape)
    if not ((successes >= 0) & (successes <= trials)).all():
        raise ValueError(f"successes are {successes.tolist()}; expected 0 to num_trials = {trials.tolist()}")
    midpoint, slope = _logistic(levels, successes, trials)
    rng, share = np.random.default_rng(0), (successes + 0.5) / (trials + 1)
    draws = rng.binomial(trials.astype(np.int64), share, (_RESAMPLES // 2, levels.size))
    middles = [_logistic(levels, draw.astype(np.float64), trials)[0] for draw in draws]
    low, high = np.quantile(np.clip(middles, levels.min(), levels.max()), (0.025, 0.975))
    inside = levels.min() <= midpoint <= levels.max()
    return TransitionFit(midpoint if inside else np.nan, (float(low), float(high)), float(2 * np.log(9) / abs(slope)))


def _logistic(levels: np.ndarray, successes: np.ndarray, trials: np.ndarray) -> tuple[float, float]:
    """Midpoint and slope of the logistic curve of greatest likelihood, by damped Newton steps."""
    centre, spread = levels.mean(), levels.std()
    x = np.stack([np.ones_like(levels), (levels - centre) / spread], axis=1)
    wins, total = successes + _PRIOR, trials + 2 * _PRIOR
    beta = np.zeros(2)
    likelihood = lambda beta: np.sum(wins * (x @ beta) - total * np.logaddexp(0, x @ beta))
    for _ in range(50):
        p = 1 / (1 + np.exp(-(x @ beta)))
        step = np.linalg.solve(x.T @ (x * (total * p * (1 - p))[:, None]) + 1e-9 * np.eye(2), x.T @ (wins - total * p))
        while likelihood(beta + step) < likelihood(beta) - 1e-12 and np.abs(step).max() > 1e-9:
            step = step / 2
        beta = beta + step
        if np.abs(step).max() < 1e-9:
            break
    slope = beta[1] if beta[1] != 0 else np.finfo(np.float64).tiny
    return float(centre - spread * beta[0] / slope), float(slope / spread)
