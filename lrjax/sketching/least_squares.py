"""Linear least squares: one door, `lstsq`, and the result it returns."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import status
from lrjax._checks import check_count, check_key
from lrjax._pytree import is_concrete, pytree, tree_isfinite
from lrjax.sketching.sketches import GaussianSketch, SparseSignSketch

# The options that mean something to each method. Any other that is set is refused.
_METHOD_OPTIONS = {"direct": (), "sketch_and_solve": ("sketch", "sketch_size")}
_SKETCHES = ("sparse_sign", "gaussian")
_ROWS_PER_COLUMN = 8
_NONZEROS = 8

_matmul = functools.partial(jnp.matmul, precision="highest")


@pytree
class LstsqResult:
    """What `lstsq` returns.

    Attributes:
        x: the solution, `(d,)` or `(d, q)` like `b`.
        residual_norm: `||sqrt(w) (b - a x)||_2` on all the rows, without the ridge term; a scalar, or `(q,)`.
        status: int32 code of `lrjax.status`; one per problem under `vmap`.
        num_steps: int32, iterations taken; 0 for the methods that do not iterate.
        method: the method that ran, never "auto"; static.
    """

    x: jax.Array
    residual_norm: jax.Array
    status: jax.Array
    num_steps: jax.Array
    method: str = jax.tree.static()

    @property
    def converged(self) -> jax.Array:
        """Whether the method did what it promises, per problem."""
        return self.status == status.CONVERGED

    def check(self) -> None:
        """Raises on the host if any problem failed. Not for traced code.

        Raises:
            SolveError: names the failed problems and why they failed.
        """
        codes = np.asarray(self.status).ravel()
        failed = np.flatnonzero(codes != status.CONVERGED)
        if failed.size:
            reasons = "; ".join(f"problem {i}: {_reason(int(codes[i]))}" for i in failed[:10])
            more = f"; and {failed.size - 10} more" if failed.size > 10 else ""
            raise status.SolveError(
                f"lstsq, method {self.method!r}: {failed.size} of {codes.size} failed. {reasons}{more}"
            )


def _reason(code: int) -> str:
    if code == status.NONFINITE:
        return "the solution or its residual is not finite: NaN, infinity or values near overflow came in"
    return status.message(code)


def lstsq(
    a: jax.Array,
    b: jax.Array,
    key: jax.Array,
    *,
    method: str = "auto",
    sketch: str | None = None,
    sketch_size: int | None = None,
    weights: jax.Array | None = None,
    ridge: float | jax.Array = 0.0,
    tolerance: float | jax.Array | None = None,
    max_steps: int | None = None,
) -> LstsqResult:
    """Minimises `sum_i w_i (a_i . x - b_i)^2 + ridge ||x||^2`, for each column of `b`.

    Methods:

    - "direct": QR of the rows scaled by `sqrt(w)`, then an SVD of the small triangular factor. Singular
      values below `max(n, d) * eps` of the largest count as zero, as in NumPy, and the answer is the one of
      least norm; a ridge above that level restores them. Wide `a` is treated through its transpose. Costs
      about `4 n d^2 + 20 d^3` operations (`n` and `d` exchanged if wide). Not for `d` beyond a few thousand.
    - "sketch_and_solve": solves the short problem `min ||S (a x - b)||` by the same direct method; about
      `16 n d` operations to sketch and `2 m d^2` to solve. The answer is a fixed factor away from optimal,
      not accurate: with a Gaussian S of `m` rows, `||a (x' - x)||^2` is on average `d / (m - d - 1)` times
      the squared residual. Not for answers that must agree with the direct one.
    - "auto": picks "direct", today always; `result.method` says what ran.

    Differentiable to any order with respect to `a`, `b`, `weights` and `ridge`, by one exact Newton step from
    a constant start rather than through the factorizations. Where `a` lacks full rank and `ridge` is 0, the
    derivative in `a` is finite but belongs to the kept directions alone (no other exists). The derivative
    in a weight that is exactly zero is taken as zero for wide or sketched problems, where it need not exist.

    On the sketched answer: the target of Song, Ye, Yin and Zhang (2023, arXiv 2302.00248) is coordinate-wise,
    `||x' - x||_inf <= (eps / sqrt(d)) ||a x - b|| ||pinv(a)||`. Their bound for the plain randomized Hadamard
    sketch has an acknowledged gap in its proof, and nothing here relies on it. For a Gaussian sketch and
    orthonormal `a` the error is explicitly Gaussian given the sketch, with a median over sketches near
    `eps = z_d sqrt(d / (m - d - 1))`, `z_d` the median of the largest of `d` half-normal variables.

    Args:
        a: `(n, d)`, float32 or float64.
        b: `(n,)` or `(n, q)`, of the same dtype.
        key: one random key. "direct" does not use it.
        method: "auto", "direct" or "sketch_and_solve".
        sketch: "sparse_sign" (the default, `SparseSignSketch`) or "gaussian" (`GaussianSketch`, slower than a
            direct solve, for study). Sketching methods only.
        sketch_size: rows `m >= d` of the sketch, `8 d` if left out. Sketching methods only.
        weights: `(n,)` nonnegative row weights of the squared loss; a row of weight zero is not there.
        ridge: nonnegative scalar, traced: a new value does not recompile. It is not sketched.
        tolerance: for iterative methods; refused by those above.
        max_steps: for iterative methods; refused by those above.

    Returns:
        An `LstsqResult`, in the dtype of `a`. Nothing raises in traced code: a solution that is not finite
        has the status `NONFINITE`, and `result.check()` raises on the host.

    Raises:
        ValueError: shapes that do not fit or are empty; dtypes other than float32 and float64; NaN or
            infinite values; negative weights or ridge; an unknown method or sketch; an option the method
            does not use; a sketch smaller than `d`; a sketched wide problem. Values are looked at only where
            they are concrete, so not what `jit`, `vmap` or `grad` trace; the look waits for the arrays.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> a = jax.random.normal(jax.random.key(0), (100, 3))
        >>> b = a @ jax.numpy.array([1.0, 2.0, 3.0])
        >>> result = lr.lstsq(a, b, jax.random.key(1))
        >>> [round(float(value), 3) for value in result.x], result.method
        ([1.0, 2.0, 3.0], 'direct')
    """
    if method not in ("auto", *_METHOD_OPTIONS):
        raise ValueError(f"method is {method!r}; expected one of {('auto', *_METHOD_OPTIONS)}")
    chosen = "direct" if method == "auto" else method
    options = {
        "sketch": sketch,
        "sketch_size": sketch_size,
        "tolerance": tolerance,
        "max_steps": max_steps,
    }
    for name, value in options.items():
        if value is not None and name not in _METHOD_OPTIONS[chosen]:
            raise ValueError(f"{name} is {value!r}; expected None, for the method {chosen!r} does not use it")

    check_key(key)
    a, b = _check_array("a", a), _check_array("b", b)
    if a.ndim != 2 or b.ndim not in (1, 2) or a.shape[0] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise ValueError(
            f"a has shape {a.shape} and b has shape {b.shape}; expected (n, d) with (n,) or (n, q), and no size zero"
        )
    if a.dtype != b.dtype:
        raise ValueError(f"a has dtype {a.dtype} and b has dtype {b.dtype}; expected one dtype: cast either")
    num_rows, num_cols = a.shape
    if chosen == "sketch_and_solve":
        if num_rows < num_cols:
            raise ValueError(f"a has shape {a.shape}; expected n >= d, since sketching shortens tall problems")
        sketch = "sparse_sign" if sketch is None else sketch
        if sketch not in _SKETCHES:
            raise ValueError(f"sketch is {sketch!r}; expected one of {_SKETCHES}")
        sketch_size = _ROWS_PER_COLUMN * num_cols if sketch_size is None else sketch_size
        sketch_size = check_count("sketch_size", sketch_size, minimum=num_cols)
    return _solve(
        a,
        b,
        key,
        _check_nonnegative("weights", weights, (num_rows,), a.dtype),
        _check_nonnegative("ridge", ridge, (), a.dtype),
        method=chosen,
        sketch=sketch,
        sketch_size=sketch_size,
    )


def _check_array(name: str, value: Any) -> jax.Array:
    value = jnp.asarray(value)
    if value.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"{name} has dtype {value.dtype}; expected float32 or float64")
    # Evaluated at once even if a jit around us is tracing and `value` is one of its constants.
    if is_concrete(value):
        with jax.ensure_compile_time_eval():
            if not _all_finite(value):
                raise ValueError(f"{name} holds NaN or infinite values; expected finite ones")
    return value


_all_finite = jax.jit(tree_isfinite)


def _check_nonnegative(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    if name == "weights" and value is None:
        return None
    if jnp.shape(value) != shape:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; expected {shape}")
    if jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        raise ValueError(f"{name} has dtype {jnp.result_type(value)}; expected a real one")
    if is_concrete(value):
        worst = np.min(np.asarray(value))
        if not (worst >= 0 and np.all(np.isfinite(value))):
            raise ValueError(f"{name} has the least value {worst}; expected finite values of at least 0")
    return jnp.asarray(value, dtype)


@functools.partial(jax.jit, static_argnames=("method", "sketch", "sketch_size"))
def _solve(
    a: jax.Array,
    b: jax.Array,
    key: jax.Array,
    weights: jax.Array | None,
    ridge: jax.Array,
    *,
    method: str,
    sketch: str | None,
    sketch_size: int | None,
) -> LstsqResult:
    columns = b.reshape(b.shape[0], -1)
    if method == "sketch_and_solve":
        assert sketch_size is not None
        x = _sketch_and_solve(a, columns, key, weights, ridge, sketch, sketch_size)
    elif a.shape[0] < a.shape[1]:
        x = _wide(*_scale_rows(a, columns, weights), ridge)
    else:
        x = _tall(a, columns, weights, ridge)
    norm = _residual_norm(a, columns, weights, x)
    code = jnp.where(tree_isfinite((x, norm)), status.CONVERGED, status.NONFINITE).astype(jnp.int32)
    return LstsqResult(
        x=x.reshape(a.shape[1:] + b.shape[1:]),
        residual_norm=norm.reshape(b.shape[1:]),
        status=code,
        num_steps=jnp.zeros_like(code),
        method=method,
    )


def _sketch_and_solve(
    a: jax.Array,
    b: jax.Array,
    key: jax.Array,
    weights: jax.Array | None,
    ridge: jax.Array,
    sketch: str | None,
    sketch_size: int,
) -> jax.Array:
    num_rows, num_cols = a.shape
    if sketch == "gaussian":
        s = GaussianSketch.create(key, sketch_size, num_rows, dtype=a.dtype)
    else:
        nonzeros = min(_NONZEROS, sketch_size)
        s = SparseSignSketch.create(key, sketch_size, num_rows, num_nonzeros=nonzeros, dtype=a.dtype)
    both = s.apply(jnp.concatenate(_scale_rows(a, b, weights), axis=1))
    return _tall(both[:, :num_cols], both[:, num_cols:], None, ridge)


def _tall(a: jax.Array, b: jax.Array, weights: jax.Array | None, ridge: jax.Array) -> jax.Array:
    """`x`, `(d, q)`, for `n >= d`."""
    rows, target, level = jax.lax.stop_gradient((*_scale_rows(a, b, weights), ridge))
    q, left, sigma, right, inverse = _factorize(rows, level)
    start = _matmul(right.T, (sigma * inverse * inverse)[:, None] * _matmul(left.T, _matmul(q.T, target)))

    def adjoint(residual: jax.Array) -> jax.Array:
        return _matmul(a.T, residual if weights is None else weights[:, None] * residual)

    def normal(x: jax.Array) -> jax.Array:
        return adjoint(_matmul(a, x)) + ridge * x

    # The objective is quadratic, so one Newton step from any constant ends at the solution as a function of
    # all inputs: every derivative is right, and no factorization is differentiated.
    downhill = adjoint(b - _matmul(a, start)) - ridge * start
    return start + _derivative_only(_linear_solve(normal, downhill, right.T, inverse))


def _wide(a: jax.Array, b: jax.Array, ridge: jax.Array) -> jax.Array:
    """`x = a^T y`, `(d, q)`, for `n < d` and rows already scaled, with `(a a^T + ridge) y = b`."""
    rows, target, level = jax.lax.stop_gradient((a, b, ridge))
    q, left, sigma, right, inverse = _factorize(rows.T, level)
    scores = inverse[:, None] * _matmul(right, target)
    y = _matmul(right.T, inverse[:, None] * scores)
    x = _matmul(q, _matmul(left, (sigma * inverse)[:, None] * scores))
    # `a^T y` with the value of x: rounding in y, which may be far larger than x, must not enter.
    primal = x + _matmul((a - rows).T, y)

    def normal(step: jax.Array) -> jax.Array:
        return _matmul(a, _matmul(a.T, step)) + ridge * step

    # As in `_tall`: an exact Newton step, in y, carries the derivatives.
    remainder = b - _matmul(a, primal) - ridge * y
    step = _linear_solve(normal, remainder, right.T, inverse)
    return x + _derivative_only(primal + _matmul(a.T, step))


def _linear_solve(matvec: Any, rhs: jax.Array, basis: jax.Array, inverse: jax.Array) -> jax.Array:
    def solve(_: Any, value: jax.Array) -> jax.Array:
        # Multiplied in one at a time: their square may underflow.
        return _matmul(basis, inverse[:, None] * (inverse[:, None] * _matmul(basis.T, value)))

    return jax.lax.custom_linear_solve(matvec, rhs, solve, symmetric=True)


def _derivative_only(value: jax.Array) -> jax.Array:
    """Zero, with the derivatives of `value`: its own rounding would spoil a backward stable answer."""
    return value - jax.lax.stop_gradient(value)


def _factorize(tall: jax.Array, ridge: jax.Array) -> tuple[jax.Array, ...]:
    """`tall = q @ left @ diag(sigma) @ right`, and `1 / sqrt(sigma^2 + ridge)` with 0 where that is noise."""
    q, r = jnp.linalg.qr(tall)
    left, sigma, right = jnp.linalg.svd(r)
    size = jnp.hypot(sigma, jnp.sqrt(ridge))
    keep = size > max(tall.shape) * jnp.finfo(tall.dtype).eps * sigma[0]
    return q, left, sigma, right, jnp.where(keep, 1 / jnp.where(keep, size, 1), 0)


def _scale_rows(a: jax.Array, b: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    if weights is None:
        return a, b
    root = _safe_sqrt(weights)[:, None]
    return root * a, root * b


def _residual_norm(a: jax.Array, b: jax.Array, weights: jax.Array | None, x: jax.Array) -> jax.Array:
    squares = (b - _matmul(a, x)) ** 2
    return _safe_sqrt(jnp.sum(squares if weights is None else weights[:, None] * squares, axis=0))


def _safe_sqrt(value: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0 so that an infinite slope does not turn a zero into NaN."""
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1)), 0 * value)
