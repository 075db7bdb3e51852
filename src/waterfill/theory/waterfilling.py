"""Weighted and reverse water-filling, exact: sort, then a closed form in every segment."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from waterfill.theory.checks import Array, not_negative, number, same_shape


@dataclass(frozen=True, eq=False)
class WaterLevels:
    """How far every rectangle of Figure 6 is filled.

    Attributes:
        mu: the common volume `lambda_i D_i` of all rectangles that are not full.
        per_weight_distortion: `D_i = E(W_i - W_hat_i)^2`, in the shape of the importance.
    """

    mu: float
    per_weight_distortion: Array


def weighted_waterfilling(importance: ArrayLike, variance: ArrayLike, distortion: float) -> WaterLevels:
    """Share a distortion between independent weights: `D_i = min(mu / lambda_i, E W_i^2)`, `sum lambda_i D_i = D`.

    Rectangles of width `lambda_i` and height `E W_i^2` are filled with the same volume `mu` each, until the volumes add
    up to the distortion. A weight without importance is always full. Time O(m log m).

    Args:
        importance: `lambda_i >= 0`, any shape.
        variance: `E W_i^2 >= 0`, the same shape.
        distortion: `D >= 0`, in the unit of `importance * variance`. From the sum of all volumes on everything is full.

    Returns:
        The volume `mu` and the distortion of every weight.

    Raises:
        UsageError: the shapes differ, or an argument is negative or not finite.

    Source:
        Theorem 2 and Figure 6 of the paper.

    Example:
        >>> levels = weighted_waterfilling([3, 2, 1], [3, 2, 1], 9.0)
        >>> levels.mu, levels.per_weight_distortion.tolist()
        (4.0, [1.3333333333333333, 2.0, 1.0])
    """
    widths, heights = not_negative("importance", importance), not_negative("variance", variance)
    same_shape("importance", widths, "variance", heights)
    volumes = widths * heights
    mu = Rectangles(volumes).level_at_distortion(number("distortion", distortion))
    filled = np.divide(mu, widths, out=heights.copy(), where=(volumes > mu))
    return WaterLevels(mu, filled)


class Rectangles:
    """The volumes of all rectangles, sorted once to be asked many times.

    At the level `mu` the distortion is `sum_i min(mu, v_i)` and the rate `sum_i max(0, 1/2 log2(v_i / mu))` bits. With
    `v_i = lambda_i E W_i^2` that is Theorem 2 for independent Gaussian weights; with the eigenvalues of the covariance
    of the outputs it is reverse water-filling.

    Args:
        volumes: not negative, any shape. Empty rectangles cost nothing and hold nothing.
    """

    def __init__(self, volumes: ArrayLike) -> None:
        flat = not_negative("volumes", volumes).reshape(-1)
        self.volumes: Array = np.sort(flat[flat > 0])

    @classmethod
    def joined(cls, parts: Iterable[Rectangles]) -> Rectangles:
        """The rectangles of several together, under one level; merged, not sorted again."""
        whole = cls(())
        whole.volumes = np.sort(np.concatenate([whole.volumes, *(part.volumes for part in parts)]), kind="stable")
        return whole

    @cached_property
    def _full(self) -> Array:
        """Volume of the k smallest rectangles, for k = 0 ... n."""
        return np.concatenate([[0.0], np.cumsum(self.volumes)])

    @cached_property
    def _logs(self) -> Array:
        """Sum of the base-2 logarithms of all but the k smallest, for k = 0 ... n."""
        return np.concatenate([np.cumsum(np.log2(self.volumes[::-1]))[::-1], [0.0]])

    @property
    def total(self) -> float:
        """Volume of all rectangles: the distortion at which the rate is zero."""
        return float(self._full[-1])

    @property
    def highest(self) -> float:
        """The largest volume: the level at which all are full."""
        return float(self.volumes[-1]) if self.volumes.size else 0.0

    def distortion(self, level: float) -> float:
        """Distortion `sum_i min(level, v_i)` at a level."""
        full = int(np.searchsorted(self.volumes, level))
        return float(self._full[full]) + (self.volumes.size - full) * level

    def rate(self, level: float) -> float:
        """Rate `sum_i max(0, 1/2 log2(v_i / level))` in bits at a level; infinite at zero."""
        full = int(np.searchsorted(self.volumes, level, side="right"))
        open_ones = self.volumes.size - full
        if not open_ones:
            return 0.0
        return max(0.0, (float(self._logs[full]) - open_ones * float(np.log2(level))) / 2) if level > 0 else np.inf

    def level_at_distortion(self, distortion: float) -> float:
        """The level at which the volumes add up to a distortion; the highest one from the total on."""
        count = self.volumes.size
        full = bisect_left(range(count), distortion, key=lambda k: float(self._full[k] + (count - k) * self.volumes[k]))
        if full == count:
            return self.highest
        return float((distortion - self._full[full]) / (count - full))

    def rate_at_distortion(self, distortion: float) -> float:
        """The rate in bits at a distortion: zero from the total on, infinite at zero."""
        return self.rate(self.level_at_distortion(distortion))

    def level_at_rate(self, rate: float) -> float:
        """The level at which the rate is so many bits; the highest one at zero, 0 at infinity."""
        count = self.volumes.size
        if not count:
            return 0.0
        full = bisect_left(range(count - 1), -rate, key=lambda k: -self.rate(float(self.volumes[k])))
        return float(np.exp2((self._logs[full] - 2 * rate) / (count - full)))
