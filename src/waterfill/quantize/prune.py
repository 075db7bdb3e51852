"""Pruning: weights that cost little to lose become zero, the others stay nearly as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from waterfill.errors import UsageError
from waterfill.protocols import QuadraticForm, QuantizerTraits, Quartic
from waterfill.quantize import spread as spreads
from waterfill.quantize.level_table import on_levels
from waterfill.quantize.scalar import LARGEST_STEP, finest_step, finish, nearest_symbols
from waterfill.records import Quantized, Uniform, Weight

ROUNDING = 0.01
"""A rounding costs on average at most this fraction of the threshold, the least that losing a kept weight costs."""

FINEST = 2.0**-16
"""`Prune` rounds no finer than this fraction of what is kept, where little or nothing is lost."""

Costs = NDArray[np.float64]


@dataclass(frozen=True)
class Prune:
    """Keep the same fraction of every matrix: the weights with the largest `I w^2` (`+ H w^4` where a form has H).

    What is kept is rounded with one uniform step, so finely that a rounding costs on average a hundredth of the least
    that losing a kept weight costs, and all roundings at most a hundredth of what was lost; but not more finely than
    2^-16 of what was kept (about eight bits, where hardly anything was lost).
    The fraction sets the rate, so the water level is ignored: there is one file, and a target cannot move it.

    Attributes:
        keep: fraction of the weights to keep, above 0, at most 1; rounded to whole weights. Among equal costs the
            first weights are kept, and none that costs nothing to lose.

    Raises:
        UsageError: the fraction is out of its range.

    Source:
        Section 5.3 and Corollary 1 of the paper.
    """

    keep: float = 0.1

    traits: ClassVar[QuantizerTraits] = QuantizerTraits(fixed=True, tempered=False)

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise UsageError(f"Prune of keep={self.keep} is out of range; expected a fraction above 0, at most 1.")

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:  # noqa: ARG002
        """Quantize one weight.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
            water_level: ignored.
        """
        costs = _costs(weight, form).reshape(-1)
        order = np.argsort(-costs, kind="stable")[: round(self.keep * costs.size)]
        kept = np.zeros(costs.size, bool)
        kept[order] = costs[order] > 0
        return _rounded(weight, form, kept.reshape(weight.matrix.shape), _budget(costs, kept))


@dataclass(frozen=True)
class Threshold:
    """One threshold for the whole model: keep the weights whose `I w^2` (`+ H w^4`) is at least the water level.

    Every matrix keeps as much of itself as pays, and a target such as `rate=` finds the level. What is kept is rounded
    with one uniform step a matrix, so finely that a rounding costs a hundredth of the level on average.

    Source:
        Section 5.3 and Corollary 1 of the paper, with one threshold instead of one fraction.
    """

    traits: ClassVar[QuantizerTraits] = QuantizerTraits(tempered=False)

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize one weight.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
            water_level: the threshold.
        """
        return _rounded(weight, form, _costs(weight, form) >= water_level, ROUNDING * water_level)


def _costs(weight: Weight, form: QuadraticForm | None) -> Costs:
    """What it costs to lose every weight [out, in]."""
    squares = np.square(weight.matrix, dtype=np.float64)
    costs: Costs = squares if form is None else squares * form.diagonal()
    if isinstance(form, Quartic):
        costs = costs + np.square(squares) * form.quartic()
    return costs


def _budget(costs: Costs, kept: NDArray[np.bool_]) -> float:
    """What a rounding may cost on average."""
    count, threshold = max(1, int(kept.sum())), float(costs[kept].min(initial=np.inf))
    lost, left = float(costs[~kept].clip(min=0).sum()), float(costs[kept].sum())
    return max(ROUNDING * min(threshold, lost / count), FINEST * left / count)


def _rounded(weight: Weight, form: QuadraticForm | None, kept: NDArray[np.bool_], budget: float) -> Quantized:
    """Zero all but the kept weights and round those; a rounding costs the budget on average."""
    values = np.where(kept, weight.matrix, np.float32(0))
    step = min(max(_step(form, kept, budget), finest_step(values)), LARGEST_STEP)
    if step < -LARGEST_STEP and kept.any():
        return on_levels(weight, form, values, 2.0 ** (step / 64))
    step = max(step, -LARGEST_STEP)
    symbols = nearest_symbols(values / np.exp2(step / 64))
    return finish(weight, form, symbols, Uniform(step), spreads.fit(symbols, weight.layout))


def _step(form: QuadraticForm | None, kept: NDArray[np.bool_], budget: float) -> int:
    """The step, in 1/64 octave, at which roundings cost the budget on average: `I s^2 / 12 + H s^4 / 80`."""
    if not kept.any() or budget <= 0:
        return -LARGEST_STEP
    second = 1 / 12 if form is None else max(0.0, float(form.diagonal()[kept].mean(dtype=np.float64))) / 12
    fourth = max(0.0, float(form.quartic()[kept].mean(dtype=np.float64))) / 80 if isinstance(form, Quartic) else 0.0
    squared = 2 * budget / (second + math.sqrt(second * second + 4 * fourth * budget))
    return round(32 * math.log2(squared))
