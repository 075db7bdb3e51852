import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.quantize import kernels, spread

LENGTHS = spread.lengths(4, True)


@st.composite
def cases(draw):
    """Random axes, values in steps, importances (constant or not) and exponents that leave the tables on both sides."""
    shape = tuple(draw(st.integers(1, 5)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = (rng.laplace(size=shape) * draw(st.sampled_from([0.3, 2.0, 50.0]))).astype(np.float32)
    importance = rng.gamma(0.5, size=shape if draw(st.booleans()) else (1, 1, 1)).astype(np.float32)
    exponents = tuple(rng.integers(-30, 60, n) for n in shape)
    return x, importance, exponents


def magnitudes_of(x):
    return np.minimum(np.abs(np.rint(x)), 255).astype(np.uint8)


def places(shape):
    return list(np.ndindex(*shape))


def exponent_of(exponents, place):
    return sum(int(e[i]) for e, i in zip(exponents, place, strict=True))


def bits(exponent, magnitude):
    return LENGTHS[min(max(exponent, 0), LENGTHS.shape[0] - 1), magnitude]


@given(cases(), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_axis_costs_are_sums_over_all_other_places(case, axis):
    x, _, exponents = case
    magnitudes, offsets = magnitudes_of(x), np.array([-40, -2, 0, 4])
    expected = np.zeros((x.shape[axis], offsets.size))
    for place in places(x.shape):
        for k, offset in enumerate(offsets):
            expected[place[axis], k] += bits(exponent_of(exponents, place) + offset, magnitudes[place])
    found = kernels.axis_costs(magnitudes, *exponents, axis, offsets, LENGTHS)
    assert found == pytest.approx(expected)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_the_histogram_counts_every_place_once(case):
    x, _, exponents = case
    magnitudes = magnitudes_of(x)
    low, high = sum(int(e.min()) for e in exponents), sum(int(e.max()) for e in exponents) + 1
    expected = np.zeros((high - low + 1, 256), np.int64)
    for place in places(x.shape):
        expected[exponent_of(exponents, place) - low, magnitudes[place]] += 1
    found = kernels.exponent_histogram(magnitudes, *exponents, low, high)
    assert (found == expected).all()


@given(cases(), st.sampled_from([0.0, 0.05, 0.11, 1.0, 30.0]), st.integers(0, 2**32 - 1))
@settings(max_examples=120, deadline=None)
def test_rounding_takes_the_cheapest_of_nearest_next_and_zero(case, lmbda, seed):
    x, importance, exponents = case
    shrink = np.array([0, *np.random.default_rng(seed).uniform(-0.5, 0.5, 3)], np.float32)
    symbols = np.full(x.shape, 99, np.int32)
    kernels.round_to_cost(x, importance, *exponents, LENGTHS, shrink, lmbda, symbols)
    weights = np.broadcast_to(importance, x.shape).astype(np.float64)
    for place in places(x.shape):
        exponent = exponent_of(exponents, place)

        def cost(k, place=place, exponent=exponent):
            level = np.sign(k) * (abs(k) - float(shrink[min(abs(k), 3)]))
            return weights[place] * (float(x[place]) - level) ** 2 + lmbda * bits(exponent, min(abs(k), 255))

        nearest = int(np.floor(abs(x[place]) + 0.5))
        sign = 1 if x[place] > 0 else -1
        candidates = [0, *(sign * k for k in (nearest - 1, nearest, nearest + 1) if k > 0)]
        assert int(symbols[place]) in candidates
        assert cost(int(symbols[place])) <= min(map(cost, candidates)) + 1e-5 * (1 + weights[place] * x[place] ** 2)


def test_without_a_price_rounding_is_rounding():
    x = np.linspace(-7.3, 7.4, 120, dtype=np.float32).reshape(4, 5, 6)
    zeros = [np.zeros(n, np.int64) for n in x.shape]
    symbols = np.empty(x.shape, np.int32)
    kernels.round_to_cost(x, np.ones((1, 1, 1), np.float32), *zeros, LENGTHS, np.zeros(4, np.float32), 0.0, symbols)
    assert (symbols == np.rint(x)).all()


@given(cases())
@settings(max_examples=60, deadline=None)
def test_centroid_sums_are_weighted_shortfalls(case):
    x, importance, _ = case
    symbols = np.rint(x * 0.8).astype(np.int32)
    weights = np.broadcast_to(importance, x.shape)
    expected = np.zeros((2, 3))
    for place in places(x.shape):
        k = int(symbols[place])
        if k:
            shortfall = abs(k) - float(x[place]) * np.sign(k)
            expected[:, min(abs(k), 3) - 1] += weights[place] * np.array([1, shortfall])
    assert kernels.centroid_sums(x, importance, symbols) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_powers_along_an_axis_are_sums_over_all_other_places(axis):
    rng = np.random.default_rng(axis)
    shape = (5, 7, 3)
    importance, values = rng.random(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    rows, channels, taps = (np.exp2(rng.integers(-4, 5, length) / 2) for length in shape)
    squares = rows[:, None, None] * channels[:, None] * taps
    others = tuple({0, 1, 2} - {axis})
    expected = [(importance * squares).sum(others), (np.square(values, dtype=np.float64) / squares).sum(others)]
    assert kernels.axis_powers(importance, values, rows, channels, taps, axis) == pytest.approx(np.array(expected))
