"""Time on the user's clock: a fresh process, its imports, the first answer and the next ones, compilation included.

`python -m benchmarks.bench_latency TASK CONTENDER DATA` is one such process and prints one JSON line; `TASKS` names
what there is, `DATA` a file of inputs that `write_inputs` made. Starting the interpreter and reading the file are left
out. With `JAX_COMPILATION_CACHE_DIR` set JAX takes what it can from the cache of earlier processes.
"""

import json
import sys
import time

RANK, RIDGE, SWEEPS = 10, 10.0, 30


def write_inputs(path, quick):
    """Two splits of MovieLens-100K (of a synthetic table if it is not installed, or small ones), and matrices."""
    import numpy as np

    from benchmarks import ratings, workloads

    rng = np.random.default_rng(0)
    try:
        if quick:
            raise FileNotFoundError
        rows, cols, values, shape = ratings.table()
        source = "MovieLens-100K"
    except FileNotFoundError:
        shape, m, source = (90, 70), 2500, "synthetic"
        rows, cols = workloads.distinct_entries(rng, shape, m)
        left, right = (rng.standard_normal((n, 2)) for n in shape)
        values = np.clip(3 + workloads.entries_of(left, right, rows, cols), 1, 5).astype(np.float32)
    arrays = {"rows": rows, "cols": cols, "values": values, "shape": shape}
    for split in (0, 1):
        arrays[f"order{split}"] = np.random.default_rng(split).permutation(len(values))
    n, d = (400, 5) if quick else (20_000, 50)
    for draw in (0, 1):
        a = rng.standard_normal((n, d))
        arrays |= {f"a{draw}": a, f"b{draw}": a @ rng.standard_normal(d) + rng.standard_normal(n)}
        low = rng.standard_normal((n // 20, d)) @ rng.standard_normal((d, n // 40))
        arrays[f"w{draw}"] = (low + 0.1 * rng.standard_normal(low.shape)).astype(np.float32)
    np.savez(path, **arrays)
    return source


def split(data, which):
    """`rows, cols, values` of nine tenths, and of the rest."""
    order = data[f"order{which}"]
    kept = len(order) - len(order) // 10
    return [tuple(data[name][part] for name in ("rows", "cols", "values")) for part in (order[:kept], order[kept:])]


def shape_of(data):
    return tuple(int(n) for n in data["shape"])


def rmse(predict, data, which):
    import numpy as np

    rows, cols, values = split(data, which)[1]
    guess = np.clip(np.asarray(predict(rows, cols), np.float64), 1, 5)
    return float(np.sqrt(np.mean((guess - values) ** 2)))


# -------------------------------------------------------------- a contender: imports, then `answer(data, which, rank)`


def complete():
    import jax

    import lrjax as lr

    def answer(data, which, rank=RANK):
        found = lr.complete(*split(data, which)[0], shape_of(data), rank=rank, ridge=RIDGE, biases=True,
                            num_steps=SWEEPS, holdout=0.1, key=jax.random.key(which))  # fmt: skip
        return rmse(found.predict, data, which)

    return answer


def cmfrec():
    import cmfrec  # noqa: F401 - its time is the import's

    from benchmarks import ratings

    def answer(data, which, rank=RANK):
        fit = ratings.cmfrec_biased(*split(data, which)[0], shape_of(data), rank=rank, ridge=RIDGE, seed=which)
        return rmse(fit, data, which)

    return answer


def implicit():
    import implicit.cpu.als  # noqa: F401
    import scipy.sparse  # noqa: F401

    from benchmarks import peers, workloads

    def answer(data, which, rank=RANK):
        import numpy as np

        class Clock:
            built = staticmethod(lambda: None)

        rows, cols, values = split(data, which)[0]
        blank = np.empty(0)
        case = workloads.Case({}, shape_of(data), rank, rows, cols, values, blank, blank, blank, blank, blank)
        peers.implicit_als(case, Clock, SWEEPS, ridge=0.1)

    return answer


def surprise():
    import surprise  # noqa: F401

    from benchmarks import ratings

    def answer(data, which, rank=RANK):
        settings = {"rank": rank, "ridge": 0.1, "epochs": 50}
        return rmse(ratings.surprise_svd(*split(data, which)[0], shape_of(data), seed=which, **settings), data, which)

    return answer


def solver(name, **settings):
    """`lr.solve` on listed entries, a mask of equal size the next time."""

    def contender():
        import jax

        import lrjax as lr

        kind = getattr(lr, name)

        def answer(data, which, rank=RANK):
            op, y = lr.operators.SampledEntries.build(*split(data, which)[0], shape_of(data))
            found = lr.solve(lr.Problem(op, y), kind(max_rank=rank, **settings), jax.random.key(which), num_steps=3)
            jax.block_until_ready(found)

        return answer

    return contender


def builder(name, **settings):
    def contender():
        import jax

        import lrjax as lr

        def answer(data, which, rank=RANK):
            key = jax.random.key(which)
            jax.block_until_ready(getattr(lr.synthetic, name)(key, shape=(60, 50), rank=3, **settings))

        return answer

    return contender


def subgradient():
    import jax

    import lrjax as lr

    def answer(data, which, rank=3):
        key = jax.random.key(which)
        problem, _ = lr.synthetic.matrix_sensing(
            key, shape=(50, 50), rank=3, num_measurements=1500, symmetric=True, corruption=0.1
        )
        method = lr.SubgradientMethod(max_rank=rank, symmetric=True)
        jax.block_until_ready(lr.solve(problem, method, key, num_steps=300))

    return answer


def lstsq():
    import jax

    import lrjax as lr

    key = jax.random.key(0)
    return lambda data, which, rank=None: float(lr.lstsq(data[f"a{which}"], data[f"b{which}"], key).x[0])


def numpy_lstsq():
    import numpy as np

    return lambda data, which, rank=None: float(np.linalg.lstsq(data[f"a{which}"], data[f"b{which}"], rcond=None)[0][0])


def scipy_lstsq():
    import scipy.linalg

    return lambda data, which, rank=None: float(scipy.linalg.lstsq(data[f"a{which}"], data[f"b{which}"])[0][0])


def sklearn_lstsq():
    from sklearn.linear_model import LinearRegression

    return lambda data, which, rank=None: float(
        LinearRegression(fit_intercept=False).fit(data[f"a{which}"], data[f"b{which}"]).coef_[0]
    )


def rsvd():
    import jax

    import lrjax as lr

    return lambda data, which, rank=RANK: float(lr.rsvd(data[f"w{which}"], min(rank, 4), key=jax.random.key(0))[1][0])


def sklearn_svd():
    from sklearn.utils.extmath import randomized_svd

    return lambda data, which, rank=RANK: float(randomized_svd(data[f"w{which}"], min(rank, 4), random_state=0)[1][0])


def scipy_svds():
    from scipy.sparse.linalg import svds

    return lambda data, which, rank=RANK: float(svds(data[f"w{which}"], min(rank, 4))[1][-1])


TASKS = {
    "ratings": {
        "lrjax complete": complete, "cmfrec Cholesky": cmfrec, "implicit Cholesky": implicit, "surprise SVD": surprise
    },
    "solve on listed entries": {
        "lrjax AlternatingMinimization": solver("AlternatingMinimization"),
        "lrjax AlternatingMinimization, biases": solver("AlternatingMinimization", ridge=RIDGE, biases=True,
                                                        orthonormalize=False),
        "lrjax GaussNewton": solver("GaussNewton"),
        "lrjax IRLS": solver("IRLS"),
        "lrjax ScaledGradientDescent": solver("ScaledGradientDescent"),
        "lrjax GradientDescent": solver("GradientDescent", step_size=0.1),
    },
    "synthetic problem": {
        "lrjax matrix_sensing": builder("matrix_sensing", num_measurements=900),
        "lrjax matrix_completion": builder("matrix_completion", fraction=0.5),
    },
    "robust sensing, n = 50": {"lrjax SubgradientMethod": subgradient},
    "least squares": {
        "lrjax lstsq": lstsq, "NumPy lstsq": numpy_lstsq, "SciPy lstsq": scipy_lstsq,
        "scikit-learn LinearRegression": sklearn_lstsq,
    },
    "leading singular values": {
        "lrjax rsvd": rsvd, "scikit-learn randomized_svd": sklearn_svd, "SciPy svds": scipy_svds
    },
}  # fmt: skip


class Compiled:
    """Programs and seconds of compilation since the last look; what came from a cache is not a compilation."""

    def __init__(self):
        self.count, self.seconds, self.found = 0, 0.0, 0
        if "jax" in sys.modules:
            import jax

            jax.monitoring.register_event_duration_secs_listener(self.heard)
            jax.monitoring.register_event_listener(self.hit)

    def heard(self, event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            self.count, self.seconds = self.count + 1, self.seconds + seconds

    def hit(self, event, **_):
        self.found += event.endswith("cache_hits")

    def taken(self):
        # A program found in the cache passes through the same event.
        found = {"programs": self.count - self.found, "compiling": self.seconds}
        self.count, self.seconds, self.found = 0, 0.0, 0
        return found


def main():
    task, contender, path = sys.argv[1:]
    import numpy as np

    data = dict(np.load(path))
    begun = time.perf_counter()
    answer = TASKS[task][contender]()
    found = {"import": time.perf_counter() - begun}
    compiled = Compiled()
    for name, which, more in (("first", 0, {}), ("second", 1, {}), ("other rank", 0, {"rank": RANK + 2})):
        if name == "other rank" and task != "ratings":
            break
        begun = time.perf_counter()
        value = answer(data, which, **more)
        found[name] = {"seconds": time.perf_counter() - begun, "value": value, **compiled.taken()}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
