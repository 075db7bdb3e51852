"""The search for the file that meets a target: which way to share the bits, and at which water level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from waterfill.compression.calibration import CalibratedModel
from waterfill.compression.in_memory import Draft, FileCandidate, InMemoryWalk, filled
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

WITHIN = 0.005
"""A file is within this fraction below its target."""

SIZE_PRECISION = 3e-3
"""Width in octaves of forecasts at which a search for a size ends."""

ABOUT = 0.02
"""A file is within this fraction of a size where ways to share the bits are compared; scores make up for sizes."""

SURELY = 1.0
"""An allocation replaces a simpler one only if its held-out distortion is lower by this many standard errors."""

TRIES = 8
"""How many files are made at most until one is as large as it may be; for the last one there is room."""

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
        return _of_size(_best_allocation(walks, size, curves=curves), target, size)
    losses = losses_of(first.calibrated, target)
    untuned = replace(first, tune=None)
    start = _within(untuned, target, losses, guessed_level(first, target), COARSELY)
    best = _best_allocation(walks, start.size_bytes, curves=curves).walk
    return _within(best, target, losses, start.water_level, NEARLY)


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
    """The files of the walk whose file of about this size measures best; those of the only one there is."""
    first = _Files(walks[0])
    model = first.walk.model
    if model is None or (len(walks) == 1 and not curves):
        return first
    ways = [first, *(_Files(walk) for walk in walks[1:])]
    if curves:
        with suppress(TargetError):
            level = first.nearest(size - first.walk.limit_bytes, ABOUT).water_level
            ways += [_Files(walk) for walk in _with_curves(walks, level, model)]
    best: tuple[_Files, FileCandidate] | None = None
    for files in ways:
        with suppress(TargetError):  # not even its coarsest file is that small
            candidate = files.trial(size)
            if best is None or _is_better(candidate, best[1]):
                best = files, candidate
    return first if best is None else best[0]


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


class _Files:
    """Files of one walk by their size.

    What is searched is not the water level itself but the forecast of the bits there, to which sizes are nearly
    proportional.
    """

    def __init__(self, walk: InMemoryWalk) -> None:
        self.walk = walk
        self._drafts: dict[float, Draft] = {}
        self._too_large: list[int] = []
        self._growth: float | None = None

    def trial(self, size: float) -> FileCandidate:
        """A corrected file of about this size, measured on data to choose by.

        Raises:
            TargetError: not even the coarsest draft is that small.
        """
        draft = self.nearest(size - self.walk.limit_bytes, ABOUT)
        done = self.walk.trial(draft)
        self._growth = done.size_bytes - draft.size_bytes
        return done

    def largest(self, limit: float) -> FileCandidate:
        """The largest file of at most `limit` bytes.

        Finishing changes the size, and limits are named, so drafts aim at another size than the limit: by as much as
        they grew the last time.

        Raises:
            TargetError: even the coarsest file is larger.
        """
        walk = self.walk
        aim = limit - (walk.limit_bytes if self._growth is None else self._growth)
        fitting: list[FileCandidate] = []
        known: dict[bytes, bool] = {}  # whether the file of a draft fits
        try:
            for _ in range(TRIES):
                draft = self.nearest(aim)
                fits = known.get(draft.packed.data)
                if fits:  # nothing lies between
                    break
                if fitting and fits is False:  # the largest draft that is near enough to the aim, as before
                    aim = min(aim, draft.size_bytes) - 1
                    continue
                candidate = walk.finish(draft)
                left = limit - candidate.size_bytes
                known[draft.packed.data] = left >= 0
                fitting += [candidate] if left >= 0 else []
                self._too_large += [candidate.size_bytes] if left < 0 else []
                if 0 <= left <= WITHIN * limit:
                    break
                sure = left < 0 or len(known) == 1  # how much a draft grows is not the same for the next one
                aim += left - 1 if sure else left / 2
        except TargetError as error:
            floor = fitting[-1] if fitting else self.floor
            if floor.size_bytes > limit:
                raise _below_floor(limit, floor.size_bytes, walk.inventory.floating_values) from error
            fitting.append(floor)
        fitting = fitting or [walk.finish(self.nearest(aim - limit / 8))]
        return max(fitting, key=lambda each: (each.size_bytes, -each.water_level))

    @property
    def floor(self) -> FileCandidate:
        """The coarsest file that was tried."""
        return self.walk.finish(self._drafts[max(self._drafts)])

    def shortfall(self, found: FileCandidate, limit: float) -> str:
        """What has to be said of a file that is far smaller than it might be."""
        drafts = [draft.size_bytes for draft in self._drafts.values()]
        finer = [size for size in (*self._too_large, *drafts) if size > limit]
        finest = min(self._drafts) <= self._span[0]
        return shortfall_of_size(limit, found.size_bytes, min(finer, default=None), is_finest=finest and not finer)

    def nearest(self, aim: float, within: float = WITHIN / 2) -> Draft:
        """The largest draft of at most `aim` bytes, or one that is larger than `aim` less a fraction `within`.

        Raises:
            TargetError: even the coarsest one is larger.
        """
        aim = max(1.0, aim)
        best = lowest_within(
            self._try, aim, self._start(aim), slope=-1.0, within=within, precision=SIZE_PRECISION, span=self._span
        )
        draft = best.made
        finer = [made for place, made in self._drafts.items() if place < best.level and made.size_bytes > aim]
        for other in sorted(finer, key=lambda other: other.size_bytes):
            if draft.size_bytes < aim * (1 - within):
                draft = self.walk.mix(draft, other, aim)
        return draft

    @property
    def _span(self) -> tuple[float, float]:
        """Span in which levels are searched: negative base-2 logarithms of forecasts."""
        low, high = (-_log2_forecast(self.walk, 2.0**level) for level in self.walk.level_span)
        return low, high

    def _start(self, aim: float) -> float:
        """Place to look at first: a size goes with the forecast, from the nearest one that is known."""
        if not self._drafts:
            return -math.log2(8 * aim)
        place, draft = min(self._drafts.items(), key=lambda each: abs(math.log(each[1].size_bytes / aim)))
        return place + math.log2(draft.size_bytes / (aim * (1 - WITHIN / 4)))

    def _try(self, place: float) -> Trial[Draft]:
        if place not in self._drafts:
            low, high = self.walk.level_span
            level = self.walk.forecast.level_at_forecast(2.0**-place)
            self._drafts[place] = self.walk.draft(float(np.clip(level, 2.0**low, 2.0**high)))
        return Trial(place, float(self._drafts[place].size_bytes), self._drafts[place])


def _log2_forecast(walk: InMemoryWalk, water_level: float) -> float:
    return math.log2(max(walk.forecast.forecast(water_level), 1e-12))


def _below_floor(limit: float, floor: float, values: int) -> TargetError:
    values = max(1, values)
    return TargetError(
        f"Target of {limit:.0f} bytes ({8 * limit / values:.3g} bit/value) is below the floor of {floor:.0f} bytes "
        f"({8 * floor / values:.3g} bit/value), where every matrix is zero; ask for more, "
        f"from size_bytes={math.ceil(floor)}."
    )


# Qualities


def guessed_level(walk: InMemoryWalk, target: Target) -> float:
    """A water level to begin at: errors that fill it add up to the distortion that is aimed at."""
    count = sum(weight.matrix.size for weight in walk.inventory.weights.values())
    factor = next((form.factor for form in walk.prepared.forms.values()), 1.0)
    return target.distortion / (factor * max(1, count))


def _within(walk: InMemoryWalk, target: Target, losses: Losses, start: float, within: float) -> FileCandidate:
    """The smallest file that loses at most what the target allows, nearly.

    Args:
        walk: of the model.
        target: of quality.
        losses: what a candidate loses.
        start: water level to begin at.
        within: relative distance below the target that is near enough.

    Raises:
        TargetError: even the finest steps lose more.
    """
    fitting: list[tuple[FileCandidate, float]] = []
    others: list[float] = []

    def measure(fineness: float) -> Trial[FileCandidate]:
        candidate = walk.finish(walk.draft(walk.mean_power * 2.0**-fineness))
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
    found, loss = min(fitting, key=lambda each: (each[0].size_bytes, each[0].water_level))
    if within == NEARLY:
        walk.settings.notes.add(shortfall_of_quality(target, loss, min(others, default=None)))
        walk.settings.notes.add(zeroed_by(target, loss) if found.is_zeroed else "")
    return found


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
    candidate = walk.finish(walk.draft_fixed())
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
