"""How far weights are from the size that layers usually have."""

import numpy as np
import pytest

from waterfill.importance import DiagonalForm, row_scale
from waterfill.importance.weight_excess import FARTHEST, tempered, weight_excess
from waterfill.records import Layout, Weight

MATRIX = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32) / 4


@pytest.mark.parametrize("octaves", [-2, 0, 3])
def test_usual_sizes_are_taken_as_they_are(octaves):
    assert weight_excess(MATRIX * np.float32(2.0**octaves)) == 1.0


@pytest.mark.parametrize("octaves", [-40, -10, 10, 40])
def test_an_excess_goes_with_the_weights(octaves):
    assert weight_excess(MATRIX * np.float32(2.0**octaves)) == 2.0**octaves


@pytest.mark.parametrize("matrix", [np.zeros((3, 4), np.float32), np.zeros((0, 4), np.float32)])
def test_zeros_have_none(matrix):
    assert weight_excess(matrix) == 1.0


@pytest.mark.parametrize("value", [1e-45, 3e38])
def test_an_excess_has_bounds(value):
    assert abs(np.log2(weight_excess(np.full((3, 3), value, np.float32)))) == FARTHEST


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("octaves", [-20, 10])
def test_the_cost_of_a_relative_error_stays_whatever_the_size(power, octaves):
    form = DiagonalForm(np.random.default_rng(1).gamma(0.5, size=MATRIX.shape).astype(np.float32))
    plain = tempered(form, MATRIX, 0.3, power)
    scaled = tempered(form.scaled(2.0 ** (-2 * octaves)), MATRIX * np.float32(2.0**octaves), 0.3, power)
    np.testing.assert_allclose(scaled.diagonal() * 2.0 ** (2 * octaves), plain.diagonal(), rtol=1e-5)


def test_power_one_changes_nothing():
    form = DiagonalForm(np.ones(MATRIX.shape, np.float32))
    assert tempered(form, MATRIX * np.float32(1e9), 0.3, 1.0) is form


def test_tensors_without_data_are_priced_by_the_usual_size():
    layout = Layout(MATRIX.shape)
    known = row_scale().forms(
        {str(k): Weight(str(k), MATRIX * np.float32(2.0**k), layout) for k in (0, 10, -20)},
    )
    for octaves in (10, -20):
        expected = known["0"].diagonal() * 2.0 ** (-2 * octaves)
        np.testing.assert_allclose(known[str(octaves)].diagonal(), expected, rtol=1e-6)
