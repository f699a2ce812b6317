"""
Training on sampled products
============================

The gradient of a dense layer is a product over the samples of a batch, and storing their activations is what fills the
memory. :func:`lrjax.sketching.sampled_matmul` estimates that product from a fifth of the samples without bias. Here a
small network learns with such gradients; keeping the heaviest samples and drawing the rest ("wta") beats drawing all of
them ("crs"). Keeping only the heaviest has the least error in each gradient and trains worst: its error is not random,
it has a direction. The labels have skewed noise of mean zero, and the heaviest samples are the ones far off above.

What this does not show: a saving of memory or time. The forward pass here keeps everything; to draw samples before the
backward pass, their weights have to be known beforehand (Liu et al., arXiv 2305.15265, take those of the last visit).
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
METHODS = ("exact", "wta", "crs", "heaviest only")
RECORD = 20

# %%
# A dense layer whose backward pass samples. The forward product and the gradient of the input are exact, only
# ``x.T @ slope`` is estimated. The key is an argument like the others, without a derivative.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def dense(x, kernel, key, method):
    """`x @ kernel`."""
    return x @ kernel


def dense_forward(x, kernel, key, method):
    """The product, and what the backward pass needs."""
    return x @ kernel, (x, kernel, key)


def dense_backward(method, saved, slope):
    """Gradients of the input, exactly, and of the kernel, by the method."""
    x, kernel, key = saved
    if method == "exact":
        grad = x.T @ slope
    elif method == "heaviest only":
        norms = jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(slope, axis=1)
        _, top = jax.lax.top_k(norms, KEPT)
        grad = x[top].T @ slope[top]
    else:
        grad = lr.sketching.sampled_matmul(x.T, slope, KEPT, key, method=method)
    return slope @ kernel.T, grad, None


dense.defvjp(dense_forward, dense_backward)


class SampledDense(nn.Module):
    """A dense layer with bias and sampled gradients, of the random stream "sample"."""

    features: int
    method: str

    @nn.compact
    def __call__(self, x):
        """The layer's output."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return dense(x, kernel, self.make_rng("sample"), self.method) + bias


class Network(nn.Module):
    """Two hidden layers."""

    method: str

    @nn.compact
    def __call__(self, x):
        """One number for each sample."""
        for _ in range(2):
            x = nn.relu(SampledDense(WIDTH, self.method)(x))
        return SampledDense(1, self.method)(x)[:, 0]


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


@functools.partial(jax.jit, static_argnames=("method", "num_steps"))
def train(key, method, num_steps):
    """Mean squared distance to the teacher on fresh inputs, at the start and after every `RECORD` steps."""
    network, test = Network(method), jax.random.normal(jax.random.key(12), (1000, INPUTS))
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, num_steps))
    parameters = network.init({"params": key, "sample": key}, test)

    def loss(parameters, key):
        key_batch, key_sample = jax.random.split(key)
        x, y = batch(key_batch)
        return jnp.mean((network.apply(parameters, x, rngs={"sample": key_sample}) - y) ** 2)

    def step(carry, key):
        parameters, memory = carry
        updates, memory = optimizer.update(jax.grad(loss)(parameters, key), memory)
        return (optax.apply_updates(parameters, updates), memory), None

    def error(parameters):
        return jnp.mean((network.apply(parameters, test, rngs={"sample": key}) - teacher(test)) ** 2)

    def block(carry, keys):
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, error(carry[0])

    keys = jax.random.split(key, (num_steps // RECORD, RECORD))
    _, errors = jax.lax.scan(block, (parameters, optimizer.init(parameters)), keys)
    return jnp.append(error(parameters), errors)


def compare(num_steps=800, num_seeds=4):
    """Test errors `(num_seeds, records)` by method; all methods see the same starts and batches."""
    keys = jax.random.split(jax.random.key(0), num_seeds)
    return {
        method: np.asarray(jax.vmap(lambda key, method=method: train(key, method, num_steps))(keys))
        for method in METHODS
    }


def last(errors):
    """The last error of each method, averaged over seeds."""
    return {method: float(error[:, -1].mean()) for method, error in errors.items()}


def run(num_steps=800):
    """How many times larger the error is with the heaviest samples only than with the unbiased "wta"."""
    end = last(compare(num_steps))
    return end["heaviest only"] / end["wta"]


# %%
# The deviations of one gradient say the opposite of the curves: no estimate with as many samples is closer to the
# gradient than the heaviest samples alone.


def draw(errors):
    """Test error against the step."""
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.0))
        for method, error in errors.items():
            steps = RECORD * np.arange(error.shape[1])
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
