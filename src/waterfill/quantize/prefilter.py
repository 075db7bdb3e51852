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

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from waterfill.errors import UsageError
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import Doubles
from waterfill.records import Floats

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

GRID = 32
"""Noise is rounded to so many parts of an octave."""

KEPT_FROM, KEPT_BYTES = 0.5, 1 << 29
"""Filters are kept where classes times columns are more than this many times the rows, up to so many bytes."""

PART = 1 << 16
"""Numbers are moved so many at a time."""


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

        Noise is rounded to 1/32 of an octave, so that levels near to each other have the same filters.

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
        added: list[float] = np.exp2(np.rint(GRID * np.minimum(wanted, most)) / GRID).tolist()
        return tuple(added)

    def _filtered(self, classes: NDArray[np.int64], added: tuple[float, ...]) -> Target:
        groups, inputs = self.form.columns.shape[:2]
        rows, diagonals = self.form.row_factors, self.form.damped_diagonals(DAMPING)
        factors, target = np.empty((len(added), inputs, inputs), np.float32), np.empty_like(self.matrix)
        variances = np.empty((len(added), inputs))
        for k, more in enumerate(added):
            mine = np.flatnonzero(classes == k)
            group = mine[0] * groups // len(rows)
            solved = self.matrix[mine, ::-1]
            variances[k] = _factor(self.form.columns[group], diagonals[group] + more, factors[k], solved)
            target[mine] = self.matrix[mine] - np.float32(more) * solved[:, ::-1]
        importance = rows[:, None] * variances[classes]
        return Target(target, importance.astype(np.float32), factors, classes)


def _factor(a: Doubles, diagonal: Doubles, factor: Floats, solved: Floats) -> Doubles:
    """Factor `A' = U U^T` and solve `z A' = w` for all rows w.

    In single precision, which is twice as fast and takes half of the room, where the matrix is large and not too near
    to a singular one.

    Args:
        a: A, symmetric [in, in]; what is on its diagonal does not count.
        diagonal: of A', [in].
        factor: [in, in], filled with the transpose of U.
        solved: [rows, in], the rows from last to first column, replaced by the solutions.

    Returns:
        The squares of the diagonal of U.

    Raises:
        UsageError: A' is not finite, or has eigenvalues below 0.
    """
    from scipy.linalg import lapack

    for dtype, cholesky, solve in (
        (np.float32, lapack.spotrf, lapack.spotrs),
        (np.float64, lapack.dpotrf, lapack.dpotrs),
    ):
        if dtype == np.float32 and len(a) < SMALL:
            continue
        work = factor if dtype == np.float32 else np.empty(a.shape)
        work[...] = a[::-1, ::-1]
        work.reshape(-1)[:: len(a) + 1] = diagonal[::-1]
        found, info = cholesky(work.T, lower=1, clean=1, overwrite_a=1)
        pivots = np.square(np.diagonal(found).astype(np.float64))
        if info == 0 and np.isfinite(pivots).all():
            right = solved.astype(dtype, copy=False)
            solved[...] = solve(found, right.T, lower=1, overwrite_b=1)[0].T
            if dtype == np.float64:
                factor[...] = work[::-1, ::-1]
            else:
                _reverse(factor.reshape(-1))
            return np.ascontiguousarray(pivots[::-1])
    raise UsageError(
        f"The factor over {len(a)} columns of a form is not finite, or has eigenvalues below 0; expected a mean of "
        "products x x^T. Check the importance."
    )


def _reverse(values: Floats) -> None:
    """Put numbers [n] from last to first, in place."""
    half = values.size // 2
    for start in range(0, half, PART):
        stop = min(start + PART, half)
        first, last = values[start:stop], values[values.size - stop : values.size - start]
        kept = first[::-1].copy()
        first[:] = last[::-1]
        last[:] = kept


def _classes(kappa: Doubles, groups: int, columns: int) -> NDArray[np.int64]:
    """Rows of one group and about the same noise, numbered from 0."""
    most = max(1, min(MOST_FILTERS, int(MOST_WORK / columns**3)) // groups)
    octaves = np.log2(kappa) - np.log2(kappa).min()
    width = max(OCTAVES, float(octaves.max()) * (1 + 1e-9) / most)
    bins = np.floor(octaves / width).astype(np.int64)
    group = np.arange(len(kappa)) * groups // len(kappa)
    classes: NDArray[np.int64] = np.unique(group * (bins.max() + 1) + bins, return_inverse=True)[1]
    return classes
