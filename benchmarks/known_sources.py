"""Weights of known sources, their rate-distortion functions, and what limits say of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import waterfill
from waterfill.importance import identity
from waterfill.theory.gaussian_mixture import GaussianMixture
from waterfill.theory.scalar_rate import ScalarSource, scalar_rate
from waterfill.theory.scaled_source import fit_scaled_source
from waterfill.theory.waterfilling import Rectangles

OUT, INPUTS = 512, 256
RATES = (1.0, 2.0, 4.0)
TRIALS = 400
SHAPES = ((8, 8), (8, 64), (16, 16), (64, 64), (128, 256))

Array: TypeAlias = NDArray[np.float64]
Rate: TypeAlias = Callable[[float], float]
Row = dict[str, Any]


def known() -> list[Row]:
    """Limits of files of weights of known sources, beside the true function at the same distortion."""
    return [row for name, weights, rate in _sources() for row in _limits(name, weights, rate)]


def one(name: str, rate: float) -> Row:
    """A row of `known`."""
    found = next(each for each in _sources() if each[0] == name)
    return next(_limits(*found, rates=(rate,)))


def _limits(name: str, weights: Array, true: Rate, rates: tuple[float, ...] = RATES) -> Iterator[Row]:
    model = nn.Linear(INPUTS, OUT, bias=False)
    model.weight.data = torch.from_numpy(weights.astype(np.float32))
    for rate in rates:
        result = waterfill.compress(model, rate=rate, importance=identity())
        (row,) = result.tensors
        assert row.limit is not None and row.distortion is not None
        at = true(row.distortion / row.numel)
        yield {
            "source": name,
            "rate": row.rate,
            "limit": row.limit,
            "true R(D)": at,
            "limit - true": round(row.limit - at, 4),
            "fitted": row.source_model,
            "note": row.source_note or row.reason,
        }


def _sources() -> Iterator[tuple[str, Array, Rate]]:
    """Name, weights [out, in], and bits a weight at a mean squared error."""
    rng = np.random.default_rng(0)
    shape = (OUT, INPUTS)
    yield "Gaussian", rng.normal(size=shape), _of_eigenvalues(np.ones(1))
    yield "Laplacian", rng.laplace(size=shape), _of_density(ScalarSource(shape=1.0))
    along = _autoregression(INPUTS, 0.9)
    yield "autoregression of .9 along rows", _correlated(rng, along=along), _of_eigenvalues(np.linalg.eigvalsh(along))
    directions = rng.normal(size=(8, INPUTS))
    low_rank = directions.T @ directions + 0.01 * np.eye(INPUTS)
    yield "rank 8 and noise", _correlated(rng, along=low_rank), _of_eigenvalues(np.linalg.eigvalsh(low_rank))
    rows = _autoregression(OUT, 0.8)
    both = np.multiply.outer(np.linalg.eigvalsh(rows), np.linalg.eigvalsh(along := _autoregression(INPUTS, 0.6)))
    yield "Kronecker-Gaussian", _correlated(rng, rows, along), _of_eigenvalues(both.reshape(-1))
    scales = np.exp2(rng.normal(size=OUT) - 1)
    yield "Gaussian, scales of rows", scales[:, None] * rng.normal(size=shape), _of_eigenvalues(scales**2)
    mixture = GaussianMixture((0.5, 0.5), (0.0, 0.0), (0.3, 2.0))
    weights = rng.choice(mixture.deviations, shape) * rng.normal(size=shape)
    yield "scale mixture", weights, _of_density(ScalarSource(lumps=mixture))
    lumps = GaussianMixture((0.5, 0.5), (-1.0, 1.0), (0.1, 0.1))
    weights = rng.choice(lumps.means, shape) + 0.1 * rng.normal(size=shape)
    yield "bimodal", weights, _of_density(ScalarSource(lumps=lumps))
    ternary = ScalarSource((-1.0, 0.0, 1.0), (0.25, 0.5, 0.25))
    yield "ternary", rng.choice((-1.0, 0.0, 0.0, 1.0), shape), _of_density(ternary)
    weights = rng.normal(size=shape) * (rng.random(shape) < 0.1)
    yield "90 % zeros", weights, _of_density(ScalarSource((0.0,), (0.9,), 2.0), math.sqrt(2))
    blocks = np.repeat(np.exp2(rng.normal(size=(OUT, INPUTS // 32))), 32, axis=1)
    weights = blocks * rng.normal(size=shape)
    yield "scales of blocks of 32", weights, _of_eigenvalues(blocks.reshape(-1) ** 2)


def _autoregression(length: int, coefficient: float) -> Array:
    """Covariance of a stationary process of variance 1."""
    places = np.arange(length)
    return np.asarray(coefficient ** np.abs(places[:, None] - places))


def _correlated(rng: np.random.Generator, rows: Array | None = None, along: Array | None = None) -> Array:
    found = rng.normal(size=(OUT, INPUTS))
    found = found if rows is None else np.linalg.cholesky(rows) @ found
    return found if along is None else found @ np.linalg.cholesky(along).T


def _of_eigenvalues(values: Array) -> Rate:
    rectangles = Rectangles(values)
    return lambda distortion: rectangles.rate_at_distortion(distortion * values.size) / values.size


def _of_density(source: ScalarSource, scale: float = 1.0) -> Rate:
    levels = np.arange(-40, 8, 0.01)
    lagrangians, slopes = scalar_rate(source).lagrangian(levels), np.exp2(-levels) / math.log(4)
    return lambda distortion: float((lagrangians - distortion / scale**2 * slopes).max())


def errors() -> list[Row]:
    """Deviations of fitted entropies from the true ones, in units of their standard errors."""
    return [_deviations(shape, scaled) for scaled in (False, True) for shape in SHAPES]


def _deviations(shape: tuple[int, int], scaled: bool) -> Row:
    rng = np.random.default_rng(0)
    true = math.log2(2 * math.pi * math.e) / 2
    found = []
    for _ in range(TRIALS):
        logs = rng.normal(size=shape[0]) / math.log(2) * scaled
        fit = fit_scaled_source((rng.normal(size=shape) * np.exp2(logs)[:, None])[:, :, None], strict=True)
        found.append((fit.unbiased().mean_entropy - true - logs.mean(), fit.standard_error))
    deviations, standard_errors = np.array(found).T
    return {
        "shape": f"{shape[0]} x {shape[1]}",
        "scales": "of rows" if scaled else "one",
        "mean deviation, bit": float(deviations.mean()),
        "deviation, bit": float(deviations.std()),
        "standard error, bit": float(standard_errors.mean()),
        "mean in standard errors": float((deviations / standard_errors).mean()),
        "deviation in standard errors": float((deviations / standard_errors).std()),
    }
