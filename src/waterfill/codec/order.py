"""The order in which a stream has the elements of a matrix: along its rows, or down its columns.

Either way there are *lines*, one after the other. Element n of the stream is in the line `n // length`; the lines are
the rows of the matrix, or with `down` those of its transpose.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from waterfill.records import AxisScales, Layout

Sums = NDArray[np.int32]


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


def axis_sum(layout: Layout, scales: AxisScales, start: int, stop: int, down: bool = False) -> Sums:
    """`rows[i] + channels[c] + taps[t]` of the elements start..stop of the stream, int32."""
    lines, within = line_sums(layout, scales, down)
    length = within.size
    first, last = (start // length, -(-stop // length)) if length else (0, 0)
    total = lines[first:last, None] + within
    return total.reshape(-1)[start - first * length : stop - first * length]
