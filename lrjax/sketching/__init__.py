"""Random sketches, and least squares by way of them."""

from lrjax.sketching.dpp import projection_dpp, repeated_dpp, volume_rescaled_sample
from lrjax.sketching.least_squares import LstsqResult, lstsq
from lrjax.sketching.lp_regression import LpResult, lp_regression
from lrjax.sketching.row_sampling import (
    RowSample,
    leverage_scores,
    lewis_weights,
    lp_sensitivities,
    mixed_scores,
    root_leverage_scores,
)
from lrjax.sketching.sketches import GaussianSketch, SparseSignSketch

__all__ = [
    "GaussianSketch",
    "LpResult",
    "LstsqResult",
    "RowSample",
    "SparseSignSketch",
    "leverage_scores",
    "lewis_weights",
    "lp_regression",
    "lp_sensitivities",
    "lstsq",
    "mixed_scores",
    "projection_dpp",
    "repeated_dpp",
    "root_leverage_scores",
    "volume_rescaled_sample",
]
