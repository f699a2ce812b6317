"""Derivatives against central differences, where they are hardest: repeated values, zero columns, exact fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import operators

SHAPE = (12, 9)


def _central(function, x, direction, h):
    at = lambda t: function(jax.tree.map(lambda a, b: a + t * b, x, direction))
    return (at(h) - at(-h)) / (2 * h)


def _agree(function, x, direction, h=1e-6, tolerance=1e-6):
    """Forward and reverse mode, and differences."""
    seen = _central(function, x, direction, h)
    forward = jax.jvp(function, (x,), (direction,))[1]
    slope = jax.grad(function)(x)
    reverse = sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (slope, direction)), strict=True))
    size = 1 + abs(float(seen))
    assert abs(float(forward - seen)) < tolerance * size
    assert abs(float(reverse - forward)) < 1e-8 * size


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def _points():
    left, right = _normal(0, 6, 3), _normal(1, 5, 3)
    none = lambda x: x.at[:, 2].set(0)
    return {
        "plain": lr.Factors(left, right),
        "a zero column": lr.Factors(none(left), none(right)),
        "equal values": lr.Factors(jnp.eye(6, 3), jnp.eye(5, 3) * jnp.array([2.0, 2, 1])),
    }


@pytest.mark.parametrize("point", ["plain", "a zero column", "equal values"])
def test_factors(x64, point):
    x = _points()[point]
    direction = lr.Factors(_normal(2, 6, 3), _normal(3, 5, 3))
    weights, padded = (
        _normal(4, 6, 5),
        lr.Factors(*(jnp.pad(_normal(i, n, 3), ((0, 0), (0, 2))) for i, n in ((5, 6), (6, 5)))),
    )
    for function in (
        lambda f: f.norm(),
        lambda f: lr.metrics.relative_error(f, padded),
        lambda f: lr.metrics.relative_error(f, weights),
        lambda f: jnp.sum(weights * f.truncate(2).dense()),
        lambda f: jnp.sum(weights * f.balanced().dense()),
        lambda f: lr.metrics.rmse(f.dense(), weights),
    ):
        _agree(jax.jit(function), x, direction)


def test_balanced_factors_themselves(x64):
    x, direction = _points()["plain"], lr.Factors(_normal(2, 6, 3), _normal(3, 5, 3))
    to_left, to_right = _normal(7, 6, 3), _normal(8, 5, 3)
    both = lambda f: jnp.sum(to_left * f.left) + jnp.sum(to_right * f.right)
    _agree(lambda f: both(f.balanced()), x, direction)


def test_at_an_exact_fit_it_is_zero(x64):
    x = _points()["plain"]
    for function in (
        lambda f: lr.metrics.relative_error(f, x),
        lambda f: lr.metrics.rmse(f.dense(), x.dense()),
        lambda f: lr.metrics.scaled_error(f.dense(), x.dense()),
        lambda f: lr.Factors(f.left - x.left, f.right).norm(),
    ):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(function)(x)))


SOLVERS = {
    "ridge": lr.AlternatingMinimization(max_rank=2, ridge=0.1),
    "soft_impute": lr.SoftImpute(max_rank=9, penalty=0.1),
    "gauss_newton": lr.GaussNewton(max_rank=2, inner_tolerance=1e-13),
    "irls": lr.IRLS(max_rank=2, inner_tolerance=1e-11),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solves_to_the_end(x64, name):
    """Of a truth whose two singular values are equal, seen without noise: where a solve ends in an exact fit."""
    truth = lr.synthetic.low_rank(jax.random.key(0), SHAPE, 2, dtype=jnp.float64)
    mask = np.random.default_rng(0).random(SHAPE) < 0.8
    operator = operators.EntryMask.from_mask(mask)
    y = operator.forward(truth.left, truth.right)
    # Along matrices of rank two: there every one of these answers is a smooth function of the entries.
    direction = operator.forward(truth.left, _normal(1, 9, 2))
    weights = _normal(2, *SHAPE)

    @jax.jit
    def function(y):
        problem = lr.Problem(operator, y)
        solution = lr.solve(problem, SOLVERS[name], jax.random.key(1), num_steps=150, record_every=150)
        return jnp.sum(weights * solution.factors.dense())

    seen = _central(function, y, direction, 1e-5)
    forward = jax.jvp(function, (y,), (direction,))[1]
    assert abs(float(forward - seen)) < 1e-4 * (1 + abs(float(seen)))
