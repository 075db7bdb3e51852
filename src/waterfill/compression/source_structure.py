"""Find coordinates in which the weights of a tensor depend on each other least, for its limit, whatever a code uses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from waterfill.bases.rotations import LONGEST_BLOCK, MOST_TAPS
from waterfill.bases.turning import coefficients
from waterfill.records import CHANNELS, OUT, TAPS, Cosines, Directions, Layout, Turn, Weight
from waterfill.theory.checks import Array
from waterfill.theory.scaled_source import ScaledSource, fit_scaled_source
from waterfill.theory.structure_left import bits_of_correlations

WIDEST = 512
"""Coordinates of an axis whose covariance is looked at: eigenvectors of so many take a tenth of a second."""

VECTORS_A_DIRECTION = 4
"""Vectors along an axis for every eigenvector of their covariance that is taken to be known."""

LEAST_VARIANCE = 1e-9
"""Along an eigenvector, of the largest variance of a coordinate: single precision shows no smaller one."""

SMALLEST = 1e-30
"""In the place of a variance of zero, for its logarithm; the largest weight is 1."""

CHANCE = 16.0
"""Bits that some turn or other saves by chance, besides three for the square root of the coordinates."""

WORTH = 0.005
"""Bits a weight that a turn has to save; description length alone would take it for less."""


@dataclass(frozen=True, eq=False)
class StructuredSource:
    """A tensor in coordinates of its own, and the source that is fitted to it there.

    Attributes:
        weight: the tensor in these coordinates.
        scaled: fitted to it.
        turns: from the weights to these coordinates, in order.
        angles: how many numbers say which turns they are.
    """

    weight: Weight
    scaled: ScaledSource
    turns: tuple[Turn, ...] = ()
    angles: int = 0

    @cached_property
    def values(self) -> Array:
        """The weights over their scales, [out, channels, taps]; several tests look at them."""
        return self.scaled.standardized(_axes_of(self.weight))

    @property
    def description(self) -> float:
        """Bits of all weights under the source, and of what was fitted to them, up to a constant."""
        count = self.scaled.count
        return count * self.scaled.mean_entropy + (self.scaled.parameters + self.angles) * math.log2(count) / 2


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A turn, the bits that it seems to save, and how many numbers it takes."""

    turn: Turn
    saved: float
    angles: int = 0


def structured(weight: Weight, scaled: ScaledSource, *, rows: bool) -> StructuredSource:
    """Turn a tensor along its taps, channels and rows where that shortens the description of all its weights.

    Along an axis of length L the turns are cosines, which take no numbers, and the leading r eigenvectors of the
    covariance, which take `r L - r (r + 1) / 2` of `1/2 log2 n` bits each: with scales along the axes that is a
    Gaussian of a Kronecker covariance, with few directions one of low rank and noise.

    Args:
        weight: the tensor, no weight of which is known.
        scaled: the source that is fitted to it.
        rows: whether it has all of its rows, so that they can be turned, too.

    Source: section 5.1 of PAPER.md; selection: Schwarz 1978.
    """
    best = StructuredSource(weight, scaled)
    for axis in (TAPS, CHANNELS, OUT) if rows else (TAPS, CHANNELS):
        candidate = max(_candidates(best, axis), key=lambda each: each.saved, default=None)
        chance = CHANCE + 3 * math.sqrt(weight.layout.axes[axis])
        if candidate is not None and candidate.saved > chance + WORTH * weight.matrix.size:
            best = min(best, _turned(best, candidate), key=lambda each: each.description)
    return best


def _turned(source: StructuredSource, candidate: _Candidate) -> StructuredSource:
    """The tensor turned once more, and the source that is fitted to it there."""
    weight = source.weight
    matrix = coefficients(weight.matrix, candidate.turn, weight.layout)
    turned = replace(weight, matrix=matrix)
    return StructuredSource(
        turned,
        fit_scaled_source(_axes_of(turned), strict=True, zeros_known=False),
        (*source.turns, candidate.turn),
        source.angles + candidate.angles,
    )


def _axes_of(weight: Weight) -> Array:
    """The weights, [out, channels, taps]."""
    return weight.matrix.reshape(weight.layout.axes).astype(np.float64)


def _candidates(source: StructuredSource, axis: int) -> Iterator[_Candidate]:
    """Turns along an axis that seem to save bits: by its covariance, with the scales along the others divided out."""
    layout = source.weight.layout
    length = layout.axes[axis]
    if length < 2 or (axis == TAPS and length > MOST_TAPS) or length == source.weight.matrix.size:
        return
    vectors = _along(source, axis)
    plain = _bits(np.square(vectors).mean(0))
    if length <= WIDEST:
        yield from _directions(vectors, plain, axis)
    lying = Cosines(TAPS if axis == TAPS else CHANNELS, LONGEST_BLOCK)
    turned = coefficients(vectors, lying, _of_vectors(vectors, layout, axis))
    saved = plain - _bits(np.square(turned, dtype=np.float64).mean(0))
    yield _Candidate(Cosines(axis, LONGEST_BLOCK), saved * len(vectors))


def _of_vectors(vectors: Array, layout: Layout, axis: int) -> Layout:
    """The layout of vectors along an axis, one a row: as taps of one channel, or as channels."""
    return Layout((len(vectors), 1, *layout.shape[2:]) if axis == TAPS else vectors.shape)


def _along(source: StructuredSource, axis: int) -> Array:
    """Vectors along an axis [n, length], over the scales along the others."""
    scales = [np.exp2(-each) if other != axis else each * 0 + 1 for other, each in enumerate(source.scaled.log2_scales)]
    values = _axes_of(source.weight) - source.scaled.mean
    values *= scales[0][:, None, None] * (scales[1][:, None] * scales[2])
    values /= np.abs(values).max() or 1.0  # squares stay in range
    return np.ascontiguousarray(np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]))


def _directions(vectors: Array, plain: float, axis: int) -> Iterator[_Candidate]:
    """Leading eigenvectors of the covariance of vectors, as many as save most, or all.

    The coordinates beside the leading ones have one variance, and are any ones: eigenvectors of noise look better than
    they are.
    """
    count, length = vectors.shape
    covariance = vectors.T @ vectors / count
    largest = float(covariance.diagonal().max())
    most = min(length - 1, count // VECTORS_A_DIRECTION)
    if most < 1 or not largest or bits_of_correlations(covariance, count) < WORTH:
        return
    covariance = (covariance / largest).astype(np.float32)
    variances = np.maximum(largest * np.linalg.eigvalsh(covariance).astype(np.float64)[::-1], LEAST_VARIANCE * largest)
    saved, angles = _savings(variances, plain, count)
    best = int(saved[:most].argmax())
    if saved[best] > 0:
        leading = np.linalg.eigh(covariance)[1][:, : -best - 2 : -1]
        whole = np.linalg.qr(leading, mode="complete").Q
        turn = Directions(axis, np.ascontiguousarray(whole.T, np.float32))
        yield _Candidate(turn, float(saved[best]), int(angles[best]))


def _savings(variances: Array, plain: float, count: int) -> tuple[Array, NDArray[np.int64]]:
    """Bits that the leading eigenvectors save, and how many angles say which they are, for 1 ... length - 1 of them.

    Args:
        variances: all eigenvalues, the largest first.
        plain: bits of a vector as it is.
        count: of the vectors.
    """
    length = len(variances)
    taken = np.arange(1, length)
    others = np.cumsum(variances[::-1])[::-1][1:] / (length - taken)
    bits = (np.cumsum(np.log2(variances))[:-1] + (length - taken) * np.log2(others)) / 2
    angles = taken * length - taken * (taken + 1) // 2
    return count * (plain - bits) - angles * math.log2(count * length) / 2, angles


def _bits(variances: Array) -> float:
    """`1/2 log2` of all variances."""
    return float(np.log2(np.maximum(variances, SMALLEST)).sum()) / 2
