"""The hot loop of fits of sources; plain arrays in and out, compiled on first use and cached."""

from __future__ import annotations

import numpy as np

from waterfill.compiled import kernel


@kernel
def counted_ratios(logs, places, log_scales, cells_a_nat, least):
    """Count magnitudes over their scales by their logarithms, relative to the largest ratio.

    Args:
        logs: natural logarithms of magnitudes, float64 [n]; those of zeros are minus infinity, and count nowhere.
        places: rows, channels and taps of the magnitudes, each int64 [n].
        log_scales: natural logarithms of the scales along each axis, float64.
        cells_a_nat: how many cells.
        least: lowest logarithm that is told apart, below 0; lower ones count as this one.

    Returns:
        Means and shares of the cells that have some, both float64 [cells]; empty where every magnitude is zero.
    """
    of_rows, of_channels, of_taps = log_scales
    rows, channels, taps = places
    ratios = np.empty(logs.size)
    for i in range(logs.size):
        ratios[i] = logs[i] - ((of_rows[rows[i]] + of_channels[channels[i]]) + of_taps[taps[i]])
    largest = ratios.max()
    if largest == -np.inf:
        return np.zeros(0), np.zeros(0)
    last = np.int64(-least * cells_a_nat)
    counts, sums = np.zeros(last + 1), np.zeros(last + 1)
    for i in range(logs.size):
        if ratios[i] > -np.inf:
            inside = max(ratios[i] - largest, least)
            cell = np.int64(inside * -cells_a_nat)
            counts[cell] += 1.0
            sums[cell] += inside
    met = np.flatnonzero(counts)
    return sums[met] / counts[met], counts[met] / counts.sum()
