"""Paths from their indices, one state after the other."""

import numpy as np
from format_page import MASKS


def levels_of(indices, paths, rows=1, sums=None, columns=1):
    """The levels of a path with these indices, one state after the other as the page on the format says it.

    With `down` they are of so many rows, else of so many columns; with sums of the offsets of every element, some may
    stand aside.
    """
    h0, h1 = (int(mask, 8) for mask in MASKS[paths.log_states].split())
    state, levels, span = 0, [], (rows if paths.down else 1) << paths.log_span
    span = span if paths.lanes is None else paths.lanes.lines * (rows if paths.down else columns)
    for i, k in enumerate(indices):
        state = 0 if i % span == 0 else state
        if sums is not None and sums[i] < paths.least:
            levels.append(2 * k)
            continue
        second = (state & (h1 >> 1)).bit_count() % 2
        sign = (k > 0) - (k < 0)
        levels.append(2 * k + second if not paths.zero else 2 * k - second * sign)
        bit = (k & 1) ^ (state & (h0 >> 1)).bit_count() % 2
        state = (2 * state + bit) % (1 << paths.log_states)
    return np.array(levels, np.int32)


def down_columns(layout):
    """Where the elements of a stream that goes down the columns are in the flattened matrix [out, in]."""
    out, channels, taps = layout.axes
    return [row * channels * taps + column for column in range(channels * taps) for row in range(out)]
