"""The loss of a code whose decoder does not know the price of errors: one isotropic Gaussian codebook for every A.

The encoder knows the volumes `g_k` (eigenvalues of `V^(1/2) A V^(1/2)`), the decoder none of them. With Wiener gains
`m_k = g_k / (g_k + kappa)` the channel `u_hat_k = m_k u_k + sqrt(s (1 - m_k)) z_k`, in units in which `u_k` and `z_k`
have variance 1 and codewords the power `s = sum m_k^2 / sum m_k`, has

    D = kappa sum_k m_k,    R = sum_k 1/2 log2(1 + g_k / kappa).

R exceeds reverse water-filling by at most `worst_excess()` a weight. docs/theory.md has the proof.

Source: Harbuzova, Ordentlich and Polyanskiy 2026, "Price of metric universality in vector quantization is at most 0.11
bit" (arXiv 2602.05790), who prove that one codebook serves all A at once.
"""

from __future__ import annotations

from math import log, log1p, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from waterfill.theory.checks import Array, not_negative, number
from waterfill.theory.waterfilling import Rectangles


def wiener_gains(volumes: ArrayLike, noise: float) -> Array:
    """Find the share of every component that is kept: `m_k = g_k / (g_k + kappa)`.

    Args:
        volumes: `g_k`, any shape.
        noise: kappa, above zero.

    Raises:
        UsageError: a volume is negative, or the noise is not above zero.
    """
    g = not_negative("volumes", volumes)
    return np.asarray(g / (g + number("noise", noise, above=0.0)))


def codebook_power(volumes: ArrayLike, noise: float) -> float:
    """Find the power of codewords for weights of power 1: `s = sum m_k^2 / sum m_k`.

    Args:
        volumes: `g_k`, not all zero.
        noise: kappa, above zero.

    Example:
        >>> codebook_power([3.0, 3.0], 1.0)  # equal volumes: 1 - D / sum g
        0.75
    """
    gains = wiener_gains(volumes, noise)
    return float(np.square(gains).sum() / gains.sum())


def universal_distortion(volumes: ArrayLike, noise: float) -> float:
    """Find the distortion of the isotropic codebook: `D = kappa sum_k m_k`.

    Args:
        volumes: `g_k`.
        noise: kappa, above zero.
    """
    return float(noise * wiener_gains(volumes, noise).sum())


def universal_rate(volumes: ArrayLike, noise: float) -> float:
    """Find the rate of the isotropic codebook: `R = sum_k 1/2 log2(1 + g_k / kappa)` bits.

    Args:
        volumes: `g_k`.
        noise: kappa, above zero.

    Example:
        >>> universal_rate([3.0, 3.0], 1.0), universal_distortion([3.0, 3.0], 1.0)  # reverse water-filling: 2 bit too
        (2.0, 1.5)
    """
    g = not_negative("volumes", volumes)
    return float(np.log1p(g / number("noise", noise, above=0.0)).sum() / (2 * log(2)))


def universal_excess(volumes: ArrayLike, noise: float) -> float:
    """Find the loss of the isotropic codebook to reverse water-filling at its distortion, bits a volume.

    Args:
        volumes: `g_k`.
        noise: kappa, above zero.
    """
    limit = Rectangles(volumes).rate_at_distortion(universal_distortion(volumes, noise))
    return (universal_rate(volumes, noise) - limit) / np.size(volumes)


def excess_at_level(volumes: ArrayLike, level: float) -> Array:
    """Bound the excess volume by volume, at kappa = 1, by a tangent of reverse water-filling.

    Its function of D is convex, with the slope `-1 / (2 c ln 2)` where the level is c. So for every c the mean of

        phi_c(g) = 1/2 log2(1 + g) - max(0, 1/2 log2(g / c)) + (g / (1 + g) - min(c, g)) / (2 c ln 2)

    over the volumes is at least the excess, and equal where c is the level at the same distortion.

    Args:
        volumes: `g_k` in units of kappa.
        level: c in units of kappa, above zero.

    Returns:
        `phi_c(g_k)` in bits.
    """
    g = not_negative("volumes", volumes)
    saved = np.log2(1 + g) / 2 - np.log2(np.maximum(g / level, 1)) / 2
    return np.asarray(saved + (g / (1 + g) - np.minimum(level, g)) / (2 * log(2) * level))


def worst_excess() -> float:
    """Find the most that any spectrum loses: `min_c max_g phi_c(g)`, .1083 bit a weight.

    Below c the maximum of `phi_c` is at `g = (c - 2 + sqrt(4 + c^2)) / 2`; above it is at the ends. The first rises
    with c, the limit of large g falls, and where they meet both kinds of volumes together lose so much.

    Example:
        >>> round(worst_excess(), 4)
        0.1083
    """
    level = float(brentq(lambda c: _inner(c) - _outer(c), 0.1, 1.0, xtol=1e-14))
    return _outer(level) / log(2)


def _inner(c: float) -> float:
    """The maximum of phi below the level c, nats."""
    g = (c - 2 + sqrt(4 + c * c)) / 2
    return log1p(g) / 2 - g * g / (2 * c * (1 + g))


def _outer(c: float) -> float:
    """The limit of phi for large volumes, nats."""
    return log(c) / 2 + (1 - c) / (2 * c)
