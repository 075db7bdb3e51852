"""Batches of (input, target) that can be iterated any number of times, always the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from waterfill.errors import CalibrationError

_PERMUTATION_SEED = 0


@dataclass(frozen=True, eq=False)
class Labelled:
    """Samples as stored and their labels.

    Attributes:
        inputs: one row a sample, not yet preprocessed.
        labels: one row a sample.
        source: name of the file or data set, for messages.
    """

    inputs: NDArray[Any] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    source: str

    def first(self, samples: int | None) -> Labelled:
        """Return the first samples.

        Args:
            samples: how many, at least 1; None is all.

        Returns:
            A view of them.

        Raises:
            CalibrationError: there are not that many.
        """
        count = checked_count(samples, len(self.labels), self.source)
        return Labelled(self.inputs[:count], self.labels[:count], self.source)


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of (input, target) in a fixed order; only the batch asked for is held as floats.

    Attributes:
        samples: the samples as stored, all of which are used.
        prepare: turns some stored rows into what the network is fed.
        batch_size: samples in each batch but the last, at least 1.
    """

    samples: Labelled
    prepare: Callable[[NDArray[Any]], Tensor]
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise CalibrationError(f"batch_size={self.batch_size} is wrong: expected at least 1.")

    def __len__(self) -> int:
        return -(-len(self.samples.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.samples.labels), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.prepare(self.samples.inputs[rows]), torch.tensor(self.samples.labels[rows], dtype=torch.int64)


def checked_count(samples: int | None, available: int, source: str) -> int:
    """Return how many samples to use, or say that there are not that many.

    Args:
        samples: how many were asked for; None is all.
        available: how many there are.
        source: where they come from, for the message.

    Returns:
        A count in [1, available].

    Raises:
        CalibrationError: `samples` is not in that range.
    """
    count = available if samples is None else samples
    if not 1 <= count <= available:
        raise CalibrationError(f"samples={samples} is wrong: {source} has {available}; ask for 1 to {available}.")
    return count


def permuted_front(available: int, samples: int | None, source: str) -> NDArray[np.int64]:
    """Pick samples from the front of a fixed permutation: for calibration, where all data are one set.

    Args:
        available: how many samples there are.
        samples: how many to pick; None is all.
        source: where they come from, for the message.

    Returns:
        Indices int64 `[samples]`.

    Raises:
        CalibrationError: there are not that many.
    """
    return _permutation(available)[: checked_count(samples, available, source)]


def permuted_back(available: int, samples: int | None, source: str) -> NDArray[np.int64]:
    """Pick samples from the back of the permutation of `permuted_front`: for testing, disjoint while both fit."""
    return _permutation(available)[available - checked_count(samples, available, source) :]


def _permutation(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(_PERMUTATION_SEED).permutation(count)
