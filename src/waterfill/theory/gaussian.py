"""Gaussian weights of a linear model: the bound of Theorem 2, the exact function, and the channel that achieves it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, finite, not_negative, number
from waterfill.theory.checks import covariance as as_covariance
from waterfill.theory.covariance_pair import CovariancePair
from waterfill.theory.kronecker import KroneckerTestChannel, kronecker_rate_distortion
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
    return kronecker_rate_distortion([(sigma_w, sigma_x)], distortion)


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
    spectrum = Rectangles(CovariancePair(sigma_w, sigma_x).eigenvalues)
    return spectrum.distortion(spectrum.level_at_rate(number("rate", rate)))


class GaussianTestChannel(KroneckerTestChannel):
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
        super().__init__([(sigma_w, sigma_x)], distortion)
