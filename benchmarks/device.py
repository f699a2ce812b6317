"""`python -m benchmarks device`: everything on an accelerator and on the CPU beside it, into one file of results.

Every part runs in a process of its own with a limit of time, and what it printed is kept as it comes: a part that fails
or hangs costs its own lines only.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time

from benchmarks import measure

# In the order of running, the longest last, with the share of the minutes that each may take.
PARTS = {
    "limit": 0.1,
    "agreement": 0.3,
    "subgradient": 0.2,
    "lstsq": 0.3,
    "sketch": 0.15,
    "rsvd": 0.15,
    "gauss_newton": 0.2,
    "als": 1.0,
}
ENVIRONMENT = {
    "JAX_ENABLE_X64": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "PJRT_NPROC": str(max(16, os.cpu_count() or 1)),
    "PYTHONUNBUFFERED": "1",
}


def run(out, quick, minutes, parts=None):
    """Runs the parts and returns the path of the file they were written to."""
    begun = time.monotonic()
    machine = describe(quick)
    name = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    path = out / f"device-{name}.jsonl"
    kept = [] if parts is None or not path.exists() else [r for r in lines(path) if r.get("part") not in parts]
    kept = [r for r in kept if "machine" not in r]
    with path.open("w") as file:
        for record in [{"machine": machine}, *kept]:
            file.write(json.dumps(record) + "\n")
    print(f"{machine['device']}: into {path}", flush=True)
    wanted = parts or list(PARTS)
    for group in [wanted] if quick else [[part] for part in wanted]:
        left = 60 * minutes - (time.monotonic() - begun)
        limit = left if quick else min(left, 60 * minutes * PARTS[group[0]])
        if limit < 5:
            print(f"  no time left for {', '.join(group)}", flush=True)
            continue
        part_begun = time.monotonic()
        follow(path, group, quick, limit)
        print(f"{', '.join(group)}: {time.monotonic() - part_begun:.0f} s", flush=True)
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def follow(path, parts, quick, limit):
    """One process; every line it prints is stored at once."""
    command = [sys.executable, "-m", "benchmarks.bench_device", *parts, *(["--quick"] if quick else [])]
    environment = os.environ | ENVIRONMENT
    if "subgradient" in parts or quick:  # a sweep runs on all of them
        environment["JAX_NUM_CPU_DEVICES"] = str(2 if quick else os.cpu_count() or 1)
    with subprocess.Popen(command, cwd=measure.ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        stop = threading.Timer(limit, child.kill)
        stop.start()
        try:
            for line in child.stdout or ():
                if not line.startswith("{"):
                    continue
                record = {"part": json.loads(line)["case"]["kind"]} | json.loads(line)
                print("  " + summary(record), flush=True)
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
        finally:
            stop.cancel()
    if child.returncode:
        print(f"  {', '.join(parts)} ended with code {child.returncode} (limit {limit:.0f} s)", flush=True)


def summary(record):
    words = [f"{k} {v}" for k, v in record["case"].items() if k not in ("kind", "n1", "n2")]
    head = f"{record['part']} {', '.join(words)}; {record['solver']} on {record['device']}: "
    if "failed" in record:
        return head + "FAILED " + record["failed"]
    if "agrees" in record:
        mark = "agrees" if record["agrees"] else "DIFFERS"
        return head + f"{mark}, difference {record['difference']:.1e}, response {record['response']:.1e}"
    more = [f"{name} {record[name]:.3g}" for name in ("error", "remainder", "difference", "compile")
            if record.get(name) is not None]  # fmt: skip
    return head + ", ".join([f"{record['seconds']:.4g} s", *more])


def describe(quick):
    """The machine, its accelerator, and the versions."""
    code = (
        "import jax, importlib.metadata as m; d = jax.devices()[0]; "
        "v = {n: m.version(n) for n in ('torch', 'jaxlib') if __import__('importlib.util').util.find_spec(n)}; "
        "import json; print(json.dumps([d.device_kind, d.platform, v]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    if found.returncode:
        raise SystemExit(f"JAX does not start: {found.stderr.strip().splitlines()[-1]}")
    kind, platform, versions = json.loads(found.stdout.strip().splitlines()[-1])
    return measure.identity() | {"device": kind, "platform": platform, "versions": versions, "quick": quick}
