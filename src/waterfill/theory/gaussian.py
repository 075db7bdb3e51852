"""Gaussian weights of a linear model: the bound of Theorem 2, the exact function, and the channel that achieves it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, finite, not_negative, number, root
from waterfill.theory.checks import covariance as as_covariance
from waterfill.theory.waterfilling import Rectangles, weighted_waterfilling


def linear_lower_bound(covariance: ArrayLike, importance: ArrayLike, distortion: float) -> float:
    """Theorem 2: `R(D) >= 1/2 log2 det Sigma_W - sum_i 1/2 log2 D_i`, with weighted water-filling for the `D_i`.

    For `f_w(x) = w^T x` with `E X = 0`, `E X X^T = diag(lambda)`, `W ~ N(0, Sigma_W)`. Exact when `Sigma_W` is
    diagonal, and for small distortions; with correlated weights it gets loose and can fall below zero, where it says
    nothing (`linear_rate_distortion` is the exact function).

    Args:
        covariance: `Sigma_W` [m, m], or the variances [m] of independent weights.
        importance: `lambda` [m], or the diagonal matrix [m, m].
        distortion: `D = E (W - W_hat)^T diag(lambda) (W - W_hat)`.

    Returns:
        Bits for the whole vector; infinite at D = 0, minus infinity for a singular `Sigma_W`.

    Raises:
        UsageError: shapes differ, or the importance matrix is not diagonal, or an argument is not finite.

    Source:
        Theorem 2 of the paper.

    Example:
        >>> round(linear_lower_bound([3, 2, 1], [3, 2, 1], 3.0), 6)  # 1/2 log2(9 * 4 * 1)
        2.584963
    """
    sigma = as_covariance("covariance", covariance)
    widths = _diagonal(importance, len(sigma))
    levels = weighted_waterfilling(widths, np.diag(sigma), number("distortion", distortion))
    sign, log_det = np.linalg.slogdet(sigma)
    if sign <= 0:
        return -np.inf
    with np.errstate(divide="ignore"):
        return float(log_det / np.log(4) - np.log2(levels.per_weight_distortion).sum() / 2)


def _diagonal(importance: ArrayLike, count: int) -> Array:
    """The importance as a vector [count]."""
    values = finite("importance", importance)
    if values.ndim == 2 and values.shape[0] == values.shape[1]:
        if np.abs(values - np.diag(np.diag(values))).max(initial=0.0) > 0:
            raise UsageError(
                "importance is a matrix with entries off its diagonal; Theorem 2 needs uncorrelated inputs. "
                "Use linear_rate_distortion, which takes any pair of matrices."
            )
        values = np.diag(values)
    if values.shape != (count,):
        raise UsageError(
            f"importance has the shape {list(values.shape)}, the covariance is for {count} weights; expected [{count}]."
        )
    return not_negative("importance", values)


def linear_rate_distortion(sigma_w: ArrayLike, sigma_x: ArrayLike, distortion: float) -> float:
    """The exact rate-distortion function of a linear model, for any two covariance matrices.

    Reverse water-filling over the eigenvalues `g_k` of `Sigma_X^(1/2) Sigma_W Sigma_X^(1/2)`:
    `D = sum_k min(theta, g_k)`, `R = sum_k max(0, 1/2 log2(g_k / theta))`. The same for any common rotation.

    Args:
        sigma_w: `Sigma_W` [m, m], or variances [m].
        sigma_x: `Sigma_X` [m, m], or variances [m].
        distortion: `D = E (W - W_hat)^T Sigma_X (W - W_hat)`.

    Returns:
        Bits for the whole vector; infinite at D = 0, zero from `tr(Sigma_W Sigma_X)` on.

    Raises:
        UsageError: a matrix is no covariance, or shapes differ.

    Source:
        Reverse water-filling (Kolmogorov 1956; Cover and Thomas, section 10.3.3), which replaces Theorem 2 of the
        paper for correlated weights.

    Example:
        >>> round(linear_rate_distortion([3, 2, 1], [3, 2, 1], 9.0), 6)  # 1/2 log2(9 / 4)
        0.584963
    """
    return Rectangles(_Pair(sigma_w, sigma_x).eigenvalues).rate_at_distortion(number("distortion", distortion))


def distortion_at_rate(sigma_w: ArrayLike, sigma_x: ArrayLike, rate: float) -> float:
    """The inverse of `linear_rate_distortion`: the smallest distortion at a rate.

    Args:
        sigma_w: `Sigma_W` [m, m], or variances [m].
        sigma_x: `Sigma_X` [m, m], or variances [m].
        rate: bits for the whole vector, at least zero.

    Raises:
        UsageError: a matrix is no covariance, or shapes differ, or the rate is negative.

    Example:
        >>> round(distortion_at_rate([3, 2, 1], [3, 2, 1], 0.5 * np.log2(9 / 4)), 6)
        9.0
    """
    spectrum = Rectangles(_Pair(sigma_w, sigma_x).eigenvalues)
    return spectrum.distortion(spectrum.level_at_rate(number("rate", rate)))


class _Pair:
    """Two covariance matrices and the coordinates in which both are diagonal.

    `u = U^T B W` with `Sigma_X = B^T B` has independent components of variance `g_k`, and the distortion is the
    squared error of `u`. Where both matrices are diagonal, so is the map.
    """

    def __init__(self, sigma_w: ArrayLike, sigma_x: ArrayLike) -> None:
        self.sigma_w, self.sigma_x = as_covariance("sigma_w", sigma_w), as_covariance("sigma_x", sigma_x)
        if len(self.sigma_w) != len(self.sigma_x):
            raise UsageError(
                f"sigma_w is for {len(self.sigma_w)} weights, sigma_x for {len(self.sigma_x)} inputs; expected as many."
            )

    @cached_property
    def root_x(self) -> Array:
        """B."""
        return root(self.sigma_x)

    @cached_property
    def _decomposition(self) -> tuple[Array, Array]:
        values, vectors = np.linalg.eigh(self.root_x @ self.sigma_w @ self.root_x.T)
        noise = len(values) * np.finfo(float).eps * float(values.max(initial=0.0))
        return np.where(values > noise, values, 0.0), vectors

    @property
    def eigenvalues(self) -> Array:
        """The `g_k`, with what is only rounding set to zero."""
        return self._decomposition[0]

    @property
    def to_components(self) -> Array:
        """`U^T B`: from weights to components."""
        return np.asarray(self._decomposition[1].T @ self.root_x)


@dataclass(frozen=True)
class MonteCarlo:
    """What a sampled test channel shows.

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


class GaussianTestChannel:
    """Algorithm 1 as a sampler: the compressor that achieves the rate-distortion function of a linear model.

    Every component `u_k` of variance `g_k` is full (`D_k = g_k`, then `u_hat_k = 0`: the paper's print has the two
    branches exchanged), or goes through the backward channel `u_k = u_hat_k + z_k` with independent
    `z_k ~ N(0, D_k)` and `u_hat_k ~ N(0, g_k - D_k)`. The components are the weights themselves when both matrices are
    diagonal, as in the paper, and else the eigenvectors of the pair.

    Args:
        sigma_w: `Sigma_W` [m, m], or variances [m].
        sigma_x: `Sigma_X` [m, m], or variances [m].
        distortion: D, above zero.

    Raises:
        UsageError: a matrix is no covariance, or shapes differ, or the distortion is not above zero.

    Source:
        Theorem 3 and Algorithm 1 of the paper, corrected.

    Example:
        >>> channel = GaussianTestChannel([3, 2, 1], [3, 2, 1], 9.0)
        >>> w, w_hat = channel.sample(4, seed=0)
        >>> w.shape, w_hat[:, 1].tolist()  # the second and the third are full
        ((4, 3), [0.0, 0.0, 0.0, 0.0])
    """

    def __init__(self, sigma_w: ArrayLike, sigma_x: ArrayLike, distortion: float) -> None:
        self._pair = _Pair(sigma_w, sigma_x)
        spectrum = Rectangles(self._pair.eigenvalues)
        self.level = spectrum.level_at_distortion(number("distortion", distortion, above=0.0))
        self.rate = spectrum.rate(self.level)
        self.noise: Array = np.minimum(self.level, self._pair.eigenvalues)
        signal = self._pair.eigenvalues - self.noise
        self.signal: Array = np.where(signal > 1e-12 * self._pair.eigenvalues, signal, 0.0)  # not only rounding

    @cached_property
    def _from_components(self) -> Array:
        """Components to the weights that they say most about: `E[W | u] = Sigma_W T^T diag(1 / g) u`."""
        gains = np.divide(1.0, self._pair.eigenvalues, out=np.zeros_like(self.noise), where=self._pair.eigenvalues > 0)
        return np.asarray(self._pair.sigma_w @ self._pair.to_components.T * gains)

    @cached_property
    def _rest(self) -> Array:
        """A root of the covariance of W given all components: what no input sees."""
        seen = self._from_components
        return root(self._pair.sigma_w - (seen * self._pair.eigenvalues) @ seen.T)

    def sample(self, samples: int, seed: int) -> tuple[Array, Array]:
        """Draw weights together with their compressed versions.

        Args:
            samples: number of draws n.
            seed: of the draws.

        Returns:
            `w` and `w_hat`, both [n, m].
        """
        rng = np.random.default_rng(seed)
        u_hat = rng.standard_normal((samples, self.signal.size)) * np.sqrt(self.signal)
        u = u_hat + rng.standard_normal(u_hat.shape) * np.sqrt(self.noise)
        unseen = rng.standard_normal(u.shape) @ self._rest
        return u @ self._from_components.T + unseen, u_hat @ self._from_components.T

    def monte_carlo(self, samples: int, seed: int) -> MonteCarlo:
        """Measure rate and distortion on draws: the mean of `log2 p(w | w_hat) / p(w)`, and of the weighted error.

        Args:
            samples: number of draws.
            seed: of the draws.
        """
        w, w_hat = self.sample(samples, seed)
        error = w - w_hat
        losses = np.einsum("ni,ij,nj->n", error, self._pair.sigma_x, error)
        u, u_hat = w @ self._pair.to_components.T, w_hat @ self._pair.to_components.T
        used = self.signal > 0
        noise, power = self.noise[used], self._pair.eigenvalues[used]
        information = np.log2(power / noise) + (u[:, used] ** 2 / power - (u - u_hat)[:, used] ** 2 / noise) / np.log(2)
        bits = information.sum(axis=1) / 2
        root = np.sqrt(samples)
        return MonteCarlo(
            float(bits.mean()), float(bits.std() / root), float(losses.mean()), float(losses.std() / root), samples
        )
