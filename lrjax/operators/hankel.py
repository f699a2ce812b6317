"""Sums over antidiagonals, whose adjoint builds block Hankel matrices; both by fast Fourier transforms."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import check_count, check_shape
from lrjax.core.pytree import pytree
from lrjax.operators.base import Operator


@pytree
class Hankel(Operator):
    """The block Hankel structure: `A*(z)` is the Hankel matrix of a sequence, `A(X)` sums blocks over antidiagonals.

    For a sequence `h_0, ..., h_{T-1}` of `p x m` blocks, `T = block_rows + block_cols - 1`, the matrix `A*(h)` has the
    block `h_{i+j}` at `(i, j)`, and `A(X)_k` is the sum of the blocks of `X` with `i + j = k`. Measurements are the
    flat sequence. Products of a Hankel matrix with `k` columns, and `forward` of factors, cost `O(p m k T)` and
    transforms of length `T`, without forming it. No arrays: `AdjointMatrix` with a sequence is a matrix for `rsvd`.

    Build it with `create`. Real sequences only. The transforms round relative to the largest products: blocks that are
    smaller than those by the machine epsilon are lost in `forward`, `adjoint_matmul` and `adjoint_rmatmul`.

    Attributes:
        block_rows: blocks from top to bottom.
        block_cols: blocks from left to right.
        block_shape: `(p, m)`.

    Examples:
        >>> import jax.numpy as jnp, lrjax as lr
        >>> lr.operators.Hankel.create(2, 3).adjoint(jnp.arange(4.0)).tolist()
        [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]
    """

    block_rows: int = jax.tree.static(kw_only=False)
    block_cols: int = jax.tree.static(kw_only=False)
    block_shape: tuple[int, int] = jax.tree.static(default=(1, 1))

    @staticmethod
    def create(block_rows: int, block_cols: int, *, block_shape: tuple[int, int] = (1, 1)) -> "Hankel":
        """A block Hankel structure of the given size.

        Raises:
            ValueError: a size that is not a positive integer.
        """
        return Hankel(
            block_rows=check_count("block_rows", block_rows),
            block_cols=check_count("block_cols", block_cols),
            block_shape=check_shape(block_shape, "block_shape"),
        )

    @property
    def length(self) -> int:
        """`T`, blocks of the sequence."""
        return self.block_rows + self.block_cols - 1

    @property
    def shape(self) -> tuple[int, int]:
        return self.block_rows * self.block_shape[0], self.block_cols * self.block_shape[1]

    @property
    def num_measurements(self) -> int:
        return self.length * math.prod(self.block_shape)

    def forward(self, left: jax.Array, right: jax.Array) -> jax.Array:
        p, m = self.block_shape
        product = _products("fpk,fmk->fpm", self._spectrum(left, p), self._spectrum(right, m))
        return self._back(product).reshape(-1)

    def forward_dense(self, x: jax.Array) -> jax.Array:
        rows, cols, (p, m) = self.block_rows, self.block_cols, self.block_shape
        blocks = x.reshape(rows, p, cols, m).transpose(1, 3, 0, 2)
        # Rows padded by their number and read one place short: each is then shifted by one against the last.
        padded = jnp.pad(blocks, ((0, 0), (0, 0), (0, 0), (0, rows))).reshape(p, m, -1)
        shifted = padded[..., : rows * self.length].reshape(p, m, rows, self.length)
        return jnp.sum(shifted, axis=2).transpose(2, 0, 1).reshape(-1)

    def adjoint(self, z: jax.Array) -> jax.Array:
        place = jnp.arange(self.block_rows)[:, None] + jnp.arange(self.block_cols)[None, :]
        return self._blocks(z)[place].transpose(0, 2, 1, 3).reshape(self.shape)

    def adjoint_matmul(self, z: jax.Array, v: jax.Array) -> jax.Array:
        seen = self._spectrum(v, self.block_shape[1]).conj()
        product = _products("fpm,fmk->fpk", self._transform(self._blocks(z)), seen)
        return self._back(product)[: self.block_rows].reshape(self.shape[0], v.shape[1])

    def adjoint_rmatmul(self, z: jax.Array, u: jax.Array) -> jax.Array:
        seen = self._spectrum(u, self.block_shape[0]).conj()
        product = _products("fpm,fpk->fmk", self._transform(self._blocks(z)), seen)
        return self._back(product)[: self.block_cols].reshape(self.shape[1], u.shape[1])

    def _blocks(self, z: jax.Array) -> jax.Array:
        return z.reshape(self.length, *self.block_shape)

    def _spectrum(self, columns: jax.Array, size: int) -> jax.Array:
        return self._transform(columns.reshape(-1, size, columns.shape[1]))

    def _transform(self, blocks: jax.Array) -> jax.Array:
        # Zeros up to the length of the sequence: nothing that is kept has wrapped around.
        return jnp.fft.rfft(blocks, n=_fast_length(self.length), axis=0)

    def _back(self, spectrum: jax.Array) -> jax.Array:
        return jnp.fft.irfft(spectrum, n=_fast_length(self.length), axis=0)[: self.length]


@pytree
class AdjointMatrix:
    """The matrix `A*(z)` known by its products only, for `lrjax.rsvd`: a Hankel matrix of 10^5 rows, a sparse matrix.

    Attributes:
        operator: any operator.
        z: `(m,)`.

    Examples:
        >>> import jax, jax.numpy as jnp, lrjax as lr
        >>> structure = lr.operators.Hankel.create(600, 400)
        >>> a = lr.operators.AdjointMatrix(structure, 0.5 ** jnp.arange(999.0))
        >>> [round(float(s), 3) for s in lr.rsvd(a, 1, key=jax.random.key(0))[1]]
        [1.333]
    """

    operator: Any = dataclasses.field(kw_only=False)
    z: jax.Array = dataclasses.field(kw_only=False)

    @property
    def shape(self) -> tuple[int, int]:
        """`(n1, n2)`."""
        return self.operator.shape

    def apply(self, x: jax.Array) -> jax.Array:
        """`A*(z) @ x` for `(n2, k)`."""
        return self.operator.adjoint_matmul(self.z, x)

    def apply_adjoint(self, x: jax.Array) -> jax.Array:
        """`A*(z).T @ x` for `(n1, k)`."""
        return self.operator.adjoint_rmatmul(self.z, x)


def _products(form: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(form, a, b, precision="highest")


def _fast_length(n: int) -> int:
    """The least product of powers of two, three and five from `n` on."""
    best = 1 << (n - 1).bit_length()
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            rest = -(-n // threes)
            best = min(best, threes << (rest - 1).bit_length())
            threes *= 3
        fives *= 5
    return best
