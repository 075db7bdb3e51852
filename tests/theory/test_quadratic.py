"""Diagonal, dense and Kronecker importance: one matrix, written in three ways."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.errors import UsageError
from waterfill.theory import quadratic
from waterfill.theory.quadratic import Dense, Diagonal, Kronecker, as_quadratic
from waterfill.theory.waterfilling import Rectangles

laws = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 5)


def covariance(count, rng, rank=None):
    mixing = rng.normal(size=(count, rank or 2 * count))
    return mixing @ mixing.T / count


def sorted_volumes(form, powers):
    return np.sort(form.volumes(powers), axis=None)


def assert_same(form, other, rng):
    """Both are one matrix: as a product, and in volumes."""
    assert tuple(form.shape) == tuple(other.shape)
    error, powers = rng.normal(size=form.shape), rng.gamma(1.0, size=form.shape)
    np.testing.assert_allclose(form.times(error), other.times(error), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sorted_volumes(form, powers), sorted_volumes(other, powers), rtol=1e-6, atol=1e-12)


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
def test_the_volumes_are_eigenvalues_and_keep_the_mean_distortion(seed, rank):
    rng = np.random.default_rng(seed)
    powers = rng.gamma(1.0, size=(3, 4))
    for form, whole in kinds(rng, rank):
        found, roots = sorted_volumes(form, powers), np.sqrt(powers.reshape(-1))
        np.testing.assert_allclose(found, np.linalg.eigvalsh(roots[:, None] * whole * roots), atol=1e-9)
        assert (found >= 0).all()
        assert found.sum() == pytest.approx(np.diag(whole) @ powers.reshape(-1), rel=1e-9)


@pytest.mark.parametrize("rank", [None, 2])
def test_factors_of_many_weights_are_not_written_out(monkeypatch, rank):
    monkeypatch.setattr(quadratic, "MOST_WHOLE", 0)
    rng = np.random.default_rng(0)
    form, whole = kinds(rng, rank)[2]
    powers = np.outer(rng.gamma(1.0, size=3), rng.gamma(1.0, size=4))
    np.testing.assert_allclose(
        sorted_volumes(form, powers), sorted_volumes(Dense(whole, (3, 4)), powers), rtol=1e-6, atol=1e-9
    )
    for known in (0, 1):
        powers = rng.gamma(1.0, size=(3, 4)) * (np.arange(12).reshape(3, 4) != known)
        found, exact = (Rectangles(each.volumes(powers)) for each in (form, Dense(whole, (3, 4))))
        for share in (1e-4, 0.1, 0.7):
            bits = found.rate_at_distortion(share * exact.total)
            assert bits <= exact.rate_at_distortion(share * exact.total) * (1 + 1e-12)  # but for rounding
            assert bits > 0 or share > 0.5


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
