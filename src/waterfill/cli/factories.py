"""Models and data by name: `package.module:factory` is imported and called, with errors that name it."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waterfill.errors import UsageError, WaterfillError

if TYPE_CHECKING:
    import torch

FACTORY = re.compile(r"[\w.]+:[\w.]+")


def as_model(text: str, weights: Path | None) -> torch.nn.Module | Path:
    """A module, or the path of a bare file."""
    if FACTORY.fullmatch(text):
        return as_module(text, weights)
    if weights is not None:
        raise UsageError(f"--weights fills a factory, but MODEL is the file {text}; give package.module:factory.")
    if Path(text).is_dir():
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


def as_data(text: str) -> Iterable[Any]:
    """Batches of a factory, to be read again and again; its own errors while they are read name it."""
    from waterfill.models.batches import as_batches

    data = call_factory(text, "--data")
    plain = isinstance(data, Mapping | list | tuple | str | bytes) or hasattr(data, "shape")
    if plain or not isinstance(data, Iterable):
        return as_batches(data)
    batches = _SizedBatches(data, text) if isinstance(data, Sized) else _Batches(data, text)
    return as_batches(iter(batches) if isinstance(data, Iterator) else batches)


def call_factory(text: str, what: str) -> Any:
    """Import `package.module:factory` and call it; `what` is the argument that errors name."""
    module_name, _, attribute = text.partition(":")
    if not attribute or not module_name:
        raise UsageError(
            f"{what} {text!r} is no package.module:factory; expected both names with a colon between them."
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError) as error:
        raise WaterfillError(
            f"{what} {text}: {error}; expected package.module:factory that can be imported. "
            "Check the names, or set PYTHONPATH."
        ) from error
    if not callable(factory):
        raise WaterfillError(
            f"{what} {text} is a value of type {type(factory).__name__}; expected a callable without arguments. "
            "Name a function."
        )
    try:
        return factory()
    except WaterfillError:
        raise
    except Exception as error:
        raise WaterfillError(f"{what} {text} failed: {type(error).__name__}: {error}") from error


class _Batches:
    """An iterable of someone else's; what it raises becomes an error that names it."""

    def __init__(self, data: Iterable[Any], name: str) -> None:
        self.data, self.name = data, name

    def __iter__(self) -> Iterator[Any]:
        done = 0
        try:
            for batch in self.data:
                yield batch
                done += 1
        except WaterfillError:
            raise
        except Exception as error:
            raise WaterfillError(
                f"--data {self.name} failed at batch {done}: {type(error).__name__}: {error}"
            ) from error


class _SizedBatches(_Batches):
    """The same of known length."""

    def __len__(self) -> int:
        assert isinstance(self.data, Sized)
        return len(self.data)
