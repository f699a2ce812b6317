"""Row samplers, and half steps with many entries a row: two suites of their own, each in one process.

`python benchmarks/bench_rows.py samplers|inner [--quick]` prints one JSON line for each sampler on each case, or for
each way to solve for the rows.
"""

import argparse
import json
import os
import sys
import time

POWERS = (1.0, 1.5, 2.0, 3.0, 4.0)
DRAWS = 21


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=("samplers", "inner"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    os.environ["JAX_ENABLE_X64"] = "true"
    {"samplers": samplers, "inner": inner}[given.suite](given)


def say(case, solver, **found):
    print(json.dumps({"case": case, "solver": solver, **found}), flush=True)


# ------------------------------------------------------------------------------------------------------------ samplers


def matrix(family, n, d):
    """A tall matrix some of whose rows matter far more than others."""
    import numpy as np

    rng = np.random.default_rng(0)
    a = rng.standard_normal((n, d))
    if family == "spiked":  # few and large rows in two directions, three rows that alone carry a third one
        a[:5, 0] *= 1e4
        a[5:55, 1] *= 1e3
        a[:, 2] = 0
        a[55:58, 2] = 3 + rng.standard_normal(3)
    else:  # heavy-tailed: the sizes of the rows have no mean
        a *= (rng.pareto(1.0, size=n) + 0.1)[:, None]
    return a


def directions(a):
    """Vectors to try: axes, the basis that makes `a` orthonormal, and a hundred random ones in either basis."""
    import numpy as np

    rng = np.random.default_rng(1)
    d = a.shape[1]
    inverse = np.linalg.inv(np.linalg.qr(a)[1])
    return np.concatenate(
        [np.eye(d), inverse, rng.standard_normal((d, 100)), inverse @ rng.standard_normal((d, 100))], axis=1
    )


def scores_of(a, p):
    """All scores that are defined for `||a x||_p` with this p."""
    import jax.numpy as jnp

    import lrjax.sketching as sk

    tau = sk.leverage_scores(a)
    found = {"uniform": jnp.ones_like(tau), "leverage": tau}
    if p < 2:
        found["root leverage"] = sk.root_leverage_scores(a, p)
    if p < 4:
        found["Lewis"] = sk.lewis_weights(a, p, num_steps=60)
    if a.shape[0] <= 4000:
        # At p = 2 they are the leverage scores.
        found["sensitivity"] = tau if p == 2 else sk.lp_sensitivities(a, p, num_steps=30)
        found["sensitivity + leverage"] = sk.mixed_scores(found["sensitivity"], tau)
    return found


def samplers(given):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lrjax.sketching import RowSample

    keys = jax.random.split(jax.random.key(0), DRAWS)
    cases = (("spiked", 4000), ("heavy-tailed", 4000), ("spiked", 20_000), ("heavy-tailed", 20_000))
    sizes = (100, 200, 400, 800, 1600)
    d = 8
    if given.quick:
        cases, sizes = (("spiked", 300),), (50, 100)

    def distortion(images, whole, scores, p, m, replacement):
        def worst(key):
            sample = RowSample.create(key, scores, m, replacement=replacement)
            losses = jnp.abs(images[sample.indices]) ** p
            return jnp.max(jnp.abs(sample.weights @ losses / whole - 1))

        return jax.lax.map(worst, keys)

    distortion = jax.jit(distortion, static_argnums=(4, 5))
    for family, n in cases:
        a = matrix(family, n, d)
        images = jnp.asarray(a @ directions(a))
        images = images / jnp.max(jnp.abs(images), axis=0, keepdims=True)
        for p in POWERS:
            whole = jnp.sum(jnp.abs(images) ** p, axis=0)
            begun = time.perf_counter()
            scores = scores_of(jnp.asarray(a), p)
            for name, values in scores.items():
                for replacement in (True, False):
                    for m in sizes:
                        worst = np.asarray(distortion(images, whole, values, jnp.asarray(p), m, replacement))
                        say({"kind": "samplers", "family": family, "n": n, "d": d, "p": p, "rows": m,
                             "replacement": replacement}, name, distortion=[float(f"{w:.4g}") for w in worst],
                            seconds=time.perf_counter() - begun)  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- inner


def inner(given):
    """One half step of alternating minimization on rows with many entries, for exactly and by sketches."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import lrjax as lr
    from lrjax.linalg.rows import RowProblem
    from lrjax.linalg.sketched_rows import SketchedRows

    ranks, lengths = ((8, 16), (200,)) if given.quick else ((16, 32, 64, 128), (4000, 32_000))
    for dtype in ("float64", "float32"):
        for length in lengths:
            with jax.enable_x64(dtype == "float64"):
                rng = np.random.default_rng(0)
                n1, n2 = (8, 2 * length)
                rows, cols = np.nonzero(rng.random((n1, n2)) < 0.5)
                build = lr.operators.SampledEntries.build
                op, _ = build(rows, cols, np.zeros(len(rows), dtype), (n1, n2))
                for k in ranks:
                    right = jnp.asarray(np.linalg.qr(rng.standard_normal((n2, k)))[0].astype(dtype))
                    truth = rng.standard_normal((n1, k)).astype(dtype)
                    start = jnp.asarray(truth * (1 + 0.1 * rng.standard_normal((n1, k))).astype(dtype))
                    data = op.arrange(op.forward(jnp.asarray(truth), right))
                    calls = {"exact": None} | {f"sketched, {steps} steps": steps for steps in (3, 6)}
                    for name, steps in calls.items():
                        # A tolerance out of reach: all steps are taken.
                        how = None if steps is None else SketchedRows(
                            key=jax.random.key(2), start=start, tolerance=0.0, num_steps=steps)  # fmt: skip
                        calls[name] = jax.jit(
                            lambda right, data, row, op=op: op.solve_left(right, data, row)[0]
                        ).lower(right, data, RowProblem(sketched=how)).compile(), RowProblem(sketched=how)  # fmt: skip
                    times, answers = {name: [] for name in calls}, {}
                    for repeat in range(-1, given.repeats):
                        for name, (call, row) in calls.items():
                            begun = time.perf_counter()
                            answers[name] = jax.block_until_ready(call(right, data, row))
                            if repeat >= 0:
                                times[name].append(time.perf_counter() - begun)
                    for name, took in times.items():
                        left = np.linalg.norm(np.asarray(answers[name]) - truth) / np.linalg.norm(
                            np.asarray(start) - truth
                        )
                        case = {"kind": "inner", "n": n1, "entries": length, "rank": k, "dtype": dtype}
                        say(case, name, seconds=float(np.median(took)), best=min(took), left=float(left))


if __name__ == "__main__":
    sys.exit(main())
