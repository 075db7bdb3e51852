"""The search for a path, against the slow obvious one on the same integers."""

import numpy as np
import pytest

from waterfill.codec.trellis import PARITIES, parities
from waterfill.quantize import viterbi_kernels as kernels
from waterfill.quantize.branch_kernels import level_prices


def cheapest(costs, stays, flips, subsets):
    """Branches [n] of the cheapest path from state 0 to any state, the first of several, by costs [4, n]."""
    known = {0: (0, [])}
    for i in range(costs.shape[1]):
        if stays[i]:
            known = {state: (cost, [*taken, 0]) for state, (cost, taken) in known.items()}
            continue
        reached = {}
        for state in sorted(known):
            cost, taken = known[state]
            for bit in (0, 1):
                after, branch = (2 * state + bit) % len(flips), 2 * subsets[state] + (bit ^ flips[state])
                total = cost + int(costs[branch, i])
                if after not in reached or total < reached[after][0]:
                    reached[after] = total, [*taken, branch]
        known = reached
    return known[min(known, key=lambda state: (known[state][0], state))]


def search(log_states, metric, scale, count, aside=0.2, spread=3.0):
    """A code, and what a search through random weights leaves behind."""
    rng = np.random.default_rng([log_states, count])
    code = kernels.code_of(*parities(log_states), metric, scale)
    values = (rng.normal(size=count) * spread).astype(np.float32)
    weights, starts = rng.gamma(0.5, size=count).astype(np.float32), rng.integers(0, 4, count).astype(np.int32) * 1024
    bits = level_prices(np.cumsum(rng.uniform(0, 1, (4, 256)), 1).astype(np.float32), 0.3, False).reshape(-1)
    stays = rng.random(count) < aside
    found = kernels.no_trace(count, code)
    found.stays[:] = stays
    paths = kernels.search(values, weights, starts, bits, False, None, code, kernels.paths_from_start(code), found)
    levels = np.empty(count, np.int32)
    kernels.trace(kernels.best_state(paths), found, code, levels)
    every = np.empty(count, np.int32)
    kernels.best_path(values, weights, starts, bits, False, None, stays, code, every)
    np.testing.assert_array_equal(every, levels)
    return code, found, levels


@pytest.mark.parametrize("log_states", [log for log in PARITIES if log <= 9])
@pytest.mark.parametrize(("metric", "scale"), [(np.int16, 128.0), (np.int32, 4096.0), (np.int16, 3000.0)])
def test_symbols_are_those_of_the_slow_search_on_the_same_integers(log_states, metric, scale):
    """With a large scale most costs are cut off, and costs of paths wrap around all the time."""
    count = 150 if log_states < 8 else 60
    _, found, levels = search(log_states, metric, scale, count)
    _, taken = cheapest(found.costs[:, :count], found.stays, *parities(log_states))
    np.testing.assert_array_equal(levels, found.levels[0, taken, np.arange(count)])


@pytest.mark.parametrize("log_states", [2, 5, 7])
def test_costs_of_paths_stay_near_each_other_however_long_they_are(log_states):
    """Random costs up to the largest one: many times more than the integers have room for, in all."""
    rng, count = np.random.default_rng(0), 3000
    code = kernels.code_of(*parities(log_states), np.int16, 1.0)
    costs = rng.integers(0, int(code.unit[1]) + 1, (4, count)).astype(np.int16)
    paths, stays = kernels.paths_from_start(code), np.zeros(count, bool)
    decisions = np.empty(2 * code.kinds.size * count, np.uint32)
    paths = kernels.extend_paths(costs, stays, 0, count, code, paths, decisions, 0)
    expected, _ = zip(*(ending(costs, parities(log_states), state) for state in range(1 << log_states)), strict=True)
    relative = (paths.old - paths.old[:1]).astype(int)
    np.testing.assert_array_equal(relative, np.array(expected) - expected[0])


def ending(costs, known, state):
    """Cost of the cheapest path to a state, and nothing more."""
    flips, subsets = known
    reached = np.full(flips.size, 1 << 60)
    reached[0] = 0
    half = flips.size // 2
    to = np.arange(flips.size)
    for column in costs.T.astype(np.int64):
        ways = [
            reached[before] + column[2 * subsets[before] + ((to & 1) ^ flips[before])]
            for before in (to >> 1, (to >> 1) + half)
        ]
        reached = np.minimum(*ways)
    return int(reached[state]), None


@pytest.mark.parametrize("size", [1, kernels.STRETCH - 1, kernels.STRETCH, 2 * kernels.STRETCH + 1])
def test_stretches_are_one_search(size):
    code, found, levels = search(3, np.int32, 4096.0, size, aside=0.0)
    state = 0
    for i in range(size):
        choices = found.levels[i // kernels.STRETCH, :, i % kernels.STRETCH]
        allowed = [2 * int(code.subsets[state]) + bit for bit in (0, 1)]
        branch = next(branch for branch in allowed if choices[branch] == levels[i])
        state = (2 * state + (branch & 1 ^ int(code.flips[state]))) % 8


def test_elements_aside_take_the_better_branch_of_subset_0_and_leave_the_state():
    _, found, levels = search(4, np.int32, 4096.0, 200, aside=1.0)
    flat = found.levels[0][:, :200]
    np.testing.assert_array_equal(levels, flat[0])
    assert (found.costs[1, :200] < found.costs[0, :200]).any()
