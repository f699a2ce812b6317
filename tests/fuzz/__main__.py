"""The long run: `python -m tests.fuzz --minutes 10 --jobs 2`. Exits with 1 if anything was found."""

import argparse
import concurrent.futures
import multiprocessing
import sys

from .explore import work
from .targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=60, help="seconds after which a call counts as hanging")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="targets whose name or module holds this")
    given = parser.parse_args()
    names = [name for name, one in TARGETS.items() if given.only in (*name.split("_"), one.module, name, "")]
    shares = [names[i :: given.jobs] for i in range(min(given.jobs, len(names)))]
    calls, found = {}, {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(len(shares), context) as pool:
        for more, new in pool.map(
            work,
            shares,
            range(given.seed, given.seed + len(shares)),
            *([x] * len(shares) for x in (given.minutes, given.limit)),
        ):
            calls |= more
            found |= new
    for module in dict.fromkeys(TARGETS[name].module for name in names):
        print(f"\n== {module}: {sum(n for name, n in calls.items() if TARGETS[name].module == module)} calls")
        for (name, signature), (_, text, verdict) in sorted(found.items()):
            if TARGETS[name].module == module:
                print(f"- {signature}\n    {text[:700]}\n    {verdict.text[:400]}")
    print(f"\n{sum(calls.values())} calls of {len(names)} targets, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
