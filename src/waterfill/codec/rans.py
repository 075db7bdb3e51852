"""Interleaved rANS streams: runs of table symbols to bytes and back.

Source: Duda, "Asymmetric numeral systems" (arXiv 1311.2540); interleaving after Giesen (arXiv 1402.3392).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import tables
from waterfill.errors import FormatError
from waterfill.loaded import has_kernels

T = TypeVar("T")

LANES = 8
INITIAL_STATE = 1 << 16
HEADER_BYTES = 4 * LANES

TableSymbols = NDArray[np.uint8]
States = NDArray[np.uint64]
Words = NDArray[np.uint16]
Classes = NDArray[np.uint16]
Frequencies = NDArray[np.int64]


SHORT = 1 << 15
"""Symbols of a run that Python reads in less time than it takes to load compiled code."""


class Run(NamedTuple):
    """Symbols that are coded one after the other.

    Attributes:
        symbols: table symbols [n].
        classes: their tables [n] in the bank; zeros for an own table.
        own: frequencies of one table instead of the bank.
    """

    symbols: TableSymbols
    classes: Classes
    own: Frequencies | None = None

    @property
    def events(self) -> int:
        """How many symbols of tables there are: no fewer than the words they take."""
        return self.symbols.size

    def encode(self, states: States, words: Words, at: int) -> int:
        """Encode the run from its end; returns the new top of `words`."""
        from waterfill.codec import kernels

        info = tables.encoder_info() if self.own is None else tables.info_of(self.own)
        top: int = kernels.encode_run(self.symbols, self.classes, info, tables.inverses(), states, words, at)
        return top


class Encodable(Protocol):
    """What a stream is made of."""

    @property
    def events(self) -> int:
        """The most words that it takes."""
        ...

    def encode(self, states: States, words: Words, at: int) -> int:
        """Encode it from its end, words downwards from `at`; returns the new top of `words`."""
        ...


def encode(runs: Sequence[Encodable], lanes: int = LANES) -> bytes:
    """Encode runs of symbols into one stream; a decoder gets them back in the same order.

    Args:
        runs: symbols and their tables.
        lanes: how many states there are; runs of symbols use the first eight.

    Returns:
        Little-endian 32-bit states, then 16-bit words.
    """
    states = np.full(lanes, INITIAL_STATE, np.uint64)
    words = np.empty(sum(run.events for run in runs) + LANES, np.uint16)
    at = words.size
    for run in reversed(runs):
        at = run.encode(states, words, at)
    return states.astype("<u4").tobytes() + words[at:].astype("<u2").tobytes()


class Decoder:
    """Reads the runs of one stream in order; `finish` proves that all of it was read and none was damaged."""

    def __init__(self, stream: bytes | memoryview, lanes: int = LANES) -> None:
        """Start reading.

        Args:
            stream: what `encode` made.
            lanes: how many states it has.

        Raises:
            FormatError: the stream is shorter than its states or has an odd length.
        """
        if len(stream) < 4 * lanes or len(stream) % 2:
            raise FormatError(f"a stream of {len(stream)} bytes is cut; expected an even number from {4 * lanes}")
        self._states = np.frombuffer(stream, "<u4", lanes).astype(np.uint64)
        words = np.frombuffer(stream, "<u2", offset=4 * lanes)
        self._end = words.size
        self._words = np.concatenate([words, np.zeros(tables.PADDING, np.uint16)])
        self._at = 0

    def run(self, classes: Classes, own: Frequencies | None = None) -> TableSymbols:
        """Decode the next run, one symbol for every class.

        Args:
            classes: tables [n] in the bank; zeros for an own table.
            own: frequencies of one table instead of the bank.

        Raises:
            FormatError: the stream ends too early.
        """
        if classes.size <= SHORT and not has_kernels():
            symbols = self._short_run(classes, own)
        else:
            symbols = self._long_run(classes, own)
        if not 0 <= self._at <= self._end:
            raise FormatError("a stream ends before its symbols do")
        return symbols

    def _long_run(self, classes: Classes, own: Frequencies | None) -> TableSymbols:
        from waterfill.codec import kernels

        symbols = np.empty(classes.size, np.uint8)
        slots = tables.decoder_slots() if own is None else tables.slots_of(own)
        self._at = kernels.decode_run(self._words, self._at, self._states, classes, slots, symbols)
        return symbols

    def _short_run(self, classes: Classes, own: Frequencies | None) -> TableSymbols:
        """The same by Python alone."""
        states, known = self._states[:LANES].tolist(), {}
        words = self._words[self._at : self._at + classes.size + 1].tolist()
        at, symbols = 0, bytearray(classes.size)
        for n, number in enumerate(classes.tolist()):
            if number not in known:
                frequency = tables.frequencies()[number] if own is None else own
                known[number] = (np.cumsum(frequency) - frequency).tolist(), frequency.tolist()
            starts, frequencies = known[number]
            x = states[n % LANES]
            slot = x & (tables.TOTAL - 1)
            symbol = bisect_right(starts, slot) - 1
            x = frequencies[symbol] * (x >> 12) + slot - starts[symbol]
            if x < INITIAL_STATE:
                x, at = x << 16 | (words[at] if at < len(words) else 0), at + 1
            states[n % LANES], symbols[n] = x, symbol
        self._states[:LANES] = states
        self._at += at
        return np.frombuffer(symbols, np.uint8)

    def read(self, decode: Callable[[Words, int, States], tuple[T, int]]) -> T:
        """Read something else than a run, given how: from words and a position, with the states changed in place.

        Args:
            decode: returns what it read and the next position.
        """
        found, self._at = decode(self._words, self._at, self._states)
        return found

    def finish(self) -> None:
        """Check that the stream is used up and that every state is back where the encoder started.

        Raises:
            FormatError: it is not.
        """
        if self._at != self._end or (self._states != INITIAL_STATE).any():
            raise FormatError("a stream does not end where its symbols do")
