"""Find the water level that meets a target: schedules of levels, and searches for the level.

Two ways lead to a target. A model in memory is walked again, as a rule twice, until its file is near enough
(`lowest_within`). A directory is walked once, segment by segment, each at the level at which what is left is foreseen
to fill what is left of the size (`SpendBudget`); targets of quality take two or three walks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np

from waterfill.compression.rate_model import VarianceHistogram
from waterfill.errors import TargetError

T = TypeVar("T")
LOWEST_LOG2, HIGHEST_LOG2 = -48.0, 24.0
"""Base-2 logarithms of the water levels between which a search looks, relative to the mean cost of a zeroed weight."""

OVERHEAD = 300.0
"""Bytes of a payload beside its matrices and vectors, until one is known."""

VECTOR_BITS = 9.0
"""Bits of a value of a vector, until some are known."""

PILOT_WEIGHT = 0.2
"""Weight of the pilot beside segments that are done: as so many of its own size."""

CLOSELY = 0.003
"""How far below the size is aimed at."""

NEARLY = 0.005
"""Fraction of the size that may be left at the end."""

TRIES = 5
"""How often what is last is coded, until all fit and little is left."""

MORE_TRIES = 20
"""How often more, always coarser, until all fit."""

FARTHEST = 6.0
"""Octaves by which the level of the last matrix moves at most from one try to the next."""


class LevelSchedule(Protocol):
    """Says at which water level every segment is quantized."""

    def level(self, segment: str) -> float:
        """The level for the next segment."""
        ...

    def accepts(self, segment: str, level: float, matrix_bits: float, size_bytes: int) -> bool:
        """Take in what a segment took at a level; false where it has to be quantized again, at another level.

        Args:
            segment: its name.
            level: at which it was quantized.
            matrix_bits: bits of its matrices.
            size_bytes: of its payload.

        Raises:
            TargetError: it cannot be small enough.
        """
        ...

    def filling(self, segment: str) -> SpendBudget | None:
        """The budget that a segment has to fill to the end; None where others follow, or where there is none."""
        ...


@dataclass(frozen=True)
class ConstantLevel:
    """One level for all segments.

    Attributes:
        water_level: that level.
    """

    water_level: float

    def level(self, segment: str) -> float:
        """The level."""
        del segment
        return self.water_level

    def accepts(self, segment: str, level: float, matrix_bits: float, size_bytes: int) -> bool:
        """Accept any size."""
        del segment, level, matrix_bits, size_bytes
        return True

    def filling(self, segment: str) -> None:
        """Fill nothing."""
        del segment


@dataclass(frozen=True, eq=False)
class SegmentForecast:
    """Forecast of the bits of a segment.

    Attributes:
        matrices: components of its matrices, by name.
        vectors: number of values of its vectors.
        exact_bits: of what is stored without loss.
    """

    matrices: Mapping[str, VarianceHistogram]
    vectors: int = 0
    exact_bits: float = 0.0

    @cached_property
    def components(self) -> VarianceHistogram:
        """Of all matrices."""
        return summed(self.matrices.values())

    @property
    def beside(self) -> float:
        """Bits beside the matrices and what is stored without loss, until some are known."""
        return 8 * OVERHEAD + VECTOR_BITS * self.vectors


def summed(histograms: Iterable[VarianceHistogram]) -> VarianceHistogram:
    """All components together."""
    return sum(histograms, VarianceHistogram.none())


@dataclass(eq=False)
class SpendBudget:
    """Spends a size on segments that are quantized one after the other, each once.

    The level is the one at which the segments that are left are foreseen to take what is left. How many bits codes take
    for every bit that is foreseen is known from a pilot, and then from the segments that are done. In the last segment
    with matrices what is left is spent matrix by matrix, see `LastSegmentEncoder`; it is quantized again only where its
    payload is larger or smaller than foreseen, by more than may be left.

    Attributes:
        limit_bytes: of the whole output.
        bits: what is left for payloads.
        forecasts: of the segments that are left, by name.
        ratio: bits that matrices take for every bit that is foreseen.
        fixed: bits that a segment takes beside its matrices for every bit that is expected.
    """

    limit_bytes: float
    bits: float
    forecasts: dict[str, SegmentForecast]
    ratio: float = 1.0
    fixed: float = 1.0
    _taken: float = 0.0
    _foreseen: float = 0.0
    _tries: int = 0
    _surplus: float = 0.0

    def pilot(self, taken: float, foreseen: float) -> None:
        """Take in what a pilot took, in bits."""
        self.learn(PILOT_WEIGHT * taken, PILOT_WEIGHT * foreseen)

    def learn(self, taken: float, foreseen: float) -> None:
        """Take in what some matrices took, in bits."""
        self._taken += taken
        self._foreseen += foreseen
        if self._foreseen > 0:
            self.ratio = self._taken / self._foreseen

    def level(self, segment: str) -> float:
        """The level for the next segment; the highest one where nothing is left."""
        del segment
        return self.level_of(summed(each.components for each in self.forecasts.values()), 0.0)

    def level_of(self, components: VarianceHistogram, taken: float) -> float:
        """The level at which matrices take what others have left for them.

        Args:
            components: of all matrices that are left.
            taken: bits that matrices of the segment have taken which is not done yet.
        """
        left = self.left(taken) - CLOSELY * self.bits
        return components.level_at_forecast(max(left, 1.0) / self.ratio)

    def left(self, taken: float) -> float:
        """Bits that are left for matrices when those of the segment that is not done yet have taken some."""
        return self.bits - taken - self._surplus - sum(map(self._beside, self.forecasts.values()))

    def accepts(self, segment: str, level: float, matrix_bits: float, size_bytes: int) -> bool:
        """Take in what a segment took; false for the last one while more or less fits."""
        if self.filling(segment) is not None and not self._fits(segment, level, matrix_bits, size_bytes):
            return False
        self._done(segment, level, matrix_bits, 8.0 * size_bytes)
        return True

    def _fits(self, segment: str, level: float, matrix_bits: float, size_bytes: int) -> bool:
        """Whether all is spent; otherwise what there is to know for another try is taken in.

        Raises:
            TargetError: it does not fit, whatever the level.
        """
        forecast = self.forecasts[segment]
        others = sum(self._beside(each) for name, each in self.forecasts.items() if name != segment)
        left = self.bits - 8 * size_bytes - others
        self._tries += 1
        later = max(0, self._tries - TRIES + 1)
        if left >= 0 and (left <= 8 * NEARLY * self.limit_bytes or later or not forecast.components.number):
            return True
        if later == MORE_TRIES or not forecast.components.number:
            raise TargetError(
                f"Target of {self.limit_bytes:.0f} bytes is below the floor of about "
                f"{self.limit_bytes - left / 8:.0f} bytes for this directory; ask for more."
            )
        self._surplus = 8 * size_bytes - matrix_bits - self._beside(forecast)
        self._surplus += 8 * later * NEARLY * self.limit_bytes  # sizes that jump past the limit are left behind
        self._taken, self._foreseen = 0.0, 0.0  # nothing says more about this segment than itself
        self.learn(matrix_bits, forecast.components.forecast(level))
        return False

    def filling(self, segment: str) -> SpendBudget | None:
        """This budget, where no other segment with matrices is left."""
        others = (each for name, each in self.forecasts.items() if name != segment)
        return None if any(each.components.number for each in others) else self

    def matrices(self, segment: str) -> Mapping[str, VarianceHistogram]:
        """Components of the matrices of a segment, by name."""
        return self.forecasts[segment].matrices

    def _done(self, segment: str, level: float, matrix_bits: float, bits: float) -> None:
        forecast = self.forecasts.pop(segment)
        self._tries, self._surplus = 0, 0.0
        self.bits -= bits
        self.learn(matrix_bits, forecast.components.forecast(level))
        if forecast.vectors and matrix_bits:
            self.fixed = (bits - matrix_bits - forecast.exact_bits) / max(1.0, forecast.beside)

    def _beside(self, forecast: SegmentForecast) -> float:
        """Bits of a segment beside its matrices."""
        return forecast.exact_bits + forecast.beside * self.fixed


# Searches


@dataclass(frozen=True)
class Trial(Generic[T]):
    """One try: the base-2 logarithm of the water level, what was measured there, and what was made."""

    level: float
    value: float
    made: T


def lowest_within(
    measure: Callable[[float], Trial[T]],
    limit: float,
    first: float,
    *,
    slope: float,
    within: float,
    precision: float,
    span: tuple[float, float] = (LOWEST_LOG2, HIGHEST_LOG2),
    tries: int = 24,
) -> Trial[T]:
    """The lowest level at which a quantity that falls with the level (such as a size) is at most `limit`.

    Brackets the limit, then interpolates the logarithm of the quantity, halving now and then.

    Args:
        measure: try a level (a base-2 logarithm).
        limit: largest value allowed, above zero.
        first: where to start.
        slope: guess of d log2(value) / d level, negative, for the steps before the limit is bracketed.
        within: relative distance below the limit that is near enough.
        precision: width of the bracket that is narrow enough.
        span: lowest and highest level.
        tries: how many levels to try at most.

    Raises:
        TargetError: even at the highest level the quantity is above the limit; its only argument is the value there.
    """
    above: Trial[T] | None = None  # above the limit: the level must rise
    below: Trial[T] | None = None  # within the limit: it may fall
    level = first
    for count in range(tries):
        trial = measure(float(np.clip(level, *span)))
        if trial.value > limit:
            above = trial if above is None or trial.level > above.level else above
            if trial.level >= span[1]:
                raise TargetError(trial.value)
        else:
            below = trial if below is None or trial.level < below.level else below
            if trial.value >= limit * (1 - within) or trial.level <= span[0]:
                return trial
        if above and below and below.level - above.level <= precision:
            break
        level = _next_level(above, below, limit * (1 - within / 2), slope, count, 2 * precision)
    if below is None:
        below = measure(span[1])
        if below.value > limit:
            raise TargetError(below.value)
    return below


def _next_level(
    above: Trial[T] | None, below: Trial[T] | None, aim: float, slope: float, count: int, least: float
) -> float:
    """Level to try next: beyond the only side known, by `least` at least, or between both."""
    if above is None or below is None:
        known = above or below
        assert known is not None  # something was tried
        reach = float(np.log2(np.clip(aim / max(known.value, 1e-9 * aim), 1 / 16, 16))) / slope
        return known.level + 1.4**count * (max(reach, least) if above else min(reach, -least))
    if count % 3 == 2 or below.value <= 0 or not np.isfinite(above.value):
        return (above.level + below.level) / 2
    high, low = np.log(above.value), np.log(below.value)
    share = (high - np.log(aim)) / max(high - low, 1e-12)
    return above.level + float(np.clip(share, 0.02, 0.98)) * (below.level - above.level)
