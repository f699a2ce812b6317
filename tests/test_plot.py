import subprocess
import sys
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from lrjax import plot


@pytest.fixture(autouse=True)
def leaves_no_trace():
    """Every test ends with the global style it began with, and closes its figures."""
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    plt.close("all")


def solution(values, name="residual", steps=None):
    values = np.asarray(values, float)
    steps = np.broadcast_to(np.arange(values.shape[-1]) * 10, values.shape) if steps is None else steps
    return SimpleNamespace(trace={"step": jnp.asarray(steps), name: jnp.asarray(values)})


def draw(ax):
    """Renders the figure, so that a problem which shows only then fails the test."""
    ax.figure.canvas.draw()


def test_importing_plot_does_not_import_matplotlib():
    code = "import sys; import lrjax.plot; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_convergence_draws_the_trace():
    ax = plot.convergence(solution([1, 0.5, 0.25]), label="median step")
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [0, 10, 20]
    assert line.get_ydata().tolist() == [1, 0.5, 0.25]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "residual", "log")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["median step"]
    draw(ax)


def test_convergence_draws_lanes_as_median_and_band():
    lanes = 10.0 ** -np.random.default_rng(0).uniform(0, 4, size=(40, 6))
    ax = plot.convergence(solution(lanes))
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_ydata(), np.median(lanes, axis=0), rtol=1e-6)
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    for record in range(6):
        at = corners[corners[:, 0] == 10 * record, 1]
        np.testing.assert_allclose(at.min(), np.quantile(lanes[:, record], 0.1), rtol=1e-6)
        np.testing.assert_allclose(at.max(), np.quantile(lanes[:, record], 0.9), rtol=1e-6)
    assert ax.get_legend() is None
    draw(ax)


def test_convergence_places_records_by_the_lane_that_ran_longest():
    steps = np.array([[0, 10, 10], [0, 10, 20]])  # the first lane froze
    ax = plot.convergence(solution([[1, 0.1, 0.1], [1, 0.1, 0.01]], steps=steps))
    assert ax.lines[0].get_xdata().tolist() == [0, 10, 20]


def test_convergence_takes_more_than_one_lane_axis():
    lanes = np.random.default_rng(1).uniform(0.1, 1, size=(3, 4, 5))
    ax = plot.convergence(solution(lanes))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.median(lanes, axis=(0, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (("objective", "residual", "relative_error"), "relative error"),
        (("objective", "residual"), "residual"),
        (("objective",), "objective"),
    ],
)
def test_convergence_picks_the_most_telling_quantity(recorded, expected):
    trace = {name: np.ones(2) for name in ("step", *recorded)}
    assert plot.convergence(SimpleNamespace(trace=trace)).get_ylabel() == expected


def test_convergence_draws_the_quantity_asked_for():
    trace = {"step": np.arange(2), "residual": np.ones(2), "gradient_norm": np.array([3.0, 2.0])}
    ax = plot.convergence(SimpleNamespace(trace=trace), quantity="gradient_norm")
    assert ax.lines[0].get_ydata().tolist() == [3, 2]
    assert ax.get_ylabel() == "gradient norm"


def test_convergence_to_exactly_zero_can_be_drawn():
    draw(plot.convergence(solution([1, 0.1, 0.0])))
    draw(plot.convergence(solution([[1, 0.1, 0.0], [1, 0.0, 0.0]])))


@pytest.mark.parametrize(
    ("trace", "quantity", "expected"),
    [
        ({"step": [0], "loss": [1.0]}, None, "none of"),
        ({"step": [0], "residual": [1.0]}, "loss", r"no column 'loss'.*'residual'"),
        ({"residual": [1.0]}, None, "no column 'step'"),
        ({"step": [0, 1], "residual": [1.0]}, None, r"\(1,\).*\(2,\)"),
        ({"step": 0, "residual": 1.0}, None, "records last"),
    ],
)
def test_convergence_checks_the_trace(trace, quantity, expected):
    with pytest.raises(ValueError, match=expected):
        plot.convergence(SimpleNamespace(trace=trace), quantity=quantity)
    assert not plt.get_fignums()  # a refused call leaves no empty figure


def test_phase_diagram_puts_each_rate_in_its_cell():
    rates = np.arange(12).reshape(3, 4) / 12
    x, y = [0, 1, 2, 4], [10, 20, 30]
    curve = (np.array([0.0, 4.0]), np.array([0.0, 100.0]))
    ax = plot.phase_diagram(rates, x, y, xlabel="corruption", ylabel="measurements", theory=curve)
    (mesh,) = ax.collections
    np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(3, 4), rates)
    corners = mesh.get_coordinates()
    assert corners[0, :, 0].tolist() == [-0.5, 0.5, 1.5, 3, 5]
    assert corners[:, 0, 1].tolist() == [5, 15, 25, 35]
    assert mesh.get_clim() == (0, 1)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 5), (5, 35))  # theory does not stretch the grid
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xydata(), np.stack(curve, axis=1))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("corruption", "measurements")
    assert ax.figure.axes[1].get_ylabel() == "success rate"
    draw(ax)


def test_phase_diagram_of_one_cell():
    ax = plot.phase_diagram([[0.5]], [3], [7], xlabel="x", ylabel="y")
    assert ax.get_xlim() == (2.5, 3.5)
    draw(ax)


@pytest.mark.parametrize(
    ("success", "x", "y", "expected"),
    [
        (np.ones((2, 3)), [1, 2], [1, 2, 3], r"\(2, 3\), expected \(len\(y\), len\(x\)\) = \(3, 2\)"),
        (np.full((1, 1), 1.5), [1], [1], "1.5"),
        (np.full((1, 1), np.nan), [1], [1], r"\[0, 1\]"),
        (np.ones((1, 2)), [2, 1], [1], "x must be finite and increasing"),
        (np.ones((2, 1)), [1], [1, 1], "y must be finite and increasing"),
    ],
)
def test_phase_diagram_checks_its_input(success, x, y, expected):
    with pytest.raises(ValueError, match=expected):
        plot.phase_diagram(success, x, y, xlabel="x", ylabel="y")


def test_image_draws_the_array():
    array = np.array([[0.2, 0.4, 0.6], [np.nan, 0.8, 1.2]])
    ax = plot.image(array, title="observed")
    (drawn,) = ax.images
    np.testing.assert_array_equal(np.ma.filled(drawn.get_array(), np.nan), array)
    assert drawn.get_clim() == (0.2, 1.2)
    assert drawn.origin == "upper"
    assert ax.get_title(loc="left") == "observed"
    assert plot.image(array, limits=(0, 1)).images[0].get_clim() == (0, 1)
    draw(ax)


@pytest.mark.parametrize("array", [np.ones(3), np.ones((2, 2, 3)), np.full((2, 2), np.nan), np.ones((0, 4))])
def test_image_checks_its_input(array):
    with pytest.raises(ValueError, match="matrix"):
        plot.image(array)


def test_spectrum_draws_the_values():
    ax = plot.spectrum([4.0, 2.0, 0.0], label="truth")
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata().tolist() == [4, 2, 0]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("index", "singular value", "log")
    draw(ax)


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, -0.1], [1.0, float("nan")]])
def test_spectrum_checks_its_input(values):
    with pytest.raises(ValueError, match="singular values"):
        plot.spectrum(values)


def test_bars_draw_the_numbers_from_zero():
    ax = plot.bars({"global mean": 1.115, "biases": 0.926, "low rank": 0.901}, xlabel="held-out RMSE")
    assert [patch.get_width() for patch in ax.patches] == [1.115, 0.926, 0.901]
    assert {patch.get_x() for patch in ax.patches} == {0}
    assert [text.get_text() for text in ax.get_yticklabels()] == ["global mean", "biases", "low rank"]
    assert [text.get_text() for text in ax.texts] == ["1.115", "0.926", "0.901"]
    colours = [patch.get_facecolor() for patch in ax.patches]
    assert colours[0] == colours[1] != colours[2]
    assert ax.get_xlabel() == "held-out RMSE"
    assert ax.yaxis_inverted()  # the first is on top
    draw(ax)


@pytest.mark.parametrize("values", [{}, {"a": -1.0}, {"a": float("nan")}])
def test_bars_check_their_input(values):
    with pytest.raises(ValueError, match="bars"):
        plot.bars(values, xlabel="RMSE")


def test_functions_draw_on_the_axes_they_are_given():
    with plot.style():
        _, axes = plt.subplots(2, 2)
    given = axes.ravel()
    assert plot.convergence(solution([1, 0.1]), ax=given[0]) is given[0]
    assert plot.image(np.eye(3), ax=given[1]) is given[1]
    assert plot.spectrum([1.0], ax=given[2]) is given[2]
    assert plot.bars({"a": 1.0}, xlabel="x", ax=given[3]) is given[3]
    assert len(plt.get_fignums()) == 1
    plot.convergence(solution([1, 0.2]), ax=given[0])
    first, second = (line.get_color() for line in given[0].lines)
    assert [first, second] == list(plot.COLOURS[:2])


def test_style_holds_only_inside_its_block():
    outside = matplotlib.rcParams["axes.spines.top"], matplotlib.rcParams["axes.prop_cycle"]
    with plot.style():
        assert not matplotlib.rcParams["axes.spines.top"]
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(plot.COLOURS)
    assert (matplotlib.rcParams["axes.spines.top"], matplotlib.rcParams["axes.prop_cycle"]) == outside
    with pytest.raises(RuntimeError), plot.style():
        raise RuntimeError
    assert matplotlib.rcParams["axes.spines.top"] == outside[0]


def test_own_axes_are_styled_without_a_block():
    ax = plot.convergence(solution([1, 0.1]))
    assert not ax.spines["top"].get_visible()
    assert ax.lines[0].get_color() == plot.COLOURS[0]
