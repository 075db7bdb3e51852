"""Kernel of `exact_sum`: values as whole numbers of a unit, added up in one pass over memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from waterfill.compiled import kernel


@kernel
def count(values: NDArray[Any], scale: float, counted: NDArray[np.int64]) -> float:
    """Add `round(scale values)` to whole numbers.

    Args:
        values: float32 or float64 [n].
        scale: units per one.
        counted: what is added to, int64 [n].

    Returns:
        The largest `|scale values|`; NaN where one is NaN.
    """
    largest = 0.0
    wrong = False
    for i in range(len(values)):
        scaled = values[i] * scale
        wrong |= math.isnan(scaled)
        largest = max(largest, abs(scaled))
        counted[i] += np.int64(np.rint(scaled))
    return math.nan if wrong else largest
