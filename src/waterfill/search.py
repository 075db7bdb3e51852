"""Attempts at compressing a model, and the search for the one that meets a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from waterfill import allocate
from waterfill.allocate import Job, Trial
from waterfill.calibrate import correct_statistics
from waterfill.codec import container
from waterfill.errors import CalibrationError, TargetError
from waterfill.evaluate import evaluate
from waterfill.files import WaterfillFile, exact_bytes
from waterfill.forecast import Forecast
from waterfill.limits import fit_sources, fit_spectra, price, rectangles
from waterfill.models import torch_module
from waterfill.prepare import Live, Prepared
from waterfill.protocols import Progress, QuadraticForm, Quantizer
from waterfill.records import Exact, Inventory, Limits, Quantized, Weight
from waterfill.resume.folder import NOTHING_KEPT, Memo
from waterfill.theory.scaled_source import ScaledSource
from waterfill.theory.spectra import Products

PRODUCER = "waterfill 0.1.0"

WITHIN = 0.01
"""A file is within this fraction below its target."""

FIXED_LEVEL_LOG2 = -24.0
"""Vectors beside matrices of a fixed rate are filled to the level that those reach, but to no lower one than this."""

FITTING_TRIES = 3
"""How many files below a size limit are made at most, when none is near it."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """A whole file at one water level.

    Attributes:
        water_level: mean cost of an error per weight.
        power: to which power the importances were taken.
        quantized: what the file says about every coded tensor.
        packed: the file.
        distortion: measured on the calibration data; None without.
        accuracy: top-1 on the calibration data; None without targets.
        limits: lower bounds at the distortions of the quantizers; None for a draft.
    """

    water_level: float
    power: float
    quantized: Mapping[str, Quantized]
    packed: container.Packed
    limits: Limits | None = None
    distortion: float | None = None
    accuracy: float | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.packed.data)


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
        memo: of what is quantized already.
    """

    inventory: Inventory
    jobs: Mapping[str, Job]
    power: float
    measure: str
    sources: Mapping[str, ScaledSource]
    exact: Mapping[str, bytes]
    live: Live | None
    progress: Progress | None
    memo: Memo = NOTHING_KEPT

    @cached_property
    def mean_power(self) -> float:
        """Cost per weight of setting every matrix to zero; levels are relative to it."""
        return allocate.mean_power(self.jobs)

    @property
    def _weights(self) -> dict[str, Weight]:
        return {name: job.weight for name, job in self.jobs.items()}

    @property
    def _forms(self) -> dict[str, QuadraticForm | None]:
        return {name: job.form for name, job in self.jobs.items()}

    @cached_property
    def spectra(self) -> dict[str, list[Products]]:
        """Of the tensors with cross terms, for their limits."""
        return fit_spectra(self._weights, self.sources, self._forms)

    @cached_property
    def forecast(self) -> Forecast:
        """About how many bits files take, at levels relative to `mean_power`."""
        parts = (part for _, part in rectangles(self._weights, self.sources, self._forms, self.spectra))
        middle = math.log2(self.mean_power)
        return Forecast.of(parts, middle + allocate.LOWEST_LOG2, middle + allocate.HIGHEST_LOG2)

    def draft(self, level: float) -> Attempt:
        """Quantize and encode at `mean_power * 2^level`, without looking at data."""
        water_level = self.mean_power * 2.0**level
        quantized = allocate.quantize(self.jobs, water_level, self.progress, self.memo)
        return Attempt(water_level, self.power, quantized, self._pack(quantized))

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
        """Correct statistics on the quantized network, quantize the vectors again, price, encode, measure."""
        quantized = draft.quantized if self.live is None else self._corrected(draft, self.live)
        exact_bits = 8 * sum(draft.packed.tensor_bytes[name] for name in self.exact)
        limits = price(self.jobs, quantized, self.sources, self.spectra, exact_bits, self.measure)
        done = replace(draft, quantized=quantized, packed=self._pack(quantized, limits), limits=limits)
        if self.live is None:
            return done
        self._fill(self.live.copy, done)
        found = evaluate(self.live.copy, self.live.batches, self.live.references, output=self.live.output)
        distortion = found.kl if self.live.output == "logits" else found.squared_error
        return replace(done, distortion=distortion, accuracy=found.accuracy)

    def _corrected(self, draft: Attempt, live: Live) -> dict[str, Quantized]:
        """A draft with vectors that undo what quantizing did to means and variances."""
        self._fill(live.copy, draft)
        keep = [entry.name for entry in self.inventory.entries if isinstance(entry.origin, Exact)]
        correct_statistics(live.model, live.copy, live.batches, keep=keep, progress=self.progress)
        corrected = torch_module.inventory(live.copy, **live.options).weights
        vectors = {
            name: replace(job, weight=corrected[name])
            for name, job in self.jobs.items()
            if job.weight.is_vector and name in corrected
        }
        return dict(draft.quantized) | allocate.quantize(vectors, draft.water_level)

    @property
    def limit_bytes(self) -> float:
        """About how many bytes a file takes to name its limits."""
        return 40 + 1.5 * sum(not self.jobs[name].weight.is_vector for name in self.sources)

    def _pack(self, quantized: Mapping[str, Quantized], limits: Limits | None = None) -> container.Packed:
        return container.pack(self.inventory.entries, quantized, self.exact, PRODUCER, limits)

    def _fill(self, copy: torch.nn.Module, attempt: Attempt) -> None:
        torch_module.fill(copy, dict(WaterfillFile(attempt.packed.data).tensors()))


def workshops(
    ready: Prepared, quantizers: Sequence[Quantizer], powers: Sequence[float], progress: Progress | None
) -> list[Workshop]:
    """One workshop for every power to which the importances of the matrices may be taken."""
    inventory, importance = ready.inventory, ready.estimator.name
    exact = {name: exact_bytes(tensor) for name, tensor in inventory.exact.items()}
    sources = fit_sources(inventory.weights)

    def workshop(power: float) -> Workshop:
        measure = importance if power == 1 else f"{importance}^{power:g}"
        jobs = allocate.plan(inventory, ready.forms, quantizers, power)
        return Workshop(inventory, jobs, power, measure, sources, exact, ready.live, progress, ready.memo)

    return [workshop(power) for power in powers]


def search(candidates: Sequence[Workshop], name: str, value: float) -> Attempt:
    """The attempt that meets a target; of several candidates the one that measures best on the calibration data.

    Args:
        candidates: workshops of the same model.
        name: `rate`, `size_bytes`, `distortion` or `tolerance`.
        value: the target.

    Raises:
        TargetError: there is no such attempt.
        CalibrationError: a tolerance is asked for, but the data have no integer targets.
    """
    values = candidates[0].inventory.floating_values
    if name == "rate" and not values:
        raise TargetError("The model has no floating-point values to which a rate applies; ask for size_bytes instead.")
    if name in ("rate", "size_bytes"):
        return _best_at_size(candidates, value * values / 8 if name == "rate" else value)
    by_quality = _search_distortion if name == "distortion" else _search_tolerance
    best = by_quality(candidates[0], value)
    for other in candidates[1:]:  # only one that is better at the same size is worth a search of its own
        with suppress(TargetError):  # not even its coarsest file is that small
            if _loss(_search_size(other, best.size_bytes)) < _loss(best):
                best = min(best, by_quality(other, value), key=lambda attempt: attempt.size_bytes)
    return best


def fixed_attempt(work: Workshop, target: tuple[str, float] | None) -> Attempt:
    """The one file of quantizers that do not depend on the water level.

    Args:
        work: the workshop.
        target: as for `search`; None for none.

    Raises:
        TargetError: it does not meet the target; the text says what it takes.
        CalibrationError: a tolerance is asked for, but the data have no integer targets.
    """
    original = _original_accuracy(work) if target is not None and target[0] == "tolerance" else 0.0
    attempt = work.finish(work.draft_fixed())
    if target is None:
        return attempt
    name, limit = target
    reached = {
        "rate": 8 * attempt.size_bytes / max(1, work.inventory.floating_values),
        "size_bytes": attempt.size_bytes,
        "distortion": math.inf if attempt.distortion is None else attempt.distortion,
        "tolerance": original - (attempt.accuracy or 0.0),
    }[name]
    if not reached <= limit:
        raise TargetError(
            f"Target {name}={limit:.6g} is not met: the one file that quantizers of a fixed rate make takes "
            f"{attempt.size_bytes} bytes and has {name}={reached:.6g}. Ask for more, for no target, or change the "
            "quantizer's own options."
        )
    return attempt


def _best_at_size(candidates: Sequence[Workshop], limit: float) -> Attempt:
    """The best of the candidates whose floors are within the limit."""
    attempts, errors = [], []
    for work in candidates:
        try:
            attempts.append(_search_size(work, limit))
        except TargetError as error:
            errors.append(error)
    if not attempts:
        raise errors[0]
    return min(attempts, key=_loss)


def _loss(attempt: Attempt) -> float:
    return math.inf if attempt.distortion is None or math.isnan(attempt.distortion) else attempt.distortion


def _search_size(work: Workshop, limit: float) -> Attempt:
    """The largest file of at most `limit` bytes.

    What is searched is not the water level itself but the forecast of the bits there, to which sizes are nearly
    proportional. Correcting statistics changes the size of the vectors, and the limits are named, so the drafts aim at
    another size than the limit: what they grew by the last time.
    """
    values = max(1, work.inventory.floating_values)
    aim, margin = max(1.0, limit - work.limit_bytes), 0.0
    forecast, middle = work.forecast, math.log2(work.mean_power)
    span = -float(forecast.logs[0]), -float(forecast.logs[-1])
    first = -math.log2(8 * aim)
    drafts: dict[float, Attempt] = {}
    made: list[Attempt] = []
    fitting: list[Attempt] = []

    def measure(place: float) -> Trial[Attempt]:
        drafts[place] = work.draft(forecast.level(-place) - middle)
        return Trial(place, float(drafts[place].size_bytes), drafts[place])

    try:
        while True:
            best = allocate.lowest_within(measure, aim, first, slope=-1.0, within=WITHIN / 2, precision=1e-3, span=span)
            finer = [drafts[place] for place in drafts if place < best.level and drafts[place].size_bytes > aim]
            draft = best.made
            for other in sorted(finer, key=lambda other: other.size_bytes):
                if draft.size_bytes < aim * (1 - WITHIN / 2):
                    draft = work.mix(draft, other, aim)
            attempt = work.finish(draft)
            excess = attempt.size_bytes - limit
            fitting += [attempt] if excess <= 0 else []
            margin += max(0.0, excess + 1) if made else 0.0  # the first one only tells how much they grow
            made.append(attempt)
            previous, aim = aim, max(1.0, limit - (attempt.size_bytes - draft.size_bytes) - margin)
            first = best.level + math.log2(best.value / (aim * (1 - WITHIN / 4)))
            near = -excess <= WITHIN * limit or aim <= previous or len(fitting) == FITTING_TRIES
            if fitting and near:
                break
    except TargetError as error:
        floor = fitting[-1] if fitting else work.finish(drafts[max(drafts)])
        if floor.size_bytes > limit:
            raise _below_floor(limit, floor.size_bytes, values) from error
        fitting.append(floor)
    return max(fitting, key=lambda attempt: attempt.size_bytes)


def _below_floor(limit: float, floor: float, values: int) -> TargetError:
    return TargetError(
        f"Target of {limit:.0f} bytes ({8 * limit / values:.3g} bit/value) is below the floor of {floor:.0f} bytes "
        f"({8 * floor / values:.3g} bit/value), where every matrix is zero; ask for more, "
        f"from size_bytes={math.ceil(floor)}."
    )


def _search_distortion(work: Workshop, limit: float) -> Attempt:
    """The smallest file whose measured distortion is at most `limit`."""

    def measure(fineness: float) -> Trial[Attempt]:
        attempt = work.finish(work.draft(-fineness))
        if attempt.distortion is None or not math.isfinite(attempt.distortion):
            return Trial(fineness, math.inf, attempt)
        return Trial(fineness, attempt.distortion, attempt)

    return _search_quality(measure, limit, "distortion")


def _search_tolerance(work: Workshop, limit: float) -> Attempt:
    """The smallest file whose top-1 accuracy is at most `limit` below the original's."""
    original = _original_accuracy(work)

    def measure(fineness: float) -> Trial[Attempt]:
        attempt = work.finish(work.draft(-fineness))
        return Trial(fineness, original - (attempt.accuracy or 0.0), attempt)

    return _search_quality(measure, limit, "tolerance")


def _original_accuracy(work: Workshop) -> float:
    assert work.live is not None
    original = evaluate(work.live.model, work.live.batches, output=work.live.output).accuracy
    if original is None:
        raise CalibrationError("A tolerance is measured as top-1 accuracy; the data need integer targets.")
    return original


def _search_quality(measure: Callable[[float], Trial[Attempt]], limit: float, name: str) -> Attempt:
    span = (-allocate.HIGHEST_LOG2, -allocate.LOWEST_LOG2)
    try:
        return allocate.lowest_within(
            measure, limit, 6.0, slope=-1.0, within=5 * WITHIN, precision=0.02, span=span, tries=16
        ).made
    except TargetError as error:
        raise TargetError(
            f"Target {name}={limit:.3g} is below the floor {float(error.args[0]):.3g} that the finest steps reach; "
            "ask for more."
        ) from error
