"""Integer status codes, one per lane, and their text. Codes live in traced code; text is for the host."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

RUNNING = 0
CONVERGED = 1
NONFINITE = 2
STALLED = 3
SCHEDULE_TOO_SHORT = 4
DIVERGED = 5
INVALID = 6

MESSAGES = (
    "step budget used before the tolerance was met; raise num_steps or loosen the tolerance",
    "converged",
    "the next iterate was not finite; the last finite one is returned. If the solver has a step_size, a smaller one "
    "usually helps",
    "no progress: the iterate stopped moving above the requested tolerance",
    "the geometric step schedule ends before a start this small can grow; raise step_size, the decay factor "
    "or initial_scale, or pass check_budget=False to run it all the same",
    "the objective ended far above that of the start; a smaller step_size, another start or another loss may help",
    "there is nothing to start from: data or start of this lane are not finite, or every weight is zero",
)


def message(code: int) -> str:
    """The text of a status code."""
    if not 0 <= int(code) < len(MESSAGES):
        raise ValueError(f"unknown status code {int(code)}; codes run from 0 to {len(MESSAGES) - 1}")
    return MESSAGES[int(code)]


class SolveError(RuntimeError):
    """Raised on the host by `check()` of a result; names the lanes that failed and why."""


def raise_if_failed(
    codes: Any, *, require_convergence: bool = False, reasons: Mapping[int, str] = MappingProxyType({})
) -> None:
    """Raises a `SolveError` that says which lanes failed and why; lanes that used up their steps only if required.

    Args:
        codes: int32, one for each lane.
        require_convergence: count `RUNNING` as failed too.
        reasons: texts of codes that say more than `MESSAGES`.
    """
    codes = np.atleast_1d(np.asarray(codes))
    fine = {CONVERGED} if require_convergence else {CONVERGED, RUNNING}
    lines = []
    for code in sorted(set(codes.ravel().tolist()) - fine):
        lanes = np.flatnonzero(codes.ravel() == code)
        shown = ", ".join(map(str, lanes[:8])) + (", ..." if len(lanes) > 8 else "")
        lines.append(f"{len(lanes)} of {codes.size} lanes (lane {shown}): {reasons.get(code) or message(code)}")
    if lines:
        raise SolveError("; ".join(lines))
