"""Rules by which it is told what a model returns, from its first batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from waterfill.errors import CalibrationError, UnsupportedModelError, UsageError
from waterfill.models import output_values as change
from waterfill.models.batches import Inputs, describe, evaluation, is_integer, split, whole_output
from waterfill.models.graph_end import End, graph_end
from waterfill.models.language import check_vocabulary, tokens_of, vocabulary_of
from waterfill.models.output_choice import chosen
from waterfill.models.output_reading import OutputReading, active
from waterfill.models.predictions import as_predictions, axes_that_fit, prediction_rows, without_ones
from waterfill.protocols import Output

OUTPUTS: tuple[Output, ...] = get_args(Output)
"""Names of what a model can return."""

_SUM_TOLERANCE = 1e-3
_SUM_TOLERANCE_OF_HALF = 2e-2
"""How far a sum of probabilities may be from 1, of numbers of less than four bytes."""

PROBABILITIES = "The outputs sum to 1 over the classes and were read as probabilities."
YES_OR_NO = "Every number of the output was read as {} of yes against no, two classes."
ONE_HOT = "Targets with a single 1 along axis {} were read as the number of a class."


def reading_of(model: nn.Module, batches: Iterable[Any], output: str | None = None) -> OutputReading:
    """Tell how a model's output is read, from its output on the first batch and the targets there.

    Args:
        model: the network; it is left as it was.
        batches: batches that can be iterated over again.
        output: what the caller says, which wins; None to tell, where integer targets mean classes.

    Raises:
        UsageError: `output` is none of the names.
        CalibrationError: the batch does not fit the model, the targets do not fit the output, `output` is not what the
            model returns, or it is None and nothing tells.
        UnsupportedModelError: nothing of the output can be read.
    """
    kind = None if output is None else _named(output)
    inputs, target = split(next(iter(batches)))
    if kind is None and not _may_be_labels(target):
        raise not_told(target)
    before = active(model)
    if before is not None:
        return OutputReading(before.form)
    check_vocabulary(inputs, vocabulary_of(model), 0)
    with evaluation(model), torch.no_grad(), _hooks_seen(model) as seen:
        found = whole_output(model, inputs, index=0)
    path, tensor, note = chosen(found, inputs, target, kind)
    target = None if target is None else target.to(tensor.device)
    told = _read(FirstBatch(model, inputs, tensor.detach(), target, path), kind)
    reading = replace(told, path=path, notes=(*note, *told.notes))
    if reading.changes and not seen:
        raise UnsupportedModelError(
            f"The class {type(model).__name__} has a __call__ of its own that runs no forward hooks, by which its "
            f"outputs would be read; expected that of nn.Module. Take it out, or return {reading.form} in one tensor."
        )
    return reading


@contextmanager
def _hooks_seen(model: nn.Module) -> Iterator[list[None]]:
    """A list that gets an entry when the model runs its forward hooks."""
    seen: list[None] = []
    hook = nn.Module.register_forward_hook(model, lambda *_: seen.append(None))
    try:
        yield seen
    finally:
        hook.remove()


def _named(output: str) -> Output:
    for known in OUTPUTS:
        if output == known:
            return known
    names = ", ".join(map(repr, OUTPUTS))
    raise UsageError(f"Output is {output!r}; expected {names} or None. Name what the model returns.")


def _may_be_labels(target: Tensor | None) -> bool:
    """Whether targets are class numbers, or may say yes or no."""
    if target is None or target.is_complex():
        return False
    return is_integer(target) or (bool(target.numel()) and change.is_yes_or_no(target))


def not_told(target: Tensor | None) -> CalibrationError:
    """The error where targets do not tell what a model returns."""
    found = "no targets" if target is None else f"targets of {describe(target)}"
    return CalibrationError(
        f"Data has {found}, which do not tell what the model returns; expected integer targets or output=. Give "
        "output='logits' for scores of classes or output='probabilities' behind a softmax or sigmoid (error measured "
        "as KL divergence), or output='values' for real values (error measured as squared error)."
    )


@dataclass(frozen=True, eq=False)
class FirstBatch:
    """What is known of the first batch.

    Attributes:
        model: the network.
        inputs: of the batch.
        tensor: the output that counts.
        target: of the batch; None where there is none.
        path: to the tensor, as in `OutputReading`.
    """

    model: nn.Module
    inputs: Inputs
    tensor: Tensor
    target: Tensor | None
    path: tuple[str | int, ...]

    @cached_property
    def end(self) -> End:
        """The last step of the network."""
        return graph_end(self.model, self.inputs, OutputReading("values", self.path).tensor_in)

    @cached_property
    def is_within_0_and_1(self) -> bool:
        """Whether all outputs are numbers from 0 to 1."""
        return bool(self.tensor.numel()) and bool(((self.tensor >= 0) & (self.tensor <= 1)).all())

    @property
    def span(self) -> str:
        """Words for the range of the outputs."""
        return f"{float(self.tensor.min()):.4g} to {float(self.tensor.max()):.4g}"

    def sums_to_one(self, axis: int) -> bool:
        """Whether the outputs are probabilities of at least two classes along an axis."""
        if not self.is_within_0_and_1 or self.tensor.shape[axis] < 2:
            return False
        sums = self.tensor.double().sum(axis)
        tolerance = _SUM_TOLERANCE_OF_HALF if self.tensor.itemsize < 4 else _SUM_TOLERANCE
        return bool(((sums - 1).abs() <= tolerance).all())


def _read(first: FirstBatch, kind: Output | None) -> OutputReading:
    tensor, target = first.tensor, first.target
    if kind == "values":
        return OutputReading("values", values=torch.view_as_real if tensor.is_complex() else change.as_it_is)
    if tensor.is_complex():
        raise UnsupportedModelError(
            f"The model returns {describe(tensor)}, complex numbers, which are no scores of classes; expected real "
            "ones. Return their absolute values, or give output='values'."
        )
    if target is None or not _may_be_labels(target):
        return _without_labels(first, kind)
    if without_ones(target.shape) == without_ones(tensor.shape):
        return _a_target_for_every_number(first, kind)
    axes = axes_that_fit(tensor, target) if is_integer(target) else []
    if axes:
        return _of_classes(first, kind, axes)
    if kind is None:
        prediction_rows(tensor, target)  # says what does not fit
        raise not_told(target)
    return _without_labels(first, kind)


def _without_labels(first: FirstBatch, kind: Output | None) -> OutputReading:
    """Read an output without class numbers, as `cross_entropy` does where it has four axes or more."""
    tensor = first.tensor
    last = tensor.ndim - 1
    class_axis = 1 if tensor.ndim > 3 else last
    if tensor.ndim == 1 or tensor.shape[class_axis] == 1:
        return _yes_or_no(first, kind)
    if tensor.ndim == 2 or tokens_of(first.inputs) is not None:
        return _of_classes(first, kind, [last])
    told = _of_classes(first, kind, [class_axis, last if class_axis == 1 else 1])
    axis = last if told.axis is None else told.axis
    return replace(told, notes=(*told.notes, _axis_note(tensor, axis)))


def _a_target_for_every_number(first: FirstBatch, kind: Output | None) -> OutputReading:
    """Read an output with as many targets as numbers: yes or no for each, or a single yes among classes."""
    tensor, target = first.tensor, first.target
    assert target is not None
    change.yes_or_no(target)  # refuses other numbers
    axes = [1, tensor.ndim - 1] if tensor.ndim > 3 else [tensor.ndim - 1, 1]
    single = [each for each in axes if each < tensor.ndim and tensor.shape[each] > 1 and _is_one_hot(first, each)]
    if not single or (first.is_within_0_and_1 and first.end == "sigmoid"):
        return replace(_yes_or_no(first, kind), labels=change.yes_or_no)
    axis = single[0]
    told = _of_classes(first, kind, [axis])
    told = replace(told, axis=None if axis == tensor.ndim - 1 else axis)
    labels = partial(change.numbers_of_ones, axis=axis)
    return replace(told, labels=labels, notes=(*told.notes, ONE_HOT.format(axis)))


def _is_one_hot(first: FirstBatch, axis: int) -> bool:
    target = first.target
    return target is not None and target.shape == first.tensor.shape and change.is_one_hot(target, axis)


def _of_classes(first: FirstBatch, kind: Output | None, axes: Sequence[int]) -> OutputReading:
    """Read an output with an axis of classes.

    Args:
        first: the batch.
        kind: what the model is said to return.
        axes: which may have the classes, the likelier first.
    """
    last = first.tensor.ndim - 1
    sums = [axis for axis in axes if first.sums_to_one(axis)]
    if sums:
        if kind == "logits":
            raise _not_logits(first, "sum to 1")
        notes = (PROBABILITIES,) if kind is None else ()
        axis = None if sums[0] == last else sums[0]
        return OutputReading("probabilities", axis=axis, values=change.logits_of_probabilities, notes=notes)
    if kind == "probabilities" or (first.is_within_0_and_1 and first.end == "sigmoid"):
        return _many_yes_or_no(first, kind, axes[0])
    _check_may_be_logits(first, kind)
    if first.target is None or len(axes) == 1 or not is_integer(first.target):
        axis = None if axes[0] == last or is_integer(first.target) else axes[0]  # one that fits is found by its target
        return OutputReading("logits", axis=axis)
    axis = min(axes, key=lambda axis: _cross_entropy(first.tensor, first.target, axis))
    notes = (_axis_note(first.tensor, axis),)
    return OutputReading("logits", axis=None if axis == last else axis, notes=notes)


def _cross_entropy(tensor: Tensor, target: Tensor | None, axis: int) -> float:
    """Mean of -log p of the class numbers, if the classes are on an axis."""
    rows, labels = as_predictions(tensor.movedim(axis, -1).double(), target)
    return 0.0 if labels is None else float(torch.nn.functional.cross_entropy(rows, labels))


def _axis_note(tensor: Tensor, axis: int) -> str:
    return f"Axis {axis} of the output {describe(tensor)} was read as the classes."


def _many_yes_or_no(first: FirstBatch, kind: Output | None, axis: int) -> OutputReading:
    """Read probabilities that do not sum to 1, one for every class; class numbers say which is right."""
    told, last = _yes_or_no(first, kind), first.tensor.ndim - 1
    if first.target is None or not is_integer(first.target):
        return told
    labels = partial(change.one_of_many, classes=first.tensor.shape[axis])
    return replace(told, axis=None if axis == last else axis, labels=labels)


def _yes_or_no(first: FirstBatch, kind: Output | None) -> OutputReading:
    """Read every number as a yes or no of its own: a logit, or a probability."""
    if not _are_probabilities(first, kind):
        notes = (YES_OR_NO.format("the logit"),)
        return OutputReading("logits", values=change.two_classes_of_logits, notes=notes)
    notes = (YES_OR_NO.format("the probability"),)
    return OutputReading("probabilities", values=change.two_classes_of_probabilities, notes=notes)


def _are_probabilities(first: FirstBatch, kind: Output | None) -> bool:
    """Whether numbers for yes or no are probabilities.

    Raises:
        CalibrationError: the caller says otherwise, or nothing tells.
    """
    if not first.is_within_0_and_1:
        if kind == "probabilities":
            raise _no_probabilities(first)
        return False
    if kind == "probabilities":
        return True
    if first.end == "softmax":
        raise CalibrationError(
            f"The model returns {describe(first.tensor)} behind a softmax of one class, which is always 1; expected "
            "several classes, or a sigmoid. Return the logit, or both classes."
        )
    if first.end == "sigmoid":
        if kind == "logits":
            raise _not_logits(first, "come from a sigmoid")
        return True
    _check_may_be_logits(first, kind)
    return False


def _check_may_be_logits(first: FirstBatch, kind: Output | None) -> None:
    """Check that outputs of which nobody said what they are do not look like probabilities.

    Raises:
        CalibrationError: all are from 0 to 1, and not because the last step is linear and they happen to be small.
    """
    if kind is None and first.is_within_0_and_1 and first.end != "linear":
        raise CalibrationError(
            f"The outputs {describe(first.tensor)} range from {first.span} on the first batch, so they may be "
            "probabilities or logits of yes or no; expected output=. Give output='probabilities' or output='logits'."
        )


def _not_logits(first: FirstBatch, why: str) -> CalibrationError:
    return CalibrationError(
        f"The model returns {describe(first.tensor)} that {why}: probabilities, not logits; their softmax would hide "
        "most of an error. Give output='probabilities', or leave the last step out of the model."
    )


def _no_probabilities(first: FirstBatch) -> CalibrationError:
    return CalibrationError(
        f"The model returns {describe(first.tensor)} from {first.span}, which are no probabilities; expected numbers "
        "from 0 to 1. Give output='logits' for scores or logarithms of probabilities, 'values' for real values."
    )
