"""Conformance checks for operators, losses and solvers: use them on your own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.core.checks import float_dtype
from lrjax.iteration.solve import solve
from lrjax.losses import LossWithUnits
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem


def _vdot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.vdot(a, b, precision="highest")


def check_adjoint(operator: Any, key: jax.Array, *, dtype: Any = None, rank: int = 2) -> None:
    """Asserts that all five methods of an operator describe one linear map and its adjoint.

    `<A(L R^T), z> = <L, A*(z) R> = <R, A*(z)^T L> = <L R^T, A*(z)>`, `forward_dense(L R^T) = forward(L, R)`, and
    linearity of `forward` in either factor, at random arguments. The tolerance is `64 eps` of the sums of absolute
    values involved, that is, rounding error only.

    Args:
        operator: any measurement operator.
        key: random key of the arguments.
        dtype: dtype of the factors; default JAX's current default.
        rank: columns of the random factors.

    Raises:
        AssertionError: names the operator, the identity that failed and both sides.
    """
    dtype = float_dtype(dtype)
    (n1, n2), m = operator.shape, operator.num_measurements
    keys = jax.random.split(key, 4)
    left, other = jax.random.normal(keys[0], (n1, rank), dtype), jax.random.normal(keys[3], (n1, rank), dtype)
    right, z = jax.random.normal(keys[1], (n2, rank), dtype), jax.random.normal(keys[2], (m,), dtype)
    x = jnp.matmul(left, right.T, precision="highest")
    name, eps = type(operator).__name__, float(jnp.finfo(dtype).eps)
    y = operator.forward(left, right)
    assert y.shape == (m,), f"{name}: forward returned shape {y.shape}, expected {(m,)}"
    assert y.dtype == dtype, f"{name}: forward turned {dtype} into {y.dtype}"
    size = float(jnp.linalg.norm(y) * jnp.linalg.norm(z)) + float(_vdot(jnp.abs(y), jnp.abs(z)))

    def compare(what: str, a: jax.Array, b: jax.Array, scale: float) -> None:
        difference = float(jnp.max(jnp.abs(a - b)))
        assert difference <= 64 * eps * scale, (
            f"{name}: {what} fails: difference {difference:.2e}, allowed {64 * eps * scale:.2e}"
        )

    value = _vdot(y, z)
    compare("<A(LR'), z> = <L, A*(z) R>", value, _vdot(left, operator.adjoint_matmul(z, right)), size)
    compare("<A(LR'), z> = <R, A*(z)' L>", value, _vdot(right, operator.adjoint_rmatmul(z, left)), size)
    compare("<A(X), z> = <X, A*(z)>", value, _vdot(x, operator.adjoint(z)), size)
    if n1 == n2:
        twice = operator.symmetric_adjoint_matmul(z, left)
        value = _vdot(operator.forward(left, right) + operator.forward(right, left), z)
        size = size + float(jnp.linalg.norm(twice) * jnp.linalg.norm(right))
        compare("<A(LR' + RL'), z> = <R, (A*(z) + A*(z)') L>", value, _vdot(right, twice), size)
    largest = float(jnp.max(jnp.abs(y))) + float(jnp.linalg.norm(y)) / m**0.5
    compare("forward_dense(LR') = forward(L, R)", operator.forward_dense(x), y, 4 * largest)
    both = operator.forward(left + other, right) - operator.forward(other, right)
    scale = largest + float(jnp.max(jnp.abs(operator.forward(other, right))))
    compare("linearity of forward", both, y, 4 * scale)


def check_gradient(function: Callable[[Any], jax.Array], at: Any, key: jax.Array) -> float:
    """Asserts that the gradient of a scalar function is right, by the slope of its Taylor remainder.

    The remainder `|f(x + t v) - f(x) - t <grad f, v>|` of a smooth function falls like `t^2`. Needs float64.

    Args:
        function: scalar-valued, smooth near `at`.
        at: a pytree of float64 arrays.
        key: random key of the direction.

    Returns:
        The measured slope (about 2; larger where the function is flatter than quadratic).

    Raises:
        AssertionError: the slope is below 1.9 and the remainder is above rounding level.
    """
    leaves, tree = jax.tree.flatten(at)
    keys = jax.random.split(key, len(leaves))
    direction = jax.tree.unflatten(
        tree, [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )
    value, slope = jax.jvp(function, (at,), (direction,))
    gradient = jax.grad(function)(at)
    reverse = sum(jax.tree.leaves(jax.tree.map(_vdot, gradient, direction)))
    assert abs(float(slope - reverse)) <= 1e-8 * (abs(float(slope)) + abs(float(reverse)) + 1e-12), (
        f"forward and reverse derivative differ: {float(slope)} and {float(reverse)}"
    )
    steps = [1e-3, 1e-4]
    move = lambda t: function(jax.tree.map(lambda x, v: x + t * v, at, direction))
    remainders = [abs(float(move(t) - value - t * slope)) for t in steps]
    rounding = 1e3 * float(jnp.finfo(jnp.float64).eps) * max(abs(float(value)), 1e-300)
    if remainders[1] <= rounding:
        return 2.0
    order = float(jnp.log10(remainders[0] / remainders[1]))
    assert order > 1.9, f"the Taylor remainder falls like t^{order:.2f}, not t^2: {remainders} at t = {steps}"
    return order


def check_loss(loss: Any, *, smooth: bool = True, scale: float = 1.0, dtype: Any = None) -> None:
    """Asserts that value, gradient and weights of a loss belong together, at residuals of many sizes.

    - Each of the three is elementwise, keeps the dtype, and takes the loss as a pytree.
    - `value` is zero at zero and nowhere negative.
    - `gradient` is its slope; at a kink, a number between the slopes on both sides.
    - `reweight(r, floor)` is `gradient(r) / r` where `|r| >= floor`, and finite and not negative below. The parabola
      `value(r) + reweight(r) (s^2 - r^2) / 2` lies above the loss at every `s`, so that a step of reweighted least
      squares cannot raise the objective.
    - If `smooth`, the slope of `gradient` is at most one, which is what the steps of gradient methods are made for. A
      loss that curves more, divided by its largest curvature, does not.
    - With `in_units` and `degree`: `value(r) = unit^degree in_units(unit).value(r / unit)`.

    Args:
        loss: an object like those of `lrjax.losses`.
        smooth: whether it is to be minimised by gradients of fixed steps; `Absolute` is not.
        scale: residuals are tried from a thousandth to a thousand times this, of both signs.
        dtype: of the residuals; default JAX's current default.

    Raises:
        AssertionError: names the loss, what does not hold and where.

    Examples:
        >>> import lrjax as lr
        >>> lr.testing.check_loss(lr.losses.Huber(1.0))
        >>> lr.testing.check_loss(lr.losses.Absolute(), smooth=False)
    """
    name, dtype = type(loss).__name__, float_dtype(dtype)
    eps = float(jnp.finfo(dtype).eps)
    sizes = scale * 10.0 ** np.linspace(-3, 3, 25)
    r, floor = np.concatenate([-sizes[::-1], [0.0], sizes]).astype(dtype), np.asarray(1e-3 * scale, dtype)

    def call(method: str, loss: Any, r: Any) -> jax.Array:
        return loss.reweight(r, floor) if method == "reweight" else getattr(loss, method)(r)

    def seen(method: str, r: Any) -> np.ndarray:
        given = jnp.asarray(r)
        found = call(method, loss, given)
        assert found.shape == given.shape, f"{name}: {method} turned the shape {given.shape} into {found.shape}"
        assert found.dtype == dtype, f"{name}: {method} turned {dtype} into {found.dtype}"
        # An object that is no pytree is refused here by JAX, in words of its own.
        single = jax.jit(lambda loss, r: jax.vmap(lambda one: call(method, loss, one))(r))(loss, given)
        hold(np.isclose(found, single, rtol=100 * eps, equal_nan=True), r, f"{method} is not elementwise")
        hold(np.isfinite(found), r, f"{method} is not finite")
        return np.asarray(found, np.float64)

    def hold(good: Any, r: Any, what: str) -> None:
        assert np.all(good), f"{name}: {what} at the residuals {np.asarray(r)[~np.asarray(good)][:4].tolist()}"

    value, gradient, weight = (seen(method, r) for method in ("value", "gradient", "reweight"))
    hold((value >= 0) & ((r != 0) | (value == 0)), r, "value is negative, or not zero at zero,")
    step = 1e-2 * np.where(r == 0, 1e-3 * scale, np.abs(r)).astype(dtype)
    below, above = (r - step).astype(dtype), (r + step).astype(dtype)
    left, right = (value - seen("value", below)) / (r - below), (seen("value", above) - value) / (above - r)
    low, high = np.minimum(left, right), np.maximum(left, right)
    slack = (high - low) + 1e-3 * np.abs(gradient) + 8 * eps * value / step
    hold((gradient >= low - slack) & (gradient <= high + slack), r, "gradient is not the slope of value")
    r = r.astype(np.float64)
    far = np.abs(r) >= floor
    ratio = gradient / np.where(far, r, 1)
    hold(~far | np.isclose(weight, ratio, rtol=1e-3), r, "reweight is not gradient / residual")
    hold(weight >= 0, r, "reweight is negative")
    bound = value[far, None] + 0.5 * weight[far, None] * (r[None, :] ** 2 - r[far, None] ** 2)
    size = value[far, None] + weight[far, None] * (r[None, :] ** 2 + r[far, None] ** 2) + value[None, :]
    hold(
        np.all(value[None, :] <= bound + 1e2 * eps * size, axis=1),
        r[far],
        "the parabola of reweight is not above value",
    )
    if smooth:
        slope = np.diff(gradient) / np.diff(r)
        slack = 8 * eps * np.maximum(np.abs(gradient[1:]), np.abs(gradient[:-1])) / np.diff(r)
        hold(np.abs(slope) <= 1.001 + slack, r[1:], f"the curvature exceeds one ({np.abs(slope).max():.3g} at most)")
    if isinstance(loss, LossWithUnits):
        unit = np.asarray(4, dtype)
        inside = np.asarray(loss.in_units(jnp.asarray(unit)).value(jnp.asarray(r.astype(dtype) / unit)), np.float64)
        hold(np.isclose(value, 4.0**loss.degree * inside, rtol=1e-4), r, "in_units is another loss")


def check_solver(
    solver: Any, problem: Problem, key: jax.Array, *, num_steps: int = 4, init: Factors | None = None
) -> None:
    """Asserts what every solver promises: jit = eager, vmap = loop, dtype kept, info true, frozen when not finite.

    Args:
        solver: the solver.
        problem: a problem that it can be run on.
        key: random key.
        num_steps: steps to take.
        init: start, if not the solver's own.

    Raises:
        AssertionError: says which promise was broken.
    """
    name = type(solver).__name__
    run = lambda p, k: solve(p, solver, k, num_steps=num_steps, init=init)
    one = run(problem, key)
    dtype = problem.y.dtype
    eps = float(jnp.finfo(dtype).eps)
    for leaf in jax.tree.leaves((one.factors, {k: v for k, v in one.trace.items() if k != "step"})):
        assert leaf.dtype == dtype, f"{name}: a result of dtype {leaf.dtype} from data of dtype {dtype}"
    assert one.trace["step"].shape == (num_steps + 1,), f"{name}: trace has shape {one.trace['step'].shape}"
    objective = problem.objective(one.factors)
    scale = float(jnp.max(one.trace["objective"])) + float(jnp.sum(jnp.abs(problem.observed())) * eps)
    assert abs(float(objective - one.objective)) <= 1e4 * eps * scale, (
        f"{name}: info says the objective is {float(one.objective)}, the factors give {float(objective)}"
    )
    jitted = jax.jit(run)(problem, key)
    _assert_same(f"{name}: jit differs from eager", jitted, one, eps)
    keys = jax.random.split(key, 3)
    batched = jax.vmap(run, in_axes=(None, 0))(problem, keys)
    for lane in range(3):
        single = run(problem, keys[lane])
        _assert_same(
            f"{name}: lane {lane} of a vmap differs", jax.tree.map(lambda x, i=lane: x[i], batched), single, eps
        )


def _assert_same(what: str, a: Any, b: Any, eps: float) -> None:
    """Products of factors, statuses and traces agree to rounding, amplified by a few steps."""
    assert int(a.status) == int(b.status), f"{what}: status {int(a.status)} and {int(b.status)}"
    assert int(a.num_steps) == int(b.num_steps), f"{what}: steps {int(a.num_steps)} and {int(b.num_steps)}"
    x, y = a.factors.dense(), b.factors.dense()
    difference = float(jnp.linalg.norm(x - y)) / (float(jnp.linalg.norm(y)) or 1.0)
    assert difference <= 1e4 * eps, f"{what}: relative difference {difference:.2e}, allowed {1e4 * eps:.2e}"
