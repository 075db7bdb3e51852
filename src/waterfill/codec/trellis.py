"""Paths through a trellis: its states, and the tables that code the indices of its two subsets.

The state s picks the subset `q = parity(s & h1 / 2)`. An index k is coded with the table of its element and of q, and
then s becomes `2 s + u` modulo the number of states, with `u = (k mod 2) xor parity(s & h0 / 2)`. Levels with four
remainders modulo 4 meet in this way as far apart as they can, so a path comes nearer to a sequence of weights than the
nearest even numbers do, at the rate of these.

Source:
    Marcellin and Fischer, "Trellis coded quantization of memoryless and Gauss-Markov sources" (1990); entropy-coded:
    Fischer and Wang (1992); zero in both subsets as in the dependent quantization of VVC (Schwarz et al. 2019).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import native, rans, subsets, tables
from waterfill.codec.order import Places, Sums, places
from waterfill.errors import FormatError
from waterfill.records import Layout, Paths, Spread, Symbols

PARITIES = {
    2: (0o5, 0o2),
    3: (0o17, 0o2),
    4: (0o35, 0o16),
    5: (0o43, 0o24),
    6: (0o141, 0o66),
    7: (0o365, 0o156),
    8: (0o405, 0o356),
    9: (0o1655, 0o746),
    10: (0o2413, 0o1132),
    11: (0o4117, 0o2704),
    12: (0o15303, 0o7064),
}
"""Parity checks h0 and h1 by the logarithm of the number of states."""

HIGHEST_EXPONENT = 280
"""Exponents are cut here: at most 28 low bits are uniform."""


@functools.cache
def parities(log_states: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Parities of every state under h0 and h1 (int64 [states] each): what flips the bit, and the subset."""
    states = np.arange(1 << log_states)
    flips, picks = (_parity(states & (mask >> 1)) for mask in PARITIES[log_states])
    return flips, picks


def _parity(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whether the number of ones is odd, of values below 2^16."""
    for shift in (8, 4, 2, 1):
        values = values ^ (values >> shift)
    return values & 1


@functools.cache
def entries(log_states: int) -> NDArray[np.uint16]:
    """Twice the next state plus its subset, for every state and lowest bit of k; uint16 [2 * states]."""
    flips, picks = parities(log_states)
    states = np.arange(1 << log_states)[:, None]
    following = (2 * states + (np.array([0, 1]) ^ flips[:, None])) & (states.size - 1)
    found: NDArray[np.uint16] = (2 * following + picks[following]).astype(np.uint16).reshape(-1)
    return found


@dataclass(frozen=True, eq=False)
class PathModel:
    """What codes the indices of a piece.

    Attributes:
        trellis: the trellis.
        size: number of levels.
        places: where the elements are; None where all have one class.
        number: uint16, the class of every sum of scales at these places.
        exponents: int64 [classes, 2], of the two subsets, 0 to 280.
        families: shapes of the two subsets.
        span: after how many levels the state is 0 again.
        aside: bool [classes], whose elements stand aside.
        length: levels of a line.
    """

    trellis: Paths
    size: int
    places: Places | None
    number: NDArray[np.uint16]
    exponents: NDArray[np.int64]
    families: tuple[int, int]
    span: int
    aside: NDArray[np.bool_]
    length: int

    @property
    def lanes(self) -> tuple[int, int]:
        """How many lanes take turns, and how many levels each has: one without lanes."""
        lanes = self.trellis.lanes
        if lanes is None:
            return rans.LANES, 1
        return lanes.count, max(1, min(self.span, self.size))

    @functools.cached_property
    def classes(self) -> NDArray[np.uint16]:
        """Class of every element, [n]."""
        return np.zeros(self.size, np.uint16) if self.places is None else self.places.look_up(self.number)

    def sums(self) -> tuple[Sums, Sums]:
        """The sums of scales of whole lines: a part for every line, and one for every place in a line."""
        if self.places is None:
            return np.zeros(self.size // self.length, np.int32), np.zeros(self.length, np.int32)
        return self.places.lines, self.places.within

    @functools.cached_property
    def lows(self) -> NDArray[np.uint8]:
        """How many low bits are uniform, [2 * classes]."""
        return (np.maximum(self.exponents - (tables.SCALES - 8), 0) >> 3).astype(np.uint8).reshape(-1)

    @functools.cached_property
    def bank(self) -> tuple[subsets.SubsetTable, ...]:
        """The tables of every class and subset, [2 * classes]."""
        kinds = subsets.KINDS[self.trellis.zero]
        exponents = self.exponents.reshape(-1) - 8 * self.lows.astype(np.int64)
        scales = np.minimum(np.maximum(exponents, 0), tables.SCALES - 1)
        rows = enumerate(scales.tolist())
        return tuple(subsets.table(kinds[row & 1], self.families[row & 1], scale) for row, scale in rows)

    @functools.cached_property
    def slots(self) -> NDArray[np.uint32]:
        """The slots of the tables one after the other, [2 * classes * 4096]."""
        return np.concatenate([each.slots for each in self.bank])

    @functools.cached_property
    def last(self) -> NDArray[np.int64]:
        """The largest magnitude that has a symbol of its own, [2 * classes]."""
        return np.array([each.last for each in self.bank], np.int64)


def path_model(spread: Spread, layout: Layout, start: int, stop: int) -> PathModel:
    """The model of the elements start..stop of the stream of a tensor with a trellis."""
    trellis = spread.trellis
    assert trellis is not None
    if start == stop or (spread.rows is None and spread.channels is None and spread.taps is None):
        found, number, offsets = None, np.zeros(1, np.uint16), np.zeros(1, np.int64)
    else:
        found = places(layout, spread.scales, start, stop, trellis.down)
        is_used = np.zeros(found.totals.size, np.bool_)
        is_used[np.add.outer(*(np.array([*{*part.tolist()}]) for part in (found.lines, found.within)))] = True
        used = np.flatnonzero(is_used)
        offsets = found.totals[used]
        number = np.zeros(found.totals.size, np.uint16)
        number[used] = np.arange(used.size)
    exponents = np.array([spread.base, trellis.base]) + 2 * offsets[:, None]
    families = spread.family, trellis.family
    exponents = np.minimum(np.maximum(exponents, 0), HIGHEST_EXPONENT)
    known = trellis, stop - start, found, number, exponents, families, trellis.span(layout), offsets < trellis.least
    return PathModel(*known, layout.line_length(trellis.down))


class Path(NamedTuple):
    """A path: indices k int32 [n] and subsets uint8 [n]."""

    indices: Symbols
    subsets: NDArray[np.uint8]


def path_of(levels: Symbols, model: PathModel) -> Path:
    """The path whose levels these are, in the order of the stream from the start of a span.

    Raises:
        ValueError: there is none.
    """
    from waterfill.codec import path_kernels

    path = Path(np.empty(levels.size, np.int32), np.empty(levels.size, np.uint8))
    known = model.classes, model.aside, entries(model.trellis.log_states), model.trellis.zero, model.span
    left = path_kernels.walk(levels, *known, *path)
    if left >= 0:
        raise ValueError(f"symbol {levels[left]} at {left} is not in the subset of its state; expected a path")
    return path


class PathRun:
    """A path that is coded symbol by symbol, what its integers need beyond the tables right behind each."""

    def __init__(self, path: Path, model: PathModel) -> None:
        """Prepare it."""
        from waterfill.codec import path_kernels

        self.path, self.model = path, model
        known = path.indices, path.subsets, model.classes, model.lows, model.last
        self.events: int = path_kernels.count_events(*known, model.trellis.zero)

    def encode(self, states: NDArray[np.uint64], words: NDArray[np.uint16], at: int) -> int:
        """Encode it from its end; returns the new top of `words`."""
        from waterfill.codec import path_kernels

        model = self.model
        info = np.concatenate([each.info for each in model.bank])
        known = self.path.indices, self.path.subsets, model.classes, info, model.lows, model.last, model.trellis.zero
        top: int = path_kernels.encode_path(*known, tables.inverses(), *model.lanes, states, words, at)
        return top


def decode(words: NDArray[np.uint16], at: int, states: NDArray[np.uint64], model: PathModel) -> tuple[Symbols, int]:
    """Decode a path: its levels, and the next position in `words`.

    Raises:
        FormatError: the stream ends too early, or an integer is beyond 32 bits.
    """
    from waterfill.codec import path_kernels

    levels = np.empty(model.size, np.int32)
    known = model.classes, model.aside, model.slots, model.lows, model.last, model.trellis.zero
    at = path_kernels.decode_path(words, at, states, *known, entries(model.trellis.log_states), model.span, levels)
    return levels, checked(at)


def checked(at: int) -> int:
    """The position in the words that a kernel returns.

    Raises:
        FormatError: it is none: the words end too early, or an integer is beyond 32 bits.
    """
    from waterfill.codec import path_kernels

    if at == path_kernels.BEYOND:
        raise FormatError("a symbol is beyond 32 bits")
    if at < 0:
        raise FormatError("a stream ends before its symbols do")
    return at


def ideal_bits(levels: Symbols, model: PathModel) -> float:
    """Code length of the indices of a piece, in bits, without the end of the stream."""
    bits = np.stack([each.bits for each in model.bank]).astype(np.float64)
    if native.is_there():
        tables = model.aside, entries(model.trellis.log_states), bits, model.lows, model.last
        return native.path_bits(levels, model.classes, *tables, centred=model.trellis.zero, span=model.span)
    from waterfill.codec import path_kernels

    path = path_of(levels, model)
    return float(path_kernels.code_length(*path, model.classes, bits, model.lows, model.last, model.trellis.zero))
