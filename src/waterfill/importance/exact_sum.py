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

LARGE = 1 << 20
"""Entries from which totals are in single precision, as the terms are."""

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
            largest = self._largest.get(name, 0.0) + self._count(name, value.detach().cpu())
            if not largest < MOST / self._processes.count:
                raise CalibrationError(
                    f"The statistics of {name.partition(':')[2]!r} are not finite, or a million times larger in one "
                    "batch than in the first. Check the batches and the weights."
                )
            self._largest[name] = largest

    def _count(self, name: str, value: Tensor) -> float:
        """Add a value in units; gives its largest entry in units."""
        from waterfill.importance.exact_sum_kernels import count  # here, for `import waterfill` to stay light

        if name not in self._sums:
            self._sums[name] = torch.zeros(value.shape, dtype=torch.int64)
        flat = (value if value.dtype == torch.float32 else value.double()).reshape(-1)
        largest: float = count(flat.numpy(), 2.0 ** (DIGITS - self._unit(name)), self._sums[name].view(-1).numpy())
        return largest

    def totals(self) -> dict[str, Tensor]:
        """The sums over all batches of all processes, by name; float64, and float32 where they are large matrices.

        They are let go, one after the other; it is called once.
        """
        whole = self._processes.all_reduce(self._sums)
        self._sums = {}
        return {name: self._total(name, whole.pop(name)) for name in list(whole)}

    def _total(self, name: str, counted: Tensor) -> Tensor:
        total = counted.float() if counted.numel() > LARGE else counted.double()
        return total.mul_(2.0**-DIGITS).mul_(2.0 ** self._unit(name))  # apart, for both to be in the range of float32

    def _unit(self, name: str) -> int:
        """Exponent of the unit, before `DIGITS`."""
        kind = name.partition(":")[0]
        highest = self._highest.get(kind, max(self._highest.values(), default=0))
        return max((self._units or {}).get(name, highest), highest - SPREAD)


def _exponent(value: Tensor) -> int | None:
    """Of the largest value; None where there is none that says anything."""
    largest = float(value.detach().abs().max()) if value.numel() else 0.0
    return math.frexp(largest)[1] if math.isfinite(largest) and largest > 0 else None
