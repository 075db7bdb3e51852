"""Copies of batches: containers of the same kind, tensors with memory of their own."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from pickle import PickleError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from waterfill.models.containers import is_named_tuple

Leaf = Callable[[Tensor], Tensor]

_VALUES = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)
_CONTAINERS = (list, tuple, dict, OrderedDict, defaultdict)


def copied(batch: Any) -> Any:
    """Copy everything in a batch that could change; objects of other kinds as `copy.deepcopy` does."""
    return rebuilt(batch, cloned)


def cloned(tensor: Tensor) -> Tensor:
    """The same values in memory of their own, outside of any graph and of inference mode."""
    with torch.inference_mode(False):
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def rebuilt(batch: Any, leaf: Leaf) -> Any:
    """Build a batch anew, with other tensors.

    What computes its items when they are asked for is asked once: a mapping becomes a dict, a sequence a tuple.

    Args:
        batch: tensors, arrays and values in containers of any depth.
        leaf: makes the new tensor of every one.
    """
    if isinstance(batch, Tensor):
        return leaf(batch)
    if isinstance(batch, np.ndarray):
        return batch.copy()
    if isinstance(batch, _VALUES):
        return batch
    if isinstance(batch, Mapping):
        return _rebuilt_mapping(batch, leaf)
    if is_named_tuple(batch):
        return type(batch)(*(rebuilt(item, leaf) for item in batch))
    if isinstance(batch, list):
        return [rebuilt(item, leaf) for item in batch]
    if isinstance(batch, Sequence):
        return tuple(rebuilt(item, leaf) for item in batch)
    return _deep_copy(batch)


def _rebuilt_mapping(batch: Mapping[Any, Any], leaf: Leaf) -> Mapping[Any, Any]:
    """A mapping of the same kind where it only holds its items, else a dict."""
    items = {key: rebuilt(batch[key], leaf) for key in batch}
    if isinstance(batch, UserDict):
        other: UserDict[Any, Any] = copy(batch)
        other.data = items
        return other
    if isinstance(batch, OrderedDict | defaultdict) and type(batch) in _CONTAINERS:
        found = copy(batch)
        found.update(items)
        return found
    return items


def _deep_copy(value: Any) -> Any:
    """A deep copy; the object itself where it cannot be copied."""
    try:
        return deepcopy(value)
    except (TypeError, ValueError, RuntimeError, AttributeError, PickleError):
        return value


def is_plain(batch: Any) -> bool:
    """Whether a batch is made of tensors, arrays and values in built-in containers: the same at every look."""
    if isinstance(batch, (Tensor, np.ndarray, *_VALUES)):
        return True
    if is_named_tuple(batch):
        return all(map(is_plain, batch))
    if type(batch) not in _CONTAINERS:
        return False
    return all(map(is_plain, batch.values() if isinstance(batch, dict) else batch))
