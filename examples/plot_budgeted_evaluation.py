"""
The best of many methods on a budget
====================================

Forty methods, a thousand examples, and every score costs an evaluation. Which method has the best mean? Scores are
nearly of rank one: an example that is hard for one method is hard for the others. Two rules spend the budget where it
decides: an upper confidence bound on the mean of each method, and :func:`lrjax.complete_ensemble`, which predicts the
scores that were not paid for and says how sure it is. Both find the best method more often than even spending does.

What this does not show: that the ensemble beats the confidence bound in general. Which of them is ahead depends on the
gaps, the noise and the batch, and here most of what the ensemble gains is the completion's. The rules are those of Zhou
et al., arXiv 2407.06172, on scores made here, which are real numbers; on scores of zeros and ones with few examples,
completion has less to offer.
"""

import functools

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import lrjax as lr

METHODS, EXAMPLES = 40, 1000
BUDGET = 4000  # a tenth of all scores
WARM_UP = 2000  # random scores before the first fit

# %%
# Abilities lie evenly, two hundredths apart; the scale of an example is between zero and two, and a tenth of noise
# comes on top. The best method is the one with the best mean over all examples, noise included.


def scores(key):
    """`(METHODS, EXAMPLES)`."""
    key_order, key_scale, key_noise = jax.random.split(key, 3)
    ability = jax.random.permutation(key_order, 0.8 - 0.02 * jnp.arange(METHODS))
    scale = jax.random.uniform(key_scale, (EXAMPLES,), maxval=2.0)
    return jnp.outer(ability, scale) + 0.1 * jax.random.normal(key_noise, (METHODS, EXAMPLES))


# %%
# A round takes a batch of scores. All rules share one step: what is wanted most among what is not seen yet. The wish is
# random for even spending. The confidence bound wishes for random scores of the row with the best mean plus
# ``sqrt(1 / count)``. The ensemble's bound of a row is the mean of its scores, those not seen replaced by prediction
# plus five deviations, and it wishes for the most uncertain scores of the best row.


def observe(seen, wish, batch):
    """The mask with a batch of the largest wishes added, of entries not seen yet and with a finite wish."""
    wish = jnp.where(seen, -jnp.inf, wish).ravel()
    best, place = jax.lax.top_k(wish, batch)
    return seen.ravel().at[place].max(best > -jnp.inf).reshape(seen.shape)


def in_best_row(bound, seen, wish):
    """The wish, kept in the row of the largest bound that has something left to see."""
    row = jnp.argmax(jnp.where(seen.all(axis=1), -jnp.inf, bound))
    return jnp.where(jnp.arange(METHODS)[:, None] == row, wish, -jnp.inf)


def row_means(values, seen):
    """Means of the scores seen, and how many there are."""
    count = seen.sum(axis=1)
    return jnp.where(seen, values, 0).sum(axis=1) / jnp.maximum(count, 1), count


def fitted(values, seen, key):
    """The ensemble of rank one."""
    return lr.complete_ensemble(values, seen, key, rank=1, num_members=8, nonnegative=True)


def even(values, seen, key, batch):
    """Random scores, and means of those seen."""
    seen = observe(seen, jax.random.uniform(key, seen.shape), batch)
    return seen, jnp.argmax(row_means(values, seen)[0])


def confidence(values, seen, key, batch):
    """The row with the best upper confidence bound, and means of the scores seen."""
    mean, count = row_means(values, seen)
    bound = jnp.where(count > 0, mean + jax.lax.rsqrt(jnp.maximum(count, 1).astype(mean.dtype)), jnp.inf)
    seen = observe(seen, in_best_row(bound, seen, jax.random.uniform(key, seen.shape)), batch)
    return seen, jnp.argmax(row_means(values, seen)[0])


def ensemble(values, seen, key, batch):
    """The best row by an optimistic completion, and means of the completed rows."""
    found = fitted(values, seen, key)
    bound = jnp.where(seen, values, found.mean + 5 * found.std).mean(axis=1)
    seen = observe(seen, in_best_row(bound, seen, found.std), batch)
    return seen, jnp.argmax(jnp.where(seen, values, found.mean).mean(axis=1))


def even_completed(values, seen, key, batch):
    """Random scores like `even`, and means of completed rows: what completion does without the bound."""
    seen = observe(seen, jax.random.uniform(key, seen.shape), batch)
    return seen, jnp.argmax(jnp.where(seen, values, fitted(values, seen, key).mean).mean(axis=1))


# A rule, the size of its rounds, and how it begins. Fits are dear, so rounds with them are larger.
RULES = {
    "even spending": (even, 50, 0),
    "even, completed": (even_completed, 200, WARM_UP),
    "confidence bound": (confidence, 50, 0),
    "ensemble": (ensemble, 200, WARM_UP),
}

# %%
# Each rule is a scan over rounds. Rules with fits begin with a warm-up of random scores. The factors of scores are
# nonnegative, and the fits are told so: with two scores to an example, starts of mixed signs go astray.


@functools.partial(jax.jit, static_argnames=("rule", "batch", "warm_up"))
def successes(rule, batch, warm_up, keys):
    """`(num_seeds, rounds)`: whether the best method was named after each round."""

    def trial(key):
        key_scores, key_rounds = jax.random.split(key)
        values = scores(key_scores)
        best = jnp.argmax(values.mean(axis=1))

        def with_rule(rule):
            def one(seen, key):
                seen, chosen = rule(values, seen, key, batch)
                return seen, chosen == best

            return one

        keys = jax.random.split(key_rounds, BUDGET // batch)
        start = warm_up // batch
        seen, first = jax.lax.scan(with_rule(even), jnp.zeros(values.shape, bool), keys[:start])
        _, rest = jax.lax.scan(with_rule(rule), seen, keys[start:])
        return jnp.concatenate([first, rest])

    return jax.lax.map(trial, keys)


def compare(num_seeds=6):
    """Success rate after each round, by rule."""
    keys = jax.random.split(jax.random.key(0), num_seeds)
    return {name: np.asarray(successes(*rule, keys)).mean(axis=0) for name, rule in RULES.items()}


def advantage(rates):
    """How much more often the worse of the two rules succeeds than even spending, over the last third of the rounds."""
    late = {name: rate[-len(rate) // 3 :].mean() for name, rate in rates.items()}
    return float(min(late["confidence bound"], late["ensemble"]) - late["even spending"])


def run(num_seeds=6):
    """Success rate of the worse of the two rules less that of even spending."""
    return advantage(compare(num_seeds))


# %%
# The dotted line takes the choice of scores away from the ensemble and leaves it the completion.


def draw(rates):
    """Success rate against the share of scores paid for."""
    with lr.plot.style():
        _, ax = plt.subplots(figsize=(6.8, 4.0))
        for name, rate in rates.items():
            share = 100 * BUDGET / (METHODS * EXAMPLES) * np.arange(1, len(rate) + 1) / len(rate)
            ax.plot(share, rate, label=name, linestyle=":" if name == "even, completed" else "-")
        ax.set_xlabel("scores paid for, %")
        ax.set_ylabel("best method named")
        ax.set_title(f"{METHODS} methods, {EXAMPLES} examples")
        ax.legend(loc="upper left")


if __name__ == "__main__":  # as a script and in the gallery
    rates = compare()
    draw(rates)
    print(f"both rules name the best method in at least {100 * advantage(rates):.0f} % more of the trials")
    if matplotlib.get_backend() != "agg":
        plt.show()
