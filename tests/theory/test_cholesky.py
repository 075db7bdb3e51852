"""Cholesky decomposition in place, against numpy's."""

import numpy as np
import pytest

from waterfill.theory import cholesky
from waterfill.theory.cholesky import factor_in_place


def positive(size, dtype):
    roots = np.random.default_rng(size).normal(size=(size, 2 * size))
    return (roots @ roots.T / (2 * max(1, size))).astype(dtype)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40])
@pytest.mark.parametrize(("dtype", "near"), [(np.float64, 1e-12), (np.float32, 1e-4)])
def test_a_matrix_is_the_product_of_its_factor(size, dtype, near, monkeypatch):
    monkeypatch.setattr(cholesky, "BLOCK", 8)
    matrix = positive(size, dtype)
    factor = np.tril(matrix) + np.triu(np.full_like(matrix, np.nan), 1)
    assert factor_in_place(factor)
    expected = np.linalg.cholesky(matrix[::-1, ::-1].astype(np.float64)).T[::-1, ::-1]
    np.testing.assert_allclose(factor, expected, atol=near)


@pytest.mark.parametrize("place", [0, 20, 39])
@pytest.mark.parametrize("wrong", [-1.0, np.nan])
def test_a_matrix_with_a_direction_below_zero_has_no_factor(place, wrong, monkeypatch):
    monkeypatch.setattr(cholesky, "BLOCK", 8)
    matrix = positive(40, np.float64)
    matrix[place, place] = wrong
    assert not factor_in_place(matrix)
