"""Make the model of a compressed directory, by the class that its configuration names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from waterfill.errors import FormatError, UnsupportedModelError
from waterfill.integrations.hook import register
from waterfill.integrations.options import Options, options
from waterfill.io.configuration import architecture, read_config
from waterfill.io.directory import is_bundle
from waterfill.models.pretrained import check_implementations, class_of_models, made_of


def from_directory(directory: Path, dtype: torch.dtype | None, chosen: Options) -> nn.Module:
    """A new model with the values of a directory, decoded group by group to where they belong.

    Raises:
        FormatError: the directory is damaged, or not compressed, or a file is a link out of it.
        WaterfillError: transformers cannot read it, or the model lacks a tensor.
        UnsupportedModelError: transformers is not installed, or has no such class of models; or the configuration names
            code that is not part of it.
    """
    if not is_bundle(directory):
        raise FormatError(f"{directory} is no compressed directory; expected one that `waterfill compress` wrote.")
    with options(chosen):
        model = made_of(_class(directory), directory, dtype="auto" if dtype is None else dtype)
    return model if chosen.device is None else model.to(chosen.device)


def like(model: Any, directory: Path) -> nn.Module:
    """A new model of the class, configuration and type of another one, with the values of a directory.

    Raises:
        WaterfillError: transformers cannot make it, or it lacks a tensor.
    """
    register()
    with options(Options()):
        return made_of(type(model), directory, dtype=model.dtype)


def _class(directory: Path) -> Any:
    """The class of transformers that `architectures` names."""
    try:
        register()
    except ImportError as error:
        raise UnsupportedModelError(
            "A model of a directory is made by transformers 5, which is not installed: pip install "
            "'waterfill[transformers]'. Without it, waterfill.decompress() gives the tensors."
        ) from error
    transformers: Any = importlib.import_module("transformers")
    config = read_config(directory)
    check_implementations(config, directory)
    name = architecture(config, directory)
    found = transformers.AutoModel if name is None else class_of_models(name)
    if found is None:
        raise UnsupportedModelError(
            f"{directory}: transformers {transformers.__version__} has no class {str(name)[:100]!r} of models, and "
            "code of the model itself is not run. Upgrade transformers, or give the model: load(path, into=model)."
        )
    return found
