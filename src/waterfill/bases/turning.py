"""Values to coefficients and back: the way back gives the same bits on every machine (docs/format.md)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waterfill.bases.rotations import KEPT, TURN, PlaneRotations, WholeMatrix, cosines_and_sines, parts
from waterfill.records import CHANNELS, OUT, Floats, Layout, Turn


def coefficients(matrix: NDArray[Any], basis: Turn, layout: Layout) -> Floats:
    """The coefficients of a matrix [out, in] in a basis, float32: only the way back has to be the same everywhere."""
    found = np.array(matrix, np.float32, order="C")  # of which parts are views, in which it is turned
    for part in parts(basis, layout):
        view = _blocks(_along(found, basis, layout), part)
        vectors = _vectors(view)
        _rejoin(vectors @ matrix_of(part).T if part.is_dense else _rotated(vectors, part, back=False), view)
    return found


def turn_back(matrix: Floats, basis: Turn, layout: Layout) -> None:
    """Put values in the place of coefficients in a matrix [out, in], in place; 0 where sums of infinities are none."""
    for part in parts(basis, layout):
        view = _blocks(_along(matrix, basis, layout), part)
        vectors = _vectors(view)
        _rejoin(_multiplied(vectors, part) if part.is_dense else _rotated(vectors, part, back=True), view)


def loops() -> Any:
    """The module with the loops over vectors: kernels, or where numba is not installed operations on arrays."""
    from waterfill.compiled import HAS_NUMBA

    if HAS_NUMBA:
        from waterfill.bases import kernels

        return kernels
    from waterfill.bases import arrays

    return arrays


def _vectors(view: Floats) -> Floats:
    """The vectors [vectors, length] of the blocks of a part, one after the other; the view itself where they are so."""
    return np.ascontiguousarray(view.swapaxes(2, 3)).reshape(-1, view.shape[2])


def _rejoin(vectors: Floats, view: Floats) -> None:
    """Put vectors back into the blocks that they come from."""
    if not np.may_share_memory(vectors, view):
        before, count, length, after = view.shape
        view[...] = vectors.reshape(before, count, after, length).swapaxes(2, 3)


def _blocks(along: NDArray[Any], part: PlaneRotations) -> NDArray[Any]:
    """A view [before, block, coordinate, after] of the blocks of a part in values [before, axis, after]."""
    before, _, after = along.shape
    size = part.count * part.length
    return along[:, part.start : part.start + size].reshape(before, part.count, part.length, after)


def _multiplied(vectors: Floats, part: PlaneRotations) -> Floats:
    """Turn vectors [vectors, length] back in place, by the matrix of many rotations."""
    loops().multiply_vectors(vectors, matrix_of(part))
    return vectors


def _rotated(vectors: Floats, part: PlaneRotations, *, back: bool) -> Floats:
    """Turn vectors [vectors, length] in place, rotation by rotation."""
    order = slice(None, None, -1 if back else 1)
    firsts, seconds, angles = (np.ascontiguousarray(each[order]) for each in (part.firsts, part.seconds, part.angles))
    cosines, sines = (each[(-angles if back else angles) % TURN] for each in cosines_and_sines())
    loops().rotate_vectors(vectors, firsts, seconds, cosines, sines)
    return vectors


def _along(values: NDArray[Any], basis: Turn, layout: Layout) -> NDArray[Any]:
    """A view [before, axis, after] of the matrix [out, in] along the axis of a basis."""
    out, channels, taps = layout.axes
    if basis.axis == OUT:
        return values.reshape(1, out, channels * taps)
    if basis.axis == CHANNELS:
        return values.reshape(out, channels, taps)
    return values.reshape(out * channels, taps, 1)


def turned_diagonal(diagonal: NDArray[Any], basis: Turn, layout: Layout) -> NDArray[Any]:
    """The diagonal [out, in] that a diagonal matrix over the weights has in a basis, in its precision."""
    found = np.array(diagonal, order="C")
    for part in parts(basis, layout):
        view = _blocks(_along(found, basis, layout), part)
        view[...] = np.square(matrix_of(part)) @ view
    return found


def turned_both(matrix: NDArray[Any], basis: Turn, layout: Layout) -> NDArray[Any]:
    """A symmetric matrix in a basis, in its precision: over the rows where it is one of rows, else over the columns.

    Args:
        matrix: [out, out] or [in, in].
        basis: of `OUT`, or of another axis.
        layout: of the weights.
    """
    found = matrix.copy()
    for _ in range(2):
        for part in parts(basis, layout):
            view = _blocks(_along_columns(found, basis, layout), part)
            view[...] = matrix_of(part).astype(found.dtype) @ view
        found = np.ascontiguousarray(found.T)
    return found


@functools.lru_cache(KEPT)
def matrix_of(part: PlaneRotations) -> Floats:
    """The orthonormal matrix [coefficients, values] of the rotations of a part."""
    if isinstance(part, WholeMatrix):
        return part.matrix
    found = np.eye(part.length, dtype=np.float32)
    return np.ascontiguousarray(_rotated(found, part, back=False).T)


def _along_columns(matrix: NDArray[Any], basis: Turn, layout: Layout) -> NDArray[Any]:
    """A view [before, axis, after] of a square matrix whose rows are along the axis of a basis."""
    out, channels, taps = layout.axes
    if basis.axis == OUT:
        return matrix.reshape(1, out, out)
    if basis.axis == CHANNELS:
        return matrix.reshape(1, channels, taps * channels * taps)
    return matrix.reshape(channels, taps, channels * taps)
