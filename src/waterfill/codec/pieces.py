"""Pieces of tensors in one stream: adaptive ones, paths, those with own tables, then all that is left by the bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import adaptive, lanes, own, rans, symbols, trellis
from waterfill.codec.adaptive import AdaptiveModel
from waterfill.codec.lanes import LaneSymbols
from waterfill.codec.order import elements
from waterfill.codec.symbols import Codes
from waterfill.codec.trellis import PathModel
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


AnyModel: TypeAlias = Model | PathModel | AdaptiveModel
Part: TypeAlias = Symbols | LaneSymbols


def model(spread: Spread, layout: Layout, start: int, stop: int) -> AnyModel:
    """The model of the elements start..stop of the stream of a tensor."""
    if spread.adaptive is not None:
        return adaptive.model(spread.adaptive, layout, start, stop)
    if spread.trellis is not None:
        return trellis.path_model(spread, layout, start, stop)
    return Model(spread.tables, symbols.spread_codes(spread, layout, start, stop))


def tensor_bits(values: Symbols, spread: Spread, layout: Layout) -> float:
    """Code length of the symbols [out, in] of a whole tensor, in bits, without the end of the stream."""
    return ideal_bits(elements(values, 0, values.size, spread.down), model(spread, layout, 0, values.size))


def encode(values: Sequence[Symbols], models: Sequence[AnyModel]) -> bytes:
    """Encode the integers of some pieces as one stream.

    Raises:
        ValueError: the integers of a piece with a trellis are no path through it.
    """
    runs: list[rans.Encodable] = []
    rest: list[Symbols] = []
    codes: list[Codes] = []
    for part, coded in zip(values, models, strict=True):
        if isinstance(coded, PathModel):
            runs.append(trellis.PathRun(trellis.path_of(part, coded), coded))
            continue
        if isinstance(coded, AdaptiveModel):
            runs.append(adaptive.AdaptiveRun(part, coded))
            continue
        own_runs, left = _own_runs(part, coded.own)
        runs += own_runs
        rest.append(part[left])
        codes.append(_some(coded.codes, left))
    if rest:
        runs += symbols.runs(np.concatenate(rest), _joined(codes))
    return rans.encode(runs, _states(models))


def header_bytes(models: Sequence[AnyModel]) -> int:
    """How many bytes the states of a stream of these pieces take."""
    return 4 * _states(models)


def _states(models: Sequence[AnyModel]) -> int:
    """As many states as the piece with the most lanes has."""
    return max([rans.LANES, *(coded.lanes[0] for coded in models if isinstance(coded, PathModel))])


def decode(stream: bytes | memoryview, models: Sequence[AnyModel]) -> list[Part]:
    """Undo `encode`; levels of paths with lanes are in the order of these.

    Raises:
        FormatError: the stream is damaged.
    """
    decoder = rans.Decoder(stream, _states(models))
    read = [_read_first(decoder, coded) for coded in models]
    free = [(coded, left) for coded, (_, left) in zip(models, read, strict=True) if isinstance(coded, Model)]
    codes = [_some(coded.codes, left) for coded, left in free]
    rest = symbols.read(decoder, _joined(codes)) if codes else np.zeros(0, np.int32)
    decoder.finish()
    ends = np.cumsum([classes.size for classes, _ in codes], dtype=np.int64)
    parts = iter(np.split(rest, ends[:-1]))
    return [
        _filled(values, left, next(parts)) if isinstance(values, np.ndarray) and isinstance(coded, Model) else values
        for coded, (values, left) in zip(models, read, strict=True)
    ]


def ideal_bits(values: Symbols, coded: AnyModel) -> float:
    """Code length of the integers of a piece, in bits, without the end of the stream."""
    if isinstance(coded, PathModel):
        return trellis.ideal_bits(values, coded)
    if isinstance(coded, AdaptiveModel):
        return adaptive.ideal_bits(values, coded)
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


def _read_first(decoder: rans.Decoder, coded: AnyModel) -> tuple[Part, Left]:
    """What is there of a piece before the integers that the bank codes: all of it, or what own tables have."""
    if isinstance(coded, AdaptiveModel):
        return decoder.read(lambda words, at, states: adaptive.decode(words, at, states, coded)), slice(0)
    if isinstance(coded, PathModel) and coded.trellis.lanes is not None:
        return decoder.read(lambda words, at, states: lanes.decode(words, at, states, coded)), slice(0)
    if isinstance(coded, PathModel):
        return decoder.read(lambda words, at, states: trellis.decode(words, at, states, coded)), slice(0)
    return _read_own(decoder, coded)


def _read_own(decoder: rans.Decoder, coded: Model) -> tuple[Symbols, Left]:
    """Undo `_own_runs`: the values, right but for those that are left; empty where there are no own tables."""
    values = np.zeros(0, np.int32)
    left: Left = slice(None)
    for table in coded.own:
        size = coded.size if isinstance(left, slice) else left.size
        indices = decoder.run(np.zeros(size, np.uint16), own.frequencies(table))
        values = _filled(values, left, own.to_values(indices, table))
        escape = table.roots.size - 1
        left = _among(left, indices == escape) if table.roots[escape] else np.zeros(0, np.int64)
    return values, left


def _among(left: Left, escaped: NDArray[np.bool_]) -> Left:
    positions = np.flatnonzero(escaped)
    return positions if isinstance(left, slice) else left[positions]


def _filled(values: Symbols, left: Left, part: Symbols) -> Symbols:
    """Put in what was left; all of it where nothing was there."""
    if isinstance(left, slice):
        return part
    values[left] = part
    return values


def _some(codes: Codes, left: Left) -> Codes:
    return codes[0][left], codes[1][left]


def _joined(codes: Sequence[Codes]) -> Codes:
    return np.concatenate([classes for classes, _ in codes]), np.concatenate([low for _, low in codes])
