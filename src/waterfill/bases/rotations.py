"""Which coordinates a basis rotates by which angles: a part of the format (docs/format.md).

An angle of a rotation is a whole multiple of 1/2048 of a turn, and its cosine and sine are numbers of single precision.
The rotation of p and q by an angle is `x_p' = c x_p + s x_q`, `x_q' = c x_q - s x_p`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from waterfill.records import TAPS, Cosines, Directions, Flips, Floats, Layout, Rotations, Turn

TURN = 2048
"""Angles are whole multiples of this part of a turn."""

LEAST_SINE = math.sin(2 * math.pi / TURN)
"""Of all angles, but for 0."""

LEARNT = 256
"""Angles that a file has are whole multiples of this part of a turn."""

KEPT = 4
"""Bases whose rotations are kept for the next tensor, which often has the same ones."""

LONGEST_BLOCK = 512
MOST_TAPS = 4096
"""Of a kernel in another basis."""

LONGEST_ROTATED = 1024
"""Coordinates of an axis with learnt rotations."""

ODD_LENGTHS = {3: ((201,), ()), 5: ((256, 151, 256), (180,)), 7: ((256, 201, 126, 362, 200, 256), (220, 109, 292))}
"""Angles for the even and the odd coefficients of the DCT-II of small odd lengths, from sums and from differences."""

THREE = (206, 69, 206)
"""Angles of the DCT-IV of length 3."""

LENGTHS = sorted({2**k for k in range(10)} | {3 * 2**k for k in range(8)} | {5, 7}, reverse=True)
"""Of blocks whose cosines are known; an axis is cut into the longest ones that fit."""

Ints: TypeAlias = NDArray[np.int32]
Rotation: TypeAlias = tuple[int, int, int]
"""First coordinate, second one, angle."""

Signed: TypeAlias = tuple[int, int]
"""A place, and the sign with which it holds a coefficient."""


@dataclass(frozen=True, eq=False)
class PlaneRotations:
    """Coordinates of an axis that are rotated among themselves.

    Attributes:
        start: the first of them.
        length: how many there are.
        firsts: first coordinate of each rotation, counted from the start.
        seconds: the second one.
        angles: in `1 / TURN` of a turn.
        is_dense: whether vectors are multiplied with the matrix of the rotations, instead of rotated.
        count: so many times as many coordinates, one block after the other, are rotated alike.
    """

    start: int
    length: int
    firsts: Ints
    seconds: Ints
    angles: Ints
    is_dense: bool = False
    count: int = 1


@dataclass(frozen=True, eq=False)
class WholeMatrix(PlaneRotations):
    """Coordinates of an axis that are turned by any orthonormal matrix.

    Attributes:
        matrix: float32 [coefficients, values].
    """

    matrix: Floats = field(kw_only=True)

    @classmethod
    def of(cls, matrix: Floats) -> WholeMatrix:
        """Turn as many coordinates as the matrix has."""
        none = np.zeros(0, np.int32)
        return cls(0, len(matrix), none, none, none, is_dense=True, matrix=matrix)


@functools.cache
def cosines_and_sines() -> tuple[Floats, Floats]:
    """Of all angles from 0 to `TURN - 1`, float32 [TURN].

    They are as far from the middle of two numbers as double precision needs to be rounded in one way only.
    """
    angles = 2 * math.pi / TURN * np.arange(TURN)
    both = np.array([np.cos(angles), np.sin(angles)])
    both[np.abs(both) < LEAST_SINE / 2] = 0.0  # those of whole quarters, of which double precision makes 1e-16
    cosines, sines = both.astype(np.float32)
    return cosines, sines


def parts(basis: Turn, layout: Layout) -> Iterator[PlaneRotations]:
    """The rotations along the axis of a basis, from values to coefficients."""
    match basis:
        case Cosines() if basis.axis != TAPS:
            yield from _along_axis(layout.axes[basis.axis], basis.block)
        case Cosines():
            yield _along_kernel(layout.shape[2:], basis.block)
        case Flips():
            yield _flipped(basis, layout.shape[2:])
        case Rotations():
            yield _rotated(basis, layout.axes[basis.axis])
        case Directions():
            yield WholeMatrix.of(basis.matrix)


def _along_axis(length: int, block: int) -> Iterator[PlaneRotations]:
    """Cosines, block by block; those of one length together, for there may be millions."""
    start = 0
    for some, count in block_lengths(length, block):
        if some > 1:
            yield replace(_part(some, _of_cosines(some)), start=start, count=count)
        start += some * count


@functools.lru_cache(KEPT)
def _along_kernel(shape: tuple[int, ...], block: int) -> PlaneRotations:
    return _part(math.prod(shape), list(_of_kernels(shape, block)))


@functools.lru_cache(KEPT)
def _flipped(basis: Flips, shape: tuple[int, ...]) -> PlaneRotations:
    return _part(math.prod(shape), [*_opposite(shape), *_by_angles(pairs(shape), basis.angles)])


@functools.lru_cache(KEPT)
def _rotated(basis: Rotations, length: int) -> PlaneRotations:
    angles = basis.angles.astype(np.int32) * (TURN // LEARNT)
    return PlaneRotations(0, length, *leading_pairs(length, basis.directions), angles, is_dense=True)


def _part(length: int, rotations: Sequence[Rotation]) -> PlaneRotations:
    return PlaneRotations(0, length, *np.array(rotations, np.int32).reshape(-1, 3).T.copy())


def _by_angles(places: Iterator[tuple[int, int]], angles: NDArray[np.int8]) -> Iterator[Rotation]:
    for (first, second), angle in zip(places, angles.tolist(), strict=True):
        yield first, second, angle * (TURN // LEARNT)


# Learnt rotations


def leading_pairs(length: int, directions: int) -> tuple[Ints, Ints]:
    """The first and the second places of the pairs that `Rotations` have, in order."""
    firsts = np.repeat(np.arange(directions), length - 1 - np.arange(directions))
    seconds = np.concatenate([np.arange(first + 1, length) for first in range(directions)])
    return firsts.astype(np.int32), seconds.astype(np.int32)


def number_of_pairs(length: int, directions: int) -> int:
    """How many they are."""
    return directions * length - directions * (directions + 1) // 2


def classes(shape: Sequence[int]) -> list[list[int]]:
    """The places of a kernel that are sums along the same axes, those of all axes first."""
    every = np.arange(math.prod(shape)).reshape(shape)
    halves = [[slice(a, b) for a, b in itertools.pairwise(_halves(length))] for length in shape]
    return [every[some].reshape(-1).tolist() for some in itertools.product(*halves)]


def _halves(length: int) -> list[int]:
    """Where the sums and the differences of an axis begin, and where they end; without those that are none."""
    return sorted({0, (length + 1) // 2, length})


def pairs(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The pairs that `Flips` rotate after sums and differences, in order."""
    for some in classes(shape):
        yield from itertools.combinations(some, 2)


def number_of_angles(shape: Sequence[int]) -> int:
    """How many they are."""
    squares = math.prod((length // 2) ** 2 + (length - length // 2) ** 2 for length in shape)  # of classes, summed
    return (squares - math.prod(shape)) // 2


def _opposite(shape: Sequence[int]) -> Iterator[Rotation]:
    """Sums and differences of the taps that are opposite along an axis, axis by axis."""
    every = np.arange(math.prod(shape)).reshape(shape)
    for axis, length in enumerate(shape):
        firsts = every.take(range(length // 2), axis).reshape(-1)
        seconds = np.flip(every, axis).take(range(length // 2), axis).reshape(-1)
        yield from ((first, second, TURN // 8) for first, second in zip(firsts.tolist(), seconds.tolist(), strict=True))


# Cosines


def block_lengths(length: int, block: int) -> Iterator[tuple[int, int]]:
    """Lengths of the blocks of an axis, the longest ones that fit, and how many there are of each."""
    for some in LENGTHS:
        if some <= min(length, block):
            yield some, length // some
            length %= some


def _of_kernels(shape: Sequence[int], block: int) -> Iterator[Rotation]:
    """Cosines along every axis of a kernel, one after the other."""
    every = np.arange(math.prod(shape)).reshape(shape)
    for axis, length in enumerate(shape):
        for line in np.moveaxis(every, axis, -1).reshape(-1, length).tolist():
            start = 0
            for some in itertools.chain(*(itertools.repeat(*each) for each in block_lengths(length, block))):
                for first, second, angle in _of_cosines(some):
                    yield line[start + first], line[start + second], angle
                start += some


@functools.cache
def _of_cosines(length: int) -> tuple[Rotation, ...]:
    """The rotations of one block."""
    made: list[Rotation] = []
    _second_kind(list(range(length)), made)
    return tuple(made)


def _second_kind(places: list[int], made: list[Rotation]) -> list[Signed]:
    """Rotate the values in some places to their DCT-II; gives where the coefficients are, by frequency.

    Sums of opposite values have the even frequencies, differences the odd ones.
    """
    length = len(places)
    if length == 1:
        return [(places[0], 1)]
    half = length // 2
    made += [(places[i], places[-1 - i], TURN // 8) for i in range(half)]
    sums, differences = places[: length - half], [places[-1 - i] for i in range(half)]
    if length % 2:
        even, odd = _small(sums, ODD_LENGTHS[length][0], made), _small(differences, ODD_LENGTHS[length][1], made)
    else:
        even, odd = _second_kind(sums, made), _fourth_kind(differences, made)
    negative = [(place, -sign) for place, sign in odd]
    return [each for some in itertools.zip_longest(even, negative) for each in some if each is not None]


def _fourth_kind(places: list[int], made: list[Rotation]) -> list[Signed]:
    """Rotate the values in some places to their DCT-IV; gives where the coefficients are, by frequency.

    With t_i = (2 i + 1) / 8 n turns, the rotations of the opposite values x_i and x_(n-1-i) by t_i have DCT-II, those
    of the second ones with alternating signs, whose sums and differences are the coefficients.
    """
    length, half = len(places), len(places) // 2
    if length == 1:
        return [(places[0], 1)]
    if length == 3:
        return _small(places, THREE, made)
    kept, others = [], []
    for i in range(half):
        angle = round(TURN * (2 * i + 1) / (8 * length))
        first, second = places[i], places[-1 - i]
        if i % 2:
            first, second, angle = second, first, TURN // 4 - angle
        made.append((first, second, angle))
        kept.append(first)
        others.append(second)
    left, right = _second_kind(kept, made), _second_kind(others, made)
    found = [left[0], *[(0, 0)] * (length - 2), (right[0][0], -right[0][1])]
    for r in range(1, half):
        (first, sign), (second, other) = left[r], right[half - r]
        made.append((first, second, TURN // 8))
        found[2 * r], found[2 * r - 1] = (first, sign), (second, -sign)
        if sign != other:
            found[2 * r], found[2 * r - 1] = found[2 * r - 1], found[2 * r]
    return found


def _small(places: list[int], angles: Sequence[int], made: list[Rotation]) -> list[Signed]:
    """Rotate all pairs of some places, in order; the coefficients have alternating signs."""
    pairs_of = itertools.combinations(places, 2)
    made += [(first, second, angle) for (first, second), angle in zip(pairs_of, angles, strict=True)]
    return [(place, -1 if number % 2 else 1) for number, place in enumerate(places)]
