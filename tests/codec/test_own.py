"""Own tables: whole numbers from stored roots to frequencies, and symbols through them."""

import format_page
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from waterfill.codec import own, symbols, tables
from waterfill.errors import FormatError
from waterfill.records import Table

ROOTS = hnp.arrays(np.int32, st.integers(2, 256), elements=st.integers(0, 1023) | st.integers(0, 3)).filter(np.any)


@given(ROOTS)
@settings(max_examples=200, deadline=None)
def test_frequencies_fill_the_total_and_follow_the_squares(roots):
    found = own.frequencies(Table(0, roots))
    assert found.sum() == tables.TOTAL
    assert ((found > 0) == (roots > 0)).all()
    used = roots[roots > 0].astype(float)
    exact = 1 + (tables.TOTAL - used.size) * used**2 / (used**2).sum()
    assert np.abs(found[roots > 0] - exact).max() < 1


@given(ROOTS, st.integers(-(2**30), 2**30))
@settings(max_examples=200, deadline=None)
def test_tables_survive_as_differences_and_the_slow_decoder_agrees(roots, first):
    table = Table(first, roots)
    stored = own.differences(table)
    assert stored.dtype == np.int32
    if own.frequencies(table).max() > own.LARGEST_FREQUENCY:
        with pytest.raises(FormatError, match="above 4093"):
            own.from_differences(first, stored)
        return
    again = own.from_differences(first, stored)
    assert again.first == first
    assert (again.roots == roots).all()
    assert own.frequencies(table).tolist() == format_page.own_frequencies(stored.tolist())


@pytest.mark.parametrize(
    ("stored", "text"),
    [([0, 0], "none at all"), ([5, -5], "above 4093"), ([0, 7], "above 4093"), ([1023, -1022], "above 4093"),
     ([-1, 2], "out of range"), ([3, -4], "out of range"), ([1023, 1], "out of range"),
     ([2**31 - 1, 2**31 - 1], "out of range"), ([3, -(2**31)], "out of range")],
)  # fmt: skip
def test_tables_that_cannot_be_are_refused(stored, text):
    with pytest.raises(FormatError, match=text):
        own.from_differences(0, np.array(stored, np.int32))


@given(ROOTS, st.integers(-300, 300), hnp.arrays(np.int32, st.integers(0, 50), elements=st.integers(-600, 600)))
@settings(max_examples=200, deadline=None)
def test_symbols_come_back_or_escape(roots, first, values):
    roots[-1] = max(roots[-1], 1)
    table = Table(first, roots)
    indices, escaped = own.to_symbols(values, table)
    known = {first + i for i, root in enumerate(roots[:-1]) if root}
    assert escaped.tolist() == [v not in known for v in values.tolist()]
    assert (indices[escaped] == roots.size - 1).all()
    assert (own.to_values(indices, table)[~escaped] == values[~escaped]).all()


def test_the_largest_symbols_are_no_overflow():
    values = np.array([2**31 - 1, -(2**31), 0], np.int32)
    _, escaped = own.to_symbols(values, Table(-(2**30), np.array([1, 1], np.int32)))
    assert escaped.all()


def test_the_codes_of_differences_are_those_of_the_coder():
    stored = own.differences(Table(0, np.array([3, 9, 40, 37, 900, 2, 0, 1], np.int32)))
    code = own.best_code(stored)
    codes = symbols.exponent_codes(np.full(stored.size, code, np.int32), symbols.SIDE_FAMILY)
    assert own.stored_bits(stored)[code] == pytest.approx(symbols.ideal_bits(stored, codes), rel=1e-6)
    assert own.stored_bits(stored)[code] == own.stored_bits(stored).min()
    assert (symbols.decode(symbols.encode(stored, codes), codes) == stored).all()


def test_no_symbol_of_a_table_takes_less_than_a_thousandth_of_a_bit():
    assert 12 - np.log2(own.LARGEST_FREQUENCY) > 1 / 1000
    assert 8 / (12 - np.log2(own.LARGEST_FREQUENCY)) < 1 << 13
