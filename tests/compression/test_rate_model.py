"""Histograms of variances against the variances themselves, one by one, and how few drafts a search takes with them."""

import numpy as np
import pytest
import torch
from torch import nn

import waterfill
from waterfill.compression.rate_model import OCTAVE, VarianceHistogram
from waterfill.quantize import Feedback
from waterfill.theory.waterfilling import Rectangles

HALF = 0.5 / OCTAVE
"""Octaves from the middle of a bin to its end."""
VALUES = np.exp(np.random.default_rng(0).normal(-8, 4, 5000))
LEVELS = [1e-9, 1e-5, 3e-4, 0.01, 1.0]


def open_at(level):
    return int((level * 2**-HALF < VALUES).sum())


@pytest.mark.parametrize("level", LEVELS)
def test_rate_and_distortion_are_those_of_the_rectangles(level):
    exact, found = Rectangles(VALUES), VarianceHistogram.of(VALUES.reshape(50, 100))
    assert found.number == exact.volumes.size
    assert abs(found.rate(level) - exact.rate(level)) <= open_at(level) * HALF / 2 + 1e-9
    assert found.distortion(level) == pytest.approx(exact.distortion(level), rel=2**HALF - 1)


@pytest.mark.parametrize("level", LEVELS)
def test_the_forecast_is_half_a_logarithm_of_each(level):
    expected = float(np.log2(1 + VALUES / level).sum()) / 2
    assert abs(VarianceHistogram.of(VALUES).forecast(level) - expected) <= VALUES.size * HALF / 2
    assert VarianceHistogram.of(VALUES).level_at_forecast(expected) == pytest.approx(level, rel=2 ** (2 * HALF) - 1)


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.3, 0.9])
def test_the_rate_at_a_distortion_is_that_of_the_rectangles(share):
    exact = Rectangles(VALUES)
    expected = exact.rate_at_distortion(share * exact.total)
    found, level = VarianceHistogram.of(VALUES).at_distortion(share * exact.total)
    assert abs(found - expected) <= open_at(exact.level_at_distortion(share * exact.total)) * 2 * HALF
    assert level == pytest.approx(exact.level_at_distortion(share * exact.total), rel=2 * HALF)


def test_the_rate_is_zero_where_everything_is_full():
    assert VarianceHistogram.of(VALUES).at_distortion(2 * VALUES.sum())[0] == 0.0
    assert VarianceHistogram.none().at_distortion(1.0)[0] == 0.0
    assert VarianceHistogram.none().forecast(1.0) == 0.0


def test_products_are_all_products():
    random = np.random.default_rng(1)
    rows, columns = np.exp(random.normal(-3, 3, 40)), np.exp(random.normal(0, 2, 70))
    rows[3], columns[5] = 0.0, 0.0
    found, exact = VarianceHistogram.of_products(rows, columns), VarianceHistogram.of(np.outer(rows, columns))
    assert found.number == exact.number == 39 * 69
    for level in (1e-6, 1e-3, 0.1, 1.0):
        assert abs(found.rate(level) - exact.rate(level)) <= exact.number * 2 * HALF / 2
        assert found.distortion(level) == pytest.approx(exact.distortion(level), rel=2 ** (2 * HALF) - 1)
        assert abs(found.forecast(level) - exact.forecast(level)) <= exact.number * 2 * HALF / 2
    first = min(found.first, exact.first)
    below, nearly = (
        np.cumsum(np.concatenate([np.zeros(h.first - first), h.counts, np.zeros(9)])) for h in (exact, found)
    )
    size = min(below.size, nearly.size)
    below, nearly = below[:size], nearly[:size]
    assert np.all(below[1:] >= nearly[:-1]) and np.all(nearly[1:] >= below[:-1]), (
        "no product is farther than the next bin"
    )


def test_products_with_nothing_are_nothing():
    assert VarianceHistogram.of_products(np.zeros(3), np.ones(4)).number == 0
    assert VarianceHistogram.of_products(np.ones(3), np.zeros(0)).number == 0


def test_times_and_sums_and_scales():
    once, thrice = VarianceHistogram.of(VALUES), VarianceHistogram.of(VALUES, times=3.0)
    assert np.array_equal(thrice.counts, (once + once + once).counts)
    assert np.array_equal(VarianceHistogram.of_products(VALUES[:9], VALUES[:5], 2.0).counts,
                          2 * VarianceHistogram.of_products(VALUES[:9], VALUES[:5]).counts)  # fmt: skip
    assert once.scaled(8.0).rate(8e-5) == pytest.approx(once.rate(1e-5))
    assert once.scaled(2**-3.5).distortion(2**-3.5 * 1e-5) == pytest.approx(2**-3.5 * once.distortion(1e-5))


def test_extreme_variances_stay_at_the_ends():
    found = VarianceHistogram.of(np.array([1e-300, 1e300, 1.0]))
    assert found.number == 3
    assert np.isfinite([found.rate(1e-3), found.distortion(1e-3), found.forecast(1e-3)]).all()


def test_bits_are_those_of_the_variances_over_many_octaves():
    variances = 2.0 ** np.random.default_rng(0).normal(size=(3, 500), scale=4)
    forecast = sum((VarianceHistogram.of(part) for part in variances), VarianceHistogram.none())
    for level in (-25.3, -10.0, 0.1, 12.0):
        bits = 0.5 * np.log2(1 + variances / 2.0**level).sum()
        assert np.log2(forecast.forecast(2.0**level)) == pytest.approx(np.log2(bits), abs=0.02)
        found = forecast.level_at_forecast(forecast.forecast(2.0**level))
        assert np.log2(found) == pytest.approx(level, abs=0.01)
    bits = [forecast.forecast(2.0**level) for level in range(-30, 21)]
    assert (np.diff(bits) < 0).all()


@pytest.mark.parametrize("bits", [100.0, 5.0])
def test_no_components_have_some_level(bits):
    assert 0 < VarianceHistogram.none().level_at_forecast(bits) < np.inf


@pytest.mark.parametrize("rate", [1.5, 4.0])
def test_a_size_takes_few_drafts(rate):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    batches = [(torch.randn(64, 24), torch.randint(0, 10, (64,))) for _ in range(2)]

    class Counting:
        crossed = True
        levels: list[float] = []  # noqa: RUF012

        def quantize(self, weight, form, water_level):
            self.levels.append(water_level)
            return Feedback(4).quantize(weight, form, water_level)

    Counting.levels.clear()
    result = waterfill.compress(net, batches, rate=rate, effort="fast", quantizers=[Counting()])
    assert 0.99 * rate <= result.rate <= rate
    assert result.importance.startswith("kronecker")
    assert len(set(Counting.levels)) <= 20  # so small a file is another size whenever it is finished
