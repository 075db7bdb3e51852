"""Sums over batches that are the same bits whoever adds which batch, in whatever order.

Floating-point sums depend on their order; whole numbers do not. So every sum counts in units of a power of two, 2^-40
of the largest value of the first batch (which is on the first process), and processes add up whole numbers. Where that
is zero, and for what the first batch does not reach, the unit is the largest of the same kind; never is it far below
that, for some gradients are zero in a batch but for rounding (those of queries, where there is one position).

Values are counted where they are: those of a device are rounded and added up there, to the same whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from waterfill.errors import CalibrationError
from waterfill.processes import Processes

DIGITS = 40
"""Binary digits of the largest value of the first batch; float32 has 24."""

SPREAD = 16
"""Octaves by which a unit may be below the largest of its kind."""

AT_ONCE = 1 << 26
"""Values that are counted at once on a device, where they take 16 bytes each beside the sums."""

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
        values = {name: value.detach() for name, value in values.items()}
        if self._units is None:
            found = {name: _exponent(each) for name, each in zip(values, _largest(values.values()), strict=True)}
            self._units = self._processes.broadcast({name: unit for name, unit in found.items() if unit is not None})
            for name, unit in self._units.items():
                kind = name.partition(":")[0]
                self._highest[kind] = max(unit, self._highest.get(kind, unit))
        counted = [self._count(name, value) for name, value in values.items()]
        for name, most in zip(values, _numbers(counted), strict=True):
            largest = self._largest.get(name, 0.0) + most
            if not largest < MOST / self._processes.count:
                raise CalibrationError(
                    f"The statistics of {name.partition(':')[2]!r} are not finite, or a million times larger in one "
                    "batch than in the first. Check the batches and the weights."
                )
            self._largest[name] = largest

    def _count(self, name: str, value: Tensor) -> Tensor:
        """Add a value in units; gives its largest entry in units, float64."""
        from waterfill.importance.exact_sum_kernels import count  # here, for `import waterfill` to stay light

        if name not in self._sums:
            self._sums[name] = torch.zeros(value.shape, dtype=torch.int64, device=value.device)
        flat = (value if value.dtype == torch.float32 else value.double()).reshape(-1)
        sums, scale = self._sums[name].view(-1), 2.0 ** (DIGITS - self._unit(name))
        if value.device.type != "cpu":
            return count_on_device(flat, scale, sums)
        return torch.tensor(count(flat.numpy(), scale, sums.numpy()), dtype=torch.float64)

    def totals(self) -> dict[str, Tensor]:
        """The sums over all batches of all processes, by name; float64, and float32 where they are large matrices.

        They are on the device of the values, and are let go, one after the other; it is called once.
        """
        places = {name: each.device for name, each in self._sums.items()}
        several = self._processes.count > 1
        sums = {name: each.cpu() for name, each in self._sums.items()} if several else self._sums
        self._sums = {}
        whole = self._processes.all_reduce(sums)
        del sums
        usual = next(iter(places.values()), torch.device("cpu"))
        return {name: self._total(name, whole.pop(name).to(places.get(name, usual))) for name in list(whole)}

    def _total(self, name: str, counted: Tensor) -> Tensor:
        total = counted.float() if counted.numel() > LARGE else counted.double()
        return total.mul_(2.0**-DIGITS).mul_(2.0 ** self._unit(name))  # apart, for both to be in the range of float32

    def _unit(self, name: str) -> int:
        """Exponent of the unit, before `DIGITS`."""
        kind = name.partition(":")[0]
        highest = self._highest.get(kind, max(self._highest.values(), default=0))
        return max((self._units or {}).get(name, highest), highest - SPREAD)


def count_on_device(values: Tensor, scale: float, counted: Tensor) -> Tensor:
    """Add `round(scale values)` to whole numbers on the device of the values, as the kernel `count` does on the CPU.

    Args:
        values: float32 or float64 [n].
        scale: units per one.
        counted: what is added to, int64 [n].

    Returns:
        The largest `|scale values|`, float64 []; NaN where one is NaN.
    """
    largest = [values.new_zeros((), dtype=torch.float64)]
    for some, sums in zip(torch.split(values, AT_ONCE), torch.split(counted, AT_ONCE), strict=True):
        scaled = some.double() * scale
        sums += scaled.round().to(torch.int64)
        largest += [scaled.abs_().max()] if len(some) else []
    return torch.stack(largest).max()


def _largest(values: Iterable[Tensor]) -> list[float]:
    """The largest size of an entry of each; 0 of those without entries."""
    return _numbers([each.abs().max().double() if each.numel() else each.new_zeros(()).double() for each in values])


def _numbers(found: Sequence[Tensor]) -> list[float]:
    """Values of numbers on several devices, copied from each device at once."""
    numbers = [0.0] * len(found)
    for device in {each.device for each in found}:
        here = [index for index, each in enumerate(found) if each.device == device]
        for index, number in zip(here, torch.stack([found[index] for index in here]).tolist(), strict=True):
            numbers[index] = number
    return numbers


def _exponent(largest: float) -> int | None:
    """Of the largest value; None where there is none that says anything."""
    return math.frexp(largest)[1] if math.isfinite(largest) and largest > 0 else None
