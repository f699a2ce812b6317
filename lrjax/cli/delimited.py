"""Delimited text: which separator, which header, which columns; one entry, or one pair of names, a line."""

import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import math
import re
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import numpy as np

EXPECTED = "row, column, value, separated by commas, tabs, semicolons, '::', '|' or spaces"
# Those first that are hardly ever part of a name; a comma may be one, or a decimal sign, and a space most likely is.
_SEPARATORS = ("\t", "::", ";", "|", ",", " ")
# A field that long is text behind a quote that was never closed; names are kept in arrays as wide as the longest.
_LONGEST_NAME = 1000

# Names of columns, without case, signs and a final "id", "name" or "index".
_ROLES = (
    frozenset("user row person people customer member reader viewer listener reviewer rater subject who".split()),
    frozenset("item column col movie film product book isbn song track artist article game joke anime asin".split()),
    frozenset("rating value score star stars count playcount grade prediction overall".split()),
)
# What is left of 1,5 or 1.234,5 before the comma.
_WHOLE = re.compile(r"\s*[+-]?(\d{1,3}(\.\d{3})+|\d+)\s*")
_MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "nil", "missing", "unknown", "inf"))


@dataclasses.dataclass(frozen=True)
class Format:
    """What the user says about a text file; what is `None` is found out.

    Attributes:
        separator: between fields.
        columns: row, column and value: names from the header, or positions from 1.
        decimal: the decimal sign, a point or a comma.
        encoding: of the text; UTF-8, or UTF-16 behind a byte order mark, without.
    """

    separator: str | None = None
    columns: tuple[str, str, str] | None = None
    decimal: str = "."
    encoding: str | None = None


class Entries(NamedTuple):
    """Codes, values and names; `header` holds the names of the three columns, `comments` counts lines left out."""

    rows: array
    cols: array
    values: array
    row_ids: np.ndarray
    col_ids: np.ndarray
    header: tuple[str, ...] | None
    comments: int


def fail(path: Path, line: int, problem: str) -> NoReturn:
    """Raises a `ValueError` that names file and line."""
    raise ValueError(f"{path}, line {line}: {problem}")


@contextlib.contextmanager
def text(path: Path, encoding: str | None = None) -> Iterator[TextIO]:
    """Opens text, gzipped if the name ends so; what is wrong with the bytes becomes a `ValueError` with the name."""
    packed = path.suffix.lower() == ".gz"
    try:
        with contextlib.ExitStack() as stack:
            raw: Any = stack.enter_context(path.open("rb"))
            if packed:
                raw = stack.enter_context(gzip.GzipFile(fileobj=raw))
            mark = raw.peek(2)[:2]
            found = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            # Ends of lines stay as they are: a quoted field may hold some.
            yield stack.enter_context(_decoded(raw, encoding or found, path))
    except UnicodeError as error:
        reason = getattr(error, "reason", error)
        hint = f"is it {encoding}?" if encoding else "say --encoding latin-1, or what else it is written in"
        raise ValueError(f"{path}: not {encoding or 'UTF-8'} text ({reason}); {hint}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from error


def _decoded(raw: Any, encoding: str, path: Path) -> TextIO:
    try:
        return io.TextIOWrapper(raw, encoding=encoding, newline="")
    except LookupError as error:
        raise ValueError(f"{path}: {error} (--encoding)") from error


def _fields(line: str, separator: str) -> list[str]:
    """The fields of one line, leniently: to find out the separator."""
    if separator == " ":
        return line.split()
    if len(separator) > 1:
        return [field.strip() for field in line.split(separator)]
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []


class _Records:
    """The records of a file after the comments at its head, with their lines; iterated once.

    Attributes:
        separator: that of the file: the one given, or the first that makes an entry of the first line, or that cuts it
            into enough fields.
        comments: lines at the head that begin with # and are no entries.
    """

    def __init__(self, path: Path, file: TextIO, separator: str | None, enough: int, is_entry: Callable[..., bool]):
        choices = (separator,) if separator else _SEPARATORS
        self.path, self.separator, self.comments, head = path, separator or ",", 0, []
        for line in file:
            cut = {mark: fields for mark in choices if len(fields := _fields(line, mark)) >= enough}
            sure = [mark for mark, fields in cut.items() if is_entry(fields)]
            comment = line.startswith("#") and not sure
            if line.strip() and not comment:
                break
            self.comments += comment
            head.append("\n")  # keeps the numbers of the lines
        else:
            raise ValueError(
                f"{path}: the file is empty; expected lines of {EXPECTED if enough > 2 else 'row, column'}"
            )
        self.separator = (*sure, *cut, self.separator)[0]
        self._lines = itertools.chain(head, (line,), file)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        if self.separator == " " or len(self.separator) > 1:
            for number, line in enumerate(self._lines, start=1):
                if line.strip():
                    yield number, _fields(line.rstrip("\r\n"), self.separator)
            return
        reader = csv.reader(self._lines, delimiter=self.separator, skipinitialspace=True, strict=True)
        try:
            for record in reader:
                if record:
                    yield reader.line_num, record
        except csv.Error as error:
            hint = "if a name holds a quote, quote the name and double the quote"
            fail(self.path, max(reader.line_num, 1), f"{error}; {hint}")


def number(field: str, decimal: str = ".") -> float | None:
    """The number that a field says, or `None`."""
    if decimal == ",":
        field = field.replace(",", ".") if "." not in field else ""
    try:
        return None if "_" in field else float(field)  # Python would read 1_0 as ten
    except ValueError:
        return None


def _role(name: str) -> int | None:
    """0, 1 or 2 for the name of a column of rows, columns or values."""
    # RecBole writes user_id:token, many user-ID.
    plain = "".join(c for c in name.split(":")[0].casefold() if c.isalnum())
    for end in ("", "id", "ids", "name", "index", "number"):
        for role, names in enumerate(_ROLES):
            if plain.endswith(end) and plain.removesuffix(end) in names:
                return role
    return 2 if plain.endswith("rating") else None


def roles(names: Sequence[str]) -> dict[int, int]:
    """Role to position, of the roles that exactly one name has."""
    found = [_role(name) for name in names]
    return {role: found.index(role) for role in (0, 1, 2) if found.count(role) == 1}


def _names(fields: Sequence[str]) -> list[str]:
    """The names in a header; NumPy puts a # in front of it."""
    return [field.strip().lstrip("#").strip() for field in fields]


def _is_name(field: str) -> bool:
    """Whether a field can be the name of a column: letters, no digit, no word for a missing value."""
    plain = field.strip().casefold()
    return any(c.isalpha() for c in plain) and not any(c.isdigit() for c in plain) and plain not in _MISSING


def _columns(path: Path, line: int, first: list[str], form: Format) -> tuple[tuple[int, int, int], bool]:
    """Positions of row, column and value, and whether the first record is a header."""
    names = _names(first)
    known, given, listed = roles(names), form.columns, ", ".join(names)
    if given is not None and not all(name.isdecimal() for name in given):
        for name in given:
            if names.count(name) != 1:
                fail(path, line, f"--columns names {name!r}; the header has {listed}")
        return (names.index(given[0]), names.index(given[1]), names.index(given[2])), True
    if given is None and len(known) == 3:
        return (known[0], known[1], known[2]), True
    at = (0, 1, 2) if given is None else (int(given[0]) - 1, int(given[1]) - 1, int(given[2]) - 1)
    if len(first) <= max(at) or number(first[at[2]], form.decimal) is not None or not _is_name(first[at[2]]):
        return at, False
    if given is None and (len(first) > 3 or any(at[role] != place for role, place in known.items())):
        ask = "which are row, column and value? Say --columns with three names, or three positions counted from 1"
        fail(path, line, f"the header has {listed}: {ask}")
    return at, True


def read_entries(path: Path, form: Format) -> Entries:
    """The entries of a text file in its order; names are coded in order of first appearance."""
    with text(path, form.encoding) as file:
        return _read_entries(path, file, form)


def _read_entries(path: Path, file: TextIO, form: Format) -> Entries:
    def is_entry(fields: list[str]) -> bool:
        names, given = _names(fields), form.columns
        if given is not None and not all(name.isdecimal() for name in given):
            return set(given) <= set(names)
        place = 2 if given is None else int(given[2]) - 1
        return len(roles(names)) == 3 or (place < len(fields) and number(fields[place], form.decimal) is not None)

    source = _Records(path, file, form.separator, 3, is_entry)
    records = iter(source)
    line, first = next(records)
    (at_row, at_col, at_value), has_header = _columns(path, line, first, form)
    width, strict, decimal = len(first), form.columns is None, form.decimal
    plain = decimal == "."
    # Without a header, 1,5 for one and a half is two fields; a time stamp in the fourth is as long on every line.
    doubtful, lengths = strict and not has_header and source.separator == "," and width == 4, set()
    # Typed arrays and dicts, not lists of Python objects: a million lines take 1.5 s and tens of megabytes.
    row_codes: dict[str, int] = {}
    col_codes: dict[str, int] = {}
    rows, cols, values = array("i"), array("i"), array("d")
    header = tuple(_names([first[at_row], first[at_col], first[at_value]])) if has_header else None
    entries = records if has_header else itertools.chain([(line, first)], records)
    for line, record in entries:
        if strict and len(record) != width:
            _ragged(path, line, record, width, source.separator)
        try:
            row, col, word = record[at_row].strip(), record[at_col].strip(), record[at_value]
            value = float(word if plain else word.replace(",", ".")) if "_" not in word else None
        except IndexError:
            _ragged(path, line, record, max(at_row, at_col, at_value) + 1, source.separator)
        except ValueError:
            value = None
        if value is None or not (plain or "." not in word):
            _not_a_number(path, line, word, decimal)
        if not math.isfinite(value):
            fail(path, line, f"the value is {word!r}; expected a finite number")
        if not (row and col):
            fail(path, line, f"{record} has an empty name; expected {EXPECTED}")
        if doubtful:
            doubtful = record[3].isdecimal() and _WHOLE.fullmatch(record[2]) is not None
            lengths.add(len(record[3]))
        rows.append(row_codes.setdefault(row, len(row_codes)))
        cols.append(col_codes.setdefault(col, len(col_codes)))
        values.append(value)
    if not values:
        raise ValueError(f"{path}: a header but no entry; expected lines of {EXPECTED}")
    if doubtful and not (len(lengths) == 1 and lengths <= {9, 10, 13}):
        raise ValueError(
            f"{path}: {','.join(first)!r} may hold a decimal comma, or a value and another field. Say --columns 1,2,3 "
            "if it is the latter; else separate the fields by semicolons, or quote the values, and say --decimal ,"
        )
    for names, codes in (("row", row_codes), ("column", col_codes)):
        _check_names(path, names, codes)
    if header and (again := [n for n, codes in zip(header, (row_codes, col_codes), strict=False) if n in codes]):
        raise ValueError(
            f"{path}: the first line, {', '.join(header)}, was taken for a header, but {again[0]!r} occurs again as a "
            "name below; give the file a header, or mend the first value"
        )
    names = np.array(list(row_codes)), np.array(list(col_codes))
    return Entries(rows, cols, values, *names, header, source.comments)


def _ragged(path: Path, line: int, record: list[str], width: int, separator: str) -> NoReturn:
    seen = separator.join(record)
    seen = seen if len(seen) < 200 else seen[:200] + "..."
    if len(record) < 3:
        fail(path, line, f"{seen!r} has {len(record)} field(s); expected {EXPECTED}")
    hint = "is a name or a decimal comma cut in two? Otherwise say --columns 1,2,3, or which they are"
    fail(path, line, f"{seen!r} has {len(record)} fields, the first line {width}: {hint}")


def _not_a_number(path: Path, line: int, word: str, decimal: str) -> NoReturn:
    word = word if len(word) < 200 else word[:200] + "..."
    if decimal == "." and "," in word and number(word, ",") is not None:
        fail(path, line, f"the value is {word!r}; expected a number, with a point for decimals (or say --decimal ,)")
    sign = "point" if decimal == "." else "comma"
    fail(path, line, f"the value is {word!r}; expected a number, with a {sign} for decimals")


def _check_names(path: Path, kind: str, codes: dict[str, int]) -> None:
    longest = max(codes, key=len)
    if len(longest) > _LONGEST_NAME:
        raise ValueError(
            f"{path}: a {kind} has a name of {len(longest)} characters, {longest[:40]!r}...; at most {_LONGEST_NAME} "
            "are taken. Is a quote not closed?"
        )
    if bad := next((name for name in codes if "\0" in name), None):
        raise ValueError(f"{path}: the name {bad[:40]!r} holds NUL characters; say --encoding utf-16 if it is that")


def read_pairs(path: Path, table: Any, form: Format) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, as positions in `table`, of the pairs of names in a text file.

    The first line is a header if it names a row and a column by words that are known, or by those of the file of the
    table; anything else must be a pair.
    """
    row_at = {str(name): i for i, name in enumerate(table.row_ids.tolist())}
    col_at = {str(name): i for i, name in enumerate(table.col_ids.tolist())}
    rows, cols = array("i"), array("i")

    def places(fields: list[str]) -> tuple[int, int] | None:
        """Where a header has the two, `None` if it is none."""
        names = _names(fields)
        if table.header and set(table.header[:2]) <= set(names):
            return names.index(table.header[0]), names.index(table.header[1])
        known = roles(names)
        return (known[0], known[1]) if 0 in known and 1 in known else None

    def is_pair(fields: list[str]) -> bool:
        return (fields[0].strip() in row_at and fields[1].strip() in col_at) or places(fields) is not None

    with text(path, form.encoding) as file:
        source = _Records(path, file, form.separator, 2, is_pair)
        at_row, at_col, first = 0, 1, True
        for line, record in source:
            if first and len(record) >= 2 and not (record[0].strip() in row_at and record[1].strip() in col_at):
                if (found := places(record)) is not None:
                    (at_row, at_col), first = found, False
                    continue
            first = False
            if len(record) <= max(at_row, at_col):
                seen = source.separator.join(record)
                fail(path, line, f"{seen!r} has {len(record)} field(s); expected a row and a column name, as in u1,i7")
            for place, names, kind in ((record[at_row], row_at, "row"), (record[at_col], col_at, "column")):
                if place.strip() not in names:
                    some = ", ".join(repr(name) for name in itertools.islice(names, 3))
                    shown = source.separator.join(record)
                    fail(path, line, f"{shown!r}: {place.strip()!r} is not a {kind} of the table; it has {some}, ...")
            rows.append(row_at[record[at_row].strip()])
            cols.append(col_at[record[at_col].strip()])
    if not rows:
        raise ValueError(f"{path}: a header but no pair; expected a row and a column name a line")
    return np.array(rows, np.int64), np.array(cols, np.int64)
