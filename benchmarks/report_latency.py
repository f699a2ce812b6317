"""The sections of `REPORT.md` on the suites `latency` and `large`."""

import numpy as np

from benchmarks.measure import median
from benchmarks.tables import seconds, table


def section(results, machines, figure):
    """Import, first and next answers of fresh processes, compilation in columns of its own."""
    rows = []
    for record in results:
        case, name = record["case"], record["solver"]
        head = [case["task"], name, "yes" if case["cached"] else "no"]
        if "failed" in record:
            rows.append([*head, f"failed: {record['failed']}"])
            continue
        middle = lambda *path, record=record: seconds(median(record, *path))
        counts = [f"{record['repeats'][0][part]['programs']}" for part in ("first", "second")]
        error = record["repeats"][0]["first"]["value"] if case["task"] == "ratings" else None
        rows.append([*head, middle("import"), middle("first", "seconds"), middle("second", "seconds"),
                     middle("other rank", "seconds"), " / ".join(counts), middle("first", "compiling"),
                     f"{error:.4f}" if error is not None else "-"])  # fmt: skip
    head = ["task", "contender", "cached", "import, s", "first answer, s", "second, s", "another rank, s",
            "programs compiled", "of it compiling, s", "held-out RMSE"]  # fmt: skip
    source = results[-1]["case"]["data"]
    return [f"Fresh processes; compilation included. The second answer is on other data (ratings, masks: another split "
            f"of equal size). `cached` is with JAX's compilation cache of an earlier process. Ratings: {source}. "
            "implicit takes what is unseen for zeros of low confidence: only its time compares.",
            table(head, rows)]  # fmt: skip


def large(results, machines, figure):
    """Seconds a sweep and peak memory against the entries, and the exponent of a power law through the sweeps."""
    rows, fitted = [], []
    for record in sorted(results, key=lambda record: record["case"]["entries"]):
        entries = record["case"]["entries"]
        if "failed" in record:
            rows.append([f"{entries:,}", f"failed: {record['failed']}"])
            continue
        fitted.append((entries, record["sweep"]))
        rows.append([f"{entries:,}", seconds(record["build"]), seconds(record["first"]), seconds(record["sweep"]),
                     f"{1e9 * record['sweep'] / entries:.0f}", f"{record['memory'] / 1024:.2f}"])  # fmt: skip
    case = results[-1]["case"]
    words = f"{case['n1']:,} x {case['n2']:,}, skewed, rank {case['rank']}, {case['dtype']}; a process for each size."
    if len(fitted) > 1:
        entries, sweeps = np.log(np.array(fitted)).T
        words += f" Seconds a sweep grow like the entries to the power {np.polyfit(entries, sweeps, 1)[0]:.2f}."
    head = ["entries", "build, s", "first call of one sweep, s", "a sweep, s", "ns an entry", "peak, GiB"]
    return [words, table(head, rows)]
