"""Write what a benchmark measured: JSON for programs, Markdown tables for people, both in docs/results/."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(os.environ.get("WATERFILL_DOCS", Path(__file__).resolve().parent.parent / "docs"))
"""Where pages and pictures go; another folder to try something."""

FOLDER = DOCS / "results"


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


def write_page(name: str, title: str, text: str, sections: Sequence[Section], script: str = "") -> None:
    """Write `docs/results/<name>.json` and `.md` with several tables, and print them.

    Args:
        name: file name without ending.
        title: heading of the page.
        text: what all sections have in common.
        sections: the tables, in order; in the JSON file a list of rows by title.
        script: what made them, by default of the same name.
    """
    parts = [f"# {title}", text]
    for section in sections:
        parts += [f"## {section.title}", section.text]
        parts += [f"![{section.title}](../pictures/{section.picture})"] if section.picture else []
        parts.append(_table(section.rows))
    _write(name, {section.title: section.rows for section in sections}, parts, script)


def read(name: str) -> dict[str, Any]:
    """What `docs/results/<name>.json` has; nothing where there is none."""
    path = FOLDER / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def keep(name: str, data: Any) -> None:
    """Write `docs/results/<name>.json` alone."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def processor() -> str:
    """Name the processor, how many cores there are, and its widest vectors (Linux)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    vectors = "AVX-512" if "avx512f" in facts["flags"] else "AVX2" if "avx2" in facts["flags"] else "no AVX2"
    return f"{facts['model name']}, {os.cpu_count()} cores, {vectors}"


@contextmanager
def alone(name: str) -> Iterator[dict[str, Any]]:
    """What `docs/results/<name>.json` has, while every other process that asks for it in this way waits.

    Args:
        name: file name without ending.
    """
    with Path(tempfile.gettempdir(), f"waterfill-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield read(name)


def _write(name: str, data: Any, parts: list[str], script: str = "") -> None:
    keep(name, data)
    made = f"Made by `python benchmarks/{script or name}.py`, Python {platform.python_version()}, {platform.machine()}."
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
