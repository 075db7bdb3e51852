"""Write what a benchmark measured: JSON for programs, Markdown tables for people, both in docs/results/.

`python benchmarks/results.py [PAGE=COMMIT ...]` measures nothing: it writes notes and commits into all pages again, and
names the commit of pages that were made by scripts that did not.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stamps
from stamps import WHOLE, Stamps

DOCS = Path(os.environ.get("WATERFILL_DOCS", Path(__file__).resolve().parent.parent / "docs"))
"""Where pages and pictures go; another folder to try something."""

FOLDER = DOCS / "results"

ROWS, MADE = "rows", "made"
"""Keys in the JSON file: the rows of a page that is a single table, and what made the page."""


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
    keep(name, {ROWS: rows}, [WHOLE])
    _write(name, [f"# {title}", text, table(rows)])


def write_page(
    name: str,
    title: str,
    text: str,
    sections: Sequence[Section],
    measured: Sequence[str] | None = None,
    named: Sequence[str] = (),
) -> None:
    """Write `docs/results/<name>.json` and `.md` with several tables, and print them.

    Args:
        name: file name without ending.
        title: heading of the page.
        text: what all sections have in common.
        sections: the tables, in order; in the JSON file a list of rows by title.
        measured: titles of those that were measured by this run, which makes them of this commit; by default all.
        named: commits that the rows or texts of the page name themselves; then the sections are of no other.
    """
    parts = [f"# {title}", text]
    for section in sections:
        parts += [f"## {section.title}", section.text]
        parts += [f"![{section.title}](../pictures/{section.picture})"] if section.picture else []
        parts.append(table(section.rows))
    titles = [section.title for section in sections]
    keep(name, {each.title: each.rows for each in sections}, titles if measured is None else measured, named)
    _write(name, parts)


def read(name: str) -> dict[str, Any]:
    """What `docs/results/<name>.json` has but for what made it; nothing where there is none.

    A single table, which older files have alone, is under `ROWS`.
    """
    return {key: rows for key, rows in _whole(name).items() if key != MADE}


def made(name: str) -> Stamps:
    """What made a page: stamps by titles of sections, or one of the whole page; none in older files."""
    found: Stamps = _whole(name).get(MADE, {})
    return found


def keep(name: str, data: dict[str, Any], measured: Sequence[str] = (), named: Sequence[str] = ()) -> None:
    """Write `docs/results/<name>.json` alone.

    Args:
        name: file name without ending.
        data: what is measured.
        measured: titles of sections, or `WHOLE`, that were measured by this run; what made others stays.
        named: commits that the rows or texts of the page name themselves.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    now = {WHOLE: stamps.stamp(named)} if named else dict(made(name)) | dict.fromkeys(measured, stamps.stamp())
    kept = {title: one for title, one in now.items() if title == WHOLE or title in data}
    (FOLDER / f"{name}.json").write_text(json.dumps({MADE: kept} | data, indent=1) + "\n")


def pages() -> list[str]:
    """Names of all pages, without ending."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def dressed(name: str) -> str:
    """The page with notes and commits as they are to be now."""
    text, found = (FOLDER / f"{name}.md").read_text(), made(name)
    return stamps.dressed(text, found, stamps.notes_of(name, found, FOLDER))


def processor() -> str:
    """Name the processor, how many cores there are, and its widest vectors (Linux)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    vectors = "AVX-512" if "avx512f" in facts["flags"] else "AVX2" if "avx2" in facts["flags"] else "no AVX2"
    return f"{facts['model name']}, {os.cpu_count()} cores, {vectors}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table of Markdown."""
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(_cell(row[head]) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


@contextmanager
def alone(name: str) -> Iterator[dict[str, Any]]:
    """What `docs/results/<name>.json` has, while every other process that asks for it in this way waits.

    Args:
        name: file name without ending.
    """
    with Path(tempfile.gettempdir(), f"waterfill-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield read(name)


def main(arguments: Sequence[str]) -> None:
    """Write what made them and notes into all pages, some with the commit that is given."""
    for page, _, commit in (argument.partition("=") for argument in arguments):
        script = re.search(r"^Made .*`(python benchmarks/\w+\.py.*?)`", (FOLDER / f"{page}.md").read_text(), re.M)
        one = stamps.stamp(commit.split(",") if "," in commit else ())
        one |= {"command": script[1] if script else ""}
        one |= {} if "commits" in one else {"commit": commit, "afterwards": True}
        data = read(page)
        titles = [WHOLE] if ROWS in data or "commits" in one else list(data)
        (FOLDER / f"{page}.json").write_text(json.dumps({MADE: dict.fromkeys(titles, one)} | data, indent=1) + "\n")
    for page in pages():
        (FOLDER / f"{page}.md").write_text(dressed(page))


def _whole(name: str) -> dict[str, Any]:
    path = FOLDER / f"{name}.json"
    found: Any = json.loads(path.read_text()) if path.exists() else {}
    return {ROWS: found} if isinstance(found, list) else dict(found)


def _write(name: str, parts: list[str]) -> None:
    (FOLDER / f"{name}.md").write_text("\n\n".join(parts) + "\n")
    (FOLDER / f"{name}.md").write_text(dressed(name))
    print("\n\n".join(part for part in parts if part.startswith(("|", "## "))))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
