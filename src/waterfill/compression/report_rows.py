"""The report of a directory, added up group by group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from waterfill.bundle.parts import part_of
from waterfill.codec.container import Packed
from waterfill.compression.checkpoint_source import Work
from waterfill.compression.coder import Done
from waterfill.compression.rate_model import Volumes
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
        overhead: bytes that belong to no tensor.
        rows: of all tensors, by name.
        limits: the least bits of any code for every group, by name.
    """

    volumes: Volumes = field(default_factory=Volumes.none)
    distortion: float = 0.0
    stored_bits: float = 0.0
    variance: float = 0.0
    overhead: float = 0.0
    rows: dict[str, _Row] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)

    def add(self, group: str, done: Done, packed: Packed) -> None:
        """Take in a group."""
        before = self.stored_bits
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
        bits = done.volumes.rate_at_distortion(done.distortion) if done.distortion else 0.0
        self.limits[group] = round(self.stored_bits - before + bits)

    def limit_bits(self) -> float:
        """The least bits of any code for all groups, at the sum of their distortions."""
        return self.stored_bits + (self.volumes.rate_at_distortion(self.distortion) if self.distortion else 0.0)

    def result(self, work: Work, factor: float, **facts: Any) -> DirectoryResult:
        """The result.

        Args:
            work: the model.
            factor: what costs are multiplied by to be distortions.
            facts: fields of the result that are known elsewhere.
        """
        losses = [row.loss for row in self.rows.values() if row.loss is not None]
        types, values = work.checkpoint.dtypes, max(1, work.floating_values)
        return DirectoryResult(
            floating_values=work.floating_values,
            original_bytes=sum(math.prod(shape) * types[name].itemsize for name, shape in work.shapes.items()),
            tensors=tuple(self._line(name, shape, work.tied, factor) for name, shape in work.checkpoint.shapes.items()),
            overhead_bytes=self.overhead,
            predicted_distortion=factor * sum(losses) if losses else None,
            limit=self.limit_bits() / values,
            limit_error=math.sqrt(self.variance) / values,
            **facts,
        )

    def _line(self, name: str, shape: tuple[int, ...], tied: Mapping[str, str], factor: float) -> TensorReport:
        numel = math.prod(shape)
        if name in tied:
            return TensorReport(name, shape, numel, 0.0, 0.0, None, "tied", f"the same tensor as {tied[name]}")
        row, values = self.rows[name], max(1, numel)
        report = TensorReport(name, shape, numel, row.size, 8 * row.size / values, None, row.reconstruction, row.reason)
        if row.loss is not None:
            report = replace(report, distortion=factor * row.loss)
        if row.limit is None:
            return report
        error = math.sqrt(row.variance) / values
        return replace(report, limit=row.limit / values, limit_error=error, source_model=row.source_model)
