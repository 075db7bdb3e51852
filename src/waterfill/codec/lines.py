"""The directory as it is written: JSON arrays with the ranges of their numbers (docs/format.md)."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from waterfill.bases import rotations
from waterfill.codec import adaptive, own, scales, tables
from waterfill.records import ALL, CHANNELS, OUT, TAPS

MAX_NUMEL = 1 << 42
MAX_AXES = 64
MAX_MEASURE = 64
MAX_CODEBOOK = 1 << 16

Dimension = Annotated[int, Meta(ge=0, le=MAX_NUMEL)]
Code = Annotated[int, Meta(ge=scales.NONE, lt=tables.SCALES)]
SpreadCode = Annotated[int, Meta(gt=scales.FIRST_SUM - tables.SCALES, lt=tables.SCALES)]
Codes6 = tuple[Code, Code, Code, SpreadCode, SpreadCode, SpreadCode]
Shrink = Annotated[int, Meta(ge=-64, le=64)]
Codes3 = tuple[Code, Code, Code]
NO_CODES: Codes6 = (-1, -1, -1, -1, -1, -1)
First = Annotated[int, Meta(ge=-own.LARGEST_FIRST, le=own.LARGEST_FIRST)]
TableCode = Annotated[int, Meta(ge=0, le=own.LARGEST_CODE)]


class TableLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """An own table without its roots: its first symbol, how many there are, how the differences of roots are coded."""

    first: First
    count: Annotated[int, Meta(ge=1, le=own.MOST_SYMBOLS)]
    code: TableCode


TableLines = Annotated[tuple[TableLine, ...], Meta(min_length=1, max_length=own.MOST_TABLES)]


class OwnLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The own tables of one of the coded tensors, which are counted from 0."""

    tensor: Annotated[int, Meta(ge=0)]
    tables: TableLines


class AdaptiveLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The adaptive model of one of the coded tensors, which are counted from 0."""

    tensor: Annotated[int, Meta(ge=0)]
    width: Annotated[int, Meta(ge=0, le=adaptive.LARGEST_WIDTH)] = 0


class LanesLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The lanes of the path of one of the coded tensors, which are counted from 0."""

    tensor: Annotated[int, Meta(ge=0)]
    count: Literal[8, 32]
    lines: Annotated[int, Meta(ge=1, le=MAX_NUMEL)]


class CosinesLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="c"):
    """`Cosines` of one of the coded tensors, which are counted from 0."""

    tensor: Annotated[int, Meta(ge=0)]
    axis: Annotated[int, Meta(ge=OUT, le=TAPS)]
    block: Annotated[int, Meta(ge=2, le=rotations.LONGEST_BLOCK)]


class FlipsLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="f"):
    """`Flips` of one of the coded tensors without the angles, and how these are coded."""

    tensor: Annotated[int, Meta(ge=0)]
    code: TableCode


class RotationsLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="r"):
    """`Rotations` of one of the coded tensors without the angles, and how these are coded."""

    tensor: Annotated[int, Meta(ge=0)]
    axis: Annotated[int, Meta(ge=OUT, le=CHANNELS)]
    directions: Annotated[int, Meta(ge=1, lt=rotations.LONGEST_ROTATED)]
    code: TableCode


class SharedLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="s"):
    """One of the coded tensors has the angles of an earlier one."""

    tensor: Annotated[int, Meta(ge=0)]
    of: Annotated[int, Meta(ge=0)]


BasisLine: TypeAlias = CosinesLine | FlipsLine | RotationsLine | SharedLine


class EntryLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Name, type, shape, and one letter with an argument for the origin."""

    name: str
    dtype: str
    shape: Annotated[tuple[Dimension, ...], Meta(max_length=MAX_AXES)]
    how: str = "q"
    argument: int | float | str | None = None


class UniformLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="u"):
    """A `Uniform` rule and its `Spread`; the six codes say how the scales are stored (`scales.py`)."""

    step: Annotated[int, Meta(ge=-6000, le=6000)]
    family: Annotated[int, Meta(ge=0, lt=tables.FAMILIES)]
    base: Annotated[int, Meta(ge=-400, le=256)]
    shrink: tuple[Shrink, Shrink, Shrink] = (0, 0, 0)
    scales: Codes6 = NO_CODES
    offset: Annotated[int, Meta(ge=-(1 << 30), le=1 << 30)] = 0


class RelativeLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="r"):
    """A `Relative` rule and its `Spread` (without scales)."""

    mantissa: Annotated[int, Meta(ge=0, le=23)]
    offset: Annotated[int, Meta(ge=-(1 << 31), le=1 << 31)]
    signed: bool
    family: Annotated[int, Meta(ge=0, lt=tables.FAMILIES)]
    base: Annotated[int, Meta(ge=-400, le=256)]


class CodebookLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="c"):
    """A `Codebook` rule without its values, and its `Spread`; the three codes are those of the spread."""

    size: Annotated[int, Meta(ge=1, le=MAX_CODEBOOK)]
    first: Annotated[int, Meta(gt=-MAX_CODEBOOK, le=0)]
    family: Annotated[int, Meta(ge=0, lt=tables.FAMILIES)]
    base: Annotated[int, Meta(ge=-400, le=256)]
    scales: Codes3 = (-1, -1, -1)


class TrellisLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="p"):
    """A `Uniform` rule without offset, and a `Spread` with its `Paths`: shape and base of both subsets, direction."""

    step: Annotated[int, Meta(ge=-6000, le=6000)]
    log_states: Annotated[int, Meta(ge=2, le=12)]
    zero: bool
    log_span: Annotated[int, Meta(ge=0, le=42)]
    family: Annotated[int, Meta(ge=0, lt=tables.FAMILIES)]
    base: Annotated[int, Meta(ge=-400, le=256)]
    second_family: Annotated[int, Meta(ge=0, lt=tables.FAMILIES)]
    second_base: Annotated[int, Meta(ge=-400, le=256)]
    shrink: tuple[Shrink, Shrink, Shrink] = (0, 0, 0)
    scales: Codes6 = NO_CODES
    down: bool = False
    least: Annotated[int, Meta(ge=ALL, le=-ALL + 1)] = ALL


TensorLine: TypeAlias = UniformLine | TrellisLine | RelativeLine | CodebookLine


class ChunkLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A chunk: `a` scales and tables, `c` codebooks, `s` symbols, `x` exact bytes; length, CRC-32, number of units."""

    kind: str
    size: Annotated[int, Meta(ge=0, le=1 << 50)]
    crc: Annotated[int, Meta(ge=0, lt=1 << 32)]
    count: Annotated[int, Meta(ge=0, le=MAX_NUMEL)]


class LimitLine(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Bits of the whole file, the measure, and hundredths of a bit per value of every coded matrix, -1 for none."""

    bits: Annotated[int, Meta(ge=0, le=1 << 50)]
    measure: Annotated[str, Meta(max_length=MAX_MEASURE)]
    rates: tuple[Annotated[int, Meta(ge=-1, le=1 << 16)], ...]


class Directory(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything in the file but the chunks themselves.

    Attributes:
        entries: the state dict, in its order.
        tensors: rule and spread of every coded entry, in the same order.
        chunks: in the order in which they lie in the file.
        producer: name and version of the writer.
        limit: how small the file could be; for people, a decoder does not need it.
        tables: own tables of the tensors that have some, in the same order.
        adaptive: the tensors with an adaptive model, in the same order.
        bases: the tensors that are in another basis, in the same order; from minor version 1 on.
        lanes: the tensors whose paths have lanes, in the same order; from minor version 2 on.
    """

    entries: tuple[EntryLine, ...]
    tensors: tuple[TensorLine, ...]
    chunks: tuple[ChunkLine, ...]
    producer: str = ""
    limit: LimitLine | None = None
    tables: tuple[OwnLine, ...] = ()
    adaptive: tuple[AdaptiveLine, ...] = ()
    bases: tuple[BasisLine, ...] = ()
    lanes: tuple[LanesLine, ...] = ()
