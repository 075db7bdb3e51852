"""Entropy-coded scalar quantization with row x channel x tap steps and rate-distortion optimised rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from waterfill.codec import scales as side
from waterfill.codec import tables
from waterfill.codec.scales import side_bits, stored
from waterfill.codec.symbols import ideal_bits, spread_codes
from waterfill.errors import UnsupportedModelError
from waterfill.importance.factored import KroneckerForm
from waterfill.importance.forms import Doubles
from waterfill.protocols import QuadraticForm, QuantizerTraits
from waterfill.quantize import spread as spreads
from waterfill.quantize.spread import LARGEST_OFFSET
from waterfill.reconstruct import LEVEL_UNIT, errors, step_sizes
from waterfill.records import AxisScales, Codebook, Floats, Layout, Quantized, Rule, Scales, Uniform, Weight

LARGEST_STEP, LARGEST_SUM = 6000, 7000
"""Bounds of the format, in 1/64 octave: of a step, and of a step with the largest scales of its axes."""

LARGEST_SYMBOL = 2**29

FINEST = 20
"""Bits of the largest magnitude that no step goes below."""

BELOW_WATER = 4.0
"""Steps of rows that cost less than a water level even as zeros are not made larger from this ratio on."""

ROUNDINGS = 3
"""How often scales are rounded to the table that suits them, and that chosen anew."""


@dataclass(frozen=True)
class Scalar:
    """Uniform steps, coded; zero is a level, so weights that do not pay for their bits are pruned.

    Every weight minimises `importance * error^2 + lmbda * bits`. Importance that factors over rows, input channels and
    taps goes into the steps, where that pays; the rest weighs the errors. The decoder sees a uniform quantizer whose
    first three levels may be moved towards zero (centroids).

    Attributes:
        lmbda: price of a bit in units of the squared step; 0 rounds to the nearest level. At high rate the slope of
            the rate-distortion function asks for ln(2) / 6 = 0.116.
        rounds: how often tables and roundings are fitted to each other.
    """

    lmbda: float = 0.11
    rounds: int = 3
    traits: ClassVar[QuantizerTraits] = QuantizerTraits(any_basis=True)

    def quantize(self, weight: Weight, form: QuadraticForm | None, water_level: float) -> Quantized:
        """Quantize one weight so that its mean `I_w e^2` comes near the water level.

        Args:
            weight: matrix [out, in].
            form: what an error costs; None for 1 everywhere.
            water_level: mean cost of an error per weight.
        """
        layout = weight.layout
        importance = np.ones((1, 1), np.float32) if form is None else form.diagonal()
        rule, x, relative = in_steps(weight, importance, water_level)
        symbols = nearest_symbols(x)
        fit = spreads.fit(symbols.reshape(weight.matrix.shape), layout, steps=rule.scales)
        shrink = (0, 0, 0)
        for _ in range(self.rounds if self.lmbda > 0 else 0):
            symbols = _round(x, relative, fit, layout, shrink, self.lmbda)
            shrink = _centroids(x, relative, symbols)
            fit = spreads.fit(symbols.reshape(weight.matrix.shape), layout, fit)
        rule = Uniform(rule.step, 0, shrink, rule.rows, rule.channels, rule.taps)
        return finish(weight, form, symbols.reshape(weight.matrix.shape), rule, fit)


def finish(
    weight: Weight, form: QuadraticForm | None, symbols: NDArray[np.int32], rule: Rule, fit: spreads.Fit
) -> Quantized:
    """The record of symbols that are decided, with bits and distortion; their tables are the cheapest there are."""
    side = side_bits(rule.scales) if isinstance(rule, Uniform) else 0.0
    side += 32 * len(rule.values) if isinstance(rule, Codebook) else 0
    cost, row_costs = cost_of(weight, form, symbols, rule)
    widest = sum(int(exponents.max(initial=0)) for exponents in fit.exponents(weight.layout))
    largest = int(np.abs(symbols).max(initial=0))
    beyond = fit.shift > 0 or widest >= tables.SCALES or largest >= fit.lengths().shape[1]
    bits = _exact_bits(symbols, fit, weight.layout) if beyond else fit.bits
    spread, bits = spreads.cheapest(symbols, weight.layout, fit.spread(), bits)
    return Quantized(symbols, rule, spread, bits + side, cost, row_costs=row_costs)


def cost_of(
    weight: Weight, form: QuadraticForm | None, symbols: NDArray[np.int32], rule: Rule
) -> tuple[float, Doubles | None]:
    """What the errors of symbols [out, in] cost, and those of every row, see `Quantized`."""
    error = errors(weight, symbols, rule)
    if form is None:
        return float(np.square(error, dtype=np.float64).sum()), None
    if isinstance(form, KroneckerForm):
        row_costs = form.row_costs(error)
        if row_costs is not None:
            return form.cost_of_rows(row_costs), row_costs
    return form.cost(error), None


def _exact_bits(symbols: NDArray[np.int32], fit: spreads.Fit, layout: Layout) -> float:
    """Bits of symbols and spread where low bits are left out, by every element as many as suit it, or escapes long."""
    spread = fit.spread()
    bits = ideal_bits(symbols.reshape(-1), spread_codes(spread, layout, 0, symbols.size))
    return bits + side_bits(spread.scales, fit.steps)


def in_steps(
    weight: Weight, importance: Floats, water_level: float, *, finest: int = FINEST
) -> tuple[Uniform, Floats, Floats]:
    """Choose the steps: the rule, the weights in steps, and the importances relative to their mean in steps.

    The mean of `I step^2 / 12` over the tensor is the water level, unless that takes steps below `2^-finest` of the
    largest weight.
    """
    axes = weight.layout.axes
    unit = Uniform(0, 0, (0, 0, 0), *_step_scales(importance, weight, water_level))
    factor, lowest = _in_unit(weight, unit, finest)
    if lowest > largest_step(unit):  # scales take range from the step that all have
        unit = Uniform(0)
        factor, lowest = _in_unit(weight, unit, finest)
    relative = importance.reshape(-1) * np.square(factor)
    mean = float(relative.mean(dtype=np.float64)) if relative.size else 0.0
    wanted = 64 * 0.5 * np.log2(12 * water_level / mean) if mean > 0 else LARGEST_STEP
    limit = largest_step(unit)
    rule = replace(unit, step=int(np.clip(max(np.rint(wanted), lowest), -limit, limit)))
    x = weight.matrix.reshape(-1) / step_sizes(rule, weight.layout, 0, weight.layout.numel)
    check_reach(x)
    if relative.size > 1:
        return rule, x.reshape(axes), (relative / np.float64(mean or 1.0)).astype(np.float32).reshape(axes)
    return rule, x.reshape(axes), np.ones((1, 1, 1), np.float32)


def _in_unit(weight: Weight, unit: Uniform, finest: int) -> tuple[Floats, int]:
    """The factors of the scales of a rule, and the step below which nothing is gained beside them."""
    factor = step_sizes(unit, weight.layout, 0, weight.layout.numel).reshape(-1)
    return factor, finest_step(np.divide(weight.matrix.reshape(-1), factor, dtype=np.float64), finest)


def check_reach(x: NDArray[np.floating[Any]]) -> None:
    """Check that a file has symbols for weights in steps.

    Raises:
        UnsupportedModelError: it has none for one of them.
    """
    largest = float(np.abs(x).max(initial=0.0))
    if not largest <= LARGEST_SYMBOL:
        raise UnsupportedModelError(
            f"a value is {largest:.2g} of the largest steps that a file has; expected at most {LARGEST_SYMBOL}. "
            "Exclude the tensor, so that it is stored as it is."
        )


def nearest_symbols(x: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    """The symbols nearest to weights in steps.

    Raises:
        UnsupportedModelError: a file has none for one of them.
    """
    check_reach(x)
    symbols: NDArray[np.int32] = np.rint(x).astype(np.int32)
    return symbols


def largest_step(rule: Uniform) -> int:
    """The largest step of the format beside the scales of a rule."""
    scales = (s for s in (rule.rows, rule.channels, rule.taps) if s is not None)
    return min(LARGEST_STEP, LARGEST_SUM - 16 * sum(int(np.abs(s.astype(np.int64)).max()) for s in scales))


def finest_step(values: NDArray[np.floating[Any]], finest: int = FINEST) -> int:
    """A step below which nothing is gained: `2^-finest` of the largest magnitude."""
    largest = float(np.abs(values).max(initial=0.0))
    return int(np.ceil(64 * np.log2(largest))) - 64 * finest if largest > 0 else -LARGEST_STEP


def _step_scales(importance: Floats, weight: Weight, water_level: float) -> AxisScales:
    """Logarithmic step scales of the axes whose part in the importance pays for its bits.

    With `I_ij = a_i b_j` the best step is proportional to `I_ij^-1/2`. Against one step for all this saves, at high
    rate, half the logarithm of the ratio of the arithmetic to the geometric mean of the factor, in bits per weight;
    where weights are below the water level in any case, nothing.
    """
    axes = weight.layout.axes
    scales: list[Scales | None] = [None, None, None]
    if importance.size <= 1:
        return None, None, None
    applied = [np.ones(length) for length in axes]
    for axis in range(3):
        if axes[axis] < 2:
            continue
        factor, powers = _axis_means(importance.reshape(axes), weight.matrix.reshape(axes), applied, axis)
        count = importance.size // axes[axis]
        live = powers > 0
        lowest = np.divide(water_level / BELOW_WATER, powers, out=np.full(axes[axis], 1e-300), where=live)
        logs = -2 * np.log2(np.maximum(np.maximum(factor, lowest), 1e-300))  # quarter octaves of the step
        middle = np.median(logs[live]) if live.any() else 0.0
        quantized = _rounded(np.where(live, logs - middle, 0.0), count)
        squares = np.exp2(quantized.astype(np.float64) / 2)
        same, scaled = factor.mean(), (factor * squares).mean() / squares
        ratios = np.maximum(powers * same / water_level, 1) / np.maximum(powers * scaled / water_level, 1)
        if quantized.any() and 0.5 * count * float(np.log2(ratios).sum()) > stored(quantized).bits:
            scales[axis] = quantized
            applied[axis] = squares
    return scales[0], scales[1], scales[2]


def _axis_means(
    importance: Floats, values: Floats, squares: list[NDArray[np.float64]], axis: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean importance and mean power in squared steps along one axis, [length of the axis] each.

    Args:
        importance: [out, channels, taps].
        values: of the same shape.
        squares: squared steps of rows, channels and taps.
        axis: 0, 1 or 2.
    """
    from waterfill.quantize import kernels

    sums = kernels.axis_powers(np.ascontiguousarray(importance), np.ascontiguousarray(values), *squares, axis)
    factor, power = sums * (values.shape[axis] / values.size)
    return factor, power


def _rounded(wanted: NDArray[np.float64], count: int) -> Scales:
    """Round offsets of the steps, in quarter octaves, to where their own bits and what the weights lose are the least.

    Steps that are off by d octaves, some too large and some too small, cost about `ln(2) d^2` bits a weight.

    Args:
        wanted: offsets [n].
        count: how many weights each of them is for.
    """
    offsets = np.rint(wanted).clip(-LARGEST_OFFSET, LARGEST_OFFSET).astype(np.int64)
    candidates = np.arange(-LARGEST_OFFSET, LARGEST_OFFSET + 1)
    losses = count * np.log(2) / 16 * np.square(wanted[:, None] - candidates)
    for _ in range(ROUNDINGS):
        bits = side.lengths()[max(stored(offsets).code, 0), np.abs(candidates)]
        offsets = candidates[(losses + bits).argmin(axis=1)]
    rounded: Scales = offsets.astype(np.int8)
    return rounded


def _round(
    x: Floats, relative: Floats, fit: spreads.Fit, layout: Layout, shrink: tuple[int, int, int], lmbda: float
) -> NDArray[np.int32]:
    """Rate-distortion optimised rounding under the tables of a fit; int32 in the shape of x."""
    from waterfill.quantize import kernels

    symbols = np.empty(x.shape, np.int32)
    if fit.shift:
        return np.rint(x).astype(np.int32)
    moved = np.array([0, *shrink], np.float32) / LEVEL_UNIT
    rows, channels, taps = fit.exponents(layout)
    kernels.round_to_cost(x, relative, rows, channels, taps, fit.lengths(), moved, lmbda, symbols)
    return symbols


def _centroids(x: Floats, relative: Floats, symbols: NDArray[np.int32]) -> tuple[int, int, int]:
    """Shifts of the levels 1, 2, >= 3 towards zero that minimise the weighted error, in 1/64 step."""
    from waterfill.quantize import kernels

    weights, shortfall = kernels.centroid_sums(x, relative, symbols)
    shifts = np.rint(LEVEL_UNIT * shortfall / np.maximum(weights, 1e-30)).clip(-32, 32).astype(int)
    return int(shifts[0]), int(shifts[1]), int(shifts[2])
