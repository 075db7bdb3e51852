"""Lower bounds for weights of any distribution: Lemma 1 and the Shannon lower bound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from waterfill.errors import UsageError
from waterfill.theory.checks import not_negative, number
from waterfill.theory.quadratic import as_quadratic
from waterfill.theory.sources import Source, entropy_power
from waterfill.theory.waterfilling import Rectangles


def lemma1(joint_entropy: float, marginal_entropies: ArrayLike, importance: ArrayLike, distortion: float) -> float:
    """Lemma 1: `R(D) >= h(W) - max sum_i min{h(W_i), 1/2 log2(2 pi e D_i)}` over `sum_i I_i D_i <= D`.

    The maximum is weighted water-filling with the entropy powers `2^(2 h(W_i)) / (2 pi e)` in place of the variances.

    Args:
        joint_entropy: differential entropy `h(W)` of all weights together, bits.
        marginal_entropies: `h(W_i)` in bits [m]; minus infinity for a weight that is known.
        importance: `I_i >= 0` [m].
        distortion: `D >= 0`, of `sum_i I_i E(W_i - W_hat_i)^2`.

    Returns:
        Bits for all weights; it can fall below zero, where it says nothing.

    Raises:
        UsageError: shapes differ, an entropy is no number, or the joint one is above the sum of the marginal ones.

    Source:
        Lemma 1 of the paper (appendix A).

    Example:
        >>> h = 0.5 * np.log2(2 * np.pi * np.e)  # of a Gaussian with variance 1
        >>> round(lemma1(2 * h, [h, h], [1, 1], 0.5), 9)  # 2 * 1/2 log2(1 / 0.25)
        2.0
    """
    weights = not_negative("importance", importance)
    try:
        joint, entropies = float(joint_entropy), np.asarray(marginal_entropies, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"An entropy is no number ({error}); give h(W) and h(W_i) in bits.") from error
    if not math.isfinite(joint):
        raise UsageError(f"joint_entropy is {joint}; expected a finite number of bits.")
    if entropies.shape != weights.shape or np.isnan(entropies).any() or (entropies == np.inf).any():
        raise UsageError(
            f"marginal_entropies {list(entropies.shape)} must be numbers or minus infinity in the shape of importance "
            f"{list(weights.shape)}; give h(W_i) in bits for every weight."
        )
    known = np.isneginf(entropies)
    surplus = joint - float(entropies[~known].sum())
    if surplus > 1e-9 * max(1.0, abs(joint)):
        raise UsageError(
            f"joint_entropy {joint:.6g} is above the sum {joint - surplus:.6g} of the marginal "
            "entropies; expected at most that. Check the units (bits)."
        )
    volumes = Rectangles(weights * entropy_power(entropies))
    return volumes.rate_at_distortion(number("distortion", distortion)) + surplus


def shannon_lower_bound(source: Source, importance: Any, distortion: float) -> float:
    """The Shannon lower bound for independent weights under any quadratic distortion.

    Reverse water-filling over the eigenvalues of `N^{1/2} I_w N^{1/2}`, with the entropy powers N of the weights. When
    `I_w` is diagonal that is Lemma 1; a weight whose entropy power is below its share of distortion costs nothing.
    Otherwise it is Lemma 1 for the components that cost something, in the basis of these eigenvalues, with the entropy
    power inequality for their joint entropy: see `waterfill.theory.spectra`. For Gaussian weights it is exact. A known
    weight is its own best reconstruction, so a matrix loses its row and column.

    Args:
        source: entropies and variances of the weights.
        importance: `I_w`: the diagonal in the shape of the weights, a matrix [m, m] over the flattened weights, a pair
            (A [in, in], G [out, out]) for weights [out, in], or a `Quadratic`.
        distortion: D, of `E (W - W_hat)^T I_w (W - W_hat)`.

    Returns:
        Bits for all weights, at least zero. It holds for the random weights of the source, on average; it is no
        converse for one fixed network. The standard error of an estimated entropy is `source.standard_error` bits per
        weight.

    Raises:
        UsageError: the importance does not fit the weights, or the distortion is negative.

    Source:
        Shannon 1959; Lemma 1 of the paper; Zamir and Feder 1993.

    Example:
        >>> from waterfill.theory.sources import gaussian
        >>> shannon_lower_bound(gaussian(np.ones(3)), np.ones(3), 3 * 2.0**-4)
        6.0
    """
    form = as_quadratic(importance, source.entropy.shape)
    volumes = form.volumes(np.asarray(source.entropy_power))
    return Rectangles(volumes).rate_at_distortion(number("distortion", distortion))
