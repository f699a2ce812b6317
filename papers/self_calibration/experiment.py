"""Calibration by linear least squares: how many measurements, and what noise does to it.

Standard Gaussian matrices, inputs of unit norm, gains uniform in [0.5, 1.5] with mean one, and the same with random
phases. The error is the larger of those of inverse gains and inputs, each after its best scaling.
"""

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from papers import common

TITLE = "Ling and Strohmer, Self-Calibration and Bilinear Inverse Problems via Linear Least Squares, arXiv 1611.04196"
MODELS = ("repeated", "diverse", "snapshots")
WAYS = {"ones": "least squares, anchor of ones", "gaussian": "least squares, Gaussian anchor", "spectral": "spectral"}
SENSORS, BLOCKS = 32, (2, 3, 4, 5, 6)
OFFSETS = (-8, -4, -2, -1, 0, 1, 2, 4, 8)
EXACT = 1e-6
SNR = (0, 10, 20, 30, 40, 60, 80)
NOISE_SIZES = {"repeated": ((64, 32), 4), "diverse": ((64, 24), 8), "snapshots": ((64, 24), 8)}
# Medians in dB at these SNR of an independent NumPy prototype: real positive gains, anchor of ones.
PROTOTYPE = {
    "repeated": {10: -10.7, 20: -19.1, 30: -30.7, 40: -40.2, 60: -61.1, 80: -81.8},
    "diverse": {10: -9.8, 20: -19.6, 30: -29.5, 40: -40.0, 60: -60.0, 80: -80.0},
}
PROTOTYPE["snapshots"] = PROTOTYPE["diverse"]


def most_inputs(model: str, blocks):
    """The largest `n` for which measurements are not fewer than unknowns less one."""
    if model == "repeated":
        return SENSORS * (blocks - 1) + 1
    return (SENSORS * blocks - SENSORS + 1) // blocks


def solve(operator, y, way: str, key):
    if way == "spectral":
        return lr.calibrate(operator, y, method="spectral")
    return lr.calibrate(operator, y, anchor=way, key=key)


def error_of(found: lr.Calibration, truth: lr.Factors):
    gains = lr.metrics.scaled_error(found.inverse_gains, 1 / truth.left[:, 0])
    return jnp.maximum(gains, lr.metrics.scaled_error(found.inputs.ravel(), truth.right[:, 0]))


def phase(trials: int, blocks: tuple) -> np.ndarray:
    """Errors `(models, ways, blocks, offsets, trials)`; all sizes padded with zeros to the largest."""

    def trial(key, model, way, blocks, offset):
        most = BLOCKS[-1]
        largest = int(most_inputs(model, most)) + OFFSETS[-1]
        problem, truth = lr.synthetic.gain_calibration(
            key, shape=(SENSORS, largest), num_blocks=most, model=model, dtype=jnp.float64
        )
        columns = jnp.arange(largest) < most_inputs(model, blocks) + offset
        used = jnp.arange(most) < blocks
        matrices, inputs = problem.operator.matrices * columns, truth.right.reshape(-1, largest) * columns
        if model != "snapshots":
            matrices = matrices * used[:, None, None]
        if model != "repeated":
            inputs = inputs * used[:, None]
        operator = lr.operators.GainMeasurements(matrices=matrices, num_blocks=most, model=model)
        truth = lr.Factors(truth.left, inputs.reshape(-1, 1))
        y = operator.forward(truth.left, truth.right)
        return {"error": error_of(solve(operator, y, way, jax.random.fold_in(key, 1)), truth)}

    table = lr.sweep(
        trial,
        jax.random.key(0),
        grid={"model": MODELS, "way": tuple(WAYS), "blocks": blocks, "offset": OFFSETS},
        num_trials=trials,
        static=("model", "way"),
        paired=True,
        batch_size=1,
        progress=False,
    )
    return np.nan_to_num(np.asarray(table["error"].values), nan=np.inf)


def noise(trials: int) -> np.ndarray:
    """Errors `(models, ways, fields, SNR, trials)`, the fields being real positive gains and complex random phases."""

    def trial(key, model, way, field, snr):
        shape, blocks = NOISE_SIZES[model]
        problem, truth = lr.synthetic.gain_calibration(
            key,
            shape=shape,
            num_blocks=blocks,
            model=model,
            noise=10.0 ** (-snr / 20),
            random_phase=field == "complex",
            dtype=jnp.complex128 if field == "complex" else jnp.float64,
        )
        return {"error": error_of(solve(problem.operator, problem.y, way, jax.random.fold_in(key, 1)), truth)}

    table = lr.sweep(
        trial,
        jax.random.key(1),
        grid={"model": MODELS, "way": tuple(WAYS), "field": ("real", "complex"), "snr": np.array(SNR, float)},
        num_trials=trials,
        static=("model", "way", "field"),
        paired=True,
        batch_size=1,
        progress=False,
    )
    return np.asarray(table["error"].values)


def run(full: bool) -> tuple[list[dict], dict]:
    blocks, trials = (BLOCKS, 10) if full else (BLOCKS[:3], 3)
    errors = phase(trials, blocks)
    exact = errors < EXACT
    claims = [
        claim
        for i, model in enumerate(MODELS)
        for j, way in enumerate(WAYS)
        for claim in counts(model, way, exact[i, j])
    ]
    noisy_trials = 25 if full else 5
    decibels = 20 * np.log10(noise(noisy_trials))
    claims += judge_noise(decibels)
    claims += [
        common.not_tested(
            "bound", "the bound by the condition number of the system", "its constants are not ours to quote"
        ),
        common.not_tested("structured", "matrices of a Fourier transform with random signs", "not built yet"),
    ]
    data = {
        "models": MODELS,
        "ways": list(WAYS),
        "blocks": blocks,
        "offsets": OFFSETS,
        "trials": trials,
        "success": exact.mean(axis=-1),
        "snr": SNR,
        "noisy_trials": noisy_trials,
        "decibels": np.median(decibels, axis=-1),
        "low": np.quantile(decibels, 0.1, axis=-1),
        "high": np.quantile(decibels, 0.9, axis=-1),
    }
    return claims, data


def counts(model: str, way: str, exact: np.ndarray) -> list[dict]:
    at, above = exact[:, OFFSETS.index(0)], exact[:, OFFSETS.index(1)]
    text = "share of noiseless draws recovered to 1e-6, m = 32, all p, "
    return [
        common.check(
            f"at {model} {way}",
            f"{text}with just as many measurements as unknowns less one, {WAYS[way]}",
            predicted=1.0,
            values=at.mean(),
            low=1.0,
            note=f"{at.sum()} of {at.size}",
        ),
        common.check(
            f"beyond {model} {way}",
            f"{text}with one more number in each input, {WAYS[way]}",
            predicted=0.0,
            values=above.mean(),
            high=0.0,
            note=f"{above.sum()} of {above.size}",
        ),
    ]


def judge_noise(decibels: np.ndarray) -> list[dict]:
    claims, ways, at = [], list(WAYS), SNR.index
    for i, model in enumerate(MODELS):
        for j, way in enumerate(ways):
            slopes = (decibels[i, j, 0, at(80)] - decibels[i, j, 0, at(40)]) / 40
            claims.append(
                common.check(
                    f"slope {model} {way}",
                    f"error in dB for each dB of SNR, 40 to 80 dB, real positive gains, {WAYS[way]}",
                    predicted=-1.0,
                    values=slopes,
                    low=-1.075,
                    high=-0.925,
                    note="bounds: 3 dB over 40",
                )
            )
        for snr, predicted in PROTOTYPE[model].items():
            claims.append(
                common.check(
                    f"ones {model} {snr} dB",
                    f"error in dB at an SNR of {snr} dB, real positive gains, anchor of ones",
                    predicted=predicted,
                    values=decibels[i, 0, 0, at(snr)],
                    low=predicted - 3,
                    high=predicted + 3,
                    note="predicted by an independent prototype, 3 dB either way",
                )
            )
        claims.append(
            common.check(
                f"gaussian {model} 10 dB",
                "error in dB at an SNR of 10 dB, real positive gains, Gaussian anchor: nothing is recovered",
                predicted=0.0,
                values=decibels[i, 1, 0, at(10)],
                low=-5,
            )
        )
        gain = decibels[i, 0, 1, at(10)] - decibels[i, 2, 1, at(10)]
        claims.append(
            common.check(
                f"phases {model} 10 dB",
                "dB that the spectral method gains over the anchor of ones at an SNR of 10 dB, random phases",
                predicted=8.1,
                values=gain,
                low=3.0,
                note="-1.7 dB against -9.8 dB in a prototype of one model",
            )
        )
        apart = np.ptp(np.median(decibels[i, :, 0, at(80)], axis=-1))
        claims.append(
            common.check(
                f"coincide {model} 80 dB",
                "dB between the best and the worst of the three at an SNR of 80 dB, medians, real positive gains",
                predicted=0.0,
                values=apart,
                high=3.0,
            )
        )
    return claims


def draw(data: dict) -> dict:
    import matplotlib.pyplot as plt

    figures = {}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    for i, (ax, model) in enumerate(zip(axes, data["models"], strict=True)):
        for j, way in enumerate(data["ways"]):
            share = np.mean(data["success"][i][j], axis=0)
            ax.plot(
                np.array(data["offsets"]) + 0.15 * (j - 1), share, "o-", ms=4, lw=1.2, color=f"C{j}", label=WAYS[way]
            )
        ax.axvline(0.5, color="k", ls=":", lw=1.2)
        ax.set(title=model, xlabel="n above the largest by counting")
    axes[0].set_ylabel("share of draws recovered")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    figures["counting"] = figure
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), sharex=True, sharey=True, layout="constrained")
    for k, field in enumerate(("real positive gains", "random phases")):
        for i, model in enumerate(data["models"]):
            ax = axes[k, i]
            for j, way in enumerate(data["ways"]):
                ax.plot(data["snr"], data["decibels"][i][j][k], "o-", ms=4, lw=1.2, color=f"C{j}", label=WAYS[way])
                ax.fill_between(data["snr"], data["low"][i][j][k], data["high"][i][j][k], color=f"C{j}", alpha=0.15)
            ax.plot(data["snr"], -np.array(data["snr"]), "k:", lw=1.2)
            ax.set_title(f"{model}, {field}", fontsize=10)
    for ax in axes[1]:
        ax.set_xlabel("SNR, dB")
    for ax in axes[:, 0]:
        ax.set_ylabel("error, dB")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    figures["noise"] = figure
    return figures
