"""Costs and levels of the four branches that a weight can take through a trellis; plain arrays in and out.

Weights are in steps. Branch `2 q + b` leads to the levels of subset q whose index has the lowest bit b, four apart.
Tried are the level nearest to a weight, the next one towards zero, and the smallest one. Loops are over weights,
without branches, so that they become vectors; looking prices up is a loop of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from waterfill.compiled import kernel

FARTHEST = 255
"""Levels beyond cost the bits of this one."""

PRICES = 1024
"""Prices of an exponent: of the levels -255..255 and a last one that stands for nothing, in both subsets."""

SUBSETS = np.array([0, 0, 1, 1], np.int64)
OFFSETS = np.array([0, 2, 1, 3], np.int64)
"""Branch i leads to the levels `4 m + OFFSETS[i]`."""

SMALLEST = np.array([0, 2, 1, -1], np.int32)
"""Of them the smallest one; of branch 1 the one on the side of the weight."""

OFFSETS_WITH_ZERO = np.array([0, 2, -1, 1], np.int64)
SMALLEST_WITH_ZERO = np.array([0, 2, 0, 1], np.int32)
"""With zero in subset 1 its levels are `4 m + offset` from the smallest one on, and their opposites."""


class Room(NamedTuple):
    """Where what is found on the way is kept, for n weights or more.

    Attributes:
        near: int32 [n], the level nearest to each weight.
        further: int32 [n], the next one towards zero.
        prices: float32 [3, n], of near, further and smallest level.
        costs: float32 [4, n], of the branches.
    """

    near: Any
    further: Any
    prices: Any
    costs: Any


@kernel
def level_prices(lengths, lmbda, zero):
    """What bits of every level cost.

    Args:
        lengths: float32 [exponents, 256], bits of magnitude m in subset q at `128 q + m`.
        lmbda: cost of a bit.
        zero: whether zero is in subset 1 too.

    Returns:
        float32 [exponents, 2, 512], of the levels -255..255 and a last one that stands for nothing.
    """
    prices = np.zeros((len(lengths), 2, 512), np.float32)
    for e in range(len(lengths)):
        for magnitude in range(FARTHEST + 1):
            first = np.float32(lmbda * lengths[e, magnitude >> 1])
            second = np.float32(lmbda * lengths[e, 128 + min((magnitude + zero) >> 1, 127)])
            prices[e, 0, FARTHEST + magnitude] = prices[e, 0, FARTHEST - magnitude] = first
            prices[e, 1, FARTHEST + magnitude] = prices[e, 1, FARTHEST - magnitude] = second
    return prices


@njit
def room(size):
    """Room for so many weights."""
    near, further = np.empty(size, np.int32), np.empty(size, np.int32)
    return Room(near, further, np.empty((3, size), np.float32), np.empty((4, size), np.float32))


@njit(inline="always")
def _clipped(level):
    return np.uint32(min(max(level, np.int32(-FARTHEST)), np.int32(FARTHEST)) + np.int32(FARTHEST))


@njit(inline="always")
def _shrink_of_branch(smallest, shrink):
    """Of the levels of a branch, the magnitude of the smallest, and how far it and all others lie towards zero."""
    return abs(smallest), shrink[abs(smallest)], shrink[3]


@njit(inline="always")
def _moved(level, shrink):
    """How far a level of a branch lies from where it would be, towards zero."""
    smallest, of_smallest, of_others = shrink
    size = of_smallest if abs(level) <= smallest else of_others
    return -size if level > 0 else size


@njit(inline="always")
def _error(value, level, shrink):
    """Value less level, which may lie nearer to zero."""
    apart = value - np.float32(level)
    return apart if shrink is None else apart - _moved(level, shrink)


@njit(inline="always")
def _nearest(values, offset, rooms):
    """Find the nearest of the levels `4 m + offset`, and the next one towards zero."""
    middle, last = np.float32(offset - 2), np.int32(offset)
    near, further = rooms.near, rooms.further
    for i in range(values.size):
        value = values[i]
        level = np.int32(4) * np.int32(np.floor((value - middle) * np.float32(0.25))) + last
        near[i] = level
        further[i] = level - (np.int32(4) if value >= 0 else np.int32(-4))


@njit(inline="always")
def _nearest_size(values, offset, smallest, rooms):
    """The same of magnitudes, where there are no levels below the smallest one."""
    middle, last, least = np.float32(offset - 2), np.int32(offset), np.int32(smallest)
    near, further = rooms.near, rooms.further
    for i in range(values.size):
        level = np.int32(4) * np.int32(np.floor((abs(values[i]) - middle) * np.float32(0.25))) + last
        near[i] = max(level, least)
        further[i] = max(level - np.int32(4), least)


@njit(inline="always")
def _look_up(starts, shift, smallest, bits, rooms):
    """Look up the prices of nearest, next and smallest levels."""
    near, further, prices = rooms.near, rooms.further, rooms.prices
    least = _clipped(np.int32(smallest))
    for i in range(starts.size):
        start = np.uint32(starts[i] + shift)
        prices[0, i] = bits[start + _clipped(near[i])]
        prices[1, i] = bits[start + _clipped(further[i])]
        prices[2, i] = bits[start + least]


@njit(inline="always")
def _best_of_three(value, weight, least, shrink, rooms, i):
    """Of nearest, next and smallest level of weight i the cheapest, the first of several, and its cost."""
    near, further, prices = rooms.near[i], rooms.further[i], rooms.prices
    first, second, third = _error(value, near, shrink), _error(value, further, shrink), _error(value, least, shrink)
    cost, level = weight * first * first + prices[0, i], near
    other = weight * second * second + prices[1, i]
    level, cost = (further if other < cost else level), min(cost, other)
    last = weight * third * third + prices[2, i]
    return (least if last < cost else level), min(cost, last)


@njit(inline="always")
def _cheapest(values, weights, smallest, sided, shrink, rooms, costs, levels):
    """Of nearest, next and smallest levels the cheapest, and its cost.

    Args:
        values: float32 [n].
        weights: float32 [n] of the squared errors.
        smallest: the smallest level.
        sided: whether it is on the side of the weight.
        shrink: see `_shrink_of_branch`; None for not at all.
        rooms: with levels and prices.
        costs: float32 [n], filled.
        levels: int32 [n], filled.
    """
    for i in range(values.size):
        value, least = values[i], np.int32(smallest)
        least = -least if sided and not value > 0 else least
        levels[i], costs[i] = _best_of_three(value, weights[i], least, shrink, rooms, i)


@njit(inline="always")
def _cheapest_sizes(values, weights, smallest, shrink, rooms, costs, levels):
    """The same of magnitudes; levels get the signs of the weights."""
    for i in range(values.size):
        level, costs[i] = _best_of_three(abs(values[i]), weights[i], np.int32(smallest), shrink, rooms, i)
        levels[i] = -level if values[i] < 0 else level


@kernel
def branch_costs(values, weights, starts, bits, zero, shrink, rooms, levels):
    """Cost `weight * (value - level)^2 + price` and best level of every branch; costs go to the room.

    Args:
        values: float32 [n].
        weights: float32 [n] of the squared errors.
        starts: int32 [n], where the prices of each begin in `bits`.
        bits: float32, flat, see `level_prices`.
        zero: whether zero is in subset 1 too.
        shrink: float32 [4], how far the levels of magnitude 0, 1, 2, >= 3 lie towards zero; None for not at all.
        rooms: for n weights or more.
        levels: int32 [4, n or more], filled.
    """
    for branch in range(4):
        costs, best, shift = rooms.costs[branch], levels[branch], 512 * SUBSETS[branch]
        if zero and branch >= 2:
            offset, least = OFFSETS_WITH_ZERO[branch], SMALLEST_WITH_ZERO[branch]
            _nearest_size(values, offset, least, rooms)
            _look_up(starts, shift, least, bits, rooms)
            of_branch = None if shrink is None else _shrink_of_branch(least, shrink)
            _cheapest_sizes(values, weights, least, of_branch, rooms, costs, best)
        else:
            offset, least = OFFSETS[branch], SMALLEST[branch]
            _nearest(values, offset, rooms)
            _look_up(starts, shift, least, bits, rooms)
            of_branch = None if shrink is None else _shrink_of_branch(least, shrink)
            _cheapest(values, weights, least, branch == 1, of_branch, rooms, costs, best)


@kernel
def in_units(count, unit, rooms, costs):
    """Costs of the branches of so many weights relative to the cheapest branch of each, in integers.

    Args:
        count: n.
        unit: float32 [2], integers for a cost of one, and the largest one.
        rooms: with the costs.
        costs: int16 or int32 [4, n or more], filled.
    """
    scale, limit, found = unit[0], unit[1], rooms.costs
    for i in range(count):
        one, two, three, four = found[0, i], found[1, i], found[2, i], found[3, i]
        least = min(min(one, two), min(three, four))
        costs[0, i] = np.int32(min((one - least) * scale + np.float32(0.5), limit))
        costs[1, i] = np.int32(min((two - least) * scale + np.float32(0.5), limit))
        costs[2, i] = np.int32(min((three - least) * scale + np.float32(0.5), limit))
        costs[3, i] = np.int32(min((four - least) * scale + np.float32(0.5), limit))
