"""Every public call that factors a traced matrix returns, whatever is in it.

LAPACK's single-precision SVD spins for ever on an infinity in the first row or column: only a kill ends it, so these
calls run in a process of their own with a time limit. `lstsq`, `low_rank`, `rsvd` and the private sketches have theirs
in `test_least_squares.py`.
"""

import subprocess
import sys

import pytest

PROLOGUE = """
import jax, jax.numpy as jnp, numpy as np
import lrjax as lr
from lrjax import initial, operators, status

key = jax.random.key(0)
operator = operators.Identity(matrix_shape=(9, 6))
bad = jax.random.normal(key, (54,)).at[0].set(jnp.inf)
both = jnp.stack([bad, jnp.ones(54) + jnp.arange(54.0) % 5])

def ended(solve):
    codes = np.asarray(jax.jit(jax.vmap(solve))(both))
    assert codes[0] in (status.INVALID, status.NONFINITE), codes
    assert codes[1] in (status.RUNNING, status.CONVERGED), codes
"""

CALLS = {
    "solvers": """
loss = lr.losses.Absolute()
for solver, given in [
    (lr.ScaledGradientDescent(max_rank=2), lr.losses.Squared()),
    (lr.GaussNewton(max_rank=2), lr.losses.Squared()),
    (lr.GaussNewton(max_rank=2), loss),
    (lr.IRLS(max_rank=2), lr.losses.Squared()),
    (lr.SoftImpute(max_rank=2), lr.losses.Squared()),
    (lr.SingularValueProjection(max_rank=2), lr.losses.Squared()),
    (lr.GradientDescent(max_rank=2, start="spectral"), lr.losses.Squared()),
    (lr.AlternatingMinimization(max_rank=2, start="spectral"), lr.losses.Squared()),
    (lr.SubgradientMethod(max_rank=2), loss),
    (lr.ScaledSubgradient(max_rank=2), loss),
    (lr.AlternatingProjections(max_rank=2), loss),
]:
    ended(lambda y: lr.solve(lr.Problem(operator, y, None, given), solver, key, num_steps=2).status)
""",
    "factors, metrics and starts": """
def all_of(y):
    x = y.reshape(9, 6)
    factors, other = lr.Factors(x[:, :2], x[:6, 2:4]), jnp.ones((9, 2)).at[0, 0].set(2)
    problem = lr.Problem(operator, y)
    return (
        factors.svd(), factors.truncate(1), factors.balanced(), factors.norm(),
        lr.metrics.relative_error(factors, lr.Factors(other, other[:6])),
        lr.metrics.subspace_distance(x[:, :2], other),
        initial.adjoint_svd(problem, y, 2, key), initial.spectral(problem, 2, key),
        initial.sign_spectral(problem, 2, key, symmetric=False),
        lr.select_rank(problem, key, max_rank=3, method="gap").rank,
    )
jax.block_until_ready(jax.jit(jax.vmap(all_of))(both))
norm = lambda y: lr.Factors(y[:18].reshape(9, 2), y[18:30].reshape(6, 2)).norm()
jax.block_until_ready(jax.jit(jax.vmap(jax.grad(norm)))(both))
""",
    "neighbours": """
gains, _ = lr.synthetic.gain_calibration(key, shape=(6, 3), num_blocks=3)
for method in ("lstsq", "spectral"):
    jax.block_until_ready(jax.jit(lambda y: lr.calibrate(gains.operator, y, method=method))(gains.y.at[0].set(jnp.inf)))
kronecker = operators.Kronecker.from_matrices([jnp.ones((3, 4)) + jnp.eye(3, 4), jnp.ones((3, 4)) - jnp.eye(3, 4)])
jax.block_until_ready(jax.jit(lambda y: lr.sparse_bayesian(kronecker, y, num_steps=3))(jnp.ones(9).at[0].set(jnp.inf)))
descend = lambda x: lr.rank_projected_descent(lambda m, _: jnp.sum(m**2), x, rank=2, step_size=0.1, num_steps=2)
jax.block_until_ready(jax.jit(descend)(bad.reshape(9, 6)))
""",
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_not_finite_comes_back(name):
    code = PROLOGUE + CALLS[name] + "\nprint('returned')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert "returned" in done.stdout, done.stderr[-2000:]
