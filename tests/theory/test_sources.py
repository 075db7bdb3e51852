"""Source models and their fits against the distributions of SciPy."""

from math import e, exp, log, log2, pi, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import digamma, polygamma
from scipy.stats import gennorm, laplace, norm

from waterfill.errors import UsageError
from waterfill.theory import sources

SHAPES = [0.4, 0.7, 1.0, 1.5, 2.0, 4.0]
variances = st.floats(1e-12, 1e12)
shapes = st.floats(0.2, 30)
laws = settings(max_examples=60, deadline=None, derandomize=True)


def of_unit_variance(shape):
    """SciPy's generalized Gaussian; its scale is `sqrt(Gamma(1 / b) / Gamma(3 / b))`."""
    return gennorm(shape, scale=1 / gennorm(shape).std())


def bits(distribution):
    return float(distribution.entropy()) / log(2)


@laws
@given(variances)
def test_gaussian_and_laplacian_entropies_are_those_of_scipy(variance):
    assert sources.gaussian([variance]).entropy[0] == pytest.approx(bits(norm(scale=sqrt(variance))), abs=1e-9)
    assert sources.laplace([variance]).entropy[0] == pytest.approx(bits(laplace(scale=sqrt(variance / 2))), abs=1e-9)


@laws
@given(variances, shapes)
def test_generalized_gaussian_entropies_are_those_of_scipy(variance, shape):
    source = sources.generalized_gaussian([[variance]], shape)
    assert source.entropy[0, 0] == pytest.approx(bits(of_unit_variance(shape)) + log2(variance) / 2, abs=1e-9)
    assert source.variance[0, 0] == variance
    assert sources.scale_entropy(shape) == pytest.approx(bits(gennorm(shape)), abs=1e-9)
    assert 2 ** sources.log2_deviation(shape) == pytest.approx(gennorm(shape).std(), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_entropy_is_the_integral_of_the_density(shape):
    density = of_unit_variance(shape)
    nats = quad(lambda w: -2 * density.pdf(w) * density.logpdf(w), 0, 60, limit=500, points=[1e-3, 1])[0]
    assert sources.generalized_gaussian([1.0], shape).entropy[0] == pytest.approx(nats / log(2), abs=1e-6)


def test_shape_two_is_gaussian_shape_one_laplacian_and_large_shapes_uniform():
    variance = np.array([0.01, 1.0, 30.0])
    for shape, source in (2.0, sources.gaussian(variance)), (1.0, sources.laplace(variance)):
        np.testing.assert_allclose(sources.generalized_gaussian(variance, shape).entropy, source.entropy, atol=1e-12)
    assert sources.unit_entropy(1e4) == pytest.approx(log2(sqrt(12)), abs=1e-3)


@laws
@given(variances, shapes)
def test_the_entropy_power_is_at_most_the_variance_and_equal_for_a_gaussian(variance, shape):
    assert sources.gaussian([variance]).entropy_power[0] == pytest.approx(variance, rel=1e-12)
    power = sources.generalized_gaussian([variance], shape).entropy_power[0]
    assert power <= variance * (1 + 1e-12)
    if abs(shape - 2) > 0.1:
        assert power < variance * (1 - 1e-4)
    assert sources.laplace([variance]).entropy_power[0] == pytest.approx(variance * e / pi, rel=1e-9)


def test_a_weight_without_variance_is_known():
    for source in (
        sources.gaussian([0.0, 1.0]),
        sources.laplace([0.0, 1.0]),
        sources.generalized_gaussian([0.0, 1.0], 1.3),
    ):
        assert source.entropy[0] == -np.inf
        assert source.entropy_power[0] == 0
        assert np.isfinite(source.entropy[1])
        assert source.standard_error == 0


# Fits -----------------------------------------------------------------------------------------------------------------


def drawn(shape, count, seed):
    return of_unit_variance(shape).rvs(size=count, random_state=np.random.default_rng(seed))


def shape_error(shape, count):
    """Standard error of a fitted shape, from the Fisher information of scale and shape by quadrature."""
    density = gennorm(shape).pdf

    def scores(x):
        power = x**shape
        return shape * power - 1, 1 / shape + digamma(1 / shape) / shape**2 - power * log(x)

    information = np.array(
        [
            [
                quad(lambda x, i=i, j=j: 2 * density(x) * scores(x)[i] * scores(x)[j], 0, 200, limit=500)[0]
                for j in (0, 1)
            ]
            for i in (0, 1)
        ]
    )
    return sqrt(np.linalg.inv(information)[1, 1] / count)


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_fitted_shape_is_within_its_error(shape, seed):
    found = sources.fit_shape(np.abs(drawn(shape, 20_000, seed)))
    assert abs(found - shape) < 4 * shape_error(shape, 20_000)
    assert sources.fit_shape(1e-5 * np.abs(drawn(shape, 20_000, seed))) == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize(
    ("fit", "shape"),
    [(sources.fit_gaussian, 2.0), (sources.fit_laplace, 1.0)]
    + [(sources.fit_generalized_gaussian, shape) for shape in (0.7, 1.0, 2.0, 4.0)],
)
@pytest.mark.parametrize("seed", range(3))
def test_fits_are_within_their_standard_error(fit, shape, seed):
    weights = 3 + 0.2 * drawn(shape, 20_000, seed).reshape(100, 200)
    source = fit(weights)
    assert source.entropy.shape == source.variance.shape == weights.shape
    assert np.ptp(source.entropy) == np.ptp(source.variance) == 0
    truth = bits(of_unit_variance(shape)) + log2(0.2)
    assert 0 < source.standard_error < 0.02
    assert abs(source.entropy[0, 0] - truth) < 3 * source.standard_error
    assert source.variance[0, 0] == pytest.approx(0.04, rel=0.1)


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0])
def test_the_standard_error_is_that_of_repeated_fits(shape):
    truth, size = bits(of_unit_variance(shape)), 1000
    fits = [sources.fit_generalized_gaussian(drawn(shape, size, seed)) for seed in range(200)]
    scores = np.array([(fit.entropy[0] - truth) / fit.standard_error for fit in fits])
    assert 0.9 <= np.mean(np.abs(scores) < 2) <= 1
    assert 0.85 < scores.std() < 1.15


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fit_has_the_largest_likelihood(shape):
    weights = drawn(shape, 3000, 1)
    magnitudes = np.abs(weights - weights.mean())
    best = sources.fit_shape(magnitudes)
    least = sources.fitted_entropy(magnitudes, best)
    assert all(least <= sources.fitted_entropy(magnitudes, other) + 1e-9 for other in np.geomspace(0.2, 30, 200))
    source = sources.fit_generalized_gaussian(weights)
    density = gennorm(best, loc=weights.mean(), scale=source.variance[0] ** 0.5 / gennorm(best).std())
    lengths = -density.logpdf(weights) / log(2)
    assert source.entropy[0] == pytest.approx(lengths.mean(), abs=1e-9)
    assert source.standard_error == pytest.approx(lengths.std() / sqrt(3000), rel=1e-9)
    scale = (best * np.mean(magnitudes**best)) ** (1 / best)  # no other one is likelier
    for factor in (0.98, 1.02):
        other = gennorm(best, loc=weights.mean(), scale=factor * scale)
        assert -other.logpdf(weights).mean() / log(2) > source.entropy[0]


@laws
@given(st.floats(-20, 20), st.floats(-5, 5), st.sampled_from([1.0, -1.0]))
def test_fits_follow_scale_and_shift(octave, shift, sign):
    weights = np.random.default_rng(0).laplace(size=500)
    factor = sign * 2.0**octave
    for fit in (sources.fit_gaussian, sources.fit_laplace, sources.fit_generalized_gaussian):
        plain, moved = fit(weights), fit(factor * (weights + shift))
        assert moved.entropy[0] == pytest.approx(plain.entropy[0] + octave, abs=1e-6)
        assert moved.variance[0] == pytest.approx(plain.variance[0] * 4.0**octave, rel=1e-4)
        assert moved.standard_error == pytest.approx(plain.standard_error, rel=1e-4)


def shape_by_search(magnitudes):
    """A slow twin of `fit_shape`: a search of scipy over the entropy of all magnitudes."""
    found = minimize_scalar(
        lambda log_shape: sources.fitted_entropy(magnitudes, exp(log_shape)),
        bounds=[log(bound) for bound in sources.SHAPES],
        method="bounded",
        options={"xatol": 1e-8},
    )
    return exp(found.x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [12, 1000, 50_000])
def test_the_shape_is_that_of_a_search_over_all_magnitudes(shape, count):
    magnitudes = np.abs(drawn(shape, count, 4))
    assert sources.fit_shape(magnitudes) == pytest.approx(shape_by_search(magnitudes), rel=1e-3)


def test_even_magnitudes_have_the_largest_shape():
    assert sources.fit_shape(np.ones(8)) == pytest.approx(sources.SHAPES[1], rel=1e-5)
    assert sources.fit_shape(np.linspace(1e-3, 1, 10_000) ** 40) == pytest.approx(sources.SHAPES[0], rel=1e-5)


@pytest.mark.parametrize("x", [0.01, 1.0, 1.5, 7.99, 8.0, 300.0])
def test_derivatives_of_the_log_gamma_function(x):
    assert sources._digammas(x) == (pytest.approx(digamma(x), rel=1e-9), pytest.approx(polygamma(1, x), rel=1e-9))


def test_a_shape_of_many_values_is_that_of_some_of_them(monkeypatch):
    magnitudes = np.abs(drawn(1.0, 10_000, 0))
    monkeypatch.setattr(sources, "FITTED_VALUES", 1000)
    assert sources.fit_shape(magnitudes) == sources.fit_shape(magnitudes[::10])


def test_zeros_have_no_say_in_the_shape():
    magnitudes = np.abs(drawn(0.7, 1000, 0))
    assert sources.fit_shape(np.concatenate([magnitudes, np.zeros(50)])) == sources.fit_shape(magnitudes)


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [sources.fit_gaussian, sources.fit_laplace, sources.fit_generalized_gaussian])
@pytest.mark.parametrize("weights", [[], [1.0], [2.0, 2.0, 2.0], np.zeros((3, 3))])
def test_weights_without_spread_have_no_density(fit, weights):
    with pytest.raises(UsageError, match=f"{np.size(weights)} weights without spread .*; expected two different ones"):
        fit(weights)


@pytest.mark.parametrize("fit", [sources.fit_gaussian, sources.fit_laplace, sources.fit_generalized_gaussian])
def test_rounding_is_no_spread(fit):
    with pytest.raises(UsageError, match="3 weights without spread"):
        fit([0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: sources.gaussian([1.0, -2.0]), "variance has the entry -2; expected numbers of at least zero"),
        (lambda: sources.laplace([np.nan]), "variance has 1 of 1 entries that are NaN or infinite; expected finite"),
        (lambda: sources.generalized_gaussian([1.0], 0.0), "shape is 0; expected a number above 0"),
        (lambda: sources.generalized_gaussian([1.0], [1.0, 2.0]), r"shape has the shape \[2\]; expected one number"),
        (lambda: sources.generalized_gaussian(["wide"], 1.0), "variance is no array of numbers .*; give floats"),
        (lambda: sources.fit_gaussian([1.0, np.inf]), "weights has 1 of 2 entries that are NaN or infinite"),
    ],
)
def test_a_bad_argument_is_named(call, text):
    with pytest.raises(UsageError, match=text):
        call()
