"""How good a model is, and how far from another one: measured on data, one batch at a time."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from waterfill.errors import CalibrationError, UnsupportedModelError
from waterfill.models.batches import as_batches, as_predictions, call, describe, evaluation, output_kind, split
from waterfill.protocols import Output, Progress

TOP5_CLASSES = 10
"""Top-5 accuracy is given from this number of classes on."""

_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Evaluation:
    """Measured qualities; None where one does not apply.

    Attributes:
        samples: number of samples.
        predictions: number of predictions: samples, or positions where each sample has many; None for values.
        accuracy: fraction of predictions whose largest logit is the target's.
        top5: fraction of predictions whose target is among the five largest logits, of ten classes or more.
        cross_entropy: mean of -log p(target), nats.
        kl: mean of D(reference || model) per prediction, nats.
        kl_p99: 99th percentile of the same over the predictions, nats.
        agreement: fraction of predictions where model and reference have the same largest logit.
        total_variation: mean of half the sum of |p - p_reference|, 0 to 1.
        mse: mean squared difference to the target per value, of models that return values.
        squared_error: mean over the samples of the squared distance to the reference's output.
    """

    samples: int
    predictions: int | None = None
    accuracy: float | None = None
    top5: float | None = None
    cross_entropy: float | None = None
    kl: float | None = None
    kl_p99: float | None = None
    agreement: float | None = None
    total_variation: float | None = None
    mse: float | None = None
    squared_error: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """All fields by name."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """All fields as JSON text."""
        return json.dumps(self.to_dict(), indent=1)


def evaluate(
    model: nn.Module,
    data: Iterable[Any],
    reference: nn.Module | Sequence[Tensor] | None = None,
    *,
    output: Output | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on data, in evaluation mode.

    Args:
        model: the network; its modes are left as they were.
        data: batches `(input, target)` or inputs alone. A prediction whose integer target is -100 does not count.
        reference: the network to compare with, or what `reference_outputs` returned for it on the same data.
        output: what the model returns; None to tell from the targets.
        progress: called with ("evaluate", done, total) after every batch.

    Returns:
        What the targets and the reference allow to measure.

    Raises:
        UsageError: `output` is not one of the two names.
        CalibrationError: the data do not fit the model or the reference, or do not tell what the model returns.
    """
    batches = as_batches(data)
    kind = output_kind(batches, output)
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    divergences: list[Tensor] = []
    measure = _measure_logits if kind == "logits" else _measure_values
    with _quiet(model, reference):
        for result, target, other in _passes(model, batches, reference, progress):
            sums["samples"] += len(result)
            for part in measure(result, target, other):
                divergences += [part["kl"]] if "kl" in part else []
                for name, each in part.items():
                    sums[name] += float(each.sum(dtype=torch.float64))
                    counts[name] += each.numel()
    return _summary(sums, counts, divergences)


def reference_outputs(model: nn.Module, data: Iterable[Any]) -> list[Tensor]:
    """Run a model over data and keep its outputs, so that others can be compared with it again and again.

    Args:
        model: the network; its modes are left as they were.
        data: batches.

    Returns:
        One tensor for every batch, on the CPU.

    Raises:
        CalibrationError: the data do not fit the model.
    """
    with _quiet(model):
        return [result.cpu() for result, _, _ in _passes(model, as_batches(data))]


def distances(model: nn.Module, data: Iterable[Any], reference: Sequence[Tensor], output: Output) -> Tensor:
    """Distances of a model's outputs from those of a reference, one by one.

    Args:
        model: the network; its modes are left as they were.
        data: batches.
        reference: what `reference_outputs` returned for them.
        output: what the model returns.

    Returns:
        D(reference || model) of every prediction that counts, in nats, or the squared distance of every sample;
        float64 [predictions or samples], on the CPU.

    Raises:
        CalibrationError: the data do not fit the model or the reference.
    """
    found = []
    with _quiet(model):
        for result, target, other in _passes(model, as_batches(data), reference):
            assert other is not None
            if output == "values":
                found.append(_squared_distances(result, other))
            else:
                found.append(divergence(as_predictions(other, target)[0], as_predictions(result, target)[0]))
    return torch.cat(found).cpu()


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """D(p || q) = sum p (log p - log q) of the softmax p of the reference and q of the logits, row by row.

    Args:
        reference: [predictions, classes].
        logits: [predictions, classes].

    Returns:
        Nats, float64 [predictions].
    """
    parts = _chunks(reference, logits)
    return torch.cat([_divergence(p.double().log_softmax(-1), q.double().log_softmax(-1)) for p, q in parts])


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p == -torch.inf, 0.0, terms).sum(-1)  # 0 log 0 = 0


def _chunks(*rows: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The same rows of every tensor, few enough at a time for copies in double precision."""
    size = max(1, _VALUES_AT_ONCE // max(1, rows[0].shape[-1]))
    return zip(*(torch.split(part, size) for part in rows), strict=True)


@contextmanager
def _quiet(*models: Any) -> Iterator[None]:
    """Evaluation mode for every module, no gradients.

    Gradients are not turned off by inference mode, so that what a model keeps from a pass stays usable afterwards.
    """
    with ExitStack() as stack:
        for model in models:
            if isinstance(model, nn.Module):
                stack.enter_context(evaluation(model))
        stack.enter_context(torch.no_grad())
        yield


def _passes(
    model: nn.Module,
    batches: Iterable[Any],
    reference: nn.Module | Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Give the output, the target and the output of the reference for every batch."""
    total = len(batches) if isinstance(batches, Sized) else 0
    done = 0
    for index, batch in enumerate(batches):
        inputs, target = split(batch)
        result = call(model, inputs, index=index)
        if result.ndim == 0:
            raise UnsupportedModelError(
                "The model returns a single number for a batch; expected [samples, ...]. Return an output per sample."
            )
        if isinstance(reference, nn.Module):
            other: Tensor | None = call(reference, inputs, index=index)
        else:
            other = None if reference is None else _kept(reference, index)
        if other is not None and other.shape != result.shape:
            raise CalibrationError(
                f"Batch {index} gives {describe(result)} by the model, but {describe(other)} by the reference; "
                "expected the same shape. Compare models of the same kind on the same data."
            )
        yield result, target, None if other is None else other.to(result.device)
        done = index + 1
        if progress is not None:
            progress("evaluate", done, max(done, total))
    if reference is not None and not isinstance(reference, nn.Module) and done != len(reference):
        raise CalibrationError(
            f"There are {done} batches, but reference outputs for {len(reference)}; expected as many. "
            "Make the reference outputs with the same data."
        )


def _kept(references: Sequence[Tensor], index: int) -> Tensor:
    if index >= len(references):
        raise CalibrationError(
            f"Batch {index} has no reference output, there are {len(references)}; expected one for every batch. "
            "Make the reference outputs with the same data."
        )
    return references[index]


def _measure_logits(result: Tensor, target: Tensor | None, reference: Tensor | None) -> Iterator[Mapping[str, Tensor]]:
    """Losses and hits of every prediction, a part at a time."""
    logits, labels = as_predictions(result, target)
    rows = [logits]
    rows += [] if labels is None else [labels[:, None]]
    rows += [] if reference is None else [as_predictions(reference, target)[0]]
    size = max(1, _VALUES_AT_ONCE // max(1, logits.shape[-1]))
    for part in zip(*(torch.split(row, size) for row in rows), strict=True):
        found = {"predictions": torch.ones(len(part[0]))}
        if labels is not None:
            found |= _label_losses(part[0], part[1])
        if reference is not None:
            found |= _reference_losses(part[0], part[-1])
        yield found


def _label_losses(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Losses of logits [predictions, classes] against labels [predictions, 1]."""
    found = {
        "accuracy": (logits.argmax(-1) == labels[:, 0]).double(),
        "cross_entropy": -logits.double().log_softmax(-1).gather(1, labels)[:, 0],
    }
    if logits.shape[-1] >= TOP5_CLASSES:
        found["top5"] = (logits.topk(5, dim=-1).indices == labels).any(-1).double()
    return found


def _reference_losses(logits: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Distances of logits [predictions, classes] from those of a reference."""
    difference = logits.double().softmax(-1) - reference.double().softmax(-1)
    return {
        "kl": divergence(reference, logits),
        "agreement": (logits.argmax(-1) == reference.argmax(-1)).double(),
        "total_variation": difference.abs().sum(-1) / 2,
    }


def _measure_values(result: Tensor, target: Tensor | None, reference: Tensor | None) -> Iterator[Mapping[str, Tensor]]:
    """Squared errors: to the target for every value, to the reference for every sample."""
    found = {}
    if target is not None and target.is_floating_point():
        if target.numel() != result.numel():
            raise CalibrationError(
                f"Targets {describe(target)} do not fit the values {describe(result)}; expected the same shape. "
                "Give targets of the shape of the model's output, or None."
            )
        found["mse"] = (result.double() - target.to(result.device).double().reshape(result.shape)).square()
    if reference is not None:
        found["squared_error"] = _squared_distances(result, reference)
    yield found


def _squared_distances(result: Tensor, reference: Tensor) -> Tensor:
    """||a - b||^2 of every sample, float64 [samples]."""
    return (result.double() - reference.double()).square().unsqueeze(-1).flatten(1).sum(-1)


def _summary(sums: Mapping[str, float], counts: Mapping[str, int], divergences: Sequence[Tensor]) -> Evaluation:
    mean = {name: sums[name] / count for name, count in counts.items() if count > 0}
    every = torch.cat(list(divergences)).cpu().numpy() if divergences else np.empty(0)
    return Evaluation(
        samples=int(sums["samples"]),
        predictions=counts.get("predictions"),
        accuracy=mean.get("accuracy"),
        top5=mean.get("top5"),
        cross_entropy=mean.get("cross_entropy"),
        kl=mean.get("kl"),
        kl_p99=float(np.quantile(every, 0.99)) if every.size else None,
        agreement=mean.get("agreement"),
        total_variation=mean.get("total_variation"),
        mse=mean.get("mse"),
        squared_error=mean.get("squared_error"),
    )
