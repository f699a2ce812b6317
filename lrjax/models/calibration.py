"""Calibration as one linear problem in the inverse gains: `calibrate`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from lrjax.core.checks import as_array, check_choice, check_finite, check_key
from lrjax.core.numerics import matmul, or_one, safe_reciprocal
from lrjax.core.pytree import pytree, replace
from lrjax.core.units import exponent, norm, shifted
from lrjax.linalg.guarded import qr, qr_r, svd
from lrjax.operators.gains import GainMeasurements
from lrjax.problems.factors import Factors

METHODS = ("lstsq", "spectral")


@pytree
class Calibration:
    """Gains and inputs, up to the scaling ambiguity: `(c d, x / c)` measures what `(d, x)` does.

    Compare with a truth by `lr.metrics.scaled_error`, and compare inverse gains: gains near zero in `inverse_gains`
    explode under noise.

    Attributes:
        inverse_gains: `(m,)`, zero for a sensor that measured nothing.
        inputs: `(n,)`, or `(p, n)` where each block has its own input.
    """

    inverse_gains: jax.Array
    inputs: jax.Array

    @property
    def gains(self) -> jax.Array:
        """`1 / inverse_gains`, zero where that is zero."""
        known = self.inverse_gains != 0
        return safe_reciprocal(self.inverse_gains, known)

    @property
    def factors(self) -> Factors:
        """The matrix of rank one that `GainMeasurements` measures: a start for `lr.solve`."""
        return Factors(self.gains[:, None], self.inputs.reshape(-1, 1))


def calibrate(
    operator: GainMeasurements,
    y: jax.Array,
    *,
    method: str = "lstsq",
    anchor: Any = "ones",
    key: jax.Array | None = None,
) -> Calibration:
    """Gains and inputs from `y_l = diag(d) A_l x_l`, without iteration and without a start.

    With the inverse gains `s = 1 / d` the measurements are linear and homogeneous in `z = (s; x)`:
    `diag(y_l) s = A_l x_l`. `"lstsq"` minimises the sum of squares of the difference over `z` with `w^H z = 1`, `w`
    being the anchor; `"spectral"` over `||z|| = 1`. Without noise both are exact, for generic matrices, from as many
    measurements as unknowns less one: `m p >= m + n - 1` for one input, `p (m - n) >= m - 1` for inputs of their own.
    Units do not matter: both measure `y` and the matrices in powers of two near their typical size.

    A pure function: jit it, vmap it over measurements, matrices or anchors. Blocks of zeros in `matrices` and `y`, and
    columns of zeros at the end of the matrices, change nothing. It is differentiable where the solution is unique and
    nothing is padded.

    Args:
        operator: a `GainMeasurements`, real or complex (for a `SeededGainMeasurements` its `.stored()`).
        y: `(p m,)` measurements, of the dtype of the matrices.
        method: `"lstsq"` or `"spectral"`.
        anchor: of `"lstsq"`. `"ones"`: the mean of the inverse gains is one, right for gains that vary
            about a common value. `"gaussian"`: a random vector on all of `z`, drawn from `key`. Or a vector of your
            own, `(m,)` on the inverse gains or `(m + n,)` on all of `z` (`m + n p` for inputs of their own). Its length
            does not matter, its direction does where there is noise.
        key: random key, for `anchor="gaussian"`.

    Returns:
        A `Calibration`, scaled to `w^H z = 1`, or for `"spectral"` to inverse gains with root mean square one and a
        mean that is not negative. Where there are too few measurements it is one of many solutions, not the right one.

    Raises:
        ValueError: another operator, or a shape, dtype, method, anchor or key that does not fit.

    Cost: `"lstsq"` eliminates the gains one by one (one input), or input after input, by orthogonal transformations:
    `O(m p^3 + m p n^2)`, or `O(p m^3)`. `"spectral"` takes an SVD of the dense system, `O(p m (m + n p)^2)`.

    When not to use it: under strong noise, which is multiplied by the inverse gains: `lr.BlindGainDescent` fits
    the measurements themselves. `"lstsq"` with `"ones"` needs a mean inverse gain away from zero: with random
    phases take `"spectral"`. With one input and positive gains take `"ones"` near an SNR of 10 dB, where `"spectral"`
    recovers nothing. `"gaussian"` is never the best; it is there to compare. Above 40 dB all three agree.

    Source: Ling and Strohmer, arXiv 1611.04196.

    Examples:
        >>> import jax, lrjax as lr
        >>> problem, truth = lr.synthetic.gain_calibration(jax.random.key(0), shape=(30, 10), num_blocks=4)
        >>> found = lr.calibrate(problem.operator, problem.y)
        >>> bool(lr.metrics.scaled_error(found.gains, truth.left[:, 0]) < 1e-4)
        True
    """
    if not isinstance(operator, GainMeasurements):
        raise ValueError(
            f"operator must be a GainMeasurements (use .stored() of a seeded one); got {type(operator).__name__}"
        )
    y = as_array("y", y)
    if y.shape != (operator.num_measurements,) or y.dtype != operator.matrices.dtype:
        raise ValueError(
            f"y must have shape ({operator.num_measurements},) and dtype {operator.matrices.dtype}, as the matrices; "
            f"got {y.shape} and {y.dtype}"
        )
    check_finite("y", y)
    check_choice("method", method, METHODS)
    if method == "spectral":
        return _spectral(operator, y)
    return _anchored(operator, y, _anchor(operator, y, anchor, key))


def _anchor(operator: GainMeasurements, y: jax.Array, anchor: Any, key: Any) -> jax.Array:
    """`w`, of the length of `z`."""
    (m, inputs), dtype = operator.shape, y.dtype
    if isinstance(anchor, str):
        check_choice("anchor", anchor, ("ones", "gaussian"))
        if anchor == "gaussian":
            check_key(key)
            return jax.random.normal(key, (m + inputs,), dtype)
        anchor = jnp.full(m, 1 / m, dtype)
    w = as_array("anchor", anchor)
    if jnp.iscomplexobj(w) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"anchor must be real, as the matrices are; got dtype {w.dtype}")
    check_finite("anchor", w)
    w = w.astype(dtype)
    if w.shape not in ((m,), (m + inputs,)):
        raise ValueError(f"anchor must be 'ones', 'gaussian' or have shape ({m},) or ({m + inputs},); got {w.shape}")
    return jnp.pad(w, (0, m + inputs - w.shape[0]))


def _in_units(operator: GainMeasurements, y: jax.Array) -> tuple[GainMeasurements, jax.Array, jax.Array]:
    """The same problem with typical measurements and matrix entries of one size, and the `e` of `x = 2^e x'`.

    Exact, and no square leaves the range of the dtype. `"spectral"` weighs gains against inputs by these units.
    """
    a = operator.matrices
    of_y, of_a = exponent(jnp.abs(y)), exponent(jnp.abs(a))
    y, a = shifted(y, -of_y), shifted(a, -of_a)

    def typical(x: jax.Array) -> jax.Array:
        # Zeros are padding.
        count = jnp.sum(x != 0)
        return norm(jnp.abs(x)) / jnp.sqrt(jnp.maximum(count, 1).astype(jnp.finfo(x.dtype).dtype))

    # A number of bits: no derivative.
    size_y, size_a = jax.lax.stop_gradient((typical(y), typical(a)))
    known = (size_y > 0) & (size_a > 0)
    ratio = jnp.where(known, size_y, 1) / jnp.where(known, size_a, 1)
    more = jnp.where(jnp.isfinite(ratio), jnp.round(jnp.log2(ratio)), 0).astype(jnp.int32)
    return replace(operator, matrices=a), shifted(y, -more), of_y + more - of_a


@jax.jit
def _anchored(operator: GainMeasurements, y: jax.Array, w: jax.Array) -> Calibration:
    operator, y, e = _in_units(operator, y)
    a, m = operator.matrices, operator.shape[0]
    w = jnp.concatenate([w[:m], shifted(w[m:], e)])
    of_w = exponent(jnp.abs(w))
    w = shifted(w, -of_w)
    blocks = y.reshape(-1, m)
    if operator.model == "repeated":
        # Gain i meets rows (l, i) only.
        gains, x = _eliminate(blocks.T[:, :, None], -a.swapaxes(0, 1), w[:m, None], w[m:])
        return Calibration(inverse_gains=shifted(gains[:, 0], -of_w), inputs=shifted(x, e - of_w))
    own = -a if operator.model == "diverse" else -a[None]
    kept = blocks[:, :, None] * jnp.eye(m, dtype=y.dtype)
    x, gains = _eliminate(own, kept, w[m:].reshape(operator.num_blocks, -1), w[:m])
    return Calibration(inverse_gains=shifted(gains, -of_w), inputs=shifted(x, e - of_w))


def _eliminate(own: jax.Array, kept: jax.Array, w_own: jax.Array, w_kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minimises `sum_b ||E_b u_b + K_b v||^2` over `u`, `v` with `sum_b w_b^H u_b + w^H v = 1`; block after block.

    Args:
        own: `E`, `(b, r, e)`, or `(1, r, e)` if all blocks have the same.
        kept: `K`, `(b, r, k)`.
        w_own: `(b, e)`.
        w_kept: `(k,)`.

    By `E_b = Q_b R_b` a block is `R_b u_b + T_b v = e_b`, whatever `e_b`, and rows that `u_b` cannot reach. If
    the constraint is kept as one more row of least squares, which changes the length of the solution but not
    its direction, the best `e_b` for a given `v` are multiples of `h_b = R_b^-H w_b`, and what remains is
    least squares in `v`. Normal equations would square the condition number.
    """
    (_, rows, e), k = own.shape, kept.shape[2]
    missing = ((0, 0), (0, max(0, e - rows)), (0, 0))
    own, kept = jnp.pad(own, missing), jnp.pad(kept, missing)
    # The constraint at the scale of the other rows.
    length = jnp.sqrt(jnp.sum(jnp.abs(w_own) ** 2) + jnp.sum(jnp.abs(w_kept) ** 2))
    unit = jnp.sqrt(jnp.sum(jnp.abs(kept) ** 2) / k) / or_one(length)
    unit = or_one(unit)
    w_own, w_kept = unit * w_own, unit * w_kept
    q, r = qr(own)
    r, known = _regular(r)
    within = jnp.where(known[:, :, None], matmul(q.conj().mT, kept), 0)
    beyond = kept - matmul(q, within)
    r, known = (jnp.broadcast_to(x, (w_own.shape[0], *x.shape[1:])) for x in (r, known))
    h = jnp.where(known, solve_triangular(r, w_own[:, :, None], trans="C")[:, :, 0], 0)
    w = w_kept - jnp.einsum("bek,be->k", within.conj(), h, precision="highest")
    weight = 1 + jnp.sum(jnp.abs(h) ** 2)
    system = jnp.concatenate([w.conj()[None] / jnp.sqrt(weight), beyond.reshape(-1, k)])
    system = jnp.pad(system, ((0, max(0, k - system.shape[0])), (0, 0)))
    q, reduced = qr(system)
    reduced, known_kept = _regular(reduced)
    # The right hand side is zero but for the first row.
    image = jnp.where(known_kept, q[0].conj() * (unit / jnp.sqrt(weight)), 0)
    v = solve_triangular(reduced, image[:, None])[:, 0]
    errors = h * (unit - jnp.vdot(w, v, precision="highest")) / weight
    images = errors - jnp.einsum("bek,k->be", within, v, precision="highest")
    u = solve_triangular(r, images[:, :, None])[:, :, 0]
    by_own, by_kept = jnp.vdot(w_own, u, precision="highest"), jnp.vdot(w_kept, v, precision="highest")
    value = (by_own + by_kept) / unit
    value = jnp.where(value != 0, value, 1)
    return u / value, v / value


def _regular(r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Triangular matrices with rows of the identity where the diagonal is at rounding level, and where it is not."""
    size = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
    eps = jnp.finfo(size.dtype).eps * r.shape[-1]
    known = size > eps * jnp.max(size, axis=-1, keepdims=True)
    return jnp.where(known[..., None], r, jnp.eye(r.shape[-1], dtype=r.dtype)), known


@jax.jit
def _spectral(operator: GainMeasurements, y: jax.Array) -> Calibration:
    operator, y, e = _in_units(operator, y)
    m = operator.shape[0]
    dense = operator.linearize_inverse_gain(y).dense()
    # What was not measured is zero, and not the answer because it costs nothing.
    norms = jnp.linalg.norm(dense, axis=0)
    fill = jnp.where(norms > 0, 0, jnp.where(jnp.max(norms) > 0, 2 * jnp.linalg.norm(norms), 1))
    r = qr_r(jnp.concatenate([dense, jnp.diag(fill).astype(dense.dtype)]))
    z = jnp.where(norms > 0, svd(r)[2][-1].conj(), 0)
    total = jnp.sum(z[:m])
    turn = jnp.where(total != 0, total.conj() / jnp.where(total != 0, jnp.abs(total), 1), 1)
    z = z * (turn * jnp.sqrt(m / jnp.sum(jnp.abs(z[:m]) ** 2)))
    inputs = shifted(z[m:], e)
    return Calibration(
        inverse_gains=z[:m], inputs=inputs if operator.model == "repeated" else inputs.reshape(operator.num_blocks, -1)
    )
