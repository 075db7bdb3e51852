"""Mixtures of normal densities, here called lumps: for weights near a few values, or of several scales at random."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from waterfill.theory.checks import Array

CHOSEN_BY = 4096
FITTED_VALUES = 1 << 16
"""By so many evenly spaced values the number of lumps is chosen, and to so many they are fitted then, at most."""

MOST_LUMPS = 6
ROUNDS = 100
"""Of expectation and maximisation, at most."""

ENOUGH = 1e-6
"""Nats a value that a round has to gain for another to follow."""

NARROWEST = 1e-4
"""Deviation of a lump, of that of all values, at least."""

EMPTY = 1e-12
"""Share of a lump that no value belongs to, so that it can be divided by."""

NODES = 64
"""Of a quadrature over a lump."""

OUTERMOST = 5.7
"""Deviations beyond which there is one value in 1e8, as beyond the grid of a generalized Gaussian."""


@dataclass(frozen=True)
class GaussianMixture:
    """A density `sum_k share_k N(mean_k, deviation_k^2)`.

    Attributes:
        shares: of the lumps; their sum is 1.
        means: of each.
        deviations: of each.
    """

    shares: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"{len(self.shares)} {'lumps' if self.is_scattered else 'scales at random'}"

    @property
    def parameters(self) -> int:
        """How many numbers say which mixture it is."""
        return 3 * len(self.shares) - 1

    @property
    def mean(self) -> float:
        """`E w`."""
        return float(np.dot(self.shares, self.means))

    @property
    def second_moment(self) -> float:
        """`E w^2`."""
        return float(np.dot(self.shares, np.square(self.means) + np.square(self.deviations)))

    @property
    def reach(self) -> float:
        """Largest magnitude that comes up once in 1e8 values or more often."""
        return float(np.max(np.abs(self.means) + OUTERMOST * np.asarray(self.deviations)))

    @property
    def is_scattered(self) -> bool:
        """Whether lumps lie apart from each other by more than their deviations; else only their scales differ."""
        apart = np.abs(np.subtract.outer(self.means, self.means))
        widest = np.maximum.outer(self.deviations, self.deviations)
        return bool((apart > widest).any())

    @cached_property
    def entropy(self) -> float:
        """Differential entropy in bits, by Gauss-Hermite quadrature of every lump."""
        places, weights = np.polynomial.hermite_e.hermegauss(NODES)
        values = np.array(self.means)[:, None] + np.array(self.deviations)[:, None] * places
        each = -self.log_density(values.reshape(-1)).reshape(values.shape) @ weights / weights.sum()
        return float(np.dot(self.shares, each)) / math.log(2)

    def log_density(self, values: Array) -> Array:
        """Natural logarithm of the density [n]."""
        return np.asarray(np.logaddexp.reduce(self._logs(values), axis=0))

    def cumulative(self, values: Array) -> Array:
        """Probability below values [n]."""
        from scipy.special import ndtr  # here, for `import waterfill` to stay light

        each = ndtr((values - np.array(self.means)[:, None]) / np.array(self.deviations)[:, None])
        return np.asarray(np.array(self.shares) @ each)

    def _logs(self, values: Array) -> Array:
        """Logarithms of share times density, [lumps, n]."""
        shares, means, deviations = (np.array(each)[:, None] for each in (self.shares, self.means, self.deviations))
        squares = np.square((values - means) / deviations)
        return np.asarray(np.log(shares) - np.log(deviations) - (squares + math.log(2 * math.pi)) / 2)


def fit_gaussian_mixture(values: Array) -> GaussianMixture:
    """Find the mixture whose description of all values is shortest.

    Two to six lumps are fitted by expectation and maximisation, from places all over and from scales of one place.
    The number is that of least `n h + (3 K - 1) / 2 log2 n` bits.

    Args:
        values: at least two different ones, [n].

    Source:
        Dempster, Laird and Rubin 1977; Schwarz 1978.
    """
    some = np.sort(_evenly(values, CHOSEN_BY))
    best: tuple[GaussianMixture, float] | None = None
    for lumps in range(2, MOST_LUMPS + 1):
        fit = min((_fitted(start, some) for start in _starts(some, lumps)), key=lambda each: each[1])
        if best is not None and not _price(fit, some.size) < _price(best, some.size):
            break
        best = fit
    assert best is not None
    return _fitted(best[0], _evenly(values, FITTED_VALUES))[0]


def _evenly(values: Array, most: int) -> Array:
    return values.reshape(-1)[:: -(-values.size // most)]


def _price(fit: tuple[GaussianMixture, float], count: int) -> float:
    mixture, bits = fit
    return count * bits + mixture.parameters * math.log2(count) / 2


def _starts(ordered: Array, lumps: int) -> Iterator[GaussianMixture]:
    """Lumps at even places, at even ranks, and of one place with several scales."""
    mean, deviation = float(ordered.mean()), float(ordered.std())
    shares = (1 / lumps,) * lumps
    middles = (np.arange(lumps) + 0.5) / lumps
    ranks = ordered[(middles * ordered.size).astype(np.int64)]
    for means in (ordered[0] + middles * (ordered[-1] - ordered[0]), ranks):
        yield GaussianMixture(shares, tuple(means), (deviation / lumps,) * lumps)
    scales = deviation * 2.0 ** np.linspace(-lumps, 1, lumps)
    yield GaussianMixture(shares, (mean,) * lumps, tuple(scales))


def _fitted(mixture: GaussianMixture, values: Array) -> tuple[GaussianMixture, float]:
    """A local optimum, and its bits of a value."""
    least = NARROWEST * float(values.std())
    before = math.inf
    for _ in range(ROUNDS):
        logs = mixture._logs(values)
        whole = np.logaddexp.reduce(logs, axis=0)
        nats = -float(whole.mean())
        if before - nats < ENOUGH:
            break
        before = nats
        mixture = _maximized(np.exp(logs - whole), values, least)
    return mixture, nats / math.log(2)


def _maximized(parts: Array, values: Array, least: float) -> GaussianMixture:
    """The mixture of largest likelihood where each value belongs to the lumps in parts [lumps, n]."""
    sums = parts.sum(1) + EMPTY * values.size
    means = parts @ values / sums
    squares = (parts * np.square(values - means[:, None])).sum(1) / sums
    deviations = np.maximum(np.sqrt(squares), least)
    return GaussianMixture(tuple(sums / sums.sum()), tuple(means), tuple(deviations))
