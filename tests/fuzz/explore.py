"""Draws examples for a while and keeps the simplest one of each kind of finding."""

import random
import sys
import time
import zlib
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from .harness import Verdict, Worker, printed
from .targets import TARGETS

ROUND = 10


def explore(name: str, number: int, examples: int, worker: Worker, until: float) -> tuple[int, dict[str, tuple]]:
    """Draws examples of one target; the simplest one of each kind of finding."""
    found: dict[str, tuple[int, str, Verdict]] = {}
    calls = 0

    @seed(zlib.crc32(name.encode()) + number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(TARGETS[name].strategy)
    def draw(arguments: dict[str, Any]) -> None:
        nonlocal calls
        if time.monotonic() > until:
            return
        calls += 1
        verdict = worker.call(name, arguments)
        if verdict.kind == "finding":
            text = printed(name, arguments)
            if verdict.signature not in found or len(text) < found[verdict.signature][0]:
                found[verdict.signature] = len(text), text, verdict

    draw()
    return calls, found


def work(names: list[str], number: int, minutes: float, limit: float) -> tuple[dict[str, int], dict[tuple, tuple]]:
    until, rounds = time.monotonic() + 60 * minutes, 0
    calls: dict[str, int] = dict.fromkeys(names, 0)
    found: dict[tuple[str, str], tuple[int, str, Verdict]] = {}
    with Worker(limit) as worker:
        while time.monotonic() < until:
            # One target of each module in turn: some modules have many more than others.
            pick = random.Random(1000 * number + rounds)
            modules = sorted({TARGETS[name].module for name in names})
            for module in modules:
                if time.monotonic() > until:
                    break
                name = pick.choice([name for name in names if TARGETS[name].module == module])
                more, new = explore(name, 1000 * number + rounds, ROUND, worker, until)
                calls[name] += more
                for signature, one in new.items():
                    if (name, signature) not in found:
                        print(f"found: {name}, {signature}", file=sys.stderr, flush=True)
                    if (name, signature) not in found or one[0] < found[name, signature][0]:
                        found[name, signature] = one
            rounds += 1
    return calls, found
