import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import norm

from waterfill.errors import UsageError
from waterfill.theory.exhaustive import exhaustive_pruning, exhaustive_quantization, exhaustive_refit
from waterfill.theory.relu import (
    arc_cosine,
    best_scale,
    hermite_coefficients,
    hermite_remainder,
    hermite_series,
    least_error,
    projection_error,
    relu_error,
    sigma_cosine,
    simulate_relu_error,
)

NEAR_ONE = np.logspace(-16, -1, 46)
COSINES = np.concatenate([np.linspace(-1, 1, 81), 1 - NEAR_ONE, NEAR_ONE - 1])


def exact_j(rho):
    with mpmath.workdps(80):
        rho = mpmath.mpf(rho)
        return (mpmath.sqrt(1 - rho**2) + rho * (mpmath.pi - mpmath.acos(rho))) / mpmath.pi


def exact_error(w, w_hat, sigma):
    """The formula as it stands, with 80 digits."""
    with mpmath.workdps(80):
        w, w_hat, sigma = mpmath.matrix(w.tolist()), mpmath.matrix(w_hat.tolist()), mpmath.matrix(sigma.tolist())
        power, compressed, mixed = (w.T * sigma * w)[0], (w_hat.T * sigma * w_hat)[0], (w.T * sigma * w_hat)[0]
        lengths = mpmath.sqrt(power * compressed)
        return (power + compressed) / 2 - lengths * exact_j(mixed / lengths)


def unit(count, seed):
    """Weights, variances, and a covariance matrix."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(count, count))
    return rng.normal(size=count), rng.gamma(1.0, size=count), mixing @ mixing.T / count


# The arc-cosine kernel ------------------------------------------------------------------------------------------------


def test_arc_cosine_keeps_all_digits_up_to_both_ends():
    for rho, value in zip(COSINES, arc_cosine(COSINES), strict=True):
        expected = exact_j(float(rho))
        assert abs(value - expected) <= 1e-15 * expected


def test_arc_cosine_is_twice_the_product_of_two_relus_by_quadrature():
    for rho in (-0.9, -0.3, 0.0, 0.5, 0.99):
        spread = math.sqrt(1 - rho**2)

        def inner(u, rho=rho, spread=spread):  # E relu(v) given u
            return u * norm.pdf(u) * (rho * u * norm.cdf(rho * u / spread) + spread * norm.pdf(rho * u / spread))

        assert float(arc_cosine(rho)) / 2 == pytest.approx(quad(inner, 0, 12, epsabs=1e-13)[0], rel=1e-9)


def test_arc_cosine_is_its_mirror_plus_rho():
    np.testing.assert_allclose(arc_cosine(COSINES), COSINES + arc_cosine(-COSINES), rtol=0, atol=4e-16)
    assert (arc_cosine(COSINES) >= COSINES - 3e-16).all()
    assert (np.diff(arc_cosine(np.unique(COSINES))) >= -3e-16).all()


def test_rounding_beyond_one_is_clipped_and_more_is_an_error():
    assert arc_cosine([1 + 1e-12, -1 - 1e-12]).tolist() == [1.0, 0.0]
    assert arc_cosine(np.zeros((2, 3))).shape == (2, 3)
    assert arc_cosine([]).shape == (0,)
    for rho in (1 + 1e-9, -1.5):
        with pytest.raises(UsageError, match=r"rho has the entry -?1\.\d+; expected cosines in \[-1, 1\]. Divide"):
            arc_cosine([0.0, rho])


@pytest.mark.parametrize("p", range(13))
def test_coefficients_are_integrals_against_hermite_polynomials(p):
    normalised = [0.0] * p + [1 / math.sqrt(math.factorial(p))]

    def integrand(x):
        return x * np.polynomial.hermite_e.hermeval(x, normalised) * norm.pdf(x)

    coefficient = quad(integrand, 0, 15, limit=200, epsabs=1e-11)[0]
    assert hermite_coefficients(13)[p] == pytest.approx(coefficient**2, rel=1e-8, abs=1e-20)


def test_coefficients_of_thousands_of_terms_are_the_formula():
    coefficients = hermite_coefficients(5001)
    for p in (2, 4, 100, 2000, 5000):
        exact = Fraction(math.prod(range(1, p - 2, 2)) ** 2, math.factorial(p))
        assert coefficients[p] == pytest.approx(float(exact) / (2 * math.pi), rel=1e-12, abs=0)
    assert not coefficients[3::2].any()
    assert [len(hermite_coefficients(terms)) for terms in (1, 2, 3)] == [1, 2, 3]
    assert hermite_coefficients(2).tolist() == [1 / (2 * math.pi), 0.25]


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 6, 7, 20, 51, 300, 3001])
def test_series_is_half_of_j_within_the_remainder(terms):
    bound = hermite_remainder(terms)
    lacking = arc_cosine(COSINES) / 2 - hermite_series(COSINES, terms)
    assert (np.abs(lacking) <= bound + 1e-15).all()
    assert 0.7 * bound < lacking.max() <= bound + 1e-15  # the bound is close at rho = 1


def test_remainder_falls_like_terms_to_minus_three_halves():
    assert hermite_remainder(40_000) / hermite_remainder(10_000) == pytest.approx(1 / 8, rel=1e-3)
    bounds = [hermite_remainder(terms) for terms in range(1, 40)]
    assert bounds == sorted(bounds, reverse=True)
    assert hermite_remainder(1) == pytest.approx(0.5 - 1 / (2 * math.pi))


# The error of one unit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_error_is_what_simulation_finds(seed):
    w, variances, sigma = unit(5, seed)
    w_hat = w + np.random.default_rng(seed + 100).normal(size=5)
    for covariance in (variances, sigma):
        mean, standard_error = simulate_relu_error(w, w_hat, covariance, 400_000, seed)
        assert 0 < standard_error < 0.01 * mean
        assert abs(mean - relu_error(w, w_hat, covariance)) < 4 * standard_error


def test_simulation_is_the_same_in_one_batch_and_in_many(monkeypatch):
    w, _, sigma = unit(3, 0)
    arguments = (w, w + 1, sigma, 1000, 7)
    whole = simulate_relu_error(*arguments)
    monkeypatch.setattr("waterfill.theory.relu._BATCH", 64)
    assert simulate_relu_error(*arguments) == pytest.approx(whole, rel=1e-12)
    x = np.random.default_rng(7).normal(size=(1000, 1)) * 2.0
    errors = np.maximum(3 * x[:, 0], 0) ** 2
    expected = (errors.mean(), errors.std(ddof=1) / math.sqrt(1000))
    assert simulate_relu_error([3.0], [0.0], [4.0], 1000, 7) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("angle", [0.0, 0.01, 1.0, 2.0, 3.1, math.pi])
@pytest.mark.parametrize("length", [0.0, 0.5, 1.7])
def test_error_is_the_integral_over_the_circle(angle, length):
    def integrand(t):  # E r^2 = 2 in the plane of both vectors
        return (max(math.cos(t), 0) - length * max(math.cos(t - angle), 0)) ** 2 / math.pi

    kinks = [-math.pi / 2, math.pi / 2, angle - math.pi / 2]  # the fourth is where the circle is cut
    cut = angle + math.pi / 2
    ends = sorted({cut - 2 * math.pi, *kinks, cut})
    integral = sum(quad(integrand, low, high)[0] for low, high in itertools.pairwise(ends))
    w_hat = [length * math.cos(angle), length * math.sin(angle)]
    assert relu_error([1.0, 0.0], w_hat, [1.0, 1.0]) == pytest.approx(integral, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("distance", 10.0 ** np.arange(-15, 3))
def test_error_keeps_its_digits_however_near_w_hat_is(distance):
    for seed in range(5):
        w, _, sigma = unit(6, seed)
        w_hat = w + distance * np.random.default_rng(seed + 50).normal(size=6)
        assert relu_error(w, w_hat, sigma) == pytest.approx(float(exact_error(w, w_hat, sigma)), rel=1e-12, abs=0)


vectors = st.lists(st.floats(-10, 10).map(lambda x: round(x, 6)), min_size=4, max_size=4).map(np.array)
variances_of = st.lists(st.floats(0.01, 10), min_size=4, max_size=4).map(np.array)


@settings(max_examples=200, deadline=None)
@given(vectors, vectors, variances_of, st.floats(0.01, 100))
def test_error_is_symmetric_and_of_degree_two(w, w_hat, variances, factor):
    error = relu_error(w, w_hat, variances)
    objective = float(((w - w_hat) ** 2 * variances).sum())
    assert objective / 4 * (1 - 1e-12) <= error <= objective / 2 * (1 + 1e-12)
    assert (error == 0) == np.array_equal(w, w_hat)
    assert relu_error(w_hat, w, variances) == pytest.approx(error, rel=1e-12, abs=0)
    assert relu_error(factor * w, factor * w_hat, variances) == pytest.approx(factor**2 * error, rel=1e-8, abs=0)
    assert relu_error(w, w_hat, factor**2 * variances) == pytest.approx(factor**2 * error, rel=1e-12, abs=0)


@settings(max_examples=100, deadline=None)
@given(vectors, variances_of)
def test_error_against_nothing_and_against_the_opposite(w, variances):
    power = float((w**2 * variances).sum())
    assert relu_error(w, np.zeros(4), variances) == pytest.approx(power / 2, rel=1e-12)
    assert relu_error(np.zeros(4), w, variances) == pytest.approx(power / 2, rel=1e-12)
    assert relu_error(w, -w, variances) == pytest.approx(power, rel=1e-12)
    assert relu_error(w, 3 * w, variances) == pytest.approx(2 * power, rel=1e-12)


def test_error_is_never_negative_where_the_inputs_all_but_cancel():
    for seed in range(20):  # without a floor it is in about one of a hundred of these
        rng = np.random.default_rng(seed)
        mixing = rng.normal(size=(2, 5))
        sigma = mixing.T @ mixing
        silent = np.linalg.eigh(sigma)[1][:, 0]
        for _ in range(50):
            last_places = 1 + np.finfo(float).eps * rng.integers(-2, 3, size=5)
            assert relu_error(silent, silent * last_places, sigma) >= 0
    assert relu_error([1.0, 2.0], [2.0, 1.0], np.ones((2, 2))) == pytest.approx(0.0, abs=1e-28)


def test_cosine_is_the_correlation_of_the_inputs():
    w, _, sigma = unit(5, 3)
    w_hat = unit(5, 4)[0]
    x = np.random.default_rng(0).multivariate_normal(np.zeros(5), sigma, 200_000)
    assert sigma_cosine(w, w_hat, sigma) == pytest.approx(np.corrcoef(x @ w, x @ w_hat)[0, 1], abs=0.01)
    assert sigma_cosine(w, 2 * w, sigma) == pytest.approx(1.0, abs=1e-15)
    assert sigma_cosine(w, -w, sigma) == pytest.approx(-1.0, abs=1e-15)


# The length that Corollary 2 misses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_errors_before_and_after_the_scale(seed):
    w, _, sigma = unit(6, seed)
    other = w + np.random.default_rng(seed).normal(size=6)
    w_hat = other * (other @ sigma @ w) / (other @ sigma @ other)
    power, rho = float(w @ sigma @ w), sigma_cosine(w, w_hat, sigma)
    assert w_hat @ sigma @ (w - w_hat) == pytest.approx(0, abs=1e-12)  # rule 1
    assert float(projection_error(rho, power)) == pytest.approx(relu_error(w, w_hat, sigma), rel=1e-12)
    scale = float(best_scale(rho))
    assert float(least_error(rho, power)) == pytest.approx(relu_error(w, scale * w_hat, sigma), rel=1e-12)
    found = minimize(lambda t: relu_error(w, t[0] * w_hat, sigma), [1.0], tol=1e-10)
    assert scale == pytest.approx(found.x[0], rel=1e-4)
    assert scale > 1


def test_the_gain_is_the_square_of_the_mirrored_kernel():
    rho = np.linspace(0.05, 1, 200)
    gain = projection_error(rho, 3.0) - least_error(rho, 3.0)
    np.testing.assert_allclose(gain, 1.5 * arc_cosine(-rho) ** 2, rtol=1e-9, atol=1e-15)
    assert (gain[:-1] > 0).all()
    assert (np.diff(projection_error(rho, 3.0)) < 0).all()  # Theorem 4: the error falls as the cosine rises
    assert (np.diff(least_error(rho, 3.0)) < 0).all()


def test_both_errors_keep_their_digits_near_one():
    for rho in (1 - NEAR_ONE).tolist():
        with mpmath.workdps(60):
            j, exact_rho = exact_j(rho), mpmath.mpf(rho)
            before, after = float(1 + exact_rho**2 - 2 * exact_rho * j), float(1 - j**2)
        assert float(projection_error(rho, 2.0)) == pytest.approx(before, rel=1e-13, abs=0)
        assert float(least_error(rho, 2.0)) == pytest.approx(after, rel=1e-13, abs=0)


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda w, sigma: relu_error(w, [1.0, 2.0], sigma),
        lambda w, sigma: sigma_cosine(w, [1.0, 2.0], sigma),
        lambda w, sigma: simulate_relu_error(w, [1.0, 2.0], sigma, 10, 0),
        lambda w, sigma: exhaustive_pruning(w, sigma, 1),
        lambda w, sigma: exhaustive_refit(w, sigma, 1),
        lambda w, sigma: exhaustive_quantization(w, sigma, 1),
    ],
)
def test_weights_and_covariances_that_are_none(call):
    with pytest.raises(UsageError, match=r"w has the shape \[3\], the covariance is for 2 weights; expected"):
        call([1.0, 2.0, 3.0], [1.0, 1.0])
    with pytest.raises(UsageError, match=r"w has 1 of 2 entries that are NaN or infinite"):
        call([1.0, math.nan], [1.0, 1.0])
    with pytest.raises(UsageError, match="covariance has the entry -1"):
        call([1.0, 2.0], [1.0, -1.0])
    with pytest.raises(UsageError, match="covariance is not symmetric"):
        call([1.0, 2.0], [[1.0, 0.5], [0.0, 1.0]])


def test_the_other_vector_is_checked_too():
    with pytest.raises(UsageError, match=r"w_hat has the shape \[1\], the covariance is for 2 weights"):
        relu_error([1.0, 2.0], [1.0], [1.0, 1.0])
    with pytest.raises(UsageError, match=r"w has the shape \[0\]"):
        relu_error([], [], [])
    with pytest.raises(UsageError, match="w or w_hat has the length zero under the covariance; expected vectors"):
        sigma_cosine([1.0, 2.0], [0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("terms", [0, -1, 2.5, "3", None])
def test_terms_is_a_whole_number(terms):
    for call in (hermite_coefficients, hermite_remainder, lambda t: hermite_series(0.5, t)):
        with pytest.raises(UsageError, match=r"terms is .*; expected a whole number of at least 1"):
            call(terms)


def test_numbers_out_of_range_are_named():
    with pytest.raises(UsageError, match=r"samples is 1; expected a whole number of at least 2"):
        simulate_relu_error([1.0], [1.0], [1.0], 1, 0)
    with pytest.raises(UsageError, match=r"seed is -1; expected"):
        simulate_relu_error([1.0], [1.0], [1.0], 2, -1)
    with pytest.raises(UsageError, match="power is -1; expected"):
        least_error(0.5, -1.0)
    with pytest.raises(UsageError, match="power is -1; expected"):
        projection_error(0.5, -1.0)
    with pytest.raises(UsageError, match=r"rho has the entry -0\.5; expected cosines in \[0, 1\]"):
        projection_error(-0.5, 1.0)
    with pytest.raises(UsageError, match=r"rho has the entry -0\.5; expected cosines in \[0, 1\]"):
        best_scale([0.5, -0.5])
    with pytest.raises(UsageError, match=r"rho has an entry that is zero; expected cosines in \(0, 1\]"):
        best_scale(0.0)
