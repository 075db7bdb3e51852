"""Survey a model directory before its first tensor is coded: the cost of errors, and how many bits that takes.

```
batches --forward, block by block--> hidden states before every block
        <-backward, block by block-- gradients at the output: rows of every factor, forms of vectors and tables
```
Of a block only a vector for every matrix is kept; factors over columns are measured again where they are needed, on
what the compressed blocks before hand on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.bundle import Checkpoint, part_name
from waterfill.compression.bases import Bases, form_in_basis, in_basis
from waterfill.compression.block_forward import BlockForward, Call, as_keywords
from waterfill.compression.checkpoint_groups import TensorGroup
from waterfill.compression.checkpoint_source import CheckpointSource
from waterfill.compression.encoder import zero_cost
from waterfill.compression.kfac_statistics import (
    UNUSED,
    OutputGradient,
    ParameterStatistics,
    add_batch,
    add_last_batch,
    parameter_statistics,
)
from waterfill.compression.least_prices import LIKE_THE_LEAST, LeastPrices
from waterfill.compression.limits import SourceModels, TensorModel
from waterfill.compression.loaded_parts import LoadedPart, PartLoader, tensor_or_matrix
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.compression.settings import Settings
from waterfill.compression.tensor_slices import WholeTensor, rows_of_slice
from waterfill.importance import kronecker
from waterfill.importance.exact_sum import ExactSum
from waterfill.importance.forms import DiagonalForm, Doubles
from waterfill.importance.weight_excess import tempered, weight_excess
from waterfill.models.batches import checksum
from waterfill.models.placement import has_room
from waterfill.models.skeleton import Place, is_stack
from waterfill.models.state_dict import CODED_DTYPES, weight_of
from waterfill.protocols import QuadraticForm
from waterfill.records import Layout, Weight

FormFinder: TypeAlias = Callable[[Weight], QuadraticForm | None]
"""Gives the form of a tensor of a checkpoint, or of a matrix of one; None where it is not known."""


@dataclass(frozen=True, eq=False)
class TensorSensitivity:
    """Cost of errors in a tensor, or in a matrix of it.

    Attributes:
        layout: how it is read as a matrix.
        form: what errors cost; None where that is not known.
        reason: why the form is coarser than it could be; usually empty.
    """

    layout: Layout
    form: QuadraticForm | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class CrossedSensitivity(TensorSensitivity):
    """Cost of errors in a matrix, priced with cross terms for inputs that are measured again.

    Attributes:
        form: for inputs of one size, or as it was estimated.
        rows: factor over the rows for a factor over columns of the trace 1, [out].
    """

    form: QuadraticForm = field(kw_only=True)
    rows: Doubles = field(kw_only=True)

    @classmethod
    def of_rows(cls, layout: Layout, rows: Doubles, form: QuadraticForm, reason: str) -> CrossedSensitivity:
        """Keep of a form no more than its rows: its diagonal is that of inputs of one size."""
        inputs = layout.numel // max(1, len(rows))
        values = np.broadcast_to((rows[:, None] / inputs).astype(np.float32), (len(rows), inputs))
        diagonal = DiagonalForm(values, factor=form.factor, unit=form.unit)
        return cls(layout, reason=reason, form=diagonal, rows=rows)


Head: TypeAlias = tuple[Weight, QuadraticForm]
"""The first rows of a matrix, as many as are coded in one piece, and what their errors cost."""


@dataclass(eq=False)
class ModelStatistics:
    """Statistics of a model before it is coded.

    Forms are taken to the power about 1 while the mean of all is not known; `scale` turns what was counted so into what
    counts about the mean.

    Attributes:
        groups: of the model, in the order of the file.
        power: to which importances are taken.
        sources: models of the tensors.
        known: by name of the tensor, or of its matrix `name[index]`.
        components: of every matrix, about 1, by group and by name.
        vectors: number of values of vectors in every group.
        pilot: matrices of one group, to find out on how many bits codes take.
        pilot_group: name of that group.
        late: names of tensors outside of the blocks that are first used behind the last block.
        exactly: whether components are those of the limit, by eigenvalues, and kept tensor by tensor.
        models: of all tensors that have one, where they are kept.
        bases: in which the tensors are coded; None where nothing is.
    """

    groups: Sequence[TensorGroup]
    power: float
    exactly: bool = False
    bases: Bases | None = None
    models: dict[str, TensorModel] = field(default_factory=dict)
    sources: SourceModels = field(default_factory=SourceModels)
    known: dict[str, TensorSensitivity] = field(default_factory=dict)
    components: dict[str, dict[str, VarianceHistogram]] = field(default_factory=lambda: defaultdict(dict))
    vectors: dict[str, int] = field(default_factory=dict)
    pilot: dict[str, tuple[Weight, QuadraticForm]] = field(default_factory=dict)
    pilot_group: str = ""
    late: set[str] = field(default_factory=set)
    _scale_total: float = 0.0
    _zero_total: float = 0.0
    _count: int = 0

    @property
    def mean(self) -> float:
        """Mean of the scales of all importances, see `mean_scale`; about this they are taken to the power."""
        return self._scale_total / self._count if self._scale_total > 0 else 1.0

    @property
    def scale(self) -> float:
        """Factor that turns costs about 1 into costs about the mean."""
        return float(self.mean ** (1 - self.power))

    @property
    def zero_cost(self) -> float:
        """Mean cost of a matrix weight that is set to zero."""
        return self.scale * self._zero_total / self._count if self._zero_total > 0 else 1.0

    def has_matrices(self, group: str) -> bool:
        """Whether a group has matrices that take bits."""
        return any(each.number > 0 for each in self.components[group].values())

    def add_vector(self, group: str, weight: Weight, form: QuadraticForm | None = None) -> None:
        """Count a vector."""
        self.vectors[group] = self.vectors.get(group, 0) + weight.matrix.size
        if self.exactly:
            self._exact(weight, form)

    def add_matrix(
        self, group: str, weight: Weight, form: QuadraticForm, times: float = 1.0, head: Head | None = None
    ) -> None:
        """Count a matrix, or some rows of one.

        Args:
            group: of the matrix.
            weight: it, or some of its rows.
            form: of these.
            times: how many times as many there are.
            head: its first rows as they are coded, with their form, by which a basis is chosen; None for the matrix.
        """
        priced = tempered(form, weight.matrix, 1.0, self.power)
        self._scale_total += times * form.scale_total * weight_excess(weight.matrix) ** 2
        self._count += round(times * weight.matrix.size)
        self._zero_total += times * zero_cost(weight, priced)
        found = self._exact(weight, priced) if self.exactly else self._coded(weight, priced, head or (weight, form))
        self.components[group][weight.name] = found.repeated(times)

    def _coded(self, weight: Weight, priced: QuadraticForm, head: Head) -> VarianceHistogram:
        """Components of a matrix as it is coded: by its first rows, if that is in another basis."""
        first, form = head
        of_first = tempered(form, first.matrix, 1.0, self.power)
        basis = None if self.bases is None else self.bases.of(first, lambda: of_first)
        if basis is None:
            return self.sources.forecast(weight, priced)
        found = SourceModels().forecast(in_basis(first, basis), form_in_basis(of_first, basis, first.layout))
        return found.repeated(weight.matrix.size / first.matrix.size)

    def _exact(self, weight: Weight, form: QuadraticForm | None) -> VarianceHistogram:
        """Components of the limit; the model of the tensor is kept, but not its form."""
        self.models |= self.sources.models({weight.name: weight}, {weight.name: form})
        self.sources.forget([weight.name])
        known = self.models.get(weight.name)
        return VarianceHistogram.none() if known is None else known.components.variances


def directory_bases(settings: Settings, *, mixes_rows: bool = True) -> Bases:
    """Bases of the tensors of a directory, of which no level is known before they are chosen; see `Bases`."""
    return Bases(settings.quantizer, mixes_rows=mixes_rows, processes=settings.processes, memo=settings.memo)


# Without data


def weight_sensitivity(form_of: FormFinder, key: str, tensor: Tensor) -> TensorSensitivity:
    """Cost of errors in a tensor by an estimator that looks at it alone."""
    layout = Layout(tuple(tensor.shape))
    if tensor.dtype not in CODED_DTYPES or not tensor.numel():
        return TensorSensitivity(layout)
    return TensorSensitivity(layout, form_of(weight_of(key, tensor, layout)))


def survey_forms(
    source: CheckpointSource,
    power: float,
    form_of: FormFinder,
    settings: Settings,
    *,
    exactly: bool = False,
    most: int | None = None,
) -> ModelStatistics:
    """Look at all tensors, of which an estimator says what errors cost without cross terms.

    Args:
        source: the tensors.
        power: to which importances are taken.
        form_of: gives the form of a tensor, or of a matrix of one; None where it is not known.
        settings: of the compression.
        exactly: see `ModelStatistics`.
        most: values of a matrix that are looked at, about; what is found of them alone is not kept. None for all.
    """
    bases = directory_bases(settings, mixes_rows=False)
    survey = _Survey(source, power, bases, exactly=exactly)
    for done, group in enumerate(source.groups):
        survey.learn_forms(group, form_of, most)
        settings.tell("look", done + 1, len(source.groups))
    survey.estimate_unknown()
    return survey.found


# With data


@dataclass(frozen=True, eq=False)
class OriginalPass:
    """The batches of this process on their way through the original.

    Attributes:
        batches: those to fit to, then those that are held out.
        fitted: how many there are to fit to.
        hidden: before every block and behind the last one, for every batch; on the device of the model where all of
            them have room there, else on the CPU.
        calls: what every block is called with beside them, for every batch.
        masks: which positions count, for every batch.
    """

    batches: Sequence[Any]
    fitted: int
    hidden: list[list[Tensor]]
    calls: list[list[Call]]
    masks: list[Tensor]

    @property
    def fitting_masks(self) -> dict[int, Tensor]:
        """Masks of the batches to fit to, by number."""
        return dict(enumerate(self.masks[: self.fitted]))


def run_original(
    forward: BlockForward, loader: PartLoader, batches: Sequence[Any], fitted: int, settings: Settings
) -> OriginalPass:
    """Let all batches through the original.

    Args:
        forward: how batches go through the blocks.
        loader: has the blocks.
        batches: those to fit to first.
        fitted: how many these are.
        settings: of the compression.
    """
    _ = loader.outside
    count = len(loader.skeleton.blocks)
    with torch.no_grad():
        embedded = [forward.embed(batch) for batch in batches]
        size = (count + 1) * sum(each.hidden.nbytes for each in embedded)
        place = forward.device if has_room(forward.device, size) else torch.device("cpu")
        hidden = [[each.hidden.to(place) for each in embedded]]
        calls = [each.calls for each in embedded]
        for number in range(count):
            block = loader.block(number).module
            found = (forward.run_block(block, h, call[number]) for h, call in zip(hidden[-1], calls, strict=True))
            hidden.append([each.to(place) for each in found])
            settings.tell("forward", number + 1, count)
    return OriginalPass(batches, fitted, hidden, calls, [each.mask for each in embedded])


@dataclass(frozen=True, eq=False)
class BackwardPass:
    """Sends gradients back through a model block by block, from the last one to the first.

    Attributes:
        source: the tensors.
        forward: how batches go through the blocks.
        loader: has the blocks.
        estimator: what is estimated.
        settings: of the compression.
        exactly: see `ModelStatistics`.
    """

    source: CheckpointSource
    forward: BlockForward
    loader: PartLoader
    estimator: kronecker
    settings: Settings
    exactly: bool = False

    def run(self, passed: OriginalPass, power: float) -> ModelStatistics:
        """Estimate what errors cost everywhere.

        Args:
            passed: the batches in the original.
            power: to which importances are taken.
        """
        statistics = _Survey(self.source, power, directory_bases(self.settings), exactly=self.exactly)
        processes = self.settings.processes
        outside = self.loader.outside
        ends = ExactSum(processes)
        gradients = self._from_output(passed, outside, ends)
        blocks = [group for group in self.source.groups if group.block is not None]
        for number, group in reversed(list(enumerate(blocks))):
            part, sums = self.loader.block(number), ExactSum(processes)
            gradients = self._through_block(passed, number, part.module, sums, gradients)
            statistics.learn(group, part, self._statistics(sums.totals(), part))
            self.settings.tell("importance", len(blocks) - number, len(blocks))
        starts = ExactSum(processes)
        self._to_input(passed, outside, starts, gradients)
        first, last = starts.totals(), ends.totals()
        statistics.learn_outside(outside, self._statistics({**last, **first}, outside), _names(first), _names(last))
        statistics.estimate_unknown()
        return statistics.found

    def _statistics(self, totals: MutableMapping[str, Tensor], part: LoadedPart) -> dict[str, ParameterStatistics]:
        return parameter_statistics(totals, part.shapes, self.forward.distortion.factor, self.forward.distortion.unit)

    def _from_output(self, passed: OriginalPass, part: LoadedPart, sums: ExactSum) -> list[OutputGradient]:
        found = []
        for number in range(passed.fitted):
            batch, mask = passed.batches[number], passed.masks[number]
            at = passed.hidden[-1][number].detach().requires_grad_()
            with torch.no_grad():
                drawn = self._drawn(batch, self.forward.head(batch, at), mask)
            gradient = add_batch(sums, part.parameters, partial(self.forward.head, batch, at), drawn, at)
            found.append(OutputGradient(gradient, drawn.count))
        return found

    def _drawn(self, batch: Any, output: Tensor, mask: Tensor) -> OutputGradient:
        """One random vector that stands for the importance at the output, see `Distortion.draw`."""
        generator = torch.Generator().manual_seed(self.estimator.seed ^ checksum(as_keywords(batch)))
        return OutputGradient(*self.forward.distortion.draw(output, mask, self.estimator.temperature, generator))

    def _through_block(
        self, passed: OriginalPass, number: int, block: nn.Module, sums: ExactSum, gradients: list[OutputGradient]
    ) -> list[OutputGradient]:
        parameters, found = dict(block.named_parameters()), []
        for batch, each in enumerate(gradients):
            at = passed.hidden[number][batch].detach().requires_grad_()
            run = partial(self.forward.run_block, block, at, passed.calls[batch][number])
            gradient = add_batch(sums, parameters, run, each, at)
            found.append(OutputGradient(gradient, each.count))
        return found

    def _to_input(
        self, passed: OriginalPass, part: LoadedPart, sums: ExactSum, gradients: list[OutputGradient]
    ) -> None:
        for batch, each in zip(passed.batches, gradients, strict=False):
            add_last_batch(sums, part.parameters, partial(self._embedded, batch), each)

    def _embedded(self, batch: Any) -> Tensor:
        return self.forward.embed(batch).hidden


class _Survey:
    """Statistics of a model as they are found out, group by group."""

    def __init__(self, source: CheckpointSource, power: float, bases: Bases, *, exactly: bool) -> None:
        self.found = ModelStatistics(source.groups, power, exactly, bases=None if exactly else bases)
        self._source = source
        self._checkpoint: Checkpoint = source.checkpoint
        self._prices = LeastPrices()
        self._unknown: list[tuple[str, str]] = []

    def learn(
        self, group: TensorGroup, part: LoadedPart, found: Mapping[str, ParameterStatistics], *, keep: bool = False
    ) -> None:
        """Note what was found out about the tensors of a group.

        Args:
            group: whose tensors.
            part: the part of the model that has them.
            found: forms of its parameters.
            keep: whether forms with cross terms are kept, not only their rows.
        """
        pilot: dict[str, tuple[Weight, QuadraticForm]] = {}
        for key in keys_of(group, self._checkpoint.shapes):
            place, tensor = part.places.get(key), tensor_or_matrix(self._checkpoint, key)
            each = None if place is None else _fitting(found.get(place.parameter), place)
            if tensor.dtype not in CODED_DTYPES or not tensor.numel() or key.partition("[")[0] in self._source.kept:
                continue
            weight = weight_of(key, tensor, _layout(each, tensor))
            form = None if each is None or place is None else self._know(weight, _range(place, each), each, keep=keep)
            self._count(group.name, weight, form, pilot)
        self._take_pilot(group, pilot)

    def learn_forms(self, group: TensorGroup, form_of: FormFinder, most: int | None) -> None:
        """Note what an estimator says about the tensors of a group."""
        pilot: dict[str, tuple[Weight, QuadraticForm]] = {}
        for key in keys_of(group, self._checkpoint.shapes):
            tensor = tensor_or_matrix(self._checkpoint, key)
            if tensor.dtype not in CODED_DTYPES or not tensor.numel() or key.partition("[")[0] in self._source.kept:
                continue
            step = max(1, -(-tensor.numel() // most)) if most and tensor.ndim > 1 else 1
            some = tensor[::step]
            weight = weight_of(key, some, Layout(tuple(some.shape)))
            form = form_of(weight)
            if form is not None and most is None:
                self.found.known[key] = TensorSensitivity(weight.layout, form)
                self._prices.note(weight, form)
            head = None if step == 1 else self._head(key, tensor, form_of)
            self._count(group.name, weight, form, pilot, tensor.numel() / some.numel(), head)
        if most is not None:
            self.found.sources.forget(keys_of(group, self._checkpoint.shapes))
        self._take_pilot(group, pilot)

    def _take_pilot(self, group: TensorGroup, pilot: dict[str, tuple[Weight, QuadraticForm]]) -> None:
        """Take a block as the pilot; another group where there are no blocks."""
        if pilot and (group.block is not None or not self.found.pilot):
            self.found.pilot, self.found.pilot_group = pilot, group.name

    def _count(
        self,
        group: str,
        weight: Weight,
        form: QuadraticForm | None,
        pilot: dict[str, tuple[Weight, QuadraticForm]],
        times: float = 1.0,
        head: Head | None = None,
    ) -> None:
        if weight.is_vector:
            self.found.add_vector(group, weight, form)
        elif form is None:
            self._unknown.append((group, weight.name))
        else:
            head = head or _head_of(weight, form)
            self.found.add_matrix(group, weight, form, times, head)
            turned = self.found.bases is not None and self.found.bases.of(head[0], lambda: form) is not None
            pilot[weight.name] = head if turned else (weight, form)

    def _head(self, key: str, tensor: Tensor, form_of: FormFinder) -> Head | None:
        """The first rows of a tensor, whatever of it was looked at before."""
        (piece, *_) = WholeTensor(key, tensor, Layout(tuple(tensor.shape))).slices()
        form = None if piece.weight is None else form_of(piece.weight)
        return None if piece.weight is None or form is None else (piece.weight, form)

    def _know(self, weight: Weight, rows: slice, each: ParameterStatistics, *, keep: bool) -> QuadraticForm:
        """Note what errors in one tensor cost."""
        form = each.form if rows == slice(None) else each.form.rows_of(rows)
        known = TensorSensitivity(weight.layout, form, each.reason)
        if each.rows is not None and not weight.is_vector:
            known = CrossedSensitivity.of_rows(weight.layout, each.rows[rows], form, each.reason)
            known = replace(known, form=form) if keep else known
        self.found.known[weight.name] = known
        self._prices.note(weight, form)
        return form

    def learn_outside(
        self,
        part: LoadedPart,
        found: Mapping[str, ParameterStatistics],
        at_start: Collection[str],
        at_end: Collection[str],
    ) -> None:
        """Note what was found out about the tensors outside of the blocks; tied ones are at both ends."""
        self.found.late = {
            key for key, place in part.places.items() if place.parameter in at_end and place.parameter not in at_start
        }
        shapes = self._checkpoint.shapes
        self.found.groups = [each for group in self._source.groups for each in _split(group, self.found.late, shapes)]
        for group in (group for group in self.found.groups if group.block is None):
            self.learn(group, part, found, keep=True)

    def estimate_unknown(self) -> None:
        """Price matrices that nothing is known of like the least important of their shape, or of all."""
        for group, key in self._unknown:
            tensor = tensor_or_matrix(self._checkpoint, key)
            weight = weight_of(key, tensor, Layout(tuple(tensor.shape)))
            form = self._prices.form(weight, UNUSED)
            self.found.known[key] = TensorSensitivity(weight.layout, form, f"{UNUSED}: {LIKE_THE_LEAST}")
            self.found.add_matrix(group, weight, form)


def _head_of(weight: Weight, form: QuadraticForm) -> Head:
    """The first rows of a matrix that are coded in one piece."""
    layout = weight.layout
    rows = rows_of_slice(layout)
    if rows >= layout.shape[0]:  # the first axis of the tensor, which is not that of the rows of a transposed one
        return weight, form
    some = Weight(part_name(weight.name, 0, rows), weight.matrix[:rows], Layout((rows, *layout.shape[1:])))
    return some, form.rows_of(slice(0, rows))


def _names(sums: Mapping[str, Tensor]) -> set[str]:
    return {name.partition(":")[2] for name in sums}


def _split(group: TensorGroup, late: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> list[TensorGroup]:
    """A group with matrices on both sides of the blocks as two, for blocks are coded in between."""
    first, last = (tuple(name for name in group.tensors if (name in late) == end) for end in (False, True))
    if group.block is not None or not first or all(len(shapes[name]) < 2 for name in last):
        return [group]
    return [TensorGroup(group.name, first), TensorGroup(f"{group.name} behind the blocks", last)]


def keys_of(group: TensorGroup, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the tensors of a group; of stacks, names of their matrices."""
    found = []
    for name in group.tensors:
        shape = shapes[name]
        found += [part_name(name, index) for index in range(shape[0])] if is_stack(shape) else [name]
    return found


def _fitting(each: ParameterStatistics | None, place: Place) -> ParameterStatistics | None:
    """Statistics of a parameter where they say something of the rows at a place; None otherwise."""
    whole = each is None or place.count == each.layout.shape[0]
    return each if whole or (each is not None and not each.layout.transposed) else None


def _layout(each: ParameterStatistics | None, tensor: Tensor) -> Layout:
    turned = each is not None and each.layout.transposed
    return Layout(tuple(tensor.shape), transposed=turned and tensor.ndim == 2)


def _range(place: Place, each: ParameterStatistics) -> slice:
    """Rows that a tensor is of the matrix of a parameter; all of a vector."""
    whole = len(each.layout.shape) < 2 or place.count == each.layout.shape[0]
    return slice(None) if whole else slice(place.start, place.start + place.count)
