import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from waterfill.reconstruct import reconstruct, step_sizes
from waterfill.records import Codebook, Layout, Relative, Uniform


def scales(length):
    return st.none() | hnp.arrays(np.int8, length, elements=st.integers(-60, 60))


@st.composite
def uniforms(draw):
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple))
    layout = Layout(shape, transposed=len(shape) >= 2 and draw(st.booleans()))
    shrink = tuple(draw(st.integers(-64, 64)) for _ in range(3))
    parts = [draw(scales(length)) for length in layout.axes]
    rule = Uniform(draw(st.integers(-900, 900)), draw(st.integers(-1000, 1000)), shrink, *parts)
    limit = draw(st.sampled_from([0, 3, 1000, 2**17]))
    symbols = draw(hnp.arrays(np.int32, layout.numel, elements=st.integers(-limit, limit)))
    return layout, rule, symbols


def places(layout):
    return list(np.ndindex(*layout.axes))


def exponent(rule, place):
    parts = (rule.rows, rule.channels, rule.taps)
    return sum(int(part[i]) for part, i in zip(parts, place, strict=True) if part is not None)


@given(uniforms())
@settings(max_examples=150, deadline=None)
def test_uniform_values_are_what_the_record_says(case):
    layout, rule, symbols = case
    found = reconstruct(symbols, rule, layout)
    assert found.dtype == np.float32
    for k, place, value in zip(symbols.tolist(), places(layout), found, strict=True):
        level = k + rule.offset
        if k:
            level -= np.sign(k) * rule.shrink[min(abs(k), 3) - 1] / 64
        exact = level * 2.0 ** (rule.step / 64 + exponent(rule, place) / 4)
        assert value == pytest.approx(exact, rel=2.0**-22, abs=0)


@given(uniforms(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_part_of_a_tensor_has_the_values_of_that_part(case, data):
    layout, rule, symbols = case
    start = data.draw(st.integers(0, symbols.size))
    stop = data.draw(st.integers(start, symbols.size))
    whole = reconstruct(symbols, rule, layout)
    assert (reconstruct(symbols[start:stop], rule, layout, start) == whole[start:stop]).all()
    steps = np.broadcast_to(step_sizes(rule, layout, 0, symbols.size), symbols.shape)
    assert (step_sizes(rule, layout, start, stop) == steps[start:stop]).all()


def test_a_value_is_one_rounded_product_of_the_level_and_a_table_entry():
    rule = Uniform(7, 3, (5, -9, 20), np.array([1], np.int8), np.array([-2, 0, 9, 4], np.int8))
    symbols = np.array([1, -2, 0, 77], np.int32)
    levels = [64 * 4 - 5, 64 * 1 - 9, 64 * 3, 64 * 80 - 20]
    for value, level, scale in zip(reconstruct(symbols, rule, Layout((1, 4))), levels, (-1, 1, 10, 5), strict=True):
        index = 7 - 384 + 16 * scale
        octave = np.float32(float(mpmath.mpf(2) ** (mpmath.mpf(index % 64) / 64)))
        assert value == np.float32(level) * np.ldexp(octave, index // 64)


def test_steps_can_be_divided_by_a_power_of_two():
    rule, layout = Uniform(13, rows=np.array([3, -4], np.int8)), Layout((2, 3))
    assert (64 * step_sizes(rule, layout, 0, 6, 64) == step_sizes(rule, layout, 0, 6)).all()
    assert step_sizes(Uniform(64), layout, 0, 6).tolist() == [2.0]
    assert step_sizes(Uniform(0, rows=np.array([4, -4], np.int8)), layout, 0, 6).tolist() == [2.0] * 3 + [0.5] * 3


@given(st.integers(0, 23), st.booleans(), st.integers(-(2**20), 2**20), st.lists(st.integers(-(2**31), 2**31 - 1)))
@settings(max_examples=200, deadline=None)
def test_relative_values_are_bit_patterns(mantissa, signed, offset, symbols):
    values = reconstruct(np.array(symbols, np.int32), Relative(mantissa, offset, signed), Layout((len(symbols),)))
    for k, value in zip(symbols, values, strict=True):
        sign, q = (k % 2, k // 2) if signed else (0, k)
        pattern = (q + offset) * 2 ** (23 - mantissa)
        pattern = pattern if 0 <= pattern < 0x7F800000 else 0
        assert int(value.view(np.uint32)) == pattern + sign * 2**31
        assert np.isfinite(value)


@given(hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-(2.0**20), 2.0**20, width=32)), st.data())
@settings(max_examples=100, deadline=None)
def test_values_of_a_codebook_are_looked_up(values, data):
    first = data.draw(st.integers(1 - len(values), 0))
    symbols = data.draw(st.lists(st.integers(first, first + len(values) - 1)))
    found = reconstruct(np.array(symbols, np.int32), Codebook(values, first), Layout((len(symbols),)))
    assert found.dtype == np.float32
    assert found.tolist() == [values.tolist()[k - first] for k in symbols]


def test_relative_values_that_are_known():
    rule = Relative(2, 127 << 2, signed=True)
    assert reconstruct(np.array([0, 1, 2, 8, -8], np.int32), rule, Layout((5,))).tolist() == [1.0, -1.0, 1.25, 2.0, 0.5]


@pytest.mark.parametrize("rule", [Uniform(3), Uniform(3, rows=np.zeros(0, np.int8)), Relative(4, 0, signed=True),
                                  Codebook(np.ones(1, np.float32))])  # fmt: skip
def test_no_symbols_at_all(rule):
    assert reconstruct(np.zeros(0, np.int32), rule, Layout((0, 4))).size == 0


def test_the_lowest_symbol_of_all_has_a_value():
    """A path may have it: -2^31 is in int32, its magnitude is not."""
    lowest = np.array([-(2**31), 1, -3], np.int32)
    values = reconstruct(lowest, Uniform(0, 0, (1, 2, 3)), Layout((3,)))
    assert values.tolist() == [-(2.0**31), 63 / 64, -3 + 3 / 64]
