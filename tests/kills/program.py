"""Stop commands before every change of the file system and at random moments: `PYTHONPATH=tests python -m kills`."""

import argparse
import gc
import json
import signal
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch

from kills.cases import cases
from kills.trials import NEW, NOTHING, OLD, Trial, contents, ended, silent

SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130}
"""Signals that a process unwinds for, and how it ends."""


@dataclass
class Row:
    """What was seen of one command.

    Attributes:
        command: its name.
        steps: changes of the file system without a signal.
        kills: how often it was killed before one of these.
        moments: how often it was killed at a random moment.
        signals: how often it got a signal for which it cleans up.
        left: how often a kill left nothing, the old output and the new one.
        with_leftovers: how often a kill left temporary files, until the next run.
        same: how often the next run made the same bytes, and left nothing beside them.
        faults: all that should not be.
    """

    command: str
    steps: int
    kills: int = 0
    moments: int = 0
    signals: int = 0
    left: Counter = field(default_factory=Counter)
    with_leftovers: int = 0
    same: int = 0
    faults: list[str] = field(default_factory=list)


class Campaign:
    """All signals to one command."""

    def __init__(self, trial, random):
        self._trial, self._random = trial, random
        self.row = Row(trial.case.name, len(trial.steps))

    def run(self, most_steps, moments):
        """Kill before steps, of all or a sample, and at random moments; other signals in the same way, fewer."""
        for step in self._sample(most_steps):
            self._kill(f"before step {step} ({self._trial.steps[step]})", lambda step=step: self._trial.start(step))
            self.row.kills += 1
        for _ in range(moments):
            share = self._random.random()
            self._kill(f"at {share:.3f} of its time", lambda share=share: self._trial.start_and_stop(share))
            self.row.moments += 1
        for number in SIGNALS:
            for step in self._sample(most_steps // 3):
                self._stop(number, step)
        return self.row

    def _sample(self, most):
        """Numbers of steps: the last of every kind, and others by chance."""
        steps = self._trial.steps
        chosen = list({change: number for number, change in enumerate(steps)}.values())[-most:]
        others = [number for number in range(len(steps)) if number not in chosen]
        return sorted(chosen + self._random.sample(others, min(len(others), max(0, most - len(chosen)))))

    def _kill(self, when, start):
        had = self._prepare()
        code = ended(start())
        if code not in (0, -signal.SIGKILL):
            self._fault(when, f"ended with {code}")
        self._look(when, had)
        self.row.with_leftovers += bool(self._trial.beside())
        code = ended(self._trial.start())
        if code or contents(self._trial.out) != self._trial.wanted or self._trial.beside():
            self._fault(when, f"then {code}, {self._trial.output()}, {self._trial.beside()}")
        else:
            self.row.same += 1

    def _stop(self, number, step):
        when = f"{signal.Signals(number).name} before step {step} ({self._trial.steps[step]})"
        had = self._prepare()
        code = ended(self._trial.start(step, number))
        if code != SIGNALS[number]:
            self._fault(when, f"ended with {code}")
        self._look(when, had)
        if self._trial.beside():
            self._fault(when, f"left {self._trial.beside()}")
        self.row.signals += 1

    def _prepare(self):
        """Begin anew, every second time with an old output; what is there then."""
        old = bool(self._random.getrandbits(1))
        self._trial.prepare(old=old)
        return self._trial.output()

    def _look(self, when, had):
        found = self._trial.output()
        if found not in (had, NEW):
            self._fault(when, f"{found}, had {had}")
        self.row.left[found] += 1

    def _fault(self, when, what):
        self.row.faults.append(f"{when}: {what}")


def campaign(place, given):
    """A row for every command.

    Args:
        place: an empty folder.
        given: options of the command line, see `main`.
    """
    (place / "in").mkdir()
    with silent():
        every = [case for case in cases(place / "in") if given.only in case.name]
        for number, case in enumerate(every):  # once here, so that all is imported and compiled
            (place / f"warm{number}" / "out").mkdir(parents=True)
            case.warm(place / f"warm{number}")
    gc.collect()
    gc.freeze()
    inputs = contents(place / "in")
    for number, case in enumerate(every):
        trial = Trial(case, place / f"trial{number}")
        most = case.sample if given.sample else given.steps
        row = Campaign(trial, Random(f"{given.seed} {case.name}")).run(most, 1 if given.sample else given.moments)
        if contents(place / "in") != inputs:
            row.faults.append("the input was changed")
        yield row


def table(rows):
    """Rows as text."""
    lines = [
        f"{'command':20} {'steps':>5} {'kills':>5} {'moments':>7} {'signals':>7} {'nothing':>7} {'old':>4} {'new':>4} "
        f"{'leftovers':>9} {'same after':>10} {'faults':>6}"
    ]
    for row in rows:
        states = " ".join(f"{row.left[state]:{width}}" for state, width in ((NOTHING, 7), (OLD, 4), (NEW, 4)))
        lines.append(
            f"{row.command:20} {row.steps:5} {row.kills:5} {row.moments:7} {row.signals:7} {states} "
            f"{row.with_leftovers:9} {row.same:10} {len(row.faults):6}"
        )
        lines += [f"    {fault}" for fault in row.faults[:20]]
    return "\n".join(lines)


def main(words=None):
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="kills", description=__doc__)
    parser.add_argument("--moments", type=int, default=40, help="random moments for each command")
    parser.add_argument("--steps", type=int, default=1000, help="steps before which each command is killed, at most")
    parser.add_argument("--sample", action="store_true", help="few steps and one moment for each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands whose names have this in them")
    parser.add_argument("--json", type=Path, help="file for the rows")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        rows = list(campaign(Path(place), given))
    if given.json:
        given.json.write_text(json.dumps([vars(row) for row in rows], indent=1))
    print(table(rows))
    return int(any(row.faults for row in rows))
