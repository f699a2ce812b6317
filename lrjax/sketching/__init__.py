"""Random sketches and row samples, and regression and low-rank approximation by way of them."""

from lrjax.sketching.approximation import low_rank, rsvd
from lrjax.sketching.dense import GaussianSketch, RademacherSketch
from lrjax.sketching.dpp import projection_dpp, repeated_dpp, volume_rescaled_sample
from lrjax.sketching.products import sampled_matmul
from lrjax.sketching.regression.coordinatewise import (
    coordinatewise_lstsq,
    coordinatewise_ratio,
    coordinatewise_sketch_size,
)
from lrjax.sketching.regression.least_squares import LstsqResult, lstsq
from lrjax.sketching.regression.lp import LpResult, lp_regression
from lrjax.sketching.regression.streaming import lstsq_blocks
from lrjax.sketching.row_sampling import (
    RowSample,
    leverage_scores,
    lewis_weights,
    lp_sensitivities,
    mixed_scores,
    root_leverage_scores,
)
from lrjax.sketching.sparse import CountSketch, SparseSignSketch, VerySparseSketch
from lrjax.sketching.tensor import TensorSRHT
from lrjax.sketching.transforms import SRDCT, SRHT, BlockSRHT, PooledSketch

__all__ = [
    "SRDCT",
    "SRHT",
    "BlockSRHT",
    "CountSketch",
    "GaussianSketch",
    "LpResult",
    "LstsqResult",
    "PooledSketch",
    "RademacherSketch",
    "RowSample",
    "SparseSignSketch",
    "TensorSRHT",
    "VerySparseSketch",
    "coordinatewise_lstsq",
    "coordinatewise_ratio",
    "coordinatewise_sketch_size",
    "leverage_scores",
    "lewis_weights",
    "low_rank",
    "lp_regression",
    "lp_sensitivities",
    "lstsq",
    "lstsq_blocks",
    "mixed_scores",
    "projection_dpp",
    "repeated_dpp",
    "root_leverage_scores",
    "rsvd",
    "sampled_matmul",
    "volume_rescaled_sample",
]
