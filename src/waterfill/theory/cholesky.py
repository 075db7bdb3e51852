"""Cholesky decomposition of large matrices in place, by products of blocks."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64] | NDArray[np.float32]

BLOCK = 256
"""Rows that are found at a time: nearly all work is in products of so many rows."""


def factor_in_place(matrix: Matrix) -> bool:
    """Replace a matrix by its factor from the last row on: `A = F^T F`, F lower triangular.

    The square of `F_jj` is what is left of coordinate j when those after it are known. It takes no room beside the
    matrix but for some rows.

    Args:
        matrix: A, contiguous [n, n]; only what is on and below the diagonal counts.

    Returns:
        Whether it has a factor; where it has none, what is left in it has no meaning.

    Source: Golub and Van Loan 2013, "Matrix Computations", section 4.2.9, with all coordinates in reverse.

    Example:
        >>> matrix = np.array([[10.0, 0.0], [2.0, 4.0]])
        >>> factor_in_place(matrix), matrix.tolist()
        (True, [[3.0, 0.0], [1.0, 2.0]])
    """
    whole = torch.from_numpy(matrix)
    for stop in range(len(whole), 0, -BLOCK):
        start = max(0, stop - BLOCK)
        rows = whole[start:stop, :stop]
        if stop < len(whole):
            rows.addmm_(whole[stop:, start:stop].T, whole[stop:, :stop], alpha=-1)
        reverse, wrong = torch.linalg.cholesky_ex(rows[:, start:].flip(0, 1), upper=True)
        if wrong:
            return False
        root = reverse.flip(0, 1)
        rows[:, start:] = root
        if start:
            rows[:, :start] = torch.linalg.solve_triangular(root.T, rows[:, :start], upper=True)
    whole.tril_()
    return True
