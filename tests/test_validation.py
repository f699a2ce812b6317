"""Bad input is refused at the door, in words: the argument, what was seen, what was expected."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrjax as lr
from lrjax import operators, step_sizes, synthetic

KEY = jax.random.key(0)
SHAPE, M = (4, 3), 12
SQUARED, ABSOLUTE = lr.losses.Squared(), lr.losses.Absolute()
F32 = np.float32


def dense(dtype=F32):
    return operators.DenseEnsemble.from_matrices(np.random.default_rng(0).standard_normal((M, *SHAPE)).astype(dtype))


def problem(**changes) -> lr.Problem:
    given = dict(operator=dense(), y=np.ones(M, F32)) | changes
    return lr.Problem(**given)


def square(**changes) -> lr.Problem:
    op = operators.DenseEnsemble.from_matrices(np.random.default_rng(0).standard_normal((M, 3, 3)).astype(F32))
    return lr.Problem(op, np.ones(M, F32), **changes)


def spoiled(value, where=3):
    y = np.ones(M, F32)
    y[where] = value
    return y


def factors(n1=4, n2=3, k=1, k2=None):
    return lr.Factors(jnp.ones((n1, k)), jnp.ones((n2, k2 or k)))


def solve(given: Any = None, solver: Any = None, key: Any = KEY, num_steps: Any = 2, **rest):
    solver = lr.AlternatingMinimization(max_rank=1) if solver is None else solver
    return lr.solve(problem() if given is None else given, solver, key, num_steps=num_steps, **rest)


def run(solver, loss=SQUARED, **changes):
    return solve(problem(loss=loss, **changes), solver)


Alt, GD, Scaled, Sub, Proj = (
    lr.AlternatingMinimization,
    lr.GradientDescent,
    lr.ScaledGradientDescent,
    lr.SubgradientMethod,
    lr.AlternatingProjections,
)
IDENTITY = operators.Identity(matrix_shape=SHAPE)


def build(rows=(0, 1, 3), cols=(0, 2, 1), values=None, shape=SHAPE, **rest):
    values = np.ones(3, F32) if values is None else values
    return operators.SampledEntries.build(rows, cols, values, shape, **rest)


def complete(rows=(0, 1, 3), cols=(0, 2, 1), values=None, shape=SHAPE, rank=1, key=KEY, **rest):
    values = np.ones(3, F32) if values is None else values
    return lr.complete(rows, cols, values, shape, rank=rank, key=key, **rest)


def low_rank(shape=SHAPE, rank=1, **rest):
    return synthetic.low_rank(KEY, shape, rank, **rest)


def sensing(**changes):
    return synthetic.matrix_sensing(KEY, **(dict(shape=SHAPE, rank=1, num_measurements=5) | changes))


def completion(**changes):
    return synthetic.matrix_completion(KEY, **(dict(shape=SHAPE, rank=1, fraction=0.5) | changes))


def corrupt(**changes):
    return synthetic.corrupt(KEY, jnp.ones(3), **changes)


def sampled(num_entries=3, **rest):
    return synthetic.sampled_entries(KEY, factors(), num_entries, **rest)


def gaussian(shape=SHAPE, m=5, **rest):
    return operators.DenseEnsemble.gaussian(KEY, shape, m, **rest)


def seeded(shape=SHAPE, m=5, key=KEY, **rest):
    return operators.SeededGaussianEnsemble.create(key, shape, m, **rest)


def rank_one(shape=SHAPE, m=5, **rest):
    return operators.RankOneMeasurements.gaussian(KEY, shape, m, **rest)


def f64(call):
    with jax.enable_x64(True):
        call()


EMPTY = np.zeros(0, F32)
OLD_KEY = jax.random.PRNGKey(0)
matrices, vectors = operators.DenseEnsemble.from_matrices, operators.RankOneMeasurements.from_vectors
from_mask = operators.EntryMask.from_mask

# (id, call, pieces of the text)
PROBLEMS = [
    ("y too short", lambda: solve(problem(y=np.ones(5, F32))), r"y .*\(12,\).*got \(5,\)"),
    ("y a matrix", lambda: solve(problem(y=np.ones((4, 3), F32))), r"y .*\(12,\).*got \(4, 3\)"),
    ("y scalar", lambda: solve(problem(y=np.float32(1))), r"y .*\(12,\).*got \(\)"),
    ("y integers", lambda: solve(problem(y=np.ones(M, np.int32))), "y must be real floating.*int32"),
    ("y booleans", lambda: solve(problem(y=np.ones(M, bool))), "y must be real floating.*bool"),
    ("y complex", lambda: solve(problem(y=np.ones(M, np.complex64))), "y must be real floating.*complex64"),
    ("y nan", lambda: solve(problem(y=spoiled(np.nan))), "y .*finite.* 1 of 12"),
    ("y infinite", lambda: solve(problem(y=spoiled(np.inf))), "y .*finite.* 1 of 12"),
    (
        "y nan in the mask",
        lambda: solve(lr.Problem(from_mask(np.ones(SHAPE)), spoiled(np.nan))),
        "y .*finite.* 1 of 12",
    ),
    ("y nan under weight", lambda: solve(problem(y=spoiled(np.nan), weights=np.ones(M, F32))), "y .*finite"),
    ("weights short", lambda: solve(problem(weights=np.ones(3, F32))), r"weights .*\(12,\).*got \(3,\)"),
    ("weights negative", lambda: solve(problem(weights=spoiled(-0.5))), "weights .*negative.*-0.5"),
    ("weights nan", lambda: solve(problem(weights=spoiled(np.nan))), "weights .*finite.*1 of 12"),
    ("weights infinite", lambda: solve(problem(weights=spoiled(np.inf))), "weights .*finite.*1 of 12"),
    ("weights integers", lambda: solve(problem(weights=np.ones(M, np.int32))), "weights .*floating.*int32"),
    ("weights zero", lambda: solve(problem(weights=np.zeros(M, F32))), "weight is zero.*no measurements"),
    (
        "weights zero on the mask",
        lambda: solve(lr.Problem(from_mask(np.eye(4, 3)), np.ones(M, F32), 1 - np.eye(4, 3, dtype=F32).ravel())),
        "weight is zero.*no measurements",
    ),
    (
        "weights of another dtype",
        lambda: f64(lambda: solve(problem(weights=np.ones(M, np.float64)))),
        "weights .*float32.*float64",
    ),
    (
        "y and operator differ",
        lambda: f64(lambda: solve(problem(y=np.ones(M)))),
        "operator and y .*float64.*float32|float32",
    ),
    (
        "operator wider than y",
        lambda: f64(lambda: solve(problem(operator=dense(np.float64)))),
        "operator and y .*dtype",
    ),
    ("no operator", lambda: solve(problem(operator=np.ones((3, 3)))), "operator must be .*ndarray"),
    ("loss a string", lambda: solve(problem(loss="squared")), "loss must be .*'squared'"),
    ("loss a class", lambda: solve(problem(loss=lr.losses.Huber)), "loss must be .*Huber"),
    ("huber delta", lambda: solve(problem(loss=lr.losses.Huber(-1.0))), "delta .*-1.0"),
    ("not a problem", lambda: solve(np.ones(3)), "problem must be .*ndarray"),
    (
        "no measurements",
        lambda: solve(lr.Problem(operators.masked(dense(), np.zeros(M)), np.ones(M, F32))),
        "no measurements",
    ),
    ("identity shape", lambda: solve(lr.Problem(operators.Identity(matrix_shape=(0, 3)), EMPTY)), r"shape .*\(0, 3\)"),
]

CALLS = [
    ("key an int", lambda: solve(key=0), "key must be .*jax.random.key.*int"),
    ("key none", lambda: solve(key=None), "key must be .*NoneType"),
    ("key old style", lambda: solve(key=OLD_KEY), "key must be .*uint32"),
    ("key a batch", lambda: solve(key=jax.random.split(KEY, 2)), r"key must be one .*\(2,\)"),
    ("steps zero", lambda: solve(num_steps=0), "num_steps .*at least 1.*got 0"),
    ("steps negative", lambda: solve(num_steps=-3), "num_steps .*got -3"),
    ("steps float", lambda: solve(num_steps=2.0), "num_steps .*integer.*got 2.0"),
    ("steps bool", lambda: solve(num_steps=True), "num_steps .*integer.*got True"),
    ("steps none", lambda: solve(num_steps=None), "num_steps .*integer.*got None"),
    ("record zero", lambda: solve(record_every=0), "record_every .*got 0"),
    ("record float", lambda: solve(record_every=1.5), "record_every .*got 1.5"),
    ("record does not divide", lambda: solve(num_steps=10, record_every=3), "num_steps .*multiple.*10 and 3"),
    ("record above steps", lambda: solve(num_steps=2, record_every=4), "num_steps .*multiple.*2 and 4"),
    ("iterate", lambda: next(lr.iterate(problem(), Alt(max_rank=1), KEY, num_steps=3, record_every=2)), "multiple"),
    ("solver a class", lambda: solve(solver=Alt), "solver must be a solver instance"),
    ("solver a string", lambda: solve(solver="altmin"), "solver must be .*'altmin'"),
    ("solver optax", lambda: solve(solver=optax.adam(0.1)), "solver must be"),
    ("wrapped class", lambda: solve(solver=lr.BestSoFar(solver=Alt)), "solver must be a solver instance"),
    ("wrapped nonsense", lambda: solve(solver=lr.Averaged(solver=3)), "solver must be .*3"),
    ("init an array", lambda: solve(init=np.ones(SHAPE)), "init must be lrjax.Factors.*ndarray"),
    ("init shape", lambda: solve(init=factors(5, 3)), r"init .*\(4, 3\).*\(5, 1\)"),
    ("init swapped", lambda: solve(init=factors(3, 4)), r"init .*\(4, 3\).*\(3, 1\)"),
    ("init rank", lambda: solve(init=factors(k=2)), "init .*max_rank=1.*got 2"),
    ("init uneven", lambda: solve(init=factors(k=1, k2=2)), "init .*as many columns"),
    ("init batched", lambda: solve(init=lr.Factors(jnp.ones((2, 4, 1)), jnp.ones((2, 3, 1)))), "init .*got"),
    (
        "init not symmetric",
        lambda: solve(square(), GD(max_rank=1, symmetric=True), init=lr.Factors(jnp.ones((3, 1)), jnp.zeros((3, 1)))),
        "init .*equal left and right",
    ),
    ("truth shape", lambda: solve(truth=factors(4, 4)), r"truth .*\(4, 3\).*\(4, 1\)"),
    ("truth dense shape", lambda: solve(truth=np.ones((3, 4), F32)), r"truth .*\(4, 3\)"),
    ("truth a vector", lambda: solve(truth=np.ones(12, F32)), r"truth .*\(4, 3\)"),
]

SETTINGS = [
    ("irls on an ensemble", lambda: run(lr.IRLS(max_rank=1)), "IRLS .*entries.*DenseEnsemble.*AlternatingMinimization"),
    ("irls full rank", lambda: run(lr.IRLS(max_rank=3), operator=IDENTITY), r"max_rank below min\(shape\) = 3.*got 3"),
    ("irls loss", lambda: run(lr.IRLS(max_rank=1), ABSOLUTE, operator=IDENTITY), "IRLS .*Squared.*Absolute"),
    (
        "irls smoothing",
        lambda: run(lr.IRLS(max_rank=1, smoothing=1.5), operator=IDENTITY),
        r"smoothing .*\(0, 1\].*1.5",
    ),
    (
        "irls inner_tolerance",
        lambda: run(lr.IRLS(max_rank=1, inner_tolerance=0.0), operator=IDENTITY),
        r"inner_tolerance .*\(0, 1\].*0.0",
    ),
    (
        "irls inner_steps",
        lambda: run(lr.IRLS(max_rank=1, inner_steps=0), operator=IDENTITY),
        "inner_steps .*at least 1.*got 0",
    ),
    ("rank zero", lambda: run(Alt(max_rank=0)), "max_rank .*at least 1.*got 0"),
    ("rank float", lambda: run(GD(max_rank=2.0)), "max_rank .*integer.*2.0"),
    ("rank too big", lambda: run(Scaled(max_rank=4)), r"max_rank .*min\(shape\) = 3.*got 4"),
    ("rank in wrapper", lambda: run(lr.BestSoFar(solver=GD(max_rank=4))), "max_rank .*got 4"),
    ("effective rank", lambda: run(Alt(max_rank=2, rank=3)), "rank .*2.*got 3"),
    ("effective rank zero", lambda: run(GD(max_rank=2, rank=0)), "rank .*got 0"),
    ("altmin start", lambda: run(Alt(max_rank=1, start="svd")), "start .*spectral.*'svd'"),
    ("altmin inner", lambda: run(Alt(max_rank=1, inner="lsqr")), "inner .*exact.*'lsqr'"),
    ("altmin inner steps", lambda: run(Alt(max_rank=1, inner="cg", inner_steps=0)), "inner_steps .*got 0"),
    ("altmin ridge", lambda: run(Alt(max_rank=1, ridge=-1.0)), "ridge .*-1.0"),
    ("altmin ridge nan", lambda: run(Alt(max_rank=1, ridge=float("nan"))), "ridge .*nan"),
    ("altmin ridge string", lambda: run(Alt(max_rank=1, ridge="small")), "ridge .*'small'"),
    ("altmin clip", lambda: run(Alt(max_rank=1, clip=0.0)), "clip .*0.0"),
    ("altmin fresh", lambda: run(Alt(max_rank=1, fresh_fraction=1.5)), "fresh_fraction .*1.5"),
    ("altmin error", lambda: run(Alt(max_rank=1, update_error=-0.1)), "update_error .*-0.1"),
    ("altmin tolerance", lambda: run(Alt(max_rank=1, tolerance=-1e-3)), "tolerance .*-0.001"),
    ("altmin trim", lambda: run(Alt(max_rank=1, trim=True)), "trim=True .*entries"),
    ("altmin trim l1", lambda: run(Alt(max_rank=1, trim=True), ABSOLUTE, operator=IDENTITY), "trim=True .*squared"),
    ("altmin random clip", lambda: run(Alt(max_rank=1, start="random", clip=1.0)), "start='spectral'.*'random'"),
    ("gd start", lambda: run(GD(max_rank=1, start="random")), "start .*small_random.*'random'"),
    ("gd step", lambda: run(GD(max_rank=1, step_size=0.0)), "step_size .*got 0.0"),
    ("gd step nan", lambda: run(GD(max_rank=1, step_size=np.nan)), "step_size .*nan"),
    ("gd step infinite", lambda: run(GD(max_rank=1, step_size=jnp.inf)), "step_size .*inf"),
    ("gd scale", lambda: run(GD(max_rank=1, initial_scale=-0.1)), "initial_scale .*-0.1"),
    ("gd imbalance", lambda: run(GD(max_rank=1, imbalance=0.0)), "imbalance .*0.0"),
    ("gd both steps", lambda: run(GD(max_rank=1, step_size=0.1, optimizer=optax.sgd(0.1))), "step_size and optimizer"),
    ("gd optimizer", lambda: run(GD(max_rank=1, optimizer="adam")), "optimizer .*optax.*'adam'"),
    ("gd rebalance at", lambda: run(GD(max_rank=1, rebalance=True, rebalance_at=0.0)), "rebalance_at .*0.0"),
    (
        "gd rebalance symmetric",
        lambda: solve(square(), GD(max_rank=1, rebalance=True, symmetric=True)),
        "rebalance=True .*symmetric=True",
    ),
    ("scaled damping", lambda: run(Scaled(max_rank=1, damping=-1.0)), "damping .*-1.0"),
    ("scaled rule", lambda: run(Scaled(max_rank=1, damping_rule="auto")), "damping_rule .*residual.*'auto'"),
    ("scaled absolute", lambda: run(Scaled(max_rank=1), ABSOLUTE), "smooth loss.*Absolute"),
    ("gauss variant", lambda: run(lr.GaussNewton(max_rank=1, variant="lm")), "variant .*ridge.*'lm'"),
    ("gauss ridge", lambda: run(lr.GaussNewton(max_rank=1, ridge=0.0)), "ridge .*0.0"),
    ("gauss decay", lambda: run(lr.GaussNewton(max_rank=1, decay=1.5)), "decay .*1.5"),
    ("gauss edge", lambda: run(lr.GaussNewton(max_rank=1, edge=0.0)), "edge .*0.0"),
    ("gauss inner", lambda: run(lr.GaussNewton(max_rank=1, inner_steps=0)), "inner_steps .*got 0"),
    ("gauss rank", lambda: run(lr.GaussNewton(max_rank=4)), r"max_rank .*min\(shape\) = 3.*got 4"),
    (
        "gauss huber",
        lambda: run(lr.GaussNewton(max_rank=1), lr.losses.Huber(1.0)),
        r"Squared\(\) or Absolute\(\); got Huber",
    ),
    ("gauss absolute", lambda: run(lr.GaussNewton(max_rank=1, variant="setting"), ABSOLUTE), "'ridge'.*'setting'"),
    ("scaled step", lambda: run(Scaled(max_rank=1, step_size=-0.5)), "step_size .*-0.5"),
    ("symmetric oblong", lambda: run(Scaled(max_rank=1, symmetric=True)), r"symmetric=True .*\(4, 3\)"),
    ("symmetric oblong gd", lambda: run(GD(max_rank=1, symmetric=True)), r"symmetric=True .*\(4, 3\)"),
    ("subgradient squared", lambda: run(Sub(max_rank=1)), "absolute loss.*Squared"),
    ("subgradient huber", lambda: run(Sub(max_rank=1), lr.losses.Huber(1.0)), "absolute loss.*Huber"),
    ("subgradient scale", lambda: run(Sub(max_rank=1, initial_scale=0.0), ABSOLUTE), "initial_scale .*0.0"),
    ("subgradient hidden", lambda: run(Sub(max_rank=1, hidden_scale=2.0), ABSOLUTE), "hidden_scale .*2.0"),
    ("subgradient rule", lambda: run(Sub(max_rank=1, step_size="polyak"), ABSOLUTE), "step_size .*'polyak'"),
    ("subgradient step", lambda: run(Sub(max_rank=1, step_size=-1.0), ABSOLUTE), "step_size.*-1.0"),
    ("subgradient array", lambda: run(Sub(max_rank=1, step_size=jnp.ones(3)), ABSOLUTE), "step_size .*rule"),
    (
        "subgradient rule class",
        lambda: run(Sub(max_rank=1, step_size=step_sizes.Geometric), ABSOLUTE),
        "step_size .*Geometric",
    ),
    (
        "geometric decay",
        lambda: run(Sub(max_rank=1, step_size=step_sizes.Geometric(decay=1.5)), ABSOLUTE),
        "step_size.decay .*1.5",
    ),
    (
        "quantile",
        lambda: run(Sub(max_rank=1, step_size=step_sizes.ResidualQuantile(quantile=2.0)), ABSOLUTE),
        "step_size.quantile .*2.0",
    ),
    ("averaged decay", lambda: run(lr.Averaged(solver=GD(max_rank=1), decay=1.5)), "decay .*1.5"),
    ("averaged decay one", lambda: run(lr.Averaged(solver=GD(max_rank=1), decay=1.0)), "decay .*1.0"),
    (
        "polyak optimum",
        lambda: run(Sub(max_rank=1, step_size=step_sizes.Polyak(optimum=-1.0)), ABSOLUTE),
        "step_size.optimum .*-1.0",
    ),
    ("projections operator", lambda: run(Proj(max_rank=1), ABSOLUTE), "Identity or EntryMask; got DenseEnsemble"),
    (
        "projections sampled",
        lambda: solve(lr.Problem(*build()), Proj(max_rank=1)),
        "Identity or EntryMask; got SampledEntries.*SubgradientMethod",
    ),
    ("projections decay", lambda: run(Proj(max_rank=1, decay=1.5), operator=IDENTITY), "decay .*1.5"),
    ("projections first", lambda: run(Proj(max_rank=1, first_threshold=0.0), operator=IDENTITY), "first_thr.*0.0"),
    ("projections last", lambda: run(Proj(max_rank=1, last_threshold=-1.0), operator=IDENTITY), "last_thr.*-1.0"),
    ("projections rank", lambda: run(Proj(max_rank=1, rank_threshold=-1.0), operator=IDENTITY), "rank_thr.*-1.0"),
    ("projections tolerance", lambda: run(Proj(max_rank=1, tolerance=-1.0), operator=IDENTITY), "tolerance .*-1.0"),
    ("scaled l1 squared", lambda: run(lr.ScaledSubgradient(max_rank=1)), "ScaledSubgradient .*absolute loss.*Squared"),
    ("scaled l1 damping", lambda: run(lr.ScaledSubgradient(max_rank=1, damping=-1.0), ABSOLUTE), "damping .*-1.0"),
    ("scaled l1 step", lambda: run(lr.ScaledSubgradient(max_rank=1, step_size="x"), ABSOLUTE), "step_size .*'x'"),
    ("svp step", lambda: run(lr.SingularValueProjection(max_rank=1, step_size=0.0)), "step_size .*0.0"),
    ("svp power", lambda: run(lr.SingularValueProjection(max_rank=1, power_steps=0)), "power_steps .*got 0"),
    ("svp loss", lambda: run(lr.SingularValueProjection(max_rank=1), ABSOLUTE), "SingularValueProjection .*smooth"),
    ("soft penalty", lambda: run(lr.SoftImpute(max_rank=1, penalty=1.5)), "penalty .*1.5"),
    ("soft absolute", lambda: run(lr.SoftImpute(max_rank=1, penalty=-1.0, relative=False)), "penalty .*-1.0"),
    ("soft decay", lambda: run(lr.SoftImpute(max_rank=1, decay=1.0)), "decay .*1.0"),
    ("soft loss", lambda: run(lr.SoftImpute(max_rank=1), ABSOLUTE), "SoftImpute .*smooth"),
    ("restarts", lambda: run(lr.Restarted(solver=GD(max_rank=1), num_restarts=0)), "num_restarts .*got 0"),
    ("truncate zero", lambda: factors(k=2).truncate(0), r"rank .*1\.\.2.*got 0"),
    ("truncate too much", lambda: factors(k=2).truncate(3), r"rank .*1\.\.2.*got 3"),
    ("truncate float", lambda: factors(k=2).truncate(1.0), "rank .*integer.*1.0"),
    ("relative error", lambda: lr.metrics.relative_error(factors(), factors(3, 4)), r"shape.*\(4, 3\).*\(3, 4\)"),
    ("subspaces", lambda: lr.metrics.subspace_distance(jnp.ones((4, 1)), jnp.ones((4, 2))), r"\(4, 1\).*\(4, 2\)"),
    ("status code", lambda: lr.status.message(99), "status code 99"),
]

OPERATORS = [
    ("matrices 2d", lambda: matrices(np.ones((3, 3), F32)), r"matrices .*\(m, n1, n2\).*\(3, 3\)"),
    ("matrices empty", lambda: matrices(np.ones((0, 3, 3), F32)), r"matrices .*\(0, 3, 3\)"),
    ("matrices int", lambda: matrices(np.ones((2, 3, 3), int)), "matrices .*floating.*int"),
    ("matrices nan", lambda: matrices(np.full((1, 2, 2), np.nan, F32)), "matrices .*finite.*4 of 4"),
    ("matrices oblong", lambda: matrices(np.ones((1, 2, 3), F32), symmetric=True), r"symmetric=True .*\(1, 2, 3\)"),
    ("matrices skew", lambda: matrices(np.triu(np.ones((1, 3, 3), F32)), symmetric=True), "symmetric=True.*transpose"),
    ("gaussian shape", lambda: gaussian((4,)), r"shape .*\(4,\)"),
    ("gaussian shape zero", lambda: gaussian((4, 0)), r"shape .*\(4, 0\)"),
    ("gaussian count", lambda: gaussian(m=0), "num_measurements .*got 0"),
    ("gaussian count float", lambda: gaussian(m=5.5), "num_measurements .*5.5"),
    ("gaussian oblong", lambda: gaussian(symmetric=True), r"symmetric=True .*\(4, 3\)"),
    ("gaussian huge", lambda: gaussian((3000, 3000), 100_000), "GiB.*SeededGaussianEnsemble"),
    ("gaussian key", lambda: operators.DenseEnsemble.gaussian(0, SHAPE, 5), "key must be .*int"),
    ("rank one key", lambda: operators.RankOneMeasurements.gaussian(OLD_KEY, SHAPE, 5), "key must be .*uint32"),
    ("seeded count", lambda: seeded(m=-1), "num_measurements .*-1"),
    ("seeded oblong", lambda: seeded(symmetric=True), r"symmetric=True .*\(4, 3\)"),
    ("seeded block", lambda: seeded(block_size=0), "block_size .*got 0"),
    ("seeded key", lambda: seeded(key=OLD_KEY), "key must be .*uint32"),
    (
        "vectors length",
        lambda: vectors(np.ones((3, 2), F32), np.ones((4, 2), F32)),
        r"left_vectors.*\(3, 2\).*\(4, 2\)",
    ),
    ("vectors 1d", lambda: vectors(np.ones(3, F32)), r"left_vectors.*\(3,\)"),
    ("vectors int", lambda: vectors(np.ones((3, 2), int)), "left_vectors .*floating"),
    ("vectors nan", lambda: vectors(np.ones((1, 2), F32), np.full((1, 2), np.inf, F32)), "right_vectors .*finite"),
    ("rank one oblong", lambda: rank_one(symmetric=True), r"symmetric=True .*\(4, 3\)"),
    ("rank one count", lambda: rank_one(m=0), "num_measurements .*got 0"),
    ("mask 1d", lambda: from_mask(np.ones(4)), r"mask .*\(n1, n2\).*\(4,\)"),
    ("mask graded", lambda: from_mask(np.full((2, 2), 0.5)), "mask .*0 and 1.*weights"),
    ("mask nan", lambda: from_mask(np.full((2, 2), np.nan)), "mask .*0 and 1"),
    ("mask nothing", lambda: from_mask(np.zeros((2, 2))), "mask .*no entry"),
    ("rows too big", lambda: build(rows=(0, 1, 4)), r"rows .*\[0, 4\).*4"),
    ("cols too big", lambda: build(cols=(0, 3, 1)), r"cols .*\[0, 3\).*3"),
    ("rows negative", lambda: build(rows=(0, -1, 3)), r"rows .*\[0, 4\).*-1"),
    ("rows float", lambda: build(rows=(0.0, 1.0, 3.0)), "rows .*integers.*float"),
    ("rows bool", lambda: build(rows=(True, False, True)), "rows .*integers.*bool"),
    ("rows 2d", lambda: build(rows=np.zeros((3, 1), int)), r"rows .*one-dimensional.*\(3, 1\)"),
    ("values long", lambda: build(values=np.ones(4, F32)), r"values .*\(4,\)"),
    ("values int", lambda: build(values=np.ones(3, int)), "values .*floating.*int"),
    ("values nan", lambda: build(values=np.full(3, np.nan, F32)), "values .*finite.*3"),
    ("values none", lambda: build(rows=[], cols=[], values=EMPTY), "empty.*no measurements"),
    ("entries twice", lambda: build(rows=(0, 1, 1), cols=(0, 2, 2)), "row 1, column 2.*duplicates="),
    ("entries option", lambda: build(duplicates="last"), "duplicates .*'refuse'.*'last'"),
    ("entries shape", lambda: build(shape=(4, 3, 1)), r"shape .*\(4, 3, 1\)"),
    ("scaled shape", lambda: operators.scaled(dense(), np.ones(3, F32)), r"factor .*\(12,\).*\(3,\)"),
    ("scaled int", lambda: operators.scaled(dense(), 2), "factor .*floating"),
    ("scaled nan", lambda: operators.scaled(dense(), float("nan")), "factor .*finite"),
    ("masked shape", lambda: operators.masked(dense(), np.ones(3)), r"mask .*\(12,\).*\(3,\)"),
    ("masked graded", lambda: operators.masked(dense(), np.full(M, 0.3)), "mask .*0 and 1"),
    ("stacked nothing", lambda: operators.stacked(), "stacked .*at least one"),
    ("stacked shapes", lambda: operators.stacked(dense(), gaussian((3, 4))), r"stacked .*\(4, 3\).*\(3, 4\)"),
    ("summed counts", lambda: operators.summed(dense(), gaussian()), r"summed .*\[12, 5\]"),
    ("summed masks", lambda: operators.summed(from_mask(np.ones(SHAPE)), dense()), "summed .*everywhere"),
]

BUILDERS = [
    ("rank above", lambda: low_rank(rank=4), r"rank .*min\(shape\) = 3.*got 4"),
    ("rank none", lambda: low_rank(rank=0), "rank .*got 0"),
    ("shape", lambda: low_rank(shape=(3, -1)), r"shape .*\(3, -1\)"),
    ("condition", lambda: low_rank(condition_number=0.5), "condition_number .*0.5"),
    ("condition nan", lambda: low_rank(condition_number=np.nan), "condition_number .*nan"),
    ("coherence", lambda: low_rank(coherence=1.0), "coherence .*1.0"),
    ("oblong", lambda: low_rank(symmetric=True), r"symmetric=True .*\(4, 3\)"),
    ("kind", lambda: corrupt(kind="cauchy"), "kind .*gaussian.*'cauchy'"),
    ("corruption", lambda: corrupt(corruption=1.2), "corruption .*1.2"),
    ("corruption size", lambda: corrupt(corruption_scale=-1.0), "corruption_scale .*-1.0"),
    ("noise", lambda: corrupt(noise=-0.1), "noise .*-0.1"),
    ("sensing noise", lambda: sensing(noise=-0.1), "noise .*-0.1"),
    ("sensing kind", lambda: sensing(corruption=0.1, kind="x"), "kind .*'x'"),
    ("sensing count", lambda: sensing(num_measurements=0), "num_measurements .*got 0"),
    ("sampling", lambda: completion(sampling="zipf"), "sampling .*uniform.*'zipf'"),
    ("fraction", lambda: completion(fraction=1.5), "fraction .*1.5"),
    ("fraction nothing", lambda: completion(fraction=None), "fraction or oversampling"),
    ("fraction twice", lambda: completion(oversampling=2.0), "fraction or oversampling"),
    ("oversampling", lambda: completion(fraction=None, oversampling=50.0), "fraction .*entries"),
    ("entries count", lambda: sampled(7), "num_entries .*half of the 12.*got 7"),
    ("entries none", lambda: sampled(0), "num_entries .*got 0"),
    ("entries sampling", lambda: sampled(sampling="zipf"), "sampling .*'zipf'"),
    ("entries noise", lambda: sampled(noise=-1.0), "noise .*-1.0"),
    ("builder key", lambda: synthetic.low_rank(0, SHAPE, 1), "key must be"),
    ("sensing key", lambda: synthetic.matrix_sensing(0, shape=SHAPE, rank=1, num_measurements=5), "key must be"),
    ("completion key", lambda: synthetic.matrix_completion(OLD_KEY, shape=SHAPE, rank=1, fraction=0.5), "key must be"),
    ("entries key", lambda: synthetic.sampled_entries(3, factors(), 3), "key must be"),
    ("large key", lambda: synthetic.large_completion(3, shape=SHAPE, rank=1, oversampling=1), "key must be"),
    ("corrupt key", lambda: synthetic.corrupt(jax.random.split(KEY), jnp.ones(3)), "key must be one"),
    ("truth shape builder", lambda: synthetic.from_truth(KEY, dense(), factors(3, 4)), r"truth .*\(4, 3\).*\(3, 4\)"),
    ("truth array", lambda: synthetic.from_truth(KEY, dense(), np.ones(SHAPE)), "truth must be"),
    ("complete rank", lambda: complete(rank=0), "rank .*got 0"),
    ("complete rank above", lambda: complete(rank=4), "rank .*3.*got 4"),
    ("complete key", lambda: complete(key=1), "key must be .*int"),
    ("complete shape", lambda: complete(shape=(4,)), r"shape .*\(4,\)"),
    ("complete rows", lambda: complete(rows=(0, 1, 9)), r"rows .*\[0, 4\).*9"),
    ("complete lengths", lambda: complete(rows=(0, 1)), r"rows, cols and values .*\(2,\)"),
    ("complete lengths held", lambda: complete(rows=(0, 1), holdout=0.3), r"rows, cols and values .*\(2,\)"),
    ("complete ints", lambda: complete(values=np.array([1, 2, 3])), "values .*floating.*int"),
    ("complete nan", lambda: complete(values=np.array([1, np.nan, 3], F32)), "values .*finite"),
    ("complete ridge", lambda: complete(ridge=-1.0), "ridge .*-1.0"),
    ("complete holdout", lambda: complete(holdout=1.0), "holdout .*1.0"),
    ("complete steps", lambda: complete(num_steps=0), "num_steps .*got 0"),
    ("complete option", lambda: complete(duplicates="first"), "duplicates .*'first'"),
    ("complete twice", lambda: complete(rows=(0, 0, 1), cols=(0, 0, 1)), "row 0, column 0"),
    ("complete weights", lambda: complete(weights=np.ones(2)), r"weights .*\(3,\).*\(2,\)"),
    ("complete weights negative", lambda: complete(weights=[1, -2, 1]), "weights .*negative.*-2"),
    ("complete weights nan", lambda: complete(weights=[1, np.nan, 1]), "weights .*finite"),
    ("complete weights zero", lambda: complete(weights=[0, 0, 0]), "weight is zero"),
    (
        "complete weights merged",
        lambda: complete(rows=(0, 0, 1), cols=(0, 0, 1), weights=[1, 1, 1], duplicates="sum"),
        "weights .*duplicates",
    ),
    ("complete ensemble", lambda: complete(ensemble=1), "ensemble .*got 1"),
    ("complete early", lambda: complete(early_stopping=True), "early_stopping.*holdout=0"),
    ("complete nonnegative", lambda: complete(nonnegative=True, biases=True), "nonnegative.*biases"),
    ("complete by count", lambda: complete(solver=Alt(max_rank=1), ridge_by_count=True), "ridge_by_count=True"),
    ("altmin by count", lambda: run(Alt(max_rank=1, ridge_by_count=True)), "ridge_by_count need.*DenseEnsemble"),
    ("altmin sign", lambda: solve(lr.Problem(IDENTITY, np.ones(12, F32)), Alt(max_rank=1, nonnegative=True)), "orthon"),
    (
        "altmin biases",
        lambda: solve(lr.Problem(IDENTITY, np.ones(12, F32)), Alt(max_rank=2, biases=True, orthonormalize=False)),
        "at least 3.*max_rank=2",
    ),
    ("complete solver", lambda: complete(solver=Alt(max_rank=2)), "max_rank=1.*max_rank=2"),
    ("complete solver ridge", lambda: complete(solver=Alt(max_rank=1), ridge=1.0), "ridge.*solver.*ridge=1.0"),
    ("complete solver class", lambda: complete(solver=Alt), "solver must be"),
]

ALL = PROBLEMS + CALLS + SETTINGS + OPERATORS + BUILDERS


@pytest.mark.parametrize(("call", "text"), [row[1:] for row in ALL], ids=[row[0].replace(" ", "-") for row in ALL])
def test_refused(call, text):
    with pytest.raises(ValueError, match=f"(?s){text}"):
        call()


def test_predictions_outside_the_matrix_are_refused():
    done = complete(rows=(0, 1, 3, 2), cols=(0, 2, 1, 1), values=np.arange(1, 5, dtype=F32), num_steps=1)
    with pytest.raises(ValueError, match=r"cols .*\[0, 3\).*3"):
        done.predict([0], [3])
    with pytest.raises(ValueError, match=r"rows .*\[0, 4\).*-1"):
        done.predict([-1], [0])
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        done.predict([0, 1], [0])
    assert done.predict([], []).shape == (0,)


def test_what_is_unusual_but_right_is_let_in():
    """NaN without weight, lists, NumPy arrays, NumPy counts, full rank, a float64 start for float32 data."""
    weights = np.ones(M, F32)
    weights[3] = 0
    given = problem(y=spoiled(np.nan), weights=weights)
    start = lr.Factors(np.ones((4, 3)), np.eye(3))
    solution = solve(given, GD(max_rank=3), num_steps=np.int64(2), init=start, truth=np.ones(SHAPE))
    assert solution.factors.left.dtype == jnp.float32
    assert bool(jnp.isfinite(solution.objective))
    listed = lr.Problem(dense(), [1.0] * M)
    assert bool(jnp.isfinite(solve(listed).objective))


def test_the_same_doors_under_jit():
    """What can be known from shapes is refused while tracing too; values are not looked at."""
    run = jax.jit(lambda y: solve(problem(y=y)).objective)
    with pytest.raises(ValueError, match=r"y .*\(12,\)"):
        run(jnp.ones(5))
    assert not np.isfinite(run(jnp.asarray(spoiled(np.nan))))


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Alt(max_rank=1).ridge = 1.0
