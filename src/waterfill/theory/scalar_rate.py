"""The rate-distortion function of one weight of any density, as a table over the water level.

A level `mu` stands for the slope `s = 1 / (2 ln 2 mu)` bits per unit of distortion: that of a Gaussian with the error
`mu`. The table has `L(mu) = min_D R(D) + s D`, the most that any rate-distortion function says at that slope. Weights
that are independent add their L, each scaled by its own variance, and

    R(D) = max_mu  sum_j L_j(mu) - s D :

every level gives a bound, so no search for the right one can make the limit wrong.

Source: Blahut 1972; Berger 1971, section 2.5, for the parametric form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from waterfill.theory.checks import Array
from waterfill.theory.gaussian_mixture import GaussianMixture
from waterfill.theory.monotone_curve import MonotoneCurve
from waterfill.theory.sources import log2_deviation

HIGHEST_LEVEL = 3.0
"""Octaves above the variance from which the table begins; there the rate of any weight is nearly zero."""

STEPS_AN_OCTAVE = 2
OCTAVES = 18
"""How far down the table goes, at most."""

NODES_A_WIDTH = 4
NODES_A_LUMP = 8
"""Nodes in `sqrt(mu)`; more for lumps, of which one may lie between two nodes: .015 bit with 4, .004 with 8."""

WIDTHS = 6
"""How many `sqrt(mu)` the kernel reaches; beyond it is below 2e-8."""

SELDOM = 1e8
"""One weight of so many is beyond the reach of a grid, about."""

MOST_NODES = 1 << 15
"""With more of them tables end, and the bounds of high rate go on."""

UPDATES = 200
"""Of the distribution of reproductions at each level: within .0025 bit of the function of a Gaussian."""

LOOK = 20
ENOUGH = 2e-4
"""It ends when so many updates gain no more bits than that."""

LEAST = 1e-300
"""Of a probability, so that it can be divided by and grow."""


@dataclass(frozen=True)
class ScalarSource:
    """One random weight: letters with probabilities, and a density of generalized Gaussian or normal lumps.

    Attributes:
        letters: values that have a probability each.
        probabilities: of these.
        shape: of a generalized Gaussian of scale 1 that the rest is drawn from; 0 for none.
        lumps: that the rest is drawn from; None for none.
    """

    letters: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    shape: float = 0.0
    lumps: GaussianMixture | None = None

    @property
    def spread_share(self) -> float:
        """Probability that the weight is none of the letters."""
        return 1.0 - sum(self.probabilities)

    @property
    def most_bits(self) -> float:
        """The entropy of letters; infinite where the weight may be none of them."""
        if self.lumps is not None or self.shape:
            return math.inf
        return -sum(p * math.log2(p) for p in self.probabilities)

    @property
    def is_scattered(self) -> bool:
        """Whether it has lumps that lie apart."""
        return self.lumps is not None and self.lumps.is_scattered

    @property
    def variance(self) -> float:
        """Second moment about the mean of everything."""
        mean = sum(p * x for p, x in zip(self.probabilities, self.letters, strict=True))
        square = sum(p * x * x for p, x in zip(self.probabilities, self.letters, strict=True))
        if self.lumps is not None:
            mean, square = mean + self.lumps.mean, square + self.lumps.second_moment
        elif self.shape:
            square += self.spread_share * 4.0 ** log2_deviation(self.shape)
        return square - mean**2

    @property
    def reach(self) -> float:
        """Largest magnitude that comes up once in 1e8 weights or more often."""
        ends = [abs(letter) for letter in self.letters]
        if self.lumps is not None:
            ends.append(self.lumps.reach)
        elif self.shape:
            ends.append(math.log(SELDOM) ** (1 / self.shape))
        return max(ends)

    def masses(self, nodes: Array, width: float) -> Array:
        """Probability near each of evenly spaced nodes; letters are at the nearest one.

        Args:
            nodes: evenly spaced [n], beyond `reach` on both sides.
            width: between them.
        """
        found = self._spread(nodes, width)
        for letter, probability in zip(self.letters, self.probabilities, strict=True):
            found[int((letter - nodes[0]) / width + 0.5)] += probability
        return np.asarray(found / found.sum())

    def cumulative(self, values: Array) -> Array:
        """Probability below values, of what is no letter."""
        if self.lumps is not None:
            return self.lumps.cumulative(values)
        from scipy.special import gammainc  # here, for `import waterfill` to stay light

        with np.errstate(under="ignore"):
            powers = np.minimum(np.abs(values), self.reach) ** self.shape
        return np.asarray(0.5 + np.sign(values) * gammainc(1 / self.shape, powers) / 2)

    def _spread(self, nodes: Array, width: float) -> Array:
        """Of what is no letter."""
        if self.lumps is None and not self.shape:
            return np.zeros(nodes.size)
        edges = np.append(nodes - width / 2, nodes[-1] + width / 2)
        return np.asarray(self.spread_share * np.diff(self.cumulative(edges)))


@dataclass(frozen=True, eq=False)
class ScalarRate:
    """`L` of one weight at levels half an octave apart, and beyond.

    Attributes:
        source: whose it is.
        highest: base-2 logarithm of the first level.
        lagrangians: bits, from the highest level down.
    """

    source: ScalarSource
    highest: float
    lagrangians: Array

    def lagrangian(self, log2_levels: Array) -> Array:
        """`L` at levels: above the table the chord to no slope, and below it the high-rate slope.

        Args:
            log2_levels: base-2 logarithms of the levels, any shape.
        """
        places = (self.highest - log2_levels) * STEPS_AN_OCTAVE
        last = self.lagrangians.size - 1
        inside = self._curve.at(np.clip(places, 0, last))
        nothing = self.source.variance * np.exp2(-log2_levels) / math.log(4)
        above = np.exp2(self.highest - log2_levels) * self.lagrangians[0]  # concave in the slope, and 0 at 0
        found = np.minimum(np.where(places < 0, above, inside), nothing)
        return np.where(places > last, self._below(log2_levels), found)

    def _below(self, log2_levels: Array) -> Array:
        """`L` below the table: of lumps what it is there until their own spread counts, by the Shannon lower bound."""
        if self.source.lumps is not None:
            of_spread = self.source.lumps.entropy - (math.log2(2 * math.pi) + log2_levels) / 2
            return np.asarray(np.maximum(self.lagrangians[-1], of_spread))
        octaves = self.highest - (self.lagrangians.size - 1) / STEPS_AN_OCTAVE - log2_levels
        return np.asarray(self.lagrangians[-1] + octaves * self.source.spread_share / 2)

    @cached_property
    def _curve(self) -> MonotoneCurve:
        return MonotoneCurve.through(self.lagrangians)


@lru_cache(256)
def scalar_rate(source: ScalarSource) -> ScalarRate:
    """Tabulate `L` by Blahut's updates on a grid that gets finer with the level.

    Each table takes some tenths of a second.
    """
    highest = math.log2(source.variance) + HIGHEST_LEVEL
    found: list[float] = []
    before: Array = np.zeros(1)
    q: Array = np.ones(1)
    for step in range(OCTAVES * STEPS_AN_OCTAVE):
        grid = _Grid.of(source, 2.0 ** (highest - step / STEPS_AN_OCTAVE))
        if grid.nodes.size > MOST_NODES:
            break
        value, q = _lagrangian(source, grid, np.interp(grid.nodes, before, q))
        before = grid.nodes
        found.append(min(value, source.most_bits))
    return ScalarRate(source, highest, np.array(found))


@dataclass(frozen=True, eq=False)
class _Grid:
    """Values and reproductions of a weight at a level: evenly spaced, beyond its reach on both sides."""

    level: float
    width: float
    nodes: Array

    @classmethod
    def of(cls, source: ScalarSource, level: float) -> _Grid:
        width = math.sqrt(level) / (NODES_A_LUMP if source.is_scattered else NODES_A_WIDTH)
        half = math.ceil(source.reach / width) + 1
        return cls(level, width, width * np.arange(-half, half + 1, dtype=np.float64))

    @property
    def kernel(self) -> Array:
        """`K = exp(-d / 2 mu)` of the squared distance d between nodes."""
        reach = math.ceil(WIDTHS * math.sqrt(self.level) / self.width)
        return np.asarray(np.exp(-np.square(np.arange(-reach, reach + 1) * self.width) / (2 * self.level)))


def _lagrangian(source: ScalarSource, grid: _Grid, start: Array) -> tuple[float, Array]:
    """`-sum p log2 (Kq)` at the q that comes out of `UPDATES`, and that q."""
    masses, kernel = source.masses(grid.nodes, grid.width), grid.kernel
    q = np.maximum(start, LEAST) + masses / UPDATES
    there = masses > 0
    before = math.inf
    for update in range(UPDATES + 1):
        q /= q.sum()
        output = np.maximum(_convolved(q, kernel), LEAST)
        if update % LOOK == 0:
            found = -float(masses[there] @ np.log2(output[there]))
            if before - found < ENOUGH:
                break
            before = found
        q *= _convolved(masses / output, kernel)
    return found, q


def _convolved(values: Array, kernel: Array) -> Array:
    half = kernel.size // 2
    return np.convolve(values, kernel)[half : half + values.size]
