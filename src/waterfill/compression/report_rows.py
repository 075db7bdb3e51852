"""The report of a compressed model, added up segment by segment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from waterfill.codec.container import Packed
from waterfill.codec.directory import original_bytes
from waterfill.compression.layerwise import CodedSegment, EntryReport
from waterfill.compression.limit_components import Components
from waterfill.compression.shortfall import is_zero
from waterfill.records import Entry, Limits, Quantized, TensorLimit, count_floating
from waterfill.results import TensorReport, reconstruction

NO_ENTRY = EntryReport("")

ACCURACY = 0.003
"""Bits to which limits are worked out."""


@dataclass(eq=False)
class _Row:
    """Report of a tensor, added up over its slices."""

    size: float = 0.0
    loss: float | None = None
    limit: float | None = None
    variance: float = 0.0
    source_model: str = ""
    note: str = ""
    reconstruction: str = ""
    reason: str = ""

    def add(self, entry: Entry, report: EntryReport, quantized: Quantized | None) -> None:
        """Take in a slice."""
        self.reconstruction, why = reconstruction(entry, quantized)
        if not why and quantized is not None and is_zero(quantized) and quantized.distortion > 0:
            why = "every value is zero at this level"
        self.reason = report.reason or why or self.reason
        if report.loss is not None:
            self.loss = (self.loss or 0.0) + report.loss
        if report.limit is not None:
            self.limit = (self.limit or 0.0) + report.limit.bits
            self.variance += report.limit.standard_error**2
            self.source_model = report.limit.source_model
            self.note = report.limit.note or self.note


@dataclass(eq=False)
class ReportBuilder:
    """Report of all segments so far.

    Attributes:
        corrections: measured distortions over predicted ones, by name of a tensor; 1 for all others.
        rows: of all tensors, by name.
        components: of all tensors that have a limit.
        distortion: of these together.
        stored_bits: of everything that has no limit.
        variance: of the limit.
        overhead: bytes that belong to no tensor.
        limits: the least bits of any code for every segment, by name.
        unit: of the distortion that losses predict.
        lost: whether a matrix came to be zero that was not.
        left: whether a matrix is not zero.
    """

    corrections: Mapping[str, float] = field(default_factory=dict)
    rows: dict[str, _Row] = field(default_factory=dict)
    components: Components = field(default_factory=Components)
    distortion: float = 0.0
    stored_bits: float = 0.0
    variance: float = 0.0
    overhead: float = 0.0
    limits: dict[str, int] = field(default_factory=dict)
    unit: str = ""
    lost: bool = False
    left: bool = False

    def add(self, coded: CodedSegment, packed: Packed) -> None:
        """Take in a segment."""
        before = self.stored_bits
        self.components, self.distortion = self.components + coded.components, self.distortion + coded.distortion
        self.overhead += packed.overhead_bytes
        self.unit = coded.unit or self.unit
        for name, entry in coded.entries.items():
            report = coded.reports.get(name, NO_ENTRY)
            quantized, size = coded.quantized.get(name), packed.tensor_bytes.get(name, 0.0)
            row = self.rows.setdefault(report.tensor or name, _Row())
            row.add(entry, report, quantized)
            row.size += size
            if quantized is not None and len(entry.shape) > 1:
                self.left |= not is_zero(quantized)
                self.lost |= is_zero(quantized) and quantized.distortion > 0
            if report.limit is None:
                self.stored_bits += quantized.bits if quantized is not None else 8 * size
            else:
                self.variance += report.limit.standard_error**2
        of_segment = coded.components.rate_at_distortion(coded.distortion)
        self.limits[coded.name] = round(self.stored_bits - before + of_segment)

    @property
    def is_zeroed(self) -> bool:
        """Whether all matrices are zero, and one was not before."""
        return self.lost and not self.left

    @property
    def limit_bits(self) -> float:
        """The least bits of any code for all segments, at the sum of their distortions.

        A code that is free to share the sum between the tensors needs at most as many bits as the limits of the tensors
        together. A tensor without error has no limit, for no density has one there; like all that have none it counts
        with the bits that it takes.
        """
        return self.stored_bits + self.components.rate_at_distortion(self.distortion)

    @property
    def predicted_distortion(self) -> float | None:
        """Sum of the losses of the tensors, each times its correction; None where none is known."""
        losses = {name: row.loss for name, row in self.rows.items() if row.loss is not None}
        if not losses:
            return None
        return sum(self.corrections.get(name, 1.0) * loss for name, loss in losses.items())

    def limit_facts(self, measure: str, entries: Mapping[str, Entry]) -> Limits:
        """Facts that a file stores about its limit.

        Args:
            measure: name of the distortion.
            entries: of the file, by name.
        """
        found = {}
        for name, row in self.rows.items():
            if row.limit is not None:
                values = max(1, math.prod(entries[name].shape))
                error = math.sqrt(row.variance) / values
                found[name] = TensorLimit(row.limit / values, row.source_model, error)
        return Limits(found, self.limit_bits, math.sqrt(self.variance), measure)

    def outcome(self, entries: Iterable[Entry]) -> dict[str, Any]:
        """Fields of a result.

        Args:
            entries: all tensors of the model, whole.
        """
        every = tuple(entries)
        floating = count_floating(every)
        values = max(1, floating)
        bits = self.limit_bits - self.stored_bits
        return {
            "floating_values": floating,
            "original_bytes": original_bytes(every),
            "tensors": tuple(self._line(entry) for entry in every),
            "overhead_bytes": self.overhead,
            "predicted_distortion": self.predicted_distortion,
            "limit": self.limit_bits / values,
            "limit_error": math.sqrt(self.variance) / values,
            "limit_distortion": self.distortion if self.components.number else None,
            "limit_curve": tuple(
                ((self.stored_bits + each) / values, least) for each, least in self.components.curve(bits)
            ),
            "distortion_unit": self.unit,
        }

    def _line(self, entry: Entry) -> TensorReport:
        numel = math.prod(entry.shape)
        row = self.rows.get(entry.name)
        if row is None:  # tied ones are in no segment of a directory
            kind, reason = reconstruction(entry, None)
            return TensorReport(entry.name, entry.shape, numel, 0.0, 0.0, None, kind, reason)
        values = max(1, numel)
        rate = 8 * row.size / values
        limit = None if row.limit is None else row.limit / values
        error = None if limit is None else math.sqrt(row.variance) / values
        below = "" if limit is None or error is None or not row.size else _why_below(rate - limit, error)
        return TensorReport(
            entry.name,
            entry.shape,
            numel,
            row.size,
            rate,
            row.loss,
            row.reconstruction,
            row.reason,
            limit,
            error,
            row.source_model,
            "; ".join(filter(None, (below, row.note))),
        )


def _why_below(gap: float, standard_error: float) -> str:
    """Why a tensor takes fewer bits than its limit; empty when it does not, or by less than limits are exact to."""
    if gap >= -ACCURACY:
        return ""
    if -gap <= 2 * standard_error:
        return "below the limit within two standard errors of the fitted entropy"
    return "below the limit of the fitted source"
