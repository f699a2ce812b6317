"""Files of the command line: a user's entries in, factors and predictions out. NumPy only."""

import contextlib
import csv
import gzip
import math
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np

from lrjax.datasets import Ratings

_EXPECTED = "row, column, value, separated by commas, tabs or semicolons"
# Tabs before semicolons before commas: a comma may be part of a name or a decimal sign, a tab hardly ever.
_DELIMITERS = ("\t", ";", ",")
_REAL_FIELDS = ("real", "double", "integer", "unsigned-integer")


def read_entries(path: str | Path) -> Ratings:
    """Reads the entries of an incomplete table.

    The suffix decides: `.npz`, `.mtx`, and for anything else delimited text. `.gz` may follow the last two.

    - Text: one entry a line as row, column, value, and further fields that are ignored; commas, tabs or
      semicolons, UTF-8, quotes allowed. Row and column names are any text, coded in order of first
      appearance. The first line is a header if its third field is neither empty nor a number.
    - `.npz`: arrays `rows`, `cols`, `values` (and `shape`), or a coo, csr or csc matrix as SciPy saves it.
    - `.mtx`: MatrixMarket, coordinate, real or integer, general or symmetric (which is expanded).

    A stored zero is an observed zero, and an entry that occurs twice is kept twice.

    Args:
        path: of the file.

    Returns:
        `Ratings` in the order of the file. Ids are text for delimited files, 0-based numbers for `.npz`
        and 1-based numbers for `.mtx`, so that they are what the file says.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not as described; names the file, the line and the text seen.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if packed else suffixes)[-1:]
    if kind == [".npz"]:
        if packed:
            raise ValueError(f"{path}: an .npz file is compressed already; unpack the .gz first")
        return _read_npz(path)
    with _text(path, packed) as file:
        return _read_matrix_market(path, file) if kind == [".mtx"] else _read_delimited(path, file)


def write_result(
    directory: str | Path,
    *,
    left: Any,
    right: Any,
    row_ids: Any,
    col_ids: Any,
    rows: Any,
    cols: Any,
    predictions: Any,
    extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Writes a completed table: its factors, the names of its rows and columns, and predictions.

    `factors.npz` holds `left`, `right` and the arrays of `extra`; `rows.csv` and `cols.csv` hold
    `index,id`; `predictions.csv` holds `row,column,prediction` by name, and `read_entries` reads it. Numbers
    are written with as many digits as bring back the same float.

    Args:
        directory: where to write; made if absent.
        left: `(n1, k)` factor.
        right: `(n2, k)` factor.
        row_ids: `(n1,)` names.
        col_ids: `(n2,)` names.
        rows: `(p,)` 0-based rows of the predicted entries.
        cols: `(p,)` 0-based columns of the predicted entries.
        predictions: `(p,)`.
        extra: more arrays for `factors.npz`, such as biases.
        overwrite: whether files of these names may be replaced.

    Returns:
        The four paths, by file name.

    Raises:
        FileExistsError: if a file is there and `overwrite` is false; nothing is written then.
        ValueError: if shapes disagree, an index is out of range, or a name in `extra` is taken.
    """
    left, right = np.asarray(left), np.asarray(right)
    row_ids, col_ids = np.asarray(row_ids), np.asarray(col_ids)
    rows, cols, predictions = np.asarray(rows), np.asarray(cols), np.asarray(predictions)
    extra = dict(extra or {})
    for name, factor, ids in (("left", left, row_ids), ("right", right, col_ids)):
        if factor.ndim != 2 or ids.shape != factor.shape[:1]:
            raise ValueError(f"{name} has shape {factor.shape}, its ids {ids.shape}; expected (n, k) and (n,)")
        if name in extra:
            raise ValueError(f"{name!r} is the name of a factor; call the extra array something else")
    if predictions.ndim != 1 or not rows.shape == cols.shape == predictions.shape:
        raise ValueError(
            f"rows, cols and predictions have shapes {rows.shape}, {cols.shape} and {predictions.shape}; "
            "expected three vectors of one length"
        )
    for name, codes, ids in (("rows", rows, row_ids), ("cols", cols, col_ids)):
        if codes.size and not (codes.min() >= 0 and codes.max() < len(ids)):
            raise ValueError(f"{name} run from {codes.min()} to {codes.max()}, but there are {len(ids)} ids")

    directory = Path(directory)
    paths = {name: directory / name for name in ("factors.npz", "rows.csv", "cols.csv", "predictions.csv")}
    present = [str(path) for path in paths.values() if path.exists()]
    if present and not overwrite:
        raise FileExistsError(f"{', '.join(present)}: already there; choose another directory or overwrite")
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(paths["factors.npz"], left=left, right=right, **extra)
    for name, ids in (("rows.csv", row_ids), ("cols.csv", col_ids)):
        _write_csv(paths[name], ("index", "id"), enumerate(ids.tolist()))
    named = zip(row_ids[rows].tolist(), col_ids[cols].tolist(), predictions.astype(str).tolist(), strict=True)
    _write_csv(paths["predictions.csv"], ("row", "column", "prediction"), named)
    return paths


def _write_csv(path: Path, header: tuple[str, ...], records: Any) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(records)


@contextlib.contextmanager
def _text(path: Path, packed: bool) -> Iterator[TextIO]:
    """Opens text, gzipped or not; what is wrong with the bytes becomes a `ValueError` with the name."""
    try:
        if packed:
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                yield file
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}); expected delimited text, .npz or .mtx") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from error


def _fail(path: Path, line: int, problem: str) -> NoReturn:
    raise ValueError(f"{path}, line {line}: {problem}")


def _ratings(path: Path, rows: Any, cols: Any, values: Any, row_ids: Any, col_ids: Any) -> Ratings:
    return Ratings(
        rows=np.asarray(rows, np.int32),
        cols=np.asarray(cols, np.int32),
        values=np.asarray(values, np.float64),
        shape=(len(row_ids), len(col_ids)),
        row_ids=row_ids,
        col_ids=col_ids,
        name=path.name,
        source=str(path),
        licence="not stated in the file",
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_delimited(path: Path, file: TextIO) -> Ratings:
    lines = iter(file)
    line = next((line for line in lines if line.strip()), None)
    if line is None:
        raise ValueError(f"{path}: the file is empty; expected lines of {_EXPECTED}")
    file.seek(0)
    fields = {mark: next(csv.reader([line], delimiter=mark, skipinitialspace=True)) for mark in _DELIMITERS}
    delimiter = next((mark for mark in _DELIMITERS if len(fields[mark]) >= 3), None)
    reader = csv.reader(file, delimiter=delimiter or ",", skipinitialspace=True, strict=True)
    # Typed arrays and dicts, not lists of Python objects: a million lines take 1.5 s and tens of megabytes.
    row_codes: dict[str, int] = {}
    col_codes: dict[str, int] = {}
    rows, cols, values = array("i"), array("i"), array("d")
    first = True
    try:
        for record in reader:
            if not record:
                continue
            try:
                row, col, value = record[0].strip(), record[1].strip(), float(record[2])
            except (IndexError, ValueError):
                if first and len(record) >= 3 and record[2].strip():
                    first = False
                    continue  # the header
                _explain(path, reader.line_num, record, delimiter)
            first = False
            if not math.isfinite(value):
                _fail(path, reader.line_num, f"the value is {record[2]!r}; expected a finite number")
            if not (row and col):
                _fail(path, reader.line_num, f"{record} has an empty name; expected {_EXPECTED}")
            rows.append(row_codes.setdefault(row, len(row_codes)))
            cols.append(col_codes.setdefault(col, len(col_codes)))
            values.append(value)
    except csv.Error as error:
        _fail(path, reader.line_num, f"{error}; if a name holds a quote, quote the name and double the quote")
    if not values:
        raise ValueError(f"{path}: a header but no entry; expected lines of {_EXPECTED}")
    return _ratings(path, rows, cols, values, np.array(list(row_codes)), np.array(list(col_codes)))


def _explain(path: Path, line: int, record: list[str], delimiter: str | None) -> NoReturn:
    """Says what is wrong with a line whose third field is missing or no number."""
    if len(record) < 3:
        seen = (delimiter or ",").join(record)
        _fail(path, line, f"{seen!r} has {len(record)} field(s); expected {_EXPECTED}")
    _fail(path, line, f"the value is {record[2]!r}; expected a number, with a point for decimals")


def _read_matrix_market(path: Path, file: TextIO) -> Ratings:
    # newline="" keeps the ends of lines as they are, which split() does not mind.
    lines = enumerate(file, start=1)
    _, banner = next(lines, (1, ""))
    if not banner.strip():
        raise ValueError(f"{path}: the file is empty; expected a MatrixMarket file")
    words = banner.lower().split()
    wanted = "expected '%%MatrixMarket matrix coordinate', then real or integer, then general or symmetric"
    if len(words) != 5 or words[:3] != ["%%matrixmarket", "matrix", "coordinate"]:
        _fail(path, 1, f"the header is {banner.strip()!r}; {wanted}")
    if words[3] not in _REAL_FIELDS or words[4] not in ("general", "symmetric"):
        why = " (a pattern stores no values)" if words[3] == "pattern" else ""
        _fail(path, 1, f"the header is {banner.strip()!r}{why}; {wanted}")
    content = ((number, line.split()) for number, line in lines if line.strip() and line[0] != "%")

    number, size = next(content, (2, []))
    if len(size) != 3 or not all(word.isdecimal() for word in size):
        _fail(path, number, f"the size is {' '.join(size)!r}; expected rows, columns, number of entries")
    n1, n2, count = map(int, size)
    symmetric = words[4] == "symmetric"
    if symmetric and n1 != n2:
        _fail(path, number, f"a symmetric matrix cannot be {n1} x {n2}")
    if count == 0:
        _fail(path, number, "no entries; expected at least one")
    rows, cols, values = array("q"), array("q"), array("d")
    for number, fields in content:
        try:
            row, col, value = int(fields[0]), int(fields[1]), float(fields[2])
        except (IndexError, ValueError):
            _fail(path, number, f"{' '.join(fields)!r}; expected row number, column number, value")
        if not (1 <= row <= n1 and 1 <= col <= n2):
            _fail(path, number, f"entry ({row}, {col}) lies outside the {n1} x {n2} matrix (1-based)")
        if not math.isfinite(value):
            _fail(path, number, f"the value is {fields[2]!r}; expected a finite number")
        rows.append(row - 1)
        cols.append(col - 1)
        values.append(value)
    if len(values) != count:
        _fail(path, number, f"the file ends after {len(values)} entries; its header promises {count}")
    first, second, numbers = np.asarray(rows), np.asarray(cols), np.asarray(values)
    if symmetric:  # only one triangle is stored
        off = first != second
        first, second = np.concatenate([first, second[off]]), np.concatenate([second, first[off]])
        numbers = np.concatenate([numbers, numbers[off]])
    return _ratings(path, first, second, numbers, np.arange(1, n1 + 1), np.arange(1, n2 + 1))


def _read_npz(path: Path) -> Ratings:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it is one array, without a name")
            arrays = {name: loaded[name] for name in loaded.files}
    except (zipfile.BadZipFile, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: not an .npz file of plain arrays ({error})") from error
    if {"rows", "cols", "values"} <= arrays.keys():
        rows, cols, values = arrays["rows"], arrays["cols"], arrays["values"]
    elif {"format", "data", "shape"} <= arrays.keys():
        rows, cols, values = _sparse_triplets(path, arrays)
    else:
        raise ValueError(
            f"{path}: holds the arrays {sorted(arrays)}; expected rows, cols and values, or a sparse matrix "
            "as scipy.sparse.save_npz writes it"
        )
    if rows.ndim != 1 or not rows.shape == cols.shape == values.shape:
        raise ValueError(
            f"{path}: rows, cols and values have shapes {rows.shape}, {cols.shape} and {values.shape}; "
            "expected three vectors of one length"
        )
    if values.size == 0:
        raise ValueError(f"{path}: no entries; expected at least one")
    for name, codes in (("rows", rows), ("cols", cols)):
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"{path}: {name} have dtype {codes.dtype}; expected 0-based integers")
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise ValueError(f"{path}: values have dtype {values.dtype}; expected real numbers")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"{path}, entry {bad[0]}: the value is {values[bad[0]]}; expected a finite number")
    shape = arrays.get("shape", np.array([rows.max() + 1, cols.max() + 1]))
    if shape.shape != (2,) or not np.issubdtype(shape.dtype, np.integer):
        raise ValueError(f"{path}: shape is {shape.tolist()}; expected two integers")
    n1, n2 = (int(n) for n in shape)
    if max(n1, n2) > np.iinfo(np.int32).max:
        raise ValueError(f"{path}: the table is {n1} x {n2}; at most 2^31 - 1 rows and columns are possible")
    bad = np.flatnonzero((rows < 0) | (rows >= n1) | (cols < 0) | (cols >= n2))
    if bad.size:
        i = bad[0]
        raise ValueError(f"{path}, entry {i}: ({rows[i]}, {cols[i]}) lies outside the {n1} x {n2} table (0-based)")
    return _ratings(path, rows, cols, values, np.arange(n1), np.arange(n2))


def _sparse_triplets(path: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and values of a matrix saved by SciPy."""
    kind = arrays["format"].item()
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
    needed = {"coo": ("row", "col"), "csr": ("indices", "indptr"), "csc": ("indices", "indptr")}.get(kind)
    if needed is None or not set(needed) <= arrays.keys():
        raise ValueError(
            f"{path}: a sparse matrix of format {kind!r} with arrays {sorted(arrays)}; expected coo, csr or csc"
        )
    first, second, data = arrays[needed[0]], arrays[needed[1]], arrays["data"]
    if kind == "coo":
        return first, second, data
    lengths = np.diff(second)
    if second.ndim != 1 or np.any(lengths < 0) or lengths.sum() != len(data):
        raise ValueError(f"{path}: indptr does not fit the {len(data)} stored values; the file is damaged")
    outer = np.repeat(np.arange(len(lengths)), lengths)
    return (outer, first, data) if kind == "csr" else (first, outer, data)
