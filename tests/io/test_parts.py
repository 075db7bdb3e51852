"""Names of parts, and what makes a whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waterfill.bundle import part_name
from waterfill.errors import FormatError
from waterfill.io.parts import Part, part_of, stored
from waterfill.records import Entry, Exact


def entry(name, *shape, dtype="float32"):
    return "g", Entry(name, shape, dtype, Exact(""))


@given(st.text(min_size=1), st.integers(0, 10**9), st.none() | st.integers(0, 10**9))
def test_a_name_is_taken_apart_as_it_was_made(name, start, stop):
    assert part_of(part_name(name, start, stop)) == Part(name, start, stop)


@pytest.mark.parametrize("name", ["a.weight", "a[x]", "a[1:]", "[3]", "a[3].b", "a[1:2:3]", "a[-1]"])
def test_other_names_are_of_whole_tensors(name):
    assert part_of(name) is None


def test_parts_make_a_whole():
    found = list(
        stored([entry("b", 5), entry("a[0:2]", 2, 3), entry("c[0]", 4), entry("a[2:7]", 5, 3), entry("c[1]", 4)])
    )
    assert [(each.name, each.shape, len(each.pieces)) for each in found] == [
        ("b", (5,), 1),
        ("a", (7, 3), 2),
        ("c", (2, 4), 2),
    ]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry("a[0:2]", 2, 3), entry("a[3:4]", 1, 3)], "does not go on at index 2"),
        ([entry("a[1:2]", 1, 3)], "does not go on at index 0"),
        ([entry("a[0:2]", 3, 3)], r"a\[0:2\].*\[3, 3\]"),
        ([entry("a[2:2]", 0, 3)], "does not go on"),
        ([entry("a[0:0]", 0, 3)], "does not go on"),
        ([entry("a[0:2]")], "does not go on"),
        ([entry("a[0:2]", 2, 3), entry("a[2:4]", 2, 4)], "different shapes or types"),
        ([entry("a[0:2]", 2, 3), entry("a[2:4]", 2, 3, dtype="float16")], "different shapes or types"),
        ([entry("a[0]", 3), entry("a[1:2]", 1, 3)], "different shapes or types"),
        ([entry("a[0]", 3), entry("a[2]", 3)], "does not go on at index 1"),
        ([entry("a", 3), entry("a[0:3]", 3)], "there twice"),
        ([entry("a", 3), entry("a", 3)], "there twice"),
    ],
)
def test_parts_that_do_not_add_up_are_refused(entries, words):
    with pytest.raises(FormatError, match=words):
        list(stored(entries))
