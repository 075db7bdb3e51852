"""Paths that are decoded side by side: groups of lines, each a path of its own with a state of the coder of its own.

Lines of a piece go to its lanes in turn, `Lanes.lines` to each, and on with the first lane where there are more. At
step t of such a round every lane codes its element t, lane after lane, and all share one sequence of words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import rans
from waterfill.codec.trellis import PARITIES, PathModel, checked
from waterfill.records import Lanes, Layout, Symbols

START_BITS, STATE_BITS = 3, 24
"""What it costs that a path begins anew, and that a stream has one more state."""

LARGEST_SHARE = 0.001
"""Of the bits of a tensor, that lanes may cost."""

SMALL = 1 << 16
"""Tensors of so many weights have no lanes."""

LAYOUTS: tuple[tuple[Literal[8, 32], int], ...] = ((32, 1 << 20), (32, 1 << 21), (8, 1 << 20))
"""Numbers of lanes and of levels in a chunk, the best first."""


def best_lanes(layout: Layout, down: bool, rate: float, longest: int) -> Lanes | None:
    """The lanes of a path that is decoded fastest of those that cost little; None where all cost too much.

    Args:
        layout: of the tensor.
        down: whether the path goes down the columns.
        rate: bits per weight, about.
        longest: levels of a lane at most, if that is a line.
    """
    length = layout.line_length(down)
    lines = layout.numel // length
    if layout.numel <= SMALL or longest < length or not math.isfinite(rate):
        return None
    for count, chunk in LAYOUTS:
        chunks = -(-layout.numel // chunk)
        depth = min(-(-lines // (chunks * count)), longest // length)
        bits = START_BITS * -(-lines // depth) + STATE_BITS * (count - rans.LANES) * chunks
        if lines >= count and bits <= LARGEST_SHARE * rate * layout.numel:
            return Lanes(count, depth)
    return None


@dataclass(frozen=True, eq=False)
class LaneSymbols:
    """The levels of a piece in the order in which they are decoded: step by step, in each lane by lane.

    Attributes:
        levels: int32 [n].
        lanes: how many there are.
        span: levels of a lane in a round.
        length: levels of a line.
    """

    levels: Symbols
    lanes: int
    span: int
    length: int

    @property
    def size(self) -> int:
        """Number of levels."""
        return self.levels.size

    def in_order(self) -> Symbols:
        """The levels line by line, int32 [n]."""
        from waterfill.codec import lane_kernels

        found = np.empty(self.levels.size, np.int32)
        lane_kernels.in_order(self.levels, self.lanes, self.span, found)
        return found


def in_order(part: Symbols | LaneSymbols) -> Symbols:
    """The levels of a piece line by line."""
    return part.in_order() if isinstance(part, LaneSymbols) else part


def decode(words: NDArray[np.uint16], at: int, states: NDArray[np.uint64], model: PathModel) -> tuple[LaneSymbols, int]:
    """Decode a path with lanes: its levels, and the next position in `words`.

    Raises:
        FormatError: the stream ends too early, or an integer is beyond 32 bits.
    """
    from waterfill.codec import lane_kernels

    lanes, span = model.lanes
    found = LaneSymbols(np.empty(model.size + lane_kernels.WIDTH, np.int32), lanes, span, model.length)
    coded = lane_kernels.Tables(model.slots, lane_entries(model), model.lows, model.last)
    flips, picks = PARITIES[model.trellis.log_states]
    trellis = lane_kernels.Trellis(flips >> 1, picks >> 1, model.trellis.zero)
    narrow = states[:lanes].astype(np.uint32)
    known = *model.sums(), coded, trellis, span // model.length, lane_kernels.supported()
    at = checked(lane_kernels.decode_lanes(words, at, narrow, *known, found.levels))
    states[:lanes] = narrow
    return replace(found, levels=found.levels[: model.size]), at


def lane_entries(model: PathModel) -> NDArray[np.int32]:
    """The class of every sum of scales times 8192, 2 where it has low bits, and 1 where it stands aside."""
    with_low_bits = model.lows.reshape(-1, 2).any(axis=1)
    flags = 2 * with_low_bits.astype(np.int32) + model.aside
    found: NDArray[np.int32] = (model.number.astype(np.int32) << 13) + flags[model.number]
    return found
