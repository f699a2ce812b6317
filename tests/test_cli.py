"""The command line: a user's file in, factors and predictions out; errors on one line; the demo."""

import csv

import numpy as np
import pytest

from lrjax.__main__ import main


def _table(path, rank=2, shape=(40, 30), fraction=0.6):
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    rows, cols = np.nonzero(rng.random(shape) < fraction)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "score"])
        writer.writerows((f"u{i}", f"i{j}", repr(float(truth[i, j]))) for i, j in zip(rows, cols, strict=True))
    return truth


def test_complete_recovers_an_exact_table(tmp_path, capsys):
    truth = _table(tmp_path / "in.csv")
    (tmp_path / "ask.csv").write_text("user,item\n" + "".join(f"u{i},i{(7 * i) % 30}\n" for i in range(40)))
    options = ["--rank", "2", "--ridge", "0", "--no-biases", "--steps", "60", "--predict", str(tmp_path / "ask.csv")]
    assert main(["complete", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out"), *options]) == 0
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        asked = list(csv.DictReader(file))
    assert len(asked) == 40
    for line in asked:
        i, j = int(line["row"][1:]), int(line["column"][1:])
        assert abs(float(line["prediction"]) - truth[i, j]) < 1e-3
    factors = np.load(tmp_path / "out" / "factors.npz")
    assert factors["left"].shape == (40, 2)
    assert "biases only" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--rank", "31"], "max_rank must be at most"),
        (["--rank", "0"], "rank must be an integer of at least 1"),
        (["--rank", "2", "--holdout", "1.5"], "holdout must be finite and in"),
        (["--rank", "2", "--ridge", "-1"], "ridge must be finite and in"),
    ],
)
def test_bad_settings_end_with_one_line(tmp_path, capsys, arguments, text):
    _table(tmp_path / "in.csv")
    assert main(["complete", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out"), *arguments]) == 1
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_or_malformed_file_is_named(tmp_path, capsys):
    assert main(["complete", str(tmp_path / "none.csv"), "--rank", "2", "--out", str(tmp_path / "o")]) == 1
    assert "none.csv" in capsys.readouterr().err
    (tmp_path / "bad.csv").write_text("a,b,1\nc,d,oops\n")
    assert main(["complete", str(tmp_path / "bad.csv"), "--rank", "1", "--out", str(tmp_path / "o")]) == 1
    assert "oops" in capsys.readouterr().err


def test_predictions_for_unknown_ids_are_refused(tmp_path, capsys):
    _table(tmp_path / "in.csv")
    (tmp_path / "ask.csv").write_text("u1,i2\nnobody,i3\n")
    options = ["--rank", "2", "--predict", str(tmp_path / "ask.csv"), "--out", str(tmp_path / "out")]
    assert main(["complete", str(tmp_path / "in.csv"), *options]) == 1
    assert "line 2" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_draws_its_figure_and_beats_its_baselines(tmp_path, capsys):
    figure = tmp_path / "figure.png"
    assert main(["demo", "--out", str(figure)]) == 0
    assert figure.stat().st_size > 50_000
    out = capsys.readouterr().out
    huber = float(out.split("Huber loss: ")[1].split()[0])
    squared = float(out.split("squared loss: ")[1].split()[0])
    assert huber > squared + 2
    assert float(out.split("method: error ")[1].split()[0]) < 1e-5
