"""Least squares over blocks of rows, for `a` that does not fit into memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lrjax import status
from lrjax.core.checks import check_choice, check_count, check_key, check_range
from lrjax.sketching.regression import cholesky_qr, column_units, direct, inputs, normal_equations
from lrjax.sketching.regression.least_squares import LstsqResult
from lrjax.sketching.regression.normal_equations import Factor
from lrjax.sketching.sparse import SparseSignSketch

_BLOCK_ENTRIES = 2**22
METHODS = ("cholesky_qr", "sketch_and_solve")


def lstsq_blocks(
    blocks: Callable[[], Iterable[tuple[Any, Any]]] | Iterable[tuple[Any, Any]],
    key: jax.Array,
    *,
    method: str = "cholesky_qr",
    sketch_size: int | None = None,
    ridge: float = 0.0,
    block_rows: int | None = None,
) -> LstsqResult:
    """Minimises `||b - a x||^2 + ridge ||x||^2` over rows that come in blocks, one block in memory at a time.

    - "sketch_and_solve": one pass, so an iterator is enough. The answer is a fixed factor away from optimal.
    - "cholesky_qr": three passes: a sketch, the products `B^T B` with `B = a T` well-conditioned, and residuals
      for one step of refinement. As accurate as a QR of the whole. More passes follow if the sketch was poor.

    The sketch of all rows is the sum of sparse sign sketches of the blocks. Each shape of a block is compiled once: cut
    them alike. Runs on the host; not for use inside `jit`. Weights go into the rows: multiply both by `sqrt(w)`.

    Args:
        blocks: one pair `a` `(n, d)`, `b` `(n,)` or `(n, q)` of NumPy arrays, float32 or float64, such as
            memory-mapped files: read in blocks of rows. Or what yields such pairs: a list of them, a function that
            returns an iterator of them afresh, or for one pass the iterator itself.
        key: one random key.
        method: as above.
        sketch_size: rows of the sketch, at least `d`; `12 d` and at least 1024 if left out.
        ridge: nonnegative.
        block_rows: rows read at a time from one pair of arrays; what 2^22 numbers make if left out. Not for blocks.

    Returns:
        An `LstsqResult`. After one pass `residual_norm` and `backward_error` are not known (NaN). After three,
        `residual_norm` is that before the last refinement, and `backward_error` likewise: upper estimates.

    Raises:
        ValueError: blocks that do not fit together, none at all, an iterator that is exhausted where several passes are
            needed, or a method, size or ridge out of range.

    Examples:
        >>> import jax, numpy as np
        >>> import lrjax as lr
        >>> rng = np.random.default_rng(0)
        >>> def blocks():
        ...     rng = np.random.default_rng(0)
        ...     for _ in range(4):
        ...         a = rng.standard_normal((500, 3)).astype(np.float32)
        ...         yield a, a @ np.array([1, 2, 3], np.float32)
        >>> result = lr.sketching.lstsq_blocks(blocks, jax.random.key(0))
        >>> [round(float(value), 3) for value in result.x]
        [1.0, 2.0, 3.0]

        Two arrays, here of NumPy and as well those that `np.load(file, mmap_mode="r")` returns:

        >>> a, b = (np.concatenate(part) for part in zip(*blocks()))
        >>> result = lr.sketching.lstsq_blocks((a, b), jax.random.key(0))
        >>> [round(float(value), 3) for value in result.x]
        [1.0, 2.0, 3.0]
    """
    check_key(key)
    check_choice("method", method, METHODS)
    check_range("ridge", ridge, low=0)
    if _is_pair(blocks):
        a, b = blocks  # type: ignore[misc]
        blocks = _rows_of(a, b, block_rows)
    elif block_rows is not None:
        raise ValueError(f"block_rows is {block_rows!r}; expected None, for the blocks have sizes of their own")
    if method == "cholesky_qr" and not callable(blocks) and isinstance(blocks, Iterator):
        raise ValueError(
            "blocks is an iterator (a generator, say), which can be read once; cholesky_qr reads the rows three times. "
            "Give the function that makes it (f, not f()), a list of the pairs, or two arrays as a pair (a, b); or use "
            "method='sketch_and_solve', for which one pass is enough"
        )
    short = target = None
    vector = False
    for index, (a, b, is_vector) in enumerate(_each(blocks)):
        vector = is_vector
        if short is None or target is None:
            size = max(12 * a.shape[1], 1024) if sketch_size is None else sketch_size
            size = check_count("sketch_size", size, minimum=a.shape[1])
            short, target = jnp.zeros((size, a.shape[1]), a.dtype), jnp.zeros((size, b.shape[1]), b.dtype)
        short, target = _add_sketch(short, target, a, b, jax.random.fold_in(key, index))
    if short is None or target is None:
        raise ValueError("blocks yielded nothing; expected at least one pair (a, b)")
    # The sketch shows of what size the columns are.
    level = jnp.asarray(ridge, short.dtype)
    units = column_units.choose(short, None, target, jnp.int32(0), level)
    level = units.ridge(level)
    x, factor = direct.tall(units.matrix(short).dense(), units.right_side(target), None, level)
    norm = error = jnp.full(x.shape[1], jnp.nan, x.dtype)
    worked, rounds = jnp.ones((), bool), 0
    if method == "cholesky_qr":
        enough, worked, last = cholesky_qr.enough(x.dtype), jnp.zeros((), bool), None
        while rounds < cholesky_qr.MAX_ROUNDS and not worked:
            total = None
            for a, b, _ in _each(blocks):
                products = _products(a, b, factor, units)
                total = products if total is None else jax.tree.map(jnp.add, total, products)
            last = cholesky_qr.finish(factor, *total, level, jnp.int32(rounds))
            factor, x, worked, rounds = last.better, last.x, bool(last.condition <= enough), rounds + 1
        assert last is not None
        down, square = -level[:, None] * x, jnp.zeros(x.shape[1], x.dtype)
        for a, b, _ in _each(blocks):
            more, part = _residual(a, b, x, units)
            down, square = down + more, square + part
        norm = jnp.sqrt(square)
        error = normal_equations.estimate(square, down, x, level, factor)
        x = x + last.solve(down)
        worked = jnp.asarray(worked)
    x, norm = units.solution(column_units.least_norm(x, factor.basis, factor.inverse, units.columns)), units.norm(norm)
    code = jnp.where(worked, status.CONVERGED, status.STALLED)
    code = jnp.where(jnp.all(jnp.isfinite(x)), code, status.NONFINITE).astype(jnp.int32)
    cut = (lambda value: value[..., 0]) if vector else (lambda value: value)
    return LstsqResult(
        x=cut(x),
        residual_norm=cut(norm),
        backward_error=cut(error),
        condition=factor.condition(),
        rank=jnp.sum(factor.inverse > 0, dtype=jnp.int32),
        status=code,
        num_steps=jnp.int32(rounds),
        sketched=jnp.ones((), bool),
        method=method,
    )


def _each(blocks: Any) -> Iterator[tuple[jax.Array, jax.Array, bool]]:
    """The blocks, checked, `b` as a matrix; and whether it was a vector."""
    first = None
    for index, pair in enumerate(_iterable(blocks)):
        a, b = (inputs.check_array(f"{name} of block {index}", part) for name, part in zip("ab", pair, strict=True))
        shape = (a.ndim, a.shape[-1], b.ndim, b.shape[1:], a.dtype, b.dtype)
        first = shape if first is None else first
        if a.ndim != 2 or b.ndim not in (1, 2) or a.shape[0] != b.shape[0] or a.dtype != b.dtype or shape != first:
            raise ValueError(
                f"block {index} has a of shape {a.shape}, {a.dtype}, and b of shape {b.shape}, {b.dtype}; expected "
                "(n, d) with (n,) or (n, q) of one dtype, and the same d, q and dtype in all blocks"
            )
        yield a, b.reshape(b.shape[0], -1), b.ndim == 1


def _is_pair(blocks: Any) -> bool:
    """Whether this is one pair of arrays, and not two blocks."""
    return isinstance(blocks, tuple) and len(blocks) == 2 and all(hasattr(part, "shape") for part in blocks)


def _rows_of(a: Any, b: Any, block_rows: int | None) -> Callable[[], Iterator[tuple[Any, Any]]]:
    """Blocks of the rows of two arrays, of which only a block is ever read."""
    if len(a.shape) != 2 or len(b.shape) not in (1, 2) or a.shape[0] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise ValueError(
            f"a has shape {a.shape} and b has shape {b.shape}; expected (n, d) with (n,) or (n, q), and no size zero"
        )
    rows = max(1, _BLOCK_ENTRIES // a.shape[1]) if block_rows is None else check_count("block_rows", block_rows)

    def blocks() -> Iterator[tuple[Any, Any]]:
        for begin in range(0, a.shape[0], rows):
            yield a[begin : begin + rows], b[begin : begin + rows]

    return blocks


def _iterable(blocks: Any) -> Any:
    return blocks() if callable(blocks) else blocks


@jax.jit
def _add_sketch(short: jax.Array, target: jax.Array, a: jax.Array, b: jax.Array, key: jax.Array) -> tuple:
    sketch = SparseSignSketch.create(key, short.shape[0], a.shape[0], num_nonzeros=min(8, short.shape[0]))
    return short + sketch.apply(a), target + sketch.apply(b)


@jax.jit
def _products(a: jax.Array, b: jax.Array, factor: Factor, units: column_units.Units) -> tuple[jax.Array, jax.Array]:
    return cholesky_qr.gram(units.matrix(a), units.right_side(b), None, factor)


@jax.jit
def _residual(a: jax.Array, b: jax.Array, x: jax.Array, units: column_units.Units) -> tuple[jax.Array, jax.Array]:
    scaled = units.matrix(a)
    residual = units.right_side(b) - normal_equations.forward(scaled, x)
    return normal_equations.adjoint(scaled, residual), jnp.sum(residual**2, axis=0)
