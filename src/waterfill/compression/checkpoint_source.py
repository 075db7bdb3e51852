"""A model directory as a source of tensors: what is coded together, what is tied, what stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import zstandard

from waterfill.bundle import Checkpoint, part_name
from waterfill.compression.checkpoint_groups import TensorGroup, groups_of
from waterfill.models.arrays import dtype_name, exact_bytes
from waterfill.models.patterns import excluded
from waterfill.models.skeleton import is_stack
from waterfill.models.state_dict import CODED_DTYPES
from waterfill.records import Coded, Entry, Layout, Tied, count_floating

LOOKED_AT = 1 << 18
"""Bytes of a tensor that are compressed to see how well they are."""


@dataclass(frozen=True, eq=False)
class CheckpointSource:
    """A model directory that is being compressed.

    Attributes:
        checkpoint: its weights.
        groups: what is coded together.
        tied: names of tensors that are equal to others, by name.
        kept: why tensors are stored without loss, by name.
    """

    checkpoint: Checkpoint
    groups: Sequence[TensorGroup]
    tied: Mapping[str, str]
    kept: Mapping[str, str]

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, include: Sequence[str], exclude: Sequence[str], *, ties: bool
    ) -> CheckpointSource:
        """Look at a checkpoint.

        Args:
            checkpoint: the weights.
            include: name patterns; where there are any, only what matches is quantized.
            exclude: name patterns of what is stored without loss.
            ties: whether equal tensors are stored once.

        Raises:
            WaterfillError: a pattern matches nothing.
        """
        tied = _tied(checkpoint, groups_of(checkpoint.shapes)) if ties else {}
        left = {name: shape for name, shape in checkpoint.shapes.items() if name not in tied}
        kept = excluded({name: tied.get(name, name) for name in checkpoint}, include, exclude)
        return cls(checkpoint, groups_of(left), tied, kept)

    def keeping(self, names: Mapping[str, str]) -> CheckpointSource:
        """Store more tensors without loss, given as reasons by name."""
        return replace(self, kept=dict(names) | dict(self.kept))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All tensors of the checkpoint, whole."""
        types = self.checkpoint.dtypes
        return tuple(
            Entry(
                name,
                shape,
                dtype_name(types[name]),
                Tied(self.tied[name]) if name in self.tied else Coded(Layout(shape)),
            )
            for name, shape in self.checkpoint.shapes.items()
        )

    @property
    def floating_values(self) -> int:
        """Number of floating-point values, tied ones once."""
        return count_floating(self.entries)

    @property
    def coded_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that are quantized, by name; of stacks of matrices those of the matrices."""
        types = self.checkpoint.dtypes
        found: dict[str, tuple[int, ...]] = {}
        for name in (name for group in self.groups for name in group.tensors):
            shape = self.checkpoint.shapes[name]
            if name in self.kept or types[name] not in CODED_DTYPES or not all(shape):
                continue
            if is_stack(shape):
                found |= {part_name(name, index): shape[1:] for index in range(shape[0])}
            else:
                found[name] = shape
        return found

    def exact_bits(self, group: TensorGroup) -> float:
        """Bits of the tensors of a group that are stored without loss, about: by how well their beginnings compress."""
        types = self.checkpoint.dtypes
        exact = [name for name in group.tensors if name in self.kept or types[name] not in CODED_DTYPES]
        return sum(map(self._exact_bits, exact))

    def _exact_bits(self, name: str) -> float:
        flat = self.checkpoint[name].flatten()
        some = exact_bytes(flat[: max(1, LOOKED_AT // flat.itemsize)])
        packed = len(zstandard.ZstdCompressor(level=19).compress(some))
        return 8.0 * packed * flat.numel() * flat.itemsize / max(1, len(some))


def _tied(checkpoint: Checkpoint, groups: Sequence[TensorGroup]) -> dict[str, str]:
    """Tensors outside of the blocks that are equal to one before them."""
    outside = [name for group in groups if group.block is None for name in group.tensors]
    names = [name for name in outside if len(checkpoint.shapes[name]) > 1]
    found: dict[str, str] = {}
    for index, name in enumerate(names):
        first = next((other for other in names[:index] if other not in found and _same(checkpoint, name, other)), None)
        if first is not None:
            found[name] = first
    return found


def _same(checkpoint: Checkpoint, name: str, other: str) -> bool:
    alike = (each[name] == each[other] for each in (checkpoint.shapes, checkpoint.dtypes))
    return all(alike) and torch.equal(checkpoint[name], checkpoint[other])
