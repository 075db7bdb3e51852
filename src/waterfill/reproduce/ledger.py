"""What was measured already: a file that grows by a line for every result, so that a run that stops loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from waterfill.atomic import write_atomically
from waterfill.errors import FormatError, WaterfillError


class Ledger:
    """Values by key, in memory and in a file of JSON lines.

    A last line that was cut off by a crash is dropped.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            FormatError: the file has other contents.
        """
        self.path = path
        self._values: dict[str, Any] = {}
        lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        for number, line in enumerate(lines[:-1], 1):
            pair = _parsed(line)
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
                raise FormatError(
                    f"{path} is damaged in line {number}; expected a key and a value in JSON. Remove the file to "
                    "measure again."
                )
            self._values[pair[0]] = pair[1]
        if lines[-1]:
            write_atomically(path, [b"\n".join([*lines[:-1], b""])])

    def get(self, key: str) -> Any:
        """The value of a key; None if there is none."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> Any:
        """Keep a value; returns it."""
        self._values[key] = value
        with self.path.open("ab") as file:
            file.write(json.dumps([key, value]).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return value

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """The value of a key, which is measured and kept where there is none."""
        return self._values[key] if key in self._values else self.put(key, measure())


def claim_folder(folder: Path, facts: Mapping[str, Any]) -> None:
    """Take a folder for one run, or find it taken by the same one.

    Args:
        folder: made where it is missing.
        facts: everything that results depend on; those that are not known to the folder yet are added.

    Raises:
        WaterfillError: it holds another run; the text names the first fact that differs.
        FormatError: what it says about its run cannot be read.
    """
    path = folder / "run.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WaterfillError(f"Folder {folder} cannot be made: {error.strerror}. Name another one.") from error
    found = _parsed(path.read_bytes()) if path.is_file() else {}
    if not isinstance(found, dict):
        raise FormatError(f"{path} is damaged; expected facts in JSON. Remove the folder, or name another one.")
    for name, value in facts.items():
        if found.setdefault(name, value) != value:
            raise WaterfillError(
                f"Folder {folder} holds a run with {name}={found[name]!r}; expected {value!r} to go on with it. "
                "Name another folder, or remove this one."
            )
    write_atomically(path, [json.dumps(found, indent=1).encode() + b"\n"])


def _parsed(text: bytes) -> Any:
    """The value of a text in JSON; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
