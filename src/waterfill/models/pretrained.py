"""Model directories of transformers: which class reads one, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from torch import nn

from waterfill.errors import FormatError, WaterfillError
from waterfill.models.embedder import Embedder, is_embedder, pooling_of


def load_pretrained(directory: Path) -> nn.Module:
    """Read the model of a directory; nothing is fetched, and no code in the directory is run.

    Args:
        directory: one with `config.json` and weights.

    Returns:
        The network in evaluation mode, in the dtype of its weights: the class that the configuration names; for a
        directory that says how to pool an `Embedder` of its encoder.

    Raises:
        FormatError: `config.json` is no JSON object.
        WaterfillError: there is no such directory, transformers is not installed or cannot read it.
    """
    config = directory / "config.json"
    if not config.is_file():
        raise WaterfillError(
            f"{directory} has no config.json; expected a model directory of transformers. Check the path."
        )
    kind = model_class(config)
    try:
        model = kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WaterfillError(
            f"The model in {directory} cannot be read ({cause}); expected weights that fit config.json. "
            "Copy its files again."
        ) from error
    module = Embedder(model, pooling_of(directory)) if is_embedder(directory) else model
    return cast("nn.Module", module.eval())


def model_class(config: Path) -> Any:
    """Class of transformers that reads a directory, by the file `config.json` in it.

    It is that of the name under "architectures", `AutoModel` where there is none that transformers has, and for
    directories that say how to pool.

    Raises:
        FormatError: the file is no JSON object.
        WaterfillError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise WaterfillError(
            "Model directories need transformers, which is not installed; pip install 'waterfill[transformers]'."
        ) from error
    names = _architectures(config)
    found = None if is_embedder(config.parent) else getattr(transformers, names[0] if names else "", None)
    return found if hasattr(found, "from_pretrained") else transformers.AutoModel


def _architectures(config: Path) -> list[str]:
    try:
        found = json.loads(config.read_text("utf-8"))
    except ValueError as error:
        raise FormatError(f"{config} is no JSON ({error}); copy the file again.") from error
    if not isinstance(found, dict):
        raise FormatError(f"{config} holds a {type(found).__name__}; expected an object. Copy the file again.")
    named = found.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
