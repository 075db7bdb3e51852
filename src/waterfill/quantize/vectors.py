"""One step of the search for a path on vectors of states, for every processor that LLVM knows.

Numba leaves loops over states alone whose results go to pairs of neighbours, so what they do is written as instructions
of LLVM: on integers, so that all processors find the same paths. Costs of paths wrap around: of two that are less than
half of all numbers apart, the lower one is told by the sign of their difference.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

Builder = Any


@intrinsic(prefer_literal=True)
def spread_costs(_typing, costs, at, odd, flip, spread, lanes):
    """Put the four costs of a weight's branches where states of every kind find them.

    State l of a block of kind `2 o + f` picks subset `odd[l] xor o`, and goes straight on by its branch
    `flip[l] xor f`.

    Args:
        _typing: of numba.
        costs: [4, n], of any integers.
        at: which weight.
        odd: the same integers [lanes], -1 or 0.
        flip: the same.
        spread: the same integers, flat [4 * lanes], filled.
        lanes: a literal power of two.
    """
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    width = lanes.literal_value

    def generate(context, builder, signature, values):
        vector = ir.VectorType(context.get_value_type(signature.args[0].dtype), width)
        rows = _shape(context, builder, signature.args[0], values[0])
        start = _data(context, builder, signature.args[0], values[0])
        each = []
        for branch in range(4):
            place = builder.add(builder.mul(rows[1], ir.Constant(rows[1].type, branch)), values[1])
            each.append(_repeated(builder, builder.load(builder.gep(start, [place])), vector))
        is_odd, is_flipped = (
            builder.icmp_signed(
                "!=", _load(context, builder, signature.args[k], values[k], None, vector), _zero(vector)
            )
            for k in (2, 3)
        )
        even = builder.select(is_flipped, each[1], each[0])
        even_turned = builder.select(is_flipped, each[0], each[1])
        other = builder.select(is_flipped, each[3], each[2])
        other_turned = builder.select(is_flipped, each[2], each[3])
        kinds = ((other, even), (other_turned, even_turned), (even, other), (even_turned, other_turned))
        for kind, (first, second) in enumerate(kinds):
            found = builder.select(is_odd, first, second)
            place = ir.Constant(ir.IntType(64), kind * width)
            _store(context, builder, signature.args[4], values[4], place, found)
        return context.get_dummy_value()

    return types.void(costs, at, odd, flip, spread, lanes), generate


@intrinsic(prefer_literal=True)
def choose_paths(_typing, old, first, second, spread, straight, crossed, new, to, decisions, at, lanes):
    """Extend the paths to a block of pairs of states: add the costs of branches, compare, and take the cheaper.

    The states `to + 2 l` and `to + 2 l + 1` come from `first + l` and `second + l`; of two equal paths from the first.

    Args:
        _typing: of numba.
        old: costs of paths, integers [states].
        first: place of the first state in it.
        second: the same.
        spread: costs of branches, see `spread_costs`.
        straight: place of those from first to even and from second to odd states.
        crossed: place of the others.
        new: costs of the extended paths, filled.
        to: place in it.
        decisions: uint32, flat; two words are filled, of the even and the odd states, bit l set for one from second.
        at: place in it.
        lanes: a literal power of two up to 32.
    """
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    width = lanes.literal_value

    def generate(context, builder, signature, values):
        vector = ir.VectorType(context.get_value_type(signature.args[0].dtype), width)

        def load(array: int, place: int) -> Any:
            return _load(context, builder, signature.args[array], values[array], values[place], vector)

        one, other = load(0, 1), load(0, 2)
        same, cross = load(3, 4), load(3, 5)
        evens, from_second = _cheaper(builder, builder.add(one, same), builder.add(other, cross))
        odds, also_from_second = _cheaper(builder, builder.add(one, cross), builder.add(other, same))
        pairs = [lane // 2 + width * (lane & 1) for lane in range(2 * width)]
        order = ir.Constant(ir.VectorType(ir.IntType(32), 2 * width), pairs)
        both = builder.shuffle_vector(evens, odds, order)
        _store(context, builder, signature.args[6], values[6], values[7], both)
        for word, chosen in enumerate((from_second, also_from_second)):
            bits = builder.bitcast(chosen, ir.IntType(width))
            bits = bits if width == 32 else builder.zext(bits, ir.IntType(32))
            place = builder.add(values[9], ir.Constant(values[9].type, word))
            _store(context, builder, signature.args[8], values[8], place, bits)
        return context.get_dummy_value()

    arguments = old, first, second, spread, straight, crossed, new, to, decisions, at, lanes
    return types.void(*arguments), generate


def _cheaper(builder: Builder, one: Any, other: Any) -> tuple[Any, Any]:
    """The lower ones of two vectors of costs, and where the other has them."""
    chosen = builder.icmp_signed("<", builder.sub(other, one), _zero(one.type))
    return builder.select(chosen, other, one), chosen


def _repeated(builder: Builder, value: Any, vector: Any) -> Any:
    nothing = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    first = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, nothing, first)


def _zero(vector: Any) -> Any:
    return ir.Constant(vector, [0] * vector.count)


def _shape(context: Any, builder: Builder, array: Any, value: Any) -> list[Any]:
    shape = context.make_array(array)(context, builder, value).shape
    return [builder.extract_value(shape, axis) for axis in range(array.ndim)]


def _data(context: Any, builder: Builder, array: Any, value: Any) -> Any:
    return context.make_array(array)(context, builder, value).data


def _address(context: Any, builder: Builder, array: Any, value: Any, place: Any, kind: Any) -> Any:
    start = _data(context, builder, array, value)
    start = start if place is None else builder.gep(start, [place])
    return builder.bitcast(start, kind.as_pointer())


def _load(context: Any, builder: Builder, array: Any, value: Any, place: Any, kind: Any) -> Any:
    """Load a vector, from a place or from the start."""
    size: int = array.dtype.bitwidth // 8
    return builder.load(_address(context, builder, array, value, place, kind), align=size)


def _store(context: Any, builder: Builder, array: Any, value: Any, place: Any, found: Any) -> None:
    size: int = array.dtype.bitwidth // 8
    builder.store(found, _address(context, builder, array, value, place, found.type), align=size)
