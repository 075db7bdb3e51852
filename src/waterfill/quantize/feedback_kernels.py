"""Hot loops of error feedback; plain arrays in and out, compiled on first use and cached.

Weights are in steps, column by column, [columns, rows]. What is aimed at in column c is
`x[c] + carried[c] + gain_c sum_{b < c} factor[c, b] error_b`, with the factor and the gain of the class of the row: the
errors of a row's earlier weights are made up for.

The states in which a column can end are its *ends*: some of the cheapest. A path through the next column starts from
one of them, its *origin*, and has the errors of that one behind it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from waterfill.compiled import kernel
from waterfill.quantize.trellis_kernels import DEAD, RESCALED_EVERY, branches, extend, rescale

ALIVE = np.float32(1e29)
"""Costs of paths are below; `DEAD` has a state that no path reaches, or none that agrees with what is decided."""

COUNTED_EVERY = 8
"""After so many rows it is asked again how many origins are left."""


class Feed(NamedTuple):
    """How errors of earlier columns come in.

    Attributes:
        factors: float32 [classes, in, in], of which what is below the diagonal counts.
        gains: float32 [classes, in], of a column.
        steps: float32 [in], by which errors in steps are multiplied before.
        classes: int64 [rows], which one a row is of.
        errors: float32 [rows, in], so multiplied, filled; 0 for what is not decided.
    """

    factors: Any
    gains: Any
    steps: Any
    classes: Any
    errors: Any


class Prices(NamedTuple):
    """What levels cost: `weight * error^2 + price`.

    Attributes:
        weights: float32 [columns, rows] of the squared errors, or [1, 1] when constant.
        rows: int64 [rows]; with those of columns the exponents of `bits`.
        columns: int64 [columns].
        bits: what they cost, float32 [exponents, 2, 512], see `level_prices`; of free levels [exponents, 1, 256].
        shifts: float32 [512], how far levels lie from where they are while they are sought: 0.
    """

    weights: Any
    rows: Any
    columns: Any
    bits: Any
    shifts: Any


class Code(NamedTuple):
    """A trellis, and how much of its paths is remembered.

    Attributes:
        aside: bool [exponents], as for `best_path`.
        flips: bool [states], as for `best_path`.
        subsets: bool [states].
        lag: after how many steps survivors are taken to have one past.
        ends: how many states of a column are kept at its end.
    """

    aside: Any
    flips: Any
    subsets: Any
    lag: Any
    ends: Any


class Steps(NamedTuple):
    """What the search through a column leaves behind for tracing paths.

    Attributes:
        stays: bool [rows], which weights stand aside.
        decisions: uint8 [rows, states / 2], as for `best_path`.
        levels: int32 [rows, 4], of the branches.
        apart: int32 [last rows, ends, 4], the same by origin, for the last rows where there are several.
    """

    stays: Any
    decisions: Any
    levels: Any
    apart: Any


@njit(fastmath={"reassoc", "contract", "nsz"})
def _dot(one, other):
    total = np.float32(0)
    for i in range(one.size):
        total += one[i] * other[i]
    return total


@kernel
def _aim(x, carried, feed, column, base, target):
    """What the rows of a column aim at, with the errors of the columns from `base` on."""
    for r in range(x.size):
        k = feed.classes[r]
        before = _dot(feed.factors[k, column, base:column], feed.errors[r, base:column])
        target[r] = x[r] + carried[r] + feed.gains[k, column] * before


@kernel
def scalar_span(x, carried, feed, first, base, prices, levels):
    """Round column by column to the lowest cost; arguments as `best_span` has them."""
    columns, rows = x.shape
    target = np.empty(rows, np.float32)
    top = len(prices.bits) - 1
    for c in range(columns):
        _aim(x[c], carried[c], feed, first + c, base, target)
        for r in range(rows):
            bits = prices.bits[min(max(prices.rows[r] + prices.columns[c], 0), top), 0]
            weight = prices.weights[c, r] if prices.weights.size > 1 else prices.weights[0, 0]
            magnitude = abs(target[r])
            best, best_cost = 0, weight * magnitude * magnitude + bits[0]
            nearest = np.int64(magnitude + np.float32(0.5))
            for candidate in range(max(1, nearest - 1), nearest + 2):
                error = magnitude - np.float32(candidate)
                cost = weight * error * error + bits[min(candidate, 255)]
                if cost < best_cost:
                    best, best_cost = candidate, cost
            levels[c, r] = best if target[r] > 0 else -best
            feed.errors[r, first + c] = (x[c, r] - np.float32(levels[c, r])) * feed.steps[first + c]


@kernel
def best_span(x, carried, feed, first, base, prices, code, levels):
    """A path of low cost down the columns, from state 0 to any state; returns its cost.

    The cheapest ends of a column go on, each with its own errors. What lies `lag` steps behind, and not in the same
    column, is the same for all of them: paths that disagree with the best one there are given up. With a lag of all
    weights, and as many ends as states, none is. With one end the errors of a column are decided at its end.

    Args:
        x: float32 [columns, rows], in steps.
        carried: float32 [columns, rows], feedback of the columns before `base`.
        feed: of those from there on.
        first: the first column of the span in the matrix.
        base: a column up to the first.
        prices: of the levels.
        code: the trellis.
        levels: int32 [columns, rows], filled.
    """
    columns, rows = x.shape
    states = code.flips.size
    most = min(code.ends, states)
    tail = min(rows, code.lag) if most > 1 else 0  # the last rows of a column are undecided when it ends
    head = rows - tail
    kept = code.lag // rows + 2 if tail > 0 else 1  # so many columns have an undecided tail
    tail_levels = np.empty((kept, most, tail), np.int32)  # by end
    tail_errors = np.empty((kept, most, tail), np.float32)
    origins = np.zeros((kept, most), np.int64)  # of every end
    sums, factors = np.zeros((most, tail), np.float32), np.empty((kept, tail), np.float32)
    costs, new = np.full(states, DEAD), np.empty(states, np.float32)
    costs[0] = 0
    slots, ends = np.zeros(states, np.int32), np.zeros(most, np.int64)
    target = np.empty(rows, np.float32)
    steps = Steps(
        np.zeros(rows, np.bool_),
        np.zeros((rows, states // 2), np.uint8),
        np.empty((rows, 4), np.int32),
        np.empty((tail, most, 4), np.int32),
    )
    total, undecided, count = 0.0, 0, 1
    for c in range(columns):
        _aim(x[c], carried[c], feed, first + c, base, target)
        if c > undecided:
            _tail_feedback(feed, first, head, c, undecided, count, tail_errors, origins, factors, sums)
        exponents = prices.rows + prices.columns[c]
        steps.stays[:] = code.aside[exponents]
        of_column = prices.weights[c if prices.weights.size > 1 else 0]
        costs, new, lowest, stop = _column(
            target, sums, head, of_column, exponents, prices, code, count, costs, new, slots, steps
        )
        total += lowest
        k = c % kept
        count = _cheapest(costs, ends)
        for i in range(count):
            origins[k, i] = slots[ends[i]]
        count = _trace_tails(count, ends, origins[k], code, stop, steps, tail_levels[k], levels[c])
        _leave(x[c], count, levels[c], tail_levels[k], feed, first + c, tail_errors[k])
        while undecided <= c and (c == columns - 1 or c - undecided + 1 >= kept):
            if tail > 0:
                count, node = _give_up_others(count, ends, origins, undecided, c, tail_levels, tail_errors)
                levels[undecided, head:] = tail_levels[undecided % kept, node]
                feed.errors[head:, first + undecided] = tail_errors[undecided % kept, node]
            undecided += 1
        _start_from(count, ends, costs, new, slots)
    return total + costs.min()


@kernel
def _leave(x, count, levels, tail_levels, feed, column, tail_errors):
    """Fill the errors of a column: of the rows that are decided, and of the last ones by end."""
    tail, step = tail_levels.shape[1], feed.steps[column]
    head = x.size - tail
    for r in range(head):
        feed.errors[r, column] = (x[r] - np.float32(levels[r])) * step
    for i in range(count):
        for t in range(tail):
            tail_errors[i, t] = (x[head + t] - np.float32(tail_levels[i, t])) * step


@kernel
def _start_from(count, ends, costs, spare, slots):
    """Leave only the paths to some ends, and number these."""
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
def _column(target, sums, head, weights, exponents, prices, code, count, costs, new, slots, steps):
    """Extend all paths by a column.

    Returns:
        Their costs, an array to reuse, what was taken off the costs, and from which row on levels are shared again.
    """
    rows = target.size
    shared, new_slots = np.empty((rows, 4), np.float32), np.empty(slots.size, np.int32)
    _price(target, weights, exponents, prices, steps, 0, head, shared)
    costs, new, count, total = _together(0, head, count, shared, costs, new, slots, new_slots, code, steps)
    stop = head
    if rows > head:
        costs, new, stop, lowest = _apart(
            target, sums, head, weights, exponents, prices, code, costs, new, slots, new_slots, steps
        )
        total += lowest
    if rows > stop:
        which = slots[costs.argmin()]
        for r in range(stop, rows):
            target[r] += sums[which, r - head]
        _price(target, weights, exponents, prices, steps, stop, rows, shared)
        costs, new, count, lowest = _together(stop, rows, 1, shared, costs, new, slots, new_slots, code, steps)
        total += lowest
    return costs, new, total, stop


@kernel
def _price(target, weights, exponents, prices, steps, start, stop, costs):
    """Costs and levels of the branches of the rows start..stop; of the only one, first, of those that stand aside."""
    for r in range(start, stop):
        weight = weights[r if weights.size > 1 else 0]
        at = np.uint64(exponents[r])
        branches(target[r], weight, prices.bits[at], prices.shifts, costs[r], steps.levels[r])
    for r in range(start, stop):
        if steps.stays[r]:
            _take_better(costs[r], steps.levels[r])


@njit
def _take_better(costs, levels):
    """Of the two branches of subset 0, put the better one first."""
    better = np.int64(costs[1] < costs[0])
    costs[0], levels[0] = costs[better], levels[better]


@kernel
def _together(start, stop, count, shared, costs, new, slots, new_slots, code, steps):
    """Extend all paths by rows that cost the same for all; of several origins it is noted who comes from where.

    Returns:
        Their costs, an array to reuse, how many origins are left, and what was taken off the costs.
    """
    states = slots.size
    half = states // 2
    odd, flip = code.subsets[:half], code.flips[:half]
    total = 0.0
    for r in range(start, stop):
        total += rescale(costs) if r % RESCALED_EVERY == 0 else 0.0
        if count > 1 and r % COUNTED_EVERY == 0 and _alike(costs, slots):
            count = 1
        if steps.stays[r]:
            for s in range(states):
                costs[s] += shared[r, 0]
            continue
        if count > 1:
            _step_tracked(costs, slots, shared[r], odd, flip, new, new_slots, steps.decisions[r])
            slots[:] = new_slots
        else:
            extend(costs[:half], costs[half:], odd, flip, shared[r], new, steps.decisions[r])
        costs, new = new, costs
    return costs, new, count, total


@kernel
def _apart(target, sums, head, weights, exponents, prices, code, costs, new, slots, new_slots, steps):
    """Extend all paths by the last rows of a column, as long as there are several origins with errors of their own.

    Returns:
        Their costs, an array to reuse, where it has stopped, and what was taken off the costs.
    """
    states, rows = slots.size, target.size
    half = states // 2
    straight, crossed = np.empty(half, np.int32), np.empty(half, np.int32)
    for j in range(half):
        straight[j] = 2 * code.subsets[j] + code.flips[j]
        crossed[j] = 2 * code.subsets[j] + 1 - code.flips[j]
    tables, live = np.zeros((len(sums), 4), np.float32), np.zeros(len(sums), np.int64)
    total = 0.0
    for r in range(head, rows):
        total += rescale(costs) if r % RESCALED_EVERY == 0 else 0.0
        if r == head or r % COUNTED_EVERY == 0:
            count = _living(costs, slots, live)
            if count == 1:
                slots[:] = live[0]
                return costs, new, r, total
        weight, bits = weights[r if weights.size > 1 else 0], prices.bits[np.uint64(exponents[r])]
        for n in range(count):
            i = live[n]
            value, levels = target[r] + sums[i, r - head], steps.apart[r - head, i]
            branches(value, weight, bits, prices.shifts, tables[i], levels)
            if steps.stays[r]:
                _take_better(tables[i], levels)
        if steps.stays[r]:
            for s in range(states):
                costs[s] += tables[slots[s], 0]
            continue
        _step_apart(costs, slots, tables.reshape(-1), straight, crossed, new, new_slots, steps.decisions[r])
        slots[:] = new_slots
        costs, new = new, costs
    return costs, new, rows, total


@kernel
def _alike(costs, slots):
    """Whether all living paths have one origin; if so, that is written for all."""
    first = slots[costs.argmin()]
    for s in range(costs.size):
        if costs[s] < ALIVE and slots[s] != first:
            return False
    slots[:] = first
    return True


@kernel
def _living(costs, slots, live):
    """List the origins of all paths that live; returns how many there are. Paths that are dead get one of them."""
    seen = np.zeros(live.size, np.bool_)
    for s in range(costs.size):
        if costs[s] < ALIVE:
            seen[slots[s]] = True
    count = 0
    for i in range(live.size):
        if seen[i]:
            live[count] = i
            count += 1
    for s in range(costs.size):
        if not seen[slots[s]]:
            slots[s] = live[0]
    return count


@kernel
def _step_tracked(costs, slots, table, odd, flip, new, new_slots, decisions):
    """As `extend`, with the origins of the paths."""
    half = odd.size
    for j in range(half):
        zero_bit = table[2] if odd[j] else table[0]
        one_bit = table[3] if odd[j] else table[1]
        straight = one_bit if flip[j] else zero_bit
        crossed = zero_bit if flip[j] else one_bit
        a, b = costs[j] + straight, costs[j + half] + crossed
        c, d = costs[j] + crossed, costs[j + half] + straight
        new[2 * j], new[2 * j + 1] = min(a, b), min(c, d)
        new_slots[2 * j] = slots[j + half] if b < a else slots[j]
        new_slots[2 * j + 1] = slots[j + half] if d < c else slots[j]
        decisions[j] = np.uint8(b < a) | (np.uint8(d < c) << 1)


@kernel
def _step_apart(costs, slots, tables, straight, crossed, new, new_slots, decisions):
    """As `extend`, with one table of costs for every origin of a path: four from `tables[4 * slot]` on."""
    half = straight.size
    for j in range(half):
        first, second = 4 * slots[j], 4 * slots[j + half]
        a, b = costs[j] + tables[first + straight[j]], costs[j + half] + tables[second + crossed[j]]
        c, d = costs[j] + tables[first + crossed[j]], costs[j + half] + tables[second + straight[j]]
        new[2 * j], new[2 * j + 1] = min(a, b), min(c, d)
        new_slots[2 * j] = slots[j + half] if b < a else slots[j]
        new_slots[2 * j + 1] = slots[j + half] if d < c else slots[j]
        decisions[j] = np.uint8(b < a) | (np.uint8(d < c) << 1)


@kernel
def _cheapest(costs, ends):
    """The cheapest states that are reached, the best one first, as many as there is room for; returns how many."""
    left = costs.copy()
    for i in range(ends.size):
        best = left.argmin()
        if left[best] >= ALIVE:
            return i
        ends[i], left[best] = best, DEAD
    return ends.size


@kernel
def _trace_tails(count, ends, origins, code, stop, steps, tail_levels, levels):
    """Find what every end of a column has behind it in the last rows, and the best one in all before them.

    Ends that do not agree with the best one there are given up.

    Args:
        count: number of ends.
        ends: int64 [at least count], the best one first; those that are left move up.
        origins: of the ends, likewise.
        code: the trellis.
        stop: from which row on levels are shared again.
        steps: of the column.
        tail_levels: int32 [ends, last rows], filled.
        levels: int32 [rows], filled but for the last rows.

    Returns:
        How many ends are left.
    """
    tail, left, first = tail_levels.shape[1], 0, 0
    head = levels.size - tail
    for i in range(count):
        before = _trace(ends[i], origins[i], levels.size, head, head, code, stop, steps, tail_levels[left])
        first = before if i == 0 else first
        if before == first or head == 0:
            ends[left], origins[left] = ends[i], origins[i]
            left += 1
    if head > 0:
        _trace(first, origins[0], head, 0, head, code, stop, steps, levels)
    return left


@kernel
def _trace(state, origin, last, start, head, code, stop, steps, levels):
    """Follow a path back through the rows start..last of a column; fills its levels, from the first row.

    Returns:
        Its state before them.
    """
    half = code.flips.size // 2
    for r in range(last - 1, start - 1, -1):
        found = steps.apart[r - head, origin] if head <= r < stop else steps.levels[r]
        branch = 0
        if not steps.stays[r]:
            j, bit = state >> 1, state & 1
            state = j + half * np.int64((steps.decisions[r, j] >> bit) & 1)
            branch = 2 * np.int64(code.subsets[state]) + (bit ^ np.int64(code.flips[state]))
        levels[r - start] = found[branch]
    return state


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
            ends[left], origins[k, left] = ends[i], origins[k, i]
            tail_levels[k, left], tail_errors[k, left] = tail_levels[k, i], tail_errors[k, i]
            left += 1
    return left, node
