"""Forms with cross terms between the weights of a row: a Kronecker product of two small matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np

from waterfill.bases.turning import turned_both, turned_diagonal
from waterfill.errors import UsageError
from waterfill.importance.forms import DiagonalForm, Doubles, Form, Reals
from waterfill.linear_algebra import factor_in_place
from waterfill.protocols import QuadraticForm
from waterfill.records import OUT, Floats, Layout, Turn
from waterfill.theory.scaled_source import ScaledSource
from waterfill.theory.spectra import Products, kronecker_products, pivots

SHRINKAGE = 0.3
"""Share of its mean diagonal that is added to a factor, times columns over positions."""

ROW_SHRINKAGE = 0.1
"""The same for the factor over rows, times rows over positions."""

SINGLE = 512
"""Factors over so many columns are multiplied in single precision, so many columns at a time."""

SCALE_DAMPING = 1e-4
"""Damping of a matrix before its scale is taken, which would be zero where it is singular."""

ROWS_AT_ONCE = 256
"""Rows of an error that are priced at a time."""


@dataclass(frozen=True, eq=False)
class UnfactoredForm(DiagonalForm):
    """A diagonal form in the place of a product that could not be had.

    Attributes:
        reason: why not.
    """

    reason: str


@dataclass(frozen=True, eq=False)
class KroneckerForm(Form):
    """A form `e^T I e = tr(G E A E^T)` of an error E [out, in], `I = G (x) A`, for every group of a grouped layer.

    Either factor is a matrix, or the vector of its diagonal where the other entries are zero or were not asked for.
    Usually `rows` is the diagonal of G, and rows are then independent of each other: row o costs `g_o e_o^T A e_o`.

    Source: section 5.7 of PAPER.md; Martens and Grosse 2015 (K-FAC), section 3.

    Attributes:
        rows: factor over rows, float64 [out], or [out, out] with zeros between rows of different groups.
        columns: factor over columns, symmetric, [groups, in, in], or [groups, in] of its diagonal; float64, or float32
            where there are many columns.
        reason: why a factor is coarser than it was asked for; usually empty.
        positions: over how many the factor over columns is the mean, for each group; infinite where it is exact.
        standard_error: of the prices of rows, relative, that random signals leave: root mean square over the rows.
        device: where the factor over columns is factored; None for the processor.
    """

    rows: Doubles
    columns: Reals
    reason: str = ""
    positions: float = math.inf
    standard_error: float = 0.0
    device: str | None = None

    @property
    def row_factors(self) -> Doubles:
        """The diagonal of the factor over rows, [out]."""
        return np.ascontiguousarray(_diagonals(self.rows, self.rows.ndim == 2))

    @property
    def has_cross_terms(self) -> bool:
        """Whether errors in one column of a matrix can be made up for in another."""
        return self.columns.ndim == 3 and bool(self.row_factors.any())

    def diagonal(self) -> Floats:
        """The diagonal of the product, float32 [out, in]."""
        columns = _diagonals(self.columns, self.columns.ndim == 3)
        groups, inputs = columns.shape
        rows = self.row_factors.reshape(groups, len(self.rows) // groups, 1)
        product: Floats = (rows * columns[:, None, :]).astype(np.float32).reshape(len(self.rows), inputs)
        return product

    def rows_of(self, rows: slice) -> KroneckerForm:
        """The form of some rows of the matrix.

        Raises:
            UsageError: they are not equally many of each group that they are of.
        """
        chosen = np.arange(len(self.rows))[rows]
        size = len(self.rows) // len(self.columns)
        groups, counts = np.unique(chosen // max(1, size), return_counts=True)
        if len(set(counts.tolist())) > 1:
            raise UsageError(
                f"Rows {rows.start}:{rows.stop}:{rows.step} are {counts.tolist()} of the groups {groups.tolist()} of a "
                "form; expected equally many of each. Take whole groups, or rows of one."
            )
        factor = self.rows[rows] if self.rows.ndim == 1 else self.rows[rows, rows]
        if len(groups) == len(self.columns):
            return self._of_rows(factor)
        return replace(self, rows=factor, columns=self.columns[groups] if len(groups) else self.columns[:1])

    def for_matrix(self, rows: Doubles, positions: float, like: QuadraticForm) -> KroneckerForm:
        """The form of another matrix that reads the same inputs, with what is known of the factor over columns.

        Args:
            rows: factor over rows, which is shrunk as `shrunk` does it.
            positions: over how many it is the mean.
            like: has its factor and unit.
        """
        _ = self._column_pivots  # found here, for threads would find them several times
        return self._of_rows(shrunk_rows(rows, positions), factor=like.factor, unit=like.unit)

    def _of_rows(self, rows: Doubles, **others: Any) -> KroneckerForm:
        """The form with another factor over rows, and the same over columns with what is known of it."""
        found = replace(self, rows=rows, **others)
        vars(found)["of_columns"] = self.of_columns
        return found

    @cached_property
    def of_columns(self) -> dict[object, Reals]:
        """What was found for the factor over columns, which forms of other rows share."""
        return {}

    def products(self, source: ScaledSource, matrix: Floats) -> list[Products]:
        """Eigenvalues of `N^{1/2} I N^{1/2}`, see `waterfill.theory.spectra`.

        Args:
            source: fitted to the matrix.
            matrix: the weights [out, in].
        """
        live = source.live(matrix)
        powers = source.power_factors()
        return kronecker_products(self.rows, self.columns, *powers, live, self.of_columns, self.device)

    def conditional_variances(self, source: ScaledSource, matrix: Floats) -> tuple[Doubles, Doubles]:
        """What is left of every weight given those after it, with the weights that are known taken for unknown.

        They are products of one number of a row and one of a column, unless there are several groups. The factor over
        columns is damped by `SCALE_DAMPING`, as a search damps it about. With C the powers of the columns, the pivots
        of `C^{1/2} A C^{1/2}` are those of A times C: one decomposition of A serves all of them.

        Args:
            source: fitted to the matrix.
            matrix: the weights [out, in].

        Returns:
            Factors [out] and [in]; of several groups all variances [out * in], and a one.

        Source: the pivots of a Cholesky decomposition, see `waterfill.theory.spectra.pivots`.
        """
        del matrix
        groups, inputs = self.columns.shape[:2]
        row_powers, column_powers = source.power_factors()
        columns = np.broadcast_to(column_powers, (groups, inputs)) * self._column_pivots
        rows = self.rows * row_powers
        if self.rows.ndim == 2:
            rows = pivots(self.rows[None], row_powers[None], self.device)[0]
        if groups == 1:
            return rows, columns[0]
        products = rows.reshape(groups, -1, 1) * columns[:, None, :]
        return products.reshape(-1), np.ones(1)

    def turned(self, basis: Turn, layout: Layout) -> QuadraticForm:
        """The form in a basis; of factors that are diagonals, and of groups whose rows are mixed, the diagonal.

        Args:
            basis: in which the weights are.
            layout: of the matrix.
        """
        if basis.axis == OUT:
            if len(self.columns) > 1:  # whose rows have columns of their own
                return DiagonalForm(self.diagonal(), factor=self.factor, unit=self.unit).turned(basis, layout)
            if self.rows.ndim == 2:
                return self._of_rows(turned_both(self.rows, basis, layout))
            rows = turned_diagonal(self.rows[:, None], basis, Layout((len(self.rows), 1)))
            return self._of_rows(rows[:, 0])
        if self.columns.ndim == 2:
            flat = Layout((1, layout.axes[1], *layout.shape[2:]))
            columns = np.concatenate([turned_diagonal(each[None], basis, flat) for each in self.columns])
            return replace(self, columns=columns)
        return replace(self, columns=np.stack([turned_both(each, basis, layout) for each in self.columns]))

    def scaled(self, factor: float) -> KroneckerForm:
        """Multiply every price.

        Args:
            factor: above 0.
        """
        return self._of_rows(factor * self.rows)

    def cost(self, error: Floats) -> float:
        """Price an error.

        Args:
            error: [out, in].

        Returns:
            `tr(G E A E^T)` in double precision, not below 0.

        Raises:
            UsageError: the error has another shape.

        Example:
            >>> form = KroneckerForm(np.array([1.0, 2.0]), np.array([[[1.0, 0.5], [0.5, 1.0]]]))
            >>> form.cost(np.float32([[1, 1], [0, 1]]))
            5.0
        """
        row_costs = self.row_costs(error)
        if row_costs is None:
            return max(0.0, float(np.vdot(error, self.times(error))))
        return self.cost_of_rows(row_costs)

    def cost_of_rows(self, row_costs: Doubles) -> float:
        """Price an error by what its rows cost, not below 0.

        Args:
            row_costs: by `row_costs` of this form, or of one that differs in its factor over rows.
        """
        return max(0.0, float(self.rows @ row_costs))

    def row_costs(self, error: Floats) -> Doubles | None:
        """`e A e^T` of every row e of an error [out, in], float64 [out]; None where A is no matrix, or G is one.

        Products are in single precision where A is large, their sums in double. A is symmetric: what is above blocks on
        its diagonal counts as what is below them.

        Raises:
            UsageError: the error has another shape.
        """
        self._check(error.shape)
        if self.rows.ndim == 2 or self.columns.ndim == 2:
            return None
        groups, inputs = self.columns.shape[:2]
        dtype = np.float32 if inputs >= SINGLE else np.float64
        parts = error.astype(dtype, copy=False).reshape(groups, len(self.rows) // groups, inputs)
        costs = np.zeros(parts.shape[:2])
        for start in range(0, inputs, SINGLE):
            some, below = slice(start, start + SINGLE), slice(start + SINGLE, None)
            for group in range(groups):
                moved = parts[group, :, below] @ self.columns[group, below, some].astype(dtype, copy=False)
                moved *= 2
                moved += parts[group, :, some] @ self.columns[group, some, some].astype(dtype, copy=False)
                moved *= parts[group, :, some]
                costs[group] += moved.sum(axis=1, dtype=np.float64)
        return costs.reshape(-1)

    def times(self, error: Floats | Doubles) -> Doubles:
        """`G E A`, half the gradient of `cost`, [out, in].

        The product with A is in its precision, and one for all errors.

        Args:
            error: [..., out, in].

        Raises:
            UsageError: the error has another shape.
        """
        self._check(error.shape[-2:])
        groups, inputs = self.columns.shape[:2]
        out = len(self.rows)
        parts = error.astype(self.columns.dtype, copy=False).reshape(-1, groups, out // groups, inputs)
        if self.columns.ndim == 2:
            right = parts * self.columns[:, None, :]
        else:
            together = parts.swapaxes(0, 1).reshape(groups, -1, inputs) @ self.columns
            right = together.reshape(groups, -1, out // groups, inputs).swapaxes(0, 1)
        right = right.reshape(error.shape)
        product: Doubles = self.rows @ right if self.rows.ndim == 2 else self.rows[:, None] * right
        return product

    def _check(self, shape: tuple[int, ...]) -> None:
        expected = (len(self.rows), self.columns.shape[1])
        if shape != expected:
            raise UsageError(
                f"Error of shape {list(shape)} does not fit a form of shape {list(expected)}; expected the same "
                "[out, in]. Give the error in normal form."
            )

    def shrunk(self) -> KroneckerForm:
        """The factors as more positions would show them, taken from all that there are.

        A mean over few positions looks cheap in directions that are not, and a search finds them. So `0.3 n / N` of the
        mean diagonal is added to it, for n columns and N positions; to an input that was never there, what half a
        position of a mean one would bring. How much was measured: on layers of a transformer that is the best against
        other positions, for N from n / 5 to 6 n. Rows get `0.1 m / N` of the mean one, for m rows: those of
        classes that never came look free otherwise. The result is taken as exact.

        Source: shrinkage towards a multiple of the identity as in Ledoit and Wolf 2004.
        """
        if math.isinf(self.positions) or self.columns.ndim == 2:
            return replace(self, positions=math.inf)
        columns, every = self.columns.copy(), np.arange(self.columns.shape[1])
        columns[:, every, every] = self._shrunk_diagonals()
        return replace(self, rows=shrunk_rows(self.rows, self.positions), columns=columns, positions=math.inf)

    def _shrunk_diagonals(self) -> Doubles:
        """The diagonals of the factor over columns as `shrunk` has them; the other entries stay as they are."""
        diagonals = np.ascontiguousarray(_diagonals(self.columns, self.columns.ndim == 3), np.float64)
        if math.isinf(self.positions) or self.columns.ndim == 2 or not diagonals.size:
            return diagonals
        share = SHRINKAGE * diagonals.shape[1] / max(1.0, self.positions)
        found = _damped(diagonals, share)
        for shrunk, diagonal in zip(found, diagonals, strict=True):
            if diagonal.any():
                shrunk[diagonal == 0] = diagonal.mean() * min(share, 0.5 / self.positions)
        return found

    def damped_diagonals(self, relative: float) -> Doubles:
        """The diagonals of the factor over columns, shrunk and damped: all that these change of it.

        Args:
            relative: share of their mean, as for `damped`.

        Returns:
            float64 [groups, in].
        """
        return _damped(self._shrunk_diagonals(), relative)

    def damped(self, relative: float) -> KroneckerForm:
        """Add a share of its mean diagonal to the diagonal of each factor, so that it can be factored and inverted.

        A layer that has seen fewer samples than it has inputs, inputs that are always zero and tokens that never came
        all leave A singular, as if some errors cost nothing. What was not seen gets a price; where a whole group was
        not seen, that of the mean group. The vector of a diagonal G stays as it is: rows without gradient are known.

        Args:
            relative: share of the mean of the diagonal, not below 0.

        Raises:
            UsageError: it is, or not finite.

        Source: Tikhonov damping, Martens and Grosse 2015, section 6.2; relative to the mean diagonal as in GPTQ
            (Frantar et al. 2023, section 3.3).

        Example:
            >>> KroneckerForm(np.array([1.0]), np.array([[[3.0, 0.0], [0.0, 0.0]]])).damped(0.5).columns.tolist()
            [[[3.75, 0.0], [0.0, 0.75]]]
        """
        if not (math.isfinite(relative) and relative >= 0):
            raise UsageError(f"Damping is {relative}; expected a number not below 0, such as 0.0001.")
        if not relative or not self.columns.size:
            return self
        rows = _damped(self.rows[None], relative)[0] if self.rows.ndim == 2 and self.rows.size else self.rows
        return replace(self, rows=rows, columns=_damped(self.columns, relative))

    @property
    def _column_pivots(self) -> Doubles:
        """Pivots of the damped factors over columns, in their order, or their diagonals, [groups, in]."""
        if self.columns.ndim == 2:
            return np.asarray(self.columns, np.float64)
        if damped_pivots not in self.of_columns:
            self.of_columns[damped_pivots] = damped_pivots(self.columns, SCALE_DAMPING, self.device)
        return self.of_columns[damped_pivots]

    @cached_property
    def _scales(self) -> tuple[Doubles, Doubles]:
        """What tempering takes to a power: `rows`, [1 or out], and `columns`, [groups, 1 or in]."""
        rows = self.rows
        if rows.ndim == 2:
            rows = _geometric_means(damped_pivots(rows[None], SCALE_DAMPING, self.device))[0]
        columns = self._column_pivots
        return rows, _geometric_means(columns) if self.columns.ndim == 3 else columns

    @property
    def scale_total(self) -> float:
        """Sum over all weights of their scales, see `tempered`."""
        rows, columns = self._scales
        groups, inputs = self.columns.shape[:2]
        of_groups = np.broadcast_to(rows, len(self.rows)).reshape(groups, -1).sum(1)
        return float(of_groups @ np.broadcast_to(columns, (groups, inputs)).sum(1))

    def tempered(self, mean: float, power: float) -> KroneckerForm:
        """Take the scale of every weight to a power about a mean: `s' = mean (s / mean)^power`.

        Factors that are vectors are taken to the power entry by entry, which is `DiagonalForm.tempered` where both are.
        A matrix keeps its shape and has one scale, `det(F)^(1/n)` after damping by `SCALE_DAMPING`: the geometric mean
        of the conditional variances of its Cholesky decomposition, by which errors are priced that may be fed back to
        the weights that follow. With the power 0 a row of every layer has `g' det(A')^(1/n) = mean`.

        Args:
            mean: above 0.
            power: 1 changes nothing.

        Example:
            >>> form = KroneckerForm(np.array([4.0]), np.array([[[9.0, 0.0], [0.0, 9.0]]]))
            >>> form.tempered(1.0, 0.5).diagonal().round(3)
            array([[6., 6.]], dtype=float32)
        """
        if power == 1:
            return self
        rows, columns = self._scales
        rows = rows[:, None] ** (power - 1) * self.rows if self.rows.ndim == 2 else rows**power
        rows = mean ** (1 - power) * rows
        if self.columns.ndim == 2:
            return replace(self, rows=rows, columns=columns**power)
        if rows.ndim == 2:  # has one scale for all groups
            return replace(self, rows=rows, columns=(columns[:, :, None] ** (power - 1)) * self.columns)
        each = np.repeat(columns ** (power - 1), len(rows) // len(columns))  # into the rows, for no copy of the columns
        return self._of_rows(each * rows)


def shrunk_rows(rows: Doubles, positions: float) -> Doubles:
    """A factor over rows as `KroneckerForm.shrunk` has it; as it is where it is a matrix."""
    if rows.ndim == 2 or not rows.size:
        return rows
    share = ROW_SHRINKAGE * len(rows) / max(1.0, positions)
    return np.asarray(rows + share * rows.mean())


def _geometric_means(pivots_of_groups: Doubles) -> Doubles:
    """The `det^(1/n)` of matrices from their pivots [groups, n], [groups, 1]."""
    if not pivots_of_groups.size:
        return np.ones((len(pivots_of_groups), 1))
    return np.asarray(np.exp(np.log(pivots_of_groups).mean(1)))[:, None]


def damped_pivots(matrices: Reals, relative: float, device: str | None = None) -> Doubles:
    """Pivots of the Cholesky decomposition of damped matrices from the last row on, in the order of the coordinates.

    They are what is left of each coordinate when those after it are known, as error feedback has it. It is in the
    precision of the matrices, and takes the memory of one of them.

    Args:
        matrices: positive semidefinite, [groups, n, n].
        relative: damping, see `KroneckerForm.damped`, above 0.
        device: where they are factored; None for the processor.

    Returns:
        Float64 [groups, n], above 0.
    """
    if not matrices.size:
        return np.ones(matrices.shape[:2])
    means = _mean_diagonals(matrices)
    found = np.empty(matrices.shape[:2])
    for left, matrix, mean in zip(found, matrices, means, strict=True):
        least = relative * mean
        root = _raised(matrix, least)
        if factor_in_place(root, device):
            left[:] = np.square(np.diagonal(root), dtype=np.float64)
        else:  # rounding, or a matrix with directions in which errors gain
            powers = np.ones((1, len(matrix)))
            left[:] = pivots(_raised(matrix.astype(np.float64), least)[None], powers, device)[0]
        np.maximum(left, least, out=left)
    return found


def _raised(matrix: Reals, added: float) -> Reals:
    """A copy of a matrix with something added to its diagonal."""
    result = matrix.copy()
    result[np.diag_indices_from(result)] += result.dtype.type(added)
    return result


def _mean_diagonals(groups: Reals) -> Doubles:
    """Mean diagonal of matrices [groups, n, n] or diagonals [groups, n]; that of all groups where it is zero."""
    means = _diagonals(groups, groups.ndim == 3).mean(axis=1, dtype=np.float64)
    return np.where(means > 0, means, float(means.mean()) or 1.0)


def _diagonals(values: Reals, matrices: bool) -> Reals:
    return np.diagonal(values, axis1=-2, axis2=-1) if matrices else values


def _damped(groups: Reals, relative: float) -> Reals:
    """Damp matrices [groups, n, n], or diagonals [groups, n], with n above 0; in their precision."""
    added = (relative * _mean_diagonals(groups)).astype(groups.dtype)
    if groups.ndim == 2:
        return np.asarray(groups + added[:, None])
    result = groups.copy()
    every = np.arange(groups.shape[1])
    result[:, every, every] += added[:, None]
    return result


def price_error(forms: Iterable[QuadraticForm]) -> float | None:
    """Root mean square of `KroneckerForm.standard_error` over all weights of some forms; None where it is zero."""
    known = [(form.standard_error, len(form.rows) * form.columns.shape[1]) for form in forms if _is_product(form)]
    weights = sum(size for _, size in known)
    return math.sqrt(sum(error**2 * size for error, size in known) / max(1, weights)) or None


def _is_product(form: QuadraticForm) -> TypeGuard[KroneckerForm]:
    return isinstance(form, KroneckerForm)


def differs_in_rows(form: QuadraticForm, other: QuadraticForm | None) -> TypeGuard[KroneckerForm]:
    """Whether a form and another are products with the same factor over columns, and rows that are independent."""
    if other is None or not (_is_product(form) and _is_product(other)):
        return False
    return form.columns is other.columns and form.rows.ndim == other.rows.ndim == 1


def has_cross_terms(form: QuadraticForm | None) -> TypeGuard[KroneckerForm]:
    """Whether a form is there and has cross terms: those of a product, the only ones that are known here."""
    return form is not None and form.has_cross_terms
