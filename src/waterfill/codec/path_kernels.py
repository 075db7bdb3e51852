"""Hot loops of paths through a trellis; plain arrays in and out, compiled on first use and cached.

An entry is twice a state plus the subset that the state picks. Tables come in pairs, one for each subset: the row
`2 c + q` of the class c and the subset q. A high part h is the byte h + 128; byte 0 is the escape.
"""

from __future__ import annotations

import numpy as np

from waterfill.codec.kernels import BITS, EIGHT, LOW, MASK, SIXTEEN, TWENTY, _push
from waterfill.codec.tables import PADDING
from waterfill.compiled import kernel, njit

ENDED, BEYOND = -1, -2
"""What `decode_path` returns where the words end too early, or an integer is beyond 32 bits."""


@kernel
def walk(levels, classes, aside, entries, zero, span, indices, subsets):
    """Find the path whose levels these are; returns where it leaves the trellis, or -1.

    Args:
        levels: int32 [n].
        classes: uint16 [n].
        aside: bool [classes], whose elements are in subset 0 whatever the state is, which stays.
        entries: uint16 [2 * states], the next entry of every state and lowest bit.
        zero: whether zero is in subset 1 too.
        span: the state is 0 again after so many levels.
        indices: int32 [n], filled with k.
        subsets: uint8 [n], filled.
    """
    entry = np.int64(0)
    left = span
    for i in range(levels.size):
        if left == 0:
            entry, left = 0, span
        left -= 1
        stays = aside[classes[i]]
        level, subset = np.int64(levels[i]), np.int64(0) if stays else entry & 1
        if subset == 0:
            wrong, k = level & 1, level >> 1
        elif zero:
            wrong, k = (level & 1) ^ np.int64(level != 0), (level + (level > 0)) >> 1
        else:
            wrong, k = (level & 1) ^ 1, level >> 1
        if wrong:
            return i
        indices[i], subsets[i] = k, subset
        if not stays:
            entry = np.int64(entries[(entry & ~1) | (k & 1)])
    return -1


@kernel
def magnitudes(indices, subsets, zero, found):
    """Magnitudes of both subsets, 127 at most; those of subset 1 from 128 on.

    Args:
        indices: int32 [n].
        subsets: uint8 [n].
        zero: whether zero is in subset 1 too.
        found: uint8 [n], filled.
    """
    for i in range(indices.size):
        k = np.int64(indices[i])
        size = -k - 1 if k < 0 and subsets[i] == 1 and not zero else abs(k)
        found[i] = min(size, 127) + 128 * subsets[i]


@kernel
def code_length(indices, subsets, classes, bits, lows, last, zero):
    """Bits of indices under the tables of their classes, escapes with all that they need.

    Args:
        indices: int32 [n].
        subsets: uint8 [n].
        classes: uint16 [n].
        bits: float64 [2 * classes, 256], of every byte.
        lows: how many low bits each table leaves out, [2 * classes].
        last: the largest magnitude that each table has, [2 * classes].
        zero: whether zero is in subset 1 too.
    """
    total = 0.0
    for i in range(indices.size):
        row = 2 * np.int64(classes[i]) + subsets[i]
        low, centred = np.int64(lows[row]), zero or subsets[i] == 0
        high, _ = _high(np.int64(indices[i]), low, centred)
        magnitude = -high - 1 if high < 0 and not centred else abs(high)
        total += low
        if magnitude <= last[row]:
            total += bits[row, high + 128]
            continue
        extra = 2 * (magnitude - last[row] - 1) + (high < 0)
        octets = 1
        while octets < 4 and extra >> (8 * octets):
            octets += 1
        total += bits[row, 0] + 2 + 8 * octets
    return total


@njit(inline="always")
def _high(k, low, centred):
    """High part and low bits: cells lie around their middle where zero has one of its own, else between two."""
    moved = k + ((np.int64(1) << low >> 1) if centred else 0)
    high = moved >> low
    return high, moved - (high << low)


@njit(inline="always")
def _magnitude(high, centred):
    return abs(high) if centred else (high if high >= 0 else -high - 1)


@njit(inline="always")
def _push_uniform(x, symbol, bits, inverse, words, at):
    frequency = np.int64(4096) >> bits
    return _push(x, np.uint64(symbol * frequency << 12 | frequency), inverse, words, at)


@njit(inline="always")
def _bytes_of(extra):
    return np.int64(1) + (extra >= 1 << 8) + (extra >= 1 << 16) + (extra >= 1 << 24)


@kernel
def count_events(indices, subsets, classes, lows, last, centred):
    """How many symbols of tables a path takes: one each, and more for low bits and escapes."""
    events = indices.size
    for i in range(indices.size):
        row = 2 * np.int64(classes[i]) + subsets[i]
        low, middle = np.int64(lows[row]), subsets[i] == 0 or centred
        high, _ = _high(np.int64(indices[i]), low, middle)
        magnitude = _magnitude(high, middle)
        events += (low + 7) >> 3
        if magnitude > last[row]:
            events += 1 + _bytes_of(2 * (magnitude - last[row] - 1) + (high < 0))
    return events


@kernel
def encode_path(indices, subsets, classes, info, lows, last, centred, inverse, lanes, span, states, words, at):
    """Encode a path from its last index to its first; returns the new top of `words`.

    Args:
        indices: int32 [n], the k.
        subsets: uint8 [n].
        classes: uint16 [n].
        info: uint64 [2 * classes * 256], start << 12 | frequency.
        lows: uint8 [2 * classes], how many low bits are uniform.
        last: int64 [2 * classes], the largest magnitude K.
        centred: whether zero is in subset 1 too.
        inverse: float64 [4097], 1 / frequency.
        lanes: how many lanes take turns; round after round, each has the next `span` indices.
        span: indices of a lane in a round.
        states: uint64 [lanes] or more, changed in place.
        words: uint16, filled downwards.
        at: index of the lowest word written so far; as many words as there are events must be free below it.
    """
    whole = lanes * span
    for first in range((indices.size - 1) // whole * whole, -1, -whole):
        left = min(indices.size - first, whole)
        for t in range(min(span, left) - 1, -1, -1):
            for lane in range((left - t - 1) // span, -1, -1):
                i = first + lane * span + t
                x = states[lane]
                row = 2 * np.int64(classes[i]) + subsets[i]
                low, middle = np.int64(lows[row]), subsets[i] == 0 or centred
                high, rest = _high(np.int64(indices[i]), low, middle)
                magnitude = _magnitude(high, middle)
                byte = high + 128
                if magnitude > last[row]:
                    byte = 0
                    extra = 2 * (magnitude - last[row] - 1) + (high < 0)
                    count = _bytes_of(extra)
                    for j in range(count - 1, -1, -1):
                        x, at = _push_uniform(x, (extra >> (8 * j)) & 255, 8, inverse, words, at)
                    x, at = _push_uniform(x, count - 1, 2, inverse, words, at)
                for j in range((low - 1) >> 3, -1, -1):
                    bits = min(low - 8 * j, 8)
                    x, at = _push_uniform(x, (rest >> (8 * j)) & ((1 << bits) - 1), bits, inverse, words, at)
                x, at = _push(x, info[(row << 8) + byte], inverse, words, at)
                states[lane] = x
    return at


@njit(inline="always")
def _pull_uniform(x, bits, words, at):
    """Decode one uniform symbol."""
    slot = np.int64(x & MASK)
    rest = 12 - bits
    x = (x >> BITS << np.uint64(rest)) + np.uint64(slot & ((1 << rest) - 1))
    low = np.uint64(x < LOW)
    x = (x << (SIXTEEN * low)) | (np.uint64(words[at]) * low)
    return x, at + np.int64(low), slot >> rest


@njit(inline="always")
def _rest(x, byte, low, last, centred, words, at, end):
    """Low bits and escape of one index; a position beyond `end` where the words end too early."""
    high, rest = byte - 128, np.int64(0)
    for j in range(0, low, 8):
        if at > end:
            return x, at, high
        x, at, part = _pull_uniform(x, min(low - j, 8), words, at)
        rest |= part << j
    if byte == 0:
        if at > end:
            return x, at, high
        x, at, count = _pull_uniform(x, 2, words, at)
        extra = np.int64(0)
        for j in range(count + 1):
            if at > end:
                return x, at, high
            x, at, part = _pull_uniform(x, 8, words, at)
            extra |= part << (8 * j)
        high = (extra >> 1) + last + 1
        if extra & 1:
            high = -high if centred else -high - 1
    return x, at, (high << low) + rest - ((np.int64(1) << low >> 1) if centred else 0)


@kernel
def decode_path(words, at, states, classes, aside, slots, lows, last, centred, entries, span, levels):
    """Decode a path; returns the next position in `words`, `ENDED` or `BEYOND`.

    Both subsets' slots are read before the state is known, so that the walk from state to state is short.

    Args:
        words: uint16, the last `PADDING` of them not part of the stream.
        at: where to read.
        states: uint64 [8], changed in place.
        classes: uint16 [n].
        aside: bool [classes], as for `walk`.
        slots: uint32 [2 * classes * 4096], frequency << 20 | offset << 8 | byte.
        lows: uint8 [2 * classes], how many low bits are uniform.
        last: int64 [2 * classes], the largest magnitude K.
        centred: whether zero is in subset 1 too.
        entries: uint16 [2 * states], the next entry of every state and lowest bit.
        span: the state is 0 again after so many levels.
        levels: int32 [n], filled.
    """
    end = words.size - PADDING
    some_low, some_aside = lows.any(), aside.any()
    entry = np.int64(0)
    left = span
    for i in range(levels.size):
        if at > end:
            return ENDED
        if left == 0:
            entry, left = 0, span
        left -= 1
        lane = i & 7
        x = states[lane]
        where = (np.int64(classes[i]) << 13) + np.int64(x & MASK)
        first, second = slots[where], slots[where + 4096]
        stays = some_aside and aside[classes[i]]
        subset = np.int64(0) if stays else entry & 1
        slot = np.uint64(second if subset else first)
        x = (slot >> TWENTY) * (x >> BITS) + ((slot >> EIGHT) & MASK)
        low = np.uint64(x < LOW)
        x = (x << (SIXTEEN * low)) | (np.uint64(words[at]) * low)
        at += np.int64(low)
        byte = np.int64(slot & np.uint64(255))
        k = byte - 128
        row = 2 * np.int64(classes[i]) + subset
        if byte == 0 or (some_low and lows[row]):
            middle = subset == 0 or centred
            x, at, k = _rest(x, byte, np.int64(lows[row]), last[row], middle, words, at, end)
            if at > end:
                return ENDED
            if k >= 1 << 30 or k < -(1 << 30):
                return BEYOND
        states[lane] = x
        levels[i] = 2 * k + (subset if not centred else ((k < 0) - np.int64(k > 0)) * subset)
        if not stays:
            entry = np.int64(entries[(entry & ~1) | (k & 1)])
    return at if at <= end else ENDED
