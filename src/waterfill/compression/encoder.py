"""Tensors become symbols at a water level: who quantizes what, with what its errors cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from waterfill.bases.turning import turn_back
from waterfill.compression.bases import Bases, form_in_basis, in_basis
from waterfill.errors import UsageError, WaterfillError
from waterfill.importance.factored import differs_in_rows
from waterfill.importance.weight_excess import tempered, weight_excess
from waterfill.processes import ALONE, Processes
from waterfill.protocols import Progress, QuadraticForm, Quantizer, traits_of
from waterfill.quantize import Vector
from waterfill.quantize.level_table import LevelTable, needs_table
from waterfill.quantize.prepared import Prepared, draft_of
from waterfill.reconstruct import errors, reconstruct
from waterfill.records import Basis, Entry, Floats, Layout, Quantized, Weight
from waterfill.resume.folder import NOTHING_KEPT, Memo


@dataclass(frozen=True, eq=False)
class Job:
    """One tensor to quantize.

    Attributes:
        weight: what to aim at, in its basis.
        quantizer: what quantizes it.
        form: what errors cost where it is quantized, in its basis; None where that is not known.
        importance: the same as it was estimated: to no power, at the level of all, and for the values themselves.
    """

    weight: Weight
    quantizer: Quantizer
    form: QuadraticForm | None
    importance: QuadraticForm | None

    @property
    def basis(self) -> Basis | None:
        """In which the tensor is coded; None for its own values."""
        return self.weight.basis

    def loss(self, quantized: Quantized) -> float | None:
        """The distortion of the model that the importance predicts for the errors; None where it is not known.

        Where the form of the search differs from the importance in its rows, what rows cost is known.
        """
        importance = self.importance
        if importance is None:
            return None
        known = quantized.row_costs
        if known is not None and self.basis is None and differs_in_rows(importance, self.form):
            return importance.factor * importance.cost_of_rows(known)
        error = errors(self.weight, quantized.symbols, quantized.rule)
        if self.basis is not None:
            turn_back(error, self.basis, self.weight.layout)
        return importance.factor * importance.cost(error)


@dataclass(frozen=True, eq=False)
class Encoder:
    """Quantizes tensors at a level.

    Attributes:
        quantizer: of the matrices.
        mean: of the scales of all importances of matrices, see `mean_scale`; about it they are taken to a power.
        power: that power. An importance is exact for small errors only: at low rates the errors of unimportant weights
            are large and add up to more than it says, so that powers below 1 measure better; 0 gives one step for all.
        zero_cost: mean cost of a matrix weight that is set to zero; vectors of unknown importance go by it.
        offsets: base-2 logarithms of the levels of tensors relative to the common one, by name; 0 for all others.
        processes: share the work.
        memo: of what is quantized already.
        progress: called as work goes on.
        bases: in which tensors are coded; None for their own values.
        made: forms under which tensors are quantized, by importance and name: each once, since what depends on the
            result is kept by it.
    """

    quantizer: Quantizer
    mean: float = 1.0
    power: float = 1.0
    zero_cost: float = 1.0
    offsets: Mapping[str, float] = field(default_factory=dict)
    processes: Processes = ALONE
    memo: Memo = NOTHING_KEPT
    progress: Progress | None = None
    bases: Bases | None = None
    made: WeakKeyDictionary[QuadraticForm, dict[str, QuadraticForm]] = field(
        default_factory=WeakKeyDictionary, repr=False
    )

    @cached_property
    def coarse(self) -> Encoder:
        """The same with a quantizer that is soon done, for comparing ways to share the bits."""
        return replace(self, quantizer=draft_of(self.quantizer))

    def job(self, weight: Weight, importance: QuadraticForm | None, target: Weight | None = None) -> Job:
        """Say how a tensor is quantized.

        Args:
            weight: the tensor.
            importance: what its errors cost; None where that is not known.
            target: what to aim at; None for its own values.
        """
        aim = weight if target is None else target
        quantizer = self._quantizer_of(aim)
        basis = None if self.bases is None else self.bases.of(weight, lambda: self._form(weight, importance))
        return Job(in_basis(aim, basis), quantizer, self._form_in(basis, weight, importance), importance)

    def _form_in(self, basis: Basis | None, weight: Weight, importance: QuadraticForm | None) -> QuadraticForm | None:
        """The form under which a tensor is quantized in a basis, made once; several may have one importance."""
        if importance is None:
            return None
        made = self.made.get(importance, {})
        if weight.name not in made:
            form = form_in_basis(self._form(weight, importance), basis, weight.layout)
            if form is None or form is importance:  # which would keep itself in memory
                return form
            self.made[importance] = made | {weight.name: form}
        return self.made[importance][weight.name]

    def _quantizer_of(self, weight: Weight) -> Quantizer:
        if weight.is_vector:
            return Vector(self.zero_cost)
        if traits_of(self.quantizer).fixed or not needs_table(weight.matrix):
            return self.quantizer
        return LevelTable()

    def _form(self, weight: Weight, importance: QuadraticForm | None) -> QuadraticForm | None:
        """What errors cost where a tensor is quantized: to the power, and at its own level."""
        if importance is None:
            return None
        form = importance
        if not weight.is_vector:
            form = tempered(importance, weight.matrix, self.mean, self.power)
        offset = self.offsets.get(weight.name)
        return form if offset is None else form.scaled(2.0**-offset)

    def jobs(self, weights: Mapping[str, Weight], importances: Mapping[str, QuadraticForm | None]) -> dict[str, Job]:
        """The jobs of several tensors, by name."""
        return {name: self.job(weight, importances.get(name)) for name, weight in weights.items()}

    def quantize(self, jobs: Mapping[str, Job], level: float) -> dict[str, Quantized]:
        """Quantize tensors at a water level; the result depends neither on the number of threads nor of processes.

        Every process quantizes some of the tensors, about as many weights as the others.

        Raises:
            WaterfillError: the quantizer refuses one, in whatever process; the text names the tensor.
        """
        order = sorted(jobs, key=lambda name: -jobs[name].weight.matrix.size)
        own = {name: jobs[name] for name in order[self.processes.rank :: self.processes.count]}
        found: dict[str, Quantized] = {}
        for some in self.processes.all_made(lambda: self._quantize(own, level)):
            found |= some
        return {name: found[name] for name in jobs}

    def _quantize(self, jobs: Mapping[str, Job], level: float) -> dict[str, Quantized]:
        done: dict[str, Quantized] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            each = pool.map(lambda job: self.quantize_one(job, level), jobs.values())
            for name, item in zip(jobs, each, strict=True):
                done[name] = item
                if self.progress is not None:
                    self.progress("quantize", len(done), len(jobs))
        return done

    def estimate_bits(self, jobs: Mapping[str, Job], level: float) -> float:
        """Forecast the bits of tensors at a water level from some of their rows; of all processes alike."""

        def of_one(job: Job) -> float:
            prepared = Prepared(job.quantizer, job.weight, job.form)
            if job.weight.is_vector:
                return prepared.estimate_bits(level)
            key = ("estimated bits", job.weight, job.quantizer, job.form, level)
            return self.memo.once(key, lambda: prepared.estimate_bits(level))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return self.processes.broadcast(sum(pool.map(of_one, jobs.values())))

    def quantize_one(self, job: Job, level: float) -> Quantized:
        """Quantize one tensor, or find it quantized; vectors are quantized sooner than found.

        Raises:
            WaterfillError: the quantizer refuses it; the text names the tensor.
        """

        def compute() -> Quantized:
            found = job.quantizer.quantize(job.weight, job.form, level)
            return found if job.basis is None else replace(found, basis=job.basis)

        try:
            if job.weight.is_vector:
                return compute()
            return self.memo.once(("quantized", job.weight, job.quantizer, job.form, level), compute)
        except WaterfillError as error:
            raise type(error)(f"tensor {job.weight.name!r} {job.weight.layout.shape}: {error}") from error


def importance_to_power(name: str, power: float) -> str:
    """Name of an importance that is taken to a power."""
    return name if power == 1 else f"{name}^{power:g}"


def only_quantizer(quantizers: Sequence[Quantizer]) -> Quantizer:
    """The quantizer of all matrices.

    Raises:
        UsageError: there are several.
    """
    if len(quantizers) != 1:
        raise UsageError(f"Got {len(quantizers)} quantizers; expected one, which quantizes every matrix.")
    return quantizers[0]


def mean_scale(weights: Mapping[str, Weight], forms: Mapping[str, QuadraticForm]) -> float:
    """Mean of the scales of all weights of some matrices, about which importances are taken to a power; 1 for none.

    They are those of weights of a usual size, see `weight_excess`.

    Args:
        weights: by name.
        forms: of some matrices, by name.
    """
    count = sum(form.diagonal().size for form in forms.values())
    scales = (form.scale_total * weight_excess(weights[name].matrix) ** 2 for name, form in forms.items())
    mean = sum(scales) / max(1, count)
    return mean if mean > 0 else 1.0


def zero_cost(weight: Weight, form: QuadraticForm | None) -> float:
    """Cost `sum I_i w_i^2` of setting every weight of a tensor to zero, cross terms left out."""
    if form is None:
        return float(np.square(weight.matrix, dtype=np.float64).sum())
    matrix, prices = weight.matrix, form.diagonal()
    return float(np.einsum("oi,oi,oi->", prices, matrix, matrix, dtype=np.float64, casting="same_kind"))


def mean_zero_cost(jobs: Mapping[str, Job]) -> float:
    """Mean of `zero_cost` over all weights of the matrices: the scale of water levels; 1 where it is zero."""
    matrices = [job for job in jobs.values() if not job.weight.is_vector]
    count = sum(job.weight.matrix.size for job in matrices)
    total = sum(zero_cost(job.weight, job.form) for job in matrices)
    return total / count if total > 0 else 1.0


def decoded_matrix(layout: Layout, quantized: Quantized) -> Floats:
    """Values [out, in] of a quantized tensor, in single precision."""
    values = reconstruct(quantized.symbols.reshape(-1), quantized.rule, layout).reshape(quantized.symbols.shape)
    if quantized.basis is not None:
        turn_back(values, quantized.basis, layout)
    return values


def decoded(entry: Entry, layout: Layout, quantized: Quantized) -> Tensor:
    """Values of a coded entry in its own shape, rounded to its type as they will be decoded, float32."""
    values = np.ascontiguousarray(layout.from_matrix(decoded_matrix(layout, quantized)))
    return torch.from_numpy(values.reshape(entry.shape)).to(getattr(torch, entry.dtype)).float()
