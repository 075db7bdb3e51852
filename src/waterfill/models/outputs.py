"""What a model returns: the tensors in it, and which of them is read.

An output is a tensor, or tuples, lists, named tuples, dicts, dataclasses and objects with tensors, one inside another.
One tensor of it is read, and words say which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from waterfill.errors import UnsupportedModelError
from waterfill.models.containers import fields_of, is_named_tuple, is_record

Path: TypeAlias = tuple[str | int, ...]
"""Keys, names and indices that lead to a tensor; none for an output that is a tensor."""

NAMES = ("logits", "out", "pred", "preds", "prediction", "predictions")
"""Names under which models return what counts; the first of them that is there is read."""

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def tensors_of(output: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Give all tensors of an output with the paths to them, in order.

    Args:
        output: of a model.
        path: to it.
    """
    if isinstance(output, Tensor):
        yield path, output
        return
    for key, part in _parts(output, is_whole=not path):
        yield from tensors_of(part, (*path, key))


def _parts(value: Any, *, is_whole: bool) -> Iterator[tuple[str | int, Any]]:
    """Parts of an output by name or index; objects of a class of their own only where they are the whole output."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif is_named_tuple(value):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        yield from enumerate(value)
    elif is_record(value):
        yield from fields_of(value)
    elif is_whole and not isinstance(value, nn.Module | type):
        names = dict.fromkeys(("logits", *getattr(value, "__dict__", ())))
        yield from ((name, getattr(value, name)) for name in names if hasattr(value, name))


def in_order(found: Sequence[tuple[Path, Tensor]]) -> list[tuple[Path, Tensor]]:
    """The tensors that can be read, floating-point ones [samples, ...]; those with a name of `NAMES` come first."""
    readable = [(path, tensor) for path, tensor in found if is_readable(tensor)]
    return sorted(readable, key=lambda each: _rank(each[0]))


def is_readable(tensor: Tensor) -> bool:
    """Whether a tensor has an axis for samples, and is dense and floating-point or complex."""
    return is_dense(tensor) and tensor.ndim > 0 and (tensor.is_floating_point() or tensor.is_complex())


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is neither sparse nor nested."""
    return tensor.layout is torch.strided and not tensor.is_nested


def _rank(path: Path) -> tuple[int, int]:
    """Place of a path among others: by its name and, where that says something, by its length."""
    name = path[-1] if path else ""
    return (NAMES.index(name), len(path)) if name in NAMES else (len(NAMES), 0)


def first_tensor(output: Any) -> Tensor:
    """Find the tensor that counts in a model's output: itself, its `logits`, or the first that can be read.

    Raises:
        UnsupportedModelError: there is none.
    """
    if isinstance(output, Tensor):
        return output
    found = list(tensors_of(output))
    for _, tensor in (*in_order(found), *found):
        return tensor
    raise UnsupportedModelError(
        f"The model returns a {type(output).__name__} without a tensor; expected a tensor, an object with `logits`, or "
        "a tuple, list or dict with a tensor. Wrap the model so that it returns its output tensor."
    )


def select(output: Any, path: Path) -> Tensor:
    """Follow a path to a tensor.

    Raises:
        UnsupportedModelError: the output has none there.
    """
    value = output
    for key in path:
        value = dict(_parts(value, is_whole=value is output)).get(key)
    if isinstance(value, Tensor):
        return value
    raise UnsupportedModelError(
        f"The model returns a {type(output).__name__} without {path_words(path)} for one batch, which was a tensor for "
        "another; expected the same kind of output for every batch. Wrap the model so that it returns one tensor."
    )


def path_words(path: Path) -> str:
    """Words for a path: `the second`, `'logits'`, `'heads.0'`."""
    if len(path) == 1 and isinstance(path[0], int) and path[0] < len(_ORDINALS):
        return f"the {_ORDINALS[path[0]]}"
    return repr(".".join(map(str, path)))


def kind_of(output: Any) -> str:
    """Words for the kind of an output: `a tuple`, `an ImageOutput`."""
    name = type(output).__name__
    if isinstance(output, dict) and type(output).__module__ in ("builtins", "collections"):
        name = "dict"
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
