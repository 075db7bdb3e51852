"""Tensors of a state dict that share elements without being the same view: found, and told apart from ties."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from waterfill.errors import UnsupportedModelError
from waterfill.models.module_state import first_names, has_storage


@dataclass(frozen=True, eq=False)
class Extent:
    """Where a tensor lies in its storage.

    Attributes:
        name: of the tensor.
        tensor: the tensor.
        start: byte of the first element.
        stop: byte behind the last one.
    """

    name: str
    tensor: Tensor
    start: int
    stop: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Extent:
        """The extent of a tensor with elements."""
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.storage_offset() * tensor.itemsize
        return cls(name, tensor, int(start), int(start + (last + 1) * tensor.itemsize))

    @property
    def overlaps_itself(self) -> bool:
        """Whether two elements are the same memory, as in an expanded tensor."""
        axes = sorted((s, n) for s, n in zip(self.tensor.stride(), self.tensor.shape, strict=True) if n > 1)
        reach = 1
        for stride, size in axes:
            if stride < reach:  # not one axis inside the other: count
                return len(set(self.positions().reshape(-1).tolist())) < self.tensor.numel()
            reach = stride * (size - 1) + reach
        return False

    def positions(self) -> Tensor:
        """Byte of every element in the storage, int64, of the shape of the tensor."""
        found = torch.full(self.tensor.shape, self.start, dtype=torch.int64)
        for axis, (size, stride) in enumerate(zip(self.tensor.shape, self.tensor.stride(), strict=True)):
            steps = torch.arange(size) * (stride * self.tensor.itemsize)
            found += steps.reshape([-1] + [1] * (self.tensor.ndim - 1 - axis))
        return found

    def memory(self) -> Tensor:
        """All bytes of the tensor in the storage, int64 [n]."""
        return (self.positions().reshape(-1, 1) + torch.arange(self.tensor.itemsize)).reshape(-1)

    def shares_with(self, other: Extent) -> bool:
        """Whether an element of both is the same memory."""
        return bool(torch.isin(self.memory(), other.memory()).any())


def check_memory(state: Mapping[str, Tensor], coded: Collection[str]) -> None:
    """Check that no tensor to be quantized shares elements with itself or another one, unless they are one tensor.

    Args:
        state: a state dict.
        coded: names of what is quantized.

    Raises:
        UnsupportedModelError: one does, so that the model could not hold what the file has; the text names them.
    """
    for one, other in overlaps(state):
        if one.name not in coded and other.name not in coded:
            continue
        shapes = f"{one.name!r} {list(one.tensor.shape)}"
        if one is other:
            raise UnsupportedModelError(
                f"Tensor {shapes} is a view whose elements share memory (strides {list(one.tensor.stride())}); "
                "expected an element for every value. Give it memory of its own: nn.Parameter(tensor.clone())."
            )
        raise UnsupportedModelError(
            f"Tensors {shapes} and {other.name!r} {list(other.tensor.shape)} share memory without being the same view, "
            "such as a weight tied to its transpose; expected tensors of their own, or one tensor under both names. "
            "Compute the one from the other in forward, or give it memory of its own: nn.Parameter(tensor.clone())."
        )


def overlaps(state: Mapping[str, Tensor]) -> Iterator[tuple[Extent, Extent]]:
    """Pairs of tensors that share elements, a tensor with itself too; of ties the first name stands for all."""
    storages: dict[tuple[torch.device, int], list[Extent]] = defaultdict(list)
    for name, first in first_names(state).items():
        tensor = state[name]
        if name == first and has_storage(tensor):
            storages[tensor.device, tensor.untyped_storage().data_ptr()].append(Extent.of(name, tensor))
    for extents in storages.values():
        yield from ((each, each) for each in extents if each.overlaps_itself)
        extents.sort(key=lambda each: each.start)
        for index, one in enumerate(extents):
            for other in extents[index + 1 :]:
                if other.start >= one.stop:
                    break
                if one.shares_with(other):
                    yield one, other


# Values


def contradictions(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> list[str]:
    """Where values would have to be two things in one memory of a model, a few words for each pair of names.

    Args:
        state: the state dict of a model.
        values: of the same shapes, for some of its names.
    """
    wanted = {name: values[name].detach() for name in state if name in values}
    found = []
    for name, first in first_names(state).items():
        if name != first and name in wanted and first in wanted:
            one, other = wanted[first], wanted[name]
            if one is not other and not _same(one.to(state[name]), other.to(state[name])):
                found.append(f"{name} is {first}")
    for left, right in overlaps({name: state[name] for name in wanted}):
        if left is not right and not _agree(left, wanted[left.name], right, wanted[right.name]):
            found.append(f"{right.name} has elements of {left.name}")
    return found


def _agree(one: Extent, first: Tensor, other: Extent, second: Tensor) -> bool:
    """Whether two tensors that share elements are given the same bytes there."""
    places, others = one.memory(), other.memory()
    common = torch.zeros(max(one.stop, other.stop), dtype=torch.uint8)
    common[places] = _bytes(first.to(one.tensor))
    is_shared = torch.isin(others, places)
    return bool((common[others] == _bytes(second.to(other.tensor)))[is_shared].all())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values; NaN is NaN."""
    return torch.equal(one, other) or torch.equal(_bytes(one), _bytes(other))
