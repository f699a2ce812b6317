"""
A phase transition in one compiled call
=======================================

How many outliers can be borne, with how many measurements? Hundreds of small solves answer that: eight levels of
corruption, eight numbers of measurements, eight seeds each. :func:`lrjax.sweep` compiles them once, because nothing
that varies is a shape: the corruption is a traced number, and measurements that a problem lacks are given weight zero.
"""

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

N, MOST = 12, 400
CORRUPTIONS = np.linspace(0.0, 0.7, 8)
MEASUREMENTS = np.arange(50, MOST + 1, 50)
NUM_SEEDS = 8

# %%
# One trial: draw a problem with all ``MOST`` measurements, keep the first of them, solve, and compare with
# the truth. The rank is not told to the solver. The step is shorter than the default, 0.5: with few measurements and
# hardly any outliers that one is too long, and some lanes would go back and forth for ever.


def trial(key, num_measurements, corruption, num_steps):
    """Whether one matrix of rank 1 was recovered to three digits within the budget of steps."""
    key_problem, key_solve = jax.random.split(key)
    problem, truth = lr.synthetic.matrix_sensing(
        key_problem, shape=(N, N), rank=1, num_measurements=MOST, symmetric=True, corruption=corruption
    )
    kept = (jnp.arange(MOST) < num_measurements).astype(problem.y.dtype)
    problem = lr.Problem(problem.operator, problem.y, weights=kept, loss=problem.loss)
    solver = lr.SubgradientMethod(max_rank=N, symmetric=True)
    solution = lr.solve(problem, solver, key_solve, num_steps=num_steps, record_every=num_steps)
    return {"success": lr.metrics.success(solution.factors, truth, tolerance=1e-3)}


# %%
# The sweep runs a few lanes side by side and the batches one after the other, which keeps the data of a batch in the
# cache, and returns arrays with named dimensions. The number of steps, a length, is a static axis with one value.


def success_rates(key, num_steps=200):
    """Success rates, ``(measurements, corruptions)``."""
    grid = {"num_measurements": MEASUREMENTS, "corruption": CORRUPTIONS, "num_steps": [num_steps]}
    table = lr.sweep(trial, key, grid=grid, static=("num_steps",), num_trials=NUM_SEEDS, progress=False)
    return np.asarray(table["success"].mean("trial").isel(num_steps=0))


def largest_borne(rates):
    """The largest corruption at which every seed is recovered with the most measurements."""
    return float(CORRUPTIONS[np.flatnonzero(np.asarray(rates)[-1] == 1).max(initial=0)])


def run(num_steps=200):
    """The largest corruption at which every seed is recovered with the most measurements."""
    return largest_borne(success_rates(jax.random.key(0), num_steps=num_steps))


# %%
# More corruption takes more measurements, and more steps: some of the pale cells at the bottom right would darken with
# a larger budget. Beyond 65 % nothing helps here: the step rule looks at the 35 % quantile of
# the residuals, which then measures outliers only.


def draw(rates):
    """The phase diagram."""
    ax = lr.plot.phase_diagram(
        rates, CORRUPTIONS, MEASUREMENTS, xlabel="fraction corrupted", ylabel="number of measurements"
    )
    ax.set_title(f"Rank 1, {N} x {N}, rank unknown, {NUM_SEEDS} seeds", loc="left")


if __name__ == "__main__":  # as a script and in the gallery
    rates = success_rates(jax.random.key(0))
    draw(rates)
    print(f"every seed is recovered up to a fraction of {largest_borne(rates):.2f} corrupted")
    if matplotlib.get_backend() != "agg":
        plt.show()
