"""Placement on eight devices: results and shardings are kept. In a process of its own, because devices are faked."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import jax

jax.config.update("jax_num_cpu_devices", 8)
import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import lrjax as lr

assert jax.device_count() == 8
key = jax.random.key(0)
problem, truth = lr.synthetic.matrix_sensing(key, shape=(6, 4), rank=1, num_measurements=64)
solver = lr.GradientDescent(max_rank=1)
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
mesh = Mesh(np.array(jax.devices()), ("trial",))
placed = jax.device_put(keys, NamedSharding(mesh, P("trial")))
solution = jax.jit(lanes)(problem, placed)
same(solution)
for leaf in jax.tree.leaves(solution):
    assert len(leaf.sharding.device_set) == 8, leaf.sharding
    assert leaf.addressable_shards[0].data.shape[0] == 2, leaf.sharding
print("trials")

# The same by hand. Vmapped, the conditional of the loop becomes a select, which the replication check of JAX 0.10
# refuses with mixed operands; lanes one after the other pass it.
specs = dict(mesh=mesh, in_specs=(P(), P("trial")), out_specs=P("trial"))
same(jax.jit(jax.shard_map(lanes, check_vma=False, **specs))(problem, placed))
mapped = lambda problem, keys: jax.lax.map(lambda key: lane(problem, key), keys)
same(jax.jit(jax.shard_map(mapped, **specs))(problem, placed))
print("shard_map")

# Measurements over the devices: rows of the ensemble and y are split, the factors are whole everywhere.
rows = NamedSharding(mesh, P("trial"))
operator = dataclasses.replace(problem.operator, rows=jax.device_put(problem.operator.rows, rows))
split = lr.Problem(operator, jax.device_put(problem.y, rows))
assert operator.rows.addressable_shards[0].data.shape[0] == 8
for one in (solver, lr.AlternatingMinimization(max_rank=1, inner="cg", inner_steps=3)):
    run = lambda p: lr.solve(p, one, key, num_steps=10)
    alone, shared = run(problem), run(split)
    np.testing.assert_allclose(shared.factors.dense(), alone.factors.dense(), atol=1e-5)
    np.testing.assert_allclose(shared.trace["residual"], alone.trace["residual"], rtol=1e-4, atol=1e-5)
print("measurements")

# Listed entries over the devices: every block of rows is split, the factors are whole everywhere.
rng = np.random.default_rng(0)
rows, cols = np.nonzero(rng.random((40, 30)) < 0.5)
rows, cols = rows[rows != 7], cols[rows != 7]
dense = (rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))).astype(np.float32)
entries, y = lr.operators.SampledEntries.build(rows, cols, dense[rows, cols], (40, 30), block_entries=64)
shared = entries.shard(jax.make_mesh((8,), ("rows",)), "rows")
for bucket in shared.by_row.buckets + shared.by_col.buckets:
    assert len(bucket.index.sharding.device_set) == 8
    assert bucket.index.addressable_shards[0].data.shape[1] * 8 == bucket.index.shape[1]
run = lambda op: lr.solve(lr.Problem(op, y), lr.AlternatingMinimization(max_rank=2), key, num_steps=5)
alone, split = run(entries), run(shared)
np.testing.assert_allclose(split.factors.dense(), alone.factors.dense(), atol=1e-4)
assert not np.any(split.factors.left[7])
product = lambda op: op.adjoint_matmul(y, alone.factors.right)
np.testing.assert_allclose(product(shared), product(entries), atol=1e-4)
print("entries")
"""


def test_on_eight_devices():
    # XLA gives its thread pool one thread a core: with eight devices on few cores, LAPACK calls starve it.
    env = os.environ | {"PJRT_NPROC": "16", "NPROC": "16", "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    root = str(Path(__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240, env=env)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.split() == ["trials", "shard_map", "measurements", "entries"]
