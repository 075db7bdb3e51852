"""Make the model of a compressed directory, by the class that its configuration names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from waterfill.bundle.checkpoint import read_config
from waterfill.bundle.reader import is_bundle
from waterfill.errors import FormatError, UnsupportedModelError
from waterfill.integrations.hook import register
from waterfill.integrations.options import Options, options
from waterfill.models.configuration import architecture


def from_directory(directory: Path, dtype: torch.dtype | None, chosen: Options) -> nn.Module:
    """A new model with the values of a directory, decoded group by group to where they belong.

    Raises:
        FormatError: the directory is damaged, or not compressed.
        UnsupportedModelError: transformers is not installed, or does not know the class.
    """
    if not is_bundle(directory):
        raise FormatError(f"{directory} is no compressed directory; expected one that `waterfill compress` wrote.")
    with options(chosen):
        model: nn.Module = _class(directory).from_pretrained(directory, dtype="auto" if dtype is None else dtype)
    return model if chosen.device is None else model.to(chosen.device)


def like(model: Any, directory: Path) -> nn.Module:
    """A new model of the class, configuration and type of another one."""
    register()
    with options(Options()):
        made: nn.Module = type(model).from_pretrained(directory, dtype=model.dtype)
    return made


def _class(directory: Path) -> Any:
    """The class of transformers that `architectures` names."""
    try:
        register()
    except ImportError as error:
        raise UnsupportedModelError(
            "A model of a directory is made by transformers 5, which is not installed: pip install "
            "'waterfill[transformers]'. Without it, waterfill.decompress() gives the tensors."
        ) from error
    transformers = importlib.import_module("transformers")
    named = architecture(read_config(directory)) or "AutoModel"
    found = getattr(transformers, named, None)
    if found is None:
        raise UnsupportedModelError(
            f"{directory}: transformers {transformers.__version__} has no class {named!r}, and code of the "
            "model itself is not run. Upgrade transformers, or give the model: load(path, into=model)."
        )
    return found
