"""What errors cost in another basis, by dense matrices over all values."""

import math
import tracemalloc

import numpy as np
import pytest

from waterfill.bases.rotations import number_of_angles, number_of_pairs
from waterfill.bases.turning import coefficients
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import DiagonalForm
from waterfill.records import CHANNELS, OUT, TAPS, Cosines, Flips, Layout, Rotations

LAYOUT = Layout((6, 4, 3, 3))
ROWS, COLUMNS = LAYOUT.axes[0], math.prod(LAYOUT.axes[1:])


def angles(count):
    return np.random.default_rng(0).integers(-64, 65, count).astype(np.int8)


BASES = {
    "cosines of rows": Cosines(OUT, 512),
    "cosines of channels": Cosines(CHANNELS, 512),
    "cosines of taps": Cosines(TAPS, 512),
    "flips": Flips(angles(number_of_angles((3, 3)))),
    "rotations of rows": Rotations(OUT, 2, angles(number_of_pairs(6, 2))),
    "rotations of channels": Rotations(CHANNELS, 3, angles(number_of_pairs(4, 3))),
}


def products(*shape):
    """Positive definite matrices [..., n, n]."""
    roots = np.random.default_rng(len(shape)).normal(size=(*shape, shape[-1] + 3))
    return roots @ roots.swapaxes(-1, -2) / shape[-1]


def blocks(parts):
    """A matrix with others along its diagonal."""
    return sum(np.kron(np.diag(np.arange(len(parts)) == k), part) for k, part in enumerate(parts))


def powers(*shape):
    return np.random.default_rng(1).uniform(0.1, 3, shape)


FORMS = {
    "a diagonal": DiagonalForm(powers(ROWS, COLUMNS).astype(np.float32)),
    "two diagonals": KroneckerForm(powers(ROWS), powers(1, COLUMNS)),
    "a diagonal over rows": KroneckerForm(powers(ROWS), products(1, COLUMNS)),
    "two matrices": KroneckerForm(products(ROWS), products(1, COLUMNS)),
    "a matrix over rows": KroneckerForm(products(ROWS), powers(1, COLUMNS)),
    "groups": KroneckerForm(powers(ROWS), products(2, COLUMNS)),
    "groups of diagonals": KroneckerForm(powers(ROWS), powers(3, COLUMNS)),
    "groups of matrices": KroneckerForm(blocks(products(2, 3)), products(2, COLUMNS)),
}


def dense(form):
    """The matrix of a form over all values."""
    if isinstance(form, DiagonalForm):
        return np.diag(form.values.reshape(-1).astype(np.float64))
    rows = form.rows if form.rows.ndim == 2 else np.diag(form.rows)
    columns = [each if each.ndim == 2 else np.diag(each) for each in form.columns]
    size = ROWS // len(columns)
    every = [np.kron(rows[k * size : (k + 1) * size, k * size : (k + 1) * size], a) for k, a in enumerate(columns)]
    return blocks(every)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("name", FORMS)
def test_a_turned_form_is_that_of_dense_matrices(name, basis):
    """On its diagonal, and where its factors have no other entries than it had, in the price of every error."""
    form = FORMS[name]
    units = np.eye(LAYOUT.numel, dtype=np.float32).reshape(-1, ROWS, COLUMNS)
    turn = np.array([coefficients(unit, BASES[basis], LAYOUT).reshape(-1) for unit in units], np.float64).T
    along, before = 0 if BASES[basis].axis == OUT else 1, dense(form)
    if along == 0 and name.startswith("groups"):  # rows with columns of their own go on as a diagonal
        before = np.diag(before.diagonal())
    expected = turn @ before @ turn.T
    found = form.turned(BASES[basis], LAYOUT)
    np.testing.assert_allclose(found.diagonal().reshape(-1), expected.diagonal(), rtol=2e-5)
    assert (found.factor, found.unit) == (form.factor, form.unit)
    if isinstance(form, KroneckerForm) and isinstance(found, KroneckerForm):
        is_whole = form.rows.ndim == 2 if along == 0 else form.columns.ndim == 3
        if is_whole:
            error = np.random.default_rng(3).normal(size=(ROWS, COLUMNS)).astype(np.float32)
            vector = error.reshape(-1).astype(np.float64)
            assert found.cost(error) == pytest.approx(vector @ expected @ vector, rel=1e-4)
    else:
        assert isinstance(form, DiagonalForm) or (along == 0 and len(form.columns) > 1)


def test_rows_that_are_independent_stay_a_vector():
    """Of a table of a hundred thousand words a matrix over rows takes 80 GB."""
    form = KroneckerForm(powers(3000), powers(1, 2))
    tracemalloc.start()
    found = form.turned(Cosines(OUT, 512), Layout((3000, 2)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6 and found.rows.shape == (3000,)
