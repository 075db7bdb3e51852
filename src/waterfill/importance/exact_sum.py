"""Sums over batches that are the same bits whoever adds which batch, in whatever order.

Floating-point sums depend on their order; whole numbers do not. So every sum counts in units of a power of two, 2^-40
of the largest value of the first batch (which is on the first process), and processes add up whole numbers. Where that
is zero, and for what the first batch does not reach, the unit is the largest of the same kind; never is it far below
that, for some gradients are zero in a batch but for rounding (those of queries, where there is one position).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from waterfill.errors import CalibrationError
from waterfill.processes import Processes

DIGITS = 40
"""Binary digits of the largest value of the first batch; float32 has 24."""

SPREAD = 16
"""Octaves by which a unit may be below the largest of its kind."""

MOST = 2.0**61
"""Largest sum of all processes together, in units."""


class ExactSum:
    """Sums by name; names are `kind:tensor`.

    Args:
        processes: those that add up, each its own batches, in step: nobody may ask for totals before all have
            added a batch.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._sums: dict[str, Tensor] = {}
        self._largest: dict[str, float] = {}
        self._units: dict[str, int] | None = None
        self._highest: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add what a batch gives.

        Raises:
            CalibrationError: it is not finite, or very much larger than in the first batch.
        """
        if self._units is None:
            found = {name: _exponent(value) for name, value in values.items()}
            self._units = self._processes.broadcast({name: unit for name, unit in found.items() if unit is not None})
            for name, unit in self._units.items():
                kind = name.partition(":")[0]
                self._highest[kind] = max(unit, self._highest.get(kind, unit))
        for name, value in values.items():
            scaled = value.detach().cpu().double() * 2.0 ** (DIGITS - self._unit(name))
            largest = self._largest.get(name, 0.0) + (float(scaled.abs().max()) if scaled.numel() else 0.0)
            if not largest < MOST / self._processes.count:
                raise CalibrationError(
                    f"The statistics of {name.partition(':')[2]!r} are not finite, or a million times larger in one "
                    "batch than in the first. Check the batches and the weights."
                )
            self._largest[name] = largest
            counted = scaled.round_().to(torch.int64)
            self._sums[name] = self._sums[name].add_(counted) if name in self._sums else counted

    def totals(self) -> dict[str, Tensor]:
        """The sums over all batches of all processes, float64, by name."""
        whole = self._processes.all_reduce(self._sums)
        return {name: counted.double() * 2.0 ** (self._unit(name) - DIGITS) for name, counted in whole.items()}

    def _unit(self, name: str) -> int:
        """Exponent of the unit, before `DIGITS`."""
        kind = name.partition(":")[0]
        highest = self._highest.get(kind, max(self._highest.values(), default=0))
        return max((self._units or {}).get(name, highest), highest - SPREAD)


def _exponent(value: Tensor) -> int | None:
    """Of the largest value; None where there is none that says anything."""
    largest = float(value.detach().abs().max()) if value.numel() else 0.0
    return math.frexp(largest)[1] if math.isfinite(largest) and largest > 0 else None
