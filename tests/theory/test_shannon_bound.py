"""Lemma 1 and the Shannon lower bound against the exact functions, Blahut and Arimoto, and a solver."""

from math import e, fsum, inf, log, log2, nan, pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from waterfill.errors import UsageError
from waterfill.theory import lemma1, linear_lower_bound, linear_rate_distortion, shannon_lower_bound
from waterfill.theory.blahut_arimoto import generalized_gaussian_density, importance_limits, rate_at_distortion
from waterfill.theory.sources import gaussian, generalized_gaussian, laplace

DISCRETISATION = 4e-5
"""Bits between a density and the nodes of it that Blahut and Arimoto's rate is computed for."""

laws = settings(max_examples=100, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
shares = st.floats(1e-6, 1 - 1e-6)


def matrix(count, seed):
    """A covariance matrix."""
    mixing = np.random.default_rng(seed).normal(size=(count, 2 * count))
    return mixing @ mixing.T / count


def importances(seed):
    """One of each kind for weights [3, 4], and the whole matrix of each."""
    diagonal = np.random.default_rng(seed).gamma(1.0, size=(3, 4))
    inputs, outputs, dense = matrix(4, seed + 1), matrix(3, seed + 2), matrix(12, seed + 3)
    return [
        (diagonal, np.diag(diagonal.reshape(-1))),
        (dense, dense),
        ((inputs, outputs), np.kron(outputs, inputs)),
    ]


def entropy(variance):
    return np.log2(2 * pi * e * np.asarray(variance)) / 2


# Gaussian weights -----------------------------------------------------------------------------------------------------


@laws
@given(seeds, st.integers(1, 12), st.floats(1e-6, 1.5))
def test_for_gaussian_weights_and_a_diagonal_it_is_the_exact_function(seed, count, share):
    importance, variance = np.random.default_rng(seed).lognormal(0, 2, size=(2, count))
    distortion = share * float(importance @ variance)
    bits = shannon_lower_bound(gaussian(variance), importance, distortion)
    assert bits == pytest.approx(linear_rate_distortion(variance, importance, distortion), rel=1e-10, abs=1e-10)
    assert bits == pytest.approx(linear_lower_bound(variance, importance, distortion), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", [1, 2], ids=["dense", "Kronecker"])
@pytest.mark.parametrize("seed", range(5))
def test_for_gaussian_weights_and_a_matrix_it_is_the_exact_function(kind, seed):
    importance, whole = importances(seed)[kind]
    variance = np.random.default_rng(seed).gamma(1.0, size=(3, 4)) + 0.1
    source, flat = gaussian(variance), variance.reshape(-1)
    total = float(flat @ np.diag(whole))
    for share in (1e-8, 1e-4, 0.05, 0.2, 0.5, 0.9, 1.0, 1.5):
        bits = shannon_lower_bound(source, importance, share * total)
        assert bits == pytest.approx(linear_rate_distortion(flat, whole, share * total), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_with_a_matrix_it_is_lemma_1_at_small_distortion_and_more_at_large(seed):
    whole = importances(seed)[1][1]
    source = laplace(np.random.default_rng(seed).gamma(1.0, size=12) + 0.1)
    values, vectors = np.linalg.eigh(whole)
    components = gaussian(np.square(vectors).T @ source.variance).entropy  # at least those of the components
    total = float(source.variance @ np.diag(whole))
    gains = []
    for share in (1e-8, 0.05, 0.3, 0.6):
        caps = np.maximum(components, source.entropy.sum() / 12)
        surplus = float(source.entropy.sum() - caps.sum())
        lemma = lemma1(float(caps.sum()), caps, values, share * total) + surplus
        gains.append(shannon_lower_bound(source, whole, share * total) - lemma)
    assert gains[0] == pytest.approx(0, abs=1e-7)
    assert min(gains) > -1e-9 and max(gains) > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_of_factors_is_their_product(seed):
    pair, whole = importances(seed)[2]
    source = laplace(np.random.default_rng(seed).gamma(1.0, size=(3, 4)))
    total = float(source.variance.reshape(-1) @ np.diag(whole))
    for share in (1e-5, 1e-3, 0.05, 0.3):
        bits = shannon_lower_bound(source, pair, share * total)
        assert bits == pytest.approx(shannon_lower_bound(source, whole, share * total), rel=1e-9, abs=1e-9)


@laws
@given(seeds, st.integers(1, 8), st.floats(1e-6, 1.5))
def test_lemma_1_for_correlated_gaussian_weights_is_theorem_2(seed, count, share):
    covariance, importance = matrix(count, seed), np.random.default_rng(seed).lognormal(size=count)
    joint = float(np.linalg.slogdet(2 * pi * e * covariance)[1]) / log(4)
    distortion = share * float(importance @ np.diag(covariance))
    bits = lemma1(joint, entropy(np.diag(covariance)), importance, distortion)
    assert bits == pytest.approx(linear_lower_bound(covariance, importance, distortion), rel=1e-8, abs=1e-8)


# Any weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [0.8, 1.0, 1.5, 4.0])
def test_it_is_never_above_the_rate_of_blahut_and_arimoto_and_meets_it_at_high_rate(shape):
    gaps = []
    for distortion in (0.9, 0.4, 0.1, 0.01):
        point = rate_at_distortion(generalized_gaussian_density(shape), distortion)
        source = generalized_gaussian([3.0], shape)
        gaps.append(point.rate - shannon_lower_bound(source, [5.0], 15 * point.distortion))
    assert min(gaps) >= -DISCRETISATION
    assert gaps[0] > 1e-3
    assert gaps[-1] < 1e-3


@pytest.mark.parametrize("distortion", [1.2, 0.4, 0.05])
def test_weights_of_several_importances_cost_no_less(distortion):
    """Ten Laplacian weights, of three importances that both sides know, against one of a random importance."""
    importance, counts = np.array([0.2, 1.0, 5.0]), np.array([3, 5, 2])
    limits = importance_limits(generalized_gaussian_density(1), importance, counts / 10, distortion)
    point = limits.both
    bits = shannon_lower_bound(laplace(np.ones(10)), importance.repeat(counts), 10 * point.distortion) / 10
    assert point.rate - 0.15 < bits <= point.rate + DISCRETISATION


def most_entropy(entropies, importance, distortion):
    """`max sum min{h_i, 1/2 log2(2 pi e D_i)}` by a solver, over the logarithms of the `D_i`."""
    caps = np.exp2(2 * entropies) / (2 * pi * e)
    found = minimize(
        lambda logs: -logs.sum() / log(4),
        np.log(caps * min(1, 0.9 * distortion / (importance @ caps))),
        jac=lambda logs: np.full(logs.size, -1 / log(4)),
        bounds=[(None, log(cap)) for cap in caps],
        constraints={
            "type": "ineq",
            "fun": lambda logs: 1 - importance @ np.exp(logs) / distortion,
            "jac": lambda logs: -importance * np.exp(logs) / distortion,
        },
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    return len(caps) * log2(2 * pi * e) / 2 - found.fun


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_lemma_1_is_what_a_solver_leaves(seed, share):
    rng = np.random.default_rng(seed)
    entropies, importance = rng.normal(0, 1, size=5), rng.gamma(1.0, size=5) + 0.05
    distortion = share * float(importance @ np.exp2(2 * entropies)) / (2 * pi * e)
    joint = float(entropies.sum()) - 0.7
    expected = joint - most_entropy(entropies, importance, distortion)
    assert lemma1(joint, entropies, importance, distortion) == pytest.approx(expected, abs=1e-6)


@laws
@given(seeds, st.integers(1, 6), st.floats(-6, 1))
def test_no_share_of_the_distortion_leaves_less_than_lemma_1(seed, count, exponent):
    rng = np.random.default_rng(seed)
    entropies, importance = rng.normal(0, 2, size=count), rng.lognormal(size=count)
    distortion, joint = 10.0**exponent, float(entropies.sum()) - 1
    split = distortion * rng.dirichlet(np.ones(count)) / importance
    explained = np.minimum(entropies, np.log2(2 * pi * e * split) / 2).sum()
    assert lemma1(joint, entropies, importance, distortion) <= joint - explained + 1e-9


@laws
@given(seeds, st.integers(1, 6), st.floats(0, 9), shares)
def test_dependence_is_a_discount_in_bits(seed, count, discount, share):
    rng = np.random.default_rng(seed)
    source = laplace(rng.lognormal(size=count))
    importance = rng.lognormal(size=count)
    distortion, joint = share * float(importance @ source.variance), fsum(source.entropy)
    independent = lemma1(joint, source.entropy, importance, distortion)
    assert independent == pytest.approx(shannon_lower_bound(source, importance, distortion), abs=1e-9)
    bits = lemma1(joint - discount, source.entropy, importance, distortion)
    assert bits == pytest.approx(independent - discount, abs=1e-9)


# Laws -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(3), ids=["diagonal", "dense", "Kronecker"])
@pytest.mark.parametrize("make", [gaussian, laplace])
def test_it_falls_and_is_convex_in_the_distortion(make, kind):
    importance, whole = importances(7)[kind]
    source = make(np.random.default_rng(7).gamma(1.0, size=(3, 4)) + 0.1)
    distortions = np.linspace(0.003, 1, 300) * float(source.variance.reshape(-1) @ np.diag(whole))
    bits = np.array([shannon_lower_bound(source, importance, distortion) for distortion in distortions])
    assert bits[0] > 10
    assert (np.diff(bits)[bits[1:] > 0] < 0).all()
    assert (np.diff(bits, 2) > -1e-9).all()
    assert (bits >= 0).all()


@laws
@given(seeds, st.floats(0.3, 8), st.floats(-9, 3), st.integers(0, 2))
def test_it_is_never_negative_and_never_above_that_of_gaussian_weights(seed, shape, exponent, kind):
    rng = np.random.default_rng(seed)
    variance = rng.lognormal(0, 2, size=(3, 4)) * rng.choice([0.0, 1.0], p=[0.1, 0.9], size=(3, 4))
    importance, whole = importances(seed)[kind]
    source = generalized_gaussian(variance, shape)
    bits = shannon_lower_bound(source, importance, 10.0**exponent)
    assert 0 <= bits <= linear_rate_distortion(variance.reshape(-1), whole, 10.0**exponent) + 1e-7


@laws
@given(seeds, st.floats(-20, 20), st.floats(-20, 20), shares, st.integers(0, 2))
def test_the_units_of_weights_and_importance_play_no_role(seed, octaves, other_octaves, share, kind):
    importance, whole = importances(seed)[kind]
    variance = np.random.default_rng(seed).gamma(1.0, size=(3, 4)) + 0.1
    distortion = share * float(variance.reshape(-1) @ np.diag(whole))
    unit, other = 4.0**octaves, 2.0**other_octaves
    scaled = (importance[0] * other, importance[1]) if isinstance(importance, tuple) else importance * other
    plain = shannon_lower_bound(laplace(variance), importance, distortion)
    moved = shannon_lower_bound(laplace(variance * unit), scaled, distortion * unit * other)
    assert moved == pytest.approx(plain, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("kind", range(3), ids=["diagonal", "dense", "Kronecker"])
def test_no_distortion_costs_infinitely_many_bits_and_much_of_it_none(kind):
    importance, whole = importances(1)[kind]
    source = laplace(np.ones((3, 4)))
    assert shannon_lower_bound(source, importance, 0.0) == inf
    assert shannon_lower_bound(source, importance, float(np.trace(whole))) == 0


# Weights that are known -----------------------------------------------------------------------------------------------


@laws
@given(seeds, st.integers(1, 8), shares)
def test_known_weights_cost_nothing(seed, count, share):
    rng = np.random.default_rng(seed)
    variance, importance = rng.lognormal(size=(2, count))
    known = rng.random(count) < 0.5
    source = laplace(np.where(known, 0.0, variance))
    assert (np.isneginf(source.entropy) == known).all()
    distortion = share * float(importance @ variance)
    rest = shannon_lower_bound(laplace(variance[~known]), importance[~known], distortion)
    assert shannon_lower_bound(source, importance, distortion) == pytest.approx(rest, rel=1e-12)
    joint = float(source.entropy[~known].sum())
    assert lemma1(joint, source.entropy, importance, distortion) == pytest.approx(rest, abs=1e-9)
    assert shannon_lower_bound(source, importance, 0.0) == (0 if known.all() else inf)


@laws
@given(seeds, shares)
def test_a_weight_without_importance_costs_nothing(seed, share):
    variance, importance = np.random.default_rng(seed).lognormal(size=(2, 6))
    ignored = np.where(np.arange(6) < 3, 0.0, importance)
    distortion = share * float(ignored @ variance)
    rest = shannon_lower_bound(laplace(variance[3:]), importance[3:], distortion)
    assert shannon_lower_bound(laplace(variance), ignored, distortion) == pytest.approx(rest, rel=1e-12)


@pytest.mark.parametrize("share", [1e-6, 1e-3, 0.1])
def test_known_weights_never_raise_the_bound_of_a_matrix(share):
    dense, live = matrix(6, 0), np.array([True, True, False, True, False, True])
    source = gaussian(np.where(live, 2.0, 0.0))
    exact = linear_rate_distortion(source.variance, dense, share)
    assert 0 <= shannon_lower_bound(source, dense, share) <= exact * (1 + 1e-12)
    assert shannon_lower_bound(gaussian(np.zeros(6)), dense, share) == 0


# Arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surplus", [1e-6, 1.0, 100.0])
def test_a_joint_entropy_above_the_sum_is_refused(surplus):
    with pytest.raises(UsageError, match=r"joint_entropy .* is above the sum 3 of the marginal entropies; .* \(bits\)"):
        lemma1(3 + surplus, [1.0, 2.0], [1.0, 1.0], 0.1)
    with pytest.raises(UsageError, match=r"joint_entropy .* is above the sum 1 "):
        lemma1(1 + surplus, [1.0, -inf], [1.0, 1.0], 0.1)


def test_rounding_of_a_joint_entropy_is_none():
    assert lemma1(3 + 1e-12, [1.0, 2.0], [1.0, 1.0], 0.1) == pytest.approx(lemma1(3.0, [1.0, 2.0], [1.0, 1.0], 0.1))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: lemma1(0.0, [1.0, nan], [1, 1], 0.1), r"marginal_entropies \[2\] must be numbers or minus infinity"),
        (lambda: lemma1(0.0, [1.0, inf], [1, 1], 0.1), r"marginal_entropies \[2\] must be numbers or minus infinity"),
        (lambda: lemma1(0.0, ["much"], [1], 0.1), r"An entropy is no number .*; give h\(W\) and h\(W_i\) in bits"),
        (lambda: lemma1(nan, [1.0], [1], 0.1), "joint_entropy is nan; expected a finite number of bits"),
        (lambda: lemma1(inf, [1.0], [1], 0.1), "joint_entropy is inf; expected a finite number of bits"),
        (lambda: lemma1(0.0, [1.0], [1, 1], 0.1), r"marginal_entropies \[1\] .* in the shape of importance \[2\]"),
        (lambda: lemma1(0.0, [1.0], [-1], 0.1), "importance has the entry -1; expected numbers of at least zero"),
        (lambda: lemma1(0.0, [1.0], [1], -0.1), "distortion is -0.1; expected a number of at least zero"),
        (lambda: shannon_lower_bound(laplace([1.0]), [1], -1.0), "distortion is -1; expected a number of at least"),
        (lambda: shannon_lower_bound(laplace([1.0]), [1], nan), "distortion has 1 of 1 entries that are NaN"),
        (lambda: shannon_lower_bound(laplace([1.0, 2.0]), [1], 0.1), r"Importance .* does not fit weights of shape"),
    ],
)
def test_a_bad_argument_is_named(call, text):
    with pytest.raises(UsageError, match=text):
        call()


def test_a_known_weight_leaves_a_matrix_without_its_row_and_column():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    matrix, variance = root @ root.T, rng.random(6) + 0.5
    live = np.array([True, False, True, True, False, True])
    source = gaussian(np.where(live, variance, 0.0))
    block = matrix[np.ix_(live, live)]
    for distortion in (0.01, 0.3, 2.0):
        expected = shannon_lower_bound(gaussian(variance[live]), block, distortion)
        assert shannon_lower_bound(source, matrix, distortion) == pytest.approx(expected, rel=1e-12)
        assert expected > 0 or distortion == 2.0
    assert shannon_lower_bound(gaussian(np.zeros(6)), matrix, 0.1) == 0
    assert shannon_lower_bound(gaussian(np.zeros((2, 3))), (np.eye(3), np.eye(2)), 0.1) == 0


# Cross terms ----------------------------------------------------------------------------------------------------------


def rate_of_pairs(form, slope, step=0.35, reach=5.6):
    """Rate and distortion of two Laplacian weights of variance 1 under a form, by Blahut and Arimoto on a grid."""
    nodes = np.arange(-reach, reach + step / 2, step)
    edges = np.concatenate([[-inf], (nodes[1:] + nodes[:-1]) / 2, [inf]])
    below = np.where(edges < 0, np.exp(2**0.5 * np.minimum(edges, 0)) / 2, 1 - np.exp(-(2**0.5) * np.abs(edges)) / 2)
    p = np.outer(np.diff(below), np.diff(below)).reshape(-1)
    points = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 2) @ np.linalg.cholesky(form)
    squares = np.square(points).sum(1)
    costs = np.maximum(0, squares[:, None] + squares - 2 * points @ points.T)
    kernel, q = np.exp(-slope * costs), np.full(len(p), 1 / len(p))
    for _ in range(150):
        q = q * (kernel.T @ (p / (kernel @ q)))
    joint = p[:, None] * kernel * q / (kernel @ q)[:, None]
    distortion = float((joint * costs).sum())
    return float(-slope * distortion - p @ np.log(kernel @ q)) / log(2), distortion


@pytest.mark.parametrize(("correlation", "slope"), [(0.0, 0.7), (0.8, 0.5), (0.8, 1.0), (0.8, 3.0), (-0.95, 1.5)])
def test_with_cross_terms_it_is_below_the_rate_of_blahut_and_arimoto(correlation, slope):
    form = np.array([[1.0, correlation], [correlation, 1.0]])
    rate, distortion = rate_of_pairs(form, slope)
    bits = shannon_lower_bound(laplace(np.ones(2)), form, distortion)
    assert 0.2 < bits <= rate
    assert bits > 0.6 * rate
