"""Sparse matrices: the weights that are not zero, one by one, each given all others; zeros stay zeros."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import adaptive as coder
from waterfill.importance.factored import has_cross_terms
from waterfill.importance.forms import Doubles
from waterfill.protocols import QuadraticForm
from waterfill.quantize import adaptive
from waterfill.quantize import spread as spreads
from waterfill.quantize.scalar import LARGEST_STEP, check_reach, finest_step, finish
from waterfill.reconstruct import LEVEL_UNIT
from waterfill.records import Adaptive, Quantized, Symbols, Uniform, Weight

PRICE_OF_BIT = 1.386
"""What a bit may cost, in water levels: the slope 2 ln 2 of the rate-distortion function."""

STEPS = (0, 32, 64, 96, 128)
"""Steps that are tried, in 1/64 octave above the one whose rounding errors are the water level."""

SWEEPS, LAST_SWEEPS = 3, 4
"""How often all weights are chosen, for every step, and for the best one."""

DEAD = 24.0
"""Bits of a weight in a row or column that has no other."""


@dataclass(frozen=True)
class Sparse:
    """Uniform steps for the weights that are not zero, under the adaptive model.

    A sweep chooses every weight anew, so that errors and bits together cost the least, given all others of its row
    (coordinate descent under the form, cross terms included), and given what the adaptive model says that zero and
    other symbols cost at this place. Then the levels move to their centroids. Zeros are never filled, for a weight more
    is a place more to be told.
    """

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize one weight so that its mean `I_w e^2` comes near the water level.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
            water_level: mean cost of an error per weight.
        """
        problem = Problem.of(weight, form, PRICE_OF_BIT * water_level)
        first = problem.first_step(water_level)
        tried = (problem.solve(Found(int(first + more)), SWEEPS) for more in STEPS)
        best = problem.solve(min(tried, key=lambda found: found.cost), LAST_SWEEPS)
        symbols, rule = problem.matrix(best.symbols), Uniform(best.step, 0, best.shrink)
        return finish(weight, form, symbols, rule, spreads.fit(symbols, weight.layout))


@dataclass(frozen=True, eq=False)
class Found:
    """A choice of symbols.

    Attributes:
        step: in 1/64 octave.
        symbols: int64 [n]; empty for the nearest ones.
        shrink: centroids, in 1/64 step.
        cost: of errors and bits.
    """

    step: int
    symbols: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    shrink: tuple[int, int, int] = (0, 0, 0)
    cost: float = np.inf


@dataclass(frozen=True, eq=False)
class Problem:
    """What is sought.

    Attributes:
        weight: the matrix.
        places: rows and columns of what is not zero, row by row.
        rows: importance of the rows, float64 [out].
        factors: importance of the columns, float64 [groups, in, in], or [0, in, in] without cross terms.
        importance: of each weight alone, float64 [n].
        lmbda: price of a bit.
        model: the adaptive model.
    """

    weight: Weight
    places: tuple[NDArray[np.int64], NDArray[np.int64]]
    rows: Doubles
    factors: Doubles
    importance: Doubles
    lmbda: float
    model: Adaptive

    @classmethod
    def of(cls, weight: Weight, form: QuadraticForm | None, lmbda: float) -> Problem:
        """The search for a matrix under a form; without the cross terms between rows."""
        rows, columns = np.nonzero(weight.matrix)
        out, inputs = weight.matrix.shape
        alone = np.ones(rows.size) if form is None else form.diagonal()[rows, columns].astype(np.float64)
        importances, factors = np.ones(out), np.zeros((0, inputs, inputs))
        if has_cross_terms(form):
            importances, factors = form.row_factors, form.columns.astype(np.float64, copy=False)
        mask = (weight.matrix != 0).astype(np.int32)
        found = adaptive.cheapest(mask, weight.layout)
        model = Adaptive() if found is None or found[0].adaptive is None else found[0].adaptive
        return cls(weight, (rows, columns), importances, factors, alone, lmbda, model)

    @property
    def values(self) -> Doubles:
        """The weights that are not zero, [n]."""
        found: Doubles = self.weight.matrix[self.places].astype(np.float64)
        return found

    def first_step(self, water_level: float) -> int:
        """The step whose rounding errors cost the water level, in 1/64 octave."""
        mean = float(self.importance.mean()) if self.importance.size else 0.0
        wanted = 32 * np.log2(12 * water_level / mean) if mean > 0 else LARGEST_STEP
        highest = LARGEST_STEP - max(STEPS)
        return int(np.clip(max(np.rint(wanted), finest_step(self.weight.matrix)), -highest, highest))

    def solve(self, found: Found, sweeps: int) -> Found:
        """Choose all weights so many times."""
        from waterfill.quantize import sparse_kernels as kernels

        step = 2.0 ** (found.step / 64)
        x = self.values / step
        symbols = found.symbols.copy() if found.symbols.size else nearest(x)
        ends = np.searchsorted(self.places[0], np.arange(self.rows.size + 1))
        shrink, sums, cost = found.shrink, np.zeros((2, 3)), 0.0
        for _ in range(sweeps):
            moved = np.array([0, *shrink], np.float64) / LEVEL_UNIT
            known = x, self.places[1], ends, self.rows, self.factors, self.importance
            prices = self._prices(symbols), magnitude_bits(symbols), moved, self.lmbda / step**2
            errors, bits = kernels.descend(*known, *prices, symbols, sums)
            cost = errors * step**2 + self.lmbda * bits
            shifts = np.rint(LEVEL_UNIT * sums[1] / np.maximum(sums[0], 1e-30)).clip(-32, 32).astype(int).tolist()
            shrink = shifts[0], shifts[1], shifts[2]
        return Found(found.step, symbols, shrink, cost)

    def matrix(self, symbols: NDArray[np.int64]) -> Symbols:
        """Symbols as int32 [out, in]."""
        found = np.zeros(self.weight.matrix.shape, np.int32)
        found[self.places] = symbols
        return found

    def _prices(self, symbols: NDArray[np.int64]) -> Doubles:
        """Bits of zero and of anything else, [n, 2]; where nothing is coded any more, zero is free."""
        matrix = self.matrix(symbols)
        prices = coder.prices(matrix, self.weight.layout, self.model)[self.places].astype(np.float64)
        rows, columns = np.flatnonzero(matrix.any(axis=1)), np.flatnonzero(matrix.any(axis=0))
        live = np.isin(self.places[0], rows) & np.isin(self.places[1], columns)
        prices[~live] = 0.0, DEAD
        return prices


def nearest(x: Doubles) -> NDArray[np.int64]:
    """The nearest symbols, at least 1 in magnitude.

    Raises:
        UnsupportedModelError: a file has none for one of them.
    """
    check_reach(x)
    return np.asarray(np.sign(x) * np.maximum(np.rint(np.abs(x)), 1), np.int64)


def magnitude_bits(symbols: NDArray[np.int64]) -> Doubles:
    """Bits of every magnitude 0..255 and a sign, as often as they occur; float64 [256]."""
    used = np.minimum(np.abs(symbols[symbols != 0]), 255)
    counts = np.bincount(used, minlength=256) + 1 / (1 + np.square(np.arange(256.0)))
    counts[0] = 0.5
    bits: Doubles = 1 + np.log2(counts.sum() / counts)
    return bits
