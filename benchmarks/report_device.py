"""The section of `REPORT.md` on a run of `python -m benchmarks device`."""

import json

from benchmarks.tables import seconds, table


def read(path):
    """The machine and the results of a file."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return records[0]["machine"], [record for record in records if "machine" not in record]


def section(path):
    """Headings, tables and sentences on one card, a list of paragraphs."""
    machine, results = read(path)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [
        f"## device: {machine['device']}",
        f"Beside {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; "
        f"Python {machine['python']}, jax {machine['jax']}, {versions}; "
        f"lrjax at {machine['commit']}; {machine['date']}.",
    ]
    if machine.get("remark"):
        parts.append(f"Remark: {machine['remark']}.")
    limits = {
        (r["solver"], r["case"]["dtype"], r["device"]): (r.get("flops") or r["bytes"]) / r["seconds"]
        for r in results if r["part"] == "limit" and "seconds" in r
    }  # fmt: skip
    if limits:
        rows = [
            [*key, f"{1e-9 * rate:,.0f} {'GB/s' if key[0] == 'copy' else 'GFLOP/s'}"] for key, rate in limits.items()
        ]
        parts += ["What it can do:", table(["", "dtype", "on", "rate"], rows)]
    parts += agreement([r for r in results if r["part"] == "agreement"])
    timed = [r for r in results if r["part"] not in ("limit", "agreement")]
    if timed:
        parts += ["Times; compilation apart. The share is that of the device's matrix product or copy, the larger.",
                  table(["part", "case", "solver", "on", "seconds", "compile", "share", ""],
                        [row(r, limits) for r in timed])]  # fmt: skip
    return parts


def agreement(results):
    """How many give the same on both devices, and every one that does not."""
    if not results:
        return []
    good = [r for r in results if r.get("agrees")]
    worst = max((r["difference"] / max(r["response"], 1e-300) for r in good), default=0.0)
    parts = [
        f"{len(good)} of {len(results)} solvers, operators, sketches and methods of `lstsq` agree with the CPU: the "
        f"difference is at most 100 times what a change of the input by one unit in the last place makes (the worst "
        f"that agrees: {worst:.3g} times)."
    ]
    rows = [[r["case"]["of"], r["case"]["dtype"], r.get("failed") or f"{r['difference']:.1e}",
             f"{r['response']:.1e}" if "response" in r else "-"] for r in results if not r.get("agrees")]  # fmt: skip
    return [*parts, table(["does not agree", "dtype", "difference", "response to rounding"], rows)] if rows else parts


def row(record, limits):
    case = record["case"]
    words = ", ".join(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
                      for name, value in case.items() if name not in ("kind", "dtype"))  # fmt: skip
    head = [record["part"], f"{words}, {case['dtype']}", record["solver"], record["device"]]
    if "failed" in record:
        return [*head, "failed", "", "", record["failed"]]
    floors = []
    for solver, name, dtype in (("matrix product", "flops", case["dtype"]), ("copy", "bytes", "float32")):
        rate = limits.get((solver, dtype, record["device"]))
        if rate and record.get(name):
            floors.append(record[name] / rate)
    share = f"{100 * max(floors) / record['seconds']:.1f} %" if floors else "-"
    told = ("error", "remainder", "difference", "recovered", "steps", "build")
    notes = [f"{name} {record[name]:.2g}" for name in told if record.get(name) is not None]
    notes += [record["method"]] if record.get("method") else []
    return [*head, seconds(record["seconds"]), seconds(record.get("compile")), share, ", ".join(notes)]
