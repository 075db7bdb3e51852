"""Quadratic forms: what an error in one weight costs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from waterfill.bases.turning import turned_diagonal
from waterfill.errors import UsageError
from waterfill.protocols import QuadraticForm, Quartic
from waterfill.records import OUT, Floats, Layout, Turn
from waterfill.theory.scaled_source import ScaledSource
from waterfill.theory.spectra import Products

Doubles: TypeAlias = NDArray[np.float64]

Reals: TypeAlias = NDArray[Any]
"""Of double precision, or of single precision where they are many."""

COST_UNIT = "I e^2"
"""Unit of a distortion that is told by its formula."""


@dataclass(frozen=True, eq=False)
class Form(ABC):
    """What all forms have: a way to be read as a distortion of the model, and components for its limit.

    Attributes:
        factor: by what `e^T I e` is multiplied to be a distortion of the model: 1/2 for second derivatives, such as
            those of KL (Eq. 6).
        unit: of that distortion.
    """

    factor: float = field(default=1.0, kw_only=True)
    unit: str = field(default=COST_UNIT, kw_only=True)

    @property
    def has_cross_terms(self) -> bool:
        """Whether an error in one column of a matrix can be made up for in another."""
        return False

    def shrunk(self) -> Self:
        """The form as more samples would show it: itself."""
        return self

    @abstractmethod
    def products(self, source: ScaledSource, matrix: Floats) -> list[Products]:
        """`component_variances` as products of one number of a row and one of a column."""

    def component_variances(self, source: ScaledSource, matrix: Floats) -> Doubles:
        """Variances of independent components whose reverse water-filling is the limit at every distortion.

        Args:
            source: fitted to the matrix.
            matrix: the weights [out, in].

        Returns:
            Float64 [components]; weights that are known have none, or one of the variance 0.
        """
        return np.concatenate([part.volumes() for part in self.products(source, matrix)])


class _EntryByEntry(Form):
    """A form in which weights are priced one by one."""

    @abstractmethod
    def diagonal(self) -> Floats:
        """The coefficients of the squares, float32 [out, in]."""

    @property
    def scale_total(self) -> float:
        """Sum over all weights of what `tempered` takes to a power: the diagonal."""
        return float(self.diagonal().sum(dtype=np.float64))

    def products(self, source: ScaledSource, matrix: Floats) -> list[Products]:
        """All component variances as one row."""
        variances = self.component_variances(source, matrix)
        return [Products(variances[None], np.ones((1, 1)))]

    def component_variances(self, source: ScaledSource, matrix: Floats) -> Doubles:
        """`I_i N_i` with the entropy powers N of the weights, float64 [out * in].

        Args:
            source: fitted to the matrix.
            matrix: the weights [out, in].

        Source: Theorem 2 of the paper.
        """
        variances: Doubles = source.entropy_powers(matrix) * self.diagonal()
        return variances.reshape(-1)

    def conditional_variances(self, source: ScaledSource, matrix: Floats) -> tuple[Doubles, Doubles]:
        """The component variances, which do not depend on each other, and a one."""
        return self.component_variances(source, matrix), np.ones(1)

    def turned(self, basis: Turn, layout: Layout) -> DiagonalForm:
        """The diagonal of the squares in a basis, in which they have cross terms: those are left out.

        Args:
            basis: in which the weights are.
            layout: of the matrix.
        """
        diagonal = self.diagonal().astype(np.float32, copy=False)
        return DiagonalForm(turned_diagonal(diagonal, basis, layout), factor=self.factor, unit=self.unit)

    def _squares(self) -> DiagonalForm:
        """The squares alone, in the same unit."""
        return DiagonalForm(self.diagonal(), factor=self.factor, unit=self.unit)


@dataclass(frozen=True, eq=False)
class DiagonalForm(_EntryByEntry):
    """A form without cross terms: `e^T I e = sum_i I_i e_i^2`.

    Source: section 6 of the paper, where the off-diagonal part of the importance matrix is dropped.

    Attributes:
        values: the diagonal, float32 [out, in], not negative.
    """

    values: Floats

    def diagonal(self) -> Floats:
        """The diagonal, float32 [out, in]."""
        return self.values

    def rows_of(self, rows: slice) -> DiagonalForm:
        """The form of some rows of the matrix."""
        return replace(self, values=self.values[rows])

    def conditional_variances(self, source: ScaledSource, matrix: Floats) -> tuple[Doubles, Doubles]:
        """The component variances and a one; of rows that have one price each, as products of rows and columns."""
        if source.zeros > 0 or not (self.values == self.values[:, :1]).all():
            return super().conditional_variances(source, matrix)
        rows, columns = source.power_factors()
        return rows * self.values[:, 0], columns

    def turned(self, basis: Turn, layout: Layout) -> DiagonalForm:
        """See `_EntryByEntry.turned`; the form itself where all that a basis mixes has one price.

        Args:
            basis: in which the weights are.
            layout: of the matrix.
        """
        first = self.values[:1] if basis.axis == OUT else self.values[:, :1]
        return self if (self.values == first).all() else super().turned(basis, layout)

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

    def tempered(self, mean: float, power: float) -> DiagonalForm:
        """Take it to a power about a mean: `I' = mean (I / mean)^power`, entry by entry.

        Args:
            mean: above 0.
            power: 1 changes nothing; with 0 every entry is the mean.

        Example:
            >>> DiagonalForm(np.float32([[1, 16]])).tempered(4.0, 0.5).values
            array([[2., 8.]], dtype=float32)
        """
        if power == 1:
            return self
        return self._with((mean * np.power(self.values / mean, power)).astype(np.float32))

    def scaled(self, factor: float) -> DiagonalForm:
        """Multiply every price.

        Args:
            factor: above 0.
        """
        return self._with(_times(self.values, factor))

    def _with(self, values: Floats) -> DiagonalForm:
        """A plain form of other values, in the same unit."""
        return DiagonalForm(values, factor=self.factor, unit=self.unit)

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

    def rows_of(self, rows: slice) -> DrawnForm:
        """The form of some rows of the matrix."""
        return replace(self, values=self.values[rows], standard_errors=self.standard_errors[rows])


@dataclass(frozen=True, eq=False)
class QuarticForm(_EntryByEntry):
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

    def rows_of(self, rows: slice) -> QuarticForm:
        """The form of some rows of the matrix."""
        return replace(self, values=self.values[rows], fourth=self.fourth[rows])

    def scaled(self, factor: float) -> QuarticForm:
        """Multiply every price.

        Args:
            factor: above 0.
        """
        values, fourth = (_times(each, factor) for each in (self.values, self.fourth))
        return QuarticForm(values, fourth, factor=self.factor, unit=self.unit)

    def tempered(self, mean: float, power: float) -> QuarticForm | DiagonalForm:
        """Take the coefficients of the squares to a power, as `DiagonalForm.tempered`, without the fourth powers.

        What a power of the squares corrects is what fourth powers stand for: that errors are not small.

        Args:
            mean: above 0.
            power: 1 changes nothing.
        """
        if power == 1:
            return self
        return self._squares().tempered(mean, power)

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

    def rows_of(self, rows: slice) -> DrawnQuarticForm:
        """The form of some rows of the matrix."""
        coefficients = self.values[rows], self.fourth[rows], self.fourth_errors[rows]
        return DrawnQuarticForm(*coefficients, self.count, factor=self.factor, unit=self.unit)


class BareForm(Protocol):
    """A form of release 0.1: a diagonal and a cost."""

    def diagonal(self) -> Floats:
        """The diagonal, float32 [out, in]."""
        ...

    def cost(self, error: Floats) -> float:
        """The price of an error [out, in]."""
        ...


@dataclass(frozen=True, eq=False)
class ForeignForm(_EntryByEntry):
    """A form of somebody else, which prices errors in a way of its own and is known by its diagonal otherwise.

    Attributes:
        priced: the form.
        times: what its prices are multiplied by.
    """

    priced: BareForm
    times: float = 1.0

    def diagonal(self) -> Floats:
        """The diagonal, float32 [out, in]."""
        values = self.priced.diagonal()
        return values if self.times == 1 else _times(values, self.times)

    def rows_of(self, rows: slice) -> DiagonalForm:
        """The diagonal form of some rows: the price of the whole says nothing of them."""
        return self._squares().rows_of(rows)

    def scaled(self, factor: float) -> ForeignForm:
        """Multiply every price.

        Args:
            factor: above 0.
        """
        return replace(self, times=factor * self.times)

    def tempered(self, mean: float, power: float) -> ForeignForm | DiagonalForm:
        """Take the diagonal to a power, as `DiagonalForm.tempered`.

        Args:
            mean: above 0.
            power: 1 changes nothing.
        """
        return self if power == 1 else self._squares().tempered(mean, power)

    def cost(self, error: Floats) -> float:
        """Price an error by the own way of the form.

        Args:
            error: [out, in].
        """
        return self.times * self.priced.cost(error)


def completed(form: Any) -> QuadraticForm:
    """Give a form all methods that the package uses, where it has only those of release 0.1.

    Args:
        form: with the methods `diagonal` and `cost`, or those of `Quartic`.
    """
    if hasattr(form, "component_variances"):
        found: QuadraticForm = form
        return found
    if isinstance(form, Quartic):
        return QuarticForm(form.diagonal(), form.quartic())
    return ForeignForm(form)


def check_mu(mu: float) -> None:
    """Check what forms are regularised by.

    Raises:
        UsageError: it is below 0, or not finite.
    """
    if not (math.isfinite(mu) and mu >= 0):
        raise UsageError(f"mu is {mu}; expected a number not below 0. Give 0 to add nothing.")


def _times(values: Floats, factor: float) -> Floats:
    product: Floats = (values * np.float64(factor)).astype(np.float32)
    return product


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
