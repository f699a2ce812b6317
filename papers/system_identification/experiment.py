"""Realisation of linear systems: singular value decompositions of the Hankel matrix, dense and randomized.

Random systems: standard Gaussian `A` scaled to spectral radius 0.9, standard Gaussian `B`, `C`, `D`. The error is the
largest spectral norm over 100 frequencies of the difference of the frequency responses, relative to that of the truth.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

import lrjax as lr
from papers import common

TITLE = "Wang and Anderson, Large-Scale System Identification Using a Randomized SVD, arXiv 2109.02703"
STATES, INPUTS, OUTPUTS, LENGTH = 20, 6, 5, 61  # a 150 x 180 Hankel matrix
UNKNOWNS = LENGTH * INPUTS
RADIUS, NOISE = 0.9, 0.1
RUNS = (400, 1600, 6400)
WAYS = {"SVD": None, "q = 0": 0, "q = 1": 1, "q = 2": 2}
FREQUENCIES = np.linspace(0, np.pi, 100)
# Relative errors of an independent NumPy prototype, by runs and way.
PROTOTYPE = {
    400: (5.3e-2, 1.0e-1, 5.6e-2, 5.6e-2),
    1600: (8.5e-3, 2.0e-2, 8.6e-3, 8.5e-3),
    6400: (3.2e-3, 5.3e-3, 3.2e-3, 3.3e-3),
}
PORTS = 4  # inputs and outputs where time is measured
SIDES = (500, 1000, 2000, 3000, 4000, 6000)


def system(seed: int, m: int = INPUTS, p: int = OUTPUTS) -> lr.StateSpace:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((STATES, STATES))
    a *= RADIUS / np.abs(np.linalg.eigvals(a)).max()
    shapes = {"b": (STATES, m), "c": (p, STATES), "d": (p, m)}
    rest = {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
    return lr.StateSpace(a=jnp.asarray(a), **rest)


def realise(markov, steps, key):
    if steps is None:
        return lr.ho_kalman(markov, STATES)
    return lr.ho_kalman(markov, STATES, key=key, power_steps=steps)


@jax.jit
def responses(markov, key):
    """Frequency responses `(ways, frequencies, p, m)` of the systems that each way makes of Markov parameters."""
    return jnp.stack([realise(markov, steps, key).frequency_response(FREQUENCIES) for steps in WAYS.values()])


@jax.jit
def estimate(truth, inputs, key):
    key_noise, key_solve = jax.random.split(key)
    outputs = truth.simulate(inputs, key_noise, state_noise=NOISE, output_noise=NOISE)
    return lr.markov_parameters(inputs, outputs[:, -1], key_solve)


def errors_of(truth: lr.StateSpace, markov, key) -> np.ndarray:
    norm = lambda x: np.linalg.norm(x, 2, axis=(-2, -1)).max(axis=-1)
    other = np.asarray(truth.frequency_response(FREQUENCIES))
    return norm(np.asarray(responses(markov, key)) - other) / norm(other)


def expected_square(truth: lr.StateSpace, runs: int) -> float:
    """Mean squared error of the Markov parameters: the mean of an inverse Wishart matrix times the noise."""
    carried = truth.c @ jnp.stack([jnp.linalg.matrix_power(truth.a, k) for k in range(LENGTH - 1)])
    noise = NOISE**2 * (OUTPUTS + float(jnp.sum(carried**2)))
    return UNKNOWNS / (runs - UNKNOWNS - 1) * noise


def run(full: bool) -> tuple[list[dict], dict]:
    trials = 12 if full else 2
    truths = [system(seed) for seed in range(trials)]
    exact = np.array([errors_of(x, x.markov(LENGTH), jax.random.key(seed)) for seed, x in enumerate(truths)])
    claims = [
        common.check(
            f"exact {way}",
            f"noise-free error, 20 states, a 150 x 180 Hankel matrix, {way}",
            predicted="7e-15 to 1e-14",
            values=exact[:, i],
            high=1e-10,
            note="predicted by an independent prototype; the bound is what rounding may do to other draws",
        )
        for i, way in enumerate(WAYS)
    ]
    errors, ratios, squares = noisy(truths)
    claims += judge_noise(errors, ratios, squares)
    more, timing = timings(SIDES[:4] if full else SIDES[:2], SIDES if full else SIDES[:3], 3 if full else 1)
    data = {
        "runs": RUNS,
        "ways": list(WAYS),
        "trials": trials,
        "errors": np.quantile(errors, (0.1, 0.5, 0.9), axis=1),
        "markov": np.quantile(np.sqrt(squares[..., 0]), (0.1, 0.5, 0.9), axis=1),
        "expected": np.median(np.sqrt(squares[..., 1]), axis=1),
        "timing": timing,
    }
    return claims + more, data


def noisy(truths: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors `(runs, trials, ways)`, squared errors of Markov parameters over their mean, and both of them relative."""
    errors, ratios, squares = [], [], []
    for runs in RUNS:
        for seed, truth in enumerate(truths):
            key, key_inputs, key_realise = jax.random.split(jax.random.fold_in(jax.random.key(1), seed), 3)
            inputs = jax.random.normal(key_inputs, (runs, LENGTH, INPUTS), jnp.float64)
            markov, right = estimate(truth, inputs, key), truth.markov(LENGTH)
            square, mean = float(jnp.sum((markov - right) ** 2)), expected_square(truth, runs)
            size = float(jnp.sum(right**2))
            errors.append(errors_of(truth, markov, key_realise))
            ratios.append(square / mean)
            squares.append((square / size, mean / size))
    shape = (len(RUNS), len(truths))
    return np.reshape(errors, (*shape, len(WAYS))), np.reshape(ratios, shape), np.reshape(squares, (*shape, 2))


def judge_noise(errors: np.ndarray, ratios: np.ndarray, squares: np.ndarray) -> list[dict]:
    claims, ways = [], list(WAYS)
    for i, runs in enumerate(RUNS):
        # Few runs more than unknowns: the small eigenvalues of the inputs' Gram matrix vary from draw to draw.
        low, high = (0.6, 1.6) if runs < 2 * UNKNOWNS else (0.8, 1.25)
        claims.append(
            common.check(
                f"Markov N={runs}",
                f"squared error of the Markov parameters from {runs} runs over T m / (N - T m - 1) times the noise",
                predicted=1.0,
                values=ratios[i],
                low=low,
                high=high,
            )
        )
        claims += [
            common.check(
                f"error N={runs} {way}",
                f"relative error of the frequency response, {runs} runs, noise 0.1 in states and outputs, {way}",
                predicted=predicted,
                values=errors[i, :, j],
                low=0.8 * predicted,
                high=1.2 * predicted,
                note="predicted by an independent prototype on draws of its own, 20 % either way",
            )
            for j, (way, predicted) in enumerate(zip(ways, PROTOTYPE[runs], strict=True))
        ]
        for j in (1, 2, 3):
            predicted = PROTOTYPE[runs][j] / PROTOTYPE[runs][0]
            claims.append(
                common.check(
                    f"ratio N={runs} {ways[j]}",
                    f"error with {ways[j]} over that with an SVD, {runs} runs",
                    predicted=predicted,
                    values=errors[i, :, j] / errors[i, :, 0],
                    low=0.8 * predicted if j == 1 else 0.0,
                    high=1.2 * predicted if j == 1 else 1.15,
                    note="median of the ratios on common draws, 20 % either way" if j == 1 else "",
                )
            )
    few, many = RUNS[1:]
    slope = np.log((few - UNKNOWNS - 1) / (many - UNKNOWNS - 1)) / 2 / np.log(many / few)
    claims.append(
        common.check(
            "half power",
            f"exponent of the error of the Markov parameters in the number of runs, {few} to {many}",
            predicted=slope,
            values=np.log(squares[2, :, 0] / squares[1, :, 0]) / 2 / np.log(many / few),
            low=slope - 0.07,
            high=slope + 0.07,
            note="the exact law at these sizes; its limit for many runs is -1/2",
        )
    )
    return claims


def timings(dense: tuple, sides: tuple, repeats: int) -> tuple[list[dict], dict]:
    """Processor seconds and temporary memory of whole realisations, compiled before, by side of the Hankel matrix."""
    ways = {
        "dense": lambda markov: realise(markov, None, None),
        "randomized": lambda m: realise(m, 1, jax.random.key(3)),
    }
    seconds, megabytes = {name: [] for name in ways}, {name: [] for name in ways}
    for side in sides:
        blocks = side // PORTS
        markov = system(0, PORTS, PORTS).markov(2 * blocks + 1)
        markov = markov + 1e-3 * jax.random.normal(jax.random.key(4), markov.shape, markov.dtype)
        for name, way in ways.items():
            compiled = jax.jit(way).lower(markov).compile()
            memory = compiled.memory_analysis()
            megabytes[name].append(np.nan if memory is None else memory.temp_size_in_bytes / 1e6)
            if name == "dense" and side not in dense:
                continue
            seconds[name].append(min(clock(compiled, markov) for _ in range(repeats if name == "randomized" else 1)))
    at = len(dense) - 1
    last = dense[-1]
    claims = [
        common.check(
            "time",
            f"processor seconds of a realisation by a dense SVD over one by rsvd with q = 1, {last} x {last}",
            predicted="10 or more",
            values=seconds["dense"][at] / seconds["randomized"][at],
            low=10,
        ),
        common.check(
            "growth dense",
            f"exponent of the time of the dense SVD in the side, {dense[-2]} to {last}",
            predicted=3.0,
            values=np.log(seconds["dense"][at] / seconds["dense"][at - 1]) / np.log(dense[-1] / dense[-2]),
            low=2.3,
            high=3.7,
        ),
        common.check(
            "growth randomized",
            f"exponent of the time with fast Fourier transforms and rsvd in the side, {sides[0]} to {sides[-1]}",
            predicted=1.0,
            values=np.log(seconds["randomized"][-1] / seconds["randomized"][0]) / np.log(sides[-1] / sides[0]),
            high=1.5,
            note="linear but for a logarithm",
        ),
        common.check(
            "memory",
            f"temporary memory of the dense SVD over that of rsvd, {sides[-1]} x {sides[-1]}",
            predicted="10 or more",
            values=megabytes["dense"][-1] / megabytes["randomized"][-1],
            low=10,
        ),
    ]
    return claims, {"sides": sides, "dense": dense, "seconds": seconds, "megabytes": megabytes}


def clock(compiled, markov) -> float:
    begun = time.process_time()
    jax.block_until_ready(compiled(markov))
    return time.process_time() - begun


def draw(data: dict) -> dict:
    import matplotlib.pyplot as plt

    runs, timing = np.array(data["runs"], float), data["timing"]
    noise, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    low, middle, high = np.array(data["errors"])
    for j, way in enumerate(data["ways"]):
        bars = (middle[:, j] - low[:, j], high[:, j] - middle[:, j])
        at = runs * 1.06 ** (j - 1.5)
        axes[0].errorbar(at, middle[:, j], yerr=bars, fmt="osD^"[j] + "-", ms=4, lw=1.2, color=f"C{j}", label=way)
    axes[0].set(ylabel="relative error of the frequency response")
    axes[0].legend(fontsize=8)
    low, middle, high = np.array(data["markov"])
    axes[1].errorbar(runs, middle, yerr=(middle - low, high - middle), fmt="o-", ms=4, lw=1.2, label="measured")
    axes[1].plot(runs, data["expected"], "k:", lw=1.5, label=r"$\sqrt{Tm / (N - Tm - 1)}$ times noise")
    axes[1].set(ylabel="relative error of the Markov parameters")
    axes[1].legend(fontsize=8)
    for ax in axes:
        ax.set(xscale="log", yscale="log", xlabel="runs, 10 to 90 % of draws")
        ax.set_xticks(data["runs"], [str(n) for n in data["runs"]])
        ax.minorticks_off()
    time_figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for j, (name, label) in enumerate({"dense": "dense SVD", "randomized": "rsvd by products, q = 1"}.items()):
        sides = timing["dense"] if name == "dense" else timing["sides"]
        axes[0].plot(sides, timing["seconds"][name], "os"[j] + "-", ms=4, color=f"C{j}", label=label)
        axes[1].plot(timing["sides"], timing["megabytes"][name], "os"[j] + "-", ms=4, color=f"C{j}", label=label)
    for ax, text in zip(axes, ("processor seconds", "temporary memory, MB"), strict=True):
        ax.set(xscale="log", yscale="log", xlabel="side of the Hankel matrix", ylabel=text)
        ax.set_xticks(timing["sides"], [str(n) for n in timing["sides"]])
        ax.minorticks_off()
        ax.legend(fontsize=8)
    return {"noise": noise, "timing": time_figure}
