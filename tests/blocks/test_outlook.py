"""Histograms of volumes against the volumes themselves, one by one."""

import numpy as np
import pytest

from waterfill.compression.budget import Budget
from waterfill.compression.rate_model import OCTAVE, Volumes
from waterfill.theory.waterfilling import Rectangles

HALF = 0.5 / OCTAVE
"""Octaves from the middle of a bin to its end."""
VALUES = np.exp(np.random.default_rng(0).normal(-8, 4, 5000))
LEVELS = [1e-9, 1e-5, 3e-4, 0.01, 1.0]


def open_at(level):
    return int((level * 2**-HALF < VALUES).sum())


@pytest.mark.parametrize("level", LEVELS)
def test_rate_and_distortion_are_those_of_the_rectangles(level):
    exact, found = Rectangles(VALUES), Volumes.of(VALUES.reshape(50, 100))
    assert found.number == exact.volumes.size
    assert abs(found.rate(level) - exact.rate(level)) <= open_at(level) * HALF / 2 + 1e-9
    assert found.distortion(level) == pytest.approx(exact.distortion(level), rel=2**HALF - 1)


@pytest.mark.parametrize("level", LEVELS)
def test_the_forecast_is_half_a_logarithm_of_each(level):
    expected = float(np.log2(1 + VALUES / level).sum()) / 2
    assert abs(Volumes.of(VALUES).forecast(level) - expected) <= VALUES.size * HALF / 2
    assert Volumes.of(VALUES).level_at_forecast(expected) == pytest.approx(level, rel=2 ** (2 * HALF) - 1)


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.3, 0.9])
def test_the_rate_at_a_distortion_is_that_of_the_rectangles(share):
    exact = Rectangles(VALUES)
    expected = exact.rate_at_distortion(share * exact.total)
    found = Volumes.of(VALUES).rate_at_distortion(share * exact.total)
    assert abs(found - expected) <= open_at(exact.level_at_distortion(share * exact.total)) * 2 * HALF


def test_the_rate_is_zero_where_everything_is_full():
    assert Volumes.of(VALUES).rate_at_distortion(2 * VALUES.sum()) == 0.0
    assert Volumes.none().rate_at_distortion(1.0) == 0.0
    assert Volumes.none().forecast(1.0) == 0.0


def test_products_are_all_products():
    random = np.random.default_rng(1)
    rows, columns = np.exp(random.normal(-3, 3, 40)), np.exp(random.normal(0, 2, 70))
    rows[3], columns[5] = 0.0, 0.0
    found, exact = Volumes.products(rows, columns), Volumes.of(np.outer(rows, columns))
    assert found.number == exact.number == 39 * 69
    for level in (1e-6, 1e-3, 0.1, 1.0):
        assert abs(found.rate(level) - exact.rate(level)) <= exact.number * 2 * HALF / 2
        assert found.distortion(level) == pytest.approx(exact.distortion(level), rel=2 ** (2 * HALF) - 1)
        assert abs(found.forecast(level) - exact.forecast(level)) <= exact.number * 2 * HALF / 2
    below, nearly = np.cumsum(exact.counts), np.cumsum(found.counts)
    assert np.all(below <= nearly)
    assert np.all(below[1:] >= nearly[:-1]), "no product is farther than the next bin"


def test_products_with_nothing_are_nothing():
    assert Volumes.products(np.zeros(3), np.ones(4)).number == 0
    assert Volumes.products(np.ones(3), np.zeros(0)).number == 0


def test_times_and_sums_and_scales():
    once, thrice = Volumes.of(VALUES), Volumes.of(VALUES, times=3.0)
    assert np.array_equal(thrice.counts, (once + once + once).counts)
    assert np.array_equal(Volumes.products(VALUES[:9], VALUES[:5], 2.0).counts,
                          2 * Volumes.products(VALUES[:9], VALUES[:5]).counts)  # fmt: skip
    assert once.scaled(8.0).rate(8e-5) == pytest.approx(once.rate(1e-5))
    assert once.scaled(2**-3.5).distortion(2**-3.5 * 1e-5) == pytest.approx(2**-3.5 * once.distortion(1e-5))


def test_extreme_volumes_stay_at_the_ends():
    found = Volumes.of(np.array([1e-300, 1e300, 1.0]))
    assert found.number == 3
    assert np.isfinite([found.rate(1e-3), found.distortion(1e-3), found.forecast(1e-3)]).all()


# Budgets


def test_a_level_is_where_what_is_left_fits():
    volumes = {"a": Volumes.of(VALUES), "b": Volumes.of(VALUES * 4)}
    budget = Budget(40_000.0, dict(volumes), {})
    level = budget.level()
    taken = sum(each.forecast(level) for each in volumes.values())
    beside = 2 * 8 * 300
    assert taken == pytest.approx(40_000 * (1 - 0.003) - beside, rel=1e-3)
    budget.pilot(1100.0, 1000.0)
    assert budget.level() > level, "codes take more than was foreseen"


def test_groups_teach_the_ratio_and_the_rest_gets_what_is_left():
    volumes = {name: Volumes.of(VALUES) for name in "abc"}
    budget = Budget(60_000.0, dict(volumes), dict.fromkeys("abc", 10))
    for name in "ab":
        level = budget.level()
        matrices = 1.07 * volumes[name].forecast(level)
        budget.done(name, level, matrices, matrices + 5000)
    assert list(budget.volumes) == ["c"]
    assert budget.ratio == pytest.approx(1.07)
    level = budget.level()
    assert 1.07 * volumes["c"].forecast(level) + 5000 == pytest.approx(budget.bits, rel=0.01)


def test_with_nothing_left_the_level_is_the_highest():
    budget = Budget(10.0, {"a": Volumes.of(VALUES)}, {})
    assert Volumes.of(VALUES).forecast(budget.level()) <= 1.01


def test_what_is_stored_without_loss_is_not_shared_out():
    volumes = {"a": Volumes.of(VALUES), "b": Volumes.of(VALUES)}
    budget = Budget(90_000.0, dict(volumes), {"a": 10}, {"a": 20_000.0, "b": 30_000.0})
    level = budget.level()
    taken = sum(each.forecast(level) for each in volumes.values())
    assert taken + 50_000 + 2 * 2400 + 90 == pytest.approx(90_000 * (1 - 0.003), rel=1e-3)
    budget.done("a", level, volumes["a"].forecast(level), volumes["a"].forecast(level) + 20_000 + 2490)
    assert budget.fixed == pytest.approx(1.0)
    assert budget.level() == pytest.approx(level, rel=0.05)
