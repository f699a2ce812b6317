"""
Where recovery begins
=====================

With too few measurements every trial fails, with plenty every trial succeeds, and the change is abrupt. One call of
:func:`lrjax.sweep` runs four ranks, twenty-one numbers of measurements and twelve seeds; a logistic fit says where half
of the trials succeed, and how well that is known. The point moves with the rank just as the degrees of freedom do.
"""

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

N, MOST = 16, 210
RANKS = (1, 2, 3, 4)
MEASUREMENTS = np.arange(10, MOST + 1, 10)
NUM_TRIALS = 12

# %%
# Nothing that varies is a shape. The truth has four columns, of which the first ``rank`` are kept; the solver is given
# the same number to use; and measurements that a trial lacks have weight zero. The measurement matrices are
# the same for all trials: given as ``shared``, they are not drawn or stored more than once.


def trial(key, rank, num_measurements, shared):
    """Whether one matrix was recovered to three digits."""
    key_truth, key_solve = jax.random.split(key)
    kept = jnp.arange(max(RANKS)) < rank
    left, right = jax.random.normal(key_truth, (2, N, max(RANKS))) * kept
    truth = lr.Factors(left, right)
    weights = (jnp.arange(MOST) < num_measurements).astype(left.dtype)
    problem = lr.Problem(shared, shared.forward(left, right), weights=weights)
    solver = lr.ScaledGradientDescent(max_rank=max(RANKS), rank=rank)
    solution = lr.solve(problem, solver, key_solve, num_steps=300, record_every=300)
    return {"success": lr.metrics.success(solution.factors, truth, tolerance=1e-3)}


def sweep(num_trials=NUM_TRIALS):
    """Labelled successes: rank, number of measurements, trial."""
    ensemble = lr.operators.DenseEnsemble.gaussian(jax.random.key(0), (N, N), MOST)
    grid = {"rank": RANKS, "num_measurements": MEASUREMENTS}
    return lr.sweep(trial, jax.random.key(1), grid=grid, num_trials=num_trials, shared=ensemble, progress=False)


def midpoints(table):
    """The fitted transition of each rank."""
    won = np.asarray(table["success"].sum("trial"))
    return [lr.diagnostics.fit_transition(MEASUREMENTS, row, table.sizes["trial"]) for row in won]


def freedom(rank):
    """Degrees of freedom of a matrix of this rank."""
    return rank * (2 * N - rank)


def run(num_trials=NUM_TRIALS):
    """Measurements at the transition over degrees of freedom: the mean over the ranks."""
    fits = midpoints(sweep(num_trials))
    return float(np.mean([fit.midpoint / freedom(rank) for fit, rank in zip(fits, RANKS, strict=True)]))


# %%
# The points are the fitted transitions with their 95 % intervals; the dashed line is the number of degrees of freedom,
# below which there is nothing to find.


def draw(table):
    """Success rates with the fitted transitions."""
    rates = np.asarray(table["success"].mean("trial"))
    fits = midpoints(table)
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.8, 4.0))
        lr.plot.phase_diagram(
            rates.T,
            RANKS,
            MEASUREMENTS,
            xlabel="rank",
            ylabel="number of measurements",
            theory=(np.linspace(0.5, 4.5), freedom(np.linspace(0.5, 4.5))),
            ax=ax,
        )
        ax.lines[-1].set_label("degrees of freedom")
        middle = np.array([fit.midpoint for fit in fits])
        reach = np.abs(np.array([fit.interval for fit in fits]).T - middle)
        ax.errorbar(RANKS, middle, yerr=reach, fmt="o", color="#22272E", capsize=4, label="half of the trials")
        ax.set_xticks(RANKS)
        ax.legend(loc="upper left", frameon=True, facecolor="white", framealpha=0.9, edgecolor="none")
        ax.set_title(f"Scaled gradient descent, {N} x {N}, Gaussian measurements")


if __name__ == "__main__":  # as a script and in the gallery
    table = sweep()
    draw(table)
    ratios = [fit.midpoint / freedom(rank) for fit, rank in zip(midpoints(table), RANKS, strict=True)]
    print(f"half of the trials succeed with {np.mean(ratios):.2f} measurements for each degree of freedom")
    if matplotlib.get_backend() != "agg":
        plt.show()
