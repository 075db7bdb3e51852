"""Sums over the levels of a path; plain arrays in and out, compiled on first use and cached."""

from __future__ import annotations

import numpy as np

from waterfill.compiled import kernel


@kernel
def shortfalls(x, importance, levels):
    """Importance, importance-weighted shortfall `|level| - |x|` of the levels 1, 2, >= 3; float64 [2, 3]."""
    sums = np.zeros((2, 3))
    for i in range(x.size):
        level = np.int64(levels[i])
        if level != 0:
            weight = np.float64(importance[i] if importance.size > 1 else importance[0])
            index = min(abs(level), 3) - 1
            sums[0, index] += weight
            sums[1, index] += weight * (abs(level) - (np.float64(x[i]) if level > 0 else -np.float64(x[i])))
    return sums


@kernel
def squared_error(x, importance, levels, shrink):
    """Sum of `importance * (x - level)^2`, with levels moved as in `branch_costs`."""
    total = 0.0
    for i in range(x.size):
        level = np.int64(levels[i])
        moved = shrink[min(abs(level), 3)]
        error = np.float64(x[i]) - (level - moved if level > 0 else level + moved)
        total += np.float64(importance[i] if importance.size > 1 else importance[0]) * error * error
    return total
