"""The adaptive model: any integers come back, zeros cost next to nothing, and lines without values nothing at all."""

import format_page
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from round_trips import check_round_trip

from waterfill.codec import adaptive, pieces
from waterfill.errors import FormatError
from waterfill.records import Adaptive, Layout, Spread


def model_of(shape, width=0):
    layout = Layout(shape)
    return pieces.model(Spread(0, 0, adaptive=Adaptive(width)), layout, 0, layout.numel)


@st.composite
def coded_pieces(draw):
    shape = draw(st.sampled_from([(1, 1), (1, 9), (7, 1), (5, 6), (4, 3, 2), (9,), (3, 2, 2, 2)]))
    limit = draw(st.sampled_from([1, 3, 300, 2**31 - 1]))
    values = draw(hnp.arrays(np.int32, int(np.prod(shape)), elements=st.integers(-limit, limit)))
    values *= draw(hnp.arrays(np.int32, values.size, elements=st.integers(0, 1)))
    return values, model_of(shape, draw(st.sampled_from([0, 1, 2, 3, 99])))


@given(st.lists(coded_pieces(), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_round_trip_in_one_stream_with_others(parts):
    others = np.arange(-3, 4, dtype=np.int32), pieces.model(Spread(5, 40), Layout((7,)), 0, 7)
    check_round_trip([*parts, others])


@pytest.mark.parametrize(("shape", "width"), [((12, 20), 0), ((12, 20), 5), ((6, 4, 3, 2), 1), ((1, 40), 3)])
def test_the_slow_twin_reads_the_same(shape, width):
    rng = np.random.default_rng(0)
    values = np.rint(rng.laplace(size=(shape[0], int(np.prod(shape[1:])))) * 3).astype(np.int32)
    values *= rng.random(values.shape) < 0.4
    values[::3] = 0
    values[0, 3], values[0, 5] = 100_000, -(2**31) + 1
    model = model_of(shape, width)
    stream = format_page.Stream(pieces.encode([values.reshape(-1)], [model]))
    taps = int(np.prod(shape[2:]))
    found = format_page.read_adaptive(stream, values.size, values.shape[1], taps, width)
    assert found == values.reshape(-1).tolist()
    stream.finish()


def test_the_slow_twin_learns_what_is_nearly_certain_too():
    values = np.ones((50, 60), np.int32)
    values[::7, ::11] = 0
    model = model_of(values.shape)
    stream = format_page.Stream(pieces.encode([values.reshape(-1)], [model]))
    assert format_page.read_adaptive(stream, values.size, 60, 1, 0) == values.reshape(-1).tolist()


def test_rows_and_columns_without_values_cost_next_to_nothing():
    rng = np.random.default_rng(0)
    dense = rng.integers(-1, 2, (40, 50)).astype(np.int32)
    wide = np.zeros((400, 500), np.int32)
    wide[:40, :50] = dense
    inside = pieces.ideal_bits(dense.reshape(-1), model_of(dense.shape))
    assert pieces.ideal_bits(wide.reshape(-1), model_of(wide.shape)) < inside + 0.1 * 900
    assert inside == pytest.approx(2000 * np.log2(3), rel=0.05)


def test_what_rows_and_columns_differ_in_is_learnt():
    rng = np.random.default_rng(0)
    odds = rng.normal(size=(200, 1)) * 1.5 + rng.normal(size=(1, 200)) * 1.5 - 2
    chance = 1 / (1 + np.exp(-odds))
    values = (rng.random(chance.shape) < chance).astype(np.int32)
    known = -np.log2(np.where(values, chance, 1 - chance)).sum()
    mean = values.mean()
    order_0 = -values.size * (mean * np.log2(mean) + (1 - mean) * np.log2(1 - mean))
    found = pieces.ideal_bits(values.reshape(-1), model_of(values.shape))
    signs = 0.1 * values.sum()  # all of them are positive, which is soon learnt
    assert known < found < known + 0.35 * (order_0 - known) + signs


def test_rows_that_are_pictures_are_told_by_their_width():
    rng = np.random.default_rng(0)
    chance = np.kron(rng.random((60, 4, 4)) < 0.3, np.ones((4, 4))).reshape(60, 256) * 0.9
    values = (rng.random(chance.shape) < chance).astype(np.int32)
    bits = {width: pieces.ideal_bits(values.reshape(-1), model_of(values.shape, width)) for width in (0, 11, 16)}
    assert bits[16] < 0.85 * bits[0]
    assert bits[16] < 0.9 * bits[11]


def test_prices_are_what_the_decisions_take():
    rng = np.random.default_rng(0)
    values = (rng.random((30, 40)) < 0.3).astype(np.int32)
    prices = adaptive.prices(values, Layout((30, 40)), Adaptive())
    assert prices.shape == (30, 40, 2)
    assert np.allclose((2.0 ** -prices.astype(np.float64)).sum(axis=2), 1, atol=1e-3)
    taken = np.where(values, prices[..., 1], prices[..., 0]).sum()
    bits = pieces.ideal_bits(values.reshape(-1), model_of(values.shape))
    assert taken < bits < taken + 60 + 0.2 * values.sum()  # lines, signs and sizes, which are all the same


def test_damage_is_found():
    values = np.random.default_rng(0).integers(-2, 3, 600).astype(np.int32)
    model = model_of((20, 30))
    stream = pieces.encode([values], [model])
    for bad in (stream[:-2], stream + b"\0\0", b"\1" + stream[1:], stream[:40] + b"\x55\xaa" + stream[42:]):
        with pytest.raises(FormatError):
            pieces.decode(bad, [model])


def test_probabilities_are_frozen():
    table = adaptive.probabilities().astype(int)
    assert (np.diff(table) >= 0).all()
    assert (table + table[::-1] == 4096).all()
    assert (table[0], table[512], table[-1]) == (3, 2056, 4093)
