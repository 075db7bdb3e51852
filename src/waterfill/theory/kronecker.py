"""Gaussian weights of a matrix or a kernel whose covariance is a Kronecker product: rows, columns, taps.

`W ~ N(0, R (x) C)` under the distortion `tr(G E A E^T)`, `E = W - W_hat`, is a linear model with
`Sigma_W = R (x) C` and `Sigma_X = G (x) A`. The eigenvalues of the whole are products of those of the factors, and so
are the coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, number
from waterfill.theory.covariance_pair import CovariancePair, along_axes
from waterfill.theory.waterfilling import Rectangles

Pairs: TypeAlias = Sequence[tuple[ArrayLike, ArrayLike]]


def kronecker_rate_distortion(pairs: Pairs, distortion: float) -> float:
    """Find the exact rate-distortion function of Gaussian weights whose covariance is a Kronecker product.

    With `Sigma_W = R (x) C` and the distortion `tr(G E A E^T)` the volumes of reverse water-filling are all products of
    an eigenvalue of `R^(1/2) G R^(1/2)` and one of `C^(1/2) A C^(1/2)`; a third factor multiplies them again. Two small
    decompositions take the place of a large one.

    Args:
        pairs: (R, G) of the rows, (C, A) of the columns, and more where there are more axes: covariance of weights and
            price of errors, matrices [m, m] or diagonals [m]. Where A does not factor over channels and taps, they are
            one axis, of `C (x) T`.
        distortion: D = E tr(G E A E^T).

    Returns:
        Bits for the whole tensor; infinite at D = 0, zero from `tr(R G) tr(C A)` on.

    Raises:
        UsageError: there is no pair, a matrix is no covariance, or shapes differ.

    Source:
        Reverse water-filling (Cover and Thomas, section 10.3.3) over the spectrum of a Kronecker product.

    Example:
        >>> round(kronecker_rate_distortion([([3, 1], [1, 1]), ([2, 1], [1, 1])], 4.0), 6)  # volumes 6, 3, 2, 1 under 1
        2.584963
    """
    return Rectangles(_volumes(_checked(pairs))).rate_at_distortion(number("distortion", distortion))


def _checked(pairs: Pairs) -> list[CovariancePair]:
    """The pairs of all axes."""
    if not pairs:
        raise UsageError("pairs is empty; expected (covariance, price of errors) for every axis of the tensor.")
    return [CovariancePair(sigma_w, sigma_x) for sigma_w, sigma_x in pairs]


def _volumes(pairs: Sequence[CovariancePair]) -> Array:
    """All products of an eigenvalue of every axis, in the shape of the tensor."""
    return reduce(np.multiply.outer, (pair.eigenvalues for pair in pairs))


@dataclass(frozen=True)
class MonteCarlo:
    """Rate and distortion of a sampled test channel, with their errors.

    Attributes:
        rate: mutual information `I(W; W_hat)` in bits.
        rate_error: its standard error.
        distortion: mean distortion.
        distortion_error: its standard error.
        samples: number of draws.
    """

    rate: float
    rate_error: float
    distortion: float
    distortion_error: float
    samples: int


class KroneckerTestChannel:
    """The compressor that achieves the rate-distortion function of `kronecker_rate_distortion`, as a sampler.

    Every component `u_k` of variance `g_k` is full (`D_k = g_k`, then `u_hat_k = 0`), or goes through the backward
    channel `u_k = u_hat_k + z_k` with independent `z_k ~ N(0, D_k)` and `u_hat_k ~ N(0, g_k - D_k)`. The components of
    a tensor are turned into weights axis by axis.

    Args:
        pairs: see `kronecker_rate_distortion`.
        distortion: D, above zero.

    Raises:
        UsageError: a matrix is no covariance, or shapes differ, or the distortion is not above zero.

    Example:
        >>> channel = KroneckerTestChannel([([3, 1], [1, 1]), ([2, 1], [1, 1])], 8.0)  # volumes 6, 3, 2, 1 under 2.5
        >>> w, w_hat = channel.sample(4, seed=0)
        >>> w.shape, w_hat[:, 1].any()  # the second row is full
        ((4, 2, 2), np.False_)
    """

    def __init__(self, pairs: Pairs, distortion: float) -> None:
        self._pairs = _checked(pairs)
        self._volumes = _volumes(self._pairs)
        spectrum = Rectangles(self._volumes)
        self.level = spectrum.level_at_distortion(number("distortion", distortion, above=0.0))
        self.rate = spectrum.rate(self.level)
        self.noise: Array = np.minimum(self.level, self._volumes)
        signal = self._volumes - self.noise
        self.signal: Array = np.where(signal > 1e-12 * self._volumes, signal, 0.0)  # not only rounding

    def sample(self, samples: int, seed: int) -> tuple[Array, Array]:
        """Draw weights together with their compressed versions.

        Args:
            samples: number of draws n.
            seed: of the draws.

        Returns:
            `w` and `w_hat`, both [n, ...] with the axes of the tensor.
        """
        rng = np.random.default_rng(seed)
        u_hat = rng.standard_normal((samples, *self.signal.shape)) * np.sqrt(self.signal)
        u = u_hat + rng.standard_normal(u_hat.shape) * np.sqrt(self.noise)
        other = along_axes(rng.standard_normal(u.shape), [pair.root_w.T for pair in self._pairs])
        unseen = other - self._from_components(self._to_components(other))
        return self._from_components(u) + unseen, self._from_components(u_hat)

    def _to_components(self, weights: Array) -> Array:
        return along_axes(weights, [pair.to_components for pair in self._pairs])

    def _from_components(self, components: Array) -> Array:
        return along_axes(components, [pair.from_components for pair in self._pairs])

    def monte_carlo(self, samples: int, seed: int) -> MonteCarlo:
        """Measure rate and distortion on draws: the mean of `log2 p(w | w_hat) / p(w)`, and of the weighted error.

        Args:
            samples: number of draws.
            seed: of the draws.
        """
        w, w_hat = self.sample(samples, seed)
        error = w - w_hat
        losses = (error * along_axes(error, [pair.sigma_x for pair in self._pairs])).reshape(samples, -1).sum(axis=1)
        used = self.signal > 0
        noise, power = self.noise[used], self._volumes[used]
        u, error = self._to_components(w)[:, used], self._to_components(error)[:, used]
        information = np.log2(power / noise) + (u**2 / power - error**2 / noise) / np.log(2)
        bits = information.sum(axis=1) / 2
        root = np.sqrt(samples)
        return MonteCarlo(
            float(bits.mean()), float(bits.std() / root), float(losses.mean()), float(losses.std() / root), samples
        )
