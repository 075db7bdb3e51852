"""Hot loop of the search among the weights of a sparse matrix; plain arrays in and out, compiled and cached."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
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
        errors = np.empty(stop - start)
        for i in range(start, stop):
            level = symbols[i] - np.sign(symbols[i]) * shrink[min(abs(symbols[i]), 3)]
            errors[i - start] = x[i] - level
        for i in range(start, stop):
            weight = steps[i]
            error, pull = errors[i - start], 0.0
            if crossed and weight > 0:
                factor = factors[o // per_group, places[i]]
                for j in range(start, stop):
                    pull += factor[places[j]] * errors[j - start]
                pull = rows[o] * pull / weight - error
            target = x[i] + pull
            magnitude = abs(target)
            best, best_level = 0, 0.0
            best_cost = weight * magnitude * magnitude + lmbda * prices[i, 0]
            nearest = min(np.int64(magnitude + 0.5), 1 << 30)
            for candidate in range(max(1, nearest - 1), nearest + 3):
                level = candidate - shrink[min(candidate, 3)]
                missed = magnitude - level
                price = weight * missed * missed + lmbda * (prices[i, 1] + lengths[min(candidate, 255)])
                if price < best_cost:
                    best, best_cost, best_level = candidate, price, level
            sign = -1 if target < 0 else 1
            if best:
                sums[0, min(best, 3) - 1] += weight
                sums[1, min(best, 3) - 1] += weight * (best - magnitude)
            symbols[i] = sign * best
            errors[i - start] = x[i] - sign * best_level
            bits += prices[i, 1] + lengths[min(best, 255)] if best else prices[i, 0]
        for i in range(start, stop):
            if not crossed:
                cost += steps[i] * errors[i - start] * errors[i - start]
                continue
            factor, total = factors[o // per_group, places[i]], 0.0
            for j in range(start, stop):
                total += factor[places[j]] * errors[j - start]
            cost += rows[o] * total * errors[i - start]
    return cost, bits
