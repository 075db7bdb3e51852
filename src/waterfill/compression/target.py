"""Targets that a file or a directory has to meet."""

from __future__ import annotations

import math
from dataclasses import dataclass

from waterfill.compression.presets import DEFAULT_RATE
from waterfill.errors import CalibrationError, TargetError, UsageError
from waterfill.protocols import Metric

SIZES = ("rate", "size_bytes")
"""Targets of size; all others are of quality."""

HIGHEST_RATE = 32
"""Bits per value: no file needs more."""


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        name: `rate`, `size_bytes`, `distortion` or `tolerance`.
        value: bits per value, bytes, mean distortion, or loss of the metric.
        metric: of which a loss is tolerated; None for top-1 accuracy on the calibration data.
    """

    name: str
    value: float
    metric: Metric | None = None

    @property
    def is_size(self) -> bool:
        """Whether it is about bytes."""
        return self.name in SIZES

    @property
    def asked(self) -> dict[str, float]:
        """Name and value, as results tell it."""
        return {self.name: self.value}

    @property
    def distortion(self) -> float:
        """The distortion that a target of quality allows, about: ten times a tolerance."""
        return self.value * (10 if self.name == "tolerance" else 1)

    def size(self, floating_values: int) -> float:
        """Bytes that a target of size allows.

        Raises:
            TargetError: a rate is asked for, and there are no values.
        """
        if self.name == "size_bytes":
            return self.value
        if not floating_values:
            raise TargetError(
                "The model has no floating-point values to which a rate applies; ask for size_bytes instead."
            )
        return self.value * floating_values / 8


DEFAULT_TARGET = Target("rate", DEFAULT_RATE)


def target_of(metric: Metric | None, *, has_data: bool, **targets: float | None) -> Target | None:
    """The one target that was given; None when none was.

    Args:
        metric: what a tolerance is about.
        has_data: whether there are calibration data.
        targets: values by name, None for those that were not given.

    Raises:
        UsageError: there are several, one is out of its range, or a metric comes without tolerance.
        CalibrationError: a target of quality comes without data.
    """
    given = {name: float(value) for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise UsageError(f"Got the targets {' and '.join(given)}; expected one: choose what matters.")
    if metric is not None and "tolerance" not in given:
        raise UsageError("Got a metric, but no tolerance that it would decide; expected both. Give a tolerance.")
    if not given:
        return None
    name, value = next(iter(given.items()))
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"Target {name}={value} is out of range; expected a number above zero.")
    if name == "rate" and value > HIGHEST_RATE:
        raise UsageError(f"Target rate={value} is out of range; expected at most {HIGHEST_RATE} bits per value.")
    target = Target(name, value, metric)
    if not target.is_size and not has_data:
        raise CalibrationError(f"Target {name}={value} is measured on data, but there are none; pass data.")
    return target
