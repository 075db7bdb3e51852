"""Write what a benchmark measured: JSON for programs, Markdown tables for people, both in docs/results/."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "results"


@dataclass(frozen=True)
class Section:
    """One titled table of a page.

    Attributes:
        title: its heading, and its key in the JSON file.
        text: what was measured, and how.
        rows: one dictionary a row, all with the same keys.
        picture: file name of a picture in `docs/pictures`, or empty.
    """

    title: str
    text: str
    rows: Sequence[dict[str, Any]]
    picture: str = ""


def write(name: str, title: str, text: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write `docs/results/<name>.json` and `.md` with one table, and print the table.

    Args:
        name: file name without ending.
        title: heading of the page.
        text: what was measured, and how.
        rows: one dictionary a row, all with the same keys.
    """
    _write(name, rows, [f"# {title}", text, _table(rows)])


def write_page(name: str, title: str, text: str, sections: Sequence[Section]) -> None:
    """Write `docs/results/<name>.json` and `.md` with several tables, and print them.

    Args:
        name: file name without ending.
        title: heading of the page.
        text: what all sections have in common.
        sections: the tables, in order; in the JSON file a list of rows by title.
    """
    parts = [f"# {title}", text]
    for section in sections:
        parts += [f"## {section.title}", section.text]
        parts += [f"![{section.title}](../pictures/{section.picture})"] if section.picture else []
        parts.append(_table(section.rows))
    _write(name, {section.title: section.rows for section in sections}, parts)


def _write(name: str, data: Any, parts: list[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    made = f"Made by `python benchmarks/{name}.py`, Python {platform.python_version()}, {platform.machine()}."
    (FOLDER / f"{name}.md").write_text("\n\n".join([*parts, made]) + "\n")
    print("\n\n".join(part for part in parts if part.startswith(("|", "## "))))


def _table(rows: Sequence[dict[str, Any]]) -> str:
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(_cell(row[head]) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
