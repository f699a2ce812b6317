"""`Solution`: what a solve returns."""

import jax

from lrjax.core.pytree import pytree
from lrjax.core.result import Result
from lrjax.problems.factors import Factors


@pytree
class Solution(Result):
    """What a solve returns; under vmap every array has the lane axes in front.

    Attributes:
        factors: the last finite iterate (or the best one, for `BestSoFar`).
        status: int32 code, see `lrjax.status`.
        num_steps: int32 steps taken before the lane finished or the budget ran out.
        trace: one row per record along the last axis, row 0 the start: `"step"`, `"objective"`, `"residual"` (relative,
            weighted Euclidean), what else the solver reports, and `"relative_error"` if a truth was given. A finished
            lane repeats its last row; `"step"` then stops growing.
    """

    factors: Factors
    status: jax.Array
    num_steps: jax.Array
    trace: dict[str, jax.Array]

    @property
    def objective(self) -> jax.Array:
        """Objective of `factors`."""
        return self.trace["objective"][..., -1]
