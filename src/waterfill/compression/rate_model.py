"""How many bits matrices take at a water level, and what any code needs, from histograms of their volumes.

A model that does not fit into memory has as many rectangles (Figure 6 of the paper) as weights; only how many there are
of every volume is kept, by the 64th of an octave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waterfill.theory.checks import Array

OCTAVE = 64
"""Volumes are counted by this part of an octave."""

LOWEST, HIGHEST = -256, 192
"""Octaves between which volumes are told apart."""


@dataclass(frozen=True, eq=False)
class Volumes:
    """How many rectangles there are of each volume.

    Attributes:
        counts: float64 [bins]: of the volume `2^(LOWEST + (k + 1/2) / OCTAVE)`; as many may be parts of one.
    """

    counts: Array

    @classmethod
    def none(cls) -> Volumes:
        """No rectangles."""
        return cls(np.zeros((HIGHEST - LOWEST) * OCTAVE))

    @classmethod
    def of(cls, volumes: Array, times: float = 1.0) -> Volumes:
        """Those of an array; empty ones cost nothing and hold nothing.

        Args:
            volumes: not negative, any shape.
            times: how often each counts.
        """
        flat = volumes.reshape(-1)
        counts = np.bincount(_bins(flat[flat > 0]), minlength=(HIGHEST - LOWEST) * OCTAVE)
        return cls(times * counts.astype(np.float64))

    @classmethod
    def products(cls, rows: Array, columns: Array, times: float = 1.0) -> Volumes:
        """Those of all products of a row and a column."""
        left, right = (np.bincount(_bins(each[each > 0])) for each in (rows, columns))
        if not (left.any() and right.any()):
            return cls.none()
        first = int(np.flatnonzero(left)[0] + np.flatnonzero(right)[0]) + LOWEST * OCTAVE
        found = np.convolve(np.trim_zeros(left, "f"), np.trim_zeros(right, "f"))
        counts = np.zeros((HIGHEST - LOWEST) * OCTAVE)
        np.add.at(counts, np.clip(first + np.arange(found.size), 0, counts.size - 1), found)
        return cls(times * counts)

    def __add__(self, other: Volumes) -> Volumes:
        return Volumes(self.counts + other.counts)

    def scaled(self, factor: float) -> Volumes:
        """Every volume multiplied by a factor, to the nearest bin."""
        return Volumes(np.roll(self.counts, round(OCTAVE * float(np.log2(factor)))))

    @property
    def number(self) -> float:
        """How many rectangles there are."""
        return float(self.counts.sum())

    def forecast(self, level: float) -> float:
        """Bits that codes take at a level, about: `1/2 log2(1 + v / level)` each, see `Forecast`."""
        return float(self.counts @ np.log2(1 + np.exp2(np.minimum(_LOGS - np.log2(level), 500)))) / 2

    def rate(self, level: float) -> float:
        """The least bits of any code at a level: `max(0, 1/2 log2(v / level))` each."""
        return float(self.counts @ np.maximum(_LOGS - np.log2(level), 0)) / 2

    def distortion(self, level: float) -> float:
        """Distortion at a level: `min(level, v)` each."""
        return float(self.counts @ np.minimum(np.exp2(_LOGS), level))

    def level_at_forecast(self, bits: float) -> float:
        """The level at which codes take so many bits."""
        return _solve(lambda level: self.forecast(level) <= bits)

    def rate_at_distortion(self, distortion: float) -> float:
        """The least bits of any code at a distortion."""
        return self.rate(_solve(lambda level: self.distortion(level) >= distortion))


_LOGS = LOWEST + (np.arange((HIGHEST - LOWEST) * OCTAVE) + 0.5) / OCTAVE


def _bins(volumes: Array) -> NDArray[np.int64]:
    bins = np.floor(OCTAVE * (np.log2(volumes) - LOWEST)).astype(np.int64)
    return np.asarray(np.clip(bins, 0, (HIGHEST - LOWEST) * OCTAVE - 1))


def _solve(enough: Callable[[float], bool]) -> float:
    """The lowest level, nearly, from which on `enough` is true."""
    low, high = float(LOWEST), float(HIGHEST)
    for _ in range(48):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(2.0**middle) else (middle, high)
    return float(2.0**high)
