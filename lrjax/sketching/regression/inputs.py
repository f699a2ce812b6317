"""What `lstsq` takes: matrices, operators, weights, and the sketches by name."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import _narrowed as narrowed
from lrjax.core.checks import check_count, host_array, real_array, single_or_double
from lrjax.core.pytree import is_concrete, pytree
from lrjax.sketching.dense import GaussianSketch, RademacherSketch
from lrjax.sketching.regression import direct, normal_equations
from lrjax.sketching.sparse import CountSketch, SparseSignSketch
from lrjax.sketching.transforms import SRDCT, SRHT, BlockSRHT, PooledSketch

SKETCHES = {
    "sparse_sign": SparseSignSketch,
    "gaussian": GaussianSketch,
    "rademacher": RademacherSketch,
    "count": CountSketch,
    "srht": SRHT,
    "srdct": SRDCT,
    "block_srht": BlockSRHT,
    "pooled": PooledSketch,
}
# Rows of a sketch per column of `a`; where `a` is much taller than that at least `LEAST_ROWS` of the sketches that
# precondition, of which more rows cost nothing.
ROWS_PER_COLUMN = {"sketch_and_solve": 8, "cholesky_qr": 4}
ROWS_TO_ITERATE = 12
LEAST_ROWS = 2048
# Rows of a sketch whose adjoint images are formed at a time, where `a` is an operator.
SKETCH_ROWS = 32


@pytree
class SparseMatrix:
    """A `jax.experimental.sparse` matrix as an operator."""

    matrix: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def dtype(self) -> Any:
        """Of its entries."""
        return self.matrix.dtype

    def apply(self, x: jax.Array) -> jax.Array:
        """`(d, q)` to `(n, q)`."""
        # Sparse products take no precision; an accelerator would round the factors to 11 bits.
        with jax.default_matmul_precision("highest"):
            return self.matrix @ x

    def apply_adjoint(self, z: jax.Array) -> jax.Array:
        """`(n, q)` to `(d, q)`."""
        with jax.default_matmul_precision("highest"):
            return self.matrix.T @ z


def sparse_operator(name: str, a: Any) -> Any:
    """A sparse matrix of SciPy or `jax.experimental.sparse` as an operator; anything else as it is."""
    if type(a).__module__.startswith("jax.experimental.sparse"):
        a = _as_bcoo(a)
    elif hasattr(a, "tocoo"):
        from jax.experimental import sparse  # slow to load, and seldom needed

        coo = a.tocoo()
        if len(coo.shape) != 2:
            raise ValueError(f"{name} has shape {coo.shape}; expected a matrix")
        entries = jnp.asarray(np.stack([coo.row, coo.col], axis=1), jnp.int32)
        a = sparse.BCOO((real_array(name, coo.data), entries), shape=coo.shape)
    else:
        return a
    if len(a.shape) != 2 or a.n_batch or a.n_dense:
        raise ValueError(
            f"{name} has shape {a.shape}, {a.n_batch} batch and {a.n_dense} dense axes; expected a matrix without"
        )
    single_or_double(name, a.data)
    _refuse_nonfinite(name, a.data)
    return SparseMatrix(matrix=a)


def _as_bcoo(a: Any) -> Any:
    from jax.experimental import sparse

    if isinstance(a, sparse.BCOO):
        return a
    if isinstance(a, sparse.BCSR):
        return a.to_bcoo()
    if isinstance(a, sparse.COO):
        return sparse.BCOO((a.data, jnp.stack([a.row, a.col], axis=1)), shape=a.shape)
    if isinstance(a, sparse.CSR):
        return sparse.BCSR((a.data, a.indices, a.indptr), shape=a.shape).to_bcoo()
    if isinstance(a, sparse.CSC):
        return sparse.BCSR((a.data, a.indices, a.indptr), shape=a.shape[::-1]).to_bcoo().T
    raise ValueError(f"a is a {type(a).__name__}; expected one of the matrices BCOO, BCSR, COO, CSR and CSC")


def check_matrix(a: Any) -> Any:
    """The matrix of a regression: an array, a sparse matrix or an operator, its entries finite."""
    a = sparse_operator("a", a)
    if all(hasattr(a, name) for name in ("apply", "apply_adjoint", "shape", "dtype")):
        # A data frame has all of these names too, with another meaning of the first.
        if not hasattr(a, "iloc"):
            return single_or_double("a", a)
    return check_array("a", a)


def check_array(name: str, value: Any) -> jax.Array:
    """An array of finite numbers, on the device."""
    value = single_or_double(name, host_array(name, value))
    _refuse_nonfinite(name, value)
    return real_array(name, value)


def _refuse_nonfinite(name: str, value: np.ndarray | jax.Array) -> None:
    if not is_concrete(value):
        return
    if isinstance(value, np.ndarray):
        finite = np.isfinite(np.max(np.abs(value), initial=0))
    else:
        # Evaluated at once even if a jit around us is tracing and `value` is one of its constants.
        with jax.ensure_compile_time_eval():
            finite = _all_finite(value)
    if not finite:
        raise ValueError(f"{name} holds NaN or infinite values; expected finite ones")


# The largest modulus shows a NaN or an infinity, in a third of the time of looking at each entry.
_all_finite = jax.jit(lambda value: jnp.isfinite(jnp.max(jnp.abs(value), initial=0)))


def check_nonnegative(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Weights or ridges: nonnegative, finite and of that shape."""
    if name == "weights" and value is None:
        return None
    value = host_array(name, value)
    if jnp.shape(value) != shape:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; expected {shape}")
    if jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        raise ValueError(f"{name} has dtype {jnp.result_type(value)}; expected a real one")
    if is_concrete(value):
        worst = np.min(np.asarray(value))
        if not (worst >= 0 and np.all(np.isfinite(value))):
            raise ValueError(f"{name} has the least value {worst}; expected finite values of at least 0")
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = narrowed(name, value, dtype)
    return jnp.asarray(value, dtype)


def check_sketch(
    key: jax.Array, sketch: Any, size: Any, shape: tuple[int, int], method: str
) -> tuple[str | None, Any, int | None]:
    """Name, random key or the sketch itself, and rows."""
    n, d = shape
    if sketch is not None and not isinstance(sketch, str):
        if size is not None:
            raise ValueError(f"sketch_size is {size!r}; expected None, for the sketch has a size of its own")
        given = getattr(sketch, "shape", None)
        if given is None or len(given) != 2 or given[1] != n or given[0] < d or not hasattr(sketch, "apply"):
            raise ValueError(
                f"sketch is a {type(sketch).__name__} of shape {given}; expected a name or a sketch (m, {n}), m >= {d}"
            )
        return None, sketch, given[0]
    name = "sparse_sign" if sketch is None else sketch
    if name not in SKETCHES:
        raise ValueError(f"sketch is {sketch!r}; expected one of {tuple(SKETCHES)}, or a sketch")
    rows = size
    if rows is None:
        rows = ROWS_PER_COLUMN.get(method, ROWS_TO_ITERATE) * d
        rows = rows if method == "sketch_and_solve" else max(rows, min(LEAST_ROWS, n // 8))
        if name == "pooled":
            rows = 1 << (rows - 1).bit_length()
        elif name in ("srht", "srdct"):
            rows = min(rows, n)
    return name, key, check_count("sketch_size", rows, minimum=d)


def draw(name: str | None, made: Any, rows: int | None, num_cols: int) -> Any:
    """The sketch of that name, drawn with the key `made`; one that was given is returned."""
    if name is None or rows is None:
        return made
    if name == "sparse_sign":
        return SparseSignSketch.create(made, rows, num_cols, num_nonzeros=min(8, rows))
    return SKETCHES[name].create(made, rows, num_cols)


def sketched(sketch: Any, a: Any, weights: jax.Array | None) -> jax.Array:
    """`S sqrt(W) a`, `(m, d)`."""
    root = None if weights is None else direct.safe_sqrt(weights)
    if isinstance(a, jax.Array):
        return sketch.apply(normal_equations.weigh(root, a))
    rows = sketch.shape[0]
    count = -(-rows // SKETCH_ROWS)

    def block(index: jax.Array) -> jax.Array:
        at = index * SKETCH_ROWS + jnp.arange(SKETCH_ROWS, dtype=jnp.int32)
        picked = (jnp.arange(rows, dtype=jnp.int32)[:, None] == at[None, :]).astype(a.dtype)
        return a.apply_adjoint(normal_equations.weigh(root, sketch.apply_adjoint(picked))).T

    blocks = jax.lax.map(block, jnp.arange(count, dtype=jnp.int32))
    return blocks.reshape(count * SKETCH_ROWS, a.shape[1])[:rows]
