"""Blind gain calibration by projected gradient: where it succeeds, how fast, and what noise does to it.

Standard Gaussian matrices, one input of unit norm, gains uniform about one with mean one and within `radius` of it.
"""

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from papers import common

TITLE = (
    "Cambareri and Jacques, Through the Haze: a Non-Convex Approach to Blind Gain Calibration for Linear Random "
    "Sensing Models, arXiv 1610.09028"
)
INPUTS = 32
SENSORS, BLOCKS, RADII = (8, 16, 32, 64), (1, 2, 3, 4, 6, 8), (0.1, 0.5, 0.99)
METHODS = {
    "descent": "projected gradient",
    "calibrate": "linear least squares in the inverse gains",
    "ignore": "least squares with all gains one",
}
STEPS, LEVEL = 10_000, 10 ** (-70 / 20)
RATE_SIZE, RATE_RADII, RATE_STEPS = ((64, 64), 8), (0.01, 0.5, 0.99), 250
# Iterations to 1e-8 of an independent NumPy prototype.
PROTOTYPE_STEPS = {0.01: 85, 0.5: 92, 0.99: 112}
NOISES = (1e-1, 1e-2, 1e-3)


def errors_of(gains, inputs, truth: lr.Factors) -> dict:
    return {
        "gains": lr.metrics.scaled_error(gains, truth.left[:, 0]),
        "inputs": lr.metrics.scaled_error(inputs, truth.right[:, 0]),
    }


def phase(trials: int) -> np.ndarray:
    """Booleans `(methods, sensors, blocks, radii, trials)`: both errors below -70 dB."""

    def trial(key, method, sensors, blocks, radius):
        most = BLOCKS[-1]
        problem, truth = lr.synthetic.gain_calibration(
            key, shape=(sensors, INPUTS), num_blocks=most, radius=radius, dtype=jnp.float64
        )
        matrices = problem.operator.matrices * (jnp.arange(most) < blocks)[:, None, None]
        operator = lr.operators.GainMeasurements(matrices=matrices, num_blocks=most)
        y = operator.forward(truth.left, truth.right)
        if method == "ignore":
            return errors_of(jnp.ones(sensors), jnp.linalg.lstsq(matrices.reshape(-1, INPUTS), y)[0], truth)
        if method == "calibrate":
            found = lr.calibrate(operator, y)
            return errors_of(found.gains, found.inputs, truth)
        solver = lr.BlindGainDescent(radius=radius, tolerance=1e-7)
        factors = lr.solve(lr.Problem(operator, y), solver, key, num_steps=STEPS, record_every=STEPS).factors
        return errors_of(factors.left[:, 0], factors.right[:, 0], truth)

    table = lr.sweep(
        trial,
        jax.random.key(0),
        grid={"method": tuple(METHODS), "sensors": SENSORS, "blocks": BLOCKS, "radius": RADII},
        num_trials=trials,
        static=("method", "sensors"),
        paired=True,
        batch_size=1,
        progress=False,
    )
    worst = np.maximum(np.asarray(table["gains"].values), np.asarray(table["inputs"].values))
    return np.nan_to_num(worst, nan=np.inf) < LEVEL


def rates(trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Relative errors of `g x^T` by step, `(radii, trials, steps)`, and errors of the first input."""

    def trial(key, radius):
        shape, blocks = RATE_SIZE
        problem, truth = lr.synthetic.gain_calibration(
            key, shape=shape, num_blocks=blocks, radius=radius, dtype=jnp.float64
        )
        solver = lr.BlindGainDescent(radius=radius)
        start = solver.init(problem, key).factors.right
        trace = lr.solve(problem, solver, key, num_steps=RATE_STEPS, truth=truth).trace
        return {"error": trace["relative_error"], "start": jnp.linalg.norm(start - truth.right)}

    table = lr.sweep(
        trial,
        jax.random.key(1),
        grid={"radius": RATE_RADII},
        num_trials=trials,
        progress=False,
    )
    return np.asarray(table["error"].values), np.asarray(table["start"].values)


def noisy(trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Relative errors of inputs and gains, `(noises, trials)`."""

    def trial(key, noise):
        shape, blocks = RATE_SIZE
        problem, truth = lr.synthetic.gain_calibration(
            key, shape=shape, num_blocks=blocks, noise=noise, dtype=jnp.float64
        )
        factors = lr.solve(problem, lr.BlindGainDescent(radius=0.5), key, num_steps=200, record_every=200).factors
        relative = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
        return {"inputs": relative(factors.right, truth.right), "gains": relative(factors.left, truth.left)}

    table = lr.sweep(trial, jax.random.key(2), grid={"noise": NOISES}, num_trials=trials, progress=False)
    return np.asarray(table["inputs"].values), np.asarray(table["gains"].values)


def run(full: bool) -> tuple[list[dict], dict]:
    trials = 10 if full else 3
    success = phase(trials)
    error, start = rates(trials)
    inputs, gains = noisy(trials)
    claims = judge_phase(success) + judge_rates(error, start) + judge_noise(inputs, gains)
    claims += [
        common.not_tested("theorem", "the constants of the convergence theorem", "not ours to quote"),
        common.not_tested("image", "an image with known subspaces", "one without is examples/plot_calibration.py"),
    ]
    data = {
        "methods": list(METHODS),
        "sensors": SENSORS,
        "blocks": BLOCKS,
        "radii": RADII,
        "trials": trials,
        "success": success.mean(axis=-1),
        "rate_radii": RATE_RADII,
        "error": np.median(error, axis=1),
        "noises": NOISES,
        "inputs": np.median(inputs, axis=-1),
        "gains": np.median(gains, axis=-1),
    }
    return claims, data


def judge_phase(success: np.ndarray) -> list[dict]:
    ratio = np.array([[m * p / (m + INPUTS) for p in BLOCKS] for m in SENSORS])
    descent, linear, ignorant = success
    share = lambda hits: {"values": hits.mean(), "note": f"{int(hits.sum())} of {hits.size} draws"}
    text = "share of draws with both errors below -70 dB, "
    return [
        common.check("below", text + "no more measurements than unknowns, descent", predicted=0.0, high=0.12,
                     **share(descent[ratio <= 1])),
        common.check("above", f"{text}1.5 times as many and more, descent, radius 0.5", predicted=1.0, low=1.0,
                     **share(descent[ratio >= 1.5, RADII.index(0.5)])),
        common.check("above all", f"{text}1.5 times as many and more, descent, all radii", predicted=1.0, low=1.0,
                     **share(descent[ratio >= 1.5])),
        common.check("linear", text + "as many measurements as unknowns and more, linear least squares",
                     predicted=1.0, low=1.0, **share(linear[ratio >= 1])),
        common.check("ignore", text + "everywhere, gains ignored: the baseline that must fail", predicted=0.0,
                     high=0.0, **share(ignorant)),
    ]  # fmt: skip


def judge_rates(error: np.ndarray, start: np.ndarray) -> list[dict]:
    (m, n), p = RATE_SIZE
    claims = []
    for radius, curves, first in zip(RATE_RADII, error, start, strict=True):
        below = curves < 1e-8
        steps = np.where(below.any(axis=1), below.argmax(axis=1), np.nan)
        # The square: the error measure of the paper is quadratic.
        rate = [(curve[50] / curve[10]) ** (2 / 40) for curve in curves]
        claims += [
            common.check(f"steps radius={radius}", "steps to a relative error of 1e-8, m = n = 64, p = 8",
                         predicted=PROTOTYPE_STEPS[radius], values=steps, high=200),
            common.check(f"rate radius={radius}", "factor on the squared error for each step", predicted=0.74,
                         values=rate, low=0.65, high=0.83, note="0.72 to 0.76 in a prototype"),
            common.check(f"start radius={radius}", "error of the start over sqrt(n / (m p))", predicted=1.0,
                         values=first / np.sqrt(n / (m * p)), low=0.8, high=1.15,
                         note="0.30 to 0.38 against 0.354 in a prototype of the published start"),
        ]  # fmt: skip
    return claims


def judge_noise(inputs: np.ndarray, gains: np.ndarray) -> list[dict]:
    (m, n), p = RATE_SIZE
    claims = []
    for noise, error, other in zip(NOISES, inputs, gains, strict=True):
        claims += [
            common.check(f"noise {noise:g}", "error of the input over noise times sqrt(n / (m p))", predicted=1.2,
                         values=error / (noise * np.sqrt(n / (m * p))), low=0.9, high=1.5),
            common.check(f"noise gains {noise:g}", "error of the gains over that of the input", predicted=1.0,
                         values=other / error, low=0.7, high=1.4),
        ]  # fmt: skip
    claims.append(
        common.check("noise slope", "slope of the log of the error in the log of the noise", predicted=1.0,
                     values=common.slope(np.log(NOISES), np.log(np.median(inputs, axis=-1))), low=0.97, high=1.03)
    )  # fmt: skip
    return claims


def draw(data: dict) -> dict:
    import matplotlib.pyplot as plt

    figures = {}
    sensors, blocks = np.array(data["sensors"]), np.array(data["blocks"])
    ratio = sensors[:, None] * blocks / (sensors[:, None] + INPUTS)
    success = np.array(data["success"])
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
    for j, (ax, radius) in enumerate(zip(axes, data["radii"], strict=True)):
        image = ax.imshow(success[0, :, :, j], origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (row, col), value in np.ndenumerate(ratio):
            dark = success[0, row, col, j] < 0.6
            ax.text(col, row, f"{value:.2g}", ha="center", va="center", fontsize=8, color="w" if dark else "k")
        ax.set(title=f"gains within {radius:g} of one", xlabel="matrices p")
        ax.set_xticks(range(len(blocks)), blocks)
        ax.set_yticks(range(len(sensors)), sensors)
    axes[0].set_ylabel("sensors m")
    figure.colorbar(image, ax=axes, label="share of draws below -70 dB")
    figures["phase"] = figure
    figure, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
    order = np.argsort(ratio.ravel())
    draw = lambda shares, *args, **kwargs: ax.plot(ratio.ravel()[order], shares.ravel()[order], *args, lw=1.2, **kwargs)
    for j, radius in enumerate(data["radii"]):
        draw(success[0, :, :, j], "o-", ms=4, color=f"C{j}", label=f"descent, gains within {radius:g} of one")
    for j, method in enumerate(data["methods"][1:], start=1):
        draw(success[j].mean(axis=-1), "s--", ms=3, color=f"C{j + 2}", label=METHODS[method])
    for place in (1, 1.5):
        ax.axvline(place, color="k", ls=":", lw=1)
    ax.set(xscale="log", xlabel="measurements over unknowns, m p / (m + n)", ylabel="share of draws below -70 dB")
    ax.set_xticks([0.2, 0.5, 1, 1.5, 3, 5], ["0.2", "0.5", "1", "1.5", "3", "5"])
    ax.minorticks_off()
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    figures["ratio"] = figure
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for j, (radius, curve) in enumerate(zip(data["rate_radii"], data["error"], strict=True)):
        left.semilogy(curve, color=f"C{j}", lw=1.2, label=f"radius {radius:g}")
    left.set(xlabel="step", ylabel="relative error")
    left.legend(fontsize=8)
    (m, n), p = RATE_SIZE
    noises = np.array(data["noises"])
    right.loglog(noises, data["inputs"], "o-", ms=4, lw=1.2, label="input")
    right.loglog(noises, data["gains"], "s-", ms=4, lw=1.2, label="gains")
    right.loglog(noises, 1.2 * noises * np.sqrt(n / (m * p)), "k:", lw=1.2, label="1.2 noise sqrt(n / (m p))")
    right.set(xlabel="noise", ylabel="relative error")
    right.legend(fontsize=8)
    figures["rate_and_noise"] = figure
    return figures
