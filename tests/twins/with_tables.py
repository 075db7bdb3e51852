"""A quantizer for tests of the format: two own tables in front of the bank, whether that is cheaper or not."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from waterfill.protocols import QuantizerTraits
from waterfill.quantize import Prune
from waterfill.quantize.spread import fit
from waterfill.records import Table

TABLES = (
    Table(0, np.array([9, 6], np.int32)),
    Table(-9, np.array([3, 9, 5, 8, 2, 0, 7, 4], np.int32)),
)
"""Of zero alone, and of -9..-3 without -4; both with an escape."""


@dataclass(frozen=True)
class WithTables:
    keep: float = 0.3
    traits: ClassVar[QuantizerTraits] = QuantizerTraits(fixed=True, tempered=False)

    def quantize(self, weight, form, water_level):
        found = Prune(self.keep).quantize(weight, form, water_level)
        return replace(found, spread=replace(fit(found.symbols, weight.layout).spread(), tables=TABLES))
