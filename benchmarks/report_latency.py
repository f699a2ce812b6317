"""The section of `REPORT.md` on the suite `latency`."""

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
