"""How far the weights of a layer are from the size that layers usually have, by which prices are compared.

Two layers with a ReLU between them are the same function when one is multiplied by a factor and the other is divided by
it: prices of errors go by the square of the factor, costs of relative errors stay. Where prices of layers are compared
with each other, or taken to a power, they are therefore those of weights of a usual size.
"""

from __future__ import annotations

import numpy as np

from waterfill.protocols import QuadraticForm
from waterfill.records import Floats

USUAL = (-3.0, 4.0)
"""Base-2 logarithms of `rms(W) sqrt(in)` that are taken as they are; an initialisation that keeps variances has about
0, and the matrices of trained networks -2.5 to 4.0, see docs/decisions.md."""

FARTHEST = 48
"""Octaves at most: float32 holds the squares."""


def weight_excess(matrix: Floats) -> float:
    """By how much the weights of a matrix are larger than usual: a power of two, 1 within `USUAL` and for zeros.

    Args:
        matrix: [out, in].

    Example:
        >>> weight_excess(np.full((2, 4), 3.0, np.float32)), weight_excess(np.full((2, 4), 3 / 1024, np.float32))
        (1.0, 0.0078125)
    """
    squares = float(np.einsum("oi,oi->", matrix, matrix, dtype=np.float64, casting="same_kind")) / max(1, matrix.size)
    if not squares > 0:
        return 1.0
    octaves = float(np.log2(squares * matrix.shape[1])) / 2
    if USUAL[0] <= octaves <= USUAL[1]:
        return 1.0
    return float(2.0 ** np.clip(np.rint(octaves), -FARTHEST, FARTHEST))


def tempered(form: QuadraticForm, matrix: Floats, mean: float, power: float) -> QuadraticForm:
    """Take the prices of a matrix to a power as if its weights had the usual size, see `DiagonalForm.tempered`.

    Args:
        form: what errors cost.
        matrix: the weights [out, in].
        mean: of the scales, each for weights of the usual size, about which they are taken to the power.
        power: 1 changes nothing.
    """
    if power == 1:
        return form
    excess, found = weight_excess(matrix), form.tempered(mean, power)
    return found if excess == 1 else found.scaled(excess ** (2 * power - 2))
