"""
A photograph through sensors nobody calibrated
==============================================

A thousand sensors each look twelve times at a photograph of 64 x 64 pixels, through random patterns. The gain of
each sensor is its own and unknown, anywhere from half to one and a half. Ignoring that costs the picture; descending
in gains and pixels at once finds both. The patterns are fast transforms of random signs, so no matrix is ever formed:
stored, they would fill 200 MB in single precision.
"""

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

SENSORS, LOOKS, SIZE = 1024, 12, 64

# %%
# Gains times patterns times pixels: a matrix of rank one, gains on the left, the picture on the right.


def measure(key, picture, noise=1e-2):
    """The problem, and the gains; noise relative to the root mean square of the measurements."""
    key_operator, key_gains, key_noise = jax.random.split(key, 3)
    operator = lr.operators.StructuredGainMeasurements.create(key_operator, (SENSORS, picture.size), LOOKS)
    gains = jax.random.uniform(key_gains, (SENSORS, 1), minval=0.5, maxval=1.5)
    gains = gains / gains.mean()
    y = operator.forward(gains, jnp.asarray(picture, gains.dtype).reshape(-1, 1))
    y = y + noise * jnp.sqrt(jnp.mean(y**2)) * jax.random.normal(key_noise, y.shape)
    return lr.Problem(operator, y), gains[:, 0]


# %%
# With all gains one the problem is linear in the picture: least squares, by products only.


def ignore_gains(problem, num_steps):
    """The picture from conjugate gradients with the gains taken for one."""
    op, ones = problem.operator, jnp.ones((SENSORS, 1))
    normal = lambda x: op.adjoint_rmatmul(op.forward(ones, x), ones)
    return jax.scipy.sparse.linalg.cg(normal, op.adjoint_rmatmul(problem.y, ones), maxiter=num_steps)[0]


def recover(num_steps=60):
    """The photograph, both reconstructions, and true and found gains."""
    truth, _ = lr.datasets.photograph(SIZE)
    problem, gains = measure(jax.random.key(0), truth)
    ignorant = jax.jit(ignore_gains, static_argnames="num_steps")(problem, num_steps=num_steps)
    solver = lr.BlindGainDescent(radius=0.6)
    solution = lr.solve(problem, solver, jax.random.key(1), num_steps=num_steps, record_every=num_steps).check()
    found = solution.factors
    return truth, np.reshape(ignorant, truth.shape), np.reshape(found.right, truth.shape), gains, found.left[:, 0]


def psnr(picture, truth):
    """Peak signal-to-noise ratio in decibels; the peak is 1."""
    return float(-10 * np.log10(np.mean((picture - truth) ** 2)))


def draw(truth, ignorant, calibrated, gains, found):
    """The photograph, both reconstructions with their quality, and the gains."""
    pictures = {
        "photograph": truth,
        f"gains ignored: {psnr(ignorant, truth):.1f} dB": ignorant,
        f"gains found: {psnr(calibrated, truth):.1f} dB": calibrated,
    }
    with lr.plot.style():
        _, axes = plt.subplots(2, 2, figsize=(7.4, 7.8))
        for ax, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
            lr.plot.image(picture, title=title, limits=(0, 1), ax=ax)
        axes[1, 1].plot([0.4, 1.6], [0.4, 1.6], color="0.7", lw=1)
        axes[1, 1].plot(gains, found, ".", ms=3)
        axes[1, 1].set(xlabel="true gain", ylabel="found gain", aspect="equal")


def run(num_steps=60):
    """Decibels that finding the gains wins over ignoring them."""
    truth, ignorant, calibrated, _, _ = recover(num_steps)
    return psnr(calibrated, truth) - psnr(ignorant, truth)


if __name__ == "__main__":  # as a script and in the gallery
    results = recover()
    draw(*results)
    print(f"finding the gains wins {psnr(results[2], results[0]) - psnr(results[1], results[0]):.1f} dB")
    if matplotlib.get_backend() != "agg":
        plt.show()
