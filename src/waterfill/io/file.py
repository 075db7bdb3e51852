"""Read a compressed file: lazily, tensor by tensor, in parallel."""

from __future__ import annotations

import functools
import itertools
import math
import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np

from waterfill.codec.container import EXACT_CHUNK, Container
from waterfill.codec.directory import original_bytes
from waterfill.codec.opened import FilePart
from waterfill.codec.pieces import Part
from waterfill.io.arrays import TypedArray, empty, exact_array
from waterfill.io.assembly import assemble
from waterfill.io.targets import Target, check_place, target_of
from waterfill.records import Basis, Coded, Entry, Exact, Layout, NormMean, NormVariance, Tied, count_floating

T = TypeVar("T")
"""What tensors are given as."""
E = TypeVar("E")

LARGEST_KEPT = EXACT_CHUNK
"""Symbols or bytes of a chunk up to which it is kept for the next tensor in it."""

GROUP = 1 << 20
"""Values of small tensors that one thread decodes by the reader in C."""


class FileReader(Mapping[str, T]):
    """An open `.wf` file as a mapping from names to tensors.

    Header and directory are checked when it is opened; a chunk is read, checked and decoded when a tensor in it is
    asked for; the symbols of one that several small tensors share stay until another is read. `tensors()` decodes the
    whole file in order with bounded memory and in parallel. What a tensor is, subclasses say.
    """

    @abstractmethod
    def _made(self, values: TypedArray) -> T:
        """A tensor with the memory of an array."""

    def _target(self, entry: Entry, layout: Layout, basis: Basis | None, into: T | None) -> Target:
        """What the pieces of a coded tensor go into."""
        assert into is None
        return target_of(entry, layout, basis)

    def __init__(
        self,
        source: str | Path | bytes | memoryview | FilePart,
        *,
        threads: int | None = None,
        label: str | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """Open a file.

        Args:
            source: a path, or the bytes of a file, which may be part of another one.
            threads: how many threads decode; by default as many as there are processors.
            label: what error messages call it, if not by its path.
            max_bytes: most bytes that its tensors may take when decoded; by default any number.

        Raises:
            FormatError: the file cannot be read, is damaged, is no waterfill file, or its tensors take too many bytes.
        """
        self.container = Container(Path(source) if isinstance(source, str) else source, label, max_bytes)
        self._threads = threads or os.cpu_count() or 1
        self._entries = {entry.name: entry for entry in self.container.entries}
        self._order = {name: number for number, name in enumerate(self._entries)}
        self._last_symbols: _Last[list[Part]] = _Last()
        self._last_exact: _Last[bytes] = _Last()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()
        self._last_symbols.clear()
        self._last_exact.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What the file says about every tensor, in the order of the state dict."""
        return self.container.entries

    @property
    def floating_values(self) -> int:
        """Number of floating-point values, tied ones once."""
        return count_floating(self.entries)

    @property
    def original_bytes(self) -> int:
        """Bytes of all tensors when decoded, tied ones once."""
        return original_bytes(self.entries)

    def verify(self) -> None:
        """Check the checksum of every chunk that has not been read yet.

        Raises:
            FormatError: the file is damaged.
        """
        self.container.verify()

    def fetch(self) -> None:
        """Check the whole file before it is decoded; what Python decodes is read for it once, and kept until then.

        Raises:
            FormatError: the file is damaged.
        """
        if self.container.native is None:
            self.container.fetch()
        else:
            self.container.verify()

    def __getitem__(self, name: str) -> T:
        """Decode one tensor.

        Raises:
            KeyError: there is no such tensor.
            FormatError: the file is damaged.
        """
        return dict(self.tensors([name]))[name]

    def tensors(
        self, names: Collection[str] | None = None, into: Mapping[str, T] | None = None
    ) -> Iterator[tuple[str, T]]:
        """Decode everything in order, or what is asked for; what is not kept by the caller is freed.

        Args:
            names: what is asked for.
            into: contiguous tensors by name, of its shape and type, that are filled and come back where a tensor can be
                decoded in its own type; the others are new ones.

        Raises:
            KeyError: there is no such tensor.
            FormatError: the file is damaged.
            UsageError: a tensor to fill has another shape or type, or is not contiguous.
        """
        if names is None:
            return self._decode(list(self.entries), into or {})
        asked = set(names)
        needed = asked.union(*map(self._needed, asked))
        chosen = [self._entries[name] for name in sorted(needed, key=self._order.__getitem__)]
        return ((name, tensor) for name, tensor in self._decode(chosen, into or {}) if name in asked)

    def _needed(self, name: str) -> set[str]:
        """The entries that a tensor is made from: itself, what it is tied to, the scale of a mean."""
        match self._entries[name].origin:
            case Tied(to):
                return {name} | self._needed(to)
            case NormMean(_, scale):
                return {name, scale}
        return {name}

    @functools.cached_property
    def _places(self) -> dict[str, list[Place]]:
        """Where the pieces of every tensor are, by its name."""
        found: dict[str, list[Place]] = {}
        for spans in (self.container.symbol_spans, self.container.exact_spans):
            for chunk, pieces in spans.items():
                at = 0
                for number, (name, start, stop) in enumerate(pieces):
                    found.setdefault(name, []).append(Place(chunk, number, at, start, stop, name))
                    at += stop - start
        return found

    def _wanted(self, names: set[str]) -> Iterator[tuple[int, list[Place]]]:
        """The chunks that some tensors need, in order, and what they have of these."""
        places = sorted(place for name in names for place in self._places.get(name, []))
        for chunk, some in itertools.groupby(places, key=lambda place: place.chunk):
            yield chunk, list(some)

    def _place(self, entry: Entry, tensor: T) -> TypedArray | None:
        """The memory of a tensor that is to be filled, after its shape and type are checked; None where it has none."""
        raise AssertionError(f"{entry.name!r} cannot be decoded into {tensor!r}")

    def _decode(self, entries: list[Entry], into: Mapping[str, T]) -> Iterator[tuple[str, T]]:
        asked = {entry.name: into[entry.name] for entry in entries if entry.name in into}
        places = {entry.name: self._place(entry, into[entry.name]) for entry in entries if entry.name in into}
        if self.container.native is None or None in places.values():
            yield from self._decode_by_kernels(entries, into)
            return
        found: dict[str, T] = {}
        shared = {entry.origin.to for entry in entries if isinstance(entry.origin, Tied)}
        with ThreadPoolExecutor(self._threads) as pool:
            jobs = (functools.partial(self._decode_group, group, places) for group in _groups(entries))
            for group in _ahead(pool, jobs, 2 * self._threads):
                for entry, values in group:
                    if isinstance(entry.origin, Tied):
                        yield entry.name, found[entry.origin.to]
                        continue
                    tensor = asked[entry.name] if entry.name in asked else self._made(values)
                    if entry.name in shared:
                        found[entry.name] = tensor
                    yield entry.name, tensor

    def _decode_group(
        self, entries: list[Entry], places: Mapping[str, TypedArray | None]
    ) -> list[tuple[Entry, TypedArray]]:
        """Decode entries by the reader in C, into what they are to fill or new arrays; tied ones have no values."""
        found = []
        for entry in entries:
            place = places.get(entry.name)
            shape = (0,) if isinstance(entry.origin, Tied) else entry.shape
            found.append((entry, empty(shape, entry.dtype) if place is None else place))
        own = [(entry, values) for entry, values in found if not isinstance(entry.origin, Tied)]
        self.container.decode([self._order[entry.name] for entry, _ in own], [values.array for _, values in own])
        return found

    def _decode_by_kernels(self, entries: list[Entry], into: Mapping[str, T]) -> Iterator[tuple[str, T]]:
        coded = {e.name for e in entries if isinstance(e.origin, Coded | NormVariance | NormMean)}
        exact = {e.name for e in entries if isinstance(e.origin, Exact)}
        with ThreadPoolExecutor(self._threads) as pool:
            scales = {e.origin.scale for e in entries if isinstance(e.origin, NormMean)}
            matrices = _Arriving(self._matrices(coded, into, pool), again=scales)
            others = _Arriving(self._exact(exact))
            yield from assemble(entries, matrices.__getitem__, others.__getitem__, self._made)

    def _matrices(self, names: set[str], into: Mapping[str, T], pool: ThreadPoolExecutor) -> Iterator[tuple[str, Any]]:
        """What coded tensors are made from, in order, decoded a few chunks ahead."""
        layouts = self.container.layouts
        for name in names:
            if not layouts[name].numel:
                yield name, np.zeros((layouts[name].axes[0], 0), np.float32)
        targets: dict[str, Target] = {}
        for places in _ahead(pool, self._jobs(names, into, targets), 2 * self._threads):
            for place in places:
                if place.stop == layouts[place.name].numel:
                    yield place.name, targets.pop(place.name).finished()

    def _jobs(
        self, names: set[str], into: Mapping[str, T], targets: dict[str, Target]
    ) -> Iterator[Callable[[], list[Place]]]:
        """One for every chunk, which fills its part of the targets; these are there when the job is."""
        for chunk, places in self._wanted(names):
            for name in (place.name for place in places):
                if name not in targets:
                    layout, basis = self.container.layouts[name], self.container.bases[name]
                    targets[name] = self._target(self._entries[name], layout, basis, into.get(name))
            yield functools.partial(self._fill, chunk, places, {place.name: targets[place.name] for place in places})

    def _fill(self, chunk: int, places: list[Place], targets: Mapping[str, Target]) -> list[Place]:
        """Decode one chunk and reconstruct some of its pieces; returns these."""
        pieces = self.container.symbol_spans[chunk]
        if len(pieces) == 1 and self._put_stream(chunk, places[0], targets[places[0].name]):
            return places
        decode = functools.partial(self.container.symbols, chunk, pieces)
        parts = self._last_symbols.of(chunk, decode, keep=self._is_shared(chunk, len(pieces) - len(places)))
        for place in places:
            rule, spread = self.container.rules[place.name]
            targets[place.name].put(parts[place.number], rule, place.start, spread.down)
        return places

    def has_lanes(self, name: str) -> bool:
        """Whether a tensor is a path with lanes, which a device decodes."""
        _, spread = self.container.rules.get(name, (None, None))
        return spread is not None and spread.trellis is not None and spread.trellis.lanes is not None

    def _put_stream(self, chunk: int, place: Place, target: Target) -> bool:
        """Leave the stream of a chunk with one piece to its target; False where it has to be decoded here."""
        del chunk, place, target
        return False

    def _is_shared(self, chunk: int, others: int) -> bool:
        """Whether a chunk is small and has others of its tensors, which may be asked for next."""
        return others > 0 and self.container.units(chunk) <= LARGEST_KEPT

    def _exact(self, names: set[str]) -> Iterator[tuple[str, T]]:
        """Tensors that are stored without loss, in order."""
        sizes = self.container.exact_sizes
        parts: dict[str, list[bytes]] = {}
        for name in names:
            if not sizes[name]:
                yield name, self._made(exact_array(self._entries[name], b""))
        for chunk, places in self._wanted(names):
            others = len(self.container.exact_spans[chunk]) - len(places)
            decode = functools.partial(self.container.exact, chunk)
            raw = self._last_exact.of(chunk, decode, keep=self._is_shared(chunk, others))
            for place in places:
                parts.setdefault(place.name, []).append(raw[place.at : place.at + place.stop - place.start])
                if place.stop == sizes[place.name]:
                    data = b"".join(parts.pop(place.name))
                    yield place.name, self._made(exact_array(self._entries[place.name], data))


class Place(NamedTuple):
    """A piece of a tensor.

    Attributes:
        chunk: that holds it.
        number: of the piece among those of the chunk.
        at: how many symbols or bytes of the chunk are before it.
        start: first of its symbols or bytes, of those of the tensor.
        stop: behind the last one.
        name: of the tensor.
    """

    chunk: int
    number: int
    at: int
    start: int
    stop: int
    name: str


class _Last(Generic[E]):
    """What the last chunk held, so that small tensors that share one are decoded once; several threads may ask."""

    def __init__(self) -> None:
        self._known: tuple[int, E] | None = None

    def of(self, index: int, decode: Callable[[], E], *, keep: bool) -> E:
        """What a chunk holds.

        Args:
            index: of the chunk.
            decode: decodes it, where it is not known.
            keep: whether to keep it in the place of the one before.
        """
        known = self._known
        if known is not None and known[0] == index:
            return known[1]
        found = decode()
        if keep:
            self._known = index, found
        return found

    def clear(self) -> None:
        """Keep nothing any more."""
        self._known = None


class _Arriving(Mapping[str, E]):
    """Values that arrive in their own order, asked for in nearly the same one, each once, but for some."""

    def __init__(self, source: Iterator[tuple[str, E]], again: Collection[str] = ()) -> None:
        """Wait for values.

        Args:
            source: names and values.
            again: names of those that are asked for several times.
        """
        self._source, self._again = source, again
        self._waiting: dict[str, E] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def __getitem__(self, name: str) -> E:
        while name not in self._waiting:
            arrived, value = next(self._source)
            self._waiting[arrived] = value
        value = self._waiting[name]
        if name not in self._again:
            del self._waiting[name]
        return value


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries that one thread decodes, one after the other: small ones share chunks, and large ones have their own."""
    group: list[Entry] = []
    size = 0
    for entry in entries:
        group.append(entry)
        size += 0 if isinstance(entry.origin, Tied) else math.prod(entry.shape)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _ahead(pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], E]], depth: int) -> Iterator[E]:
    """Results of jobs in order, with `depth` of them under way."""
    waiting: deque[Future[E]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()


class ArrayFile(FileReader[TypedArray]):
    """An open file whose tensors are arrays of NumPy."""

    def _made(self, values: TypedArray) -> TypedArray:
        return values

    def _place(self, entry: Entry, tensor: TypedArray) -> TypedArray:
        check_place(entry, tensor.dtype, tensor.shape, tensor.array.flags.c_contiguous)
        return tensor

    def _target(self, entry: Entry, layout: Layout, basis: Basis | None, into: TypedArray | None) -> Target:
        return target_of(entry, layout, basis, into)
