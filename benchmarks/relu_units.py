"""ReLU units of a few weights, every candidate tried: where the quadratic objective finds the least true error."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pictures
from results import Section
from waterfill.theory.exhaustive import (
    Candidate,
    ScaledSearch,
    Search,
    exhaustive_pruning,
    exhaustive_quantization,
    exhaustive_refit,
)
from waterfill.theory.relu import best_scale, measure, projection_error, sigma_cosine

Array = NDArray[np.float64]
Row = dict[str, Any]

UNITS = (6, 8, 10)


def unit(count: int, seed: int) -> tuple[Array, Array, Array]:
    """Weights, variances of independent inputs, and a covariance of correlated ones."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(count, count))
    return rng.normal(size=count), rng.gamma(1.0, size=count), mixing @ mixing.T / count


def _kept(labels: NDArray[np.int64]) -> str:
    return " ".join(str(place + 1) for place in np.flatnonzero(labels))


def pruning() -> Section:
    rows = []
    for count in UNITS:
        w, variances, sigma = unit(count, count)
        for inputs, covariance in (("independent", variances), ("correlated", sigma)):
            for weights, search in (("as they are", exhaustive_pruning), ("refit", exhaustive_refit)):
                found: Search = search(w, covariance, count // 2)
                rows.append(
                    {
                        "weights": count,
                        "inputs": inputs,
                        "kept weights": weights,
                        "masks": found.candidates,
                        "kept by the least error": _kept(found.by_error.labels),
                        "kept by the objective": _kept(found.by_objective.labels),
                        "least error": found.by_error.error,
                        "excess of the objective's, %": _excess(found.by_objective, found),
                        "same mask": found.agree,
                    }
                )
    text = (
        "Units `relu(w^T x)` with random weights and Gaussian inputs, half of the weights kept; every mask is tried. "
        "*Excess* is how much more error the winner of the objective has, with its own weights: those of a refit lack "
        "the factor `J(rho) / rho`. Errors are in closed form."
    )
    return Section("Pruning a ReLU unit: every mask", text, rows)


def many_prunings() -> Section:
    rows = []
    for name, kind, search in (
        ("independent", 1, exhaustive_pruning),
        ("correlated", 2, exhaustive_pruning),
        ("independent", 1, exhaustive_refit),
        ("correlated", 2, exhaustive_refit),
    ):
        units = [(unit(count, 1000 + seed), kept) for count in UNITS for seed in range(50) for kept in range(1, count)]
        found = [search(each[0], each[kind], kept) for each, kept in units]
        worst = max(found, key=lambda each: _excess(_achievable(each), each))
        rows.append(
            {
                "inputs": name,
                "kept weights": "as they are" if search is exhaustive_pruning else "refit and scaled",
                "searches": len(found),
                "another mask": sum(not each.agree for each in found),
                "worst excess error, %": _excess(_achievable(worst), worst),
                "there kept by the least error": "" if worst.agree else _kept(worst.by_error.labels),
                "and by the objective": "" if worst.agree else _kept(worst.by_objective.labels),
            }
        )
    text = (
        "Units of 6, 8 and 10 weights, 50 of each, every number of kept weights. How often the mask of least objective "
        "is not that of least error, and how much more error it has at worst. *Refit and scaled* compares both masks "
        "with their weights fitted and multiplied by `J(rho) / rho`."
    )
    return Section("Pruning many ReLU units", text, rows)


def _achievable(found: Search) -> Candidate:
    return found.corrected if isinstance(found, ScaledSearch) else found.by_objective


def _excess(candidate: Candidate, found: Search) -> float:
    """How much more error than the least, in percent."""
    return round(100 * (candidate.error / found.by_error.error - 1), 5)


def _codebook(w_hat: Array, labels: NDArray[np.int64]) -> str:
    return " ".join(f"{w_hat[labels == label][0]:.3f}" for label in range(labels.max() + 1))


def quantization() -> Section:
    rows = []
    for count, clusters in ((6, 2), (8, 2), (10, 2), (10, 3)):
        w, variances, sigma = unit(count, count)
        for inputs, covariance in (("independent", variances), ("correlated", sigma)):
            found = exhaustive_quantization(w, covariance, clusters)
            truth, paper = found.by_error, found.by_objective
            rows.append(
                {
                    "weights": count,
                    "values": clusters,
                    "inputs": inputs,
                    "partitions": found.candidates,
                    "labels by the least error": "".join(map(str, truth.labels)),
                    "by the objective": "".join(map(str, paper.labels)),
                    "codebook of least error": _codebook(truth.w_hat, truth.labels),
                    "of the objective": _codebook(paper.w_hat, paper.labels),
                    "same partition": found.agree,
                    "least error": truth.error,
                    "excess of the objective's, %": _excess(paper, found),
                    "times J/rho, %": _excess(found.corrected, found),
                }
            )
    text = (
        "Every partition into at most so many values, the values free. Objective and truth choose the same partition; "
        "the values of least error are those of the objective times `J(rho) / rho`, and with that factor (last column) "
        "no excess is left."
    )
    return Section("Quantizing a ReLU unit: every partition", text, rows)


def length_correction() -> Section:
    rows = []
    for count in UNITS:
        w, variances, sigma = unit(count, count)
        for inputs, covariance in (("independent", variances), ("correlated", sigma)):
            found = exhaustive_quantization(w, covariance, 2)
            before, after = found.by_objective, found.corrected
            rho = sigma_cosine(w, before.w_hat, covariance)
            mean, deviations = _paired_simulation(w, (before.w_hat, after.w_hat), np.atleast_2d(covariance), 2_000_000)
            rows.append(
                {
                    "weights": count,
                    "inputs": inputs,
                    "rho": rho,
                    "J/rho": float(best_scale(rho)),
                    "error before": before.error,
                    "simulated": float(mean[0]),
                    "z": float((mean[0] - before.error) / deviations[0]),
                    "gain": before.error - after.error,
                    "simulated gain": float(mean[1]),
                    "its error": float(deviations[1]),
                    "z of the gain": float((mean[1] - before.error + after.error) / deviations[1]),
                }
            )
    text = (
        "Two values. Error with the centroids of least objective, and how much it falls when they are multiplied by "
        "`J(rho) / rho`: in closed form, and from 2,000,000 inputs, the same before and after, so that the standard "
        "error of the gain is that of the paired difference."
    )
    return Section("The length that Corollary 2 misses", text, rows)


def _paired_simulation(w: Array, w_hats: tuple[Array, Array], covariance: Array, samples: int) -> tuple[Array, Array]:
    """Mean error of the first and by how much the second is lower on the same inputs, and both standard errors."""
    sigma = np.diag(covariance[0]) if len(covariance) == 1 else covariance
    rng, factor = np.random.default_rng(0), np.linalg.cholesky(sigma)
    total, squares = np.zeros(2), np.zeros(2)
    for _ in range(samples // 50_000):
        x = rng.standard_normal((50_000, w.size)) @ factor.T
        output = np.maximum(x @ w, 0)
        first, second = (np.square(output - np.maximum(x @ w_hat, 0)) for w_hat in w_hats)
        errors = np.stack([first, first - second])
        total, squares = total + errors.sum(axis=1), squares + np.square(errors).sum(axis=1)
    mean = total / samples
    return mean, np.sqrt((squares / samples - mean**2) / samples)


def theorem_4() -> Section:
    w, variances, _ = unit(8, 8)
    root, power = np.diag(np.sqrt(variances)), float(variances @ w**2)
    rng = np.random.default_rng(0)

    def share(w_hats: Array) -> tuple[Array, Array]:
        objective, error = measure(w, w_hats, root)
        return objective / power, error / power

    masks = w * np.array(list(itertools.product((0, 1), repeat=8)))
    labels = np.array(list(itertools.product((0, 1), repeat=7)))
    labels = np.column_stack([np.zeros(len(labels), int), labels]).astype(bool)
    means = np.stack([_two_means(w, variances, label) for label in labels])
    rho = np.sqrt(np.maximum(0, 1 - share(means)[0]))
    random_lengths = means[:, None] * rng.uniform(0.4, 2.2, size=(len(means), 6))[..., None]
    cosines = np.linspace(0, 1, 400)
    curve = 1 - cosines**2, projection_error(cosines, 1.0)
    paths = {}
    for index in np.argsort(rho)[[0, len(rho) // 2, 3 * len(rho) // 4]].tolist():
        lengths, scale = np.linspace(0.5, 2.2, 200)[:, None], float(best_scale(rho[index]))
        paths[rf"$\rho$ = {rho[index]:.2f}"] = tuple(
            share(means[index] * t) for t in (lengths, np.ones((1, 1)), np.full((1, 1), scale))
        )
    picture = pictures.theorem_4(curve, share(masks), share(random_lengths.reshape(-1, 8)), paths)
    groups = (
        ("masks, weights as they are", masks),
        ("codebooks, least objective", means),
        ("codebooks, random length", random_lengths.reshape(-1, 8)),
    )
    best = means * best_scale(rho)[:, None]
    rows = [_off_curve(name, *share(found)) for name, found in (*groups, ("codebooks, length n(w) J(rho)", best))]
    text = (
        "One unit of 8 weights with independent inputs. Under rule 1 the error is a function of the objective; how far "
        "from that function candidates lie, in units of the power `n(w)^2`. Right: the path of a codebook as its "
        "length changes turns on the curve, and its lowest point is to the right of its leftmost."
    )
    return Section("Objective and true error of all candidates", text, rows, picture)


def _two_means(w: Array, variances: Array, label: NDArray[np.bool_]) -> Array:
    w_hat = np.zeros_like(w)
    for part in (label, ~label):
        if part.any():
            w_hat[part] = np.average(w[part], weights=variances[part])
    return w_hat


def _off_curve(name: str, objective: Array, error: Array) -> Row:
    """Distance of candidates from the error that rule 1 would give to their objective."""
    inside = objective <= 1
    expected = np.where(inside, projection_error(np.sqrt(np.clip(1 - objective, 0, 1)), 1.0), np.nan)
    off = (error - expected)[inside]
    return {
        "class": name,
        "candidates": objective.size,
        "objective above the power": int((~inside).sum()),
        "lowest under the curve": float(off.min()),
        "highest above it": float(off.max()),
    }
