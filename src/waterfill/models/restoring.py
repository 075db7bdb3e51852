"""Whatever a forward pass changes in a model is put back: buffers, attributes, and what these hold."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from waterfill.models.module_state import has_storage, is_expanded, memories_of, storage_key

LARGEST_KEPT = 1 << 20
"""Learned tensors and attributes with more values than this are not kept beside the model."""

_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_STATE = ("_parameters", "_buffers", "_modules")
_ATOMS = (str, bytes, int, float, complex, type, type(None), types.FunctionType, types.MethodType, types.ModuleType)


@dataclass(frozen=True, eq=False)
class KeptTensor:
    """A tensor as it was.

    Attributes:
        tensor: the tensor itself.
        values: a copy.
        holder: the buffers among which it is; None where it is no buffer.
    """

    tensor: Tensor
    values: Tensor
    holder: dict[str, Any] | None = None

    def restore(self, *, in_place: bool) -> None:
        """Give the tensor its values again where they are others.

        Args:
            in_place: write into a buffer; else another tensor takes its place, for gradients may need what it holds.
        """
        now = self.tensor.detach()
        if torch.equal(now, self.values):
            return
        if in_place or self.holder is None:
            with torch.inference_mode() if now.is_inference() else torch.no_grad():
                now.copy_(self.values)
            return
        for name, each in self.holder.items():
            if each is self.tensor:
                self.holder[name] = self.values.clone()


@dataclass(frozen=True, eq=False)
class ModelState:
    """What a forward pass may change in a model, as it was.

    Attributes:
        contents: attributes of modules, containers and objects in them, each with a shallow copy.
        tensors: tensors with their values.
    """

    contents: list[tuple[Any, Any]]
    tensors: list[KeptTensor]

    @classmethod
    def of(cls, model: nn.Module, *, learned: bool) -> ModelState:
        """Look at a model.

        Args:
            model: the network.
            learned: whether parameters and statistics of norms count.
        """
        contents, plain = _contents(model)
        tensors = _kept(plain)
        for module in model.modules():
            if learned or not isinstance(module, _NormBase):
                holder = vars(module).get("_buffers")  # of a scripted module it is no dict, and cannot be given others
                place = holder if isinstance(holder, dict) else None
                buffers = filter(_is_kept, module.buffers(recurse=False))
                tensors += [KeptTensor(each, _copy(each), place) for each in buffers]
            tensors += _kept(module.parameters(recurse=False)) if learned else []
        return cls(contents, tensors)

    def restore(self, *, in_place: bool) -> None:
        """Put back what has changed; see `KeptTensor.restore`."""
        for place, before in self.contents:
            _refill(place, before)
        for each in self.tensors:
            each.restore(in_place=in_place)


@contextmanager
def unchanged(model: nn.Module, *, learned: bool = False, in_place: bool | None = None) -> Iterator[None]:
    """Put back, afterwards and after errors, what changes in a model meanwhile.

    Args:
        model: the network.
        learned: whether parameters and statistics of norms count, as far as they are no larger than `LARGEST_KEPT`.
        in_place: whether changed buffers are written to; None for where no gradients are taken.
    """
    with torch._C.DisableTorchFunction():
        state = ModelState.of(model, learned=learned)
    try:
        yield
    finally:
        with torch._C.DisableTorchFunction():
            state.restore(in_place=not torch.is_grad_enabled() if in_place is None else in_place)


def attribute_tensors(model: nn.Module) -> list[Tensor]:
    """Tensors in attributes and containers, and buffers outside the state dict: what no file of weights has."""
    state = memories_of(each for each in model.state_dict().values() if isinstance(each, Tensor))
    known = state | memories_of(model.parameters())
    found = [*_contents(model)[1], *model.buffers()]
    return [each for each in found if _is_kept(each) and storage_key(each) not in known]


@contextmanager
def kept_attributes(model: nn.Module) -> Iterator[None]:
    """Put back what attributes and containers hold, whatever the values of tensors are; for passes of transforms."""
    with torch._C.DisableTorchFunction():
        state = ModelState(_contents(model)[0], [])
    try:
        yield
    finally:
        state.restore(in_place=True)


def _contents(model: nn.Module) -> tuple[list[tuple[Any, Any]], list[Tensor]]:
    """Attributes of modules, containers and objects in them, each with a shallow copy; and the tensors among them."""
    contents: list[tuple[Any, Any]] = []
    tensors: list[Tensor] = []
    seen: set[int] = set()
    for module in model.modules():
        own = vars(module)
        places = (own, *(own.get(name) for name in _STATE))
        contents += [(place, dict(place)) for place in places if isinstance(place, dict)]
        _look_into([value for name, value in own.items() if name not in _INTERNAL], contents, tensors, seen)
    return contents, tensors


def _look_into(values: list[Any], contents: list[tuple[Any, Any]], tensors: list[Tensor], seen: set[int]) -> None:
    """Note what containers and plain objects hold, as far as it is not a module's own."""
    while values:
        value = values.pop()
        if isinstance(value, (*_ATOMS, nn.Module)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            tensors.append(value)
            continue
        if isinstance(value, tuple):
            values += value
            continue
        for place in (value, getattr(value, "__dict__", None)):
            if type(place) in _COPIES:
                contents.append((place, _COPIES[type(place)](place)))
                values += list(place.values()) if isinstance(place, dict) else list(place or ())


_COPIES: dict[type, Any] = {dict: dict, list: list, set: set, deque: list}


def _refill(place: Any, before: Any) -> None:
    """Give a container its contents again where they are others."""
    if isinstance(place, dict):
        if place.keys() != before.keys() or any(place[name] is not before[name] for name in before):
            place.clear()
            place.update(before)
    elif isinstance(place, set):
        if place != before:
            place.clear()
            place.update(before)
    elif len(place) != len(before) or any(a is not b for a, b in zip(place, before, strict=True)):
        place.clear()
        place.extend(before)


def _is_kept(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and has_storage(tensor) and not is_expanded(tensor)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _kept(tensors: Any) -> list[KeptTensor]:
    found = [each for each in tensors if _is_kept(each) and each.numel() <= LARGEST_KEPT]
    return [KeptTensor(each, _copy(each)) for each in found]
