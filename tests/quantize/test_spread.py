import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from waterfill.codec import symbols as codec
from waterfill.codec import tables
from waterfill.codec.scales import side_bits
from waterfill.quantize import spread
from waterfill.records import Layout


def coded_bits(symbols, layout, record):
    """What the codec spends on symbols and scales, with a byte for each vector of scales."""
    bits = codec.ideal_bits(symbols.reshape(-1), codec.spread_codes(record, layout, 0, layout.numel))
    return bits + side_bits(record.scales)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))
    layout = Layout(shape, transposed=len(shape) >= 2 and draw(st.booleans()))
    limit = draw(st.sampled_from([0, 1, 5, 100, 3000, 2**31 - 1]))
    values = draw(hnp.arrays(np.int32, layout.numel, elements=st.integers(-limit, limit)))
    out, channels, taps = layout.axes
    return layout, values.reshape(out, channels * taps)


@given(tensors())
@settings(max_examples=150, deadline=None)
def test_any_symbols_get_a_spread_that_a_file_can_hold(case):
    layout, symbols = case
    fit = spread.fit(symbols, layout)
    again = spread.fit(symbols, layout, fit)
    for found in (fit, again):
        record = found.spread()
        assert 0 <= record.family < tables.FAMILIES
        assert -400 <= record.base <= 256
        for scales, length in zip((record.rows, record.channels, record.taps), layout.axes, strict=True):
            assert scales is None or (scales.dtype == np.int8 and scales.shape == (length,))
        assert np.isfinite(found.bits)
        codes = codec.spread_codes(record, layout, 0, layout.numel)
        assert (codec.decode(codec.encode(symbols.reshape(-1), codes), codes) == symbols.reshape(-1)).all()


@given(tensors())
@settings(max_examples=100, deadline=None)
def test_bits_are_those_of_the_codec_for_magnitudes_of_one_byte(case):
    layout, symbols = case
    symbols = symbols % 12 - 6
    fit = spread.fit(symbols, layout)
    assert fit.shift == 0
    assert fit.bits == pytest.approx(coded_bits(symbols, layout, fit.spread()), rel=1e-5, abs=1e-3)


@given(tensors())
@settings(max_examples=100, deadline=None)
def test_a_spread_is_never_worse_than_the_best_single_table(case):
    layout, symbols = case
    symbols = np.clip(symbols, -100, 100)
    fit = spread.fit(symbols, layout)
    magnitude = np.abs(symbols.reshape(-1))
    if fit.shift == 0:
        best = min(
            tables.code_lengths(f)[:, magnitude].sum(axis=1, dtype=np.float64).min() for f in range(tables.FAMILIES)
        )
        assert fit.bits <= best + 1e-3


@pytest.mark.parametrize(("family", "sigma"), [(5, 0.5), (5, 3.0), (8, 0.7), (8, 5.0), (1, 2.0)])
def test_the_spread_of_generated_symbols_is_found(family, sigma):
    exponent = round(8 * np.log2(sigma)) + 32
    pmf = tables.frequencies()[tables.bank_class(family, exponent)] / 4096
    index = np.random.default_rng(0).choice(256, 40_000, p=pmf)
    symbols = np.where(index % 2, (index + 1) // 2, -(index // 2)).astype(np.int32).reshape(200, 200)
    fit = spread.fit(symbols, Layout((200, 200)))
    assert abs(fit.family - family) <= 1
    assert abs(fit.base - exponent) <= 2
    entropy = -(pmf[pmf > 0] * np.log2(pmf[pmf > 0])).sum()
    assert fit.bits / 40_000 == pytest.approx(entropy, rel=0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scales_of_an_axis_are_found_where_they_pay(axis):
    rng = np.random.default_rng(0)
    layout = Layout((40, 30, 5, 5))
    octaves = rng.integers(-2, 3, layout.axes[axis])
    shape = [1, 1, 1]
    shape[axis] = -1
    symbols = np.rint(rng.laplace(size=layout.axes) * 2.0 ** octaves.reshape(shape) * 2).astype(np.int32)
    fit = spread.fit(symbols.reshape(40, -1), layout)
    assert [scales is not None for scales in fit.offsets] == [a == axis for a in range(3)]
    error = fit.offsets[axis] - 4 * octaves
    assert np.abs(error - np.median(error)).max() <= 2


def test_scales_that_do_not_pay_are_left_out():
    symbols = np.rint(np.random.default_rng(0).laplace(size=(30, 30)) * 2).astype(np.int32)
    fit = spread.fit(symbols, Layout((30, 30)))
    assert fit.offsets == (None, None, None)


@pytest.mark.parametrize("sigma", [20.0, 1000.0, 1e6])
def test_large_spreads_leave_low_bits_out(sigma):
    symbols = np.rint(np.random.default_rng(0).normal(size=(100, 100)) * sigma).astype(np.int32)
    fit = spread.fit(symbols, Layout((100, 100)))
    assert fit.shift > 0
    assert fit.bits / symbols.size == pytest.approx(np.log2(sigma * np.sqrt(2 * np.pi * np.e)), abs=0.05)
    assert coded_bits(symbols, Layout((100, 100)), fit.spread()) == pytest.approx(fit.bits, rel=0.01)


def in_steps(layout, seed=0, largest=16):
    """Symbols of weights of one variance in steps that differ along rows and channels, and the scales of these."""
    rng = np.random.default_rng(seed)
    rows, channels = (rng.integers(-largest, largest + 1, n).astype(np.int8) for n in layout.axes[:2])
    steps = 2.0 ** (rows[:, None, None] / 4 + channels[:, None] / 4)
    symbols = np.rint(rng.normal(size=layout.axes) * 6 / steps).astype(np.int32)
    return symbols.reshape(layout.axes[0], -1), (rows, channels, None)


def test_weights_of_one_variance_have_the_negative_of_their_steps():
    layout = Layout((60, 70, 2))
    symbols, steps = in_steps(layout)
    found, plain = spread.fit(symbols, layout, steps=steps), spread.fit(symbols, layout)
    for offsets, step in zip(found.offsets[:2], steps[:2], strict=True):
        assert (offsets == -step.astype(int)).all()
    assert found.offsets[2] is None
    alone = sum(side_bits((each.astype(np.int8), None, None)) for each in plain.offsets if each is not None)
    assert found.bits < plain.bits - 0.9 * alone
    again = spread.fit(symbols, layout, found)
    assert again.steps is steps
    assert again.bits <= found.bits + 1e-6


@given(tensors(), st.data())
@settings(max_examples=100, deadline=None)
def test_bits_are_those_of_a_file_beside_any_steps(case, data):
    layout, symbols = case
    symbols = symbols % 12 - 6
    number = st.integers(-60, 60)
    steps = tuple(data.draw(st.none() | hnp.arrays(np.int8, n, elements=number)) for n in layout.axes)
    for fit in (spread.fit(symbols, layout, steps=steps), spread.fit(symbols, layout, spread.fit(symbols, layout))):
        record = fit.spread()
        codes = codec.spread_codes(record, layout, 0, layout.numel)
        bits = codec.ideal_bits(symbols.reshape(-1), codes) + side_bits(record.scales, fit.steps)
        assert fit.bits == pytest.approx(bits, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("moved", [0, 1])
def test_moves_are_priced_by_what_is_stored(moved):
    steps = np.resize(np.array([40, -37, 9, -14, 22], np.int8), 50)
    offsets = -steps.astype(np.int64)
    offsets[7] += moved
    costs = np.zeros((50, spread.MOVES.size))
    costs[3, 4], costs[4, 0] = -40.0, -0.5
    found = spread.refined(costs, offsets, steps)
    assert found[3] == offsets[3] + 2
    assert np.flatnonzero(found + steps).tolist() == [3]
    alone = spread.refined(costs, offsets, None)
    assert (alone + steps != 0).sum() > 40


def test_lengths_go_on_beyond_the_tables():
    for family in range(tables.FAMILIES):
        lengths = spread.lengths(family, False)
        assert lengths.shape == (tables.SCALES, 256)
        assert (lengths[:, :128] == tables.code_lengths(family)).all()
        assert (lengths[:, 128:] == lengths[:, 127:128]).all()
        wide = spread.lengths(family, True)
        assert (wide[: tables.SCALES] == lengths).all()
        for exponent, magnitude in ((57, 0), (57, 9), (64, 200), (65, 200), (80, 254)):
            codes = codec.exponent_codes(np.array([exponent], np.int32), family)
            symbols = np.array([magnitude], np.int32)
            assert wide[exponent, magnitude] == pytest.approx(codec.bits_of(symbols, codes)[0], abs=1e-4)
        assert (wide[tables.SCALES :, 255] == lengths[-1, 255]).all()


def test_side_bits_are_those_of_the_cheapest_table_and_a_byte():
    scales = np.array([0, 3, -5, 60, 0, 1], np.int8)
    by_table = [sum(tables.code_lengths(5)[s, abs(int(k))] for k in scales) for s in range(tables.SCALES)]
    assert side_bits((scales, None, None)) == pytest.approx(min(by_table) + 8)


def test_the_largest_symbols_have_a_spread_that_a_file_can_hold():
    symbols = np.tile(np.array([2**31 - 1, -(2**31) + 1], np.int32), (1, 20))
    record = spread.fit(symbols, Layout((40,))).spread()
    assert record.base <= 256
    assert 8 * spread.LARGEST_SHIFT + tables.SCALES - 1 == 256


def test_wide_values_among_many_zeros_are_escapes_rather_than_low_bits_for_all():
    rng = np.random.default_rng(0)
    symbols = np.where(rng.random((200, 200)) < 0.01, rng.integers(-400, 401, (200, 200)), 0).astype(np.int32)
    found = spread.fit(symbols, Layout(symbols.shape))
    assert found.shift == 0
    assert found.bits / symbols.size < 0.5
