"""A progress bar on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from waterfill.protocols import Progress

if TYPE_CHECKING:
    from rich import progress as rich

STAGES = {
    "read": "reading data",
    "look": "looking at weights",
    "forward": "passing blocks",
    "code": "compressing groups",
    "importance": "estimating importances",
    "curves": "measuring curves",
    "quantize": "quantizing",
    "statistics": "correcting statistics",
    "sequence": "correcting targets",
    "tune": "tuning",
    "evaluate": "evaluating",
    "points": "compressing",
    "train": "training",
}
"""What a person reads for each stage."""

LONG_SECONDS = 600.0
"""The time left goes by the speed of so many seconds: a layer can take more than the usual half minute."""


@dataclass
class _Bar:
    task: rich.TaskID
    done: int = -1
    round: int = 1


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Progress | None]:
    """A `Progress` that draws bars on standard error; None where that is no terminal.

    There is one bar for every stage, with the time that is left of it. A search comes to a stage again and again: its
    bar starts anew then, and says in which round.
    """
    if not (enabled and sys.stderr.isatty()):
        yield None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description:<32}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with rich.Progress(*columns, console=console, transient=True, speed_estimate_period=LONG_SECONDS) as display:
        bars: dict[str, _Bar] = {}

        def show(stage: str, done: int, total: int) -> None:
            name = STAGES.get(stage, stage)
            if stage not in bars:
                bars[stage] = _Bar(display.add_task(name, total=total))
            bar = bars[stage]
            if done <= bar.done:
                bar.round += 1
                display.reset(bar.task, description=f"{name}, round {bar.round}")
            bar.done = done
            display.update(bar.task, completed=done, total=total)

        yield show
