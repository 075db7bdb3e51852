"""Hot loops over the lines of a stream; plain arrays in and out, compiled on first use and cached.

The element in line l and place p of it has the row `lines[l] + within[p]` of a table; see `order.py`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

HEIGHT, WIDTH = 16, 256
"""Columns are turned into rows in pieces of this size: a column's part is a line of the cache, a row's a fourth of a page."""


@njit(cache=True, nogil=True)
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
    line, place, at = start // within.size, start % within.size, 0
    while at < found.size:
        many = min(within.size - place, found.size - at)
        row = lines[line]
        for i in range(many):
            found[at + i] = table[row + within[place + i]]
        line, place, at = line + 1, 0, at + many


@njit(cache=True, nogil=True)
def look_up_scaled(lines, within, start, symbols, lowest, levels, steps, values):
    """Fill `values` [n] with `levels[symbol - lowest]` times the step of the element; float32."""
    if not values.size:
        return
    line, place, at = start // within.size, start % within.size, 0
    while at < values.size:
        many = min(within.size - place, values.size - at)
        row = lines[line]
        for i in range(many):
            values[at + i] = levels[symbols[at + i] - lowest] * steps[row + within[place + i]]
        line, place, at = line + 1, 0, at + many


@njit(cache=True, nogil=True)
def turn(part, start, matrix):
    """Put elements that stand at `start` of a stream down the columns of a matrix [out, in] where they belong."""
    length = matrix.shape[0]
    stop = start + part.size
    first, last = -(-start // length), stop // length
    if first > last:
        _one_by_one(part, start, start, stop, matrix)
        return
    _one_by_one(part, start, start, min(first * length, stop), matrix)
    _one_by_one(part, start, max(last * length, start), stop, matrix)
    square = np.empty((HEIGHT, WIDTH), part.dtype)
    for column in range(first, last, WIDTH):
        width = min(WIDTH, last - column)
        for row in range(0, length, HEIGHT):
            height = min(HEIGHT, length - row)
            for j in range(width):
                at = (column + j) * length - start + row
                some = part[at : at + height]
                for i in range(height):
                    square[i, j] = some[i]
            for i in range(height):
                there = matrix[row + i, column : column + width]
                for j in range(width):
                    there[j] = square[i, j]


@njit(cache=True, nogil=True)
def _one_by_one(part, start, begin, end, matrix):
    length = matrix.shape[0]
    for n in range(begin, end):
        matrix[n % length, n // length] = part[n - start]
