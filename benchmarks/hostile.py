"""What changed files, kills and very many tensors do: the page of all three.

The campaigns are run before, by `python -m fuzz` and `python -m kills` of the tests, which take hours; here their JSON
files become tables. What is not given keeps the table that is there. `--tensors N` measures a model of N tensors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import results
import waterfill

Row = dict[str, Any]
MUTANTS, CHECKED, KILLS, TENSORS = "Changed files", "With bounds checks", "Kills and signals", "Very many tensors"
TEXTS = {
    MUTANTS: "`PYTHONPATH=tests:tests/twins python -m fuzz --mutants 1000000 --processes 2 --seed 1` at {commit}. A "
    "mutant is *refused* with one line, *large* (more than 4 MB declared, opened only), read to the *same* values as "
    "its seed, or to *other* ones: those that a slow decoder gives, which was written from the specification alone.",
    CHECKED: "`NUMBA_BOUNDSCHECK=1 PYTHONPATH=tests:tests/twins python -m fuzz --mutants 100000 --seed 2` at "
    "{commit}: every index into an array is checked.",
    KILLS: "`PYTHONPATH=tests python -m kills --steps 1000 --moments 40` at {commit}: SIGKILL before every change of "
    "the file system and at 40 random moments, SIGTERM and SIGINT at some. In half of the cases there was an output "
    "before. *Left* says what was there after the kill; the next run has to make the same bytes and leave nothing "
    "beside them.",
    TENSORS: 'Half matrices of 4 x 4, half vectors of 4, `effort="fast"`, rate 8, no data, at {commit}. CPU seconds. '
    "Loading is `load_state_dict` of PyTorch, whose time goes with the square of the children of a module.",
}


def mutants(path: Path) -> list[Row]:
    """Rows of a campaign of mutants, with their sum."""
    found = json.loads(path.read_text())
    rows: list[Row] = found["kinds"]
    total = {"kind": "all"} | {key: sum(row[key] for row in rows) for key in rows[0] if key != "kind"}
    return [*rows, total]


def kills(path: Path) -> list[Row]:
    """Rows of a campaign of kills."""
    return [
        {
            "command": row["command"],
            "steps": row["steps"],
            "kills before steps": row["kills"],
            "at moments": row["moments"],
            "signals": row["signals"],
            "left: nothing / old / new": " / ".join(str(row["left"].get(key, 0)) for key in ("nothing", "old", "new")),
            "kills with leftovers": row["with_leftovers"],
            "same bytes after": row["same"],
            "faults": len(row["faults"]),
        }
        for row in json.loads(path.read_text())
    ]


def tensors(number: int) -> Row:
    """Seconds of a model of so many tensors."""
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(4, 4) for _ in range(number // 2))
    row: Row = {"tensors": number}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.wf"
        result = _timed(row, "compress", lambda: waterfill.compress(model, rate=8, effort="fast"))
        _timed(row, "save", lambda: result.save(path))
        _timed(row, "open", lambda: waterfill.open(path))
        names = list(model.state_dict())[:: max(1, number // 100)]
        with waterfill.open(path) as file:
            _timed(row, "100 of them", lambda: [file[name] for name in names])
        _timed(row, "decompress", lambda: waterfill.decompress(path))
        _timed(row, "load", lambda: waterfill.load(path, into=model))
        row["bytes"] = path.stat().st_size
    return row


def _timed(row: Row, name: str, work: Callable[[], Any]) -> Any:
    start = time.process_time()
    found = work()
    row[name] = round(time.process_time() - start, 2)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commit", required=True, help="at which the campaigns ran")
    for name in ("fuzz", "checked", "kills"):
        parser.add_argument(f"--{name}", type=Path, help="JSON file of the campaign")
    parser.add_argument("--tensors", type=int, nargs="*", default=[], help="numbers of tensors to measure")
    options = parser.parse_args()
    found = results.read("hostile")
    new: dict[str, list[Row]] = {}
    for title, path, rows in (
        (MUTANTS, options.fuzz, mutants),
        (CHECKED, options.checked, mutants),
        (KILLS, options.kills, kills),
    ):
        if path is not None:
            new[title] = rows(path)
    if options.tensors:
        waterfill.compress(nn.Linear(4, 4), rate=8, effort="fast")  # compiles
        new[TENSORS] = [tensors(number) for number in options.tensors]
    commits = found.get("commits", {}) | dict.fromkeys(new, options.commit)
    tables = {title: new.get(title, found.get(title)) for title in TEXTS}
    sections = [
        results.Section(title, TEXTS[title].format(commit=commits[title]), rows)
        for title, rows in tables.items()
        if rows is not None
    ]
    title, text = "Hostile files, kills, many tensors", "What was found is in `tests/fuzz/corpus`."
    results.write_page("hostile", title, text, sections, named=list(commits.values()))
    results.keep("hostile", {"commits": commits} | {title: rows for title, rows in tables.items() if rows is not None})


if __name__ == "__main__":
    main()
