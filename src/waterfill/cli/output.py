"""What a command tells: text and tables on standard output, JSON in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from waterfill.errors import UsageError


def process_number() -> str:
    """Number of this process among those that `torchrun` has started; 0 of the only one."""
    return os.environ.get("RANK", "0")


def is_first() -> bool:
    """Whether this process speaks to the user: the only one, or the first of those that `torchrun` has started."""
    return process_number() == "0"


def show(text: Any) -> None:
    """Print text, or a table of rich, without reading markup in the names of tensors."""
    from rich.console import Console

    if sys.stdout is None:  # closed by the shell, `>&-`
        return
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=isinstance(text, str)).print(text)


def check_outputs(out: Path | None, json_file: Path | None, *, force: bool, inputs: Sequence[Path | None] = ()) -> None:
    """Check that both files of a command can be written, before any work.

    Raises:
        UsageError: they are the same file, or one is an input.
        WaterfillError: a folder is missing or not writable, a path is a link that leads to itself, or `out` exists and
            `force` is False.
    """
    from waterfill.atomic import check_destination, resolved

    check_apart(out, json_file, "two files")
    read = {resolved(path) for path in inputs if path is not None}
    for path in (out, json_file):
        if path is not None and _is_of(resolved(path), read):
            raise UsageError(f"{path} is an input and would be overwritten; expected another file to write.")
    if out is not None:
        check_destination(out, force=force)
    if json_file is not None:
        check_destination(json_file, force=True)


def check_apart(out: Path | None, json_file: Path | None, expected: str) -> None:
    """Check that both outputs of a command have names of their own.

    Raises:
        UsageError: they have one; the text says what was expected.
    """
    from waterfill.atomic import resolved

    if out is not None and json_file is not None and resolved(json_file) == resolved(out):
        raise UsageError(f"--out and --json both name {out}; expected {expected}: choose another name for one.")


def _is_of(path: Path, inputs: Set[Path]) -> bool:
    """Whether a path is an input, or weights or the configuration in a directory that is one."""
    from waterfill.atomic import suffix_of_models

    read = path.name == "config.json" or suffix_of_models(path) is not None
    return path in inputs or (read and path.exists() and path.parent in inputs)


def write_json(path: Path | None, text: str) -> None:
    """Write the result to the file of `--json`, if one was given."""
    if path is not None:
        from waterfill.atomic import write_atomically

        write_atomically(path, [text.encode(), b"\n"])
