"""The limit beside the file: what any code needs for the distortion that was reached, under a source model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from waterfill.allocate import Job
from waterfill.errors import UsageError
from waterfill.importance import has_cross_terms
from waterfill.protocols import QuadraticForm
from waterfill.records import Limits, Quantized, TensorLimit, Weight
from waterfill.theory.scaled_source import ScaledSource, fit_scaled_source
from waterfill.theory.spectra import Products
from waterfill.theory.waterfilling import Rectangles

FEWEST = 8
"""Fewest values to which a source is fitted."""

POINTS = 40
"""Points of a curve."""


def fit_sources(weights: Mapping[str, Weight]) -> dict[str, ScaledSource]:
    """Fit a source model to every tensor that has one, in parallel.

    A tensor of fewer than eight values, or without spread, has none.
    """

    def one(weight: Weight) -> ScaledSource | None:
        try:
            return fit_scaled_source(weight.matrix.reshape(weight.layout.axes))
        except UsageError:
            return None

    large = {name: weight for name, weight in weights.items() if weight.matrix.size >= FEWEST}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(large, pool.map(one, large.values()), strict=True))
    return {name: source for name, source in found.items() if source is not None}


def fit_spectra(
    weights: Mapping[str, Weight], sources: Mapping[str, ScaledSource], forms: Mapping[str, QuadraticForm | None]
) -> dict[str, list[Products]]:
    """The spectra of every tensor that has a source and a form with cross terms, in parallel.

    They depend on nothing that is tried, and take longer than the rest of a limit.
    """

    def one(name: str, form: QuadraticForm) -> list[Products]:
        return form.products(sources[name], weights[name].matrix)

    crossed = {name: form for name in sources if has_cross_terms(form := forms.get(name))}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(crossed, pool.map(one, crossed, crossed.values()), strict=True))


def rectangles(
    weights: Mapping[str, Weight],
    sources: Mapping[str, ScaledSource],
    forms: Mapping[str, QuadraticForm | None],
    spectra: Mapping[str, Sequence[Products]],
) -> Iterator[tuple[str, Rectangles]]:
    """The volumes of every tensor that has a source and whose sensitivity is known: all but vectors without a form.

    Args:
        weights: by name.
        sources: of those that have one.
        forms: what errors cost.
        spectra: from `fit_spectra`, of every form with cross terms.
    """
    for name, source in sources.items():
        weight, form = weights[name], forms.get(name)
        if name in spectra:
            yield name, Rectangles(np.concatenate([part.volumes() for part in spectra[name]]))
        elif form is not None:
            yield name, Rectangles(form.component_variances(source, weight.matrix))
        elif not weight.is_vector:
            yield name, Rectangles(source.entropy_powers(weight.matrix).reshape(-1))


def price(
    jobs: Mapping[str, Job],
    quantized: Mapping[str, Quantized],
    sources: Mapping[str, ScaledSource],
    spectra: Mapping[str, Sequence[Products]],
    exact_bits: float,
    measure: str,
) -> Limits:
    """Shannon lower bounds at the distortions that were reached: of every tensor at its own, of all at their sum.

    A code that is free to share the sum between the tensors needs at most as many bits, so the limit of the file is at
    most the sum of those of its tensors. A tensor without error has no limit, for no density has one there; like all
    that have none it counts with the bits that it takes.

    Args:
        jobs: weights and what their errors cost.
        quantized: what became of them, with their distortions by those costs.
        sources: a source model for every tensor that has one.
        spectra: from `fit_spectra`, of every form with cross terms.
        exact_bits: of tensors that are stored without loss.
        measure: name of the costs.

    Source:
        Lemma 1 of the paper for independent weights, with weighted water-filling (Theorem 2); with cross terms reverse
        water-filling over eigenvalues, see `waterfill.theory.spectra`.
    """
    tensors: dict[str, TensorLimit] = {}
    parts, total, variance = [], 0.0, 0.0
    weights = {name: job.weight for name, job in jobs.items()}
    forms = {name: job.form for name, job in jobs.items()}
    for name, part in rectangles(weights, sources, forms, spectra):
        source, count, distortion = sources[name], weights[name].matrix.size, quantized[name].distortion
        if not distortion > 0:
            continue
        tensors[name] = TensorLimit(part.rate_at_distortion(distortion) / count, source.name, source.standard_error)
        parts.append(part)
        total += distortion
        variance += (count * source.standard_error) ** 2
    stored = exact_bits + sum(item.bits for name, item in quantized.items() if name not in tensors)
    whole = Rectangles.joined(parts)
    bits = whole.rate_at_distortion(total)
    points = tuple((stored + each, reached) for each, reached in curve(whole, bits))
    return Limits(tensors, stored + bits, math.sqrt(variance), measure, total, points)


def curve(whole: Rectangles, bits: float) -> list[tuple[float, float]]:
    """(bits, least distortion) from no bits to twice those of a file and one for every rectangle.

    The points are closer together near no bits, where the curve bends most.
    """
    if not whole.volumes.size:
        return []
    return [
        (float(each), whole.distortion(whole.level_at_rate(float(each))))
        for each in (2 * bits + whole.volumes.size) * np.linspace(0.0, 1.0, POINTS) ** 2
    ]
