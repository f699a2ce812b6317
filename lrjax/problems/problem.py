"""`Problem`: what was measured, and how misfit is counted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import losses
from lrjax.core.checks import check_finite, check_range, check_real, host_value
from lrjax.core.numerics import safe_divide
from lrjax.core.pytree import positional_pytree
from lrjax.core.units import Units, exponent, power, root, unit_of
from lrjax.problems.factors import Factors


@positional_pytree
class Problem:
    """Recover `X` from `y = A(X)` by minimising `sum_i weights_i loss(A(X)_i - y_i)`.

    A problem knows no truth and no solver. It is a pytree: vmap over `y`, weights, or whole problems.

    Attributes:
        operator: the measurement operator `A`.
        y: `(m,)` measurements, real floating; their dtype is that of the whole solve.
        weights: `(m,)` nonnegative, or `None` for ones. Zero means not measured: such values of `y` are never used,
            so problems of different size can share one compile by padding.
        loss: `losses.Squared()`, `losses.Absolute()` or `losses.Huber(delta)`.

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> problem = lr.Problem(lr.operators.Identity(matrix_shape=(2, 2)), jnp.array([1.0, 0.0, 0.0, 0.0]))
        >>> float(problem.objective(lr.Factors(jnp.zeros((2, 1)), jnp.zeros((2, 1)))))
        0.5
    """

    operator: Any
    y: jax.Array
    weights: jax.Array | None = None
    loss: losses.Loss = losses.Squared()

    @property
    def shape(self) -> tuple[int, int]:
        """`(n1, n2)` of the matrix sought."""
        return self.operator.shape

    def effective_weights(self) -> jax.Array | None:
        """`(m,)` weights with those of unmeasured entries set to zero; `None` if all are one."""
        measured = self.operator.measured
        if measured is None:
            return self.weights
        on = measured.astype(self.y.dtype)
        return on if self.weights is None else on * self.weights

    def observed(self) -> jax.Array:
        """`y`, and zero where the weight is zero: what was not measured, even if `y` is NaN there."""
        weights = self.effective_weights()
        return self.y if weights is None else jnp.where(weights > 0, self.y, 0)

    def weighted(self, values: jax.Array) -> jax.Array:
        """`weights * values`."""
        weights = self.effective_weights()
        return values if weights is None else weights * values

    def total_weight(self) -> jax.Array:
        """Sum of the weights: the number of measurements when they are zero or one."""
        weights = self.effective_weights()
        return jnp.sum(jnp.ones_like(self.y) if weights is None else weights)

    def residual(self, factors: Factors) -> jax.Array:
        """`A(X) - y`, zero where nothing was measured."""
        weights = self.effective_weights()
        residual = self.operator.forward(factors.left, factors.right) - self.observed()
        return residual if weights is None else jnp.where(weights > 0, residual, 0)

    def objective_of(self, residual: jax.Array) -> jax.Array:
        """The objective of a residual that was computed already."""
        return jnp.sum(self.weighted(self.loss.value(residual)))

    def objective(self, factors: Factors) -> jax.Array:
        """`sum_i weights_i loss(A(X)_i - y_i)`."""
        return self.objective_of(self.residual(factors))

    def gradient(self, factors: Factors) -> tuple[jax.Array, jax.Array]:
        """(Sub)gradient of the objective in `left` and `right`."""
        z = self.weighted(self.loss.gradient(self.residual(factors)))
        return self.operator.adjoint_matmul(z, factors.right), self.operator.adjoint_rmatmul(z, factors.left)

    def relative_residual(self, residual: jax.Array) -> jax.Array:
        """`||residual|| / ||y||` in the weighted Euclidean norm; the plain norm of the residual if `y` is zero.

        In any units of the measurements and the weights.
        """
        weights, y = self.effective_weights(), self.observed()
        unit = unit_of(y)
        residual, y = residual / unit, y / unit
        weight = jnp.ones_like(y) if weights is None else weights / unit_of(weights)
        size, square = jnp.sum(weight * y * y), jnp.sum(weight * residual * residual)
        return root(safe_divide(square, size))

    def squared_norm(self, residual: jax.Array) -> jax.Array:
        """`||residual||^2` in the weighted Euclidean norm, of a problem in units of about one."""
        return jnp.sum(self.weighted(residual * residual))

    def relative_norm(self, square: jax.Array) -> jax.Array:
        """The relative residual from `||residual||^2`, of a problem in units of about one."""
        scale = self.squared_norm(self.observed())
        return root(safe_divide(square, scale))

    def in_units(self) -> tuple["Problem", Units]:
        """The same problem with measurements and weights of about one, and the powers of two they were divided by.

        A loss that does not say how it depends on units is left its measurements.
        """
        loss, weights, dtype = self.loss, self.weights, self.y.dtype
        factor = weight = jnp.ones((), dtype)
        degree = None
        if isinstance(loss, losses.LossWithUnits):
            degree = loss.degree
            factor = power(exponent(self.observed()) // 2, dtype)
            loss = loss.in_units(factor * factor)
        if weights is not None:
            weight = unit_of(weights)
            weights = weights / weight
        y = self.y if degree is None else self.y / factor / factor
        units = Units(factor=factor, weight=weight, degree=degree or 0)
        return Problem(self.operator, y, weights, loss), units

    def check(self) -> None:
        """Raises a `ValueError` naming the first thing wrong with the problem; values are checked outside jit only."""
        for name in ("shape", "num_measurements", "forward", "adjoint_matmul", "adjoint_rmatmul"):
            if not hasattr(self.operator, name):
                raise ValueError(f"operator must be a measurement operator; {type(self.operator)!r} has no {name!r}")
        check_real("y", self.y)
        m, (n1, n2) = self.operator.num_measurements, self.shape
        if m == 0:
            raise ValueError("the operator has no measurements")
        if jnp.shape(self.y) != (m,):
            raise ValueError(f"y must have shape ({m},), one number per measurement; got {jnp.shape(self.y)}")
        dtype = jnp.result_type(self.y)
        one = lambda n: jax.ShapeDtypeStruct((n, 1), dtype)
        with jax.numpy_dtype_promotion("standard"):
            out = jax.eval_shape(self.operator.forward, one(n1), one(n2))
        if out.dtype != dtype:
            raise ValueError(f"operator and y must share one dtype; the operator maps {dtype} factors to {out.dtype}")
        for leaf in jax.tree.leaves(self.operator):
            own = getattr(leaf, "dtype", dtype)
            if jnp.issubdtype(own, jnp.floating) and own != dtype:
                raise ValueError(f"operator and y must share one dtype; the operator holds {own}, y is {dtype}")
        if isinstance(self.loss, type) or not isinstance(self.loss, losses.Loss):
            raise ValueError(
                "loss must be one of lrjax.losses (Squared(), Absolute(), Huber(delta)) or an object with value, "
                f"gradient and reweight; got {self.loss!r}"
            )
        if isinstance(self.loss, losses.Huber):
            check_range("loss.delta", self.loss.delta, low=0, open_low=True)
        if self.weights is not None:
            check_real("weights", self.weights)
            if jnp.shape(self.weights) != (m,):
                raise ValueError(f"weights must have shape ({m},); got {jnp.shape(self.weights)}")
            if jnp.result_type(self.weights) != dtype:
                raise ValueError(f"weights must have the dtype of y, {dtype}; got {jnp.result_type(self.weights)}")
            check_finite("weights", self.weights)
            if (host := host_value(self.weights)) is not None and (host < 0).any():
                raise ValueError(f"weights must not be negative; the smallest is {host.min()}")
        # On the host: as JAX arrays each step would be a program of its own.
        used = np.ones(m, bool)
        for part in (self.operator.measured, self.weights):
            if part is not None:
                if (host := host_value(part)) is None:
                    return
                used = used & (host > 0)
        if not used.any():
            raise ValueError("every weight is zero: there are no measurements")
        if (y := host_value(self.y)) is not None:
            check_finite("y (where its weight is positive)", np.where(used, y, np.zeros_like(y)))
