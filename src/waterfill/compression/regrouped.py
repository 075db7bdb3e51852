"""Calibration batches in other groups: small ones joined, and where a model is dear, with fewer samples each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from waterfill.compression.joined_samples import joined, kind_of
from waterfill.models.batches import num_samples, split, take
from waterfill.models.kept_batches import RepeatableBatches

TOGETHER = 256
"""Samples of a group at most, for what is added up once a batch takes as long as some hundred samples."""


@dataclass(frozen=True, eq=False)
class RegroupedBatches(RepeatableBatches):
    """Batches of others one after the other, joined to groups of up to `TOGETHER` samples.

    Attributes:
        batches: the others, to be read again and again.
        most: samples that are wanted of all of them; each batch gives the same part of its own.
    """

    batches: Sequence[Any]
    most: int

    def __len__(self) -> int:
        return sum(1 for _ in self._groups())

    def __iter__(self) -> Iterator[Any]:
        return map(_joined, self._groups())

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def _groups(self) -> Iterator[list[Any]]:
        counts = [num_samples(split(batch)[0]) for batch in self.batches]
        part = min(1.0, self.most / max(1, sum(counts)))
        group: list[Any] = []
        size, kind = 0, ""
        for batch, count in zip(self.batches, counts, strict=True):
            some, samples = _first(batch, math.ceil(part * count)), math.ceil(part * count)
            if group and (size + samples > TOGETHER or _kind(some) != kind):
                yield group
                group, size = [], 0
            group.append(some)
            size, kind = size + samples, _kind(some)
        if group:
            yield group


def _first(batch: Any, samples: int) -> Any:
    """The first samples of a batch; all where its target is not one for every sample."""
    inputs, target = split(batch)
    count = num_samples(inputs)
    if samples >= count or not _fits(target, count):
        return batch
    return take(inputs, 0, samples), None if target is None else target[:samples]


def _kind(batch: Any) -> str:
    """A text that is the same for batches that can be joined; one of its own for a batch that cannot."""
    inputs, target = split(batch)
    if not _fits(target, num_samples(inputs)):
        return f"alone {id(batch)}"
    return kind_of(inputs) + ("" if target is None else f"{target.dtype}{target.device}{target.shape[1:]}")


def _fits(target: Tensor | None, samples: int) -> bool:
    return target is None or (target.ndim > 0 and len(target) == samples)


def _joined(group: list[Any]) -> Any:
    if len(group) == 1:
        return group[0]
    inputs, targets = zip(*map(split, group), strict=True)
    known = [target for target in targets if target is not None]
    return joined(list(inputs)), joined(known) if known else None
