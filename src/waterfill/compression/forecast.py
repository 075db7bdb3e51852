"""About how large a file is at a water level, before anything is quantized: what a search starts from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from waterfill.theory.checks import Array
from waterfill.theory.waterfilling import Rectangles

OCTAVE = 8
"""Volumes are counted by the eighth of an octave."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """The bits that all weights take, up to a factor near one, as a function of the water level.

    A rectangle of volume v takes `1/2 log2(1 + v / level)`: the lower bound at high rate, and never zero, so that
    there is a level for every number of bits.

    Attributes:
        levels: base-2 logarithms of water levels, rising.
        logs: base-2 logarithms of the bits there, falling.
    """

    levels: Array
    logs: Array

    @classmethod
    def of(cls, parts: Iterable[Rectangles], lowest: float, highest: float) -> Forecast:
        """Count the rectangles of all tensors, for levels from `2^lowest` to `2^highest`."""
        low = int(np.floor(OCTAVE * lowest))
        levels = np.arange(low, int(np.ceil(OCTAVE * highest)) + 1) / OCTAVE
        bits = np.full(levels.size, 1e-12)
        for part in parts:
            volumes, counts = np.unique(np.rint(OCTAVE * np.log2(part.volumes)), return_counts=True)
            bits += 0.5 * np.log2(1 + np.exp2(volumes / OCTAVE - levels[:, None])) @ counts
        return cls(levels, np.log2(bits))

    def log_bits(self, level: float) -> float:
        """Base-2 logarithm of the bits at the water level `2^level`."""
        return float(np.interp(level, self.levels, self.logs))

    def level(self, log_bits: float) -> float:
        """Base-2 logarithm of the water level at which so many bits are taken."""
        return float(np.interp(-log_bits, -self.logs, self.levels))
