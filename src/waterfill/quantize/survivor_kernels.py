"""Error feedback where columns are short: the paths to every state make up for their own errors.

The states in which a column can end are its *ends*: some of the cheapest. A path through the next column starts from
one of them, its *origin*, and has the errors of that one behind it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from waterfill.compiled import kernel
from waterfill.quantize.branch_kernels import branch_costs, in_units, room
from waterfill.quantize.feedback_kernels import aim, find_prices, leave
from waterfill.quantize.viterbi_kernels import PathCosts, extend_paths, logarithm, step_back, take_better

DEAD, ALIVE = np.int32(1 << 30), np.int32(1 << 29)
"""Cost of a state that no path reaches, or none that agrees with what is decided; those of others are below ALIVE."""

RESCALED_EVERY = 64
"""Costs of paths are taken relative to the lowest one every so many steps."""

COUNTED_EVERY = 8
"""After so many rows it is asked again how many origins are left; so many are priced at once."""


class Survivors(NamedTuple):
    """How much of its paths a search remembers.

    Attributes:
        lag: after how many steps survivors are taken to have one past.
        ends: how many states of a column are kept at its end.
    """

    lag: Any
    ends: Any


class Column(NamedTuple):
    """What rows of a column aim at, and what their branches cost.

    Attributes:
        target: float32 [rows].
        sums: float32 [ends, last rows], what the errors of every origin add.
        weights: float32 [rows].
        starts: int32 [rows], where their prices begin.
        stays: bool [rows], which stand aside.
        bits: prices, flat.
    """

    target: Any
    sums: Any
    weights: Any
    starts: Any
    stays: Any
    bits: Any


class Steps(NamedTuple):
    """What the search through a column leaves behind for tracing paths, and room for it to work in.

    Attributes:
        decisions: uint32, flat, so many words for each row.
        levels: int32 [4, rows], of the branches.
        apart: int32 [last rows, ends, 4], the same by origin, for the last rows where there are several.
        costs: int32 [4, rows], of the branches of the rows in hand, from the first one.
        choices: int32 [4, rows], their levels.
        rooms: for as many rows, or priced origins.
        visits: int64 [last rows, states], by which end of all columns each state was last traced through.
        places: int64 [ends], which ends of a column are left, for each; -1 for one that was given up.
    """

    decisions: Any
    levels: Any
    apart: Any
    costs: Any
    choices: Any
    rooms: Any
    visits: Any
    places: Any


class Origins(NamedTuple):
    """Where paths come from.

    Attributes:
        slots: int32 [states], for the path to every state its place in `live`.
        spare: int32 [states].
        live: int64 [ends], the origins that are left.
        places: int64 [ends], room.
        values: float32 [8 * ends], what they aim at in some rows, row by row.
        weights: float32 [8 * ends].
        starts: int32 [8 * ends].
        levels: int32 [4, 8 * ends], of their branches.
        costs: int32 [4, 8 * ends].
    """

    slots: Any
    spare: Any
    live: Any
    places: Any
    values: Any
    weights: Any
    starts: Any
    levels: Any
    costs: Any


@kernel
def surviving_span(x, carried, feed, first, base, prices, aside, code, survivors, levels):
    """A path of low cost down the columns, from state 0 to any state.

    The cheapest ends of a column go on, each with its own errors. What lies `lag` steps behind, and not in the same
    column, is the same for all of them: paths that disagree with the best one there are given up. With a lag of all
    weights, and as many ends as states, none is.

    Args:
        x: float32 [columns, rows], in steps.
        carried: float32 [columns, rows], feedback of the columns before `base`.
        feed: of those from there on.
        first: the first column of the span in the matrix.
        base: a column up to the first.
        prices: of the levels.
        aside: bool [exponents], of elements that are in subset 0 whatever the state is, which stays.
        code: the trellis, with costs in int32.
        survivors: how many there are.
        levels: int32 [columns, rows], filled.
    """
    columns, rows = x.shape
    most, tail = min(survivors.ends, code.flips.size), min(rows, survivors.lag)
    head = rows - tail  # the last rows of a column are undecided when it ends
    kept = survivors.lag // rows + 2  # so many columns have an undecided tail
    tail_levels = np.empty((kept, most, tail), np.int32)  # by end
    tail_errors = np.empty((kept, most, tail), np.float32)
    befores = np.zeros((kept, most), np.int64)  # the origin of every end
    factors, ends = np.empty((kept, tail), np.float32), np.zeros(most, np.int64)
    column, steps, origins = _column(rows, most, tail, prices), _steps(rows, most, tail, code), _origins(most, code)
    paths, undecided, count = _first_path(code), 0, 1
    for c in range(columns):
        aim(x[c], carried[c], feed, first + c, base, column.target)
        if c > undecided:
            _tail_feedback(feed, first, head, c, undecided, count, tail_errors, befores, factors, column.sums)
        find_prices(prices, c, aside, column.starts, column.stays)
        column.weights[:] = prices.weights[c if len(prices.weights) > 1 else 0]
        paths, stop = _extend_column(column, head, code, count, paths, origins, steps)
        k = c % kept
        count = _cheapest(paths.old, ends)
        for i in range(count):
            befores[k, i] = origins.live[origins.slots[ends[i]]]
        count = _trace_tails(count, ends, befores[k], column, stop, c, code, steps, tail_levels[k], levels[c])
        leave(x[c], levels[c, :head], feed, first + c)
        for i in range(count):
            for t in range(tail):
                error = x[c, head + t] - np.float32(tail_levels[k, i, t])
                tail_errors[k, i, t] = error * feed.steps[first + c]
        while undecided <= c and (c == columns - 1 or c - undecided + 1 >= kept):
            count, node = _give_up_others(count, ends, befores, undecided, c, tail_levels, tail_errors)
            levels[undecided, head:] = tail_levels[undecided % kept, node]
            feed.errors[head:, first + undecided] = tail_errors[undecided % kept, node]
            undecided += 1
        _start_from(count, ends, paths, origins)


@njit
def _column(rows, most, tail, prices):
    return Column(
        np.empty(rows, np.float32),
        np.zeros((most, tail), np.float32),
        np.empty(rows, np.float32),
        np.empty(rows, np.int32),
        np.zeros(rows, np.bool_),
        prices.bits.reshape(-1),
    )


@njit
def _steps(rows, most, tail, code):
    decisions, levels = np.empty(2 * code.kinds.size * rows, np.uint32), np.empty((4, rows), np.int32)
    apart, costs = np.empty((tail, most, 4), np.int32), np.empty((4, rows), np.int32)
    visits, places = np.full((tail, code.flips.size), -1), np.zeros(most, np.int64)
    rooms = room(max(rows, COUNTED_EVERY * most))
    return Steps(decisions, levels, apart, costs, np.empty_like(levels), rooms, visits, places)


@njit
def _origins(most, code):
    slots, spare, size = np.zeros(code.flips.size, np.int32), np.zeros(code.flips.size, np.int32), COUNTED_EVERY * most
    live, places = np.arange(most), np.empty(most, np.int64)
    values, weights, starts = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.int32)
    levels, costs = np.empty((4, size), np.int32), np.empty((4, size), np.int32)
    return Origins(slots, spare, live, places, values, weights, starts, levels, costs)


@njit
def _first_path(code):
    """The path to state 0, of no weights."""
    states = code.flips.size
    old, new, spread = np.full(states, DEAD), np.empty(states, np.int32), np.empty(4 * code.odd.size, np.int32)
    old[0] = 0
    return PathCosts(old, new, spread)


@njit
def _start_from(count, ends, paths, origins):
    """Leave only the paths to some ends, and number these."""
    costs, spare, slots = paths.old, paths.new, origins.slots
    for i in range(origins.live.size):
        origins.live[i] = i
    for i in range(count):
        spare[i] = costs[ends[i]]
    costs[:], slots[:] = DEAD, 0
    for i in range(count):
        costs[ends[i]] = spare[i]
        slots[ends[i]] = i


@kernel
def _tail_feedback(feed, first, head, column, undecided, count, tail_errors, origins, factors, sums):
    """Feedback of the undecided columns to the last rows of the next one, by the end it comes from."""
    kept, _, tail = tail_errors.shape
    for t in range(tail):
        k = feed.classes[head + t]
        gain = feed.gains[k, first + column]
        for b in range(undecided, column):
            factors[b % kept, t] = gain * feed.factors[k, first + column, first + b]
    for i in range(count):
        sums[i] = 0
        end = i
        for b in range(column - 1, undecided - 1, -1):
            for t in range(tail):
                sums[i, t] += factors[b % kept, t] * tail_errors[b % kept, end, t]
            end = origins[b % kept, end]


@kernel
def _extend_column(column, head, code, count, paths, origins, steps):
    """Extend all paths by a column.

    Returns:
        The paths, and from which row on levels are shared again.
    """
    rows = column.target.size
    paths, count = _together(column, 0, head, count, code, paths, origins, steps)
    paths, stop = _apart(column, head, code, paths, origins, steps)
    if rows > stop:
        which = origins.live[origins.slots[paths.old.argmin()]]
        for r in range(stop, rows):
            column.target[r] += column.sums[which, r - head]
        paths, count = _together(column, stop, rows, 1, code, paths, origins, steps)
    rescale(paths.old)
    return paths, stop


@njit(inline="always")
def rescale(costs):
    """Take the lowest cost off all."""
    lowest = costs.min()
    for s in range(costs.size):
        costs[s] -= lowest


@kernel
def _together(column, start, stop, count, code, paths, origins, steps):
    """Extend all paths by rows that cost the same for all; of several origins it is noted who comes from where.

    Returns:
        The paths, and how many origins are left.
    """
    if start == stop:
        return paths, count
    size, words, log_lanes = stop - start, 2 * code.kinds.size, logarithm(code.odd.size)
    target, weights, starts = column.target[start:stop], column.weights[start:stop], column.starts[start:stop]
    stays = column.stays[start:stop]
    branch_costs(target, weights, starts, column.bits, False, None, steps.rooms, steps.choices)
    in_units(size, code.unit, steps.rooms, steps.costs)
    take_better(stays, steps.costs, steps.choices)
    steps.levels[:, start:stop] = steps.choices[:, :size]
    i = 0
    while i < size and count > 1:
        if i % COUNTED_EVERY == 0:
            rescale(paths.old)
            if _alike(paths.old, origins):
                break
        if not stays[i]:
            at = (start + i) * words
            _step_tracked(steps.costs[:, i], code, log_lanes, paths, origins, steps.decisions[at : at + words])
            paths = PathCosts(paths.new, paths.old, paths.spread)
        i += 1
    for begin in range(i, size, RESCALED_EVERY):
        end = min(begin + RESCALED_EVERY, size)
        paths = extend_paths(steps.costs, stays, begin, end, code, paths, steps.decisions, (start + begin) * words)
        rescale(paths.old)
    return paths, (1 if i < size else count)


@njit(inline="always")
def _bit(states, odd, code):
    """Branches from a state to its even (0) and odd (1) successor."""
    return 2 * np.int64(code.subsets[states]) + (odd ^ np.int64(code.flips[states]))


@kernel
def _step_tracked(table, code, log_lanes, paths, origins, words):
    """As `extend_paths` for one weight, with the origins of the paths."""
    costs, new, half = paths.old, paths.new, paths.old.size // 2
    words[:] = 0
    for j in range(half):
        straight, crossed = table[_bit(j, 0, code)], table[_bit(j, 1, code)]
        _join(costs, new, j, half, straight, crossed, crossed, straight, origins, log_lanes, words)
    origins.slots[:] = origins.spare


@njit(inline="always")
def _join(costs, new, j, half, a, c, d, b, origins, log_lanes, words):
    """Extend the paths to j and to j + half to their two successors, by branches from j (a, c) and the other (d, b)."""
    slots, spare = origins.slots, origins.spare
    one, other = costs[j] + a, costs[j + half] + d
    odd_one, odd_other = costs[j] + c, costs[j + half] + b
    new[2 * j], new[2 * j + 1] = min(one, other), min(odd_one, odd_other)
    spare[2 * j] = slots[j + half] if other < one else slots[j]
    spare[2 * j + 1] = slots[j + half] if odd_other < odd_one else slots[j]
    block, lane = j >> log_lanes, np.uint32(j & ((1 << log_lanes) - 1))
    words[2 * block] |= np.uint32(other < one) << lane
    words[2 * block + 1] |= np.uint32(odd_other < odd_one) << lane


@kernel
def _step_apart(first, code, log_lanes, paths, origins, words):
    """As `_step_tracked`, with costs by origin: those of the path to a state are at `first` plus its slot."""
    costs, new, half, slots = paths.old, paths.new, paths.old.size // 2, origins.slots
    words[:] = 0
    for j in range(half):
        one, other = first + slots[j], first + slots[j + half]
        straight, crossed = _bit(j, 0, code), _bit(j, 1, code)
        a, c = origins.costs[straight, one], origins.costs[crossed, one]
        d, b = origins.costs[crossed, other], origins.costs[straight, other]
        _join(costs, new, j, half, a, c, d, b, origins, log_lanes, words)
    origins.slots[:] = origins.spare


@kernel
def _apart(column, head, code, paths, origins, steps):
    """Extend all paths by the last rows of a column, as long as there are several origins with errors of their own.

    Returns:
        The paths, and where it has stopped.
    """
    rows, words, log_lanes = column.target.size, 2 * code.kinds.size, logarithm(code.odd.size)
    for begin in range(head, rows, COUNTED_EVERY):
        end = min(begin + COUNTED_EVERY, rows)
        rescale(paths.old)
        count = _living(paths.old, origins)
        if count == 1:
            return paths, begin
        _price_origins(column, begin, end, head, count, code, origins, steps)
        for r in range(begin, end):
            first = (r - begin) * count
            if column.stays[r]:
                for s in range(paths.old.size):
                    paths.old[s] += origins.costs[0, first + origins.slots[s]]
                continue
            _step_apart(first, code, log_lanes, paths, origins, steps.decisions[r * words : (r + 1) * words])
            paths = PathCosts(paths.new, paths.old, paths.spread)
    return paths, rows


@kernel
def _price_origins(column, begin, end, head, count, code, origins, steps):
    """Costs and levels of the branches of some rows by origin, relative to the cheapest one of each row."""
    i = 0
    for r in range(begin, end):
        for n in range(count):
            origins.values[i] = column.target[r] + column.sums[origins.live[n], r - head]
            origins.weights[i], origins.starts[i] = column.weights[r], column.starts[r]
            i += 1
    some = origins.values[:i], origins.weights[:i], origins.starts[:i]
    branch_costs(some[0], some[1], some[2], column.bits, False, None, steps.rooms, origins.levels)
    for r in range(begin, end):
        first = (r - begin) * count
        _in_units_of_row(first, first + count, code.unit, steps.rooms.costs, origins.costs)
        for n in range(count):
            if column.stays[r] and origins.costs[1, first + n] < origins.costs[0, first + n]:
                origins.costs[0, first + n] = origins.costs[1, first + n]
                origins.levels[0, first + n] = origins.levels[1, first + n]
            for branch in range(4):
                steps.apart[r - head, origins.live[n], branch] = origins.levels[branch, first + n]


@njit
def _in_units_of_row(start, stop, unit, found, costs):
    """As `in_units`, relative to the cheapest branch of all."""
    least = found[0, start]
    for branch in range(4):
        for i in range(start, stop):
            least = min(least, found[branch, i])
    for branch in range(4):
        for i in range(start, stop):
            costs[branch, i] = np.int32(min((found[branch, i] - least) * unit[0] + np.float32(0.5), unit[1]))


@kernel
def _alike(costs, origins):
    """Whether all living paths have one origin; if so, that is written for all."""
    slots = origins.slots
    first = slots[costs.argmin()]
    for s in range(costs.size):
        if costs[s] < ALIVE and slots[s] != first:
            return False
    slots[:] = first
    return True


@kernel
def _living(costs, origins):
    """Leave only the origins of paths that live; returns how many there are. Paths that are dead get one of them."""
    slots, live, places = origins.slots, origins.live, origins.places
    places[:] = -1
    for s in range(costs.size):
        if costs[s] < ALIVE:
            places[slots[s]] = 0
    count = 0
    for i in range(live.size):
        if places[i] == 0:
            live[count] = live[i]
            places[i] = count
            count += 1
    for s in range(costs.size):
        slots[s] = max(places[slots[s]], 0)
    return count


@kernel
def _cheapest(costs, ends):
    """The cheapest states that are reached, the best one first, as many as there is room for; returns how many."""
    keys = costs.astype(np.int64) * costs.size
    for s in range(costs.size):
        keys[s] += s
    keys.sort()
    count = 0
    while count < ends.size and keys[count] < np.int64(ALIVE) * costs.size:
        ends[count] = keys[count] % costs.size
        count += 1
    return count


@kernel
def _trace_tails(count, ends, before, column, stop, number, code, steps, tail_levels, levels):
    """Find what every end of a column has behind it in the last rows, and the best one in all before them.

    Ends that do not agree with the best one there are given up.

    Args:
        count: number of ends.
        ends: int64 [at least count], the best one first; those that are left move up.
        before: the origins of the ends, likewise.
        column: which rows stand aside.
        stop: from which row on levels are shared again.
        number: of the column, from 0.
        code: the trellis.
        steps: of the column.
        tail_levels: int32 [ends, last rows], filled.
        levels: int32 [rows], filled but for the last rows.

    Returns:
        How many ends are left.
    """
    tail, left, first, most = tail_levels.shape[1], 0, 0, len(tail_levels)
    head, places = levels.size - tail, steps.places
    for i in range(count):
        state, r = _trace_tail(
            ends[i], before[i], head, stop, number * most + i, column, code, steps, tail_levels[left]
        )
        if r >= head:  # from there on it is one that came before
            other = places[steps.visits[r - head, state] - number * most]
            agrees = other >= 0
            if agrees:
                tail_levels[left, : r + 1 - head] = tail_levels[other, : r + 1 - head]
        else:
            first = state if i == 0 else first
            agrees = state == first or head == 0
        places[i] = left if agrees else -1
        if agrees:
            ends[left], before[left] = ends[i], before[i]
            left += 1
    _trace_head(first, head, column, code, steps, levels)
    return left


@kernel
def _trace_tail(state, origin, head, stop, stamp, column, code, steps, levels):
    """Follow a path back through the last rows of a column, until one is met that came before in this column.

    Args:
        state: the last one.
        origin: of the path.
        head: the first of the last rows.
        stop: from which row on levels are shared again.
        stamp: what is written to `visits`, above those of all columns before; the first of this column where a
            multiple of the ends begins.
        column: which rows stand aside.
        code: the trellis.
        steps: of the column.
        levels: int32 [last rows], filled down to the row that is returned.

    Returns:
        A state, and the row that it is behind; a row before the last ones where no path is met.
    """
    log_lanes, words = logarithm(code.odd.size), 2 * code.kinds.size
    visits, most = steps.visits, steps.places.size
    oldest = stamp - stamp % most
    r = head + levels.size - 1
    while r >= head and visits[r - head, state] < oldest:
        visits[r - head, state] = stamp
        branch = 0
        if not column.stays[r]:
            state, branch = step_back(state, steps.decisions, r * words, log_lanes, code)
        levels[r - head] = steps.apart[r - head, origin, branch] if r < stop else steps.levels[branch, r]
        r -= 1
    return state, r


@kernel
def _trace_head(state, head, column, code, steps, levels):
    """Follow the path to a state behind the first rows of a column back; fills their levels."""
    log_lanes, words = logarithm(code.odd.size), 2 * code.kinds.size
    for r in range(head - 1, -1, -1):
        branch = 0
        if not column.stays[r]:
            state, branch = step_back(state, steps.decisions, r * words, log_lanes, code)
        levels[r] = steps.levels[branch, r]


@kernel
def _give_up_others(count, ends, origins, column, last, tail_levels, tail_errors):
    """Give up the ends of the last column that did not come through the best one's end of a column.

    Returns:
        How many are left, and that end.
    """
    kept, left, node = len(origins), 0, 0
    k = last % kept
    for i in range(count):
        end = i
        for b in range(last, column, -1):
            end = origins[b % kept, end]
        node = end if i == 0 else node
        if end == node:
            if left != i:
                ends[left], origins[k, left] = ends[i], origins[k, i]
                tail_levels[k, left], tail_errors[k, left] = tail_levels[k, i], tail_errors[k, i]
            left += 1
    return left, node
