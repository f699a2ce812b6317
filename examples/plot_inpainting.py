"""
Inpainting a photograph with dead pixels
========================================

Two pixels in five of a photograph are known, and a tenth of those are stuck at black or white. A low-rank fit with the
squared loss smears the stuck pixels over their rows and columns. The Huber loss bounds what one pixel can do: the
picture is both sharper and cleaner.
"""

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

# %%
# The pixels are entries of a matrix; ``SampledEntries`` stores the known ones only. Grey levels are centred,
# because the start of a robust solve looks at the signs of the data.


def damage(picture, seed=0):
    """Rows, columns and values of the known pixels."""
    rng = np.random.default_rng(seed)
    rows, cols = np.nonzero(rng.random(picture.shape) < 0.4)
    values = picture[rows, cols]
    stuck = rng.random(values.shape) < 0.1
    values[stuck] = rng.integers(0, 2, stuck.sum())
    return rows, cols, values


# %%
# Each loss gets the rank and the ridge that suit it, the best of a small grid for the squared one. More columns than
# five would only give it more room for the stuck pixels; the Huber loss can afford twenty.


def inpaint(rows, cols, values, shape, loss, rank, ridge, num_steps):
    """The whole picture, by alternating minimization with a ridge on both factors."""
    level = np.median(values)
    operator, y = lr.operators.SampledEntries.build(rows, cols, (values - level).astype(np.float32), shape)
    solver = lr.AlternatingMinimization(max_rank=rank, ridge=ridge, orthonormalize=False)
    solution = lr.solve(lr.Problem(operator, y, loss=loss), solver, jax.random.key(0), num_steps=num_steps)
    return np.clip(np.asarray(solution.factors.dense()) + level, 0, 1)


def psnr(picture, truth):
    """Peak signal-to-noise ratio in decibels; the peak is 1."""
    return float(-10 * np.log10(np.mean((picture - truth) ** 2)))


def compare(num_steps=20, size=256):
    """The photograph, its known pixels (NaN elsewhere), and the two reconstructions."""
    truth, _ = lr.datasets.photograph(size)
    rows, cols, values = damage(truth)
    known = np.full(truth.shape, np.nan)
    known[rows, cols] = values
    squared = inpaint(rows, cols, values, truth.shape, lr.losses.Squared(), 5, 0.3, num_steps)
    huber = inpaint(rows, cols, values, truth.shape, lr.losses.Huber(0.02), 20, 0.1, num_steps)
    return truth, known, squared, huber


def run(num_steps=20):
    """How many decibels of PSNR the Huber loss gains over the squared loss."""
    truth, _, squared, huber = compare(num_steps)
    return psnr(huber, truth) - psnr(squared, truth)


# %%
# Missing pixels are drawn in pale orange.


def draw(truth, known, squared, huber):
    """The four pictures, with the quality of the last two."""
    titles = [
        "photograph",
        "what is known",
        f"squared loss: {psnr(squared, truth):.1f} dB",
        f"Huber loss: {psnr(huber, truth):.1f} dB",
    ]
    with lr.plot.style():
        _, axes = plt.subplots(2, 2, figsize=(7.4, 7.8))
        for ax, picture, title in zip(axes.flat, (truth, known, squared, huber), titles, strict=True):
            lr.plot.image(picture, title=title, limits=(0, 1), ax=ax)


if __name__ == "__main__":  # as a script and in the gallery
    truth, known, squared, huber = compare()
    draw(truth, known, squared, huber)
    print(f"gain of the Huber loss: {psnr(huber, truth) - psnr(squared, truth):.1f} dB")
    if matplotlib.get_backend() != "agg":
        plt.show()
