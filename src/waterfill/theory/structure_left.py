"""Test a fitted source: find dependence that is left between weights over their scales, a test for each kind.

Every test tells the bits a weight that a better source would save at least, on weights that nothing was fitted to or
less what chance gives. A source that fits has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waterfill.theory.checks import Array
from waterfill.theory.scaled_source import AXES

NOTED = 0.02
"""Bits a weight that are worth a note."""

STANDARD_ERRORS = 4.0
"""By how many a finding has to differ from chance."""

MOST_CELLS, VALUES_A_CELL = 64, 16
COUNTED = 1 << 14
"""Cells and values of a histogram, at most, and values in each cell on average, at least.

A hundredth of a bit is twenty standard errors of so many values.
"""

WIDEST = 256
"""Coordinates of an axis whose covariance is looked at."""

LOOKED_AT = 1 << 16
"""Weights that are tested, at most, and about."""

NEIGHBOURS = 8
"""Of a weight, along an axis, whose magnitudes tell its scale."""

SMALLEST = 1e-30
"""In the place of a variance of zero, so that it can be divided by; weights over their scales have about 1."""

LEAST_EIGENVALUE = 1e-6
"""Of a correlation matrix in single precision, below which there is only rounding."""

LEAST_VARIANCE = 1e-3
"""Of neighbours, of the mean: where all are zero, a weight beside them would cost any number of bits."""


@dataclass(frozen=True)
class Finding:
    """Structure that a source lacks.

    Attributes:
        what: it is.
        bits: a weight that knowing it would save, at least.
    """

    what: str
    bits: float

    def __str__(self) -> str:
        return f"{self.what} ({self.bits:.2g} bit)"


def findings(weights: Array, cumulative: Callable[[Array], Array] | None) -> list[Finding]:
    """All structure that is worth a note, most bits first.

    Args:
        weights: over their scales, [out, channels, taps].
        cumulative: probability below values, of the density of all that are not exactly zero; None for none.
    """
    weights = weights[: max(1, LOOKED_AT * len(weights) // max(1, weights.size))]
    found = [*_of_density(weights, cumulative), *_of_neighbours(weights), *_of_covariances(weights)]
    found += _of_scales(weights)
    return sorted((each for each in found if each.bits > NOTED), key=lambda each: -each.bits)


def excess_of_density(values: Array, cumulative: Callable[[Array], Array]) -> float:
    """Bits a value by which a density misses a histogram of equally likely cells, less what chance gives; 0 for chance.

    Args:
        values: [n].
        cumulative: probability below values.
    """
    values = values[:: -(-values.size // COUNTED)]
    cells = min(MOST_CELLS, values.size // VALUES_A_CELL)
    if cells < 2:
        return 0.0
    places = np.clip((cumulative(values) * cells).astype(np.int64), 0, cells - 1)
    shares = np.bincount(places, minlength=cells) / values.size
    there = shares > 0
    bits = float(shares[there] @ np.log2(shares[there] * cells))
    expected = (cells - 1) / (2 * math.log(2) * values.size)
    error = math.sqrt(2 * (cells - 1)) / (2 * math.log(2) * values.size)
    return bits - expected if bits - expected > STANDARD_ERRORS * error else 0.0


def excess_of_zeros(places: NDArray[np.bool_]) -> float:
    """Bits a weight that the shares of zeros in rows and in columns would save, less what chance gives; 0 for chance.

    Args:
        places: of the zeros, [out, in].
    """
    total = 0.0
    for axis in range(2):
        counts, length = places.sum(axis=1 - axis), places.shape[1 - axis]
        saved = _binary_entropy(places.mean()) - float(_binary_entropy(counts / length).mean())
        degrees = max(1, counts.size - 1)
        expected = degrees / (2 * math.log(2) * places.size)
        error = math.sqrt(2 * degrees) / (2 * math.log(2) * places.size)
        total += saved - expected if saved - expected > STANDARD_ERRORS * error else 0.0
    return total


def bits_of_correlations(covariance: Array, count: int) -> float:
    """Bits a coordinate that small correlations save, less what those of `count` vectors are by chance.

    `-1/2 log det (1 + E)` is a quarter of the squares of a small E without diagonal; more correlated coordinates have
    larger ones.

    Args:
        covariance: [length, length].
        count: of the vectors that it is the mean product of.
    """
    length = len(covariance)
    scales = np.sqrt(np.maximum(covariance.diagonal(), 1e-300))
    squares = float(np.square(covariance / scales / scales[:, None]).sum()) - length
    chance = length * (length - 1) / count
    return (squares - chance) / (4 * math.log(2) * length)


def _binary_entropy(share: NDArray[np.float64] | float) -> NDArray[np.float64]:
    p = np.clip(share, 1e-300, 1 - 1e-16)
    return np.asarray(-p * np.log2(p) - (1 - p) * np.log2(1 - p))


def _of_density(weights: Array, cumulative: Callable[[Array], Array] | None) -> Iterator[Finding]:
    if cumulative is not None:
        yield Finding("the density differs", excess_of_density(weights[weights != 0], cumulative))


def _of_neighbours(weights: Array) -> Iterator[Finding]:
    """Correlation of neighbours along each axis: an autoregression saves `-1/2 log2(1 - r^2)`."""
    power = float(np.square(weights).mean())
    for axis, name in enumerate(AXES):
        pairs = weights.size - weights.size // weights.shape[axis]
        if pairs and power:
            along = np.moveaxis(weights, axis, 0)
            correlation = float(np.vdot(along[1:], along[:-1])) / pairs / power
            if abs(correlation) * math.sqrt(pairs) > STANDARD_ERRORS:
                yield Finding(f"neighbours along {name}s correlate", -math.log2(max(1e-9, 1 - correlation**2)) / 2)


def _of_covariances(weights: Array) -> Iterator[Finding]:
    """A covariance along each axis that is fitted to half of the rest, on the other half."""
    for axis, name in enumerate(AXES):
        length = weights.shape[axis]
        vectors = np.moveaxis(weights, axis, -1).reshape(-1, length)[:, :WIDEST]
        if length > 1 and len(vectors) >= 4 and _may_correlate(vectors):
            halves = vectors[::2], vectors[1::2]
            saved, error = _held_out(*halves)
            if saved > STANDARD_ERRORS * error:
                yield Finding(f"{name}s correlate", saved)


def _may_correlate(vectors: Array) -> bool:
    """Whether the products of coordinates of vectors [n, length] are larger than chance makes them."""
    return bits_of_correlations(vectors.T @ vectors / len(vectors), len(vectors)) > NOTED / 2


def _held_out(fitted: Array, tested: Array) -> tuple[float, float]:
    """Bits a weight that a shrunk covariance saves on other vectors [n, length], and their standard error."""
    variances = np.maximum(np.square(fitted).mean(0), SMALLEST)
    fitted, tested = fitted / np.sqrt(variances), tested / np.sqrt(variances)
    length = fitted.shape[1]
    share = length / (length + len(fitted))
    covariance = (1 - share) * (fitted.T @ fitted) / len(fitted)
    covariance[np.diag_indices(length)] += share
    values, vectors = np.linalg.eigh(covariance.astype(np.float32))
    values = np.maximum(values.astype(np.float64), LEAST_EIGENVALUE)
    squares = np.square(tested @ vectors)
    each = (np.square(tested).sum(1) - (squares / values).sum(1) - np.log(values).sum()) / (2 * math.log(2) * length)
    return float(each.mean()), float(each.std()) / math.sqrt(len(each))


def _of_scales(weights: Array) -> Iterator[Finding]:
    """Scales that go on from neighbour to neighbour: a variance of those around, less what independence gives."""
    squares = np.square(weights)
    mean = float(squares.mean())
    for axis, name in enumerate(AXES):
        if weights.shape[axis] > 2 * NEIGHBOURS:
            own, around = _with_neighbours(np.moveaxis(squares, axis, -1))
            local = _shrunk(around, mean)
            each = (own / mean - own / local - np.log(local / mean)) / (2 * math.log(2))
            saved = float(each.mean())
            if saved > STANDARD_ERRORS * float(each.std()) / math.sqrt(each.size):
                yield Finding(f"scales change along {name}s", saved)


def _with_neighbours(along: Array) -> tuple[Array, Array]:
    """Squares along the last axis that have all neighbours, and the means of these, themselves left out."""
    half = NEIGHBOURS // 2
    own, sums = along[..., half:-half], np.cumsum(along, axis=-1)
    around = sums[..., 2 * half :] - own
    around[..., 1:] -= sums[..., : -2 * half - 1]
    return own, around / NEIGHBOURS


def _shrunk(local: Array, mean: float) -> Array:
    """Local variances as far from their mean as their spread is more than that of `NEIGHBOURS` squares."""
    spread = float(np.var(local))
    share = max(0.0, 1 - 2 * mean**2 / NEIGHBOURS / spread) if spread else 1.0
    return np.asarray(np.maximum(mean + share * (local - mean), LEAST_VARIANCE * mean))
