"""Model directories of transformers: which class reads one, and how it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn

from waterfill.errors import WaterfillError
from waterfill.models.configuration import architecture, read_object
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
    kind = model_class(directory)
    try:
        with _without_bars():
            model = kind.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WaterfillError(
            f"The model in {directory} cannot be read ({cause}); expected weights that fit config.json. "
            "Copy its files again."
        ) from error
    module = Embedder(model, pooling_of(directory)) if is_embedder(directory) else model
    return cast("nn.Module", module.eval())


@contextmanager
def _without_bars() -> Iterator[None]:
    """Loading shows no progress bars of transformers."""
    from transformers.utils import logging

    quiet: Any = logging
    shown = quiet.is_progress_bar_enabled()
    quiet.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            quiet.enable_progress_bar()


def model_class(directory: Path) -> Any:
    """Class of transformers that reads a directory, by its `config.json`.

    It is that of the name under "architectures", `AutoModel` where there is none that transformers has, and for
    directories that say how to pool.

    Raises:
        FormatError: `config.json` is no JSON object.
        WaterfillError: there is no such file, or transformers is not installed.
    """
    first = architecture(read_object(directory / "config.json"))
    try:
        import transformers
    except ImportError as error:
        raise WaterfillError(
            "Model directories need transformers, which is not installed; pip install 'waterfill[transformers]'."
        ) from error
    found = None if first is None or is_embedder(directory) else getattr(transformers, first, None)
    return found if hasattr(found, "from_pretrained") else transformers.AutoModel
