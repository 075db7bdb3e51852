"""Factors, solutions and eigenvalues of large symmetric matrices, by the processor or on a device.

On a device they are in double precision, and only the results come back. The processor does what LAPACK does, and small
matrices, which are done before a device has begun.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64] | NDArray[np.float32]

SMALL = 512
"""Matrices of fewer columns are left to the processor."""

BLOCK = 256
"""Rows that are found at a time: nearly all work is in products of so many rows."""


def factor_in_place(matrix: Matrix, device: str | None = None) -> bool:
    """Replace a matrix by its factor from the last row on: `A = F^T F`, F lower triangular.

    The square of `F_jj` is what is left of coordinate j when those after it are known. It takes no room beside the
    matrix but for some rows.

    Args:
        matrix: A, contiguous [n, n]; only what is on and below the diagonal counts.
        device: where it is factored; None for the processor.

    Returns:
        Whether it has a factor; where it has none, what is left in it has no meaning.

    Source: Golub and Van Loan 2013, "Matrix Computations", section 4.2.9, with all coordinates in reverse.

    Example:
        >>> matrix = np.array([[10.0, 0.0], [2.0, 4.0]])
        >>> factor_in_place(matrix), matrix.tolist()
        (True, [[3.0, 0.0], [1.0, 2.0]])
    """
    whole = torch.from_numpy(matrix)
    if device is not None and len(whole) >= SMALL:
        found, wrong = torch.linalg.cholesky_ex(whole.to(device, torch.float64).flip(0, 1), upper=True)
        whole.copy_(found.flip(0, 1))
        return not bool(wrong) and bool(whole.diagonal().isfinite().all())
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
        if start:  # a product with the inverse of so few rows is faster than solving for as many columns
            inverse = torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype), upper=False)
            rows[:, :start] = inverse.T @ rows[:, :start]
    whole.tril_()
    return True


def solved_rows(factor: Matrix, rows: Matrix, device: str | None = None) -> Matrix:
    """Solve `z F = w` for all rows w by the factor F of `A = F^T F`: the half of a solution of `z' A = w`.

    Args:
        factor: F, lower triangular [n, n], by `factor_in_place`.
        rows: w, [rows, n].
        device: where it is solved; None for the processor.

    Returns:
        The rows z [rows, n], in the precision of the factor.
    """
    lower = torch.from_numpy(factor)
    wanted = torch.from_numpy(rows).to(lower.dtype)
    if device is not None and len(lower) >= SMALL:
        found = _solved(lower.to(device, torch.float64), wanted.to(device, torch.float64)).to(lower)
    else:
        found = _solved(lower, wanted)
    solved: Matrix = found.numpy()
    return solved


def _solved(lower: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.linalg.solve_triangular(lower, rows, upper=False, left=False)
    return found


def eigenvalues(matrices: Matrix, device: str | None = None) -> Matrix:
    """Eigenvalues of symmetric matrices, in rising order.

    Args:
        matrices: [groups, n, n].
        device: where they are found; None for the processor.

    Returns:
        [groups, n], in the precision of the matrices.
    """
    if device is not None and matrices.shape[-1] >= SMALL:
        found = torch.linalg.eigvalsh(torch.from_numpy(matrices).to(device, torch.float64))
        values: Matrix = found.cpu().numpy().astype(matrices.dtype)
    else:
        values = np.linalg.eigvalsh(matrices)
    return values
