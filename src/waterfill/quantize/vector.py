"""Vectors: biases, scales and shifts of norms, quantized finely, for they are few and each moves a whole channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waterfill.protocols import QuadraticForm
from waterfill.quantize import spread as spreads
from waterfill.quantize.scalar import finish
from waterfill.records import Quantized, Relative, Uniform, Weight
from waterfill.reconstruct import reconstruct


@dataclass(frozen=True)
class Vector:
    """Uniform steps where the importance is known, a short floating-point number where it is not.

    Attributes:
        fineness: how many times smaller the step is than the water level asks for.
        mantissa: mantissa bits where the importance is unknown; no value loses its sign or becomes zero.
    """

    fineness: float = 4.0
    mantissa: int = 7

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize one vector [1, n]; see `Quantizer`."""
        importance = 0.0 if form is None else float(form.diagonal().mean(dtype=np.float64))
        if importance <= 0:
            return self._relative(weight, form)
        step = np.rint(32 * np.log2(12 * water_level / importance) - 64 * np.log2(self.fineness))
        step = max(int(np.clip(step, -3000, 3000)), _finest_step(weight))
        k = np.rint(weight.matrix / np.exp2(step / 64)).astype(np.int64)
        offset = int(np.rint(k.mean())) if k.size else 0
        symbols = (k - offset).astype(np.int32)
        return finish(weight, form, symbols, Uniform(step, offset), spreads.fit(symbols, weight.layout))

    def _relative(self, weight: Weight, form: QuadraticForm | None) -> Quantized:
        """Round to a few mantissa bits."""
        pattern = weight.matrix.view(np.uint32).astype(np.int64)
        sign, pattern = pattern >> 31, pattern & 0x7FFFFFFF
        q = _round_shift(pattern, 23 - self.mantissa)
        signed = bool(sign.any())
        offset = int(np.median(q)) if q.size else 0
        symbols = (2 * (q - offset) + sign if signed else q - offset).astype(np.int32)
        rule = Relative(self.mantissa, offset, signed)
        error = weight.matrix - reconstruct(symbols.reshape(-1), rule, weight.layout).reshape(weight.matrix.shape)
        fit = spreads.fit(symbols, weight.layout)
        cost = float(np.square(error, dtype=np.float64).sum()) if form is None else form.cost(error)
        return Quantized(symbols, rule, fit.spread(), fit.bits, cost)


def _finest_step(weight: Weight) -> int:
    """A step below which nothing is gained: 2^-20 of the largest magnitude."""
    largest = float(np.abs(weight.matrix).max(initial=0.0))
    return int(np.ceil(64 * np.log2(largest))) - 64 * 20 if largest > 0 else -3000


def _round_shift(pattern: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Divide by 2^bits and round; never up to infinity."""
    q = (pattern + ((1 << bits) >> 1)) >> bits
    return np.minimum(q, (0x7F7FFFFF) >> bits)
