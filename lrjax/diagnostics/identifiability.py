"""What can be known about a problem before it is solved: what a mask leaves open, isometry, coherence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import (
    check_choice,
    check_count,
    check_flag,
    check_indices,
    check_key,
    check_range,
    check_shape,
    number,
    on_host,
    real_array,
    single_or_double,
)
from lrjax.core.numerics import matmul, or_one
from lrjax.core.units import norm
from lrjax.linalg.guarded import qr, singular_values
from lrjax.operators.base import Operator, check_operator
from lrjax.problems.factors import Factors, as_factors


def undetermined(rows: Any, cols: Any, shape: tuple[int, int], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns that the observed entries cannot determine, for a generic matrix of this rank.

    A row with exactly `rank` entries is determined once the columns are known, and tells nothing about them. So such
    rows are taken away with their entries, then such columns, and so on; a row or column that is then left with fewer
    than `rank` entries has several values that all fit. With few samples this is what ends recovery: one row and one
    column with `rank` entries each that share an entry are enough. Which of the two is named is arbitrary.

    The condition is necessary, not sufficient: a mask that passes may still leave a matrix open. Runs on the host,
    in a few passes over the entries.

    Args:
        rows: `(m,)` integer rows of the entries, 0-based, each entry once.
        cols: `(m,)` integer columns.
        shape: `(n1, n2)`.
        rank: rank of the matrix.

    Returns:
        Booleans `(n1,)` and `(n2,)`.

    Raises:
        ValueError: entries outside of the matrix, or a rank that is not a positive integer.

    Examples:
        Five entries of a 3 x 3 matrix of rank one. The second mask says nothing of its last column.

        >>> import lrjax as lr
        >>> rows, cols = lr.diagnostics.undetermined([0, 0, 1, 1, 2], [0, 1, 0, 2, 1], (3, 3), rank=1)
        >>> bool(rows.any() or cols.any())
        False
        >>> rows, cols = lr.diagnostics.undetermined([0, 0, 1, 1, 2], [0, 1, 0, 1, 1], (3, 3), rank=1)
        >>> cols.tolist()
        [False, False, True]
    """
    rank, shape = check_count("rank", rank), check_shape(shape)
    if rank > min(shape):
        raise ValueError(f"rank is {rank}; expected at most min(shape) = {min(shape)}")
    index = [
        on_host(name, check_indices(name, given, n))
        for name, given, n in zip(("rows", "cols"), (rows, cols), shape, strict=True)
    ]
    if index[0].ndim != 1 or index[0].shape != index[1].shape:
        raise ValueError(f"rows and cols must have one shape (m,); got {index[0].shape} and {index[1].shape}")
    alive, bad = [np.ones(n, bool) for n in shape], [np.zeros(n, bool) for n in shape]
    side, idle, free = 0, 0, 0
    while idle < 2:
        count = np.bincount(index[side], minlength=shape[side])
        short = alive[side] & (count < rank)
        bad[side] |= short
        free += int(np.sum(rank - count[short]))
        gone = alive[side] & (count <= rank)
        alive[side] &= ~gone
        stay = ~gone[index[side]]
        index = [values[stay] for values in index]
        side, idle = 1 - side, 0 if gone.any() else idle + 1
    # Factors are known up to an invertible matrix. With everything taken away it is that freedom that was met last.
    if not any(np.any(left) for left in alive) and free == rank**2:
        return np.zeros(shape[0], bool), np.zeros(shape[1], bool)
    return bad[0], bad[1]


class RipEstimate(NamedTuple):
    """What `rip` found.

    Attributes:
        scale: mean of `||A(X)||^2 / ||X||_F^2`; one for an operator normalised as the theory has it.
        low: smallest ratio seen, in units of `scale`.
        high: largest ratio seen, in units of `scale`.
        constant: `max(1 - low, high - 1)`, a lower bound of the isometry constant of `A / sqrt(scale)`.
    """

    scale: jax.Array
    low: jax.Array
    high: jax.Array
    constant: jax.Array


def _directions(operator: Operator, key: jax.Array, rank: int, symmetric: bool) -> tuple[jax.Array, jax.Array]:
    """Factors of a random matrix of the rank and Frobenius norm one."""
    key_left, key_right, key_signs = jax.random.split(key, 3)
    # The operator's own precision, whatever JAX's default: products of two dtypes would be refused or wasted.
    own = [jnp.result_type(leaf) for leaf in jax.tree.leaves(operator)]
    dtype = next((found for found in own if jnp.issubdtype(found, jnp.floating)), jnp.result_type(float))
    (n1, n2), signs = operator.shape, jax.random.rademacher(key_signs, (rank,), dtype)
    left = qr(jax.random.normal(key_left, (n1, rank), dtype))[0]
    right = left * signs if symmetric else qr(jax.random.normal(key_right, (n2, rank), dtype))[0]
    return left * rank**-0.5, right


def rip(
    operator: Operator, key: jax.Array, *, rank: int, num_directions: int = 200, symmetric: bool = False
) -> RipEstimate:
    """Restricted isometry over random matrices of one rank: how much `||A(X)||^2 / ||X||_F^2` varies.

    Random directions are not the worst ones: the constant found is a lower bound of the true one, whose exact value is
    hard to compute. It shows how a bound scales with measurements and rank, and refutes a claimed constant; it does
    not certify one. Sampling operators look isometric on such incoherent directions, though they have no such property.

    Args:
        operator: any measurement operator.
        key: one random key.
        rank: rank of the directions; `L R^T` with orthonormal factors, of Haar measure.
        num_directions: how many.
        symmetric: directions `U S U^T` with random signs S.

    Raises:
        ValueError: bad sizes, or not one key.

    Cost: `num_directions` forward products.

    Source: Recht, Fazel and Parrilo, SIAM Review 52 (2010), definition 3.1, for the property.

    Examples:
        >>> import jax, lrjax as lr
        >>> operator = lr.operators.DenseEnsemble.gaussian(jax.random.key(0), (10, 10), 2000)
        >>> bool(lr.diagnostics.rip(operator, jax.random.key(1), rank=2).constant < 0.2)
        True
    """
    check_key(key)
    rank = _check_rank(operator, rank, symmetric)

    size = lambda key: norm(operator.forward(*_directions(operator, key, rank, symmetric)))
    norms = jax.lax.map(size, jax.random.split(key, check_count("num_directions", num_directions)))
    # Ratios do not depend on the units of the operator; the scale itself may leave the range of the dtype.
    typical = norm(norms) / jnp.sqrt(jnp.asarray(norms.size, norms.dtype))
    low, high = (jnp.min(norms) / typical) ** 2, (jnp.max(norms) / typical) ** 2
    return RipEstimate(typical**2, low, high, jnp.maximum(1 - low, high - 1))


class SignRipEstimate(NamedTuple):
    """What `sign_rip` found.

    Attributes:
        scale: `(num_directions,)`, `<D, X> / ||X||_F` of each direction: the speed of the subgradient method there.
        deviation: `(num_directions,)`, the largest `|<D - scale X / ||X||_F, Y>|` over unit `Y` of the rank.
        constant: largest `deviation / scale`, a lower bound of delta.
    """

    scale: jax.Array
    deviation: jax.Array
    constant: jax.Array


def sign_rip(
    operator: Operator,
    key: jax.Array,
    *,
    rank: int,
    size: float | jax.Array = 1.0,
    noise: jax.Array | None = None,
    num_directions: int = 50,
    symmetric: bool = False,
) -> SignRipEstimate:
    """Sign-RIP over random matrices of one rank: how well `D = A*(sign(A(X) - s)) / m` points along `X`.

    The worst `Y` is found exactly for each `X` (a sum of squares of singular values); the worst `X` is not looked for,
    so the constant is a lower bound.

    Args:
        operator: any measurement operator.
        key: one random key.
        rank: rank of `X` and `Y`.
        size: `||X||_F`; it matters beside the noise.
        noise: `(m,)`, s.
        num_directions: how many `X`.
        symmetric: directions `U S U^T`, and the symmetric part of `D`.

    Raises:
        ValueError: bad sizes, noise of another length, or not one key.

    Cost: for each direction a forward product, a dense adjoint and the singular values of an `n1 x n2` matrix.

    Source: Ma and Fattahi, arXiv 2202.08788, for the property; for Gaussian measurements and a fraction p of gross
    outliers the scale is near `sqrt(2 / pi) (1 - p)`.

    Examples:
        >>> import jax, lrjax as lr
        >>> operator = lr.operators.DenseEnsemble.gaussian(jax.random.key(0), (10, 10), 5000)
        >>> found = lr.diagnostics.sign_rip(operator, jax.random.key(1), rank=1)
        >>> bool(abs(found.scale.mean() - 0.798) < 0.02), bool(found.constant < 0.3)
        (True, True)
    """
    check_key(key)
    rank = _check_rank(operator, rank, symmetric)
    check_range("size", size, low=0, open_low=True)
    m = operator.num_measurements
    noise = None if noise is None else real_array("noise", noise)
    if noise is not None and noise.shape != (m,):
        raise ValueError(f"noise has shape {noise.shape}; expected one number for each measurement, ({m},)")

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        left, right = _directions(operator, key, rank, symmetric)
        seen = operator.forward(left, right)
        seen = number("size", size, seen.dtype) * seen
        d = operator.adjoint(jnp.sign(seen if noise is None else seen - noise.astype(seen.dtype))) / float(m)
        d = (d + d.T) / 2 if symmetric else d
        x = matmul(left, right.T)
        scale = jnp.sum(d * x)
        # The best unit Y of the rank is the truncated SVD: its product is the norm of the leading singular values.
        return scale, norm(singular_values(d - scale * x)[:rank])

    keys = jax.random.split(key, check_count("num_directions", num_directions))
    scale, deviation = jax.lax.map(one, keys)
    return SignRipEstimate(scale, deviation, jnp.max(deviation / scale))


def _check_rank(operator: Operator, rank: int, symmetric: bool) -> int:
    check_operator("operator", operator)
    rank, (n1, n2) = check_count("rank", rank), operator.shape
    if rank > min(n1, n2):
        raise ValueError(f"rank is {rank}; expected at most min(shape) = {min(n1, n2)}")
    if check_flag("symmetric", symmetric) and n1 != n2:
        raise ValueError(f"symmetric=True needs a square matrix; the operator measures {(n1, n2)}")
    return rank


def coherence(x: Factors | jax.Array, *, rank: int | None = None) -> tuple[jax.Array, jax.Array]:
    """`(n1 / r) max_i ||U_i||^2` and `(n2 / r) max_j ||V_j||^2` of the singular vectors: from 1 to `n / r`.

    One if energy is spread evenly over rows; completion needs samples in proportion. This is the convention of Candes
    and Recht (2009); Jain, Netrapalli and Sanghavi (2013) use its square root.

    Args:
        x: `Factors`, or a matrix.
        rank: r, leading singular vectors to look at; by default all columns of the factors.

    Raises:
        ValueError: a rank above the columns there are.

    Cost: an SVD of `k x k` after two QRs for factors, of the matrix otherwise.

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> left, right = lr.diagnostics.coherence(jnp.ones((4, 6)), rank=1)
        >>> round(float(left), 3), round(float(right), 3)
        (1.0, 1.0)
    """
    u, _, v = _svd(x)
    rank = u.shape[1] if rank is None else check_count("rank", rank)
    if rank > u.shape[1]:
        raise ValueError(f"rank is {rank}; expected at most the {u.shape[1]} singular vectors there are")
    top = lambda basis: basis.shape[0] / rank * jnp.max(jnp.sum(basis[:, :rank] ** 2, axis=1))
    return top(u), top(v)


def effective_rank(x: Factors | jax.Array, *, kind: str = "entropy") -> jax.Array:
    """How many singular values count, without a threshold: a real number from 1 to the rank.

    Args:
        x: `Factors`, or a matrix.
        kind: `"entropy"`, the exponential of the entropy of the normalised singular values (Roy and Vetterli 2007), or
            `"stable"`, `||X||_F^2 / ||X||_2^2`, which small ones hardly move.

    Raises:
        ValueError: another kind.

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> round(float(lr.diagnostics.effective_rank(jnp.eye(3))), 3)
        3.0
    """
    check_choice("kind", kind, ("entropy", "stable"))
    values = _svd(x)[1]
    if kind == "stable":
        return jnp.sum((values / jnp.max(values)) ** 2)
    share = values / jnp.sum(values)
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(or_one(share)), 0)))


def _svd(x: Factors | jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = as_factors("x", x)
    if 0 in x.shape:
        raise ValueError(f"x must have rows and columns; got shape {x.shape}")
    for part in (x.left, x.right):
        single_or_double("x", part, complex_too=True)
    return x.svd()
