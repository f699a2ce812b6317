"""Many tall least-squares problems at once, each by conjugate gradients preconditioned by a sketch of its rows."""

from functools import partial

import jax
import jax.numpy as jnp

from lrjax.core.numerics import matmul, safe_divide
from lrjax.core.pytree import pytree
from lrjax.linalg.krylov import preconditioned_conjugate_gradient
from lrjax.linalg.rows import eliminate
from lrjax.linalg.segments import Segments

# Rows of the sketch per column: the preconditioned singular values lie within 1 / (1 +- 1/2), so that conjugate
# gradients gain a factor of two per step. More rows gain less than they cost.
SKETCH_ROWS = 4
# A problem with fewer rows than this many times the sketch's is not worth sketching.
WORTH = 2
# Steps of the solve for a derivative, which has to be exact.
DERIVATIVE_STEPS = 200


@pytree
class SketchedRows:
    """How the rows of a factor are solved for by sketches.

    Attributes:
        key: of the sketches.
        start: `(n, k)`, the rows to start from.
        tolerance: a row is done when its error, as a change of the fitted measurements, has fallen below this
            fraction of the norm of its measurements.
        num_steps: conjugate gradient steps at most.
    """

    key: jax.Array
    start: jax.Array
    tolerance: jax.Array | float
    num_steps: int = jax.tree.static()

    def worth(self, length: float, k: int) -> bool:
        """Whether rows of this length are long enough to gain by a sketch."""
        return length >= WORTH * SKETCH_ROWS * k

    def pattern(self, chunks: int, length: int, k: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Order `(length,)` of the entries in each chunk, and where chunks begin in the sketch and signs of entries."""
        key_order, key_sign, key_begin = jax.random.split(jax.random.fold_in(self.key, length), 3)
        order = jax.random.permutation(key_order, jnp.arange(length, dtype=jnp.int32))
        begin = jax.random.randint(key_begin, (chunks,), 0, max(1, -(-SKETCH_ROWS * k // length)), jnp.int32)
        return order, (begin, jax.random.rademacher(key_sign, (chunks, length), self.start.dtype))


def solve_rows_sketched(
    a: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    rows: Segments,
    shift: jax.Array,
    mask: jax.Array | None,
    sketch: tuple[jax.Array, jax.Array],
    start: jax.Array,
    sketched: SketchedRows,
) -> tuple[jax.Array, jax.Array]:
    """`argmin over x_i of sum_j w_ij (a_ij . x_i - y_ij)^2 + shift_i ||x_i||^2` for every `i`, and the misfit there.

    The sketch is a CountSketch: an entry is added to a row of the sketch with a random sign, the entries of a chunk to
    rows in sequence, from a random one on, in an order that the caller has made random. That is one pass over the
    entries; the Gram matrix of `s = 4 k` rows or a few more, inverted, is the preconditioner.

    Args:
        a: `(chunks, length, k)`, zero in padded places.
        y: `(chunks, length)`.
        weights: `(chunks, length)` or `None`.
        rows: the row of each chunk, of `n`.
        shift: `(n,)`, positive unless the problem is well posed without it.
        mask: `(k,)` ones for the columns in use, the others zero in `a`; or `None`.
        sketch: from `pattern`.
        start: `(n, k)`.
        sketched: tolerance and number of steps.

    Returns:
        `x`, `(n, k)`, and `sum_j w_ij (a_ij . x_i - y_ij)^2`, `(n,)`. The derivative is that of the exact solution.

    Cost: `2 k` multiply-adds an entry and step, as many for the sketch, and `n k^3` times about 6 for the
    preconditioner.

    Source: Rokhlin and Tygert (2008); Avron, Maymounkov and Toledo (2010).
    """
    # One thing after the other: XLA on a CPU otherwise starts loops side by side, each with all threads, and hangs.
    a, shift = jax.lax.optimization_barrier((a, shift))
    # Preconditioner and start move the path of the solve and not its end.
    fixed = jax.lax.stop_gradient((a, weights, shift))
    inverse = _preconditioner(*fixed, rows, mask, *sketch)
    a, y, inverse = jax.lax.optimization_barrier((a, y, inverse))
    constants = (*jax.lax.stop_gradient((inverse, start, jnp.asarray(sketched.tolerance, a.dtype))), rows)
    return _least_squares(sketched.num_steps, (a, y, weights, shift), constants)


def _preconditioner(a, weights, shift, rows, mask, begin, signs):
    """The inverse of the Gram matrix of the sketch, `(n, k, k)`."""
    _, length, k = a.shape
    s = SKETCH_ROWS * k
    scale = signs if weights is None else signs * jnp.sqrt(weights)
    if length < s:
        pieces = -(-s // length)
        spread = jnp.zeros((rows.num_rows + 1, pieces, length, k), a.dtype)
        short = spread.at[rows.row, begin].add(a * scale[..., None])[:-1].reshape(rows.num_rows, pieces * length, k)
    else:
        whole = length // s
        rest = a[:, whole * s :] * scale[:, whole * s :, None]

        # Slice upon slice: a sum over an axis of a reshaped array takes ten times as long on a CPU.
        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            part = lambda x: jax.lax.dynamic_slice_in_dim(x, i * s, s, axis=1)
            return total + part(a) * part(scale)[..., None]

        rest = jnp.pad(rest, ((0, 0), (0, s - rest.shape[1]), (0, 0)))
        short = rows.gather(jax.lax.fori_loop(0, whole, add, rest, unroll=4))
    # Computed once, not once for each side of the product.
    short = jax.lax.optimization_barrier(short)
    gram = matmul(jax.lax.optimization_barrier(jnp.swapaxes(short, 1, 2)), short)
    # As far above rounding level as the inverse needs to come out positive definite.
    diagonal = jnp.trace(gram, axis1=1, axis2=2) / k
    shift = shift + 4 * k * jnp.finfo(a.dtype).eps * diagonal
    unused = jnp.zeros(k, a.dtype) if mask is None else 1 - mask
    eye = jnp.eye(k, dtype=a.dtype)[None]
    inverse = eliminate(gram + (shift[:, None] + unused[None])[..., None] * eye, jnp.broadcast_to(eye, gram.shape))
    return (inverse + jnp.swapaxes(inverse, 1, 2)) / 2


def _times(m: jax.Array, x: jax.Array) -> jax.Array:
    return matmul(m, x[..., None])[..., 0]


def _weigh(weights: jax.Array | None, r: jax.Array) -> jax.Array:
    return r if weights is None else weights * r


def _back(a: jax.Array, weights: jax.Array | None, rows: Segments, r: jax.Array) -> jax.Array:
    return rows.gather(matmul(_weigh(weights, r)[:, None], a)[:, 0])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _least_squares(num_steps, problem, constants):
    (a, y, weights, shift), (inverse, start, tolerance, rows) = problem, constants
    dot = lambda u, v: jnp.sum(u * v, axis=1)
    size = lambda r: rows.gather(dot(r, _weigh(weights, r)))
    downhill = lambda x, r: _back(a, weights, rows, r) - shift[:, None] * x
    goal = jnp.maximum(tolerance, 2 * jnp.finfo(a.dtype).eps) ** 2 * size(y)
    r = y - _times(a, rows.spread(start))
    g = downhill(start, r)
    z = _times(inverse, g)

    def unfinished(carry):
        return (carry[-1] < num_steps) & jnp.any(carry[4] > goal)

    def one(carry):
        x, r, p, g, gz, i = carry
        ap = _times(a, rows.spread(p))
        curvature = size(ap) + shift * dot(p, p)
        active = (gz > goal) & (curvature > 0)
        step = jnp.where(active, gz, 0) / jnp.where(active, curvature, 1)
        x, r = x + step[:, None] * p, r - rows.spread(step)[:, None] * ap
        g = downhill(x, r)
        z = _times(inverse, g)
        new = dot(g, z)
        p = z + safe_divide(new, gz)[:, None] * p
        # A row that is done stays done; one that no longer gains is at rounding level, where more steps do harm.
        return x, r, p, g, jnp.where(active & (new < gz), new, jnp.minimum(gz, goal)), i + 1

    x, r, *_ = jax.lax.while_loop(unfinished, one, (start, r, z, g, dot(g, z), jnp.int32(0)))
    return x, size(r)


@_least_squares.defjvp
def _least_squares_jvp(num_steps, primals, tangents):
    (problem, constants), (change, _) = primals, tangents
    x, square = _least_squares(num_steps, problem, constants)
    (a, _, weights, shift), rows = problem, constants[3]

    def downhill(problem):
        a, y, weights, shift = problem
        return _back(a, weights, rows, y - _times(a, rows.spread(x))) - shift[:, None] * x

    normal = lambda p: _back(a, weights, rows, _times(a, rows.spread(p))) + shift[:, None] * p
    moved, _ = preconditioned_conjugate_gradient(
        normal,
        jax.jvp(downhill, (problem,), (change,))[1],
        lambda g: _times(constants[0], g),
        num_steps=DERIVATIVE_STEPS,
        tolerance=float(2 * jnp.finfo(a.dtype).eps),
    )

    def misfit(problem, x):
        a, y, weights, _ = problem
        r = y - _times(a, rows.spread(x))
        return rows.gather(jnp.sum(_weigh(weights, r) * r, axis=1))

    return (x, square), (moved, jax.jvp(misfit, (problem, x), (change, moved))[1])
