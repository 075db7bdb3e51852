"""One file: a header, a directory, chunks. Written in one go, checked as a whole, read in pieces (docs/format.md)."""

from __future__ import annotations

import functools
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from waterfill.codec import adaptive, basis_lines, native, rans, symbols
from waterfill.codec import directory as listing
from waterfill.codec import pieces as coder
from waterfill.codec.frames import decompressed
from waterfill.codec.lanes import in_order
from waterfill.codec.lines import AdaptiveLine, BasisLine, ChunkLine, Directory, LanesLine, OwnLine, TensorLine
from waterfill.codec.opened import FilePart, OpenFile
from waterfill.codec.order import elements
from waterfill.codec.pieces import AnyModel, Part
from waterfill.codec.scales import exponent
from waterfill.codec.symbols import Codes
from waterfill.errors import FormatError
from waterfill.records import Basis, Codebook, Entry, Floats, Layout, Limits, Quantized, Rule, Spread, Symbols

if TYPE_CHECKING:
    from waterfill.codec._native import File

MAGIC = b"\x89WFL\r\n\x1a\n"
VERSION, MINOR = 1, 3
"""The format, and the highest minor version that is read; each file has the lowest one that it needs."""

HEADER = struct.Struct("<8sHHIII")  # magic, version, minor version, directory bytes, directory size, CRC-32 of the rest
SMALL_CHUNK = 1 << 16
LARGE_CHUNK = 1 << 20
EXACT_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Packed:
    """A file in memory.

    Attributes:
        data: the whole file.
        tensor_bytes: share of every coded or exact tensor, by name: symbols, scales and codebook, or exact bytes.
        overhead_bytes: all the rest: header, directory with rules and checksums, stream ends.
    """

    data: bytes = field(repr=False)
    tensor_bytes: Mapping[str, float]
    overhead_bytes: float


# Writing


def pack(
    entries: tuple[Entry, ...],
    quantized: Mapping[str, Quantized],
    exact: Mapping[str, bytes],
    producer: str,
    limits: Limits | None = None,
    *,
    plain: bool = False,
) -> Packed:
    """Encode a model.

    Args:
        entries: the state dict, in its order.
        quantized: symbols, rule and spread of every coded entry.
        exact: bytes of every exact entry, little-endian.
        producer: name and version of the writer.
        limits: how small the file could be, to be named in it.
        plain: whether the directory and exact bytes are not compressed, for readers without zstandard.
    """
    layouts = listing.coded_layouts(entries)
    shares = dict.fromkeys([*layouts, *exact], 0.0)
    described = _Described()
    for name in layouts:
        described.add(name, quantized[name])
    chunks: list[Chunk] = []
    if described.vectors:
        stream, count = _side_chunk(described.vectors)
        chunks.append((stream, "a", count))
        _share(shares, _side_bits(described.vectors), len(stream) - rans.HEADER_BYTES)
    books = _codebooks({name: quantized[name].rule for name in layouts})
    if books:
        chunks.append((b"".join(books.values()), "c", sum(map(len, books.values())) // 4))
        _share_codebooks(shares, books)
    pieces = list(_pieces(layouts, quantized))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for stream, models, parts in pool.map(lambda group: _symbols_chunk(group, layouts, quantized), pieces):
            chunks.append((stream, "s", sum(model.size for model in models)))
            _share(shares, parts, len(stream) - coder.header_bytes(models))
    exact_sizes = listing.exact_sizes(entries)
    exact_chunks = _exact_chunks(exact_sizes, exact, plain=plain)
    _share(shares, exact_sizes, sum(len(stream) for stream, _, _ in exact_chunks))
    chunks += exact_chunks
    body = b"".join(stream for stream, _, _ in chunks)
    directory = Directory(
        entries=tuple(listing.entry_line(entry) for entry in entries),
        tensors=tuple(described.tensors),
        chunks=tuple(ChunkLine(kind, len(stream), zlib.crc32(stream), count) for stream, kind, count in chunks),
        producer=producer,
        limit=None if limits is None else listing.limit_line(limits, layouts),
        tables=tuple(described.tables),
        adaptive=tuple(described.adaptive),
        bases=tuple(described.bases),
        lanes=tuple(described.lanes),
    )
    data = _header_and_directory(directory, plain=plain) + body
    return Packed(data, shares, len(data) - sum(shares.values()))


@dataclass(frozen=True, eq=False)
class _Described:
    """What is said of the coded tensors before their symbols.

    Attributes:
        tensors: their lines.
        tables: lines of own tables.
        adaptive: lines of adaptive models.
        bases: lines of bases.
        lanes: lines of lanes.
        vectors: scales, own tables and angles.
        first: the first tensor with some angles.
    """

    tensors: list[TensorLine] = field(default_factory=list)
    tables: list[OwnLine] = field(default_factory=list)
    adaptive: list[AdaptiveLine] = field(default_factory=list)
    bases: list[BasisLine] = field(default_factory=list)
    lanes: list[LanesLine] = field(default_factory=list)
    vectors: list[SideVector] = field(default_factory=list)
    first: dict[basis_lines.Angles, int] = field(default_factory=dict)

    def add(self, name: str, item: Quantized) -> None:
        """Describe the next tensor."""
        number, shared = len(self.tensors), self._earlier(item.basis)
        codes, found = zip(*listing.side_vectors(item, shared=shared is not None), strict=True)
        if item.spread.tables:
            self.tables.append(listing.own_line(number, item.spread, codes))
        if item.spread.adaptive is not None:
            self.adaptive.append(AdaptiveLine(number, item.spread.adaptive.width))
        if item.basis is not None:
            self.bases.append(basis_lines.line_of(number, item.basis, shared, codes[-1]))
        lanes = None if item.spread.trellis is None else item.spread.trellis.lanes
        if lanes is not None:
            self.lanes.append(LanesLine(number, lanes.count, lanes.lines))
        self.tensors.append(listing.tensor_line(item.rule, item.spread, codes))
        self.vectors.extend(_present(name, codes, found))

    def _earlier(self, basis: Basis | None) -> int | None:
        """The first tensor that has the angles of a basis; None where the next one is, or there are none."""
        key = basis_lines.key_of(basis)
        first = None if key is None else self.first.setdefault(key, len(self.tensors))
        return None if first == len(self.tensors) else first


Chunk = tuple[bytes, str, int]
Piece = tuple[str, int, int]


def _header_and_directory(directory: Directory, *, plain: bool) -> bytes:
    packed, size = listing.pack(directory, plain=plain)
    head = HEADER.pack(MAGIC, VERSION, _minor(directory, plain=plain), len(packed), size, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head + packed)) + packed


def _minor(directory: Directory, *, plain: bool) -> int:
    """The lowest minor version that has everything that is in a file."""
    return 3 if plain else 2 if directory.lanes else 1 if directory.bases else 0


def _share(shares: dict[str, float], bits: Mapping[str, float], size: int) -> None:
    """Share the bytes of streams, without their headers, by ideal bits."""
    total = sum(bits.values()) or 1.0
    for name, part in bits.items():
        shares[name] += part / total * size


def _codebooks(rules: Mapping[str, Rule]) -> dict[str, bytes]:
    """The values of every codebook."""
    return {name: rule.values.astype("<f4").tobytes() for name, rule in rules.items() if isinstance(rule, Codebook)}


def _share_codebooks(shares: dict[str, float], books: Mapping[str, bytes]) -> None:
    for name, book in books.items():
        shares[name] += len(book)


SideVector = tuple[str, Symbols, int]
"""Name of a tensor, what is stored of the scales of an axis or an own table, and its exponent."""


def _present(name: str, codes: Iterable[int], vectors: Iterable[Symbols | None]) -> list[SideVector]:
    """The vectors of a tensor that are there."""
    found = zip(vectors, map(exponent, codes), strict=True)
    return [(name, vector, each) for vector, each in found if vector is not None and each is not None]


def _side_chunk(vectors: list[SideVector]) -> tuple[bytes, int]:
    """All scales and own tables of all tensors as one stream, and their number."""
    values = np.concatenate([vector for _, vector, _ in vectors])
    codes = _side_codes([each for _, _, each in vectors], [vector.size for _, vector, _ in vectors])
    return symbols.encode(values, codes), values.size


def _side_bits(vectors: list[SideVector]) -> dict[str, float]:
    """Ideal bits of the scales and own tables of every tensor."""
    bits = dict.fromkeys([name for name, _, _ in vectors], 0.0)
    for name, vector, each in vectors:
        bits[name] += symbols.ideal_bits(vector, _side_codes([each], [vector.size]))
    return bits


def _side_codes(exponents: Iterable[int], lengths: Iterable[int]) -> Codes:
    classes, low = symbols.exponent_codes(np.array(list(exponents), np.int32), symbols.SIDE_FAMILY)
    return np.repeat(classes, list(lengths)), np.repeat(low, list(lengths))


def span_of(spread: Spread, layout: Layout) -> int:
    """After how many symbols a chunk may begin: where a path begins anew, or a row of an adaptive model; else 1."""
    if spread.adaptive is not None:
        return max(1, layout.numel // max(1, layout.axes[0]))
    return 1 if spread.trellis is None else spread.trellis.span(layout)


def _pieces(layouts: Mapping[str, Layout], quantized: Mapping[str, Quantized]) -> Iterator[list[Piece]]:
    """Groups of (name, start, stop): small tensors together, large ones cut between rows or where paths end.

    Of tensors with lanes, all lanes are in a chunk.
    """
    group: list[Piece] = []
    work = 0
    for name, layout in layouts.items():
        item = quantized[name]
        begins = span_of(item.spread, layout) * _lanes_of(item)
        unit = begins if begins > 1 else max(1, layout.numel // max(1, layout.axes[0]))
        span = LARGE_CHUNK if unit > LARGE_CHUNK and begins == 1 else max(1, LARGE_CHUNK // unit) * unit
        for start in range(0, layout.numel, span):
            stop = min(start + span, layout.numel)
            group.append((name, start, stop))
            work += _work(item, start, stop)
            if work >= SMALL_CHUNK:
                yield group
                group, work = [], 0
    if group:
        yield group


def _lanes_of(item: Quantized) -> int:
    """How many lanes a tensor has at a time; 1 without."""
    path = item.spread.trellis
    return 1 if path is None or path.lanes is None else path.lanes.count


def _work(item: Quantized, start: int, stop: int) -> int:
    """How many symbols there are to be coded; with an adaptive model about as many as there are decisions."""
    if item.spread.adaptive is None:
        return stop - start
    return 4 * int(np.count_nonzero(elements(item.symbols, start, stop)))


def _symbols_chunk(
    group: list[Piece], layouts: Mapping[str, Layout], quantized: Mapping[str, Quantized]
) -> tuple[bytes, list[AnyModel], dict[str, float]]:
    """The stream of a group, the models of its pieces, and the ideal bits of each tensor in it."""
    models = [coder.model(quantized[name].spread, layouts[name], a, b) for name, a, b in group]
    values = [elements(quantized[name].symbols, a, b, quantized[name].spread.down) for name, a, b in group]
    bits = _symbols_bits(group, values, models)
    return coder.encode(values, models), models, bits


def _symbols_bits(group: list[Piece], values: list[Symbols], models: list[AnyModel]) -> dict[str, float]:
    """Ideal bits of the symbols of every tensor in a group."""
    return {name: coder.ideal_bits(v, m) for (name, _, _), v, m in zip(group, values, models, strict=True)}


def exact_size(entries: tuple[Entry, ...], exact: Mapping[str, bytes]) -> int:
    """Bytes that tensors without loss take in a file."""
    return sum(len(stream) for stream, _, _ in _exact_chunks(listing.exact_sizes(entries), exact, plain=False))


def _exact_chunks(names: Iterable[str], exact: Mapping[str, bytes], *, plain: bool) -> list[Chunk]:
    """Exact bytes of all tensors one after the other, a few megabytes each, compressed in frames if not plain."""
    everything = b"".join(exact[name] for name in names)
    raws = (everything[start : start + EXACT_CHUNK] for start in range(0, len(everything), EXACT_CHUNK))
    return [(raw if plain else _compressed(raw), "x", len(raw)) for raw in raws]


@functools.lru_cache(maxsize=8)
def _compressed(raw: bytes) -> bytes:
    """A frame of bytes; a search makes file after file with the same ones."""
    return zstandard.ZstdCompressor(level=19, write_content_size=True).compress(raw)


# Reading


class Container:
    """An open file: its directory is read and checked at once, its chunks when they are asked for.

    Attributes:
        name: path for error messages.
        size: bytes of the whole file.
        entries: the state dict, in its order.
        layouts: layout of every coded tensor, in order.
        rules: rule and spread of every coded tensor.
        bases: basis of every coded tensor; None for its own values.
        producer: name and version of the writer.
        limit: how small the file could be; None when it does not say.
        is_plain: whether its directory and exact bytes are not compressed.
    """

    def __init__(
        self, source: Path | bytes | memoryview | FilePart, name: str | None = None, max_bytes: int | None = None
    ) -> None:
        """Open a file or its bytes.

        Args:
            source: a path, or the bytes of a file, which may be part of another one.
            name: what error messages call it, if not by its path.
            max_bytes: most bytes that its tensors may take when decoded; None for any number.

        Raises:
            FormatError: it is not a waterfill file, a damaged one, or its tensors take more than that.
        """
        self.name = name or (str(source) if isinstance(source, Path) else "the data")
        self._checked: set[int] = set()
        self._fetched: dict[int, bytes | memoryview] = {}
        self._file: OpenFile | None = None
        self._is_closed = False
        if isinstance(source, Path):
            self._file = _open(source)
            source = FilePart.whole(self._file)
        self._data = memoryview(source) if isinstance(source, bytes) else source
        self.size = len(self._data)
        try:
            self._directory, at = self._read_directory()
            self.entries = listing.entries_of(self._directory)
            listing.check_original_bytes(self.entries, max_bytes)
            self.layouts = listing.coded_layouts(self.entries)
            self.producer = self._directory.producer
            self.limit = listing.limit_of(self._directory, self.entries)
            self._offsets = at + np.cumsum([0, *(chunk.size for chunk in self._directory.chunks)], dtype=np.int64)
            if self._offsets[-1] != self.size:
                raise FormatError(f"the file has {self.size} bytes, but its directory needs {self._offsets[-1]}")
            self.rules = self._read_rules()
            self.bases = self._read_bases()
            self._check_paths()
        except FormatError as error:
            self.close()
            raise FormatError(f"{self.name}: {error}") from error

    @functools.cached_property
    def native(self) -> File | None:
        """The file as the reader in C has it; None where that was not built.

        Raises:
            FormatError: the file is damaged.
        """
        if not native.is_there():
            return None
        with self._told():
            return native.opened(self._data)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Name the file in what the reader in C, or what it reads from, says of it."""
        if self._is_closed:
            raise ValueError(f"{self.name} is closed")
        try:
            yield
        except (ValueError, FormatError) as error:
            if self._is_closed:
                raise ValueError(f"{self.name} is closed") from error
            raise FormatError(f"{self.name}: {error}") from error

    def decode(self, numbers: list[int], outs: list[NDArray[Any]]) -> None:
        """Decode tensors by the reader in C, one after the other.

        Args:
            numbers: of their entries.
            outs: contiguous arrays that have their bytes.

        Raises:
            FormatError: the file is damaged.
        """
        assert self.native is not None
        with self._told():
            self.native.decode(numbers, outs)

    def close(self) -> None:
        """Close the file."""
        self._is_closed = True
        opened: File | None = self.__dict__.get("native")
        if opened is not None:
            opened.close()
        if self._file is not None:
            self._file.close()

    def _read(self, start: int, size: int) -> bytes | memoryview:
        return self._data[start : start + size]

    def _read_directory(self) -> tuple[Directory, int]:
        """The directory, and where the chunks begin."""
        head = bytes(self._read(0, HEADER.size))
        if head[: len(MAGIC)] != MAGIC[: len(head)] or len(head) < len(MAGIC):
            raise FormatError("not a waterfill file; expected one that `waterfill compress` wrote")
        if len(head) < HEADER.size:
            raise FormatError(f"the file is cut after {len(head)} bytes, within its header")
        _, version, minor, packed_size, size, crc = HEADER.unpack(head)
        if version != VERSION or minor > MINOR:
            raise FormatError(
                f"format version {version}.{minor} is unknown; this release reads versions up to {VERSION}.{MINOR}: "
                "upgrade it"
            )
        if packed_size > self.size - HEADER.size:
            raise FormatError(f"the file is cut: {self.size} bytes cannot hold a directory of {packed_size}")
        if size > listing.largest(packed_size) or packed_size > listing.MAX_DIRECTORY_BYTES:
            raise FormatError(f"a directory of {size} bytes is too large for the {packed_size} that it is packed in")
        packed = bytes(self._read(HEADER.size, packed_size))
        if zlib.crc32(head[:-4] + packed) != crc:
            raise FormatError("the checksum of the directory is wrong: the file is damaged")
        self.is_plain = size == 0
        directory = listing.unpack(packed, size)
        if minor < _minor(directory, plain=self.is_plain):
            what = "plain bytes" if self.is_plain else "lanes" if directory.lanes else "bases"
            raise FormatError(f"the directory has {what}, which format version {VERSION}.{minor} has not")
        return directory, HEADER.size + packed_size

    def _chunk(self, index: int) -> bytes | memoryview:
        """The bytes of one chunk: those that were fetched before, or read and checked now."""
        fetched = self._fetched.pop(index, None)
        if fetched is not None:
            return fetched
        chunk = self._directory.chunks[index]
        data = self._read(int(self._offsets[index]), chunk.size)
        if len(data) != chunk.size or zlib.crc32(data) != chunk.crc:
            raise FormatError(f"the checksum of chunk {index} is wrong: the file is damaged")
        self._checked.add(index)
        return data

    def verify(self) -> None:
        """Check every chunk that has not been read yet, one at a time.

        Raises:
            FormatError: the file is damaged.
        """
        for index in self._unchecked():
            self.chunk(index)

    def fetch(self) -> None:
        """Check the whole file before it is decoded: read what has not been read yet, and keep it until then.

        Raises:
            FormatError: the file is damaged.
        """
        for index in self._unchecked():
            self._fetched[index] = self.chunk(index)

    def _unchecked(self) -> list[int]:
        return [index for index in range(len(self._directory.chunks)) if index not in self._checked]

    def chunk(self, index: int) -> bytes | memoryview:
        """The bytes of one chunk, checked.

        Raises:
            FormatError: the file is damaged.
        """
        try:
            return self._chunk(index)
        except FormatError as error:
            raise FormatError(f"{self.name}: {error}") from error

    def _read_rules(self) -> dict[str, tuple[Rule, Spread]]:
        """Rules and spreads of all coded tensors, with their scales and own tables."""
        lines = listing.all_lines(self._directory)
        codes = [listing.side_codes(each) for each in lines]
        lengths = map(listing.side_lengths, lines, self.layouts.values())
        self._side = list(self._read_side(codes, list(lengths)))
        vectors = zip(self._side, self._read_codebooks(), strict=True)
        found = {
            name: listing.rule_and_spread(each, side, codebook)
            for name, each, (side, codebook) in zip(self.layouts, lines, vectors, strict=True)
        }
        models = zip(found.items(), listing.adaptive_models(self._directory), strict=True)
        return {name: (rule, listing.adapted(spread, model)) for (name, (rule, spread)), model in models}

    def _read_bases(self) -> dict[str, Basis | None]:
        """The basis of every coded tensor; None for its own values."""
        lines = [each.basis for each in listing.all_lines(self._directory)]
        return basis_lines.bases_of(lines, self.layouts, self._side)

    def _check_paths(self) -> None:
        """Check that no chunk begins in the middle of a path or of a row of an adaptive model, or has too many rows.

        Raises:
            FormatError: one does.
        """
        if not any(spread.trellis or spread.adaptive for _, spread in self.rules.values()):
            return
        for pieces in self.symbol_spans.values():
            for name, start, stop in pieces:
                spread = self.rules[name][1]
                if start % span_of(spread, self.layouts[name]):
                    raise FormatError(f"a chunk begins in the middle of a path or row of tensor {name!r}")
                if spread.adaptive is not None and stop - start > adaptive.LARGEST_PIECE:
                    raise FormatError(f"a chunk has {stop - start} elements of {name!r}, too many to adapt to")

    def _read_side(
        self, codes: list[tuple[int, ...]], lengths: list[tuple[int, ...]]
    ) -> Iterator[list[Symbols | None]]:
        """Scales and own tables of every coded tensor, in its order; None where the code says so."""
        exponents = [exponent(code) or 0 for each in codes for code in each]
        todo = _side_codes(exponents, [length for each in lengths for length in each])
        values, at = [np.zeros(0, np.int32)], 0
        for index in self.indices("a"):
            count = self._directory.chunks[index].count
            values.append(symbols.decode(self._chunk(index), (todo[0][at : at + count], todo[1][at : at + count])))
            at += count
        everything, at = np.concatenate(values), 0
        for own_codes, own_lengths in zip(codes, lengths, strict=True):
            ends = at + np.cumsum((0, *own_lengths))
            parts = zip(own_codes, ends[:-1], ends[1:], strict=True)
            yield [None if exponent(code) is None else everything[start:stop] for code, start, stop in parts]
            at = int(ends[-1])

    def _read_codebooks(self) -> list[Floats]:
        """The values of the codebook of every coded tensor; empty without one."""
        data = b"".join(self._chunk(index) for index in self.indices("c"))
        values, ends = np.frombuffer(data, "<f4").astype(np.float32), np.cumsum(self._codebook_sizes())
        return [values[end - size : end] for size, end in zip(self._codebook_sizes(), ends, strict=True)]

    def _codebook_sizes(self) -> list[int]:
        return [listing.codebook_size(line) for line in self._directory.tensors]

    def indices(self, kind: str) -> list[int]:
        """Indices of the chunks of one kind, in order."""
        return [i for i, chunk in enumerate(self._directory.chunks) if chunk.kind == kind]

    @functools.cached_property
    def symbol_spans(self) -> dict[int, list[Piece]]:
        """For every chunk of symbols the pieces (name, start, stop) that it holds, in order."""
        return self._spans("s", {name: layout.numel for name, layout in self.layouts.items()})

    @functools.cached_property
    def exact_spans(self) -> dict[int, list[Piece]]:
        """For every chunk of exact bytes the pieces (name, start, stop) that it holds, in order."""
        return self._spans("x", self.exact_sizes)

    @functools.cached_property
    def exact_sizes(self) -> dict[str, int]:
        """Bytes of every exact tensor, in order."""
        return listing.exact_sizes(self.entries)

    def units(self, index: int) -> int:
        """How many symbols or bytes a chunk decodes to."""
        return self._directory.chunks[index].count

    def _spans(self, kind: str, sizes: Mapping[str, int]) -> dict[int, list[Piece]]:
        spans: dict[int, list[Piece]] = {}
        pending = iter([(name, size) for name, size in sizes.items() if size])
        name, size, done = "", 0, 0
        for index in self.indices(kind):
            spans[index] = []
            left = self._directory.chunks[index].count
            while left:
                if done == size:
                    (name, size), done = next(pending), 0
                take = min(left, size - done)
                spans[index].append((name, done, done + take))
                done, left = done + take, left - take
        return spans

    def symbols(self, index: int, pieces: list[Piece]) -> list[Part]:
        """Decode one chunk of symbols into its pieces, each line by line or, with lanes, in the order of these.

        Raises:
            FormatError: the chunk is damaged.
        """
        return self._decoded(index, pieces, self._models(pieces))

    def _models(self, pieces: list[Piece]) -> list[AnyModel]:
        return [coder.model(self.rules[name][1], self.layouts[name], a, b) for name, a, b in pieces]

    def _decoded(self, index: int, pieces: list[Piece], models: list[AnyModel]) -> list[Part]:
        if self.native is not None:
            found = np.empty(self.units(index), np.int32)
            with self._told():
                self.native.symbols(index, found)
            return [*np.split(found, np.cumsum([stop - start for _, start, stop in pieces])[:-1])]
        data = self.chunk(index)
        try:
            parts = coder.decode(data, models)
            for (name, _, _), part in zip(pieces, parts, strict=True):
                if isinstance(part, np.ndarray):
                    listing.check_symbols(part, self.rules[name][0])
        except FormatError as error:
            raise FormatError(f"{self.name}: {error}") from error
        return parts

    def tensor_bytes(self) -> dict[str, float]:
        """Share of every coded or exact tensor in the file, as `Packed` has it; decodes all symbols.

        Raises:
            FormatError: the file is damaged.
        """
        shares = dict.fromkeys([*self.layouts, *self.exact_sizes], 0.0)
        chunks = self._directory.chunks
        _share_codebooks(shares, _codebooks({name: rule for name, (rule, _) in self.rules.items()}))
        for kind, bits in (("a", _side_bits(self._side_vectors())), ("x", self.exact_sizes)):
            indices = self.indices(kind)
            headers = len(indices) * rans.HEADER_BYTES if kind == "a" else 0
            _share(shares, bits, sum(chunks[index].size for index in indices) - headers)

        def one(item: tuple[int, list[Piece]]) -> tuple[int, dict[str, float]]:
            models = self._models(item[1])
            parts = [in_order(part) for part in self._decoded(*item, models)]
            size = chunks[item[0]].size - coder.header_bytes(models)
            return size, _symbols_bits(item[1], parts, models)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            coded = [(index, spans) for index, spans in self.symbol_spans.items() if spans]
            for size, parts in pool.map(one, coded):
                _share(shares, parts, size)
        return shares

    def _side_vectors(self) -> list[SideVector]:
        found: list[SideVector] = []
        for name, lines, vectors in zip(self.rules, listing.all_lines(self._directory), self._side, strict=True):
            found += _present(name, listing.side_codes(lines), vectors)
        return found

    def exact(self, index: int) -> bytes:
        """Decode one chunk of exact bytes.

        Raises:
            FormatError: the chunk is damaged.
        """
        data, count = self.chunk(index), self._directory.chunks[index].count
        if self.is_plain:
            return bytes(data)
        try:
            raw = decompressed(data, count + 1)
        except FormatError as error:
            raise FormatError(f"{self.name}: chunk {index}: {error}") from error
        if len(raw) != count or zstandard.frame_content_size(data) != count:
            raise FormatError(f"{self.name}: chunk {index} has not the {count} bytes that the directory says")
        return raw


def _open(path: Path) -> OpenFile:
    try:
        return OpenFile(path)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); expected a file that waterfill wrote") from error
