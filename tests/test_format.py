"""The page of the format: its code, its example and its vectors, beside the package."""

import json
import re
import zlib
from pathlib import Path

import format_page
import numpy as np
import pytest
import slow_decoder

import make_vectors
from waterfill.codec import adaptive, own, pieces, symbols
from waterfill.io.arrays import STORAGE, round_into
from waterfill.io.file import ArrayFile
from waterfill.reconstruct import _levels, _relative
from waterfill.records import ALL, Adaptive, Lanes, Layout, Paths, Relative, Spread, Uniform

VECTORS = json.loads(make_vectors.VECTORS.read_text())
EXAMPLE, PLAIN = make_vectors.EXAMPLE.read_bytes(), make_vectors.PLAIN.read_bytes()
PAGE = format_page.PAGE.read_text()


def cases(kind):
    return pytest.mark.parametrize("case", VECTORS[kind], ids=lambda case: case.get("name"))


def test_the_vectors_are_what_the_script_makes():
    assert [*make_vectors.integers()] == VECTORS["integers"]
    assert json.loads(json.dumps([*make_vectors.paths()])) == VECTORS["paths"]
    assert [*make_vectors.decisions()] == VECTORS["adaptive"] and [*make_vectors.tables()] == VECTORS["tables"]
    for name, rows in make_vectors.values().items():
        assert rows == VECTORS[name], name


@cases("integers")
def test_integers(case):
    data = bytes.fromhex(case["stream"])
    stream = format_page.Stream(data)
    assert format_page.read_integers(stream, case["elements"]) == case["values"]
    stream.finish()
    families, exponents = zip(*case["elements"], strict=True)
    codes = symbols.exponent_codes(np.array(exponents, np.int32), families[0])
    assert symbols.decode(data, codes).tolist() == case["values"]


@cases("paths")
def test_paths(case):
    data = bytes.fromhex(case["stream"])
    stream = format_page.Stream(data, max(8, case["lanes"] or 8))
    known = case["v"], case["zero"], case["span"], case["lowest"], case["lanes"]
    assert format_page.read_path(stream, case["elements"], *known) == case["values"]
    stream.finish()
    families, exponents = zip(*case["elements"], strict=True)
    base = min(first for first, _ in exponents)
    rows = np.array([(first - base) // 2 for first, _ in exponents], np.int8)
    layout = Layout((rows.size, 1))
    if case["lanes"] is None:
        log_span, lanes = case["span"].bit_length() - 1, None
    else:
        log_span, lanes = 0, Lanes(case["lanes"], case["span"])
    least, other = ALL if lanes else (case["lowest"] - base) // 2, exponents[0][1] - exponents[0][0] + base
    path = Paths(case["v"], case["zero"], log_span, families[0][1], other, False, least, lanes)
    model = pieces.model(Spread(families[0][0], base, rows, trellis=path), layout, 0, rows.size)
    (found,) = pieces.decode(data, [model])
    found = found if isinstance(found, np.ndarray) else found.in_order()
    assert found.tolist() == case["values"]


@cases("adaptive")
def test_adaptive_models(case):
    data, size = bytes.fromhex(case["stream"]), len(case["values"])
    stream = format_page.Stream(data)
    known = case["columns"], case["taps"], case["width"]
    assert format_page.read_adaptive(stream, size, *known) == case["values"]
    stream.finish()
    layout = Layout((size // case["columns"], case["columns"] // case["taps"], case["taps"]))
    model = adaptive.model(Adaptive(case["width"]), layout, 0, size)
    assert pieces.decode(data, [model])[0].tolist() == case["values"]


@cases("tables")
def test_own_tables(case):
    assert format_page.own_frequencies(case["differences"]) == case["frequencies"]
    table = own.from_differences(0, np.array(case["differences"], np.int32))
    assert own.frequencies(table).tolist() == case["frequencies"]


def test_values():
    for k, offset, shrink, level in VECTORS["levels"]:
        assert format_page.level_of(k, offset, shrink) == level
        assert _levels(np.array([k], np.int32), Uniform(0, offset, tuple(shrink))).tolist() == [level]
    for k, mantissa, offset, signed, pattern in VECTORS["patterns"]:
        assert format_page.pattern_of(k, mantissa, offset, signed) == pattern
        found = _relative(np.array([k], np.int32), Relative(mantissa=mantissa, offset=offset, signed=signed))
        assert found.view(np.uint32).tolist() == [pattern]


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 65504.0), ("bfloat16", 3.3895313892515355e38)])
def test_roundings(dtype, limit):
    values = np.array([row["float32"] for row in VECTORS["rounded"]], np.uint32).view(np.float32)
    out = np.zeros(values.size, STORAGE[dtype])
    round_into(np.clip(values, -limit, limit).astype(np.float32), out, dtype)
    assert out.view(np.uint16).tolist() == [row[dtype] for row in VECTORS["rounded"]]


def test_the_example_is_the_file_that_is_explained():
    lines = re.findall(r"^[0-9a-f]{3}  ((?:[0-9a-f]{2} ?)+)$", PAGE, re.MULTILINE)
    assert bytes.fromhex("".join(lines)) == EXAMPLE and len(EXAMPLE) == 169
    found, slow = ArrayFile(EXAMPLE), slow_decoder.decode(EXAMPLE)
    assert found["w"].array.tolist() == slow["w"].tolist() == [[0, 0.25, -0.25], [0.5, 0, -0.75]]
    assert found["n"].array.tolist() == slow["n"].tolist() == [1000]
    directory = re.search(r'^\{"entries":.*\}$', PAGE, re.MULTILINE)[0]
    assert slow_decoder.directory_of(EXAMPLE) == json.loads(directory)
    states = format_page.Stream(EXAMPLE[0x78:0x98]).states
    table = format_page.BANK[57 * 5 + 33]
    starts = np.cumsum([0, *table])
    for n, state in enumerate(states[:6]):
        slot, rest, symbol = state % 4096, state // 4096, int(np.searchsorted(starts, state % 4096, "right")) - 1
        assert f"| {n} | 0x{state:08x} | {slot} | {rest} | {symbol} | {starts[symbol]} |" in PAGE


def test_the_plain_example_is_explained_byte_by_byte():
    section = PAGE[PAGE.index("## Plain files") : PAGE.index("## Scales")]
    directory = bytes.fromhex("".join(re.findall(r"^\| `([0-9a-f ]+)` \|", section, re.MULTILINE)))
    assert directory == PLAIN[24 : 24 + len(directory)]
    assert len(PLAIN) == 24 + len(directory) + 32 + 8
    assert make_vectors.example(plain=True) == PLAIN
    for name, found in slow_decoder.decode(PLAIN).items():
        assert found.tolist() == ArrayFile(PLAIN)[name].array.tolist() == ArrayFile(EXAMPLE)[name].array.tolist()
    expected = slow_decoder.directory_of(EXAMPLE)
    expected["chunks"][1][1:3] = 8, zlib.crc32(PLAIN[-8:])
    assert slow_decoder.directory_of(PLAIN) == expected


def test_the_vectors_are_small_and_named_on_the_page():
    assert Path(make_vectors.VECTORS).stat().st_size < 20_000
    for name in VECTORS:
        assert f"`{name}`" in PAGE, name
