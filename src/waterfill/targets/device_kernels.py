"""Decoding of paths with lanes on a device, in Triton: the steps of `codec.lane_kernels`, one program for a stream.

Arguments are not specialized: one program does for all tensors.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOW = tl.constexpr(1 << 16)
"""States of the coder below take a word."""

ENDED, BEYOND = tl.constexpr(1), tl.constexpr(2)
"""The words end too early; an integer is beyond 32 bits."""


@triton.jit
def _read(x, words, at, end):
    """A state with the next word if it is low, and the next position."""
    low = x < LOW
    word = tl.load(words + at, low & (at < end), 0).to(tl.int64) & 0xFFFF
    return tl.where(low, (x << 16) | word, x), at + low.to(tl.int64)


@triton.jit
def _pull_uniform(x, bits, words, at, end):
    """Decode one uniform symbol of so many of the 12 bits of a slot."""
    rest = 12 - bits
    slot = x & 4095
    x = ((x >> 12) << rest) + (slot & ((1 << rest) - 1))
    x, at = _read(x, words, at, end)
    return x, at, slot >> rest


@triton.jit
def _rest(x, byte, low, last, centred, words, at, end):
    """Low bits and escape of one index; all are int64."""
    high = byte - 128
    rest = low - low
    left = low
    while left > 0:
        bits = tl.minimum(left, 8)
        x, at, part = _pull_uniform(x, bits, words, at, end)
        rest |= part << (low - left)
        left -= bits
    if byte == 0:
        x, at, more = _pull_uniform(x, rest - rest + 2, words, at, end)
        extra = more - more
        shift = more - more
        while shift <= 8 * more:
            x, at, part = _pull_uniform(x, rest - rest + 8, words, at, end)
            extra |= part << shift
            shift += 8
        high = (extra >> 1) + last + 1
        high = tl.where((extra & 1) != 0, tl.where(centred, -high, -high - 1), high)
    middle = tl.where(centred, ((low - low + 1) << low) >> 1, low - low)
    return x, at, (high << low) + rest - middle


@triton.jit
def _one_by_one(x, at, entry, subset, many, words, end, slots, lows, lasts, zero, lane, LANES: tl.constexpr):
    """Decode one index of every lane with all that it needs, lane by lane; states, position, indices and status."""
    index = tl.zeros((LANES,), tl.int64)
    status = tl.zeros((), tl.int32)
    for one in range(many):
        mine = lane == one
        state, its_entry = tl.sum(tl.where(mine, x, 0)), tl.sum(tl.where(mine, entry, 0)).to(tl.int64)
        its_subset = tl.sum(tl.where(mine, subset, 0)).to(tl.int64)
        slot = tl.load(slots + (its_entry & -4) + (its_subset << 12) + (state & 4095)).to(tl.int64) & 0xFFFFFFFF
        state = (slot >> 20) * (state >> 12) + ((slot >> 8) & 4095)
        state, at = _read(state, words, at, end)
        row = ((its_entry >> 13) << 1) + its_subset
        low, last = tl.load(lows + row).to(tl.int64), tl.load(lasts + row).to(tl.int64)
        centred = (its_subset == 0) | (zero != 0)
        state, at, k = _rest(state, slot & 255, low, last, centred, words, at, end)
        beyond = (k >= (1 << 30)) | (k < -(1 << 30))
        status = tl.where(beyond, BEYOND, status)
        x = tl.where(mine, state, x)
        index = tl.where(mine, k, index)
    return x, at, index, status


@triton.jit
def _ones(bits):
    """How many of 32 bits are one."""
    bits -= (bits >> 1) & 0x55555555
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    bits += bits >> 8
    return (bits + (bits >> 16)) & 63


@triton.jit
def _together(x, at, slot, active, words, end, lane):
    """Decode one index of every lane, where none needs more than its slot: states, position and indices.

    A sum of bits tells each lane its word: in scans of less than a warp, Triton up to 3.2 lets threads disagree.
    """
    x = tl.where(active, (slot >> 20) * (x >> 12) + ((slot >> 8) & 4095), x)
    low = active & (x < LOW)
    taken = tl.sum(low.to(tl.int32) << lane)
    read = at + _ones(taken & ((2 << lane) - 1)) - 1
    word = tl.load(words + read, low & (read < end), 0).to(tl.int64) & 0xFFFF
    return tl.where(low, (x << 16) | word, x), at + _ones(taken), (slot & 255) - 128


@triton.jit
def _value(k, subset, step, shrink, zero):
    """The value of an index in a subset."""
    turned = tl.where((zero != 0) & (subset != 0), (k < 0).to(tl.int64) - (k > 0).to(tl.int64), subset)
    level = 2 * k + turned
    size = tl.abs(level)
    one, two, three = tl.load(shrink), tl.load(shrink + 1), tl.load(shrink + 2)
    by = tl.where(size == 0, 0, tl.where(size == 1, one, tl.where(size == 2, two, three)))
    return (64 * level - tl.where(level > 0, by, -by)).to(tl.float32) * step


@triton.jit(do_not_specialize=range(21))
def decode_streams(
    words, ends, states, pieces, lines, within, entries, slots, lows, lasts, steps, shrink, matrix, failed,
    flips, picks, zero, depth, length, apart, next_place,
    LANES: tl.constexpr,
):  # fmt: skip
    """Decode the streams of one tensor, each of whole lines, into its matrix.

    Args:
        words: int16, of all streams.
        ends: int64 [streams + 1], where the words of each begin.
        states: int64 [streams, LANES], the states of the coder.
        pieces: int64 [streams, 8], of each the first line in the tensor, how many there are, and where its parts of
            `lines`, `within`, `entries`, `steps`, `slots`, and of `lows` and `lasts` begin.
        lines: int32 [all lines, 2], the parts of every line of the sums of scales, for the tables and for the steps.
        within: int32 [pieces, length, 2], the same of every place in a line.
        entries: int32, of every sum of scales 8192 times its class, 2 with low bits, and 1 where it stands aside.
        slots: int32, frequency << 20 | offset << 8 | byte.
        lows: uint8, how many low bits are uniform, of every class and subset.
        lasts: int64, the largest magnitude, likewise.
        steps: float32, 1/64 step of every sum of scales.
        shrink: int64 [3], how far the levels 1, 2, and 3 and above lie towards zero, in 1/64 step.
        matrix: float32, filled.
        failed: int32 [streams], filled: 0 where the stream was right and ended with its levels.
        flips: half of the parity check h0.
        picks: half of the parity check h1.
        zero: whether zero is in both subsets.
        depth: lines of a lane in a round.
        length: of a line.
        apart: values from line to line of the matrix.
        next_place: values from place to place.
        LANES: lanes of a stream.
    """
    stream = tl.program_id(0).to(tl.int64)
    at, end = tl.load(ends + stream), tl.load(ends + stream + 1)
    lane = tl.arange(0, LANES)
    x = tl.load(states + stream * LANES + lane)
    pieces += 8 * stream
    first_line, size = tl.load(pieces), tl.load(pieces + 1)
    lines += 2 * tl.load(pieces + 2)
    within += 2 * tl.load(pieces + 3)
    entries += tl.load(pieces + 4)
    steps += tl.load(pieces + 5)
    slots += tl.load(pieces + 6)
    lows += tl.load(pieces + 7)
    lasts += tl.load(pieces + 7)
    status = tl.zeros((), tl.int32)
    for start in range(0, size, LANES * depth):
        left = tl.minimum(size - start, LANES * depth)
        path = tl.zeros((LANES,), tl.int32)
        for turn in range(tl.minimum(depth, left)):
            many = (left - turn - 1) // depth + 1
            active = lane < many
            line = start + turn + tl.minimum(lane, many - 1).to(tl.int64) * depth
            coded, scaled = tl.load(lines + 2 * line), tl.load(lines + 2 * line + 1)
            places = matrix + (first_line + line) * apart
            for place in range(length):
                entry = tl.load(entries + coded + tl.load(within + 2 * place))
                step = tl.load(steps + scaled + tl.load(within + 2 * place + 1))
                subset = path & ~entry & 1
                slot = tl.load(slots + (entry & -4) + (subset << 12) + (x & 4095).to(tl.int32)).to(tl.int64)
                slot = slot & 0xFFFFFFFF
                rare = active & (((slot & 255) == 0) | ((entry & 2) != 0))
                if tl.max(rare.to(tl.int32)) > 0:
                    x, at, k, told = _one_by_one(
                        x, at, entry, subset, many.to(tl.int32), words, end, slots, lows, lasts, zero, lane, LANES
                    )
                    status = tl.maximum(status, told)
                else:
                    x, at, k = _together(x, at, slot, active, words, end, lane)
                tl.store(places, _value(k, subset, step, shrink, zero), active)
                places += next_place
                moved = (path >> 1) ^ tl.where((k & 1) != 0, picks, 0) ^ tl.where(subset != 0, flips, 0)
                path = tl.where((entry & 1) != 0, path, moved)
            status = tl.where(at > end, tl.maximum(status, ENDED), status)
    wrong = (at != end) | (tl.sum((x != LOW).to(tl.int32)) > 0)
    tl.store(failed + stream, tl.where(wrong & (status == 0), ENDED, status))
