"""The isotropic codebook: its channel, its excess over reverse water-filling, and the worst of all spectra."""

import numpy as np
import pytest

from waterfill.theory.universal_code import (
    codebook_power,
    excess_at_level,
    universal_distortion,
    universal_excess,
    universal_rate,
    wiener_gains,
    worst_excess,
)
from waterfill.theory.waterfilling import Rectangles


def spectrum(seed, count=12, decades=6):
    return 10 ** np.random.default_rng(seed).uniform(-decades / 2, decades / 2, count)


@pytest.mark.parametrize("noise", [0.01, 1.0, 30.0])
def test_the_channel_has_the_rate_and_the_distortion(noise):
    g = spectrum(1, 5)
    m, s = wiener_gains(g, noise), codebook_power(g, noise)
    rng = np.random.default_rng(2)
    u, z = rng.normal(size=(2, 200_000, g.size))
    u_hat = m * u + np.sqrt(s * (1 - m)) * z
    ratio = (u_hat**2 / s - z**2 - np.log(1 - m)).sum(axis=1) / (2 * np.log(2))  # log2 p(u_hat | u) / q(u_hat)
    cost = (g * (u - u_hat) ** 2).sum(axis=1)
    for values, wanted in ((ratio, universal_rate(g, noise)), (cost, universal_distortion(g, noise))):
        assert abs(values.mean() - wanted) < 4 * values.std() / np.sqrt(values.size)


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_no_other_power_of_codewords_has_a_lower_rate(factor):
    g, noise = spectrum(3), 1.0
    distortion, s = universal_distortion(g, noise), codebook_power(g, noise)
    assert rate_at(g, distortion, s) == pytest.approx(universal_rate(g, noise), rel=1e-9)
    assert rate_at(g, distortion, min(1.0, factor * s)) > universal_rate(g, noise)


def rate_at(g, distortion, s):
    """The least rate of codewords of power s at a distortion: the maximum over theta of the dual function."""
    thetas = np.geomspace(1e-6, 1e4, 400_001)[:, None]
    x = g / thetas
    dual = (np.log(1 + x * s) / 2 + x / 2 / (1 + x * s)).sum(axis=1) - distortion / (2 * thetas[:, 0])
    return dual.max() / np.log(2)


@pytest.mark.parametrize("seed", range(40))
def test_no_spectrum_loses_more_than_the_worst(seed):
    g = spectrum(seed, 1 + seed % 7)
    for noise in (1e-4, 0.03, 1.0, 20.0):
        assert -1e-12 < universal_excess(g, noise) < worst_excess()


def test_the_tangent_bounds_the_excess_and_touches_it():
    g = spectrum(4)
    level = Rectangles(g).level_at_distortion(universal_distortion(g, 1.0))
    assert excess_at_level(g, level).mean() == pytest.approx(universal_excess(g, 1.0), rel=1e-9)
    assert min(excess_at_level(g, c).mean() for c in (0.5 * level, 2 * level)) > universal_excess(g, 1.0)


def test_the_worst_spectrum_is_nearly_there():
    low = 0.3476  # with kappa = 1, beside volumes without end
    found = max(universal_excess([low] * (100 - k) + [1e9] * k, 1.0) for k in range(1, 100))
    assert worst_excess() - 0.0003 < found < worst_excess()


def test_equal_volumes_lose_nothing():
    assert universal_excess([2.0] * 5, 0.7) == pytest.approx(0, abs=1e-12)


def test_at_high_rate_nothing_is_lost():
    g = spectrum(5, decades=3)
    assert universal_excess(g, 1e-3 * g.min()) < 1e-3
