"""What the experiments share: a claim with its verdict, and the files that a run leaves."""

import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lrjax as lr

HERE = Path(__file__).parent
VERDICTS = ("holds", "fails", "not tested")
# Resamples of the interval of a median.
_RESAMPLES = 2000


def check(
    row: str,
    claim: str,
    *,
    predicted: Any,
    values: Any,
    low: float = -math.inf,
    high: float = math.inf,
    note: str = "",
) -> dict:
    """A claim about a number, tested: it holds if the median of `values` lies in `[low, high]`.

    Args:
        row: its short name, unique in the paper, such as `"T3.2 k=5"`.
        claim: what is claimed, one sentence.
        predicted: what theory, or an independent computation, says: a number or a few words.
        values: one number for each seed, or one number. NaN counts as a failure.
        low, high: what is accepted; say in `note` where the bounds come from if it is not plain.
        note: what a reader must know to believe the verdict.
    """
    values = np.atleast_1d(np.asarray(values, np.float64))
    measured = float(np.median(values)) if np.isfinite(values).all() else math.nan
    return {
        "row": row,
        "claim": claim,
        "predicted": predicted if isinstance(predicted, str) else float(predicted),
        "accepted": [float(low), float(high)],
        "measured": measured,
        "interval": interval(values),
        "seeds": int(values.size),
        "verdict": "holds" if low <= measured <= high else "fails",
        "note": note,
    }


def not_tested(row: str, claim: str, note: str) -> dict:
    """A claim that the experiment leaves alone; `note` says why."""
    return {"row": row, "claim": claim, "predicted": "", "accepted": None, "measured": None, "interval": None,
            "seeds": 0, "verdict": "not tested", "note": note}  # fmt: skip


def interval(values: Any) -> list[float] | None:
    """95 % bootstrap interval of the median over seeds; `None` for fewer than three."""
    values = np.asarray(values, np.float64).ravel()
    if values.size < 3 or not np.isfinite(values).all():
        return None
    draws = np.random.default_rng(0).choice(values, (_RESAMPLES, values.size))
    return [float(q) for q in np.quantile(np.median(draws, axis=1), (0.025, 0.975))]


def share_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson interval of a success rate."""
    z, p = 1.959964, successes / trials
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def slope(x: Any, y: Any) -> float:
    """Slope of the least-squares line."""
    return float(np.polyfit(np.asarray(x, np.float64), np.asarray(y, np.float64), 1)[0])


def run(key: str, experiment: Any, full: bool, folder: Path) -> dict:
    """Runs an experiment, writes `results.json` and its figures into `folder`, and returns the results."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with jax.enable_x64(True):
        claims, data = experiment.run(full)
    rows = [claim["row"] for claim in claims]
    if repeated := {row for row in rows if rows.count(row) > 1}:
        raise ValueError(f"papers/{key}: rows {sorted(repeated)} occur twice; each claim needs a name of its own")
    results = {
        "paper": key,
        "mode": "full" if full else "quick",
        "seconds": round(time.monotonic() - begun, 1),
        "versions": {"lrjax": version(), "jax": jax.__version__, "numpy": np.__version__},
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}, {jax.device_count()} device(s)",
        "claims": claims,
        "data": plain(data),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=1, allow_nan=True) + "\n")
    redraw(experiment, results, folder)
    return results


def redraw(experiment: Any, results: dict, folder: Path) -> None:
    """The figures, from saved data alone."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "lrjax", "svg.fonttype": "path"})  # the same data give the same file
    import matplotlib.pyplot as plt

    for name, figure in experiment.draw(results["data"]).items():
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def version() -> str:
    """Of the library; "source" if it is on the path without being installed."""
    try:
        return importlib.metadata.version(lr.__name__)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def plain(value: Any) -> Any:
    """Arrays and NumPy numbers as lists and numbers that JSON knows, to six digits."""
    if isinstance(value, dict):
        return {str(name): plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(np.asarray(value).tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value


def sentence(claim: dict) -> str:
    """One line for people."""
    number = lambda v: v if isinstance(v, str) else "-" if v is None else f"{v:.4g}"
    spread = "" if claim["interval"] is None else " [{:.4g}, {:.4g}]".format(*claim["interval"])
    text = f"{claim['verdict']:>10}  {claim['row']:<24} predicted {number(claim['predicted'])}"
    return f"{text}, measured {number(claim['measured'])}{spread}"


def table(claims: Sequence[dict]) -> str:
    """Claims as a Markdown table."""
    cell = lambda v: "" if v is None else v if isinstance(v, str) else f"{v:.4g}"
    rows = ["| row | claim | predicted | measured | 95 % interval | verdict |", "|---|---|---|---|---|---|"]
    for c in claims:
        spread = "" if c["interval"] is None else "{:.4g} to {:.4g}".format(*c["interval"])
        verdict = c["verdict"] if c["verdict"] == "holds" else f"**{c['verdict']}**"
        note = f" ({c['note']})" if c["note"] else ""
        cells = [c["row"], c["claim"] + note, cell(c["predicted"]), cell(c["measured"]), spread, verdict]
        rows.append("| " + " | ".join(str(v).replace("|", "\\|") for v in cells) + " |")
    return "\n".join(rows)


Experiment = Callable[[bool], tuple[list[dict], dict]]
