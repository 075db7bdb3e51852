"""Hot loops over the lines of a stream; plain arrays in and out, compiled on first use and cached.

The element in line l and place p of it has the row `lines[l] + within[p]` of a table; see `order.py`.
"""

from __future__ import annotations

import numpy as np

from waterfill.compiled import kernel, njit

WIDTH, DEPTH, HEIGHT = 128, 512, 16
"""Of so many columns so many rows are computed at a time, and become rows so many at a time."""


@njit(inline="always")
def _flat(within):
    return within.size == 0 or within.min() == within.max()


@kernel
def look_up(lines, within, start, table, found):
    """Fill `found` [n] with the entries of the elements that stand at `start` of the stream.

    Args:
        lines: int32 [lines].
        within: int32 [length of a line].
        start: number of the first element.
        table: [rows].
        found: [n], of the same type.
    """
    if not found.size:
        return
    line, place, at, flat = start // within.size, start % within.size, 0, _flat(within)
    while at < found.size:
        many = min(within.size - place, found.size - at)
        some, places, row = found[at : at + many], within[place : place + many], lines[line]
        if flat:
            some[:] = table[row + within[0]]
        else:
            for i in range(many):
                some[i] = table[np.uint64(row + places[i])]
        line, place, at = line + 1, 0, at + many


@njit(inline="always")
def _scale(symbols, row, places, flat, lowest, levels, steps, values):
    """Values of elements of one line."""
    if flat:
        step = steps[row + places[0]]
        for i in range(symbols.size):
            values[i] = levels[np.uint64(symbols[i] - lowest)] * step
    else:
        for i in range(symbols.size):
            values[i] = levels[np.uint64(symbols[i] - lowest)] * steps[np.uint64(row + places[i])]


@kernel
def scale_lines(lines, within, start, symbols, lowest, levels, steps, values):
    """Fill `values` [n] with `levels[symbol - lowest]` times the step of the element; float32.

    Args:
        lines: int32 [lines].
        within: int32 [length of a line].
        start: number of the first element.
        symbols: int32 [n].
        lowest: of the symbols.
        levels: float32 [symbols].
        steps: float32 [rows].
        values: float32 [n], filled.
    """
    if not values.size:
        return
    line, place, at, flat = start // within.size, start % within.size, 0, _flat(within)
    while at < values.size:
        many = min(within.size - place, values.size - at)
        some, places = symbols[at : at + many], within[place : place + many]
        _scale(some, lines[line], places, flat, lowest, levels, steps, values[at : at + many])
        line, place, at = line + 1, 0, at + many


@kernel
def scale_columns(lines, within, start, symbols, lowest, levels, steps, first, matrix):
    """The same of a stream down the columns of a matrix [out, in], there; line 0 is the column `first`."""
    length, stop, flat = within.size, start + symbols.size, _flat(within)
    values = np.empty((WIDTH, DEPTH), np.float32)
    column = 0
    while column < lines.size:
        width = min(WIDTH, lines.size - column)
        if column == 0 and start:
            width = 1
        elif width > 1 and (column + width) * length > stop:
            width -= 1
        for row in range(0, length, DEPTH):
            begin, end = 0, min(DEPTH, length - row)
            places = within[row : row + end]
            for j in range(width):
                at = (column + j) * length + row - start
                if width == 1:
                    begin, end = min(max(-at, 0), end), max(min(symbols.size - at, end), 0)
                some = symbols[at + begin : at + end]
                _scale(some, lines[column + j], places[begin:end], flat, lowest, levels, steps, values[j, begin:end])
            _turn(values, begin, end, width, matrix[row:, first + column : first + column + width])
        column += width


@kernel
def _turn(values, begin, end, width, matrix):
    """Put the transpose of `values[:width, begin:end]` into the rows from `begin` on of a matrix [rows, width]."""
    square = np.empty((HEIGHT, WIDTH), np.float32)
    for row in range(begin, end, HEIGHT):
        height = min(HEIGHT, end - row)
        for j in range(width):
            some = values[j, row : row + height]
            for i in range(height):
                square[i, j] = some[i]
        for i in range(height):
            there = matrix[row + i]
            for j in range(width):
                there[j] = square[i, j]
