"""Random sketches."""

from lrjax.sketching.sketches import GaussianSketch, SparseSignSketch

__all__ = ["GaussianSketch", "SparseSignSketch"]
