"""The SVD, QR, eigendecomposition and Cholesky factorization that the library uses: all of them return.

LAPACK's single-precision SVD spins for ever on an infinity in the first row or column, and one such lane of a batch
stops all. A matrix that is not finite is therefore replaced by NaN first, matrix by matrix, and so is its result.
"""

import jax
import jax.numpy as jnp


def finite_or_nan(a: jax.Array) -> jax.Array:
    """`a` `(..., n, k)`, with every matrix that holds a NaN or an infinity replaced by NaN throughout."""
    # Zero times what is not finite is NaN: one sum, which compiles several times faster than a test of every element.
    return a + jax.lax.stop_gradient(jnp.sum(0 * a, axis=(-2, -1), keepdims=True))


def svd(a: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Thin SVD `(u, s, vh)` of `a` `(..., n, k)`; NaN where `a` is not finite."""
    u, s, vh = jnp.linalg.svd(finite_or_nan(a), full_matrices=False)
    return u, s, vh


def singular_values(a: jax.Array) -> jax.Array:
    """Singular values `(..., min(n, k))` of `a`, largest first; NaN where `a` is not finite."""
    return jnp.linalg.svd(finite_or_nan(a), compute_uv=False)


def spectral_norm(a: jax.Array) -> jax.Array:
    """Largest singular value of `a`; NaN where `a` is not finite."""
    return jnp.max(singular_values(a), axis=-1)


def qr(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Thin QR `(q, r)` of `a` `(..., n, k)`; NaN where `a` is not finite."""
    return jnp.linalg.qr(finite_or_nan(a))


def qr_r(a: jax.Array) -> jax.Array:
    """The triangular factor alone."""
    return jnp.linalg.qr(finite_or_nan(a), mode="r")


def eigh(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues in ascending order and eigenvectors of the Hermitian `a`; NaN where `a` is not finite."""
    values, vectors = jnp.linalg.eigh(finite_or_nan(a))
    return values, vectors


def cholesky(a: jax.Array) -> jax.Array:
    """Lower triangular factor of the positive definite `a`; NaN where it is not that, or not finite."""
    return jnp.linalg.cholesky(finite_or_nan(a))
