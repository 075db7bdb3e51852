"""Learnt bases: coefficients that depend on each other least.

Source: reverse water-filling in the basis in which weights are independent, section 5.1 of PAPER.md; transform coding
as in Goyal, "Theoretical foundations of transform coding" (2001). A basis that is symmetric under flips, as the
covariance of kernels nearly is, has few angles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from waterfill.bases.rotations import LEARNT, classes, number_of_angles, parts
from waterfill.bases.turning import matrix_of
from waterfill.records import Flips, Layout, Rotations
from waterfill.theory.checks import Array


def fitted_flips(covariance: Array, shape: Sequence[int]) -> Flips:
    """The flips whose coefficients depend on each other least: about the eigenvectors of every class.

    Args:
        covariance: of the taps [taps, taps].
        shape: of the kernel.
    """
    (plain,) = parts(Flips(np.zeros(number_of_angles(shape), np.int8)), Layout((1, 1, *shape)))
    butterflies = matrix_of(plain).astype(np.float64)
    turned = butterflies @ covariance @ butterflies.T
    angles: list[int] = []
    for some in classes(shape):
        _, vectors = np.linalg.eigh(turned[np.ix_(some, some)])
        angles += _angles(vectors[:, ::-1], len(some))
    return Flips(np.array(angles, np.int8))


def fitted_rotations(covariance: Array, axis: int, directions: int) -> Rotations:
    """The rotations by which the first coordinates become those along the largest eigenvectors, about.

    Args:
        covariance: along the axis [n, n].
        axis: `OUT` or `CHANNELS`.
        directions: how many coordinates, below n.
    """
    _, vectors = np.linalg.eigh(covariance)
    return Rotations(axis, directions, np.array(_angles(vectors[:, ::-1], directions), np.int8))


def _angles(vectors: Array, directions: int) -> list[int]:
    """Rounded angles of the rotations (0, 1), (0, 2), ..., (1, 2), ... that turn vectors into unit vectors, about.

    Angles are rounded one by one, each after those before it.

    Args:
        vectors: orthonormal, [n, n]; the first ones of its columns count, and their signs do not.
        directions: how many of them.
    """
    left = np.array(vectors)
    found = []
    for p in range(min(directions, len(left))):
        for q in range(p + 1, len(left)):
            sign = math.copysign(1, left[p, p])
            angle = round(LEARNT / math.tau * math.atan2(sign * left[q, p], abs(left[p, p])))
            c, s = math.cos(math.tau * angle / LEARNT), math.sin(math.tau * angle / LEARNT)
            left[p], left[q] = c * left[p] + s * left[q], c * left[q] - s * left[p]
            found.append(angle)
    return found
