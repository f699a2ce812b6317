"""Files of entries: a user's table in. NumPy only."""

import math
from array import array
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from lrjax.cli.delimited import Format, fail, text
from lrjax.cli.delimited import read_entries as read_text
from lrjax.completion.entries import check_size
from lrjax.datasets import Ratings

_REAL_FIELDS = ("real", "double", "integer", "unsigned-integer")


def read_entries(path: str | Path, form: Format = Format()) -> Ratings:  # noqa: B008
    """Reads the entries of an incomplete table.

    The suffix decides: `.npz`, `.mtx`, and for anything else delimited text. `.gz` may follow the last two.

    - Text: one entry a line, with commas, tabs, semicolons, `::`, `|` or spaces between the fields, the same number on
      every line; UTF-8 (or UTF-16 with its mark), quotes allowed, lines that begin with # before the first entry left
      out. A header that names user, item and rating, or their kin, says which columns are read; without one they are
      the first three. Row and column names are any text, coded in order of first appearance.
    - `.npz`: arrays `rows`, `cols`, `values` (and `shape`), or a coo, csr or csc matrix as SciPy saves it.
    - `.mtx`: MatrixMarket, coordinate, real or integer, general or symmetric (which is expanded).

    A stored zero is an observed zero, and an entry that occurs twice is kept twice.

    Args:
        path: of the file.
        form: what is known about a text file: separator, columns, decimal sign, encoding.

    Returns:
        `Ratings` in the order of the file. Ids are text for delimited files, 0-based numbers for `.npz`
        and 1-based numbers for `.mtx`, so that they are what the file says.

    Raises:
        OSError: if there is no such file, or it cannot be read.
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
    if kind == [".mtx"]:
        with text(path) as file:
            return _read_matrix_market(path, file)
    rows, cols, values, row_ids, col_ids, header, comments = read_text(path, form)
    return _ratings(path, rows, cols, values, row_ids, col_ids, header, comments)


def _ratings(
    path: Path, rows: Any, cols: Any, values: Any, row_ids: Any, col_ids: Any, header: Any = None, comments: int = 0
) -> Ratings:
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
        header=header,
        comments=comments,
    )


def _read_matrix_market(path: Path, file: TextIO) -> Ratings:
    # newline="" keeps the ends of lines as they are, which split() does not mind.
    lines = enumerate(file, start=1)
    _, banner = next(lines, (1, ""))
    if not banner.strip():
        raise ValueError(f"{path}: the file is empty; expected a MatrixMarket file")
    words = banner.lower().split()
    wanted = "expected '%%MatrixMarket matrix coordinate', then real or integer, then general or symmetric"
    if len(words) != 5 or words[:3] != ["%%matrixmarket", "matrix", "coordinate"]:
        fail(path, 1, f"the header is {banner.strip()!r}; {wanted}")
    if words[3] not in _REAL_FIELDS or words[4] not in ("general", "symmetric"):
        why = " (a pattern stores no values)" if words[3] == "pattern" else ""
        fail(path, 1, f"the header is {banner.strip()!r}{why}; {wanted}")
    content = ((number, line.split()) for number, line in lines if line.strip() and line[0] != "%")

    number, size = next(content, (2, []))
    if len(size) != 3 or not all(word.isdecimal() and len(word) < 20 for word in size):
        shown = " ".join(size)[:100]
        fail(path, number, f"the size is {shown!r}; expected rows, columns, number of entries")
    n1, n2, count = map(int, size)
    if min(n1, n2) < 1:
        fail(path, number, f"the size is {n1} x {n2}; expected at least one row and one column")
    _check_size(path, (n1, n2), count)
    symmetric = words[4] == "symmetric"
    if symmetric and n1 != n2:
        fail(path, number, f"a symmetric matrix cannot be {n1} x {n2}")
    if count == 0:
        fail(path, number, "no entries; expected at least one")
    rows, cols, values = array("q"), array("q"), array("d")
    for number, fields in content:
        try:
            row, col, value = int(fields[0]), int(fields[1]), float(fields[2])
            if len(fields) != 3 or "_" in "".join(fields):  # Python would read 1_0 as ten
                raise ValueError
        except (IndexError, ValueError):
            shown = " ".join(fields)[:100]
            fail(path, number, f"{shown!r}; expected row number, column number, value")
        if not (1 <= row <= n1 and 1 <= col <= n2):
            fail(path, number, f"entry ({row}, {col}) lies outside the {n1} x {n2} matrix (1-based)")
        if not math.isfinite(value):
            fail(path, number, f"the value is {fields[2]!r}; expected a finite number")
        rows.append(row - 1)
        cols.append(col - 1)
        values.append(value)
    if len(values) != count:
        fail(path, number, f"the file ends after {len(values)} entries; its header promises {count}")
    first, second, numbers = np.asarray(rows), np.asarray(cols), np.asarray(values)
    if symmetric:  # only one triangle is stored
        off = first != second
        first, second = np.concatenate([first, second[off]]), np.concatenate([second, first[off]])
        numbers = np.concatenate([numbers, numbers[off]])
    return _ratings(path, first, second, numbers, np.arange(1, n1 + 1), np.arange(1, n2 + 1))


def _check_size(path: Path, shape: tuple[int, int], count: int) -> None:
    try:
        check_size(shape, count)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_npz(path: Path) -> Ratings:
    with path.open("rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it is one array, without a name")
            arrays = {name: loaded[name] for name in loaded.files}
        except Exception as error:  # zipfile and NumPy raise a dozen kinds, depending on which byte is wrong
            raise ValueError(f"{path}: not an .npz file of plain arrays ({error or type(error).__name__})") from error
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
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: values have dtype {values.dtype}; expected real numbers")
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float64)  # of long doubles those beyond its range become infinite
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        seen = values[bad[0]]
        why = "a finite number" if not np.isfinite(seen) else "a number that double precision holds"
        raise ValueError(f"{path}, entry {bad[0]}: the value is {seen}; expected {why}")
    rows, cols = _positions(path, "rows", rows), _positions(path, "cols", cols)
    if "shape" in arrays:
        n1, n2 = _stored_shape(path, arrays["shape"])
    else:
        n1, n2 = int(rows.max()) + 1, int(cols.max()) + 1
    bad = np.flatnonzero((rows < 0) | (rows >= n1) | (cols < 0) | (cols >= n2))
    if bad.size:
        i = bad[0]
        raise ValueError(f"{path}, entry {i}: ({rows[i]}, {cols[i]}) lies outside the {n1} x {n2} table (0-based)")
    _check_size(path, (n1, n2), len(values))
    return _ratings(path, rows, cols, numbers, np.arange(n1), np.arange(n2))


def _stored_shape(path: Path, shape: np.ndarray) -> tuple[int, int]:
    if shape.shape != (2,) or shape.dtype.kind not in "iu":
        raise ValueError(f"{path}: shape is {shape.tolist()}; expected two integers")
    return int(shape[0]), int(shape[1])


def _positions(path: Path, name: str, index: np.ndarray) -> np.ndarray:
    """Indices of any width as int64, in which differences and a maximum plus one do not wrap around."""
    if index.dtype.kind not in "iu":
        raise ValueError(f"{path}: {name} have dtype {index.dtype}; expected 0-based integers")
    if index.size and int(index.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{path}: {name} run up to {index.max()}; at most 2^31 - 1 rows and columns are possible")
    return index.astype(np.int64)


def _sparse_triplets(path: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and values of a matrix saved by SciPy."""
    kind = arrays["format"].tolist()
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
    needed = {"coo": ("row", "col"), "csr": ("indices", "indptr"), "csc": ("indices", "indptr")}.get(kind)
    if needed is None or not set(needed) <= arrays.keys():
        raise ValueError(
            f"{path}: a sparse matrix of format {kind!r} with arrays {sorted(arrays)}; expected coo, csr or csc"
        )
    first, second, data = arrays[needed[0]], arrays[needed[1]], arrays["data"]
    if kind == "coo":
        return first, second, data
    second = _positions(path, "indptr", second)
    lengths = np.diff(second) if second.ndim == 1 else np.array([-1])
    outer = _stored_shape(path, arrays["shape"])[kind == "csc"]
    whole = len(lengths) == outer and second[0] == 0 and second[-1] == data.size and (lengths >= 0).all()
    if not whole or data.ndim != 1:
        raise ValueError(
            f"{path}: indptr does not fit the {data.size} stored values and {outer} rows or columns; it is damaged"
        )
    outer = np.repeat(np.arange(len(lengths)), lengths)
    return (outer, first, data) if kind == "csr" else (first, outer, data)
