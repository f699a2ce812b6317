"""Gains behind fast transforms with random signs: calibration without a stored matrix."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import check_choice, check_count, check_key, check_shape, float_dtype
from lrjax.core.draws import drawn
from lrjax.core.pytree import pytree
from lrjax.linalg.hadamard import hadamard_transform
from lrjax.operators.gains import MODELS, GainMeasurements, Gains

TRANSFORMS = ("hadamard", "fourier")


@pytree
class StructuredGainMeasurements(Gains):
    """`GainMeasurements` with `A_l = (F diag(f_l) F diag(e_l))[:m, :n] / sqrt(N)`: random signs and fast transforms.

    `F` is a transform of size `N` whose entries have absolute value one; so have those of `A_l`, on average. Memory is
    that of the signs, `p (N + n)`; a product costs `O(p N log N)` instead of `O(p m n)`. `X`, the three models and the
    order of the measurements are those of `GainMeasurements`.

    One round, `A_l = (F diag(e_l))[:m, :n]`, costs half. Avoid it for `"hadamard"` with few measurements: gains that
    are a row of `F` permute its columns, and what they permute among themselves is not determined.

    `"hadamard"` is real, and any solver takes it. `"fourier"` is complex: `lr.calibrate` takes its `stored()`.

    Attributes:
        signs: those of each round, `(p, n)` first, then `(p, N)`; one instead of `p` for snapshots. Their dtype is
            that of the matrices, or of their real part.
        block_shape: `(m, n)` of one matrix.
        size: `N`, at least `m` and `n`; a power of two for `"hadamard"`.
        num_blocks: `p`.
        model: one of `"repeated"`, `"diverse"`, `"snapshots"`.
        transform: `"hadamard"` or `"fourier"`.

    Examples:
        >>> import jax, lrjax as lr
        >>> a = lr.operators.StructuredGainMeasurements.create(jax.random.key(0), (50, 30), 4)
        >>> a.shape, a.num_measurements, a.size
        ((50, 30), 200, 64)
    """

    signs: tuple[jax.Array, ...]
    block_shape: tuple[int, int] = jax.tree.static()
    size: int = jax.tree.static()
    num_blocks: int = jax.tree.static()
    model: str = jax.tree.static(default="repeated")
    transform: str = jax.tree.static(default="hadamard")

    @staticmethod
    def create(
        key: jax.Array,
        shape: tuple[int, int],
        num_blocks: int,
        *,
        model: str = "repeated",
        transform: str = "hadamard",
        rounds: int = 2,
        dtype: Any = None,
    ) -> "StructuredGainMeasurements":
        """Draws the signs; `N` is the smallest that fits.

        Args:
            key: random key.
            shape: `(m, n)` of one matrix.
            num_blocks: `p`.
            model: one of `"repeated"`, `"diverse"`, `"snapshots"`.
            transform: `"hadamard"` or `"fourier"`.
            rounds: of signs and transform.
            dtype: real floating type of the signs; default JAX's current default float.

        Raises:
            ValueError: a size that is not positive, an unknown name, or a dtype that is not real floating.
        """
        check_key(key)
        m, n = check_shape(shape)
        p = check_count("num_blocks", num_blocks)
        check_choice("model", model, MODELS)
        check_choice("transform", transform, TRANSFORMS)
        dtype, rounds = float_dtype(dtype), check_count("rounds", rounds)
        size = max(m, n) if transform == "fourier" else 1 << (max(m, n) - 1).bit_length()
        signs = _signs(key, 1 if model == "snapshots" else p, (n, *(size,) * (rounds - 1)), dtype)
        return StructuredGainMeasurements(
            signs=signs, block_shape=(m, n), size=size, num_blocks=p, model=model, transform=transform
        )

    def stored(self) -> GainMeasurements:
        """The same measurements with all matrices formed and kept."""
        columns = self._images(jnp.eye(self.block_shape[1], dtype=self.signs[0].dtype)[None])
        matrices = columns[0] if self.model == "snapshots" else columns
        return GainMeasurements(matrices=matrices, num_blocks=self.num_blocks, model=self.model)

    def _transformed(self, x: jax.Array, *, adjoint: bool = False) -> jax.Array:
        """`F x`, or `F^H x`, over `sqrt(N)`, along axis 1 of `(p, N, k)`."""
        if self.transform == "fourier":
            return (jnp.fft.ifft if adjoint else jnp.fft.fft)(x, axis=1, norm="ortho")
        columns = x.swapaxes(0, 1).reshape(self.size, -1)
        if jnp.iscomplexobj(x):
            out = jax.lax.complex(hadamard_transform(columns.real), hadamard_transform(columns.imag))
        else:
            out = hadamard_transform(columns)
        return out.reshape(self.size, x.shape[0], x.shape[2]).swapaxes(0, 1)

    def _filled(self, x: jax.Array) -> jax.Array:
        """Rows filled up with zeros to `N`, and the scale of the whole."""
        root = jnp.sqrt(jnp.asarray(self.size, self.signs[0].dtype))
        return root * jnp.pad(x, ((0, 0), (0, self.size - x.shape[1]), (0, 0)))

    def _images(self, inputs: jax.Array) -> jax.Array:
        """`A_l X_l` for `(p, n, k)`, or for `(1, n, k)` with all the same."""
        first, *later = self.signs
        images = self._transformed(self._filled(first[:, :, None] * inputs))
        for signs in later:
            images = self._transformed(signs[:, :, None] * images)
        return images[:, : self.block_shape[0]]

    def _back(self, images: jax.Array) -> jax.Array:
        """`A_l^H Z_l` for `(p, m, k)`."""
        first, *later = self.signs
        back = self._transformed(self._filled(images), adjoint=True)
        for signs in reversed(later):
            back = self._transformed(signs[:, :, None] * back, adjoint=True)
        return first[:, :, None] * back[:, : self.block_shape[1]]

    def _inputs(self, right: jax.Array) -> jax.Array:
        return right[None] if self.model == "repeated" else right.reshape(self.num_blocks, -1, right.shape[1])

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.sum(self._images(self._inputs(right)) * left[None], axis=-1).ravel()

    def forward_dense(self, x: jax.Array) -> jax.Array:
        # Row i of X is the input that measurement i sees: all rows as columns, and of their images the diagonal.
        return jnp.diagonal(self._images(self._inputs(x.T)), axis1=1, axis2=2).ravel()

    def adjoint(self, z: jax.Array) -> jax.Array:
        m = self.block_shape[0]
        back = self._back(z.reshape(self.num_blocks, m, 1) * jnp.eye(m, dtype=z.dtype)[None])
        if self.model == "repeated":
            return jnp.sum(back, axis=0).T
        return back.transpose(2, 0, 1).reshape(self.shape)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        images = self._images(self._inputs(v.conj())).conj()
        return jnp.sum(z.reshape(self.num_blocks, -1, 1) * images, axis=0)

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        back = self._back(z.reshape(self.num_blocks, -1, 1) * u[None])
        return jnp.sum(back, axis=0) if self.model == "repeated" else back.reshape(-1, u.shape[1])


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _signs(key: jax.Array, count: int, widths: tuple[int, ...], dtype: Any) -> tuple[jax.Array, ...]:
    keys = jax.random.split(key, len(widths))
    return tuple(drawn(jax.random.rademacher, k, (count, w), dtype) for k, w in zip(keys, widths, strict=True))
