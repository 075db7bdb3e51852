"""Components of which a limit is made: Gaussian ones by their variances, others by the function of their density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from waterfill.compression.rate_model import VarianceHistogram
from waterfill.theory.scalar_rate import ScalarSource, scalar_rate

STEPS = 33
NARROWINGS = 6
"""Levels that are tried at once, and how often the best one's surroundings are looked at again."""

POINTS = 40
"""Points of a curve."""


@dataclass(frozen=True, eq=False)
class Components:
    """Independent components of the error of a tensor, or of several.

    At a level `mu` each has the least `L` of its rate and of its distortion times the slope `1 / (2 ln 2 mu)`. Every
    level bounds the rate at a distortion by the sum of all L less slope times distortion; the best one is the rate.

    Attributes:
        gaussian: variances of those that are priced like Gaussian ones.
        others: variances by which the unit of each density is scaled.
    """

    gaussian: VarianceHistogram = field(default_factory=VarianceHistogram.none)
    others: Mapping[ScalarSource, VarianceHistogram] = field(default_factory=dict)

    def __add__(self, other: Components) -> Components:
        both = {**self.others}
        for source, scales in other.others.items():
            both[source] = both[source] + scales if source in both else scales
        return Components(self.gaussian + other.gaussian, both)

    @property
    def number(self) -> float:
        """How many components there are."""
        return self.gaussian.number + sum(scales.number for scales in self.others.values())

    @property
    def spread_number(self) -> float:
        """How many components are no letter, on average: each takes a bit more at a quarter of the level."""
        return self.gaussian.number + sum(source.spread_share * each.number for source, each in self.others.items())

    @property
    def variances(self) -> VarianceHistogram:
        """Variances of all of them, whatever their density."""
        scales = (each.scaled(source.variance) for source, each in self.others.items())
        return sum(scales, self.gaussian)

    @property
    def total(self) -> float:
        """The distortion at which the rate is zero."""
        return self.gaussian.total + sum(source.variance * scales.total for source, scales in self.others.items())

    def lagrangian(self, log2_level: float) -> float:
        """Sum of all L at a level, bits."""
        found = self.gaussian.lagrangian(log2_level)
        for source, scales in self.others.items():
            found += _bits(source, scales, log2_level)
        return found

    def rate_at_distortion(self, distortion: float) -> float:
        """The least bits of any code at a distortion: zero from the total on."""
        if not self.number or distortion >= self.total:
            return 0.0
        if not self.others:
            return self.gaussian.rate_at_distortion(distortion)
        return max(0.0, self._best(distortion)[1])

    def level_at_distortion(self, distortion: float) -> float:
        """The level of the slope of the rate at a distortion; infinite from the total on."""
        if not self.number or distortion >= self.total:
            return math.inf
        return float(2.0 ** self._best(distortion)[0])

    def distortion(self, level: float) -> float:
        """Distortion at a level."""
        found = self.gaussian.distortion(level)
        for source, scales in self.others.items():
            found += _distortion(source, scales, math.log2(level))
        return found

    def rate(self, level: float) -> float:
        """Bits at a level."""
        found = self.gaussian.rate(level)
        for source, scales in self.others.items():
            at = math.log2(level)
            found += _bits(source, scales, at) - _distortion(source, scales, at) / (math.log(4) * level)
        return max(0.0, found)

    def level_at_rate(self, bits: float) -> float:
        """The level at which the rate is so many bits."""
        if not self.others:
            return self.gaussian.level_at_rate(bits)
        low, high = self._range
        for _ in range(48):
            middle = (low + high) / 2
            low, high = (low, middle) if self.rate(2.0**middle) <= bits else (middle, high)
        return float(2.0**high)

    def curve(self, bits: float) -> list[tuple[float, float]]:
        """(bits, least distortion) from no bits to twice as many and one for every component.

        The points are closer together near no bits, where the curve bends most.
        """
        if not self.number:
            return []
        places = (2 * bits + self.number) * np.linspace(0.0, 1.0, POINTS) ** 2
        return [(float(each), self.distortion(self.level_at_rate(float(each)))) for each in places]

    @property
    def _range(self) -> tuple[float, float]:
        """Base-2 logarithms of levels between which all rates lie that anybody asks for."""
        ends = [scales.ends for scales in (self.gaussian, *self.others.values()) if scales.counts.size]
        widest = max([1.0, *(source.variance for source in self.others)])
        return min(low for low, _ in ends) - 64, max(high for _, high in ends) + math.log2(widest) + 4

    def _best(self, distortion: float) -> tuple[float, float]:
        """The logarithm of the level that bounds the rate best, and the bits."""
        low, high = self._range
        for _ in range(NARROWINGS):
            levels = np.linspace(low, high, STEPS)
            bits = np.array([self.lagrangian(at) - distortion / math.log(4) * 2.0**-at for at in levels])
            best, step = int(bits.argmax()), float(levels[1] - levels[0])
            low, high = float(levels[best]) - step, float(levels[best]) + step
        return float(levels[best]), float(bits[best])


def _bits(source: ScalarSource, scales: VarianceHistogram, log2_level: float) -> float:
    """Sum of all L at a level."""
    return float(scales.counts @ scalar_rate(source).lagrangian(log2_level - scales.logs))


def _distortion(source: ScalarSource, scales: VarianceHistogram, log2_level: float) -> float:
    """`D = -2 mu dL / d log2 mu`, by differences over a 16th of an octave."""
    step = 1 / 32
    above, below = (_bits(source, scales, log2_level + move) for move in (step, -step))
    return (below - above) / step * float(2.0**log2_level)
