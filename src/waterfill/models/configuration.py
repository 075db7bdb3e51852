"""The small JSON files of a model directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from waterfill.errors import FormatError, WaterfillError


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        WaterfillError: there is no such file, or it cannot be read.
        FormatError: it is no JSON.
    """
    if not path.is_file():
        raise WaterfillError(
            f"{path.parent} has no {path.name}; expected a model directory of transformers. Check the path."
        )
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


def architecture(config: Mapping[str, Any]) -> str | None:
    """The first name under "architectures"; None where there is none.

    Raises:
        FormatError: these are no list of names.
    """
    named = config.get("architectures") or []
    if not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise FormatError(f"config.json has the architectures {named!r}; expected a list of names. Copy it again.")
    return named[0] if named else None
