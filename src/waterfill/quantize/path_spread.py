"""Fit of the entropy model of paths: shape and base of both subsets, and the offsets that they share."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import subsets, tables
from waterfill.codec.order import elements, place
from waterfill.codec.trellis import path_model, path_of
from waterfill.quantize import spread as spreads
from waterfill.quantize.spread import REACH, AxisOffsets, Fit, Offsets
from waterfill.records import ALL, NO_SCALES, AxisScales, Layout, Paths, Spread, Symbols

LOWEST_BASE, HIGHEST_BASE = -400, 256
"""Bounds of the format."""

ASIDE = {False: 15, True: 10}
"""Elements of a lower exponent in subset 0 stand aside, without and with zero in subset 1."""

Pair = tuple[int, int]
Lengths = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PathFit:
    """A spread of paths in the form the kernels take.

    Attributes:
        zero: whether zero is in subset 1 too.
        families: shapes of the tables of the subsets.
        bases: exponents of the subsets in eighths of an octave.
        offsets: quarter octaves for rows, channels and taps, int64; None for none.
        wide: whether indices are so large that their low bits are left out: then all cost the same.
        bits: of the indices and the scales.
        steps: scales of the steps, to which the offsets may be relative in a file.
        least: the lowest sum of offsets whose elements take part in the path; `ALL` for all.
    """

    zero: bool
    families: Pair
    bases: Pair
    offsets: AxisOffsets
    wide: bool
    bits: float = np.inf
    steps: AxisScales = NO_SCALES
    least: int = ALL

    def spread(self, paths: Paths) -> Spread:
        """The record that goes into the file, given states, direction and starts of the path."""
        fitted = replace(paths, zero=self.zero, family=self.families[1], base=self.bases[1], least=self.least)
        return Spread(self.families[0], self.bases[0], *self.scales(), trellis=fitted)

    def scales(self) -> AxisScales:
        """The offsets as they are stored."""
        return spreads.as_scales(self.offsets)

    def range(self) -> Pair:
        """Lowest and highest exponent without the base, with room to try others."""
        low, high = _ends(self.offsets)
        return low - 2 * REACH, high + 2 * REACH

    def aside(self) -> NDArray[np.bool_]:
        """Whether elements of each exponent of `range` stand aside."""
        low, high = self.range()
        return np.arange(low, high + 1) < 2 * self.least

    def sorted(self) -> PathFit:
        """The same, with those standing aside whose rate is low under these tables.

        Never all of them: that would be free levels of twice the step.
        """
        low, high = _ends(self.offsets)
        least = -((self.bases[0] - ASIDE[self.zero]) // 2)
        every = high < 2 * least
        return replace(self, least=ALL if self.wide or every or low >= 2 * least else min(least, 1 - ALL))

    def narrower(self, eighths: int) -> PathFit:
        """The same for steps that are larger by so many eighths of an octave."""
        first, second = (max(base - eighths, LOWEST_BASE) for base in self.bases)
        return replace(self, bases=(first, second)).sorted()

    def lengths(self) -> Lengths:
        """Bits of magnitude m in subset q, [exponent of `range`, 128 q + m]; zeros where they are wide."""
        low, high = self.range()
        exponents = np.arange(low, high + 1)
        if self.wide:
            return np.zeros((exponents.size, 256), np.float32)
        rows = [
            wide_lengths(kind, family)[spreads.table_rows(base + exponents)]
            for kind, family, base in zip(subsets.KINDS[self.zero], self.families, self.bases, strict=True)
        ]
        return np.concatenate(rows, axis=1)


@functools.cache
def wide_lengths(kind: int, family: int) -> Lengths:
    """Bits of every magnitude of a subset, also where low bits are left out, [exponents, 128]."""
    return spreads.widened(subsets.code_lengths(kind, family))


def start(symbols: Symbols, layout: Layout, zero: bool, steps: AxisScales = NO_SCALES) -> PathFit:
    """A fit to start from, given indices [out, in] that are nearly those of either subset, and scales of the steps."""
    fit: Fit = spreads.fit(symbols, layout, steps=steps)
    base = fit.base + 8 * fit.shift
    return PathFit(zero, (fit.family, fit.family), (base, base), fit.offsets, fit.shift > 0, steps=steps).sorted()


def of_rows(fit: PathFit, rows: NDArray[np.int64] | None) -> PathFit:
    """The fit of some rows of a matrix; of all for None."""
    if rows is None:
        return fit
    (offsets, *others), (steps, *more) = fit.offsets, fit.steps
    some = (None if offsets is None else offsets[rows], others[0], others[1])
    return replace(fit, offsets=some, steps=(None if steps is None else steps[rows], more[0], more[1]))


def of_all(fit: PathFit, known: PathFit) -> PathFit:
    """The fit of some rows, with what is known of all rows."""
    rows, steps = known.offsets[0], known.steps
    return replace(fit, offsets=(rows, *fit.offsets[1:]), steps=steps)


def extended(fit: PathFit, symbols: Symbols, layout: Layout, steps: AxisScales) -> PathFit:
    """The fit of some rows for all rows, whose offsets go by symbols that are nearly those of either subset.

    Args:
        fit: of some rows, which says what columns and tables are.
        symbols: of all rows, int32 [out, in].
        layout: of the tensor.
        steps: scales of the steps of all rows.
    """
    if fit.wide:
        return of_all(fit, start(symbols, layout, fit.zero, steps))
    some = fit.offsets[0]
    fit = replace(fit, offsets=spreads.replaced(fit.offsets, 0, None), steps=steps)
    if some is None:
        return fit.sorted()
    magnitudes = np.minimum(np.abs(symbols), 127).astype(np.uint8, order="C").reshape(layout.axes)
    rows = spreads.proposed(magnitudes, spreads.exponents_of(fit.offsets, layout, 0), 0)
    tried = (replace(fit, offsets=offsets) for offsets in _tried(magnitudes, layout, fit, 0, rows))
    return min(tried, key=lambda each: _fit_bases(magnitudes, layout, each).bits).sorted()


def refit(
    levels: Symbols,
    paths: Paths,
    layout: Layout,
    fit: PathFit,
    *,
    last: bool = False,
    axes: Sequence[int] = (0, 1, 2),
) -> PathFit:
    """Fit shapes, bases and offsets to a path; offsets that no longer pay are left out.

    Which elements stand aside goes by the offsets: for the last path, with some that do, these stay as they are.

    Args:
        levels: of the path, int32 [out, in].
        paths: its trellis, span and direction.
        layout: of the tensor.
        fit: under which it was searched.
        last: whether no other path will be searched under the result.
        axes: whose offsets may change.
    """
    if fit.wide or not levels.size:
        return fit
    magnitudes = _magnitudes(levels, paths, layout, fit)
    best = _fit_bases(magnitudes, layout, fit, every=True)
    if last and fit.least != ALL:
        return best
    before = best.offsets
    for axis in axes:
        for offsets in _tried(magnitudes, layout, best, axis, fit.offsets[axis]):
            found = _fit_bases(magnitudes, layout, replace(best, offsets=offsets))
            best = found if found.bits < best.bits else best
    if best.offsets is not before:
        best = _fit_bases(magnitudes, layout, best, every=True)
    return best if last else best.sorted()


def _tried(
    magnitudes: NDArray[np.uint8], layout: Layout, fit: PathFit, axis: int, known: Offsets | None
) -> Iterator[AxisOffsets]:
    """Offsets with others on one axis: refined, the negative of the steps and refined, none."""
    exact = spreads.opposite(fit.steps[axis])
    proposals = spreads.proposals(known, exact)
    for proposal in proposals:
        yield spreads.replaced(fit.offsets, axis, _refined(magnitudes, layout, fit, axis, proposal))
    if exact is not None:
        yield spreads.replaced(fit.offsets, axis, exact)
    if proposals:
        yield spreads.replaced(fit.offsets, axis, None)


def _magnitudes(levels: Symbols, paths: Paths, layout: Layout, fit: PathFit) -> NDArray[np.uint8]:
    """Magnitudes of both subsets, 127 at most, those of subset 1 from 128 on, [out, channels, taps]."""
    from waterfill.codec import path_kernels

    model = path_model(fit.spread(paths), layout, 0, levels.size)
    path = path_of(elements(levels, 0, levels.size, paths.down), model)
    sizes, found = np.empty(levels.size, np.uint8), np.empty(levels.shape, np.uint8)
    path_kernels.magnitudes(*path, fit.zero, sizes)
    place(sizes, found, 0, paths.down)
    return found.reshape(layout.axes)


def _ends(offsets: AxisOffsets) -> Pair:
    present = [o for o in offsets if o is not None and o.size]
    return int(sum(2 * o.min() for o in present)), int(sum(2 * o.max() for o in present))


def _fit_bases(magnitudes: NDArray[np.uint8], layout: Layout, fit: PathFit, *, every: bool = False) -> PathFit:
    """Best base of either subset for the offsets of a fit, and best shape of every one that there is if asked for."""
    from waterfill.quantize import kernels

    low, high = _ends(fit.offsets)
    exponents = spreads.exponents_of(fit.offsets, layout, 0)
    counts = kernels.exponent_histogram(magnitudes, *exponents, low, high)
    ends = max(-8 - high, LOWEST_BASE), min(tables.SCALES + 7 - low, HIGHEST_BASE) + 1
    found: list[tuple[float, int, int]] = []
    for subset, family in enumerate(fit.families):
        known = _tables(subsets.KINDS[fit.zero][subset])
        known = known if every else known[family : family + 1]
        bits, at, base = kernels.cheapest_base(counts, 128 * subset, low, *ends, known)
        found.append((bits, int(at) if every else family, int(base)))
    (first, family, base), (second, other_family, other_base) = found
    bits = first + second + spreads.axes_bits(fit.offsets, fit.steps)
    return replace(fit, families=(family, other_family), bases=(base, other_base), bits=bits)


@functools.cache
def _tables(kind: int) -> NDArray[np.float32]:
    """Bits of every magnitude in one kind of subset, [families, 128, exponents]."""
    every = [wide_lengths(kind, family).T for family in range(tables.FAMILIES)]
    return np.ascontiguousarray(every)


def _refined(magnitudes: NDArray[np.uint8], layout: Layout, fit: PathFit, axis: int, offsets: Offsets) -> Offsets:
    """Move every offset of one axis to where indices and scale cost the fewest bits."""
    fit = replace(fit, offsets=spreads.replaced(fit.offsets, axis, offsets))
    parts = spreads.exponents_of(fit.offsets, layout, -fit.range()[0])
    costs = spreads.move_costs(magnitudes, parts, axis, fit.lengths())
    return spreads.refined(costs, offsets, fit.steps[axis])
