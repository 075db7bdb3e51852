"""Parts of large tensors: how they are named, and how they make a whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from waterfill.errors import FormatError
from waterfill.records import Entry

_PART = re.compile(r"(.+)\[([0-9]{1,18})(?::([0-9]{1,18}))?\]", re.DOTALL)


@dataclass(frozen=True)
class Part:
    """Which part of which tensor an entry is.

    Attributes:
        tensor: name of the whole tensor.
        start: first index along axis 0.
        stop: index after the last one; None where the entry is index `start` itself, with one axis less.
    """

    tensor: str
    start: int
    stop: int | None

    @property
    def end(self) -> int:
        """Index after the last one along axis 0 of the whole."""
        return self.start + 1 if self.stop is None else self.stop

    @property
    def rows(self) -> int | slice:
        """What it is of the whole."""
        return self.start if self.stop is None else slice(self.start, self.stop)


@dataclass(frozen=True)
class Piece:
    """An entry of a group that holds a tensor, or a part of it.

    Attributes:
        group: name of the group.
        entry: name of the entry.
        part: which part it is; None for the whole.
    """

    group: str
    entry: str
    part: Part | None


@dataclass(frozen=True)
class Stored:
    """A tensor of the checkpoint, and where its values are.

    Attributes:
        name: its name in the checkpoint.
        shape: its shape.
        dtype: its type, such as `bfloat16`.
        pieces: what holds it, in order along axis 0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]


def part_name(name: str, start: int, stop: int | None = None) -> str:
    """Name of the entry that holds rows `start` to `stop` of a tensor, or index `start` of its first axis.

    Example:
        >>> part_name("embed.weight", 0, 4096), part_name("experts.up", 3)
        ('embed.weight[0:4096]', 'experts.up[3]')
    """
    return f"{name}[{start}]" if stop is None else f"{name}[{start}:{stop}]"


def part_of(name: str) -> Part | None:
    """Undo `part_name`; None for the name of a whole tensor."""
    found = _PART.fullmatch(name)
    if found is None:
        return None
    return Part(found[1], int(found[2]), None if found[3] is None else int(found[3]))


def stored(entries: Iterable[tuple[str, Entry]]) -> Iterator[Stored]:
    """The tensors that entries make, in the order of the first piece of each.

    Args:
        entries: group and entry, in order.

    Raises:
        FormatError: a tensor is there twice, or the parts of one do not make a whole.
    """
    found: dict[str, list[tuple[Piece, Entry]]] = {}
    for group, entry in entries:
        part = part_of(entry.name)
        name = entry.name if part is None else part.tensor
        found.setdefault(name, []).append((Piece(group, entry.name, part), entry))
    for name, pieces in found.items():
        yield _whole(name, pieces)


def _whole(name: str, pieces: list[tuple[Piece, Entry]]) -> Stored:
    first, entry = pieces[0]
    if first.part is None and len(pieces) == 1:
        return Stored(name, entry.shape, entry.dtype, (first,))
    parts = [piece.part for piece, _ in pieces if piece.part is not None]
    if len(parts) < len(pieces):
        raise FormatError(f"tensor {name!r} is there twice")
    tails = {(each.shape[1:] if part.stop is not None else each.shape, each.dtype) for part, each in _pairs(pieces)}
    if len(tails) > 1 or len({part.stop is None for part in parts}) > 1:
        raise FormatError(f"the parts of tensor {name!r} have different shapes or types, so that they cannot be joined")
    at = 0
    for part, each in _pairs(pieces):
        if part.start != at or part.end <= at or (part.stop is not None and each.shape[:1] != (part.end - at,)):
            raise FormatError(f"part {each.name!r} {list(each.shape)} does not go on at index {at} of the whole tensor")
        at = part.end
    ((tail, dtype),) = tails
    return Stored(name, (at, *tail), dtype, tuple(piece for piece, _ in pieces))


def _pairs(pieces: list[tuple[Piece, Entry]]) -> Iterator[tuple[Part, Entry]]:
    return ((piece.part, entry) for piece, entry in pieces if piece.part is not None)
