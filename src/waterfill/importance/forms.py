"""Quadratic forms: what an error in one weight costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

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

    def regularised(self, mu: float) -> Self:
        """Add `mu` times the mean of the absolute diagonal to it.

        That is the `mu` of the paper, where diagonals have the mean 1, without their loss of scale. ReLU makes many
        entries zero, which nothing else would price.

        Args:
            mu: not below 0.

        Raises:
            UsageError: it is, or not finite.

        Source: appendix C of the paper.

        Example:
            >>> DiagonalForm(np.float32([[-1, 3]])).regularised(0.5).values
            array([[0., 4.]], dtype=float32)
        """
        return replace(self, values=_regularised(self.values, mu))

    @property
    def scale_total(self) -> float:
        """Sum over all weights of what `tempered` takes to a power: the diagonal."""
        return float(self.values.sum(dtype=np.float64))

    def tempered(self, mean: float, power: float) -> DiagonalForm:
        """Take it to a power about a mean: `I' = mean (I / mean)^power`, entry by entry.

        Args:
            mean: above 0.
            power: 1 changes nothing; with 0 every entry is the mean.

        Example:
            >>> DiagonalForm(np.float32([[1, 16]])).tempered(4.0, 0.5).values
            array([[2., 8.]], dtype=float32)
        """
        return DiagonalForm((mean * np.power(self.values / mean, power)).astype(np.float32))

    def scaled(self, factor: float) -> DiagonalForm:
        """Multiply every price.

        Args:
            factor: above 0.
        """
        return DiagonalForm((self.values * np.float64(factor)).astype(np.float32))

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

    def regularised(self, mu: float) -> Self:
        """Add `mu` times the mean of the absolute H to H, as `DiagonalForm.regularised`; I stays as it is.

        Args:
            mu: not below 0.

        Raises:
            UsageError: it is, or not finite.
        """
        return replace(self, fourth=_regularised(self.fourth, mu))

    def clipped(self) -> Self:
        """Put zero in place of what is negative, as a convex search needs it, such as Algorithm 2.

        What was drawn without bias is too large in expectation after that, where its noise is not small.
        """
        return replace(self, values=np.maximum(self.values, 0), fourth=np.maximum(self.fourth, 0))

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


@dataclass(frozen=True, eq=False)
class DrawnQuarticForm(QuarticForm):
    """A form of second and fourth powers whose H was estimated from random draws, and may be negative by chance.

    Attributes:
        fourth_errors: standard errors of H, float32 [out, in], as in `DrawnForm`; 0 where nothing had to be drawn.
        count: the number of samples that the means are over.
    """

    fourth_errors: Floats
    count: int


def check_mu(mu: float) -> None:
    """Check what forms are regularised by.

    Raises:
        UsageError: it is below 0, or not finite.
    """
    if not (math.isfinite(mu) and mu >= 0):
        raise UsageError(f"mu is {mu}; expected a number not below 0. Give 0 to add nothing.")


def _regularised(values: Floats, mu: float) -> Floats:
    check_mu(mu)
    if not mu or not values.size:
        return values
    added: Floats = (values + mu * np.abs(values).mean(dtype=np.float64)).astype(np.float32)
    return added


def _check_shape(error: Floats, values: Floats) -> None:
    if error.shape != values.shape:
        raise UsageError(
            f"Error of shape {list(error.shape)} does not fit a form of shape {list(values.shape)}; expected "
            "the same [out, in]. Give the error in normal form."
        )
