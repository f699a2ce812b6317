"""What is run: lists of cases with the solvers that take part. An entry is a dictionary; see `measure.measure_case`.

`quick` suites are small versions that finish in a minute or two, to try the harness; their figures mean nothing.
"""

GOALS = [1e-2, 1e-4, 1e-6]
COMPLETION = [
    "lrjax ALS", "lrjax ALS, 2 devices", "lrjax ALS, spectral start", "lrjax Gauss-Newton", "lrjax IRLS",
    "lrjax scaled GD", "lrjax GD", "cmfrec Cholesky",
    "cmfrec Cholesky, 1 thread", "cmfrec CG", "NumPy ALS", "NumPy ALS, random start",
    "SciPy L-BFGS", "NumPy scaled GD", "pymanopt CG", "surprise SGD", "NumPy soft-impute",
]  # fmt: skip
FEW_SAMPLES = [
    "lrjax ALS", "lrjax ALS, spectral start", "lrjax Gauss-Newton", "lrjax IRLS", "lrjax scaled GD", "lrjax GD",
    "lrjax SVP",
    "lrjax soft impute", "NumPy ALS", "NumPy ALS, random start", "cmfrec Cholesky, tiny ridge",
    "SciPy L-BFGS", "pymanopt CG",
]  # fmt: skip
ROBUST = [
    "lrjax Gauss-Newton, absolute loss", "lrjax Gauss-Newton, absolute loss, twice the rank", "lrjax Gauss-Newton",
    "lrjax ALS", "lrjax ALS, absolute loss", "lrjax subgradient", "cmfrec Cholesky",
]  # fmt: skip
ROBUST_PCA = [
    "lrjax RPCA, ALS absolute loss", "lrjax RPCA, subgradient", "lrjax RPCA, alternating projections",
    "lrjax RPCA, alternating projections, twice the rank",
    "NumPy IALM, 20 columns", "rpca", "pyrpca", "tensorly", "skpcp",
]  # fmt: skip
RATINGS = [
    "lrjax ALS, ridge", "lrjax ALS, ridge, 2 devices", "lrjax ALS, cg", "cmfrec Cholesky, ridge",
    "cmfrec CG, ridge", "implicit Cholesky",
    "implicit CG", "surprise SGD",
]  # fmt: skip


def completion_case(n, rank=10, condition=1.0, noise=0.0, oversampling=5.0, dtype="float64", seed=0, **more):
    return {"kind": "completion", "n": n, "rank": rank, "condition": float(condition), "noise": float(noise),
            "oversampling": float(oversampling), "dtype": dtype, "seed": seed, **more}  # fmt: skip


def completion(quick, large):
    """Time to a held-out error, over size, rank, condition number, noise, oversampling and dtype."""
    if quick:
        cases = [completion_case(300, 5, condition, dtype=d) for condition, d in ((1, "float64"), (100, "float32"))]
        return [{"case": c, "solvers": COMPLETION, "goals": GOALS, "limit": 2.0, "max_steps": 100} for c in cases]
    cases = [completion_case(20_000, dtype=d) for d in ("float64", "float32")]
    cases += [completion_case(1000, condition=c, dtype=d) for c in (1, 100) for d in ("float64", "float32")]
    cases += [completion_case(5000, condition=c) for c in (1, 100)]
    cases += [completion_case(20_000, condition=100)]
    cases += [completion_case(n, noise=1e-2) for n in (1000, 5000)]
    cases += [completion_case(1000, oversampling=o) for o in (1.05, 1.2, 1.5, 2, 3)]
    cases += [completion_case(5000, rank, oversampling=3) for rank in (5, 20, 50)]
    if large:
        cases += [completion_case(100_000, condition=c, dtype=d) for c in (1, 100) for d in ("float64", "float32")]
    return [
        {"case": c, "solvers": COMPLETION, "goals": GOALS[:1] if c["noise"] else GOALS, "limit": 60.0} for c in cases
    ]


def phase(quick, large):
    """Success with few samples; one line per solver, condition number, oversampling and draw.

    First twenty draws of the second-order solvers where they have to hold, then a few of everything everywhere.
    """
    n, conditions = (300, (10.0,)) if quick else (1000, (10.0, 1e5))
    levels = (1.5, 3.0) if quick else (1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
    grid = [
        (draw, condition, level, FEW_SAMPLES[2:3])
        for level in (3.0, 2.0, 1.75, 1.5)
        for condition in conditions
        for draw in range(20)
        if not quick
    ]
    grid += [
        (draw, condition, level, FEW_SAMPLES)
        for draw in range(2 if quick else 3)
        for level in reversed(levels)
        for condition in conditions
    ]
    return [
        {"case": {"kind": "phase", "n": n, "rank": 5, "condition": condition, "oversampling": level,
                  "dtype": "float64", "seed": draw},
         "solvers": solvers, "goals": [1e-3, 1e-10], "limit": 2.0 if quick else 15.0, "max_steps": 3000, "fixed": 300}
        for draw, condition, level, solvers in grid
    ]  # fmt: skip


def robust(quick, large):
    """Completion with gross outliers among few entries; one line per solver, share of outliers and draw."""
    n, draws, levels = (200, 1, ((0.1, 3.0),)) if quick else (1000, 10, ((0.05, 3.0), (0.1, 3.0), (0.2, 4.0)))
    return [
        {"case": completion_case(n, 5, 10, oversampling=over, seed=draw, outliers=level),
         "solvers": ROBUST if draw < 3 else ROBUST[:2], "goals": [1e-6], "limit": 2.0 if quick else 20.0,
         "max_steps": 2000, "fixed": 100}
        for draw in range(draws) for level, over in levels
    ]  # fmt: skip


def rpca(quick, large):
    """Robust PCA of a full matrix, a tenth of it gross outliers."""
    sizes = (150,) if quick else (1000, 2000, 5000)
    return [
        {"case": {"kind": "rpca", "n": n, "rank": 5 if quick else 10, "outliers": 0.1, "dtype": "float64", "seed": 0},
         "solvers": ROBUST_PCA, "goals": GOALS, "limit": 2.0 if quick else 120.0}
        for n in sizes
    ]  # fmt: skip


def ratings_speed(quick, large):
    """Seconds per sweep on synthetic ratings with skewed popularity, biases taken out beforehand."""
    sizes = {100_000: (1000, 1700), 1_000_000: (6000, 4000), 20_000_000: (140_000, 27_000)}
    if quick:
        sizes = {20_000: (400, 500)}
    entries = []
    for count, (n1, n2) in sizes.items():
        ranks = [(20, "float32"), (20, "float64")] + ([(32, "float32")] if count >= 10**6 else [])
        for rank, dtype in ranks[:1] if quick else ranks:
            case = {"kind": "ratings", "entries": count, "n1": n1, "n2": n2, "rank": rank, "dtype": dtype, "seed": 0,
                    "metric": "rmse"}  # fmt: skip
            entries.append({"case": case, "solvers": RATINGS, "fixed": 10, "max_steps": 10, "limit": 600.0})
    return entries


def scaling(quick, large):
    """Seconds per sweep against entries, size and rank, each alone."""
    n, count, degree = (500, 40_000, 80) if quick else (5000, 1_000_000, 100)
    over = lambda m, n, k: m / (k * (2 * n - k))
    grid = [("entries", completion_case(n, oversampling=over(m, n, 10)))
            for m in (count // 4, count // 2, count, 2 * count)]  # fmt: skip
    sizes = (250, 500) if quick else (1000, 2500, 5000, 10_000, 20_000)
    grid += [("size", completion_case(m, oversampling=over(m * degree, m, 10))) for m in sizes]
    ranks = (5, 10) if quick else (2, 5, 10, 20, 40)
    grid += [("rank", completion_case(n, k, oversampling=over(count, n, k))) for k in ranks]
    solvers = ["lrjax ALS", "lrjax Gauss-Newton", "lrjax scaled GD", "cmfrec Cholesky"]
    return [{"tag": tag, "case": case, "solvers": solvers, "fixed": 8, "max_steps": 8} for tag, case in grid]


TIMED = {"completion": completion, "rpca": rpca, "ratings-speed": ratings_speed, "scaling": scaling}
COUNTED = {"phase": phase, "robust": robust}
NAMES = ["latency", "large", *TIMED, *COUNTED, "ratings", "sweep", "regression", "samplers", "inner"]
