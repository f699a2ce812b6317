"""Sweeps: the trials of a loop, whatever the batches, devices, kills and resumptions."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax.sweeps.checkpoint import read_parts

KEY = jax.random.key(7)


def draw(key, scale, shift=0.0):
    noise = jax.random.normal(key, (5,))
    return {"mean": shift + scale * jnp.mean(noise), "all": scale * noise, "count": jnp.sum(noise > 0)}


def run(trial=draw, grid=None, num_trials=7, **more):
    grid = {"scale": [0.5, 1.0, 2.0]} if grid is None else grid
    return lr.sweep(trial, KEY, grid=grid, num_trials=num_trials, progress=False, **more)


def trial_key(place, number, paired=False):
    return jax.random.fold_in(KEY if paired else jax.random.fold_in(KEY, place), number)


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert np.array_equal(a[name].values, b[name].values, equal_nan=True), name
        assert a[name].dims == b[name].dims


@pytest.mark.parametrize("batch_size", ["auto", 1, 4, 1000])
@pytest.mark.parametrize("paired", [False, True])
def test_a_loop_gives_the_same(batch_size, paired):
    table = run(batch_size=batch_size, paired=paired, grid={"scale": [0.5, 2.0], "shift": [0.0, 1.0, 5.0]})
    assert table["mean"].dims == ("scale", "shift", "trial")
    assert table["all"].dims == ("scale", "shift", "trial", "all_dim_0")
    assert table["count"].dtype == np.int32
    for i, scale in enumerate([0.5, 2.0]):
        for j, shift in enumerate([0.0, 1.0, 5.0]):
            for t in range(7):
                expected = draw(trial_key(3 * i + j, t, paired), jnp.float32(scale), jnp.float32(shift))
                got = table["all"].isel(scale=i, shift=j, trial=t).values
                assert np.allclose(got, expected["all"], rtol=1e-6)
                assert np.isclose(table["mean"].values[i, j, t], expected["mean"], rtol=1e-5, atol=1e-6)
    assert table.attrs["num_compiles"] == 1
    assert float(table["mean"].sel(scale=0.5, shift=5.0).mean("trial")) == pytest.approx(5.0, abs=0.5)


def test_static_axes_are_compiled_one_by_one():
    traces = []

    def trial(key, size, scale, kind):
        traces.append(size)
        value = jnp.sum(jax.random.normal(key, (size,)) ** 2) * scale
        return {"value": value if kind == "plain" else -value}

    table = run(trial, {"scale": [1.0, 3.0], "size": [2, 300], "kind": ["plain", "minus"]}, static=("size", "kind"))
    assert table["value"].dims == ("scale", "size", "kind", "trial")
    assert table.attrs["num_compiles"] == 4
    assert len(traces) <= 3 * 4  # to size the batch and to compile
    mean = table["value"].mean("trial")
    assert float(mean.sel(scale=1.0, size=300, kind="plain")) == pytest.approx(300, rel=0.15)
    assert float(mean.sel(scale=3.0, size=300, kind="minus")) == pytest.approx(-900, rel=0.15)


def test_no_axes_and_integer_axes():
    assert run(lambda key: {"x": jax.random.uniform(key)}, {}).sizes == {"trial": 7}
    table = run(lambda key, n: {"x": 2 * n}, {"n": np.arange(3)}, 1)
    assert table["x"].values.ravel().tolist() == [0, 2, 4]


def test_a_shared_ensemble_is_not_copied():
    operator = lr.operators.DenseEnsemble.gaussian(KEY, (6, 6), 60)

    def trial(key, noise, shared):
        problem = lr.synthetic.from_truth(key, shared, lr.synthetic.low_rank(key, (6, 6), 1), noise=noise)
        return {"size": jnp.sum(problem.y**2)}

    table = run(trial, {"noise": [0.0, 1.0]}, shared=operator)
    expected = trial(trial_key(1, 3), jnp.float32(1.0), operator)["size"]
    assert np.isclose(table["size"].values[1, 3], expected, rtol=1e-5)
    # A lane alone holds few kilobytes, so many fit; with an ensemble of its own each would be alone.
    assert table.attrs["batch_sizes"][0] > 1


def test_memory_does_not_grow_with_the_trials():
    """Each draws 8 MB: a full-width vmap of 200 would need 1.6 GB and a batch of its own needs one."""
    trial = lambda key, scale: {"x": jnp.sum(jax.random.normal(key, (1000, 2000)) * scale)}
    assert run(trial, {"scale": [1.0]}, 2).attrs["batch_sizes"] == [1]


def test_points_are_found_by_the_values_given():
    table = run(grid={"scale": [0.1, 0.2]})
    assert table.sel(scale=0.1)["all"].shape == (7, 5)
    assert table["mean"].dtype == np.float32


def test_failed_lanes_are_recorded():
    table = run(lambda key, x: {"root": jnp.sqrt(x)}, {"x": [-1.0, 4.0]}, 3)
    assert np.isnan(table["root"].values[0]).all()
    assert (table["root"].values[1] == 2).all()
    assert table.attrs["num_nonfinite"] == {"root": 3}


def test_a_table_is_labelled():
    table = run()
    assert table["mean"].sel(scale=1.0).mean("trial").shape == ()
    assert (table["mean"] < 0.1).mean("trial").dims == ("scale",)
    with pytest.raises(KeyError):
        table.sel(scale=3.0)


BAD = [
    (dict(grid={"scale": ["a"]}), "dtype <U1.*static"),
    (dict(grid={"scale": [[1.0], [1.0, 2.0]]}), "ragged"),
    (dict(grid={"scale": np.ones((2, 2))}), r"shape \(2, 2\)"),
    (dict(grid={"scale": []}), "'scale'.* is empty"),
    (dict(grid={"key": [1.0]}), "axis 'key'"),
    (dict(static=("rank",)), "static names 'rank'"),
    (dict(static="scale"), "expected a sequence"),
    (dict(static=("scale", "scale")), "names an axis twice"),
    (dict(grid=[0.5, 1.0]), "grid is a list"),
    (dict(grid={"scale": "abc"}, static=("scale",)), "'abc'; expected a sequence"),
    (dict(grid={"scale": [[1], [2]]}, static=("scale",)), "not hashable"),
    (dict(num_trials=0), "num_trials .*0"),
    (dict(batch_size=0), "batch_size .*0"),
    (dict(devices=[]), "devices is empty"),
    (dict(trial=lambda key, scale: scale), "trial returned .*dictionary"),
    (dict(trial=lambda key, scale: {}), "trial returned .*dictionary"),
    (dict(trial=lambda key, scale: {"scale": scale}), "trial returned 'scale', which is an axis"),
    (dict(trial=lambda key, scale: {"k": key}), "trial returned 'k' of dtype key"),
    (dict(trial=lambda key, scale: {"k": {"j": 1}}), "trial returned 'k' of type dict"),
    (dict(trial=lambda key, scale: {"x": jnp.ones(2), "x_dim_0": 1.0}), "'x_dim_0' is the name of a dimension"),
    (
        dict(
            trial=lambda key, scale: dict.fromkeys("xy"[: int(scale)], 1.0), static=("scale",), grid={"scale": [1, 2]}
        ),
        "different shapes .* at scale 2",
    ),
    (dict(trial=lambda key, scale: {"x": jnp.ones(int(4 * scale))}, static=("scale",)), "different shapes"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:20] for _, m in BAD])
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        run(**change)
    with pytest.raises(ValueError, match="key must be one typed key"):
        lr.sweep(draw, jax.random.PRNGKey(0), grid={}, num_trials=1)


def test_traced_values_are_refused():
    sweep = lambda value, key=KEY: lr.sweep(
        lambda key, a: {"x": a * value}, key, grid={"a": [1.0]}, num_trials=1, progress=False
    )
    with pytest.raises(ValueError, match="sweep cannot be traced"):
        jax.jit(lambda key: sweep(1.0, key))(KEY)
    with pytest.raises(ValueError, match="trial closes over a traced value"):
        jax.grad(lambda z: sweep(z)["x"].values.sum())(1.0)


def test_labels_keep_their_type():
    trial = lambda key, size: {"x": 0.0 if size is None else float(size)}
    for sizes in (np.array([5, 6]), [np.int64(6), 5], [None, 6]):
        table = run(trial, {"size": sizes}, 2, static=("size",))
        assert table["x"].sel(size=6).values.tolist() == [6, 6]


def test_a_shared_operator_may_hold_a_key():
    operator = lr.operators.SeededGaussianEnsemble.create(KEY, (4, 4), 20)
    ones = jnp.ones((4, 1))
    table = run(lambda key, a, shared: {"x": a * shared.forward(ones, ones)}, {"a": [1.0]}, 2, shared=operator)
    assert np.allclose(table["x"].values, operator.forward(ones, ones), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_checkpoints_are_read_back(tmp_path):
    plain, kept = run(), run(checkpoint=tmp_path / "a" / "b")
    same(plain, kept)
    again = run(checkpoint=tmp_path / "a" / "b")
    assert again.attrs["num_compiles"] == 0
    same(plain, again)
    same(plain, lr.load_sweep(tmp_path / "a" / "b"))
    plan = json.loads((tmp_path / "a" / "b" / "plan.json").read_text())
    assert plan["versions"]["jax"] == jax.__version__


def test_narrow_floats_and_axes_that_are_not_numbers_are_read_back(tmp_path):
    trial = lambda key, scale: {"x": (scale / 3).astype(jnp.bfloat16), "n": jnp.int4(3)}
    settings = {"trial": trial, "grid": {"scale": [1.0, np.nan]}, "checkpoint": tmp_path}
    made, again = run(batch_size=np.int64(3), **settings), run(batch_size=3, **settings)
    assert made["x"].dtype == np.float32
    assert made["n"].dtype == np.int32
    assert made.attrs["num_nonfinite"] == {"x": 7}
    assert again.attrs["num_compiles"] == 0
    same(made, again)
    same(made, lr.load_sweep(tmp_path))


CHANGED = [
    (dict(grid={"scale": [0.5, 1.0, 2.5]}), "grid was"),
    (dict(grid={"scale": [0.5, 1.0, 2.0], "shift": [1.0]}), "grid was"),
    (dict(num_trials=8), "trials was 7 there and is 8 now"),
    (dict(paired=True), "paired was False"),
    (dict(batch_size=3), "batch_size was 'auto'"),
    (dict(trial=lambda key, scale: {"mean": scale}), "another trial function"),
]


@pytest.mark.parametrize(("change", "message"), CHANGED, ids=[m for _, m in CHANGED])
def test_another_sweep_is_refused(tmp_path, change, message):
    run(checkpoint=tmp_path)
    with pytest.raises(ValueError, match=message):
        run(**({"checkpoint": tmp_path} | change))


def test_a_changed_constant_is_another_trial(tmp_path):
    make = lambda array: lambda key, scale: {"x": scale * jnp.sum(array)}
    run(make(jnp.arange(3.0)), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another trial function"):
        run(make(jnp.arange(1.0, 4.0)), checkpoint=tmp_path)


def test_a_changed_constant_of_an_inner_jit_is_another_trial(tmp_path):
    def make(array):
        inner = jax.jit(lambda scale: scale * jnp.sum(jnp.asarray(array)) + jax.random.normal(KEY))
        return lambda key, scale: {"x": jax.lax.cond(scale > 0, inner, lambda s: s, scale)}

    run(make(np.arange(3.0, dtype=np.float32)), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another trial function"):
        run(make(np.arange(1.0, 4.0, dtype=np.float32)), checkpoint=tmp_path)


def test_damage_and_disorder(tmp_path):
    plain = run(checkpoint=tmp_path / "a")
    part = next((tmp_path / "a").glob("part-*.npz"))
    part.write_bytes(part.read_bytes()[:-200])
    (tmp_path / "a" / "half.123.tmp").write_bytes(b"x")
    with pytest.warns(UserWarning, match="damaged"):
        same(plain, run(checkpoint=tmp_path / "a"))
    assert not list((tmp_path / "a").glob("*.tmp"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        run(checkpoint=tmp_path / "file")
    with pytest.raises(OSError, match="could not make the checkpoint"):
        run(checkpoint=tmp_path / "file" / "below")
    for text in ("[]", "{", "{}"):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / "plan.json").write_text(text)
        with pytest.raises(ValueError, match=r"not readable|damaged"):
            lr.load_sweep(tmp_path / "b")
    (tmp_path / "a" / "plan.json").unlink()
    with pytest.raises(ValueError, match="no plan"):
        run(checkpoint=tmp_path / "a")
    with pytest.raises(ValueError, match="no checkpoint"):
        lr.load_sweep(tmp_path / "nowhere")


def test_damaged_plans_are_refused_by_name(tmp_path):
    """Whatever is missing or out of range in the plan, and lengths that do not fit: never another kind of error."""
    run(checkpoint=tmp_path)
    there = tmp_path / "plan.json"
    plan = json.loads(there.read_text())
    changes = [{name: None} for name in ("grid", "static", "trials")]
    changes += [{"trials": n} for n in (10**30, -1, True, "3", 0.5)]
    changes += [{"static": ["none"]}, {"grid": {"scale": {}}}, {"grid": {"scale": {"coords": []}}}, {"grid": [1]}]
    for text in [json.dumps(plan | change) for change in changes] + ["[" * 100_000, '{"grid": ' * 50_000, "\ud800"]:
        there.write_text(text, errors="surrogatepass")
        with pytest.raises(ValueError, match=r"plan\.json (is not readable|\()"):
            lr.load_sweep(tmp_path)
    there.write_text(json.dumps(plan | {"trials": 2**31 - 1}))
    with pytest.raises(ValueError, match=r"holds \d+ of \d{10} trials"):
        lr.load_sweep(tmp_path)
    there.write_text(json.dumps(plan | {"trials": 1}))
    with pytest.raises(ValueError, match="damaged parts"):
        lr.load_sweep(tmp_path)
    there.write_text(json.dumps(plan))
    part = next(tmp_path.glob("part-*.npz"))
    with np.load(part) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    lengths = meta["lengths"]
    fewer = [n - 1 for n in lengths]
    for change in ({"lengths": fewer}, {"lengths": [*lengths, 1]}, {"sizes": None}, {"chunks": ["0"]}, {"chunks": []}):
        np.savez(part, **(arrays | {"meta": np.array(json.dumps(meta | change))}))
        with (
            pytest.warns(UserWarning, match="damaged"),
            pytest.raises(ValueError, match=r"trials; call lr\.sweep again"),
        ):
            lr.load_sweep(tmp_path)


def test_any_wrong_byte_is_damage(tmp_path):
    """Never an error of another kind, and never other numbers."""
    plain, generator = run(checkpoint=tmp_path), np.random.default_rng(0)
    part = next(tmp_path.glob("part-*.npz"))
    whole, read = part.read_bytes(), []
    for place in generator.integers(len(whole), size=300):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(generator.integers(8))
        part.write_bytes(bytes(broken))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read += read_parts(tmp_path, 0)
    for _, chunks in read:
        got = np.concatenate([chunks[c]["mean"] for c in sorted(chunks)])
        assert np.array_equal(got, plain["mean"].values.ravel())


def test_a_full_disk_loses_nothing_finished(tmp_path, monkeypatch):
    plain, write, left = run(num_trials=300), np.savez, [3]
    from lrjax.sweeps import checkpoint

    def full(file, **values):
        if not left[0]:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        write(file, **values)

    monkeypatch.setattr(checkpoint, "_INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "_SHARE", 0.0)
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"No space left on device.*make room and call the same sweep again"):
        run(num_trials=300, batch_size=5, checkpoint=tmp_path)
    assert len(list(tmp_path.glob("part-*.npz"))) == 3
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(ValueError, match=r"of 900 trials; call lr.sweep again"):
        lr.load_sweep(tmp_path)
    monkeypatch.setattr(np, "savez", write)
    again = run(num_trials=300, batch_size=5, checkpoint=tmp_path)
    for name in plain:
        assert np.allclose(plain[name].values, again[name].values, rtol=1e-5, atol=1e-6)


SCRIPT = """
import sys, time
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
import lrjax as lr
from lrjax.sweeps import checkpoint
checkpoint._INTERVAL, checkpoint._SHARE = 0.02, 0.0

def trial(key, scale, size):
    a = jax.random.normal(key, (size, size))
    power = lambda _, v: a @ v / jnp.linalg.norm(a @ v)
    v = jax.lax.fori_loop(0, 20_000, power, jnp.ones(size))
    return {"v": scale * v[:4], "norm": jnp.linalg.norm(a @ v)}

table = lr.sweep(trial, jax.random.key(0), grid={"scale": [0.1, 0.3], "size": [5, 6]}, static=("size",),
                 num_trials=100, checkpoint=sys.argv[1] or None, progress=False, batch_size=2)
import numpy as np
np.savez(sys.argv[3], v=table["v"].values, norm=table["norm"].values)
"""


def start(tmp_path, checkpoint, out, devices=1):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [sys.executable, str(script), str(checkpoint), str(devices), str(tmp_path / out)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(lr.__file__).parent.parent)}
    return subprocess.Popen(arguments, env=environment)


def test_killed_twice_and_resumed_on_other_devices(tmp_path):
    """`SIGKILL` while it runs, twice; the third run ends with the bits of one that was never stopped."""
    whole = start(tmp_path, "", "whole.npz")
    assert whole.wait(250) == 0
    for kill in (1, 2):
        process = start(tmp_path, tmp_path / "kept", "never.npz", devices=kill)
        before = len(list((tmp_path / "kept").glob("part-*"))) if (tmp_path / "kept").exists() else 0
        while len(list((tmp_path / "kept").glob("part-*"))) < before + 3 and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, "finished before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(ValueError, match="of 400 trials"):
        lr.load_sweep(tmp_path / "kept")
    assert start(tmp_path, tmp_path / "kept", "resumed.npz", devices=2).wait(250) == 0
    with np.load(tmp_path / "whole.npz") as first, np.load(tmp_path / "resumed.npz") as second:
        assert first["v"].tobytes() == second["v"].tobytes()
        assert first["norm"].tobytes() == second["norm"].tobytes()
        assert first["norm"].min() > 0


TWO = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import jax.numpy as jnp, numpy as np
import lrjax as lr

trial = lambda key, scale: {"x": scale * jax.random.normal(key, (3,)), "n": jax.random.randint(key, (), 0, 9)}
table = lr.sweep(trial, jax.random.key(0), grid={"scale": [1.0, 2.0]}, num_trials=257, progress=False, batch_size=2,
                 checkpoint=sys.argv[3])
assert len(jax.local_devices()) == 2 and jax.process_count() == 2
np.save(f"{sys.argv[4]}{sys.argv[2]}.npy", table["x"].values)
"""


def test_two_processes_share_the_work(tmp_path):
    """Over loopback, two devices each: both return everything, with the numbers of one process; twice, to resume."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(lr.__file__).parent.parent)}
    kept, out = tmp_path / "kept", tmp_path / "out"
    for shift in range(2):
        arguments = [f"127.0.0.1:{port + shift}", "{}", str(kept), str(out)]
        commands = [[sys.executable, "-c", TWO, *(a.format(i) for a in arguments)] for i in range(2)]
        running = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
        for process in running:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
        if not shift:
            for part in list(kept.glob("part-*"))[:1]:
                part.unlink()
    first, second = np.load(f"{out}0.npy"), np.load(f"{out}1.npy")
    assert first.tobytes() == second.tobytes()
    trial = lambda key, scale: {"x": scale * jax.random.normal(key, (3,))}
    alone = lr.sweep(trial, jax.random.key(0), grid={"scale": [1.0, 2.0]}, num_trials=257, progress=False)
    assert np.allclose(alone["x"].values, first, rtol=1e-6)


def test_a_slice_wants_a_static_axis():
    with pytest.raises(ValueError, match=r"static=\('size',\)"):
        lr.sweep(lambda key, size: {"x": jnp.zeros(3)[:size].sum()}, KEY, grid={"size": [1, 2]}, num_trials=1)
