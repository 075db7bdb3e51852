"""Calibration batches in other groups: small ones joined, and where a model is dear, with fewer samples each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from waterfill.compression.joined_samples import joined, kind_of
from waterfill.models.batches import num_samples, split, take
from waterfill.models.kept_batches import RepeatableBatches

TOGETHER = 256
"""Samples of a group at most, for what is added up once a batch takes as long as some hundred samples."""


Pair: TypeAlias = tuple[Any, Tensor | None]
"""A batch and the outputs of the original on it."""


@dataclass(frozen=True, eq=False)
class RegroupedBatches(RepeatableBatches):
    """Batches of others one after the other, joined to groups of up to `TOGETHER` samples.

    Attributes:
        batches: the others, to be read again and again.
        most: samples that are wanted of all of them; each batch gives the same part of its own, for they may differ.
        outputs: of the original on the others; none where they are not asked for.
    """

    batches: Sequence[Any]
    most: int
    outputs: Sequence[Tensor] = ()

    def __len__(self) -> int:
        return sum(1 for _ in self._groups())

    def __iter__(self) -> Iterator[Any]:
        return (_joined([batch for batch, _ in group]) for group in self._groups())

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    @property
    def references(self) -> list[Tensor]:
        """Outputs of the original on these."""
        return [torch.cat([each for _, each in group if each is not None]) for group in self._groups()]

    def _groups(self) -> Iterator[list[Pair]]:
        group: list[Pair] = []
        size, kind = 0, ""
        for pair in self._parts():
            samples, its = num_samples(split(pair[0])[0]), _kind(pair[0])
            if group and (size + samples > TOGETHER or its != kind):
                yield group
                group, size = [], 0
            group.append(pair)
            size, kind = size + samples, its
        if group:
            yield group

    def _parts(self) -> Iterator[Pair]:
        """The part of every batch that is taken, of those that give any sample."""
        ends = np.cumsum([num_samples(split(batch)[0]) for batch in self.batches])
        part = min(1.0, self.most / max(1, int(ends[-1])))
        taken = np.diff(np.ceil(part * ends).astype(int), prepend=0).tolist()
        for batch, samples, output in zip_longest(self.batches, taken, self.outputs):
            if samples:
                yield _first((batch, output), samples)


def _first(pair: Pair, samples: int) -> Pair:
    """The first samples of a batch; all where its target or outputs are not one for every sample."""
    batch, output = pair
    inputs, target = split(batch)
    count = num_samples(inputs)
    if samples >= count or not (_fits(target, count) and _fits(output, count)):
        return pair
    some = take(inputs, 0, samples), None if target is None else target[:samples]
    return some, None if output is None else output[:samples]


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
