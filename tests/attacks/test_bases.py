"""Bases that lie: every wrong line is one FormatError, before anything is decoded, and large ones take little."""

import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from with_bases import file_of

from fuzz.anatomy import put_together, take_apart
from waterfill.bases.rotations import number_of_angles, number_of_pairs
from waterfill.codec import container
from waterfill.codec.container import Container
from waterfill.errors import FormatError
from waterfill.files import WaterfillFile
from waterfill.records import CHANNELS, OUT, TAPS, Cosines, Flips, Layout, Rotations

KERNELS, TABLE, PLAIN, LONG = Layout((6, 5, 3, 3)), Layout((8, 7)), Layout((4, 2)), Layout((1025, 2))


def flips(layout):
    return Flips(np.ones(number_of_angles(layout.shape[2:]), np.int8))


def rotated(layout, axis, directions):
    return Rotations(axis, directions, np.ones(number_of_pairs(layout.axes[axis], directions), np.int8))


ROTATED = rotated(TABLE, CHANNELS, 3)
TENSORS = [
    (KERNELS, flips(KERNELS)), (TABLE, ROTATED), (PLAIN, Cosines(OUT, 4)), (TABLE, ROTATED), (PLAIN, None), (LONG, None)
]  # fmt: skip
GOOD = file_of(TENSORS)
LINES = take_apart(GOOD).directory["bases"]


def with_lines(lines, minor=1):
    parts = take_apart(GOOD)
    parts.directory["bases"], parts.minor = lines, minor
    return put_together(parts)


def test_the_file_itself_is_right():
    assert [line[0] for line in LINES] == ["f", "r", "c", "s"]
    for data in (GOOD, with_lines(LINES)):
        with WaterfillFile(data, threads=1) as file:
            assert [tuple(tensor.shape) for _, tensor in file.tensors()] == [layout.shape for layout, _ in TENSORS]


FLIPS, ROTATIONS, COSINES, SHARED = LINES
LIES = {
    "out of order": ([*LINES[1::-1], *LINES[2:]], "not in order"),
    "twice": ([FLIPS, *LINES], "not in order"),
    "of a tensor that is not there": ([*LINES, ["c", 6, 0, 4]], "not in order, or more than 6"),
    "of a tensor far away": ([*LINES, ["c", 2**62, 0, 4]], "not in order, or more than 6"),
    "tensor below 0": ([["f", -1, FLIPS[2]], *LINES[1:]], "cannot be read"),
    "unknown kind": ([*LINES, ["x", 4, 0, 4]], "cannot be read"),
    "no kind": ([*LINES, [4, 0, 4]], "cannot be read"),
    "empty": ([[], *LINES[1:]], "cannot be read"),
    "too short": ([FLIPS[:-1], *LINES[1:]], "cannot be read"),
    "too long": ([[*FLIPS, 0], *LINES[1:]], "cannot be read"),
    "a key": ({"0": FLIPS}, "cannot be read"),
    "a cosine axis above 2": ([*LINES[:2], ["c", 2, 3, 4], SHARED], "cannot be read"),
    "a cosine axis below 0": ([*LINES[:2], ["c", 2, -1, 4], SHARED], "cannot be read"),
    "a block of 1": ([*LINES[:2], ["c", 2, 0, 1], SHARED], "cannot be read"),
    "a block of 513": ([*LINES[:2], ["c", 2, 0, 513], SHARED], "cannot be read"),
    "a block of 2.5": ([*LINES[:2], ["c", 2, 0, 2.5], SHARED], "cannot be read"),
    "rotations of taps": ([FLIPS, ["r", 1, 2, 3, ROTATIONS[4]], *LINES[2:]], "cannot be read"),
    "no directions": ([FLIPS, ["r", 1, 1, 0, ROTATIONS[4]], *LINES[2:]], "cannot be read"),
    "1024 directions": ([FLIPS, ["r", 1, 1, 1024, ROTATIONS[4]], *LINES[2:]], "cannot be read"),
    "directions as long as the axis": ([FLIPS, ["r", 1, 1, 7, ROTATIONS[4]], *LINES[2:]], "7 of 7 coordinates are"),
    "directions of a wider axis": ([FLIPS, ["r", 1, 0, 3, ROTATIONS[4]], *LINES[2:]], "the chunks hold"),
    "other directions": ([FLIPS, ["r", 1, 1, 4, ROTATIONS[4]], *LINES[2:]], "the chunks hold"),
    "rotations of a long axis": ([*LINES, ["r", 5, 0, 3, 9]], "3 of 1025 coordinates are rotated; expected fewer of"),
    "a code above 120": ([["f", 0, 121], *LINES[1:]], "cannot be read"),
    "a code below 0": ([["f", 0, -1], *LINES[1:]], "cannot be read"),
    "flips of a table": ([*LINES[:3], ["f", 3, 9]], None),
    "angles that are not there": ([*LINES[:3], ["r", 3, 1, 3, 9]], "the chunks hold"),
    "angles that nobody has": (LINES[1:], "the chunks hold"),
    "shared with itself": ([*LINES[:3], ["s", 3, 3]], "shares the angles of tensor 3, which has none before it"),
    "shared with a later one": ([*LINES[:3], ["s", 3, 4]], "which has none before it"),
    "shared with one far away": ([*LINES[:3], ["s", 3, 2**62]], "which has none before it"),
    "shared with cosines": ([*LINES[:3], ["s", 3, 2]], "which has none before it"),
    "shared with a tensor without": ([*LINES, ["s", 5, 4]], "which has none before it"),
    "shared flips of another number": ([*LINES[:3], ["s", 3, 0]], "needs 0 angles; tensor 0 has 8"),
    "shared rotations of another number": ([*LINES, ["s", 4, 1]], "3 of 2 coordinates are rotated"),
    "shared below 0": ([*LINES[:3], ["s", 3, -1]], "cannot be read"),
}


@pytest.mark.parametrize("name", LIES)
def test_lines_that_lie_are_refused_when_a_file_is_opened(name):
    lines, text = LIES[name]
    if text is None:
        Container(with_lines(lines))
        return
    with pytest.raises(FormatError, match=f"^the data: .*{text}") as error:
        Container(with_lines(lines))
    assert len(str(error.value)) <= 500


def test_rotations_that_are_shared_need_as_many_angles():
    for layout, text in ((Layout((5, 8)), "needs 18 angles; tensor 0 has 15"), (Layout((2, 3)), "3 of 3 coordinates")):
        data = file_of([(TABLE, ROTATED), (layout, None)])
        parts = take_apart(data)
        parts.directory["bases"].append(["s", 1, 0])
        with pytest.raises(FormatError, match=f"^the data: .*{text}"):
            Container(put_together(parts))


def test_bases_are_not_in_version_1_0():
    with pytest.raises(FormatError, match=r"^the data: the directory has bases, which format version 1\.0 has not"):
        Container(with_lines(LINES, minor=0))
    with pytest.raises(FormatError, match=r"format version 1\.4 is unknown; this release reads versions up to 1\.3"):
        Container(with_lines(LINES, minor=4))


def test_unknown_keys_are_refused_in_version_1_1():
    parts = take_apart(GOOD)
    parts.directory["basis"] = []
    with pytest.raises(FormatError, match="cannot be read"):
        Container(put_together(parts))


@pytest.mark.parametrize("angle", [65, -65, 127, 128, 1 << 20, -(1 << 29)])
def test_angles_out_of_range_are_refused(angle, monkeypatch):
    layout, wrong = Layout((2, 3)), np.array([angle], np.int32)
    monkeypatch.setattr(container.listing.basis_lines, "angles_of", lambda basis: [wrong] if basis else [])
    monkeypatch.setattr(container.listing.own, "best_code", lambda _: 60)
    data = file_of([(layout, rotated(layout, OUT, 1))])
    with pytest.raises(FormatError, match=r"^the data: an angle of a basis is out of range"):
        Container(data)


@pytest.mark.parametrize(
    ("shape", "line", "text"),
    [
        ([1, 1, 4097], ["c", 0, 2, 8], "a basis is of 4097 taps; expected at most 4096"),
        ([1, 1, 64, 65], ["c", 0, 2, 8], "a basis is of 4160 taps; expected at most 4096"),
        ([1, 1, 513], ["f", 0, 8], "a basis has angles for 513 taps; expected at most 512"),
        ([1, 1, 27, 19], ["f", 0, 8], "a basis has angles for 513 taps; expected at most 512"),
        ([1, 1, 1 << 40], ["f", 0, 8], "a basis has angles for 1099511627776 taps"),
        ([1025, 1], ["r", 0, 0, 1023, 8], "1023 of 1025 coordinates are rotated"),
        ([1, 1 << 40], ["r", 0, 1, 1023, 8], "1023 of 1099511627776 coordinates are rotated"),
        ([1024, 2], ["r", 0, 0, 1023, 8], "the chunks hold"),
    ],
)
def test_axes_that_are_too_long_are_refused(shape, line, text):
    data = opened_alone(shape, [line])
    with pytest.raises(FormatError, match=f"^the data: {text}"):
        Container(data)


def opened_alone(shape, lines, tensors=1, angles=0, size=1 << 10):
    """A file of zero bytes for tensors of one shape, which are coded and declared, with lines of bases."""
    count = tensors * int(np.prod(shape, dtype=object))
    chunks = [["s", 0, 0, count]] if count else []
    chunks = [["a", 0, 0, angles], *chunks] if angles else chunks
    parts = take_apart(GOOD)
    entries = [[str(number), "float32", shape] for number in range(tensors)]
    parts.directory = {"entries": entries, "tensors": [["u", 0, 5, 0]] * tensors, "chunks": chunks, "bases": lines}
    parts.chunks, parts.minor = [bytes(size)] * len(chunks), 1
    return put_together(parts)


def test_a_file_has_few_more_angles_than_values():
    """The matrix of each tensor takes a third of a second, and its angles 64 bytes of a stream."""
    count = 200
    lines = [["r", number, 0, 1023, 8] for number in range(count)]
    data = opened_alone([1024, 1], lines, count, count * 523_776, 1 << 14)
    with pytest.raises(FormatError, match="are turned by 104755200 angles, too many for the 204800 values"):
        Container(data)
    few = opened_alone([1024, 1], lines[:2], 2, 2 * 523_776, 1 << 14)
    with pytest.raises(FormatError, match="stream"):
        Container(few)


def test_angles_that_are_shared_count_for_every_tensor():
    """For matrices of five bases in turn are made anew for each tensor."""
    own = [["r", number, 0, 1023, 8] for number in range(5)]
    shared = [["s", number, number % 5] for number in range(5, 200)]
    data = opened_alone([1024, 1], [*own, *shared], 200, 5 * 523_776, 1 << 14)
    with pytest.raises(FormatError, match="are turned by 104755200 angles, too many for the 204800 values"):
        Container(data)


@pytest.mark.parametrize("shape", [[1, 1, *[1] * 62], [1, 1, 0, *[2] * 40], [0, 1, *[2] * 9]])
def test_kernels_of_very_many_axes_are_opened_at_once(shape):
    start = time.process_time()
    with pytest.raises(FormatError, match=r"the chunks hold|the data: .*stream"):
        Container(opened_alone(shape, [["f", 0, 8]], angles=1))
    assert time.process_time() - start < 5


def test_a_tensor_without_values_is_not_turned():
    for shape in ([0, 1 << 42], [1 << 42, 0], [2, 3, 0], [0, 3, 5]):
        for line in (["c", 0, 0, 2], ["c", 0, 1, 2], ["c", 0, 2, 2], ["f", 0, 8]):
            if line[0] == "f" and shape == [0, 3, 5]:
                continue
            with WaterfillFile(opened_alone(shape, [line]), threads=1) as file:
                assert [tuple(tensor.shape) for _, tensor in file.tensors()] == [tuple(shape)]


def test_very_many_tensors_that_share_are_opened_in_linear_time():
    count = 20_000
    data = opened_alone([1, 2], [["f", 0, 8], *(["s", number, number - 1] for number in range(1, count))], count)
    start = time.process_time()
    assert all(isinstance(basis, Flips) for basis in Container(data).bases.values())
    assert time.process_time() - start < 20


LARGE = {
    "cosines of a kernel": (Layout((1, 1, 4096)), lambda _: Cosines(TAPS, 512)),
    "cosines of a kernel of many axes": (Layout((1, 1, *[2] * 12)), lambda _: Cosines(TAPS, 512)),
    "short blocks of a long axis": (Layout((1 << 21, 1)), lambda _: Cosines(OUT, 2)),
    "flips": (Layout((2, 2, 512)), flips),
    "rotations": (Layout((1024, 2)), lambda layout: rotated(layout, OUT, 1023)),
}


def test_the_largest_bases_take_little_memory_and_time(tmp_path):
    """Read in another process that may use 400 MB more than the imports took, in a few seconds each."""
    paths = [tmp_path / "small.wf", *(tmp_path / f"{name}.wf" for name in LARGE)]
    paths[0].write_bytes(GOOD)
    for path, (layout, basis_of) in zip(paths[1:], LARGE.values(), strict=True):
        path.write_bytes(file_of([(layout, basis_of(layout))]))
    script = (
        "import resource, sys, time, waterfill\n"
        "waterfill.decompress(sys.argv[1], threads=1)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)\n"
        "for path in sys.argv[2:]:\n"
        "    start = time.process_time()\n"
        "    (tensor,) = waterfill.decompress(path, threads=1).values()\n"
        "    print(time.process_time() - start, tensor.abs().max().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [list(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(rows) == len(LARGE)
    assert all(seconds < 10 and largest == 0.0 for seconds, largest in rows), rows


def test_every_changed_byte_of_angles_with_the_right_checksum_is_an_error_or_a_basis():
    parts = take_apart(GOOD)
    body = parts.chunks[0]
    assert parts.directory["chunks"][0][0] == "a"
    for at in range(len(body)):
        for flip in (1, 0x80, 0xFF):
            parts.chunks[0] = body[:at] + bytes([body[at] ^ flip]) + body[at + 1 :]
            try:
                with WaterfillFile(put_together(parts), threads=1) as file:
                    assert not any(tensor.isnan().any() for _, tensor in file.tensors())
            except FormatError as error:
                assert str(error).startswith("the data: ")
    assert zlib.crc32(body) != zlib.crc32(parts.chunks[0])
