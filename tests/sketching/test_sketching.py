"""The sketches: contract, transforms, and the laws they must obey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from cases import SKETCHES

from lrjax.linalg.hadamard import hadamard_transform
from lrjax.sketching import (
    SRDCT,
    SRHT,
    BlockSRHT,
    CountSketch,
    GaussianSketch,
    PooledSketch,
    SparseSignSketch,
    TensorSRHT,
    VerySparseSketch,
    sparse,
    transforms,
)
from lrjax.sketching import dense as dense_sketches

KINDS = SKETCHES
TYPED = [GaussianSketch, PooledSketch]
both_kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@pytest.fixture
def small_blocks(monkeypatch):
    """A few columns at a time, so that small sketches have several blocks and a tail."""
    monkeypatch.setattr(dense_sketches, "_BLOCK_ENTRIES", 55)
    monkeypatch.setattr(transforms, "_BLOCK_ENTRIES", 150)


def dense(sketch, dtype=None):
    return np.asarray(sketch.apply(jnp.eye(sketch.shape[1], dtype=dtype)))


@both_kinds
@pytest.mark.parametrize("num_cols", [37, 32])
def test_apply_and_adjoint_are_one_matrix(kind, num_cols, small_blocks):
    sketch = kind.create(jax.random.key(0), 16, num_cols)
    s = dense(sketch)
    assert sketch.shape == s.shape == (16, num_cols)
    a = np.asarray(jax.random.normal(jax.random.key(1), (num_cols, 5)))
    z = np.asarray(jax.random.normal(jax.random.key(2), (16, 4)))
    np.testing.assert_allclose(sketch.apply(a), s @ a, atol=2e-5)
    np.testing.assert_allclose(sketch.apply_adjoint(z), s.T @ z, atol=2e-5)


@both_kinds
def test_vectors_obey_the_dot_product_identity(kind, small_blocks):
    sketch = kind.create(jax.random.key(3), 16, 37)
    a = jax.random.normal(jax.random.key(4), (37,))
    z = jax.random.normal(jax.random.key(5), (16,))
    short, long = sketch.apply(a), sketch.apply_adjoint(z)
    assert (short.shape, long.shape) == ((16,), (37,))
    np.testing.assert_allclose(short, sketch.apply(a[:, None])[:, 0], atol=2e-5)
    np.testing.assert_allclose(np.vdot(short, z), np.vdot(a, long), rtol=1e-5, atol=1e-5)


@both_kinds
def test_derivative_of_apply_is_the_adjoint(kind, small_blocks):
    sketch = kind.create(jax.random.key(3), 16, 37)
    z = jax.random.normal(jax.random.key(5), (16, 3))
    _, pull = jax.vjp(sketch.apply, jnp.ones((37, 3)))
    np.testing.assert_allclose(pull(z)[0], sketch.apply_adjoint(z), atol=2e-5)


@both_kinds
def test_jit_and_vmap_agree_with_a_loop(kind, small_blocks):
    a = jax.random.normal(jax.random.key(1), (37, 2))
    keys = jax.random.split(jax.random.key(0), 3)

    def draw_and_apply(key):
        return kind.create(key, 16, 37).apply(a)

    loop = np.stack([draw_and_apply(key) for key in keys])
    assert np.max(np.abs(loop[0] - loop[1])) > 0.1
    np.testing.assert_allclose(jax.jit(draw_and_apply)(keys[0]), loop[0], atol=2e-5)
    batch = jax.vmap(lambda key: kind.create(key, 16, 37))(keys)
    np.testing.assert_allclose(jax.vmap(lambda sketch: sketch.apply(a))(batch), loop, atol=2e-5)


@both_kinds
def test_dtype_is_that_of_the_input(kind, small_blocks):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        sketch = kind.create(jax.random.key(0), 16, 37)
        assert sketch.apply(jnp.ones(37, jnp.float32)).dtype == jnp.float32
        assert sketch.apply_adjoint(jnp.ones(16, jnp.float32)).dtype == jnp.float32
        s = dense(sketch, jnp.float64)
        assert s.dtype == jnp.float64
        if kind in TYPED:
            assert np.any(s.astype(np.float32) != s)  # the default under x64 is drawn in float64


@both_kinds
def test_complex_data_are_two_real_ones(kind):
    sketch = kind.create(jax.random.key(0), 16, 37)
    a = jax.random.normal(jax.random.key(1), (37, 3), jnp.complex64)
    if kind is SRDCT:
        with pytest.raises(ValueError, match="a has dtype complex64; expected a real"):
            sketch.apply(a)
        return
    np.testing.assert_allclose(sketch.apply(a), sketch.apply(a.real) + 1j * sketch.apply(a.imag), atol=2e-5)


@both_kinds
def test_expected_gram_matrix_is_the_identity(kind, small_blocks):
    num_rows, num_cols, trials = 8, 12, 4000
    keys = jax.random.split(jax.random.key(8), trials)
    s = jax.vmap(lambda key: kind.create(key, num_rows, num_cols).apply(jnp.eye(num_cols)))(keys)
    mean = np.einsum("tmi,tmj->ij", s, s) / trials
    # An entry has variance 4/m at most (the very sparse sketch; 2/m for the Gaussian one): five standard errors.
    np.testing.assert_allclose(mean, np.eye(num_cols), atol=5 * np.sqrt(4 / num_rows / trials))


@both_kinds
def test_singular_values_follow_the_law(kind):
    num_cols, rank, num_rows = 2000, 20, 512
    u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(num_cols, rank)))
    sigma = np.linalg.svd(
        kind.create(jax.random.key(9), num_rows, num_cols).apply(u.astype(np.float32)), compute_uv=False
    )
    spread = np.sqrt(rank / num_rows)
    assert abs(sigma[0] - (1 + spread)) < 0.1  # draws without replacement spread a little less
    assert abs(sigma[-1] - (1 - spread)) < 0.1


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
    assert np.all(np.any(s != 0, axis=1))
    assert abs(np.sign(s[s != 0]).mean()) < 5 / np.sqrt(np.count_nonzero(s))
    # Two columns meet in a band with probability 1 / h at most, independently over bands.
    meetings = (s != 0).T.astype(float) @ (s != 0)
    apart = meetings[~np.eye(500, dtype=bool)]
    assert abs(apart.mean() / (num_nonzeros * num_nonzeros / num_rows) - 1) < 0.1


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


@pytest.mark.parametrize("kind", TYPED)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64, bool])
def test_create_refuses_dtypes_that_are_not_real_floating(kind, dtype):
    with pytest.raises(ValueError, match=r"dtype is .*; expected a real floating type"):
        kind.create(KEY, 8, 9, dtype=dtype)


def test_create_refuses_more_nonzeros_than_rows():
    with pytest.raises(ValueError, match="num_nonzeros is 8; expected at most num_rows = 7"):
        SparseSignSketch.create(KEY, 7, 9)
    with pytest.raises(ValueError, match=r"num_nonzeros must be .*; got 0"):
        SparseSignSketch.create(KEY, 7, 9, num_nonzeros=0)


@both_kinds
def test_apply_refuses(kind):
    sketch = kind.create(KEY, 8, 12)
    with pytest.raises(ValueError, match=r"a has shape \(9,\); expected \(12,\) or \(12, k\)"):
        sketch.apply(jnp.ones(9))
    with pytest.raises(ValueError, match=r"z has shape \(12,\); expected \(8,\)"):
        sketch.apply_adjoint(jnp.ones(12))
    with pytest.raises(ValueError, match=r"a has shape \(12, 1, 1\)"):
        sketch.apply(jnp.ones((12, 1, 1)))
    with pytest.raises(ValueError, match="a has dtype int32"):
        sketch.apply(jnp.ones(12, jnp.int32))


def test_hadamard_transform_is_the_sylvester_matrix(x64):
    for size in (1, 2, 8, 128, 512):
        h = scipy.linalg.hadamard(size) / np.sqrt(size)
        x = np.random.default_rng(0).standard_normal((size, 3))
        np.testing.assert_allclose(hadamard_transform(jnp.asarray(x)), h @ x, atol=1e-13)
    with pytest.raises(ValueError, match="x has 12 rows; expected a power of two"):
        hadamard_transform(jnp.ones((12, 1)))


def test_srht_is_its_definition(x64):
    sketch = SRHT.create(KEY, 16, 50)
    rows = np.asarray(sketch.rows)
    assert len(set(rows.tolist())) == 16
    h = scipy.linalg.hadamard(64)[rows, :50] / 8
    np.testing.assert_allclose(dense(sketch), 2 * h * np.asarray(sketch.signs)[None, :], atol=1e-13)


def test_count_sketch_has_one_sign_a_column():
    s = dense(CountSketch.create(KEY, 16, 50))
    assert np.all(np.count_nonzero(s, axis=0) == 1)
    assert set(np.count_nonzero(s, axis=1).tolist()) <= {2, 3, 4}
    assert set(np.unique(s).tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize(("num_cols", "hands"), [(1, 1), (50, 16), (1000, 7), (37, 64)])
def test_every_column_is_dealt_once(num_cols, hands):
    place, order = sparse._deal(KEY, num_cols, hands)
    dealt = np.asarray(order).ravel()
    assert sorted(dealt[dealt < num_cols].tolist()) == list(range(num_cols))
    np.testing.assert_array_equal(dealt[np.asarray(place)], np.arange(num_cols))


def test_two_columns_meet_as_often_as_they_should():
    # Neighbours, far ones, and ones a period of the table apart: 1 / m each, up to five standard errors.
    keys, num_cols, m = jax.random.split(KEY, 20000), 400, 10
    seats = (
        np.asarray(jax.vmap(lambda key: sparse._deal(key, num_cols, m)[0][jnp.array([0, 1, 20, 21, 217])])(keys)) % m
    )
    for j in range(1, 5):
        share = np.mean(seats[:, 0] == seats[:, j])
        assert abs(share - (num_cols / m - 1) / (num_cols - 1)) < 5 * np.sqrt(0.1 / 20000)


def test_tensor_sketch_never_forms_the_product(x64):
    sketch = TensorSRHT.create(KEY, 16, 5, 7)
    s = dense(sketch)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((5, 2)), rng.standard_normal((7, 3))
    np.testing.assert_allclose(sketch.apply_kronecker(x, y), s @ np.kron(x, y), atol=1e-12)
    pairs = np.stack([np.kron(x[:, i], y[:, i]) for i in range(2)], axis=1)
    np.testing.assert_allclose(sketch.apply_products(x, y[:, :2]), s @ pairs, atol=1e-12)
    z = rng.standard_normal((16, 4))
    np.testing.assert_allclose(sketch.apply_adjoint(z), s.T @ z, atol=1e-12)
    keys = jax.random.split(KEY, 4000)
    draws = jax.vmap(lambda key: TensorSRHT.create(key, 16, 2, 3).apply(jnp.eye(6)))(keys)
    np.testing.assert_allclose(
        np.einsum("tmi,tmj->ij", draws, draws) / 4000, np.eye(6), atol=5 * np.sqrt(4 / 16 / 4000)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SRHT.create(KEY, 17, 10), "num_rows is 17; expected at most 16"),
        (lambda: SRDCT.create(KEY, 11, 10), "num_rows is 11; expected at most 10"),
        (lambda: BlockSRHT.create(KEY, 8, 100, block_size=12), "block_size is 12; expected a power of two"),
        (lambda: PooledSketch.create(KEY, 12, 100), "num_rows is 12; expected a power of two, such as 16"),
        (lambda: PooledSketch.create(KEY, 8, 100, pool=8), "pool is 8; expected a power of two of at least"),
        (lambda: VerySparseSketch.create(KEY, 8, 100, draws=0), "draws must be an integer of at least 1; got 0"),
    ],
)
def test_particular_limits(make, message):
    with pytest.raises(ValueError, match=message):
        make()
