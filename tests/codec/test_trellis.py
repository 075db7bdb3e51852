"""Paths through a trellis: states, tables of the subsets, round trips beside other pieces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from round_trips import check_round_trip
from scipy.stats import gennorm
from slow_paths import levels_of

from waterfill.codec import pieces, subsets, tables, trellis
from waterfill.errors import FormatError
from waterfill.records import Layout, Paths, Spread

SHAPES = (0.4, 0.5, 0.6, 0.7, 0.8, 1, 1.2, 1.5, 2)


@st.composite
def all_paths(draw):
    families, bases = st.integers(0, 8), st.integers(-20, 130)
    return Paths(draw(st.integers(2, 12)), draw(st.booleans()), draw(st.integers(0, 7)), draw(families), draw(bases))


@st.composite
def coded_paths(draw):
    paths, size = draw(all_paths()), draw(st.integers(0, 60))
    limit = draw(st.sampled_from([0, 1, 8, 60, 70_000, 2**30 - 1]))
    indices = draw(hnp.arrays(np.int32, size, elements=st.integers(-limit, limit)))
    layout = Layout((draw(st.sampled_from([1, 2, 3])), 1, 1))
    layout = layout if size % layout.shape[0] else Layout((layout.shape[0], size // layout.shape[0]))
    if layout.numel != size:
        layout = Layout((size,))
    rows = draw(st.none() | hnp.arrays(np.int8, layout.axes[0], elements=st.integers(-127, 127)))
    spread = Spread(draw(st.integers(0, 8)), draw(st.integers(-20, 130)), rows, trellis=paths)
    return levels_of(indices.tolist(), paths), pieces.model(spread, layout, 0, size)


@st.composite
def plain(draw):
    values = draw(hnp.arrays(np.int32, st.integers(0, 30), elements=st.integers(-100, 100)))
    return values, pieces.model(Spread(5, 40), Layout((values.size,)), 0, values.size)


@given(st.lists(coded_paths() | plain(), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_paths_beside_other_pieces(parts):
    check_round_trip(parts)


@given(coded_paths())
@settings(max_examples=100, deadline=None)
def test_the_path_is_found_from_its_levels_alone(case):
    levels, model = case
    indices, _ = trellis.path_of(levels, model)
    assert (levels_of(indices.tolist(), model.trellis) == levels).all()


@pytest.mark.parametrize("zero", [False, True])
def test_levels_that_are_no_path_are_refused(zero):
    paths = Paths(3, zero, 10, 5, 32)
    levels = levels_of([1, 2, -2, 3, 1, 1, -4, 2], paths)
    model = trellis.path_model(Spread(5, 32, trellis=paths), Layout((1, 8)), 0, 8)
    for i in range(levels.size):
        wrong = levels.copy()
        wrong[i] += 1 if wrong[i] != -1 else 3
        with pytest.raises(ValueError, match=f"symbol {wrong[i]} at {i} is not in the subset"):
            trellis.path_of(wrong, model)


def test_the_state_is_zero_again_after_every_span():
    whole, parts = Paths(8, False, 20, 5, 32), Paths(8, False, 4, 5, 32)
    indices = np.random.default_rng(0).integers(-3, 4, 64).tolist()
    pieces_of = [levels_of(indices[i : i + 16], whole) for i in range(0, 64, 16)]
    assert (levels_of(indices, parts) == np.concatenate(pieces_of)).all()
    assert (levels_of(indices, whole) != levels_of(indices, parts)).any()


@pytest.mark.parametrize("log_states", trellis.PARITIES)
def test_branches_meet_as_the_search_needs_it(log_states):
    flips, picks = trellis.parities(log_states)
    half = flips.size // 2
    assert (flips[:half] != flips[half:]).all()
    assert (picks[:half] == picks[half:]).all()
    assert picks[0] == flips[0] == 0
    assert 0 < picks.mean() < 1
    following = trellis.entries(log_states).reshape(-1, 2) >> 1
    assert (np.bincount(following.reshape(-1)) == 2).all()
    assert (trellis.entries(log_states) & 1 == picks[following.reshape(-1)]).all()


@pytest.mark.parametrize("kind", [subsets.WHOLE, subsets.HALF, subsets.ZERO])
def test_tables_of_subsets_are_generalised_gaussians(kind):
    edges = {subsets.WHOLE: np.arange(40) + 0.5, subsets.HALF: np.arange(40) + 1.0, subsets.ZERO: np.arange(40) * 1.0}
    ends = edges[kind]
    if kind == subsets.ZERO:
        ends[0] = 0.25
    for family in range(9):
        for scale in range(0, tables.SCALES, 8):
            model = gennorm(SHAPES[family], scale=2 ** ((scale - 32) / 8) / gennorm(SHAPES[family]).std())
            row = subsets.magnitudes(kind)[family * tables.SCALES + scale][:40]
            above = np.concatenate([[0.5], model.sf(ends)])
            exact = above[:-1] - above[1:]
            exact[0] *= 1 if kind == subsets.HALF else 2
            assert np.allclose(row / 4096, exact[: row.size], atol=0.025 * exact.max() + 1.1 / 4096)


@pytest.mark.parametrize("kind", [subsets.WHOLE, subsets.HALF, subsets.ZERO])
def test_tables_of_subsets_sum_to_4096_and_their_slots_are_the_inverse(kind):
    for family in range(0, 9, 4):
        for scale in range(tables.SCALES):
            table = subsets.table(kind, family, scale)
            assert table.frequencies.sum() == 4096
            assert table.frequencies[0] > 0
            assert table.frequencies.max() <= 4093
            assert (np.bincount(table.slots & 255, minlength=256) == table.frequencies).all()
            offsets = table.slots >> 8 & 4095
            starts = (table.info >> np.uint64(12)).astype(np.int64)
            assert (np.arange(4096) - offsets == starts[table.slots & 255]).all()
            used = np.flatnonzero(table.frequencies) - 128
            last = table.last
            assert used.tolist() == [-128, *range(-last - (kind == subsets.HALF), last + 1)]


def test_damage_is_found():
    paths = Paths(6, False, 16, 5, 40)
    levels = levels_of(np.random.default_rng(0).integers(-9, 9, 500).tolist(), paths)
    model = pieces.model(Spread(5, 40, trellis=paths), Layout((500,)), 0, 500)
    stream = pieces.encode([levels], [model])
    for bad in (
        stream[:-2],
        stream[:100],
        stream + b"\0\0",
        b"\1" + stream[1:],
        stream[:40] + b"\x55\xaa" + stream[42:],
    ):
        with pytest.raises(FormatError):
            pieces.decode(bad, [model])


def test_an_integer_beyond_32_bits_is_refused():
    high = Spread(5, 256, rows=np.array([127], np.int8), trellis=Paths(2, False, 16, 5, 256))
    model = pieces.model(high, Layout((1, 1)), 0, 1)
    assert model.lows.max() == 28
    near = pieces.model(Spread(5, 256, trellis=Paths(2, False, 16, 5, 256)), Layout((1, 1)), 0, 1)
    stream = pieces.encode([np.array([2**30], np.int32)], [near])
    for seed in range(40):  # whatever is read, it is an integer or an error
        rng = np.random.default_rng(seed)
        bad = rng.bytes(32) + stream[32:] + rng.bytes(20)
        with pytest.raises(FormatError):
            pieces.decode(bad, [model])
