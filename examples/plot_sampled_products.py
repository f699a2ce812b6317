"""
Training on sampled products
============================

The gradient of a dense layer is a product over the samples of a batch, and storing their activations is what fills the
memory. :func:`lrjax.sketching.sampled_matmul` estimates that product from a fifth of the samples without bias. Here a
small network learns with such gradients, nearly as well as with exact ones. With the heaviest samples alone it does
not: their error is not random, it has a direction. The labels have skewed noise of mean zero, and the heaviest samples
are the ones far off above.

What this does not show: that keeping the heaviest samples and drawing the rest ("wta") trains better than drawing all
of them ("crs"). The variance of its gradients is smaller by a quarter, but the curves differ by no more than seeds do.
Nor a saving of memory or time: the forward pass here keeps everything. To draw samples before the backward pass, their
weights have to be known beforehand (Liu et al., arXiv 2305.15265, take those of the last visit).
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn

import lrjax as lr

BATCH, KEPT, INPUTS, WIDTH = 256, 48, 8, 64
RECORD = 20

# %%
# A dense layer whose backward pass samples. The forward product and the gradient of the input are exact, only
# ``x.T @ slope`` is estimated. The key is an argument like the others, without a derivative; so is the number of the
# method, so that all of them share one compiled program.


@jax.custom_vjp
def dense(x, kernel, key, method):
    """`x @ kernel`."""
    return x @ kernel


def dense_forward(x, kernel, key, method):
    """The product, and what the backward pass needs."""
    return x @ kernel, (x, kernel, key, method)


def heaviest(x, slope, key):
    """`x.T @ slope` without the samples of small norms."""
    _, top = jax.lax.top_k(jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(slope, axis=1), KEPT)
    return x[top].T @ slope[top]


def sampled(method):
    """`x.T @ slope` by `sampled_matmul`."""
    return lambda x, slope, key: lr.sketching.sampled_matmul(x.T, slope, KEPT, key, method=method)


METHODS = {
    "exact": lambda x, slope, key: x.T @ slope,
    "wta": sampled("wta"),
    "crs": sampled("crs"),
    "heaviest only": heaviest,
}


def dense_backward(saved, slope):
    """Gradients of the input, exactly, and of the kernel, by the method."""
    x, kernel, key, method = saved
    return slope @ kernel.T, jax.lax.switch(method, list(METHODS.values()), x, slope, key), None, None


dense.defvjp(dense_forward, dense_backward)


class SampledDense(nn.Module):
    """A dense layer with bias and sampled gradients, of the random stream "sample"."""

    features: int

    @nn.compact
    def __call__(self, x, method):
        """The layer's output."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return dense(x, kernel, self.make_rng("sample"), method) + bias


class Network(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x, method):
        """One number for each sample."""
        for _ in range(2):
            x = nn.relu(SampledDense(WIDTH)(x, method))
        return SampledDense(1)(x, method)[:, 0]


# %%
# A random network with one hidden layer sets the task. The noise on its outputs is log-normal, shifted to mean zero
# and scaled to deviation one.


def teacher(x):
    """The function to learn, of deviation about one."""
    first = jax.random.normal(jax.random.key(10), (INPUTS, 16)) / np.sqrt(INPUTS)
    return jnp.tanh(x @ first) @ jax.random.normal(jax.random.key(11), (16,)) / 2


def batch(key):
    """Inputs and noisy outputs."""
    key_x, key_noise = jax.random.split(key)
    x = jax.random.normal(key_x, (BATCH, INPUTS))
    noise = jnp.exp(jax.random.normal(key_noise, (BATCH,))) - np.exp(0.5)
    return x, teacher(x) + noise / np.sqrt((np.e - 1) * np.e)


@functools.partial(jax.jit, static_argnames="num_steps")
def train(key, method, num_steps):
    """Mean squared distance to the teacher on fresh inputs, after every `RECORD` steps."""
    network, test = Network(), jax.random.normal(jax.random.key(12), (1000, INPUTS))
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, num_steps))
    parameters = network.init({"params": key, "sample": key}, test, method)

    def loss(parameters, key):
        key_batch, key_sample = jax.random.split(key)
        x, y = batch(key_batch)
        return jnp.mean((network.apply(parameters, x, method, rngs={"sample": key_sample}) - y) ** 2)

    def step(carry, key):
        parameters, memory = carry
        updates, memory = optimizer.update(jax.grad(loss)(parameters, key), memory)
        return (optax.apply_updates(parameters, updates), memory), None

    def error(parameters):
        return jnp.mean((network.apply(parameters, test, method, rngs={"sample": key}) - teacher(test)) ** 2)

    def block(carry, keys):
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, error(carry[0])

    keys = jax.random.split(key, (num_steps // RECORD, RECORD))
    return jax.lax.scan(block, (parameters, optimizer.init(parameters)), keys)[1]


def compare(num_steps=500, num_seeds=3):
    """Test errors `(num_seeds, records)` by method; all methods see the same starts and batches."""
    keys = jax.random.split(jax.random.key(0), num_seeds)
    each = jax.jit(jax.vmap(train, in_axes=(0, None, None)), static_argnums=2)
    return {name: np.asarray(each(keys, jnp.int32(i), num_steps)) for i, name in enumerate(METHODS)}


def last(errors):
    """The last error of each method, averaged over seeds."""
    return {method: float(error[:, -1].mean()) for method, error in errors.items()}


def run(num_steps=500):
    """How many times larger the error is with the heaviest samples only than with the unbiased "wta"."""
    end = last(compare(num_steps))
    return end["heaviest only"] / end["wta"]


# %%
# Averages over the seeds. The unbiased estimates pay for their noise, and less of it as the steps get smaller; the bias
# stays.


def draw(errors):
    """Test error against the step."""
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.0))
        for method, error in errors.items():
            steps = RECORD * np.arange(1, error.shape[1] + 1)
            ax.plot(steps, error.mean(axis=0), label=method, color="#22272E" if method == "exact" else None)
        ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.set_ylabel("squared distance to the teacher")
        ax.set_title(f"Gradients from {KEPT} of {BATCH} samples")
        ax.legend()


if __name__ == "__main__":  # as a script and in the gallery
    errors = compare()
    draw(errors)
    end = last(errors)
    ratio = end["heaviest only"] / end["wta"]
    print(f"with the heaviest samples alone the last error is {ratio:.1f} times that of the unbiased estimate")
    if matplotlib.get_backend() != "agg":
        plt.show()
