"""The adaptive model of a matrix: whether it is worth while, and which width its rows have."""

from __future__ import annotations

import numpy as np

from waterfill.codec import adaptive
from waterfill.codec.container import LARGE_CHUNK
from waterfill.records import Adaptive, Layout, Spread, Symbols

SMALL = 1 << 12
"""Matrices of so many elements may be dense: they are decoded in no time."""

LEAST_BITS = 1e-3
"""Bits an element: a stream that says less for each is too short for as many (docs/format.md)."""

LINE_BITS = 24.0
"""What the directory says about it, beyond what it would say about tables."""

FEWEST, FARTHEST, TRIED = 256, 64, 2
"""A width is sought for as many weights, up to so many columns, and so many of them are priced."""


def cheapest(symbols: Symbols, layout: Layout) -> tuple[Spread, float] | None:
    """The adaptive model of the fewest bits, with them; None where it may not be had or is too slow.

    Args:
        symbols: int32 [out, in].
        layout: its layout.
    """
    used = int(np.count_nonzero(symbols))
    if not used or symbols.shape[1] > LARGE_CHUNK or (2 * used > symbols.size and symbols.size > SMALL):
        return None
    models = [Adaptive(width) for width in widths(symbols)]
    found = min(((bits(symbols, layout, each), each.width) for each in models), default=(np.inf, 0))
    if not np.isfinite(found[0]):
        return None
    return Spread(0, 0, adaptive=Adaptive(found[1])), found[0] + LINE_BITS


def bits(symbols: Symbols, layout: Layout, model: Adaptive) -> float:
    """Code length of a matrix, chunk by chunk; infinite where a chunk would be too short for its elements."""
    flat, total = symbols.reshape(-1), 0.0
    for start, stop in adaptive.parts(layout, LARGE_CHUNK):
        part = adaptive.ideal_bits(flat[start:stop], adaptive.model(model, layout, start, stop))
        total += part if part > LEAST_BITS * (stop - start) else np.inf
    return total


def widths(symbols: Symbols) -> list[int]:
    """No width, and those distances along rows at which what is not zero comes together the most."""
    mask = symbols[symbols.any(axis=1)] != 0
    columns = mask.shape[1]
    if np.count_nonzero(mask) < FEWEST or columns < 3:
        return [0]
    lags = range(2, min(FARTHEST, columns - 1))
    together = np.array([np.count_nonzero(mask[:, lag:] & mask[:, :-lag]) / (columns - lag) for lag in lags])
    best = np.argsort(-together, kind="stable")[:TRIED] + 2
    return [0, *best.tolist()]
