"""How many bits tensors take at a water level, before anything is quantized, and the least that any code takes.

A tensor is as many independent components (the rectangles of Figure 6 of the paper) as it has weights. Only how many
there are of every variance is kept, by the 64th of an octave, so that a model may be larger than memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from waterfill.theory.checks import Array

OCTAVE = 64
"""Variances are counted by this part of an octave."""

LOWEST, HIGHEST = -256, 192
"""Octaves between which variances are told apart."""


@dataclass(frozen=True, eq=False)
class VarianceHistogram:
    """How many independent components there are of each variance `2^(k / OCTAVE)`.

    Attributes:
        first: the k of the first count.
        counts: float64 [bins]; one component may count as several, or as a part of one.
    """

    first: int
    counts: Array

    @classmethod
    def none(cls) -> VarianceHistogram:
        """No components."""
        return cls(0, np.zeros(0))

    @classmethod
    def of(cls, variances: Array, times: float = 1.0) -> VarianceHistogram:
        """Count the variances of an array; those that are zero cost nothing and hold nothing.

        Args:
            variances: not negative, any shape.
            times: how often each counts.
        """
        flat = variances.reshape(-1)
        return cls._counted(_bins(flat[flat > 0]), times)

    @classmethod
    def of_products(cls, rows: Array, columns: Array, times: float = 1.0) -> VarianceHistogram:
        """Count all products of a row and a column."""
        left, right = cls.of(rows, times), cls.of(columns)
        if not (left.counts.size and right.counts.size):
            return cls.none()
        return cls(left.first + right.first, np.convolve(left.counts, right.counts))

    @classmethod
    def _counted(cls, bins: NDArray[np.int64], times: float) -> VarianceHistogram:
        if not bins.size:
            return cls.none()
        first = int(bins.min())
        return cls(first, times * np.bincount(bins - first).astype(np.float64))

    def __add__(self, other: VarianceHistogram) -> VarianceHistogram:
        if not self.counts.size or not other.counts.size:
            return self if self.counts.size else other
        first = min(self.first, other.first)
        end = max(self.first + self.counts.size, other.first + other.counts.size)
        counts = np.zeros(end - first)
        for each in (self, other):
            counts[each.first - first : each.first - first + each.counts.size] += each.counts
        return VarianceHistogram(first, counts)

    def repeated(self, times: float) -> VarianceHistogram:
        """Count every component so many times."""
        return VarianceHistogram(self.first, times * self.counts)

    def scaled(self, factor: float) -> VarianceHistogram:
        """Multiply every variance by a factor, to the nearest bin."""
        return VarianceHistogram(self.first + round(OCTAVE * float(np.log2(factor))), self.counts)

    @property
    def number(self) -> float:
        """How many components there are."""
        return float(self.counts.sum())

    @property
    def total(self) -> float:
        """Sum of all variances: the distortion at which the rate is zero."""
        return float(self.counts @ self._variances)

    @cached_property
    def logs(self) -> Array:
        """Base-2 logarithms of all variances; kept, for searches of a level ask for them again and again."""
        return (self.first + np.arange(self.counts.size)) / OCTAVE

    @cached_property
    def _variances(self) -> Array:
        return np.exp2(self.logs)

    def forecast(self, level: float) -> float:
        """Bits that codes take at a level, about: `1/2 log2(1 + v / level)` each.

        That is the lower bound at high rate, and never zero, so that there is a level for every number of bits.
        """
        return float(self.counts @ np.log2(1 + np.exp2(np.minimum(self.logs - np.log2(level), 500)))) / 2

    def rate(self, level: float) -> float:
        """The least bits of any code at a level: `max(0, 1/2 log2(v / level))` each."""
        return float(self.counts @ np.maximum(self.logs - np.log2(level), 0)) / 2

    def distortion(self, level: float) -> float:
        """Distortion at a level: `min(level, v)` each."""
        return float(self.counts @ np.minimum(self._variances, level))

    def lagrangian(self, log2_level: float) -> float:
        """The least of rate and of distortion times the slope of a level: of each at most what no rate costs."""
        above = self.logs - log2_level
        none = np.exp2(np.minimum(above, 0)) / math.log(4)
        return float(self.counts @ (np.maximum(above, 0) / 2 + none))

    @property
    def ends(self) -> tuple[float, float]:
        """Base-2 logarithms of the least and of the largest variance."""
        return float(self.logs[0]), float(self.logs[-1])

    def level_at_forecast(self, bits: float) -> float:
        """The level at which codes take so many bits; the highest one where there are no components."""
        return _lowest(lambda level: self.forecast(level) <= bits)

    def level_at_rate(self, bits: float) -> float:
        """The level at which the rate is so many bits."""
        return _lowest(lambda level: self.rate(level) <= bits)

    def at_distortion(self, distortion: float) -> tuple[float, float]:
        """The least bits of any code at a distortion, zero from the total on, and the level there."""
        level = _lowest(lambda level: self.distortion(level) >= distortion)
        return self.rate(level), level


def _bins(variances: Array) -> NDArray[np.int64]:
    logs = np.clip(np.log2(variances), LOWEST, HIGHEST)
    return np.asarray(np.rint(OCTAVE * logs), np.int64)


def _lowest(enough: Callable[[float], bool]) -> float:
    """The lowest level, nearly, from which on `enough` is true."""
    low, high = 2.0 * LOWEST, 2.0 * HIGHEST
    for _ in range(56):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(2.0**middle) else (middle, high)
    return float(2.0**high)
