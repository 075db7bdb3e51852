"""Artificial weights whose rate-distortion function is known exactly: how near files come to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from measure import at_rate, limit, measured, power, say
from waterfill.importance.factored import KroneckerForm
from waterfill.quantize import Feedback, Scalar, Trellis
from waterfill.records import Layout, Weight
from waterfill.theory.blahut_arimoto import generalized_gaussian_density, rate_at_distortion

WIDTH = 1024
LAPLACE = generalized_gaussian_density(1.0)

GAUSSIAN_BARS = {1: (0.233, 0.253, 0.255), 8: (0.078,) * 3, 64: (0.048,) * 3, 256: (0.035,) * 3, 2048: (0.026,) * 3}
LAPLACE_BARS = {256: (0.025, 0.038, 0.038, 0.038)}
KNOWN_BAR = 0.053
CORRELATED_BARS = {256: {1.5: 0.070, 2.0: 0.055, 3.0: 0.048}}
CORRELATION = 0.9


def independent(values: int, states: Sequence[int]) -> list[dict[str, Any]]:
    """Independent weights of one distribution at fixed water levels."""
    rng = np.random.default_rng(0)
    rows = gaussian(rng, values, states, (0.265, 0.0625, 0.0039))
    laplace = rng.laplace(size=(values // WIDTH, WIDTH)) / np.sqrt(2)
    exact: Callable[[float], float] = lambda d: rate_at_distortion(LAPLACE, d).rate  # noqa: E731
    return rows + _distribution("Laplace", laplace, exact, (0.46, 0.235, 0.06, 0.0035), states)


def gaussian(
    rng: np.random.Generator, values: int, states: Sequence[int], levels: Sequence[float]
) -> list[dict[str, Any]]:
    """Independent Gaussian weights at some water levels."""
    drawn = rng.normal(size=(values // WIDTH, WIDTH))
    return _distribution("Gaussian", drawn, lambda d: -0.5 * float(np.log2(d)), levels, states)


def _distribution(
    name: str,
    values: NDArray[np.float64],
    rate_of: Callable[[float], float],
    levels: Sequence[float],
    states: Sequence[int],
) -> list[dict[str, Any]]:
    weight, rows = _weight(values), []
    bars = GAUSSIAN_BARS if name == "Gaussian" else LAPLACE_BARS
    for place, level in enumerate(levels):
        for count in (1, *states):
            found = measured(weight, Trellis(count) if count > 1 else Scalar(), None, level)
            gap = found.rate - rate_of(found.distortion / values.size / power(weight))
            paths = found.item.spread.trellis
            rows.append(
                {
                    "source": name,
                    "states": count,
                    "bit/weight": round(found.rate, 3),
                    "gap": round(gap, 4),
                    "bar": bars[count][place] if count in bars else "",
                    "zero in both": bool(paths and paths.zero),
                    "search, Mweight/s CPU": round(values.size / found.seconds / 1e6, 2),
                }
            )
            say(f"independent {rows[-1]}")
    return rows


def known_importance(values: int, states: int) -> list[dict[str, Any]]:
    """Gaussian weights; importance that factors over rows and columns and spans some decades."""
    rows = []
    for decades in (2, 3, 4):
        rng = np.random.default_rng(decades)
        shape = values // WIDTH, WIDTH
        outer, inner = (10 ** rng.uniform(-decades / 4, decades / 4, n) for n in shape)
        form = KroneckerForm(outer, inner[None])
        weight = _weight(rng.normal(size=shape))
        for rate in (0.7, 1.5, 3.0, 4.6):
            found = at_rate(weight, Trellis(states), form, rate)
            gap = found.rate - limit(weight, form, found.distortion)
            row = {"decades": decades, "bit/weight": round(found.rate, 3), "gap": round(gap, 4), "bar": KNOWN_BAR}
            rows.append(row)
            say(f"known {row}")
    return rows


def autoregressive(outputs: int, inputs: int, states: Sequence[int]) -> list[dict[str, Any]]:
    """Gaussian weights of a layer whose inputs are an autoregressive process."""
    places = np.arange(inputs)
    form = KroneckerForm(np.ones(outputs), (CORRELATION ** np.abs(places[:, None] - places))[None])
    weight = _weight(np.random.default_rng(0).normal(size=(outputs, inputs)))
    rows = []
    for rate in (1.5, 2.0, 3.0):
        for count in (1, *states):
            found = at_rate(weight, Feedback(count), form, rate)
            gap = found.rate - limit(weight, form, found.distortion)
            rows.append(
                {
                    "asked bit/weight": rate,
                    "states": count,
                    "bit/weight": round(found.rate, 3),
                    "gap": round(gap, 4),
                    "bar": CORRELATED_BARS.get(count, {}).get(rate, ""),
                    "search, Mweight/s CPU": round(weight.matrix.size / found.seconds / 1e6, 2),
                }
            )
            say(f"autoregressive {rows[-1]}")
    return rows


def _weight(values: NDArray[np.float64]) -> Weight:
    return Weight("w", values.astype(np.float32), Layout(values.shape))
