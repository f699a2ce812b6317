"""A linear system from inputs and outputs: its impulse response by least squares, its matrices by a Hankel matrix."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import as_array, check_count, check_finite, check_key, number, real_array
from lrjax.core.numerics import matmul, or_one
from lrjax.core.pytree import pytree
from lrjax.linalg import guarded
from lrjax.linalg.svd import attach_derivative
from lrjax.operators.hankel import AdjointMatrix, Hankel
from lrjax.sketching import lstsq, rsvd


@pytree
class StateSpace:
    """The system `x_{t+1} = a x_t + b u_t`, `y_t = c x_t + d u_t`, with `n` states, `m` inputs and `p` outputs.

    A change of basis of the states gives the same system: compare `markov` or `frequency_response`, not entries.

    Attributes:
        a: `(n, n)`.
        b: `(n, m)`.
        c: `(p, n)`.
        d: `(p, m)`.

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> one = jnp.ones((1, 1))
        >>> lr.StateSpace(a=0.5 * one, b=one, c=one, d=0 * one).markov(4).ravel().tolist()
        [0.0, 1.0, 0.5, 0.25]
    """

    a: jax.Array
    b: jax.Array
    c: jax.Array
    d: jax.Array

    def markov(self, length: int) -> jax.Array:
        """`d, c b, c a b, c a^2 b, ...`: the response to an impulse, `(length, p, m)`."""
        length = check_count("length", length)
        powers = jax.lax.scan(lambda x, _: (matmul(self.a, x), matmul(self.c, x)), self.b, None, length=length - 1)[1]
        return jnp.concatenate([self.d[None], powers])

    def frequency_response(self, frequencies: Any) -> jax.Array:
        """`c (exp(i w) - a)^-1 b + d` at angular frequencies `w (q,)`; `(q, p, m)`, complex."""
        w = _real("frequencies", frequencies, self.a.dtype)
        if w.ndim != 1:
            raise ValueError(f"frequencies must have shape (q,); got {w.shape}")
        z = jax.lax.complex(jnp.cos(w), jnp.sin(w))
        a, b, c, d = (part.astype(z.dtype) for part in (self.a, self.b, self.c, self.d))
        pencil = z[:, None, None] * jnp.eye(a.shape[0], dtype=z.dtype)[None] - a[None]
        states = jnp.linalg.solve(pencil, jnp.broadcast_to(b[None], (z.shape[0], *b.shape)))
        return jnp.einsum("pn,qnm->qpm", c, states, precision="highest") + d[None]

    def simulate(
        self,
        inputs: Any,
        key: jax.Array,
        *,
        state_noise: float | jax.Array = 0.0,
        output_noise: float | jax.Array = 0.0,
    ) -> jax.Array:
        """Outputs `(N, T, p)` of `N` runs from the state zero under inputs `(N, T, m)`.

        Args:
            inputs: real.
            key: of the noise.
            state_noise: standard deviation of Gaussian noise in every state, every step.
            output_noise: the same for the outputs.
        """
        check_key(key)
        inputs = _real("inputs", inputs, self.a.dtype)
        state_noise = number("state_noise", state_noise, self.a.dtype, low=0)
        output_noise = number("output_noise", output_noise, self.a.dtype, low=0)
        if inputs.ndim != 3 or inputs.shape[2] != self.b.shape[1]:
            raise ValueError(f"inputs must have shape (N, T, {self.b.shape[1]}); got {inputs.shape}")
        key_state, key_output = jax.random.split(key)
        u = inputs.transpose(1, 0, 2)
        start = matmul(0 * u[0], self.b.T)

        def step(x, read):
            key, u = read
            noise = state_noise * jax.random.normal(key, x.shape, x.dtype)
            return matmul(x, self.a.T) + matmul(u, self.b.T) + noise, matmul(x, self.c.T) + matmul(u, self.d.T)

        y = jax.lax.scan(step, start, (jax.random.split(key_state, u.shape[0]), u))[1].transpose(1, 0, 2)
        return y + output_noise * jax.random.normal(key_output, y.shape, y.dtype)


def _real(name: str, value: Any, dtype: Any) -> jax.Array:
    array = as_array(name, value)
    if jnp.iscomplexobj(array):
        raise ValueError(f"{name} must be real; got dtype {array.dtype}")
    return array.astype(dtype)


def markov_parameters(inputs: jax.Array, outputs: jax.Array, key: jax.Array) -> jax.Array:
    """The response to an impulse, `D, C B, C A B, ...`, by least squares from last outputs of many runs.

    Runs start in the state zero, so the last output is `sum_k G_k u_{T-1-k}` and noise. With independent standard
    Gaussian inputs the expected squared error of all of `G` together is `T m / (N - T m - 1)` times the variance of
    that noise, summed over the outputs: large where `N` is close to `T m`.

    Args:
        inputs: `(N, T, m)`, at least as many runs as unknowns, `N >= T m`.
        outputs: `(N, p)`, the last output of each run. Windows of one long run serve as well if the state at their
            start is forgotten by their end; what is left of it counts as noise.
        key: random key, for `lstsq`.

    Returns:
        `(T, p, m)`, what `ho_kalman` takes.

    Raises:
        ValueError: another shape, not real or finite, dtypes that differ, or fewer runs than `T m`.

    Cost: that of `lstsq` with an `N x T m` matrix. Do not use it for constant or periodic inputs (the
    matrix loses rank), nor for unstable systems over long horizons.

    Source: step 1 of Wang and Anderson, arXiv 2109.02703.

    Examples:
        >>> import jax, jax.numpy as jnp, lrjax as lr
        >>> one = jnp.ones((1, 1))
        >>> system = lr.StateSpace(a=0.5 * one, b=one, c=one, d=0 * one)
        >>> inputs = jax.random.normal(jax.random.key(0), (50, 4, 1))
        >>> outputs = system.simulate(inputs, jax.random.key(1))[:, -1]
        >>> seen = lr.markov_parameters(inputs, outputs, jax.random.key(2))
        >>> [round(abs(float(value)), 4) for value in seen.ravel()]
        [0.0, 1.0, 0.5, 0.25]
    """
    inputs, outputs = real_array("inputs", inputs), real_array("outputs", outputs)
    for name, value, shape in (("inputs", inputs, "(N, T, m)"), ("outputs", outputs, "(N, p)")):
        if jnp.ndim(value) != shape.count(",") + 1 or 0 in jnp.shape(value):
            raise ValueError(f"{name} must have shape {shape}, none zero; got {jnp.shape(value)}")
        check_finite(name, value)
    runs, length, m = inputs.shape
    if outputs.shape[0] != runs:
        raise ValueError(f"outputs must have a row for each of the {runs} runs of inputs; got {outputs.shape}")
    if outputs.dtype != inputs.dtype:
        raise ValueError(f"inputs and outputs must have one dtype; got {inputs.dtype} and {outputs.dtype}")
    if runs < length * m:
        raise ValueError(f"inputs must have at least T m = {length * m} runs; got {runs}")
    found = lstsq(inputs[:, ::-1].reshape(runs, length * m), outputs, key).x
    return found.reshape(length, m, -1).transpose(0, 2, 1)


def ho_kalman(
    markov: jax.Array,
    order: int,
    *,
    block_rows: int | None = None,
    key: jax.Array | None = None,
    oversample: int = 10,
    power_steps: int = 1,
) -> StateSpace:
    """A system of given order from its Markov parameters `D, C B, C A B, ...`, exact or estimated.

    The block Hankel matrix of `C B, C A B, ...` is observability times controllability, of rank `order`; balanced
    factors come from its singular triples, and `A` from the same matrix one block later. With a `key` the triples come
    from `rsvd`, and the matrix is never formed: products are by fast Fourier transforms. One power step then loses
    nothing beside the error of estimated parameters; none made it 1.4 to 1.5 times as large (medians, noisy runs).

    Args:
        markov: `(T, p, m)`, at least three; the response of `p` outputs to an impulse at each of `m` inputs. Estimate
            it with `markov_parameters`.
        order: states, at most the smaller side of the Hankel matrix.
        block_rows: `T_1`, with `T - 1 - T_1` block columns; half of `T` if left out.
        key: random key, for `rsvd`; a dense SVD without.
        oversample: for `rsvd`; cut where the matrix is too small for it.
        power_steps: for `rsvd`.

    Returns:
        A `StateSpace`. If the response needs fewer states than `order`, the surplus ones carry rounding errors.

    Raises:
        ValueError: another shape, not real or finite, or an order or a number of blocks that does not fit.

    Cost: dense `O((p m T^2 / 4)^(3/2))`; with `key` `2 power_steps + 4` products of `O(p m k T)` with `k = order +
    oversample` columns, and `O((p + m) T k^2)`. Do not use it for unstable systems over long horizons, whose last
    parameters drown the first. The derivative is that of the exact triples, first order; the basis of the states is
    held as it is, so what does not depend on that (`markov`, `frequency_response`) has its own, also where values
    repeat.

    Source: Ho and Kalman (1966); with a randomized SVD Wang and Anderson, arXiv 2109.02703.

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> response = jnp.array([0.0, 1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125])[:, None, None]
        >>> round(float(lr.ho_kalman(response, 1).a[0, 0]), 5)
        0.5
    """
    markov = real_array("markov", markov)
    if markov.ndim != 3 or markov.shape[0] < 3 or 0 in markov.shape:
        raise ValueError(f"markov must have shape (T, p, m) with T >= 3; got {markov.shape}")
    check_finite("markov", markov)
    length, p, m = markov.shape
    rows = length // 2 if block_rows is None else check_count("block_rows", block_rows)
    if rows > length - 2:
        raise ValueError(f"block_rows must be at most {length - 2}, two less than the parameters; got {block_rows}")
    structure = Hankel.create(rows, length - 1 - rows, block_shape=(p, m))
    order = check_count("order", order)
    if order > min(structure.shape):
        raise ValueError(f"order must be at most {min(structure.shape)}, of a {structure.shape} matrix; got {order}")
    oversample = check_count("oversample", oversample, minimum=0)
    first, later = markov[1:-1].reshape(-1), markov[2:].reshape(-1)
    matrix = AdjointMatrix(operator=structure, z=first)
    if key is None:
        # The derivative of the triples that are kept alone: those dropped may be zero, or repeat.
        u, s, vt = jax.lax.stop_gradient(guarded.svd(structure.adjoint(first)))
        triples = u[:, :order], s[:order], vt.T[:, :order]
    else:
        check_key(key)
        spare = min(oversample, min(structure.shape) - order)
        fixed = jax.lax.stop_gradient(matrix)
        triples = rsvd(fixed, order, key=key, oversample=spare, power_steps=power_steps)
    # The system is a function of the two subspaces, in whatever basis: that has a derivative where values repeat.
    u, _, v = attach_derivative(_products, order, matrix, triples, False)
    values = jax.lax.stop_gradient(triples[1])
    root = jnp.sqrt(or_one(values))
    root, inverse = jnp.where(values > 0, root, 0), jnp.where(values > 0, 1 / root, 0)
    # `U^T M V` is the diagonal matrix of the values, but not to autodiff; its inverse is taken to first order.
    core = matmul(u.T, structure.adjoint_matmul(first, v))
    moved = core - jax.lax.stop_gradient(core)
    inner = matmul(u.T, structure.adjoint_matmul(later, v)) * inverse[None, :]
    inner = inner - matmul(inner, inverse[:, None] * moved * inverse[None, :])
    return StateSpace(
        a=inverse[:, None] * inner,
        b=root[:, None] * v[:m].T + inverse[:, None] * matmul(moved, v[:m].T),
        c=u[:p] * root[None, :],
        d=markov[0],
    )


def _products(matrix: AdjointMatrix):
    return matrix.apply, matrix.apply_adjoint
