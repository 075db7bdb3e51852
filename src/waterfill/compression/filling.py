"""Tensors are quantized group after group, so that the last ones take what the others have left of a size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from waterfill.compression.encoder import Encoder, Job
from waterfill.compression.rate_control import summed
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.protocols import QuadraticForm
from waterfill.records import Quantized, Weight

SMALL_REST = 1 / 16
"""Of all weights; so few that are left are quantized together."""


@dataclass(frozen=True)
class Spending:
    """What all tensors of a walk may take.

    Attributes:
        bits: of their symbols together.
        ratio: bits that the largest matrices take for every bit that is foreseen.
    """

    bits: float
    ratio: float


def largest_half(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """The largest matrices, until they have half of all weights."""
    sizes = {name: job.weight.matrix.size for name, job in jobs.items()}
    some: dict[str, Job] = {}
    taken, half = 0, sum(sizes.values()) / 2
    for name in sorted(jobs, key=lambda name: (-sizes[name], name)):
        some[name] = jobs[name]
        taken += sizes[name]
        if taken >= half:
            break
    return some


@dataclass(eq=False)
class FillingEncoder:
    """Quantizes matrices, the largest ones first, half of what is left at a time.

    Each group has the level at which all that are left are foreseen to take the bits that are left. Forecasts are off
    by little, and more alike than not, so that levels hardly differ, and a second walk is rarely needed.

    Attributes:
        encoder: what quantizes.
        bits: that are left.
        foreseen: components of all matrices that are left, by name, so often that they take as many bits as foreseen.
        span: lowest and highest level.
    """

    encoder: Encoder
    bits: float
    foreseen: dict[str, VarianceHistogram]
    span: tuple[float, float]
    _taken: float = field(default=0.0, repr=False)
    _expected: float = field(default=0.0, repr=False)

    def job(self, weight: Weight, importance: QuadraticForm | None, target: Weight | None = None) -> Job:
        """Say how a tensor is quantized, see `Encoder.job`."""
        return self.encoder.job(weight, importance, target)

    def quantize(self, jobs: Mapping[str, Job], level: float) -> dict[str, Quantized]:
        """Quantize tensors; the level is for those of which nothing was foreseen, such as vectors."""
        others = {name: job for name, job in jobs.items() if name not in self.foreseen}
        found = self.encoder.quantize(others, level)
        self.bits -= sum(item.bits for item in found.values())
        for group in self._groups({name: job for name, job in jobs.items() if name in self.foreseen}):
            found |= self._quantized(group)
        return {name: found[name] for name in jobs}

    def _groups(self, jobs: Mapping[str, Job]) -> Iterator[dict[str, Job]]:
        rest = total = sum(job.weight.matrix.size for job in jobs.values())
        left = dict(jobs)
        while left:
            some = largest_half(left) if rest > SMALL_REST * total else left
            yield some
            left = {name: job for name, job in left.items() if name not in some}
            rest = sum(job.weight.matrix.size for job in left.values())

    def _quantized(self, jobs: dict[str, Job]) -> dict[str, Quantized]:
        ratio = self._taken / self._expected if self._expected > 0 and self._taken > 0 else 1.0
        level = summed(self.foreseen.values()).level_at_forecast(max(self.bits, 1.0) / ratio)
        level = float(np.clip(level, *self.span))
        found = self.encoder.quantize(jobs, level)
        taken = sum(item.bits for item in found.values())
        self.bits -= taken
        self._taken += taken
        self._expected += sum(self.foreseen.pop(name).forecast(level) for name in jobs)
        return found
