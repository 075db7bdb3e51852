"""Segments of a model: what is quantized together, and how it runs meanwhile.

A file, or a model without data, is stored tensors alone. A model in memory is one segment, seen in one pass. A model
directory is a row of segments: what is before the blocks, every transformer block, what is behind them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from torch import Tensor

from waterfill.compression.calibration import CalibratedModel
from waterfill.compression.checkpoint_groups import TensorGroup
from waterfill.compression.layer_stages import (
    BlockRun,
    InputMoments,
    VisitedMatrix,
    agreed,
    input_moments,
    layer_inputs,
    stages,
)
from waterfill.compression.loaded_parts import LoadedPart
from waterfill.compression.sensitivity import CrossedSensitivity, TensorSensitivity
from waterfill.compression.statistics_correction import correct
from waterfill.compression.target_correction import LayerInputs, Requantization, Visit
from waterfill.compression.tensor_slices import TensorSlice, WholeTensor
from waterfill.importance.exact_sum import ExactSum
from waterfill.models import torch_module
from waterfill.models.state_dict import values_of, weight_of
from waterfill.processes import Processes
from waterfill.protocols import Progress, QuadraticForm
from waterfill.records import Entry, Inventory, Layout

NO_REASONS: Mapping[str, str] = MappingProxyType({})


class Segment(ABC):
    """A part of a model that is quantized at one level."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the segment; of its payload in a directory."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Entries of its file that are known in advance, in their order."""
        return {}

    @abstractmethod
    def independent(self) -> Iterable[TensorSlice]:
        """Slices that are quantized before the segment runs, for their own values."""

    def start(self) -> None:  # noqa: B027 - nothing to do where nothing is compressed beside the file
        """Begin anew: what is compressed has the values of the original again."""

    def slices_of(self, name: str) -> Iterable[TensorSlice]:
        """The slices of a matrix that is visited."""
        return [each for each in self.independent() if each.tensor == name]

    def run(self, visit: Visit) -> None:  # noqa: B027
        """Visit matrices in the order in which the model uses them, write back what they get, correct statistics."""

    def remaining(self, coded: Collection[str]) -> Iterable[TensorSlice]:
        """Slices that are left when it has run: vectors as they are now, and all that were not visited.

        Args:
            coded: names of the tensors that are done.
        """
        del coded
        return ()

    def write(self, piece: TensorSlice, values: Callable[[], Tensor]) -> None:  # noqa: B027
        """Give a slice of the compressed segment its values, which are decoded where somebody looks at them."""

    def finish(self) -> None:  # noqa: B027
        """Take what was quantized last for good."""


@dataclass(frozen=True, eq=False)
class StoredTensors(Segment):
    """Tensors that are quantized without running anything.

    Attributes:
        group: name of the segment.
        read: gives all slices.
        known: entries that are known in advance.
    """

    group: str
    read: Callable[[], Iterable[TensorSlice]]
    known: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Entries that are known in advance."""
        return self.known

    def independent(self) -> Iterable[TensorSlice]:
        """All slices."""
        return self.read()


def slices_of_inventory(
    inventory: Inventory, forms: Mapping[str, QuadraticForm], reasons: Mapping[str, str] = NO_REASONS
) -> Iterator[TensorSlice]:
    """Every entry of a model in memory as one slice, those that are stored without loss and those that are coded.

    Args:
        inventory: the tensors.
        forms: what errors cost, by name.
        reasons: why some are priced in a special way, by name.
    """
    for entry in inventory.entries:
        if (weight := inventory.weights.get(entry.name)) is not None:
            reason = reasons.get(entry.name, "")
            yield TensorSlice(entry, entry.name, weight, forms.get(entry.name), reason=reason)
        elif entry.name in inventory.exact:
            yield TensorSlice(entry, entry.name, exact=inventory.exact[entry.name])


def entries_by_name(inventory: Inventory) -> dict[str, Entry]:
    """The entries of a model, in their order."""
    return {entry.name: entry for entry in inventory.entries}


@dataclass(frozen=True, eq=False)
class WholeModel(Segment):
    """A model in memory: one pass of its copy, in which matrices are visited and statistics corrected.

    Attributes:
        model: the original, its copy, and the data.
        inventory: its tensors.
        forms: what errors cost, by name.
        visited: names of the matrices that get targets of their own, where the pass comes to them.
        progress: called as work goes on.
        reasons: why some tensors are priced in a special way, by name.
    """

    model: CalibratedModel
    inventory: Inventory
    forms: Mapping[str, QuadraticForm]
    visited: Collection[str]
    progress: Progress | None
    reasons: Mapping[str, str]

    @property
    def name(self) -> str:
        """The empty name, for it is the only segment."""
        return ""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All entries of the state dict."""
        return entries_by_name(self.inventory)

    def start(self) -> None:
        """Give the copy the values of the original, norms folded as they will be stored."""
        torch_module.fill(self.model.copy, values_of(self.inventory))

    def _slices(self) -> Iterator[TensorSlice]:
        return slices_of_inventory(self.inventory, self.forms, self.reasons)

    def independent(self) -> Iterator[TensorSlice]:
        """Exact tensors, and matrices that are not visited."""
        for each in self._slices():
            if each.weight is None or not (each.weight.is_vector or each.tensor in self.visited):
                yield each

    def slices_of(self, name: str) -> Iterable[TensorSlice]:
        """The matrix as it is in the original."""
        return [each for each in self._slices() if each.tensor == name]

    def run(self, visit: Visit) -> None:
        """Let the samples through the copy."""
        count = 0

        def counted(names: Sequence[str], inputs: Mapping[str, LayerInputs]) -> Mapping[str, Tensor]:
            nonlocal count
            count += len(names)
            found = visit(names, inputs)
            if self.progress is not None:
                self.progress("sequence", count, len(self.visited))
            return found

        sequence = Requantization(self.visited, counted) if self.visited else None
        correct(self.model.observed, self.model.copy, self.progress, sequence)

    def remaining(self, coded: Collection[str]) -> Iterator[TensorSlice]:
        """Vectors as they are in the copy, and matrices that the pass did not come to."""
        found = torch_module.inventory(self.model.copy, **self.model.options).weights
        for each in self._slices():
            if each.weight is not None and each.tensor not in coded:
                moved = each.weight.is_vector and each.tensor in found
                yield replace(each, weight=found[each.tensor], before=each.weight) if moved else each

    def write(self, piece: TensorSlice, values: Callable[[], Tensor]) -> None:
        """Give a matrix of the copy its values; vectors are read no more."""
        if piece.weight is not None and not piece.weight.is_vector:
            self.model.copy.state_dict()[piece.tensor].copy_(values())


@dataclass(frozen=True, eq=False)
class TensorReader:
    """Tensors of a checkpoint with what is known of them.

    Attributes:
        values: gives the values of a tensor, or of a matrix of one, by name.
        known: what is known of them, by name.
        kept: why some are stored without loss, by name of the whole tensor.
    """

    values: Callable[[str], Tensor]
    known: Mapping[str, TensorSensitivity]
    kept: Mapping[str, str]

    def whole(self, key: str) -> WholeTensor:
        """A tensor with what is known of it."""
        tensor = self.values(key)
        known = self.known.get(key)
        if known is None:
            return WholeTensor(key, tensor, Layout(tuple(tensor.shape)), None, self.why_kept(key))
        return WholeTensor(key, tensor, known.layout, known.form, self.why_kept(key), known.reason)

    def crossed(self, keys: Iterable[str]) -> dict[str, CrossedSensitivity]:
        """The tensors whose errors are priced with cross terms, for inputs that are measured again."""
        found = {key: self.known.get(key) for key in keys if not self.why_kept(key)}
        return {key: each for key, each in found.items() if isinstance(each, CrossedSensitivity)}

    def why_kept(self, key: str) -> str:
        """Why a tensor is stored without loss; empty where it is coded."""
        return self.kept.get(key) or self.kept.get(key.partition("[")[0], "")


@dataclass(frozen=True, eq=False)
class ModelPart(Segment):
    """A part of a model directory: a transformer block, or what is before or behind the blocks.

    Attributes:
        group: its tensors.
        keys: names of them; of stacks, names of their matrices.
        reader: reads them.
        original: the part as it was.
        compressed: the part as far as it is compressed.
        runs: of both; None where no activations are looked at.
        processes: each has some of the batches.
        accept: takes what was quantized last for good.
    """

    group: TensorGroup
    keys: Sequence[str]
    reader: TensorReader
    original: LoadedPart
    compressed: LoadedPart
    runs: tuple[BlockRun, BlockRun] | None
    processes: Processes
    accept: Callable[[], None]

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group.name

    @property
    def _crossed(self) -> dict[str, CrossedSensitivity]:
        """The matrices that are visited, by name."""
        if self.runs is None:
            return {}
        return self.reader.crossed(key for key in self.keys if key in self.original.places)

    def start(self) -> None:
        """Begin with what there was."""
        for key in self.compressed.places.keys() & set(self.keys):
            self.compressed.rows(key).copy_(self.original.rows(key))
        if self.runs is not None:
            self.runs[1].forget()

    def independent(self) -> Iterator[TensorSlice]:
        """Matrices that are not visited, and vectors that are not corrected."""
        later = self._crossed.keys() | self._moving
        for key in self.keys:
            if key not in later:
                yield from self.reader.whole(key).slices()

    def slices_of(self, name: str) -> Iterator[TensorSlice]:
        """Slices of a matrix."""
        return self.reader.whole(name).slices()

    def run(self, visit: Visit) -> None:
        """Let the batches through both parts, stage by stage."""
        if self.runs is None:
            return
        places = self.original.places
        crossed = self._crossed
        names = list(dict.fromkeys(places[key].parameter for key in crossed))
        original, compressed = self.runs
        before = {batch: original.inputs(names, batch) for batch in original.masks} if names else {}
        for stage in agreed(self.processes.all_gather(stages(before, names))):
            moments = input_moments(stage, before, compressed, ExactSum(self.processes))
            found = [key for key in crossed if places[key].parameter in moments]
            inputs = layer_inputs({key: self._visited(key, crossed[key]) for key in found}, moments)
            for key, values in visit(found, inputs).items():
                rows = self.compressed.rows(key)
                rows.copy_(values.reshape(rows.shape))
            self._correct_biases(found, moments)
            compressed.changed(stage)
            for of_batch in before.values():
                for name in stage:
                    of_batch.pop(name, None)
        if self._moving:
            compressed.forget()

    def _visited(self, key: str, known: CrossedSensitivity) -> VisitedMatrix:
        place = self.original.places[key]
        matrix = known.layout.to_matrix(self.original.rows(key).float().cpu().numpy())
        return VisitedMatrix(place.parameter, slice(place.start, place.start + place.count), matrix, known)

    @property
    def _moving(self) -> set[str]:
        """Names of the biases that are corrected."""
        places = {place.parameter: key for key, place in self.original.places.items() if key in self.keys}
        weights = {self.original.places[key].parameter for key in self._crossed}
        biases = (f"{name.removesuffix('weight')}bias" for name in weights if name.endswith("weight"))
        return {places[name] for name in biases if name in places and not self.reader.why_kept(places[name])}

    def _correct_biases(self, keys: Sequence[str], moments: Mapping[str, InputMoments]) -> None:
        """Move the biases behind compressed matrices so that their outputs keep their means."""
        places = self.original.places
        coded = {places[key].parameter for key in self.keys if key in places and not self.reader.why_kept(key)}
        for name, key in {places[key].parameter: key for key in keys}.items():
            bias, means = f"{name.removesuffix('weight')}bias", moments[name].means
            if bias not in coded or means is None or not name.endswith("weight"):
                continue
            before, now = (each.float() for each in means)
            original, compressed = (part.parameters[name].data for part in (self.original, self.compressed))
            if self.reader.known[key].layout.transposed:
                original, compressed = original.T, compressed.T
            self.compressed.parameters[bias].data.add_(original @ before - compressed @ now)

    def remaining(self, coded: Collection[str]) -> Iterator[TensorSlice]:
        """Vectors as they are now, and what was not visited."""
        for key in self.keys:
            if key in coded:
                continue
            whole = self.reader.whole(key)
            for each in whole.slices():
                moved = each.weight is not None and key in self.compressed.places and whole.values.ndim < 2
                yield self._moved(each, whole) if moved else each

    def _moved(self, piece: TensorSlice, whole: WholeTensor) -> TensorSlice:
        """A vector as it is in the compressed part."""
        now = self.compressed.rows(whole.name).to(whole.values.dtype).reshape(whole.values.shape)
        return replace(piece, weight=weight_of(whole.name, now, whole.layout), before=piece.weight)

    def write(self, piece: TensorSlice, values: Callable[[], Tensor]) -> None:
        """Give rows of the compressed part their values."""
        if piece.tensor in self.compressed.places:
            rows = self.compressed.rows(piece.tensor)
            some = rows[piece.rows] if rows.ndim else rows
            some.copy_(values().reshape(some.shape))

    def finish(self) -> None:
        """Let the batches go on."""
        self.accept()
