"""The walk: a trained network in, a small file out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

import waterfill.importance as importances
from waterfill import allocate
from waterfill.allocate import Job, Trial
from waterfill.calibrate import correct_statistics
from waterfill.codec import container
from waterfill.codec.directory import DTYPE_BYTES
from waterfill.errors import CalibrationError, TargetError, UsageError
from waterfill.evaluate import distortion as mean_distortion
from waterfill.evaluate import evaluate, reference_outputs
from waterfill.files import WaterfillFile, exact_bytes
from waterfill.models import state_dict, torch_module
from waterfill.models.batches import as_batches, output_kind
from waterfill.protocols import DataFree, Estimator, Output, Progress, QuadraticForm, Quantizer
from waterfill.quantize import Scalar
from waterfill.records import (
    CompressionResult,
    Constant,
    Entry,
    Exact,
    Inventory,
    NormMean,
    NormVariance,
    Quantized,
    Relative,
    TensorReport,
    Tied,
)

PRODUCER = "waterfill 0.1.0"
Effort: TypeAlias = Literal["fast", "default", "best", "max"]
ROUNDS: Mapping[str, int] = {"fast": 1, "default": 3, "best": 5, "max": 8}
"""How often roundings and tables are fitted to each other."""

WITHIN = 0.01
"""A file is within this fraction below its target."""


def compress(
    model: torch.nn.Module | str | Path,
    data: Iterable[Any] | None = None,
    *,
    rate: float | None = None,
    size_bytes: int | None = None,
    distortion: float | None = None,
    tolerance: float | None = None,
    output: Output | None = None,
    importance: Estimator | None = None,
    quantizers: Sequence[Quantizer] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    effort: Effort = "default",
    fold_norms: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> CompressionResult:
    """Compress a trained network to the smallest file at a given loss.

    Args:
        model: a module, or a path to a safetensors file (then without data). A module is left as it is: weights,
            modes, hooks and gradients.
        data: calibration batches, each `(input, target)` or only inputs (a tensor, a tuple of other length than two,
            or a dict of keyword arguments); None to work without data.
        rate: bits of the whole file per floating-point value of the model.
        size_bytes: size of the whole file.
        distortion: mean distortion on the data: KL divergence in nats for logits, squared error for values.
        tolerance: largest loss of top-1 accuracy on the data, as a fraction (0.005 is half a point).
        output: `"logits"` or `"values"`, what the model returns; by default told from integer targets.
        importance: an estimator; by default `kl()` for logits, `regression()` for values, `weight_scale()` without data.
        quantizers: quantizer of the matrices; by default `Scalar()`.
        include: name patterns; when given, only tensors that match one are quantized.
        exclude: name patterns of tensors that are stored without loss.
        effort: `"fast"`, `"default"`, `"best"` or `"max"`: how long to search for better symbols.
        fold_norms: store batch norms as one scale and one shift.
        seed: of everything that is sampled.
        progress: called with (stage, done, total).

    Returns:
        The file with a report of every tensor.

    Raises:
        UsageError: several targets, or one out of its range.
        TargetError: the target cannot be met; the text names the floor.
        CalibrationError: the data do not fit the model, or a target needs data and there are none.
        WaterfillError: a tensor cannot be compressed, such as one with NaN.

    Example:
        >>> result = waterfill.compress(model, data, rate=3.0)  # doctest: +SKIP
        >>> result.save("model.wf")  # doctest: +SKIP
    """
    if effort not in ROUNDS:
        raise UsageError(f"Effort {effort!r} is unknown; expected one of {', '.join(ROUNDS)}.")
    target = _target(rate=rate, size_bytes=size_bytes, distortion=distortion, tolerance=tolerance)
    if isinstance(model, torch.nn.Module):
        inventory = torch_module.inventory(model, fold_norms=fold_norms, include=include, exclude=exclude)
    else:
        inventory = state_dict.read(Path(model))
    live = _calibration(model, data, output, target, fold_norms)
    estimator = importance or _default_importance(live, seed)
    forms = _forms(estimator, inventory, live, progress)
    jobs = allocate.plan(inventory, forms, quantizers or (Scalar(rounds=ROUNDS[effort]),))
    work = _Work(inventory, jobs, live, progress)
    attempt = _search(work, target)
    return _result(work, attempt, target, estimator)


def _target(**targets: float | None) -> tuple[str, float]:
    """The one target that was given; a rate of 4 when none was."""
    given = {name: float(value) for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise UsageError(f"Got the targets {' and '.join(given)}; expected one: choose what matters.")
    name, value = next(iter(given.items()), ("rate", 4.0))
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"Target {name}={value} is out of range; expected a number above zero.")
    if name == "rate" and value > 32:
        raise UsageError(f"Target rate={value} is out of range; expected at most 32 bits per value.")
    return name, value


@dataclass(frozen=True, eq=False)
class _Live:
    """A module with calibration data: what measuring needs."""

    model: torch.nn.Module
    batches: Iterable[Any]
    output: Output
    fold_norms: bool


def _calibration(
    model: torch.nn.Module | str | Path,
    data: Iterable[Any] | None,
    output: Output | None,
    target: tuple[str, float],
    fold_norms: bool,
) -> _Live | None:
    """The module with its batches, which can be read again and again; None without data."""
    if data is None:
        if target[0] in ("distortion", "tolerance"):
            raise CalibrationError(
                f"Target {target[0]}={target[1]} is measured on data, but there are none; pass data."
            )
        return None
    if not isinstance(model, torch.nn.Module):
        raise CalibrationError(
            f"Data cannot be used with the bare file {model}; pass a module filled with its weights."
        )
    batches = as_batches(data)
    return _Live(model, batches, output_kind(batches, output), fold_norms)


def _default_importance(live: _Live | None, seed: int) -> Estimator:
    if live is None:
        return importances.weight_scale()
    return importances.kl(seed=seed) if live.output == "logits" else importances.regression(seed=seed)


def _forms(
    estimator: Estimator, inventory: Inventory, live: _Live | None, progress: Progress | None
) -> Mapping[str, QuadraticForm]:
    """What errors cost in every weight.

    Raises:
        CalibrationError: the estimator needs data and there are none.
    """
    if isinstance(estimator, DataFree):
        return estimator.forms(inventory.weights)
    if live is None:
        raise CalibrationError(f"Importance {estimator.name} is estimated on data, but there are none; pass data.")
    return estimator.estimate(live.model, live.batches, live.output, fold_norms=live.fold_norms, progress=progress)


# Attempts


@dataclass(frozen=True, eq=False)
class _Attempt:
    """A whole file at one water level."""

    water_level: float
    quantized: Mapping[str, Quantized]
    packed: container.Packed
    distortion: float | None = None
    accuracy: float | None = None


class _Work:
    """Everything that attempts at different water levels share."""

    def __init__(
        self, inventory: Inventory, jobs: dict[str, Job], live: _Live | None, progress: Progress | None
    ) -> None:
        self.inventory = inventory
        self.jobs = jobs
        self.live = live
        self.progress = progress
        self.power = allocate.mean_power(inventory.weights, {n: j.form for n, j in jobs.items() if j.form is not None})
        self._exact = {name: exact_bytes(tensor) for name, tensor in inventory.exact.items()}
        self._copy = torch_module.clone(live.model) if live else None
        self._references = reference_outputs(live.model, live.batches) if live else None

    def draft(self, level: float) -> _Attempt:
        """Quantize and encode at `power * 2^level`, without looking at data."""
        water_level = self.power * 2.0**level
        quantized = allocate.quantize(self.jobs, water_level, self.progress)
        return _Attempt(water_level, quantized, self._pack(quantized))

    def finish(self, draft: _Attempt) -> _Attempt:
        """Correct statistics on the quantized network, quantize the vectors again, encode, measure."""
        if self.live is None or self._copy is None:
            return draft
        self._fill(draft.packed.data)
        keep = [entry.name for entry in self.inventory.entries if isinstance(entry.origin, Exact)]
        correct_statistics(self.live.model, self._copy, self.live.batches, keep=keep, progress=self.progress)
        corrected = torch_module.inventory(self._copy, fold_norms=self.live.fold_norms).weights
        vectors = {
            name: replace(job, weight=corrected[name])
            for name, job in self.jobs.items()
            if job.weight.is_vector and name in corrected
        }
        quantized = dict(draft.quantized) | allocate.quantize(vectors, draft.water_level)
        packed = self._pack(quantized)
        self._fill(packed.data)
        measured = evaluate(self._copy, self.live.batches, output=self.live.output)
        distance = mean_distortion(self._copy, self.live.batches, self._references, self.live.output)
        return _Attempt(draft.water_level, quantized, packed, distance, measured.accuracy)

    def _pack(self, quantized: Mapping[str, Quantized]) -> container.Packed:
        return container.pack(self.inventory.entries, quantized, self._exact, PRODUCER)

    def _fill(self, data: bytes) -> None:
        assert self._copy is not None
        torch_module.fill(self._copy, dict(WaterfillFile(data).tensors()))


# Targets


def _search(work: _Work, target: tuple[str, float]) -> _Attempt:
    """The attempt that meets a target.

    Raises:
        TargetError: there is none.
    """
    name, value = target
    if name == "rate":
        return _search_size(work, value * work.inventory.floating_values / 8)
    if name == "size_bytes":
        return _search_size(work, value)
    if name == "distortion":
        return _search_distortion(work, value)
    return _search_tolerance(work, value)


def _search_size(work: _Work, limit: float) -> _Attempt:
    """The largest file of at most `limit` bytes."""
    values = max(1, work.inventory.floating_values)
    rate = 8 * limit / values
    aim, first = limit, -2 * rate

    def measure(level: float) -> Trial[_Attempt]:
        draft = work.draft(level)
        return Trial(level, float(len(draft.packed.data)), draft)

    try:
        while True:
            slope = -0.5 / math.log(2) / max(rate, 0.5)
            best = allocate.lowest_within(measure, aim, first, slope=slope, within=WITHIN / 2, precision=1e-3)
            attempt = work.finish(best.made)
            excess = len(attempt.packed.data) - limit
            if excess <= 0:
                return attempt
            aim, first = aim - 1.2 * excess - 1, best.level + 0.01  # corrected vectors took more than expected
    except TargetError as error:
        floor = float(error.args[0]) + limit - aim
        raise TargetError(
            f"Target of {limit:.0f} bytes ({rate:.3g} bit/value) is below the floor of {floor:.0f} bytes "
            f"({8 * floor / values:.3g} bit/value), where every matrix is zero; ask for more."
        ) from error


def _search_distortion(work: _Work, limit: float) -> _Attempt:
    """The smallest file whose measured distortion is at most `limit`."""

    def measure(fineness: float) -> Trial[_Attempt]:
        attempt = work.finish(work.draft(-fineness))
        if attempt.distortion is None or not math.isfinite(attempt.distortion):
            return Trial(fineness, math.inf, attempt)
        return Trial(fineness, attempt.distortion, attempt)

    return _search_quality(measure, limit, "distortion")


def _search_tolerance(work: _Work, limit: float) -> _Attempt:
    """The smallest file whose top-1 accuracy is at most `limit` below the original's."""
    assert work.live is not None
    original = evaluate(work.live.model, work.live.batches, output=work.live.output).accuracy
    if original is None:
        raise CalibrationError("A tolerance is measured as top-1 accuracy; the data need integer targets.")

    def measure(fineness: float) -> Trial[_Attempt]:
        attempt = work.finish(work.draft(-fineness))
        return Trial(fineness, original - (attempt.accuracy or 0.0), attempt)

    return _search_quality(measure, limit, "tolerance")


def _search_quality(measure: Callable[[float], Trial[_Attempt]], limit: float, name: str) -> _Attempt:
    span = (-allocate.HIGHEST_LOG2, -allocate.LOWEST_LOG2)
    try:
        return allocate.lowest_within(
            measure, limit, 6.0, slope=-1.0, within=5 * WITHIN, precision=0.02, span=span, tries=16
        ).made
    except TargetError as error:
        raise TargetError(
            f"Target {name}={limit:.3g} is below the floor {float(error.args[0]):.3g} that the finest steps reach; "
            "ask for more."
        ) from error


# The report


def _result(work: _Work, attempt: _Attempt, target: tuple[str, float], importance: Estimator) -> CompressionResult:
    factor = 0.5 if importance.name.startswith("kl") else 1.0
    rows = tuple(_row(entry, attempt, factor) for entry in work.inventory.entries)
    kept = [e for e in work.inventory.entries if not isinstance(e.origin, Tied)]
    return CompressionResult(
        data=attempt.packed.data,
        floating_values=work.inventory.floating_values,
        original_bytes=sum(math.prod(entry.shape) * DTYPE_BYTES[entry.dtype] for entry in kept),
        tensors=rows,
        overhead_bytes=attempt.packed.overhead_bytes,
        water_level=attempt.water_level,
        distortion=attempt.distortion,
        target=dict([target]),
        importance=importance.name,
    )


def _row(entry: Entry, attempt: _Attempt, factor: float) -> TensorReport:
    """The row of one entry of the state dict."""
    numel = math.prod(entry.shape)
    size = attempt.packed.tensor_bytes.get(entry.name, 0.0)
    quantized = attempt.quantized.get(entry.name)
    rate = 8 * size / max(1, numel)
    loss = None if quantized is None else factor * quantized.distortion
    kind, reason = _reconstruction(entry, quantized)
    return TensorReport(entry.name, entry.shape, numel, size, rate, loss, kind, reason)


def _reconstruction(entry: Entry, quantized: Quantized | None) -> tuple[str, str]:
    """How an entry comes back, and why so."""
    match entry.origin:
        case Exact(reason):
            return "exact", reason
        case Tied(to):
            return "tied", f"the same tensor as {to}"
        case Constant():
            return "constant", "folded into scale and shift of its norm"
        case NormVariance():
            return "uniform", "stored as the scale of its norm"
        case NormMean():
            return "uniform", "stored as the shift of its norm"
    if quantized is not None and isinstance(quantized.rule, Relative):
        return "relative", "sensitivity unknown: a short floating-point number"
    return "uniform", ""
