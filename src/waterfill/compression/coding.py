"""Groups one after the other at one water level, until they fill a size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from waterfill.bundle import BundleWriter
from waterfill.compression import encoder as allocate
from waterfill.compression.budget import Budget
from waterfill.compression.checkpoint_source import Work
from waterfill.compression.coder import Coder, Done
from waterfill.compression.layer_groups import Group
from waterfill.compression.report_rows import Report
from waterfill.compression.sensitivity import Study
from waterfill.errors import TargetError
from waterfill.results import DirectoryResult

HEADER_BYTES = 64
"""Of a safetensors file beside its tensors, and for each tensor in it, without its size and place."""

TRIES = 5
"""How often the last group is coded, until all fit."""

FARTHEST = 6.0
"""Octaves by which the level of the last group moves at most from one try to the next."""

NEARLY = 0.005
"""What may be left of the size at the end."""

Code: TypeAlias = Callable[[Coder, float], Done]
"""Codes a group at a level; called again for another level."""


@dataclass(frozen=True, eq=False)
class Step:
    """One group to code.

    Attributes:
        group: which.
        code: codes it.
        accept: takes what was coded last for good.
    """

    group: Group
    code: Code
    accept: Callable[[], None] = lambda: None


@dataclass(frozen=True, eq=False)
class Steps:
    """How a model is coded.

    Attributes:
        work: the model.
        study: what is known before.
        order: the groups.
        power: to which importances are taken.
        importance: its name.
        unit: of the distortion.
        factor: what costs are multiplied by to be distortions.
        measured: gives the distortion on the calibration data at the end; None without data.
    """

    work: Work
    study: Study
    order: Iterable[Step]
    power: float
    importance: str
    unit: str
    factor: float
    measured: Callable[[], float | None]


@dataclass(eq=False)
class Coding:
    """Codes all groups.

    Attributes:
        writer: of the directory; None in processes that do not write.
        target: what was asked.
        work: the model.
        report: what is told so far.
    """

    writer: BundleWriter | None
    target: Mapping[str, float]
    work: Work
    report: Report = field(default_factory=Report)
    level: float = 0.0

    def run(self, steps: Steps, out: Path) -> DirectoryResult:
        """Code everything, write the directory, say what is known.

        Raises:
            TargetError: the size is too small.
        """
        study, work = steps.study, self.work
        scale = study.mean ** (1 - steps.power)
        volumes = {group.name: study.volumes[group.name].scaled(scale) for group in study.groups}
        exact = {group.name: work.exact_bits(group) for group in study.groups}
        budget = Budget(8 * self._payload_bytes(len(volumes)), volumes, study.vectors, exact)
        self._pilot(study, budget, scale)
        coder = Coder(work.quantizer, study.mean, steps.power, work.team, work.memo)
        for number, step in enumerate(steps.order):
            self._group(step, coder, budget)
            work.tell("code", number + 1, len(study.groups))
        distortion = steps.measured()
        measure = steps.importance if steps.power == 1 else f"{steps.importance}^{steps.power:g}"
        facts = {"target": dict(self.target), "importance": steps.importance, "importance_power": steps.power}
        limits = {"limit": self.report.limit_bits() / max(1, work.floating_values), "limits": self.report.limits}
        written = self._finish(facts | limits | {"limit_measure": measure, "distortion": distortion})
        return self.report.result(
            work, steps.factor, **facts, directory=out, written_bytes=written, water_level=self.level,
            distortion=distortion, limit_measure=measure, distortion_unit=steps.unit,
        )  # fmt: skip

    @property
    def _limit(self) -> float:
        """Bytes of the files."""
        if "size_bytes" in self.target:
            return self.target["size_bytes"]
        return self.target["rate"] * self.work.floating_values / 8

    def _payload_bytes(self, groups: int) -> float:
        digits = len(str(round(self._limit)))
        return self._limit - HEADER_BYTES * (1 + groups) - 3 * digits * groups

    def _pilot(self, study: Study, budget: Budget, scale: float) -> None:
        """See how many bits a group takes at the level of all."""
        volumes = study.volumes.get(study.pilot_group)
        if volumes is None or not study.pilot:
            return
        level = budget.level() / scale
        mine = {name: study.pilot[name] for name in sorted(study.pilot)[self.work.team.rank :: self.work.team.count]}
        done = allocate.quantize(mine, level, memo=self.work.memo)
        bits = sum(map(sum, self.work.team.everyones([item.bits for item in done.values()])))
        share = sum(job.weight.matrix.size for job in study.pilot.values()) / max(1.0, volumes.number)
        budget.pilot(bits, share * volumes.forecast(level))

    def _group(self, step: Step, coder: Coder, budget: Budget) -> None:
        """Code a group; the last one with matrices again and again, until everything fits."""
        name, level = step.group.name, budget.level()
        weights, last = budget.volumes[name].number, budget.is_last(name)
        for left_tries in reversed(range(TRIES)):
            done = step.code(coder, level)
            packed = done.pack()
            left = budget.bits - 8 * len(packed.data) - budget.beside_others(name)
            final = not left_tries or not weights
            fits = left >= 0 and (left <= 8 * NEARLY * self._limit or final)
            if not last or fits:
                break
            if final and left < 0:
                raise TargetError(
                    f"Target of {self._limit:.0f} bytes is below the floor of about "
                    f"{self._limit - left / 8:.0f} bytes for this directory; ask for more."
                )
            octaves = -2.0 * (left - 8 * NEARLY / 2 * self._limit) / weights
            level *= 2.0 ** min(max(octaves, -FARTHEST), FARTHEST)
        step.accept()
        self.report.add(step.group.name, done, packed)
        self.level = level if weights else self.level
        budget.done(step.group.name, level, done.matrix_bits, 8.0 * len(packed.data))
        if self.writer is not None:
            self.writer.add(step.group.name, packed.data)

    def _finish(self, facts: Mapping[str, object]) -> int:
        written = 0 if self.writer is None else self.writer.finish(self.work.tied, facts)
        return self.work.team.of_first(written)
