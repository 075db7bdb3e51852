"""Hot loops of the entropy coder; plain arrays in and out, compiled on first use and cached.

A coder has eight lanes; symbol n of a run belongs to lane n mod 8. A state x lies in [2^16, 2^32); tables have 12 bits.
Both directions are written out for the eight lanes so that the states stay in registers.
"""

from __future__ import annotations

import numpy as np

from waterfill.codec.tables import PADDING
from waterfill.compiled import kernel, njit

LOW = np.uint64(1 << 16)
BITS = np.uint64(12)
MASK = np.uint64(4095)
SIXTEEN = np.uint64(16)
TWENTY = np.uint64(20)
EIGHT = np.uint64(8)
BYTE = np.uint64(255)


@njit(inline="always")
def _push(x, info, inverse, words, at):
    """Encode one symbol into state x; `info` is start << 12 | freq, words grow downwards from `at`."""
    freq = info & MASK
    words[at - 1] = np.uint16(x & np.uint64(0xFFFF))
    full = x >= (freq << TWENTY)
    at -= np.int64(full)
    x = x >> (SIXTEEN * np.uint64(full))
    # (x + 1/2) / freq is at least 2^-13 away from a whole number, so the product cannot be rounded across one.
    quotient = np.uint64(np.int64((np.float64(np.int64(x)) + 0.5) * inverse[np.int64(freq)]))
    return x + quotient * (np.uint64(4096) - freq) + (info >> BITS), at


@kernel
def encode_run(symbols, classes, info, inverse, states, words, at):
    """Encode one run from its last symbol to its first; returns the new top of `words`.

    Args:
        symbols: uint8 [n], table indices.
        classes: uint16 [n], which table.
        info: uint64 [classes * 256], start << 12 | frequency.
        inverse: float64 [4097], 1 / frequency.
        states: uint64 [8], changed in place.
        words: uint16, filled downwards.
        at: index of the lowest word written so far; at least n + 8 words must be free below it.
    """
    n = symbols.size
    whole = n - n % 8
    for i in range(n - 1, whole - 1, -1):
        lane = i - whole
        where = (np.int64(classes[i]) << 8) + np.int64(symbols[i])
        states[lane], at = _push(states[lane], info[where], inverse, words, at)
    x0, x1, x2, x3, x4, x5, x6, x7 = (
        states[0], states[1], states[2], states[3], states[4], states[5], states[6], states[7],
    )  # fmt: skip
    for i in range(whole - 8, -1, -8):
        x7, at = _push(x7, info[(np.int64(classes[i + 7]) << 8) + np.int64(symbols[i + 7])], inverse, words, at)
        x6, at = _push(x6, info[(np.int64(classes[i + 6]) << 8) + np.int64(symbols[i + 6])], inverse, words, at)
        x5, at = _push(x5, info[(np.int64(classes[i + 5]) << 8) + np.int64(symbols[i + 5])], inverse, words, at)
        x4, at = _push(x4, info[(np.int64(classes[i + 4]) << 8) + np.int64(symbols[i + 4])], inverse, words, at)
        x3, at = _push(x3, info[(np.int64(classes[i + 3]) << 8) + np.int64(symbols[i + 3])], inverse, words, at)
        x2, at = _push(x2, info[(np.int64(classes[i + 2]) << 8) + np.int64(symbols[i + 2])], inverse, words, at)
        x1, at = _push(x1, info[(np.int64(classes[i + 1]) << 8) + np.int64(symbols[i + 1])], inverse, words, at)
        x0, at = _push(x0, info[(np.int64(classes[i]) << 8) + np.int64(symbols[i])], inverse, words, at)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at


@njit(inline="always")
def _pull(x, cls, slots, words, at):
    """Decode one symbol from state x; a slot is frequency << 20 | offset << 8 | symbol."""
    slot = np.uint64(slots[(np.int64(cls) << 12) + np.int64(x & MASK)])
    x = (slot >> TWENTY) * (x >> BITS) + ((slot >> EIGHT) & MASK)
    low = np.uint64(x < LOW)
    x = (x << (SIXTEEN * low)) | (np.uint64(words[at]) * low)
    return x, at + np.int64(low), np.uint8(slot & BYTE)


@kernel
def decode_run(words, at, states, classes, slots, symbols):
    """Decode one run; returns the next position in `words`, or -1 when the words end too early.

    Args:
        words: uint16, the last `PADDING` of them not part of the stream.
        at: where to read.
        states: uint64 [8], changed in place.
        classes: uint16 [n], which table.
        slots: uint32 [classes * 4096].
        symbols: uint8 [n], filled.
    """
    n = symbols.size
    whole = n - n % 8
    end = words.size - PADDING
    x0, x1, x2, x3, x4, x5, x6, x7 = (
        states[0], states[1], states[2], states[3], states[4], states[5], states[6], states[7],
    )  # fmt: skip
    for i in range(0, whole, 8):
        if at > end:
            return -1
        x0, at, symbols[i] = _pull(x0, classes[i], slots, words, at)
        x1, at, symbols[i + 1] = _pull(x1, classes[i + 1], slots, words, at)
        x2, at, symbols[i + 2] = _pull(x2, classes[i + 2], slots, words, at)
        x3, at, symbols[i + 3] = _pull(x3, classes[i + 3], slots, words, at)
        x4, at, symbols[i + 4] = _pull(x4, classes[i + 4], slots, words, at)
        x5, at, symbols[i + 5] = _pull(x5, classes[i + 5], slots, words, at)
        x6, at, symbols[i + 6] = _pull(x6, classes[i + 6], slots, words, at)
        x7, at, symbols[i + 7] = _pull(x7, classes[i + 7], slots, words, at)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    for i in range(whole, n):
        if at > end:
            return -1
        states[i - whole], at, symbols[i] = _pull(states[i - whole], classes[i], slots, words, at)
    return at if at <= end else -1


@kernel
def to_integers(symbols, classes, last, values):
    """Table symbols to signed integers; an escape becomes K + 1. Returns the number of escapes.

    Args:
        symbols: uint8 [n].
        classes: uint16 [n].
        last: int64 [classes], the largest magnitude K of every class.
        values: int32 [n], filled.
    """
    escapes = 0
    for i in range(symbols.size):
        symbol = np.int32(symbols[i])
        magnitude = (symbol + 1) >> 1
        values[i] = magnitude if symbol & 1 else -magnitude
        escapes += magnitude > last[classes[i]]
    return escapes
