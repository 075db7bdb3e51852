"""Short floating-point numbers: the same relative precision for every value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from waterfill.protocols import QuadraticForm
from waterfill.quantize import spread as spreads
from waterfill.quantize.scalar import finish
from waterfill.records import Layout, Quantized, Relative, Weight


def relative(weight: Weight, form: QuadraticForm | None, mantissa: int) -> Quantized:
    """Round to a few mantissa bits, at most 23; no value changes its sign, and none from 2^-126 on becomes zero."""
    pattern = weight.matrix.view(np.uint32).astype(np.int64)
    sign, pattern = pattern >> 31, pattern & 0x7FFFFFFF
    signed = bool(sign.any())
    mantissa = min(mantissa, 22 if signed else 23)  # a symbol has 32 bits
    q = _round_shift(pattern, 23 - mantissa)
    offset = int(np.median(q)) if q.size else 0
    symbols = (2 * (q - offset) + sign if signed else q - offset).astype(np.int32)
    fit = spreads.fit(symbols.reshape(1, -1), Layout((symbols.size,)))  # without scales, of which a file has none here
    return finish(weight, form, symbols, Relative(mantissa, offset, signed), fit)


def _round_shift(pattern: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Divide by 2^bits and round; never up to infinity."""
    rounded: NDArray[np.int64] = np.minimum((pattern + ((1 << bits) >> 1)) >> bits, 0x7F7FFFFF >> bits)
    return rounded
