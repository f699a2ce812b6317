"""`python -m papers` lists the papers; `python -m papers run KEY --quick` checks the claims of one.

A full run writes `results.json` and the figures into `papers/KEY`, a quick one into `.papers/KEY`; both print a line
for each claim. `python -m papers figures KEY` redraws from saved data, `python -m papers readme` writes the table of
all verdicts.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
QUICK = HERE.parent / ".papers"
KEYS = tuple(sorted(path.parent.name for path in HERE.glob("*/experiment.py")))


def experiment(key):
    return importlib.import_module(f"papers.{key}.experiment")


def main():
    parser = argparse.ArgumentParser(prog="python -m papers", description=__doc__.split("\n")[0])
    parser.add_argument("command", nargs="?", choices=("list", "run", "figures", "readme"), default="list")
    parser.add_argument("key", nargs="*", metavar="KEY", help=", ".join(KEYS))
    parser.add_argument("--all", action="store_true", help="every paper")
    parser.add_argument("--quick", action="store_true", help="fewer seeds, smaller grids; into .papers/KEY")
    parser.add_argument("--full", action="store_true", help="the committed results; the default")
    given = parser.parse_args()
    if unknown := [key for key in given.key if key not in KEYS]:
        parser.error(f"no paper {unknown[0]!r}; there are {', '.join(KEYS)}")
    if given.quick and given.full:
        parser.error("--quick or --full, not both")
    keys = KEYS if given.all else tuple(given.key)
    if given.command in ("run", "figures") and not keys:
        parser.error("give the keys of papers, or --all")
    if given.command == "list":
        for key in KEYS:
            print(f"{key:<24} {experiment(key).TITLE}\n{'':<24} {verdicts(saved(key))}")
    elif given.command == "readme":
        write_readme()
    elif given.command == "figures":
        from papers import common

        for key in keys:
            common.redraw(experiment(key), saved(key) or sys.exit(f"papers/{key} has no results.json"), HERE / key)
    else:
        run(keys, full=not given.quick)


def run(keys, full):
    # LAPACK inside a JAX program with threads of its own spins against XLA's; set before NumPy loads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # With as many devices as threads, each device can hold one while its LAPACK call waits for another.
    os.environ.setdefault("PJRT_NPROC", "16")
    os.environ.setdefault("NPROC", "16")
    import jax

    from papers import common

    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    jax.config.update("jax_enable_x64", True)
    for key in keys:
        begun = time.monotonic()
        print(f"{key}: {experiment(key).TITLE}", flush=True)
        results = common.run(key, experiment(key), full, HERE / key if full else QUICK / key)
        for claim in results["claims"]:
            print(common.sentence(claim), flush=True)
        print(f"{key}: {verdicts(results)}, {time.monotonic() - begun:.0f} s", flush=True)
    if full:
        write_readme()


def saved(key):
    path = HERE / key / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


def verdicts(results):
    if results is None:
        return "no full run yet"
    from papers import common

    counts = {v: sum(c["verdict"] == v for c in results["claims"]) for v in common.VERDICTS}
    return ", ".join(f"{n} {v}" for v, n in counts.items() if n)


def write_readme():
    from papers import common

    parts = [(HERE / "preamble.md").read_text().rstrip()]
    parts.append("| key | paper | verdicts | run | seconds |\n|---|---|---|---|---|")
    for key in KEYS:
        results = saved(key)
        took = f"{results['mode']} | {results['seconds']:.0f}" if results else "|"
        parts[-1] += f"\n| [`{key}`]({key}/README.md) | {experiment(key).TITLE} | {verdicts(results)} | {took} |"
    for key in KEYS:
        if results := saved(key):
            parts.append(f"## `{key}`\n\n{common.table(results['claims'])}")
    (HERE / "README.md").write_text("\n\n".join(parts) + "\n")
    print(f"wrote {HERE / 'README.md'}")


if __name__ == "__main__":
    main()
