"""
A network embedded by random projection
=======================================

A thousand nodes in four groups, joined a little more often within a group than across. Three steps of a random walk
smooth any function on the nodes, and the smoothed random signs of :class:`lrjax.sketching.VerySparseSketch` place nodes
of one group together: no eigenvector is computed, no power of the transition matrix is formed, and each step costs as
much as there are edges. Thirty random signs to a column do as well as Gaussian numbers in all of it.

What this does not show: that projection is as good as eigenvectors. Three of those separate the groups better than five
hundred random columns; projection is for networks whose eigenvectors one cannot pay for. The method is FastRP (Chen et
al., arXiv 1908.11512), without the row normalisation and the tuning of weights that real networks ask for.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

NODES, GROUPS = 1000, 4
DIMENSIONS = (8, 32, 128, 512)
WEIGHTS = (0.0, 0.0, 1.0, 1.0)  # of one to four steps: short walks hold more noise
DEGREE_POWER = -0.5  # nodes with many edges count less as targets


def block_model(key, nodes=NODES, within=0.06, across=0.02):
    """Both ends of every edge, in both directions, sorted; and the group of each node."""
    group = np.repeat(np.arange(GROUPS), nodes // GROUPS)
    chance = np.where(group[:, None] == group, within, across)
    upper = np.triu(np.asarray(jax.random.uniform(key, (nodes, nodes))) < chance, 1)
    return np.stack(np.nonzero(upper | upper.T)).astype(np.int32), group


# %%
# The embedding is :math:`\sum_k \alpha_k P^k L R` with the transition matrix :math:`P = D^{-1} A`, the degree weights
# :math:`L = D^\beta` and a random :math:`R`. The sum is built from the right, so all there ever is has the shape of R.


@functools.partial(jax.jit, static_argnames="weights")
def embed(edges, projection, weights=WEIGHTS, degree_power=DEGREE_POWER):
    """`(n, dim)` embedding by a `(n, dim)` projection, before any scaling."""
    rows, cols = edges
    n = projection.shape[0]
    gather = functools.partial(jax.ops.segment_sum, segment_ids=rows, num_segments=n, indices_are_sorted=True)
    degree = jnp.maximum(gather(jnp.ones(rows.shape, projection.dtype)), 1)[:, None]  # a node without edges keeps zero
    walked, total = degree**degree_power * projection, 0
    for weight in weights:
        walked = gather(walked[cols]) / degree
        total += weight * walked
    return total


def gaussian(key, nodes, dim):
    """Independent N(0, 1 / dim)."""
    return jax.random.normal(key, (nodes, dim)) / jnp.sqrt(dim)


def very_sparse(key, nodes, dim):
    """About `sqrt(nodes)` signs in each column, scaled alike, zero elsewhere."""
    sketch = lr.sketching.VerySparseSketch.create(key, dim, nodes)
    return sketch.apply_adjoint(jnp.eye(dim))


PROJECTIONS = {"very sparse": very_sparse, "Gaussian": gaussian}


def spectral(edges, nodes):
    """Eigenvectors of the transition matrix by falling size of the eigenvalue, without the constant one."""
    adjacency = jnp.zeros((nodes, nodes)).at[tuple(edges)].set(1)
    root = jnp.sqrt(jnp.maximum(adjacency.sum(axis=1), 1))
    values, vectors = jnp.linalg.eigh(adjacency / jnp.outer(root, root))
    return vectors[:, jnp.argsort(-jnp.abs(values))[1:]] / root[:, None]


# %%
# A tenth of the nodes have a known group. The others get that of the nearest mean, after columns are brought to unit
# variance.


def accuracy(embedding, group, known):
    """Share of the other nodes that the nearest mean of the known ones names rightly."""
    x = np.asarray(embedding - embedding.mean(axis=0))
    x = x / (x.std(axis=0) + 1e-12)
    means = np.stack([x[known & (group == g)].mean(axis=0) for g in range(GROUPS)])
    distance = ((means**2).sum(axis=1) - 2 * x @ means.T)[~known]
    return (distance.argmin(axis=1) == group[~known]).mean()


def compare(num_draws=3, dimensions=DIMENSIONS):
    """Accuracy `(num_draws, dimensions)` of each embedding, on one network, over known nodes and projections."""
    key_network, key_known, key_draws = jax.random.split(jax.random.key(0), 3)
    edges, group = block_model(key_network)
    known = np.asarray(jax.random.uniform(key_known, (num_draws, NODES))) < 0.1
    keys = jax.random.split(key_draws, num_draws)
    found = {
        name: np.array(
            [
                [accuracy(embed(edges, draw(key, NODES, dim)), group, k) for dim in dimensions]
                for key, k in zip(keys, known, strict=True)
            ]
        )
        for name, draw in PROJECTIONS.items()
    }
    vectors = spectral(edges, NODES)
    leading = (GROUPS - 1, *dimensions)
    found["eigenvectors"] = np.array([[accuracy(vectors[:, :dim], group, k) for dim in leading] for k in known])
    return found


def run(num_draws=3):
    """Accuracy of the very sparse projection with most columns."""
    return float(compare(num_draws)["very sparse"][:, -1].mean())


# %%
# Random columns improve with their number, because each is a noisy view of the same smoothed network. Eigenvectors
# beyond the third are noise, and nearest means suffer from them.


def draw(found, dimensions=DIMENSIONS):
    """Accuracy against the number of columns."""
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.4, 4.0))
        for name, rates in found.items():
            columns = dimensions if name in PROJECTIONS else (GROUPS - 1, *dimensions)
            ax.plot(columns, rates.mean(axis=0), marker="o", label=name)
        ax.axhline(1 / GROUPS, color="#22272E", linestyle="--", linewidth=1.2, label="guessing")
        ax.set_xscale("log", base=2)
        ax.set_ylim(0, 1)
        ax.set_xlabel("columns of the embedding")
        ax.set_ylabel("nodes in the right group")
        ax.set_title(f"{NODES} nodes, {GROUPS} groups, a tenth known")
        ax.legend(loc="lower center", ncols=4)


if __name__ == "__main__":  # as a script and in the gallery
    found = compare()
    draw(found)
    print(
        f"very sparse projection with {DIMENSIONS[-1]} columns: {100 * found['very sparse'][:, -1].mean():.0f} % right"
    )
    if matplotlib.get_backend() != "agg":
        plt.show()
