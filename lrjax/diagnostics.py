"""What can be known about a problem before it is solved."""

from typing import Any

import numpy as np

from lrjax._checks import check_count


def undetermined(rows: Any, cols: Any, shape: tuple[int, int], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns that a mask of entries leaves open, whatever the solver, for a generic matrix of this rank.

    A row with exactly `rank` entries is determined once the columns are known, and tells nothing about them. So such
    rows are taken away with their entries, then such columns, and so on; a row or column that is then left with fewer
    than `rank` entries has several values that all fit. With few samples this is what ends recovery: one row and one
    column with `rank` entries each that share an entry are enough. Which of the two is named is arbitrary.

    The condition is necessary, not sufficient: a mask that passes may still leave a matrix open. Runs on the host,
    in a few passes over the entries.

    Args:
        rows: `(m,)` integer rows of the entries, 0-based, each entry once.
        cols: `(m,)` integer columns.
        shape: `(n1, n2)`.
        rank: rank of the matrix.

    Returns:
        Booleans `(n1,)` and `(n2,)`.

    Raises:
        ValueError: entries outside of the matrix, or a rank that is not a positive integer.

    Examples:
        Five entries of a 3 x 3 matrix of rank one. The second mask says nothing of its last column.

        >>> import lrjax as lr
        >>> rows, cols = lr.diagnostics.undetermined([0, 0, 1, 1, 2], [0, 1, 0, 2, 1], (3, 3), rank=1)
        >>> bool(rows.any() or cols.any())
        False
        >>> rows, cols = lr.diagnostics.undetermined([0, 0, 1, 1, 2], [0, 1, 0, 1, 1], (3, 3), rank=1)
        >>> cols.tolist()
        [False, False, True]
    """
    rank = check_count("rank", rank)
    index = [np.asarray(rows), np.asarray(cols)]
    for name, values, size in zip(("rows", "cols"), index, shape, strict=True):
        if values.ndim != 1 or values.shape != index[0].shape or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} has shape {values.shape} and dtype {values.dtype}; expected integers (m,), alike")
        if values.size and not 0 <= values.min() <= values.max() < size:
            raise ValueError(f"{name} reaches from {values.min()} to {values.max()}; expected 0 to {size - 1}")
    alive, bad = [np.ones(n, bool) for n in shape], [np.zeros(n, bool) for n in shape]
    side, idle, free = 0, 0, 0
    while idle < 2:
        count = np.bincount(index[side], minlength=shape[side])
        short = alive[side] & (count < rank)
        bad[side] |= short
        free += int(np.sum(rank - count[short]))
        gone = alive[side] & (count <= rank)
        alive[side] &= ~gone
        stay = ~gone[index[side]]
        index = [values[stay] for values in index]
        side, idle = 1 - side, 0 if gone.any() else idle + 1
    # Factors are known up to an invertible matrix. With everything taken away it is that freedom that was met last.
    if not any(np.any(left) for left in alive) and free == rank**2:
        return np.zeros(shape[0], bool), np.zeros(shape[1], bool)
    return bad[0], bad[1]
