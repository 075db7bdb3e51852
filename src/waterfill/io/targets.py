"""Where decoded pieces of a tensor go: into a matrix of float32, or straight into the tensor in its own type.

A matrix beside the tensor would be four bytes a value more, written and read again. So pieces are rounded while they
are in the cache, by the thread that decoded them, where the tensor is its matrix or the transpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from waterfill.bases.turning import turn_back
from waterfill.codec.lanes import LaneSymbols
from waterfill.codec.pieces import Part
from waterfill.errors import UsageError
from waterfill.io.arrays import LARGEST, TypedArray, empty, round_into
from waterfill.reconstruct import fill, some_lines
from waterfill.records import Basis, Coded, Entry, Floats, Layout, Rule

PART = 1 << 18
"""Values that are reconstructed at a time, so that they are still in the cache when they are rounded."""


class Target(Protocol):
    """What pieces of one tensor go into; several threads may put pieces that do not overlap."""

    def put(self, symbols: Part, rule: Rule, start: int, down: bool) -> None:
        """Reconstruct the symbols [n] that stand at `start` of the stream."""

    def finished(self) -> Any:
        """What the tensor is made from when all pieces are there: its matrix [out, in], or the tensor itself."""


class FloatMatrix:
    """The matrix of a tensor, which may be in another basis."""

    def __init__(self, layout: Layout, basis: Basis | None) -> None:
        self._layout, self._basis = layout, basis
        self._matrix: Floats = empty((layout.axes[0], layout.numel // layout.axes[0]), "float32").array

    def put(self, symbols: Part, rule: Rule, start: int, down: bool) -> None:
        """Put values where they belong."""
        fill(self._matrix, symbols, rule, self._layout, start, down)

    def finished(self) -> Floats:
        """The matrix in the basis of the tensor."""
        if self._basis is not None:
            turn_back(self._matrix, self._basis, self._layout)
        return self._matrix


class InItsType:
    """A tensor whose matrix is a view of it."""

    def __init__(self, place: TypedArray, layout: Layout, tensor: object = None) -> None:
        """Fill an array.

        Args:
            place: contiguous, of the shape and type of the tensor.
            layout: of that.
            tensor: what the array is the memory of, where it is of another library.
        """
        self._place, self._tensor, self._layout = place, tensor, layout
        flat = place.array.reshape(len(place.array), -1)
        self._matrix = flat.T if layout.transposed else flat
        self._limit = LARGEST[place.dtype]

    def put(self, symbols: Part, rule: Rule, start: int, down: bool) -> None:
        """Round values to the type, some lines at a time; what is too large becomes the largest value.

        Lines of lanes are made together.
        """
        if isinstance(symbols, LaneSymbols):
            self._put(symbols, rule, start, down)
            return
        length = len(self._matrix) if down else self._matrix.shape[1]
        step = max(1, PART // length) * length
        for at in range(0, symbols.size, step):
            self._put(symbols[at : at + step], rule, start + at, down)

    def _put(self, symbols: Part, rule: Rule, start: int, down: bool) -> None:
        found = some_lines(symbols, rule, self._layout, start, down)
        lines, matrix = (found.T, self._matrix.T) if down else (found, self._matrix)
        first, at = divmod(start, lines.shape[1])
        for some, places in rectangles(at, symbols.size, lines.shape[1]):
            self._round(lines[some, places], matrix[first:][some, places])

    def _round(self, values: Floats, into: np.ndarray[Any, Any]) -> None:
        if not (-self._limit <= values.min() and values.max() <= self._limit):
            np.clip(values, -self._limit, self._limit, out=values)
        round_into(values, into, self._place.dtype)

    def finished(self) -> Any:
        """The tensor."""
        return self._place if self._tensor is None else self._tensor


def is_plain(entry: Entry, layout: Layout, basis: Basis | None) -> bool:
    """Whether the matrix of a coded tensor is a view of it, or of its transpose: pieces can go where they belong."""
    is_view = len(layout.shape) == 2 if layout.transposed else len(layout.shape) >= 2
    return isinstance(entry.origin, Coded) and basis is None and layout.groups == 1 and is_view


def target_of(
    entry: Entry, layout: Layout, basis: Basis | None, into: TypedArray | None = None, tensor: object = None
) -> Target:
    """What the pieces of a coded tensor go into: itself where it has two axes or more, and another type or order.

    Args:
        entry: the tensor.
        layout: how it is read as a matrix.
        basis: of that.
        into: a contiguous array to fill where the tensor is filled itself; by default a new one.
        tensor: what that is the memory of, where it is of another library.
    """
    is_matrix = entry.dtype == "float32" and not layout.transposed
    if is_plain(entry, layout, basis) and (into is not None or not is_matrix):
        return InItsType(empty(entry.shape, entry.dtype) if into is None else into, layout, tensor)
    return FloatMatrix(layout, basis)


def check_place(entry: Entry, dtype: str, shape: tuple[int, ...], is_contiguous: bool) -> None:
    """Check that a tensor can be filled with the values of an entry.

    Raises:
        UsageError: it cannot.
    """
    if shape == entry.shape and dtype == entry.dtype and is_contiguous:
        return
    raise UsageError(
        f"The tensor to fill with {entry.name!r} is {dtype} {list(shape)}, "
        f"{'' if is_contiguous else 'not '}contiguous; expected {entry.dtype} {list(entry.shape)}, contiguous. Give "
        "another one, or none."
    )


def rectangles(at: int, size: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Lines and places of some elements that follow each other from the place `at` of line 0 on.

    Args:
        at: below the length.
        size: how many elements.
        length: of a line.
    """
    line = 0
    if at:
        many = min(length - at, size)
        yield slice(0, 1), slice(at, at + many)
        line, size = 1, size - many
    whole, rest = divmod(size, length)
    if whole:
        yield slice(line, line + whole), slice(0, length)
    if rest:
        yield slice(line + whole, line + whole + 1), slice(0, rest)
