"""The search for the cheapest path through a trellis (Viterbi); plain arrays in and out.

Costs of paths are integers that wrap around (`vectors`). They stay within half of all numbers of each other: every
state is reached from every other one in as many steps as it has bits, each of which costs at most the largest branch.

Decisions are bits, two words for so many pairs of states: word `2 J + b` of a weight has at bit l whether the path to
state `2 (lanes J + l) + b` comes from state `lanes J + l + states / 2`, and not from `lanes J + l`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from waterfill.compiled import kernel
from waterfill.quantize.branch_kernels import branch_costs, in_units, room
from waterfill.quantize.vectors import choose_paths, spread_costs

MOST_LANES = 32
"""Pairs of states in one word, at most."""

STRETCH = 1024
"""Branches of so many weights are worked out at once."""

LARGEST_BRANCH = 1 << 22
"""No branch costs more integers."""


class Code(NamedTuple):
    """A trellis in the form the kernels take.

    Attributes:
        flips: bool [states], parity of every state under h0, odd for j + states / 2 where it is even for j.
        subsets: bool [states], the subset it picks, the same for j and j + states / 2.
        odd: int16 or int32 [lanes], -1 where one of the first states picks subset 1.
        flip: the same, where it is flipped.
        kinds: uint32 [states / 2 / lanes], `2 subset + flip` of the first state of every block, times lanes.
        unit: float32 [2], integers for a cost of one, and the largest one that a branch has.
    """

    flips: Any
    subsets: Any
    odd: Any
    flip: Any
    kinds: Any
    unit: Any


class PathCosts(NamedTuple):
    """Costs of the paths to every state.

    Attributes:
        old: int16 or int32 [states].
        new: the same, to be filled.
        spread: the same integers [4 * lanes], costs of the branches of one weight.
    """

    old: Any
    new: Any
    spread: Any


class SearchTrace(NamedTuple):
    """What a search leaves behind for tracing paths, and room for it to work in.

    Attributes:
        stays: bool [n], which weights stand aside.
        levels: int32 [stretches, 4, STRETCH], of the branches.
        decisions: uint32, flat, so many words for each weight.
        costs: int16 or int32 [4, STRETCH], of the branches of a stretch.
        rooms: for a stretch.
    """

    stays: Any
    levels: Any
    decisions: Any
    costs: Any
    rooms: Any


def code_of(flips: NDArray[np.int64], subsets: NDArray[np.int64], metric: Any, scale: float) -> Code:
    """Prepare a trellis.

    Args:
        flips: parity of every state under h0.
        subsets: the same under h1.
        metric: int16 or int32, the type of costs.
        scale: integers for a cost of one.
    """
    half = len(flips) // 2
    lanes, bits = min(half, MOST_LANES), half.bit_length()
    kinds = lanes * (2 * subsets[:half:lanes] + flips[:half:lanes])
    odd, flip = (-part[:lanes].astype(metric) for part in (subsets, flips))
    largest = min(LARGEST_BRANCH, np.iinfo(metric).max // (2 * bits + 3))
    unit = np.array([scale, largest], np.float32)
    return Code(flips.astype(np.bool_), subsets.astype(np.bool_), odd, flip, kinds.astype(np.uint32), unit)


@njit
def paths_from_start(code):
    """PathCosts that start at state 0."""
    states, lanes = code.flips.size, code.odd.size
    old, new = np.zeros(states, code.odd.dtype), np.zeros(states, code.odd.dtype)
    paths = PathCosts(old, new, np.zeros(4 * lanes, code.odd.dtype))
    restart(paths, 0, code)
    return paths


@njit
def restart(paths, state, code):
    """Let paths start at one state: to start at another one costs more than any path to any state."""
    paths.old[:] = np.int32(code.unit[1]) * (logarithm(paths.old.size) + 1)
    paths.old[state] = 0


@njit
def best_state(paths):
    """The state with the cheapest path."""
    return (paths.old - paths.old[:1]).argmin()


@njit
def no_trace(size, code):
    """Room for a search through so many weights."""
    stretches = (size + STRETCH - 1) // STRETCH
    levels = np.empty((stretches, 4, STRETCH), np.int32)
    words = 2 * code.kinds.size
    costs = np.zeros((4, STRETCH), code.odd.dtype)
    return SearchTrace(np.zeros(size, np.bool_), levels, np.empty(words * size, np.uint32), costs, room(STRETCH))


def _extension(lanes: int) -> Callable[..., Any]:
    """Extend paths by some weights, in vectors of so many pairs of states."""

    @njit
    def extend_paths(costs, stays, start, stop, code, paths, decisions, at):
        old, new, spread = paths
        half, width, turned = np.uint32(old.size // 2), np.uint32(lanes), np.uint32(lanes)
        for i in range(start, stop):
            if stays[i]:
                at += 2 * code.kinds.size
                continue
            spread_costs(costs, i, code.odd, code.flip, spread, lanes)
            first = np.uint32(0)
            for block in range(code.kinds.size):
                kind = code.kinds[block]
                choose_paths(
                    old, first, half + first, spread, kind, kind ^ turned, new, first + first, decisions, at, lanes
                )
                first += width
                at += 2
            old, new = new, old
        return PathCosts(old, new, spread)

    return extend_paths


_extend_2, _extend_4, _extend_8, _extend_16, _extend_32 = map(_extension, (2, 4, 8, 16, 32))


@kernel
def extend_paths(costs, stays, start, stop, code, paths, decisions, at):
    """Extend all paths by the weights start..stop.

    Args:
        costs: int16 or int32 [4, n or more], of the branches.
        stays: bool [n], which stand aside: these extend no path.
        start: the first weight.
        stop: the one after the last.
        code: the trellis.
        paths: to every state.
        decisions: uint32, flat, filled.
        at: place of the first one in it.

    Returns:
        The paths.
    """
    lanes = code.odd.size
    if lanes == 32:
        return _extend_32(costs, stays, start, stop, code, paths, decisions, at)
    if lanes == 16:
        return _extend_16(costs, stays, start, stop, code, paths, decisions, at)
    if lanes == 8:
        return _extend_8(costs, stays, start, stop, code, paths, decisions, at)
    if lanes == 4:
        return _extend_4(costs, stays, start, stop, code, paths, decisions, at)
    return _extend_2(costs, stays, start, stop, code, paths, decisions, at)


@njit
def take_better(stays, costs, levels):
    """Of the two branches of subset 0, put the better one first for weights that stand aside."""
    for i in range(stays.size):
        if stays[i] and costs[1, i] < costs[0, i]:
            levels[0, i] = levels[1, i]


@kernel
def search(values, weights, starts, bits, zero, shrink, code, paths, found):
    """Extend all paths by some weights.

    Args:
        values: float32 [n], in steps.
        weights: float32 [n] of the squared errors.
        starts: int32 [n], where the prices of each begin in `bits`.
        bits: float32, flat, see `branch_kernels.level_prices`.
        zero: whether zero is in subset 1 too.
        shrink: see `branch_costs`.
        code: the trellis.
        paths: to every state.
        found: for n weights, filled but for `stays`.

    Returns:
        The paths.
    """
    words = 2 * code.kinds.size
    for stretch in range(len(found.levels)):
        start, stop = stretch * STRETCH, min((stretch + 1) * STRETCH, values.size)
        levels, stays = found.levels[stretch], found.stays[start:stop]
        branch_costs(
            values[start:stop], weights[start:stop], starts[start:stop], bits, zero, shrink, found.rooms, levels
        )
        in_units(stop - start, code.unit, found.rooms, found.costs)
        take_better(stays, found.costs, levels)
        paths = extend_paths(found.costs, stays, 0, stays.size, code, paths, found.decisions, start * words)
    return paths


@njit(inline="always")
def step_back(state, decisions, at, log_lanes, code):
    """The state before a weight and the branch from it, given the state after it and where its words are."""
    pair, odd = state >> 1, state & 1
    word = decisions[at + ((pair >> log_lanes) << 1) + odd]
    before = pair + (code.flips.size // 2) * ((np.int64(word) >> (pair & ((1 << log_lanes) - 1))) & 1)
    return before, 2 * np.int64(code.subsets[before]) + (odd ^ np.int64(code.flips[before]))


@njit(inline="always")
def logarithm(power):
    """Of a power of two, to the base of two."""
    found = 0
    while 1 << found < power:
        found += 1
    return found


@kernel
def trace(state, found, code, levels):
    """Follow the path that ends in a state back to its start.

    Args:
        state: the last one.
        found: by a search.
        code: the trellis.
        levels: int32 [n], filled.
    """
    log_lanes, words = logarithm(code.odd.size), 2 * code.kinds.size
    for i in range(levels.size - 1, -1, -1):
        branch = 0
        if not found.stays[i]:
            state, branch = step_back(state, found.decisions, i * words, log_lanes, code)
        levels[i] = found.levels[i // STRETCH, branch, i % STRETCH]


@kernel
def best_path(values, weights, starts, bits, zero, shrink, aside, code, levels):
    """The path of the lowest cost from state 0 to any state.

    Args:
        values: float32 [n], in steps.
        weights: float32 [n] of the squared errors.
        starts: int32 [n], where the prices of each begin in `bits`.
        bits: float32, flat, see `branch_kernels.level_prices`.
        zero: whether zero is in subset 1 too.
        shrink: see `branch_costs`.
        aside: bool [n], of elements that are in subset 0 whatever the state is, which stays.
        code: the trellis.
        levels: int32 [n], filled.
    """
    found = no_trace(values.size, code)
    found.stays[:] = aside
    paths = search(values, weights, starts, bits, zero, shrink, code, paths_from_start(code), found)
    trace(best_state(paths), found, code, levels)
