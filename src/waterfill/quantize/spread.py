"""Fit of the entropy model: which table codes which symbol, in the fewest bits, scales and own tables included."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import scales, tables
from waterfill.codec.symbols import ideal_bits, spread_codes
from waterfill.quantize import adaptive, own
from waterfill.records import NO_SCALES, AxisScales, Layout, Scales, Spread, Symbols, Table

WIDER = 24
"""Exponents beyond the tables that are fitted with them: three octaves."""

REACH = 2
"""Offsets are refined by up to this many quarter octaves a round."""

MOVES = np.arange(-REACH, REACH + 1)

LARGEST_OFFSET = 60

LARGEST_SHIFT = 25
"""Low bits left out at most, so that no base is above 256, the largest that a file can hold."""

Offsets = NDArray[np.int64]
AxisOffsets: TypeAlias = tuple[Offsets | None, Offsets | None, Offsets | None]
NO_OFFSETS: AxisOffsets = (None, None, None)


@functools.cache
def lengths(family: int, wide: bool) -> NDArray[np.float32]:
    """Bits of every magnitude 0..255 at every exponent [exponents, 256]; far escapes count as the first one.

    Args:
        family: shape of the tables.
        wide: whether there are exponents beyond those of the tables; not where all magnitudes have lost low bits.
    """
    known = np.pad(tables.code_lengths(family), ((0, 0), (0, 128)), mode="edge")
    return widened(known) if wide else known


def table_rows(exponents: Offsets) -> Offsets:
    """The rows of widened tables that exponents have: those below the first and above the last one theirs."""
    return np.minimum(np.maximum(exponents, 0), tables.SCALES - 1 + WIDER)


def widened(bits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bits of magnitudes [57, magnitudes] with those at `WIDER` more exponents, at which low bits are left out."""
    magnitudes, rows = np.arange(bits.shape[1]), []
    for exponent in range(tables.SCALES, tables.SCALES + WIDER):
        low = (exponent - (tables.SCALES - 8)) >> 3
        rows.append(bits[exponent - 8 * low, (magnitudes + (1 << low >> 1)) >> low] + np.float32(low))
    found = np.concatenate([bits, rows])
    found[tables.SCALES :, -1] = bits[-1, -1]  # stands for all that are larger, too
    return found


@functools.cache
def tables_of(wide: bool) -> NDArray[np.float32]:
    """The same of all families, [families, 256, exponents]."""
    every = [lengths(family, wide).T for family in range(tables.FAMILIES)]
    return np.ascontiguousarray(every)


@dataclass(frozen=True, eq=False)
class Fit:
    """A spread in the form the kernels take.

    Attributes:
        family: shape of the tables.
        shift: low bits that all symbols share (large spreads are fitted on the high part).
        base: exponent in eighths of an octave, of the high part.
        offsets: quarter octaves for rows, channels and taps, int64; None for none.
        bits: of the symbols and the scales.
        steps: scales of the steps, to which those of the spread may be relative in a file.
        wide: whether exponents beyond the tables are priced as what they are, not as the last one.
    """

    family: int
    shift: int
    base: int
    offsets: AxisOffsets
    bits: float
    steps: AxisScales = NO_SCALES
    wide: bool = False

    def exponents(self, layout: Layout) -> tuple[Offsets, Offsets, Offsets]:
        """Exponents of rows, channels and taps in eighths of an octave; the rows carry the base."""
        return exponents_of(self.offsets, layout, self.base)

    def lengths(self) -> NDArray[np.float32]:
        """Bits of every magnitude of the high parts at every exponent."""
        return lengths(self.family, self.wide)

    def spread(self) -> Spread:
        """The record that goes into the file."""
        return Spread(self.family, self.base + 8 * self.shift, *as_scales(self.offsets))


def fit(symbols: Symbols, layout: Layout, start: Fit | None = None, steps: AxisScales = NO_SCALES) -> Fit:
    """Fit family, base and scales to symbols.

    Axis by axis, scales are proposed from mean magnitudes, refined by the bits they save, and kept if they pay for
    their own bits. Where steps have scales, their negative is proposed too: it takes next to nothing in a file, and
    few moves from there take little.

    Beyond the tables an element loses a low bit, which is a step up in its price and may keep a search on one side. So
    where exponents come to the end of the tables, there are two searches, with and without what is beyond.

    Args:
        symbols: int32 [out, in].
        layout: its layout.
        start: an earlier fit of nearly the same symbols, whose scales are refined instead of proposed anew.
        steps: scales of the steps; those of `start` where it is given.
    """
    found = _fitted(symbols, layout, start, steps, start is not None and start.wide)
    widest = sum(int(each.max(initial=0)) for each in found.exponents(layout))
    if start is not None or found.shift or widest < tables.SCALES - 1:
        return found
    other, magnitudes = _fitted(symbols, layout, None, steps, True), _magnitudes(symbols, layout, 0)
    return min((found, other), key=lambda each: _wide_bits(magnitudes, layout, each))


def _wide_bits(magnitudes: NDArray[np.uint8], layout: Layout, fit: Fit) -> float:
    """Bits of symbols and scales with those of exponents beyond the tables."""
    from waterfill.quantize import kernels

    exponents = fit.exponents(layout)
    low, high = (sum(int(end(each)) for each in exponents) for end in (np.min, np.max))
    counts = kernels.exponent_histogram(magnitudes, *exponents, low, high)
    prices = lengths(fit.family, True)
    bits = float(np.vdot(counts, prices[table_rows(np.arange(low, high + 1))]))
    return bits + axes_bits(fit.offsets, fit.steps)


def _fitted(symbols: Symbols, layout: Layout, start: Fit | None, steps: AxisScales, wide: bool) -> Fit:
    """Fit with or without exponents beyond the tables; arguments as of `fit`."""
    steps = start.steps if start else steps
    families = [start.family] if start else None
    shifts = {_shift(symbols)} if start is None else {start.shift}
    if start is None and 4 * np.count_nonzero(symbols) < symbols.size:
        shifts.add(0)  # a few escapes may cost less than low bits for all the zeros
    candidates = {shift: _magnitudes(symbols, layout, shift) for shift in shifts}
    fits = [
        _fit_base(high, layout, Fit(0, shift, 0, offsets, np.inf, steps, wide and not shift), families)
        for shift, high in candidates.items()
        for offsets in starts(steps)
    ]
    best = min(fits, key=lambda found: found.bits)
    magnitudes = candidates[best.shift]
    for axis in range(3):
        if magnitudes.shape[axis] < 2 or magnitudes.size <= magnitudes.shape[axis]:
            continue
        for offsets in _tried(magnitudes, layout, best, axis, start):
            trial = _fit_base(magnitudes, layout, replace(best, offsets=offsets), [best.family])
            best = trial if trial.bits < best.bits else best
    return _fit_base(magnitudes, layout, best, None)


def starts(steps: AxisScales) -> list[AxisOffsets]:
    """Offsets to begin with: none, and the negative of the scales of the steps."""
    if all(step is None for step in steps):
        return [NO_OFFSETS]
    rows, channels, taps = map(opposite, steps)
    return [NO_OFFSETS, (rows, channels, taps)]


def opposite(step: Scales | None) -> Offsets | None:
    """The offsets of weights of one variance, given the scales of the steps of their axis."""
    return None if step is None else -step.astype(np.int64)


def proposals(known: Offsets | None, exact: Offsets | None) -> list[Offsets]:
    """Offsets to be refined: those that are known, and the negative of the steps if that is something else."""
    same = known is not None and exact is not None and np.array_equal(known, exact)
    return [each for each in (None if same else known, exact) if each is not None]


def _tried(
    magnitudes: NDArray[np.uint8], layout: Layout, fit: Fit, axis: int, start: Fit | None
) -> Iterator[AxisOffsets]:
    """Offsets with others on one axis."""
    known = start.offsets[axis] if start else proposed(magnitudes, fit.exponents(layout), axis)
    exact = opposite(fit.steps[axis])
    for proposal in proposals(known, exact):
        yield replaced(fit.offsets, axis, _refine(magnitudes, fit, layout, axis, proposal))
    if exact is not None:
        yield replaced(fit.offsets, axis, exact)
        yield replaced(fit.offsets, axis, None)


def cheapest(symbols: Symbols, layout: Layout, bank: Spread, bits: float) -> tuple[Spread, float]:
    """The spread of the fewest bits, with them: one of tables, these included, or an adaptive model.

    Args:
        symbols: int32 [out, in].
        layout: its layout.
        bank: the best spread without own tables.
        bits: what it takes.
    """
    best = cheapest_tables(symbols, bank, bits)
    learning = adaptive.cheapest(symbols, layout)
    return learning if learning is not None and learning[1] < best[1] else best


def cheapest_tables(symbols: Symbols, bank: Spread, bits: float) -> tuple[Spread, float]:
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
    return np.minimum(np.abs(high), 255).astype(np.uint8, order="C").reshape(layout.axes)


def _shift(symbols: Symbols) -> int:
    """Low bits to leave out, so that the root mean square of the high parts is below 8."""
    power = float(np.square(symbols, dtype=np.float64).mean()) if symbols.size else 0.0
    return min(max(0, int(np.ceil(np.log2(max(power, 1.0)) / 2 - 3))), LARGEST_SHIFT)


def exponents_of(offsets: AxisOffsets, layout: Layout, base: int) -> tuple[Offsets, Offsets, Offsets]:
    """Exponents of rows, channels and taps in eighths of an octave; the rows carry the base."""
    rows, channels, taps = (
        np.zeros(length, np.int64) if o is None else 2 * o for o, length in zip(offsets, layout.axes, strict=True)
    )
    return rows + base, channels, taps


def as_scales(offsets: AxisOffsets) -> AxisScales:
    """Offsets as a record has them; None where all are zero."""
    rows, channels, taps = (None if o is None or not o.any() else o.astype(np.int8) for o in offsets)
    return rows, channels, taps


def replaced(offsets: AxisOffsets, axis: int, new: Offsets | None) -> AxisOffsets:
    """The same with other offsets of one axis."""
    parts = [*offsets[:axis], new, *offsets[axis + 1 :]]
    return parts[0], parts[1], parts[2]


def proposed(magnitudes: NDArray[np.uint8], exponents: tuple[Offsets, Offsets, Offsets], axis: int) -> Offsets:
    """Offsets of one axis from mean magnitudes, divided by what the exponents of the other axes explain."""
    scale = [np.exp2(e / 8) for e in exponents]
    view = magnitudes.astype(np.float32)
    for other in range(3):
        if other != axis:
            shape = [1, 1, 1]
            shape[other] = -1
            view = view / scale[other].astype(np.float32).reshape(shape)
    means = view.mean(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64)
    floor = 0.25 * means.mean() / magnitudes.size * magnitudes.shape[axis] + 1e-12
    logs = 4 * np.log2(np.maximum(means, floor))
    return _limited(np.rint(logs - _median(logs)).astype(np.int64), LARGEST_OFFSET)


def _limited(offsets: Offsets, limit: int) -> Offsets:
    """Offsets from -limit to limit; `np.clip` takes five times as long for few."""
    found: Offsets = np.minimum(np.maximum(offsets, -limit), limit)
    return found


def _median(values: NDArray[Any]) -> float:
    """The median of an axis; `np.median` takes ten times as long for few."""
    ordered = np.sort(values)
    return (float(ordered[(ordered.size - 1) // 2]) + float(ordered[ordered.size // 2])) / 2


def _refine(magnitudes: NDArray[np.uint8], fit: Fit, layout: Layout, axis: int, offsets: Offsets) -> Offsets:
    """Move every offset of one axis to where symbols and scale cost the fewest bits."""
    with_axis = exponents_of(replaced(fit.offsets, axis, offsets), layout, fit.base)
    costs = move_costs(magnitudes, with_axis, axis, fit.lengths())
    return refined(costs, offsets, fit.steps[axis])


def move_costs(
    magnitudes: NDArray[np.uint8], exponents: tuple[Offsets, Offsets, Offsets], axis: int, bits: NDArray[np.float32]
) -> NDArray[np.float64]:
    """What every index of an axis costs when its offset is moved by -REACH..REACH, [length of the axis, moves].

    Args:
        magnitudes: [out, channels, taps], columns of `bits`.
        exponents: rows of `bits`, as the sum of those of rows, channels and taps.
        axis: which one.
        bits: of every magnitude at every exponent.
    """
    from waterfill.quantize import kernels

    costs: NDArray[np.float64] = kernels.axis_costs(magnitudes, *exponents, axis, 2 * MOVES, bits)
    return costs


def refined(costs: NDArray[np.float64], offsets: Offsets, steps: Scales | None) -> Offsets:
    """Move every offset of one axis to where symbols and what is stored of the scale cost the fewest bits.

    Args:
        costs: of the symbols, for every index and move.
        offsets: of the axis, in quarter octaves.
        steps: scales of the steps of the axis.
    """
    code = scales.stored(offsets, steps).code
    summed = steps is not None and code <= scales.OPPOSITE
    limit, added = (scales.LARGEST, steps.astype(np.int64)) if steps is not None and summed else (LARGEST_OFFSET, 0)
    side = scales.lengths()[max(scales.exponent(code) or 0, tables.UNIT_SCALE)]
    candidates = _limited(offsets[:, None] + MOVES, limit)
    stored = candidates + np.reshape(added, (-1, 1))
    chosen = candidates[np.arange(offsets.size), (costs + side[np.abs(stored)]).argmin(axis=1)]
    return _limited(chosen - int(_median(chosen + added)), limit)


def _fit_base(magnitudes: NDArray[np.uint8], layout: Layout, fit: Fit, families: list[int] | None) -> Fit:
    """The best family and base for the scales of a fit, from one histogram."""
    from waterfill.quantize import kernels

    rows, channels, taps = exponents_of(fit.offsets, layout, 0)
    low = int(sum(int(e.min(initial=0)) for e in (rows, channels, taps)))
    high = int(sum(int(e.max(initial=0)) for e in (rows, channels, taps)))
    counts = kernels.exponent_histogram(magnitudes, rows, channels, taps, low, high)
    known = tables_of(fit.wide)
    known = known if families is None else known[families]
    bits, at, base = kernels.cheapest_base(counts, 0, low, -8 - high, tables.SCALES + 8 - low, known)
    family = at if families is None else families[at]
    bits += axes_bits(fit.offsets, fit.steps) + fit.shift * magnitudes.size
    return replace(fit, family=int(family), base=int(base), bits=bits)


def axes_bits(offsets: AxisOffsets, steps: AxisScales) -> float:
    """What the offsets of all axes take in a file, beside steps that have these scales."""
    return sum(_axis_bits(*map(_bytes, each)) for each in zip(offsets, steps, strict=True))


def _bytes(scales_: NDArray[np.integer[Any]] | None) -> bytes | None:
    return None if scales_ is None else scales_.astype(np.int8).tobytes()


@functools.lru_cache(maxsize=256)
def _axis_bits(offsets: bytes | None, steps: bytes | None) -> float:
    """Kept, for of the offsets of three axes one changes at a time."""
    values, of_steps = (None if each is None else np.frombuffer(each, np.int8) for each in (offsets, steps))
    return scales.stored(values, of_steps).bits
