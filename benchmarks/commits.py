"""Name the code that makes a page or a row: commits of the tree from which the library is imported."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

LIBRARY = ("src", "decoders")
CHANGED = "+"
"""Behind a commit, where files are others than in any commit."""


def tree() -> Path:
    """Find the root of the tree from which the library is imported; it is not imported for that."""
    spec = find_spec("waterfill")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[2]


@cache
def commit(root: Path | None = None, also: Sequence[str] = ()) -> str:
    """The last commit that changed the library, as it was when this was first asked; empty where there is no git.

    Args:
        root: of the tree; by default that from which the library is imported.
        also: other folders of the tree whose changed files count.

    Returns:
        A short hash, with a plus where files are others than in the last commit.
    """
    root = root or tree()
    found = _git(root, "log", "-1", "--format=%h", "--", *LIBRARY)
    changed = _git(root, "status", "--porcelain", "--", *LIBRARY, *also)
    return found + CHANGED * bool(found and changed)


def contains(made: str, change: str) -> bool:
    """Say whether a commit has a change; what git does not know is taken to have none.

    Args:
        made: the commit, with or without a plus.
        change: the commit that made the change.
    """
    return _git(tree(), "merge-base", change, made.rstrip(CHANGED)) == _git(tree(), "rev-parse", change) != ""


def behind(made: str) -> int | None:
    """Count commits that have changed the library since; None where git does not know the commit."""
    found = _git(tree(), "rev-list", "--count", f"{made.rstrip(CHANGED)}..HEAD", "--", *LIBRARY)
    return int(found) if found else None


def named(text: str) -> list[str]:
    """All commits of a text, which may be one or have the first and last of several."""
    return re.findall(r"\b[0-9a-f]{7,40}\b\+?", text)


def _git(root: Path, *command: str) -> str:
    """The output of git, or nothing where it knows nothing or is not there."""
    try:
        done = subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
