"""Regression, sketches, factors, metrics, operators, synthetic problems, diagnostics, neighbours, private, sweeps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import lrjax as lr
from lrjax import sketching

from . import recipes
from .core import KEY, target
from .recipes import (
    Number,
    good_array,
    good_key,
    odd_array,
    odd_choice,
    odd_count,
    odd_flag,
    odd_index,
    odd_key,
    odd_real,
    odd_shape,
)

just, pick = st.just, st.sampled_from
count = lambda low, high: st.integers(low, high)

# --- regression ---

A, B = (24, 3), (24,)
target(
    "lstsq",
    "sketching",
    {"a": good_array(A), "b": good_array(B), "key": good_key, "method": pick(["auto", "direct", "lsqr"])},
    {
        "a": st.one_of(odd_array(A), good_array((3, 24)), good_array((1, 1)), good_array((24, 24))),
        "b": st.one_of(odd_array(B), good_array((24, 2))),
        "key": odd_key,
        "method": st.one_of(
            odd_choice,
            pick(["normal_equations", "cholesky_qr", "sketch_and_solve", "iterative_sketching", "fossils"]),
        ),
        "weights": st.one_of(odd_array(B), good_array(B, ("ones", "ties", "zeros"))),
        "ridge": odd_real,
        "tolerance": odd_real,
        "max_steps": odd_count,
        "sketch": st.one_of(odd_choice, pick(["gaussian", "count", "srht", "pooled"])),
        "sketch_size": odd_count,
    },
    lambda **kw: lr.lstsq(kw.pop("a"), kw.pop("b"), kw.pop("key"), **kw),
    examples=6,
)
target(
    "lstsq_blocks",
    "sketching",
    {"a": good_array(A), "b": good_array(B), "key": good_key, "method": pick(["cholesky_qr", "sketch_and_solve"])},
    {
        "a": odd_array(A, traced=False),
        "b": odd_array(B, traced=False),
        "key": odd_key,
        "method": odd_choice,
        "sketch_size": odd_count,
        "ridge": odd_real,
    },
    lambda a, b, key, **kw: [
        (r := sketching.lstsq_blocks(lambda: iter([(a, b), (a, b)]), key, **kw)).x,
        r.backward_error * 0 if kw.get("method") != "sketch_and_solve" else 0.0,
    ],
    names=("block",),
    examples=2,
)
target(
    "lp_regression",
    "sketching",
    {"a": good_array(A), "b": good_array(B), "p": pick([1.0, 1.5, 2.0])},
    {
        "a": st.one_of(odd_array(A), good_array((3, 24))),
        "b": odd_array(B),
        "p": st.one_of(odd_real, pick([3, 8.0, 100.0])),
        "tolerance": odd_real,
        "num_steps": pick([Number(0), Number(2.0), Number(True), Number(5, "int64"), Number(5, "jax")]),
        "num_rows": odd_count,
        "scores": st.one_of(odd_choice, odd_array(B)),
        "key": st.one_of(good_key, odd_key),
    },
    lambda **kw: sketching.lp_regression(kw.pop("a"), kw.pop("b"), kw.pop("p"), **kw),
    examples=5,
)
W = (7, 5)
target(
    "rsvd",
    "sketching",
    {"a": good_array(W), "rank": count(1, 2), "key": good_key},
    {
        "a": st.one_of(odd_array(W), good_array((1, 5)), good_array((1, 1))),
        "rank": st.one_of(odd_count, count(3, 6)),
        "key": odd_key,
        "oversample": odd_count,
        "power_steps": pick([Number(0), Number(-1), Number(1.0), Number(2, "int64"), Number(True)]),
    },
    lambda **kw: lr.rsvd(kw.pop("a"), kw.pop("rank"), **kw),
)
target(
    "low_rank",
    "sketching",
    {"w": good_array(W), "rank": count(1, 2)},
    {
        "w": st.one_of(odd_array(W), good_array((1, 5)), good_array((1, 1))),
        "rank": st.one_of(odd_count, count(3, 6)),
        "row_metric": st.one_of(odd_array((7,)), good_array((7,), ("ones", "ties", "zeros")), good_array((7, 7))),
        "col_metric": st.one_of(odd_array((5,)), good_array((5,), ("ones", "ties", "zeros")), good_array((5, 5))),
        "key": st.one_of(good_key, odd_key),
    },
    lambda **kw: lr.low_rank(kw.pop("w"), kw.pop("rank"), **kw),
    examples=5,
)
target(
    "scores",
    "sketching",
    {"a": good_array(A), "kind": pick(["leverage", "root", "lewis"]), "p": pick([1.0, 1.5])},
    {
        "a": st.one_of(odd_array(A), good_array((3, 24)), good_array((1, 1))),
        "p": odd_real,
        "kind": just("sensitivities"),
        "key": st.one_of(good_key, odd_key),
    },
    lambda a, kind, p, key=None: {
        "leverage": lambda: sketching.leverage_scores(a, key=key),
        "root": lambda: sketching.root_leverage_scores(a, p, key=key),
        "lewis": lambda: sketching.lewis_weights(a, p),
        "sensitivities": lambda: sketching.lp_sensitivities(a, p),
    }[kind](),
    examples=3,
)
target(
    "row_sample",
    "sketching",
    {"key": good_key, "scores": good_array(B, ("ties", "ones")), "num_rows": count(1, 6), "replacement": st.booleans()},
    {
        "key": odd_key,
        "scores": odd_array(B),
        "num_rows": st.one_of(odd_count, count(20, 30)),
        "replacement": odd_flag,
        "p": odd_real,
        "a": odd_array((24, 2)),
    },
    lambda key, scores, num_rows, replacement, p=2.0, a=None: (
        sample := sketching.RowSample.create(key, scores, num_rows, replacement=replacement, p=p),
        sample.apply(a) if a is not None else None,
    ),
)
target(
    "dpp",
    "sketching",
    {"key": good_key, "n": just(6), "kind": pick(["projection", "volume", "repeated"]), "num": count(3, 5)},
    {"key": odd_key, "phi": st.one_of(odd_array((6, 2)), just(recipes.Array((6, 6)))), "num": odd_count},
    lambda key, n, kind, num, phi=None: {
        "projection": lambda phi: sketching.projection_dpp(key, phi),
        "volume": lambda phi: sketching.volume_rescaled_sample(key, phi, num),
        "repeated": lambda phi: sketching.repeated_dpp(key, phi, num),
    }[kind](np.eye(n, 2, dtype=np.float32) if phi is None else phi),
    names=("phi", "num_rows", "num_repeats"),
)
target(
    "sampled_matmul",
    "sketching",
    {"x": good_array((4, 6)), "y": good_array((6, 3)), "num_samples": count(1, 5), "key": good_key},
    {
        "x": odd_array((4, 6)),
        "y": odd_array((6, 3)),
        "num_samples": st.one_of(
            pick([Number(0), Number(-1), Number(2.0), Number(True), Number(2, "int64"), Number(2, "jax"), Number(7)])
        ),
        "key": odd_key,
        "method": st.one_of(odd_choice, just("crs")),
    },
    lambda **kw: sketching.sampled_matmul(kw.pop("x"), kw.pop("y"), kw.pop("num_samples"), kw.pop("key"), **kw),
)
_SKETCHES = {kind.__name__: kind for kind in (
    sketching.GaussianSketch, sketching.RademacherSketch, sketching.SparseSignSketch, sketching.CountSketch,
    sketching.VerySparseSketch, sketching.SRHT, sketching.SRDCT, sketching.BlockSRHT, sketching.PooledSketch,
)}  # fmt: skip
target(
    "sketch",
    "sketching",
    {"kind": pick(sorted(_SKETCHES)), "key": good_key, "num_rows": just(8), "num_cols": just(24), "a": good_array(A)},
    {
        "key": odd_key,
        "num_rows": st.one_of(pick(recipes.ODD_COUNTS).filter(lambda n: n.value not in (10**6, 2**63)), just(1)),
        "num_cols": pick([Number(0), Number(-1), Number(24.0), Number(True), Number(24, "int64"), Number(24, "jax")]),
        "a": odd_array(A),
        "z": odd_array((8, 2)),
    },
    lambda kind, key, num_rows, num_cols, a, z=None: (
        made := _SKETCHES[kind].create(key, num_rows, num_cols),
        made.apply(a),
        made.apply_adjoint(z) if z is not None else None,
    )[1:],
    names=("num_nonzeros", "num_rows"),
    examples=5,
)
target(
    "tensor_sketch",
    "sketching",
    {"key": good_key, "num_rows": count(2, 4), "size1": just(3), "size2": just(4), "x": good_array((3, 2))},
    {"x": odd_array((3, 2)), "y": odd_array((4, 2)), "size1": pick([Number(0), Number(3.0), Number(3, "int64")])},
    lambda key, num_rows, size1, size2, x, y=None: sketching.TensorSRHT.create(
        key, num_rows, size1, size2
    ).apply_products(x, np.ones((4, 2), np.float32) if y is None else y),
    examples=3,
)
target(
    "coordinatewise",
    "sketching",
    {"a": good_array((600, 2)), "b": good_array((600,)), "key": good_key, "epsilon": just(0.6)},
    {
        "a": odd_array((600, 2)),
        "b": odd_array((600,)),
        "key": odd_key,
        "epsilon": odd_real,
        "delta": odd_real,
        "sketch": st.one_of(odd_choice, pick(["srht", "gaussian"])),
    },
    lambda **kw: sketching.coordinatewise_lstsq(kw.pop("a"), kw.pop("b"), kw.pop("key"), **kw),
    names=("sketch",),
)

# --- factors and metrics ---

_METHODS = {
    "dense": lambda f, v: f.dense(),
    "entries": lambda f, v: f.entries(*(([0, 1, 2], [0, 1, 2]) if v is None else (v, [0, 1, 2]))),
    "matmul": lambda f, v: f.matmul(np.ones((5, 2), np.float32) if v is None else v),
    "rmatmul": lambda f, v: f.rmatmul(np.ones((7, 2), np.float32) if v is None else v),
    "svd": lambda f, v: f.svd(),
    "truncate": lambda f, v: f.truncate(1 if v is None else v),
    "balanced": lambda f, v: f.balanced(),
    "norm": lambda f, v: f.norm(),
}
for _name, _odd in {
    "dense": None, "svd": None, "balanced": None, "norm": None, "entries": odd_index,
    "matmul": odd_array((5, 2)), "rmatmul": odd_array((7, 2)), "truncate": odd_count,
}.items():  # fmt: skip
    target(
        f"factors_{_name}",
        "factors",
        {"left": good_array((7, 2)), "right": good_array((5, 2))},
        # Factors take what they are given, so that only their own methods are judged: arrays of JAX.
        ({} if _odd is None else {"v": _odd})
        | {
            "left": st.builds(recipes.Array, just((7, 2)), pick(("zeros", "ones", "1e15", "1e-30", "subnormal"))),
            "right": st.builds(recipes.Array, just((5, 2)), bad=pick(recipes.BAD), traced=just(True)),
        },
        lambda left, right, v=None, name=_name: _METHODS[name](lr.Factors(jnp.asarray(left), jnp.asarray(right)), v),
        names=("rank", "rows", "cols", "u", "v"),
        examples=3,
    )


def _over_truth(metric: Any) -> Any:
    """A ratio, and zero for a truth of nothing: there it is infinite or NaN, as documented."""

    def call(estimate: Any, truth: Any) -> Any:
        found, dense = (
            metric(estimate, truth),
            jnp.abs(jnp.asarray(np.asarray(truth) if isinstance(truth, list) else truth)),
        )
        least = jnp.finfo(dense.dtype).tiny if jnp.issubdtype(dense.dtype, jnp.floating) else 0
        return jnp.where(jnp.any(dense > least), found, 0)

    return call


_METRICS = {
    "relative_error": _over_truth(lr.metrics.relative_error),
    "success": lr.metrics.success,
    "subspace_distance": lr.metrics.subspace_distance,
    "rmse": lambda estimate, truth: lr.metrics.rmse(estimate, truth),
    "support_recovery": lr.metrics.support_recovery,
    "scaled_error": _over_truth(lr.metrics.scaled_error),
}
for _name, _call in _METRICS.items():
    target(
        f"metrics_{_name}",
        "metrics",
        {"estimate": good_array((7, 2)), "truth": good_array((7, 2))},
        {"estimate": odd_array((7, 2)), "truth": st.one_of(odd_array((7, 2)), just(recipes.Array((7, 3))))},
        lambda estimate, truth, call=_call: call(estimate, truth),
        names=("a (", "b (", "a ", "b ", "predicted", "values"),
        examples=3,
    )

# --- operators ---

_BUILDERS: dict[str, tuple[Callable, dict, dict]] = {
    "dense": (
        lambda matrices, **kw: lr.operators.DenseEnsemble.from_matrices(matrices, **kw),
        {"matrices": good_array((6, 3, 3))},
        {"matrices": odd_array((6, 3, 3)), "symmetric": odd_flag},
    ),
    "dense_gaussian": (
        lambda key, shape, num_measurements, **kw: lr.operators.DenseEnsemble.gaussian(
            key, shape, num_measurements, **kw
        ),
        {"key": good_key, "shape": just((7, 5)), "num_measurements": count(1, 9)},
        {
            "key": odd_key,
            "shape": odd_shape,
            "num_measurements": odd_count,
            "symmetric": odd_flag,
            "scale": odd_real,
            "dtype": pick([Number("int32"), Number("float16"), Number("nonsense"), Number("float64"), Number(3)]),
        },
    ),
    "seeded": (
        lambda key, shape, num_measurements, **kw: lr.operators.SeededGaussianEnsemble.create(
            key, shape, num_measurements, **kw
        ),
        {"key": good_key, "shape": just((7, 5)), "num_measurements": count(1, 9)},
        {
            "key": odd_key,
            "shape": odd_shape,
            "num_measurements": odd_count,
            "symmetric": odd_flag,
            "scale": odd_real,
            "block_size": odd_count,
            "dtype": pick([Number("int32"), Number("float16"), Number("nonsense"), Number("float64"), Number(3)]),
        },
    ),
    "sampled": (
        lambda rows, cols, values, shape, **kw: lr.operators.SampledEntries.build(rows, cols, values, shape, **kw),
        {"rows": just([0, 1, 2]), "cols": just([0, 1, 2]), "values": good_array((3,)), "shape": just((7, 5))},
        {
            "rows": odd_index,
            "cols": odd_index,
            "values": odd_array((3,), traced=False),
            "shape": odd_shape,
            "duplicates": odd_choice,
            "block_entries": odd_count,
        },
    ),
    "mask": (
        lambda mask: lr.operators.EntryMask.from_mask(mask),
        {"mask": st.builds(recipes.Array, just((7, 5)), just("ones"), just("bool"))},
        {"mask": odd_array((7, 5), traced=False)},
    ),
    "rank_one": (
        lambda left_vectors, right_vectors: lr.operators.RankOneMeasurements.from_vectors(left_vectors, right_vectors),
        {"left_vectors": good_array((6, 3)), "right_vectors": good_array((6, 4))},
        {"left_vectors": odd_array((6, 3)), "right_vectors": odd_array((6, 4))},
    ),
    "rank_one_gaussian": (
        lambda key, shape, num_measurements, **kw: lr.operators.RankOneMeasurements.gaussian(
            key, shape, num_measurements, **kw
        ),
        {"key": good_key, "shape": just((7, 5)), "num_measurements": count(1, 9)},
        {
            "shape": odd_shape,
            "num_measurements": odd_count,
            "symmetric": odd_flag,
            "dtype": pick([Number("int32"), Number("nonsense"), Number(3)]),
        },
    ),
    "kronecker": (
        lambda one, two, **kw: lr.operators.Kronecker.from_matrices([one, two], **kw),
        {"one": good_array((4, 3)), "two": good_array((5, 2))},
        {"one": odd_array((4, 3)), "two": odd_array((5, 2)), "num_row_modes": odd_count},
    ),
    "hankel": (
        lambda block_rows, block_cols, **kw: lr.operators.Hankel.create(block_rows, block_cols, **kw),
        {"block_rows": count(1, 4), "block_cols": count(1, 4)},
        {"block_rows": odd_count, "block_cols": odd_count, "block_shape": odd_shape},
    ),
    "gain": (
        lambda matrices, **kw: lr.operators.GainMeasurements.from_matrices(matrices, **kw),
        {"matrices": good_array((3, 4, 2))},
        {"matrices": odd_array((3, 4, 2)), "num_snapshots": odd_count, "diverse": odd_flag},
    ),
    "gain_gaussian": (
        lambda key, shape, num_blocks, **kw: lr.operators.GainMeasurements.gaussian(key, shape, num_blocks, **kw),
        {"key": good_key, "shape": just((4, 2)), "num_blocks": count(1, 3)},
        {"shape": odd_shape, "num_blocks": odd_count, "model": odd_choice, "scale": odd_real},
    ),
    "gain_seeded": (
        lambda key, shape, num_blocks, **kw: lr.operators.SeededGainMeasurements.create(key, shape, num_blocks, **kw),
        {"key": good_key, "shape": just((4, 2)), "num_blocks": count(1, 3)},
        {"shape": odd_shape, "num_blocks": odd_count, "model": odd_choice, "scale": odd_real},
    ),
    "gain_structured": (
        lambda key, shape, num_blocks, **kw: lr.operators.StructuredGainMeasurements.create(
            key, shape, num_blocks, **kw
        ),
        {"key": good_key, "shape": just((4, 2)), "num_blocks": count(1, 3)},
        {
            "shape": odd_shape.filter(lambda s: s.value != (2**31, 5) if isinstance(s, Number) else True),
            "num_blocks": odd_count,
            "model": odd_choice,
            "transform": odd_choice,
            "rounds": pick([Number(0), Number(2.0), Number(2, "int64"), Number(True), Number(2, "jax")]),
        },
    ),
    "scaled": (
        lambda factor: lr.operators.scaled(lr.operators.Identity(matrix_shape=(2, 2)), factor),
        {"factor": good_array((4,))},
        {"factor": st.one_of(odd_array((4,)), odd_real)},
    ),
    "masked": (
        lambda mask: lr.operators.masked(lr.operators.Identity(matrix_shape=(2, 2)), mask),
        {"mask": st.builds(recipes.Array, just((4,)), just("ones"), just("bool"))},
        {"mask": odd_array((4,))},
    ),
}


def _built(call: Callable, **given: Any) -> Any:
    """Builds an operator and measures with it: what a builder let through must work."""
    made = call(**given)
    operator = made[0] if isinstance(made, tuple) else made
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(operator)):
        return made
    (n1, n2), leaves = operator.shape, [x for x in jax.tree.leaves(operator) if jnp.issubdtype(x.dtype, jnp.inexact)]
    if n1 * n2 > 10**5 or operator.num_measurements > 10**5:
        return made
    dtype = leaves[0].dtype if leaves else jnp.float32
    return made, operator.forward(jnp.ones((n1, 1), dtype), jnp.ones((n2, 1), dtype))


for _name, (_call, _good, _odd) in _BUILDERS.items():
    target(
        f"operator_{_name}",
        "operators",
        _good,
        _odd,
        lambda call=_call, **given: _built(call, **given),
        names=("rows", "matrices", "dense ensemble", "GiB"),
        examples=3,
    )

# --- synthetic problems and diagnostics ---

_SYNTHETIC: dict[str, tuple[Callable, dict, dict]] = {
    "low_rank": (
        lambda key, shape, rank, **kw: lr.synthetic.low_rank(key, shape, rank, **kw),
        {"key": good_key, "shape": just((7, 5)), "rank": count(1, 2)},
        {"key": odd_key, "shape": odd_shape, "rank": odd_count, "condition_number": odd_real, "coherence": odd_real},
    ),
    "corrupt": (
        lambda key, y, **kw: lr.synthetic.corrupt(key, y, **kw),
        {"key": good_key, "y": good_array((9,))},
        {
            "key": odd_key,
            "y": odd_array((9,)),
            "noise": odd_real,
            "corruption": odd_real,
            "corruption_scale": odd_real,
            "kind": st.one_of(odd_choice, pick(["one_sided", "adversarial_sign"])),
        },
    ),
    "matrix_sensing": (
        lambda key, **kw: lr.synthetic.matrix_sensing(key, **kw),
        {"key": good_key, "shape": just((7, 5)), "rank": count(1, 2), "num_measurements": just(20)},
        {
            "key": odd_key,
            "shape": odd_shape,
            "rank": odd_count,
            "num_measurements": odd_count,
            "symmetric": odd_flag,
            "noise": odd_real,
            "corruption": odd_real,
            "loss": odd_choice,
            "dtype": pick([Number("int32"), Number("float16"), Number("nonsense"), Number(3)]),
        },
    ),
    "matrix_completion": (
        lambda key, **kw: lr.synthetic.matrix_completion(key, **kw),
        {"key": good_key, "shape": just((7, 5)), "rank": count(1, 2), "fraction": just(0.5)},
        {
            "key": odd_key,
            "shape": odd_shape,
            "rank": odd_count,
            "fraction": odd_real,
            "oversampling": odd_real,
            "sampling": odd_choice,
            "symmetric": odd_flag,
            "coherence": odd_real,
            "condition_number": odd_real,
        },
    ),
    "large_completion": (
        lambda key, **kw: lr.synthetic.large_completion(key, **kw),
        {"key": good_key, "shape": just((40, 30)), "rank": count(1, 2), "oversampling": just(2.0)},
        {
            "shape": odd_shape,
            "rank": odd_count,
            "oversampling": odd_real,
            "noise": odd_real,
            "sampling": odd_choice,
            "condition_number": odd_real,
        },
    ),
    "sampled_entries": (
        lambda key, num_entries, **kw: lr.synthetic.sampled_entries(
            key, lr.Factors(jnp.ones((7, 1)), jnp.ones((5, 1))), num_entries, **kw
        ),
        {"key": good_key, "num_entries": count(1, 17)},
        {
            "num_entries": odd_count,
            "sampling": odd_choice,
            "noise": odd_real,
            "min_per_line": st.one_of(odd_count, count(1, 3)),
        },
    ),
    "gain_calibration": (
        lambda key, **kw: lr.synthetic.gain_calibration(key, **kw),
        {"key": good_key, "shape": just((4, 2)), "num_blocks": count(1, 3)},
        {
            "shape": odd_shape,
            "num_blocks": odd_count,
            "model": odd_choice,
            "radius": odd_real,
            "noise": odd_real,
            "random_phase": odd_flag,
            "dtype": pick([Number("complex64"), Number("int32"), Number("nonsense")]),
        },
    ),
}
for _name, (_call, _good, _odd) in _SYNTHETIC.items():
    target(f"synthetic_{_name}", "synthetic", _good, _odd, _call, names=("fraction", "GiB"), examples=3)

_DIAGNOSTICS: dict[str, tuple[Callable, dict, dict]] = {
    "undetermined": (
        lr.diagnostics.undetermined,
        {"rows": just([0, 1, 2]), "cols": just([0, 1, 2]), "shape": just((7, 5)), "rank": count(1, 2)},
        {"rows": odd_index, "cols": odd_index, "shape": odd_shape, "rank": odd_count},
    ),
    "rip": (
        lambda rank, num_directions, **kw: lr.diagnostics.rip(
            lr.operators.Identity(matrix_shape=(7, 5)), KEY, rank=rank, num_directions=num_directions, **kw
        ),
        {"rank": count(1, 2), "num_directions": just(3)},
        {
            "rank": odd_count,
            "num_directions": pick([Number(0), Number(3.0), Number(3, "int64"), Number(True)]),
            "symmetric": odd_flag,
        },
    ),
    "sign_rip": (
        lambda rank, num_directions, **kw: lr.diagnostics.sign_rip(
            lr.operators.Identity(matrix_shape=(7, 5)), KEY, rank=rank, num_directions=num_directions, **kw
        ),
        {"rank": count(1, 2), "num_directions": just(3)},
        {"rank": odd_count, "size": odd_real, "noise": odd_array((35,)), "symmetric": odd_flag},
    ),
    "coherence": (
        lambda x, **kw: lr.diagnostics.coherence(x, **kw),
        {"x": good_array((7, 5))},
        {"x": odd_array((7, 5)), "rank": odd_count},
    ),
    "effective_rank": (
        lambda x, **kw: lr.diagnostics.effective_rank(x, **kw),
        {"x": good_array((7, 5))},
        {"x": odd_array((7, 5)), "kind": st.one_of(odd_choice, just("stable"))},
    ),
    "fit_rate": (
        lambda errors, **kw: lr.diagnostics.fit_rate(errors, **kw),
        {"errors": just([1e-3**i for i in np.linspace(0, 1, 20)])},
        {
            "errors": st.one_of(odd_array((20,), traced=False), odd_array((3, 20), traced=False)),
            "steps": odd_array((20,), traced=False),
            "kind": odd_choice,
            "start": odd_real,
            "floor": odd_real,
        },
    ),
    "fit_transition": (
        # The midpoint is NaN where the curve does not cross one half.
        lambda levels, successes, num_trials: lr.diagnostics.fit_transition(levels, successes, num_trials)[1:],
        {"levels": just([0.1, 0.2, 0.3]), "successes": just([5, 3, 0]), "num_trials": just(5)},
        {
            "levels": odd_array((3,), traced=False),
            "successes": odd_array((3,), traced=False),
            "num_trials": st.one_of(odd_count, odd_array((3,), traced=False)),
        },
    ),
}
for _name, (_call, _good, _odd) in _DIAGNOSTICS.items():
    target(
        f"diagnostics_{_name}",
        "diagnostics",
        _good,
        _odd,
        _call,
        names=("no curve",),
        examples=3,
    )

# --- neighbours ---


def _gains(y: Any, **kw: Any) -> Any:
    operator = lr.operators.GainMeasurements.gaussian(KEY, (4, 2), 3)
    return lr.calibrate(operator, y, **kw)


target(
    "calibrate",
    "neighbours",
    {"y": good_array((12,))},
    {
        "y": odd_array((12,)),
        "method": st.one_of(odd_choice, just("spectral")),
        "anchor": st.one_of(odd_choice, odd_array((4,)), just("gaussian")),
        "key": st.one_of(good_key, odd_key),
    },
    _gains,
)


def _sparse(y: Any, **kw: Any) -> Any:
    parts = [jax.random.normal(k, size) for k, size in zip(jax.random.split(KEY), [(4, 3), (5, 2)], strict=True)]
    return lr.sparse_bayesian(lr.operators.Kronecker.from_matrices(parts), y, num_steps=kw.pop("num_steps", 5), **kw)


target(
    "sparse_bayesian",
    "neighbours",
    {"y": good_array((20,))},
    {
        "y": odd_array((20,)),
        "method": odd_choice,
        "noise_variance": odd_real,
        "tolerance": odd_real,
        "pruning": odd_real,
        "num_steps": pick([Number(0), Number(5.0), Number(5, "int64"), Number(True), Number(5, "array")]),
    },
    _sparse,
)
target(
    "ho_kalman",
    "neighbours",
    {"markov": good_array((8, 2, 1), ("normal", "ones")), "order": count(1, 2)},
    {
        "markov": st.one_of(odd_array((8, 2, 1)), just(recipes.Array((3, 1, 1)))),
        "order": odd_count,
        "block_rows": odd_count,
        "key": st.one_of(good_key, odd_key),
        "oversample": odd_count,
        "power_steps": pick([Number(0), Number(-1), Number(1.0), Number(1, "int64")]),
    },
    lambda **kw: lr.ho_kalman(kw.pop("markov"), kw.pop("order"), **kw),
)
target(
    "markov_parameters",
    "neighbours",
    {"inputs": good_array((12, 3, 1)), "outputs": good_array((12, 2)), "key": good_key},
    {"inputs": odd_array((12, 3, 1)), "outputs": odd_array((12, 2)), "key": odd_key},
    lambda **kw: lr.markov_parameters(kw["inputs"], kw["outputs"], kw["key"]),
    examples=2,
)


def _system(kind: str, given: Any, key: Any = KEY) -> Any:
    eye = jnp.eye(2) * 0.5
    system = lr.StateSpace(a=eye, b=jnp.ones((2, 1)), c=jnp.ones((1, 2)), d=jnp.ones((1, 1)))
    if kind == "markov":
        return system.markov(given)
    if kind == "frequency":
        return system.frequency_response(given)
    return system.simulate(given, key)


target(
    "state_space",
    "neighbours",
    {"kind": just("markov"), "given": count(1, 3)},
    {"given": pick([Number(0), Number(2.0), Number(True), Number(2, "int64"), Number(2, "jax"), Number(2, "array")])},
    _system,
    names=("length",),
    examples=3,
)
target(
    "state_space_inputs",
    "neighbours",
    {"kind": pick(["frequency"]), "given": good_array((3,))},
    {"kind": just("simulate"), "given": st.one_of(odd_array((3,)), odd_array((2, 3, 1)))},
    _system,
    names=("frequencies", "inputs"),
    examples=3,
)
target(
    "supervised_dictionary",
    "neighbours",
    {"features": good_array((12, 4)), "labels": just([0, 1] * 6), "rank": just(2)},
    {
        "features": odd_array((12, 4)),
        "labels": st.one_of(
            odd_array((12,), traced=False), just([0, 2] * 6), just([2**32, 1] * 6), just(["a", "b"] * 6)
        ),
        "covariates": odd_array((12, 1)),
        "rank": odd_count,
        "form": st.one_of(odd_choice, just("feature")),
        "reconstruction": odd_real,
        "ridge": odd_real,
        "scale": odd_real,
        "step_size": odd_real,
        "num_classes": st.one_of(odd_count.filter(lambda n: n.value not in (10**6, 2**63)), just(3)),
    },
    lambda **kw: lr.supervised_dictionary(kw.pop("features"), kw.pop("labels"), num_steps=5, **kw),
    examples=5,
)


def _dictionary(features: Any, covariates: Any = None) -> Any:
    x = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    fitted = lr.supervised_dictionary(x, [0, 1] * 6, rank=2, num_steps=5)
    return fitted.predict(features, covariates), fitted.encode(features)


target(
    "dictionary_predict",
    "neighbours",
    {"features": good_array((3, 4))},
    {"features": odd_array((3, 4), traced=False), "covariates": odd_array((3, 1), traced=False)},
    _dictionary,
    examples=3,
)


def _bowl(x: Any, free: Any) -> Any:
    return jnp.sum((x - 1) ** 2) + sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(free))


target(
    "rank_projected_descent",
    "neighbours",
    {"start": good_array((4, 3)), "rank": just(1), "step_size": just(0.1)},
    {
        "start": odd_array((4, 3)),
        "rank": odd_count,
        "step_size": odd_real,
        "free": odd_array((2,)),
        "tolerance": odd_real,
        "num_steps": pick([Number(0), Number(5.0), Number(5, "int64"), Number(True), Number(5, "array")]),
        "record_every": pick([Number(0), Number(2), Number(1.0), Number(True), Number(1, "int64")]),
    },
    lambda start, free=None, num_steps=5, **kw: lr.rank_projected_descent(
        _bowl, start, free, num_steps=num_steps, **kw
    ),
    names=("objective", "num_steps"),
)

# --- private ---

_private = lambda: lr.private.LowRankSketch.create(KEY, (7, 5), size=2)
_PRIVATE: dict[str, tuple[Callable, dict, dict]] = {
    "create": (
        lambda key, shape, **kw: lr.private.LowRankSketch.create(key, shape, **kw),
        {"key": good_key, "shape": just((7, 5)), "size": count(1, 2)},
        {
            "key": odd_key,
            "shape": odd_shape,
            "size": odd_count,
            "core_size": odd_count.filter(lambda n: n.value not in (10**6, 2**63)),
            "dtype": pick([Number("float16"), Number("int32"), Number("nonsense"), Number("float64"), Number(3)]),
        },
    ),
    "add": (
        lambda change, **kw: _private().add(change).low_rank(kw.pop("rank", 1), **kw),
        {"change": good_array((7, 5))},
        {"change": odd_array((7, 5)), "rank": odd_count, "cut": odd_real},
    ),
    "add_rows": (
        lambda indices, values: _private().add_rows(indices, values),
        {"indices": just([0, 1, 2]), "values": good_array((3, 5))},
        {"indices": odd_index, "values": odd_array((3, 5))},
    ),
    "add_entries": (
        lambda rows, cols, values: _private().add_entries(rows, cols, values),
        {"rows": just([0, 1, 2]), "cols": just([0, 1, 2]), "values": good_array((3,))},
        {"rows": odd_index, "cols": odd_index, "values": odd_array((3,))},
    ),
    "noisy": (
        lambda key, deviations: _private().noisy(key, deviations),
        {"key": good_key, "deviations": just((0.1, 0.1, 0.1))},
        {"key": odd_key, "deviations": st.one_of(odd_real, st.tuples(odd_real, odd_real, odd_real))},
    ),
    "tree": (
        lambda key, num_releases, deviations, change: (
            lr.private.TreeRelease.create(_private(), key, num_releases=num_releases, deviations=deviations)
            .update(_private().add(change))
            .release()
        ),
        {
            "key": good_key,
            "num_releases": count(1, 3),
            "deviations": just((0.1, 0.1, 0.1)),
            "change": good_array((7, 5)),
        },
        {"num_releases": odd_count, "deviations": st.tuples(odd_real, odd_real, odd_real), "change": odd_array((7, 5))},
    ),
    "budget": (
        lambda epsilon, delta, **kw: lr.private.gaussian_noise(epsilon, delta, **kw),
        {"epsilon": just(1.0), "delta": just(1e-6)},
        {"epsilon": odd_real, "delta": odd_real, "sensitivity": odd_real},
    ),
    "delta": (
        lambda epsilon, mu: lr.private.gaussian_delta(epsilon, mu),
        {"epsilon": just(1.0), "mu": just(1.0)},
        {"epsilon": odd_real, "mu": odd_real},
    ),
    "deviations": (
        lambda epsilon, delta, **kw: lr.private.noise_deviations(_private(), epsilon=epsilon, delta=delta, **kw),
        {"epsilon": just(1.0), "delta": just(1e-6)},
        {
            "epsilon": odd_real,
            "delta": odd_real,
            "change": odd_real,
            "neighbours": st.one_of(odd_choice, just("any")),
            "num_releases": odd_count,
        },
    ),
    "perturbed": (
        lambda x, rank, key, **kw: lr.private.perturbed_low_rank(x, rank, key, **kw),
        {"x": good_array((7, 5)), "rank": just(1), "key": good_key, "epsilon": just(1.0), "delta": just(1e-6)},
        {"x": odd_array((7, 5)), "rank": odd_count, "key": odd_key, "epsilon": odd_real, "change": odd_real},
    ),
}
for _name, (_call, _good, _odd) in _PRIVATE.items():
    target(f"private_{_name}", "private", _good, _odd, _call, names=("sketch", "core_size", "sensitivity"), examples=3)

# --- sweeps ---


def _trial(key: jax.Array, level: Any = 1.0, kind: Any = "a", shared: Any = None) -> dict:
    return {"x": jax.random.normal(key) * 0.001 + level, "k": jnp.asarray(float(len(str(kind))))}


def _swept(grid: Any, num_trials: Any = 2, **kw: Any) -> Any:
    table = lr.sweep(_trial, kw.pop("key", KEY), grid=grid, num_trials=num_trials, progress=False, **kw)
    # The answer of a trial is its level up to a thousandth: axes must not change on the way.
    levels = np.asarray(table["level"].values, complex) if "level" in grid else None
    found = (
        np.moveaxis(np.asarray(table["x"].values), list(table["x"].dims).index("level"), 0) if "level" in grid else 0
    )
    return {"levels": levels, "found": found}


def _same_axis(result: dict, given: dict) -> list[str]:
    if result["levels"] is None or not recipes.finite(given):
        return []
    levels = result["levels"].reshape(-1, *[1] * (result["found"].ndim - 1))
    off = np.abs(result["found"] - levels) > 0.01 * (1 + np.abs(levels))
    return ["the axis of a sweep changed on the way"] if off.any() else []


_axes = st.sampled_from([
    [0.1, 0.2], [1, 2], (0.5,), np.array([1.0, 2.0]), [True, False], [1, 2**32 + 1], [1e-50, 1e50], ["a", "b"], [], 3,
    [[1.0], [2.0]], [[1.0], [1.0, 2.0]], [1j, 2.0], [float("nan"), 1.0], None, "ab", [None, 1], range(2), {1.0, 2.0},
    np.array([1.0, 2.0], ">f4"), np.array([1.0, 2.0], "longdouble"), np.array([1, 2], "uint64"), [-1, 2**31],
    np.array([1.0, 2.0], "float16"), [2**63, 1], [2**70, 1],
]).map(repr)  # fmt: skip
_NAMES = {
    "array": np.array,
    "nan": np.nan,
    "float16": np.float16,
    "float128": np.longdouble,
    "longdouble": np.longdouble,
}
_axis = lambda text: eval(text, {**_NAMES, "uint64": np.uint64})
target(
    "sweep",
    "sweep",
    {"level": just("[0.1, 0.2]"), "num_trials": count(1, 2)},
    {
        "level": _axes,
        "kind": _axes,
        "num_trials": odd_count.filter(lambda n: n.value != 10**6),
        "batch_size": st.one_of(odd_count, pick([1, 2, 100])),
        "static": pick([("kind",), ("level",), "kind", ("kind", "kind"), (), ("nothing",), None, 3]).map(Number),
        "paired": odd_flag,
        "key": odd_key,
        "shared": odd_array((2,), traced=False),
        "grid": pick([{}, None, [], {"key": [1]}, {"shared": [1]}, {3: [1]}, {"no name": [1]}]).map(Number),
    },
    lambda level="[0.1]", kind=None, grid=None, **kw: _swept(
        ({"level": _axis(level)} | ({} if kind is None else {"kind": _axis(kind)})) if grid is None else grid, **kw
    ),
    names=("grid", "trial", "static"),
    look=_same_axis,
)
