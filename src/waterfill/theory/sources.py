"""Source models: what the weights of a tensor are taken to be drawn from, as entropies and variances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, finite, not_negative, number

SHAPES = (0.15, 40.0)
"""Range of the shapes that are fitted."""

_USUAL_EXPONENTS = 20
_LARGEST_EXPONENT = 1023.0

FITTED_VALUES = 1 << 17
"""A shape is fitted to at most so many values, evenly spaced ones of a larger tensor."""

COUNTED_FROM = 1 << 12
"""Logarithms of more magnitudes than these are counted by cells."""

CELL = 1 / 64
LEAST_LOG = -64.0
"""Width of a cell, and the lowest logarithm that is told apart, in nats."""

NEWTON_STEPS = 60
SHAPE_STEP = 1e-6
MOST_STEP = math.log(2)
"""Most steps to the likeliest shape, the step of its logarithm below which it is found, and the largest step."""


@dataclass(frozen=True, eq=False)
class Source:
    """Independent random weights.

    Attributes:
        name: of the model, for tables.
        entropy: differential entropy `h(W_i)` in bits, in the shape of the weights; minus infinity for a weight that
            is known.
        variance: `E (W_i - E W_i)^2`, in the same shape.
        standard_error: of the mean entropy, in bits, when it was fitted to or estimated from weights; else 0.
    """

    name: str
    entropy: Array
    variance: Array
    standard_error: float = 0.0

    @property
    def entropy_power(self) -> Array:
        """`N_i`, at most `variance`."""
        return entropy_power(self.entropy)


def entropy_power(entropy: Array) -> Array:
    """`N = 2^(2 h) / (2 pi e)`: the variance of a Gaussian of the same entropy h in bits."""
    return np.asarray(power_of_two(2 * entropy) / (2 * math.pi * math.e))


def power_of_two(exponent: Array) -> Array:
    """`2^exponent`, at most the largest power of two that a float64 has."""
    return np.asarray(np.exp2(np.minimum(exponent, _LARGEST_EXPONENT)))


def equal(name: str, entropy: float, variance: float, shape: tuple[int, ...], standard_error: float) -> Source:
    """Weights of one entropy and one variance, in a shape."""
    broad = np.broadcast_to(np.float64(entropy), shape), np.broadcast_to(np.float64(variance), shape)
    return Source(name, *broad, standard_error)


def gaussian(variance: ArrayLike) -> Source:
    """Gaussian weights: `h = 1/2 log2(2 pi e variance)`.

    Args:
        variance: of every weight, any shape.
    """
    power = not_negative("variance", variance)
    return Source("Gaussian", _log2(2 * math.pi * math.e * power) / 2, power)


def laplace(variance: ArrayLike) -> Source:
    """Laplacian weights: `h = 1/2 log2(2 e^2 variance)`.

    Args:
        variance: of every weight, any shape.
    """
    power = not_negative("variance", variance)
    return Source("Laplace", _log2(2 * math.e**2 * power) / 2, power)


def generalized_gaussian(variance: ArrayLike, shape: float) -> Source:
    """Weights of density proportional to `exp(-|w / scale|^shape)`: shape 2 is Gaussian, 1 is Laplacian.

    Args:
        variance: of every weight, any shape.
        shape: above zero.

    Example:
        >>> source = generalized_gaussian([1.0], 2.0)
        >>> bool(abs(source.entropy - gaussian([1.0]).entropy).max() < 1e-12)
        True
    """
    power, beta = not_negative("variance", variance), number("shape", shape, above=0.0)
    return Source(f"generalized Gaussian {beta:.2f}", unit_entropy(beta) + _log2(power) / 2, power)


def unit_entropy(shape: float) -> float:
    """Entropy in bits of a generalized Gaussian of variance 1."""
    return scale_entropy(shape) - log2_deviation(shape)


def scale_entropy(shape: float) -> float:
    """Entropy in bits of a generalized Gaussian of scale 1: `log2(2 Gamma(1 + 1 / shape)) + 1 / (shape ln 2)`."""
    return 1 + (math.lgamma(1 + 1 / shape) + 1 / shape) / math.log(2)


def log2_deviation(shape: float) -> float:
    """Base-2 logarithm of the standard deviation of a generalized Gaussian of scale 1."""
    return (math.lgamma(3 / shape) - math.lgamma(1 / shape)) / math.log(4)


def _log2(values: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log2(values))


# Fits, by maximum likelihood


def fit_gaussian(weights: ArrayLike) -> Source:
    """The Gaussian source of the weights' mean and variance.

    Args:
        weights: at least two, any shape, not all equal.
    """
    return _fit(weights, 2.0, "Gaussian")


def fit_laplace(weights: ArrayLike) -> Source:
    """The Laplacian source of the weights' mean and mean absolute deviation.

    Args:
        weights: at least two, any shape, not all equal.
    """
    return _fit(weights, 1.0, "Laplace")


def fit_generalized_gaussian(weights: ArrayLike) -> Source:
    """The generalized Gaussian source of largest likelihood around the weights' mean.

    Args:
        weights: at least two, any shape, not all equal.

    Returns:
        The same entropy and variance for every weight, and the standard error of the mean of `-log2 p(w)`.

    Raises:
        UsageError: there are fewer than two different weights.

    Example:
        >>> weights = np.random.default_rng(0).laplace(size=100_000)
        >>> fit_generalized_gaussian(weights).name
        'generalized Gaussian 1.00'
    """
    return _fit(weights, None, "")


def _fit(weights: ArrayLike, shape: float | None, name: str) -> Source:
    values = finite("weights", weights)
    if not values.size or np.ptp(values) == 0:
        raise UsageError(f"{values.size} weights without spread have no density; expected two different ones or more.")
    magnitudes = np.abs(values - values.mean())
    exponent = _exponent(float(magnitudes.max()))
    magnitudes = np.ldexp(magnitudes, -exponent)
    beta = fit_shape(magnitudes.reshape(-1)) if shape is None else shape
    powers = magnitudes**beta
    scale = (beta * powers.mean()) ** (1 / beta)
    log2_scale = math.log2(scale) + exponent
    variance = (scale * 2.0 ** log2_deviation(beta)) ** 2
    if exponent:
        variance = float(power_of_two(np.asarray(2 * (log2_scale + log2_deviation(beta)))))
    entropy = scale_entropy(beta) + log2_scale
    error = float(powers.std() / scale**beta / math.log(2) / math.sqrt(values.size))
    return equal(name or f"generalized Gaussian {beta:.2f}", entropy, variance, values.shape, error)


def _exponent(largest: float) -> int:
    """By which power of two values are made smaller or larger, so that their powers stay in range; 0 if they do."""
    found = math.frexp(largest)[1]
    return found if abs(found) > _USUAL_EXPONENTS else 0


def fit_shape(magnitudes: Array) -> float:
    """The shape of a generalized Gaussian of largest likelihood, its scale chosen along with it.

    Args:
        magnitudes: absolute values [n], not all zero; scale plays no role.
    """
    some = magnitudes[:: -(-magnitudes.size // FITTED_VALUES)]
    some = some[some > 0]
    if not some.size:
        return 2.0
    return LogMagnitudes.of(_log_ratios(some, float(some.max()))).best_shape()


def fitted_entropy(magnitudes: Array, shape: float) -> float:
    """Entropy in bits of a generalized Gaussian of a shape with the scale of largest likelihood.

    Args:
        magnitudes: absolute values [n], not all zero.
        shape: above zero.
    """
    largest = float(magnitudes.max())
    logs = _log_ratios(magnitudes[magnitudes > 0], largest)
    return LogMagnitudes(logs, np.full(logs.size, 1 / logs.size)).entropy(shape) + math.log2(largest)


def _log_ratios(magnitudes: Array, largest: float) -> Array:
    """Logarithms of magnitudes above zero over the largest one, where the quotient would underflow, too."""
    return np.asarray(np.log(np.maximum(magnitudes / largest, np.finfo(np.float64).tiny)))


@dataclass(frozen=True, eq=False)
class LogMagnitudes:
    """Logarithms of magnitudes and how often each comes: enough for the likelihood of every shape.

    Attributes:
        logs: natural logarithms over the largest one, at most 0, [kinds].
        shares: of all magnitudes, [kinds]; their sum is 1.
    """

    logs: Array
    shares: Array

    @classmethod
    def of(cls, logs: Array) -> LogMagnitudes:
        """Few as they are, many by cells of `CELL`, each at the mean of what is in it.

        The mean of `exp(b log)` over a cell is off by `(b CELL)^2 / 24` at most, by which a shape near 2 is off by
        less than .0002, and one near 4 by less than .001.

        Args:
            logs: of magnitudes above zero, over the largest one, [n].
        """
        if logs.size <= COUNTED_FROM:
            return cls(logs, np.full(logs.size, 1 / logs.size))
        inside = np.maximum(logs, LEAST_LOG)
        cells = (inside * (-1 / CELL)).astype(np.int64)
        counts = np.bincount(cells)
        met = np.flatnonzero(counts)
        return cls(np.bincount(cells, inside)[met] / counts[met], counts[met] / logs.size)

    @classmethod
    def over_scales(cls, logs: Array, places: Sequence[NDArray[np.intp]], log_scales: Sequence[Array]) -> LogMagnitudes:
        """Magnitudes over their scales, by cells; those that are zero are left out.

        Args:
            logs: of magnitudes, minus infinity for zeros, [n].
            places: along each of three axes, [n] each.
            log_scales: natural logarithms of the scales along each axis.
        """
        from waterfill.theory.magnitude_kernels import counted_ratios

        return cls(*counted_ratios(logs, tuple(places), tuple(log_scales), 1 / CELL, LEAST_LOG))

    def entropy(self, shape: float) -> float:
        """Entropy in bits with the likeliest scale, of the largest magnitude 1: `scale_entropy(b) + log2(b m) / b`."""
        return scale_entropy(shape) + math.log2(shape * float(self.shares @ np.exp(shape * self.logs))) / shape

    def best_shape(self) -> float:
        """The shape b of least entropy, by Newton's method over its logarithm between bounds that close in on it.

        It starts from a Gaussian and goes an octave at most: of few magnitudes there may be two, and the nearer one is
        the less extreme.

        With `m = mean |x|^b` and the mean and variance of `log |x|`, each weighted by `|x|^b`, the derivative of the
        entropy in nats by b is `g / b^2`,

            g = b mean - log(b m) - digamma(1 + 1 / b),    b dg/db = b^2 variance - 1 + trigamma(1 + 1 / b) / b.

        Source: Varanasi and Aazhang 1989, "Parametric generalized Gaussian density estimation", section III.
        """
        low, high = (math.log(bound) for bound in SHAPES)
        place = math.log(2)
        for _ in range(NEWTON_STEPS):
            slope, curvature = self._slope(math.exp(place))
            low, high = (place, high) if slope < 0 else (low, place)
            step = max(
                -MOST_STEP, min(MOST_STEP, -slope / curvature if curvature > 0 else -math.copysign(math.inf, slope))
            )
            step = step if low < place + step < high else (low + high) / 2 - place
            place += step
            if abs(step) < SHAPE_STEP:
                break
        return math.exp(place)

    def _slope(self, shape: float) -> tuple[float, float]:
        """The g of `best_shape`, and its derivative by the logarithm of the shape."""
        weights = self.shares * np.exp(shape * self.logs)
        total = float(weights.sum())
        mean = float(weights @ self.logs) / total
        variance = float(weights @ np.square(self.logs - mean)) / total
        digamma, trigamma = _digammas(1 + 1 / shape)
        slope = shape * mean - math.log(shape * total) - digamma
        return slope, shape**2 * variance - 1 + trigamma / shape


def _digammas(x: float) -> tuple[float, float]:
    """The first two derivatives of `log Gamma` at an x above 0: shifted to above 8, where few terms of a series do.

    Source: Abramowitz and Stegun 1964, 6.3.18 and 6.4.12.
    """
    first = second = 0.0
    while x < 8:
        first -= 1 / x
        second += 1 / x**2
        x += 1
    y = 1 / x**2
    first += math.log(x) - 1 / (2 * x) - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y / 240)))
    second += 1 / x + y / 2 + y / x * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y / 30)))
    return first, second
