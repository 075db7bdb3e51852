"""The least that any code takes for the distortion that was reached, under source models of the tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from waterfill.compression.limit_components import Components
from waterfill.compression.limit_models import LimitSource, SourceSummary, limit_source
from waterfill.compression.rate_model import VarianceHistogram
from waterfill.errors import UsageError
from waterfill.protocols import QuadraticForm
from waterfill.records import Layout, Weight
from waterfill.theory.scaled_source import ScaledSource, fit_scaled_source

FEWEST = 8
"""Fewest values to which a source is fitted."""

SAMPLED = 1 << 20
"""Weights of a large matrix that are looked at, at least: a source fitted to a million is known well enough."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Some rows of a matrix in the place of all.

    Attributes:
        weight: every `step`-th row, or all.
        step: how many rows each stands for.
        times: the same as a fraction, of the rows that there are.
    """

    weight: Weight
    step: int
    times: float

    @classmethod
    def of(cls, weight: Weight, sampled: int | None = None) -> Sample:
        """Take every k-th row of a large matrix; all of a smaller one, and of one whose rows are not alike.

        Args:
            weight: the matrix.
            sampled: how many weights are taken, at least; None for `SAMPLED`.
        """
        step = max(1, weight.matrix.size // (sampled or SAMPLED)) if weight.are_rows_alike else 1
        if step == 1:
            return cls(weight, 1, 1.0)
        rows = weight.matrix[::step]
        layout = Layout((len(rows), weight.layout.axes[1], *weight.layout.shape[2:]))
        return cls(Weight(weight.name, rows, layout), step, len(weight.matrix) / len(rows))

    def form(self, form: QuadraticForm) -> QuadraticForm:
        """The form of these rows."""
        return form if self.step == 1 else form.rows_of(slice(None, None, self.step))


@dataclass(frozen=True, eq=False)
class TensorModel:
    """Source of a tensor, in short, and the components of its limit.

    Attributes:
        source: of its weights.
        components: of its error, under its source and its form.
    """

    source: SourceSummary
    components: Components


class SourceModels:
    """Source models of tensors, each fitted once, and their components under a form, found once for every form.

    Of a tensor no more than its source is kept, so that a model may be larger than memory.
    """

    def __init__(self) -> None:
        self._fitted: dict[str, ScaledSource | None] = {}
        self._chosen: dict[str, LimitSource] = {}
        self._found: dict[str, tuple[QuadraticForm | None, TensorModel]] = {}

    def fit(self, weights: Iterable[Weight]) -> None:
        """Fit sources to tensors, in parallel."""
        _in_parallel([weight for weight in weights if weight.name not in self._fitted], self.source)

    def source(self, weight: Weight) -> ScaledSource | None:
        """The source of a tensor; None for fewer than eight values, or without spread."""
        if weight.name not in self._fitted:
            self._fitted[weight.name] = _fitted_source(weight)
        return self._fitted[weight.name]

    def forecast(self, weight: Weight, form: QuadraticForm | None) -> VarianceHistogram:
        """Components of a tensor by the pivots of its form: as many bits at high rate, and soon found.

        A matrix without a source, such as a constant one, is as wide as its values: levels go by it, too.
        """
        source = self.source(weight)
        if source is None:
            squares = np.square(weight.matrix, dtype=np.float64)
            return VarianceHistogram.of(squares if form is None else squares * form.diagonal())
        sample = Sample.of(weight)
        if form is None:
            return VarianceHistogram.of(source.entropy_powers(sample.weight.matrix), sample.times)
        factors = sample.form(form).conditional_variances(source, sample.weight.matrix)
        return VarianceHistogram.of_products(*factors, sample.times)

    def models(
        self, originals: Mapping[str, Weight], forms: Mapping[str, QuadraticForm | None]
    ) -> dict[str, TensorModel]:
        """Sources and components of all tensors that have a source and whose sensitivity is known, in parallel.

        Vectors without a form have none.

        Args:
            originals: the tensors, by name.
            forms: what errors cost.
        """
        self.fit(originals.values())
        wanted = [
            weight
            for name, weight in originals.items()
            if self.source(weight) is not None and not (weight.is_vector and forms.get(name) is None)
        ]
        _in_parallel(wanted, lambda weight: self._find(weight, forms.get(weight.name)))
        return {weight.name: self._found[weight.name][1] for weight in wanted}

    def _find(self, weight: Weight, form: QuadraticForm | None) -> None:
        known, source = self._found.get(weight.name), self.source(weight)
        if source is None or (known is not None and known[0] is form):
            return
        sample = Sample.of(weight)
        if weight.name not in self._chosen:
            self._chosen[weight.name] = limit_source(sample.weight, source, rows=sample.step == 1)
        chosen = self._chosen[weight.name]
        components = chosen.components(sample.weight.matrix, None if form is None else sample.form(form), sample.times)
        self._found[weight.name] = form, TensorModel(chosen.summary, components)

    def forget(self, names: Iterable[str]) -> None:
        """Let go of what is kept of tensors that are done with."""
        for name in names:
            self._found.pop(name, None)
            self._chosen.pop(name, None)
            self._fitted.pop(name, None)


def _fitted_source(weight: Weight) -> ScaledSource | None:
    if weight.matrix.size < FEWEST:
        return None
    some = Sample.of(weight).weight
    try:
        return fit_scaled_source(some.matrix.reshape(some.layout.axes))
    except UsageError:
        return None


def _in_parallel(weights: list[Weight], work: Callable[[Weight], object]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, weights):
            pass


@dataclass(frozen=True)
class EntryLimit:
    """The least bits of any code for a tensor at the distortion that was reached.

    Attributes:
        bits: of all its values together.
        standard_error: of these, from the fitted entropy.
        source_model: what the weights are taken to be drawn from.
        note: structure that the source lacks; empty for none.
    """

    bits: float
    standard_error: float
    source_model: str
    note: str = ""


def entry_limit(model: TensorModel, distortion: float, numel: int) -> EntryLimit:
    """The limit of a tensor.

    An entropy that is off by a bit moves the limit by one bit for every weight that takes any: letters, and the places
    of zeros, do so at every distortion.

    Args:
        model: its source and components.
        distortion: that was reached, by the form of the components, above 0.
        numel: number of its values.

    Source:
        Lemma 1 of the paper for independent weights, with weighted water-filling (Theorem 2); with cross terms reverse
        water-filling over eigenvalues, see `waterfill.theory.spectra`.
    """
    bits, level = model.components.at_distortion(distortion)
    has_letters = any(source.letters for source in model.components.others)
    open_ones = float(numel) if has_letters and bits > 0 else min(float(numel), distortion / level)
    return EntryLimit(bits, open_ones * model.source.standard_error, model.source.name, model.source.note)
