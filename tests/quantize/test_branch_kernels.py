"""Costs and levels of branches, against a plain loop."""

import numpy as np
import pytest

from waterfill.quantize.branch_kernels import PRICES, branch_costs, in_units, level_prices, room

SHRINK = np.array([0, 0.125, -0.0625, 0.03125], np.float32)


def offers(value, branch, zero):
    """The levels that are tried: the nearest one, the next one towards zero, the smallest one; in this order."""
    if zero and branch >= 2:
        size, sign, smallest = abs(value), -1 if value < 0 else 1, branch - 2
        levels = range(-3 if branch == 3 else -1, 400, 4)
        nearest = min(levels, key=lambda level: (abs(size - level), -level))
        return [sign * max(level, smallest) for level in (nearest, nearest - 4, smallest)]
    offset = (0, 2, 1, 3)[branch]
    levels = [level for level in range(-403, 404) if (level - offset) % 4 == 0]
    nearest = min(levels, key=lambda level: (abs(value - level), -level))
    further = nearest - 4 if value >= 0 else nearest + 4
    smallest = {0: 0, 1: 2 if value > 0 else -2, 2: 1, 3: -1}[branch]
    return [nearest, further, smallest]


def moved(level, shrink):
    return level - np.sign(level) * (0 if shrink is None else shrink[min(abs(level), 3)])


def cost_of(value, weight, level, branch, bits, zero, shrink):
    magnitude = min(abs(level), 255)
    subset = branch // 2
    index = magnitude >> 1 if subset == 0 else 128 + min((magnitude + zero) >> 1, 127)
    if subset == 1 and not zero:
        index = 128 + (magnitude >> 1)
    return weight * (value - moved(level, shrink)) ** 2 + bits[index]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("shrink", [None, SHRINK], ids=["plain", "moved"])
@pytest.mark.parametrize("lmbda", [0.0, 0.4, 3.0])
def test_costs_and_levels_are_those_of_a_plain_loop(zero, shrink, lmbda):
    rng, count = np.random.default_rng(0), 333
    values = np.concatenate([rng.normal(size=count - 7) * 3, [0, 0, 300.3, -300.3, 254.9, 2, -2]]).astype(np.float32)
    weights, rows = rng.gamma(1.0, size=count).astype(np.float32), rng.integers(0, 3, count)
    lengths = np.cumsum(rng.uniform(0, 1, (3, 256)), 1).astype(np.float32)
    starts = (rows * PRICES).astype(np.int32)
    rooms, levels = room(count + 5), np.full((4, count + 5), 999, np.int32)
    bits = level_prices(lengths, lmbda, zero).reshape(-1)
    branch_costs(values, weights, starts, bits, zero, shrink, rooms, levels)
    for i in range(count):
        for branch in range(4):
            tried = {
                level: cost_of(values[i], weights[i], level, branch, lmbda * lengths[rows[i]], zero, shrink)
                for level in offers(float(values[i]), branch, zero)
            }
            assert rooms.costs[branch, i] == pytest.approx(min(tried.values()), rel=1e-4, abs=1e-4)
            assert tried[levels[branch, i]] == pytest.approx(min(tried.values()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("metric", [np.int16, np.int32])
def test_integers_are_relative_to_the_cheapest_branch_and_have_a_largest_one(metric):
    rng, rooms = np.random.default_rng(0), room(50)
    rooms.costs[:] = rng.gamma(0.5, size=(4, 50)) * 20
    costs = np.full((4, 50), -1, metric)
    in_units(40, np.array([100, 2000], np.float32), rooms, costs)
    relative = rooms.costs - rooms.costs.min(0)
    np.testing.assert_allclose(costs[:, :40], np.minimum(relative * 100, 2000)[:, :40], atol=0.51)
    assert (costs[:, 40:] == -1).all()
    assert costs.max() == 2000
