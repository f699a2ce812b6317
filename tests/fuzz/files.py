"""Files that are read, and the command line."""

import contextlib
import dataclasses
import gzip
import io
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import lrjax as lr
from lrjax.cli import tables
from lrjax.cli.main import main

from .core import KEY, TARGETS, Target

just, pick = st.just, st.sampled_from
_ENTRIES = [("u1", "i1", 4.5), ("u1", "i2", 3.0), ("u2", "i1", 1.5), ("u2", "i3", 2.0), ("u3", "i2", 5.0)]


@dataclasses.dataclass(frozen=True)
class File:
    """A table as bytes: well formed in one of several ways, then perhaps damaged."""

    kind: str = "csv"
    delimiter: str = ","
    header: str | None = None
    newline: str = "\n"
    encoding: str = "utf-8"
    quoted: bool = False
    packed: bool = False
    dtype: str = "int64"
    form: str = "plain"
    damage: tuple[str, int, int] | None = None
    replaced: tuple[int, str] | None = None  # a line, and what stands in its place

    def name(self) -> str:
        return f"table.{self.kind}" + (".gz" if self.packed else "")

    def content(self) -> bytes:
        data = self._npz() if self.kind == "npz" else self._text()
        data = gzip.compress(data, mtime=0) if self.packed else data
        return data if self.damage is None else self._damaged(data, self.damage)

    def _damaged(self, data: bytes, damage: tuple[str, int, int]) -> bytes:
        if not data:
            return data
        how, place, byte = damage
        place %= len(data)
        if how == "flip":
            return data[:place] + bytes([data[place] ^ (1 << byte % 8)]) + data[place + 1 :]
        if how == "set":
            return data[:place] + bytes([byte % 256]) + data[place + 1 :]
        if how == "cut":
            return data[:place]
        if how == "drop":
            return data[:place] + data[place + 1 + byte % 8 :]
        return data[:place] + data[place : place + 20] + data[place:]

    def _text(self) -> bytes:
        if self.kind == "mtx":
            lines = ["%%MatrixMarket matrix coordinate real general", "3 3 5"]
            lines += [f"{row[1:]} {col[1:]} {value}" for row, col, value in _ENTRIES]
        else:
            quote = (lambda text: f'"{text}"') if self.quoted else (lambda text: text)
            lines = [] if self.header is None else [self.header.replace(",", self.delimiter)]
            lines += [self.delimiter.join([quote(row), quote(col), str(value)]) for row, col, value in _ENTRIES]
        if self.replaced is not None:
            lines[self.replaced[0] % len(lines)] = self.replaced[1]
        return (self.newline.join(lines) + self.newline).encode(self.encoding, "replace")

    def _npz(self) -> bytes:
        file = io.BytesIO()
        rows = np.array([int(row[1:]) - 1 for row, _, _ in _ENTRIES], self.dtype)
        cols = np.array([int(col[1:]) - 1 for _, col, _ in _ENTRIES])
        values = np.array([value for _, _, value in _ENTRIES])
        if self.form == "plain":
            np.savez(file, rows=rows, cols=cols, values=values)
        else:
            from scipy import sparse

            matrix = sparse.coo_array((values, (rows.astype(int), cols)), shape=(3, 3))
            sparse.save_npz(file, getattr(matrix, f"to{self.form}")())
        return file.getvalue()

    def build(self) -> "File":
        return self


_LINES = [
    "", " ", "u1,i1,4..5", "u1,i1,1,5", "u1,i1,1.234,5", "u1,i1,50%", "u1,i1,$5", "u1,i1,2020-01-01", "u1,i1,N/A",
    "u1,i1,", "u1,i1,nan", "u1,i1,inf", "u1,i1,1e999", "u1,i1", "u1", ",,", "u1,,3", '"u1,i1,3', "# comment",
    "u1,i1,3 # comment",
    "u1::i1::3", "u1 i1 3", "u1,i1,0x10", "u1,i1,1_000", "u1,i1,٣", "ü1,i1,3", "u1,i1,3,978300760",
    "9" * 400 + ",i1,3",
    "x" * 140000 + ",i1,3", "u1,i1,3\x00", "u1;i1;3,5", "3 3 99999999999999999999999", "1" + "0" * 5000 + " 3 5",
    "0 0 1.0", "1 1 nan", f"{2**70} 1 1.0",
    "1000000000000000000000000000000 1000000000000000000000000000000 5", "1 1",
    "2000000000 3 5",
]  # fmt: skip
_plain_files = st.one_of(
    st.builds(
        File,
        just("csv"),
        pick([",", "\t", ";"]),
        pick([None, "user,item,rating", "rows,cols,values", ",user,item", "userId,movieId,rating"]),
        pick(["\n", "\r\n"]),
        pick(["utf-8", "utf-8-sig"]),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(File, just("mtx"), packed=st.booleans()),
    st.builds(
        File,
        just("npz"),
        dtype=pick(["int64", "int32", "uint8", "uint64", ">i8"]),
        form=pick(["plain", "coo", "csr", "csc"]),
    ),
)
_damages = st.tuples(pick(["flip", "set", "cut", "drop", "repeat"]), st.integers(0, 2000), st.integers(0, 255))


@st.composite
def _files(draw: Any) -> File:
    file = draw(_plain_files)
    what = draw(st.integers(0, 3))
    if what == 1:
        return dataclasses.replace(file, damage=draw(_damages))
    if what == 2 and file.kind != "npz":
        return dataclasses.replace(file, replaced=(draw(st.integers(0, 6)), draw(pick(_LINES))))
    if what == 3 and file.kind == "csv":
        return dataclasses.replace(
            file,
            encoding=draw(pick(["utf-8", "latin-1", "utf-16", "utf-8-sig", "utf-16-le"])),
            delimiter=draw(pick(["::", " ", "|", ",", ";", "\t"])),
        )
    return file


def _read(file: File) -> Any:
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / file.name()
        path.write_bytes(file.content())
        table = tables.read_entries(path)
        return {
            "entries": sorted(
                (str(table.row_ids[i]), str(table.col_ids[j]), float(v))
                for i, j, v in zip(table.rows, table.cols, table.values, strict=True)
            )
        }
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    finally:
        shutil.rmtree(folder)


def _as_written(result: Any, given: dict) -> list[str]:
    """Entries of a whole file are those that were written; a damaged one may read otherwise, but not as if whole."""
    file = given["file"]
    if file.kind == "npz" or (file.kind == "csv" and file.packed and file.damage):
        strip = lambda name: str(int(name[1:]) - 1)
    else:
        strip = (lambda name: name[1:]) if file.kind == "mtx" else (lambda name: name)
    expected = sorted((strip(row), strip(col), value) for row, col, value in _ENTRIES)
    if file.damage is None and file.replaced is None and result["entries"] != expected:
        return [f"{len(expected)} entries were written and others were read: {result['entries'][:6]}"]
    if file.replaced is not None and len(result["entries"]) < len(expected) - 1 + bool(file.replaced[1].strip()):
        if file.header is None and not file.replaced[1].lstrip().startswith("#"):
            return [f"the line {file.replaced[1][:30]!r} was lost without a word"]
    return []


TARGETS["read"] = Target(
    "read",
    "files",
    st.fixed_dictionaries({"file": _files()}),
    _read,
    names=("table.", "line"),
    look=_as_written,
    examples=30,
)

# --- the command line ---

_FILE = File()
_FLAGS = [
    ["--ridge", "0.1"], ["--ridge", "-1"], ["--ridge", "nan"], ["--ridge", "x"],
    ["--holdout", "0"], ["--holdout", "0.5"],
    ["--holdout", "2"], ["--holdout", "nan"], ["--steps", "3"], ["--steps", "0"], ["--steps", "-1"], ["--steps", "1.5"],
    ["--seed", "-1"], ["--seed", str(2**63)], ["--seed", "x"], ["--duplicates", "sum"], ["--duplicates", "x"],
    ["--no-biases"], ["--overwrite"], ["--predict", "pairs.csv"], ["--predict", "missing.csv"], ["--predict", "."],
    ["--rank", "0"], ["--rank", "9"], ["--rank", "-1"], ["--rank", "x"], ["--rank", "1"], ["--nonsense"], ["more"],
    ["--out", "file"], ["--out", "file/below"], ["--out", "x" * 300], ["--out", ""], ["--out", "full"],
    ["--out", "dangling"],
    ["--out", "a\x00b"], ["--out", "half"],
]  # fmt: skip
_PAIRS = [
    "u1,i1\n", "row,column\nu1,i1\n", "u1,i9\n", "u9,i1\nu1,i1\n", "\ufeffu1,i1\nu2,i1\n", "u1\ti1\n", "u1\n",
    "", "\n\n",    '"u1","i1"\n', "u1,i1,3\n", "u1,i1\u2028u2,i1\n", "u1;i1\n",
]  # fmt: skip
_WHOLE = {"factors.npz", "rows.csv", "cols.csv", "predictions.csv"}


@st.composite
def _commands(draw: Any) -> dict[str, Any]:
    flags = [draw(pick(_FLAGS)) for _ in range(draw(st.integers(0, 2)))]
    return {
        "command": [word for flag in flags for word in flag],
        "file": draw(st.one_of(just(_FILE), just(_FILE), _files())),
        "pairs": draw(pick(_PAIRS)),
        "table": draw(pick(["table", "table", "table", "missing", "folder"])),
    }


def _run(command: list[str], file: File, pairs: str, table: str) -> dict[str, Any]:
    """Runs `lrjax complete` in a folder of its own; what it said, and which files there are before and after."""
    folder, before = Path(tempfile.mkdtemp()), os.getcwd()
    os.chdir(folder)
    try:
        name = {"table": file.name(), "missing": "missing.csv", "folder": "folder"}[table]
        Path("folder").mkdir()
        Path(file.name()).write_bytes(file.content())
        Path("pairs.csv").write_text(pairs, encoding="utf-8")
        Path("file").write_text("a file")
        Path("half").mkdir()
        Path("half/rows.csv").write_text("old")
        Path("full").mkdir()
        for one in _WHOLE:
            (Path("full") / one).write_text("old")
        Path("dangling").mkdir()
        Path("dangling/rows.csv").symlink_to(folder / "elsewhere.csv")
        words = ["complete", name, "--rank", "1", "--out", "out", "--steps", "3", *command]
        said = io.StringIO()
        code: Any = None
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = main(words)
            except SystemExit as stop:
                code = stop.code
        wrong = []
        if code not in (0, 1, 2) or (code and not said.getvalue().strip()):
            wrong.append(f"exit code {code!r} with the text {said.getvalue()[-200:]!r}")
        if Path("elsewhere.csv").exists():
            wrong.append("a dangling link was written through")
        for out in ("out", "half", "full", "file", "dangling"):
            if not Path(out).is_dir():
                continue
            new = {p.name for p in Path(out).iterdir() if p.is_file() and p.read_bytes() != b"old"}
            if new and new != _WHOLE:
                wrong.append(f"part of the files were written: {sorted(new)}")
            if new and code:
                wrong.append(f"exit code {code} after files were written")
        return {"wrong": wrong}
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


TARGETS["command"] = Target(
    "command", "files", _commands(), _run, names=(), look=lambda result, given: result["wrong"], examples=3
)


@st.composite
def _plans(draw: Any) -> dict[str, Any]:
    return {"which": draw(st.integers(0, 1)), "damage": draw(st.none() | _damages), "words": draw(pick(_WORDS))}


_WORDS = [None, ("grid", "{}"), ("trials", "-1"), ("trials", '"x"'), ("trials", "99999999999"), ("static", "[3]"),
          ("static", "3"),
          ("coords", "[]"), ("coords", "{}"), ("coords", "3"), ("trials", "null"), ("coords", "[" * 3000)]  # fmt: skip


def _loaded(which: int, damage: Any, words: Any) -> Any:
    folder = Path(tempfile.mkdtemp())
    try:
        lr.sweep(
            lambda key, level: {"x": level}, KEY, grid={"level": [0.1, 0.2]}, num_trials=2, progress=False,
            checkpoint=folder,
        )  # fmt: skip
        files = [folder / "plan.json", next(folder.glob("part-*.npz"))]
        data = files[which].read_bytes()
        if words is not None:
            text = files[0].read_text()
            text = re.sub(rf'("{words[0]}": )(\[[^\]]*\]|[^,\n]*)', lambda m: m[1] + words[1], text, count=1)
            files[0].write_text(text)
        elif damage is not None:
            files[which].write_bytes(dataclasses.replace(_FILE, damage=None)._damaged(data, damage))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is damaged.*")
            table = lr.load_sweep(folder)
        return np.asarray(table["x"].values)
    finally:
        shutil.rmtree(folder)


TARGETS["load_sweep"] = Target(
    "load_sweep", "files", _plans(), _loaded, names=("plan", "checkpoint", "tmp"), examples=5
)
