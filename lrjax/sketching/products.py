"""Matrix products estimated from a few column-row pairs."""

import functools

import jax
import jax.numpy as jnp

from lrjax.core.checks import check_choice, check_count, check_key, real_array
from lrjax.core.numerics import matmul, or_one, safe_divide

METHODS = ("wta", "crs")


def sampled_matmul(x: jax.Array, y: jax.Array, num_samples: int, key: jax.Array, *, method: str = "wta") -> jax.Array:
    """An unbiased estimate of `x @ y` from `num_samples` pairs of a column of `x` and a row of `y`.

    Pairs are drawn with probabilities `p_i` proportional to `||x[:, i]|| ||y[i, :]||`, the best choice.

    - "crs" draws all of them (Drineas, Kannan and Mahoney 2006). Its mean squared error is exactly
      `((sum_i ||x[:, i]|| ||y[i, :]||)^2 - ||x y||_F^2) / num_samples`.
    - "wta" keeps the `c` heaviest pairs as they are and draws only the rest, with the `c` for which
      `(1 - P_c) / (num_samples - c)` is least, `P_c` the probability of those kept (Liu et al. 2023, arXiv
      2305.15265). Better than "crs" when `P_c > c / num_samples`, as for heavy-tailed norms; for equal norms it keeps
      none and is "crs".

    The derivative in `x` and `y` holds the draws and their weights fixed, and so is unbiased too. Works under `jit`
    and `vmap`: the number of slots is static, the number of pairs kept is not.

    Args:
        x: `(n, m)`.
        y: `(m, q)`, of the same dtype.
        num_samples: `k`, pairs to use. With `k > m`, "wta" is exact.
        key: random key.
        method: `"wta"` or `"crs"`.

    Returns:
        `(n, q)`.

    Raises:
        ValueError: shapes or dtypes that do not fit, an unknown method, not a positive number of samples, not one key.

    Cost: `n m + m q` for the norms, a sort of `m` numbers, `2 n k q` for the product. Do not use it where the mean
    squared error matters and bias does not: the heaviest `k` pairs alone are often closer.

    Examples:
        >>> import jax, lrjax as lr
        >>> x = jax.random.normal(jax.random.key(0), (3, 50))
        >>> exact = lr.sketching.sampled_matmul(x, x.T, 51, jax.random.key(1))
        >>> bool(abs(exact - x @ x.T).max() < 1e-4)
        True
    """
    check_key(key)
    x, y = real_array("x", x), real_array("y", y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise ValueError(f"x and y must have shapes (n, m) and (m, q), none zero; got {x.shape} and {y.shape}")
    if x.dtype != y.dtype:
        raise ValueError(f"x and y must have one dtype; got {x.dtype} and {y.dtype}: cast either")
    check_count("num_samples", num_samples)
    check_choice("method", method, METHODS)
    return _estimate(x, y, num_samples, key, method)


@functools.partial(jax.jit, static_argnames=("num_samples", "method"))
def _estimate(x, y, num_samples, key, method):
    pairs, scale = _draw(*jax.lax.stop_gradient((x, y)), num_samples, key, method)
    return matmul(x[:, pairs] * scale[None], y[pairs])


def _draw(x, y, num_samples, key, method):
    """The pairs in the slots, and the weight of each."""
    m = x.shape[1]
    norm = jnp.linalg.norm(x, axis=0) * jnp.linalg.norm(y, axis=1)
    total = jnp.sum(norm)
    order = jnp.argsort(-norm)
    p = safe_divide(norm[order], total)
    # tail[c] = 1 - P_c, summed from the small end so that it stays accurate, with tail[m] = 0.
    tail = jnp.append(jnp.cumsum(p[::-1])[::-1], jnp.zeros_like(total))
    slot = jnp.arange(num_samples, dtype=jnp.int32)
    left = num_samples - jnp.arange(min(num_samples, m + 1), dtype=p.dtype)
    kept = jnp.argmin(tail[: left.size] / left).astype(jnp.int32) if method == "wta" else jnp.int32(0)
    # A number in (0, tail[kept]] falls in exactly one (tail[i + 1], tail[i]], with the probability p_i / tail[kept].
    target = tail[kept] * (1 - jax.random.uniform(key, (num_samples,), p.dtype))
    drawn = jnp.searchsorted(-tail[:m], -target, side="right").astype(jnp.int32) - 1
    place = jnp.where(slot < kept, jnp.minimum(slot, m - 1), jnp.clip(drawn, 0, m - 1))
    chosen = p[place]
    weight = tail[kept] / ((num_samples - kept).astype(p.dtype) * or_one(chosen))
    # Where everything is kept the rest has no mass, and a weight of zero.
    return order[place], jnp.where(slot < kept, jnp.ones_like(weight), weight)
