"""Tables of the stages of a compression: CPU seconds by several trees, the least that is needed, what lies between.

`speed.py` makes it; every run is a process of its own on one thread.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import Section
from stage_profile import by_stage
from walks import THREADS, Tree

Row = dict[str, Any]

CASES = {
    "block-11m": "Stages of one block of 11 M weights, 8 x 256 tokens, rate 3",
    "block-44m": "Stages of one block of 44 M weights, 8 x 256 tokens, rate 3",
    "resnet20": "Stages of ResNet-20, 1,024 images, rate 2",
}
"""Titles by key of `walk_cases.CASES`."""

LAST_ONLY = ("block-44m",)
"""Only the last tree is measured: older ones take ten minutes and more."""

TEXT = (
    "CPU seconds from the call to the written file, all in one thread, by a sampling profile; time belongs to the "
    "innermost function whose module stands for a stage. Floors are counted operations over rates measured in the "
    "same run ({rates}): passes are the original forward, twice as much backward and the compressed forward; a Gram "
    "matrix of every distinct input (half a product, at most 65,536 tokens), a Cholesky factorization of each for the "
    "filter and one for the targets with two triangular solves for each matrix; the lower half of a product of errors "
    "with each filter; 40 million weights a second in the search, which a prototype does; two products with 256 rows "
    "for centroids and cost; one histogram of all weights; one sort of 2^18 weights of each matrix; one pass of the "
    "coder. The gap is the last tree over the floor."
)


@dataclass(frozen=True)
class Step:
    """A script of one of the stages and where its JSON is kept.

    Attributes:
        script: its file.
        arguments: of it.
        raw: what it printed.
        tree: whose library it uses.
    """

    script: str
    arguments: Sequence[str | Path]
    raw: Path
    tree: Tree

    def measured(self, any_commit: bool = False) -> Row | None:
        """What is kept of this commit, or of any."""
        found: Row = json.loads(self.raw.read_text()) if self.raw.exists() else {}
        return found if found and (any_commit or found["commit"] == self.tree.commit) else None

    def measure(self) -> Row:
        """Run it, and keep what it printed."""
        done = subprocess.run(
            [sys.executable, Path(__file__).with_name(self.script), *self.arguments],
            env=os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": str(self.tree.path / "src")},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found: Row = json.loads(done.stdout.splitlines()[-1]) | {"commit": self.tree.commit}
        self.raw.parent.mkdir(parents=True, exist_ok=True)
        self.raw.write_text(json.dumps(found, indent=1) + "\n")
        print(self.raw.name, file=sys.stderr, flush=True)
        return found


def profile(case: str, tree: Tree, keep: Path) -> Step:
    """The profile of a case by a tree."""
    arguments = case, keep / "sources", keep / "files" / f"stages-{case}-{tree.name}"
    return Step("stage_profile.py", arguments, keep / f"stages-{case}-{tree.name}.json", tree)


def floor(case: str, tree: Tree, keep: Path) -> Step:
    """The floors of a case."""
    return Step("stage_floors.py", (case, keep / "sources"), keep / f"floors-{case}.json", tree)


def measure(trees: Sequence[Tree], keep: Path) -> None:
    """Measure what is not kept."""
    for case in CASES:
        some = trees[-1:] if case in LAST_ONLY else trees
        for step in [*(profile(case, tree, keep) for tree in some), floor(case, trees[-1], keep)]:
            if step.measured() is None:
                step.measure()


def sections(trees: Sequence[Tree], keep: Path) -> list[Section]:
    """Tables of the cases that were measured by the last tree, at any commit."""
    found = []
    for case, title in CASES.items():
        profiles = {tree.name: profile(case, tree, keep).measured(any_commit=True) for tree in trees}
        least = floor(case, trees[-1], keep).measured(any_commit=True)
        if least is not None and profiles[trees[-1].name] is not None:
            found.append(Section(title, TEXT.format(rates=_rates(least["machine"])), _rows(profiles, least["floors"])))
    return found


def _rates(machine: Row) -> str:
    return (
        f"products {machine['product'] / 1e9:.0f} GFLOP/s, Cholesky {machine['factor'] / 1e9:.0f}, copies "
        f"{machine['copy'] / 1e9:.0f} GB/s, histograms {machine['count'] / 1e6:.0f} M/s, sorts "
        f"{machine['sort'] / 1e6:.0f} M/s, entropy coder {machine['code'] / 1e6:.0f} M/s"
    )


def _rows(profiles: dict[str, Row | None], floors: dict[str, float]) -> list[Row]:
    """A row for each stage, the dearest of the last tree first, then all together."""
    seconds = {name: by_stage(found["stacks"]) for name, found in profiles.items() if found}
    last = list(seconds.values())[-1]
    order = sorted(last, key=lambda stage: -last[stage])
    rows = [_row(stage, {name: found[stage] for name, found in seconds.items()}, floors.get(stage)) for stage in order]
    total = {name: sum(found.values()) for name, found in seconds.items()}
    return [*rows, _row("all", total, sum(floors.values()))]


def _row(stage: str, seconds: dict[str, float], least: float | None) -> Row:
    measured = {f"{name}, CPU s": round(each, 2) for name, each in seconds.items()}
    gap = round(list(seconds.values())[-1] / least, 1) if least else ""
    return {"stage": stage, **measured, "floor, CPU s": "" if least is None else round(least, 2), "gap": gap}
