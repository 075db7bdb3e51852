"""Pieces of a tensor that are rounded to its type as they come: the same bits as of its whole matrix."""

import gc
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waterfill.io import arrays, targets
from waterfill.io.arrays import empty
from waterfill.io.targets import FloatMatrix, InItsType, rectangles, target_of
from waterfill.models import assemble_one
from waterfill.models.arrays import tensor_of
from waterfill.records import Codebook, Coded, Cosines, Entry, Layout, NormMean, Relative, Uniform

LAYOUTS = [Layout((5, 7)), Layout((4, 3, 2)), Layout((6, 5), transposed=True)]
RULES = {
    "steps": lambda layout: Uniform(step=-40, rows=_scales(layout, 0), channels=_scales(layout, 1)),
    "too large": lambda layout: Uniform(step=64 * 17, rows=_scales(layout, 0)),
    "patterns": lambda _: Relative(mantissa=2, signed=True, offset=500),
    "codebook": lambda _: Codebook(np.linspace(-2, 2, 41).astype(np.float32), -20),
}


def _scales(layout, axis):
    return (np.arange(layout.axes[axis]) % 5 - 2).astype(np.int8)


@st.composite
def pieces(draw):
    """A coded entry, a rule, its symbols in the order of the stream, and where they are cut."""
    layout = draw(st.sampled_from(LAYOUTS))
    dtype = draw(st.sampled_from(["float16", "bfloat16", "float64", *["float32"] * layout.transposed]))
    rule = RULES[draw(st.sampled_from(sorted(RULES)))](layout)
    largest = draw(st.sampled_from([1, 20]))  # few levels have a table
    random = np.random.default_rng(draw(st.integers(0, 99)))
    symbols = random.integers(-largest, largest + 1, layout.numel).astype(np.int32)
    cuts = draw(st.lists(st.integers(1, layout.numel - 1), max_size=4, unique=True))
    return Entry("w", layout.shape, dtype, Coded(layout)), layout, rule, symbols, [0, *sorted(cuts), layout.numel]


@pytest.mark.parametrize("part", [1, 12, targets.PART])
@given(case=pieces(), down=st.booleans())
@settings(max_examples=60, deadline=None)
def test_pieces_are_rounded_as_the_whole_matrix_is(part, case, down):
    entry, layout, rule, symbols, cuts = case
    found, expected = target_of(entry, layout, None), FloatMatrix(layout, None)
    assert isinstance(found, InItsType)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "PART", part)
        patch.setattr(arrays, "BAND", part)
        for start, stop in pairwise(cuts):
            found.put(symbols[start:stop], rule, start, down)
    expected.put(symbols, rule, 0, down)
    assert tensor_of(found.finished()).equal(assemble_one("w", [entry], {"w": expected.finished()}, {}))


def test_what_is_no_view_or_needs_its_matrix_has_one():
    layout = Layout((4, 4))
    entry = Entry("w", layout.shape, "bfloat16", Coded(layout))
    assert isinstance(target_of(entry, layout, None), InItsType)
    others = [
        (entry, layout, Cosines(axis=1, block=4)),
        (Entry("w", layout.shape, "float32", Coded(layout)), layout, None),
        (Entry("w", (4,), "bfloat16", Coded(Layout((4,)))), Layout((4,)), None),
        (Entry("w", layout.shape, "bfloat16", NormMean(layout, "s")), layout, None),
        (Entry("w", (4, 4), "bfloat16", Coded(Layout((4, 4), True, 2))), Layout((4, 4), True, 2), None),
        (Entry("w", (4, 4, 3), "bfloat16", Coded(Layout((4, 4, 3), True))), Layout((4, 4, 3), True), None),
    ]
    for each in others:
        assert isinstance(target_of(*each), FloatMatrix), each


@given(at=st.integers(0, 6), size=st.integers(0, 40))
def test_rectangles_cover_every_element_once(at, size):
    seen = np.zeros((8, 7), int)
    for lines, places in rectangles(at, size, 7):
        seen[lines, places] += 1
    expected = (np.arange(56) >= at) & (np.arange(56) < at + size)
    assert (seen.ravel() == expected).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of the memory of a process")
def test_a_large_tensor_is_given_back_to_the_system_at_once():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1])

    np.ones(3 << 20)  # from here on the heap takes what is smaller
    large = empty((8, 1 << 20), "bfloat16")
    large.array[...] = 1
    assert large.array[-1, -1] == 1
    before = resident()
    del large
    gc.collect()
    assert before - resident() > 4000


@pytest.mark.parametrize("length", [1 << 61, 1 << 80])
def test_a_tensor_that_does_not_fit_is_a_lack_of_memory(length):
    with pytest.raises(MemoryError, match="does not fit"):
        empty((length,), "bfloat16")


def test_a_tensor_that_is_given_is_filled():
    layout = Layout((4, 4))
    entry = Entry("w", layout.shape, "bfloat16", Coded(layout))
    whole = empty((8, 4), "bfloat16")
    part = whole[4:]
    target = target_of(entry, layout, None, part)
    target.put(np.arange(16, dtype=np.int32), Uniform(step=0), 0, down=True)
    assert target.finished() is part and whole[4:].numbers().T.ravel().tolist() == list(range(16))
    target = target_of(entry, layout, None, part, "what it is the memory of")
    assert target.finished() == "what it is the memory of"
