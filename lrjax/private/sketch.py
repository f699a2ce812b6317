"""The three linear sketches of a streamed matrix."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrjax.core.checks import (
    as_array,
    check_count,
    check_finite,
    check_indices,
    check_key,
    check_shape,
    float_dtype,
    host_array,
    number,
)
from lrjax.core.numerics import matmul, safe_reciprocal
from lrjax.core.pytree import pytree, replace
from lrjax.linalg import guarded
from lrjax.problems.factors import Factors


@pytree
class LowRankSketch:
    """Three linear sketches of an `n1 x n2` matrix that arrives as a stream, enough for a low-rank approximation.

    `columns = X P`, `rows = Q X` and `core = S X T` with public Gaussian `P (n2, s)`, `Q (s, n1)`, `S (c, n1)` and
    `T (n2, c)`, scaled so that the norm of a fixed matrix is kept on average. All is linear in `X`: the order of
    updates is irrelevant, and sketches of parts, made with one key, add up (`merge`). Without noise nothing is private.

    Build it with `create`. Memory `2 s (n1 + n2) + c (n1 + n2)` numbers and a few more; `X` is never held.

    Attributes:
        column_map: `P`.
        row_map: `Q`.
        core_left: `S`.
        core_right: `T`.
        columns: `(n1, s)`.
        rows: `(s, n2)`.
        core: `(c, c)`.

    Examples:
        >>> import jax, jax.numpy as jnp, lrjax as lr
        >>> sketch = lr.private.LowRankSketch.create(jax.random.key(0), (30, 20), size=8, core_size=20)
        >>> sketch = sketch.add_rows(jnp.array([3, 7]), jnp.ones((2, 20)))
        >>> x = sketch.low_rank(1)
        >>> bool(jnp.allclose(x.entries(jnp.array([3, 4]), jnp.array([0, 0])), jnp.array([1.0, 0.0]), atol=1e-3))
        True
    """

    column_map: jax.Array
    row_map: jax.Array
    core_left: jax.Array
    core_right: jax.Array
    columns: jax.Array
    rows: jax.Array
    core: jax.Array

    @staticmethod
    def create(
        key: jax.Array, shape: tuple[int, int], *, size: int, core_size: int | None = None, dtype: Any = None
    ) -> "LowRankSketch":
        """The sketch of the zero matrix.

        Args:
            key: random key of the public maps. Never the key of noise.
            shape: `(n1, n2)`.
            size: `s`, columns and rows kept: a few times the rank wanted. At most `min(n1, n2)`.
            core_size: `c`, at least `2 s`; `3 s` if left out. The maps of the core are inverted, on `s` dimensions, and
                noise grows by that.
            dtype: float32 or float64; default JAX's current default float.

        Raises:
            ValueError: not one key, or sizes that do not fit.
        """
        check_key(key)
        n1, n2 = check_shape(shape)
        if check_count("size", size) > min(n1, n2):
            raise ValueError(f"size must be at most {min(n1, n2)}, the smaller side of {(n1, n2)}; got {size}")
        wide = 3 * size if core_size is None else check_count("core_size", core_size)
        if wide < 2 * size:
            raise ValueError(f"core_size must be at least {2 * size}, twice the size; got {wide}")
        dtype = float_dtype(dtype)
        if dtype not in (np.dtype("float32"), np.dtype("float64")):
            raise ValueError(f"dtype must be float32 or float64; got {dtype}")
        keys = jax.random.split(key, 4)
        draw = lambda key, shape, count: jax.random.normal(key, shape, dtype) * jnp.asarray(count**-0.5, dtype)
        return LowRankSketch(
            column_map=draw(keys[0], (n2, size), size),
            row_map=draw(keys[1], (size, n1), size),
            core_left=draw(keys[2], (wide, n1), wide),
            core_right=draw(keys[3], (n2, wide), wide),
            columns=jnp.zeros((n1, size), dtype),
            rows=jnp.zeros((size, n2), dtype),
            core=jnp.zeros((wide, wide), dtype),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """`(n1, n2)` of the matrix sketched."""
        return self.row_map.shape[-1], self.column_map.shape[-2]

    def add(self, change: jax.Array) -> "LowRankSketch":
        """`X + change` for a dense `(n1, n2)` change."""
        change = self._checked("change", change, self.shape)
        seen = matmul(self.core_left, change)
        return self._plus(matmul(change, self.column_map), matmul(self.row_map, change), matmul(seen, self.core_right))

    def add_rows(self, indices: jax.Array, values: jax.Array) -> "LowRankSketch":
        """Adds the rows `values (q, n2)` to the rows `indices (q,)` of `X`; an index may occur more than once.

        Indices out of range are refused outside of jit and ignored inside.
        """
        indices = self._indices("indices", indices, self.shape[0])
        values = self._checked("values", values, (indices.shape[0], self.shape[1]))
        return self._plus(
            _scatter(matmul(values, self.column_map), indices, self.shape[0]),
            matmul(_columns(self.row_map, indices), values),
            matmul(_columns(self.core_left, indices), matmul(values, self.core_right)),
        )

    def add_entries(self, rows: jax.Array, cols: jax.Array, values: jax.Array) -> "LowRankSketch":
        """Adds `values (q,)` at `(rows, cols)`, arbitrary updates of single entries; repeated ones add up."""
        rows = self._indices("rows", rows, self.shape[0])
        cols = self._indices("cols", cols, self.shape[1])
        if rows.shape != cols.shape:
            raise ValueError(f"rows and cols must have one length; got {rows.shape} and {cols.shape}")
        values = self._checked("values", values, rows.shape)
        weighted = values[:, None] * _columns(self.core_right.T, cols).T
        return self._plus(
            _scatter(values[:, None] * _columns(self.column_map.T, cols).T, rows, self.shape[0]),
            _scatter(values[:, None] * _columns(self.row_map, rows).T, cols, self.shape[1]).T,
            matmul(_columns(self.core_left, rows), weighted),
        )

    def merge(self, other: "LowRankSketch") -> "LowRankSketch":
        """The sketch of the sum of both matrices; both must have been created with one key, sizes and dtype.

        The noise of the two adds up as well: servers that add noise to their own sketches need no trust in who merges.

        Raises:
            ValueError: other maps (compared outside of jit only).
        """
        check_maps("other", other, self)
        return self._plus(other.columns, other.rows, other.core)

    def noisy(self, key: jax.Array, deviations: tuple[Any, Any, Any]) -> "LowRankSketch":
        """Adds independent Gaussian noise of the three deviations to `columns`, `rows` and `core`.

        Once: before the stream, so that the state itself is covered, or after it; the result has the same law. Take the
        deviations from `noise_deviations`, and a separate key for each call, kept secret.

        Raises:
            ValueError: not one key, or not three deviations, each at least zero.
        """
        check_key(key)
        deviations = check_deviations(deviations, self.core.dtype)
        keys, parts = jax.random.split(key, 3), (self.columns, self.rows, self.core)
        return self._plus(*(gaussian_like(k, d, part) for k, d, part in zip(keys, deviations, parts, strict=True)))

    def low_rank(self, rank: int, *, cut: float | None = None) -> Factors:
        """An approximation of `X` of the given rank, at most `size`.

        The best core `C` of that rank for `||S U C V^T T - core||`, `U` and `V` orthonormal bases of the sketched
        columns and rows. Singular values of `S U` and `V^T T` below `cut` of the largest are not inverted (default: the
        number of rows times epsilon).

        Cost: `O((n1 + n2)(s^2 + s c) + c^2 s)`.
        """
        size = self.columns.shape[-1]
        if check_count("rank", rank) > size:
            raise ValueError(f"rank must be at most the size of the sketch, {size}; got {rank}")
        dtype = self.core.dtype
        cut = self.core.shape[0] * float(jnp.finfo(dtype).eps) if cut is None else cut
        level = number("cut", cut, dtype, low=0, high=0.5)
        u, v = guarded.qr(self.columns)[0], guarded.qr(self.rows.T)[0]
        from_left, weights_left, to_left = guarded.svd(matmul(self.core_left, u))
        from_right, weights_right, to_right = guarded.svd(matmul(self.core_right.T, v))
        inner = matmul(from_left.T, matmul(self.core, from_right))
        a, s, bt = guarded.svd(inner)
        left = _inverse(weights_left, level)[:, None] * a[:, :rank] * s[None, :rank]
        right = _inverse(weights_right, level)[:, None] * bt.T[:, :rank]
        return Factors(matmul(u, matmul(to_left.T, left)), matmul(v, matmul(to_right.T, right)))

    def _plus(self, columns: jax.Array, rows: jax.Array, core: jax.Array) -> "LowRankSketch":
        return replace(self, columns=self.columns + columns, rows=self.rows + rows, core=self.core + core)

    def _checked(self, name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
        value = as_array(name, value)
        if value.shape != shape or value.dtype != self.core.dtype:
            seen = f"{value.shape}, {value.dtype}"
            raise ValueError(f"{name} must have shape {shape} and dtype {self.core.dtype}; got {seen}")
        check_finite(name, value)
        return value

    def _indices(self, name: str, value: Any, bound: int) -> jax.Array:
        value = check_indices(name, value, bound)
        if value.ndim != 1:
            raise ValueError(f"{name} must be a vector of integers; got shape {value.shape}")
        if not isinstance(value, Tracer):
            return as_array(name, value)
        # JAX counts negative indices from the end.
        value = value.astype(jnp.promote_types(value.dtype, jnp.int32))
        return jnp.where(value < 0, jnp.asarray(bound, value.dtype), value)


def check_maps(name: str, given: Any, like: LowRankSketch) -> None:
    """Raises a `ValueError` unless `given` is a sketch by the maps of `like`, compared outside of jit only."""
    if not isinstance(given, LowRankSketch):
        raise ValueError(f"{name} must be a LowRankSketch; got {type(given).__name__}")
    for part in ("column_map", "row_map", "core_left", "core_right"):
        one, two = getattr(like, part), getattr(given, part)
        same = one.shape == two.shape and one.dtype == two.dtype
        if same and not isinstance(one, Tracer) and not isinstance(two, Tracer):
            same = bool(np.array_equal(one, two))
        if not same:
            raise ValueError(f"{name} must have been created with the same key, shape, sizes and dtype")


def check_deviations(deviations: Any, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Three numbers of at least zero in `dtype`.

    Raises:
        ValueError: for anything else, and for what is too small for the dtype, where no noise would be left.
    """
    if not (isinstance(deviations, (list, tuple)) or jnp.ndim(host_array("deviations", deviations)) == 1):
        raise ValueError(f"deviations must be three numbers; got {deviations!r}")
    if len(deviations) != 3:
        raise ValueError(f"deviations must be three numbers; got {len(deviations)}")
    first, second, third = (number(f"deviations[{i}]", deviations[i], dtype, low=0) for i in range(3))
    return first, second, third


def _columns(matrix: jax.Array, indices: jax.Array) -> jax.Array:
    return jnp.take(matrix, indices, axis=1, mode="fill", fill_value=0)


def _scatter(rows: jax.Array, indices: jax.Array, n: int) -> jax.Array:
    return jnp.zeros((n, rows.shape[1]), rows.dtype).at[indices].add(rows, mode="drop")


def gaussian_like(key: jax.Array, deviation: Any, like: jax.Array) -> jax.Array:
    """Gaussian noise of this deviation, of the shape and dtype of `like`."""
    return jnp.asarray(deviation, like.dtype) * jax.random.normal(key, like.shape, like.dtype)


def _inverse(values: jax.Array, level: Any) -> jax.Array:
    kept = values > level * values[0]
    return safe_reciprocal(values, kept)
