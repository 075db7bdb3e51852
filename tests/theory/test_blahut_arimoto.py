from math import e, gamma, log2, pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.errors import UsageError
from waterfill.theory.blahut_arimoto import (
    blahut_arimoto,
    generalized_gaussian_density,
    importance_limits,
    rate_at_distortion,
)

DISCRETISATION = 4e-5  # bits between the nodes and the density
HAMMING = [[0, 1], [1, 0]]


def entropy(p):
    return -p * log2(p) - (1 - p) * log2(1 - p)


def shannon(shape, distortion):
    """The Shannon lower bound `h - 1/2 log2(2 pi e D)` of a generalised Gaussian of unit variance."""
    scale = (gamma(1 / shape) / gamma(3 / shape)) ** 0.5
    return log2(2 * scale * gamma(1 / shape) / shape) + log2(e) / shape - log2(2 * pi * e * distortion) / 2


def updated(pmf, distortion, slope, times):
    """The twin: Blahut's multiplicative update and nothing else, a sum at a time."""
    letters, reproductions = distortion.shape
    q = np.full(reproductions, 1 / reproductions)
    for _ in range(times):
        joint = np.zeros(distortion.shape)
        for x in range(letters):
            weights = q * 2.0 ** (-slope * distortion[x])
            joint[x] = pmf[x] * weights / weights.sum()
        q = joint.sum(axis=0)
    information = sum(
        joint[x, y] * log2(joint[x, y] / (pmf[x] * q[y]))
        for x in range(letters)
        for y in range(reproductions)
        if joint[x, y] > 0
    )
    return float((joint * distortion).sum()), information


def weighted_waterfilling(importance, probability, distortion):
    """Bits per Gaussian weight of unit variance when both sides know: `I D_I = min(mu, I)`, mu by bisection."""
    low, high = 0.0, max(importance)
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if probability @ np.minimum(mu, importance) < distortion else (low, mu)
    return float(probability @ np.maximum(0, np.log2(importance / mu) / 2))


@pytest.mark.parametrize("p", [0.5, 0.4, 0.2])
@pytest.mark.parametrize("wrong", [0.01, 0.1, 0.19])
def test_a_bit_under_hamming_distortion(p, wrong):
    point = blahut_arimoto([p, 1 - p], HAMMING, log2((1 - wrong) / wrong), tolerance=1e-10)
    assert point.distortion == pytest.approx(wrong, abs=1e-7)
    assert point.rate == pytest.approx(entropy(p) - entropy(point.distortion), abs=1e-9)
    assert point.lower_bound == pytest.approx(point.rate, abs=1e-9)


def test_the_smallest_slopes_cost_nothing_and_the_largest_the_entropy():
    pmf = [0.7, 0.2, 0.1, 0.0]
    distortion = 1 - np.eye(4)
    assert blahut_arimoto(pmf, distortion, 0.0).rate == 0
    cheap, exact = (blahut_arimoto(pmf, distortion, slope) for slope in (0.1, 1e9))
    assert (cheap.rate, cheap.distortion) == (pytest.approx(0, abs=1e-6), pytest.approx(0.3, abs=1e-5))
    assert (exact.rate, exact.distortion) == (pytest.approx(1.156780, abs=1e-6), 0)
    assert exact.reproduction == pytest.approx(pmf, abs=1e-9)


def test_a_cost_that_cannot_be_avoided_is_in_the_distortion_and_changes_no_rate():
    pmf, distortion = [0.3, 0.7], np.array([[0.0, 1.0], [1.0, 0.0]])
    unavoidable = np.array([[500.0], [900.0]])
    plain, dearer = (blahut_arimoto(pmf, costs, 3.0) for costs in (distortion, distortion + unavoidable))
    assert dearer.rate == pytest.approx(plain.rate, abs=1e-9)
    assert dearer.distortion == pytest.approx(plain.distortion + 0.3 * 500 + 0.7 * 900, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(-3, 5))
def test_the_bounds_meet_for_any_matrix(letters, reproductions, seed, exponent):
    rng = np.random.default_rng(seed)
    pmf = rng.dirichlet(np.full(letters, 0.3))
    distortion = rng.choice([rng.random((letters, reproductions)), rng.integers(0, 3, (letters, reproductions))])
    point = blahut_arimoto(pmf, distortion, 10**exponent)
    assert -1e-12 <= point.rate - point.lower_bound <= 1e-6
    assert point.reproduction.sum() == pytest.approx(1)


@pytest.mark.parametrize("slope", [0.3, 2.0, 8.0])
def test_the_twin_of_plain_updates(slope):
    rng = np.random.default_rng(3)
    pmf, distortion = rng.dirichlet(np.ones(5)), np.abs(np.subtract.outer(rng.normal(size=5), rng.normal(size=7)))
    point, twin = blahut_arimoto(pmf, distortion, slope, tolerance=1e-9), updated(pmf, distortion, slope, 3000)
    assert point.rate + slope * point.distortion == pytest.approx(twin[1] + slope * twin[0], abs=1e-6)


def test_the_bounds_hold_wherever_it_stops_and_along_all_slopes():
    grid = np.linspace(-4, 4, 81)
    pmf = np.exp(-np.abs(grid)) / np.exp(-np.abs(grid)).sum()
    squares = (grid[:, None] - grid) ** 2
    slopes = np.geomspace(0.2, 100, 12)
    for steps in (1, 4, 7, 200):
        points = [blahut_arimoto(pmf, squares, slope, iterations=steps) for slope in slopes]
        assert all(point.lower_bound <= point.rate + 1e-12 for point in points)
        if steps < 200:  # between the two is the truth
            assert max(point.rate - point.lower_bound for point in points) > 1e-3
            bests = [blahut_arimoto(pmf, squares, slope, tolerance=1e-9) for slope in slopes]
            tangents = [best.rate + best.slope * best.distortion for best in bests]
            for point, tangent in zip(points, tangents, strict=True):
                offset = point.slope * point.distortion
                assert tangent <= point.rate + offset + 1e-8
                if point.lower_bound > 0:  # zero is a bound without a tangent
                    assert point.lower_bound + offset <= tangent + 1e-8
    assert (np.diff([point.distortion for point in points]) < 0).all()
    assert (np.diff([point.rate for point in points]) > 0).all()
    assert (np.diff([point.lower_bound for point in points]) > 0).all()


@pytest.mark.parametrize("steps", [1, 6, 9, 200])
def test_the_rate_and_the_distortion_are_those_of_the_channel(steps):
    """A channel made by hand from the record, wherever it stopped."""
    rng = np.random.default_rng(5)
    pmf, distortion = rng.dirichlet(np.ones(6)), rng.random((6, 4))
    point = blahut_arimoto(pmf, distortion, 5.0, iterations=steps)
    channel = point.reproduction * 2.0 ** (-5 * distortion)
    joint = pmf[:, None] * channel / channel.sum(axis=1, keepdims=True)
    output = joint.sum(axis=0)
    assert point.rate == pytest.approx((joint * np.log2(joint / np.outer(pmf, output))).sum(), abs=1e-12)
    assert point.distortion == pytest.approx((joint * distortion).sum(), abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "distortion", "rate"),
    [(0.7, 0.5, 0.305445), (0.7, 0.05, 1.871823), (1, 0.4, 0.566638), (1, 0.02, 2.717557), (3, 0.66, 0.290280)],
)
def test_finer_nodes_change_nothing(shape, distortion, rate):
    """The rates are of three times the reproductions and twice the nodes, reaching further."""
    point = rate_at_distortion(generalized_gaussian_density(shape), distortion)
    there = point.rate + point.slope * (point.distortion - distortion)
    assert there == pytest.approx(rate, abs=DISCRETISATION)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 1, 2, 3, 4])
def test_gaussian(rate):
    point = rate_at_distortion(generalized_gaussian_density(2), 4.0**-rate)
    assert point.distortion == pytest.approx(4.0**-rate, rel=2e-5)
    truth = -log2(point.distortion) / 2
    assert point.rate == pytest.approx(truth, abs=DISCRETISATION)
    assert truth - DISCRETISATION <= point.lower_bound <= point.rate


def test_a_gaussian_of_another_variance():
    wide = rate_at_distortion(lambda w: generalized_gaussian_density(2)(w / 5) / 5, 25 / 16)
    assert wide.rate == pytest.approx(2, abs=DISCRETISATION)


@pytest.mark.parametrize("shape", [0.8, 1.0, 1.5, 3.0])
def test_never_below_the_shannon_bound_and_close_to_it_at_high_rate(shape):
    """The bound is that of the density, the rate that of its nodes: below it by the discretisation, not by more."""
    rates = []
    for distortion in (0.8, 0.5, 0.2, 0.05, 0.01):
        point = rate_at_distortion(generalized_gaussian_density(shape), distortion)
        bound = max(0, shannon(shape, point.distortion))
        assert point.lower_bound <= point.rate
        assert bound - DISCRETISATION <= point.lower_bound
        assert point.rate <= -log2(point.distortion) / 2 + DISCRETISATION  # no source is dearer than a Gaussian
        if bound > 2:
            assert point.rate - bound < 1e-3
        rates.append(point.rate)
    assert (np.diff(rates) > 0).all()


def test_laplace_is_above_its_bound_at_low_rate():
    point = rate_at_distortion(generalized_gaussian_density(1), 0.66)
    assert point.rate - shannon(1, point.distortion) == pytest.approx(0.0325, abs=1e-3)
    assert point.values[point.reproduction > 1e-3][0] == 0  # the atom of a dead zone
    assert np.count_nonzero(point.reproduction > 1e-3) < 10


def test_a_matrix_of_cells_agrees_with_the_nodes():
    grid = np.linspace(-9, 9, 361)
    pmf = np.exp(-(2**0.5) * np.abs(grid))
    cells = blahut_arimoto(pmf / pmf.sum(), (grid[:, None] - grid) ** 2, slope=2.0)
    nodes = rate_at_distortion(generalized_gaussian_density(1), cells.distortion)
    assert nodes.slope == pytest.approx(2.0, rel=0.01)
    assert nodes.rate == pytest.approx(cells.rate, abs=1e-3)


@pytest.mark.parametrize("distortion", [1.0, 3.0])
def test_from_the_variance_on_the_rate_is_zero(distortion):
    point = rate_at_distortion(generalized_gaussian_density(1), distortion)
    assert (point.rate, point.lower_bound) == (0, 0)
    assert point.distortion == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("importance", "probability", "distortion"),
    [([0.2, 1, 5], [0.3, 0.4, 0.3], 0.1), ([0.01, 1, 10], [0.4, 0.4, 0.2], 0.4)],
)
def test_importance_known_to_both_to_the_encoder_and_to_nobody(importance, probability, distortion):
    importance, probability = np.array(importance), np.array(probability)
    limits = importance_limits(generalized_gaussian_density(2), importance, probability, distortion)
    both, encoder = limits.both, limits.encoder_only
    assert both.rate == pytest.approx(weighted_waterfilling(importance, probability, distortion), abs=1e-4)
    ignored = log2(importance @ probability / distortion) / 2
    assert both.rate + 1e-3 < encoder.rate < ignored - 0.1
    for point in (both, encoder):
        assert 0 <= point.rate - point.lower_bound < 1e-6
        assert point.distortion == pytest.approx(distortion, rel=2e-5)


def test_a_matrix_over_pairs_agrees_with_the_encoder_only_limit():
    grid = np.linspace(-5, 5, 201)
    pmf = np.exp(-(grid**2) / 2) / np.exp(-(grid**2) / 2).sum()
    importance, probability = np.array([0.2, 1.0, 5.0]), np.array([0.7, 0.2, 0.1])
    pairs = np.kron(probability, pmf)
    costs = np.kron(importance[:, None], (grid[:, None] - grid) ** 2)
    point = blahut_arimoto(pairs, costs, slope=6.0)
    limits = importance_limits(generalized_gaussian_density(2), importance, probability, point.distortion)
    assert limits.encoder_only.rate == pytest.approx(point.rate, abs=1e-4)
    assert limits.encoder_only.slope == pytest.approx(6.0, rel=1e-2)


def test_one_importance_is_as_good_as_known():
    limits = importance_limits(generalized_gaussian_density(1), [3.0, 3.0, 9.0], [0.5, 0.5, 0.0], 0.6)
    alone = rate_at_distortion(generalized_gaussian_density(1), 0.2).rate
    assert limits.both.rate == pytest.approx(alone, abs=1e-4)
    assert limits.encoder_only.rate == pytest.approx(alone, abs=1e-4)


def test_a_weight_without_importance_costs_nothing_even_if_the_decoder_does_not_know():
    """The encoder lets chance choose its reproduction."""
    limits = importance_limits(generalized_gaussian_density(2), [0.0, 2.0], [0.5, 0.5], 0.1)
    for point in (limits.both, limits.encoder_only):
        assert point.rate == pytest.approx(log2(1 / 0.1) / 4, abs=1e-4)


def test_importance_is_free_from_the_highest_distortion_on():
    limits = importance_limits(generalized_gaussian_density(2), [1.0, 3.0], [0.5, 0.5], 2.1)
    assert (limits.both.rate, limits.encoder_only.rate) == (0, 0)


GAUSSIAN = generalized_gaussian_density(2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: blahut_arimoto([0.5, 0.4], HAMMING, 1.0), "pmf has .* the sum 0.9; expected .* sums to 1. Divide"),
        (lambda: blahut_arimoto([[0.5, 0.5]], HAMMING, 1.0), r"pmf has the shape \[1, 2\]"),
        (lambda: blahut_arimoto([1.5, -0.5], HAMMING, 1.0), "pmf has the entry -0.5"),
        (lambda: blahut_arimoto([0.5, np.nan], HAMMING, 1.0), "pmf has 1 of 2"),
        (lambda: blahut_arimoto([1.0], HAMMING, 1.0), r"distortion has the shape \[2, 2\]; expected \[1, m\]"),
        (lambda: blahut_arimoto([0.5, 0.5], [[], []], 1.0), r"distortion has the shape \[2, 0\]"),
        (lambda: blahut_arimoto([0.5, 0.5], [[0, -1], [1, 0]], 1.0), "distortion has the entry -1"),
        (lambda: blahut_arimoto([0.5, 0.5], HAMMING, -1.0), "slope is -1"),
        (lambda: blahut_arimoto([0.5, 0.5], HAMMING, 1.0, tolerance=0), "tolerance is 0"),
        (lambda: blahut_arimoto([0.5, 0.5], HAMMING, 1.0, iterations=0), "iterations is 0"),
        (lambda: generalized_gaussian_density(0), "shape is 0"),
        (lambda: rate_at_distortion(GAUSSIAN, 0.0), "distortion is 0"),
        (lambda: rate_at_distortion(GAUSSIAN, 1e-9), "distortion asks for .* nodes"),
        (lambda: rate_at_distortion(lambda w: 2 * GAUSSIAN(w), 0.1), "density has the integral 2 "),
        (lambda: rate_at_distortion(lambda w: GAUSSIAN(w - 1), 0.1), "density has the integral 1.68269 "),
        (lambda: rate_at_distortion(lambda w: -GAUSSIAN(w), 0.1), "density has the entry -"),
        (lambda: rate_at_distortion(np.zeros_like, 0.1), "density is nothing"),
        (lambda: importance_limits(GAUSSIAN, [-1.0, 1.0], [0.5, 0.5], 0.1), "importance has the entry -1"),
        (lambda: importance_limits(GAUSSIAN, [1.0], [0.5, 0.5], 0.1), "importance has the shape"),
        (lambda: importance_limits(GAUSSIAN, [1.0, 2.0], [0.5, 0.4], 0.1), "probability has .* the sum 0.9"),
        (lambda: importance_limits(GAUSSIAN, [1.0], [1.0], -0.1), "distortion is -0.1"),
    ],
)
def test_a_bad_argument_is_named(call, text):
    with pytest.raises(UsageError, match=text):
        call()
