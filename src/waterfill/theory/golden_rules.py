"""The two golden rules of a good compressor, as residuals that can be measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from waterfill.theory.checks import finite, same_shape
from waterfill.theory.quadratic import as_quadratic


@dataclass(frozen=True)
class GoldenRules:
    """Residuals of the golden rules for one compressed weight vector.

    Attributes:
        orthogonality: `w_hat^T I_w (w - w_hat)`, zero under rule 1: nothing of the error could be had by scaling
            `w_hat`.
        distortion: `(w - w_hat)^T I_w (w - w_hat)`, what rule 2 makes as small as the rate allows. Half of it is the
            KL divergence in nats under the importance of Eq. 6; it is the squared error of the outputs under Eq. 5.
        power: `w^T I_w w`, to compare both with.
    """

    orthogonality: float
    distortion: float
    power: float


def golden_rules(w: ArrayLike, w_hat: ArrayLike, importance: Any) -> GoldenRules:
    """Measure both golden rules.

    Args:
        w: weights, any shape.
        w_hat: compressed weights, the same shape.
        importance: `I_w`: the diagonal in the shape of the weights, a matrix [m, m] over the flattened weights, a pair
            (A [in, in], G [out, out]) for weights [out, in], or a `Quadratic`.

    Raises:
        UsageError: shapes differ, values are not finite, or the importance is not positive semidefinite.

    Source:
        Section 5.1 of the paper.

    Example:
        >>> golden_rules([3.0, 1.0], [3.0, 0.0], [1.0, 2.0])
        GoldenRules(orthogonality=0.0, distortion=2.0, power=11.0)
    """
    original, compressed = finite("w", w), finite("w_hat", w_hat)
    same_shape("w", original, "w_hat", compressed)
    form = as_quadratic(importance, original.shape)
    error = original - compressed
    weighted = form.times(error)
    return GoldenRules(
        orthogonality=float(np.vdot(compressed, weighted)),
        distortion=float(np.vdot(error, weighted)),
        power=float(np.vdot(original, form.times(original))),
    )
