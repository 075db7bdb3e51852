"""Laws of Theorem 2, of reverse water-filling and of the test channel."""

import numpy as np
import pytest

from waterfill.errors import UsageError
from waterfill.theory import (
    GaussianTestChannel,
    distortion_at_rate,
    linear_lower_bound,
    linear_rate_distortion,
    shannon_lower_bound,
    weighted_waterfilling,
)
from waterfill.theory.sources import gaussian


def pair(m, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, m, 2 * m))
    return a @ a.T / m, b @ b.T / m


@pytest.mark.parametrize("seed", range(4))
def test_the_exact_function_is_convex_falls_and_can_be_inverted(seed):
    w, x = pair(12, seed)
    distortions = np.linspace(0.01, 1.0, 60) * np.trace(w @ x)
    rates = np.array([linear_rate_distortion(w, x, d) for d in distortions])
    assert (np.diff(rates) < 0).all()
    assert (np.diff(rates, 2) > -1e-9).all()
    back = [distortion_at_rate(w, x, rate) for rate in rates[:-1]]
    assert np.allclose(back, distortions[:-1], rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_of_theorem_2_is_convex_and_falls(seed):
    w, x = pair(12, seed)
    values, vectors = np.linalg.eigh(x)
    turned = vectors.T @ w @ vectors
    distortions = np.linspace(0.01, 1.0, 60) * np.trace(w @ x)
    rates = np.array([linear_lower_bound(turned, values, d) for d in distortions])
    assert (np.diff(rates) < 0).all()
    assert (np.diff(rates, 2) > -1e-9).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_common_rotation_changes_nothing_of_the_exact_function(seed):
    w, x = pair(12, seed)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 12)))
    for share in (1e-3, 0.1, 0.6):
        exact = linear_rate_distortion(w, x, share * np.trace(w @ x))
        turned = linear_rate_distortion(q @ w @ q.T, q @ x @ q.T, share * np.trace(w @ x))
        assert turned == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_bound_and_exact_function_agree_where_they_must(seed):
    w, x = pair(10, seed)
    values, vectors = np.linalg.eigh(x)
    turned = vectors.T @ w @ vectors
    total = np.trace(w @ x)
    for share in (1e-4, 0.05, 0.3, 0.7):
        exact = linear_rate_distortion(w, x, share * total)
        assert linear_rate_distortion(turned, values, share * total) == pytest.approx(exact, rel=1e-9)
        assert linear_lower_bound(turned, values, share * total) <= exact + 1e-9
        diagonal = np.diag(turned)
        limit = linear_lower_bound(diagonal, values, share * total)
        assert limit == pytest.approx(linear_rate_distortion(diagonal, values, share * total), rel=1e-9)
        assert shannon_lower_bound(gaussian(diagonal), values, share * total) == pytest.approx(limit, rel=1e-9)
    small = 1e-4 * total
    assert linear_lower_bound(turned, values, small) == pytest.approx(linear_rate_distortion(w, x, small), rel=1e-9)


@pytest.mark.parametrize("correlated", [False, True])
def test_the_test_channel_meets_the_exact_function(correlated):
    w, x = pair(6, 5) if correlated else (np.array([3.0, 2, 1]), np.array([3.0, 2, 1]))
    distortion = 4.0
    channel = GaussianTestChannel(w, x, distortion)
    found = channel.monte_carlo(100_000, seed=3)
    assert abs(found.rate - linear_rate_distortion(w, x, distortion)) < 4 * found.rate_error
    assert abs(found.distortion - distortion) < 4 * found.distortion_error


def test_wrong_arguments_are_named():
    with pytest.raises(UsageError, match="importance is a matrix with entries off its diagonal"):
        linear_lower_bound(np.eye(2), np.array([[1.0, 0.5], [0.5, 1.0]]), 1.0)
    with pytest.raises(UsageError, match="distortion is -1"):
        linear_rate_distortion([1.0], [1.0], -1.0)
    with pytest.raises(UsageError, match="shape"):
        weighted_waterfilling([1, 2], [1], 1.0)
