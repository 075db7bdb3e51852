"""Uniform levels in a codebook: for magnitudes so small that no step of a file is fine enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from waterfill.protocols import QuadraticForm
from waterfill.quantize import spread as spreads
from waterfill.quantize.floating import relative
from waterfill.quantize.scalar import LARGEST_STEP, finish
from waterfill.quantize.trellis import lagrangian
from waterfill.records import Codebook, Floats, Quantized, Uniform, Weight

SMALLEST = 2.0**-60
"""Matrices whose largest magnitude is below have a table of levels: the finest step of a file, 2^-93.75 without scales
and 2^-79 with the largest ones of two axes, is no longer small beside their weights."""

MOST = (1 << 15) - 1
"""Levels on each side of zero, at most."""

LEAST_STEP, LEAST_NORMAL = 2.0**-149, 2.0**-126
"""The smallest number of single precision, and the smallest from which on there are 23 mantissa bits."""


def needs_table(matrix: Floats) -> bool:
    """Whether the steps of a file may be too coarse for a matrix at some rate."""
    return bool(matrix.size) and 0 < max(float(matrix.max()), -float(matrix.min())) < SMALLEST


@dataclass(frozen=True)
class LevelTable:
    """Uniform levels of any step as a codebook, short floating-point numbers, or zeros: what costs the least.

    A table of levels costs 4 bytes for each, and is not finer than 2^-15 of the largest weight; floating-point numbers
    are.
    """

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize one weight so that its mean `I_w e^2` comes near the water level.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
            water_level: mean cost of an error per weight.
        """
        importance = 1.0 if form is None else float(form.diagonal().sum(dtype=np.float64)) / max(1, weight.matrix.size)
        symbols = np.zeros(weight.matrix.shape, np.int32)
        found = [finish(weight, form, symbols, Uniform(-LARGEST_STEP), spreads.fit(symbols, weight.layout))]
        if importance > 0 and weight.matrix.any():
            step = math.sqrt(12 * water_level / importance)
            found += [on_levels(weight, form, weight.matrix, step), within(weight, form, step)]
        return min(found, key=lambda each: lagrangian(each, water_level))


def on_levels(weight: Weight, form: QuadraticForm | None, values: Floats, step: float) -> Quantized:
    """Round values [out, in] to multiples of a step, or of the finest that a table can have for them.

    Args:
        weight: what they stand for.
        form: what an error costs; None for 1 everywhere.
        values: the weights, some of them perhaps set to zero.
        step: distance of the levels.
    """
    largest = float(np.abs(values).max(initial=0.0))
    step = max(step, largest / MOST, LEAST_STEP)
    k = np.rint(values.astype(np.float64) / step).astype(np.int32)
    low, high = int(k.min(initial=0)), int(k.max(initial=0))
    levels = (np.arange(low, high + 1) * step).astype(np.float32)
    return finish(weight, form, k, Codebook(levels, low), spreads.fit(k, weight.layout))


def within(weight: Weight, form: QuadraticForm | None, step: float) -> Quantized:
    """Round to floating-point numbers whose errors are at most half a step."""
    largest = max(float(np.abs(weight.matrix).max(initial=0.0)), LEAST_NORMAL)
    return relative(weight, form, max(math.ceil(math.log2(largest / step)), 0))
