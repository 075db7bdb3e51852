"""Hot loops of one-dimensional k-means; plain arrays in and out, compiled on first use and cached.

Points are sorted. `moments[p]` are the sums over everything merged into point p, about its place `places[p]`: of
`I, I x, I x^2`, and with a quartic cost `H, H x, ... H x^4` behind them; 3 or 8 numbers. Sums over a range of points
come from a *disjoint sparse table*: at level L, blocks of `2^(L+1)` points have a middle, and every point stores the
sums from itself to the middle, about the place of the middle. A range with the ends i < j takes the level of the
highest bit in which i and j differ, where one end lies left and one right of a middle inside the range. Nothing is
ever subtracted and every centre lies inside its range, so no digits cancel, wherever the points lie: prefix sums would
lose (range / width of a cluster)^4 for the quartic cost.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from waterfill.compiled import kernel

TINY = 1e-290
"""Less is no curvature: costs are scaled so that the largest is near one."""


@njit(inline="always")
def _add(sums, moments, shift):
    """Add moments about a place to sums about a centre; shift is the place minus the centre."""
    m0, m1, m2 = moments[0], moments[1], moments[2]
    sums[0] += m0
    sums[1] += m1 + shift * m0
    sums[2] += m2 + shift * (2 * m1 + shift * m0)
    if sums.size == 8:
        h0, h1, h2, h3, h4 = moments[3], moments[4], moments[5], moments[6], moments[7]
        sums[3] += h0
        sums[4] += h1 + shift * h0
        sums[5] += h2 + shift * (2 * h1 + shift * h0)
        sums[6] += h3 + shift * (3 * h2 + shift * (3 * h1 + shift * h0))
        sums[7] += h4 + shift * (4 * h3 + shift * (6 * h2 + shift * (4 * h1 + shift * h0)))


@kernel
def merge(weights, importance, quartic, starts):
    """Points from runs of sorted weights: run b is `starts[b] .. starts[b + 1]`.

    Args:
        weights: float64 [n], sorted.
        importance: float64 [n].
        quartic: float64 [n], or [0] for none.
        starts: int64 [points + 1].

    Returns:
        Places [points], the middle weight of each run, and moments [points, 3 or 8].
    """
    count = starts.size - 1
    places = np.empty(count)
    moments = np.zeros((count, 8 if quartic.size else 3))
    own = np.zeros(moments.shape[1])
    for b in range(count):
        places[b] = weights[(starts[b] + starts[b + 1] - 1) // 2]
        for i in range(starts[b], starts[b + 1]):
            own[0] = importance[i]
            if quartic.size:
                own[3] = quartic[i]
            _add(moments[b], own, weights[i] - places[b])
    return places, moments


@kernel
def sparse_table(places, moments):
    """The disjoint sparse table, float64 [levels, points, 3 or 8]."""
    count, kinds = moments.shape
    levels = 0
    while (1 << levels) < count:
        levels += 1
    table = np.zeros((levels, count, kinds))
    sums = np.empty(kinds)
    for level in range(levels):
        half = 1 << level
        for middle in range(half, count, 2 * half):
            sums[:] = 0
            for p in range(middle - 1, middle - half - 1, -1):
                _add(sums, moments[p], places[p] - places[middle])
                table[level, p] = sums
            sums[:] = 0
            for p in range(middle, min(middle + half, count)):
                _add(sums, moments[p], places[p] - places[middle])
                table[level, p] = sums
    return table


@njit(inline="always")
def quartic_root(i0, i1, h0, h1, h2, h3, tolerance):
    """The real root of `2 H0 c^3 - 6 H1 c^2 + (6 H2 + I0) c - (2 H3 + I1)`, half the derivative of the cost of c.

    With `c = H1 / H0 + t` it is `2 H0 t^3 + b t + a` with `b >= 0`: monotone, and convex on the side of the root.
    Either term alone has its zero beyond the root, and the nearer zero is at most twice as far; Newton from there
    comes back without ever passing the root, so it needs no bracket.
    """
    if not h0 > TINY:
        return i1 / i0 if i0 > 0 else 0.0
    mean = h1 / h0
    b = i0 + 6 * max(h2 - mean * h1, 0.0)
    a = i0 * mean - i1 - 2 * (h3 + mean * (2 * mean * h1 - 3 * h2))
    size = abs(a)
    cube = 2 * h0
    t = size / b if b * (b * b) >= cube * (size * size) and b > 0 else (size / cube) ** (1.0 / 3.0)
    for _ in range(60):
        slope = b + 3 * cube * t * t
        if not slope > 0:
            break
        step = (t * (b + cube * t * t) - size) / slope
        t -= step
        if abs(step) <= tolerance * t:  # what is left is about the square of it
            break
    return mean - t if a > 0 else mean + t


@njit(inline="always")
def _quartic_cost(i0, i1, i2, h0, h1, h2, h3, h4):
    """The least cost of a cluster from its moments."""
    c = quartic_root(i0, i1, h0, h1, h2, h3, 1e-4)
    squares = i2 + c * (c * i0 - 2 * i1)
    fourths = h4 + c * (c * (6 * h2 + c * (c * h0 - 4 * h1)) - 4 * h3)
    return max(squares, 0.0) + max(fourths, 0.0)


@njit(inline="always")
def _cost(a, b):
    """The least cost of the points whose moments are a + b."""
    if a.size == 8:
        return _quartic_cost(
            a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4], a[5] + b[5], a[6] + b[6], a[7] + b[7]
        )
    s0, s1 = a[0] + b[0], a[1] + b[1]
    return max(a[2] + b[2] - s1 * s1 / s0, 0.0) if s0 > 0 else 0.0


@njit(inline="always")
def _scan(row, j, before, low, high, best, arg):
    """Least `before[i] + cost(i..j)` over i in low..high on one level of the table, from the right."""
    right = row[j]
    for i in range(high, low - 1, -1):
        u = np.uint64(i)  # spares the test for indices below zero
        total = before[u] + _cost(row[u], right)
        if total < best:
            best, arg = total, i
    return best, arg


@njit(inline="always")
def _scan_quadratic(row, j, before, low, high, best, arg):
    """The same where the cost is quadratic and no importance zero, three times as fast."""
    r0, r1, r2 = row[j, 0], row[j, 1], row[j, 2]
    for i in range(high, low - 1, -1):
        u = np.uint64(i)
        s1 = r1 + row[u, 1]
        total = before[u] + (r2 + row[u, 2]) - s1 * s1 / (r0 + row[u, 0])
        if total < best:
            best, arg = total, i
    return best, arg


@njit(inline="always")
def _best_start(table, heights, own, before, j, low, high):
    """Where the last cluster of the points 0..j starts: cost and start, among low..high."""
    best, arg = np.inf, low
    if high == j:
        best, arg = before[j] + own[j], j
    level, reached = np.int64(heights[high ^ j]), high + 1
    while reached > low:
        middle = (j >> level) << level
        if (j >> level) & 1:
            reached = middle - (1 << level)
            left, right = max(low, reached), min(high, middle - 1)
            if table.shape[2] == 8:
                best, arg = _scan(table[level], j, before, left, right, best, arg)
            else:
                best, arg = _scan_quadratic(table[level], j, before, left, right, best, arg)
        level += 1
    return best, arg


@njit(inline="always")
def _heights(levels):
    """The place of the highest bit of every number below `2^levels`; 0 for zero."""
    heights = np.zeros(1 << levels, np.uint8)
    for level in range(levels):
        heights[1 << level : 2 << level] = level
    return heights


@kernel
def range_cost(table, moments, i, j):
    """The least cost of one cluster of the points i..j."""
    if i == j:
        return _cost(moments[i], np.zeros(moments.shape[1]))
    level = 0
    while (i ^ j) >> (level + 1):
        level += 1
    return _cost(table[level, i], table[level, j])


@kernel
def partition(table, moments, k):
    """The best partition of the points into k runs, by dynamic programming with divide and conquer.

    The first j + 1 points in q clusters cost `best_q(j + 1) = min_i best_(q-1)(i) + cost(i..j)`. The cost obeys the
    quadrangle inequality, so the best i rises with j, and with q: the middle j of a range is solved first and bounds
    both halves, and the best i for q - 1 bounds it from below.

    Args:
        table: of `sparse_table`.
        moments: [points, 3 or 8].
        k: number of runs, 1 ... points.

    Returns:
        int64 [k + 1]: where the runs start, and the number of points.
    """
    count = moments.shape[0]
    heights = _heights(table.shape[0])
    own, before, after = np.empty(count), np.empty(count + 1), np.empty(count + 1)
    for j in range(count):
        own[j] = range_cost(table, moments, j, j)
        before[j + 1] = range_cost(table, moments, 0, j)
    back = np.zeros((k, count), np.int32)
    for q in range(1, k):
        starts, floors = back[q], back[q - 1]
        stride = 1
        while 2 * stride <= count - q:
            stride *= 2
        while stride:
            for j in range(q + stride - 1, count, 2 * stride):
                low, high = max(q, np.int64(floors[j])), j
                if j - stride >= q:
                    low = max(low, np.int64(starts[j - stride]))
                if j + stride < count:
                    high = max(low, min(high, np.int64(starts[j + stride])))
                after[j + 1], starts[j] = _best_start(table, heights, own, before, j, low, high)
            stride //= 2
        before, after = after, before
    edges = np.empty(k + 1, np.int64)
    edges[k] = count
    for q in range(k - 1, -1, -1):
        edges[q] = back[q, edges[q + 1] - 1]
    return edges


@kernel
def centroids(weights, importance, quartic, edges, old):
    """The best centroid of every run of sorted weights; a run without weights or importance keeps its old one.

    Args:
        weights: float64 [n], sorted.
        importance: float64 [n].
        quartic: float64 [n], or [0] for none.
        edges: int64 [k + 1], where the runs start, and n.
        old: float64 [k].
    """
    found = old.copy()
    own = np.zeros(8 if quartic.size else 3)
    sums = np.empty(own.size)
    for run in range(old.size):
        first, last = edges[run], edges[run + 1] - 1
        if last < first:
            continue
        centre = weights[(first + last) // 2]
        sums[:] = 0
        for i in range(first, last + 1):
            own[0] = importance[i]
            if quartic.size:
                own[3] = quartic[i]
            _add(sums, own, weights[i] - centre)
        if quartic.size and sums[3] > TINY:
            root = quartic_root(sums[0], sums[1], sums[3], sums[4], sums[5], sums[6], 1e-8)
        elif sums[0] > 0:
            root = sums[1] / sums[0]
        else:
            continue
        found[run] = min(max(centre + root, weights[first]), weights[last])
    return found


@njit(inline="always")
def _shares(measure, bins):
    """A measure of every weight as bins, about 8 for a weight at most: a third of that still leaves it alone in one."""
    for _ in range(20):
        cap = 8 * measure.sum() / bins
        if not measure.max() > 1.01 * cap:
            break
        measure = np.minimum(measure, cap)
    return measure * (bins / max(measure.sum(), TINY))


@kernel
def bin_starts(weights, mass, bins):
    """Runs of sorted weights that a cluster hardly needs to cut: int64 [runs + 1].

    A bin has an equal share of the mean of three measures: the mass, so that heavy weights are alone; the number of
    weights, so that few bins stay empty; and the density of good centroids, (density of mass)^(1/3).

    Args:
        weights: float64 [n], sorted.
        mass: float64 [n], not all zero.
        bins: most runs.
    """
    n = weights.size
    spread = np.empty(n)
    for i in range(n):
        width = weights[min(i + 1, n - 1)] - weights[max(i - 1, 0)]
        spread[i] = (mass[i] * width * width) ** (1.0 / 3.0)
    shares = (_shares(mass, bins) + _shares(spread, bins) + bins / n) / 3
    starts = np.empty(bins + 1, np.int64)
    runs, at, bin_before = 0, 0.0, -1
    for i in range(n):
        here = min(int(at + shares[i] / 2), bins - 1)
        at += shares[i]
        if here > bin_before:
            starts[runs] = i
            runs += 1
            bin_before = here
    starts[runs] = n
    return starts[: runs + 1]


@kernel
def plus_plus(weights, importance, quartic, uniforms):
    """Centroids of k-means++: each next one a weight, drawn with the cost that it has so far.

    Args:
        weights: float64 [n].
        importance: float64 [n].
        quartic: float64 [n], or [0] for none.
        uniforms: float64 [k], random numbers in [0, 1).

    Returns:
        float64 [k]; once nothing costs anything the first one is repeated.
    """
    n = weights.size
    found = np.empty(uniforms.size)
    chances = importance.copy()
    if quartic.size:
        chances += quartic
    nearest = np.full(n, np.inf)
    for drawn in range(uniforms.size):
        left = uniforms[drawn] * chances.sum()
        pick = -1
        for i in range(n):
            if chances[i] > 0:
                pick = i
                left -= chances[i]
                if left < 0:
                    break
        found[drawn] = weights[pick] if pick >= 0 else found[0]
        for i in range(n):
            square = (weights[i] - found[drawn]) ** 2
            if square < nearest[i]:
                nearest[i] = square
                chances[i] = square * importance[i]
                if quartic.size:
                    chances[i] += square * square * quartic[i]
    return found
