"""The bases of coded tensors as lines of the directory, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from waterfill.bases import rotations
from waterfill.codec.lines import BasisLine, CosinesLine, FlipsLine, RotationsLine, SharedLine
from waterfill.errors import FormatError
from waterfill.records import TAPS, Basis, Cosines, Flips, Layout, Rotations, Symbols

MOST_FLIPPED, LARGEST_ANGLE = 512, 64
"""Taps whose basis may have angles, and the largest angle of a file: a quarter of a turn."""


def angles_of(basis: Basis | None) -> list[Symbols]:
    """The angles of a basis as they are stored, if it has any."""
    return [basis.angles.astype(np.int32)] if isinstance(basis, Flips | Rotations) else []


Angles: TypeAlias = tuple[str, int, int, bytes]


def key_of(basis: Basis | None) -> Angles | None:
    """What two tensors have in common that have the same angles; None for a basis without any.

    Not the object, for objects differ where they come from another process or from a work folder.
    """
    match basis:
        case Flips():
            return "f", basis.axis, 0, basis.angles.tobytes()
        case Rotations():
            return "r", basis.axis, basis.directions, basis.angles.tobytes()
    return None


def line_of(tensor: int, basis: Basis, shared: int | None, code: int) -> BasisLine:
    """The line of the basis of a tensor.

    Args:
        tensor: its number.
        basis: of it.
        shared: the tensor that has the same one; None for none.
        code: of its angles, if it has any.
    """
    if shared is not None:
        return SharedLine(tensor, shared)
    match basis:
        case Cosines():
            return CosinesLine(tensor, basis.axis, basis.block)
        case Flips():
            return FlipsLine(tensor, code)
    return RotationsLine(tensor, basis.axis, basis.directions, code)


def codes_of(line: BasisLine | None) -> list[int]:
    """How the angles with a line are coded, if there are any."""
    return [line.code] if isinstance(line, FlipsLine | RotationsLine) else []


def lines_of_tensors(lines: Sequence[BasisLine], tensors: int) -> list[BasisLine | None]:
    """The line of every tensor; None for those without.

    Raises:
        FormatError: they are not in the order of the tensors, or of a tensor that is not there.
    """
    found: list[BasisLine | None] = [None] * tensors
    numbers = [line.tensor for line in lines]
    if sorted(set(numbers)) != numbers or (numbers and numbers[-1] >= tensors):
        raise FormatError(f"the tensors {numbers[:9]} have bases, which are not in order, or more than {tensors}")
    for line in lines:
        found[line.tensor] = line
    return found


def numbers_of_angles(line: BasisLine | None, layout: Layout) -> list[int]:
    """How many angles there are with a line, if there are any.

    Raises:
        FormatError: the tensor cannot have the basis.
    """
    taps = layout.axes[TAPS]
    match line:
        case CosinesLine():
            if line.axis == TAPS and taps > rotations.MOST_TAPS:
                raise FormatError(f"a basis is of {taps} taps; expected at most {rotations.MOST_TAPS}")
        case FlipsLine():
            if taps > MOST_FLIPPED:
                raise FormatError(f"a basis has angles for {taps} taps; expected at most {MOST_FLIPPED}")
            return [rotations.number_of_angles(layout.shape[2:])]
        case RotationsLine():
            return [_number_of_rotations(line.axis, line.directions, layout)]
    return []


def angles_of_tensors(lines: Sequence[BasisLine | None], layouts: Sequence[Layout]) -> list[int]:
    """With how many angles every tensor is turned, those of others included.

    Raises:
        FormatError: a tensor cannot have its basis.
    """
    found: list[int] = []
    for line, layout in zip(lines, layouts, strict=True):
        if isinstance(line, SharedLine):
            found.append(found[line.of] if line.of < len(found) else 0)
        else:
            found.append(sum(numbers_of_angles(line, layout)))
    return found


def _number_of_rotations(axis: int, directions: int, layout: Layout) -> int:
    length = layout.axes[axis]
    if not directions < length <= rotations.LONGEST_ROTATED:
        raise FormatError(
            f"{directions} of {length} coordinates are rotated; expected fewer of at most {rotations.LONGEST_ROTATED}"
        )
    return rotations.number_of_pairs(length, directions)


def bases_of(
    lines: Sequence[BasisLine | None], layouts: Mapping[str, Layout], vectors: Sequence[Sequence[Symbols | None]]
) -> dict[str, Basis | None]:
    """The bases of all tensors, by name; None for their own values.

    Args:
        lines: of all tensors.
        layouts: of these.
        vectors: what is stored of each, with its angles in the last place.

    Raises:
        FormatError: an angle is out of range, or a tensor shares a basis that it cannot have.
    """
    known: list[Basis | None] = []
    for layout, line, stored in zip(layouts.values(), lines, vectors, strict=True):
        known.append(_shared(line, layout, known) if isinstance(line, SharedLine) else _own(line, stored))
    return dict(zip(layouts, known, strict=True))


def _own(line: CosinesLine | FlipsLine | RotationsLine | None, stored: Sequence[Symbols | None]) -> Basis | None:
    if line is None or isinstance(line, CosinesLine):
        return None if line is None else Cosines(line.axis, line.block)
    angles = np.zeros(0, np.int32) if stored[-1] is None else stored[-1]
    if angles.size and int(np.abs(angles.astype(np.int64)).max()) > LARGEST_ANGLE:
        raise FormatError("an angle of a basis is out of range")
    few = angles.astype(np.int8)
    return Flips(few) if isinstance(line, FlipsLine) else Rotations(line.axis, line.directions, few)


def _shared(line: SharedLine, layout: Layout, known: Sequence[Basis | None]) -> Basis:
    basis = known[line.of] if line.of < len(known) else None
    if isinstance(basis, Flips) and layout.axes[TAPS] <= MOST_FLIPPED:
        number = rotations.number_of_angles(layout.shape[2:])
    elif isinstance(basis, Rotations):
        number = _number_of_rotations(basis.axis, basis.directions, layout)
    else:
        raise FormatError(f"tensor {line.tensor} shares the angles of tensor {line.of}, which has none before it")
    if number != basis.angles.size:
        raise FormatError(f"tensor {line.tensor} needs {number} angles; tensor {line.of} has {basis.angles.size}")
    return basis
