"""The search for the file that meets a target: which way to share the bits, and at which water level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from waterfill.compression.bases import basis_bits
from waterfill.compression.calibration import CalibratedModel
from waterfill.compression.filling import Spending
from waterfill.compression.in_memory import FileCandidate, InMemoryWalk, filled
from waterfill.compression.mixing import mixed
from waterfill.compression.quality import Losses, floor_of_quality, losses_of
from waterfill.compression.rate_control import HIGHEST_LOG2, LOWEST_LOG2, Trial, lowest_within
from waterfill.compression.shortfall import (
    CONSTANT,
    HEADER_BITS,
    ZEROED,
    is_constant,
    rate_beside_header,
    saturation,
    shortfall_of_quality,
    shortfall_of_size,
    zeroed_by,
)
from waterfill.compression.target import Target
from waterfill.errors import TargetError
from waterfill.evaluation import outputs_of
from waterfill.records import Exact, Inventory

WITHIN = 0.005
"""A file is within this fraction below its target."""

SIZE_PRECISION = 3e-3
"""Width in octaves of forecasts at which a search for a size ends."""

ABOUT = 0.04
"""A file is within this fraction of a size where ways to share the bits are compared; scores make up for sizes."""

SURELY = 1.0
"""An allocation replaces a simpler one only if its held-out distortion is lower by this many standard errors."""

TRIALS = 2
"""How many trials come near to a size at which ways to share the bits are compared."""

TUNINGS = 2
"""How often a size is searched anew where tuning made a file too large."""

NEARLY = 0.05
"""A file is within this fraction below its target of quality, where the measure is that fine."""

PRECISION = 0.04
"""Width in octaves of water levels at which a search for a target of quality ends."""

COARSELY = 0.3
"""A first file is within this fraction of a target of quality; ways to share the bits are compared there."""


def search(walks: Sequence[InMemoryWalk], target: Target, *, curves: bool = False) -> FileCandidate:
    """Find the candidate that meets a target; of several ways to share the bits, the one that measures best on data.

    The ways are the predicted ones and, with `curves`, measured ones. They are compared at one size, on data that
    nothing was fitted to, and the first one is taken unless another one is better by more than chance. One of them may
    be one step for the whole model (power 0).

    Args:
        walks: of the same model; the first one is where curves are measured, and is used without data.
        target: what to meet.
        curves: whether to measure curves.

    Raises:
        TargetError: there is no such candidate.
        CalibrationError: top-1 accuracy is asked for, but the data have no integer targets.
    """
    first = walks[0]
    if first.model is not None and first.model.distortion.has_classes:
        first.settings.notes.add(saturation(first.model.prediction_rows()))
    found = _found(walks, target, curves=curves)
    if first.model is not None and _answers_alike(found, first.model):
        first.settings.notes.add(CONSTANT)
    return found


def _found(walks: Sequence[InMemoryWalk], target: Target, *, curves: bool) -> FileCandidate:
    """The candidate that meets a target; arguments and errors as in `search`."""
    first = walks[0]
    if target.is_size:
        size = target.size(first.inventory.floating_values)
        walks = _in_bases(walks, first.level_of(8 * size))
        return _of_size(_best_allocation(walks, size, curves=curves), target, size)
    losses = losses_of(first.calibrated, target)
    start = guessed_level(first, target)
    walks = _in_bases(walks, start)
    if len(walks) == 1 and not curves:
        return _of_quality(walks[0], target, losses, start)
    some = _about(replace(walks[0], tune=None), target, losses, start)
    walks = _in_bases(walks, some.water_level)
    best = _best_allocation(walks, some.size_bytes, curves=curves).walk
    return _of_quality(best, target, losses, some.water_level)


def _in_bases(walks: Sequence[InMemoryWalk], level: float) -> list[InMemoryWalk]:
    """The walks with all tensors in the bases that suit a level of the first one."""
    chosen = walks[0].in_bases(level)
    return [chosen, *(replace(walk, bases=chosen.bases) for walk in walks[1:])]


def _answers_alike(found: FileCandidate, model: CalibratedModel) -> bool:
    """Whether the compressed model answers all samples of the first batch alike, and the original does not."""
    copy = filled(model, found)
    with model.reading.of(copy):
        (outputs,) = outputs_of(copy, [model.batches[0]])
    return is_constant(outputs, model.references[0])


def _of_size(files: _Files, target: Target, size: float) -> FileCandidate:
    """The file that meets a target of size, with what has to be said of it.

    Of so few values that the header outweighs them a rate is that of what is beside the header.

    Raises:
        TargetError: even the coarsest file is larger.
    """
    try:
        found = files.largest(size)
        note = files.shortfall(found, size)
    except TargetError:
        if target.name != "rate" or target.value < HEADER_BITS:
            raise
        floor = files.floor
        if floor.report.overhead <= size:
            raise
        found = files.largest(floor.size_bytes + size)
        note = rate_beside_header(size, floor.size_bytes, target.value)
    files.walk.settings.notes.add(note)
    files.walk.settings.notes.add(ZEROED if found.is_zeroed else "")
    return found


# Ways to share the bits


def _best_allocation(walks: Sequence[InMemoryWalk], size: float, *, curves: bool) -> _Files:
    """The files of the walk whose file of about this size measures best; those of the only one there is.

    Where passes are dear, only the first walk is tried, and with curves.
    """
    first = _Files(walks[0])
    model = first.walk.model
    if model is None or (len(walks) == 1 and not curves):
        return first
    walks = walks[:1] if first.walk.is_dear else walks
    best, chosen = first, first.trial(size)
    moved = iter(_with_curves(walks, chosen.water_level, model) if curves else ())
    for walk in (*walks[1:], *moved):
        files = _Files(walk, best.forecast)
        candidate = files.trial(size)
        if _is_better(candidate, chosen):
            best, chosen = files, candidate
    return best


def _with_curves(walks: Sequence[InMemoryWalk], water_level: float, model: CalibratedModel) -> list[InMemoryWalk]:
    """The walks of other powers than 0 with levels by curves, which are measured with the first."""
    first = walks[0]
    known = first.with_curves(water_level, model)
    found = []
    for walk in walks:
        if walk.power:
            offsets = {
                name: offset + math.log2(first.mean_price(name) / walk.mean_price(name))
                for name, offset in known.offsets.items()
            }
            found.append(walk.moved(offsets, known.corrections))
    return found


def _is_better(one: FileCandidate, other: FileCandidate) -> bool:
    """Whether a candidate is nearer to the original than another on data to choose by, by more than chance.

    Their distances are compared as they would be at one size (6 dB a bit), output by output: some outputs are far off
    for any candidate, and a mean over a few of them says little.
    """
    left, right = _at_one_size(one), _at_one_size(other)
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return bool(np.isfinite(left).all())
    gain = right - left
    if not gain.size:
        return False
    return bool(gain.mean() > SURELY * gain.std() / math.sqrt(max(1, gain.size - 1)))


def _at_one_size(candidate: FileCandidate) -> NDArray[np.float64]:
    numel = sum(item.symbols.size for item in candidate.coded.quantized.values())
    return np.asarray(candidate.distances * 2.0 ** (2 * 8 * candidate.size_bytes / max(1, numel)))


# Sizes


@dataclass(frozen=True)
class SizeForecast:
    """How large files of a walk are.

    Attributes:
        beside: bytes beside what the walk quantizes.
        ratio: bits that are taken for every bit that is foreseen.
    """

    beside: float
    ratio: float = 1.0

    @classmethod
    def learned(cls, candidate: FileCandidate) -> SizeForecast:
        """What a file shows."""
        foreseen = candidate.walk.forecast.forecast(candidate.water_level)
        bits = candidate.coded_bits
        return cls(candidate.size_bytes - bits / 8, bits / foreseen if bits > 0 and foreseen > 0 else 1.0)

    @classmethod
    def estimated(cls, walk: InMemoryWalk, size: float) -> SizeForecast:
        """What some rows of every tensor tell at about a size; of the largest ones where the first of them tells more.

        Args:
            walk: of the model.
            size: in bytes.
        """
        bases = sum(basis_bits(job.basis) for job in walk.jobs.values() if job.basis is not None) / 8
        plain = cls(walk.limit_bytes + len(walk.prepared.lossless.packed.data) + bases)
        level = walk.level_of(plain.bits(size))
        if walk.model is None and walk.largest:
            jobs, foreseen = walk.largest, sum(walk.forecasts[name].forecast(level) for name in walk.largest)
        else:
            jobs, foreseen = walk.jobs, walk.forecast.forecast(level)
        bits = walk.encoder.estimate_bits(jobs, level)
        return replace(plain, ratio=bits / foreseen) if bits > 0 and foreseen > 0 else plain

    def bits(self, size: float) -> float:
        """Bits to be foreseen for a size."""
        return max(1.0, 8 * (size - self.beside) / self.ratio)

    def spending(self, size: float) -> Spending:
        """What tensors may take of a size."""
        return Spending(max(1.0, 8 * (size - self.beside)), self.ratio)


class _Files:
    """Files of one walk by their size.

    What is searched is not the water level itself but the forecast of the bits there, to which sizes are nearly
    proportional.

    Args:
        walk: of the model.
        forecast: how large files of another walk of the model are; None where that is not known.
    """

    def __init__(self, walk: InMemoryWalk, forecast: SizeForecast | None = None) -> None:
        self.walk = walk
        self.forecast = forecast
        self._coarsest: FileCandidate | None = None
        self._finest = math.inf
        self._finer: int | None = None

    def trial(self, size: float) -> FileCandidate:
        """A trial of about this size, to be compared with those of other walks."""
        for _ in range(TRIALS):
            found = self._learn(self.walk.trial(self.walk.level_of(self._bits(size)), coarsely=True))
            if abs(found.size_bytes / size - 1) <= ABOUT:
                break
        return found

    def largest(self, limit: float) -> FileCandidate:
        """The largest file of at most `limit` bytes, nearly.

        Raises:
            TargetError: even the coarsest file is larger.
        """
        aim = limit
        for _ in range(TUNINGS):
            found = self.walk.finished(self._largest(aim))
            if found.size_bytes <= limit:
                return found
            aim -= found.size_bytes - limit  # tuning has made it larger
        return replace(self.walk, tune=None).finished(self._largest(limit))

    def _largest(self, limit: float) -> FileCandidate:
        """The largest trial of at most `limit` bytes, nearly; arguments and errors as of `largest`."""
        finer: list[FileCandidate] = []

        def attempt(place: float) -> Trial[FileCandidate]:
            found = self._try(place, limit)
            if found.size_bytes > limit and all(found.packed.data != each.packed.data for each in finer):
                finer.append(found)
            return Trial(place, float(found.size_bytes), found)

        first = -math.log2(self._bits(limit * (1 - WITHIN / 2)))
        try:
            found = lowest_within(
                attempt, limit, first, slope=-1.0, within=WITHIN, precision=SIZE_PRECISION, span=self._span
            ).made
        except TargetError as error:
            raise _below_floor(limit, error.args[0], self.walk.inventory) from error
        self._finer = min((each.size_bytes for each in finer), default=None)
        for each in sorted(finer, key=lambda each: each.size_bytes):
            found = mixed(found, each, limit) if found.size_bytes < limit * (1 - WITHIN) else found
        return found

    @property
    def floor(self) -> FileCandidate:
        """The coarsest file that was tried."""
        assert self._coarsest is not None
        return self.walk.finished(self._coarsest)

    def shortfall(self, found: FileCandidate, limit: float) -> str:
        """What has to be said of a file that is far smaller than it might be."""
        is_finest = self._finer is None and self._finest <= self._span[0]
        return shortfall_of_size(limit, found.size_bytes, self._finer, is_finest=is_finest)

    @cached_property
    def _span(self) -> tuple[float, float]:
        """Span in which levels are searched: negative base-2 logarithms of forecasts."""
        low, high = (-_log2_forecast(self.walk, 2.0**level) for level in self.walk.level_span)
        return low, high

    def _bits(self, size: float) -> float:
        """Bits to be foreseen for a size."""
        self.forecast = self.forecast or SizeForecast.estimated(self.walk, size)
        return self.forecast.bits(size)

    def _learn(self, found: FileCandidate) -> FileCandidate:
        self.forecast = SizeForecast.learned(found)
        return found

    def _try(self, place: float, limit: float) -> FileCandidate:
        """A trial; without activations that depend on it, the first one fills the limit from tensor to tensor."""
        level, spending = self.walk.level_of(2.0**-place), None
        if self.walk.model is None and self._coarsest is None and self.forecast is not None:
            spending = self.forecast.spending(limit * (1 - WITHIN / 2))
        found = self._learn(self.walk.trial(level, spending=spending))
        self._finest = min(self._finest, place)
        if self._coarsest is None or found.water_level >= self._coarsest.water_level:
            self._coarsest = found
        return found


def _log2_forecast(walk: InMemoryWalk, water_level: float) -> float:
    return math.log2(max(walk.forecast.forecast(water_level), 1e-12))


def _below_floor(limit: float, floor: float, inventory: Inventory) -> TargetError:
    values = max(1, inventory.floating_values)
    reasons = {entry.name: entry.origin.reason for entry in inventory.entries if isinstance(entry.origin, Exact)}
    largest = max(reasons, key=lambda name: inventory.exact[name].nbytes, default="")
    kept = f" or stored without loss, such as {largest!r} ({reasons[largest]})" if reasons else ""
    return TargetError(
        f"Target of {limit:.0f} bytes ({8 * limit / values:.3g} bit/value) is below the floor of {floor:.0f} bytes "
        f"({8 * floor / values:.3g} bit/value), where every matrix is zero{kept}; ask for more, "
        f"from size_bytes={math.ceil(floor)}."
    )


# Qualities


def guessed_level(walk: InMemoryWalk, target: Target) -> float:
    """A water level to begin at: errors that fill it add up to the distortion that is aimed at."""
    count = sum(weight.matrix.size for weight in walk.inventory.weights.values())
    factor = next((form.factor for form in walk.prepared.forms.values()), 1.0)
    return target.distortion / (factor * max(1, count))


def _about(walk: InMemoryWalk, target: Target, losses: Losses, start: float) -> FileCandidate:
    """A file that loses about what a target allows, by the coarse search; arguments and errors as of `_of_quality`."""

    def make(level: float) -> FileCandidate:
        return walk.finished(walk.trial(level, coarsely=True))

    return _nearest(walk, make, target, losses, start, COARSELY)[0]


def _of_quality(walk: InMemoryWalk, target: Target, losses: Losses, start: float) -> FileCandidate:
    """The smallest file that loses at most what the target allows, nearly.

    Args:
        walk: of the model.
        target: of quality.
        losses: what a candidate loses.
        start: water level to begin at.

    Raises:
        TargetError: even the finest steps lose more.
    """

    def make(level: float) -> FileCandidate:
        return walk.finished(walk.trial(level))

    found, loss, coarser = _nearest(walk, make, target, losses, start, NEARLY)
    walk.settings.notes.add(shortfall_of_quality(target, loss, coarser))
    walk.settings.notes.add(zeroed_by(target, loss) if found.is_zeroed else "")
    return found


def _nearest(
    walk: InMemoryWalk,
    make: Callable[[float], FileCandidate],
    target: Target,
    losses: Losses,
    start: float,
    within: float,
) -> tuple[FileCandidate, float, float | None]:
    """The smallest file that was made, of those that lose at most what the target allows.

    Args:
        walk: of the model.
        make: makes a file at a water level.
        target: of quality.
        losses: what a candidate loses.
        start: water level to begin at.
        within: relative distance below the target that is near enough.

    Returns:
        The file, what it loses, and the least loss of those that lose more than is allowed.

    Raises:
        TargetError: even the finest steps lose more.
    """
    fitting: list[tuple[FileCandidate, float]] = []
    others: list[float] = []

    def measure(fineness: float) -> Trial[FileCandidate]:
        candidate = make(walk.mean_power * 2.0**-fineness)
        loss = losses(candidate)
        fits = loss <= target.value
        fitting.extend([(candidate, loss)] if fits else [])
        others.extend([] if fits else [loss])
        return Trial(fineness, loss, candidate)

    first = float(np.clip(math.log2(walk.mean_power / start), -HIGHEST_LOG2, -LOWEST_LOG2))
    span = (-HIGHEST_LOG2, -LOWEST_LOG2)
    try:
        lowest_within(measure, target.value, first, slope=-1.0, within=within, precision=PRECISION, span=span, tries=16)
    except TargetError as error:
        raise floor_of_quality(target, float(error.args[0])) from error
    return *min(fitting, key=lambda each: (each[0].size_bytes, each[0].water_level)), min(others, default=None)


# Quantizers of a fixed rate


def fixed_candidate(walk: InMemoryWalk, target: Target | None) -> FileCandidate:
    """The one file of quantizers that do not depend on the water level.

    Args:
        walk: of the model.
        target: as for `search`; None for none.

    Raises:
        TargetError: it does not meet the target; the text says what it takes.
        CalibrationError: top-1 accuracy is asked for, but the data have no integer targets.
    """
    losses = None if target is None or target.is_size else losses_of(walk.calibrated, target)
    candidate = walk.fixed()
    if target is None:
        return candidate
    values = max(1, walk.inventory.floating_values)
    size = {"rate": 8 * candidate.size_bytes / values, "size_bytes": candidate.size_bytes}
    reached = size[target.name] if losses is None else losses(candidate)
    if not reached <= target.value:
        raise TargetError(
            f"Target {target.name}={target.value:.6g} is not met: the one file that quantizers of a fixed rate make "
            f"takes {candidate.size_bytes} bytes and has {target.name}={reached:.6g}. Ask for more, for no target, or "
            "change the quantizer's own options."
        )
    return candidate
