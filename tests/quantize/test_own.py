"""Own tables fitted to counts, and where they are cheaper than the bank."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conformance import check_file, check_record, random_weight
from waterfill.codec import own as codec
from waterfill.codec import pieces
from waterfill.quantize import KMeans, Prune, Scalar, own
from waterfill.quantize.spread import cheapest_tables, fit
from waterfill.records import Layout, Spread

SYMBOLS = hnp.arrays(
    np.int32, st.integers(0, 400), elements=st.sampled_from([0, 0, 0, 1, -1, 2, 7, -200, 5000, 2**31 - 1, -(2**31) + 1])
)


def entropy(symbols):
    _, counts = np.unique(symbols, return_counts=True)
    return float((counts * np.log2(counts.sum() / counts)).sum())


def spread_of(symbols):
    bank = fit(symbols.reshape(1, -1), Layout((symbols.size,)))
    return cheapest_tables(symbols.reshape(1, -1), bank.spread(), coded_bits(symbols, bank.spread()))


def coded_bits(symbols, spread):
    """What the codec spends on symbols and own tables."""
    stored = sum(float(codec.stored_bits(codec.differences(t)).min()) + own.LINE_BITS for t in spread.tables)
    return stored + pieces.ideal_bits(symbols, pieces.model(spread, Layout((symbols.size,)), 0, symbols.size))


@given(SYMBOLS)
@settings(max_examples=150, deadline=None)
def test_counts_are_those_of_the_symbols(symbols):
    counted = own.histogram(symbols)
    for k, count in enumerate(counted.counts, counted.first):
        assert count == (symbols == k).sum()
    assert counted.counts.sum() + counted.beyond == symbols.size
    assert counted.entropy_bits <= entropy(symbols) + 1e-6
    assert counted.beyond == (np.abs(symbols.astype(np.int64)) > own.WIDEST).sum()


@given(SYMBOLS)
@settings(max_examples=150, deadline=None)
def test_any_symbols_get_the_cheapest_tables_in_the_bits_they_say(symbols):
    bank = fit(symbols.reshape(1, -1), Layout((symbols.size,)))
    best = coded_bits(symbols, bank.spread())
    spread, bits = cheapest_tables(symbols.reshape(1, -1), bank.spread(), best)
    assert bits <= best
    assert bits == pytest.approx(coded_bits(symbols, spread), rel=1e-6, abs=1e-3)
    for table in spread.tables:
        assert codec.from_differences(table.first, codec.differences(table)).first == table.first
    model = pieces.model(spread, Layout((symbols.size,)), 0, symbols.size)
    assert (pieces.decode(pieces.encode([symbols], [model]), [model])[0] == symbols).all()


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=256).filter(lambda c: np.count_nonzero(c) > 1))
@settings(max_examples=100, deadline=None)
def test_a_table_of_counts_codes_them_near_their_entropy(counts):
    counts = np.array(counts)
    table, bits = own.table_of(-5, counts)
    frequencies = codec.frequencies(table)
    assert ((frequencies > 0) == (counts > 0)).all()
    assert frequencies.max() <= codec.LARGEST_FREQUENCY
    stored = float(codec.stored_bits(codec.differences(table)).min()) + own.LINE_BITS
    used = counts[counts > 0]
    least = float((used * np.log2(used.sum() / used)).sum())
    assert least - 1e-6 <= bits - stored <= 1.02 * least + 10 * np.count_nonzero(counts)
    assert bits == pytest.approx(stored + codec.ideal_bits(counts, frequencies))


def test_a_symbol_that_has_nearly_all_leaves_no_table_with_less_than_a_thousandth_of_a_bit():
    for others in (1, 3, 100):
        table, _ = own.table_of(0, np.array([10**7, others]))
        assert codec.frequencies(table).max() <= codec.LARGEST_FREQUENCY
    assert own.table_of(0, np.array([10**7, 0])) is None
    assert own.table_of(0, np.array([0, 0])) is None


@pytest.mark.parametrize("k", [2, 3, 4, 8, 16, 64])
def test_codebooks_take_their_entropy(k):
    some = random_weight(Layout((200, 200)))
    quantized = KMeans(k).quantize(some, None, 1.0)
    spent = quantized.bits - 32 * len(quantized.rule.values)
    least = entropy(quantized.symbols)
    assert least < spent < 1.02 * least + 200
    (table,) = quantized.spread.tables
    assert table.roots[-1] == 0
    check_record(quantized, some, None)
    check_file(quantized, some.layout)


@pytest.mark.parametrize("keep", [0.01, 0.02, 0.05, 0.1])
def test_sparse_matrices_take_their_entropy(keep):
    some = random_weight(Layout((300, 300)))
    quantized = Prune(keep).quantize(some, None, 1.0)
    least = entropy(quantized.symbols)
    assert least < quantized.bits < 1.02 * least + 200
    assert quantized.spread.tables
    check_file(quantized, some.layout)


def test_a_table_costs_about_a_byte_a_symbol():
    counts = np.round(1e6 * np.exp(-((np.arange(17) - 8) ** 2) / 20)).astype(np.int64) * (np.arange(17) < 16)
    table, _ = own.table_of(-8, counts)
    assert 60 < codec.stored_bits(codec.differences(table)).min() < 160


def test_few_large_values_among_many_zeros_are_a_flag_and_the_bank():
    rng = np.random.default_rng(0)
    symbols = np.where(rng.random(20_000) < 0.01, rng.integers(-30_000, 30_001, 20_000), 0).astype(np.int32)
    spread, bits = spread_of(symbols)
    assert [table.first for table in spread.tables] == [0]
    assert spread.base > 100
    count = np.count_nonzero(symbols)
    assert bits < entropy(symbols != 0) + 17 * count + 100


def test_a_few_outliers_escape_from_a_table():
    rng = np.random.default_rng(0)
    symbols = rng.choice([-3, 2, 7], 50_000).astype(np.int32)
    symbols[::10_000] = 100_000
    spread, bits = spread_of(symbols)
    assert len(spread.tables) == 1
    assert spread.tables[0].roots[-1] > 0
    assert bits < 50_000 * 1.01 * np.log2(3) + 400


def test_symbols_that_the_bank_suits_stay_there():
    symbols = np.rint(np.random.default_rng(0).laplace(size=(60, 60)) * 8).astype(np.int32)
    bank = fit(symbols, Layout((60, 60)))
    assert cheapest_tables(symbols, bank.spread(), bank.bits)[0].tables == ()
    none = Spread(0, 0)
    assert cheapest_tables(np.zeros((0, 3), np.int32), none, 0.0) == (none, 0.0)


def test_scalar_takes_them_at_the_end():
    rng = np.random.default_rng(0)
    some = random_weight(Layout((100, 100)))
    some.matrix[:] = rng.choice([-1.0, 0.0, 3.0, 3.5], (100, 100), p=[0.2, 0.6, 0.1, 0.1])
    quantized = Scalar().quantize(some, None, 1e-4)
    assert quantized.spread.tables
    assert quantized.bits < 1.02 * entropy(quantized.symbols) + 200
    check_file(quantized, some.layout)
