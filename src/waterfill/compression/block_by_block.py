"""A model directory: walked segment by segment, in as much memory as one block takes.

```
batches --forward, backward--> ModelStatistics: what errors cost everywhere, and how many bits that takes
tables before the blocks, block after block, the last layer:
    matrices stage by stage on what is compressed already -> a payload -> the directory
```
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from waterfill.batch_statistics import BatchStatistics, OutputBatch, batch_statistics
from waterfill.bundle import BundleWriter
from waterfill.compression.block_forward import BlockForward, as_keywords
from waterfill.compression.calibration import chosen_by, held_out
from waterfill.compression.checkpoint_groups import TensorGroup
from waterfill.compression.checkpoint_source import CheckpointSource
from waterfill.compression.encoder import Encoder
from waterfill.compression.last_segment import LastSegmentEncoder
from waterfill.compression.layer_stages import BlockRun
from waterfill.compression.layerwise import CodedSegment, quantize_segment
from waterfill.compression.loaded_parts import LoadedPart, PartLoader, tensor_or_matrix
from waterfill.compression.rate_control import LevelSchedule, SegmentForecast, SpendBudget
from waterfill.compression.report_rows import ReportBuilder
from waterfill.compression.segments import ModelPart, Segment, StoredTensors, TensorReader
from waterfill.compression.sensitivity import (
    BackwardPass,
    ModelStatistics,
    keys_of,
    run_original,
    survey_forms,
    weight_sensitivity,
)
from waterfill.compression.settings import Settings
from waterfill.compression.whole_model_forms import form_finder
from waterfill.distortion import Distortion
from waterfill.evaluation import Evaluation, summarize
from waterfill.importance import kronecker
from waterfill.models.embedder import Embedder, pooling_of
from waterfill.models.language import next_tokens, predicts_next
from waterfill.models.skeleton import Skeleton
from waterfill.protocols import DataFree

POWER = 0.75
"""To which importances are taken."""

SAMPLED = 1 << 16
"""Values of a matrix that are looked at to foresee its bits without data."""

BUFFER = "a buffer of the model"

HEADER_BYTES = 64
"""Of a safetensors file beside its tensors, and for each tensor in it, without its size and place."""

DIGEST_BYTES = 48
"""Of the digest in that file."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """Quality of a compressed directory and of the original, on the calibration data.

    Attributes:
        compressed: of the compressed model; of models that predict the next token, its accuracy is about that.
        original: of the original; only what is about labels.
        distances: of every output from that of the original, on the data to choose by.
    """

    compressed: Evaluation
    original: Evaluation
    distances: NDArray[np.float64]


class DirectoryWalk(Protocol):
    """A way through a model directory; it can be gone several times.

    Attributes:
        source: the tensors.
        settings: of the compression.
        statistics: what is known before.
        importance: name of what errors cost.
    """

    source: CheckpointSource
    settings: Settings
    statistics: ModelStatistics
    importance: str

    def segments(self) -> Iterator[Segment]:
        """All segments in the order in which they are quantized, each to be quantized before the next one is asked."""
        ...

    def measure(self) -> Measurement | None:
        """Measure what was quantized; None without data."""
        ...


@dataclass(frozen=True, eq=False)
class Walked:
    """Result of one walk through a directory.

    Attributes:
        report: what is told of it.
        water_level: of the last segment with matrices.
        measured: on the calibration data; None without.
        coded: all segments, where they were to be kept.
    """

    report: ReportBuilder
    water_level: float
    measured: Measurement | None
    coded: Sequence[CodedSegment] = ()

    @property
    def distortion(self) -> float | None:
        """Measured on the calibration data: KL of logits, squared error of values."""
        return None if self.measured is None else self.measured.compressed.distortion

    @property
    def held_out(self) -> float | None:
        """Mean distance of the outputs on the data to choose by."""
        return None if self.measured is None else float(self.measured.distances.mean())

    @property
    def accuracy_loss(self) -> float:
        """By how much the accuracy is below that of the original; 0 where it was not measured."""
        if self.measured is None:
            return 0.0
        return (self.measured.original.accuracy or 0.0) - (self.measured.compressed.accuracy or 0.0)


def walk_directory(
    walk: DirectoryWalk, schedule: LevelSchedule, writer: BundleWriter | None, *, keep: bool = False
) -> Walked:
    """Quantize all segments of a directory, each at the level that a schedule says.

    Args:
        walk: the way through the directory.
        schedule: says the levels.
        writer: takes the payloads; None in processes that do not write.
        keep: whether all segments are kept in memory.

    Raises:
        TargetError: the size that is to be spent is too small.
    """
    statistics, settings, encoder = walk.statistics, walk.settings, encoder_of(walk)
    report, kept, water_level = ReportBuilder(), [], 0.0
    for number, segment in enumerate(walk.segments()):
        while True:
            level, budget = schedule.level(segment.name), schedule.filling(segment.name)
            last = None if budget is None else LastSegmentEncoder(encoder, budget, budget.matrices(segment.name))
            coded = quantize_segment(segment, level, last or encoder, statistics.sources)
            packed = coded.pack()
            if schedule.accepts(segment.name, level, coded.matrix_bits, len(packed.data)):
                break
        segment.finish()
        report.add(coded, packed)
        statistics.sources.forget(coded.entries)
        kept += [coded] if keep else []
        water_level = level if coded.matrix_bits else water_level
        if writer is not None:
            writer.add(segment.name, packed.data)
        settings.tell("code", number + 1, len(statistics.groups))
        del segment, coded, packed  # or they would be in memory beside the next ones
    return Walked(report, water_level, walk.measure(), kept)


def encoder_of(walk: DirectoryWalk) -> Encoder:
    """Make the encoder of a directory."""
    statistics, settings = walk.statistics, walk.settings
    return Encoder(
        settings.quantizer,
        statistics.mean,
        statistics.power,
        statistics.zero_cost,
        processes=settings.processes,
        memo=settings.memo,
        bases=statistics.bases,
    )


def spend(walk: DirectoryWalk, limit_bytes: float) -> SpendBudget:
    """A schedule that spends a size on the segments of a walk, with a pilot of one of them.

    Args:
        walk: the way through the directory.
        limit_bytes: of all safetensors files.
    """
    statistics = walk.statistics
    forecasts = {
        group.name: SegmentForecast(
            {name: each.scaled(statistics.scale) for name, each in statistics.components[group.name].items()},
            statistics.vectors.get(group.name, 0),
            walk.source.exact_bits(group),
        )
        for group in statistics.groups
    }
    digits = len(str(round(limit_bytes)))
    payloads = limit_bytes - DIGEST_BYTES - HEADER_BYTES * (1 + len(forecasts)) - 3 * digits * len(forecasts)
    budget = SpendBudget(limit_bytes, 8 * payloads, forecasts)
    if statistics.pilot and forecasts[statistics.pilot_group].components.number:
        level = budget.level(statistics.pilot_group)
        budget.pilot(*_pilot(walk, forecasts[statistics.pilot_group], level))
    statistics.pilot = {}  # forms of a whole block
    return budget


def _pilot(walk: DirectoryWalk, forecast: SegmentForecast, level: float) -> tuple[float, float]:
    """Bits that the matrices of a segment take, by some rows of each, and how many are foreseen.

    Args:
        walk: has the matrices, or some rows of each.
        forecast: of the segment.
        level: the water level.
    """
    encoder = encoder_of(walk)
    jobs = {name: encoder.job(weight, form) for name, (weight, form) in walk.statistics.pilot.items()}
    taken = encoder.estimate_bits(jobs, level)
    wholes = {name: each for name, each in forecast.matrices.items() if name in jobs and each.number}
    foreseen = (jobs[name].weight.matrix.size / whole.number * whole.forecast(level) for name, whole in wholes.items())
    return taken, sum(foreseen)


# Without data


class StoredWalk:
    """By the weights alone: what has no matrices first, then tables, then the blocks.

    Args:
        source: the tensors.
        settings: of the compression.
        estimator: what errors cost.
    """

    def __init__(self, source: CheckpointSource, settings: Settings, estimator: DataFree) -> None:
        self.source, self.settings = source, settings
        self._form_of = form_finder(estimator, source, (), settings)
        self.statistics = survey_forms(source, 1.0, self._form_of, settings, most=SAMPLED)
        self.importance = estimator.name

    def segments(self) -> Iterator[Segment]:
        """All groups."""
        has_matrices = self.statistics.has_matrices
        order = sorted(self.source.groups, key=lambda group: (has_matrices(group.name), group.block is not None))
        for group in order:
            yield StoredTensors(group.name, partial(self._slices, group))

    def _slices(self, group: TensorGroup) -> Iterator[Any]:
        checkpoint = self.source.checkpoint
        for key in keys_of(group, checkpoint.shapes):
            values = tensor_or_matrix(checkpoint, key)
            known = {key: weight_sensitivity(self._form_of, key, values)}
            yield from TensorReader({key: values}.__getitem__, known, self.source.kept).whole(key).slices()

    def measure(self) -> None:
        """Measure nothing: there are no data."""


# With data


class BlockWalk:
    """By what errors cost on calibration data, block after block on what is compressed already.

    Args:
        source: the tensors.
        settings: of the compression.
        data: the batches of all processes.
        power: to which importances are taken.
        exactly: see `ModelStatistics`.

    Raises:
        UnsupportedModelError: transformers does not know the architecture, or it has no blocks one after the other.
        CalibrationError: the data do not fit the model.
    """

    def __init__(
        self,
        source: CheckpointSource,
        settings: Settings,
        data: Sequence[Any],
        power: float = POWER,
        *,
        exactly: bool = False,
    ) -> None:
        directory = source.checkpoint.directory
        skeleton = Skeleton(directory, source.checkpoint)
        head = None if skeleton.is_language_model else Embedder(skeleton.model, pooling_of(directory))
        self.source = source.keeping(dict.fromkeys(skeleton.buffers, BUFFER))
        self.settings = settings
        self.forward = BlockForward(skeleton, head)
        self._loader = PartLoader(source.checkpoint, source.groups, skeleton)
        self._numbers, batches, fitted = _shared(data, settings)
        self._passed = run_original(self.forward, self._loader, batches, fitted, settings)
        estimator = settings.importance or kronecker(seed=settings.seed)
        self.importance = estimator.name
        if isinstance(estimator, kronecker) and not estimator.full:
            survey = BackwardPass(self.source, self.forward, self._loader, estimator, settings, exactly=exactly)
            self.statistics = survey.run(self._passed, power)
        else:
            held = held_out(len(data))
            fitting = [batch for number, batch in enumerate(data) if number not in held]
            form_of = form_finder(estimator, self.source, fitting, settings)
            self.statistics = survey_forms(self.source, power, form_of, settings, exactly=exactly)
        outside = self._loader.outside
        self._original = LoadedPart(
            outside.module, {name: each.data for name, each in outside.parameters.items()}, outside.places
        )
        self._compressed = self._copy()
        self._hidden: list[Tensor] = []
        self._fresh = True

    @property
    def predicts_next(self) -> bool:
        """Whether the outputs are logits of the next token."""
        return self.forward.distortion.has_classes and predicts_next(self.forward.skeleton.model)

    def _copy(self) -> LoadedPart:
        parameters = {name: each.clone() for name, each in self._original.parameters.items()}
        return LoadedPart(self._original.module, parameters, self._original.places)

    def segments(self) -> Iterator[Segment]:
        """Tables, blocks, the last layer."""
        self._start()
        groups = self.statistics.groups
        late = [group for group in groups if group.block is None and self._is_late(group)]
        early = [group for group in groups if group.block is None and group not in late]
        for group in sorted(early, key=lambda group: self.statistics.has_matrices(group.name)):
            yield self._part(group, self._original, self._compressed, None)
        self._use(self._compressed)
        with torch.no_grad():
            self._hidden = [self.forward.embed(batch).hidden for batch in self._passed.batches]
        blocks = [group for group in groups if group.block is not None]
        for number, group in enumerate(blocks):
            yield self._block(number, group)
        for group in late:
            yield self._part(group, self._original, self._compressed, self._head_runs())

    def _start(self) -> None:
        """Begin another walk: blocks let go of what they were given in the original."""
        if not self._fresh:
            self._use(self._original)
            passed, batches = self._passed, self._passed.batches
            self._passed = run_original(self.forward, self._loader, batches, passed.fitted, self.settings)
            self._compressed = self._copy()
        self._fresh = False

    def _is_late(self, group: TensorGroup) -> bool:
        """Whether a group has matrices that are first used behind the last block."""
        shapes, late = self.source.checkpoint.shapes, self.statistics.late
        return any(key in late and len(shapes.get(key, ())) > 1 for key in keys_of(group, shapes))

    def _part(
        self,
        group: TensorGroup,
        original: LoadedPart,
        compressed: LoadedPart,
        runs: tuple[BlockRun, BlockRun] | None,
        finish: Callable[[], None] = lambda: None,
    ) -> ModelPart:
        checkpoint = self.source.checkpoint
        reader = TensorReader(partial(tensor_or_matrix, checkpoint), self.statistics.known, self.source.kept)
        keys = keys_of(group, checkpoint.shapes)
        return ModelPart(group, keys, reader, original, compressed, runs, self.settings.processes, finish)

    def _block(self, number: int, group: TensorGroup) -> ModelPart:
        original = self._loader.block(number)
        module = copy.deepcopy(original.module)
        compressed = LoadedPart(module, dict(module.named_parameters()), original.places)
        before, calls = self._passed.hidden[number], [each[number] for each in self._passed.calls]

        def run(block: nn.Module, hidden: Sequence[Tensor], batch: int) -> Tensor:
            return self.forward.run_block(block, hidden[batch], calls[batch])

        masks = self._passed.fitting_masks
        runs = (
            BlockRun(original.parameters, partial(run, original.module, before), masks),
            BlockRun(compressed.parameters, partial(run, module, self._hidden), masks),
        )

        def finish() -> None:
            self._hidden = [runs[1].output(batch) for batch in range(len(self._hidden))]
            self._passed.hidden[number] = []

        return self._part(group, original, compressed, runs, finish)

    def _head_runs(self) -> tuple[BlockRun, BlockRun]:
        masks, parameters = self._passed.fitting_masks, self._loader.outside.parameters
        before, now = self._passed.hidden[-1], self._hidden
        return (
            BlockRun(parameters, lambda batch: self._head(self._original, before, batch), masks),
            BlockRun(parameters, lambda batch: self._head(self._compressed, now, batch), masks),
        )

    def _head(self, part: LoadedPart, hidden: Sequence[Tensor], batch: int) -> Tensor:
        self._use(part)
        return self.forward.head(self._passed.batches[batch], hidden[batch])

    def _use(self, part: LoadedPart) -> None:
        """Let the model outside of the blocks have the values of a part."""
        for name, parameter in self._loader.outside.parameters.items():
            parameter.data = part.parameters[name]

    def measure(self) -> Measurement:
        """Compare the outputs of the compressed model with those of the original, on the data of all processes."""
        found = []
        for batch, number in enumerate(self._numbers):
            with torch.no_grad():
                before = self._head(self._original, self._passed.hidden[-1], batch)
                now = self._head(self._compressed, self._hidden, batch)
            found.append((number, self._statistics(batch, now, before), self._labelled(batch, before)))
        every = [each for of_process in self.settings.processes.all_gather(found) for each in of_process]
        every.sort(key=lambda each: each[0])
        numbers = chosen_by(len(every))
        chosen = [now for number, now, _ in every if number in numbers]
        return Measurement(
            summarize(now for _, now, _ in every),
            summarize(before for _, _, before in every if before is not None),
            np.concatenate([each.distances for each in chosen]),
        )

    def _statistics(self, batch: int, now: Tensor, before: Tensor) -> BatchStatistics:
        """How near the outputs of a batch are to others, position by position, and to the next tokens."""
        found = position_statistics(self.forward.distortion, now, before, self._passed.masks[batch])
        labelled = self._labelled(batch, now)
        return found if labelled is None else found.with_labels(labelled)

    def _labelled(self, batch: int, outputs: Tensor) -> BatchStatistics | None:
        """How near outputs of a batch are to the next tokens; None where the model does not predict them."""
        if not self.predicts_next:
            return None
        target = next_tokens(as_keywords(self._passed.batches[batch]))
        return batch_statistics(OutputBatch(len(outputs), outputs, target, None), self.forward.distortion)


def position_statistics(distortion: Distortion, now: Tensor, before: Tensor, mask: Tensor) -> BatchStatistics:
    """How near the outputs of a batch are to those of the original, at all positions that are no padding.

    Args:
        distortion: of the outputs.
        now: of the compressed model [samples, ...].
        before: of the original.
        mask: which positions count, bool [samples * positions].
    """
    rows, others = (distortion.counted(each, mask) for each in (now, before))
    return batch_statistics(OutputBatch(len(now), rows, None, others), distortion)


def _shared(data: Sequence[Any], settings: Settings) -> tuple[list[int], list[Any], int]:
    """The batches of this process, those to fit to first: their numbers, they themselves, and how many these are."""
    processes, held = settings.processes, held_out(len(data))
    fitting = processes.share([number for number in range(len(data)) if number not in held])
    numbers = [*fitting, *sorted(held)[processes.rank :: processes.count]]
    return numbers, [data[number] for number in numbers], len(fitting)
