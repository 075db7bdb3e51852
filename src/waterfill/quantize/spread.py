"""Fit of the entropy model: which table codes which symbol, in the fewest bits, scales and own tables included."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import tables
from waterfill.codec.symbols import SIDE_FAMILY, ideal_bits, scale_code, spread_codes
from waterfill.quantize import own
from waterfill.records import Layout, Scales, Spread, Symbols, Table

REACH = 2
"""Offsets are refined by up to this many quarter octaves a round."""

LARGEST_OFFSET = 60

LARGEST_SHIFT = 25
"""Low bits left out at most, so that no base is above 256, the largest that a file can hold."""

Offsets = NDArray[np.int64]


@functools.cache
def lengths(family: int) -> NDArray[np.float32]:
    """Bits of every magnitude 0..255 at every exponent [57, 256]; far escapes count as the first one."""
    return np.pad(tables.code_lengths(family), ((0, 0), (0, 128)), mode="edge")


@dataclass(frozen=True, eq=False)
class Fit:
    """A spread in the form the kernels take.

    Attributes:
        family: shape of the tables.
        shift: low bits that all symbols share (large spreads are fitted on the high part).
        base: exponent in eighths of an octave, of the high part.
        offsets: quarter octaves for rows, channels and taps, int64; None for none.
        bits: of the symbols and the scales.
    """

    family: int
    shift: int
    base: int
    offsets: tuple[Offsets | None, Offsets | None, Offsets | None]
    bits: float

    def exponents(self, layout: Layout) -> tuple[Offsets, Offsets, Offsets]:
        """Exponents of rows, channels and taps in eighths of an octave; the rows carry the base."""
        return exponents_of(self.offsets, layout, self.base)

    def spread(self) -> Spread:
        """The record that goes into the file."""
        rows, channels, taps = (None if o is None else o.astype(np.int8) for o in self.offsets)
        return Spread(self.family, self.base + 8 * self.shift, rows, channels, taps)


def fit(symbols: Symbols, layout: Layout, start: Fit | None = None) -> Fit:
    """Fit family, base and scales to symbols.

    Axis by axis, scales are proposed from mean magnitudes, refined by the bits they save, and kept if they pay for
    their own bits.

    Args:
        symbols: int32 [out, in].
        layout: its layout.
        start: an earlier fit of nearly the same symbols, whose scales are refined instead of proposed anew.
    """
    families = [start.family] if start else None
    shifts = {_shift(symbols)} if start is None else {start.shift}
    if start is None and 4 * np.count_nonzero(symbols) < symbols.size:
        shifts.add(0)  # a few escapes may cost less than low bits for all the zeros
    candidates = [(_magnitudes(symbols, layout, shift), shift) for shift in shifts]
    fits = [_fit_base(high, layout, (None, None, None), shift, families) for high, shift in candidates]
    best = min(fits, key=lambda found: found.bits)
    shift, magnitudes = best.shift, candidates[fits.index(best)][0]
    for axis in range(3):
        if magnitudes.shape[axis] < 2 or magnitudes.size <= magnitudes.shape[axis]:
            continue
        known = start.offsets[axis] if start else None
        if start is not None and known is None:
            continue
        proposal = _propose(magnitudes, best, layout, axis) if known is None else known
        offsets = replaced(best.offsets, axis, _refine(magnitudes, best, layout, axis, proposal))
        trial = _fit_base(magnitudes, layout, offsets, shift, [best.family])
        if trial.bits < best.bits:
            best = trial
    return _fit_base(magnitudes, layout, best.offsets, shift, None)


def cheapest(symbols: Symbols, bank: Spread, bits: float) -> tuple[Spread, float]:
    """The spread of the fewest bits, with them: one of the bank, or one with own tables, these included.

    One table has all symbols, or all but the outermost ones. Two tables are for symbols of which one has more than its
    share: the first says which it is, the second has the others, or the bank has them.

    Args:
        symbols: int32 [out, in].
        bank: the best spread without own tables.
        bits: what it takes.
    """
    flat = symbols.reshape(-1)
    counted = own.histogram(flat)
    best = bank, bits
    for count, candidates in ((1, _one_table), (2, _two_tables)):
        if counted.entropy_bits + count * own.LINE_BITS + own.WORTH < best[1]:
            found = min(candidates(flat, counted), key=lambda each: each[1], default=best)
            best = found if found[1] + own.WORTH < best[1] else best
    return best


def _one_table(flat: Symbols, counted: own.Histogram) -> Iterator[tuple[Spread, float]]:
    """Spreads of one table, with their bits."""
    for table, bits in own.windows(counted):
        last = table.first + table.roots.size - 2
        rest = flat[(flat < table.first) | (flat > last)] if table.roots[-1] else flat[:0]
        yield _behind((table,), bits, rest)


def _two_tables(flat: Symbols, counted: own.Histogram) -> Iterator[tuple[Spread, float]]:
    """Spreads behind a table of the commonest symbol, with their bits."""
    common = counted.commonest
    others = flat[flat != common]
    found = own.table_of(common, np.array([flat.size - others.size, others.size]))
    if found is None:
        return
    first, bits = found
    if 2 * others.size <= flat.size:
        yield _behind((first,), bits, others)
    for spread, more in _one_table(others, counted.without(common)):
        yield replace(spread, tables=(first, *spread.tables)), bits + more


def _behind(tables_: tuple[Table, ...], bits: float, rest: Symbols) -> tuple[Spread, float]:
    """The spread of own tables of so many bits, and of the bank for the rest [n]."""
    if not rest.size:
        return Spread(0, 0, tables=tables_), bits
    layout = Layout((rest.size,))
    bank = fit(rest.reshape(1, -1), layout).spread()
    return replace(bank, tables=tables_), bits + ideal_bits(rest, spread_codes(bank, layout, 0, rest.size))


def _magnitudes(symbols: Symbols, layout: Layout, shift: int) -> NDArray[np.uint8]:
    """Magnitudes of the high parts, 255 at most, as [out, channels, taps]."""
    high = symbols if not shift else (symbols.astype(np.int64) + (1 << shift >> 1)) >> shift
    return np.minimum(np.abs(high), 255).astype(np.uint8).reshape(layout.axes)


def _shift(symbols: Symbols) -> int:
    """Low bits to leave out, so that the root mean square of the high parts is below 8."""
    power = float(np.square(symbols, dtype=np.float64).mean()) if symbols.size else 0.0
    return min(max(0, int(np.ceil(np.log2(max(power, 1.0)) / 2 - 3))), LARGEST_SHIFT)


def exponents_of(offsets: tuple[Offsets | None, ...], layout: Layout, base: int) -> tuple[Offsets, Offsets, Offsets]:
    """Exponents of rows, channels and taps in eighths of an octave; the rows carry the base."""
    rows, channels, taps = (
        np.zeros(length, np.int64) if o is None else 2 * o for o, length in zip(offsets, layout.axes, strict=True)
    )
    return rows + base, channels, taps


def replaced(
    offsets: tuple[Offsets | None, Offsets | None, Offsets | None], axis: int, new: Offsets | None
) -> tuple[Offsets | None, Offsets | None, Offsets | None]:
    """The same with other offsets of one axis."""
    parts = [*offsets[:axis], new, *offsets[axis + 1 :]]
    return parts[0], parts[1], parts[2]


def _propose(magnitudes: NDArray[np.uint8], fit: Fit, layout: Layout, axis: int) -> Offsets:
    """Offsets of one axis from mean magnitudes, divided by what the other axes explain."""
    scale = [np.exp2(e / 8) for e in fit.exponents(layout)]
    view = magnitudes.astype(np.float32)
    for other in range(3):
        if other != axis:
            shape = [1, 1, 1]
            shape[other] = -1
            view = view / scale[other].astype(np.float32).reshape(shape)
    means = view.mean(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64)
    floor = 0.25 * means.mean() / magnitudes.size * magnitudes.shape[axis] + 1e-12
    logs = 4 * np.log2(np.maximum(means, floor))
    offsets: Offsets = np.rint(logs - np.median(logs)).astype(np.int64).clip(-LARGEST_OFFSET, LARGEST_OFFSET)
    return offsets


def _refine(magnitudes: NDArray[np.uint8], fit: Fit, layout: Layout, axis: int, offsets: Offsets) -> Offsets:
    """Move every offset of one axis to where symbols and scale cost the fewest bits."""
    with_axis = exponents_of(replaced(fit.offsets, axis, offsets), layout, fit.base)
    return refined(magnitudes, with_axis, axis, offsets, lengths(fit.family))


def refined(
    magnitudes: NDArray[np.uint8],
    exponents: tuple[Offsets, Offsets, Offsets],
    axis: int,
    offsets: Offsets,
    bits: NDArray[np.float32],
) -> Offsets:
    """Move every offset of one axis to where symbols and scale cost the fewest bits.

    Args:
        magnitudes: [out, channels, taps], columns of `bits`.
        exponents: rows of `bits`, as the sum of those of rows, channels and taps, the offsets of the axis among them.
        axis: which one.
        offsets: of the axis, in quarter octaves.
        bits: of every magnitude at every exponent.
    """
    from waterfill.quantize import kernels

    steps = np.arange(-REACH, REACH + 1)
    costs = kernels.axis_costs(magnitudes, *exponents, axis, 2 * steps, bits)
    side = tables.code_lengths(SIDE_FAMILY)[max(scale_code(offsets.astype(np.int8)), tables.UNIT_SCALE)]
    candidates = np.clip(offsets[:, None] + steps, -LARGEST_OFFSET, LARGEST_OFFSET)
    chosen = candidates[np.arange(offsets.size), (costs + side[np.abs(candidates)]).argmin(axis=1)]
    centred: Offsets = np.clip(chosen - int(np.median(chosen)), -LARGEST_OFFSET, LARGEST_OFFSET)
    return centred


def _fit_base(
    magnitudes: NDArray[np.uint8],
    layout: Layout,
    offsets: tuple[Offsets | None, Offsets | None, Offsets | None],
    shift: int,
    families: list[int] | None,
) -> Fit:
    """Best family and base for given scales, from one histogram."""
    from waterfill.quantize import kernels

    rows, channels, taps = exponents_of(offsets, layout, 0)
    low = int(sum(int(e.min(initial=0)) for e in (rows, channels, taps)))
    high = int(sum(int(e.max(initial=0)) for e in (rows, channels, taps)))
    counts = kernels.exponent_histogram(magnitudes, rows, channels, taps, low, high).astype(np.float64)
    used = np.flatnonzero(counts.any(axis=1))
    counts, exponents = counts[used], used + low
    bases = np.arange(-8 - high, tables.SCALES + 8 - low)
    index = np.clip(exponents[None, :] + bases[:, None], 0, tables.SCALES - 1)
    best = (np.inf, 0, 0)
    for family in range(tables.FAMILIES) if families is None else families:
        table = counts @ lengths(family).T.astype(np.float64)  # [exponents, scales]
        bits = table[np.arange(used.size)[None, :], index].sum(axis=1)
        where = int(bits.argmin())
        best = min(best, (float(bits[where]), family, int(bases[where])))
    side = sum(side_bits(o.astype(np.int8)) for o in offsets if o is not None)
    return Fit(best[1], shift, best[2], offsets, best[0] + side + shift * magnitudes.size)


def side_bits(scales: Scales) -> float:
    """Bits of a vector of scales, with the byte that names its table."""
    magnitude = np.abs(scales.astype(np.int64))
    return float(tables.code_lengths(SIDE_FAMILY)[scale_code(scales), magnitude].sum()) + 8.0
