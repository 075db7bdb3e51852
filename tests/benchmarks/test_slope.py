"""Slopes and curves of the page of what a bit is worth."""

import pytest

import slope


def test_a_distortion_that_falls_by_four_a_bit_falls_by_six_db():
    curve = dict.fromkeys(slope.CURVES, 4.0 ** (-2))
    rows = [
        {"network": "a", "bit/value": 2.0} | curve,
        {"network": "a", "bit/value": 2.5} | dict.fromkeys(curve, 4**-2.5),
    ]
    first, second, other = slope.in_decibels([*rows, rows[0] | {"network": "b"}])
    assert first["slope, KL, test"] == other["slope, KL, test"] == "-"
    assert all(second[f"slope, {name}"] == pytest.approx(slope.PER_BIT, abs=0.01) for name in slope.CURVES)
    assert first["predicted"] == pytest.approx(-12.04, abs=0.01)


def test_a_limit_is_straight_in_db_between_its_points():
    assert slope.least([(0.0, 1.0), (1.0, 0.25), (3.0, 4.0**-3)], 2.0) == pytest.approx(4.0**-2)
