"""The one table that drives the transform tests: every solver on every operator where it is defined."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrjax as lr
from lrjax import operators, step_sizes

N1, N2, RANK, MEASUREMENTS = 7, 5, 2, 60


def _mask(shape):
    return np.random.default_rng(3).random(shape) < 0.7


def _sampled(shape, dtype):
    rows, cols = np.nonzero(_mask(shape))
    return operators.SampledEntries.build(rows, cols, np.ones(len(rows), dtype), shape)[0]


def _dense(key, shape, symmetric, dtype):
    return operators.DenseEnsemble.gaussian(key, shape, MEASUREMENTS, symmetric=symmetric, dtype=dtype)


def _stacked(key, shape, symmetric, dtype):
    return operators.stacked(_dense(key, shape, symmetric, dtype), _sampled(shape, dtype))


def _summed(key, shape, symmetric, dtype):
    one, two = jax.random.split(key)
    return operators.summed(_dense(one, shape, symmetric, dtype), _dense(two, shape, symmetric, dtype))


def _gain(model, shape, seeded=False):
    """One input of `n2` numbers, or `n2` inputs of one number each."""
    kind = operators.SeededGainMeasurements.create if seeded else operators.GainMeasurements.gaussian
    block, count = (shape, 9) if model == "repeated" else ((shape[0], 1), shape[1])
    return lambda key, dtype: kind(key, block, count, model=model, dtype=dtype)


def _masked(key, shape, symmetric, dtype):
    inner = _dense(key, shape, symmetric, dtype)
    return operators.masked(inner, np.arange(MEASUREMENTS) % 5 != 0)


def _kronecker(key, shape, dtype):
    sizes = ((8, shape[0]), (8, shape[1]))
    parts = [jax.random.normal(k, size, dtype) for k, size in zip(jax.random.split(key), sizes, strict=True)]
    return operators.Kronecker.from_matrices(parts)


# name -> builder(key, shape, symmetric, dtype)
OPERATORS: dict[str, Callable[..., Any]] = {
    "dense": _dense,
    "seeded": lambda key, shape, symmetric, dtype: operators.SeededGaussianEnsemble.create(
        key, shape, MEASUREMENTS, symmetric=symmetric, block_size=16, dtype=dtype
    ),
    "mask": lambda key, shape, symmetric, dtype: operators.EntryMask.from_mask(_mask(shape)),
    "sampled": lambda key, shape, symmetric, dtype: _sampled(shape, dtype),
    "rank_one": lambda key, shape, symmetric, dtype: operators.RankOneMeasurements.gaussian(
        key, shape, MEASUREMENTS, symmetric=symmetric, dtype=dtype
    ),
    "identity": lambda key, shape, symmetric, dtype: operators.Identity(matrix_shape=shape),
    "scaled": lambda key, shape, symmetric, dtype: operators.scaled(
        _dense(key, shape, symmetric, dtype), jnp.asarray(0.5, dtype)
    ),
    "masked": _masked,
    "stacked": _stacked,
    "summed": _summed,
    "hankel": lambda key, shape, symmetric, dtype: operators.Hankel.create(*shape),
    "kronecker": lambda key, shape, symmetric, dtype: _kronecker(key, shape, dtype),
    "gain": lambda key, shape, symmetric, dtype: _gain("repeated", shape)(key, dtype),
    "gain_diverse": lambda key, shape, symmetric, dtype: _gain("diverse", shape)(key, dtype),
    "gain_snapshots": lambda key, shape, symmetric, dtype: _gain("snapshots", shape)(key, dtype),
    "gain_seeded": lambda key, shape, symmetric, dtype: _gain("repeated", shape, True)(key, dtype),
    "gain_structured": lambda key, shape, symmetric, dtype: operators.StructuredGainMeasurements.create(
        key, shape, 9, dtype=dtype
    ),
    "gain_seeded_diverse": lambda key, shape, symmetric, dtype: _gain("diverse", shape, True)(key, dtype),
}
PLAIN = tuple(OPERATORS)[:6]


@dataclasses.dataclass(frozen=True)
class Case:
    """One solver: how to build it, which operators it is run on, and the float to differentiate by."""

    name: str
    solver: Any
    parameter: str
    operators: tuple[str, ...] = PLAIN
    robust: bool = False

    @property
    def symmetric(self) -> bool:
        inner = getattr(self.solver, "solver", self.solver)
        return getattr(inner, "symmetric", False)

    @property
    def home(self) -> str:
        """The operator of the tests that take one."""
        return "dense" if "dense" in self.operators else self.operators[0]

    @property
    def shape(self) -> tuple[int, int]:
        return (N1, N1) if self.symmetric else (N1, N2)

    def problem(self, operator: str, dtype=jnp.float32) -> lr.Problem:
        return _problem(operator, self.symmetric, self.robust, jnp.dtype(dtype))

    def draw(self, operator: str, dtype=jnp.float32, *, key, corruption=None) -> lr.Problem:
        key_operator, key_truth, key_noise, key_weights = jax.random.split(key, 4)
        op = OPERATORS[operator](key_operator, self.shape, self.symmetric, dtype)
        truth = lr.synthetic.low_rank(key_truth, self.shape, RANK, symmetric=self.symmetric, dtype=dtype)
        if corruption is None and self.robust:
            corruption = 0.1
        problem = lr.synthetic.from_truth(key_noise, op, truth, noise=0.05, corruption=corruption)
        weights = jax.random.uniform(key_weights, problem.y.shape, dtype, 0.5, 1.5)
        # The first measurement does not count, whatever it says.
        weights = weights.at[0].set(0)
        return lr.Problem(problem.operator, problem.y.at[0].set(jnp.nan), weights, problem.loss)

    @property
    def absolute(self) -> "Case":
        """In absolute units: scales estimated from the data are constants to autodiff."""
        if not hasattr(getattr(self.solver, "solver", self.solver), "relative"):
            return self
        if hasattr(self.solver, "solver"):
            inner = dataclasses.replace(self.solver.solver, relative=False)
            return dataclasses.replace(self, solver=dataclasses.replace(self.solver, solver=inner))
        return dataclasses.replace(self, solver=dataclasses.replace(self.solver, relative=False))

    def start(self, dtype=jnp.float32) -> lr.Factors:
        k = getattr(self.solver, "max_rank", RANK)
        left = 0.4 * jax.random.normal(jax.random.key(5), (self.shape[0], k), dtype)
        right = 0.4 * jax.random.normal(jax.random.key(6), (self.shape[1], k), dtype)
        return lr.Factors(left, left if self.symmetric else right)

    def with_parameter(self, value) -> Any:
        """The solver with its float changed, inside a wrapper too."""
        if hasattr(self.solver, "solver"):
            inner = dataclasses.replace(self.solver.solver, **{self.parameter: value})
            return dataclasses.replace(self.solver, solver=inner)
        return dataclasses.replace(self.solver, **{self.parameter: value})

    def __str__(self) -> str:
        return self.name


@functools.cache
def _problem(operator, symmetric, robust, dtype):
    solver = lr.GradientDescent(max_rank=RANK, symmetric=symmetric)
    return Case("any", solver, "step_size", robust=robust).draw(operator, dtype, key=jax.random.key(11))


# A Hankel structure measures too little for any of them; gains are for rank one. Tests of operators meet both.
EVERYWHERE = tuple(name for name in OPERATORS if name != "hankel" and not name.startswith("gain"))
FEW = ("dense", "sampled")
# Not Adam: optax's own code does not run under strict promotion, and its square root has no derivative at zero.
_momentum = optax.sgd(0.1, momentum=0.9)

CASES = [
    Case("altmin", lr.AlternatingMinimization(max_rank=RANK, ridge=0.01), "ridge", EVERYWHERE),
    Case("altmin_cg", lr.AlternatingMinimization(max_rank=RANK, ridge=0.01, inner="cg", inner_steps=2), "ridge"),
    Case(
        "altmin_sketched",
        lr.AlternatingMinimization(max_rank=RANK, ridge=0.01, inner="sketched", inner_steps=30),
        "ridge",
        ("sampled",),
    ),
    Case("altmin_plain", lr.AlternatingMinimization(max_rank=RANK, ridge=0.1, orthonormalize=False), "ridge", FEW),
    Case(
        "altmin_theory",
        lr.AlternatingMinimization(max_rank=RANK, ridge=0.01, fresh_fraction=0.9, update_error=0.01),
        "update_error",
        FEW,
    ),
    Case("altmin_l1", lr.AlternatingMinimization(max_rank=RANK, ridge=0.01), "ridge", FEW, robust=True),
    Case("subgradient", lr.SubgradientMethod(max_rank=RANK), "initial_scale", EVERYWHERE, robust=True),
    Case(
        "subgradient_symmetric",
        lr.SubgradientMethod(max_rank=RANK, symmetric=True, step_size=0.1),
        "step_size",
        robust=True,
    ),
    Case("gd", lr.GradientDescent(max_rank=RANK, step_size=0.1), "step_size", EVERYWHERE),
    Case("gd_symmetric", lr.GradientDescent(max_rank=RANK, step_size=0.1, symmetric=True), "step_size"),
    Case("gd_spectral", lr.GradientDescent(max_rank=RANK, step_size=0.1, start="spectral"), "step_size", FEW),
    Case(
        "gd_rebalance",
        lr.GradientDescent(max_rank=RANK, step_size=0.1, rebalance=True, rebalance_at=10.0),
        "step_size",
        FEW,
    ),
    Case("gd_optax", lr.GradientDescent(max_rank=RANK, optimizer=_momentum), "imbalance", FEW),
    Case("scaled_gd", lr.ScaledGradientDescent(max_rank=RANK, step_size=0.3), "step_size"),
    Case("scaled_gd_symmetric", lr.ScaledGradientDescent(max_rank=RANK, step_size=0.3, symmetric=True), "step_size"),
    Case("scaled_gd_line_search", lr.ScaledGradientDescent(max_rank=RANK), "damping", FEW),
    # Implicit derivatives are those of an exact inner solve.
    Case("gauss_newton", lr.GaussNewton(max_rank=RANK, inner_tolerance=1e-14), "ridge", EVERYWHERE),
    Case(
        "gauss_newton_robust",
        lr.GaussNewton(max_rank=RANK, inner_tolerance=1e-14),
        "edge",
        FEW,
        robust=True,
    ),
    Case("svp", lr.SingularValueProjection(max_rank=RANK, step_size=0.3), "step_size", ("sampled",)),
    Case("soft_impute", lr.SoftImpute(max_rank=RANK, decay=0.0), "penalty", ("dense",)),
    Case(
        "scaled_subgradient",
        lr.ScaledSubgradient(max_rank=RANK, step_size=step_sizes.Geometric(value=0.1, decay=0.9)),
        "damping",
        ("dense",),
        robust=True,
    ),
    # So small a matrix is all below the threshold for singular values.
    Case(
        "projections",
        lr.AlternatingProjections(max_rank=RANK, rank_threshold=0.0),
        "decay",
        ("mask",),
        robust=True,
    ),
    Case("irls", lr.IRLS(max_rank=RANK, inner_tolerance=1e-12), "smoothing", ("mask", "sampled")),
    Case("blind_gain", lr.BlindGainDescent(), "radius", ("gain", "gain_snapshots", "gain_seeded", "gain_structured")),
    Case(
        "best_so_far",
        lr.BestSoFar(solver=lr.SubgradientMethod(max_rank=RANK, step_size=0.1)),
        "step_size",
        FEW,
        robust=True,
    ),
    Case("averaged", lr.Averaged(solver=lr.GradientDescent(max_rank=RANK, step_size=0.1)), "step_size", FEW),
    Case(
        "restarted",
        lr.Restarted(solver=lr.GradientDescent(max_rank=RANK, step_size=0.1), num_restarts=2),
        "step_size",
        FEW,
    ),
]
PAIRS = [(case, operator) for case in CASES for operator in case.operators]


def pairs(slow: Callable[[Case, str], bool] = lambda case, operator: False) -> list[Any]:
    """All pairs as test parameters; those that take long to compile run with `make test-slow`."""
    return [
        pytest.param(case, operator, id=f"{case}-{operator}", marks=[pytest.mark.slow] if slow(case, operator) else [])
        for case, operator in PAIRS
    ]


# Sketches of `tests/sketching/test_sketching.py`: contract, transforms and laws. A new one is a line here.
SKETCHES = [
    lr.sketching.GaussianSketch,
    lr.sketching.RademacherSketch,
    lr.sketching.SparseSignSketch,
    lr.sketching.CountSketch,
    lr.sketching.VerySparseSketch,
    lr.sketching.SRHT,
    lr.sketching.SRDCT,
    lr.sketching.BlockSRHT,
    lr.sketching.PooledSketch,
]

# Methods of `lstsq` in `tests/sketching/regression/test_least_squares.py`: jit, vmap, derivatives, dtype. Shape of the
# problem, and options.
LEAST_SQUARES = {
    "tall": ((60, 7), {}),
    "wide": ((7, 30), {}),
    "sketched": ((60, 7), {"method": "sketch_and_solve"}),
    "sketched gaussian": ((60, 7), {"sketch": "gaussian", "method": "sketch_and_solve"}),
    "cholesky_qr": ((90, 7), {"method": "cholesky_qr"}),
    "fossils": ((90, 7), {"method": "fossils"}),
    "lsqr": ((90, 7), {"method": "lsqr"}),
    "iterative_sketching": ((90, 7), {"method": "iterative_sketching"}),
}
