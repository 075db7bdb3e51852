"""The small JSON files of a model directory, and what is in it at all: links out of it are not followed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waterfill.errors import FormatError, WaterfillError
from waterfill.file_system import is_file, is_folder

METHOD = "waterfill"
"""The `quant_method` of a compressed directory."""


def inside(path: Path, directory: Path) -> Path:
    """A path in a model directory, which leads to something in that, behind all links, too.

    In the cache of the hub, files are links to blobs of the same repository, which are taken as inside.

    Raises:
        FormatError: it leads somewhere else.
    """
    try:
        root, found = directory.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:
        raise FormatError(f"{path} is a link that leads to itself; copy the file in its place.") from error
    roots = [root]
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        roots.append(root.parents[1] / "blobs")
    if not any(found.is_relative_to(each) for each in roots):
        raise FormatError(
            f"{path} leads out of the model directory {directory}; copy the file in the place of the link."
        )
    return path


def check_links(directory: Path) -> None:
    """Check that no file or folder right in a directory is a link out of it: before others read there.

    Raises:
        FormatError: one is.
    """
    if is_folder(directory):
        for path in sorted(directory.iterdir()):
            if path.is_symlink():
                inside(path, directory)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        WaterfillError: there is no such file, or it cannot be read.
        FormatError: it is no JSON, or a link out of its folder.
    """
    if not is_file(path):
        raise WaterfillError(
            f"{path.parent} has no {path.name}; expected a model directory of transformers. Check the path."
        )
    inside(path, path.parent)
    try:
        text = path.read_text("utf-8")
        found = json.loads(text)
        if "\\ud" in text.lower():  # half a character, which no file name and no terminal takes
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        return found
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON ({error}); copy the file again.") from error
    except OSError as error:
        raise WaterfillError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        WaterfillError: there is no such file, or it cannot be read.
        FormatError: it is no JSON, or no object.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise FormatError(
            f"{path} is no JSON object but holds a {type(found).__name__}; expected an object. Copy the file again."
        )
    return found


def architecture(config: Mapping[str, Any], directory: Path) -> str | None:
    """The first name under "architectures" of a directory's configuration; None where there is none.

    It is a name of Python: model cards and errors have it in lines of code that people run.

    Raises:
        FormatError: these are no list of names.
    """
    named = config.get("architectures") or []
    if not (isinstance(named, list) and all(isinstance(name, str) and name.isidentifier() for name in named)):
        raise FormatError(
            f"{directory / 'config.json'} has the architectures {named!r}; expected a list of names. Copy it again."
        )
    return named[0] if named else None


def read_config(directory: Path) -> dict[str, Any]:
    """What `config.json` says.

    Raises:
        WaterfillError: there is no such directory or file.
        FormatError: it is no JSON.
    """
    if not is_folder(directory):
        kind = "is a file" if directory.exists() else "does not exist"
        raise WaterfillError(f"Model directory {directory} {kind}; expected a directory with config.json. Check it.")
    if not is_file(directory / "config.json"):
        adapter = " (it is a PEFT adapter: merge it into its model first)"
        hint = adapter if is_file(directory / "adapter_config.json") else ""
        raise WaterfillError(
            f"Model directory {directory} has no config.json{hint}; expected a Hugging Face model directory. Name the "
            "one that save_pretrained wrote or that was downloaded."
        )
    return read_object(directory / "config.json")


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The `quantization_config` of a configuration, where transformers looks for it; None without one."""
    text = config.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, dict) else None
    found = config.get("quantization_config") or nested
    return found if isinstance(found, dict) else None
