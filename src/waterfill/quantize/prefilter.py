"""What error feedback aims at: weights without what no code at this rate can say, and how their errors couple.

The errors E of a row cost `g E A E^T`. Bits cost too: under tables fitted to a Gaussian of variance v a value w takes
`w^2 / (2 v ln 2)` of them, each worth 2 ln 2 water levels, the slope of the rate-distortion function. With kappa, the
water level over g, both are least together where `W~ = W A A'^-1`, `A' = A + kappa / v I` (a Wiener filter); what is
above the least is `g (W~ - W^) A' (W~ - W^)^T`: no bits are in it any more. With `A' = U U^T`, U upper triangular, that
is a sum over columns: column j costs `g U_jj^2 (target_j - W^_j)^2`, where the target is
`W~_j + sum_{i<j} E_i U_ij / U_jj` with `E = W~ - W^`. Every column makes up for the errors before it.

Source:
    Section 5.7 of PAPER.md; feedback as in GPTQ (Frantar et al. 2023), which is successive cancellation on a lattice
    (Chen et al. 2025); pre-filters as in Zamir, Kochman and Erez, "Achieving the Gaussian rate-distortion function by
    prediction" (2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from waterfill.errors import UsageError
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import Doubles, Reals
from waterfill.records import Floats
from waterfill.theory.cholesky import factor_in_place

DAMPING = 1e-4
"""Share of its mean that is added to the diagonal of A."""

LEAST_SHARE = 1e-4
"""Rows whose factor is below this share of the mean one are filtered as if it were that."""

OCTAVES = 1.0
"""Rows whose noise is within so many octaves share a filter."""

MOST_NOISE = 1e6
"""Noise at most, in mean costs of an error of the size of a weight: every weight is rounded to zero long before."""

MOST_FILTERS = 24
MOST_WORK = 2e10
"""Filters of a matrix at most, and their number times the cube of its columns."""


SMALL = 256
"""Matrices of fewer columns are factored in double precision, which takes no time there."""

GRID, FLAT_GRID = 32, 1
"""Noise is rounded to so many parts of an octave; to fewer where the filters of a flat matrix are shared.

On a convolution of 8,192 inputs a filter for noise that is a quarter of an octave off costs less than .0005 bit, half
an octave .001 to .002 bit.
"""

FLAT_FROM, INPUTS_PER_ROW = 1024, 64
"""A matrix is flat with so many inputs, and so many for every row: then nearly all work is in factoring."""

KEPT_FROM, KEPT_BYTES = 0.5, 1 << 29
"""Filters are kept where classes times columns are more than this many times the rows, up to so many bytes."""


@dataclass(frozen=True, eq=False)
class Target:
    """What the columns of a matrix aim at.

    Attributes:
        matrix: the filtered weights W~, float32 [out, in].
        importance: `g U_jj^2`, what an error of a column costs alone, float32 [out, in].
        factors: the transpose of U for every class of rows, float32 [classes, in, in], lower triangular.
        classes: which one a row is of, int64 [out].
    """

    matrix: Floats
    importance: Floats
    factors: Floats
    classes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Filters:
    """The filters of a matrix at any noise; the last ones are kept where making them takes a good part of the time.

    Attributes:
        matrix: the weights [out, in], not all zero.
        form: what errors cost; with a matrix of A for every group and some row that counts.
    """

    matrix: Floats
    form: KroneckerForm
    _kept: list[tuple[tuple[float, ...], Target]] = field(default_factory=list, init=False)

    def target(self, noise: float) -> Target:
        """Filter the weights for errors of a given mean cost.

        Noise is rounded to 1/32 of an octave, for flat matrices to whole ones, so that levels near to each other have
        the same filters.

        Args:
            noise: mean cost of an error per weight; 0 does not filter.

        Raises:
            UsageError: a matrix A is not finite, or has directions in which errors gain.
        """
        rows, columns = self.form.row_factors, self.form.columns.shape[:2]
        kappa = np.clip(noise / np.maximum(rows, LEAST_SHARE * rows.mean()), 1e-300, 1e300)
        classes = _classes(kappa, *columns)
        added = self._added(kappa, classes)
        known = self._kept[-1:]
        if known and known[0][0] == added:
            return known[0][1]
        target = self._filtered(classes, added)
        if KEPT_FROM * len(self.matrix) < len(added) * columns[1] and target.factors.nbytes <= KEPT_BYTES:
            self._kept[:] = [(added, target)]
        return target

    def _added(self, kappa: Doubles, classes: NDArray[np.int64]) -> tuple[float, ...]:
        """What is added to the diagonal of A for every class of rows."""
        log_power = np.log2(np.square(self.matrix, dtype=np.float64).mean())
        columns = self.form.columns
        means = np.maximum(np.trace(columns, axis1=1, axis2=2) / columns.shape[1], 1e-300)
        groups, counts = np.arange(len(kappa)) * len(columns) // len(kappa), np.bincount(classes)
        wanted = np.bincount(classes, np.log2(kappa)) / counts - log_power
        most = np.log2(MOST_NOISE * np.bincount(classes, means[groups]) / counts)
        grid = FLAT_GRID if self._is_flat else GRID
        added: list[float] = np.exp2(np.rint(grid * np.minimum(wanted, most)) / grid).tolist()
        return tuple(added)

    def _filtered(self, classes: NDArray[np.int64], added: tuple[float, ...]) -> Target:
        firsts = np.unique(classes, return_index=True)[1]
        groups = (firsts * len(self.form.columns) // len(classes)).tolist()
        factors = self._factors(tuple(zip(groups, added, strict=True)))
        target = np.empty_like(self.matrix)
        for k, more in enumerate(added):
            mine = np.flatnonzero(classes == k)
            target[mine] = self.matrix[mine] - np.float32(more) * factors.solved(self.matrix[mine], k)
        importance = self.form.row_factors[:, None] * factors.variances[classes]
        return Target(target, importance.astype(np.float32), factors.factors, classes)

    def _factors(self, wanted: tuple[tuple[int, float], ...]) -> Factors:
        """Factors for groups and what is added to their diagonals; of a flat matrix the last ones are shared."""
        if not self._is_flat:
            return Factors.of(self.form, wanted)
        shared = self.form.shared
        known = shared.get(Factors)
        if known is None or known.wanted != wanted:
            shared.pop(Factors, None)
            known = Factors.of(self.form, wanted)
            if known.factors.nbytes <= KEPT_BYTES:
                shared[Factors] = known
        return known

    @property
    def _is_flat(self) -> bool:
        rows, inputs = self.matrix.shape
        return bool(inputs >= max(FLAT_FROM, INPUTS_PER_ROW * rows))


@dataclass(frozen=True, eq=False)
class Factors:
    """`A' = U U^T` of every class of rows.

    Attributes:
        wanted: the group of every class, and what is added to the diagonal of its damped A.
        factors: the transposes of U, float32 [classes, in, in].
        exact: the same in the precision in which each was found.
        variances: squares of the diagonals of U, float64 [classes, in].
    """

    wanted: tuple[tuple[int, float], ...]
    factors: Floats
    exact: Sequence[Reals]
    variances: Doubles

    @classmethod
    def of(cls, form: KroneckerForm, wanted: tuple[tuple[int, float], ...]) -> Factors:
        """Factor for groups and what is added to their diagonals.

        Raises:
            UsageError: A' is not finite, or has eigenvalues below 0.
        """
        inputs, diagonals = form.columns.shape[1], form.damped_diagonals(DAMPING)
        factors, exact = np.empty((len(wanted), inputs, inputs), np.float32), []
        for k, (group, more) in enumerate(wanted):
            exact.append(_factor(form.columns[group], diagonals[group] + more, factors[k]))
        variances = [np.square(np.diagonal(each), dtype=np.float64) for each in exact]
        return cls(wanted, factors, exact, np.array(variances).reshape(len(wanted), inputs))

    def solved(self, rows: Floats, number: int) -> Floats:
        """Solve `z A' = w` for rows w [rows, in] of a class."""
        factor = torch.from_numpy(self.exact[number])
        wanted = torch.from_numpy(rows).to(factor.dtype)
        half = torch.linalg.solve_triangular(factor, wanted, upper=False, left=False)
        found: Floats = torch.linalg.solve_triangular(factor.T, half, upper=True, left=False).float().numpy()
        return found


def _factor(a: Reals, diagonal: Doubles, factor: Floats) -> Reals:
    """Factor `A' = U U^T`.

    In single precision, which is twice as fast and takes half of the room, where the matrix is large and not too near
    to a singular one.

    Args:
        a: A, symmetric [in, in]; what is on its diagonal does not count.
        diagonal: of A', [in].
        factor: [in, in], filled with the transpose of U.

    Returns:
        The same in the precision in which it was found.

    Raises:
        UsageError: A' is not finite, or has eigenvalues below 0.
    """
    for dtype in (np.float32, np.float64) if len(a) >= SMALL else (np.float64,):
        work: Reals = factor if dtype == np.float32 else np.empty(a.shape)
        work[...] = a
        work.reshape(-1)[:: len(a) + 1] = diagonal
        if factor_in_place(work) and np.isfinite(np.diagonal(work)).all():
            if work is not factor:
                factor[...] = work
            return work
    raise UsageError(
        f"The factor over {len(a)} columns of a form is not finite, or has eigenvalues below 0; expected a mean of "
        "products x x^T. Check the importance."
    )


def _classes(kappa: Doubles, groups: int, columns: int) -> NDArray[np.int64]:
    """Rows of one group and about the same noise, numbered from 0."""
    most = max(1, min(MOST_FILTERS, int(MOST_WORK / columns**3)) // groups)
    octaves = np.log2(kappa) - np.log2(kappa).min()
    width = max(OCTAVES, float(octaves.max()) * (1 + 1e-9) / most)
    bins = np.floor(octaves / width).astype(np.int64)
    group = np.arange(len(kappa)) * groups // len(kappa)
    classes: NDArray[np.int64] = np.unique(group * (bins.max() + 1) + bins, return_inverse=True)[1]
    return classes
