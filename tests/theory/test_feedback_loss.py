"""What feedback with uniform steps loses: the theorem against dithered steps, and against the product's own."""

import numpy as np
import pytest

from waterfill.errors import UsageError
from waterfill.importance.factored import KroneckerForm
from waterfill.quantize import Feedback
from waterfill.records import Layout, Weight
from waterfill.theory import linear_rate_distortion
from waterfill.theory.feedback_loss import feedback_factor, feedback_rates, step_loss, unfiltered_rates
from waterfill.theory.universal_code import codebook_power, universal_distortion, universal_rate, worst_excess

SAMPLES = 100_000


def form(n, decades, seed):
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return (turn * 10 ** np.linspace(-decades / 2, decades / 2, n)) @ turn.T


def dithered(targets, factor, delta, rng):
    """Uniform steps with dither, column by column with feedback: what comes out, and the steps."""
    steps, found = delta / np.diag(factor), np.zeros_like(targets)
    for j in range(len(factor)):
        aim = targets[:, j] + (targets[:, :j] - found[:, :j]) @ factor[:j, j] / factor[j, j]
        dither = rng.uniform(-0.5, 0.5, len(aim)) * steps[j]
        found[:, j] = np.rint((aim + dither) / steps[j]) * steps[j] - dither
    return found, steps


def entropy(values):
    """Differential entropy of samples in bits, from spacings of order m (Vasicek 1976)."""
    ordered, m = np.sort(values), 300
    return np.log2((ordered[2 * m :] - ordered[: -2 * m]) * len(values) / (2 * m)).mean()


def cost(error, a):
    return np.einsum("ni,ij,nj->n", error, a, error)


@pytest.mark.parametrize("decades", [0, 3, 6])
def test_without_a_filter_errors_are_white_where_it_counts_and_rates_between_the_bounds(decades):
    a, v = form(6, decades, 1), np.linspace(0.5, 2, 6)
    rng = np.random.default_rng(2)
    smallest = np.linalg.eigvalsh(np.sqrt(v)[:, None] * a * np.sqrt(v))[0]
    theta = 0.3 * smallest
    weights = rng.normal(size=(SAMPLES, 6)) * np.sqrt(v)
    factor = feedback_factor(a)
    found, steps = dithered(weights, factor, np.sqrt(12 * theta), rng)
    losses = cost(weights - found, a)
    assert abs(losses.mean() - 6 * theta) < 4 * losses.std() / np.sqrt(SAMPLES)
    rates = np.array([entropy(column) for column in found.T]) - np.log2(steps)
    bound, limit = unfiltered_rates(a, v, theta), linear_rate_distortion(v, a, 6 * theta)
    assert (rates < bound + 0.01).all()
    assert step_loss() - 0.01 < (rates.sum() - limit) / 6 < bound.sum() / 6 - limit / 6 + 0.01
    assert (bound.sum() - limit) / 6 < step_loss() + np.log2(1 + theta / smallest) / 2 + 1e-9


@pytest.mark.parametrize("decades", [0, 3, 6])
@pytest.mark.parametrize("noise", [0.05, 5.0])
def test_with_the_filter_the_theorem_holds_at_every_rate(decades, noise):
    a, v = form(6, decades, 3), np.linspace(0.5, 2, 6)
    g = np.linalg.eigvalsh(np.sqrt(v)[:, None] * a * np.sqrt(v))
    rng = np.random.default_rng(4)
    weights = rng.laplace(size=(SAMPLES, 6)) * np.sqrt(v / 2)  # only second moments count
    filtered = a + np.diag(noise / v)
    found, steps = dithered(
        weights @ a @ np.linalg.inv(filtered),
        feedback_factor(filtered),
        np.sqrt(12 * codebook_power(g, noise) * noise),
        rng,
    )
    losses = cost(weights - found, a)
    assert abs(losses.mean() - universal_distortion(g, noise)) < 4 * losses.std() / np.sqrt(SAMPLES)
    rates = np.array([entropy(column) for column in found.T]) - np.log2(steps)
    bound = feedback_rates(a, v, noise)
    assert (rates < bound + 0.02).all()
    assert bound.sum() <= universal_rate(g, noise) + 6 * step_loss() + 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_no_form_loses_more_than_steps_and_the_worst_excess(seed):
    a, v = form(9, seed, seed), np.linspace(0.1, 3, 9)
    g = np.linalg.eigvalsh(np.sqrt(v)[:, None] * a * np.sqrt(v))
    for noise in (1e-5, 0.01, 1.0, 100.0):
        limit = linear_rate_distortion(v, a, universal_distortion(g, noise))
        assert (feedback_rates(a, v, noise).sum() - limit) / 9 <= step_loss() + worst_excess()


@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_correlated_weights_coded_given_those_before_lose_no_more(noise):
    a, v = form(7, 4, 7), form(7, 2, 8)
    filtered = a + noise * np.linalg.inv(v)
    g = np.linalg.eigvals(v @ a).real
    s = codebook_power(g, noise)
    wiener = np.linalg.solve(filtered, a)
    moments = wiener @ v @ wiener.T + s * noise * np.linalg.inv(filtered)
    rate = (np.linalg.slogdet(moments)[1] + np.linalg.slogdet(filtered)[1] - 7 * np.log(s * noise)) / np.log(4)
    assert rate <= universal_rate(g, noise)


@pytest.mark.parametrize("step", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("shift", [0.0, 0.3, 0.5])
def test_without_dither_errors_of_gaussian_targets_are_those_of_steps(step, shift):
    x = np.linspace(-12, 12, 2_000_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    aim = x + shift * step
    found = (density * (aim - step * np.rint(aim / step)) ** 2).sum() * (x[1] - x[0])
    theta = step**2 / 12
    assert abs(found - theta) <= 2 * theta * np.exp(-2 * np.pi**2 / step**2) + 1e-9
    assert abs(found - theta) <= 0.015 * theta


@pytest.mark.parametrize("decades", [0.5, 2])
def test_the_quantizer_has_the_loss_of_its_steps_at_high_rate(decades):
    a, n = form(32, decades, 5), 32
    weight = Weight("w", np.random.default_rng(6).normal(size=(4096, n)).astype(np.float32), Layout((4096, n)))
    theta = 0.01 * np.linalg.eigvalsh(a)[0]
    kronecker = KroneckerForm(np.ones(4096), a[None])
    found = Feedback(1).quantize(weight, kronecker, theta)
    power = float(np.square(weight.matrix, dtype=np.float64).mean())
    limit = linear_rate_distortion(np.full(n, power), a, found.distortion / 4096)
    assert found.bits / 4096 / n - limit / n == pytest.approx(step_loss(), abs=0.01)


def test_a_form_without_a_price_for_some_error_is_named():
    with pytest.raises(UsageError, match="not positive definite"):
        feedback_factor(np.ones((2, 2)))
