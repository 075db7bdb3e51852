"""Sums of what was measured in one batch."""

from __future__ import annotations

import dataclasses
from array import array
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from waterfill.distortion import Distortion


@dataclass(frozen=True)
class OutputBatch:
    """What one batch gave.

    Attributes:
        samples: number of samples.
        result: outputs of the model.
        target: what they should be; None where that is not known.
        reference: outputs of the model to compare with; None without one.
        is_text: whether it is text, with an output for every token.
    """

    samples: int
    result: Tensor
    target: Tensor | None
    reference: Tensor | None
    is_text: bool = False


@dataclass(frozen=True, eq=False)
class BatchStatistics:
    """Sums of what was measured in one batch.

    Attributes:
        samples: number of samples.
        sums: by name of the measure.
        counts: of how many values each is the sum.
        distances: of every output from that of the reference: nats of KL divergence, or squared distance; float64.
        is_text: whether it is text, with an output for every token.
    """

    samples: int
    sums: Mapping[str, float]
    counts: Mapping[str, int]
    distances: NDArray[np.float64]
    is_text: bool

    def with_labels(self, other: BatchStatistics) -> BatchStatistics:
        """The same with what another one says of labels."""
        names = [name for name in _LABEL_MEASURES if name in other.sums]
        sums = dict(self.sums) | {name: other.sums[name] for name in names}
        counts = dict(self.counts) | {name: other.counts[name] for name in names}
        return dataclasses.replace(self, sums=sums, counts=counts)


_LABEL_MEASURES = ("accuracy", "cross_entropy", "top5")


def batch_statistics(one: OutputBatch, distortion: Distortion) -> BatchStatistics:
    """Measure the outputs of one batch.

    Args:
        one: the batch; text without padding.
        distortion: of what the model returns.

    Raises:
        CalibrationError: the targets do not fit.
    """
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    distances = array("d")  # not tensors: small ones kept between large ones would hold memory apart
    for part in distortion.measures(one.result, one.target, one.reference):
        if distortion.measure in part:
            distances.extend(part[distortion.measure].tolist())
        for name, each in part.items():
            sums[name] += float(each.sum(dtype=torch.float64))
            counts[name] += each.numel()
    return BatchStatistics(one.samples, sums, counts, np.array(distances), one.is_text)
