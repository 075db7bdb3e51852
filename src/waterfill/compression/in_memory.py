"""A model in memory: walked again and again, at one water level after the other.

```
level --trial--> one pass: matrices for what they see now, statistics, vectors; priced, encoded, measured where chosen
trial --finished--> vectors tuned, measured on all data
```
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from waterfill.codec import container
from waterfill.compression import distortion_curves as curves
from waterfill.compression.bases import Bases
from waterfill.compression.calibration import CalibratedModel, PreparedModel
from waterfill.compression.distortion_curves import Curve
from waterfill.compression.encoder import (
    Encoder,
    Job,
    decoded_matrix,
    importance_to_power,
    mean_scale,
    mean_zero_cost,
)
from waterfill.compression.filling import FillingEncoder, Spending, largest_half
from waterfill.compression.layerwise import NOTHING, CodedSegment, TensorEncoder, quantize_segment
from waterfill.compression.limits import SourceModels
from waterfill.compression.lossless import LosslessTensors
from waterfill.compression.rate_control import HIGHEST_LOG2, LOWEST_LOG2, summed
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.compression.regrouped import RegroupedBatches
from waterfill.compression.report_rows import ReportBuilder
from waterfill.compression.segments import Segment, StoredTensors, WholeModel, entries_by_name, slices_of_inventory
from waterfill.compression.settings import Settings
from waterfill.compression.tensor_slices import TensorSlice
from waterfill.compression.tune import Tune
from waterfill.errors import CalibrationError
from waterfill.evaluation import Evaluation
from waterfill.files import WaterfillFile
from waterfill.models import torch_module
from waterfill.models.state_dict import assemble, assemble_one
from waterfill.models.work import MULTIPLICATIONS
from waterfill.protocols import QuadraticForm, traits_of
from waterfill.quantize.feedback import is_sparse
from waterfill.records import Floats, Inventory, Quantized, Weight

FIXED_LEVEL_LOG2 = -24.0
"""Vectors beside matrices of a fixed rate are filled to the level that those reach, but to no lower one than this."""

DEAR_TO_FACTOR = 1000
"""Work of factoring matrices of products of inputs, in values for every weight, from which a model is dear: that of 16
rows of 8,192 inputs is 4,400 for each of them."""

VECTORS = ""
"""Name of the curve that all vectors have together: one that no tensor has."""

Points = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
"""Bits, measured losses and predicted losses of a curve."""


@dataclass(frozen=True, eq=False)
class FileCandidate:
    """A finished file.

    Attributes:
        walk: that made it.
        water_level: mean cost of an error per weight.
        coded: its tensors.
        packed: the file.
        report: what is told of it.
        measured: on the calibration data; None without, and for a trial.
        distances: of every output from that of the original, on the data to choose by; empty without data.
        untuned: distortion before tuning; None where nothing was tuned.
    """

    walk: InMemoryWalk
    water_level: float
    coded: CodedSegment
    packed: container.Packed
    report: ReportBuilder
    measured: Evaluation | None = None
    distances: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    untuned: float | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.packed.data)

    @property
    def coded_bits(self) -> float:
        """Bits of its symbols, without those of tensors that are stored without loss."""
        return sum(item.bits for name, item in self.coded.quantized.items() if name in self.walk.jobs)

    @property
    def distortion(self) -> float | None:
        """Measured on the calibration data: KL of logits, squared error of values."""
        return None if self.measured is None else self.measured.distortion

    @property
    def held_out(self) -> float | None:
        """Mean distance of the outputs on the data to choose by."""
        return float(self.distances.mean()) if self.distances.size else None

    @property
    def is_zeroed(self) -> bool:
        """Whether all of its matrices are zero."""
        return self.report.is_zeroed


@dataclass(frozen=True, eq=False)
class InMemoryWalk:
    """Walks through a model in memory, with importances to one power.

    Attributes:
        prepared: the model, its data, and what errors cost.
        settings: of the compression.
        sources: models of the tensors, which walks of several powers share.
        power: to which the importances of the matrices are taken.
        tune: how vectors are tuned at the end; None for not.
        offsets: base-2 logarithms of the levels of tensors relative to the common one, by name; 0 for all others.
        corrections: measured distortions over predicted ones, by name; 1 for all others.
        bases: in which the tensors are coded; None for their own values.
    """

    prepared: PreparedModel
    settings: Settings
    sources: SourceModels
    power: float = 1.0
    tune: Tune | None = None
    offsets: Mapping[str, float] = field(default_factory=dict)
    corrections: Mapping[str, float] = field(default_factory=dict)
    bases: Bases | None = None

    @property
    def model(self) -> CalibratedModel | None:
        """The module with its data; None without data."""
        return self.prepared.model

    @property
    def calibrated(self) -> CalibratedModel:
        """The module with its data.

        Raises:
            CalibrationError: there are no data.
        """
        if self.model is None:
            raise CalibrationError("The quality of a model is measured on data, but there are none; pass data.")
        return self.model

    @property
    def inventory(self) -> Inventory:
        """The tensors."""
        return self.prepared.inventory

    @property
    def measure(self) -> str:
        """Name of what errors cost: the importance and its power."""
        to_power = importance_to_power(self.prepared.estimator.name, self.power)
        return f"{to_power}, measured" if self.offsets else to_power

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of all tensors."""
        processes = self.settings.processes
        plain = Encoder(
            self.settings.quantizer,
            processes.broadcast(mean_scale(self.inventory.weights, self._matrix_forms)),
            self.power,
            processes=processes,
            memo=self.settings.memo,
            progress=self.settings.progress,
        )
        cost = processes.broadcast(mean_zero_cost(plain.jobs(self.inventory.weights, self.prepared.forms)))
        made = WeakKeyDictionary() if self.offsets or self.bases else plain.made
        return replace(plain, zero_cost=cost, offsets=self.offsets, bases=self.bases, made=made)

    @property
    def _matrix_forms(self) -> dict[str, QuadraticForm]:
        weights = self.inventory.weights
        return {
            name: form for name, form in self.prepared.forms.items() if name in weights and not weights[name].is_vector
        }

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """How every tensor is quantized for its own values."""
        return self.encoder.jobs(self.inventory.weights, self.prepared.forms)

    @cached_property
    def mean_power(self) -> float:
        """Cost per weight of setting every matrix to zero; levels are relative to it."""
        return self.settings.processes.broadcast(mean_zero_cost(self.jobs))

    @cached_property
    def forecasts(self) -> dict[str, VarianceHistogram]:
        """Components of all tensors whose sensitivity is known, and of all matrices, by name."""
        self.sources.fit(job.weight for job in self.jobs.values())
        known = {name: job for name, job in self.jobs.items() if job.form is not None or not job.weight.is_vector}
        found = {name: self.sources.forecast(job.weight, job.form) for name, job in known.items()}
        return self.settings.processes.broadcast(found)

    @cached_property
    def forecast(self) -> VarianceHistogram:
        """By which files take about so many bits at a level."""
        own = summed(self.forecasts.values())
        if not own.number:  # vectors of unknown importance alone, whose precision goes by the level
            own = VarianceHistogram.of(np.full(max(1, self.inventory.floating_values), self.mean_power))
        return self.settings.processes.broadcast(own)

    @cached_property
    def _foreseen(self) -> dict[str, Job]:
        """The matrices whose bits are foreseen."""
        matrices = {name: job for name, job in self.jobs.items() if not job.weight.is_vector}
        return {name: job for name, job in matrices.items() if name in self.forecasts and self.forecasts[name].number}

    @cached_property
    def largest(self) -> dict[str, Job]:
        """The largest of them, which have half of their weights."""
        return largest_half(self._foreseen)

    @property
    def level_span(self) -> tuple[float, float]:
        """Lowest and highest base-2 logarithm of a water level."""
        middle = math.log2(self.mean_power)
        return middle + LOWEST_LOG2, middle + HIGHEST_LOG2

    def level_of(self, bits: float) -> float:
        """The water level at which so many bits are foreseen, within `level_span`."""
        low, high = self.level_span
        return float(np.clip(self.forecast.level_at_forecast(bits), 2.0**low, 2.0**high))

    @property
    def is_dear(self) -> bool:
        """Whether walks take so much work, for so few weights, that few can be made."""
        forms = [form for form in self._matrix_forms.values() if form.has_cross_terms]
        multiplications = sum(form.diagonal().shape[1] ** 3 / 6 for form in forms)
        factoring = multiplications / MULTIPLICATIONS / max(1, self.inventory.floating_values)
        return factoring > DEAR_TO_FACTOR or (self.model is not None and self.model.is_dear)

    @property
    def limit_bytes(self) -> float:
        """About how many bytes a file takes to name its limits."""
        return 40 + 1.5 * sum(not self.inventory.weights[name].is_vector for name in self.jobs)

    @property
    def _lossless(self) -> LosslessTensors:
        return self.prepared.lossless

    def in_bases(self, level: float) -> InMemoryWalk:
        """The walk with the tensors in the bases in which they take the fewest bits about a water level."""
        settings = self.settings
        known = self.model is not None
        bases = Bases(settings.quantizer, level, mixes_rows=known, processes=settings.processes, memo=settings.memo)
        found = replace(self, bases=bases)
        self.sources.forget(name for walk in (self, found) for name, job in walk.jobs.items() if job.basis is not None)
        return found

    # Candidates

    def trial(
        self,
        water_level: float,
        known: Mapping[str, Quantized] = NOTHING,
        *,
        coarsely: bool = False,
        spending: Spending | None = None,
    ) -> FileCandidate:
        """Quantize in sequence and correct statistics on the way, then price, encode, and measure to choose by.

        Args:
            water_level: mean cost of an error per weight.
            known: what is quantized already, of what does not look at activations.
            coarsely: by a search that is soon done, to compare ways to share the bits.
            spending: what tensors that look at no activations take together; their levels then are near the level.
        """
        encoder: TensorEncoder = self.encoder.coarse if coarsely else self.encoder
        if spending is not None:
            encoder = self._filling(spending)
        candidate = self._candidate(
            water_level, quantize_segment(self._segment(), water_level, encoder, self.sources, known)
        )
        return candidate if self.model is None else self._compared(candidate, self.model)

    def _filling(self, spending: Spending) -> FillingEncoder:
        """The encoder that spends so many bits."""
        foreseen = {name: self.forecasts[name].repeated(spending.ratio) for name in self._foreseen}
        low, high = self.level_span
        return FillingEncoder(self.encoder, spending.bits, foreseen, (2.0**low, 2.0**high))

    def finished(self, candidate: FileCandidate) -> FileCandidate:
        """Tune the vectors of a trial where that is asked for, and measure it on all data."""
        if self.model is None:
            return candidate
        found = self._measured(candidate, self.model)
        return found if self.tune is None else self._tuned(found, self.model, self.tune)

    def fixed(self) -> FileCandidate:
        """Quantize where the level moves only the vectors: they are filled to the level of the matrices."""
        matrices = {name: job for name, job in self.jobs.items() if not job.weight.is_vector}
        done = self.encoder.quantize(matrices, self.mean_power)
        count = sum(job.weight.matrix.size for job in matrices.values())
        reached = sum(item.distortion for item in done.values()) / max(1, count)
        water_level = max(reached, self.mean_power * 2.0**FIXED_LEVEL_LOG2)
        return self.finished(self.trial(water_level, done))

    def _segment(self) -> Segment:
        inventory, forms, reasons = self.inventory, self.prepared.forms, self.prepared.reasons
        if self.model is None:
            return StoredTensors("", lambda: slices_of_inventory(inventory, forms, reasons), entries_by_name(inventory))
        return WholeModel(self.model, inventory, forms, self.visited, self.settings.progress, reasons)

    @cached_property
    def visited(self) -> Collection[str]:
        """Names of the matrices that are quantized in sequence: dense ones, with cross terms that the search uses."""
        if self.model is None or not traits_of(self.settings.quantizer).uses_cross_terms:
            return ()
        dense = [
            name
            for name, job in self.jobs.items()
            if job.form is not None and job.form.has_cross_terms and not is_sparse(job.weight.matrix)
        ]
        return [name for name in dense if name in self.model.observed.matrix_inputs]

    def _candidate(self, water_level: float, coded: CodedSegment) -> FileCandidate:
        """Price and encode a segment: that of the first process, from which others may be a rounding away.

        Args:
            water_level: at which it was quantized.
            coded: its tensors.
        """
        coded = self.settings.processes.broadcast(coded.shortened(self._lossless))
        report = ReportBuilder(self.corrections)
        report.add(coded, self._lossless.packed)
        facts = self.settings.processes.broadcast(report.limit_facts(self.measure, coded.entries))
        packed = coded.pack(facts, plain=self.settings.plain)
        whole = ReportBuilder(self.corrections)
        whole.add(coded, packed)
        return FileCandidate(self, water_level, coded, packed, whole)

    def _compared(self, candidate: FileCandidate, model: CalibratedModel) -> FileCandidate:
        return replace(candidate, distances=model.distances(filled(model, candidate)))

    def _measured(self, candidate: FileCandidate, model: CalibratedModel) -> FileCandidate:
        measured, distances = model.measure(filled(model, candidate))
        return replace(candidate, measured=measured, distances=distances)

    def _tuned(self, found: FileCandidate, model: CalibratedModel, tune: Tune) -> FileCandidate:
        """A candidate with tuned vectors, or itself where it measures better."""
        copy, part = filled(model, found), model.fitting
        names = [name for name, weight in self.inventory.weights.items() if weight.is_vector]
        with model.reading.of(copy):
            values = self.settings.memo.once(
                ("tuned", found.packed.data, tune),
                lambda: tune.fit(copy, part, part.references, model.distortion, names, self.settings.progress),
            )
        state = copy.state_dict()
        for name, value in self.settings.processes.broadcast(values).items():
            state[name].copy_(torch.from_numpy(value))
        read = torch_module.inventory(copy, **model.options).weights
        vectors = {name: read[name] for name in names if name in read}
        tuned = self._measured(self._candidate(found.water_level, self._with_vectors(found, vectors)), model)
        better = tuned if (tuned.held_out or 0) < (found.held_out or 0) else found
        return replace(better, untuned=found.distortion)

    def _with_vectors(self, found: FileCandidate, vectors: Mapping[str, Weight]) -> CodedSegment:
        """The tensors of a candidate, with other vectors."""
        inventory = self.inventory

        def read() -> list[TensorSlice]:
            slices = slices_of_inventory(inventory, self.prepared.forms, self.prepared.reasons)
            return [
                replace(each, weight=vectors[each.tensor], before=each.weight)
                for each in slices
                if each.tensor in vectors
            ]

        new = quantize_segment(StoredTensors("", read), found.water_level, self.encoder, self.sources)
        return found.coded.replaced(new)

    # Curves

    def with_curves(self, water_level: float, model: CalibratedModel) -> InMemoryWalk:
        """Give tensors levels of their own, by curves that are measured about a level.

        Args:
            water_level: that level.
            model: the module with its data.
        """
        groups = {name: [name] for name, job in self.jobs.items() if not job.weight.is_vector}
        groups[VECTORS] = [name for name, job in self.jobs.items() if job.weight.is_vector and job.form is not None]
        groups = {name: members for name, members in groups.items() if members}
        points = self.settings.processes.broadcast(self._points(groups, water_level, model))
        found = {name: Curve(curves.OFFSETS, *points[name][:2]) for name in groups}
        offsets = curves.offsets(found)
        ratios = {name: curves.mean_ratio(points[name][1], points[name][2]) for name in groups}
        of_members = {name: group for group, members in groups.items() for name in members}
        corrections = {name: ratios[group] for name, group in of_members.items()}
        return self.moved({name: offsets[group] for name, group in of_members.items()}, corrections)

    def moved(self, offsets: Mapping[str, float], corrections: Mapping[str, float]) -> InMemoryWalk:
        """Give tensors levels of their own: the cost of an error is multiplied by `2^-offset`.

        Args:
            offsets: base-2 logarithms, by name.
            corrections: see there.
        """
        return replace(self, offsets=offsets, corrections=corrections)

    def mean_price(self, name: str) -> float:
        """Cost, by the importance, of an error of a tensor that fills its level; mean over all weights that cost."""
        job = self.jobs[name]
        if job.form is None or job.importance is None:
            return 1.0
        own, used = (each.diagonal().astype(np.float64) for each in (job.importance, job.form))
        return float((own[used > 0] / used[used > 0]).mean() or 1.0) if (used > 0).any() else 1.0

    def _points(self, groups: Mapping[str, list[str]], water_level: float, model: CalibratedModel) -> dict[str, Points]:
        """Points of every group, at every offset; each process measures some of the groups."""
        encoder = self.encoder.coarse
        weights = {name: self.inventory.weights[name] for members in groups.values() for name in members}
        jobs = encoder.jobs(weights, self.prepared.forms)
        tried = [encoder.quantize(jobs, water_level * 2.0**offset) for offset in curves.OFFSETS]
        originals = assemble(self.inventory.entries, self._original, self.inventory.exact)
        torch_module.fill(model.copy, dict(originals))

        def trial(group: str, point: int) -> dict[str, Tensor]:
            quantized = {name: tried[point][name] for name in groups[group]}
            return {name: self._assembled(name, quantized) for name in quantized}

        part, processes = model.fitting, self.settings.processes
        few = RegroupedBatches(part, model.samples_within(curves.WORK), part.references)
        some, own = curves.some(few, few.references), list(groups)[processes.rank :: processes.count]
        key = ("curves", water_level, {name: (job.form, job.quantizer) for name, job in jobs.items()})
        with model.reading.of(model.copy):
            measured = self.settings.memo.once(
                key, lambda: curves.measure(model.copy, some, model.distortion, own, trial, self.settings.progress)
            )
        losses = {name: each for of_process in processes.all_gather(measured) for name, each in of_process.items()}
        return {
            group: (
                tuple(sum(done[name].bits for name in members) for done in tried),
                tuple(losses[group]),
                tuple(sum(self.jobs[name].loss(done[name]) or 0.0 for name in members) for done in tried),
            )
            for group, members in groups.items()
        }

    def _original(self, name: str) -> Floats:
        return self.inventory.weights[name].matrix

    def _assembled(self, name: str, quantized: Mapping[str, Quantized]) -> Tensor:
        """An entry of the state dict where some tensors are quantized."""

        def matrix(name: str) -> Floats:
            weight = self.inventory.weights[name]
            return decoded_matrix(weight.layout, quantized[name]) if name in quantized else weight.matrix

        return assemble_one(name, self.inventory.entries, matrix, self.inventory.exact)


def filled(model: CalibratedModel, candidate: FileCandidate) -> torch.nn.Module:
    """Fill the copy of a model with the values of a candidate."""
    torch_module.fill(model.copy, dict(WaterfillFile(candidate.packed.data).tensors()))
    return model.copy
