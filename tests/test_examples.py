"""Every example holds what it claims in a shortened run, its baseline fails, and its figure can be drawn."""

import importlib.util
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def closes_its_figures():
    yield
    plt.close("all")


def load(name):
    """The example as a module: importing it defines functions and computes nothing."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert plt.get_fignums() == []
    return module


def assert_one_labelled_figure():
    assert len(plt.get_fignums()) == 1
    figure = plt.gcf()
    figure.canvas.draw()
    ax = figure.axes[0]
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.get_title("left")


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    examples = {path.stem.removeprefix("plot_") for path in EXAMPLES.glob("plot_*.py")}
    assert examples, "no examples found"
    assert examples <= tested, examples - tested


def test_quickstart():
    example = load("plot_quickstart")
    assert example.run(num_steps=110) < 2e-6
    assert example.run(num_steps=2) > 0.1
    example.draw(example.recover_all(num_steps=2))
    assert_one_labelled_figure()


def test_robust_sensing():
    example = load("plot_robust_sensing")
    assert example.run(num_steps=220) < 1e-5
    solutions = example.compare(num_steps=220)
    assert example.final_errors(solutions)[1] > 0.5  # the squared loss
    example.draw(solutions)
    assert_one_labelled_figure()


def test_inpainting():
    example = load("plot_inpainting")
    assert example.run(num_steps=8) > 2.5
    truth, known, squared, huber = example.compare(num_steps=8)
    # Filling in the typical grey level is worse than either.
    filled = np.where(np.isnan(known), np.nanmedian(known), known)
    assert example.psnr(filled, truth) < example.psnr(squared, truth)
    example.draw(truth, known, squared, huber)
    assert len(plt.gcf().axes) == 4


def test_overparameterization():
    example = load("plot_overparameterization")
    np.testing.assert_allclose(example.run(num_steps=3000), -1, atol=0.05)
    tied, untied, rebalanced = example.compare(num_steps=3000).values()
    steps, errors = np.asarray(untied.trace["step"]), np.asarray(untied.trace["relative_error"])
    assert float(tied.trace["relative_error"][-1]) > 1e-3
    # Straight on a logarithmic axis: both halves of the way have one slope.
    slopes = [np.polyfit(steps[a:b], np.log(errors[a:b]), 1)[0] for a, b in ((100, 200), (200, 300))]
    assert slopes[1] < -0.005
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=0.02)
    assert float(rebalanced.trace["relative_error"][60]) < 1e-13  # after 600 steps
    assert errors[60] > 1e-6
    example.draw(example.compare(num_steps=3000))
    assert_one_labelled_figure()


def test_custom_operator():
    example = load("plot_custom_operator")
    assert example.run(num_steps=150) < 1e-3
    solutions = example.solve_with_all(num_steps=150)
    errors = example.last_errors(solutions)
    assert errors["AlternatingMinimization"] < 2e-6
    assert errors["ScaledGradientDescent"] < 2e-6
    assert min(float(solution.trace["relative_error"][0]) for solution in solutions.values()) > 0.1
    example.draw(solutions)
    assert_one_labelled_figure()


def test_sweep_of_seeds():
    example = load("plot_sweep_of_seeds")
    assert example.run(num_steps=150) >= 0.5
    rates = np.asarray(example.success_rates(jax.random.key(0), num_steps=150))
    assert rates.shape == (len(example.MEASUREMENTS), len(example.CORRUPTIONS))
    assert rates[:, -1].max() == 0  # seven tenths corrupted
    assert rates[0, 5] <= 0.5  # half corrupted, fewer measurements than unknowns
    example.draw(rates)
    assert_one_labelled_figure()
