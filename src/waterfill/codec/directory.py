"""The directory of a file: which tensors there are, how they are coded, where their chunks lie (docs/format.md)."""

from __future__ import annotations

import functools
import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import NamedTuple, TypeAlias, cast

import msgspec
import numpy as np
import zstandard

from waterfill.codec import basis_lines, own, rows, scales
from waterfill.codec.frames import decompressed
from waterfill.codec.lines import (
    MAX_AXES,
    MAX_MEASURE,
    MAX_NUMEL,
    NO_CODES,
    BasisLine,
    ChunkLine,
    CodebookLine,
    Codes3,
    Directory,
    EntryLine,
    LanesLine,
    LimitLine,
    OwnLine,
    RelativeLine,
    TableLine,
    TensorLine,
    TrellisLine,
    UniformLine,
)
from waterfill.errors import FormatError
from waterfill.records import (
    NO_SCALES,
    Adaptive,
    Codebook,
    Coded,
    Constant,
    Entry,
    Exact,
    FileLimit,
    Floats,
    Lanes,
    Layout,
    Limits,
    NormMean,
    NormVariance,
    Origin,
    Paths,
    Quantized,
    Relative,
    Rule,
    Spread,
    Symbols,
    Tied,
    Uniform,
)

DTYPE_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "complex32": 4, "complex64": 8, "complex128": 16,
    "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1,
}  # fmt: skip
CODED_DTYPES = ("float64", "float32", "float16", "bfloat16")
MAX_DIRECTORY_BYTES = 1 << 26
LARGEST_NUMBER = sys.float_info.max
DIRECTORY_BYTES, MAX_EXPANSION = 1 << 20, 1000
"""A directory of more than a megabyte has at most so many bytes for each packed one: real ones have up to 50."""

MAX_UNITS_PER_BYTE = {"a": 1 << 13, "s": 1 << 13, "x": 1 << 15}
"""No table symbol takes less than 1/1000 bit, and a zstandard block of four bytes holds 128 KiB at most."""

SPARE_ANGLES = 1 << 20
"""By so many more angles than it has values a file may turn tensors: it may have small parts of them alone."""

PHRASES_SHA256 = "f5e15af28ae616e30a75ac323962b587a50ad58ecd7597562ac190a5e911314f"


def pack(directory: Directory, *, plain: bool = False) -> tuple[bytes, int]:
    """The directory as bytes, and its size before compression, which is 0 for plain bytes."""
    if plain:
        return rows.pack(msgspec.to_builtins(directory)), 0
    text = msgspec.json.encode(directory)
    options = zstandard.ZstdCompressionParameters.from_level(
        19, write_content_size=False, write_checksum=False, write_dict_id=False
    )
    return zstandard.ZstdCompressor(dict_data=phrases(), compression_params=options).compress(text), len(text)


@functools.cache
def phrases() -> zstandard.ZstdCompressionDict:
    """What directories are made of: they are compressed as if they came after it.

    Raises:
        RuntimeError: the file has another SHA-256.
    """
    data = resources.files("waterfill.codec").joinpath("phrases.bin").read_bytes()
    if hashlib.sha256(data).hexdigest() != PHRASES_SHA256:
        raise RuntimeError("codec/phrases.bin is not that of this format: the installation is damaged; reinstall it")
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def largest(packed_size: int) -> int:
    """How many bytes a directory may have when unpacked, or the joined texts of a plain one."""
    return min(MAX_DIRECTORY_BYTES, DIRECTORY_BYTES + MAX_EXPANSION * packed_size)


def unpack(data: bytes, size: int) -> Directory:
    """Undo `pack`, and check everything that can be checked without the chunks.

    Raises:
        FormatError: anything is wrong.
    """
    try:
        if size == 0:
            directory = msgspec.convert(rows.unpack(data, largest(len(data))), Directory)
        else:
            directory = msgspec.json.decode(_text(data, size), type=Directory)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"the directory cannot be read ({error})") from error
    check_chunks(directory, entries_of(directory), plain=size == 0)
    return directory


def _text(data: bytes, size: int) -> bytes:
    """The JSON of a packed directory."""
    text = decompressed(data, size + 1, phrases())
    if len(text) != size:
        raise FormatError(f"the directory has not the {size} bytes that the header says")
    return text


# Entries


def entry_line(entry: Entry) -> EntryLine:
    """The line of an entry."""
    how, argument = _how(entry.origin)
    return EntryLine(entry.name, entry.dtype, entry.shape, how, argument)


def _how(origin: Origin) -> tuple[str, int | float | str | None]:
    match origin:
        case Coded(layout):
            return ("t", layout.groups) if layout.transposed else ("q", None)
        case Exact(reason):
            return "x", reason
        case Tied(to):
            return "=", to
        case Constant(value):
            return "c", value
        case NormVariance(_, eps):
            return "v", eps
        case NormMean(_, scale):
            return "m", scale


def entries_of(directory: Directory) -> tuple[Entry, ...]:
    """The entries of a directory, checked one by one and against each other.

    Raises:
        FormatError: an entry contradicts itself or another one.
    """
    seen: dict[str, Entry] = {}
    for line in directory.entries:
        if line.name in seen:
            raise FormatError(f"tensor {line.name!r} is there twice")
        if line.dtype not in DTYPE_BYTES or len(line.shape) > MAX_AXES or _room(line.shape) > MAX_NUMEL:
            raise FormatError(f"tensor {line.name!r} has the impossible type or shape {line.dtype} {line.shape}")
        origin = _origin(line, seen)
        if not isinstance(origin, Exact | Tied) and line.dtype not in CODED_DTYPES:
            raise FormatError(f"tensor {line.name!r} of type {line.dtype} cannot be coded with loss")
        seen[line.name] = Entry(line.name, line.shape, line.dtype, origin)
    return tuple(seen.values())


def _room(shape: Sequence[int]) -> int:
    """Number of values; as if axes of length 0 had 1, for arrays without values have to be possible too."""
    return math.prod(max(1, length) for length in shape)


def _origin(line: EntryLine, seen: dict[str, Entry]) -> Origin:
    argument = line.argument
    origin: Origin | None = None
    match line.how:
        case "q":
            origin = Coded(Layout(line.shape))
        case "t" if isinstance(argument, int) and len(line.shape) >= 2 and argument >= 1:
            if line.shape[0] % argument == 0 and argument * _room(line.shape[1:]) <= MAX_NUMEL:
                origin = Coded(Layout(line.shape, transposed=True, groups=argument))
        case "x" if isinstance(argument, str):
            origin = Exact(argument)
        case "=" if isinstance(argument, str) and _is_original(seen.get(argument), line):
            origin = Tied(argument)
        case "c" if isinstance(argument, int | float) and abs(argument) <= LARGEST_NUMBER:
            origin = Constant(float(argument))
        case "v" if isinstance(argument, int | float) and 0 <= argument <= LARGEST_NUMBER and len(line.shape) == 1:
            origin = NormVariance(Layout(line.shape), float(argument))
        case "m" if isinstance(argument, str) and len(line.shape) == 1:
            origin = NormMean(Layout(line.shape), argument)
    if origin is None:
        raise FormatError(f"tensor {line.name!r} has the impossible origin {line.how!r} {argument!r}")
    return origin


def _is_original(entry: Entry | None, line: EntryLine) -> bool:
    """Whether a line may be tied to an entry."""
    return (
        entry is not None
        and not isinstance(entry.origin, Tied)
        and (entry.shape, entry.dtype) == (line.shape, line.dtype)
    )


def coded_layouts(entries: tuple[Entry, ...]) -> dict[str, Layout]:
    """Layout of every coded entry, in order.

    Raises:
        FormatError: the mean of a norm names a scale that is none.
    """
    layouts = {e.name: e.origin.layout for e in entries if isinstance(e.origin, Coded | NormVariance | NormMean)}
    variances = {e.name: e.shape for e in entries if isinstance(e.origin, NormVariance)}
    for entry in entries:
        if isinstance(entry.origin, NormMean) and variances.get(entry.origin.scale) != entry.shape:
            raise FormatError(f"tensor {entry.name!r} names {entry.origin.scale!r} as its scale, which is none")
    return layouts


def exact_sizes(entries: tuple[Entry, ...]) -> dict[str, int]:
    """Bytes of every exact entry, in order."""
    return {e.name: math.prod(e.shape) * DTYPE_BYTES[e.dtype] for e in entries if isinstance(e.origin, Exact)}


def original_bytes(entries: tuple[Entry, ...]) -> int:
    """Bytes of all tensors of a state dict, tied ones once."""
    own = [entry for entry in entries if not isinstance(entry.origin, Tied)]
    return sum(math.prod(entry.shape) * DTYPE_BYTES[entry.dtype] for entry in own)


def check_original_bytes(entries: tuple[Entry, ...], most: int | None) -> None:
    """Check how many bytes tensors take when decoded, before anything is decoded.

    Raises:
        FormatError: more than allowed.
    """
    size = original_bytes(entries)
    if most is not None and size > most:
        raise FormatError(
            f"its tensors take {size:,} bytes, but at most {most:,} are allowed; raise max_bytes (--max-bytes) if the "
            "file is to be trusted"
        )


# Tensors


SideVector: TypeAlias = tuple[int, Symbols | None]
"""A code, and the integers that go with it; None for none."""


class Lines(NamedTuple):
    """All lines of a coded tensor.

    Attributes:
        tensor: its rule and spread.
        tables: its own tables.
        basis: its basis; None for its own values.
        lanes: those of its path; None for none.
    """

    tensor: TensorLine
    tables: tuple[TableLine, ...] = ()
    basis: BasisLine | None = None
    lanes: LanesLine | None = None


def side_vectors(item: Quantized, *, shared: bool) -> tuple[SideVector, ...]:
    """What is stored of scales of steps and spreads, six, of own tables, and of angles, in their order in a file.

    Args:
        item: a quantized tensor.
        shared: whether its angles are those of another one.
    """
    steps = item.rule.scales if isinstance(item.rule, Uniform) else NO_SCALES
    stored = [*map(scales.stored, steps), *map(scales.stored, item.spread.scales, steps)]
    others = [own.differences(table).astype(np.int32) for table in item.spread.tables]
    others += [] if shared else basis_lines.angles_of(item.basis)
    return (*((each.code, each.values) for each in stored), *((own.best_code(each), each) for each in others))


def all_lines(directory: Directory) -> list[Lines]:
    """The lines of every coded tensor.

    Raises:
        FormatError: they are not in the order of the tensors, or of a tensor that is not there.
    """
    bases = basis_lines.lines_of_tensors(directory.bases, len(directory.tensors))
    every = zip(directory.tensors, own_lines(directory), bases, lanes_lines(directory), strict=True)
    return [Lines(*each) for each in every]


def _in_order(numbers: list[int], count: int) -> bool:
    """Whether some of so many tensors are named once each, from the first to the last."""
    return sorted(set(numbers)) == numbers and (not numbers or numbers[-1] < count)


def own_lines(directory: Directory) -> list[tuple[TableLine, ...]]:
    """The own tables of every coded tensor.

    Raises:
        FormatError: they are not in the order of the tensors, or of a tensor that is not there.
    """
    found: list[tuple[TableLine, ...]] = [()] * len(directory.tensors)
    numbers = [line.tensor for line in directory.tables]
    if not _in_order(numbers, len(found)):
        raise FormatError(f"tables of the tensors {numbers[:9]} are not in order, or of more than {len(found)} tensors")
    for line in directory.tables:
        found[line.tensor] = line.tables
    return found


def lanes_lines(directory: Directory) -> list[LanesLine | None]:
    """The lanes of every coded tensor; None for none.

    Raises:
        FormatError: they are not in the order of the tensors, or of a tensor that is not there.
    """
    found: list[LanesLine | None] = [None] * len(directory.tensors)
    numbers = [line.tensor for line in directory.lanes]
    if not _in_order(numbers, len(found)):
        raise FormatError(f"lanes of the tensors {numbers[:9]} are not in order, or of more than {len(found)} tensors")
    for line in directory.lanes:
        found[line.tensor] = line
    return found


def adaptive_models(directory: Directory) -> list[Adaptive | None]:
    """The adaptive model of every coded tensor; None for none.

    Raises:
        FormatError: they are not in the order of the tensors, or of a tensor that is not there.
    """
    found: list[Adaptive | None] = [None] * len(directory.tensors)
    numbers = [line.tensor for line in directory.adaptive]
    if not _in_order(numbers, len(found)):
        raise FormatError(f"the tensors {numbers[:9]} adapt, which are not in order, or more than {len(found)}")
    for line in directory.adaptive:
        found[line.tensor] = Adaptive(line.width)
    return found


def adapted(spread: Spread, model: Adaptive | None) -> Spread:
    """A spread with its adaptive model, if it has one.

    Raises:
        FormatError: it has scales, tables or a trellis beside it.
    """
    if model is None:
        return spread
    if spread.tables or spread.trellis is not None or any(scale is not None for scale in spread.scales):
        raise FormatError("a tensor has both an adaptive model and scales, tables or a trellis")
    return replace(spread, adaptive=model)


def side_codes(lines: Lines) -> tuple[int, ...]:
    """The codes of the six vectors of scales, of the own tables and of the angles."""
    others = [table.code for table in lines.tables]
    others += basis_lines.codes_of(lines.basis)
    match lines.tensor:
        case UniformLine() | TrellisLine():
            return (*lines.tensor.scales, *others)
        case CodebookLine():
            return (-1, -1, -1, *lines.tensor.scales, *others)
    return (*NO_CODES, *others)


def side_lengths(lines: Lines, layout: Layout) -> tuple[int, ...]:
    """How many values each vector of scales, each own table and the angles have in the file; 0 for none.

    Raises:
        FormatError: the tensor cannot have its basis.
    """
    lengths = [*layout.axes, *layout.axes, *(table.count + 1 for table in lines.tables)]
    lengths += basis_lines.numbers_of_angles(lines.basis, layout)
    codes = side_codes(lines)
    return tuple(0 if scales.exponent(code) is None else length for code, length in zip(codes, lengths, strict=True))


def codebook_size(line: TensorLine) -> int:
    """How many values the codebook of a tensor has; 0 without one."""
    return line.size if isinstance(line, CodebookLine) else 0


def tensor_line(rule: Rule, spread: Spread, codes: tuple[int, ...]) -> TensorLine:
    """The line of a coded tensor."""
    steps, spreads = cast(Codes3, codes[:3]), cast(Codes3, codes[3:6])
    if isinstance(rule, Relative):
        return RelativeLine(rule.mantissa, rule.offset, rule.signed, spread.family, spread.base)
    if isinstance(rule, Codebook):
        return CodebookLine(len(rule.values), rule.first, spread.family, spread.base, spreads)
    path = spread.trellis
    if path is not None:
        tables_of = spread.family, spread.base, path.family, path.base
        how = path.log_states, path.zero, path.log_span
        return TrellisLine(rule.step, *how, *tables_of, rule.shrink, (*steps, *spreads), path.down, path.least)
    return UniformLine(rule.step, spread.family, spread.base, rule.shrink, (*steps, *spreads), rule.offset)


def own_line(tensor: int, spread: Spread, codes: tuple[int, ...]) -> OwnLine:
    """The line of the own tables of a coded tensor, which has some."""
    found = zip(spread.tables, codes[6:], strict=False)
    return OwnLine(tensor, tuple(TableLine(table.first, table.roots.size - 1, code) for table, code in found))


def rule_and_spread(lines: Lines, vectors: Sequence[Symbols | None], codebook: Floats) -> tuple[Rule, Spread]:
    """Undo `tensor_line` and `own_line`, given the vectors of scales and the own tables as they are stored.

    Raises:
        FormatError: a scale is out of range or relative to one that is not there, steps leave the range of normal
            float32 numbers, a codebook is not finite or lacks its zero, a table cannot be, or there are tables beside a
            trellis, lanes without one, or lanes and a span.
    """
    line, codes = lines.tensor, side_codes(lines)[:6]
    steps = tuple(map(scales.restored, codes[:3], vectors[:3]))
    rows, channels, taps = map(scales.restored, codes[3:], vectors[3:6], steps)
    stored = zip(lines.tables, vectors[6:], strict=False)
    found = tuple(own.from_differences(table.first, vector) for table, vector in stored if vector is not None)
    spread = Spread(line.family, line.base, rows, channels, taps, found, _trellis(lines))
    if spread.trellis is not None and found:
        raise FormatError("a tensor has both a trellis and tables of its own")
    if isinstance(line, RelativeLine):
        return Relative(line.mantissa, line.offset, line.signed), spread
    if isinstance(line, CodebookLine):
        if line.first + line.size <= 0 or not np.isfinite(codebook).all():
            raise FormatError("a codebook has no value for the symbol 0, or one that is not finite")
        return Codebook(codebook, line.first), spread
    offset = line.offset if isinstance(line, UniformLine) else 0
    rule = Uniform(line.step, offset, line.shrink, *steps)
    present = [scale for scale in steps if scale is not None and scale.size]
    if abs(line.step) + 16 * sum(int(np.abs(scale.astype(np.int64)).max()) for scale in present) > 7000:
        raise FormatError("the steps of a tensor are out of range")
    return rule, spread


def _trellis(lines: Lines) -> Paths | None:
    """The trellis of a tensor; None without one.

    Raises:
        FormatError: there are lanes without a trellis, or lanes and a span.
    """
    line, lanes = lines.tensor, lines.lanes
    if lanes is not None and not (isinstance(line, TrellisLine) and line.log_span == 0):
        raise FormatError("a tensor has lanes without a path, or both lanes and a span")
    if not isinstance(line, TrellisLine):
        return None
    tables_of = line.second_family, line.second_base
    side_by_side = None if lanes is None else Lanes(lanes.count, lanes.lines)
    return Paths(line.log_states, line.zero, line.log_span, *tables_of, line.down, line.least, side_by_side)


def check_symbols(symbols: Symbols, rule: Rule) -> None:
    """Check that the symbols of a tensor with a codebook are in it.

    Raises:
        FormatError: they are not.
    """
    if isinstance(rule, Codebook) and symbols.size:
        low, high = int(symbols.min()) - rule.first, int(symbols.max()) - rule.first
        if low < 0 or high >= len(rule.values):
            raise FormatError(f"a symbol is none of the {len(rule.values)} of its codebook")


def limit_line(limits: Limits, layouts: Mapping[str, Layout]) -> LimitLine:
    """The line of the limits of a file with these coded tensors."""
    found = [limits.tensors.get(name) for name in _matrices(layouts)]
    rates = tuple(-1 if limit is None else min(round(100 * limit.rate), 1 << 16) for limit in found)
    return LimitLine(round(limits.bits), limits.measure[:MAX_MEASURE], rates)


def limit_of(directory: Directory, entries: tuple[Entry, ...]) -> FileLimit | None:
    """Undo `limit_line`; None in a file without one.

    Raises:
        FormatError: there are not as many rates as coded matrices.
    """
    line = directory.limit
    if line is None:
        return None
    matrices = _matrices(coded_layouts(entries))
    if len(line.rates) != len(matrices):
        raise FormatError(f"{len(matrices)} matrices are coded, but there are limits for {len(line.rates)}")
    rates = {name: rate / 100 for name, rate in zip(matrices, line.rates, strict=True) if rate >= 0}
    return FileLimit(line.bits, rates, line.measure)


def _matrices(layouts: Mapping[str, Layout]) -> list[str]:
    return [name for name, layout in layouts.items() if len(layout.shape) >= 2]


def check_chunks(directory: Directory, entries: tuple[Entry, ...], *, plain: bool) -> None:
    """Check that the chunks hold exactly what the entries need.

    Args:
        directory: with the chunks.
        entries: of it.
        plain: whether exact bytes are in their chunks as they are.

    Raises:
        FormatError: they do not.
    """
    layouts = coded_layouts(entries)
    if len(layouts) != len(directory.tensors):
        raise FormatError(f"{len(layouts)} tensors are coded, but {len(directory.tensors)} are described")
    lines = list(zip(all_lines(directory), layouts.values(), strict=True))
    side = sum(sum(side_lengths(each, layout)) for each, layout in lines)
    angles = sum(basis_lines.angles_of_tensors([each.basis for each, _ in lines], list(layouts.values())))
    needed = {
        "a": side,
        "c": sum(codebook_size(line) for line in directory.tensors),
        "s": sum(layout.numel for layout in layouts.values()),
        "x": sum(exact_sizes(entries).values()),
    }
    constant = sum(math.prod(entry.shape) for entry in entries if isinstance(entry.origin, Constant))
    if constant > needed["s"]:
        raise FormatError(f"{constant} values are constant, more than the {needed['s']} that are coded")
    if angles > needed["s"] + SPARE_ANGLES:  # a matrix of rotations takes time for each
        raise FormatError(
            f"tensors are turned by {angles} angles, too many for the {needed['s']} values that are coded"
        )
    found = dict.fromkeys(needed, 0)
    for chunk in directory.chunks:
        if chunk.kind not in found or not _can_hold(chunk, plain=plain):
            raise FormatError(f"a chunk of kind {chunk.kind!r} cannot hold {chunk.count} units in {chunk.size} bytes")
        found[chunk.kind] += chunk.count
    kinds = [chunk.kind for chunk in directory.chunks]
    if kinds != sorted(kinds, key="acsx".index):
        raise FormatError("the chunks are not in the order scales, codebooks, symbols, exact bytes")
    if found != needed:
        raise FormatError(f"the chunks hold {found}, but the tensors need {needed}")


def _can_hold(chunk: ChunkLine, *, plain: bool) -> bool:
    """Whether a chunk of that length may decode to that many units; no chunk is empty."""
    if not chunk.size:
        return False
    if chunk.kind == "c":
        return chunk.size == 4 * chunk.count
    if chunk.kind == "x" and plain:
        return chunk.size == chunk.count
    return chunk.count <= chunk.size * MAX_UNITS_PER_BYTE[chunk.kind]
