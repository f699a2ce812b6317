"""The sketches: contract, transforms, and the laws they must obey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrjax.sketching import GaussianSketch, SparseSignSketch, sketches

KINDS = [GaussianSketch, SparseSignSketch]
both_kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@pytest.fixture
def small_blocks(monkeypatch):
    """Four columns at a time for 13 rows, so that a small Gaussian sketch has several blocks and a tail."""
    monkeypatch.setattr(sketches, "_BLOCK_ENTRIES", 55)


def dense(sketch, dtype=None):
    return np.asarray(sketch.apply(jnp.eye(sketch.shape[1], dtype=dtype)))


@both_kinds
@pytest.mark.parametrize("num_cols", [37, 36, 1])
def test_apply_and_adjoint_are_one_matrix(kind, num_cols, small_blocks):
    sketch = kind.create(jax.random.key(0), 13, num_cols)
    s = dense(sketch)
    assert sketch.shape == s.shape == (13, num_cols)
    a = np.asarray(jax.random.normal(jax.random.key(1), (num_cols, 5)))
    z = np.asarray(jax.random.normal(jax.random.key(2), (13, 4)))
    np.testing.assert_allclose(sketch.apply(a), s @ a, atol=2e-5)
    np.testing.assert_allclose(sketch.apply_adjoint(z), s.T @ z, atol=2e-5)


@both_kinds
def test_vectors_obey_the_dot_product_identity(kind, small_blocks):
    sketch = kind.create(jax.random.key(3), 13, 37)
    a = jax.random.normal(jax.random.key(4), (37,))
    z = jax.random.normal(jax.random.key(5), (13,))
    short, long = sketch.apply(a), sketch.apply_adjoint(z)
    assert (short.shape, long.shape) == ((13,), (37,))
    np.testing.assert_allclose(short, sketch.apply(a[:, None])[:, 0], atol=2e-5)
    np.testing.assert_allclose(np.vdot(short, z), np.vdot(a, long), rtol=1e-5, atol=1e-5)


@both_kinds
def test_derivative_of_apply_is_the_adjoint(kind, small_blocks):
    sketch = kind.create(jax.random.key(3), 13, 37)
    z = jax.random.normal(jax.random.key(5), (13, 3))
    _, pull = jax.vjp(sketch.apply, jnp.ones((37, 3)))
    np.testing.assert_allclose(pull(z)[0], sketch.apply_adjoint(z), atol=2e-5)


@both_kinds
def test_jit_and_vmap_agree_with_a_loop(kind, small_blocks):
    a = jax.random.normal(jax.random.key(1), (37, 2))
    keys = jax.random.split(jax.random.key(0), 3)

    def draw_and_apply(key):
        return kind.create(key, 13, 37).apply(a)

    loop = np.stack([draw_and_apply(key) for key in keys])
    assert np.max(np.abs(loop[0] - loop[1])) > 0.1
    np.testing.assert_allclose(jax.jit(draw_and_apply)(keys[0]), loop[0], atol=2e-5)
    batch = jax.vmap(lambda key: kind.create(key, 13, 37))(keys)
    np.testing.assert_allclose(jax.vmap(lambda sketch: sketch.apply(a))(batch), loop, atol=2e-5)


@both_kinds
def test_dtype_is_that_of_the_input(kind, small_blocks):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        sketch = kind.create(jax.random.key(0), 13, 37)
        assert sketch.apply(jnp.ones(37, jnp.float32)).dtype == jnp.float32
        assert sketch.apply_adjoint(jnp.ones(13, jnp.float32)).dtype == jnp.float32
        s = dense(sketch, jnp.float64)
        assert s.dtype == jnp.float64
        assert np.any(s.astype(np.float32) != s)  # the default under x64 is drawn in float64


@both_kinds
def test_expected_gram_matrix_is_the_identity(kind, small_blocks):
    num_rows, num_cols, trials = 13, 6, 4000
    keys = jax.random.split(jax.random.key(8), trials)
    s = jax.vmap(lambda key: kind.create(key, num_rows, num_cols).apply(jnp.eye(num_cols)))(keys)
    mean = np.einsum("tmi,tmj->ij", s, s) / trials
    # A diagonal entry has variance 2/m at most: five standard errors.
    np.testing.assert_allclose(mean, np.eye(num_cols), atol=5 * np.sqrt(2 / num_rows / trials))


@both_kinds
def test_singular_values_follow_the_law(kind):
    num_cols, rank, num_rows = 2000, 20, 400
    u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(num_cols, rank)))
    sigma = np.linalg.svd(
        kind.create(jax.random.key(9), num_rows, num_cols).apply(u.astype(np.float32)), compute_uv=False
    )
    spread = np.sqrt(rank / num_rows)
    assert abs(sigma[0] - (1 + spread)) < 0.08
    assert abs(sigma[-1] - (1 - spread)) < 0.08


def test_gaussian_entries_are_independent_normals(small_blocks):
    s = np.sqrt(13) * dense(GaussianSketch.create(jax.random.key(10), 13, 997))
    assert abs(s.mean()) < 5 / np.sqrt(s.size)
    assert abs(s.var() - 1) < 5 * np.sqrt(2 / s.size)
    assert abs((s**4).mean() - 3) < 5 * np.sqrt(96 / s.size)
    assert np.unique(s[0]).size > 990  # no block drawn twice


@pytest.mark.parametrize("name", ["apply", "apply_adjoint"])
def test_gaussian_memory_does_not_grow_with_the_matrix(name):
    def temporary_bytes(num_cols):
        sketch = GaussianSketch.create(jax.random.key(0), 64, num_cols)
        assert sum(leaf.size for leaf in jax.tree.leaves(sketch)) == 1
        vector = jnp.zeros(num_cols if name == "apply" else 64)
        compiled = jax.jit(lambda sketch, v: getattr(sketch, name)(v)).lower(sketch, vector).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(2**17), temporary_bytes(2**19)
    assert large - small <= 2 * 4 * (2**19 - 2**17)  # a few vectors; the matrix grows by 64 of them


@pytest.mark.parametrize(("num_rows", "num_nonzeros"), [(64, 8), (13, 4), (5, 1)])
def test_sparse_columns_hold_distinct_rows(num_rows, num_nonzeros):
    sketch = SparseSignSketch.create(jax.random.key(11), num_rows, 500, num_nonzeros=num_nonzeros)
    s = dense(sketch)
    assert np.all(np.count_nonzero(s, axis=0) == num_nonzeros)
    np.testing.assert_allclose(np.abs(s[s != 0]), num_nonzeros**-0.5, rtol=1e-6)
    ordered = np.sort(np.asarray(sketch.rows), axis=0)
    assert np.all(np.diff(ordered, axis=0) > 0)
    assert set(ordered.ravel().tolist()) == set(range(num_rows))
    signs = np.sign(np.asarray(sketch.values))
    assert abs(signs.mean()) < 5 / np.sqrt(signs.size)


KEY = jax.random.key(0)


@both_kinds
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((KEY, 0, 4), "num_rows must be .*; got 0"),
        ((KEY, 4.0, 4), "num_rows must be .*; got 4.0"),
        ((KEY, 4, -1), "num_cols must be .*; got -1"),
        ((KEY, 4, True), "num_cols must be .*; got True"),
        ((0, 9, 9), "key must be .*; got int"),
        ((jax.random.split(KEY, 2), 9, 9), "key must be .*; got key<fry> of shape"),
        ((jnp.zeros(2), 9, 9), "key must be .*; got float32"),
    ],
)
def test_create_refuses(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind.create(*arguments)


@both_kinds
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, bool])
def test_create_refuses_dtypes_that_are_not_real_floating(kind, dtype):
    with pytest.raises(ValueError, match=r"dtype is .*; expected a real floating type"):
        kind.create(KEY, 9, 9, dtype=dtype)


def test_create_refuses_more_nonzeros_than_rows():
    with pytest.raises(ValueError, match="num_nonzeros is 8; expected at most num_rows = 7"):
        SparseSignSketch.create(KEY, 7, 9)
    with pytest.raises(ValueError, match=r"num_nonzeros must be .*; got 0"):
        SparseSignSketch.create(KEY, 7, 9, num_nonzeros=0)


@both_kinds
def test_apply_refuses(kind):
    sketch = kind.create(KEY, 9, 12)
    with pytest.raises(ValueError, match=r"a has shape \(9,\); expected \(12,\) or \(12, k\)"):
        sketch.apply(jnp.ones(9))
    with pytest.raises(ValueError, match=r"z has shape \(12,\); expected \(9,\)"):
        sketch.apply_adjoint(jnp.ones(12))
    with pytest.raises(ValueError, match=r"a has shape \(12, 1, 1\)"):
        sketch.apply(jnp.ones((12, 1, 1)))
    with pytest.raises(ValueError, match="a has dtype int32"):
        sketch.apply(jnp.ones(12, jnp.int32))
    with pytest.raises(ValueError, match="z has dtype complex64"):
        sketch.apply_adjoint(jnp.ones(9, jnp.complex64))
