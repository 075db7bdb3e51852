import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from waterfill.codec import rans, symbols, tables
from waterfill.errors import FormatError
from waterfill.records import Layout, Spread


def scales(length):
    return st.none() | hnp.arrays(np.int8, length, elements=st.integers(-20, 20))


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))
    transposed = len(shape) >= 2 and draw(st.booleans())
    layout = Layout(shape, transposed)
    out, channels, taps = layout.axes
    family, base = draw(st.integers(0, tables.FAMILIES - 1)), draw(st.integers(-60, 230))
    spread = Spread(family, base, draw(scales(out)), draw(scales(channels)), draw(scales(taps)))
    limit = draw(st.sampled_from([0, 1, 5, 300, 70_000, 2**31 - 1]))
    values = draw(hnp.arrays(np.int32, layout.numel, elements=st.integers(-limit, limit)))
    return layout, spread, values


@given(tensors())
@settings(max_examples=200, deadline=None)
def test_round_trip_of_any_integers_under_any_spread(case):
    layout, spread, values = case
    codes = symbols.spread_codes(spread, layout, 0, layout.numel)
    stream = symbols.encode(values, codes)
    assert (symbols.decode(stream, codes) == values).all()
    ideal = symbols.ideal_bits(values, codes)
    assert 8 * (len(stream) - rans.HEADER_BYTES) <= 1.005 * ideal + 16
    assert 8 * len(stream) >= ideal


@given(tensors(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_part_of_a_tensor_has_the_codes_of_that_part(case, data):
    layout, spread, _ = case
    start = data.draw(st.integers(0, layout.numel))
    stop = data.draw(st.integers(start, layout.numel))
    whole = symbols.spread_codes(spread, layout, 0, layout.numel)
    part = symbols.spread_codes(spread, layout, start, stop)
    assert all((p == w[start:stop]).all() for p, w in zip(part, whole, strict=True))


def test_exponents_are_the_sum_that_the_record_says():
    layout = Layout((2, 3, 2, 2))
    rows, channels, taps = (np.arange(n, dtype=np.int8) for n in layout.axes)
    spread = Spread(3, 20, rows, channels, taps)
    classes, low = symbols.spread_codes(spread, layout, 0, layout.numel)
    expected = [tables.bank_class(3, 20 + 2 * (o + c + t)) for o in range(2) for c in range(3) for t in range(4)]
    assert classes.tolist() == expected
    assert not low.any()


def test_large_spreads_leave_low_bits_to_uniform_tables():
    classes, low = symbols.exponent_codes(np.array([-50, 0, 56, 57, 64, 65, 256], np.int32), 8)
    assert (classes - tables.bank_class(8, 0)).tolist() == [0, 0, 56, 49, 56, 49, 56]
    assert low.tolist() == [0, 0, 0, 1, 1, 2, 25]
    rng = np.random.default_rng(0)
    values = np.rint(rng.normal(size=100_000) * 1000).astype(np.int32)
    codes = symbols.spread_codes(Spread(8, 32 + 80), Layout((values.size,)), 0, values.size)
    entropy = np.log2(1000 * np.sqrt(2 * np.pi * np.e))
    assert symbols.ideal_bits(values, codes) / values.size == pytest.approx(entropy, abs=0.03)


def test_no_symbols_at_all():
    codes = symbols.spread_codes(Spread(0, 0), Layout((0, 4)), 0, 0)
    assert symbols.decode(symbols.encode(np.zeros(0, np.int32), codes), codes).size == 0


def test_a_symbol_beyond_32_bits_is_refused():
    codes = (np.array([tables.bank_class(8, 56)], np.uint16), np.array([27], np.uint8))
    stream = symbols.encode(np.array([2**40], np.int64), codes)
    with pytest.raises(FormatError, match="32 bits"):
        symbols.decode(stream, codes)
