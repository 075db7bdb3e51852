"""Which coordinates are rotated, against the specification's decoder and the transforms that they are meant to be."""

import hashlib
import itertools
import math
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import slow_bases

from waterfill.bases import rotations
from waterfill.bases.turning import matrix_of
from waterfill.records import CHANNELS, OUT, TAPS, Cosines, Flips, Layout, Rotations

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803")
DIGITS = 60
TABLE_SHA256 = "5863541e803a486c8ec71b52c1bf199e06f8fe96c0c667bcfc46dcef86d18861"
FAR = Decimal("1e-12")
"""Double precision gives cosines within 1e-13."""


def exact_sine(k):
    """Of k/2048 of a turn, 0 to 512, to many digits: the series at the whole angle."""
    x = 2 * PI * k / 2048
    term, total, n = x, x, 1
    while abs(term) > Decimal(10) ** -DIGITS:
        term *= -x * x / ((n + 1) * (n + 2))
        total += term
        n += 2
    return total


def in_units_of_single_precision(value):
    """A positive number in units of the last bit that it has in single precision."""
    exponent = math.frexp(float(value))[1]
    return value * Decimal(2) ** (24 - exponent)


def test_cosines_and_sines_are_rounded_in_one_way_only():
    cosines, sines = rotations.cosines_and_sines()
    with localcontext() as context:
        context.prec = DIGITS
        for k in range(1, 512):
            units = in_units_of_single_precision(exact_sine(k))
            assert abs(units % 1 - Decimal("0.5")) / units > FAR, k
            assert in_units_of_single_precision(Decimal(float(sines[k]))) == units.to_integral_value(), k
    for k in range(2048):
        assert cosines[k] == sines[(k + 512) % 2048]
        assert sines[k] == -sines[-k] == sines[1024 - k]
    assert (sines[512], sines[0], np.signbit(sines[[0, 1024]]).any()) == (1.0, 0.0, False)


def test_the_table_is_that_of_the_specification():
    table = np.concatenate(rotations.cosines_and_sines()).astype("<f4")
    assert hashlib.sha256(table.tobytes()).hexdigest() == TABLE_SHA256
    assert TABLE_SHA256 in (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    assert table.tolist() == slow_bases.COSINES + slow_bases.SINES


def dct(length):
    """The orthonormal DCT-II."""
    k, n = np.ogrid[:length, :length]
    found = np.cos(math.pi * k * (2 * n + 1) / (2 * length)) * math.sqrt(2 / length)
    found[0] /= math.sqrt(2)
    return found


@pytest.mark.parametrize("length", [each for each in rotations.LENGTHS if each > 1])
def test_a_block_is_the_discrete_cosine_transform_but_for_order_and_signs(length):
    (part,) = rotations.parts(Cosines(CHANNELS, 512), Layout((1, length)))
    products = np.abs(matrix_of(part) @ dct(length).T)
    best = products.argmax(axis=1)
    assert sorted(best) == list(range(length))
    assert products[range(length), best].min() >= 0.9999


@pytest.mark.parametrize("length", rotations.LENGTHS)
def test_a_block_takes_few_rotations(length):
    made = rotations._of_cosines(length)
    assert len(made) <= length * max(1, math.log2(length))
    assert all(first != second for first, second, _ in made)


@pytest.mark.parametrize("block", [2, 3, 9, 16, 100, 384, 512])
def test_blocks_are_the_longest_that_fit(block):
    for length in (0, 1, 2, 9, 11, 95, 512, 513, 1023, 3000):
        naive, left = [], length
        while left:
            naive.append(next(each for each in rotations.LENGTHS if each <= min(left, block)))
            left -= naive[-1]
        found = list(rotations.block_lengths(length, block))
        assert [each for each, count in found for _ in range(count)] == naive
        assert len(found) <= len(rotations.LENGTHS)


SHAPES = [(), (1,), (2,), (3,), (7,), (3, 3), (5, 4), (1, 6), (2, 3, 4), (3, 1, 5, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_classes_are_those_of_the_specification_and_pairs_are_theirs(shape):
    found = rotations.classes(shape)
    assert found == slow_bases.classes(shape)
    assert sorted(itertools.chain(*found)) == list(range(math.prod(shape)))
    assert len(list(rotations.pairs(shape))) == rotations.number_of_angles(shape)


def test_kernels_of_very_many_axes_take_no_time():
    assert rotations.classes((1,) * 62) == [[0]]
    assert rotations.classes((*(1,) * 50, 3, *(1,) * 11)) == [[0, 1], [2]]
    assert [rotations.number_of_angles(shape) for shape in ((1,) * 62, (0, *(2,) * 61), (2,) * 9)] == [0, 0, 0]


@pytest.mark.parametrize(("length", "directions"), [(2, 1), (5, 1), (5, 4), (9, 3), (40, 39)])
def test_leading_pairs(length, directions):
    firsts, seconds = rotations.leading_pairs(length, directions)
    naive = [(p, q) for p in range(directions) for q in range(p + 1, length)]
    assert list(zip(firsts.tolist(), seconds.tolist(), strict=True)) == naive
    assert rotations.number_of_pairs(length, directions) == len(naive)


def random_angles(count):
    return np.random.default_rng(count).integers(-64, 65, count).astype(np.int8)


def all_rotations(basis, layout):
    """The rotations of all parts, by places of the axis."""
    found = []
    for part in rotations.parts(basis, layout):
        some = list(zip(part.firsts.tolist(), part.seconds.tolist(), part.angles.tolist(), strict=True))
        for block in range(part.count):
            start = part.start + block * part.length
            found += [(start + p, start + q, angle) for p, q, angle in some]
    return found


@pytest.mark.parametrize("block", [2, 7, 16, 512])
@pytest.mark.parametrize("length", [1, 5, 12, 31, 192, 515])
def test_cosines_of_an_axis_are_those_of_the_specification(length, block):
    expected = slow_bases.cosines_of_axis(range(length), block)
    assert all_rotations(Cosines(OUT, block), Layout((length, 2, 3))) == expected
    assert all_rotations(Cosines(CHANNELS, block), Layout((2, length, 3))) == expected
    assert all_rotations(Cosines(TAPS, block), Layout((2, 3, length))) == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_bases_of_kernels_are_those_of_the_specification(shape):
    layout, angles = Layout((2, 3, *shape)), random_angles(rotations.number_of_angles(shape))
    assert all_rotations(Flips(angles), layout) == slow_bases.rotations(["f", 0, 9], angles.tolist(), None, shape)
    assert all_rotations(Cosines(TAPS, 4), layout) == slow_bases.cosines_of_kernel(shape, 4)


def test_rotations_are_those_of_the_specification():
    layout = Layout((9, 6), transposed=True, groups=3)
    for axis, directions in ((OUT, 17), (OUT, 1), (CHANNELS, 2)):
        length = layout.axes[axis]
        angles = random_angles(rotations.number_of_pairs(length, directions))
        line = ["r", 0, axis, directions, 9]
        expected = slow_bases.rotations(line, angles.tolist(), length, ())
        assert all_rotations(Rotations(axis, directions, angles), layout) == expected


def test_tensors_with_one_basis_have_their_rotations_made_once():
    basis = Flips(random_angles(rotations.number_of_angles((3, 3))))
    first, second = (next(rotations.parts(basis, Layout((rows, 2, 3, 3)))) for rows in (4, 5))
    assert first is second
    assert matrix_of(first) is matrix_of(second)
