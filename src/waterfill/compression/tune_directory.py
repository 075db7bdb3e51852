"""Tuning of a compressed directory: vectors that bring its outputs nearer to those of the original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from waterfill.bundle import BundleWriter
from waterfill.compression.block_by_block import Measurement, Walked, encoder_of, position_statistics
from waterfill.compression.block_forward import as_keywords
from waterfill.compression.calibration import BatchSubset, chosen_by, held_out
from waterfill.compression.directory_search import DirectoryCandidate, DirectorySearch
from waterfill.compression.encoder import decoded
from waterfill.compression.layerwise import CodedSegment, quantize_segment
from waterfill.compression.report_rows import ReportBuilder
from waterfill.compression.segments import StoredTensors
from waterfill.compression.tensor_slices import TensorSlice
from waterfill.compression.tune import Tune
from waterfill.distortion import Distortion, distortion_for
from waterfill.evaluation import Evaluation, outputs_of, summarize
from waterfill.models.language import mask_of, output_of_text
from waterfill.models.output_rules import reading_of
from waterfill.models.pretrained import load_pretrained
from waterfill.models.skeleton import Place, Skeleton
from waterfill.models.state_dict import weight_of
from waterfill.records import Layout


def tuned_directory(run: DirectorySearch, found: DirectoryCandidate, tune: Tune) -> DirectoryCandidate:
    """Tune the vectors of a candidate, with the whole model in memory of the first process.

    Args:
        run: the search that found it.
        found: the candidate, whose segments were kept.
        tune: how.

    Returns:
        A candidate with tuned vectors, or itself where it measures better on the data to choose by.
    """
    made = run.walk.settings.processes.broadcast_made
    model = _LoadedModel(run, found)
    values = made(lambda: model.tuned(tune))
    segments = [_with_vectors(run, coded, values) for coded in found.walked.coded]
    vectors = {name: value for coded in segments for name, value in _decoded(coded, values).items()}
    distances, compressed = made(lambda: model.measure(vectors))
    before = found.walked.measured
    if before is None or not distances.mean() < before.distances.mean():
        return found
    walked = replace(found.walked, measured=Measurement(compressed, before.original, distances))
    with run.staging.writer() as (place, writer):
        return run.finished(place, writer, _packed(walked, segments, writer))


class _LoadedModel:
    """A compressed directory as transformers loads it, beside the outputs of the original; loaded when it is used.

    Args:
        run: the search that found it.
        found: where it is.
    """

    def __init__(self, run: DirectorySearch, found: DirectoryCandidate) -> None:
        self._run, self._place = run, found.place
        self._data = [as_keywords(batch) for batch in run.data or ()]

    @cached_property
    def _model(self) -> nn.Module:
        return self._loaded(self._place)

    def _loaded(self, directory: Path) -> nn.Module:
        """A model where the walk computes."""
        return load_pretrained(directory).float().to(self._run.walk.settings.device)

    @cached_property
    def _original(self) -> tuple[Distortion, list[Tensor]]:
        """What the outputs are, and those of the original."""
        original = self._loaded(self._run.walk.source.checkpoint.directory)
        kind = reading_of(original, self._data, output_of_text(original, self._data)).kind
        return distortion_for(kind), outputs_of(original, self._data)

    @cached_property
    def _places(self) -> dict[str, Place]:
        """Where the vectors of the checkpoint are among the parameters."""
        checkpoint = self._run.walk.source.checkpoint
        places = Skeleton(checkpoint.directory, checkpoint).places(checkpoint.shapes)
        return {name: place for name, place in places.items() if len(checkpoint.shapes.get(name, (0, 0))) < 2}

    def _rows(self, place: Place) -> Tensor | None:
        """The memory of a vector; an encoder is inside of its pooling."""
        parameters = dict(self._model.named_parameters())
        found = parameters.get(place.parameter, parameters.get(f"model.{place.parameter}"))
        return None if found is None else found.detach().view(-1)[place.start : place.start + place.count]

    def tuned(self, tune: Tune) -> dict[str, Tensor]:
        """Tune the vectors; gives them by their names in the checkpoint."""
        distortion, references = self._original
        count = len(self._data)
        fitting = BatchSubset(self._data, references, frozenset(range(count)) - held_out(count))
        names = [name for name, each in self._model.named_parameters() if each.ndim < 2]
        tune.fit(self._model, fitting, fitting.references, distortion, names, self._run.walk.settings.progress)
        rows = {name: self._rows(place) for name, place in self._places.items()}
        return {name: each.cpu().clone() for name, each in rows.items() if each is not None}

    def measure(self, vectors: Mapping[str, Tensor]) -> tuple[NDArray[np.float64], Evaluation]:
        """Measure the model with other vectors, as the walk does; distances are those on the data to choose by."""
        for name, value in vectors.items():
            rows = self._rows(self._places[name])
            if rows is not None:
                rows.copy_(value.reshape(-1))
        distortion, references = self._original
        found = []
        for batch, now, before in zip(self._data, outputs_of(self._model, self._data), references, strict=True):
            found.append(position_statistics(distortion, now, before, mask_of(batch).flatten()))
        chosen = sorted(chosen_by(len(found)))
        return np.concatenate([found[index].distances for index in chosen]), summarize(found)


def _with_vectors(run: DirectorySearch, coded: CodedSegment, values: Mapping[str, Tensor]) -> CodedSegment:
    """A segment with other vectors, quantized at its level."""
    vectors = StoredTensors(coded.name, partial(_slices, run, coded, values))
    encoder = encoder_of(run.walk)
    return coded.replaced(quantize_segment(vectors, coded.water_level, encoder, run.walk.statistics.sources))


def _slices(run: DirectorySearch, coded: CodedSegment, values: Mapping[str, Tensor]) -> Iterator[TensorSlice]:
    for name, entry in coded.entries.items():
        if name in values and name in coded.quantized:
            known = run.walk.statistics.known.get(name)
            value = values[name].to(getattr(torch, entry.dtype)).reshape(entry.shape)
            weight = weight_of(name, value, Layout(entry.shape))
            yield TensorSlice(entry, name, weight, None if known is None else known.form)


def _decoded(coded: CodedSegment, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vectors of a segment as they will be decoded."""
    return {
        name: decoded(entry, Layout(entry.shape), coded.quantized[name])
        for name, entry in coded.entries.items()
        if name in values and name in coded.quantized
    }


def _packed(walked: Walked, segments: Sequence[CodedSegment], writer: BundleWriter | None) -> Walked:
    """Write the payloads of all segments, and report on them."""
    report = ReportBuilder()
    for coded in segments:
        packed = coded.pack()
        report.add(coded, packed)
        if writer is not None:
            writer.add(coded.name, packed.data)
    return replace(walked, report=report)
