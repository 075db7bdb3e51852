"""Differential entropy estimated from the weights themselves, without a model of their density."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma, polygamma

from waterfill.errors import UsageError
from waterfill.theory.checks import finite
from waterfill.theory.sources import Source, equal

FEWEST = 8
"""Fewest weights whose entropy is estimated."""

SPACING = 3


def estimate_entropy(weights: ArrayLike, spacing: int = SPACING) -> Source:
    """Entropy from the spacings between sorted weights.

    With the sorted weights `w_(1) <= ... <= w_(n)` and the spacing m,
    `h = mean_i log2((n + 1) (w_(i+m) - w_(i))) - digamma(m) / ln 2`; its variance is
    `(Var log p(W) + (2 m^2 - 2 m + 1) psi'(m) - 2 m + 1) / n`, with `Var log p(W)` from the spread of the same terms.

    Args:
        weights: independent draws from one density, any shape, at least 8.
        spacing: m. A larger one varies less, but counts the outermost weights less, and the entropy comes out low by
            the tails: with the cube root of n by 1.5 standard errors for 1,000 to 10,000 Gaussian weights, with 3 by
            less than half of one.

    Returns:
        The same entropy and the sample variance for every weight, and the standard error of the entropy in bits.

    Raises:
        UsageError: there are too few weights, or so many equal ones that they have no density.

    Source:
        Vasicek 1976; the bias correction and variance of m-spacings: Cressie 1976, Song 2000.

    Example:
        >>> source = estimate_entropy(np.random.default_rng(0).uniform(size=10_000))
        >>> bool(abs(source.entropy[0]) < 4 * source.standard_error)
        True
    """
    values = finite("weights", weights)
    count = values.size
    if count < FEWEST or not 1 <= spacing < count:
        raise UsageError(
            f"Spacing {spacing} does not fit {count} weights; expected at least {FEWEST} and a smaller spacing."
        )
    ordered = np.sort(values, axis=None)
    gaps = ordered[spacing:] - ordered[:-spacing]
    if not gaps.all():
        tied = 100 * (1 - np.count_nonzero(np.diff(ordered)) / (count - 1))
        raise UsageError(
            f"{tied:.3g} % of the weights equal another one, so they have no density; expected a continuous source. "
            "Leave out the zeros of a pruned tensor, or give a larger spacing."
        )
    terms = np.log((count + 1) * gaps)
    entropy = float(terms.mean() - digamma(spacing)) / math.log(2)
    within = (2 * spacing**2 - 2 * spacing + 1) * polygamma(1, spacing) - 2 * spacing + 1
    spread = max(0.0, float(terms.var()) - float(polygamma(1, spacing)))
    error = math.sqrt((spread + max(0.0, float(within))) / count) / math.log(2)
    return equal("estimated entropy", entropy, float(values.var()), values.shape, error)
