"""The benchmark harness: inputs, the search for sweep counts, results on file, the report. Nothing is timed."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as main
from benchmarks import bench_latency, device, measure, peers, ratings, report, suites, workloads

SPEC = suites.completion_case(40, 2, oversampling=3, noise=0.1, outliers=0.1, dtype="float32")


def test_a_case_is_what_its_spec_says():
    case = workloads.make(SPEC)
    again = workloads.make(SPEC)
    count = 3 * 2 * 78
    assert case.values.shape == (count,)
    assert case.values.dtype == np.float32
    assert np.array_equal(case.values, again.values)
    everything = np.r_[case.rows, case.test_rows] * 40 + np.r_[case.cols, case.test_cols]
    assert np.unique(everything).size == everything.size  # distinct, and held-out ones are not seen
    assert case.error(case.left, case.right) < 1e-12
    assert case.error(0 * case.left, case.right) == pytest.approx(1)
    assert case.error(case.left @ case.right.T) < 1e-12
    truth = workloads.entries_of(case.left, case.right, case.rows, case.cols)
    assert np.mean(np.abs(case.values - truth) > 1) == pytest.approx(0.1, abs=0.06)


def test_conditioning():
    left, right = workloads.truth(np.random.default_rng(0), (30, 20), 3, 100.0)
    s = np.linalg.svd(left @ right.T, compute_uv=False)
    assert s[0] / s[2] == pytest.approx(100)
    assert np.sum(s**2) == pytest.approx(600)


def test_masks_with_few_samples_are_repaired():
    case = workloads.make(
        {"kind": "phase", "n": 60, "rank": 3, "condition": 1.0, "oversampling": 1.05, "dtype": "float64", "seed": 0}
    )
    assert len(case.rows) == round(1.05 * 3 * 117)
    assert min(np.bincount(case.rows, minlength=60).min(), np.bincount(case.cols, minlength=60).min()) >= 3
    assert case.error(case.left, case.right) < 1e-12


def test_skewed_ratings_and_dense_cases():
    spec = {"kind": "ratings", "entries": 3000, "n1": 90, "n2": 120, "rank": 4, "dtype": "float32", "seed": 0}
    case = workloads.make(spec | {"metric": "rmse"})
    assert len(case.values) == 3000
    assert np.bincount(case.rows).max() > 2.5 * 3000 / 90
    baseline = case.error(np.zeros((90, 1)), np.zeros((120, 1)))
    assert baseline == pytest.approx(np.sqrt(np.mean(case.test_values**2)))
    assert 0.6 < baseline < 1.4  # ratings of 1 to 5 without their means
    dense = workloads.make({"kind": "rpca", "n": 30, "rank": 2, "outliers": 0.1, "dtype": "float64", "seed": 0})
    clean = np.abs(dense.values - dense.left @ dense.right.T) < 1e-12
    assert np.mean(clean) == pytest.approx(0.9, abs=0.05)


def test_cases_are_kept_on_file(tmp_path, monkeypatch):
    monkeypatch.setattr(workloads, "CACHE", tmp_path)
    made, read = workloads.load(SPEC), workloads.load(SPEC)
    assert len(list(tmp_path.iterdir())) == 1
    assert (made.shape, made.rank) == (read.shape, read.rank)
    for name in workloads.Case._fields[3:]:
        assert np.array_equal(getattr(made, name), getattr(read, name)), name


def test_fewest_sweeps_are_found():
    calls = []

    def error(n):
        calls.append(n)
        return 0.5**n

    counts, best = measure.find_counts(error, [1e-2, 1e-4, 1e-30], 40, 60.0)
    assert counts == {"0.01": 7, "0.0001": 14}
    assert best == 0.5**40
    assert len(calls) == len(set(calls))  # none twice


def test_every_suite_names_known_solvers():
    for make in (*suites.TIMED.values(), *suites.COUNTED.values()):
        for entry in (*make(True, False), *make(False, True)):
            assert set(entry["solvers"]) <= set(peers.PEERS)
            json.dumps(entry)
            if "oversampling" in entry["case"]:
                assert report.sweep_cost(entry["case"])[0] > 0
    assert len(ratings.grid("surprise SVD")) == 32


def test_a_missing_package_or_solver_is_told():
    missing = peers.Peer("whole", print, {}, ("no-such-distribution",))
    assert peers.why_not(missing, SPEC) == "no-such-distribution is not installed"
    assert "no NoSuchSolver" in peers.why_not(peers.Peer("steps", print, {"solver": "NoSuchSolver"}), SPEC)
    assert "entries" in peers.why_not(peers.Peer("steps", print, {}, largest=100), SPEC)


def test_a_numpy_baseline_through_the_clock():
    case = workloads.make({"kind": "rpca", "n": 60, "rank": 2, "outliers": 0.05, "dtype": "float64", "seed": 0})
    record = measure.run_steps(peers.PEERS["NumPy IALM, 20 columns"], case, [1e-2, 1e-4], 100, 60.0)
    assert set(record["goals"]) == {"0.01", "0.0001"}
    assert 0 < record["goals"]["0.01"]["steps"] < record["goals"]["0.0001"]["steps"] == record["steps"]
    assert record["error"] <= 1e-4
    assert json.loads(json.dumps(record)) == record


def stored(out, suite, *records):
    limits = {f"gemm {d} {by}, GFLOP/s": 100.0 for d in ("float32", "float64") for by in ("NumPy", "XLA")}
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 8.0, "python": "3", "numpy": "2", "jax": "0"}
    machine |= {"commit": "abc", "date": "a day", "limits": limits | {"copy 2 threads, GB/s": 10.0}}
    lines = [{"machine": machine}, *records]
    (out / f"{suite}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def timed(solver, seconds, **more):
    goals = {"0.01": {"wall": seconds, "cpu": 2 * seconds, "steps": 5}}
    run = {"goals": goals, "sweep": seconds / 5, "sweep_cpu": seconds / 5, "build": 0.01, "total": seconds,
           "error": 1e-3, "curve": [[0.1, 1.0], [seconds, 1e-3]]}  # fmt: skip
    case = suites.completion_case(100, 2)
    return {
        "case": case,
        "tag": None,
        "goals": [1e-2, 1e-4],
        "solver": solver,
        "repeats": [run] * 3,
        "memory": 99.0,
    } | more


def test_the_report_is_made_from_the_data(tmp_path):
    ours = timed("lrjax ALS", 2.0, first={"total": 5.0, "goals": {"0.01": {}}})
    broken = {
        "case": ours["case"],
        "tag": None,
        "goals": [1e-2],
        "solver": "surprise SGD",
        "repeats": [],
        "failed": "no",
    }
    stored(tmp_path, "completion", ours, timed("lrjax ALS", 1.0), timed("cmfrec Cholesky", 3.0), broken)
    stored(
        tmp_path,
        "scaling",
        *(timed("lrjax ALS", n / 100, tag="size", case=suites.completion_case(n)) for n in (100, 200)),
    )
    spec = {"kind": "phase", "n": 50, "rank": 2, "condition": 10.0, "oversampling": 2.0, "dtype": "float64"}
    goals = {"goals": {"0.0001": {"wall": 0.25}}, "total": 0.3}
    runs = [{"case": spec | {"seed": i}, "solver": "lrjax ALS", "success": i < 3, **goals} for i in range(4)]
    stored(tmp_path, "phase", *runs)
    text = report.write(tmp_path).read_text()
    assert "a processor, 2 cores" in text
    assert "| lrjax ALS | 1 (2) | - | 5 | 3.00 at 0.01 |" in text  # the later of two results
    assert "| surprise SGD | failed: no |" in text
    assert "| size | lrjax ALS | 1.00 |" in text
    assert "| lrjax ALS | 3/4 0.25 s |" in text
    assert {p.name for p in tmp_path.glob("*.svg")} == {"completion.svg", "scaling.svg", "phase.svg"}
    assert len(report.read(tmp_path / "phase.jsonl")[1]) == 4
    first = (tmp_path / "phase.svg").read_text()
    report.write(tmp_path)
    assert (tmp_path / "phase.svg").read_text() == first


def test_the_report_shows_a_device_run(tmp_path):
    machine = {"cpu": "a processor", "cores": 16, "memory_gib": 8.0, "python": "3", "numpy": "2", "jax": "0"}
    machine |= {"commit": "abc", "date": "a day", "device": "A Card", "platform": "gpu", "versions": {"jaxlib": "0"}}
    case = {"kind": "lstsq", "n": 1000, "d": 10, "dtype": "float32"}
    agreed = {"part": "agreement", "device": "device", "difference": 1e-7, "response": 1e-7, "agrees": True}
    of = lambda name: {"case": {"kind": "agreement", "of": name, "dtype": "float32"}, "solver": name}
    lines = [
        {"machine": machine},
        {"part": "limit", "case": {"kind": "limit", "dtype": "float32"}, "solver": "matrix product", "device": "device",
         "seconds": 1.0, "compile": 0.1, "flops": 2e12},
        agreed | of("one"), agreed | of("two") | {"agrees": False, "difference": 0.25},
        {"part": "lstsq", "case": case, "solver": "lrjax auto", "device": "device", "seconds": 0.5, "compile": 2.0,
         "flops": 5e11, "remainder": 1e-6},
        {"part": "lstsq", "case": case, "solver": "peer", "device": "device", "failed": "out of memory"},
    ]  # fmt: skip
    (tmp_path / "device-a-card.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report.write(tmp_path).read_text()
    assert "## device: A Card" in text
    assert "1 of 2 solvers" in text
    assert "| two | float32 | 2.5e-01 | 1.0e-07 |" in text
    assert "| lstsq | n 1,000, d 10, float32 | lrjax auto | device | 0.5 | 2 | 50.0 % | remainder 1e-06 |" in text
    assert "out of memory" in text


def test_the_small_form_of_the_device_run(tmp_path):
    """Every part runs and says where; without an accelerator the second CPU device is the card."""
    path = device.run(tmp_path, quick=True, minutes=8)
    records = [record for record in device.lines(path) if "machine" not in record]
    assert not [record for record in records if "failed" in record]
    assert {record["part"] for record in records} == {
        "limit", "agreement", "als", "subgradient", "lstsq", "sketch", "rsvd", "gauss_newton"
    }  # fmt: skip
    assert all(record["agrees"] for record in records if record["part"] == "agreement")
    timed = [record for record in records if record["part"] not in ("limit", "agreement")]
    assert {record["device"] for record in timed} == {"device", "CPU"}
    device.run(tmp_path, quick=True, minutes=8, parts=["limit"])  # that part anew, the others kept
    again = [record["part"] for record in device.lines(path) if "machine" not in record]
    assert sorted(again) == sorted(record["part"] for record in records)


def test_latency_counts_programs(tmp_path):
    """A fresh process: the first answer compiles, the second on other data does not."""
    inputs = tmp_path / "inputs.npz"
    bench_latency.write_inputs(inputs, quick=True)
    found = main.fresh("leading singular values", "lrjax rsvd", inputs, None)
    assert found["first"]["programs"] > 0
    assert found["second"]["programs"] == 0
    assert found["second"]["seconds"] < found["first"]["seconds"]
    # Both are the largest singular value, by independent roads.
    data = np.load(inputs)
    largest = np.linalg.svd(data["w0"], compute_uv=False)[0]
    assert found["first"]["value"] == pytest.approx(largest, rel=1e-3)
