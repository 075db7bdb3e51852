"""Learnt bases: coefficients that depend on each other least.

Source: reverse water-filling in the basis in which weights are independent, section 5.1 of PAPER.md; transform coding
as in Goyal, "Theoretical foundations of transform coding" (2001). A basis that is symmetric under flips, as the
covariance of kernels nearly is, has few angles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
    angles = []
    for some in classes(shape):
        _, vectors = np.linalg.eigh(turned[np.ix_(some, some)])
        angles.append(_angles(vectors[:, ::-1], len(some)))
    return Flips(np.concatenate(angles).astype(np.int8))


def fitted_rotations(covariance: Array, axis: int, directions: int) -> Rotations:
    """The rotations by which the first coordinates become those along the largest eigenvectors, about.

    Args:
        covariance: along the axis [n, n].
        axis: `OUT` or `CHANNELS`.
        directions: how many coordinates, below n.
    """
    _, vectors = np.linalg.eigh(covariance)
    return Rotations(axis, directions, _angles(vectors[:, ::-1], directions).astype(np.int8))


def _angles(vectors: Array, directions: int) -> NDArray[np.int64]:
    """Rounded angles of the rotations (0, 1), (0, 2), ..., (1, 2), ... that turn vectors into unit vectors, about.

    Angles are rounded one by one, each after those before it.

    Args:
        vectors: orthonormal, [n, n]; the first ones of its columns count, and their signs do not.
        directions: how many of them.
    """
    from waterfill.bases.kernels import rounded_angles

    found: NDArray[np.int64] = rounded_angles(np.array(vectors, order="C"), min(directions, len(vectors)), LEARNT)
    return found
