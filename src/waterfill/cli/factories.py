"""Models and data by name: `package.module:factory` is imported and called, with errors that name it."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from waterfill.errors import UsageError, WaterfillError
from waterfill.file_system import is_folder

if TYPE_CHECKING:
    import torch

    from waterfill.protocols import Metric, Progress

FACTORY = re.compile(r"[\w.]+:[\w.]+")


def as_model(text: str, weights: Path | None) -> torch.nn.Module | Path:
    """A module, or the path of a bare file."""
    if FACTORY.fullmatch(text):
        return as_module(text, weights)
    if weights is not None:
        raise UsageError(f"--weights fills a factory, but MODEL is the file {text}; give package.module:factory.")
    if is_folder(Path(text)):
        raise WaterfillError(
            f"MODEL {text} is a folder; expected a .safetensors file or package.module:factory. "
            "Name the safetensors file inside it."
        )
    if not Path(text).exists():
        raise WaterfillError(
            f"MODEL {text} is no file that exists; expected a .safetensors file or package.module:factory. "
            "Check the path and the names on both sides of the colon."
        )
    return Path(text)


def as_module(text: str, weights: Path | None) -> torch.nn.Module:
    """A module from a factory, filled with weights."""
    from torch import nn

    from waterfill.models.state_dict import load_tensors
    from waterfill.models.torch_module import fill

    if not FACTORY.fullmatch(text):
        raise UsageError(
            f"MODEL {text!r} is no package.module:factory; expected a callable that returns an nn.Module. "
            "Write one around the model."
        )
    module = call_factory(text, "MODEL")
    if not isinstance(module, nn.Module):
        raise WaterfillError(
            f"MODEL {text} returned a {type(module).__name__}; expected a torch.nn.Module. "
            "Name a callable that returns one."
        )
    if weights is not None:
        try:
            fill(module, load_tensors(weights), missing_ok=("*num_batches_tracked",))
        except WaterfillError as error:
            raise type(error)(f"{weights}: {error}" if str(weights) not in str(error) else str(error)) from error
    return module


def as_data(text: str, progress: Progress | None = None) -> Sequence[Any]:
    """Batches of a factory, the same in every pass; its own errors while they are read name it.

    Args:
        text: `package.module:factory`.
        progress: called with ("read", done, total) while they are read.
    """
    from waterfill.models.kept_batches import as_batches

    return as_batches(as_stream(text), progress)


def as_stream(text: str) -> Iterable[Any]:
    """Batches of a factory, perhaps to be gone through once; its own errors while they are read name it."""
    from waterfill.models.kept_batches import check_data

    data = call_factory(text, "--data")
    check_data(data)
    return data if isinstance(data, list | tuple) else _Batches(data, text)


def as_metric(text: str) -> Metric:
    """A function (model, batches) -> float; what it raises, and what is no number, becomes an error that names it."""
    function = find(text, "--metric", "function", "a function (model, batches) -> float")

    def metric(model: torch.nn.Module, data: Iterable[Any]) -> float:
        found: Any = _named(lambda: function(model, data), f"--metric {text}")
        try:
            number = float(found)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if math.isnan(number):
            told = "NaN" if isinstance(found, float) else f"a {type(found).__name__}"
            raise WaterfillError(
                f"--metric {text} gives {told}; expected a number, larger for a better model. Correct the function."
            )
        return number

    return metric


def call_factory(text: str, what: str) -> Any:
    """Import `package.module:factory` and call it; `what` is the argument that errors name."""
    return _named(find(text, what, "factory", "a callable without arguments"), f"{what} {text}")


def find(text: str, what: str, kind: str, expected: str) -> Callable[..., Any]:
    """Import what `package.module:name` names.

    Args:
        text: both names.
        what: the argument that errors name.
        kind: what its name stands for, in errors.
        expected: what can be called, in errors.
    """
    module_name, _, attribute = text.partition(":")
    if not attribute or not module_name:
        raise UsageError(f"{what} {text!r} is no package.module:{kind}; expected both names with a colon between them.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise WaterfillError(
            f"{what} {text}: {error}; expected package.module:{kind} that can be imported. "
            "Check the names, or set PYTHONPATH."
        ) from error
    if not callable(found):
        raise WaterfillError(
            f"{what} {text} is a value of type {type(found).__name__}; expected {expected}. Name a function."
        )
    return cast("Callable[..., Any]", found)


def _named(call: Callable[[], Any], name: str) -> Any:
    """What a call of someone else's code returns; what it raises becomes an error with the name of the code."""
    try:
        return call()
    except WaterfillError:
        raise
    except Exception as error:
        raise WaterfillError(f"{name} failed: {type(error).__name__}: {error}") from error


class _Batches:
    """An iterable of someone else's; what it raises becomes an error that names it."""

    def __init__(self, data: Iterable[Any], name: str) -> None:
        self._data, self._name = data, name

    def __iter__(self) -> Iterator[Any]:
        from waterfill.models.kept_batches import read_through

        return read_through(self._data, f"--data {self._name}")

    def __len__(self) -> int:
        from waterfill.models.kept_batches import known_length

        return known_length(self._data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._data, name)
