"""Grids of trials: what a sweep runs, where it keeps it, how it comes back. Knows nothing of matrices."""
