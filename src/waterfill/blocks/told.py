"""The report of a directory, added up group by group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from waterfill.blocks.coder import Done
from waterfill.blocks.outlook import Volumes
from waterfill.bundle import Checkpoint
from waterfill.bundle.parts import part_of
from waterfill.codec.container import Packed
from waterfill.models.state_dict import dtype_name
from waterfill.results import DirectoryResult, TensorReport, reconstruction


@dataclass(eq=False)
class _Row:
    """What is known of a tensor, added up over its parts."""

    size: float = 0.0
    loss: float | None = None
    limit: float | None = None
    variance: float = 0.0
    source_model: str = ""
    reconstruction: str = ""
    reason: str = ""


@dataclass(eq=False)
class Report:
    """What is told of all groups so far.

    Attributes:
        volumes: of all matrices.
        distortion: of all of them.
        stored_bits: of everything that has no limit.
        variance: of the limit.
    """

    volumes: Volumes = field(default_factory=Volumes.none)
    distortion: float = 0.0
    stored_bits: float = 0.0
    variance: float = 0.0
    overhead: float = 0.0
    rows: dict[str, _Row] = field(default_factory=dict)

    def add(self, done: Done, packed: Packed) -> None:
        """Take in a group."""
        self.volumes, self.distortion = self.volumes + done.volumes, self.distortion + done.distortion
        self.overhead += packed.overhead_bytes
        for name, told in done.told.items():
            part = part_of(name)
            row = self.rows.setdefault(name if part is None else part.tensor, _Row())
            quantized, size = done.quantized.get(name), packed.tensor_bytes.get(name, 0.0)
            row.size += size
            row.reconstruction, why = reconstruction(done.entries[name], quantized)
            row.reason = told.reason or why or row.reason
            if told.loss is not None:
                row.loss = (row.loss or 0.0) + told.loss
            if told.limit is None:
                self.stored_bits += quantized.bits if quantized is not None else 8 * size
                continue
            row.limit, row.source_model = (row.limit or 0.0) + told.limit, told.source_model
            row.variance += told.limit_error**2
            self.variance += told.limit_error**2

    def result(self, checkpoint: Checkpoint, tied: Mapping[str, str], **facts: Any) -> DirectoryResult:
        """The result.

        Args:
            checkpoint: the original.
            tied: names of tensors that are equal to others, by name.
            facts: fields of the result that are known elsewhere; `factor` multiplies costs to be distortions.
        """
        factor = facts.pop("factor")
        shapes = {name: shape for name, shape in checkpoint.shapes.items() if name not in tied}
        floating = sum(math.prod(shape) for name, shape in shapes.items() if _is_floating(checkpoint.dtypes[name]))
        limit_bits = (
            self.stored_bits + self.volumes.rate_at_distortion(self.distortion) if self.distortion else self.stored_bits
        )
        losses = [row.loss for row in self.rows.values() if row.loss is not None]
        return DirectoryResult(
            floating_values=floating,
            original_bytes=sum(math.prod(s) * checkpoint.dtypes[n].itemsize for n, s in shapes.items()),
            tensors=tuple(
                _report(name, shape, self.rows[name] if name not in tied else None, factor, tied)
                for name, shape in checkpoint.shapes.items()
            ),
            overhead_bytes=self.overhead,
            predicted_distortion=factor * sum(losses) if losses else None,
            limit=limit_bits / max(1, floating),
            limit_error=math.sqrt(self.variance) / max(1, floating),
            **facts,
        )


def _is_floating(dtype: torch.dtype) -> bool:
    return "float" in dtype_name(dtype) or "complex" in dtype_name(dtype)


def _report(
    name: str, shape: tuple[int, ...], row: _Row | None, factor: float, tied: Mapping[str, str]
) -> TensorReport:
    numel = math.prod(shape)
    if row is None:
        return TensorReport(name, shape, numel, 0.0, 0.0, None, "tied", f"the same tensor as {tied[name]}")
    values = max(1, numel)
    return TensorReport(
        name, shape, numel, row.size, 8 * row.size / values,
        None if row.loss is None else factor * row.loss,
        row.reconstruction, row.reason,
        None if row.limit is None else row.limit / values,
        None if row.limit is None else math.sqrt(row.variance) / values,
        row.source_model,
    )  # fmt: skip
