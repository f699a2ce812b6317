"""Random sketches, and least squares by way of them."""

from lrjax.sketching.coordinatewise import coordinatewise_lstsq, coordinatewise_ratio, coordinatewise_sketch_size
from lrjax.sketching.least_squares import LstsqResult, lstsq
from lrjax.sketching.sketches import GaussianSketch, RademacherSketch
from lrjax.sketching.sparse import CountSketch, SparseSignSketch, VerySparseSketch
from lrjax.sketching.streaming import lstsq_blocks
from lrjax.sketching.tensor import TensorSRHT
from lrjax.sketching.transforms import SRDCT, SRHT, BlockSRHT, PooledSketch

__all__ = [
    "SRDCT",
    "SRHT",
    "BlockSRHT",
    "CountSketch",
    "GaussianSketch",
    "LstsqResult",
    "PooledSketch",
    "RademacherSketch",
    "SparseSignSketch",
    "TensorSRHT",
    "VerySparseSketch",
    "coordinatewise_lstsq",
    "coordinatewise_ratio",
    "coordinatewise_sketch_size",
    "lstsq",
    "lstsq_blocks",
]
