"""The command line: `lrjax demo` and `lrjax complete FILE`."""

import argparse
import dataclasses
import importlib.metadata
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import lrjax as lr
from lrjax import _delimited, _entries, _results, _tables

SEED = 0
# Ridges that are tried, times the ridge at which noise of the size of the values alone would leave no column.
RIDGES = (1.0, 0.5, 0.2, 0.1, 0.03, 0.01, 0.001)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 after an error, which is told in one line."""
    given = _parser().parse_args(arguments)
    try:
        return demo(given.out) if given.command == "demo" else complete_file(given)
    except (ValueError, OSError, MemoryError, lr.status.SolveError) as error:
        print(f"lrjax {given.command}: {_told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"lrjax {given.command}: interrupted", file=sys.stderr)
        return 130


def _told(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lrjax", description="Low-rank matrix recovery and sensing in JAX.")
    parser.add_argument("--version", action="version", version=f"lrjax {_version()}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo_parser = commands.add_parser("demo", help="three recoveries on real and planted data, a table and a figure")
    demo_parser.add_argument("--out", default="lrjax_demo.png", help="figure to write (default: %(default)s)")
    fill = commands.add_parser("complete", help="complete your own table: CSV, TSV, .npz or MatrixMarket")
    fill.add_argument("file", help="row, column, value per line; or .npz; or .mtx (each but .npz also .gz)")
    fill.add_argument("--rank", type=_count, required=True, help="columns of the factors")
    fill.add_argument("--out", required=True, help="folder for factors.npz, rows.csv, cols.csv, predictions.csv")
    chosen = f"of {len(RIDGES)} the one that predicts the held-out entries best"
    fill.add_argument(
        "--ridge", type=_between(0, 1e30), help=f"penalty on the factors, in the unit of the values (default: {chosen})"
    )
    fill.add_argument("--no-biases", action="store_true", help="do not fit the mean and row and column offsets")
    fill.add_argument(
        "--holdout", type=_between(0, 0.9), default=0.1, help="fraction held out for the error (default: %(default)s)"
    )
    fill.add_argument("--steps", type=_count, default=30, help="sweeps at most (default: %(default)s)")
    fill.add_argument("--seed", type=_seed, default=SEED, help="seed of the split and the start (default: %(default)s)")
    fill.add_argument("--duplicates", choices=("refuse", "sum", "mean"), default="refuse", help="repeated entries")
    fill.add_argument(
        "--predict", metavar="FILE", help="pairs of row and column to predict (default: the given entries)"
    )
    fill.add_argument(
        "--predict-row", metavar="ROW", action="append", help="predict every column of this row; repeatable"
    )
    fill.add_argument(
        "--columns",
        type=_columns,
        metavar="ROW,COLUMN,VALUE",
        help="which columns of a text file: names, or positions from 1",
    )
    fill.add_argument(
        "--separator",
        type=_separator,
        help="between the fields of a text file: a sign, tab or space (default: found out)",
    )
    fill.add_argument("--decimal", choices=(".", ","), default=".", help="decimal sign (default: a point)")
    fill.add_argument("--encoding", help="of text files (default: UTF-8)")
    fill.add_argument("--overwrite", action="store_true", help="replace files in --out")
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("lrjax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _separator(text: str) -> str:
    sign = {"tab": "\t", "\\t": "\t", "space": " "}.get(text, text)
    if not sign or any(c in sign for c in '"\r\n'):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a sign such as ; or ::, or the word tab or space")
    return sign


def _count(text: str) -> int:
    if not (text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"got {text[:50]!r}; expected a whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not (text.isdecimal() and len(text) < 12 and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"got {text[:50]!r}; expected a whole number from 0 to 2^32 - 1")
    return int(text)


def _between(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = _delimited.number(text)
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"got {text[:50]!r}; expected a number from {low} to {high}")
        return value

    return read


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    positions = [name.isdecimal() for name in names]
    if len(names) != 3 or len(set(names)) < 3 or not all(names) or any(positions) != all(positions) or "0" in names:
        raise argparse.ArgumentTypeError(
            f"got {text[:100]!r}; expected three names, such as user,item,rating, or three positions from 1"
        )
    return names


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Prints rows of text in aligned columns, the first row underlined."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def complete_file(given: argparse.Namespace) -> int:
    """`lrjax complete`: entries from a file, factors and predictions into a directory."""
    started = time.perf_counter()
    # Everything that can be wrong is found out before the work.
    _results.check_directory(given.out, overwrite=given.overwrite)
    _check_inputs(given)
    form = _delimited.Format(given.separator, given.columns, given.decimal, given.encoding)
    read = _tables.read_entries(given.file, form)
    table = _merged(given, read)
    rows, cols = _asked(given, read, form)
    print(f"{given.file}: {table.shape[0]} x {table.shape[1]}, {len(table.values)} entries")
    if table.comments:
        print(f"left out {table.comments} line(s) at the head that begin with #")
    if table.header:
        print(f"read the columns {', '.join(table.header)} of the header")

    lines = []
    ridge, measured = given.ridge, None
    if given.holdout:
        ridge, measured = _choose_ridge(given, table)
        lines = [
            ("RMSE", "held out", "used"),
            (f"rank {given.rank}", f"{float(measured.holdout_rmse):.4g}", f"{float(measured.train_rmse):.4g}"),
            ("biases only", f"{float(measured.baseline_rmse):.4g}", ""),
        ]
    done = _complete(given, table, ridge, holdout=0.0, progress=True)
    done.solution.check()
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
    if measured is not None:
        print_table(lines)
        count = len(table.values) - len(measured.seen.rows)
        best = "" if given.ridge is not None else f", of {len(RIDGES)} ridges the best for them"
        print(f"{count} entries were held out for this; ridge {ridge:.4g}{best}")
    print(
        f"factors and predictions: fitted to all {len(table.values)} entries, RMSE {float(done.train_rmse):.4g} on them"
    )
    short = int(done.rows_short.sum()), int(done.cols_short.sum())
    if sum(short):
        print(
            f"{short[0]} rows and {short[1]} columns have fewer entries than the rank: do not trust their predictions"
        )
    print(f"{time.perf_counter() - started:.1f} s; wrote " + ", ".join(str(path) for path in paths.values()))
    return 0


def _check_inputs(given: argparse.Namespace) -> None:
    for path in filter(None, (given.file, given.predict)):
        for name in _results.NAMES:
            there = Path(given.out) / name
            if there.exists() and Path(path).exists() and there.samefile(path):
                raise ValueError(f"{path}: would be replaced by the result; choose another --out")


def _merged(given: argparse.Namespace, table: lr.datasets.Ratings) -> lr.datasets.Ratings:
    """The table with every entry once; what it and the options do not allow together is refused."""
    if given.rank > min(table.shape):
        size = f"{table.shape[0]} x {table.shape[1]}"
        raise ValueError(f"--rank {given.rank}: {given.file} is {size}, so at most {min(table.shape)}")
    order, fresh = _entries.distinct(table.rows, table.cols)
    if given.duplicates == "refuse" and not fresh.all():
        again = order[int(np.flatnonzero(~fresh)[0])]
        row, col = table.row_ids[table.rows[again]], table.col_ids[table.cols[again]]
        raise ValueError(
            f"{given.file}: {int((~fresh).sum())} entries are given more than once, the first at row {row}, column "
            f"{col}; merge them with --duplicates sum or --duplicates mean"
        )
    rows, cols, values, _ = _entries.merge(table.rows, table.cols, table.values, None, given.duplicates)
    largest, single = np.abs(values).max(), np.finfo(np.float32)
    if largest > single.max or 0 < largest < single.tiny:
        raise ValueError(
            f"{given.file}: the largest value is {largest:.3g}; single precision reaches from {single.tiny:.2g} to "
            f"{single.max:.2g}. Multiply the values by a power of ten"
        )
    if given.holdout == 0 and given.ridge is None:
        raise ValueError("--holdout 0 leaves nothing to choose the ridge by; give --ridge too")
    if given.holdout and len(values) < 2:
        raise ValueError(f"{given.file}: one entry, and --holdout {given.holdout} would take it; give --holdout 0")
    return dataclasses.replace(table, rows=rows, cols=cols, values=values)


def _asked(given: argparse.Namespace, table: lr.datasets.Ratings, form: _delimited.Format) -> tuple[Any, Any]:
    """Rows and columns of the pairs to predict, as positions in the table: by default those given, in their order."""
    rows, cols = [], []
    if given.predict:
        pairs = _delimited.read_pairs(Path(given.predict), table, form)
        rows.append(pairs[0])
        cols.append(pairs[1])
    row_at = {str(name): i for i, name in enumerate(table.row_ids.tolist())} if given.predict_row else {}
    for name in given.predict_row or ():
        if name not in row_at:
            some = ", ".join(itertools.islice(row_at, 3))
            raise ValueError(f"--predict-row {name}: {given.file} has no such row; it has {some}, ...")
        rows.append(np.full(table.shape[1], row_at[name]))
        cols.append(np.arange(table.shape[1]))
    if not rows:
        order, fresh = _entries.distinct(table.rows, table.cols)
        first = np.sort(order[fresh])
        return table.rows[first], table.cols[first]
    return np.concatenate(rows), np.concatenate(cols)


def _complete(given: argparse.Namespace, table: lr.datasets.Ratings, ridge: float, **settings: Any) -> lr.Completion:
    return lr.complete(
        table.rows,
        table.cols,
        table.values.astype(np.float32),
        table.shape,
        rank=given.rank,
        key=jax.random.key(given.seed),
        num_steps=given.steps,
        ridge=ridge,
        biases=not given.no_biases,
        **settings,
    )


def _choose_ridge(given: argparse.Namespace, table: lr.datasets.Ratings) -> tuple[float, lr.Completion]:
    """The ridge given, or the one of a ladder with the least held-out error; and the fit without those entries.

    The ladder hangs from `s (sqrt(m / n1) + sqrt(m / n2))`, about the largest singular value of the given entries if
    they were noise of standard deviation `s`: in any unit it is the same ladder.
    """
    ridges = [given.ridge]
    if given.ridge is None:
        values = table.values if given.no_biases else table.values - table.values.mean()
        unit = np.abs(values).max() or 1.0
        spread = unit * (np.sqrt(np.mean((values / unit) ** 2)) or 1.0)
        ridges = [share * spread * sum(math.sqrt(len(values) / n) for n in table.shape) for share in RIDGES]
    best = None
    with tqdm(ridges, desc="holding out", bar_format="{desc}: fit {n_fmt} of {total_fmt}", leave=None) as bar:
        for ridge in bar:
            done = _complete(given, table, ridge, holdout=given.holdout)
            error = float(done.holdout_rmse)
            if best is None or error < best[0] or not math.isfinite(best[0]):
                best = error, ridge, done
    assert best is not None
    best[2].solution.check()
    return best[1], best[2]


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


if __name__ == "__main__":
    sys.exit(main())
