"""Integers of any size to runs of table symbols and back, and the entropy model that picks their tables.

An integer whose spread is beyond the bank is cut: its high part is coded with a table, its low bits are uniform. A
magnitude beyond its table is an escape, followed later by its bytes. Three kinds of runs follow each other in a stream:
high parts, low bits (at most eight at a time), escapes (first how many bytes, then the bytes).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import rans, tables
from waterfill.codec.order import places
from waterfill.errors import FormatError
from waterfill.loaded import has_kernels
from waterfill.records import Layout, Spread, Symbols

SIDE_FAMILY = 5
"""Row, channel and tap scales are coded with the Laplace tables."""

Codes = tuple[NDArray[np.uint16], NDArray[np.uint8]]
"""For every integer its class and how many low bits are uniform."""


def spread_codes(spread: Spread, layout: Layout, start: int, stop: int) -> Codes:
    """Class and number of low bits of the elements start..stop of a tensor."""
    if spread.rows is None and spread.channels is None and spread.taps is None:
        one = exponent_codes(np.array([spread.base], np.int32), spread.family)
        return np.full(stop - start, one[0][0]), np.full(stop - start, one[1][0])
    found = places(layout, spread.scales, start, stop)
    classes, low = exponent_codes((spread.base + 2 * found.totals).astype(np.int32), spread.family)
    return found.look_up(classes), found.look_up(low)


def exponent_codes(exponents: NDArray[np.int32], family: int) -> Codes:
    """Class and low bits of spreads `2^((exponent - 32) / 8)` steps; below the bank the smallest table is taken."""
    top = tables.SCALES - 1
    low = np.maximum(exponents - (top - 7), 0) >> 3
    classes = np.minimum(np.maximum(exponents - 8 * low, 0), top) + tables.bank_class(family, 0)
    return classes.astype(np.uint16), low.astype(np.uint8)


def encode(values: Symbols, codes: Codes) -> bytes:
    """Encode integers [n], each with its class and number of low bits, as one stream."""
    return rans.encode(runs(values, codes))


def runs(values: Symbols, codes: Codes) -> list[rans.Run]:
    """Runs of integers [n], each with its class and number of low bits."""
    classes, low = codes
    high = values
    if low.any():
        half = (np.int64(1) << low.astype(np.int64)) >> 1
        high = ((values + half) >> low).astype(np.int64)
        rest = values + half - (high << low)
    magnitude = np.abs(high)
    last = tables.largest()[classes]
    escaped = magnitude > last
    table_symbols = np.where(escaped, 2 * last + 1, 2 * magnitude - (high > 0)).astype(np.uint8)
    found = [rans.Run(table_symbols, classes)]
    if low.any():
        for at in range(0, int(low.max()), 8):
            some = low > at
            bits = np.minimum(low[some] - at, 8)
            part = ((rest[some] >> at) & ((1 << bits) - 1)).astype(np.uint8)
            found.append(rans.Run(part, (bits - 1).astype(np.uint16)))
    return found + _escape_runs(high[escaped].astype(np.int64), last[escaped])


def _escape_runs(high: NDArray[np.int64], last: NDArray[np.int64]) -> list[rans.Run]:
    """Runs of the escapes: `2 (|high| - K - 1) + (high < 0)` as a byte count (1..4, two bits) and its bytes."""
    if not high.size:
        return []
    extra = _escape_extra(high, last)
    count = _escape_bytes(extra)
    octets = extra.astype("<u8").view(np.uint8).reshape(-1, 8)[np.arange(8) < count[:, None]]
    return [
        rans.Run(count - 1, np.full(count.size, tables.uniform_class(2), np.uint16)),
        rans.Run(octets, np.full(octets.size, tables.uniform_class(8), np.uint16)),
    ]


def _escape_extra(high: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """What an escape says of a high part: `2 (|high| - K - 1) + (high < 0)`."""
    extra: NDArray[np.int64] = 2 * (np.abs(high) - last - 1) + (high < 0)
    return extra


def _escape_bytes(extra: NDArray[np.int64]) -> NDArray[np.uint8]:
    """In how many bytes, 1..4."""
    count: NDArray[np.uint8] = 1 + (extra >= 1 << 8).astype(np.uint8) + (extra >= 1 << 16) + (extra >= 1 << 24)
    return count


def decode(stream: bytes | memoryview, codes: Codes) -> Symbols:
    """Decode one stream of integers [n].

    Raises:
        FormatError: the stream is damaged.
    """
    decoder = rans.Decoder(stream)
    values = read(decoder, codes)
    decoder.finish()
    return values


def read(decoder: rans.Decoder, codes: Codes) -> Symbols:
    """Undo `runs`.

    Raises:
        FormatError: the stream is damaged.
    """
    classes, low = codes
    high, escapes = _integers(decoder.run(classes), classes)
    rest = np.zeros(low.size if low.any() else 0, np.int64)
    for at in range(0, int(low.max(initial=0)), 8):
        some = low > at
        rest[some] |= decoder.run((np.minimum(low[some] - at, 8) - 1).astype(np.uint16)).astype(np.int64) << at
    values: NDArray[np.int64] | Symbols = high.astype(np.int64) if escapes or rest.size else high
    if escapes:
        escaped = np.flatnonzero(high > tables.largest()[classes])
        values[escaped] = _read_escapes(decoder, tables.largest()[classes[escaped]])
    if rest.size:
        values = (values << low) + rest - ((np.int64(1) << low.astype(np.int64)) >> 1)
    if values.dtype != np.int32 and np.abs(values).max(initial=0) >= 1 << 31:
        raise FormatError("a symbol is beyond 32 bits")
    return values.astype(np.int32, copy=False)


def _integers(found: rans.TableSymbols, classes: rans.Classes) -> tuple[Symbols, int]:
    """Symbols of tables as signed integers, an escape as one more than the largest, and how many escapes there are."""
    if not has_kernels():
        size = (found.astype(np.int32) + 1) >> 1
        return np.where(found & 1, size, -size), int((size > tables.largest()[classes]).sum())
    from waterfill.codec import kernels

    high = np.empty(classes.size, np.int32)
    return high, kernels.to_integers(found, classes, tables.largest(), high)


def _read_escapes(decoder: rans.Decoder, last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Undo `_escape_runs`."""
    count = decoder.run(np.full(last.size, tables.uniform_class(2), np.uint16)) + 1
    octets = decoder.run(np.full(int(count.sum()), tables.uniform_class(8), np.uint16))
    padded = np.zeros((last.size, 8), np.uint8)
    padded[np.arange(8) < count[:, None]] = octets
    extra = padded.view("<u8").astype(np.int64).ravel()
    magnitude = (extra >> 1) + last + 1
    return np.where(extra & 1, -magnitude, magnitude)


def ideal_bits(values: Symbols, codes: Codes) -> float:
    """Code length of integers under the frozen tables, in bits, without the end of the stream."""
    return float(bits_of(values, codes).sum())


def bits_of(values: Symbols, codes: Codes) -> NDArray[np.float64]:
    """Code length of every integer [n] under the frozen tables, in bits."""
    classes, low = codes
    high = values if not low.any() else (values + ((np.int64(1) << low.astype(np.int64)) >> 1)) >> low
    magnitude = np.abs(high)
    last = tables.largest()[classes]
    escaped = magnitude > last
    index = np.where(escaped, 2 * last + 1, 2 * magnitude)
    bits = 12.0 - np.log2(tables.frequencies()[classes, index]) + low
    if escaped.any():
        bits[escaped] += 2 + 8 * _escape_bytes(_escape_extra(high[escaped].astype(np.int64), last[escaped]))
    return bits
