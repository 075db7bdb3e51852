"""Components of which a limit is made: Gaussian ones by their variances, others by the function of their density."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from waterfill.compression.rate_model import VarianceHistogram
from waterfill.theory.checks import Array
from waterfill.theory.scalar_rate import ScalarSource, scalar_rate

AN_OCTAVE = 16
BELOW, ABOVE = 48, 4
"""Levels of a table in an octave, and how many octaves it goes beyond the components."""

POINTS = 40
"""Points of a curve."""

TINY = 1e-300
"""In the place of a distortion of zero, for its logarithm."""


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

    def at_distortion(self, distortion: float) -> tuple[float, float]:
        """The least bits of any code at a distortion, and the level there: zero and infinite from the total on."""
        if not self.number or distortion >= self.total:
            return 0.0, math.inf
        return self._function.at_distortion(distortion)

    def rate_at_distortion(self, distortion: float) -> float:
        """The least bits of any code at a distortion: zero from the total on."""
        return self.at_distortion(distortion)[0]

    def distortion(self, level: float) -> float:
        """Distortion at a level."""
        return self._function.distortion(level)

    def rate(self, level: float) -> float:
        """Bits at a level."""
        return self._function.rate(level)

    def level_at_rate(self, bits: float) -> float:
        """The level at which the rate is so many bits."""
        return self._function.level_at_rate(bits)

    def curve(self, bits: float) -> list[tuple[float, float]]:
        """(bits, least distortion) from no bits to twice as many and one for every component.

        The points are closer together near no bits, where the curve bends most.
        """
        if not self.number:
            return []
        places = (2 * bits + self.number) * np.linspace(0.0, 1.0, POINTS) ** 2
        return [(float(each), self.distortion(self.level_at_rate(float(each)))) for each in places]

    @cached_property
    def _function(self) -> VarianceHistogram | _Table:
        """The rate-distortion function: water-filling where all are Gaussian."""
        return self._table() if self.others else self.gaussian

    def _table(self) -> _Table:
        """Sums over all components, between levels so high and so low that nobody asks for others."""
        ends = [scales.ends for scales in (self.gaussian, *self.others.values()) if scales.counts.size]
        widest = max([1.0, *(source.variance for source in self.others)])
        low, high = min(low for low, _ in ends) - BELOW, max(high for _, high in ends) + math.log2(widest) + ABOVE
        levels = np.linspace(low, high, math.ceil((high - low) * AN_OCTAVE))
        lagrangians = np.array([self.gaussian.lagrangian(level) for level in levels])
        for source, scales in self.others.items():
            lagrangians += scalar_rate(source).lagrangian(levels[:, None] - scales.logs) @ scales.counts
        return _Table(levels, lagrangians)


@dataclass(frozen=True, eq=False)
class _Table:
    """Sums of L at evenly spaced levels, and what follows from them.

    Attributes:
        log2_levels: base-2 logarithms of the levels, from the lowest on.
        lagrangians: bits.
    """

    log2_levels: Array
    lagrangians: Array

    @cached_property
    def slopes(self) -> Array:
        """Bits for a unit of distortion."""
        return np.asarray(np.exp2(-self.log2_levels) / math.log(4))

    @cached_property
    def distortions(self) -> Array:
        """`D = dL / ds`: the slope of a concave function, which never falls from a level to a higher one."""
        found = np.gradient(self.lagrangians, self.slopes)
        return np.maximum.accumulate(np.maximum(found, 0.0))

    @cached_property
    def rates(self) -> Array:
        """`L - s D`, which never rises from a level to a higher one."""
        found = np.maximum(self.lagrangians - self.slopes * self.distortions, 0.0)
        return np.maximum.accumulate(found[::-1])[::-1]

    def at_distortion(self, distortion: float) -> tuple[float, float]:
        """The best of all bounds at a distortion, bits, and its level."""
        bounds = self.lagrangians - distortion * self.slopes
        best = int(bounds.argmax())
        return max(0.0, float(bounds[best])), float(2.0 ** self.log2_levels[best])

    def distortion(self, level: float) -> float:
        """Distortion at a level."""
        logs = np.log(np.maximum(self.distortions, TINY))
        return float(np.exp(np.interp(math.log2(level), self.log2_levels, logs)))

    def rate(self, level: float) -> float:
        """Bits at a level."""
        return float(np.interp(math.log2(level), self.log2_levels, self.rates))

    def level_at_rate(self, bits: float) -> float:
        """The level at which the rate is so many bits."""
        return float(2.0 ** np.interp(-bits, -self.rates, self.log2_levels))
