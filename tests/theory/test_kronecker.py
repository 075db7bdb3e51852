"""Kronecker covariances against the dense function, and their test channel against both."""

import math

import numpy as np
import pytest

from waterfill.errors import UsageError
from waterfill.theory import (
    GaussianTestChannel,
    KroneckerTestChannel,
    kronecker_rate_distortion,
    linear_rate_distortion,
)


def covariance(m, seed, rank=None):
    a = np.random.default_rng(seed).normal(size=(m, rank or 2 * m))
    return a @ a.T / m


def pairs(*sizes, seed=0):
    return [(covariance(m, seed + 2 * i), covariance(m, seed + 2 * i + 1)) for i, m in enumerate(sizes)]


def dense(axes):
    w, x = np.eye(1), np.eye(1)
    for sigma_w, sigma_x in axes:
        w, x = np.kron(w, sigma_w), np.kron(x, sigma_x)
    return w, x


@pytest.mark.parametrize("sizes", [(5,), (4, 6), (3, 4, 9)])
@pytest.mark.parametrize("share", [1e-3, 0.1, 0.6])
def test_it_is_the_function_of_the_large_matrix(sizes, share):
    axes = pairs(*sizes)
    w, x = dense(axes)
    distortion = share * np.trace(w @ x)
    assert kronecker_rate_distortion(axes, distortion) == pytest.approx(
        linear_rate_distortion(w, x, distortion), rel=1e-9
    )


def test_a_price_that_does_not_factor_over_channels_and_taps_is_one_axis():
    rows, channels, taps = pairs(3, 2, 4, seed=9)
    price = covariance(8, 77)
    sigma = np.kron(channels[0], taps[0])
    found = kronecker_rate_distortion([rows, (sigma, price)], 2.0)
    whole = linear_rate_distortion(np.kron(rows[0], sigma), np.kron(rows[1], price), 2.0)
    assert found == pytest.approx(whole, rel=1e-9)


def test_errors_cost_the_trace_of_the_product():
    (_, g), (_, a) = pairs(3, 5, seed=4)
    error = np.random.default_rng(0).normal(size=(3, 5))
    assert error.reshape(-1) @ np.kron(g, a) @ error.reshape(-1) == pytest.approx(np.trace(g @ error @ a @ error.T))


def test_two_thousand_rows_take_no_large_matrix():
    ar = 0.9 ** np.abs(np.subtract.outer(np.arange(64), np.arange(64)))
    rate = kronecker_rate_distortion([(np.ones(2048), np.ones(2048)), (ar, np.eye(64))], 2048 * 64 * 0.01)
    known = math.log2(100) / 2 + np.linalg.slogdet(ar)[1] / (2 * 64 * math.log(2))
    assert rate / (2048 * 64) == pytest.approx(known, rel=1e-9)  # no rectangle is full


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_channel_meets_rate_and_distortion(share):
    axes = pairs(3, 4, seed=2)
    w, x = dense(axes)
    distortion = share * float(np.trace(w @ x))
    channel = KroneckerTestChannel(axes, distortion)
    found = channel.monte_carlo(50_000, seed=1)
    assert abs(found.rate - linear_rate_distortion(w, x, distortion)) < 4 * found.rate_error
    assert abs(found.distortion - distortion) < 4 * found.distortion_error


def test_the_channel_draws_the_weights_it_is_for():
    axes = [(covariance(2, 1), covariance(2, 2)), (covariance(3, 3), covariance(3, 4, rank=1))]  # columns are not seen
    weights, w_hat = KroneckerTestChannel(axes, 0.5).sample(200_000, seed=5)
    assert weights.shape == w_hat.shape == (200_000, 2, 3)
    flat = weights.reshape(len(weights), -1)
    wanted = np.kron(axes[0][0], axes[1][0])
    assert np.abs(flat.T @ flat / len(flat) - wanted).max() < 0.02 * np.abs(wanted).max()


def test_one_axis_is_the_channel_of_a_linear_model():
    axes = pairs(4, seed=6)
    one = KroneckerTestChannel(axes, 1.0).sample(10, seed=0)
    other = GaussianTestChannel(*axes[0], 1.0).sample(10, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_wrong_arguments_are_named():
    with pytest.raises(UsageError, match="pairs is empty"):
        kronecker_rate_distortion([], 1.0)
    with pytest.raises(UsageError, match="sigma_w is for 2 weights, sigma_x for 3"):
        kronecker_rate_distortion([(np.ones(2), np.ones(3))], 1.0)
