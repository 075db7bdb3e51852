"""Tables of a tensor's own: frequencies of consecutive symbols and of an escape, as small whole numbers.

A table is stored as the square roots of its frequencies: they are known to about as many digits each as a count of
symbols is certain, and as only their ratios matter, a writer chooses how finely to round them.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import symbols, tables
from waterfill.codec.rans import Frequencies, TableSymbols
from waterfill.errors import FormatError
from waterfill.records import Symbols, Table

MOST_TABLES = 2
"""Of one tensor."""

MOST_SYMBOLS = 255
"""Of one table, without the escape."""

LARGEST_ROOT = 1023
LARGEST_FREQUENCY = 4093
"""No symbol takes less than 1/1000 bit, so that a short stream cannot stand for many."""

LARGEST_FIRST = 1 << 30
LARGEST_CODE = 120
"""Spread of the differences of roots, in eighths of an octave, 32 for 1."""


def frequencies(table: Table) -> Frequencies:
    """Frequencies of the symbols and of the escape [n + 1], with the sum 4096; at least 1 where there is a root.

    Each has 1, and the rest is divided by the squares of the roots: what lies before a symbol is rounded down.
    """
    used = table.roots > 0
    weights = np.square(table.roots, dtype=np.int64)
    left = tables.TOTAL - int(used.sum())
    ends = np.cumsum(used) + left * np.cumsum(weights) // max(1, int(weights.sum()))
    starts = np.concatenate([[0], ends[:-1]])
    found: Frequencies = ends - starts
    return found


def differences(table: Table) -> Symbols:
    """The roots as they are stored: each less the one before, int32 [n + 1]."""
    return np.diff(table.roots, prepend=np.int32(0))


def from_differences(first: int, stored: Symbols) -> Table:
    """Undo `differences`.

    Raises:
        FormatError: a root is out of range, or a symbol has nearly all of the frequency.
    """
    roots = np.cumsum(stored, dtype=np.int64)
    if roots.min() < 0 or roots.max() > LARGEST_ROOT:
        raise FormatError(f"a root of a table is out of range; expected 0 to {LARGEST_ROOT}")
    table = Table(first, roots.astype(np.int32))
    if not table.roots.any() or frequencies(table).max() > LARGEST_FREQUENCY:
        raise FormatError(f"a table has a frequency above {LARGEST_FREQUENCY}, or none at all")
    return table


def ideal_bits(counts: NDArray[np.int64], frequency: Frequencies) -> float:
    """Code length of so many of each table symbol [n + 1]."""
    used = counts > 0
    return float((counts[used] * (12.0 - np.log2(frequency[used]))).sum())


@functools.cache
def difference_bits() -> NDArray[np.float32]:
    """Bits of the differences -1023..1023 at every code [121, 2047]."""
    values = np.arange(-LARGEST_ROOT, LARGEST_ROOT + 1, dtype=np.int32)
    spread = [np.full(values.size, code, np.int32) for code in range(LARGEST_CODE + 1)]
    rows = [symbols.bits_of(values, symbols.exponent_codes(row, symbols.SIDE_FAMILY)) for row in spread]
    return np.array(rows, np.float32)


def stored_bits(differences: Symbols) -> NDArray[np.float32]:
    """Bits of the differences of a table under every code [121]."""
    bits: NDArray[np.float32] = difference_bits()[:, differences + LARGEST_ROOT].sum(axis=1)
    return bits


def best_code(differences: Symbols) -> int:
    """The code that stores the differences of a table in the fewest bits."""
    return int(stored_bits(differences).argmin())


def to_symbols(values: Symbols, table: Table) -> tuple[TableSymbols, NDArray[np.bool_]]:
    """Table symbols of integers [n], and which of them escape."""
    frequency = frequencies(table)
    escape = frequency.size - 1
    index = values.astype(np.int64) - table.first
    index[(index < 0) | (index > escape)] = escape
    index[frequency[index] == 0] = escape
    escaped = index == escape
    assert frequency[escape] or not escaped.any(), "a table without an escape lacks a symbol"
    return index.astype(np.uint8), escaped


def to_values(indices: TableSymbols, table: Table) -> Symbols:
    """Undo `to_symbols`; an escape becomes any value."""
    return (table.first + np.arange(table.roots.size, dtype=np.int32))[indices]
