"""A quantizer for tests of the format: steps and spreads of all axes, near each other's negative or not."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from waterfill.protocols import QuantizerTraits
from waterfill.quantize.scalar import finish
from waterfill.quantize.spread import fit
from waterfill.reconstruct import step_sizes
from waterfill.records import Spread, Uniform


@dataclass(frozen=True)
class WithSums:
    traits: ClassVar[QuantizerTraits] = QuantizerTraits(fixed=True, tempered=False)

    def quantize(self, weight, form, water_level):  # noqa: ARG002
        layout = weight.layout
        patterns = [9, -30, 0, 4], [-20, 13, 2], [5, -7]
        steps = [np.resize(some, n).astype(np.int8) for some, n in zip(patterns, layout.axes, strict=True)]
        rule = Uniform(-256, 0, (3, -2, 9), *steps)
        sizes = step_sizes(rule, layout, 0, layout.numel).reshape(weight.matrix.shape)
        symbols = np.rint(weight.matrix / sizes).astype(np.int32)
        found = finish(weight, form, symbols, rule, fit(symbols, layout))
        near = np.resize([1, 0, 0, -1, 0], layout.axes[0]).astype(np.int8) - steps[0]
        free = np.resize([3, 1], layout.axes[2]).astype(np.int8)
        return replace(found, spread=Spread(4, 60, near, -steps[1], free if layout.axes[2] > 1 else None))
