"""Supervised dictionary learning by descent under a rank bound: its rate, and accuracy against reconstruction.

Rates: 200 samples of 30 features, two covariates, rank 3. Accuracy: 150 samples of 49 features made of 20 atoms
(Gaussian ones, or blocks of 7 x 7 images) with uniform codes and noise, and labels that follow 20 other atoms.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from papers import common

TITLE = "Lee, Lyu and Yao, Supervised dictionary learning with auxiliary covariates, arXiv 2206.06774"
# Rates.
FEATURES, SAMPLES, RANK, STARTS, STEPS = 30, 200, 3, 3, 300
LEAST = 2.0  # mu; the reconstruction weighs half of it
RATIOS = (1.28, 2.12, 12.0)  # L / mu
LENGTHS = {"short": "1.02 / (2 mu)", "middle": "1 / L", "long": "1.49 / L"}
PROTOTYPE = {"short": 0.495, "middle": 0.222, "long": 0.456}
# Accuracy.
SIDE, TRAINING, TESTS, ATOMS, COLUMNS = 7, 150, 2000, 20, 2
KINDS = {
    "gaussian": "Gaussian atoms, other atoms for the labels",
    "blocks": "blocks, other blocks for the labels",
    "control": "Gaussian atoms, labels by a strong component",
}
FORMS = ("filter", "feature")
WEIGHTS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)


def step_size(name: str, most: float) -> float:
    return {"short": 1.02 / (2 * LEAST), "middle": 1 / most, "long": 1.49 / most}[name]


def rate_data(seed: int, most: float, low_rank: bool) -> tuple:
    """Features of rank 3 and noise, or noise alone, and two covariates, scaled such that the curvature is `most`."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((SAMPLES, FEATURES))
    planted = rng.standard_normal((SAMPLES, RANK)) @ rng.standard_normal((RANK, FEATURES))
    x, covariates = planted + 0.3 * noise if low_rank else noise, rng.standard_normal((SAMPLES, 2))
    unit = np.sqrt(4 * (most - LEAST)) / np.linalg.norm(np.c_[x, covariates], 2)
    start = [rng.standard_normal(shape) for shape in ((STARTS, FEATURES, RANK), (STARTS, SAMPLES, RANK))]
    start += [rng.standard_normal(shape) for shape in ((STARTS, RANK, 1), (STARTS, 2, 1))]
    return unit * x, rng.integers(0, 2, SAMPLES), unit * covariates, tuple(start)


@jax.jit
def descend(x, y, covariates, start, size):
    """The objective after each step, `(starts, steps + 1)`."""

    def one(start):
        found = lr.supervised_dictionary(
            x,
            y,
            covariates,
            rank=RANK,
            reconstruction=LEAST / 2,
            ridge=LEAST,
            scale=1.0,
            step_size=size,
            num_steps=STEPS,
            tolerance=0.0,
            init=start,
        )
        return found.descent.trace["objective"]

    return jax.vmap(one)(start)


def rates(seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Objectives `(ratios, lengths, seeds, starts, steps + 1)`, and `(seeds, starts, steps + 1)` for noise alone."""

    def run(ratio: float, name: str, low_rank: bool) -> list:
        rows = [rate_data(seed, ratio * LEAST, low_rank) for seed in range(seeds)]
        return [np.asarray(descend(*row, step_size(name, ratio * LEAST))) for row in rows]

    planted = np.array([[run(ratio, name, True) for name in LENGTHS] for ratio in RATIOS])
    return planted, np.array(run(RATIOS[0], "middle", False))


def judge_rates(values: np.ndarray, noise: np.ndarray) -> list[dict]:
    claims, names = [], list(LENGTHS)
    ends = values[..., -1]
    spread = np.ptp(ends, axis=-1)
    for j, name in enumerate(names):
        size = step_size(name, RATIOS[0] * LEAST)
        bound = 2 * max(abs(1 - size * LEAST), abs(1 - size * RATIOS[0] * LEAST))
        claims.append(
            common.check(
                f"rate {name}",
                f"factor of the distance to the end in a step of {LENGTHS[name]}, L / mu = 1.28",
                predicted=PROTOTYPE[name],
                values=factor(values[0, j]),
                low=0.8 * PROTOTYPE[name],
                high=min(1.2 * PROTOTYPE[name], bound),
                note=f"predicted by an independent prototype, 20 % either way; the bound is {bound:.3f}",
            )
        )
    for i, ratio in enumerate(RATIOS):
        for j, name in enumerate(names):
            if ratio > 3 and name == "short":
                continue
            claims.append(
                common.check(
                    f"starts {name} {ratio}",
                    f"largest difference of the objectives that {STARTS} random starts end at, "
                    f"steps of {LENGTHS[name]}, L / mu = {ratio}",
                    predicted=0.0,
                    values=spread[i, j],
                    high=1e-10,
                    note="" if ratio < 3 else "outside of the condition L < 3 mu; a prototype found no difference",
                )
            )
    claims += [
        common.check(
            "too long",
            "objective at the end of steps of 1.02 / (2 mu), too long for L / mu = 12, over that of 1.49 / L",
            predicted=263 / 88.6,
            values=(ends[2, 0] / ends[2, 2]).mean(axis=-1),
            low=1.5,
            note="predicted: a prototype on other data, which decide the number",
        ),
        common.check(
            "no gap",
            "factor of the distance in a step of 1 / L, L / mu = 1.28, if the features are noise alone",
            predicted="above the bound, 0.437",
            values=factor(noise),
            low=0.5,
            note="why, see README.md: the bound is for a minimiser that has low rank of itself",
        ),
    ]
    return claims


def factor(objective: np.ndarray) -> np.ndarray:
    """Factor of the distance in a step, the median over starts for each seed; the gap of the objective is its square.

    Over the last five steps before rounding: those that end with a gap above 1e-10.
    """
    gap = objective - objective.min(axis=(-1, -2), keepdims=True)
    rows = gap.reshape(-1, gap.shape[-1])
    last = [np.flatnonzero(row > 1e-10)[-1] for row in rows]
    factors = [(row[k] / row[k - 5]) ** 0.1 for row, k in zip(rows, last, strict=True)]
    return np.median(np.reshape(factors, gap.shape[:-1]), axis=-1)


def blocks(rng) -> np.ndarray:
    """Images of one bright rectangle each."""
    images = np.zeros((ATOMS, SIDE, SIDE))
    for image in images:
        height, width = rng.integers(2, 4, 2)
        top, left = rng.integers(0, SIDE - height + 1), rng.integers(0, SIDE - width + 1)
        image[top : top + height, left : left + width] = 1
    return images.reshape(ATOMS, -1)


def labelled(kind: str, seed: int) -> tuple:
    """Training and test features, centred, and labels: logistic, with logits of standard deviation 4."""
    rng = np.random.default_rng(100 + seed)
    p = SIDE**2
    atoms, others = (blocks(rng) if kind == "blocks" else 3 / SIDE * rng.standard_normal((ATOMS, p)) for _ in range(2))
    n = TRAINING + TESTS
    x = rng.random((n, ATOMS)) @ atoms + 0.5 * rng.standard_normal((n, p))
    direction = others.T @ rng.choice([-1, 1], ATOMS)
    if kind == "control":
        direction = atoms[0] / np.linalg.norm(atoms[0])
        x = x + 4 * rng.standard_normal((n, 1)) * direction
    logits = (x - x.mean(axis=0)) @ direction
    y = (rng.random(n) < 1 / (1 + np.exp(-4 * logits / logits.std()))).astype(int)
    x = x - x[:TRAINING].mean(axis=0)
    return x[:TRAINING], y[:TRAINING], x[TRAINING:], y[TRAINING:]


@functools.partial(jax.jit, static_argnames="form")
def learn(x, y, new_x, new_y, form):
    """Accuracy on new samples and relative loss of reconstruction, for each weight."""

    def one(weight):
        found = lr.supervised_dictionary(x, y, rank=COLUMNS, form=form, reconstruction=weight, num_steps=300,
                                         record_every=300)  # fmt: skip
        loss = jnp.sum((x - lr.Factors(found.codes, found.dictionary).dense()) ** 2) / jnp.sum(x**2)
        return jnp.mean(found.predict(new_x) == new_y), loss

    return jax.vmap(one)(jnp.array(WEIGHTS))


def logistic_regression(x, y, new_x, new_y, ridge: float) -> float:
    """Accuracy of a logistic regression with an intercept, by Newton steps, independent of the library."""
    z = np.c_[x, np.ones(len(x))]
    w = np.zeros(z.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        hessian = (z * (chance * (1 - chance))[:, None]).T @ z + (ridge + 1e-9) * np.eye(w.size)
        w -= np.linalg.solve(hessian, z.T @ (chance - y) + ridge * w)
    return float(np.mean((np.c_[new_x, np.ones(len(new_x))] @ w > 0) == new_y))


def accuracies(seeds: int) -> dict:
    """Named arrays whose first axes are kinds and seeds."""
    rows: dict = {"learned": [], "plain": [], "ridge": [], "reduced": [], "least_loss": []}
    for kind in KINDS:
        for seed in range(seeds):
            x, y, new_x, new_y = labelled(kind, seed)
            rows["learned"].append([np.asarray(learn(x, y, new_x, new_y, form=form)) for form in FORMS])
            rows["plain"].append(logistic_regression(x, y, new_x, new_y, 1e-6))
            rows["ridge"].append(logistic_regression(x, y, new_x, new_y, 1.0))
            v = np.linalg.svd(x, full_matrices=False)[2][:COLUMNS].T
            rows["reduced"].append(logistic_regression(x @ v, y, new_x @ v, new_y, 1e-6))
            rows["least_loss"].append(np.sum((x - x @ v @ v.T) ** 2) / np.sum(x**2))
    rows = {name: np.array(row) for name, row in rows.items()}
    return {name: row.reshape(len(KINDS), seeds, *row.shape[1:]) for name, row in rows.items()}


def judge_accuracy(seen: dict) -> list[dict]:
    claims, at = [], WEIGHTS.index
    loss_at = seen["learned"][:, :, 0, 1]
    for i, kind in enumerate(("gaussian", "blocks")):
        filtered, featured = seen["learned"][i, :, 0, 0], seen["learned"][i, :, 1, 0]
        row = lambda name, claim, values, **rest: claims.append(
            common.check(f"{name} {kind}", f"{claim}; {KINDS[kind]}", values=values, **rest)  # noqa: B023
        )
        row(
            "reduce",
            "accuracy that the filter form, xi = 0.1, gains over components first and then a classifier",
            filtered[:, at(0.1)] - seen["reduced"][i],
            predicted="above zero",
            low=0.05,
            note="0.61 against 0.835 in the authors' run on digits, xi = 0.01 and 1",
        )
        row(
            "plain",
            "accuracy that it gains over a logistic regression on all features without ridge",
            filtered[:, at(0.1)] - seen["plain"][i],
            predicted="above zero",
            low=0.0,
            note="0.72 against 0.835 there",
        )
        row(
            "ridge",
            "accuracy that the filter form, xi = 0.001, gains over a logistic regression with the same ridge, 1",
            filtered[:, at(0.001)] - seen["ridge"][i],
            predicted=0.0,
            low=-0.01,
            high=0.01,
            note="for xi to zero the two are one problem",
        )
        row(
            "feature",
            "accuracy that the filter form gains over the feature form, xi = 0.01",
            filtered[:, at(0.01)] - featured[:, at(0.01)],
            predicted="above zero",
            low=0.0,
            note="on new samples; the authors' run has 0.835 and 0.49 to 0.77",
        )
        row(
            "loss",
            "relative loss of reconstruction at xi = 0.001 less that at xi = 10",
            loss_at[i, :, at(0.001)] - loss_at[i, :, at(10.0)],
            predicted="above zero",
            low=0.01,
            note="what predicting costs",
        )
        row(
            "components",
            "relative loss of reconstruction at xi = 10 over the least possible",
            loss_at[i, :, at(10.0)] / seen["least_loss"][i],
            predicted=1.0,
            high=1.001,
        )
    filtered = seen["learned"][2, :, 0, 0]
    claims.append(
        common.check(
            "reduce control",
            "accuracy that the filter form, xi = 0.1, gains over components first and then a classifier; "
            + KINDS["control"],
            predicted=0.0,
            values=filtered[:, at(0.1)] - seen["reduced"][2],
            low=-0.05,
            high=0.02,
            note="where both dictionaries are one there is nothing to gain",
        )
    )
    return claims


def run(full: bool) -> tuple[list[dict], dict]:
    planted, noise = rates(5 if full else 1)
    seeds = 10 if full else 2
    seen = accuracies(seeds)
    claims = judge_rates(planted, noise) + judge_accuracy(seen)
    claims += [
        common.not_tested(
            "blocks of factors", "descent in dictionary, codes and weights one after the other", "not built"
        ),
        common.not_tested(
            "digits", "accuracies on handwritten digits, job postings and X-ray images", "no such data here"
        ),
    ]
    data = {
        "gaps": np.median(planted[0, :, 0, :, :61] - planted[0, :, 0].min(), axis=1),
        "beyond": np.median(planted[2, :, 0, :, :61], axis=1),
        "no_gap": noise[0, :, :61] - noise[0].min(),
        "bounds": [
            2 * max(abs(1 - step_size(name, RATIOS[0] * LEAST) * m) for m in (LEAST, RATIOS[0] * LEAST))
            for name in LENGTHS
        ],
        "weights": WEIGHTS,
        "seeds": seeds,
        "accuracy": np.median(seen["learned"][:, :, :, 0], axis=1),
        "loss": np.median(seen["learned"][:, :, :, 1], axis=1),
        "plain": np.median(seen["plain"], axis=1),
        "ridge": np.median(seen["ridge"], axis=1),
        "reduced": np.median(seen["reduced"], axis=1),
        "least_loss": np.median(seen["least_loss"], axis=1),
    }
    return claims, data


def draw(data: dict) -> dict:
    import matplotlib.pyplot as plt

    figures = {}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
    above = lambda gap: np.where(np.array(gap) > 1e-12, gap, np.nan)
    bound = lambda gap, j: above(gap[0] * np.array(data["bounds"][j]) ** (2 * np.arange(len(gap))))
    for j, name in enumerate(LENGTHS):
        axes[0].semilogy(above(data["gaps"][j]), color=f"C{j}", lw=1.4, label=f"step {LENGTHS[name]}")
        axes[2].semilogy(data["beyond"][j], color=f"C{j}", lw=1.4)
    axes[0].semilogy(bound(data["gaps"][1], 1), ":", color="k", lw=1.2, label="bound for 1 / L")
    for gap, style in zip(data["no_gap"], ("-", "--", "-."), strict=True):
        axes[1].semilogy(above(gap), color="C1", ls=style, lw=1.4)
    axes[1].semilogy(bound(data["no_gap"][0], 1), ":", color="k", lw=1.2)
    axes[0].set(title="L / mu = 1.28, rank 3 and noise", ylabel="objective above the least", xlim=(0, 40))
    axes[1].set(title="L / mu = 1.28, noise alone, 3 starts", ylabel="objective above the least")
    axes[2].set(title="L / mu = 12, rank 3 and noise", ylabel="objective")
    for ax in axes:
        ax.set_xlabel("step")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=4)
    figures["rates"] = figure
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
    for i, (ax, kind) in enumerate(zip(axes, KINDS, strict=True)):
        for j, form in enumerate(FORMS):
            loss, accuracy = np.array(data["loss"][i][j]), np.array(data["accuracy"][i][j])
            ax.plot(loss, accuracy, "o-", ms=4, lw=1.2, color=f"C{j}", label=f"{form} form")
        ax.plot(data["least_loss"][i], data["reduced"][i], "k*", ms=10, label="components, then classifier")
        ax.axhline(data["plain"][i], color="C2", ls="--", lw=1.2, label="logistic regression")
        ax.axhline(data["ridge"][i], color="C3", ls=":", lw=1.4, label="the same with ridge")
        ax.set_xlabel("relative loss of reconstruction")
        ax.set_title(KINDS[kind], fontsize=9)
    axes[0].set_ylabel("accuracy on new samples")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=5)
    figures["accuracy"] = figure
    return figures
