"""The reader in C with and without vectors, and for another processor: paths with lanes of every shape."""

import shutil

import numpy as np
import pytest

from codec.test_lanes import SHAPES, piece, scaled
from decoders import c_reader
from decoders.c_reader import SANITIZED, Reader
from fuzz.anatomy import put_together, take_apart
from waterfill.codec import container, native
from waterfill.errors import FormatError
from waterfill.io.file import ArrayFile
from waterfill.records import Coded, Entry, Lanes, Quantized, Spread, Uniform

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FOREIGN, EMULATOR = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
BUILDS = {
    "vectors": SANITIZED,
    "scalar": [*SANITIZED, "-DWF_SCALAR"],
    "small": [*SANITIZED, "-DWF_SCALAR", "-DWF_SMALL"],
}


@pytest.fixture(scope="module", params=[*BUILDS, "aarch64"])
def reader(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    if request.param == "aarch64":
        if FOREIGN is None or EMULATOR is None:
            pytest.skip("there is no compiler or no emulator for aarch64")
        program = c_reader.built(folder, FOREIGN, ["-O2", "-static"])
        runner = folder / "run"
        runner.write_text(f'#!/bin/sh\nexec {EMULATOR} {program} "$@"\n')
        runner.chmod(0o755)
        program = str(runner)
    elif COMPILER is None:
        pytest.skip("there is no C compiler")
    else:
        program = c_reader.built(folder, COMPILER, c_reader.supported(folder, COMPILER, BUILDS[request.param]))
    with Reader(program) as found:
        yield found


def files():
    """Files of one tensor each."""
    wide = ((64, 50), (300, 33), (33, 300))
    for shape in (*SHAPES, *wide):
        spreads = {"even": None, "scaled": scaled(shape), "low bits": Spread(5, 120), "narrow": Spread(5, 8)}
        for number, (name, spread) in enumerate(spreads.items()):
            lanes, down, zero = Lanes((8, 32)[number % 2], 2), number % 3 == 1, number > 1
            for largest in (9, 100_000):
                known = {"down": down, "zero": zero, "spread": spread, "largest": largest}
                levels, layout, coded = piece(shape, lanes, **known)
                matrix = levels.reshape(shape[::-1]).T if down else levels.reshape(shape)
                rows = np.arange(shape[0], dtype=np.int8) % 5 - 2
                rule = Uniform(-200, 0, (3, -2, 9), rows, np.arange(shape[1], dtype=np.int8) % 3)
                item = Quantized(np.ascontiguousarray(matrix), rule, coded)
                entry = Entry("w", shape, "float32", Coded(layout))
                yield f"{name} {shape} {largest}", container.pack((entry,), {"w": item}, {}, "test").data


def by_package(data):
    """The elements of the tensor, or the text of the error."""
    try:
        with native.switched_off(), ArrayFile(data, threads=1) as file:
            return bytes(file["w"].elements())
    except FormatError as error:
        return str(error).removeprefix("the data: ")


def by_reader(reader, data):
    try:
        return reader.tensors(data)["w"][2]
    except c_reader.Refused as error:
        return str(error)


def test_lanes_are_read_with_the_bits_of_the_package(reader):
    for name, data in files():
        assert by_reader(reader, data) == by_package(data), name


def test_streams_of_lanes_that_are_damaged_are_read_or_refused_alike(reader):
    refused = 0
    for name, data in list(files())[::7]:
        parts = take_apart(data)
        chunk = parts.chunks[-1]
        for at in (9, len(chunk) // 2 + 3):
            parts.chunks[-1] = chunk[:-at] + bytes([chunk[-at] ^ 1]) + chunk[len(chunk) - at + 1 :]
            bad = put_together(parts)
            found = by_reader(reader, bad)
            expected = by_package(bad)
            assert found == expected or (isinstance(found, str) and isinstance(expected, str)), name
            refused += isinstance(found, str)
    assert refused > 5
