"""Hot loops of error feedback; plain arrays in and out, compiled on first use and cached.

Weights are in steps, column by column, [columns, rows]. What is aimed at in column c is
`x[c] + sum_{b < c} coupling[c, b, class of the row] (x[b] - level[b])`: the errors of a row's earlier weights are made
up for.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from waterfill.quantize.trellis_kernels import _level, _step, branches

RESCALED_EVERY = 64
"""Costs of paths are taken relative to the lowest one every so many steps."""

DEAD = np.float32(1e30)
"""Cost of a state that no path reaches, or none that agrees with what is decided."""


@njit(cache=True, nogil=True, inline="never")
def _add(target, errors, factors, classes, rows):
    """Add the feedback of one column to the target of another, for the rows [0, rows)."""
    if factors.size == 1:
        factor = factors[0]
        for r in range(rows):
            target[r] += factor * errors[r]
    else:
        for r in range(rows):
            target[r] += factors[classes[r]] * errors[r]


@njit(cache=True, nogil=True)
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
            level = best if target[r] > 0 else -best
            levels[c, r] = level
            errors[c, r] = x[c, r] - level


@njit(cache=True, nogil=True, inline="never")
def _step_apart(costs, origins, slots, tables, odd, flip, new, new_origins, decisions):
    """As `_step`, with one table of costs for every origin of a path: `tables[slots[origin]]`."""
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


@njit(cache=True, nogil=True)
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
    flips,
    subsets,
    lag,
    levels,
    errors,
):
    """A path of low cost down the columns, from state 0 to any state; returns its cost.

    Every survivor feeds its own errors back. What lies `lag` steps behind, and not in the same column, is the same for
    all of them: paths that disagree with the best one there are given up.

    Args:
        x: float32 [columns, rows], in steps.
        carried: float32 [columns, rows], feedback of earlier columns.
        coupling: float32 [columns, columns, classes]: `[c, b]` is what an error in column b adds to the target of a
            later column c.
        classes: int64 [rows], which one a row is of.
        weights: float32 [columns, rows] of the squared errors, or [1, 1] when constant.
        row_exponents: int64 [rows]; with those of columns the rows of `lengths`.
        column_exponents: int64 [columns].
        lengths: float32 [exponents, 256], as for `branch_costs`.
        lmbda: cost of a bit.
        flips: bool [states], as for `best_path`.
        subsets: bool [states].
        lag: after how many steps survivors are taken to have one past.
        levels: int32 [columns, rows], filled.
        errors: float32 [columns, rows], filled with `x - level`.
    """
    columns, rows = x.shape
    states = flips.size
    half = states // 2
    odd, flip = subsets[:half], flips[:half]
    tail = min(rows, lag)
    head = rows - tail
    kept = lag // rows + 2
    costs, new = np.full(states, DEAD), np.empty(states, np.float32)
    costs[0] = 0
    total = 0.0
    # of undecided columns: what each final state of theirs has behind it in the last rows, and which one before it
    own_levels = np.empty((kept, states, tail), np.int32)
    own_errors = np.empty((kept, states, tail), np.float32)
    parents = np.zeros((kept, states), np.int64)
    undecided = 0  # the first such column
    used = np.zeros((kept, states), np.bool_)
    sums, older = np.zeros((states, tail), np.float32), np.zeros((states, tail), np.float32)
    factors = np.empty(tail, np.float32)
    target = np.empty(rows, np.float32)
    unmoved = np.zeros(4)
    origins, new_origins = np.zeros(states, np.int64), np.zeros(states, np.int64)
    slots, no_slots = np.zeros(states, np.int64), np.zeros(states, np.int64)
    seen, living = np.zeros(states, np.int64), np.zeros(states, np.int64)
    stamp = 0
    tables = np.empty((states, 4), np.float32)
    decisions = np.zeros((rows, half), np.uint8)
    starts, apart = np.zeros(rows, np.int64), np.zeros(rows, np.bool_)
    places = np.empty((rows, states), np.int16)  # only touched where survivors have many origins
    indices = np.empty((rows * states, 4), np.int32)
    pasts = np.zeros(states, np.int64)
    for c in range(columns):
        target[:] = x[c] + carried[c]
        for b in range(c):
            _add(target, errors[b], coupling[c, b], classes, rows if b < undecided else head)
        # feedback of the undecided columns, one sum for every final state of the last one
        if c > undecided:
            used[(c - 1) % kept] = costs < DEAD / 2
            for b in range(c - 1, undecided, -1):
                used[(b - 1) % kept] = False
                for s in range(states):
                    if used[b % kept, s]:
                        used[(b - 1) % kept, parents[b % kept, s]] = True
            for b in range(undecided, c):
                sums, older = older, sums
                k = b % kept
                for i in range(tail):
                    factors[i] = coupling[c, b, classes[head + i]]
                for s in range(states):
                    if used[k, s]:
                        if b == undecided:
                            for i in range(tail):
                                sums[s, i] = factors[i] * own_errors[k, s, i]
                        else:
                            parent = parents[k, s]
                            for i in range(tail):
                                sums[s, i] = older[parent, i] + factors[i] * own_errors[k, s, i]
        # the column, with the final state of the last column as the origin of every path
        many = True
        only = 0
        for s in range(states):
            origins[s] = s
        free = 0
        for r in range(rows):
            bits = lengths[row_exponents[r] + column_exponents[c]]
            weight = np.float64(weights[c, r] if weights.size > 1 else weights[0, 0])
            count = 1
            if many:
                stamp += 1
                count = 0
                for s in range(states):
                    o = origins[s]
                    if costs[s] < DEAD / 2 and seen[o] != stamp:
                        seen[o] = stamp
                        slots[o] = count
                        living[count] = o
                        count += 1
                many = count > 1
                only = living[0]
            starts[r] = free
            apart[r] = many and r >= head
            if apart[r]:
                for i in range(count):
                    o = living[i]
                    places[r, o] = i
                    value = np.float64(target[r] + sums[o, r - head])
                    branches(value, weight, bits, unmoved, lmbda, False, tables[i], indices[free + i])
                free += count
            else:
                value = np.float64(target[r])
                if r >= head and c > undecided:
                    value += sums[only, r - head]
                branches(value, weight, bits, unmoved, lmbda, False, tables[0], indices[free])
                free += 1
            if many:
                which = slots if apart[r] else no_slots
                _step_apart(costs, origins, which, tables, odd, flip, new, new_origins, decisions[r])
                origins, new_origins = new_origins, origins
            else:
                _step(costs[:half], costs[half:], odd, flip, tables[0], new, decisions[r])
            if r % RESCALED_EVERY == 0:
                lowest = new.min()
                total += lowest
                for s in range(states):
                    new[s] -= lowest
            costs, new = new, costs
        # what each survivor has behind it
        k = c % kept
        best = costs.argmin()
        for s in range(states):
            if costs[s] >= DEAD / 2:
                continue
            o = origins[s] if many else only
            parents[k, s] = o
            state = s
            for r in range(rows - 1, head - 1, -1):
                j, bit = state >> 1, state & 1
                state = j + half * np.int64((decisions[r, j] >> bit) & 1)
                subset = np.int64(subsets[state])
                at = starts[r] + (places[r, o] if apart[r] else 0)
                level = _level(np.int64(indices[at, 2 * subset + (bit ^ np.int64(flips[state]))]), subset, False)
                own_levels[k, s, r - head] = level
                own_errors[k, s, r - head] = x[c, r] - level
            pasts[s] = state
        if head > 0:
            for s in range(states):
                if pasts[s] != pasts[best]:
                    costs[s] = DEAD
            state = pasts[best]
            for r in range(head - 1, -1, -1):
                j, bit = state >> 1, state & 1
                state = j + half * np.int64((decisions[r, j] >> bit) & 1)
                subset = np.int64(subsets[state])
                index = indices[starts[r], 2 * subset + (bit ^ np.int64(flips[state]))]
                level = _level(np.int64(index), subset, False)
                levels[c, r] = level
                errors[c, r] = x[c, r] - level
        last = c == columns - 1
        while undecided <= c and (last or c - undecided + 1 >= kept):
            for s in range(states):
                pasts[s] = s
                if costs[s] < DEAD / 2:
                    for b in range(c, undecided, -1):
                        pasts[s] = parents[b % kept, pasts[s]]
            node = pasts[best]
            for s in range(states):
                if costs[s] < DEAD / 2 and pasts[s] != node:
                    costs[s] = DEAD
            for i in range(tail):
                levels[undecided, head + i] = own_levels[undecided % kept, node, i]
                errors[undecided, head + i] = own_errors[undecided % kept, node, i]
            undecided += 1
    return total + costs.min()
