"""The entropy estimated from spacings against known densities."""

from math import e, log2, pi, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.errors import UsageError
from waterfill.theory.entropy_estimate import estimate_entropy

DENSITIES = {
    "Gaussian": (np.random.Generator.standard_normal, log2(2 * pi * e) / 2),
    "Laplace": (np.random.Generator.laplace, log2(2 * e)),
    "uniform": (np.random.Generator.random, 0.0),
}
"""Draws `draw(rng, size=n)`, and the entropy in bits."""

densities = pytest.mark.parametrize(("draw", "truth"), DENSITIES.values(), ids=DENSITIES)


@densities
@pytest.mark.parametrize("count", [1000, 10_000, 100_000])
@pytest.mark.parametrize("seed", range(3))
def test_the_estimate_is_within_three_standard_errors(draw, truth, count, seed):
    source = estimate_entropy(draw(np.random.default_rng([seed, 2]), size=count))
    assert abs(source.entropy[0] - truth) < 3 * source.standard_error


@densities
def test_the_standard_error_shrinks_like_one_over_the_root_of_the_number(draw, truth):
    errors = [  # at one spacing: that of a uniform density shrinks even faster when the spacing grows
        np.mean([estimate_entropy(draw(np.random.default_rng(s), size=count), 4).standard_error for s in range(20)])
        for count in (2000, 8000, 32_000)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)
    assert abs(estimate_entropy(draw(np.random.default_rng(0), size=2000)).entropy[0] - truth) < 4 * errors[0]


@densities
@pytest.mark.parametrize("spacing", [1, 3])
def test_the_standard_error_is_that_of_repeats(draw, truth, spacing):
    found = [estimate_entropy(draw(np.random.default_rng([seed, 1]), size=3000), spacing) for seed in range(200)]
    scores = np.array([(source.entropy[0] - truth) / source.standard_error for source in found])
    assert 0.85 <= np.mean(np.abs(scores) < 2) <= 1
    assert 0.8 < scores.std() < 1.2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(DENSITIES)), st.floats(-30, 30), st.floats(-10, 10), st.sampled_from([1.0, -1.0]))
def test_the_entropy_follows_scale_and_shift(name, octave, shift, sign):
    weights = DENSITIES[name][0](np.random.default_rng(0), size=400)
    plain, moved = estimate_entropy(weights), estimate_entropy(sign * 2.0**octave * (weights + shift))
    assert moved.entropy[0] == pytest.approx(plain.entropy[0] + octave, abs=1e-6)
    assert moved.variance[0] == pytest.approx(plain.variance[0] * 4.0**octave, rel=1e-6)
    assert moved.standard_error == pytest.approx(plain.standard_error, rel=1e-6)


@pytest.mark.parametrize("spacing", [1, 3, 17])
def test_the_terms_are_the_spacings_one_by_one(spacing):
    weights = np.random.default_rng(0).normal(size=60)
    ordered = sorted(weights.tolist())
    terms = [log2(61 * (ordered[i + spacing] - ordered[i])) for i in range(60 - spacing)]
    digamma = -0.5772156649015329 + sum(1 / k for k in range(1, spacing))
    expected = sum(terms) / len(terms) - digamma / np.log(2)
    assert estimate_entropy(weights, spacing).entropy[0] == pytest.approx(expected, rel=1e-12)


def test_every_weight_has_the_same_entropy_and_the_sample_variance():
    weights = np.random.default_rng(0).normal(size=(4, 5, 6))
    source = estimate_entropy(weights)
    assert source.entropy.shape == source.variance.shape == (4, 5, 6)
    assert np.ptp(source.entropy) == np.ptp(source.variance) == 0
    assert source.variance[0, 0, 0] == pytest.approx(weights.var(), rel=1e-12)
    assert source.entropy[0, 0, 0] == estimate_entropy(np.sort(weights, axis=None)[::-1]).entropy[0]
    assert source.name == "estimated entropy"


def test_no_density_of_the_same_variance_is_above_a_gaussian():
    for draw, _ in DENSITIES.values():
        source = estimate_entropy(draw(np.random.default_rng(1), size=20_000))
        assert source.entropy_power[0] <= source.variance[0] * 4 ** (3 * source.standard_error)


@pytest.mark.parametrize(("count", "spacing"), [(0, 3), (7, 3), (20, 0), (20, 20), (20, -1)])
def test_too_few_weights_for_a_spacing_are_refused(count, spacing):
    text = rf"Spacing -?\d+ does not fit {count} weights; expected at least 8 and a smaller spacing"
    with pytest.raises(UsageError, match=text):
        estimate_entropy(np.arange(float(count)), spacing)


def test_weights_that_are_often_equal_have_no_density():
    weights = np.random.default_rng(0).normal(size=100)
    weights[:25] = 0.0
    with pytest.raises(UsageError, match=r"24\.2 % of the weights equal another one.*expected a continuous source"):
        estimate_entropy(weights)
    assert np.isfinite(estimate_entropy(weights, spacing=25).entropy[0])


def test_weights_that_are_no_numbers_are_named():
    with pytest.raises(
        UsageError, match="weights has 1 of 9 entries that are NaN or infinite; expected finite numbers"
    ):
        estimate_entropy([*range(8), np.nan])


def test_a_hundred_times_as_many_weights_are_ten_times_as_sure():
    few, many = (estimate_entropy(np.random.default_rng(3).normal(size=count)) for count in (1000, 100_000))
    assert few.standard_error / many.standard_error == pytest.approx(sqrt(100), rel=0.2)
