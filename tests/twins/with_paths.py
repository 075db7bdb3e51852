"""A quantizer for tests of the format: short paths with zero in both subsets, escapes and low bits, cheap or not."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from waterfill.protocols import QuantizerTraits
from waterfill.quantize.scalar import finish
from waterfill.quantize.spread import fit
from waterfill.records import Lanes, Paths, Quantized, Spread, Uniform

H0, H1 = 0o35, 0o16


def greedy(x, span):
    """Levels of the path that takes the nearest one at every step, through 16 states, anew after every span."""
    state, levels = 0, []
    for n, value in enumerate(x):
        state = state if n % span else 0
        second = (state & (H1 >> 1)).bit_count() % 2
        k = round((value + np.sign(value)) / 2 if second else value / 2)
        levels.append(2 * k - second * ((k > 0) - (k < 0)))
        state = (2 * state + (k + (state & (H0 >> 1)).bit_count()) % 2) % 16
    return np.array(levels, np.int32)


@dataclass(frozen=True)
class WithPaths:
    down: bool = False
    lanes: Lanes | None = None
    traits: ClassVar[QuantizerTraits] = QuantizerTraits(fixed=True, tempered=False)

    def quantize(self, weight, form, water_level):  # noqa: ARG002
        matrix = weight.matrix.T if self.down else weight.matrix
        log_span = 0 if self.lanes is not None else 1 if self.down else 5
        paths = Paths(4, True, log_span, 6, 19, self.down, lanes=self.lanes)
        levels = greedy(matrix.reshape(-1) * 16, paths.span(weight.layout)).reshape(matrix.shape)
        levels = np.ascontiguousarray(levels.T if self.down else levels)
        out, channels, _ = weight.layout.axes
        rows, columns = (
            np.resize(some, n).astype(np.int8) for some, n in (([-4, 0, 30, 3], out), ([9, -20], channels))
        )
        rule, channels = Uniform(-256, 0, (3, -2, 9)), None
        if self.down:
            rule, rows, channels = Uniform(-256, 0, (3, -2, 9), rows, columns), (-rows).clip(None, 3), -columns
        found = finish(weight, form, levels, rule, fit(levels, weight.layout))
        spread = Spread(4, 14, rows, channels, trellis=paths)
        return Quantized(levels, found.rule, spread, found.bits, found.distortion)
