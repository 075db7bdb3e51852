"""The frozen tables that code the indices of the two subsets of a trellis.

Whole numbers have the tables of the bank. The odd ones lie between the even ones, at k + 1/2 in units of two steps, so
theirs (`half.bin`) have no middle of their own: magnitude m is k = m and k = -m - 1. With zero among them the indices
stand for 0, +-1/2, +-3/2, ... (`zero.bin`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import tables

WHOLE, HALF, ZERO = 0, 1, 2
KINDS = {False: (WHOLE, HALF), True: (WHOLE, ZERO)}
"""Which tables the two subsets have, without and with zero in both."""

HALF_SHA256 = "d1a34760f1e0586b571be5557690fd22336635c8c49d160db7165f053e197248"
ZERO_SHA256 = "1567b541ce89ea194ede82d986f42ac633b0f808991ae0e374493d2874427fb8"
MOST = 128
"""Magnitudes of all tables are below; the byte of a high part h is h + 128, that of the escape 0."""


@functools.cache
def magnitudes(kind: int) -> tuple[tables.Table, ...]:
    """For every family and scale the frequencies of the magnitudes 0..K."""
    if kind == WHOLE:
        return tables.magnitudes()
    return tables.read_bank("half.bin", HALF_SHA256) if kind == HALF else tables.read_bank("zero.bin", ZERO_SHA256)


@dataclass(frozen=True, eq=False)
class SubsetTable:
    """One table as a coder of paths takes it.

    Attributes:
        last: the largest magnitude K that has a symbol of its own.
        frequencies: int64 [256], by byte.
        slots: uint32 [4096], frequency << 20 | offset << 8 | byte.
        info: uint64 [256], start << 12 | frequency, by byte.
    """

    last: int
    frequencies: NDArray[np.int64]
    slots: NDArray[np.uint32]
    info: NDArray[np.uint64]

    @functools.cached_property
    def bits(self) -> NDArray[np.float64]:
        """Bits of every byte [256]; infinite where it has no symbol."""
        with np.errstate(divide="ignore"):
            return 12.0 - np.log2(self.frequencies)


@functools.cache
def table(kind: int, family: int, scale: int) -> SubsetTable:
    """The table of a shape and a standard deviation `2^((scale - 32) / 8)`."""
    half = magnitudes(kind)[family * tables.SCALES + scale]
    positive = np.arange(half.size)
    pairs = np.stack([positive, -positive - 1 if kind == HALF else -positive], axis=1).reshape(-1)
    order = pairs[0 if kind == HALF else 1 :] + 128  # bytes in the order of their slots
    by_symbol = np.append(np.repeat(half, 2)[0 if kind == HALF else 1 :], 0)
    by_symbol[-1] = tables.TOTAL - by_symbol.sum()
    order = np.append(order, 0)
    frequencies, starts = np.zeros(256, np.int64), np.zeros(256, np.int64)
    frequencies[order], starts[order] = by_symbol, np.cumsum(by_symbol) - by_symbol
    symbol = np.repeat(order, by_symbol)
    offset = np.arange(tables.TOTAL) - starts[symbol]
    slots = (frequencies[symbol] << 20 | offset << 8 | symbol).astype(np.uint32)
    return SubsetTable(half.size - 1, frequencies, slots, (starts << 12 | frequencies).astype(np.uint64))


@functools.cache
def code_lengths(kind: int, family: int) -> NDArray[np.float32]:
    """Bits of every magnitude [scale, 0..127], sign included; beyond K the escape and one byte."""
    lengths = np.empty((tables.SCALES, MOST), np.float32)
    for scale in range(tables.SCALES):
        half = magnitudes(kind)[family * tables.SCALES + scale]
        escape = tables.TOTAL - (2 * half.sum() - (0 if kind == HALF else half[0]))
        lengths[scale] = 12.0 - np.log2(escape) + 2.0 + 8.0
        lengths[scale, : half.size] = 12.0 - np.log2(half)
    return lengths
