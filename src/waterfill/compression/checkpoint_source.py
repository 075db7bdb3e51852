"""What all steps of a compression share: the checkpoint, its groups, who works, how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import zstandard

from waterfill.bundle import Checkpoint
from waterfill.compression.layer_groups import Group, groups_of
from waterfill.files import exact_bytes
from waterfill.models.patterns import excluded
from waterfill.models.state_dict import CODED_DTYPES
from waterfill.processes import Ranks
from waterfill.protocols import Progress, Quantizer
from waterfill.resume.folder import NOTHING_KEPT, Memo

LOOKED_AT = 1 << 18
"""Bytes of a tensor that are compressed to see how well they are."""


@dataclass(frozen=True, eq=False)
class Work:
    """A model directory that is being compressed.

    Attributes:
        checkpoint: its weights.
        groups: what is coded together.
        tied: names of tensors that are equal to others, by name.
        kept: why tensors are stored without loss, by name.
        quantizer: of the matrices.
        team: the processes.
        seed: of what is drawn.
        progress: called as work goes on.
        memo: of what is quantized already.
    """

    checkpoint: Checkpoint
    groups: Sequence[Group]
    tied: Mapping[str, str]
    kept: Mapping[str, str]
    quantizer: Quantizer
    team: Ranks
    seed: int
    progress: Progress | None
    memo: Memo = NOTHING_KEPT

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        quantizer: Quantizer,
        team: Ranks,
        seed: int,
        progress: Progress | None,
        patterns: tuple[Sequence[str], Sequence[str]],
        memo: Memo = NOTHING_KEPT,
        *,
        ties: bool = True,
    ) -> Work:
        """Look at a checkpoint.

        Args:
            checkpoint: the weights.
            quantizer: of the matrices.
            team: the processes.
            seed: of what is drawn.
            progress: called as work goes on.
            patterns: `include` and `exclude`.
            memo: of what is quantized already.
            ties: whether equal tensors are stored once.
        """
        groups = groups_of(checkpoint.shapes)
        tied = _tied(checkpoint, groups) if ties else {}
        left = {name: shape for name, shape in checkpoint.shapes.items() if name not in tied}
        kept = excluded({name: tied.get(name, name) for name in checkpoint}, *patterns)
        progress = progress if team.writes else None
        return cls(checkpoint, groups_of(left), tied, kept, quantizer, team, seed, progress, memo)

    @property
    def floating_values(self) -> int:
        """Number of floating-point values, tied ones once."""
        types = self.checkpoint.dtypes
        floating = {name for name, each in types.items() if each.is_floating_point or each.is_complex}
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name in floating)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors but those that are tied to others."""
        return {name: shape for name, shape in self.checkpoint.shapes.items() if name not in self.tied}

    def exact_bits(self, group: Group) -> float:
        """Bits of the tensors of a group that are stored without loss, about: by how well their beginnings compress."""
        types = self.checkpoint.dtypes
        exact = [name for name in group.tensors if name in self.kept or types[name] not in CODED_DTYPES]
        return sum(map(self._exact_bits, exact))

    def _exact_bits(self, name: str) -> float:
        flat = self.checkpoint[name].flatten()
        some = exact_bytes(flat[: max(1, LOOKED_AT // flat.itemsize)])
        packed = len(zstandard.ZstdCompressor(level=19).compress(some))
        return 8.0 * packed * flat.numel() * flat.itemsize / max(1, len(some))

    def tell(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is."""
        if self.progress is not None:
            self.progress(stage, done, total)


def _tied(checkpoint: Checkpoint, groups: Sequence[Group]) -> dict[str, str]:
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
