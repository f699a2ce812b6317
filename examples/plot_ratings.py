"""
Ratings: how much ridge?
========================

A hundred thousand ratings of films, a tenth of them held out. Offsets of people and films alone predict most of what
can be predicted. Ten columns on top improve on that, but only with a ridge: with hardly any they learn the noise
by heart, and predict worse than no columns at all.
"""

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

RANK = 10
RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0)

# %%
# MovieLens-100K is read out of an installed package, see :func:`lrjax.datasets.movielens_100k`. Where that is missing,
# an elevation map takes its place: heights are divided by their deviation, to have the scale of ratings.


def ratings():
    """Rows, columns, values, shape and name of an incomplete table."""
    try:
        table = lr.datasets.movielens_100k()
        values = table.values
    except FileNotFoundError:
        table = lr.datasets.elevation_ratings(0.2)
        values = table.values / table.values.std()
    return table.rows, table.cols, values.astype(np.float32), table.shape, table.name


# %%
# :func:`lrjax.complete` does the rest. The ridge is a number like others, so the loop compiles once. The split
# follows from the key and is the same for all.


def compare(num_steps=12, ridges=RIDGES):
    """A `Completion` for each ridge, and the name of the table."""
    rows, cols, values, shape, name = ratings()
    settings = {"rank": RANK, "biases": True, "holdout": 0.1, "num_steps": num_steps, "key": jax.random.key(0)}
    return {ridge: lr.complete(rows, cols, values, shape, ridge=ridge, **settings) for ridge in ridges}, name


def gain(completions):
    """How much smaller the best held-out error is than that of the offsets alone, as a fraction."""
    baseline = float(next(iter(completions.values())).baseline_rmse)
    return 1 - min(float(done.holdout_rmse) for done in completions.values()) / baseline


def run(num_steps=12):
    """The share of the held-out error that the columns take away, at the best ridge."""
    return gain(compare(num_steps)[0])


# %%
# The error on the ratings used falls as the ridge gets smaller, and says nothing. That on the held-out ones has a
# minimum.


def draw(completions, name):
    """Held-out and training error against the ridge."""
    ridges = list(completions)
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.0))
        for label, field in (("held out", "holdout_rmse"), ("used for the fit", "train_rmse")):
            ax.plot(ridges, [float(getattr(done, field)) for done in completions.values()], marker="o", label=label)
        baseline = float(completions[ridges[0]].baseline_rmse)
        ax.axhline(baseline, color="#22272E", linestyle="--", linewidth=1.2, label="held out, offsets only")
        ax.set_xscale("log")
        ax.set_xlabel("ridge")
        ax.set_ylabel("root mean square error")
        ax.set_title(f"{name}, rank {RANK}")
        ax.legend()


if __name__ == "__main__":  # as a script and in the gallery
    completions, name = compare()
    draw(completions, name)
    print(f"{name}: the columns take away {100 * gain(completions):.1f} % of the held-out error")
    if matplotlib.get_backend() != "agg":
        plt.show()
