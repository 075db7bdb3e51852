from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from waterfill.errors import UsageError
from waterfill.quantize import kmeans_kernels as kernels
from waterfill.quantize.kmeans import cost, exact_kmeans, lloyd, relu_rescale
from waterfill.theory.exhaustive import exhaustive_quantization
from waterfill.theory.relu import best_scale, sigma_cosine

STARTS = ("quantile", "linear", "kmeans++")


# Slow twins


def centroid(w, i, h):
    """The best centroid of one cluster: a root of the derivative, by bracketing."""
    at = (i > 0) | (h > 0)
    w, i, h = w[at], i[at], h[at]
    if w.min() == w.max():
        return w[0]
    middle = (w.min() + w.max()) / 2

    def slope(c):
        return (i * (c + middle - w) + 2 * h * (c + middle - w) ** 3).sum()

    return middle + brentq(slope, w.min() - middle, w.max() - middle, xtol=1e-300, rtol=1e-15, maxiter=500)


def cluster_cost(w, i, h):
    """Its cost, around its own centroid."""
    if not (i.any() or h.any()):
        return 0.0
    error = w - centroid(w, i, h)
    return (i * error**2 + h * error**4).sum()


def best_contiguous(w, i, h, k):
    """The least cost over all ways to cut sorted weights into at most k clusters."""
    order = np.argsort(w)
    w, i, h = w[order], i[order], h[order]
    return min(
        sum(cluster_cost(w[a:b], i[a:b], h[a:b]) for a, b in zip((0, *cuts), (*cuts, len(w)), strict=True))
        for count in range(min(k, len(w)))
        for cuts in combinations(range(1, len(w)), count)
    )


def all_partitions(count, k):
    """Every labelling of so many weights with at most k labels, up to renaming."""
    if count == 0:
        yield ()
        return
    for head in all_partitions(count - 1, k):
        for label in range(min(max(head, default=-1) + 2, k)):
            yield (*head, label)


def plain_programme(w, i, k):
    """The least quadratic cost of exactly k clusters by the O(k n^2) programme, from prefix sums; sorted weights."""
    n = len(w)
    s0, s1, s2 = (np.concatenate([[0.0], np.cumsum(x)]) for x in (i, i * w, i * w * w))
    a, b = np.triu_indices(n)
    costs = np.full((n, n), np.inf)
    costs[a, b] = s2[b + 1] - s2[a] - (s1[b + 1] - s1[a]) ** 2 / (s0[b + 1] - s0[a])
    best = costs[0]
    for _ in range(k - 1):
        best = (np.concatenate([[np.inf], best[:-1]])[:, None] + costs).min(axis=0)
    return best[-1]


@st.composite
def problems(draw, most=9):
    """Few weights, with ties, wide importances, some zero, and a quartic term or none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, most))
    w = rng.normal(size=n) * draw(st.sampled_from([1.0, 1e-3, 30.0])) + draw(st.sampled_from([0.0, 5.0]))
    w[rng.random(n) < 0.3] = w[0]
    importance = rng.lognormal(sigma=draw(st.sampled_from([0.0, 2.0])), size=n) * (rng.random(n) > 0.15)
    quartic = rng.lognormal(size=n) * draw(st.sampled_from([0.0, 0.01, 1.0, 1000.0])) * (rng.random(n) > 0.15)
    return w, importance, quartic, draw(st.integers(1, 5))


def weights_like_a_network(n, seed=0):
    """A mixture of widths and a few outliers, with importances over four decades, as float32."""
    rng = np.random.default_rng(seed)
    w = rng.laplace(size=n) * rng.choice([0.01, 0.05, 0.3], size=n)
    w[: n // 1000] *= 20
    return w.astype(np.float32), rng.lognormal(sigma=2.0, size=n).astype(np.float32)


# The optimum


@given(problems())
@settings(max_examples=150, deadline=None)
def test_the_optimum_is_that_of_all_contiguous_partitions(problem):
    w, importance, quartic, k = problem
    if not importance.any() and not quartic.any():
        importance = np.ones_like(w)
    best = best_contiguous(w, importance, quartic, k)
    scale = cluster_cost(w, importance, quartic)
    for exact in (False, True):
        centroids, labels = exact_kmeans(w, importance, k, quartic=quartic, exact=exact)
        assert cost(w, importance, centroids, labels, quartic) == pytest.approx(best, rel=1e-9, abs=1e-14 * scale)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("with_quartic", [False, True])
def test_no_partition_at_all_is_better(seed, with_quartic):
    rng = np.random.default_rng(seed)
    w, importance = rng.normal(size=7), rng.lognormal(sigma=1.5, size=7)
    quartic = rng.lognormal(sigma=2.0, size=7) * with_quartic
    for k in (2, 3):
        best = min(
            sum(cluster_cost(w[at], importance[at], quartic[at]) for at in (labels == j for j in range(k)) if at.any())
            for labels in map(np.array, all_partitions(7, k))
        )
        centroids, labels = exact_kmeans(w, importance, k, quartic=quartic)
        assert cost(w, importance, centroids, labels, quartic) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("n", [37, 64, 65, 300])
@pytest.mark.parametrize("k", [1, 2, 7, 30])
def test_the_optimum_is_that_of_the_plain_programme(n, k):
    rng = np.random.default_rng(n)
    w, importance = np.sort(rng.standard_t(3, size=n)), rng.lognormal(sigma=1.5, size=n)
    centroids, labels = exact_kmeans(w, importance, k)
    assert cost(w, importance, centroids, labels) == pytest.approx(plain_programme(w, importance, k), rel=1e-8)
    assert len(centroids) == k and (np.diff(centroids) > 0).all() and set(labels) == set(range(k))


@pytest.mark.parametrize("name", ["quadratic", "quartic", "both"])
def test_the_optimum_of_many_weights_is_that_of_the_plain_programme_on_the_costs_of_the_table(name):
    rng = np.random.default_rng(3)
    n, k = 150, 12
    w = np.sort(rng.laplace(size=n))
    importance, quartic = rng.lognormal(size=n) * (name != "quartic"), rng.lognormal(size=n) * (name != "quadratic")
    costs = np.full((n, n), np.inf)
    for a, b in combinations(range(n + 1), 2):
        costs[a, b - 1] = cluster_cost(w[a:b], importance[a:b], quartic[a:b])
    best = costs[0]
    for _ in range(k - 1):
        best = (np.concatenate([[np.inf], best[:-1]])[:, None] + costs).min(axis=0)
    centroids, labels = exact_kmeans(w, importance, k, quartic=quartic, exact=True)
    assert cost(w, importance, centroids, labels, quartic) == pytest.approx(best[-1], rel=1e-11)


def test_the_codebook_is_the_one_of_least_objective_of_a_unit():
    rng = np.random.default_rng(5)
    w, variances = rng.normal(size=8), rng.gamma(1.0, size=8)
    found = exhaustive_quantization(w, variances, clusters=3)
    centroids, labels = exact_kmeans(w, variances, 3)
    assert centroids[labels] == pytest.approx(found.by_objective.w_hat)
    assert relu_rescale(w, variances, centroids, labels)[labels] == pytest.approx(found.corrected.w_hat)


def test_bins_and_polish_stay_within_1e_5_of_the_optimum():
    w, importance = weights_like_a_network(50_000)
    for k in (16, 64):
        best = cost(w, importance, *exact_kmeans(w, importance, k, exact=True))
        merged = cost(w, importance, *exact_kmeans(w, importance, k, bins=256 * k))
        assert best * (1 - 1e-12) <= merged <= best * (1 + 1e-5)


def test_a_quarter_of_the_bins_is_enough_with_polish():
    w, importance = weights_like_a_network(50_000)
    best = cost(w, importance, *exact_kmeans(w, importance, 64, exact=True))
    assert cost(w, importance, *exact_kmeans(w, importance, 64, bins=4096)) <= best * (1 + 1e-5)


def test_bins_of_a_quartic_cost_stay_within_1e_5_of_the_optimum():
    w, importance = weights_like_a_network(20_000, seed=1)
    quartic = 30 * importance[::-1]
    best = cost(w, importance, *exact_kmeans(w, importance, 16, quartic=quartic, exact=True), quartic)
    merged = cost(w, importance, *exact_kmeans(w, importance, 16, quartic=quartic, bins=4096), quartic)
    assert best * (1 - 1e-12) <= merged <= best * (1 + 1e-5)


def test_far_clumps_lose_no_digits():
    rng = np.random.default_rng(2)
    clumps = [rng.normal(size=40) * 1e-3 + at for at in (-1e4, 0.0, 3.0, 1e4)]
    for quartic in (None, np.ones(160)):
        one = [exact_kmeans(c, None, 3, quartic=None if quartic is None else quartic[:40]) for c in clumps]
        each = [cost(c, None, *o, None if quartic is None else quartic[:40]) for c, o in zip(clumps, one, strict=True)]
        found = cost(np.concatenate(clumps), None, *exact_kmeans(np.concatenate(clumps), None, 12, quartic=quartic))
        assert found <= sum(each) * (1 + 1e-9)
    zeros, ones = np.zeros(160), np.ones(160)
    everything = np.concatenate(clumps)
    found = exact_kmeans(everything, zeros, 12, quartic=ones)
    expected = sum(cost(c, zeros[:40], *exact_kmeans(c, zeros[:40], 3, quartic=ones[:40]), ones[:40]) for c in clumps)
    assert cost(everything, zeros, *found, ones) <= expected * (1 + 1e-6)


# The pieces


@pytest.mark.parametrize("name", ["quadratic", "quartic", "both"])
def test_costs_of_intervals_obey_the_quadrangle_inequality(name):
    rng = np.random.default_rng(0)
    n = 24
    w = np.sort(rng.standard_t(2, size=n))
    importance = rng.lognormal(sigma=2.0, size=n) * (name != "quartic")
    quartic = rng.lognormal(sigma=2.0, size=n) if name != "quadratic" else np.empty(0)
    places, moments = kernels.merge(w, importance, quartic, np.arange(n + 1))
    table = kernels.sparse_table(places, moments)
    costs = np.array(
        [[kernels.range_cost(table, moments, a, b) if a <= b else 0.0 for b in range(n)] for a in range(n)]
    )
    plain = quartic if quartic.size else np.zeros(n)
    for a, b in combinations(range(n + 1), 2):
        expected = cluster_cost(w[a:b], importance[a:b], plain[a:b])
        assert costs[a, b - 1] == pytest.approx(expected, rel=1e-9, abs=1e-13 * costs.max())
    for a, b, c, d in combinations(range(n), 4):
        assert costs[a, c] + costs[b, d] <= (costs[a, d] + costs[b, c]) * (1 + 1e-12)


def test_merged_weights_cost_what_they_cost_apart():
    rng = np.random.default_rng(4)
    w = np.sort(rng.laplace(size=60))
    importance, quartic = rng.lognormal(size=(2, 60))
    starts = np.array([0, 1, 9, 10, 24, 40, 41, 58, 60])
    places, moments = kernels.merge(w, importance, quartic, starts)
    table = kernels.sparse_table(places, moments)
    for a, b in combinations(range(len(starts)), 2):
        run = slice(starts[a], starts[b])
        expected = cluster_cost(w[run], importance[run], quartic[run])
        assert kernels.range_cost(table, moments, a, b - 1) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-6, 1.0, 1e6, 1e30]), st.sampled_from([1, 2, 40]))
@settings(max_examples=150, deadline=None)
def test_the_quartic_centroid_is_where_the_cost_is_least(seed, factor, n):
    rng = np.random.default_rng(seed)
    w = np.sort(rng.standard_t(2, size=n))
    importance, quartic = rng.lognormal(sigma=3.0, size=n), rng.lognormal(sigma=3.0, size=n) * factor
    found = kernels.centroids(w, importance, quartic, np.array([0, n]), np.zeros(1))[0]
    assert found == pytest.approx(centroid(w, importance, quartic), rel=1e-9, abs=1e-9 * np.ptp(w))
    if factor == 0:
        assert found == pytest.approx(np.average(w, weights=importance), rel=1e-12, abs=1e-12)


def test_a_quartic_term_alone_has_its_centroid_too():
    centroids, labels = exact_kmeans([0.0, 1.0, 3.0], np.zeros(3), 1, quartic=[1.0, 0.0, 1.0])
    assert centroids == pytest.approx([1.5]) and (labels == 0).all()
    centroids, _ = exact_kmeans([0.0, 3.0], np.zeros(2), 1, quartic=[8.0, 1.0])  # 8 c^3 = (3 - c)^3
    assert centroids == pytest.approx([1.0])


def test_bins_keep_everything_in_order():
    w, importance = weights_like_a_network(5_000)
    w = np.unique(w.astype(np.float64))
    starts = kernels.bin_starts(w, importance[: w.size].astype(np.float64), 300)
    assert starts[0] == 0 and starts[-1] == w.size and (np.diff(starts) > 0).all() and 75 <= len(starts) - 1 <= 300


# Laws


@given(problems(), st.sampled_from([1e-140, 1e-60, 0.5, 4.0, 1e60]), st.floats(-50, 50))
@settings(max_examples=80, deadline=None)
def test_the_codebook_follows_scale_and_shift(problem, scale, shift):
    w, importance, quartic, k = problem
    centroids, labels = exact_kmeans(w, importance, k, quartic=quartic)
    before = cost(w, importance, centroids, labels, quartic)
    moved = exact_kmeans(w * scale, importance, k, quartic=quartic / scale**2)
    assert cost(w, importance, moved[0] / scale, moved[1], quartic) == pytest.approx(before, rel=1e-9, abs=1e-25)
    moved = exact_kmeans(w + shift, importance, k, quartic=quartic)
    assert cost(w + shift, importance, *moved, quartic) == pytest.approx(before, rel=1e-6, abs=1e-20)


@given(problems(), st.sampled_from([1e-290, 1e-30, 3.0, 1e30, 1e290]))
@settings(max_examples=60, deadline=None)
def test_the_scale_of_the_importance_changes_nothing(problem, factor):
    w, importance, quartic, k = problem
    first = exact_kmeans(w, importance, k, quartic=quartic)
    other = exact_kmeans(w, importance * factor, k, quartic=quartic * factor)
    before, after = (cost(w, importance, *found, quartic) for found in (first, other))
    assert after == pytest.approx(before, rel=1e-9, abs=1e-25)


@given(problems(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_importances_are_multiplicities_and_order_is_nothing(problem, seed):
    w, _, quartic, k = problem
    rng = np.random.default_rng(seed)
    times = rng.integers(1, 4, w.size)
    merged = exact_kmeans(w, times, k, quartic=quartic * times)
    order = rng.permutation(times.sum())
    single = exact_kmeans(w.repeat(times)[order], None, k, quartic=quartic.repeat(times)[order])
    assert single[0] == pytest.approx(merged[0], rel=1e-9, abs=1e-12)
    assert (single[1] == merged[1].repeat(times)[order]).all()


def test_more_clusters_never_cost_more():
    w, importance = weights_like_a_network(3_000)
    costs = [cost(w, importance, *exact_kmeans(w, importance, k)) for k in range(1, 40)]
    assert (np.diff(costs) < 0).all()


@given(problems(most=60), st.sampled_from(STARTS), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_lloyd_never_beats_the_optimum_and_never_rises(problem, start, iterations):
    w, importance, quartic, k = problem
    if not importance.any() and not quartic.any():
        importance = np.ones_like(w)
    best = cost(w, importance, *exact_kmeans(w, importance, k, quartic=quartic), quartic)
    scale = cluster_cost(w, importance, quartic)
    costs = [
        cost(w, importance, *lloyd(w, importance, k, start=start, quartic=quartic, iterations=n), quartic)
        for n in (iterations, iterations + 1)
    ]
    assert best - 1e-13 * scale <= costs[1] * (1 + 1e-12) <= costs[0] * (1 + 1e-11) + 1e-13 * scale


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("with_quartic", [False, True])
def test_lloyd_is_the_plain_one(start, with_quartic):
    rng = np.random.default_rng(7)
    w, importance, k = rng.normal(size=500), rng.lognormal(size=500), 6
    quartic = rng.lognormal(size=500) * with_quartic
    starts = {
        "quantile": np.quantile(w, (np.arange(k) + 0.5) / k),
        "linear": np.linspace(w.min(), w.max(), k),
    }
    if start in starts:
        centroids = starts[start]
        for _ in range(5):
            labels = np.abs(w[:, None] - centroids).argmin(axis=1)
            centroids = np.array(
                [centroid(w[at], importance[at], quartic[at]) for at in (labels == np.arange(k)[:, None])]
            )
        found = lloyd(w, importance, k, start=start, quartic=quartic, iterations=5)
        assert found[0] == pytest.approx(centroids, rel=1e-9) and (found[1] == labels).all()
    found = lloyd(w, importance, k, start=start, quartic=quartic, iterations=1000)
    nearest = np.abs(w[:, None] - found[0]).argmin(axis=1)
    assert (found[1] == nearest).all()
    for j, value in enumerate(found[0]):
        at = nearest == j
        assert value == pytest.approx(centroid(w[at], importance[at], quartic[at]), rel=1e-9)


def test_seeds_of_plus_plus_are_kept_and_matter():
    w, importance = weights_like_a_network(2_000)
    first, again, other = (lloyd(w, importance, 8, start="kmeans++", seed=seed)[0] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_plus_plus_draws_by_cost():
    weights, importance = np.array([0.0, 1.0, 3.0]), np.array([1.0, 1.0, 2.0])
    found = [
        kernels.plus_plus(weights, importance, np.empty(0), np.array([0.1, u])).tolist()[1]
        for u in (np.arange(1000) + 0.5) / 1000
    ]  # from 0, the chances are 1 : 18
    assert found.count(1.0) == pytest.approx(1000 / 19, abs=1) and found.count(0.0) == 0


def test_an_empty_cluster_stays_where_it_was():
    centroids, labels = lloyd([0.0, 0.1, 10.0], None, 5, start="linear")
    assert centroids == pytest.approx([0.05, 2.5, 5.0, 7.5, 10.0]) and labels.tolist() == [0, 0, 4]


@given(problems(most=40))
@settings(max_examples=80, deadline=None)
def test_rule_1_holds_for_the_optimum(problem):
    w, importance, _, k = problem
    centroids, labels = exact_kmeans(w, importance, k)
    w_hat = centroids[labels]
    assert (importance * w_hat * (w - w_hat)).sum() == pytest.approx(0, abs=1e-12 * (importance * w * w).sum() + 1e-300)


# Corners


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_as_many_clusters_as_distinct_weights_cost_nothing(k):
    w = np.array([3.0, -1.0, 3.0, 0.5, -1.0], np.float32)
    centroids, labels = exact_kmeans(w, [1.0, 0.0, 2.0, 0.0, 0.0], k)
    if k >= 3:
        assert centroids.tolist() == [-1.0, 0.5, 3.0] and (centroids[labels] == w).all()
    else:
        assert centroids.tolist() == [3.0] and (labels == 0).all()


def test_no_importance_at_all_is_equal_importance():
    w = np.random.default_rng(0).normal(size=50)
    for one, other in zip(exact_kmeans(w, np.zeros(50), 4), exact_kmeans(w, None, 4), strict=True):
        assert (one == other).all()
    for one, other in zip(lloyd(w, np.zeros(50), 4), lloyd(w, None, 4), strict=True):
        assert (one == other).all()


def test_unimportant_weights_get_the_nearest_centroid():
    w = np.array([0.0, 0.4, 0.6, 1.0])
    centroids, labels = exact_kmeans(w, [1.0, 0.0, 0.0, 1.0], 2)
    assert centroids.tolist() == [0.0, 1.0] and labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-30, 1e300, 1.7e308])
def test_weights_of_any_size_work(size):
    w = np.array([-1.0, -1.0, 1.0, 1.0]) * size
    for quartic in (None, np.ones(4)):
        centroids, labels = exact_kmeans(w, None, 2, quartic=quartic)
        assert (centroids[labels] == w).all()
        assert exact_kmeans(w, None, 1, quartic=quartic)[0] == pytest.approx([0.0], abs=1e-15 * size)
        for start in STARTS:
            centroids, labels = lloyd(w, None, 2, start=start, quartic=quartic)
            assert (centroids[labels] == w).all()


def test_neighbouring_floats_are_told_apart():
    w = np.array([1.0, np.nextafter(1.0, 2), np.nextafter(np.nextafter(1.0, 2), 2)])
    centroids, labels = exact_kmeans(w, None, 3)
    assert (centroids[labels] == w).all()


def test_shapes_and_strides_are_kept():
    w = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    for view in (w, w.T, w[::2, 1::3], w[0, 0]):
        for function in (exact_kmeans, lloyd):
            centroids, labels = function(view, np.ones(view.shape), 4)
            assert labels.shape == view.shape and labels.dtype == np.int64 and centroids.dtype == np.float64
    assert (exact_kmeans(w.T, None, 4)[1] == exact_kmeans(w, None, 4)[1].T).all()


def test_heavy_and_repeated_weights_leave_enough_bins():
    w = np.concatenate([np.repeat([0.0, 1.0], 1000), np.linspace(0, 1, 4000) ** 8])
    importance = np.where((w == 0) | (w == 1), 1e9, 1.0)
    for k in (2, 64, 200):
        centroids, labels = exact_kmeans(w, importance, k, bins=1)
        best = cost(w, importance, *exact_kmeans(w, importance, k, exact=True))
        assert len(set(labels.tolist())) == k
        assert best * (1 - 1e-9) <= cost(w, importance, centroids, labels) <= 1.1 * best


# The cost and the length


def test_the_cost_is_a_sum():
    assert cost([1.0, 2.0], None, [0.0, 2.5], [0, 1]) == 1.25
    assert cost([1.0, 2.0], [2.0, -4.0], [0.0, 2.5], np.array([0, 1])) == 1.0
    assert cost([1.0, 2.0], [2.0, 4.0], [0.0, 3.0], [0, 1], [1.0, 10.0]) == 17.0
    assert cost(np.zeros(0), None, [1.0], np.zeros(0, int)) == 0.0


def test_rescaling_is_the_factor_of_the_cosine():
    rng = np.random.default_rng(1)
    w, variances = rng.normal(size=30), rng.gamma(1.0, size=30)
    centroids, labels = exact_kmeans(w, variances, 3)
    factor = best_scale(sigma_cosine(w, centroids[labels], variances))
    assert relu_rescale(w, variances, centroids, labels) == pytest.approx(centroids * factor)


# Refusals


@pytest.mark.parametrize("function", [exact_kmeans, lloyd])
@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (([], None, 1), {}, "There are no weights; expected at least one"),
        (([1.0, np.nan], None, 1), {}, "weights has 1 of 2 entries that are NaN"),
        (([1.0, 2.0], [1.0], 1), {}, r"importance has the shape \[1\], weights the shape \[2\]"),
        (([1.0, 2.0], [1.0, np.inf], 1), {}, "importance has 1 of 2 entries that are NaN or infinite"),
        (
            ([1.0, 2.0], [1.0, -3.5], 1),
            {},
            "importance has 1 of 2 entries below zero, the least -3.5; .* add a constant mu",
        ),
        (([1.0, 2.0], None, 1), {"quartic": [-1.0, 0.0]}, "quartic has 1 of 2 entries below zero.*Clip them at zero"),
        (([1.0, 2.0], None, 1), {"quartic": [1.0]}, r"quartic has the shape \[1\]"),
        (([1.0, 2.0], None, 0), {}, "k is 0; expected a whole number of at least 1"),
        (([1.0, 2.0], None, 2.0), {}, "k is 2.0; expected a whole number"),
    ],
)
def test_what_cannot_be_clustered_is_refused(function, arguments, options, text):
    with pytest.raises(UsageError, match=text):
        function(*arguments, **options)


def test_options_out_of_range_are_refused():
    with pytest.raises(UsageError, match="bins is 0"):
        exact_kmeans([1.0], None, 1, bins=0)
    with pytest.raises(UsageError, match="start is 'random'; expected 'quantile', 'linear' or 'kmeans\\+\\+'"):
        lloyd([1.0], None, 1, start="random")
    with pytest.raises(UsageError, match="iterations is 0"):
        lloyd([1.0], None, 1, iterations=0)
    with pytest.raises(UsageError, match="seed is -1"):
        lloyd([1.0], None, 1, seed=-1)


def test_a_programme_larger_than_memory_is_refused():
    with pytest.raises(UsageError, match="80000 clusters of 90000 points need 27 GiB; expected at most 16 GiB"):
        exact_kmeans(np.arange(90_000.0), None, 80_000)


def test_labels_that_are_none_are_refused():
    for labels in ([0, 1], [-1], [0.0], [[0]]):
        with pytest.raises(UsageError, match="labels"):
            cost([1.0], None, [0.0], labels)
    with pytest.raises(UsageError, match="labels reach from 0 to 0, centroids have the shape"):
        cost([1.0], None, [[0.0]], [0])
    with pytest.raises(UsageError, match="rho"):
        relu_rescale([1.0], None, [-1.0], [0])
