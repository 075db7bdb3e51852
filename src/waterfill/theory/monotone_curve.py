"""A smooth curve through points that rises and falls only where they do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from waterfill.theory.checks import Array


@dataclass(frozen=True, eq=False)
class MonotoneCurve:
    """Cubic pieces through values at 0, 1, 2, ..., with slopes that keep each piece between its ends.

    Attributes:
        values: [points], two or more.
        slopes: at the points.

    Source: Fritsch and Butland 1984, "A method for constructing local monotone piecewise cubic interpolants".
    """

    values: Array
    slopes: Array

    @classmethod
    def through(cls, values: Array) -> MonotoneCurve:
        """The curve through values; slopes are harmonic means of those on both sides, 0 where these have other signs.

        Args:
            values: [points], two or more.
        """
        rises = np.diff(values)
        if rises.size == 1:
            return cls(values, np.repeat(rises, 2))
        left, right = rises[:-1], rises[1:]
        alike = left * right > 0
        inner = np.divide(2 * left * right, left + right, out=np.zeros(left.size), where=alike)
        return cls(values, np.concatenate([[_end(rises[0], rises[1])], inner, [_end(rises[-1], rises[-2])]]))

    def at(self, places: Array) -> Array:
        """Values at places between 0 and the last point, any shape."""
        pieces = np.minimum(places.astype(np.int64), self.values.size - 2)
        share = places - pieces
        low, high = self.values[pieces], self.values[pieces + 1]
        first, last = self.slopes[pieces], self.slopes[pieces + 1]
        rise = high - low
        return np.asarray(
            low + share * (first + share * (3 * rise - 2 * first - last + share * (first + last - 2 * rise)))
        )


def _end(rise: float, next_rise: float) -> float:
    """Slope at an end, by three points, kept within what the piece there allows."""
    slope = (3 * rise - next_rise) / 2
    if slope * rise <= 0:
        return 0.0
    return 3 * rise if rise * next_rise < 0 and abs(slope) > 3 * abs(rise) else slope
