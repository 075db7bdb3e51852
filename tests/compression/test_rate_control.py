"""Levels that spend a size segment by segment, and the search for a level on functions that are known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.compression.rate_control import (
    LOWEST_LOG2,
    MORE_TRIES,
    TRIES,
    ConstantLevel,
    SegmentForecast,
    SpendBudget,
    Trial,
    lowest_within,
)
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.errors import TargetError

VALUES = np.exp(np.random.default_rng(0).normal(-8, 4, 5000))

# Sizes that are spent ----------------------------------------------------------------------------------------------


def budget_of(bits, forecasts):
    """A budget of payloads alone."""
    return SpendBudget(bits / 8, bits, dict(forecasts))


def test_a_level_is_where_what_is_left_fits():
    variances = {"a": VarianceHistogram.of(VALUES), "b": VarianceHistogram.of(VALUES * 4)}
    budget = budget_of(40_000.0, {name: SegmentForecast({"w": each}) for name, each in variances.items()})
    level = budget.level("a")
    taken = sum(each.forecast(level) for each in variances.values())
    beside = 2 * 8 * 300
    assert taken == pytest.approx(40_000 * (1 - 0.003) - beside, rel=1e-3)
    budget.pilot(1100.0, 1000.0)
    assert budget.level("a") > level, "codes take more than was foreseen"


def test_segments_teach_the_ratio_and_the_rest_gets_what_is_left():
    variances = VarianceHistogram.of(VALUES)
    budget = budget_of(60_000.0, {name: SegmentForecast({"w": variances}, 10) for name in "abc"})
    for name in "ab":
        level = budget.level(name)
        matrices = 1.07 * variances.forecast(level)
        assert budget.accepts(name, level, matrices, round((matrices + 5000) / 8))
    assert list(budget.forecasts) == ["c"]
    assert budget.ratio == pytest.approx(1.07)
    level = budget.level("c")
    assert 1.07 * variances.forecast(level) + 5000 == pytest.approx(budget.bits, rel=0.01)


def test_with_nothing_left_the_level_is_the_highest():
    variances = VarianceHistogram.of(VALUES)
    assert variances.forecast(budget_of(10.0, {"a": SegmentForecast({"w": variances})}).level("a")) <= 1.01


def test_what_is_stored_without_loss_is_not_shared_out():
    variances = VarianceHistogram.of(VALUES)
    forecasts = {
        "a": SegmentForecast({"w": variances}, 10, 20_000.0),
        "b": SegmentForecast({"w": variances}, 0, 30_000.0),
    }
    budget = budget_of(90_000.0, forecasts)
    level = budget.level("a")
    taken = 2 * variances.forecast(level)
    assert taken + 50_000 + 2 * 2400 + 90 == pytest.approx(90_000 * (1 - 0.003), rel=1e-3)
    bits = variances.forecast(level)
    assert budget.accepts("a", level, bits, round((bits + 20_000 + 2490) / 8))
    assert budget.fixed == pytest.approx(1.0, abs=0.002)  # payloads are whole bytes
    assert budget.level("b") == pytest.approx(level, rel=0.05)


def spent(budget, name, size):
    """Sizes that a segment is quantized to until one is accepted; `size` gives the bytes at a level."""
    sizes = []
    for _ in range(TRIES + MORE_TRIES + 1):
        level = budget.level(name)
        sizes.append(size(level))
        if budget.accepts(name, level, 8.0 * sizes[-1], sizes[-1]):
            return sizes
    raise AssertionError("the last segment was never accepted")


def test_the_last_segment_with_matrices_is_quantized_until_all_is_spent():
    variances = VarianceHistogram.of(VALUES)
    budget = budget_of(40_000.0, {"a": SegmentForecast({"w": variances}), "tail": SegmentForecast({})})
    sizes = spent(budget, "a", lambda level: round(1.1 * variances.forecast(level) / 8) + 200)
    left = 5000 - 300  # for what is behind it
    assert len(sizes) > 1 and sizes[0] > left
    assert 0.99 * left <= sizes[-1] <= left


def test_a_size_that_the_last_segment_cannot_meet_is_below_the_floor():
    budget = budget_of(8_000.0, {"a": SegmentForecast({"w": VarianceHistogram.of(VALUES)})})
    with pytest.raises(TargetError, match=r"Target of 1000 bytes is below the floor of about 1500 bytes"):
        spent(budget, "a", lambda _: 1500)


def test_one_level_for_all_segments():
    schedule = ConstantLevel(0.25)
    assert [schedule.level(name) for name in "ab"] == [0.25, 0.25]
    assert schedule.accepts("a", 0.25, 1e9, 1 << 40)


# The search -----------------------------------------------------------------------------------------------------------


class Counting:
    """A quantity of a level, with every level that was tried."""

    def __init__(self, function):
        self.function = function
        self.levels = []

    def __call__(self, level):
        assert math.isfinite(level)
        self.levels.append(level)
        return Trial(level, float(self.function(level)), f"made at {level}")


def search(function, limit, first=0.0, slope=-0.5, within=0.01, precision=1e-4, **options):
    measure = Counting(function)
    found = lowest_within(measure, limit, first, slope=slope, within=within, precision=precision, **options)
    assert found.level in measure.levels
    assert found.made == f"made at {found.level}"
    assert found.value <= limit
    return found, measure.levels


def size(level):
    """Like the size of a file: it falls by half a bit a weight an octave, down to a floor."""
    return 100 + 1000 * np.log2(1 + 2.0 ** (-level / 2))


@given(st.floats(110, 20_000), st.floats(-40, 20))
@settings(max_examples=200, deadline=None)
def test_a_smooth_quantity_is_met_within_its_tolerance(limit, first):
    found, levels = search(size, limit, first)
    assert found.value >= limit * 0.99
    assert len(levels) <= 20


@given(st.floats(1e-6, 1e3), st.floats(-30, 20), st.floats(-3, -0.1))
@settings(max_examples=200, deadline=None)
def test_a_wrong_guess_of_the_slope_does_no_harm(limit, first, slope):
    found, levels = search(lambda level: 2.0 ** (-level), limit, first, slope)
    assert found.value >= limit * 0.99
    assert len(levels) <= 24


@given(st.floats(200, 20_000), st.floats(-30, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_noise_never_lifts_the_result_above_the_limit(limit, first, seed):
    rng = np.random.default_rng(seed)
    found, levels = search(lambda level: size(level) * rng.uniform(0.99, 1.01), limit, first)
    assert found.value >= limit * 0.96
    assert len(levels) <= 25


@given(st.floats(1, 30), st.floats(-30, 20), st.floats(0.3, 3))
@settings(max_examples=200, deadline=None)
def test_of_a_staircase_the_highest_stair_below_the_limit_is_found(limit, first, width):
    def steps(level):
        return max(1, 20 - math.floor(level / width))

    found, levels = search(steps, limit, first, precision=0.01, span=(-100, 100))
    assert found.value + 1 > limit
    assert len(levels) <= 25


def test_a_quantity_that_jumps_to_zero_or_below():
    found, _ = search(lambda level: 1.0 if level < 3 else 0.0, 0.5, precision=0.01)
    assert 3 <= found.level <= 3.01
    found, _ = search(lambda level: 0.2 if level < 3 else -0.1, 0.1, precision=0.01)
    assert 3 <= found.level <= 3.01


def test_a_quantity_that_is_infinite_below_some_level():
    found, _ = search(lambda level: math.inf if level < 3 else 2.0**-level, 0.5, first=-5, precision=0.01)
    assert 3 <= found.level <= 3.01
    found, _ = search(lambda level: math.inf if level < -3 else 2.0**-level, 0.5, first=-5)
    assert found.value >= 0.495


def test_the_floor_is_told_when_the_limit_is_below_it():
    for first in (-40.0, 0.0, 24.0):
        with pytest.raises(TargetError) as caught:
            search(size, 99, first)
        assert caught.value.args == (pytest.approx(size(24), rel=1e-9),)
    with pytest.raises(TargetError) as caught:
        search(lambda _: 5.0, 1.0, span=(-1000, 1000), tries=3)
    assert caught.value.args == (5.0,)


@given(st.floats(-100, 100), st.floats(1, 1e6), st.floats(-20, 0), st.floats(0, 20))
@settings(max_examples=200, deadline=None)
def test_no_level_is_outside_the_span(first, limit, low, high):
    measure = Counting(size)
    try:
        found = lowest_within(measure, limit, first, slope=-0.5, within=0.01, precision=1e-4, span=(low, high))
    except TargetError as error:
        assert size(high) > limit
        assert error.args[0] == size(high)
    else:
        assert found.value <= limit
        assert found.value >= 0.99 * limit or found.level == low
    assert all(low <= level <= high for level in measure.levels)
    assert len(measure.levels) <= 25


def test_the_lowest_level_is_enough_when_everything_fits():
    found, levels = search(size, 1e9, 0.0)
    assert found.level == LOWEST_LOG2
    assert len(levels) < 16


def test_the_number_of_tries_is_kept():
    found, levels = search(lambda level: size(level) * (2 if level < 1.2345 else 1), 1000, precision=0.0, tries=7)
    assert len(levels) <= 8
    assert found.value <= 1000
