"""The ways to make a network small that the comparison has, and their settings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import waterfill
from hf_baselines import Small, gptq, round_to_nearest
from hf_grid import Grid
from hf_tasks import Task
from waterfill.bundle import Bundle
from waterfill.quantize import Feedback

WATERFILL, MEMORY, SCALAR = "waterfill", "waterfill, whole model in memory", "scalar with feedback, entropy coded"
FREE = "waterfill, without data"
GPTQ, NEAREST = "GPTQ", "round to nearest"
METHODS = (WATERFILL, MEMORY, FREE, SCALAR, GPTQ, NEAREST)

RATES = (2.0, 2.5, 3.0, 4.0)
LOW_RATES = (1.0, 1.5)
"""Only so that the curve reaches down to the quality of the others."""

BITS = (2, 3, 4)


@dataclass(frozen=True)
class Way:
    """A method at one setting.

    Attributes:
        method: one of `METHODS`.
        setting: the rest, for people.
        make: makes the network small.
    """

    method: str
    setting: str
    make: Callable[[], Small]


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        methods: of `METHODS`.
        rates: of those that take a rate.
        bits: of the integers of the others.
    """

    methods: Sequence[str]
    rates: Sequence[float]
    bits: Sequence[int]

    @property
    def grids(self) -> list[Grid]:
        """Those of integers."""
        return [Grid(bits, symmetric) for bits in self.bits for symmetric in (True, False)]


def ways(task: Task, folder: Path, model: nn.Module, asked: Asked) -> Iterator[Way]:
    """All settings of some methods.

    Args:
        task: gives calibration data.
        folder: directory of the model.
        model: the same, loaded.
        asked: which.
    """
    data = list(task.calibration(folder))
    with tempfile.TemporaryDirectory() as place:
        memory = partial(_in_memory, task, model, data, Path(place))
        made = {
            WATERFILL: lambda: _rates(WATERFILL, asked.rates, partial(_directory, folder, data, ())),
            MEMORY: lambda: _rates(MEMORY, asked.rates, memory),
            FREE: lambda: _rates(FREE, asked.rates, partial(_directory, folder, None, ())),
            SCALAR: lambda: _rates(SCALAR, asked.rates, partial(_directory, folder, data, (Feedback(states=1),))),
            GPTQ: lambda: _gptq(model, data, asked.grids),
            NEAREST: lambda: _nearest(model, asked.grids),
        }
        for method in asked.methods:
            yield from made[method]()


def _rates(method: str, rates: Sequence[float], make: Callable[[float], Small]) -> Iterator[Way]:
    return (Way(method, f"rate {rate:g}", partial(make, rate)) for rate in rates)


def _directory(folder: Path, data: Any, quantizers: Any, rate: float) -> Small:
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        waterfill.compress_directory(folder, out, data, rate=rate, quantizers=quantizers)
        with Bundle(out) as bundle:
            tensors = {name: tensor for name, tensor in bundle.tensors() if tensor.is_floating_point()}
        return Small(tensors, {"": weight_bytes(out)})


def weight_bytes(folder: Path) -> int:
    """Bytes of the shards of a model directory and of their index."""
    files = [*folder.glob("waterfill*.safetensors*")] or [*folder.glob("model*.safetensors*")]
    return sum(path.stat().st_size for path in files)


def _in_memory(task: Task, model: nn.Module, data: Any, work: Path, rate: float) -> Small:
    """Compress a loaded network; what does not depend on the rate stays in a work folder for the next one."""
    result = waterfill.compress(model, data, rate=rate, output=task.output, work=work)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.wf"
        result.save(path)
        return Small(waterfill.decompress(path), {"": path.stat().st_size})


def _gptq(model: nn.Module, data: Any, grids: Sequence[Grid]) -> Iterator[Way]:
    for grid in grids:
        for act_order in (False, True):
            for more in (0, 1) if act_order else (0,):
                tables = Grid(grid.bits + more, grid.symmetric)
                setting = _setting(grid) + ", act-order" * act_order + f", embeddings {tables.bits} bit" * bool(more)
                yield Way(GPTQ, setting, partial(gptq, model, data, grid, act_order, tables))


def _nearest(model: nn.Module, grids: Sequence[Grid]) -> Iterator[Way]:
    return (Way(NEAREST, _setting(grid), partial(round_to_nearest, model, grid)) for grid in grids)


def _setting(grid: Grid) -> str:
    return f"{grid.bits} bit, {'symmetric' if grid.symmetric else 'with zero points'}"
