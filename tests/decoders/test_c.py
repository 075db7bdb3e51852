"""The reader in C: the same tensors and the same refusals as the package, with sanitizers on."""

import hashlib
import json
import math
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from functools import partial
from random import Random

import numpy as np
import pytest
import safetensors.torch
import torch
import zstandard

import waterfill
from attacks import test_attacks as attacks
from attacks import test_bases as basis_attacks
from decoders import c_reader, differential
from decoders.c_reader import DTYPES, SANITIZED, SOURCES, Reader, Refused
from fuzz import seeds
from fuzz.anatomy import take_apart, with_text
from fuzz.examine import Declared, read_file
from waterfill.codec.frames import decompressed
from waterfill.errors import FormatError
from waterfill.models.arrays import exact_bytes

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
FLOATS = ("float64", "float32", "float16", "bfloat16")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The reader with all checks of addresses and of undefined behaviour."""
    folder = tmp_path_factory.mktemp("driver")
    options = c_reader.supported(folder, COMPILER, SANITIZED)
    with Reader(c_reader.built(folder, COMPILER, options)) as found:
        yield found


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of what `make` builds."""
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    folder = tmp_path_factory.mktemp("programs")
    done = subprocess.run(
        ["make", "-C", SOURCES, f"BUILD={folder}", f"CC={COMPILER}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def expect_alike(reader, data):
    """Both readers refuse a file, or read the same."""
    expected, found = differential.by_python(data), differential.by_c(reader, data)
    assert expected is not None
    assert differential.alike(expected, found), f"Python {str(expected)[:300]}, C {str(found)[:300]}"
    return isinstance(expected, str)


# Files


@pytest.mark.parametrize("name", seeds.files())
def test_files_have_the_same_tensors(reader, name):
    data = seeds.files()[name]
    expected = read_file(data, Declared())
    assert list(expected) == list(reader.tensors(data))
    for what in "fp":  # in memory, and read in pieces
        assert reader.tensors(data, what=what) == expected


def test_golden_files_have_the_tensors_that_are_written_down(reader):
    paths = sorted(seeds.GOLDEN.glob("*.wf"))
    assert len(paths) > 10
    for path in paths:
        found = {n: hashlib.sha256(each[2]).hexdigest() for n, each in reader.tensors(path.read_bytes()).items()}
        assert found == json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("folder", ["directory", "directory2"])
def test_payloads_of_directories_are_found_in_their_shards(reader, folder):
    tensors = {}
    for shard in sorted((seeds.GOLDEN / folder).glob("*.safetensors")):
        data = shard.read_bytes()
        payloads = reader.payloads(data)
        assert payloads == reader.payloads(data, "S")
        assert sorted(payloads) == sorted(int(n.removeprefix("waterfill_")) for n in safetensors.torch.load_file(shard))
        for payload in payloads.values():
            tensors |= payload
    digests = {name: hashlib.sha256(each[2]).hexdigest() for name, each in tensors.items()}
    expected = json.loads((seeds.GOLDEN / "directory.json").read_text())
    common = digests.keys() & expected.keys()
    assert len(common) > len(expected) // 2
    assert all(digests[name] == expected[name] for name in common)


def shard_with(header, size=100):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def payload_line(first, last, shape=None, dtype="U8", **more):
    return {"dtype": dtype, "shape": [last - first] if shape is None else shape, "data_offsets": [first, last], **more}


@pytest.mark.parametrize(
    ("shard", "text"),
    [
        (b"1234567", "cut within its first 8 bytes"),
        (struct.pack("<Q", 1 << 63) + bytes(99), "too large for a shard"),
        (struct.pack("<Q", 100) + bytes(99), "too large for a shard"),
        (shard_with(b"[]"), "expected {"),
        (shard_with(b"{} x"), "expected the end"),
        (shard_with({"w": payload_line(0, 9)}), "has the tensor 'w'"),
        (shard_with({"waterfill_": payload_line(0, 9)}), "has the tensor 'waterfill_'|payload of type U8"),
        (shard_with({"waterfill_1x": payload_line(0, 9)}), "has the tensor"),
        (shard_with({"waterfill_0": payload_line(0, 101)}), "cannot hold the payload"),
        (shard_with({"waterfill_0": payload_line(1 << 62, (1 << 62) + 1)}), "cannot hold the payload"),
        (shard_with({"waterfill_0": payload_line(9, 8, [1])}), "payload of type U8"),
        (shard_with({"waterfill_0": payload_line(0, 9, [8])}), "payload of type U8"),
        (shard_with({"waterfill_0": payload_line(0, 9, [9, 1])}), "expected"),
        (shard_with({"waterfill_0": payload_line(0, 9, [])}), "expected"),
        (shard_with({"waterfill_0": payload_line(0, 9, dtype="F32")}), "payload of type U8"),
        (shard_with({"waterfill_0": payload_line(0, 9, other=1)}), "expected dtype"),
        (shard_with({"__metadata__": {"a": 1}}), "expected a string"),
        (shard_with({"waterfill_0": payload_line(0, 100)}), "not a waterfill file"),
    ],
)
def test_shards_that_lie_are_refused(reader, shard, text):
    with pytest.raises(Refused, match=text):
        reader.payloads(shard)


def numbers_file():
    """A file of every floating-point type with exact values of all kinds."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(1 << 31), (1 << 31) - 1, (5000,), generator=generator, dtype=torch.int64)
    single = patterns.to(torch.int32).view(torch.float32)
    single = single[~single.isnan()]
    halves = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)[::7]
    some = {
        "float32": torch.cat([single, torch.tensor([0.0, -0.0, math.inf, -math.inf, 65519.9, 65520.0, 2.0**-25])]),
        "float64": torch.cat([single[:1000].double() * (1 + 2.0**-40), torch.tensor([1e300, -1e-300, 1.0 + 2.0**-25])]),
        "float16": halves.view(torch.float16),
        "bfloat16": halves.view(torch.bfloat16),
    }
    some = {name: each[~each.isnan()] for name, each in some.items()}
    raw = b"".join(exact_bytes(each) for each in some.values())
    frame = zstandard.ZstdCompressor().compress(raw)
    entries = [[name, name, [each.numel()], "x", ""] for name, each in some.items()]
    directory = {"entries": entries, "tensors": [], "chunks": [["x", len(frame), zlib.crc32(frame), len(raw)]]}
    return with_text(json.dumps(directory).encode(), [frame])


def test_values_are_rounded_to_other_types_as_torch_rounds_them(reader, tmp_path):
    for number, data in enumerate([numbers_file(), *seeds.files().values()]):
        path = tmp_path / f"{number}.wf"
        path.write_bytes(data)
        tensors = waterfill.decompress(path)
        for dtype in FLOATS:
            found = reader.tensors(data, DTYPES.index(dtype))
            for name, tensor in tensors.items():
                is_float = str(tensor.dtype).removeprefix("torch.") in FLOATS
                expected = tensor.to(getattr(torch, dtype)) if is_float else tensor
                assert found[name][2] == exact_bytes(expected), (number, name, dtype)


# Refusals


def damaged_files():
    """A file in which every byte is changed in turn, cut everywhere, and with more behind it."""
    good = attacks.GOOD
    for at in range(len(good)):
        changed = bytearray(good)
        changed[at] ^= 1 + at % 255
        yield from ((f"byte {at} is changed", bytes(changed)), (f"cut at {at}", good[:at]))
    more = good + b"\0", good + good, b"", b"PK\x03\x04" + bytes(100)
    yield from ((f"another, {len(bad)} bytes", bad) for bad in more)


def test_changed_and_cut_files_are_refused(reader):
    assert reader.tensors(attacks.GOOD)
    for _, bad in damaged_files():
        with pytest.raises(Refused):
            reader.tensors(bad)


def attack_files():
    """Files that lie, by name."""
    yield from ((f"bases {n}", basis_attacks.with_lines(lines)) for n, (lines, _) in basis_attacks.LIES.items())
    yield from ((f"lanes {n}", attacks.lanes_file(lines)) for n, (lines, _) in attacks.LANES.items())
    yield from ((f"bomb {n}", attacks.with_directory(lie)) for n, lie in attacks.BOMBS.items())
    yield from ((f"many {n}", attacks.with_directory(text())) for n, text in attacks.MANY.items())
    for minor in range(4):
        yield f"bases in version 1.{minor}", basis_attacks.with_lines(basis_attacks.LINES, minor)
        yield f"lanes in version 1.{minor}", attacks.lanes_file([[0, 8, 1]], minor)
    for shape, how in [([0, 2**42, 2**42], ("q", None)), ([0, 4], ("t", 2**62)), ([0] * 65, ("q",)), ([2], ("v", -1))]:
        yield f"shape {shape}", attacks.empty_file(shape, False, how)
    for how in (("c", 10**400), ("c", -(10**400)), ("v", 10**400), ("t", 10**400)):
        directory = {"entries": [["w", "float32", [2], *how]], "tensors": [], "chunks": []}
        yield f"a large number in {how[0]}", attacks.with_directory(directory)
    for lie in ({"symbols": (0, 2)}, {"first": -3}, {"values": (-1.0, np.nan, 2.0)}, {"values": (-1.0, 0.0, np.inf)}):
        yield f"codebook {lie}", attacks.codebook_file(**lie)
    yield "a path with tables", attacks.paths_file(tables=attacks.ZERO_FIRST)
    yield "an adaptive model with tables", attacks.adaptive_file(np.zeros((12, 9)), tables=attacks.ZERO_FIRST)


def test_files_that_lie_are_refused_as_the_package_refuses_them(reader):
    verdicts = {name: expect_alike(reader, data) for name, data in attack_files()}
    assert sum(verdicts.values()) > 60
    assert not all(verdicts.values())


def test_lies_everywhere_in_a_directory(reader):
    random, refused = Random(0), 0
    for data in (attacks.GOOD, attacks.paths_file(), basis_attacks.GOOD):
        directory = attacks.directory_of(data)
        minor, chunks = data[10], take_apart(data).chunks
        everywhere = [path for path in attacks.places(directory) if path]
        for path in random.sample(everywhere, min(len(everywhere), 100)):
            lies = [attacks.replaced(directory, path, random.choice(attacks.HUGE)) for _ in range(2)]
            for lie in [*lies, attacks.removed(directory, path)]:
                refused += expect_alike(reader, with_text(json.dumps(lie).encode(), chunks, minor))
    assert refused > 500


def test_changed_files_are_read_alike(reader):
    with np.errstate(all="ignore"):
        read = partial(differential.by_c, reader)
        counts, wrong = differential.compared(read, differential.mutants(0, 1000))
    assert not wrong, wrong[:5]
    assert counts["refused"] > 500
    assert counts["read"] > 100
    assert counts["damaged frames that Python reads"] < 10


def test_memory_has_a_limit(reader):
    data = seeds.files()["exact"]
    for limit in (100, 2000, 10_000, 60_000):
        with pytest.raises(Refused, match=rf"bytes more are needed, and \d+ of {limit} are in use"):
            reader.tensors(data, limit=limit)
    assert reader.tensors(data, limit=400_000)
    bomb = attacks.with_directory(attacks.BOMBS["2^30 values in a chunk"])
    with pytest.raises(Refused):
        reader.tensors(bomb, limit=1 << 20)


def test_threads_share_an_open_file(tmp_path):
    """With checks for races, where the compiler has them."""
    source = c_reader.DRIVER.with_name("threads.c")
    checks = c_reader.supported(tmp_path, COMPILER, ["-O1", "-g", "-fsanitize=thread"])
    allocator = str(c_reader.SOURCES / "program.c")
    program = c_reader.built(tmp_path, COMPILER, ["-pthread", *checks, allocator], source)
    for name in ("mixed", "lanes", "adaptive", "cosines"):
        path = tmp_path / f"{name}.wf"
        path.write_bytes(seeds.files()[name])
        done = subprocess.run([program, path], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


# JSON


def constant_file(text):
    """A file with a constant tensor whose value is some text in the directory, beside a coded one."""
    parts = take_apart(attacks.codebook_file())
    parts.directory["entries"].append(["c", "float64", [2], "c", "VALUE"])
    made = json.dumps(parts.directory).replace('"VALUE"', text)
    return with_text(made.encode(), parts.chunks)


def midpoint(random):
    """A number half-way between two of single precision, or a little beside that."""
    bits = random.randrange(1, 0x7F7FFFFF)
    one, other = (float(np.array(n, np.uint32).view(np.float32)) for n in (bits, bits + 1))
    return f"{(one + other) / 2:.120e}" + random.choice(("", "0", "1")) if random.random() < 0.5 else repr(one * 1.5)


def test_numbers_are_read_to_the_nearest(reader):
    random = Random(0)
    known = ["0", "-0", "-0.0", "0e9", "1e400", "-1e400", "1e-400", "1e-99999999999999999999", "0e99999999999999999999",
             "9" * 400, "9" * 4300, "9" * 4301, "1" + "0" * 38, "340282356779733661637539395458142568447", "1.", ".5",
             "01", "-", "+1", "1e", "1e+", "1E5", "1e-5", "NaN", "Infinity", "0x1", "5e-324", "2.4703282292062327e-324",
             "0." + "0" * 400 + "1e401", "1" * 900 + "e-880", str(2**1024 - 2**971), str(2**1024 - 2**971 + 1),
             str(2**1024 - 2**971 - 1), "1.7976931348623159e308", "1.7976931348623158e308"]  # fmt: skip
    for text in [*known, *(midpoint(random).replace("e", random.choice("eE"), 1) for _ in range(60))]:
        if "inf" not in text:
            expect_alike(reader, constant_file(text))


TEXTS = [
    rb'"a\u00e9"', rb'"\ud800"', rb'"\ud83d\ude00"', rb'"\udc00"', b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"',
    b'"a\x01"', b'"\x7f"', rb'"\x"', rb'"\/\"\\\b\f\n\r\t"', rb'"\u0000"', b'"\xf4\x90\x80\x80"', b'"\xc3\xa9"',
    rb'"\ud83dx"', rb'"\ud83d\u0041"', rb'"\uD83D\uDE00"', rb'"\u00G0"', b'"\xe2\x82"', b'"\xe0\x80\x80"',
    b'"\xf0\x80\x80\x80"', b'"\xf0\x9f\x98\x80"', b'"\xf8\x88\x80\x80\x80"', b'"a', b'"\\', b"null", b"1",
]  # fmt: skip
DIRECTORIES = [
    b'{"entries":[],"tensors":[],"chunks":[]}', b' \t\r\n{ "entries" : [ ] , "tensors":[],"chunks":[] } \n',
    b'{"entries":[],"tensors":[],"chunks":[],}', b'{"entries":[],"tensors":[],"chunks":[]}x', b"", b"[]", b"{}",
    b'{"entries":[],"tensors":[]}', b'{"entries":[],"tensors":[],"chunks":[],"other":1}',
    rb'{"\u0065ntries":[],"tensors":[],"chunks":[]}', b'{"entries":[],"entries":[],"tensors":[],"chunks":[]}',
    b'{"entries":[["w","float32",[]]],"entries":[],"tensors":[["u",0,0,0]],"tensors":[],"chunks":[]}',
    b'{"entries":[["w",7,[]]],"entries":[],"tensors":[],"chunks":[]}', b'{"entries":null,"tensors":[],"chunks":[]}',
    b'{"entries":[],"tensors":[],"chunks":[],"limit":null}', b'{"entries":[],"tensors":[],"chunks":[],"tables":null}',
    b'{"entries":[,],"tensors":[],"chunks":[]}', b'{"entries":[["w","float32",[0],"x",""],],"tensors":[],"chunks":[]}',
    b'{"entries":[["w","float32",[0],"x","",1]],"tensors":[],"chunks":[]}', b'{"entries":[]"tensors":[],"chunks":[]}',
    b'{"entries":[["w","float32",[0.0],"x",""]],"tensors":[],"chunks":[]}', b"\xef\xbb\xbf{}", b'{entries:[]}',
    b'{"entries":[["w","float32",[0],"x",""]],"tensors":[],"chunks":[]}\0', b'{"entries":[["w","float32",[0],"x"',
]  # fmt: skip


def test_texts_are_read_as_the_package_reads_them(reader):
    verdicts = [expect_alike(reader, with_text(text, [])) for text in DIRECTORIES]
    assert 4 < sum(verdicts) < len(verdicts)
    for text in TEXTS:
        for form in (
            b'{"entries":[[%s,"float32",[0],"x",""]],"tensors":[],"chunks":[]}',
            b'{"entries":[],"tensors":[],"chunks":[],"producer":%s}',
            b'{"entries":[],"tensors":[],"chunks":[],"limit":[1,%s,[]]}',
            b'{"entries":[["w","float32",[0],"x",%s]],"tensors":[],"chunks":[]}',
        ):
            expect_alike(reader, with_text(form % text, []))


# Frames of zstandard


def contents(random):
    """Bytes of many kinds."""
    kind, size = random.randrange(6), random.choice((0, 1, 5, 100, 1000, 20_000, 300_000))
    if kind == 0:
        return random.randbytes(size)
    if kind == 1:
        return bytes([random.randrange(256)]) * size
    if kind == 2:
        return np.random.default_rng(size).standard_normal(size // 4).astype(np.float32).tobytes()
    if kind == 3:
        return bytes(random.choices(range(256), [1.5**-n for n in range(256)], k=size))
    if kind == 4:
        words = [random.randbytes(random.randrange(1, 30)) for _ in range(50)]
        return b"".join(random.choices(words, k=1 + size // 15))[:size]
    return np.arange(size // 8, dtype=np.int64).tobytes()


def test_frames_of_every_kind_are_unpacked(reader):
    random = Random(0)
    for _ in range(150):
        raw, level = contents(random), random.choice((-5, -1, 1, 2, 3, 5, 7, 9, 13, 16, 19, 22))
        named = random.random() < 0.7
        options = {"write_checksum": random.random() < 0.5, "write_content_size": named}
        if len(raw) > 50_000:
            level = min(level, 9)
        frame = zstandard.ZstdCompressor(level=level, **options).compress(raw)
        assert reader.unpacked(frame, len(raw), named) == raw
        with pytest.raises(Refused):
            reader.unpacked(frame + b"\0", len(raw), named)
        with pytest.raises(Refused):
            reader.unpacked(frame[:-1], len(raw), named)
        for size in {len(raw) + 1, max(0, len(raw) - 1)} - {len(raw)}:
            with pytest.raises(Refused):
                reader.unpacked(frame, size, named)
        with pytest.raises(Refused):
            reader.unpacked(b"\x50" + frame[1:], len(raw), named)


def test_damaged_frames_are_refused_or_unpacked_alike(reader):
    random, both, stricter = Random(1), 0, 0
    for number in range(1500):
        raw = contents(random)[:3000]
        options = {"write_checksum": random.random() < 0.2, "write_content_size": number % 2 == 0}
        frame = bytearray(zstandard.ZstdCompressor(level=random.choice((1, 5, 19)), **options).compress(raw))
        for _ in range(random.choice((1, 1, 2, 5))):
            frame[random.randrange(4, len(frame))] = random.randrange(256)
        try:
            expected = decompressed(bytes(frame), len(raw) + 1)
        except FormatError:
            expected = None
        try:
            found = reader.unpacked(frame, len(raw))
        except Refused:
            stricter += expected is not None and len(expected) == len(raw) > 0
            continue
        assert found == expected or not raw
        both += 1
    assert both > 100
    assert stricter < 150  # the library may read on where a stream of a Huffman code has ended, into the one before it


# What is around the library


def test_tables_are_those_of_the_package():
    done = subprocess.run([sys.executable, SOURCES / "tables.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["mixed", "exact", "lanes"])
def test_a_program_writes_safetensors(programs, tmp_path, name):
    data = seeds.files()[name]
    parts = take_apart(data)
    kept = [line for line in parts.directory["entries"] if line[1] not in ("complex32", "complex128")]
    path, out = tmp_path / "in.wf", tmp_path / "out.safetensors"
    path.write_bytes(data)
    done = subprocess.run([programs / "wf2safetensors", path, out], capture_output=True, text=True)
    if len(kept) < len(parts.directory["entries"]):
        assert (done.returncode, done.stderr) == (
            1,
            f"{path}: a tensor has a type that safetensors does not know\n",
        )
        return
    assert (done.returncode, done.stderr) == (0, "")
    found, expected = safetensors.torch.load_file(out), waterfill.decompress(path)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        assert exact_bytes(found[key]) == exact_bytes(tensor)


def test_programs_name_what_is_wrong_and_leave_nothing(programs, tmp_path):
    path = tmp_path / "in.wf"
    path.write_bytes(attacks.GOOD[:-1])
    for program in ("wf2safetensors", "wf2c"):
        done = subprocess.run([programs / program, path, tmp_path / "out"], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{path}: the file has {len(attacks.GOOD) - 1} bytes, but")
        assert subprocess.run([programs / program], capture_output=True).returncode == 2
    assert [each.name for each in tmp_path.iterdir()] == ["in.wf"]


@pytest.mark.parametrize("program", ["wf2safetensors", "wf2c"])
def test_programs_leave_nothing_where_there_is_no_room(programs, tmp_path, program):
    path = tmp_path / "in.wf"
    path.write_bytes((seeds.GOLDEN / "exact.wf").read_bytes())

    def with_little_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    line = [programs / program, path, tmp_path / "out"]
    done = subprocess.run(line, capture_output=True, text=True, preexec_fn=with_little_room)
    assert done.returncode == 1 and str(tmp_path / "out") in done.stderr and done.stderr.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["in.wf"]


USE = """
#include "waterfill.h"
#include "small_net.h"
#include <stdio.h>
#include <stdlib.h>
static void *allocate(void *context, size_t size) { (void)context; return malloc(size); }
static void release(void *context, void *memory, size_t size) { (void)context; (void)size; free(memory); }
int main(void) {
    wf_source source = {small_net, sizeof small_net, NULL, NULL, 0};
    wf_allocator allocator = {allocate, release, NULL, 0};
    wf_error error;
    wf_file *file;
    static float weights[240];
    if (wf_open(&file, &source, &allocator, 0, &error) != WF_OK) return 1;
    if (wf_decode(file, NULL, wf_find(file, "5.weight", 8), WF_FLOAT32, weights, sizeof weights, &error)) return 1;
    wf_close(file);
    return fwrite(weights, 1, sizeof weights, stdout) != sizeof weights;
}
"""


def test_a_program_writes_an_array_that_a_program_can_use(programs, tmp_path):
    golden = seeds.GOLDEN / "down.wf"
    subprocess.run([programs / "wf2c", golden, tmp_path / "small-net.h"], check=True)
    (tmp_path / "small-net.h").rename(tmp_path / "small_net.h")
    (tmp_path / "use.c").write_text(USE)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{SOURCES}", f"-I{tmp_path}"]
    command = [COMPILER, *flags, tmp_path / "use.c", programs / "libwaterfill.a", "-o", tmp_path / "use"]
    subprocess.run(command, check=True)
    done = subprocess.run([tmp_path / "use"], capture_output=True, check=True)
    assert done.stdout == exact_bytes(waterfill.decompress(golden)["5.weight"])
    assert struct.unpack("<f", done.stdout[:4])[0] != 0
