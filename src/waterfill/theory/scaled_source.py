"""A source whose scale changes along the axes of a tensor: rows, input channels, taps of a kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, finite
from waterfill.theory.sources import (
    LogMagnitudes,
    Source,
    entropy_power,
    log2_deviation,
    power_of_two,
    scale_entropy,
)

AXES = ("row", "channel", "tap")
ROUNDS = 3
"""How often scales and shape are fitted to each other."""

SHAPES_AN_OCTAVE = 256
"""Shapes are told apart by this part of an octave: one that is off by half of it costs 3e-7 bit."""

SHAPED_VALUES = 1 << 16
"""A shape is fitted to about so many values at most: that of n values is off by what takes `1 / (2 n)` nats each."""

KEPT_SHAPES = 4
"""To how many shapes the magnitudes are kept raised."""

FEWEST_SHAPED = 256
SHAPED_FROM = 32
"""Fewest values that have a shape of their own, and fewest for every scale: 16 values over a scale of their own were
taken for another shape than theirs in 18 of 100 draws from Gaussians."""

LEAST_SCALE = 1e-12
"""Of the largest scale along an axis."""

LEAST_MOVE = 1e-2
"""Of the mean, of the smallest scale, for another round: what a hundredth costs is no thousandth of a bit."""

LEAST_POWER = 1e-300
"""Of a scale to the power of a shape, so that it can be divided by."""

LARGEST_EXPONENT = 900.0
"""Of a scale to the power of a shape, base 2: larger ones belong to a shape that does not fit, and lose."""

SWEEPS = 2
"""How often the scales of several axes are fitted to each other, each time."""


@dataclass(frozen=True, eq=False)
class ScaledSource:
    """Independent generalized Gaussian weights with scales `s_o s_c s_t`; weights that are exactly zero are known.

    Attributes:
        shape: 2 is Gaussian, 1 is Laplacian.
        mean: around which the weights lie; 0 when some are exactly zero.
        log2_scales: base-2 logarithms of the scales along each axis, [out], [channels], [taps]; constant along the axes
            where the scale does not change enough to pay for itself.
        axes: names of the axes along which it changes.
        zeros: fraction of the weights that are exactly zero.
        standard_error: of the mean entropy of all weights, bits; those that are exactly zero have no error.
        count: how many weights are not known.
        parameters: how many numbers were fitted to them.
    """

    shape: float
    mean: float
    log2_scales: tuple[Array, Array, Array]
    axes: tuple[str, ...]
    zeros: float
    standard_error: float
    count: int = 1
    parameters: int = 0

    @property
    def name(self) -> str:
        """Short name for tables."""
        zeros = f", {100 * self.zeros:.3g} % zeros known" if self.zeros else ""
        return f"{self.density}{self.name_of_scales}{zeros}"

    @property
    def density(self) -> str:
        """Name of the density."""
        return "Gaussian" if self.shape == 2 else f"generalized Gaussian {self.shape:.2f}"

    @property
    def name_of_scales(self) -> str:
        """Axes with scales, to follow the name of the density; empty for none."""
        return f", {' x '.join(self.axes)} scales" if self.axes else ""

    def source(self, weights: ArrayLike) -> Source:
        """Entropies and variances of the weights that it was fitted to, [out, channels, taps]."""
        rows, channels, taps = self.log2_scales
        log2_scale = rows[:, None, None] + channels[:, None] + taps
        known = ~self.live(weights)
        entropy = np.where(known, -np.inf, log2_scale + scale_entropy(self.shape))
        variance = np.where(known, 0.0, power_of_two(2 * (log2_scale + log2_deviation(self.shape))))
        return Source(self.name, entropy, variance, self.standard_error)

    def entropy_powers(self, weights: ArrayLike) -> Array:
        """Entropy powers of the weights that it was fitted to, in their shape; 0 of those that are known.

        Args:
            weights: [out, channels, taps], or in normal form [out, in].
        """
        values = np.asarray(weights)
        rows, columns = self.power_factors()
        powers = rows[:, None] * columns
        return (
            np.where(self.live(values), powers.reshape(values.shape), 0.0)
            if self.zeros > 0
            else powers.reshape(values.shape)
        )

    def live(self, weights: ArrayLike) -> NDArray[np.bool_]:
        """Which of the weights that it was fitted to are not known, in their shape."""
        return np.asarray((np.asarray(weights) != 0) | (self.zeros <= 0))

    @property
    def has_shape_of_few(self) -> bool:
        """Whether it has a shape that a strict fit would not have."""
        return self.shape != 2 and self.count < max(FEWEST_SHAPED, SHAPED_FROM * self.parameters)

    @property
    def mean_entropy(self) -> float:
        """Mean entropy of the weights, bits, where none of them is known."""
        return scale_entropy(self.shape) + sum(float(scales.mean()) for scales in self.log2_scales)

    def unbiased(self, others: int = 0) -> ScaledSource:
        """The source with entropies that are right on average over what weights it may be fitted to.

        A fit of k parameters makes the weights `k / 2` nats more likely, in all, than what they are drawn from does:
        half of what the likelihood ratio of Wilks 1938 is on average.

        Args:
            others: how many more numbers were fitted to the same weights, such as angles of a basis.
        """
        bias = (self.parameters + others) / (2 * math.log(2) * self.count)
        rows, channels, taps = self.log2_scales
        return replace(self, log2_scales=(rows + bias, channels, taps), parameters=0)

    def standardized(self, weights: Array) -> Array:
        """The weights over their scales, around the mean, [out, channels, taps]."""
        rows, channels, taps = (np.exp2(-each) for each in self.log2_scales)
        return np.asarray((weights - self.mean) * rows[:, None, None] * (channels[:, None] * taps))

    def power_factors(self) -> tuple[Array, Array]:
        """Entropy powers of what is not known, as a product of rows [out] and columns [channels * taps]."""
        rows, channels, taps = self.log2_scales
        columns = entropy_power(channels[:, None] + taps + scale_entropy(self.shape)).reshape(-1)
        return power_of_two(2 * rows), columns


def fit_scaled_source(weights: ArrayLike, *, strict: bool = False, zeros_known: bool = True) -> ScaledSource:
    """Fit shape and scales by maximum likelihood; an axis has scales where they pay for their description.

    The shape is 2 unless another one lowers the total entropy by more than `1/2 log2 n` bits; an axis of length L gets
    its scales when they lower it by more than `(L - 1) / 2 log2 n` bits (the Bayesian information criterion), the axis
    that gains most first. Given the shape b, the scales along an axis are `s^b = b mean |x / other scales|^b`; scales
    and shape are fitted to each other a few times, and so is the mean, `sum x / s^2` over `sum 1 / s^2`: a plain mean
    is as uncertain as the widest rows, and would hide the narrow ones.

    Args:
        weights: [out, channels, taps], at least two that differ.
        strict: leave fewer than `FEWEST_SHAPED` weights, and fewer than `SHAPED_FROM` for every scale, without a shape
            of their own. Entropies of small tensors are then right on average; forecasts of bits do better without.
        zeros_known: take weights that are exactly zero to be known; else they are small weights like others.

    Raises:
        UsageError: there are fewer than two different weights besides zeros, or one is not finite.

    Source:
        Generalized Gaussian sources: Gao et al. leave the density of the weights open (section 4); selection: Schwarz
        1978.
    """
    values = finite("weights", weights)
    if values.ndim != 3:
        raise UsageError(f"weights have the shape {list(values.shape)}; expected [out, channels, taps].")
    live = values != 0 if zeros_known else np.ones(values.shape, np.bool_)
    if not live.any() or np.ptp(values[live]) == 0:
        raise UsageError("The weights have no spread, so they have no density; expected two different ones or more.")
    exponent = math.frexp(float(np.abs(values).max()))[1]
    values = np.ldexp(values, -exponent)  # powers of the magnitudes stay in range
    fit, best = _fitted(values, live, strict=strict)
    rows, channels, taps = (np.log2(power) / best.shape for power in best.powers)
    return ScaledSource(
        shape=best.shape,
        mean=math.ldexp(fit.mean, exponent),
        log2_scales=(rows + exponent, channels, taps),
        axes=tuple(AXES[axis] for axis in sorted(best.axes)),
        zeros=1 - fit.count / values.size,
        standard_error=fit.standard_error(best) * fit.count / values.size,
        count=fit.count,
        parameters=fit.all_parameters(best),
    )


def _fitted(values: Array, live: NDArray[np.bool_], *, strict: bool) -> tuple[_Fit, _Found]:
    """The fit around the mean that goes with it, with the axes that pay for themselves."""
    plain = _Fit(values, live, float(values.mean()) if live.all() else 0.0, strict=strict)
    best = _with_paying_axes(plain, plain.refined(plain.start()))
    if not live.all():
        return plain, plain.settled(best)
    fit, best = _around_likely_mean(plain, best)
    return fit, fit.settled(best if fit is plain else _with_paying_axes(fit, best))


def _around_likely_mean(fit: _Fit, best: _Found) -> tuple[_Fit, _Found]:
    """Fit mean and scales to each other, as long as that shortens the description of the weights."""
    for _ in range(ROUNDS):
        mean = fit.likely_mean(best)
        if abs(mean - fit.mean) <= LEAST_MOVE * fit.least_scale(best):
            break
        other = fit.around(mean)
        found = other.refined(other.rescaled(other.raised_as(best), best.axes))
        if not other.price(found) < fit.price(best):
            break
        fit, best = other, found
    return fit, best


def _with_paying_axes(fit: _Fit, best: _Found) -> _Found:
    """Give more axes scales, the axis that gains most first, as long as they pay for themselves."""
    plain = fit.start()
    sizes = fit.sizes
    while True:
        options = [axis for axis in range(3) if axis not in best.axes and 1 < sizes[axis] < math.prod(sizes)]
        starts = (plain,) if best.shape == plain.shape else (best, plain)
        tried = (fit.refined(fit.rescaled(start, (*best.axes, axis))) for start in starts for axis in options)
        found = min(tried, key=fit.price, default=best)
        if not fit.price(found) < fit.price(best):
            return best
        best = found


@dataclass(frozen=True, eq=False)
class _Found:
    """A fit on the way: shape b, the magnitudes to the power b, and the scales to the power b along each axis."""

    shape: float
    raised: Array
    powers: tuple[Array, ...]
    axes: tuple[int, ...]


def _floored(powers: Array, shape: float) -> Array:
    """Scales to the power of a shape, none of them zero: a row of equal weights has no scale of its own."""
    return np.maximum(powers, max(LEAST_SCALE**shape * float(powers.max()), LEAST_POWER))


def _to(powers: Array, exponent: float) -> Array:
    """Scales to another power, none beyond what can be divided by."""
    return np.asarray(np.exp2(np.minimum(exponent * np.log2(powers), LARGEST_EXPONENT)))


def _sums(raised: Array, powers: Sequence[Array], axis: int) -> Array:
    """Sums along one axis of `raised` [out, channels, taps] over the scales of the others."""
    out, channels, taps = raised.shape
    rows, columns, inner = (1 / power for power in powers)
    if axis == 0:
        return np.asarray(np.einsum("oi,i->o", raised.reshape(out, -1), (columns[:, None] * inner).reshape(-1)))
    of_columns = np.einsum("oi,o->i", raised.reshape(out, -1), rows).reshape(channels, taps)
    return np.asarray((of_columns * inner).sum(1) if axis == 1 else (of_columns * columns[:, None]).sum(0))


class _Fit:
    """Alternating maximum likelihood over the weights that are not exactly zero, around a mean.

    Shapes are whole parts of an octave, of which a fit meets few, so that the magnitudes are raised to each but once.
    """

    def __init__(self, values: Array, live: NDArray[np.bool_], mean: float, *, strict: bool) -> None:
        self.mean = mean
        self._strict = strict
        self.sizes = values.shape
        self._values = values
        self._live = live
        self._magnitudes = np.abs(values - mean)
        self.count = int(np.count_nonzero(live))
        self._counts = [live.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
        step = -(-self.count // SHAPED_VALUES)
        whole = self.count == live.size
        self._some = slice(None, None, step) if whole else np.flatnonzero(live)[::step]
        self._raised: dict[float, Array] = {}

    @cached_property
    def _logs(self) -> Array:
        """Logarithms of the magnitudes; minus infinity for those that are zero."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self._magnitudes))

    def around(self, mean: float) -> _Fit:
        """A fit of the same weights around another mean."""
        return _Fit(self._values, self._live, mean, strict=self._strict)

    def start(self) -> _Found:
        """A Gaussian of one scale."""
        ones = tuple(np.ones(size) for size in self.sizes)
        return self.rescaled(_Found(2.0, self._to_power(2.0), ones, ()), ())

    def raised_as(self, found: _Found) -> _Found:
        """A fit around another mean, with the magnitudes of this one."""
        return replace(found, raised=self._to_power(found.shape))

    def rescaled(self, found: _Found, axes: tuple[int, ...]) -> _Found:
        """The scales along some axes (one for all when there are none), with the shape as it is."""
        powers = list(found.powers)
        for axis in SWEEPS * axes if len(axes) > 1 else axes or (0,):
            others = [np.ones(size) if other == axis else powers[other] for other, size in enumerate(self.sizes)]
            sums = _sums(found.raised, others, axis)
            means = (
                found.shape * sums / np.maximum(self._counts[axis], 1)
                if axes
                else found.shape * sums.sum() / self.count
            )
            whole = np.broadcast_to(means, powers[axis].shape)
            powers[axis] = _floored(whole, found.shape)
        return _Found(found.shape, found.raised, tuple(powers), axes)

    def settled(self, found: _Found) -> _Found:
        """A fit whose scales are fitted to each other once more, where there are several axes."""
        for _ in range(ROUNDS if len(found.axes) > 1 else 0):
            found = self.rescaled(found, found.axes)
        return found

    def refined(self, found: _Found) -> _Found:
        """Shape and scales, fitted to each other; the best of some rounds."""
        return min(self._rounds(found), key=self.bits)

    def _rounds(self, found: _Found) -> Iterator[_Found]:
        """A fit, and what follows from it round by round, until the shape stays."""
        yield found
        for _ in range(ROUNDS):
            shape = self._shape(found)
            if shape == found.shape:
                return
            powers = tuple(_floored(_to(power, shape / found.shape), shape) for power in found.powers)
            found = self.rescaled(_Found(shape, self._to_power(shape), powers, found.axes), found.axes)
            yield found

    def _shape(self, found: _Found) -> float:
        """The shape of largest likelihood if it pays for itself, else that of a Gaussian.

        Values over scales that few of them were fitted to have thin tails, whatever their own density is.
        """
        if self._strict and self.count < max(FEWEST_SHAPED, SHAPED_FROM * self.parameters(found)):
            return 2.0
        scales = [np.log(power) / found.shape for power in found.powers]
        magnitudes = LogMagnitudes.over_scales(self._some_logs, self._places, scales)
        if not magnitudes.logs.size:  # all that are looked at are equal to the mean
            return 2.0
        shape = 2.0 ** (round(SHAPES_AN_OCTAVE * math.log2(magnitudes.best_shape())) / SHAPES_AN_OCTAVE)
        gain = self.count * (magnitudes.entropy(2.0) - magnitudes.entropy(shape))
        return shape if gain > math.log2(self.count) / 2 else 2.0

    def _to_power(self, shape: float) -> Array:
        """The magnitudes to the power of a shape."""
        if shape not in self._raised:
            if len(self._raised) == KEPT_SHAPES:
                self._raised.pop(next(iter(self._raised)))
            self._raised[shape] = self._magnitudes**2 if shape == 2 else np.exp(shape * self._logs)
        return self._raised[shape]

    @cached_property
    def _some_logs(self) -> Array:
        """Logarithms of some magnitudes, [n]."""
        return np.asarray(self._logs.reshape(-1)[self._some])

    @cached_property
    def _places(self) -> tuple[NDArray[np.intp], ...]:
        """Their rows, channels and taps."""
        size = math.prod(self.sizes)
        some = np.arange(size)[self._some]
        return np.unravel_index(some, self.sizes)

    def _some_log_powers(self, found: _Found) -> Array:
        """Logarithms of their scales to the power b."""
        logs = (np.log(power)[each] for power, each in zip(found.powers, self._places, strict=True))
        return np.asarray(sum(logs))

    def likely_mean(self, found: _Found) -> float:
        """The mean of the weights, each by its precision: wide rows say little about it."""
        rows, channels, taps = (power ** (-2 / found.shape) for power in found.powers)
        of_rows = _sums(self._values, [np.ones(self.sizes[0]), 1 / channels, 1 / taps], 0)
        return float((of_rows * rows).sum() / (rows.sum() * channels.sum() * taps.sum()))

    def least_scale(self, found: _Found) -> float:
        """The smallest of all scales."""
        return float(math.prod(power.min() for power in found.powers) ** (1 / found.shape))

    def parameters(self, found: _Found) -> int:
        """How many scales are fitted."""
        return 1 + sum(int(self.sizes[axis]) - 1 for axis in found.axes)

    def price(self, found: _Found) -> float:
        """Total entropy, and what the scales of the axes cost."""
        return float(self.bits(found) + (self.parameters(found) - 1) * math.log2(self.count) / 2)

    def bits(self, found: _Found) -> float:
        """Total entropy of the weights under their own fit."""
        logs = sum(float(count @ np.log(power)) for count, power in zip(self._counts, found.powers, strict=True))
        return self.count * scale_entropy(found.shape) + logs / math.log(2) / found.shape

    def all_parameters(self, found: _Found) -> int:
        """How many scales are fitted, and the mean and the shape where they are."""
        return self.parameters(found) + int(self.mean != 0) + int(found.shape != 2)

    def standard_error(self, found: _Found) -> float:
        """Standard error of the mean of `-log2 p(w)`: the spread of `|w / scale|^b / ln 2`.

        Scales that were fitted to few values make it look small: it is at least that of the density, `b^(-1/2)`, and
        of as many values as are left when every parameter has used up one.
        """
        scales = np.maximum(np.exp(self._some_log_powers(found)), LEAST_POWER)
        some = found.raised.reshape(-1)[self._some] / scales
        spread = max(float(some.std()), 1 / math.sqrt(found.shape))
        return spread / math.log(2) / math.sqrt(max(1, self.count - self.all_parameters(found)))
