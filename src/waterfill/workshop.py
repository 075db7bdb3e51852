"""Whole files at a water level: quantized, corrected layer by layer on data, priced, encoded, measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from waterfill import allocate, curves
from waterfill.allocate import Job
from waterfill.calibrate import InSequence, correct
from waterfill.codec import container
from waterfill.curves import Curve
from waterfill.evaluate import Evaluation, distances, evaluate
from waterfill.files import WaterfillFile
from waterfill.forecast import Forecast
from waterfill.importance import has_cross_terms
from waterfill.limits import fit_spectra, price, rectangles
from waterfill.models import torch_module
from waterfill.models.state_dict import assemble, assemble_one
from waterfill.prepare import Live
from waterfill.protocols import Progress, QuadraticForm, Quartic
from waterfill.quantize.feedback import is_sparse
from waterfill.reconstruct import errors
from waterfill.records import Floats, Inventory, Limits, Quantized, Weight
from waterfill.resume.folder import NOTHING_KEPT, Memo
from waterfill.theory.scaled_source import ScaledSource
from waterfill.theory.spectra import Products
from waterfill.tune import Tune

PRODUCER = "waterfill 0.1.0"

FIXED_LEVEL_LOG2 = -24.0
"""Vectors beside matrices of a fixed rate are filled to the level that those reach, but to no lower one than this."""

Point: TypeAlias = tuple[float, ...]

VECTORS = ""
"""Name of the curve that all vectors have together: one that no tensor has."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """A whole file at one water level.

    Attributes:
        water_level: mean cost of an error per weight.
        power: to which power the importances were taken.
        quantized: what the file says about every coded tensor.
        packed: the file.
        targets: matrices whose errors count from other values than their own, because of the layers before them.
        limits: lower bounds at the distortions of the quantizers; None for a draft.
        measured: on the calibration data; None without.
        distances: of every output from that of the original, on the data to choose by; None without data.
        untuned: distortion before tuning; None where nothing was tuned.
        corrections: measured distortions over predicted ones, by name; 1 for all others.
        offsets: base-2 logarithms of the levels of tensors relative to the common one, by name; 0 for all others.
    """

    water_level: float
    power: float
    quantized: Mapping[str, Quantized]
    packed: container.Packed
    targets: Mapping[str, Weight] = field(default_factory=dict)
    limits: Limits | None = None
    measured: Evaluation | None = None
    distances: NDArray[np.float64] | None = None
    untuned: float | None = None
    corrections: Mapping[str, float] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.packed.data)

    @property
    def distortion(self) -> float | None:
        """Measured on the calibration data: KL of logits, squared error of values."""
        if self.measured is None:
            return None
        return self.measured.squared_error if self.measured.kl is None else self.measured.kl

    @property
    def held_out(self) -> float | None:
        """The same on the data to choose by."""
        return None if self.distances is None else float(self.distances.mean())


@dataclass(frozen=True, eq=False)
class Workshop:
    """Everything that attempts at different water levels share.

    Attributes:
        inventory: the model.
        jobs: what quantizes each weight, and what its errors cost.
        power: to which power the importances were taken.
        measure: name of what the errors cost: the importance and its power.
        sources: source models of the tensors that have one.
        exact: bytes of the tensors that are stored without loss.
        live: the module with its data, or None.
        progress: called as work goes on.
        forms: what errors cost as it was estimated, to no power.
        factor: what these costs are multiplied by to be distortions of the model.
        memo: of what is quantized already.
        tune: how vectors are tuned at the end; None for not.
        offsets: base-2 logarithms of the levels of tensors relative to the common one, by name; 0 for all others.
        corrections: measured distortions over those that `forms` predicts, by name; 1 for all others.
    """

    inventory: Inventory
    jobs: Mapping[str, Job]
    power: float
    measure: str
    sources: Mapping[str, ScaledSource]
    exact: Mapping[str, bytes]
    live: Live | None
    progress: Progress | None
    forms: Mapping[str, QuadraticForm]
    factor: float
    memo: Memo = NOTHING_KEPT
    tune: Tune | None = None
    offsets: Mapping[str, float] = field(default_factory=dict)
    corrections: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def mean_power(self) -> float:
        """Cost per weight of setting every matrix to zero; levels are relative to it."""
        return allocate.mean_power(self.jobs)

    @property
    def _weights(self) -> dict[str, Weight]:
        return {name: job.weight for name, job in self.jobs.items()}

    @property
    def _costs(self) -> dict[str, QuadraticForm | None]:
        return {name: job.form for name, job in self.jobs.items()}

    @cached_property
    def spectra(self) -> dict[str, list[Products]]:
        """Of the tensors with cross terms, for their limits."""
        return fit_spectra(self._weights, self.sources, self._costs)

    @cached_property
    def forecast(self) -> Forecast:
        """About how many bits files take, at levels relative to `mean_power`."""
        parts = (part for _, part in rectangles(self._weights, self.sources, self._costs, self.spectra))
        middle = math.log2(self.mean_power)
        return Forecast.of(parts, middle + allocate.LOWEST_LOG2, middle + allocate.HIGHEST_LOG2)

    @property
    def limit_bytes(self) -> float:
        """About how many bytes a file takes to name its limits."""
        return 40 + 1.5 * sum(not self.jobs[name].weight.is_vector for name in self.sources)

    # Files

    def draft(self, level: float) -> Attempt:
        """Quantize and encode at `mean_power * 2^level`, without looking at data."""
        water_level = self.mean_power * 2.0**level
        quantized = allocate.quantize(self.jobs, water_level, self.progress, self.memo)
        packed = self._pack(quantized)
        return Attempt(water_level, self.power, quantized, packed, corrections=self.corrections, offsets=self.offsets)

    def draft_fixed(self) -> Attempt:
        """The same where the level moves nothing but the vectors: they are filled to the level of the matrices."""
        matrices = {name: job for name, job in self.jobs.items() if not job.weight.is_vector}
        vectors = {name: job for name, job in self.jobs.items() if job.weight.is_vector}
        done = allocate.quantize(matrices, self.mean_power, self.progress, self.memo)
        count = sum(job.weight.matrix.size for job in matrices.values())
        reached = sum(item.distortion for item in done.values()) / max(1, count)
        water_level = max(reached, self.mean_power * 2.0**FIXED_LEVEL_LOG2)
        done |= allocate.quantize(vectors, water_level)
        return Attempt(water_level, self.power, done, self._pack(done))

    def mix(self, coarse: Attempt, fine: Attempt, limit: float) -> Attempt:
        """Take as many tensors of the finer draft as fit, those with the most bits first.

        Rate-distortion optimised rounding can jump from one level to the next, past the limit; tensors jump one by one.
        """
        quantized, left = dict(coarse.quantized), 8 * (limit - coarse.size_bytes)
        more = {name: fine.quantized[name].bits - item.bits for name, item in coarse.quantized.items()}
        for name in sorted(more, key=lambda name: -more[name]):
            if 0 < more[name] <= left:
                quantized[name], left = fine.quantized[name], left - more[name]
        mixed = replace(coarse, quantized=quantized, packed=self._pack(quantized))
        return mixed if mixed.size_bytes <= limit else coarse

    def finish(self, draft: Attempt) -> Attempt:
        """Quantize in sequence and correct statistics on the way, then price, encode, and measure."""
        if self.live is None:
            return self._priced(draft)
        found = self._measured(self._corrected(draft, self.live), self.live)
        return found if self.tune is None else self._tuned(found, self.live, self.tune)

    def trial(self, draft: Attempt) -> Attempt:
        """The same without tuning, measured only on the data to choose by."""
        assert self.live is not None
        corrected = self._corrected(draft, self.live)
        return _held_out(corrected, self.live, self.filled(corrected))

    def filled(self, attempt: Attempt) -> torch.nn.Module:
        """The copy of the model with the values of an attempt, until it is filled with others."""
        assert self.live is not None
        torch_module.fill(self.live.copy, dict(WaterfillFile(attempt.packed.data).tensors()))
        return self.live.copy

    def _priced(self, draft: Attempt) -> Attempt:
        exact_bits = 8 * sum(draft.packed.tensor_bytes[name] for name in self.exact)
        limits = price(self.jobs, draft.quantized, self.sources, self.spectra, exact_bits, self.measure)
        return replace(draft, packed=self._pack(draft.quantized, limits), limits=limits)

    def _measured(self, attempt: Attempt, live: Live) -> Attempt:
        copy = self.filled(attempt)
        found = evaluate(copy, live.batches, live.references, output=live.output)
        return _held_out(replace(attempt, measured=found), live, copy)

    def _corrected(self, draft: Attempt, live: Live) -> Attempt:
        """A draft whose matrices make up for those before them, and whose vectors for what became of statistics."""
        targets: dict[str, Weight] = {}
        self.filled(draft)
        quantized = dict(draft.quantized)

        def refill(name: str, values: Floats) -> Floats:
            weight = self.jobs[name].weight
            targets[name] = replace(weight, matrix=weight.layout.to_matrix(values))
            job = replace(self.jobs[name], weight=targets[name])
            quantized[name] = allocate.quantize_job(job, draft.water_level, self.memo)
            if self.progress is not None:
                self.progress("sequence", len(targets), len(names))
            return self._values(name, quantized[name])

        names = [name for name, job in self.jobs.items() if _in_sequence(job)]
        correct(live.observed, live.copy, self.progress, InSequence(names, refill) if names else None)
        quantized |= self._vectors(live.copy, draft.water_level)
        return self._priced(replace(draft, quantized=quantized, targets=targets))

    def _vectors(self, copy: torch.nn.Module, water_level: float) -> dict[str, Quantized]:
        """The vectors of a copy, quantized."""
        assert self.live is not None
        found = torch_module.inventory(copy, **self.live.options).weights
        vectors = {
            name: replace(job, weight=found[name])
            for name, job in self.jobs.items()
            if job.weight.is_vector and name in found
        }
        return allocate.quantize(vectors, water_level)

    def _tuned(self, attempt: Attempt, live: Live, tune: Tune) -> Attempt:
        """An attempt with tuned vectors, or itself where it measures better."""
        self.filled(attempt)
        part, names = live.fitting, [name for name, job in self.jobs.items() if job.weight.is_vector]
        values = self.memo.once(
            ("tuned", attempt.packed.data, tune),
            lambda: tune.fit(live.copy, part, part.references, live.output, names, self.progress),
        )
        state = live.copy.state_dict()
        for name, value in values.items():
            state[name].copy_(torch.from_numpy(value))
        quantized = dict(attempt.quantized) | self._vectors(live.copy, attempt.water_level)
        tuned = self._measured(self._priced(replace(attempt, quantized=quantized)), live)
        better = tuned if (tuned.held_out or 0) < (attempt.held_out or 0) else attempt
        return replace(better, untuned=attempt.distortion)

    # Curves

    @property
    def can_move(self) -> bool:
        """Whether all costs are such that tensors can have levels of their own."""
        return not any(isinstance(form, Quartic) for form in self._costs.values())

    def measured(self, level: float, live: Live) -> Workshop:
        """The same with tensors at levels of their own, by curves that are measured about a level.

        Args:
            level: base-2 logarithm of the water level.
            live: the module with its data.
        """
        groups = {name: [name] for name, job in self.jobs.items() if not job.weight.is_vector}
        groups[VECTORS] = [name for name, job in self.jobs.items() if job.weight.is_vector and job.form is not None]
        groups = {name: members for name, members in groups.items() if members}
        key = ("curves", level, {name: (job.form, job.quantizer) for name, job in self.jobs.items()})
        points = self.memo.once(key, lambda: self._points(groups, level, live))
        found = {name: Curve(curves.OFFSETS, *points[name][:2]) for name in groups}
        offsets = curves.offsets(found)
        ratios = {name: curves.mean_ratio(points[name][1], points[name][2]) for name in groups}
        of_members = {name: group for group, members in groups.items() for name in members}
        corrections = {name: ratios[group] for name, group in of_members.items()}
        return self.moved({name: offsets[group] for name, group in of_members.items()}, corrections)

    def moved(self, offsets: Mapping[str, float], corrections: Mapping[str, float]) -> Workshop:
        """The same with tensors at levels of their own: what an error costs is multiplied by `2^-offset`.

        Args:
            offsets: base-2 logarithms, by name.
            corrections: see there.
        """
        jobs = {
            name: job if job.form is None else replace(job, form=job.form.scaled(2.0 ** -offsets.get(name, 0.0)))
            for name, job in self.jobs.items()
        }
        measure = f"{self.measure}, measured"
        return replace(self, jobs=jobs, measure=measure, offsets=offsets, corrections=corrections)

    def mean_price(self, name: str) -> float:
        """What an error of a tensor that fills its level costs by its own form; mean over all weights that cost."""
        form = self.jobs[name].form
        if form is None:
            return 1.0
        own, used = (each.diagonal().astype(np.float64) for each in (self.forms[name], form))
        return float((own[used > 0] / used[used > 0]).mean() or 1.0) if (used > 0).any() else 1.0

    def _points(self, groups: Mapping[str, list[str]], level: float, live: Live) -> dict[str, tuple[Point, ...]]:
        """Bits, losses and predicted losses of every group, at every offset."""
        tried = []
        for offset in curves.OFFSETS:
            jobs = {name: self.jobs[name] for members in groups.values() for name in members}
            tried.append(allocate.quantize(jobs, 2.0 ** (level + offset), self.progress, self.memo))
        torch_module.fill(live.copy, dict(assemble(self.inventory.entries, self._original, self.inventory.exact)))

        def trial(group: str, point: int) -> dict[str, Tensor]:
            quantized = {name: tried[point][name] for name in groups[group]}
            return {name: self._assembled(name, quantized) for name in quantized}

        part = live.fitting
        some = curves.some(part, part.references)
        losses = curves.measure(live.copy, some, live.output, list(groups), trial, self.progress)
        return {
            group: (
                tuple(sum(done[name].bits for name in members) for done in tried),
                tuple(losses[group]),
                tuple(sum(self.cost(name, done[name]) for name in members) for done in tried),
            )
            for group, members in groups.items()
        }

    def cost(self, name: str, quantized: Quantized) -> float:
        """The distortion that the form of a tensor predicts for its error."""
        return self.factor * self.forms[name].cost(errors(self.jobs[name].weight, quantized.symbols, quantized.rule))

    def _original(self, name: str) -> Floats:
        return self.jobs[name].weight.matrix

    def _assembled(self, name: str, quantized: Mapping[str, Quantized]) -> Tensor:
        """An entry of the state dict where some tensors are quantized."""

        def matrix(name: str) -> Floats:
            weight = self.jobs[name].weight
            if name not in quantized:
                return weight.matrix
            return weight.matrix - errors(weight, quantized[name].symbols, quantized[name].rule)

        return assemble_one(name, self.inventory.entries, matrix, self.inventory.exact)

    def _values(self, name: str, quantized: Quantized) -> Floats:
        """Values of a quantized tensor, of its own shape."""
        return self._assembled(name, {name: quantized}).detach().float().numpy()

    def _pack(self, quantized: Mapping[str, Quantized], limits: Limits | None = None) -> container.Packed:
        return container.pack(self.inventory.entries, quantized, self.exact, PRODUCER, limits)


def _held_out(attempt: Attempt, live: Live, copy: torch.nn.Module) -> Attempt:
    """An attempt with the distances of its copy on the data to choose by."""
    part = live.choosing
    return replace(attempt, distances=distances(copy, part, part.references, live.output).numpy())


def _in_sequence(job: Job) -> bool:
    """Whether a tensor is filled again in sequence: a dense matrix, by a quantizer that uses cross terms."""
    matrix = job.weight.matrix
    crossed = getattr(job.quantizer, "crossed", False) and has_cross_terms(job.form)
    return crossed and not job.weight.is_vector and not is_sparse(matrix)
