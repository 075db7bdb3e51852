"""The compiled loops give the bits of plain ones, for any number of vectors."""

import numpy as np
import pytest
import slow_bases

from waterfill.bases.kernels import LANES, multiply_vectors, rotate_vectors
from waterfill.bases.rotations import cosines_and_sines

NUMBERS = [0, 1, LANES - 1, LANES, LANES + 1, 2 * LANES + 9]


def vectors(number, length):
    rng = np.random.default_rng(number)
    return (rng.standard_normal((number, length)) * 10.0 ** rng.integers(-30, 30, (number, length))).astype(np.float32)


def same_bits(found, expected):
    return found.tobytes() == np.array(expected, np.float32).reshape(found.shape).tobytes()


@pytest.mark.parametrize("number", NUMBERS)
def test_rotations_give_the_bits_of_a_plain_loop(number):
    some = np.random.default_rng(1)
    values, length = vectors(number, 7), 7
    turns = [(*some.choice(length, 2, replace=False).tolist(), int(some.integers(2048))) for _ in range(30)]
    expected = [list(vector) for vector in values.tolist()]
    for vector in expected:
        for turn in turns:
            slow_bases.rotated(vector, *turn)
    firsts, seconds, angles = np.array(turns, np.int32).T.copy()
    rotate_vectors(values, firsts, seconds, *(table[angles] for table in cosines_and_sines()))
    assert same_bits(values, expected)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 13])
@pytest.mark.parametrize("number", NUMBERS)
def test_products_give_the_bits_of_a_plain_loop(number, length):
    matrix = np.random.default_rng(2).standard_normal((length, length)).astype(np.float32)
    values = vectors(number, length)
    expected = [slow_bases.multiplied(vector, matrix.tolist()) for vector in values.tolist()]
    multiply_vectors(values, matrix)
    assert same_bits(values, expected)
