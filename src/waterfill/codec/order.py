"""The order in which a stream has the elements of a matrix: along its rows, or down its columns.

Either way there are *lines*, one after the other. Element n of the stream is in the line `n // length`; the lines are
the rows of the matrix, or with `down` those of its transpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waterfill.loaded import has_kernels
from waterfill.records import AxisScales, Floats, Layout, Symbols

Sums = NDArray[np.int32]

BLOCK = 1 << 16
"""Elements that NumPy looks up at a time."""


def elements(matrix: NDArray[Any], start: int, stop: int, down: bool = False) -> NDArray[Any]:
    """The elements start..stop of a matrix [out, in] in the order of the stream, [stop - start]."""
    lines = matrix.T if down else matrix
    length = lines.shape[1]
    first, last = (start // length, -(-stop // length)) if length else (0, 0)
    some = np.ascontiguousarray(lines[first:last]).reshape(-1)
    return some[start - first * length : stop - first * length]


def place(part: NDArray[Any], matrix: NDArray[Any], start: int, down: bool = False) -> None:
    """Put elements [n] that stand at `start` of the stream where they belong in the matrix [out, in]."""
    lines = matrix.T if down else matrix
    length = lines.shape[1]
    if not part.size:
        return
    line, at = divmod(start, length)
    head = min(-start % length, part.size)
    whole, tail = divmod(part.size - head, length)
    if head:
        lines[line, at : at + head] = part[:head]
        line += 1
    lines[line : line + whole] = part[head : head + whole * length].reshape(whole, length)
    if tail:
        lines[line + whole, :tail] = part[part.size - tail :]


def line_sums(layout: Layout, scales: AxisScales, down: bool = False) -> tuple[Sums, Sums]:
    """What `rows[i] + channels[c] + taps[t]` is the sum of: a part for every line, and one for every place in a line.

    Missing scales count as zero.
    """
    lengths = layout.axes
    rows, channels, taps = (
        np.zeros(length, np.int32) if scale is None else scale.astype(np.int32)
        for scale, length in zip(scales, lengths, strict=True)
    )
    columns = (channels[:, None] + taps).reshape(-1)
    return (columns, rows) if down else (rows, columns)


@dataclass(frozen=True, eq=False)
class Places:
    """The sums of scales of some elements of a stream, as rows of a table.

    Attributes:
        first: number of the first line.
        start: number of the first element in the lines from there.
        size: how many elements there are.
        lines: int32, the part of every line from the first to that of the last element.
        within: int32, the part of every place in a line; row 0 has the lowest sum.
        totals: int64 [rows], the sums.
    """

    first: int
    start: int
    size: int
    lines: Sums
    within: Sums
    totals: NDArray[np.int64]

    def look_up(self, table: NDArray[Any]) -> NDArray[Any]:
        """The entry [size] of every element in a table [rows]."""
        if not has_kernels():
            return self._rows(table)
        from waterfill.codec import order_kernels

        found = np.empty(self.size, table.dtype)
        order_kernels.look_up(self.lines, self.within, self.start, table, found)
        return found

    def scaled(self, symbols: Symbols, lowest: int, levels: Floats, steps: Floats) -> Floats:
        """The product [size] of `levels[symbol - lowest]` and of an entry of a table [rows]."""
        if not has_kernels():
            found: Floats = levels[symbols - np.int32(lowest)] * self._rows(steps)
            return found
        from waterfill.codec import order_kernels

        values = np.empty(self.size, np.float32)
        order_kernels.scale_lines(self.lines, self.within, self.start, symbols, lowest, levels, steps, values)
        return values

    def scale_down(self, matrix: Floats, symbols: Symbols, lowest: int, levels: Floats, steps: Floats) -> None:
        """The same of a stream down the columns of a matrix [out, in], put there at once."""
        if not has_kernels():
            at = self.first * self.within.size + self.start
            place(self.scaled(symbols, lowest, levels, steps), matrix, at, down=True)
            return
        from waterfill.codec import order_kernels

        known = self.lines, self.within, self.start, symbols, lowest, levels, steps
        order_kernels.scale_columns(*known, self.first, matrix)

    def _rows(self, table: NDArray[Any]) -> NDArray[Any]:
        """The entries of `look_up` by NumPy alone, some lines at a time."""
        found = np.empty(self.lines.size * self.within.size, table.dtype)
        lines = found.reshape(self.lines.size, self.within.size)
        step = max(1, BLOCK // max(1, self.within.size))
        for at in range(0, len(lines), step):
            lines[at : at + step] = table[np.add.outer(self.lines[at : at + step], self.within)]
        return found[self.start : self.start + self.size]


def places(layout: Layout, scales: AxisScales, start: int, stop: int, down: bool = False) -> Places:
    """The sums `rows[i] + channels[c] + taps[t]` of the elements start..stop of the stream."""
    if start == stop:  # a matrix without elements may have an axis too long for an array
        none = np.zeros(0, np.int32)
        return Places(0, 0, 0, none, none, np.zeros(1, np.int64))
    lines, within = line_sums(layout, scales, down)
    first, last = start // within.size, -(-stop // within.size)
    some = lines[first:last]
    low, high = int(some.min()) + int(within.min()), int(some.max()) + int(within.max())
    return Places(first, start - first * within.size, stop - start, some, within - low, np.arange(low, high + 1))


def axis_sum(layout: Layout, scales: AxisScales, start: int, stop: int, down: bool = False) -> Sums:
    """`rows[i] + channels[c] + taps[t]` of the elements start..stop of the stream, int32."""
    found = places(layout, scales, start, stop, down)
    sums: Sums = found.look_up(found.totals.astype(np.int32))
    return sums
