"""Orders of elements in a stream, against lists of places."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from slow_paths import down_columns

from waterfill.codec import order
from waterfill.records import Layout


@st.composite
def layouts(draw):
    shape = draw(st.lists(st.integers(0, 5), max_size=4).map(tuple))
    if len(shape) < 2 or draw(st.booleans()):
        return Layout(shape)
    groups = draw(st.integers(1, 3))
    return Layout((shape[0] * groups, *shape[1:]), transposed=True, groups=groups)


def places(layout, down):
    return down_columns(layout) if down else list(range(layout.numel))


@given(layouts(), st.booleans(), st.data())
@settings(max_examples=200, deadline=None)
def test_elements_go_back_to_their_places(layout, down, data):
    start = data.draw(st.integers(0, layout.numel))
    stop = data.draw(st.integers(start, layout.numel))
    out, channels, taps = layout.axes
    matrix = np.arange(layout.numel).reshape(out, channels * taps)
    part = order.elements(matrix, start, stop, down)
    assert part.tolist() == places(layout, down)[start:stop]
    empty = np.full_like(matrix, -1)
    order.place(part, empty, start, down)
    assert (np.where(np.isin(matrix, part), matrix, -1) == empty).all()


@given(layouts(), st.booleans(), st.data())
@settings(max_examples=200, deadline=None)
def test_sums_are_those_of_the_elements(layout, down, data):
    start = data.draw(st.integers(0, layout.numel))
    stop = data.draw(st.integers(start, layout.numel))
    numbers = st.integers(-127, 127)
    scales = tuple(data.draw(st.none() | hnp.arrays(np.int8, n, elements=numbers)) for n in layout.axes)
    known = [np.zeros(n, int) if s is None else s.astype(int) for s, n in zip(scales, layout.axes, strict=True)]
    sums = [int(sum(s[i] for s, i in zip(known, place, strict=True))) for place in np.ndindex(*layout.axes)]
    found = order.axis_sum(layout, scales, start, stop, down)
    assert found.dtype == np.int32
    assert found.tolist() == [sums[place] for place in places(layout, down)[start:stop]]


@pytest.mark.parametrize("down", [False, True])
def test_a_column_and_a_row_are_lines(down):
    layout = Layout((2, 3))
    lines, within = order.line_sums(layout, (np.array([1, 2], np.int8), np.array([10, 20, 30], np.int8), None), down)
    assert [lines.tolist(), within.tolist()] == ([[10, 20, 30], [1, 2]] if down else [[1, 2], [10, 20, 30]])


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("span", [(0, 35), (3, 3), (4, 5), (2, 31), (10, 30)], ids=str)
def test_numpy_alone_looks_up_and_scales_as_kernels_do(monkeypatch, span, down):
    layout, (start, stop) = Layout((5, 7)), span
    rng = np.random.default_rng(0)
    scales = tuple(rng.integers(-3, 4, length).astype(np.int8) for length in layout.axes)
    found = order.places(layout, scales, start, stop, down)
    table = rng.normal(size=found.totals.size).astype(np.float32)
    symbols, levels = rng.integers(-2, 3, stop - start).astype(np.int32), rng.normal(size=5).astype(np.float32)
    monkeypatch.setattr(order, "BLOCK", 9)
    ways = []
    for loaded in (True, False):
        monkeypatch.setattr(order, "has_kernels", lambda loaded=loaded: loaded)
        matrix = np.zeros((5, 7), np.float32)
        if down:
            found.scale_down(matrix, symbols, -2, levels, table)
        ways.append([found.look_up(table), found.scaled(symbols, -2, levels, table), matrix])
    for one, other in zip(*ways, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
