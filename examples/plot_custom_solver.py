"""
A solver of your own
====================

Gradient descent with the step sizes of Barzilai and Borwein, in thirty lines: two methods, ``init`` and ``step``. Loop,
trace, statuses, ``vmap``, wrappers and sweeps come with them. On an ill-conditioned matrix it is far ahead of gradient
descent with a fixed step, for the same products.
"""

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt

import lrjax as lr
from lrjax.testing import check_solver

# %%
# The state is a pytree with ``factors`` and ``info``, scalars of the iterate that are recorded, and whatever else the
# solver wants to remember. ``step`` returns the next state and a status code; the loop keeps the last finite iterate,
# so that a solver need not look for NaN.


@lr.pytree
class State:
    factors: lr.Factors
    info: dict
    gradient: lr.Factors
    step_size: jax.Array


@lr.pytree
class BarzilaiBorwein:
    """Gradient descent on both factors; the step is `<s, s> / <s, y>` of the last change of iterate and gradient."""

    max_rank: int = jax.tree.static()

    def evaluate(self, problem, factors, step_size):
        objective, gradient = jax.value_and_grad(problem.objective)(factors)
        info = {"objective": objective, "residual": problem.relative_residual(problem.residual(factors))}
        return State(factors=factors, info=info, gradient=gradient, step_size=step_size)

    def init(self, problem, key, factors=None):
        if factors is None:
            factors = lr.initial.spectral(problem, self.max_rank, key)
        state = self.evaluate(problem, factors, 0 * problem.y[0])
        # The first step: a hundredth of what the size of the gradient suggests.
        ratio = inner(factors, factors) / inner(state.gradient, state.gradient)
        return self.evaluate(problem, factors, 0.01 * jnp.sqrt(ratio))

    def step(self, problem, state, key):
        factors = jax.tree.map(lambda x, g: x - state.step_size * g, state.factors, state.gradient)
        new = self.evaluate(problem, factors, state.step_size)
        moved = jax.tree.map(jnp.subtract, new.factors, state.factors)
        turned = jax.tree.map(jnp.subtract, new.gradient, state.gradient)
        curvature = inner(moved, turned)
        longer = inner(moved, moved) / jnp.where(curvature > 0, curvature, 1)
        size = jnp.where(curvature > 0, longer, state.step_size)
        done = new.info["residual"] <= 10 * jnp.finfo(problem.y.dtype).eps
        code = jnp.where(done, lr.status.CONVERGED, lr.status.RUNNING)
        return State(factors=new.factors, info=new.info, gradient=new.gradient, step_size=size), code


def inner(a, b):
    """Inner product of two pairs of factors."""
    return jnp.vdot(a.left, b.left) + jnp.vdot(a.right, b.right)


# %%
# :func:`lrjax.testing.check_solver` runs it eagerly, jitted and vmapped, and compares.


def compare(num_steps=400):
    """Solutions by the new solver and by gradient descent."""
    key_problem, key_check, key_solve = jax.random.split(jax.random.key(0), 3)
    problem, truth = lr.synthetic.matrix_sensing(
        key_problem, shape=(30, 25), rank=3, num_measurements=900, condition_number=10.0
    )
    check_solver(BarzilaiBorwein(max_rank=3), problem, key_check)
    solvers = {
        "Barzilai-Borwein": BarzilaiBorwein(max_rank=3),
        "GradientDescent": lr.GradientDescent(max_rank=3, start="spectral"),
    }
    solve = lambda solver: lr.solve(problem, solver, key_solve, num_steps=num_steps, truth=truth)
    return {name: solve(solver) for name, solver in solvers.items()}


def run(num_steps=400):
    """The relative error of the new solver."""
    return float(compare(num_steps)["Barzilai-Borwein"].trace["relative_error"][-1])


# %%
# The error does not fall steadily, which is the nature of these steps. :class:`lrjax.BestSoFar` would report the best
# iterate.


def draw(solutions):
    """Relative error against the step."""
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.0))
        for label, solution in solutions.items():
            lr.plot.convergence(solution, label=label, ax=ax)
        ax.set_title("Rank 3, condition number 10")


if __name__ == "__main__":  # as a script and in the gallery
    solutions = compare()
    draw(solutions)
    ours, theirs = (float(solution.trace["relative_error"][-1]) for solution in solutions.values())
    print(f"relative error: {ours:.1e} (gradient descent: {theirs:.1e})")
    if matplotlib.get_backend() != "agg":
        plt.show()
