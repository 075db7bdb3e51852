"""What error feedback aims at: weights without what no code at this rate can say, and how their errors couple.

The errors E of a row cost `g E A E^T`. Bits cost too: under tables fitted to Gaussians of variances v, one for each
column, a value w takes `w^2 / (2 v ln 2)` of them, each worth 2 ln 2 water levels, the slope of the rate-distortion
function. With kappa, the water level over g, both are least together where `W~ = W A A'^-1`, `A' = A + kappa D`,
`D = diag(1/v)` (a Wiener filter); what is above the least is `g (W~ - W^) A' (W~ - W^)^T`: no bits are in it any more.
With `A' = U U^T`, U upper triangular, that is a sum over columns: column j costs `g U_jj^2 (target_j - W^_j)^2`, where
the target is `W~_j + sum_{i<j} (W~_i - W^_i) U_ij / U_jj`. Every column makes up for the errors before it. Since
`W~ U = W U - kappa W D U^-T`, the target is as well

    aim_j + sum_{i<j} (W_i - W^_i) U_ij / U_jj,    aim_j = W_j - kappa (W D U^-T)_j / U_jj,

by the errors of the weights themselves, and W~, which would take twice the work, need not be known.

Source:
    Section 5.7 of PAPER.md; feedback as in GPTQ (Frantar et al. 2023), which is successive cancellation on a lattice
    (Chen et al. 2025); pre-filters as in Zamir, Kochman and Erez, "Achieving the Gaussian rate-distortion function by
    prediction" (2008).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from waterfill.errors import UsageError
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import Doubles, Reals
from waterfill.linear_algebra import factor_in_place, solved_rows
from waterfill.records import Floats, Weight

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

GRID, COARSE_GRID = 32, 8
"""Noise is rounded to so many parts of an octave, and to so many where filters are shared: that takes .001 bit a weight
more about .7 bit, nothing from 1.3 bit on; 4 parts take .002 more there."""

MANY, MANY_OF_FLAT, COLUMNS_PER_ROW = 2048, 1024, 64
"""From so many columns on all matrices that share their factor over columns share the filters, too; from so many where
there are so many for every row, for then nearly all work is in factoring."""

KEPT_FROM, KEPT_BYTES = 0.5, 1 << 29
"""Filters are kept where classes times columns are more than this many times the rows, up to so many bytes."""

LEAST_POWER = 1e-3
"""Of a channel or tap, relative to the largest one."""

FACTORING = Lock()
"""Held while a filter is found that is shared, for threads would find it several times."""


@dataclass(frozen=True, eq=False)
class Target:
    """What the columns of a matrix aim at.

    Attributes:
        aims: what columns aim at where nothing before them has errors, float32 [out, in].
        importance: `g U_jj^2`, what an error of a column costs alone, float32 [out, in].
        factors: the transpose of U for every class of rows, float32 [classes, in, in], lower triangular.
        classes: which one a row is of, int64 [out].
    """

    aims: Floats
    importance: Floats
    factors: Floats
    classes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Filters:
    """The filters of a matrix at any noise; the last ones are kept where making them takes a good part of the time.

    Attributes:
        weight: [out, in], not all zero.
        form: what errors cost; with a matrix of A for every group and some row that counts.
    """

    weight: Weight
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
        worth = KEPT_FROM * len(self.weight.matrix) < len(added) * columns[1] and not self._is_shared
        if worth and target.factors.nbytes <= KEPT_BYTES:
            self._kept[:] = [(added, target)]
        return target

    def _added(self, kappa: Doubles, classes: NDArray[np.int64]) -> tuple[float, ...]:
        """What is added to the diagonal of A for every class of rows."""
        log_power = np.log2(np.square(self.weight.matrix, dtype=np.float64).mean())
        columns = self.form.columns
        means = np.maximum(np.trace(columns, axis1=1, axis2=2) / columns.shape[1], 1e-300)
        groups, counts = np.arange(len(kappa)) * len(columns) // len(kappa), np.bincount(classes)
        wanted = np.bincount(classes, np.log2(kappa)) / counts - log_power
        most = np.log2(MOST_NOISE * np.bincount(classes, means[groups]) / counts)
        grid = COARSE_GRID if self._is_shared else GRID
        added: list[float] = np.exp2(np.rint(grid * np.minimum(wanted, most)) / grid).tolist()
        return tuple(added)

    def _filtered(self, classes: NDArray[np.int64], added: tuple[float, ...]) -> Target:
        groups, inputs = self.form.columns.shape[:2]
        rows, aims = self.form.row_factors, np.empty_like(self.weight.matrix)
        variances, factors = np.empty((len(added), inputs)), []
        for k, more in enumerate(added):
            mine = np.flatnonzero(classes == k)
            factor = self._factor(mine[0] * groups // len(rows), more)
            variances[k] = np.square(np.diagonal(factor), dtype=np.float64)
            some = self.weight.matrix[mine]
            solved = solved_rows(factor, some * self._noise.astype(np.float32), self.form.device)
            solved *= (more / np.diagonal(factor)).astype(solved.dtype)
            aims[mine] = some - solved
            factors.append(factor.astype(np.float32, copy=False))
        stacked = factors[0][None] if len(factors) == 1 else np.stack(factors)
        return Target(aims, (rows[:, None] * variances[classes]).astype(np.float32), stacked, classes)

    @property
    def _is_shared(self) -> bool:
        rows, columns = self.weight.matrix.shape
        return bool(columns >= MANY or columns >= max(MANY_OF_FLAT, COLUMNS_PER_ROW * rows))

    @cached_property
    def _noise(self) -> Doubles:
        """What is added to the diagonal of A, over its mean.

        It is the same everywhere where other matrices share filters, and where the weights are in their own basis:
        there powers differ little, and to know them costs .003 to .005 bit more than it gains.
        """
        alike = self._is_shared or self.weight.basis is None
        return np.ones(self.weight.matrix.shape[1]) if alike else inverse_powers(self.weight)

    def _factor(self, group: int, more: float) -> Reals:
        """Factor A' of a group, or find it factored."""
        diagonal = self.form.damped_diagonals(DAMPING)[group] + more * self._noise
        if not self._is_shared:
            return _factor(self.form.columns[group], diagonal, self.form.device)
        known, key = self.form.of_columns, (Filters, group, more)
        with FACTORING:
            if key not in known:
                _forget(known, KEPT_BYTES // 2 - 4 * len(diagonal) ** 2)
                known[key] = _factor(self.form.columns[group], diagonal, self.form.device)
            return known[key]


def inverse_powers(weight: Weight) -> Doubles:
    """Mean square of the weights of a matrix over that of every column, by channels and taps.

    Rows count alike, however large they are. Powers of independent weights of one variance differ by chance, too: they
    are moved to their mean by the share that chance has in their spread.

    Args:
        weight: [out, in], not all zero.

    Returns:
        Float64 [in], above 0.
    """
    out, channels, taps = weight.layout.axes
    squares = np.square(weight.matrix, dtype=np.float64)
    rows = squares.mean(axis=1, keepdims=True)
    relative = squares / np.where(rows > 0, rows, 1)
    chance = float(np.square(relative).mean()) / max(float(relative.mean()) ** 2, 1e-300) - 1
    columns = relative.mean(axis=0).reshape(channels, taps)
    of_channels = _without_chance(columns.mean(axis=1), chance / (out * taps))
    of_taps = _without_chance(columns.mean(axis=0), chance / (out * channels))
    powers = (of_channels[:, None] * of_taps).reshape(-1)
    return np.asarray(powers.mean() / powers)


def _without_chance(powers: Doubles, chance: float) -> Doubles:
    """Mean squares moved to their mean, in logarithms, by the share that chance has in their variance.

    Args:
        powers: not negative, some above 0.
        chance: variance of the logarithm of one by chance.
    """
    logs = np.log(np.maximum(powers, LEAST_POWER * powers.max()))
    variance = float(logs.var())
    share = max(0.0, 1 - chance / variance) if variance > 0 else 0.0
    found: Doubles = np.exp(logs.mean() + share * (logs - logs.mean()))
    return found


def _forget(known: dict[object, Reals], room: int) -> None:
    """Let go of the oldest filters that are shared, but for so many bytes."""
    kept = [key for key in known if isinstance(key, tuple) and key[0] is Filters]
    while kept and sum(known[key].nbytes for key in kept) > room:
        del known[kept.pop(0)]


def _factor(a: Reals, diagonal: Doubles, device: str | None) -> Reals:
    """Factor `A' = U U^T`.

    In single precision, which is twice as fast and takes half of the room, where the matrix is large and not too near
    to a singular one.

    Args:
        a: A, symmetric [in, in]; what is on its diagonal does not count.
        diagonal: of A', [in].
        device: where it is factored; None for the processor.

    Returns:
        The transpose of U, float32 or float64 [in, in].

    Raises:
        UsageError: A' is not finite, or has eigenvalues below 0.
    """
    for dtype in (np.float32, np.float64)[len(a) < SMALL :]:
        work = np.empty(a.shape, dtype)
        work[...] = a
        work.reshape(-1)[:: len(a) + 1] = diagonal
        if factor_in_place(work, device) and np.isfinite(np.diagonal(work)).all():
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
