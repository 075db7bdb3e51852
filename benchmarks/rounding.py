"""Other ways to round that the limits are compared with: to the nearest level, and with feedback but one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from waterfill.importance.factored import KroneckerForm
from waterfill.quantize import spread as spreads
from waterfill.quantize.scalar import finish
from waterfill.records import Quantized, Uniform, Weight


@dataclass(frozen=True)
class Nearest:
    """Round to the nearest multiple of one step, and code that."""

    def quantize(self, weight: Weight, form: KroneckerForm, water_level: float) -> Quantized:
        rule = _rule(form, water_level)
        return _finished(weight, form, np.rint(weight.matrix / np.float32(2.0 ** (rule.step / 64))), rule)


@dataclass(frozen=True)
class OneStep:
    """The same with column feedback: what is lost in a column is made up for in those that are rounded after it.

    Columns in their order, as in GPTQ without sorting. With `A = U U^T`, U upper triangular, the cost of the errors E
    is `|E U|^2`, and column j minimises its part when it is rounded from `W_j + sum_{i<j} E_i U_ij / U_jj`.

    Source: Frantar et al. 2023, algorithm 1, which has the inverse of A updated instead.
    """

    def quantize(self, weight: Weight, form: KroneckerForm, water_level: float) -> Quantized:
        rule = _rule(form, water_level)
        step = 2.0 ** (rule.step / 64)
        rows = np.split(weight.matrix.astype(np.float64), len(form.columns))
        symbols = [fed_back(part, factor, step) for part, factor in zip(rows, form.columns, strict=True)]
        return _finished(weight, form, np.concatenate(symbols), rule)


def fed_back(matrix: NDArray[np.float64], factor: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Symbols [out, in] of columns rounded one after another to multiples of a step.

    Args:
        matrix: [out, in].
        factor: A [in, in], positive definite.
        step: of all columns.
    """
    upper = np.linalg.cholesky(factor[::-1, ::-1])[::-1, ::-1]
    errors, symbols = np.zeros((len(factor), len(matrix))), np.empty_like(matrix)
    for j in range(len(factor)):
        target = matrix[:, j] + (upper[:j, j] / upper[j, j]) @ errors[:j]
        symbols[:, j] = np.rint(target / step)
        errors[j] = matrix[:, j] - step * symbols[:, j]
    return symbols


def updating(row: NDArray[np.float64], factor: NDArray[np.float64], step: float) -> list[float]:
    """The same for one row as the papers have it: round a weight, and move all others to where that costs least."""
    row, left, symbols = row.copy(), np.arange(len(row)), []
    while left.size:
        first, rest = left[0], left[1:]
        inverse = np.linalg.inv(factor[np.ix_(left, left)])
        symbols.append(float(np.rint(row[first] / step)))
        row[rest] -= (row[first] - step * symbols[-1]) / inverse[0, 0] * inverse[1:, 0]
        left = rest
    return symbols


def check() -> None:
    """See that feedback is what the papers describe."""
    rng = np.random.default_rng(0)
    matrix, x = rng.normal(size=(5, 12)), rng.normal(size=(12, 40))
    factor = x @ x.T
    naive = [updating(row, factor, 0.3) for row in matrix]
    if fed_back(matrix, factor, 0.3).tolist() != naive:
        raise ValueError("Feedback by a triangular factor differs from rounding with updates; expected the same.")


def _rule(form: KroneckerForm, water_level: float) -> Uniform:
    """One step for all, whose square over 12 costs the water level where errors are independent."""
    usual = float(form.diagonal().mean(dtype=np.float64))
    return Uniform(round(32 * float(np.log2(12 * water_level / usual))))


def _finished(weight: Weight, form: KroneckerForm, symbols: NDArray[np.floating], rule: Uniform) -> Quantized:
    whole = symbols.astype(np.int32)
    return finish(weight, form, whole, rule, spreads.fit(whole, weight.layout))
