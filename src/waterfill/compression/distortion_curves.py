"""Operational rate-distortion curves: how the distortion of the whole model falls with the bits of one tensor.

```
jobs, level --quantize at some levels--> points: bits, and the distortion with this tensor alone quantized (`measure`)
curves ------lower convex hull----------> slopes;  one slope for all tensors ---> how far each moves (`offsets`)
```
A quadratic form decides inside a tensor; between tensors it is off by factors, which only a measurement shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from waterfill.distortion import Distortion
from waterfill.models.batches import evaluation, num_samples, split, take
from waterfill.models.replay import Replay
from waterfill.models.work import WorkBudget
from waterfill.protocols import Progress

OFFSETS = (-1.0, 1.0, 3.0)
"""Base-2 logarithms of the water levels at which points are measured, relative to the one at hand."""

FARTHEST = 4.0
"""No tensor moves farther than this many octaves."""

MOST_SAMPLES = 128
"""Samples on which curves are measured."""

MOST_VALUES = 1 << 21
"""Values of outputs on which they are measured."""

WORK = WorkBudget(values=1 << 27, per_weight=16)
"""Of a pass of these samples, of which there are three for every tensor."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Points of one tensor, or of several together.

    Attributes:
        offsets: base-2 logarithms of water levels, relative to the one at hand, rising.
        bits: falling.
        losses: distortions of the whole model with this tensor alone quantized.
    """

    offsets: tuple[float, ...]
    bits: tuple[float, ...]
    losses: tuple[float, ...]

    def hull(self) -> list[int]:
        """Indices of the points on the lower convex hull, from the most bits on, each with more loss than the last."""
        kept: list[int] = []
        for i in np.lexsort((self.losses, self.bits))[::-1].tolist():
            while kept and (self.losses[kept[-1]] >= self.losses[i] or self.bits[kept[-1]] <= self.bits[i]):
                kept.pop()
            while len(kept) > 1 and self._slope(kept[-2], kept[-1]) >= self._slope(kept[-1], i):
                kept.pop()
            kept.append(i)
        return kept

    def _slope(self, fine: int, coarse: int) -> float:
        """Loss for each bit less between two points."""
        return (self.losses[coarse] - self.losses[fine]) / (self.bits[fine] - self.bits[coarse])

    def offset(self, log_slope: float) -> float:
        """Offset where the curve has a slope, given as a base-2 logarithm; beyond its points a slope goes as the level.

        Where a curve has fewer than two points on its hull, nothing is known, and it is 0.
        """
        hull = self.hull()
        pairs = list(pairwise(hull))
        if not pairs:
            return 0.0
        slopes = np.log2([self._slope(*pair) for pair in pairs])
        places = np.array([(self.offsets[fine] + self.offsets[coarse]) / 2 for fine, coarse in pairs])
        inside = float(np.interp(log_slope, slopes, places))
        beyond = min(0.0, log_slope - float(slopes[0])) + max(0.0, log_slope - float(slopes[-1]))
        return float(np.clip(inside + beyond, -FARTHEST, FARTHEST))

    def bits_at(self, offset: float) -> float:
        """Bits between the points; beyond them along the nearest two."""
        place = int(np.clip(np.searchsorted(self.offsets, offset), 1, len(self.offsets) - 1))
        (low, high), (left, right) = self.offsets[place - 1 : place + 1], self.bits[place - 1 : place + 1]
        return max(0.0, left + (right - left) * (offset - low) / (high - low))


def offsets(curves: Mapping[str, Curve]) -> dict[str, float]:
    """How far each tensor moves from the common level so that all have one slope, at the same bits in total.

    Args:
        curves: by name.

    Returns:
        Base-2 logarithms of levels relative to the common one, by name.

    Source: Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers".
    """
    wanted = sum(curve.bits_at(0.0) for curve in curves.values())
    low, high = -200.0, 200.0
    for _ in range(60):
        slope = (low + high) / 2
        bits = sum(curve.bits_at(curve.offset(slope)) for curve in curves.values())
        low, high = (slope, high) if bits > wanted else (low, slope)
    return {name: curve.offset(high) for name, curve in curves.items()}


def mean_ratio(measured: Sequence[float], predicted: Sequence[float]) -> float:
    """Geometric mean of the ratios of positive losses; 1 where there are none."""
    logs = [np.log(m / p) for m, p in zip(measured, predicted, strict=True) if m > 0 and p > 0 and np.isfinite(m)]
    return float(np.exp(np.mean(logs))) if logs else 1.0


# Measuring


Trial: TypeAlias = Callable[[str, int], Mapping[str, Tensor]]
"""Entries of the state dict that are other at a point, with their values, by the name of a curve and the point."""


def measure(
    copy: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    distortion: Distortion,
    names: Sequence[str],
    trial: Trial,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Distortions of a model with one tensor changed at a time.

    Args:
        copy: the network, filled with the values from which nothing deviates.
        batches: batches and the outputs of the original on them.
        distortion: of what the model returns.
        names: of the curves.
        trial: what changes at each of the `len(OFFSETS)` points.
        progress: called as work goes on.

    Returns:
        Mean distortions by name, of each point: over predictions that count, or over samples of values.
    """
    tensors = copy.state_dict(keep_vars=True)
    sums: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(OFFSETS)))
    pairs, count = list(batches), 0
    with evaluation(copy), torch.no_grad():
        for number, (batch, reference) in enumerate(pairs):
            inputs, target = split(batch)
            replay, count = Replay(copy, inputs, tensors), count + distortion.count(reference, target)
            for index, name in enumerate(names):
                for point in range(len(OFFSETS)):
                    other = trial(name, point)
                    with _changed(tensors, other):
                        result = replay.run(other)
                        loss = distortion.total(reference.to(result.device), result, target)
                        sums[name][point] += float(loss) if bool(loss.isfinite()) else float("inf")
                if progress is not None:
                    progress("curves", number * len(names) + index + 1, len(pairs) * len(names))
    return {name: (total / max(1, count)).tolist() for name, total in sums.items()}


def some(batches: Iterable[Any], references: Iterable[Tensor]) -> Iterator[tuple[Any, Tensor]]:
    """The first samples with their references, up to `MOST_SAMPLES` and those of `MOST_VALUES`; always one.

    Args:
        batches: that can be iterated over.
        references: outputs of the original on them. A batch is cut where they are one for every sample.
    """
    samples, values = MOST_SAMPLES, MOST_VALUES
    for number, (batch, reference) in enumerate(zip(batches, references, strict=True)):
        here = num_samples(split(batch)[0])
        room = min(samples, values * here // max(1, reference.numel()))
        if room < 1 and number:
            return
        batch, reference = _first(batch, reference, max(1, room))
        yield batch, reference
        samples, values = samples - here, values - reference.numel()


def _first(batch: Any, reference: Tensor, samples: int) -> tuple[Any, Tensor]:
    """The first samples of a batch; all where outputs or targets are not one for every sample."""
    inputs, target = split(batch)
    parts = [reference] if target is None else [reference, target]
    here = num_samples(inputs)
    if here <= samples or any(each.ndim == 0 or len(each) != here for each in parts):
        return batch, reference
    return (take(inputs, 0, samples), None if target is None else target[:samples]), reference[:samples]


@contextmanager
def _changed(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Give tensors other values for a while."""
    before = {name: tensors[name].detach().clone() for name in values}
    try:
        for name, value in values.items():
            tensors[name].copy_(value)
        yield
    finally:
        for name, value in before.items():
            tensors[name].copy_(value)
