"""Parts of a model with their weights: what is in memory at once."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from waterfill.bundle import Checkpoint
from waterfill.bundle.parts import part_of
from waterfill.compression.layer_groups import Group
from waterfill.errors import UnsupportedModelError, WaterfillError
from waterfill.models.skeleton import Place, Skeleton, apart
from waterfill.models.state_dict import CODED_DTYPES, weight_of
from waterfill.records import Layout, Weight


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a model, filled.

    Attributes:
        module: a block, or the whole model for what is outside of the blocks.
        parameters: its parameters by their names in it; experts apart.
        places: where tensors of the checkpoint are among them.
    """

    module: nn.Module
    parameters: Mapping[str, Tensor]
    places: Mapping[str, Place]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters."""
        return {name: tuple(each.shape) for name, each in self.parameters.items()}

    def rows(self, key: str) -> Tensor:
        """The rows of a parameter that a tensor of the checkpoint is; the same memory."""
        place = self.places[key]
        found = self.parameters[place.parameter].data
        return found[place.start : place.start + place.count] if found.ndim else found


class Pieces:
    """The parts of a model, from its checkpoint.

    Args:
        checkpoint: the weights.
        groups: its tensors.
        skeleton: the model; None without data.

    Raises:
        UnsupportedModelError: the model has another number of blocks.
    """

    def __init__(self, checkpoint: Checkpoint, groups: Sequence[Group], skeleton: Skeleton | None) -> None:
        self.checkpoint = checkpoint
        self._groups = groups
        self._skeleton = skeleton
        self._outside: Piece | None = None
        self._places: dict[int, dict[str, Place]] = {}
        stored = sum(group.block is not None for group in groups)
        if skeleton is not None and stored != len(skeleton.blocks):
            raise UnsupportedModelError(
                f"{checkpoint.directory} has tensors of {stored} blocks; expected {len(skeleton.blocks)}, as the model "
                "of config.json has. Check that config.json belongs to the weights, or compress without data."
            )

    def part(self, key: str) -> Tensor:
        """A tensor of the checkpoint, or a matrix `name[index]` of it."""
        part = None if key in self.checkpoint else part_of(key)
        return self.checkpoint[key] if part is None else self.checkpoint[part.tensor][part.start]

    def _finite(self, name: str) -> Tensor:
        """A tensor of the checkpoint.

        Raises:
            WaterfillError: a value is NaN or infinite.
        """
        tensor = self.checkpoint[name]
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WaterfillError(
                f"Tensor {name!r} {list(tensor.shape)} has values that are NaN or infinite; expected finite ones, for "
                "nothing can be measured with them. Repair the checkpoint, or exclude it and compress without data."
            )
        return tensor

    def block(self, number: int) -> Piece:
        """A transformer block with the weights of the checkpoint, in memory of its own."""
        assert self._skeleton is not None
        group = [group for group in self._groups if group.block is not None][number]
        name = list(self._skeleton.blocks)[number]
        if number not in self._places:
            shapes = {tensor: self.checkpoint.shapes[tensor] for tensor in group.tensors}
            self._places[number] = {
                key: Place(place.parameter.removeprefix(f"{name}."), place.start, place.count)
                for key, place in self._skeleton.places(shapes).items()
                if place.parameter.startswith(f"{name}.")
            }
        filled = self._skeleton.fill({tensor: self._finite(tensor) for tensor in group.tensors})
        module = apart(copy.deepcopy(self._skeleton.blocks[name]))
        self._skeleton.empty(filled)
        missing = [each for each, parameter in module.named_parameters() if parameter.is_meta]
        if missing:
            raise UnsupportedModelError(
                f"Block {name} of the model has parameters that the checkpoint lacks, such as {missing[0]!r}; expected "
                f"the tensors of {group.name}. Check that config.json belongs to the weights."
            )
        return Piece(module, dict(module.named_parameters()), self._places[number])

    def outside(self) -> Piece:
        """What is outside of the blocks; filled once, and then as it was left."""
        assert self._skeleton is not None
        if self._outside is None:
            names = [tensor for group in self._groups if group.block is None for tensor in group.tensors]
            places = self._skeleton.places({name: self.checkpoint.shapes[name] for name in names})
            self._skeleton.fill({name: self._finite(name) for name in names})
            parameters = {n: p for n, p in self._skeleton.model.named_parameters() if not p.is_meta}
            self._outside = Piece(self._skeleton.model, parameters, places)
        return self._outside

    def samples(self, group: Group, most: int, kept: Collection[str]) -> Iterator[tuple[Weight, float]]:
        """The coded tensors of a group, of large ones some rows, and how many times as large they are.

        Args:
            group: which.
            most: values of a tensor that are looked at, about.
            kept: names of tensors that are stored without loss, and are not read.
        """
        for name in group.tensors:
            shape = self.checkpoint.shapes[name]
            if name in kept or self.checkpoint.dtypes[name] not in CODED_DTYPES or not all(shape):
                continue
            tensor = self.checkpoint[name]
            flat = tensor.reshape(-1, shape[-1]) if len(shape) == 3 else tensor
            size = flat.numel()
            if flat.ndim > 1 and size > most:
                flat = flat[:: max(1, -(-size // most))]
            yield weight_of(name, flat, Layout(tuple(flat.shape))), size / flat.numel()
