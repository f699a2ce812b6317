"""Sampling rows of a tall matrix by importance: the sample as a sketch, and the scores to draw by.

Rows that carry directions of their own must be kept; scores measure this. For `sum_i |a_i x|^p` they are, from the
cheapest to the most expensive: `leverage_scores` (right for p = 2), `root_leverage_scores` (p < 2), `lewis_weights`
(0 < p < 4) and `lp_sensitivities` (small matrices only). Uniform sampling is `jnp.ones(n)`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import (
    check_count,
    check_finite,
    check_flag,
    check_key,
    check_range,
    host_value,
    number,
    real_array,
    single_or_double,
)
from lrjax.core.numerics import matmul, safe_divide, safe_reciprocal
from lrjax.core.pytree import pytree
from lrjax.core.units import power
from lrjax.linalg import guarded
from lrjax.linalg.rows import solve_rows
from lrjax.linalg.scaling import column_exponents
from lrjax.sketching.base import as_columns, check_scores, shaped_like
from lrjax.sketching.sparse import SparseSignSketch

_SENSITIVITY_ROWS = 4000
_BATCH = 64
_ROWS_PER_COLUMN = 16


@pytree
class RowSample:
    """`m` rows of `n`, each with a weight: the `m x n` matrix S with `weights[k]^(1/p)` at `(k, indices[k])`.

    The weights multiply the loss: `sum_k weights[k] |a_indices[k] x|^p` is an unbiased estimate of
    `||a x||_p^p`, and equals `||S a x||_p^p`. With p = 2, `E[S^T S] = I`.

    `apply` reads `m` rows, whatever `n` is. Do not use it with uniform scores unless all rows are alike: a
    direction carried by few rows is lost with probability `(1 - 1/n)^m`; then mix the rows first
    (`SparseSignSketch`), or draw by `lewis_weights`.

    Attributes:
        indices: `(m,)` int32, the rows that were drawn.
        weights: `(m,)`, their multipliers in the loss: one over the expected number of times a row is drawn.
        num_cols: `n`, static.
        p: the power of the loss, static.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> a = jax.random.normal(jax.random.key(0), (1000, 3))
        >>> scores = lr.sketching.leverage_scores(a)
        >>> sample = lr.sketching.RowSample.create(jax.random.key(1), scores, 40)
        >>> sample.shape, sample.apply(a).shape
        ((40, 1000), (40, 3))
    """

    indices: jax.Array
    weights: jax.Array
    num_cols: int = jax.tree.static()
    p: float = jax.tree.static(default=2.0)

    @staticmethod
    def create(
        key: jax.Array, scores: jax.Array, num_rows: int, *, replacement: bool = True, p: float = 2.0
    ) -> "RowSample":
        """Draws `num_rows` rows with probabilities in proportion to `scores`.

        With replacement the draws are independent, row i with probability `pi_i = s_i / sum(s)` and weight
        `1 / (m pi_i)`. They descend a tree of partial sums, so that probabilities of 1e-6 are as accurate in
        float32 as any (below the rounding unit of the type they are zero): about `2 n + 4 m log2(n)` operations.

        Without replacement the sample is systematic (Madow 1949) in a random order of the rows: row i is in
        it with probability `q_i = min(1, alpha s_i)`, where alpha makes these sum to m, and has weight
        `1 / q_i`. Rows with `q_i = 1` are always there; no row comes twice. Probabilities are kept in units
        of 2^-32 and those are what the weights invert. Two sorts of n numbers. It has the smaller variance, the
        more so where m is a good part of n or few rows matter; joint inclusion probabilities have no formula.

        Args:
            key: one random key.
            scores: `(n,)` nonnegative, float32 or float64; the weights have their dtype. A row of score zero is
                never drawn, which biases the estimate if the row is not zero.
            num_rows: `m`; at most the number of positive scores without replacement.
            replacement: whether a row may be drawn more than once.
            p: positive power of the loss.

        Returns:
            A `RowSample` of shape `(m, n)`. Under a transform nothing is refused; NaN among the scores, or only
            zeros, gives weights of NaN, and rows of weight zero fill up a sample without replacement that has
            too few positive scores.

        Raises:
            ValueError: not one key; scores that are not a vector of nonnegative finite floats or are all zero;
                a bad size; more rows than can be drawn without replacement; p not positive.
        """
        check_key(key)
        scores = check_scores("scores", scores)
        num_rows = check_count("num_rows", num_rows)
        check_range("p", p, low=0, open_low=True)
        replacement = check_flag("replacement", replacement)
        host = host_value(scores)
        positive = scores.size if host is None else int(np.count_nonzero(host))
        if positive == 0:
            raise ValueError("scores are all zero; expected at least one that is positive")
        if not replacement and num_rows > positive:
            raise ValueError(f"num_rows is {num_rows}; without replacement at most {positive}, the positive scores")
        draw = _with_replacement if replacement else _without_replacement
        indices, weights = draw(key, scores, num_rows)
        p = float(p)
        if (drawn := host_value(weights)) is not None and not np.isfinite(drawn ** (1 / p)).all():
            raise ValueError(f"p is {p}; expected one whose inverse, as a power of the weights, {drawn.dtype} can hold")
        return RowSample(indices=indices, weights=weights, num_cols=scores.size, p=p)

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self.indices.shape[-1], self.num_cols

    def apply(self, a: jax.Array) -> jax.Array:
        """`S a`, of shape `(m,)` or `(m, k)` and the dtype of `a`, which is `(n,)` or `(n, k)`."""
        rows = as_columns("a", a, self.num_cols)[self.indices]
        return shaped_like(self._scale(rows.dtype) * rows, a)

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`S^T z`, of shape `(n,)` or `(n, k)` and the dtype of `z`, which is `(m,)` or `(m, k)`."""
        columns = as_columns("z", z, self.shape[0])
        zeros = jnp.zeros((self.num_cols, columns.shape[1]), columns.dtype)
        total = zeros.at[self.indices].add(self._scale(columns.dtype) * columns)
        return shaped_like(total, z)

    def _scale(self, dtype: Any) -> jax.Array:
        return (self.weights ** (1 / self.p)).astype(dtype)[:, None]


@functools.partial(jax.jit, static_argnums=2)
def _with_replacement(key: jax.Array, scores: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Descends from the root of a heap of partial sums (children of node k: 2 k and 2 k + 1) to a leaf."""
    depth = max(scores.size - 1, 0).bit_length()
    scores = scores / jnp.max(scores)
    level = jnp.pad(scores, (0, 2**depth - scores.size))
    levels = [level]
    while level.size > 1:
        level = level[::2] + level[1::2]
        levels.append(level)
    heap = jnp.concatenate([0 * level, *reversed(levels)])
    # Off zero by half a step: a branch below the rounding unit is then never taken, not taken at its expense.
    unit = float(jnp.finfo(scores.dtype).eps)
    uniform = jax.random.uniform(key, (depth, num_rows), scores.dtype) + unit / 2

    def descend(i: jax.Array, node: jax.Array) -> jax.Array:
        left, right = heap[2 * node], heap[2 * node + 1]
        return 2 * node + (uniform[i] * (left + right) >= left).astype(jnp.int32)

    indices = jax.lax.fori_loop(0, depth, descend, jnp.ones(num_rows, jnp.int32)) - 2**depth
    return indices, heap[1] / (num_rows * scores[indices])


@functools.partial(jax.jit, static_argnums=2)
def _without_replacement(key: jax.Array, scores: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    order_key, start_key = jax.random.split(key)
    ticks, certain = _inclusion(scores, num_rows)
    # One point every 2^32 ticks along the rows, from a random start on: row i is hit if the running sum wraps.
    order = jnp.argsort(jax.random.bits(order_key, scores.shape))
    start = jax.random.bits(start_key, (), jnp.uint32)
    before = start + jnp.cumsum(ticks[order], dtype=jnp.uint32) - ticks[order]
    hit = (before + ticks[order] < before) | certain[order]
    place = jnp.nonzero(hit, size=num_rows, fill_value=scores.size)[0]
    indices = order[jnp.minimum(place, scores.size - 1)].astype(jnp.int32)
    chance = jnp.where(certain, 1, ticks.astype(scores.dtype) * 2.0**-32)[indices]
    weights = jnp.where(place < scores.size, 1 / chance, 0)
    return indices, jnp.where(jnp.isfinite(jnp.sum(scores)) & jnp.any(scores > 0), weights, jnp.nan)


def _inclusion(scores: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """`q_i = min(1, alpha s_i)` with sum m, as uint32 multiples of 2^-32, and which rows have `q_i = 1`."""
    scores = scores / jnp.max(scores)
    ordered = jnp.sort(scores, descending=True)
    tail = jnp.flip(jnp.cumsum(jnp.flip(ordered)))[:num_rows]
    left = jnp.arange(num_rows, 0, -1, dtype=scores.dtype)
    # The k largest are certain for the least k at which the next one is not.
    fits = left * ordered[:num_rows] <= tail
    k = jnp.argmax(fits.at[-1].set(True))
    wanted = jnp.where(tail[k] > 0, left[k] / tail[k], jnp.inf) * scores
    certain = (wanted >= 1) & (scores > 0)
    chance = jnp.where(certain | ~(scores > 0), 0, wanted)

    def as_ticks(chance: jax.Array) -> tuple[jax.Array, jax.Array]:
        ticks = (chance * 2.0**32).astype(jnp.uint32)
        # Modulo 2^32, what the sum has too much or (as a negative number) too little.
        return ticks, jax.lax.bitcast_convert_type(jnp.sum(ticks, dtype=jnp.uint32), jnp.int32)

    # Rounding leaves the sum off a whole number: spread most of that, and put the last few ticks on one row.
    _, excess = as_ticks(chance)
    rest = jnp.maximum(jnp.sum(chance), 1)
    chance = chance * (1 - excess.astype(scores.dtype) * 2.0**-32 / rest)
    ticks, excess = as_ticks(jnp.minimum(chance, 1 - float(jnp.finfo(scores.dtype).eps)))
    middle = jnp.argmax(jnp.minimum(ticks, ~ticks))
    return ticks.at[middle].add(-jax.lax.bitcast_convert_type(excess, jnp.uint32)), certain


def _check_matrix(name: str, a: Any) -> jax.Array:
    a = single_or_double(name, real_array(name, a))
    if a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"{name} has shape {a.shape}; expected (n, d), and no size zero")
    check_finite(name, a)
    return a


class Basis(NamedTuple):
    """`basis = a diag(2^-columns) right.T diag(inverse)`, orthonormal, with zeros for directions `a` lacks."""

    basis: jax.Array
    inverse: jax.Array
    right: jax.Array
    columns: jax.Array


def _basis(a: jax.Array) -> Basis:
    tops = jnp.max(jnp.abs(a), axis=0)
    # Columns far apart come in units of their own, lest the small ones count as rounding. Of a wide matrix the least
    # solution depends on the units, and the others do without.
    exponents = column_exponents(tops if a.shape[0] >= a.shape[1] else jnp.broadcast_to(jnp.max(tops), tops.shape))
    columns = power(-exponents, a.dtype)
    a = a * columns[None, :]
    q, r = guarded.qr(a)
    left, sigma, right = guarded.svd(r)
    # Not "above": NaN, of a matrix that is not finite, stays.
    keep = ~(sigma <= max(a.shape) * jnp.finfo(a.dtype).eps * sigma[0])
    # Rows of zeros stay so: rounding in them would count as data where scores are compared with each other.
    basis = jnp.where(keep[None] & jnp.any(a != 0, axis=1)[:, None], matmul(q, left), 0)
    return Basis(basis, safe_reciprocal(sigma, keep), right, exponents)


def leverage_scores(a: jax.Array, *, key: jax.Array | None = None, sketch_size: int | None = None) -> jax.Array:
    """`tau_i`, the largest share `(a_i x)^2 / ||a x||^2` that row i has in any vector of the range of `a`.

    They lie in [0, 1] and add up to the rank. Exact by QR, about `4 n d^2` operations; with a `key`, estimated
    from the triangular factor of a sparse sign sketch: `2 n d^2`, and off by the squared distortion of the
    sketch, a factor between 0.6 and 1.8 at the default size. Estimates may exceed one; they do as scores.

    Args:
        a: `(n, d)`, float32 or float64. Lack of full rank is allowed.
        key: a random key, for the estimate.
        sketch_size: rows of that sketch, `16 d` if left out. With a key only.

    Returns:
        `(n,)`, in the dtype of `a`. Not differentiable where singular values of `a` coincide.

    Raises:
        ValueError: `a` not a real matrix or not finite; not one key; a sketch smaller than d or without a key.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> a = jax.random.normal(jax.random.key(0), (100, 3))
        >>> round(float(lr.sketching.leverage_scores(a).sum()), 4)
        3.0
    """
    a = _check_matrix("a", a)
    if key is None:
        if sketch_size is not None:
            raise ValueError(f"sketch_size is {sketch_size!r}; expected None, for without a key nothing is sketched")
        return jnp.sum(_basis(a).basis ** 2, axis=1)
    check_key(key)
    size = check_count("sketch_size", _ROWS_PER_COLUMN * a.shape[1] if sketch_size is None else sketch_size, a.shape[1])
    sketch = SparseSignSketch.create(key, size, a.shape[0], num_nonzeros=min(8, size))
    found = _basis(sketch.apply(a))
    turned = found.right.T * found.inverse[None]
    return jnp.sum(matmul(a * power(-found.columns, a.dtype)[None, :], turned) ** 2, axis=1)


def root_leverage_scores(a: jax.Array, p: float, *, key: jax.Array | None = None) -> jax.Array:
    """`tau_i^(p/2)`: scores for `||a x||_p` with p below 2 that need no iteration.

    Sampling by these takes more rows than by Lewis weights in the worst case (their sum may be as large as
    `n^(1 - p/2) d^(p/2)`, that of Lewis weights is d). Not for p above 2, where they undersample.

    Args:
        a: `(n, d)`, float32 or float64.
        p: in (0, 2].
        key: as for `leverage_scores`.

    Returns:
        `(n,)`, in the dtype of `a`.

    Raises:
        ValueError: those of `leverage_scores`, and p outside (0, 2].
    """
    check_range("p", p, low=0, high=2, open_low=True)
    return leverage_scores(a, key=key) ** (p / 2)


def lewis_weights(a: jax.Array, p: float, *, num_steps: int = 30) -> jax.Array:
    """The Lewis weights: `w_i = tau_i(W^(1/2 - 1/p) a)`, leverage scores of `a` with rows scaled by themselves.

    Fixed point `w <- (a_i^T (A^T W^(1-2/p) A)^-1 a_i)^(p/2)` from w = 1 (Cohen and Peng 2015, arXiv 1412.0588).
    One step shrinks the error in `log w` by `|p/2 - 1|` or more: 1e-9 of it is left after the default for p in
    [1, 3], but a fifth at p = 3.9. At the fixed point the weights add up to the rank, they are the leverage
    scores for p = 2, and `d^max(0, p/2 - 1) w_i` bounds the sensitivity of row i.

    About `4 n d^2` operations a step. Not for p = 4 and above, where the iteration need not converge.

    Args:
        a: `(n, d)`, float32 or float64. Lack of full rank is allowed; a row of zeros has weight zero.
        p: in (0, 4); may be traced.
        num_steps: iterations.

    Returns:
        `(n,)`, in the dtype of `a`.

    Raises:
        ValueError: `a` not a real matrix or not finite; p outside (0, 4); a bad `num_steps`.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> a = jax.random.normal(jax.random.key(0), (100, 3))
        >>> round(float(lr.sketching.lewis_weights(a, 1.0).sum()), 4)
        3.0
    """
    a = _check_matrix("a", a)
    check_range("p", p, low=0, high=4, open_low=True)
    if (host := host_value(p)) is not None and np.any(host >= 4):
        raise ValueError(f"p is {p!r}; expected p < 4: the iteration contracts by |p/2 - 1|. Use leverage scores")
    return _lewis(a, number("p", p, a.dtype), check_count("num_steps", num_steps))


@functools.partial(jax.jit, static_argnums=2)
def _lewis(a: jax.Array, p: jax.Array, num_steps: int) -> jax.Array:
    basis, inverse, *_ = _basis(a)
    # Ones for the directions that `a` lacks keep the triangular factor regular.
    fill = jnp.diag((inverse == 0).astype(a.dtype))
    empty = jnp.sum(basis**2, axis=1) == 0

    def step(log_w: jax.Array, _: Any) -> tuple[jax.Array, None]:
        rows = jnp.exp((1 / 2 - 1 / p) * log_w)[:, None] * basis
        r = guarded.qr_r(jnp.concatenate([rows, fill]))
        tau = jnp.sum(jax.scipy.linalg.solve_triangular(r.T, rows.T, lower=True) ** 2, axis=0)
        # a_i^T (A^T W^(1-2/p) A)^-1 a_i = tau_i w_i^(2/p-1)
        return p / 2 * (jnp.log(jnp.where(empty, 1, tau)) - (1 - 2 / p) * log_w), None

    log_w, _ = jax.lax.scan(step, 0 * basis[:, 0], length=num_steps)
    return jnp.where(empty, 0, jnp.exp(log_w))


def lp_sensitivities(a: jax.Array, p: float, *, num_steps: int = 50) -> jax.Array:
    """`sigma_i`, the largest share `|a_i x|^p / ||a x||_p^p` of row i, to be found by n convex programs.

    Each program `min ||a x||_p^p` with `a_i x = 1` is solved by iteratively reweighted least squares: from p = 2
    on in powers that grow by a fifth with Newton's step for p > 2, with a smoothing halved at each step for
    p < 2. What is returned is the share at the best x met, so a lower bound of the sensitivity whatever the
    iteration did; at p = 2 they are the leverage scores. Measured: 1e-6 below, or less, but 1e-4 at p = 1.

    About `2 n^2 d^2` operations a step: for study and for small matrices. For large ones, Lewis weights times
    `d^max(0, p/2 - 1)` bound them from above.

    Args:
        a: `(n, d)`, float32 or float64, n at most 4000. Lack of full rank is allowed.
        p: at least 1.
        num_steps: iterations, for all rows alike.

    Returns:
        `(n,)`, in the dtype of `a`.

    Raises:
        ValueError: `a` not a real matrix, not finite, or with too many rows; p below 1; a bad `num_steps`.
    """
    a = _check_matrix("a", a)
    check_range("p", p, low=1)
    if a.shape[0] > _SENSITIVITY_ROWS:
        raise ValueError(
            f"a has {a.shape[0]} rows; expected at most {_SENSITIVITY_ROWS}, for the cost grows with their square. "
            "Use lewis_weights"
        )
    return _sensitivities(a, float(p), check_count("num_steps", num_steps))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _sensitivities(a: jax.Array, p: float, num_steps: int) -> jax.Array:
    basis = _basis(a).basis
    num_rows, k = basis.shape
    squares = (basis[:, :, None] * basis[:, None, :]).reshape(num_rows, k * k)
    unit = float(jnp.finfo(a.dtype).eps)
    # The powers and smoothings of the steps: fixed numbers.
    power = jnp.asarray(np.minimum(p, 2 * 1.2 ** np.arange(1, num_steps + 1)), a.dtype)
    smooth = jnp.asarray(np.maximum(0.5 ** np.arange(num_steps), unit) if p < 2 else np.zeros(num_steps), a.dtype)

    def batch(own: jax.Array) -> jax.Array:
        """Of the rows `own`, `(batch, k)`: all programs of the batch at once."""
        level = jnp.sum(own**2, axis=1, keepdims=True)
        x = safe_divide(own, level)

        def share(y: jax.Array) -> jax.Array:
            top = jnp.max(jnp.abs(y), axis=1)
            # The constraint a_i x = 1 is in the scale; y is zero for rows of zeros only.
            return (1 / top) ** p / jnp.sum((jnp.abs(y) / top[:, None]) ** p, axis=1)

        def step(carry: tuple[jax.Array, jax.Array], schedule: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            x, best = carry
            power, smooth = schedule
            y = matmul(x, basis.T)
            y = y / jnp.max(jnp.abs(y), axis=1, keepdims=True)
            weights = (y**2 + smooth**2) ** ((power - 2) / 2)
            gram = matmul(weights, squares).reshape(-1, k, k)
            ridge = unit * jnp.max(jnp.diagonal(gram, axis1=1, axis2=2), axis=1)
            toward = solve_rows(gram + ridge[:, None, None] * jnp.eye(k, dtype=x.dtype)[None], own)
            toward = toward / jnp.sum(toward * own, axis=1, keepdims=True)
            x = x + (toward - x) / jnp.maximum(power - 1, 1)
            return (x, jnp.fmax(best, share(matmul(x, basis.T)))), None

        start = share(matmul(x, basis.T))
        (_, best), _ = jax.lax.scan(step, (x, start), (power, smooth))
        return jnp.where(level[:, 0] > 0, best, 0)

    size = min(_BATCH, num_rows)
    padded = jnp.pad(basis, ((0, -num_rows % size), (0, 0)))
    return jax.lax.map(batch, padded.reshape(-1, size, k)).reshape(-1)[:num_rows]


def mixed_scores(*scores: jax.Array) -> jax.Array:
    """The sum of several scores, each with its own total kept: safe if any of them is, up to the larger sample.

    For `||a x||_p` the mixture to take is sensitivities plus leverage scores (Woodruff and Yasuda 2023,
    arXiv 2306.00732, for p > 2). A term `jnp.full(n, d / n)` guards against scores that are too small.

    Args:
        *scores: one or more `(n,)` vectors of nonnegative numbers, of one dtype.

    Returns:
        `(n,)`.

    Raises:
        ValueError: no scores; shapes or dtypes that differ; negative or non-finite values.
    """
    if not scores:
        raise ValueError("mixed_scores needs at least one vector of scores; got none")
    checked = [check_scores(f"scores {i}", value) for i, value in enumerate(scores)]
    kinds = {(value.shape, str(value.dtype)) for value in checked}
    if len(kinds) > 1:
        raise ValueError(f"scores have shapes and dtypes {sorted(kinds)}; expected one shape and one dtype")
    return functools.reduce(jnp.add, checked)
