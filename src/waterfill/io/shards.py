"""Safetensors shards: which there are, where every tensor lies, and how they are written without holding them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from waterfill.codec.opened import FilePart, OpenFile
from waterfill.errors import FormatError, WaterfillError
from waterfill.file_system import DISK, is_file
from waterfill.io.arrays import STORAGE
from waterfill.io.configuration import inside, read_object

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""A model of so many bytes and more is written in shards that are smaller, as transformers does."""

TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
"""The types of safetensors that PyTorch has, by their names in the file."""
NAMES = {dtype: name for name, dtype in TYPES.items()}

LONGEST_NAME = 255
"""Bytes of the name of a file, at most."""
LARGEST_SHAPE = 1 << 62
"""Values of a tensor, at most, where axes of length 0 count as 1."""

_LARGEST_HEADER = 100_000_000
_LENGTH = struct.Struct("<Q")
FRAMEWORK = {"format": "pt"}
"""What transformers wants a safetensors file to say of itself."""
_METADATA = "__metadata__"
"""What a safetensors file says of itself, under this name among its tensors."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        path: the shard.
        shape: its shape.
        dtype: its type, by the name that safetensors has for it.
        start: its first byte in the file.
        size: its bytes.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    start: int
    size: int


# Reading


def places(directory: Path) -> dict[str, Place]:
    """Where every tensor of a model directory lies, by its shards and their index; reads only headers.

    Raises:
        WaterfillError: there are no safetensors files, or one cannot be read.
        FormatError: a shard is missing or damaged, or lacks a tensor that the index names.
    """
    if is_file(directory / WHOLE):
        return header(directory / WHOLE)
    if not is_file(directory / INDEX):
        raise WaterfillError(
            f"Model directory {directory} has neither {WHOLE} nor {INDEX}; expected the weights of a Hugging Face "
            "model. Name the directory that has them, or download the model again."
        )
    return indexed(directory / INDEX)


def indexed(path: Path) -> dict[str, Place]:
    """Where every tensor of an index lies, in the shards beside it; reads only headers.

    Raises:
        WaterfillError: a shard cannot be read.
        FormatError: it is no index; or a shard is missing or damaged, or lacks a tensor that the index names.
    """
    named = _index(path)
    found: dict[str, Place] = {}
    for shard in dict.fromkeys(named.values()):
        if not is_file(path.with_name(shard)):
            raise FormatError(
                f"{path} names the shard {shard}, which is missing; expected it beside the index. "
                "Download the model again."
            )
        there = header(path.with_name(shard))
        lacking = [name for name, of in named.items() if of == shard and name not in there]
        if lacking:
            raise FormatError(
                f"{path.with_name(shard)} lacks the tensor {lacking[0]!r}, which {path.name} says it has "
                f"({len(lacking)} tensors in all). Download the model again."
            )
        found.update({name: place for name, place in there.items() if named.get(name, shard) == shard})
    return found


def _index(path: Path) -> dict[str, str]:
    """The shard of every tensor.

    Raises:
        FormatError: it is no index, or names a file in another folder.
    """
    named = read_object(path).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(shard, str) for shard in named.values()):
        raise FormatError(f"{path} has no weight_map from tensors to shards. Download the model again.")
    for shard in set(named.values()):
        if Path(shard).name != shard or not shard.endswith(".safetensors") or len(shard.encode()) > LONGEST_NAME:
            raise FormatError(f"{path} names {shard!r}; expected a .safetensors file in the same directory.")
    return named


def header(path: Path) -> dict[str, Place]:
    """The tensors of one safetensors file, in the order of their bytes.

    Raises:
        FormatError: the file is damaged or of another kind.
        WaterfillError: it cannot be read.
    """
    size, end, lines = _lines(path)
    try:
        found = {name: _place(path, line, end) for name, line in lines.items() if name != _METADATA}
    except (ValueError, KeyError, TypeError) as error:
        raise _no_shard(path) from error
    found = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].size)))
    for name, place in found.items():
        if place.start != end or place.size != _bytes(place):
            raise FormatError(f"{path} is damaged: tensor {name!r} is not where it should be. Copy it again.")
        end += place.size
    if end != size:
        raise FormatError(f"{path} has {size} bytes, but its header needs {end}: it is cut or damaged. Copy it again.")
    return found


def metadata(path: Path) -> dict[str, Any]:
    """What a safetensors file says of itself.

    Raises:
        FormatError: the file is damaged or of another kind.
        WaterfillError: it cannot be read.
    """
    found = _lines(path)[2].get(_METADATA, {})
    if not isinstance(found, dict):
        raise _no_shard(path)
    return found


def _lines(path: Path) -> tuple[int, int, dict[str, Any]]:
    """The bytes of a safetensors file, where its header ends, and what that says."""
    inside(path, path.parent)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = _LENGTH.unpack(file.read(8).ljust(8, b"\xff"))[0]
            text = file.read(length) if length <= min(size, _LARGEST_HEADER) else b""
    except OSError as error:
        raise WaterfillError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
    try:
        lines = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_shard(path) from error
    if not isinstance(lines, dict):
        raise _no_shard(path)
    return size, 8 + length, lines


def _no_shard(path: Path) -> FormatError:
    return FormatError(f"{path} is no safetensors file, or a damaged one. Copy or download it again.")


def _place(path: Path, line: dict[str, Any], base: int) -> Place:
    start, stop = line["data_offsets"]
    shape = tuple(line["shape"])
    if not all(isinstance(each, int) and each >= 0 for each in (start, stop, *shape)):
        raise ValueError("negative")
    if math.prod(max(1, each) for each in shape) > LARGEST_SHAPE:
        raise ValueError("too large")
    return Place(path, shape, str(line["dtype"]), base + start, stop - start)


def _bytes(place: Place) -> int:
    """The bytes that a tensor of that type and shape has; of a type that PyTorch lacks, what it says."""
    if place.dtype not in TYPES:
        return place.size
    return math.prod(place.shape) * STORAGE[TYPES[place.dtype]].itemsize


class OpenShards:
    """Files that are opened when they are first asked for."""

    def __init__(self) -> None:
        self._files: dict[Path, OpenFile] = {}

    def part(self, place: Place) -> FilePart:
        """The bytes of a tensor, which are read when they are looked at.

        Raises:
            FormatError: the file has been cut since its header was read.
            WaterfillError: it cannot be read.
        """
        try:
            file = self._files.get(place.path) or self._files.setdefault(place.path, OpenFile(place.path))
        except OSError as error:
            raise WaterfillError(f"{place.path} cannot be read ({error.strerror}); check its permissions.") from error
        if file.size < place.start + place.size:
            raise FormatError(f"{place.path} was cut while it was open. Copy it again.")
        return FilePart(file, place.start, place.size)


# Writing


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: its type, by the name that PyTorch has for it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * STORAGE[self.dtype].itemsize


class ShardWriter:
    """Writes the shards of a directory whose tensors are known beforehand, in any order of the values.

    Example:
        >>> with ShardWriter(folder, planned) as shards:  # doctest: +SKIP
        ...     for name, data in payloads:
        ...         shards.write(name, data)
    """

    def __init__(
        self,
        folder: Path,
        planned: Iterable[Planned],
        largest: int = SHARD_BYTES,
        *,
        stem: str = "model",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Plan the shards; files are made on entry.

        Args:
            folder: where to write.
            planned: the tensors, in order.
            largest: below so many bytes in all there is one shard; otherwise each is below.
            stem: what the names of all files begin with.
            metadata: what every shard says of itself besides its format.

        Raises:
            WaterfillError: a tensor has a type that safetensors does not know.
        """
        self._folder, self._stem = folder, stem
        self._metadata = FRAMEWORK | dict(metadata or {})
        self._shards = _shards(planned, largest)
        self._files: dict[str, BinaryIO] = {}
        self._places: dict[str, tuple[str, int, int]] = {}

    def __enter__(self) -> ShardWriter:
        for number, shard in enumerate(self._shards, 1):
            count = len(self._shards)
            part = "" if count == 1 else f"-{number:05d}-of-{count:05d}"
            file = f"{self._stem}{part}.safetensors"
            head, offsets = file_head(shard, self._metadata)
            self._files[file] = DISK.make_file(self._folder / file)
            DISK.write(self._files[file], head)
            self._places |= {
                each.name: (file, len(head) + offset, each.size) for each, offset in zip(shard, offsets, strict=True)
            }
        return self

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the bytes of one tensor."""
        file, start, size = self._places[name]
        target = self._files[file]
        target.seek(start)
        for chunk in chunks:
            DISK.write(target, chunk)
        if target.tell() != start + size:
            raise ValueError(f"{name!r} has {target.tell() - start} bytes instead of {size}")

    @property
    def entrance(self) -> str:
        """The file that leads to all tensors: the only shard, or the index."""
        return f"{self._stem}.safetensors" if len(self._shards) == 1 else f"{self._stem}.safetensors.index.json"

    def finish(self) -> int:
        """Write the index, and all files to the disk; returns the bytes of all."""
        files = list(self._files)
        if len(files) > 1:
            index = {
                "metadata": {"total_size": sum(each.size for shard in self._shards for each in shard)},
                "weight_map": {name: file for name, (file, _, _) in sorted(self._places.items())},
            }
            DISK.save(self._folder / self.entrance, f"{json.dumps(index, indent=2)}\n".encode())
            files.append(self.entrance)
        for file in self._files.values():
            DISK.sync(file)
        return sum((self._folder / file).stat().st_size for file in files)

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()


def _shards(planned: Iterable[Planned], largest: int) -> list[list[Planned]]:
    """The tensors of every shard."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for each in planned:
        if each.dtype not in NAMES:
            raise WaterfillError(
                f"Tensor {each.name!r} has the type {each.dtype}, which safetensors does not know; convert it first."
            )
        if shards[-1] and size + each.size >= largest:
            shards.append([])
            size = 0
        shards[-1].append(each)
        size += each.size
    return [widest_first(shard) for shard in shards]


def widest_first(planned: Iterable[Planned]) -> list[Planned]:
    """Tensors in an order in which all are aligned: those with wide elements first."""
    return sorted(planned, key=lambda each: -STORAGE[each.dtype].itemsize)


def file_head(shard: list[Planned], metadata: Mapping[str, str]) -> tuple[bytes, list[int]]:
    """The header of a safetensors file, and where each tensor begins after it."""
    lines: dict[str, Any] = {_METADATA: dict(metadata)}
    offsets, at = [], 0
    for each in shard:
        lines[each.name] = {
            "dtype": NAMES[each.dtype],
            "shape": list(each.shape),
            "data_offsets": [at, at + each.size],
        }
        offsets.append(at)
        at += each.size
    text = json.dumps(lines, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text, offsets
