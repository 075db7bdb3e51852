"""Symbols to values: the closed set of reconstructions that a file can name.

Every value is one float32 product of an exact integer and a table entry, a bit pattern, or an entry of a codebook: the
same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import tables
from waterfill.codec.lanes import LaneSymbols
from waterfill.codec.order import Places, place, places
from waterfill.codec.pieces import Part
from waterfill.records import Codebook, Floats, Layout, Relative, Rule, Symbols, Uniform, Weight

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
    tables_of = _level_table(symbols, rule)
    if tables_of is None:
        return _levels(symbols, rule) * step_sizes(rule, layout, start, start + symbols.size, LEVEL_UNIT, down)
    found = places(layout, rule.scales, start, start + symbols.size, down)
    return found.scaled(symbols, *tables_of, step_table(rule, found))


def fill(matrix: Floats, symbols: Part, rule: Rule, layout: Layout, start: int = 0, down: bool = False) -> None:
    """Put the values of `reconstruct` where they belong in the matrix [out, in] of a tensor."""
    _putting(symbols, rule, layout, start, down)(matrix, 0)


def some_lines(symbols: Part, rule: Rule, layout: Layout, start: int = 0, down: bool = False) -> Floats:
    """The values of `reconstruct` in those lines of the matrix that they are in.

    Returns:
        float32 [lines, in], or [out, lines] with `down`; in the first and the last line, what is not of these symbols
        is undefined.
    """
    length = layout.line_length(down)
    first, stop = start // length, -(-(start + symbols.size) // length)
    matrix = np.empty((length, stop - first) if down else (stop - first, length), np.float32)
    _putting(symbols, rule, layout, start, down)(matrix, first)
    return matrix


def _putting(symbols: Part, rule: Rule, layout: Layout, start: int, down: bool) -> Callable[[Floats, int], None]:
    """What puts values into a matrix whose line 0 is a line of the tensor with a given number."""
    if isinstance(symbols, LaneSymbols):
        assert isinstance(rule, Uniform)
        found = places(layout, rule.scales, start, start + symbols.size, down)
        return _putting_lanes(symbols, rule, found, down)
    tables_of = _level_table(symbols, rule) if down and isinstance(rule, Uniform) else None
    if tables_of is None or not isinstance(rule, Uniform):
        values, length = reconstruct(symbols, rule, layout, start, down), layout.line_length(down)
        return lambda matrix, first: place(values, matrix, start - first * length, down)
    found, known = places(layout, rule.scales, start, start + symbols.size, down), tables_of
    powers = step_table(rule, found)
    return lambda matrix, first: replace(found, first=found.first - first).scale_down(matrix, symbols, *known, powers)


def _putting_lanes(symbols: LaneSymbols, rule: Uniform, found: Places, down: bool) -> Callable[[Floats, int], None]:
    """The same of levels in the order of lanes."""
    from waterfill.codec import lane_kernels

    shrink = np.array([0, *rule.shrink], np.float32)
    made = lane_kernels.Values(shrink, step_table(rule, found), found.lines, found.within)
    known = symbols.levels, symbols.lanes, symbols.span // symbols.length, made
    fill_lines = lane_kernels.fill_columns if down else lane_kernels.fill_rows

    def put(matrix: Floats, first: int) -> None:
        assert matrix.flags.c_contiguous  # else its reshaped copy would be filled
        fill_lines(*known, found.first - first, matrix.shape[1], matrix.reshape(-1))

    return put


def _level_table(symbols: Symbols, rule: Uniform) -> tuple[int, Floats] | None:
    """The lowest symbol, and the levels from there to the highest; None where there are more than symbols."""
    low, high = int(symbols.min(initial=0)), int(symbols.max(initial=0))
    if high - low >= symbols.size:
        return None
    return low, _levels(np.arange(low, high + 1, dtype=np.int32), rule)


def errors(weight: Weight, symbols: Symbols, rule: Rule) -> Floats:
    """What symbols [out, in] leave of a weight: its values less theirs, float32 [out, in]."""
    return weight.matrix - reconstruct(symbols.reshape(-1), rule, weight.layout).reshape(weight.matrix.shape)


def step_sizes(rule: Uniform, layout: Layout, start: int, stop: int, parts: int = 1, down: bool = False) -> Floats:
    """Step of the elements start..stop, divided by `parts` (a power of two); float32 [stop - start] or [1]."""
    if rule.rows is None and rule.channels is None and rule.taps is None:
        return tables.power(np.array([rule.step - 64 * (parts.bit_length() - 1)]))
    found = places(layout, rule.scales, start, stop, down)
    return found.look_up(step_table(rule, found, parts))


def step_table(rule: Uniform, found: Places, parts: int = LEVEL_UNIT) -> Floats:
    """The step of every sum of scales, divided by `parts` (a power of two)."""
    return tables.power(rule.step - 64 * (parts.bit_length() - 1) + 16 * found.totals)


def _levels(symbols: Symbols, rule: Uniform) -> Floats:
    """Levels in 1/64 step, as float32 of exact integers."""
    levels: NDArray[np.int64] = (symbols.astype(np.int64) + rule.offset) * LEVEL_UNIT
    if any(rule.shrink):
        table = np.array([0, *rule.shrink], np.int64)
        levels -= np.sign(symbols) * table[np.minimum(np.abs(symbols.astype(np.int64)), 3)]  # -2^31 has no int32
    return levels.astype(np.float32)


def _relative(symbols: Symbols, rule: Relative) -> Floats:
    """Bit patterns of float32 values with few mantissa bits; patterns out of range become zero."""
    wide = symbols.astype(np.int64)
    sign = wide & 1 if rule.signed else np.zeros_like(wide)
    pattern = ((wide >> 1 if rule.signed else wide) + rule.offset) << (23 - rule.mantissa)
    pattern = np.where((pattern < 0) | (pattern >= 0x7F800000), 0, pattern)
    return (pattern | sign << 31).astype(np.uint32).view(np.float32)
