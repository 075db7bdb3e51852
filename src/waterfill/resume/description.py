"""One text for everything that a result depends on: the same text, the same result."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from waterfill.errors import UsageError

DIGITS = 32
"""Hexadecimal digits of a digest inside a text."""


def describe(value: Any) -> str:
    """A text that tells a value from every other one.

    Arrays and tensors are their type, shape and a digest of their bytes; objects their class and what they hold, a
    module its state dict. Code is not looked at: neither that of a class nor that of a function, which is its name.

    Args:
        value: numbers, texts, arrays, tensors, containers of these, and objects that hold nothing else.

    Raises:
        UsageError: something in it has no such text, such as a function without a name of its own.

    Example:
        >>> describe({"levels": (0.5, 1), "values": np.zeros(2, np.int8)})
        "{'levels': (0.5, 1), 'values': int8[2]:96a296d224f285c67bee93c30f8a3091}"
    """
    try:
        return _text(value)
    except RecursionError as error:
        raise UsageError(
            f"A {type(value).__name__} holds itself, so that nothing says what a result depends on; give a frozen "
            "dataclass of numbers, texts and arrays, or no work folder."
        ) from error


def digest(value: Any) -> str:
    """64 hexadecimal digits made of the text of a value."""
    return hashlib.sha256(describe(value).encode("utf-8", "surrogatepass")).hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        value = value.item()
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"bytes[{len(value)}]:{_hash(value)}"
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, PurePath | torch.dtype | torch.device | np.dtype):
        return f"{_name(type(value))}({value})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(key)}: {_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_text, value)))}}}"
    return _object(value)


def _object(value: Any) -> str:
    """Of a class or function its name, of an object its class and its fields."""
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        if "<" in value.__qualname__:
            raise UsageError(
                f"{value.__qualname__} has no name of its own, so that nothing says what a result depends on; define "
                "it at the top of a module, or give no work folder."
            )
        return _name(value)
    if isinstance(value, nn.Module):
        return f"{_name(type(value))}{_text(value.state_dict())}"
    fields = _fields(value)
    return f"{_name(type(value))}({', '.join(f'{name}={_text(item)}' for name, item in fields)})"


def _fields(value: Any) -> Iterable[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    try:
        return sorted(vars(value).items())
    except TypeError as error:
        raise UsageError(
            f"Nothing says what a {_name(type(value))} holds, on which a result depends; give a frozen dataclass of "
            "numbers, texts and arrays, or no work folder."
        ) from error


def _name(kind: Any) -> str:
    """Of a class or function; the package's own without their module."""
    own = kind.__module__.partition(".")[0] in ("waterfill", "builtins")
    return str(kind.__qualname__) if own else f"{kind.__module__}.{kind.__qualname__}"


def _array(values: NDArray[Any]) -> str:
    if values.dtype.hasobject:
        return f"objects{list(values.shape)}{_text(values.tolist())}"
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return f"{values.dtype}{list(values.shape)}:{_hash(data.data)}"


def _tensor(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind}{list(tensor.shape)}:{_hash(flat.view(torch.uint8).numpy().data)}"


def _hash(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]
