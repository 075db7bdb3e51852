"""Eigenvalues and pivots against determinants, whole matrices and the rates that follow from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.theory.spectra import kronecker_products, pivots, spectrum
from waterfill.theory.waterfilling import Rectangles

laws = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def forms(seed, groups=2, count=5, rank=None):
    """Random forms of strong cross terms [groups, n, n], and powers over some decades [groups, n]."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(groups, count, rank or 2 * count)) + rng.normal(size=(groups, 1, 1))
    return roots @ roots.swapaxes(1, 2), rng.lognormal(0, 2, size=(groups, count))


def logs(values):
    return np.sort(np.log(values), axis=1)[:, ::-1]


@laws
@given(seeds)
def test_pivots_have_the_determinant_and_are_majorised_by_eigenvalues(seed):
    matrices, powers = forms(seed)
    left, right = logs(pivots(matrices, powers)), logs(spectrum(matrices, powers))
    np.testing.assert_allclose(left.sum(1), right.sum(1), rtol=1e-8, atol=1e-8)
    assert (left.cumsum(1) <= right.cumsum(1) + 1e-8).all()
    np.testing.assert_allclose(right.sum(1), np.linalg.slogdet(matrices)[1] + np.log(powers).sum(1), atol=1e-7)


@laws
@given(seeds, st.integers(1, 5), st.floats(1e-6, 1))
def test_the_rate_of_pivots_is_at_most_that_of_eigenvalues(seed, rank, share):
    matrices, powers = forms(seed, groups=1, rank=rank)
    exact = Rectangles(spectrum(matrices, powers))
    assert np.count_nonzero(pivots(matrices, powers)) <= rank
    bits = Rectangles(pivots(matrices, powers)).rate_at_distortion(share * exact.total)
    assert bits <= exact.rate_at_distortion(share * exact.total) + 1e-6


@laws
@given(seeds, st.integers(1, 30))
def test_pivots_bound_every_principal_submatrix(seed, subset):
    matrices, powers = forms(seed, groups=1)
    kept = np.flatnonzero([subset >> bit & 1 for bit in range(5)])
    exact = Rectangles(spectrum(matrices[:, kept[:, None], kept], powers[:, kept]))
    some = Rectangles(pivots(matrices, powers)[:, kept])
    for share in (1e-6, 1e-2, 0.3, 0.9):
        distortion = share * exact.total
        assert some.rate_at_distortion(distortion) <= exact.rate_at_distortion(distortion) + 1e-7


def test_diagonals_are_their_own_eigenvalues_and_pivots():
    diagonal, powers = np.random.default_rng(0).random((2, 3, 4))
    matrices = np.einsum("gi,ij->gij", diagonal, np.eye(4))
    for function in (spectrum, pivots):
        assert (function(diagonal, powers) == diagonal * powers).all()
        np.testing.assert_allclose(np.sort(function(matrices, powers)), np.sort(diagonal * powers), rtol=1e-12)


@pytest.mark.parametrize("work", [1e9, 0.0])
def test_a_form_of_many_groups_is_solved_group_by_group(monkeypatch, work):
    monkeypatch.setattr("waterfill.theory.spectra.MOST_WORK", work)
    matrices, powers = forms(0, groups=3, count=4)
    rows, row_powers = np.random.default_rng(1).random((2, 6))
    (found,) = kronecker_products(rows, matrices, row_powers, powers[0], np.ones((6, 4), bool))
    solve = spectrum if work else pivots
    expected = [
        np.outer((rows * row_powers)[2 * g : 2 * g + 2], solve(matrices[g : g + 1], powers[:1])) for g in range(3)
    ]
    np.testing.assert_allclose(found.volumes(), np.ravel(expected), rtol=1e-12)


def test_nothing_has_no_volumes():
    (found,) = kronecker_products(np.ones(2), np.zeros((1, 0, 0)), np.ones(2), np.ones(0), np.ones((2, 0), bool))
    assert found.volumes().shape == (0,)
    live = np.zeros((2, 3), bool)
    parts = kronecker_products(np.ones(2), np.eye(3)[None], np.ones(2), np.ones(3), live)
    assert sum(part.volumes().size for part in parts) == 0


def test_pivots_of_single_precision_are_nearly_those_of_double():
    rng = np.random.default_rng(0)
    roots = np.cumsum(rng.normal(size=(2, 60, 240)), axis=1)
    matrices, powers = roots @ roots.swapaxes(1, 2) / 240 + 0.1 * np.eye(60), rng.uniform(0.5, 2, (2, 60))
    found = pivots(matrices.astype(np.float32), powers)
    assert found.dtype == np.float64
    np.testing.assert_allclose(np.sort(found), np.sort(pivots(matrices, powers)), rtol=2e-3)
    assert np.abs(np.log2(found).mean() - np.log2(pivots(matrices, powers)).mean()) < 1e-4


def test_what_is_known_of_columns_is_not_found_again():
    matrices, powers = forms(0, groups=1, count=4)
    known, live = {}, np.ones((3, 4), bool)
    first = kronecker_products(np.ones(3), matrices, np.ones(3), powers[0], live, known)
    again = kronecker_products(2 * np.ones(3), 0 * matrices, np.ones(3), powers[0], live, known)
    np.testing.assert_allclose(again[0].volumes(), 2 * first[0].volumes(), rtol=1e-12)
    larger = kronecker_products(np.ones(3), 0 * matrices, np.ones(3), 2 * powers[0], live, known)
    np.testing.assert_allclose(larger[0].volumes(), 2 * first[0].volumes(), rtol=1e-12)
    other = kronecker_products(np.ones(3), 0 * matrices, np.ones(3), powers[0] ** 2, live, known)
    assert not other[0].volumes().any()
