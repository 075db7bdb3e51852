"""What all steps of a compression share: the checkpoint, its groups, who works, how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from waterfill.blocks.groups import Group, groups_of
from waterfill.blocks.ranks import Ranks
from waterfill.bundle import Checkpoint
from waterfill.models.patterns import excluded
from waterfill.models.state_dict import dtype_name
from waterfill.protocols import Progress, Quantizer
from waterfill.resume.folder import NOTHING_KEPT, Memo


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
    ) -> Work:
        """Look at a checkpoint.

        Args:
            checkpoint: the weights.
            quantizer: of the matrices.
            team: the processes.
            seed: of what is drawn.
            progress: called as work goes on.
            patterns: `include` and `exclude`.
        """
        groups = groups_of(checkpoint.shapes)
        tied = _tied(checkpoint, groups)
        left = {name: shape for name, shape in checkpoint.shapes.items() if name not in tied}
        kept = excluded({name: torch.empty(0) for name in left}, *patterns)
        return cls(checkpoint, groups_of(left), tied, kept, quantizer, team, seed, progress if team.writes else None)

    @property
    def floating_values(self) -> int:
        """Number of floating-point values, tied ones once."""
        types = self.checkpoint.dtypes
        return sum(
            math.prod(shape)
            for name, shape in self.checkpoint.shapes.items()
            if name not in self.tied and ("float" in dtype_name(types[name]) or "complex" in dtype_name(types[name]))
        )

    def tell(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is."""
        if self.progress is not None:
            self.progress(stage, done, total)


def _tied(checkpoint: Checkpoint, groups: Sequence[Group]) -> dict[str, str]:
    """Tensors outside of the blocks that are equal to one before them."""
    found: dict[str, str] = {}
    names = [
        name for group in groups if group.block is None for name in group.tensors if len(checkpoint.shapes[name]) > 1
    ]
    for index, name in enumerate(names):
        for other in names[:index]:
            same = checkpoint.shapes[name] == checkpoint.shapes[other] and other not in found
            if same and checkpoint.dtypes[name] == checkpoint.dtypes[other]:
                if torch.equal(checkpoint[name], checkpoint[other]):
                    found[name] = other
                    break
    return found
