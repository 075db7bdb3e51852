"""Diagonal, dense and Kronecker importance: one matrix, written in three ways."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.errors import UsageError
from waterfill.theory.quadratic import Dense, Diagonal, Kronecker, as_quadratic

laws = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 5)


def covariance(count, rng, rank=None):
    mixing = rng.normal(size=(count, rank or 2 * count))
    return mixing @ mixing.T / count


def sorted_spectrum(form, variance):
    """Eigenvalues in order, each with its variance."""
    values, variances = (np.asarray(part).reshape(-1) for part in form.spectrum(variance))
    order = np.argsort(values)
    return values[order], variances[order]


def assert_same(form, other, rng):
    """Both are one matrix: as a product, and in eigenvalues and variances."""
    assert tuple(form.shape) == tuple(other.shape)
    error, variance = rng.normal(size=form.shape), rng.gamma(1.0, size=form.shape)
    np.testing.assert_allclose(form.times(error), other.times(error), rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(sorted_spectrum(form, variance), sorted_spectrum(other, variance), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)


@laws
@given(seeds, st.lists(sizes, min_size=1, max_size=3))
def test_a_diagonal_is_a_dense_matrix(seed, shape):
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.0, size=shape)
    assert_same(Diagonal(values), Dense(np.diag(values.reshape(-1)), tuple(shape)), rng)


@laws
@given(seeds, sizes, sizes)
def test_a_product_of_diagonals_is_a_diagonal(seed, rows, columns):
    rng = np.random.default_rng(seed)
    outputs, inputs = rng.gamma(1.0, size=rows), rng.gamma(1.0, size=columns)
    assert_same(Kronecker(np.diag(inputs), np.diag(outputs)), Diagonal(np.outer(outputs, inputs)), rng)


@laws
@given(seeds, sizes, sizes)
def test_a_product_of_factors_is_a_dense_matrix(seed, rows, columns):
    rng = np.random.default_rng(seed)
    inputs, outputs = covariance(columns, rng), covariance(rows, rng)
    assert_same(Kronecker(inputs, outputs), Dense(np.kron(outputs, inputs), (rows, columns)), rng)


def test_the_product_with_an_error_is_the_sum_over_its_indices():
    rng = np.random.default_rng(0)
    inputs, outputs, error = covariance(4, rng), covariance(3, rng), rng.normal(size=(3, 4))
    expected = np.zeros((3, 4))
    for o, i, p, j in np.ndindex(3, 4, 3, 4):
        expected[o, i] += outputs[o, p] * inputs[i, j] * error[p, j]
    np.testing.assert_allclose(Kronecker(inputs, outputs).times(error), expected, rtol=1e-12)


def kinds(rng, rank=None):
    inputs, outputs = covariance(4, rng, rank), covariance(3, rng, rank)
    dense, values = covariance(12, rng, rank), rng.gamma(1.0, size=(3, 4))
    return [
        (Diagonal(values), np.diag(values.reshape(-1))),
        (Dense(dense, (3, 4)), dense),
        (Kronecker(inputs, outputs), np.kron(outputs, inputs)),
    ]


@pytest.mark.parametrize("rank", [None, 1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_spectrum_keeps_eigenvalues_variance_and_mean_distortion(seed, rank):
    rng = np.random.default_rng(seed)
    variance = rng.gamma(1.0, size=(3, 4))
    for form, whole in kinds(rng, rank):
        values, variances = sorted_spectrum(form, variance)
        np.testing.assert_allclose(values, np.linalg.eigvalsh(whole), atol=1e-9)
        assert (values >= 0).all()
        assert (variances > 0).all()
        assert variances.sum() == pytest.approx(variance.sum(), rel=1e-12)
        assert values @ variances == pytest.approx(np.diag(whole) @ variance.reshape(-1), rel=1e-9)
        equal = sorted_spectrum(form, np.ones((3, 4)))[1]
        np.testing.assert_allclose(equal, 1.0, rtol=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_the_variances_are_those_of_draws_along_the_eigenvectors(seed):
    rng = np.random.default_rng(seed)
    variance = rng.gamma(1.0, size=(3, 4))
    draws = rng.normal(size=(200_000, 12)) * np.sqrt(variance.reshape(-1))
    for form, whole in kinds(rng):
        projected = draws @ np.linalg.eigh(whole)[1]
        np.testing.assert_allclose(sorted_spectrum(form, variance)[1], projected.var(axis=0), rtol=0.02)


@laws
@given(seeds)
def test_the_form_is_symmetric_and_not_negative(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 3, 4))
    for form, _ in kinds(rng):
        assert np.vdot(a, form.times(b)) == pytest.approx(np.vdot(form.times(a), b), rel=1e-9, abs=1e-9)
        assert np.vdot(a, form.times(a)) >= 0


# Reading --------------------------------------------------------------------------------------------------------------


def test_an_importance_is_read_by_its_shape():
    rng = np.random.default_rng(0)
    for (form, whole), given_as in zip(
        kinds(rng), (lambda f: f.values, lambda f: f.matrix, lambda f: (f.inputs, f.outputs)), strict=True
    ):
        read = as_quadratic(given_as(form), (3, 4))
        assert type(read) is type(form)
        assert tuple(read.shape) == (3, 4)
        error = rng.normal(size=(3, 4))
        np.testing.assert_allclose(read.times(error).reshape(-1), whole @ error.reshape(-1), rtol=1e-9)
        assert as_quadratic(form, (3, 4)) is form


def test_lists_are_read_too():
    assert as_quadratic([1, 2], (2,)).times(np.array([3.0, 4.0])).tolist() == [3, 8]
    assert as_quadratic([[2, 1], [1, 2]], (2,)).times(np.array([1.0, 0.0])).tolist() == [2, 1]
    assert as_quadratic(([[2]], [[3]]), (1, 1)).times(np.ones((1, 1))).tolist() == [[6]]


def test_a_matrix_in_the_shape_of_the_weights_is_their_diagonal():
    assert isinstance(as_quadratic(np.ones((3, 3)), (3, 3)), Diagonal)
    assert isinstance(as_quadratic(np.eye(9), (3, 3)), Dense)


@pytest.mark.parametrize(
    ("importance", "found"),
    [
        (np.ones((4, 3)), r"\(4, 3\)"),
        (np.ones(11), r"\(11,\)"),
        (np.eye(11), r"\(11, 11\)"),
        ((np.eye(3), np.eye(4)), r"\(4, 3\)"),
        (Diagonal(np.ones((4, 3))), r"\(4, 3\)"),
        (Dense(np.eye(12), (12,)), r"\(12,\)"),
        (None, "NoneType"),
        ("dense", "str"),
        ((np.eye(3),), "tuple"),
    ],
)
def test_an_importance_of_another_shape_is_named(importance, found):
    text = rf"Importance {found} does not fit weights of shape \[3, 4\]; expected .* a matrix \[12, 12\], or a pair"
    with pytest.raises(UsageError, match=text):
        as_quadratic(importance, (3, 4))


@pytest.mark.parametrize(
    ("importance", "text"),
    [
        (-np.ones((3, 4)), "importance has the entry -1; expected numbers of at least zero"),
        (np.full((3, 4), np.nan), "importance has 12 of 12 entries that are NaN or infinite"),
        (-np.eye(12), "importance has a negative eigenvalue; expected a positive semidefinite"),
        (np.tri(12), "importance is not symmetric; expected a covariance matrix"),
        ((-np.eye(4), np.eye(3)), "importance A has a negative eigenvalue"),
        ((np.eye(4), -np.eye(3)), "importance G has a negative eigenvalue"),
        ((np.tri(4), np.eye(3)), "importance A is not symmetric"),
        ((np.eye(4), np.ones((3, 2))), r"importance G has the shape \[3, 2\]; expected a square matrix"),
    ],
)
def test_an_importance_that_is_none_is_named(importance, text):
    with pytest.raises(UsageError, match=text):
        as_quadratic(importance, (3, 4))
