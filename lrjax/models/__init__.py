"""Models beyond one low-rank matrix, solved by the same parts."""
