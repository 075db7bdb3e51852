"""Canonical Huffman codes, for the codecs that others use."""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np
from numpy.typing import NDArray

LONGEST = 20
RAREST = 2.0**-13
"""Least probability that a symbol counts with, so that no code word is longer than `LONGEST`."""

ALONE = 255
"""In place of its length: a symbol that needs no code word, because there is no other."""


def lengths(symbols: NDArray[np.int64], alphabet: int) -> NDArray[np.uint8]:
    """Bits of each symbol's code word, 0 for those that do not occur; or that one is alone."""
    counts = np.bincount(symbols, minlength=alphabet)
    bits = np.zeros(alphabet, np.uint8)
    order = count()
    heap = [(max(int(counts[s]), RAREST * counts.sum()), next(order), [int(s)]) for s in np.flatnonzero(counts)]
    heapq.heapify(heap)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        merged = first[2] + second[2]
        bits[merged] += 1
        heapq.heappush(heap, (first[0] + second[0], next(order), merged))
    assert bits.max(initial=0) <= LONGEST
    if np.count_nonzero(counts) == 1:
        bits[counts > 0] = ALONE
    return bits


def encode(symbols: NDArray[np.int64], bits: NDArray[np.uint8]) -> bytes:
    """The code words one after the other."""
    if ALONE in bits:
        return b""
    words, size = _words(bits)[symbols], bits[symbols].astype(np.int64)
    ends = np.cumsum(size)
    stream = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for place in range(int(bits.max(initial=0))):
        there = size > place
        stream[(ends - 1 - place)[there]] = (words[there] >> place) & 1
    return np.packbits(stream).tobytes()


def decode(data: bytes, bits: NDArray[np.uint8], number: int) -> NDArray[np.int64]:
    """As many symbols as were encoded."""
    if ALONE in bits or not number:
        return np.full(number, int(bits.argmax()) if len(bits) else 0, np.int64)
    longest = int(bits.max())
    stream = np.concatenate([np.unpackbits(np.frombuffer(data, np.uint8)), np.zeros(longest, np.uint8)])
    windows = np.zeros(len(stream) - longest + 1, np.int64)
    for place in range(longest):
        windows = 2 * windows + stream[place : place + len(windows)]
    table = np.zeros(1 << longest, np.int64)
    for symbol in np.flatnonzero(bits):
        start = int(_words(bits)[symbol]) << (longest - int(bits[symbol]))
        table[start : start + (1 << (longest - int(bits[symbol])))] = symbol
    found = table[windows].tolist()
    steps, place, symbols = bits.tolist(), 0, []
    for _ in range(number):
        symbols.append(found[place])
        place += steps[found[place]]
    return np.array(symbols, np.int64)


def _words(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Code words in the order of (length, symbol)."""
    words, word, last = np.zeros(len(bits), np.int64), -1, 0
    for symbol in sorted(np.flatnonzero(bits), key=lambda s: (bits[s], s)):
        word = (word + 1) << (int(bits[symbol]) - last)
        last = int(bits[symbol])
        words[symbol] = word
    return words
