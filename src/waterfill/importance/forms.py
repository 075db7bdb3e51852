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
        _check_shape(error, self.values)
        return float(np.einsum("oi,oi,oi->", self.values, error, error, dtype=np.float64, casting="same_kind"))


@dataclass(frozen=True, eq=False)
class DrawnForm(DiagonalForm):
    """A diagonal form that was estimated from random draws, and may have negative entries.

    Attributes:
        standard_errors: of every entry, float32 [out, in]: what the draws leave open about the mean over these samples,
            0 where nothing had to be drawn. What other samples would change is not in it.
        count: the number of predictions or samples that the mean is over.
    """

    standard_errors: Floats
    count: int


@dataclass(frozen=True, eq=False)
class QuarticForm:
    """A form of second and fourth powers: `sum_i I_i e_i^2 + H_i e_i^4`.

    Source: objective "gradient+hessian" of the paper, and its Algorithm 2, whose I and H these are.

    Attributes:
        values: I, float32 [out, in].
        fourth: H, float32 [out, in].
    """

    values: Floats
    fourth: Floats

    def diagonal(self) -> Floats:
        """I, the coefficients of the squares, float32 [out, in]."""
        return self.values

    def quartic(self) -> Floats:
        """H, the coefficients of the fourth powers, float32 [out, in]."""
        return self.fourth

    def cost(self, error: Floats) -> float:
        """Price an error.

        Args:
            error: [out, in].

        Returns:
            `sum_i I_i e_i^2 + H_i e_i^4`, summed in double precision.

        Raises:
            UsageError: the error has another shape.

        Example:
            >>> QuarticForm(np.float32([[1, 2]]), np.float32([[0, 1]])).cost(np.float32([[3, 2]]))
            33.0
        """
        _check_shape(error, self.values)
        square = np.square(error, dtype=np.float64)
        return float((self.values * square + self.fourth * np.square(square)).sum())


def _check_shape(error: Floats, values: Floats) -> None:
    if error.shape != values.shape:
        raise UsageError(
            f"Error of shape {list(error.shape)} does not fit a form of shape {list(values.shape)}; expected "
            "the same [out, in]. Give the error in normal form."
        )
