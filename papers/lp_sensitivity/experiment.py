"""Row samples that keep l_p norms: sensitivities, Lewis weights and their inequalities, distortion and regression."""

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from lrjax.sketching import RowSample
from papers import common

TITLE = "Woodruff and Yasuda, Sharper Bounds for l_p Sensitivity Sampling, ICML 2023, arXiv 2306.00732"
SMALL, WIDTH = 120, 5
POWERS = (1.0, 1.5, 2.5, 3.0, 6.0)
LEWIS_POWERS = (1.0, 1.5, 3.0)
TALL, TALL_WIDTH, ROWS = 20_000, 8, (200, 400, 800, 1600)
DIRECTIONS = 200


def families() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "Gaussian": rng.standard_normal((SMALL, WIDTH)),
        "heavy-tailed": rng.standard_t(1.5, (SMALL, WIDTH)),
        "Vandermonde": np.vander(np.linspace(-1, 1, SMALL), WIDTH, increasing=True),
    }


def spiked() -> np.ndarray:
    """Rows of size 1 but for a few of very different sizes, which l_p norms hang on."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((TALL, TALL_WIDTH))
    a[: 2 * TALL_WIDTH] *= np.geomspace(10, 1000, 2 * TALL_WIDTH)[:, None]
    return a


def scores_of(a: jax.Array, p: float) -> dict[str, jax.Array]:
    leverage = lr.sketching.leverage_scores(a)
    lewis = lr.sketching.lewis_weights(a, p)
    found = {"uniform": jnp.ones(len(a)), "leverage": leverage, "Lewis": lewis}
    if p < 2:
        found["root leverage"] = lr.sketching.root_leverage_scores(a, p)
    found["Lewis + leverage"] = lr.sketching.mixed_scores(lewis, leverage)
    return found


def run(full: bool) -> tuple[list[dict], dict]:
    claims = weight_rows()
    more, curves = distortion_rows(24 if full else 6, ROWS if full else ROWS[::3])
    return claims + more + regression_rows(12 if full else 4), curves


def weight_rows() -> list[dict]:
    """Identities and inequalities of sensitivities and Lewis weights: exact, so one number each."""
    claims = []
    for name, matrix in families().items():
        a = jnp.asarray(matrix)
        for p in POWERS:
            total = lr.sketching.lp_sensitivities(a, p)
            low, high = (WIDTH, WIDTH ** (p / 2)) if p > 2 else (0, WIDTH)
            claims.append(
                common.check(
                    f"total {name} p={p:g}",
                    "sum of the sensitivities: at most d for p <= 2, between d and d^(p/2) above",
                    predicted=f"{low:g} to {high:.4g}",
                    values=float(jnp.sum(total)),
                    low=0.999 * low,
                    high=1.001 * high,
                )
            )
            if p >= 4:
                continue
            lewis = lr.sketching.lewis_weights(a, p, num_steps=60)
            up = total / (WIDTH ** max(0, p / 2 - 1) * lewis)
            down = lewis / (WIDTH ** max(0, 1 - p / 2) * total)
            claims += [
                common.check(
                    f"Lewis sum {name} p={p:g}",
                    "Lewis weights add up to d",
                    predicted=WIDTH,
                    values=float(jnp.sum(lewis)),
                    low=WIDTH - 1e-6,
                    high=WIDTH + 1e-6,
                ),
                common.check(
                    f"contraction {name} p={p:g}",
                    "a step of the Lewis iteration shrinks the error of log w by |p/2 - 1|",
                    predicted=abs(p / 2 - 1),
                    values=contraction(a, p),
                    high=abs(p / 2 - 1) + 0.01,
                    note="an upper bound for any matrix; between late steps of the iteration from w = 1",
                ),
                common.check(
                    f"bounds {name} p={p:g}",
                    "sigma_i <= d^max(0, p/2 - 1) w_i and w_i <= d^max(0, 1 - p/2) sigma_i: largest of both ratios",
                    predicted="at most 1",
                    values=float(jnp.maximum(jnp.max(up), jnp.max(down))),
                    high=1.001,
                    note="sensitivities are found from below, to 1e-4 at p = 1",
                ),
            ]
    return claims


def contraction(a: jax.Array, p: float) -> float:
    steps = [np.log(np.asarray(lr.sketching.lewis_weights(a, p, num_steps=n))) for n in (4, 5, 6)]
    return float(np.max(np.abs(steps[2] - steps[1])) / np.max(np.abs(steps[1] - steps[0])))


def images_of(a: np.ndarray) -> jax.Array:
    """`a x` for random directions and for those that single rows stand out in."""
    rng = np.random.default_rng(2)
    gram = np.linalg.inv(a.T @ a)
    heavy = np.argsort(np.sum(a @ gram * a, axis=1))[-DIRECTIONS // 2 :]
    x = np.concatenate([rng.standard_normal((a.shape[1], DIRECTIONS // 2)), gram @ a[heavy].T], axis=1)
    images = a @ x
    return jnp.asarray(images / np.abs(images).max(axis=0))


def distortion_rows(trials: int, rows: tuple) -> tuple[list[dict], dict]:
    a, images, keys = spiked(), None, jax.random.split(jax.random.key(0), trials)
    images = images_of(a)
    claims, curves = [], {}
    for p in LEWIS_POWERS:
        whole = jnp.sum(jnp.abs(images) ** p, axis=0)

        def worst(key, scores, m, p=p, whole=whole):
            sample = RowSample.create(key, scores, m)
            return jnp.max(jnp.abs(sample.weights @ jnp.abs(images[sample.indices]) ** p / whole - 1))

        lines = {
            name: [np.asarray(jax.lax.map(lambda k, s=scores, m=m: worst(k, s, m), keys)) for m in rows]
            for name, scores in scores_of(jnp.asarray(a), p).items()
        }
        curves[f"{p:g}"] = {
            name: [np.quantile(values, (0.1, 0.5, 0.9)) for values in line] for name, line in lines.items()
        }
        few, many = (np.median(lines["Lewis"][j]) for j in (0, -1))
        claims += [
            common.check(
                f"half power p={p:g}",
                "distortion of Lewis sampling falls like m^(-1/2): exponent from the fewest to the most rows",
                predicted=-0.5,
                values=np.log(many / few) / np.log(rows[-1] / rows[0]),
                low=-0.7,
                high=-0.35,
            ),
            common.check(
                f"uniform p={p:g}",
                f"uniform samples of {rows[-1]} rows miss the heavy ones: their distortion over that of Lewis samples",
                predicted="5 or more",
                values=lines["uniform"][-1] / np.median(lines["Lewis"][-1]),
                low=5,
            ),
            common.check(
                f"Lewis p={p:g}",
                f"distortion of Lewis samples of {rows[-1]} rows",
                predicted="below 0.2",
                values=lines["Lewis"][-1],
                high=0.2,
            ),
        ]
    return claims, {"rows": rows, "curves": curves}


def regression_rows(trials: int) -> list[dict]:
    """Sampled l_p regression: loss over the best."""
    a = spiked()
    rng = np.random.default_rng(4)
    b = a @ rng.standard_normal(TALL_WIDTH) + rng.standard_t(2.5, TALL)
    a, b, claims = jnp.asarray(a), jnp.asarray(b), []
    for p in (1.0, 1.5):
        loss = lambda x, p=p: jnp.sum(jnp.abs(a @ x - b) ** p) ** (1 / p)
        best = loss(lr.sketching.lp_regression(a, b, p).x)
        ratios = [
            loss(lr.sketching.lp_regression(a, b, p, key=jax.random.key(t), num_rows=ROWS[-1]).x) / best
            for t in range(trials)
        ]
        claims.append(
            common.check(
                f"regression p={p:g}",
                f"l_p regression on {ROWS[-1]} of {TALL:,} sampled rows: its loss over the best",
                predicted="1 to 1.05",
                values=np.array(ratios),
                low=1,
                high=1.05,
            )
        )
    return claims


def draw(data: dict) -> dict:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(LEWIS_POWERS), figsize=(9, 3.8), sharey=True, layout="constrained")
    names = ("uniform", "leverage", "Lewis", "root leverage", "Lewis + leverage")
    rows = np.array(data["rows"], float)
    for ax, p in zip(axes, LEWIS_POWERS, strict=True):
        for j, name in enumerate(names):
            if name not in data["curves"][f"{p:g}"]:
                continue
            low, middle, high = np.array(data["curves"][f"{p:g}"][name]).T
            at = rows * 1.03 ** (j - 2)
            bars = (middle - low, high - middle)
            ax.errorbar(at, middle, yerr=bars, fmt="o-", ms=4, lw=1.2, elinewidth=0.8, color=f"C{j}", label=name)
        ax.plot(rows, 0.3 * (rows / rows[0]) ** -0.5, "k:", lw=1.2, label=r"slope $-1/2$")
        ax.set(xscale="log", yscale="log", xlabel="rows of the sample", title=f"p = {p:g}")
        ax.set_xticks(data["rows"], [str(m) for m in data["rows"]])
        ax.minorticks_off()
    axes[0].set_ylabel("distortion of the norm, 10 to 90 % of draws")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=6)
    return {"distortion": figure}
