"""The search for the file that meets a target: which way to share the bits, and at which water level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from waterfill.compression import encoder as allocate
from waterfill.compression.calibration import Live, Prepared
from waterfill.compression.encoder import Trial
from waterfill.compression.in_memory import Attempt, Workshop
from waterfill.compression.limits import fit_sources
from waterfill.compression.tune import Tune
from waterfill.errors import CalibrationError, TargetError
from waterfill.evaluation import evaluate
from waterfill.files import exact_bytes
from waterfill.models.batches import evaluation
from waterfill.protocols import Metric, Progress, Quantizer

WITHIN = 0.005
"""A file is within this fraction below its target."""

SIZE_PRECISION = 3e-3
"""Width in octaves of forecasts at which a search for a size ends."""

ABOUT = 0.02
"""The same where ways to share the bits are compared; scores make up for sizes."""

SURELY = 1.0
"""How many standard errors nearer to the original a way to share the bits has to be to be taken for a simpler one."""

TRIES = 8
"""How many files are made at most until one is as large as it may be; for the last one there is room."""

NEARLY = 0.05
"""A file is within this fraction below its target of quality, where the measure is that fine."""

PRECISION = 0.04
"""Width in octaves of water levels at which a search for a target of quality ends."""

COARSELY = 0.3
"""A first file is within this fraction of a target of quality; ways to share the bits are compared there."""


@dataclass(frozen=True)
class Target:
    """What a file has to meet.

    Attributes:
        name: `rate`, `size_bytes`, `distortion` or `tolerance`.
        value: bits per value, bytes, mean distortion, or loss of the metric.
        metric: of which a loss is tolerated; None for top-1 accuracy on the calibration data.
    """

    name: str
    value: float
    metric: Metric | None = None

    def size(self, floating_values: int) -> float | None:
        """In bytes; None for a target of quality.

        Raises:
            TargetError: a rate is asked for, and there are no values.
        """
        if self.name == "size_bytes":
            return self.value
        if self.name != "rate":
            return None
        if not floating_values:
            raise TargetError(
                "The model has no floating-point values to which a rate applies; ask for size_bytes instead."
            )
        return self.value * floating_values / 8


def workshops(
    ready: Prepared,
    quantizers: Sequence[Quantizer],
    powers: Sequence[float],
    progress: Progress | None,
    tune: Tune | None = None,
) -> list[Workshop]:
    """One workshop for every power to which the importances of the matrices may be taken."""
    inventory, importance = ready.inventory, ready.estimator.name
    exact = {name: exact_bytes(tensor) for name, tensor in inventory.exact.items()}
    sources = fit_sources(inventory.weights)

    def workshop(power: float) -> Workshop:
        measure = importance if power == 1 else f"{importance}^{power:g}"
        jobs = allocate.plan(inventory, ready.forms, quantizers, power)
        costs = ready.forms, ready.factor
        return Workshop(inventory, jobs, power, measure, sources, exact, ready.live, progress, *costs, ready.memo, tune)

    return [workshop(power) for power in powers]


def search(candidates: Sequence[Workshop], target: Target, *, curves: bool = False) -> Attempt:
    """The attempt that meets a target; of several ways to share the bits, the one that measures best on data.

    The ways are the predicted ones and, with `curves`, measured ones. They are compared at one size, on data that
    nothing was fitted to, and the first one is taken unless another one is better by more than chance. One of them may
    be one step for the whole model (power 0).

    Args:
        candidates: workshops of the same model; the first one is where curves are measured, and is used without data.
        target: what to meet.
        curves: whether to measure curves.

    Raises:
        TargetError: there is no such attempt.
        CalibrationError: top-1 accuracy is asked for, but the data have no integer targets.
    """
    first = candidates[0]
    size = target.size(first.inventory.floating_values)
    if size is not None:
        return _best_way(candidates, size, curves=curves).largest(size)
    losses = _losses(first, target)
    untuned = replace(first, tune=None)
    start = _within(untuned, target, losses, _guess(first, target), COARSELY)
    best = _best_way(candidates, start.size_bytes, curves=curves).work
    return _within(best, target, losses, start.water_level, NEARLY)


# Ways to share the bits


def _best_way(candidates: Sequence[Workshop], size: float, *, curves: bool) -> _Files:
    """The files of the workshop whose file of about this size measures best; those of the only one there is."""
    first = _Files(candidates[0])
    if first.work.live is None or (len(candidates) == 1 and not curves):
        return first
    ways = [first, *(_Files(work) for work in candidates[1:])]
    if curves:
        with suppress(TargetError):
            level = math.log2(first.nearest(size - first.work.limit_bytes, ABOUT).water_level)
            ways += [_Files(work) for work in _measured(candidates, level, first.work.live)]
    best: tuple[_Files, Attempt] | None = None
    for files in ways:
        with suppress(TargetError):  # not even its coarsest file is that small
            attempt = files.trial(size)
            if best is None or _is_better(attempt, best[1]):
                best = files, attempt
    return first if best is None else best[0]


def _measured(candidates: Sequence[Workshop], level: float, live: Live) -> list[Workshop]:
    """The candidates of other powers than 0 with levels by curves, which are measured with the first."""
    first = candidates[0]
    if not first.can_move:
        return []
    known = first.measured(level, live)
    found = []
    for work in candidates:
        if work.power and work.can_move:
            offsets = {
                name: offset + math.log2(first.mean_price(name) / work.mean_price(name))
                for name, offset in known.offsets.items()
            }
            found.append(work.moved(offsets, known.corrections))
    return found


def _is_better(one: Attempt, other: Attempt) -> bool:
    """Whether an attempt is nearer to the original than another on data to choose by, by more than chance.

    Their distances are compared as they would be at one size (6 dB a bit), output by output: some outputs are far off
    for any attempt, and a mean over a few of them says little.
    """
    left, right = _at_one_size(one), _at_one_size(other)
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return bool(np.isfinite(left).all())
    gain = right - left
    return bool(gain.mean() > SURELY * gain.std() / math.sqrt(max(1, gain.size - 1)))


def _at_one_size(attempt: Attempt) -> NDArray[np.float64]:
    assert attempt.distances is not None
    numel = sum(item.symbols.size for item in attempt.quantized.values())
    return np.asarray(attempt.distances * 2.0 ** (2 * 8 * attempt.size_bytes / max(1, numel)))


# Sizes


class _Files:
    """Files of one workshop by their size.

    What is searched is not the water level itself but the forecast of the bits there, to which sizes are nearly
    proportional.
    """

    def __init__(self, work: Workshop) -> None:
        self.work = work
        self._drafts: dict[float, Attempt] = {}
        self._growth: float | None = None

    def trial(self, size: float) -> Attempt:
        """A corrected file of about this size, measured on data to choose by.

        Raises:
            TargetError: not even the coarsest draft is that small.
        """
        draft = self.nearest(size - self.work.limit_bytes, ABOUT)
        done = self.work.trial(draft)
        self._growth = done.size_bytes - draft.size_bytes
        return done

    def largest(self, limit: float) -> Attempt:
        """The largest file of at most `limit` bytes.

        Finishing changes the size, and limits are named, so drafts aim at another size than the limit: by as much as
        they grew the last time.

        Raises:
            TargetError: even the coarsest file is larger.
        """
        work = self.work
        aim = limit - (work.limit_bytes if self._growth is None else self._growth)
        fitting: list[Attempt] = []
        known: set[bytes] = set()
        try:
            for _ in range(TRIES):
                draft = self.nearest(aim)
                if fitting and draft.packed.data in known:  # nothing lies between
                    break
                known.add(draft.packed.data)
                attempt = work.finish(draft)
                left = limit - attempt.size_bytes
                fitting += [attempt] if left >= 0 else []
                if 0 <= left <= WITHIN * limit:
                    break
                sure = left < 0 or len(known) == 1  # how much a draft grows is not the same for the next one
                aim += left - 1 if sure else left / 2
        except TargetError as error:
            floor = fitting[-1] if fitting else work.finish(self._drafts[max(self._drafts)])
            if floor.size_bytes > limit:
                raise _below_floor(limit, floor.size_bytes, work.inventory.floating_values) from error
            fitting.append(floor)
        return max(fitting or [work.finish(self.nearest(aim - limit / 8))], key=lambda attempt: attempt.size_bytes)

    def nearest(self, aim: float, within: float = WITHIN / 2) -> Attempt:
        """The largest draft of at most `aim` bytes, or one that is larger than `aim` less a fraction `within`.

        Raises:
            TargetError: even the coarsest one is larger.
        """
        aim, forecast = max(1.0, aim), self.work.forecast
        span = -float(forecast.logs[0]), -float(forecast.logs[-1])
        best = allocate.lowest_within(
            self._try, aim, self._start(aim), slope=-1.0, within=within, precision=SIZE_PRECISION, span=span
        )
        draft = best.made
        finer = [made for place, made in self._drafts.items() if place < best.level and made.size_bytes > aim]
        for other in sorted(finer, key=lambda other: other.size_bytes):
            if draft.size_bytes < aim * (1 - within):
                draft = self.work.mix(draft, other, aim)
        return draft

    def _start(self, aim: float) -> float:
        """Where to look first: a size goes with the forecast, from the nearest one that is known."""
        if not self._drafts:
            return -math.log2(8 * aim)
        place, draft = min(self._drafts.items(), key=lambda each: abs(math.log(each[1].size_bytes / aim)))
        return place + math.log2(draft.size_bytes / (aim * (1 - WITHIN / 4)))

    def _try(self, place: float) -> Trial[Attempt]:
        if place not in self._drafts:
            level = self.work.forecast.level(-place) - math.log2(self.work.mean_power)
            self._drafts[place] = self.work.draft(level)
        return Trial(place, float(self._drafts[place].size_bytes), self._drafts[place])


def _below_floor(limit: float, floor: float, values: int) -> TargetError:
    values = max(1, values)
    return TargetError(
        f"Target of {limit:.0f} bytes ({8 * limit / values:.3g} bit/value) is below the floor of {floor:.0f} bytes "
        f"({8 * floor / values:.3g} bit/value), where every matrix is zero; ask for more, "
        f"from size_bytes={math.ceil(floor)}."
    )


# Qualities


Losses = Callable[[Attempt], float]
"""What an attempt loses of the quality that is asked for."""


def _losses(work: Workshop, target: Target) -> Losses:
    """How to tell what an attempt loses.

    Raises:
        CalibrationError: top-1 accuracy is asked for, but the data have no integer targets, or the metric gives NaN, or
            something infinite for the original.
    """
    live = work.live
    assert live is not None
    if target.name == "distortion":
        return lambda attempt: _or_infinite(attempt.distortion)
    if target.metric is None:
        accuracy = evaluate(live.model, live.batches, output=live.output).accuracy
        if accuracy is None:
            raise CalibrationError(
                "A tolerance is measured as top-1 accuracy; the data need integer targets. Give them, or a metric."
            )
        original = accuracy
        return lambda attempt: original - _measured_accuracy(attempt)
    metric = target.metric
    before = _metric(metric, live, live.model)
    if math.isinf(before):
        raise CalibrationError(f"The metric gives {before} for the original; expected a finite number. Correct it.")
    return lambda attempt: before - _metric(metric, live, work.filled(attempt))


def _or_infinite(loss: float | None) -> float:
    return math.inf if loss is None or not math.isfinite(loss) else loss


def _measured_accuracy(attempt: Attempt) -> float:
    return 0.0 if attempt.measured is None else attempt.measured.accuracy or 0.0


def _metric(metric: Metric, live: Live, model: nn.Module) -> float:
    """Measure a model by a metric.

    Raises:
        CalibrationError: it gives no number.
    """
    with evaluation(model), torch.no_grad():
        found = float(metric(model, live.batches))
    if math.isnan(found):
        raise CalibrationError("The metric gives NaN; expected a number, larger for a better model. Correct it.")
    return found


def _guess(work: Workshop, target: Target) -> float:
    """A water level to begin at: errors that fill it add up to the distortion, or to ten times the tolerance."""
    count = sum(job.weight.matrix.size for job in work.jobs.values())
    aim = target.value * (10 if target.name == "tolerance" else 1)
    return aim / (work.factor * max(1, count))


def _within(work: Workshop, target: Target, losses: Losses, start: float, within: float) -> Attempt:
    """The smallest file that loses at most what the target allows, nearly.

    Args:
        work: the workshop.
        target: of quality.
        losses: what an attempt loses.
        start: water level to begin at.
        within: relative distance below the target that is near enough.

    Raises:
        TargetError: even the finest steps lose more.
    """

    def measure(fineness: float) -> Trial[Attempt]:
        attempt = work.finish(work.draft(-fineness))
        return Trial(fineness, losses(attempt), attempt)

    first = float(np.clip(math.log2(work.mean_power / start), -allocate.HIGHEST_LOG2, -allocate.LOWEST_LOG2))
    span = (-allocate.HIGHEST_LOG2, -allocate.LOWEST_LOG2)
    try:
        return allocate.lowest_within(
            measure, target.value, first, slope=-1.0, within=within, precision=PRECISION, span=span, tries=16
        ).made
    except TargetError as error:
        raise TargetError(
            f"Target {target.name}={target.value:.3g} is below the floor {float(error.args[0]):.3g} that the finest "
            "steps reach; ask for more."
        ) from error


# Quantizers of a fixed rate


def fixed_attempt(work: Workshop, target: Target | None) -> Attempt:
    """The one file of quantizers that do not depend on the water level.

    Args:
        work: the workshop.
        target: as for `search`; None for none.

    Raises:
        TargetError: it does not meet the target; the text says what it takes.
        CalibrationError: top-1 accuracy is asked for, but the data have no integer targets.
    """
    losses = None if target is None or target.name in ("rate", "size_bytes") else _losses(work, target)
    attempt = work.finish(work.draft_fixed())
    if target is None:
        return attempt
    size = {"rate": 8 * attempt.size_bytes / max(1, work.inventory.floating_values), "size_bytes": attempt.size_bytes}
    reached = size[target.name] if losses is None else losses(attempt)
    if not reached <= target.value:
        raise TargetError(
            f"Target {target.name}={target.value:.6g} is not met: the one file that quantizers of a fixed rate make "
            f"takes {attempt.size_bytes} bytes and has {target.name}={reached:.6g}. Ask for more, for no target, or "
            "change the quantizer's own options."
        )
    return attempt
