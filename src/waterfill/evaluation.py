"""How good a model is, and how far from another one: measured on data, one batch at a time."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from waterfill.batch_statistics import BatchStatistics, OutputBatch, batch_statistics
from waterfill.distortion import Distortion, distortion_for
from waterfill.errors import CalibrationError, UnsupportedModelError
from waterfill.models.arrangement import arranged, arranged_pass
from waterfill.models.batches import call, checksum, describe, evaluation, split
from waterfill.models.kept_batches import OnePass, as_batches, known_length, one_pass
from waterfill.models.language import check_vocabulary, is_unlabelled_text, output_of_text, tokens_of, vocabulary_of
from waterfill.models.output_reading import OutputReading
from waterfill.models.output_rules import reading_of
from waterfill.models.placement import device_name, model_on
from waterfill.models.pretrained import load_pretrained
from waterfill.models.reference_outputs import ReferenceOutputs
from waterfill.models.surroundings import in_ordinary_surroundings
from waterfill.processes import ALONE, Processes
from waterfill.protocols import Output, Progress

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """Measured qualities; None where one does not apply.

    Attributes:
        samples: number of samples.
        predictions: number of predictions: samples, or positions where each sample has many; None for values.
        accuracy: fraction of predictions whose largest logit is the target's.
        top5: fraction of predictions whose target is among the five largest logits, of ten classes or more.
        cross_entropy: mean of -log p(target), nats.
        perplexity: its exponential, of models that predict the tokens of text.
        kl: mean of D(reference || model) per prediction, nats.
        kl_p99: 99th percentile of the same over the predictions, nats.
        agreement: fraction of predictions where model and reference have the same largest logit.
        total_variation: mean of half the sum of |p - p_reference|, 0 to 1.
        mse: mean squared difference to the target per value, of models that return values.
        squared_error: mean over the samples of the squared distance to the reference's output.
        relative_squared_error: the same divided by the mean squared length of the reference's output.
        cosine: mean over the samples of the cosine between both outputs.
        notes: how the output of the model was read, where that had to be told, a sentence each.
    """

    samples: int
    predictions: int | None = None
    accuracy: float | None = None
    top5: float | None = None
    cross_entropy: float | None = None
    perplexity: float | None = None
    kl: float | None = None
    kl_p99: float | None = None
    agreement: float | None = None
    total_variation: float | None = None
    mse: float | None = None
    squared_error: float | None = None
    relative_squared_error: float | None = None
    cosine: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def distortion(self) -> float | None:
        """Mean distance from the reference: KL of logits, squared error of values; None without a reference."""
        return self.squared_error if self.kl is None else self.kl

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return dataclasses.asdict(self) | {"notes": list(self.notes) or None}

    def to_json(self) -> str:
        """All fields as JSON text."""
        return json.dumps(self.to_dict(), indent=1)


@in_ordinary_surroundings
def evaluate(
    model: nn.Module,
    data: Iterable[Any],
    reference: nn.Module | Sequence[Tensor] | str | Path | None = None,
    *,
    output: Output | None = None,
    progress: Progress | None = None,
    device: str | torch.device | None = None,
) -> Evaluation:
    """Measure a model on data, in evaluation mode.

    Batches of text without targets, dicts with `input_ids` such as `text_batches` makes, count as follows. Models that
    predict the next token are measured at every token that has one, those of masked tokens at every token; of encoders
    without a head the output is the mean over the tokens of a text, if no `Embedder` says otherwise. Padding never
    counts.

    Args:
        model: the network; its modes are left as they were.
        data: batches `(input, target)` or inputs alone, which are gone through once; of a loader, a stream or a
            generator nothing is kept. A prediction whose integer target is -100 does not count.
        reference: the network to compare with, the path of its directory (of transformers), or what
            `reference_outputs` returned for it on the same data. A network runs beside the model, batch by batch, so
            that both are in memory and no outputs are kept.
        output: what the model returns; None to tell from the targets and outputs, or for text from the model.
        progress: called with ("evaluate", done, total) after every batch.
        device: where both networks run, such as `"cuda"`; they stay where they are, and copies of them go there. None
            for where they are.

    Returns:
        What the targets and the reference allow to measure.

    Raises:
        UsageError: `output` is none of its names, or the device is not there.
        CalibrationError: the data do not fit the model or the reference, or do not tell what the model returns.
        WaterfillError: the directory has no model that can be read.
    """
    place = device_name(device)
    model = model_on(model, place)
    if isinstance(reference, ReferenceOutputs):
        data = reference.batches_of(data)
    batches, reading, notes = _opened(model, data, output)
    if isinstance(reference, ReferenceOutputs):
        batches = reference.checked(batches)
    if isinstance(reference, str | Path):
        reference = load_pretrained(Path(reference))
    if isinstance(reference, nn.Module):
        reference = model_on(reference, place)
    elif reference is not None:
        reference = list(map(reading.of_tensor, reference))
    with reading.of(model, reference):
        measured = evaluate_batches(model, reading.one_pass(batches), reference, distortion_for(reading.kind), progress)
        return dataclasses.replace(summarize(measured), notes=notes)


def evaluate_both(
    original: nn.Module,
    compressed: nn.Module,
    data: Iterable[Any],
    *,
    output: Output | None = None,
    progress: Progress | None = None,
    device: str | torch.device | None = None,
) -> tuple[Evaluation, Evaluation]:
    """Measure a model, and a compressed one against it, in one pass over data.

    Args:
        original: the network.
        compressed: the network to compare with it.
        data: as in `evaluate`.
        output: as there, of the original.
        progress: as there.
        device: as there.

    Returns:
        Qualities of the original, and of the compressed one with its distances from the original.

    Raises:
        UsageError: as `evaluate`.
        CalibrationError: as `evaluate`.
    """
    place = device_name(device)
    original, compressed = model_on(original, place), model_on(compressed, place)
    batches, reading, notes = _opened(original, data, output)
    distortion = distortion_for(reading.kind)

    def measure(index: int, batch: Any) -> tuple[BatchStatistics, BatchStatistics]:
        found = _pass(compressed, batch, original, index, distortion)
        assert found.reference is not None
        alone = dataclasses.replace(found, result=found.reference, reference=None)
        return batch_statistics(alone, distortion), batch_statistics(found, distortion)

    with _measuring(original, compressed), reading.of(original, compressed):
        both = list(_told(ALONE.map(measure, reading.one_pass(batches)), known_length(batches), progress))
    of_each = summarize(one for one, _ in both), summarize(other for _, other in both)
    return dataclasses.replace(of_each[0], notes=notes), dataclasses.replace(of_each[1], notes=notes)


def _opened(
    model: nn.Module, data: Iterable[Any], output: Output | None
) -> tuple[OnePass, OutputReading, tuple[str, ...]]:
    """Data to go through once, as the model takes them, how its output is read, and what was assumed."""
    notes: list[str] = []
    batches = arranged_pass(model, one_pass(data), notes.append)
    try:
        reading = reading_of(model, [batches.first], output or output_of_text(model, [batches.first]))
    except CalibrationError as error:
        raise CalibrationError(" ".join([str(error), *notes])) from error
    return batches, reading, (*notes, *reading.notes)


def _told(found: Iterable[T], total: int, progress: Progress | None) -> Iterator[T]:
    """What was measured, batch after batch, while it is told how many there were."""
    for done, each in enumerate(found, 1):
        yield each
        if progress is not None:
            progress("evaluate", done, max(done, total))


def evaluate_batches(
    model: nn.Module,
    batches: Iterable[Any],
    reference: nn.Module | Sequence[Tensor] | None,
    distortion: Distortion,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> Iterator[BatchStatistics]:
    """Measure a model on data, batch by batch; see `evaluate`.

    Args:
        model: the network; its modes are left as they were.
        batches: batches that can be iterated over.
        reference: the network to compare with, or its outputs on the same batches.
        distortion: of what the model returns.
        progress: called with ("evaluate", done, total) after every batch.
        processes: each measures some of the batches, and gets what all have measured.

    Raises:
        CalibrationError: the data do not fit the model or the reference.
    """

    def measure(index: int, batch: Any) -> BatchStatistics:
        return batch_statistics(_pass(model, batch, reference, index, distortion), distortion)

    done = 0
    with _measuring(model, reference):
        for found in _told(processes.map(measure, batches), known_length(batches), progress):
            yield found
            done += 1
    if reference is not None and not isinstance(reference, nn.Module) and done != len(reference):
        raise CalibrationError(
            f"There are {done} batches, but reference outputs for {len(reference)}; expected as many. "
            "Make the reference outputs with the same data."
        )


@in_ordinary_surroundings
def reference_outputs(model: nn.Module, data: Iterable[Any]) -> list[Tensor]:
    """Run a model over data and keep its outputs, so that others can be compared with it again and again.

    What is no list is read once and kept with the outputs: whoever is compared on the same loader, stream or generator
    sees these batches.

    Args:
        model: the network; its modes are left as they were.
        data: batches.

    Returns:
        One tensor for every batch, on the CPU.

    Raises:
        CalibrationError: the data do not fit the model.
    """
    batches = as_batches(data)
    as_taken = arranged(model, batches)
    checksums = [checksum(split(batch)[0]) for batch in as_taken]
    return ReferenceOutputs(outputs_of(model, as_taken), checksums, data, batches)


def outputs_of(model: nn.Module, batches: Iterable[Any], processes: Processes = ALONE) -> list[Tensor]:
    """What a model returns on each batch, on the CPU.

    Args:
        model: the network; its modes are left as they were.
        batches: as the model takes them.
        processes: each runs some of the batches, and gets the outputs of all.

    Raises:
        CalibrationError: the data do not fit the model.
    """
    with _measuring(model):
        outputs = processes.map(lambda index, batch: _pass(model, batch, None, index, None).result.cpu(), batches)
        return list(outputs)


@contextmanager
def _measuring(*models: Any) -> Iterator[None]:
    """Evaluation mode for every module, no gradients.

    Gradients are not turned off by inference mode, so that what a model keeps from a pass stays usable afterwards.
    """
    with ExitStack() as stack:
        for model in models:
            if isinstance(model, nn.Module):
                stack.enter_context(evaluation(model))
        stack.enter_context(torch.no_grad())
        yield


def _pass(
    model: nn.Module,
    batch: Any,
    reference: nn.Module | Sequence[Tensor] | None,
    index: int,
    distortion: Distortion | None,
) -> OutputBatch:
    """Run the model and the reference on a batch; of text padding is left out, where it is said what is put out."""
    inputs, target = split(batch)
    check_vocabulary(inputs, vocabulary_of(model), index)
    result = call(model, inputs, index=index)
    if result.ndim == 0:
        raise UnsupportedModelError(
            "The model returns a single number for a batch; expected [samples, ...]. Return an output per sample."
        )
    _check_samples(inputs, target, result, index)
    if isinstance(reference, nn.Module):
        other: Tensor | None = call(reference, inputs, index=index)
    else:
        other = None if reference is None else _kept(reference, index)
    if other is not None and other.shape != result.shape:
        raise CalibrationError(
            f"Batch {index} gives {describe(result)} by the model, but {describe(other)} by the reference; "
            "expected the same shape. Compare models of the same kind on the same data."
        )
    found = OutputBatch(len(result), result, target, None if other is None else other.to(result.device))
    return found if distortion is None else _as_text(found, model, inputs, distortion)


def _as_text(found: OutputBatch, model: nn.Module, inputs: Any, distortion: Distortion) -> OutputBatch:
    """The same without padding and with the next tokens as target, where the batch is text."""
    outputs = [found.result] + ([] if found.reference is None else [found.reference])
    target = found.target
    if is_unlabelled_text(inputs, target, found.result):
        target, outputs = distortion.read_text(model, inputs, outputs)
    is_text = tokens_of(inputs) is not None and found.result.ndim == 3
    return OutputBatch(found.samples, outputs[0], target, outputs[1] if outputs[1:] else None, is_text)


def _check_samples(inputs: Any, target: Tensor | None, result: Tensor, index: int) -> None:
    """Check that a batch is no single sample, whose values would be counted as samples.

    Raises:
        CalibrationError: it is one.
    """
    single = isinstance(inputs, Tensor) and inputs.ndim == 1 and len(inputs) != len(result)
    if len(result) > 1 and (single or (target is not None and target.ndim == 0)):
        raise CalibrationError(
            f"Batch {index} looks like a single sample: inputs {describe(inputs)} with the target {describe(target)}; "
            "expected tensors [samples, ...]. Wrap the data in torch.utils.data.DataLoader with a batch_size."
        )


def _kept(references: Sequence[Tensor], index: int) -> Tensor:
    """The output of the reference on a batch."""
    if index >= len(references):
        raise CalibrationError(
            f"Batch {index} has no reference output, there are {len(references)}; expected one for every batch. "
            "Make the reference outputs with the same data."
        )
    return references[index]


def _exponential(number: float) -> float:
    """exp, infinite where it is beyond the largest number."""
    return math.inf if number > math.log(sys.float_info.max) else math.exp(number)


def _percentile(values: NDArray[np.float64]) -> float:
    """99th percentile; between two values of which one is infinite it is the larger."""
    return float(np.quantile(values, 0.99, method="higher" if np.isinf(values).any() else "linear"))


def summarize(batches: Iterable[BatchStatistics]) -> Evaluation:
    """Means over all batches, which are added up in their order."""
    samples, all_text = 0, True
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    divergences = array("d")
    for one in batches:
        samples += one.samples
        all_text &= one.is_text
        if "kl" in one.counts:
            divergences.frombytes(one.distances.tobytes())
        for name, total in one.sums.items():
            sums[name] += total
            counts[name] += one.counts[name]
    mean = {name: sums[name] / count for name, count in counts.items() if count > 0}
    entropy = mean.get("cross_entropy")
    return Evaluation(
        samples=samples,
        predictions=counts.get("predictions"),
        accuracy=mean.get("accuracy"),
        top5=mean.get("top5"),
        cross_entropy=entropy,
        perplexity=None if entropy is None or not all_text else _exponential(entropy),
        kl=mean.get("kl"),
        kl_p99=_percentile(np.array(divergences)) if divergences else None,
        agreement=mean.get("agreement"),
        total_variation=mean.get("total_variation"),
        mse=mean.get("mse"),
        squared_error=mean.get("squared_error"),
        relative_squared_error=sums["squared_error"] / sums["squared_length"] if sums["squared_length"] else None,
        cosine=mean.get("cosine"),
    )
