"""Write what a benchmark measured: JSON for programs, a Markdown table for people, both in docs/results/."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "results"


def write(name: str, title: str, text: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write `docs/results/<name>.json` and `.md`, and print the table.

    Args:
        name: file name without ending.
        title: heading of the page.
        text: what was measured, and how.
        rows: one dictionary a row, all with the same keys.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(_cell(row[head]) for head in heads) + " |" for row in rows]
    table = "\n".join(lines)
    made = f"Made by `python benchmarks/{name}.py`, Python {platform.python_version()}, {platform.machine()}."
    (FOLDER / f"{name}.md").write_text(f"# {title}\n\n{text}\n\n{table}\n\n{made}\n")
    print(table)


def _cell(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
