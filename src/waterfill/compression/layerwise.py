"""Quantize a segment of a model: each matrix against the activations of the already quantized ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from waterfill._version import PRODUCER
from waterfill.codec import container
from waterfill.compression.bases import in_basis
from waterfill.compression.encoder import Job, decoded
from waterfill.compression.limit_components import Components
from waterfill.compression.limits import EntryLimit, SourceModels, entry_limit
from waterfill.compression.lossless import LosslessTensors
from waterfill.compression.segments import Segment
from waterfill.compression.target_correction import LayerInputs
from waterfill.compression.tensor_slices import TensorSlice
from waterfill.models.arrays import exact_bytes
from waterfill.protocols import QuadraticForm
from waterfill.records import Entry, Exact, Limits, Quantized, Weight


class TensorEncoder(Protocol):
    """Quantizes tensors, see `Encoder`."""

    def job(self, weight: Weight, importance: QuadraticForm | None, target: Weight | None = None) -> Job:
        """Say how a tensor is quantized."""
        ...

    def quantize(self, jobs: Mapping[str, Job], level: float) -> dict[str, Quantized]:
        """Quantize tensors, at a water level or near it."""
        ...


AT_ONCE = 1 << 25
"""Weights that are quantized at once, about."""

NOTHING: Mapping[str, Quantized] = MappingProxyType({})
NO_COMPONENTS = Components()


@dataclass(frozen=True)
class EntryReport:
    """Report of an entry.

    Attributes:
        tensor: name of the tensor of which it is a part.
        loss: distortion of the model that its importance predicts for its errors; None where that is not known.
        limit: the least bits of any code at its distortion; None without a source model.
        components: of the tensor where it has a limit.
        distortion: at which the limit is, by the form under which it was quantized.
        reason: why it is stored in a special way; usually empty.
    """

    tensor: str
    loss: float | None = None
    limit: EntryLimit | None = None
    components: Components = NO_COMPONENTS
    distortion: float = 0.0
    reason: str = ""


@dataclass(eq=False)
class CodedSegment:
    """A segment as integer symbols.

    Attributes:
        name: of the segment.
        water_level: at which it was quantized.
        entries: of its file, by name.
        quantized: of the coded ones.
        exact: bytes of those that are stored without loss.
        reports: of both.
        unit: of the distortion that losses predict; empty for none.
    """

    name: str
    water_level: float
    entries: dict[str, Entry] = field(default_factory=dict)
    quantized: dict[str, Quantized] = field(default_factory=dict)
    exact: dict[str, bytes] = field(default_factory=dict)
    reports: dict[str, EntryReport] = field(default_factory=dict)
    unit: str = ""

    @property
    def components(self) -> Components:
        """Of all tensors that have a limit."""
        return sum((report.components for report in self.reports.values()), NO_COMPONENTS)

    @property
    def distortion(self) -> float:
        """Of these together, by the forms under which they were quantized."""
        return sum(report.distortion for report in self.reports.values())

    def replaced(self, other: CodedSegment) -> CodedSegment:
        """Replace the tensors that another segment has by those there."""
        return replace(
            self,
            quantized=self.quantized | other.quantized,
            exact=self.exact | other.exact,
            reports=self.reports | other.reports,
        )

    def shortened(self, known: LosslessTensors) -> CodedSegment:
        """Give the tensors that are stored without loss the form that the file has them in."""
        entries = {entry.name: entry for entry in known.entries if entry.name in self.entries}
        exact = {name: each for name, each in self.exact.items() if name not in known.symbols}
        return replace(self, entries=self.entries | entries, quantized={**self.quantized, **known.symbols}, exact=exact)

    @property
    def matrix_bits(self) -> float:
        """Bits of all matrices."""
        return sum(item.bits for name, item in self.quantized.items() if len(self.entries[name].shape) > 1)

    def pack(self, limits: Limits | None = None, *, plain: bool = False) -> container.Packed:
        """Encode the segment as the bytes of a file.

        Args:
            limits: what the file is to say about its limit; None for nothing.
            plain: whether it is written without zstandard.
        """
        return container.pack(tuple(self.entries.values()), self.quantized, self.exact, PRODUCER, limits, plain=plain)


def quantize_segment(
    segment: Segment,
    level: float,
    encoder: TensorEncoder,
    sources: SourceModels,
    known: Mapping[str, Quantized] = NOTHING,
) -> CodedSegment:
    """Quantize a segment at a water level.

    First come the matrices that do not look at activations. Then the segment runs, and every matrix that it comes to
    gets a target for what it sees now, is quantized, and written back before the next one; statistics follow on the
    way. Vectors come last, as statistics have left them.

    Args:
        segment: what to quantize.
        level: the water level.
        encoder: what quantizes tensors.
        sources: models of the tensors, for their limits.
        known: matrices of the first kind that are quantized already, by name.
    """
    coder = _Coder(segment, level, encoder, sources, CodedSegment(segment.name, level, dict(segment.entries)))
    segment.start()
    coder.code(segment.independent(), known)
    segment.run(coder.visit)
    coder.code(segment.remaining(coder.tensors))
    return coder.coded


@dataclass(frozen=True, eq=False)
class _Coder:
    """Quantizes slices of a segment and reports on them."""

    segment: Segment
    level: float
    encoder: TensorEncoder
    sources: SourceModels
    coded: CodedSegment

    @property
    def tensors(self) -> set[str]:
        """Names of the tensors that are coded."""
        return {report.tensor for report in self.coded.reports.values()}

    def code(self, slices: Iterable[TensorSlice], known: Mapping[str, Quantized] = NOTHING) -> None:
        """Quantize slices for their own values, some at a time, and write them back."""
        for some in _batched(slices):
            jobs = {each.entry.name: self.encoder.job(each.weight, each.form) for each in some if each.weight}
            self._code(some, jobs, known)
            for each in some:
                if each.weight is not None:
                    self.segment.write(each, partial(self._decoded, each))

    def visit(self, names: Sequence[str], inputs: Mapping[str, LayerInputs]) -> dict[str, Tensor]:
        """Quantize matrices for targets of their own; gives the values that they get."""
        slices = [each for name in names for each in self.segment.slices_of(name)]
        jobs = {
            each.entry.name: self._corrected(each, each.weight, inputs[each.tensor].rows_of(each.rows))
            for each in slices
            if each.weight is not None
        }
        self._code(slices, jobs, NOTHING)
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for each in slices:
            parts[each.tensor].append(self._decoded(each))
        return {name: torch.cat(some) if len(some) > 1 else some[0] for name, some in parts.items()}

    def _corrected(self, piece: TensorSlice, weight: Weight, inputs: LayerInputs) -> Job:
        form = piece.form if inputs.form is None else inputs.form
        return self.encoder.job(weight, form, inputs.target(weight))

    def _code(self, slices: Sequence[TensorSlice], jobs: Mapping[str, Job], known: Mapping[str, Quantized]) -> None:
        """Quantize and report."""
        for each in slices:
            self.coded.entries[each.entry.name] = each.entry
            if each.exact is not None:
                self.coded.exact[each.entry.name] = exact_bytes(each.exact)
            origin = each.entry.origin
            reason = origin.reason if isinstance(origin, Exact) else each.reason
            self.coded.reports[each.entry.name] = EntryReport(each.tensor, reason=reason)
        new = {name: job for name, job in jobs.items() if name not in known}
        quantized = {name: known[name] for name in jobs if name in known} | self.encoder.quantize(new, self.level)
        self.coded.quantized |= quantized
        self._report(slices, jobs, quantized)

    def _decoded(self, piece: TensorSlice) -> Tensor:
        """Values of a slice that is quantized, as they will be decoded."""
        assert piece.weight is not None
        return decoded(piece.entry, piece.weight.layout, self.coded.quantized[piece.entry.name])

    def _report(
        self, slices: Sequence[TensorSlice], jobs: Mapping[str, Job], quantized: Mapping[str, Quantized]
    ) -> None:
        originals = {each.entry.name: each.original for each in slices if each.original is not None}
        originals = {name: in_basis(weight, jobs[name].basis) for name, weight in originals.items()}
        priced = {name: weight for name, weight in originals.items() if quantized[name].distortion > 0}
        models = self.sources.models(priced, {name: jobs[name].form for name in priced})
        for name, weight in originals.items():
            report = replace(self.coded.reports[name], loss=_loss(jobs[name], quantized[name]))
            importance = jobs[name].importance
            self.coded.unit = self.coded.unit if importance is None else importance.unit
            if name in models:
                distortion = quantized[name].distortion
                limit = entry_limit(models[name], distortion, weight.matrix.size)
                components = models[name].components
                report = replace(report, limit=limit, components=components, distortion=distortion)
            self.coded.reports[name] = report


def _loss(job: Job, quantized: Quantized) -> float | None:
    """The distortion of the model that the importance predicts; the search knows it where it went by it."""
    if job.importance is not None and job.form is job.importance:
        return job.importance.factor * quantized.distortion
    return job.loss(quantized)


def _batched(slices: Iterable[TensorSlice]) -> Iterator[list[TensorSlice]]:
    """Slices of about `AT_ONCE` weights together."""
    some: list[TensorSlice] = []
    size = 0
    for each in slices:
        some.append(each)
        size += 0 if each.weight is None else each.weight.matrix.size
        if size >= AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some
