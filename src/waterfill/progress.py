"""A progress bar on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from waterfill.protocols import Progress


@contextmanager
def progress_bar(enabled: bool = True) -> Iterator[Progress | None]:
    """A `Progress` that draws a bar with the time left on standard error; None where that is no terminal."""
    if not (enabled and sys.stderr.isatty()):
        yield None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (rich.TextColumn("{task.description:<24}"), rich.BarColumn(), rich.MofNCompleteColumn())
    with rich.Progress(*columns, rich.TimeRemainingColumn(), console=Console(stderr=True), transient=True) as display:
        tasks: dict[str, rich.TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage)
            if done <= 1:
                display.reset(tasks[stage])
            display.update(tasks[stage], completed=done, total=total)

        yield show
