"""The readers beside each other: nanoseconds a value on one core, bytes of an installation, seconds of the commands.

    python benchmarks/readers.py              measures all (five minutes)
    python benchmarks/readers.py speed        one section: speed, install, size or device

Installations are made in environments of their own, with packages of the index that pip knows.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

import results
import waterfill
from pace import best
from results import Section
from waterfill import quantize, zoo
from waterfill.codec import container, native
from waterfill.codec.lines import ChunkLine
from waterfill.io.file import ArrayFile
from waterfill.zoo.folder import data_folder

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
TIMES = 9

TEXT = """Files are read by the reader in C (`decoders/c`, as a module of Python), by kernels of numba, and by plain
Python and NumPy where neither is there. All give the same bits."""

SPEED = """From the bytes of a file to arrays, opening and checksums included, on one thread: the least CPU time of
nine runs that took turns, and the ratio of both. Kernels were compiled before."""

INSTALL = """A file of ResNet-20 at 3 bit (100 kB), read in environments of their own: CPU seconds of whole
commands, with imports. *First* is the first call in an environment whose caches are empty; *then* the least of three
calls after it. *MB* is all of `site-packages` but pip and setuptools."""

SIZE = """Object code of `decoders/c` at `-Os`, with its texts; tables of exceptions are left out. *Small* is
`-DWF_SMALL`: symbols one after the other, no vectors, errors as codes without texts, checksums byte by byte. *Plain* is
`-DWF_PLAIN` as well: it reads files of `compress --plain` alone. A linker leaves out what a program does not call."""

DEVICE = """The net of `waterfill demo` and ResNet-20 at 3 bit, decoded by an emulated Cortex-M4 (`decoders/c/device`),
as they were written and as plain files with the same symbols: bytes, and how much larger the plain file is; whether the
CRC-32 of every tensor is that of the package; bytes that the reader had from its allocator, with the file open and at
most; stack; instructions."""

SMALL = ["-DWF_SMALL"]
PLAIN = [*SMALL, "-DWF_PLAIN"]
READER = ROOT / "decoders" / "c"
KEPT = (".text", ".rodata", ".data")
"""Sections that a program has in memory."""
TABLES = {
    "wf_bank_bytes", "wf_bank_places", "wf_half_bytes", "wf_half_places", "wf_zero_bytes", "wf_zero_places", "wf_odds",
    "wf_phrases", "wf_octave", "wf_crc", "wf_crc_ahead", "wf_cosines",
}  # fmt: skip

READERS = {"C": (), "numba": ("numba",), "NumPy": ()}
"""Packages besides those that the wheel brings; the reader in C, which is in it, is removed but for the first."""


# Speed


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """A file of every kind of code."""
    for name, model, options in kinds():
        path = folder / f"{name}.wf"
        waterfill.compress(model, effort="fast", **options).save(path)
        yield name, path


def kinds() -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Name, model and options of compression."""
    torch.manual_seed(0)
    wide = nn.Linear(2048, 2048, bias=False)
    small = nn.Sequential(*(nn.Linear(256, 192, bias=False) for _ in range(16)))
    sparse, sparser = nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 1024, bias=False)
    with torch.no_grad():
        for model in (wide, small, sparse, sparser):
            for weight in model.parameters():
                weight.copy_(0.02 * torch.randn(weight.shape) * torch.exp(0.3 * torch.randn(len(weight), 1)))
        sparse.weight.mul_(torch.rand(sparse.weight.shape) < 0.08)
        sparser.weight.mul_(torch.rand(sparser.weight.shape) < 0.01)
    yield "paths with 32 lanes", wide, {"rate": 3, "quantizers": [quantize.Trellis(8)]}
    yield "paths", small, {"rate": 3, "quantizers": [quantize.Trellis(8)]}
    yield "scalar", wide, {"rate": 3, "quantizers": [quantize.Scalar()]}
    yield "8 % not zero", sparse, {"rate": 0.5}
    yield "1 % not zero", sparser, {"rate": 0.1}
    if (data_folder() / "README.md").exists():
        yield "ResNet-20", zoo.resnet20(), {"rate": 3}


def speed(folder: Path) -> Section:
    """CPU time a value of the reader in C and of the kernels."""
    if not native.is_there():
        sys.exit("the reader in C was not built; expected an installation that has it: pip install --editable .")
    return Section("Speed", SPEED, [_compared(name, path) for name, path in files(folder)])


def _compared(name: str, path: Path) -> Row:
    data = path.read_bytes()
    with ArrayFile(data) as file:
        values = sum(tensor.array.size for _, tensor in file.tensors())
    ways: tuple[Callable[[], object], ...] = (lambda: _read(data), lambda: _by_kernels(data))
    least = [float("inf")] * 2
    for _ in range(TIMES):
        least = [min(known, best(way, 1, time.process_time)) for known, way in zip(least, ways, strict=True)]
    c, numba = (1e9 * seconds / values for seconds in least)
    return {
        "code": name, "values": values, "bit/value": 8 * len(data) / values, "C, ns/value": c,
        "numba, ns/value": numba, "C / numba": c / numba,
    }  # fmt: skip


def _read(data: bytes) -> None:
    with ArrayFile(data, threads=1) as file:
        dict(file.tensors())


def _by_kernels(data: bytes) -> None:
    with native.switched_off():
        _read(data)


# Installation


def install(folder: Path) -> Section:
    """What an installation takes, and how long commands run in it."""
    wheel, path = _wheel(folder), folder / "resnet20.wf"
    waterfill.compress(zoo.resnet20(), zoo.cifar10_calibration(), rate=3, effort="fast").save(path)
    rows = [_installed(folder, name, extra, wheel, path) for name, extra in READERS.items()]
    return Section("Installed", INSTALL, rows)


def _wheel(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(pip, check=True)
    (found,) = folder.glob("*.whl")
    return found


def _installed(folder: Path, name: str, extra: tuple[str, ...], wheel: Path, path: Path) -> Row:
    place = folder / f"with-{name}"  # without spaces, which programs may not have in their first line
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel, *extra], check=True, env=_surroundings())
    (packages,) = place.glob("lib/*/site-packages")
    if name != "C":
        for module in packages.glob("waterfill/codec/_native*.so"):
            module.unlink()
    row: Row = {"reader": name, "MB": _megabytes(packages)}
    for command in (["inspect"], ["decompress", "--force", "-o", str(folder / "out.safetensors")]):
        seconds = [_seconds([place / "bin" / "waterfill", command[0], path, *command[1:]]) for _ in range(4)]
        row |= {f"{command[0]}, first, CPU s": seconds[0], f"{command[0]}, then, CPU s": min(seconds[1:])}
    shutil.rmtree(place)
    return row


def _megabytes(packages: Path) -> float:
    apart = ("pip", "setuptools", "_distutils_hack", "pkg_resources", "distutils-precedence.pth")
    every = (path for top in packages.iterdir() if not top.name.startswith(apart) for path in [top, *top.rglob("*")])
    return sum(path.stat().st_size for path in every if path.is_file() and "__pycache__" not in path.parts) / 1e6


def _seconds(command: list[Any]) -> float:
    """CPU seconds of a command and all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=_surroundings())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _surroundings() -> dict[str, str]:
    """The environment without what this process was started with for itself."""
    own = ("PYTHON", "NUMBA", "OMP", "MKL", "OPENBLAS")
    return {key: value for key, value in os.environ.items() if not key.startswith(own)}


# Size

CORTEX_M4 = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"]
MACHINES = {
    "x86-64": (["gcc"], []),
    "x86-64, small": (["gcc"], SMALL),
    "x86-64, plain": (["gcc"], PLAIN),
    "Thumb-2 (Cortex-M4), small": (CORTEX_M4, SMALL),
    "Thumb-2 (Cortex-M4), plain": (CORTEX_M4, PLAIN),
}  # fmt: skip
"""Compilers with their options, and what is left out."""


def size(folder: Path) -> Section:
    """Bytes of the library in C, for every compiler that is there."""
    rows = []
    for name, (compiler, options) in MACHINES.items():
        if shutil.which(compiler[0]):
            rows.append({"for": name} | _sizes(folder, [*compiler, *options]))
    return Section("Size", SIZE, rows)


def _sizes(folder: Path, command: list[str]) -> Row:
    found = {"zstandard": 0, "all else": 0, "frozen tables": 0}
    for source in sorted([READER / "waterfill.c", *READER.glob("wf_*.c")]):
        made = folder / f"{source.stem}.o"
        options = ["-Os", "-std=c99", "-ffp-contract=off", "-fno-asynchronous-unwind-tables", f"-I{READER}"]
        subprocess.run([*command, *options, "-c", source, "-o", made], check=True)
        tables = sum(int(line[1], 16) for line in _lines("nm", "-S", made) if len(line) == 4 and line[3] in TABLES)
        every = sum(int(line[1]) for line in _lines("size", "-A", made) if len(line) == 3 and line[0].startswith(KEPT))
        found["frozen tables"] += tables
        found["zstandard" if source.stem == "wf_zstd" else "all else"] += every - tables
    return {f"{name}, bytes": number for name, number in found.items()}


def _lines(*command: object) -> list[list[str]]:
    done = subprocess.run([str(each) for each in command], check=True, capture_output=True, text=True)
    return [line.split() for line in done.stdout.splitlines()]


# On a device


def device(folder: Path) -> Section:
    """What a file takes on an emulated Cortex-M4, and whether its tensors are those of the package."""
    subprocess.run([sys.executable, "-m", "waterfill", "demo"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    files = {"digits": folder / "demo-output" / "digits.wf", "ResNet-20": folder / "resnet20.wf"}
    if not files["ResNet-20"].exists():
        waterfill.compress(zoo.resnet20(), zoo.cifar10_calibration(), rate=3, effort="fast").save(files["ResNet-20"])
    rows = []
    for name, path in files.items():
        plain = path.with_suffix(".plain.wf")
        plain.write_bytes(_plain(path.read_bytes()))
        rows += [_on_device(folder, name, path), _on_device(folder, f"{name}, plain", plain)]
        rows[-1]["larger, %"] = 100 * (rows[-1]["bytes"] / rows[-2]["bytes"] - 1)
    return Section("On a device", DEVICE, rows)


def _plain(data: bytes) -> bytes:
    """The file as `compress --plain` writes these symbols."""
    with ArrayFile(data) as file:
        directory, opened = file.container._directory, file.container
        chunks = [
            opened.exact(n) if line.kind == "x" else bytes(opened.chunk(n)) for n, line in enumerate(directory.chunks)
        ]
    lines = [ChunkLine(line.kind, len(chunk), zlib.crc32(chunk), line.count)
             for line, chunk in zip(directory.chunks, chunks, strict=True)]  # fmt: skip
    head = container._header_and_directory(msgspec.structs.replace(directory, chunks=tuple(lines)), plain=True)
    return head + b"".join(chunks)


def _on_device(folder: Path, name: str, path: Path) -> Row:
    plain = "1" if name.endswith("plain") else ""
    line = ["make", "-C", str(READER / "device"), f"BUILD={folder}/device{plain}", f"MODEL={path}", f"PLAIN={plain}"]
    line.append("run")
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"^([a-z, ]+): (\d+)$", said, re.MULTILINE)}
    found = [(name, int(crc)) for name, _, crc in re.findall(r"^(\S+) (\d+) (\d+)$", said, re.MULTILINE)]
    with ArrayFile(path) as file:
        same = found == [(name, zlib.crc32(values.elements())) for name, values in file.tensors()]
        values = file.floating_values
    row = {"network": name, "bytes": path.stat().st_size, "larger, %": "", "values": values, "bits equal": same}
    return row | numbers


SECTIONS = {"speed": speed, "install": install, "size": size, "device": device}
TITLES = {"speed": "Speed", "install": "Installed", "size": "Size", "device": "On a device"}
TEXTS = {"Speed": SPEED, "Installed": INSTALL, "Size": SIZE, "On a device": DEVICE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", choices=SECTIONS)
    asked = parser.parse_args().section
    names = list(SECTIONS) if asked is None else [asked]
    with tempfile.TemporaryDirectory() as folder:
        made = {TITLES[name]: SECTIONS[name](Path(folder)) for name in names}
    kept = {} if asked is None else results.read("readers")
    texts = {
        title: Section(title, TEXTS[title], kept[title])
        for title in TITLES.values()
        if title in kept and title not in made
    }
    sections = [{**texts, **made}[title] for title in TITLES.values() if title in texts or title in made]
    results.write_page("readers", "Readers", TEXT, sections, measured=list(made))


if __name__ == "__main__":
    main()
