"""Least squares and l_p regression: `min ||a x - b||`."""
