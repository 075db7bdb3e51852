"""The residuals of the golden rules, at compressors that obey them and at others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.errors import UsageError
from waterfill.importance.forms import DiagonalForm
from waterfill.theory import golden_rules
from waterfill.theory.quadratic import Dense, Diagonal, Kronecker

laws = settings(max_examples=80, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def covariance(count, rng):
    mixing = rng.normal(size=(count, 2 * count))
    return mixing @ mixing.T / count


def importances(rng):
    """One of each kind for weights [3, 4], and the whole matrix of each."""
    values, dense = rng.gamma(1.0, size=(3, 4)), covariance(12, rng)
    inputs, outputs = covariance(4, rng), covariance(3, rng)
    return [
        (values, np.diag(values.reshape(-1))),
        (dense, dense),
        ((inputs, outputs), np.kron(outputs, inputs)),
    ]


def explicit(w, w_hat, matrix):
    """The three numbers as they are written, over the whole matrix."""
    a, b = w.reshape(-1), w_hat.reshape(-1)
    pairs = (b, a - b), (a - b, a - b), (a, a)
    return [float(np.einsum("i,ij,j->", left, matrix, right)) for left, right in pairs]


def residuals(rules):
    return [rules.orthogonality, rules.distortion, rules.power]


@laws
@given(seeds)
def test_they_are_the_sums_over_the_whole_matrix(seed):
    rng = np.random.default_rng(seed)
    w, w_hat = rng.normal(size=(2, 3, 4))
    for importance, matrix in importances(rng):
        expected = explicit(w, w_hat, matrix)
        assert residuals(golden_rules(w, w_hat, importance)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@laws
@given(seeds)
def test_one_matrix_has_the_same_residuals_however_it_is_written(seed):
    rng = np.random.default_rng(seed)
    w, w_hat = rng.normal(size=(2, 3, 4))
    rows, columns = rng.gamma(1.0, size=3), rng.gamma(1.0, size=4)
    whole = np.outer(rows, columns)
    expected = residuals(golden_rules(w, w_hat, whole))
    for importance in (
        Diagonal(whole),
        np.diag(whole.reshape(-1)),
        Dense(np.diag(whole.reshape(-1)), (3, 4)),
        (np.diag(columns), np.diag(rows)),
        Kronecker(np.diag(columns), np.diag(rows)),
    ):
        assert residuals(golden_rules(w, w_hat, importance)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@laws
@given(seeds, st.floats(-3, 3))
def test_the_power_splits_and_the_best_length_obeys_rule_1(seed, length):
    """`w^T I w` is `w_hat^T I w_hat` and the distortion, and twice what rule 1 sets to zero."""
    rng = np.random.default_rng(seed)
    w, direction = rng.normal(size=(2, 3, 4))
    for importance, matrix in importances(rng):
        rules = golden_rules(w, length * direction, importance)
        compressed = golden_rules(length * direction, 0 * w, importance).power
        assert rules.power == pytest.approx(compressed + rules.distortion + 2 * rules.orthogonality, rel=1e-9)
        flat = direction.reshape(-1)
        best = float(w.reshape(-1) @ matrix @ flat / (flat @ matrix @ flat))
        at_best = golden_rules(w, best * direction, importance)
        assert at_best.orthogonality == pytest.approx(0, abs=1e-9 * at_best.power)
        assert at_best.distortion <= rules.distortion + 1e-9 * rules.power
        if abs(length) > 0.1 and abs(length - best) > 0.1:
            assert abs(rules.orthogonality) > 1e-4 * compressed


def means_of(w, importance, labels, count):
    """Weighted means of the clusters; of an empty one, zero."""
    sums = np.bincount(labels, importance * w, minlength=count)
    return sums / np.maximum(np.bincount(labels, importance, minlength=count), 1e-300)


def weighted_k_means(w, importance, count):
    """Lloyd's algorithm until nothing changes."""
    labels = np.argsort(np.argsort(w)) * count // w.size
    while True:
        centroids = means_of(w, importance, labels, count)
        nearest = np.abs(w[:, None] - centroids).argmin(axis=1)
        if np.array_equal(nearest, labels):
            return centroids[labels]
        labels = nearest


@laws
@given(seeds, st.integers(1, 6), st.integers(6, 60))
def test_a_fixed_point_of_weighted_k_means_obeys_rule_1(seed, clusters, count):
    rng = np.random.default_rng(seed)
    w, importance = rng.normal(size=count), rng.gamma(1.0, size=count)
    w_hat = weighted_k_means(w, importance, clusters)
    rules = golden_rules(w, w_hat, importance)
    assert rules.orthogonality == pytest.approx(0, abs=1e-12 * rules.power)
    moved = golden_rules(w, w_hat * 1.01, importance)
    assert moved.orthogonality < 0
    assert moved.distortion > rules.distortion


def test_k_means_without_the_weights_breaks_rule_1():
    rng = np.random.default_rng(0)
    w, importance = rng.normal(size=50), rng.lognormal(0, 2, size=50)
    weighted, plain = (golden_rules(w, weighted_k_means(w, i, 4), importance) for i in (importance, np.ones(50)))
    assert abs(plain.orthogonality) > 1e-3 * plain.power
    assert weighted.distortion < plain.distortion


@laws
@given(seeds, st.integers(0, 12))
def test_pruning_obeys_rule_1_under_a_diagonal(seed, kept):
    rng = np.random.default_rng(seed)
    w, importance = rng.normal(size=(3, 4)), rng.gamma(1.0, size=(3, 4))
    mask = rng.permutation(12).reshape(3, 4) < kept
    rules = golden_rules(w, w * mask, importance)
    assert rules.orthogonality == 0
    assert rules.distortion == pytest.approx((importance * w**2)[~mask].sum(), rel=1e-12)


@pytest.mark.parametrize("kind", [1, 2], ids=["dense", "Kronecker"])
def test_under_a_matrix_the_kept_weights_have_to_be_fitted(kind):
    rng = np.random.default_rng(4)
    w, mask = rng.normal(size=(3, 4)), rng.random((3, 4)) < 0.5
    importance, matrix = importances(rng)[kind]
    pruned = golden_rules(w, w * mask, importance)
    assert abs(pruned.orthogonality) > 1e-3 * pruned.power
    flat, fitted = mask.reshape(-1), np.zeros(12)
    fitted[flat] = np.linalg.solve(matrix[np.ix_(flat, flat)], matrix[flat] @ w.reshape(-1))
    rules = golden_rules(w, fitted.reshape(3, 4), importance)
    assert rules.orthogonality == pytest.approx(0, abs=1e-12 * rules.power)
    assert rules.distortion < pruned.distortion


def test_the_distortion_is_what_the_quantizers_pay():
    rng = np.random.default_rng(0)
    w, w_hat, importance = np.abs(rng.normal(size=(3, 5, 6))).astype(np.float32)
    cost = DiagonalForm(importance).cost(w - w_hat)
    assert golden_rules(w, w_hat, importance).distortion == pytest.approx(cost, rel=1e-6)


def test_nothing_lost_and_all_lost():
    w, importance = np.array([[1.0, -2.0]]), np.array([[3.0, 0.5]])
    assert residuals(golden_rules(w, w, importance)) == [0, 0, 5]
    assert residuals(golden_rules(w, 0 * w, importance)) == [0, 5, 5]
    assert residuals(golden_rules(w, -w, importance)) == [-10, 20, 5]
    assert residuals(golden_rules(w, -w, 0 * importance)) == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1.0, 2.0], [1.0], [1.0, 1.0]), r"w has the shape \[2\], w_hat the shape \[1\]; expected the same"),
        (([1.0, np.nan], [1.0, 1.0], [1.0, 1.0]), "w has 1 of 2 entries that are NaN or infinite"),
        (([1.0, 1.0], [1.0, np.inf], [1.0, 1.0]), "w_hat has 1 of 2 entries that are NaN or infinite"),
        ((["wide"], [1.0], [1.0]), "w is no array of numbers"),
        (([1.0, 2.0], [1.0, 2.0], [1.0]), r"Importance .* does not fit weights of shape \[2\]"),
        (([1.0, 2.0], [1.0, 2.0], [1.0, -1.0]), "importance has the entry -1"),
        (([1.0, 2.0], [1.0, 2.0], [[1.0, 2.0], [2.0, 1.0]]), "importance has a negative eigenvalue"),
        (([1.0, 2.0], [1.0, 2.0], [[1.0, 2.0], [0.0, 1.0]]), "importance is not symmetric"),
    ],
)
def test_a_bad_argument_is_named(arguments, text):
    with pytest.raises(UsageError, match=text):
        golden_rules(*arguments)
