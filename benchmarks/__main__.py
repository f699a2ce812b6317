"""`python -m benchmarks [--suite NAME] [--quick]` measures; `python -m benchmarks report` draws what was measured.

`python -m benchmarks device` runs everything once on an accelerator and on the CPU beside it, in eight minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import bench_large, bench_latency, device, measure, ratings, report, suites

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "report", "device"), default="run")
    parser.add_argument("--suite", action="append", choices=suites.NAMES, help="may be repeated; default all")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to try the harness; into .benchmarks/quick")
    parser.add_argument("--large", action="store_true", help="completion: n = 100,000 as well")
    parser.add_argument("--solver", action="append", help="only solvers whose name contains this; may be repeated")
    parser.add_argument("--where", action="append", default=[], metavar="NAME=VALUE", help="only such cases")
    parser.add_argument("--repeats", type=int, default=None, help="default 5, quick 2")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no new case after this")
    parser.add_argument("--part", action="append", choices=device.PARTS, help="device: only this; may be repeated")
    parser.add_argument("--fresh", action="store_true", help="measure again what the results hold already")
    parser.add_argument("--out", type=Path, default=None, help="default benchmarks/results")
    given = parser.parse_args()
    out = given.out or (measure.ROOT / ".benchmarks" / "quick" if given.quick else HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    if given.command == "run":
        run(given, out)
    elif given.command == "device":
        device.run(out, given.quick, min(given.budget_minutes, 8.0), given.part)
    print("wrote", report.write(out))


def run(given, out):
    deadline = time.monotonic() + 60 * given.budget_minutes
    repeats = given.repeats or (2 if given.quick else 5)
    for suite in given.suite or suites.NAMES:
        path = out / f"{suite}.jsonl"
        done = [] if given.fresh else report.read(path)[1]
        print(f"{suite}: into {path}", flush=True)
        append(path, {"machine": measure.machine()})
        if suite in suites.TIMED:
            entries = suites.TIMED[suite](given.quick, given.large)
            for entry in selected(entries, given):
                finished = {
                    r["solver"] for r in done if r["case"] == entry["case"] and r.get("tag") == entry.get("tag")
                }
                if set(entry["solvers"]) <= finished:
                    continue  # a comparison is repeated as a whole or not at all
                if time.monotonic() > deadline:
                    break
                print(describe(entry["case"]), flush=True)
                for record in measure.measure_case(entry, repeats):
                    append(path, record)
        elif suite in suites.COUNTED:
            count(selected(suites.COUNTED[suite](given.quick, given.large), given), path, done, deadline)
        elif suite == "ratings":
            tune(given, path, done, deadline)
        elif suite == "large":
            large(given, path, repeats)
        elif suite == "latency":
            latency(given, path, repeats)
        elif suite == "regression":
            regression(given, path)
        elif suite in ("samplers", "inner"):
            rows(given, path, suite)
        else:
            sweep(given, path)


def append(path, record):
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def describe(spec):
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in spec.items() if name != "seed")  # fmt: skip


def selected(entries, given):
    """The entries and solvers that were asked for."""
    wanted = dict(pair.split("=", 1) for pair in given.where)
    chosen = []
    for entry in entries:
        case = entry["case"]
        if all(name in case and same(case[name], value) for name, value in wanted.items()):
            solvers = [s for s in entry["solvers"] if not given.solver or any(part in s for part in given.solver)]
            chosen.append({**entry, "solvers": solvers})
    return chosen


def same(value, text):
    return float(text) == value if isinstance(value, int | float) else text == value


def count(entries, path, done, deadline):
    """Success suites: one line per solver and case, each solver in one process for all its cases; resumable."""
    finished = {(r["solver"], json.dumps(r["case"], sort_keys=True)) for r in done}
    children, absent = {}, set()
    try:
        for entry in entries:
            spec, made = entry["case"], False
            for solver in entry["solvers"]:
                if solver in absent or (solver, json.dumps(spec, sort_keys=True)) in finished:
                    continue
                if time.monotonic() > deadline:
                    return
                if not made:
                    measure.alone(do="make", spec=spec)
                    print(describe(spec), f"draw {spec['seed']}", flush=True)
                    made = True
                if solver not in children or children[solver].process.poll() is not None:
                    children[solver] = measure.child_for(solver, spec)
                asked = {name: entry[name] for name in ("goals", "max_steps", "limit", "fixed")}
                answer = children[solver].ask(600, do="open", solver=solver, spec=spec, warm="short", **asked)
                if "skip" in answer:
                    print(f"  skipped {solver}: {answer['skip']}")
                    absent.add(solver)
                    continue
                if "failed" not in answer:
                    answer = {"version": answer["version"]} | children[solver].ask(600, do="repeat")
                answer.pop("curve", None)
                reached = answer.get("error", 1) is not None and answer.get("best", answer.get("error", 1)) <= 1e-3
                append(path, {"case": spec, "solver": solver, "success": bool(reached), **answer})
                print(f"  {solver}: error {answer.get('error', float('nan')):.1e} in {answer.get('total', 0):.2f} s")
    finally:
        for child in children.values():
            child.close()


def tune(given, path, done, deadline):
    """Real ratings: the grid on the validation part, then the best point on the test part; resumable."""
    key = lambda r: (r["solver"], r["case"]["split"], r["case"]["part"], json.dumps(r["case"]["point"], sort_keys=True))
    known = {key(r): r for r in done}
    for method in ratings.METHODS:
        if given.solver and not any(part in method for part in given.solver):
            continue
        child, skipped = measure.Child(blas_threads=1, x64=False), False
        for split in range(1 if given.quick else ratings.SPLITS):
            tried = []
            for point in [*ratings.grid(method, given.quick), None]:
                part = "validation" if point else "test"
                point = point or min(tried, key=lambda r: r["rmse"])["case"]["point"]
                case = {"kind": "movielens-100k", "split": split, "part": part, "point": point}
                record = {"case": case, "solver": method}
                if key(record) in known:
                    record = known[key(record)]
                elif time.monotonic() > deadline:
                    break
                else:
                    answer = child.ask(do="ratings", method=method, split=split, point=point, part=part)
                    if "skip" in answer:
                        print(f"  skipped {method}: {answer['skip']}")
                        skipped = True
                        break
                    record |= answer
                    append(path, record)
                if "rmse" in record:
                    tried.append(record)
                if not tried:
                    break
                if part == "test":
                    print(f"  {method}, split {split}: {record.get('rmse', float('nan')):.4f} with {point}", flush=True)
            if skipped:
                break
        child.close()


def sweep(given, path):
    """The sweep of robust sensing problems, which manages its own devices."""
    command = [sys.executable, str(HERE / "bench_sweep.py"), "--json"]
    for dtype, shared in [(dtype, shared) for shared in ([], ["--shared"]) for dtype in ("float64", "float32")]:
        quick = ["--problems", "8", "--repeats", "1", "--numpy-problems", "1"] if given.quick else []
        done = subprocess.run([*command, *shared, "--dtype", dtype, *quick], capture_output=True, text=True)
        if done.returncode:
            print(f"  failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        record = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"  {record}")
        case = {"kind": "sweep", "dtype": dtype, "shared": bool(shared)}
        append(path, {"case": case, "solver": "lrjax subgradient", **record})


def latency(given, path, repeats):
    """Fresh processes, taken in turn: nothing cached, then with JAX's cache of an earlier one."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        source = bench_latency.write_inputs(inputs, given.quick)
        for task, contenders in bench_latency.TASKS.items():
            names = [n for n in contenders if not given.solver or any(part in n for part in given.solver)]
            for cached in (False, True):
                # What has no compiler is the same with a cache.
                chosen = [name for name in names if name.startswith("lrjax") or not cached]
                taken = {name: [] for name in chosen}
                for repeat in range(repeats + cached):
                    for name in chosen:
                        cache = Path(folder) / "cache" / f"{task} {name}".replace(" ", "-") if cached else None
                        found = fresh(task, name, inputs, cache)
                        if repeat >= cached:  # the first process fills the cache
                            taken[name].append(found)
                for name, records in taken.items():
                    case = {"kind": "latency", "task": task, "cached": cached, "data": source}
                    failed = [r["failed"] for r in records if "failed" in r]
                    record = {"failed": failed[0]} if failed else {"repeats": records}
                    append(path, {"case": case, "solver": name, **record})
                    words = (
                        failed[0] if failed else f"{statistics.median(r['first']['seconds'] for r in records):.2f} s"
                    )
                    print(f"  {task}, {name}{', cached' if cached else ''}: {words}", flush=True)


def fresh(task, name, inputs, cache):
    """One process of `bench_latency`."""
    settings = {"OPENBLAS_NUM_THREADS": str(os.cpu_count() or 1) if not name.startswith("lrjax") else "1"}
    if cache is not None:
        settings |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                     "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.bench_latency", task, name, str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=measure.ROOT, env=os.environ | settings)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return {"failed": lines[-1] if lines else f"code {done.returncode}"} if done.returncode else json.loads(lines[-1])


def large(given, path, repeats):
    """Sweeps from one to a hundred million entries, a process for each size."""
    shape = (600, 400) if given.quick else bench_large.SHAPE
    for count in (2000, 20_000) if given.quick else bench_large.SIZES:
        with tempfile.TemporaryDirectory() as folder:
            bench_large.make(Path(folder), count, shape)
            np.save(Path(folder) / "shape.npy", shape)
            command = [sys.executable, "-m", "benchmarks.bench_large", folder, str(1 if count > 10**7 else repeats)]
            settings = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, cwd=measure.ROOT, env=settings)
        case = {"kind": "large", "entries": count, "n1": shape[0], "n2": shape[1], "rank": bench_large.RANK,
                "dtype": "float32"}  # fmt: skip
        lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
        found = {"failed": lines[-1] if lines else str(done.returncode)} if done.returncode else json.loads(lines[-1])
        append(path, {"case": case, "solver": "lrjax ALS", **found})
        print(f"  {count:,} entries: {found}", flush=True)


def regression(given, path):
    """Least squares and sketches, with one core and with all of them."""
    for cores in sorted({1, os.cpu_count() or 1}):
        follow(given, path, "bench_regression.py", "--cores", str(cores))


def rows(given, path, suite):
    """Row samplers, or half steps on long rows."""
    follow(given, path, "bench_rows.py", suite)


def follow(given, path, script, *arguments):
    """Runs a script and stores the lines that it prints."""
    quick = ["--quick"] if given.quick else ["--repeats", str(given.repeats or 5)]
    with subprocess.Popen(
        [sys.executable, str(HERE / script), *arguments, *quick], stdout=subprocess.PIPE, text=True
    ) as child:
        for line in child.stdout or ():
            record = json.loads(line)
            print(f"  {describe(record['case'])}, {record['solver']}: {record['seconds']:.3g} s", flush=True)
            append(path, record)


if __name__ == "__main__":
    main()
