"""A small network, its per-sample Fisher information, and its layers at lower ranks.

Features of very different size; labels drawn from a random teacher, so that the Fisher information does not vanish;
fresh samples at every step, so that nothing is learned by heart. All three layers are compressed at once.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrjax as lr
from papers import common

FEATURES, WIDTH, HIDDEN, CLASSES = 64, 64, 24, 16
LAYERS = ("first", "second", "last")
RANKS = (2, 4, 8, 12, 16, 24, 32)
JUDGED = (4, 8, 16)
PAIRS = (("rows", "SVD"), ("both", "rows"), ("ALS", "both"), ("floored", "ALS"), ("matrices", "both"))
METHODS = ("SVD", "rows", "both", "ALS", "floored", "matrices")
LABELS = {
    "SVD": "SVD",
    "rows": "rows",
    "both": "rows and columns",
    "ALS": "entries (ALS)",
    "floored": "entries, a tenth of their mean added (ALS)",
    "matrices": "full metrics of inputs and gradients",
}
BATCH, FISHER_SAMPLES, TEST_SAMPLES, ALS_STEPS = 256, 4096, 16384, 50


class Network(nn.Module):
    """Two hidden layers; the inputs of all layers are kept in `intermediates`, in order."""

    @nn.compact
    def __call__(self, x):
        for name, width in zip(LAYERS, (WIDTH, WIDTH, CLASSES), strict=True):
            self.sow("intermediates", "inputs", x)
            x = nn.Dense(width, name=name, dtype=jnp.float32, param_dtype=jnp.float32)(x)
            x = x if name == "last" else nn.relu(x)
        return x


NETWORK = Network()


def teacher(key) -> tuple:
    """Sizes of the features, and the matrices of two layers."""
    key_scale, key_in, key_out = jax.random.split(key, 3)
    scale = jnp.exp(jax.random.normal(key_scale, (FEATURES,), jnp.float32))
    inner = jax.random.normal(key_in, (FEATURES, HIDDEN), jnp.float32) / 8
    return scale, inner, jax.random.normal(key_out, (HIDDEN, CLASSES), jnp.float32)


@functools.partial(jax.jit, static_argnames="n")
def draw_samples(teacher: tuple, key, n: int):
    """Features and labels."""
    scale, inner, outer = teacher
    key_x, key_y = jax.random.split(key)
    x = scale * jax.random.normal(key_x, (n, FEATURES), jnp.float32)
    return x, jax.random.categorical(key_y, jnp.tanh(x @ inner) @ outer)


@jax.jit
def task_loss(params, x, y):
    logits = jnp.asarray(NETWORK.apply({"params": params}, x))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@functools.partial(jax.jit, static_argnames="num_steps")
def train(teacher: tuple, key, num_steps: int):
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    params = NETWORK.init(jax.random.fold_in(key, 1), jnp.zeros((1, FEATURES), jnp.float32))["params"]

    def step(carry, key):
        params, state = carry
        slope = jax.grad(task_loss)(params, *draw_samples(teacher, key, BATCH))
        change, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, change), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, num_steps))[0][0]


@jax.jit
def statistics(params, x, y):
    """Means over samples: squared gradients by kernel entries, products of inputs, products of output gradients.

    Gradients are squared sample by sample. The square of a mean gradient is another thing, and nearly zero here.
    """
    inputs = NETWORK.apply({"params": params}, x, mutable=["intermediates"])[1]["intermediates"]["inputs"]
    one = jax.grad(lambda params, x, y: task_loss(params, x[None], y[None]))

    def sums(batch):
        slopes = jax.vmap(one, in_axes=(None, 0, 0))(params, *batch)
        square = lambda name: jnp.sum(slopes[name]["kernel"] ** 2, axis=0)
        # The gradient of a bias is that of the layer's output.
        outer = lambda name: jnp.einsum("ni,nj->ij", slopes[name]["bias"], slopes[name]["bias"], precision="highest")
        return {name: (square(name), outer(name)) for name in LAYERS}

    batches = x.reshape(-1, BATCH, FEATURES), y.reshape(-1, BATCH)
    totals = jax.tree.map(lambda a: jnp.sum(a, axis=0) / len(x), jax.lax.map(sums, batches))
    products = {name: seen.T @ seen / len(x) for name, seen in zip(LAYERS, inputs, strict=True)}
    return {name: (totals[name][0], products[name], totals[name][1]) for name in LAYERS}


def approximations(w, fisher, products, gradients) -> dict[str, list]:
    """For every method the approximations of one kernel, by rank."""
    rows, cols = fisher.sum(axis=1), fisher.sum(axis=0)
    most = min(RANKS[-1], *w.shape)
    metrics = {"SVD": (None, None), "rows": (rows, None), "both": (rows, cols), "matrices": (products, gradients)}
    found = {}
    for name, (row_metric, col_metric) in metrics.items():
        # The best approximation of rank r is the first r columns of that of the largest rank, in these metrics.
        factors = lr.low_rank(w, most, row_metric=row_metric, col_metric=col_metric)
        found[name] = [lr.Factors(factors.left[:, :rank], factors.right[:, :rank]) for rank in RANKS]
    for name, floor in (("ALS", 0.0), ("floored", 0.1)):
        weights = fisher.ravel() / fisher.mean() + floor
        problem = lr.Problem(lr.operators.Identity(matrix_shape=w.shape), w.ravel(), weights)
        found[name] = alternating(problem, found["both"], most)
    return found


def alternating(problem, starts: list, most: int) -> list:
    found = []
    for rank, start in zip(RANKS, starts, strict=True):
        # One compiled program for all ranks: columns beyond the rank are zero.
        spare = ((0, 0), (0, most - start.left.shape[1]))
        start = lr.Factors(jnp.pad(start.left, spare), jnp.pad(start.right, spare))
        solver = lr.AlternatingMinimization(max_rank=most, rank=min(rank, most), tolerance=0.0, accelerate=False)
        found.append(lr.solve(problem, solver, jax.random.key(0), num_steps=ALS_STEPS, init=start).factors)
    return found


def run(seeds: int, num_steps: int) -> dict:
    """By seed: loss of the network, and by method and rank the excess of the task loss and the loss of the kernels."""
    whole, excess, kernel, joint, shares = [], [], [], [], []
    for seed in range(seeds):
        keys = jax.random.split(jax.random.key(seed), 4)
        task = teacher(keys[0])
        params = train(task, keys[1], num_steps)
        test = draw_samples(task, keys[2], TEST_SAMPLES)
        facts = statistics(params, *draw_samples(task, keys[3], FISHER_SAMPLES))
        facts = jax.tree.map(lambda a: a.astype(jnp.float64), facts)
        kernels = {name: params[name]["kernel"].astype(jnp.float64) for name in LAYERS}
        found = {name: approximations(kernels[name], *facts[name]) for name in LAYERS}
        whole.append(float(task_loss(params, *test)))
        now, inside, both = np.zeros((3, len(METHODS), len(RANKS)))
        for i, method in enumerate(METHODS):
            for j in range(len(RANKS)):
                dense = {name: found[name][method][j].dense() for name in LAYERS}
                small = {name: {**params[name], "kernel": dense[name].astype(jnp.float32)} for name in LAYERS}
                now[i, j] = float(task_loss(small, *test)) - whole[-1]
                inside[i, j] = sum(
                    float(jnp.sum(facts[name][0] * (kernels[name] - dense[name]) ** 2)) for name in LAYERS
                )
                both[i, j] = sum(product_loss(kernels[name] - dense[name], *facts[name][1:]) for name in LAYERS)
        excess.append(now)
        kernel.append(inside)
        joint.append(both)
        shares.append([explained(np.asarray(facts[name][0])) for name in LAYERS])
    found = {"whole": whole, "excess": excess, "kernel": kernel, "joint": joint, "shares": shares}
    return {name: np.array(values) for name, values in found.items()}


def product_loss(change, products, gradients) -> float:
    """`tr(E^T E[x x^T] E E[g g^T])`: unlike weights of entries it knows which errors add up."""
    return float(jnp.sum((products @ change) * (change @ gradients)))


def explained(fisher: np.ndarray) -> float:
    """Share of the variance of the logarithms that rows and columns explain: one for weights of rank one."""
    logs = np.log(fisher + 1e-9 * fisher.mean())
    rest = logs - logs.mean(axis=0) - logs.mean(axis=1, keepdims=True) + logs.mean()
    return float(1 - rest.var() / logs.var())


def judge(found: dict) -> list[dict]:
    claims, at = [], METHODS.index
    excess, kernel = found["excess"], found["kernel"]
    others = [at(name) for name in ("SVD", "rows", "both")]
    claims.append(
        common.check(
            "network: weighted loss",
            "Fisher-weighted loss of all layers, ALS over the best of SVD and both closed forms, any rank and seed",
            predicted="at most 1",
            values=(kernel[:, at("ALS")] / kernel[:, others].min(axis=1)).max(),
            high=1 + 1e-6,
        )
    )
    text = "excess of the task loss, all layers at rank"
    for rank in JUDGED:
        j = RANKS.index(rank)
        for name, other in PAIRS:
            claims.append(
                common.check(
                    f"network r={rank}: {name}",
                    f"{text} {rank}: {LABELS[name]} over {LABELS[other]}",
                    predicted="below 1",
                    values=excess[:, at(name), j] / excess[:, at(other), j],
                    high=1.0,
                    note="expected; no theorem: the weighted loss is no bound on the task loss",
                )
            )
        joint = found["joint"][:, :, j]
        claims.append(
            common.check(
                f"network r={rank}: products",
                f"loss in the metrics of inputs and gradients at rank {rank}: entries (ALS) over rows and columns",
                predicted="above 1",
                values=joint[:, at("ALS")] / joint[:, at("both")],
                low=1.0,
                note="what would explain that ALS has the larger task loss",
            )
        )
    return claims


def summary(found: dict) -> dict:
    spread = lambda values: np.quantile(values, (0, 0.5, 1), axis=0)
    return {
        "ranks": RANKS,
        "methods": METHODS,
        "seeds": len(found["whole"]),
        "whole": found["whole"],
        "excess": spread(found["excess"]),
        "kernel": spread(found["kernel"]),
        "joint": spread(found["joint"]),
        "explained": dict(zip(LAYERS, np.median(found["shares"], axis=0), strict=True)),
    }


def draw(data: dict):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    ranks = np.array(data["ranks"])
    whole = np.median(data["whole"])
    for ax, what, base in zip(axes, ("excess", "kernel"), (whole, 0), strict=True):
        low, middle, high = np.array(data[what]) + base
        for i, method in enumerate(data["methods"]):
            ax.plot(ranks, middle[i], "os^Dv<"[i] + "-", ms=4, lw=1.2, color=f"C{i}", label=LABELS[method])
            ax.fill_between(ranks, low[i], high[i], color=f"C{i}", alpha=0.12, lw=0)
        ax.set(xscale="log", yscale="log", xlabel="rank of every layer")
        ax.set_xticks(ranks, [str(rank) for rank in ranks])
        ax.minorticks_off()
    axes[0].axhline(whole, color="k", ls=":", lw=1.2, label="whole network")
    axes[0].set_ylabel("task loss, nats")
    axes[0].set_yticks([1, 1.2, 1.5, 2, 2.5, 3], ["1", "1.2", "1.5", "2", "2.5", "3"])
    axes[0].set_ylim(0.95 * whole, 3.5)
    axes[1].set_ylabel("Fisher-weighted loss of the layers")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    return figure
