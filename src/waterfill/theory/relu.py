"""One ReLU unit with Gaussian inputs: its true error, and the length at which it is least."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from waterfill.errors import UsageError
from waterfill.theory.checks import Array, finite, number, whole
from waterfill.theory.checks import covariance as as_covariance
from waterfill.theory.checks import root as as_root

ROUNDING = 1e-12
"""A cosine may be above one by this much."""

_BATCH = 1 << 16  # samples drawn at a time
_WEDGE = [(-1) ** (k + 1) * 2 * k / math.factorial(2 * k + 1) for k in range(1, 10)]


# The arc-cosine kernel


def arc_cosine(rho: ArrayLike) -> Array:
    """`J(rho) = (sqrt(1 - rho^2) + rho (pi - arccos rho)) / pi`, so that `E relu(u) relu(v) = n(u) n(v) J(rho) / 2`.

    For a centred Gaussian pair with the standard deviations n(u), n(v) and the correlation rho. J rises from J(-1) = 0
    over J(0) = 1 / pi to J(1) = 1, and `J(rho) = rho + J(-rho)`: it is never below rho. With `phi = arccos(-rho)` it is
    `(sin phi - phi cos phi) / pi`, whose cancellation near rho = -1 a power series avoids; the relative error is a few
    units of the last place everywhere.

    Args:
        rho: correlations in [-1, 1], any shape; beyond by at most 1e-12 they are taken for rounding.

    Returns:
        J in [0, 1], the same shape.

    Raises:
        UsageError: a correlation is outside of [-1, 1] or not finite.

    Source:
        Theorem 4 of the paper, appendix; Cho and Saul 2009 (the kernel of degree one).

    Example:
        >>> arc_cosine([-1.0, 1.0]).tolist(), round(float(arc_cosine(0.0)) * np.pi, 12)
        ([0.0, 1.0], 1.0)
    """
    return _wedge(np.arccos(-_correlation(rho))) / np.pi


def _wedge(angle: Array) -> Array:
    """`sin angle - angle cos angle` for angles in [0, pi], about `angle^3 / 3` for small ones."""
    square = angle * angle
    series = angle * square * np.polynomial.polynomial.polyval(square, _WEDGE)
    return np.where(angle < 1, series, np.sin(angle) - angle * np.cos(angle))


def _correlation(rho: ArrayLike, low: float = -1.0) -> Array:
    """Correlations in [low, 1], rounding clipped."""
    values = finite("rho", rho)
    if values.size and (values.min() < low - ROUNDING or values.max() > 1 + ROUNDING):
        worst = values.min() if values.min() < low - ROUNDING else values.max()
        raise UsageError(
            f"rho has the entry {worst:.17g}; expected cosines in [{low:g}, 1]. Divide w^T Sigma w_hat by both lengths."
        )
    return np.clip(values, low, 1.0)


def hermite_coefficients(terms: int) -> Array:
    """Squared Hermite coefficients `sigma_p^2` of the ReLU, `p = 0 ... terms - 1`.

    `1 / (2 pi)`, `1/4`, `((p - 3)!!)^2 / (2 pi p!)` for even `p >= 2`, and zero for odd `p >= 3`; from the ratio
    `sigma_(p+2)^2 / sigma_p^2 = (p - 1)^2 / ((p + 1) (p + 2))`, so nothing overflows. The coefficient printed in the
    paper is a different one, with which the series would not sum to `E relu(u) relu(v)`.

    Args:
        terms: how many, at least 1.

    Returns:
        The coefficients [terms] of the normalised probabilists' polynomials, squared; all of them add up to 1/2.

    Raises:
        UsageError: terms is not a whole number of at least 1.

    Source:
        Theorem 4 of the paper, appendix, with the coefficient corrected.

    Example:
        >>> (2 * np.pi * hermite_coefficients(7)[[0, 2, 4, 6]] * [1, 2, 24, 720]).round(9).tolist()
        [1.0, 1.0, 1.0, 9.0]
    """
    coefficients = np.zeros(whole("terms", terms, 1))
    p = np.arange(0.0, len(coefficients) - 2, 2.0)
    ratios = (p - 1) ** 2 / ((p + 1) * (p + 2))
    coefficients[::2] = np.cumprod(np.concatenate([[1 / (2 * np.pi)], ratios]))
    coefficients[1:2] = 1 / 4
    return coefficients


def hermite_series(rho: ArrayLike, terms: int) -> Array:
    """`sum_(p < terms) sigma_p^2 rho^p`, which converges to `J(rho) / 2 = E relu(u) relu(v)` for unit variances.

    Args:
        rho: correlations in [-1, 1], any shape.
        terms: how many, at least 1. `hermite_remainder` bounds what is left.

    Returns:
        The sums, in the shape of rho.

    Raises:
        UsageError: a correlation is outside of [-1, 1], or terms is not a whole number of at least 1.

    Source:
        Theorem 4 of the paper, appendix.

    Example:
        >>> abs(float(hermite_series(0.5, 40) - arc_cosine(0.5) / 2)) < 1e-15
        True
    """
    return np.asarray(np.polynomial.polynomial.polyval(_correlation(rho), hermite_coefficients(terms)))


def hermite_remainder(terms: int) -> float:
    """An upper bound on `sum_(p >= terms) sigma_p^2`, and so on what the series lacks at any `|rho| <= 1`.

    Proof: for `p = 2k >= 4` is `sigma_p^2 = C(2k, k) 4^-k / (2 pi (2k - 1)^2) <= (k - 1/2)^(-5/2) / (8 pi^(3/2))`,
    convex in k, so the sum from `K = ceil(terms / 2)` is at most the integral from `K - 1/2`, which is
    `(K - 1)^(-3/2) / (12 pi^(3/2))`. One or two terms leave exactly 1/2 minus their sum.

    Args:
        terms: how many the series has, at least 1.

    Returns:
        The bound; it falls like `terms^(-3/2)`, as the remainder at rho = 1 does.

    Raises:
        UsageError: terms is not a whole number of at least 1.

    Source:
        Theorem 4 of the paper, appendix (the series).

    Example:
        >>> left = 1 / 2 - float(hermite_series(1.0, 100))
        >>> 0.9 < left / hermite_remainder(100) < 1
        True
    """
    if whole("terms", terms, 1) < 3:
        return 0.5 - float(hermite_coefficients(terms).sum())
    return float((math.ceil(terms / 2) - 1) ** -1.5 / (12 * np.pi**1.5))


# The error of one unit


def sigma_cosine(w: ArrayLike, w_hat: ArrayLike, covariance: ArrayLike) -> float:
    """`rho = w^T Sigma w_hat / (n(w) n(w_hat))`, the correlation of the two inputs of the ReLU; `n(v)^2 = v^T Sigma v`.

    Args:
        w: weights [m].
        w_hat: compressed weights [m].
        covariance: `Sigma` [m, m] of the inputs, or their variances [m].

    Returns:
        A number in [-1, 1].

    Raises:
        UsageError: shapes differ, the covariance is none, or one of the vectors has no length under it.

    Source:
        Theorem 4 of the paper.

    Example:
        >>> sigma_cosine([3.0, 1.0], [3.0, 0.0], [1.0, 7.0])
        0.75
    """
    original, compressed, root = _unit(w, w_hat, covariance)
    u, v = original @ root.T, compressed @ root.T
    lengths = float(np.linalg.norm(u) * np.linalg.norm(v))
    if not lengths:
        raise UsageError("w or w_hat has the length zero under the covariance; expected vectors that have a direction.")
    return float(np.clip(np.vdot(u, v) / lengths, -1.0, 1.0))


def relu_error(w: ArrayLike, w_hat: ArrayLike, covariance: ArrayLike) -> float:
    """`E (relu(w^T x) - relu(w_hat^T x))^2` for `x ~ N(0, Sigma)`, in closed form.

    `n(w)^2 / 2 + n(w_hat)^2 / 2 - n(w) n(w_hat) J(rho)`. Because of `J(rho) = rho + J(-rho)` this is
    `d^2 / 2 - n(w) n(w_hat) J(-rho)` with the objective `d^2 = (w - w_hat)^T Sigma (w - w_hat)` of rule 2, which is how
    it is computed: between a quarter and a half of the objective always, so nothing cancels near `w_hat = w`.

    Args:
        w: weights [m].
        w_hat: compressed weights [m].
        covariance: `Sigma` [m, m] of the inputs, or their variances [m].

    Returns:
        The mean squared error of the output; zero exactly where the objective is.

    Raises:
        UsageError: shapes differ, the covariance is none, or an argument is not finite.

    Source:
        Theorem 4 of the paper, with its proof corrected: no vector needs to have unit length.

    Example:
        >>> relu_error([3.0, 1.0], [0.0, 0.0], [1.0, 2.0])  # half of the power
        5.5
        >>> relu_error([2.0], [-1.0], [1.0])  # never active together
        2.5
    """
    original, compressed, root = _unit(w, w_hat, covariance)
    return float(measure(original, compressed, root)[1])


def measure(w: Array, w_hat: Array, root: Array) -> tuple[Array, Array]:
    """Objective and true error of every row of `w_hat` [..., m], with `Sigma = root^T root`."""
    objective = np.square((w - w_hat) @ root.T).sum(axis=-1)
    u, v = w @ root.T, w_hat @ root.T
    n, lengths = np.linalg.norm(u), np.linalg.norm(v, axis=-1)
    a, b = u / (n or 1.0), v / np.where(lengths > 0, lengths, 1.0)[..., None]
    # Kahan's angle: exact for nearly parallel vectors, where the arc cosine loses half of the digits.
    angle = 2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))
    error = objective / 2 - n * lengths * _wedge(angle) / np.pi
    # Of vectors that Sigma all but annihilates the angle is rounding, but the error is never below a quarter.
    return objective, np.maximum(error, objective / 4)


def simulate_relu_error(
    w: ArrayLike, w_hat: ArrayLike, covariance: ArrayLike, samples: int, seed: int
) -> tuple[float, float]:
    """The same error as `relu_error` by drawing inputs, in batches.

    Args:
        w: weights [m].
        w_hat: compressed weights [m].
        covariance: `Sigma` [m, m] of the inputs, or their variances [m].
        samples: inputs to draw, at least 2.
        seed: of the generator.

    Returns:
        The mean squared error of the output and the standard error of that mean.

    Raises:
        UsageError: shapes differ, the covariance is none, or there are too few samples.

    Source:
        Theorem 4 of the paper; the definition of the distortion is Eq. 2.

    Example:
        >>> mean, standard_error = simulate_relu_error([3.0, 1.0], [3.0, 0.0], [1.0, 2.0], 10_000, seed=0)
        >>> abs(mean - relu_error([3.0, 1.0], [3.0, 0.0], [1.0, 2.0])) < 4 * standard_error
        True
    """
    original, compressed, root = _unit(w, w_hat, covariance)
    count, rng = whole("samples", samples, 2), np.random.default_rng(whole("seed", seed, 0))
    total = squares = 0.0
    for start in range(0, count, _BATCH):
        x = rng.standard_normal((min(_BATCH, count - start), len(root))) @ root
        errors = np.square(np.maximum(x @ original, 0) - np.maximum(x @ compressed, 0))
        total += float(errors.sum())
        squares += float(np.square(errors).sum())
    mean = total / count
    return mean, math.sqrt(max(0.0, squares / count - mean * mean) / (count - 1))


# The length that Corollary 2 misses


def best_scale(rho: ArrayLike) -> Array:
    """`J(rho) / rho`, the factor for all weights of a `w_hat` that obeys rule 1, to lower the true error.

    Rule 1 gives `w_hat` the length `n(w) rho`; the true error of a direction is least at `n(w) J(rho)`, which is
    longer, since the outputs of two ReLUs are more alike than their inputs. The errors before and after are
    `projection_error` and `least_error`. Free centroids can be scaled, so Corollary 2 is not exact; weights that
    pruning leaves as they are cannot.

    Args:
        rho: `sigma_cosine` of w and w_hat, in (0, 1], any shape.

    Returns:
        Factors of at least 1, the same shape.

    Raises:
        UsageError: a cosine is outside of (0, 1].

    Source:
        Theorem 4 and Corollary 2 of the paper, corrected.

    Example:
        >>> best_scale([0.5, 0.9, 1.0]).round(4).tolist()
        [1.218, 1.0106, 1.0]
    """
    cosines = _correlation(rho, low=0.0)
    if not cosines.all():
        raise UsageError("rho has an entry that is zero; expected cosines in (0, 1]. A w_hat of zeros has no scale.")
    return arc_cosine(cosines) / cosines


def projection_error(rho: ArrayLike, power: float) -> Array:
    """True error `n(w)^2 / 2 (1 + rho^2 - 2 rho J(rho))` of a `w_hat` that obeys rule 1: its length is `n(w) rho`.

    It falls as rho rises, so among compressors that obey rule 1 the smallest objective `n(w)^2 (1 - rho^2)` has the
    smallest error: that is Theorem 4.

    Args:
        rho: `sigma_cosine` of w and w_hat, in [0, 1], any shape.
        power: `n(w)^2 = w^T Sigma w`.

    Returns:
        Mean squared errors of the output, the same shape.

    Raises:
        UsageError: a cosine is outside of [0, 1], or the power is negative.

    Source:
        Theorem 4 of the paper.

    Example:
        >>> projection_error([0.0, 1.0], 2.0).tolist()
        [1.0, 0.0]
    """
    cosines = _correlation(rho, low=0.0)
    return number("power", power) / 2 * ((1 - cosines) * (1 + cosines) - 2 * cosines * arc_cosine(-cosines))


def least_error(rho: ArrayLike, power: float) -> Array:
    """True error `n(w)^2 / 2 (1 - J(rho)^2)` of the best `w_hat` in its direction: its length is `n(w) J(rho)`.

    Below `projection_error` by `n(w)^2 / 2 J(-rho)^2`, where `J(-rho)` is about `(2 (1 - rho))^(3/2) / (3 pi)`: little
    for a fine quantization, a tenth of all at `rho = 0`.

    Args:
        rho: `sigma_cosine` of w and w_hat, in [-1, 1], any shape.
        power: `n(w)^2 = w^T Sigma w`.

    Returns:
        Mean squared errors of the output, the same shape.

    Raises:
        UsageError: a cosine is outside of [-1, 1], or the power is negative.

    Source:
        Theorem 4 and Corollary 2 of the paper, corrected.

    Example:
        >>> least_error([-1.0, 1.0], 2.0).tolist(), round(float(least_error(0.0, 2.0)), 4)
        ([1.0, 0.0], 0.8987)
    """
    cosines = _correlation(rho)
    # 1 - J = 1 - rho - J(-rho) keeps its digits near rho = 1.
    return number("power", power) / 2 * (1 - cosines - arc_cosine(-cosines)) * (1 + arc_cosine(cosines))


# Arguments


def unit_weights(name: str, values: ArrayLike, count: int) -> Array:
    """A vector of as many weights as the covariance is for."""
    array = finite(name, values)
    if array.shape != (count,) or not count:
        raise UsageError(
            f"{name} has the shape {list(array.shape)}, the covariance is for {count} weights; "
            f"expected [m] and [m, m] with m of at least 1."
        )
    return array


def _unit(w: ArrayLike, w_hat: ArrayLike, covariance: ArrayLike) -> tuple[Array, Array, Array]:
    """Both weight vectors and the root of the covariance."""
    sigma = as_covariance("covariance", covariance)
    return unit_weights("w", w, len(sigma)), unit_weights("w_hat", w_hat, len(sigma)), as_root(sigma)
