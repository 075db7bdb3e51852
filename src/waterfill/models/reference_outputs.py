"""Outputs of a reference, kept together with the batches that they are of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import starmap
from typing import Any

from torch import Tensor

from waterfill.errors import CalibrationError
from waterfill.models.batches import checksum, split
from waterfill.models.kept_batches import OnePass


class ReferenceOutputs(list[Tensor]):
    """A list of outputs, one for every batch, which knows the batches.

    Args:
        outputs: of the reference.
        checksums: of the inputs of every batch.
        data: what the batches were read from.
        batches: they, as they were read.
    """

    def __init__(self, outputs: Iterable[Tensor], checksums: Sequence[int], data: Any, batches: Sequence[Any]) -> None:
        super().__init__(outputs)
        self._checksums, self._data, self._batches = checksums, data, batches

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and files of it are plain lists of tensors."""
        return list, (list(self),)

    def batches_of(self, data: Any) -> Any:
        """The batches that outputs are known of, where `data` is what they were read from; else `data` itself."""
        return self._batches if data is self._data else data

    def checked(self, batches: OnePass) -> OnePass:
        """The same pass, in which every batch is checked to be the one that its output was made of.

        Raises:
            CalibrationError: one has other inputs.
        """
        return OnePass(self._same(0, batches.first), starmap(self._same, enumerate(batches.rest, 1)), batches.total)

    def _same(self, index: int, batch: Any) -> Any:
        if index < len(self) and checksum(split(batch)[0]) != self._checksums[index]:
            raise CalibrationError(
                f"Batch {index} is not the one that the reference outputs were made of; expected the same inputs in "
                "the same order. The data shuffle, or change at random: give the same list of batches to both, or the "
                "network itself as reference."
            )
        return batch
