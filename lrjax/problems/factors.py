"""`Factors`: a low-rank matrix that is never formed unless asked."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core import units
from lrjax.core.checks import as_array, check_indices, single_or_double
from lrjax.core.numerics import matmul, safe_divide
from lrjax.core.pytree import positional_pytree
from lrjax.linalg import guarded


@positional_pytree
class Factors:
    """The matrix `X = left @ right.T`.

    Attributes:
        left: `(n1, k)`.
        right: `(n2, k)`.

    A symmetric positive semidefinite `X = U U^T` is `Factors(U, U)`; solvers with `symmetric=True` return that.

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> x = lr.Factors(jnp.ones((3, 1)), jnp.arange(2.0)[:, None])
        >>> x.shape, x.dense().tolist()[0]
        ((3, 2), [0.0, 1.0])
    """

    left: jax.Array
    right: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        """`(n1, n2)`, the shape of the matrix (without lane axes)."""
        return self.left.shape[-2], self.right.shape[-2]

    @property
    def max_rank(self) -> int:
        """Number of columns `k` of each factor: an upper bound on the rank."""
        return self.left.shape[-1]

    def dense(self) -> jax.Array:
        """The `(n1, n2)` matrix itself; `n1 n2 k` multiplications and as much memory."""
        left, right = self._arrays()
        return matmul(left, jnp.swapaxes(right, -1, -2))

    def entries(self, rows: Any, cols: Any) -> jax.Array:
        """The entries `X[rows, cols]`, each a product of two rows of the factors.

        Args:
            rows: integers in `[0, n1)`, of any shape; of traced ones the range cannot be checked.
            cols: integers in `[0, n2)`, of a shape that broadcasts with it.

        Raises:
            ValueError: no integers, or outside of the matrix.
        """
        rows, cols = check_indices("rows", rows, self.shape[0]), check_indices("cols", cols, self.shape[1])
        left, right = self._arrays()
        try:
            np.broadcast_shapes(rows.shape, cols.shape)
        except ValueError:
            raise ValueError(f"rows {rows.shape} and cols {cols.shape} must have shapes that broadcast") from None
        return _entries(left, right, rows, cols)

    def _arrays(self) -> tuple[jax.Array, jax.Array]:
        """Both factors as JAX arrays, if they were given as NumPy's."""
        return as_array("left", self.left), as_array("right", self.right)

    def matmul(self, v: jax.Array) -> jax.Array:
        """`X @ v` for `v` of shape `(n2,)` or `(n2, q)`."""
        left, right = self._arrays()
        return matmul(left, matmul(right.T, _columns("v", v, self.shape[1])))

    def rmatmul(self, u: jax.Array) -> jax.Array:
        """`X.T @ u` for `u` of shape `(n1,)` or `(n1, q)`."""
        left, right = self._arrays()
        return matmul(right, matmul(left.T, _columns("u", u, self.shape[0])))

    def svd(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Thin SVD `(u, s, v)` with `X = u @ diag(s) @ v.T`, by QR of both factors and a small SVD.

        Cost `O((n1 + n2) k^2)`. Returns at most `min(n1, n2, k)` singular triples. Differentiable where the singular
        values are positive and differ from each other; `truncate`, `balanced` and `norm` do not ask for that.
        """
        return _svd(Factors(*self._arrays()))

    def _triangular(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """QR of both factors, one after the other: batched LAPACK calls at once may wait for each other for ever."""
        left, right = self._arrays()
        single_or_double("left", left, complex_too=True)
        single_or_double("right", right, complex_too=True)
        q_left, r_left = guarded.qr(left)
        q_right, r_right = guarded.qr(right + 0 * r_left[:1, :1])
        return q_left, r_left, q_right, r_right

    def truncate(self, rank: int) -> "Factors":
        """The best rank-`rank` approximation, as balanced factors of `rank` columns (at most `min(n1, n2)`).

        The derivative of the product exists wherever a gap separates the singular values kept from those dropped;
        that of the factors themselves where those kept differ from each other, too.
        """
        if not hasattr(rank, "__index__") or not 0 < rank <= self.max_rank:
            raise ValueError(f"rank must be an integer in 1..{self.max_rank}, the columns of the factors; got {rank!r}")
        return _balanced(Factors(*self._arrays()), min(int(rank), *self.shape))

    def balanced(self) -> "Factors":
        """The same matrix with `left.T @ left == right.T @ right`, columns sorted by singular value."""
        kept = self.truncate(self.max_rank)
        if kept.max_rank == self.max_rank:
            return kept
        pad = ((0, 0), (0, self.max_rank - kept.max_rank))
        return Factors(jnp.pad(kept.left, pad), jnp.pad(kept.right, pad))

    def norm(self) -> jax.Array:
        """Frobenius norm of `X`, from the triangular factors, so that it is accurate for nearly equal terms.

        Differentiable wherever `X` is not zero, zero columns of the factors included; at zero the derivative is zero.
        """
        return jax.jit(_norm)(Factors(*self._arrays()))


@jax.jit
def _svd(factors: Factors) -> tuple[jax.Array, jax.Array, jax.Array]:
    q_left, r_left, q_right, r_right = factors._triangular()
    u, s, vt = guarded.svd(matmul(r_left, r_right.T))
    return matmul(q_left, u), s, matmul(q_right, vt.T)


@functools.partial(jax.jit, static_argnames="rank")
def _balanced(factors: Factors, rank: int) -> Factors:
    return _truncated(factors, rank, True)


@jax.jit
def _entries(left: jax.Array, right: jax.Array, rows: jax.Array, cols: jax.Array) -> jax.Array:
    return jnp.sum(left[..., rows, :] * right[..., cols, :], axis=-1)


def _columns(name: str, value: Any, n: int) -> jax.Array:
    value = as_array(name, value)
    if value.ndim not in (1, 2) or value.shape[0] != n:
        raise ValueError(f"{name} must have shape ({n},) or ({n}, q); got {value.shape}")
    return value


@jax.custom_jvp
def _norm(factors: Factors) -> jax.Array:
    _, r_left, _, r_right = factors._triangular()
    return units.norm(matmul(r_left, r_right.T))


@_norm.defjvp
def _norm_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    # <X / ||X||, dX> = <X R / ||X||, dL> + <X^T L / ||X||, dR>, from the triangular factors: autodiff through QR would
    # divide by the norms of columns that may be zero.
    (factors,), (change,) = primals, tangents
    q_left, r_left, q_right, r_right = factors._triangular()
    core = matmul(r_left, r_right.T)
    norm = units.norm(core)
    unit = safe_divide(core, norm)
    slope_left = matmul(q_left, matmul(unit, r_right))
    slope_right = matmul(q_right, matmul(unit.T, r_left))
    return norm, jnp.sum(slope_left * change.left) + jnp.sum(slope_right * change.right)


def best_rank(factors: Factors, rank: int) -> Factors:
    """`factors.truncate(rank)` up to a common rotation of both factors, whose derivative is always finite.

    For solvers, which use the product alone.
    """
    return _truncated(factors, rank, False)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _truncated(factors: Factors, rank: int, turned: bool) -> Factors:
    """The balanced truncation, with a derivative that exists at repeated and at zero singular values.

    Autodiff through QR and SVD divides by differences of all singular values. The product depends only on the gap
    between those kept and those dropped, and balanced factors may be turned by a common rotation: without `turned` the
    derivative leaves that rotation out; with it, it is the one that keeps the columns singular vectors, where their
    values differ.
    """
    u, s, v = factors.svd()
    root = jnp.sqrt(s[:rank])[None, :]
    return Factors(u[:, :rank] * root, v[:, :rank] * root)


@_truncated.defjvp
def _truncated_jvp(rank: int, turned: bool, primals: tuple, tangents: tuple) -> tuple[Factors, Factors]:
    (given,), (change,) = primals, tangents
    u, s, v = given.svd()
    kept, dropped = s[:rank], s[rank:]
    tiny = jnp.finfo(s.dtype).eps * s[0]
    over = lambda a, b: jnp.where(b > tiny, a, 0) / jnp.where(b > tiny, b, 1)
    root = jnp.sqrt(kept)[None, :]
    uk, vk, ud, vd = u[:, :rank], v[:, :rank], u[:, rank:], v[:, rank:]
    dot = lambda a, b: matmul(a.T, b)
    # dX V and dX^T U, with dX = change.left right^T + left change.right^T.
    onto_v = matmul(change.left, dot(given.right, vk)) + matmul(given.left, dot(change.right, vk))
    onto_u = matmul(change.right, dot(given.left, uk)) + matmul(given.right, dot(change.left, uk))
    core = dot(uk, onto_v)
    # Inside: core = turn diag(kept) + stretch, turn antisymmetric; then left and right get the root of the stretch.
    pair_sum = kept[:, None] + kept[None, :]
    turn = over(core - core.T, pair_sum)
    stretch = over(core - turn * kept[None, :], root.T + root)
    # Towards dropped directions: (kept * to_left + dropped * to_right) / (kept^2 - dropped^2), and its mirror image.
    to_left, to_right = dot(ud, onto_v), dot(vd, onto_u)
    gap = (kept[None, :] - dropped[:, None]) * (kept[None, :] + dropped[:, None])
    limit = tiny * s[0]
    ratio = lambda a: jnp.where(gap > limit, a, 0) / jnp.where(gap > limit, gap, 1)
    left_move = ratio(to_left * kept[None, :] + dropped[:, None] * to_right)
    right_move = ratio(to_right * kept[None, :] + dropped[:, None] * to_left)
    outside_left = onto_v - matmul(uk, core) - matmul(ud, to_left)
    outside_right = onto_u - matmul(vk, core.T) - matmul(vd, to_right)
    left = matmul(uk, turn * root + stretch) + matmul(ud, left_move) * root + over(outside_left, root**2) * root
    right = matmul(vk, stretch) + matmul(vd, right_move) * root + over(outside_right, root**2) * root
    value = Factors(uk * root, vk * root)
    if turned:
        # d(L^T L) stays diagonal with dL + L A, dR + R A, A antisymmetric.
        slope = dot(value.left, left)
        slope, gap = slope + slope.T, kept[:, None] - kept[None, :]
        apart = jnp.abs(gap) > 8 * rank * tiny
        turn = jnp.where(apart, -slope, 0) / jnp.where(apart, gap, 1)
        left, right = left + matmul(value.left, turn), right + matmul(value.right, turn)
    return value, Factors(left, right)


def difference_norm(a: Factors, b: Factors) -> jax.Array:
    """`||A - B||_F` to full relative accuracy, the cheaper way.

    Either the dense difference or a QR of the concatenated factors; Gram matrices would lose half the digits.
    """
    (n1, n2), k = a.shape, a.max_rank + b.max_rank
    if n1 * n2 <= (n1 + n2) * 2 * k:
        return units.norm(a.dense() - b.dense())
    left = jnp.concatenate([a.left, -b.left], axis=1)
    return Factors(left, jnp.concatenate([a.right, b.right], axis=1)).norm()


def as_factors(name: str, x: "Factors | jax.Array") -> Factors:
    """`x` itself, or a dense `(n1, n2)` matrix as `x @ I.T`; NumPy's arrays as JAX's."""
    if isinstance(x, Factors):
        return Factors(*x._arrays())
    x = as_array(name, x)
    if x.ndim != 2:
        raise ValueError(f"{name} must be lrjax.Factors or a matrix (n1, n2); got an array of shape {x.shape}")
    return _times_one(x)


@jax.jit
def _times_one(x: jax.Array) -> Factors:
    return Factors(x, jnp.eye(x.shape[1], dtype=x.dtype))


def relative_error(estimate: Factors | jax.Array, truth: Factors | jax.Array) -> jax.Array:
    """`||estimate - truth||_F / ||truth||_F`, accurate down to the dtype's epsilon.

    Gauge-invariant: only the products of the factors enter.

    Args:
        estimate: `Factors` or a dense `(n1, n2)` matrix.
        truth: the same; where it is zero the error is infinite, or NaN if the estimate is zero too.

    Raises:
        ValueError: the shapes differ.
    """
    estimate, truth = as_factors("estimate", estimate), as_factors("truth", truth)
    if estimate.shape != truth.shape:
        raise ValueError(f"estimate and truth must have one shape; got {estimate.shape} and {truth.shape}")
    return _relative_error(estimate, truth)


@jax.jit
def _relative_error(estimate: Factors, truth: Factors) -> jax.Array:
    zero = Factors(jnp.zeros_like(truth.left), truth.right)
    return difference_norm(estimate, truth) / difference_norm(zero, truth)
