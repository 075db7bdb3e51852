"""Coordinates of a source: found where weights depend on each other, and left alone where they do not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from waterfill.compression.source_structure import structured
from waterfill.records import CHANNELS, OUT, TAPS, Cosines, Directions, Layout, Weight
from waterfill.theory.scaled_source import fit_scaled_source


def correlated(covariances, seed=0):
    """Weights [out, channels, taps] of a Kronecker covariance; numbers are lengths of independent axes."""
    sizes = [each if isinstance(each, int) else len(each) for each in covariances]
    found = np.random.default_rng(seed).normal(size=sizes)
    for axis, each in enumerate(covariances):
        if not isinstance(each, int):
            root = np.linalg.cholesky(each)
            found = np.moveaxis(np.tensordot(root, found, (1, axis)), 0, axis)
    return found


def autoregression(length, coefficient):
    places = np.arange(length)
    return coefficient ** np.abs(places[:, None] - places)


def random_covariance(length, seed=1):
    roots = np.random.default_rng(seed).normal(size=(length, length + 2))
    return roots @ roots.T / length


def found(values, *, rows=True):
    out, channels, taps = values.shape
    kernel = (3, 3) if taps == 9 else ()
    weight = Weight("w", values.reshape(out, -1).astype(np.float32), Layout((out, channels, *kernel)))
    return structured(weight, fit_scaled_source(values), rows=rows)


def entropy_of(source):
    return source.scaled.unbiased(source.angles).mean_entropy


def entropy(*covariances):
    """Of a weight of a Gaussian with a Kronecker covariance, bits."""
    logs = sum(np.linalg.slogdet(each)[1] / len(each) for each in covariances)
    return (math.log2(2 * math.pi * math.e) + logs / math.log(2)) / 2


@pytest.mark.parametrize("shape", [(64, 64, 1), (16, 8, 9), (8, 8, 1), (300, 40, 1)])
def test_independent_weights_stay_as_they_are(shape):
    for seed in range(3):
        assert found(correlated(shape, seed)).turns == ()


def test_an_autoregression_becomes_cosines():
    covariance = autoregression(128, 0.9)
    source = found(correlated((200, covariance, 1)))
    assert [(type(each), each.axis) for each in source.turns] == [(Cosines, CHANNELS)] and source.angles == 0
    assert entropy_of(source) == pytest.approx(entropy(covariance), abs=0.03)


def test_a_kronecker_covariance_is_found_axis_by_axis():
    rows, channels, taps = autoregression(96, 0.8), autoregression(32, 0.7), random_covariance(9)
    source = found(correlated((rows, channels, taps)))
    assert [each.axis for each in source.turns] == [TAPS, CHANNELS, OUT]
    assert isinstance(source.turns[0], Directions) and source.angles == 36
    assert entropy_of(source) == pytest.approx(entropy(rows, channels, taps), abs=0.03)


def test_some_rows_of_a_matrix_are_not_turned():
    values = correlated((autoregression(96, 0.8), 32, 1))
    assert found(values, rows=False).turns == ()
    assert [each.axis for each in found(values).turns] == [OUT]


def test_low_rank_and_noise_takes_as_many_directions_as_there_are():
    directions = np.random.default_rng(2).normal(size=(3, 64))
    covariance = directions.T @ directions + 0.05 * np.eye(64)
    source = found(correlated((512, covariance, 1)))
    (turn,) = source.turns
    assert isinstance(turn, Directions) and source.angles == 3 * 64 - 6
    np.testing.assert_allclose(turn.matrix @ turn.matrix.T, np.eye(64), atol=1e-5)
    assert entropy_of(source) == pytest.approx(entropy(covariance), abs=0.03)
