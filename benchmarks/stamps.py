"""Stamp pages of results: the commit and command it was made by, and notes on what changed since.

Notes are in `docs/results/notes.json`, a list of `{"changed": COMMIT, "pages": [NAME, ...], "text": TEXT}`. One is at
the top of a page until everything on the page was made by code that has the commit.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import commits

Stamp = dict[str, Any]
Stamps = Mapping[str, Stamp]
"""By the title of a section, or by `WHOLE`."""

WHOLE = "page"
"""Stamp of a page whose rows name their commits, and of one that is a single table."""

OWN = re.compile(r"> |Made by `|Made at commit")
"""How paragraphs begin that are written here."""


def stamp(named: Sequence[str] = ()) -> Stamp:
    """Say what makes a page now.

    Args:
        named: commits that the rows of the page name themselves; none for the commit of the tree that runs.
    """
    script, *arguments = sys.argv
    which: Stamp = {"commits": sorted(set(named))} if named else {"commit": commits.commit(also=("benchmarks",))}
    words = [f"python benchmarks/{Path(script).name}", *([] if named else map(_without_place, arguments))]
    return which | {"command": " ".join(words), "python": platform.python_version(), "machine": platform.machine()}


def of_pages(made: Stamps) -> list[str]:
    """All commits that stamps have."""
    found = [each for one in made.values() for each in one.get("commits", [one.get("commit", "")])]
    return sorted({commit for text in found for commit in commits.named(text)})


def dressed(text: str, made: Stamps, notes: Sequence[str]) -> str:
    """Put notes below the title of a page, and what made it where it has to be said; old ones go.

    Args:
        text: the page.
        made: its stamps.
        notes: what changed since.
    """
    title, *parts = [part for part in text.strip().split("\n\n") if not OWN.match(part)]
    shown = [f"> {' '.join(notes)}"] if notes else []
    sentences = {title: _sentence(one) for title, one in made.items()}
    headings = [part.removeprefix("## ") for part in parts if part.startswith("## ")]
    found = {sentences.get(heading, sentences.get(WHOLE, "")) for heading in headings or [WHOLE]}
    for part in parts:
        shown.append(part)
        if len(found) > 1 and part.startswith("## "):
            shown += filter(None, [sentences.get(part.removeprefix("## "))])
    return "\n\n".join([title, *shown, *(found if len(found) == 1 else ())]).rstrip() + "\n"


def notes_of(page: str, made: Stamps, folder: Path) -> list[str]:
    """Notes on what changed since anything of a page was made.

    Args:
        page: its name.
        made: its stamps.
        folder: of pages, with `notes.json`.
    """
    path = folder / "notes.json"
    every = json.loads(path.read_text()) if path.exists() else []
    own = [note for note in every if page in note["pages"]]
    return [n["text"] for n in own if not all(commits.contains(c, n["changed"]) for c in of_pages(made) or [""])]


def _without_place(argument: str) -> str:
    """An argument of a command without the path of a folder that only this machine has."""
    return re.sub(r"(^|=)/\S*", r"\1...", argument)


def _sentence(one: Stamp) -> str:
    how = f"`{one['command']}`, Python {one['python']}, {one['machine']}."
    if "commits" in one:
        many = "s" * (len(one["commits"]) > 1)
        return f"Made at commit{many} {', '.join(one['commits'])}, which rows or texts name, by {how}"
    dirty = ", with changes that are in no commit," if one["commit"].endswith(commits.CHANGED) else ""
    later = " (named afterwards)" if one.get("afterwards") else ""
    return f"Made at commit {one['commit'].rstrip(commits.CHANGED) or 'unknown'}{dirty}{later} by {how}"
