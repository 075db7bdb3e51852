"""Where decoded pieces of a tensor go: into a matrix of float32, or straight into the tensor in its own type.

A matrix beside the tensor would be four bytes a value more, written and read again. So pieces are rounded while they
are in the cache, by the thread that decoded them, where the tensor is its matrix or the transpose.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from waterfill.bases.turning import turn_back
from waterfill.codec.lanes import LaneSymbols
from waterfill.codec.pieces import Part
from waterfill.errors import UsageError
from waterfill.models.state_dict import largest_value
from waterfill.reconstruct import fill, some_lines
from waterfill.records import Basis, Coded, Entry, Floats, Layout, Rule
from waterfill.targets.device import OnDevice

PART = 1 << 18
"""Values that are reconstructed at a time, so that they are still in the cache when they are rounded."""

MAPPED = 1 << 20
"""Bytes from which on a tensor is a mapping of its own."""

BAND = 1 << 15
"""Values of a copy up to which PyTorch takes no threads of its own; those that decode are enough."""


class Target(Protocol):
    """What pieces of one tensor go into; several threads may put pieces that do not overlap."""

    def put(self, symbols: Part, rule: Rule, start: int, down: bool) -> None:
        """Reconstruct the symbols [n] that stand at `start` of the stream."""

    def finished(self) -> Floats | Tensor:
        """What the tensor is made from when all pieces are there: its matrix [out, in], or the tensor itself."""


class FloatMatrix:
    """The matrix of a tensor, which may be in another basis."""

    def __init__(self, layout: Layout, basis: Basis | None) -> None:
        self._layout, self._basis = layout, basis
        self._matrix: Floats = empty((layout.axes[0], layout.numel // layout.axes[0]), torch.float32).numpy()

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

    def __init__(self, tensor: Tensor, layout: Layout) -> None:
        self._tensor = tensor
        self._matrix = tensor.mT if layout.transposed else tensor.flatten(1)
        self._layout, self._limit = layout, largest_value(tensor.dtype)

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
        lines, matrix = (found.T, self._matrix.mT) if down else (found, self._matrix)
        first, at = divmod(start, lines.shape[1])
        for some, places in rectangles(at, symbols.size, lines.shape[1]):
            self._round(lines[some, places], matrix[first:][some, places])

    def _round(self, values: Floats, into: Tensor) -> None:
        if not (-self._limit <= values.min() and values.max() <= self._limit):
            np.clip(values, -self._limit, self._limit, out=values)
        source = torch.from_numpy(values)
        if source.stride(0) < source.stride(1):  # the lines are columns
            source, into = source.mT, into.mT
        step = max(1, BAND // source.shape[1])
        with torch.no_grad():
            for row in range(0, len(source), step):
                into[row : row + step].copy_(source[row : row + step])

    def finished(self) -> Tensor:
        """The tensor."""
        return self._tensor


def target_of(entry: Entry, layout: Layout, basis: Basis | None, into: Tensor | None = None) -> Target:
    """What the pieces of a coded tensor go into: itself where it has two axes or more, and another type or order.

    Args:
        entry: the tensor.
        layout: how it is read as a matrix.
        basis: of that.
        into: a contiguous tensor to fill, on any device, where it is filled itself; by default a new one.

    Raises:
        UsageError: that tensor has another shape or type, or is not contiguous.
    """
    is_view = len(layout.shape) == 2 if layout.transposed else len(layout.shape) >= 2
    is_matrix = entry.dtype == "float32" and not layout.transposed
    is_plain = isinstance(entry.origin, Coded) and basis is None and layout.groups == 1 and is_view
    if is_plain and into is not None:
        check_place(entry, into)
    if is_plain and into is not None and is_elsewhere(into):
        return OnDevice(into, layout)
    if is_plain and not is_matrix:
        return InItsType(empty(entry.shape, getattr(torch, entry.dtype)) if into is None else into, layout)
    return FloatMatrix(layout, basis)


def check_place(entry: Entry, into: Tensor) -> None:
    """Check that a tensor can be filled with the values of an entry.

    Raises:
        UsageError: it cannot.
    """
    if tuple(into.shape) == entry.shape and into.dtype == getattr(torch, entry.dtype) and into.is_contiguous():
        return
    found = f"{into.dtype} {list(into.shape)}, {'' if into.is_contiguous() else 'not '}contiguous".removeprefix(
        "torch."
    )
    raise UsageError(
        f"The tensor to fill with {entry.name!r} is {found}; expected {entry.dtype} {list(entry.shape)}, contiguous. "
        "Give another one, or none."
    )


def is_elsewhere(tensor: Tensor) -> bool:
    """Whether a tensor is on a device, and not on the processor."""
    return tensor.device.type != "cpu"


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """A tensor without values, on a device or on the processor; there a large one is a mapping of its own.

    The system has that back as soon as nobody has the tensor. What is freed on a heap stays with the process: blocks
    that come and go would leave there several times what they take.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < MAPPED or device is not None:
        return torch.empty(shape, dtype=dtype, device=device or "cpu")
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    try:
        mapping = mmap.mmap(-1, size, **private)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"a tensor {list(shape)} of {size} bytes does not fit into memory") from error
    with contextlib.suppress(AttributeError, OSError):  # large pages are of Linux, and may be turned off
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype).reshape(shape)


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
