"""`lstsq`: the one entry point of linear least squares, and the result it returns."""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrjax import status
from lrjax.core.checks import check_count, check_key, host_value
from lrjax.core.pytree import is_concrete, pytree, tree_isfinite
from lrjax.core.result import Result
from lrjax.core.units import power
from lrjax.sketching.regression import cholesky_qr, column_units, direct, inputs, iterative, normal_equations
from lrjax.sketching.regression.normal_equations import Factor, Scaled
from lrjax.sketching.sparse import CountSketch, SparseSignSketch

# The options that mean something to each method. Any other that is set is refused.
_METHOD_OPTIONS = {
    "direct": (),
    "normal_equations": (),
    "cholesky_qr": ("sketch", "sketch_size"),
    "sketch_and_solve": ("sketch", "sketch_size"),
    "lsqr": ("sketch", "sketch_size", "tolerance", "max_steps"),
    "iterative_sketching": ("sketch", "sketch_size", "tolerance", "max_steps"),
    "fossils": ("sketch", "sketch_size", "tolerance", "max_steps"),
}
_ITERATIVE = {
    "lsqr": iterative.lsqr,
    "iterative_sketching": iterative.iterative_sketching,
    "fossils": iterative.fossils,
}
_MAX_STEPS = 100
# Sketches that "auto" takes are cheap, since a round improves their factor, if need be: one nonzero per column if the
# rows that this asks for, d^2 times the first number, are less than this share of `a`, else so many nonzeros.
_COUNT_ROWS, _COUNT_SHARE, _AUTO_NONZEROS = 2, 1 / 16, 4
# "auto" is direct for problems that are hardly tall, or small.
_LEAST_ASPECT, _LEAST_ENTRIES = 4, 2**14


_REASONS = {
    status.NONFINITE: "the solution or its residual is not finite: NaN, infinity or values near overflow came in",
    status.STALLED: "the normal equations were too ill-conditioned for the answer to be trusted; use method "
    "'cholesky_qr' or 'direct', or a larger sketch",
    status.RUNNING: "max_steps was used up before the tolerance was met; raise either, or sketch_size",
}


@pytree
class LstsqResult(Result):
    """What `lstsq` returns.

    Attributes:
        x: the solution, `(d,)` or `(d, q)` like `b`.
        residual_norm: `||sqrt(w) (b - a x)||_2` on all the rows, without the ridge term; a scalar, or `(q,)`.
        backward_error: estimate of the smallest relative perturbation `||E|| / ||a||` for which `x` solves the problem
            with `a + E`, and the same ridge, exactly; near machine epsilon for a backward stable answer, of order one
            for a sketched one. A scalar, or `(q,)`. Wide problems: `||b - a x||` relative to `||a|| ||x|| + ||b||`;
            with a ridge or dependent rows the gradient, relative to `||a||` times that.
        condition: estimate of the condition number of `a` (with weights and ridge) over the directions kept.
        rank: int32, directions kept: the others have singular values below 30 epsilons of the largest.
        status: int32 code of `lrjax.status`; one per problem under `vmap`.
        num_steps: int32: iterations; for "cholesky_qr" and "normal_equations" the rounds, each a product `B^T B`; 0 for
            methods that do not iterate.
        sketched: whether a sketch was used, of interest for "auto".
        method: the method that ran, never "auto"; static.
    """

    x: jax.Array
    residual_norm: jax.Array
    backward_error: jax.Array
    condition: jax.Array
    rank: jax.Array
    status: jax.Array
    num_steps: jax.Array
    sketched: jax.Array
    method: str = jax.tree.static()

    REASONS: ClassVar[dict[int, str]] = _REASONS


def lstsq(
    a: Any,
    b: jax.Array,
    key: jax.Array,
    *,
    method: str = "auto",
    sketch: Any = None,
    sketch_size: int | None = None,
    weights: jax.Array | None = None,
    ridge: float | jax.Array = 0.0,
    tolerance: float | jax.Array | None = None,
    max_steps: int | None = None,
) -> LstsqResult:
    """Minimises `sum_i w_i (a_i . x - b_i)^2 + ridge ||x||^2`, for each column of `b`.

    Methods:

    - "auto" (arrays): "direct" for wide, small or hardly tall problems (`n < 4 d`); otherwise "cholesky_qr", started
      from the normal matrix, or from a sketch if a few rows say that a round from there will not do (condition numbers
      above some 2,500 in double precision, 17 in single).
      For operators: "fossils". `result.method`, `num_steps` and `sketched` say what ran.
    - "cholesky_qr": as accurate as a QR, and only matrix products. A factor of the normal matrix, as for "auto" or from
      the `sketch` that is named, makes `B = a T` well-conditioned; `B^T B` is formed over blocks of rows (`a` is never
      copied), its normal equations are solved, and the answer is refined once. Backward stable up to condition numbers
      near 1 / eps. `5 n d^2` operations a round, nearly always one round.
    - "normal_equations": one round without a sketch or a factor, refined: `2 n d^2`. Status `STALLED` if the
      condition number (above 2,500 in double precision, 17 in single, columns scaled) leaves the answer in doubt.
    - "direct": QR of the rows scaled by `sqrt(w)`, then an SVD of the small triangular factor. Wide `a` is treated
      through its transpose. `4 n d^2 + 20 d^3` operations (`n` and `d` exchanged if wide), and copies of `a`.
    - "sketch_and_solve": solves the short problem `min ||S (a x - b)||` directly: a sketch and `2 m d^2`. A
      fixed factor away from optimal, not accurate: with a Gaussian S of `m` rows, `||a (x' - x)||^2` is on average
      `d / (m - d - 1)` times the squared residual. For loose answers, and for streamed data.
    - "lsqr", "iterative_sketching", "fossils": a sketch preconditions iterations, a product with `a` and one with `a^T`
      per step (`4 n d`), about 15 to 40 of them. LSQR on `a T` from the sketched solution; momentum steps (Epperly
      2023; forward stable); two refinement passes of conjugate gradients (Epperly, Meier and Nakatsukasa 2024;
      backward stable). For operators, sparse `a`, or `d` so large that `n d^2` hurts. For dense `a` of up to a thousand
      columns "cholesky_qr" is faster.

    On a CPU set OPENBLAS_NUM_THREADS=1: LAPACK's threads spin against XLA's, some 50 ms a call.

    Columns whose sizes differ by a factor above a thousand are solved in units of their own, powers of two: time stamps
    in milliseconds beside ones do not hide the ones. The condition number, the rank and the backward error are then
    those of the columns in these units. Multiplying `a`, `b` or `weights` by a constant changes no relative result.

    Directions whose singular value is below 30 epsilons of the largest are left out, and the answer is the one
    of least norm. With `n < d` the answer of least norm interpolates ("direct" only).

    Differentiable to any order with respect to `a`, `b`, `weights` and `ridge`, implicitly: the derivative is that of
    the exact solution, at no cost unless it is asked for ("sketch_and_solve": of the sketched solution). Where `a`
    lacks full rank and `ridge` is 0, the derivative in `a` belongs to the kept directions alone (no other exists). The
    derivative in a weight that is exactly zero is taken as zero for wide or sketched problems, where it need not exist.

    Args:
        a: `(n, d)`, float32 or float64; or an operator with `shape`, `dtype`, `apply` (`(d, q)` to `(n, q)`) and
            `apply_adjoint`, a pytree; or a sparse matrix of SciPy or `jax.experimental.sparse`. Lists and data frames
            of floating-point numbers are arrays too, here and below.
        b: `(n,)` or `(n, q)`, of the same dtype.
        key: one random key. "direct" and "normal_equations" do not use it.
        method: one of the above.
        sketch: "sparse_sign" (the default), "gaussian", "rademacher", "count", "srht", "srdct", "block_srht",
            "pooled"; or a sketch of shape `(m, n)`, such as a `RowSample`. Sketching methods only.
        sketch_size: rows `m >= d` of a sketch that is named; if left out `8 d` for "sketch_and_solve", `4 d` for
            "cholesky_qr" and `12 d` to iterate, the latter two up to 2048 where `a` is tall; for "pooled" the next
            power of two.
        weights: `(n,)` nonnegative row weights of the squared loss; a row of weight zero is not there.
        ridge: nonnegative scalar, traced: a new value does not recompile. It is not sketched.
        tolerance: relative accuracy of the iterations; machine epsilon if left out.
        max_steps: of the iterations, 100 if left out (per pass for "fossils").

    Returns:
        An `LstsqResult`, in the dtype of `a`. Nothing raises in traced code; a solution that is not finite
        has the status `NONFINITE`, and `result.check()` raises on the host.

    Raises:
        ValueError: shapes that do not fit or are empty; dtypes other than float32 and float64; NaN or
            infinite values; negative weights or ridge; an unknown method or sketch; an option the method
            does not use; a sketch smaller than `d`; a wide problem for other methods than "direct". Values are looked
            at only where they are concrete, so not what `jit`, `vmap` or `grad` trace; the look waits for the arrays.

    Examples:
        >>> import jax
        >>> import lrjax as lr
        >>> a = jax.random.normal(jax.random.key(0), (100, 3))
        >>> b = a @ jax.numpy.array([1.0, 2.0, 3.0])
        >>> result = lr.lstsq(a, b, jax.random.key(1))
        >>> [round(float(value), 3) for value in result.x], result.method
        ([1.0, 2.0, 3.0], 'direct')

        A matrix that is never formed, here the rows of `a` beside their running means:

        >>> @lr.pytree
        ... class WithMeans:
        ...     a: jax.Array
        ...     dtype = property(lambda self: self.a.dtype)
        ...     shape = property(lambda self: (self.a.shape[0], 2 * self.a.shape[1]))
        ...
        ...     def apply(self, x):  # (d, q) to (n, q)
        ...         top, bottom = jax.numpy.split(x, 2)
        ...         return self.a @ top + self.means(self.a @ bottom)
        ...
        ...     def apply_adjoint(self, z):  # (n, q) to (d, q)
        ...         back = jax.linear_transpose(self.means, z)
        ...         return jax.numpy.concatenate([self.a.T @ z, self.a.T @ back(z)[0]])
        ...
        ...     def means(self, y):
        ...         return jax.numpy.cumsum(y, axis=0) / jax.numpy.arange(1.0, y.shape[0] + 1)[:, None]
        >>> operator = WithMeans(a=a)
        >>> b = operator.apply(jax.numpy.arange(6.0)[:, None])[:, 0]
        >>> result = lr.lstsq(operator, b, jax.random.key(1))
        >>> bool(jax.numpy.allclose(result.x, jax.numpy.arange(6.0), atol=1e-3)), result.method
        (True, 'fossils')
    """
    check_key(key)
    a, b = inputs.check_matrix(a), inputs.check_array("b", b)
    if len(a.shape) != 2 or b.ndim not in (1, 2) or a.shape[0] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise ValueError(
            f"a has shape {a.shape} and b has shape {b.shape}; expected (n, d) with (n,) or (n, q), and no size zero"
        )
    if a.dtype != b.dtype:
        raise ValueError(f"a has dtype {a.dtype} and b has dtype {b.dtype}; expected one dtype: cast either")
    chosen = _choose(method, a)
    options = {"sketch": sketch, "sketch_size": sketch_size, "tolerance": tolerance, "max_steps": max_steps}
    for name, value in options.items():
        if value is not None and name not in _METHOD_OPTIONS[chosen]:
            raise ValueError(f"{name} is {value!r}; expected None, for the method {chosen!r} does not use it")
    num_rows, num_cols = a.shape
    if chosen != "direct" and num_rows < num_cols:
        raise ValueError(f"a has shape {a.shape}; expected n >= d, since sketching shortens tall problems")
    if chosen in _ITERATIVE:
        max_steps = _MAX_STEPS if max_steps is None else check_count("max_steps", max_steps)
        tolerance = float(jnp.finfo(b.dtype).eps) if tolerance is None else tolerance
    name, made, rows = None, key, None
    if "sketch" in _METHOD_OPTIONS[chosen]:
        name, made, rows = inputs.check_sketch(key, sketch, sketch_size, a.shape, chosen)
    weights = inputs.check_nonnegative("weights", weights, (num_rows,), b.dtype)
    ridge = inputs.check_nonnegative("ridge", ridge, (), b.dtype)
    automatic, wanted = method == "auto" or (chosen == "cholesky_qr" and sketch is None), None
    if automatic and chosen == "cholesky_qr" and is_concrete((a, b, weights, ridge)):
        wanted = host_value(_wants_sketch(a, b, weights, ridge))
    return _solve(
        a,
        b,
        made,
        weights,
        ridge,
        None if tolerance is None else inputs.check_nonnegative("tolerance", tolerance, (), b.dtype),
        method=chosen,
        automatic=automatic,
        wanted=None if wanted is None else bool(wanted),
        sketch=name,
        sketch_size=rows,
        max_steps=max_steps,
    )


def _choose(method: str, a: Any) -> str:
    if method not in ("auto", *_METHOD_OPTIONS):
        raise ValueError(f"method is {method!r}; expected one of {('auto', *_METHOD_OPTIONS)}")
    dense, (n, d) = isinstance(a, jax.Array), a.shape
    if method == "auto":
        small = n < _LEAST_ASPECT * d or n * d < _LEAST_ENTRIES
        return "fossils" if not dense else "direct" if small else "cholesky_qr"
    if not dense and method in ("direct", "normal_equations", "cholesky_qr"):
        raise ValueError(f"method is {method!r} and a is an operator; expected an array, or an iterative method")
    return method


@jax.jit
def _wants_sketch(a: jax.Array, b: jax.Array, weights: jax.Array | None, ridge: jax.Array) -> jax.Array:
    """What `cholesky_qr.solve` would guess: where it can be known beforehand only one way is compiled."""
    columns, weights, even = _ordinary(b, weights)
    units = column_units.choose(a, weights, columns, even, ridge)
    return cholesky_qr.wants_sketch(units.matrix(a), weights, units.ridge(ridge))


def _ordinary(b: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """`b` as columns, and the weights divided by a power of two: by its exponent, the last one."""
    columns = b.reshape(b.shape[0], -1)
    if weights is None:
        return columns, None, jnp.int32(0)
    even = column_units.weight_exponent(weights)
    return columns, weights * power(-even, weights.dtype), even


@functools.partial(jax.jit, static_argnames=("method", "automatic", "wanted", "sketch", "sketch_size", "max_steps"))
def _solve(
    a: Any,
    b: jax.Array,
    made: Any,
    weights: jax.Array | None,
    ridge: jax.Array,
    tolerance: jax.Array | None,
    *,
    method: str,
    automatic: bool,
    wanted: bool | None,
    sketch: str | None,
    sketch_size: int | None,
    max_steps: int | None,
) -> LstsqResult:
    columns, weights, even = _ordinary(b, weights)
    if a.shape[0] < a.shape[1]:
        units = column_units.choose(a, weights, columns, even, ridge, alike=True)
        right, level = units.right_side(columns), units.ridge(ridge)[0]
        dense = units.matrix(a).dense()
        x, factor = direct.wide(*direct.scale_rows(dense, right, weights), level)
        rank = jnp.sum(factor.inverse > 0, dtype=jnp.int32)
        norm, error = direct.wide_errors(dense, right, weights, level, x, rank == a.shape[0])
        worked, steps, sketched = jnp.ones((), bool), jnp.int32(0), jnp.zeros((), bool)
    else:
        draw = lambda: inputs.draw(sketch, made, sketch_size, a.shape[0])
        if automatic and sketch == "sparse_sign" and sketch_size is not None:
            draw = lambda: _cheap_sketch(made, sketch_size, *a.shape)
        # The sketch of an operator shows what its columns are like; an array can be looked at.
        dense, short = isinstance(a, jax.Array), None
        if not dense:
            short = inputs.sketched(draw(), a, weights)
        seen = (a, weights) if short is None else (short, None)
        units = column_units.choose(*seen, columns, even, ridge)
        scaled, right, level = units.matrix(a), units.right_side(columns), units.ridge(ridge)
        # Constants to autodiff: the derivative is attached below.
        fixed = jax.lax.stop_gradient((scaled, right, weights, level))
        if method == "sketch_and_solve":
            x, factor = _sketch_and_solve(scaled, right, weights, level, draw())
            worked, steps, sketched = jnp.ones((), bool), jnp.int32(0), jnp.ones((), bool)
        else:
            x, factor, worked, steps, sketched = _tall(
                fixed, draw, tolerance, method, automatic, wanted, sketch_size, max_steps
            )
            x = normal_equations.at_minimum(scaled, right, weights, level, x, factor)
        # A constant to autodiff: it measures and preconditions.
        factor = jax.lax.stop_gradient(factor)
        x = column_units.least_norm(x, factor.basis, factor.inverse, units.columns)
        norm, error = _errors(scaled, right, weights, level, x, factor)
        rank = jnp.sum(factor.inverse > 0, dtype=jnp.int32)
        if method in ("cholesky_qr", "fossils"):  # a sketch that hides a direction of `a` would otherwise pass
            worked = worked & jnp.all(error < float(jnp.finfo(b.dtype).eps) ** 0.5)
    x, norm = units.solution(x), units.norm(norm)
    code = jnp.where(worked, status.CONVERGED, status.RUNNING if method in _ITERATIVE else status.STALLED)
    code = jnp.where(tree_isfinite((x, norm)), code, status.NONFINITE).astype(jnp.int32)
    return LstsqResult(
        x=x.reshape(a.shape[1:] + b.shape[1:]),
        residual_norm=norm.reshape(b.shape[1:]),
        backward_error=error.reshape(b.shape[1:]),
        condition=factor.condition(),
        rank=rank,
        status=code,
        num_steps=steps + 0 * code,
        sketched=sketched,
        method=method,
    )


def _cheap_sketch(key: jax.Array, rows: int, n: int, d: int) -> CountSketch | SparseSignSketch:
    if rows <= _COUNT_ROWS * d**2 <= _COUNT_SHARE * n:
        return CountSketch.create(key, _COUNT_ROWS * d**2, n)
    return SparseSignSketch.create(key, rows, n, num_nonzeros=min(_AUTO_NONZEROS, rows))


def _tall(
    fixed: tuple,
    draw: Any,
    tolerance: Any,
    method: str,
    automatic: bool,
    wanted: bool | None,
    sketch_size: int | None,
    max_steps: Any,
) -> tuple[jax.Array, Factor, jax.Array, jax.Array, jax.Array]:
    """Solution, factor, whether it worked, steps, and whether a sketch was used."""
    a, b, weights, ridge = fixed
    yes, no = jnp.ones((), bool), jnp.zeros((), bool)
    if method == "direct":
        return *direct.tall(a.dense(), b, weights, ridge), yes, jnp.int32(0), no
    short = lambda: inputs.sketched(draw(), a.matrix, weights) * a.columns[None, :]
    factor_of_sketch = lambda: normal_equations.sketched_factor(short(), ridge)
    if method == "normal_equations":
        return cholesky_qr.solve(a, b, weights, ridge, None, max_rounds=1)
    if method == "cholesky_qr":
        start = None if wanted is False else factor_of_sketch
        return cholesky_qr.solve(a, b, weights, ridge, start, guess=automatic and wanted is None)
    x, factor = _sketch_and_solve(a, b, weights, ridge, draw())
    more = {"sketch_size": sketch_size} if method == "iterative_sketching" else {}
    x, done, steps = _ITERATIVE[method](a, b, weights, ridge, factor, x, tolerance, max_steps, **more)
    return x, factor, done, steps, yes


def _sketch_and_solve(
    a: Scaled, b: jax.Array, weights: jax.Array | None, ridge: jax.Array, sketch: Any
) -> tuple[jax.Array, Factor]:
    # One sketch for both, applied to each: `[a, b]` would be a copy.
    short = inputs.sketched(sketch, a.matrix, weights) * a.columns[None, :]
    target = sketch.apply(b if weights is None else direct.safe_sqrt(weights)[:, None] * b)
    # Constants to autodiff: the derivative is attached.
    x, factor = direct.tall(*jax.lax.stop_gradient((short, target, None, ridge)))
    return normal_equations.at_minimum(short, target, None, ridge, x, factor), factor


def _errors(
    a: Scaled, b: jax.Array, weights: jax.Array | None, ridge: jax.Array, x: jax.Array, factor: Factor
) -> tuple:
    """Residual norms, differentiable, and backward errors, not."""
    squares = (b - normal_equations.forward(a, x)) ** 2
    norm = direct.safe_sqrt(jnp.sum(normal_equations.weigh(weights, squares), axis=0))
    # Reported, not differentiated.
    error = normal_equations.backward_error(*jax.lax.stop_gradient((a, b, weights, ridge, x, factor)))[1]
    return norm, error
