"""Parts of a model directory with their weights: what is in memory at once."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from waterfill.bundle import Checkpoint
from waterfill.compression.checkpoint_groups import TensorGroup
from waterfill.errors import UnsupportedModelError, WaterfillError
from waterfill.io.parts import part_of
from waterfill.models.skeleton import Place, Skeleton, apart


@dataclass(frozen=True, eq=False)
class LoadedPart:
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


@dataclass(eq=False)
class PartLoader:
    """Loads the parts of a model from its checkpoint.

    Args:
        checkpoint: the weights.
        groups: its tensors.
        skeleton: the model.

    Raises:
        UnsupportedModelError: the model has another number of blocks.
    """

    checkpoint: Checkpoint
    groups: Sequence[TensorGroup]
    skeleton: Skeleton
    _places: dict[int, dict[str, Place]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stored = sum(group.block is not None for group in self.groups)
        if stored != len(self.skeleton.blocks):
            raise UnsupportedModelError(
                f"{self.checkpoint.directory} has tensors of {stored} blocks; expected {len(self.skeleton.blocks)}, as "
                "the model of config.json has. Check that config.json belongs to the weights, or compress without data."
            )

    def block(self, number: int) -> LoadedPart:
        """A transformer block with the weights of the checkpoint, in memory of its own."""
        group = [group for group in self.groups if group.block is not None][number]
        name = list(self.skeleton.blocks)[number]
        if number not in self._places:
            shapes = {tensor: self.checkpoint.shapes[tensor] for tensor in group.tensors}
            self._places[number] = {
                key: Place(place.parameter.removeprefix(f"{name}."), place.start, place.count)
                for key, place in self.skeleton.places(shapes).items()
                if place.parameter.startswith(f"{name}.")
            }
        filled = self.skeleton.fill({tensor: self._finite(tensor) for tensor in group.tensors})
        module = apart(copy.deepcopy(self.skeleton.blocks[name]))
        self.skeleton.empty(filled)
        missing = [each for each, parameter in module.named_parameters() if parameter.is_meta]
        if missing:
            raise UnsupportedModelError(
                f"Block {name} of the model has parameters that the checkpoint lacks, such as {missing[0]!r}; expected "
                f"the tensors of {group.name}. Check that config.json belongs to the weights."
            )
        return LoadedPart(module, dict(module.named_parameters()), self._places[number])

    @cached_property
    def outside(self) -> LoadedPart:
        """The part outside of the blocks; filled once, and then as it was left."""
        names = [tensor for group in self.groups if group.block is None for tensor in group.tensors]
        places = self.skeleton.places({name: self.checkpoint.shapes[name] for name in names})
        self.skeleton.fill({name: self._finite(name) for name in names})
        parameters = {n: p for n, p in self.skeleton.model.named_parameters() if not p.is_meta}
        return LoadedPart(self.skeleton.model, parameters, places)

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


def tensor_or_matrix(checkpoint: Checkpoint, key: str) -> Tensor:
    """A tensor of a checkpoint, or a matrix `name[index]` of one."""
    part = None if key in checkpoint else part_of(key)
    return checkpoint[key] if part is None else checkpoint[part.tensor][part.start]
