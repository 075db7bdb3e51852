"""Symbols to values: the closed set of reconstructions that a file can name.

Every value is one float32 product of an exact integer and a table entry, a bit pattern, or an entry of a codebook: the
same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import tables
from waterfill.codec.order import axis_sum
from waterfill.records import Codebook, Floats, Layout, Relative, Rule, Symbols, Uniform

LEVEL_UNIT = 64
"""Levels are whole multiples of 1/64 step."""


def reconstruct(symbols: Symbols, rule: Rule, layout: Layout, start: int = 0, down: bool = False) -> Floats:
    """Values of the symbols [n] that stand at `start` of a tensor's matrix, read along rows or down columns.

    Returns:
        float32 [n], in the order of the symbols.
    """
    if isinstance(rule, Relative):
        return _relative(symbols, rule)
    if isinstance(rule, Codebook):
        return rule.values[symbols.astype(np.int64) - rule.first]
    steps = step_sizes(rule, layout, start, start + symbols.size, LEVEL_UNIT, down)
    low, high = int(symbols.min(initial=0)), int(symbols.max(initial=0))
    if high - low < symbols.size:
        return _levels(np.arange(low, high + 1, dtype=np.int32), rule)[symbols - low] * steps
    return _levels(symbols, rule) * steps


def step_sizes(rule: Uniform, layout: Layout, start: int, stop: int, parts: int = 1, down: bool = False) -> Floats:
    """Step of the elements start..stop, divided by `parts` (a power of two); float32 [stop - start] or [1]."""
    base = rule.step - 64 * (parts.bit_length() - 1)
    if rule.rows is None and rule.channels is None and rule.taps is None:
        return tables.power(np.array([base]))
    total = axis_sum(layout, rule.scales, start, stop, down)
    low, high = (int(total.min()), int(total.max())) if total.size else (0, 0)
    total -= low
    return tables.power(base + 16 * np.arange(low, high + 1))[total]


def _levels(symbols: Symbols, rule: Uniform) -> Floats:
    """Levels in 1/64 step, as float32 of exact integers."""
    levels: NDArray[np.int64] = (symbols.astype(np.int64) + rule.offset) * LEVEL_UNIT
    if any(rule.shrink):
        table = np.array([0, *rule.shrink], np.int64)
        levels -= np.sign(symbols) * table[np.minimum(np.abs(symbols), 3)]
    return levels.astype(np.float32)


def _relative(symbols: Symbols, rule: Relative) -> Floats:
    """Bit patterns of float32 values with few mantissa bits; patterns out of range become zero."""
    wide = symbols.astype(np.int64)
    sign = wide & 1 if rule.signed else np.zeros_like(wide)
    pattern = ((wide >> 1 if rule.signed else wide) + rule.offset) << (23 - rule.mantissa)
    pattern = np.where((pattern < 0) | (pattern >= 0x7F800000), 0, pattern)
    return (pattern | sign << 31).astype(np.uint32).view(np.float32)
