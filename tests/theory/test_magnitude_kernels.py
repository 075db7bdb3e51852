"""Magnitudes over their scales are counted as a slow twin counts them."""

import numpy as np
import pytest

from waterfill.theory.magnitude_kernels import counted_ratios

CELLS, LEAST = 64.0, -64.0


def slow_twin(values, scales):
    """Means and shares of the cells of all ratios that are not zero."""
    ratios = np.abs(values) / scales
    logs = np.maximum(np.log(ratios[ratios > 0] / ratios.max()), LEAST)
    cells = (-CELLS * logs).astype(int)
    met = np.unique(cells)
    means = [logs[cells == cell].mean() for cell in met]
    return np.array(means), np.array([(cells == cell).mean() for cell in met])


@pytest.mark.parametrize("seed", range(3))
def test_ratios_are_counted_as_by_a_slow_twin(seed):
    rng = np.random.default_rng(seed)
    shape = (6, 5, 4)
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-40, 3, shape)
    values[rng.random(shape) < 0.2] = 0
    scales = [np.exp(rng.standard_normal(length)) for length in shape]
    places = [each.reshape(-1) for each in np.indices(shape)]
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(values)).reshape(-1)
    found = counted_ratios(logs, tuple(places), tuple(map(np.log, scales)), CELLS, LEAST)
    expected = slow_twin(values, scales[0][:, None, None] * scales[1][:, None] * scales[2])
    assert found[0] == pytest.approx(expected[0]) and found[1] == pytest.approx(expected[1])


def test_zeros_alone_are_in_no_cell():
    zeros = np.full(3, -np.inf)
    places = (np.zeros(3, np.int64),) * 3
    assert [each.size for each in counted_ratios(zeros, places, (np.zeros(1),) * 3, CELLS, LEAST)] == [0, 0]
