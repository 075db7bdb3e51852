"""Values to coefficients and back: the bits of the specification, and what dense matrices give."""

import math

import numpy as np
import pytest
import slow_bases

from waterfill.bases import rotations
from waterfill.bases.turning import coefficients, matrix_of, turn_back, turned_both, turned_diagonal
from waterfill.records import CHANNELS, OUT, TAPS, Cosines, Flips, Layout, Rotations

LAYOUTS = {
    "a table": Layout((11, 6)),
    "an embedding": Layout((10, 7), transposed=True),
    "a kernel of one axis": Layout((3, 4, 5)),
    "a kernel of two axes": Layout((2, 5, 3, 4)),
    "a kernel of three axes": Layout((2, 2, 2, 3, 2)),
    "groups": Layout((6, 2, 3), transposed=True, groups=3),
    "a vector": Layout((9,)),
}
KINDS = ["cosines of rows", "cosines of channels", "cosines of taps", "flips", "rotations of rows", "few of channels"]


def random_angles(count):
    return np.random.default_rng(count).integers(-64, 65, count).astype(np.int8)


def made(kind, layout):
    """A basis and its line; None where a tensor cannot have it."""
    kernel = layout.shape[2:]
    if kind.startswith("cosines"):
        axis = {"rows": OUT, "channels": CHANNELS, "taps": TAPS}[kind.split()[-1]]
        return Cosines(axis, 4), ["c", 0, axis, 4]
    if kind == "flips":
        return Flips(random_angles(rotations.number_of_angles(kernel))), ["f", 0, 9]
    axis = OUT if "rows" in kind else CHANNELS
    directions = layout.axes[axis] - 1 if "rows" in kind else 2
    if not 0 < directions < layout.axes[axis]:
        return None
    angles = random_angles(rotations.number_of_pairs(layout.axes[axis], directions))
    return Rotations(axis, directions, angles), ["r", 0, axis, directions, 9]


CASES = [(kind, layout) for kind in KINDS for layout in LAYOUTS.values() if made(kind, layout) is not None]


def weights(layout, seed=0):
    values = np.random.default_rng(seed).standard_normal((layout.axes[0], math.prod(layout.axes[1:])))
    return values.astype(np.float32)


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_the_way_back_gives_the_bits_of_the_specification(kind, layout):
    basis, line = made(kind, layout)
    angles = basis.angles.tolist() if line[0] in "fr" else []
    matrix = weights(layout) * np.float32(10.0) ** np.arange(-20, 20).astype(np.float32)[:, None][: layout.axes[0]]
    expected = slow_bases.turned_back(matrix.reshape(-1).tolist(), line, angles, layout.axes, layout.shape[2:])
    turn_back(matrix, basis, layout)
    assert matrix.tobytes() == np.array(expected, np.float32).tobytes()


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_there_and_back_again(kind, layout):
    basis, _ = made(kind, layout)
    matrix = weights(layout)
    found = coefficients(matrix, basis, layout)
    assert np.square(found).sum() == pytest.approx(np.square(matrix).sum(), rel=1e-5)
    turn_back(found, basis, layout)
    assert np.abs(found - matrix).max() < 1e-5


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_matrices_are_orthonormal(kind, layout):
    basis, _ = made(kind, layout)
    for part in rotations.parts(basis, layout):
        matrix = matrix_of(part).astype(np.float64)
        assert np.abs(matrix @ matrix.T - np.eye(part.length)).max() < 1e-6


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_columns_that_lie_together_are_turned_alike(kind, layout):
    basis, _ = made(kind, layout)
    matrix = weights(layout)
    for turn in (coefficients, turned_diagonal):
        assert (turn(np.asfortranarray(matrix), basis, layout) == turn(matrix, basis, layout)).all()


def dense(basis, layout):
    """The matrix that turns all values of a tensor, one after the other."""
    columns = [
        coefficients(unit.reshape(layout.axes[0], -1), basis, layout).reshape(-1) for unit in np.eye(layout.numel)
    ]
    return np.array(columns, np.float64).T


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_turned_diagonals_are_those_of_dense_matrices(kind, layout):
    basis, _ = made(kind, layout)
    prices = np.square(weights(layout, 1))
    matrix = dense(basis, layout)
    expected = (matrix @ np.diag(prices.reshape(-1)) @ matrix.T).diagonal()
    assert np.abs(turned_diagonal(prices, basis, layout).reshape(-1) - expected).max() < 1e-5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_turned_forms_are_those_of_dense_matrices(kind, layout, dtype):
    basis, _ = made(kind, layout)
    out, columns = layout.axes[0], math.prod(layout.axes[1:])
    length = out if basis.axis == OUT else columns
    some = np.random.default_rng(2).standard_normal((length, length))
    form = (some @ some.T).astype(dtype)
    matrix = dense(basis, layout)
    every = np.kron(form, np.eye(columns)) if basis.axis == OUT else np.kron(np.eye(out), form)
    found = turned_both(form, basis, layout)
    assert found.dtype == dtype
    wide = np.kron(found, np.eye(columns)) if basis.axis == OUT else np.kron(np.eye(out), found)
    assert np.abs(wide - matrix @ every @ matrix.T).max() < 1e-4
    assert np.abs(form - some @ some.T).max() < 1e-4, "what was given is as it was"


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_infinities_become_the_values_of_the_specification(kind, layout):
    basis, line = made(kind, layout)
    angles = basis.angles.tolist() if line[0] in "fr" else []
    matrix = weights(layout) * np.float32(1e38)
    matrix.reshape(-1)[::5] = np.inf
    matrix.reshape(-1)[::7] = -np.inf
    expected = slow_bases.turned_back(matrix.reshape(-1).tolist(), line, angles, layout.axes, layout.shape[2:])
    turn_back(matrix, basis, layout)
    assert matrix.tobytes() == np.array(expected, np.float32).tobytes()
    assert not np.isnan(matrix).any()


def test_very_many_blocks_are_turned_at_once():
    layout = Layout((1 << 19, 1))
    matrix = weights(layout)
    found = coefficients(matrix, Cosines(OUT, 2), layout)
    assert np.abs(found[::2, 0] - (matrix[::2, 0] + matrix[1::2, 0]) / math.sqrt(2)).max() < 1e-6
    turn_back(found, Cosines(OUT, 2), layout)
    assert np.abs(found - matrix).max() < 1e-5
