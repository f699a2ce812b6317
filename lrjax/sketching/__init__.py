"""Random sketches, and least squares by way of them."""

from lrjax.sketching.least_squares import LstsqResult, lstsq
from lrjax.sketching.low_rank import low_rank, rsvd
from lrjax.sketching.sampled_matmul import sampled_matmul
from lrjax.sketching.sketches import GaussianSketch, SparseSignSketch

__all__ = ["GaussianSketch", "LstsqResult", "SparseSignSketch", "low_rank", "lstsq", "rsvd", "sampled_matmul"]
