"""The fitted source of scales along axes, on weights whose scales and shape are known."""

from itertools import combinations
from math import inf, log, log2, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gennorm

from waterfill.errors import UsageError
from waterfill.theory.scaled_source import AXES, fit_scaled_source
from waterfill.theory.sources import fit_gaussian, fit_generalized_gaussian, unit_entropy

SIZES = (40, 24, 9)
COUNT = 40 * 24 * 9
SHAPES = [0.8, 1.0, 2.0, 3.0]
CHOICES = [axes for count in range(4) for axes in combinations(AXES, count)]
laws = settings(max_examples=40, deadline=None, derandomize=True)


def octaves(axes, seed, spread=0.5):
    """Base-2 logarithms of the true scales along every axis; zeros along the others."""
    rng = np.random.default_rng([seed, 1])
    drawn = [rng.normal(0, spread, size=size) for size in SIZES]
    return [logs if axis in axes else np.zeros_like(logs) for axis, logs in zip(AXES, drawn, strict=True)]


def broad(logs):
    rows, channels, taps = logs
    return rows[:, None, None] + channels[:, None] + taps


def drawn(shape, logs, seed):
    """Weights of a generalized Gaussian density of unit variance times the scales."""
    density = gennorm(shape, scale=1 / gennorm(shape).std())
    return density.rvs(size=SIZES, random_state=np.random.default_rng(seed)) * np.exp2(broad(logs))


def number_of_scales(axes):
    return sum(size - 1 for axis, size in zip(AXES, SIZES, strict=True) if axis in axes)


@pytest.mark.parametrize("axes", CHOICES, ids=" x ".join)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(2))
def test_scales_and_shape_are_those_the_weights_were_drawn_with(shape, axes, seed):
    logs = octaves(axes, seed)
    found = fit_scaled_source(drawn(shape, logs, seed))
    assert found.axes == axes
    assert found.shape == pytest.approx(shape, rel=0.08)
    for axis, size, ours, truth in zip(AXES, SIZES, found.log2_scales, logs, strict=True):
        assert ours.shape == (size,)
        error = 1 / (sqrt(shape * COUNT / size) * log(2))  # of the logarithm of `mean |x|^b`, divided by b
        assert np.abs((ours - ours.mean()) - (truth - truth.mean())).max() < 4.5 * error
        if axis not in axes:
            assert np.ptp(ours) == 0


@pytest.mark.parametrize("axes", CHOICES, ids=" x ".join)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_entropy_is_the_true_one_within_its_error(shape, axes):
    for seed in range(3):
        logs = octaves(axes, seed)
        weights = drawn(shape, logs, seed)
        found = fit_scaled_source(weights)
        source = found.source(weights)
        truth = unit_entropy(shape) + broad(logs).mean()
        assert abs(found.unbiased().source(weights).entropy.mean() - truth) < 3.5 * source.standard_error
        assert source.standard_error == pytest.approx(1 / (sqrt(shape * COUNT) * log(2)), rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axes", [(), ("row",), ("row", "channel", "tap")], ids=" x ".join)
def test_entropy_variance_and_error_are_those_of_the_density_by_scipy(shape, axes):
    weights = drawn(shape, octaves(axes, 5), 5) + 0.01
    found = fit_scaled_source(weights)
    source = found.source(weights)
    density = gennorm(found.shape, found.mean, np.exp2(broad(found.log2_scales)))
    surprise = -density.logpdf(weights) / log(2)
    assert source.entropy.mean() == pytest.approx(surprise.mean(), abs=1e-6)
    np.testing.assert_allclose(source.entropy, density.entropy() / log(2), atol=1e-9)
    np.testing.assert_allclose(source.variance, density.var(), rtol=1e-9)
    spread = np.abs((weights - found.mean) / np.exp2(broad(found.log2_scales))) ** found.shape / log(2)
    spread = max(spread.std(), 1 / (sqrt(found.shape) * log(2)))
    assert source.standard_error == pytest.approx(spread / sqrt(COUNT - found.parameters), rel=1e-9)


@pytest.mark.parametrize("axes", [("row",), ("row", "channel", "tap")], ids=" x ".join)
@pytest.mark.parametrize("spread", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_wide_rows_do_not_hide_narrow_ones(axes, spread, seed):
    """The mean is as certain as the narrowest rows; a plain mean made the entropy too high by up to two bits."""
    logs = octaves(axes, seed, spread=spread)
    source = fit_scaled_source(drawn(2.0, logs, seed) + 0.01).source(np.ones(SIZES))
    truth = broad(logs).mean() + unit_entropy(2.0)
    assert abs(source.entropy.mean() - truth) < 4 * source.standard_error


@pytest.mark.parametrize("exponent", [-100, -33, 27, 100])
@pytest.mark.parametrize("shape", [1.0, 2.0, inf])
def test_the_unit_of_the_weights_plays_no_role(shape, exponent):
    rng = np.random.default_rng(0)
    weights = rng.uniform(-1, 1, size=SIZES) if shape == inf else drawn(shape, octaves(("row",), 1), 1)
    plain, scaled = fit_scaled_source(weights), fit_scaled_source(np.ldexp(weights, exponent))
    assert (scaled.shape, scaled.axes, scaled.standard_error) == (plain.shape, plain.axes, plain.standard_error)
    shifted = plain.source(weights).entropy + exponent
    np.testing.assert_allclose(scaled.source(weights).entropy, shifted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ratio", [0.1, 0.01, 1e-3, 1e-5])
def test_rows_of_uniform_weights_have_their_scales(ratio):
    """At one scale they look peaky, and a shape of 40 makes small numbers of small scales."""
    scales = np.where(np.arange(64) < 8, 1.0, ratio)[:, None, None]
    weights = np.random.default_rng(0).uniform(-1, 1, size=(64, 256, 1)) * scales
    found = fit_scaled_source(weights)
    assert found.axes == ("row",)
    assert found.source(weights).entropy.mean() == pytest.approx(np.log2(2 * scales).mean(), abs=0.03)


def test_row_scales_are_found_among_many_zeros():
    """At one scale such weights look like heavy tails; only a fit with its own shape shows that rows explain more."""
    weights = drawn(2.0, octaves(("row",), 0, spread=1.5), 0)
    weights[np.random.default_rng(0).random(SIZES) < 0.8] = 0.0
    found = fit_scaled_source(weights)
    assert found.axes == ("row",)


@pytest.mark.parametrize("axis", range(3))
def test_gaussian_scales_along_one_axis_are_root_mean_squares(axis):
    weights = drawn(2.0, octaves((AXES[axis],), 3), 3)
    found = fit_scaled_source(weights)
    assert (found.shape, found.axes) == (2.0, (AXES[axis],))
    others = tuple({0, 1, 2} - {axis})
    expected = np.square(weights - found.mean).mean(axis=others, keepdims=True)
    np.testing.assert_allclose(found.source(weights).variance, np.broadcast_to(expected, SIZES), rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(8))
def test_weights_of_one_scale_get_one(shape, seed):
    weights = drawn(shape, octaves((), seed), seed)
    found = fit_scaled_source(weights)
    assert found.axes == ()
    assert np.ptp(found.source(weights).entropy) == 0
    if shape != 2:  # the same without the price of a shape
        assert found.source(weights).entropy[0, 0, 0] == pytest.approx(
            fit_generalized_gaussian(weights).entropy[0, 0, 0], abs=1e-6
        )
    else:
        assert found.shape == 2
        assert found.source(weights).entropy[0, 0, 0] == pytest.approx(fit_gaussian(weights).entropy[0, 0, 0])


@pytest.mark.parametrize("shape", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_no_scale_of_any_axis_could_be_more_likely(shape, seed):
    """At the largest likelihood the mean of `b |w / scale|^b` is one in every slice, with zeros in any pattern."""
    weights = drawn(shape, octaves(AXES, seed, spread=1.0), seed)
    rng = np.random.default_rng(seed)
    kept = np.einsum("o,c,t->oct", *[rng.uniform(0.3, 1, size=size) for size in SIZES])
    weights[rng.random(SIZES) > kept] = 0.0
    found = fit_scaled_source(weights)
    assert found.axes == AXES
    terms = found.shape * (np.abs(weights) / np.exp2(broad(found.log2_scales))) ** found.shape
    live = weights != 0
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        np.testing.assert_allclose(terms.sum(axis=others) / live.sum(axis=others), 1, atol=1e-5)


def test_scales_have_to_pay_for_their_description():
    """Rows that differ a little: from where their gain is above `(L - 1) / 2 log2 n` bits they have scales."""
    z = np.random.default_rng(0).normal(size=SIZES)
    z /= np.sqrt(np.square(z).mean(axis=(1, 2), keepdims=True))
    for spread in (0.02, 0.05, 0.07, 0.09, 0.12, 0.3):
        logs = np.linspace(-spread, spread, 40)
        weights = z * np.exp2(logs)[:, None, None]
        weights -= weights.mean()
        powers = np.square(weights).mean(axis=(1, 2))
        gain = COUNT / 2 * (log2(powers.mean()) - np.log2(powers).mean())
        price = 39 / 2 * log2(COUNT)
        assert abs(gain / price - 1) > 0.05
        assert fit_scaled_source(weights).axes == (("row",) if gain > price else ())


@pytest.mark.parametrize("sizes", [(300, 1, 1), (1, 300, 1), (1, 1, 300)])
def test_one_weight_each_is_too_few_for_scales(sizes):
    weights = np.random.default_rng(0).normal(size=sizes) * np.geomspace(1, 1e6, 300).reshape(sizes)
    found = fit_scaled_source(weights)
    assert found.axes == ()
    assert found.shape < 0.5


# Zeros ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruned", [0.1, 0.6, 0.9])
@pytest.mark.parametrize("shape", [1.0, 2.0])
def test_exact_zeros_are_known_and_have_no_say_in_the_rest(shape, pruned):
    logs = octaves(("row",), 2, spread=1.0)
    weights = drawn(shape, logs, 2)
    zero = np.random.default_rng(0).random(SIZES) < pruned
    weights[zero] = 0.0
    found = fit_scaled_source(weights)
    source = found.source(weights)
    assert (found.mean, found.zeros) == (0.0, pytest.approx(zero.mean()))
    assert found.axes == ("row",)
    assert np.isneginf(source.entropy[zero]).all()
    assert (source.variance[zero] == 0).all()
    live = np.count_nonzero(~zero)
    truth = unit_entropy(shape) + broad(logs)[~zero].mean()
    fitted = (2 + number_of_scales(found.axes)) / (2 * log(2) * live)
    of_live = source.standard_error * COUNT / live
    assert abs(source.entropy[~zero].mean() + fitted - truth) < 4 * of_live
    assert of_live == pytest.approx(1 / (sqrt(shape * live) * log(2)), rel=0.25)


def test_without_zeros_no_weight_is_known():
    weights = drawn(2.0, octaves((), 0), 0)
    weights -= weights[0, 0, 0]  # one zero
    found = fit_scaled_source(weights)
    assert np.isneginf(found.source(weights).entropy).sum() == 1
    weights[0, 0, 0] = 1e-30
    found = fit_scaled_source(weights)
    assert found.zeros == 0
    assert np.isfinite(found.source(weights).entropy).all()


@pytest.mark.parametrize("pruned", [5, 20, 39])
def test_pruned_rows_and_channels_earn_no_scales(pruned):
    weights = drawn(2.0, octaves((), 0), 0)
    weights[:pruned] = 0.0
    weights[:, : pruned // 2] = 0.0
    found = fit_scaled_source(weights)
    assert found.axes == ()
    live = weights[pruned:, pruned // 2 :]
    expected = np.square(live).mean()
    np.testing.assert_allclose(found.source(weights).variance[pruned:, pruned // 2 :], expected, rtol=1e-9)


def test_pruned_rows_of_weights_with_row_scales_stay_known():
    weights = drawn(2.0, octaves(("row",), 0), 0)
    weights[:7] = 0.0
    found = fit_scaled_source(weights)
    assert found.axes == ("row",)
    expected = np.square(weights[7:]).mean(axis=(1, 2))
    np.testing.assert_allclose(found.source(weights).variance[7:, 0, 0], expected, rtol=1e-9)
    assert (found.source(weights).variance[:7] == 0).all()


# Laws -----------------------------------------------------------------------------------------------------------------


@laws
@given(
    st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 6)] * 3).filter(lambda s: s != (1, 1, 1)), st.floats(0.3, 5)
)
def test_the_entropy_is_at_most_that_of_one_gaussian(seed, sizes, shape):
    rng = np.random.default_rng(seed)
    scales = [rng.lognormal(0, rng.choice([0, 1]), size=size) for size in sizes]
    weights = gennorm(shape).rvs(size=sizes, random_state=rng) * np.einsum("o,c,t->oct", *scales)
    found = fit_scaled_source(weights)
    assert found.source(weights).entropy.mean() <= fit_gaussian(weights).entropy.mean() + 1e-9


@laws
@given(st.integers(0, 2**32 - 1), st.floats(-30, 30), st.floats(-3, 3), st.sampled_from(CHOICES))
def test_the_fit_follows_scale_shift_and_order(seed, octave, shift, axes):
    rng = np.random.default_rng(seed)
    weights = drawn(1.0, octaves(axes, seed), seed)
    rows, channels = rng.permutation(SIZES[0]), rng.permutation(SIZES[1])
    found, moved = fit_scaled_source(weights), fit_scaled_source(2.0**octave * (weights + shift)[rows][:, channels])
    assert moved.axes == found.axes
    assert moved.shape == pytest.approx(found.shape, rel=1e-3)
    entropy, variance = found.source(weights).entropy, found.source(weights).variance
    there = moved.source(weights)
    np.testing.assert_allclose(there.entropy, entropy[rows][:, channels] + octave, atol=2e-3)
    np.testing.assert_allclose(there.variance, 4.0**octave * variance[rows][:, channels], rtol=1e-2)


def test_the_name_says_shape_axes_and_zeros():
    gaussian = drawn(2.0, octaves((), 0), 0)
    assert fit_scaled_source(gaussian).name == "Gaussian"
    scaled = drawn(2.0, octaves(("row", "tap"), 0), 0)
    assert fit_scaled_source(scaled).name == "Gaussian, row x tap scales"
    scaled[np.random.default_rng(0).permutation(COUNT).reshape(SIZES) < COUNT / 2] = 0.0
    assert fit_scaled_source(scaled).name == "Gaussian, row x tap scales, 50 % zeros known"
    laplacian = fit_scaled_source(drawn(1.0, octaves(("channel",), 0), 0))
    assert laplacian.name == f"generalized Gaussian {laplacian.shape:.2f}, channel scales"
    assert laplacian.source(scaled).name == laplacian.name


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [
        np.zeros((2, 3, 4)),
        np.full((2, 3, 4), 0.1),
        np.ones((1, 1, 1)),
        np.float64([[[0, 0, 5]]]),
        np.float64([[[0, 5, 5]]]),
    ],
)
def test_weights_without_spread_are_refused(weights):
    with pytest.raises(UsageError, match=r"The weights have no spread, .*; expected two different ones or more"):
        fit_scaled_source(weights)


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (np.ones((2, 3)), r"weights have the shape \[2, 3\]; expected \[out, channels, taps\]"),
        ([[[1.0, np.nan]]], "weights has 1 of 2 entries that are NaN or infinite"),
        ([[["wide"]]], "weights is no array of numbers"),
    ],
)
def test_a_bad_argument_is_named(weights, text):
    with pytest.raises(UsageError, match=text):
        fit_scaled_source(weights)


@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_entropy_powers_of_what_is_not_known_are_a_product(zeros):
    rng = np.random.default_rng(0)
    weights = rng.laplace(size=(30, 8, 4)) * np.exp(2 * rng.normal(size=(30, 1, 1)) + rng.normal(size=(8, 1)))
    weights *= rng.random(weights.shape) >= zeros
    found = fit_scaled_source(weights)
    assert found.axes
    rows, columns = found.power_factors()
    product = np.outer(rows, columns).reshape(weights.shape) * found.live(weights)
    np.testing.assert_allclose(product, found.source(weights).entropy_power, rtol=1e-12)
    assert found.live(weights).all() == (zeros == 0)
