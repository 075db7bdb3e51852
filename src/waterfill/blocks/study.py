"""What is known of a model before its first tensor is coded: what errors cost everywhere, and how many bits that takes.

```
batches --forward, block by block--> hidden states before every block
        <-backward, block by block-- signals of the importance: rows of every factor, forms of vectors and tables
```
Of a block only a vector for every matrix is kept; factors over columns are measured again where they are needed, on
what the compressed blocks before hand on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.allocate import Job
from waterfill.blocks.flow import Call, Flow, as_keywords
from waterfill.blocks.gather import UNUSED, Back, Gathered, gather, gathered
from waterfill.blocks.groups import Group
from waterfill.blocks.outlook import Volumes
from waterfill.blocks.pieces import Piece, Pieces
from waterfill.blocks.sample import Sample
from waterfill.blocks.sums import Sums
from waterfill.blocks.work import Work
from waterfill.bundle import part_name
from waterfill.importance import signals, weight_scale
from waterfill.importance.factored import UnfactoredForm
from waterfill.importance.forms import DiagonalForm, Doubles
from waterfill.importance.state import fingerprint
from waterfill.limits import fit_sources
from waterfill.models.skeleton import Place, is_stack
from waterfill.models.state_dict import CODED_DTYPES, weight_of
from waterfill.protocols import QuadraticForm
from waterfill.records import Layout, Weight

SAMPLED = 1 << 16
"""Values of a matrix that are looked at to foresee its bits without data."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a tensor, or of a matrix of it.

    Attributes:
        layout: how it is read as a matrix.
        form: what errors cost; None for a vector without one, and where only the rows are known.
        rows: factor over the rows for a factor over columns of the trace 1, [out]; None without cross terms.
        reason: why the form is coarser than it could be.
    """

    layout: Layout
    form: QuadraticForm | None = None
    rows: Doubles | None = None
    reason: str = ""

    @property
    def diagonal(self) -> QuadraticForm | None:
        """The form; without cross terms where only the rows are known."""
        if self.form is not None or self.rows is None:
            return self.form
        inputs = self.layout.numel // max(1, len(self.rows))
        return DiagonalForm(np.repeat(self.rows[:, None] / inputs, inputs, 1).astype(np.float32))


@dataclass(eq=False)
class Study:
    """What is known of a model.

    Attributes:
        groups: the groups of the model, in the order of the file.
        known: by name of the tensor, or of its matrix `name[index]`.
        volumes: of every group, for importances to the power and of the mean 1.
        vectors: number of values of vectors in every group.
        pilot: matrices to find out on how many bits codes take; of one group.
        pilot_group: name of that group.
        total: sum of the scales of all importances, see `KroneckerForm.scale_total`.
        count: number of weights of which it is the sum.
        late: names of tensors outside of the blocks that are first used behind the last block.
        least: the lowest mean importance of any matrix that was reached, by shape [out, in].
        unknown: group and name of the matrices that were not.
    """

    groups: Sequence[Group]
    known: dict[str, Known] = field(default_factory=dict)
    volumes: dict[str, Volumes] = field(default_factory=dict)
    vectors: dict[str, int] = field(default_factory=dict)
    pilot: dict[str, Job] = field(default_factory=dict)
    pilot_group: str = ""
    total: float = 0.0
    count: int = 0
    late: set[str] = field(default_factory=set)
    least: dict[tuple[int, ...], float] = field(default_factory=dict)
    unknown: list[tuple[str, str]] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Mean of the scales of all importances; about this importances are taken to a power."""
        return self.total / self.count if self.total > 0 else 1.0

    def take_in(
        self, weight: Weight, form: QuadraticForm, power: float, times: float = 1.0
    ) -> tuple[QuadraticForm, Volumes]:
        """Count a matrix, or one that stands for several; returns its form to the power about 1, and its volumes."""
        tempered = form.tempered(1.0, power)
        self.total, self.count = self.total + times * form.scale_total, self.count + round(times * weight.matrix.size)
        some = Sample.of(weight, tempered)
        source = fit_sources({weight.name: some.weight}).get(weight.name)
        found = Volumes.none()
        if source is not None and some.form is not None:
            found = Volumes.products(*some.form.conditional_variances(source, some.weight.matrix))
        return tempered, Volumes(times * some.times * found.counts)

    def reached(self, weight: Weight, form: QuadraticForm) -> None:
        """Note the importance of a matrix that the data reached."""
        mean = float(form.diagonal().mean())
        if mean > 0:
            self.least[weight.matrix.shape] = min(mean, self.least.get(weight.matrix.shape, mean))


# Without data


def look(work: Work, pieces: Pieces, groups: Sequence[Group]) -> Study:
    """Look at the weights of groups alone, at some rows of each that is not kept as it is."""
    study, middle = Study(groups), groups[len(groups) // 2].name
    for done, group in enumerate(groups):
        found = [Volumes.none()]
        for weight, times in pieces.samples(group, SAMPLED, work.kept):
            if weight.is_vector:
                study.vectors[group.name] = study.vectors.get(group.name, 0) + weight.matrix.size
                continue
            form = weight_scale().forms({weight.name: weight})[weight.name]
            found.append(study.take_in(weight, form, 1.0, times)[1])
            if group.name == middle:
                study.pilot[weight.name] = Job(weight, work.quantizer, form)
        study.volumes[group.name] = sum(found[1:], found[0])
        work.tell("look", done + 1, len(groups))
    study.pilot_group = middle
    return study


# With data


@dataclass(frozen=True, eq=False)
class Passed:
    """The batches of this process on their way through the original.

    Attributes:
        batches: the batches.
        hidden: before every block and behind the last one, for every batch.
        calls: what every block is called with beside them, for every batch.
        there: which positions count, for every batch.
    """

    batches: Sequence[Any]
    hidden: list[list[Tensor]]
    calls: list[list[Call]]
    there: list[Tensor]


def pass_through(work: Work, flow: Flow, pieces: Pieces, batches: Sequence[Any]) -> Passed:
    """Let all batches through the original."""
    pieces.outside()
    with torch.no_grad():
        entered = [flow.enter(batch) for batch in batches]
        hidden = [[each.hidden for each in entered]]
        calls = [each.calls for each in entered]
        for number in range(len(flow.skeleton.blocks)):
            block = pieces.block(number)
            hidden.append(
                [flow.through(block.module, h, call[number]) for h, call in zip(hidden[-1], calls, strict=True)]
            )
            work.tell("forward", number + 1, len(flow.skeleton.blocks))
    return Passed(batches, hidden, calls, [each.there for each in entered])


@dataclass(frozen=True, eq=False)
class Survey:
    """Looks at a model block by block, from the last one to the first.

    Attributes:
        work: the model.
        flow: how batches go through it.
        pieces: its parts with their weights.
        power: to which importances are taken.
    """

    work: Work
    flow: Flow
    pieces: Pieces
    power: float

    def run(self, passed: Passed) -> Study:
        """Send the signals back and see what they say."""
        study, team = Study(self.work.groups), self.work.team
        outside = self.pieces.outside()
        ends = Sums(team)
        signals_back = self._from_output(passed, outside, ends)
        blocks = [group for group in self.work.groups if group.block is not None]
        for group in reversed(blocks):
            number = blocks.index(group)
            piece, sums = self.pieces.block(number), Sums(team)
            signals_back = self._through(passed, number, piece.module, sums, signals_back)
            self._learn(study, group, piece, gathered(sums.totals(), piece.shapes))
            self.work.tell("importance", len(blocks) - number, len(blocks))
        starts = Sums(team)
        self._from_input(passed, outside, starts, signals_back)
        self._outside(study, outside, ends.totals(), starts.totals())
        self._estimate(study)
        return study

    def _from_output(self, passed: Passed, piece: Piece, sums: Sums) -> list[Back]:
        found = []
        for batch, hidden, there in zip(passed.batches, passed.hidden[-1], passed.there, strict=True):
            at = hidden.detach().requires_grad_()
            with torch.no_grad():
                back = self._back(batch, self.flow.leave(batch, at), there)
            gradient = gather(sums, piece.parameters, partial(self.flow.leave, batch, at), back, at)
            assert gradient is not None
            found.append(Back(gradient, back.count))
        return found

    def _back(self, batch: Any, output: Tensor, there: Tensor) -> Back:
        """One signal that stands for the importance at the output, see `importance.signals`."""
        generator = torch.Generator().manual_seed(self.work.seed ^ fingerprint(as_keywords(batch)))
        if self.flow.output == "values":
            return Back(next(iter(signals.values_drawn(output, 1, generator))).float(), float(len(output)))
        rows = output.reshape(-1, output.shape[-1])
        signal = next(iter(signals.softmax_drawn(rows, 1.0, 1, generator))).float() * there[:, None]
        return Back(signal.reshape(output.shape), float(there.sum()))

    def _through(self, passed: Passed, number: int, block: nn.Module, sums: Sums, back: list[Back]) -> list[Back]:
        parameters, found = dict(block.named_parameters()), []
        for hidden, calls, each in zip(passed.hidden[number], passed.calls, back, strict=True):
            at = hidden.detach().requires_grad_()
            gradient = gather(sums, parameters, partial(self.flow.through, block, at, calls[number]), each, at)
            assert gradient is not None
            found.append(Back(gradient, each.count))
        return found

    def _from_input(self, passed: Passed, piece: Piece, sums: Sums, back: list[Back]) -> None:
        for batch, each in zip(passed.batches, back, strict=True):
            gather(sums, piece.parameters, partial(self._entered, batch), each)

    def _entered(self, batch: Any) -> Tensor:
        return self.flow.enter(batch).hidden

    def _learn(
        self, study: Study, group: Group, piece: Piece, found: Mapping[str, Gathered], *, keep: bool = False
    ) -> None:
        """Note what was found out about the tensors of a group.

        Args:
            study: where.
            group: whose tensors.
            piece: the part of the model that has them.
            found: forms of its parameters.
            keep: whether forms with cross terms are kept, not only their rows.
        """
        total, pilot = Volumes.none(), {}
        for key in keys_of(group, self.pieces.checkpoint.shapes):
            place = piece.places.get(key)
            each = None if place is None else _fitting(found.get(place.parameter), place)
            tensor = self.pieces.part(key)
            if tensor.dtype not in CODED_DTYPES or not tensor.numel() or key.partition("[")[0] in self.work.kept:
                continue
            weight = weight_of(key, tensor, _layout(each, tensor))
            if weight.is_vector:
                study.vectors[group.name] = study.vectors.get(group.name, 0) + weight.matrix.size
            if each is None or place is None:
                study.unknown += [] if weight.is_vector else [(group.name, key)]
                continue
            some = _range(place, each)
            form = each.form if some == slice(None) else each.form.rows_of(some)
            rows = None if each.rows is None else each.rows[some]
            kept = form if weight.is_vector or rows is None or keep else None
            study.known[key] = Known(weight.layout, kept, rows, each.reason)
            if not weight.is_vector:
                study.reached(weight, form)
                tempered, seen = study.take_in(weight, form, self.power)
                total, pilot[key] = total + seen, Job(weight, self.work.quantizer, tempered)
        study.volumes[group.name] = total
        if group.block is not None:
            study.pilot, study.pilot_group = pilot, group.name

    def _outside(self, study: Study, piece: Piece, ends: Mapping[str, Tensor], starts: Mapping[str, Tensor]) -> None:
        """Note what was found out about the tensors outside of the blocks; tied ones are at both ends."""
        at_start, at_end = ({name.partition(":")[2] for name in sums} for sums in (starts, ends))
        study.late = {
            key for key, place in piece.places.items() if place.parameter in at_end and place.parameter not in at_start
        }
        shapes = self.pieces.checkpoint.shapes
        study.groups = [part for group in self.work.groups for part in _split(group, study.late, shapes)]
        found = gathered({**ends, **starts}, piece.shapes)
        for group in (group for group in study.groups if group.block is None):
            self._learn(study, group, piece, found, keep=True)

    def _estimate(self, study: Study) -> None:
        """Price matrices that nothing is known of like the least important of their shape, or of all."""
        least = min(study.least.values(), default=1.0)
        for group, key in study.unknown:
            weight = weight_of(key, self.pieces.part(key), Layout(tuple(self.pieces.part(key).shape)))
            value = study.least.get(weight.matrix.shape, least)
            form = UnfactoredForm(np.full(weight.matrix.shape, value, np.float32), UNUSED)
            study.known[key] = Known(
                weight.layout, form, reason=f"{UNUSED}: priced like the least important of its kind"
            )
            study.volumes[group] += study.take_in(weight, form, self.power)[1]


def _split(group: Group, late: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> list[Group]:
    """A group with matrices on both sides of the blocks as two, for blocks are coded in between."""
    first, last = (tuple(name for name in group.tensors if (name in late) == end) for end in (False, True))
    if group.block is not None or not first or all(len(shapes[name]) < 2 for name in last):
        return [group]
    return [Group(group.name, first), Group(f"{group.name} behind the blocks", last)]


def keys_of(group: Group, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the tensors of a group; of stacks, names of their matrices."""
    found = []
    for name in group.tensors:
        shape = shapes[name]
        found += [part_name(name, index) for index in range(shape[0])] if is_stack(shape) else [name]
    return found


def _fitting(each: Gathered | None, place: Place) -> Gathered | None:
    """What is known of a parameter, where it says something of some of its rows."""
    whole = each is None or place.count == each.layout.shape[0]
    return each if whole or (each is not None and not each.layout.transposed) else None


def _layout(each: Gathered | None, tensor: Tensor) -> Layout:
    turned = each is not None and each.layout.transposed
    return Layout(tuple(tensor.shape), transposed=turned and tensor.ndim == 2)


def _range(place: Place, each: Gathered) -> slice:
    """Which rows of the matrix of a parameter a tensor is; all of a vector."""
    whole = len(each.layout.shape) < 2 or place.count == each.layout.shape[0]
    return slice(None) if whole else slice(place.start, place.start + place.count)
