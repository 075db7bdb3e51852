"""Sources of limits: which is chosen, and the components that it gives under forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from waterfill.compression.limit_components import Components
from waterfill.compression.limit_models import limit_source
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.compression.source_structure import structured
from waterfill.importance import DiagonalForm, KroneckerForm
from waterfill.records import Layout, Weight
from waterfill.theory.gaussian_mixture import GaussianMixture
from waterfill.theory.scalar_rate import ScalarSource
from waterfill.theory.scaled_source import fit_scaled_source
from waterfill.theory.waterfilling import Rectangles

LUMPS = ScalarSource(lumps=GaussianMixture((0.5, 0.5), (-1.0, 1.0), (0.1, 0.1)))


def source_of(values):
    matrix = values.astype(np.float32)
    weight = Weight("w", matrix, Layout(matrix.shape))
    return limit_source(weight, fit_scaled_source(matrix[:, :, None]), rows=True), matrix


def name_of(values):
    return source_of(values)[0].summary.name


def rate(values, form, distortion):
    """Bits a weight at a distortion a weight."""
    source, matrix = source_of(values)
    return source.components(matrix, form, 1.0).rate_at_distortion(distortion * matrix.size) / matrix.size


def autoregression(length, coefficient):
    places = np.arange(length)
    return coefficient ** np.abs(places[:, None] - places)


def test_every_kind_of_weights_has_its_source():
    rng = np.random.default_rng(0)
    shape = (128, 96)
    assert name_of(rng.normal(size=shape)) == "Gaussian"
    assert name_of(rng.choice((-1.0, 0.0, 2.0), shape)) == "3 values"
    assert name_of(rng.choice((-1.0, 1.0), shape) + 0.05 * rng.normal(size=shape)) == "2 lumps"
    assert name_of(rng.choice((0.2, 2.0), shape) * rng.normal(size=shape)) == "2 scales at random"
    sparse, _ = source_of(rng.normal(size=shape) * (rng.random(shape) < 0.2))
    assert sparse.summary.name == "Gaussian, 80 % zeros" and sparse.summary.note == ""
    smooth = rng.normal(size=shape) @ np.linalg.cholesky(autoregression(96, 0.9)).T
    assert name_of(smooth) == "Gaussian, channel scales, DCT of channels"


def test_letters_far_from_zero_have_the_limit_of_those_around_it():
    letters = np.random.default_rng(9).integers(-1, 2, (64, 64)) * 0.125
    for distortion in (1e-6, 2e-3):
        expected = rate(letters + 1, None, distortion)
        assert rate(letters + 4096, None, distortion) == pytest.approx(expected)
    assert rate(letters + 1, None, 1e-9) == pytest.approx(math.log2(3), abs=0.01)


def test_zeros_that_go_by_rows_are_noted():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(100, 80)) * (rng.random((100, 80)) < np.where(np.arange(100) % 2, 0.02, 0.6)[:, None])
    source, _ = source_of(values)
    assert source.summary.note.startswith("the source lacks: places of zeros go by rows or columns (0.")


def test_a_single_zero_hides_no_structure():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(128, 96)) @ np.linalg.cholesky(autoregression(96, 0.9)).T
    values[3, 5] = 0.0
    assert name_of(values) == "Gaussian, channel scales, DCT of channels"
    pairs = rng.choice((-1.0, 1.0), (128, 96)) + 0.05 * rng.normal(size=(128, 96))
    pairs[3, 5] = 0.0
    assert rate(pairs, None, 0.0025) == pytest.approx(1.0, abs=0.05)


def test_structure_of_weights_among_zeros_is_noted():
    rng = np.random.default_rng(8)
    zeros = rng.random((128, 96)) < 0.3
    smooth = rng.normal(size=(128, 96)) @ np.linalg.cholesky(autoregression(96, 0.9)).T
    assert "neighbours along channels correlate" in source_of(np.where(zeros, 0.0, smooth))[0].summary.note
    assert "the density differs" in source_of(np.maximum(rng.normal(size=(128, 96)), 0.0))[0].summary.note
    blocks = np.kron(np.eye(4), np.ones((32, 24)))
    assert "scales change along" in source_of(blocks * rng.normal(size=(128, 96)))[0].summary.note


def test_a_turned_source_has_the_eigenvalues_of_both_covariances():
    rng = np.random.default_rng(2)
    covariance = autoregression(48, 0.9)
    values = rng.normal(size=(400, 48)) @ np.linalg.cholesky(covariance).T
    roots = rng.normal(size=(48, 60))
    prices = roots @ roots.T / 48
    root = np.linalg.cholesky(covariance)
    expected = Rectangles(np.linalg.eigvalsh(root.T @ prices @ root))
    for distortion in (0.02, 0.2):
        form = KroneckerForm(np.ones(400), prices[None])
        true = expected.rate_at_distortion(48 * distortion) / 48
        assert rate(values, form, distortion) == pytest.approx(true, abs=0.04)


def test_a_diagonal_over_columns_keeps_its_cross_terms_in_other_coordinates():
    rng = np.random.default_rng(3)
    covariance = autoregression(48, 0.9)
    values = rng.normal(size=(400, 48)) @ np.linalg.cholesky(covariance).T
    prices = np.exp(rng.normal(size=48))
    root = np.linalg.cholesky(covariance)
    expected = Rectangles(np.linalg.eigvalsh(root.T @ np.diag(prices) @ root))
    form = KroneckerForm(np.ones(400), prices[None])
    assert rate(values, form, 0.05) == pytest.approx(expected.rate_at_distortion(48 * 0.05) / 48, abs=0.04)
    diagonal = DiagonalForm(np.broadcast_to(prices, (400, 48)).astype(np.float32))
    fine = expected.rate_at_distortion(48 * 1e-4) / 48
    assert rate(values, diagonal, 1e-4) == pytest.approx(fine, abs=0.04)  # of the same determinant


def test_a_diagonal_over_rows_keeps_its_cross_terms_in_other_coordinates():
    rng = np.random.default_rng(8)
    root = np.linalg.cholesky(autoregression(96, 0.8))
    values = root @ rng.normal(size=(96, 48))
    prices = np.exp(rng.normal(size=96))
    expected = Rectangles(np.linalg.eigvalsh(root.T @ np.diag(prices) @ root))
    form = KroneckerForm(prices, np.ones((1, 48)))
    assert rate(values, form, 0.05) == pytest.approx(expected.rate_at_distortion(96 * 0.05) / 96, abs=0.04)


def test_lumps_whose_places_go_on_are_not_turned():
    """Cosines save bits, and take the lumps away, which save more."""
    rng = np.random.default_rng(0)
    signs = np.sign(rng.normal(size=(256, 64)) @ np.linalg.cholesky(autoregression(64, 0.95)).T)
    values = (signs + 0.3 * rng.normal(size=signs.shape)).astype(np.float32)
    weight = Weight("w", values, Layout(values.shape))
    assert structured(weight, fit_scaled_source(values[:, :, None]), rows=True).turns
    assert name_of(values) == "2 lumps"
    smoother = signs + rng.normal(size=signs.shape)
    assert name_of(smoother) == "Gaussian, channel scales, DCT of channels"


def test_letters_and_zeros_under_cross_terms_take_no_more_than_without():
    rng = np.random.default_rng(4)
    values = rng.normal(size=(60, 40)) * (rng.random((60, 40)) < 0.3)
    roots = rng.normal(size=(40, 50))
    prices = roots @ roots.T / 50
    crossed = KroneckerForm(np.ones(60), prices[None])
    plain = KroneckerForm(np.ones(60), np.diagonal(prices)[None].copy())
    for distortion in (1e-3, 1e-2, 0.1):
        assert 0 < rate(values, crossed, distortion) < rate(values, plain, distortion)


# Components


def test_gaussian_components_alone_are_water_filling():
    variances = np.exp2(np.random.default_rng(5).normal(size=500))
    found = Components(VarianceHistogram.of(variances))
    rectangles = Rectangles(variances)
    for distortion in (1.0, 50.0, 300.0):
        bits, level = found.at_distortion(distortion)
        assert bits == pytest.approx(rectangles.rate_at_distortion(distortion), abs=1.5)
        assert level == pytest.approx(rectangles.level_at_distortion(distortion), rel=0.03)
    assert found.at_distortion(2 * found.total) == (0.0, math.inf)


def test_components_of_several_densities_share_one_slope():
    gaussian = Components(VarianceHistogram.of(np.ones(300)))
    lumps = Components(others={LUMPS: VarianceHistogram.of(np.full(200, 4.0))})
    both = gaussian + lumps
    assert both.number == 500 and both.total == pytest.approx(300 + 200 * 4 * LUMPS.variance)
    for level in (0.3, 0.05, 1e-3):
        apart = gaussian.distortion(level) + lumps.distortion(level)
        bits = gaussian.rate(level) + lumps.rate(level)
        assert both.distortion(level) == pytest.approx(apart, rel=0.01)
        assert both.rate(level) == pytest.approx(bits, rel=0.01)
        assert both.rate_at_distortion(apart) == pytest.approx(bits, abs=0.01 * 500)
        assert both.level_at_rate(bits) == pytest.approx(level, rel=0.1)


def test_a_curve_goes_from_no_bits_to_twice_as_many():
    lumps = Components(others={LUMPS: VarianceHistogram.of(np.ones(100))})
    curve = lumps.curve(150.0)
    bits, distortions = zip(*curve, strict=True)
    assert (bits[0], bits[-1]) == (0.0, 400.0)
    assert distortions[0] == pytest.approx(lumps.total, rel=0.05)
    assert list(distortions) == sorted(distortions, reverse=True)
    assert Components().curve(3.0) == [] and Components().rate_at_distortion(1.0) == 0.0
