"""Hot loops of error feedback; plain arrays in and out, compiled on first use and cached.

Weights are in steps, column by column, [columns, rows]. What is aimed at in column c is
`x[c] + sum_{b < c} coupling[c, b, class of the row] (x[b] - level[b])`: the errors of a row's earlier weights are made
up for.

The states in which a column can end are its *ends*. A path through the next column starts from one of them, its
*origin*, and has the errors of that one behind it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from waterfill.compiled import kernel
from waterfill.quantize.trellis_kernels import DEAD, RESCALED_EVERY, branches, extend, level_of, rescale

ALIVE = np.float32(1e29)
"""Costs of paths are below; `DEAD` has a state that no path reaches, or none that agrees with what is decided."""

UNMOVED = np.zeros(4)
"""Levels lie where they are while they are sought."""


class Steps(NamedTuple):
    """What the search through a column leaves behind for tracing paths.

    Attributes:
        stays: bool [rows], which weights stand aside.
        decisions: uint8 [rows, states / 2], as for `best_path`.
        starts: int64 [rows], where the indices of a row are.
        apart: bool [rows], whether a row has some for every living origin.
        places: int16 [last rows, states], of those of an origin.
        indices: int32 [all but the last rows + last rows * states, 4].
    """

    stays: Any
    decisions: Any
    starts: Any
    apart: Any
    places: Any
    indices: Any


@kernel
def _no_steps(head, tail, states):
    """Room for them, for so many rows before the last ones, and of these; much of it is never touched."""
    rows = head + tail
    return Steps(
        np.zeros(rows, np.bool_),
        np.zeros((rows, states // 2), np.uint8),
        np.zeros(rows, np.int64),
        np.zeros(rows, np.bool_),
        np.empty((tail, states), np.int16),
        np.empty((head + tail * states, 4), np.int32),
    )


@kernel
def _add(target, errors, factors, classes, rows):
    """Add the feedback of one column to the target of another, for the rows [0, rows)."""
    if factors.size == 1:
        factor = factors[0]
        for r in range(rows):
            target[r] += factor * errors[r]
    else:
        for r in range(rows):
            target[r] += factors[classes[r]] * errors[r]


@kernel
def scalar_span(
    x, carried, coupling, classes, weights, row_exponents, column_exponents, lengths, lmbda, levels, errors
):
    """Round column by column to the lowest cost `weight * error^2 + lmbda * bits`; arguments as `best_span` has them.

    `lengths` has the bits of the magnitudes 0..255 of all whole numbers.
    """
    columns, rows = x.shape
    target = np.empty(rows, np.float32)
    for c in range(columns):
        target[:] = x[c] + carried[c]
        for b in range(c):
            _add(target, errors[b], coupling[c, b], classes, rows)
        for r in range(rows):
            bits = lengths[min(max(row_exponents[r] + column_exponents[c], 0), len(lengths) - 1)]
            weight = weights[c, r] if weights.size > 1 else weights[0, 0]
            magnitude = abs(target[r])
            best, best_cost = 0, weight * magnitude * magnitude + lmbda * bits[0]
            nearest = np.int64(magnitude + np.float32(0.5))
            for candidate in range(max(1, nearest - 1), nearest + 2):
                error = magnitude - candidate
                cost = weight * error * error + lmbda * bits[min(candidate, 255)]
                if cost < best_cost:
                    best, best_cost = candidate, cost
            levels[c, r] = best if target[r] > 0 else -best
            errors[c, r] = x[c, r] - levels[c, r]


@kernel
def best_span(
    x,
    carried,
    coupling,
    classes,
    weights,
    row_exponents,
    column_exponents,
    lengths,
    lmbda,
    aside,
    flips,
    subsets,
    lag,
    levels,
    errors,
):
    """A path of low cost down the columns, from state 0 to any state; returns its cost.

    Every survivor feeds its own errors back. What lies `lag` steps behind, and not in the same column, is the same for
    all of them: paths that disagree with the best one there are given up. With a lag of all weights none is.

    Args:
        x: float32 [columns, rows], in steps.
        carried: float32 [columns, rows], feedback of earlier spans.
        coupling: float32 [columns, columns, classes]: `[c, b]` is what an error in column b adds to the target of a
            later column c.
        classes: int64 [rows], which one a row is of.
        weights: float32 [columns, rows] of the squared errors, or [1, 1] when constant.
        row_exponents: int64 [rows]; with those of columns the rows of `lengths`.
        column_exponents: int64 [columns].
        lengths: float32 [exponents, 256], as for `branch_costs`.
        lmbda: cost of a bit.
        aside: bool [exponents], as for `best_path`.
        flips: bool [states], as for `best_path`.
        subsets: bool [states].
        lag: after how many steps survivors are taken to have one past.
        levels: int32 [columns, rows], filled.
        errors: float32 [columns, rows], filled with `x - level`.
    """
    columns, rows = x.shape
    states = flips.size
    tail = min(rows, lag)  # the last rows of a column are undecided when it ends
    head = rows - tail
    kept = lag // rows + 2  # so many columns have an undecided tail
    tail_levels = np.empty((kept, states, tail), np.int32)  # by end
    tail_errors = np.empty((kept, states, tail), np.float32)
    origins = np.zeros((kept, states), np.int64)  # of every end
    sums, spare = np.zeros((states, tail), np.float32), np.zeros((states, tail), np.float32)
    costs, new = np.full(states, DEAD), np.empty(states, np.float32)
    costs[0] = 0
    target = np.empty(rows, np.float32)
    steps = _no_steps(head, tail, states)
    total, undecided = 0.0, 0
    for c in range(columns):
        target[:] = x[c] + carried[c]
        for b in range(c):
            _add(target, errors[b], coupling[c, b], classes, rows if b < undecided else head)
        if c > undecided:
            sums, spare = _tail_feedback(
                coupling[c], classes[head:], costs, tail_errors, origins, undecided, c, sums, spare
            )
        exponents = row_exponents + column_exponents[c]
        steps.stays[:] = aside[exponents]
        of_column = weights[c if weights.size > 1 else 0]
        k = c % kept
        costs, new, lowest = _column(
            target, sums, head, of_column, exponents, lengths, lmbda, flips, subsets, costs, new, origins[k], steps
        )
        total += lowest
        best = costs.argmin()
        _trace_tails(
            x[c], costs, origins[k], best, flips, subsets, steps, tail_levels[k], tail_errors[k], levels[c], errors[c]
        )
        while undecided <= c and (c == columns - 1 or c - undecided + 1 >= kept):
            node = _give_up_others(costs, origins, undecided, c, best)
            levels[undecided, head:] = tail_levels[undecided % kept, node]
            errors[undecided, head:] = tail_errors[undecided % kept, node]
            undecided += 1
    return total + costs.min()


@kernel
def _tail_feedback(coupling, classes, costs, tail_errors, origins, undecided, column, sums, spare):
    """Feedback of the undecided columns to the last rows of the next one, by the end it comes from, in the first array.

    Ends with one past share it: sums go from the oldest column to the newest, end by end.
    """
    kept, states, tail = tail_errors.shape
    used = _pasts(costs, origins, undecided, column)
    factors = np.empty(tail, np.float32)
    for b in range(undecided, column):
        sums, spare = spare, sums
        k = b % kept
        for i in range(tail):
            factors[i] = coupling[b, classes[i]]
        for s in range(states):
            if used[k, s] and b == undecided:
                for i in range(tail):
                    sums[s, i] = factors[i] * tail_errors[k, s, i]
            elif used[k, s]:
                origin = origins[k, s]
                for i in range(tail):
                    sums[s, i] = spare[origin, i] + factors[i] * tail_errors[k, s, i]
    return sums, spare


@kernel
def _pasts(costs, origins, undecided, column):
    """Through which ends of the undecided columns the living paths came, bool [kept, states]."""
    kept, states = origins.shape
    used = np.zeros((kept, states), np.bool_)
    used[(column - 1) % kept] = costs < ALIVE
    for b in range(column - 1, undecided, -1):
        for s in range(states):
            if used[b % kept, s]:
                used[(b - 1) % kept, origins[b % kept, s]] = True
    return used


@kernel
def _column(target, sums, head, weights, exponents, lengths, lmbda, flips, subsets, costs, new, origins, steps):
    """Extend all paths by a column; returns their costs, an array to reuse, and what was taken off the costs."""
    states = flips.size
    half = states // 2
    odd, flip = subsets[:half], flips[:half]
    tables = np.empty((states, 4), np.float32)
    slots, none, living = np.zeros(states, np.int64), np.zeros(states, np.int64), np.zeros(states, np.int64)
    new_origins = np.empty(states, np.int64)
    for s in range(states):
        origins[s] = s
    total, free, count = 0.0, 0, 2
    for r in range(target.size):
        total += rescale(costs) if r % RESCALED_EVERY == 0 else 0.0
        if count > 1:
            count = _living(costs, origins, slots, living)
        apart = count > 1 and r >= head
        steps.starts[r], steps.apart[r] = free, apart
        weight = np.float64(weights[r] if weights.size > 1 else weights[0])
        for i in range(count if apart else 1):
            value = target[r] + (sums[living[i], r - head] if r >= head else np.float32(0))
            _extend(
                np.float64(value), weight, lengths[exponents[r]], lmbda, steps.stays[r], tables[i], steps.indices[free]
            )
            if apart:
                steps.places[r - head, living[i]] = i
            free += 1
        which = slots if apart else none
        if steps.stays[r]:
            for s in range(states):
                costs[s] += tables[which[origins[s]], 0]
            continue
        if count > 1:
            _step_apart(costs, origins, which, tables, odd, flip, new, new_origins, steps.decisions[r])
            origins[:] = new_origins
        else:
            extend(costs[:half], costs[half:], odd, flip, tables[0], new, steps.decisions[r])
        costs, new = new, costs
    if count == 1:
        origins[:] = living[0]
    return costs, new, total


@njit(inline="always")
def _extend(value, weight, bits, lmbda, stays, costs, indices):
    """Costs and indices of the branches of one weight; of the only one, first, for a weight that stands aside."""
    branches(value, weight, bits, UNMOVED, lmbda, False, costs, indices)
    if stays:
        better = np.int64(costs[1] < costs[0])
        costs[0], indices[0] = costs[better], indices[better]


@kernel
def _living(costs, origins, slots, living):
    """Number the origins of all paths that live: `slots` by origin, and its inverse; returns how many there are."""
    slots[:] = -1
    count = 0
    for s in range(costs.size):
        origin = origins[s]
        if costs[s] < ALIVE and slots[origin] < 0:
            slots[origin] = count
            living[count] = origin
            count += 1
    for s in range(costs.size):
        if slots[s] < 0:
            slots[s] = 0  # of paths that are dead
    return count


@kernel
def _step_apart(costs, origins, slots, tables, odd, flip, new, new_origins, decisions):
    """As `extend`, with one table of costs for every origin of a path: `tables[slots[origin]]`."""
    half = odd.size
    for j in range(half):
        first, second = tables[slots[origins[j]]], tables[slots[origins[j + half]]]
        subset = 2 * np.int64(odd[j])
        flipped = np.int64(flip[j])
        straight, crossed = subset + flipped, subset + 1 - flipped
        a, b = costs[j] + first[straight], costs[j + half] + second[crossed]
        c, d = costs[j] + first[crossed], costs[j + half] + second[straight]
        one, other = np.int64(b < a), np.int64(d < c)
        new[2 * j], new[2 * j + 1] = (b if one else a), (d if other else c)
        new_origins[2 * j] = origins[j + half] if one else origins[j]
        new_origins[2 * j + 1] = origins[j + half] if other else origins[j]
        decisions[j] = np.uint8(one | (other << 1))


@kernel
def _trace_tails(x, costs, origins, best, flips, subsets, steps, tail_levels, tail_errors, levels, errors):
    """Find what every living end of a column has behind it in the last rows, and the best one in all before them.

    Ends that do not agree with the best one there are given up.
    """
    tail = tail_levels.shape[1]
    head = x.size - tail
    before = np.zeros(costs.size, np.int64)
    for s in range(costs.size):
        if costs[s] < ALIVE:
            before[s] = _trace(s, origins[s], x.size, head, x, flips, subsets, steps, tail_levels[s], tail_errors[s])
    if head > 0:
        for s in range(costs.size):
            if before[s] != before[best]:
                costs[s] = DEAD
        _trace(before[best], origins[best], head, 0, x, flips, subsets, steps, levels, errors)


@kernel
def _trace(state, origin, stop, start, x, flips, subsets, steps, levels, errors):
    """Follow a path back through the rows [start, stop) of a column; fills its levels and errors, from the first row.

    Returns:
        Its state before them.
    """
    half = flips.size // 2
    for r in range(stop - 1, start - 1, -1):
        index = steps.indices[steps.starts[r] + (steps.places[r - start, origin] if steps.apart[r] else 0)]
        if steps.stays[r]:
            level = 2 * np.int64(index[0])
        else:
            j, bit = state >> 1, state & 1
            state = j + half * np.int64((steps.decisions[r, j] >> bit) & 1)
            subset = np.int64(subsets[state])
            level = level_of(np.int64(index[2 * subset + (bit ^ np.int64(flips[state]))]), subset, False)
        levels[r - start] = level
        errors[r - start] = x[r] - level
    return state


@kernel
def _give_up_others(costs, origins, column, last, best):
    """Give up the paths that did not come through the best one's end of a column, which is returned."""
    ends = np.arange(costs.size)
    for b in range(last, column, -1):
        for s in range(costs.size):
            ends[s] = origins[b % len(origins), ends[s]]
    for s in range(costs.size):
        if ends[s] != ends[best]:
            costs[s] = DEAD
    return ends[best]
