"""`complete` on what people hold: duplicates, entries without weight, tables of odd shapes; its bar and its text."""

import io
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

import lrjax as lr
from lrjax.completion import fitting

KEY = jax.random.key(0)
SHAPE = (20, 15)


def table(seed=0, noise=0.1, fraction=0.6):
    rng = np.random.default_rng(seed)
    dense = 3 + rng.normal(size=(SHAPE[0], 1)) @ rng.normal(size=(1, SHAPE[1])) + noise * rng.normal(size=SHAPE)
    rows, cols = np.nonzero(rng.random(SHAPE) < fraction)
    return rows, cols, dense[rows, cols].astype(np.float32)


def run(rows, cols, values, shape=SHAPE, **settings):
    return lr.complete(rows, cols, values, shape, **{"rank": 1, "key": KEY, "ridge": 0.5, "num_steps": 8} | settings)


def same(a, b):
    for name in ("train_rmse", "holdout_rmse", "baseline_rmse", "rows_short", "cols_short", "offset", "row_bias"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_array_equal(a.factors.left, b.factors.left)
    np.testing.assert_array_equal(a.seen.rows, b.seen.rows)


@pytest.mark.parametrize("duplicates", ["sum", "mean"])
def test_duplicates_are_merged_before_the_split(duplicates):
    """An event log, each pair on three lines, is the table of its merged pairs, held-out entries too."""
    rows, cols, values = table()
    parts = np.float32([0.25, 0.5, 0.25]) if duplicates == "sum" else np.float32([0.5, 1, 1.5])
    order = np.random.default_rng(1).permutation(3 * len(rows))
    log = [np.tile(rows, 3)[order], np.tile(cols, 3)[order], np.concatenate([p * values for p in parts])[order]]
    settings = {"holdout": 0.3, "biases": True, "early_stopping": True}
    found, plain = run(*log, duplicates=duplicates, **settings), run(rows, cols, values, **settings)
    np.testing.assert_allclose(found.predict(rows, cols), plain.predict(rows, cols), rtol=1e-3)
    np.testing.assert_allclose(found.holdout_rmse, plain.holdout_rmse, rtol=1e-3)
    assert len(found.seen.rows) == len(plain.seen.rows) < 0.8 * len(rows)


def test_duplicates_are_refused_whatever_the_split():
    rows, cols, values = table()
    for seed in range(4):
        with pytest.raises(ValueError, match="1 entries are given more than once, the first at row"):
            run(*(np.append(x, x[5]) for x in (rows, cols, values)), key=jax.random.key(seed), holdout=0.5)


def test_sums_beyond_the_range_are_refused():
    with pytest.raises(ValueError, match="range of float32"):
        run([0, 0, 1], [0, 0, 1], np.float32([3e38, 3e38, 1]), duplicates="sum")


@pytest.mark.parametrize("junk", [999.0, np.nan])
def test_entries_of_weight_zero_do_not_exist(junk):
    rows, cols, values = table()
    off = np.random.default_rng(1).random(len(rows)) < 0.2
    off |= rows == 3
    weights = np.where(off, 0, 2.0)
    settings = {"holdout": 0.2, "biases": True, "early_stopping": True}
    found = run(rows, cols, np.where(off, junk, values).astype(np.float32), weights=weights, **settings)
    plain = run(rows[~off], cols[~off], values[~off], weights=weights[~off], **settings)
    same(found, plain)
    assert float(found.holdout_rmse) < 1
    assert bool(found.rows_short[3])
    for a, b in zip(found.recommend([3, 4], 15), plain.recommend([3, 4], 15), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (found.recommend([3], 15)[0] >= 0).all()  # nothing in that row was seen


def test_the_split_does_not_depend_on_the_order():
    rows, cols, values = table()
    order = np.random.default_rng(1).permutation(len(rows))
    same(run(rows, cols, values, holdout=0.3), run(rows[order], cols[order], values[order], holdout=0.3))


def test_a_holdout_holds_something_out():
    found = run([0, 1, 2], [0, 1, 2], np.float32([1, 2, 3]), holdout=0.01)
    assert len(found.seen.rows) == 2
    assert np.isfinite(found.holdout_rmse)
    with pytest.raises(ValueError, match=r"holdout=0.1 needs at least two entries; got 1"):
        run([0], [0], np.float32([1]), holdout=0.1)


def test_shapes_out_of_proportion_are_refused_at_once():
    for shape, text in (((2**31 - 1, 5), "out of proportion to 3 entries"), ((2**31, 5), r"below 2\^31")):
        start = time.perf_counter()
        with pytest.raises(ValueError, match=text):
            run([0, 1, 2], [0, 1, 2], np.float32([1, 2, 3]), shape)
        assert time.perf_counter() - start < 5
    with pytest.raises(ValueError, match=r"rank must be at most min\(shape\) = 3; got 4"):
        run([0, 1, 2], [0, 1, 2], np.float32([1, 2, 3]), (5, 3), rank=4, biases=True)


@pytest.mark.parametrize(("shape", "rank"), [((50, 3), 2), ((30, 1), 1)])
def test_offsets_do_not_count_in_the_rank(shape, rank):
    """Full small tables, hardly any ridge: what was given comes back."""
    rng = np.random.default_rng(0)
    dense = (5 + rng.normal(size=shape)).astype(np.float32)
    found = run(
        *(x.ravel() for x in np.indices(shape)), dense.ravel(), shape, rank=rank, biases=True, num_steps=60, ridge=1e-3
    )
    assert found.factors.max_rank == rank
    np.testing.assert_allclose(found.predict(*np.indices(shape)), dense, atol=0.01)


def test_refits_compile_once_and_indices_of_predictions_are_integers():
    rows, cols, values = table()
    found = run(rows, cols, values, ensemble=2, num_steps=1)
    before = fitting._refits._cache_size()
    run(rows, cols, 2 * values, ensemble=2, num_steps=1, ridge=0.25)
    assert fitting._refits._cache_size() == before
    for call in (found.predict, found.uncertainty):
        for bad in ([0.5], [True], ["0"], [None], [[0], [1, 2]]):
            with pytest.raises(ValueError, match="rows must be"):
                call(bad, bad)
        with pytest.raises(ValueError, match=r"cols must lie in \[0, 15\); got values from 1099511627776"):
            call([0], [2**40])
    with pytest.raises(ValueError, match="rows must be integers with 1 dimension"):
        found.recommend([[0]], 2)
    with pytest.raises(ValueError, match="count must be at most the 15 columns; got 16"):
        found.recommend([0], 16)
    cols, values = found.recommend([], 2)
    assert cols.shape == values.shape == (0, 2)
    assert found.recommend(np.array([1], np.uint64), jnp.int32(2))[0].shape == (1, 2)


@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1e20, 1e30])
def test_units_do_not_matter(unit):
    """Values times a power of ten: the same relative answer and status, with defaults and with ridge and offsets."""
    rows, cols, values = table(noise=0)
    defaults = {"ridge": 0.0, "num_steps": 40}
    unit = np.float32(unit)
    found, plain = (run(rows, cols, x, **defaults) for x in ((values - 3) * unit, values - 3))
    np.testing.assert_allclose(found.predict(rows, cols) / unit, values - 3, atol=1e-4)
    assert found.solution.converged
    assert plain.solution.converged
    settings = {"biases": True, "holdout": 0.3, "num_steps": 40}
    found, plain = (run(rows, cols, values * c, ridge=0.5 * c, **settings) for c in (unit, np.float32(1)))
    np.testing.assert_allclose(found.predict(rows, cols) / unit, plain.predict(rows, cols), rtol=1e-3)
    for name in ("train_rmse", "holdout_rmse", "baseline_rmse"):
        np.testing.assert_allclose(getattr(found, name) / unit, getattr(plain, name), rtol=1e-3)
    assert int(found.solution.status) == int(plain.solution.status)


def test_weights_are_real_numbers():
    for bad, text in (
        (np.ones(3) * 1j, "weights must be real"),
        (["1", "1", "1"], "weights must be an array of numbers"),
    ):
        with pytest.raises(ValueError, match=text):
            run([0, 1, 2], [0, 1, 2], np.float32([1, 2, 3]), weights=bad)


def test_compiling_is_no_step_of_the_bar():
    bar = tqdm(total=10, file=io.StringIO(), mininterval=0)
    bar.start_t -= 100
    bar.last_print_t = bar.start_t
    fitting._show(bar, 0, {})
    fitting._show(bar, 1, {})
    assert bar.format_dict["elapsed"] < 50
    assert (bar.n, bar.format_dict["initial"]) == (1, 1)
    fitting._show(bar, 3, {})
    assert bar.n == 3
    bar.close()


def test_a_bar_that_ends_early_is_full_and_says_why(capsys):
    rows, cols, values = table(noise=0)
    done = run(rows, cols, values - 3, ridge=0, num_steps=200, progress=True)
    last = capsys.readouterr().err.strip().split("\r")[-1]
    steps = int(done.solution.num_steps)
    assert done.solution.converged
    assert steps < 200
    assert last.startswith("converged: 100%")
    assert f"{steps}/{steps}" in last


def test_text_of_results_is_short():
    rows, cols, values = table()
    done = run(rows, cols, values, num_steps=1)
    problem = lr.Problem(done.seen, jnp.asarray(values))
    for thing in (done, done.solution, problem, done.seen, done.factors):
        assert len(repr(thing)) < 700, repr(thing)
    assert repr(done.factors) == "Factors(left=float32[20,1], right=float32[15,1])"
    assert "status=RUNNING" in repr(done.solution)
    assert repr(lr.losses.Huber(0.5)) == "Huber(delta=0.5)"
    assert "ridge=0.5" in repr(lr.AlternatingMinimization(max_rank=1, ridge=jnp.float32(0.5)))
    shown = []
    jax.vmap(lambda x: shown.append(repr(lr.Factors(x, x))) or x)(jnp.ones((2, 3, 1)))
    assert shown == ["Factors(left=float32[3,1], right=float32[3,1])"]


def test_another_split_compiles_nothing():
    """As many entries are held out whatever the key, and the layout has the shapes of the sizes."""
    rng = np.random.default_rng(0)
    flat = rng.choice(90 * 70, 2501, replace=False)
    rows, cols = flat // 70, flat % 70
    values = rng.standard_normal(2501).astype(np.float32)

    def one(seed):
        settings = {"rank": 2, "ridge": 1.0, "biases": True, "num_steps": 2, "holdout": 0.1}
        found = lr.complete(rows, cols, values, (90, 70), key=jax.random.key(seed), **settings)
        found.predict(np.arange(20), np.arange(20))
        return found

    first = one(0)
    assert first.seen.num_measurements == 2501 - 250
    lowered = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: lowered.append(event))
    try:
        others = [one(seed) for seed in range(1, 5)]
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [event for event in lowered if event.endswith("backend_compile_duration")]
    assert all(np.isfinite(float(other.holdout_rmse)) for other in others)
    assert len({float(other.holdout_rmse) for other in (first, *others)}) == 5
