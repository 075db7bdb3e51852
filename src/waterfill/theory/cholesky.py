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
    """Replace a matrix by its factor: `A = R^T R`, R upper triangular.

    It takes no room beside the matrix but for some rows.

    Args:
        matrix: A, contiguous [n, n]; only what is on and above the diagonal counts.

    Returns:
        Whether it has a factor; where it has none, what is left in it has no meaning.

    Source: Golub and Van Loan 2013, "Matrix Computations", section 4.2.9.

    Example:
        >>> matrix = np.array([[4.0, 2.0], [2.0, 10.0]])
        >>> factor_in_place(matrix), matrix.tolist()
        (True, [[2.0, 1.0], [0.0, 3.0]])
    """
    whole = torch.from_numpy(matrix)
    for start in range(0, len(whole), BLOCK):
        stop = min(start + BLOCK, len(whole))
        rows = whole[start:stop, start:]
        if start:
            rows.addmm_(whole[:start, start:stop].T, whole[:start, start:], alpha=-1)
        root, wrong = torch.linalg.cholesky_ex(rows[:, : stop - start], upper=True)
        if wrong:
            return False
        rows[:, : stop - start] = root
        if stop < len(whole):
            rows[:, stop - start :] = torch.linalg.solve_triangular(root.T, rows[:, stop - start :], upper=False)
    whole.triu_()
    return True
