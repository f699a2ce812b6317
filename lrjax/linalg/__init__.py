"""Linear algebra that several parts share: batched row solves, Krylov methods, truncated singular values."""
