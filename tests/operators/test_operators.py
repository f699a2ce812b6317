"""Every operator against explicit matrices, its own adjoint, and NumPy's least squares."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import OPERATORS

import lrjax as lr
from lrjax import operators, testing
from lrjax.linalg.rows import RowProblem
from lrjax.linalg.sketched_rows import SketchedRows
from lrjax.operators import sampled_entries
from lrjax.operators.base import Operator
from lrjax.solvers.base import FirstOrderState

KEY = jax.random.key(0)
PRIMITIVE = tuple(OPERATORS)[:6]
VARIANTS = [(name, (7, 5), False, dtype) for name in OPERATORS for dtype in ("float32", "float64")]
VARIANTS += [(name, (6, 1), False, "float64") for name in PRIMITIVE]
VARIANTS += [(name, (6, 6), True, "float64") for name in ("dense", "seeded", "rank_one", "stacked")]
METHODS = ("forward", "forward_dense", "adjoint", "adjoint_matmul", "adjoint_rmatmul")


class Compiled:
    """An operator whose methods are jitted: eager calls would compile each of their parts."""

    def __init__(self, op):
        self.op, self.shape, self.num_measurements = op, op.shape, op.num_measurements
        for name in (*METHODS, "symmetric_adjoint_matmul"):
            setattr(self, name, jax.jit(getattr(op, name)))


@pytest.mark.parametrize(("name", "shape", "symmetric", "dtype"), VARIANTS, ids=str)
def test_adjoint(name, shape, symmetric, dtype):
    with jax.enable_x64(dtype == "float64"):
        op = OPERATORS[name](KEY, shape, symmetric, dtype)
        testing.check_adjoint(Compiled(op), jax.random.key(1), dtype=dtype)


# --- against explicit matrices ---------------------------------------------------------------------------------------

N1, N2, M = 6, 4, 11


def _units(rows, cols, shape):
    """Matrices with a single one each."""
    matrices = np.zeros((len(rows), *shape))
    matrices[np.arange(len(rows)), rows, cols] = 1
    return matrices


def _matrices(seed, shape=(N1, N2), symmetric=False):
    a = np.random.default_rng(seed).standard_normal((M, *shape))
    return (a + a.swapaxes(1, 2)) / 2 if symmetric else a


def _explicit_dense():
    a = _matrices(0)
    return operators.DenseEnsemble.from_matrices(a), a


def _explicit_symmetric():
    a = _matrices(1, (N1, N1), symmetric=True)
    return operators.DenseEnsemble.from_matrices(a, symmetric=True), a


def _explicit_rank_one():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((M, N1)), rng.standard_normal((M, N2))
    return operators.RankOneMeasurements.from_vectors(a, b), a[:, :, None] * b[:, None, :]


def _explicit_quadratic():
    a = np.random.default_rng(2).standard_normal((M, N1))
    return operators.RankOneMeasurements.from_vectors(a), a[:, :, None] * a[:, None, :]


def _explicit_sampled():
    rows, cols = np.array([5, 0, 0, 3, 5, 2]), np.array([1, 3, 0, 2, 0, 2])
    op, _ = operators.SampledEntries.build(rows, cols, np.ones(6), (N1, N2))
    order = np.lexsort((cols, rows))
    return op, _units(rows[order], cols[order], (N1, N2))


def _explicit_mask():
    mask = np.random.default_rng(3).random((N1, N2)) < 0.6
    rows, cols = (i.ravel() for i in np.indices((N1, N2)))
    return operators.EntryMask.from_mask(mask), _units(rows, cols, (N1, N2)) * mask.reshape(-1, 1, 1)


def _explicit_identity():
    rows, cols = (i.ravel() for i in np.indices((N1, N2)))
    return operators.Identity(matrix_shape=(N1, N2)), _units(rows, cols, (N1, N2))


def _explicit_scaled():
    op, a = _explicit_dense()
    return operators.scaled(op, -2.5), -2.5 * a


def _explicit_gains():
    op, a = _explicit_dense()
    gains = np.linspace(-1, 2, M)
    return operators.scaled(op, gains), gains[:, None, None] * a


def _explicit_masked():
    op, a = _explicit_dense()
    keep = np.arange(M) % 3 != 1
    return operators.masked(op, keep), a * keep[:, None, None]


def _explicit_stacked():
    parts = [_explicit_dense(), _explicit_mask(), _explicit_rank_one()]
    return operators.stacked(*(op for op, _ in parts)), np.concatenate([a for _, a in parts])


def _explicit_summed():
    (one, a), (two, b) = _explicit_dense(), _explicit_rank_one()
    return operators.summed(one, two, one), 2 * a + b


def _kronecker(seed, num_row_modes, complex_too=False):
    """Three modes, and the Kronecker product itself as matrices."""
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal(size) for size in ((2, 3), (4, 2), (3, 4))]
    if complex_too:
        parts = [a + 1j * rng.standard_normal(a.shape) for a in parts]
    whole = functools.reduce(np.kron, parts)
    op = operators.Kronecker.from_matrices(parts, num_row_modes=num_row_modes)
    return op, whole.reshape(len(whole), *op.shape)


def _explicit_hankel():
    """Three by two blocks of two by three."""
    op = operators.Hankel.create(3, 2, block_shape=(2, 3))
    matrices = np.zeros((4, 2, 3, 3, 2, 2, 3))
    for i, j, p, m in np.ndindex(3, 2, 2, 3):
        matrices[i + j, p, m, i, j, p, m] = 1
    return op, matrices.transpose(0, 1, 2, 3, 5, 4, 6).reshape(24, 6, 6)


def _explicit_hankel_of_numbers():
    op = operators.Hankel.create(N1, N2)
    k, rows, cols = np.ogrid[: N1 + N2 - 1, :N1, :N2]
    return op, (rows + cols == k).astype(float)


def _explicit_kronecker():
    return _kronecker(5, 1)


def _explicit_kronecker_two_row_modes():
    return _kronecker(6, 2)


def _explicit_kronecker_of_a_vector():
    return _kronecker(7, 3)


EXPLICIT = {name[10:]: build for name, build in globals().items() if name.startswith("_explicit_")}


def _assert_is(op, a):
    """All five methods and both shapes of `op` against the matrices `a`."""
    m, n1, n2 = a.shape
    rng = np.random.default_rng(4)
    left, right, z = rng.standard_normal((n1, 2)), rng.standard_normal((n2, 2)), rng.standard_normal(m)
    x, adjoint = left @ right.T, np.einsum("m,mij->ij", z, a)
    assert op.shape == (n1, n2)
    assert op.num_measurements == m
    everything = jax.jit(
        lambda left, right, x, z: (
            op.forward(left, right),
            op.forward_dense(x),
            op.adjoint(z),
            op.adjoint_matmul(z, right),
            op.adjoint_rmatmul(z, left),
        )
    )
    y = np.einsum("mij,ij->m", a, x)
    expected = (y, y, adjoint, adjoint @ right, adjoint.T @ left)
    for method, seen, wanted in zip(METHODS, everything(left, right, x, z), expected, strict=True):
        np.testing.assert_allclose(seen, wanted, rtol=0, atol=1e-12, err_msg=method)


@pytest.mark.parametrize("build", EXPLICIT.values(), ids=EXPLICIT)
def test_all_methods_against_explicit_matrices(build):
    with jax.enable_x64(True):
        _assert_is(*build())


@pytest.mark.parametrize("name", ["hankel", "sampled", "dense"])
def test_adjoint_matrix_is_one_for_rsvd(name):
    with jax.enable_x64(True):
        op = OPERATORS[name](KEY, (7, 5), False, "float64")
        z = jnp.asarray(np.random.default_rng(10).standard_normal(op.num_measurements))
        u, s, _ = lr.rsvd(operators.AdjointMatrix(operator=op, z=z), 3, key=KEY)
        expected = np.linalg.svd(op.adjoint(z))
        np.testing.assert_allclose(s, expected[1][:3], rtol=1e-10)
        np.testing.assert_allclose(abs(np.sum(u * expected[0][:, :3], axis=0)), 1, rtol=1e-10)


@pytest.mark.parametrize("num_row_modes", [1, 2, 3])
def test_complex_kronecker_has_the_hermitian_adjoint(num_row_modes):
    with jax.enable_x64(True):
        op, a = _kronecker(8, num_row_modes, complex_too=True)
        rng = np.random.default_rng(9)
        normal = lambda *shape: rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        (n1, n2), z = op.shape, normal(len(a))
        x, u, v = normal(n1, n2), normal(n1, 2), normal(n2, 2)
        adjoint = np.einsum("m,mij->ij", z, a.conj())
        np.testing.assert_allclose(op.forward_dense(x), np.einsum("mij,ij->m", a, x), atol=1e-12)
        np.testing.assert_allclose(op.forward(u, v), np.einsum("mij,ij->m", a, u @ v.T), atol=1e-12)
        np.testing.assert_allclose(op.adjoint(z), adjoint, atol=1e-12)
        np.testing.assert_allclose(op.adjoint_matmul(z, v), adjoint @ v, atol=1e-12)
        np.testing.assert_allclose(op.adjoint_rmatmul(z, u), adjoint.T @ u, atol=1e-12)


@jax.jit
def _read_off(op):
    """`(m, n1 n2)` matrices of any operator, measured with unit matrices."""
    n1, n2 = op.shape
    dtype = jax.eval_shape(op.adjoint, jnp.zeros(op.num_measurements)).dtype
    return jax.lax.map(op.forward_dense, jnp.eye(n1 * n2, dtype=dtype).reshape(-1, n1, n2)).T


@pytest.mark.parametrize("symmetric", [False, True])
def test_gaussian_ensembles_have_the_stated_law(symmetric):
    """Entry deviations `scale`; `scale / sqrt(2)` off the diagonal of symmetric ones, which are symmetric."""
    shape, m, scale = (5, 5), 4000, 0.5
    dense = operators.DenseEnsemble.gaussian(KEY, shape, m, symmetric=symmetric, scale=scale)
    seeded = operators.SeededGaussianEnsemble.create(KEY, shape, m, symmetric=symmetric, scale=scale, block_size=1500)
    for op in (dense, seeded):
        a = np.asarray(_read_off(op)).reshape(m, 5, 5)
        if symmetric:
            np.testing.assert_array_equal(a, a.swapaxes(1, 2))
        expected = np.full(shape, scale / np.sqrt(2 if symmetric else 1))
        if symmetric:
            np.fill_diagonal(expected, scale)
        # Four standard errors of a standard deviation of m draws, over 25 entries.
        np.testing.assert_allclose(a.std(axis=0), expected, rtol=4 / np.sqrt(2 * m))
        np.testing.assert_allclose(a.mean(axis=0), 0, atol=4 * scale / np.sqrt(m))
        # Distinct measurements are independent, in blocks and across their borders.
        assert abs(np.mean(a[:-1, 0, 0] * a[1:, 0, 0])) <= 4 * scale**2 / np.sqrt(m)
        assert abs(np.mean(a[:-1500, 0, 0] * a[1500:, 0, 0])) <= 4 * scale**2 / np.sqrt(m - 1500)


@pytest.mark.parametrize(("m", "block_size", "symmetric"), [(10, 4, True), (10, 4, False), (3, 16, False)])
def test_seeded_ensemble_is_one_fixed_ensemble(m, block_size, symmetric):
    """Its matrices, read off with unit matrices, explain all its methods; also if blocks do not divide `m`."""
    with jax.enable_x64(True):
        op = operators.SeededGaussianEnsemble.create(
            KEY, (3, 3), m, symmetric=symmetric, block_size=block_size, scale=0.7, dtype="float64"
        )
        a = np.asarray(_read_off(op)).reshape(m, 3, 3)
        _assert_is(op, a)
        assert len(np.unique(a[:, 0, 0])) == m


def test_seeded_ensemble_does_not_depend_on_how_many_rows_are_asked_for():
    make = lambda m: operators.SeededGaussianEnsemble.create(KEY, (3, 2), m, block_size=4)
    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(make(10).forward_dense(x)[:6], make(6).forward_dense(x))


@pytest.mark.parametrize("method", ["forward", "adjoint_matmul", "gradient"])
def test_seeded_memory_does_not_grow_with_the_measurements(method):
    """Eight times the measurements cost a few numbers more per measurement, not a matrix more."""
    n1, n2, block = 16, 12, 8

    def temporary(m):
        op = operators.SeededGaussianEnsemble.create(KEY, (n1, n2), m, block_size=block)
        left, right, z = jnp.ones((n1, 1)), jnp.ones((n2, 1)), jnp.ones(m)
        misfit = lambda left, z: jnp.sum((op.forward(left, right) - z) ** 2)
        function, args = {
            "forward": (lambda left, z: op.forward(left, right), (left, z)),
            "adjoint_matmul": (lambda left, z: op.adjoint_matmul(z, right), (left, z)),
            "gradient": (jax.grad(misfit), (left, z)),
        }[method]
        return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes

    m = 256
    small, large = temporary(m), temporary(8 * m)
    assert large - small <= 5 * 4 * 7 * m
    assert large < 4 * m * n1 * n2


# --- sampled entries -------------------------------------------------------------------------------------------------


def test_products_in_blocks_are_those_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    rows, cols = np.nonzero(rng.random((9, 7)) < 0.6)
    op, _ = operators.SampledEntries.build(rows, cols, rng.standard_normal(len(rows)).astype(np.float32), (9, 7))
    left, right = (jnp.asarray(rng.standard_normal((n, 2)), jnp.float32) for n in (9, 7))
    slope = jax.grad(lambda left: jnp.sum(jnp.sin(op.forward(left, right))))
    expected, expected_slope = op.forward(left, right), slope(left)
    monkeypatch.setattr(sampled_entries, "FORWARD_BLOCK", 5)  # several, and a rest
    np.testing.assert_allclose(op.forward(left, right), expected, rtol=1e-6)
    np.testing.assert_allclose(slope(left), expected_slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        expected, np.asarray(left @ right.T)[np.asarray(op.rows), np.asarray(op.cols)], rtol=1e-5
    )


def test_memory_of_products_does_not_grow_with_the_rank():
    rng = np.random.default_rng(0)
    codes = np.sort(rng.choice(1000 * 2000, 4 * sampled_entries.FORWARD_BLOCK + 7, replace=False))
    op, y = operators.SampledEntries.build(codes // 2000, codes % 2000, np.ones(len(codes), np.float32), (1000, 2000))
    factors = [jnp.ones((n, 32)) for n in op.shape]
    memory = jax.jit(op.forward).lower(*factors).compile().memory_analysis().temp_size_in_bytes
    assert memory < 0.75 * 32 * y.nbytes


def _skewed(seed=0, shape=(9, 7)):
    """One full row, one full column, an empty row, an empty column, the others thin."""
    mask = np.random.default_rng(seed).random(shape) < 0.35
    mask[2], mask[:, 4] = True, True
    mask[5], mask[:, 1] = False, False
    rows, cols = np.nonzero(mask)
    order = np.random.default_rng(1).permutation(len(rows))
    return rows[order], cols[order]


def test_sampled_entries_are_sorted_and_keep_their_values():
    rows, cols = _skewed()
    values = (10.0 * rows + cols).astype(np.float32)
    op, y = operators.SampledEntries.build(rows, cols, values, (9, 7))
    code = np.asarray(op.rows) * 7 + np.asarray(op.cols)
    assert np.all(np.diff(code) > 0)
    np.testing.assert_array_equal(y, 10.0 * np.asarray(op.rows) + np.asarray(op.cols))
    assert y.dtype == jnp.float32
    assert op.num_measurements == len(rows)


@pytest.mark.parametrize(("duplicates", "expected"), [("sum", [7.0, 5.0]), ("mean", [7 / 3, 5.0])])
def test_duplicates_merge(duplicates, expected):
    op, y = operators.SampledEntries.build(
        [1, 2, 1, 1], [1, 0, 1, 1], np.array([1.0, 5.0, 2.0, 4.0], np.float32), (3, 2), duplicates=duplicates
    )
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert (op.rows.tolist(), op.cols.tolist()) == ([1, 2], [1, 0])


def test_duplicates_are_refused_by_default():
    with pytest.raises(ValueError, match=r"2 entries .* row 1, column 1.*duplicates="):
        operators.SampledEntries.build([1, 2, 1, 1], [1, 0, 1, 1], np.ones(4), (3, 2))


@pytest.mark.parametrize("block_entries", [None, 16])
@pytest.mark.parametrize("shape", [(9, 7), (300, 40)], ids=str)
def test_layout_covers_each_entry_exactly_once(shape, block_entries):
    """Every entry lies in one slot of each orientation, in a chunk of its row; long rows have blocks of their own."""
    rng = np.random.default_rng(5)
    rows, cols = _skewed() if shape == (9, 7) else np.nonzero(rng.random(shape) < rng.random((300, 1)) ** 3)
    op, _ = operators.SampledEntries.build(rows, cols, np.ones(len(rows)), shape, block_entries=block_entries)
    m = op.num_measurements
    for layout, mine, other, n, num_other in (
        (op.by_row, op.rows, op.cols, shape[0], shape[1]),
        (op.by_col, op.cols, op.rows, shape[1], shape[0]),
    ):
        mine, other, count = np.asarray(mine), np.asarray(other), np.bincount(mine, minlength=n)
        index, position, segments = layout.chunks()
        real = np.asarray(position) < m
        assert np.all(np.asarray(position)[~real] == m)
        assert np.all(np.asarray(index)[~real] == num_other)
        np.testing.assert_array_equal(np.sort(position[real]), np.arange(m))
        np.testing.assert_array_equal(index[real], other[position[real]])
        owner = np.broadcast_to(np.asarray(segments.row)[:, None], real.shape)
        np.testing.assert_array_equal(owner[real], mine[position[real]])
        # `row` is the inverse of `place`; rows without entries point past all slots, at the zero row.
        place, row = np.asarray(layout.place), np.append(layout.row, n)
        np.testing.assert_array_equal(row[place[count > 0]], np.flatnonzero(count))
        assert np.all(place[count == 0] == len(row) - 1)
        long = count > math.prod(layout.blocks.index.shape[1:])
        np.testing.assert_array_equal(place[count > 0] >= layout.blocks.slot.shape[0] * layout.slots, long[count > 0])
    assert block_entries is None or shape == (9, 7) or op.by_row.long is not None


def _row_by_row(mask, factor, y, weights, ridge):
    """NumPy's `lstsq` of each row; the documented damping where it is under-determined and no ridge decides."""
    k, rows = factor.shape[1], []
    for i in range(mask.shape[0]):
        on = mask[i] & (weights[i] > 0)
        root = np.sqrt(weights[i][on])
        a, b = factor[on] * root[:, None], y[i][on] * root
        shift = ridge or (0.1 * np.sum(a**2) / k if on.sum() < k else 0)
        a = np.concatenate([a, np.sqrt(shift) * np.eye(k)])
        rows.append(np.linalg.lstsq(a, np.concatenate([b, np.zeros(k)]), rcond=None)[0])
    return np.stack(rows)


def _half_step_operators():
    rows, cols = _skewed()
    mask = np.zeros((9, 7), bool)
    mask[rows, cols] = True
    return {
        "sampled": (operators.SampledEntries.build(rows, cols, np.ones(len(rows)), (9, 7))[0], mask),
        "mask": (operators.EntryMask.from_mask(mask), mask),
        "identity": (operators.Identity(matrix_shape=(9, 7)), np.ones((9, 7), bool)),
    }


@pytest.mark.parametrize("name", ["sampled", "mask", "identity"])
@pytest.mark.parametrize(("weighted", "ridge", "k"), [(False, 0.0, 2), (True, 0.0, 2), (True, 0.3, 17)])
def test_half_steps_are_least_squares_row_by_row(name, weighted, ridge, k):
    """Rows with plenty, too few and no entries; seventeen columns take the LAPACK path."""
    with jax.enable_x64(True):
        op, mask = _half_step_operators()[name]
        rng = np.random.default_rng(7)
        y, weights = rng.standard_normal((9, 7)), np.ones((9, 7))
        if weighted:
            weights = rng.uniform(0.2, 2, (9, 7)) * (rng.random((9, 7)) < 0.9)
        left, right = rng.standard_normal((9, k)), rng.standard_normal((7, k))
        flat = (lambda x: jnp.asarray(x[mask])) if name == "sampled" else (lambda x: jnp.asarray(x.ravel()))
        given = flat(weights) if weighted else None

        @jax.jit
        def both(u, v, y, w):
            data = op.arrange(y, w)
            return op.solve_left(v, data, RowProblem(ridge=ridge)), op.solve_right(u, data, RowProblem(ridge=ridge))

        (new_left, square_left), (new_right, square_right) = both(left, right, flat(y), given)
        # Normal equations square the condition of a row, here up to a few hundred.
        tol = dict(rtol=0, atol=1e-9)
        np.testing.assert_allclose(new_left, _row_by_row(mask, right, y, weights, ridge), **tol)
        np.testing.assert_allclose(new_right, _row_by_row(mask.T, left, y.T, weights.T, ridge), **tol)
        on = mask * weights
        np.testing.assert_allclose(square_left, np.sum(on * (new_left @ right.T - y) ** 2), rtol=1e-12)
        np.testing.assert_allclose(square_right, np.sum(on * (left @ new_right.T - y) ** 2), rtol=1e-12)
        if name != "identity":
            assert not np.any(new_left[5])
            assert not np.any(new_right[1])


@pytest.mark.parametrize("name", ["sampled", "mask"])
def test_half_steps_leave_unused_columns_at_zero(name):
    with jax.enable_x64(True):
        op, mask = _half_step_operators()[name]
        rng = np.random.default_rng(8)
        y, right = rng.standard_normal((9, 7)), rng.standard_normal((7, 3)) * [1, 1, 0]
        flat = jnp.asarray(y[mask] if name == "sampled" else y.ravel())
        row = RowProblem(ridge=0.1, mask=jnp.array([1.0, 1.0, 0.0]))
        new, _ = jax.jit(lambda v, y: op.solve_left(v, op.arrange(y), row))(right, flat)
        expected = _row_by_row(mask, right[:, :2], y, np.ones((9, 7)), 0.1)
        np.testing.assert_allclose(new, np.pad(expected, ((0, 0), (0, 1))), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "m"), [((60, 50), 400), ((300, 200), 9_000), ((500, 40), 5_000), ((3_000, 2_000), 60_000)]
)
@pytest.mark.parametrize("skewed", [False, True])
def test_masks_of_one_size_share_one_compile(shape, m, skewed):
    """Layouts of one shape, whatever the mask: a compiled half step is used again."""
    (n1, n2), shapes = shape, set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        if skewed:
            chance = np.outer((1.0 + rng.permutation(n1)) ** -0.5, (1.0 + rng.permutation(n2)) ** -0.5).reshape(-1)
            place = np.argsort(rng.exponential(size=n1 * n2) / chance)[:m]
        else:
            place = rng.choice(n1 * n2, m, replace=False)
        op, _ = operators.SampledEntries.build(place // n2, place % n2, rng.standard_normal(m), shape)
        shapes.add(str(jax.tree.map(jnp.shape, op)))
    assert len(shapes) == 1


LENGTHS = (1, 7, 8, 9, 63, 64, 65, 128)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sketched", [False, True])
def test_rows_of_every_length(weighted, sketched):
    """Around the length of a chunk and of a block, and empty ones, against dense least squares."""
    rng = np.random.default_rng(0)
    n2, k = 128, 1 if sketched else 3
    mask = np.zeros((len(LENGTHS) * 6, n2), bool)
    for i, length in enumerate(LENGTHS):
        mask[6 * i, rng.permutation(n2)[:length]] = True
    rows, cols = np.nonzero(mask)
    with jax.enable_x64(True):
        y = rng.standard_normal(len(rows))
        op, y = operators.SampledEntries.build(rows, cols, y, mask.shape, block_entries=64)
        assert not op.by_row.single
        assert op.by_row.blocks.index.shape[1:] == (8, 8)
        assert op.by_row.num_long == 2
        w = np.ones(len(rows))
        if weighted:
            w = rng.random(len(rows)) * (rng.random(len(rows)) > 0.2)
        factor = rng.standard_normal((n2, k))
        how = SketchedRows(key=KEY, start=jnp.zeros((len(mask), k)), tolerance=0.0, num_steps=50) if sketched else None
        found, square = op.solve_left(
            jnp.asarray(factor),
            op.arrange(y, jnp.asarray(w) if weighted else None),
            RowProblem(ridge=0.1, sketched=how),
        )
        total = 0.0
        for i in range(len(mask)):
            at = rows == i
            a = factor[cols[at]]
            x = np.linalg.solve(a.T @ (w[at, None] * a) + 0.1 * np.eye(k), a.T @ (w[at] * y[at]))
            np.testing.assert_allclose(found[i], x, rtol=1e-11, atol=1e-12)
            total += np.sum(w[at] * (a @ x - y[at]) ** 2)
        np.testing.assert_allclose(square, total, rtol=1e-11)


# --- what counts as measured -----------------------------------------------------------------------------------------


def test_what_is_measured():
    dense = operators.DenseEnsemble.from_matrices(np.ones((3, 2, 2), np.float32))
    mask = operators.EntryMask.from_mask(np.array([[1, 0], [0, 1]]))
    assert dense.measured is None
    assert operators.stacked(dense, dense).measured is None
    assert operators.stacked(dense, mask).measured.tolist() == [True, True, True, True, False, False, True]
    assert operators.masked(mask, [1, 1, 0, 0]).measured.tolist() == [True, False, False, False]
    assert operators.masked(dense, [1, 0, 1]).measured.tolist() == [True, False, True]
    assert operators.scaled(mask, jnp.float32(2)).measured.tolist() == [True, False, False, True]
    problem = lr.Problem(operators.masked(mask, [1, 1, 0, 1]), jnp.ones(4), jnp.array([2.0, 1.0, 1.0, 3.0]))
    assert problem.effective_weights().tolist() == [2, 0, 0, 3]
    assert float(problem.total_weight()) == 5


@pytest.mark.parametrize("name", ["mask", "masked"])
def test_unmeasured_values_reach_nothing(name):
    """A residual that is large, even NaN, off the mask does not enter the adjoint."""
    op, a = EXPLICIT[name]()
    off = np.flatnonzero(~np.asarray(op.measured))
    z = jnp.zeros(a.shape[0]).at[off].set(jnp.nan)
    for got in (op.adjoint(z), op.adjoint_matmul(z, jnp.ones((N2, 1))), op.adjoint_rmatmul(z, jnp.ones((N1, 1)))):
        assert not np.any(got)


def test_defaults_follow_from_forward_alone():
    """A user's operator with three members gets right adjoints by transposition."""

    @operators.pytree
    class Trace(Operator):
        weights: jax.Array

        @property
        def shape(self):
            return (3, 3)

        @property
        def num_measurements(self):
            return 2

        def forward(self, left, right):
            return self.weights * jnp.sum(left * right)

    op = Trace(weights=jnp.array([1.0, -2.0]))
    testing.check_adjoint(op, KEY)
    np.testing.assert_allclose(op.adjoint(jnp.array([3.0, 1.0])), np.eye(3), atol=1e-6)


# --- the checks themselves must be able to fail ----------------------------------------------------------------------


@operators.pytree
class Broken(Operator):
    """A correct operator with one method spoiled."""

    inner: operators.DenseEnsemble
    flaw: str = jax.tree.static()

    shape = property(lambda self: self.inner.shape)
    num_measurements = property(lambda self: self.inner.num_measurements)

    def forward(self, left, right):
        y = self.inner.forward(left, right)
        if self.flaw == "nonlinear":
            return y + 1e-2
        if self.flaw == "shape":
            return y[:-1]
        return y.astype("float16") if self.flaw == "dtype" else y

    def forward_dense(self, x):
        y = self.inner.forward_dense(x)
        return y.at[0].multiply(1.001) if self.flaw == "forward_dense" else y

    def adjoint(self, z):
        x = self.inner.adjoint(z)
        return x.at[0, 0].multiply(1.001) if self.flaw == "adjoint" else x

    def adjoint_matmul(self, z, v):
        return self.inner.adjoint_matmul(-z if self.flaw == "adjoint_matmul" else z, v)

    def adjoint_rmatmul(self, z, u):
        z = z.at[3].set(0) if self.flaw == "adjoint_rmatmul" else z
        return self.inner.adjoint_rmatmul(z, u)


@pytest.mark.parametrize(
    ("flaw", "text"),
    [
        ("none", None),
        ("forward_dense", "forward_dense"),
        ("adjoint", r"<X, A\*\(z\)>"),
        ("adjoint_matmul", r"<L, A\*\(z\) R>"),
        ("adjoint_rmatmul", r"<R, A\*\(z\)' L>"),
        ("nonlinear", "fails"),
        ("shape", "shape"),
        ("dtype", "float16"),
    ],
)
def test_check_adjoint_can_fail(flaw, text):
    op = Broken(inner=operators.DenseEnsemble.gaussian(KEY, (4, 3), 10), flaw=flaw)
    if text is None:
        return testing.check_adjoint(op, KEY)
    with pytest.raises(AssertionError, match=f"Broken.*{text}"):
        testing.check_adjoint(op, KEY)


def test_check_gradient_can_fail():
    with jax.enable_x64(True):

        @jax.custom_jvp
        def wrong(x):
            return jnp.sum(jnp.sin(x))

        wrong.defjvp(lambda x, v: (wrong(x[0]), 1.01 * jnp.vdot(jnp.cos(x[0]), v[0])))
        at = jnp.linspace(0.1, 1, 5)
        assert 1.9 < testing.check_gradient(lambda x: jnp.sum(jnp.sin(x)), at, KEY) < 2.5
        with pytest.raises(AssertionError, match="remainder"):
            testing.check_gradient(wrong, at, KEY)


@pytest.mark.parametrize("loss", [lr.losses.Squared(), lr.losses.Huber(0.5)], ids=["squared", "huber"])
def test_gradient_of_a_problem(loss):
    """`Problem.gradient` is the derivative of `Problem.objective`, weights and mask included."""
    with jax.enable_x64(True):
        op, _ = _explicit_masked()
        rng = np.random.default_rng(0)
        problem = lr.Problem(op, jnp.asarray(rng.standard_normal(M)), jnp.asarray(rng.uniform(0, 2, M)), loss)
        at = lr.Factors(jnp.asarray(rng.standard_normal((N1, 2))), jnp.asarray(rng.standard_normal((N2, 2))))
        testing.check_gradient(problem.objective, at, KEY)
        expected = jax.grad(problem.objective)(at)
        got = problem.gradient(at)
        np.testing.assert_allclose(got[0], expected.left, rtol=0, atol=1e-12)
        np.testing.assert_allclose(got[1], expected.right, rtol=0, atol=1e-12)


@operators.pytree
class Liar:
    """Gradient descent that is wrong about itself."""

    lie: str = jax.tree.static()
    max_rank: int = jax.tree.static(default=1)

    def init(self, problem, key, factors=None):
        return self._spoil(lr.GradientDescent(max_rank=1).init(problem, key, factors))

    def step(self, problem, state, key):
        new, code = lr.GradientDescent(max_rank=1).step(problem, state, key)
        return self._spoil(new), code

    def _spoil(self, state):
        info = dict(state.info)
        if self.lie == "objective":
            info["objective"] = info["objective"] * 0.9
        if self.lie == "dtype":
            info["residual"] = info["residual"].astype("float16")
        return FirstOrderState(factors=state.factors, residual=state.residual, info=info, extra=state.extra)


@pytest.mark.parametrize(("lie", "text"), [("objective", "info says the objective"), ("dtype", "float16")])
def test_check_solver_can_fail(lie, text):
    problem, _ = lr.synthetic.matrix_sensing(KEY, shape=(4, 3), rank=1, num_measurements=20)
    with pytest.raises(AssertionError, match=f"Liar.*{text}"):
        testing.check_solver(Liar(lie=lie), problem, KEY, num_steps=2)


@pytest.mark.parametrize("name", ["dense", "seeded", "sampled", "stacked", "identity", "gain"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_symmetric_product(name, symmetric, x64):
    """`(A*(z) + A*(z)^T) u`, which ensembles get from one pass over their matrices."""
    operator = OPERATORS[name](jax.random.key(0), (5, 5), symmetric, "float64")
    z = jax.random.normal(jax.random.key(1), (operator.num_measurements,))
    u = jax.random.normal(jax.random.key(2), (5, 2))
    found = operator.symmetric_adjoint_matmul(z, u)
    whole = np.asarray(operator.adjoint(z))
    np.testing.assert_allclose(found, (whole + whole.T) @ np.asarray(u), rtol=1e-12, atol=1e-12)
