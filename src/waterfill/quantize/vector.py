"""Vectors: biases, scales and shifts of norms, quantized finely, for they are few and each moves a whole channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waterfill.protocols import QuadraticForm
from waterfill.quantize import spread as spreads
from waterfill.quantize.scalar import LARGEST_STEP, LARGEST_SYMBOL, finest_step, finish
from waterfill.records import Quantized, Relative, Uniform, Weight


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
            return _relative(weight, form, min(max(bits, 4), 23))
        step = np.rint(32 * np.log2(12 * water_level / importance) - 64 * np.log2(self.fineness))
        step = int(np.clip(max(step, finest_step(weight.matrix)), -LARGEST_STEP, LARGEST_STEP))
        k = np.rint(weight.matrix / np.exp2(step / 64)).clip(-LARGEST_SYMBOL, LARGEST_SYMBOL).astype(np.int64)
        offset = int(np.rint(k.mean())) if 2 * np.count_nonzero(k) > k.size else 0
        symbols = (k - offset).astype(np.int32)
        return finish(weight, form, symbols, Uniform(step, offset), spreads.fit(symbols, weight.layout))


def _relative(weight: Weight, form: QuadraticForm | None, mantissa: int) -> Quantized:
    """Round to a few mantissa bits; no value changes its sign or becomes zero."""
    pattern = weight.matrix.view(np.uint32).astype(np.int64)
    sign, pattern = pattern >> 31, pattern & 0x7FFFFFFF
    signed = bool(sign.any())
    mantissa = min(mantissa, 22 if signed else 23)  # a symbol has 32 bits
    q = _round_shift(pattern, 23 - mantissa)
    offset = int(np.median(q)) if q.size else 0
    symbols = (2 * (q - offset) + sign if signed else q - offset).astype(np.int32)
    return finish(weight, form, symbols, Relative(mantissa, offset, signed), spreads.fit(symbols, weight.layout))


def _round_shift(pattern: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Divide by 2^bits and round; never up to infinity."""
    rounded: NDArray[np.int64] = np.minimum((pattern + ((1 << bits) >> 1)) >> bits, 0x7F7FFFFF >> bits)
    return rounded
