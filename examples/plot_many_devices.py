"""
One sweep on every device
=========================

:func:`lrjax.sweep` spreads its trials over all devices of the process, without a word of sharding in the trial. Each
trial has a key of its own, whatever device it lands on, so one device and many give the same answers, bit for bit.
"""

import contextlib
import os

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

NOISES = np.logspace(-4, -1, 7)
NUM_TRIALS = 16

# %%
# On a machine without accelerators, CPU devices can be faked; that has to happen before JAX is first used. In a process
# where it has been, as in the gallery, this does nothing, and the sweep runs on the devices there are.


def fake_devices(count):
    """Asks for CPU devices, if JAX has not started; more threads than devices, lest they wait for each other."""
    os.environ.setdefault("PJRT_NPROC", str(8 * count))
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


# %%
# A trial is an ordinary function of a key and a point of the grid.


def trial(key, noise):
    """The relative error from noisy measurements."""
    key_problem, key_solve = jax.random.split(key)
    problem, truth = lr.synthetic.matrix_sensing(key_problem, shape=(20, 20), rank=2, num_measurements=300, noise=noise)
    solution = lr.solve(problem, lr.ScaledGradientDescent(max_rank=2), key_solve, num_steps=60, record_every=60)
    return {"error": lr.metrics.relative_error(solution.factors, truth)}


def compare(num_trials=NUM_TRIALS):
    """The sweep on one device and on all of them."""
    settings = {"grid": {"noise": NOISES}, "num_trials": num_trials, "batch_size": 4, "progress": False}
    one = lr.sweep(trial, jax.random.key(0), devices=jax.local_devices()[:1], **settings)
    return one, lr.sweep(trial, jax.random.key(0), devices=jax.local_devices(), **settings)


def difference(one, every):
    """The largest difference between the two."""
    return float(abs(one["error"] - every["error"]).max())


def run(num_trials=NUM_TRIALS):
    """The largest difference between the answers of one device and of all."""
    return difference(*compare(num_trials))


# %%
# The result is a table with labels. Here the error is in proportion to the noise.


def draw(one, every):
    """Error against noise: all trials, on one device and on all."""
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.0))
        low, middle, high = (np.asarray(every["error"].quantile(q, "trial")) for q in (0.1, 0.5, 0.9))
        count = jax.local_device_count()
        (line,) = ax.plot(NOISES, middle, label=f"{count} device{'s' if count > 1 else ''}: median, 10 to 90 %")
        ax.fill_between(NOISES, low, high, alpha=0.18, color=line.get_color(), linewidth=0)
        trials = np.asarray(one["error"])
        noises = np.broadcast_to(NOISES[:, None], trials.shape)
        ax.plot(noises.ravel(), trials.ravel(), "o", markersize=3, alpha=0.5, label="one device: all trials")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("noise, relative to the measurements")
        ax.set_ylabel("relative error")
        ax.set_title("Rank 2, 20 x 20, 300 measurements")
        ax.legend()


if __name__ == "__main__":  # as a script and in the gallery
    fake_devices(2)
    one, every = compare()
    draw(one, every)
    print(f"{jax.local_device_count()} devices; largest difference to one device: {difference(one, every):.1g}")
    if matplotlib.get_backend() != "agg":
        plt.show()
