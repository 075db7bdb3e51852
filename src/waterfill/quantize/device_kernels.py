"""The search for paths on a device, in Triton: the integers of the search on the processor, so the same paths.

Paths are cut into segments that are searched side by side. A segment begins some weights earlier, from every state
alike. Where the paths to all states have come together in these, costs of states differ exactly as they do after a
search from the start, which is checked: what a segment has before its first weight is what the one before it has after
its last. Integers are compared, so there is no tolerance.

Each path carries the last 32 of its decisions with it, bit 0 the latest: which half of the states it came from. They
tell all states on the way back, so only every 32nd are kept.

Arguments are not specialized: columns begin anywhere, and programs for each alignment would be compiled one by one.
"""

from __future__ import annotations

import triton
import triton.language as tl

WORD = tl.constexpr(32)
"""Decisions that a path carries with it."""

FARTHEST = tl.constexpr(255)
"""Levels beyond cost the bits of this one."""


@triton.jit
def _moved(level, first, second, third):
    """How far a level lies from where it would be, towards zero."""
    size = tl.abs(level)
    by = tl.where(size == 0, 0.0, tl.where(size == 1, first, tl.where(size == 2, second, third)))
    return tl.where(level > 0, -by, by)


@triton.jit
def _cost(value, weight, level, bits, first, second, third):
    """What a level costs: `weight * (value - level)^2 + price`."""
    apart = value - level.to(tl.float32) - _moved(level, first, second, third)
    price = tl.load(bits + tl.minimum(tl.maximum(level, -FARTHEST), FARTHEST) + FARTHEST)
    return weight * apart * apart + price


@triton.jit
def _branch(value, weight, bits, first, second, third, BRANCH: tl.constexpr, ZERO: tl.constexpr):
    """Cost and level of a branch: of the nearest level, the next one towards zero and the smallest the cheapest.

    Levels of branch `2 q + b` are `4 m + q + 2 b`; with zero in both subsets those of subset 1 are `4 m + 2 b - 1` from
    the smallest one on, and their opposites.
    """
    sized: tl.constexpr = ZERO and BRANCH >= 2
    offset: tl.constexpr = (2 * (BRANCH % 2) - 1) if sized else BRANCH // 2 + 2 * (BRANCH % 2)
    at = tl.abs(value) if sized else value
    near = 4 * tl.floor((at - (offset - 2)) * 0.25).to(tl.int32) + offset
    if sized:
        least = tl.zeros_like(near) + (BRANCH % 2)
        further = tl.maximum(near - 4, least)
        near = tl.maximum(near, least)
    else:
        further = near - tl.where(at >= 0, 4, -4)
        smallest: tl.constexpr = -1 if BRANCH == 3 else BRANCH // 2 + 2 * (BRANCH % 2)
        least = tl.zeros_like(near) + smallest
        if BRANCH == 1:
            least = tl.where(at > 0, least, -least)
    cost = _cost(at, weight, near, bits, first, second, third)
    other = _cost(at, weight, further, bits, first, second, third)
    level = tl.where(other < cost, further, near)
    cost = tl.minimum(cost, other)
    last = _cost(at, weight, least, bits, first, second, third)
    level = tl.where(last < cost, least, level)
    if sized:
        level = tl.where(value < 0, -level, level)
    return tl.minimum(cost, last), level


@triton.jit
def _in_units(cost, least, scale, limit):
    return tl.minimum((cost - least) * scale + 0.5, limit).to(tl.int32)


@triton.jit
def _price(value, weight, start, at, place, inside, prices, shrink, unit, costs, levels, found, ZERO: tl.constexpr):
    """Put costs and levels of the branches of some weights where the search finds them; decide those aside.

    Args:
        value: float32, weights in steps.
        weight: float32, of the squared errors.
        start: int32, where the prices of each begin.
        at: where each is among all weights.
        place: int32, where each is in the order of the path; -1 for those that stand aside.
        inside: which of them there are.
        prices: float32, of all levels.
        shrink: float32 [3], how far the levels of magnitude 1, 2, >= 3 lie towards zero.
        unit: float32 [2], integers for a cost of one, and the largest one.
        costs: int32 [n, 4], in the order of the path, filled.
        levels: int32 [n, 4], filled.
        found: int32 [n], levels of those that stand aside, filled.
        ZERO: whether zero is in subset 1 too.

    Returns:
        The levels, right for those that stand aside.
    """
    first, second, third = tl.load(shrink), tl.load(shrink + 1), tl.load(shrink + 2)
    bits = prices + start
    c0, l0 = _branch(value, weight, bits, first, second, third, 0, ZERO)
    c1, l1 = _branch(value, weight, bits, first, second, third, 1, ZERO)
    c2, l2 = _branch(value, weight, bits + 512, first, second, third, 2, ZERO)
    c3, l3 = _branch(value, weight, bits + 512, first, second, third, 3, ZERO)
    least = tl.minimum(tl.minimum(c0, c1), tl.minimum(c2, c3))
    scale, limit = tl.load(unit), tl.load(unit + 1)
    i0, i1 = _in_units(c0, least, scale, limit), _in_units(c1, least, scale, limit)
    on_path = inside & (place >= 0)
    tl.store(costs + 4 * place, i0, on_path)
    tl.store(costs + 4 * place + 1, i1, on_path)
    tl.store(costs + 4 * place + 2, _in_units(c2, least, scale, limit), on_path)
    tl.store(costs + 4 * place + 3, _in_units(c3, least, scale, limit), on_path)
    tl.store(levels + 4 * at, l0, inside)
    tl.store(levels + 4 * at + 1, l1, inside)
    tl.store(levels + 4 * at + 2, l2, inside)
    tl.store(levels + 4 * at + 3, l3, inside)
    alone = tl.where(i1 < i0, l1, l0)
    tl.store(found + at, alone, inside & (place < 0))
    return alone


@triton.jit(do_not_specialize=range(11))
def price_weights(
    values, weights, starts, places, size, prices, shrink, unit, costs, levels, found,
    EACH: tl.constexpr, PRICED: tl.constexpr, ZERO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Price the branches of all weights.

    Args:
        values: float32 [n], in steps.
        weights: float32 [n], or [1] where EACH is false.
        starts: int32 [n], or [1] where PRICED is false.
        places: int32 [n], in the order of the path; -1 for those that stand aside.
        size: n.
        prices: see `_price`, as are the rest.
        shrink: likewise.
        unit: likewise.
        costs: likewise.
        levels: likewise.
        found: likewise.
        EACH: whether every weight has a weight of its own.
        PRICED: whether every weight has prices of its own.
        ZERO: whether zero is in subset 1 too.
        BLOCK: weights of a program.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value, place = tl.load(values + at, inside, 0.0), tl.load(places + at, inside, -1).to(tl.int64)
    weight = tl.load(weights + at, inside, 0.0) if EACH else tl.load(weights)
    start = tl.load(starts + at, inside, 0) if PRICED else tl.load(starts)
    _price(value, weight, start, at, place, inside, prices, shrink, unit, costs, levels, found, ZERO)


@triton.jit(do_not_specialize=range(20))
def price_column(
    values, carried, weights, rows, column, places, prices, shrink, unit, costs, levels, found,
    factors, gains, classes, step, errors, earlier, columns, height,
    EACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Price the branches of one column, after feedback of the columns from `base` on.

    Args:
        values: float32 [rows] of the column, in steps.
        carried: float32 [rows], feedback of the columns before `base`.
        weights: float32 [rows], or [1] where EACH is false.
        rows: int32 [rows], where the prices of each begin, less those of the column.
        column: int32 [1], where the prices of the column begin.
        places: int32 [rows]; see `price_weights`, as are the next ones.
        prices: likewise.
        shrink: likewise.
        unit: likewise.
        costs: likewise.
        levels: likewise.
        found: likewise.
        factors: float32 [classes, in, in], from this column and the first whose errors come in on.
        gains: float32 [classes, in], from this column on.
        classes: int32 [rows].
        step: float32 [1], by which errors in steps are multiplied.
        errors: float32 [in, rows], so multiplied, from the first column that comes in on; those of this one are
            filled for rows that stand aside.
        earlier: columns that come in.
        columns: in.
        height: rows.
        EACH: whether every weight has a weight of its own.
        BLOCK: rows of a program.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < height
    kind = tl.load(classes + at, inside, 0).to(tl.int64)
    factor = factors + kind * columns * columns
    before = tl.zeros((BLOCK,), tl.float32)
    for b in range(earlier):
        before += tl.load(factor + b, inside, 0.0) * tl.load(errors + at, inside, 0.0)
        errors += height
    value, gain = tl.load(values + at, inside, 0.0), tl.load(gains + kind * columns, inside, 0.0)
    target = value + tl.load(carried + at, inside, 0.0) + gain * before
    weight = tl.load(weights + at, inside, 0.0) if EACH else tl.load(weights)
    place = tl.load(places + at, inside, -1)
    start = tl.load(rows + at, inside, 0) + tl.load(column)
    alone = _price(target, weight, start, at, place, inside, prices, shrink, unit, costs, levels, found, False)
    error = (value - alone.to(tl.float32)) * tl.load(step)
    tl.store(errors + at, error, inside & (place < 0))


@triton.jit
def _halves(values, STATES: tl.constexpr):
    """The first and the second half of the states."""
    return tl.split(tl.trans(tl.reshape(values, (2, STATES // 2))))


@triton.jit
def _pairs(even, odd, STATES: tl.constexpr):
    """States in pairs."""
    return tl.reshape(tl.join(even, odd), (STATES,))


@triton.jit
def _extend(old, history, costs, odd, flip, STATES: tl.constexpr):
    """Extend all paths by a weight: costs and histories of the paths to every state; of two equal ones the first."""
    c0, c1, c2, c3 = tl.load(costs), tl.load(costs + 1), tl.load(costs + 2), tl.load(costs + 3)
    straight = tl.where(odd, tl.where(flip, c3, c2), tl.where(flip, c1, c0))
    crossed = tl.where(odd, tl.where(flip, c2, c3), tl.where(flip, c0, c1))
    first, second = _halves(old, STATES)
    known, also = _halves(history, STATES)
    even = second + crossed - (first + straight) < 0
    odd_one = second + straight - (first + crossed) < 0
    new = _pairs(
        tl.where(even, second + crossed, first + straight),
        tl.where(odd_one, second + straight, first + crossed),
        STATES,
    )
    come = _pairs(
        (tl.where(even, also, known) << 1) | even.to(tl.int32),
        (tl.where(odd_one, also, known) << 1) | odd_one.to(tl.int32),
        STATES,
    )
    return new, come


@triton.jit
def _relative(costs, state):
    """Costs relative to that of state 0."""
    return costs - tl.sum(tl.where(state == 0, costs, 0))


@triton.jit
def _back(state, history, count, LOG: tl.constexpr):
    """The state so many weights before, 0 to 32."""
    kept = tl.minimum(count, LOG)
    taken = (history >> (count - kept)) & ((1 << kept) - 1)
    return (state >> kept) | (taken << (LOG - kept))


@triton.jit(do_not_specialize=range(13))
def extend_segments(
    costs, strands, begins, odds, flips, far, warm, segments, histories, before, after, best, starts,
    STATES: tl.constexpr, LOG: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Search the segments of paths, each from some weights before it on.

    Args:
        costs: int32 [n, 4], of the branches, in the order of the paths.
        strands: int32 [paths + 1], where each path begins.
        begins: int32 [paths], the state each starts at.
        odds: int32 [states], the subset each picks.
        flips: int32 [states], parity of each under h0.
        far: cost to start at another state.
        warm: weights that segments are searched from before they begin.
        segments: of a path, at most.
        histories: int32 [paths, segments, SEGMENT / 32, states], filled.
        before: int32 [paths, segments, states], costs relative to state 0 before each segment, filled.
        after: the same after each.
        best: int32 [paths, segments], the cheapest state after each.
        starts: int32 [paths, segments, states], the state before a segment of the path to each state after it.
        STATES: of the trellis.
        LOG: its logarithm.
        SEGMENT: weights of a segment.
    """
    strand, segment = tl.program_id(0), tl.program_id(1)
    begin = tl.load(strands + strand)
    size = tl.load(strands + strand + 1) - begin
    first = segment * SEGMENT
    if first < size:
        here = strand.to(tl.int64) * segments + segment
        costs += 4 * begin.to(tl.int64)
        half = tl.arange(0, STATES // 2)
        odd, flip = tl.load(odds + half) != 0, tl.load(flips + half) != 0
        state = tl.arange(0, STATES)
        start = tl.maximum(first - warm, 0)
        known = (start > 0) | (state == tl.load(begins + strand))
        paths = tl.where(known, 0, far)
        history = tl.zeros((STATES,), tl.int32)
        for t in range(start, first):
            paths, history = _extend(paths, history, costs + 4 * t, odd, flip, STATES)
        tl.store(before + here * STATES + state, _relative(paths, state))
        count = tl.minimum(size - first, SEGMENT)
        words = tl.cdiv(count, WORD)
        histories += here * (SEGMENT // WORD) * STATES
        for word in range(words):
            for t in range(first + word * WORD, first + tl.minimum((word + 1) * WORD, count)):
                paths, history = _extend(paths, history, costs + 4 * t, odd, flip, STATES)
            tl.store(histories + word * STATES + state, history)
        paths = _relative(paths, state)
        tl.store(after + here * STATES + state, paths)
        tl.store(best + here, tl.argmin(paths, 0, tie_break_left=True))
        tl.debug_barrier()
        now = state
        for k in range(words):
            word = words - 1 - k
            now = _back(now, tl.load(histories + word * STATES + now), tl.minimum(count - word * WORD, WORD), LOG)
        tl.store(starts + here * STATES + state, now)


@triton.jit(do_not_specialize=range(17))
def decide_segments(
    strands, order, odds, flips, segments, histories, before, after, best, starts, levels, found, begins, unlike,
    values, step, errors,
    STATES: tl.constexpr, LOG: tl.constexpr, SEGMENT: tl.constexpr, FEEDS: tl.constexpr,
):  # fmt: skip
    """Follow the paths back through their segments.

    Args:
        strands: see `extend_segments`.
        order: int32 [n], which weight is at each place of the paths.
        odds: see `extend_segments`, as are the next ones.
        flips: likewise.
        segments: likewise.
        histories: likewise.
        before: likewise.
        after: likewise.
        best: likewise.
        starts: likewise.
        levels: int32 [n, 4], of the branches of every weight.
        found: int32 [n], filled.
        begins: int32 [paths + 1], where FEEDS the state after each path is put behind its own.
        unlike: int32 [1], 1 is put there where a segment did not begin as the one before it ended.
        values: float32 [n], where FEEDS.
        step: float32 [1], by which errors in steps are multiplied.
        errors: float32 [n], so multiplied, filled.
        STATES: of the trellis.
        LOG: its logarithm.
        SEGMENT: weights of a segment.
        FEEDS: whether errors are kept, of a column that the next one goes on from.
    """
    strand, segment = tl.program_id(0), tl.program_id(1)
    begin = tl.load(strands + strand)
    size = tl.load(strands + strand + 1) - begin
    first = segment * SEGMENT
    if first < size:
        row = strand.to(tl.int64) * segments
        here = row + segment
        last = tl.cdiv(size, SEGMENT) - 1
        end = tl.load(best + row + last)
        if FEEDS:
            tl.store(begins + strand + 1, end, segment == last)
        for k in range(last - segment):
            end = tl.load(starts + (row + last - k) * STATES + end)
        state = tl.arange(0, STATES)
        if segment > 0:
            was = tl.load(after + (here - 1) * STATES + state)
            if tl.sum((was != tl.load(before + here * STATES + state)).to(tl.int32)) > 0:
                tl.store(unlike, 1)
        count = tl.minimum(size - first, SEGMENT)
        words = tl.cdiv(count, WORD)
        histories += here * (SEGMENT // WORD) * STATES
        ago = tl.arange(0, WORD)
        for k in range(words):
            word = words - 1 - k
            some = tl.minimum(count - word * WORD, WORD)
            history = tl.load(histories + word * STATES + end)
            inside = ago < some
            reached, left = _back(end, history, ago, LOG), _back(end, history, ago + 1, LOG)
            odd, flip = tl.load(odds + left, inside, 0), tl.load(flips + left, inside, 0)
            place = begin.to(tl.int64) + first + word * WORD + some - 1 - ago
            at = tl.load(order + place, inside, 0).to(tl.int64)
            level = tl.load(levels + 4 * at + 2 * odd + ((reached & 1) ^ flip), inside, 0)
            tl.store(found + at, level, inside)
            if FEEDS:
                error = (tl.load(values + at, inside, 0.0) - level.to(tl.float32)) * tl.load(step)
                tl.store(errors + at, error, inside)
            end = _back(end, history, some, LOG)
