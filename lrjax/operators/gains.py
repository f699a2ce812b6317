"""Measurements through unknown gains: calibration and blind deconvolution as rank-one recovery."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import (
    as_array,
    check_choice,
    check_count,
    check_finite,
    check_flag,
    check_key,
    check_shape,
    float_dtype,
    number,
)
from lrjax.core.draws import drawn
from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree
from lrjax.operators.base import Operator
from lrjax.operators.dense import MAX_BYTES

MODELS = ("repeated", "diverse", "snapshots")


class Gains(Operator):
    """What measurements through gains share: their sizes, and the linear system in inverse gains.

    Their own are `block_shape`, `(m, n)` of one matrix, `num_blocks`, `p`, and `model`, one of `MODELS`.
    """

    block_shape: Any
    num_blocks: Any
    model: Any

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.block_shape
        return m, n if self.model == "repeated" else n * self.num_blocks

    @property
    def num_measurements(self) -> int:
        return self.num_blocks * self.block_shape[0]

    def linearize_inverse_gain(self, y: jax.Array) -> "InverseGainSystem":
        """The homogeneous linear system `diag(y_l) s - A_l x_l = 0` in inverse gains `s = 1 / d` and inputs."""
        return InverseGainSystem(operator=self, y=y)


@pytree
class GainMeasurements(Gains):
    """`y_l = diag(d) A_l x_l`, `l = 1..p`: known matrices, unknown gains `d` and inputs, linear in their product.

    Three models, and the matrix `X` of rank one that each lifts to (`left` is `d`, `right` the input):

    - `"repeated"`: one input, `x_l = x`; `X = d x^T` of shape `(m, n)`. Self-calibration.
    - `"diverse"`: an input for each matrix; `X = d [x_1; ...; x_p]^T` of shape `(m, n p)`. Blind deconvolution.
    - `"snapshots"`: the same with one matrix `A` for all.

    The measurements are those of `l = 1`, then those of `l = 2`, and so on: `y.reshape(p, m)[l]` is `y_l`.
    Build it with `from_matrices` or `gaussian`. Complex matrices are allowed: `X` is then `d x^T` without
    conjugation and `adjoint` conjugates the matrices. `lr.solve` is for real problems; `lr.calibrate` takes both.

    Blocks `A_l` of zeros measure nothing, so problems of different `p` can share one compile by padding.

    Attributes:
        matrices: `(p, m, n)`, or `(m, n)` for snapshots.
        num_blocks: `p`.
        model: one of `"repeated"`, `"diverse"`, `"snapshots"`.

    Examples:
        >>> import jax, lrjax as lr
        >>> a = lr.operators.GainMeasurements.gaussian(jax.random.key(0), (5, 3), 4)
        >>> a.shape, a.num_measurements
        ((5, 3), 20)
        >>> lr.operators.GainMeasurements.gaussian(jax.random.key(0), (5, 3), 4, model="snapshots").shape
        (5, 12)
    """

    matrices: jax.Array
    num_blocks: int = jax.tree.static()
    model: str = jax.tree.static(default="repeated")

    @staticmethod
    def from_matrices(matrices: Any, *, num_snapshots: int | None = None, diverse: bool = False) -> "GainMeasurements":
        """Wraps a user's own matrices.

        Args:
            matrices: `(p, m, n)`, or `(m, n)` together with `num_snapshots`; real or complex floating, finite.
            num_snapshots: `p` of the snapshot model.
            diverse: an input for each of the `p` matrices instead of one for all.

        Raises:
            ValueError: another shape or dtype, values that are not finite, or `num_snapshots` with `(p, m, n)`.
        """
        a, diverse = as_array("matrices", matrices), check_flag("diverse", diverse)
        dimensions = 3 if num_snapshots is None else 2
        if a.ndim != dimensions or 0 in a.shape:
            expected = "(p, m, n)" if num_snapshots is None else "(m, n) as num_snapshots is given"
            raise ValueError(f"matrices must have shape {expected}, none of them zero; got {a.shape}")
        if num_snapshots is not None and diverse:
            raise ValueError("num_snapshots and diverse=True exclude each other; snapshots have inputs of their own")
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            raise ValueError(f"matrices must be real or complex floating point; got dtype {a.dtype}")
        check_finite("matrices", a)
        if num_snapshots is not None:
            return GainMeasurements(
                matrices=a, num_blocks=check_count("num_snapshots", num_snapshots), model="snapshots"
            )
        return GainMeasurements(matrices=a, num_blocks=a.shape[0], model="diverse" if diverse else "repeated")

    @staticmethod
    def gaussian(
        key: jax.Array,
        shape: tuple[int, int],
        num_blocks: int,
        *,
        model: str = "repeated",
        scale: float | jax.Array = 1.0,
        dtype: Any = None,
    ) -> "GainMeasurements":
        """Draws independent entries `N(0, scale^2)`; circular complex ones, `E |a|^2 = scale^2`, for complex dtypes.

        Args:
            key: random key.
            shape: `(m, n)` of one matrix.
            num_blocks: `p`.
            model: one of `"repeated"`, `"diverse"`, `"snapshots"`.
            scale: standard deviation of an entry.
            dtype: floating or complex; default JAX's current default float.
        """
        check_key(key)
        m, n = check_shape(shape)
        p = check_count("num_blocks", num_blocks)
        check_choice("model", model, MODELS)
        dtype = float_dtype(dtype, complex_too=True)
        scale = number("scale", scale, dtype, low=0)
        size = (m, n) if model == "snapshots" else (p, m, n)
        if (needed := math.prod(size) * dtype.itemsize) > MAX_BYTES:
            raise ValueError(
                f"{p} matrices of shape {(m, n)} need {needed / 2**30:.1f} GiB; use SeededGainMeasurements, whose "
                "memory does not grow with num_blocks"
            )
        matrices = _scaled_normal(key, scale, size)
        return GainMeasurements(matrices=matrices, num_blocks=p, model=model)

    @property
    def block_shape(self) -> tuple[int, int]:
        """`(m, n)` of one matrix."""
        return self.matrices.shape[-2], self.matrices.shape[-1]

    def _matrices(self) -> jax.Array:
        """`(p, m, n)`, or `(1, m, n)` for snapshots."""
        return self.matrices[None] if self.model == "snapshots" else self.matrices

    def _inputs(self, right: jax.Array) -> jax.Array:
        """`(p, n, k)`, or `(1, n, k)` if there is one input."""
        return right[None] if self.model == "repeated" else right.reshape(self.num_blocks, -1, right.shape[1])

    def _blocks(self, z: jax.Array) -> jax.Array:
        return z.reshape(self.num_blocks, -1)

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        images = matmul(self._matrices(), self._inputs(right))
        return jnp.sum(images * left[None], axis=-1).ravel()

    def forward_dense(self, x: jax.Array) -> jax.Array:
        a = "ij" if self.model == "snapshots" else "pij"
        if self.model == "repeated":
            return jnp.einsum("pij,ij->pi", self.matrices, x, precision="highest").ravel()
        blocks = x.reshape(x.shape[0], self.num_blocks, -1)
        return jnp.einsum(f"{a},ipj->pi", self.matrices, blocks, precision="highest").ravel()

    def adjoint(self, z: jax.Array) -> jax.Array:
        a, conjugate = "ij" if self.model == "snapshots" else "pij", self.matrices.conj()
        if self.model == "repeated":
            return jnp.einsum("pi,pij->ij", self._blocks(z), conjugate, precision="highest")
        return jnp.einsum(f"pi,{a}->ipj", self._blocks(z), conjugate, precision="highest").reshape(self.shape)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        images = matmul(self._matrices().conj(), self._inputs(v))
        return jnp.sum(self._blocks(z)[:, :, None] * images, axis=0)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        scaled = self._blocks(z)[:, :, None] * u[None]
        if self.model == "repeated":
            return matmul(self.matrices.reshape(-1, self.block_shape[1]).conj().T, scaled.reshape(-1, u.shape[1]))
        return matmul(self._matrices().conj().mT, scaled).reshape(-1, u.shape[1])


@pytree
class SeededGainMeasurements(Gains):
    """`GainMeasurements` with Gaussian `A_l` drawn again at each use: memory does not grow with their number.

    For the models that have a matrix per block. The price is drawing `p m n` normals in each application; use
    `GainMeasurements.gaussian` while they fit in memory.

    Attributes:
        key: the typed random key that is the ensemble.
        scale: standard deviation of an entry; its dtype is that of the matrices, real or complex.
        block_shape: `(m, n)` of one matrix.
        num_blocks: `p`.
        model: `"repeated"` or `"diverse"`.

    Examples:
        >>> import jax, lrjax as lr
        >>> a = lr.operators.SeededGainMeasurements.create(jax.random.key(0), (50, 30), 1000)
        >>> a.shape, a.num_measurements
        ((50, 30), 50000)
    """

    key: jax.Array
    scale: jax.Array
    block_shape: tuple[int, int] = jax.tree.static()
    num_blocks: int = jax.tree.static()
    model: str = jax.tree.static(default="repeated")

    @staticmethod
    def create(
        key: jax.Array,
        shape: tuple[int, int],
        num_blocks: int,
        *,
        model: str = "repeated",
        scale: float | jax.Array = 1.0,
        dtype: Any = None,
    ) -> "SeededGainMeasurements":
        """Describes the ensemble; nothing is drawn yet. Arguments are those of `GainMeasurements.gaussian`."""
        check_key(key)
        block = check_shape(shape)
        p = check_count("num_blocks", num_blocks)
        check_choice("model", model, MODELS[:2])
        scale = number("scale", scale, float_dtype(dtype, complex_too=True), low=0)
        return SeededGainMeasurements(key=key, scale=scale, block_shape=block, num_blocks=p, model=model)

    def matrix(self, index: jax.Array) -> jax.Array:
        """The `(m, n)` matrix of one block."""
        drawn = jax.random.normal(jax.random.fold_in(self.key, index), self.block_shape, self.scale.dtype)
        return self.scale * drawn

    def stored(self) -> GainMeasurements:
        """The same measurements with all matrices drawn and kept."""
        matrices = jax.vmap(self.matrix)(jnp.arange(self.num_blocks))
        return GainMeasurements(matrices=matrices, num_blocks=self.num_blocks, model=self.model)

    def _one(self, index: jax.Array) -> GainMeasurements:
        """One block, as a stored operator of a single matrix."""
        return GainMeasurements(matrices=self.matrix(index)[None], num_blocks=1)

    def _map(self, method: Any, *each: jax.Array) -> jax.Array:
        """`method(block, *slices)` for all blocks, one after the other."""
        # Checkpointed: reverse mode draws a block again rather than keeping them all for the transpose.
        one = jax.checkpoint(lambda index, *slices: method(self._one(index), *slices))
        return jax.lax.map(lambda given: one(*given), (jnp.arange(self.num_blocks), *each))

    def _sum(self, method: Any, *each: jax.Array) -> jax.Array:
        """The sum of the same, of which only the total is kept."""
        one = jax.checkpoint(lambda index, *slices: method(self._one(index), *slices))
        first = one(jnp.asarray(0), *(x[0] for x in each))
        rest = (jnp.arange(1, self.num_blocks), *(x[1:] for x in each))
        return jax.lax.scan(lambda total, given: (total + one(*given), None), first, rest)[0]

    def _split(self, right: jax.Array) -> jax.Array:
        return right.reshape(self.num_blocks, -1, right.shape[1])

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        if self.model == "repeated":
            return self._map(lambda block: block.forward(left, right)).ravel()
        return self._map(lambda block, x: block.forward(left, x), self._split(right)).ravel()

    def forward_dense(self, x: jax.Array) -> jax.Array:
        if self.model == "repeated":
            return self._map(lambda block: block.forward_dense(x)).ravel()
        blocks = x.reshape(x.shape[0], self.num_blocks, -1).swapaxes(0, 1)
        return self._map(lambda block, part: block.forward_dense(part), blocks).ravel()

    def adjoint(self, z: jax.Array) -> jax.Array:
        blocks = z.reshape(self.num_blocks, -1)
        if self.model == "repeated":
            return self._sum(lambda block, part: block.adjoint(part), blocks)
        parts = self._map(lambda block, part: block.adjoint(part), blocks)
        return parts.swapaxes(0, 1).reshape(self.shape)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        blocks = z.reshape(self.num_blocks, -1)
        if self.model == "repeated":
            return self._sum(lambda block, part: block.adjoint_matmul(part, v), blocks)
        return self._sum(lambda block, part, x: block.adjoint_matmul(part, x), blocks, self._split(v))

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        blocks = z.reshape(self.num_blocks, -1)
        gather = self._sum if self.model == "repeated" else self._map
        return gather(lambda block, part: block.adjoint_rmatmul(part, u), blocks).reshape(-1, u.shape[1])


@pytree
class InverseGainSystem:
    """`M z = diag(y_l) s - A_l x_l`, `l = 1..p`, as a linear map of `z = (s; x)` that is never formed.

    `s` are inverse gains, `x` the input, or the inputs one after the other. Without noise the true `z` spans its null
    space wherever the problem is determined; `lr.calibrate` solves it. It has what `lr.lstsq` and `lr.rsvd` want
    of an operator.

    Attributes:
        operator: a `GainMeasurements` or `SeededGainMeasurements`.
        y: `(p m,)` measurements.
    """

    operator: Any = dataclasses.field(kw_only=False)
    y: jax.Array = dataclasses.field(kw_only=False)

    @property
    def shape(self) -> tuple[int, int]:
        """`(p m, m + n)`, or `(p m, m + n p)` if each block has its own input."""
        m, inputs = self.operator.shape
        return self.operator.num_measurements, m + inputs

    @property
    def dtype(self) -> Any:
        """Of the measurements."""
        return self.y.dtype

    def apply(self, z: jax.Array) -> jax.Array:
        """`M z` for `z` of shape `(m + n,)` or, column by column, `(m + n, q)`."""
        if z.ndim == 2:
            return jax.vmap(self.apply, in_axes=1, out_axes=1)(z)
        m = self.operator.shape[0]
        images = self.operator.forward(jnp.ones((m, 1), z.dtype), z[m:, None])
        return (self.y.reshape(-1, m) * z[None, :m]).ravel() - images

    def apply_adjoint(self, r: jax.Array) -> jax.Array:
        """`M^H r` for `r` of shape `(p m,)` or, column by column, `(p m, q)`."""
        if r.ndim == 2:
            return jax.vmap(self.apply_adjoint, in_axes=1, out_axes=1)(r)
        m = self.operator.shape[0]
        gains = jnp.sum((self.y.conj() * r).reshape(-1, m), axis=0)
        inputs = self.operator.adjoint_rmatmul(r, jnp.ones((m, 1), r.dtype))
        return jnp.concatenate([gains, -inputs[:, 0]])

    def dense(self) -> jax.Array:
        """The matrix `M` itself."""
        return self.apply(jnp.eye(self.shape[1], dtype=self.dtype))


@functools.partial(jax.jit, static_argnums=2)
def _scaled_normal(key: jax.Array, scale: jax.Array, size: tuple[int, ...]) -> jax.Array:
    return drawn(jax.random.normal, key, size, scale.dtype) * scale
