"""The command line: a user's file in, factors and predictions out; errors on one line; the demo."""

import csv
import re
import sys

import jax
import numpy as np
import pytest

from lrjax.cli import cache
from lrjax.cli.main import main


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


def _predictions(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return [(line["row"], line["column"], float(line["prediction"])) for line in csv.DictReader(file)]


def test_defaults_do_not_depend_on_the_unit(tmp_path, capsys):
    """Stars, fractions, percent and units at the ends of single precision: one fit, far better than offsets alone."""
    _table(tmp_path / "in.csv")
    with open(tmp_path / "in.csv", newline="") as file:
        entries = [(i, j, float(value)) for i, j, value in list(csv.reader(file))[1:]]
    found = {}
    for unit in (1.0, 0.2, 20.0, 1e-30, 1e30):
        with open(tmp_path / "unit.csv", "w") as file:
            file.write("# made up\n,rating,item,user\n")
            file.writelines(f"{n},{value * unit!r},{j},{i}\n" for n, (i, j, value) in enumerate(entries))
        options = ["--rank", "2", "--out", str(tmp_path / str(unit)), "--predict-row", "u3"]
        assert main(["complete", str(tmp_path / "unit.csv"), *options]) == 0
        out = capsys.readouterr().out
        held, used = map(float, out.split("rank 2")[1].split()[:2])
        offsets = float(out.split("biases only")[1].split()[0])
        found[unit] = np.array([held, used, offsets]) / unit, _predictions(tmp_path / str(unit))
        assert held < 0.2 * offsets
        assert f"fitted to all {len(entries)} entries" in out
        assert "of 7 ridges the best" in out
        assert "read the columns user, item, rating of the header" in out
        assert "left out 1 line(s)" in out
    errors, row = found[1.0]
    assert sorted(j for _, j, _ in row) == sorted({j for _, j, _ in entries})  # every column of the row
    assert {i for i, _, _ in row} == {"u3"}
    for unit, (other, predictions) in found.items():
        np.testing.assert_allclose(other, errors, rtol=5e-3)
        close = [value / unit for *_, value in predictions], [value for *_, value in row]
        np.testing.assert_allclose(*close, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--rank", "0"], "argument --rank: got '0'; expected a whole number"),
        (["--rank", "2", "--holdout", "1.5"], "argument --holdout: got '1.5'; expected a number from 0 to 0.9"),
        (["--rank", "2", "--ridge", "-1"], "argument --ridge: got '-1'"),
        (["--rank", "2", "--ridge", "nan"], "argument --ridge: got 'nan'"),
        (["--rank", "2", "--seed", str(2**63)], "argument --seed: got '9223372036854775808'"),
        (["--rank", "2", "--steps", "9" * 5000], "argument --steps: got '999"),
        (["--rank", "2", "--columns", "1,2"], "argument --columns: got '1,2'; expected three names"),
        (["--rank", "2", "--separator", ""], "argument --separator: got ''"),
    ],
)
def test_what_is_no_setting_is_told_as_typed(tmp_path, capsys, arguments, text):
    with pytest.raises(SystemExit) as caught:
        main(["complete", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def _refused(tmp_path):
    """Arguments that end in an error before the work, and what it says."""
    here = lambda name, content: (tmp_path / name).write_bytes(content) and str(tmp_path / name)
    table = str(tmp_path / "in.csv")
    asked = lambda name, content: ["--rank", "2", "--predict", here(name, content)]
    (tmp_path / "full").mkdir()
    here("full/rows.csv", b"mine")
    here("full/predictions.csv", b"row,column,prediction\nu1,i1,1\nu2,i2,2\n")
    np.savez(tmp_path / "a.npz", rows=np.arange(9), cols=np.arange(9), values=np.arange(9.0))
    broken = (tmp_path / "a.npz").read_bytes().replace(b"PK\x03\x04", b"PK\x03\x05", 1)
    return [
        (table, ["--rank", "31"], "--rank 31: .*in.csv is 40 x 30, so at most 30"),
        (str(tmp_path / "none.csv"), ["--rank", "2"], "none.csv: No such file or directory"),
        (str(tmp_path), ["--rank", "2"], f"{tmp_path}: Is a directory"),
        (here("bad.csv", b"a,b,1\nc,d,oops\n"), ["--rank", "1"], "bad.csv, line 2: the value is 'oops'"),
        (here("huge.csv", b"a,b,1e100\nc,d,1\n"), ["--rank", "1"], "huge.csv: the largest value is 1e.100"),
        (here("tiny.csv", b"a,b,1e-100\nc,d,0\n"), ["--rank", "1"], "tiny.csv: the largest value is 1e-100"),
        (here("one.csv", b"a,b,1\n"), ["--rank", "1"], "one.csv: one entry, and --holdout 0.1"),
        (here("twice.csv", b"a,b,1\na,b,2\n"), ["--rank", "1"], "row a, column b; merge them with --duplicates sum"),
        (here("b.npz", broken), ["--rank", "1"], "b.npz: not an .npz file"),
        (here("c.csv.gz", b"no gzip"), ["--rank", "1"], "c.csv.gz: not a whole gzip file"),
        (table, ["--rank", "2", "--holdout", "0"], "--holdout 0 .*give --ridge"),
        (table, ["--rank", "2", "--encoding", "latin-one"], "in.csv: unknown encoding: latin-one"),
        (table, ["--rank", "2", "--columns", "user,item,note"], "--columns names 'note'; the header has user, item"),
        (table, asked("d.csv", b"u1,i2\nnobody,i3\n"), "d.csv, line 2: .*'nobody' is not a row"),
        (table, asked("e.csv", b"nobody,i3\nu1,i2\n"), "e.csv, line 1: .*'nobody' is not a row"),
        (table, asked("f.csv", "u\u20281,i2".encode()), "f.csv, line 1"),
        (table, ["--rank", "2", "--predict", str(tmp_path / "no.csv")], "no.csv: No such file"),
        (table, ["--rank", "2", "--predict-row", "nobody"], "--predict-row nobody: .*no such row; it has u0"),
        (table, ["--rank", "2", "--out", str(tmp_path / "full")], "rows.csv.*already there"),
        (table, ["--rank", "2", "--out", table], "in.csv is a file; expected a folder"),
        (str(tmp_path / "full" / "predictions.csv"), ["--rank", "1", "--overwrite", "--out", str(tmp_path / "full")],
         "would be replaced by the result"),
    ]  # fmt: skip


def test_everything_is_checked_before_the_work(tmp_path, capsys, monkeypatch):
    """Exit status 2 and one line that names the file or the option; nothing is fitted, nothing is written."""
    _table(tmp_path / "in.csv")
    monkeypatch.setattr("lrjax.complete", lambda *_, **__: pytest.fail("the work has begun"))
    for file, arguments, text in _refused(tmp_path):
        assert main(["complete", file, "--out", str(tmp_path / "out"), *arguments]) == 2
        told = capsys.readouterr().err.strip()
        assert re.search(text, told), (text, told)
        assert told.startswith("lrjax complete: ")
        assert "\n" not in told
        assert not (tmp_path / "out").exists()
    for figure in (tmp_path / "none" / "a.png", tmp_path / "a.odd", tmp_path / "a"):
        assert main(["demo", "--out", str(figure)]) == 2
        assert f"lrjax demo: --out {figure}: expected a" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert re.fullmatch(r"lrjax \S.*\n", capsys.readouterr().out)


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


@pytest.fixture
def small(tmp_path):
    _table(tmp_path / "in.csv")
    options = ["--rank", "2", "--ridge", "0", "--no-biases", "--steps", "3", "--holdout", "0", "--overwrite"]
    return lambda *more: main(["complete", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out"), *options, *more])


def test_compiled_programs_are_kept_where_it_is_said(tmp_path, capsys, monkeypatch, small):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("LRJAX_CACHE", str(tmp_path / "variable"))
    assert small() == 0
    assert any((tmp_path / "variable").iterdir())
    jax.clear_caches()
    assert small("--cache", str(tmp_path / "option")) == 0
    kept = [path for path in (tmp_path / "option").iterdir() if path.name.endswith("-cache")]
    assert kept
    assert jax.config.jax_compilation_cache_dir == before
    # Damaged: one line, and the answer.
    first = _predictions(tmp_path / "out")
    for path in kept:
        path.write_bytes(b"damaged")
    jax.clear_caches()
    capsys.readouterr()
    assert small("--cache", str(tmp_path / "option")) == 0
    assert capsys.readouterr().err.count("is damaged or full") == 1
    assert _predictions(tmp_path / "out") == first


def test_a_cache_that_cannot_be_is_one_line(tmp_path, capsys, monkeypatch, small):
    (tmp_path / "file").write_text("")
    assert small("--cache", str(tmp_path / "file")) == 0
    said = capsys.readouterr().err
    assert said.count("compiled programs are not kept") == 1
    assert str(tmp_path / "file") in said
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("LRJAX_CACHE", raising=False)
    assert small("--cache", "off") == 0
    assert not (tmp_path / "home").exists()
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert cache.chosen_folder(None) == tmp_path / "home" / "lrjax" / "programs"
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
        assert cache.chosen_folder(None) is None  # JAX has been told of another
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    monkeypatch.setenv("LRJAX_CACHE", "off")
    assert cache.chosen_folder(None) is None
