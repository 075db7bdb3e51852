"""The groups of a model in the order in which they are coded, without data and with."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.compression.block_forward import Flow
from waterfill.compression.block_sequence import Tensors
from waterfill.compression.checkpoint_source import Work
from waterfill.compression.coder import Coder, Done
from waterfill.compression.coding import Step, Steps
from waterfill.compression.layer_groups import Group
from waterfill.compression.loaded_parts import Piece, Pieces
from waterfill.compression.measure import distance, mean_distance
from waterfill.compression.sensitivity import Known, Passed, Study, Survey, keys_of, look, pass_through
from waterfill.compression.stages import Side
from waterfill.importance import DiagonalForm, weight_scale
from waterfill.models.embedder import Embedder, pooling_of
from waterfill.models.skeleton import Skeleton
from waterfill.models.state_dict import CODED_DTYPES, weight_of
from waterfill.records import Layout

BUFFER = "a buffer of the model"

POWER = 0.75
"""To which importances are taken."""


def without_data(work: Work) -> Steps:
    """By the weights alone: what has no matrices first, then tables, then the blocks."""
    pieces = Pieces(work.checkpoint, work.groups, None)
    order = [*(g for g in work.groups if g.block is None), *(g for g in work.groups if g.block is not None)]
    study = look(work, pieces, order)

    def step(group: Group) -> Step:
        def code(coder: Coder, level: float) -> Done:
            keys, done = keys_of(group, work.checkpoint.shapes), Done()
            known = {key: by_scale(key, pieces.part(key)) for key in keys}
            Tensors(coder, pieces.part, known, work.kept).plainly(done, keys, level)
            return done

        return Step(group, code)

    order.sort(key=lambda group: study.volumes[group.name].number > 0)
    return Steps(work, study, map(step, order), 1.0, weight_scale().name, "I e^2", 1.0, lambda: None)


def by_scale(key: str, tensor: Tensor) -> Known:
    """What is known of a tensor without data."""
    layout = Layout(tuple(tensor.shape))
    if tensor.ndim < 2 or tensor.dtype not in CODED_DTYPES or not tensor.numel():
        return Known(layout)
    weight = weight_of(key, tensor, layout)
    constant = weight_scale().forms({key: weight})[key].values.flat[0]
    return Known(layout, DiagonalForm(np.broadcast_to(np.float32(constant), weight.matrix.shape)))


def with_data(work: Work, data: Iterable[Any]) -> Steps:
    """By what errors cost on calibration data, block after block on what is compressed already.

    Args:
        work: the model.
        data: the batches of all processes.
    """
    skeleton = Skeleton(work.checkpoint.directory, work.checkpoint)
    head = None if skeleton.is_language_model else Embedder(skeleton.model, pooling_of(work.checkpoint.directory))
    work = replace(work, kept=dict.fromkeys(skeleton.buffers, BUFFER) | dict(work.kept))
    flow, pieces = Flow(skeleton, head), Pieces(work.checkpoint, work.groups, skeleton)
    batches = work.team.mine(list(data))
    passed = pass_through(work, flow, pieces, batches)
    study = Survey(work, flow, pieces, POWER).run(passed)
    way = Way(work, flow, pieces, passed, study)
    logits = flow.output == "logits"
    unit, factor = ("nats of KL", 0.5) if logits else ("squared output", 1.0)
    return Steps(work, study, way.steps(), POWER, "kronecker", unit, factor, way.distortion)


class Way:
    """The way of the batches through the compressed model as it grows.

    Args:
        work: the model.
        flow: how batches go through it.
        pieces: its parts.
        passed: the batches in the original.
        study: what is known.
    """

    def __init__(self, work: Work, flow: Flow, pieces: Pieces, passed: Passed, study: Study) -> None:
        self.work, self.flow, self.pieces, self.passed, self.study = work, flow, pieces, passed, study
        outside = pieces.outside()
        self._outside = outside
        self._original = Piece(outside.module, {n: p.data for n, p in outside.parameters.items()}, outside.places)
        self._compressed = Piece(
            outside.module, {n: p.data.clone() for n, p in outside.parameters.items()}, outside.places
        )
        self._hidden: list[Tensor] = []

    def steps(self) -> Iterator[Step]:
        """Tables, blocks, the last layer."""
        late = [group for group in self.study.groups if group.block is None and self._late(group)]
        early = [group for group in self.study.groups if group.block is None and group not in late]
        for group in sorted(early, key=lambda group: self.study.volumes[group.name].number > 0):
            yield self._step(group, (self._original, self._compressed))
        self._use(self._compressed)
        with torch.no_grad():
            self._hidden = [self.flow.enter(batch).hidden for batch in self.passed.batches]
        blocks = [group for group in self.study.groups if group.block is not None]
        for number, group in enumerate(blocks):
            yield self._block(number, group)
        for group in late:
            yield self._end(group)

    def distortion(self) -> float:
        """Of the outputs on the calibration data."""
        found = []
        for number, batch in enumerate(self.passed.batches):
            with torch.no_grad():
                self._use(self._original)
                before = self.flow.leave(batch, self.passed.hidden[-1][number])
                self._use(self._compressed)
                now = self.flow.leave(batch, self._hidden[number])
            found.append(distance(before, now, self.passed.there[number], self.flow.output))
        return mean_distance(found, self.work.team)

    def _late(self, group: Group) -> bool:
        """Whether a group has matrices that are first used behind the last block."""
        shapes, late = self.work.checkpoint.shapes, self.study.late
        return any(key in late and len(shapes.get(key, ())) > 1 for key in keys_of(group, shapes))

    def _step(self, group: Group, pieces: tuple[Piece, Piece], sides: tuple[Side, Side] | None = None) -> Step:
        """A step that codes a group, and fills the compressed one of two pieces with it.

        Args:
            group: which.
            pieces: the original and the compressed piece that have it.
            sides: the same, as they run; None for a group that is coded without looking at activations.
        """
        keys = keys_of(group, self.work.checkpoint.shapes)
        original, compressed = pieces

        def code(coder: Coder, level: float) -> Done:
            for key in compressed.places.keys() & set(keys):  # another try begins with what there was
                compressed.rows(key).copy_(original.rows(key))
            done, tensors = Done(), Tensors(coder, self.pieces.part, self.study.known, self.work.kept)
            finished = [] if sides is None else tensors.in_sequence(done, keys, sides, pieces, level)
            tensors.plainly(done, [key for key in keys if key not in finished], level, compressed)
            return done

        return Step(group, code)

    def _block(self, number: int, group: Group) -> Step:
        original = self.pieces.block(number)
        module = copy.deepcopy(original.module)
        compressed = Piece(module, dict(module.named_parameters()), original.places)
        there = self.passed.there
        calls = [each[number] for each in self.passed.calls]

        def through(block: nn.Module, hidden: Sequence[Tensor], batch: int) -> Tensor:
            return self.flow.through(block, hidden[batch], calls[batch])

        before = self.passed.hidden[number]
        sides = (
            Side(original.parameters, lambda batch: through(original.module, before, batch), there),
            Side(compressed.parameters, lambda batch: through(module, self._hidden, batch), there),
        )

        def accept() -> None:
            with torch.no_grad():
                self._hidden = [through(module, self._hidden, batch) for batch in range(len(self._hidden))]
            self.passed.hidden[number] = []

        return replace(self._step(group, (original, compressed), sides), accept=accept)

    def _end(self, group: Group) -> Step:
        there = self.passed.there
        batches, before = self.passed.batches, self.passed.hidden[-1]

        def leave(piece: Piece, hidden: Sequence[Tensor], batch: int) -> Tensor:
            self._use(piece)
            return self.flow.leave(batches[batch], hidden[batch])

        sides = (
            Side(self._outside.parameters, lambda batch: leave(self._original, before, batch), there),
            Side(self._outside.parameters, lambda batch: leave(self._compressed, self._hidden, batch), there),
        )
        return self._step(group, (self._original, self._compressed), sides)

    def _use(self, piece: Piece) -> None:
        """Let the model outside of the blocks have the values of a piece."""
        for name, parameter in self._outside.parameters.items():
            parameter.data = piece.parameters[name]
