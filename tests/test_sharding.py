"""Placement on eight devices and on two processes: results, shardings, and what is sent from device to device.

In processes of their own, because devices are faked.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

COUNT = r"""
import math
import re

def sent(compiled, scope=""):
    "Kind and bytes of every collective operation whose name holds `scope`; one in a loop is listed once."
    found = []
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    for line in compiled.as_text().splitlines():
        if (match := re.search(rf"= (.*) ({kinds})(-start)?\(", line)) and scope in line:
            arrays = re.findall(r"([a-z]+)(\d*)\[([\d,]*)\]", re.sub(r"/\*.*?\*/", "", match[1]))
            size = sum(max(int(b or 8) // 8, 1) * math.prod(int(n) for n in d.split(",") if n) for _, b, d in arrays)
            found.append((match[2], size))
    return sorted(found)
"""

SETUP = """
import jax

jax.config.update("jax_num_cpu_devices", 8)
import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import lrjax as lr
from lrjax.linalg.rows import RowProblem
from lrjax.linalg.sketched_rows import SketchedRows

assert jax.device_count() == 8
key = jax.random.key(0)
problem, truth = lr.synthetic.matrix_sensing(key, shape=(6, 4), rank=1, num_measurements=64)
solver = lr.GradientDescent(max_rank=1)
mesh = Mesh(np.array(jax.devices()), ("all",))
over = NamedSharding(mesh, P("all"))
"""

TRIALS = """
keys = jax.random.split(jax.random.key(1), 16)


def lane(problem, key):
    return lr.solve(problem, solver, key, num_steps=40, record_every=20)


lanes = jax.vmap(lane, in_axes=(None, 0))
expected = jax.jit(lanes)(problem, keys)
assert float(jnp.max(expected.trace["residual"][:, -1])) < 0.9 * float(jnp.min(expected.trace["residual"][:, 0]))


def same(solution):
    np.testing.assert_array_equal(solution.status, expected.status)
    for name in expected.trace:
        np.testing.assert_allclose(solution.trace[name], expected.trace[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jax.vmap(lambda f: f.dense())(solution.factors), jax.vmap(lambda f: f.dense())(expected.factors), atol=1e-5
    )


# Trials over the devices: every array of the result stays where its lane is.
placed = jax.device_put(keys, over)
solution = jax.jit(lanes)(problem, placed)
same(solution)
for leaf in jax.tree.leaves(solution):
    assert len(leaf.sharding.device_set) == 8, leaf.sharding
    assert leaf.addressable_shards[0].data.shape[0] == 2, leaf.sharding
print("trials")

# The same by hand. Vmapped, the conditional of the loop becomes a select, which the replication check of JAX 0.10
# refuses with mixed operands; lanes one after the other pass it.
specs = dict(mesh=mesh, in_specs=(P(), P("all")), out_specs=P("all"))
same(jax.jit(jax.shard_map(lanes, check_vma=False, **specs))(problem, placed))
mapped = lambda problem, keys: jax.lax.map(lambda key: lane(problem, key), keys)
same(jax.jit(jax.shard_map(mapped, **specs))(problem, placed))
print("shard_map")
"""

DATA = """
# Measurements over the devices: rows of the ensemble and y are split, the factors are whole everywhere.
operator = dataclasses.replace(problem.operator, rows=jax.device_put(problem.operator.rows, over))
split = lr.Problem(operator, jax.device_put(problem.y, over))
assert operator.rows.addressable_shards[0].data.shape[0] == 8
for one in (solver, lr.AlternatingMinimization(max_rank=1, inner="cg", inner_steps=3)):
    run = lambda p: lr.solve(p, one, key, num_steps=10)
    alone, shared = run(problem), run(split)
    np.testing.assert_allclose(shared.factors.dense(), alone.factors.dense(), atol=1e-5)
    np.testing.assert_allclose(shared.trace["residual"], alone.trace["residual"], rtol=1e-4, atol=1e-5)
# One sum over the devices for a gradient. The two products of the adjoint with a factor share it, but not its bytes:
# XLA sends the same numbers twice.
gradient = jax.jit(lambda p, f: p.gradient(f)).lower(split, truth).compile()
assert sent(gradient) == [("all-reduce", 2 * 4 * 6 * 4)], sent(gradient)
assert gradient.memory_analysis().argument_size_in_bytes == 4 * 64 * 6 * 4 / 8 + 4 * 64 / 8 + 4 * (6 + 4)
step = sent(jax.jit(lambda p: lr.solve(p, solver, key, num_steps=10)).lower(split).compile(), "/while/body")
assert [kind for kind, size in step if size > 20] == ["all-reduce"], step
assert len(step) <= 4, step
# Measurements of weight zero fill up what does not divide.
some = lr.Problem(dataclasses.replace(problem.operator, rows=problem.operator.rows[:60]), problem.y[:60])
filled = lr.Problem(
    dataclasses.replace(problem.operator, rows=problem.operator.rows.at[60:].set(0)),
    problem.y.at[60:].set(0),
    jnp.ones(64).at[60:].set(0),
)
filled = jax.tree.map(lambda leaf: jax.device_put(leaf, over), filled)
for wanted, found in zip(some.gradient(truth), filled.gradient(truth), strict=True):
    np.testing.assert_allclose(found, wanted, atol=1e-3)
print("measurements")

# Listed entries over the devices: the blocks are split, the factors are whole everywhere.
rng = np.random.default_rng(0)
rows, cols = np.nonzero(rng.random((40, 30)) < 0.5)
rows, cols = rows[rows != 7], cols[rows != 7]
dense = (rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))).astype(np.float32)
entries, y = lr.operators.SampledEntries.build(rows, cols, dense[rows, cols], (40, 30), block_entries=64)
shared = entries.shard(jax.make_mesh((8,), ("rows",)), "rows")
for blocks in (shared.by_row.blocks, shared.by_col.blocks):
    assert len(blocks.index.sharding.device_set) == 8
    assert blocks.index.addressable_shards[0].data.shape[0] * 8 == blocks.index.shape[0]
run = lambda op: lr.solve(lr.Problem(op, y), lr.AlternatingMinimization(max_rank=2), key, num_steps=5)
alone, split = run(entries), run(shared)
np.testing.assert_allclose(split.factors.dense(), alone.factors.dense(), atol=1e-4)
assert not np.any(split.factors.left[7])
for leaf in jax.tree.leaves((split.factors, split.trace)):
    assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8, leaf.sharding
    assert leaf.dtype in (jnp.float32, jnp.int32), leaf.dtype
# A half step gathers its factor, once.
left, right = alone.factors.left, alone.factors.right
half = jax.jit(lambda op: op.solve_left(right, op.arrange(y), RowProblem())[0]).lower(shared).compile()
places = shared.by_row.row.shape[0]
assert sent(half) == [("all-gather", 4 * 2 * places)], sent(half)
# Warm starts of the sketched rows go the way back from row order, and Gauss-Newton works in the order of the entries.
warm = RowProblem(sketched=SketchedRows(key=key, start=left, tolerance=0.0, num_steps=1), ridge=0.1)
ridge = jnp.float32(0.1)


@jax.jit
def parts(op):
    both = op.couple(left, right, None, ridge, op.coupled_parts())
    coupled = both.unwhiten_left(both.apply(both.whiten_right(right)))
    back = both.unwhiten_right(both.apply_transpose(both.whiten_left(left)))
    sketched, _ = op.solve_left(right + 0.1, op.arrange(y), warm)
    return op.adjoint_matmul(y, right), sketched, coupled, back


for one, other in zip(parts(entries), parts(shared), strict=True):
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


def refused(message, call, *arguments):
    try:
        call(*arguments)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)


refused("axis must be one of ('rows',)", entries.shard, jax.make_mesh((8,), ("rows",)), "cols")
refused("mesh must be a jax.sharding.Mesh", entries.shard, jax.devices(), "rows")
refused("split already", shared.shard, jax.make_mesh((8,), ("rows",)), "rows")
# Fewer rows than devices, a mesh with another axis beside, axes that are not automatic, float64.
with jax.enable_x64(True):
    few, values = lr.operators.SampledEntries.build([0, 0, 1, 2, 2], [0, 4, 1, 0, 3], np.arange(1.0, 6.0), (3, 5))
    factor = jnp.arange(10.0).reshape(5, 2)
    wanted = few.adjoint(values) @ factor
    for mesh in (jax.make_mesh((8,), ("rows",)), Mesh(np.array(jax.devices()).reshape(2, 4), ("other", "rows"))):
        found = few.shard(mesh, "rows").adjoint_matmul(values, factor)
        assert found.dtype == jnp.float64 and found.sharding.is_fully_replicated
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
print("entries")

# What the page on sharding says that a sweep sends and a device holds.
n1, n2, k, m = 4000, 3000, 8, 120_000
rng = np.random.default_rng(0)
flat = rng.choice(n1 * n2, m, replace=False)
values = rng.standard_normal(m).astype(np.float32)
entries, y = lr.operators.SampledEntries.build(flat // n2, flat % n2, values, (n1, n2), block_entries=2048)
problem = lr.Problem(entries.shard(jax.make_mesh((8,), ("rows",)), "rows"), y)
layouts = problem.operator.by_row, problem.operator.by_col
assert all(layout.long is None for layout in layouts)
slots = sum(layout.blocks.index.size for layout in layouts)
chunks = sum(layout.blocks.slot.size for layout in layouts)
places1, places2 = (layout.row.shape[0] for layout in layouts)
assert 1.49 < slots / (2 * m) < 1.51, slots
assert (places1 / n1, places2 / n2) == (1.12, 1.28), (places1, places2)
sweeps = jax.jit(lambda p: lr.solve(p, lr.AlternatingMinimization(max_rank=k), key, num_steps=5))
compiled = sweeps.lower(problem).compile()
sweep = sent(compiled, "/while/body")
memory = compiled.memory_analysis()
assert sweep == [("all-gather", 4 * k * places2), ("all-gather", 4 * k * places1), ("all-reduce", 4)], sweep
# The program is not given what it does not read: rows and columns stay where they are.
assert memory.argument_size_in_bytes == 4 * m + (2 * 4 * slots + 4 * chunks) / 8 + 4 * (n1 + n2 + 2), memory
assert 1 < memory.temp_size_in_bytes / (4 * slots / 8 + 2 * 4 * k * (2 * n1 + n2)) < 1.3, memory
print("model")
"""


def environment():
    # XLA gives its thread pool one thread a core: with eight devices on few cores, LAPACK calls starve it.
    env = os.environ | {"PJRT_NPROC": "16", "NPROC": "16", "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[1])
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))}


@pytest.mark.parametrize(
    ("script", "parts"),
    [(TRIALS, ["trials", "shard_map"]), (DATA, ["measurements", "entries", "model"])],
    ids=["trials", "data"],
)
def test_on_eight_devices(script, parts):
    command = [sys.executable, "-c", COUNT + SETUP + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.split() == parts


TWO = """
import sys

import jax

jax.config.update("jax_num_cpu_devices", 2)
address, rank, result = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, rank)
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import lrjax as lr

assert jax.process_count() == 2 and jax.device_count() == 4 and len(jax.local_devices()) == 2
mesh = jax.make_mesh((4,), ("all",), axis_types=(AxisType.Auto,))
key, rng = jax.random.key(0), np.random.default_rng(0)


def dense(solution):
    return np.asarray(solution.factors.left) @ np.asarray(solution.factors.right).T


def close(shared, alone, **tolerances):
    np.testing.assert_allclose(dense(shared), dense(alone), **tolerances)
    np.testing.assert_allclose(shared.trace["residual"], alone.trace["residual"], rtol=1e-3, atol=1e-6)
    assert int(shared.status) == int(alone.status)


def over(leaf):
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, NamedSharding(mesh, P("all")), host.__getitem__)


# Measurements over the processes. Neither holds all of them, so the values cannot be looked at at the door.
matrices = rng.standard_normal((64, 6, 4)).astype(np.float32)
y = matrices.reshape(64, -1) @ np.outer(rng.standard_normal(6), rng.standard_normal(4)).ravel().astype(np.float32)
ensemble = lr.operators.DenseEnsemble.from_matrices(matrices)
problem = lr.Problem(ensemble, jax.numpy.asarray(y), jax.numpy.asarray(1 + y**2))
split = jax.tree.map(over, problem)
assert not split.y.is_fully_addressable
sense = lambda p: lr.solve(p, lr.ScaledGradientDescent(max_rank=1), key, num_steps=20)

# Listed entries: each process reads the same list and puts the blocks of its own devices on them.
rows, cols = np.nonzero(rng.random((40, 30)) < 0.5)
truth = (rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))).astype(np.float32)
entries, y = lr.operators.SampledEntries.build(rows, cols, truth[rows, cols], (40, 30))
shared = entries.shard(mesh, "all")
assert not shared.by_row.blocks.index.is_fully_addressable
complete = lambda op: lr.solve(lr.Problem(op, y), lr.AlternatingMinimization(max_rank=2), key, num_steps=5)

found = sense(split), complete(shared)
for solution in found:
    assert len(solution.factors.left.sharding.device_set) == 4 and solution.factors.left.is_fully_replicated
    solution.check()
# Each compares one of the two with what it finds alone; the test, that both found the same.
if rank == 0:
    close(found[0], sense(problem), atol=1e-5)
else:
    close(found[1], complete(entries), atol=1e-4)
np.savez(result, sensed=dense(found[0]), completed=dense(found[1]))
print("same")
"""


def test_two_processes_solve_one_problem(tmp_path):
    """Over loopback, two devices each: both get the answer of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [str(tmp_path / f"{i}.npz") for i in range(2)]
    commands = [[sys.executable, "-c", TWO, f"127.0.0.1:{port}", str(i), files[i]] for i in range(2)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    running = [subprocess.Popen(command, **pipes) for command in commands]
    try:
        for process in running:
            out, errors = process.communicate(timeout=200)
            assert process.returncode == 0, out + errors[-4000:]
            # Gloo, which carries the sums between processes, prints its greetings first.
            assert out.split()[-1] == "same"
        one, other = (np.load(file) for file in files)
        for name in ("sensed", "completed"):
            np.testing.assert_allclose(one[name], other[name], atol=1e-6)
    finally:
        for process in running:
            process.kill()
