"""`low_rank` and `rsvd`: against dense NumPy, the optimality of the closed form, transforms and the door."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import sparse as jsparse

import lrjax as lr
from lrjax.sketching import SparseSignSketch

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
W = RNG.normal(size=(9, 6))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def metric(n, kind, seed=1):
    rng = np.random.default_rng(seed)
    if kind is None:
        return None
    if kind == "vector":
        return rng.uniform(0.1, 3, n)
    if kind == "singular vector":
        return rng.uniform(0.1, 3, n) * (np.arange(n) % 3 > 0)
    if kind == "ill":
        q, _ = np.linalg.qr(rng.normal(size=(n, n)))
        return (q * np.geomspace(1, 1e-10, n)) @ q.T
    x = rng.normal(size=({"full": 3 * n, "singular": n // 2}[kind], n))
    return x.T @ x / len(x)


def as_matrix(a, n):
    return np.eye(n) if a is None else np.diag(a) if np.ndim(a) == 1 else a


def root(a, n):
    values, vectors = np.linalg.eigh(as_matrix(a, n))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def cost(w, x, a, c):
    return np.linalg.norm(root(a, w.shape[0]) @ (w - np.asarray(x)) @ root(c, w.shape[1])) ** 2


KINDS = [None, "vector", "full", "singular", "singular vector", "ill"]


@pytest.mark.parametrize("col", KINDS)
@pytest.mark.parametrize("row", KINDS)
def test_the_value_is_the_singular_tail(row, col):
    a, c = metric(9, row), metric(6, col, 2)
    s = np.linalg.svd(root(a, 9) @ W @ root(c, 6), compute_uv=False)
    for key in (None, KEY):
        for rank in (1, 3):
            x = lr.low_rank(W, rank, row_metric=a, col_metric=c, key=key)
            assert (x.left.shape, x.right.shape) == ((9, rank), (6, rank))
            np.testing.assert_allclose(cost(W, x.dense(), a, c), np.sum(s[rank:] ** 2), rtol=1e-9, atol=1e-13)


def test_no_metric_is_the_svd_and_a_wide_matrix_its_mirror_image():
    u, s, vt = np.linalg.svd(W)
    best = (u[:, :2] * s[:2]) @ vt[:2]
    np.testing.assert_allclose(lr.low_rank(W, 2).dense(), best, atol=1e-13)
    a, c = metric(9, "full"), metric(6, "vector")
    tall = lr.low_rank(W, 2, row_metric=a, col_metric=c).dense()
    wide = lr.low_rank(W.T, 2, row_metric=c, col_metric=a).dense()
    np.testing.assert_allclose(wide, tall.T, atol=1e-12)


def test_no_other_matrix_of_that_rank_does_better():
    # Alternating weighted least squares from many starts, an independent way to the same minimum.
    a, c = metric(9, "full"), metric(6, "full", 2)
    best = np.inf
    for seed in range(5):
        v = np.random.default_rng(seed).normal(size=(6, 2))
        for _ in range(200):
            u = W @ c @ v @ np.linalg.inv(v.T @ c @ v)
            v = W.T @ a @ u @ np.linalg.inv(u.T @ a @ u)
        best = min(best, cost(W, u @ v.T, a, c))
    found = cost(W, lr.low_rank(W, 2, row_metric=a, col_metric=c).dense(), a, c)
    np.testing.assert_allclose(found, best, rtol=1e-8)
    assert found < 0.99 * cost(W, lr.low_rank(W, 2).dense(), a, c)


def test_row_weights_are_repeated_rows():
    # Integer importances of rows: the plain SVD of the matrix with the rows repeated in that number.
    counts = np.array([1, 2, 3, 1, 4, 1, 2, 1, 5])
    _, _, vt = np.linalg.svd(np.repeat(W, counts, axis=0))
    x = lr.low_rank(W, 2, row_metric=counts.astype(float)).dense()
    np.testing.assert_allclose(x, W @ vt[:2].T @ vt[:2], atol=1e-12)


def test_the_form_without_an_inverse_against_the_pseudo_inverse():
    c, singular = metric(6, "full"), metric(6, "singular")
    pseudo = lambda c: (lambda r: lr.low_rank(W @ r, 2).dense() @ np.linalg.pinv(r, rcond=1e-6))(root(c, 6))
    np.testing.assert_allclose(lr.low_rank(W, 2, col_metric=c).dense(), pseudo(c), atol=1e-12)
    ours, theirs = np.asarray(lr.low_rank(W, 2, col_metric=singular).dense()), pseudo(singular)
    values, vectors = np.linalg.eigh(singular)
    unseen, seen = vectors[:, values < 1e-12], vectors[:, values > 1e-12]
    np.testing.assert_allclose(ours @ seen, theirs @ seen, atol=1e-12)
    # Where the metric sees nothing a projection of W remains, and the pseudo-inverse leaves nothing.
    np.testing.assert_allclose(theirs @ unseen, 0, atol=1e-12)
    assert np.linalg.norm(W @ unseen - ours @ unseen) < np.linalg.norm(W @ unseen)


def test_scales_of_the_metrics_do_not_matter_and_zero_ones_are_harmless():
    a, c = metric(9, "full"), metric(6, "singular")
    x = lr.low_rank(W, 2, row_metric=a, col_metric=c).dense()
    np.testing.assert_allclose(lr.low_rank(W, 2, row_metric=1e-8 * a, col_metric=1e8 * c).dense(), x, atol=1e-10)
    assert np.isfinite(lr.low_rank(W, 2, row_metric=0 * a, col_metric=c).dense()).all()
    assert np.isfinite(lr.low_rank(0 * W, 2, col_metric=c).dense()).all()


def test_float32_at_condition_1e10():
    w, c = W.astype(np.float32), metric(6, "ill").astype(np.float32)
    x = lr.low_rank(w, 2, col_metric=c)
    assert x.left.dtype == x.right.dtype == jnp.float32
    tail = np.sum(np.linalg.svd(W @ root(metric(6, "ill"), 6), compute_uv=False)[2:] ** 2)
    excess = cost(W, x.dense(), None, metric(6, "ill")) - tail
    assert abs(excess) < 1e-6 * cost(W, 0 * W, None, metric(6, "ill"))
    with jax.enable_x64(False):
        assert lr.low_rank(w, 2, row_metric=np.ones(9), key=jax.random.key(1)).left.dtype == jnp.float32


def test_jit_and_vmap_agree_with_a_loop():
    a, c = metric(9, "full"), metric(6, "vector")
    ws = RNG.normal(size=(3, 9, 6))
    solve = lambda w, c: lr.low_rank(w, 2, row_metric=a, col_metric=c).dense()
    loop = np.stack([solve(w, c) for w in ws])
    np.testing.assert_allclose(jax.jit(jax.vmap(solve, (0, None)))(jnp.asarray(ws), jnp.asarray(c)), loop, atol=1e-12)


@pytest.mark.parametrize(("row", "col"), [(None, None), (None, "full"), ("vector", None), ("full", "full")])
def test_gradients_even_at_repeated_values(row, col):
    a, c = metric(9, row), metric(6, col, 2)
    u, v = np.linalg.qr(RNG.normal(size=(9, 4)))[0], np.linalg.qr(RNG.normal(size=(6, 4)))[0]
    # Repeated above the cut, repeated below it, and rank-deficient.
    w = (u * np.array([2.0, 2.0, 1.0, 1.0])) @ v.T
    target = RNG.normal(size=(9, 6))

    def value(w, a, c):
        return jnp.sum(lr.low_rank(w, 2, row_metric=a, col_metric=c).dense() * target)

    given = [jnp.asarray(x) if x is not None else None for x in (w, a, c)]
    grads = jax.jit(jax.grad(value, argnums=tuple(i for i, x in enumerate(given) if x is not None)))(*given)
    places = [i for i, x in enumerate(given) if x is not None]
    for i, grad in zip(places, grads, strict=True):
        step = RNG.normal(size=given[i].shape)
        step = 1e-6 * (step + step.T if step.ndim == 2 and step.shape[0] == step.shape[1] else step)
        moved = [[*given[:i], given[i] + sign * step, *given[i + 1 :]] for sign in (1, -1)]
        expected = (value(*moved[0]) - value(*moved[1])) / 2
        np.testing.assert_allclose(np.sum(grad * step), expected, rtol=1e-4, atol=1e-10)


def test_randomized_svd_against_numpy():
    rng = np.random.default_rng(3)
    q1, q2 = np.linalg.qr(rng.normal(size=(200, 120)))[0], np.linalg.qr(rng.normal(size=(120, 120)))[0]
    a = (q1 * np.geomspace(1, 1e-6, 120)) @ q2.T
    u, s, v = lr.rsvd(a, 10, key=KEY)
    expected = np.linalg.svd(a, compute_uv=False)
    np.testing.assert_allclose(s, expected[:10], rtol=1e-10)
    for basis in (u, v):
        np.testing.assert_allclose(basis.T @ basis, np.eye(10), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(a - (u * s) @ v.T, 2), expected[10], rtol=1e-8)
    # Without the passes over the block the same draw is far worse: they are what it takes.
    plain = lr.rsvd(a, 10, key=KEY, oversample=0, power_steps=0)
    assert np.abs(plain[1] / expected[:10] - 1).max() > 1e-2


@pytest.mark.parametrize("shape", [(30, 1), (1, 30), (12, 12), (5, 40)])
def test_randomized_svd_of_any_shape(shape):
    a = RNG.normal(size=shape)
    rank = min(shape)
    u, s, v = jax.jit(lambda a: lr.rsvd(a, rank, key=KEY))(jnp.asarray(a))
    np.testing.assert_allclose((u * s) @ v.T, a, atol=1e-11)


def test_randomized_svd_of_products_only_and_its_derivative():
    sketch = SparseSignSketch.create(KEY, 40, 60, num_nonzeros=4)
    dense = np.asarray(sketch.apply(jnp.eye(60)))
    _, s, _ = lr.rsvd(sketch, 5, key=KEY, oversample=5, power_steps=4)
    np.testing.assert_allclose(s, np.linalg.svd(dense, compute_uv=False)[:5], rtol=1e-2)
    a = RNG.normal(size=(12, 8)) * np.geomspace(1, 1e-3, 8)
    grad = jax.jit(jax.grad(lambda a: jnp.sum(lr.rsvd(a, 2, key=KEY)[1])))(jnp.asarray(a))
    left, _, right = np.linalg.svd(a)
    np.testing.assert_allclose(grad, left[:, :2] @ right[:2], atol=1e-9)
    many = jax.jit(jax.vmap(lambda key: lr.rsvd(a, 2, key=key)[1]))(jax.random.split(KEY, 3))
    np.testing.assert_allclose(many, np.tile(np.linalg.svd(a, compute_uv=False)[:2], (3, 1)), rtol=1e-10)
    assert lr.rsvd(a.astype(np.float32), 2, key=KEY)[0].dtype == jnp.float32


def test_power_steps_help_where_the_blocks_would_fill_the_space():
    rng = np.random.default_rng(4)
    q1, q2 = (np.linalg.qr(rng.normal(size=(29, 29)))[0] for _ in range(2))
    values = np.arange(1.0, 30) ** -0.5
    a = (q1 * values) @ q2.T

    def excess(x):
        return np.linalg.norm(a - np.asarray(x)) / np.linalg.norm(values[5:]) - 1

    def found(steps):
        u, s, v = lr.rsvd(a, 5, key=KEY, power_steps=steps)
        return excess((u * s) @ v.T)

    # A subspace iteration of as many steps, with a QR in every one, from another draw.
    block = rng.normal(size=(29, 15))
    for _ in range(11):
        block = np.linalg.qr(a @ np.linalg.qr(a.T @ np.linalg.qr(block)[0])[0])[0]
    u, s, vt = np.linalg.svd(block.T @ a)
    reference = excess(block @ (u[:, :5] * s[:5]) @ vt[:5])
    assert found(0) > 1e-2
    assert found(2) < 0.1 * found(0)
    assert found(10) < 1e-8 + 100 * abs(reference)
    assert abs(found(50)) < 1e-13
    assert excess(lr.low_rank(a, 5, key=KEY).dense()) < 0.1 * found(0)


@pytest.mark.parametrize("values", [[1.0, 1, 2, 3], [2.0, 2, 2, 2], [1.0, 1 + 1e-15, 3, 3]])
def test_the_derivative_of_the_product_where_values_repeat(values):
    a, move = np.diag(values), RNG.normal(size=(4, 4))

    def product(a):
        u, s, v = lr.rsvd(a, 4, key=KEY)
        return (u * s) @ v.T

    # All triples: the product is `a` itself.
    np.testing.assert_allclose(jax.jvp(product, (a,), (move,))[1], move, atol=1e-8)
    wide = np.concatenate([a, np.zeros((4, 2))], axis=1)
    direction = RNG.normal(size=(4, 6))
    np.testing.assert_allclose(jax.jvp(product, (wide,), (direction,))[1], direction, atol=1e-8)


def test_the_derivative_of_vectors_where_values_differ_by_little():
    turn = lambda: np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    a = turn() @ np.diag([2.0, 1.01, 1, 0.5]) @ turn()
    weights = RNG.normal(size=(4, 3))
    value = lambda a: jnp.sum(weights * lr.rsvd(a, 3, key=KEY)[0] ** 2)
    move = RNG.normal(size=(4, 4))
    step = 1e-6
    expected = (value(a + step * move) - value(a - step * move)) / (2 * step)
    np.testing.assert_allclose(jax.jvp(value, (jnp.asarray(a),), (jnp.asarray(move),))[1], expected, rtol=1e-4)


def test_two_full_metrics_in_single_precision():
    """Inputs with a spectrum of six decades and a better-conditioned row metric, as weights of networks have them."""
    rng = np.random.default_rng(6)
    n1, n2, rank = 40, 60, 10
    w = rng.normal(size=(n1, n2))
    turn = lambda n: np.linalg.qr(rng.normal(size=(n, n)))[0]
    q1, q2 = turn(n1), turn(n2)
    for a_values, c_values in ((1e-2, 4e-7), (4e-7, 1e-2), (4e-7, 4e-7)):
        a = (q1 * np.geomspace(1, a_values, n1)) @ q1.T
        c = (q2 * np.geomspace(1, c_values, n2)) @ q2.T
        s = np.linalg.svd(root(a, n1) @ w @ root(c, n2), compute_uv=False)
        x = lr.low_rank(
            w.astype(np.float32), rank, row_metric=a.astype(np.float32), col_metric=c.astype(np.float32)
        ).dense()
        assert abs(cost(w, np.asarray(x, float), a, c) / np.sum(s[rank:] ** 2) - 1) < 1e-5


def test_what_people_hold_their_matrices_in():
    a = scipy.sparse.random(60, 30, density=0.3, random_state=0).tocsr()
    expected = np.linalg.svd(a.toarray(), compute_uv=False)[:3]
    single = jsparse.BCOO.fromdense(jnp.asarray(a.toarray()))
    held = [a, scipy.sparse.csc_array(a), single, jsparse.BCSR.from_bcoo(single)]
    held += [jsparse.CSR.fromdense(jnp.asarray(a.toarray())), jsparse.CSC.fromdense(jnp.asarray(a.toarray()))]
    for matrix in (*held, a.toarray().tolist(), a.toarray().astype(">f8")):
        np.testing.assert_allclose(lr.rsvd(matrix, 3, key=KEY, power_steps=9)[1], expected, rtol=1e-6)
    w = W.tolist()
    np.testing.assert_allclose(lr.low_rank(w, 2).dense(), lr.low_rank(W, 2).dense(), atol=1e-13)
    frame = pytest.importorskip("pandas").DataFrame(W)
    np.testing.assert_allclose(lr.low_rank(frame, 2).dense(), lr.low_rank(W, 2).dense(), atol=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lr.low_rank(W, 2, weights=W**2), r"row_metric and col_metric .*AlternatingMinimization"),
        (lambda: lr.low_rank(W.astype(np.float16), 1), "w has dtype float16; expected float32 or float64: cast it"),
        (lambda: lr.low_rank(jnp.asarray(W, jnp.bfloat16), 1), "w has dtype bfloat16; .*cast it"),
        (lambda: lr.rsvd(W.astype(np.float16), 1, key=KEY), "a has dtype float16; .*cast it"),
        (lambda: lr.rsvd(scipy.sparse.eye(4, dtype=int), 1, key=KEY), "a must be real floating point; got dtype int"),
        (lambda: lr.low_rank(scipy.sparse.eye(4), 1), "w must be a dense array; got the sparse .*toarray"),
        (lambda: lr.low_rank(None, 1), "w must be an array of numbers"),
        (lambda: lr.low_rank(W, 7), r"rank must be at most 6.*got 7"),
        (lambda: lr.low_rank(W, 0), "rank must be .*got 0"),
        (lambda: lr.low_rank(W[0], 1), r"w must have shape \(n1, n2\).*\(6,\)"),
        (lambda: lr.low_rank(W.astype(int), 1), "w must be real floating point; got dtype int"),
        (lambda: lr.low_rank(W * np.nan, 1), "w must be finite"),
        (
            lambda: lr.low_rank(W, 1, row_metric=np.ones(6)),
            r"row_metric must have shape \(9,\) or \(9, 9\); got \(6,\)",
        ),
        (lambda: lr.low_rank(W, 1, col_metric=-np.ones(6)), "col_metric must not be negative; .*-1.0"),
        (lambda: lr.low_rank(W, 1, col_metric=W[:6]), "col_metric must be symmetric"),
        (lambda: lr.low_rank(W, 1, key=3), "key must be"),
        (lambda: lr.rsvd(W, 7, key=KEY), "rank must be at most 6"),
        (lambda: lr.rsvd(W, 1, key=KEY, oversample=-1), "oversample .*got -1"),
        (lambda: lr.rsvd(W, 1, key=KEY, power_steps=0.5), "power_steps .*got 0.5"),
        (lambda: lr.rsvd(W, 1, key=0), "key must be"),
    ],
)
def test_the_door(call, message):
    with pytest.raises(ValueError, match=message):
        call()
