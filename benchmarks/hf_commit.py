"""Which code made a row."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache
def commit() -> str:
    """The last commit that changed the library."""
    command = ["git", "log", "-1", "--format=%h", "--", "src"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()
