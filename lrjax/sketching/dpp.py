"""Random points for least squares in a given basis: determinantal, volume-rescaled and repeated samples.

`phi` holds `m` basis functions at `N` candidate points, orthonormal in the sum over them: scale the rows by the
roots of the quadrature weights of the grid first. All three samples spread the points as the basis asks, which
independent draws do not: with few of those the Gram matrix has no finite expected inverse.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import check_count, check_finite, check_key, host_value, real_array
from lrjax.core.numerics import matmul
from lrjax.sketching.row_sampling import RowSample, _with_replacement


def projection_dpp(key: jax.Array, phi: jax.Array) -> jax.Array:
    """Draws `m` distinct points, a set S with probability `det(phi[S])^2`.

    One point after the other, each in proportion to the squared distance of `phi_i` to the span of the points
    before. Point i is in the sample with probability `l_i = ||phi_i||^2`. After each draw a Householder reflection
    turns the chosen row into a coordinate, so the distances are sums of squares of the coordinates left: nothing
    cancels, and float32 does for any m. About `6 N m^2` operations, in `m` steps that cannot run side by side.

    Args:
        key: one random key.
        phi: `(N, m)`, float32 or float64, with orthonormal columns.

    Returns:
        `(m,)` int32, distinct, in the order drawn.

    Raises:
        ValueError: `phi` not a real matrix, not finite, wider than tall, or without orthonormal columns; not one
            key. The columns are looked at only where they are concrete.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> phi, _ = jax.numpy.linalg.qr(jax.random.normal(jax.random.key(0), (100, 4)))
        >>> len(set(lr.sketching.projection_dpp(jax.random.key(1), phi).tolist()))
        4
    """
    check_key(key)
    return _dpp(key, _check_phi(phi))


def volume_rescaled_sample(key: jax.Array, phi: jax.Array, num_rows: int) -> RowSample:
    """`n` points: those of a projection DPP and `n - m` independent ones by leverage, in random order.

    Their law is that of n independent draws by leverage, rescaled by the determinant of the Gram matrix
    `G = sum_k w_k phi_k phi_k^T`. Weights are `w_k = m / (n l_k)`, `l_i = ||phi_i||^2`, and with them `E[G] = I`,
    the weighted least-squares fit is unbiased (independent draws are not), and `E[tr(G^-1)] = m n / (n - m + 1)`
    (Derezinski, Warmuth and Hsu 2018, arXiv 1802.06749; Nouy and Michel 2023, arXiv 2312.14057).

    Args:
        key: one random key.
        phi: `(N, m)`, float32 or float64, with orthonormal columns.
        num_rows: `n`, at least m.

    Returns:
        A `RowSample` of shape `(n, N)` with p = 2.

    Raises:
        ValueError: those of `projection_dpp`, and `num_rows` below m.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> phi, _ = jax.numpy.linalg.qr(jax.random.normal(jax.random.key(0), (100, 4)))
        >>> sample = lr.sketching.volume_rescaled_sample(jax.random.key(1), phi, 12)
        >>> sample.apply(phi).shape
        (12, 4)
    """
    check_key(key)
    phi = _check_phi(phi)
    num_rows = check_count("num_rows", num_rows, minimum=phi.shape[1])
    dpp_key, more_key, order_key = jax.random.split(key, 3)
    indices = _dpp(dpp_key, phi)
    if num_rows > phi.shape[1]:
        more, _ = _with_replacement(more_key, jnp.sum(phi**2, axis=1), num_rows - phi.shape[1])
        indices = jax.random.permutation(order_key, jnp.concatenate([indices, more]))
    return _weighted(indices, phi)


def repeated_dpp(key: jax.Array, phi: jax.Array, num_repeats: int) -> RowSample:
    """`n = m num_repeats` points, those of independent projection DPPs; weights as in `volume_rescaled_sample`.

    Better conditioned than a volume-rescaled sample of that size (Nouy and Michel 2023, arXiv 2312.14057), and
    `E[G] = I`; but the fit is unbiased with one repeat only, and the work is `num_repeats` times that of one.

    Args:
        key: one random key.
        phi: `(N, m)`, float32 or float64, with orthonormal columns.
        num_repeats: how many DPPs, drawn side by side.

    Returns:
        A `RowSample` of shape `(m num_repeats, N)` with p = 2.

    Raises:
        ValueError: those of `projection_dpp`, and a bad `num_repeats`.
    """
    check_key(key)
    phi = _check_phi(phi)
    keys = jax.random.split(key, check_count("num_repeats", num_repeats))
    return _weighted(jax.vmap(_dpp, in_axes=(0, None))(keys, phi).reshape(-1), phi)


def _weighted(indices: jax.Array, phi: jax.Array) -> RowSample:
    leverage = jnp.sum(phi[indices] ** 2, axis=1)
    return RowSample(indices=indices, weights=phi.shape[1] / (indices.size * leverage), num_cols=phi.shape[0])


def _check_phi(phi: Any) -> jax.Array:
    phi = real_array("phi", phi)
    if phi.ndim != 2 or not 1 <= phi.shape[1] <= phi.shape[0]:
        raise ValueError(f"phi has shape {phi.shape}; expected (N, m) with N >= m >= 1")
    check_finite("phi", phi)
    if (host := host_value(phi)) is not None:
        gram = host.T @ host
        off = abs(gram - np.eye(len(gram))).max()
        if off > 100 * float(jnp.finfo(phi.dtype).eps) * phi.shape[0] ** 0.5:
            raise ValueError(f"phi.T @ phi is {off:.1e} off the identity; expected orthonormal columns")
    return phi


@jax.jit
def _dpp(key: jax.Array, phi: jax.Array) -> jax.Array:
    num_points, size = phi.shape
    column = jnp.arange(size, dtype=jnp.int32)

    def draw(k: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows, free, indices = carry
        left = jnp.where(column[None] >= k, rows, 0)
        logits = jnp.where(free, jnp.log(jnp.sum(left**2, axis=1)), -jnp.inf)
        i = jax.random.categorical(jax.random.fold_in(key, k), logits).astype(jnp.int32)
        # Reflect so that row i becomes a multiple of coordinate k, which is then done with.
        axis = left[i]
        sign = jnp.where(axis[k] < 0, -1, 1).astype(phi.dtype)
        axis = axis.at[k].add(sign * jnp.linalg.norm(axis))
        rows = left - matmul(left, axis)[:, None] * (2 / jnp.sum(axis**2) * axis)[None]
        return rows, free.at[i].set(False), indices.at[k].set(i)

    start = (phi, jnp.ones(num_points, bool), jnp.zeros(size, jnp.int32))
    return jax.lax.fori_loop(0, size, draw, start)[2]
