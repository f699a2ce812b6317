"""Timing: every solver of a case in a process of its own, repeats taken in turn, results as plain dictionaries.

The parent starts one child (`python -m benchmarks.measure`) per solver, so that thread settings, compiled code and peak
memory are its own, and then asks the children one after the other, repeat by repeat: what else the machine does in the
meantime hits them alike. Only one child works at a time. They speak JSON, one line a message.
"""

import datetime
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import peers, workloads

ROOT = Path(__file__).parent.parent
SWEEP_COUNTS = (2, 12)  # sweeps of the two calls whose difference gives the time of one


class Done(Exception):
    """Ends a run from inside the solver."""


class Clock:
    """Seconds of wall and CPU time that the solver has used, the evaluation of its iterates left out."""

    def __init__(self, case, goals=(), max_steps=1000, limit=60.0):
        self.case, self.goals, self.max_steps, self.limit = case, goals, max_steps, limit
        self.wall = self.cpu = 0.0
        self.build = self.build_cpu = 0.0
        self.curve = []  # (wall, cpu, error) of the start and of every step
        self._mark()

    def _mark(self):
        self.at = time.perf_counter(), time.process_time()

    def stop(self):
        wall, cpu = time.perf_counter(), time.process_time()
        self.wall, self.cpu = self.wall + wall - self.at[0], self.cpu + cpu - self.at[1]
        self._mark()

    def built(self):
        """The input is now in the form that the solver works on."""
        self.stop()
        self.build, self.build_cpu = self.wall, self.cpu

    def step(self, left, right=None):
        """An iterate; `Done` once the last goal is reached, or hope is gone."""
        self.stop()
        error = self.case.error(np.asarray(left), None if right is None else np.asarray(right))
        self.curve.append((self.wall, self.cpu, error))
        reached = self.goals and error <= min(self.goals)
        if reached or not np.isfinite(error) or len(self.curve) > self.max_steps or self.wall > self.limit:
            raise Done
        self._mark()


# -------------------------------------------------------------------------------------------------------- in the child


def run_steps(peer, case, goals, max_steps, limit):
    """One run of a solver that shows its iterates."""
    clock = Clock(case, goals, min(max_steps, peer.max_steps), limit)
    try:
        peer.run(case, clock, **peer.settings)
        clock.stop()  # it stopped by itself
    except Done:
        pass
    if not clock.curve:
        return {"failed": "it showed no iterate"}
    wall, cpu, errors = np.array(clock.curve).T
    record = {"build": clock.build, "start": wall[0] - clock.build, "steps": len(errors) - 1, "total": clock.wall}
    record |= {"total_cpu": clock.cpu, "error": errors[-1], "best": np.nanmin(errors), "goals": {}}
    if len(errors) > 1:
        record |= {"sweep": np.median(np.diff(wall)), "sweep_cpu": np.median(np.diff(cpu))}
    for goal in goals:
        if (hit := np.flatnonzero(errors <= goal)).size:
            record["goals"][f"{goal:g}"] = {"wall": wall[hit[0]], "cpu": cpu[hit[0]], "steps": int(hit[0])}
    shown = np.unique(np.r_[np.arange(min(30, len(errors))), np.geomspace(1, len(errors), 60).astype(int) - 1])
    record["curve"] = [[wall[i], errors[i]] for i in shown]
    return _plain(record)


def call(run, case, settings, *steps):
    """One whole call: seconds of wall and CPU time, those of the build, and the error."""
    clock = Clock(case)
    left, right = run(case, clock, *steps, **settings)
    clock.stop()
    error = case.error(np.asarray(left), None if right is None else np.asarray(right))
    return _plain({"wall": clock.wall, "cpu": clock.cpu, "build": clock.build, "error": error})


def find_counts(error, goals, most, limit):
    """The fewest sweeps that reach each goal, by doubling and bisection; `error(n)` runs n sweeps anew."""
    begun, seen = time.perf_counter(), {}

    def tried(n):
        seen[n] = error(n) if n not in seen else seen[n]
        return seen[n]

    n = min(4, most)
    while tried(n) > min(goals) and n < most and time.perf_counter() - begun < limit:
        n = min(2 * n, most)
    counts = {}
    for goal in goals:
        enough = [n for n in sorted(seen) if seen[n] <= goal]
        if not enough:
            continue
        high, low = enough[0], max([n for n in seen if n < enough[0]], default=0)
        while high - low > 1:
            middle = (high + low) // 2
            low, high = (low, middle) if tried(middle) <= goal else (middle, high)
        counts[f"{goal:g}"] = high
    return counts, min(seen.values())


def run_counted(peer, case, counts, fixed):
    """Whole calls of a package that is told its number of sweeps."""
    fit = lambda n: call(peer.run, case, peer.settings, n)
    low, high = SWEEP_COUNTS if fixed is None else (2, max(fixed, 3))
    times = {n: fit(n) for n in {low, high, *counts.values()}}
    sweep = {f"sweep{x}": (times[high][w] - times[low][w]) / (high - low) for x, w in (("", "wall"), ("_cpu", "cpu"))}
    goals = {goal: {"wall": times[n]["wall"], "cpu": times[n]["cpu"], "steps": n} for goal, n in counts.items()}
    last = times[max(counts.values()) if counts else high]
    return {
        **sweep, "goals": goals, "build": last["build"], "total": last["wall"], "total_cpu": last["cpu"],
        "error": last["error"], "best": min(t["error"] for t in times.values()), "steps": high,
    }  # fmt: skip


def tiny(spec):
    """A case of the same kind that takes no time."""
    small = {"n": 60, "rank": 2, "condition": 1.0, "oversampling": 4.0, "dtype": spec["dtype"], "seed": 1}
    return workloads.make(small | {"kind": "rpca", "outliers": 0.05} if spec["kind"] == "rpca"
                          else small | {"kind": "completion"})  # fmt: skip


def _plain(record):
    if isinstance(record, dict):
        return {key: _plain(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [_plain(value) for value in record]
    return record.item() if isinstance(record, np.generic) else record


def memory(field):
    """VmHWM (peak) or VmRSS of this process in MiB. Not ru_maxrss: that begins at the parent's peak on Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), None)


class Worker:
    """The child's side: `open` prepares one solver on one case, `repeat` runs it once more."""

    def open(self, solver, spec, goals, max_steps, limit, warm="full", fixed=None, settings=None):
        self.peer = peers.PEERS[solver]
        if settings:
            self.peer = self.peer._replace(settings=self.peer.settings | settings)
        if reason := peers.why_not(self.peer, spec):
            return {"skip": reason}
        self.case, self.goals, self.max_steps, self.limit = workloads.load(spec), goals, max_steps, limit
        self.fixed, self.counts, self.count = fixed, {}, None
        before = memory("VmRSS")
        answer = {"version": peers.version(self.peer), "memory_before": before}
        if self.peer.kind != "steps":  # imports and first calls are not what is timed
            call(self.peer.run, tiny(spec), self.peer.settings, *([2] if self.peer.kind == "counted" else []))
        if self.peer.kind == "counted":
            if goals and fixed is None:
                error = lambda n: call(self.peer.run, self.case, self.peer.settings, n)["error"]
                self.counts, best = find_counts(error, goals, min(max_steps, self.peer.max_steps), limit)
                if not self.counts:
                    return answer | {"first": {"goals": {}, "error": best, "best": best}}
            return answer
        if self.peer.kind == "steps":
            steps = 1 if warm == "short" else max_steps
            first = run_steps(self.peer, self.case, goals, steps, limit)
            if warm == "full":  # goals out of reach are not waited for again
                self.goals = [goal for goal in goals if f"{goal:g}" in first.get("goals", {})]
            if self.peer.run in peers.WHOLE and warm == "full":
                self.count = max((g["steps"] for g in first.get("goals", {}).values()), default=fixed)
                for steps in self._solves():  # compiled and thrown away; measured with the repeats
                    call(peers.WHOLE[self.peer.run], self.case, self.peer.settings, steps)
            return answer | {"first": first}
        return answer

    def repeat(self):
        if self.peer.kind == "counted":
            if self.fixed is not None and self.goals:  # phase: one call with all its sweeps
                n = min(self.fixed, self.peer.max_steps)
                whole = call(self.peer.run, self.case, self.peer.settings, n)
                return {"total": whole["wall"], "total_cpu": whole["cpu"], "steps": n, "error": whole["error"]}
            return run_counted(self.peer, self.case, self.counts, self.fixed)
        if self.peer.kind == "whole":
            whole = call(self.peer.run, self.case, self.peer.settings)
            return {"total": whole["wall"], "total_cpu": whole["cpu"], "build": whole["build"], "error": whole["error"],
                    "goals": {f"{g:g}": {"wall": whole["wall"], "cpu": whole["cpu"], "steps": None}
                              for g in self.goals if whole["error"] <= g}}  # fmt: skip
        record = run_steps(self.peer, self.case, self.goals, self.max_steps, self.limit)
        if self.count:  # the time of a sweep as for packages without callbacks: a difference of two calls
            times = [call(peers.WHOLE[self.peer.run], self.case, self.peer.settings, n) for n in self._solves()]
            record["solve"] = times[-1] | {"steps": self.count}
            if len(times) > 1:
                record["solve"]["sweep"] = (times[1]["wall"] - times[0]["wall"]) / (self.count - SWEEP_COUNTS[0])
        return record

    def _solves(self):
        if not self.count:
            return []
        return [SWEEP_COUNTS[0], self.count] if self.count > SWEEP_COUNTS[0] else [self.count]

    def make(self, spec):
        workloads.load(spec)
        return {}

    def ratings(self, **given):
        from benchmarks import ratings

        return ratings.one(**given)

    def limits(self):
        return machine_limits()

    def peak(self):
        return {"memory": memory("VmHWM")}


def machine_limits(size=2048, megabytes=256):
    """What this machine can do at best: GEMM GFLOP/s by NumPy and XLA, GB/s of a copy (read and write counted)."""
    from concurrent.futures import ThreadPoolExecutor

    import jax
    import jax.numpy as jnp

    def best(work, repeats=7):
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
        return min(times)

    found = {}
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            a = np.ones((size, size), dtype)
            found[f"gemm {dtype} NumPy, GFLOP/s"] = 2e-9 * size**3 / best(lambda a=a: a @ a)
            b, product = jnp.asarray(a), jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
            work = lambda b=b, product=product: jax.block_until_ready(product(b))
            work()
            found[f"gemm {dtype} XLA, GFLOP/s"] = 2e-9 * size**3 / best(work)
    source = np.ones(megabytes * 2**17)
    target = np.ones_like(source)
    for threads in sorted({1, peers.THREADS}):
        parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
        with ThreadPoolExecutor(threads) as pool:
            work = lambda pool=pool, parts=parts: list(pool.map(lambda pair: np.copyto(*pair), parts))
            found[f"copy {threads} threads, GB/s"] = 2e-9 * source.nbytes / best(work)
    return found


def serve():
    """The child: answers requests from standard input until it is closed."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # packages that print must not print into the answers
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as problem:
            import traceback

            traceback.print_exc()
            answer = {"failed": f"{type(problem).__name__}: {problem}"[:300]}
        channel.write(json.dumps(_plain(answer)) + "\n")
        channel.flush()


# ------------------------------------------------------------------------------------------------------- in the parent


class Child:
    """A process that measures one solver."""

    def __init__(self, blas_threads=peers.THREADS, x64=True, devices=1):
        log = ROOT / ".benchmarks" / "children.log"
        log.parent.mkdir(exist_ok=True)
        threads = {name: str(blas_threads) for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        threads["OMP_NUM_THREADS"] = str(peers.THREADS)
        threads["OMP_WAIT_POLICY"] = "PASSIVE"  # idle OpenMP threads must not spin against the child at work
        jax = {"JAX_ENABLE_X64": str(int(x64)), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if devices > 1:  # one thread each: more of them than cores cost half the speed
            jax["JAX_NUM_CPU_DEVICES"] = str(devices)
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.measure"], cwd=ROOT, env=os.environ | threads | jax,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def ask(self, timeout=3600.0, **request):
        """The answer, or `{"failed": ...}`; a child that does not answer in time is ended."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], timeout)[0]:
                self.process.kill()
                self.process.wait()
                return {"failed": f"no answer in {timeout:g} s"}
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"failed": f"the process ended with code {self.process.wait()}"}

    def close(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def child_for(solver, spec):
    peer = peers.PEERS[solver]
    return Child(peer.blas_threads, x64=spec.get("dtype") != "float32", devices=peer.settings.get("devices", 1))


def alone(**request):
    """One request to a child that lives for nothing else."""
    child = Child()
    answer = child.ask(**request)
    child.close()
    return answer


def machine():
    """Who measured, and the machine's limits taken just now."""
    return identity() | {"limits": alone(do="limits")}


def identity():
    """Who measured: processor, cores, memory, versions, commit, date."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    import importlib.metadata as metadata

    return {
        "cpu": model, "cores": peers.THREADS,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(), "numpy": metadata.version("numpy"), "jax": metadata.version("jax"),
        "commit": git.stdout.strip(), "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip


def measure_case(entry, repeats, say=print):
    """All solvers of one entry of a suite, interleaved; a list of records."""
    spec, goals = entry["case"], entry.get("goals", [])
    alone(do="make", spec=spec)
    children, records = {}, {}
    for solver in entry["solvers"]:
        child = child_for(solver, spec)
        opened = child.ask(
            do="open", solver=solver, spec=spec, goals=goals, max_steps=entry.get("max_steps", 10_000),
            limit=entry.get("limit", 60.0), fixed=entry.get("fixed"), settings=entry.get("settings", {}).get(solver),
        )  # fmt: skip
        if "skip" in opened:
            say(f"  skipped {solver}: {opened['skip']}")
            child.close()
            continue
        records[solver] = {
            "case": spec,
            "tag": entry.get("tag"),
            "solver": solver,
            "goals": goals,
            "repeats": [],
            **opened,
        }
        children[solver] = child
    for _ in range(repeats):
        for solver, record in records.items():
            # A goal that the first run missed is not run for again, nor is a call of minutes repeated.
            slow = record["repeats"] and record["repeats"][-1].get("total", 0) > entry.get("limit", 60.0)
            missed = goals and not record.get("first", {}).get("goals", True)
            if "failed" in record or slow or missed:
                continue
            answer = children[solver].ask(do="repeat")
            if "failed" in answer:
                record["failed"] = answer["failed"]
            else:
                record["repeats"].append(answer)
    for solver, record in records.items():
        record |= children[solver].ask(do="peak")
        children[solver].close()
        say(f"  {solver}: {summary(record, goals)}")
    return list(records.values())


def median(record, *path):
    """Median over the repeats of a nested number, or `None`."""
    found = []
    for value in record.get("repeats", []):
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found.append(value)
    return statistics.median(found) if found else None


def summary(record, goals):
    if "failed" in record:
        return f"failed: {record['failed']}"
    last = (record["repeats"] or [record.get("first", {})])[-1]
    parts = [f"error {last['error']:.1e}"] if "error" in last else []
    for goal in goals:
        if (wall := median(record, "goals", f"{goal:g}", "wall")) is not None:
            parts.append(f"{goal:g} in {wall:.3f} s")
    if (sweep := median(record, "sweep")) is not None:
        parts.append(f"{1e3 * sweep:.2f} ms a sweep")
    return ", ".join(parts)


if __name__ == "__main__":
    serve()
