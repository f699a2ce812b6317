"""The command line: `lrjax demo` and `lrjax complete FILE`."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import lrjax as lr
from lrjax import _results, _tables

SEED = 0


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lrjax", description="Low-rank matrix recovery and sensing in JAX.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo_parser = commands.add_parser("demo", help="three recoveries on real and planted data, a table and a figure")
    demo_parser.add_argument("--out", default="lrjax_demo.png", help="figure to write (default: %(default)s)")
    fill = commands.add_parser("complete", help="complete your own table: CSV, TSV, .npz or MatrixMarket")
    fill.add_argument("file", help="row, column, value per line; or .npz; or .mtx (each also .gz)")
    fill.add_argument("--rank", type=int, required=True, help="columns of the factors")
    fill.add_argument("--out", required=True, help="directory for factors.npz, rows.csv, cols.csv, predictions.csv")
    fill.add_argument("--ridge", type=float, default=10.0, help="penalty on the factors (default: %(default)s)")
    fill.add_argument("--no-biases", action="store_true", help="do not fit the mean and row and column offsets")
    fill.add_argument(
        "--holdout", type=float, default=0.1, help="fraction held out for the error (default: %(default)s)"
    )
    fill.add_argument("--steps", type=int, default=30, help="sweeps at most (default: %(default)s)")
    fill.add_argument("--seed", type=int, default=SEED, help="seed of the split and the start (default: %(default)s)")
    fill.add_argument("--duplicates", choices=("refuse", "sum", "mean"), default="refuse", help="repeated entries")
    fill.add_argument("--predict", help="CSV of row, column to predict (default: the held-out or given entries)")
    fill.add_argument("--overwrite", action="store_true", help="replace files in --out")
    given = parser.parse_args(arguments)
    try:
        return demo(given.out) if given.command == "demo" else complete_file(given)
    except (ValueError, FileNotFoundError, FileExistsError, lr.status.SolveError) as error:
        print(f"lrjax {given.command}: {error}", file=sys.stderr)
        return 1


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Prints rows of text in aligned columns, the first row underlined."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def complete_file(given: argparse.Namespace) -> int:
    """`lrjax complete`: entries from a file, factors and predictions into a directory."""
    table = _tables.read_entries(given.file)
    print(f"{given.file}: {table.shape[0]} x {table.shape[1]}, {len(table.values)} entries")
    started = time.perf_counter()
    done = lr.complete(
        table.rows,
        table.cols,
        table.values.astype(np.float32),
        table.shape,
        rank=given.rank,
        key=jax.random.key(given.seed),
        num_steps=given.steps,
        ridge=given.ridge,
        biases=not given.no_biases,
        holdout=given.holdout,
        duplicates=given.duplicates,
        progress=True,
    )
    done.solution.check()
    rows, cols = table.rows, table.cols
    if given.predict:
        rows, cols = _pairs(given.predict, table)
    paths = _results.write_result(
        given.out,
        left=done.factors.left,
        right=done.factors.right,
        row_ids=table.row_ids,
        col_ids=table.col_ids,
        rows=rows,
        cols=cols,
        predictions=done.predict(rows, cols),
        extra={"offset": done.offset, "row_bias": done.row_bias, "col_bias": done.col_bias},
        overwrite=given.overwrite,
    )
    lines = [("RMSE", "held out", "used")]
    lines.append(("rank " + str(given.rank), f"{float(done.holdout_rmse):.4f}", f"{float(done.train_rmse):.4f}"))
    lines.append(("biases only", f"{float(done.baseline_rmse):.4f}", ""))
    print_table(lines)
    short = int(done.rows_short.sum()), int(done.cols_short.sum())
    if sum(short):
        print(
            f"{short[0]} rows and {short[1]} columns have fewer entries than the rank: do not trust their predictions"
        )
    print(f"{time.perf_counter() - started:.1f} s; wrote " + ", ".join(str(path) for path in paths.values()))
    return 0


def _pairs(path: str, table: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, as positions in the table, of a CSV of `row,column` ids."""
    row_at = {str(name): i for i, name in enumerate(table.row_ids)}
    col_at = {str(name): i for i, name in enumerate(table.col_ids)}
    rows, cols = [], []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        cells = [cell.strip() for cell in line.split(",")]
        if not line.strip() or (number == 1 and len(cells) >= 2 and cells[0] not in row_at):
            continue
        if len(cells) < 2 or cells[0] not in row_at or cells[1] not in col_at:
            raise ValueError(
                f"{path}, line {number}: {line!r} is not a row and a column id of the table, as in 'u1,i7'"
            )
        rows.append(row_at[cells[0]])
        cols.append(col_at[cells[1]])
    return np.array(rows, np.int64), np.array(cols, np.int64)


def demo(figure_path: str) -> int:
    """`lrjax demo`: a real table, a real photograph and a planted matrix; prints a table and writes one figure."""
    started = time.perf_counter()
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


if __name__ == "__main__":
    sys.exit(main())
