"""What a command tells: text and tables on standard output, JSON in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def show(text: Any) -> None:
    """Print text, or a table of rich, without reading markup in the names of tensors."""
    from rich.console import Console

    if sys.stdout is None:  # closed by the shell, `>&-`
        return
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=isinstance(text, str)).print(text)


def write_json(path: Path | None, text: str) -> None:
    """Write the result to the file of `--json`, if one was given."""
    if path is not None:
        from waterfill.atomic import write_atomically

        write_atomically(path, [text.encode(), b"\n"])
