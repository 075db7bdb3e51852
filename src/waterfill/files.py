"""Read a compressed file: lazily, tensor by tensor, or all of it into a model."""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch

from waterfill.codec.container import EXACT_CHUNK, Container
from waterfill.codec.directory import original_bytes
from waterfill.codec.opened import FilePart
from waterfill.codec.pieces import Part
from waterfill.codec.trellis import path_model
from waterfill.devices import has_kernels
from waterfill.errors import FormatError
from waterfill.models.state_dict import assemble
from waterfill.models.torch_module import fill
from waterfill.records import Coded, Entry, Exact, Floats, NormMean, NormVariance, Tied, Uniform, count_floating
from waterfill.targets import LaneStream, OnDevice, Target, target_of

T = TypeVar("T")

LARGEST_KEPT = EXACT_CHUNK
"""Symbols or bytes of a chunk up to which it is kept for the next tensor in it."""


def open(path: str | Path, *, threads: int | None = None, max_bytes: int | None = None) -> WaterfillFile:
    """Open a file without decoding it; see `WaterfillFile`.

    Raises:
        FormatError: the file cannot be read, is damaged, is no waterfill file, or its tensors take too many bytes.
    """
    return WaterfillFile(path, threads=threads, max_bytes=max_bytes)


def decompress(
    path: str | Path, *, threads: int | None = None, max_bytes: int | None = None
) -> dict[str, torch.Tensor]:
    """All tensors of a file by name, in the order of the state dict; tied ones are one tensor.

    The whole file is checked before anything is decoded.

    Raises:
        FormatError: the file cannot be read, is damaged, is no waterfill file, or its tensors take too many bytes.
    """
    with WaterfillFile(path, threads=threads, max_bytes=max_bytes) as file:
        file.fetch()
        return dict(file.tensors())


def load(
    path: str | Path, into: torch.nn.Module, *, threads: int | None = None, max_bytes: int | None = None
) -> torch.nn.Module:
    """Fill a model with the tensors of a file, in place; names and shapes must be the same.

    Args:
        path: the file.
        into: the model. Nothing in it is changed when anything is wrong.
        threads: how many threads decode.
        max_bytes: most bytes that the tensors may take when decoded.

    Returns:
        The model.

    Raises:
        FormatError: the file cannot be read, is damaged, or is no waterfill file.
        WaterfillError: names or shapes differ.
    """
    fill(into, decompress(path, threads=threads, max_bytes=max_bytes))
    return into


class WaterfillFile(Mapping[str, torch.Tensor]):
    """An open `.wf` file as a mapping from names to tensors.

    Header and directory are checked when it is opened; a chunk is read, checked and decoded when a tensor in it is
    asked for; the symbols of one that several small tensors share stay until another is read. `tensors()` decodes the
    whole file in order with bounded memory and in parallel.

    Example:
        >>> with waterfill.open("model.wf") as file:  # doctest: +SKIP
        ...     print(file["layer1.0.conv1.weight"].shape)
    """

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
        """Check the whole file before it is decoded, and keep in memory what is read for it until it is decoded.

        Raises:
            FormatError: the file is damaged.
        """
        self.container.fetch()

    def __getitem__(self, name: str) -> torch.Tensor:
        """Decode one tensor.

        Raises:
            KeyError: there is no such tensor.
            FormatError: the file is damaged.
        """
        return dict(self.tensors([name]))[name]

    def tensors(
        self, names: Collection[str] | None = None, into: Mapping[str, torch.Tensor] | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
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
    def _places(self) -> dict[str, list[_Place]]:
        """Where the pieces of every tensor are, by its name."""
        found: dict[str, list[_Place]] = {}
        for spans in (self.container.symbol_spans, self.container.exact_spans):
            for chunk, pieces in spans.items():
                at = 0
                for number, (name, start, stop) in enumerate(pieces):
                    found.setdefault(name, []).append(_Place(chunk, number, at, start, stop, name))
                    at += stop - start
        return found

    def _wanted(self, names: set[str]) -> Iterator[tuple[int, list[_Place]]]:
        """The chunks that some tensors need, in order, and what they have of these."""
        places = sorted(place for name in names for place in self._places.get(name, []))
        for chunk, some in itertools.groupby(places, key=lambda place: place.chunk):
            yield chunk, list(some)

    def _decode(self, entries: list[Entry], into: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        coded = {e.name for e in entries if isinstance(e.origin, Coded | NormVariance | NormMean)}
        exact = {e.name for e in entries if isinstance(e.origin, Exact)}
        with ThreadPoolExecutor(self._threads) as pool:
            matrices = _Arriving(self._matrices(coded, into, pool))
            yield from assemble(entries, matrices, _Arriving(self._exact(exact)))

    def _matrices(
        self, names: set[str], into: Mapping[str, torch.Tensor], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[str, Floats | torch.Tensor]]:
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
        self, names: set[str], into: Mapping[str, torch.Tensor], targets: dict[str, Target]
    ) -> Iterator[Callable[[], list[_Place]]]:
        """One for every chunk, which fills its part of the targets; these are there when the job is."""
        for chunk, places in self._wanted(names):
            for name in (place.name for place in places):
                if name not in targets:
                    layout, basis = self.container.layouts[name], self.container.bases[name]
                    targets[name] = target_of(self._entries[name], layout, basis, into.get(name))
            yield functools.partial(self._fill, chunk, places, {place.name: targets[place.name] for place in places})

    def _fill(self, chunk: int, places: list[_Place], targets: Mapping[str, Target]) -> list[_Place]:
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

    def _put_stream(self, chunk: int, place: _Place, target: Target) -> bool:
        """Leave the stream of a chunk to a device with kernels, where its tensor is and it is a path with lanes."""
        if not isinstance(target, OnDevice) or not has_kernels(target.device) or not self.has_lanes(place.name):
            return False
        (rule, spread), layout = self.container.rules[place.name], self.container.layouts[place.name]
        coded = path_model(spread, layout, place.start, place.stop)
        assert isinstance(rule, Uniform)  # a path has no other one
        stream = LaneStream(self.container.chunk(chunk), coded, place.start, f"{self.container.name}: {place.name!r}")
        target.put_stream(stream, rule, spread.down)
        return True

    def _is_shared(self, chunk: int, others: int) -> bool:
        """Whether a chunk is small and has others of its tensors, which may be asked for next."""
        return others > 0 and self.container.units(chunk) <= LARGEST_KEPT

    def _exact(self, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors that are stored without loss, in order."""
        sizes = self.container.exact_sizes
        parts: dict[str, list[bytes]] = {}
        for name in names:
            if not sizes[name]:
                yield name, exact_tensor(self._entries[name], b"")
        for chunk, places in self._wanted(names):
            others = len(self.container.exact_spans[chunk]) - len(places)
            decode = functools.partial(self.container.exact, chunk)
            raw = self._last_exact.of(chunk, decode, keep=self._is_shared(chunk, others))
            for place in places:
                parts.setdefault(place.name, []).append(raw[place.at : place.at + place.stop - place.start])
                if place.stop == sizes[place.name]:
                    yield place.name, exact_tensor(self._entries[place.name], b"".join(parts.pop(place.name)))


class _Place(NamedTuple):
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


class _Last(Generic[T]):
    """What the last chunk held, so that small tensors that share one are decoded once; several threads may ask."""

    def __init__(self) -> None:
        self._known: tuple[int, T] | None = None

    def of(self, index: int, decode: Callable[[], T], *, keep: bool) -> T:
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


class _Arriving(Mapping[str, T]):
    """Values that arrive in their own order, asked for in nearly the same one, each once (vectors several times)."""

    def __init__(self, source: Iterator[tuple[str, T]]) -> None:
        self._source = source
        self._waiting: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def __getitem__(self, name: str) -> T:
        while name not in self._waiting:
            arrived, value = next(self._source)
            self._waiting[arrived] = value
        value = self._waiting[name]
        if getattr(value, "shape", (1,))[:1] != (1,):
            del self._waiting[name]
        return value


def _ahead(pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], T]], depth: int) -> Iterator[T]:
    """Results of jobs in order, with `depth` of them under way."""
    waiting: deque[Future[T]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()


def exact_bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor that is stored without loss: its elements in row-major order, little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def exact_tensor(entry: Entry, data: bytes) -> torch.Tensor:
    """Undo `exact_bytes`.

    Raises:
        FormatError: bytes of a bool tensor are neither 0 nor 1.
    """
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    if entry.dtype == "bool" and bool((flat > 1).any()):
        raise FormatError(f"tensor {entry.name!r} of type bool has other bytes than 0 and 1")
    return flat.view(getattr(torch, entry.dtype)).reshape(entry.shape)
