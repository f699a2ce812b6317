"""
Quick start
===========

A 40 x 30 matrix of rank 3 is measured 800 times: fewer numbers than it has entries (1200), more than it has degrees of
freedom (201). That is enough to find it, to the rounding error of float32.
"""

import jax
import matplotlib
import matplotlib.pyplot as plt

import lrjax as lr

# %%
# Three nouns and one verb: a *problem* (what was measured), a *solver* (here it needs to know only the rank), a random
# *key*, and ``solve``. The truth is passed only to record the error; the solver never sees it.


def recover(key, num_steps=150):
    """Draws a problem and solves it."""
    key_problem, key_solve = jax.random.split(key)
    problem, truth = lr.synthetic.matrix_sensing(key_problem, shape=(40, 30), rank=3, num_measurements=800)
    solver = lr.ScaledGradientDescent(max_rank=3)
    return lr.solve(problem, solver, key_solve, num_steps=num_steps, truth=truth)


# %%
# ``recover`` is a pure function, so ``vmap`` turns it into one that solves sixteen problems side by side. A lane that
# has converged waits for the others; ``check`` raises on the host if one of them failed, and says which.


def recover_all(num_steps=150):
    """Sixteen problems in one compiled solve."""
    keys = jax.random.split(jax.random.key(0), 16)
    return jax.vmap(lambda key: recover(key, num_steps))(keys).check()


def run(num_steps=150):
    """The largest relative error over the sixteen problems."""
    return float(recover_all(num_steps).trace["relative_error"][:, -1].max())


# %%
# The relative error falls by a constant factor per step, until float32 has no more digits to give.


def draw(solutions):
    """The error against the step: median over the problems, and the band that holds eight in ten of them."""
    ax = lr.plot.convergence(solutions)
    ax.set_title("16 random matrices, each from 800 numbers", loc="left")


if __name__ == "__main__":  # as a script and in the gallery
    solutions = recover_all()
    draw(solutions)
    print(f"largest relative error: {float(solutions.trace['relative_error'][:, -1].max()):.1e}")
    if matplotlib.get_backend() != "agg":
        plt.show()
