"""Bases as lines of the directory, their angles in the chunk of scales, and back."""

import numpy as np
import pytest
from with_bases import file_of, steps

from waterfill.bases.rotations import number_of_angles, number_of_pairs
from waterfill.codec import basis_lines
from waterfill.codec.container import Container
from waterfill.codec.lines import CosinesLine, FlipsLine, RotationsLine, SharedLine
from waterfill.errors import FormatError
from waterfill.records import CHANNELS, OUT, TAPS, Cosines, Flips, Layout, Rotations

LAYOUT = Layout((6, 5, 3, 3))


def flips(layout=LAYOUT, seed=0):
    return Flips(angles(number_of_angles(layout.shape[2:]), seed))


def rotated(axis, directions, layout=LAYOUT, seed=0):
    return Rotations(axis, directions, angles(number_of_pairs(layout.axes[axis], directions), seed))


def angles(count, seed):
    return np.random.default_rng(seed).integers(-64, 65, count).astype(np.int8)


def same(first, second):
    if not isinstance(first, Flips | Rotations):
        return first == second
    names = ("axis",) if isinstance(first, Flips) else ("axis", "directions")
    assert all(getattr(first, name) == getattr(second, name) for name in names)
    return type(first) is type(second) and (first.angles == second.angles).all()


BASES = [
    None, Cosines(OUT, 2), Cosines(CHANNELS, 512), Cosines(TAPS, 16), flips(), rotated(OUT, 5), rotated(CHANNELS, 1),
]  # fmt: skip


def lines_of(data):
    return Container(data)._directory.bases


def test_bases_come_back_from_a_file():
    data = file_of([(LAYOUT, basis) for basis in BASES])
    found = list(Container(data).bases.values())
    assert all(same(*each) for each in zip(BASES, found, strict=True))
    assert [type(line) for line in lines_of(data)] == [CosinesLine] * 3 + [FlipsLine] + [RotationsLine] * 2
    assert [line.tensor for line in lines_of(data)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("basis", [each for each in BASES if isinstance(each, Flips | Rotations)])
def test_angles_are_behind_scales_and_own_tables(basis):
    rule, spread = steps(LAYOUT, tables=True)
    (found,) = Container(file_of([(LAYOUT, basis)], rule, spread)).bases.values()
    assert same(basis, found)


def test_angles_are_stored_once_where_several_tensors_have_one_basis():
    one, other = flips(), rotated(CHANNELS, 2)
    another, wider = flips(seed=1), Layout((9, 5, 3, 3))
    tensors = [(LAYOUT, one), (wider, other), (LAYOUT, None), (wider, one), (LAYOUT, other), (LAYOUT, another)]
    data = file_of(tensors)
    found = list(Container(data).bases.values())
    assert all(same(basis, each) for (_, basis), each in zip(tensors, found, strict=True))
    assert [type(line) for line in lines_of(data)] == [FlipsLine, RotationsLine, SharedLine, SharedLine, FlipsLine]
    assert [line.of for line in lines_of(data) if isinstance(line, SharedLine)] == [0, 1]
    assert found[3] is found[0]


def test_bases_are_the_same_where_their_angles_are_not_where_they_are_one_object():
    """Those from another process or a work folder are others: the bytes of a file do not depend on either."""
    one, same_values = file_of([(LAYOUT, basis := flips())] * 2), file_of([(LAYOUT, flips()), (LAYOUT, flips())])
    assert one == same_values
    assert basis_lines.key_of(rotated(OUT, 4, Layout((5, 5)))) != basis_lines.key_of(
        rotated(CHANNELS, 4, Layout((5, 5)))
    )
    assert basis_lines.key_of(basis) is not None is basis_lines.key_of(Cosines(OUT, 2))


def test_cosines_are_not_shared_for_they_have_no_angles():
    assert [type(line) for line in lines_of(file_of([(LAYOUT, Cosines(TAPS, 4))] * 2))] == [CosinesLine] * 2


def test_a_shared_basis_may_be_shared_on():
    layouts = dict.fromkeys("abc", LAYOUT)
    lines = [RotationsLine(0, CHANNELS, 1, 20), SharedLine(1, 0), SharedLine(2, 1)]
    stored = [[np.array([1, 2, 3, 4], np.int32)], [], []]
    found = basis_lines.bases_of(lines, layouts, stored)
    assert found["a"] is found["b"] is found["c"]


def test_very_many_tensors_share_in_linear_time():
    count = 30_000
    layouts = {str(number): LAYOUT for number in range(count)}
    lines = [RotationsLine(0, OUT, 1, 20), *(SharedLine(number, 0) for number in range(1, count))]
    stored = [[np.zeros(5, np.int32)], *[[]] * (count - 1)]
    assert len(set(basis_lines.bases_of(lines, layouts, stored).values())) == 1


@pytest.mark.parametrize("angle", [-64, 0, 64])
def test_angles_are_a_quarter_of_a_turn_at_most(angle):
    line, layouts = RotationsLine(0, OUT, 1, 20), {"w": Layout((2, 3))}
    (basis,) = basis_lines.bases_of([line], layouts, [[np.array([angle], np.int32)]]).values()
    assert basis.angles.tolist() == [angle]
    for beyond in (65, -65, 128, 256, 2**31 - 1, -(2**31)):
        with pytest.raises(FormatError, match="an angle of a basis is out of range"):
            basis_lines.bases_of([line], layouts, [[np.array([beyond], np.int32)]])


@pytest.mark.parametrize(
    ("line", "shape", "number"),
    [
        (None, (3, 4), []), (CosinesLine(0, TAPS, 2), (1, 1, 4096), []), (CosinesLine(0, OUT, 2), (1 << 20, 1), []),
        (FlipsLine(0, 3), (2, 2, 3, 3), [9 - 1]), (FlipsLine(0, 3), (2, 2), [0]), (FlipsLine(0, 3), (9,), [0]),
        (FlipsLine(0, 3), (1, 1, 512), [2 * 256 * 255 // 2]), (FlipsLine(0, 3), (1, *(1,) * 63), [0]),
        (RotationsLine(0, OUT, 1, 3), (1024, 1), [1023]), (RotationsLine(0, CHANNELS, 1023, 3), (1, 1024), [523_776]),
        (SharedLine(1, 0), (3, 4), []),
    ],
)  # fmt: skip
def test_numbers_of_angles(line, shape, number):
    assert basis_lines.numbers_of_angles(line, Layout(shape)) == number
