"""Hot loops of the quantizers; plain arrays in and out, compiled on first use and cached.

Everywhere `lengths[e, m]` are the bits of magnitude m under the table of exponent e, and the exponent of the element
(o, c, t) is `rows[o] + channels[c] + taps[t]`, clipped to the table.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from waterfill.compiled import kernel

MOST_OFFSETS = 8
"""Of which costs are worked out side by side."""


@njit(inline="always")
def _clip(exponent, top):
    return min(max(exponent, 0), top)


@njit
def _columns(channels, taps):
    """Exponents of all columns, int64 [channels * taps]."""
    found = np.empty(channels.size * taps.size, np.int64)
    for c in range(channels.size):
        for t in range(taps.size):
            found[c * taps.size + t] = channels[c] + taps[t]
    return found


@njit
def _side_by_side(offsets, lengths, low, high):
    """Bits of every magnitude under each offset, float64 [high - low + 1, 256, MOST_OFFSETS]; 0 under those left over.

    Args:
        offsets: int64 [k], added to the exponents.
        lengths: float32 [exponents, 256].
        low: first exponent.
        high: last exponent.
    """
    top = lengths.shape[0] - 1
    found = np.zeros((high - low + 1, 256, MOST_OFFSETS))
    for e in range(len(found)):
        for k in range(offsets.size):
            found[e, :, k] = lengths[_clip(low + e + offsets[k], top)]
    return found


@kernel
def axis_costs(magnitudes, rows, channels, taps, axis, offsets, lengths):
    """Bits that each index of one axis costs under each offset of its exponent.

    Args:
        magnitudes: uint8 [out, channels, taps].
        rows: int64 [out], exponents.
        channels: int64 [channels].
        taps: int64 [taps].
        axis: 0, 1 or 2.
        offsets: int64 [k], added to the exponents of the axis, `MOST_OFFSETS` at most.
        lengths: float32 [exponents, 256].

    Returns:
        float64 [length of the axis, k].
    """
    columns = _columns(channels, taps)
    low, high = rows.min() + columns.min(), rows.max() + columns.max()
    bits = _side_by_side(offsets, lengths, low, high)
    flat = magnitudes.reshape(rows.size, columns.size)
    costs = np.zeros((rows.size if axis == 0 else columns.size, MOST_OFFSETS))
    for o in range(rows.size):
        first, values = rows[o] - low, flat[o]
        for j in range(columns.size):
            cost, added = costs[o if axis == 0 else j], bits[first + columns[j], values[j]]
            for k in range(MOST_OFFSETS):
                cost[k] += added[k]
    if axis == 1:
        costs = costs.reshape(channels.size, taps.size, MOST_OFFSETS).sum(axis=1)
    elif axis == 2:
        costs = costs.reshape(channels.size, taps.size, MOST_OFFSETS).sum(axis=0)
    return costs[:, : offsets.size].copy()


@kernel
def axis_powers(importance, values, rows, channels, taps, axis):
    """Sums along one axis of importances and of squares, both in squared steps.

    Args:
        importance: float32 or float64 [out, channels, taps].
        values: the same, of the same shape.
        rows: float64 [out], squared steps.
        channels: float64 [channels].
        taps: float64 [taps].
        axis: 0, 1 or 2.

    Returns:
        float64 [2, length of the axis].
    """
    columns = np.empty(channels.size * taps.size)
    for c in range(channels.size):
        columns[c * taps.size : (c + 1) * taps.size] = channels[c] * taps
    prices, numbers = importance.reshape(rows.size, columns.size), values.reshape(rows.size, columns.size)
    found, reciprocals = np.zeros((2, rows.size if axis == 0 else columns.size)), 1 / columns
    for o in range(rows.size):
        step, reciprocal = rows[o], 1 / rows[o]
        price, power = 0.0, 0.0
        for j in range(columns.size):
            value = np.float64(numbers[o, j])
            one, other = prices[o, j] * (step * columns[j]), value * value * (reciprocal * reciprocals[j])
            if axis == 0:
                price += one
                power += other
            else:
                found[0, j] += one
                found[1, j] += other
        if axis == 0:
            found[0, o], found[1, o] = price, power
    if axis == 0:
        return found
    by_channel = found.reshape(2, channels.size, taps.size)
    return by_channel.sum(axis=2) if axis == 1 else by_channel.sum(axis=1)


@kernel
def exponent_histogram(magnitudes, rows, channels, taps, low, high):
    """How often each magnitude occurs at each exponent low..high; int64 [high - low + 1, 256]."""
    columns = _columns(channels, taps)
    flat = magnitudes.reshape(rows.size, columns.size)
    counts = np.zeros((2, high - low + 1, 256), np.int64)  # of every second column each: equal neighbours do not wait
    for o in range(rows.size):
        first, values = rows[o] - low, flat[o]
        for j in range(0, columns.size - 1, 2):
            counts[0, first + columns[j], values[j]] += 1
            counts[1, first + columns[j + 1], values[j + 1]] += 1
        if columns.size % 2:
            counts[0, first + columns[-1], values[-1]] += 1
    return counts[0] + counts[1]


@kernel
def _used(counts):
    """The rows that have counts, and the number of columns up to the last one that has some."""
    rows, most = np.zeros(len(counts), np.int64), 0
    for e in range(len(counts)):
        for m in range(counts.shape[1]):
            if counts[e, m] > 0:
                rows[e] = 1
                most = max(most, m + 1)
    return np.flatnonzero(rows), most


@kernel
def cheapest_base(counts, first, low, start, stop, tables):
    """The table and the base under which symbols take the fewest bits.

    Args:
        counts: int64 [exponents, 256], see `exponent_histogram`, of which the columns from `first` on.
        first: that column.
        low: the first exponent, without the base.
        start: the lowest base.
        stop: one more than the highest base.
        tables: float32 [tables, magnitudes, scales], bits of the magnitudes at each scale.

    Returns:
        Bits, table and base.
    """
    families, magnitudes, scales = tables.shape
    rows, most = _used(counts[:, first : first + magnitudes])
    bits = np.empty((rows.size, scales))
    best, family, base = np.inf, 0, start
    for f in range(families):
        bits[:] = 0
        for i in range(rows.size):
            for m in range(most):
                count = np.float64(counts[rows[i], first + m])
                for s in range(scales):
                    bits[i, s] += count * tables[f, m, s]
        for b in range(start, stop):
            total = 0.0
            for i in range(rows.size):
                total += bits[i, _clip(rows[i] + low + b, scales - 1)]
            if total < best:
                best, family, base = total, f, b
    return best, family, base


@kernel
def round_to_cost(x, importance, rows, channels, taps, lengths, shrink, lmbda, symbols):
    """Rate-distortion optimised rounding: minimise `importance * (x - level)^2 + lmbda * bits` over the symbols.

    Candidates are the nearest symbol, the next one towards zero, and zero.

    Args:
        x: float32 [out, channels, taps] in steps.
        importance: float32, of the same shape, or of shape [1, 1, 1] when constant.
        rows: int64 [out], exponents.
        channels: int64 [channels].
        taps: int64 [taps].
        lengths: float32 [exponents, 256].
        shrink: float32 [4], how far the levels of magnitude 0, 1, 2, >= 3 lie towards zero.
        lmbda: cost of a bit.
        symbols: int32 [out, channels, taps], filled.
    """
    n_out, n_channels, n_taps = x.shape
    top = lengths.shape[0] - 1
    constant = importance.size == 1
    for o in range(n_out):
        for c in range(n_channels):
            partial = rows[o] + channels[c]
            for t in range(n_taps):
                value = x[o, c, t]
                magnitude = abs(value)
                weight = importance[0, 0, 0] if constant else importance[o, c, t]
                bits = lengths[_clip(partial + taps[t], top)]
                best = 0
                best_cost = weight * magnitude * magnitude + lmbda * bits[0]
                nearest = np.int64(magnitude + 0.5)
                for candidate in range(max(1, nearest - 1), nearest + 2):
                    error = magnitude - (candidate - shrink[min(candidate, 3)])
                    cost = weight * error * error + lmbda * bits[min(candidate, 255)]
                    if cost < best_cost:
                        best, best_cost = candidate, cost
                symbols[o, c, t] = best if value > 0 else -best


@kernel
def centroid_sums(x, importance, symbols):
    """Importance and importance-weighted shortfall `|k| - |x|` of the magnitudes 1, 2, >= 3; float64 [2, 3]."""
    sums = np.zeros((2, 3))
    constant = importance.size == 1
    for o in range(x.shape[0]):
        for c in range(x.shape[1]):
            for t in range(x.shape[2]):
                k = symbols[o, c, t]
                if k != 0:
                    weight = importance[0, 0, 0] if constant else importance[o, c, t]
                    towards = x[o, c, t] if k > 0 else -x[o, c, t]
                    index = min(abs(k), 3) - 1
                    sums[0, index] += weight
                    sums[1, index] += weight * (abs(k) - towards)
    return sums
