"""Hot loop of the adaptive model; plain arrays in and out, compiled on first use and cached.

One loop reads a piece, writes it and prices it, so that all three see the same probabilities (docs/format.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from waterfill.codec.kernels import _push
from waterfill.codec.tables import PADDING
from waterfill.compiled import kernel, njit

READ, WRITE = 0, 1

SLOWEST = 40
"""Least that a decision adds to the weight of a parameter, in 1/4096."""

MOST_BITS = 31
"""Of a magnitude."""

LEARNT_BITS = 8
"""Of a magnitude whose lower bits are learnt; longer ones are random."""

ROWS, COLUMNS, ZERO, NEAR, SIGN, SIZE, SIZES_NEAR, NODES, LINES = 0, 8, 24, 25, 57, 66, 98, 130, 386
"""The first parameter of each kind; the last one is the first of those that belong to a row."""

PER_LINE = 3
"""Parameters of a row, a column, a channel and a tap: of zero, sign and magnitude."""


class Learnt(NamedTuple):
    """Parameters.

    Attributes:
        theta: int64, logarithms of odds in 2^-16 nats.
        weights: int64, how much each has seen, in 1/4096.
        table: uint16 [1024], probabilities of odds.
        used: int64 [6], those of the decision at hand.
    """

    theta: NDArray[np.int64]
    weights: NDArray[np.int64]
    table: NDArray[np.uint16]
    used: NDArray[np.int64]


class Stream(NamedTuple):
    """Where decisions come from or go to.

    Attributes:
        mode: READ or WRITE.
        states: uint64 [8], of the lanes; changed when read.
        words: uint16, the last `PADDING` of them not part of the stream.
        cursor: int64 [2], the next word and the next decision.
        events: uint16, `answer << 12 | probability` of every decision, filled when written.
    """

    mode: int
    states: NDArray[np.uint64]
    words: NDArray[np.uint16]
    cursor: NDArray[np.int64]
    events: NDArray[np.uint16]


@njit(inline="always")
def _probability(learnt, count):
    """Of the answer yes, in 1/4096, from the parameters in use."""
    total = np.int64(0)
    for i in range(count):
        total += learnt.theta[learnt.used[i]]
    return np.int64(learnt.table[min(max((total >> 10) + 512, 0), 1023)])


@njit(inline="always")
def _read(stream, p):
    """Decode one decision: yes has the slots below p."""
    lane, at = stream.cursor[1] & 7, stream.cursor[0]
    x = np.int64(stream.states[lane])
    slot = x & 4095
    answer = np.int64(slot < p)
    x = p * (x >> 12) + slot if answer else (4096 - p) * (x >> 12) + slot - p
    if x < 1 << 16:
        x = x << 16 | np.int64(stream.words[min(at, stream.words.size - 1)])
        stream.cursor[0] = at + 1
    stream.states[lane] = np.uint64(x)
    return answer


@njit
def _decide(learnt, stream, count, answer):
    """Read a decision, or note it with its probability, and learn from it."""
    p = _probability(learnt, count)
    if stream.mode == READ:
        answer = _read(stream, p)
    else:
        stream.events[stream.cursor[1]] = answer << 12 | p
    stream.cursor[1] += 1
    seen, error = max(p * (4096 - p) >> 12, SLOWEST), (answer << 12) - p
    for i in range(count):
        index = learnt.used[i]
        learnt.weights[index] += seen
        learnt.theta[index] += (error << 16) // learnt.weights[index]
    return answer


@njit
def _flags(learnt, stream, flags, first, width):
    """Which lines have a value that is not zero, given the three before and the one `width` lines back."""
    history = np.int64(0)
    for i in range(flags.size):
        back = np.int64(flags[i - width]) if 0 < width <= i else np.int64(0)
        learnt.used[0] = first + history + 8 * back
        flags[i] = _decide(learnt, stream, 1, np.int64(flags[i]))
        history = (history << 1 | flags[i]) & 7


@njit(inline="always")
def _at(line, j):
    return np.int64(line[j]) if 0 <= j < line.size else np.int64(0)


@njit
def _value(learnt, stream, count, left, above, value):
    """A value that is not zero: sign, number of bits, bits. The lines of its zero are in use."""
    used = learnt.used
    for i in range(1, count):
        used[i] += 1
    used[0] = SIGN + 4 + np.sign(left) + 3 * np.sign(above)
    negative = _decide(learnt, stream, count, np.int64(value < 0))
    for i in range(1, count):
        used[i] += 1
    used[count], bits = used[1], 1
    while bits < MOST_BITS:
        used[0], used[1] = SIZE + bits, SIZES_NEAR + min(abs(left), 3) + 4 * min(abs(above), 3) + 16 * (bits > 1)
        if not _decide(learnt, stream, count + 1, np.int64(abs(value) >> bits != 0)):
            break
        bits += 1
    found = np.int64(1)
    for k in range(bits - 2, -1, -1):
        used[0] = NODES + min((1 << bits - 1) + found, 255)
        found = found << 1 | _decide(learnt, stream, np.int64(bits <= LEARNT_BITS), abs(value) >> k & 1)
    return -found if negative else found


@kernel
def run(learnt, stream, values, taps, width, rows, columns, prices):
    """Go through the rows of a piece.

    Args:
        learnt: parameters that have learnt nothing yet.
        stream: of the piece.
        values: int32 [rows, columns], zeros to be filled when read.
        taps: how many columns a channel has.
        width: how many columns lie between an element and the one above it; 0 for none.
        rows: uint8 [rows], which have a value that is not zero; filled when read.
        columns: uint8 [columns], the same.
        prices: float32 [rows, columns, 2], filled with bits of zero and of all that is not zero; or of no size.

    Returns:
        Whether the stream did not end too early.
    """
    used, cursor = learnt.used, stream.cursor
    end = stream.words.size - PADDING
    first_column = LINES + PER_LINE * rows.size
    first_channel = first_column + PER_LINE * columns.size
    first_tap = first_channel + PER_LINE * (columns.size // taps)
    _flags(learnt, stream, rows, ROWS, 0)
    _flags(learnt, stream, columns, COLUMNS, width)
    lines, places = np.flatnonzero(rows), np.flatnonzero(columns)
    empty = np.ones(columns.size, np.bool_)
    for i in lines:
        line, none = values[i], True
        for j in places:
            if cursor[0] > end:
                return False
            left = _at(line, j - 1)
            above, before, after = np.int64(0), np.int64(0), np.int64(0)
            if width:
                above, before, after = _at(line, j - width), _at(line, j - width - 1), _at(line, j - width + 1)
            count = 4
            used[0], used[1], used[2] = ZERO, LINES + PER_LINE * i, first_column + PER_LINE * j
            used[3] = NEAR + (left != 0) + 2 * (_at(line, j - 2) != 0) + 4 * (above != 0) + 8 * (before != 0)
            used[3] += 16 * (after != 0 and width > 1)
            if taps > 1:
                used[4], used[5], count = first_channel + PER_LINE * (j // taps), first_tap + PER_LINE * (j % taps), 6
            there = np.int64(1)
            if prices.size:
                p = _probability(learnt, count)
                prices[i, j, 0], prices[i, j, 1] = 12 - np.log2(4096 - p), 12 - np.log2(p)
            if not ((none and j == places[-1]) or (empty[j] and i == lines[-1])):
                there = _decide(learnt, stream, count, np.int64(line[j] != 0))
            if there:
                empty[j], none = False, False
                used[3], used[4] = used[4], used[5]  # the lines alone
                line[j] = _value(learnt, stream, 5 if taps > 1 else 3, left, above, np.int64(line[j]))
    return cursor[0] <= end


@kernel
def encode(events, inverse, states, words, at):
    """Encode decisions from the last to the first; returns the new top of `words`."""
    for n in range(events.size - 1, -1, -1):
        answer, p = np.int64(events[n]) >> 12, np.int64(events[n]) & 4095
        info = np.uint64(p) if answer else np.uint64(p << 12 | (4096 - p))
        states[n & 7], at = _push(states[n & 7], info, inverse, words, at)
    return at
