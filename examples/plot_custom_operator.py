"""
A measurement operator of your own
==================================

A matrix is seen through some coefficients of its two-dimensional cosine transform. lrjax has no such operator. Twenty
lines make one, and every solver runs on it: only ``forward`` is written down, its adjoint follows by transposition.
"""

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt

import lrjax as lr
from lrjax.testing import check_adjoint

# %%
# ``forward`` is given the factors, not the matrix. The transform of :math:`L R^\top` is the product of the transforms
# of :math:`L` and :math:`R`, so the matrix is never formed.


@lr.pytree
class CosineCoefficients(lr.operators.Operator):
    """Coefficients ``(rows[i], cols[i])`` of the two-dimensional cosine transform."""

    rows: jax.Array
    cols: jax.Array
    matrix_shape: tuple[int, int] = jax.tree.static()

    @property
    def shape(self):
        return self.matrix_shape

    @property
    def num_measurements(self):
        return self.rows.shape[0]

    @jax.jit  # a solve is compiled as a whole; this is for the calls from outside one
    def forward(self, left, right):
        left, right = (jax.scipy.fft.dct(factor, axis=0, norm="ortho") for factor in (left, right))
        return jnp.sum(left[self.rows] * right[self.cols], axis=1)


# %%
# ``check_adjoint`` compares the five methods of an operator at random arguments, to rounding error. Then three solvers
# of quite different make take it as it is.


def solve_with_all(num_steps=200):
    """One solution per solver."""
    key_places, key_truth, key_check, key_solve = jax.random.split(jax.random.key(0), 4)
    places = jax.random.choice(key_places, 60 * 50, (1500,), replace=False)
    operator = CosineCoefficients(rows=places // 50, cols=places % 50, matrix_shape=(60, 50))
    check_adjoint(operator, key_check)

    truth = lr.synthetic.low_rank(key_truth, (60, 50), 3, condition_number=2.0)
    problem = lr.Problem(operator, operator.forward(truth.left, truth.right))
    solvers = [
        lr.AlternatingMinimization(max_rank=3),
        lr.ScaledGradientDescent(max_rank=3),
        lr.GradientDescent(max_rank=3, start="spectral"),
    ]
    return {
        type(solver).__name__: lr.solve(problem, solver, key_solve, num_steps=num_steps, truth=truth)
        for solver in solvers
    }


def last_errors(solutions):
    """The last relative error of each solution."""
    return {name: float(solution.trace["relative_error"][-1]) for name, solution in solutions.items()}


def run(num_steps=200):
    """The largest relative error over the solvers."""
    return max(last_errors(solve_with_all(num_steps)).values())


# %%
# Half of the coefficients, and the matrix is recovered by all three.


def draw(solutions):
    """Relative error against the step, for each solver."""
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.0))
        for name, solution in solutions.items():
            lr.plot.convergence(solution, label=name, ax=ax)
        ax.set_title("Rank 3 from half of the cosine coefficients")


if __name__ == "__main__":  # as a script and in the gallery
    solutions = solve_with_all()
    draw(solutions)
    print(f"largest relative error of the three solvers: {max(last_errors(solutions).values()):.1e}")
    if matplotlib.get_backend() != "agg":
        plt.show()
