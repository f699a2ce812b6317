"""Preconditioned methods: iterations against the condition number, at the exact rank and at twice the rank.

Smooth: every entry measured, tied factors from a small random start (in the span of truth and start, which the iterates
never leave), and Gaussian measurements with the spectral start. Absolute loss: Gaussian measurements, 10 % of them
outliers, a start near the truth, Polyak's step. Quick: within a minute on two free cores; full: a few minutes.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from papers.common import check, not_tested, slope

TITLE = (
    "Preconditioned factored descent: Tong, Ma and Chi (ScaledGD, arXiv 2005.08898); Zhang, Fattahi and Zhang "
    "(PrecGD, arXiv 2504.09708); Xu, Shen, Chi and Ma (ScaledGD(lambda), arXiv 2302.01186); Giampouras, Cai and Vidal "
    "(OPSA, arXiv 2410.16826); Levenberg-Marquardt-Morrison composite steps (LMM, arXiv 2509.11486)"
)
KEY, KAPPAS = 2005, (1.0, 10.0, 100.0, 1e3, 1e4)
# The smooth population problem.
N, R, CAP, ETA = 60, 4, 20_000, 0.3
SMOOTH = (
    "gradient descent",
    "scaled, lambda = error",
    "scaled, step 0.5",
    "scaled, line search",
    "scaled, fixed lambda",
)
PREDICTED = {
    ("gradient descent", 4): (91, 780, 6814),
    ("scaled, lambda = error", 4): (118, 136, 134),
    ("scaled, lambda = error", 8): (122, 137, 145),
    ("scaled, fixed lambda", 4): (51, 50, 49),
}
# The sensing problem, and the one with outliers.
SENSING_N, SENSING_R, SENSING_KAPPAS = 24, 2, (1.0, 5.0, 10.0, 20.0)
L1_N, L1_R, L1_M, L1_CAP, L1_START = 20, 2, 400, 3000, 0.1
PROTOTYPE = "bounds +-15 % of a single draw of a prototype"


def smooth_method(name, kappa, truth):
    tied = {"max_rank": 2 * R, "symmetric": True, "tolerance": 1e-10}
    if name == "gradient descent":
        return lr.GradientDescent(step_size=ETA, relative=False, **tied)
    if name == "scaled, lambda = error":
        # The problem is not normalised here: y has norm ||X||_F, and the residual is the error.
        return lr.ScaledGradientDescent(step_size=ETA, damping=1.0, **tied)
    if name == "scaled, step 0.5":
        return lr.ScaledGradientDescent(step_size=0.5, **tied)
    if name == "scaled, line search":
        return lr.ScaledGradientDescent(**tied)
    # The library multiplies a fixed damping by the spectral norm, which the measurements of every entry show.
    size = jnp.linalg.norm(truth.left, 2) ** 2
    return lr.ScaledGradientDescent(step_size=ETA, damping_rule="fixed", damping=0.01 / kappa / size, **tied)


def smooth_trial(key, k, kappa, method, cap):
    """Steps to a relative error of 1e-10 (NaN if not reached) and the last error."""
    key_truth, key_start = jax.random.split(key)
    truth = lr.synthetic.low_rank(key_truth, (N, N), R, condition_number=kappa, symmetric=True)
    start = lr.initial.small_random(
        key_start, (N, N), 2 * R, scale=1e-3, symmetric=True, rank=k, dtype=truth.left.dtype
    )
    q = jnp.linalg.qr(jnp.concatenate([truth.left, start.left], axis=1))[0]
    inside = lambda x: lr.Factors(q.T @ x.left, q.T @ x.left)
    truth, start = inside(truth), inside(start)
    operator = lr.operators.Identity(matrix_shape=truth.shape)
    problem = lr.Problem(operator, operator.forward(truth.left, truth.right))
    solver = smooth_method(method, kappa, truth)
    # Columns beyond k are zero in the start; the solver must not divide by them.
    solver = dataclasses.replace(solver, rank=k)
    found = lr.solve(problem, solver, key, num_steps=cap, record_every=cap, init=start, truth=truth)
    return outcome(found)


def outcome(found):
    steps = jnp.where(found.converged, found.num_steps, jnp.nan)
    return {"steps": steps, "error": found.trace["relative_error"][-1]}


def sensing_trial(key, kappa, method):
    key_problem, key_solve = jax.random.split(key)
    problem, truth = lr.synthetic.matrix_sensing(
        key_problem,
        shape=(SENSING_N, SENSING_N),
        rank=SENSING_R,
        num_measurements=8 * SENSING_N * SENSING_R,
        condition_number=kappa,
    )
    common = {"max_rank": SENSING_R, "tolerance": 1e-10}
    solver, cap = {
        "gradient descent": (lr.GradientDescent(step_size=0.5, start="spectral", **common), 4000),
        "scaled, step 0.5": (lr.ScaledGradientDescent(step_size=0.5, damping_rule="none", **common), 400),
        "scaled, line search": (lr.ScaledGradientDescent(**common), 400),
    }[method]
    return outcome(lr.solve(problem, solver, key_solve, num_steps=cap, record_every=cap, truth=truth))


def absolute_trial(key, kappa, k, method, cap):
    """Steps to a relative error of 1e-9 from a start near the truth, and the last error."""
    key_problem, key_start = jax.random.split(key)
    problem, truth = lr.synthetic.matrix_sensing(
        key_problem,
        shape=(L1_N, L1_N),
        rank=L1_R,
        num_measurements=L1_M,
        symmetric=True,
        condition_number=kappa,
        corruption=0.1,
    )
    noise = jax.random.normal(key_start, (L1_N, k))
    left = jnp.pad(truth.left, ((0, 0), (0, k - L1_R)))
    left = left + L1_START * jnp.linalg.norm(left) / jnp.linalg.norm(noise) * noise
    polyak = lr.step_sizes.Polyak(optimum=problem.objective(truth) / L1_M)
    if method == "Polyak":
        solver = lr.SubgradientMethod(max_rank=k, symmetric=True, relative=False, step_size=polyak)
    else:
        solver = lr.ScaledSubgradient(max_rank=k, symmetric=True, step_size=polyak)
    init = lr.Factors(left, left)
    errors = lr.solve(problem, solver, key, num_steps=cap, init=init, truth=truth).trace["relative_error"]
    first = jnp.where(jnp.any(errors < 1e-9), jnp.argmax(errors < 1e-9), jnp.nan)
    return {"steps": first, "error": jnp.min(errors)}


def sweep(trial, trials, grid, *static):
    """One lane at a time: a lane that has arrived then costs nothing."""
    found = lr.sweep(trial, jax.random.key(KEY), grid=grid, num_trials=trials, static=static, paired=True, batch_size=1)
    return [np.asarray(found[name].values) for name in ("steps", "error")]


def spread(counts):
    """Largest over smallest count of each seed."""
    return counts.max(axis=0) / counts.min(axis=0)


def smooth_rows(full):
    trials, claims = 10 if full else 2, []
    kappas = KAPPAS if full else KAPPAS[:4]
    others = [m for m in SMOOTH if m != "gradient descent"]
    grid = {"k": [R, 2 * R], "kappa": kappas, "method": others, "cap": [CAP if full else 2000]}
    steps, errors = sweep(smooth_trial, trials, grid, "method", "cap")
    steps, errors = (
        {m: steps[:, :, i, 0] for i, m in enumerate(others)},
        {m: errors[:, :, i, 0] for i, m in enumerate(others)},
    )
    one = {"method": ["gradient descent"]}
    limit = 1_000_000 if full else 100_000
    plain, _ = sweep(smooth_trial, trials, {"k": [R], "kappa": kappas, **one, "cap": [limit]}, "method", "cap")
    _, stuck = sweep(smooth_trial, trials, {"k": [2 * R], "kappa": kappas, **one, "cap": [CAP]}, "method", "cap")
    plain, stuck = plain[0, :, 0, 0], stuck[0, :, 0, 0]
    for kappa, value, counts in zip(kappas, PREDICTED["gradient descent", 4], plain, strict=False):
        claims.append(
            check(
                f"plain kappa={kappa:g}",
                "plain descent at the exact rank: steps to 1e-10",
                predicted=value,
                values=counts,
                low=0.85 * value,
                high=1.15 * value,
                note=PROTOTYPE,
            )
        )
    x = np.log(kappas[1:])
    claims.append(
        check(
            "plain slope",
            "and their log-log slope in the condition number, from 10 on",
            predicted=1,
            values=[slope(x, np.log(c)) for c in plain[1:].T],
            low=0.9,
            high=1.1,
        )
    )
    for kappa, found in zip(kappas, stuck, strict=True):
        claims.append(
            check(
                f"plain 2r kappa={kappa:g}",
                f"plain descent at twice the rank: relative error left after {CAP:,} steps",
                predicted="does not reach 1e-10",
                values=found,
                low=1e-10,
            )
        )
    for (method, k), values in PREDICTED.items():
        if method == "gradient descent":
            continue
        for i, value in enumerate(values):
            claims.append(
                check(
                    f"{method}, k={k} kappa={kappas[i]:g}",
                    "steps to 1e-10",
                    predicted=value,
                    values=steps[method][k // R - 1, i],
                    low=0.85 * value,
                    high=1.15 * value,
                    note=PROTOTYPE,
                )
            )
    for method in others:
        for j, k in enumerate((R, 2 * R)):
            if method == "scaled, fixed lambda" and k > R:
                claims.append(
                    check(
                        "fixed lambda, k=8",
                        f"a fixed damping at twice the rank ends at a floor of the "
                        f"start: smallest error after {grid['cap'][0]:,} steps, any kappa",
                        predicted="does not reach 1e-10",
                        values=errors[method][1].min(axis=0),
                        low=1e-10,
                    )
                )
                continue
            claims.append(
                check(
                    f"{method}, k={k} spread",
                    f"steps to 1e-10 over condition numbers 1 to {kappas[-1]:g}, largest over smallest",
                    predicted="at most 1.2",
                    values=spread(steps[method][j]),
                    high=1.2,
                )
            )
    counts = {m: {str(k): steps[m][j].T for j, k in enumerate((R, 2 * R))} for m in others}
    counts["gradient descent"] = {str(R): plain.T, str(2 * R): np.full_like(stuck.T, np.nan)}
    return claims, {"kappas": kappas, "cap": CAP, "counts": counts, "stuck": np.median(stuck, axis=1)}


def sensing_rows(full):
    trials, claims = 10 if full else 2, []
    methods = ("gradient descent", "scaled, step 0.5", "scaled, line search")
    steps, _ = sweep(sensing_trial, trials, {"kappa": SENSING_KAPPAS, "method": methods}, "method")
    for i, method in enumerate(methods):
        if method == "gradient descent":
            x = np.log(SENSING_KAPPAS[1:])
            claims.append(
                check(
                    "sensing, plain slope",
                    "Gaussian measurements, spectral start, plain descent: log-log "
                    "slope of the steps to 1e-10 in the condition number, 5 to 20",
                    predicted=1,
                    values=[slope(x, np.log(c)) for c in steps[1:, i].T],
                    low=0.8,
                    high=1.2,
                )
            )
            continue
        claims.append(
            check(
                f"sensing, {method}",
                "Gaussian measurements, spectral start: steps to 1e-10 over condition "
                "numbers 1 to 20, largest over smallest",
                predicted="at most 1.2",
                values=spread(steps[:, i]),
                high=1.2,
            )
        )
    return claims, {"kappas": SENSING_KAPPAS, "counts": {m: steps[:, i].T for i, m in enumerate(methods)}}


def absolute_rows(full):
    trials, claims = 10 if full else 2, []
    kappas = KAPPAS if full else (1.0, 100.0)
    counts, left = {}, {}
    for method, cap in (("scaled", 300), ("Polyak", L1_CAP)):
        grid = {"kappa": kappas, "k": [L1_R, 2 * L1_R], "method": [method], "cap": [cap]}
        steps, errors = sweep(absolute_trial, trials, grid, "k", "method", "cap")
        counts[method] = {str(k): steps[:, j, 0, 0].T for j, k in enumerate((L1_R, 2 * L1_R))}
        left[method] = {str(k): errors[:, j, 0, 0].T for j, k in enumerate((L1_R, 2 * L1_R))}
    for k in (L1_R, 2 * L1_R):
        for i, kappa in enumerate(kappas):
            scaled, plain = (counts[m][str(k)][:, i] for m in ("scaled", "Polyak"))
            claims.append(
                check(
                    f"l1, scaled k={k} kappa={kappa:g}",
                    "10 % outliers, Polyak's step, scaled with damping: steps to 1e-9",
                    predicted="at most 40",
                    values=scaled,
                    high=40,
                )
            )
            if k == L1_R and kappa == 1:
                claims.append(
                    check(
                        "l1, Polyak k=2 kappa=1",
                        "without the preconditioner, the easy case: steps to 1e-9",
                        predicted=25,
                        values=plain,
                        low=25 * 0.85,
                        high=25 * 1.15,
                        note=PROTOTYPE,
                    )
                )
            elif kappa >= 100 or k > L1_R:
                floor = np.median(left["Polyak"][str(k)][:, i])
                missed = int(np.isnan(plain).sum())
                note = f"{missed} of {trials} are not there after {L1_CAP:,} steps, which then count; "
                note += f"median of the smallest error {floor:.1e}"
                claims.append(
                    check(
                        f"l1, Polyak k={k} kappa={kappa:g}",
                        "without it: steps to 1e-9 over those of the scaled method",
                        predicted="20 or more",
                        values=np.where(np.isnan(plain), L1_CAP, plain) / scaled,
                        low=20,
                        note=note,
                    )
                )
    claims.append(
        not_tested(
            "l1, LMM",
            "the damped Gauss-Newton step of the composite method needs 13 to 23 steps",
            "the library has no solver with the joint preconditioner of both factors",
        )
    )
    return claims, {"kappas": kappas, "cap": L1_CAP, "counts": counts}


def run(full):
    smooth_claims, smooth = smooth_rows(full)
    sensing_claims, sensing = sensing_rows(full)
    absolute_claims, absolute = absolute_rows(full)
    claims = [*smooth_claims, *sensing_claims, *absolute_claims]
    return claims, {"smooth": smooth, "sensing": sensing, "absolute": absolute}


COLOURS = {
    "gradient descent": "C3",
    "Polyak": "C3",
    "scaled, lambda = error": "C0",
    "scaled": "C0",
    "scaled, step 0.5": "C2",
    "scaled, line search": "C1",
    "scaled, fixed lambda": "C4",
}


def draw(data):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    titles = ("smooth loss, every entry (rank 4)", "absolute loss, 10 % outliers (rank 2)")
    for ax, part, title, rank in zip(axes, (data["smooth"], data["absolute"]), titles, (R, L1_R), strict=True):
        for method, by_k in part["counts"].items():
            for k, counts in by_k.items():
                over = int(k) > rank
                counts = np.array(counts, float)
                counts[np.isnan(counts)] = math.inf
                low, middle, high = np.quantile(counts, (0.1, 0.5, 0.9), axis=0, method="nearest")
                name = {"Polyak": "plain", "gradient descent": "plain"}.get(method, method)
                label = f"{name}, k = {'2r' if over else 'r'}"
                style = {"color": COLOURS[method], "ls": "--" if over else "-", "marker": "s" if over else "o"}
                if not np.isfinite(middle).all():
                    ax.plot(
                        np.array(part["kappas"])[~np.isfinite(middle)],
                        np.full((~np.isfinite(middle)).sum(), part["cap"]),
                        ls="none",
                        marker="x",
                        color=COLOURS[method],
                        ms=7 if over else 5,
                    )
                    if not np.isfinite(middle).any():
                        ax.plot([], [], "x", color=COLOURS[method], label=f"{label}: not reached")
                        continue
                    middle = np.where(np.isfinite(middle), middle, np.nan)
                bars = np.where(np.isfinite(low + high + middle), [middle - low, high - middle], 0)
                ax.errorbar(
                    part["kappas"],
                    middle,
                    yerr=bars,
                    ms=3.5,
                    lw=1.2,
                    capsize=2,
                    label=label,
                    markerfacecolor="white" if over else COLOURS[method],
                    **style,
                )
        ax.set(xscale="log", yscale="log", xlabel="condition number", title=title)
    axes[0].set_ylabel("steps to a relative error of $10^{-10}$")
    axes[1].set_ylabel("steps to a relative error of $10^{-9}$")
    for ax in axes:
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, frameon=False)
    return {"iterations": figure}
