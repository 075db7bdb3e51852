"""Write a compressed directory, payload by payload, without holding them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import safetensors

from waterfill._version import PRODUCER
from waterfill.bundle.guard import write_guards
from waterfill.codec.container import MAGIC
from waterfill.errors import UsageError, WaterfillError
from waterfill.file_system import DISK
from waterfill.io.arrays import LARGEST
from waterfill.io.configuration import METHOD, architecture, read_config
from waterfill.io.digest import KEY, directory_digest, payload_digest
from waterfill.io.directory import FORMAT, MINOR, STEM
from waterfill.io.folder import NewFolder, copy_companions
from waterfill.io.shards import SHARD_BYTES, TYPES, Planned, ShardWriter, places

_OF_WEIGHTS = ("quantization_config", "transformers_weights")
"""Keys of a configuration that are about the weights of the original."""

_PIECE = 1 << 24


def tensor_name(number: int) -> str:
    """Name of the payload of the `number`-th group in the shards."""
    return f"waterfill_{number}"


class BundleWriter:
    """A compressed directory that is being written; used as a context manager.

    Payloads go to a temporary folder beside the output as they come, so that their sum may be larger than memory. The
    output appears whole, when `finish` returns; on an exception nothing is left behind and what was there stays.

    Example:
        >>> with BundleWriter("small", "original") as writer:  # doctest: +SKIP
        ...     for name, payload in compressed_groups:
        ...         writer.add(name, payload)
        ...     size = writer.finish(tied={}, facts={"rate": 3.0})
    """

    def __init__(
        self, out: str | Path, source: str | Path, force: bool = False, *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        """Check the destination; nothing is written yet.

        Args:
            out: the directory to write.
            source: the original directory, for its configuration and the other files.
            force: replace a model directory that exists, at the end.
            shard_bytes: with payloads of so many bytes and more there are several shards, each below.

        Raises:
            WaterfillError: `out` exists and `force` is False, is no model directory, or cannot be written; or `source`
                has no config.json.
            UsageError: `out` is `source`, or holds it.
            FormatError: the architectures are no list of names, or a file is a link out of `source`.
        """
        self._source = Path(source)
        self._config = read_config(self._source)
        architecture(self._config, self._source)
        self._folder = NewFolder(Path(out), source=self._source, force=force)
        self._shard_bytes = shard_bytes
        self._groups: list[tuple[str, int]] = []
        self._digests: list[str] = []

    def __enter__(self) -> Self:
        self._folder.__enter__()
        try:
            DISK.make_folder(self._payloads)
        except BaseException:  # a key press, too
            self._folder.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.__exit__(*error)

    @property
    def _payloads(self) -> Path:
        return self._folder.path / "payloads"

    def add(self, group_name: str, payload: bytes | memoryview) -> None:
        """Take the `.wf` file of one group; nothing of it stays in memory.

        Raises:
            UsageError: the group is there already, or the payload is no `.wf` file.
            WaterfillError: the disk is full, or writing failed.
        """
        if group_name in dict(self._groups):
            raise UsageError(f"Group {group_name!r} was added twice; give every group another name.")
        if bytes(payload[: len(MAGIC)]) != MAGIC:
            raise UsageError(
                f"The payload of group {group_name!r} is no .wf file; give the bytes that compress() made."
            )
        try:
            DISK.save(self._spooled(len(self._groups)), payload)
        except OSError as error:
            raise WaterfillError(f"Writing group {group_name!r} failed: {error.strerror}; free some space.") from error
        self._groups.append((group_name, len(payload)))
        self._digests.append(payload_digest(payload))

    def _spooled(self, number: int) -> Path:
        return self._payloads / str(number)

    def finish(self, tied: Mapping[str, str], facts: Mapping[str, Any]) -> int:
        """Build the shards and the configuration, copy the other files, and move the directory to its place.

        Args:
            tied: names of tensors that are equal to another one, and the name of that, which a group holds.
            facts: what else `quantization_config` is to say, such as the rate.

        Returns:
            Bytes of all shards and their index.

        Raises:
            UsageError: there is no group, or a fact has the name of something that the format says.
            WaterfillError: the disk is full, or writing failed; nothing is left.
        """
        if not self._groups:
            raise UsageError("A compressed directory needs a group; add one before finish().")
        described = self._described(tied)
        clash = sorted(described.keys() & facts.keys())
        if clash:
            raise UsageError(f"The fact {clash[0]!r} is what the format says itself; give it another name.")
        config = {key: value for key, value in self._config.items() if key not in _OF_WEIGHTS}
        config["quantization_config"] = described | dict(facts)
        try:
            size = self._write_shards({KEY: directory_digest(config, described, self._digests)})
            write_guards(self._folder.path)
            copy_companions(self._source, self._folder.path)
            DISK.save(self._folder.path / "config.json", f"{json.dumps(config, indent=2)}\n".encode())
        except OSError as error:
            raise WaterfillError(f"Writing the directory failed: {error.strerror}; nothing was written.") from error
        self._folder.commit()
        return size

    def _described(self, tied: Mapping[str, str]) -> dict[str, Any]:
        groups = [
            {"name": name, "tensor": tensor_name(number), "bytes": size}
            for number, (name, size) in enumerate(self._groups)
        ]
        return {
            "quant_method": METHOD,
            "format": FORMAT,
            "minor": MINOR,
            "producer": PRODUCER,
            "dtype": _main_dtype(self._source),
            "weights": self._shards({}).entrance,
            "groups": groups,
            "tied": dict(tied),
        }

    def _shards(self, metadata: Mapping[str, str]) -> ShardWriter:
        planned = [Planned(tensor_name(k), (size,), "uint8") for k, (_, size) in enumerate(self._groups)]
        return ShardWriter(self._folder.path, planned, self._shard_bytes, stem=STEM, metadata=metadata)

    def _write_shards(self, metadata: Mapping[str, str]) -> int:
        with self._shards(metadata) as shards:
            for number in range(len(self._groups)):
                shards.write(tensor_name(number), _chunks(self._spooled(number)))
                DISK.remove_file(self._spooled(number))
            size = shards.finish()
        DISK.remove_folder(self._payloads)
        return size


def _main_dtype(source: Path) -> str | None:
    """The type in which transformers would load the original if its configuration named none; None without floats."""
    inside = places(source)
    first = next(iter(inside.values())).path
    with safetensors.safe_open(first, framework="pt") as file:
        names = list(file.keys())
    for name in names:
        dtype = TYPES.get(inside[name].dtype) if name in inside else None
        if dtype in LARGEST:
            return dtype
    return None


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
