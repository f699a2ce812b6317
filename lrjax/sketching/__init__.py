"""Random sketches, and least squares by way of them."""

from lrjax.sketching.least_squares import LstsqResult, lstsq
from lrjax.sketching.sketches import GaussianSketch, SparseSignSketch

__all__ = ["GaussianSketch", "LstsqResult", "SparseSignSketch", "lstsq"]
