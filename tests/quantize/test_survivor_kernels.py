"""The search column by column, against searches in which every path remembers everything, or all is decided early."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import slow_feedback

from waterfill.codec.trellis import parities
from waterfill.quantize import feedback_kernels as kernels
from waterfill.quantize import spread, survivor_kernels
from waterfill.quantize.branch_kernels import level_prices
from waterfill.quantize.path_spread import PathFit
from waterfill.quantize.survivor_kernels import Survivors
from waterfill.quantize.viterbi_kernels import code_of


@dataclass(frozen=True, eq=False)
class Span:
    """The arguments of a kernel."""

    x: np.ndarray
    carried: np.ndarray
    factors: np.ndarray
    gains: np.ndarray
    steps: np.ndarray
    classes: np.ndarray
    weights: np.ndarray
    row_exponents: np.ndarray
    column_exponents: np.ndarray
    lengths: np.ndarray
    lmbda: float
    aside: np.ndarray
    flips: np.ndarray
    subsets: np.ndarray

    @property
    def coupling(self):
        """What an error of one step in a column adds to the aim of a later one, [later, earlier, classes]."""
        return (self.gains[:, :, None] * self.factors * self.steps).transpose(1, 2, 0)


def span(columns, rows, *, log_states=3, classes=1, weighted=False, lmbda=0.2, strength=1.0, scale=2.0, aside=0.0):
    """A random one."""
    rng = np.random.default_rng([columns, rows, log_states])
    lengths = PathFit(False, (5, 7), (30, 25), (np.array([-3, 0, 4]), None, None), wide=False).lengths()
    strength /= max(1, columns) ** 0.5
    factors = np.tril(rng.normal(size=(classes, columns, columns)) * strength)
    flips, subsets = (part.astype(np.bool_) for part in parities(log_states))
    return Span(
        x=rng.laplace(scale=scale, size=(columns, rows)).astype(np.float32),
        carried=rng.normal(size=(columns, rows)).astype(np.float32),
        factors=factors.astype(np.float32),
        gains=rng.uniform(0.8, 1.2, size=(classes, columns)).astype(np.float32),
        steps=rng.uniform(0.9, 1.1, size=columns).astype(np.float32),
        classes=rng.integers(0, classes, rows),
        weights=rng.uniform(0.5, 3, size=(columns, rows) if weighted else (1, 1)).astype(np.float32),
        row_exponents=rng.integers(0, len(lengths) // 2, rows),
        column_exponents=rng.integers(0, len(lengths) // 2, columns),
        lengths=lengths,
        lmbda=lmbda,
        aside=rng.random(len(lengths)) < aside,
        flips=flips,
        subsets=subsets,
    )


def arguments(loop, bits):
    """What the kernels take, before what they fill, and the errors that they fill."""
    errors = np.zeros(loop.x.shape[::-1], np.float32)
    feed = kernels.Feed(loop.factors, loop.gains, loop.steps, loop.classes, errors)
    weights = loop.weights if loop.weights.shape == loop.x.shape else np.full((1, loop.x.shape[1]), loop.weights[0, 0])
    prices = kernels.Prices(weights, loop.row_exponents, loop.column_exponents, bits)
    return (loop.x, loop.carried, feed, 0, 0, prices), errors


def best_span(loop, lag, ends=4096):
    """Levels, errors in steps and cost of the path that is found."""
    levels = np.full(loop.x.shape, 99, np.int32)
    known, errors = arguments(loop, level_prices(loop.lengths, loop.lmbda, False))
    code = code_of(loop.flips.astype(int), loop.subsets.astype(int), np.int32, 4096.0)
    survivor_kernels.surviving_span(*known, loop.aside, code, Survivors(lag, ends), levels)
    return levels, errors.T / loop.steps[:, None], slow_feedback.walk(levels, loop)


def decided_span(loop, metric, scale):
    """The same, where every column is decided at its end."""
    levels = np.full(loop.x.shape, 99, np.int32)
    known, errors = arguments(loop, level_prices(loop.lengths, loop.lmbda, False))
    code = code_of(loop.flips.astype(int), loop.subsets.astype(int), metric, scale)
    kernels.decided_span(*known, loop.aside, code, levels)
    return levels, errors.T / loop.steps[:, None], slow_feedback.walk(levels, loop)


def scalar_span(loop):
    levels = np.full(loop.x.shape, 99, np.int32)
    known, errors = arguments(loop, np.float32(loop.lmbda) * loop.lengths[:, None])
    kernels.scalar_span(*known, levels)
    return levels, errors.T / loop.steps[:, None]


SHAPES = [(1, 1), (1, 40), (40, 1), (12, 2), (9, 5), (3, 40), (0, 4)]


@pytest.mark.parametrize(("columns", "rows"), SHAPES)
@pytest.mark.parametrize("log_states", [2, 3, 6])
@pytest.mark.parametrize("options", [{}, {"classes": 3, "weighted": True}, {"strength": 2.0, "aside": 0.5}], ids=str)
def test_without_giving_up_it_is_what_paths_that_remember_everything_find(columns, rows, log_states, options):
    loop = span(columns, rows, log_states=log_states, **options)
    levels, errors, cost = best_span(loop, max(1, loop.x.size))
    expected, least = slow_feedback.best_span(loop)
    np.testing.assert_allclose(errors, loop.x - levels, rtol=1e-5, atol=1e-6)
    assert cost == pytest.approx(least, rel=1e-4, abs=1e-3)
    assert np.count_nonzero(levels != expected) <= 0.02 * levels.size  # others may cost the same, to a part of 4,096


@pytest.mark.parametrize(("columns", "rows"), [(60, 1), (30, 2), (16, 5), (16, 7), (4, 40), (3, 100), (2, 129)])
@pytest.mark.parametrize("lag", [1, 3, 8, 30, 41])
@pytest.mark.parametrize("options", [{"aside": 0.3}, {"classes": 2, "weighted": True}], ids=str)
def test_with_a_memory_of_any_length_it_is_a_path_of_low_cost(columns, rows, lag, options):
    loop = span(columns, rows, log_states=4, **options)
    levels, errors, cost = best_span(loop, lag)
    np.testing.assert_allclose(errors, loop.x - levels, rtol=1e-5, atol=1e-6)
    _, _, least = best_span(loop, loop.x.size)
    assert cost <= least * (1.5 if lag < 8 else 1.1 if lag < 30 else 1.06)


@pytest.mark.parametrize("columns", [1, 2, 7])
@pytest.mark.parametrize("rows", [1, 3, 64, 130])
def test_a_memory_as_long_as_ten_times_the_bits_of_a_state_is_nearly_one_of_everything(columns, rows):
    loop = span(columns, rows, log_states=6)
    costs = [best_span(loop, lag)[2] for lag in (60, loop.x.size)]
    assert costs[0] <= 1.03 * costs[1]


@pytest.mark.parametrize("rows", [8, 64, 130])
def test_few_ends_are_nearly_as_good_as_all(rows):
    loop = span(12, rows, log_states=6)
    one, few, every = (best_span(loop, 60, ends)[2] for ends in (1, 8, 64))
    assert few <= 1.03 * every
    assert few < one


def test_more_states_cost_less():
    loop, costs = span(10, 200, strength=0.3), []
    for log in (2, 4, 6, 8):
        flips, subsets = (part.astype(np.bool_) for part in parities(log))
        costs.append(best_span(replace(loop, flips=flips, subsets=subsets), 10 * log)[2])
    assert (np.diff(costs) < 0).all()


def test_every_survivor_makes_up_for_its_own_errors():
    """Feedback from the best one alone, as where a column is longer than the memory, finds dearer paths."""
    loop = span(60, 2, log_states=6, strength=2.0, lmbda=0.0)
    assert best_span(loop, 60)[2] < 0.9 * best_span(loop, 1)[2]


@pytest.mark.parametrize(("columns", "rows"), SHAPES)
@pytest.mark.parametrize("options", [{}, {"classes": 3, "weighted": True, "lmbda": 1.0}, {"lmbda": 0.0}], ids=str)
def test_free_levels_are_what_a_plain_loop_finds(columns, rows, options):
    loop = replace(span(columns, rows, **options), lengths=spread.lengths(5, True))
    loop = replace(loop, row_exponents=loop.row_exponents + 20)
    levels, errors = scalar_span(loop)
    expected, _ = slow_feedback.scalar_span(loop)
    np.testing.assert_array_equal(levels, expected)
    np.testing.assert_allclose(errors, loop.x - levels, rtol=1e-5, atol=1e-6)


def test_exponents_beyond_the_tables_are_those_at_their_ends():
    loop = replace(span(5, 6, scale=20.0), lengths=spread.lengths(3, True))
    for far, end in ((-500, 0), (5000, len(loop.lengths) - 1)):
        at = (replace(loop, row_exponents=np.full(6, e), column_exponents=np.zeros(5, int)) for e in (far, end))
        beyond, there = at
        np.testing.assert_array_equal(scalar_span(beyond)[0], scalar_span(there)[0])


@pytest.mark.parametrize(("columns", "rows"), SHAPES)
@pytest.mark.parametrize("options", [{"aside": 0.3}, {"classes": 2, "weighted": True}], ids=str)
def test_decided_at_the_end_of_every_column_it_is_what_one_end_finds(columns, rows, options):
    loop = span(columns, rows, log_states=5, **options)
    levels, errors, cost = decided_span(loop, np.int32, 4096.0)
    np.testing.assert_allclose(errors, loop.x - levels, rtol=1e-5, atol=1e-6)
    assert cost == pytest.approx(best_span(loop, rows, 1)[2], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("log_states", [2, 3, 4, 5, 6, 8, 12])
def test_narrow_costs_find_paths_as_good_as_wide_ones(log_states):
    loop = span(4, 1500, log_states=log_states, strength=0.3)
    narrow, wide = decided_span(loop, np.int16, 128.0)[2], decided_span(loop, np.int32, 4096.0)[2]
    assert narrow == pytest.approx(wide, rel=2e-3)
