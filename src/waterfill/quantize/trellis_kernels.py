"""Hot loops of the search for a path; plain arrays in and out, compiled on first use and cached.

Weights are in steps. Branch `2 q + b` leads to the levels of subset q whose index has the lowest bit b, four apart.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from waterfill.compiled import kernel

RESCALED_EVERY = 64
"""Costs of paths are taken relative to the lowest one every so many steps."""


FARTHEST = 255
"""Levels beyond cost the bits of this one."""

DEAD = np.float32(1e30)
"""Cost of a state that no path reaches."""


@njit(inline="always")
def rescale(costs):
    """Take the lowest cost off all, and return it."""
    lowest = costs.min()
    for s in range(costs.size):
        costs[s] -= lowest
    return np.float64(lowest)


@kernel
def level_prices(lengths, lmbda, zero, shrink):
    """What bits of every level cost, and how far it lies towards higher values.

    Args:
        lengths: float32 [exponents, 256], bits of magnitude m in subset q at `128 q + m`.
        lmbda: cost of a bit.
        zero: whether zero is in subset 1 too.
        shrink: float64 [4], how far the levels of magnitude 0, 1, 2, >= 3 lie towards zero.

    Returns:
        float32 [exponents, 2, 512] and [512], of the levels -255..255 and a last one that stands for nothing.
    """
    prices, shifts = np.zeros((len(lengths), 2, 512), np.float32), np.zeros(512, np.float32)
    for e in range(len(lengths)):
        for magnitude in range(FARTHEST + 1):
            first = np.float32(lmbda * lengths[e, magnitude >> 1])
            second = np.float32(lmbda * lengths[e, 128 + min((magnitude + zero) >> 1, 127)])
            prices[e, 0, FARTHEST + magnitude] = prices[e, 0, FARTHEST - magnitude] = first
            prices[e, 1, FARTHEST + magnitude] = prices[e, 1, FARTHEST - magnitude] = second
    for magnitude in range(FARTHEST + 1):
        shifts[FARTHEST + magnitude] = -shrink[min(magnitude, 3)]
        shifts[FARTHEST - magnitude] = shrink[min(magnitude, 3)]
    return prices, shifts


@njit(inline="always")
def _cost(value, weight, level, prices, shifts):
    """Cost of a level; of one beyond the tables that of the last one, at its own place."""
    at = np.uint64(min(max(level, np.int32(-FARTHEST)), np.int32(FARTHEST)) + np.int32(FARTHEST))
    error = value - np.float32(level) - shifts[at]
    return weight * error * error + prices[at]


@njit(inline="always")
def _cheapest(value, weight, near, further, least, prices, shifts):
    """Of three levels, the cost of the cheapest and which it is."""
    first, second = _cost(value, weight, near, prices, shifts), _cost(value, weight, further, prices, shifts)
    level, cost = (further if second < first else near), min(first, second)
    third = _cost(value, weight, least, prices, shifts)
    return min(cost, third), (least if third < cost else level)


@njit(inline="always")
def _branch(value, weight, offset, prices, shifts):
    """Cost and cheapest of the levels `4 m + offset`: the nearest, the next one towards zero, and the smallest."""
    near = np.int32(4) * np.int32(math.floor((value - np.float32(offset - 2)) * np.float32(0.25))) + np.int32(offset)
    further = near - np.int32(4) if value >= 0 else near + np.int32(4)
    least = np.int32(offset if offset < 2 else offset - 4)
    if offset == 2:
        least = np.int32(2) if value > 0 else np.int32(-2)
    return _cheapest(value, weight, near, further, least, prices, shifts)


@njit(inline="always")
def _branch_with_zero(value, weight, offset, smallest, prices, shifts):
    """The same of the levels `smallest, 4 + offset, 8 + offset, ...` and their opposites, in subset 1 with zero."""
    size, least = abs(value), np.int32(smallest)
    near = np.int32(4) * np.int32(math.floor((size - np.float32(offset - 2)) * np.float32(0.25))) + np.int32(offset)
    near = max(near, least)
    further = max(near - np.int32(4), least)
    cost, level = _cheapest(size, weight, near, further, least, prices, shifts)
    return cost, (-level if value < 0 else level)


@njit
def branches(value, weight, prices, shifts, costs, levels):
    """Cost and best level of every branch, [4] each, for one weight; see `branch_costs`."""
    costs[0], levels[0] = _branch(value, weight, 0, prices[0], shifts)
    costs[1], levels[1] = _branch(value, weight, 2, prices[0], shifts)
    costs[2], levels[2] = _branch(value, weight, 1, prices[1], shifts)
    costs[3], levels[3] = _branch(value, weight, 3, prices[1], shifts)


@njit
def _branches_with_zero(value, weight, prices, shifts, costs, levels):
    """The same with zero in both subsets; apart, for together they take twice as long."""
    costs[0], levels[0] = _branch(value, weight, 0, prices[0], shifts)
    costs[1], levels[1] = _branch(value, weight, 2, prices[0], shifts)
    costs[2], levels[2] = _branch_with_zero(value, weight, -1, 0, prices[1], shifts)
    costs[3], levels[3] = _branch_with_zero(value, weight, 1, 1, prices[1], shifts)


@kernel
def branch_costs(x, importance, exponents, prices, shifts, zero, costs, levels):
    """Cost `importance * (x - level)^2 + price` and best level of every branch, in single precision.

    Tried are the level nearest to a weight, the next one towards zero, and the smallest one.

    Args:
        x: float32 [n].
        importance: float32 [n], or [1] when constant.
        exponents: int32 [n], of the prices, or [1] when constant.
        prices: float32 [exponents, 2, 512], see `level_prices`.
        shifts: float32 [512].
        zero: whether zero is in subset 1 too.
        costs: float32 [n, 4], filled.
        levels: int32 [n, 4], filled.
    """
    if zero:
        for i in range(x.size):
            at, weight = np.uint64(exponents[i * (exponents.size > 1)]), importance[i * (importance.size > 1)]
            _branches_with_zero(x[i], weight, prices[at], shifts, costs[i], levels[i])
    else:
        for i in range(x.size):
            at, weight = np.uint64(exponents[i * (exponents.size > 1)]), importance[i * (importance.size > 1)]
            branches(x[i], weight, prices[at], shifts, costs[i], levels[i])


@kernel
def extend(first, second, odd, flip, costs, new, decisions):
    """Extend all paths by one weight: the states 2 j and 2 j + 1 come from j and from j + states / 2."""
    even_even, even_odd, odd_even, odd_odd = costs[0], costs[1], costs[2], costs[3]
    for j in range(first.size):
        zero_bit = odd_even if odd[j] else even_even
        one_bit = odd_odd if odd[j] else even_odd
        straight = one_bit if flip[j] else zero_bit
        crossed = zero_bit if flip[j] else one_bit
        a, b = first[j] + straight, second[j] + crossed
        c, d = first[j] + crossed, second[j] + straight
        new[2 * j] = min(a, b)
        new[2 * j + 1] = min(c, d)
        decisions[j] = np.uint8(b < a) | (np.uint8(d < c) << 1)


@kernel
def best_path(costs, choices, exponents, aside, flips, subsets, decisions, levels):
    """The path of the lowest cost from state 0 to any state; returns its cost.

    Args:
        costs: float32 [n, 4].
        choices: int32 [n, 4], the levels of the branches.
        exponents: int32 [n], or [1] when constant.
        aside: bool [exponents], of elements that are in subset 0 whatever the state is, which stays.
        flips: bool [states], parity of every state under h0, odd for j + states / 2 where it is even for j.
        subsets: bool [states], the subset it picks, the same for j and j + states / 2.
        decisions: uint8 [at least n, states / 2], overwritten.
        levels: int32 [n], filled.
    """
    n, states = costs.shape[0], flips.size
    half = states // 2
    old = np.full(states, DEAD)
    old[0] = 0
    new = np.empty(states, np.float32)
    odd, flip = subsets[:half], flips[:half]
    total = 0.0
    for i in range(n):
        total += rescale(old) if i % RESCALED_EVERY == 0 else 0.0
        if aside[exponents[i] if exponents.size > 1 else exponents[0]]:
            total += min(costs[i, 0], costs[i, 1])
            continue
        extend(old[:half], old[half:], odd, flip, costs[i], new, decisions[i])
        old, new = new, old
    state = old.argmin()
    total += old[state]
    for i in range(n - 1, -1, -1):
        if aside[exponents[i] if exponents.size > 1 else exponents[0]]:
            levels[i] = choices[i, np.int64(costs[i, 1] < costs[i, 0])]
            continue
        j, bit = state >> 1, state & 1
        state = j + half * np.int64((decisions[i, j] >> bit) & 1)
        subset = np.int64(subsets[state])
        levels[i] = choices[i, 2 * subset + (bit ^ np.int64(flips[state]))]
    return total


@kernel
def shortfalls(x, importance, levels):
    """Importance, importance-weighted shortfall `|level| - |x|` of the levels 1, 2, >= 3; float64 [2, 3]."""
    sums = np.zeros((2, 3))
    for i in range(x.size):
        level = np.int64(levels[i])
        if level != 0:
            weight = np.float64(importance[i] if importance.size > 1 else importance[0])
            index = min(abs(level), 3) - 1
            sums[0, index] += weight
            sums[1, index] += weight * (abs(level) - (np.float64(x[i]) if level > 0 else -np.float64(x[i])))
    return sums


@kernel
def squared_error(x, importance, levels, shrink):
    """Sum of `importance * (x - level)^2`, with levels moved as in `branch_costs`."""
    total = 0.0
    for i in range(x.size):
        level = np.int64(levels[i])
        moved = shrink[min(abs(level), 3)]
        error = np.float64(x[i]) - (level - moved if level > 0 else level + moved)
        total += np.float64(importance[i] if importance.size > 1 else importance[0]) * error * error
    return total
