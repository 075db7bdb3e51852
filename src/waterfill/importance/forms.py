"""Quadratic forms: what an error in one weight costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from waterfill.errors import UsageError
from waterfill.records import Floats


@dataclass(frozen=True, eq=False)
class DiagonalForm:
    """A form without cross terms: `e^T I e = sum_i I_i e_i^2`.

    Source: section 6 of the paper, where the off-diagonal part of the importance matrix is dropped.

    Attributes:
        values: the diagonal, float32 [out, in], not negative.
    """

    values: Floats

    def diagonal(self) -> Floats:
        """The diagonal, float32 [out, in]."""
        return self.values

    def cost(self, error: Floats) -> float:
        """Price an error.

        Args:
            error: [out, in].

        Returns:
            `sum_i I_i e_i^2`, summed in double precision.

        Raises:
            UsageError: the error has another shape.

        Example:
            >>> DiagonalForm(np.float32([[1, 2]])).cost(np.float32([[3, 4]]))
            41.0
        """
        if error.shape != self.values.shape:
            raise UsageError(
                f"Error of shape {list(error.shape)} does not fit a form of shape {list(self.values.shape)}; expected "
                "the same [out, in]. Give the error in normal form."
            )
        return float(np.einsum("oi,oi,oi->", self.values, error, error, dtype=np.float64, casting="same_kind"))
