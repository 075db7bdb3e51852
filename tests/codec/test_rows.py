"""Directories as plain bytes: they come back, they are short, and whatever else stands there is refused."""

import math
import struct
import tracemalloc

import format_page
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import seeds
from fuzz.anatomy import take_apart
from waterfill.codec import directory as listing
from waterfill.codec import rows
from waterfill.codec.lines import ChunkLine, Directory, EntryLine, UniformLine
from waterfill.errors import FormatError

MOST = 1 << 20
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 62), 1 << 62),
    st.floats(allow_nan=False),
    st.text(max_size=9),
)
LINES = st.recursive(LEAVES, lambda each: st.lists(each, max_size=4), max_leaves=9).map(
    lambda line: line if isinstance(line, list) else [line]
)


def depth(value):
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


MEMBERS = st.dictionaries(
    st.text(max_size=5),
    st.one_of(LEAVES, st.lists(LINES.filter(lambda line: depth(line) < rows.MOST_DEPTH))),
    max_size=4,
)


def shown(value):
    """A value with what == does not see: the types of numbers, and the signs of zeros."""
    if isinstance(value, dict):
        return {key: shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown(each) for each in value]
    return (type(value), struct.pack("<d", value)) if isinstance(value, float) else (type(value), value)


@settings(deadline=None)
@given(MEMBERS)
def test_what_is_written_comes_back(members):
    data = rows.pack(members)
    assert shown(rows.unpack(data, MOST)) == shown(members)
    assert shown(format_page.plain_directory(data)) == shown(members)


@pytest.mark.parametrize("name", seeds.files())
def test_directories_of_files_come_back(name):
    directory = take_apart(seeds.files()[name]).directory
    data = rows.pack(directory)
    assert shown(rows.unpack(data, MOST)) == shown(directory)
    assert shown(format_page.plain_directory(data)) == shown(directory)


def network(blocks):
    """The directory of a residual network."""
    names = [f"layer{n // 3}.{n % 3}.{part}" for n in range(blocks) for part in ("conv1", "conv2")]
    entries, tensors = [], []
    for n, name in enumerate(names):
        entries.append(EntryLine(f"{name}.weight", "float32", (16 << n // 12, 16 << n // 12, 3, 3)))
        entries += [EntryLine(f"{name}.norm.{part}", "float32", (16 << n // 12,)) for part in ("weight", "bias")]
        entries.append(EntryLine(f"{name}.norm.running_var", "float32", (16 << n // 12,), "c", 0.99999))
        entries.append(EntryLine(f"{name}.norm.num_batches_tracked", "int64", (), "x", "integer tensor"))
        tensors += [UniformLine(-500 - 37 * (n + k) % 91, 8, 40 + n % 7) for k in range(3)]
    chunks = (ChunkLine("s", 90_000, 1 << 31, 270_000), ChunkLine("x", 90, 12345, 8 * len(names)))
    return Directory(tuple(entries), tuple(tensors), chunks, "waterfill")


def test_a_line_takes_a_few_bytes():
    directory = network(9)
    plain, packed = listing.pack(directory, plain=True)[0], listing.pack(directory)[0]
    lines = len(directory.entries) + len(directory.tensors)
    assert (
        len(plain) < 7.5 * lines and len(plain) < len(msgspec.json.encode(directory)) / 5 and len(packed) < len(plain)
    )
    assert msgspec.convert(rows.unpack(plain, MOST), Directory) == directory


def joined(*parts):
    return b"".join(parts)


def directory(*values, texts=(b"k", b"a", b"b"), room=0, templates=None, lines=b"", key=0):
    """A directory of one member: rows, where there are templates."""
    head = joined(bytes([len(texts)]), *(bytes([len(text)]) + text for text in texts), bytes([room, 1, key]))
    if templates is None:
        return head + joined(*values)
    found = joined(*(bytes([len(each)]) + each for each in templates))
    return head + bytes([rows.ROWS, len(templates)]) + found + lines


WRONG = {
    "empty": b"",
    "a number that is cut": b"\x80",
    "a longer number than it has to be": b"\x80\x00\x00\x00",
    "a number of 65 bits": directory(b"\x04" + b"\xff" * 9 + b"\x02"),
    "a number of many bytes": directory(b"\x04" + b"\xff" * 40 + b"\x01"),
    "more texts than bytes": b"\x7f\x00\x00",
    "an unknown kind": directory(b"\x0a"),
    "a hole of a number in no template": directory(b"\x08\x00"),
    "a hole of a text in no template": directory(b"\x09"),
    "rows in a list": directory(b"\x06\x01\x07\x00\x00"),
    "rows in a template": directory(templates=[b"\x07\x00\x00"], lines=b"\x01\x00"),
    "five lists in each other": directory(b"\x06\x01" * 5 + b"\x00"),
    "a text that is not there": directory(b"\x05\x03"),
    "a key that is not there": directory(b"\x00", key=3),
    "a template that is not there": directory(templates=[b"\x00"], lines=b"\x01\x01"),
    "a template of two values": directory(templates=[b"\x00\x00"], lines=b"\x01\x00"),
    "a template of none": directory(templates=[b""], lines=b"\x01\x00"),
    "a list beyond its template": directory(templates=[b"\x06\x02\x00"], lines=b"\x01\x00\x00\x00\x00"),
    "65 templates": directory(templates=[b"\x00"] * 65, lines=b"\x00"),
    "more rows than bytes": directory(templates=[b"\x00"], lines=b"\x02\x00"),
    "a whole number above 2^63": directory(
        templates=[b"\x08" + b"\xfe" + b"\xff" * 8 + b"\x01"], lines=b"\x01\x00\x01"
    ),
    "a longer beginning than the last text": directory(templates=[b"\x09"], lines=b"\x01\x00\x01\x01", room=2),
    "less room than texts": directory(templates=[b"\x09"], lines=b"\x01\x00\x00\x01", room=0),
    "more room than texts": directory(templates=[b"\x09"], lines=b"\x01\x00\x00\x01", room=2),
    "a text that is not UTF-8": directory(b"\x05\x01", texts=(b"k", b"\xff")),
    "a text that is cut within a character": directory(
        templates=[b"\x09"], lines=b"\x02\x00\x00\x01\x00\x01\x02", texts=(b"k", "é".encode(), b""), room=3
    ),
    "a key that is not UTF-8": directory(b"\x00", texts=(b"\xc3",)),
    "bytes at the end": directory(b"\x00\x00"),
    "a key twice": b"\x01\x01k\x00\x02\x00\x00\x00\x00",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused(name):
    with pytest.raises(FormatError, match="directory"):
        rows.unpack(WRONG[name], MOST)


def test_what_these_are_made_of_is_right(monkeypatch):
    template, lines = b"\x06\x02\x09\x08\x01", b"\x02\x00\x00\x01\x05\x00\x01\x02\x00"
    data = directory(templates=[template], lines=lines, room=3)
    assert rows.unpack(data, 3) == {"k": [["a", 4], ["ab", -1]]}
    with pytest.raises(FormatError, match="texts of 3 bytes"):
        rows.unpack(data, 2)
    monkeypatch.setattr(rows, "VALUES_PER_BYTE", 0)
    monkeypatch.setattr(rows, "VALUES", 7)
    assert rows.unpack(data, 3)
    monkeypatch.setattr(rows, "VALUES", 6)
    with pytest.raises(FormatError, match="values"):
        rows.unpack(data, 3)


def test_directories_that_are_cut_are_refused():
    data = rows.pack(take_apart(seeds.files()["mixed"]).directory)
    for size in range(len(data)):
        with pytest.raises(FormatError):
            rows.unpack(data[:size], MOST)


def number(value):
    found = []
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def bombs():
    """Few bytes that stand for many values, and for long texts."""
    template = b"\x06" + number(20_000) + b"\x00" * 20_000
    count = 20_000
    yield b"\x01\x01k\x00\x01\x00\x07\x01" + number(len(template)) + template + number(count) + b"\x00" * count
    count, text = 60_000, b"a" * 60_000
    head = b"\x02\x01k" + number(len(text)) + text
    line = b"\x00" + number(0) + b"\x01"
    room = number(count * len(text))
    yield head + room + b"\x01\x00\x07\x01\x01\x09" + number(count) + line * count
    yield head + number(1 << 26) + b"\x01\x00\x07\x01\x01\x09" + number(count) + line * count


@pytest.mark.parametrize("data", [*bombs()], ids=["values", "texts", "texts with room"])
def test_bombs_are_refused_before_they_take_much(data):
    assert len(data) < 1 << 20
    tracemalloc.start()
    with pytest.raises(FormatError):
        rows.unpack(data, listing.largest(len(data)))
    assert tracemalloc.get_traced_memory()[1] < 1 << 30
    tracemalloc.stop()


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_real_numbers_are_no_whole_ones(value):
    directory = take_apart(seeds.files()["mixed"]).directory
    directory["chunks"][0][3] = value
    with pytest.raises(FormatError, match="cannot be read"):
        listing.unpack(rows.pack(directory), 0)
