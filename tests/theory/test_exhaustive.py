"""All candidates of a small ReLU unit against loops, solvers and simulation: what is left of Corollaries 1 and 2."""

import itertools
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from scipy.optimize import minimize

from waterfill.errors import UsageError
from waterfill.theory.exhaustive import exhaustive_pruning, exhaustive_quantization, exhaustive_refit
from waterfill.theory.relu import (
    best_scale,
    least_error,
    projection_error,
    relu_error,
    sigma_cosine,
    simulate_relu_error,
)


def unit(count, seed):
    """Weights, variances, and a covariance matrix."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(count, count))
    return rng.normal(size=count), rng.gamma(1.0, size=count), mixing @ mixing.T / count


@pytest.mark.parametrize("count", range(6, 11))
@pytest.mark.parametrize("seed", range(5))
def test_corollary_1_the_objective_finds_the_mask_of_least_error(count, seed):
    w, variances, _ = unit(count, seed)
    for kept in range(count + 1):
        search = exhaustive_pruning(w, variances, kept)
        assert search.agree
        assert search.candidates == math.comb(count, kept)
        chosen = search.by_error
        assert set(np.flatnonzero(chosen.labels)) == set(np.argsort(variances * w**2)[count - kept :])
        np.testing.assert_array_equal(chosen.w_hat, w * chosen.labels)
        assert chosen.error == pytest.approx(relu_error(w, chosen.w_hat, variances), rel=1e-12)
        assert chosen.objective == pytest.approx(float((variances * (w - chosen.w_hat) ** 2).sum()), abs=1e-14)


def test_both_masks_of_a_search_are_minima_over_all_of_them():
    w, variances, _ = unit(7, 2)
    masks = [np.isin(np.arange(7), places) for places in itertools.combinations(range(7), 3)]
    search = exhaustive_pruning(w, np.diag(variances), 3)
    assert search.by_error.error == pytest.approx(min(relu_error(w, w * mask, variances) for mask in masks), rel=1e-12)
    assert search.by_objective.objective == pytest.approx(
        min(float((variances * w**2)[~mask].sum()) for mask in masks), rel=1e-12
    )


def correlated_errors(w, sigma, kept):
    """Objective and error of every mask with the kept weights as they are."""
    found = []
    for places in itertools.combinations(range(len(w)), kept):
        w_hat = np.where(np.isin(np.arange(len(w)), places), w, 0.0)
        found.append(((w - w_hat) @ sigma @ (w - w_hat), relu_error(w, w_hat, sigma)))
    return np.array(found)


def test_corollary_1_needs_a_refit_for_correlated_inputs():
    wrong = 0
    for seed in range(20):
        w, _, sigma = unit(8, seed)
        for kept in range(1, 8):
            objectives, errors = correlated_errors(w, sigma, kept).T
            as_they_are = exhaustive_pruning(w, sigma, kept)
            assert as_they_are.by_objective.error == pytest.approx(errors[objectives.argmin()], rel=1e-9)
            assert as_they_are.by_error.error == pytest.approx(errors.min(), rel=1e-9)
            assert as_they_are.agree == (objectives.argmin() == errors.argmin())
            wrong += not as_they_are.agree
            refit = exhaustive_refit(w, sigma, kept)
            assert refit.agree
            assert refit.by_error.error <= errors.min() + 1e-12  # weights as they are, are among the free ones
    assert 0 < wrong < 30  # of 140


def test_a_refit_without_the_scale_can_be_worse_than_none():
    w, sigma = [1.0, -0.8], [[1.0, 0.05], [0.05, 1.0]]
    refit, as_they_are = exhaustive_refit(w, sigma, 1), exhaustive_pruning(w, sigma, 1)
    assert refit.by_error.error < as_they_are.by_error.error < refit.by_objective.error


def test_refit_is_least_squares_on_the_kept_weights():
    w, variances, sigma = unit(6, 1)
    search = exhaustive_refit(w, sigma, 3)
    kept = search.by_objective.labels.astype(bool)
    fitted = np.linalg.solve(sigma[np.ix_(kept, kept)], sigma[kept] @ w)
    np.testing.assert_allclose(search.by_objective.w_hat[kept], fitted, rtol=1e-9)
    assert not search.by_objective.w_hat[~kept].any()
    scale = best_scale(sigma_cosine(w, search.by_objective.w_hat, sigma))
    np.testing.assert_allclose(search.by_error.w_hat[kept], scale * fitted, rtol=1e-9)
    as_they_are = exhaustive_refit(w, variances, 3)  # uncorrelated inputs: nothing to fit
    np.testing.assert_allclose(
        as_they_are.by_objective.w_hat, exhaustive_pruning(w, variances, 3).by_error.w_hat, atol=1e-12
    )


@pytest.mark.parametrize("kept", [0, 4])
def test_nothing_and_everything_kept(kept):
    w, _, sigma = unit(4, 0)
    for search in (exhaustive_refit(w, sigma, kept), exhaustive_pruning(w, np.diag(sigma), kept)):
        assert search.candidates == 1
        np.testing.assert_allclose(search.by_error.w_hat, w * (kept > 0), rtol=1e-7)


@pytest.mark.parametrize(("count", "clusters"), [(6, 2), (7, 2), (8, 3), (9, 2), (10, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_corollary_2_same_partition_and_direction_but_longer(count, clusters, seed):
    w, variances, sigma = unit(count, seed)
    for covariance in (variances, sigma):
        search = exhaustive_quantization(w, covariance, clusters)
        assert search.agree
        paper, truth = search.by_objective, search.by_error
        rho = sigma_cosine(w, paper.w_hat, covariance)
        np.testing.assert_allclose(truth.w_hat, best_scale(rho) * paper.w_hat, rtol=1e-9)
        np.testing.assert_array_equal(truth.w_hat, search.corrected.w_hat)
        assert truth.error == search.corrected.error < paper.error
        assert truth.objective > paper.objective
        power = relu_error(w, 0 * w, covariance) * 2
        assert paper.error == pytest.approx(float(projection_error(rho, power)), rel=1e-9)
        assert truth.error == pytest.approx(float(least_error(rho, power)), rel=1e-9)


def test_the_scale_lowers_the_error_of_a_simulation():
    w, variances, _ = unit(6, 6)
    search = exhaustive_quantization(w, variances, 2)
    before, after = (
        simulate_relu_error(w, each.w_hat, variances, 2_000_000, 0) for each in (search.by_objective, search.corrected)
    )
    assert after[0] < before[0]
    assert abs(before[0] - search.by_objective.error) < 4 * before[1]
    assert abs(after[0] - search.corrected.error) < 4 * after[1]


def two_clusters(count):
    """Every partition into at most two clusters, as tuples of labels."""
    return [(0, *rest) for rest in itertools.product((0, 1), repeat=count - 1)]


def weighted_means(w, variances, labels):
    w_hat = np.empty(len(w))
    for label in set(labels):
        members = np.array(labels) == label
        w_hat[members] = np.average(w[members], weights=variances[members])
    return w_hat


@pytest.mark.parametrize("seed", range(3))
def test_the_objectives_winner_is_the_best_of_all_weighted_means(seed):
    w, variances, _ = unit(6, seed)
    all_means = {labels: weighted_means(w, variances, labels) for labels in two_clusters(6)}
    objective = {labels: float((variances * (w - w_hat) ** 2).sum()) for labels, w_hat in all_means.items()}
    best = min(objective, key=objective.get)
    search = exhaustive_quantization(w, variances, 2)
    assert search.candidates == len(all_means) == 32
    assert tuple(search.by_objective.labels) == best
    np.testing.assert_allclose(search.by_objective.w_hat, all_means[best], rtol=1e-9)
    assert search.by_objective.objective == pytest.approx(objective[best], rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_no_numerical_optimum_of_the_true_error_is_lower(seed):
    w, variances, sigma = unit(6, seed)
    rng = np.random.default_rng(seed)
    for covariance in (variances, sigma):
        best = {}
        for labels in two_clusters(6):
            index = np.array(labels)
            starts = [[w.mean(), w.mean()], [w.max(), w.min()], rng.normal(size=2), rng.normal(size=2)]
            found = [minimize(lambda c, i=index: relu_error(w, c[i], covariance), start) for start in starts]  # noqa: B023
            best[labels] = min(found, key=lambda result: result.fun)
        winner = min(best, key=lambda labels: best[labels].fun)
        truth = exhaustive_quantization(w, covariance, 2).by_error
        assert tuple(truth.labels) == winner
        assert truth.error <= best[winner].fun + 1e-12
        assert truth.error == pytest.approx(best[winner].fun, rel=1e-6)
        np.testing.assert_allclose(truth.w_hat, best[winner].x[list(winner)], atol=1e-3)


@pytest.mark.parametrize(("count", "clusters", "partitions"), [(1, 1, 1), (4, 4, 15), (5, 9, 52), (10, 3, 9842)])
def test_every_partition_is_tried_once(count, clusters, partitions):
    assert exhaustive_quantization(*unit(count, 0)[:2], clusters).candidates == partitions


def test_as_many_clusters_as_weights_lose_nothing():
    w, _, sigma = unit(5, 0)
    search = exhaustive_quantization(w, sigma, 5)
    np.testing.assert_allclose(search.by_error.w_hat, w, rtol=1e-7)
    assert search.by_error.error == pytest.approx(0, abs=1e-20)


def test_a_projection_of_zero_has_a_better_length():
    search = exhaustive_quantization([1.0, -1.0], [1.0, 1.0], 1)
    np.testing.assert_allclose(search.by_objective.w_hat, [0, 0], atol=1e-15)
    np.testing.assert_allclose(search.by_error.w_hat, [1 / math.pi, 1 / math.pi])
    assert search.by_objective.error == pytest.approx(1.0)
    assert search.by_error.error == pytest.approx(1 - 1 / math.pi**2)


@pytest.mark.parametrize("search", [exhaustive_refit, exhaustive_quantization])
def test_a_unit_that_is_always_zero_stays_so(search):
    for w, variances in ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]):
        found = search(w, variances, 2)
        assert found.by_error.error == found.by_objective.error == 0


def test_records_are_frozen():
    search = exhaustive_pruning([1.0, 2.0], [1.0, 1.0], 1)
    with pytest.raises(FrozenInstanceError):
        search.candidates = 3


# Arguments ------------------------------------------------------------------------------------------------------------


def test_numbers_out_of_range_are_named():
    with pytest.raises(UsageError, match=r"kept is 3; expected a whole number from 0 to 2"):
        exhaustive_pruning([1.0, 2.0], [1.0, 1.0], 3)
    with pytest.raises(UsageError, match=r"clusters is 0; expected a whole number of at least 1"):
        exhaustive_quantization([1.0, 2.0], [1.0, 1.0], 0)


def test_too_many_candidates_are_refused_before_they_are_made():
    w = np.ones(17)
    for call in (exhaustive_pruning, exhaustive_refit, exhaustive_quantization):
        with pytest.raises(UsageError, match=r"w has 17 weights; expected at most 16, to try all candidates. Give"):
            call(w, w, 1)
    with pytest.raises(UsageError, match=r"13 weights in 3 clusters have more than 100000 partitions; expected few"):
        exhaustive_quantization(w[:13], w[:13], 3)
