"""The search for the directory that meets a target: one walk that spends a size, or a few for a quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from waterfill.bundle import BundleWriter
from waterfill.compression.block_by_block import BlockWalk, DirectoryWalk, Walked, spend, walk_directory
from waterfill.compression.block_forward import as_keywords
from waterfill.compression.encoder import importance_to_power
from waterfill.compression.level_search import NEARLY
from waterfill.compression.quality import commonest, floor_of_quality, or_infinite, original_quality, quality
from waterfill.compression.rate_control import LOWEST_LOG2, ConstantLevel, LevelSchedule, Trial
from waterfill.compression.shortfall import ZEROED, check_tolerance, shortfall_of_size, zeroed_by
from waterfill.compression.target import Target
from waterfill.errors import CalibrationError, WaterfillError
from waterfill.file_system import DISK
from waterfill.io.card import Card, write_card
from waterfill.io.folder import NewFolder
from waterfill.models.language import next_tokens
from waterfill.models.pretrained import load_pretrained
from waterfill.processes import Processes
from waterfill.results import DirectoryResult

_LOSSES = {
    "nats of KL": "mean KL divergence of the outputs from those of the base model, in nats per token",
    "squared output": "mean squared error of the outputs of the base model",
}
_OTHER_LOSS = "mean distance of the outputs from those of the base model"

WALKS = 3
"""How many walks a target of quality takes at most, if one of them meets it."""

MORE_WALKS = 3
"""How many more there may be until one meets it."""

LARGEST_MOVE = 4.0
"""Octaves by which the level moves at most from one walk to the next."""

LEAST_MOVE = 0.25
"""Octaves by which the level falls at least where no walk met the target; in later walks twice as many each time."""

LEAST_SLOPE, LARGEST_SLOPE = 0.5, 2.0
"""Octaves of distortion for an octave of the level, between which a slope that was measured is taken."""


@dataclass(frozen=True, eq=False)
class DirectoryCandidate:
    """A finished directory that may become the output.

    Attributes:
        place: where it is.
        size_bytes: of its safetensors files and their index.
        walked: what is known of it.
    """

    place: Path
    size_bytes: int
    walked: Walked

    @property
    def is_zeroed(self) -> bool:
        """Whether all of its matrices are zero."""
        return self.walked.report.is_zeroed


class Staging:
    """Directories beside the output, of which one becomes the output.

    Args:
        out: the directory to write.
        source: the original.
        force: replace `out`.
        processes: the first one writes.

    Raises:
        WaterfillError: `out` exists and `force` is False, is no model directory, or cannot be written.
        UsageError: `out` is `source`, or holds it.
    """

    def __init__(self, out: Path, source: Path, force: bool, processes: Processes) -> None:
        self._source, self._processes = source, processes
        self._folder = NewFolder(out, source=source, force=force) if processes.is_first else None
        self._count = 0

    def __enter__(self) -> Self:
        if self._folder is not None:
            self._folder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.__exit__(kind, error, trace)

    @contextmanager
    def writer(self) -> Iterator[tuple[Path, BundleWriter | None]]:
        """The place of the next candidate and its writer; no writer in processes that do not write."""
        self._count += 1
        if self._folder is None:
            yield Path(), None
            return
        place = self._folder.path / f"candidate-{self._count}"
        with BundleWriter(place, self._source) as writer:
            yield place, writer

    def take(self, candidate: DirectoryCandidate, result: DirectoryResult) -> None:
        """Make a candidate the output, with a model card that says the result.

        Raises:
            WaterfillError: the card cannot be written, or the folder not be moved to its place.
        """
        if self._folder is None:
            return
        for path in [*candidate.place.iterdir()]:
            DISK.replace(path, self._folder.path / path.name)
        for left in self._folder.path.glob("candidate-*"):
            DISK.remove_folder(left)
        try:
            write_card(self._folder.path, self._source, _card(result))
        except OSError as error:
            raise WaterfillError(f"Writing the model card failed: {error.strerror}; nothing was written.") from error
        self._folder.commit()


def _card(result: DirectoryResult) -> Card:
    """What the model card of a directory says of the result."""
    loss = (
        None
        if result.distortion is None
        else f"{result.distortion:.3g} ({_LOSSES.get(result.distortion_unit, _OTHER_LOSS)})"
    )
    return Card(result.rate, result.size_bytes, result.original_bytes, loss, result.target)


@dataclass(frozen=True, eq=False)
class DirectorySearch:
    """Walks a directory until a target is met.

    Attributes:
        walk: the way through the directory.
        target: what to meet.
        staging: takes the candidates.
        data: the calibration batches; None without data.
        keep: whether segments are kept in memory.
    """

    walk: DirectoryWalk
    target: Target
    staging: Staging
    data: Sequence[Any] | None
    keep: bool = False

    def run(self) -> DirectoryCandidate:
        """Find the candidate.

        Raises:
            TargetError: there is none; the text says what the floor is.
            CalibrationError: the quality cannot be measured.
        """
        if self.target.is_size:
            limit = self.target.size(self.walk.source.floating_values)
            found = self._candidate(spend(self.walk, limit))
            finest = found.walked.water_level <= self.walk.statistics.zero_cost * 2.0**LOWEST_LOG2
            self.walk.settings.notes.add(shortfall_of_size(limit, found.size_bytes, is_finest=finest))
            self.walk.settings.notes.add(ZEROED if found.is_zeroed else "")
            return found
        losses = self._losses()
        found = few_walks(self._trial(losses), self.target, self._guess())
        self.walk.settings.notes.add(zeroed_by(self.target, losses(found)) if found.is_zeroed else "")
        return found

    @property
    def measure(self) -> str:
        """Name of the distortion of the limit."""
        return importance_to_power(self.walk.importance, self.walk.statistics.power)

    def facts(self, walked: Walked) -> dict[str, Any]:
        """Facts that the directory stores about itself."""
        return {
            "target": self.target.asked,
            "importance": self.walk.importance,
            "importance_power": self.walk.statistics.power,
            "limit": walked.report.limit_bits / max(1, self.walk.source.floating_values),
            "limits": walked.report.limits,
            "limit_measure": self.measure,
            "distortion": walked.distortion,
        }

    def _candidate(self, schedule: LevelSchedule) -> DirectoryCandidate:
        """Walk once."""
        with self.staging.writer() as (place, writer):
            walked = walk_directory(self.walk, schedule, writer, keep=self.keep)
            return self.finished(place, writer, walked)

    def finished(self, place: Path, writer: BundleWriter | None, walked: Walked) -> DirectoryCandidate:
        """Finish a directory whose payloads are written."""
        size = 0 if writer is None else writer.finish(self.walk.source.tied, self.facts(walked))
        return DirectoryCandidate(place, self.walk.settings.processes.broadcast(size), walked)

    def _trial(self, losses: Callable[[DirectoryCandidate], float]) -> Callable[[float], Trial[DirectoryCandidate]]:
        def trial(log2_level: float) -> Trial[DirectoryCandidate]:
            candidate = self._candidate(ConstantLevel(2.0**log2_level))
            return Trial(log2_level, losses(candidate), candidate)

        return trial

    def _guess(self) -> float:
        """Base-2 logarithm of a level to begin at: errors that fill it add up to the distortion."""
        known = self.walk.statistics.known.values()
        factor = next((each.form.factor for each in known if each.form is not None), 1.0)
        return math.log2(self.target.distortion / (factor * max(1, self.walk.source.floating_values)))

    def _losses(self) -> Callable[[DirectoryCandidate], float]:
        """How to tell what a candidate loses.

        Raises:
            CalibrationError: top-1 accuracy is asked for, but the model does not predict the next token; or the metric
                gives no finite number.
        """
        if self.target.name == "distortion":
            return lambda candidate: or_infinite(candidate.walked.distortion)
        if self.target.metric is None:
            if not (isinstance(self.walk, BlockWalk) and self.walk.predicts_next):
                raise CalibrationError(
                    "A tolerance is measured as top-1 accuracy of the next token, which this model does not predict; "
                    "expected a language model, or a metric. Give a metric, or a distortion."
                )
            return self._accuracy_loss
        metric, processes = self.target.metric, self.walk.settings.processes
        directory, data = self.walk.source.checkpoint.directory, self.data or ()

        def measured(place: Path, measure: Any) -> float:
            return float(processes.broadcast_made(lambda: measure(metric, load_pretrained(place), data)))

        before = measured(directory, original_quality)
        return lambda candidate: before - measured(candidate.place, quality)

    @cached_property
    def _constant_accuracy(self) -> float:
        """Accuracy of the best answer that is always the same."""
        return commonest(next_tokens(as_keywords(each)) for each in self.data or ())

    def _accuracy_loss(self, candidate: DirectoryCandidate) -> float:
        """By how much the accuracy is below that of the original.

        Raises:
            TargetError: there is no more to lose than is tolerated.
        """
        if candidate.walked.measured is not None:
            check_tolerance(self.target, candidate.walked.measured.original.accuracy or 0.0, self._constant_accuracy)
        return candidate.walked.accuracy_loss


def few_walks(
    measure: Callable[[float], Trial[DirectoryCandidate]], target: Target, first: float
) -> DirectoryCandidate:
    """The coarsest candidate of a few walks that loses at most what a target allows.

    The distortion goes about as the level. Two walks show how, and a third one spends what they leave.

    Args:
        measure: walks at a level (a base-2 logarithm).
        target: of quality.
        first: where to start.

    Raises:
        TargetError: none of them meets it.
    """
    trials: list[Trial[DirectoryCandidate]] = []
    level = first
    for count in range(1, WALKS + MORE_WALKS + 1):
        trial = measure(level)
        trials.append(trial)
        fitting = [each for each in trials if each.value <= target.value]
        if fitting and (count >= WALKS or target.value * (1 - NEARLY) <= trial.value <= target.value):
            return max(fitting, key=lambda each: each.level).made
        margin = NEARLY / 2 if fitting or count + 1 < WALKS else 2 * NEARLY
        level = _next_level(trials, target.value * (1 - margin))
        if not fitting:  # finer in any case, and surely so where walks are few
            level = min(level, min(each.level for each in trials) - LEAST_MOVE * 2.0 ** max(0, count - WALKS + 1))
    raise floor_of_quality(target, min(each.value for each in trials))


def _next_level(trials: Sequence[Trial[Any]], aim: float) -> float:
    """Level at which the loss is what is aimed at, by the two trials nearest to it."""
    nearest = sorted(trials, key=lambda each: abs(math.log(max(each.value, 1e-9 * aim) / aim)))[:2]
    last, slope = nearest[0], 1.0
    if len(nearest) == 2 and min(each.value for each in nearest) > 0 and nearest[0].level != nearest[1].level:
        rise = math.log2(nearest[1].value / nearest[0].value) / (nearest[1].level - nearest[0].level)
        slope = float(np.clip(rise, LEAST_SLOPE, LARGEST_SLOPE))
    reach = math.log2(aim / max(last.value, 2.0**-LARGEST_MOVE * aim)) if math.isfinite(last.value) else -LARGEST_MOVE
    return last.level + float(np.clip(reach / slope, -LARGEST_MOVE, LARGEST_MOVE))
