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

from contextlib import suppress
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Target:
    """What the columns of a matrix aim at.

    Attributes:
        matrix: the filtered weights W~, float32 [out, in].
        importance: `g U_jj^2`, what an error of a column costs alone, float32 [out, in].
        factors: U of every class of rows, float64 [classes, in, in], upper triangular.
        classes: which one a row is of, int64 [out].
    """

    matrix: Floats
    importance: Floats
    factors: Doubles
    classes: NDArray[np.int64]


def prefilter(matrix: Floats, form: KroneckerForm, noise: float) -> Target:
    """Filter weights for errors of a given mean cost.

    Args:
        matrix: the weights [out, in], not all zero.
        form: what errors cost; with a matrix of A for every group and some row that counts.
        noise: mean cost of an error per weight; 0 does not filter.

    Raises:
        UsageError: a matrix A is not finite, or has directions in which errors gain.
    """
    from scipy.linalg import solve_triangular

    damped = form.shrunk().damped(DAMPING).columns
    rows = form.row_factors
    size = len(rows) // len(damped)
    weights = matrix.astype(np.float64)
    kappa = np.clip(noise / np.maximum(rows, LEAST_SHARE * rows.mean()), 1e-300, 1e300)
    log_power = np.log(np.square(weights).mean())
    classes = _classes(kappa, len(damped), matrix.shape[1])
    factors, target = np.empty((int(classes.max()) + 1, *damped.shape[1:])), np.empty_like(weights)
    for k in range(len(factors)):
        mine = np.flatnonzero(classes == k)
        a = damped[mine[0] // size].copy()
        most = MOST_NOISE * max(float(np.diagonal(a).mean()), 1e-300)
        added = float(np.exp(min(np.log(kappa[mine]).mean() - log_power, np.log(most))))
        a[np.diag_indices_from(a)] += added
        factors[k] = _upper_factor(a)
        lost = solve_triangular(factors[k], weights[mine].T)
        target[mine] = weights[mine] - added * solve_triangular(factors[k], lost, trans="T").T
    diagonals = np.diagonal(factors, axis1=1, axis2=2)
    importance = rows[:, None] * np.square(diagonals)[classes]
    return Target(target.astype(np.float32), importance.astype(np.float32), factors, classes)


def _upper_factor(a: Doubles) -> Doubles:
    """The upper triangular U of `a = U U^T`."""
    with suppress(np.linalg.LinAlgError):
        factor = np.asarray(np.linalg.cholesky(a[::-1, ::-1])[::-1, ::-1], np.float64)
        if np.isfinite(factor).all():
            return factor
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
