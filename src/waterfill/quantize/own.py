"""Own tables of a tensor from counts of its symbols, rounded as finely as pays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import own, tables
from waterfill.records import Symbols, Table

LARGEST_ROOTS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, own.LARGEST_ROOT)
"""How finely a table may be rounded, half an octave apart."""

LEFT_OUT = (0.0, 0.001, 0.01, 0.05)
"""Fractions of the symbols, the largest and the smallest ones, that a table may leave to what follows it."""

LINE_BITS = 32.0
"""What the directory says about a table: which tensor has it, its first symbol, its length, its code."""

WORTH = 96.0
"""Bits that the own tables of a tensor must save: their share of a stream and its line in the directory."""

WIDEST = 1 << 11
"""Magnitudes beyond are not counted one by one."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often symbols occur.

    Attributes:
        first: the symbol of the first count.
        counts: int64 [n].
        beyond: how many symbols are outside.
    """

    first: int
    counts: Counts
    beyond: int

    @property
    def entropy_bits(self) -> float:
        """Empirical entropy of all symbols, those outside taken as one: no own tables can do with less."""
        counts = np.append(self.counts, self.beyond)
        used = counts[counts > 0]
        return float((used * np.log2(used.sum() / used)).sum())

    @property
    def commonest(self) -> int:
        """The most frequent symbol."""
        return self.first + int(self.counts.argmax())

    def without(self, symbol: int) -> Histogram:
        """The same without one symbol."""
        counts = self.counts.copy()
        counts[symbol - self.first] = 0
        used = np.flatnonzero(counts)
        low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)
        return Histogram(self.first + low, counts[low:high], self.beyond)


def histogram(symbols: Symbols) -> Histogram:
    """Count symbols [n]."""
    ends = (symbols.min(), symbols.max()) if symbols.size else (0, 0)
    low, high = (int(min(max(end, -WIDEST), WIDEST)) for end in ends)
    inside = symbols if (low, high) == ends else symbols[(symbols >= low) & (symbols <= high)]
    counts = np.bincount(inside.astype(np.int64) - low, minlength=max(1, high - low + 1))
    return Histogram(low, counts, symbols.size - inside.size)


def windows(counted: Histogram) -> Iterator[tuple[Table, float]]:
    """Tables of the symbols without the outermost ones, with the bits of the table and of what it codes."""
    ends = np.cumsum(counted.counts)
    seen = set()
    for fraction in LEFT_OUT:
        out = fraction / 2 * ends[-1]
        low, high = int(np.searchsorted(ends, out, "right")), int(np.searchsorted(ends, ends[-1] - out))
        if high - low < own.MOST_SYMBOLS and (low, high) not in seen and low <= high:
            seen.add((low, high))
            inside = counted.counts[low : high + 1]
            escapes = int(ends[-1]) + counted.beyond - int(inside.sum())
            found = table_of(counted.first + low, np.append(inside, escapes))
            if found is not None:
                yield found


def table_of(first: int, counts: Counts) -> tuple[Table, float] | None:
    """The table of so many symbols and escapes [n + 1] with the fewest bits, with them; None where one has nearly all.

    Args:
        first: the first symbol.
        counts: of the symbols, and of the escapes.
    """
    if np.count_nonzero(counts) < 2:
        return None
    best: tuple[Table, float] | None = None
    for largest in LARGEST_ROOTS:
        table = Table(first, roots_of(counts, largest))
        frequencies = own.frequencies(table)
        if frequencies.max() > own.LARGEST_FREQUENCY:
            continue
        bits = own.ideal_bits(counts, frequencies) + float(own.stored_bits(own.differences(table)).min()) + LINE_BITS
        if best is None or bits < best[1]:
            best = table, bits
    return best


def roots_of(counts: Counts, largest: int) -> Symbols:
    """Square roots of what the frequencies have beyond 1, as whole numbers up to `largest`; at least 1 where used."""
    others = counts.sum() - counts.max()
    shares = np.minimum(counts, others * (own.LARGEST_FREQUENCY / (tables.TOTAL - own.LARGEST_FREQUENCY)))
    above = np.maximum(shares * (tables.TOTAL / shares.sum()) - 1, 0)
    roots: Symbols = np.maximum(np.rint(np.sqrt(above / above.max()) * largest), counts > 0).astype(np.int32)
    return roots
