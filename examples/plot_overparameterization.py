"""
Too many columns: slow, linear, fast
====================================

Gradient descent with five columns for a matrix of rank three. With tied factors, :math:`X = U U^\\top`, the error falls
only like :math:`1/t`. Two independent factors of different size converge linearly, at a rate set by the square
of the initial scale. One change of the factorization on the way, which leaves their product as it is,
makes that rate large whatever the start (Xiong, Ding and Du, arXiv 2310.01769).
"""

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

STEP, RANK, MAX_RANK = 0.1, 3, 5

# %%
# Every entry of a 50 x 50 matrix is seen, so that nothing but the optimization is at work; float64, because the
# differences only show below the accuracy of float32. Tied factors get a positive semidefinite matrix with the
# same singular values.


def compare(num_steps=4000):
    """Solutions by tied, untied and rebalanced gradient descent."""
    variants = {
        "tied: $X = UU^\\top$": {"symmetric": True},
        "untied: $X = LR^\\top$": {"imbalance": 1 / 3},
        "untied, rebalanced once": {"imbalance": 1 / 3, "rebalance": True},
    }
    operator = lr.operators.Identity(matrix_shape=(50, 50))
    solutions = {}
    with jax.enable_x64(True):
        for label, settings in variants.items():
            truth = lr.synthetic.low_rank(
                jax.random.key(7), (50, 50), RANK, condition_number=1.25, symmetric=settings.get("symmetric", False)
            )
            problem = lr.Problem(operator, operator.forward(truth.left, truth.right))
            solver = lr.GradientDescent(
                max_rank=MAX_RANK, step_size=STEP, initial_scale=0.3, relative=False, tolerance=0.0, **settings
            )
            solutions[label] = lr.solve(
                problem, solver, jax.random.key(0), num_steps=num_steps, record_every=10, truth=truth
            )
    return solutions


def exponent(solution):
    """Slope of the log error against the log step, over the last two thirds of the steps."""
    steps, errors = np.asarray(solution.trace["step"]), np.asarray(solution.trace["relative_error"])
    late = steps >= steps[-1] / 3
    return float(np.polyfit(np.log(steps[late]), np.log(errors[late]), 1)[0])


def run(num_steps=4000):
    """The exponent of the power law that tied factors obey; theory says -1."""
    return exponent(next(iter(compare(num_steps).values())))


# %%
# On a logarithmic error axis a linear rate is a straight line. The dashed line is the law of the tied factors with its
# constant, :math:`\sqrt{k - r} \, / \, (2 \eta t)`: each surplus column shrinks like :math:`1/(2 \eta t)`.


def draw(solutions):
    """Relative error against the step, and the 1/t law."""
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.0))
        for label, solution in solutions.items():
            lr.plot.convergence(solution, label=label, ax=ax)
        steps = np.asarray(next(iter(solutions.values())).trace["step"])[20:]
        norm = float(jnp.linalg.norm(1.25 ** -jnp.linspace(0, 1, RANK)))
        law = np.sqrt(MAX_RANK - RANK) / (2 * STEP * steps) / norm
        ax.plot(steps, law, "--", color="#22272E", linewidth=1.2, label="theory for tied factors")
        ax.legend()
        ax.set_title(f"{MAX_RANK} columns for a matrix of rank {RANK}")


if __name__ == "__main__":  # as a script and in the gallery
    solutions = compare()
    draw(solutions)
    print(f"tied factors: error ~ t^{exponent(next(iter(solutions.values()))):.3f}")
    if matplotlib.get_backend() != "agg":
        plt.show()
