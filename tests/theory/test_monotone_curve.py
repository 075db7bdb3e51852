"""Curves between points are those of scipy."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from waterfill.theory.monotone_curve import MonotoneCurve


@pytest.mark.parametrize("points", [2, 3, 4, 20])
@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_scipy(points, seed):
    rng = np.random.default_rng(seed)
    values = np.round(rng.standard_normal(points).cumsum(), 1)  # some neighbours are equal
    places = np.concatenate([np.arange(points), rng.uniform(0, points - 1, (3, 7)).reshape(-1)])
    expected = PchipInterpolator(np.arange(points), values)(places)
    assert MonotoneCurve.through(values).at(places) == pytest.approx(expected, abs=1e-12)


def test_curves_through_rising_points_rise():
    values = np.array([0.0, 1e-9, 1.0, 1.0, 1.5, 1000.0])
    found = MonotoneCurve.through(values).at(np.linspace(0, 5, 501))
    assert (np.diff(found) >= -1e-12).all() and found[-1] == 1000
