"""Model directories of transformers: which class reads one, and how it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn

from waterfill.errors import FormatError, UnsupportedModelError, WaterfillError, first_line
from waterfill.io.configuration import architecture, check_links, read_object
from waterfill.models.embedder import Embedder, is_embedder, pooling_of


def load_pretrained(directory: Path) -> nn.Module:
    """Read the model of a directory; nothing is fetched, and no code in the directory is run.

    Args:
        directory: one with `config.json` and weights.

    Returns:
        The network in evaluation mode, in the dtype of its weights: the class that the configuration names; for a
        directory that says how to pool an `Embedder` of its encoder.

    Raises:
        FormatError: `config.json` is no JSON object, or a file is a link out of the directory.
        UnsupportedModelError: the configuration names code that is not part of transformers.
        WaterfillError: there is no such directory, transformers is not installed or cannot read it, or weights are
            missing.
    """
    kind, pools = model_class(directory), is_embedder(directory)
    with _without_bars():
        model = made_of(kind, directory, spared="pooler." if pools else "")
    return Embedder(model, pooling_of(directory)).eval() if pools else model


def made_of(kind: Any, directory: Path, *, spared: str = "", **options: Any) -> nn.Module:
    """A new model of a class of transformers with the weights of a directory; see `load_pretrained`.

    Args:
        kind: the class.
        directory: one with `config.json` and weights.
        spared: the beginning of names of parameters that need not be there, for nobody looks at what they give.
        options: other arguments of `from_pretrained`.

    Returns:
        The model, in evaluation mode.

    Raises:
        FormatError: a file is a link out of the directory.
        WaterfillError: transformers cannot read it, or weights are missing.
    """
    check_links(directory)
    try:
        model, found = kind.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except WaterfillError:
        raise
    except Exception as error:
        raise WaterfillError(
            f"The model in {directory} cannot be read ({first_line(error)[:300]}); expected weights that fit "
            "config.json. Copy its files again."
        ) from error
    missing = sorted(name for name in found["missing_keys"] if not (spared and name.startswith(spared)))
    if missing:
        raise WaterfillError(
            f"The model in {directory} lacks the tensor {missing[0][:200]!r} ({len(missing)} in all) of a "
            f"{kind.__name__}, which would have random values. Copy the files of the directory again."
        )
    return cast("nn.Module", model.eval())


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
        FormatError: `config.json` is no JSON object, or the architectures are no list of names.
        UnsupportedModelError: it names code that is not part of transformers.
        WaterfillError: there is no such file, or transformers is not installed.
    """
    config = read_object(directory / "config.json")
    name = architecture(config, directory)
    check_implementations(config, directory)
    try:
        import transformers
    except ImportError as error:
        raise WaterfillError(
            "Model directories need transformers, which is not installed; pip install 'waterfill[transformers]'."
        ) from error
    found = None if name is None or is_embedder(directory) else class_of_models(name)
    return transformers.AutoModel if found is None else found


def check_implementations(config: Mapping[str, Any], directory: Path) -> None:
    """Check that all of a model is part of transformers, and nothing such as its attention in a repository of the hub.

    Raises:
        UnsupportedModelError: something is.
        FormatError: its weights are said to be in another folder.
    """
    weights = config.get("transformers_weights")
    if weights is not None and (not isinstance(weights, str) or Path(weights).name != weights):
        raise FormatError(
            f"{directory / 'config.json'} names {str(weights)[:100]!r} as its transformers_weights; expected the name "
            "of a file in the same directory. Take transformers_weights out of the file."
        )
    for key, value in _implementations(config):
        if "/" in value:
            raise UnsupportedModelError(
                f"{directory / 'config.json'} names {value[:100]!r} as its {key[:100]}: code of a repository, which is "
                f"not run. Take {key[:100]} out of the file."
            )


def _implementations(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys and values of a configuration, and of those within it, that name implementations."""
    parts = [config]
    for part in parts:  # which grows
        parts += [each for key, each in part.items() if key.endswith("_config") and isinstance(each, dict)]
        for key, value in part.items():
            if key.endswith("_implementation"):
                several = value.values() if isinstance(value, dict) else [value]
                yield from ((key, str(each)) for each in several)


def class_of_models(name: str) -> Any:
    """The class of models that transformers has under a name; None for anything else.

    Raises:
        ImportError: transformers is not installed.
    """
    import transformers

    found = getattr(transformers, name, None)
    known = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if known else None
