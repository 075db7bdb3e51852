"""A transformers model without weights: its blocks are filled from the tensors of a checkpoint one at a time.

```
config.json --skeleton--> parameters on `meta`, buffers real
tensors of a group --fill--> parameters, renamed, merged and split as transformers does it for that architecture
                   --places-> which rows of which parameter each tensor of the checkpoint became
```
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from waterfill.errors import UnsupportedModelError, first_line
from waterfill.models.conversion import convert, plan
from waterfill.models.pretrained import model_class

LEAST_SIDE = 4
"""Of the matrices in a stack; kernels of convolutions have fewer taps or channels."""

LARGEST_PROBE = 1 << 24
"""Rows that float32 numbers tell apart."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of the checkpoint is in the model: rows `start` to `start + count` of a parameter.

    Attributes:
        parameter: its name in the model, where experts are apart, such as `experts.down_proj.3`.
        start: the first row.
        count: number of rows.
    """

    parameter: str
    start: int
    count: int


class Skeleton:
    """A transformers model whose parameters have no values until they are filled.

    Args:
        directory: with a `config.json` that transformers knows.
        names: of the tensors of its checkpoint.
        device: where its tensors are when they are filled; None for the CPU.

    Attributes:
        model: the model, in evaluation mode and single precision; parameters are on the device `meta`.
        blocks: the transformer blocks in the order in which they are called, by name; empty where there are none.
        device: where its tensors are.

    Raises:
        UnsupportedModelError: transformers is not installed, or does not know the architecture.
    """

    def __init__(self, directory: Path, names: Iterable[str], device: str | None = None) -> None:
        self.device = torch.device(device or "cpu")
        self.model = _empty(directory)
        for module in self.model.modules():
            for name, each in module._buffers.items():
                module._buffers[name] = None if each is None else each.to(self.device)
        self.blocks: Mapping[str, nn.Module] = _blocks(self.model)
        rules: list[Any] = list(
            import_module("transformers.conversion_mapping").get_model_conversion_mapping(self.model)
        )
        self._units = plan(names, self.model, rules, torch.float32).units

    @property
    def is_language_model(self) -> bool:
        """Whether the output has logits over the tokens at every position."""
        return self.model.get_output_embeddings() is not None

    @property
    def buffers(self) -> set[str]:
        """Names of the tensors of the checkpoint that are buffers of the model."""
        known = {name for name, _ in self.model.named_buffers()}
        return {name for unit in self._units if known.issuperset(unit.targets) for name in unit.names}

    def fill(self, tensors: Mapping[str, Tensor]) -> set[str]:
        """Give parameters the values of tensors of the checkpoint, in single precision.

        Args:
            tensors: by their names in the checkpoint; those that are merged into one parameter together.

        Returns:
            Names of the parameters that are filled now.

        Raises:
            UnsupportedModelError: they do not fit the model.
        """
        filled, ties = set(), self.model.all_tied_weights_keys
        for unit in self._units:
            if tensors.keys() >= set(unit.names):
                for target, value in convert(unit, tensors, self.model):
                    name = ties.get(target, target)  # what tie_weights takes the values from
                    self._set(name, value)
                    filled.add(name)
        self.model.tie_weights()
        return filled

    def _set(self, name: str, value: Tensor) -> None:
        owner, _, last = name.rpartition(".")
        module = self.model.get_submodule(owner)
        there = self.model.get_parameter_or_buffer(name)
        if there.shape != value.shape:
            raise UnsupportedModelError(
                f"Tensor {name!r} has the shape {list(value.shape)}; expected {list(there.shape)} of config.json. "
                "Check that config and weights belong together."
            )
        if last in module._parameters:
            module._parameters[last] = nn.Parameter(value.to(self.device), requires_grad=False)
        else:
            module._buffers[last] = value.to(self.device)

    def empty(self, names: set[str]) -> None:
        """Take the values of parameters away again."""
        for name in names:
            owner, _, last = name.rpartition(".")
            module = self.model.get_submodule(owner)
            if module._parameters.get(last) is not None:
                module._parameters[last] = nn.Parameter(torch.empty_like(module._parameters[last], device="meta"))
        self.model.tie_weights()

    def places(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
        """Where tensors of the checkpoint go, by their names; those that do not stay whole are left out.

        Every row of every tensor gets a number of its own, and the numbers are looked for in the model. A tensor with
        three axes, such as one of all experts, has a place for every matrix `name[index]`.

        Args:
            shapes: of the tensors, which are together as for `fill`.
        """
        starts: dict[int, tuple[str, int]] = {}
        probes, rows = {}, 0
        for name, shape in shapes.items():
            stack = is_stack(shape)
            each = shape[1] if stack else shape[0] if shape else 1
            count = shape[0] * each if stack else each
            numbers = torch.arange(rows, rows + count, dtype=torch.float32)
            lead = shape[:2] if stack else shape[:1]
            probes[name] = numbers.reshape([*lead, *(1,) * (len(shape) - len(lead))]).expand(shape).contiguous()
            for index in range(count // max(1, each)):
                starts[rows + index * each] = f"{name}[{index}]" if stack else name, each
            rows += count
        if rows >= LARGEST_PROBE:
            return {}
        filled = self.fill(probes)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        found: dict[str, Place] = {}
        for name in sorted(filled):
            if name in parameters:
                for part, values in _apart(name, parameters[name], self.model.get_submodule(name.rpartition(".")[0])):
                    found |= _runs(part, values, starts)
        self.empty(filled)
        return found


def is_stack(shape: Sequence[int]) -> bool:
    """Whether a tensor is taken for a stack of matrices, such as one of all experts, and not for a kernel."""
    return len(shape) == 3 and min(shape[1:]) >= LEAST_SIDE and shape[0] > 0


def _is_apart(parameter: Tensor, owner: nn.Module) -> bool:
    return is_stack(parameter.shape) and not isinstance(owner, _ConvNd)


def apart(module: nn.Module) -> nn.Module:
    """A module whose parameters with three axes, as experts have them, are lists of matrices; the same memory."""
    for each in list(module.modules()):
        for name, parameter in list(each._parameters.items()):
            if parameter is not None and _is_apart(parameter, each):
                del each._parameters[name]
                each.register_module(name, nn.ParameterList(list(parameter.detach().unbind(0))))
    return module


def _apart(name: str, tensor: Tensor, owner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if _is_apart(tensor, owner):
        yield from ((f"{name}.{index}", each) for index, each in enumerate(tensor))
    else:
        yield name, tensor


def _runs(name: str, values: Tensor, starts: Mapping[int, tuple[str, int]]) -> dict[str, Place]:
    """Tensors whose rows lie one after the other in a parameter."""
    flat = values.detach().cpu().reshape(len(values) if values.ndim else 1, -1)
    if not flat.numel() or bool((flat != flat[:, :1]).any()):
        return {}
    rows, found = flat[:, 0].round().long(), {}
    first = torch.tensor(list(starts))
    for at in torch.isin(rows, first).nonzero().flatten().tolist():
        tensor, count = starts[int(rows[at])]
        if torch.equal(rows[at : at + count], torch.arange(int(rows[at]), int(rows[at]) + count)):
            found[tensor] = Place(name, at, count)
    return found


def _empty(directory: Path) -> Any:
    """The model on `meta`, with real buffers."""
    kind, configs = model_class(directory), import_module("transformers").AutoConfig
    try:
        config = configs.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        config._experts_implementation = "eager"  # one product for each expert
        with torch.device("meta"):
            automatic = hasattr(kind, "from_config")
            model = kind.from_config(config, trust_remote_code=False) if automatic else kind(config)
    except Exception as error:
        raise UnsupportedModelError(
            f"Model directory {directory} has no architecture that transformers knows: {first_line(error)[:300]} "
            "Upgrade transformers, or compress without data."
        ) from error
    model.float()
    for module in model.modules():
        names = [name for name, each in module._buffers.items() if each is not None]
        for name in names:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        if names:
            model._init_weights(module)
    return model.eval().requires_grad_(False)


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The list of modules with the most weights that is not inside another one, by name."""
    lists = {name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList)}
    outer = {name: each for name, each in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    name = max(outer, key=lambda name: sum(each.numel() for each in outer[name].parameters()), default="")
    return {f"{name}.{index}": block for index, block in enumerate(outer[name])} if outer else {}
