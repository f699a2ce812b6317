"""What a mask can determine: against the rank of the Jacobian of the factors, which is exact for generic matrices."""

import numpy as np
import pytest

import lrjax as lr


def open_by_rank(rows, cols, shape, rank, rng):
    """Whether the entries of a random matrix leave a direction of its factors free beyond the gauge."""
    left, right = (rng.standard_normal((n, rank)) for n in shape)
    jacobian = np.zeros((rows.size, *(sum(shape), rank)))
    at = np.arange(rows.size)
    jacobian[at, rows], jacobian[at, shape[0] + cols] = right[cols], left[rows]
    return np.linalg.matrix_rank(jacobian.reshape(rows.size, -1)) < rank * (sum(shape) - rank)


@pytest.mark.parametrize(
    ("shape", "rank", "low", "high"), [((12, 10), 2, 38, 60), ((6, 5), 1, 8, 20), ((9, 9), 3, 40, 70)]
)
def test_undetermined_is_what_the_jacobian_says(shape, rank, low, high):
    rng, missed, found = np.random.default_rng(0), 0, 0
    for _ in range(150):
        codes = rng.choice(shape[0] * shape[1], rng.integers(low, high), replace=False)
        rows, cols = np.divmod(codes, shape[1])
        flagged = any(side.any() for side in lr.diagnostics.undetermined(rows, cols, shape, rank))
        truly = open_by_rank(rows, cols, shape, rank, rng)
        assert truly or not flagged  # what is reported is so
        missed, found = missed + (truly and not flagged), found + flagged
    assert found > 20
    assert missed <= 3  # the condition is only necessary


def test_undetermined_names_a_shared_entry():
    rng = np.random.default_rng(1)
    mask = rng.random((30, 20)) < 0.7
    mask[4], mask[:, 7] = False, False
    mask[4, [7, 1]] = mask[[4, 9], 7] = True
    rows, cols = np.nonzero(mask)
    open_rows, open_cols = lr.diagnostics.undetermined(rows, cols, mask.shape, 2)
    assert open_rows.sum() + open_cols.sum() == 1
    assert open_rows[4] or open_cols[7]
    mask[10, 7] = True
    assert not np.any(lr.diagnostics.undetermined(*np.nonzero(mask), mask.shape, 2)[1])


def test_undetermined_refuses_what_is_outside():
    with pytest.raises(ValueError, match=r"cols must lie in \[0, 5\); got values from 0 to 5"):
        lr.diagnostics.undetermined([0, 1], [0, 5], (3, 5), 1)
    with pytest.raises(ValueError, match="rank must be an integer"):
        lr.diagnostics.undetermined([0, 1], [0, 4], (3, 5), 0)
    with pytest.raises(ValueError, match="rows and cols must have one shape"):
        lr.diagnostics.undetermined([[0, 1]], [0, 4], (3, 5), 1)
