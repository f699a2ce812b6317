"""
The ridge by gradient descent
=============================

How strong should the penalty be? The held-out error is a function of it, through a whole solve. A solve is
differentiable, so ``jax.grad`` gives the slope, and a few steps along it end where a grid search would: with a dozen
solves, and for as many penalties at once as there are.
"""

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

N, RANK, MAX_RANK = 40, 2, 6
GRID = np.logspace(-3, 0, 25)

# %%
# A noisy matrix of rank 2, fitted with six columns. A fifth of the entries seen is set aside: their weight is zero in
# the fit, and one in the error.


def data(key=None):
    """The measurements, and weights of the entries for fitting and for judging."""
    key_problem, key_split = jax.random.split(jax.random.key(0) if key is None else key)
    problem, _ = lr.synthetic.matrix_completion(key_problem, shape=(N, N), rank=RANK, fraction=0.5, noise=0.3)
    held = jax.random.bernoulli(key_split, 0.2, problem.y.shape) & problem.operator.measured
    return problem, (~held).astype(problem.y.dtype), held.astype(problem.y.dtype)


# %%
# Numbers of a solver are leaves of a pytree, so the ridge can be a traced value, and the solve is a function of it.


def held_out_error(log_ridge, num_steps, problem, fitted, held):
    """Root mean square error on the entries set aside, after a fit with this ridge."""
    solver = lr.AlternatingMinimization(
        max_rank=MAX_RANK, ridge=jnp.exp(log_ridge), orthonormalize=False, accelerate=False
    )
    problem = lr.Problem(problem.operator, problem.y, weights=fitted)
    solution = lr.solve(problem, solver, jax.random.key(1), num_steps=num_steps, record_every=num_steps)
    prediction = problem.operator.forward(solution.factors.left, solution.factors.right)
    return lr.metrics.rmse(prediction, problem.y, held)


def descend(num_steps=60, updates=12, start=0.3):
    """Ridges tried and their errors, by gradient descent on the logarithm of the ridge."""
    slope = jax.jit(jax.value_and_grad(held_out_error), static_argnums=1)
    given, log_ridge, path = data(), jnp.log(start), []
    for _ in range(updates):
        error, gradient = slope(log_ridge, num_steps, *given)
        path.append((float(jnp.exp(log_ridge)), float(error)))
        # Relative changes per logarithm of the ridge, so that no units enter; the bound keeps steps from going too far.
        log_ridge = log_ridge - jnp.clip(2 * gradient / error, -1, 1)
    return np.array(path)


def on_a_grid(num_steps=60):
    """The error at each ridge of a grid, side by side."""
    each = jax.vmap(held_out_error, in_axes=(0, None, None, None, None))
    return np.asarray(jax.jit(each, static_argnums=1)(jnp.log(GRID), num_steps, *data()))


def run(num_steps=60):
    """The error that gradient descent ends at, over the best of the grid."""
    return float(descend(num_steps)[-1, 1] / on_a_grid(num_steps).min())


# %%
# The line is the grid, for comparison only; the points are the steps of the descent.


def draw(path, errors):
    """Held-out error against the ridge, and the way of the descent."""
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.0))
        ax.plot(GRID, errors, label=f"grid of {len(GRID)}")
        ax.plot(*path.T, marker="o", linestyle=":", label="gradient descent")
        ax.annotate("start", path[0], xytext=(6, 8), textcoords="offset points")
        ax.set_xscale("log")
        ax.set_xlabel("ridge")
        ax.set_ylabel("held-out error")
        ax.set_title(f"Rank {RANK} with noise, {MAX_RANK} columns")
        ax.legend()


if __name__ == "__main__":  # as a script and in the gallery
    path, errors = descend(), on_a_grid()
    draw(path, errors)
    print(f"ridge {path[-1, 0]:.2f}; its held-out error is {path[-1, 1] / errors.min():.3f} times the best of the grid")
    if matplotlib.get_backend() != "agg":
        plt.show()
