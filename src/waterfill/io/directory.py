"""Read a compressed directory, tensor by tensor or group by group."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from waterfill.codec.directory import check_original_bytes
from waterfill.codec.opened import FilePart
from waterfill.errors import FormatError
from waterfill.file_system import is_file
from waterfill.io.arrays import TypedArray, empty
from waterfill.io.configuration import METHOD, quantization, read_config
from waterfill.io.digest import KEY, directory_digest, payload_digest
from waterfill.io.file import ArrayFile, FileReader
from waterfill.io.parts import Part as TensorPart
from waterfill.io.parts import Piece, Stored, stored
from waterfill.io.shards import OpenShards, Place, header, indexed, metadata, places
from waterfill.records import Entry, count_floating

T = TypeVar("T")
"""What tensors are given as."""

FORMAT, MINOR = 2, 1
"""Of directories. A reader of a format reads all lower minor versions; without the key that is 0."""
STEM = "waterfill"
"""What the names of the shards begin with; not with what transformers looks for, see `waterfill.bundle.guard`."""

WEIGHTS = (f"{STEM}.safetensors", f"{STEM}.safetensors.index.json")
"""The names that a configuration may give for its weights."""


class GroupLine(msgspec.Struct, frozen=True):
    """What the configuration says of a group: its name, the tensor that holds its payload, and the bytes of that."""

    name: str
    tensor: str
    bytes: int


class Description(msgspec.Struct, frozen=True):
    """What the configuration says of the whole; unknown keys are facts."""

    format: int
    producer: str
    groups: tuple[GroupLine, ...]
    tied: dict[str, str]
    dtype: str | None = None
    weights: str | None = None
    minor: int = 0


def is_bundle(path: str | Path) -> bool:
    """Whether a path is a compressed model directory."""
    directory = Path(path)
    if not is_file(directory / "config.json"):
        return False
    found = quantization(read_config(directory))
    return found is not None and found.get("quant_method") == METHOD


class DirectoryReader(Mapping[str, T]):
    """An open compressed directory, as a mapping from names of the original checkpoint to tensors.

    The configuration, the headers of shards and the directories of all payloads are checked when it is opened; a chunk
    is read, checked and decoded when a tensor in it is asked for. Several threads may read at once. What a tensor is,
    subclasses say.

    Attributes:
        directory: where it is.
        config: what `config.json` says.
        description: what its `quantization_config` says of groups and ties.
    """

    @abstractmethod
    def _file(self, payload: FilePart, label: str, threads: int | None, max_bytes: int | None) -> FileReader[T]:
        """An open payload."""

    @abstractmethod
    def _empty(self, shape: tuple[int, ...], dtype: str) -> T:
        """A tensor without values."""

    def __init__(self, directory: str | Path, *, threads: int | None = None, max_bytes: int | None = None) -> None:
        """Open a directory.

        Args:
            directory: where it is.
            threads: how many threads decode; by default as many as there are processors.
            max_bytes: most bytes that all tensors may take when decoded; by default any number.

        Raises:
            WaterfillError: there is no such directory, or a file cannot be read.
            FormatError: it is no compressed directory, damaged, or its tensors take too many bytes.
        """
        self.directory = Path(directory)
        self.config = read_config(self.directory)
        self.description = _described(self.directory, self.config)
        self._shards = OpenShards()
        inside = self._payload_places()
        self._places = self._group_places(inside)
        self._files = {
            name: self._file(self._part_of_shard(name), self._label(name), threads, max_bytes) for name in self._places
        }
        with _naming(str(self.directory)):
            check_original_bytes(self.entries, max_bytes)
        self._stored = self._tensors()
        self._tied = dict(self._ties())
        self._groups = self._by_group()
        self._check_digest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all files."""
        self._files, self._shards = {}, OpenShards()

    # What there is

    def __iter__(self) -> Iterator[str]:
        yield from self._stored
        yield from self._tied

    def __len__(self) -> int:
        return len(self._stored) + len(self._tied)

    def __contains__(self, name: object) -> bool:
        return name in self._stored or name in self._tied

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in order."""
        return tuple(self._places)

    @property
    def tied(self) -> dict[str, str]:
        """Names of tensors that are equal to another one, and the name of that."""
        return dict(self._tied)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What all payloads say about their tensors and parts, in order."""
        return tuple(entry for file in self._files.values() for entry in file.entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, without decoding it."""
        return {name: self._original(name).shape for name in self}

    @property
    def types(self) -> dict[str, str]:
        """Type of every tensor by the name that PyTorch has for it, without decoding it."""
        return {name: self._original(name).dtype for name in self}

    @property
    def floating_values(self) -> int:
        """Number of floating-point values, tied ones once."""
        return count_floating(self.entries)

    @property
    def size_bytes(self) -> int:
        """Bytes of all payloads."""
        return sum(place.size for place in self._places.values())

    @property
    def facts(self) -> dict[str, Any]:
        """What `quantization_config` says besides groups and ties, such as the rate."""
        known = {"quant_method", *Description.__struct_fields__}
        return {key: value for key, value in (quantization(self.config) or {}).items() if key not in known}

    def file(self, group: str) -> FileReader[T]:
        """The open payload of a group.

        Raises:
            KeyError: there is no such group.
        """
        return self._files[group]

    def payload(self, group: str) -> bytes:
        """The bytes of a group: an ordinary `.wf` file.

        Raises:
            KeyError: there is no such group.
            FormatError: the shard was cut while it was open.
        """
        with _naming(self._label(group)):
            return self._part_of_shard(group)[:]

    def names(self, group: str) -> list[str]:
        """The tensors that come with a group: those whose last part is in it, and what is tied to them.

        Raises:
            KeyError: there is no such group.
        """
        return list(self._groups[group])

    # Values

    def __getitem__(self, name: str) -> T:
        """Decode one tensor.

        Raises:
            KeyError: there is no such tensor.
            FormatError: a payload is damaged.
        """
        return self.decode([name])[name]

    def group(self, name: str) -> dict[str, T]:
        """Decode the tensors that come with a group, in parallel; tied ones are one tensor.

        Raises:
            KeyError: there is no such group.
            FormatError: a payload is damaged.
        """
        return self.decode(self._groups[name])

    def tensors(self) -> Iterator[tuple[str, T]]:
        """Decode everything, group by group; what is not kept by the caller is freed."""
        for group in self.groups:
            yield from self.group(group).items()

    def decode(self, names: Collection[str]) -> dict[str, T]:
        """Decode some tensors, each payload once; tied ones are one tensor.

        Raises:
            KeyError: there is no such tensor.
            FormatError: a payload is damaged.
        """
        found = self._decoded(names, self._empty, lambda _, piece: piece.part is not None)
        return {name: found[self._original(name).name] for name in names}

    def _decoded(
        self,
        names: Collection[str],
        empty: Callable[[tuple[int, ...], str], T],
        is_placed: Callable[[str, Piece], bool],
    ) -> dict[str, T]:
        """The wholes that some tensors are, by the names of these.

        Args:
            names: of the tensors.
            empty: makes a tensor without values.
            is_placed: whether a piece, of the group, is decoded into a tensor that is there before it.
        """
        found: dict[str, T] = {}
        for group, entries in self._wanted(names).items():
            into: dict[str, T] = {}
            for entry, (whole, piece) in entries.items():
                if is_placed(group, piece):
                    if whole.name not in found:
                        found[whole.name] = empty(whole.shape, whole.dtype)
                    into[entry] = self._part(found[whole.name], piece.part)
            with _naming(self._label(group)):
                for entry, tensor in self._files[group].tensors(entries, into):
                    if entry not in into:
                        found[entries[entry][0].name] = tensor
                    elif tensor is not into[entry]:
                        self._copy(tensor, into[entry])
        return found

    def _wanted(self, names: Collection[str]) -> dict[str, dict[str, tuple[Stored, Piece]]]:
        """What some tensors are made from: of every group the entries, with the whole and the piece that each is."""
        wanted: dict[str, dict[str, tuple[Stored, Piece]]] = defaultdict(dict)
        for whole in map(self._original, names):
            for piece in whole.pieces:
                wanted[piece.group][piece.entry] = whole, piece
        return wanted

    @staticmethod
    @abstractmethod
    def _part(whole: T, part: TensorPart | None) -> T:
        """The memory of a part of a tensor."""

    @staticmethod
    @abstractmethod
    def _copy(source: T, into: T) -> None:
        """Copy values."""

    @staticmethod
    @abstractmethod
    def elements(tensor: T) -> memoryview:
        """The bytes of a tensor in row-major order, without a copy where they lie so."""

    def verify(self) -> None:
        """Check the checksums of all that has not been read yet.

        Raises:
            FormatError: a payload is damaged; the text names file and group.
        """
        for file in self._files.values():
            file.verify()

    def fetch(self) -> None:
        """Check all payloads before they are decoded; kernels do not check again a chunk that is decoded next.

        Raises:
            FormatError: a payload is damaged; the text names file and group.
        """
        for file in self._files.values():
            file.fetch()

    # Opening

    def _original(self, name: str) -> Stored:
        return self._stored[self._tied.get(name, name)]

    def _label(self, group: str) -> str:
        return f"{self._places[group].path}, group {group!r}"

    def _payload_places(self) -> dict[str, Place]:
        """Where all payloads lie: in the files that format 2 names, or where an ordinary model has its weights."""
        if self.description.format == 1:
            return places(self.directory)
        path = self.directory / str(self.description.weights)
        if not is_file(path):
            raise FormatError(
                f"{self.directory} lacks {path.name}, which config.json names as its weights. Copy or download the "
                "directory again."
            )
        return indexed(path) if path.suffix == ".json" else header(path)

    def _group_places(self, inside: Mapping[str, Place]) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for line in self.description.groups:
            place = inside.get(line.tensor)
            if place is None:
                raise FormatError(
                    f"{self.directory} has no tensor {line.tensor!r} in its shards, which config.json names for group "
                    f"{line.name!r}. Copy or download the directory again."
                )
            if place.dtype != "U8" or len(place.shape) != 1 or place.size != line.bytes:
                raise FormatError(
                    f"{place.path}: the payload of group {line.name!r} is {place.dtype} {list(place.shape)}; expected "
                    f"the {line.bytes} bytes that config.json says. Copy or download the directory again."
                )
            if line.name in found:
                raise FormatError(f"{self.directory / 'config.json'} names group {line.name!r} twice")
            found[line.name] = place
        for name in inside.keys() - {line.tensor for line in self.description.groups}:
            raise FormatError(
                f"{inside[name].path} has the tensor {name!r}, which is in no group of config.json. Copy or download "
                "the directory again."
            )
        return found

    def _check_digest(self) -> None:
        """Check that configuration and payloads were written together, as all shards say from minor version 1 on."""
        named = [metadata(path).get(KEY) for path in {place.path for place in self._places.values()}]
        if self.description.minor < 1 and not any(named):
            return
        digests = [self._digest(group) for group in self._places]
        described = msgspec.to_builtins(self.description)
        found = directory_digest(self.config, described, digests)
        if any(each != found for each in named):
            raise FormatError(
                f"{self.directory}: config.json, groups and payloads are not those that were written together: one was "
                "changed or lost. Copy or download the directory again."
            )

    def _digest(self, group: str) -> str:
        with _naming(self._label(group)):
            return payload_digest(self._part_of_shard(group))

    def _part_of_shard(self, group: str) -> FilePart:
        return self._shards.part(self._places[group])

    def _tensors(self) -> dict[str, Stored]:
        every = ((group, entry) for group, file in self._files.items() for entry in file.entries)
        with _naming(str(self.directory)):
            return {each.name: each for each in stored(every)}

    def _ties(self) -> Iterator[tuple[str, str]]:
        for name, to in self.description.tied.items():
            if name in self._stored or to not in self._stored:
                wrong = "is stored itself" if name in self._stored else "is tied to a tensor that is not there"
                raise FormatError(f"{self.directory / 'config.json'}: tensor {name!r}, tied to {to!r}, {wrong}")
            yield name, to

    def _by_group(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {group: [] for group in self._places}
        for name in self:
            found[self._original(name).pieces[-1].group].append(name)
        return found


class ArrayDirectory(DirectoryReader[TypedArray]):
    """An open directory whose tensors are arrays of NumPy."""

    def _file(self, payload: FilePart, label: str, threads: int | None, max_bytes: int | None) -> ArrayFile:
        return ArrayFile(payload, threads=threads, label=label, max_bytes=max_bytes)

    def _empty(self, shape: tuple[int, ...], dtype: str) -> TypedArray:
        return empty(shape, dtype)

    @staticmethod
    def _part(whole: TypedArray, part: TensorPart | None) -> TypedArray:
        return whole if part is None else whole[part.rows]

    @staticmethod
    def _copy(source: TypedArray, into: TypedArray) -> None:
        into.array[...] = source.array

    @staticmethod
    def elements(tensor: TypedArray) -> memoryview:
        """The bytes of an array in row-major order, without a copy where they lie so."""
        return tensor.elements()


def _described(directory: Path, config: Mapping[str, Any]) -> Description:
    found = quantization(config)
    where = directory / "config.json"
    if found is None or found.get("quant_method") != METHOD:
        raise FormatError(f"{where} says of no compression by waterfill; expected a directory that it wrote.")
    if found.get("format") not in range(1, FORMAT + 1):
        raise FormatError(
            f"{where}: format {found.get('format')!r} of a compressed directory is unknown; this release reads formats "
            f"up to {FORMAT}: upgrade waterfill."
        )
    try:
        description = msgspec.convert(found, Description)
    except msgspec.ValidationError as error:
        raise FormatError(f"{where}: quantization_config is damaged ({error}). Copy it again.") from error
    if description.minor > MINOR:
        raise FormatError(
            f"{where}: minor version {description.minor} of a compressed directory is unknown; this release reads up "
            f"to {MINOR}: upgrade waterfill."
        )
    if description.format > 1 and description.weights not in WEIGHTS:
        raise FormatError(
            f"{where}: quantization_config names {description.weights!r} as the weights; expected one of "
            f"{', '.join(WEIGHTS)}. Copy it again."
        )
    return description


@contextlib.contextmanager
def _naming(label: str) -> Iterator[None]:
    """Put a label before the text of a format error that lacks it."""
    try:
        yield
    except FormatError as error:
        if str(error).startswith(label):
            raise
        raise FormatError(f"{label}: {error}") from error
