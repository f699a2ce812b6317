"""`lrjax demo`: three recoveries, a table and a figure."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import lrjax as lr

SEED = 0


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Prints rows of text in aligned columns, the first row underlined."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def demo(figure_path: str) -> int:
    """`lrjax demo`: a real table, a real photograph and a planted matrix; prints a table and writes one figure."""
    started = time.perf_counter()
    _check_figure(Path(figure_path))
    panels = []
    lines = [("problem", "solver", "baseline", "seconds")]
    with tqdm(total=3, desc="demo", unit="part") as bar:
        for part in (_demo_table, _demo_photograph, _demo_sensing):
            bar.set_description(f"demo: {part.__doc__}")
            start = time.perf_counter()
            line, draw = part()
            lines.append((*line, f"{time.perf_counter() - start:.1f}"))
            panels.append(draw)
            bar.update()
    print()
    print_table(lines)
    path = _draw(panels, figure_path)
    print(f"\nfigure: {path.resolve()}  ({time.perf_counter() - started:.0f} s in all)")
    return 0


def _check_figure(path: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"--out {path}: expected a name that ends in one of .{', .'.join(known)}")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--out {path}: expected a file in a folder that is there")


Part = tuple[tuple[str, str, str], Callable[[Iterator[Any]], None]]


def _demo_table() -> Part:
    """a real incomplete table"""
    try:
        table, rank, ridge = lr.datasets.movielens_100k(), 5, 10.0
        unit = "stars"
    except FileNotFoundError:
        table, rank, ridge = lr.datasets.elevation_ratings(0.2, SEED), 10, 100.0
        unit = "metres"
    done = lr.complete(
        table.rows,
        table.cols,
        table.values.astype(np.float32),
        table.shape,
        rank=rank,
        key=jax.random.key(SEED),
        num_steps=20,
        ridge=ridge,
        biases=True,
        holdout=0.1,
        progress=True,
    )
    done.solution.check()
    low_rank, baseline = float(done.holdout_rmse), float(done.baseline_rmse)
    line = (
        f"{table.name}: {len(table.values):,} entries, 10 % held out",
        f"rank {rank}: RMSE {low_rank:.3f} {unit}",
        f"biases only: {baseline:.3f}",
    )

    def draw(axes: Iterator[Any]) -> None:
        ax = next(axes)
        values = {f"rank {rank}\n+ biases": low_rank, "biases\nonly": baseline}
        lr.plot.bars(values, xlabel=f"held-out RMSE ({unit})", ax=ax)
        ax.set_title(f"{table.name}: held-out error")

    return line, draw


def _demo_photograph() -> Part:
    """a photograph from 40 % of its pixels, a tenth of them wrong"""
    image, source = lr.datasets.photograph(256)
    rng = np.random.default_rng(SEED)
    rows, cols = np.nonzero(rng.random(image.shape) < 0.4)
    seen = image[rows, cols]
    wrong = rng.random(len(seen)) < 0.1
    seen = np.where(wrong, rng.integers(0, 2, len(seen)), seen).astype(np.float32)
    operator, y = lr.operators.SampledEntries.build(rows, cols, seen - np.float32(0.5), image.shape)

    def recover(loss: Any, rank: int, ridge: float) -> np.ndarray:
        solver = lr.AlternatingMinimization(max_rank=rank, ridge=ridge, orthonormalize=False)
        solution = lr.solve(lr.Problem(operator, y, None, loss), solver, jax.random.key(SEED), num_steps=60)
        return np.clip(np.asarray(solution.check().factors.dense()) + 0.5, 0, 1)

    # Each with the best of a grid of ranks and ridges tried on this picture, the unrobust one too.
    robust, plain = recover(lr.losses.Huber(0.02), 20, 0.1), recover(lr.losses.Squared(), 5, 0.3)
    psnr = lambda x: -10 * np.log10(np.mean((x - image) ** 2))
    observed = np.full(image.shape, np.nan)
    observed[rows, cols] = seen
    line = (
        f"photograph {image.shape[0]} x {image.shape[1]}, 40 % of pixels, a tenth of them wrong",
        f"Huber loss: {psnr(robust):.1f} dB",
        f"squared loss: {psnr(plain):.1f} dB",
    )

    def draw(axes: Iterator[Any]) -> None:
        pictures = (
            (image, f"photograph\n({source.split(',')[0]})"),
            (observed, "observed: 40 % of pixels,\na tenth of them wrong"),
            (plain, f"squared loss, rank 5:\n{psnr(plain):.1f} dB"),
            (robust, f"Huber loss, rank 20:\n{psnr(robust):.1f} dB"),
        )
        for picture, title in pictures:
            lr.plot.image(picture, title=title, limits=(0, 1), ax=next(axes))

    return line, draw


def _demo_sensing() -> Part:
    """a planted matrix from measurements with 30 % outliers"""
    n, rank = 50, 3
    key = jax.random.key(SEED)
    problem, truth = lr.synthetic.matrix_sensing(
        key, shape=(n, n), rank=rank, num_measurements=20 * n * rank, symmetric=True, corruption=0.3
    )
    robust = lr.SubgradientMethod(max_rank=n, symmetric=True)
    solution = lr.solve(problem, robust, key, num_steps=400, record_every=4, truth=truth)
    squared = lr.Problem(problem.operator, problem.y)
    descent = lr.GradientDescent(max_rank=n, symmetric=True)
    plain = lr.solve(squared, descent, key, num_steps=400, record_every=4, truth=truth)
    errors = [float(s.trace["relative_error"][-1]) for s in (solution, plain)]
    line = (
        f"{n} x {n}, rank {rank}, {len(problem.y)} measurements, 30 % outliers, search rank {n}",
        f"subgradient method: error {errors[0]:.1e}",
        f"squared loss: {errors[1]:.1e}",
    )

    def draw(axes: Iterator[Any]) -> None:
        ax = next(axes)
        lr.plot.convergence(plain, label="gradient descent, squared loss", ax=ax)
        lr.plot.convergence(solution, label="subgradient method, absolute loss", ax=ax)
        ax.set_title(f"30 % outliers, search rank {n}, true rank {rank} (float32)")
        ax.legend()

    return line, draw


def _draw(panels: list[Callable[[Iterator[Any]], None]], path: str) -> Path:
    """One figure: the four pictures above, the error of the table and the convergence below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table, pictures, sensing = panels
    with lr.plot.style():
        figure = plt.figure(figsize=(13, 7.6), layout="constrained")
        grid = figure.add_gridspec(2, 4, height_ratios=(1.15, 1))
        pictures(iter([figure.add_subplot(grid[0, i]) for i in range(4)]))
        table(iter([figure.add_subplot(grid[1, :2])]))
        sensing(iter([figure.add_subplot(grid[1, 2:])]))
        figure.savefig(path, dpi=130)
        plt.close(figure)
    return Path(path)
