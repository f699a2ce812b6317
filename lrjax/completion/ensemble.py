"""`complete_ensemble`: many fits to random parts of a small incomplete matrix, with their mean and their spread."""

from typing import Any

import jax
import jax.numpy as jnp

from lrjax.core.checks import check_count, check_finite, check_key, number, real_array
from lrjax.core.numerics import matmul
from lrjax.core.pytree import pytree
from lrjax.core.units import unit_of
from lrjax.iteration.solve import solve
from lrjax.operators import EntryMask
from lrjax.problems.factors import Factors
from lrjax.problems.problem import Problem
from lrjax.solvers import AlternatingMinimization


@pytree
class CompletionEnsemble:
    """Predictions of every entry by an ensemble of fits.

    Attributes:
        mean: `(n1, n2)`, mean prediction.
        std: `(n1, n2)`, standard deviation of the predictions over the members, with `num_members - 1` in the
            denominator.
        members: factors with a leading axis of members.
        kept: `(num_members, n1, n2)` booleans, the entries that each member was fitted to. What is observed and not
            kept is held out for that member.
    """

    mean: jax.Array
    std: jax.Array
    members: Factors
    kept: jax.Array


def complete_ensemble(
    values: Any,
    mask: Any,
    key: jax.Array,
    *,
    rank: int,
    ridge: float | jax.Array = 0.1,
    num_members: int = 64,
    drop: float | jax.Array = 0.05,
    num_steps: int = 10,
    nonnegative: bool = False,
) -> CompletionEnsemble:
    """Completes a small matrix many times over, each time without some of its entries and from another start.

    Each member hides every observed entry with probability `drop` and runs `num_steps` sweeps of alternating ridge
    regression (`AlternatingMinimization(orthonormalize=False, accelerate=False)`) from a random left factor. The
    members differ most where the entries say least, so the spread can choose what to measure next. It is no standard
    error: a member sees most of the data of the others. Where the starts do not matter and entries are noisy, the
    delete-d jackknife says that `std * sqrt((1 - drop) / drop)` is one for the prediction of a single fit, apart from
    the bias of the rank and of the ridge; :func:`complete` with `ensemble=` gives that.

    A pure function of arrays: it can run inside `jit`, `scan` and `vmap`, with a mask that changes.

    Args:
        values: `(n1, n2)` real floating; what it holds outside the mask is never used.
        mask: `(n1, n2)` booleans, true where observed.
        key: typed random key.
        rank: columns of the factors.
        ridge: penalty `ridge (||left||_F^2 + ||right||_F^2)`, in the unit of the values; rows with nothing in them
            come out as zero under it.
        num_members: fits, at least 2.
        drop: probability of an observed entry to be hidden from a member, at most 0.99.
        num_steps: sweeps, each a right and a left half step.
        nonnegative: keep both factors nonnegative. Ask for it where it is true: with few entries a column, starts of
            mixed signs lead most members to wrong solutions (at 2.4 entries a column of a positive 40 x 1000 matrix
            of rank one, the error of the row means was five times that of positive starts).

    Returns:
        A `CompletionEnsemble`.

    Raises:
        ValueError: shapes, dtypes, key or numbers that do not fit; named in the text.

    Cost `num_members num_steps n1 n2 rank (rank + 1)` multiply-adds and `num_members` dense masks: for matrices up to a
    few hundred thousand entries. Use `complete` above that.

    Source: the masked ensemble of UCB-E-LRF (Zhou et al., arXiv 2407.06172), with their settings as defaults.

    Examples:
        >>> import jax, lrjax as lr
        >>> key = jax.random.key(0)
        >>> truth = lr.synthetic.low_rank(key, (30, 20), 1).dense()
        >>> mask = jax.random.bernoulli(key, 0.5, truth.shape)
        >>> found = lr.complete_ensemble(truth, mask, key, rank=1, ridge=1e-6, num_members=4, num_steps=50)
        >>> bool(abs(found.mean - truth).max() < 1e-3)
        True
    """
    check_key(key)
    values = real_array("values", values)
    rank, num_steps = check_count("rank", rank), check_count("num_steps", num_steps)
    num_members = check_count("num_members", num_members, minimum=2)
    ridge = number("ridge", ridge, values.dtype, low=0)
    drop = number("drop", drop, jnp.result_type(float), low=0, high=0.99)
    operator = EntryMask.from_mask(mask)
    if rank > min(operator.shape):
        raise ValueError(f"rank must be at most min(shape) = {min(operator.shape)}; got {rank}")
    if values.shape != operator.shape:
        raise ValueError(f"values must have the shape of mask, {operator.shape}; got {values.shape}")
    observed = jnp.where(operator.mask, values, 0)
    check_finite("observed values", observed)
    problem = Problem(operator, observed.reshape(-1))
    solver = AlternatingMinimization(
        max_rank=rank, ridge=ridge, orthonormalize=False, accelerate=False, nonnegative=nonnegative
    )

    def one(key: jax.Array) -> tuple[Factors, jax.Array]:
        key_keep, key_solve = jax.random.split(key)
        keep = operator.mask & (jax.random.uniform(key_keep, values.shape) >= drop)
        part = Problem(operator, problem.y, weights=keep.reshape(-1).astype(values.dtype))
        return solve(part, solver, key_solve, num_steps=num_steps, record_every=num_steps).factors, keep

    members, kept = jax.vmap(one)(jax.random.split(key, num_members))
    fits = matmul(members.left, jnp.swapaxes(members.right, -1, -2))
    unit = unit_of(fits)  # in which squares neither overflow nor vanish
    std = unit * jnp.std(fits / unit, axis=0, ddof=1)
    return CompletionEnsemble(mean=unit * jnp.mean(fits / unit, axis=0), std=std, members=members, kept=kept)
