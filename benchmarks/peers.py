"""What is measured: lrjax's solvers and the packages beside it, one small function each.

There are three kinds of adapter, named in `Peer.kind`:

- `"steps"`: `run(case, clock, **settings)` hands every iterate to `clock.step(left, right)`, which stops the clock
  while the error is evaluated and ends the run by an exception;
- `"counted"`: `run(case, clock, steps, **settings) -> left, right`: a package without callbacks, told how many
  sweeps to do; the harness finds the number that reaches a goal and then times whole calls;
- `"whole"`: `run(case, clock, **settings) -> left, right` (or a dense matrix and `None`): it stops by its own rule.

`clock.built()` marks the end of the conversion of the input. Every adapter starts from the same host arrays.
"""

import importlib.metadata
import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

THREADS = int(os.environ.get("LRJAX_BENCH_THREADS") or os.cpu_count() or 1)


class Peer(NamedTuple):
    kind: str
    run: Callable
    settings: dict[str, Any]
    packages: tuple[str, ...] = ()  # distributions that must be installed
    blas_threads: int = 1  # OpenBLAS threads spin beside OpenMP or XLA ones, and slow both down
    largest: int = 10**12  # entries of the whole matrix beyond which it is not tried
    max_steps: int = 10_000  # steps of it that are worth waiting for


def version(peer: Peer) -> str:
    """What is measured, or `""` for what comes with Python and the harness itself."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in peer.packages)


def why_not(peer: Peer, spec: dict) -> str | None:
    """Why this peer cannot run this case, or `None`."""
    for name in peer.packages:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed"
    if "solver" in peer.settings:
        import lrjax

        if not hasattr(lrjax, peer.settings["solver"]):
            return f"this lrjax has no {peer.settings['solver']}"
    size = spec.get("n1", spec.get("n")) * spec.get("n2", spec.get("n"))
    return f"more than {peer.largest:,} entries" if size > peer.largest else None


# --------------------------------------------------------------------------------------------------------------- lrjax


def place(operator):
    """Where the operator is put on the machine: over all devices, if the child was started with several."""
    import jax

    return operator.shard(jax.make_mesh((jax.device_count(),), ("devices",)), "devices")


def _lrjax_problem(case, clock, loss):
    import jax

    import lrjax as lr

    operator, y = lr.operators.SampledEntries.build(case.rows, case.cols, case.values, case.shape)
    operator = operator if jax.device_count() == 1 else place(operator)
    problem = lr.Problem(operator, y) if loss is None else lr.Problem(operator, y, loss=getattr(lr.losses, loss)())
    problem = jax.block_until_ready(problem)
    clock.built()
    return problem


def _lrjax_solver(case, solver, ridge, twice, settings):
    import lrjax as lr

    more = {} if ridge is None else {"ridge": ridge}
    return getattr(lr, solver)(max_rank=(2 if twice else 1) * case.rank, **settings, **more)


def lrjax_steps(case, clock, *, solver, loss=None, ridge=None, twice=False, seed=0, devices=1, **settings):
    """Any solver of lrjax on sampled entries, one compiled step at a time."""
    import jax

    import lrjax as lr

    problem = _lrjax_problem(case, clock, loss)
    made = _lrjax_solver(case, solver, ridge, twice, settings)
    for solution in lr.iterate(problem, made, jax.random.key(seed), num_steps=clock.max_steps):
        jax.block_until_ready(solution.factors)
        clock.step(solution.factors.left, solution.factors.right)


def lrjax_whole(case, clock, steps, *, solver, loss=None, ridge=None, twice=False, seed=0, devices=1, **settings):
    """The same as one call of `lr.solve`."""
    import jax

    import lrjax as lr

    problem = _lrjax_problem(case, clock, loss)
    made = _lrjax_solver(case, solver, ridge, twice, settings)
    solution = lr.solve(problem, made, jax.random.key(seed), num_steps=steps, record_every=steps)
    jax.block_until_ready(solution.factors)
    return solution.factors.left, solution.factors.right


def _lrjax_dense_problem(case, clock, loss):
    import jax
    import jax.numpy as jnp

    import lrjax as lr

    operator = lr.operators.Identity(matrix_shape=case.shape)
    problem = lr.Problem(operator, jnp.asarray(case.values.ravel()), loss=getattr(lr.losses, loss)())
    problem = jax.block_until_ready(problem)
    clock.built()
    return problem


def lrjax_dense(case, clock, *, solver, loss="Absolute", twice=False, seed=0, **settings):
    """A solver of lrjax on a full matrix with outliers."""
    import jax

    import lrjax as lr

    problem = _lrjax_dense_problem(case, clock, loss)
    made = _lrjax_solver(case, solver, None, twice, settings)
    for solution in lr.iterate(problem, made, jax.random.key(seed), num_steps=clock.max_steps):
        jax.block_until_ready(solution.factors)
        clock.step(solution.factors.left, solution.factors.right)


def lrjax_dense_whole(case, clock, steps, *, solver, loss="Absolute", twice=False, seed=0, **settings):
    """The same as one call of `lr.solve`."""
    import jax

    import lrjax as lr

    problem = _lrjax_dense_problem(case, clock, loss)
    made = _lrjax_solver(case, solver, None, twice, settings)
    solution = lr.solve(problem, made, jax.random.key(seed), num_steps=steps, record_every=steps)
    jax.block_until_ready(solution.factors)
    return solution.factors.left, solution.factors.right


WHOLE = {lrjax_steps: lrjax_whole, lrjax_dense: lrjax_dense_whole}  # what is timed as `one call` beside the steps


def _ours(solver, largest=10**12, max_steps=10_000, run=lrjax_steps, **settings):
    return Peer("steps", run, {"solver": solver, **settings}, ("lrjax", "jax"), largest=largest, max_steps=max_steps)


# ----------------------------------------------------------------------------------------------------- installed peers


def cmfrec(case, clock, steps, *, cg=False, ridge=0.0, threads=THREADS):
    """cmfrec's ALS on the bare factorisation: no biases, no centring, in the dtype of the values."""
    import scipy.sparse
    from cmfrec import CMF

    model = CMF(
        k=case.rank, lambda_=ridge, method="als", use_cg=cg, user_bias=False, item_bias=False, center=False,
        niter=steps, use_float=case.values.dtype == np.float32, nthreads=threads, verbose=False, random_state=1,
        precompute_for_predictions=False, produce_dicts=False, handle_interrupt=False,
    )  # fmt: skip
    matrix = scipy.sparse.coo_matrix((case.values, (case.rows, case.cols)), shape=case.shape)
    clock.built()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X=matrix)
    return model.A_, model.B_


def implicit_als(case, clock, steps, *, cg=False, ridge=0.1):
    """implicit's ALS: unseen entries are zeros of low confidence, so only its time is comparable."""
    import scipy.sparse
    from implicit.cpu.als import AlternatingLeastSquares

    values = np.abs(case.values).astype(np.float32) + 1
    matrix = scipy.sparse.csr_matrix((values, (case.rows, case.cols)), shape=case.shape)
    clock.built()
    model = AlternatingLeastSquares(
        factors=case.rank, regularization=ridge, iterations=steps, use_cg=cg, num_threads=THREADS, random_state=0
    )
    model.fit(matrix, show_progress=False)
    return model.user_factors, model.item_factors


def surprise_trainset(rows, cols, values, shape):
    """Ratings as scikit-surprise wants them, without going through a data frame."""
    from surprise import Trainset

    by_row, by_col = ({i: [] for i in range(n)} for n in shape)
    for i, j, value in zip(rows.tolist(), cols.tolist(), values.tolist(), strict=True):
        by_row[i].append((j, value))
        by_col[j].append((i, value))
    names = [{i: i for i in range(n)} for n in shape]
    return Trainset(by_row, by_col, *shape, len(values), (1, 5), *names)


def surprise_sgd(case, clock, steps, *, rate=0.01, ridge=0.0):
    """scikit-surprise's stochastic gradient descent, without biases."""
    from surprise import SVD

    data = surprise_trainset(case.rows, case.cols, case.values, case.shape)
    clock.built()
    model = SVD(n_factors=case.rank, n_epochs=steps, biased=False, lr_all=rate, reg_all=ridge, random_state=0)
    model.fit(data)
    return model.pu, model.qi


def pymanopt_cg(case, clock):
    """pymanopt's conjugate gradients on matrices of fixed rank, gradient written by hand, spectral start."""
    import pymanopt
    import scipy.sparse

    rows, cols = case.rows, case.cols
    csr, start = _spectral(case)
    clock.built()
    manifold = pymanopt.manifolds.FixedRankEmbedded(*case.shape, case.rank)

    def residual(u, s, vt):
        return np.einsum("mk,mk->m", (u * s)[rows], vt.T[cols]) - case.values

    @pymanopt.function.numpy(manifold)
    def cost(u, s, vt):
        return 0.5 * float(np.sum(residual(u, s, vt) ** 2)) / csr.nnz

    @pymanopt.function.numpy(manifold)
    def gradient(u, s, vt):
        clock.step(u * s, vt.T)  # once an iteration, at the iterate
        g = scipy.sparse.csr_matrix((residual(u, s, vt) / csr.nnz, (rows, cols)), shape=case.shape)
        gv, gtu = g @ vt.T, g.T @ u
        return gv * s, np.sum(u * gv, axis=0), (gtu * s).T

    problem = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient)
    optimizer = pymanopt.optimizers.ConjugateGradient(
        verbosity=0, max_iterations=clock.max_steps, max_time=clock.limit, min_gradient_norm=0, min_step_size=0
    )
    u, s, v = start
    optimizer.run(problem, initial_point=(u, s, v.T))


# ----------------------------------------------------------------------------------------------- NumPy and SciPy peers


def _spectral(case):
    """The observed values as a CSR matrix, and the leading singular triples of it, rescaled to the whole matrix."""
    import scipy.sparse

    csr = scipy.sparse.csr_matrix((case.values, (case.rows, case.cols)), shape=case.shape)
    n1, n2 = case.shape
    u, s, vt = scipy.sparse.linalg.svds(csr, k=case.rank, random_state=0)
    return csr, (u[:, ::-1], s[::-1] * n1 * n2 / csr.nnz, vt[::-1].T)


def numpy_als(case, clock, *, start="spectral", ridge=1e-12):
    """Alternating least squares as it is usually written: a Python loop over rows, normal equations."""
    csr, (u, s, v) = _spectral(case)
    sides = [csr.T.tocsr(), csr]
    clock.built()
    left = u * np.sqrt(s) if start == "spectral" else np.random.default_rng(0).standard_normal(u.shape)
    factors = [v * np.sqrt(s), left.astype(case.values.dtype)]  # right, left
    eye = ridge * np.eye(case.rank, dtype=case.values.dtype)
    clock.step(factors[1], factors[0])
    while True:
        for side in (0, 1):
            matrix, fixed, new = sides[side], factors[1 - side], np.zeros_like(factors[side])
            for i in range(matrix.shape[0]):
                part = slice(matrix.indptr[i], matrix.indptr[i + 1])
                a = fixed[matrix.indices[part]]
                gram = a.T @ a + eye
                try:
                    new[i] = np.linalg.solve(gram, a.T @ matrix.data[part])
                except np.linalg.LinAlgError:
                    new[i] = np.linalg.lstsq(gram, a.T @ matrix.data[part])[0]
            factors[side] = new
        clock.step(factors[1], factors[0])


def scipy_lbfgs(case, clock):
    """SciPy's L-BFGS-B on both factors, sparse gradient, spectral start."""
    import scipy.optimize
    import scipy.sparse

    _, (u, s, v) = _spectral(case)
    rows, cols, n1, k = case.rows, case.cols, case.shape[0], case.rank
    # SciPy keeps its vector in float64 whatever the values are.
    values = case.values.astype(np.float64)
    clock.built()

    def objective(x):
        x = x.reshape(-1, k)
        left, right = x[:n1], x[n1:]
        r = np.einsum("mk,mk->m", left[rows], right[cols]) - values
        g = scipy.sparse.csr_matrix((r, (rows, cols)), shape=case.shape)
        return 0.5 * float(r @ r), np.concatenate([g @ right, g.T @ left]).ravel()

    def watch(intermediate_result):
        x = intermediate_result.x.reshape(-1, k)
        clock.step(x[:n1], x[n1:])

    x = np.concatenate([u * np.sqrt(s), v * np.sqrt(s)])
    clock.step(x[:n1], x[n1:])
    options = {"maxiter": 10**6, "maxfun": 10**7, "ftol": 0, "gtol": 0, "maxcor": 20}
    scipy.optimize.minimize(objective, x.ravel(), jac=True, method="L-BFGS-B", callback=watch, options=options)


def numpy_scaled_gd(case, clock, *, step_size=0.5):
    """Scaled gradient descent with a fixed step and a spectral start, as its authors' scripts do it."""
    import scipy.sparse

    csr, (u, s, v) = _spectral(case)
    rows, cols, scale = case.rows, case.cols, case.shape[0] * case.shape[1] / csr.nnz
    clock.built()
    left, right = u * np.sqrt(s), v * np.sqrt(s)
    clock.step(left, right)
    while True:
        r = scale * (np.einsum("mk,mk->m", left[rows], right[cols]) - case.values)
        g = scipy.sparse.csr_matrix((r, (rows, cols)), shape=case.shape)
        to_left = np.linalg.solve(right.T @ right, (g @ right).T).T
        to_right = np.linalg.solve(left.T @ left, (g.T @ left).T).T
        left, right = left - step_size * to_left, right - step_size * to_right
        clock.step(left, right)


def numpy_soft_impute(case, clock, *, shrink=0.8):
    """Soft-impute on dense matrices with a full SVD, its threshold lowered from step to step."""
    dense = np.zeros(case.shape, case.values.dtype)
    dense[case.rows, case.cols] = case.values
    seen = np.zeros(case.shape, bool)
    seen[case.rows, case.cols] = True
    clock.built()
    threshold, x = np.linalg.norm(dense, 2) / 2, np.zeros_like(dense)
    while True:
        u, s, vt = np.linalg.svd(np.where(seen, dense, x), full_matrices=False)
        keep = np.maximum(s - threshold, 0)
        x = (u * keep) @ vt
        clock.step(u * keep, vt.T)
        threshold *= shrink


# ---------------------------------------------------------------------------------------------------- robust PCA peers


def numpy_ialm(y, watch, *, columns=20, growth=1.5, sparsity=None):
    """Principal component pursuit by inexact augmented Lagrangian steps, each SVD by a warm subspace of few columns.

    Lin, Chen and Ma (2010), with two block power steps from the last right singular vectors in place of a full SVD.
    The subspace holds the rank and more; `watch(left, right)` sees each low-rank part and ends the loop.
    """
    sparsity = sparsity or 1 / np.sqrt(max(y.shape))
    v = np.linalg.qr(np.random.default_rng(0).standard_normal((y.shape[1], columns)).astype(y.dtype))[0]
    for _ in range(8):
        v = np.linalg.qr(y.T @ (y @ v))[0]
    norm = np.linalg.norm(y @ v, 2)
    dual = y / max(norm, np.abs(y).max() / sparsity)
    mu, ceiling, sparse = 1.25 / norm, 1.25e7 / norm, np.zeros_like(y)
    while True:
        target = y - sparse + dual / mu
        for _ in range(2):
            q = np.linalg.qr(target @ v)[0]
            v, r = np.linalg.qr(target.T @ q)
        a, s, bt = np.linalg.svd(r.T)
        left, right = (q @ a) * np.maximum(s - 1 / mu, 0), v @ bt.T
        low = left @ right.T
        watch(left, right)
        slack = y - low + dual / mu
        sparse = np.sign(slack) * np.maximum(np.abs(slack) - sparsity / mu, 0)
        dual = dual + mu * (y - low - sparse)
        mu = min(growth * mu, ceiling)


def ialm_steps(case, clock, **settings):
    clock.built()
    numpy_ialm(case.values, clock.step, **settings)


def pyrpca_ialm(case, clock, *, tol=1e-7):
    """pyrpca: principal component pursuit, inexact augmented Lagrangian, full SVDs."""
    from pyrpca import rpca_pcp_ialm

    return rpca_pcp_ialm(case.values, 1 / np.sqrt(max(case.shape)), tol=tol, verbose=False)[0], None


def skpcp_pcp(case, clock, *, tol=1e-7, max_iter=1000):
    """skpcp: principal component pursuit with a fixed penalty, full SVDs."""
    from skpcp.pcp import pcp

    return pcp(case.values, tol=tol, max_iter=max_iter)[0], None


def tensorly_rpca(case, clock, *, learning_rate=1.5, tol=1e-7):
    """tensorly's robust_pca; the penalty grows by half a step (its default, a tenth, is slower)."""
    from tensorly.decomposition import robust_pca

    sparse = 2 / np.sqrt(max(case.shape))  # it sums the nuclear norms of both unfoldings
    return robust_pca(
        case.values, reg_E=sparse, learning_rate=learning_rate, tol=tol, n_iter_max=500, verbose=0
    )[0], None  # fmt: skip


def rpca_projections(case, clock, *, tol=1e-7):
    """rpca: accelerated alternating projections at the known rank, plus one for the column means it takes out."""
    from rpca import RobustPCA

    model = RobustPCA(n_components=case.rank + 1, tol=tol, max_iter=200, verbose=False).fit(case.values)
    return model.low_rank_ + model.mean_, None


# ----------------------------------------------------------------------------------------------------------- the table

_SCIPY = ("numpy", "scipy")
PEERS: dict[str, Peer] = {
    "lrjax ALS": _ours("AlternatingMinimization"),
    "lrjax ALS, 2 devices": _ours("AlternatingMinimization", devices=2),
    "lrjax ALS, spectral start": _ours("AlternatingMinimization", start="spectral"),
    "lrjax ALS, ridge": _ours("AlternatingMinimization", ridge=8.0, orthonormalize=False),
    "lrjax ALS, ridge, 2 devices": _ours("AlternatingMinimization", ridge=8.0, orthonormalize=False, devices=2),
    "lrjax ALS, cg": _ours("AlternatingMinimization", ridge=8.0, orthonormalize=False, inner="cg", inner_steps=3),
    "lrjax scaled GD": _ours("ScaledGradientDescent"),
    "lrjax GD": _ours("GradientDescent", start="spectral"),
    "lrjax Gauss-Newton": _ours("GaussNewton", max_steps=1000),
    "lrjax IRLS": _ours("IRLS", max_steps=1000),
    "lrjax SVP": _ours("SingularValueProjection"),
    "lrjax soft impute": _ours("SoftImpute"),
    "lrjax ALS, absolute loss": _ours("AlternatingMinimization", loss="Absolute"),
    "lrjax subgradient": _ours("SubgradientMethod", loss="Absolute"),
    "lrjax Gauss-Newton, absolute loss": _ours("GaussNewton", loss="Absolute", max_steps=1000),
    "lrjax Gauss-Newton, absolute loss, twice the rank": _ours(
        "GaussNewton", loss="Absolute", twice=True, max_steps=1000
    ),
    "lrjax scaled subgradient": _ours("ScaledSubgradient", loss="Absolute"),
    "lrjax alternating projections": _ours("AlternatingProjections", loss="Absolute"),
    "lrjax RPCA, ALS absolute loss": _ours("AlternatingMinimization", run=lrjax_dense),
    "lrjax RPCA, subgradient": _ours("SubgradientMethod", run=lrjax_dense),
    "lrjax RPCA, alternating projections": _ours("AlternatingProjections", run=lrjax_dense),
    "lrjax RPCA, alternating projections, twice the rank": _ours("AlternatingProjections", run=lrjax_dense, twice=True),
    "cmfrec Cholesky": Peer("counted", cmfrec, {}, ("cmfrec",), max_steps=320),
    "cmfrec Cholesky, 1 thread": Peer("counted", cmfrec, {"threads": 1}, ("cmfrec",), max_steps=320),
    "cmfrec Cholesky, ridge": Peer("counted", cmfrec, {"ridge": 8.0}, ("cmfrec",), max_steps=320),
    "cmfrec Cholesky, tiny ridge": Peer("counted", cmfrec, {"ridge": 1e-12, "threads": 1}, ("cmfrec",), max_steps=1000),
    "cmfrec CG": Peer("counted", cmfrec, {"cg": True}, ("cmfrec",), max_steps=320),
    "cmfrec CG, ridge": Peer("counted", cmfrec, {"cg": True, "ridge": 8.0}, ("cmfrec",), max_steps=320),
    "implicit Cholesky": Peer("counted", implicit_als, {}, ("implicit",), max_steps=320),
    "implicit CG": Peer("counted", implicit_als, {"cg": True}, ("implicit",), max_steps=320),
    "surprise SGD": Peer("counted", surprise_sgd, {}, ("scikit-surprise",), largest=2 * 10**6, max_steps=320),
    "pymanopt CG": Peer("steps", pymanopt_cg, {}, ("pymanopt", "scipy"), THREADS, largest=3 * 10**7),
    "NumPy ALS": Peer("steps", numpy_als, {}, _SCIPY),
    "NumPy ALS, random start": Peer("steps", numpy_als, {"start": "random"}, _SCIPY),
    "SciPy L-BFGS": Peer("steps", scipy_lbfgs, {}, _SCIPY),
    "NumPy scaled GD": Peer("steps", numpy_scaled_gd, {}, _SCIPY),
    "NumPy soft-impute": Peer("steps", numpy_soft_impute, {}, ("numpy",), THREADS, largest=2 * 10**6),
    "NumPy IALM, 20 columns": Peer("steps", ialm_steps, {}, ("numpy",), THREADS),
    "pyrpca": Peer("whole", pyrpca_ialm, {}, ("pyrpca",), THREADS, largest=2 * 10**6),
    "skpcp": Peer("whole", skpcp_pcp, {}, ("skpcp",), THREADS, largest=2 * 10**6),
    "tensorly": Peer("whole", tensorly_rpca, {}, ("tensorly",), THREADS, largest=2 * 10**6),
    "rpca": Peer("whole", rpca_projections, {}, ("rpca",), THREADS),
}
