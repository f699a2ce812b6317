"""What is plausible is taken, what is not is refused by name: counts, flags, shapes, dtypes, arrays from the host."""

import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrjax as lr
from lrjax import operators, synthetic
from lrjax.core.checks import as_array, check_count, check_flag, check_shape, host_array, number

KEY = jax.random.key(0)
F32 = np.float32
RNG = np.random.default_rng(0)


# --- numbers that are counts, flags, shapes and dtypes ---------------------------------------------------------------


@pytest.mark.parametrize("four", [4, np.int64(4), np.array(4), np.array(4, ">i8"), np.uint8(4), jnp.int32(4)])
def test_whatever_is_an_integer_is_a_count(four):
    found = check_count("n", four)
    assert type(found) is int
    assert found == 4
    assert check_shape((four, four)) == (4, 4)


@pytest.mark.parametrize("bad", [4.0, "4", True, np.True_, None, Fraction(4), [4], np.array([4]), np.array(4.0), 1j])
def test_what_is_no_integer_is_no_count(bad):
    with pytest.raises(ValueError, match="n must be an integer"):
        check_count("n", bad)


def test_a_count_fits_compiled_code():
    """Said at the door: a private tree of 2^63 releases was made, and failed at its first update."""
    assert check_count("num_releases", 2**31 - 1) == 2**31 - 1
    with pytest.raises(ValueError, match=r"num_releases must be at most 2\^31 - 1.*9223372036854775808"):
        check_count("num_releases", 2**63)
    with pytest.raises(ValueError, match="num_steps"):
        lr.solve(
            lr.Problem(operators.Identity(matrix_shape=(2, 2)), jnp.ones(4)), lr.GaussNewton(1), KEY, num_steps=2**31
        )


def test_a_traced_count_says_static():
    with pytest.raises(ValueError, match=r"(?s)rank must be an integer known before tracing.*static"):
        jax.jit(lambda r: synthetic.low_rank(KEY, (4, 3), r).left)(2)


@pytest.mark.parametrize(
    "bad",
    ["75", b"75", (7.9, 5), (True, True), {7, 5}, {7: 1, 5: 2}, (7,), (7, 5, 1), (0, 5), 7, None, np.ones((2, 2))],
)
def test_what_is_no_shape(bad):
    with pytest.raises(ValueError, match="shape must be two positive integers"):
        check_shape(bad)


def test_arrays_are_shapes():
    assert check_shape(np.array([7, 5])) == check_shape([7, 5]) == check_shape(jnp.array([7, 5])) == (7, 5)


@pytest.mark.parametrize("bad", ["no", "yes", 0, 1, None, 0.0, np.array([True]), jnp.bool_(True)])
def test_what_is_no_flag(bad):
    with pytest.raises(ValueError, match="symmetric must be True or False"):
        check_flag("symmetric", bad)


FLAGS = [
    ("symmetric", lambda: operators.DenseEnsemble.gaussian(KEY, (3, 3), 5, symmetric="no")),
    ("symmetric", lambda: operators.DenseEnsemble.from_matrices(np.ones((1, 2, 2), F32), symmetric="no")),
    ("symmetric", lambda: operators.SeededGaussianEnsemble.create(KEY, (3, 3), 5, symmetric="no")),
    ("symmetric", lambda: operators.RankOneMeasurements.gaussian(KEY, (3, 3), 5, symmetric="no")),
    ("diverse", lambda: operators.GainMeasurements.from_matrices(np.ones((2, 3, 2), F32), diverse="no")),
    ("symmetric", lambda: synthetic.low_rank(KEY, (3, 3), 1, symmetric="no")),
    ("random_phase", lambda: synthetic.gain_calibration(KEY, shape=(3, 2), num_blocks=2, random_phase="no")),
    ("symmetric", lambda: lr.diagnostics.rip(operators.Identity((3, 3)), KEY, rank=1, symmetric="no")),
    ("paired", lambda: lr.sweep(lambda key: {"x": 1.0}, KEY, grid={}, num_trials=1, paired="no")),
    ("trim", lambda: solve(lr.AlternatingMinimization(1, trim="no"))),
    ("symmetric", lambda: solve(lr.BestSoFar(lr.GradientDescent(1, symmetric="no")))),
]


def solve(solver, num_steps=2, **rest):
    problem = lr.Problem(operators.Identity((4, 3)), np.ones(12, F32))
    return lr.solve(problem, solver, KEY, num_steps=num_steps, **rest)


@pytest.mark.parametrize(("name", "call"), FLAGS)
def test_flags_are_checked(name, call):
    with pytest.raises(ValueError, match=f"{name} must be True or False; got 'no'"):
        call()


DRAWS = [
    lambda **rest: operators.DenseEnsemble.gaussian(KEY, (3, 3), 5, **rest),
    lambda **rest: operators.SeededGaussianEnsemble.create(KEY, (3, 3), 5, **rest),
    lambda **rest: operators.GainMeasurements.gaussian(KEY, (3, 2), 2, **rest),
    lambda **rest: operators.SeededGainMeasurements.create(KEY, (3, 2), 2, **rest),
]
DTYPES = [
    *DRAWS,
    lambda **rest: operators.RankOneMeasurements.gaussian(KEY, (3, 3), 5, **rest),
    lambda **rest: operators.StructuredGainMeasurements.create(KEY, (3, 2), 2, **rest),
    lambda **rest: synthetic.low_rank(KEY, (3, 3), 1, **rest),
    lambda **rest: synthetic.matrix_sensing(KEY, shape=(3, 3), rank=1, num_measurements=5, **rest),
    lambda **rest: synthetic.matrix_completion(KEY, shape=(3, 3), rank=1, fraction=0.5, **rest),
    lambda **rest: synthetic.gain_calibration(KEY, shape=(3, 2), num_blocks=2, **rest),
]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, "1", None, True, np.ones(3), 1j, 1e50, 1e-50])
def test_a_scale_is_one_number(draw, scale):
    with pytest.raises(ValueError, match="scale"):
        draw(scale=scale)


@pytest.mark.parametrize("draw", DTYPES)
@pytest.mark.parametrize(("dtype", "text"), [(int, "int"), ("single", "single|float32"), (np.float64, "x64"), (3, "3")])
def test_a_dtype_is_floating_and_to_be_had(draw, dtype, text):
    if dtype == "single":
        draw(dtype=dtype)
        return
    with pytest.raises(ValueError, match=f"dtype .*{text}"):
        draw(dtype=dtype)


def test_counts_of_numpy_and_jax_solve():
    """They were let in before, and then found unhashable."""
    solution = solve(lr.AlternatingMinimization(max_rank=np.array(2)), num_steps=np.array(4), record_every=jnp.int32(2))
    assert solution.trace["step"].shape == (3,)
    assert solve(lr.BestSoFar(lr.GradientDescent(jnp.int32(2)))).factors.max_rank == 2
    found = lr.select_rank(
        lr.Problem(operators.Identity((4, 3)), RNG.standard_normal(12).astype(F32)),
        KEY,
        max_rank=np.array(2),
        method="gap",
    )
    assert found.rank.shape == ()
    with pytest.raises(ValueError, match=r"max_rank must be an integer.*4\.0"):
        solve(lr.AlternatingMinimization(max_rank=4.0))


# --- first arguments by position -------------------------------------------------------------------------------------


def test_first_arguments_by_position():
    assert operators.Identity((4, 3)).shape == (4, 3)
    assert operators.EntryMask(jnp.ones((4, 3), bool)).shape == (4, 3)
    assert operators.Hankel(2, 3).shape == (2, 3)
    assert operators.AdjointMatrix(operators.Hankel(2, 3), jnp.arange(4.0)).shape == (2, 3)
    assert lr.SoftImpute(2).max_rank == 2
    assert lr.Restarted(lr.GradientDescent(2)).solver.max_rank == 2
    assert lr.step_sizes.Constant(0.1).value == 0.1
    # Everything else stays by name: a number there would not say what it is.
    with pytest.raises(TypeError, match="positional"):
        lr.SoftImpute(2, 0.1)


# --- arrays from the host --------------------------------------------------------------------------------------------


def swapped(x):
    return np.asarray(x).astype(np.asarray(x).dtype.newbyteorder(">"))


def test_bytes_are_read_in_their_order():
    """A compiled product of native arrays was found again for those of the other order, and misread them."""
    left, right, v = (RNG.standard_normal(shape).astype(F32) for shape in ((5, 2), (4, 2), (4,)))
    x = left @ right.T
    factors, foreign = lr.Factors(jnp.asarray(left), jnp.asarray(right)), lr.Factors(swapped(left), swapped(right))
    for given, vector in ((factors, v), (factors, swapped(v)), (foreign, swapped(v)), (foreign, v)):
        assert np.allclose(given.matmul(vector), x @ v, rtol=1e-5)
        assert np.allclose(given.rmatmul(swapped(left[:, 0])), x.T @ left[:, 0], rtol=1e-5)
    assert np.allclose(foreign.dense(), x, rtol=1e-5)
    assert np.allclose(foreign.entries([1, 2], [3, 0]), x[[1, 2], [3, 0]], rtol=1e-5)
    assert np.allclose(foreign.svd()[1], np.linalg.svd(x)[1][:2], rtol=1e-4)
    assert np.isclose(foreign.norm(), np.linalg.norm(x), rtol=1e-5)
    assert lr.metrics.relative_error(foreign, swapped(x)) < 1e-6
    assert lr.metrics.relative_error(x, foreign) < 1e-6
    assert np.isclose(lr.metrics.rmse(swapped(v), 0 * v), np.sqrt(np.mean(v**2)))
    assert lr.metrics.scaled_error(swapped(2 * v), v) < 1e-6
    assert lr.metrics.support_recovery(swapped(v), v) == 1
    assert lr.metrics.subspace_distance(swapped(left), left) < 1e-5


FOREIGN = [
    ("matrices", (6, 4, 3), lambda a: operators.DenseEnsemble.from_matrices(a)),
    ("matrices", (2, 4, 3), lambda a: operators.GainMeasurements.from_matrices(a)),
    ("left_vectors", (6, 4), lambda a: operators.RankOneMeasurements.from_vectors(a, a[:, :3])),
    ("matrices", (4, 3), lambda a: operators.Kronecker.from_matrices([a, a])),
    ("factor", (12,), lambda a: operators.scaled(operators.Identity((4, 3)), a)),
]


@pytest.mark.parametrize(("name", "shape", "make"), FOREIGN)
def test_operators_take_any_array_and_refuse_what_is_none(name, shape, make):
    a = RNG.standard_normal(shape).astype(F32)
    native = make(a)
    n1, n2 = native.shape
    x = jnp.asarray(RNG.standard_normal((n1, n2)), jnp.float32)
    for given in (swapped(a), a.astype(np.longdouble), np.ma.masked_array(a)):
        assert np.array_equal(make(given).forward_dense(x), native.forward_dense(x))
    for bad in (a.astype(object), np.full(shape, "1"), np.ma.masked_array(a, a > 0), a.astype(np.float64) * 1e300):
        with pytest.raises(ValueError, match=name):
            make(bad)
    with pytest.raises(ValueError, match=name):
        make(np.full(shape, np.nan, F32))


def test_data_of_a_problem_take_any_array():
    y = RNG.standard_normal(12).astype(F32)
    fit = lambda y, weights=None: (
        lr.solve(
            lr.Problem(operators.Identity((4, 3)), y, weights), lr.AlternatingMinimization(1), KEY, num_steps=3
        ).objective
    )
    right = fit(y)
    for given in (swapped(y), y.tolist(), y.astype(np.longdouble), y.astype(np.float64)):
        assert np.isclose(fit(given), right)
    assert np.isclose(fit(y, swapped(np.ones(12, F32))), right)
    for bad in (None, "y", y.astype(object), y.astype(complex), [[1.0], [2.0, 3.0]], y.astype(np.float64) * 1e300):
        with pytest.raises(ValueError, match="y "):
            fit(bad)
    for bad in (np.full(12, "1"), np.ones(12, complex), object()):
        with pytest.raises(ValueError, match="weights "):
            fit(y, bad)


def test_what_the_dtype_of_jax_cannot_hold():
    with pytest.raises(ValueError, match=r"labels holds values that int32 cannot, such as 4294967297"):
        as_array("labels", np.array([0, 2**32 + 1]))
    with pytest.raises(ValueError, match=r"y holds values that float32 cannot, the largest 1e\+50"):
        as_array("y", [1.0, 1e50])
    assert as_array("y", np.array([1.0, 1e-60])).dtype == jnp.float32
    assert host_array("y", np.array([1, 2], ">i4")).dtype.isnative
    assert float(number("scale", np.array(2.0, ">f8"), np.float32)) == 2


def test_an_operator_is_one():
    identity = operators.Identity((4, 3))
    for call in (
        lambda: operators.scaled(None, 2.0),
        lambda: operators.masked(operators.Identity, np.ones(12)),
        lambda: operators.stacked(identity, 3),
        lambda: operators.summed(identity, "identity"),
        lambda: synthetic.from_truth(KEY, None, lr.Factors(jnp.ones((4, 1)), jnp.ones((3, 1)))),
        lambda: lr.diagnostics.rip(None, KEY, rank=1),
    ):
        with pytest.raises(ValueError, match="must be a measurement operator"):
            call()


def test_an_operator_without_its_methods_says_so():
    @operators.pytree
    class Half(operators.Operator):
        @property
        def shape(self):
            return (4, 3)

        @property
        def num_measurements(self):
            return 12

    with pytest.raises(
        NotImplementedError, match=r"Half has no 'forward' of its own.*shape, num_measurements and forward"
    ):
        lr.solve(lr.Problem(Half(), np.ones(12, F32)), lr.AlternatingMinimization(1), KEY, num_steps=2)
    with pytest.raises(NotImplementedError, match="Operator has no 'shape'"):
        _ = operators.Operator().shape


def test_no_rank_is_promoted():
    problem, _ = synthetic.gain_calibration(KEY, shape=(5, 2), num_blocks=3)
    entries = lr.Problem(operators.Identity((4, 3)), RNG.standard_normal(12).astype(F32))
    with jax.numpy_rank_promotion("raise"):
        lr.calibrate(problem.operator, problem.y, method="spectral")
        lr.select_rank(entries, KEY, max_rank=2, num_steps=2)
        y = RNG.standard_normal(12)  # doubles: no warning of an internal line
        lr.solve(lr.Problem(operators.Identity((4, 3)), y, np.ones(12)), lr.GradientDescent(1), KEY, num_steps=1)


# --- indices ---------------------------------------------------------------------------------------------------------


BAD_INDICES = [[99], [-1], [2**40], [1.0], [True], ["1"], [None], np.array([1.5])]


@pytest.mark.parametrize("bad", BAD_INDICES)
def test_entries_outside_of_the_matrix(bad):
    factors = lr.Factors(jnp.ones((7, 1)), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="rows must"):
        factors.entries(bad, [0])
    with pytest.raises(ValueError, match="cols must"):
        factors.entries([0], bad)
    assert factors.entries(6, np.int64(2)) == 1
    assert factors.entries([], []).shape == (0,)
    assert jax.jit(factors.entries)(jnp.array([1]), jnp.array([2])).shape == (1,)


@pytest.fixture(scope="module")
def completion():
    rows, cols = np.divmod(np.arange(12), 3)
    return lr.complete(rows, cols, np.ones(12, F32), (4, 3), rank=1, key=KEY, num_steps=2, ensemble=2)


@pytest.mark.parametrize("bad", BAD_INDICES)
def test_predictions_of_what_is_no_index(completion, bad):
    for call in (completion.predict, completion.uncertainty):
        with pytest.raises(ValueError, match="rows must"):
            call(bad, [0])
        with pytest.raises(ValueError, match="cols must"):
            call([0], bad)
    with pytest.raises(ValueError, match="rows must"):
        completion.recommend(bad, 2)


def test_recommendations_for_nobody(completion):
    cols, values = completion.recommend([], np.array(2))
    assert cols.shape == values.shape == (0, 2)
    with pytest.raises(ValueError, match="include_seen must be True or False"):
        completion.recommend([0], 1, include_seen="no")


# --- sweeps ----------------------------------------------------------------------------------------------------------


def sweep(trial, grid, **rest):
    return lr.sweep(trial, KEY, grid=grid, num_trials=1, progress=False, **rest)


AXES = [
    ([1, 2**32 + 1, 2**33 + 1], "4294967297, which int32 cannot hold"),
    ([1.0, 1e-50], "1e-50, which float32 cannot hold"),
    ([1.0, 1e50], r"1e\+50, which float32 cannot hold"),
    ([1.0, 1.0 + 1e-12], "one and the same in float32"),
]


@pytest.mark.parametrize(("values", "text"), AXES)
def test_axes_hold_what_they_are_labelled(values, text):
    trial = lambda key, a: {"x": a}
    with pytest.raises(ValueError, match=rf"grid\['a'\] has .*{text}"):
        sweep(trial, {"a": values})
    static = sweep(lambda key, a: {"x": float(a % 7)}, {"a": values}, static=("a",))
    assert np.allclose(static["x"].values[:, 0], [v % 7 for v in values])


def test_axes_hold_more_in_double_precision(x64):
    table = sweep(lambda key, a: {"x": a % 7}, {"a": [1, 2**32 + 1]})
    assert table["x"].values.ravel().tolist() == [1, (2**32 + 1) % 7]
    assert sweep(lambda key, a: {"x": a * 1e50}, {"a": [1e-50]})["x"].values == 1


@pytest.mark.parametrize("values", [[3.0, 5.0], [3, 5]])
def test_axes_of_the_other_byte_order(values):
    table = sweep(lambda key, a, shared: {"x": a * shared}, {"a": swapped(values)}, shared=swapped(np.array(2.0, F32)))
    assert table["x"].values.ravel().tolist() == [6, 10]


STATIC = [
    lambda key, n, a: {"x": jnp.sum(jnp.ones(n))},
    lambda key, n, a: {"x": 1.0 if n > 3 else 2.0},
    lambda key, n, a: {"x": float(sum(range(n)))},
    lambda key, n, a: {"x": np.asarray(n) + 1.0},
    lambda key, n, a: {"x": jnp.sum(synthetic.low_rank(key, (9, 9), n).left)},
    lambda key, n, a: {"x": jnp.sum(operators.Identity((n, 4)).adjoint(jnp.ones(16)))},
]


@pytest.mark.parametrize("trial", STATIC)
def test_an_axis_that_should_be_static_is_named(trial):
    grid = {"a": [0.5, 1.0], "n": [4]}
    with pytest.raises(ValueError, match=r"needs the value of 'n' while it is traced; name it in static.*\('n',\)"):
        sweep(trial, grid)
    sweep(trial, grid, static=("n",))


def test_other_errors_of_a_trial_are_its_own():
    def trial(key, a):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sweep(trial, {"a": [1.0]})


def damage(path, change):
    plan = json.loads((path / "plan.json").read_text())
    change(plan)
    (path / "plan.json").write_text(json.dumps(plan))


DAMAGE = [
    lambda plan: plan.pop("static"),
    lambda plan: plan.pop("trials"),
    lambda plan: plan.update(trials=10**12),
    lambda plan: plan.update(trials="3"),
    lambda plan: plan.update(trials=-1),
    lambda plan: plan.update(grid=[1]),
    lambda plan: plan["grid"]["a"].pop("coords"),
    lambda plan: plan["grid"]["a"].update(coords=3),
    lambda plan: plan["grid"].update(a=None),
    lambda plan: plan.update(static=["b"]),
    lambda plan: plan.update(static=3),
]


@pytest.fixture
def finished(tmp_path):
    lr.sweep(lambda key, a: {"x": a}, KEY, grid={"a": [1.0, 2.0]}, num_trials=3, progress=False, checkpoint=tmp_path)
    return tmp_path


def test_damaged_plans_are_named(finished):
    whole = (finished / "plan.json").read_text()
    for change in DAMAGE:
        (finished / "plan.json").write_text(whole)
        damage(finished, change)
        with pytest.raises(ValueError, match=r"checkpoint .* has a damaged plan\.json"):
            lr.load_sweep(finished)
    (finished / "plan.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not readable"):
        lr.load_sweep(finished)
    # More trials than there are, and fewer.
    for trials, text in ((10**8, r"holds 6 of 200000000 trials"), (2, "damaged parts")):
        (finished / "plan.json").write_text(whole)
        damage(finished, lambda plan, trials=trials: plan.update(trials=trials))
        with pytest.raises(ValueError, match=text):
            lr.load_sweep(finished)


PARTS = [
    dict(lengths=[2]),
    dict(lengths=[]),
    dict(lengths=[3, 3]),
    dict(chunks=[0, 1]),
    dict(chunks=["0"]),
    dict(sizes={"batch": 1}),
    dict(sizes=None),
    dict(names=3),
]


@pytest.mark.parametrize("change", PARTS)
def test_parts_that_contradict_themselves_are_left_out(finished, change):
    (part,) = finished.glob("part-*.npz")
    with np.load(part) as data:
        arrays, meta = {name: data[name] for name in data.files if name != "meta"}, json.loads(str(data["meta"]))
    np.savez(part, meta=np.array(json.dumps(meta | change)), **arrays)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="holds 0 of 6 trials"):
        lr.load_sweep(finished)


# --- more entries than 32 bits can number ----------------------------------------------------------------------------


def traced_at(n, call):
    """Only traced: `y (n * n,)` and a mask `(n, n)` that no memory holds."""
    return jax.eval_shape(call, jax.ShapeDtypeStruct((n * n,), jnp.float32), jax.ShapeDtypeStruct((n, n), bool))


LARGE = [lr.AlternatingProjections(2), lr.GradientDescent(2), lr.SingularValueProjection(2), lr.IRLS(2)]


@pytest.mark.parametrize("solver", LARGE, ids=lambda solver: type(solver).__name__)
def test_solvers_trace_at_fifty_thousand_squared(solver):
    loss = lr.losses.Absolute() if isinstance(solver, lr.AlternatingProjections) else lr.losses.Squared()
    for op in (lambda mask: operators.EntryMask(mask), lambda mask: operators.Identity((50_000, 50_000))):
        run = lambda y, mask, op=op: lr.solve(lr.Problem(op(mask), y, loss=loss), solver, KEY, num_steps=1).factors
        assert traced_at(50_000, run).shape == (50_000, 50_000)


def test_what_else_counts_entries_traces_at_fifty_thousand_squared():
    traced_at(50_000, lambda y, mask: lr.diagnostics.sign_rip(operators.EntryMask(mask), KEY, rank=1))
    pair = lambda mask: (mask.astype(jnp.float32), mask.astype(jnp.float32))
    kronecker = lambda mask: operators.Kronecker(matrices=pair(mask), num_row_modes=1)
    traced_at(50_000, lambda y, mask: lr.sparse_bayesian(kronecker(mask), y, num_steps=1).mean)
    with pytest.raises(ValueError, match=r"less than 2\^31 measurements; got 2500000000"):
        traced_at(50_000, lambda y, mask: lr.step_sizes.measured_quantile(y, None, 0.5))


@pytest.mark.parametrize(
    "op",
    [
        lr.operators.Identity((7, 5)),
        lr.operators.EntryMask(np.ones((7, 5), bool)),
        lr.operators.SampledEntries.build([0, 6], [1, 4], np.ones(2), (7, 5))[0],
        lr.operators.DenseEnsemble.from_matrices(np.arange(70.0, dtype=np.float32).reshape(2, 7, 5)),
    ],
    ids=lambda op: type(op).__name__,
)
def test_products_of_operators_take_what_the_host_has(op):
    x, z = np.arange(35, dtype=np.float32).reshape(7, 5), np.ones(op.num_measurements, np.float32)
    for change in (lambda a: a.astype(">f4"), lambda a: a.astype(np.longdouble), lambda a: a.tolist()):
        np.testing.assert_array_equal(op.forward_dense(change(x)), op.forward_dense(x))
        np.testing.assert_array_equal(op.adjoint(change(z)), op.adjoint(z))
        np.testing.assert_allclose(op.adjoint_matmul(change(z), change(x[:5, :2])), op.adjoint(z) @ x[:5, :2])
    for bad in (None, "text", [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match="x must be"):
            op.forward_dense(bad)
