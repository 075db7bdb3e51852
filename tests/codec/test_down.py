"""Files whose paths go along rows or down columns: any layout, any scales, spans and chunks that end anywhere."""

from dataclasses import replace

import numpy as np
import pytest
import slow_decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from slow_paths import down_columns, levels_of

from waterfill.codec import container, pieces
from waterfill.codec.order import elements
from waterfill.codec.scales import side_bits
from waterfill.errors import FormatError
from waterfill.files import WaterfillFile
from waterfill.quantize import path_spread
from waterfill.quantize.path_spread import PathFit
from waterfill.reconstruct import reconstruct
from waterfill.records import Coded, Entry, Lanes, Layout, Paths, Quantized, Spread, Uniform

LAYOUTS = (
    Layout((7,)), Layout((1, 9)), Layout((9, 1)), Layout((6, 5)), Layout((4, 3, 2, 2)), Layout((2, 3, 5)),
    Layout((6, 4), transposed=True), Layout((6, 2, 3), transposed=True, groups=3), Layout((0, 4)), Layout((4, 0)),
)  # fmt: skip


def scales(length, largest=9):
    return st.none() | hnp.arrays(np.int8, length, elements=st.integers(-largest, largest))


@st.composite
def pairs_of_scales(draw, layout):
    """Scales of steps and of spreads; these are now and then nearly the negative of those."""
    steps = tuple(draw(scales(length)) for length in layout.axes)
    spreads = []
    for step, length in zip(steps, layout.axes, strict=True):
        near, free = draw(scales(length, 1)), draw(scales(length))
        spreads.append(free if step is None or draw(st.booleans()) else -step if near is None else near - step)
    return steps, tuple(spreads)


def path(layout, paths, indices, spreads=(None, None, None)):
    """Symbols [out, in] of the path with these indices; the spreads say which elements stand aside."""
    out, channels, taps = layout.axes
    places = down_columns(layout) if paths.down else range(layout.numel)
    flat = np.zeros(layout.numel, np.int32)
    sums = np.zeros(layout.axes, int)
    for axis, part in enumerate(spreads):
        shape = [1, 1, 1]
        shape[axis] = -1
        sums += 0 if part is None else part.astype(int).reshape(shape)
    flat[list(places)] = levels_of(indices, paths, out, sums.reshape(-1)[list(places)], channels * taps)
    return flat.reshape(out, channels * taps)


@st.composite
def tensors(draw):
    layout = draw(st.sampled_from(LAYOUTS))
    small, family = st.integers(20, 60), st.integers(0, 8)
    paths = Paths(draw(st.integers(2, 12)), draw(st.booleans()), draw(st.integers(0, 6)), draw(family), draw(small),
                  draw(st.booleans()), draw(st.sampled_from([-381, -5, 0, 1, 382])))  # fmt: skip
    lanes = draw(st.none() | st.builds(Lanes, st.sampled_from([8, 32]), st.sampled_from([1, 1, 2, 3, 1 << 42])))
    paths = paths if lanes is None else replace(paths, log_span=0, lanes=lanes)
    limit = draw(st.sampled_from([0, 2, 9, 300]))
    indices = draw(st.lists(st.integers(-limit, limit), min_size=layout.numel, max_size=layout.numel))
    steps, spreads = draw(pairs_of_scales(layout))
    rule = Uniform(draw(st.integers(-300, 300)), 0, (3, -2, 9), *steps)
    spread = Spread(draw(family), draw(small), *spreads, trellis=paths)
    return layout, Quantized(path(layout, paths, indices, spreads), rule, spread)


def same(scales, others):
    """Whether scales are the same; none are zeros."""
    pairs = zip(scales, others, strict=True)
    return all(np.array_equal(*(0 if s is None or not s.any() else s for s in pair)) for pair in pairs)


def packed(tensors):
    entries = tuple(Entry(str(n), layout.shape, "float32", Coded(layout)) for n, (layout, _) in enumerate(tensors))
    return container.pack(entries, {str(n): item for n, (_, item) in enumerate(tensors)}, {}, "test").data


@given(st.lists(tensors(), min_size=1, max_size=3), st.sampled_from([(1, 4), (8, 16), (20, 1000)]))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_have_the_values_of_the_records(monkeypatch, found, chunks):
    monkeypatch.setattr(container, "SMALL_CHUNK", chunks[0])
    monkeypatch.setattr(container, "LARGE_CHUNK", chunks[1])
    data = packed(found)
    slow = slow_decoder.decode(data)
    for threads in (1, 3):
        file = WaterfillFile(data, threads=threads)
        for n, (layout, item) in enumerate(found):
            values = reconstruct(item.symbols.reshape(-1), item.rule, layout).reshape(item.symbols.shape)
            assert (file[str(n)].numpy() == layout.from_matrix(values)).all()
            assert (slow[str(n)] == layout.from_matrix(values)).all()
            rule, spread = file.container.rules[str(n)]
            assert spread.trellis == item.spread.trellis
            assert same(rule.scales, item.rule.scales)
            assert same(spread.scales, item.spread.scales)
    assert WaterfillFile(data).container.tensor_bytes().keys() == slow.keys()


@given(tensors())
@settings(max_examples=100, deadline=None)
def test_a_path_down_the_columns_is_that_of_the_transpose_along_its_rows(case):
    layout, item = case
    down, (out, channels, taps) = item.spread.down, layout.axes
    values = elements(item.symbols, 0, item.symbols.size, down)
    parts = item.spread.scales
    columns = np.zeros((channels, taps), int)
    for part in (parts[1], parts[2]) if down else ():
        if part is not None:
            columns += part[:, None] if part is parts[1] else part
    if not down or np.abs(columns).max(initial=0) > 127:
        return
    paths = replace(item.spread.trellis, down=False)
    twin = Spread(item.spread.family, item.spread.base, columns.reshape(-1).astype(np.int8), parts[0], trellis=paths)
    other = Layout((channels * taps, out))
    if layout.numel:
        here = pieces.model(item.spread, layout, 0, values.size)
        assert here.span == max(1, out) * (1 << paths.log_span if paths.lanes is None else paths.lanes.lines)
        there = replace(pieces.model(twin, other, 0, values.size), span=here.span)
        assert pieces.encode([values], [there]) == pieces.encode([values], [here])
        assert pieces.tensor_bits(item.symbols, item.spread, layout) == pieces.ideal_bits(values, there)


def test_chunks_end_where_spans_of_columns_do(monkeypatch):
    monkeypatch.setattr(container, "SMALL_CHUNK", 1)
    monkeypatch.setattr(container, "LARGE_CHUNK", 16)
    layout, paths = Layout((5, 11)), Paths(3, False, 2, 5, 40, down=True)
    rng = np.random.default_rng(0)
    spread = Spread(
        5, 40, rng.integers(-9, 9, 5).astype(np.int8), rng.integers(-9, 9, 11).astype(np.int8), trellis=paths
    )
    item = Quantized(path(layout, paths, rng.integers(-9, 9, 55).tolist()), Uniform(0), spread)
    file = WaterfillFile(packed([(layout, item)]))
    assert len(file.container.indices("s")) == 3
    assert (file["0"].numpy() == item.symbols).all()


@pytest.mark.parametrize("zero", [False, True])
def test_a_fit_does_not_depend_on_the_direction_but_for_its_path(zero):
    rng, layout = np.random.default_rng(0), Layout((30, 4, 3, 3))
    offsets = tuple(rng.integers(-3, 4, n) for n in layout.axes)
    start = PathFit(zero, (5, 5), (36, 36), offsets, wide=False)
    for down in (False, True):
        paths = Paths(4, zero, 6, 0, 0, down)
        sizes = np.repeat(2.0 ** (offsets[0] / 2), 36)[down_columns(layout) if down else slice(None)]
        levels = path(layout, paths, np.rint(rng.laplace(size=layout.numel) * 2 * sizes).astype(int).tolist())
        fit = path_spread.refit(levels, paths, layout, start)
        spread = fit.spread(paths)
        assert spread.rows is not None
        assert spread.down == down
        bits = pieces.tensor_bits(levels, spread, layout) + side_bits(spread.scales)
        assert fit.bits == pytest.approx(bits, rel=1e-5)


def test_a_path_in_the_other_direction_is_refused():
    layout, paths = Layout((6, 7)), Paths(3, False, 16, 5, 40, down=True)
    levels = path(layout, paths, np.random.default_rng(0).integers(-3, 4, 42).tolist())
    with pytest.raises(ValueError, match="expected a path"):
        packed([(layout, Quantized(levels, Uniform(0), Spread(5, 40, trellis=Paths(3, False, 16, 5, 40))))])
    with pytest.raises(FormatError, match="cannot be read"):
        lie = Quantized(levels, Uniform(0), Spread(5, 40, trellis=Paths(3, False, 16, 5, 40, down=True)))
        object.__setattr__(lie.spread.trellis, "down", 2)
        WaterfillFile(packed([(layout, lie)]))
