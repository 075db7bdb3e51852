"""Tests of a fitted source: silent where it fits, and near the true bits where it does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from waterfill.theory.structure_left import (
    bits_of_correlations,
    excess_of_density,
    excess_of_zeros,
    findings,
)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def autoregression(rows, length, coefficient, seed=0):
    noise = gaussian(rows, length, seed=seed)
    found = noise.copy()
    for place in range(1, length):
        found[:, place] = coefficient * found[:, place - 1] + math.sqrt(1 - coefficient**2) * noise[:, place]
    return found[:, :, None]


@pytest.mark.parametrize("shape", [(8, 8, 1), (64, 64, 1), (300, 100, 1), (32, 16, 9), (2, 500, 1), (500, 2, 4)])
def test_independent_weights_have_no_structure_left(shape):
    for seed in range(5):
        assert findings(gaussian(*shape, seed=seed), ndtr) == []


def test_an_autoregression_is_found_with_what_it_saves():
    found = findings(autoregression(200, 100, 0.6), ndtr)
    assert found[0].what == "neighbours along channels correlate"
    assert found[0].bits == pytest.approx(-math.log2(1 - 0.36) / 2, rel=0.05)
    assert str(found[0]) == f"neighbours along channels correlate ({found[0].bits:.2g} bit)"


def test_low_rank_is_found_on_vectors_that_it_was_not_fitted_to():
    weights = gaussian(400, 4, seed=1) @ gaussian(4, 60, seed=2) / 2 + 0.5 * gaussian(400, 60, seed=3)
    weights /= weights.std()
    found = {each.what: each.bits for each in findings(weights[:, :, None], ndtr)}
    values = np.linalg.eigvalsh(np.corrcoef(weights.T))
    true = -np.log2(values).sum() / 2 / 60
    assert 0.6 * true < found["channels correlate"] < 1.05 * true


def test_scales_that_go_on_are_found_and_scales_at_random_are_a_density():
    scales = np.repeat(np.exp(gaussian(300, 10, seed=4)), 20, axis=1)
    weights = (scales * gaussian(300, 200, seed=5))[:, :, None]
    weights /= weights.std()
    assert "scales change along channels" in [each.what for each in findings(weights, None)]
    mixed = np.random.default_rng(6).permutation(weights.reshape(-1)).reshape(weights.shape)
    assert [each.what for each in findings(mixed, ndtr)] == ["the density differs"]


def test_the_excess_of_a_density_is_its_divergence():
    laplace = np.random.default_rng(0).laplace(size=16_384) / math.sqrt(2)
    # D(Laplace || Gaussian) of one variance: the difference of their entropies
    divergence = (math.log2(2 * math.pi * math.e) - math.log2(2 * math.e**2)) / 2
    assert 0.7 * divergence < excess_of_density(laplace, ndtr) < divergence  # cells see no tails
    assert excess_of_density(gaussian(16_384), ndtr) == 0.0
    assert excess_of_density(gaussian(20), ndtr) == 0.0


def test_zeros_that_go_by_rows_are_found():
    rng = np.random.default_rng(0)
    shares = np.where(np.arange(200) % 2, 0.99, 0.5)
    places = rng.random((200, 100)) < shares[:, None]
    whole, dense, sparse = (-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in (0.745, 0.5, 0.99))
    assert excess_of_zeros(places) == pytest.approx(whole - (dense + sparse) / 2, rel=0.1)
    assert excess_of_zeros(rng.random((200, 100)) < 0.9) == 0.0


def test_chance_correlations_save_nothing():
    for count, length in ((100, 50), (50, 200)):
        vectors = gaussian(count, length)
        assert abs(bits_of_correlations(vectors.T @ vectors / count, count)) < 3 / count
