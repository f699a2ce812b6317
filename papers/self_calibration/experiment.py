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
# Inputs of the diagram, and of the structured matrices relative to the largest number by counting.
GRID = tuple(range(4, 169, 4))
STRUCTURED_OFFSETS = (-4, -1, 0, 1)
KINDS = {
    "hadamard": ("hadamard", 2),
    "fourier": ("fourier", 2),
    "hadamard, one round": ("hadamard", 1),
}
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


def padded_error(key, model: str, way: str, blocks, inputs, largest: int, kind: str = "gaussian"):
    """Error of one noiseless draw of `blocks` matrices and `inputs` numbers in each input, both traced."""
    most = BLOCKS[-1]
    key_problem, key_solve, key_signs = key, jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    problem, truth = lr.synthetic.gain_calibration(
        key_problem, shape=(SENSORS, largest), num_blocks=most, model=model, dtype=jnp.float64
    )
    matrices = problem.operator.matrices
    if kind != "gaussian":
        transform, rounds = KINDS[kind]
        structured = lr.operators.StructuredGainMeasurements.create(
            key_signs, (SENSORS, largest), most, model=model, transform=transform, rounds=rounds
        )
        matrices = structured.stored().matrices
        truth = jax.tree.map(lambda x: x.astype(matrices.dtype), truth)
    columns, used = jnp.arange(largest) < inputs, jnp.arange(most) < blocks
    matrices, x = matrices * columns, truth.right.reshape(-1, largest) * columns
    if model != "snapshots":
        matrices = matrices * used[:, None, None]
    if model != "repeated":
        x = x * used[:, None]
    operator = lr.operators.GainMeasurements(matrices=matrices, num_blocks=most, model=model)
    truth = lr.Factors(truth.left, x.reshape(-1, 1))
    y = operator.forward(truth.left, truth.right)
    return error_of(solve(operator, y, way, key_solve), truth)


def errors_over(trial, seed: int, trials: int, grid: dict, static: tuple) -> np.ndarray:
    table = lr.sweep(
        trial, jax.random.key(seed), grid=grid, num_trials=trials, static=static, paired=True, batch_size=1,
        progress=False,
    )  # fmt: skip
    return np.nan_to_num(np.asarray(table["error"].values), nan=np.inf)


def phase(trials: int, blocks: tuple, offsets: tuple) -> np.ndarray:
    """Errors `(models, ways, blocks, offsets, trials)`; all sizes padded with zeros to the largest."""

    def trial(key, model, way, blocks, offset):
        largest = int(most_inputs(model, BLOCKS[-1])) + OFFSETS[-1]
        return {"error": padded_error(key, model, way, blocks, most_inputs(model, blocks) + offset, largest)}

    grid = {"model": MODELS, "way": tuple(WAYS), "blocks": blocks, "offset": offsets}
    return errors_over(trial, 0, trials, grid, ("model", "way"))


def diagram(trials: int, inputs: tuple) -> np.ndarray:
    """Errors `(models, blocks, inputs, trials)` over the whole plane, by least squares with the anchor of ones."""

    def trial(key, model, blocks, inputs):
        return {"error": padded_error(key, model, "ones", blocks, inputs, GRID[-1])}

    grid = {"model": MODELS, "blocks": BLOCKS, "inputs": inputs}
    return errors_over(trial, 2, trials, grid, ("model",))


def structured(trials: int, blocks: tuple) -> np.ndarray:
    """Errors `(kinds, models, blocks, offsets, trials)` with transforms of random signs for Gaussian matrices."""

    def trial(key, kind, model, blocks, offset):
        largest = int(most_inputs(model, BLOCKS[-1])) + STRUCTURED_OFFSETS[-1]
        inputs = most_inputs(model, blocks) + offset
        return {"error": padded_error(key, model, "ones", blocks, inputs, largest, kind)}

    grid = {"kind": tuple(KINDS), "model": MODELS, "blocks": blocks, "offset": STRUCTURED_OFFSETS}
    return errors_over(trial, 3, trials, grid, ("kind", "model"))


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
    offsets, inputs = (OFFSETS, GRID) if full else (OFFSETS[2:7], GRID[::4])
    errors = phase(trials, blocks, offsets)
    exact = errors < EXACT
    claims = [
        claim
        for i, model in enumerate(MODELS)
        for j, way in enumerate(WAYS)
        for claim in counts(model, way, exact[i, j], offsets)
    ]
    plane = diagram(5 if full else 1, inputs) < EXACT
    claims.append(judge_diagram(plane, inputs))
    transforms = structured(trials, blocks if full else blocks[:2]) < EXACT
    claims += judge_structured(transforms)
    noisy_trials = 25 if full else 5
    decibels = 20 * np.log10(noise(noisy_trials))
    claims += judge_noise(decibels)
    claims += [
        common.not_tested(
            "bound", "the bound by the condition number of the system", "its constants are not ours to quote"
        ),
    ]
    data = {
        "models": MODELS,
        "ways": list(WAYS),
        "blocks": blocks,
        "offsets": offsets,
        "trials": trials,
        "success": exact.mean(axis=-1),
        "grid": inputs,
        "all_blocks": BLOCKS,
        "plane": plane.mean(axis=-1),
        "kinds": list(KINDS),
        "structured_offsets": STRUCTURED_OFFSETS,
        "structured": transforms.mean(axis=(2, 4)),
        "snr": SNR,
        "noisy_trials": noisy_trials,
        "decibels": np.median(decibels, axis=-1),
        "low": np.quantile(decibels, 0.1, axis=-1),
        "high": np.quantile(decibels, 0.9, axis=-1),
    }
    return claims, data


def counts(model: str, way: str, exact: np.ndarray, offsets: tuple) -> list[dict]:
    at, above = exact[:, offsets.index(0)], exact[:, offsets.index(1)]
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


def judge_diagram(exact: np.ndarray, inputs: tuple) -> dict:
    """Whether every cell is on the side of the curve that counting says."""
    counted = [[[n <= most_inputs(model, p) for n in inputs] for p in BLOCKS] for model in MODELS]
    right = exact == np.array(counted)[..., None]
    return common.check(
        "diagram", "share of draws over the plane of n and p that succeed, or fail, as counting says", predicted=1.0,
        values=right.mean(), low=1.0, note=f"{int(right.sum())} of {right.size}, m = {SENSORS}",
    )  # fmt: skip


def judge_structured(exact: np.ndarray) -> list[dict]:
    claims, at = [], STRUCTURED_OFFSETS.index
    for i, kind in enumerate(KINDS):
        for j, model in enumerate(MODELS):
            enough, less = exact[i, j][:, at(-4)], exact[i, j][:, at(1)]
            # Gains equal to a row of the transform permute its columns: of one round much is not determined.
            fails = kind == "hadamard, one round"
            claims.append(
                common.check(
                    f"{kind} {model}", "share of noiseless draws recovered with four numbers less in each input than "
                    "counting allows" + (": symmetries of the transform stand in the way" if fails else ""),
                    predicted=0.0 if fails else 1.0, values=enough.mean(), low=0.0 if fails else 1.0,
                    high=0.5 if fails else 1.0,
                    note=f"{enough.sum()} of {enough.size}; with one less {exact[i, j][:, at(-1)].sum()}",
                )
            )  # fmt: skip
            claims.append(
                common.check(
                    f"{kind} {model} beyond", "the same with one number more than counting allows", predicted=0.0,
                    values=less.mean(), high=0.0, note=f"{less.sum()} of {less.size}",
                )
            )  # fmt: skip
    return claims


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
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True, layout="constrained")
    blocks, grid = data["all_blocks"], np.array(data["grid"])
    for ax, model, plane in zip(axes, data["models"], data["plane"], strict=True):
        look = {"cmap": "viridis", "vmin": 0, "vmax": 1, "shading": "nearest", "edgecolors": "face", "lw": 0.3}
        image = ax.pcolormesh(grid, blocks, np.array(plane), **look)
        limit = [most_inputs(model, p) for p in blocks]
        ax.plot(limit, blocks, "w--", lw=2, marker="o", ms=4, label="as many measurements as unknowns less one")
        right = grid[-1] if model == "repeated" else 1.7 * limit[-1]
        ax.set(title=model, xlabel="numbers n in an input", xlim=(grid[0] - 2, right), yticks=blocks)
    axes[0].set_ylabel("blocks p")
    figure.colorbar(image, ax=axes, label="share recovered")
    legend = figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center")
    legend.get_frame().set_facecolor("0.6")
    figures["diagram"] = figure
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
