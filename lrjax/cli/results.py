"""A completed table into a folder: all of its files or none, and never one over another without being asked."""

import contextlib
import csv
import io
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("factors.npz", "rows.csv", "cols.csv", "predictions.csv")


def check_directory(directory: str | Path, *, overwrite: bool = False) -> None:
    """Refuses a folder that `write_result` could not write to: worth asking before the work.

    Raises:
        FileExistsError: if a file of the result is there, even as a link to nowhere, and `overwrite` is false.
        OSError: if it is no folder and cannot become one, or is not writable.
    """
    directory = Path(directory)
    paths = [directory / name for name in NAMES]
    present = [str(path) for path in paths if os.path.lexists(path)]
    if folders := [str(path) for path in paths if path.is_dir() and not path.is_symlink()]:
        raise FileExistsError(f"{folders[0]} is a folder where a file would be written; choose another folder")
    if present and not overwrite:
        raise FileExistsError(f"{', '.join(present)}: already there; choose another folder or overwrite")
    there = directory
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        what = "a link to nowhere" if there.is_symlink() and not there.exists() else "a file"
        raise NotADirectoryError(f"{directory}: {there} is {what}; expected a folder, new or old")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{directory}: no permission to write in {there}")
    if hasattr(os, "pathconf"):
        longest = max(len(os.fsencode(part)) for part in directory.absolute().parts)
        room = os.pathconf(there, "PC_PATH_MAX") - 64 - len(os.fsencode(directory.absolute()))
        if room < 0 or longest > os.pathconf(there, "PC_NAME_MAX"):
            raise OSError(f"{str(directory)[:100]}...: the name is too long for this file system")


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

    The files are written beside their places and moved there when all are whole on the disk. Whatever goes wrong, the
    folder is as it was before; a kill at the worst moment leaves some of the files missing, but not old ones beside
    new ones. A link in the place of a file is replaced, not followed.

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
        OSError: if the folder cannot be made or written to; names it.
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
    check_directory(directory, overwrite=overwrite)
    named = lambda: zip(row_ids[rows].tolist(), col_ids[cols].tolist(), predictions.astype(str).tolist(), strict=True)
    writers = {
        "factors.npz": lambda file: np.savez(file, left=left, right=right, **extra),
        "rows.csv": lambda file: _write_csv(file, ("index", "id"), enumerate(row_ids.tolist())),
        "cols.csv": lambda file: _write_csv(file, ("index", "id"), enumerate(col_ids.tolist())),
        "predictions.csv": lambda file: _write_csv(file, ("row", "column", "prediction"), named()),
    }
    return _write_all(Path(directory), writers)


def _write_csv(file: Any, header: tuple[str, ...], records: Any) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(records)
    text.flush()
    text.detach()  # the file is synced and closed by its owner


def _write_all(directory: Path, writers: Mapping[str, Callable[[Any], None]]) -> dict[str, Path]:
    """Each file beside its place, then all into their places; on an error the folder is as before."""
    mark = uuid.uuid4().hex[:12]
    paths = {name: directory / name for name in writers}
    beside = {name: directory / f".{name}.{mark}.new" for name in writers}
    aside = {name: directory / f".{name}.{mark}.old" for name in writers}
    with contextlib.ExitStack() as undo:
        try:
            _make(directory, undo)
            for name, write in writers.items():
                undo.callback(_remove, beside[name])
                with beside[name].open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
            old = [name for name in writers if os.path.lexists(paths[name])]
            # All old ones out of the way before the first new one is in place.
            for name in old:
                paths[name].rename(aside[name])
                undo.callback(aside[name].replace, paths[name])
            for name in writers:
                beside[name].rename(paths[name])
                undo.callback(_remove, paths[name])
            _sync(directory)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                error.errno, f"could not write the result ({reason}); nothing was changed", str(directory)
            ) from error
        undo.pop_all()
    for name in old:
        _remove(aside[name])
    return paths


def _make(directory: Path, undo: contextlib.ExitStack) -> None:
    """Makes the folder and those above it, to be removed again if the result is not written."""
    for folder in [folder for folder in (directory, *directory.parents) if not folder.exists()][::-1]:
        folder.mkdir()
        undo.callback(_remove, folder)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _sync(directory: Path) -> None:
    """So that the new names survive a power cut too; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
