"""Hot loop of the search among the weights of a sparse matrix; plain arrays in and out, compiled and cached."""

from __future__ import annotations

import numpy as np
from numba import njit

from waterfill.compiled import kernel


@njit(inline="always")
def _times(factor, places, errors, start):
    """One entry of the product of a factor and of the errors of a row."""
    total = 0.0
    for j in range(errors.size):
        total += factor[places[start + j]] * errors[j]
    return total


@njit(inline="always")
def _cheapest(magnitude, weight, price, lengths, shrink, lmbda):
    """The symbol of the lowest cost among zero and those near a magnitude."""
    best, best_cost = np.int64(0), weight * magnitude * magnitude + lmbda * price[0]
    nearest = min(np.int64(magnitude + 0.5), 1 << 30)
    for candidate in range(max(1, nearest - 1), nearest + 3):
        missed = magnitude - (candidate - shrink[min(candidate, 3)])
        cost = weight * missed * missed + lmbda * (price[1] + lengths[min(candidate, 255)])
        if cost < best_cost:
            best, best_cost = candidate, cost
    return best


@kernel
def descend(x, places, ends, rows, factors, steps, prices, lengths, shrink, lmbda, symbols, sums):
    """Choose every weight anew, given all others of its row: the cheapest of zero and the levels nearby.

    Args:
        x: float64 [n], the weights that are not zero, in steps, row by row.
        places: int64 [n], their columns.
        ends: int64 [out + 1], where the weights of each row begin, and end.
        rows: float64 [out], importance of the rows.
        factors: float64 [groups, in, in], importance of the columns; [0, in, in] without cross terms.
        steps: float64 [n], importance of each weight alone.
        prices: float64 [n, 2], bits of zero, and of all that is not zero.
        lengths: float64 [256], bits of a magnitude, sign included.
        shrink: float64 [4], how far the levels of magnitude 0, 1, 2, >= 3 lie towards zero.
        lmbda: price of a bit.
        symbols: int64 [n], changed.
        sums: float64 [2, 3], filled: importance of magnitudes 1, 2, >= 3, and how far they fall short.

    Returns:
        What errors cost, and bits.
    """
    cost, bits = 0.0, 0.0
    sums[:] = 0.0
    crossed = factors.shape[0] > 0
    per_group = rows.size // max(1, factors.shape[0])
    for o in range(rows.size):
        start, stop = ends[o], ends[o + 1]
        old = symbols[start:stop]
        errors = x[start:stop] - old
        for i in range(old.size):
            errors[i] += np.sign(old[i]) * shrink[min(abs(old[i]), 3)]
        for i in range(start, stop):
            target = x[i]
            if crossed and steps[i] > 0:
                pull = rows[o] * _times(factors[o // per_group, places[i]], places, errors, start)
                target += pull / steps[i] - errors[i - start]
            best = _cheapest(abs(target), steps[i], prices[i], lengths, shrink, lmbda)
            sign = -1 if target < 0 else 1
            if best:
                sums[0, min(best, 3) - 1] += steps[i]
                sums[1, min(best, 3) - 1] += steps[i] * (best - abs(target))
            symbols[i] = sign * best
            errors[i - start] = x[i] - sign * (best - shrink[min(best, 3)])
            bits += prices[i, 1] + lengths[min(best, 255)] if best else prices[i, 0]
        for i in range(start, stop):
            error, product = errors[i - start], steps[i] * errors[i - start]
            if crossed:
                product = rows[o] * _times(factors[o // per_group, places[i]], places, errors, start)
            cost += product * error
    return cost, bits
