"""`complete_ensemble`: each member is the ridge fit to what it kept, and the spread is the unbiased one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr

KEY = jax.random.key(0)
RIDGE = 0.1


def data(rank=1, shape=(12, 15), fraction=0.6, noise=0.1):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(shape[1], rank)).T
    return values + noise * rng.normal(size=shape), rng.random(shape) < fraction


def numpy_als(values, kept, u, num_steps):
    """Rank one, plain alternating ridge regression from the left factor `u`."""
    v = u
    for _ in range(num_steps):
        v = (kept * values).T @ u / (kept.T @ u**2 + RIDGE)
        u = (kept * values) @ v / (kept @ v**2 + RIDGE)
    return np.outer(u, v)


def ensemble(values, mask, **settings):
    return lr.complete_ensemble(values, mask, KEY, **{"rank": 1, "ridge": RIDGE, "num_members": 5} | settings)


def test_members_are_the_numpy_fits_of_what_they_kept(x64):
    values, mask = data()
    found, early = (ensemble(values, mask, drop=0.2, num_steps=n) for n in (10, 1))
    kept = np.asarray(found.kept)
    np.testing.assert_array_equal(kept, early.kept)
    assert not kept[:, ~mask].any()
    assert 0.1 < 1 - kept[:, mask].mean() < 0.3
    # The start is the library's own; what follows from the left factor of the first sweep is NumPy's.
    starts = np.asarray(early.members.left)[..., 0]
    fits = np.stack([numpy_als(values, k, u, 9) for k, u in zip(kept, starts, strict=True)])
    np.testing.assert_allclose(found.members.left @ found.members.right.mT, fits, atol=1e-9)
    np.testing.assert_allclose(found.mean, fits.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.std, fits.std(axis=0, ddof=1), atol=1e-9)
    assert found.std.min() > 1e-5


def test_one_sweep_ends_with_the_ridge_solution_of_the_left_factor(x64):
    values, mask = data(rank=2)
    found = ensemble(values, mask, rank=2, num_steps=1)
    for left, right, kept in zip(found.members.left, found.members.right, np.asarray(found.kept), strict=True):
        for i, row in enumerate(np.asarray(right[k]) for k in kept):
            expected = np.linalg.solve(row.T @ row + RIDGE * np.eye(2), row.T @ values[i, kept[i]])
            np.testing.assert_allclose(left[i], expected, rtol=1e-9)


def test_the_spread_is_larger_where_less_is_known():
    values, mask = data(shape=(40, 60), noise=0.3)
    mask[:, :30] &= np.random.default_rng(2).random((40, 30)) < 0.2
    std = np.asarray(ensemble(values.astype(np.float32), mask, num_members=32).std)
    assert np.median(std[:, :30]) > 1.5 * np.median(std[:, 30:])


def test_what_is_hidden_is_never_used_and_empty_rows_are_zero():
    values, mask = data()
    mask[3], mask[:, 4] = False, False
    values = values.astype(np.float32)
    found = ensemble(values, mask)
    again = ensemble(np.where(mask, values, np.nan), mask)
    np.testing.assert_array_equal(found.mean, again.mean)
    np.testing.assert_array_equal(found.mean[3], 0)
    np.testing.assert_array_equal(found.std[:, 4], 0)


def test_nonnegative_members_find_what_mixed_signs_miss():
    rng = np.random.default_rng(0)
    values = np.outer(rng.uniform(0.2, 1, 20), rng.uniform(0.1, 2, 300)).astype(np.float32)
    mask = rng.random(values.shape) < 0.12
    mixed, positive = (ensemble(values, mask, ridge=0.01, nonnegative=flag) for flag in (False, True))
    assert min(positive.members.left.min(), positive.members.right.min()) >= 0
    error = lambda found: np.abs(np.asarray(found.mean - values).mean(axis=1)).max()
    assert error(positive) < 0.15
    assert error(mixed) > 2 * error(positive)


def test_dtype_and_transforms():
    values, mask = (np.stack([x, x[::-1]]) for x in data())
    values = values.astype(np.float32)
    each = [ensemble(v, m).mean for v, m in zip(values, mask, strict=True)]
    many = jax.jit(jax.vmap(lambda v, m: ensemble(v, m).mean))(values, mask)
    np.testing.assert_allclose(many, each, atol=1e-5)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert ensemble(values[0], mask[0]).std.dtype == jnp.float32
        assert ensemble(values[0].astype(float), mask[0]).std.dtype == jnp.float64


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_units_do_not_matter(unit):
    values, mask = data()
    values, unit = values.astype(np.float32), np.float32(unit)
    found, plain = ensemble(values * unit, mask, ridge=RIDGE * unit), ensemble(values, mask)
    np.testing.assert_allclose(found.mean / unit, plain.mean, atol=1e-4)
    np.testing.assert_allclose(found.std / unit, plain.std, rtol=1e-2, atol=1e-4)


VALUES, MASK = data()
BAD = np.where(MASK, np.inf, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ensemble(VALUES[1:], MASK), r"values must have the shape of mask, \(12, 15\); got \(11, 15\)"),
        (lambda: ensemble(VALUES.astype(int), MASK), "values must be real floating point"),
        (lambda: ensemble(BAD, MASK), "observed values must be finite"),
        (lambda: ensemble(VALUES, 0 * MASK), "mask observes no entry"),
        (lambda: ensemble(VALUES, MASK, num_members=1), "num_members .*at least 2; got 1"),
        (lambda: ensemble(VALUES, MASK, drop=1.0), "drop .*1"),
        (lambda: ensemble(VALUES, MASK, ridge=-1.0), "ridge"),
        (lambda: ensemble(VALUES, MASK, rank=13), r"^rank must be at most min\(shape\) = 12; got 13"),
        (lambda: lr.complete_ensemble(VALUES, MASK, 0, rank=1), "key must be"),
    ],
)
def test_the_door(call, message):
    with pytest.raises(ValueError, match=message):
        call()
