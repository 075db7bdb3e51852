"""Scales as they are stored: alone, as sums with those of the steps, or as nothing."""

import numpy as np
import pytest
import slow_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from waterfill.codec import container, scales, symbols
from waterfill.errors import FormatError
from waterfill.files import WaterfillFile
from waterfill.records import NO_SCALES, Coded, Entry, Layout, Quantized, Spread, Table, Uniform

ANY = st.integers(-127, 127)


@st.composite
def axes(draw):
    """Scales of the spreads of an axis, and of its steps or none."""
    size = draw(st.integers(0, 12))
    steps = draw(st.none() | hnp.arrays(np.int8, size, elements=ANY))
    near = st.integers(-2, 2)
    found = draw(st.none() | hnp.arrays(np.int8, size, elements=ANY | near))
    if steps is not None and draw(st.booleans()):
        found = np.clip(draw(hnp.arrays(np.int16, size, elements=near)) - steps, -127, 127).astype(np.int8)
    return found, steps


def bits_of(values, exponent):
    codes = symbols.exponent_codes(np.full(values.size, exponent, np.int32), symbols.SIDE_FAMILY)
    return symbols.ideal_bits(values.astype(np.int32), codes) + scales.NAME_BITS


@given(axes())
@settings(max_examples=300, deadline=None)
def test_scales_come_back_and_take_the_fewest_bits(case):
    found, steps = case
    stored = scales.stored(found, steps)
    back = scales.restored(stored.code, stored.values, steps)
    assert np.array_equal(0 if back is None else back, 0 if found is None or not found.any() else found)
    assert (stored.values is None) == (scales.exponent(stored.code) is None)
    choices = [0.0] if found is None or not found.any() else [bits_of(found, e) for e in range(57)]
    if found is not None and steps is not None:
        total = found.astype(int) + steps
        choices += [bits_of(total, e) for e in range(57)] if total.any() else [scales.NAME_BITS]
    assert stored.bits == pytest.approx(min(choices), rel=1e-5)


def test_codes_name_what_is_stored():
    steps = np.array([30, -40, 7, 0, 90] * 5, np.int8)
    assert scales.stored(None, steps) == (scales.NONE, None, 0.0)
    assert scales.stored(np.zeros(25, np.int8), steps) == (scales.NONE, None, 0.0)
    assert scales.stored(-steps, steps) == (scales.OPPOSITE, None, scales.NAME_BITS)
    assert scales.stored(-steps).code >= 0
    near = -steps + np.array([0, 0, 1, 0, -1] * 5, np.int8)
    stored = scales.stored(near, steps)
    assert stored.code == scales.FIRST_SUM - scales.stored(near + steps).code
    assert stored.values.tolist() == [0, 0, 1, 0, -1] * 5
    assert scales.stored(np.array([1, 0, 0, 0, 0] * 5, np.int8), steps).code >= 0
    assert [scales.exponent(code) for code in (-1, -2, -3, -59, 0, 56)] == [None, None, 0, 56, 0, 56]


@pytest.mark.parametrize("code", [-2, -3, -40])
def test_sums_without_scales_of_steps_are_refused(code):
    with pytest.raises(FormatError, match="these have no scales"):
        scales.restored(code, np.zeros(3, np.int32), None)


@pytest.mark.parametrize("total", [-1, 255, 2**31 - 1, -(2**31) + 1])
def test_sums_that_lead_out_of_range_are_refused(total):
    steps = np.array([127], np.int8)
    assert scales.restored(-9, np.array([0], np.int32), steps).tolist() == [-127]
    assert scales.restored(-9, np.array([254], np.int32), steps).tolist() == [127]
    with pytest.raises(FormatError, match="out of range"):
        scales.restored(-9, np.array([total], np.int32), steps)


def test_the_scales_of_all_axes():
    steps, near = np.array([5, -9, 30], np.int8), np.array([-4, 9, -30], np.int8)
    alone = scales.stored(near).bits
    assert scales.side_bits((None, near, -steps)) == pytest.approx(alone + scales.stored(-steps).bits)
    known = scales.side_bits((None, near, -steps), (steps, steps, steps))
    assert known == pytest.approx(scales.stored(near, steps).bits + scales.NAME_BITS)
    assert scales.side_bits(NO_SCALES, (steps, steps, steps)) == 0


@st.composite
def tensors(draw):
    layout = Layout(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)))
    steps, spreads = [], []
    for length in layout.axes:
        small = hnp.arrays(np.int8, length, elements=st.integers(-20, 20))
        steps.append(draw(st.none() | small))
        near = st.none() if steps[-1] is None else st.sampled_from([-steps[-1], 1 - steps[-1]])
        spreads.append(draw(st.none() | small | near))
    tables = (Table(0, np.array([5, 7], np.int32)),) if draw(st.booleans()) else ()
    out, channels, taps = layout.axes
    values = draw(hnp.arrays(np.int32, (out, channels * taps), elements=st.integers(-9, 9)))
    return layout, Quantized(values, Uniform(-9, 2, (1, 2, 3), *steps), Spread(4, 30, *spreads, tables=tables))


@given(st.lists(tensors(), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_files_of_uniform_tensors_have_them(found):
    entries = tuple(Entry(str(n), layout.shape, "float32", Coded(layout)) for n, (layout, _) in enumerate(found))
    data = container.pack(entries, {str(n): item for n, (_, item) in enumerate(found)}, {}, "test")
    file, slow = WaterfillFile(data.data, threads=1), slow_decoder.decode(data.data)
    assert file.container.tensor_bytes() == pytest.approx(data.tensor_bytes)
    for n, (_, item) in enumerate(found):
        assert (file[str(n)].numpy() == slow[str(n)]).all()
        rule, spread = file.container.rules[str(n)]
        for here, there in ((rule, item.rule), (spread, item.spread)):
            for one, other in zip(here.scales, there.scales, strict=True):
                assert np.array_equal(0 if one is None else one, 0 if other is None or not other.any() else other)
