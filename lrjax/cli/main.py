"""The command line: `lrjax demo` and `lrjax complete FILE`."""

import argparse
import dataclasses
import importlib.metadata
import itertools
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import lrjax as lr
from lrjax.cli import cache, delimited, demo, results, tables
from lrjax.completion import entries

# Ridges that are tried, times the ridge at which noise of the size of the values alone would leave no column.
RIDGES = (1.0, 0.5, 0.2, 0.1, 0.03, 0.01, 0.001)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0, or 2 after an error, which is told in one line."""
    given = _parser().parse_args(arguments)
    try:
        with cache.kept_programs(cache.chosen_folder(given.cache)):
            return demo.demo(given.out) if given.command == "demo" else complete_file(given)
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
    fill.add_argument("--seed", type=_seed, default=0, help="seed of the split and the start (default: %(default)s)")
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
    for command in (demo_parser, fill):
        command.add_argument(
            "--cache",
            metavar="FOLDER",
            help=f"where compiled programs are kept for the next run, or off (default: {cache.VARIABLE}, else the "
            "user's cache folder)",
        )
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
        value = delimited.number(text)
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


def complete_file(given: argparse.Namespace) -> int:
    """`lrjax complete`: entries from a file, factors and predictions into a directory."""
    started = time.perf_counter()
    # Everything that can be wrong is found out before the work.
    results.check_directory(given.out, overwrite=given.overwrite)
    _check_inputs(given)
    form = delimited.Format(given.separator, given.columns, given.decimal, given.encoding)
    read = tables.read_entries(given.file, form)
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
    paths = results.write_result(
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
        demo.print_table(lines)
        count = len(table.values) - len(measured.seen.rows)
        best = "" if given.ridge is not None else f", of {len(RIDGES)} ridges the best for them"
        print(f"{count} entries were held out for this; ridge {ridge:.4g}{best}")
        if not float(measured.holdout_rmse) < float(measured.baseline_rmse):
            print("the columns predict them no better than offsets alone do: try another rank")
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
        for name in results.NAMES:
            there = Path(given.out) / name
            if there.exists() and Path(path).exists() and there.samefile(path):
                raise ValueError(f"{path}: would be replaced by the result; choose another --out")


def _merged(given: argparse.Namespace, table: lr.datasets.Ratings) -> lr.datasets.Ratings:
    """The table with every entry once; what it and the options do not allow together is refused."""
    if given.rank > min(table.shape):
        size = f"{table.shape[0]} x {table.shape[1]}"
        raise ValueError(f"--rank {given.rank}: {given.file} is {size}, so at most {min(table.shape)}")
    order, fresh = entries.distinct(table.rows, table.cols)
    if given.duplicates == "refuse" and not fresh.all():
        again = order[int(np.flatnonzero(~fresh)[0])]
        row, col = table.row_ids[table.rows[again]], table.col_ids[table.cols[again]]
        raise ValueError(
            f"{given.file}: {int((~fresh).sum())} entries are given more than once, the first at row {row}, column "
            f"{col}; merge them with --duplicates sum or --duplicates mean"
        )
    rows, cols, values, _ = entries.merge(table.rows, table.cols, table.values, None, given.duplicates)
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


def _asked(given: argparse.Namespace, table: lr.datasets.Ratings, form: delimited.Format) -> tuple[Any, Any]:
    """Rows and columns of the pairs to predict, as positions in the table: by default those given, in their order."""
    rows, cols = [], []
    if given.predict:
        pairs = delimited.read_pairs(Path(given.predict), table, form)
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
        order, fresh = entries.distinct(table.rows, table.cols)
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
