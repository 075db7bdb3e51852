"""Files that are damaged or lie: a FormatError or the right tensors, never a crash, a hang or much memory."""

import json
import random
import struct
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.anatomy import put_together, take_apart
from waterfill.codec import container, symbols
from waterfill.codec.directory import phrases
from waterfill.compression.encoder import Encoder, mean_zero_cost
from waterfill.errors import FormatError
from waterfill.files import WaterfillFile
from waterfill.models import torch_module
from waterfill.models.arrays import exact_bytes
from waterfill.quantize import KMeans, Scalar, Trellis
from waterfill.records import (
    Adaptive,
    Codebook,
    Coded,
    Entry,
    Lanes,
    Layout,
    Limits,
    Paths,
    Quantized,
    Spread,
    Table,
    TensorLimit,
    Uniform,
    Weight,
)
from waterfill.report.file_table import file_summary


def table(first, *roots):
    return Table(first, np.array(roots, np.int32))


ZERO_FIRST = table(0, 5, 7), table(-3, 2, 3, 5, 0, 5, 3, 1)


def small_file():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Linear(20, 8))
    model.register_buffer("steps", torch.arange(9))
    inventory = torch_module.inventory(model)
    cost = mean_zero_cost(Encoder(Scalar()).jobs(inventory.weights, {}))
    encoder = Encoder(Scalar(), zero_cost=cost)
    jobs = encoder.jobs(inventory.weights, {})
    jobs["2.weight"] = replace(jobs["2.weight"], quantizer=KMeans(5))
    quantized = encoder.quantize(jobs, cost * 2.0**-5)
    for name, roots in (("0.weight", ZERO_FIRST), ("0.bias", (ZERO_FIRST[1],))):
        quantized[name] = replace(quantized[name], spread=Spread(5, 40, tables=roots))
    exact = {name: exact_bytes(tensor) for name, tensor in inventory.exact.items()}
    sizes = {name: weight.matrix.size for name, weight in inventory.weights.items() if not weight.is_vector}
    known = {name: TensorLimit(0.9 * quantized[name].bits / size, "Gaussian", 0.01) for name, size in sizes.items()}
    limits = Limits(known, 0.9 * sum(item.bits for item in quantized.values()), 1.0, "identity")
    return container.pack(inventory.entries, quantized, exact, "test", limits).data


GOOD = small_file()
HEADER = container.HEADER.size
PACKED = struct.unpack_from("<I", GOOD, 12)[0]


def read(data):
    file = WaterfillFile(data, threads=1)
    file.verify()
    shares = file_summary("a", file)["tensors"]
    assert all(row["size_bytes"] >= 0 for row in shares)
    return {name: exact_bytes(tensor) for name, tensor in file.tensors()}


RIGHT = read(GOOD)


def refused(data):
    """Whether a file is refused; anything but a FormatError or the right tensors is a failure."""
    try:
        tensors = read(bytes(data))
    except FormatError as error:
        assert str(error).startswith("the data: ")
        return True
    assert tensors == RIGHT
    return False


def directory_of(data):
    packed, size = struct.unpack_from("<II", data, 12)
    decompressor = zstandard.ZstdDecompressor(dict_data=phrases())
    text = decompressor.decompressobj().decompress(data[HEADER : HEADER + packed])
    assert len(text) == size
    return json.loads(text)


GOOD_LINES = [line[0] for line in directory_of(GOOD)["tensors"]]


def with_directory(directory, data=GOOD, size=None):
    """The file with another directory, whose checksum is right."""
    text = json.dumps(directory).encode() if not isinstance(directory, bytes) else directory
    packed = zstandard.ZstdCompressor().compress(text)
    head = struct.pack("<8sHHII", container.MAGIC, 1, data[10], len(packed), len(text) if size is None else size)
    old = struct.unpack_from("<I", data, 12)[0]
    return head + struct.pack("<I", zlib.crc32(head + packed)) + packed + data[HEADER + old :]


def test_the_file_itself_and_its_rewritten_directory_are_right():
    assert not refused(GOOD)
    assert not refused(with_directory(directory_of(GOOD)))


def test_every_changed_byte_of_header_and_directory_is_found():
    for at in range(HEADER + PACKED):
        for flip in (1, 0x80, 0xFF):
            bad = bytearray(GOOD)
            bad[at] ^= flip
            assert refused(bad), f"byte {at}"


def test_every_changed_byte_of_the_chunks_is_found():
    for at in range(HEADER + PACKED, len(GOOD)):
        bad = bytearray(GOOD)
        bad[at] ^= 1 + at % 255
        assert refused(bad), f"byte {at}"


def test_every_truncation_and_every_extension_is_found():
    for size in range(len(GOOD)):
        assert refused(GOOD[:size])
    assert refused(GOOD + b"\0")
    assert refused(GOOD + GOOD)


@pytest.mark.parametrize("values", [0, 1, 255, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
def test_every_header_field_that_lies_with_the_right_checksum_is_refused(values):
    for at, code in ((8, "H"), (10, "H"), (12, "I"), (16, "I")):
        bad = bytearray(GOOD)
        struct.pack_into("<" + code, bad, at, values & (0xFFFF if code == "H" else 0xFFFFFFFF))
        packed = min(struct.unpack_from("<I", bad, 12)[0], len(bad))
        struct.pack_into("<I", bad, 20, zlib.crc32(bytes(bad[:20]) + bytes(bad[HEADER : HEADER + packed])))
        if bytes(bad) != GOOD:
            assert refused(bad) or (at, values) in ((10, 1), (10, 2))  # a minor version that is known


HUGE = [-1, 0, 1, 7, 2**31, 2**42, 2**63, 2**80, 1.5, 1e308, None, True, "", "x", [], {}]


def places(node, path=()):
    """Every place in a JSON value."""
    yield path
    if isinstance(node, list | dict):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from places(node[key], (*path, key))


def replaced(node, path, value):
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


def removed(node, path):
    copy = dict(node) if isinstance(node, dict) else list(node)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = removed(copy[path[0]], path[1:])
    return copy


def opens_or_refuses(data):
    """A lie may describe another valid file (a renamed tensor); it must never crash."""
    try:
        read(data)
    except FormatError:
        return


@pytest.mark.parametrize(
    "limit",
    [[], [1], [1, "kl"], [1, "kl", []], [1, "kl", [1, 2, 3]], [-1, "kl", [1, 2]], [1, 2, [1, 2]], [1, "kl", [-2, 2]],
     [1, "kl", [1, 2**17]], [1.5, "kl", [1, 2]], [1, "k" * 65, [1, 2]], [1, "kl", [1, 2], 0], {}, "limit"],
)  # fmt: skip
def test_limits_that_do_not_fit_are_refused(limit):
    assert directory_of(GOOD)["limit"][2] != []
    with pytest.raises(FormatError):
        read(with_directory({**directory_of(GOOD), "limit": limit}))


def test_a_file_need_not_name_its_limit():
    directory = directory_of(GOOD)
    del directory["limit"]
    assert not refused(with_directory(directory))
    assert WaterfillFile(with_directory(directory)).container.limit is None


def empty_file(shape, scales, how=("q", None)):
    """A file of one tensor without values, with one scale for the steps of its taps where `scales` names it."""
    side = symbols.encode(np.array([3], np.int32), symbols.exponent_codes(np.array([0], np.int32), 5))
    body = side if scales else b""
    chunks = [["a", len(side), zlib.crc32(side), 1]] if scales else []
    line = ["u", 0, 0, 0, [0, 0, 0], [-1, -1, 0, -1, -1, -1]] if scales else ["u", 0, 0, 0]
    directory = {"entries": [["w", "float32", shape, *how]], "tensors": [line], "chunks": chunks}
    return with_directory(directory)[: -len(GOOD) + HEADER + PACKED] + body


@pytest.mark.parametrize(
    ("shape", "how"),
    [([0, 2**42, 2**42], ("q", None)), ([0, 2**42, 2], ("x", "")), ([0, 4], ("t", 2**62)), ([0] * 65, ("q", None))],
)
def test_tensors_without_values_that_no_array_can_be_are_refused(shape, how):
    with pytest.raises(FormatError, match=r"impossible|of length <= 64"):
        read(empty_file(shape, False, how))


def test_long_axes_of_tensors_without_values_take_no_memory():
    assert read(empty_file([0, 2**42, 1], True)) == {"w": b""}


def codebook_file(values=(-1.0, 0.0, 2.0), first=-1, symbols=(0, 1, -1), tables=()):
    """A file of one tensor with a codebook, which may be a lie."""
    layout = Layout((len(symbols),))
    rule = Codebook(np.array(values, np.float32), first)
    item = Quantized(np.array([symbols], np.int32), rule, Spread(5, 32, tables=tables))
    return container.pack((Entry("w", layout.shape, "float32", Coded(layout)),), {"w": item}, {}, "test").data


def test_a_file_with_a_codebook_is_right():
    assert np.frombuffer(read(codebook_file())["w"], np.float32).tolist() == [0.0, 2.0, -1.0]
    assert set(GOOD_LINES) == {"u", "r", "c"}


@pytest.mark.parametrize(
    ("lie", "text"),
    [
        ({"symbols": (0, 2)}, "a symbol is none of the 3 of its codebook"),
        ({"symbols": (-2,)}, "a symbol is none of the 3 of its codebook"),
        ({"symbols": (0, 2**30, -(2**30))}, "a symbol is none of the 3 of its codebook"),
        ({"first": -3}, "no value for the symbol 0"),
        ({"first": 1}, "cannot be read"),
        ({"first": -(2**16)}, "cannot be read"),
        ({"values": (-1.0, np.nan, 2.0)}, "not finite"),
        ({"values": (-1.0, 0.0, np.inf)}, "not finite"),
        ({"values": (), "first": 0}, "cannot be read"),
        ({"values": np.zeros(2**16 + 1), "first": 0}, "cannot be read"),
    ],
)
def test_codebooks_that_lie_are_refused(lie, text):
    for whole in (read, lambda data: WaterfillFile(data, threads=1)["w"]):
        with pytest.raises(FormatError, match=f"^the data: .*{text}"):
            whole(codebook_file(**lie))


def test_a_symbol_outside_its_codebook_is_found_when_a_file_is_inspected():
    with pytest.raises(FormatError, match="its codebook"):
        file_summary("a", WaterfillFile(codebook_file(symbols=(0, 2))))


def test_chunks_of_codebooks_hold_what_the_tensors_need():
    data = codebook_file()
    directory = directory_of(data)
    assert [chunk[0] for chunk in directory["chunks"]] == ["c", "s"]
    for size in (1, 2, 4, 100):
        with pytest.raises(FormatError, match="the chunks hold"):
            read(with_directory(replaced(directory, ("tensors", 0, 1), size), data))
    for count in (0, 2, 4):
        with pytest.raises(FormatError, match=f"kind 'c' cannot hold {count} units in 12 bytes"):
            read(with_directory(replaced(directory, ("chunks", 0, 3), count), data))
    with pytest.raises(FormatError, match="order"):
        read(with_directory(replaced(directory, ("chunks",), directory["chunks"][::-1]), data))
    for scales in ([-1, -1], [-1] * 6, [57, -1, -1], None):
        with pytest.raises(FormatError):
            read(with_directory(replaced(directory, ("tensors", 0), [*directory["tensors"][0], scales]), data))


def test_a_codebook_may_be_cut_into_chunks():
    data = codebook_file()
    directory, body = directory_of(data), data[HEADER + struct.unpack_from("<I", data, 12)[0] :]
    parts = [["c", 4, zlib.crc32(body[:4]), 1], ["c", 8, zlib.crc32(body[4:12]), 2]]
    cut = with_directory(replaced(directory, ("chunks",), [*parts, directory["chunks"][1]]), data)
    assert read(cut) == read(data)


# Own tables


def test_a_file_with_own_tables_is_right():
    assert np.frombuffer(read(codebook_file(tables=ZERO_FIRST))["w"], np.float32).tolist() == [0.0, 2.0, -1.0]
    assert [(tensor, [line[:2] for line in lines]) for tensor, lines in directory_of(GOOD)["tables"]] == [
        (0, [[0, 1], [-3, 6]]),
        (1, [[-3, 6]]),
    ]


@pytest.mark.parametrize(
    ("roots", "text"),
    [
        ([(0, 0, 0, 0)], "none at all"),
        ([(1, 0, 0, 0)], "above 4093"),
        ([(0, 0, 0, 9)], "above 4093"),
        ([(1023, 1, 0, 0)], "above 4093"),
        ([(1024, 900, 3, 0)], "out of range"),
        ([(3, -1, 2, 0)], "out of range"),
        ([(2**30, 3, 2, 0)], "out of range"),
        ([(3, 3, 3, 1), (0, 0)], "none at all"),
    ],
)
def test_tables_that_lie_are_refused_before_any_symbol_is_read(monkeypatch, roots, text):
    good = tuple(table(-1, *([3] * len(each))) for each in roots)
    lie = tuple(table(-1, *each) for each in roots)
    differences = container.listing.own.differences
    stored = {id(right): differences(wrong) for right, wrong in zip(good, lie, strict=True)}
    monkeypatch.setattr(container.listing.own, "differences", lambda one: stored[id(one)])
    monkeypatch.setattr(container.listing.own, "best_code", lambda _: 100)
    data = codebook_file(tables=good)
    with pytest.raises(FormatError, match=f"^the data: .*{text}"):
        WaterfillFile(data, threads=1)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([], None),
        ([[0, []]], "cannot be read"),
        ([[0, [[-1, 3, 50], [0, 1, 50], [0, 1, 50]]]], "cannot be read"),
        ([[0, [[-1, 0, 50]]]], "cannot be read"),
        ([[0, [[-1, 256, 50]]]], "cannot be read"),
        ([[0, [[-1, 3, 121]]]], "cannot be read"),
        ([[0, [[-1, 3, -1]]]], "cannot be read"),
        ([[0, [[2**30 + 1, 3, 50]]]], "cannot be read"),
        ([[0, [[-(2**30) - 1, 3, 50]]]], "cannot be read"),
        ([[0, [[-1, 3, 50, 0]]]], "cannot be read"),
        ([[-1, [[-1, 3, 50]]]], "cannot be read"),
        ([[1, [[-1, 3, 50]]]], "not in order"),
        ([[2**63, [[-1, 3, 50]]]], "not in order"),
        ([[0, [[-1, 3, 50]]], [0, [[-1, 3, 50]]]], "not in order"),
        ([[0, [[-1, 2, 50]]]], "the chunks hold"),
        ([[0, [[-1, 255, 50]]]], "the chunks hold"),
        ({"0": [[-1, 3, 50]]}, "cannot be read"),
    ],
)
def test_lines_of_tables_that_lie_are_refused(lines, text):
    data = codebook_file(tables=(table(-1, 3, 3, 3, 1),))
    directory = directory_of(data)
    assert directory["tables"][0][0] == 0
    with pytest.raises(FormatError, match=text):
        read(with_directory({**directory, "tables": lines}, data))


def test_symbols_of_a_table_outside_the_codebook_are_found():
    data = codebook_file(tables=(table(-1, 3, 3, 3, 1),))
    directory = directory_of(data)
    for first in (-2, 0, 5, 2**30, -(2**30)):
        with pytest.raises(FormatError, match="its codebook"):
            read(with_directory(replaced(directory, ("tables", 0, 1, 0, 0), first), data))


def test_every_cut_of_a_table_is_found():
    data = codebook_file(tables=(table(-1, 3, 3, 3, 1),))
    directory, body = directory_of(data), data[HEADER + struct.unpack_from("<I", data, 12)[0] :]
    kind, size, _, count = directory["chunks"][0]
    assert (kind, count) == ("a", 4)
    for cut in range(size):
        chunk = [kind, cut, zlib.crc32(body[:cut]), count]
        rest = body[:cut] + body[size:]
        bad = with_directory(replaced(directory, ("chunks", 0), chunk), rest_of(data, rest))
        with pytest.raises(FormatError):
            WaterfillFile(bad, threads=1)


# Paths


def paths_file(size=40, log_span=4, **changes):
    """A file of one tensor that is a path, in chunks of at least one span; the scale of its only row is coded."""
    weight = Weight("w", np.random.default_rng(0).laplace(size=(1, size)).astype(np.float32), Layout((1, size)))
    item = Trellis(states=8).quantize(weight, None, 0.01)
    spread = replace(item.spread, rows=np.array([1], np.int8), trellis=replace(item.spread.trellis, log_span=log_span))
    levels = item.symbols if log_span > 15 else np.zeros((1, size), np.int32)
    spread = replace(spread, trellis=replace(spread.trellis, zero=log_span <= 15))
    item = Quantized(levels, item.rule, replace(spread, **changes))
    return container.pack((Entry("w", (1, size), "float32", Coded(weight.layout)),), {"w": item}, {}, "test").data


def test_a_file_with_a_path_is_right():
    assert [line[:1] for line in directory_of(paths_file())["tensors"]] == [["p"]]
    assert not any(read(paths_file())["w"])
    assert any(read(paths_file(log_span=16))["w"])


@pytest.mark.parametrize("log_span", [4, 16])
def test_lines_of_paths_that_lie_are_refused_or_read(log_span):
    data = paths_file(log_span=log_span)
    directory = directory_of(data)
    for path in places(directory["tensors"], ("tensors",)):
        for value in HUGE:
            opens_or_refuses(with_directory(replaced(directory, path, value), data))
    lies = {1: (-6001, 6001), 2: (1, 13, -1), 3: (0, 1, None), 4: (-1, 43), 5: (-1, 9), 6: (-401, 257), 7: (-1, 9),
            8: (-401, 257), 9: ([0, 0], [65, 0, 0]), 10: ([57] * 6, [-1] * 5), 11: (0, 2, None, [])}  # fmt: skip
    for at, values in lies.items():
        for value in values:
            with pytest.raises(FormatError, match="cannot be read"):
                read(with_directory(replaced(directory, ("tensors", 0, at), value), data))
    with pytest.raises(FormatError, match="cannot be read"):
        read(with_directory(replaced(directory, ("tensors", 0), [*directory["tensors"][0], 0]), data))


def test_a_chunk_that_begins_within_a_path_is_refused(monkeypatch):
    monkeypatch.setattr(container, "LARGE_CHUNK", 16)
    monkeypatch.setattr(container, "SMALL_CHUNK", 1)
    data = paths_file()
    directory = directory_of(data)
    assert [chunk[3] for chunk in directory["chunks"]] == [1, 16, 16, 8]
    assert not any(read(data)["w"])
    for log_span in (5, 6, 16, 42):
        with pytest.raises(FormatError, match=r"^the data: a chunk begins in the middle of a path or row of tensor"):
            WaterfillFile(with_directory(replaced(directory, ("tensors", 0, 4), log_span), data))


def lanes_file(lines, minor=2, **changes):
    """A file of one path with lanes, whose directory has other lines of lanes."""
    parts = take_apart(paths_file(log_span=0, trellis=Paths(3, True, 0, 5, 32, lanes=Lanes(8, 1)), **changes))
    parts.directory["lanes"], parts.minor = lines, minor
    return put_together(parts)


LANES = {
    "twice": ([[0, 8, 1], [0, 8, 1]], "not in order"),
    "of a tensor that is not there": ([[1, 8, 1]], "not in order, or of more than 1"),
    "of a tensor far away": ([[2**62, 8, 1]], "not in order, or of more than 1"),
    "below 0": ([[-1, 8, 1]], "cannot be read"),
    "16 lanes": ([[0, 16, 1]], "cannot be read"),
    "no lanes": ([[0, 0, 1]], "cannot be read"),
    "no lines": ([[0, 8, 0]], "cannot be read"),
    "too many lines": ([[0, 8, 2**42 + 1]], "cannot be read"),
    "too short": ([[0, 8]], "cannot be read"),
    "too long": ([[0, 8, 1, 0]], "cannot be read"),
    "a key": ({"0": [0, 8, 1]}, "cannot be read"),
}


@pytest.mark.parametrize("name", LANES)
def test_lines_of_lanes_that_lie_are_refused_when_a_file_is_opened(name):
    lines, text = LANES[name]
    with pytest.raises(FormatError, match=f"^the data: .*{text}"):
        WaterfillFile(lanes_file(lines))


def test_lanes_need_a_path_without_span_and_version_1_2():
    assert not any(read(lanes_file([[0, 8, 1]]))["w"])
    assert not any(read(lanes_file([[0, 8, 2**42]]))["w"])
    opens_or_refuses(lanes_file([[0, 32, 1]]))
    for minor in (0, 1):
        with pytest.raises(FormatError, match=rf"has lanes, which format version 1\.{minor} has not"):
            WaterfillFile(lanes_file([[0, 8, 1]], minor))
    for data in (paths_file(log_span=4), GOOD):
        parts = take_apart(data)
        parts.directory["lanes"], parts.minor = [[0, 8, 1]], 2
        with pytest.raises(FormatError, match="lanes without a path, or both lanes and a span"):
            WaterfillFile(put_together(parts))


def test_a_chunk_that_begins_within_a_lane_is_refused(monkeypatch):
    monkeypatch.setattr(container, "LARGE_CHUNK", 16)
    monkeypatch.setattr(container, "SMALL_CHUNK", 1)
    layout, path = Layout((20, 4)), Paths(3, True, 0, 5, 32, lanes=Lanes(8, 1))
    item = Quantized(np.zeros((20, 4), np.int32), Uniform(0), Spread(5, 32, trellis=path))
    data = container.pack((Entry("w", (20, 4), "float32", Coded(layout)),), {"w": item}, {}, "test").data
    parts = take_apart(data)
    assert [line[3] for line in parts.directory["chunks"]] == [32, 32, 16]
    for lines in (3, 5, 9, 2**42):
        parts.directory["lanes"] = [[0, 8, lines]]
        with pytest.raises(FormatError, match=r"^the data: a chunk begins in the middle of a path or row of tensor"):
            WaterfillFile(put_together(parts))


def test_every_changed_byte_of_a_path_with_lanes_is_an_error_or_a_path():
    parts = take_apart(lanes_file([[0, 8, 1]]))
    for number, chunk in enumerate(parts.chunks):
        for at in range(len(chunk)):
            for flip in (1, 0x80, 0xFF):
                bad = bytearray(chunk)
                bad[at] ^= flip
                changed = replace(parts, chunks=[bytes(bad) if n == number else c for n, c in enumerate(parts.chunks)])
                opens_or_refuses(put_together(changed))


def test_a_path_has_no_tables_of_its_own():
    data = paths_file(tables=ZERO_FIRST)
    with pytest.raises(FormatError, match="both a trellis and tables of its own"):
        WaterfillFile(data)


def test_every_changed_byte_of_a_path_with_the_right_checksum_is_an_error_or_a_path():
    data = paths_file(log_span=16)
    directory, body = directory_of(data), data[HEADER + struct.unpack_from("<I", data, 12)[0] :]
    for at in range(len(body)):
        for flip in (1, 0x80, 0xFF):
            bad = bytearray(body)
            bad[at] ^= flip
            start = 0
            lines = []
            for kind, size, _, count in directory["chunks"]:
                lines.append([kind, size, zlib.crc32(bad[start : start + size]), count])
                start += size
            opens_or_refuses(with_directory({**directory, "chunks": lines}, rest_of(data, bytes(bad))))


def test_steps_of_a_path_out_of_range_are_refused():
    data = paths_file()
    layout = Layout((1, 40))
    rule = Uniform(6000, 0, (0, 0, 0), np.array([127], np.int8))
    item = Quantized(np.zeros((1, 40), np.int32), rule, Spread(5, 32, trellis=Paths(3, True, 4, 5, 32)))
    lie = container.pack((Entry("w", (1, 40), "float32", Coded(layout)),), {"w": item}, {}, "test").data
    assert not any(read(data)["w"])
    with pytest.raises(FormatError, match="steps of a tensor are out of range"):
        WaterfillFile(lie)


# Adaptive models


def adaptive_file(values, **changes):
    """A file of one tensor [12, 9] with an adaptive model."""
    layout = Layout((12, 9))
    spread = replace(Spread(0, 0, adaptive=Adaptive(3)), **changes)
    item = Quantized(values.astype(np.int32), Uniform(0), spread)
    return container.pack((Entry("w", layout.shape, "float32", Coded(layout)),), {"w": item}, {}, "test").data


def some_values():
    rng = np.random.default_rng(0)
    return rng.integers(-3, 4, (12, 9)) * (rng.random((12, 9)) < 0.4)


def test_a_file_with_an_adaptive_model_is_right():
    data = adaptive_file(some_values())
    assert directory_of(data)["adaptive"] == [[0, 3]]
    assert np.frombuffer(read(data)["w"], np.float32).tolist() == some_values().reshape(-1).tolist()


def test_lines_of_adaptive_models_that_lie_are_refused():
    data = adaptive_file(some_values())
    directory = directory_of(data)
    for lie in ([[0, -1]], [[0, 65537]], [[-1, 0]], [[0, 1, 2]], [["0"]], [[]], [None], {}, 3):
        with pytest.raises(FormatError, match="cannot be read"):
            read(with_directory({**directory, "adaptive": lie}, data))
    for lie in ([[1, 0]], [[0, 0], [0, 0]], [[9, 0]]):
        with pytest.raises(FormatError, match="not in order, or more than 1"):
            read(with_directory({**directory, "adaptive": lie}, data))
    opens_or_refuses(with_directory({**directory, "adaptive": []}, data))
    for width in (0, 1, 2, 4, 9, 65536):
        opens_or_refuses(with_directory({**directory, "adaptive": [[0, width]]}, data))


def test_an_adaptive_model_has_nothing_beside_it():
    beside = {"tables": ZERO_FIRST}, {"rows": np.ones(12, np.int8)}, {"trellis": Paths(3, True, 4, 5, 32)}
    for changes in beside:
        with pytest.raises(FormatError, match="both an adaptive model and scales, tables or a trellis"):
            WaterfillFile(adaptive_file(np.zeros((12, 9)), **changes))


def test_a_chunk_of_an_adaptive_model_has_whole_rows_and_not_too_many(monkeypatch):
    monkeypatch.setattr(container, "LARGE_CHUNK", 20)
    monkeypatch.setattr(container, "SMALL_CHUNK", 1)
    data = adaptive_file(some_values())
    directory = directory_of(data)
    assert [chunk[3] for chunk in directory["chunks"]] == [18] * 6
    assert np.frombuffer(read(data)["w"], np.float32).tolist() == some_values().reshape(-1).tolist()
    lines = [[*chunk[:3], count] for chunk, count in zip(directory["chunks"], (17, 19, 18, 18, 18, 18), strict=True)]
    with pytest.raises(FormatError, match="in the middle of a path or row of tensor 'w'"):
        WaterfillFile(with_directory({**directory, "chunks": lines}, data))
    monkeypatch.setattr(container.adaptive, "LARGEST_PIECE", 17)
    with pytest.raises(FormatError, match="a chunk has 18 elements of 'w', too many"):
        WaterfillFile(data)


def test_every_changed_byte_of_an_adaptive_model_with_the_right_checksum_is_an_error_or_something():
    data = adaptive_file(some_values())
    directory, body = directory_of(data), data[HEADER + struct.unpack_from("<I", data, 12)[0] :]
    [[kind, size, _, count]] = directory["chunks"]
    for at in range(len(body)):
        for flip in (1, 0x80, 0xFF):
            bad = bytearray(body)
            bad[at] ^= flip
            lines = [[kind, size, zlib.crc32(bad), count]]
            opens_or_refuses(with_directory({**directory, "chunks": lines}, rest_of(data, bytes(bad))))


# Scales


def scales_file(trellis=None):
    """A file of one tensor whose spreads are the negative of the steps, near it, and free."""
    layout = Layout((6, 5, 4))
    steps = [np.resize(np.array([40, -50, 7], np.int8), n) for n in layout.axes]
    rule = Uniform(-64, 0, (0, 0, 0), steps[0], steps[1])
    spread = Spread(5, 40, -steps[0], (-steps[1] + np.eye(5, dtype=np.int8)[0]), steps[2], trellis=trellis)
    item = Quantized(np.zeros((6, 20), np.int32), rule, spread)
    return container.pack((Entry("w", layout.shape, "float32", Coded(layout)),), {"w": item}, {}, "test").data


@pytest.mark.parametrize("trellis", [None, Paths(3, True, 4, 5, 32, down=True)], ids=["free", "path"])
def test_scales_that_lie_are_refused(trellis):
    data = scales_file(trellis)
    directory, at = directory_of(data), 5 if trellis is None else 10
    assert not any(read(data)["w"])
    codes = directory["tensors"][0][at]
    assert [code >= 0 for code in codes] == [True, True, False, False, False, True]
    assert (codes[3], codes[4] < -2) == (-2, True)
    for place, code in ((2, -2), (2, -3), (0, -2), (3, -60), (3, 57), (4, -61), (5, -60)):
        with pytest.raises(FormatError, match="cannot be read"):
            read(with_directory(replaced(directory, ("tensors", 0, at, place), code), data))
    for place, code in ((3, codes[4]), (4, -2), (4, -1), (5, -2)):
        with pytest.raises(FormatError, match="the chunks hold"):
            read(with_directory(replaced(directory, ("tensors", 0, at, place), code), data))
    opens_or_refuses(with_directory(replaced(directory, ("tensors", 0, at, 3), -1), data))
    for code in (-3 - codes[5], -59):
        with pytest.raises(FormatError, match=r"^the data: the spreads of an axis are relative to its steps"):
            WaterfillFile(with_directory(replaced(directory, ("tensors", 0, at, 5), code), data), threads=1)
    for code in (-3, -59, -40):
        opens_or_refuses(with_directory(replaced(directory, ("tensors", 0, at, 4), code), data))


def test_a_codebook_has_no_steps_for_its_spreads():
    data = codebook_file()
    directory = directory_of(data)
    for code in (-2, -3, -20):
        with pytest.raises(FormatError, match="cannot be read"):
            read(with_directory(replaced(directory, ("tensors", 0, 5), [-1, code, -1]), data))


def test_sums_that_lead_out_of_range_are_refused(monkeypatch):
    far = container.listing.scales.stored(np.full(5, 120, np.int8))
    stored = container.listing.scales.stored

    def lying(scale, steps=None):
        found = stored(scale, steps)
        return found if found.code >= -2 else (lambda code: found._replace(code=code, values=far.values))(-3 - far.code)

    monkeypatch.setattr(container.listing.scales, "stored", lying)
    with pytest.raises(FormatError, match=r"^the data: a scale is out of range"):
        WaterfillFile(scales_file(), threads=1)


def rest_of(data, body):
    """A file with another body."""
    return data[: HEADER + struct.unpack_from("<I", data, 12)[0]] + body


def test_every_value_of_the_directory_replaced_by_lies():
    directory = directory_of(GOOD)
    everywhere = [path for path in places(directory) if path]
    for path in everywhere:
        for value in HUGE:
            opens_or_refuses(with_directory(replaced(directory, path, value)))
        opens_or_refuses(with_directory(removed(directory, path)))


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_random_combinations_of_lies(seed):
    rng = random.Random(seed)
    directory = directory_of(GOOD)
    for _ in range(rng.randint(1, 4)):
        path = rng.choice([p for p in places(directory) if p])
        value = rng.choice(
            [
                rng.choice(HUGE),
                rng.randint(-300, 300),
                rng.choice(["q", "t", "x", "=", "c", "v", "m", "u", "r", "a", "s"]),
            ]
        )
        directory = replaced(directory, path, value)
        if not isinstance(directory, dict):
            break
    opens_or_refuses(with_directory(directory))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_as_directory_or_as_file(data):
    assert refused(with_directory(data))
    assert refused(data)
    assert refused(GOOD[:8] + data)


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_chunks_that_lie_with_the_right_checksum(seed):
    rng = random.Random(seed)
    directory = directory_of(GOOD)
    body = bytearray(GOOD[HEADER + PACKED :])
    for _ in range(rng.randint(1, 5)):
        body[rng.randrange(len(body))] = rng.randrange(256)
    at = 0
    for chunk in directory["chunks"]:
        chunk[2] = zlib.crc32(body[at : at + chunk[1]])
        at += chunk[1]
    opens_or_refuses(with_directory(directory, GOOD[: HEADER + PACKED] + bytes(body)))


BOMBS = {
    "zeros of 2^40 values": {"entries": [["w", "float32", [1 << 20, 1 << 20]]], "tensors": [["u", 0, 5, 0]],
                             "chunks": [["s", 32, zlib.crc32(bytes(32)), 1 << 40]]},
    "2^40 exact bytes": {"entries": [["w", "uint8", [1 << 40], "x", ""]], "tensors": [],
                         "chunks": [["x", 32, zlib.crc32(bytes(32)), 1 << 40]]},
    "2^30 values in a chunk": {"entries": [["w", "float32", [1 << 30]]], "tensors": [["u", 0, 5, 0]],
                               "chunks": [["s", 32, zlib.crc32(bytes(32)), 1 << 30]]},
    "a path of 2^30 values": {"entries": [["w", "float32", [1 << 30]]],
                              "tensors": [["p", 0, 12, True, 42, 5, 0, 5, 0]],
                              "chunks": [["s", 32, zlib.crc32(bytes(32)), 1 << 30]]},
    "constant of 2^42 values": {"entries": [["w", "float32", [1 << 42], "c", 1.0]], "tensors": [], "chunks": []},
    "ties of a constant": {"entries": [["w", "float32", [1 << 41], "c", 1.0], ["v", "float32", [1 << 41], "=", "w"]],
                                "tensors": [], "chunks": []},
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_little_memory(name, tmp_path):
    directory = BOMBS[name]
    body = bytes(sum(chunk[1] for chunk in directory["chunks"]))
    path = tmp_path / "bomb.wf"
    path.write_bytes(with_directory(directory, GOOD[: HEADER + PACKED] + body))
    assert_refused_in_little_memory(path)


def test_a_directory_that_unpacks_to_gigabytes_is_refused_within_little_memory(tmp_path):
    packed = zstandard.ZstdCompressor(level=1).compress(b'{"entries": [' + b" " * (1 << 28) + b"]}")
    for size in (100, (1 << 26) - 1, 1 << 30):
        head = struct.pack("<8sHHII", container.MAGIC, 1, 0, len(packed), size)
        path = tmp_path / "bomb.wf"
        path.write_bytes(head + struct.pack("<I", zlib.crc32(head + packed)) + packed)
        assert_refused_in_little_memory(path)


def assert_refused_in_little_memory(path):
    """Read a file in another process that may use 400 MB more than the imports took."""
    script = (
        "import resource, sys, waterfill\n"
        "from waterfill.codec import kernels, tables\n"
        "from waterfill.files import WaterfillFile\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)\n"
        "try:\n"
        "    file = WaterfillFile(sys.argv[1], threads=1)\n"
        "    file.verify()\n"
        "    dict(file.tensors())\n"
        "except waterfill.errors.FormatError as error:\n"
        "    print('refused:', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"refused: {path}: "), done.stderr[-2000:]


def test_chunks_without_bytes_are_refused():
    directory = directory_of(GOOD)
    kinds = [chunk[0] for chunk in directory["chunks"]]
    for kind in "acsx":
        at = kinds.index(kind)
        chunks = [*directory["chunks"][:at], [kind, 0, 0, 0], *directory["chunks"][at:]]
        with pytest.raises(FormatError, match=f"a chunk of kind '{kind}' cannot hold 0 units in 0 bytes"):
            read(with_directory({**directory, "chunks": chunks}))


MANY = {
    "chunks": lambda: b'{"entries":[],"tensors":[],"chunks":[' + b",".join([b'["s",0,0,0]'] * 4_500_000) + b"]}",
    "axes": lambda: b'{"entries":[["w","float32",[' + b",".join([b"0"] * 33_000_000) + b']]],"tensors":[],"chunks":[]}',
    "a long name": lambda: b'{"entries":[["' + b"n" * 66_000_000 + b'","x",[]]],"tensors":[],"chunks":[]}',
}


@pytest.mark.parametrize("name", MANY)
def test_small_files_of_large_directories_are_refused_before_they_are_unpacked(name, monkeypatch):
    data = with_directory(MANY[name](), GOOD[: HEADER + PACKED])
    assert len(data) < 20_000
    monkeypatch.setattr(container.listing, "unpack", None)
    with pytest.raises(FormatError, match="too large for the") as error:
        read(data)
    assert len(str(error.value)) < 200


def test_texts_of_long_names_are_short():
    directory = {"entries": [["n" * 300_000, "no type", []]], "tensors": [], "chunks": []}
    with pytest.raises(FormatError, match=r"^the data: tensor 'nnn") as error:
        read(with_directory(directory))
    assert len(str(error.value)) <= 500


def test_bytes_behind_a_frame_are_refused():
    directory, extra = directory_of(GOOD), b"more"
    at = HEADER + PACKED
    with pytest.raises(FormatError, match=r"the data: a frame ends after \d+ of its"):
        packed = GOOD[HEADER:at] + extra
        head = struct.pack("<8sHHII", container.MAGIC, 1, 0, len(packed), struct.unpack_from("<I", GOOD, 16)[0])
        read(head + struct.pack("<I", zlib.crc32(head + packed)) + packed + GOOD[at:])
    chunk = directory["chunks"][-1]
    assert chunk[0] == "x"
    frame = GOOD[len(GOOD) - chunk[1] :] + extra
    chunk[1:3] = len(frame), zlib.crc32(frame)
    with pytest.raises(FormatError, match=r"the data: (chunk \d+: )?a frame ends after"):
        read(with_directory(directory, GOOD + extra))


@pytest.mark.parametrize("how", [("c", 10**400), ("c", -(10**400)), ("v", 10**400), ("t", 10**400)])
def test_numbers_that_no_float_holds_are_refused(how):
    directory = {"entries": [["w", "float32", [2], *how]], "tensors": [], "chunks": []}
    with pytest.raises(FormatError, match=r"impossible origin"):
        read(with_directory(directory))


def test_most_bytes_are_checked_before_anything_is_decoded(monkeypatch):
    size = WaterfillFile(GOOD).original_bytes
    assert WaterfillFile(GOOD, max_bytes=size).original_bytes == size
    monkeypatch.setattr(container.Container, "_read_rules", None)
    with pytest.raises(FormatError, match=f"the data: its tensors take {size:,} bytes, but at most {size - 1:,} are"):
        WaterfillFile(GOOD, max_bytes=size - 1)


def test_other_kinds_of_files_are_named(tmp_path):
    for name, data in {"empty.wf": b"", "text.wf": b"hello", "zip.wf": b"PK\x03\x04" + bytes(100)}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError, match=f"{name}: not a waterfill file"):
            WaterfillFile(tmp_path / name)
    with pytest.raises(FormatError, match=r"missing\.wf: cannot be read"):
        WaterfillFile(tmp_path / "missing.wf")
    with pytest.raises(FormatError, match="cannot be read"):
        WaterfillFile(tmp_path)


def test_an_unknown_version_is_named():
    for at, version in ((8, "2.0"), (10, "1.4")):
        bad = bytearray(GOOD)
        bad[at] = 2 if at == 8 else 4
        with pytest.raises(FormatError, match=f"version {version} is unknown; this release reads versions up to 1.3"):
            WaterfillFile(bytes(bad))


@pytest.mark.parametrize("scale", [127, -127, -128])
def test_scales_out_of_range_are_refused(scale):
    layout = Layout((2, 3))
    spread = Spread(5, 32, rows=np.array([0, scale], np.int8))
    item = Quantized(np.zeros((2, 3), np.int32), Codebook(np.zeros(1, np.float32)), spread)
    data = container.pack((Entry("w", layout.shape, "float32", Coded(layout)),), {"w": item}, {}, "test").data
    if scale >= -127:
        assert not any(read(data)["w"])
        return
    with pytest.raises(FormatError, match="a scale is out of range"):
        read(data)
