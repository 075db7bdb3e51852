"""Tensors inside tuples, lists, mappings, dataclasses and packed sequences, which keep their types."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply `function` to every tensor and packed sequence in a value; everything else stays as it is."""
    if isinstance(value, Tensor | PackedSequence):
        return function(value)
    if isinstance(value, Mapping):
        return _mapping(value, {key: map_leaves(each, function) for key, each in value.items()})
    if isinstance(value, tuple | list):
        return _sequence(value, [map_leaves(each, function) for each in value])
    if is_record(value):
        return _record(value, {key: map_leaves(each, function) for key, each in fields_of(value)})
    return value


def leaves(value: Any) -> Iterator[Tensor | PackedSequence]:
    """Every tensor and packed sequence in a value, in order."""
    if isinstance(value, Tensor | PackedSequence):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from leaves(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from leaves(each)
    elif is_record(value):
        for _, each in fields_of(value):
            yield from leaves(each)


def map_packed(packed: PackedSequence, function: Callable[[Tensor], Any]) -> PackedSequence:
    """Apply `function` to the values and the order of a packed sequence; its lengths are always on the CPU."""
    data, sizes, *orders = packed
    return PackedSequence(function(data), sizes, *(None if each is None else function(each) for each in orders))


def tensors_of_packed(packed: PackedSequence) -> list[Tensor]:
    """The tensors of a packed sequence that `map_packed` maps, in order."""
    return [each for each in (packed.data, packed.sorted_indices, packed.unsorted_indices) if each is not None]


def pick_packed(packed: PackedSequence, samples: Sequence[int] | slice) -> PackedSequence:
    """Some sequences of a packed sequence, in the order given.

    Args:
        packed: the sequences.
        samples: indices of some.
    """
    every = unpack_sequence(packed)
    some = every[samples] if isinstance(samples, slice) else [every[number] for number in samples]
    lengths = [len(each) for each in some]
    is_sorted = packed.sorted_indices is None and lengths == sorted(lengths, reverse=True)
    return pack_sequence(some, enforce_sorted=is_sorted)


def is_named_tuple(value: Any) -> bool:
    """Whether a value is a tuple with names for its parts, which a forward may take as one argument."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _mapping(value: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the type of another one."""
    if type(value) is dict or not isinstance(value, MutableMapping):
        return items
    made = copy.copy(value)
    for key, each in items.items():
        made[key] = each
    return made


def _sequence(value: Any, parts: list[Any]) -> Any:
    """A tuple or list of the type of another one."""
    if is_named_tuple(value):
        return type(value)._make(parts)
    return parts if isinstance(value, list) else tuple(parts)


def is_record(value: Any) -> bool:
    """Whether a value is an object of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def fields_of(value: Any) -> list[tuple[str, Any]]:
    """Fields of an object of a dataclass that have a value, by name."""
    return [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value) if hasattr(value, each.name)]


def _record(value: Any, fields: Mapping[str, Any]) -> Any:
    """A copy of a dataclass with other fields; without its initialisation, which may compute or refuse."""
    made = copy.copy(value)
    for name, each in fields.items():
        object.__setattr__(made, name, each)
    return made
