"""The theory against referees that do not know it: minimisers, samples, Blahut-Arimoto, exhaustive search."""

from __future__ import annotations

import itertools
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from math import e, log, log2, pi
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

import networks
import pictures
import relu_units
from results import Section, write_page
from waterfill.quantize import Scalar
from waterfill.records import Layout, Weight
from waterfill.theory import GaussianTestChannel, linear_lower_bound, linear_rate_distortion, weighted_waterfilling
from waterfill.theory.blahut_arimoto import (
    RatePoint,
    generalized_gaussian_density,
    importance_limits,
    rate_at_distortion,
)
from waterfill.theory.sources import unit_entropy
from waterfill.theory.waterfilling import Rectangles

Array = NDArray[np.float64]
Row = dict[str, Any]

FIGURE_6 = np.array([3.0, 2.0, 1.0])
SHAPES = (0.5, 0.7, 1.0, 1.5, 2.0)
RATES = (0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
ACCURACY = 4e-5  # bits between the nodes of `rate_at_distortion` and a density


# Linear models


def figure_6() -> Section:
    rows = []
    for distortion in (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 14.0):
        levels = weighted_waterfilling(FIGURE_6, FIGURE_6, distortion)
        bound = linear_lower_bound(FIGURE_6, FIGURE_6, distortion)
        exact = linear_rate_distortion(FIGURE_6, FIGURE_6, distortion)
        depths = {f"D_{i + 1}": float(depth) for i, depth in enumerate(levels.per_weight_distortion)}
        rates = {"Theorem 2, bit": bound, "exact, bit": exact, "minimiser, bit": _least_rate(FIGURE_6**2, distortion)}
        differences = {"Theorem 2 - exact": bound - exact, "minimiser - exact": rates["minimiser, bit"] - exact}
        rows.append({"D": distortion, "mu": levels.mu, **depths, **rates, **differences})
    shown = {d: weighted_waterfilling(FIGURE_6, FIGURE_6, d) for d in (3.0, 9.0, 14.0)}
    grid = np.linspace(0.05, 15, 600)
    picture = pictures.fill_levels(
        FIGURE_6.tolist(),
        FIGURE_6.tolist(),
        {d: (found.mu, found.per_weight_distortion.tolist()) for d, found in shown.items()},
        (grid.tolist(), [linear_rate_distortion(FIGURE_6, FIGURE_6, d) for d in grid]),
    )
    text = (
        "`Sigma_W = Sigma_X = diag(3, 2, 1)`. The minimiser is SLSQP on `sum t_i / (2 ln 2)` over "
        "`D_i = E W_i^2 exp(-t_i)`, `t_i >= 0`; it knows nothing of water."
    )
    return Section("Weighted water-filling: the example of Figure 6", text, rows, picture)


def _least_rate(volumes: Array, distortion: float) -> float:
    """The least `sum 1/2 log2(E W_i^2 / D_i)` under the distortion, by a general minimiser."""
    found = minimize(
        lambda t: t.sum() / (2 * log(2)),
        np.full(volumes.size, max(0.0, log(volumes.sum() / distortion))),
        bounds=[(0, None)] * volumes.size,
        constraints={"type": "ineq", "fun": lambda t: distortion - volumes @ np.exp(-t)},
        options={"ftol": 1e-13, "maxiter": 500},
    )
    return float(found.fun)


def _pair(count: int, freedom: int) -> tuple[Array, Array]:
    """A random covariance of weights in the basis of the inputs, and the variances of the inputs."""
    a, b = np.random.default_rng(0).normal(size=(2, count, freedom))
    values, vectors = np.linalg.eigh(b @ b.T / count)
    return vectors.T @ (a @ a.T / count) @ vectors, values


def channel() -> Section:
    correlated, inputs = _pair(8, 16)
    total = float(np.diag(correlated) @ inputs)
    cases = [("Figure 6", FIGURE_6, FIGURE_6, d) for d in (1.0, 3.0, 6.0, 9.0, 13.0)]
    cases += [("random 8 x 8", correlated, inputs, share * total) for share in (0.01, 0.1, 0.4, 0.8)]
    rows = []
    for seed, (name, w, x, distortion) in enumerate(cases):
        found = GaussianTestChannel(w, x, distortion).monte_carlo(100_000, seed)
        exact = linear_rate_distortion(w, x, distortion)
        rows.append(
            {
                "case": name,
                "D": distortion,
                "R(D), bit": exact,
                "sampled rate": found.rate,
                "its error": found.rate_error,
                "z of rate": (found.rate - exact) / found.rate_error,
                "from covariances": _regression_rate(
                    *GaussianTestChannel(w, x, distortion).sample(100_000, seed + 100)
                ),
                "sampled D": found.distortion,
                "error of D": found.distortion_error,
                "z of D": (found.distortion - distortion) / found.distortion_error,
            }
        )
    worst = max(abs(row[key]) for row in rows for key in ("z of rate", "z of D"))
    text = (
        "100,000 draws of `(W, W_hat)`: the means of `log2 p(w | w_hat) / p(w)` and of the weighted error, and their "
        f"standard errors; the largest |z| is {worst:.2f}. *From covariances* is the mutual information of Gaussians "
        "with the sample covariances of other draws, which knows nothing of the channel."
    )
    return Section("The test channel of Algorithm 1, branches in the right order", text, rows)


def _regression_rate(w: Array, w_hat: Array) -> float:
    """`1/2 log2 det Cov(w) / det Cov(w | w_hat)` of the samples, the second by regression."""
    rest = w - w_hat @ np.linalg.lstsq(w_hat, w, rcond=1e-9)[0]
    return float((np.linalg.slogdet(w.T @ w)[1] - np.linalg.slogdet(rest.T @ rest)[1]) / (2 * log(2)))


def correlated_weights() -> Section:
    rows = []
    for freedom in (80, 40):
        w, x = _pair(40, freedom)
        for percent in (0.1, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0):
            distortion = percent / 100 * float(np.diag(w) @ x)
            bound, exact = linear_lower_bound(w, x, distortion), linear_rate_distortion(w, x, distortion)
            differences = {"Theorem 2, bit": bound, "exact, bit": exact, "exact - Theorem 2": exact - bound}
            rows.append({"degrees of freedom": freedom, "D, % of the largest": percent, **differences})
    text = (
        "Random pairs of 40 x 40 covariances (Wishart; fewer degrees of freedom, more correlation) in the basis of the "
        "inputs; bits for all 40 weights. Differences like 1e-14 are rounding."
    )
    return Section("Theorem 2 with correlated weights", text, rows)


# Blahut-Arimoto


def shannon_distortion(shape: float, rate: float) -> float:
    """The distortion at which the Shannon lower bound of a generalised Gaussian of unit variance is a rate."""
    return float(2 ** (2 * (unit_entropy(shape) - rate)) / (2 * pi * e))


def _point(case: tuple[float, float]) -> RatePoint:
    return rate_at_distortion(generalized_gaussian_density(case[0]), shannon_distortion(*case))


@cache
def points() -> dict[tuple[float, float], RatePoint]:
    """R(D) of every shape where its Shannon lower bound is every rate; the slow ones first."""
    cases = sorted(itertools.product(SHAPES, RATES), key=lambda case: (case[0], -case[1]))
    with ProcessPoolExecutor(2) as pool:
        return dict(zip(cases, pool.map(_point, cases), strict=True))


def _above_shannon(shape: float, point: RatePoint) -> float:
    """R(D) minus the Shannon lower bound at the same distortion, bit."""
    return point.rate - unit_entropy(shape) + log2(2 * pi * e * point.distortion) / 2


def closed_forms() -> Section:
    rows = []
    for name, shape in (("Gaussian", 2.0), ("Laplace", 1.0)):
        for rate in RATES:
            point = points()[shape, rate]
            above = _above_shannon(shape, point)
            rows.append(
                {
                    "source": name,
                    "D": point.distortion,
                    "Shannon lower bound, bit": point.rate - above,
                    "computed, bit": point.rate,
                    "between its bounds": point.rate - point.lower_bound,
                    "above the Shannon bound": above,
                }
            )
    text = (
        "Variance 1. The Shannon lower bound of a Gaussian is its R(D), so there the last column is the error of the "
        "computation; for Laplace it is what the bound lacks. Nodes in place of the density cost up to "
        f"{ACCURACY:g} bit."
    )
    return Section("Blahut-Arimoto against closed forms", text, rows)


def looseness() -> Section:
    above = {shape: [_above_shannon(shape, points()[shape, rate]) for rate in RATES] for shape in SHAPES}
    rows = [
        {"shape": shape, **{f"{rate:g} bit": abs(round(value, 4)) for rate, value in zip(RATES, values, strict=True)}}
        for shape, values in above.items()
    ]
    names = {0.5: "shape 0.5", 0.7: "shape 0.7", 1.0: "shape 1 (Laplace)", 1.5: "shape 1.5"}
    picture = pictures.looseness({name: (RATES, above[shape]) for shape, name in names.items()}, ACCURACY)
    text = (
        "R(D) minus the Shannon lower bound, bit per weight, where that bound is the rate in the head of the column; "
        "generalised Gaussians of variance 1. Shape 2 is Gaussian, and there the bound is exact. The computation is "
        f"accurate to {ACCURACY:g} bit."
    )
    return Section("How loose the printed limit is at low rates", text, rows, picture)


def encoder_only() -> Section:
    rows = []
    for name, importance, shares in _importances():
        for rate in (1.0, 2.0):
            spectrum = _levels(importance, shares, rate)
            limits = importance_limits(generalized_gaussian_density(2.0), importance, shares, spectrum)
            rows.append(
                {
                    "importance": name,
                    "values": importance.size,
                    "D / E I": spectrum / float(shares @ importance),
                    "both know, bit": round(limits.both.rate, 4),
                    "only the encoder knows, bit": round(limits.encoder_only.rate, 4),
                    "its dual bound": round(limits.encoder_only.lower_bound, 4),
                    "ignored, bit": round(log2(float(shares @ importance) / spectrum) / 2, 4),
                }
            )
    text = (
        "Gaussian weights of variance 1 with an independent importance that spans three decades: lognormal with four "
        "standard deviations to three decades (on a grid of standard deviations from -3 to 3), and uniform in the "
        "logarithm. D is where weighted water-filling needs 1 and 2 bit."
    )
    return Section("Importance that only the encoder knows", text, rows)


def _importances() -> list[tuple[str, Array, Array]]:
    found = []
    for step in (0.5, 1 / 3):
        z = np.arange(-round(3 / step), round(3 / step) + 1) * step
        shares = np.exp(-z * z / 2)
        found.append(("lognormal", np.exp(log(1000) / 4 * z), shares / shares.sum()))
    return [*found, ("log-uniform", 1000.0 ** ((np.arange(16) + 0.5) / 16), np.full(16, 1 / 16))]


def _levels(importance: Array, shares: Array, rate: float) -> float:
    """The distortion at which Gaussian weights of unit variance need a rate, importance known: level by bisection."""
    low, high = 1e-12, float(importance.max())
    for _ in range(100):
        level = (low * high) ** 0.5
        spent = float(shares @ np.maximum(0, np.log2(importance / level) / 2))
        low, high = (level, high) if spent > rate else (low, level)
    return float(shares @ np.minimum(level, importance))


# Codes


def codes() -> Section:
    rows, curves = [], {}
    for name, shape in (("Gaussian", 2.0), ("Laplace", 1.0)):
        rng = np.random.default_rng(0)
        draw = rng.normal(size=(512, 512)) if shape == 2 else rng.laplace(size=(512, 512))
        matrix = (draw / np.sqrt(np.square(draw).mean())).astype(np.float32)
        weight = Weight(name, matrix, Layout((512, 512)))
        found = [_coded(weight, shape, 4.0**-exponent) for exponent in (0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4)]
        curves[name] = ([row["rate, bit"] for row in found], [row["gap, bit"] for row in found])
        rows += found
    picture = pictures.gaps(curves, log2(2 * pi * e / 12) / 2)
    text = (
        "262,144 independent weights of mean square 1, `Scalar()` at several water levels. Rates are ideal code "
        "lengths with all side information of the tensor; R(D) at the distortion that was reached, in closed form "
        "(Gaussian) and by Blahut-Arimoto (Laplace)."
    )
    return Section("How near our codes come", text, rows, picture)


def _coded(weight: Weight, shape: float, water_level: float) -> Row:
    found = Scalar().quantize(weight, None, water_level)
    count = weight.matrix.size
    rate, distortion = found.bits / count, found.distortion / count
    limit = Rectangles([1.0]).rate_at_distortion(distortion) if shape == 2 else _rate(shape, distortion)
    return {
        "source": weight.name,
        "water level": water_level,
        "D": distortion,
        "rate, bit": round(rate, 4),
        "R(D), bit": round(limit, 4),
        "gap, bit": round(rate - limit, 4),
    }


def _rate(shape: float, distortion: float) -> float:
    return rate_at_distortion(generalized_gaussian_density(shape), distortion).rate


SECTIONS = (
    figure_6,
    channel,
    correlated_weights,
    closed_forms,
    looseness,
    encoder_only,
    relu_units.theorem_4,
    relu_units.pruning,
    relu_units.many_prunings,
    relu_units.quantization,
    relu_units.length_correction,
    codes,
    networks.files,
    networks.layers,
)
"""Everything on the page, in order: functions without arguments that measure and return a `Section`."""


def main() -> None:
    text = (
        "Every formula of [the theory](../theory.md) beside a referee that does not know it. Rates are in bits, of one "
        "weight unless said otherwise; seeds are fixed."
    )
    write_page("theory", "The theory, checked", text, [section() for section in SECTIONS])


if __name__ == "__main__":
    main()
