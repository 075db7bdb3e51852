"""Hot loops of the search for a path; plain arrays in and out, compiled on first use and cached.

Weights are in steps. Branch `2 q + b` leads to the levels of subset q whose index has the lowest bit b, four apart.
`lengths[e, 128 q + m]` are the bits of magnitude m in subset q at exponent e.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from waterfill.compiled import kernel

RESCALED_EVERY = 64
"""Costs of paths are taken relative to the lowest one every so many steps."""


DEAD = np.float32(1e30)
"""Cost of a state that no path reaches."""


@njit(inline="always")
def rescale(costs):
    """Take the lowest cost off all, and return it."""
    lowest = costs.min()
    for s in range(costs.size):
        costs[s] -= lowest
    return np.float64(lowest)


@njit(inline="always")
def level_of(k, odd, zero):
    """The level of an index in a subset."""
    if not odd:
        return 2 * k
    if zero:
        return 2 * k - ((k > 0) - np.int64(k < 0))
    return 2 * k + 1


@njit(inline="always")
def _cost(value, weight, k, odd, zero, bits, shrink, lmbda):
    """Cost of one index: its error, that alone, and with its bits."""
    level = level_of(k, odd, zero)
    magnitude = (k if k >= 0 else -k - 1) if odd and not zero else abs(k)
    moved = shrink[min(abs(level), 3)]
    error = value - (level - moved if level > 0 else level + moved)
    loss = weight * error * error
    return loss, loss + lmbda * bits[128 * odd + min(magnitude, 127)]


@njit(inline="always")
def branches(value, weight, bits, shrink, lmbda, zero, costs, indices):
    """Cost and index of the best level of every branch, [4] each, for one weight; see `branch_costs`."""
    towards = 2 if value < 0 else -2
    for odd in range(2):
        middle = (abs(value) + 1) / 2 if odd and zero else (value - odd) / 2
        if odd and zero and value < 0:
            middle = -middle
        for bit in range(2):
            below = 2 * np.int64(np.floor((middle - bit) / 2)) + bit
            best_k = below
            _, best = _cost(value, weight, below, odd, zero, bits, shrink, lmbda)
            _, other = _cost(value, weight, below + 2, odd, zero, bits, shrink, lmbda)
            if other < best:
                best, best_k = other, below + 2
            k = below + towards if towards < 0 else below + 2 + towards
            while k * towards <= 2:
                loss, cost = _cost(value, weight, k, odd, zero, bits, shrink, lmbda)
                if cost < best:
                    best, best_k = cost, k
                if loss >= best:
                    break
                k += towards
            costs[2 * odd + bit] = best
            indices[2 * odd + bit] = best_k


@kernel
def branch_costs(x, importance, exponents, lengths, shrink, lmbda, zero, costs, indices):
    """Cost `importance * (x - level)^2 + lmbda * bits` and index of the best level of every branch.

    Tried are the two levels around a weight, and from there all towards zero until the error alone costs more.

    Args:
        x: float32 [n].
        importance: float32 [n], or [1] when constant.
        exponents: int32 [n] rows of `lengths`, or [1] when constant.
        lengths: float32 [exponents, 256].
        shrink: float64 [4], how far the levels of magnitude 0, 1, 2, >= 3 lie towards zero.
        lmbda: cost of a bit.
        zero: whether zero is in subset 1 too.
        costs: float32 [n, 4], filled.
        indices: int32 [n, 4], filled.
    """
    for i in range(x.size):
        value = np.float64(x[i])
        weight = np.float64(importance[i] if importance.size > 1 else importance[0])
        bits = lengths[exponents[i] if exponents.size > 1 else exponents[0]]
        branches(value, weight, bits, shrink, lmbda, zero, costs[i], indices[i])


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
def best_path(costs, indices, exponents, aside, flips, subsets, zero, decisions, levels):
    """The path of the lowest cost from state 0 to any state; returns its cost.

    Args:
        costs: float32 [n, 4].
        indices: int32 [n, 4].
        exponents: int32 [n], or [1] when constant.
        aside: bool [exponents], of elements that are in subset 0 whatever the state is, which stays.
        flips: bool [states], parity of every state under h0, odd for j + states / 2 where it is even for j.
        subsets: bool [states], the subset it picks, the same for j and j + states / 2.
        zero: whether zero is in subset 1 too.
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
            levels[i] = 2 * indices[i, np.int64(costs[i, 1] < costs[i, 0])]
            continue
        j, bit = state >> 1, state & 1
        state = j + half * np.int64((decisions[i, j] >> bit) & 1)
        subset = np.int64(subsets[state])
        k = np.int64(indices[i, 2 * subset + (bit ^ np.int64(flips[state]))])
        levels[i] = level_of(k, subset, zero)
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
