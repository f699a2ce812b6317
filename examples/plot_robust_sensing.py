"""
Three measurements in ten are garbage
=====================================

Three tenths of the measurements carry errors ten times their own size, and the rank is not known either: the factors
have as many columns as the matrix. The subgradient method on the absolute misfit recovers the matrix all the same; the
squared loss fits the garbage instead.
"""

import jax
import matplotlib
import matplotlib.pyplot as plt

import lrjax as lr

N = 30

# %%
# One problem, two losses. Changing the loss keeps the operator and the measurements.


def compare(num_steps=260):
    """Solutions of the subgradient method and of gradient descent on the squared loss, both with ``max_rank = n``."""
    key_problem, key_solve = jax.random.split(jax.random.key(0))
    robust, truth = lr.synthetic.matrix_sensing(
        key_problem,
        shape=(N, N),
        rank=3,
        num_measurements=20 * N * 3,
        symmetric=True,
        corruption=0.3,
        corruption_scale=10.0,
    )
    squared = lr.Problem(robust.operator, robust.y, loss=lr.losses.Squared())
    settings = {"num_steps": num_steps, "record_every": 2, "truth": truth}
    return {
        "absolute loss, subgradient method": lr.solve(
            robust, lr.SubgradientMethod(max_rank=N, symmetric=True), key_solve, **settings
        ),
        "squared loss, gradient descent": lr.solve(
            squared, lr.GradientDescent(max_rank=N, symmetric=True), key_solve, **settings
        ),
    }


def final_errors(solutions):
    """The last relative error of each solution."""
    return [float(solution.trace["relative_error"][-1]) for solution in solutions.values()]


def run(num_steps=260):
    """The relative error of the subgradient method."""
    return final_errors(compare(num_steps))[0]


# %%
# The first steps seem to do nothing: the start is of size 1e-5, and growth from so small a start is what lets
# the signal outrun the surplus columns. Then the error falls linearly.


def draw(solutions):
    """Relative error against the step, for both losses."""
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.0))
        for label, solution in solutions.items():
            lr.plot.convergence(solution, label=label, ax=ax)
        ax.set_title(f"30 % outliers, {N} columns for a matrix of rank 3")


if __name__ == "__main__":  # as a script and in the gallery
    solutions = compare()
    draw(solutions)
    robust_error, squared_error = final_errors(solutions)
    print(f"relative error: {robust_error:.1e} (squared loss: {squared_error:.2f})")
    if matplotlib.get_backend() != "agg":
        plt.show()
