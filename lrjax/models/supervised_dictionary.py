"""A dictionary that reconstructs features and predicts labels at once."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from lrjax.core.checks import (
    as_array,
    check_choice,
    check_count,
    check_finite,
    check_range,
    host_array,
    host_value,
    number,
    real_array,
)
from lrjax.core.numerics import matmul, or_one, safe_divide, safe_reciprocal
from lrjax.core.pytree import positional_pytree, pytree, replace
from lrjax.linalg.guarded import spectral_norm, svd
from lrjax.models.rank_projected import RankProjectedResult, rank_projected_descent
from lrjax.problems.factors import Factors

FORMS = ("filter", "feature")


@pytree
class SupervisedDictionary:
    """What `supervised_dictionary` returns; `r` columns, `c` classes.

    Attributes:
        dictionary: `W (p, r)`, Frobenius norm one.
        codes: `H (n, r)` of the training samples: `features` is about `codes @ dictionary.T`.
        beta: `(r, c - 1)`, what codes, or for `"filter"` filtered features, count for in the logits.
        gamma: `(q, c - 1)`, the same for covariates.
        descent: the `RankProjectedResult` of the two stacked matrices, as scaled there: its `check()` tells whether it
            went well, its `trace` has the objective.
        form: `"filter"` or `"feature"`.
    """

    dictionary: jax.Array
    codes: jax.Array
    beta: jax.Array
    gamma: jax.Array
    descent: RankProjectedResult
    form: str = jax.tree.static()

    def encode(self, features: Any) -> jax.Array:
        """Codes `(m, r)` of samples `(m, p)` by least squares on the dictionary."""
        u, s, vt = svd(self.dictionary)
        known = s > jnp.finfo(s.dtype).eps * max(self.dictionary.shape) * s[0]
        inverse = safe_reciprocal(s, known)
        return matmul(matmul(self._samples(features), u) * inverse[None, :], vt)

    def logits(self, features: Any, covariates: Any = None) -> jax.Array:
        """Logits `(m, c - 1)` of the classes after the first, whose own is zero.

        `"filter"` needs no codes: `features W beta`. `"feature"` takes those of `encode`, which knows no labels.

        Args:
            features: `(m, p)`.
            covariates: `(m, q)`; may be left out if they were in training.
        """
        features = self._samples(features)
        covariates = _covariates(covariates, features)
        if covariates.shape[1] != self.gamma.shape[0]:
            raise ValueError(
                f"covariates must have {self.gamma.shape[0]} columns as in training; got {covariates.shape}"
            )
        seen = matmul(features, self.dictionary) if self.form == "filter" else self.encode(features)
        return matmul(seen, self.beta) + matmul(covariates, self.gamma)

    def predict(self, features: Any, covariates: Any = None) -> jax.Array:
        """The most probable class of each sample, `(m,)`, int32; -1 where logits are NaN, of traced features say."""
        logits = self.logits(features, covariates)
        best = jnp.argmax(_with_first(logits), axis=1).astype(jnp.int32)
        return jnp.where(jnp.any(jnp.isnan(logits), axis=1), -1, best)

    def _samples(self, features: Any) -> jax.Array:
        features = as_array("features", features)
        if jnp.iscomplexobj(features):
            raise ValueError(f"features must be real; got dtype {features.dtype}")
        check_finite("features", features)
        p = self.dictionary.shape[0]
        if features.ndim != 2 or features.shape[1] != p:
            raise ValueError(f"features must have shape (m, {p}); got {features.shape}")
        return features.astype(self.dictionary.dtype)


@positional_pytree
class _Data:
    features: jax.Array
    labels: jax.Array
    covariates: jax.Array
    reconstruction: jax.Array
    ridge: jax.Array
    scale: jax.Array


def supervised_dictionary(
    features: Any,
    labels: Any,
    covariates: Any = None,
    *,
    rank: int,
    form: str = "filter",
    reconstruction: float | jax.Array = 1.0,
    ridge: float | jax.Array | None = None,
    num_classes: int = 2,
    scale: float | jax.Array | None = None,
    step_size: Any = None,
    num_steps: int = 500,
    record_every: int = 1,
    tolerance: float | jax.Array | None = None,
    init: tuple[jax.Array, jax.Array, jax.Array, jax.Array] | None = None,
) -> SupervisedDictionary:
    """Factors `features ~ H W^T` such that the columns of `W` also predict the labels.

    Minimises `sum_i loss(y_i, a_i) + xi ||X - H W^T||^2 + nu / 2 (||A||^2 + ||gamma||^2)`, the loss being logistic and
    the logits `a_i` linear in

    - "filter": the features seen through the dictionary, `a_i = beta^T W^T x_i + gamma^T x'_i`, with `A = W beta`;
    - "feature": the codes, `a_i = beta^T h_i + gamma^T x'_i`, with `A = H beta`.

    In `A`, `B = H W^T` and `gamma` this is convex, and `A` and `B` share a factor: `[c A, B^T] = W [c beta^T; H]^T`, or
    `[c A^T; B^T] = [c beta^T; W] H^T`, is a matrix of rank at most `rank`, for any number `c`, and
    `lr.rank_projected_descent` minimises over it and `c gamma`.

    A pure function of its arrays: jit it with the other arguments fixed, vmap it over data, `reconstruction` or
    `ridge`.

    Args:
        features: `X`, `(n, p)`, a sample in each row. Their dtype is kept.
        labels: `(n,)` integers from 0 to `num_classes - 1`.
        covariates: `X'`, `(n, q)`, known beside the features and not bound to the dictionary; include a column of ones
            for an intercept. Left out, they are that column.
        rank: columns of the dictionary.
        form: as above.
        reconstruction: `xi`: large for the dictionary of a principal component analysis, small for one that predicts.
        ridge: `nu`; by default 1, and 0.1 for `"feature"`, where it holds back each logit: with 1 only the intercept is
            left of them.
        num_classes: two or more; the logit of class 0 is zero.
        scale: `c`; 1 is the published method. By default the root of `(k s^2 + nu) / (2 xi)`, at which both parts have
            the same largest curvature: large features need not be scaled down to have steps of a useful length.
            Here `k` is a quarter for two classes and a half for more, and `s^2` the squared norm of `[X, X']`, or
            one more than that of `X'` for `"feature"`.
        step_size: number or schedule. By default `2 / (L + mu)` if `L < 3 mu`, the condition of
            `lr.rank_projected_descent`, and `1 / L` otherwise, with `L = max((k s^2 + nu) / c^2, 2 xi)` and
            `mu = min(nu / c^2, 2 xi)`.
        num_steps: steps at most; a multiple of `record_every`.
        record_every: steps between two rows of the trace.
        tolerance: see `lr.rank_projected_descent`.
        init: `(dictionary, codes, beta, gamma)` to start from, those of a result for other weights say; by default
            the principal components of the features, and `beta` and `gamma` zero.

    Returns:
        A `SupervisedDictionary`, which predicts the labels of new samples.

    Raises:
        ValueError: a shape, dtype, number, label, form or start that does not fit.

    Cost of a step: an SVD of the stacked matrix, `O(n p min(n, p))`.

    When not to use it: if the principal components predict as well (a logistic regression on them is cheaper), or if
    only the labels matter and samples abound: a logistic regression on all features then does as well as `"filter"`.
    `"feature"` fits training labels by codes that no new sample gets: mind its accuracy on others.

    Source: Lee, Lyu and Yao, arXiv 2206.06774 (papers key `supervised_dictionary`).

    Examples:
        >>> import jax, lrjax as lr
        >>> features = jax.random.normal(jax.random.key(0), (80, 6))
        >>> labels = features[:, 0] > 0.5
        >>> found = lr.supervised_dictionary(features, labels, rank=2, reconstruction=0.1)
        >>> bool((found.predict(features) == labels).mean() > 0.9)
        True
    """
    features = real_array("features", features)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must have shape (n, p); got {features.shape}")
    check_finite("features", features)
    check_choice("form", form, FORMS)
    num_classes, dtype = check_count("num_classes", num_classes, minimum=2), features.dtype
    reconstruction = number("reconstruction", reconstruction, dtype, low=0)
    ridge = number("ridge", (1.0 if form == "filter" else 0.1) if ridge is None else ridge, dtype, low=0)
    balance = scale is None
    # Before JAX has it: under jit a number of the caller's would be traced from here on.
    if not balance and step_size is None:
        _check_scale(scale, features, ridge)
    scale = number("scale", 1 if scale is None else scale, dtype, low=0, open_low=True)
    _check_squares(features, reconstruction)
    labels = _labels(labels, features.shape[0], num_classes)
    covariates = _covariates(covariates, features)
    kinds = num_classes - 1
    start = None if init is None else _check_init(init, features, covariates, kinds)
    data = _Data(features, labels, covariates, reconstruction, ridge, scale)
    data, default, stacked, gamma = _prepare(data, start, form=form, kinds=kinds, balance=balance)
    descent = rank_projected_descent(
        Partial(_filter if form == "filter" else _feature, data),
        stacked,
        gamma,
        rank=rank,
        step_size=default if step_size is None else step_size,
        num_steps=num_steps,
        record_every=record_every,
        tolerance=tolerance,
    )
    return _result(descent, data.scale, form, kinds)


def _check_squares(features: jax.Array, reconstruction: jax.Array) -> None:
    """The objective has squares of the features: units in which these overflow or vanish are refused."""
    if (host := host_value(features)) is None or (weight := host_value(reconstruction)) is None or not host.any():
        return
    limits, top = np.finfo(host.dtype), float(np.abs(host).max())
    # With room for sums, and for the steps.
    most = max(1.0, float(weight)) * top**2 * host.size
    if most > 2.0**-20 * float(limits.max) or top**2 < 2.0**40 * float(limits.tiny):
        raise ValueError(
            f"features must have squares that {host.dtype} holds; the largest is {top:.3g}. Divide them by their "
            "spread (and multiply reconstruction by its square)"
        )


def _check_scale(scale: Any, features: jax.Array, ridge: jax.Array) -> None:
    """Steps are as long as `scale^2` over the largest curvature: refused where that leaves the range of the dtype."""
    check_range("scale", scale, low=0, open_low=True)
    if (given := host_value(scale)) is None:
        return
    # Of what is traced nothing is known: as if it were one.
    x, nu = (np.float64(1) if (seen := host_value(one)) is None else seen.astype(float) for one in (features, ridge))
    c, limits = float(given), np.finfo(features.dtype)
    step = c**2 / (x.size * max(np.abs(x).max(), 1) ** 2 + nu)
    if not (c**2 < limits.max and step > limits.tiny):
        raise ValueError(f"scale must have a square that {features.dtype} holds, and steps with it; got {c:.3g}")


def _labels(labels: Any, n: int, num_classes: int) -> jax.Array:
    labels = host_array("labels", labels)
    if labels.shape != (n,) or not (labels.dtype == bool or jnp.issubdtype(labels.dtype, jnp.integer)):
        raise ValueError(f"labels must be integers of shape ({n},); got {labels.dtype} of shape {labels.shape}")
    if (seen := host_value(labels)) is not None and not ((seen >= 0) & (seen < num_classes)).all():
        raise ValueError(f"labels must be from 0 to {num_classes - 1}; got {np.unique(seen)}")
    return jnp.asarray(labels.astype(np.int32))


def _covariates(covariates: Any, features: jax.Array) -> jax.Array:
    if covariates is None:
        return jnp.ones_like(features[:, :1])
    covariates = as_array("covariates", covariates)
    if jnp.iscomplexobj(covariates):
        raise ValueError(f"covariates must be real; got dtype {covariates.dtype}")
    if covariates.ndim != 2 or covariates.shape[0] != features.shape[0]:
        raise ValueError(f"covariates must have shape ({features.shape[0]}, q); got {covariates.shape}")
    check_finite("covariates", covariates)
    return covariates.astype(features.dtype)


def _check_init(init: Any, features: jax.Array, covariates: jax.Array, kinds: int) -> tuple[jax.Array, ...]:
    (n, p), q = features.shape, covariates.shape[1]
    parts = tuple(real_array("init", part).astype(features.dtype) for part in init)
    shapes = tuple(part.shape for part in parts)
    k = shapes[0][-1] if shapes and shapes[0] else 0
    expected = ((p, k), (n, k), (k, kinds), (q, kinds))
    if shapes != expected or k == 0:
        raise ValueError(
            f"init must be (dictionary, codes, beta, gamma) of shapes ({p}, k), ({n}, k), (k, {kinds}) and "
            f"({q}, {kinds}); got {shapes}"
        )
    for part in parts:
        check_finite("init", part)
    return parts


def _filter(data: _Data, stacked: jax.Array, gamma: jax.Array) -> jax.Array:
    weights, image = stacked[:, : gamma.shape[1]] / data.scale, stacked[:, gamma.shape[1] :]
    return _objective(data, matmul(data.features, weights), weights, image, gamma / data.scale)


def _feature(data: _Data, stacked: jax.Array, gamma: jax.Array) -> jax.Array:
    weights, image = stacked[: gamma.shape[1]].T / data.scale, stacked[gamma.shape[1] :]
    return _objective(data, weights, weights, image, gamma / data.scale)


def _objective(data: _Data, seen: jax.Array, weights: jax.Array, image: jax.Array, gamma: jax.Array) -> jax.Array:
    logits = seen + matmul(data.covariates, gamma)
    misfit = jnp.sum((data.features.T - image) ** 2)
    ridge = jnp.sum(weights**2) + jnp.sum(gamma**2)
    return jnp.sum(_logistic(logits, data.labels)) + data.reconstruction * misfit + 0.5 * data.ridge * ridge


def _logistic(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Minus the log probability of the labels, stable for logits of any size."""
    if logits.shape[1] == 1:
        return jax.nn.softplus(logits[:, 0]) - labels.astype(logits.dtype) * logits[:, 0]
    scores = _with_first(logits)
    return jax.nn.logsumexp(scores, axis=1) - jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]


def _with_first(logits: jax.Array) -> jax.Array:
    return jnp.pad(logits, ((0, 0), (1, 0)))


@partial(jax.jit, static_argnames=("form", "kinds", "balance"))
def _prepare(data: _Data, init: Any, *, form: str, kinds: int, balance: bool) -> tuple:
    """The data with their scale, the default step size, and the start."""
    if form == "filter":
        square = spectral_norm(jnp.concatenate([data.features, data.covariates], axis=1)) ** 2
    else:
        square = 1 + spectral_norm(data.covariates) ** 2
    curvature, fit = (0.25 if kinds == 1 else 0.5) * square + data.ridge, 2 * data.reconstruction
    scale = jnp.where(fit > 0, jnp.sqrt(safe_divide(curvature, fit)), 1) if balance else data.scale
    most, least = jnp.maximum(curvature / scale**2, fit), jnp.minimum(data.ridge / scale**2, fit)
    step_size = jnp.where(most < 3 * least, 2 / (most + least), 1 / most)
    # Neither moves the minimum: the one is a change of variables, the other a length of steps.
    scale, step_size = jax.lax.stop_gradient((scale, step_size))
    data = replace(data, scale=scale)
    if init is None:
        pad = ((0, 0), (kinds, 0)) if form == "filter" else ((kinds, 0), (0, 0))
        gamma = jnp.zeros((data.covariates.shape[1], kinds), data.features.dtype)
        return data, step_size, jnp.pad(data.features.T, pad), gamma
    dictionary, codes, beta, gamma = init
    beta, gamma = scale * beta, scale * gamma
    if form == "filter":
        return data, step_size, Factors(dictionary, jnp.concatenate([beta.T, codes])), gamma
    return data, step_size, Factors(jnp.concatenate([beta.T, dictionary]), codes), gamma


def _result(descent: RankProjectedResult, scale: jax.Array, form: str, kinds: int) -> SupervisedDictionary:
    left, right = descent.factors.left, descent.factors.right
    dictionary = left if form == "filter" else left[kinds:]
    norm = jnp.linalg.norm(dictionary)
    norm = or_one(norm)
    codes = (right[kinds:] if form == "filter" else right) * norm
    # The filter meets the dictionary, which has become shorter; on codes beta meets what has become longer.
    beta = right[:kinds].T * (norm / scale) if form == "filter" else left[:kinds].T / (norm * scale)
    return SupervisedDictionary(
        dictionary=dictionary / norm, codes=codes, beta=beta, gamma=descent.free / scale, descent=descent, form=form
    )
