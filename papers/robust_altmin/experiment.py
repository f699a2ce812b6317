"""Alternating minimization: contraction, floor, fresh samples, entries needed, cost, sketched regression.

The paper has no experiments. Rows T1.1 to T1.6 of our list of checks stand in for them: numbers that a derivation gives
or that an independent NumPy prototype measured, with their tolerances. Two cores: about a minute and a half quick,
six minutes full.
"""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from lrjax.sketching import SparseSignSketch
from papers import common

TITLE = (
    "Gu, Song, Yin and Zhang, Low Rank Matrix Completion via Robust Alternating Minimization in Nearly Linear Time, "
    "ICLR 2024, arXiv 2302.11068"
)
N, RANK, CONDITION = 200, 4, 3.0
FRACTIONS = (0.15, 0.25, 0.4, 0.6)
CONTRACTIONS = (0.572, 0.345, 0.191, 0.087)
UPDATE_ERRORS = (1e-2, 1e-4, 1e-6, 1e-8)
FLOORS = (1.93, 1.85, 1.81, 1.79)
DENSITIES = (0.05, 0.1, 0.2, 0.4)
# Relative error after 1, 5 and 10 iterations with fresh samples.
FRESH = {0.1: (0.58, 1.4e-2, 4.9e-5), 0.2: (0.28, 1.3e-4, 4.0e-9), 0.4: (5.6e-2, 2.4e-7, 1e-12)}
SAMPLES = (0.5, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0)
RANKS = (2, 4, 8)
COST_RANKS = (4, 8, 16, 32, 64)
INNER = ("exact", "cg", "sketched")
ROWS, COLS, SKETCH_CONDITION = 20_000, 50, 1e6
# Iterations to 1e-12 at 4, 8 and 16 rows of the sketch per column.
COUNTS = {"damped": (113, 52, 34), "momentum": (44, 29, 21), "conjugate gradients": (32, 25, 19)}


def run(full: bool) -> tuple[list[dict], dict]:
    claims, data = [], {}
    parts = (
        contraction(12 if full else 3),
        fresh(12 if full else 3),
        samples((100, 200) if full else (100,), 20 if full else 6),
        cost(full),
        regression(12 if full else 3, (2, 3, 4, 6, 8, 12, 16, 24) if full else (4, 8, 16)),
    )
    for found, arrays in parts:
        claims += found
        data |= arrays
    claims += [
        common.not_tested(
            "bound",
            "powers of the condition number and of the incoherence in the number of entries that suffices",
            "the sources at hand disagree on the power of the condition number; the bound is sufficient, and far above "
            "what is needed here",
        ),
        common.not_tested(
            "accuracy",
            "accuracy that the theorem asks of every regression",
            "known from secondary sources only; T1.2 measures what an error does",
        ),
    ]
    return claims, data


def within(predicted: float, share: float) -> dict:
    return {"predicted": predicted, "low": predicted * (1 - share), "high": predicted * (1 + share)}


# ---------------------------------------------------------------------------------------------------------------------
# T1.1 and T1.2


def contraction(trials: int) -> tuple[list[dict], dict]:
    def trial(key, fraction, update_error):
        key_problem, key_solve = jax.random.split(key)
        problem, truth = lr.synthetic.matrix_completion(
            key_problem, shape=(N, N), rank=RANK, fraction=fraction, condition_number=CONDITION
        )
        # With an update error, zero too, the steps are not over-relaxed.
        solver = lr.AlternatingMinimization(max_rank=RANK, start="spectral", update_error=update_error, tolerance=0.0)
        solution = lr.solve(problem, solver, key_solve, num_steps=50, truth=truth)
        return {"error": solution.trace["relative_error"]}

    grid = {"fraction": FRACTIONS, "update_error": (0.0, *UPDATE_ERRORS)}
    table = lr.sweep(trial, jax.random.key(0), grid=grid, num_trials=trials, paired=True, progress=False)
    errors = np.asarray(table["error"].values)
    factors = np.array([[contraction_factor(trace) for trace in lanes[0]] for lanes in errors])
    floors = np.exp(np.log(errors[:, 1:, :, -10:]).mean(axis=-1))
    ratios = floors / np.array(UPDATE_ERRORS)[None, :, None]
    claims = []
    for fraction, expected, values in zip(FRACTIONS, CONTRACTIONS, factors, strict=True):
        claim = "error factor per iteration with exact half steps, all samples used in each"
        claims.append(common.check(f"T1.1 p={fraction}", claim, values=values, **within(expected, 0.2)))
    steps = factors[1:] / factors[:-1]
    claim = "more samples contract faster: the largest ratio of factors at neighbouring sampling rates"
    claims.append(common.check("T1.1 monotone", claim, predicted="below 1", values=steps.max(axis=0), high=1.0))
    for fraction, expected, values in zip(FRACTIONS, FLOORS, ratios, strict=True):
        claim = "error floor over the relative error of the half steps, the value furthest from 2 over six decades"
        worst = np.take_along_axis(values, np.abs(np.log(values / 2)).argmax(axis=0)[None], axis=0)[0]
        claims.append(common.check(f"T1.2 p={fraction}", claim, predicted=expected, values=worst, low=1.5, high=2.5))
    for fraction, values in zip(FRACTIONS, floors, strict=True):
        slopes = [common.slope(np.log(UPDATE_ERRORS), np.log(lane)) for lane in values.T]
        claim = "slope of the log floor against the log error of the half steps"
        claims.append(
            common.check(f"T1.2 slope p={fraction}", claim, predicted=1.0, values=slopes, low=0.99, high=1.01)
        )
    # Both half steps add e0 ||X||_2 G / ||G||_2 with a Gaussian n x k matrix G, at right angles.
    spread = math.sqrt(N * RANK) / (math.sqrt(N) + math.sqrt(RANK))
    derived = math.sqrt(2) * spread / float(np.linalg.norm(CONDITION ** -np.linspace(0, 1, RANK)))
    claims.append(
        common.check(
            "T1.2 derived",
            "floor over the error of the half steps at p = 0.6, 15 %",
            values=np.exp(np.log(ratios[-1]).mean(axis=0)),
            note="derived for p = 1: two Gaussian errors of relative spectral norm e0 at right angles",
            **within(derived, 0.15),
        )
    )
    claim = "the same runs without that error end at rounding level (p = 0.25 and up)"
    last = errors[1:, 0, :, -1].max(axis=0)
    claims.append(common.check("T1.2 exact", claim, predicted="below 1e-13", values=last, high=1e-13))
    return claims, {
        "fractions": FRACTIONS,
        "update_errors": UPDATE_ERRORS,
        "contraction": factors,
        "floors": floors,
        "derived_floor": derived,
    }


def contraction_factor(errors: np.ndarray) -> float:
    """From the least-squares slope of the log error between 1e-2 and 1e-12; NaN if it hardly passes through."""
    inside = (errors < 1e-2) & (errors > 1e-12)
    return math.exp(common.slope(np.flatnonzero(inside), np.log(errors[inside]))) if inside.sum() >= 5 else math.nan


# ---------------------------------------------------------------------------------------------------------------------
# T1.3


def fresh(trials: int) -> tuple[list[dict], dict]:
    operator = lr.operators.Identity(matrix_shape=(N, N))

    def trial(key, density):
        key_truth, key_sample, key_start, key_solve = jax.random.split(key, 4)
        truth = lr.synthetic.low_rank(key_truth, (N, N), RANK, condition_number=CONDITION)
        problem = lr.Problem(operator, operator.forward(truth.left, truth.right))
        sample = (jax.random.uniform(key_sample, problem.y.shape) < density).astype(problem.y.dtype)
        start = lr.initial.spectral(lr.Problem(operator, problem.y, weights=sample), RANK, key_start)
        solver = lr.AlternatingMinimization(max_rank=RANK, start="spectral", fresh_fraction=density, tolerance=0.0)
        solution = lr.solve(problem, solver, key_solve, num_steps=10, init=start, truth=truth)
        return {"error": solution.trace["relative_error"]}

    table = lr.sweep(trial, jax.random.key(2), grid={"density": DENSITIES}, num_trials=trials, progress=False)
    errors = np.asarray(table["error"].values)
    claim = "relative error after {} iterations, a fresh sample of this density for each half step; factor 3"
    claims = [
        common.check(
            "T1.3 q=0.05", claim.format(10), predicted="fails", values=errors[0, :, 10], low=0.5,
            note="fewer than three samples per unknown; the prototype ended at 0.90",
        )
    ]  # fmt: skip
    for density, expected in FRESH.items():
        for step, value in zip((1, 5, 10), expected, strict=True):
            values = errors[DENSITIES.index(density), :, step]
            floor = value <= 1e-12
            low, note = (-math.inf, "rounding level: no lower bound") if floor else (value / 3, "")
            row = f"T1.3 q={density} t={step}"
            claims.append(
                common.check(
                    row, claim.format(step), predicted=value, values=values, low=low, high=3 * value, note=note
                )
            )
    return claims, {"fresh_densities": DENSITIES, "fresh_errors": errors}


# ---------------------------------------------------------------------------------------------------------------------
# Entries needed, in units of n k log n


def samples(sizes: tuple[int, ...], trials: int) -> tuple[list[dict], dict]:
    def trial(key, n, k, ratio):
        key_left, key_right, key_mask, key_solve = jax.random.split(key, 4)
        # The rank is traced, one compile for all: unused columns are zero.
        column = jnp.arange(max(RANKS))
        root = jnp.where(column < k, CONDITION ** (-column / (2 * (k - 1))), 0)
        basis = lambda key: jnp.linalg.qr(jax.random.normal(key, (n, max(RANKS))))[0]
        truth = lr.Factors(basis(key_left) * root, basis(key_right) * root)
        mask = jax.random.uniform(key_mask, (n, n)) < ratio * k * jnp.log(n) / n
        operator = lr.operators.EntryMask(mask=mask)
        problem = lr.Problem(operator, operator.forward(truth.left, truth.right))
        solver = lr.AlternatingMinimization(max_rank=max(RANKS), rank=k, start="spectral", accelerate=False)
        solution = lr.solve(problem, solver, key_solve, num_steps=300, record_every=300)
        return {"error": lr.metrics.relative_error(solution.factors, truth)}

    table = lr.sweep(
        trial, jax.random.key(3), grid={"n": sizes, "k": RANKS, "ratio": SAMPLES}, static=("n",), num_trials=trials,
        paired=True, batch_size=1, progress=False,
    )  # fmt: skip
    errors = np.asarray(table["error"].values)
    success = errors < 1e-6
    # The masks of a draw grow with the ratio: the ratio from which on it is recovered. Never counts as a point more.
    grid = np.array([*SAMPLES, SAMPLES[-1] * 1.25])
    needed = grid[success.shape[2] - np.cumprod(success[:, :, ::-1], axis=2).sum(axis=2)]
    claims = []
    over_k = needed[-1, -1] / needed[-1, 0]
    claims.append(
        common.check(
            f"entries k n={sizes[-1]}",
            "entries needed over n k log n, at k = 8 against k = 2, draw by draw",
            predicted="1, within a factor of 2",
            values=over_k,
            low=0.5,
            high=2.0,
            note="plain steps, spectral start, all samples in every half step. As reported in public reviews the "
            "sufficient bound grows like k^4.5, which would allow 4^3.5 = 128 here",
        )
    )
    if len(sizes) > 1:
        for k, small, large in zip(RANKS, needed[0], needed[-1], strict=True):
            claims.append(
                common.check(
                    f"entries n k={k}",
                    f"entries needed over n k log n, at n = {sizes[-1]} against n = {sizes[0]}, draw by draw",
                    predicted="1, within a factor of 1.5",
                    values=large / small,
                    low=1 / 1.5,
                    high=1.5,
                )
            )
    return claims, {"sizes": sizes, "ranks": RANKS, "ratios": SAMPLES, "success": success.mean(axis=-1),
                    "trials": trials, "needed": needed}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# T1.4


def cost(full: bool) -> tuple[list[dict], dict]:
    n = 800
    rng = np.random.default_rng(0)
    rows, cols = np.nonzero(rng.random((n, n)) < 0.7)
    timed = COST_RANKS if full else (16,)
    counts, seconds, checks = {name: [] for name in INNER}, {name: [] for name in INNER}, []
    for k in COST_RANKS:
        left, right = (np.linalg.qr(rng.standard_normal((n, k)))[0] for _ in range(2))
        values = np.sum(left[rows] * right[cols], axis=1)
        operator, y = lr.operators.SampledEntries.build(rows, cols, values, (n, n))
        problem = lr.Problem(operator, y)
        for name in INNER:
            solver = lr.AlternatingMinimization(max_rank=k, inner=name, start="random", accelerate=False)
            init = jax.jit(lambda problem, key, solver=solver: solver.init(problem, key))
            state = init(problem, jax.random.key(k)) if k in timed else init.eval_shape(problem, jax.random.key(k))
            given = (problem, state, jax.random.key(1))
            step = lambda problem, state, key, solver=solver: solver.step(problem, state, key)[0]
            jaxpr = jax.make_jaxpr(step)(*given).jaxpr
            # Loops without a fixed length are those of the sketched solves, at most six steps each.
            counts[name].append(operations(jaxpr, 6)[0] / 2)
            if k not in timed:
                continue
            program = jax.jit(step).lower(*given).compile()
            if name == "exact":
                products, others = operations(jaxpr, 1, once=True)
                flops = program.cost_analysis()
                flops = (flops[0] if isinstance(flops, list) else flops)["flops"]
                checks.append((2 * products + others) / flops)
            best = math.inf
            for _ in range(4):
                begun = time.perf_counter()
                jax.block_until_ready(program(*given))
                best = min(best, time.perf_counter() - begun)
            seconds[name].append(best / 2)
    slopes = {name: common.slope(np.log(COST_RANKS), np.log(values)) for name, values in counts.items()}
    claim = "slope of the counted multiply-adds of a half step against k at a fixed number of entries, {}"
    note = f"{len(rows)} entries of {n} x {n}, k from 4 to 64; products in the traced program, loops by their length, "
    note += "without the orthonormalisation"
    claims = [
        common.check(
            "T1.4 exact", claim.format("Gram matrices and elimination"), predicted=2.0, values=slopes["exact"],
            low=1.85, high=2.15, note=note,
        ),
        common.check(
            "T1.4 cg", claim.format("five conjugate gradient steps"), predicted=1.0, values=slopes["cg"], low=0.85,
            high=1.15, note=note,
        ),
        common.check(
            "T1.4 count", "operations counted that way over those of the compiler's cost analysis, exact half steps",
            predicted=1.0, values=np.array(checks), low=0.9, high=1.1,
            note="both with the body of every loop once, since that is how the compiler counts",
        ),
        common.check(
            "T1.4 sketched k=64", "multiply-adds of a sketched half step over those of an exact one at k = 64",
            predicted="below 1", values=counts["sketched"][-1] / counts["exact"][-1], high=1.0,
            note="six steps, four rows of the sketch per column, about 560 entries a row; the k^3 of every row counts",
        ),
        common.not_tested(
            "T1.4 seconds", "seconds of a half step against k",
            "in the figure and the data; a shared machine gives no bound worth a verdict",
        ),
    ]  # fmt: skip
    return claims, {
        "cost_ranks": COST_RANKS,
        "timed_ranks": timed,
        "entries": len(rows),
        "counts": counts,
        "seconds": seconds,
        "slopes": slopes,
    }


def operations(jaxpr, unknown: int, *, once: bool = False, times: int = 1) -> tuple[int, int]:
    """Multiply-adds of a traced program, and its other additions and multiplications of arrays.

    A product of arrays, and a multiplication element by element, is a multiply-add for each term. Loops count by their
    length, those without one `unknown` times; or `once`, like the compiler's cost analysis.
    """
    products = others = 0
    for equation in jaxpr.eqns:
        name, size = equation.primitive.name, sum(math.prod(v.aval.shape) for v in equation.outvars)
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            products += times * size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif name == "mul" and not once:
            products += times * size
        elif name in ("mul", "add", "sub", "div"):
            others += times * size
        elif name == "reduce_sum":
            others += times * math.prod(equation.invars[0].aval.shape)
        length = {"scan": equation.params.get("length"), "while": unknown}.get(name, 1)
        inside = list(equation.params.values())
        if name == "custom_linear_solve":  # the other programs in it are for derivatives
            inside = [equation.params["jaxprs"].solve]
        for inner in jax.tree.leaves(inside, is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(inner, "eqns"):
                inner = getattr(inner, "jaxpr", inner)
                found = operations(inner, unknown, once=once, times=times * (1 if once else length))
                products, others = products + found[0], others + found[1]
    return products, others


# ---------------------------------------------------------------------------------------------------------------------
# T1.5 and T1.6


def regression(trials: int, row_ratios: tuple[int, ...]) -> tuple[list[dict], dict]:
    counts = {name: np.full((len(row_ratios), trials), np.nan) for name in (*COUNTS, "undamped")}
    radius = np.zeros((len(row_ratios), trials))
    extremes = np.zeros((len(row_ratios), trials, 2))
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        turn = np.linalg.qr(rng.standard_normal((COLS, COLS)))[0]
        basis = np.linalg.qr(rng.standard_normal((ROWS, COLS)))[0]
        a = (basis * np.geomspace(1, 1 / SKETCH_CONDITION, COLS)) @ turn
        b = rng.standard_normal(ROWS)
        for i, ratio in enumerate(row_ratios):
            sketch = SparseSignSketch.create(jax.random.key(seed), ratio * COLS, ROWS, num_nonzeros=8)
            r = np.linalg.qr(np.asarray(sketch.apply(a)), mode="r")
            conditioned = np.linalg.solve(r.T, a.T).T
            gram, rhs = conditioned.T @ conditioned, conditioned.T @ b
            extremes[i, seed] = np.sqrt(np.linalg.eigvalsh(gram)[[-1, 0]])
            radius[i, seed] = np.abs(1 - extremes[i, seed] ** 2).max()
            for name in counts:
                counts[name][i, seed] = iterations(name, gram, rhs, 1 / ratio)
    claims = []
    for ratio in (4, 8, 16):
        i = row_ratios.index(ratio)
        for name, expected in COUNTS.items():
            claims.append(
                common.check(
                    f"T1.5 {name} {ratio}d", f"iterations to 1e-12 with {ratio} rows of the sketch per column, {name}",
                    values=counts[name][i], **within(expected[(4, 8, 16).index(ratio)], 0.15),
                )
            )  # fmt: skip
        if ratio < 16:
            # 1 - 1 / (1 - sqrt(d / rows))^2 in size.
            expected = 1 / (1 - ratio**-0.5) ** 2 - 1
            claims.append(
                common.check(
                    f"T1.5 undamped {ratio}d", "largest factor of an undamped step",
                    predicted=f"{expected:.3g}, diverges", values=radius[i], low=1.0,
                )
            )  # fmt: skip
        else:
            claims.append(
                common.check(
                    f"T1.5 undamped {ratio}d", "iterations to 1e-12, undamped", values=counts["undamped"][i],
                    **within(78, 0.15),
                )
            )  # fmt: skip
        for j, (side, sign) in enumerate((("largest", -1), ("smallest", 1))):
            claims.append(
                common.check(
                    f"T1.6 {side} {ratio}d", f"{side} singular value after preconditioning, 10 %",
                    values=extremes[i, :, j], **within(1 / (1 + sign * ratio**-0.5), 0.1),
                )
            )  # fmt: skip
    return claims, {"row_ratios": row_ratios, "iterations": counts, "radius": radius, "extremes": extremes}


def iterations(name: str, gram: np.ndarray, rhs: np.ndarray, ratio: float, limit: int = 400) -> float:
    """Steps until the error of the fitted values is 1e-12 of them, from zero; infinite if it is never.

    All of it happens in the span of the preconditioned columns, so the small Gram matrix is enough. `ratio` is columns
    over rows of the sketch; the steps are those that are best if the spectrum fills `1 / (1 +- sqrt(ratio))`.
    """
    root = np.linalg.cholesky(gram).T
    best = np.linalg.solve(gram, rhs)
    goal = 1e-12 * np.linalg.norm(root @ best)
    size, momentum = {
        "damped": ((1 - ratio) ** 2 / (1 + ratio), 0.0),
        "momentum": ((1 - ratio) ** 2, ratio),
        "undamped": (1.0, 0.0),
        "conjugate gradients": (None, None),
    }[name]
    x, old, p, r = np.zeros_like(rhs), np.zeros_like(rhs), rhs, rhs
    for step in range(1, limit + 1):
        if size is None:
            length = r @ r / (p @ gram @ p)
            x, new = x + length * p, r - length * (gram @ p)
            p, r = new + (new @ new) / (r @ r) * p, new
        else:
            x, old = x + size * (rhs - gram @ x) + momentum * (x - old), x
        error = np.linalg.norm(root @ (x - best))
        if error <= goal:
            return step
        if not error < 1e6 * goal / 1e-12:
            return math.inf
    return math.inf


# ---------------------------------------------------------------------------------------------------------------------


def draw(data: dict) -> dict:
    return {
        "contraction": draw_contraction(data),
        "entries": draw_entries(data),
        "cost": draw_cost(data),
        "iterations": draw_iterations(data),
    }


def subplots(count: int, width: float):
    import matplotlib.pyplot as plt

    return plt.subplots(1, count, figsize=(width, 3.6), layout="constrained")


def ticks(axis, values) -> None:
    """Printed numbers on a logarithmic axis, and no others."""
    axis.set_ticks(values, [f"{v:g}" for v in values])
    axis.set_ticks([], minor=True)


def band(ax, x, values, **style) -> None:
    """Median and 10-90 % of the last axis."""
    low, middle, high = np.quantile(np.asarray(values, float), (0.1, 0.5, 0.9), axis=-1)
    ax.errorbar(x, middle, yerr=[middle - low, high - middle], capsize=3, ms=4, lw=1.2, **style)


def draw_contraction(data: dict):
    figure, (left, right) = subplots(2, 9)
    x = data["fractions"]
    left.plot(x, CONTRACTIONS, "k_", ms=14, label="prototype")
    band(left, x, data["contraction"], fmt="o-", label="median, 10-90 % of draws")
    left.set(yscale="log", xlabel="sampling rate p", ylabel="error factor per iteration", xticks=x)
    ticks(left.yaxis, (0.05, 0.1, 0.2, 0.5, 1.0))
    left.legend(fontsize=8)
    e0 = np.array(data["update_errors"])
    for fraction, values in zip(x, data["floors"], strict=True):
        band(right, e0, values, fmt="o-", label=f"p = {fraction}")
    right.plot(e0, data["derived_floor"] * e0, "k:", label=f"{data['derived_floor']:.2f} e (derived, p = 1)")
    right.set(
        xscale="log", yscale="log", xlabel="relative error e of every half step", ylabel="relative error at the end"
    )
    right.legend(fontsize=8)
    return figure


def draw_entries(data: dict):
    figure, ax = subplots(1, 6.5)
    trials = data["trials"]
    for n, lines, style in zip(data["sizes"], data["success"], ("--", "-")[-len(data["sizes"]) :], strict=True):
        for k, shares, colour in zip(data["ranks"], lines, ("C0", "C1", "C2"), strict=True):
            bounds = np.array([common.share_interval(round(s * trials), trials) for s in shares]).T
            ax.plot(data["ratios"], shares, "o" + style, color=colour, ms=4, lw=1.2, label=f"n = {n}, k = {k}")
            ax.fill_between(data["ratios"], *bounds, color=colour, alpha=0.08, lw=0)
    ax.set(xscale="log", xlabel=r"$|\Omega|\,/\,(n\,k\,\log n)$", ylabel="share of draws recovered", ylim=(-0.03, 1.03))
    ticks(ax.xaxis, data["ratios"])
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def draw_cost(data: dict):
    figure, (left, right) = subplots(2, 9)
    for name in INNER:
        slope = data["slopes"][name]
        left.plot(data["cost_ranks"], data["counts"][name], "o-", ms=4, lw=1.2, label=f"{name}, slope {slope:.2f}")
        right.plot(data["timed_ranks"], data["seconds"][name], "o-", ms=4, lw=1.2, label=name)
    for ax, what in ((left, "multiply-adds of a half step"), (right, "seconds of a half step")):
        ax.set(xscale="log", yscale="log", xlabel="columns k", ylabel=what)
        ticks(ax.xaxis, data["cost_ranks"])
        ax.legend(fontsize=8)
    return figure


def draw_iterations(data: dict):
    figure, ax = subplots(1, 5.5)
    ratios = np.array(data["row_ratios"], float)
    fine = np.geomspace(ratios[0], ratios[-1], 50)
    rates = {"damped": 2 * fine**-0.5 / (1 + 1 / fine), "momentum": fine**-0.5}
    for i, name in enumerate((*COUNTS, "undamped")):
        values = np.array(data["iterations"][name], float)
        known = np.isfinite(values).all(axis=-1)
        if known.any():
            band(ax, ratios[known], values[known], fmt="o-", color=f"C{i}", label=name)
        if name in rates:
            theory = math.log(1e-12) / np.log(rates[name])
            ax.plot(fine, theory, ":", color=f"C{i}", lw=1, label=f"{name}, asymptotic rate")
    ax.axvline(1 / (1 - 0.5**0.5) ** 2, color="C3", ls="--", lw=1)
    ax.set(
        xscale="log", yscale="log", xlabel="rows of the sketch per column", ylabel="iterations to 1e-12", ylim=(10, 400)
    )
    ticks(ax.xaxis, data["row_ratios"])
    ticks(ax.yaxis, (10, 20, 50, 100, 200, 400))
    ax.legend(fontsize=7)
    return figure
