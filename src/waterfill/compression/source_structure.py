"""Coordinates in which the weights of a tensor depend on each other least, for its limit: whatever the code uses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

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

LEAST = 1e-9
"""Of the largest variance."""

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
    return weight.matrix.reshape(weight.layout.axes).astype(np.float64)


def _candidates(source: StructuredSource, axis: int) -> Iterator[_Candidate]:
    """Turns along an axis that seem to save bits: by its covariance, with the scales along the others divided out."""
    layout = source.weight.layout
    length = layout.axes[axis]
    if length < 2 or (axis == TAPS and length > MOST_TAPS) or length == source.weight.matrix.size:
        return
    vectors = _along(source, axis)
    if length <= WIDEST:
        covariance = vectors.T @ vectors / len(vectors)
        plain = _bits(covariance.diagonal())
        yield from _directions(covariance, plain, len(vectors), axis)
    else:
        plain = _bits(np.square(vectors).mean(0))
    cosines = Cosines(axis, LONGEST_BLOCK)
    lying = Cosines(TAPS if axis == TAPS else CHANNELS, LONGEST_BLOCK)
    turned = coefficients(vectors, lying, _of_vectors(vectors, layout, axis))
    yield _Candidate(cosines, (plain - _bits(np.square(turned, dtype=np.float64).mean(0))) * len(vectors))


def _of_vectors(vectors: Array, layout: Layout, axis: int) -> Layout:
    """Of vectors along an axis, one a row."""
    return Layout((len(vectors), 1, *layout.shape[2:]) if axis == TAPS else vectors.shape)


def _along(source: StructuredSource, axis: int) -> Array:
    """Vectors along an axis [n, length], over the scales along the others."""
    scales = [np.exp2(-each) if other != axis else each * 0 + 1 for other, each in enumerate(source.scaled.log2_scales)]
    values = _axes_of(source.weight) - source.scaled.mean
    values *= scales[0][:, None, None] * (scales[1][:, None] * scales[2])
    values /= np.abs(values).max() or 1.0  # squares stay in range
    return np.ascontiguousarray(np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis]))


def _directions(covariance: Array, plain: float, count: int, axis: int) -> Iterator[_Candidate]:
    """Leading eigenvectors of the covariance of `count` vectors, as many as pay for themselves, and all of them.

    The coordinates beside the leading ones have one variance, and are any ones: eigenvectors of noise look better than
    they are.
    """
    length, largest = len(covariance), float(covariance.diagonal().max())
    most = min(length - 1, count // VECTORS_A_DIRECTION)
    if most < 1 or not largest or bits_of_correlations(covariance, count) < WORTH:
        return
    covariance = (covariance / largest).astype(np.float32)
    values = np.maximum(largest * np.linalg.eigvalsh(covariance).astype(np.float64)[::-1], LEAST * largest)
    taken = np.arange(1, most + 1)
    rest = np.cumsum(values[::-1])[::-1][taken] / (length - taken)
    left = np.cumsum(np.log2(values))[:most] + (length - taken) * np.log2(rest)
    angles = taken * length - taken * (taken + 1) // 2
    saved = count * (plain - left / 2) - angles * math.log2(count * length) / 2
    every = count * (plain - _bits(values)) - angles[-1] * math.log2(count * length) / 2
    every = every if most == length - 1 else -math.inf
    best = int(saved.argmax())
    if max(saved[best], every) > 0:
        vectors = np.linalg.eigh(covariance)[1][:, ::-1]
        if every > saved[best]:
            yield _Candidate(_turn(axis, vectors), float(every), int(angles[-1]))
        else:
            whole = np.linalg.qr(vectors[:, : best + 1], mode="complete").Q
            yield _Candidate(_turn(axis, whole), float(saved[best]), int(angles[best]))


def _turn(axis: int, vectors: Array) -> Directions:
    return Directions(axis, np.ascontiguousarray(vectors.T, np.float32))


def _bits(variances: Array) -> float:
    """`1/2 log2` of all variances."""
    return float(np.log2(np.maximum(variances, 1e-30)).sum()) / 2
