"""What is known of a model before its first tensor is coded: what errors cost everywhere, and how many bits that takes.

```
batches --forward, block by block--> hidden states before every block
        <-backward, block by block-- signals of the importance: rows of every factor, forms of vectors and tables
```
Of a block only a vector for every matrix is kept; factors over columns are measured again where they are needed, on what
the compressed blocks before hand on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.allocate import Job
from waterfill.blocks.flow import Call, Flow
from waterfill.blocks.gather import Gathered, gather, gathered
from waterfill.blocks.groups import Group
from waterfill.blocks.outlook import Volumes
from waterfill.blocks.pieces import Piece, Pieces
from waterfill.blocks.ranks import Ranks
from waterfill.blocks.sums import Sums
from waterfill.importance import signals, weight_scale
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import DiagonalForm
from waterfill.importance.state import fingerprint
from waterfill.limits import fit_sources, volumes
from waterfill.models.state_dict import weight_of
from waterfill.protocols import Progress, QuadraticForm, Quantizer
from waterfill.records import Floats, Layout, Weight
from waterfill.theory.scaled_source import ScaledSource
from waterfill.theory.spectra import pivots

SAMPLED = 1 << 18
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
    rows: np.ndarray | None = None
    reason: str = ""


@dataclass(eq=False)
class Study:
    """What is known of a model.

    Attributes:
        known: by name of the tensor, or of its matrix `name[index]`.
        volumes: of every group, for importances to the power and of the mean 1.
        vectors: number of values of vectors in every group.
        pilot: matrices to find out on how many bits codes take; of one group.
        pilot_group: name of that group.
        total: sum of the scales of all importances, see `KroneckerForm.scale_total`.
        count: number of weights of which it is the sum.
        early: names of tensors outside of the blocks that are needed before the first block.
    """

    known: dict[str, Known] = field(default_factory=dict)
    volumes: dict[str, Volumes] = field(default_factory=dict)
    vectors: dict[str, int] = field(default_factory=dict)
    pilot: dict[str, Job] = field(default_factory=dict)
    pilot_group: str = ""
    total: float = 0.0
    count: int = 0
    early: set[str] = field(default_factory=set)

    @property
    def mean(self) -> float:
        """Mean of the scales of all importances; about this importances are taken to a power."""
        return self.total / self.count if self.total > 0 else 1.0


def priced(weight: Weight, form: QuadraticForm, power: float) -> tuple[QuadraticForm, Volumes, float]:
    """A form to the power and of the mean 1, the volumes under it, and the sum of its scales before."""
    assert isinstance(form, KroneckerForm | DiagonalForm)
    tempered = form.tempered(1.0, power) if power != 1 else form
    source = fit_sources({weight.name: weight}).get(weight.name)
    return tempered, Volumes.none() if source is None else _volumes(weight, source, tempered), form.scale_total


def _volumes(weight: Weight, source: ScaledSource, form: QuadraticForm) -> Volumes:
    if not isinstance(form, KroneckerForm):
        return Volumes.of(volumes(weight, source, form))
    rows, columns = source.power_factors()
    inputs = form.columns.shape[1]
    left = pivots(form.columns, np.broadcast_to(columns, (1, inputs)))[0]
    return Volumes.products(form.rows * np.broadcast_to(rows, len(form.rows)), left)


# Without data


def without_data(groups: Sequence[Group], pieces: Pieces, quantizer: Quantizer, progress: Progress | None) -> Study:
    """Look at the weights alone, at some rows of each."""
    study, middle = Study(), groups[len(groups) // 2].name
    for done, group in enumerate(groups):
        found = [Volumes.none()]
        for weight, times in pieces.samples(group, SAMPLED):
            if weight.is_vector:
                study.vectors[group.name] = study.vectors.get(group.name, 0) + weight.matrix.size
                continue
            form = weight_scale().forms({weight.name: weight})[weight.name]
            _, each, total = priced(weight, form, 1.0)
            found.append(Volumes(times * each.counts))
            study.total += times * total
            study.count += int(times * weight.matrix.size)
            if group.name == middle:
                study.pilot[weight.name] = Job(weight, quantizer, form)
        study.volumes[group.name] = sum(found[1:], found[0])
        _tell(progress, "look", done + 1, len(groups))
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


def pass_through(flow: Flow, pieces: Pieces, batches: Sequence[Any], progress: Progress | None) -> Passed:
    """Let all batches through the original."""
    with torch.no_grad():
        entered = [flow.enter(batch) for batch in batches]
        hidden = [[each.hidden for each in entered]]
        calls = [each.calls for each in entered]
        for number in range(len(flow.skeleton.blocks)):
            block = pieces.block(number)
            hidden.append([flow.through(block.module, h, call[number]) for h, call in zip(hidden[-1], calls, strict=True)])
            _tell(progress, "forward", number + 1, len(flow.skeleton.blocks))
    return Passed(batches, hidden, calls, [each.there for each in entered])


@dataclass(frozen=True, eq=False)
class Survey:
    """Looks at a model block by block, from the last one to the first.

    Attributes:
        flow: how batches go through it.
        pieces: its parts with their weights.
        groups: its tensors.
        power: to which importances are taken.
        quantizer: of the matrices.
        team: the processes.
        seed: of what is drawn.
        progress: called as work goes on.
    """

    flow: Flow
    pieces: Pieces
    groups: Sequence[Group]
    power: float
    quantizer: Quantizer
    team: Ranks
    seed: int
    progress: Progress | None

    def run(self, passed: Passed) -> Study:
        """Send the signals back and see what they say."""
        study = Study()
        outside = self.pieces.outside()
        ends = Sums(self.team)
        signals_back = self._from_output(passed, outside, ends)
        blocks = [group for group in self.groups if group.block is not None]
        for group in reversed(blocks):
            number = blocks.index(group)
            piece, sums = self.pieces.block(number), Sums(self.team)
            signals_back = self._through(passed, number, piece.module, sums, signals_back)
            self._learn(study, group, piece, gathered(sums.totals(), piece.shapes))
            _tell(self.progress, "importance", len(blocks) - number, len(blocks))
        starts = Sums(self.team)
        self._from_input(passed, outside, starts, signals_back)
        self._outside(study, outside, ends.totals(), starts.totals())
        return study

    def _from_output(self, passed: Passed, piece: Piece, sums: Sums) -> list[Tensor]:
        found = []
        for batch, hidden in zip(passed.batches, passed.hidden[-1], strict=True):
            hidden = hidden.detach().requires_grad_()
            with torch.no_grad():
                output = self.flow.leave(batch, hidden)
            signal = self._signal(batch, output)
            back = gather(sums, piece.parameters, lambda b=batch, h=hidden: self.flow.leave(b, h), signal, hidden)  # type: ignore[misc]
            assert back is not None
            found.append(back)
        return found

    def _signal(self, batch: Any, output: Tensor) -> Tensor:
        """One signal that stands for the importance at the output, see `importance.signals`."""
        from waterfill.blocks.flow import as_keywords

        inputs = as_keywords(batch)
        generator = torch.Generator().manual_seed(self.seed ^ fingerprint(inputs))
        if self.flow.output == "values":
            return next(iter(signals.values_drawn(output, 1, generator))).float()
        rows = output.reshape(-1, output.shape[-1])
        signal = next(iter(signals.softmax_drawn(rows, 1.0, 1, generator))).float().reshape(output.shape)
        mask = inputs.get("attention_mask")
        return signal if mask is None else signal * mask.to(signal)[..., None]

    def _through(self, passed: Passed, number: int, block: nn.Module, sums: Sums, back: list[Tensor]) -> list[Tensor]:
        parameters, found = dict(block.named_parameters()), []
        for hidden, calls, signal in zip(passed.hidden[number], passed.calls, back, strict=True):
            at = hidden.detach().requires_grad_()
            run = lambda h=at, c=calls: self.flow.through(block, h, c[number])  # noqa: E731
            gradient = gather(sums, parameters, run, signal, at)
            assert gradient is not None
            found.append(gradient)
        return found

    def _from_input(self, passed: Passed, piece: Piece, sums: Sums, back: list[Tensor]) -> None:
        for batch, signal in zip(passed.batches, back, strict=True):
            gather(sums, piece.parameters, lambda b=batch: self.flow.enter(b).hidden, signal)  # type: ignore[misc]

    def _learn(self, study: Study, group: Group, piece: Piece, found: Mapping[str, Gathered]) -> None:
        """Note what was found out about the tensors of a block."""
        total, pilot = Volumes.none(), {}
        for key, place in piece.places.items():
            each = found.get(place.parameter)
            weight = weight_of(key, self.pieces.part(key), _layout(each, self.pieces.part(key)))
            if weight.is_vector:
                study.vectors[group.name] = study.vectors.get(group.name, 0) + weight.matrix.size
            if each is None:
                continue
            form = _rows(each.form, place.start, place.count, weight)
            whole = form if each.rows is None or weight.is_vector else None
            rows = None if each.rows is None else each.rows[place.start : place.start + place.count]
            study.known[key] = Known(weight.layout, form if whole is not None else None, rows, each.reason)
            if weight.is_vector:
                continue
            tempered, seen, scales = priced(weight, form, self.power)
            total, study.total, study.count = total + seen, study.total + scales, study.count + weight.matrix.size
            pilot[key] = Job(weight, self.quantizer, tempered)
        study.volumes[group.name], study.pilot, study.pilot_group = total, pilot, group.name

    def _outside(
        self, study: Study, piece: Piece, ends: Mapping[str, Tensor], starts: Mapping[str, Tensor]
    ) -> None:
        """Note what was found out about the tensors outside of the blocks; tied ones are at both ends."""
        both = {**ends, **starts}
        found = gathered(both, piece.shapes)
        pilot = study.pilot, study.pilot_group
        for group in (group for group in self.groups if group.block is None):
            own = {key: place for key, place in piece.places.items() if key.partition("[")[0] in group.tensors}
            self._learn(study, group, Piece(piece.module, piece.parameters, own), found)
            for key, place in own.items():
                if place.parameter in found and key in study.known and study.known[key].rows is not None:
                    kept = _rows(found[place.parameter].form, place.start, place.count, None)
                    study.known[key] = Known(study.known[key].layout, kept, study.known[key].rows)
        study.pilot, study.pilot_group = pilot
        at_end = {name.partition(":")[2] for name in ends}
        at_start = {name.partition(":")[2] for name in starts}
        study.early = {key for key, place in piece.places.items() if place.parameter in at_start or place.parameter not in at_end}


def _layout(each: Gathered | None, tensor: Tensor) -> Layout:
    turned = each is not None and each.layout.transposed
    return Layout(tuple(tensor.shape), transposed=turned and tensor.ndim == 2)


def _rows(form: QuadraticForm, start: int, count: int, weight: Weight | None) -> QuadraticForm:
    """The form of some rows of a parameter."""
    del weight
    if isinstance(form, KroneckerForm):
        whole = len(form.rows) == count
        from dataclasses import replace

        return form if whole else replace(form, rows=form.rows[start : start + count])
    values: Floats = form.diagonal()
    return form if len(values) in (1, count) else DiagonalForm(values[start : start + count])


def _tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)
