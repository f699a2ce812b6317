"""Every example holds what it claims in a shortened run, its baseline fails, and its figure can be drawn."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

import lrjax as lr

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
    assert example.run(num_steps=150) > 0.49
    rates = np.asarray(example.success_rates(jax.random.key(0), num_steps=150))
    assert rates.shape == (len(example.MEASUREMENTS), len(example.CORRUPTIONS))
    assert rates[:, -1].max() == 0  # seven tenths corrupted
    assert rates[0, 5] <= 0.5  # half corrupted, fewer measurements than unknowns
    example.draw(rates)
    assert_one_labelled_figure()


def test_which_solver():
    example = load("plot_which_solver")
    found = example.compare(num_trials=6)
    assert example.advantage(found) > 0.3
    assert min(rates[-1] for name, (rates, _) in found.items() if name != "SingularValueProjection") > 0.8
    example.draw(found)
    assert_one_labelled_figure()


def test_ratings():
    example = load("plot_ratings")
    completions, name = example.compare(num_steps=8, ridges=(0.3, 10.0))
    assert example.gain(completions) > 0.02
    assert completions[0.3].holdout_rmse > completions[0.3].baseline_rmse  # worse than no columns
    assert completions[0.3].train_rmse < completions[10.0].train_rmse
    example.draw(completions, name)
    assert_one_labelled_figure()


def test_sketched_regression():
    example = load("plot_sketched_regression")
    conditions = np.array([1.0, 1e4, 1e8])
    errors = example.compare(conditions, ("sketch_and_solve", "normal_equations", "auto"))
    assert example.worst_ratio(errors) < 10
    assert np.nanmin(errors["sketch_and_solve"]) > 1e-7
    assert np.isnan(errors["normal_equations"][-1])  # it says so
    example.draw(errors, conditions)
    assert_one_labelled_figure()


def test_phase_transition():
    example = load("plot_phase_transition")
    table = example.sweep(num_trials=6)
    fits = example.midpoints(table)
    ratios = [fit.midpoint / example.freedom(rank) for fit, rank in zip(fits, example.RANKS, strict=True)]
    assert 1 < np.mean(ratios) < 2
    rates = np.asarray(table["success"].mean("trial"))
    assert rates[:, -1].min() > 0.8
    assert rates[1:, 0].max() == 0
    example.draw(table)
    assert_one_labelled_figure()


def test_custom_solver():
    example = load("plot_custom_solver")
    solutions = example.compare(num_steps=100)
    ours, theirs = (float(solution.trace["relative_error"][-1]) for solution in solutions.values())
    assert ours < 1e-5
    assert theirs > 1e-2
    example.draw(solutions)
    assert_one_labelled_figure()


def test_hypergradient():
    example = load("plot_hypergradient")
    path, errors = example.descend(num_steps=30), example.on_a_grid(num_steps=30)
    assert path[-1, 1] < 1.02 * errors.min()
    assert path[0, 1] > 1.2 * errors.min()
    example.draw(path, errors)
    assert_one_labelled_figure()


def test_irs_channel():
    example = load("plot_irs_channel")
    table = example.sweep(num_trials=6)
    found = example.decibels(table)
    assert found["bayes"][-1] < -25
    assert (found["bayes"][1:] < found["oracle"][1:] + 6).all()
    assert found["least"].min() > -6  # whatever the noise
    assert example.lost(table) < 0.5
    example.draw(table)
    assert_one_labelled_figure()


def test_many_devices():
    example = load("plot_many_devices")
    one, every = example.compare(num_trials=6)
    assert example.difference(one, every) == 0
    assert 1e-5 < float(one["error"].values.max()) < 1
    example.draw(one, every)
    assert_one_labelled_figure()


def test_many_devices_on_two():
    script = EXAMPLES / "plot_many_devices.py"
    root = str(EXAMPLES.parent)
    environment = os.environ | {"MPLBACKEND": "agg", "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2 devices; largest difference to one device: 0"


def test_calibration():
    example = load("plot_calibration")
    assert example.run(num_steps=60) > 20
    results = example.recover(num_steps=60)
    example.draw(*results)
    assert len(plt.gcf().axes) == 4
    gains, found = results[3:]
    # Three times the noise of a gain seen twelve times, 0.01 over the root of 12.
    assert lr.metrics.scaled_error(found, gains) < 0.01
