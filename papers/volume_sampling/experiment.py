"""Weighted least squares in a polynomial space from random points: independent, volume-rescaled and repeated DPP draws.

Legendre polynomials on a grid of 4,000 midpoints of [-1, 1], m = 5 and 10 functions, samples of m to 5 m points.
"""

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from papers import common

TITLE = (
    "Nouy and Michel, Weighted least-squares approximation with determinantal point processes and generalized volume "
    "sampling, arXiv 2312.14057"
)
POINTS, SIZES, RATIOS = 4000, (5, 10), (1, 2, 3, 5)
METHODS = {"independent": "independent, by leverage", "volume": "volume-rescaled", "repeated": "repeated DPP"}
SHOWN = 10


def basis(size: int) -> tuple[jax.Array, jax.Array]:
    """Orthonormal columns (sum over the grid), and the target in the same scaling."""
    x = (np.arange(POINTS) + 0.5) / POINTS * 2 - 1
    phi = np.linalg.qr(np.polynomial.legendre.legvander(x, size - 1))[0]
    target = np.exp(-x) / (1 + 8 * x**2) + 0.3 * np.sign(x)
    return jnp.asarray(phi), jnp.asarray(target / np.sqrt(POINTS))


def trial(key, size, method, ratio):
    """Smallest eigenvalue of the Gram matrix, trace of its inverse over m, coefficients of the fit."""
    phi, target = basis(size)
    if method == "independent":
        sample = lr.sketching.RowSample.create(key, jnp.sum(phi**2, axis=1), size * ratio)
    elif method == "volume":
        sample = lr.sketching.volume_rescaled_sample(key, phi, size * ratio)
    else:
        sample = lr.sketching.repeated_dpp(key, phi, ratio)
    rows = sample.apply(phi)
    values, vectors = jnp.linalg.eigh(rows.T @ rows)
    projected = vectors.T @ (rows.T @ sample.apply(target))
    kept = jnp.maximum(values, jnp.finfo(values.dtype).eps * values[-1])
    return {
        "least": values[0],
        "trace": jnp.sum(1 / kept) / size,
        "fit": jnp.pad(vectors @ (projected / kept), (0, max(SIZES) - size)),
    }


def run(full: bool) -> tuple[list[dict], dict]:
    trials = 4000 if full else 400
    grid = {"size": SIZES, "method": list(METHODS), "ratio": RATIOS}
    table = lr.sweep(
        trial, jax.random.key(0), grid=grid, num_trials=trials, static=("size", "method", "ratio"), progress=False
    )
    least, trace, fits = (np.asarray(table[name].values) for name in ("least", "trace", "fit"))
    claims, curves = inclusion(20_000 if full else 5000), {}
    for i, size in enumerate(SIZES):
        phi, target = map(np.asarray, basis(size))
        exact = phi.T @ target
        best = np.linalg.norm(target - phi @ exact)
        errors = np.sqrt(1 + np.sum((fits[i, ..., :size] - exact) ** 2, axis=-1) / best**2)
        bias = np.linalg.norm(fits[i, ..., :size].mean(axis=2) - exact, axis=-1) / best
        noise = np.sqrt(np.sum(fits[i, ..., :size].var(axis=2), axis=-1) / trials) / best
        claims += volume_rows(size, trace[i, 1], bias[1], noise[1], trials)
        claims += comparison_rows(size, errors, least[i])
        curves[str(size)] = {
            "least": np.quantile(least[i], 0.05, axis=-1),
            "median": np.median(errors, axis=-1),
            "high": np.quantile(errors, 0.95, axis=-1),
        }
    claims.append(
        common.not_tested("norm", "an almost sure bound in a stronger norm", "needs a function space with such a norm")
    )
    return claims, {"trials": trials, "curves": curves}


def inclusion(trials: int) -> list[dict]:
    """The determinantal process itself: a point is drawn as often as its leverage says, and never twice."""
    phi = jnp.linalg.qr(jax.random.normal(jax.random.key(3), (60, 6)))[0]
    found = lr.sweep(
        lambda key: {"points": lr.sketching.projection_dpp(key, phi)},
        jax.random.key(1),
        grid={},
        num_trials=trials,
        progress=False,
    )
    drawn = np.sort(np.asarray(found["points"].values), axis=-1)
    leverage = np.sum(np.asarray(phi) ** 2, axis=1)
    share = np.bincount(drawn.ravel(), minlength=60) / trials
    return [
        common.check(
            "inclusion",
            "a point is drawn with probability its leverage: largest distance over 60 points, in standard errors",
            predicted="below 4",
            values=np.max(np.abs(share - leverage) / np.sqrt(leverage * (1 - leverage) / trials)),
            high=4,
        ),
        common.check(
            "repeats",
            "no point comes twice",
            predicted=0,
            values=int(np.sum(drawn[:, 1:] == drawn[:, :-1])),
            low=0,
            high=0,
        ),
    ]


def volume_rows(size: int, trace: np.ndarray, bias: np.ndarray, noise: np.ndarray, trials: int) -> list[dict]:
    claims = []
    for j, ratio in enumerate(RATIOS):
        if ratio >= 3:
            law = size * ratio / (size * ratio - size + 1)
            claims.append(
                common.check(
                    f"trace m={size} n={ratio}m",
                    "volume-rescaled: E tr(G^-1) / m = n / (n - m + 1)",
                    predicted=law,
                    values=trace[j].mean(),
                    low=0.9 * law,
                    high=1.1 * law,
                    note=f"mean of {trials} draws",
                )
            )
        claims.append(
            common.check(
                f"bias m={size} n={ratio}m",
                "volume-rescaled: unbiased; distance of the mean fit to the projection over its standard error",
                predicted="about 1",
                values=bias[j] / noise[j],
                high=2,
                note=f"{trials} draws; the distance is {bias[j]:.2g} of the best error",
            )
        )
    return claims


def comparison_rows(size: int, errors: np.ndarray, least: np.ndarray) -> list[dict]:
    rms = np.sqrt(np.mean(errors**2, axis=-1))
    return [
        common.check(
            f"few points m={size}",
            "at n = 2 m, error over best (root mean square): independent draws over volume-rescaled ones",
            predicted="well above 1",
            values=rms[0, 1] / rms[1, 1],
            low=1.5,
            note=f"{rms[0, 1]:.3g}, {rms[1, 1]:.3g}; repeated DPP {rms[2, 1]:.3g}. The first has no finite mean",
        ),
        common.check(
            f"repeated m={size}",
            "at n = 3 m the repeated DPP has the smaller error: over that of volume-rescaled sampling",
            predicted="below 1",
            values=rms[2, 2] / rms[1, 2],
            high=1,
        ),
        common.check(
            f"stability m={size}",
            "smallest eigenvalue of the Gram matrix at n = 3 m, 5 % quantile: repeated DPP over independent",
            predicted="above 2",
            values=np.quantile(least[2, 2], 0.05) / np.quantile(least[0, 2], 0.05),
            low=2,
        ),
    ]


def draw(data: dict) -> dict:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    curves = {name: np.array(values) for name, values in data["curves"][str(SHOWN)].items()}
    for j, label in enumerate(METHODS.values()):
        left.plot(RATIOS, curves["least"][j], "o-", ms=4, lw=1.2, label=label)
        bars = [np.zeros(len(RATIOS)), curves["high"][j] - curves["median"][j]]
        at = np.array(RATIOS) + 0.06 * (j - 1)
        right.errorbar(at, curves["median"][j], yerr=bars, fmt="o-", ms=4, lw=1.2, elinewidth=0.8, capsize=2)
    left.set(ylabel=r"5 % quantile of $\lambda_{\min}(G)$")
    right.set(ylabel="error / best error, median to 95 %", yscale="log")
    for ax in (left, right):
        ax.set(xlabel="points per basis function")
        ax.set_xticks(RATIOS)
    left.legend(fontsize=8)
    figure.suptitle(f"Legendre polynomials, m = {SHOWN}", fontsize=10)
    return {"points": figure}
