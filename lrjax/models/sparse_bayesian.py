"""Sparse Bayesian learning when both the measurement matrix and the support are Kronecker products."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lrjax import status
from lrjax.core.checks import as_array, check_choice, check_count, check_finite, check_range, number
from lrjax.core.numerics import or_one, safe_reciprocal
from lrjax.core.pytree import pytree, replace, tree_isfinite, tree_where
from lrjax.core.result import Result
from lrjax.core.units import exponent, shifted
from lrjax.iteration import loop
from lrjax.linalg.guarded import eigh
from lrjax.linalg.modes import contract, mode_products, outer
from lrjax.operators.kronecker import Kronecker

METHODS = ("refined", "svd", "alternating")
# Shares of the largest scale below which an index is dropped, as in the authors' experiments.
_PRUNING = {"svd": 1e-3, "alternating": 1e-2}
# Rounds within a step: of the alternating update, and of the power iteration for a leading pair.
_SWEEPS = 30
_POWER_STEPS = 10


@pytree
class SparseBayesianResult(Result):
    """What `sparse_bayesian` returns.

    Attributes:
        mean: `(N_1, ..., N_d)`, the posterior mean: the estimate.
        variance: `(N_1, ..., N_d)`, the posterior variances of its entries.
        scales: one array `(N_i,)` for each mode; their outer product is the prior variance. Zero where an entry was
            switched off. All but the last have norm one.
        noise_variance: scalar, as given or as learned.
        cost: `(num_steps + 1,)`, minus twice the log marginal likelihood without constants (once, if complex), of the
            scales before each step; the last is that of the scales returned. A finished lane repeats its last value.
        status: int32 code of `lrjax.status`.
        num_steps: int32, steps taken.
    """

    mean: jax.Array
    variance: jax.Array
    scales: tuple[jax.Array, ...]
    noise_variance: jax.Array
    cost: jax.Array
    status: jax.Array
    num_steps: jax.Array


class _Posterior(NamedTuple):
    mean: jax.Array
    variance: jax.Array
    cost: jax.Array
    noise: jax.Array


def sparse_bayesian(
    operator: Kronecker,
    y: jax.Array,
    *,
    noise_variance: float | jax.Array | None = None,
    method: str = "refined",
    num_steps: int = 150,
    tolerance: float | jax.Array = 1e-4,
    pruning: float | jax.Array | None = None,
) -> SparseBayesianResult:
    """Estimates a tensor with few non-zeros, at the crossings of few indices of each mode, from `y = A(x) + noise`.

    The prior is `x ~ N(0, diag(g_1 (x) ... (x) g_d))`, independent given the scales `g_i >= 0`; the scales maximise
    the marginal likelihood by expectation maximisation. Scales of indices that are not needed go to zero. The
    expectation step is exact and works on the modes alone: eigenvectors of `A_i diag(g_i) A_i^H`, and products
    with them. The scales that fit the second moments of the posterior come by one of three methods:

    - "svd": the leading rank-one part of the tensor of second moments, one mode after the other, each by a power
      iteration. Few steps. Approximate: the cost may rise now and then, and under strong noise some indices stay that
      are not needed.
    - "alternating": the exact minimiser in one mode after the other, 30 rounds. The cost never rises, but by pruning.
      Slow: a hundred steps, hundreds without pruning.
    - "refined": the first until the scales stop moving, then the second. As accurate as that, in far fewer steps.

    A pure function of its arrays: jit it with the other arguments fixed, and vmap it. Scales start equal, at the
    size that explains the energy of `y`, so that nothing depends on units.

    Args:
        operator: a `lrjax.operators.Kronecker`, real or complex; how it splits its modes does not matter.
        y: `(m,)`, of the dtype of the operator.
        noise_variance: variance of the noise, `E |noise|^2` if complex; `None` to learn it with the scales.
        method: as above.
        num_steps: steps at most.
        tolerance: stop when no mode's scales changed by more than this, relative to their norm.
        pruning: after a step switch off, for good, scales below this share of the largest of their mode. Entries are
            masked, not removed. By default 1e-3 after steps of "svd" and 1e-2 after those of "alternating". Zero keeps
            all that is above rounding: for values that differ by more than the root of the share, or for a cost that
            never rises.

    Measured at 15^3 unknowns, 3^3 of them not zero, from 1,440 measurements at 10 and 20 dB, medians of 24 draws:
    relative squared errors of 5.5e-3 and 5.2e-4 for "refined" in 25 and 13 steps, 8.4e-3 and 6.0e-4 for "svd" in 19
    and 10, 5.3e-3 and 5.2e-4 for "alternating" in 186 and 74, and without pruning 2.2e-2 and 3.2e-3 in 300. Least
    squares that is told the support has 5.0e-3 and 5.0e-4.

    Returns:
        A `SparseBayesianResult`. Lack of convergence does not raise; look at `status`.

    Raises:
        ValueError: not a `Kronecker`, a `y` of another shape or dtype or not finite; a noise variance that is
            not positive, an unknown method, or a number out of range.

    Cost of a step: an eigendecomposition `O(M_i^3)` for each mode and a few passes of mode products; memory of a few
    tensors. Do not use it where the support is not a product (each `g_i` then grows to hold all of it), for low-rank
    matrices without zeros, with missing entries in `y` (the Kronecker structure is lost), or to differentiate through:
    the eigenvalues of masked modes repeat, and their eigenvectors then have no derivative.

    Source: He and Joseph, arXiv 2307.14719, for the first two methods (papers key `kronecker_sbl`).

    Examples:
        >>> import jax, jax.numpy as jnp, lrjax as lr
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> a = lr.operators.Kronecker.from_matrices([jax.random.normal(k, (7, 10)) for k in keys])
        >>> x = jnp.zeros((10, 10)).at[2, 3].set(1.0).at[2, 8].set(-2.0)
        >>> result = lr.sparse_bayesian(a, a.forward_dense(x), noise_variance=1e-4)
        >>> bool(jnp.abs(result.mean - x).max() < 0.02)
        True
    """
    if not isinstance(operator, Kronecker):
        raise ValueError(f"operator must be a lrjax.operators.Kronecker; got {type(operator).__name__}")
    dtype = operator.matrices[0].dtype
    m = operator.num_measurements
    y = as_array("y", y)
    if y.shape != (m,) or y.dtype != dtype:
        seen = f"{y.shape}, {y.dtype}"
        raise ValueError(f"y must have shape ({m},) and the dtype of the operator, {dtype}; got {seen}")
    check_finite("y", y)
    check_choice("method", method, METHODS)
    num_steps = check_count("num_steps", num_steps)
    check_range("pruning", pruning, low=0, high=0.5)
    real = jnp.finfo(dtype).dtype
    cast = lambda value: jnp.asarray(value, real)
    learn = noise_variance is None
    noise = None if learn else number("noise_variance", noise_variance, real, low=0, open_low=True)
    pruning = None if pruning is None else number("pruning", pruning, real)
    shares = {name: cast(share) if pruning is None else pruning for name, share in _PRUNING.items()}
    tensor = y.reshape(operator.measured_shape)
    tolerance = number("tolerance", tolerance, real, low=0)
    return _run(operator.matrices, tensor, noise, tolerance, shares, method=method, num_steps=num_steps)


@partial(jax.jit, static_argnames=("method", "num_steps"))
def _run(matrices, y, noise, tolerance, shares, *, method, num_steps):
    # Measured in powers of two near the largest entries: no square then leaves the range of the dtype.
    of_y, of_matrices = exponent(jnp.abs(y)), [exponent(jnp.abs(a)) for a in matrices]
    y, matrices = shifted(y, -of_y), tuple(shifted(a, -e) for a, e in zip(matrices, of_matrices, strict=True))
    squared = lambda value, e: shifted(shifted(value, e), e)
    noise = None if noise is None else squared(noise, -of_y)
    found = _in_units(matrices, y, noise, tolerance, shares, method=method, num_steps=num_steps)
    e = of_y - sum(of_matrices)
    return replace(
        found,
        mean=shifted(found.mean, e),
        variance=squared(found.variance, e),
        scales=(*found.scales[:-1], squared(found.scales[-1], e)),
        noise_variance=squared(found.noise_variance, of_y),
        # The logarithm of a determinant.
        cost=found.cost + 2 * math.log(2) * float(y.size) * of_y.astype(found.cost.dtype),
    )


def _in_units(matrices, y, noise, tolerance, shares, *, method, num_steps):
    learn = noise is None
    energy = jnp.mean(_square(y))
    # What is left when everything is explained is rounding; a variance of zero would divide by zero.
    least = jnp.maximum(jnp.finfo(energy.dtype).eps * energy, jnp.finfo(energy.dtype).tiny)
    noise = jnp.maximum(0.1 * energy, least) if learn else noise + 0 * energy
    scales = _start(matrices, jnp.sum(_square(y)))
    updates = {
        "svd": lambda moments, scales: _switched_off(_leading_parts(moments, scales), shares["svd"]),
        "alternating": lambda moments, scales: _switched_off(_alternating(moments, scales), shares["alternating"]),
    }
    phases = ("svd", "alternating") if method == "refined" else (method,)

    def run(carry: tuple, _: jax.Array) -> tuple:
        (scales, noise, now, phase), _, taken = carry
        moments = _square(now.mean) + now.variance
        new = jax.lax.switch(phase, [updates[name] for name in phases], moments, scales)
        new_noise = jnp.maximum(now.noise, least) if learn else noise
        moved = jnp.stack([_norm(a - b) / _positive(_norm(b)) for a, b in zip(new, scales, strict=True)])
        settled = jnp.max(moved) <= tolerance
        done = settled & (phase == len(phases) - 1)
        later = jnp.minimum(phase + settled.astype(phase.dtype), len(phases) - 1)
        state = new, new_noise, posterior(matrices, new, new_noise, y), later
        finite = tree_isfinite(state)
        code = jnp.where(done, status.CONVERGED, status.RUNNING)
        code = jnp.where(finite, code, status.NONFINITE).astype(taken.dtype)
        return tree_where(finite, state, (scales, noise, now, phase)), code, taken + finite.astype(taken.dtype)

    now = posterior(matrices, scales, noise, y)
    zero = loop.zero_like(now.cost)
    carry, costs = loop.blocks(
        run, lambda carry: carry[0][2].cost, ((scales, noise, now, zero), zero, zero), num_steps, 1
    )
    (scales, noise, last, _), code, taken = carry
    return SparseBayesianResult(
        mean=last.mean,
        variance=last.variance,
        scales=scales,
        noise_variance=noise,
        cost=jnp.concatenate([now.cost[None], costs]),
        status=code,
        num_steps=taken,
    )


def posterior(
    matrices: tuple[jax.Array, ...], scales: tuple[jax.Array, ...], noise: jax.Array, y: jax.Array
) -> _Posterior:
    """Mean and variances given the scales, the cost, and the noise variance that expectation maximisation takes next.

    With `A_i diag(g_i) A_i^H = U_i diag(p_i) U_i^H` the covariance of `y` is diagonal in the basis of the `U_i`.
    """
    vectors, values, done = [], [], None
    for a, g in zip(matrices, scales, strict=True):
        gram = jnp.matmul(a * g[None, :].astype(a.dtype), a.conj().T, precision="highest")
        # One after the other: XLA on a CPU may hang on LAPACK calls that run side by side.
        gram, _ = jax.lax.optimization_barrier((gram, done))
        p, u = eigh(gram)
        done = p
        vectors.append(u)
        values.append(jnp.maximum(p, 0))
    signal = outer(values)
    inverse = 1 / (noise + signal)
    turned = mode_products(y, [u.conj().T for u in vectors])
    back = [
        g[:, None].astype(a.dtype) * jnp.matmul(a.conj().T, u, precision="highest")
        for a, g, u in zip(matrices, scales, vectors, strict=True)
    ]
    mean = mode_products(inverse.astype(y.dtype) * turned, back)
    variance = jnp.maximum(outer(scales) - mode_products(inverse, [_square(b) for b in back]), 0)
    cost = jnp.sum(jnp.log(noise + signal)) + jnp.sum(inverse * _square(turned))
    # The residual is `noise * inverse * turned`, and `signal * inverse` sums to the degrees of freedom used.
    misfit = jnp.sum((noise * inverse) ** 2 * _square(turned))
    return _Posterior(mean, variance, cost, (misfit + noise * jnp.sum(signal * inverse)) / float(y.size))


def _leading_parts(moments: jax.Array, scales: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The leading singular vectors of the unfoldings, one mode split off after the other. All are nonnegative."""
    parts, rest = [], moments
    for start in scales[:-1]:
        unfolded = rest.reshape(start.shape[0], -1)

        def power(left: jax.Array, _: None, unfolded: jax.Array = unfolded) -> tuple[jax.Array, None]:
            left = jnp.matmul(unfolded, jnp.matmul(left, unfolded, precision="highest"), precision="highest")
            return left / _positive(_norm(left)), None

        # Started from the last step's vector: ten rounds of a nonnegative matrix are then plenty.
        left, _ = jax.lax.scan(power, start / _positive(jnp.max(start)), None, length=_POWER_STEPS)
        parts.append(left)
        rest = jnp.matmul(left, unfolded, precision="highest").reshape(rest.shape[1:])
    return (*parts, rest)


def _alternating(moments: jax.Array, scales: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Rounds of the exact minimiser of `sum log g + moments / g` in one mode, the others fixed; zeros stay out."""

    def sweep(scales: tuple[jax.Array, ...], _: None) -> tuple[tuple[jax.Array, ...], None]:
        current = list(scales)
        for i in range(len(current)):
            inverse = [_reciprocal(g) for g in current]
            count = [jnp.sum(g > 0).astype(g.dtype) for j, g in enumerate(current) if j != i]
            number = jnp.prod(jnp.stack(count)) if count else jnp.ones_like(current[i][0])
            current[i] = contract(moments, inverse, i) / _positive(number)
        return _unit_norms(tuple(current)), None

    return jax.lax.scan(sweep, scales, None, length=_SWEEPS)[0]


def _start(matrices: tuple[jax.Array, ...], energy: jax.Array) -> tuple[jax.Array, ...]:
    total = energy
    for a in matrices:
        total = total / _positive(jnp.sum(_square(a)))
    scales = [jnp.full(a.shape[1], 1, energy.dtype) + 0 * energy for a in matrices]
    return _unit_norms((*scales[:-1], scales[-1] * total))


def _unit_norms(scales: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    norms = [_positive(_norm(g)) for g in scales[:-1]]
    last = scales[-1]
    for norm in norms:
        last = last * norm
    return (*(g / norm for g, norm in zip(scales[:-1], norms, strict=True)), last)


def _switched_off(scales: tuple[jax.Array, ...], pruning: jax.Array) -> tuple[jax.Array, ...]:
    share = jnp.maximum(pruning, jnp.finfo(pruning.dtype).eps)
    return tuple(jnp.where(g >= share * jnp.max(g), g, 0) for g in scales)


def _reciprocal(g: jax.Array) -> jax.Array:
    return safe_reciprocal(g)


def _positive(x: jax.Array) -> jax.Array:
    return or_one(x)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(x * x))


def _square(x: jax.Array) -> jax.Array:
    return jnp.real(x * x.conj())
