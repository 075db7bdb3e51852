"""The loss of filter, feedback and uniform steps to reverse water-filling, for every positive semidefinite A.

Rows W of independent weights with variances V = diag(v) cost `(W - W_hat) A (W - W_hat)^T`. With `A' = A + kappa V^-1`
and `A' = U U^T`, U upper triangular, the filtered rows `W A A'^-1` are coded column by column with steps proportional
to `1 / U_jj`, the errors of earlier columns fed back. Steps with subtractive dither, each column coded with the entropy
of its symbols, take at most `1/2 log2(2 pi e / 12)` bits a weight more than `universal_rate` and have exactly
`universal_distortion`: docs/theory.md has the proof.

Source: WaterSIC (Lifar, Savkin, Ordentlich and Polyanskiy 2026, arXiv 2603.04956) for steps and high rate; Zamir and
Feder 1992, "On universal quantization by randomized uniform/lattice quantizers", for dither.
"""

from __future__ import annotations

from math import e, log2, pi

import numpy as np
from numpy.typing import ArrayLike

from waterfill.errors import UsageError
from waterfill.linear_algebra import factor_in_place
from waterfill.theory.checks import Array, covariance, not_negative, number
from waterfill.theory.universal_code import codebook_power


def step_loss(granular_gain: float = 0.0) -> float:
    """Find the loss of cells to balls: `1/2 log2(2 pi e / 12) - g` bits a weight, with uniform steps (g = 0) .2546.

    A lattice or trellis of cells with the second moment `G Delta^2` a weight has `g = -1/2 log2(12 G)`.

    Args:
        granular_gain: g in bits, at most 1/2 log2(2 pi e / 12).

    Example:
        >>> round(step_loss(), 4), round(step_loss(granular_gain=0.208), 4)
        (0.2546, 0.0466)
    """
    return log2(2 * pi * e / 12) / 2 - granular_gain


def feedback_factor(columns: ArrayLike) -> Array:
    """Factor a form over columns from the last to the first: U, upper triangular, with `A = U U^T`.

    Args:
        columns: A, positive definite [n, n].

    Raises:
        UsageError: A is not positive definite.

    Example:
        >>> feedback_factor([[10.0, 2.0], [2.0, 4.0]]).tolist()
        [[3.0, 1.0], [0.0, 2.0]]
    """
    factor = covariance("columns", columns).copy()
    if not factor_in_place(factor):
        raise UsageError("columns is not positive definite; expected a form with a price for every error. Damp it.")
    return factor.T


def unfiltered_rates(columns: ArrayLike, variances: ArrayLike, level: float, granular_gain: float = 0.0) -> Array:
    """Bound the bits of every column without a filter: `1/2 log2((v_j + theta (A^-1)_jj) U_jj^2 / theta) + loss`.

    The distortion is exactly `n theta`. The sum exceeds reverse water-filling by the loss of the steps at least and, at
    levels up to the smallest eigenvalue `g_min` of `V^(1/2) A V^(1/2)`, by `1/2 log2(1 + theta / g_min)` a weight more
    at most.

    Args:
        columns: A, positive definite [n, n].
        variances: v, [n].
        level: theta, above zero; steps are `sqrt(12 theta) / U_jj`.
        granular_gain: of the quantizer, bits.
    """
    factor = feedback_factor(columns)
    inverse = np.linalg.inv(factor)
    power = not_negative("variances", variances) + number("level", level, above=0.0) * np.square(inverse).sum(axis=0)
    return np.asarray(np.log2(power * np.square(np.diag(factor)) / level) / 2 + step_loss(granular_gain))


def feedback_rates(columns: ArrayLike, variances: ArrayLike, noise: float, granular_gain: float = 0.0) -> Array:
    """Bound the bits of every column behind the filter: `1/2 log2(E W_hat_j^2 U_jj^2 / (s kappa)) + loss`.

    Steps are `sqrt(12 s kappa) / U_jj` with `s = codebook_power`, and
    `E W_hat^T W_hat = A'^-1 A V A A'^-1 + s kappa A'^-1`. The sum is at most `universal_rate` and n times the loss of
    the steps, for every A and kappa.

    Args:
        columns: A, positive semidefinite [n, n].
        variances: v, above zero [n].
        noise: kappa, above zero; the distortion is `universal_distortion`.
        granular_gain: of the quantizer, bits.
    """
    form, v = covariance("columns", columns), not_negative("variances", variances)
    power = codebook_power(np.linalg.eigvalsh(np.sqrt(v)[:, None] * form * np.sqrt(v)).clip(0), noise)
    filtered = form + np.diag(noise / v)
    wiener = np.linalg.solve(filtered, form)
    moments = (wiener * v) @ wiener.T + power * noise * np.linalg.inv(filtered)
    factor = feedback_factor(filtered)
    squares = np.diag(moments) * np.square(np.diag(factor))
    return np.asarray(np.log2(squares / (power * noise)) / 2 + step_loss(granular_gain))
