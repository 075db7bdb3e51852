"""Sparse matrices: the search among their weights, the adaptive model that is chosen for them."""

import numpy as np
import pytest

from waterfill.codec import adaptive as coder
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Feedback, Trellis, adaptive
from waterfill.quantize import spread as spreads
from waterfill.quantize.scalar import Scalar
from waterfill.quantize.sparse import PRICE_OF_BIT, Problem, Sparse, magnitude_bits, nearest
from waterfill.quantize.sparse_kernels import descend
from waterfill.quantize.trellis import lagrangian
from waterfill.records import Adaptive, Layout, Weight

LEVEL = 0.03
SHAPE = 100, 150


def sparse_weight(shape=SHAPE, share=0.1, seed=0):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=shape) * (rng.random(shape) < 2 * share * rng.random((1, shape[1])))
    matrix[::4] = 0
    return Weight("w", matrix.astype(np.float32), Layout(shape))


def crossed_form(shape=SHAPE, seed=1):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(200, shape[1])) @ (np.eye(shape[1]) + 0.3 * rng.normal(size=(shape[1], shape[1])))
    return KroneckerForm(rng.uniform(0.1, 2, shape[0]), (inputs.T @ inputs / 200)[None])


def forms():
    return {"none": None, "diagonal": DiagonalForm(crossed_form().diagonal()), "crossed": crossed_form()}


@pytest.mark.parametrize("kind", ["none", "diagonal", "crossed"])
def test_it_beats_free_symbols_and_fills_no_zero(kind):
    weight, form = sparse_weight(), forms()[kind]
    found, plain = (each.quantize(weight, form, LEVEL) for each in (Sparse(), Scalar()))
    assert not found.symbols[weight.matrix == 0].any()
    assert found.spread.adaptive is not None
    assert lagrangian(found, LEVEL) < lagrangian(plain, LEVEL)


def test_what_it_says_about_bits_and_errors_is_so():
    weight, form = sparse_weight(), crossed_form()
    problem = Problem.of(weight, form, PRICE_OF_BIT * LEVEL)
    x = problem.values * 4
    symbols, lengths = nearest(x), magnitude_bits(nearest(x))
    ends = np.searchsorted(problem.places[0], np.arange(SHAPE[0] + 1))
    prices, sums = np.full((x.size, 2), 2.0), np.zeros((2, 3))
    known = x, problem.places[1], ends, problem.rows, problem.factors, problem.importance
    cost, bits = descend(*known, prices, lengths, np.zeros(4), 1e-9, symbols, sums)
    error = weight.matrix.astype(np.float64) * 4 - problem.matrix(symbols)
    assert cost == pytest.approx(form.cost(error))
    assert bits == pytest.approx(
        (prices[:, 1] + lengths[np.abs(symbols)])[symbols != 0].sum() + 2.0 * (symbols == 0).sum()
    )


def slow_descend(weight, form, prices, lengths, lmbda, symbols):
    """One sweep, pricing the whole matrix for every candidate."""
    done = symbols.copy()
    for place in zip(*np.nonzero(weight), strict=True):
        costs = {}
        for candidate in range(-12, 13):
            done[place] = candidate
            bits = prices[*place, 1] + lengths[abs(candidate)] if candidate else prices[*place, 0]
            costs[candidate] = form.cost(weight - done) + lmbda * bits
        done[place] = min(costs, key=costs.get)
    return done


def test_a_sweep_is_that_of_its_slow_twin():
    weight, form = sparse_weight((6, 9), 0.8), crossed_form((6, 9))
    weight.matrix[:] *= 3
    problem = Problem.of(weight, form, 1.0)
    rng = np.random.default_rng(0)
    prices, lengths = rng.uniform(0, 4, (6, 9, 2)), np.log2(2.0 + np.arange(256))
    symbols = nearest(problem.values)
    wanted = slow_descend(weight.matrix.astype(np.float64), form, prices, lengths, 0.2, problem.matrix(symbols))
    ends = np.searchsorted(problem.places[0], np.arange(7))
    known = problem.values, problem.places[1], ends, problem.rows, problem.factors, problem.importance
    descend(*known, prices[problem.places], lengths, np.zeros(4), 0.2, symbols, np.zeros((2, 3)))
    assert (problem.matrix(symbols) == wanted).all()


def test_sparse_matrices_are_its_matter_by_default():
    weight, form = sparse_weight(), crossed_form()
    assert Feedback(8).quantize(weight, form, LEVEL).spread.adaptive is not None
    assert Trellis(8).quantize(weight, None, LEVEL).spread.adaptive is not None
    dense = Weight("w", sparse_weight(share=50.0).matrix + np.float32(0.01), weight.layout)
    assert Feedback(8).quantize(dense, form, LEVEL).spread.adaptive is None


def test_dense_matrices_have_no_adaptive_model_unless_they_are_small():
    rng = np.random.default_rng(0)
    values = rng.integers(1, 4, (100, 100)).astype(np.int32)
    assert adaptive.cheapest(values, Layout((100, 100))) is None
    assert adaptive.cheapest(values[:30, :30], Layout((30, 30))) is not None
    assert adaptive.cheapest(0 * values, Layout((100, 100))) is None


def test_a_matrix_that_would_be_too_short_for_its_elements_has_none(monkeypatch):
    values = np.zeros((600, 1000), np.int32)
    values[3, 5] = 1
    assert adaptive.cheapest(values, Layout(values.shape)) is None
    values[300:, ::2] = 1
    assert adaptive.cheapest(values, Layout(values.shape)) is not None
    monkeypatch.setattr(adaptive, "LARGE_CHUNK", 100_000)
    values[:300] = 0
    assert adaptive.cheapest(values, Layout(values.shape)) is None


def test_the_width_of_pictures_is_found():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.random((60, 5, 5)) < 0.3, np.ones((3, 3))).reshape(60, 225)
    values = (mask * (rng.random(mask.shape) < 0.8)).astype(np.int32)
    assert 15 in adaptive.widths(values)
    spread, bits = adaptive.cheapest(values, Layout(values.shape))
    assert abs(spread.adaptive.width - 15) <= 1
    whole = coder.ideal_bits(values.reshape(-1), coder.model(Adaptive(0), Layout(values.shape), 0, values.size))
    assert bits < 0.9 * whole
    assert spreads.cheapest(values, Layout(values.shape), spread, np.inf)[0].adaptive == spread.adaptive
