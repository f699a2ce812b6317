"""Coordinate-wise error of sketched least squares against the rows of the sketch: `python experiment.py`.

Writes `results.json` and `ratio.svg` beside this file. Two panels: generic data, where all sketches are alike, and
coherent data, where sparse ones fail; with the law of the Gaussian sketch. A few minutes on two cores.
"""

import json
from pathlib import Path
from statistics import NormalDist

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from tqdm import tqdm

import lrjax as lr
from lrjax import sketching

HERE = Path(__file__).parent
N, D, TRIALS = 4096, 32, 100
ROWS = (128, 256, 512, 1024, 2048)
SKETCHES = {
    "Gaussian": sketching.GaussianSketch.create,
    "SRHT": sketching.SRHT.create,
    "pooled (s = 32)": sketching.PooledSketch.create,
    "sparse sign, 8 nonzeros": sketching.SparseSignSketch.create,
    "CountSketch": sketching.CountSketch.create,
    "leverage scores": None,
}


def predicted(m: int) -> float:
    """Median ratio for orthonormal columns and a Gaussian sketch."""
    return NormalDist().inv_cdf((1 + 2 ** (-1 / D)) / 2) * (D / (m - D - 1)) ** 0.5


def instance(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal columns and a residual of norm one orthogonal to them: the exact solution is zero."""
    if kind == "generic":
        q, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((N, D + 1)))
        return q[:, :D], q[:, D]
    a, residual = np.eye(N, D), np.zeros(N)
    residual[D : 2 * D] = D**-0.5
    return a, residual


def ratios(name: str, m: int, kind: str) -> np.ndarray:
    """`sqrt(d) ||x' - x*||_inf / (||r|| ||pinv(a)||)` over draws of the sketch."""
    a, residual = (jnp.asarray(value) for value in instance(kind))
    # Leverage scores mixed with uniform ones: rows of leverage zero must be seen too.
    scores = 0.5 * jnp.sum(a**2, axis=1) / D + 0.5 / N

    def one(key):
        make = SKETCHES[name]
        sketch = sketching.RowSample.create(key, scores, m) if make is None else make(key, m, N)
        x = lr.lstsq(a, residual, key, method="sketch_and_solve", sketch=sketch).x
        return jnp.sqrt(D) * jnp.max(jnp.abs(x))

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(1), TRIALS)))


def draw(results: dict, path: Path) -> None:
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lrjax"
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9.5, 4), sharey=True, layout="constrained")
    for ax, kind in zip(axes, ("generic", "coherent"), strict=True):
        for name in SKETCHES:
            found = [max(results[kind][name][str(m)]["median"], 1e-2) for m in ROWS]
            ax.loglog(ROWS, found, "o-", label=name, ms=4, lw=1.2)
        ax.loglog(ROWS, [predicted(m) for m in ROWS], "k:", label="law of the Gaussian sketch")
        ax.set_xticks(ROWS, [str(m) for m in ROWS])
        ax.set_yticks((0.2, 0.5, 1, 2), ["0.2", "0.5", "1", "2"])
        ax.minorticks_off()
        ax.set(title=f"{kind} data, n = {N}, d = {D}", xlabel="rows of the sketch", ylim=(0.15, 2))
    axes[0].set_ylabel(r"median of $\sqrt{d}\,\|x' - x^*\|_\infty / (\|r\|\,\|A^+\|)$")
    axes[0].legend(fontsize=8)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def main() -> None:
    results = {"n": N, "d": D, "trials": TRIALS, "predicted": {str(m): predicted(m) for m in ROWS}}
    grid = [(kind, name, m) for kind in ("generic", "coherent") for name in SKETCHES for m in ROWS]
    for kind, name, m in tqdm(grid):
        values = ratios(name, m, kind)
        found = {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}
        results.setdefault(kind, {}).setdefault(name, {})[str(m)] = found
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, HERE / "ratio.svg")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
