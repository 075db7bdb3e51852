"""The walk: a trained network in, a small file out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from waterfill.codec.directory import original_bytes
from waterfill.compression.calibration import Prepared, prepare
from waterfill.compression.in_memory import Attempt
from waterfill.compression.presets import DEFAULT_RATE, MEASURED, POWERS, STATES, Effort, check_effort
from waterfill.compression.rate_control import Target, fixed_attempt, search, workshops
from waterfill.compression.tune import Tune
from waterfill.errors import CalibrationError, UsageError
from waterfill.protocols import DataFree, Estimator, Metric, Output, Progress, Quantizer
from waterfill.quantize import Feedback
from waterfill.reconstruct import errors
from waterfill.records import (
    Entry,
    Quantized,
    TensorLimit,
)
from waterfill.results import CompressionResult, TensorReport, reconstruction
from waterfill.resume import work_folder


def compress(
    model: torch.nn.Module | str | Path,
    data: Iterable[Any] | None = None,
    *,
    rate: float | None = None,
    size_bytes: int | None = None,
    distortion: float | None = None,
    tolerance: float | None = None,
    metric: Metric | None = None,
    output: Output | None = None,
    importance: Estimator | None = None,
    quantizers: Sequence[Quantizer] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    effort: Effort = "default",
    tune: bool | Tune = False,
    fold_norms: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    work: str | Path | None = None,
) -> CompressionResult:
    """Compress a trained network to the smallest file at a given loss.

    Without a target the rate is 4, unless the quantizers have a fixed rate of their own.

    Args:
        model: a module, or a path to a safetensors file (then without data). A module is left as it is: weights,
            modes, hooks and gradients.
        data: calibration batches, each `(input, target)` or only inputs (a tensor, a tuple of other length than two,
            or a dict of keyword arguments); None to work without data.
        rate: bits of the whole file per floating-point value of the model.
        size_bytes: size of the whole file.
        distortion: mean distortion on the data: KL divergence in nats for logits, squared error for values.
        tolerance: largest loss of the metric: of top-1 accuracy as a fraction (0.005 is half a point).
        metric: what a tolerance is about, called with a model and `data`, larger for a better model; by default top-1
            accuracy on the data. It may measure on data of its own.
        output: `"logits"` or `"values"`, what the model returns; by default told from integer targets.
        importance: an estimator; by default `weight_scale()` without data, with data `kronecker()` for quantizers that
            use cross terms, and for others `kl()` of logits and `regression()` of values.
        quantizers: quantizer of the matrices; by default `Feedback()` with as many states as the effort says. One of a
            fixed rate, such as `KMeans(16)` or `Prune(0.1)`, makes one file, which meets a target or does not.
        include: name patterns; when given, only tensors that match one are quantized.
        exclude: name patterns of tensors that are stored without loss.
        effort: `"fast"`, `"default"`, `"best"` or `"max"`: trellises of 8, 64, 256 or 2048 states, and more powers of
            the importances that are tried.
        tune: distil biases and norms on the data at the end, without labels; the result reports it apart.
        fold_norms: store batch norms as one scale and one shift.
        seed: of everything that is sampled.
        progress: called with (stage, done, total).
        work: folder to keep what is finished in: the same call goes on there after it was killed, and makes the same
            file; with another target it uses what fits. It stays.

    Returns:
        The file with a report of every tensor.

    Raises:
        UsageError: several targets, or one out of its range, a metric without tolerance, or an unknown effort, or the
            work folder is that of another model, other data or other options; the text names the difference.
        TargetError: the target cannot be met; the text names the floor.
        CalibrationError: the data do not fit the model, or a target needs data and there are none.
        WaterfillError: a tensor cannot be compressed, such as one with NaN.

    Example:
        >>> result = waterfill.compress(model, data, rate=3.0)  # doctest: +SKIP
        >>> result.save("model.wf")  # doctest: +SKIP
    """
    check_effort(effort)
    if not 0 <= seed < 2**63:
        raise UsageError(f"Seed {seed} is out of range; expected 0 to 2^63 - 1.")
    target = _target(metric, rate=rate, size_bytes=size_bytes, distortion=distortion, tolerance=tolerance)
    if data is None and target is not None and target.name in ("distortion", "tolerance"):
        raise CalibrationError(
            f"Target {target.name}={target.value} is measured on data, but there are none; pass data."
        )
    if data is None and tune:
        raise CalibrationError("Tuning goes by data, but there are none; pass data, or leave it out.")
    options = {"fold_norms": fold_norms, "include": include, "exclude": exclude}
    matrix_quantizers = quantizers or (Feedback(STATES[effort]),)
    crossed = all(getattr(quantizer, "crossed", False) for quantizer in matrix_quantizers)
    fixed = any(getattr(quantizer, "fixed", False) for quantizer in matrix_quantizers)
    tempered = all(getattr(quantizer, "tempered", True) for quantizer in matrix_quantizers)
    with work_folder(work, {"effort": effort, "quantizers": matrix_quantizers}) as memo:
        ready = prepare(model, data, output, importance, options, seed, progress, crossed=crossed, memo=memo)
        powers = POWERS[effort] if tempered and not fixed and not isinstance(ready.estimator, DataFree) else (1.0,)
        works = workshops(ready, matrix_quantizers, powers, progress, (Tune() if tune is True else tune) or None)
        if fixed:
            return _result(ready, fixed_attempt(works[0], target), target)
        target = target or Target("rate", DEFAULT_RATE)
        return _result(ready, search(works, target, curves=len(powers) > 1 and effort in MEASURED), target)


def _target(metric: Metric | None, **targets: float | None) -> Target | None:
    """The one target that was given; None when none was."""
    given = {name: float(value) for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise UsageError(f"Got the targets {' and '.join(given)}; expected one: choose what matters.")
    if metric is not None and "tolerance" not in given:
        raise UsageError("Got a metric, but no tolerance that it would decide; expected both. Give a tolerance.")
    if not given:
        return None
    name, value = next(iter(given.items()))
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"Target {name}={value} is out of range; expected a number above zero.")
    if name == "rate" and value > 32:
        raise UsageError(f"Target rate={value} is out of range; expected at most 32 bits per value.")
    return Target(name, value, metric)


# The report


def _result(ready: Prepared, attempt: Attempt, target: Target | None) -> CompressionResult:
    inventory = ready.inventory
    losses = {
        name: ready.factor * _cost(name, quantized, ready, attempt)
        for name, quantized in attempt.quantized.items()
        if name in ready.forms
    }
    predicted = sum(attempt.corrections.get(name, 1.0) * loss for name, loss in losses.items())
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
        target={} if target is None else {target.name: target.value},
        predicted_distortion=predicted if losses else None,
        held_out_distortion=attempt.held_out,
        untuned_distortion=attempt.untuned,
        importance=ready.estimator.name,
        importance_power=attempt.power,
        limit=limits.bits / values,
        limit_error=limits.standard_error / values,
        limit_measure=limits.measure,
        distortion_unit=ready.unit,
        limit_distortion=limits.distortion if limits.curve else None,
        limit_curve=tuple((bits / values, least) for bits, least in limits.curve),
    )


def _cost(name: str, quantized: Quantized, ready: Prepared, attempt: Attempt) -> float:
    """What the error of a tensor costs by its own form, against what the layers before it and statistics ask for."""
    weight = attempt.targets.get(name, ready.inventory.weights[name])
    if weight.is_vector:
        return float(quantized.distortion * 2.0 ** attempt.offsets.get(name, 0.0))  # its form has the level in it
    return ready.forms[name].cost(errors(weight, quantized.symbols, quantized.rule))


def _row(entry: Entry, attempt: Attempt, loss: float | None, limit: TensorLimit | None) -> TensorReport:
    """The row of one entry of the state dict."""
    numel = math.prod(entry.shape)
    size = attempt.packed.tensor_bytes.get(entry.name, 0.0)
    kind, reason = reconstruction(entry, attempt.quantized.get(entry.name))
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
