"""Fitted bases find what their class can express."""

import math

import numpy as np
import pytest

from waterfill.bases.fitting import fitted_flips, fitted_rotations
from waterfill.bases.kernels import rounded_angles
from waterfill.bases.rotations import LEARNT, classes, number_of_angles, number_of_pairs, parts
from waterfill.bases.turning import matrix_of, turned_both
from waterfill.records import CHANNELS, OUT, Flips, Layout

STEP = 2 * np.pi / 256
"""Of angles."""


def separated(length, rng):
    """A covariance whose variances are an octave apart, along random directions."""
    vectors = np.linalg.qr(rng.standard_normal((length, length)))[0]
    return vectors * 2.0 ** np.arange(length) @ vectors.T


def lost_bits(covariance):
    """Bits per coefficient that are lost as they are coded as if they were independent."""
    diagonal = np.log2(covariance.diagonal()).mean()
    return (diagonal - np.linalg.slogdet(covariance)[1] / np.log(2) / len(covariance)) / 2


def symmetric(shape, rng):
    """A covariance of taps that depend on others of their class alone, after sums and differences."""
    butterflies, taps = Flips(np.zeros(number_of_angles(shape), np.int8)), int(np.prod(shape))
    matrix = matrix_of(next(parts(butterflies, Layout((1, 1, *shape))))).astype(np.float64)
    found = np.zeros((taps, taps))
    for some in classes(shape):
        found[np.ix_(some, some)] = separated(len(some), rng)
    return matrix.T @ found @ matrix


@pytest.mark.parametrize("shape", [(2,), (3,), (7,), (3, 3), (5, 5), (4, 3), (2, 2, 3)])
def test_flips_make_taps_independent_whose_covariance_is_symmetric(shape):
    covariance = symmetric(shape, np.random.default_rng(0))
    basis = fitted_flips(covariance, shape)
    assert basis.angles.size == number_of_angles(shape)
    assert np.abs(basis.angles.astype(int)).max(initial=0) <= 64
    found = turned_both(covariance, basis, Layout((1, 1, *shape)))
    assert lost_bits(found) <= 0.01 * lost_bits(covariance) + 1e-6


def test_the_first_coefficient_of_every_class_has_the_largest_variance():
    covariance = symmetric((5, 5), np.random.default_rng(1))
    found = turned_both(covariance, fitted_flips(covariance, (5, 5)), Layout((1, 1, 5, 5))).diagonal()
    for some in classes((5, 5)):
        assert np.argmax(found[some]) == 0


@pytest.mark.parametrize("axis", [OUT, CHANNELS])
@pytest.mark.parametrize("length", [2, 5, 12])
def test_rotations_of_all_directions_make_coordinates_independent(axis, length):
    covariance = separated(length, np.random.default_rng(length))
    basis = fitted_rotations(covariance, axis, length - 1)
    assert (basis.axis, basis.directions) == (axis, length - 1)
    assert basis.angles.size == number_of_pairs(length, length - 1)
    assert np.abs(basis.angles.astype(int)).max() <= 64
    layout = Layout((length, length))
    assert lost_bits(turned_both(covariance, basis, layout)) < 0.03 * lost_bits(covariance)


@pytest.mark.parametrize("directions", [1, 3])
def test_rotations_of_some_directions_find_the_largest_variances(directions):
    covariance = separated(10, np.random.default_rng(3))
    basis = fitted_rotations(covariance, CHANNELS, directions)
    found = turned_both(covariance, basis, Layout((1, 10)))
    assert found.diagonal()[:directions] == pytest.approx(2.0 ** np.arange(9, 9 - directions, -1), rel=0.02)
    assert np.abs(found[0, 1:]).max() < 2**9 * STEP


def test_coordinates_that_are_independent_already_stay_in_place():
    basis = fitted_rotations(np.diag([8.0, 4.0, 2.0, 1.0]), OUT, 3)
    assert not basis.angles.any()


def slow_angles(vectors, directions):
    """Rotate whole rows, one after the other."""
    left, found = np.array(vectors), []
    for p in range(directions):
        for q in range(p + 1, len(left)):
            sign = math.copysign(1, left[p, p])
            angle = round(LEARNT / math.tau * math.atan2(sign * left[q, p], abs(left[p, p])))
            c, s = math.cos(math.tau * angle / LEARNT), math.sin(math.tau * angle / LEARNT)
            left[p], left[q] = c * left[p] + s * left[q], c * left[q] - s * left[p]
            found.append(angle)
    return found


@pytest.mark.parametrize(("length", "directions"), [(2, 1), (9, 9), (9, 4), (40, 39)])
def test_angles_are_those_of_a_slow_twin(length, directions):
    vectors = np.linalg.qr(np.random.default_rng(length).standard_normal((length, length)))[0]
    found = rounded_angles(vectors.copy(), directions, LEARNT)
    assert found.tolist() == slow_angles(vectors, directions)
