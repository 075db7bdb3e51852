"""What the kernels of bases do, for a reader without numba: the same operations, on all vectors at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from waterfill.records import Floats


def rotate_vectors(values: Floats, firsts: NDArray[Any], seconds: NDArray[Any], cosines: Floats, sines: Floats) -> None:
    """Rotate pairs of coordinates of vectors, one after the other; see `kernels.rotate_vectors`."""
    tile = np.ascontiguousarray(values.T)
    with np.errstate(all="ignore"):
        for p, q, c, s in zip(firsts, seconds, cosines.astype(float), sines.astype(float), strict=True):
            x, y = tile[p].astype(float), tile[q].astype(float)
            tile[p], tile[q] = c * x + s * y, c * y - s * x
    values[...] = np.where(np.isnan(tile), np.float32(0), tile).T


def multiply_vectors(values: Floats, matrix: Floats) -> None:
    """Multiply vectors with a matrix; see `kernels.multiply_vectors`."""
    vectors, factors = np.ascontiguousarray(values.T, float), matrix.astype(float)
    total = np.zeros_like(vectors)
    with np.errstate(all="ignore"):
        for i, coordinates in enumerate(vectors):
            total += factors[i, :, None] * coordinates
        values[...] = np.where(np.isnan(total), 0, total).astype(np.float32).T
