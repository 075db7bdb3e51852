"""What a candidate loses in the quality that is asked for: divergence, accuracy, or a metric of the caller's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.compression.calibration import CalibratedModel
from waterfill.compression.in_memory import FileCandidate, filled
from waterfill.compression.shortfall import check_tolerance
from waterfill.compression.target import Target
from waterfill.errors import CalibrationError, TargetError
from waterfill.evaluation import evaluate_batches, summarize
from waterfill.models.arrangement import as_given
from waterfill.models.batches import IGNORED, evaluation, is_integer, split
from waterfill.models.kept_batches import unshared
from waterfill.protocols import Metric

Losses = Callable[[FileCandidate], float]
"""Loss of a candidate in the quality that is asked for."""


def losses_of(model: CalibratedModel, target: Target) -> Losses:
    """How to tell what a candidate loses.

    Raises:
        TargetError: there is no more to lose than is tolerated.
        CalibrationError: top-1 accuracy is asked for, but the data have no integer targets, or the metric gives NaN, or
            something infinite for the original.
    """
    if target.name == "distortion":
        return lambda candidate: or_infinite(candidate.distortion)
    if target.metric is None:
        with model.reading.of(model.model):
            statistics = evaluate_batches(model.model, model.batches, None, model.distortion, processes=model.processes)
            accuracy = summarize(statistics).accuracy
        if accuracy is None:
            raise CalibrationError(
                "A tolerance is measured as top-1 accuracy; the data need integer targets. Give them, or a metric."
            )
        check_tolerance(target, accuracy, commonest(split(batch)[1] for batch in model.batches))
        return lambda candidate: accuracy - (candidate.measured.accuracy or 0.0 if candidate.measured else 0.0)
    metric, made = target.metric, model.processes.broadcast_made
    before = made(lambda: original_quality(metric, model.model, model.data))
    return lambda candidate: before - made(lambda: quality(metric, filled(model, candidate), model.data))


def commonest(targets: Iterable[Tensor | None]) -> float:
    """Accuracy of the best constant answer: share of the commonest integer target among those that count."""
    labels = [
        target.reshape(-1).to("cpu", torch.int64) for target in targets if target is not None and is_integer(target)
    ]
    joined = torch.cat(labels)
    counts = np.unique(joined[joined != IGNORED].numpy(), return_counts=True)[1]
    return float(counts.max(initial=0) / max(1, counts.sum()))


def or_infinite(loss: float | None) -> float:
    """A loss, infinite where it is none or no number."""
    return math.inf if loss is None or not math.isfinite(loss) else loss


def original_quality(metric: Metric, model: nn.Module, data: Iterable[Any]) -> float:
    """Measure the original by a metric.

    Raises:
        CalibrationError: it gives no number, or something infinite.
    """
    found = quality(metric, model, data)
    if math.isinf(found):
        raise CalibrationError(f"The metric gives {found} for the original; expected a finite number. Correct it.")
    return found


def quality(metric: Metric, model: nn.Module, data: Iterable[Any]) -> float:
    """Measure a model by a metric.

    Raises:
        CalibrationError: it gives no number.
    """
    with evaluation(model), torch.no_grad():
        found = float(metric(model, unshared(as_given(data))))
    if math.isnan(found):
        raise CalibrationError("The metric gives NaN; expected a number, larger for a better model. Correct it.")
    return found


def floor_of_quality(target: Target, floor: float) -> TargetError:
    """The error of a target of quality that nothing meets."""
    return TargetError(
        f"Target {target.name}={target.value:.3g} is below the floor {floor:.3g} that the finest steps reach; ask for "
        "more."
    )
