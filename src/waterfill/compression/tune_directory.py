"""Tuning of a compressed directory: vectors that bring its outputs nearer to those of the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from waterfill.bundle import BundleWriter
from waterfill.compression.block_by_block import Measurement, Walked, encoder_of
from waterfill.compression.block_forward import as_keywords
from waterfill.compression.calibration import BatchSubset, held_out
from waterfill.compression.directory_search import DirectoryCandidate, DirectorySearch
from waterfill.compression.layerwise import CodedSegment, quantize_segment
from waterfill.compression.report_rows import ReportBuilder
from waterfill.compression.segments import StoredTensors
from waterfill.compression.tensor_slices import TensorSlice
from waterfill.compression.tune import Tune
from waterfill.distortion import Distortion, distortion_for
from waterfill.evaluation import BatchStatistics, evaluate_batches, reference_outputs, summarize
from waterfill.models.language import output_of
from waterfill.models.pretrained import load_pretrained
from waterfill.models.skeleton import Skeleton
from waterfill.models.state_dict import weight_of
from waterfill.records import Layout


@dataclass(frozen=True, eq=False)
class _Tuned:
    """Result of tuning.

    Attributes:
        values: of vectors, by name in the checkpoint.
        before: what was measured on every batch before.
        after: the same with the tuned vectors.
    """

    values: Mapping[str, Tensor]
    before: list[BatchStatistics]
    after: list[BatchStatistics]


def tuned_directory(run: DirectorySearch, found: DirectoryCandidate, tune: Tune) -> tuple[DirectoryCandidate, float]:
    """Tune the vectors of a candidate, with the whole model in memory.

    Args:
        run: the search that found it.
        found: the candidate, whose segments were kept.
        tune: how.

    Returns:
        A candidate with tuned vectors, or itself where it measures better on the data to choose by; and the distortion
        before.
    """
    processes, count = run.walk.settings.processes, len(run.data or ())
    tuned = processes.broadcast_made(lambda: _tune(run, found, tune))
    chosen = sorted(held_out(count) or range(count))
    before, after = (
        float(np.concatenate([each[index].distances for index in chosen]).mean())
        for each in (tuned.before, tuned.after)
    )
    untuned = summarize(tuned.before).distortion or 0.0
    if not after < before:
        return found, untuned
    with run.staging.writer() as (place, writer):
        walked = _repacked(run, found.walked, tuned, writer)
        distances = np.concatenate([tuned.after[index].distances for index in chosen])
        original = found.walked.measured.original if found.walked.measured else summarize(tuned.before)
        walked = replace(walked, measured=Measurement(summarize(tuned.after), original, distances))
        return run.finished(place, writer, walked), untuned


def _tune(run: DirectorySearch, found: DirectoryCandidate, tune: Tune) -> _Tuned:
    """Tune the loaded model."""
    directory, settings = run.walk.source.checkpoint.directory, run.walk.settings
    data = [as_keywords(batch) for batch in run.data or ()]
    original = load_pretrained(directory).float()
    distortion = distortion_for(output_of(original, data, None))
    references = reference_outputs(original, data)
    del original
    model = load_pretrained(found.place).float()
    measured = partial(_measured, model, data, references, distortion)
    before = measured()
    fitting = BatchSubset(data, references, frozenset(range(len(data))) - held_out(len(data)))
    names = [name for name, each in model.named_parameters() if each.ndim < 2]
    values = tune.fit(model, fitting, fitting.references, distortion, names, settings.progress)
    return _Tuned(_by_checkpoint(run, values), before, measured())


def _measured(
    model: nn.Module, data: Sequence[Any], references: list[Tensor], distortion: Distortion
) -> list[BatchStatistics]:
    return list(evaluate_batches(model, data, references, distortion))


def _by_checkpoint(run: DirectorySearch, values: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """Values of parameters by the names that they have in the checkpoint; an encoder is inside of its pooling."""
    checkpoint, found = run.walk.source.checkpoint, {}
    for key, place in Skeleton(checkpoint.directory, checkpoint).places(checkpoint.shapes).items():
        value = values.get(place.parameter, values.get(f"model.{place.parameter}"))
        if value is not None and len(checkpoint.shapes.get(key, (0, 0))) < 2:
            found[key] = torch.from_numpy(value.reshape(-1)[place.start : place.start + place.count])
    return found


def _repacked(run: DirectorySearch, walked: Walked, tuned: _Tuned, writer: BundleWriter | None) -> Walked:
    """The payloads of all segments with tuned vectors."""
    report = ReportBuilder()
    encoder, sources = encoder_of(run.walk), run.walk.statistics.sources
    for coded in walked.coded:
        vectors = StoredTensors(coded.name, partial(_vectors, run, coded, tuned.values))
        new = coded.replaced(quantize_segment(vectors, coded.water_level, encoder, sources))
        packed = new.pack()
        report.add(new, packed)
        if writer is not None:
            writer.add(new.name, packed.data)
    return replace(walked, report=report)


def _vectors(run: DirectorySearch, coded: CodedSegment, values: Mapping[str, Tensor]) -> Iterator[TensorSlice]:
    """The tuned vectors of a segment."""
    for name, entry in coded.entries.items():
        if name in values and name in coded.quantized and len(entry.shape) < 2:
            known = run.walk.statistics.known.get(name)
            value = values[name].to(getattr(torch, entry.dtype)).reshape(entry.shape)
            weight = weight_of(name, value, Layout(entry.shape))
            yield TensorSlice(entry, name, weight, None if known is None else known.form)
