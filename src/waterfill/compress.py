"""The walk: a trained network in, a small file out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

import waterfill.importance as importances
from waterfill.codec.directory import original_bytes
from waterfill.errors import CalibrationError, UsageError
from waterfill.models import state_dict, torch_module
from waterfill.models.batches import as_batches, output_kind
from waterfill.protocols import DataFree, Estimator, Output, Progress, QuadraticForm, Quantizer
from waterfill.quantize import Scalar
from waterfill.reconstruct import reconstruct
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
    TensorLimit,
    TensorReport,
    Tied,
)
from waterfill.search import Attempt, Live, live, search, workshops

Effort: TypeAlias = Literal["fast", "default", "best", "max"]
ROUNDS: Mapping[str, int] = {"fast": 1, "default": 3, "best": 5, "max": 8}
"""How often roundings and tables are fitted to each other."""

POWERS: Mapping[str, tuple[float, ...]] = {
    "fast": (0.5,),
    "default": (0.5, 0.0),
    "best": (0.5, 0.0, 1.0),
    "max": (0.5, 0.0, 1.0, 0.75, 0.25),
}
"""Powers of the importances to try; the first is the one to use where nothing can be measured."""


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
        importance: an estimator; by default `kl()` for logits, `regression()` for values, `weight_scale()` without
            data.
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
        UsageError: several targets, or one out of its range, or an unknown effort.
        TargetError: the target cannot be met; the text names the floor.
        CalibrationError: the data do not fit the model, or a target needs data and there are none.
        WaterfillError: a tensor cannot be compressed, such as one with NaN.

    Example:
        >>> result = waterfill.compress(model, data, rate=3.0)  # doctest: +SKIP
        >>> result.save("model.wf")  # doctest: +SKIP
    """
    if effort not in ROUNDS:
        raise UsageError(f"Effort {effort!r} is unknown; expected one of {', '.join(ROUNDS)}.")
    if not 0 <= seed < 2**63:
        raise UsageError(f"Seed {seed} is out of range; expected 0 to 2^63 - 1.")
    target = _target(rate=rate, size_bytes=size_bytes, distortion=distortion, tolerance=tolerance)
    options: dict[str, Any] = {"fold_norms": fold_norms, "include": include, "exclude": exclude}
    if isinstance(model, torch.nn.Module):
        inventory = torch_module.inventory(model, **options)
    else:
        inventory = state_dict.read(Path(model), include=include, exclude=exclude)
    place = _calibration(model, data, output, target, options)
    estimator = importance or _default_importance(place, seed)
    forms = _forms(estimator, inventory, place, progress)
    matrix_quantizers = quantizers or (Scalar(rounds=ROUNDS[effort]),)
    powers = (1.0,) if isinstance(estimator, DataFree) else POWERS[effort]
    candidates = workshops(inventory, forms, matrix_quantizers, estimator.name, powers, place, progress)
    attempt = search(candidates, *target)
    return _result(inventory, forms, attempt, target, estimator)


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


def _calibration(
    model: torch.nn.Module | str | Path,
    data: Iterable[Any] | None,
    output: Output | None,
    target: tuple[str, float],
    options: Mapping[str, Any],
) -> Live | None:
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
    return live(model, batches, output_kind(batches, output), options)


def _default_importance(place: Live | None, seed: int) -> Estimator:
    if place is None:
        return importances.weight_scale()
    return importances.kl(seed=seed) if place.output == "logits" else importances.regression(seed=seed)


def _forms(
    estimator: Estimator, inventory: Inventory, place: Live | None, progress: Progress | None
) -> Mapping[str, QuadraticForm]:
    """What errors cost in every weight.

    Raises:
        CalibrationError: the estimator needs data and there are none, or its gradients are not finite.
    """
    if isinstance(estimator, DataFree):
        return estimator.forms(inventory.weights)
    if place is None:
        raise CalibrationError(f"Importance {estimator.name} is estimated on data, but there are none; pass data.")
    fold_norms = place.options["fold_norms"]
    forms = estimator.estimate(place.model, place.batches, place.output, fold_norms=fold_norms, progress=progress)
    for name, form in forms.items():
        if not np.isfinite(form.diagonal()).all():
            raise CalibrationError(
                f"Importance {estimator.name} of tensor {name!r} is NaN or infinite on the data; expected finite "
                "gradients. Check the range of the data and of the weights, or use weight_scale()."
            )
    return forms


# The report


def _result(
    inventory: Inventory,
    forms: Mapping[str, QuadraticForm],
    attempt: Attempt,
    target: tuple[str, float],
    importance: Estimator,
) -> CompressionResult:
    factor = 0.5 if importance.name.startswith("kl") else 1.0
    losses = {
        name: factor * _cost(name, attempt.quantized[name], inventory, forms)
        for name in attempt.quantized
        if name in forms
    }
    limits, values = attempt.limits, max(1, inventory.floating_values)
    assert limits is not None  # only drafts have none
    return CompressionResult(
        data=attempt.packed.data,
        floating_values=inventory.floating_values,
        original_bytes=original_bytes(inventory.entries),
        tensors=tuple(
            _row(entry, attempt, losses.get(entry.name), limits.tensors.get(entry.name)) for entry in inventory.entries
        ),
        overhead_bytes=attempt.packed.overhead_bytes,
        water_level=attempt.water_level,
        distortion=attempt.distortion,
        target=dict([target]),
        importance=importance.name,
        importance_power=attempt.power,
        limit=limits.bits / values,
        limit_error=limits.standard_error / values,
        limit_measure=limits.measure,
    )


def _cost(name: str, quantized: Quantized, inventory: Inventory, forms: Mapping[str, QuadraticForm]) -> float:
    """What the error of a tensor costs by its own form; of a vector, against what corrected statistics ask for."""
    weight = inventory.weights[name]
    if weight.is_vector:
        return quantized.distortion
    values = reconstruct(quantized.symbols.reshape(-1), quantized.rule, weight.layout)
    return forms[name].cost(weight.matrix - values.reshape(weight.matrix.shape))


def _row(entry: Entry, attempt: Attempt, loss: float | None, limit: TensorLimit | None) -> TensorReport:
    """The row of one entry of the state dict."""
    numel = math.prod(entry.shape)
    size = attempt.packed.tensor_bytes.get(entry.name, 0.0)
    kind, reason = _reconstruction(entry, attempt.quantized.get(entry.name))
    row = TensorReport(entry.name, entry.shape, numel, size, 8 * size / max(1, numel), loss, kind, reason)
    if limit is None:
        return row
    reason = "; ".join(filter(None, (reason, _why_below(row.rate - limit.rate, limit.standard_error))))
    return replace(
        row, reason=reason, limit=limit.rate, limit_error=limit.standard_error, source_model=limit.source_model
    )


def _why_below(gap: float, standard_error: float) -> str:
    """Why a tensor takes fewer bits than its limit; empty when it does not."""
    if gap >= 0:
        return ""
    if -gap <= 2 * standard_error:
        return "below the limit within two standard errors of the fitted entropy"
    return "below the limit: it has structure that the source model lacks"


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
