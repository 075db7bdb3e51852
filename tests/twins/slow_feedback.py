"""Error feedback the slow, obvious way: every path keeps all of its levels, and works out what it aims at from them."""

import numpy as np

REACH = 4


def levels_near(value, odd, bit):
    """The levels of a branch around a value and towards zero: `2 k + odd`, the lowest bit of k being `bit`."""
    ends = sorted((0.0, float(value)))
    first, last = int(np.floor(ends[0])) - REACH, int(np.ceil(ends[1])) + REACH
    return [level for level in range(first, last + 1) if (level - odd) % 4 == 2 * bit]


def bits_of(level, odd, lengths):
    """Bits of a level of one subset, by the lengths [256] of an exponent."""
    k = (level - odd) // 2
    magnitude = -k - 1 if odd and k < 0 else abs(k)
    return float(lengths[128 * odd + min(magnitude, 127)])


def target_of(levels, row, column, loop):
    """What a path aims at that has these levels, [column, row] by rows of columns."""
    target = float(loop.x[column, row]) + float(loop.carried[column, row])
    for earlier in range(column):
        error = float(loop.x[earlier, row]) - levels[earlier * loop.x.shape[1] + row]
        target += float(loop.coupling[column, earlier, loop.classes[row]]) * error
    return target


def cost_of(place, target, level, odd, loop):
    """What a level costs at a place (column, row)."""
    column, row = place
    weight = float(loop.weights[column, row] if loop.weights.size > 1 else loop.weights[0, 0])
    lengths = loop.lengths[loop.row_exponents[row] + loop.column_exponents[column]]
    return weight * (target - level) ** 2 + loop.lmbda * bits_of(level, odd, lengths)


def steps_from(state, column, row, loop):
    """The states in which a step can end, with the subset and the lowest bit that lead there."""
    if loop.aside[loop.row_exponents[row] + loop.column_exponents[column]]:
        return [(state, 0, bit) for bit in (0, 1)]
    odd, flip = int(loop.subsets[state]), int(loop.flips[state])
    return [((2 * state + (bit ^ flip)) % len(loop.flips), odd, bit) for bit in (0, 1)]


def best_span(loop):
    """The path that is left when of those that meet in a state the cheaper one goes on; its levels and cost."""
    known = {0: (0.0, [])}
    for column, row in np.ndindex(loop.x.shape):
        reached = {}
        for state, (cost, levels) in known.items():
            target = target_of(levels, row, column, loop)
            for after, odd, bit in steps_from(state, column, row, loop):
                choices = levels_near(target, odd, bit)
                least, level = min((cost_of((column, row), target, level, odd, loop), level) for level in choices)
                if after not in reached or cost + least < reached[after][0]:
                    reached[after] = cost + least, [*levels, level]
        known = reached
    cost, levels = min(known.values(), key=lambda each: each[0])
    return np.array(levels, np.int32).reshape(loop.x.shape), cost


def walk(levels, loop):
    """What a path costs; an AssertionError where it is none."""
    state, cost, before = 0, 0.0, []
    for (column, row), level in np.ndenumerate(levels):
        steps = {(odd, bit): after for after, odd, bit in steps_from(state, column, row, loop)}
        odd = int(level) % 2
        bit = (int(level) - odd) // 2 & 1
        assert (odd, bit) in steps, f"{level} after {len(before)} levels is not on a path"
        cost += cost_of((column, row), target_of(before, row, column, loop), int(level), odd, loop)
        state = steps[odd, bit]
        before.append(int(level))
    return cost


def scalar_span(loop):
    """Free levels, each the cheapest of 0 and of those around its target; the levels and their cost."""
    levels, cost = [], 0.0
    for _ in range(loop.x.size):
        column, row = divmod(len(levels), loop.x.shape[1])
        weight = float(loop.weights[column, row] if loop.weights.size > 1 else loop.weights[0, 0])
        exponent = int(np.clip(loop.row_exponents[row] + loop.column_exponents[column], 0, len(loop.lengths) - 1))
        target = target_of(levels, row, column, loop)
        nearest = round(target)
        found = min(
            (weight * (target - level) ** 2 + loop.lmbda * float(loop.lengths[exponent, min(abs(level), 255)]), level)
            for level in {0, nearest - 1, nearest, nearest + 1}
        )
        levels.append(found[1])
        cost += found[0]
    return np.array(levels).reshape(loop.x.shape), cost
