"""Rows of the paper's figures that the JSON files lack, measured and put in; `paper.py page` shows them.

`python benchmarks/paper_rows.py EXPERIMENT OBJECTIVE [--sweep]` takes the T and mu of rows that are there as chosen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import commits
from measure import say
from results import FOLDER
from waterfill.reproduce import EXPERIMENTS, Options
from waterfill.reproduce.importances import Setting
from waterfill.reproduce.run import Lab, Step, open_lab, planned

WORK = Path("build/paper")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=list(EXPERIMENTS))
    parser.add_argument("objective")
    parser.add_argument("--sweep", action="store_true", help="the rows of sweeps instead of those of curves")
    options = parser.parse_args()
    path = FOLDER / "paper" / f"{options.experiment}.json"
    results: dict[str, Any] = json.loads(path.read_text())
    lab = opened(options.experiment, results)
    for step in planned(lab.experiment):
        rows = results.setdefault(step.sweep or "points", [])
        wanted = (step.objective, step.variant, bool(step.sweep)) == (options.objective, "paper", options.sweep)
        if wanted and not any(_is(row, step) for row in rows):
            rows.append(lab.row(step) | {"commit": commits.commit(also=("benchmarks",))})
            say(f"{rows[-1]}")
            path.write_text(json.dumps(results, indent=1) + "\n")


def opened(name: str, results: Mapping[str, Any]) -> Lab:
    """The lab of an experiment, with the choices that its rows had.

    Raises:
        ValueError: the network is another.
    """
    lab = open_lab(EXPERIMENTS[name], WORK / name, Options(), None)
    if lab.facts["sha256"] != results["sha256"]:
        raise ValueError(f"The network of {name} is {lab.facts['sha256'][:12]}; expected {results['sha256'][:12]}.")
    for step, row in _of_paper(results):
        lab.know(step, Setting(step.objective, row["temperature"], row["mu"]))
    return lab


def _of_paper(results: Mapping[str, Any]) -> Iterator[tuple[Step, Mapping[str, Any]]]:
    for row in results["points"]:
        if row["variant"] == "paper":
            yield Step(row["task"], row["amount"], row["objective"]), row


def _is(row: Mapping[str, Any], step: Step) -> bool:
    cells = {"task": step.task, "amount": step.amount, "objective": step.objective, "variant": step.variant}
    cells |= {step.sweep: step.value} if step.sweep else {}
    return all(row[key] == value for key, value in cells.items())


if __name__ == "__main__":
    main()
