"""Cholesky decomposition in place, solutions and eigenvalues, against numpy's."""

import numpy as np
import pytest

from waterfill import linear_algebra
from waterfill.linear_algebra import eigenvalues, factor_in_place, solved_rows


def positive(size, dtype):
    roots = np.random.default_rng(size).normal(size=(size, 2 * size))
    return (roots @ roots.T / (2 * max(1, size))).astype(dtype)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40])
@pytest.mark.parametrize(("dtype", "near"), [(np.float64, 1e-12), (np.float32, 1e-4)])
def test_a_matrix_is_the_product_of_its_factor(size, dtype, near, monkeypatch):
    monkeypatch.setattr(linear_algebra, "BLOCK", 8)
    matrix = positive(size, dtype)
    factor = np.tril(matrix) + np.triu(np.full_like(matrix, np.nan), 1)
    assert factor_in_place(factor)
    expected = np.linalg.cholesky(matrix[::-1, ::-1].astype(np.float64)).T[::-1, ::-1]
    np.testing.assert_allclose(factor, expected, atol=near)


@pytest.mark.parametrize("place", [0, 20, 39])
@pytest.mark.parametrize("wrong", [-1.0, np.nan])
def test_a_matrix_with_a_direction_below_zero_has_no_factor(place, wrong, monkeypatch):
    monkeypatch.setattr(linear_algebra, "BLOCK", 8)
    matrix = positive(40, np.float64)
    matrix[place, place] = wrong
    assert not factor_in_place(matrix)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("size", [1, 9, 40])
@pytest.mark.parametrize(("dtype", "near"), [(np.float64, 1e-10), (np.float32, 1e-3)])
def test_a_device_gives_the_same_factor_solutions_and_eigenvalues(size, dtype, near, device, monkeypatch):
    monkeypatch.setattr(linear_algebra, "SMALL", 1)
    matrix, rows = positive(size, dtype), np.random.default_rng(0).normal(size=(5, size)).astype(np.float32)
    factor = np.tril(matrix) + np.triu(np.full_like(matrix, np.nan), 1)
    assert factor_in_place(factor, device)
    expected = np.linalg.cholesky(matrix[::-1, ::-1].astype(np.float64)).T[::-1, ::-1]
    np.testing.assert_allclose(factor, expected, atol=near)
    assert not np.triu(factor, 1).any()
    solved = solved_rows(factor, rows, device)
    assert solved.dtype == dtype
    np.testing.assert_allclose(solved, np.linalg.solve(expected.T, rows.T).T, rtol=near, atol=near)
    values = eigenvalues(matrix[None], device)
    assert values.dtype == dtype
    np.testing.assert_allclose(values[0], np.linalg.eigvalsh(matrix.astype(np.float64)), rtol=near, atol=near)


@pytest.mark.parametrize("wrong", [-1.0, np.nan])
def test_on_a_device_too_a_direction_below_zero_has_no_factor(wrong, monkeypatch):
    monkeypatch.setattr(linear_algebra, "SMALL", 1)
    matrix = positive(40, np.float64)
    matrix[20, 20] = wrong
    assert not factor_in_place(matrix, "cpu")
