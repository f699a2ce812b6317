"""The files of a sweep: a plan that says which sweep it is, and parts with what is finished. NumPy only.

A part appears under its name only when it is whole on the disk, so a kill at any moment loses what was not yet
written and nothing else.
"""

import contextlib
import json
import os
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np

PLAN = "plan.json"
# Seconds between two parts at first, and as a share of the time since the start: a long sweep leaves few files.
_INTERVAL, _SHARE = 1.0, 0.01


class Checkpoint:
    """A directory with the plan of a sweep and its finished chunks."""

    def __init__(self, path: str | Path, plan: dict, *, writes_plan: bool = True):
        self.path, self.plan = Path(path), json.loads(json.dumps(plan))
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"checkpoint {str(path)!r} is a file; expected a directory, new or of the same sweep")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"could not make the checkpoint {str(path)!r} ({error.strerror})") from error
        there = self.path / PLAN
        if there.exists():
            self._compare(read_plan(self.path))
        elif any(self.path.glob("part-*.npz")):
            raise ValueError(f"checkpoint {str(path)!r} holds parts of a sweep but no {PLAN}; use another directory")
        elif writes_plan:
            self._write(there, lambda file: file.write(json.dumps(self.plan, indent=1).encode()))
        if writes_plan:
            for partial in self.path.glob("*.tmp"):  # of a run that was killed while it wrote
                partial.unlink(missing_ok=True)
        self._waiting: dict[tuple, list] = {}
        self._begun = self._written = time.monotonic()

    def _compare(self, old: dict) -> None:
        for name in self.plan | old:
            # As text: NaN does not equal itself.
            if json.dumps(self.plan.get(name)) != json.dumps(old.get(name)):
                raise ValueError(
                    f"checkpoint {str(self.path)!r} holds another sweep: {name} was {old.get(name)!r} there and is "
                    f"{self.plan.get(name)!r} now; give another checkpoint, or remove that directory to start again"
                )

    def read(self, combo: int, fingerprint: str) -> tuple[dict | None, dict[int, dict[str, np.ndarray]]]:
        """Batch and chunk sizes of a static point, `None` if there are none yet, and its finished chunks."""
        sizes, chunks = None, {}
        for meta, arrays in read_parts(self.path, combo):
            if meta["fingerprint"] != fingerprint:
                raise ValueError(
                    f"checkpoint {str(self.path)!r} was made by another trial function (its operations, constants or "
                    "outputs have changed); give another checkpoint, or remove that directory to start again"
                )
            sizes = meta["sizes"]
            chunks |= arrays
        return sizes, chunks

    def add(self, combo: int, fingerprint: str, sizes: dict, chunk: int, arrays: dict[str, np.ndarray]) -> None:
        """Keeps a finished chunk, and writes what is waiting if the last part is long enough ago."""
        self._waiting.setdefault((combo, fingerprint, json.dumps(sizes)), []).append((chunk, arrays))
        now = time.monotonic()
        if now - self._written > max(_INTERVAL, _SHARE * (now - self._begun)):
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting."""
        for (combo, fingerprint, sizes), waiting in list(self._waiting.items()):
            meta = {"fingerprint": fingerprint, "sizes": json.loads(sizes), "chunks": [chunk for chunk, _ in waiting],
                    "lengths": [len(next(iter(arrays.values()))) for _, arrays in waiting]}  # fmt: skip
            meta["names"] = sorted(waiting[0][1])
            values = {f"value_{name}": np.concatenate([a[name] for _, a in waiting]) for name in waiting[0][1]}
            target = self.path / f"part-{combo:05d}-{uuid.uuid4().hex}.npz"
            self._write(target, lambda file, m=meta, v=values: np.savez(file, meta=np.array(json.dumps(m)), **v))
            del self._waiting[combo, fingerprint, sizes]
        self._written = time.monotonic()

    def _write(self, target: Path, write: Any) -> None:
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        try:
            with partial.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise OSError(
                error.errno,
                f"could not write to the checkpoint {str(self.path)!r} ({error.strerror}); what was written before is "
                "safe: make room and call the same sweep again to go on from there",
            ) from error


def read_plan(path: str | Path) -> dict:
    """The plan of a checkpoint."""
    there = Path(path) / PLAN
    if not there.is_file():
        raise ValueError(f"{str(path)!r} is no checkpoint of a sweep: it has no {PLAN}")
    try:
        plan = json.loads(there.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{there} is not readable ({error}); remove the directory to start again") from error
    if bad := _wrong(plan):
        raise ValueError(f"checkpoint {str(path)!r} has a damaged {PLAN} ({bad}); remove the directory to start again")
    return plan


def _wrong(plan: Any) -> str | None:
    """What a plan lacks that is read from it."""
    if not isinstance(plan, dict):
        return f"a {type(plan).__name__}"
    grid, static, trials = (plan.get(name) for name in ("grid", "static", "trials"))
    if not isinstance(grid, dict):
        return "grid must hold coords for every axis"
    axes = grid.values()
    if not all(isinstance(axis, dict) and isinstance(axis.get("coords"), list) and axis["coords"] for axis in axes):
        return "grid must hold coords for every axis"
    if not isinstance(static, list) or not all(isinstance(name, str) and name in grid for name in static):
        return f"static must name axes of the grid; it is {static!r:.100}"
    if not isinstance(trials, int) or isinstance(trials, bool) or not 1 <= trials < 2**31:
        return f"trials must be a positive number; it is {trials!r:.100}"
    return None


def read_parts(path: str | Path, combo: int) -> list[tuple[dict, dict[int, dict[str, np.ndarray]]]]:
    """What is on the disk for one static point: its settings and its chunks, part by part."""
    found = []
    for file in sorted(Path(path).glob(f"part-{combo:05d}-*.npz")):
        try:
            with file.open("rb") as stream, np.load(stream) as data:
                meta = json.loads(str(data["meta"]))
                values = {name.removeprefix("value_"): data[name] for name in data.files if name != "meta"}
            found.append((meta, _chunks(meta, values)))
        except Exception as error:  # zipfile and NumPy raise a dozen kinds, depending on which byte is wrong
            warnings.warn(f"{file} is damaged ({error}) and left out: its trials run again", stacklevel=2)
    return found


def _chunks(meta: dict, values: dict[str, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    """The arrays of a part, chunk by chunk; all but the last chunk of a sweep are of one length."""
    if sorted(values) != meta["names"] or not isinstance(meta["fingerprint"], str):
        raise ValueError("outputs are missing")
    chunks, lengths, size = meta["chunks"], meta["lengths"], meta["sizes"]["chunk"]
    whole = all(length == size for chunk, length in zip(chunks, lengths, strict=True) if chunk != max(chunks))
    if not whole or not all(isinstance(n, int) and 0 <= n for n in chunks) or not 0 < min(lengths) <= size:
        raise ValueError(f"chunks {chunks} of lengths {lengths} are not of size {size}")
    if any(len(array) != sum(lengths) for array in values.values()):
        raise ValueError(f"lengths {lengths} do not fit the arrays")
    ends = np.cumsum(lengths)
    cut = {name: np.split(array, ends[:-1]) for name, array in values.items()}
    return {chunk: {name: cut[name][i] for name in cut} for i, chunk in enumerate(chunks)}
