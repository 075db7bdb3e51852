"""Fit of the entropy model of paths: shape and base of both subsets, and the offsets that they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import subsets, tables
from waterfill.codec.order import elements, place
from waterfill.codec.trellis import path_of
from waterfill.quantize import spread as spreads
from waterfill.quantize.spread import REACH, Fit, Offsets
from waterfill.records import Layout, Paths, Scales, Spread, Symbols

LOWEST_BASE, HIGHEST_BASE = -400, 256
"""Bounds of the format."""

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
    """

    zero: bool
    families: Pair
    bases: Pair
    offsets: tuple[Offsets | None, Offsets | None, Offsets | None]
    wide: bool
    bits: float = np.inf

    def spread(self, log_states: int, log_span: int, down: bool = False) -> Spread:
        """The record that goes into the file."""
        paths = Paths(log_states, self.zero, log_span, self.families[1], self.bases[1], down)
        return Spread(self.families[0], self.bases[0], *self.scales(), trellis=paths)

    def scales(self) -> tuple[Scales | None, Scales | None, Scales | None]:
        """The offsets as they are stored."""
        rows, channels, taps = (None if o is None else o.astype(np.int8) for o in self.offsets)
        return rows, channels, taps

    def range(self) -> Pair:
        """Lowest and highest exponent without the base, with room to try others."""
        low, high = _ends(self.offsets)
        return low - 2 * REACH, high + 2 * REACH

    def lengths(self) -> Lengths:
        """Bits of magnitude m in subset q, [exponent of `range`, 128 q + m]; zeros where they are wide."""
        low, high = self.range()
        exponents = np.arange(low, high + 1)
        if self.wide:
            return np.zeros((exponents.size, 256), np.float32)
        rows = [
            subsets.code_lengths(kind, family)[np.clip(base + exponents, 0, tables.SCALES - 1)]
            for kind, family, base in zip(subsets.KINDS[self.zero], self.families, self.bases, strict=True)
        ]
        return np.concatenate(rows, axis=1)


def start(symbols: Symbols, layout: Layout, zero: bool) -> PathFit:
    """A fit to start from, given indices [out, in] that are nearly those of either subset."""
    fit: Fit = spreads.fit(symbols, layout)
    base = fit.base + 8 * fit.shift
    return PathFit(zero, (fit.family, fit.family), (base, base), fit.offsets, fit.shift > 0)


def refit(levels: Symbols, paths: Paths, layout: Layout, fit: PathFit) -> PathFit:
    """Fit shapes, bases and offsets to a path; offsets that no longer pay are left out.

    Args:
        levels: of the path, int32 [out, in].
        paths: its trellis, span and direction.
        layout: of the tensor.
        fit: from which to start.
    """
    if fit.wide or not levels.size:
        return fit
    magnitudes = _magnitudes(levels, paths, layout)
    best = _fit_bases(magnitudes, layout, fit.zero, fit.offsets)
    for axis, offsets in enumerate(fit.offsets):
        if offsets is not None:
            tried = _refined(magnitudes, layout, best, axis, offsets)
            for parts in (spreads.replaced(best.offsets, axis, tried), spreads.replaced(best.offsets, axis, None)):
                found = _fit_bases(magnitudes, layout, fit.zero, parts)
                best = found if found.bits < best.bits else best
    return best


def _magnitudes(levels: Symbols, paths: Paths, layout: Layout) -> NDArray[np.uint8]:
    """Magnitudes of both subsets, 127 at most, those of subset 1 from 128 on, [out, channels, taps]."""
    indices, subset = path_of(elements(levels, 0, levels.size, paths.down), paths)
    size = np.abs(indices) if paths.zero else np.where((subset == 1) & (indices < 0), -indices - 1, np.abs(indices))
    found = np.empty(levels.shape, np.uint8)
    place((np.minimum(size, 127) + 128 * subset).astype(np.uint8), found, 0, paths.down)
    return found.reshape(layout.axes)


def _ends(offsets: tuple[Offsets | None, ...]) -> Pair:
    present = [o for o in offsets if o is not None and o.size]
    return int(sum(2 * o.min() for o in present)), int(sum(2 * o.max() for o in present))


def _fit_bases(
    magnitudes: NDArray[np.uint8], layout: Layout, zero: bool, offsets: tuple[Offsets | None, ...]
) -> PathFit:
    """Best shape and base of either subset for given offsets, from one histogram."""
    from waterfill.quantize import kernels

    low, high = _ends(offsets)
    rows, channels, taps = spreads.exponents_of(offsets, layout, 0)
    counts = kernels.exponent_histogram(magnitudes, rows, channels, taps, low, high).astype(np.float64)
    used = np.flatnonzero(counts.any(axis=1))
    bases = np.arange(max(-8 - high, LOWEST_BASE), min(tables.SCALES + 7 - low, HIGHEST_BASE) + 1)
    index = np.clip((used + low)[None, :] + bases[:, None], 0, tables.SCALES - 1)
    found: list[tuple[float, int, int]] = []
    for subset, kind in enumerate(subsets.KINDS[zero]):
        part = counts[used, 128 * subset : 128 * (subset + 1)]
        best = (np.inf, 0, 0)
        for family in range(tables.FAMILIES):
            table = part @ subsets.code_lengths(kind, family).T.astype(np.float64)  # [exponents, scales]
            bits = table[np.arange(used.size)[None, :], index].sum(axis=1)
            where = int(bits.argmin())
            best = min(best, (float(bits[where]), family, int(bases[where])))
        found.append(best)
    (first, family, base), (second, other_family, other_base) = found
    side = sum(spreads.side_bits(o.astype(np.int8)) for o in offsets if o is not None)
    parts = offsets[0], offsets[1], offsets[2]
    return PathFit(zero, (family, other_family), (base, other_base), parts, False, first + second + side)


def _refined(magnitudes: NDArray[np.uint8], layout: Layout, fit: PathFit, axis: int, offsets: Offsets) -> Offsets:
    """Move every offset of one axis to where indices and scale cost the fewest bits."""
    fit = PathFit(fit.zero, fit.families, fit.bases, spreads.replaced(fit.offsets, axis, offsets), fit.wide)
    parts = spreads.exponents_of(fit.offsets, layout, -fit.range()[0])
    return spreads.refined(magnitudes, parts, axis, offsets, fit.lengths())
