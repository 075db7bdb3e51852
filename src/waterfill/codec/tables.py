"""The frozen integer tables of the format: symbol frequencies, logarithmic scales.

Nothing here is computed in floating point at run time: `bank.bin` holds the frequencies (made by
`scripts/make_tables.py`, checked by its SHA-256), and a scale `2^(k/64)` is a table entry times an exact power of two.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import resources

import numpy as np
from numpy.typing import NDArray

FAMILIES = 9
"""Shapes of the generalised Gaussian: 0.4, 0.5, 0.6, 0.7, 0.8, 1 (Laplace), 1.2, 1.5, 2 (Gaussian)."""

SCALES = 57
"""Standard deviations `2^((k - 32) / 8)` steps, k = 0..56: from 1/16 to 8 steps."""

UNIT_SCALE = 32
"""Index of the standard deviation of one step."""

PADDING = 48
"""So many words that are not part of a stream follow it: what is read before its end is looked at."""

TOTAL = 4096
ALPHABET = 256
FIRST_BANK_CLASS = 8
"""Classes 0..7 are uniform over 2^1..2^8 symbols; then come the families, each with its scales."""

CLASSES = FIRST_BANK_CLASS + FAMILIES * SCALES
SHA256 = "d4dc8f735ea410d7abdecb28254d09e92c16c549e9270abdf6359482c4fecd3e"

OCTAVE = (
    0x3F800000,
    0x3F8164D2,
    0x3F82CD87,
    0x3F843A29,
    0x3F85AAC3,
    0x3F871F62,
    0x3F88980F,
    0x3F8A14D5,
    0x3F8B95C2,
    0x3F8D1ADF,
    0x3F8EA43A,
    0x3F9031DC,
    0x3F91C3D3,
    0x3F935A2B,
    0x3F94F4F0,
    0x3F96942D,
    0x3F9837F0,
    0x3F99E046,
    0x3F9B8D3A,
    0x3F9D3EDA,
    0x3F9EF532,
    0x3FA0B051,
    0x3FA27043,
    0x3FA43516,
    0x3FA5FED7,
    0x3FA7CD94,
    0x3FA9A15B,
    0x3FAB7A3A,
    0x3FAD583F,
    0x3FAF3B79,
    0x3FB123F6,
    0x3FB311C4,
    0x3FB504F3,
    0x3FB6FD92,
    0x3FB8FBAF,
    0x3FBAFF5B,
    0x3FBD08A4,
    0x3FBF179A,
    0x3FC12C4D,
    0x3FC346CD,
    0x3FC5672A,
    0x3FC78D75,
    0x3FC9B9BE,
    0x3FCBEC15,
    0x3FCE248C,
    0x3FD06334,
    0x3FD2A81E,
    0x3FD4F35B,
    0x3FD744FD,
    0x3FD99D16,
    0x3FDBFBB8,
    0x3FDE60F5,
    0x3FE0CCDF,
    0x3FE33F89,
    0x3FE5B907,
    0x3FE8396A,
    0x3FEAC0C7,
    0x3FED4F30,
    0x3FEFE4BA,
    0x3FF28177,
    0x3FF5257D,
    0x3FF7D0DF,
    0x3FFA83B3,
    0x3FFD3E0C,
)
"""Bit patterns of the float32 nearest to 2^(k/64), k = 0..63."""

Table = NDArray[np.int64]


def uniform_class(bits: int) -> int:
    """Class of a symbol that is uniform over 2^bits values, 1 <= bits <= 8."""
    return bits - 1


def bank_class(family: int, scale: int) -> int:
    """Class of a generalised Gaussian, 0 <= family < FAMILIES, 0 <= scale < SCALES."""
    return FIRST_BANK_CLASS + family * SCALES + scale


@functools.cache
def magnitudes() -> tuple[Table, ...]:
    """For every bank class the frequencies of the magnitudes 0..K; above zero they count once for each sign."""
    return read_bank("bank.bin", SHA256)


def read_bank(name: str, digest: str) -> tuple[Table, ...]:
    """For every family and scale of a file of tables the frequencies of the magnitudes 0..K.

    Raises:
        RuntimeError: the file has another SHA-256.
    """
    data = resources.files("waterfill.codec").joinpath(name).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise RuntimeError(f"codec/{name} is not the table of this format: the installation is damaged; reinstall it")
    tables, at = [], 0
    for _ in range(FAMILIES * SCALES):
        count = data[at] + 1
        tables.append(np.frombuffer(data, "<u2", count, at + 1).astype(np.int64))
        at += 1 + 2 * count
    return tuple(tables)


@functools.cache
def largest() -> NDArray[np.int64]:
    """For every class the largest magnitude K that has a symbol of its own (0 for uniform classes)."""
    return np.array([0] * FIRST_BANK_CLASS + [len(table) - 1 for table in magnitudes()])


@functools.cache
def frequencies() -> NDArray[np.int64]:
    """Frequencies [class, symbol], each row with the sum 4096.

    Symbol 0 is zero, 2k - 1 is k, 2k is -k, 2K + 1 is the escape. A uniform class has the symbols 0..2^bits - 1.
    """
    rows = np.zeros((CLASSES, ALPHABET), np.int64)
    for bits in range(1, 9):
        rows[uniform_class(bits), : 1 << bits] = TOTAL >> bits
    for row, table in zip(rows[FIRST_BANK_CLASS:], magnitudes(), strict=True):
        both = np.repeat(table[1:], 2)
        row[0] = table[0]
        row[1 : 1 + both.size] = both
        row[1 + both.size] = TOTAL - row.sum()
    return rows


@functools.cache
def starts() -> NDArray[np.int64]:
    """First slot of every symbol [class, symbol]."""
    return np.cumsum(frequencies(), axis=1) - frequencies()


def info_of(frequencies: NDArray[np.int64]) -> NDArray[np.uint64]:
    """What an encoder needs: `start << 12 | frequency`, flattened over [..., symbol]."""
    starts = np.cumsum(frequencies, axis=-1) - frequencies
    return (starts << 12 | frequencies).astype(np.uint64).ravel()


@functools.cache
def encoder_info() -> NDArray[np.uint64]:
    """`start << 12 | frequency` of the bank, flattened over [class, symbol]."""
    return info_of(frequencies())


@functools.cache
def inverses() -> NDArray[np.float64]:
    """1 / frequency for 0..4096."""
    return np.concatenate([[0.0], 1.0 / np.arange(1, TOTAL + 1)])


def slots_of(frequencies: NDArray[np.int64]) -> NDArray[np.uint32]:
    """What a decoder needs of one table: `frequency << 20 | offset in symbol << 8 | symbol` for each of 4096 slots."""
    symbol = np.repeat(np.arange(frequencies.size), frequencies)
    offset = np.arange(TOTAL) - (np.cumsum(frequencies) - frequencies)[symbol]
    return ((frequencies[symbol] << 20) | (offset << 8) | symbol).astype(np.uint32)


@functools.cache
def decoder_slots() -> NDArray[np.uint32]:
    """Slots of the bank, flattened over [class, 4096]."""
    return np.concatenate([slots_of(row) for row in frequencies()])


@functools.cache
def code_lengths(family: int) -> NDArray[np.float32]:
    """Bits of every magnitude [scale, 0..127], sign included; beyond K the escape and its bytes.

    An escaped magnitude costs the escape symbol, two bits that count the bytes, and whole bytes.
    """
    lengths = np.empty((SCALES, 128), np.float32)
    for scale in range(SCALES):
        row = frequencies()[bank_class(family, scale)]
        last = int(largest()[bank_class(family, scale)])
        lengths[scale] = 12.0 - np.log2(row[2 * last + 1]) + 2.0 + 8.0
        lengths[scale, : last + 1] = 12.0 - np.log2(row[0 : 2 * last + 1 : 2])
    return lengths


@functools.cache
def _octave() -> NDArray[np.float32]:
    """2^(k/64) for k = 0..63, rounded to float32, as the bit patterns of the format."""
    return np.array(OCTAVE, np.uint32).view(np.float32)


def power(index: NDArray[np.int64] | int) -> NDArray[np.float32]:
    """`2^(index / 64)` from the frozen table, exactly the same float32 everywhere; -8000 <= index <= 8000."""
    whole, part = np.divmod(np.asarray(index, np.int64), 64)
    return np.ldexp(_octave()[part], whole.astype(np.int32))
