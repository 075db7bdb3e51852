"""Several tensors in one stream, with and without own tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from round_trips import check_round_trip

from waterfill.codec import own, pieces, rans, symbols
from waterfill.errors import FormatError
from waterfill.records import Layout, Spread, Table


@st.composite
def own_tables(draw):
    size = draw(st.integers(2, 30))
    roots = draw(hnp.arrays(np.int32, size, elements=st.integers(0, 40)))
    roots[[0, -1]] = 5, draw(st.integers(1, 9))  # one symbol at least, and the escape
    return Table(draw(st.integers(-20, 5)), roots)


@st.composite
def coded_pieces(draw):
    spread = Spread(
        draw(st.integers(0, 8)), draw(st.integers(-20, 120)), tables=tuple(draw(st.lists(own_tables(), max_size=2)))
    )
    limit = draw(st.sampled_from([1, 8, 60, 70_000, 2**31 - 1]))
    values = draw(hnp.arrays(np.int32, st.integers(0, 60), elements=st.integers(-limit, limit)))
    return values, pieces.model(spread, Layout((values.size,)), 0, values.size)


@given(st.lists(coded_pieces(), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_pieces_in_one_stream(parts):
    check_round_trip(parts)


def test_pieces_without_own_tables_are_the_stream_of_their_integers():
    rng = np.random.default_rng(0)
    parts = [rng.integers(-40, 40, n).astype(np.int32) for n in (5, 0, 30)]
    models = [pieces.model(Spread(f, 40 + f), Layout((p.size,)), 0, p.size) for f, p in enumerate(parts)]
    codes = tuple(np.concatenate(each) for each in zip(*(model.codes for model in models), strict=True))
    assert pieces.encode(parts, models) == symbols.encode(np.concatenate(parts), codes)


def test_a_table_with_everything_takes_its_own_entropy():
    rng = np.random.default_rng(0)
    table = Table(-1, np.array([20, 30, 10, 3, 0], np.int32))
    pmf = own.frequencies(table)[:-1] / 4096
    values = (rng.choice(4, 100_000, p=pmf) - 1).astype(np.int32)
    model = pieces.model(Spread(0, 0, tables=(table,)), Layout((values.size,)), 0, values.size)
    counts = np.bincount(values + 1)
    assert pieces.ideal_bits(values, model) == pytest.approx(-(counts * np.log2(pmf)).sum())
    assert 8 * len(pieces.encode([values], [model])) == pytest.approx(pieces.ideal_bits(values, model), rel=5e-3)


def test_two_tables_are_read_one_after_the_other():
    zero, others = Table(0, np.array([99, 10], np.int32)), Table(-3, np.array([2, 3, 4, 0, 4, 3, 1], np.int32))
    values = np.zeros(5000, np.int32)
    values[::100] = np.tile([-3, -2, -1, 1, 2], 10)
    values[7] = 1000
    model = pieces.model(Spread(5, 40, tables=(zero, others)), Layout((values.size,)), 0, values.size)
    stream = pieces.encode([values], [model])
    assert (pieces.decode(stream, [model])[0] == values).all()
    decoder = rans.Decoder(stream)
    flags = decoder.run(np.zeros(5000, np.uint16), own.frequencies(zero))
    assert (flags == (values != 0)).all()
    second = decoder.run(np.zeros(51, np.uint16), own.frequencies(others))
    assert np.flatnonzero(second == 6).tolist() == [1]
    codes = symbols.exponent_codes(np.array([40], np.int32), 5)
    assert symbols.read(decoder, codes).tolist() == [1000]
    decoder.finish()


def test_a_symbol_that_no_table_has_and_no_escape_is_our_own_mistake():
    model = pieces.model(Spread(5, 40, tables=(Table(0, np.array([1, 1, 0], np.int32)),)), Layout((1,)), 0, 1)
    with pytest.raises(AssertionError, match="lacks a symbol"):
        pieces.encode([np.array([2], np.int32)], [model])


def test_damage_is_found():
    values = np.random.default_rng(0).integers(0, 3, 500).astype(np.int32)
    model = pieces.model(Spread(0, 0, tables=(Table(0, np.array([5, 5, 5, 0], np.int32)),)), Layout((500,)), 0, 500)
    stream = pieces.encode([values], [model])
    for bad in (stream[:-2], stream + b"\0\0", b"\1" + stream[1:], stream[:40] + b"\x55\xaa" + stream[42:]):
        with pytest.raises(FormatError):
            pieces.decode(bad, [model])
