"""Test error on MovieLens-100K: every method tuned by the same protocol, then refitted and tested once per split.

Three random splits, 80/10/10. Each method is fitted on the 80 % for every point of its grid; the point with the least
error on the validation part is fitted anew on the 90 % and tested on the last part. Predictions are clipped to 1..5.
"""

import functools
import itertools
import time

import numpy as np

from benchmarks import peers, workloads

SPLITS, RANKS, SWEEPS = 3, (5, 10, 20, 40), 20
RIDGES = (2.0, 4.0, 8.0, 12.0, 20.0)


def lrjax_complete(rows, cols, values, shape, *, rank, ridge, seed):
    import jax

    import lrjax as lr

    done = lr.complete(
        rows, cols, values, shape, rank=rank, ridge=ridge, biases=True, num_steps=SWEEPS, key=jax.random.key(seed)
    )
    return done.predict


def cmfrec_biased(rows, cols, values, shape, *, rank, ridge, seed, cg=False):
    import scipy.sparse
    from cmfrec import CMF

    model = CMF(k=rank, lambda_=ridge, use_cg=cg, niter=SWEEPS, nthreads=peers.THREADS, verbose=False, use_float=True,
                random_state=seed, precompute_for_predictions=False, handle_interrupt=False)  # fmt: skip
    model.fit(scipy.sparse.coo_matrix((values, (rows, cols)), shape=shape))
    return lambda i, j: (
        model.glob_mean_ + model.user_bias_[i] + model.item_bias_[j] + np.einsum("mk,mk->m", model.A_[i], model.B_[j])
    )


def surprise_svd(rows, cols, values, shape, *, rank, ridge, seed, epochs):
    from surprise import SVD

    model = SVD(n_factors=rank, reg_all=ridge, n_epochs=epochs, random_state=seed)
    model.fit(peers.surprise_trainset(rows, cols, values, shape))
    mean = model.trainset.global_mean
    return lambda i, j: mean + model.bu[i] + model.bi[j] + np.einsum("mk,mk->m", model.pu[i], model.qi[j])


def biases_only(rows, cols, values, shape, *, damping, seed):
    mean, row, col = workloads.biases(rows, cols, values.astype(np.float64), shape, damping=damping)
    return lambda i, j: mean + row[i] + col[j]


ALS_GRID = {"rank": RANKS, "ridge": RIDGES}
METHODS = {
    "lrjax complete": (lrjax_complete, ("lrjax",), ALS_GRID),
    "cmfrec Cholesky": (cmfrec_biased, ("cmfrec",), ALS_GRID),
    "cmfrec CG": (functools.partial(cmfrec_biased, cg=True), ("cmfrec",), ALS_GRID),
    "surprise SVD": (
        surprise_svd,
        ("scikit-surprise",),
        {"rank": RANKS, "ridge": (0.02, 0.05, 0.1, 0.15), "epochs": (20, 50)},
    ),
    "biases only": (biases_only, (), {"damping": (2.0, 5.0, 10.0, 25.0)}),
}


def grid(method, quick=False):
    """The points of a method's grid, as dictionaries."""
    values = METHODS[method][2]
    if quick:
        values = {name: tuple(options)[:2] for name, options in values.items()}
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


@functools.cache
def table():
    from lrjax import datasets

    data = datasets.movielens_100k()
    return data.rows, data.cols, data.values.astype(np.float32), data.shape


def one(method, split, point, part):
    """One fit: `part` is `"validation"` (fit on 80 %) or `"test"` (fit on 90 %)."""
    fit, packages, _ = METHODS[method]
    for name in packages:
        if reason := peers.why_not(peers.Peer("whole", fit, {}, (name,)), {"n": 1}):
            return {"skip": reason}
    try:
        rows, cols, values, shape = table()
    except FileNotFoundError as problem:
        return {"skip": str(problem)}
    order, m = np.random.default_rng(split).permutation(len(values)), len(values)
    kept, asked = order[: m * 8 // 10], order[m * 8 // 10 : m * 9 // 10]
    if part == "test":
        kept, asked = order[: m * 9 // 10], order[m * 9 // 10 :]
    begun = time.perf_counter()
    predict = fit(rows[kept], cols[kept], values[kept], shape, seed=split, **point)
    seconds = time.perf_counter() - begun
    guess = np.clip(np.asarray(predict(rows[asked], cols[asked]), np.float64), 1, 5)
    return {"rmse": float(np.sqrt(np.mean((guess - values[asked]) ** 2))), "seconds": seconds}
