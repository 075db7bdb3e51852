"""The hot loops of bases; plain arrays in and out, compiled on first use and cached.

Products of two numbers of single precision are exact in double precision, so that it does not matter whether a machine
multiplies and adds in one step or in two. Every coordinate is rounded to single precision once in every rotation.
What is no number in the end, from infinities, is 0.
"""

from __future__ import annotations

import math

import numpy as np

from waterfill.compiled import kernel

LANES, WIDE = 32, 64
"""Vectors that are rotated at a time, side by side, and that are multiplied."""


@kernel
def rotate_vectors(values, firsts, seconds, cosines, sines):
    """Rotate pairs of coordinates of vectors, one after the other: `x_p' = c x_p + s x_q`, `x_q' = c x_q - s x_p`.

    Args:
        values: float32 [vectors, coordinates], changed in place.
        firsts: int32 [rotations], p.
        seconds: q.
        cosines: float32 [rotations], c.
        sines: s.
    """
    length = values.shape[1]
    tile = np.zeros((length, LANES), np.float32)
    for start in range(0, len(values), LANES):
        some = min(LANES, len(values) - start)
        for place in range(length):
            lanes = tile[place]
            for k in range(some):
                lanes[k] = values[start + k, place]
        for r in range(len(firsts)):
            one, other = tile[firsts[r]], tile[seconds[r]]
            c, s = np.float64(cosines[r]), np.float64(sines[r])
            for k in range(LANES):
                x, y = np.float64(one[k]), np.float64(other[k])
                one[k], other[k] = np.float32(c * x + s * y), np.float32(c * y - s * x)
        for place in range(length):
            lanes = tile[place]
            for k in range(some):
                values[start + k, place] = lanes[k] if lanes[k] == lanes[k] else np.float32(0.0)


@kernel
def multiply_vectors(values, matrix):
    """Multiply vectors with a matrix: `y_j = sum_i matrix[i, j] x_i`, added in the order of i in double precision.

    Args:
        values: float32 [vectors, n], changed in place.
        matrix: float32 [n, n].
    """
    length = len(matrix)
    tile, total = np.zeros((length, WIDE)), np.empty(WIDE)
    for start in range(0, len(values), WIDE):
        some = min(WIDE, len(values) - start)
        for k in range(some):
            for i in range(length):
                tile[i, k] = values[start + k, i]
        for j in range(length):
            total[:] = 0.0
            for i in range(0, length - 3, 4):  # four at a time, for they are loaded and stored less often so
                a, b = np.float64(matrix[i, j]), np.float64(matrix[i + 1, j])
                c, d = np.float64(matrix[i + 2, j]), np.float64(matrix[i + 3, j])
                one, two, three, four = tile[i], tile[i + 1], tile[i + 2], tile[i + 3]
                for k in range(some):
                    total[k] = (((total[k] + a * one[k]) + b * two[k]) + c * three[k]) + d * four[k]
            for i in range(length - length % 4, length):
                factor = np.float64(matrix[i, j])
                for k in range(some):
                    total[k] += factor * tile[i, k]
            for k in range(some):
                values[start + k, j] = np.float32(total[k]) if total[k] == total[k] else np.float32(0.0)


@kernel
def rounded_angles(left, directions, turn):
    """Angles of the rotations (0, 1), (0, 2), ..., (1, 2), ... that turn vectors into unit vectors, about.

    Each is rounded after those before it.

    Args:
        left: float64 [n, n], with the vectors as columns; changed in place.
        directions: how many of them count.
        turn: whole number of angles in a full turn.

    Returns:
        int64 [rotations].
    """
    length = len(left)
    found = np.empty(directions * length - directions * (directions + 1) // 2, np.int64)
    at = 0
    for p in range(directions):
        for q in range(p + 1, length):
            sign = math.copysign(1.0, left[p, p])
            angle = round(turn / math.tau * math.atan2(sign * left[q, p], abs(left[p, p])))
            c, s = math.cos(math.tau * angle / turn), math.sin(math.tau * angle / turn)
            for k in range(p, length):
                x, y = left[p, k], left[q, k]
                left[p, k], left[q, k] = c * x + s * y, c * y - s * x
            found[at] = angle
            at += 1
    return found
