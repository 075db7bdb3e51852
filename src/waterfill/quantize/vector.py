"""Vectors: biases, scales and shifts of norms, quantized finely, for they are few and each moves a whole channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from waterfill.protocols import QuadraticForm
from waterfill.quantize import spread as spreads
from waterfill.quantize.level_table import LEAST_NORMAL, LevelTable, within
from waterfill.quantize.scalar import LARGEST_STEP, finest_step, finish, nearest_symbols
from waterfill.records import Quantized, Uniform, Weight


@dataclass(frozen=True)
class Vector:
    """Uniform steps where the importance is known, a short floating-point number where it is not.

    Attributes:
        power: mean cost of a matrix weight that is set to zero; against the water level it says how finely the
            matrices are quantized, and a vector of unknown importance gets two mantissa bits more.
        fineness: how many times smaller than the water level asks for the step is, where the importance is known.
    """

    power: float = 1.0
    fineness: float = 4.0

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize one vector [1, n]; see `Quantizer`."""
        importance = 0.0 if form is None else float(form.diagonal().sum(dtype=np.float64)) / max(1, weight.matrix.size)
        if importance <= 0:
            bits = math.ceil(math.log2(self.power / water_level) / 2) + 2
            largest = float(np.abs(weight.matrix).max(initial=0.0)) or LEAST_NORMAL
            return within(weight, form, largest * 2.0 ** -min(max(bits, 4), 23))
        asked = np.rint(32 * np.log2(12 * water_level / importance) - 64 * np.log2(self.fineness))
        step = int(min(max(asked, finest_step(weight.matrix)), LARGEST_STEP))
        if step < -LARGEST_STEP:
            return LevelTable().quantize(weight, form, water_level / self.fineness**2)
        k = nearest_symbols(weight.matrix / np.exp2(step / 64)).astype(np.int64)
        offset = int(np.rint(k.mean())) if 2 * np.count_nonzero(k) > k.size else 0
        symbols = (k - offset).astype(np.int32)
        return finish(weight, form, symbols, Uniform(step, offset), spreads.fit(symbols, weight.layout))
