"""The scales of an axis as they are stored: a code, and the integers that go with it (docs/format.md).

Weights of one variance in steps that differ have spreads that are the negative of the steps. So where the steps of an
axis have scales, those of its spreads may be stored as the sum of both, and where that is zero, as nothing.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import tables
from waterfill.codec.symbols import SIDE_FAMILY, bits_of, exponent_codes
from waterfill.errors import FormatError
from waterfill.records import NO_SCALES, AxisScales, Scales, Symbols

NONE, OPPOSITE, FIRST_SUM = -1, -2, -3
"""Codes that are no exponent k: no scales; the negative of those of the steps; and -3 - k for sums with these."""

LARGEST = 127
NAME_BITS = 8.0
"""What a code takes in the directory."""


class Stored(NamedTuple):
    """What a file has of some integers.

    Attributes:
        code: in the directory.
        values: in the chunks, int32 [n]; None for none.
        bits: of both.
    """

    code: int
    values: Symbols | None
    bits: float


def exponent(code: int) -> int | None:
    """The exponent with which integers of this code are in the stream; None where there are none."""
    if code > NONE:
        return code
    return FIRST_SUM - code if code <= FIRST_SUM else None


@functools.cache
def lengths() -> NDArray[np.float32]:
    """Bits of every magnitude 0..255 with every exponent [57, 256]."""
    values = np.arange(256, dtype=np.int32)
    exponents = [np.full(values.size, each, np.int32) for each in range(tables.SCALES)]
    return np.array([bits_of(values, exponent_codes(each, SIDE_FAMILY)) for each in exponents], np.float32)


def stored(scales: NDArray[Any] | None, steps: Scales | None = None) -> Stored:
    """The scales of an axis in the fewest bits.

    Args:
        scales: of steps or of spreads, whole numbers [n].
        steps: the scales of the steps of the same axis, when those of the spreads are asked for; None for none.
    """
    if scales is None or not scales.any():
        return Stored(NONE, None, 0.0)
    alone = _coded(scales.astype(np.int32))
    if steps is None:
        return alone
    total = scales.astype(np.int32) + steps
    if not total.any():
        return Stored(OPPOSITE, None, NAME_BITS)
    both = _coded(total)
    return alone if alone.bits <= both.bits else Stored(FIRST_SUM - both.code, *both[1:])


def _coded(values: Symbols) -> Stored:
    """Integers with the exponent that takes the fewest bits."""
    counts = np.bincount(np.minimum(np.abs(values), 255))
    bits = lengths()[:, : counts.size] @ counts.astype(np.float64)
    best = int(bits.argmin())
    return Stored(best, values, float(bits[best]) + NAME_BITS)


def restored(code: int, values: Symbols | None, steps: Scales | None = None) -> Scales | None:
    """Undo `stored`.

    Raises:
        FormatError: a scale is out of range, or there are no scales of steps to be taken from a sum.
    """
    if code == NONE:
        return None
    total: NDArray[np.int64] = np.zeros((), np.int64) if values is None else values.astype(np.int64)
    if code <= OPPOSITE:
        if steps is None:
            raise FormatError("the spreads of an axis are relative to its steps, and these have no scales")
        total = total - steps
    if total.size and np.abs(total).max() > LARGEST:
        raise FormatError(f"a scale is out of range; expected {-LARGEST} to {LARGEST}")
    return total.astype(np.int8)


def side_bits(scales: AxisScales, steps: AxisScales = NO_SCALES) -> float:
    """What the scales of all axes take in a file; of spreads beside steps that have these scales."""
    return sum(stored(*each).bits for each in zip(scales, steps, strict=True))
