"""Bases as docs/format.md has them: plain floats, rounded to single precision by `struct`; no package code."""

import itertools
import math
import struct

LENGTHS = 512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 7, 6, 5, 4, 3, 2, 1
ODD = {3: ((201,), ()), 5: ((256, 151, 256), (180,)), 7: ((256, 201, 126, 362, 200, 256), (220, 109, 292))}


def single(x):
    """The nearest float32, which may be infinite."""
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


COSINES = [single(math.cos(2 * math.pi * a / 2048)) if a % 1024 != 512 else 0.0 for a in range(2048)]
SINES = [single(math.sin(2 * math.pi * a / 2048)) if a % 1024 else 0.0 for a in range(2048)]


def rotated(x, p, q, a):
    """Rotate two coordinates of a vector, in place."""
    c, s = COSINES[a % 2048], SINES[a % 2048]
    x[p], x[q] = single(c * x[p] + s * x[q]), single(c * x[q] - s * x[p])


# Lines of the directory


def number_of_angles(line, axes, kernel):
    """How many angles a line `f` or `r` has."""
    if line[0] == "r":
        length, directions = axes[line[2]], line[3]
        assert directions < length <= 1024
        return directions * length - directions * (directions + 1) // 2
    assert math.prod(kernel) <= 512
    return sum(len(some) * (len(some) - 1) // 2 for some in classes(kernel))


def turned_back(values, line, angles, axes, kernel):
    """The values of a tensor, given its coefficients as a flat list of floats in the order [out, channels, taps]."""
    _, channels, taps = axes
    axis = 2 if line[0] == "f" else line[2]
    turns = rotations(line, angles, axes[axis], kernel)
    matrix = matrix_of(turns, axes[axis]) if line[0] == "r" else None
    stride = (channels * taps, taps, 1)[axis]
    values = list(values)
    for first in (n for n in range(len(values)) if n // stride % axes[axis] == 0):
        places = range(first, first + axes[axis] * stride, stride)
        vector = [values[place] for place in places]
        vector = undone(vector, turns) if matrix is None else multiplied(vector, matrix)
        for place, value in zip(places, vector, strict=True):
            values[place] = 0.0 if math.isnan(value) else value
    return values


def undone(vector, turns):
    """Undo rotations, the last one first."""
    for p, q, a in reversed(turns):
        rotated(vector, p, q, -a)
    return vector


def matrix_of(turns, length):
    """Rotated unit vectors: m_ij is coefficient i of the one with a one in place j."""
    units = [[float(i == j) for i in range(length)] for j in range(length)]
    for unit in units:
        for turn in turns:
            rotated(unit, *turn)
    return list(zip(*units, strict=True))


def multiplied(vector, matrix):
    found = []
    for column in zip(*matrix, strict=True):
        total = 0.0
        for m, y in zip(column, vector, strict=True):
            total += m * y
        found.append(single(total))
    return found


def rotations(line, angles, length, kernel):
    """(p, q, a) of a line along an axis of some length, in the order of a writer."""
    if line[0] == "c":
        return cosines_of_kernel(kernel, line[3]) if line[2] == 2 else cosines_of_axis(range(length), line[3])
    if line[0] == "r":
        pairs = ((p, q) for p in range(line[3]) for q in range(p + 1, length))
        return [(p, q, 8 * angle) for (p, q), angle in zip(pairs, angles, strict=True)]
    pairs = (pair for some in classes(kernel) for pair in itertools.combinations(some, 2))
    return opposite(kernel) + [(p, q, 8 * angle) for (p, q), angle in zip(pairs, angles, strict=True)]


# Flips


def places_of(kernel):
    """The indices of all taps, in row-major order."""
    return list(itertools.product(*map(range, kernel)))


def opposite(kernel):
    number = {index: n for n, index in enumerate(places_of(kernel))}
    found = []
    for axis, k in enumerate(kernel):
        for index in number:
            if index[axis] < k // 2:
                other = (*index[:axis], k - 1 - index[axis], *index[axis + 1 :])
                found.append((number[index], number[other], 256))
    return found


def classes(kernel):
    """Taps by whether their index along each axis is in the second half, those of the first halves first."""
    found = {}
    for n, index in enumerate(places_of(kernel)):
        which = tuple(i >= (k + 1) // 2 for i, k in zip(index, kernel, strict=True))
        found.setdefault(which, []).append(n)
    return [found[which] for which in sorted(found)]


# Cosines


def cosines_of_axis(places, block):
    places, made = list(places), []
    while places:
        length = next(each for each in LENGTHS if each <= min(block, len(places)))
        second_kind(places[:length], made)
        del places[:length]
    return made


def cosines_of_kernel(kernel, block):
    number, made = {index: n for n, index in enumerate(places_of(kernel))}, []
    for axis, k in enumerate(kernel):
        for index in number:
            if index[axis] == 0:
                made += cosines_of_axis([number[*index[:axis], i, *index[axis + 1 :]] for i in range(k)], block)
    return made


def second_kind(places, made):
    n, h = len(places), len(places) // 2
    if n == 1:
        return [(places[0], 1)]
    made += [(places[i], places[n - 1 - i], 256) for i in range(h)]
    first, second = places[: n - h], places[: n - h - 1 : -1]
    if n % 2:
        even, odd = all_pairs(first, ODD[n][0], made), all_pairs(second, ODD[n][1], made)
    else:
        even, odd = second_kind(first, made), fourth_kind(second, made)
    found = [None] * n
    found[::2] = even
    found[1::2] = map(negative, odd)
    return found


def fourth_kind(places, made):
    n, h = len(places), len(places) // 2
    if n == 1:
        return [(places[0], 1)]
    if n == 3:
        return all_pairs(places, (206, 69, 206), made)
    us, vs = [], []
    for i in range(h):
        u, v, a = places[i], places[n - 1 - i], (512 * (2 * i + 1) + n) // (2 * n)
        if i % 2:
            u, v, a = v, u, 512 - a
        made.append((u, v, a))
        us.append(u)
        vs.append(v)
    left, right = second_kind(us, made), second_kind(vs, made)
    found = [left[0], *[None] * (n - 2), negative(right[0])]
    for r in range(1, h):
        one, other = left[r], right[h - r]
        made.append((one[0], other[0], 256))
        alike = one[1] == other[1]
        found[2 * r - 1 : 2 * r + 1] = (negative(other), one) if alike else (one, other)
    return found


def all_pairs(places, angles, made):
    pairs = itertools.combinations(places, 2)
    made += [(p, q, a) for (p, q), a in zip(pairs, angles, strict=True)]
    return [(place, -1 if n % 2 else 1) for n, place in enumerate(places)]


def negative(signed):
    return signed[0], -signed[1]
