"""Which parameters of a model of transformers stay compressed, and how its blocks get them."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from waterfill.bundle import Bundle
from waterfill.models.conversion import Unit, convert
from waterfill.resident import Block, Residency, Values

_NUMBERED = re.compile(r"(?:.*?\.)?[0-9]+(?=\.)")


@dataclass(frozen=True)
class Staying:
    """What stays compressed.

    Attributes:
        blocks: units by the path of the module that runs with them, in the order of modules.
        others: units that are decoded once.
        bundle: the directory.
        skeleton: the model without values, for the shapes that conversions look at.
    """

    blocks: Mapping[str, tuple[Unit, ...]]
    others: tuple[Unit, ...]
    bundle: Bundle
    skeleton: Any

    @property
    def names(self) -> set[str]:
        """The parameters that stay compressed."""
        return {name for units in self.blocks.values() for unit in units for name in unit.targets}

    def attach(self, model: Any, cache_bytes: int | None, device: torch.device | None) -> None:
        """Put placeholders into a model, and let its blocks decode their weights when they run."""
        blocks = [self._block(path, model.get_submodule(path), device) for path in self.blocks]
        Residency(blocks, cache_bytes, self.bundle.size_bytes).attach(model)

    def _block(self, path: str, module: nn.Module, device: torch.device | None) -> Block:
        weights = {
            name.removeprefix(f"{path}."): torch.empty_like(self.skeleton.get_parameter(name), dtype=unit.dtype)
            for unit in self.blocks[path]
            for name in unit.targets
        }
        return Block(module, weights, self._decoder(path, device), device)

    def _decoder(self, path: str, device: torch.device | None) -> Callable[[], Values]:
        units, bundle, skeleton = self.blocks[path], self.bundle, self.skeleton
        names = [name for unit in units for name in unit.names]

        def decode() -> Values:
            tensors = bundle.decode(names, device)
            found: dict[str, Tensor] = {}
            for unit in units:
                found.update(convert(unit, {name: tensors.pop(name) for name in unit.names}, skeleton))
            return {name.removeprefix(f"{path}."): value for name, value in found.items()}

        return decode


def staying(units: tuple[Unit, ...], bundle: Bundle, model: Any) -> Staying:
    """Choose what stays compressed: the matrices of numbered blocks, such as `model.layers.3`, that nothing is tied to.

    Args:
        units: all of the model.
        bundle: where their tensors are.
        model: the model, without values.
    """
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, list[Unit]] = defaultdict(list)
    others = []
    for unit in units:
        path = _block_of(unit, model)
        matrices = all(name in parameters and parameters[name].ndim >= 2 for name in unit.targets)
        if path is None or not matrices or tied.intersection(unit.targets):
            others.append(unit)
            continue
        found[path].append(unit)
        for name in unit.targets:
            parameters[name]._is_hf_initialized = True  # as if it had been loaded
    order = {path: tuple(found[path]) for path, _ in model.named_modules() if path in found}
    return Staying(order, tuple(others), bundle, copy.deepcopy(model))


def _block_of(unit: Unit, model: Any) -> str | None:
    """Path of the first numbered module that all parameters of a unit are in, if it can run by itself."""
    found = _NUMBERED.match(unit.targets[0])
    if found is None or not all(name.startswith(f"{found[0]}.") for name in unit.targets):
        return None
    forward = type(model.get_submodule(found[0])).forward
    return None if forward is nn.Module.forward else found[0]
