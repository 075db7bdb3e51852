"""The last matrices of a directory: each gets the level that spends what those before it have left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from waterfill.compression.encoder import Encoder, Job
from waterfill.compression.rate_control import FARTHEST, NEARLY, TRIES, SpendBudget, summed
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.io.parts import part_of
from waterfill.protocols import QuadraticForm
from waterfill.records import Quantized, Weight


@dataclass(eq=False)
class LastSegmentEncoder:
    """Quantizes the last segment with matrices so that a size is met; no more than one matrix is quantized again.

    Attributes:
        encoder: what quantizes.
        budget: what is left to spend.
        forecasts: components of all matrices of the segment, by name.
        taken: bits of those that are quantized.
    """

    encoder: Encoder
    budget: SpendBudget
    forecasts: Mapping[str, VarianceHistogram]
    taken: float = 0.0
    _done: Counter[str] = field(default_factory=Counter)

    def job(self, weight: Weight, importance: QuadraticForm | None, target: Weight | None = None) -> Job:
        """Say how a tensor is quantized, see `Encoder.job`."""
        return self.encoder.job(weight, importance, target)

    def quantize(self, jobs: Mapping[str, Job], level: float) -> dict[str, Quantized]:
        """Quantize tensors; the level is only for those of which nothing was foreseen, such as vectors."""
        foreseen = {name for name in jobs if self._tensor(jobs[name]) is not None}
        found = self.encoder.quantize({name: jobs[name] for name in jobs if name not in foreseen}, level)
        order = sorted(foreseen, key=lambda name: (jobs[name].weight.matrix.size, name))
        last = order.pop() if order and self._ends_with(jobs[name] for name in order) else None
        if order:
            found |= self._quantized({name: jobs[name] for name in order})
        if last is not None:
            found[last] = self._filling(last, jobs[last])
        return {name: found[name] for name in jobs}

    def _quantized(self, jobs: Mapping[str, Job]) -> dict[str, Quantized]:
        """Quantize matrices at the level for all that are left."""
        level = self.budget.level_of(self._left(), self.taken)
        found = self.encoder.quantize(jobs, level)
        self._learn(jobs, found, level)
        return found

    def _filling(self, name: str, job: Job) -> Quantized:
        """Quantize the last matrix until what is left is spent; the largest that fits, if none is large enough."""
        level, tried = self.budget.level_of(self._left(), self.taken), []
        nearly = 8 * NEARLY * self.budget.limit_bytes
        for _ in range(TRIES):
            found = self.encoder.quantize({name: job}, level)[name]
            left = self.budget.left(self.taken + found.bits)
            tried.append((left, level, found))
            if 0 <= left <= nearly:
                break
            octaves = -2.0 * (left - nearly / 2) / job.weight.matrix.size
            level *= 2.0 ** min(max(octaves, -FARTHEST), FARTHEST)
        _, level, found = min(tried, key=lambda each: (each[0] < 0, abs(each[0])))
        self._learn({name: job}, {name: found}, level)
        return found

    def _learn(self, jobs: Mapping[str, Job], found: Mapping[str, Quantized], level: float) -> None:
        bits = sum(found[name].bits for name in jobs)
        self.taken += bits
        self.budget.learn(bits, sum(self._components(job).forecast(level) for job in jobs.values()))
        for job in jobs.values():
            self._done[self._tensor(job) or ""] += job.weight.matrix.size

    def _tensor(self, job: Job) -> str | None:
        """Name of the tensor that was foreseen, of which this is the whole or some rows; None for none."""
        if job.weight.is_vector:
            return None
        part = part_of(job.weight.name)
        names = [job.weight.name] if part is None else [job.weight.name, part.tensor]
        return next((name for name in names if name in self.forecasts), None)

    def _components(self, job: Job) -> VarianceHistogram:
        """Components of a matrix, or of some rows of one."""
        whole = self.forecasts[self._tensor(job) or ""]
        return _share(whole, job.weight.matrix.size)

    def _left(self) -> VarianceHistogram:
        """Components of what is not quantized yet."""
        return summed(_share(whole, whole.number - self._done[name]) for name, whole in self.forecasts.items())

    def _ends_with(self, jobs: Iterable[Job]) -> bool:
        """Whether nothing is left behind some matrices."""
        left = sum(max(0.0, whole.number - self._done[name]) for name, whole in self.forecasts.items())
        return sum(job.weight.matrix.size for job in jobs) >= left - 0.5


def _share(whole: VarianceHistogram, weights: float) -> VarianceHistogram:
    """As many of all components as some of the weights are."""
    return whole.repeated(min(1.0, max(0.0, weights / whole.number))) if whole.number else whole
