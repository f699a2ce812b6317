"""
A matrix with smooth factors
============================

Values at scattered places, not on a grid: each row has a coordinate, each column another, and no row has more than
fifteen of its ninety entries. What ties neighbours together is that the factors are smooth functions of the
coordinates. As Gaussian processes with a Matern kernel they are the path of a two-dimensional state, so that a filter
and a smoother find all their values, and how sure they are, in one pass each way. Passing messages between the two
factors completes the matrix.

What this does not show: more than one column, a core tensor, or many modes. And the bands are too wide here: under the
prior of the noise level, left at the usual Gamma(1, 1), the estimated deviation of the noise cannot fall below
``sqrt(2 / 675)``, where there is none; scale the values to deviation one for better. The method is that of Fang et al.
(FunBaT, arXiv 2311.04829). Coordinates without data are in the path like all others, as steps without a measurement.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

LENGTH_SCALE, VARIANCE = 0.1, 0.5
DAMPING, NOISE_DAMPING = 0.1, 0.2  # the share of an old message that is kept
GRIDS, SIDE = 6, 15


def functions(x, y):
    """The true factors."""
    return np.sin(2 * np.pi * x) ** 2 * np.cos(2 * np.pi * x), np.exp(-2 * y) * np.sin(1.5 * np.pi * y)


def data(seed=0):
    """Sorted coordinates of both modes `(2, n)`, places `(2, m)` of the values, those, and which are for training."""
    rng = np.random.default_rng(seed)
    grids = rng.random((GRIDS, 2, SIDE))
    coordinates = np.sort(grids.swapaxes(0, 1).reshape(2, -1), axis=1)
    pairs = np.concatenate([np.stack(np.meshgrid(*grid, indexing="ij")).reshape(2, -1) for grid in grids], axis=1)
    places = np.stack([np.searchsorted(coordinates[k], pairs[k]) for k in (0, 1)])
    return coordinates, places, np.prod(functions(*pairs), axis=0), rng.random(pairs.shape[1]) < 0.5


# %%
# The process as a state: its value and its slope. Over a gap the state is multiplied by a matrix known in closed form.


def transitions(coordinates):
    """Matrices `(n, 2, 2)` from each coordinate's predecessor, the first from itself; and the stationary covariance."""
    rate = jnp.sqrt(3.0) / LENGTH_SCALE
    gap = jnp.diff(coordinates, prepend=coordinates[:1])
    rows = [[1 + rate * gap, gap], [-(rate**2) * gap, 1 - rate * gap]]
    return jnp.moveaxis(jnp.exp(-rate * gap) * jnp.array(rows), -1, 0), jnp.diag(jnp.array([1, rate**2]) * VARIANCE)


def smooth(coordinates, target, precision):
    """Mean and variance of the process at each coordinate, measured as `target` with noise of variance `1 / precision`.

    A Kalman filter forwards and a Rauch-Tung-Striebel smoother backwards; a precision of zero is no measurement.
    """
    moves, stationary = transitions(coordinates)

    def forward(state, step):
        mean, cov = state
        move, value, weight = step
        mean = move @ mean
        cov = stationary + move @ (cov - stationary) @ move.T
        gain = cov[:, 0] * weight / (1 + weight * cov[0, 0])
        new = mean + gain * (value - mean[0]), cov - jnp.outer(gain, cov[0])
        return new, (mean, cov, *new)

    def backward(state, step):
        mean, cov = state
        move, ahead_mean, ahead_cov, here_mean, here_cov = step
        gain = jnp.linalg.solve(ahead_cov, move @ here_cov).T
        mean = here_mean + gain @ (mean - ahead_mean)
        cov = here_cov + gain @ (cov - ahead_cov) @ gain.T
        return (mean, cov), (mean[0], cov[0, 0])

    start = (0 * stationary[0], stationary)
    last, (ahead_mean, ahead_cov, mean, cov) = jax.lax.scan(forward, start, (moves, target, precision))
    steps = (moves[1:], ahead_mean[1:], ahead_cov[1:], mean[:-1], cov[:-1])
    _, (smoothed, variance) = jax.lax.scan(backward, last, steps, reverse=True)
    return jnp.append(smoothed, last[0][0]), jnp.append(variance, last[1][0, 0])


# %%
# Each training value sends a message to both factors: given the other factor, it is a measurement of this one. Messages
# to one coordinate add up, the smoother answers, and the noise level follows from the misfit.


@functools.partial(jax.jit, static_argnames="num_epochs")
def fit(coordinates, places, values, training, key, num_epochs=100):
    """Means and variances `(2, n)` of the factors, and the root mean square errors on training and test values."""
    n, weight = coordinates.shape[1], training.astype(values.dtype)
    total = weight.sum()

    def epoch(state, _):
        means, variances, messages, misfit = state
        noise_precision = (1 + total / 2) / (1 + (weight * misfit).sum())
        for k in (0, 1):
            other = places[1 - k]
            mean, square = means[1 - k][other], (means[1 - k] ** 2 + variances[1 - k])[other]
            new = noise_precision * weight * jnp.stack([square, values * mean])
            messages = messages.at[k].set(DAMPING * messages[k] + (1 - DAMPING) * new)
            precision, linear, count = (
                jax.ops.segment_sum(x, places[k], num_segments=n) for x in (*messages[k], weight)
            )
            precision = jnp.where(count > 0, precision + 1, 0)  # the one is the prior of a single value
            found = smooth(coordinates[k], linear / jnp.where(count > 0, precision, 1), precision)
            means, variances = (old.at[k].set(now) for old, now in zip((means, variances), found, strict=True))
        one, two = (means[k][places[k]] for k in (0, 1))
        squares = (one**2 + variances[0][places[0]]) * (two**2 + variances[1][places[1]])
        now = values**2 / 2 - values * one * two + squares / 2
        misfit = NOISE_DAMPING * misfit + (1 - NOISE_DAMPING) * now
        gap = (one * two - values) ** 2
        errors = jnp.sqrt(jnp.stack([(weight * gap).sum() / total, ((1 - weight) * gap).sum() / (1 - weight).sum()]))
        return (means, variances, messages, misfit), errors

    means = jax.random.uniform(key, coordinates.shape, values.dtype)
    messages = jnp.full((2, 2, len(values)), 1e-3, values.dtype) * weight
    start = (means, jnp.ones_like(means), messages, values**2 / 2)
    (means, variances, _, _), errors = jax.lax.scan(epoch, start, None, length=num_epochs)
    return means, variances, errors


def compare(num_epochs=100, seed=0):
    """The coordinates, the means and variances of the factors, and the errors after each epoch."""
    with jax.enable_x64(True):  # differences of covariances over tiny gaps
        coordinates, places, values, training = data(seed)
        found = fit(coordinates, places, values, training, jax.random.key(seed), num_epochs)
    return coordinates, *map(np.asarray, found)


def run(num_epochs=100):
    """Root mean square error on the test values, whose deviation is about 0.08."""
    return float(compare(num_epochs)[-1][-1, 1])


# %%
# The product alone is determined, so the true functions are drawn with the scale that fits best.


def draw(coordinates, means, variances, errors):
    """Both factors with bands of three standard deviations, and the truth."""
    with lr.plot.style():
        _, axes = plt.subplots(1, 2, figsize=(9.6, 3.8))
        names = ("first coordinate", "second coordinate")
        for k, ax in enumerate(axes):
            truth = functions(*coordinates)[k]
            scale = truth @ means[k] / (truth @ truth)
            band = 3 * np.sqrt(variances[k])
            ax.fill_between(coordinates[k], means[k] - band, means[k] + band, alpha=0.25, linewidth=0)
            ax.plot(coordinates[k], means[k], label="estimate, 3 deviations")
            ax.plot(
                coordinates[k], scale * truth, color="#22272E", linestyle="--", linewidth=1.2, label="truth, scaled"
            )
            ax.set_xlabel(names[k])
            ax.set_ylabel("factor")
            ax.set_title(f"{names[k].split()[0].capitalize()} factor")
        axes[0].legend()


if __name__ == "__main__":  # as a script and in the gallery
    found = compare()
    draw(*found)
    print(f"test error {found[-1][-1, 1]:.4f}, training error {found[-1][-1, 0]:.4f}")
    if matplotlib.get_backend() != "agg":
        plt.show()
