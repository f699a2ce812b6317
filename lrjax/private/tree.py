"""Continual release by a binary tree over time."""

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lrjax.core.checks import check_count, check_key
from lrjax.core.pytree import pytree, replace
from lrjax.private.sketch import LowRankSketch, check_deviations, check_maps, gaussian_like


@pytree
class TreeRelease:
    """Releases of a growing matrix by a binary tree over time: noise grows with `log(T)`, not with `T`.

    After update `t` the sums of the last `1, 2, 4, ...` updates that end at `t` and begin at a multiple of their length
    are closed with fresh noise; a release adds those that the binary digits of `t` name.

    Build it with `create`, then `update` once per time step and `release` whenever wanted. A pytree of fixed shape:
    carry it through `lax.scan`. Memory: `2 floor(log2(T)) + 2` sketches.

    Attributes:
        maps: an empty sketch with the public maps.
        sums: sketches without noise, one per level in front: secret.
        closed: the same with noise.
        deviations: `(3,)` noise of each closed sum.
        key: random key of the noise: secret.
        time: int32, updates so far.
        num_releases: `T`.
    """

    maps: LowRankSketch
    sums: tuple[jax.Array, ...]
    closed: tuple[jax.Array, ...]
    deviations: jax.Array
    key: jax.Array
    time: jax.Array
    num_releases: int = jax.tree.static()

    @staticmethod
    def create(
        sketch: LowRankSketch, key: jax.Array, *, num_releases: int, deviations: tuple[float, float, float]
    ) -> "TreeRelease":
        """The tree before the first update.

        Args:
            sketch: whose public maps to use; its contents are not.
            key: random key of the noise, secret and of no other use.
            num_releases: `T`, updates at most.
            deviations: from `noise_deviations(..., num_releases=T)`.

        Raises:
            ValueError: not one key, a count below one, or not three deviations, each at least zero.
        """
        check_key(key)
        levels = check_count("num_releases", num_releases).bit_length()
        checked = check_deviations(deviations, sketch.core.dtype)
        parts = (sketch.columns, sketch.rows, sketch.core)
        empty = tuple(jnp.zeros((levels, *part.shape), part.dtype) for part in parts)
        columns, rows, core = (jnp.zeros_like(part) for part in parts)
        return TreeRelease(
            maps=replace(sketch, columns=columns, rows=rows, core=core),
            sums=empty,
            closed=empty,
            deviations=jnp.stack(checked),
            key=key,
            time=jnp.int32(0),
            num_releases=num_releases,
        )

    def update(self, change: LowRankSketch) -> "TreeRelease":
        """One time step: `change` is the sketch of this step's update alone, `tree.maps.add(...)`.

        Go on with the tree returned, and never update one tree twice: both would carry the same noise, and their
        difference none.

        Raises:
            ValueError: a change by other maps than those of the tree (compared outside of jit only), or all
                `num_releases` steps are used up (seen outside of jit only; inside, the tree then turns into NaN rather
                than release more than was accounted for).
        """
        check_maps("change", change, self.maps)
        if not isinstance(self.time, Tracer) and int(self.time) >= self.num_releases:
            raise ValueError(f"all {self.num_releases} steps of the tree are used up")
        time = self.time + 1
        levels = self.sums[0].shape[0]
        # The level that closes now: the number of trailing zeros of the time.
        bits = jnp.arange(levels, dtype=jnp.int32)
        closing = jnp.sum(jnp.cumprod(1 - (time >> bits & 1)), dtype=jnp.int32)
        keys = jax.random.split(jax.random.fold_in(self.key, time), 3)
        over = time > self.num_releases
        sums, closed = [], []
        parts = (change.columns, change.rows, change.core)
        for i, (old, old_closed, part) in enumerate(zip(self.sums, self.closed, parts, strict=True)):
            level = bits.reshape(-1, *(1,) * part.ndim)
            total = part + jnp.sum(jnp.where(level < closing, old, 0), axis=0)
            here = level == closing
            kept = level > closing
            sums.append(jnp.where(here, total[None], jnp.where(kept, old, 0)))
            fresh = total + gaussian_like(keys[i], self.deviations[i], part)
            noisy = jnp.where(here, fresh[None], jnp.where(kept, old_closed, 0))
            closed.append(jnp.where(over, jnp.nan, noisy))
        return replace(self, sums=tuple(sums), closed=tuple(closed), time=time)

    def release(self) -> LowRankSketch:
        """The noisy sketch of the sum of all updates so far, to read with `low_rank`; any number of times."""
        columns, rows, core = (jnp.sum(part, axis=0) for part in self.closed)
        return replace(self.maps, columns=columns, rows=rows, core=core)
