"""Pieces of tensors in one stream: those with own tables first, tensor by tensor, then all that is left by the bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import own, rans, symbols
from waterfill.codec.symbols import Codes
from waterfill.records import Layout, Spread, Symbols, Table


@dataclass(frozen=True, eq=False)
class Model:
    """What codes the integers of a piece.

    Attributes:
        own: tables of the tensor's own.
        codes: class and low bits of every integer, for what is in none of them.
    """

    own: tuple[Table, ...]
    codes: Codes

    @property
    def size(self) -> int:
        """Number of integers."""
        return self.codes[0].size


def model(spread: Spread, layout: Layout, start: int, stop: int) -> Model:
    """The model of the elements start..stop of a tensor."""
    return Model(spread.tables, symbols.spread_codes(spread, layout, start, stop))


def encode(values: Sequence[Symbols], models: Sequence[Model]) -> bytes:
    """Encode the integers of some pieces as one stream."""
    runs: list[rans.Run] = []
    rest: list[Symbols] = []
    codes: list[Codes] = []
    for part, coded in zip(values, models, strict=True):
        own_runs, left = _own_runs(part, coded.own)
        runs += own_runs
        rest.append(part[left])
        codes.append(_some(coded.codes, left))
    return rans.encode(runs + symbols.runs(np.concatenate(rest), _joined(codes)))


def decode(stream: bytes | memoryview, models: Sequence[Model]) -> list[Symbols]:
    """Undo `encode`.

    Raises:
        FormatError: the stream is damaged.
    """
    decoder = rans.Decoder(stream)
    read = [_read_own(decoder, coded) for coded in models]
    codes = [_some(coded.codes, left) for coded, (_, left) in zip(models, read, strict=True)]
    rest = symbols.read(decoder, _joined(codes))
    decoder.finish()
    parts = np.split(rest, np.cumsum([classes.size for classes, _ in codes])[:-1])
    return [_filled(values, left, part) for (values, left), part in zip(read, parts, strict=True)]


def ideal_bits(values: Symbols, coded: Model) -> float:
    """Code length of the integers of a piece, in bits, without the end of the stream."""
    runs, left = _own_runs(values, coded.own)
    bits = symbols.ideal_bits(values[left], _some(coded.codes, left))
    for table, run in zip(coded.own, runs, strict=True):
        counts = np.bincount(run.symbols, minlength=table.roots.size)
        bits += own.ideal_bits(counts, own.frequencies(table))
    return bits


Left = NDArray[np.int64] | slice
"""Where the integers of a piece are that no own table has; a slice of all where there are no own tables."""


def _own_runs(values: Symbols, own_tables: tuple[Table, ...]) -> tuple[list[rans.Run], Left]:
    """One run for each own table, of the integers that the tables before it lack, and what is left."""
    runs: list[rans.Run] = []
    left: Left = slice(None)
    for table in own_tables:
        indices, escaped = own.to_symbols(values[left], table)
        runs.append(rans.Run(indices, np.zeros(indices.size, np.uint16), own.frequencies(table)))
        left = _among(left, escaped)
    return runs, left


def _read_own(decoder: rans.Decoder, coded: Model) -> tuple[Symbols | None, Left]:
    """Undo `_own_runs`: the values, right but for those that are left; None where there are no own tables."""
    values: Symbols | None = None
    left: Left = slice(None)
    for table in coded.own:
        size = coded.size if isinstance(left, slice) else left.size
        indices = decoder.run(np.zeros(size, np.uint16), own.frequencies(table))
        if values is None:
            values = own.to_values(indices, table)
        else:
            values[left] = own.to_values(indices, table)
        escape = table.roots.size - 1
        left = _among(left, indices == escape) if table.roots[escape] else np.zeros(0, np.int64)
    return values, left


def _among(left: Left, escaped: NDArray[np.bool_]) -> Left:
    positions = np.flatnonzero(escaped)
    return positions if isinstance(left, slice) else left[positions]


def _filled(values: Symbols | None, left: Left, part: Symbols) -> Symbols:
    if values is None:
        return part
    values[left] = part
    return values


def _some(codes: Codes, left: Left) -> Codes:
    return codes[0][left], codes[1][left]


def _joined(codes: Sequence[Codes]) -> Codes:
    return np.concatenate([classes for classes, _ in codes]), np.concatenate([low for _, low in codes])
