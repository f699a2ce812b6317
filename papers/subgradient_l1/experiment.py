"""The subgradient method on the mean absolute misfit: floors, schedules, dense noise, outliers, breakdown.

Symmetric matrices of rank 3 with unit eigenvalues, standard Gaussian measurements, and the start of the paper
(`hidden_scale=1`, absolute units). A few minutes on two cores; `--quick` takes fewer seeds.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from lrjax import status
from papers import common

TITLE = (
    "Ma and Fattahi, Global Convergence of Sub-gradient Method for Robust Matrix Recovery: Small Initialization, "
    "Noisy Measurements, and Over-parameterization, JMLR 2023, arXiv 2202.08788"
)

N, RANK = 20, 3
NORM = math.sqrt(RANK)  # of the matrix sought
OUTLIER = 10.0
MEDIAN_STEP = lr.step_sizes.ResidualQuantile(value=0.2, quantile=0.5)
GEOMETRIC = lr.step_sizes.Geometric(value=0.2, decay=0.994)

# T2.2 to T2.4.
RANKS, SCALES = (3, 6, 20), (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
STEPS, EVERY = 2500, 25
# T2.5: as many steps as the schedule needs to fall by a factor e^-15, whatever the scale.
GEOMETRIC_STEPS, GEOMETRIC_EVERY = 3500, 50
# T2.6.
SHARES, FREEZE_SCALES, FREEZE_N = (0.1, 0.3, 0.5), (1e-3, 1e-6), 50
FREEZE_RULE = lr.step_sizes.Geometric(value=0.25, decay=0.985)
# T2.7 and T2.8.
NOISES, COUNTS = (0.1, 0.5, 1.0), (1000, 2000, 4000)
# Breakdown: d r = 60.
MOST = 20
FRACTIONS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OVERSAMPLING = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
MORE_OUTLIERS = (3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
SUCCESS = 1e-2


def measured(key, n, count, *, corruption=0.0, noise=0.0):
    """A problem with outliers N(0, 10^2) and dense noise; the same key gives the same ensemble and nested outliers."""
    key_truth, key_operator, key_where, key_size, key_noise = jax.random.split(key, 5)
    truth = lr.synthetic.low_rank(key_truth, (n, n), RANK, symmetric=True)
    operator = lr.operators.DenseEnsemble.gaussian(key_operator, (n, n), count, symmetric=True)
    y = operator.forward(truth.left, truth.right) + noise * jax.random.normal(key_noise, (count,))
    where = jax.random.uniform(key_where, (count,)) < corruption
    y = y + jnp.where(where, OUTLIER * jax.random.normal(key_size, (count,)), 0)
    return lr.Problem(operator, y, loss=lr.losses.Absolute()), truth


def subgradient(max_rank, scale, rule, *, rank=None, check_budget=False):
    """The method with the start and the units of the paper."""
    return lr.SubgradientMethod(
        max_rank=max_rank, rank=rank, symmetric=True, relative=False, hidden_scale=1.0, initial_scale=scale,
        step_size=rule, check_budget=check_budget,
    )  # fmt: skip


def errors(problem, solver, key, truth, num_steps, record_every):
    """`||X - X*||_F` at the records."""
    found = lr.solve(problem, solver, key, num_steps=num_steps, record_every=record_every, truth=truth)
    return found.trace["relative_error"] * truth.norm()


def descent(problem, key, truth, rank, num_steps, record_every):
    """Gradient descent on the squared misfit of the same data, from a small start."""
    squared = lr.Problem(problem.operator, problem.y, loss=lr.losses.Squared())
    solver = lr.GradientDescent(max_rank=N, rank=rank, symmetric=True, initial_scale=1e-3)
    return errors(squared, solver, key, truth, num_steps, record_every)


def shrink(norm, deviation):
    """`E exp(-s^2 / (2 norm^2))` for `s ~ N(0, deviation^2)`."""
    return norm / jnp.hypot(norm, deviation)


def speed(corruption, norm=NORM):
    """`phi`: how far a subgradient points along the error, under outliers N(0, 10^2)."""
    return math.sqrt(2 / math.pi) * (1 - corruption + corruption * shrink(norm, OUTLIER))


def over(values):
    """All combinations of several axes as flat arrays: the lanes of one vmap, which share one ensemble."""
    return [jnp.asarray(axis.ravel()) for axis in np.meshgrid(*values, indexing="ij")]


# T2.1 -----------------------------------------------------------------------------------------------------------------

ALIGNMENTS = (("outliers", 0.0), ("outliers", 0.3), ("outliers", 0.5), ("dense", 1.0), ("dense", 5.0))
LENGTH = 2.4  # norm of the point at which they are measured


def alignment_trial(key):
    n, m = 30, 20_000
    key_x, key_a, key_where, key_s = jax.random.split(key, 4)
    x = lr.synthetic.low_rank(key_x, (n, n), 4, symmetric=True)
    left = x.left * jnp.sqrt(LENGTH / x.norm())
    operator = lr.operators.DenseEnsemble.gaussian(key_a, (n, n), m, symmetric=True)
    where, size = jax.random.uniform(key_where, (m,)), jax.random.normal(key_s, (m,))
    image, found = operator.forward(left, left), []
    for kind, level in ALIGNMENTS:
        s = jnp.where(where < level, OUTLIER * size, 0) if kind == "outliers" else level * size
        found.append(jnp.mean(jnp.sign(image - s) * image) / LENGTH)  # <D, X> / ||X||_F, with the zero matrix as truth
    return {"alignment": jnp.stack(found)}


def alignment_claims(seeds):
    found = lr.sweep(alignment_trial, jax.random.key(1), grid={}, num_trials=seeds, progress=False)
    found, claims = np.asarray(found["alignment"]), []
    for (kind, level), values in zip(ALIGNMENTS, found.T, strict=True):
        theory = float(speed(level, LENGTH) if kind == "outliers" else math.sqrt(2 / math.pi) * shrink(LENGTH, level))
        name = f"p={level:g}" if kind == "outliers" else f"nu={level:g}"
        text = f"subgradients point along the error by phi (Sign-RIP): <D, X> / ||X||_F, {name}"
        claims.append(
            common.check(f"T2.1 {name}", text, predicted=theory, values=values, low=0.97 * theory, high=1.03 * theory)
        )
    return claims


# T2.2 to T2.5 ---------------------------------------------------------------------------------------------------------


def floors_trial(key):
    key, key_solve = jax.random.split(key)
    problem, truth = measured(key, N, 937, corruption=0.2)

    def median(rank, scale):
        return errors(problem, subgradient(N, scale, MEDIAN_STEP, rank=rank), key_solve, truth, STEPS, EVERY)

    def geometric(scale):
        rule = lr.step_sizes.Geometric(value=0.2, decay=1 - 0.05 / jnp.log(1 / scale))
        return errors(problem, subgradient(RANK, scale, rule), key_solve, truth, GEOMETRIC_STEPS, GEOMETRIC_EVERY)

    start = problem.operator.adjoint(jnp.sign(problem.y)) / problem.y.shape[0]
    return {
        "median": jax.vmap(median)(*over((RANKS, SCALES))).reshape(len(RANKS), len(SCALES), -1),
        "geometric": jax.vmap(geometric)(jnp.asarray(SCALES)),
        "values": jnp.linalg.eigvalsh(start)[::-1],
    }


def floors_claims(seeds):
    table = lr.sweep(floors_trial, jax.random.key(2), grid={}, num_trials=seeds, progress=False)
    traces = np.asarray(table["median"])
    finals, claims = traces[..., -1], []
    ratios = finals[:, 2] / finals[:, 1]
    for scale, values in list(zip(SCALES, ratios.T, strict=True))[1:]:
        text = f"the final error does not depend on the search rank: at 20 over at 6, start of size {scale:g}"
        note = "surplus columns already follow the 1/t law there, whose error grows with their number"
        claims.append(
            common.check(
                f"T2.2 alpha={scale:g}", text, predicted=1, values=values, low=0.98, high=1.02,
                note=f"worst seed {values[np.argmax(abs(values - 1))]:.3f}" + ("; " + note) * (scale == 1e-2),
            )
        )  # fmt: skip
    slopes = np.array([common.slope(np.log(SCALES[2:]), np.log(row[2:])) for row in finals[:, 1]])
    near = np.mean(abs(slopes - 1) <= 0.05)
    claims.append(
        common.check(
            "T2.3", "the floor above the rank falls like the initial scale: slope of the logs, 1e-3 to 1e-5, r' = 6",
            predicted=1, values=slopes, low=0.95, high=1.05,
            note=f"{near:.0%} of the draws lie within 0.05; they range from {slopes.min():.2f} to {slopes.max():.2f} "
            "and follow the spectrum of the start, next row",
        )
    )  # fmt: skip
    spectrum = np.asarray(table["values"])
    derived = 2 * (1 - spectrum[:, RANK] / spectrum[:, RANK - 1])
    claims.append(
        common.check(
            "T2.3 derived", "that slope minus 2 (1 - l_4 / l_3), with the eigenvalues of the start", predicted=0,
            values=slopes - derived, low=-0.1, high=0.1, note="derived by us, not the paper's",
        )
    )  # fmt: skip
    claims.append(
        common.check(
            "T2.4", "exact rank, median step: converges to rounding level from every scale (worst of five)",
            predicted="below 1e-12", values=finals[:, 0].max(axis=1), high=1e-12,
        )
    )  # fmt: skip
    steps = np.round(300 * np.log(1 / np.array(SCALES)) / GEOMETRIC_EVERY).astype(int)
    ends = np.asarray(table["geometric"])[:, np.arange(len(SCALES)), steps]
    note = "300 log(1/alpha) steps, our choice"
    claims.append(
        common.check(
            "T2.5", "one geometric schedule serves every scale: final error, geometric mean over five scales",
            predicted=2.1e-7, values=np.exp(np.log(ends).mean(axis=1)), low=7e-8, high=6.3e-7, note=note,
        )
    )  # fmt: skip
    claims.append(
        common.check(
            "T2.5 spread", "largest over smallest final error over the scales", predicted="1 to 3",
            values=ends.max(axis=1) / ends.min(axis=1), low=1, high=3, note=note,
        )
    )  # fmt: skip
    data = {
        "traces": np.quantile(traces[:, :, 2], (0.1, 0.5, 0.9), axis=0),
        "floors": np.quantile(finals, (0.1, 0.5, 0.9), axis=0),
        "derived_slope": np.median(derived),
    }
    return claims, data


# T2.6 -----------------------------------------------------------------------------------------------------------------


def freeze_trial(key):
    key, key_solve = jax.random.split(key)

    def one(corruption, scale):
        problem, truth = measured(key, FREEZE_N, 2000, corruption=corruption)
        error = errors(problem, subgradient(FREEZE_N, scale, FREEZE_RULE), key_solve, truth, 400, 400)[-1]
        guarded = subgradient(FREEZE_N, scale, FREEZE_RULE, check_budget=True)
        return error, lr.solve(problem, guarded, key_solve, num_steps=1).status

    error, code = jax.vmap(one)(*over((SHARES, FREEZE_SCALES)))
    shape = len(SHARES), len(FREEZE_SCALES)
    return {"error": error.reshape(shape), "refused": (code == status.SCHEDULE_TOO_SHORT).reshape(shape)}


def freeze_claims(seeds):
    table = lr.sweep(freeze_trial, jax.random.key(3), grid={}, num_trials=seeds, progress=False)
    error, refused = np.asarray(table["error"]), np.asarray(table["refused"])
    budget = FREEZE_RULE.value / (1 - FREEZE_RULE.decay)
    claims = []
    for i, corruption in enumerate(SHARES):
        for j, scale in enumerate(FREEZE_SCALES):
            needed = NORM * math.log(1 / scale) / (2 * speed(corruption))
            ends = "recovered" if j == 0 else "partial" if i == 0 else "frozen near zero"
            low, high = {"recovered": (0, 1e-2), "partial": (0.1, 1.5)}.get(ends, (1.6, 1.9))
            text = f"a schedule of sum {budget:.1f} where {needed:.1f} are needed: final error, ||X*||_F = 1.73"
            note = f"the library's check refuses the schedule on {int(refused[:, i, j].sum())} of {seeds} draws"
            claims.append(
                common.check(
                    f"T2.6 p={corruption:g} alpha={scale:g}", text, predicted=ends, values=error[:, i, j],
                    low=low, high=high, note=note,
                )
            )  # fmt: skip
    return claims


# T2.7 and T2.8 --------------------------------------------------------------------------------------------------------


def noise_trial(key, count):
    key, key_solve = jax.random.split(key)

    def one(noise, rank):
        problem, truth = measured(key, N, count, noise=noise)
        return errors(problem, subgradient(N, 1e-5, GEOMETRIC, rank=rank), key_solve, truth, 2000, 2000)[-1]

    def baseline(noise):
        problem, truth = measured(key, N, count, noise=noise)
        path = descent(problem, key_solve, truth, N, 2000, 10)
        return path[-1], jnp.min(path)

    ranks = RANKS[0], RANKS[-1]
    final, least = jax.vmap(baseline)(jnp.asarray(NOISES))
    return {
        "robust": jax.vmap(one)(*over((NOISES, ranks))).reshape(len(NOISES), len(ranks)),
        "final": final,
        "least": least,
    }


def noise_claims(seeds, counts):
    table = lr.sweep(
        noise_trial, jax.random.key(4), grid={"count": counts}, static=("count",), num_trials=seeds, progress=False
    )
    # Axes: measurements, seeds, noise levels, search ranks.
    unit = np.array(NOISES)[None, None, :] * np.sqrt(N * RANK / np.array(counts))[:, None, None]
    robust, final, least = (np.asarray(table[name]) for name in ("robust", "final", "least"))
    scaled, claims = robust / unit[..., None], []
    for k, rank in enumerate((RANKS[0], RANKS[-1])):
        for pick, which in ((np.min, "smallest"), (np.max, "largest")):
            claims.append(
                common.check(
                    f"T2.7 r'={rank} {which}",
                    f"final error over nu sqrt(d r / m) under dense noise, {which} over nu and m, search rank {rank}",
                    predicted="1.02 to " + ("1.44" if rank == RANKS[0] else "1.50"),
                    values=pick(scaled[..., k], axis=(0, 2)), low=0.8, high=1.8,
                )
            )  # fmt: skip
    claims.append(
        common.check(
            "T2.8", "gradient descent on the squared misfit overfits at full search rank: final error over the least "
            "on its path (smallest over nu >= 0.5 and m)", predicted="1.2 to 1.7",
            values=(final / least)[..., 1:].min(axis=(0, 2)), low=1.25,
            note="final over nu sqrt(d r / m): {:.2f} to {:.2f}".format(
                *np.quantile((final / unit)[..., 1:], (0, 1))
            ),
        )
    )  # fmt: skip
    bands = lambda values: np.quantile(values, (0.1, 0.5, 0.9), axis=1)
    return claims, {"counts": counts, "robust": bands(robust), "final": bands(final), "least": bands(least)}


# T2.9 -----------------------------------------------------------------------------------------------------------------


def outliers_trial(key):
    key, key_solve = jax.random.split(key)
    problem, truth = measured(key, N, 1500, corruption=0.2)
    ranks = jnp.array([RANKS[0], RANKS[-1]])
    robust = lambda rank: errors(problem, subgradient(N, 1e-5, GEOMETRIC, rank=rank), key_solve, truth, 2000, 20)
    return {
        "robust": jax.vmap(robust)(ranks),
        "descent": jax.vmap(lambda rank: descent(problem, key_solve, truth, rank, 2000, 20))(ranks),
    }


def outliers_claims(seeds):
    table = lr.sweep(outliers_trial, jax.random.key(5), grid={}, num_trials=seeds, progress=False)
    claims = []
    for k, (rank, robust, plain) in enumerate(((RANKS[0], 1.5e-6, 1.0), (RANKS[-1], 1.9e-5, 1.3))):
        claims.append(
            common.check(
                f"T2.9 r'={rank}", f"20 % outliers, the subgradient method recovers: final error, search rank {rank}",
                predicted=robust, values=np.asarray(table["robust"])[:, k, -1], high=1e-3,
                note="the list has no tolerance; accepted is 1e-3 of ||X*||_F = 1.73",
            )
        )  # fmt: skip
        claims.append(
            common.check(
                f"T2.9 squared r'={rank}", f"on the same data the squared misfit does not, search rank {rank}",
                predicted=plain, values=np.asarray(table["descent"])[:, k, -1], low=0.5,
            )
        )  # fmt: skip
    bands = {name: np.quantile(np.asarray(table[name]), (0.1, 0.5, 0.9), axis=0) for name in ("robust", "descent")}
    return claims, bands


# Breakdown ------------------------------------------------------------------------------------------------------------

POINTS = [(p, float(MOST)) for p in FRACTIONS] + [(0.2, x) for x in OVERSAMPLING] + [(0.5, x) for x in MORE_OUTLIERS]


def breakdown_trial(key):
    key, key_solve = jax.random.split(key)
    most = MOST * N * RANK
    points = np.array(POINTS)

    def one(rank, point):
        corruption, oversampling = jnp.asarray(points)[point]
        problem, truth = measured(key, N, most, corruption=corruption)
        on = (jnp.arange(most) < jnp.round(oversampling * N * RANK)).astype(problem.y.dtype)
        problem = lr.Problem(problem.operator, problem.y, on, problem.loss)
        # Half again the sum that a start of size 1e-6 needs to grow, as `phi` says; known in simulations only.
        needed = NORM * math.log(1e6) / (2 * speed(corruption))
        rule = lr.step_sizes.Geometric(value=1.5 * needed * 0.0075, decay=1 - 0.0075)
        return errors(problem, subgradient(N, 1e-6, rule, rank=rank), key_solve, truth, 1000, 1000)[-1] / NORM

    found = jax.vmap(one)(*over(((RANK, N), range(len(POINTS)))))
    return {"error": found.reshape(2, len(POINTS))}


def half(x, rate):
    """Where a success rate that rises with `x` passes one half, by linear interpolation."""
    at = np.flatnonzero(rate >= 0.5)
    if at.size == 0 or at[0] == 0:
        return math.nan
    i = at[0]
    return float(x[i - 1] + (0.5 - rate[i - 1]) / (rate[i] - rate[i - 1]) * (x[i] - x[i - 1]))


def breakdown_claims(seeds):
    table = lr.sweep(breakdown_trial, jax.random.key(6), grid={}, num_trials=seeds, progress=False)
    success = np.asarray(table["error"]) < SUCCESS  # seeds, search ranks, points
    a, b = len(FRACTIONS), len(FRACTIONS) + len(OVERSAMPLING)

    def halves(rows):
        few = [half(OVERSAMPLING, success[rows, k, a:b].mean(axis=0)) for k in (0, 1)]
        many = [half(MORE_OUTLIERS, success[rows, k, b:].mean(axis=0)) for k in (0, 1)]
        share = [1 - half(1 - np.array(FRACTIONS)[::-1], success[rows, k, :a].mean(axis=0)[::-1]) for k in (0, 1)]
        return few, many, share

    few, many, share = halves(np.arange(seeds))
    draws = [halves(rows) for rows in np.random.default_rng(0).choice(seeds, (500, seeds))]

    def drawn(claim, value):
        values = [value(*draw) for draw in draws]
        spread = [float(q) for q in np.nanquantile(values, (0.025, 0.975))] if seeds >= 3 else None
        return claim | {"interval": spread, "seeds": seeds}

    ratio = lambda few, many, share: few[1] / few[0]
    claims = [
        drawn(
            common.check(
                "B2.1", "the number of measurements needed does not depend on the search rank: that at which half of "
                "the draws are recovered, r' = 20 over r' = 3, 20 % outliers", predicted=1,
                values=ratio(few, many, share),
                low=0.8, high=1.25, note=f"m / (d r) = {few[1]:.2f} and {few[0]:.2f}; parameters grow by 20 / 3",
            ),
            ratio,
        )
    ]  # fmt: skip
    ratio_more = lambda few, many, share: many[1] / many[0]
    claims.append(
        drawn(
            common.check(
                "B2.2", "the same at 50 % outliers", predicted=1, values=ratio_more(few, many, share), low=0.8,
                high=1.25, note=f"m / (d r) = {many[1]:.2f} and {many[0]:.2f}",
            ),
            ratio_more,
        )
    )  # fmt: skip
    theory = float((speed(0.2) / speed(0.5)) ** 2)
    growth = lambda few, many, share: many[0] / few[0]
    claims.append(
        drawn(
            common.check(
                "B2.3", "that number grows like 1 / phi^2 with the share of outliers: at 50 % over at 20 %, r' = 3",
                predicted=theory, values=growth(few, many, share), low=0.75 * theory, high=1.25 * theory,
                note="derived: signs carry noise of a size that does not depend on p, and a signal phi",
            ),
            growth,
        )
    )  # fmt: skip
    tolerated = lambda few, many, share: share[1] - share[0]
    claims.append(
        drawn(
            common.check(
                "B2.4", f"the share of outliers tolerated at m = {MOST} d r does not depend on the search rank: "
                "difference of the 50 % points", predicted=0, values=tolerated(few, many, share), low=-0.1, high=0.1,
                note=f"p = {share[1]:.2f} at r' = 20 and {share[0]:.2f} at r' = 3, both above one half",
            ),
            tolerated,
        )
    )  # fmt: skip
    data = {"successes": success.sum(axis=0), "trials": seeds, "errors": np.median(np.asarray(table["error"]), axis=0)}
    return claims, data


def run(full):
    seeds = 10 if full else 2
    # A draw of T2.1 scatters by up to 2 %, and costs little.
    claims = alignment_claims(20 if full else 8)
    found, floors = floors_claims(seeds)
    claims += found + freeze_claims(seeds)
    found, noise = noise_claims(seeds, COUNTS if full else COUNTS[:2])
    claims += found
    found, outliers = outliers_claims(seeds)
    claims += found
    found, breakdown = breakdown_claims(16 if full else 4)
    claims += found
    return claims, {"floors": floors, "noise": noise, "outliers": outliers, "breakdown": breakdown}


# Figures --------------------------------------------------------------------------------------------------------------

COLORS = {3: "C0", 6: "C2", 20: "C1"}


def band(ax, x, low_middle_high, label, color, style="-"):
    low, middle, high = np.asarray(low_middle_high)
    ax.plot(x, middle, ls=style, color=color, lw=1.5, label=label)
    ax.fill_between(x, low, high, color=color, alpha=0.2, lw=0)


def decades(ax, powers, axis="y"):
    """Ticks that print numbers."""
    ticks = [10.0**p for p in powers]
    getattr(ax, f"set_{axis}ticks")(ticks, [f"$10^{{{p}}}$" if p else "1" for p in powers])


def draw_traces(floors):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(5, 3.6), layout="constrained")
    steps = np.arange(0, STEPS + 1, EVERY)
    for k, rank in enumerate(RANKS):
        rows = np.asarray(floors["traces"])[:, k]
        band(ax, steps, rows, f"search rank {rank}", COLORS[rank], (0, (4, 3)) if rank == 20 else "-")
    ax.set_yscale("log")
    ax.set(xlabel="iteration", ylabel=r"$\|X - X^*\|_F$", xlim=(0, STEPS), ylim=(1e-16, 10))
    decades(ax, range(-15, 1, 3))
    ax.set_title("20 % outliers, median step, start of size $10^{-3}$", fontsize=10)
    ax.legend(fontsize=9, frameon=False)
    return fig


def draw_floors(floors):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(5, 3.6), layout="constrained")
    low, middle, high = np.asarray(floors["floors"])
    for k, rank, shift in ((1, 6, 0.93), (2, 20, 1.07)):
        bars = middle[k] - low[k], high[k] - middle[k]
        ax.errorbar(
            np.array(SCALES) * shift, middle[k], bars, fmt="os"[k - 1], ms=4.5, capsize=2, color=COLORS[rank],
            label=f"search rank {rank}",
        )  # fmt: skip
    ends = np.array([SCALES[1], SCALES[-1]])
    anchor = middle[1, 3] / SCALES[3]
    ax.plot(ends, anchor * ends, "k:", label="slope 1")
    ax.set(xscale="log", yscale="log", xlabel=r"initial scale $\alpha$", ylabel=r"final $\|X - X^*\|_F$")
    decades(ax, range(-5, 0), "x")
    decades(ax, range(-6, -1))
    ax.set_title("20 % outliers, 2500 median steps", fontsize=10)
    ax.legend(fontsize=9, frameon=False)
    return fig


def draw_noise(noise):
    import matplotlib.pyplot as plt

    counts = noise["counts"]
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for ax, i in zip(axes, (0, 2), strict=True):
        series = [
            ("subgradient, search rank 3", np.asarray(noise["robust"])[..., i, 0], "C0", "o", 0.97),
            ("subgradient, search rank 20", np.asarray(noise["robust"])[..., i, 1], "C1", "s", 1.03),
            ("gradient descent, search rank 20", np.asarray(noise["final"])[..., i], "C3", "^", 1.0),
            ("its best iterate", np.asarray(noise["least"])[..., i], "C7", "v", 1.0),
        ]
        for label, (low, middle, high), color, marker, shift in series:
            ax.errorbar(
                np.array(counts) * shift, middle, (middle - low, high - middle), fmt=marker, ms=5, capsize=2,
                color=color, label=label,
            )  # fmt: skip
        line = NOISES[i] * np.sqrt(N * RANK / np.array(counts))
        ax.plot(counts, line, "k:", label=r"$\nu\sqrt{dr/m}$")
        ax.set(xscale="log", yscale="log", xlabel="measurements $m$", ylim=(0.7 * line[-1], 2.6 * line[0]))
        ax.set_xticks(counts, [str(m) for m in counts])
        ticks = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)
        ticks = [t for t in ticks if 0.7 * line[-1] < t < 2.6 * line[0]]
        ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
        ax.set_title(rf"dense noise, $\nu = {NOISES[i]:g}$", fontsize=10)
    axes[0].set_ylabel(r"final $\|X - X^*\|_F$")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return fig


def draw_outliers(outliers):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(5, 3.6), layout="constrained")
    steps = np.arange(0, 2001, 20)
    for k, rank in enumerate((3, 20)):
        robust, plain = (np.asarray(outliers[name])[:, k] for name in ("robust", "descent"))
        band(ax, steps, robust, f"subgradient, search rank {rank}", COLORS[rank])
        band(ax, steps, plain, f"gradient descent, search rank {rank}", COLORS[rank], "--")
    ax.set_yscale("log")
    ax.set(xlabel="iteration", ylabel=r"$\|X - X^*\|_F$", xlim=(0, 2000), ylim=(3e-7, 10))
    decades(ax, range(-6, 2))
    ax.set_title("20 % outliers, m = 1500", fontsize=10)
    ax.legend(fontsize=8, frameon=False, loc="lower left")
    return fig


def draw_breakdown(breakdown):
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained", sharey=True)
    counts, trials = np.asarray(breakdown["successes"]), breakdown["trials"]
    a, b = len(FRACTIONS), len(FRACTIONS) + len(OVERSAMPLING)
    parts = [
        (axes[0], 100 * np.array(FRACTIONS), slice(0, a), "-", ""),
        (axes[1], np.array(OVERSAMPLING), slice(a, b), "-", ", 20 % outliers"),
        (axes[1], np.array(MORE_OUTLIERS), slice(b, None), "--", ", 50 % outliers"),
    ]
    for ax, x, rows, style, more in parts:
        for k, rank in enumerate((3, 20)):
            rate = counts[k, rows] / trials
            low, high = np.array([common.share_interval(int(c), trials) for c in counts[k, rows]]).T
            # The interval need not hold the rate itself by much at 0 and 1.
            bars = np.maximum(rate - low, 0), np.maximum(high - rate, 0)
            shift = 0.6 * (k - 0.5) if ax is axes[0] else 0
            x_at = x + shift if ax is axes[0] else x * (1 + 0.02 * (k - 0.5))
            ax.errorbar(
                x_at, rate, bars, fmt="os"[k], ls=style, ms=4, capsize=2, lw=1.2, color=COLORS[rank],
                label=f"search rank {rank}{more}",
            )  # fmt: skip
    axes[0].set(xlabel="outliers (%)", ylabel="success rate", ylim=(-0.04, 1.04))
    axes[0].set_title(f"m = {MOST} d r", fontsize=10)
    axes[1].set(xscale="log", xlabel="m / (d r)")
    axes[1].set_xticks((2, 3, 4, 6, 8, 12), ("2", "3", "4", "6", "8", "12"))
    axes[1].minorticks_off()
    axes[0].legend(fontsize=9, frameon=False, loc="lower left")
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig


def draw(data):
    return {
        "iterations": draw_traces(data["floors"]),
        "floors": draw_floors(data["floors"]),
        "noise": draw_noise(data["noise"]),
        "outliers": draw_outliers(data["outliers"]),
        "breakdown": draw_breakdown(data["breakdown"]),
    }
