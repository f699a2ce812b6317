"""
Least squares by sketches: which digits are kept
================================================

A 20,000 x 50 least-squares problem, its condition number from one to a hundred million. Solving the sketched problem is
quick, and off by a share of the residual. The same sketch as a preconditioner gives what a QR or an SVD would give.
Normal equations do as long as the problem is well-conditioned, and say when it is not.
"""

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

N, D = 20_000, 50
CONDITIONS = 10.0 ** np.arange(0, 9, 2)
METHODS = ("sketch_and_solve", "normal_equations", "fossils", "auto")

# %%
# The residual of the data is orthogonal to the columns, so the planted solution is the exact one.


def problem(key, condition):
    """Matrix, right-hand side and solution."""
    key_u, key_v, key_x, key_r = jax.random.split(key, 4)
    u = jnp.linalg.qr(jax.random.normal(key_u, (N, D)))[0]
    v = jnp.linalg.qr(jax.random.normal(key_v, (D, D)))[0]
    a = (u * condition ** -jnp.linspace(0, 1, D)) @ v.T
    x = jax.random.normal(key_x, (D,))
    r = jax.random.normal(key_r, (N,))
    r = r - u @ (u.T @ r)
    return a, a @ x + 1e-4 * (r - u @ (u.T @ r)) / jnp.sqrt(N), x


# %%
# "auto" looks at the matrix and chooses; :func:`lrjax.lstsq` lists the others. They are held against NumPy's SVD.


def compare(conditions=CONDITIONS, methods=METHODS):
    """Relative errors of the solution, by method, in float64; NaN where the method itself says that it failed."""
    errors = {name: [] for name in (*methods, "NumPy")}
    with jax.enable_x64(True):
        for condition in conditions:
            a, b, x = problem(jax.random.key(1), condition)
            distance = lambda found, x=x: float(np.linalg.norm(found - x) / np.linalg.norm(x))
            errors["NumPy"].append(distance(np.linalg.lstsq(np.asarray(a), np.asarray(b), rcond=None)[0]))
            for method in methods:
                result = lr.lstsq(a, b, jax.random.key(2), method=method)
                errors[method].append(distance(result.x) if bool(result.converged) else np.nan)
    return {name: np.array(values) for name, values in errors.items()}


def worst_ratio(errors):
    """The largest ratio of the error of "auto" to that of NumPy."""
    return float(np.max(errors["auto"] / errors["NumPy"]))


def run(conditions=CONDITIONS):
    """The largest ratio of the error of "auto" to that of NumPy."""
    return worst_ratio(compare(conditions, ("auto",)))


# %%
# A line that ends is a method that has given up with a status, rather than with a wrong answer.


def draw(errors, conditions=CONDITIONS):
    """Error of the solution against the condition number."""
    marks = dict(zip(errors, "osD^x", strict=False))
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.2))
        for name, values in errors.items():
            label = "NumPy (SVD)" if name == "NumPy" else name
            dashed = {"linestyle": "--", "color": "#22272E"} if name == "NumPy" else {}
            ax.plot(conditions, values, marker=marks[name], label=label, **dashed)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("condition number")
        ax.set_ylabel("relative error of the solution")
        ax.set_title(f"Least squares, {N:,} x {D}, float64")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


if __name__ == "__main__":  # as a script and in the gallery
    errors = compare()
    draw(errors)
    print(f"the error of 'auto' is at most {worst_ratio(errors):.2f} times that of NumPy")
    if matplotlib.get_backend() != "agg":
        plt.show()
