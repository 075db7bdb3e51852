"""The function of one weight of any density, against closed forms and the Blahut-Arimoto referee."""

from __future__ import annotations

import math

import numpy as np
import pytest

from waterfill.theory.blahut_arimoto import generalized_gaussian_density, rate_at_distortion
from waterfill.theory.gaussian_mixture import GaussianMixture
from waterfill.theory.scalar_rate import ScalarSource, scalar_rate

LEVELS = np.arange(-24, 8, 0.01)


def rate(source, distortion):
    """`max_mu L(mu) - s D`."""
    slopes = np.exp2(-LEVELS) / math.log(4)
    return float((scalar_rate(source).lagrangian(LEVELS) - distortion * slopes).max())


def test_a_gaussian_has_the_rate_of_its_variance():
    source = ScalarSource(shape=2.0)
    assert source.variance == pytest.approx(0.5)
    for share in (0.9, 0.5, 0.1, 1e-2, 1e-3):
        assert rate(source, share * 0.5) == pytest.approx(math.log2(1 / share) / 2, abs=3e-3)
    assert rate(source, 0.5) == pytest.approx(0.0, abs=1e-3)


REFEREE = {1.0: (0.28990, 1.55713, 3.21754), 0.7: (0.20456, 1.37785, 3.02955)}
"""`rate_at_distortion` of these shapes at .6, .1 and .01 of the variance; heavy tails take it seconds."""


@pytest.mark.parametrize("shape", REFEREE)
def test_generalized_gaussians_have_the_rate_of_the_referee(shape):
    source = ScalarSource(shape=shape)
    found = [rate(source, share * source.variance) for share in (0.6, 0.1, 0.01)]
    assert found == pytest.approx(REFEREE[shape], abs=5e-3)


def test_the_referee_says_what_is_written_here():
    assert rate_at_distortion(generalized_gaussian_density(1.0), 0.1).rate == pytest.approx(REFEREE[1.0][1], abs=1e-5)


def test_letters_have_their_entropy_without_error_and_the_binary_function_with_it():
    signs = ScalarSource((-1.0, 1.0), (0.5, 0.5))
    assert signs.variance == 1.0 and signs.spread_share == 0.0
    assert rate(signs, 1e-6) == pytest.approx(1.0, abs=1e-3)
    biased = ScalarSource((0.0, 1.0), (0.9, 0.1))
    assert biased.variance == pytest.approx(0.09)
    assert rate(biased, 1e-6) == pytest.approx(-0.9 * math.log2(0.9) - 0.1 * math.log2(0.1), abs=2e-3)


def test_zeros_at_unknown_places_cost_their_places_at_high_rate():
    source = ScalarSource((0.0,), (0.8,), 2.0)
    assert source.variance == pytest.approx(0.1)
    distortion = 1e-5
    places = -0.8 * math.log2(0.8) - 0.2 * math.log2(0.2)
    expected = places + 0.2 * math.log2(0.5 / (distortion / 0.2)) / 2
    assert expected - 0.05 < rate(source, distortion) < expected  # values near zero look like zeros
    assert rate(source, 0.1) == pytest.approx(0.0, abs=1e-3)


def test_below_the_table_the_high_rate_slope_goes_on():
    source = ScalarSource((0.0,), (0.5,), 1.0)
    found = scalar_rate(source)
    low = found.highest - found.lagrangians.size / 2
    deep = found.lagrangian(np.array([low - 10, low - 30]))
    assert deep[1] - deep[0] == pytest.approx(20 * 0.5 / 2)


def test_lumps_are_told_apart_at_a_bit_and_cost_their_spread_below_it():
    lumps = ScalarSource(lumps=GaussianMixture((0.5, 0.5), (-1.0, 1.0), (0.01, 0.01)))
    assert lumps.variance == pytest.approx(1.0001)
    assert rate(lumps, 2e-3) == pytest.approx(1.0, abs=0.006)
    assert rate(lumps, 1e-6) == pytest.approx(1 + math.log2(1e-4 / 1e-6) / 2, abs=0.01)


def test_lumps_narrower_than_any_table_cost_their_spread_by_the_shannon_bound():
    lumps = ScalarSource(lumps=GaussianMixture((0.5, 0.5), (-1.0, 1.0), (1e-7, 1e-7)))
    assert rate(lumps, 2.0**-23) == pytest.approx(1.0, abs=0.01)
    fine = scalar_rate(lumps).lagrangian(np.array([-60.0]))
    assert fine == pytest.approx(1 + math.log2(1e-14 * 2.0**60) / 2 + 1 / math.log(4), abs=1e-6)


@pytest.mark.parametrize("share", [1e-2, 1e-3, 1e-6])
def test_seldom_values_take_no_more_than_their_entropy(share):
    """At levels far above its variance such a weight takes bits: above the table L is no more than its chord."""
    seldom = ScalarSource((0.0, 1.0), (1 - share, share))
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert 0 <= rate(seldom, 1e-4 * seldom.variance) < entropy + 3e-4


def test_masses_sum_to_one_and_letters_are_at_their_places():
    source = ScalarSource((0.0,), (0.25,), 1.0)
    nodes = np.arange(-200, 201) * 0.125
    masses = source.masses(nodes, 0.125)
    assert masses.sum() == pytest.approx(1.0)
    assert masses[200] == pytest.approx(0.25 + 0.75 * (1 - math.exp(-0.0625)), abs=1e-6)
    assert source.cumulative(np.array([0.0, 50.0])) == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize("share", [0.5, 1e-3, 1e-4])
def test_letters_take_no_more_than_their_entropy_at_any_level(share):
    apart = 1 / math.sqrt(share * (1 - share))
    source = ScalarSource((-share * apart, (1 - share) * apart), (1 - share, share))
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    found = scalar_rate(source).lagrangian(np.linspace(-40.0, 20.0, 241))
    assert found.max() <= entropy + 1e-12
    assert found.max() == pytest.approx(entropy)
