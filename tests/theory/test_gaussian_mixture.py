"""Normal lumps: fits of what was drawn from some, and their density."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from waterfill.theory.gaussian_mixture import GaussianMixture, fit_gaussian_mixture


def test_two_lumps_are_found_where_they_are():
    rng = np.random.default_rng(0)
    values = np.where(rng.random(20_000) < 0.3, -2.0, 1.0) + 0.1 * rng.normal(size=20_000)
    found = fit_gaussian_mixture(values)
    order = np.argsort(found.means)
    assert np.array(found.shares)[order] == pytest.approx([0.3, 0.7], abs=0.01)
    assert np.array(found.means)[order] == pytest.approx([-2, 1], abs=0.01)
    assert np.array(found.deviations)[order] == pytest.approx([0.1, 0.1], abs=0.005)
    assert found.is_scattered and found.name == "2 lumps" and found.parameters == 5


def test_two_scales_at_random_are_found_in_one_place():
    rng = np.random.default_rng(1)
    values = np.where(rng.random(40_000) < 0.5, 0.3, 2.0) * rng.normal(size=40_000)
    found = fit_gaussian_mixture(values)
    assert not found.is_scattered and found.name == "2 scales at random"
    assert sorted(found.deviations) == pytest.approx([0.3, 2.0], rel=0.05)
    assert found.second_moment == pytest.approx(np.square(values).mean(), rel=0.01)


def test_density_and_probability_are_those_of_scipy():
    mixture = GaussianMixture((0.2, 0.8), (-1.0, 0.5), (0.3, 2.0))
    places = np.linspace(-6, 6, 25)
    density = 0.2 * norm.pdf(places, -1, 0.3) + 0.8 * norm.pdf(places, 0.5, 2)
    np.testing.assert_allclose(np.exp(mixture.log_density(places)), density, rtol=1e-12)
    below = 0.2 * norm.cdf(places, -1, 0.3) + 0.8 * norm.cdf(places, 0.5, 2)
    np.testing.assert_allclose(mixture.cumulative(places), below, rtol=1e-12)
    fine = np.linspace(-20, 20, 200_001)
    surprise = -mixture.log_density(fine) / np.log(2) * np.exp(mixture.log_density(fine))
    assert mixture.entropy == pytest.approx(surprise.sum() * (fine[1] - fine[0]), abs=5e-3)
    assert mixture.mean == pytest.approx(0.2) and mixture.reach == pytest.approx(0.5 + 5.7 * 2)


def test_lumps_of_no_width_have_the_least_one():
    values = np.repeat([-1.0, 1.0], 500)
    found = fit_gaussian_mixture(values + 1e-9 * np.arange(1000))
    assert min(found.deviations) > 1e-5
