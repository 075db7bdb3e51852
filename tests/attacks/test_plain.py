"""Plain files that are damaged or lie: a FormatError or the right tensors, never a crash, a hang or much memory."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zstandard

from attacks.test_attacks import HUGE, places, removed, replaced
from decoders import differential
from fuzz.anatomy import Parts, plain_bytes, put_together, take_apart, with_packed
from waterfill.files import WaterfillFile

GOOD = (Path(__file__).parents[1] / "plain.wf").read_bytes()
PARTS = take_apart(GOOD)
PACKED = struct.unpack_from("<I", GOOD, 12)[0]
DIRECTORY = GOOD[24 : 24 + PACKED]
EXACT = PARTS.chunks[-1]
RIGHT = differential.by_python(GOOD)


def with_bytes(directory, minor=3, size=0):
    """The file with any bytes as its directory, whose checksum is right."""
    return with_packed(directory, size, PARTS.chunks, minor)


def with_directory(tree):
    """The file with another directory."""
    return with_bytes(plain_bytes(tree))


def with_exact(count, data):
    """The file with another chunk of exact bytes, whose checksum is right."""
    directory = replaced(PARTS.directory, ("chunks", 1, 3), count)
    return put_together(Parts(directory, [PARTS.chunks[0], data], 3, True))


def number(value):
    found = []
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def part(data):
    return number(len(data)) + data


def entries(texts, template, lines, room=0):
    """A directory that has entries alone, as rows of one template."""
    head = number(len(texts)) + b"".join(map(part, texts)) + number(room)
    return head + b"\x01\x00\x07\x01" + part(template) + number(len(lines)) + b"".join(lines)


def many_values():
    """Rows of a byte each, of a template with 5000 values."""
    return entries([b"entries"], b"\x06" + number(5000) + b"\x00" * 5000, [b"\x00"] * 5000)


def many_lists():
    """Rows of a byte each, of a template with 73 lists."""
    return entries([b"entries"], b"\x06\x08" + (b"\x06\x08" + b"\x06\x00" * 8) * 8, [b"\x00"] * 5000)


def one_name(count):
    """Entries that all have one long name, which is there once."""
    template = b"\x06\x03\x05\x01\x05\x02\x06\x00"
    return entries([b"entries", "é".encode() * (count // 2), b"float32"], template, [b"\x00"] * count)


def growing_names(room):
    """Names each of which is the whole one before and a little more."""
    lines = [b"\x00" + number(1000 * n) + b"\x01" for n in range(3000)]
    return entries([b"entries", b"a" * 1000, b"float32"], b"\x06\x03\x09\x05\x02\x06\x00", lines, room)


TEXT = b'{"entries":[],"tensors":[],"chunks":[]}'
LIES = {
    "JSON in the place of rows": with_bytes(TEXT),
    "a frame in the place of rows": with_bytes(zstandard.ZstdCompressor().compress(TEXT)),
    "rows in the place of a frame": with_bytes(DIRECTORY, size=len(DIRECTORY)),
    "no directory": with_bytes(b""),
    "no members": with_bytes(b"\x00\x00\x00"),
    "bytes behind the directory": with_bytes(DIRECTORY + b"\x00"),
    "plain bytes in version 1.0": with_bytes(DIRECTORY, minor=0),
    "plain bytes in version 1.1": with_bytes(DIRECTORY, minor=1),
    "plain bytes in version 1.2": with_bytes(DIRECTORY, minor=2),
    "a frame of exact bytes": with_exact(8, zstandard.ZstdCompressor().compress(EXACT)),
    "fewer exact bytes": with_exact(8, EXACT[:7]),
    "more exact bytes": with_exact(8, EXACT + b"\x00"),
    "fewer exact bytes as they say": with_exact(7, EXACT[:7]),
    "more exact bytes as they say": with_exact(9, EXACT + b"\x00"),
    "a chunk of no exact bytes": put_together(
        Parts(
            replaced(PARTS.directory, ("chunks",), [*PARTS.directory["chunks"], ["x", 0, 0, 0]]),
            [*PARTS.chunks, b""],
            3,
            True,
        )
    ),
    "a key that is not known": with_directory({**PARTS.directory, "keys": []}),
    "many values": with_bytes(many_values()),
    "many lists": with_bytes(many_lists()),
    "one name": with_bytes(one_name(2000)),
    "more room than there may be": with_bytes(growing_names(1 << 26)),
    "longer texts than there may be": with_bytes(growing_names(sum(1000 * n for n in range(3001)))),
    "longer texts than the room": with_bytes(growing_names(1 << 20)),
}


def lies():
    """Files with a lie in one place of the directory, by name."""
    for path in places(PARTS.directory):
        if path:
            yield f"{path} is not there", with_directory(removed(PARTS.directory, path))
        for value in HUGE:
            yield f"{path} is {value!r}", with_directory(replaced(PARTS.directory, path, value))


def changes():
    """Files with another byte in the directory, and whose checksum is right, by name."""
    for at, byte in enumerate(DIRECTORY):
        for flip in (1, 2, 0x80, 0xFF):
            bad = DIRECTORY[:at] + bytes([byte ^ flip]) + DIRECTORY[at + 1 :]
            yield f"byte {at} with other bits, {flip}", with_bytes(bad)


def cuts():
    """Files whose directory is cut, and whose checksum is right, by name."""
    for size in range(len(DIRECTORY)):
        yield f"cut at {size}", with_bytes(DIRECTORY[:size])


def files():
    """All files that lie, by name."""
    yield from LIES.items()
    for some in (lies, changes, cuts):
        yield from some()


def is_refused(data):
    """Whether a file is refused as it should be; a lie may describe another valid file, but must never crash."""
    with np.errstate(all="ignore"):
        found = differential.by_python(data)
    assert not isinstance(found, str) or found.startswith("the data: ")
    return isinstance(found, str)


def test_the_file_itself_and_its_rewritten_directory_are_right():
    assert with_bytes(DIRECTORY) == with_directory(PARTS.directory) == with_exact(8, EXACT) == GOOD
    assert not isinstance(RIGHT, str)


@pytest.mark.parametrize("name", LIES)
def test_files_that_lie_are_refused(name):
    assert is_refused(LIES[name])


def test_every_changed_byte_and_every_cut_is_found():
    for at in range(len(GOOD)):
        for flip in (1, 0x80, 0xFF):
            assert is_refused(GOOD[:at] + bytes([GOOD[at] ^ flip]) + GOOD[at + 1 :]), f"byte {at}"
        assert is_refused(GOOD[:at])
    assert is_refused(GOOD + b"\0")


def test_every_cut_of_the_directory_with_the_right_checksum_is_refused():
    assert all(is_refused(bad) for _, bad in cuts())


def test_changed_directories_with_the_right_checksum_are_refused_or_read():
    verdicts = [is_refused(bad) for _, bad in changes()]
    assert sum(verdicts) > 0.8 * len(verdicts)


def test_lies_everywhere_in_a_directory_are_refused_or_read():
    verdicts = [is_refused(bad) for _, bad in lies()]
    assert sum(verdicts) > 0.8 * len(verdicts)


def test_other_exact_bytes_with_the_right_checksum_are_the_tensor():
    found = differential.by_python(with_exact(8, b"\x07" + bytes(7)))
    assert found["n"][2] == b"\x07" + bytes(7) and found["w"] == RIGHT["w"]


def test_a_file_of_version_1_3_may_be_compressed():
    data = (Path(__file__).parents[1] / "example.wf").read_bytes()
    parts = take_apart(data)
    parts.minor = 3
    assert differential.by_python(put_together(parts)) == RIGHT
    with WaterfillFile(put_together(parts)) as file:
        assert not file.container.is_plain


@pytest.mark.parametrize("make", [many_values, many_lists, lambda: one_name(20_000)], ids=["values", "lists", "name"])
def test_small_directories_of_much_take_little_memory(make):
    data = with_bytes(make())
    assert len(data) < 50_000
    tracemalloc.start()
    try:
        assert is_refused(data)
        assert tracemalloc.get_traced_memory()[1] < 300 * len(data) + (64 << 20)
    finally:
        tracemalloc.stop()
