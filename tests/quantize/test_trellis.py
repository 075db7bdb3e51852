"""The search for paths: optimal under fixed tables, and what its options do."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import conformance
from waterfill.codec.trellis import PARITIES, path_model, path_of
from waterfill.errors import UsageError
from waterfill.files import WaterfillFile
from waterfill.importance.forms import DiagonalForm
from waterfill.quantize import Scalar, Trellis
from waterfill.quantize import trellis as search
from waterfill.quantize.path_spread import PathFit
from waterfill.quantize.trellis import lagrangian
from waterfill.records import ALL, Layout, Paths, Spread, Weight


def weight(matrix, shape=None):
    matrix = np.ascontiguousarray(matrix, np.float32)
    return Weight("w", matrix, Layout(shape or matrix.shape))


def gaussian(shape=(128, 128), seed=0):
    return weight(np.random.default_rng(seed).normal(size=shape))


def laplace(shape=(128, 128), seed=0):
    return weight(np.random.default_rng(seed).laplace(size=shape) / np.sqrt(2))


def gap(item, some):
    """Bits above the rate of a Gaussian source at the distortion."""
    size = some.matrix.size
    return item.bits / size - 0.5 * np.log2(np.square(some.matrix, dtype=float).sum() / item.distortion)


def all_level_costs(x, importance, exponents, fit, shrink, lmbda, subset, k):
    level = 2 * k + subset if not fit.zero else 2 * k - subset * ((k > 0) - (k < 0))
    magnitude = -k - 1 if subset and not fit.zero and k < 0 else abs(k)
    moved = level - np.sign(level) * search.moved(shrink)[min(abs(level), 3)]
    return importance * (x - moved) ** 2 + lmbda * fit.lengths()[exponents, 128 * subset + magnitude]


def brute_force(x, importance, exponents, fit, log_states, shrink, lmbda, reach):
    """The lowest cost of any path, by trying every sequence of indices in -reach..reach."""
    h0, h1 = PARITIES[log_states]
    known = {
        (i, subset, k): all_level_costs(float(x[i]), importance[i], exponents[i], fit, shrink, lmbda, subset, k)
        for i in range(x.size)
        for subset in (0, 1)
        for k in range(-reach, reach + 1)
    }
    best = np.inf
    for indices in itertools.product(range(-reach, reach + 1), repeat=x.size):
        state, cost = 0, 0.0
        for i, k in enumerate(indices):
            subset = (state & (h1 >> 1)).bit_count() % 2
            cost += known[i, subset, k]
            state = (2 * state + (k + (state & (h0 >> 1)).bit_count()) % 2) % (1 << log_states)
        best = min(best, cost)
    return best


@pytest.mark.parametrize("log_states", [2, 3, 5, 8])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("lmbda", [0.0, 0.4, 3.0])
def test_no_path_costs_less_than_the_one_that_is_found(log_states, zero, lmbda):
    rng = np.random.default_rng(log_states)
    offsets = np.array([-3, 0, 2], np.int64)
    for _ in range(3):
        fit = PathFit(zero, (5, 7), (30, 25), (offsets, None, None), wide=False)
        x = rng.laplace(scale=1.5, size=5).clip(-4, 4).astype(np.float32)
        importance = rng.gamma(0.3, size=5).astype(np.float32)
        exponents = rng.integers(0, fit.lengths().shape[0], 5).astype(np.int32)
        shrink = (9, -4, 3)
        levels = search.search(x, importance, exponents, fit, log_states, shrink, lmbda, x.size)
        indices, subsets = path_of(
            levels, path_model(Spread(5, 30, trellis=Paths(log_states, zero, 16, 0, 0)), Layout((5,)), 0, 5)
        )
        found = sum(
            all_level_costs(float(x[i]), importance[i], exponents[i], fit, shrink, lmbda, int(subsets[i]), int(k))
            for i, k in enumerate(indices)
        )
        best = brute_force(x, importance, exponents, fit, log_states, shrink, lmbda, 3)
        assert found <= best * (1 + 1e-5) + 5 / search.NARROW  # costs are integers


@pytest.mark.parametrize("form", [None, "importance"])
def test_the_rate_falls_and_the_distortion_rises_as_a_bit_grows_dearer(form):
    some = gaussian()
    form = form and DiagonalForm(np.random.default_rng(1).gamma(0.5, size=some.matrix.shape).astype(np.float32))
    found = [Trellis(64, lmbda).quantize(some, form, 0.01) for lmbda in (0.0, 0.1, 0.2, 0.35, 0.6, 1.0)]
    assert (np.diff([item.bits for item in found]) < 0).all()
    assert (np.diff([item.distortion for item in found]) > 0).all()


@pytest.mark.parametrize("make", [gaussian, laplace])
def test_the_rate_falls_with_the_water_level(make):
    found = [Trellis(8).quantize(make(), None, 2.0**level) for level in range(-12, 0, 2)]
    assert (np.diff([item.bits for item in found]) < 0).all()
    assert (np.diff([item.distortion for item in found]) > 0).all()


@pytest.mark.parametrize(("level", "most"), [(0.3, 0.01), (0.05, 0.003), (0.004, 0.003)])
def test_more_states_cost_no_more(level, most):
    some = gaussian()
    gaps = [gap(Trellis(1 << log).quantize(some, None, level), some) for log in range(2, 10)]
    assert (np.diff(gaps) < most).all()
    assert gaps[0] < 0.16
    assert gaps[-1] < 0.05
    assert min(gaps) > 0


@pytest.mark.parametrize("level", [0.3, 0.1, 0.01])
def test_a_path_beats_free_levels(level):
    some = laplace()
    path, free = Trellis().quantize(some, None, level), Scalar().quantize(some, None, level)
    slope = 1.386 * level
    assert path.distortion + slope * path.bits < free.distortion + slope * (free.bits - 0.05 * some.matrix.size)


@pytest.mark.parametrize(("make", "level"), [(gaussian, 0.46), (gaussian, 0.5), (laplace, 0.46), (laplace, 0.5)])
def test_not_all_elements_stand_aside_at_half_a_bit(make, level):
    """All together they would be free levels of twice the step, which cost 0.06 bit more."""
    some = make()
    path, free = Trellis().quantize(some, None, level), Scalar().quantize(some, None, level)
    assert lagrangian(path, level) < lagrangian(free, level) - 1.386 * level * 0.03 * some.matrix.size


@pytest.mark.parametrize("zero", [False, True])
def test_elements_stand_aside_beside_others_that_do_not(zero):
    alike = PathFit(zero, (0, 0), (0, 0), (None, None, None), False)
    apart = replace(alike, offsets=(np.array([0, 12]), None, None))
    assert alike.sorted().least == ALL
    assert apart.sorted().aside().any()


@pytest.mark.parametrize("level", [0.05, 0.003, 0.0001])
def test_at_high_rate_the_mean_cost_is_the_water_level(level):
    form = DiagonalForm(np.outer(4.0 ** np.arange(8), np.ones(2048)).astype(np.float32))
    for some, importance in ((gaussian(), None), (gaussian((8, 2048)), form)):
        mean = Trellis().quantize(some, importance, level).distortion / some.matrix.size
        assert mean == pytest.approx(level, rel=0.1)


def test_zero_is_in_both_subsets_where_that_is_cheaper():
    found = {level: Trellis().quantize(laplace(), None, level).spread.trellis for level in (0.4, 0.01)}
    assert found[0.4].zero
    assert not found[0.01].zero


def test_known_importance_goes_into_the_steps():
    some = gaussian()
    factors = [10 ** np.random.default_rng(s).uniform(-1, 1, 128) for s in (1, 2)]
    form = DiagonalForm(np.outer(*factors).astype(np.float32))
    item = Trellis().quantize(some, form, 0.01)
    assert item.rule.rows is not None
    assert item.rule.channels is not None
    assert item.spread.rows is not None


@pytest.mark.parametrize("matrix", [np.zeros((8, 6)), np.full((8, 6), 1e-3)])
def test_zeros_alone_need_no_path(matrix):
    found = Trellis(64).quantize(weight(matrix.astype(np.float32)), None, 1.0)
    assert not found.symbols.any() and found.spread.trellis is None


def test_sparse_matrices_need_no_path():
    rng = np.random.default_rng(0)
    matrix = np.where(rng.random((200, 200)) < 0.02, rng.normal(size=(200, 200)), 0)
    some = weight(matrix)
    path, free = (each.quantize(some, None, 1e-4) for each in (Trellis(), Scalar()))
    assert path.distortion + 1.386e-4 * path.bits <= free.distortion + 1.386e-4 * free.bits


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 33, 100])
def test_chunks_and_spans_of_any_length_come_back(monkeypatch, size):
    monkeypatch.setattr(search, "LARGEST_LOG_SPAN", 4)
    monkeypatch.setattr(conformance.container, "LARGE_CHUNK", 40)
    monkeypatch.setattr(conformance.container, "SMALL_CHUNK", 30)
    some = weight(np.random.default_rng(size).laplace(size=(size, 3)))
    item = Trellis(16).quantize(some, None, 0.01)
    file = conformance.packed(item, some.layout)
    for threads in (1, 3):
        stored = WaterfillFile(file.data, threads=threads)["w"].numpy()
        assert (stored == conformance.w_hat(item, some.layout)).all()


def test_threads_do_not_matter(monkeypatch):
    some, found = laplace((64, 2048)), []
    for processors in (1, 5):
        monkeypatch.setattr(search.os, "cpu_count", lambda count=processors: count)
        found.append(conformance.packed(Trellis(8).quantize(some, None, 0.02), some.layout).data)
    assert found[0] == found[1]


@pytest.mark.parametrize("options", [{"states": 2}, {"states": 65}, {"states": 8192}, {"lmbda": -1.0}, {"rounds": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError, match="expected"):
        Trellis(**options)


@pytest.mark.parametrize("quantizer", [Trellis(8), Scalar()], ids=["path", "scalar"])
def test_columns_that_are_wider_than_the_tables_take_what_they_need(quantizer):
    """Their low bits are uniform. Without that, those three octaves above the mean took .07 and .02 bit more of all."""
    rng = np.random.default_rng(0)
    scales = 2.0 ** rng.uniform(-3, 3, 300)
    matrix = (rng.normal(size=(400, 300)) * scales).astype(np.float32)
    level = float(np.exp2(2 * np.log2(scales).mean())) * 4.0**-3
    item = quantizer.quantize(Weight("w", matrix, Layout(matrix.shape)), None, level)
    shannon = np.log2(scales).mean() - 0.5 * np.log2(item.distortion / matrix.size)
    assert item.bits / matrix.size - shannon < {"Trellis": 0.11, "Scalar": 0.28}[type(quantizer).__name__]
