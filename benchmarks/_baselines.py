"""Plain NumPy methods to measure against: well-written, single-threaded if BLAS is, and free of JAX."""

import numpy as np


def inexact_alm(y, *, columns=None, tolerance=1e-7, num_steps=200, seed=0):
    """Robust PCA by the inexact augmented Lagrangian method (Lin, Chen and Ma 2010): low-rank part and steps taken.

    Args:
        y: `(n1, n2)`.
        columns: `None` for a full SVD in every step; else the SVD of a product with a subspace of so many columns,
            taken over from the step before (one subspace iteration), which is many times faster.
        tolerance: stop at `||y - l - s|| <= tolerance ||y||`.
        num_steps: steps at most.
        seed: of the first subspace.
    """
    n1, n2 = y.shape
    lam, norm = 1 / np.sqrt(max(n1, n2)), np.linalg.norm(y)
    top = np.linalg.norm(y, 2) if columns is None else _top(y, seed)
    dual = y / max(top, np.abs(y).max() / lam)
    mu = 1.25 / top
    sparse = np.zeros_like(y)
    basis = None if columns is None else np.random.default_rng(seed).standard_normal((n2, columns))
    for step in range(1, num_steps + 1):  # noqa: B007
        z = y - sparse + dual / mu
        if basis is None:
            u, s, vt = np.linalg.svd(z, full_matrices=False)
        else:
            q = np.linalg.qr(z @ basis)[0]
            u, s, vt = np.linalg.svd(q.T @ z, full_matrices=False)
            u, basis = q @ u, vt.T
        s = np.maximum(s - 1 / mu, 0)
        k = int((s > 0).sum())
        low = (u[:, :k] * s[:k]) @ vt[:k]
        z = y - low + dual / mu
        sparse = np.sign(z) * np.maximum(np.abs(z) - lam / mu, 0)
        gap = y - low - sparse
        dual = dual + mu * gap
        mu = min(1.6 * mu, 1e10 / top)
        if np.linalg.norm(gap) <= tolerance * norm:
            break
    return low, step


def _top(y, seed):
    v = np.random.default_rng(seed).standard_normal(y.shape[1])
    for _ in range(20):
        v = y.T @ (y @ v)
        v /= np.linalg.norm(v)
    return np.linalg.norm(y @ v)
