"""One step of eight lanes at once, in vectors of LLVM: for any processor, and fast where it gathers (AVX2 and later).

There is no compiler on the machine of a user but numba, so the steps are written for LLVM: vectors of eight 32-bit
integers, which it turns into the instructions of the processor.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.ir.instructions import GEPInstr
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import NDArray

WIDTH = 8
"""Lanes of a vector."""

BIT, BYTE, SHORT, WORD, LONG = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_GATHER = f"llvm.masked.gather.v{WIDTH}i32.v{WIDTH}p0"


@functools.cache
def supported() -> bool:
    """Whether the processor that numba compiles for reads eight places of memory in one instruction."""
    features: str = cpu_target.target_context.codegen().magic_tuple()[2]
    return "+avx2" in features.split(",")


@functools.cache
def offsets() -> NDArray[np.uint8]:
    """How many lanes before each one have their bit in a mask, [masks, WIDTH]."""
    masks = np.arange(1 << WIDTH)[:, None] >> np.arange(WIDTH) & 1
    return (np.cumsum(masks, axis=1) - masks).astype(np.uint8)


@functools.cache
def shuffles() -> NDArray[np.uint8]:
    """Which two of 16 bytes each lane of a mask takes, [masks, 2 WIDTH]; 128 for none."""
    first = 2 * offsets()[:, :, None] + np.arange(2)
    taken = np.arange(1 << WIDTH)[:, None] >> np.arange(WIDTH) & 1
    return np.where(taken[:, :, None], first, 128).astype(np.uint8).reshape(1 << WIDTH, 2 * WIDTH)


@intrinsic
def look_up(_context, entries, sums, _part, now, _start):
    """Read `entries[sums[l] + _part]` of the lanes from `_start` on into `now`."""

    def generate(target: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointers = _Pointers(target, builder, signature, values)
        index = builder.add(_load(builder, pointers(1, values[4])), _splat(builder, builder.trunc(values[2], WORD)))
        _store(builder, _gather(builder, pointers(0), index, WORD), pointers(3, values[4]))
        return target.get_dummy_value()

    return types.void(entries, sums, types.int64, now, types.int64), generate


@intrinsic
def decode_group(
    _context, states, trellises, now, active, _start, slots, words, _at, _flips, _picks, _zero, levels, _done
):
    """Decode one level of each of the eight lanes from `_start` on that are active.

    Where a lane has an escape or low bits, nothing is changed.

    Args:
        _context: of numba.
        states: uint32, of the coder, changed in place.
        trellises: uint32, changed in place.
        now: int32, the entry of every lane: 8192 times its class, 2 with low bits, and 1 where it stands aside.
        active: int32, 1 for lanes that there are, else 0.
        _start: the first lane.
        slots: uint32, of all tables.
        words: uint16.
        _at: position in them.
        _flips: half of the parity check h0.
        _picks: half of the parity check h1.
        _zero: whether zero is in subset 1, too.
        levels: int32, filled from `_done` on.
        _done: where the first level belongs.

    Returns:
        The next position in `words`, and whether a lane has an escape or low bits.
    """
    arrays = states, trellises, now, active, types.int64, slots, words, types.int64
    signature = types.Tuple((types.int64, types.boolean))(
        *arrays, types.int64, types.int64, types.boolean, levels, types.int64
    )
    return signature, _decode_group


def _decode_group(target: Any, builder: Any, signature: Any, values: Any) -> Any:
    pointers = _Pointers(target, builder, signature, values)
    start, at, done = values[4], values[7], values[12]
    places = [pointers(n, start) for n in range(4)]
    x, state, entry, active = (_load(builder, place) for place in places)
    there = builder.icmp_unsigned("!=", active, _same(0))
    stays = builder.icmp_unsigned("!=", builder.and_(entry, _same(1)), _same(0))
    subset = builder.and_(builder.and_(state, builder.not_(entry)), _same(1))
    slot = _slots(builder, pointers(5), entry, subset, x)
    byte = builder.and_(slot, _same(255))
    longer = builder.icmp_unsigned("!=", builder.and_(entry, _same(2)), _same(0))
    longer = builder.and_(builder.or_(builder.icmp_unsigned("==", byte, _same(0)), longer), there)
    rare = builder.icmp_unsigned("!=", builder.bitcast(longer, BYTE), BYTE(0))
    x = builder.select(there, _without_symbol(builder, slot, x), x)
    low = builder.and_(builder.icmp_unsigned("<", x, _same(1 << 16)), there)
    mask = builder.bitcast(low, BYTE)
    x = builder.select(low, builder.or_(builder.shl(x, _same(16)), _next_words(builder, pointers(6, at), mask)), x)
    moved = _next_state(builder, state, subset, byte, values[8:10])
    with builder.if_then(builder.not_(rare), likely=True):
        _store(builder, x, places[0])
        _store(builder, builder.select(stays, state, moved), places[1])
        _store(builder, _levels(builder, byte, subset, values[10]), pointers(11, done))
    after = builder.select(rare, at, builder.add(at, builder.zext(builder.ctpop(mask), LONG)))
    return target.make_tuple(builder, signature.return_type, [after, rare])


@intrinsic
def fill_square(
    _context,
    levels,
    _at,
    _apart,
    own,
    _one,
    _own_apart,
    common,
    _other,
    _common_apart,
    steps,
    shrink,
    matrix,
    _place,
    _place_apart,
):
    """Put the values of eight neighbours of eight lanes into a matrix.

    Where a level is 2^24 or more, so that float32 does not have it, nothing is changed.

    Args:
        _context: of numba.
        levels: int32, those of the lanes side by side.
        _at: the first one.
        _apart: from there to the next neighbour.
        own: int32, parts of the sum of scales that neighbours do not share.
        _one: the first one.
        _own_apart: from lane to lane.
        common: int32, those that they share.
        _other: that of the first lane.
        _common_apart: from lane to lane.
        steps: float32, of every sum.
        shrink: float32 [4], how far the levels 0, 1, 2, and 3 and above lie towards zero.
        matrix: float32, filled.
        _place: the first value.
        _place_apart: from lane to lane.

    Returns:
        Whether nothing is changed.
    """
    number = types.int64
    signature = types.boolean(
        levels, number, number, own, number, number, common, number, number, steps, shrink, matrix, number, number
    )
    return signature, _fill_square


def _fill_square(target: Any, builder: Any, signature: Any, values: Any) -> Any:
    pointers = _Pointers(target, builder, signature, values)
    found = [_load(builder, pointers(0, _moved(builder, values[1], values[2], n))) for n in range(WIDTH)]
    large = _same(0)
    for each in found:
        large = builder.or_(large, builder.xor(each, builder.ashr(each, _same(31))))
    rest = builder.icmp_unsigned(
        "!=", builder.bitcast(builder.icmp_unsigned(">=", large, _same(1 << 24)), BYTE), BYTE(0)
    )
    shrink = [_splat(builder, builder.load(pointers(10, LONG(n)))) for n in (1, 2, 3)]
    lanes = _turned(builder, [_towards_zero(builder, each, shrink) for each in found])
    with builder.if_then(builder.not_(rest), likely=True):
        for n, lane in enumerate(lanes):
            part = builder.load(pointers(6, _moved(builder, values[7], values[8], n)))
            sums = builder.add(
                _load(builder, pointers(3, _moved(builder, values[4], values[5], n))), _splat(builder, part)
            )
            step = builder.bitcast(_gather(builder, pointers(9), sums, WORD), lane.type)
            _store(builder, builder.fmul(lane, step), pointers(11, _moved(builder, values[12], values[13], n)))
    return rest


def _moved(builder: Any, start: Any, stride: Any, times: int) -> Any:
    """A place some strides on."""
    return builder.add(start, builder.mul(stride, LONG(times)))


def _towards_zero(builder: Any, levels: Any, shrink: Any) -> Any:
    """Levels in 1/64 step, moved towards zero; float32, exact up to its own rounding."""
    number = ir.VectorType(ir.FloatType(), WIDTH)
    x = builder.sitofp(levels, number)
    size = builder.select(builder.icmp_signed("<", levels, _same(0)), builder.sub(_same(0), levels), levels)
    moved = ir.Constant(number, [0.0] * WIDTH)
    for least, each in enumerate(shrink, 1):
        moved = builder.select(builder.icmp_signed(">=", size, _same(least)), each, moved)
    scaled = builder.fmul(x, ir.Constant(number, [64.0] * WIDTH))
    negative = builder.icmp_signed("<", levels, _same(0))
    return builder.select(negative, builder.fadd(scaled, moved), builder.fsub(scaled, moved))


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The transpose of eight vectors."""
    for bit in (4, 2, 1):
        for n in (n for n in range(WIDTH) if not n & bit):
            pair = rows[n], rows[n | bit]
            low = [k if not k & bit else WIDTH + (k ^ bit) for k in range(WIDTH)]
            high = [k | bit if not k & bit else WIDTH + k for k in range(WIDTH)]
            order = (ir.Constant(ir.VectorType(WORD, WIDTH), each) for each in (low, high))
            rows[n], rows[n | bit] = (builder.shuffle_vector(*pair, each) for each in order)
    return rows


def _slots(builder: Any, slots: Any, entry: Any, subset: Any, x: Any) -> Any:
    """What the tables have where the states of the coder are."""
    table = builder.add(builder.and_(entry, _same(~3)), builder.shl(subset, _same(12)))
    return _gather(builder, slots, builder.add(table, builder.and_(x, _same(4095))), WORD)


def _without_symbol(builder: Any, slot: Any, x: Any) -> Any:
    """The states of the coder without the symbols of these slots."""
    scaled = builder.mul(builder.lshr(slot, _same(20)), builder.lshr(x, _same(12)))
    return builder.add(scaled, builder.and_(builder.lshr(slot, _same(8)), _same(4095)))


def _next_words(builder: Any, words: Any, mask: Any) -> Any:
    """The next words, one for every lane of a mask, in their order; 0 or anything for the others."""
    if supported():
        return _shuffled_words(builder, words, mask)
    index = builder.zext(_load(builder, _row(builder, offsets(), mask), BYTE), ir.VectorType(WORD, WIDTH))
    return builder.and_(_gather(builder, words, index, SHORT), _same(0xFFFF))


def _shuffled_words(builder: Any, words: Any, mask: Any) -> Any:
    """The same by one instruction of x86 that moves 16 bytes."""
    octets, halves = ir.VectorType(BYTE, 2 * WIDTH), ir.VectorType(SHORT, WIDTH)
    kind = ir.FunctionType(octets, [octets, octets])
    shuffle = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.ssse3.pshuf.b.128")
    some = builder.bitcast(_load(builder, words, SHORT), octets)
    order = builder.bitcast(_load(builder, _row(builder, shuffles(), mask), SHORT), octets)
    moved = builder.bitcast(builder.call(shuffle, [some, order]), halves)
    return builder.zext(moved, ir.VectorType(WORD, WIDTH))


def _row(builder: Any, table: NDArray[np.uint8], mask: Any) -> Any:
    """Pointer to the row of a table of bytes."""
    data = ir.Constant(ir.ArrayType(BYTE, table.size), bytearray(table.tobytes()))
    there = cgutils.global_constant(builder, "lanes", data)
    return builder.gep(there, [LONG(0), builder.mul(builder.zext(mask, LONG), LONG(table.shape[1]))])


def _next_state(builder: Any, state: Any, subset: Any, byte: Any, checks: Any) -> Any:
    """Where the trellis goes on; see `lane_kernels`."""
    flips, picks = (_splat(builder, builder.trunc(check, WORD)) for check in checks)
    odd = builder.sub(_same(0), builder.and_(byte, _same(1)))
    changed = builder.xor(builder.and_(odd, picks), builder.and_(builder.sub(_same(0), subset), flips))
    return builder.xor(builder.lshr(state, _same(1)), changed)


def _levels(builder: Any, byte: Any, subset: Any, zero: Any) -> Any:
    """The levels of high parts that are no escapes: 2k + q, or with zero in both subsets 2k - q sgn(k)."""
    k = builder.sub(byte, _same(128))
    signs = [builder.zext(builder.icmp_signed(sign, k, _same(0)), ir.VectorType(WORD, WIDTH)) for sign in "<>"]
    towards = builder.mul(builder.sub(*signs), subset)
    moved = builder.select(_splat(builder, builder.trunc(zero, BIT)), towards, subset)
    return builder.add(builder.shl(k, _same(1)), moved)


class _Pointers:
    """Pointers into the arrays among the arguments of an intrinsic."""

    def __init__(self, target: Any, builder: Any, signature: Any, values: Any) -> None:
        self._known = target, builder, signature, values

    def __call__(self, number: int, index: Any = None) -> Any:
        """Pointer to an element of argument `number`, by default the first."""
        target, builder, signature, values = self._known
        start = target.make_array(signature.args[number])(target, builder, values[number]).data
        return start if index is None else builder.gep(start, [index])


def _same(value: int) -> Any:
    """A vector of one number."""
    return ir.Constant(ir.VectorType(WORD, WIDTH), [value] * WIDTH)


def _splat(builder: Any, value: Any) -> Any:
    """A vector of one value."""
    none = ir.Constant(ir.VectorType(value.type, WIDTH), ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(none, value, WORD(0)), none, _same(0))


def _load(builder: Any, pointer: Any, kind: Any = WORD) -> Any:
    """Read neighbours."""
    found = builder.load(builder.bitcast(pointer, ir.VectorType(kind, WIDTH).as_pointer()))
    found.align = kind.width // 8
    return found


def _store(builder: Any, value: Any, pointer: Any) -> None:
    """Write neighbours."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 4


def _gather(builder: Any, base: Any, index: Any, unit: Any) -> Any:
    """32 bits from each of the addresses `base + index` in units of a type."""
    pointers = ir.VectorType(WORD.as_pointer(), WIDTH)
    places = GEPInstr(builder.block, builder.bitcast(base, WORD.as_pointer()), [index], False, "", source_etype=unit)
    places.type = pointers
    builder._insert(places)
    words, bits = (ir.VectorType(kind, WIDTH) for kind in (WORD, BIT))
    kind = ir.FunctionType(words, [pointers, WORD, bits, words])
    gather = cgutils.get_or_insert_function(builder.module, kind, _GATHER)
    return builder.call(gather, [places, WORD(unit.width // 8), ir.Constant(bits, [1] * WIDTH), _same(0)])
