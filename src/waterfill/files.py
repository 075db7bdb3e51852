"""Read a compressed file: lazily, tensor by tensor, or all of it into a model."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch

from waterfill.codec.container import Container, Piece
from waterfill.codec.directory import exact_sizes, original_bytes
from waterfill.errors import FormatError
from waterfill.models.state_dict import assemble
from waterfill.models.torch_module import fill
from waterfill.reconstruct import fill as fill_matrix
from waterfill.records import Coded, Entry, Exact, Floats, NormMean, NormVariance, Tied, count_floating

T = TypeVar("T")


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
    asked for. `tensors()` decodes the whole file in order with bounded memory and in parallel.

    Example:
        >>> with waterfill.open("model.wf") as file:  # doctest: +SKIP
        ...     print(file["layer1.0.conv1.weight"].shape)
    """

    def __init__(
        self,
        source: str | Path | bytes | memoryview,
        *,
        threads: int | None = None,
        label: str | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """Open a file.

        Args:
            source: a path, or the bytes of a file.
            threads: how many threads decode; by default as many as there are processors.
            label: what error messages call it, if not by its path.
            max_bytes: most bytes that its tensors may take when decoded; by default any number.

        Raises:
            FormatError: the file cannot be read, is damaged, is no waterfill file, or its tensors take too many bytes.
        """
        self.container = Container(Path(source) if isinstance(source, str) else source, label, max_bytes)
        self._threads = threads or os.cpu_count() or 1
        self._entries = {entry.name: entry for entry in self.container.entries}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

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

    def tensors(self, names: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Decode everything in order, or what is asked for; what is not kept by the caller is freed.

        Raises:
            KeyError: there is no such tensor.
            FormatError: the file is damaged.
        """
        if names is None:
            return self._decode(list(self.entries))
        needed = set().union(*map(self._needed, names))
        chosen = [entry for entry in self.entries if entry.name in needed]
        return ((name, tensor) for name, tensor in self._decode(chosen) if name in names)

    def _needed(self, name: str) -> set[str]:
        """The entries that a tensor is made from: itself, what it is tied to, the scale of a mean."""
        match self._entries[name].origin:
            case Tied(to):
                return {name} | self._needed(to)
            case NormMean(_, scale):
                return {name, scale}
        return {name}

    def _decode(self, entries: list[Entry]) -> Iterator[tuple[str, torch.Tensor]]:
        coded = {e.name for e in entries if isinstance(e.origin, Coded | NormVariance | NormMean)}
        exact = {e.name for e in entries if isinstance(e.origin, Exact)}
        with ThreadPoolExecutor(self._threads) as pool:
            matrices = _Arriving(self._matrices(coded, pool))
            yield from assemble(entries, matrices, _Arriving(self._exact(exact)))

    def _matrices(self, names: set[str], pool: ThreadPoolExecutor) -> Iterator[tuple[str, Floats]]:
        """Values of coded tensors in normal form, in order, decoded a few chunks ahead."""
        layouts = self.container.layouts
        spans = self.container.spans("s", {name: layout.numel for name, layout in layouts.items()})
        wanted = {index: pieces for index, pieces in spans.items() if any(name in names for name, _, _ in pieces)}
        for name in names:
            if not layouts[name].numel:
                yield name, np.zeros((layouts[name].axes[0], 0), np.float32)
        matrices: dict[str, Floats] = {}
        for pieces in _ahead(pool, self._jobs(wanted, names, matrices), 2 * self._threads):
            for name, _, stop in pieces:
                if name in names and stop == layouts[name].numel:
                    yield name, matrices.pop(name)

    def _jobs(
        self, wanted: Mapping[int, list[Piece]], names: set[str], matrices: dict[str, Floats]
    ) -> Iterator[Callable[[], list[Piece]]]:
        """One for every chunk, which fills its part of the matrices; these are there when the job is."""
        for index, pieces in wanted.items():
            for name in names.intersection(name for name, _, _ in pieces):
                layout = self.container.layouts[name]
                if name not in matrices:
                    matrices[name] = np.empty((layout.axes[0], layout.numel // layout.axes[0]), np.float32)
            yield functools.partial(self._fill, index, pieces, {name: matrices.get(name) for name, _, _ in pieces})

    def _fill(self, index: int, pieces: list[Piece], matrices: Mapping[str, Floats | None]) -> list[Piece]:
        """Decode and reconstruct one chunk; returns its pieces."""
        for (name, start, _), part in zip(pieces, self.container.symbols(index, pieces), strict=True):
            matrix, (rule, spread) = matrices[name], self.container.rules[name]
            if matrix is not None:
                fill_matrix(matrix, part, rule, self.container.layouts[name], start, spread.down)
        return pieces

    def _exact(self, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors that are stored without loss, in order."""
        sizes = exact_sizes(self.entries)
        parts: dict[str, list[bytes]] = {}
        for name in names:
            if not sizes[name]:
                yield name, exact_tensor(self._entries[name], b"")
        for index, pieces in self.container.spans("x", sizes).items():
            if not any(name in names for name, _, _ in pieces):
                continue
            raw, at = self.container.exact(index), 0
            for name, start, stop in pieces:
                parts.setdefault(name, []).append(raw[at : at + stop - start])
                at += stop - start
                if stop == sizes[name]:
                    whole = b"".join(parts.pop(name))
                    if name in names:
                        yield name, exact_tensor(self._entries[name], whole)


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
