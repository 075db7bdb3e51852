"""Hot loops of paths with lanes; plain arrays in and out, compiled on first use and cached.

The state of a lane is that of the trellis in another form, in which the subset is its lowest bit: with the parity
checks h0 and h1 halved, `s` becomes `s / 2 xor h1 (if k is odd) xor h0 (in subset 1)`. Subsets are the same, symbol by
symbol (the observer canonical form of a linear system over bits).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from waterfill.codec.kernels import BITS, BYTE, EIGHT, LOW, MASK, SIXTEEN, TWENTY
from waterfill.codec.order_kernels import _flat
from waterfill.codec.path_kernels import BEYOND, ENDED, _rest
from waterfill.codec.tables import PADDING
from waterfill.compiled import HAS_NUMBA, kernel, njit

if HAS_NUMBA:
    from waterfill.codec import lane_vectors as vectors
else:
    from waterfill.codec import lane_arrays as vectors

WIDTH, supported = vectors.WIDTH, vectors.supported
decode_group, fill_square, look_up = vectors.decode_group, vectors.fill_square, vectors.look_up


class Tables(NamedTuple):
    """What codes the indices.

    Attributes:
        slots: uint32 [2 * classes * 4096], frequency << 20 | offset << 8 | byte.
        entries: int32, of every sum of scales: 8192 times its class, 2 with low bits, and 1 where it stands aside.
        lows: uint8 [2 * classes], how many low bits are uniform.
        last: int64 [2 * classes], the largest magnitude K.
    """

    slots: NDArray[np.uint32]
    entries: NDArray[np.int32]
    lows: NDArray[np.uint8]
    last: NDArray[np.int64]


class Trellis(NamedTuple):
    """The halves of the parity checks h0 and h1, and whether zero is in both subsets."""

    flips: int
    picks: int
    zero: bool


class Coder(NamedTuple):
    """Where the lanes are.

    Attributes:
        states: uint32 [lanes], of the coder.
        trellises: uint32 [lanes], of the trellis.
        now: int32 [lanes], the entry of the next element.
        active: int32 [lanes], 1 for lanes that have an element, else 0.
    """

    states: NDArray[np.uint32]
    trellises: NDArray[np.uint32]
    now: NDArray[np.int32]
    active: NDArray[np.int32]


@kernel
def decode_lanes(words, at, states, lines, within, tables, trellis, depth, vectors, levels):
    """Decode a path with lanes; returns the next position in `words`, `ENDED` or `BEYOND`.

    Args:
        words: uint16, the last `PADDING` of them not part of the stream.
        at: where to read.
        states: uint32 [lanes], changed in place.
        lines: int32 [lines], the part of every line of the sum of scales.
        within: int32 [length of a line], the same of every place in a line.
        tables: what codes the indices.
        trellis: the trellis.
        depth: lines of a lane in a round.
        vectors: whether `WIDTH` lanes are decoded at once where none has an escape or low bits.
        levels: int32 [lines * length + WIDTH], filled step by step; the last ones with anything.
    """
    slots, entries = tables.slots, tables.entries
    flips, picks, zero = trellis
    trellises, now = np.zeros(states.size, np.uint32), np.zeros(states.size, np.int32)
    active, sums = np.zeros(states.size, np.int32), np.zeros(states.size, np.int32)
    coder = Coder(states, trellises, now, active)
    same, done = _flat(within), 0
    for first in range(0, lines.size, states.size * depth):
        left = min(lines.size - first, states.size * depth)
        trellises[:] = 0
        for line in range(min(depth, left)):
            many = (left - line - 1) // depth + 1
            active[:many], active[many:] = 1, 0
            _begin(lines, first + line, depth, many, sums)
            _look_up(entries, sums, within[0], now)
            width = WIDTH if vectors else many
            for place in range(within.size):
                if not same:
                    _look_up(entries, sums, within[place], now)
                for start in range(0, many, width):
                    rare = True
                    if vectors:
                        known = states, trellises, now, active, start, slots, words, at
                        at, rare = decode_group(*known, flips, picks, zero, levels, done + start)
                    if rare:
                        lanes = start, min(start + width, many)
                        at = _one_by_one(words, at, coder, tables, trellis, lanes, levels[done:])
                        if at < 0:
                            return at
                if at > words.size - PADDING:
                    return ENDED
                done += many
    return at


@njit
def _begin(lines, first, depth, many, sums):
    """Put the part of each lane's line into `sums`; vectors look up those of lanes without a line, too."""
    for lane in range(sums.size):
        sums[lane] = lines[first + min(lane, many - 1) * depth]


@njit
def _look_up(entries, sums, part, now):
    """Put the entries of the next elements into `now`."""
    for lane in range(0, now.size, WIDTH):
        look_up(entries, sums, part, now, lane)


@njit
def _one_by_one(words, at, coder, tables, trellis, lanes, levels):
    """Decode one level of each of some lanes, with all that it needs; returns as `decode_lanes`."""
    slots, _, lows, last = tables
    flips, picks, zero = trellis
    end = words.size - PADDING
    for lane in range(lanes[0], lanes[1]):
        if at > end:
            return ENDED
        x, state, entry = np.uint64(coder.states[lane]), np.int64(coder.trellises[lane]), np.int64(coder.now[lane])
        subset = state & ~entry & 1
        slot = np.uint64(slots[(entry & ~3) + (subset << 12) + np.int64(x & MASK)])
        x = (slot >> TWENTY) * (x >> BITS) + ((slot >> EIGHT) & MASK)
        low = np.uint64(x < LOW)
        x = (x << (SIXTEEN * low)) | (np.uint64(words[at]) * low)
        at += np.int64(low)
        byte = np.int64(slot & BYTE)
        k, row = byte - 128, (entry >> 13 << 1) + subset
        if byte == 0 or lows[row]:
            middle = subset == 0 or zero
            x, at, k = _rest(x, byte, np.int64(lows[row]), last[row], middle, words, at, end)
            if at > end:
                return ENDED
            if k >= 1 << 30 or k < -(1 << 30):
                return BEYOND
        coder.states[lane] = x
        levels[lane] = 2 * k + (((k < 0) - np.int64(k > 0)) * subset if zero else subset)
        if not entry & 1:
            coder.trellises[lane] = state >> 1 ^ (picks * (k & 1)) ^ (flips * subset)
    return at


@kernel
def in_order(levels, lanes, span, found):
    """Put levels that are in the order of lanes one line after the other.

    Args:
        levels: int32 [n].
        lanes: how many take turns.
        span: levels of a lane in a round.
        found: int32 [n], filled.
    """
    whole, done = lanes * span, 0
    for first in range(0, levels.size, whole):
        left = min(levels.size - first, whole)
        for t in range(min(span, left)):
            for lane in range((left - t - 1) // span + 1):
                found[first + lane * span + t] = levels[done]
                done += 1


RUN = 16
"""So many neighbours in a row of a matrix are written together: a line of a cache."""


class Values(NamedTuple):
    """What makes values of levels.

    Attributes:
        shrink: float32 [4], how far the levels 0, 1, 2, and 3 and above lie towards zero, in 1/64 step.
        steps: float32, 1/64 step of every sum of scales.
        lines: int32 [lines], the part of every line of the sum of scales.
        within: int32 [length of a line], the same of every place in a line.
    """

    shrink: NDArray[np.float32]
    steps: NDArray[np.float32]
    lines: NDArray[np.int32]
    within: NDArray[np.int32]


class Run(NamedTuple):
    """Neighbours in a row of a matrix, as many of each lane.

    Attributes:
        length: how many there are.
        lanes: of as many lanes.
        at: the first level of the first lane.
        apart: levels from neighbour to neighbour.
        own: where the parts of the sum of scales begin that neighbours do not share.
        own_apart: these from lane to lane.
        common: where the part is that they share.
        common_apart: the same from lane to lane.
        place: the first value in the matrix.
        place_apart: values from lane to lane.
    """

    length: int
    lanes: int
    at: int
    apart: int
    own: int
    own_apart: int
    common: int
    common_apart: int
    place: int
    place_apart: int


@kernel
def fill_rows(levels, lanes, depth, values, first, width, matrix):
    """Put the values of levels in the order of lanes into the rows from `first` on of a matrix.

    Args:
        levels: int32 [n].
        lanes: how many take turns.
        depth: lines of a lane in a round.
        values: what makes values of levels.
        first: the first row.
        width: of the matrix.
        matrix: float32 [out * in], filled.
    """
    lines, within, done = values.lines, values.within, 0
    for start in range(0, lines.size, lanes * depth):
        left = min(lines.size - start, lanes * depth)
        for row in range(start, start + min(depth, left)):
            many = (left - (row - start) - 1) // depth + 1
            for place in range(0, within.size, RUN):
                where = (first + row) * width + place
                known = done + place * many, many, place, 0, row, depth, where, depth * width
                run = Run(min(RUN, within.size - place), many, *known)
                _fill_run(levels, run, within, lines, values.steps, values.shrink, matrix)
            done += many * within.size


@kernel
def fill_columns(levels, lanes, depth, values, first, width, matrix):
    """Put the values of levels in the order of lanes into the columns from `first` on; see `fill_rows`."""
    lines, within, done = values.lines, values.within, 0
    for start in range(0, lines.size, lanes * depth):
        left = min(lines.size - start, lanes * depth)
        column, end = start, start + min(depth, left)
        while column < end:
            many = (left - (column - start) - 1) // depth + 1
            whole = start + left - (many - 1) * depth  # where the last of these lanes ends
            length = min(RUN, min(whole, end) - column)
            for place in range(within.size):
                where = place * width + first + column
                known = done + place * many, within.size * many, column, depth, place, 0, where, depth
                run = Run(length, many, *known)
                _fill_run(levels, run, lines, within, values.steps, values.shrink, matrix)
            done += length * many * within.size
            column += length


@njit
def _fill_run(levels, run, own, common, steps, shrink, matrix):
    """Put the values of a run of every lane into the matrix, eight of eight lanes at once where there are as many."""
    for lane in range(0, run.lanes, WIDTH):
        for near in range(0, run.length, WIDTH):
            rest = True
            at, place = run.at + near * run.apart + lane, run.place + near + lane * run.place_apart
            one, other = run.own + near + lane * run.own_apart, run.common + lane * run.common_apart
            if lane + WIDTH <= run.lanes and near + WIDTH <= run.length:
                sums = own, one, run.own_apart, common, other, run.common_apart
                rest = fill_square(levels, at, run.apart, *sums, steps, shrink, matrix, place, run.place_apart)
            if rest:
                some = min(WIDTH, run.lanes - lane), min(WIDTH, run.length - near)
                for i in range(some[0]):
                    for j in range(some[1]):
                        level = np.int64(levels[at + j * run.apart + i])
                        towards = np.int64(shrink[min(abs(level), 3)])
                        value = np.float32(64 * level - (towards if level > 0 else -towards))
                        total = own[one + i * run.own_apart + j] + common[other + i * run.common_apart]
                        matrix[place + i * run.place_apart + j] = value * steps[np.uint64(total)]
